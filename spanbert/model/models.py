"""The encoder with a task's head on it: pretraining, question answering, token and sequence classification.

All take packed tokens (see ``packing``): input_ids (T,) int64, cu_seqlens (B + 1,) int32, max_seqlen, and where the
task has sentence pairs token_type_ids (T,).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from spanbert.model.config import EncoderConfig
from spanbert.model.encoder import Encoder, initialise
from spanbert.model.heads import MLMHead, Pooler, SBOHead
from spanbert.model.vocabulary_loss import VocabularyLoss, vocabulary_loss


class Targets(NamedTuple):
    """Where the objectives look in a packed batch of T tokens: M masked tokens in S spans, K of them with SBO target."""

    positions_M: Tensor  # int64, index into T
    ids_M: Tensor  # int64, the original tokens
    left_S: Tensor  # int64, index into T of the visible token before each span
    right_S: Tensor  # int64, … and after it
    span_M: Tensor  # int64, the span of each target
    offset_M: Tensor  # int64, its place in the span, from 0
    sbo_K: Tensor  # int64, which of the M targets have an SBO target


class SpanBertForPretraining(nn.Module):
    """Encoder + MLM head + SBO head; both heads predict with the input word embeddings."""

    def __init__(self, config: EncoderConfig, backend: str = "eager"):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, backend)
        self.mlm = MLMHead(config)
        self.sbo = SBOHead(config)
        initialise(self, config.initializer_range)

    def forward(
        self,
        input_ids_T: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        targets: Targets,
        with_sbo: bool = True,
        position_ids_T: Tensor | None = None,
    ) -> tuple[VocabularyLoss, VocabularyLoss | None]:
        """Summed losses (nats) over the batch's MLM and SBO targets (§3.3: the two are added, each over its own)."""
        hidden_TH = self.encoder(input_ids_T, cu_seqlens, max_seqlen, position_ids_T=position_ids_T)
        embedding_VH = self.encoder.embeddings.word.weight
        features_MH = self.mlm(hidden_TH[targets.positions_M])
        mlm = vocabulary_loss(features_MH, embedding_VH, self.mlm.bias, targets.ids_M, self.encoder.backend)
        if not with_sbo:
            return mlm, None
        span_K, offset_K = targets.span_M[targets.sbo_K], targets.offset_M[targets.sbo_K]
        features_KH = self.sbo(hidden_TH[targets.left_S], hidden_TH[targets.right_S], span_K, offset_K)
        return mlm, vocabulary_loss(
            features_KH, embedding_VH, self.sbo.bias, targets.ids_M[targets.sbo_K], self.encoder.backend
        )


class SpanBertForQuestionAnswering(nn.Module):
    """Start and end logits for every token from one linear layer (§5)."""

    def __init__(self, config: EncoderConfig, backend: str = "eager"):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, backend)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        initialise(self, config.initializer_range)

    def forward(
        self, input_ids_T: Tensor, cu_seqlens: Tensor, max_seqlen: int, token_type_ids_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """→ start_logits (T,), end_logits (T,)."""
        hidden_TH = self.encoder(input_ids_T, cu_seqlens, max_seqlen, token_type_ids_T)
        start_T, end_T = self.qa_outputs(hidden_TH).unbind(-1)
        return start_T, end_T


class SpanBertForTokenClassification(nn.Module):
    """A label for every token: dropout → linear."""

    def __init__(self, config: EncoderConfig, num_labels: int, backend: str = "eager"):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, backend)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        initialise(self, config.initializer_range)

    def forward(
        self, input_ids_T: Tensor, cu_seqlens: Tensor, max_seqlen: int, token_type_ids_T: Tensor | None = None
    ) -> Tensor:
        """→ logits (T, labels)."""
        return self.classifier(self.dropout(self.encoder(input_ids_T, cu_seqlens, max_seqlen, token_type_ids_T)))


class SpanBertForSequenceClassification(nn.Module):
    """A label for every sequence or pair: pooled [CLS] → dropout → linear."""

    def __init__(self, config: EncoderConfig, num_labels: int, backend: str = "eager"):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, backend)
        self.pooler = Pooler(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        initialise(self, config.initializer_range)

    def forward(
        self, input_ids_T: Tensor, cu_seqlens: Tensor, max_seqlen: int, token_type_ids_T: Tensor | None = None
    ) -> Tensor:
        """→ logits (B, labels)."""
        hidden_TH = self.encoder(input_ids_T, cu_seqlens, max_seqlen, token_type_ids_T)
        return self.classifier(self.dropout(self.pooler(hidden_TH, cu_seqlens)))
