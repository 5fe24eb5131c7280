"""Weights and what they are worth, on distributions whose answers are known exactly."""

import numpy as np
import pytest
from handmade import chi_square_z

import openmm_cgml as cgml
from openmm_cgml.reweight import (
    Estimate,
    WeightReport,
    block_bootstrap,
    block_sums,
    expectation,
    forward_fraction,
    kish_size,
    log_mean,
    pareto_limit,
    pareto_smoothed,
    weight_report,
    without_top,
)


def gaussian_log_weights(x: np.ndarray, width: float, mean: float = 0.0) -> np.ndarray:
    """ln of N(mean, width) over a standard normal, at x."""
    return 0.5 * (x**2 - ((x - mean) / width) ** 2) - np.log(width)


def test_kish_size() -> None:
    assert kish_size(np.full(7, -1000.0)) == pytest.approx(7)
    assert kish_size(np.array([0.0, -np.inf])) == pytest.approx(1)
    assert kish_size(np.log([0.5, 0.25, 0.25])) == pytest.approx(1 / 0.375)


def test_importance_weights_give_the_mean_and_its_error() -> None:
    """Samples of N(0, 1) weighted to N(1/2, 1)."""
    rng = np.random.default_rng(4)
    z = []
    for _ in range(200):
        x = rng.standard_normal(2000)
        means, errors = expectation(0.5 * x + 1e4, np.stack([x, x > 0.5], axis=1))
        z.append((means - 0.5) / errors)
    for column in np.transpose(z):
        assert abs(chi_square_z(column)) < 4


def test_uniform_weights_give_the_ordinary_error() -> None:
    x = np.random.default_rng(0).standard_normal(400)
    mean, error = expectation(np.zeros(400), x)
    assert (mean, error) == pytest.approx((x.mean(), x.std() / 20))


@pytest.mark.parametrize(
    ("log_weights", "values", "message"),
    [
        (np.zeros(3), np.zeros(4), r"values have shape \(4,\); give \(3,\)"),
        (np.zeros(3), np.full(3, np.nan), "3 of 3 values are not finite"),
        (np.full(3, -np.inf), np.zeros(3), "only -inf"),
        (np.full(3, np.nan), np.zeros(3), "hold nan"),
        (np.zeros((3, 1)), np.zeros(3), "log weights have shape"),
    ],
)
def test_bad_weights_are_refused(log_weights, values, message) -> None:
    with pytest.raises(cgml.InputError, match=message):
        expectation(log_weights, values)


# ---------------------------------------------------------------- Gaussians


def test_log_mean_is_the_partition_function() -> None:
    scores = []
    for seed in range(40):
        x = np.random.default_rng(seed).normal(size=2000)
        value, error = log_mean(gaussian_log_weights(x, 0.8, 0.2) + 700.0)
        scores.append((value - 700.0) / error)
    assert abs(np.mean(scores)) < 4 / 40**0.5 and 0.7 < np.std(scores) < 1.3


def test_effective_sizes_are_the_exact_ones() -> None:
    """<w>^2 / <w^2> of N(m, 1) over N(0, 1) is exp(-m^2), from either side."""
    x = np.random.default_rng(1).normal(size=200_000)
    assert kish_size(gaussian_log_weights(x, 1.0, 0.5)) / len(x) == pytest.approx(
        np.exp(-0.25), rel=0.01
    )
    found = forward_fraction(gaussian_log_weights(x + 0.5, 1.0, 0.5) + 3.0)
    assert found == pytest.approx(np.exp(-0.25), rel=0.01)


def test_forward_fraction_finds_a_mode_that_the_proposal_misses() -> None:
    """Half of the target is where the proposal has next to nothing: its own weights are even."""
    rng = np.random.default_rng(2)
    proposal = rng.normal(size=5000)

    def log_weights(x: np.ndarray) -> np.ndarray:
        return np.logaddexp(-0.5 * x**2, -0.5 * (x - 12) ** 2) + 0.5 * x**2

    frames = np.concatenate([rng.normal(size=500), 12 + rng.normal(size=500)])
    report = weight_report(log_weights(proposal), forward_fraction(log_weights(frames)))
    assert report.fraction > 0.99 and report.forward < 1e-6
    assert not report.converged and "misses" in report.text()
    assert weight_report(log_weights(proposal)).converged  # it cannot know
    weighted = forward_fraction(log_weights(frames), np.where(frames < 6, 1.0, 0.0))
    assert weighted > 0.99
    assert forward_fraction(np.array([0.0, -np.inf])) == 0.0


def test_pareto_smoothing_keeps_the_order_and_the_sign() -> None:
    """ArviZ takes minus the log weights in one version and the log weights in another."""
    x = np.random.default_rng(3).normal(size=4000)
    logs = gaussian_log_weights(x, 1.3)
    smoothed, shape = pareto_smoothed(logs)
    # The same order: the largest stay the largest.
    order = np.argsort(logs)
    assert (np.diff(smoothed[order]) > -1e-9).all()
    assert np.exp(smoothed).sum() == pytest.approx(1.0)
    # w of N(0, s) over N(0, 1) has a tail of shape 1 - 1 / s^2.
    assert shape == pytest.approx(1 - 1 / 1.3**2, abs=0.12)
    # Most weights, of the body, stay as they are.
    body = order[: len(order) // 2]
    shift = smoothed[body] - logs[body]
    assert np.ptp(shift) < 1e-9


def test_smoothing_brings_the_variance_of_a_heavy_tail_nearer() -> None:
    plain, smooth = [], []
    for seed in range(60):
        x = np.random.default_rng(seed).normal(size=500)
        logs = gaussian_log_weights(x, 1.6)
        plain.append(expectation(logs, x**2)[0])
        smooth.append(expectation(pareto_smoothed(logs)[0], x**2)[0])
    error = [float(((np.array(v) - 1.6**2) ** 2).mean()) for v in (plain, smooth)]
    assert error[1] < error[0]


@pytest.mark.parametrize(
    ("logs", "shape"),
    [
        (np.zeros(100), -np.inf),
        (np.minimum(np.linspace(-1, 0.3, 2000), 0.0), -np.inf),
        (np.arange(9.0), np.nan),
    ],
)
def test_there_is_no_tail_to_fit(logs, shape) -> None:
    smoothed, found = pareto_smoothed(logs)
    np.testing.assert_equal(found, shape)
    np.testing.assert_allclose(np.exp(smoothed), np.exp(logs) / np.exp(logs).sum())


def test_zero_weights_stay_zero() -> None:
    logs = gaussian_log_weights(np.random.default_rng(4).normal(size=1000), 1.2)
    logs[::10] = -np.inf
    assert np.exp(pareto_smoothed(logs)[0][::10]).max() < 1e-300


def test_limit_of_the_shape() -> None:
    assert pareto_limit(10**6) == 0.7 and pareto_limit(100) == pytest.approx(0.5)


def test_what_clipping_removes_is_told() -> None:
    logs = np.log(np.arange(1.0, 101.0))
    clipped, removed = without_top(logs, 0.02)
    assert np.isneginf(clipped).sum() == 2 and np.isneginf(clipped[-2:]).all()
    assert removed == pytest.approx(199 / 5050)
    same, nothing = without_top(logs, 0.0)
    assert nothing == 0 and (same == logs).all()
    with pytest.raises(cgml.InputError, match="share is 1"):
        without_top(logs, 1.0)


def test_heavy_tails_are_refused() -> None:
    x = np.random.default_rng(5).normal(size=3000)
    report = weight_report(gaussian_log_weights(x, 3.0))
    assert not report.converged and "k-hat" in report.text()
    assert weight_report(np.zeros(50)).problems == ("only 50 samples are effective",)
    heavy = weight_report(np.log(np.r_[np.ones(3000), 300.0]))
    assert any("9% of the weight" in p for p in heavy.problems)
    record = weight_report(np.zeros(500)).record()
    assert record["pareto_k"] is None and record["converged"] and record["fraction"] == 1.0


def test_estimates_that_have_not_converged_say_so() -> None:
    good = Estimate(1.234567, 0.01, "kJ/mol")
    assert str(good) == "1.235 ± 0.01 kJ/mol" and good.converged
    bad = Estimate(1.0, 0.1, problems=WeightReport(999, 9.0, 0.2, 0.02).problems)
    assert str(bad) == "not converged (only 9 samples are effective): 1 ± 0.1"
    assert not Estimate(float("inf"), 1.0).converged
    assert Estimate(float("inf"), 1.0).record()["value"] is None


@pytest.mark.parametrize("correlated", [1, 20])
def test_block_bootstrap_errors_are_as_large_as_the_errors(correlated) -> None:
    """Ratios of sums, of samples that come in correlated stretches."""
    scores = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = np.repeat(rng.normal(size=4000 // correlated), correlated)
        w = np.exp(gaussian_log_weights(x, 0.9, 0.1))
        sums = block_sums(np.stack([w, w * x], axis=1), 50)
        value, error = block_bootstrap(sums, lambda s: s[1] / s[0], seed=seed)
        scores.append((value - 0.1) / error)
    assert abs(np.mean(scores)) < 4 / 60**0.5 and 0.7 < np.std(scores) < 1.35


def test_block_sums_leave_nothing_out() -> None:
    values = np.random.default_rng(0).normal(size=(103, 2))
    sums = block_sums(values, 10)
    assert sums.shape == (10, 2)
    np.testing.assert_allclose(sums.sum(0), values.sum(0))
    assert len(block_sums(values[:3], 10)) == 3
    with pytest.raises(cgml.InputError, match="two or more"):
        block_bootstrap(values[:1], np.sum)
