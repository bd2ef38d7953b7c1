"""Choices are explicit, refusals are sentences."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from spanbert.device import autocast, choose_device, choose_precision, describe, measured_peak_flops
from spanbert.errors import UserError


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="--device gpu: not a device"):
        choose_device("gpu")
    with pytest.raises(UserError, match="--device cuda:1: this machine has no CUDA device"):
        choose_device("cuda:1")
    assert describe(torch.device("cpu")).startswith("CPU, ")
    assert describe(torch.device("cpu"), threads=7).startswith("CPU, 7 threads")


def test_precision_follows_the_matrix_units(monkeypatch):
    cpu = torch.device("cpu")
    for amx, avx512_bf16, chosen in ((True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx512_bf16: has, raising=False)
        assert choose_precision(cpu) == chosen
    assert choose_precision(cpu, "bf16") == "bf16"
    with pytest.raises(UserError, match="--precision fp16: choose one of"):
        choose_precision(cpu, "fp16")


def test_autocast():
    x = torch.randn(4, 4)
    with autocast(torch.device("cpu"), "bf16"):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert (x @ x).dtype == torch.float32


def test_measured_peak_flops_is_the_best_of_several_moments(monkeypatch):
    """A clock by which five products take 1, 3 and 2 seconds at three moments: a busy machine is slow for a while.

    At each moment the clock is read for the deadline, before the products, after them, and to see that the time is up.
    """
    readings = iter([0, 1, 2, 2, 3, 3, 6, 6, 7, 7, 9, 9])
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(readings)))
    flops = 5 * 2 * 2048 * 32 * (4 * 32)
    assert measured_peak_flops(torch.device("cpu"), "fp32", hidden=32, seconds=0.01, moments=3) == flops / 1
    assert next(readings, None) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
def test_the_allocator_keeps_freed_memory():
    """In a process of its own: the setting cannot be undone."""
    code = (
        "import sys; sys.modules['torch'] = type(sys)('torch'); sys.modules['torch'].device = object\n"
        "import importlib.util as u, ctypes, resource\n"
        "spec = u.spec_from_file_location('d', sys.argv[1]); m = u.module_from_spec(spec); spec.loader.exec_module(m)\n"
        "assert m.tune_allocator()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p; libc.malloc.argtypes = [ctypes.c_size_t]\n"
        "libc.free.argtypes = [ctypes.c_void_p]; libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]\n"
        "def use():\n"
        "    p = libc.malloc(64 << 20); libc.memset(p, 1, 64 << 20); libc.free(p)\n"
        "use(); before = faults(); use(); use(); assert faults() - before < 1000, faults() - before\n"
    )
    import spanbert.device

    subprocess.run([sys.executable, "-c", code, spanbert.device.__file__], check=True)
