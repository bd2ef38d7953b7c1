# %% [markdown]
# # What heads look at
#
# Does a picture of attention tell what a head is good for? Distance, entropy and the share of `[SEP]` for each of the model's sixteen heads; then every head is removed in turn, and the loss
# says what it was worth.
#
# The code: [spanbert/model/attention.py](../spanbert/model/attention.py), [spanbert/model/encoder.py](../spanbert/model/encoder.py).

# %%
import gzip
import json
import lzma
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import spanbert
from pretrain.masking.masker import MaskConfig, Masker
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.model.batch import pack_sequences
from spanbert.model.models import SpanBertForPretraining
from spanbert.model.packing import position_ids
from spanbert.model.vocabulary_loss import vocabulary_logits
from spanbert.weights import bundled_path

torch.set_grad_enabled(False)
ROOT = Path(spanbert.__file__).parents[1]
model, tokenizer, _ = load_model_and_tokenizer(bundled_path("encoder"), SpanBertForPretraining)
encoder = model.eval().encoder
LAYERS, HEADS, D = len(encoder.layers), encoder.config.num_attention_heads, encoder.config.head_dim

data = json.loads(gzip.decompress((ROOT / "sample" / "squad-dev.json.gz").read_bytes()))
passages = [tokenizer.encode_ids(p["context"])[:126] for article in data["data"] for p in article["paragraphs"]][:45]
packed = pack_sequences([(passage,) for passage in passages], tokenizer.cls_id, tokenizer.sep_id)
masker = Masker.from_tokenizer(MaskConfig(scheme="subword"), tokenizer, seed=0)
batch = masker.mask(packed, epoch=0, indices=np.arange(len(passages))).tensors()
cu_seqlens, longest = batch.packed.cu_seqlens, batch.packed.max_seqlen
print(
    f"{batch.packed.sequences} passages, {batch.packed.tokens:,} tokens, {len(batch.targets.ids_M):,} targets; {LAYERS} layers × {HEADS} heads"
)

# %% [markdown]
# The encoder does not keep its probabilities (a fused kernel never has them). We take queries and keys where they are made, and the states between layers, which will be
# of use below.

# %%
projections = []
hooks = [
    layer.qkv.register_forward_hook(lambda module, inputs, output: projections.append(output))
    for layer in encoder.layers
]
states = [encoder.embeddings(batch.packed.input_ids_T, position_ids(cu_seqlens, batch.packed.tokens), None, 0)]
for layer in encoder.layers:
    states.append(layer(states[-1], cu_seqlens, longest, "sdpa", 0))
for hook in hooks:
    hook.remove()
assert torch.allclose(states[-1], encoder(*batch.packed), atol=1e-4)


def probabilities(layer, sequence):
    """(heads, L, L) of one sequence."""
    begin, end = cu_seqlens[sequence : sequence + 2].tolist()
    q, k, _ = projections[layer][begin:end].view(end - begin, 3, HEADS, D).permute(1, 2, 0, 3)
    return (q @ k.mT / D**0.5).softmax(-1)


# %% [markdown]
# Three numbers for each head, averaged over all queries: how far away the keys are that it looks at, over how many keys it spreads (the exponential of the entropy: a head that looks at n keys evenly has n),
# and how much goes to `[SEP]`. And a fourth for convenience: the share of the two neighbours.

# %%
names = ("distance (tokens)", "keys (exp of entropy)", "share of [SEP] (%)", "share of the neighbours (%)")
seen = torch.zeros(4, LAYERS, HEADS)
even = torch.zeros(4)  # a head that looks at all keys evenly
for sequence in range(batch.packed.sequences):
    length = int(cu_seqlens[sequence + 1] - cu_seqlens[sequence])
    place = torch.arange(length)
    distance = (place[:, None] - place).abs().float()
    flat = torch.full((1, length, length), 1 / length)
    for layer in range(-1, LAYERS):
        p = probabilities(layer, sequence) if layer >= 0 else flat
        entropy = -(p * p.clamp_min(1e-30).log()).sum((1, 2))
        neighbours = p[:, distance == 1].sum(1)
        sums = torch.stack([(p * distance).sum((1, 2)), entropy, 100 * p[:, :, -1].sum(1), 100 * neighbours])
        if layer >= 0:
            seen[:, layer] += sums / batch.packed.tokens
        else:
            even += sums[:, 0] / batch.packed.tokens
entropy = seen[1].clone()
seen[1], even[1] = seen[1].exp(), even[1].exp()


def heat_map(axes, values, title, form="{:.0f}", **options):
    """One number for each head: layers from the top, heads from the left."""
    image = axes.imshow(values, aspect="auto", **options)
    axes.grid(False)
    axes.set_xticks(range(HEADS), range(1, HEADS + 1))
    axes.set_yticks(range(LAYERS), range(1, LAYERS + 1))
    axes.set(xlabel="head", ylabel="layer", title=title)
    for (row, column), value in np.ndenumerate(np.asarray(values)):
        shade = image.norm(value)
        axes.text(
            column,
            row,
            form.format(value.round(2) + 0.0),  # no −0.00
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shade < 0.6 else "#1c2330",
        )
    return image


figure, panels = plt.subplots(1, 4, figsize=(10, 2.7))
for axes, values, name, flat in zip(panels, seen, names, even):
    heat_map(axes, values, f"{name}\neven attention: {flat:.1f}", "{:.1f}" if "SEP" in name else "{:.0f}")
    axes.title.set_fontsize(8.5)
plt.show()

# %% [markdown]
# What is there: half of the heads look at a few keys, one to six, and about three quarters of their attention or more stays within five tokens of the query. Two of them, in layer 2, look at exactly one neighbour, always on the same
# side; head 3 of layer 3 mostly does. Head 4 of layer 3 gives more than half to the query's own token. The other half, the wide heads, spread over a dozen to some forty keys, 9 to 25 tokens away on average. Even they have their
# preferences: head 1 of layer 4 gives a third to the next token, head 2 of layer 3 a third to the query's own.
#
# What is *not* there: heads that rest on `[SEP]`. In BERT-base more than half of the attention of the middle layers goes there (Clark et al. 2019, "What does BERT look at?"). Whoever expects it here, as we did, finds nothing: the most that a head gives to `[SEP]` is about 3 %.
# Why, this notebook does not tell; the model is small, and its training was short: 80 million tokens in about two hours.


# %%
def share_at(offsets):
    """(layers, heads): the attention that goes from the queries to the keys so many places further on."""
    shares = torch.zeros(LAYERS, HEADS)
    for sequence in range(batch.packed.sequences):
        for layer in range(LAYERS):
            p = probabilities(layer, sequence)
            shares[layer] += sum(p.diagonal(offset, 1, 2).sum(1) for offset in offsets) / batch.packed.tokens
    return shares


assert 2.3 < seen[2].max() < 3.5
wide = entropy > 2
print("wide heads (layer, head):", [(layer + 1, head + 1) for layer, head in wide.nonzero().tolist()])
itself, following, previous, close = share_at([0]), share_at([1]), share_at([-1]), share_at(range(-5, 6))
print(f"within five tokens: sharp heads {close[~wide].min():.0%} or more, wide heads {close[wide].max():.0%} or less")
assert wide.sum() == 8 and seen[1][~wide].max() < 6.5 and seen[1][wide].min() > 10 and seen[1][wide].max() < 48
assert close[~wide].min() > 0.7 > 0.65 > close[wide].max() and seen[0][wide].min() > 8 and seen[0][wide].max() < 28
assert following[1, 0] > 0.95 and previous[1, 1] > 0.95 and 0.75 < following[2, 2] < 0.95 and 0.5 < itself[2, 3] < 0.65
assert 0.28 < following[3, 0] < 0.4 and 0.28 < itself[2, 1] < 0.4

# %%
short = pack_sequences(
    [(tokenizer.encode_ids("The canal was opened in 1869, and the company that built it was French."),)],
    tokenizer.cls_id,
    tokenizer.sep_id,
).tensors()
found = []
hooks = [
    layer.qkv.register_forward_hook(lambda module, inputs, output: found.append(output)) for layer in encoder.layers
]
encoder(*short)
for hook in hooks:
    hook.remove()
tokens = [tokenizer.token(int(i)) for i in short.input_ids_T]
figure, panels = plt.subplots(1, 4, figsize=(10.5, 3.1), sharey=True)
shown = ((1, 0), (1, 1), (0, 3), (3, 2))
for axes, (layer, head) in zip(panels, shown):
    q, k, _ = found[layer].view(len(tokens), 3, HEADS, D)[:, :, head].unbind(1)
    axes.imshow((q @ k.T / D**0.5).softmax(-1), vmin=0, vmax=1)
    axes.grid(False)
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=6.5)
    axes.set_yticks(range(len(tokens)), tokens, fontsize=6.5)
    axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
    axes.set_xlabel("key")
panels[0].set_ylabel("query")
plt.show()

ahead, back, favourites, mostly_back = (
    (q @ k.T / D**0.5).softmax(-1)
    for layer, head in shown
    for q, k, _ in [found[layer].view(len(tokens), 3, HEADS, D)[:, :, head].unbind(1)]
)
before = mostly_back.argmax(1)[1:] == torch.arange(len(tokens) - 1)
print(f"layer 4, head 3: {before.sum()} of {len(before)} tokens look most at the one before")
seven = favourites.mean(0).topk(7).indices.sort().values
share = favourites[:, seven].sum(1)
print(f"layer 1, head 4: {share.min():.0%} to {share.max():.0%} on {', '.join(tokens[i] for i in seven)}")
assert ahead.diagonal(1).mean() > 0.9 and back.diagonal(-1).mean() > 0.9
assert 12 <= before.sum() <= 15 and share.min() > 0.55  # even attention: 0.39

# %% [markdown]
# "Next token", "previous token", "the same few words, whichever the query", "the token before, mostly": it is tempting to write a story under each of these. But attention is only where a head reads. What it reads, and whether anybody uses it, the picture does not say.
#
# ## Remove it
#
# So set a head's output to zero where it enters the layer's output projection, and let the rest of the model go on. What the loss rises by is what the model loses with the head. Everything before the head's layer stays as it is, so we start from the stored states.


# %%
def target_losses(hidden_TH):
    said = vocabulary_logits(
        model.mlm(hidden_TH[batch.targets.positions_M]), encoder.embeddings.word.weight, model.mlm.bias
    )
    return -said.log_softmax(-1).gather(1, batch.targets.ids_M[:, None])[:, 0]


def silence_heads(heads, by_mean=False):
    """Hooks under which the heads, (layer, head), give zeros; or, `by_mean`, their mean over all tokens."""
    hooks = []
    for layer, head in heads:

        def silence(module, inputs, columns=slice(head * D, (head + 1) * D)):
            context = inputs[0].clone()
            context[:, columns] = context[:, columns].mean(0) if by_mean else 0
            return context, *inputs[1:]

        hooks.append(encoder.layers[layer].attention_out.register_forward_pre_hook(silence))
    return hooks


def loss_without(heads, by_mean=False):
    """Each target's loss with the heads silenced."""
    hooks = silence_heads(heads, by_mean)
    first = min((layer for layer, _ in heads), default=0)
    x = states[first]
    for layer in encoder.layers[first:]:
        x = layer(x, cu_seqlens, longest, "sdpa", 0)
    for hook in hooks:
        hook.remove()
    return target_losses(x)


whole = target_losses(states[-1])
assert torch.allclose(loss_without([]), whole, atol=1e-3)
every = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
rise_M = torch.stack([loss_without([one]) - whole for one in every]).view(LAYERS, HEADS, -1)
rise, error = rise_M.mean(-1), rise_M.std(-1) / rise_M.shape[-1] ** 0.5
print(f"loss of the whole model {whole.mean():.2f} nats; standard errors up to {error.max():.3f}")


def spearman(a, b):
    ranks = [torch.argsort(torch.argsort(x.flatten())).float() for x in (a, b)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.1), width_ratios=(1, 1.5))
heat_map(left, rise, "rise of the loss (nats)", "{:.2f}", cmap="magma", vmin=0, vmax=0.7)
for layer, mark in enumerate("osD^"):
    right.errorbar(seen[1, layer], rise[layer], 2 * error[layer], fmt=mark, label=f"layer {layer + 1}")
right.set(
    xscale="log",
    xlabel="keys the head spreads over (exp of entropy)",
    ylabel="rise of the loss (nats)",
    title="sharp heads are worth more; not all of them",
)
right.set_xticks([1, 3, 10, 30], [1, 3, 10, 30])
right.minorticks_off()
right.legend()
plt.show()
relation = spearman(entropy, rise)
print(
    f"rank correlation of entropy and rise: {relation:.2f}; of the share of [SEP] and rise: {spearman(seen[2], rise):.2f}"
)
assert -0.9 < relation < -0.7
order = rise.flatten().argsort(descending=True)
best, others = order[:4], order[4:]
assert rise.flatten()[best].min() > 0.25 and seen[1].flatten()[best].max() < 3.5 and rise.flatten()[others].max() < 0.12
assert abs(seen[1, 0, 1] - seen[1, 2, 0]) < 0.5 and 4 < rise[2, 0] / rise[0, 1] < 7

# %% [markdown]
# Here the pictures were not worthless: the sharper a head, the more, on the whole, the loss rises without it (rank correlation −0.8). The four heads that are worth most, 0.3 to 0.7 nats, look at three keys or fewer. The other twelve are worth 0.1 nats or less,
# and sharp ones are among them: head 2 of layer 1 spreads over as few keys as head 1 of layer 3 and is worth a fifth of it.
#
# Where a head looks does not settle it either. Four heads look at the token before, more or less:

# %%
looks_back = []
for layer, head in [(0, 0), (1, 1), (2, 0), (3, 2)]:
    diagonal = [probabilities(layer, s)[head].diagonal(-1) for s in range(batch.packed.sequences)]
    looks_back.append(torch.cat(diagonal).mean())
    print(
        f"layer {layer + 1}, head {head + 1}: {looks_back[-1]:4.0%} on the token before, worth {rise[layer, head]:.3f} ± {error[layer, head]:.3f} nats"
    )
assert looks_back[1] > 0.95 and all(0.37 < looks_back[number] < 0.63 for number in (0, 2, 3))
assert 4 < rise[2, 0] / rise[0, 0] < 7 and 2.7 < rise[2, 0] / rise[3, 2] < 4.2 and rise[1, 1] > 1.5 * rise[2, 0]

# %% [markdown]
# One gives it everything, and is worth most of the four. The other three give it about half of their attention: the one in layer 3 is worth three times as much as the one in layer 4, and five times as much as the one in layer 1.
#
# ## Useless, one by one
#
# Any one of the wide heads can go for less than 0.1 nats. Are they useless? Remove all eight at once. And look at those tokens apart that [the last notebook](04_layer_by_layer.py) found to be copied: rare tokens (beyond rank 300) that stand
# a second time in the passage.

# %%
wikipedia = tokenizer.encode_ids(lzma.decompress((ROOT / "sample" / "wikipedia.txt.xz").read_bytes()).decode())
rank = np.argsort(np.argsort(-np.bincount(wikipedia, minlength=tokenizer.vocab_size)))
positions, targets = batch.targets.positions_M, batch.targets.ids_M
sequence = torch.searchsorted(cu_seqlens[1:].long(), positions, right=True)
rare = torch.from_numpy(rank)[targets] >= 300
masked = batch.packed.input_ids_T[positions] == tokenizer.mask_id
visible = [set(batch.packed.input_ids_T[a:b].tolist()) for a, b in pairwise(cu_seqlens.tolist())]
repeated = torch.tensor([token in visible[s] for s, token in zip(sequence.tolist(), targets.tolist())])
kinds = {
    "all targets": torch.ones_like(masked),
    "rare, a second time in the passage": masked & rare & repeated,
    "rare, nowhere else": masked & rare & ~repeated,
}
groups = {
    "wide heads, layers 1–2": [one for one in every if wide[one] and one[0] < 2],
    "wide heads, layers 3–4": [one for one in every if wide[one] and one[0] >= 2],
    "all wide heads": [one for one in every if wide[one]],
    "sharp heads of layer 2": [(1, 0), (1, 1)],
}
results = {}
for name, heads in groups.items():
    together, by_mean = loss_without(heads) - whole, loss_without(heads, by_mean=True) - whole
    for kind, chosen in kinds.items():
        alone = sum(rise_M[one][chosen].mean().item() for one in heads)
        results[name, kind] = (alone, together[chosen].mean().item(), by_mean[chosen].mean().item())

print(
    "rise of the loss in nats: one by one and added up; all together; all together, replaced by their mean instead of zero"
)
for (name, kind), values in results.items():
    print(f"{name:24}{kind:36}" + "".join(f"{value:7.2f}" for value in values))

figure, axes = plt.subplots(figsize=(8.5, 3.2))
for column, kind in enumerate(kinds):
    x = np.arange(len(groups)) + (column - 1) * 0.26
    axes.bar(
        x, [results[name, kind][1] for name in groups], 0.24, color=f"C{column}", label=f"{kind} ({kinds[kind].sum()})"
    )
    axes.hlines(
        [results[name, kind][0] for name in groups],
        x - 0.12,
        x + 0.12,
        color="#1c2330",
        linewidth=1.4,
        label="one by one, added up" if column == 2 else None,
    )
axes.set_xticks(range(len(groups)), groups)
axes.set(ylabel="rise of the loss (nats)", title="heads removed together")
axes.legend(fontsize=8)
plt.show()
assert rise[wide].max() < 0.08 and 0.09 < kinds["rare, a second time in the passage"].float().mean() < 0.13
alone, together, _ = results["all wide heads", "all targets"]
assert 0.5 < together < 0.8 and 1.6 < together / alone < 2.4
_, together, _ = results["wide heads, layers 3–4", "all targets"]
assert abs(together - rise[2, 0]) < 0.08
alone, together, _ = results["wide heads, layers 3–4", "rare, a second time in the passage"]
assert 1.3 < together < 1.7 and 0.8 < alone < 1.2
assert 0.1 < results["wide heads, layers 3–4", "rare, nowhere else"][1] < 0.35
for (name, _), (_, together, by_mean) in results.items():
    assert by_mean > together + 0.1 if name.startswith("sharp") else abs(by_mean - together) < 0.2

# %% [markdown]
# Together the eight are worth 0.7 nats, twice what they seemed to be one by one. On the average target those of layers 3 and 4 are worth little, even together: about as much as head 1 of layer 3 alone. On tokens that could be copied they
# are worth a nat and a half, on other rare tokens 0.2. Removed one by one they seem to be worth one nat to the former, since each does part of the others' work; and an average over all targets hides it, for only one target in ten is of that
# kind. (Replacing the wide heads by their mean instead of zero, which is meant to disturb the rest less, gives nearly the same. For the sharp heads of layer 2 the mean is worse than zero.)
#
# ## Look again, at the right queries
#
# The averages at the beginning were over all queries. Now only the queries that matter: from the `[MASK]` of such a token, how much attention goes to the places where the same token stands, visible?

# %%
chosen = kinds["rare, a second time in the passage"].nonzero()[:, 0]


def attention_to_copies():
    """(layers, heads): mean share on the copies; and what even attention would give them."""
    shares, by_chance = torch.zeros(LAYERS, HEADS), 0.0
    for number in chosen.tolist():
        one = int(sequence[number])
        begin, end = cu_seqlens[one : one + 2].tolist()
        copies = batch.packed.input_ids_T[begin:end] == targets[number]
        by_chance += copies.float().mean().item() / len(chosen)
        for layer in range(LAYERS):
            shares[layer] += probabilities(layer, one)[:, positions[number] - begin][:, copies].sum(1) / len(chosen)
    return shares, by_chance


shares, by_chance = attention_to_copies()
copying = rise_M[..., chosen].mean(-1)
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8))
heat_map(
    left, 100 * shares, f"attention from [MASK] to the copies (%)\neven attention: {100 * by_chance:.1f}", "{:.1f}"
)
heat_map(right, copying, "rise of these tokens' loss (nats)\nhead removed", "{:.2f}", cmap="magma", vmin=0, vmax=1)
for axes in (left, right):
    axes.title.set_fontsize(9)
plt.show()
finders = [one for one in every if shares[one] > 0.1]
print("heads that find the copies (layer, head):", [(layer + 1, head + 1) for layer, head in finders])
together = loss_without(finders) - whole
print("all of them removed:", ", ".join(f"{kind} {together[of_kind].mean():+.2f}" for kind, of_kind in kinds.items()))
on_copies = torch.stack([shares[one] for one in finders])
assert len(finders) == 5 and min(layer for layer, _ in finders) == 2
assert 0.16 < on_copies.min() < 0.2 and 0.37 < on_copies.max() < 0.44 and on_copies.min() > 10 * by_chance
assert max(shares[one] for one in every if one not in finders) < 0.03
without = {kind: (whole + together)[of_kind].mean() for kind, of_kind in kinds.items()}
copied, not_copied = list(kinds)[1:]
for kind in (copied, not_copied):
    print(f"{kind}: {whole[kinds[kind]].mean():.2f} nats in the whole model, {without[kind]:.2f} without the finders")
assert 3.3 < together[chosen].mean() < 4.1 and 0.5 < together[kinds[not_copied]].mean() < 0.9
assert abs(without[copied] - without[not_copied]) < 0.3
assert (3, 2) in finders and 0.28 < shares[3, 2] < 0.4

# %% [markdown]
# Five heads of layers 3 and 4 put a sixth to two fifths of their attention on the copies, ten times as much as by chance and more; no other head gives them 3 %. Without the five these tokens cost 3.7 nats more, other rare tokens 0.7 more. Then the one kind
# costs as much as the other: the copy is worth nothing any more. And look at layer 4, head 3, which we would have called "the token before, mostly": for these queries it puts a third of its attention on the copies. A head has no single job.
#
# How do they know the place, when the token itself is hidden? They can only compare what stands around it. Then somebody must have brought the neighbours' words to each position before, and we have met two heads that do nothing else. If this is right, the finders must go blind without the sharp heads of layer 2:

# %%
recorded = list(projections)
kept = {}  # of the finders' shares
for name, heads in (
    ("nothing", []),
    ("the sharp heads of layer 2", [(1, 0), (1, 1)]),
    ("the wide heads of layer 2", [(1, 2), (1, 3)]),
    ("layer 2, head 1 (next token)", [(1, 0)]),
    ("layer 2, head 2 (token before)", [(1, 1)]),
):
    projections.clear()
    hooks = silence_heads(heads) + [
        layer.qkv.register_forward_hook(lambda module, inputs, output: projections.append(output))
        for layer in encoder.layers
    ]
    encoder(*batch.packed)
    for hook in hooks:
        hook.remove()
    left_over, _ = attention_to_copies()
    kept[name] = left_over / shares
    print(
        f"removed: {name:31}on the copies: "
        + "   ".join(f"({layer + 1}, {head + 1}) {left_over[layer, head]:4.0%}" for layer, head in finders)
    )
projections[:] = recorded
both, neither, first, second = list(kept.values())[1:]
assert max(both[one] for one in finders) < 0.33 and all(0.9 < neither[one] < 1.12 for one in finders)
assert abs(rise[1, 0] - rise[1, 1]) < 0.1
assert 0.5 < first[3, 2] < 0.7 and 0.4 < second[2, 3] < 0.6 and first[2, 3] > 0.9 and second[3, 2] > 0.9

# %% [markdown]
# They do: without the two sharp heads the finders' shares fall to less than a third of what they were; without the two wide heads of the same layer hardly anything happens. This comparison is not quite fair, since the wide heads are worth
# much less, and a model that is damaged enough finds nothing. But the two sharp heads, removed one at a time, raise the loss by about the same, and do not do the same: without the one that looks ahead, head 3 of layer 4 falls from 34 to 20 %,
# and head 4 of layer 3 stays as it was; without the one that looks back, head 4 of layer 3 falls to half, and head 3 of layer 4 stays as it was.
#
# So here is a mechanism of two steps: layer 2 writes to each position which words stand beside it, layers 3 and 4 look for a position with the same
# words beside it, and copy. (In models that read from left to right the like is known as "induction heads", Olsson et al. 2022. This one looks to both sides.)

# %%
late = [one for one in every if one[0] >= 2]
for layer, head in late:
    spread = rise_M[layer, head, chosen].std() / len(chosen) ** 0.5
    print(
        f"layer {layer + 1}, head {head + 1}: {shares[layer, head]:4.0%} on the copies; worth {copying[layer, head]:5.2f} ± {spread:.2f} nats to these tokens, {rise[layer, head]:.2f} on average"
    )
relation = spearman(*(torch.stack([x[one] for one in late]) for x in (shares, copying)))
print(f"within layers 3 and 4, rank correlation of the share on copies and the rise: {relation:.2f}")
worth = torch.stack([copying[one] for one in finders])
assert worth.min() > 0.22 > 0.12 > max(copying[one] for one in late if one not in finders) and worth.max() < 0.55
assert all(copying[one] > 2.5 * rise[one] for one in finders) and 0.45 < relation < 0.8
assert shares.argmax() == 2 * HEADS + 1 and copying[2, 1] < worth.max() - 0.1

# %% [markdown]
# Removed alone, each of the five finders costs these tokens 0.3 to 0.5 nats, nearly three times what it costs on average or more; the other three heads of layers 3 and 4 cost them less than 0.1. Among the five the picture does not give the order: head 2 of
# layer 3 looks at the copies most, and head 1 of layer 4 is missed most.
#
# ## What to take along
#
# * This model has heads for the next token and for the token before, in layers 2 and 3, and its loss depends on them most. It has no heads that rest on `[SEP]`; what is known of one model need not hold of another.
# * What a head looks at and what it is worth are two questions. Here sharpness went with worth; yet heads with a similar look differed by a factor of five.
# * Removing heads one by one underrates those that share their work, and an average loss hides what matters to few tokens.
# * The statement "heads of layers 3 and 4 copy" needed three things: a loss that is about copying, the removal, and attention at the queries in question. None of the three is enough.
