"""BERT WordPiece: text to token ids with character offsets, and back.

Special tokens exist as ids only: text that contains a literal "[SEP]" or "[MASK]" is encoded like any other text
("[", "SE", "##P", "]"), so no document or question can close its own segment or plant a mask. Callers that want a
special token put its id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken as _AddedToken
from tokenizers import Tokenizer as _Tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from spanbert.errors import UserError, note
from spanbert.files import write_atomic
from spanbert.tokenizer.vocabulary_files import (
    CONTINUATION,
    LONGEST_WORD,
    SPECIAL_TOKENS,
    AddedToken,
    read_tokenizer,
)
from spanbert.tokenizer.word_cache import WordCache


class Encoded(NamedTuple):
    """One text as tokens, without special tokens and never truncated."""

    ids: np.ndarray  # (n,) int32
    offsets: np.ndarray  # (n, 2) int32, [start, end) in characters of the text as given


class Tokenizer:
    """A WordPiece vocabulary with BERT's normaliser and word splitter (Devlin et al. 2019).

    vocabulary: token -> id, with ids exactly 0 … n-1 and the five special tokens under any id.
    lowercase: lower-case the text (BERT's "uncased"); strip_accents follows it unless given, as in BERT.
    split_chinese: every Chinese character is a word of its own.
    clean_text: control characters vanish, and white space of all kinds is a space.
    unk_token: the name of the token for unknown words. longest_word: characters; a longer word is unknown.
    added: tokens that are found in the text before it is split into words, such as entity markers.
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
        clean_text: bool = True,
        unk_token: str = "[UNK]",
        longest_word: int = LONGEST_WORD,
        added: tuple[AddedToken, ...] = (),
        numbered: bool = True,
        source: str = "the vocabulary",
    ) -> None:
        self.special_tokens = tuple(unk_token if token == "[UNK]" else token for token in SPECIAL_TOKENS)
        missing = [token for token in self.special_tokens if token not in vocabulary]
        if missing:
            raise UserError(f"{source} lacks {', '.join(missing)}: BERT needs all of {', '.join(self.special_tokens)}")
        self.tokens: list[str] = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[token] for token in self.tokens] != list(range(len(self.tokens))):
            raise UserError(f"{source} does not number its {len(self.tokens)} tokens 0 to {len(self.tokens) - 1}")
        self.lowercase = lowercase
        self.strip_accents = strip_accents
        self.split_chinese = split_chinese
        self.clean_text = clean_text
        self.unk_token = unk_token
        self.longest_word = longest_word
        # The five special tokens are never looked for in a text: a literal "[SEP]" in it must not become one.
        self.added = tuple(token for token in added if token.content not in self.special_tokens)
        self.numbered = numbered
        self._ids = dict(vocabulary)
        self._fast = self._build()
        for token, (content, _) in zip(self.added, self._added_contents, strict=True):
            if not content:  # the library would find it between any two characters
                raise UserError(f"{source}: nothing of the added token {token.content!r} is left once it is normalised")
            if self._fast.token_to_id(token.content) != vocabulary[token.content]:
                raise UserError(
                    f"{source}: the added token {token.content!r} has the id {vocabulary[token.content]}, expected the "
                    "added tokens to be numbered after the vocabulary"
                )
        strips = lowercase if strip_accents is None else strip_accents
        self._cache = WordCache(self._fast, by_character=not (lowercase or strips))

    def _build(self) -> _Tokenizer:
        # Words never become an added token that the vocabulary proper lacks, so those stay out of it: they stand last.
        last = len(self._ids)
        own = {token.content: self._ids[token.content] for token in self.added if not token.in_vocabulary}
        while own and self.tokens[last - 1] in own:
            last -= 1
        words = {token: number for token, number in self._ids.items() if number < last}
        fast = _Tokenizer(models.WordPiece(words, unk_token=self.unk_token, max_input_chars_per_word=self.longest_word))
        fast.normalizer = normalizers.BertNormalizer(
            clean_text=self.clean_text,
            handle_chinese_chars=self.split_chinese,
            strip_accents=self.strip_accents,
            lowercase=self.lowercase,
        )
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        fast.decoder = decoders.WordPiece(prefix=CONTINUATION)
        for token in sorted(self.added, key=lambda token: self._ids[token.content]):
            flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            added = _AddedToken(token.content, **flags)
            fast.add_special_tokens([added]) if token.special else fast.add_tokens([added])
        return fast

    def __reduce__(self) -> tuple[Any, ...]:
        # For worker processes, which may receive one; the word cache stays behind.
        return _rebuild, (self._ids, self._settings())

    def _settings(self) -> dict[str, Any]:
        names = ("lowercase", "strip_accents", "split_chinese", "clean_text", "unk_token", "longest_word", "added")
        return {name: getattr(self, name) for name in (*names, "numbered")}

    # --- reading and writing -------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, *, lowercase: bool | None = None) -> Tokenizer:
        """Read a folder (tokenizer.json or vocab.txt), a vocab.txt or a tokenizer.json.

        Where tokenizer.json and tokenizer_config.json disagree on lower-casing, the latter decides, as in transformers 5.
        A bare vocab.txt does not say; it is taken as cased when a token of it has an upper-case letter. `lowercase`
        overrides all of these. What is odd about the files is printed, once, to standard error.
        Raises UserError that names the missing file or entry.
        """
        files = read_tokenizer(Path(path))
        if lowercase is not None:
            files.settings["lowercase"] = lowercase
        elif files.guess is not None:
            files.notes.append(files.guess)
        for line in files.notes:
            note(line)
        return cls(files.vocabulary, source=str(files.path), **files.settings)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, vocab.txt and tokenizer_config.json, as transformers' AutoTokenizer reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        full = self._build()
        full.add_special_tokens(list(self.special_tokens))
        full.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)],
        )
        # transformers' BertTokenizer takes these two from nowhere; its other class reads tokenizer.json as it is
        is_plain = self.clean_text and self.longest_word == LONGEST_WORD
        settings: dict[str, Any] = {
            "tokenizer_class": "BertTokenizer" if is_plain else "PreTrainedTokenizerFast",
            "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.split_chinese,
            "pad_token": "[PAD]",
            "unk_token": self.unk_token,
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        }
        if self.added:
            settings["added_tokens_decoder"] = {self._ids[token.content]: token.as_json() for token in self.added}
        # tokenizer.json is read first and so is written last: until it stands there, the other two are a whole tokenizer
        write_atomic(folder / "vocab.txt", "".join(f"{token}\n" for token in self.tokens))
        write_atomic(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
        write_atomic(folder / "tokenizer.json", full.to_str(pretty=True))

    def with_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """The same with more tokens at the end of the vocabulary; itself when it has them all.

        Callers put their ids, as those of the special tokens. No text becomes one where its name holds punctuation
        ("[E1]"), at which words are split.
        """
        more = [token for token in dict.fromkeys(tokens) if token not in self._ids]
        if not more:
            return self
        vocabulary = self._ids | {token: number for number, token in enumerate(more, self.vocab_size)}
        return Tokenizer(vocabulary, **self._settings())

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
        text = whole_characters(text)
        if self.added and self._may_hold_added(text):
            return np.array(self._fast.encode(text, add_special_tokens=False).ids, dtype=np.int32)
        return self._cache.encode(text)

    def _may_hold_added(self, text: str) -> bool:
        """Whether the library could find an added token in the text: such a text is not one of words alone."""
        if any(content in text for content, looks_normalized in self._added_contents if not looks_normalized):
            return True
        after = [content for content, looks_normalized in self._added_contents if looks_normalized]
        normalized = self._fast.normalizer.normalize_str(text) if after else ""
        return any(content in normalized for content in after)

    @cached_property
    def _added_contents(self) -> list[tuple[str, bool]]:
        normalize = self._fast.normalizer.normalize_str
        return [(normalize(t.content) if t.normalized else t.content, t.normalized) for t in self.added]

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

    def missing_characters(self, text: str) -> Counter[str]:
        """Characters of a text that no token of one character stands for, with their counts, once normalised."""
        counts = Counter(self._fast.normalizer.normalize_str(whole_characters(text)))
        return Counter(
            {
                character: count
                for character, count in counts.items()
                if not character.isspace() and character not in self._ids and CONTINUATION + character not in self._ids
            }
        )

    # --- facts about the vocabulary ------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def pad_id(self) -> int:
        return self._ids["[PAD]"]

    @property
    def unk_id(self) -> int:
        return self._ids[self.unk_token]

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
        return np.array([self._ids[token] for token in self.special_tokens], dtype=np.int64)

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
        content: list[Any] = [self.tokens, self.lowercase, strip, self.split_chinese]
        unusual = [self.clean_text, self.unk_token, self.longest_word, [token.as_json() for token in self.added]]
        if unusual != [True, "[UNK]", LONGEST_WORD, []]:
            content += unusual
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _rebuild(ids: dict[str, int], settings: dict[str, Any]) -> Tokenizer:
    return Tokenizer(ids, **settings)


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
