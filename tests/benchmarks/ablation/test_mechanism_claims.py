"""Every claim of the mechanism comparison has the sign that its words have, and is judged over seeds."""

from __future__ import annotations

import pytest

from benchmarks.ablation.mechanism.claims import CLAIMS, boundary, decide, keeps_half, longer_more, more_for_names
from benchmarks.ablation.mechanism.cross_table import SCHEMES
from benchmarks.ablation.mechanism.fills import (
    GROUPS,
)
from benchmarks.ablation.mechanism.plan import ARMS
from benchmarks.ablation.mechanism.report import report
from benchmarks.ablation.mechanism.spans import LONGEST
from benchmarks.ablation.report import FAILS, HOLDS


def numbers(mlm: float, boundary_loss: float, beyond: float, exact: float, long: float = 0.0) -> dict:
    """A model's, with a loss that grows by ``long`` on spans of four words and more."""
    by_words = {
        "loss": [mlm + long * (n > 3) for n in range(1, LONGEST + 1)],
        "accuracy": [0.5] * 10,
        "targets": [10] * 10,
    }
    bins = {"loss": [mlm] * 6, "accuracy": [0.5] * 6, "targets": [10] * 6}
    masks = {
        "loss": mlm,
        "accuracy": 0.5,
        "targets": 60,
        "by_words": by_words,
        "by_place": bins,
        "by_distance": bins,
        "as_trained": {"loss": mlm, "accuracy": 0.5, "targets": 60},
    }
    probe = {
        reach: {"loss": loss, "accuracy": 0.1, "targets": 100, "loss_by_length": loss, "by_words": {"loss": [loss] * 10, "accuracy": [0.1] * 10, "targets": [10] * 10}}
        for reach, loss in (("boundary", boundary_loss), ("beyond", beyond))
    }  # fmt: skip
    group = {"spans": 10, "exact": exact, "nats": 5.0 - 10 * exact, "fresh_spans": 5, "fresh_exact": exact}
    fills = {f"{kind} {words}": dict(group) for kind, words in GROUPS}
    return {
        "tokens": 9, "cpu_seconds": 1.0, "probe": probe, "masks": {scheme: {"mlm": masks} for scheme in SCHEMES},
        "fills": dict.fromkeys(("mlm", "sbo", "both"), fills), "questions": {},
    }  # fmt: skip


def test_gains_have_the_sign_of_the_claim():
    """What is claimed is better by construction, in each seed by a little more: every such claim holds."""
    wobble = {0: 0.0, 1: 0.01, 2: 0.02}
    scores = {
        "geometric+sbo": {s: numbers(5.0, 6.0 - w, 6.9, 0.3 + w) for s, w in wobble.items()},
        "geometric": {s: numbers(5.0, 7.0, 7.0, 0.2) for s in wobble},
        "subword": {s: numbers(5.5, 7.0, 7.0, 0.1, long=1.0 + w) for s, w in wobble.items()},
        "mixed": {s: numbers(5.1 - w, 7.0, 7.0, 0.2) for s, w in wobble.items()},
    }
    assert decide(scores, [boundary("boundary")]).verdict == HOLDS
    assert decide(scores, [boundary("boundary")]).mean == pytest.approx(1.01)
    assert decide(scores, [boundary("boundary", 7)]).mean == pytest.approx(1.01)
    assert decide(scores, [boundary("beyond")]).mean == pytest.approx(0.1)
    by_text = {claim.text: claim for claim in CLAIMS}
    verdicts = {text: found.verdict for text, claim in by_text.items() if (found := decide(scores, claim.comparisons))}
    assert verdicts["With SBO, names are filled better"] == HOLDS
    assert verdicts["Geometric spans teach more about spans of 4 to 10 words than single tokens do"] == HOLDS
    seed = {arm: runs[0] for arm, runs in scores.items()}
    assert longer_more(seed) == pytest.approx(1.0) and more_for_names(seed) == pytest.approx(0.0)
    assert keeps_half("geometric").gain(seed) == pytest.approx((5.0 + 5.5) / 2 - 5.1)
    swapped = {**scores, "geometric": scores["geometric+sbo"], "geometric+sbo": scores["geometric"]}
    assert decide(swapped, [boundary("boundary")]).verdict == FAILS


def test_best_under_its_own_masks_is_against_the_best_other():
    (claim,) = (claim for claim in CLAIMS if claim.text.startswith("A model predicts best"))
    scores = {arm: {0: numbers(loss, 7, 7, 0.1)} for arm, loss in zip(SCHEMES, (5.0, 5.2, 5.5, 6.0))}
    gains = [comparison.gain({arm: scores[arm][0] for arm in SCHEMES}) for comparison in claim.comparisons]
    assert gains == pytest.approx([0.2, -0.2, -0.5, -1.0])


def test_claims_name_arms_that_exist():
    named = {arm for claim in CLAIMS for c in (*claim.comparisons, *claim.details) for arm in c.arms}
    assert named == set(ARMS)


def test_report_says_what_holds():
    scores = {
        "geometric+sbo": {s: numbers(5.0, 6.0 + s / 50, 7.0, 0.3) for s in range(3)},
        "geometric": {s: numbers(5.0, 7.0, 7.0, 0.2) for s in range(3)},
    }
    baseline = {"probe": numbers(5, 7, 7, 0)["probe"]["boundary"], "masks": numbers(7, 7, 7, 0)["masks"]}
    lines = report(scores, baseline, "about").splitlines()
    holds = lines[lines.index("**Holds:**") : lines.index("**Does not hold:**")]
    assert any(
        line.startswith("* SBO makes the two tokens around a span carry its content: +0.980 ±") for line in holds
    )
    assert any("A model predicts best" in line for line in lines if line.startswith("Not run yet"))
    assert "| geometric+sbo | 6.020 ± 0.020 |" in "\n".join(lines)
