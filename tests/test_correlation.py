"""Correlation times and errors of means, on series whose answers are known exactly."""

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import correlation as module
from openmm_cgml.correlation import (
    effective_sample_size,
    mean_and_error,
    statistical_inefficiency,
)


def autoregressive(correlation: float, frames: int, chains: int, rng) -> np.ndarray:
    """(frames, chains) stationary, mean 0, variance 1, C(t) = correlation^t."""
    noise = rng.standard_normal((frames, chains))
    noise[1:] *= np.sqrt(1 - correlation**2)
    for t in range(1, frames):
        noise[t] += correlation * noise[t - 1]
    return noise


def exact_inefficiency(correlation: float, frames: int) -> float:
    t = np.arange(1, frames)
    return 1 + 2 * ((1 - t / frames) * correlation**t).sum()


@pytest.mark.parametrize(
    ("correlation", "frames", "chains"),
    [
        (0.5, 4000, 1),
        (0.9, 20000, 1),
        (0.9, 400, 50),
        (0.9, 30, 1000),  # chains of 1.6 correlation times
        (0.999, 31, 1000),  # chains that hardly move
        (0.0, 50, 100),
    ],
)
def test_inefficiency_of_autoregressive_chains(correlation, frames, chains) -> None:
    rng = np.random.default_rng(3)
    found = [
        statistical_inefficiency(autoregressive(correlation, frames, chains, rng))
        for _ in range(12)
    ]
    exact = exact_inefficiency(correlation, frames)
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    # Geyer's window ends a bit late by construction: 3 % of bias are allowed for.
    assert abs(np.mean(found) - exact) < 4 * error + 0.03 * exact
    assert all(1 <= one <= frames for one in found)


def test_a_slow_tenth_of_the_variance_is_seen() -> None:
    rng = np.random.default_rng(5)
    weights, correlations = np.sqrt([0.9, 0.1]), (0.3, 0.99)
    exact = sum(
        w**2 * exact_inefficiency(c, 2000) for w, c in zip(weights, correlations, strict=True)
    )
    found = [
        statistical_inefficiency(
            sum(
                w * autoregressive(c, 2000, 50, rng)
                for w, c in zip(weights, correlations, strict=True)
            )
        )
        for _ in range(4)
    ]
    assert np.mean(found) == pytest.approx(exact, rel=0.15)  # a window of 5 tau gives 3.5, not 21


def test_anticorrelated_frames_count_as_independent() -> None:
    series = autoregressive(-0.5, 2000, 2, np.random.default_rng(0))
    assert statistical_inefficiency(series) == 1.0


def test_chains_that_differ_but_do_not_move_are_one_sample_each() -> None:
    series = np.tile(np.random.default_rng(0).standard_normal(64), (100, 1))
    assert statistical_inefficiency(series) == pytest.approx(100)
    assert effective_sample_size(series) == pytest.approx(64)
    mean, error = mean_and_error(series)
    assert error == pytest.approx(series[0].std(ddof=1) / 8)
    assert mean == pytest.approx(series[0].mean())


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 / 3])
def test_a_constant_series_says_nothing(value) -> None:
    assert statistical_inefficiency(np.full((50, 3), value)) == 50
    mean, error = mean_and_error(np.full(50, value))
    assert mean == pytest.approx(value) and np.isnan(error)


def test_the_slowest_observable_counts() -> None:
    rng = np.random.default_rng(1)
    slow, fast = (autoregressive(c, 500, 20, rng) for c in (0.95, 0.0))
    both = effective_sample_size(np.stack([fast, slow], axis=2))
    assert both == effective_sample_size(slow) < effective_sample_size(fast)
    assert effective_sample_size(slow[:, 0]) == pytest.approx(
        500 / statistical_inefficiency(slow[:, :1])
    )


def test_chunks_of_chains_change_nothing(monkeypatch) -> None:
    series = autoregressive(0.8, 100, 30, np.random.default_rng(2))
    whole = statistical_inefficiency(series)
    monkeypatch.setattr(module, "_CHUNK", 1000)
    assert statistical_inefficiency(series) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("frames", "chains"), [(2000, 1), (40, 50)])
def test_errors_of_means_are_as_large_as_the_errors(frames, chains) -> None:
    rng = np.random.default_rng(7)
    z = []
    for _ in range(100):
        mean, error = mean_and_error(autoregressive(0.9, frames, chains, rng))
        z.append(mean / error)
    # 1 if the errors were exact; their own scatter (about 20 % of 100 effective samples) adds.
    assert 0.8 < np.std(z) < 1.3


@pytest.mark.parametrize(
    ("series", "message"),
    [
        (np.zeros((0, 3)), r"shape \(0, 3\); give \(frames,\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.array([1.0, np.nan, np.inf]), "2 of 3 values are not finite; leave"),
    ],
)
def test_bad_series_are_refused(series, message) -> None:
    with pytest.raises(cgml.InputError, match=message):
        statistical_inefficiency(series)


def test_observables_are_required() -> None:
    with pytest.raises(cgml.InputError, match="at least one observable"):
        effective_sample_size(np.zeros((4, 4, 0)))
