"""How right answers are when there is more text than the answer's paragraph: read as a whole, and by passages.

    python -m benchmarks.finetuning.passages FILE [--model MODEL] [--questions N] [--output FILE.json]

Of every article of a SQuAD file some questions are drawn. Each is asked over its paragraph alone, over 2, 4, 8, 16 paragraphs
around it, and over all of the article, in several ways:

whole       all windows compared by their logits (`ask --read-all`)
passages    some passages found by BM25, compared by logit, null margin and BM25 together (`ask`): by the weights that the model
            was calibrated with, or the default ones
reader      the same passages, compared by the reader's logit alone
refitted    the same passages and scores as `passages`, by weights fitted on the other articles' questions in this very text

Exact match with its standard error and F1, where the model may decline, and exact match where it must answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tyro.conf import Positional

from finetune.retrieval.answer_documents import Candidate, DocumentAnswerer, ranked
from finetune.retrieval.combine import Combination, fit_combination
from finetune.retrieval.documents import Document
from finetune.retrieval.index import Index
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.metrics import score_question
from finetune.tasks.qa.records import Paragraph, Question, read_questions
from spanbert.files import write_atomic
from spanbert.weights import qa_model_path

READER_ALONE = Combination(logit=1.0, null_margin=0.0, retrieval=0.0)
FOLDS = 5


@dataclass(frozen=True)
class PassagesConfig:
    """Options."""

    file: Positional[Path]
    """SQuAD file with whole articles."""
    model: Path | None = None
    """Model folder; left out, the bundled one."""
    questions: int = 96
    """How many, the same number of each article or one more."""
    passages: int = 5
    """Passages read."""
    paragraphs: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Texts of so many paragraphs are asked, and the whole article."""
    seed: int = 0
    """Of the draw."""
    skip_whole: bool = False
    """Only by passages, which is far quicker."""
    output: Path | None = None
    """JSON file for the numbers."""


def around(paragraphs: Sequence[Paragraph], place: int, count: int | None) -> list[Paragraph]:
    """So many paragraphs of an article with that at ``place`` as near the middle as there are enough on both sides."""
    if count is None or count >= len(paragraphs):
        return list(paragraphs)
    first = min(max(0, place - count // 2), len(paragraphs) - count)
    return list(paragraphs[first : first + count])


def draw(articles: dict[str, list[Paragraph]], count: int, seed: int) -> list[tuple[str, int, Question]]:
    """(article, place of the paragraph, question), the articles in turn."""
    rng = np.random.default_rng(seed)
    shuffled = []
    for title, paragraphs in articles.items():
        every = [(title, place, question) for place, one in enumerate(paragraphs) for question in one.questions]
        shuffled.append([every[number] for number in rng.permutation(len(every))])
    turns = [one[turn] for turn in range(max(map(len, shuffled))) for one in shuffled if turn < len(one)]
    return turns[:count]


@dataclass(frozen=True)
class Asked:
    """A question and what was read for it."""

    article: str
    golds: tuple[str, ...]
    candidates: list[Candidate]

    def choice(self) -> tuple[np.ndarray, np.ndarray]:
        """Its candidates' features (C, 3) and which are right (C,), as ``fit_combination`` takes them."""
        right = [score_question(one.text, self.golds, version_2=False)[0] for one in self.candidates]
        return np.stack([one.features.vector() for one in self.candidates]), np.array(right)

    def answer(self, combination: Combination, threshold: float | None) -> str:
        return ranked(self.candidates, combination, threshold)[0].text if self.candidates else ""


def refitted(asked: Sequence[Asked]) -> list[Combination]:
    """For each question the weights that the questions of other articles fit."""
    articles = list(dict.fromkeys(one.article for one in asked))
    fold_N = [articles.index(one.article) % FOLDS for one in asked]
    fitted = [
        fit_combination(
            [one.choice() for one, other in zip(asked, fold_N, strict=True) if other != fold and one.candidates]
        )
        for fold in range(FOLDS)
    ]
    return [fitted[fold] for fold in fold_N]


Answers = tuple[list[str], list[str]]  # where the model may decline, and where it must answer


def by_passages(
    answerer: QuestionAnswerer, passages: int, texts: Sequence[str], drawn: Sequence[tuple[str, int, Question]]
) -> dict[str, Answers]:
    """Way → answers; the passages are read once."""
    asked, combination = [], None
    for text, (title, _, question) in zip(texts, drawn, strict=True):
        documents = DocumentAnswerer(answerer, Index.of([Document(title, title.replace("_", " "), text)]))
        combination = documents.combination
        asked.append(Asked(title, question.answers, documents.read([question.text], passages)[0].candidates))
    assert combination is not None
    weights = {
        "passages": [combination] * len(asked),
        "reader": [READER_ALONE] * len(asked),
        "refitted": refitted(asked),
    }
    threshold = answerer.settings.threshold
    return {
        way: (
            [one.answer(weight, threshold) for one, weight in zip(asked, each, strict=True)],
            [one.answer(weight, None) for one, weight in zip(asked, each, strict=True)],
        )
        for way, each in weights.items()
    }


def by_windows(
    answerer: QuestionAnswerer, texts: Sequence[str], drawn: Sequence[tuple[str, int, Question]]
) -> dict[str, Answers]:
    """The same for all windows of the texts."""
    found = [
        answerer.answer(question.text, text, n_best=2) for text, (_, _, question) in zip(texts, drawn, strict=True)
    ]
    spans = [next(one.text for one in answers if not one.no_answer) for answers in found]
    return {"whole": ([answers[0].text for answers in found], spans)}


def main(config: PassagesConfig) -> None:
    articles: dict[str, list[Paragraph]] = {}
    for paragraph in read_questions(config.file, "evaluate", check_offsets=False).paragraphs:
        articles.setdefault(paragraph.article, []).append(paragraph)
    answerer = QuestionAnswerer.load(config.model or qa_model_path())
    drawn = [one for one in draw(articles, config.questions, config.seed) if one[2].answers]
    print(f"{len(drawn)} questions of {len(articles)} articles of {config.file.name}, seed {config.seed}")
    print("paragraphs  way          EM ±       F1     must answer: EM    processor s a question")
    rows = []
    for count in (*config.paragraphs, None):
        texts = ["\n".join(one.context for one in around(articles[title], place, count)) for title, place, _ in drawn]
        begin = time.process_time()
        reading = [by_passages(answerer, config.passages, texts, drawn)]
        middle = time.process_time()
        if not config.skip_whole:
            reading.append(by_windows(answerer, texts, drawn))
        spent = (middle - begin, time.process_time() - middle)
        for answers, seconds in zip(reading, spent, strict=False):
            for way, (free, forced) in answers.items():
                exact, f1 = _scores(free, drawn)
                must, _ = _scores(forced, drawn)
                error = exact.std() / len(exact) ** 0.5
                row = {
                    "paragraphs": count or "all",
                    "way": way,
                    "exact": exact.mean(),
                    "f1": f1.mean(),
                    "error": error,
                    "must_answer": must.mean(),
                    "seconds": seconds / len(drawn),
                }
                rows.append(row | {"right": exact.tolist(), "right_must_answer": must.tolist()})
                print(
                    f"{count or 'all':>10}  {way:8}  {exact.mean():.3f} ± {error:.3f}  {f1.mean():.3f}  "
                    f"{must.mean():15.3f}  {seconds / len(drawn):6.2f}",
                    flush=True,
                )
    if config.output is not None:
        write_atomic(
            config.output, json.dumps({"questions": len(drawn), "seed": config.seed, "rows": rows}, indent=1) + "\n"
        )


def _scores(answers: Sequence[str], drawn: Sequence[tuple[str, int, Question]]) -> np.ndarray:
    """(2, N): exact match and F1 of each."""
    pairs = zip(answers, drawn, strict=True)
    return np.array([score_question(answer, one[2].answers, version_2=False) for answer, one in pairs]).T


if __name__ == "__main__":
    main(tyro.cli(PassagesConfig))
