"""The machine: which device, which precision, how fast its matrix units are, and an allocator that keeps its memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time

import torch

from spanbert.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16")

#: What tells of a processor's matrix units; PyTorch has no public names for them.
BF16_UNITS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
INT8_UNITS = ("_is_amx_tile_supported", "_is_vnni_supported")


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` → the current CUDA device when there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this machine has no CUDA device that PyTorch can see; use --device cpu")
    return device


def choose_precision(device: torch.device, name: str = "auto", others: tuple[str, ...] = ()) -> str:
    """``auto`` → bf16 autocast where the device multiplies it faster, else fp32. others: what else a caller takes.

    That is CUDA ≥ 8.0, and CPUs with AMX or AVX512-BF16 (docs/decisions.md: five times the rate of fp32 on a Zen 5 core).
    """
    if name not in PRECISIONS:
        raise UserError(f"--precision {name}: choose one of {', '.join(PRECISIONS + others)}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and _has_units(BF16_UNITS) else "fp32"


def has_int8_units() -> bool:
    """Whether this processor multiplies int8 matrices by units of their own, and PyTorch knows it."""
    return _has_units(INT8_UNITS)


def _has_units(names: tuple[str, ...]) -> bool:
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The autocast context of a forward pass: bf16, or nothing for fp32.

    What int8 leaves as it was (``spanbert.model.quantized``) is computed as ``auto`` would have it.
    """
    if precision == "int8":
        precision = choose_precision(device)
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def tune_allocator() -> bool:
    """Keep freed memory in the process (Linux, glibc): a training step frees and takes the same large tensors again.

    By default glibc returns each to the system and every fresh page costs a fault: measured at +20…55 % tokens/s for
    small models on a CPU. → whether it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim_threshold, mmap_max = -1, -4  # names of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))


def measured_peak_flops(
    device: torch.device, precision: str, hidden: int = 768, seconds: float = 0.3, moments: int = 3
) -> float:
    """FLOP/s of this device's matrix product at a model's shapes: the fastest seen now, the denominator of utilisation.

    A machine that also does other work is slow for moments at a time; so it is measured at several, 50 ms apart, and
    the best counts.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = 16384 if device.type == "cuda" else 2048
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, hidden), (hidden, 4 * hidden)))
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        a @ b
    rates: list[float] = []
    for moment in range(moments):
        if moment:
            time.sleep(0.05)
        deadline = time.perf_counter() + seconds / moments
        while len(rates) <= moment or time.perf_counter() < deadline:
            synchronise()
            begin = time.perf_counter()
            for _ in range(5):
                a @ b
            synchronise()
            rates.append(5 * 2 * rows * hidden * 4 * hidden / (time.perf_counter() - begin))
    return max(rates)


class PeakFlops:
    """The measured peak FLOP/s of ``devices`` devices like this one, put right when work turns out to be faster."""

    def __init__(self, device: torch.device, precision: str, hidden: int, devices: int = 1):
        self._measure = lambda: measured_peak_flops(device, precision, hidden) * devices
        self.value = self._measure()

    def utilisation(self, flops_per_second: float) -> float:
        """The share of the peak, never above 1: a report beyond it means that the peak was measured at a bad moment."""
        if flops_per_second > self.value:
            self.value = max(self._measure(), flops_per_second)
        return flops_per_second / self.value


def describe(device: torch.device, threads: int | None = None) -> str:
    """One phrase for logs and results. threads: of the processes that it is about, where they are not this one's."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"CPU, {threads or torch.get_num_threads()} threads, torch {torch.__version__}"
