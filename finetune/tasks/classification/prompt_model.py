"""The pretraining heads as a classifier: for each text in its prompt, how well every label's word fits the masked span.

A text is asked once for each length that a word has (``… It was [MASK].``, ``… It was [MASK] [MASK].``), so a window is that
many sequences, one after the other, the shortest span first.
"""

from __future__ import annotations

from typing import Generic, NamedTuple

import torch
from torch import Tensor

from spanbert.model.batch import A, PackedBatch, as_tensor
from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.spans.log_probs import Head, log_probs_in_spans


class WordTokens(NamedTuple, Generic[A]):
    """The K tokens of L words. A window has R masked tokens: of its first span, then of its second one …"""

    row_K: A  # int64, the masked token of a window that this token is to stand in
    token_K: A  # int64, its id
    word_K: A  # int64, the word that it is of
    tokens_L: A  # float32, how many each word has


class PromptBatch(NamedTuple, Generic[A]):
    """Windows for ``SpanBertForPrompts``. It has of a ``PackedBatch`` what every task's loop and prediction need."""

    packed: PackedBatch[A]  # windows × lengths of words sequences
    first_S: A  # int64, index into T of the first masked token of each sequence
    count_S: A  # int64, its masked tokens
    words: WordTokens[A]
    windows: int
    head: Head

    @property
    def cu_seqlens(self) -> A:
        return self.packed.cu_seqlens

    def tensors(self: PromptBatch, pin: bool = False) -> PromptBatch[Tensor]:
        """The same as tensors over the same memory, or (``pin``) in page-locked memory."""
        words = WordTokens(*(as_tensor(array, pin) for array in self.words))
        first_S, count_S = as_tensor(self.first_S, pin), as_tensor(self.count_S, pin)
        return self._replace(packed=self.packed.tensors(pin), first_S=first_S, count_S=count_S, words=words)

    def to(self: PromptBatch, device: torch.device) -> PromptBatch[Tensor]:
        words = WordTokens(*(tensor.to(device, non_blocking=True) for tensor in self.words))
        first_S, count_S = (tensor.to(device, non_blocking=True) for tensor in (self.first_S, self.count_S))
        return self._replace(packed=self.packed.to(device), first_S=first_S, count_S=count_S, words=words)


class SpanBertForPrompts(SpanBertForPretraining):
    """Scores of words in masked spans, as ``spanbert classify`` has them: the mean log-probability of a word's tokens.

    head: which of the two pretraining heads are trained. A model whose MLM head alone is has no SBO head, for that would
    not follow the encoder; where the SBO head alone is trained, the MLM head stays as it was, as BERT files have one.
    """

    def __init__(self, config: EncoderConfig, head: Head = "both", backend: str = "eager"):
        super().__init__(config, backend)
        if head == "mlm":
            del self.sbo
        if head == "sbo":
            self.mlm.requires_grad_(False)

    def forward(self, batch: PromptBatch[Tensor]) -> Tensor:  # type: ignore[override]  # one batch, as all tasks' models
        """→ (W, L) fp32, W windows and L words; differentiable."""
        hidden_TH = self.encoder(*batch.packed)
        log_probs_MV, _ = log_probs_in_spans(self, hidden_TH, batch.first_S, batch.count_S, batch.head)
        row_K, token_K, word_K, tokens_L = batch.words
        of_words_WK = log_probs_MV.unflatten(0, (batch.windows, -1))[:, row_K, token_K]
        sums_WL = of_words_WK.new_zeros(len(of_words_WK), len(tokens_L)).index_add(1, word_K, of_words_WK)
        return sums_WL / tokens_L
