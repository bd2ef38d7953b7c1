"""The kernel benchmark itself, on a CPU: it gates before it times, writes what the report reads, and compares runs."""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace

import pytest
import torch

from benchmarks.kernels import attention_providers, gpu, report, row_providers, squad_lengths
from benchmarks.kernels import measure as kernels
from benchmarks.kernels.registry import Instance, Provider
from benchmarks.kernels.timing import Stopwatch, summarise

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    options = [
        "--device",
        "cpu",
        "--seconds",
        "0.001",
        "--provider",
        "ours",
        "--provider",
        "eager",
        "--provider",
        "math",
    ]
    assert kernels.main([*options, "--out", str(folder)]) == 0
    return folder


def test_every_operation_is_measured(results):
    record = json.loads((results / "results.json").read_text())
    names = {"attention", *(operation.name for operation in row_providers.operations(CPU))}
    for provider in ("ours", "eager"):
        rows = [row for row in record["rows"] if row["provider"] == provider]
        assert {row["operation"] for row in rows} == names
        assert {row["direction"] for row in rows} == {"forward", "backward", "both"}  # so none failed its gate
        assert all(row["seconds"]["median"] > 0 and row["bytes"] > 0 for row in rows)
    with (results / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(record["rows"])
    assert (results / "kernels-attention.png").exists()


def test_wrong_provider_is_not_timed():
    operation = row_providers.operations(CPU)[2]

    def build(_case, inputs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        return Instance(leaves, lambda: torch.nn.functional.gelu(leaves[0] + leaves[1], approximate="tanh"))

    def refuse(_case, _inputs):
        raise RuntimeError("no such shape\nlong trace")

    operation = replace(operation, providers=[Provider("almost", build), Provider("refuses", refuse)])
    almost, refused = kernels.measure(operation, operation.cases[0], CPU, Stopwatch(CPU, 0.001))
    assert almost["fault"].startswith("wrong output") and "seconds" not in almost
    assert refused["fault"] == "RuntimeError: no such shape"


def test_ragged_batches_have_squads_lengths():
    lengths = squad_lengths.draw_lengths(16384)
    assert 16000 < sum(lengths) <= 16384 and max(lengths) <= 384
    assert 150 < sum(lengths) / len(lengths) < 210
    assert squad_lengths.window_lengths(10, 700) == [384, 384, 384, 700 - 3 * 128 + 13]
    assert squad_lengths.window_lengths(100, 50) == [64 + 50 + 3]


def test_baseline_comparison(results):
    before = json.loads((results / "results.json").read_text())["rows"]
    assert kernels.slower_than(before, before) == []
    after = copy.deepcopy(before)
    timed = next(row for row in after if row["provider"] == "ours" and row.get("direction") == "both")
    timed["seconds"] = {name: 2 * value for name, value in timed["seconds"].items()}
    timed["seconds"]["low"] = 1e3
    (line,) = kernels.slower_than(before, after)
    assert line.startswith("slower: attention / ")


def test_report_replaces_only_its_section(results, tmp_path, capsys):
    page = tmp_path / "kernels.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    assert report.main([str(results), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert (
        "### attention" in text
        and "| mini ragged | both |" in text
        and "![kernels dropout add layer norm](kernels-dropout-add-layer-norm.png)" in text
    )
    assert report.main([str(tmp_path / "absent"), "--page", str(page)]) == 2
    page.write_text("no markers")
    assert report.main([str(results), "--page", str(page)]) == 2
    assert "error:" in capsys.readouterr().out


def test_targets_are_read_from_results():
    def row(operation: str, case: str, direction: str, provider: str, seconds: float, **rates: float) -> dict:
        timing = {"median": seconds, "low": seconds, "high": seconds, "count": 3}
        head = {"operation": operation, "case": case, "direction": direction, "provider": provider}
        return head | {"seconds": timing, "graph_seconds": None} | rates

    rows = [
        row("attention", "base 512", "forward", "ours", 1.0, tflops=310.0),
        row("attention", "base 512, dropout 0.1", "forward", "ours", 1.3),
        row("attention", "base QA windows", "both", "ours", 1.0),
        row("attention", "base QA windows", "both", "eager", 0.1),
        row("attention", "base QA windows", "both", "varlen_attn", 1.4),
        row("dropout add layer norm", "16k × 768", "backward", "ours", 1.0, gbps=2200.0),
    ]
    goals = {what: (measured, met) for what, _, measured, met in gpu.targets({"rows": rows, "copy_bandwidth": 3e12})}
    assert goals["attention 512 forward, TFLOP/s"] == (310.0, True)
    assert goals["dropout's price, base 512 forward"] == (1.3, False)
    assert goals["base QA windows, times the best library"] == (1.4, False)
    assert goals["dropout add layer norm 16k × 768 backward, share of copy bandwidth"][1] is True


def test_padded_and_packed_layouts_agree():
    """The gate compares providers in one layout: padding and taking it off again changes nothing."""
    case = next(c for c in attention_providers.cases(CPU) if c.label == "mini ragged")
    qkv = attention_providers.inputs(case, CPU)
    instance = attention_providers._eager(case, qkv)
    assert torch.equal(instance.restore(0, instance.leaves[0]), qkv[0])
    assert torch.equal(instance.restore(0, instance.cotangent(qkv[1])), qkv[1])


def test_summary_is_a_median_with_spread():
    timing = summarise([5.0, 1.0, 2.0, 3.0, 100.0])
    assert (timing.median, timing.low, timing.high, timing.count) == (3.0, 2.0, 5.0, 5)
