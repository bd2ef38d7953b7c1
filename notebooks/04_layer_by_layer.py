# %% [markdown]
# # Layer by layer
#
# When does the model know the word? The MLM head reads the last layer; here it is applied after every layer. What is decided early, what late, and how far such a picture can
# be trusted.
#
# The code: [spanbert/model/encoder.py](../spanbert/model/encoder.py), [spanbert/model/heads.py](../spanbert/model/heads.py). The method is known as the "logit lens".

# %%
import gzip
import json
import lzma
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import spanbert
from pretrain.masking.masker import MaskConfig, Masker
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.model.batch import pack_sequences
from spanbert.model.models import SpanBertForPretraining
from spanbert.model.vocabulary_loss import vocabulary_logits
from spanbert.weights import bundled_path

torch.set_grad_enabled(False)
ROOT = Path(spanbert.__file__).parents[1]
model, tokenizer, _ = load_model_and_tokenizer(bundled_path("encoder"), SpanBertForPretraining)
model.eval()
embedding_VH = model.encoder.embeddings.word.weight

# %% [markdown]
# The encoder returns its last hidden states only. PyTorch's hooks give us those in between: after the embeddings and after each of the four layers.


# %%
def states_of(packed):
    """Hidden states (5, T, H): embeddings, then layers 1 to 4."""
    found = []
    parts = [model.encoder.embeddings, *model.encoder.layers]
    hooks = [part.register_forward_hook(lambda module, inputs, output: found.append(output)) for part in parts]
    last = model.encoder(*packed)
    for hook in hooks:
        hook.remove()
    assert torch.equal(found[-1], last)
    return torch.stack(found)


def log_probs(hidden_MH):
    """What the MLM head says to hidden states: (M, V)."""
    return vocabulary_logits(model.mlm(hidden_MH), embedding_VH, model.mlm.bias).log_softmax(-1)


# %% [markdown]
# The head was trained on the last layer. Why should it make sense of an earlier one? Because each layer *adds* to its input (and normalises), so all layers speak about the same
# place in roughly the same coordinates. Roughly; we come back to it.
#
# ## Six tokens
#
# A text that this model has never seen (it was written for this project), one token hidden at a time:

# %%
text = (ROOT / "sample" / "text.txt").read_text(encoding="utf-8").split("\n\n")[0]
ids, offsets = tokenizer.encode(text)
chosen = (
    ("joins ", "the"),
    ("founded ", "in"),
    ("is ", "an"),
    ("by the ", "Su"),
    ("April ", "185"),
    ("It was ", "built"),
)
starts = [text.index(before + token) + len(before) for before, token in chosen]
places = [int(np.flatnonzero(offsets[:, 0] == start)[0]) for start in starts]
assert [tokenizer.token(int(id)) for id in ids[places]] == [token for _, token in chosen]
sequences = []
for place in places:
    hidden = ids.copy()
    hidden[place] = tokenizer.mask_id
    sequences.append((hidden,))
packed = pack_sequences(sequences, tokenizer.cls_id, tokenizer.sep_id).tensors()
positions = packed.cu_seqlens[:-1].long() + 1 + torch.tensor(places)
said = torch.stack([log_probs(state[positions]) for state in states_of(packed)])  # (5, words, V)
right = said.gather(2, torch.tensor(ids[places]).long()[None, :, None].expand(5, -1, 1))[..., 0].exp()

figure, axes = plt.subplots(figsize=(8.5, 2.9))
image = axes.imshow(right, cmap="Blues", vmin=0, vmax=1, aspect="auto")
axes.grid(False)
for row in range(5):
    for column in range(len(places)):
        best = tokenizer.token(int(said[row, column].argmax()))
        mark = " ✓" if said[row, column].argmax() == ids[places[column]] else ""
        axes.text(
            column,
            row,
            f"{best}{mark}",
            ha="center",
            va="center",
            fontsize=8.5,
            color="white" if right[row, column] > 0.6 else "#1c2330",
        )
labels = [f"… {before}▢{text[start + len(token) :][:5]}…\n({token})" for (before, token), start in zip(chosen, starts)]
axes.set_xticks(range(len(places)), labels, fontsize=7.5)
axes.set_yticks(range(5), ["embeddings", *(f"layer {n}" for n in range(1, 5))])
axes.set_title("the head's first choice after each layer")
figure.colorbar(image, label="p(right token)")
plt.show()

# %% [markdown]
# "in" is there after two layers; "the" and "an" have rivals until layer 3. "Su" (of "Suez") and "185" (of "1859") are nowhere until the last layers: both stand in the text
# a second time. "built" the model never finds, "founded" is what it prefers.

# %%
assert right[2, 1] > 0.8 and right[2, [0, 2]].max() < 0.5 < right[3, :3].min() and right[4, :3].min() > 0.5
assert right[2, 3:5].max() < 0.05 and right[4, 3:5].min() > 0.8 and right[:, 5].max() < 0.1

# %% [markdown]
# ## Two thousand tokens
#
# Six tokens are an anecdote. So: the 99 paragraphs of the bundled part of SQuAD's development set, 15 % of the tokens chosen as in BERT's masking, and of these the ones
# where `[MASK]` stands. The baseline predicts every token by its frequency in the sample of Wikipedia; it needs no model at all.

# %%
data = json.loads(gzip.decompress((ROOT / "sample" / "squad-dev.json.gz").read_bytes()))
passages = [tokenizer.encode_ids(p["context"])[:254] for article in data["data"] for p in article["paragraphs"]]
packed = pack_sequences([(passage,) for passage in passages], tokenizer.cls_id, tokenizer.sep_id)
masker = Masker.from_tokenizer(MaskConfig(scheme="subword"), tokenizer, seed=0)
batch = masker.mask(packed, epoch=0, indices=np.arange(len(passages)))
masked = batch.packed.input_ids_T[batch.targets.positions_M] == tokenizer.mask_id
positions, targets = (torch.from_numpy(x[masked]) for x in (batch.targets.positions_M, batch.targets.ids_M))
states = states_of(batch.packed.tensors())


def target_log_probs(hidden_MH):
    """log p(right token) of every masked token, and whether it is the first choice."""
    said = log_probs(hidden_MH)
    return said.gather(1, targets[:, None])[:, 0], said.argmax(1) == targets


by_layer = [target_log_probs(state[positions]) for state in states]
log_p = torch.stack([one for one, _ in by_layer])  # (5, M)
correct = torch.stack([one for _, one in by_layer]).float().mean(1)

wikipedia = tokenizer.encode_ids(lzma.decompress((ROOT / "sample" / "wikipedia.txt.xz").read_bytes()).decode())
counts = np.bincount(wikipedia, minlength=tokenizer.vocab_size) + 1
unigram_loss = -torch.from_numpy(np.log(counts / counts.sum()))[targets]
print(f"{len(targets)} masked tokens; baseline {unigram_loss.mean():.2f} nats")
for number in range(5):
    print(f"after layer {number}: loss {-log_p[number].mean():.2f} nats, first choice right {correct[number]:.1%}")
loss = -log_p.mean(1)
assert (loss.diff() < 0).all() and (correct.diff() > 0).all() and loss.diff().argmin() == 1
assert loss[0] > unigram_loss.mean() > loss[2] and loss[4] < 4.0

# %% [markdown]
# Every layer helps. The embeddings alone are worse than the baseline: at `[MASK]` they hold a mask's vector and a position, nothing of the text. The largest step is the second layer's.
#
# But a mean hides that tokens are very different from one another:

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
names = ["emb.", "1", "2", "3", "4"]
for share, alpha in ((0.25, 0.18), (0.1, 0.1)):
    low, high = (torch.quantile(log_p, q, dim=1) / np.log(10) for q in (share, 1 - share))
    left.fill_between(
        range(5), low, high, color="C0", alpha=alpha, label=f"{1 - 2 * share:.0%} of the tokens", linewidth=0
    )
left.plot(log_p.median(1).values / np.log(10), "o-", color="C0", label="median")
left.set_xticks(range(5), names)
left.set_yticks(range(-6, 1, 2), [f"$10^{{{n}}}$" if n else "1" for n in range(-6, 1, 2)])
left.set(xlabel="after layer", ylabel="p(right token)", ylim=(-6.5, 0.2), title="all tokens")
left.legend(fontsize=8, loc="lower right")

rank = torch.from_numpy(np.argsort(np.argsort(-counts)))[targets]
bins = ((0, 10), (10, 100), (100, 1000), (1000, 4000), (4000, 16000))
for (low, high), shade in zip(bins, plt.get_cmap("viridis")(np.linspace(0, 0.85, 5))):
    chosen = (rank >= low) & (rank < high)
    right.plot(log_p[:, chosen].exp().mean(1), "o-", color=shade, label=f"{low + 1:,}–{high:,} ({chosen.sum()})")
right.set_xticks(range(5), names)
right.set(xlabel="after layer", ylabel="mean p(right token)", title="by the token's rank in frequency")
right.legend(fontsize=8, title="rank (tokens)", title_fontsize=8)
plt.show()
falls = (log_p[4] < log_p[3]).float().mean()
print(
    f"the last layer makes the right token less likely in {falls:.0%} of the cases; p rises at every layer in {(log_p.diff(dim=0) > 0).all(0).float().mean():.0%}"
)
assert 0.25 < falls < 0.45

# %% [markdown]
# The ten most frequent tokens (the, of, commas …) are settled by layer 2: later layers add little. Rarer tokens come later, and their p grows up to the last layer. And "p grows" holds on average only: for a third of the
# tokens the last layer makes things worse.

# %%
frequent, rare = rank < 10, rank >= 4000
gain = {name: log_p[:, chosen].exp().mean(1) for name, chosen in (("frequent", frequent), ("rare", rare))}
assert gain["frequent"][2] > 0.8 * gain["frequent"][4] and gain["rare"][2] < 0.1 * gain["rare"][4]

# %% [markdown]
# ## What do the late layers know?
#
# One thing that a model can do for a rare word is to look for it elsewhere in the text. Take the tokens beyond rank 300, and part them: does the same token stand, visible, somewhere else in the passage? By frequency alone the
# two groups are equally hard.

# %%
sequence = np.searchsorted(packed.cu_seqlens, positions.numpy(), side="right") - 1
visible = [set(batch.packed.input_ids_T[a:b].tolist()) for a, b in zip(packed.cu_seqlens, packed.cu_seqlens[1:])]
repeated = torch.tensor([token in visible[s] for s, token in zip(sequence, targets.tolist())])
groups = {"stands elsewhere in the passage": (rank >= 300) & repeated, "stands nowhere else": (rank >= 300) & ~repeated}

figure, axes = plt.subplots(figsize=(5.6, 3.2))
group_loss = {}
for name, chosen in groups.items():
    group_loss[name] = -log_p[:, chosen].mean(1)
    axes.plot(group_loss[name], "o-", label=f"{name} ({chosen.sum()} tokens)")
    print(
        f"{name}: baseline {unigram_loss[chosen].mean():.2f}, by layer {' '.join(f'{x:.2f}' for x in group_loss[name])} nats"
    )
axes.set_xticks(range(5), names)
axes.set(xlabel="after layer", ylabel="loss (nats)", ylim=(0, None), title="tokens beyond rank 300")
axes.legend(fontsize=8)
plt.show()
there, nowhere = group_loss.values()
baselines = [unigram_loss[chosen].mean() for chosen in groups.values()]
assert abs(baselines[0] - baselines[1]) < 0.3
assert nowhere[2] - there[2] < 1.2 and nowhere[4] - there[4] > 2.4

# %% [markdown]
# Up to layer 2 the two groups are 0.7 nats apart. Layers 3 and 4 make it 2.9: the last layer alone takes 1.9 nats off the tokens that stand elsewhere, and 0.7 off the others. That looks like copying, and it happens late, as it must: to
# look for a word, a position first has to know what it is looking for.
#
# It is no proof. A word that is repeated is one that the passage is about, so the topic may give it away. So take the other occurrences out, by writing `[MASK]` over them, and see what is left of the advantage. As a control, as many other
# rare tokens of the same passages are overwritten instead.

# %%
few = 50  # passages: enough, and twice the work
rng = np.random.default_rng(0)
is_rare = np.argsort(np.argsort(-counts)) >= 300
is_rare[tokenizer.special_ids] = False
asked = torch.from_numpy((sequence < few) & groups["stands elsewhere in the passage"].numpy())
end = packed.cu_seqlens[few]
seen = {"as it was": batch.packed.input_ids_T[:end].copy()}
removed, control = seen["as it was"].copy(), seen["as it was"].copy()
for number in range(few):
    begin, stop = packed.cu_seqlens[number : number + 2]
    wanted = targets[asked & torch.from_numpy(sequence == number)].numpy()
    here = begin + np.flatnonzero(np.isin(removed[begin:stop], wanted))
    others = begin + np.flatnonzero(is_rare[removed[begin:stop]] & ~np.isin(removed[begin:stop], wanted))
    control[rng.permutation(others)[: len(here)]] = tokenizer.mask_id
    removed[here] = tokenizer.mask_id
seen |= {"other occurrences removed": removed, "as many other tokens removed": control}
assert abs((removed != seen["as it was"]).sum() - (control != seen["as it was"]).sum()) < 10

first = batch.packed._replace(cu_seqlens=packed.cu_seqlens[: few + 1])
final = {"as it was": log_p[4, asked], "stands nowhere else": log_p[4, groups["stands nowhere else"]]}
for name in ("other occurrences removed", "as many other tokens removed"):
    hidden = model.encoder(*first._replace(input_ids_T=seen[name]).tensors())
    said = log_probs(hidden[positions[asked]])
    final[name] = said.gather(1, targets[asked][:, None])[:, 0]
for name in ("as it was", "as many other tokens removed", "other occurrences removed", "stands nowhere else"):
    print(f"{name:30}{-final[name].mean():.2f} nats ({len(final[name])} tokens)")
as_it_was, without = -final["as it was"].mean(), -final["other occurrences removed"].mean()
assert without - as_it_was > 2 and abs(-final["as many other tokens removed"].mean() - as_it_was) < 0.8

# %% [markdown]
# Without its other occurrences a token costs 6.1 nats, hardly less than one that stands nowhere else (6.3). Removing as many other tokens costs 0.5. So most of the advantage is copying, and not the topic.
#
# ## How far can the picture be trusted?
#
# A head that was trained on layer 4 may misread layer 2, which then looks more ignorant than it is. A check: give each layer a linear translation into the coordinates of the last layer (least squares on the
# masked tokens of *other* texts; Belrose et al. 2023 call a better-trained form of it the "tuned lens"), and apply the head to the translated states.

# %%
blocks = [wikipedia[at : at + 126] for at in range(0, 126 * 64, 126)]
other = pack_sequences([(block,) for block in blocks], tokenizer.cls_id, tokenizer.sep_id)
half = Masker.from_tokenizer(MaskConfig(scheme="subword", mask_share=0.4), tokenizer, seed=1)
fitted_on = half.mask(other, epoch=0, indices=np.arange(len(blocks))).tensors()
where = fitted_on.targets.positions_M[fitted_on.packed.input_ids_T[fitted_on.targets.positions_M] == tokenizer.mask_id]
other_states = states_of(fitted_on.packed)[:, where]  # (5, N, H)


def translated(number):
    """The states of the masked tokens after layer `number`, as the last layer would have them."""
    source, target = other_states[number], other_states[4]
    mean = source.mean(0)
    x = source - mean
    ridge = 100 * torch.eye(x.shape[1])
    change = torch.linalg.solve(x.T @ x + ridge, x.T @ (target - source))
    state = states[number][positions]
    return state + (state - mean) @ change + (target - source).mean(0)


tuned = torch.tensor([-target_log_probs(translated(number))[0].mean() for number in range(4)] + [loss[4]])
figure, axes = plt.subplots(figsize=(5.6, 3.2))
axes.plot(loss, "o-", label="the head as it is")
axes.plot(tuned, "s--", label="after a linear translation")
axes.axhline(unigram_loss.mean(), color="#1c2330", linewidth=0.8)
axes.text(4, unigram_loss.mean() + 0.1, "token frequencies", ha="right", fontsize=8)
axes.set_xticks(range(5), names)
axes.set(xlabel="after layer", ylabel="loss (nats)", ylim=(0, None), title=f"{len(targets)} masked tokens")
axes.legend(fontsize=8, loc="lower left")
plt.show()
print("head as it is:", *(f"{x:.2f}" for x in loss), "  translated:", *(f"{x:.2f}" for x in tuned))
assert (tuned[1:4] < loss[1:4]).all() and (tuned.diff() < 0).all()
assert loss[1] - tuned[1] > 0.5 and loss[3] - tuned[3] < 0.4

# %% [markdown]
# The translation helps the early layers most: 0.8 nats after layer 1, 0.2 after layer 3. So the plain lens does underrate them, but the order of things stays: after layer 2 the model is still a full nat from its final loss. (For the
# embeddings the translation is worth nothing; there is nothing in them to translate.)
#
# ## What to take along
#
# * The MLM head makes sense after every layer, since layers add to a common state. The loss falls from 8.1 to 3.8 nats, the largest step in layer 2.
# * Frequent tokens are settled by layer 2. Rare ones come late; what the last two layers add is, for a good part, copies of words that stand elsewhere in the text.
# * The lens shows a lower bound of what a layer knows: a linear translation finds up to 0.8 nats more.
# * On average p grows. For a third of the tokens the last layer makes it fall.
#
# Next: [which heads do it](05_what_heads_look_at.py).
