"""The results of ``benchmarks.finetuning.open_domain`` as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def report(results: dict[str, Any]) -> str:
    """Costs of the index, recall, and exact match and F1 with their standard errors."""
    about, questions, index = results["about"], results["questions"], results["index"]
    lines = [
        f"{about['corpus']}, {about['questions']}, model {about['model']} in {about['precision']}; {about['machine']}, "
        f"{about['threads']} thread(s), Python {about['python']}, PyTorch {about['torch']}, NumPy {about['numpy']}; "
        f"commit {about['commit']}, {about['date']}, seed {about['seed']}.",
        "",
        f"{questions['asked']:,} questions of {questions['articles']} of {questions['of_articles']} articles; an answer stands "
        f"in the article as the corpus has it for {100 * questions['answer_stands']:.1f} %.",
        "",
        f"Index: {index['documents']:,} documents, {index['passages']:,} passages, {index['bytes'] / 1e6:,.0f} MB.",
        "",
        *_table(["", "wall", "processor", "peak", "load"], _costs(index)),
        "",
        "Behind ± stands the standard error; the questions of an article are taken together, as a cluster.",
        "",
        f"Recall over {results['recall'][0]['questions']:,} questions, percent:",
        "",
        *_table(
            ["passages", "holds an answer", "of the right article", "both"],
            [
                [str(row["k"]), *(_percent(row[name]) for name in ("answer", "article", "both"))]
                for row in results["recall"]
            ],
        ),
        "",
        f"Answers to {results['read']:,} questions, percent; finding and reading {results['answers'][-1]['passages']} "
        f"passages takes {results['read_seconds']:.2f} s of the processor (median):",
        "",
        *_table(
            ["passages", "compared by", "EM", "F1", "EM, may decline", "F1, may decline"], _answers(results["answers"])
        ),
    ]
    if rows := [row for row in results["confidence"] if row["answered"]]:
        lines += ["", 'Confidence of the answers, "no answer" left out:', ""]
        head = ["passages", "calibration", "answered", "mean confidence", "right", "calibration error", "AUROC"]
        lines += _table(head, [_sureness(row) for row in rows])
    return "\n".join(lines) + "\n"


def _costs(index: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, label in (("made", "made"), ("unchanged", "run again, nothing changed"), ("opened", "opened")):
        if cost := index.get(name):
            peak = f"{cost['peak_mib']:,.0f} MiB" if "peak_mib" in cost else ""
            rows.append([label, _time(cost["wall_s"]), _time(cost["processor_s"]), peak, f"{cost['load_average']:.1f}"])
    query = index["query"]
    for name in ("median", "p95"):
        times = [_time(query[kind][name] / 1000) for kind in ("wall_ms", "processor_ms")]
        label = f"a query for {query['k']} passages, {name} of {query['questions']}"
        rows.append([label, *times, "", f"{query['load_average']:.1f}"])
    return rows


def _time(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _answers(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            str(row["passages"]),
            row["way"],
            *(
                _percent(row[mode][name]) if mode in row else ""
                for mode in ("forced", "declining")
                for name in ("exact", "f1")
            ),
        ]
        for row in rows
    ]


def _sureness(row: dict[str, Any]) -> list[str]:
    area = "" if row["auroc"] is None else f"{row['auroc']:.3f}"
    numbers = [f"{row[name]:.3f}" for name in ("confidence", "right", "ece")]
    return [str(row["passages"]), row["way"], str(row["answered"]), *numbers, area]


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['mean']:.1f} ± {100 * value['error']:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
