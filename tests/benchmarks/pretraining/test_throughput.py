"""The benchmark's variants train the same thing, a wrong one is caught, and the table compares within rounds."""

from __future__ import annotations

import pytest
import torch

from benchmarks.pretraining.baselines import Ours, Workload, entries
from benchmarks.pretraining.communication import expected_bytes
from benchmarks.pretraining.throughput import report

WORK = Workload("mini", 32, 64, 200, 0.0, "cpu", "fp32")


@pytest.mark.parametrize("name", [n for n in entries(on_gpu=False) if "compiled" not in n])
def test_variants_take_steps(name, monkeypatch):
    monkeypatch.setattr("benchmarks.pretraining.baselines._use_plain_dropout", lambda: None)
    variant = entries(on_gpu=False)[name].make(WORK)
    losses = [variant.step(0).item() for _ in range(4)]
    assert 4 < losses[0] < 7, "about ln 200"
    assert losses[-1] < losses[0] or not isinstance(variant, Ours), "the same batch again and again is learnt"
    if isinstance(variant, Ours):
        assert variant.fault() is None


def test_a_variant_that_computes_something_else_is_caught(monkeypatch):
    variant = Ours(WORK, heads="fused", sbo=True)
    monkeypatch.setattr(
        "spanbert.model.encoder.position_ids", lambda cu_seqlens, total: torch.zeros(total, dtype=torch.int64)
    )
    assert "expected" in variant.fault()


def test_table_compares_within_rounds():
    """Ours takes half of what theirs takes in each round, however the machine's speed drifts."""
    record = {
        "machine": "CPU", "date": "today", "faults": {"transformers sdpa, fp32": "broken"},
        "config": {"size": "mini", "length": 32, "tokens": 64, "steps": 2, "vocabulary": 200, "dropout": 0.1},
        "matrix_flops": {"fp32": 1e9},
        "seconds": {"transformers eager, fp32": [1.0, 4.0, 2.0], "ours: + SBO, fp32": [0.5, 2.0, 1.0]},
    }  # fmt: skip
    table = report(record)
    assert "| transformers eager, fp32 | 64 | 1.00 | 1.00 |" in table
    assert "| ours: + SBO, fp32 | 128 | 2.00 | 2.00 |" in table
    assert "not timed: transformers sdpa, fp32: broken" in table and "314.6 G tokens" in table


def test_communication_formulas():
    assert expected_bytes("ddp", 3, 100, 80) == 400
    assert expected_bytes("fsdp", 1, 100, 80) == 0.5 * 4 * (160 + 20 + 100)
    assert expected_bytes("fsdp", 1, 100, 80, gloo=True) == 0.5 * 4 * (160 + 20 + 200)
