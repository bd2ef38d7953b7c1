# %% [markdown]
# # MLM against SBO: how much do two boundary tokens know about a span?
#
# SpanBERT trains with two objectives at once. The **masked language model** (MLM) predicts a masked token from the
# token's own output. The **span-boundary objective** (SBO) predicts the same token from somewhere else: from the
# outputs of the two visible tokens around the span, and the token's place in it. So whatever the span says has to be
# stored at its ends, which is where question answering, coreference and relation extraction look for it later.
#
# This notebook takes the bundled encoder with its two heads and asks:
#
# 1. How is the SBO's formula computed, and is it really the paper's?
# 2. Which head is better, and where in a span?
# 3. What happens to the prediction when one token near the span is replaced?
#
# The code: [spanbert/model/heads.py](../spanbert/model/heads.py) (both heads),
# [pretrain/masking/masker.py](../pretrain/masking/masker.py) (which tokens are targets of what).

# %%
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

import spanbert
from pretrain.inspect.fill import fill
from pretrain.masking.masker import MaskConfig, Masker
from spanbert.checkpoint.model_folder import load_model_and_tokenizer
from spanbert.checkpoint.store import find_model
from spanbert.model.batch import pack_sequences
from spanbert.model.models import SpanBertForPretraining
from spanbert.model.vocabulary_loss import vocabulary_logits
from spanbert.spans.template import parse_template

ROOT = Path(spanbert.__file__).parents[1]
model, tokenizer, _ = load_model_and_tokenizer(find_model(Path("encoder")), SpanBertForPretraining)
model.eval()
embedding_VH = model.encoder.embeddings.word.weight
print(f"{model.config.num_hidden_layers} layers of width {model.config.hidden_size}, {tokenizer.vocab_size:,} tokens")

# %% [markdown]
# The text must be one that the encoder has not trained on. It was trained on the English Wikipedia ([its
# card](../spanbert/weights/encoder/README.md)), so the sample articles in `sample/` are no good. The tests have a
# hundred sentences of Wikinews; the masks are the paper's geometric spans.

# %%
sentences = (ROOT / "tests/data/wikinews_sentences.txt").read_text("utf-8").splitlines()
packed = pack_sequences([(tokenizer.encode(s).ids,) for s in sentences], tokenizer.cls_id, tokenizer.sep_id)
masker = Masker.from_tokenizer(MaskConfig(), tokenizer, seed=0)
masked = masker.mask(packed, epoch=0, indices=np.arange(len(sentences))).tensors()
targets = masked.targets

spans, tokens = len(targets.left_S), len(targets.ids_M)
print(f"{packed.tokens:,} tokens in {packed.sequences} sentences; masked: {tokens} tokens in {spans} spans")
with torch.inference_mode():
    hidden_TH = model.encoder(*masked.packed)
print("hidden states", tuple(hidden_TH.shape))

# %% [markdown]
# ## 1. A concatenation that is never built
#
# The paper writes the head as a network of two layers over three vectors side by side (§3.2), the left boundary, the
# right boundary and an embedding of the place:
#
#     h0 = [x_left ; x_right ; p_offset]      h1 = LayerNorm(GELU(W1 h0))      y = LayerNorm(GELU(W2 h1))
#
# Here it is to the letter, with W1 put together from the three parts in which the code keeps it.

# %%
sbo = model.sbo


@torch.inference_mode()
def sbo_to_the_letter(left_SH, right_SH, span_K, offset_K):
    W1 = torch.cat([sbo.left.weight, sbo.right.weight, sbo.from_position.weight], dim=1)
    h0 = torch.cat([left_SH[span_K], right_SH[span_K], sbo.position.weight[offset_K]], dim=1)
    h1 = sbo.norm1(F.gelu(h0 @ W1.T + sbo.from_position.bias))
    return sbo.norm2(F.gelu(sbo.dense2(h1)))


where = (hidden_TH[targets.left_S], hidden_TH[targets.right_S], targets.span_M, targets.offset_M)
with torch.inference_mode():
    ours = sbo(*where)
by_hand = sbo_to_the_letter(*where)
print(f"largest difference {float((ours - by_hand).abs().max()):.1e}, of features up to {float(ours.abs().max()):.1f}")
assert torch.allclose(ours, by_hand, atol=1e-4)

# %% [markdown]
# They agree to rounding, because a product with a concatenation is a sum of products: W1 h0 = W_left x_left + W_right
# x_right + W_position p. That is worth having. All tokens of a span share their boundaries, and there are only 20
# places, so the three products are made once a span, once a span and once a table row, and then *gathered*.

# %%
H, P, places = model.config.hidden_size, model.config.sbo_position_size, model.config.sbo_positions
concatenated = tokens * (2 * H + P) * H
split = spans * 2 * H * H + places * P * H
print(
    f"multiplications of the first layer: {concatenated / 1e6:.0f} M with the concatenation, {split / 1e6:.0f} M split"
)
print(f"floats in h0 that are not written: {tokens * (2 * H + P):,}")
assert split < concatenated / 2

# %% [markdown]
# ## 2. Which head is better, and where?
#
# A hundred sentences are few, so each is masked twelve times, differently. One thing to look out for: the masker shows
# 10 % of the spans unchanged and replaces another 10 % by random tokens. On an unchanged span MLM would be praised for
# copying. We keep only what really stands as `[MASK]` in the input.


# %%
@torch.inference_mode()
def log_probabilities(masked):
    """(targets, V) for MLM and for SBO."""
    hidden_TH, t = model.encoder(*masked.packed), masked.targets
    mlm = model.mlm(hidden_TH[t.positions_M])
    sbo = model.sbo(hidden_TH[t.left_S], hidden_TH[t.right_S], t.span_M, t.offset_M)
    return [
        vocabulary_logits(features, embedding_VH, head.bias).log_softmax(-1)
        for features, head in ((mlm, model.mlm), (sbo, model.sbo))
    ]


sentence_T = torch.arange(packed.sequences).repeat_interleave(torch.from_numpy(np.diff(packed.cu_seqlens)))
rows = []  # of each target: sentence, place, size of the span, then right and log-probability of MLM and of SBO
for epoch in range(12):
    masked = masker.mask(packed, epoch=epoch, indices=np.arange(len(sentences))).tensors()
    t = masked.targets
    size_M = torch.bincount(t.span_M)[t.span_M]
    columns = [sentence_T[t.positions_M], t.offset_M, size_M]
    for scores_MV in log_probabilities(masked):
        columns += [scores_MV.argmax(-1) == t.ids_M, scores_MV.gather(1, t.ids_M[:, None])[:, 0]]
    hidden = masked.packed.input_ids_T[t.positions_M] == tokenizer.mask_id
    rows.append(torch.stack(columns, 1)[hidden])
of_sentence, place, size, mlm_right, mlm_logp, sbo_right, sbo_logp = torch.cat(rows).numpy().T
print(f"{len(place):,} masked tokens")


def mean_and_error(values, chosen):
    """Of the chosen tokens, and two standard errors. What was drawn by chance are the sentences, not their tokens."""
    which = of_sentence[chosen].astype(int)
    count, total = np.bincount(which), np.bincount(which, values[chosen])
    mean = total.sum() / count.sum()
    return mean, 2 * ((total - mean * count) ** 2).sum() ** 0.5 / count.sum()


everywhere = np.full(len(place), True)
more_right, more_right_error = mean_and_error(mlm_right - sbo_right, everywhere)
lead, lead_error = mean_and_error(mlm_logp - sbo_logp, everywhere)
print(
    f"right: MLM {mlm_right.mean():.1%}, SBO {sbo_right.mean():.1%}; MLM ahead by {more_right:.1%} ± {more_right_error:.1%}"
)
print(
    f"loss:  MLM {-mlm_logp.mean():.2f} nats, SBO {-sbo_logp.mean():.2f} nats; MLM ahead by {lead:.2f} ± {lead_error:.2f}"
)
assert abs(more_right) < more_right_error
assert lead_error < lead < 0.1 and 5.7 < -sbo_logp.mean() < 6.1

# %%
figure, (by_place, by_distance) = plt.subplots(1, 2, figsize=(8.4, 3.4))
for head, right, color in (("MLM", mlm_right, "C0"), ("SBO", sbo_right, "C1")):
    for n, style in ((3, ":"), (5, "-")):
        share = [100 * right[(size == n) & (place == k)].mean() for k in range(n)]
        by_place.plot(range(1, n + 1), share, style, marker="o", color=color, label=f"{head}, spans of {n}")
by_place.set(xlabel="place in the span, from the left", ylabel="tokens right, %", ylim=(0, 42), xticks=range(1, 6))
by_place.set_title("Both ends are easy, the middle is hard")
by_place.legend(fontsize=8, loc="upper right", ncols=2)

distance = np.minimum(place, size - 1 - place) + 1  # to the nearer boundary
crosses_zero = []
for k in (1, 2, 3, 4):
    gain, error = mean_and_error(mlm_logp - sbo_logp, distance == k)
    crosses_zero += [k] * bool(abs(gain) < error)
    by_distance.errorbar(k, gain, error, marker="o", color="C4", capsize=3)
    print(f"{k} from the boundary: MLM better by {gain:.3f} ± {error:.3f} nats ({(distance == k).sum():,} tokens)")
by_distance.axhline(0, color="black", linewidth=0.8)
by_distance.set(xlabel="tokens to the nearer boundary", ylabel="nats a token", xticks=(1, 2, 3, 4))
by_distance.set_title("By how much MLM is better than SBO")
plt.show()

near, far = distance == 1, distance >= 3
assert crosses_zero == [3, 4]
for right in (mlm_right, sbo_right):
    assert 0.2 < right[near].mean() < 0.28 and 0.035 < right[far].mean() < 0.065
gains = {}
for name, chosen in (
    ("next to a boundary", near),
    ("second from one", distance == 2),
    ("third and further in", far),
    ("first of several", (place == 0) & (size > 1)),
    ("last of several", (place == size - 1) & (size > 1)),
):
    gains[name] = gain, error = mean_and_error(mlm_logp - sbo_logp, chosen)
    print(
        f"{name:20}: MLM better by {gain:6.3f} ± {error:.3f} nats; "
        f"right: MLM {mlm_right[chosen].mean():.1%}, SBO {sbo_right[chosen].mean():.1%}"
    )
for name in ("next to a boundary", "second from one", "last of several"):
    assert gains[name][0] > 1.2 * gains[name][1]  # more than two standard errors
for name in ("third and further in", "first of several"):
    assert abs(gains[name][0]) < gains[name][1]
first, second, further = (gains[name] for name in ("next to a boundary", "second from one", "third and further in"))
assert abs(second[0] - first[0]) < first[1] and further[0] < first[0]
assert gains["last of several"][0] > gains["first of several"][0] + 0.1

# %% [markdown]
# *(Bars, and what stands after ±: two standard errors. Tokens of one sentence have much in common, so the sentences are
# counted as the independent draws.)*
#
# Four things to see:
#
# * **The curve is a U.** Next to a visible token either head is right about once in four times; from the third token
#   on, once in twenty. A span is not five times one mask: its middle is a different, harder task.
# * **SBO is nearly as good as MLM**, although it never looks at the masked token's own output. What it needs *is* in
#   the boundaries. In the count of right answers the two cannot be told apart on this text; the loss, which uses more
#   of the prediction, tells them apart: by less than a tenth of a nat, of nearly six.
# * **MLM's lead is not seen to grow inwards.** One could expect that: there SBO has to get several words out of the same
#   two vectors, told apart only by the place. MLM is ahead at the first and at the second token, by about as much; from
#   the third on, where both heads know little, the bars cross zero, and whether MLM is ahead at all cannot be told.
# * **At the ends, the lead is at the right one.** At the last token of a span MLM is ahead, at the first the two cannot
#   be told apart. Why, these numbers do not say.

# %% [markdown]
# ## 3. One token replaced
#
# If the boundaries carry the span, then replacing a boundary token must change SBO's prediction more than replacing a
# token a few places away. Here a span of two is masked in the middle of each sentence, then one of the tokens to its
# left is replaced by a random one, 1, 2, 3 … places from the span, and the change is measured as the Kullback-Leibler
# divergence of the new distribution from the old one.

# %%
random = np.random.default_rng(0)
everything = np.concatenate([tokenizer.encode(s).ids for s in sentences])
reach = 6
sequences = []
for sentence in sentences:
    ids = tokenizer.encode(sentence).ids.copy()
    if len(ids) < 2 * reach + 4:
        continue
    first = len(ids) // 2
    ids[first : first + 2] = tokenizer.mask_id
    sequences.append((ids, first))
    for away in range(1, reach + 1):
        changed = ids.copy()
        changed[first - away] = random.choice(everything)
        sequences.append((changed, first))

batch = pack_sequences([(ids,) for ids, _ in sequences], tokenizer.cls_id, tokenizer.sep_id)
begin_S = torch.from_numpy(batch.cu_seqlens[:-1].astype(np.int64)) + 1 + torch.tensor([first for _, first in sequences])
span_M = torch.arange(len(begin_S)).repeat_interleave(2)
offset_M = torch.tensor([0, 1]).repeat(len(begin_S))
with torch.inference_mode():
    hidden_TH = model.encoder(*batch.tensors())
    features = {
        "MLM": (model.mlm(hidden_TH[begin_S[span_M] + offset_M]), model.mlm.bias),
        "SBO": (model.sbo(hidden_TH[begin_S - 1], hidden_TH[begin_S + 2], span_M, offset_M), model.sbo.bias),
    }
    change = {}
    for head, (features_MH, bias_V) in features.items():
        logp = vocabulary_logits(features_MH, embedding_VH, bias_V).log_softmax(-1).unflatten(0, (-1, reach + 1, 2))
        old, new = logp[:, :1], logp[:, 1:]
        change[head] = (old.exp() * (old - new)).sum(-1).mean(-1).numpy()  # (sentences, away)

figure, axes = plt.subplots(figsize=(6.4, 3.2))
for (head, values), shift in zip(change.items(), (-0.06, 0.06), strict=True):
    axes.errorbar(
        np.arange(1, reach + 1) + shift,
        values.mean(0),
        2 * values.std(0) / len(values) ** 0.5,
        marker="o",
        capsize=3,
        label=head,
    )
axes.set(
    xlabel="how far left of the span the replaced token stands (1: the boundary)", ylabel="change, nats", ylim=(0, None)
)
axes.set_title("The nearer the replaced token, the more the prediction changes")
axes.legend()
plt.show()
for head, values in change.items():
    print(head, " ".join(f"{v:.2f}" for v in values.mean(0)), "nats")
    assert 4.5 < values.mean(0)[0] / values.mean(0)[1] < 6.5
    assert values.mean(0)[3] < values.mean(0)[0] / 20
difference = (change["SBO"] - change["MLM"])[:, 0]
error = 2 * difference.std() / len(difference) ** 0.5
print(f"at the boundary SBO changes by {difference.mean():.2f} ± {error:.2f} nats more than MLM")
assert error < difference.mean() < change["MLM"][:, 0].mean() / 4

# %% [markdown]
# The boundary counts five times as much as the token before it, and four tokens away hardly anything is left. What we
# may *not* conclude is that this is the SBO's doing: MLM's prediction is as local. A language model's nearest tokens
# matter most, and both heads read the same encoder, which was trained for both. SBO only adds the reading place: at the
# boundary itself it reacts a little more.
#
# The same in words. One boundary token is changed, everything else stays:

# %%
pairs = [
    ("He won the [SPAN:2] Prize in 1970.", "He won the [SPAN:2] Championship in 1970."),
    ("She is the [SPAN:1] of the king.", "She is the [SPAN:1] to the king."),
    ("The city lies on the [SPAN:2] of the river.", "The city lies on the [SPAN:2] in the river."),
]
best = {}  # of each text: its fills and their probabilities, the best first
for pair in pairs:
    for text in pair:
        candidates = fill(model, tokenizer, parse_template(text, tokenizer, 512), "sbo", top_k=4).candidates
        best[text] = {" ".join(c.tokens[0]): np.exp(c.log_probability) for c in candidates}
        print(f"{text:46}", *(f"{name} {probability:.3f}" for name, probability in best[text].items()), sep="  ")
    print()
(prize, championship), (of_king, to_king), (of_river, in_river) = [[best[text] for text in pair] for pair in pairs]
assert "Nobel Prize" in prize and not any("Nobel" in name for name in championship)
assert {"son", "daughter"} <= of_king.keys() - to_king.keys()
assert {"heir", "successor"} <= to_king.keys() - of_king.keys()
assert all(name.endswith("side") for name in of_river) and sum(name.endswith("side") for name in in_river) == 1
repeated = [text for text, fills in best.items() if set(next(iter(fills)).split()) <= set(re.findall(r"\w+", text))]
print(f"the best fill has only words of the text: {len(repeated)} of {len(best)}")
assert len(repeated) == 4 and next(iter(of_king)) == next(iter(to_king)) == "king"

# %% [markdown]
# "Prize" brings Nobel, "Championship" does not. *Of* the king brings a son and a daughter, *to* the king an heir and a
# successor. *Of* the river, all four fills are sides; *in* the river, one is. But the best fill is often no more than a
# copy: in four of the six lines it has only words of the text, "king" for both kings. This small model likes to
# repeat what it sees.
#
# Look at the very first line again: the best fill is "Nobel Nobel". Both heads predict each token of a span
# **independently of the others**. Place 1 thinks of Nobel, place 2 does too, and nobody tells the second that the first
# has taken it. The four fills of that line are two words for place 1 in every combination with two for place 2, and
# their probabilities are products:

# %%
assert next(iter(prize)) == "Nobel Nobel" and set(prize) == {"Nobel Nobel", "Nobel Prize", "won Nobel", "won Prize"}
straight, crossed = prize["Nobel Nobel"] * prize["won Prize"], prize["Nobel Prize"] * prize["won Nobel"]
print(f"Nobel Nobel · won Prize = {straight:.6f}   Nobel Prize · won Nobel = {crossed:.6f}")
assert np.isclose(straight, crossed, rtol=1e-3)

# %% [markdown]
# The independence is not a bug of this small model; it is what both objectives ask for. SpanBERT is made to *represent*
# spans, not to write them.
#
# ## What to remember
#
# * SBO's concatenation is a sum of three gathered products, exact to rounding.
# * A span's ends are easy and its middle is hard, for both heads; on this text SBO is behind MLM by less than a tenth of
#   a nat on average, most clearly at a span's last token.
# * Both heads live on the nearest visible tokens. Whether training *with* SBO makes the encoder better for a task is
#   another question: it needs two encoders at equal cost, which is what [docs/ablation.md](../docs/ablation.md) is
#   about.
#
# You can write the three features of h0 yourself: [exercises/sbo_features.py](../exercises/sbo_features.py).
