"""The encoder with a task's head on it: pretraining, question answering, token and sequence classification.

All take a packed batch of B sequences and T tokens (``batch.PackedBatch``).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from spanbert.model.backend import resolve_backend
from spanbert.model.batch import PackedBatch, PairBatch, Targets
from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import Encoder, initialise
from spanbert.model.heads import MLMHead, Pooler, RelationHead, SBOHead
from spanbert.model.lora import LoRAConfig
from spanbert.model.vocabulary_loss import VocabularyLoss, vocabulary_loss


class AdaptedBase(NamedTuple):
    """Where a model with LoRA has its other weights from."""

    path: str
    """A model folder, or "bundled"."""
    sha256: str
    """Of its encoder's weights (``spanbert.checkpoint.adapter.encoder_sha256``)."""
    lora: LoRAConfig


class SpanBertModel(nn.Module):
    """What all models have; a task adds its head, then initialises the whole."""

    def __init__(self, config: EncoderConfig, backend: str = "eager"):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, backend)
        self.adapts: AdaptedBase | None = None
        """The model that this one is an adapter of: then the adapter alone is saved (``spanbert.checkpoint.adapter``)."""

    def place(self, device: torch.device, backend: str = "auto") -> Self:
        """Move to ``device``, and choose the attention that suits it and this shape (``resolve_backend``)."""
        self.encoder.backend = resolve_backend(backend, device, self.config.head_dim)
        return self.to(device)

    def add_words(self, count: int, seed: int) -> None:
        """More rows at the end of the word embeddings, initialised as all are, from ``seed``; before anything is trained.

        For models without a head over the vocabulary: one tied to the embeddings would keep its old bias.
        """
        old = self.encoder.embeddings.word
        self.config = dataclasses.replace(self.config, vocab_size=self.config.vocab_size + count)
        self.encoder.config = self.config
        rows = torch.empty(count, self.config.hidden_size)
        rows.normal_(std=self.config.initializer_range, generator=torch.Generator().manual_seed(seed))
        weight_VH = torch.cat([old.weight.detach(), rows.to(old.weight)])
        self.encoder.embeddings.word = nn.Embedding.from_pretrained(weight_VH, freeze=False)


class SpanBertForPretraining(SpanBertModel):
    """Encoder + MLM head + SBO head; both heads predict with the input word embeddings."""

    def __init__(self, config: EncoderConfig, backend: str = "eager"):
        super().__init__(config, backend)
        self.mlm = MLMHead(config)
        self.sbo = SBOHead(config)
        initialise(self, config.initializer_range)

    def forward(
        self, batch: PackedBatch[Tensor], targets: Targets[Tensor], with_sbo: bool = True
    ) -> tuple[VocabularyLoss, VocabularyLoss | None]:
        """Summed losses (nats) over the batch's MLM and SBO targets (§3.3: the two are added, each over its own)."""
        hidden_NH = self.encoder(*batch, wanted_N=targets.states(with_sbo))
        embedding_VH = self.encoder.embeddings.word.weight
        masked, spans = len(targets.positions_M), len(targets.left_S)
        features_MH = self.mlm(hidden_NH[:masked])
        mlm = vocabulary_loss(features_MH, embedding_VH, self.mlm.bias, targets.ids_M, self.encoder.backend)
        if not with_sbo:
            return mlm, None
        span_K, offset_K = targets.span_M[targets.sbo_K], targets.offset_M[targets.sbo_K]
        left_SH, right_SH = hidden_NH[masked:].split([spans, spans])
        features_KH = self.sbo(left_SH, right_SH, span_K, offset_K)
        return mlm, vocabulary_loss(
            features_KH, embedding_VH, self.sbo.bias, targets.ids_M[targets.sbo_K], self.encoder.backend
        )


class SpanBertForQuestionAnswering(SpanBertModel):
    """Start and end logits for every token from one linear layer (§5)."""

    def __init__(self, config: EncoderConfig, backend: str = "eager"):
        super().__init__(config, backend)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        initialise(self, config.initializer_range)

    def forward(self, batch: PackedBatch[Tensor]) -> tuple[Tensor, Tensor]:
        """→ start_logits (T,), end_logits (T,)."""
        hidden_TH = self.encoder(*batch)
        start_T, end_T = self.qa_outputs(hidden_TH).unbind(-1)
        return start_T, end_T


class SpanBertForTokenClassification(SpanBertModel):
    """A label for every token: dropout → linear."""

    def __init__(self, config: EncoderConfig, num_labels: int, backend: str = "eager"):
        super().__init__(config, backend)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        initialise(self, config.initializer_range)

    def forward(self, batch: PackedBatch[Tensor]) -> Tensor:
        """→ logits (T, labels)."""
        return self.classifier(self.dropout(self.encoder(*batch)))


class SpanBertForSequenceClassification(SpanBertModel):
    """A label for every sequence or pair: pooled [CLS] → dropout → linear."""

    def __init__(self, config: EncoderConfig, num_labels: int, backend: str = "eager"):
        super().__init__(config, backend)
        self.pooler = Pooler(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        initialise(self, config.initializer_range)

    def forward(self, batch: PackedBatch[Tensor]) -> Tensor:
        """→ logits (B, labels)."""
        hidden_BH = self.encoder(*batch, wanted_N=batch.cu_seqlens[:-1].long())
        return self.classifier(self.dropout(self.pooler(hidden_BH)))


class SpanBertForRelation(SpanBertModel):
    """A label for a pair of tokens of a sequence: dropout → a linear layer on their two states side by side."""

    def __init__(self, config: EncoderConfig, num_labels: int, backend: str = "eager"):
        super().__init__(config, backend)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.relation = RelationHead(config, num_labels)
        initialise(self, config.initializer_range)

    def forward(self, batch: PairBatch[Tensor]) -> Tensor:
        """→ logits (B, labels)."""
        hidden_NH = self.encoder(*batch.packed, wanted_N=batch.at_B2.T.flatten())
        first_BH, second_BH = self.dropout(hidden_NH).chunk(2)
        return self.relation(first_BH, second_BH)
