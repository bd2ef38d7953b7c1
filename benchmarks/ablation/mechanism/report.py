"""From the numbers of all models to what they say: a verdict on every claim, then the tables behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.ablation.mechanism.claims import CLAIMS, Claim, Comparison, decide, question_claims
from benchmarks.ablation.mechanism.cross_table import SCHEMES
from benchmarks.ablation.mechanism.fills import GROUPS
from benchmarks.ablation.mechanism.probe import REACHES
from benchmarks.ablation.mechanism.spans import FARTHEST, LONGEST, PLACES
from benchmarks.ablation.report import FAILS, HOLDS, OPEN, Difference, Scores, mean_and_deviation

LENGTHS = [str(words) for words in range(1, LONGEST + 1)]
DISTANCES = [*map(str, range(1, FARTHEST)), f"{FARTHEST} or more"]


def report(scores: Scores, baseline: Mapping[str, Any], about: str) -> str:
    """Markdown. baseline: ``Material.baseline``. about: one paragraph on what was run."""
    counts = sorted({int(n) for runs in scores.values() for run in runs.values() for n in run.get("questions", {})})
    claims = [*CLAIMS, *(claim for count in counts for claim in question_claims(count))]
    parts = [
        [about],
        verdicts(scores, claims),
        ["## Comparisons", "", *comparison_table(scores, claims)],
        ["## Probe: loss at what is hidden, from two states beside it", "", *probe_tables(scores, baseline)],
        ["## Cross table: MLM loss and accuracy under masks of every kind", "", *cross_tables(scores, baseline)],
        ["## Fills: share that is exactly right, in percent", "", *fill_table(scores)],
    ]
    if counts:
        parts.append(["## Fine-tuned on few questions", "", *question_table(scores, counts)])
    return "\n\n".join("\n".join(part) for part in parts)


def verdicts(scores: Scores, claims: Sequence[Claim]) -> list[str]:
    found: dict[str, list[str]] = {HOLDS: [], FAILS: [], OPEN: []}
    missing = []
    for claim in claims:
        whole = decide(scores, claim.comparisons)
        if whole is None:
            missing.append(claim.text)
            continue
        count = len(claim.comparisons)
        over = f", mean of {count} comparisons" if count > 1 else ""
        limit = f"; less than ±{whole.reach:.3f} would not have shown" if math.isfinite(whole.reach) else ""
        hint = limit if whole.verdict == OPEN else ""
        unit = claim.comparisons[0].unit
        seeds = f"{whole.seeds} seeds" if whole.seeds > 1 else "one seed"
        found[whole.verdict].append(f"* {claim.text}: {whole.written(3)} {unit}, {seeds}{over}{hint}.")
    lines = [
        "A claim *holds* when the 95 % interval of its gain (paired within seeds, Student's t over seeds) lies above 0,",
        "*does not hold* when it lies below, and else *the budget cannot tell*. One interval in twenty errs, so among this many",
        "one or two may well. The interval is about seeds of training: text, masks and probe are the same for all models.",
    ]
    for verdict, sentences in found.items():
        lines += ["", f"**{verdict[0].upper()}{verdict[1:]}:**", "", *(sentences or ["* nothing."])]
    if missing:
        lines += ["", f"Not run yet: {'; '.join(missing)}."]
    return lines


def comparison_table(scores: Scores, claims: Sequence[Claim]) -> list[str]:
    lines = [
        "Gains, positive where the claim says so: mean ± standard error over seeds, and the 95 % interval. The claim is decided by the mean of",
        "its rows that are not in brackets.",
        "",
        "| claim | comparison | seeds | gain | unit | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims:
        for number, comparison in enumerate((*claim.comparisons, *claim.details)):
            difference = decide(scores, [comparison])
            if difference is not None:
                row = comparison_row(comparison, difference, number >= len(claim.comparisons))
                lines.append(f"| {claim.text if number == 0 else ''} | {row}")
    return lines


def comparison_row(comparison: Comparison, difference: Difference, is_detail: bool) -> str:
    digits = 3 if comparison.unit == "nats" else 2
    text = f"({comparison.text})" if is_detail else comparison.text
    return f"{text} | {difference.seeds} | {difference.written(digits)} | {comparison.unit} | {difference.verdict} |"


def table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    head = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return head + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


def over_seeds(runs: Mapping[int, Any], *path: str | int, digits: int = 3, factor: float = 1.0) -> str:
    """The number at ``path`` in every seed's numbers, as mean ± deviation; nothing where no seed has it."""
    values: list[float | None] = []
    for run in runs.values():
        value = run
        for key in path:
            value = value[key] if isinstance(key, int) else (value or {}).get(key)
        values.append(None if value is None else factor * value)
    return mean_and_deviation(values, digits)


def probe_tables(scores: Scores, baseline: Mapping[str, Any]) -> list[str]:
    lines = []
    for reach in REACHES:
        name = "the two boundary states" if reach == "boundary" else "the states two tokens further out"
        rows = {
            arm: [
                over_seeds(runs, "probe", reach, "loss_by_length"),
                *(over_seeds(runs, "probe", reach, "by_words", "loss", n) for n in range(LONGEST)),
                over_seeds(runs, "probe", reach, "accuracy", digits=1, factor=100),
            ]
            for arm, runs in scores.items()
        }
        one = {0: {"probe": {reach: baseline["probe"]}}}
        rows["unigram"] = [
            over_seeds(one, "probe", reach, "loss_by_length"),
            *(over_seeds(one, "probe", reach, "by_words", "loss", n) for n in range(LONGEST)),
            over_seeds(one, "probe", reach, "accuracy", digits=1, factor=100),
        ]
        rows["targets"] = [str(baseline["probe"]["targets"]), *map(str, baseline["probe"]["by_words"]["targets"]), ""]
        columns = ["mean over lengths", *LENGTHS, "accuracy %"]
        lines += [f"From {name}: loss in nats by words of the span.", "", *table("arm", columns, rows), ""]
    return lines[:-1]


def cross_tables(scores: Scores, baseline: Mapping[str, Any]) -> list[str]:
    everyone: dict[str, Mapping[int, Any]] = {**scores, "unigram": {0: {"masks": baseline["masks"]}}}
    lines = []
    for head in ("mlm", "sbo"):
        named = {
            arm: runs
            for arm, runs in everyone.items()
            if any(head in run["masks"]["geometric"] for run in runs.values())
        }
        if not named:
            continue
        rows = {
            arm: [
                f"{over_seeds(runs, 'masks', scheme, head, 'loss')}; {over_seeds(runs, 'masks', scheme, head, 'accuracy', digits=1, factor=100)} %"
                for scheme in SCHEMES
            ]
            for arm, runs in named.items()
        }
        title = "MLM" if head == "mlm" else "SBO, of the arms that trained their head"
        lines += [f"{title}: held out, targets shown as [MASK].", "", *table("arm", SCHEMES, rows), ""]
    rows = {
        arm: [over_seeds(runs, "masks", scheme, "mlm", "as_trained", "loss") for scheme in SCHEMES]
        for arm, runs in everyone.items()
    }
    lines += ["MLM loss of all targets, as trained: one in ten is visible, one in ten is another token.", ""]
    lines += [*table("arm", SCHEMES, rows), ""]
    for title, key, columns in (
        ("words of the span", "by_words", LENGTHS),
        ("place in the span", "by_place", PLACES),
        ("tokens to the nearest visible one", "by_distance", DISTANCES),
    ):
        rows = {
            arm: [over_seeds(runs, "masks", "geometric", "mlm", key, "loss", n) for n in range(len(columns))]
            for arm, runs in everyone.items()
        }
        lines += [f"MLM loss under geometric masks by {title}.", "", *table("arm", columns, rows), ""]
    return lines[:-1]


def fill_table(scores: Scores) -> list[str]:
    groups = [f"{kind} {words}" for kind, words in sorted(GROUPS)]
    rows, spans = {}, {}
    for arm, runs in scores.items():
        for head in ("mlm", "sbo", "both"):
            if not any(head in run["fills"] for run in runs.values()):
                continue
            rows[f"{arm}, {head}"] = [
                over_seeds(runs, "fills", head, group, "exact", digits=1, factor=100)
                + f" ({over_seeds(runs, 'fills', head, group, 'fresh_exact', digits=1, factor=100)})"
                for group in groups
            ]
            first = next(iter(runs.values()))["fills"][head]
            spans["spans"] = [
                f"{first[group]['spans']} ({first[group]['fresh_spans']})" if group in first else "" for group in groups
            ]
    lines = [
        "By kind and number of words; in brackets: of those that stand nowhere else in the visible block.",
        "",
        *table("arm, head", groups, {**rows, **spans}),
    ]
    return lines


def question_table(scores: Scores, counts: Sequence[int]) -> list[str]:
    rows = {
        arm: [
            f"{over_seeds(runs, 'questions', str(count), 'exact', digits=2)} / {over_seeds(runs, 'questions', str(count), 'f1', digits=2)}"
            for count in counts
        ]
        for arm, runs in scores.items()
        if any(run.get("questions") for run in runs.values())
    }
    return ["Exact match / F1.", "", *table("arm", [f"{count:,} questions" for count in counts], rows)]
