"""The heads. Each sees only the hidden states it needs: targets are gathered first, then projected.

MLM and SBO predict over the vocabulary with the input word embeddings (§3.2: shared), each with a bias of its own. They
return the *features* that are multiplied with the embeddings; ``vocabulary_loss`` does the rest in bounded memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert.model.config import EncoderConfig


class MLMHead(nn.Module):
    """BERT's masked-language-model head: dense → GELU → LayerNorm, then · Eᵀ + bias."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_MH: Tensor) -> Tensor:
        """Hidden states of the M targets → features (M, H)."""
        return self.norm(F.gelu(self.dense(hidden_MH)))


class SBOHead(nn.Module):
    """The span-boundary objective (§3.2): a target from the two visible tokens around its span and its place in it.

        h0 = [x_left ; x_right ; p_offset]      h1 = LN(GELU(W1 h0))      y = LN(GELU(W2 h1))

    W1 h0 is never built from a concatenation: W1 = [W_left W_right W_position], the first two products are made once a
    span, the third once a table row, and a target gathers and adds the three.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        hidden = config.hidden_size
        self.position = nn.Embedding(config.sbo_positions, config.sbo_position_size)
        self.left = nn.Linear(hidden, hidden, bias=False)
        self.right = nn.Linear(hidden, hidden, bias=False)
        self.from_position = nn.Linear(config.sbo_position_size, hidden)  # carries the bias of W1
        self.norm1 = nn.LayerNorm(hidden, config.layer_norm_eps)
        self.dense2 = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, left_SH: Tensor, right_SH: Tensor, span_K: Tensor, offset_K: Tensor) -> Tensor:
        """Boundary states of S spans, then for each of K targets its span and its offset in it → features (K, H)."""
        table_PH = self.from_position(self.position.weight)
        boundary_SH = self.left(left_SH) + self.right(right_SH)
        h0_KH = boundary_SH[span_K] + table_PH[offset_K]
        h1_KH = self.norm1(F.gelu(h0_KH))
        return self.norm2(F.gelu(self.dense2(h1_KH)))


class Pooler(nn.Module):
    """BERT's pooler: tanh(dense(hidden state of [CLS]))."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BH: Tensor) -> Tensor:
        """Hidden states of the B [CLS] tokens → (B, H)."""
        return torch.tanh(self.dense(hidden_BH))


class RelationHead(nn.Module):
    """W [x_first ; x_second] + b (Baldini Soares et al. 2019), the two halves of W apart: no concatenation is built."""

    def __init__(self, config: EncoderConfig, num_labels: int):
        super().__init__()
        self.first = nn.Linear(config.hidden_size, num_labels, bias=False)
        self.second = nn.Linear(config.hidden_size, num_labels)  # carries the bias
        self.out_features = num_labels

    def forward(self, first_BH: Tensor, second_BH: Tensor) -> Tensor:
        """→ (B, labels)."""
        return self.first(first_BH) + self.second(second_BH)
