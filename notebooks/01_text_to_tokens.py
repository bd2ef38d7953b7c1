# %% [markdown]
# # Text to tokens
#
# What does the model see of a text, and can we build the same thing by hand? WordPiece, offsets, word starts, and why the six
# characters "[MASK]" in a text are not a mask.
#
# The code that this notebook is about: [spanbert/tokenizer/wordpiece.py](../spanbert/tokenizer/wordpiece.py) and
# [spanbert/model/batch.py](../spanbert/model/batch.py).

# %%
import lzma
import unicodedata
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import spanbert
from spanbert.model.batch import pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer
from spanbert.weights import bundled_path

ROOT = Path(spanbert.__file__).parents[1]
tokenizer = Tokenizer.load(bundled_path("encoder"))
print(
    f"{tokenizer.vocab_size:,} tokens; some of them: {' '.join(tokenizer.tokens[i] for i in (4, 30, 400, 1500, 4000, 9000, 15000))}"
)

# %% [markdown]
# A vocabulary of 16,000 entries has to cover a language with millions of words. So an entry is a *token*: a whole word where the word is
# frequent, otherwise part of one. A token that continues a word is written with `##` before it.

# %%
text = "The unprecedented nationalisation of Suez astonished Eisenhower."
encoded = tokenizer.encode(text)
tokens = [tokenizer.token(i) for i in encoded.ids]
print(" ".join(tokens))

# %% [markdown]
# ## By hand
#
# The text becomes words first: it is split at white space, and every punctuation mark (and every Chinese character) is a word of its own.
# Characters that are not there to be read, such as a zero-width space, are dropped before.


# %%
def is_punctuation(c):
    return unicodedata.category(c).startswith("P") or (c.isascii() and c.isprintable() and not c.isalnum() and c != " ")


def is_chinese(c):
    return any(
        low <= ord(c) <= high
        for low, high in ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF))
    )


def words_of(text):
    spaced = ""
    for c in text:
        if c.isspace():
            spaced += " "
        elif unicodedata.category(c).startswith("C") or c == "\ufffd":
            continue
        else:
            spaced += f" {c} " if is_punctuation(c) or is_chinese(c) else c
    return spaced.split()


print(words_of("It's 193 kilometres long, isn't it?"))

# %% [markdown]
# Each word is then cut from the left: take the longest entry of the vocabulary that the rest of the word begins with, and go on behind it.
# If at some place no entry fits, the *whole* word is unknown. That is all of WordPiece at the time of use; which entries there are was decided
# when the vocabulary was trained.


# %%
def cut(word, longest_word=100):
    if len(word) > longest_word:
        return ["[UNK]"]
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            token = ("##" if start else "") + word[start:end]
            if tokenizer.id(token) is not None:
                found.append(token)
                break
        else:
            return ["[UNK]"]
        start = end
    return found


def encode_by_hand(text):
    return [tokenizer.id(token) for word in words_of(text) for token in cut(word)]


print(cut("unprecedented"), cut("nationalisation"), cut("kilometres"))
assert encode_by_hand(text) == encoded.ids.tolist()

# %% [markdown]
# One sentence proves little. The same comparison on articles of Wikipedia, with formulas, Greek, phonetic script and all:

# %%
sample = lzma.decompress((ROOT / "sample" / "wikipedia.txt.xz").read_bytes()).decode()
articles = [article for article in sample.split("\n\n") if article.strip()]
total = 0
for article in articles[::3]:  # every third: the loop above is slow
    by_hand = encode_by_hand(article)
    assert by_hand == tokenizer.encode_ids(article).tolist()
    total += len(by_hand)
print(f"{len(articles[::3])} articles, {total:,} tokens: every one is the same")
assert total > 150_000

# %% [markdown]
# Greedy is not optimal. It never looks ahead, so it may take more tokens than a word needs:


# %%
def fewest(word):
    """The shortest way to cut a word: best[i] is that of its first i characters."""
    best = [[]] + [None] * len(word)
    for end in range(1, len(word) + 1):
        for start in range(end):
            token = ("##" if start else "") + word[start:end]
            if best[start] is not None and tokenizer.id(token) is not None:
                if best[end] is None or len(best[start]) + 1 < len(best[end]):
                    best[end] = [*best[start], token]
    return best[-1]


frequent = Counter(word for article in articles for word in words_of(article) if len(word) < 25)
known = [word for word in frequent if cut(word) != ["[UNK]"]]
longer = [word for word in known[::5] if len(cut(word)) > len(fewest(word))]
share = len(longer) / len(known[::5])
word = max(longer, key=lambda word: frequent[word])
print(
    f"{share:.1%} of the different words take more tokens than needed, such as {word}: {cut(word)}, not {fewest(word)}"
)
assert 0 < share < 0.15

# %% [markdown]
# ## A picture of it
#
# `encode` also gives each token's place in the text: `offsets`, in characters, end exclusive. The lower row is the ids, which is all that the
# model gets.

# %%
figure, axes = plt.subplots(figsize=(9, 1.5))
axes.set(xlim=(-0.5, len(text) + 0.5), ylim=(-1.3, 1.2))
axes.axis("off")
word_number = np.cumsum(tokenizer.starts_word[encoded.ids]) - 1
for id, (start, end), number in zip(encoded.ids, encoded.offsets, word_number):
    colour = f"C{number % 4}"
    axes.add_patch(
        plt.Rectangle((start + 0.06, 0), end - start - 0.12, 1, facecolor=colour, alpha=0.18, edgecolor=colour)
    )
    axes.text((start + end) / 2, 0.5, text[start:end], ha="center", va="center", family="monospace", fontsize=9)
    axes.text(
        (start + end) / 2,
        -0.45,
        str(id),
        ha="center",
        va="top",
        fontsize=6.5,
        rotation=90 if end - start < 4 else 0,
        color="#667085",
    )
axes.set_title("tokens of one word share a colour; their ids below")
plt.show()

# %% [markdown]
# ## Offsets survive whatever the text does
#
# An answer is shown as `text[start:end]` of the text *as it was given*. So offsets must not move when the tokenizer drops a character, meets
# one outside the basic plane, or lower-cases. The bundled `reader` has a vocabulary of its own, which does lower-case and takes accents off.

# %%
reader = Tokenizer.load(bundled_path("reader"))
odd = "Zu\u0308rich\u200b – naïve café, 東京 😀!"
for name, one in (("encoder", tokenizer), ("reader", reader)):
    ids, offsets = one.encode(odd)
    print(f"{name:8}", "  ".join(f"{one.token(i)}={odd[a:b]!r}" for i, (a, b) in zip(ids, offsets)))
    assert all(0 <= a < b <= len(odd) for a, b in offsets)
    assert (offsets[1:, 0] >= offsets[:-1, 1]).all()  # in order, and no character belongs to two tokens
    left_out = set(odd) - {odd[i] for a, b in offsets for i in range(a, b)}
    assert left_out <= {" ", "\u200b", "\u0308"}  # nothing that can be read is lost
ids, offsets = reader.encode(odd)
assert reader.token(ids[0]) == "zurich" and odd[slice(*offsets[0])].startswith("Zu\u0308rich")

# %% [markdown]
# Note the `[UNK]`s: neither vocabulary has the emoji, the encoder's has no 東, and in "Zürich" the ü was typed as u with a combining mark, which the
# encoder's vocabulary lacks. An unknown word still has its offsets.
#
# ## Where a word starts
#
# Span masking counts in *words* (the next notebook shows it). Whether a token starts a word can be read from its spelling alone, so it is a
# table over the vocabulary, looked up for millions of tokens at once:

# %%
starts = tokenizer.starts_word
print(f"{starts.sum():,} of {len(starts):,} entries start a word")
some = articles[7]
assert starts[tokenizer.encode_ids(some)].sum() == len(words_of(some))

# %% [markdown]
# How many tokens does a word need? Frequent words are one token; that is what the vocabulary was trained for.

# %%
counts = Counter({word: n for word, n in frequent.items() if word.isalpha()})
groups = {"once": (1, 1), "2–3 times": (2, 3), "4–10": (4, 10), "11–100": (11, 100), "more often": (101, 10**9)}
means = {}
for name, (low, high) in groups.items():
    chosen = [word for word, n in counts.items() if low <= n <= high]
    means[name] = [np.mean([len(one.encode_ids(word)) for word in chosen]) for one in (tokenizer, reader)]

figure, (left, right) = plt.subplots(1, 2)
for column, (name, one) in enumerate(
    (("encoder: 16,000 tokens, cased", tokenizer), ("reader: 30,522 tokens, lower-cased", reader))
):
    ids = np.concatenate([one.encode_ids(article) for article in articles[::3]])
    sizes = np.bincount(np.diff(np.flatnonzero(np.append(one.starts_word[ids], True))))
    left.bar(np.arange(1, 6) + (column - 0.5) * 0.4, 100 * sizes[1:6] / sizes.sum(), 0.4, label=name)
    right.plot(list(groups), [m[column] for m in means.values()], "o-", label=name)
left.set(
    xlabel="tokens in the word", ylabel="share of the words of a text (%)", title="most words of a text are one token"
)
right.set(
    xlabel="the word occurs in the sample …", ylabel="mean number of tokens", title="rare words are cut", ylim=(0, None)
)
right.tick_params(axis="x", labelsize=7)
left.legend(fontsize=8)
plt.show()
encoder_means = [m[0] for m in means.values()]
assert encoder_means == sorted(encoder_means, reverse=True) and encoder_means[-1] < 1.05 < 2 < encoder_means[0]

# %% [markdown]
# ## "[MASK]" in a text is not a mask
#
# The special tokens `[CLS]`, `[SEP]`, `[MASK]`, `[UNK]` and `[PAD]` have entries in the vocabulary. Here a text can never become one of them:

# %%
typed = tokenizer.encode_ids("The canal was opened in [MASK].")
print([tokenizer.token(i) for i in typed])
assert tokenizer.mask_id not in typed

# %% [markdown]
# If it could, anybody's document would control the model: a `[SEP]` in a web page would close the question's segment, and a `[MASK]` in a training
# text would be a mask without a target. Special tokens are therefore set as ids, by the code that means them, in one place:
# `pack_sequences` of [spanbert/model/batch.py](../spanbert/model/batch.py).

# %%
question, passage = "What does [SEP] do?", "It ends a segment. [SEP] [CLS] The real answer is 42."
packed = pack_sequences(
    [(tokenizer.encode_ids(question), tokenizer.encode_ids(passage))], tokenizer.cls_id, tokenizer.sep_id
)
print(" ".join(tokenizer.token(i) for i in packed.input_ids_T))
print(" ".join(map(str, packed.token_type_ids_T)))
assert (packed.input_ids_T == tokenizer.sep_id).sum() == 2 and (packed.input_ids_T == tokenizer.cls_id).sum() == 1

# %% [markdown]
# ## What to take along
#
# * WordPiece at the time of use is a dozen lines: split into words, cut each greedily from the left. Ours equals the project's on every token
#   tried.
# * Greedy cutting is not the shortest, for a few words in a hundred.
# * Every token knows its characters in the text as given, and whether it starts a word.
# * Text can hold no special token. Only code can.
#
# Next: [what is hidden from the model, and by which rule](02_masks.py).
