"""A small vocabulary and a model with MLM and SBO heads, for whoever looks at masked spans."""

from __future__ import annotations

import torch

from spanbert.model.config import EncoderConfig
from spanbert.model.models import SpanBertForPretraining
from spanbert.tokenizer.wordpiece import SPECIAL_TOKENS, Tokenizer

WORDS = [
    "the",
    "capital",
    "city",
    "of",
    "France",
    "Spain",
    "Italy",
    "is",
    "Paris",
    "Madrid",
    "Rome",
    "big",
    "old",
    "sunny",
    "un",
    "##like",
    "##ly",
    ".",
    ",",
]
TOKENIZER = Tokenizer({token: number for number, token in enumerate([*SPECIAL_TOKENS, *WORDS])})
HEADS = ("mlm", "sbo", "both")


def small_model(seed: int = 0, vocab_size: int = len(WORDS) + 5) -> SpanBertForPretraining:
    config = EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        max_position_embeddings=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        sbo_positions=6,
        sbo_position_size=16,
    )
    torch.manual_seed(seed)
    return SpanBertForPretraining(config).eval()
