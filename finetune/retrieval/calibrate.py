"""`spanbert calibrate`: fit the weights of the scores and the confidence of the answers on held-out questions.

Questions are asked as they will be: over the text of their own article, and over all articles of the file together (or an
index). What is printed and drawn is cross-validated: for every fifth of the articles, by what the others fitted.
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
from finetune.retrieval.confidence import FILE, Calibration, HeldOut, Search, save_calibrations
from finetune.retrieval.documents import Document
from finetune.retrieval.index import Index, Retriever
from finetune.retrieval.logistic import Logistic, fit_logistic
from finetune.retrieval.opensearch import open_retriever
from finetune.retrieval.reliability import auroc, bins_of, calibration_error, draw_reliability, new_figure
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
class Crossed:
    """Cross-validated, for N questions: confidence of the best answer, whether it was right, its F1."""

    exact_N: np.ndarray
    f1_N: np.ndarray
    right_N2: np.ndarray  # exact match, F1 ≥ ½

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
    assert answerer.folder is not None
    check_writable(answerer.folder, "files inside", "MODEL")
    if config.plot is not None:
        new_figure()
        check_writable(config.plot, "files inside", "--plot")
    found = read_questions(config.file, "evaluate", check_offsets=False)
    articles = articles_of(found)
    drawn = draw(articles, config.questions, config.seed)
    if len(drawn) < LEAST_QUESTIONS:
        raise UserError(f"{config.file}: {len(drawn)} questions are too few to learn from: {LEAST_QUESTIONS} at least.")
    digest = sha256(config.file)
    calibrations: dict[Search, Calibration] = {}
    pictures: dict[Search, Crossed] = {}
    for search, where, retrievers in searches(config, articles):
        asked = ask_all(answerer, retrievers, drawn, config.passages, where)
        fitted, crossed = fit(asked, answerer.settings.threshold), cross_validate(asked, answerer.settings.threshold)
        date = time.strftime("%Y-%m-%d", time.gmtime())
        calibrations[search] = Calibration(
            fitted.combination,
            fitted.exact,
            fitted.f1,
            tuple(bins_of(crossed.exact_N, crossed.right_N2[:, 0])),
            config.passages,
            HeldOut(config.file.name, digest, len(asked), where, date),
            crossed.metrics(),
        )
        print(describe(calibrations[search]))
        pictures[search] = crossed
    save_calibrations(answerer.folder, calibrations)
    print(f"wrote {answerer.folder / FILE}")
    if config.plot is None:
        return
    for search, crossed in pictures.items():
        picture = config.plot / f"calibration_{search}.png"
        with only_warned(str(picture), "the calibration"):
            title = f"exact match, {calibrations[search].held_out.searched}"
            draw_reliability(picture, crossed.exact_N, crossed.right_N2[:, 0], title)
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


def cross_validate(asked: Sequence[Asked], threshold: float | None) -> Crossed:
    """Every question by what the questions of other folds fitted. A question for which nothing was found is left wrong."""
    groups = sorted({one.group for one in asked})
    by_question = len(groups) < FOLDS
    fold_N = [place % FOLDS if by_question else groups.index(one.group) % FOLDS for place, one in enumerate(asked)]
    exact_N, f1_N, right_N2 = np.zeros(len(asked)), np.zeros(len(asked)), np.zeros((len(asked), 2))
    for fold in sorted(set(fold_N)):
        fitted = fit([one for one, other in zip(asked, fold_N, strict=True) if other != fold], threshold)
        for place, one in enumerate(asked):
            if fold_N[place] == fold and one.candidates:
                best = ranked(one.candidates, fitted.combination, threshold)[0]
                evidence = best.evidence.vector()
                exact_N[place], f1_N[place] = fitted.exact.probability(evidence), fitted.f1.probability(evidence)
                right_N2[place] = one.right(best.text)
    return Crossed(exact_N, f1_N, right_N2)


def describe(calibration: Calibration) -> str:
    """For people."""
    held_out, metrics, weights = calibration.held_out, calibration.metrics, calibration.combination
    lines = [
        f"{held_out.questions:,} questions of {held_out.file} over {held_out.searched}, {calibration.passages} passages read"
    ]
    lines.append(
        f"  score = {weights.logit:.3f} logit + {weights.null_margin:.3f} null margin + {weights.retrieval:.3f} BM25"
    )
    for name, words in (("exact", "exact match"), ("f1", "F1 of ½ or more")):
        area = f", AUROC {metrics[f'{name}_auroc']:.3f}" if f"{name}_auroc" in metrics else ""
        ece = metrics[f"{name}_ece"]
        lines.append(f"  {words}: {100 * metrics[f'{name}_right']:.1f} % right, calibration error {ece:.3f}{area}")
    lines += [
        f"  sure {one.low:.2f} … {one.high:.2f}: {100 * one.right:3.0f} % of {one.questions} right"
        for one in calibration.bins
    ]
    return "\n".join(lines)
