"""Pairs of entities as token sequences, one each, in one of three encodings (s subject, o object):

    mask       … [SUBJ-PER] … [OBJ-ORG] …             the entities replaced; `[CLS]` is classified (Zhang et al. 2017)
    markers    … [E1] s [/E1] … [E2] o [/E2] …         the two start markers are (Baldini Soares et al. 2019)
    typed      … [E1:PER] s [/E1:PER] … [E2:ORG] o …   markers that carry the type

Of a text longer than the model the part around the entities is seen; where they are too far apart, a part around each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from finetune.records import MalformedRecord
from finetune.tasks.relation.records import Pair, PairFile, Span
from finetune.token_texts import TokenTexts
from spanbert.model.batch import PairBatch, pack_sequences
from spanbert.tokenizer.wordpiece import Tokenizer

Encoding = Literal["mask", "markers", "typed"]
SPECIALS = 2  # [CLS] and [SEP]
LEAST = 16  # tokens of a window: two parts with a marker and a few words each


def tokens_around(encoding: Encoding, role: int, kind: str) -> tuple[str, ...]:
    """The tokens before and after an entity, or (mask) the one in its place. role: 0 subject, 1 object."""
    if encoding == "mask":
        return (f"[{('SUBJ', 'OBJ')[role]}{f'-{kind}' if kind else ''}]",)
    name = f"E{role + 1}{f':{kind}' if encoding == 'typed' else ''}"
    return f"[{name}]", f"[/{name}]"


def new_tokens(encoding: Encoding, types: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """All tokens of an encoding. types: of the subjects, of the objects."""
    found = dict.fromkeys(
        token for role in (0, 1) for kind in types[role] for token in tokens_around(encoding, role, kind)
    )
    return tuple(found)


@dataclass(frozen=True)
class PairSet:
    """E pairs as sequences of tokens without `[CLS]` and `[SEP]`."""

    cls_id: int
    sep_id: int
    pairs: list[Pair]
    texts: TokenTexts
    at_E2: np.ndarray  # int64, places in the sequence, `[CLS]` counted, of what is classified: subject, object
    label_E: np.ndarray  # int64, −1 where it is not known
    notes: list[str]

    @property
    def examples(self) -> int:
        return len(self.pairs)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(E,) int64."""
        return self.texts.lengths + SPECIALS

    @cached_property
    def bounds(self) -> np.ndarray:
        """(E + 1,) int64: one window each."""
        return np.arange(self.examples + 1)

    def packed(self, windows: np.ndarray) -> PairBatch[np.ndarray]:
        packed = pack_sequences([(self.texts[window],) for window in windows], self.cls_id, self.sep_id)
        return PairBatch(packed, packed.cu_seqlens[:-1, None] + self.at_E2[windows])

    def labels(self, windows: np.ndarray) -> np.ndarray:
        """(windows,) int64."""
        return self.label_E[windows]

    def count(self, windows: np.ndarray) -> int:
        return len(windows)

    def select(self, chosen: np.ndarray) -> PairSet:
        return replace(
            self,
            pairs=[self.pairs[e] for e in chosen],
            texts=TokenTexts.of([self.texts[e] for e in chosen]),
            at_E2=self.at_E2[chosen],
            label_E=self.label_E[chosen],
        )


def encode_pairs(
    file: PairFile, tokenizer: Tokenizer, encoding: Encoding, window: int, labels: tuple[str, ...]
) -> PairSet:
    """Pairs with a type of entity that the vocabulary has no token for are malformed records."""
    numbers = {label: number for number, label in enumerate(labels)}
    pairs, texts, places = [], [], []
    shortened = parted = 0
    for pair in file.pairs:
        try:
            ids, first, second = _tokens(pair, tokenizer, encoding)
        except MalformedRecord as error:
            file.report.malformed(pair.place, error)
            continue
        kept = _kept(len(ids), sorted((first, second)), window - SPECIALS)
        shortened += len(kept) < len(ids)
        parted += len(kept) > 0 and bool(kept[-1] - kept[0] >= len(kept))
        pairs.append(pair)
        texts.append(ids[kept])
        at = np.searchsorted(kept, [first, second]) + 1
        places.append([0, 0] if encoding == "mask" else at)
    notes = []
    if shortened:
        notes.append(f"{shortened:,} texts longer than {window} tokens, of which the part around the entities is seen")
    if parted:
        notes.append(f"{parted:,} of them with the entities so far apart that what lies between is left out")
    return PairSet(
        tokenizer.cls_id,
        tokenizer.sep_id,
        pairs,
        TokenTexts.of(texts),
        np.array(places, dtype=np.int64).reshape(-1, 2),
        np.array([-1 if pair.relation is None else numbers[pair.relation] for pair in pairs], dtype=np.int64),
        notes,
    )


def _tokens(pair: Pair, tokenizer: Tokenizer, encoding: Encoding) -> tuple[np.ndarray, int, int]:
    """→ tokens, and the places of the tokens that begin the subject and the object."""
    parts: list[np.ndarray] = []
    begins = [0, 0]
    end = 0
    ordered: list[tuple[Span, int]] = sorted([(pair.subject, 0), (pair.object, 1)])
    for span, role in ordered:
        around = []
        for token in tokens_around(encoding, role, span.type):
            number = tokenizer.id(token)
            if number is None:
                raise MalformedRecord("unknown type of entity", f"{span.type!r}: the model has no token {token}")
            around.append(np.array([number], dtype=np.int32))
        parts.append(tokenizer.encode_ids(pair.text[end : span.start]))
        begins[role] = sum(map(len, parts))
        parts.append(around[0])
        if encoding != "mask":
            parts += [tokenizer.encode_ids(pair.text[span.start : span.end]), around[1]]
        end = span.end
    parts.append(tokenizer.encode_ids(pair.text[end:]))
    return np.concatenate(parts), begins[0], begins[1]


def _kept(length: int, begins: list[int], room: int) -> np.ndarray:
    """Which of a text's tokens are seen, ascending: all, or ``room`` around the entities, or a half around each."""
    if length <= room:
        return np.arange(length)
    first, second = begins
    quarter = room // 4
    if second - first + 2 * quarter <= room:  # a stretch with a quarter of the room on either side, at least
        begin = min(max(0, (first + second + 1 - room) // 2), length - room)
        return np.arange(begin, begin + room)
    half = room // 2
    left = max(0, first - quarter)
    right = min(second - quarter, length - (room - half))
    return np.unique(np.concatenate([np.arange(left, left + half), np.arange(right, right + room - half)]))
