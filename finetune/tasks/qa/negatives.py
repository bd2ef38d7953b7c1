"""Paragraphs that a question is trained on beside its own: like it, and without its answer.

They are the paragraphs of the same article that BM25 finds for the question, for these are what a search brings up beside
the right one (Clark & Gardner 2018). None holds a gold answer as the metric compares texts, not even inside a word. That is
distant supervision: a paragraph may still answer in other words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.retrieval.postings import PostingsBuilder, saturations, search_postings
from finetune.retrieval.terms import terms
from finetune.tasks.qa.metrics import normalize_answer
from finetune.tasks.qa.records import Paragraph, Question

#: Paragraphs looked at for each one wanted: those with the answer, which fit best, are left out.
LOOKED_AT = 4


def near_contexts(paragraphs: Sequence[Paragraph], ids: Sequence[str], count: int) -> np.ndarray:
    """For each question of ``ids`` the numbers of at most ``count`` other paragraphs, best first, then −1: (Q, K) int32.

    K is ``count``, or less where no article has so many others. Questions without an answer get none: nobody has looked
    whether another paragraph answers them.
    """
    place_of = {question: place for place, question in enumerate(ids)}
    articles: dict[str, list[int]] = {}
    for number, paragraph in enumerate(paragraphs):
        articles.setdefault(paragraph.article, []).append(number)
    count = min(count, max(map(len, articles.values()), default=1) - 1)
    near_QK = np.full((len(ids), count), -1, dtype=np.int32)
    for numbers in articles.values():
        pool = _Pool([paragraphs[number].context for number in numbers])
        for number in numbers:
            for question in paragraphs[number].questions:
                place = place_of.get(question.id)
                if place is None or question.impossible:
                    continue
                found = [numbers[one] for one in pool.without_answer(question, LOOKED_AT * count)]
                found = [one for one in found if one != number][:count]
                near_QK[place, : len(found)] = found
    return near_QK


def holds_answer(text: str, normal_text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the text, as SQuAD's metric compares them; normal_text: the text normalised."""
    for answer in answers:
        normal = normalize_answer(answer)
        if (normal in normal_text) if normal else (answer in text):
            return True
    return False


class _Pool:
    """The paragraphs of an article, to search."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.normal = [normalize_answer(text) for text in texts]
        found = [terms(text) for text in texts]
        builder = PostingsBuilder()
        for one in found:
            builder.add(one)
        self.postings = builder.finish()
        self.saturation_N = saturations(np.array([len(one) for one in found]))

    def without_answer(self, question: Question, count: int) -> list[int]:
        """Of the ``count`` best by BM25 those that do not hold an answer, best first."""
        best, _ = search_postings(self.postings, self.saturation_N, terms(question.text), count)
        return [
            number
            for number in map(int, best)
            if not holds_answer(self.texts[number], self.normal[number], question.answers)
        ]
