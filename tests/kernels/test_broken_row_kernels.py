"""A test of the tests: LayerNorm kernels broken in the ways that happen must fail the checks of test_row_kernels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import kernels


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = load(Path(__file__).with_name("test_row_kernels.py"), "row_checks")
BREAKS = {
    "padding counted in the variance": (
        "centred = tl.where(inside, z - mean[:, None], 0.0)",
        "centred = z - mean[:, None]",
    ),
    "one-pass variance of nothing": ("tl.sum(centred * centred, 1) / columns", "tl.sum(centred, 1) / columns"),
    "mean of x̂ γ dy forgotten": (" - normal * along[:, None]", ""),
    "rows of other programs skipped": ("rows, programs * ROWS):", "rows, rows):"),
    "dbias before dropout": ("added = tl.where(mask, dx, 0.0)", "added = tl.where(mask, dz, 0.0)"),
    "residual's gradient dropped": ("out = dz.to(", "out = dx.to("),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_kernel_is_caught(name, tmp_path, monkeypatch, triton_device, poisoned, within_error_bound):
    from kernels import layer_norm_launch

    old, new = BREAKS[name]
    text = (Path(kernels.__file__).parent / "layer_norm_kernel.py").read_text()
    assert text.count(old) == 1, "the kernel has changed: adapt the breakage"
    path = tmp_path / "broken_layer_norm.py"
    path.write_text(text.replace(old, new))
    broken = load(path, f"broken_{abs(hash(name))}")
    for kernel in ("layer_norm_forward_kernel", "layer_norm_backward_kernel", "partial_sum_kernel"):
        monkeypatch.setattr(layer_norm_launch, kernel, getattr(broken, kernel))
    with pytest.raises(AssertionError):
        checks.test_dropout_add_layer_norm(90, 40, 0.3, "fp32", triton_device, poisoned, within_error_bound)
