"""`spanbert calibrate`: fit the weights of the scores and the confidence of the answers on held-out questions.

Questions are asked as they will be: over the text of their own article, and over all articles of the file together (or an
index). What is printed and drawn is cross-validated: for every fifth of the articles, by what the others fitted. With
``--check`` nothing is fitted: the questions say how well the stored calibration holds on them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm
from tyro.conf import Positional

from finetune.retrieval.answer_documents import Candidate, DocumentAnswerer, ranked
from finetune.retrieval.combine import Combination, fit_combination
from finetune.retrieval.confidence import FILE, Calibration, HeldOut, Search, load_calibration, save_calibrations
from finetune.retrieval.documents import Document
from finetune.retrieval.index import Index, Retriever
from finetune.retrieval.logistic import Logistic, fit_logistic
from finetune.retrieval.opensearch import open_retriever
from finetune.retrieval.reliability import (
    Bin,
    auroc,
    bins_of,
    calibration_error,
    draw_reliability,
    error_by_chance,
    new_figure,
)
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.metrics import score_question
from finetune.tasks.qa.records import Question, QuestionFile, read_questions
from spanbert.errors import UserError
from spanbert.files import check_writable, sha256
from spanbert.training.metrics import only_warned

FOLDS = 5
ANSWERS_FITTED = 3  # of a question: runners-up have a confidence, too
AT_ONCE = 32  # questions read together
LEAST_QUESTIONS = 50


@dataclass(frozen=True)
class CalibrateConfig:
    """Learn how sure a model's answers are, on labelled questions that it was not trained on; kept in the model's folder."""

    model: Positional[Path]
    """Model or run folder; gets the file calibration.json."""
    file: Positional[Path]
    """Labelled questions: SQuAD 1.1, SQuAD 2.0 or MRQA, plain or .gz."""
    index: str | None = None
    """Ask over this index (a folder, or the address of one in OpenSearch), instead of over the articles of the file."""
    questions: int = 500
    """How many of the questions are asked, drawn by --seed."""
    passages: int = 5
    """Passages read for each question; `ask` should read as many."""
    seed: int = 0
    """Of the draw."""
    check: bool = False
    """Fit and keep nothing: say how well the confidence that the model has already holds on these questions."""
    plot: Path | None = None
    """Folder for pictures: reliability, and risk against coverage (needs matplotlib)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Arithmetic of the forward pass; int8 is for CPUs with units for it."""
    backend: Literal["auto", "eager", "sdpa", "triton"] = "auto"
    """Attention implementation."""


@dataclass(frozen=True)
class Asked:
    """A held-out question and what was read for it."""

    group: int  # questions of one article are in one fold
    candidates: list[Candidate]
    golds: tuple[str, ...]

    def right(self, text: str) -> tuple[float, float]:
        """(exact match, F1 ≥ ½), 0 or 1 each."""
        exact, f1 = score_question(text, self.golds, version_2=not self.golds)
        return exact, float(f1 >= 0.5)


@dataclass(frozen=True)
class Fitted:
    """What is learnt of some questions."""

    combination: Combination
    exact: Logistic
    f1: Logistic


@dataclass(frozen=True)
class Judged:
    """For N questions: the chances of the best answer by what was fitted on others, and whether it was right."""

    exact_N: np.ndarray
    f1_N: np.ndarray
    right_N2: np.ndarray  # exact match, F1 ≥ ½

    @property
    def bins(self) -> tuple[Bin, ...]:
        """By the chance of an exact match."""
        return tuple(bins_of(self.exact_N, self.right_N2[:, 0]))

    def metrics(self) -> dict[str, float]:
        found = {}
        for name, sure, right in (("exact", self.exact_N, self.right_N2[:, 0]), ("f1", self.f1_N, self.right_N2[:, 1])):
            found[f"{name}_right"] = float(right.mean())
            found[f"{name}_ece"] = calibration_error(sure, right)
            area = auroc(sure, right)
            if area is not None:
                found[f"{name}_auroc"] = area
        return found


def run_calibrate(config: CalibrateConfig) -> None:
    """Ask, fit, print, and write calibration.json."""
    if config.questions < LEAST_QUESTIONS or config.passages < 1:
        raise UserError(f"give at least {LEAST_QUESTIONS} --questions and 1 of --passages.")
    answerer = QuestionAnswerer.load(
        config.model, device=config.device, precision=config.precision, backend=config.backend
    )
    folder = answerer.folder
    assert folder is not None
    if not config.check:
        check_writable(folder, "files inside", "MODEL")
    if config.plot is not None:
        new_figure()
        check_writable(config.plot, "files inside", "--plot")
    found = read_questions(config.file, "evaluate", check_offsets=False)
    articles = articles_of(found)
    drawn = draw(articles, config.questions, config.seed)
    if len(drawn) < LEAST_QUESTIONS:
        raise UserError(f"{config.file}: {len(drawn)} questions are too few to learn from: {LEAST_QUESTIONS} at least.")
    digest, threshold = sha256(config.file), answerer.settings.threshold
    stored = stored_calibrations(folder, config) if config.check else {}
    calibrations: dict[Search, Calibration] = {}
    judged: dict[Search, tuple[str, Judged]] = {}
    for search, where, retrievers in searches(config, articles):
        asked = ask_all(answerer, retrievers, drawn, config.passages, where)
        if config.check:
            answers = judge(asked, [stored[search]] * len(asked), threshold)
            print(describe_check(answers, f"{len(asked):,} questions of {config.file.name} over {where}"))
        else:
            answers = cross_validate(asked, threshold)
            fitted, date = fit(asked, threshold), time.strftime("%Y-%m-%d", time.gmtime())
            held_out = HeldOut(config.file.name, digest, len(asked), where, date)
            calibrations[search] = Calibration(
                fitted.combination, fitted.exact, fitted.f1, answers.bins, config.passages, held_out, answers.metrics()
            )
            print(describe(calibrations[search]))
        judged[search] = (where, answers)
    if not config.check:
        save_calibrations(folder, calibrations)
        print(f"wrote {folder / FILE}")
    if config.plot is None:
        return
    for search, (where, answers) in judged.items():
        picture = config.plot / f"calibration_{search}.png"
        with only_warned(str(picture), "the calibration"):
            draw_reliability(picture, answers.exact_N, answers.right_N2[:, 0], f"exact match, {where}")
            print(f"wrote {picture}")


def searches(
    config: CalibrateConfig, articles: dict[Document, list[Question]]
) -> list[tuple[Search, str, list[Retriever]]]:
    """(way of asking, in words, the retriever for each article)"""
    if config.index is not None:
        index = open_retriever(config.index)
        words = f"{index.document_count:,} documents of {Path(config.index).name}"
        return [("documents", words, [index] * len(articles))]
    documents = list(articles)
    alone: list[Retriever] = [Index.of([document]) for document in documents]
    together = Index.of(documents)
    return [
        ("text", "the question's own article", alone),
        ("documents", f"the file's {len(documents):,} articles together", [together] * len(documents)),
    ]


def articles_of(found: QuestionFile) -> dict[Document, list[Question]]:
    """The paragraphs of each article as one document, and the questions about it."""
    texts: dict[str, list[str]] = {}
    questions: dict[str, list[Question]] = {}
    for paragraph in found.paragraphs:
        texts.setdefault(paragraph.article, []).append(paragraph.context)
        questions.setdefault(paragraph.article, []).extend(paragraph.questions)
    return {
        Document(title, title.replace("_", " "), "\n".join(parts)): questions[title] for title, parts in texts.items()
    }


def draw(articles: dict[Document, list[Question]], count: int, seed: int) -> list[tuple[int, Question]]:
    """(number of the article, question): a random choice of all questions, those of an article one after the other."""
    every = [(number, question) for number, questions in enumerate(articles.values()) for question in questions]
    chosen = np.random.default_rng(seed).permutation(len(every))[:count]
    return [every[place] for place in np.sort(chosen)]


def ask_all(
    answerer: QuestionAnswerer,
    retrievers: Sequence[Retriever],
    drawn: Sequence[tuple[int, Question]],
    passages: int,
    where: str,
) -> list[Asked]:
    """Find and read passages for all questions."""
    asked = []
    bar = tqdm(total=len(drawn), unit=" questions", desc=f"asking {where}", mininterval=0.5)
    for begin in range(0, len(drawn), AT_ONCE):
        part = drawn[begin : begin + AT_ONCE]
        for number in dict.fromkeys(number for number, _ in part):
            questions = [question for other, question in part if other == number]
            readings = DocumentAnswerer(answerer, retrievers[number]).read([one.text for one in questions], passages)
            asked += [
                Asked(number, reading.candidates, question.answers)
                for question, reading in zip(questions, readings, strict=True)
            ]
            bar.update(len(questions))
    bar.close()
    return asked


def fit(asked: Sequence[Asked], threshold: float | None) -> Fitted:
    """The weights of the scores, then the chances of the best answers under these weights."""
    combination = fit_combination(
        [
            (
                np.stack([c.features.vector() for c in one.candidates]),
                np.array([one.right(c.text)[0] for c in one.candidates]),
            )
            for one in asked
            if one.candidates and one.golds
        ]
    )
    rows, right = [], []
    for one in asked:
        if one.candidates:
            for answer in ranked(one.candidates, combination, threshold)[:ANSWERS_FITTED]:
                rows.append(answer.evidence.vector())
                right.append(one.right(answer.text))
    x_NF, y_N2 = np.stack(rows), np.array(right)
    return Fitted(combination, fit_logistic(x_NF, y_N2[:, 0]), fit_logistic(x_NF, y_N2[:, 1]))


def cross_validate(asked: Sequence[Asked], threshold: float | None) -> Judged:
    """Every question by what the questions of other folds fitted."""
    groups = sorted({one.group for one in asked})
    by_question = len(groups) < FOLDS
    fold_N = [place % FOLDS if by_question else groups.index(one.group) % FOLDS for place, one in enumerate(asked)]
    fitted = {
        fold: fit([one for one, other in zip(asked, fold_N, strict=True) if other != fold], threshold)
        for fold in sorted(set(fold_N))
    }
    return judge(asked, [fitted[fold] for fold in fold_N], threshold)


def judge(asked: Sequence[Asked], fitted_N: Sequence[Fitted], threshold: float | None) -> Judged:
    """Each question's best answer by what belongs to it. A question for which nothing was found is left wrong."""
    exact_N, f1_N, right_N2 = np.zeros(len(asked)), np.zeros(len(asked)), np.zeros((len(asked), 2))
    for place, (one, fitted) in enumerate(zip(asked, fitted_N, strict=True)):
        if one.candidates:
            best = ranked(one.candidates, fitted.combination, threshold)[0]
            evidence = best.evidence.vector()
            exact_N[place], f1_N[place] = fitted.exact.probability(evidence), fitted.f1.probability(evidence)
            right_N2[place] = one.right(best.text)
    return Judged(exact_N, f1_N, right_N2)


def stored_calibrations(folder: Path, config: CalibrateConfig) -> dict[Search, Fitted]:
    """What the model has of every way of asking. Raises UserError where it has none, or read another number of passages."""
    found: dict[Search, Fitted] = {}
    ways: tuple[Search, ...] = ("documents",) if config.index is not None else ("text", "documents")
    for search in ways:
        stored = load_calibration(folder, search)
        if stored is None:
            raise UserError(f"{folder} has no confidence for {search} to check; fit one first, without --check.")
        if stored.passages != config.passages:
            raise UserError(
                f"{folder}: its confidence was fitted with {stored.passages} passages a question: --passages {stored.passages}."
            )
        found[search] = Fitted(stored.combination, stored.exact, stored.f1)
    return found


def describe(calibration: Calibration) -> str:
    """For people."""
    held_out, metrics, weights = calibration.held_out, calibration.metrics, calibration.combination
    asked = f"{held_out.questions:,} questions of {held_out.file} over {held_out.searched}, {calibration.passages} passages read"
    weighed = (
        f"  score = {weights.logit:.3f} logit + {weights.null_margin:.3f} null margin + {weights.retrieval:.3f} BM25"
    )
    return "\n".join([asked, weighed, *_agreement(metrics, calibration.bins)])


def describe_check(judged: Judged, what: str) -> str:
    """For people, with the calibration error that chance alone would make."""
    by_chance = error_by_chance(judged.exact_N)
    note = f"  (were every confidence exact, so many questions would still show a calibration error of about {by_chance:.3f})"
    return "\n".join([what, *_agreement(judged.metrics(), judged.bins), note])


def _agreement(metrics: dict[str, float], bins: Sequence[Bin]) -> list[str]:
    lines = []
    for name, words in (("exact", "exact match"), ("f1", "F1 of ½ or more")):
        area = f", AUROC {metrics[f'{name}_auroc']:.3f}" if f"{name}_auroc" in metrics else ""
        ece = metrics[f"{name}_ece"]
        lines.append(f"  {words}: {100 * metrics[f'{name}_right']:.1f} % right, calibration error {ece:.3f}{area}")
    return lines + [
        f"  sure {one.low:.2f} … {one.high:.2f}: {100 * one.right:3.0f} % of {one.questions} right" for one in bins
    ]
