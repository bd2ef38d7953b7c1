"""BERT WordPiece: text to token ids with character offsets, and back.

Special tokens exist as ids only: text that contains a literal "[SEP]" or "[MASK]" is encoded like any other text
("[", "SE", "##P", "]"), so no document or question can close its own segment or plant a mask. Callers that want a
special token put its id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer as _Tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from spanbert.config import read_json_object
from spanbert.errors import UserError
from spanbert.files import write_atomic
from spanbert.tokenizer.word_cache import WordCache

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"
LONGEST_WORD = 100  # characters; BERT turns a longer word into one [UNK]


class Encoded(NamedTuple):
    """One text as tokens, without special tokens and never truncated."""

    ids: np.ndarray  # (n,) int32
    offsets: np.ndarray  # (n, 2) int32, [start, end) in characters of the text as given


class Tokenizer:
    """A WordPiece vocabulary with BERT's normaliser and word splitter (Devlin et al. 2019).

    vocabulary: token -> id, with ids exactly 0 … n-1 and the five special tokens under any id.
    lowercase: lower-case the text (BERT's "uncased"); strip_accents follows it unless given, as in BERT.
    split_chinese: every Chinese character is a word of its own.
    numbered: the vocabulary came with its ids; False when they are the line numbers of a vocab.txt, which a lost line
        would shift.
    Raises UserError when a special token is missing or an id is missing or used twice.
    """

    def __init__(
        self,
        vocabulary: dict[str, int],
        *,
        lowercase: bool = False,
        strip_accents: bool | None = None,
        split_chinese: bool = True,
        numbered: bool = True,
        source: str = "the vocabulary",
    ) -> None:
        missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if missing:
            raise UserError(f"{source} lacks {', '.join(missing)}: BERT needs all of {', '.join(SPECIAL_TOKENS)}")
        self.tokens: list[str] = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[token] for token in self.tokens] != list(range(len(self.tokens))):
            raise UserError(f"{source} does not number its {len(self.tokens)} tokens 0 to {len(self.tokens) - 1}")
        self.lowercase = lowercase
        self.strip_accents = strip_accents
        self.split_chinese = split_chinese
        self.numbered = numbered
        self._ids = dict(vocabulary)
        self._fast = self._build()
        strips = lowercase if strip_accents is None else strip_accents
        self._cache = WordCache(self._fast, by_character=not (lowercase or strips))

    def _build(self) -> _Tokenizer:
        # No special token is registered here: that is what keeps literal "[SEP]" in a text from becoming one.
        fast = _Tokenizer(models.WordPiece(self._ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
        fast.normalizer = bert_normalizer(self.lowercase, self.strip_accents, self.split_chinese)
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        fast.decoder = decoders.WordPiece(prefix=CONTINUATION)
        return fast

    def __reduce__(self):  # so that worker processes may receive one; the word cache stays behind
        return _rebuild, (self._ids, self.lowercase, self.strip_accents, self.split_chinese, self.numbered)

    # --- reading and writing -------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, *, lowercase: bool | None = None) -> Tokenizer:
        """Read a folder (tokenizer.json or vocab.txt), a vocab.txt or a tokenizer.json.

        Lower-casing comes from tokenizer.json or tokenizer_config.json. A bare vocab.txt does not say; it is taken
        as cased when a token of it has an upper-case letter. `lowercase` overrides all of these.
        Raises UserError that names the missing file or entry.
        """
        path = Path(path)
        if path.is_dir():
            for name in ("tokenizer.json", "vocab.txt"):
                if (path / name).is_file():
                    return cls.load(path / name, lowercase=lowercase)
            raise UserError(
                f"{path} holds neither tokenizer.json nor vocab.txt: name a folder or file with a vocabulary"
            )
        if not path.is_file():
            raise UserError(f"{path} does not exist: name a folder, a vocab.txt or a tokenizer.json")
        if path.suffix == ".json":
            vocabulary, settings = _read_tokenizer_json(path)
        else:
            vocabulary, settings = _read_vocab_txt(path)
        if lowercase is not None:
            settings["lowercase"] = lowercase
        return cls(vocabulary, source=str(path), **settings)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, vocab.txt and tokenizer_config.json, as transformers' AutoTokenizer reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        full = self._build()
        full.add_special_tokens(list(SPECIAL_TOKENS))
        full.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)],
        )
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.split_chinese,
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        }
        write_atomic(folder / "tokenizer.json", full.to_str(pretty=True))
        write_atomic(folder / "vocab.txt", "".join(f"{token}\n" for token in self.tokens))
        write_atomic(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")

    # --- text to ids and back ------------------------------------------------------------------------------------

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode texts on all cores; no special tokens, no truncation."""
        encodings = self._fast.encode_batch([whole_characters(t) for t in texts], add_special_tokens=False)
        return [
            Encoded(
                np.array(encoding.ids, dtype=np.int32),
                np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2),
            )
            for encoding in encodings
        ]

    def encode_ids(self, text: str) -> np.ndarray:
        """The ids of encode(text), (n,) int32, several times as fast: a word cache is kept between calls."""
        return self._cache.encode(whole_characters(text))

    def encode(self, text: str) -> Encoded:
        """Encode one text; no special tokens, no truncation."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Join tokens to text: spaces between words, none before punctuation; special tokens are shown."""
        return self._fast.decoder.decode([self.tokens[int(i)] for i in ids])

    def token(self, id: int) -> str:
        return self.tokens[id]

    def id(self, token: str) -> int | None:
        return self._ids.get(token)

    # --- facts about the vocabulary ------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def pad_id(self) -> int:
        return self._ids["[PAD]"]

    @property
    def unk_id(self) -> int:
        return self._ids["[UNK]"]

    @property
    def cls_id(self) -> int:
        return self._ids["[CLS]"]

    @property
    def sep_id(self) -> int:
        return self._ids["[SEP]"]

    @property
    def mask_id(self) -> int:
        return self._ids["[MASK]"]

    @cached_property
    def special_ids(self) -> np.ndarray:
        """(5,) int64: [PAD], [UNK], [CLS], [SEP], [MASK]."""
        return np.array([self._ids[token] for token in SPECIAL_TOKENS], dtype=np.int64)

    @cached_property
    def starts_word(self) -> np.ndarray:
        """(vocab_size,) bool: whether a token begins a word, that is, does not begin with "##".

        A lone "##" (the two characters cannot reach it: "#" is punctuation) counts as a word of its own.
        """
        return np.array([not t.startswith(CONTINUATION) or t == CONTINUATION for t in self.tokens], dtype=bool)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the tokens in order and the normaliser's settings: equal means equal ids for every text."""
        strip = self.lowercase if self.strip_accents is None else self.strip_accents
        content = [self.tokens, self.lowercase, strip, self.split_chinese]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _rebuild(
    ids: dict[str, int], lowercase: bool, strip_accents: bool | None, split_chinese: bool, numbered: bool
) -> Tokenizer:
    return Tokenizer(
        ids, lowercase=lowercase, strip_accents=strip_accents, split_chinese=split_chinese, numbered=numbered
    )


def whole_characters(text: str) -> str:
    """Halves of surrogate pairs, which JSON escapes can smuggle in, become U+FFFD; lengths stay, so offsets do too."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text


def bert_normalizer(lowercase: bool, strip_accents: bool | None, split_chinese: bool) -> normalizers.Normalizer:
    """Control characters, NUL and U+FFFD removed, white space unified, then the choices given."""
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )


def _read_vocab_txt(path: Path) -> tuple[dict[str, int], dict]:
    """One token a line; the line number is the id."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): expected one token a line") from error
    if lines[-1] == "":
        lines.pop()
    vocabulary: dict[str, int] = {}
    for number, line in enumerate(lines):
        token = line.rstrip("\r")
        if token in vocabulary:
            raise UserError(f"{path} line {number + 1}: {token!r} is already on line {vocabulary[token] + 1}")
        vocabulary[token] = number
    config_path = path.parent / "tokenizer_config.json"
    config = read_json_object(config_path, "a tokenizer's settings") if config_path.is_file() else {}
    lowercase = config.get("do_lower_case")
    if lowercase is None:
        lowercase = not any(c != c.lower() for t in vocabulary if not t.startswith("[") for c in t)
    settings = {
        "lowercase": lowercase,
        "strip_accents": config.get("strip_accents"),
        "split_chinese": config.get("tokenize_chinese_chars", True),
        "numbered": False,
    }
    return vocabulary, settings


def _read_tokenizer_json(path: Path) -> tuple[dict[str, int], dict]:
    content = read_json_object(path, "a tokenizer")
    model = content.get("model") or {}
    kind = model.get("type", "WordPiece" if "max_input_chars_per_word" in model else "unknown")
    splitter = (content.get("pre_tokenizer") or {}).get("type", "none")
    normalizer = content.get("normalizer") or {}
    found = f"{kind} model, {normalizer.get('type', 'no')} normalizer, {splitter} pre-tokenizer"
    if kind != "WordPiece" or splitter != "BertPreTokenizer" or normalizer.get("type") != "BertNormalizer":
        raise UserError(
            f"{path} is not a BERT tokenizer ({found}): expected WordPiece, BertNormalizer, BertPreTokenizer"
        )
    if model.get("continuing_subword_prefix", CONTINUATION) != CONTINUATION:
        raise UserError(f"{path} marks word continuations by {model['continuing_subword_prefix']!r}, expected '##'")
    try:
        vocabulary = dict(model["vocab"])
        for added in content.get("added_tokens") or []:
            vocabulary.setdefault(added["content"], added["id"])
        good = all(type(number) is int for number in vocabulary.values())
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f"{path}: expected a 'vocab' from tokens to ids, and 'added_tokens' with 'content' and 'id'")
    settings = {
        "lowercase": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "split_chinese": normalizer.get("handle_chinese_chars", True),
    }
    return vocabulary, settings
