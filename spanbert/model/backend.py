"""Which implementation computes attention and the fused kernels' work: chosen once, from the device, and said aloud."""

from __future__ import annotations

from types import ModuleType

import torch

from spanbert.errors import UserError

BACKENDS = ("auto", "eager", "sdpa", "triton")


#: Head dimensions of the attention kernels: kernels.attention_config, which a CPU need not import.
KERNEL_HEAD_DIMS = (32, 64, 128)


def resolve_backend(name: str, device: torch.device | str, head_dim: int | None = None) -> str:
    """``auto`` → ``triton`` on a CUDA device, ``eager`` on a CPU; anything else must be a backend's name.

    ``head_dim``: of the model, where it is known. One that the kernels do not have turns ``auto`` to ``sdpa``, with a
    line that says so, and is an error for ``triton``.
    """
    if name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    on_gpu = torch.device(device).type == "cuda"
    known = head_dim is None or head_dim in KERNEL_HEAD_DIMS
    sizes = ", ".join(map(str, KERNEL_HEAD_DIMS))
    if name == "triton" and on_gpu and not known:
        raise UserError(
            f"the attention kernels take heads of {sizes} dimensions, not {head_dim}: use --backend sdpa, or auto"
        )
    if name != "auto":
        return name
    if on_gpu and not known:
        print(f"heads of {head_dim} dimensions: attention by sdpa, since the kernels take {sizes}", flush=True)
        return "sdpa"
    return "triton" if on_gpu else "eager"


def load_kernels() -> ModuleType:
    """This project's ``kernels`` package: the only place where the rest of the project reaches for it."""
    import kernels

    if not hasattr(kernels, "attention_varlen"):
        raise UserError(
            f"the package 'kernels' found at {getattr(kernels, '__file__', '?')} is not SpanBERT's but another one of the "
            "same name: uninstall it, or install spanbert into an environment of its own"
        )
    return kernels
