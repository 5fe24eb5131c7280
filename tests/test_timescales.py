"""Implied timescales against processes whose timescales are known."""

import numpy as np
import pytest
from test_landscape import run_of

import openmm_cgml as cgml
from openmm_cgml import timescales
from openmm_cgml.landscape import frame_interval, tica, torsion_features
from openmm_cgml.timescales import implied_timescales


def first_coordinate(positions: np.ndarray) -> np.ndarray:
    return positions[:, 0, :1]


def of_series(values: np.ndarray, interval: float = 1.0) -> "cgml.Run":
    """A run of two beads, the first at (value, 0, 0)."""
    positions = np.zeros((*values.shape, 2, 3))
    positions[:, :, 0, 0] = values
    return run_of(positions, interval)


def two_state(frames: int, copies: int, up: float, down: float, seed: int) -> np.ndarray:
    """A Markov chain in equilibrium; its only timescale is -1 / ln(1 - up - down)."""
    rng = np.random.default_rng(seed)
    state = rng.random(copies) < up / (up + down)
    found = np.empty((frames, copies))
    for k in range(frames):
        found[k] = state
        state ^= rng.random(copies) < np.where(state, down, up)
    return found


def relaxing(frames: int, copies: int, time: float, seed: int) -> np.ndarray:
    """An Ornstein-Uhlenbeck process, one step of time a frame."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-1 / time)
    found = np.empty((frames, copies))
    state = rng.normal(size=copies)
    for k in range(frames):
        found[k] = state
        state = decay * state + (1 - decay**2) ** 0.5 * rng.normal(size=copies)
    return found


@pytest.mark.parametrize("method", ["tica", "msm"])
def test_a_two_state_chain(method) -> None:
    """z-scores of 20 chains by the bootstrap's own errors, at two lags."""
    pytest.importorskip("deeptime")
    exact = -2.0 / np.log(1 - 0.03 - 0.06)
    z = []
    for seed in range(20):
        run = of_series(two_state(400, 30, 0.03, 0.06, seed), interval=2.0)
        found = implied_timescales(run, first_coordinate, [2.0, 8.0], method=method, count=2)
        assert found.lags.tolist() == [2.0, 8.0] and found.copies == 30
        assert np.isnan(found.values[:, 1]).all()  # there is one process
        z.append((found.values[:, 0] - exact) / found.errors[:, 0])
    z = np.array(z)
    assert np.abs(z.mean(0)).max() < 4 / 20**0.5
    assert 0.6 < z.std() < 1.5


def test_an_ornstein_uhlenbeck_process() -> None:
    z = []
    for seed in range(20):
        run = of_series(relaxing(500, 20, 12.0, seed), interval=0.5)
        found = implied_timescales(run, first_coordinate, [0.5, 3.0], count=1)
        z.append((found.values[:, 0] - 6.0) / found.errors[:, 0])
    z = np.array(z)
    # The mean over 20 finite chains is a little biased at first order in 1 / length.
    assert np.abs(z.mean(0)).max() < 4 / 20**0.5 and 0.6 < z.std() < 1.5


def test_tica_is_deeptimes() -> None:
    pytest.importorskip("deeptime")
    rng = np.random.default_rng(0)
    slow = relaxing(600, 6, 20.0, 1)
    positions = rng.normal(size=(600, 6, 2, 3))
    positions[:, :, 0, 0] += 3 * slow

    def features(xyz: np.ndarray) -> np.ndarray:
        return xyz.reshape(len(xyz), -1)

    run = run_of(positions)
    found = implied_timescales(run, features, [5.0], count=2, resamples=2)
    expected = tica(run, features, lag=5.0, count=2).timescales
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-6)


def test_a_markov_model_on_clusters_of_a_continuous_coordinate() -> None:
    pytest.importorskip("deeptime")
    run = of_series(relaxing(3000, 10, 15.0, 3))
    found = implied_timescales(run, first_coordinate, [10.0], method="msm", states=30, count=1)
    # Clusters make it faster, never slower: a lower bound but for the noise.
    assert 0.85 * 15 < found.values[0, 0] < 15 + 3 * found.errors[0, 0]


def test_one_copy_has_no_error() -> None:
    found = implied_timescales(of_series(relaxing(2000, 1, 8.0, 4)), first_coordinate, [2.0])
    assert np.isfinite(found.values[0, 0]) and np.isnan(found.errors).all()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "vamp"}, "method 'vamp' is unknown; give tica or msm"),
        ({"lags": []}, "no lags were given"),
        ({"lags": [500.0]}, "each copy has 60; run longer"),
    ],
)
def test_what_is_refused(settings, problem) -> None:
    run = of_series(relaxing(60, 2, 3.0, 5))
    with pytest.raises(cgml.InputError, match=problem):
        implied_timescales(run, first_coordinate, **{"lags": [1.0], **settings})


def test_a_replica_exchange_is_refused() -> None:
    run = of_series(relaxing(60, 2, 3.0, 6))
    run.info["ladders"] = 2
    with pytest.raises(cgml.InputError, match="no time series of a molecule"):
        implied_timescales(run, first_coordinate, [1.0])


def test_features_of_torsions(dataset) -> None:
    features = torsion_features(dataset.topology)(dataset.positions[:7])
    assert features.shape == (7, 4)
    np.testing.assert_allclose((features**2).sum(1), 2, atol=1e-6)
    turned = dataset.positions[:7] @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]]) + 3
    np.testing.assert_allclose(torsion_features(dataset.topology)(turned), features, atol=1e-4)
    two = of_series(relaxing(5, 1, 3.0, 0)).topology
    assert torsion_features(two)(np.zeros((4, 2, 3)) + [[0.0], [1.0]]).shape == (4, 1)


def test_interval() -> None:
    assert frame_interval(of_series(np.zeros((5, 1)), interval=0.2)) == pytest.approx(0.2)
    assert frame_interval(of_series(np.zeros((1, 1)))) == np.inf
    assert timescales.METHODS == ("tica", "msm")
