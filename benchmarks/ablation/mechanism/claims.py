"""What is claimed, and which difference within a seed decides it.

Every comparison is a gain: positive where what is claimed is so, in nats a target or in percentage points. A claim is about the mean of
its comparisons in each seed, and judged by the rule of ``benchmarks.ablation.report``; its details are shown and decide
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.ablation.mechanism.cross_table import SCHEMES
from benchmarks.ablation.mechanism.fills import NAMES, OTHERS
from benchmarks.ablation.mechanism.spans import LONGEST
from benchmarks.ablation.report import Difference, Scores, paired_difference

Runs = Mapping[str, Mapping[str, Any]]
"""Arm → its numbers, all of one seed."""
#: Words of a span that is long.
LONG = range(4, LONGEST + 1)


@dataclass(frozen=True)
class Comparison:
    text: str
    arms: tuple[str, ...]
    gain: Callable[[Runs], float | None]
    """None where there were no such targets."""
    unit: Literal["nats", "points"] = "nats"


@dataclass(frozen=True)
class Claim:
    text: str
    comparisons: tuple[Comparison, ...]
    details: tuple[Comparison, ...] = ()


def decide(scores: Scores, comparisons: Sequence[Comparison]) -> Difference | None:
    """The mean of the comparisons in each seed that has all their arms, over seeds. None when no seed does."""
    arms = {arm for comparison in comparisons for arm in comparison.arms}
    shared = set.intersection(*(set(scores.get(arm, {})) for arm in arms))
    gains = []
    for seed in sorted(shared):
        runs = {arm: scores[arm][seed] for arm in arms}
        found = [comparison.gain(runs) for comparison in comparisons]
        known = [gain for gain in found if gain is not None]
        if len(known) == len(found):
            gains.append(math.fsum(known) / len(known))
    return paired_difference(gains) if gains else None


# --- reading a model's numbers -----------------------------------------------------------------------------------


def less(own: float | None, other: float | None) -> float | None:
    """How much smaller the first is."""
    return None if own is None or other is None else other - own


def masked_loss(
    run: Mapping[str, Any], scheme: str, words: Iterable[int] | None = None, head: str = "mlm"
) -> float | None:
    """Loss at [MASK] under a scheme's masks, of all such targets or of those in spans of so many words."""
    scores = run["masks"][scheme][head]
    if words is None:
        return scores["loss"]
    by = scores["by_words"]
    return _weighted([(by["loss"][n - 1], by["targets"][n - 1]) for n in words])


def probe_loss(run: Mapping[str, Any], reach: str, words: int | None = None) -> float | None:
    """Loss of the probe at one length, or the mean over lengths, each counting alike."""
    scores = run["probe"][reach]
    return scores["loss_by_length"] if words is None else scores["by_words"]["loss"][words - 1]


def fill_score(
    run: Mapping[str, Any], head: str, groups: Iterable[tuple[str, int]], number: str = "exact"
) -> float | None:
    """Over all spans of these groups: ``exact`` and ``fresh_exact`` in percent, ``nats`` a token."""
    found = run["fills"][head]
    rows = [found[f"{kind} {words}"] for kind, words in groups if f"{kind} {words}" in found]
    count = "fresh_spans" if number == "fresh_exact" else "spans"
    value = _weighted([(row[number], row[count]) for row in rows])
    return value if value is None or number == "nats" else 100 * value


def _weighted(values: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, count) for value, count in values if value is not None and count]
    return math.fsum(v * n for v, n in known) / sum(n for _, n in known) if known else None


# --- the claims --------------------------------------------------------------------------------------------------


def boundary(reach: str, words: int | None = None) -> Comparison:
    arms = ("geometric+sbo", "geometric")
    where = {"boundary": "boundary states", "beyond": "states two tokens further out"}[reach]
    text = f"{where}, {'mean over lengths' if words is None else f'spans of {words}'}"
    return Comparison(text, arms, lambda runs: less(*(probe_loss(runs[arm], reach, words) for arm in arms)))


def only_at_boundary(runs: Runs) -> float | None:
    at, beyond = boundary("boundary").gain(runs), boundary("beyond").gain(runs)
    return less(beyond, at)


def as_trained_loss(run: Mapping[str, Any], scheme: str) -> float | None:
    """Over all targets of a scheme, those that pretraining leaves visible or replaces included: what the arm minimised."""
    return run["masks"][scheme]["mlm"]["as_trained"]["loss"]


def more_than_start(arm: str, as_trained: bool = False) -> Comparison:
    scheme, loss = arm.removesuffix("+sbo"), as_trained_loss if as_trained else masked_loss
    return Comparison(
        f"{arm} than the start under {scheme} masks{', all targets as trained' if as_trained else ''}",
        (arm, "none"),
        lambda runs: less(loss(runs[arm], scheme), loss(runs["none"], scheme)),
    )


def best_at_home(scheme: str) -> Comparison:
    def gain(runs: Runs) -> float | None:
        own = masked_loss(runs[scheme], scheme)
        others = [less(own, masked_loss(runs[arm], scheme)) for arm in SCHEMES if arm != scheme]
        known = [other for other in others if other is not None]
        return min(known) if len(known) == len(others) else None

    return Comparison(f"{scheme} than the best other arm, under {scheme} masks", SCHEMES, gain)


def better_under(
    better: str, other: str, scheme: str, words: Sequence[int] | None = None, head: str = "mlm"
) -> Comparison:
    length = "" if words is None else f", spans of {words[0]}" + (f" to {words[-1]}" if len(words) > 1 else "")
    return Comparison(
        f"{better} than {other} under {scheme} masks{length}",
        (better, other),
        lambda runs: less(*(masked_loss(runs[arm], scheme, words, head) for arm in (better, other))),
    )


def longer_more(runs: Runs) -> float | None:
    short = better_under("geometric", "subword", "geometric", [1]).gain(runs)
    return less(short, better_under("geometric", "subword", "geometric", LONG).gain(runs))


def keeps_half(scheme: str) -> Comparison:
    """Mixed against the middle between the two arms that it is made of."""

    def gain(runs: Runs) -> float | None:
        one, other = (masked_loss(runs[arm], scheme) for arm in ("subword", "geometric"))
        if one is None or other is None:
            return None
        return less(masked_loss(runs["mixed"], scheme), (one + other) / 2)

    text = f"mixed than the middle between subword and geometric, under {scheme} masks"
    return Comparison(text, ("mixed", "subword", "geometric"), gain)


def fills_better(
    better: tuple[str, str],
    other: tuple[str, str],
    groups: Sequence[tuple[str, int]],
    what: str,
    number: Literal["exact", "fresh_exact", "nats"] = "exact",
) -> Comparison:
    """better, other: (arm, head)."""

    def gain(runs: Runs) -> float | None:
        own, theirs = (fill_score(runs[arm], head, groups, number) for arm, head in (better, other))
        return less(own, theirs) if number == "nats" else less(theirs, own)

    names = [f"{arm} ({ {'mlm': 'MLM', 'sbo': 'SBO', 'both': 'both heads'}[head] })" for arm, head in (better, other)]
    how = {"exact": "", "fresh_exact": " that stand nowhere else in the block", "nats": ", −log p a token"}[number]
    arms = tuple(dict.fromkeys((better[0], other[0])))
    return Comparison(f"{names[0]} than {names[1]}: {what}{how}", arms, gain, "nats" if number == "nats" else "points")


def more_for_names(runs: Runs) -> float | None:
    names, others = (fills_better(BOTH, PLAIN, groups, "", "nats").gain(runs) for groups in (NAMES, OTHERS))
    return less(others, names)


BOTH, TRAINED_BESIDE, PLAIN, SUBWORD = (
    ("geometric+sbo", "both"), ("geometric+sbo", "mlm"), ("geometric", "mlm"), ("subword", "mlm")
)  # fmt: skip
LONG_NAMES = NAMES[1:]
TRAINED = ("geometric", "geometric+sbo", "subword", "whole_word", "mixed")

CLAIMS = (
    Claim(
        "The budget teaches an arm something about its own masks that the start does not know",
        tuple(more_than_start(arm) for arm in TRAINED),
        tuple(more_than_start(arm, as_trained=True) for arm in TRAINED),
    ),
    Claim(
        "SBO makes the two tokens around a span carry its content",
        (boundary("boundary"),),
        tuple(boundary("boundary", words) for words in range(1, LONGEST + 1)),
    ),
    Claim(
        "It makes these two carry it, more than tokens two further out",
        (Comparison("gain at the boundary above the gain beyond", ("geometric+sbo", "geometric"), only_at_boundary),),
        (boundary("beyond"),),
    ),
    Claim("At equal compute, SBO makes MLM better", (better_under("geometric+sbo", "geometric", "geometric"),)),
    Claim(
        "A model predicts best what is hidden as in its own training",
        tuple(best_at_home(scheme) for scheme in SCHEMES),
    ),
    Claim(
        "Geometric spans teach more about spans of 4 to 10 words than single tokens do",
        (better_under("geometric", "subword", "geometric", LONG),),
        tuple(better_under("geometric", "subword", "geometric", [words]) for words in range(1, LONGEST + 1)),
    ),
    Claim(
        "The longer the span, the more",
        (
            Comparison(
                "gain on spans of 4 to 10 words above the gain on single words", ("geometric", "subword"), longer_more
            ),
        ),
    ),
    Claim(
        "Mixed masks keep more than half of what single tokens teach",
        (keeps_half("subword"),),
        (better_under("mixed", "subword", "subword"),),
    ),
    Claim(
        "Mixed masks keep more than half of what spans teach",
        (keeps_half("geometric"),),
        (better_under("mixed", "geometric", "geometric"),),
    ),
    Claim(
        "With SBO, names are filled better",
        (fills_better(BOTH, PLAIN, NAMES, "names", "nats"),),
        (
            fills_better(TRAINED_BESIDE, PLAIN, NAMES, "names", "nats"),
            fills_better(BOTH, TRAINED_BESIDE, NAMES, "names", "nats"),
            fills_better(BOTH, PLAIN, NAMES, "names"),
            *(fills_better(BOTH, PLAIN, [group], f"names of {group[1]}") for group in NAMES),
            fills_better(BOTH, PLAIN, NAMES, "names", "fresh_exact"),
            fills_better(BOTH, PLAIN, [("year", 1)], "years"),
            fills_better(BOTH, PLAIN, [("number", 1)], "numbers"),
            fills_better(BOTH, PLAIN, OTHERS, "other words"),
        ),
    ),
    Claim(
        "Names gain more from it than other words",
        (Comparison("gain on names above the gain on other words", (BOTH[0], PLAIN[0]), more_for_names),),
    ),
    Claim(
        "Geometric spans teach filling names of two and three words better than single tokens do",
        (fills_better(PLAIN, SUBWORD, LONG_NAMES, "names of 2 and 3", "nats"),),
        (
            fills_better(PLAIN, SUBWORD, LONG_NAMES, "names of 2 and 3"),
            fills_better(PLAIN, SUBWORD, LONG_NAMES, "names of 2 and 3", "fresh_exact"),
            fills_better(PLAIN, SUBWORD, NAMES[:1], "names of 1", "nats"),
        ),
    ),
)


def question_claims(questions: int) -> tuple[Claim, ...]:
    """F1 after fine-tuning on so many questions."""

    def compare(better: str, other: str) -> Comparison:
        def gain(runs: Runs) -> float | None:
            return less(*(_f1(runs[arm], questions) for arm in (other, better)))

        return Comparison(f"{better} than {other}, F1 of {questions:,} questions", (better, other), gain, "points")

    after = f"after {questions:,} questions"
    return (
        Claim(f"Further pretraining is worth F1 {after}", tuple(compare(a, "none") for a in ("geometric", "subword"))),
        Claim(f"SBO is worth F1 {after}", (compare("geometric+sbo", "geometric"),)),
        Claim(f"Geometric spans are worth F1 {after}, against single tokens", (compare("geometric", "subword"),)),
        Claim(f"Mixed masks are worth F1 {after}, against geometric spans", (compare("mixed", "geometric"),)),
    )


def _f1(run: Mapping[str, Any], questions: int) -> float | None:
    return run.get("questions", {}).get(str(questions), {}).get("f1")
