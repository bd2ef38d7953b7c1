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
    """docs/kernels_aot.json has every kernel that can be selected, as the sources are now, under both Tritons: no spills,
    shared memory within the device's limit, no warning of ptxas, Hopper's matrix instructions in every half-precision
    attention kernel for sm_90."""
    result = run("--check", "docs/kernels_aot.json")
    assert result.returncode == 0, result.stdout + result.stderr


def test_compiles_here_as_in_the_table(tmp_path):
    """One attention kernel and one row kernel, compiled now (or from the cache, if nothing has changed)."""
    fresh = tmp_path / "table.json"
    labels = ("attention dq D64 64x64 bf16 dropout sm_90", "layer norm fused forward 1024 bf16 dropout sm_90")
    for label in labels:
        result = run("--only", label, "--json", str(fresh))
        assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads(fresh.read_text())["rows"]
    assert [row["label"] for row in rows] == list(labels), "a second run adds to the table"
    for row in rows:
        (code,) = (value for name, value in row.items() if name != "label")
        assert code["registers"] > 0 and code["local_accesses"] == 0 and code["blocks"] > 0
        assert (code["hgmma"] > 0 and code["loop"] > 100) == row["label"].startswith("attention")
    shown = run("--show", str(fresh), "--only", "layer norm").stdout
    assert labels[1] in shown and labels[0] not in shown


def test_serialised_matrix_instructions_are_flagged():
    """The control: a first search for the warning let everything pass, since Triton's cache had kept ptxas from speaking."""
    program = """
import sys
sys.path.insert(0, "tests/kernels")
from serialised_kernel import serialised_kernel
from kernels.aot import Specimen, compile_specimen, faults, specimens
types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), "*bf16") | {"out_ptr": "*fp32", "seed_ptr": "*i64", "scale": "fp32"}
types |= dict.fromkeys(("stride", "length", "threshold"), "i32")
bad = Specimen("bad", serialised_kernel, 90, types, {"TILE": 64, "DIM": 64}, 4, 3, True, ("length", "threshold"))
for _ in range(2):  # the second time Triton could take it from its cache
    print(faults(bad, compile_specimen(bad)))
good = next(s for s in specimens() if s.label == "attention forward D64 64x64 bf16 dropout sm_90")
print(faults(good, compile_specimen(good)))
"""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    first, second, sound = result.stdout.splitlines()
    assert "C7515" in first and "C7515" in second and sound == "[]", result.stdout


def test_stale_table_is_refused(tmp_path):
    table = json.loads((ROOT / "docs" / "kernels_aot.json").read_text())
    table["rows"][0]["3.6"]["key"] = "0" * 16
    spilling = next(row for row in table["rows"] if row["label"].startswith("attention dkdv"))
    spilling["3.9"]["local_accesses"] = 8
    without = next(row for row in table["rows"] if "D64" in row["label"] and "bf16 sm_90" in row["label"])
    without["3.6"]["hgmma"] = 0
    without["3.9"]["warnings"] = ["C7515"]
    table["rows"][-1]["3.9"]["shared_bytes"] = 300_000
    del table["rows"][-2]["3.6"]
    (tmp_path / "table.json").write_text(json.dumps(table))
    result = run("--check", str(tmp_path / "table.json"))
    assert result.returncode == 1
    words = ("other sources", "spills", "no matrix instructions", "bytes of shared memory", "not in the table", "C7515")
    for word in words:
        assert word in result.stdout


def test_interpreter_is_refused():
    result = run(TRITON_INTERPRET="1")
    assert result.returncode == 1 and "TRITON_INTERPRET is set" in result.stderr


@pytest.mark.slow
def test_everything_compiles():
    result = run()
    assert result.returncode == 0, result.stdout
