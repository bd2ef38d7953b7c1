"""Exact match and token F1 for extractive QA, as the official SQuAD 1.1 and 2.0 scripts define them.

Both scripts compare answers after lower-casing, deleting ASCII punctuation, deleting the articles a, an and the,
and joining what is left with single spaces, and both take the best value over a question's gold answers.
They differ in one case: when either side has no word left, 1.1 gives F1 0, while 2.0 gives 1 if both are empty.
Other metrics put their own comparison in the place of SQuAD's (``normalisation``); the rest is the same.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from finetune.tasks.qa.normalisation import FORMS, AnswerForm

Metric = Literal["squad", "cmrc", "drcd", "mlqa-en", "mlqa-de", "mlqa-es", "mlqa-zh"]

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case `text`, drop ASCII punctuation and English articles, and collapse white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


_SQUAD = AnswerForm(normalize_answer, lambda text: normalize_answer(text).split())

#: Question ids of CMRC 2018's files; no other set of questions here is named so.
_CMRC_ID = re.compile(r"(TRAIN|DEV|TRIAL|TEST|CHALLENGE)_\d+_QUERY_\d+")
_CHINESE_CHARACTER = re.compile("[\u4e00-\u9fff]")


def _form(metric: Metric) -> AnswerForm:
    return _SQUAD if metric == "squad" else FORMS[metric]


class ChosenMetric(NamedTuple):
    """A metric, and what a person should know of the choice."""

    metric: Metric
    notes: tuple[str, ...] = ()


def metric_of_file(asked: Metric | None, ids: Sequence[str], golds: Sequence[Sequence[str]]) -> ChosenMetric:
    """What to score a file with: what was asked for; otherwise what its question ids say; otherwise ``squad``."""
    if asked is None and ids and all(map(_CMRC_ID.fullmatch, ids)):
        return ChosenMetric("cmrc", ("scored with --metric cmrc, for its question ids are those of CMRC 2018",))
    chosen: Metric = asked or "squad"
    answered = [answers for answers in golds if answers]
    chinese = sum(any(map(_CHINESE_CHARACTER.search, answers)) for answers in answered)
    if chosen == "squad" and 2 * chinese > len(answered):
        return ChosenMetric(
            chosen,
            (
                "its answers are Chinese, and --metric squad splits at white space, so that F1 is nearly exact match; "
                "choose --metric cmrc, drcd or mlqa-zh",
            ),
        )
    return ChosenMetric(chosen)


def exact_match(prediction: str, gold: str, metric: Metric = "squad") -> float:
    """1.0 when both normalise to the same string."""
    normal = _form(metric).normal
    return float(normal(prediction) == normal(gold))


def token_f1(prediction: str, gold: str, *, version_2: bool, metric: Metric = "squad") -> float:
    """Harmonic mean of precision and recall over the normalised words, counted with multiplicity.

    With ``cmrc``, over the longest run of tokens that both share.
    """
    form = _form(metric)
    predicted, expected = form.tokens(prediction), form.tokens(gold)
    if version_2 and not (predicted and expected):
        return float(predicted == expected)
    shared = form.shared(predicted, expected)
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def score_question(
    prediction: str, golds: Sequence[str], *, version_2: bool, metric: Metric = "squad"
) -> tuple[float, float]:
    """(exact match, F1) of one prediction: each the maximum over `golds`. No gold means unanswerable.

    As in the 2.0 script, golds that normalise to nothing are left out under `version_2`, and a question left
    without a gold is scored against the empty answer.
    """
    if version_2:
        golds = [gold for gold in golds if _form(metric).normal(gold)] or [""]
    exact = max(exact_match(prediction, gold, metric) for gold in golds)
    return exact, max(token_f1(prediction, gold, version_2=version_2, metric=metric) for gold in golds)


def best_threshold(
    answerable: Sequence[bool], scores: Sequence[float], answered: Sequence[bool], null_odds: Sequence[float]
) -> tuple[float, float]:
    """The τ that maximises the mean score when a question is answered only if its null odds are at most τ.

    For each question: whether it has an answer, the score of its non-empty prediction, whether that prediction is
    non-empty, and its null odds (null score − best span score). Returns (best mean score in 0…1, τ).

    It is the 2.0 script's search with two repairs: questions of equal odds move together, so that the score found
    is one that τ reproduces, and when answering nothing is best, τ lies below every odd (the script says 0).
    """
    if not scores:
        raise ValueError("best_threshold needs at least one question")
    order = sorted(range(len(scores)), key=lambda i: null_odds[i])
    total = float(sum(not has for has in answerable))
    best, threshold = total, math.nextafter(null_odds[order[0]], -math.inf)
    for place, i in enumerate(order):
        total += scores[i] if answerable[i] else -float(answered[i])
        tied = place + 1 < len(order) and null_odds[order[place + 1]] == null_odds[i]
        if not tied and total > best:
            best, threshold = total, null_odds[i]
    return best / len(scores), threshold


def _percent(values: Iterable[float]) -> float:
    values = list(values)
    return 100.0 * math.fsum(values) / len(values)


def qa_metrics(
    golds: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    *,
    version_2: bool,
    null_odds: Mapping[str, float] | None = None,
    best_spans: Mapping[str, str] | None = None,
    metric: Metric = "squad",
) -> dict[str, float]:
    """Official metrics in percent over the questions of `golds` (id → gold answers, empty = unanswerable).

    A question without a prediction scores 0 and is counted in `missing`. With `version_2`, also the same over the
    questions that have an answer (HasAns) and those that have none (NoAns); with `null_odds` and `best_spans` (the
    best non-empty answers) as well, the best exact match and F1 over all thresholds, and those thresholds.
    """
    if not golds:
        raise ValueError("qa_metrics needs at least one question")

    def score(question: str, answers: Mapping[str, str]) -> tuple[float, float]:
        if question not in answers:
            return 0.0, 0.0
        return score_question(answers[question], golds[question], version_2=version_2, metric=metric)

    scores = {question: score(question, predictions) for question in golds}
    metrics = {
        "exact": _percent(s[0] for s in scores.values()),
        "f1": _percent(s[1] for s in scores.values()),
        "total": len(scores),
        "missing": sum(question not in predictions for question in golds),
    }
    if not version_2:
        return metrics

    has_answer = {question: bool(golds[question]) for question in golds}
    for name, wanted in (("HasAns", True), ("NoAns", False)):
        part = [scores[question] for question in golds if has_answer[question] is wanted]
        if part:
            metrics[f"{name}_exact"] = _percent(s[0] for s in part)
            metrics[f"{name}_f1"] = _percent(s[1] for s in part)
        metrics[f"{name}_total"] = len(part)
    if null_odds is not None and best_spans is not None:
        known = [question for question in golds if question in best_spans and question in null_odds]
        if known:
            span_scores = [score(question, best_spans) for question in known]
            for place, name in ((0, "exact"), (1, "f1")):
                value, threshold = best_threshold(
                    [has_answer[q] for q in known],
                    [s[place] for s in span_scores],
                    [bool(best_spans[q]) for q in known],
                    [null_odds[q] for q in known],
                )
                metrics[f"best_{name}"] = 100.0 * value * len(known) / len(golds)
                metrics[f"best_{name}_threshold"] = threshold
    return metrics


def describe(metrics: Mapping[str, float]) -> str:
    """The metrics as lines for people."""
    lines = [f"EM {metrics['exact']:.2f}   F1 {metrics['f1']:.2f}   ({metrics['total']:,} questions)"]
    for name in ("HasAns", "NoAns"):
        if f"{name}_exact" in metrics:
            em, f1, total = (metrics[f"{name}_{part}"] for part in ("exact", "f1", "total"))
            lines.append(f"  {name}: EM {em:.2f}   F1 {f1:.2f}   ({total:,})")
    for name, label in (("exact", "EM"), ("f1", "F1")):
        if f"best_{name}" in metrics:
            value, threshold = metrics[f"best_{name}"], metrics[f"best_{name}_threshold"]
            lines.append(f"  best {label} {value:.2f} at null threshold {threshold:.4f}")
    if "null_threshold" in metrics:
        lines.append(f"  null threshold used: {metrics['null_threshold']:.4f}")
    if metrics.get("missing"):
        lines.append(f"  {metrics['missing']:,} questions without a prediction, scored 0")
    if metrics.get("questions_cut"):
        lines.append(f"  {metrics['questions_cut']:,} questions cut to the model's question length")
    return "\n".join(lines)
