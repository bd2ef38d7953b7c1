"""Turn a results folder of benchmarks.kernels.measure into a section of docs/kernels.md, with its plots.

    python -m benchmarks.kernels.report runs/kernels                      # replaces the section between the markers of the page
    python -m benchmarks.kernels.report runs/kernels --page other.md

The section is everything between `<!-- results -->` and `<!-- /results -->`; the rest of the page is not touched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

BEGIN, END = "<!-- results -->", "<!-- /results -->"
DIRECTIONS = ("forward", "backward", "both")


def best_seconds(row: dict) -> float:
    """The quicker of the plain and the CUDA-graph median."""
    graph = row.get("graph_seconds")
    plain = row["seconds"]["median"]
    return min(plain, graph["median"]) if graph else plain


def rewrite(page: Path, text: str) -> None:
    """Replace a page at once. (Not spanbert.files: a GPU machine has what PyTorch brings and nothing else.)"""
    temporary = page.with_name(f".{page.name}.partial")
    temporary.write_text(text)
    temporary.replace(page)


def section(record: dict, plots: list[str]) -> str:
    """Markdown of the results: where they come from, the targets, one table per operation, what was not timed."""
    machine = record["machine"]
    lines = [
        f"Measured on {machine['device']}, {machine['date'][:10]}, commit {machine['commit']}, PyTorch {machine['torch']}, "
        f"Triton {machine['triton']}, by `python -m benchmarks.kernels.measure`. On the same machine a large product reached "
        f"{record['product_flops'] / 1e12:.1f} TFLOP/s and a large copy {record['copy_bandwidth'] / 1e9:.0f} GB/s. "
        "Times are medians of the quicker of plain calls and a replayed CUDA graph; every row passed the correctness gate "
        "in the same run.",
        "",
    ]
    operations: dict[str, list[dict]] = defaultdict(list)
    for row in record["rows"]:
        operations[row["operation"]].append(row)
    for name, rows in operations.items():
        lines += [f"### {name}", "", *_table(rows), ""]
        missing = sorted({f"{row['provider']} on {row['case']}: {row['fault']}" for row in rows if "fault" in row})
        if missing:
            lines += ["Not timed: " + "; ".join(missing) + ".", ""]
    lines += [f"![{Path(plot).stem.replace('-', ' ')}]({plot})" for plot in plots]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: list[dict]) -> list[str]:
    """Cases down, providers across: µs and the rate, the quickest of a line in bold."""
    timed = [row for row in rows if "seconds" in row]
    providers = list(dict.fromkeys(row["provider"] for row in timed))
    lines = ["| case | direction | " + " | ".join(providers) + " |", "|---" * (2 + len(providers)) + "|"]
    for case in dict.fromkeys(row["case"] for row in timed):
        for direction in DIRECTIONS:
            cells = {row["provider"]: row for row in timed if row["case"] == case and row["direction"] == direction}
            if not cells:
                continue
            quickest = min(cells, key=lambda provider: best_seconds(cells[provider]))
            texts = []
            for provider in providers:
                row = cells.get(provider)
                text = "–" if row is None else f"{best_seconds(row) * 1e6:.1f} µs, {_rate(row)}"
                texts.append(f"**{text}**" if provider == quickest else text)
            lines.append(f"| {case} | {direction} | " + " | ".join(texts) + " |")
    return lines


def _rate(row: dict) -> str:
    return f"{row['tflops']:.1f} TFLOP/s" if row["flops"] else f"{row['gbps']:.0f} GB/s"


def draw_plots(record: dict, folder: Path) -> list[str]:
    """One PNG per operation: achieved rate over arithmetic intensity under the roofline. Names of the files; none
    without matplotlib, which a GPU machine need not have (draw them later from results.json)."""
    try:
        import matplotlib
    except ImportError:
        print("no matplotlib here: `python -m benchmarks.kernels.report` draws the plots from results.json elsewhere")
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = []
    for operation in dict.fromkeys(row["operation"] for row in record["rows"] if "seconds" in row):
        rows = [r for r in record["rows"] if r["operation"] == operation and r.get("direction") == "both"]
        arithmetic = any(row["flops"] for row in rows)
        cases = list(dict.fromkeys(row["case"] for row in rows))
        figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.5 * len(cases)), layout="constrained")
        providers = list(dict.fromkeys(row["provider"] for row in rows))
        for index, provider in enumerate(providers):
            own = [row for row in rows if row["provider"] == provider]
            x = [(row["flops"] / 1e12 if arithmetic else row["bytes"] / 1e9) / best_seconds(row) for row in own]
            y = [cases.index(row["case"]) for row in own]
            axes.scatter(x, y, marker="osD^vPX*"[index % 8], label=provider, zorder=3)
        for y, case in enumerate(cases):
            row = next(row for row in rows if row["case"] == case)
            bound = max(row["flops"] / record["product_flops"], row["bytes"] / record["copy_bandwidth"])
            limit = (row["flops"] / 1e12 if arithmetic else row["bytes"] / 1e9) / bound
            axes.plot([limit, limit], [y - 0.35, y + 0.35], color="black", label="roofline" if y == 0 else None)
        axes.set_yticks(range(len(cases)), cases)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("TFLOP/s" if arithmetic else "GB/s")
        axes.set_title(f"{operation}, forward + backward, {record['machine']['device']}")
        axes.legend(fontsize=7, loc="lower right")
        name = f"kernels-{operation.replace(' ', '-')}.png"
        figure.savefig(folder / name, dpi=110)
        pyplot.close(figure)
        names.append(name)
    return names


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="results folder, with results.json")
    parser.add_argument("--page", type=Path, default=Path("docs/kernels.md"))
    arguments = parser.parse_args(argv)
    results = arguments.folder / "results.json"
    if not results.exists():
        print(
            f"error: {results} does not exist: run `python -m benchmarks.kernels.measure --out {arguments.folder}` first"
        )
        return 2
    page = arguments.page.read_text() if arguments.page.exists() else f"# Kernels\n\n{BEGIN}\n{END}\n"
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        print(f"error: {arguments.page} must hold one {BEGIN} and one {END}, between which the results go")
        return 2
    record = json.loads(results.read_text())
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    plots = draw_plots(record, arguments.page.parent)
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    rewrite(arguments.page, f"{before}{BEGIN}\n{section(record, plots)}{END}{after}")
    print(f"wrote the results of {results} into {arguments.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
