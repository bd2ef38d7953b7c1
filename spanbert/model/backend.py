"""Which implementation computes attention and the fused joints: chosen once, from the device, and said aloud."""

from __future__ import annotations

from types import ModuleType

import torch

from spanbert.errors import UserError

BACKENDS = ("auto", "eager", "sdpa", "triton")


def resolve_backend(name: str, device: torch.device | str) -> str:
    """``auto`` → ``triton`` on a CUDA device, ``eager`` on a CPU; anything else must be a backend's name."""
    if name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if name != "auto":
        return name
    return "triton" if torch.device(device).type == "cuda" else "eager"


def load_kernels() -> ModuleType:
    """This project's ``kernels`` package: the only place where the rest of the project reaches for it."""
    import kernels

    if not hasattr(kernels, "attention_varlen"):
        raise UserError(
            f"the package 'kernels' found at {getattr(kernels, '__file__', '?')} is not SpanBERT's but another one of the "
            "same name: uninstall it, or install spanbert into an environment of its own"
        )
    return kernels
