"""A bias along the beads leaves their mean forces as they are; other biases do not (ESFM)."""

import numpy as np
import pytest

from benchmarks.bias_invariance import (
    X,
    Y,
    agreement,
    expected_worst,
    hidden_well,
    left_in,
    mean_force,
    muller_brown,
    no_bias,
    umbrella,
    wave,
    well,
)


def test_mean_forces_do_not_depend_on_a_bias_along_the_bead() -> None:
    unbiased = mean_force(no_bias)
    for bias in (well, wave):
        assert np.abs(mean_force(bias) - unbiased).max() < 1e-10


def test_mean_force_is_the_slope_of_the_free_energy() -> None:
    energy, _ = muller_brown(X[:, None], Y[None])
    lowest = energy.min(axis=1)
    free = lowest - np.log(np.exp(-(energy - lowest[:, None])).sum(axis=1) * (Y[1] - Y[0]))
    slope = np.gradient(free, X, edge_order=2)
    assert np.abs(mean_force(no_bias) + slope)[2:-2].max() < 0.01
    minimum = X[free.argmin()]
    assert minimum == pytest.approx(23.02, abs=0.06)  # golden value by quadrature


@pytest.mark.parametrize("bias", [well, wave])
def test_a_bias_that_is_left_in_the_forces_shows(bias) -> None:
    difference = np.abs(mean_force(bias, subtract=False) - mean_force(no_bias))
    assert difference.max() > 0.3


def test_a_bias_along_what_is_averaged_out_shows() -> None:
    assert np.abs(mean_force(hidden_well) - mean_force(no_bias)).max() > 0.1


def test_short_runs_with_two_biases_agree_and_a_wrong_one_shows(tmp_path) -> None:
    soft = umbrella(tmp_path, 15.0, 0.25, seed=1)
    stiff = umbrella(tmp_path, 60.0, 0.15, seed=2)
    found = agreement(soft, stiff)
    assert found.bins >= 10 and found.total < 4 and found.worst < expected_worst(found.bins)
    wrong = agreement(soft, left_in(tmp_path, 0.25, seed=3))
    assert wrong.total > 5, wrong
