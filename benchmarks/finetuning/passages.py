"""How right answers are when there is more text than the answer's paragraph: read as a whole, and by passages.

    python -m benchmarks.finetuning.passages FILE [--model MODEL] [--questions N] [--output FILE.json]

Of every article of a SQuAD file some questions are drawn. Each is asked over its paragraph alone, over 2, 4, 8, 16 paragraphs
around it, and over all of the article, in both ways: all windows compared by their logits (`ask --read-all`), and some
passages found by BM25, compared by logit and BM25 together (`ask`). Exact match and F1, with the standard error of exact match.
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

from finetune.retrieval.answer_documents import DocumentAnswerer
from finetune.retrieval.documents import Document
from finetune.retrieval.index import Index
from finetune.tasks.qa.answerer import QuestionAnswerer
from finetune.tasks.qa.metrics import score_question
from finetune.tasks.qa.records import Paragraph, Question, read_questions
from spanbert.files import write_atomic
from spanbert.weights import qa_model_path

AROUND = (1, 2, 4, 8, 16, None)  # paragraphs; None for all


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


def main(config: PassagesConfig) -> None:
    articles: dict[str, list[Paragraph]] = {}
    for paragraph in read_questions(config.file, "evaluate", check_offsets=False).paragraphs:
        articles.setdefault(paragraph.article, []).append(paragraph)
    answerer = QuestionAnswerer.load(config.model or qa_model_path())
    drawn = [one for one in draw(articles, config.questions, config.seed) if one[2].answers]
    print(f"{len(drawn)} questions of {len(articles)} articles of {config.file.name}, seed {config.seed}")
    print("paragraphs  way          EM ±       F1    processor s a question")
    rows = []
    for count in AROUND:
        for way in ("passages", "whole"):
            if way == "whole" and config.skip_whole:
                continue
            scores, begin = [], time.process_time()
            for title, place, question in drawn:
                text = "\n".join(one.context for one in around(articles[title], place, count))
                if way == "whole":
                    answer = answerer.answer(question.text, text)[0].text
                else:
                    index = Index.of([Document(title, title.replace("_", " "), text)])
                    found = DocumentAnswerer(answerer, index).answer([question.text], passages=config.passages)
                    answer = found[0].answers[0].text
                scores.append(score_question(answer, question.answers, version_2=False))
            exact, f1 = np.array(scores).T
            error, seconds = exact.std() / len(exact) ** 0.5, (time.process_time() - begin) / len(drawn)
            rows.append(
                {
                    "paragraphs": count or "all",
                    "way": way,
                    "exact": exact.mean(),
                    "f1": f1.mean(),
                    "error": error,
                    "seconds": seconds,
                }
            )
            print(
                f"{count or 'all':>10}  {way:8}  {exact.mean():.3f} ± {error:.3f}  {f1.mean():.3f}  {seconds:6.2f}",
                flush=True,
            )
    if config.output is not None:
        write_atomic(
            config.output, json.dumps({"questions": len(drawn), "seed": config.seed, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main(tyro.cli(PassagesConfig))
