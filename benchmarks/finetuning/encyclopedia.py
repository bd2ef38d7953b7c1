"""An encyclopedia as documents to index, and the questions of a SQuAD file that are about its articles.

The corpus is text, plain, .gz or .xz: the title of an article is a line, each paragraph or heading another, and a blank line
ends the article. It becomes JSON lines with "id", "title" and "text", which `spanbert index` reads; the id is the title, with a
number behind it where a title comes again.
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from finetune.retrieval.terms import terms
from finetune.tasks.qa.records import read_questions
from spanbert.errors import UserError

GRAM = 5  # neighbouring terms that are looked for in the article
STANDS = 0.5  # share of its grams from which a paragraph counts as standing in an article
KEPT = 0.5  # share of standing paragraphs from which an article counts as being in the corpus


@dataclass(frozen=True)
class Article:
    """Of the corpus."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Asked:
    """A question about an article of the corpus."""

    id: str
    text: str
    answers: tuple[str, ...]
    paragraph: str  # that it was written for
    article: str  # the article's title
    answer_stands: bool  # whether the article of the corpus holds one of the answers, letter for letter


@dataclass(frozen=True)
class Match:
    """An article of the questions' file, and the share of its paragraphs that stand in the article of that title."""

    title: str
    questions: int
    standing: float | None  # None: the corpus has no article of that title

    @property
    def kept(self) -> bool:
        return self.standing is not None and self.standing >= KEPT


def read_articles(path: Path) -> Iterator[Article]:
    """In the corpus's order. Raises UserError for a file that cannot be read, or where an article is a title alone."""
    titles: Counter[str] = Counter()
    try:
        with _open(path) as lines:
            held: list[str] = []
            for line in lines:
                line = line.rstrip("\n")
                if line.strip():
                    held.append(line)
                elif held:
                    yield _article(path, held, titles)
                    held = []
            if held:
                yield _article(path, held, titles)
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}).") from None


def _open(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _article(path: Path, held: list[str], titles: Counter[str]) -> Article:
    title = held[0].strip()
    if len(held) < 2:
        raise UserError(f"{path}: article {title!r} has no text; expected a title, then a paragraph a line.")
    titles[title] += 1
    number = f" ({titles[title]})" if titles[title] > 1 else ""
    return Article(title + number, title, "\n".join(held[1:]))


def write_documents(corpus: Path, file: Path) -> int:
    """The articles as JSON lines; how many. The file is there when all of it is."""
    count = 0
    aside = file.with_suffix(".part")
    with aside.open("w", encoding="utf-8") as lines:
        for article in read_articles(corpus):
            lines.write(json.dumps(article.__dict__, ensure_ascii=False) + "\n")
            count += 1
    aside.replace(file)
    return count


def read_documents(file: Path) -> Iterator[Article]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield Article(**json.loads(line))


def match_questions(file: Path, articles: Iterator[Article]) -> tuple[list[Asked], list[Match]]:
    """The answerable questions whose article is in the corpus, by its title and by its paragraphs; what became of each article."""
    paragraphs = read_questions(file, "evaluate", check_offsets=False).paragraphs
    titles = {one.article: plain_title(one.article) for one in paragraphs}
    wanted = set(titles.values())
    texts: dict[str, list[str]] = {}
    for article in articles:
        if article.title in wanted:
            texts.setdefault(article.title, []).append(article.text)
    asked, matches = [], []
    for name, title in titles.items():
        own = [one for one in paragraphs if one.article == name]
        text = "\n".join(texts.get(title, []))
        held = grams(text)
        standing = sum(share_in(held, one.context) >= STANDS for one in own) / len(own) if text else None
        questions = [(one.context, question) for one in own for question in one.questions if question.answers]
        matches.append(Match(title, len(questions), standing))
        if matches[-1].kept:
            asked += [
                Asked(one.id, one.text, one.answers, context, title, any(answer in text for answer in one.answers))
                for context, one in questions
            ]
    return asked, matches


def plain_title(name: str) -> str:
    """SQuAD's ``Fresno,_California`` and ``Beyonc%C3%A9`` as the encyclopedia writes them."""
    return unquote(name).replace("_", " ")


def grams(text: str) -> set[tuple[str, ...]]:
    """Every run of GRAM terms."""
    found = terms(text)
    return set(zip(*(found[place:] for place in range(GRAM)), strict=False))


def share_in(held: set[tuple[str, ...]], paragraph: str) -> float:
    """Share of the paragraph's grams that are held; 0 for a paragraph shorter than one."""
    own = grams(paragraph)
    return len(own & held) / len(own) if own else 0.0
