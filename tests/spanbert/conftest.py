"""Twins: a transformers BERT and one of our models with the same weights, on the same ragged batch."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import Tensor, nn

from spanbert.checkpoint.model_folder import fill_model
from spanbert.checkpoint.weight_names import groups_of, usual_names
from spanbert.model.config import EncoderConfig
from spanbert.model.packing import pack


@dataclass(frozen=True)
class Batch:
    """The same sequences padded, for transformers, and packed, for us."""

    ids_BL: Tensor
    types_BL: Tensor
    real_BL: Tensor  # bool
    ids_T: Tensor
    types_T: Tensor
    cu_seqlens: Tensor
    longest: int

    @property
    def padded(self) -> dict[str, Tensor]:
        return {"input_ids": self.ids_BL, "token_type_ids": self.types_BL, "attention_mask": self.real_BL.long()}


def _shape(seed: int) -> EncoderConfig:
    """A small shape that differs from seed to seed in every dimension that a BERT has."""
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3, 4, 6])
    hidden = heads * draw.choice([8, 12, 16, 20, 32])
    return EncoderConfig(
        vocab_size=draw.randrange(60, 300),
        hidden_size=hidden,
        num_hidden_layers=draw.randrange(1, 5),
        num_attention_heads=heads,
        intermediate_size=draw.choice([hidden, 2 * hidden, 4 * hidden, 37]),
        max_position_embeddings=draw.choice([20, 33, 64]),
        type_vocab_size=draw.choice([1, 2, 3]),
        layer_norm_eps=draw.choice([1e-12, 1e-5]),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        sbo_positions=draw.randrange(4, 12),
        sbo_position_size=draw.choice([8, 50]),
    )


def _batch(config: EncoderConfig, seed: int) -> Batch:
    """Ragged: 4 to 7 sequences, among them one of a single token, two of equal length and one as long as allowed.

    Never [PAD] (0), which no text holds: transformers gives its embedding no gradient.
    """
    draw = random.Random(1000 + seed)
    generator = torch.Generator().manual_seed(seed)
    most = config.max_position_embeddings
    lengths = [draw.randrange(1, most + 1) for _ in range(draw.randrange(0, 4))] + [1, most, 9, 9]
    draw.shuffle(lengths)
    lengths_B = torch.tensor(lengths)
    ids_BL = torch.randint(1, config.vocab_size, (len(lengths), most), generator=generator)
    types_BL = torch.randint(0, config.type_vocab_size, ids_BL.shape, generator=generator)
    real_BL = torch.arange(most) < lengths_B[:, None]
    ids_T, cu_seqlens = pack(ids_BL, lengths_B)
    types_T, _ = pack(types_BL, lengths_B)
    return Batch(ids_BL, types_BL, real_BL, ids_T, types_T, cu_seqlens, most)


def _randomise(model: nn.Module, seed: int) -> None:
    """Every parameter away from its initial value: a bias of zero or a gain of one would hide a forgotten term."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = name.endswith(("LayerNorm.weight", "norm1.weight", "norm2.weight", "norm.weight"))
            parameter.copy_(1 + 0.2 * noise if gain else 0.08 * noise)


@pytest.fixture(scope="session")
def shape_of() -> Callable[[int], EncoderConfig]:
    return _shape


@pytest.fixture(scope="session")
def batch_of() -> Callable[[EncoderConfig, int], Batch]:
    return _batch


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module, int], None]:
    return _randomise


@pytest.fixture(scope="session")
def reference_of() -> Callable[..., transformers.PreTrainedModel]:
    """(transformers class name, our shape, seed) → that model, randomised, dropout 0, attention written out."""

    def make(class_name: str, config: EncoderConfig, seed: int, **extra: object) -> transformers.PreTrainedModel:
        sizes = {k: v for k, v in dataclasses.asdict(config).items() if not k.startswith("sbo_")}
        hub = transformers.BertConfig(**sizes, **extra, attn_implementation="eager")
        model = getattr(transformers, class_name)(hub)
        _randomise(model, seed)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def copy_weights() -> Callable[[nn.Module, nn.Module], None]:
    """Ours ← theirs. Heads that only we have are left as they are."""

    def copy(ours: nn.Module, theirs: nn.Module) -> None:
        fill_model(ours, usual_names(theirs.state_dict(), "transformers"), "transformers", {})

    return copy


@pytest.fixture(scope="session")
def gradient_gap() -> Callable[[nn.Module, nn.Module], float]:
    """Largest difference between two twins' gradients over all parameters that both have (at least the encoder's).

    The losses must be means, so that 1e-4 is strict; on top, no gap may be above 5e-6 of the largest gradient.
    """

    def gap(ours: nn.Module, theirs: nn.Module) -> float:
        their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
        their_gradients = usual_names({n: g for n, g in their_gradients.items() if g is not None}, "gradients")
        our_gradients = {name: p.grad for name, p in ours.named_parameters()}
        worst, largest, compared = 0.0, 0.0, 0
        for group in groups_of(our_gradients):
            if any(name not in their_gradients for name in group.theirs):
                assert all(our_gradients[name] is None for name in group.ours), f"{group} has no counterpart"
                continue
            mine = torch.cat([our_gradients[name] for name in group.ours], group.dim)
            other = torch.cat([their_gradients[name] for name in group.theirs], group.dim)
            worst = max(worst, (mine - other).abs().max().item())
            largest = max(largest, other.abs().max().item())
            compared += len(group.theirs)
        assert compared == len(their_gradients)
        assert worst < 5e-6 * largest
        return worst

    return gap
