"""Free-energy surfaces against exact ones; PCA and TICA against processes with known answers."""

from dataclasses import replace

import numpy as np
import pytest

from openmm_cgml.errors import InputError
from openmm_cgml.landscape import free_energy_surface, principal_components, tica, time_series
from openmm_cgml.run_file import Run
from openmm_cgml.topology import CGTopology
from openmm_cgml.units import thermal_energy

KT = thermal_energy(300.0)


def test_harmonic_free_energy_within_its_errors():
    values = np.random.default_rng(0).normal(size=40_000)
    found = free_energy_surface(values, temperature=300, bins=[np.linspace(-2, 2, 21)])
    (x,) = found.centres
    expected = KT * x**2 / 2
    gap = found.values - expected
    gap -= np.average(gap, weights=found.probability)
    z = gap / found.errors
    assert found.values.min() == 0 and found.probability.sum() == pytest.approx(1)
    assert 0.4 < np.sqrt((z**2).mean()) < 1.6
    assert np.abs(gap).max() < 0.25


def test_weights_move_one_density_onto_another():
    values = np.random.default_rng(1).uniform(-3, 3, size=40_000)
    weights = np.exp(-((values - 0.5) ** 2) / 2)
    found = free_energy_surface(
        values, temperature=300, weights=weights, bins=[np.linspace(-1, 2, 31)]
    )
    (x,) = found.centres
    expected = KT * (x - 0.5) ** 2 / 2
    assert np.abs(found.values - found.values.min() - expected + expected.min()).max() < 0.5


def test_two_observables_and_bins_nobody_saw():
    values = np.random.default_rng(2).normal(size=(5000, 2))
    found = free_energy_surface(values, temperature=300, bins=20)
    assert found.values.shape == found.errors.shape == (20, 20)
    assert np.isnan(found.values[found.probability == 0]).all()
    assert np.isnan(found.errors[found.probability == 0]).all()


@pytest.mark.parametrize(
    ("values", "settings", "problem"),
    [
        (np.zeros((5, 3)), {}, r"give \(frames,\) or \(frames, 2\)"),
        (np.zeros(5), {}, "5 frames with a weight are too few for 10 blocks"),
        (np.zeros(50), {"bins": [np.array([1.0, 2.0])]}, "no frame lies within the bins"),
    ],
)
def test_bad_values(values, settings, problem):
    with pytest.raises(InputError, match=problem):
        free_energy_surface(values, temperature=300, **settings)


def test_principal_components_of_a_known_covariance():
    generator = np.random.default_rng(4)
    values = generator.normal(size=(4000, 3)) * [3, 1, 0.1] + [5, 0, 0]
    weights = (values[:, 1] > 0).astype(float)
    found = principal_components(values, weights)
    assert found.components[:, 0] == pytest.approx([1, 0, 0], abs=0.03)
    assert found.variance.sum() == pytest.approx(1, abs=0.01)
    projected = found(values)
    assert projected.shape == (4000, 2)
    assert np.average(projected, axis=0, weights=weights) == pytest.approx([0, 0], abs=1e-9)


def run_of(positions, interval=1.0, **info):
    beads = positions.shape[2]
    topology = CGTopology(
        ("B",) * beads, ("B",) * beads, ("X",) * beads, tuple(range(beads)), ("A",) * beads,
        tuple((i, i + 1) for i in range(beads - 1)), (1.0,) * beads,
    )  # fmt: skip
    return Run(
        positions, interval * (1 + np.arange(len(positions))), topology,
        {"temperatures_K": [300.0], **info},
    )  # fmt: skip


@pytest.fixture
def slow_and_wide():
    """One slow coordinate (100 ps) and a wider, fast one, hidden in two beads' positions."""
    generator = np.random.default_rng(5)
    positions = np.zeros((4000, 8, 2, 3))
    decay = np.exp(-1 / 50)
    state = generator.normal(size=8)
    for frame in positions:
        state = decay * state + (1 - decay**2) ** 0.5 * generator.normal(size=8)
        frame[:, 0, 0] = state
    positions[:, :, 1, 1] = 5 * generator.normal(size=(4000, 8))
    return run_of(positions, interval=2.0)


def test_tica_finds_the_slow_coordinate(slow_and_wide):
    pytest.importorskip("deeptime")
    found = tica(slow_and_wide, lambda x: x.reshape(len(x), -1)[:, [0, 4]], lag=20.0)
    share = np.abs(found.components[:, 0]) / np.abs(found.components[:, 0]).sum()
    assert share[0] > 0.97
    assert found.timescales[0] == pytest.approx(100, rel=0.15)
    projected = found(np.array([[0.0, 0], [1, 0]]))
    assert abs(projected[1, 0] - projected[0, 0]) > 0.5


def test_tica_refuses_what_is_no_time_series(slow_and_wide):
    two = replace(slow_and_wide, info={"temperatures_K": [300.0, 400.0], "ladders": 4})
    one = replace(slow_and_wide, info={"temperatures_K": [300.0], "ladders": 4})
    for run in (two, one):
        with pytest.raises(InputError, match="frames of a replica exchange are no time series"):
            tica(run, lambda x: x.reshape(len(x), -1), lag=2)


def test_tica_refuses_too_long_a_lag(slow_and_wide):
    with pytest.raises(InputError, match="run longer, or take a shorter lag"):
        tica(slow_and_wide, lambda x: x.reshape(len(x), -1), lag=1e5)


def test_copies_that_were_reset_are_no_time_series(slow_and_wide):
    sick = np.zeros(slow_and_wide.positions.shape[:2], bool)
    sick[100, 3] = True
    kept = time_series(replace(slow_and_wide, sick=sick))
    assert len(kept) == 7 and kept[3] is not None
    np.testing.assert_array_equal(kept[3], slow_and_wide.positions[:, 4])
    with pytest.raises(InputError, match="every copy of the run was reset"):
        time_series(replace(slow_and_wide, sick=~np.zeros_like(sick)))
