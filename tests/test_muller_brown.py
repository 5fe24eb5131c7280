"""Müller-Brown along x: golden values, and the propositions of the method where all is exact.

T1: the relative entropy of a PMF is bounded by its force error where the target is log-concave.
T2: a bias along the bead leaves mean forces alone (test_bias_invariance), and the PMF learned.
T3: weights are consistent for any proposal, with an error of B^(-1/2).
T4: with a learned PMF the error ends at the PMF's own; the proposal changes the variance alone.
"""

import numpy as np
import pytest

from benchmarks.muller_brown import BARRIER, GOLDEN, GRID, MB, MINIMA, golden, minima
from openmm_cgml.reweight import expectation, kish_size, log_mean

#: Positions of minima in the specification were read on a grid; energies were not.
COARSE = {"first minimum, x": 0.02, "second minimum, x": 0.01}

TRUTH, BIASED = MB["exact"](), MB["exact"](with_bias=True)


@pytest.fixture(scope="module")
def exact() -> dict[str, float]:
    return golden()


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(exact, name) -> None:
    value, digit = GOLDEN[name]
    assert exact[name] == pytest.approx(value, abs=COARSE.get(name, 0.5 * digit + 1e-9))


def test_minima_of_the_potential() -> None:
    for found, expected in zip(minima(), MINIMA, strict=True):
        assert found[2] == pytest.approx(expected[2], abs=5e-4)
        assert found[:2] == pytest.approx(expected[:2], abs=0.02)


def samples(density: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x drawn from a density on `GRID`, and ln of it there."""
    cumulative = np.concatenate(
        [[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(GRID))]
    )
    uniform = np.random.default_rng(seed).random(count) * cumulative[-1]
    # The density between grid points is that of the straight line between cumulative values.
    place = np.clip(np.searchsorted(cumulative, uniform) - 1, 0, len(GRID) - 2)
    slope = (cumulative[place + 1] - cumulative[place]) / (GRID[1] - GRID[0])
    return GRID[place] + (uniform - cumulative[place]) / slope, np.log(slope / cumulative[-1])


def share_beyond(energy, density: np.ndarray, count: int, seed: int) -> tuple[float, float]:
    """Return P(x > barrier) and its error, by samples of the density weighted by the energy."""
    x, log_density = samples(density, count, seed)
    return expectation(-energy(x) - log_density, (x > BARRIER).astype(float))


def true_energy(x: np.ndarray) -> np.ndarray:
    return np.interp(x, GRID, TRUTH.energy)


def test_t1_the_force_error_bounds_the_relative_entropy() -> None:
    """N(m, s) against N(0, s): both sides are m^2 / 2 s^2; a wider one lies below its bound."""
    sigma, mean = 0.7, 0.4
    x = np.random.default_rng(0).normal(mean, sigma, 200_000)
    forces = mean / sigma**2 * np.ones_like(x)  # of one minus the other
    bound = 0.5 * sigma**2 * float(np.mean(forces**2))  # rho = 1 / sigma^2, kT = 1
    gap = (x**2 - (x - mean) ** 2) / (2 * sigma**2)
    entropy, error = expectation(np.zeros_like(x), gap)
    assert abs(entropy - bound) < 4 * error
    assert bound == pytest.approx(mean**2 / (2 * sigma**2))
    wide = 1.3 * sigma
    x = np.random.default_rng(1).normal(0, wide, 200_000)
    bound = 0.5 * sigma**2 * float(np.mean((x / sigma**2 - x / wide**2) ** 2))
    gap = x**2 / (2 * sigma**2) - x**2 / (2 * wide**2) - np.log(wide / sigma)
    assert 0 < gap.mean() < bound


def test_t1_does_not_hold_for_double_wells_with_a_constant_of_one_well() -> None:
    """Moving weight from one well to the other costs entropy and next to no force error."""
    step = 0.5 * (1 + np.tanh((GRID - BARRIER) / 0.5))
    moved = np.exp(-(TRUTH.energy - 2.0 * step))  # 2 kT deeper beyond the barrier
    moved /= np.trapezoid(moved, GRID)
    force = np.gradient(2.0 * step, GRID)
    bound = 0.5 * 4.0**2 * np.trapezoid(moved * force**2, GRID)  # rho of the data's own width
    entropy = np.trapezoid(moved * np.log(np.maximum(moved, 1e-300) / TRUTH.density), GRID)
    assert entropy > 0.05 > 0.2 * bound


def test_t2_pmfs_of_biased_and_unbiased_frames_agree_and_a_bias_left_in_shows() -> None:
    """Frames drawn exactly, forces with their exact noise."""
    found = {}
    for name in ("unbiased", "biased"):
        density = (BIASED if name == "biased" else TRUTH).density
        x, _ = samples(density, 200_000, seed=1)
        noise = np.sqrt(np.interp(x, GRID, TRUTH.variance))
        forces = np.interp(x, GRID, TRUTH.force)
        forces = forces + noise * np.random.default_rng(2).normal(size=len(x))
        found[name] = MB["ForceMatched"].fit(x, forces)
        if name == "biased":
            left = forces + (x - 32) / 25 * MB["bias"](x)
            found["left in"] = MB["ForceMatched"].fit(x, left)
    seen = TRUTH.density > 1e-3
    curves = {}
    for name, pmf in found.items():
        energy = pmf.energy(GRID)[seen]
        curves[name] = energy - TRUTH.energy[seen]
        curves[name] -= np.average(curves[name], weights=TRUTH.density[seen])
    assert np.abs(curves["unbiased"]).max() < 0.15
    assert np.abs(curves["biased"]).max() < 0.15
    assert np.abs(curves["left in"]).max() > 1.0


def test_t3_weights_are_consistent_and_errors_fall_with_the_root(exact) -> None:
    for with_bias in (False, True):
        density = (BIASED if with_bias else TRUTH).density
        spread = []
        for count in (500, 8000):
            found = np.array(
                [share_beyond(true_energy, density, count, seed) for seed in range(60)]
            )
            scores = (found[:, 0] - exact["P(x > 31.2)"]) / found[:, 1]
            if count == 8000:
                assert abs(scores.mean()) < 4 / 60**0.5 and 0.7 < scores.std() < 1.35
            spread.append(found[:, 0].std())
        assert 2.6 < spread[0] / spread[1] < 6.2  # 4


def test_t3_the_weights_undo_the_bias_with_the_exact_effective_size(exact) -> None:
    x, log_density = samples(BIASED.density, 200_000, seed=5)
    logs = -true_energy(x) - log_density
    share = kish_size(logs) / len(x)
    assert share == pytest.approx(exact["effective share of the bias"], abs=0.004)
    value, error = log_mean(logs)
    z = np.log(np.trapezoid(np.exp(-TRUTH.energy), GRID))
    assert abs(value - z) < 4 * error


def test_t4_the_error_ends_at_that_of_the_pmf_whatever_the_proposal(exact) -> None:

    def wrong(x: np.ndarray) -> np.ndarray:
        return true_energy(x) + 0.3 * np.tanh((x - BARRIER) / 2)

    own = np.exp(-wrong(GRID))
    fine = np.linspace(BARRIER, GRID[-1], 20_001)
    limit = np.trapezoid(np.interp(fine, GRID, own), fine) / np.trapezoid(own, GRID)
    assert abs(limit - exact["P(x > 31.2)"]) > 0.01
    spreads = []
    for with_bias in (False, True):
        density = (BIASED if with_bias else TRUTH).density
        found = np.array([share_beyond(wrong, density, 20_000, seed) for seed in range(30)])
        scores = (found[:, 0] - limit) / found[:, 1]
        assert abs(scores.mean()) < 4 / 30**0.5
        # Far more than the noise from the TRUTH.
        assert abs(found[:, 0].mean() - exact["P(x > 31.2)"]) > 10 * found[:, 1].mean() / 30**0.5
        spreads.append(found[:, 1].mean())
    assert spreads[0] != pytest.approx(spreads[1], rel=0.05)  # variance is the proposal's


def test_the_example_s_density_learns_what_it_is_given() -> None:
    density = BIASED.density
    x, log_density = samples(density, 40_000, seed=3)
    learned = MB["Density"](x, steps=200)
    drawn = learned.sample(20_000, seed=1)
    entropy = float((log_density - learned.log_prob(x)).mean())
    assert -0.001 < entropy < 0.02  # nats
    assert (drawn > BARRIER).mean() == pytest.approx((x > BARRIER).mean(), abs=0.012)
    lattice = np.linspace(-20, 80, 4001)
    assert np.trapezoid(np.exp(learned.log_prob(lattice)), lattice) == pytest.approx(1.0, abs=1e-3)
