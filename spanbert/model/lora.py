"""Low-rank adaptation (Hu et al. 2021): the product W x becomes W x + (α / r) B A x, and only A and B are trained.

A is (r, in), initialised like a linear layer (Kaiming uniform); B is (out, r) and begins as 0, so that the model begins as
it was. The query, key and value of a layer are one product here, so they share one A and have a third of B each: three
LoRAs with the same A, which is how ``spanbert.checkpoint.adapter`` stores them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert.errors import UserError

#: ``on`` → modules of a layer
PRODUCTS = {
    "attention": ("qkv", "attention_out.linear"),
    "feed-forward": ("feed_forward_in", "feed_forward_out.linear"),
    "both": ("qkv", "attention_out.linear", "feed_forward_in", "feed_forward_out.linear"),
}


@dataclass(frozen=True)
class LoRAConfig:
    """What ``--lora rank=8,alpha=16,on=attention`` says."""

    rank: int = 8
    alpha: float = 16.0
    """The update is scaled by alpha ÷ rank."""
    on: str = "attention"
    """attention: query, key, value and output product; feed-forward; both."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """``rank=8,alpha=16,on=attention``, each part with its default. Raises UserError."""
        values = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            if name not in ("rank", "alpha", "on") or not value or name in values:
                raise UserError(f"--lora {text}: expected something like rank=8,alpha=16,on=attention, not {part!r}")
            values[name] = value
        try:
            config = cls(
                int(values.get("rank", cls.rank)), float(values.get("alpha", cls.alpha)), values.get("on", cls.on)
            )
        except ValueError:
            raise UserError(f"--lora {text}: rank is a whole number and alpha a number") from None
        if config.rank < 1 or not 0 < config.alpha < math.inf:
            raise UserError(f"--lora {text}: rank must be at least 1, and alpha above 0")
        if config.on not in PRODUCTS:
            raise UserError(f"--lora {text}: on is one of {', '.join(PRODUCTS)}")
        return config


class LoRALinear(nn.Linear):
    """A linear layer whose own parameters stand still, and the two thin matrices that are trained beside it."""

    lora_A: nn.Parameter  # (r, in)
    lora_B: nn.Parameter  # (out, r)

    @classmethod
    def over(cls, linear: nn.Linear, config: LoRAConfig) -> LoRALinear:
        """The same parameters as ``linear`` has (not copies), frozen; A from PyTorch's generator on the CPU."""
        adapted = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        adapted.weight, adapted.bias = linear.weight, linear.bias
        a_RI = torch.empty(config.rank, linear.in_features)
        nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5))
        adapted.lora_A = nn.Parameter(a_RI.to(linear.weight.device))
        adapted.lora_B = nn.Parameter(torch.zeros(linear.out_features, config.rank, device=linear.weight.device))
        adapted.scale = config.alpha / config.rank
        return adapted

    scale: float = 1.0

    def update(self, x: Tensor) -> Tensor:
        """(α / r) B A x."""
        return F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.update(x)


def product(linear: nn.Linear, x: Tensor) -> Tensor:
    """What a linear layer gives without its bias, for kernels that add the bias themselves."""
    plain = F.linear(x, linear.weight)
    return plain + linear.update(x) if isinstance(linear, LoRALinear) else plain


def add_lora(model: nn.Module, layers: nn.ModuleList, config: LoRAConfig, seed: int) -> None:
    """Replace the products of ``layers`` that ``config`` names; of ``model``'s encoder nothing else is trained any more.

    The A's are a function of the seed; PyTorch's global generator is left alone.
    """
    for name, parameter in model.named_parameters():
        if name.startswith("encoder."):
            parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            for product_name in PRODUCTS[config.on]:
                owner_name, _, leaf = product_name.rpartition(".")
                owner = layer.get_submodule(owner_name)
                setattr(owner, leaf, LoRALinear.over(getattr(owner, leaf), config))


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The adapted products of a model, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module
