"""What is fitted: against scipy's optimiser, sums over pairs, and data drawn from a known model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from finetune.retrieval.combine import DEFAULT_COMBINATION, RIDGE, Features, fit_combination
from finetune.retrieval.confidence import (
    FILE,
    Calibration,
    Evidence,
    HeldOut,
    load_calibration,
    save_calibrations,
    shares_and_margins,
)
from finetune.retrieval.logistic import fit_logistic
from finetune.retrieval.reliability import (
    Bin,
    auroc,
    bins_of,
    calibration_error,
    draw_reliability,
    error_by_chance,
    risk_coverage,
)
from spanbert.errors import UserError


def penalised_loss(questions: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> float:
    """What the weights should make least: the surprise at the right choices, and the pull towards the default."""
    total = len(questions) * RIDGE / 2 * ((weights - DEFAULT_COMBINATION.vector()) ** 2).sum()
    for x, y in questions:
        total -= (y / y.sum()) @ (x @ weights - np.logaddexp.reduce(x @ weights))
    return total


def choices(questions: int, weights: np.ndarray, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Questions of 2 to 9 candidates, one of which is drawn as right by the softmax of weights · features."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(questions):
        x = rng.normal(size=(rng.integers(2, 10), 3)) * [4.0, 3.0, 2.0]
        chance = np.exp(x @ weights - (x @ weights).max())
        right = np.zeros(len(x))
        right[rng.choice(len(x), p=chance / chance.sum())] = 1
        drawn.append((x, right))
    return drawn


def test_the_weights_are_those_that_scipy_finds() -> None:
    questions = choices(60, np.array([0.3, -0.1, 0.8]))
    questions[0][1][:] = 1  # all candidates right
    questions += [(np.ones((4, 3)), np.zeros(4))]  # none right: says nothing
    expected = minimize(lambda one: penalised_loss(questions[:60], one), np.zeros(3), options={"gtol": 1e-8}).x
    np.testing.assert_allclose(fit_combination(questions).vector(), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_start_far_from_the_best_weights_does_not_lead_astray(seed: int) -> None:
    """Over 20 passages of an encyclopedia weights of a thousand came out: where the default is sure of wrong candidates
    there is hardly any curvature, and Newton's step goes a long way beyond the least loss, from where none leads back."""
    rng = np.random.default_rng(seed)
    questions = []
    for _ in range(40):
        x = rng.normal(size=(20, 3)) * [3.0, 5.0, 3.0]
        right = np.argmax(x @ [0.5, 0.1, 0.0] + rng.gumbel(size=20))
        questions.append((x, np.eye(20)[right]))
    expected = minimize(lambda one: penalised_loss(questions, one), np.zeros(3), options={"gtol": 1e-8}).x
    np.testing.assert_allclose(fit_combination(questions).vector(), expected, atol=1e-5)


def test_the_weights_that_made_the_data_are_found() -> None:
    """Within 4 standard errors, which for 3,000 questions and these features are below 0.02."""
    weights = np.array([0.4, 0.0, 0.9])
    np.testing.assert_allclose(fit_combination(choices(3000, weights)).vector(), weights, atol=0.08)


def test_without_anything_right_the_default_stays() -> None:
    assert fit_combination([]) == DEFAULT_COMBINATION
    assert fit_combination([(np.ones((3, 3)), np.zeros(3))]) == DEFAULT_COMBINATION
    assert DEFAULT_COMBINATION.score(Features(2.0, 100.0, 3.0)) == pytest.approx(0.4 * 2 + 3)


def test_logistic_regression_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 4)) * [1, 10, 0.1, 0] + [0, 5, 0, 2]  # the last does not vary
    y = (rng.random(200) < 1 / (1 + np.exp(-x[:, 0] - 0.2 * x[:, 1]))).astype(float)
    model = fit_logistic(x, y, ridge=2.0)
    z = np.column_stack([(x[:, :3] - x[:, :3].mean(0)) / x[:, :3].std(0), np.zeros(200)])

    def loss(weights: np.ndarray) -> float:
        scores = weights[0] + z @ weights[1:]
        return (np.logaddexp(0, scores) - y * scores).sum() + (weights[1:] ** 2).sum() + 5e-5 * weights[0] ** 2

    expected = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose([model.bias, *model.weights], expected, atol=1e-5)
    chance = 1 / (1 + np.exp(-expected[0] - z @ expected[1:]))
    np.testing.assert_allclose(model.probability(x), chance, atol=1e-5)
    assert float(model.probability(x[7])) == pytest.approx(chance[7], abs=1e-5)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_separable_and_one_sided_data_give_finite_weights(right: float) -> None:
    x = np.linspace(-1, 1, 40)[:, None]
    assert np.isfinite(fit_logistic(x, (x[:, 0] > 0).astype(float), ridge=1e-6).probability(x)).all()
    chance = fit_logistic(x, np.full(40, right)).probability(x)
    assert np.abs(chance - right).max() < 0.01


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(2)
    sure, right = rng.integers(0, 6, 80) / 6, (rng.random(80) < 0.4).astype(float)  # with ties
    pairs = [(a > b) + (a == b) / 2 for a in sure[right == 1] for b in sure[right == 0]]
    assert auroc(sure, right) == pytest.approx(np.mean(pairs))
    assert auroc(sure, np.ones(80)) is None


def test_exact_confidences_show_an_error_by_chance_alone() -> None:
    """One bin's share of n questions strays by sqrt(2/π · p (1 − p) / n) from p in the mean."""
    assert error_by_chance(np.full(400, 0.5)) == pytest.approx(np.sqrt(2 / np.pi * 0.25 / 400), rel=0.15)
    assert error_by_chance(np.ones(50)) == 0.0
    assert error_by_chance(np.linspace(0.1, 0.9, 100)) > 2 * error_by_chance(np.linspace(0.1, 0.9, 1600))


def test_the_calibration_error_of_known_bins() -> None:
    sure = np.repeat([0.2, 0.9], 10)
    right = np.concatenate([[1.0] * 5, [0.0] * 5, [1.0] * 9, [0.0]])
    assert calibration_error(sure, right, 2) == pytest.approx((0.3 + 0.0) / 2)
    first, second = bins_of(sure, right)  # ten are asked for, but equal confidences stay together
    assert (first.low, first.high, first.right, first.questions) == (0.2, 0.2, 0.5, 10)
    assert (second.low, second.right) == (0.9, 0.9)
    rng = np.random.default_rng(3)
    spread = rng.random(101)
    assert sum(one.questions for one in bins_of(spread, spread)) == 101
    assert {one.questions for one in bins_of(spread, spread)} == {10, 11}


def test_risk_falls_to_that_of_the_surest() -> None:
    coverage, risk = risk_coverage(np.array([0.1, 0.9, 0.5, 0.7]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(risk, [0, 0, 1 / 3, 1 / 2])


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    sure = rng.random(100)
    draw_reliability(tmp_path / "sub" / "a.png", sure, (rng.random(100) < sure).astype(float), "title")
    assert (tmp_path / "sub" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_shares_and_margins() -> None:
    (first, first_margin), (second, second_margin) = shares_and_margins([2.0, 1.0])
    assert first == pytest.approx(1.0) and second == pytest.approx(-1.0)  # the odds of two are e^difference
    assert (first_margin, second_margin) == (1.0, -1.0)
    assert shares_and_margins([7.0])[0] == (pytest.approx(np.log((1 - 1e-6) / 1e-6)), 0.0)


@pytest.fixture
def calibration() -> Calibration:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(50, 9)), (rng.random(50) < 0.5).astype(float)
    bins = (Bin(0.0, 0.4, 0.2, 0.25, 30), Bin(0.5, 0.9, 0.7, 0.74, 20))
    held_out = HeldOut("dev.json", "00", 50, "its own article", "2026-01-02")
    return Calibration(
        DEFAULT_COMBINATION, fit_logistic(x, y), fit_logistic(x, y), bins, 5, held_out, {"exact_ece": 0.1}
    )


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path, calibration: Calibration) -> None:
    assert load_calibration(None, "text") is load_calibration(tmp_path, "text") is None
    save_calibrations(tmp_path, {"text": calibration})
    assert load_calibration(tmp_path, "text") == calibration
    assert load_calibration(tmp_path, "documents") is None
    other = replace(calibration, passages=9)
    save_calibrations(tmp_path, {"documents": other})  # what there is of the other way stays
    assert (load_calibration(tmp_path, "text"), load_calibration(tmp_path, "documents")) == (calibration, other)
    evidence = Evidence(log_odds=1.0, first=1.0)
    assert calibration.confidence(evidence) == float(calibration.exact.probability(evidence.vector()))


def test_a_confidence_in_words(calibration: Calibration) -> None:
    assert calibration.in_words(0.6) == "of held-out questions this sure, 74 % were answered right"
    assert "25 %" in calibration.in_words(0.41) and "74 %" in calibration.in_words(0.99)


def test_a_damaged_calibration_is_named(tmp_path: Path, calibration: Calibration) -> None:
    save_calibrations(tmp_path, {"text": calibration})
    content = json.loads((tmp_path / FILE).read_text())
    content["text"]["exact"]["weights"] = [1.0]
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'calibration\.json: "text".*expected 9 weights'):
        load_calibration(tmp_path, "text")
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(UserError, match="not a calibration of format 1"):
        load_calibration(tmp_path, "text")
