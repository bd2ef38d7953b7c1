"""Fills: how often a model writes what stood in a hidden span of held-out text, number of tokens given.

Spans are found by a rule, for a tagger would be another model with opinions of its own:

    name    1 to 3 words, each of letters, a capital first and at least two; the longest such run; before it a word in small
            letters, a number or a comma, so that no sentence and no heading begins there; after it no capital
    year    digits, 1000 to 2099
    number  other digits; neither has a number on its other side of a point, a comma, a colon, a dash or a slash
    other   1 to 3 words in small letters, anywhere

Weekdays and months are names, too. A fill is right when every token is the most probable one at its place; heads predict all
places of a span at once. Several spans of a block are hidden together, far from each other. Where the very words stand
elsewhere in the visible block, they can be copied: those spans are counted apart from *fresh* ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.ablation.mechanism.spans import BATCH
from pretrain.data.blocks import Blocks
from spanbert.device import autocast
from spanbert.model.models import SpanBertForPretraining
from spanbert.spans.log_probs import Head, span_log_probs
from spanbert.spans.template import Masked
from spanbert.tokenizer.wordpiece import Tokenizer

#: (kind, words), in the order in which a block's spans are chosen: what is rare comes first.
GROUPS = (
    ("name", 3), ("year", 1), ("number", 1), ("name", 2), ("name", 1), ("other", 3), ("other", 2), ("other", 1)
)  # fmt: skip
NAMES, OTHERS = (("name", 1), ("name", 2), ("name", 3)), (("other", 1), ("other", 2), ("other", 3))
#: Visible tokens between two hidden spans, at least.
APART = 12
#: Spans of a group in one block.
IN_A_BLOCK = 2
#: Tokens of a span; more would leave the SBO head's table of places in models made for short spans.
LONGEST_SPAN = 20
JOINS_NUMBERS = frozenset(".,:/-–—")


@dataclass(frozen=True)
class Hole:
    """A hidden span: [start, end) in the block's tokens without [CLS]."""

    group: tuple[str, int]
    start: int
    end: int


@dataclass(frozen=True)
class FillTask:
    """A block with its holes filled with [MASK], in order, and what stood there."""

    masked: Masked
    groups: tuple[tuple[str, int], ...]
    answers: tuple[tuple[int, ...], ...]
    fresh: tuple[bool, ...]


def find_tasks(blocks: Blocks, indices: np.ndarray, tokenizer: Tokenizer, most: int) -> list[FillTask]:
    """Up to ``most`` holes of each group in these blocks, the same in every call."""
    found: Counter[tuple[str, int]] = Counter()
    tasks = []
    for index in indices.tolist():
        packed, _ = blocks.packed(np.array([index]))
        ids = packed.input_ids_T[1:-1].tolist()
        rng = np.random.Generator(np.random.Philox(key=[0, index]))
        holes = choose_holes(candidates(ids, tokenizer), rng, {group: most - found[group] for group in GROUPS})
        if holes:
            found.update(hole.group for hole in holes)
            tasks.append(hide_holes(ids, holes, tokenizer.mask_id))
    return tasks


def candidates(ids: Sequence[int], tokenizer: Tokenizer) -> list[Hole]:
    """All spans that the rule allows. A block may begin and end inside a word, so its first and last word are never in one."""
    starts_word, special = tokenizer.starts_word, set(tokenizer.special_ids.tolist())
    begins = [place for place, token in enumerate(ids) if place == 0 or starts_word[token]]
    bounds = list(zip(begins, [*begins[1:], len(ids)]))
    words = [
        "" if any(token in special for token in ids[start:end])
        else "".join(tokenizer.token(token).removeprefix("##") for token in ids[start:end])
        for start, end in bounds
    ]  # fmt: skip
    found = [(kind, first, count) for kind, first, count in spans_of_words(words) if 0 < first < len(words) - count]
    holes = [Hole((kind, count), bounds[first][0], bounds[first + count - 1][1]) for kind, first, count in found]
    return [hole for hole in holes if hole.group in GROUPS and hole.end - hole.start <= LONGEST_SPAN]


def spans_of_words(words: Sequence[str]) -> list[tuple[str, int, int]]:
    """(kind, first word, number of words) of every span that the rule allows; an empty word is in none."""
    found: list[tuple[str, int, int]] = []
    capital = [len(word) > 1 and word.isalpha() and word[0].isupper() for word in words]
    small = [word.isalpha() and word.islower() for word in words]
    digits = [word.isascii() and word.isdecimal() for word in words]
    place = 0
    while place < len(words):
        end = place
        while end < len(words) and capital[end]:
            end += 1
        if place < end <= place + 3 and place and (small[place - 1] or digits[place - 1] or words[place - 1] == ","):
            if end == len(words) or not words[end][:1].isupper():
                found.append(("name", place, end - place))
        if digits[place] and not _joined(words, digits, place, -1) and not _joined(words, digits, place, 1):
            year = len(words[place]) == 4 and 1000 <= int(words[place]) < 2100
            found.append(("year" if year else "number", place, 1))
        place = max(end, place + 1)
    for first in range(len(words)):
        found += [("other", first, n) for n in (1, 2, 3) if first + n <= len(words) and all(small[first : first + n])]
    return found


def _joined(words: Sequence[str], digits: Sequence[bool], place: int, side: int) -> bool:
    """Whether a number is part of one that goes on in this direction, as in 1,000 or 3.5."""
    beside, beyond = place + side, place + 2 * side
    return 0 <= beyond < len(words) and words[beside] in JOINS_NUMBERS and digits[beyond]


def choose_holes(found: Sequence[Hole], rng: np.random.Generator, room: dict[tuple[str, int], int]) -> list[Hole]:
    """Some of a block's candidates, APART from each other, in the order of the text; ``room``: how many of each group."""
    chosen: list[Hole] = []
    for group in GROUPS:
        own = [hole for hole in found if hole.group == group]
        left = min(room[group], IN_A_BLOCK)
        for at in rng.permutation(len(own)).tolist():
            hole = own[at]
            if left and all(hole.end + APART <= one.start or one.end + APART <= hole.start for one in chosen):
                chosen.append(hole)
                left -= 1
    return sorted(chosen, key=lambda hole: hole.start)


def hide_holes(ids: Sequence[int], holes: Sequence[Hole], mask_id: int) -> FillTask:
    visible = list(ids)
    for hole in holes:
        visible[hole.start : hole.end] = [mask_id] * (hole.end - hole.start)
    answers = [tuple(ids[hole.start : hole.end]) for hole in holes]
    fresh = [
        not any(
            tuple(visible[at : at + len(answer)]) == answer for at, token in enumerate(visible) if token == answer[0]
        )
        for answer in answers
    ]
    spans = [(1 + hole.start, 1 + hole.end) for hole in holes]
    return FillTask(Masked(visible, spans), tuple(hole.group for hole in holes), tuple(answers), tuple(fresh))


def score_answers(log_probs_MV: Tensor, answers: Sequence[tuple[int, ...]]) -> list[tuple[bool, float]]:
    """Of one task: for each hole whether every token is the most probable, and −log p of the answer, nats a token."""
    ids_M = torch.tensor([token for answer in answers for token in answer], device=log_probs_MV.device)
    right_M = (log_probs_MV.argmax(-1) == ids_M).tolist()
    loss_M = (-log_probs_MV.gather(1, ids_M[:, None])[:, 0]).tolist()
    scores, begin = [], 0
    for answer in answers:
        own = slice(begin, begin + len(answer))
        scores.append((all(right_M[own]), math.fsum(loss_M[own]) / len(answer)))
        begin += len(answer)
    return scores


@torch.inference_mode()
def score_fills(
    model: SpanBertForPretraining,
    tokenizer: Tokenizer,
    tasks: Sequence[FillTask],
    heads: Sequence[Head],
    precision: str,
) -> dict[str, Any]:
    """Head → group ("name 2") → spans, exact (share that is right), nats (a token), and spans and exact of fresh ones."""
    result: dict[str, Any] = {}
    for head in heads:
        rows: dict[str, list[tuple[bool, float, bool]]] = {}
        for begin in range(0, len(tasks), BATCH):
            some = tasks[begin : begin + BATCH]
            with autocast(model.mlm.bias.device, precision):
                found = span_log_probs(model, tokenizer, [task.masked for task in some], head)
            for task, log_probs_MV in zip(some, found, strict=True):
                scores = score_answers(log_probs_MV, task.answers)
                for (kind, words), (right, nats), fresh in zip(task.groups, scores, task.fresh, strict=True):
                    rows.setdefault(f"{kind} {words}", []).append((right, nats, fresh))
        result[head] = {f"{k} {n}": _share(rows[f"{k} {n}"]) for k, n in sorted(GROUPS) if f"{k} {n}" in rows}
    return result


def _share(rows: Sequence[tuple[bool, float, bool]]) -> dict[str, Any]:
    fresh = [right for right, _, is_fresh in rows if is_fresh]
    return {
        "spans": len(rows),
        "exact": sum(right for right, _, _ in rows) / len(rows),
        "nats": math.fsum(nats for _, nats, _ in rows) / len(rows),
        "fresh_spans": len(fresh),
        "fresh_exact": sum(fresh) / len(fresh) if fresh else None,
    }
