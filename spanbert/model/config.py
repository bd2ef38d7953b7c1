"""The shape of the encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from spanbert.config import check_range, check_types
from spanbert.errors import UserError


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the encoder, with the key names of a Hugging Face BERT ``config.json``. Defaults: SpanBERT-base."""

    vocab_size: int = 28996
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int = 0
    sbo_positions: int = 20
    """Rows of the span-boundary position table: targets further into a span than this have no SBO target (§3.2)."""
    sbo_position_size: int = 200

    def __post_init__(self) -> None:
        """Raises UserError that names the field when a value is of the wrong type or cannot be."""
        check_types(self)
        check_range(self, 1, math.inf, *SIZE_FIELDS)
        check_range(self, 0, self.vocab_size - 1, "pad_token_id")
        check_range(self, 0, 1, "hidden_dropout_prob", "attention_probs_dropout_prob", below=True)
        check_range(self, 1e-15, 1e-2, "layer_norm_eps")
        check_range(self, 0, 1, "initializer_range")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def preset(cls, size: str, **overrides: Any) -> EncoderConfig:
        """``mini``, ``small``, ``base`` or ``large``, with any field overridden."""
        if size not in SIZES:
            raise UserError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")
        layers, hidden, heads, intermediate = SIZES[size]
        shape = {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": intermediate,
        }
        return cls(**{**shape, **overrides})


#: Fields that count or measure something there must be at least one of.
SIZE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "sbo_positions",
    "sbo_position_size",
)

#: size → (layers, hidden, heads, feed-forward)
SIZES = {
    "mini": (4, 256, 4, 1024),
    "small": (6, 384, 6, 1536),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}
