"""Convergence of AR(1) series, of which everything is known."""

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.run_convergence import convergence, halves_divergence, split_rhat


def autoregressive(frames: int, chains: int, decay: float, seed: int) -> np.ndarray:
    """AR(1) in equilibrium, variance 1; statistical inefficiency (1 + decay) / (1 - decay)."""
    rng = np.random.default_rng(seed)
    found = np.empty((frames, chains))
    found[0] = rng.normal(size=chains)
    for k in range(1, frames):
        found[k] = decay * found[k - 1] + (1 - decay**2) ** 0.5 * rng.normal(size=chains)
    return found


def test_running_means_are_right_within_their_errors() -> None:
    z, effective = [], []
    for seed in range(40):
        found = convergence(autoregressive(1000, 8, 0.8, seed), points=5)
        assert found.lengths.tolist() == [200, 400, 600, 800, 1000]
        assert (found.means[-1], found.errors[-1]) == (found.mean, found.error)
        z.append(found.means / found.errors)
        effective.append(found.effective)
    z = np.array(z)
    assert np.abs(z.mean(0)).max() < 4 / 40**0.5 and 0.75 < z.std() < 1.25
    assert np.mean(effective) == pytest.approx(8000 / 9, rel=0.1)


def test_rhat_of_equal_chains() -> None:
    """AR(1): var of a half's mean is g/n, within it about 1 - g/n, so R^2 is about 1 + g/n."""
    g, squares = 9.0, []
    for seed in range(30):
        squares.append(split_rhat(autoregressive(1000, 8, 0.8, seed), rank=False) ** 2)
    half = 500
    expected = (half - 1) / half + (g / half) / (1 - g / half)
    error = np.std(squares) / 30**0.5
    assert abs(np.mean(squares) - expected) < 4 * error + 5e-4
    assert split_rhat(autoregressive(4000, 8, 0.0, 1)) < 1.01


def test_rhat_of_a_known_shift() -> None:
    """Chains at +-s: B = s^2 (2M / (2M - 1)) + 1/n."""
    values = np.random.default_rng(2).normal(size=(4000, 4))
    values += [0.5, -0.5, 0.5, -0.5]
    expected = (1 - 1 / 2000 + 0.25 * 8 / 7 + 1 / 2000) ** 0.5
    assert split_rhat(values, rank=False) == pytest.approx(expected, abs=0.01)
    assert split_rhat(values) > 1.08


def test_rhat_by_hand() -> None:
    """Halves (0, 2), (1, 3), (1, 3), (2, 4); the middle frame is left out."""
    values = np.array([[0.0, 1], [2, 3], [9, 9], [1, 2], [3, 4]])
    within, between = 2.0, np.var([1, 2, 2, 3], ddof=1)
    expected = (1 / 2 + between / within) ** 0.5
    assert split_rhat(values, rank=False) == pytest.approx(expected)


def test_ranks_find_what_means_do_not() -> None:
    """Chains of different spread have one mean; a Cauchy's variance means nothing."""
    rng = np.random.default_rng(3)
    spread = rng.normal(size=(2000, 4)) * [1, 1, 1, 4]
    assert split_rhat(spread, rank=False) < 1.01 < 1.1 < split_rhat(spread)
    heavy = rng.standard_cauchy(size=(2000, 4))
    assert split_rhat(heavy) < 1.02
    assert split_rhat(heavy + [0, 0, 0, 3]) > 1.1


def test_a_drift_shows_in_one_chain() -> None:
    values = np.random.default_rng(4).normal(size=1000) + np.linspace(0, 3, 1000)
    assert split_rhat(values) > 1.2
    assert np.isnan(convergence(np.ones((50, 2))).rhat)
    stuck = np.repeat([[0.0, 1.0]], 10, axis=0)
    assert split_rhat(stuck, rank=False) == np.inf


def test_divergence_of_independent_halves_is_its_floor() -> None:
    """Of K bins, all well filled: (K - 1) / 2n on average, scatter sqrt(2 (K - 1)) / 2n."""
    rng = np.random.default_rng(5)
    edges = [np.linspace(0, 1, 11)]
    ratios = []
    for _ in range(100):
        found = halves_divergence(rng.uniform(size=(200, 10)), bins=edges, points=4)
        assert found.lengths[-1] == 200
        assert found.floor[-1] == pytest.approx(9 / (2 * 2000))
        ratios.append(found.values / found.floor)
    mean = np.mean(ratios, axis=0)
    assert abs(mean[-1] - 1) < 4 * (2 / 9) ** 0.5 / 100**0.5
    plane = halves_divergence(rng.uniform(size=(400, 10, 2)), bins=[*edges, *edges])
    assert plane.floor[-1] == pytest.approx(99 / 8000) and plane.values[-1] < 2 * plane.floor[-1]


def test_divergence_of_halves_finds_what_does_not_mix() -> None:
    stuck = np.concatenate([np.zeros((100, 5)), np.ones((100, 5))])
    found = halves_divergence(stuck, bins=[np.array([-0.5, 0.5, 1.5])])
    assert found.values[-1] == pytest.approx(np.log(2)) and found.values[0] == 0


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: split_rhat(np.zeros((3, 2))), "at least four frames"),
        (lambda: split_rhat(np.full((9, 2), np.nan)), "all finite"),
        (lambda: halves_divergence(np.zeros((3, 2))), "at least four frames"),
        (lambda: halves_divergence(np.zeros((9, 2, 3))), r"\(frames, chains, 2\)"),
        (lambda: convergence(np.zeros(0)), "shape"),
    ],
)
def test_what_is_refused(call, problem) -> None:
    with pytest.raises(cgml.InputError, match=problem):
        call()
