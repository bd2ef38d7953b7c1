"""Ahead-of-time compilation, in processes of their own: the interpreter and the compiler cannot share one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "kernels.aot", *arguments],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=3000,
    )


def test_committed_table_is_current_and_faultless():
    """docs/kernels_aot.json has every kernel that can be selected, as the sources are now: no spills, shared memory
    within the device's limit, Hopper's matrix instructions in every half-precision attention kernel for sm_90."""
    result = run("--check", "docs/kernels_aot.json")
    assert result.returncode == 0, result.stdout + result.stderr


def test_compiles_here_as_in_the_table(tmp_path):
    """One attention kernel and one row kernel, compiled now (or from the cache, if nothing has changed)."""
    fresh = tmp_path / "table.json"
    for label in ("attention dq D64 64x64 bf16 dropout sm_90", "layer norm fused forward 1024 bf16 dropout sm_90"):
        result = run("--only", label, "--json", str(fresh))
        assert result.returncode == 0, result.stdout + result.stderr
        (row,) = json.loads(fresh.read_text())["rows"]
        assert row["label"] == label and row["registers"] > 0 and row["local_accesses"] == 0
        assert (row["hgmma"] > 0) == label.startswith("attention")


def test_stale_table_is_refused(tmp_path):
    table = json.loads((ROOT / "docs" / "kernels_aot.json").read_text())
    table["rows"][0]["key"] = "0" * 16
    spilling = next(row for row in table["rows"] if row["label"].startswith("attention dkdv"))
    spilling["local_accesses"] = 8
    without = next(row for row in table["rows"] if "D64" in row["label"] and "bf16 sm_90" in row["label"])
    without["hgmma"] = 0
    greedy = table["rows"][-1]
    greedy["shared_bytes"] = 300_000
    (tmp_path / "table.json").write_text(json.dumps(table))
    result = run("--check", str(tmp_path / "table.json"))
    assert result.returncode == 1
    for words in ("other sources", "spills", "no matrix instructions", "bytes of shared memory"):
        assert words in result.stdout


def test_interpreter_is_refused():
    result = run(TRITON_INTERPRET="1")
    assert result.returncode == 1 and "TRITON_INTERPRET is set" in result.stderr


@pytest.mark.slow
def test_everything_compiles():
    result = run()
    assert result.returncode == 0, result.stdout
