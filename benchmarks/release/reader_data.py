"""The questions of the bundled reader, from SQuAD 2.0's form and QED, and those that training never sees.

    python -m benchmarks.release.reader_data --squad train-v2.0.json.gz --also qed.json.gz --questions 60000 --output mix

writes mix/train.json.gz, a sample of the questions of all files, and mix/held-out.json.gz, every question of a few of
SQuAD's articles: what decides when the model declines, and how sure it may say it is, is chosen there. Unanswerable questions
that were put beside their paragraph by guessing (`"mapping_agrees": false`) are left out. Both files depend on the inputs and
the seed alone.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from finetune.records import has, readable
from spanbert.errors import UserError
from spanbert.files import write_atomic


@dataclass(frozen=True)
class ReaderDataConfig:
    """Sample the questions that the reader is trained on, and hold whole articles out."""

    squad: Path
    """SQuAD 2.0's training file, or one of its form."""
    output: Path
    """Folder that gets train.json.gz and held-out.json.gz."""
    also: tuple[Path, ...] = ()
    """More files of that form to train on."""
    questions: int = 60_000
    """How many to train on."""
    held_out_articles: int = 16
    """Articles of --squad that are left out of training."""
    max_characters: int = 1100
    """Questions on longer paragraphs are not sampled: they cost most and teach no more."""
    seed: int = 0
    """Of the choice of articles and questions."""


Article = dict[str, Any]


def run(config: ReaderDataConfig) -> None:
    """Raises UserError for a file that is not of SQuAD's form."""
    rng = random.Random(config.seed)
    squad = [certain(article) for article in read_articles(config.squad)]
    titles = sorted(article["title"] for article in squad)
    held_out = set(rng.sample(titles, min(config.held_out_articles, len(titles))))
    train = [article for article in squad if article["title"] not in held_out]
    for path in config.also:
        train += read_articles(path)
    write(config.output / "train.json.gz", sample(train, config.questions, rng, config.max_characters))
    write(config.output / "held-out.json.gz", [article for article in squad if article["title"] in held_out])


def read_articles(path: Path) -> list[Article]:
    with readable(path) as stream:
        content = json.load(stream)
    if not has(content, "data"):
        raise UserError(f'{path}: there is no "data", so it is not of SQuAD\'s form')
    return list(content["data"])


def certain(article: Article) -> Article:
    """The article without the questions whose paragraph was guessed."""
    paragraphs = [
        {
            "context": paragraph["context"],
            "qas": [without_mark(q) for q in paragraph["qas"] if q.get("mapping_agrees", True)],
        }
        for paragraph in article["paragraphs"]
    ]
    return {"title": article["title"], "paragraphs": paragraphs}


def without_mark(question: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in question.items() if key != "mapping_agrees"}


def sample(articles: list[Article], count: int, rng: random.Random, max_characters: int) -> list[Article]:
    """The articles with ``count`` of their questions, each as likely as any other; those left empty are left out."""
    paragraphs = [p for article in articles for p in article["paragraphs"] if len(p["context"]) <= max_characters]
    ids = [question["id"] for paragraph in paragraphs for question in paragraph["qas"]]
    kept = set(rng.sample(ids, min(count, len(ids))))
    sampled = []
    for article in articles:
        found = [
            {"context": p["context"], "qas": [question for question in p["qas"] if question["id"] in kept]}
            for p in article["paragraphs"]
        ]
        found = [paragraph for paragraph in found if paragraph["qas"]]
        if found:
            sampled.append({"title": article["title"], "paragraphs": found})
    return sampled


def write(path: Path, articles: list[Article]) -> None:
    questions = [question for article in articles for p in article["paragraphs"] for question in p["qas"]]
    content = json.dumps({"version": "v2.0", "data": articles}, ensure_ascii=False).encode()
    write_atomic(path, gzip.compress(content, mtime=0))
    without = sum(not question["answers"] for question in questions)
    print(f"{path}: {len(questions):,} questions, {without:,} without an answer, {len(articles):,} articles")


def main() -> int:
    try:
        run(tyro.cli(ReaderDataConfig, description=ReaderDataConfig.__doc__))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
