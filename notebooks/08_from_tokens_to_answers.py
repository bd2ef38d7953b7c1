# %% [markdown]
# # From tokens to answers
#
# The bundled reader is an encoder with one linear layer on it: for every token two numbers, how well an answer could
# *start* here and how well it could *end* here. How do these numbers, of a text that may be longer than the model can
# read, become one answer with its place in the text? Step by step, each step done by hand and compared with the
# project's code:
#
# 1. windows: what the model reads at a time, and which window decides about which token;
# 2. start × end: all the spans there are;
# 3. the n best, and the score of answering nothing;
# 4. exact match and F1: what an answer is worth.
#
# The code: [features.py](../finetune/tasks/qa/features.py) (windows), [decode.py](../finetune/tasks/qa/decode.py)
# (spans), [metrics.py](../finetune/tasks/qa/metrics.py) (scores), all in
# [finetune/tasks/qa](../finetune/tasks/qa/answerer.py).

# %%
import gzip
import json
import string
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import spanbert
from finetune.predict import window_logits
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.decode import decode_question
from finetune.tasks.qa.encode import encode_with_texts
from finetune.tasks.qa.metrics import exact_match, token_f1
from finetune.tasks.qa.records import paragraphs_of
from finetune.tasks.qa.task import QATask

torch.set_num_threads(1)
ROOT = Path(spanbert.__file__).parents[1]
reader = QuestionAnswerer.load("reader", device="cpu", precision="fp32")
text = (ROOT / "sample/text.txt").read_text("utf-8").strip()
question = "Who founded the Suez Canal Company?"
print(reader.answer(question, text)[0])

# %% [markdown]
# ## 1. Windows
#
# A model with 512 positions cannot read a book, so the text is cut into windows `[CLS] question [SEP] part of the text
# [SEP]`. They overlap: an answer that one window cuts in two is whole in the next. Our text has a few hundred tokens
# and would fit one window; to see something we make the windows small.

# %%
settings = replace(reader.settings, window=96, stride=32, max_question=24)


def refuse(where, error):
    raise ValueError(f"{where}: {error}")


def encoded(questions):
    return encode_with_texts(paragraphs_of(text, questions), reader.tokenizer, settings.windows, refuse)


asked = encoded([question])
windows, tokens = asked.windows, len(asked.contexts[0])
print(f"{tokens} tokens of text, {len(asked.questions.texts[0])} of the question: {len(windows)} windows")
for w in range(len(windows)):
    print(f"window {w}: text tokens {windows.first_W[w]} … {windows.last_W[w]}")

# %% [markdown]
# Most tokens are in two windows, with different neighbours and so with different scores. Whom to believe? The window in
# which the token has most context: where the *smaller* of (tokens to its left, tokens to its right) is largest. That is
# quickly written down:


# %%
def owners(firsts, lasts, tokens):
    """For each token of the text the window that decides about it; of equal ones the earlier."""
    best = []
    for token in range(tokens):
        context = [min(token - a, b - token) if a <= token <= b else -1 for a, b in zip(firsts, lasts, strict=True)]
        best.append(int(np.argmax(context)))
    return np.array(best)


owner = owners(windows.first_W, windows.last_W, tokens)
owned_first, owned_last = windows.owned
by_code = np.concatenate([np.full(b - a + 1, w) for w, (a, b) in enumerate(zip(owned_first, owned_last, strict=True))])
assert (owner == by_code).all()

figure, axes = plt.subplots(figsize=(8.4, 2.6))
for w in range(len(windows)):
    axes.barh(w, windows.count_W[w], left=windows.first_W[w], height=0.55, color="C0", alpha=0.25)
    axes.barh(w, owned_last[w] - owned_first[w] + 1, left=owned_first[w], height=0.55, color="C0")
axes.set(xlabel="token of the text", ylabel="window", yticks=range(len(windows)))
axes.invert_yaxis()
axes.set_title("What a window reads (pale) and what it decides about (dark)")
axes.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# The project does not look at every token: between two neighbours the border is the middle of their overlap
# (`Windows.owned`), and the ranges tile the text. The assert above says that it comes to the same.
#
# One thing is left open by the picture: the end of the text, like its start, is owned by a window whose edge it lies
# at. There is no more text; nothing is lost.
#
# ## 2. Start × end
#
# Now the model reads the windows. The span from token i to token j scores start_i + end_j, so all spans of a window are
# a matrix, of which only a band counts: an answer may not end before it starts (below the diagonal), nor be longer than
# 30 tokens.

# %%
logits = window_logits(QATask(settings), reader.model, asked, np.arange(len(windows)), reader.machine)
skip = len(asked.questions.texts[0]) + 2  # [CLS] question [SEP]
decoded = decode_question(asked, 0, logits, settings.decode, null_allowed=False)
best = decoded.candidates[0]
words = [text[a:b] for a, b in asked.offsets]
first = next(t for t, (a, _) in enumerate(asked.offsets) if a == best.start)
window = owner[first]
start, end = (logits[window][i][skip : skip + windows.count_W[window]] for i in (0, 1))
scores = start[:, None] + end[None, :]
i, j = np.indices(scores.shape)
allowed = (j >= i) & (j < i + settings.max_answer)

low = max(first - windows.first_W[window] - 9, 0)
part = slice(low, min(low + 22, len(start)))
figure, axes = plt.subplots(figsize=(6.6, 5.6))
axes.grid(visible=False)
shown = np.where(allowed, scores, np.nan)[part, part]
image = axes.imshow(shown, cmap="viridis")
labels = words[windows.first_W[window] :][part]
axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
axes.set_yticks(range(len(labels)), labels, fontsize=7)
place = np.unravel_index(np.nanargmax(shown), shown.shape)
axes.plot(place[1], place[0], "o", markersize=11, markerfacecolor="none", markeredgecolor="C5", markeredgewidth=2)
axes.set(xlabel="the answer ends with", ylabel="the answer starts with")
figure.colorbar(image, label="start logit + end logit", shrink=0.8)
axes.set_title(f'Part of window {window}: "{question}"')
plt.show()
print("best of all:", repr(best.text), f"{best.score:.2f}")

# %% [markdown]
# The matrix is a sum of a column and a row, so it has stripes: one for every good start, one for every good end. Where
# two cross, and above the diagonal, there is a candidate.
#
# Taking the best start and the best end separately would be simpler. It is not the same thing: nothing keeps the two in
# order, or near each other. How often does it happen? On the first paragraphs of the SQuAD sample:

# %%
articles = json.loads(gzip.decompress((ROOT / "sample/squad-dev.json.gz").read_bytes()))["data"]
broken = total = 0
examples = []
for article in articles[:20]:
    paragraph = article["paragraphs"][0]
    questions = [qa["question"] for qa in paragraph["qas"]]
    if len(reader.tokenizer.encode(paragraph["context"]).ids) > 300:
        continue
    one = encode_with_texts(
        paragraphs_of(paragraph["context"], questions), reader.tokenizer, reader.settings.windows, refuse
    )
    whole = window_logits(QATask(reader.settings), reader.model, one, np.arange(len(one.windows)), reader.machine)
    for q, (starts, ends) in enumerate(whole):
        before = len(one.questions.texts[q]) + 2
        a, b = starts[before:-1].argmax(), ends[before:-1].argmax()
        total += 1
        if b < a or b >= a + 30:
            broken += 1
            examples.append((questions[q], int(a), int(b)))
print(f"{broken} of {total} questions: the best start and the best end make no span")
for q, a, b in examples[:3]:
    print(f"  {q}  start {a}, end {b}")
assert 0 < broken < total / 4

# %% [markdown]
# ## 3. The n best, and nothing
#
# All pairs of all windows, each start taken from the window that owns it, sorted. By brute force, in two loops:

# %%
found = []
for w in range(len(windows)):
    start_w, end_w = (logits[w][k][skip : skip + windows.count_W[w]] for k in (0, 1))
    for a in range(owned_first[w] - windows.first_W[w], owned_last[w] - windows.first_W[w] + 1):
        for b in range(a, min(a + settings.max_answer, windows.count_W[w])):
            found.append((float(start_w[a] + end_w[b]), windows.first_W[w] + a, windows.first_W[w] + b))
found.sort(key=lambda one: -one[0])

by_hand = {}
for score, a, b in found:
    # a text that stands twice is listed once, where it scores best
    by_hand.setdefault(text[asked.offsets[a, 0] : asked.offsets[b, 1]], score)
by_hand = list(by_hand.items())[: settings.n_best]
for (answer, score), candidate in zip(by_hand, decoded.candidates, strict=True):
    assert answer == candidate.text and abs(score - candidate.score) < 1e-4
print(f"{len(found):,} spans looked at; the best:")
for candidate in decoded.candidates[:6]:
    print(f"{candidate.score:7.2f}  {candidate.probability:5.1%}  {candidate.text}")

# %% [markdown]
# The project finds the same list without the loops (`best_pairs` in [decode.py](../finetune/tasks/qa/decode.py)): the
# band of the matrix is a sliding window over the end scores.
#
# The probabilities are a softmax over this list. They say how the candidates compare with each other, not how likely
# the best one is right; that is the subject of [the next notebook](09_how_sure.py).
#
# **Nothing.** This reader was trained on questions without an answer too. For those it was taught to point at `[CLS]`.
# So every window has a *null score*, start + end at `[CLS]`. A window that lacks the answer says "not here", which is
# no reason to give up: only if **every** window says so is there no answer. Hence the minimum over the windows.

# %%
nulls = [float(one[0][0] + one[1][0]) for one in logits]
print("null scores of the windows:", *(f"{n:.1f}" for n in nulls))
assert abs(min(nulls) - decoded.null_score) < 1e-4

questions = (
    question,
    "Who founded the Panama Canal Company?",
    "When was the canal opened?",
    "How deep is the canal?",
    "Who painted the Mona Lisa?",
)
several = encoded(questions)
all_logits = window_logits(QATask(settings), reader.model, several, np.arange(len(several.windows)), reader.machine)
odds = {}
for q, asks in enumerate(questions):
    one = decode_question(
        several, q, all_logits[several.bounds[q] : several.bounds[q + 1]], settings.decode, null_allowed=True
    )
    odds[asks] = one.null_odds
    said = one.answer(settings.null_threshold) or "(no answer)"
    print(f"{asks:40} null odds {one.null_odds:6.2f}   {said:24} best span: {one.candidates[0].text!r}")
print(f"threshold: {settings.null_threshold:.2f}")

# %% [markdown]
# The reader is right not to decline the first and the third. It ought to decline the other three, whose answers the
# text does not have, and it is a lesson in what null odds can do: off the subject altogether it notices; a question
# that *looks* like the text ("Panama" for "Suez", the depth for the length) gets a span of the right kind. On SQuAD
# 2.0, whose unanswerable questions are all of this sort, it reaches 73.0 F1 on them and pays for it with 64.5 on the
# others ([its card](../spanbert/weights/reader/README.md)).

# %%
assert odds["Who painted the Mona Lisa?"] > settings.null_threshold
assert odds["Who founded the Panama Canal Company?"] > odds[question]  # doubtful, though not doubtful enough

# %% [markdown]
# ## 4. What is an answer worth?
#
# People mark an answer differently: "Ferdinand de Lesseps", "the French diplomat Ferdinand de Lesseps". SQuAD scores in
# two ways, after lower-casing and dropping punctuation and the articles: **exact match** (EM), and **F1**, the harmonic
# mean of precision (how much of the given answer is in the gold one) and recall (how much of the gold one was given),
# counted in words.


# %%
def normal(answer):
    kept = "".join(c for c in answer.lower() if c not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def f1(given, gold):
    given, gold = normal(given), normal(gold)
    shared = sum((Counter(given) & Counter(gold)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(given), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


gold = "Ferdinand de Lesseps"
for candidate in decoded.candidates[:5]:
    em = float(normal(candidate.text) == normal(gold))
    assert em == exact_match(candidate.text, gold)
    assert f1(candidate.text, gold) == token_f1(candidate.text, gold, version_2=False)
    print(f"EM {em:.0f}   F1 {f1(candidate.text, gold):.2f}   {candidate.text}")

# %% [markdown]
# "the French diplomat Ferdinand de Lesseps": five words after the article is gone, three of them right: precision 3/5,
# recall 3/3, F1 = 0.75.
#
# By hand is not quite the official script: an article between long dashes ("—the—") is one of its odd corners. On words
# from the text the two are the same, whatever they are:

# %%
random = np.random.default_rng(0)
pool = [*words, "The", "an", "a", "U.S.", "co-operate", "it's", "—"]
for _ in range(2000):
    given, expected = (" ".join(random.choice(pool, random.integers(1, 8))) for _ in range(2))
    assert abs(f1(given, expected) - token_f1(given, expected, version_2=False)) < 1e-12, (given, expected)

# %% [markdown]
# ## What to remember
#
# * Windows overlap so that no answer is cut; each token is decided about once, where it has most context.
# * An answer is the best *pair*, not the best start and the best end: the two alone made no span for about one question
#   in nine.
# * "No answer" is the minimum over the windows, compared with the best span; it sees what is off the subject better
#   than what is nearly on it.
# * F1 counts words after normalising; it forgives a title too many.
#
# To write yourself: [the owned range of a window](../exercises/owned_range.py) and [token
# F1](../exercises/token_f1.py).
