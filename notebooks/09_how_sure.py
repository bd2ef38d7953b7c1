# %% [markdown]
# # How sure?
#
# A reader always answers *something*, with a number beside it. What is the number worth? We ask the bundled readers
# questions whose answers are known:
#
# 1. Is an answer with probability 0.8 right in 80 % of cases? (Reliability.)
# 2. If we only take the surest answers, how much better are they? (Risk and coverage.)
# 3. What becomes of the numbers when many passages compete for one question?
# 4. How does BM25 find passages, and what does it add?
#
# The code: [reliability.py](../finetune/retrieval/reliability.py), [combine.py](../finetune/retrieval/combine.py),
# [postings.py](../finetune/retrieval/postings.py), [answer_documents.py](../finetune/retrieval/answer_documents.py).

# %%
import math
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import spanbert
from finetune.retrieval.combine import DEFAULT_COMBINATION
from finetune.retrieval.documents import Document
from finetune.retrieval.index import Index
from finetune.retrieval.passages import document_passages
from finetune.retrieval.reliability import auroc, bins_of, calibration_error, risk_coverage
from finetune.retrieval.terms import terms
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.metrics import score_question
from finetune.tasks.qa.records import read_questions

torch.set_num_threads(1)
ROOT = Path(spanbert.__file__).parents[1]
paragraphs = list(read_questions(ROOT / "sample/squad-dev.json.gz", "evaluate").paragraphs)
everything = [(number, question) for number, one in enumerate(paragraphs) for question in one.questions]
shuffled = [everything[i] for i in np.random.default_rng(0).permutation(len(everything))]
print(
    f"{len(everything)} questions about {len(paragraphs)} paragraphs, of articles that no reader here was fine-tuned on"
)

# %% [markdown]
# ## 1. Reliability
#
# Each of 128 questions is asked about its own paragraph. The number is the one from [the last
# notebook](08_from_tokens_to_answers.py): the softmax of the candidates' scores. Right means exact match with one of
# the gold answers.

# %%
reader = QuestionAnswerer.load("reader", device="cpu", precision="fp32")
asked = shuffled[:128]
own = sorted({number for number, _ in asked})
by_paragraph = [[question for number, question in asked if number == one] for one in own]
decoded = reader.read(
    [paragraphs[one].context for one in own], [[q.text for q in questions] for questions in by_paragraph], n_best=1
)
best = [one.candidates[0] for ones in decoded for one in ones]
golds = [question.answers for questions in by_paragraph for question in questions]
sure = np.array([candidate.probability for candidate in best])
right = np.array([score_question(c.text, gold, version_2=False)[0] for c, gold in zip(best, golds, strict=True)])
print(f"right {right.mean():.1%}, mean probability {sure.mean():.1%}")


# %% [markdown]
# The reader is right more often than its probabilities add up to. Two reasons are easy to see. "Ferdinand de Lesseps"
# had 45 % in the last notebook, because "the French diplomat Ferdinand de Lesseps" took a share of its own: spans that
# mean the same compete. And "no answer" takes a share too, although all questions of this file have an answer, which
# the model cannot know.
#
# Numbers that are wrong in a regular way can be corrected, on questions whose answers are known. Two classics:
#
# * a **temperature**: divide all scores by T before the softmax; one number;
# * a **logistic regression** on the log odds of the probability (Platt scaling): chance = σ(a + b · log(p/(1 − p)));
#   two numbers.
#
# They have to be fitted on other questions than they are judged by: each half of ours is judged by what was fitted on
# the other half.


# %%
def with_temperature(ones, temperature):
    """Of each question's best candidate, among its candidates and no answer."""
    found = []
    for one in ones:
        scores = np.array([c.score for c in one.candidates] + [one.null_score]) / temperature
        found.append(np.exp(scores[0] - np.logaddexp.reduce(scores)))
    return np.array(found)


def log_loss(p, right):
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return -np.mean(right * np.log(p) + (1 - right) * np.log(1 - p))


def platt(p, right):
    """a and b, by Newton's method."""
    x = np.stack([np.ones(len(p)), np.log(p / (1 - p))], 1)
    weights = np.zeros(2)
    for _ in range(20):
        chance = 1 / (1 + np.exp(-x @ weights))
        weights += np.linalg.solve((x * (chance * (1 - chance))[:, None]).T @ x, x.T @ (right - chance))
    return weights


flat = [one for ones in decoded for one in ones]
assert np.allclose(with_temperature(flat, 1.0), sure, atol=1e-5)
half = np.random.default_rng(2).permutation(len(flat)) % 2
temperatures = np.linspace(0.3, 3, 55)
warm, curve = np.zeros(len(flat)), np.zeros(len(flat))
for judged in (half == 0, half == 1):
    fit = ~judged
    temperature = min(temperatures, key=lambda t: log_loss(with_temperature(flat, t)[fit], right[fit]))
    a, b = platt(sure[fit], right[fit])
    warm[judged] = with_temperature(flat, temperature)[judged]
    curve[judged] = 1 / (1 + np.exp(-a - b * np.log(sure / (1 - sure)))[judged])
    print(f"fitted on {fit.sum()} questions: T = {temperature:.2f}, a = {a:.2f}, b = {b:.2f}")
versions = {"as it is": sure, "temperature": warm, "logistic": curve}
for name, p in versions.items():
    print(
        f"{name:11} calibration error {calibration_error(p, right, 5):.3f}   log loss {log_loss(p, right):.3f}   "
        f"AUROC {auroc(p, right):.2f}"
    )

# %%
figure, (left, other) = plt.subplots(1, 2, figsize=(8.4, 3.8))
left.plot([0, 1], [0, 1], color="0.6", linewidth=1)
for (label, p), color in zip(versions.items(), ("C1", "C4", "C0"), strict=True):
    bins = bins_of(p, right, 5)
    error = [1.96 * (max(b.right * (1 - b.right), 0.02) / b.questions) ** 0.5 for b in bins]
    left.errorbar(
        [b.confidence for b in bins], [b.right for b in bins], error, fmt="o-", capsize=3, color=color, label=label
    )
left.set(xlabel="mean probability", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
left.set_title("Reliability, each half judged by the other's fit")
left.legend()

coverage, risk = risk_coverage(sure, right)
other.plot(coverage, risk, label="surest first", color="C0")
other.axhline(1 - right.mean(), color="C4", linestyle="--", label="in any order")
perfect = np.clip(coverage - right.mean(), 0, None) / coverage
other.plot(coverage, perfect, color="C2", linestyle=":", label="if it knew")
other.set(xlabel="share of the questions answered", ylabel="share wrong of those", xlim=(0, 1), ylim=(0, 0.6))
other.set_title("Risk and coverage, all 128")
other.legend()
plt.show()

assert sure.mean() < right.mean() - 0.05  # too modest
loss = {name: log_loss(p, right) for name, p in versions.items()}
assert loss["logistic"] < loss["as it is"]
assert auroc(sure, right) > 0.7
assert risk[len(risk) // 2 - 1] < 0.75 * risk[-1]  # the surer half

# %% [markdown]
# The temperature does little: it makes all probabilities more extreme or less, and what we need is to lift them. The
# logistic curve, with its second number, comes nearer to the diagonal everywhere, most of all where the reader is least
# sure. (Those are often answers that lost nearly all to "no answer", and more than a third of them are right.)
# The bars are long: 128 questions are few, and a calibration
# error from so few is itself uncertain by several hundredths. The project's own ([`spanbert
# calibrate`](../finetune/retrieval/confidence.py)) is a logistic regression too, on nine features and 1,000 held-out
# questions.
#
# ## 2. Risk and coverage
#
# None of this changed the *order* of the answers, and the order is what matters if one may stay silent. On the right:
# answer the surest first, and see how the share of wrong ones grows. The number is good at this: of the surer half far
# fewer are wrong than of all. How often a right answer is surer than a wrong one is the AUROC, 0.5 for a coin.
#
# ## 3. Many passages, one question
#
# So far somebody told the reader where to look. Now the same question is asked about its own paragraph **and** about
# others, and the best answer of all is taken. The obvious way is to compare the readers' scores. We try it on two
# readers: `scratch`, which was trained on SQuAD 1.1, where every paragraph has the answer, and `reader`, whose training
# had questions without one.

# %%
passages = [paragraph.context for paragraph in paragraphs]


def compete(answerer, asked, rivals):
    """(questions, 1 + rivals) best score in each passage, the own one first, the F1 of each, and which they are."""
    rng, scores, worth, which = np.random.default_rng(1), [], [], []
    for number, question in asked:
        others = [i for i in rng.permutation(len(passages)) if i != number][:rivals]
        which.append([number, *others])
        read = answerer.read([passages[i] for i in which[-1]], [[question.text]] * (1 + rivals), n_best=1)
        candidates = [one.candidates[0] for (one,) in read]
        scores.append([c.score for c in candidates])
        worth.append([score_question(c.text, question.answers, version_2=False)[1] for c in candidates])
    return np.array(scores), np.array(worth), np.array(which)


def f1_by_count(scores, worth, counts):
    """The mean F1 when the best score of the first n passages decides, for each n."""
    return [np.mean([f1[s[:n].argmax()] for s, f1 in zip(scores, worth, strict=True)]) for n in counts]


counts = (1, 2, 4, 8, 16, 32)
scratch = QuestionAnswerer.load("scratch", device="cpu", precision="fp32")
few, fewer = shuffled[:48], shuffled[:12]
scores, worth, which = compete(scratch, few, counts[-1] - 1)
by_logit = f1_by_count(scores, worth, counts)
reader_scores, reader_worth, _ = compete(reader, fewer, counts[-1] - 1)
reader_by_logit = f1_by_count(reader_scores, reader_worth, counts)
print("passages", *counts)
print("scratch ", *(f"{share:.1%}" for share in by_logit))
print("reader  ", *(f"{share:.1%}" for share in reader_by_logit), f"({len(fewer)} questions only)")

# %% [markdown]
# `scratch` loses little at first, and then more and more. Each passage was alone in its training, so its scores only
# ever had to be right *relative to each other within a passage*; nothing told it that a score must be low where there
# is no answer. Mostly it is low all the same, for where no word of the question stands there is little to point at. But
# with more passages it is ever likelier that some wrong one shouts. `reader` has learned to point at `[CLS]` in passages
# without the answer, and with that its scores compare. (A dozen questions are few; but it is the shape that counts.)
#
# ## 4. BM25 by hand
#
# The other remedy is to look at the question's words. BM25 gives a passage, for each term of the question that it
# holds, the term's rarity (idf) times a share that grows with how often it stands there, less in long passages.


# %%
def bm25(question, documents, k1=1.2, b=0.75):
    """The score of every document, a list of terms each."""
    mean = sum(map(len, documents)) / len(documents)
    counted, scores = [Counter(one) for one in documents], np.zeros(len(documents))
    for term in terms(question):
        holding = sum(term in one for one in counted)
        idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
        for number, one in enumerate(counted):
            tf = one[term]
            scores[number] += idf * tf / (tf + k1 * (1 - b + b * len(documents[number]) / mean))
    return scores


index = Index.of([Document(str(i), p.article, p.context) for i, p in enumerate(paragraphs)])
cut = [passage for p in paragraphs for passage in document_passages(p.article, p.context)]
for _, question in shuffled[:20]:
    by_hand = bm25(question.text, [one.terms for one in cut])
    hits = index.search(question.text, 5)
    assert np.allclose([hit.score for hit in hits], np.sort(by_hand)[::-1][: len(hits)], rtol=1e-4)
print(f"{len(cut)} passages; by hand and by the index the same, on 20 questions")

_, question = few[0]
print(question.text)
weights = {term: bm25(term, [one.terms for one in cut]).max() for term in terms(question.text)}
print("  ".join(f"{term} {weight:.1f}" for term, weight in weights.items()))

# %% [markdown]
# Frequent words weigh next to nothing, without a list of stop words. Now add the two numbers up, the reader's score and
# BM25's, with the weights that the project uses where a model has no calibration of its own (`scratch` has none):

# %%
print(DEFAULT_COMBINATION)
retrieval = np.array(
    [bm25(q.text, [terms(text) for text in passages])[chosen] for (_, q), chosen in zip(few, which, strict=True)]
)
combined = DEFAULT_COMBINATION.logit * scores + DEFAULT_COMBINATION.retrieval * retrieval
by_both = f1_by_count(combined, worth, counts)
by_search = f1_by_count(retrieval, worth, counts)

figure, axes = plt.subplots(figsize=(6.6, 3.4))
for label, shares, color, style in (
    ("scratch, its scores alone", by_logit, "C5", "o-"),
    ("scratch, the passage by BM25 alone", by_search, "C3", "^:"),
    ("scratch, scores and BM25 added", by_both, "C0", "s-"),
    (f"reader, its scores alone ({len(fewer)} questions)", reader_by_logit, "C4", "x--"),
):
    axes.plot(counts, 100 * np.array(shares), style, color=color, label=label)
axes.set(xlabel="passages that compete", ylabel="mean F1, %", ylim=(0, None), xticks=counts)
axes.legend(fontsize=8, loc="lower left")
plt.show()
for name, shares in (("scores alone", by_logit), ("BM25 alone", by_search), ("both", by_both)):
    print(f"{name:12}", *(f"{share:.1%}" for share in shares))
assert by_logit[2] > 0.96 * by_logit[0] and by_logit[-1] < 0.94 * by_logit[0]  # little at first, and then more
assert by_both[-1] > max(by_logit[-1], by_search[-1]) + 0.02 and by_both[-1] > 0.93 * by_both[0]
assert reader_by_logit[-1] > 0.98 * reader_by_logit[0]

# %% [markdown]
# ## What to remember
#
# * A softmax over spans is not a chance of being right; here it is too modest. Two numbers, fitted on held-out
#   questions, mend part of it.
# * Even a badly calibrated number can rank answers well, and for staying silent the rank is enough.
# * Scores of different passages need not compare where training did not teach them to, and with many passages it shows.
#   Then let the search have a say.
# * The rivals here were drawn at random, and with 32 of them neither the scores nor BM25 alone do as well as both. Passages of the
#   same article, with the same names in them, are harder (`python -m benchmarks.finetuning.passages`, [the
#   results](../docs/results.md)).
