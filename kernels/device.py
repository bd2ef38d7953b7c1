"""Where a call runs: on a GPU, in Triton's interpreter, or as plain PyTorch."""

from __future__ import annotations

import contextlib
import os
from functools import cache

import torch
from torch import Tensor


def interpreted() -> bool:
    """Whether TRITON_INTERPRET was set: Triton kernels then run on CPU tensors, slowly, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_triton(x: Tensor) -> bool:
    """Whether an op on this tensor launches its kernel; if not, it runs its reference."""
    return x.is_cuda or interpreted()


def capability(device: torch.device) -> int:
    """80 or 90: the family of configurations for a device. A newer GPU takes the newest; the interpreter takes 80."""
    return _capability(device.index) if device.type == "cuda" else 80


@cache
def _capability(index: int | None) -> int:
    major, _ = torch.cuda.get_device_capability(index)
    if major < 8:
        raise RuntimeError("the kernels need a GPU of compute capability 8.0 (Ampere) or newer")
    return 90 if major >= 9 else 80


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the device has; 1 in the interpreter, where a program costs milliseconds."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
