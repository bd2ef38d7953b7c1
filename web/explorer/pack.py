"""A model's weights as bytes that a page unpacks: fewer bits, then gzip.

int8   a matrix as one byte a number and one fp32 scale a row: round(w / scale), scale = max |w| / 127. Vectors stay fp32
       and the heads' own matrices bf16: they are small, and a head's error is not smoothed by the layers after it
first  the first rows as bf16, the others as int8: word embeddings, with which the heads predict. A vocabulary that was trained here
       names frequent tokens first; where one does not, nothing is gained and little lost
bf16   the upper half of each fp32, rounded to nearest; all upper bytes before all lower ones, for the exponents of
       neighbours are alike and are squeezed better on their own
"""

from __future__ import annotations

import gzip
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import normalizers, pre_tokenizers
from torch import Tensor

from spanbert.checkpoint.architectures import ENCODER_PREFIXES, WORDS
from spanbert.errors import UserError
from spanbert.tokenizer.wordpiece import Tokenizer

Precision = Literal["int8", "bf16"]

#: Rows of ``first`` that are bf16.
FIRST = 512


@dataclass(frozen=True)
class Packed:
    """Weights in one run of bytes, and what lies where in it: {name: {shape, kind, begin}}."""

    tensors: dict[str, dict[str, Any]]
    data: bytes

    @property
    def compressed(self) -> bytes:
        return gzip.compress(self.data, 9, mtime=0)


def pack(tensors: Mapping[str, Tensor], precision: Precision) -> Packed:
    """All tensors, in their order."""
    parts: list[bytes] = []
    entries: dict[str, dict[str, Any]] = {}
    begin = 0
    for name, tensor in tensors.items():
        kind = kind_of(name, tensor, precision)
        parts.append(KINDS[kind](tensor.detach().float()))
        entries[name] = {"shape": list(tensor.shape), "kind": kind, "begin": begin}
        if kind == "first":
            entries[name]["first"] = min(FIRST, len(tensor))
        begin += len(parts[-1])
    return Packed(entries, b"".join(parts))


def kind_of(name: str, tensor: Tensor, precision: Precision) -> str:
    """How a tensor is packed: a name of ``KINDS``."""
    if precision == "bf16":
        return "bf16"
    if tensor.dim() < 2:
        return "fp32"
    if name == WORDS:
        return "first"
    return "int8" if name.startswith(ENCODER_PREFIXES) else "bf16"


def int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C) → int8 (R, C) and the rows' scales, fp32 (R,); a row of zeros has scale 0."""
    scale_R = matrix.abs().amax(dim=1) / 127
    return torch.round(matrix / scale_R.clamp_min(1e-30)[:, None]).to(torch.int8), scale_R


def _int8_bytes(matrix: Tensor) -> bytes:
    numbers, scale_R = int8_rows(matrix)
    return scale_R.numpy().astype("<f4").tobytes() + numbers.numpy().tobytes()


def _first_bytes(matrix: Tensor) -> bytes:
    return _bf16_bytes(matrix[:FIRST]) + _int8_bytes(matrix[FIRST:])


def _bf16_bytes(tensor: Tensor) -> bytes:
    halves = (
        tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy().astype("<i2").view(np.uint8).reshape(-1, 2)
    )
    return halves[:, 1].tobytes() + halves[:, 0].tobytes()


def _fp32_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().astype("<f4").tobytes()


KINDS = {"first": _first_bytes, "int8": _int8_bytes, "bf16": _bf16_bytes, "fp32": _fp32_bytes}


def pack_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What ``wordpiece.js`` needs. Raises UserError for a tokenizer with what it does not do."""
    if tokenizer.added or not tokenizer.clean_text:
        what = "added tokens" if tokenizer.added else "control characters left in the text"
        raise UserError(f"the tokenizer has {what}, which a page does not do: take a model with a plain BERT tokenizer")
    strips = tokenizer.lowercase if tokenizer.strip_accents is None else tokenizer.strip_accents
    return {
        "tokens": tokenizer.tokens,
        "lowercase": tokenizer.lowercase,
        "stripAccents": strips,
        "splitChinese": tokenizer.split_chinese,
        "unknown": tokenizer.unk_token,
        "longestWord": tokenizer.longest_word,
        "characters": character_classes(),
    }


@cache
def character_classes() -> dict[str, list[tuple[int, int]]]:
    """Ranges of the code points that the tokenizers library drops, cuts at, and strips with the accents.

    Asked of the library itself, in one text of all characters: its tables are of another Unicode version than Python's or a
    browser's.
    """
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    cleaner = _bert_normalizer(clean_text=True)
    kept = set(cleaner.normalize_str("".join(every)))
    spaces = {character for character in every if character.isspace()}
    cut = pre_tokenizers.BertPreTokenizer().pre_tokenize_str("".join(f"a{character}" for character in every))
    stripper = _bert_normalizer(strip_accents=True)
    return {
        "control": _ranges(
            ord(c) for c in every if c not in kept and (c not in spaces or not cleaner.normalize_str(c))
        ),
        "punctuation": _ranges(ord(word) for word, _ in cut if len(word) == 1 and word != "a"),
        "accents": _ranges(
            ord(c) for c in every if unicodedata.category(c)[0] == "M" and not stripper.normalize_str(c)
        ),
    }


def _bert_normalizer(clean_text: bool = False, strip_accents: bool = False) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=clean_text, handle_chinese_chars=False, strip_accents=strip_accents, lowercase=False
    )


def _ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, last) of each unbroken run."""
    ranges: list[tuple[int, int]] = []
    for code in sorted(set(codes)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return ranges
