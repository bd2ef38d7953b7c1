# %% [markdown]
# # Masks
#
# Which tokens does SpanBERT hide, and by which rule? Six schemes on one text; the lengths of 300,000 masked spans against the distribution that
# they are drawn from, and why their mean is below the paper's 3.8; what stands in place of a hidden token.
#
# The code: [pretrain/masking/masker.py](../pretrain/masking/masker.py), [pretrain/masking/span_sampler.py](../pretrain/masking/span_sampler.py)
# and [pretrain/masking/counter_rng.py](../pretrain/masking/counter_rng.py).

# %%
import lzma
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

import spanbert
from pretrain.inspect.mask_text import render
from pretrain.inspect.show_masks import MasksConfig, draw_masks
from pretrain.masking.counter_rng import draw, sequence_keys, stream
from pretrain.masking.masker import MaskConfig, Masker, truncated_geometric
from pretrain.masking.span_sampler import LENGTH, draw_lengths
from spanbert.model.batch import pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import bundled_path

ROOT = Path(spanbert.__file__).parents[1]
tokenizer = Tokenizer.load(bundled_path("encoder"))

# %% [markdown]
# ## One text, six schemes
#
# `spanbert masks` shows what pretraining would do to a text. This is the function behind it, with the paper's scheme. A masked span stands in `{ }`;
# `{~ }` holds random tokens instead of `[MASK]`, `{= }` was left as it is; the two tokens around a span, from which the span-boundary objective
# predicts it, stand in `< >`.

# %%
entities = (
    "The [[Suez Canal]] is an artificial waterway in [[Egypt]] that joins the [[Mediterranean Sea]] to the [[Red Sea]]. It was built by "
    "the [[Suez Canal Company]], which the [[French]] diplomat [[Ferdinand de Lesseps]] founded in [[1858]]. Work began on the shore of "
    "the future [[Port Said]] in [[April 1859]] and took [[ten years]]."
)
noun_phrases = (
    "[[The Suez Canal]] is [[an artificial waterway]] in [[Egypt]] that joins [[the Mediterranean Sea]] to [[the Red Sea]]. [[It]] was built by "
    "[[the Suez Canal Company]], which [[the French diplomat]] [[Ferdinand de Lesseps]] founded in [[1858]]. [[Work]] began on [[the shore]] of "
    "[[the future Port Said]] in [[April 1859]] and took [[ten years]]."
)
text = entities.replace("[[", "").replace("]]", "")
assert text == noun_phrases.replace("[[", "").replace("]]", "")


def draws_of(scheme, count=1, seed=0):
    """`count` draws of the text's mask; the last two schemes read marked spans."""
    mask = MaskConfig(scheme=scheme)
    masker = Masker.from_tokenizer(mask, tokenizer, seed=seed)
    given = {"entities": entities, "noun_phrases": noun_phrases}.get(scheme, text)
    return draw_masks(given, tokenizer, masker, MasksConfig(draws=count, mask=mask))


print(render(draws_of("geometric", seed=6), "the paper's scheme", colour=False))

# %% [markdown]
# The schemes differ in *which tokens go together*. `subword` is BERT's first scheme, `whole_word` its second. `geometric` hides runs of words. `entities`
# and `noun_phrases` hide spans that a tagger found (marked by hand here, in `[[ ]]`) and, by the toss of a coin for each span, geometric ones. `mixed` is not the paper's: each
# sequence gets a mask of the `geometric` or of the `subword` scheme.

# %%
schemes = ("subword", "whole_word", "geometric", "mixed", "entities", "noun_phrases")
draws = [draw for scheme in schemes for draw in draws_of(scheme, count=3)]
kinds = {None: 0, "mask": 1, "random": 2, "kept": 3}
rows = np.array([[kinds[token.stand_in] for token in draw.tokens] for draw in draws])
colours = ["#f1f3f6", "#2f6fed", "#b3389c", "#18864b"]
figure, axes = plt.subplots(figsize=(9.5, 4))
axes.imshow(rows, cmap=ListedColormap(colours), vmin=0, vmax=3, aspect="auto", extent=(0, rows.shape[1], len(rows), 0))
axes.grid(False)
axes.vlines(range(rows.shape[1]), 0, len(rows), color="white", linewidth=0.7)
axes.hlines(range(len(rows)), 0, rows.shape[1], color="white", linewidth=0.7)
axes.set_yticks(1.5 + 3 * np.arange(6), [f"{scheme}\n3 draws" for scheme in schemes], fontsize=8)
axes.set_xticks(
    0.5 + np.arange(rows.shape[1]),
    [token.token for token in draws[0].tokens],
    rotation=90,
    fontsize=6,
    family="monospace",
)
axes.tick_params(length=0)
for y in range(3, 18, 3):
    axes.axhline(y, color="#1c2330", linewidth=0.8)
names = ("visible", "[MASK] stands there", "a random token", "left as it was, but a target")
axes.legend([Patch(color=c) for c in colours], names, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.01), fontsize=8)
plt.show()

# %% [markdown]
# (All have the same seed: where two schemes would draw the same thing, they do. So `mixed` repeats rows of the two others, and the last two differ only in what is marked.)
#
# Note what the geometric rows show: about 15 % of the tokens, in a few runs of whole words, none of which touches another. Single tokens are easy to guess
# from the rest of their word and their neighbours ("Les ▢ ##ps"); a run of words is not.
#
# ## How long are the spans?
#
# Lengths in words come from a geometric distribution with p = 0.2, cut off at 10 words: P(l) ∝ 0.2 · 0.8^(l − 1). Its mean is the 3.8 of the paper:

# %%
cdf = truncated_geometric(0.2, 10)
law = np.diff(cdf, prepend=0)
law_mean = law @ np.arange(1, 11)
print(f"mean {law_mean:.3f} words")
assert abs(law_mean - 3.8) < 0.005

# %% [markdown]
# Is that what sequences get? We mask 20,000 sequences of 512 tokens and count each span's words.

# %%
all_ids = tokenizer.encode_ids(lzma.decompress((ROOT / "sample" / "wikipedia.txt.xz").read_bytes()).decode())


def batches(length, sequences):
    """Packed batches of blocks of the sample, with their epoch and their indices: after the last block the next epoch begins."""
    blocks = [all_ids[at : at + length - 2] for at in range(0, len(all_ids) - length, length - 2)]
    for first in range(0, sequences, 500):
        numbers = np.arange(first, min(first + 500, sequences))
        packed = pack_sequences([(blocks[n % len(blocks)],) for n in numbers], tokenizer.cls_id, tokenizer.sep_id)
        yield packed, numbers // len(blocks), numbers % len(blocks)


def lengths_of(length, sequences, seed=0, **settings):
    """Of every span its words; and how many spans each sequence has."""
    masker = Masker.from_tokenizer(MaskConfig(**settings), tokenizer, seed=seed)
    spans, per_sequence = [], []
    for packed, epoch, indices in batches(length, sequences):
        targets = masker.mask(packed, epoch=epoch, indices=indices).targets
        # a word begins with a token that starts words, or where its span begins (a block may begin in the middle of a word)
        begins = tokenizer.starts_word[targets.ids_M] | (targets.offset_M == 0)
        spans.append(np.bincount(targets.span_M, weights=begins).astype(int))
        sequence = np.searchsorted(packed.cu_seqlens, targets.left_S, side="right") - 1
        per_sequence.append(np.bincount(sequence, minlength=len(indices)))
    return np.concatenate(spans), np.concatenate(per_sequence)


placed, spans_in = lengths_of(512, 20_000)
print(f"{len(placed):,} spans, {placed.mean():.3f} words on average")
assert 3.62 < placed.mean() < 3.70

# %% [markdown]
# 3.67, not 3.80. With this many spans that is no accident. Does the sampler draw wrongly, or does it place something else than it draws?
#
# We can find out, because random numbers here are *counter-based*: the length of span k of a sequence is a hash of (seed, epoch, index, k). So we can ask what was
# drawn, without running the sampler, and compare with what was placed.


# %%
def drawn_lengths(length, sequences, spans_in, seed=0):
    """The lengths that were drawn for each sequence's spans."""
    found, place = [], 0
    for _, epoch, indices in batches(length, sequences):
        keys = stream(sequence_keys(seed, epoch, indices), LENGTH)
        counts = spans_in[place : place + len(indices)]
        span = np.arange(counts.max())
        found.append(draw_lengths(cdf, draw(keys[:, None], span))[span < counts[:, None]])
        place += len(indices)
    return np.concatenate(found)


drawn = drawn_lengths(512, 20_000, spans_in)
error = drawn.std() / np.sqrt(len(drawn))
print(f"drawn {drawn.mean():.3f} ± {error:.3f}, placed {placed.mean():.3f}, expected {law_mean:.3f}")
assert abs(drawn.mean() - law_mean) < 4 * error
assert law_mean - placed.mean() > 20 * error

# %% [markdown]
# The draws follow the distribution. What is lost is lost in placing. Sequence by sequence:

# %%
sequence = np.repeat(np.arange(20_000), spans_in)
lost = np.bincount(sequence, weights=drawn) - np.bincount(sequence, weights=placed)
last = np.cumsum(spans_in) - 1
differing = []
for begin, end in zip((last + 1 - spans_in)[:2000], (last + 1)[:2000]):
    # every drawn length but the last is there among the placed ones
    remaining = placed[begin:end].tolist()
    for one in drawn[begin : end - 1].tolist():
        if one in remaining:
            remaining.remove(one)
    differing.append(len(remaining))
print(
    f"{np.mean(lost > 0):.0%} of the sequences lose words, {lost.mean():.2f} words on average, never more than {lost.max():.0f}"
)
print(f"in {np.mean(np.array(differing) == 1):.1%} of the sequences all spans but the last are as drawn")
assert (lost >= 0).all() and lost.max() < 10
assert np.mean(np.array(differing) == 1) > 0.99

# %% [markdown]
# It is the last span, and only the last. A sequence has a budget of 15 % of its tokens. Spans are placed until the budget is used up, and the last one is
# *shortened to the words that the budget still pays* (`place_next` in [span_sampler.py](../pretrain/masking/span_sampler.py)).
#
# Could one leave the last span out, of the statistics or of the mask? Its length would then be right, and the mean still wrong: a long span is more likely to be the
# one that meets the end of the budget, so those before it are shorter than average. Only all spans together, the last one as drawn, have the mean of the distribution
# (Wald's identity; the sampler's docstring says more).

# %%
without_last = np.delete(drawn, last)
placed_last = (placed.sum() - without_last.sum()) / 20_000
print(
    f"all but the last: {without_last.mean():.3f} words; the last: {drawn[last].mean():.3f} as drawn, {placed_last:.3f} as placed"
)
assert without_last.mean() < law_mean - 20 * error and drawn[last].mean() > law_mean + 1

# %% [markdown]
# If every sequence loses the same few words at its end, then short sequences, with few spans, must suffer more. They do, and by just that much:

# %%
sizes = (64, 128, 256, 512, 1024)
means, losses = [], []
for size in sizes:
    some, counts = lengths_of(size, 3_000)
    means.append(some.mean())
    losses.append((drawn_lengths(size, 3_000, counts).sum() - some.sum()) / 3_000)

figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.2))
words = np.arange(1, 11)
left.bar(words, 100 * np.bincount(placed, minlength=11)[1:] / len(placed), 0.7, color="C0", alpha=0.35, label="placed")
left.plot(words, 100 * np.bincount(drawn, minlength=11)[1:] / len(drawn), "o", color="C1", label="drawn")
left.plot(words, 100 * law, "-", color="#1c2330", linewidth=1, label="truncated geometric")
left.set(xlabel="words in the span", ylabel="share of spans (%)", xticks=words, title="20,000 sequences of 512 tokens")
left.legend()
right.axhline(law_mean, color="#1c2330", linewidth=1)
right.text(64, law_mean + 0.03, "as drawn", fontsize=8)
right.plot(sizes, means, "o-", color="C0")
right.set(
    xscale="log",
    xlabel="tokens in a sequence",
    ylabel="mean words in a span, as placed",
    ylim=(2.8, 4),
    title="short sequences lose more",
)
right.set_xticks(sizes, sizes)
right.minorticks_off()
plt.show()
print("words lost per sequence:", ", ".join(f"{size}: {one:.2f}" for size, one in zip(sizes, losses)))
assert means == sorted(means) and means[0] < 3.1
assert all(2.0 < one < 2.6 for one in losses)

# %% [markdown]
# About 2.3 words a sequence, whatever its length. So the mean of 3.8 is that of the distribution; what a model of 512 positions is trained on is 3.67, and one trained on
# blocks of 64 tokens sees spans of 3.0 words. A mean that somebody states for "SpanBERT's spans" depends on the block length.
#
# ## What stands in the place of a hidden token
#
# As in BERT, 80 % become `[MASK]`, 10 % a random token and 10 % stay as they are, since a model that only ever predicts at `[MASK]` would have no reason to keep a good
# state at other tokens. But *one* decision is made per span. If it were made per token, most spans would be partly visible, for a span of n tokens would be hidden as a whole with probability 0.8ⁿ: 41 % for four.
# What is really done:


# %%
def fates(scheme, sequences=4_000):
    """Of each run of at least two hidden tokens: the share of its tokens that are [MASK]; and of all runs what stands in their place."""
    masker = Masker.from_tokenizer(MaskConfig(scheme=scheme), tokenizer, seed=1)
    shares, counts = [], np.zeros(3)
    for packed, epoch, indices in batches(512, sequences):
        batch = masker.mask(packed, epoch=epoch, indices=indices)
        span, seen = batch.targets.span_M, batch.packed.input_ids_T[batch.targets.positions_M]
        size = np.bincount(span)
        masked, same = (
            np.bincount(span, weights=w) / size for w in (seen == tokenizer.mask_id, seen == batch.targets.ids_M)
        )
        counts += [(masked == 1).sum(), ((masked == 0) & (same < 1)).sum(), (same == 1).sum()]
        shares.append(masked[size > 1])
    return np.concatenate(shares), counts


for scheme in ("geometric", "whole_word", "subword"):
    shares, counts = fates(scheme)
    partly = np.mean((shares > 0) & (shares < 1))
    print(f"{scheme:11}{partly:6.1%} of the runs of two tokens and more are hidden in part", end="")
    if scheme == "geometric":
        parts = counts / counts.sum()
        print(f"; [MASK] {parts[0]:.1%}, random {parts[1]:.1%}, kept {parts[2]:.1%}", end="")
        assert partly == 0
        error = np.sqrt(0.8 * 0.2 / counts.sum())
        assert np.abs(parts - [0.8, 0.1, 0.1]).max() < 4 * error
    else:
        assert partly > 0.05
    print()

# %% [markdown]
# In the other two schemes, runs are neighbours by chance, each decided for itself.
#
# ## The same mask, from anybody
#
# A mask depends on (seed, epoch, index of the sequence) and on nothing else. So it does not matter which worker makes it, with which other sequences in the batch, in what
# order, or whether the run was interrupted in between:


# %%
masker = Masker.from_tokenizer(MaskConfig(), tokenizer, seed=3)
blocks = [all_ids[at : at + 126] for at in range(0, 126 * 100, 126)]


def mask_of(number, among, epoch=5, masker=masker):
    """Positions that are masked in block `number`, when the blocks `among` are masked together."""
    packed = pack_sequences([(blocks[n],) for n in among], tokenizer.cls_id, tokenizer.sep_id)
    positions = masker.mask(packed, epoch=epoch, indices=np.array(among)).targets.positions_M
    begin, end = packed.cu_seqlens[among.index(number) :][:2]
    return (positions[(positions >= begin) & (positions < end)] - begin).tolist()


alone = mask_of(42, [42])
assert alone == mask_of(42, [7, 99, 42, 3]) == mask_of(42, list(range(100))) == mask_of(42, list(range(99, -1, -1)))
assert alone != mask_of(42, [42], epoch=6)  # the next epoch masks anew
assert alone != mask_of(42, [42], masker=Masker.from_tokenizer(MaskConfig(), tokenizer, seed=4))

PROGRAM = """
import json, sys
import numpy as np
from pretrain.masking.masker import MaskConfig, Masker
from spanbert.model.batch import pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import bundled_path
tokenizer = Tokenizer.load(bundled_path("encoder"))
packed = pack_sequences([(np.array(json.load(sys.stdin)),)], tokenizer.cls_id, tokenizer.sep_id)
masker = Masker.from_tokenizer(MaskConfig(), tokenizer, seed=3)
print(masker.mask(packed, epoch=5, indices=np.array([42])).targets.positions_M.tolist())
"""
other = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    input=str(blocks[42].tolist()),
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
)
print("block 42 in epoch 5, from another process:", other.stdout.strip())
assert other.stdout.strip() == str(alone)

# %% [markdown]
# This also makes `mixed` checkable: each of its masks must be exactly that of one of the two schemes that it is made of.

# %%
from_scheme = {
    s: Masker.from_tokenizer(MaskConfig(scheme=s), tokenizer, seed=3) for s in ("mixed", "geometric", "subword")
}
took = []
for number in range(100):
    mixed, spans, single = (mask_of(number, [number], masker=from_scheme[s]) for s in ("mixed", "geometric", "subword"))
    assert mixed in (spans, single)
    took.append(mixed == spans)
print(f"{sum(took)} of 100 sequences took spans")
assert 30 < sum(took) < 70  # four standard deviations

# %% [markdown]
# ## What to take along
#
# * Spans are runs of whole words with lengths from a truncated geometric distribution; they neither overlap nor touch, and a sequence gets 15 %.
# * The distribution's mean is 3.8. Sequences of 512 tokens get 3.67, because the last span is cut to the budget: about 2.3 words a sequence.
# * `[MASK]`, random or unchanged is decided per span.
# * A mask is a function of (seed, epoch, index). That is why anything here can be checked after the fact.
#
# Next: [what the encoder does with the tokens](03_attention_by_hand.py).
