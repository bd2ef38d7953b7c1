"""Texts in their prompts as windows for ``SpanBertForPrompts``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from finetune.tasks.classification.features import SPECIALS, TextSet
from finetune.tasks.classification.prompt import Prompt
from finetune.tasks.classification.prompt_model import PromptBatch, WordTokens
from spanbert.model.batch import pack_sequences
from spanbert.spans.log_probs import Head
from spanbert.tokenizer.wordpiece import Tokenizer


@dataclass(frozen=True)
class Question:
    """What is asked of every text: the prompt, the words for its span, and which head answers."""

    prompt: Prompt
    words: Sequence[np.ndarray]
    """The tokens of each."""
    head: Head
    tokenizer: Tokenizer

    @cached_property
    def sizes(self) -> list[int]:
        """The different numbers of tokens that words have, ascending."""
        return sorted({len(word) for word in self.words})

    @cached_property
    def word_tokens(self) -> WordTokens[np.ndarray]:
        before = dict(zip(self.sizes, np.cumsum([0, *self.sizes]).tolist(), strict=False))
        return WordTokens(
            np.concatenate([before[len(word)] + np.arange(len(word)) for word in self.words]).astype(np.int64),
            np.concatenate(self.words).astype(np.int64),
            np.repeat(np.arange(len(self.words)), [len(word) for word in self.words]).astype(np.int64),
            np.array([len(word) for word in self.words], dtype=np.float32),
        )


@dataclass(frozen=True, kw_only=True)
class PromptSet(TextSet):
    """E texts, each in its prompt; what does not fit into a window beside the prompt is in a further one.

    ``window`` is the tokens of text that fit into one, and ``SPECIALS``.
    """

    question: Question

    @cached_property
    def lengths(self) -> np.ndarray:
        """(W,) int64: tokens of all sequences of a window."""
        sizes, prompt = self.question.sizes, self.question.prompt
        return self.room_E2[self.text_W, 0] * len(sizes) + sum(prompt.tokens + size + SPECIALS for size in sizes)

    def packed(self, windows: np.ndarray) -> PromptBatch[np.ndarray]:  # type: ignore[override]  # what this model takes
        question = self.question
        sequences = [
            question.prompt.filled(text, size, question.tokenizer)
            for (text,) in map(self._parts, np.asarray(windows))
            for size in question.sizes
        ]
        packed = pack_sequences([(one.ids,) for one in sequences], self.cls_id, self.sep_id)
        first_S = packed.cu_seqlens[:-1] + np.array([one.spans[0][0] for one in sequences], dtype=np.int64)
        count_S = np.tile(np.array(question.sizes, dtype=np.int64), len(windows))
        return PromptBatch(packed, first_S, count_S, question.word_tokens, len(windows), question.head)
