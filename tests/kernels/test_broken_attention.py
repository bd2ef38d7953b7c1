"""A test of the tests: attention kernels broken in the ways that happen must fail the checks of test_attention_kernels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import kernels

KERNELS = Path(kernels.__file__).parent


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = load(Path(__file__).with_name("test_attention_kernels.py"), "attention_checks")

FORWARD, BACKWARD = "attention_forward_kernel", "attention_backward_kernel"
BREAKS = {
    "one key too many": (FORWARD, "key_in = full + keys < drawn", "key_in = full + keys <= drawn", 0.0),
    "one key too few": (FORWARD, "key_in = full + keys < drawn", "key_in = full + keys < drawn - 1", 0.0),
    "one key too many, in the loop": (FORWARD, "key_in = start + keys < drawn", "key_in = start + keys <= drawn", 0.0),
    "last block forgotten": (FORWARD, "if full < drawn:", "if full > drawn:", 0.0),
    "missing 1/√D": (FORWARD, "p = tl.exp2(s * scale_log2", "p = tl.exp2(s * 1.4426950408889634", 0.0),
    "stale maximum": (FORWARD, "rescale = tl.exp2(m - m_new)", "rescale = tl.exp2(m_new - m_new)", 0.0),
    "denominator after dropout": (
        FORWARD,
        "denom = denom * rescale + tl.sum(p, 1)",
        "denom = denom * rescale + tl.sum(p, 1) * 0.9",
        0.25,
    ),
    "stale statistics": (BACKWARD, "p = tl.exp2(s * scale_log2 - lse[:, None])", "p = tl.exp2(s * scale_log2)", 0.0),
    "δ forgotten": (BACKWARD, "ds_t = p_t * (dp_t - delta[None, :])", "ds_t = p_t * dp_t", 0.0),
    "dK not scaled": (BACKWARD, "(dk * scale)", "(dk * 1.0)", 0.0),
    "masks of other keys in dK/dV": (BACKWARD, "(head64 * words + place // 32)", "(head64 * words)", 0.25),
    "masks of other queries in dK/dV": (BACKWARD, "slot * TILE - place\n", "slot * TILE\n", 0.25),
    "masks of other queries in dQ": (BACKWARD, "mask_rows + rows[:, None]", "mask_rows + (rows[:, None] ^ 1)", 0.25),
    "δ not scaled for dropout": (BACKWARD, "delta = delta / keep_scale", "delta = delta * 1.0", 0.25),
    "one query too many": (
        BACKWARD,
        "row_in = start + rows < row_end - row_start",
        "row_in = start + rows <= row_end - row_start",
        0.0,
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_kernel_is_caught(name, tmp_path, monkeypatch, triton_device, poisoned, within_error_bound):
    from kernels import attention_launch

    file, old, new, dropout_p = BREAKS[name]
    text = (KERNELS / f"{file}.py").read_text()
    assert text.count(old) == 1, "the kernel has changed: adapt the breakage"
    path = tmp_path / f"broken_{file}.py"
    path.write_text(text.replace(old, new))
    broken = load(path, f"broken_{abs(hash(name))}")
    for kernel in ("attention_forward_kernel", "attention_dq_kernel", "attention_dkdv_kernel"):
        if hasattr(broken, kernel):
            monkeypatch.setattr(attention_launch, kernel, getattr(broken, kernel))
    peel = "full" in old  # what stands behind the loop
    case = checks.run_case([70, 9], torch.float32, triton_device, poisoned, dropout_p=dropout_p, peel=peel)
    assert not checks.is_right(case, within_error_bound)
