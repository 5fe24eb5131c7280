"""MBAR weights, on systems whose answers are known exactly."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from handmade import chi_square_z

import openmm_cgml as cgml
from openmm_cgml import mbar as module
from openmm_cgml.mbar import mbar
from openmm_cgml.reweight import expectation
from openmm_cgml.units import GAS_CONSTANT

ROOT = Path(__file__).resolve().parent.parent


def oscillators(dimensions: int, kelvin, counts, rng) -> tuple[np.ndarray, np.ndarray]:
    """Exact energies of harmonic oscillators at each temperature, and their rungs."""
    rungs = np.repeat(np.arange(len(kelvin)), counts)
    kt = GAS_CONSTANT * np.asarray(kelvin, dtype=float)[rungs]
    return kt * rng.gamma(dimensions / 2, size=len(rungs)), rungs


@pytest.mark.parametrize("counts", [[300, 300, 300, 300], [0, 500, 0, 200]])
def test_harmonic_oscillators_between_rungs(counts) -> None:
    """100 data sets: f, <E> and <E^2> have the exact values and the stated errors."""
    rng = np.random.default_rng(12)
    dimensions, kelvin, target = 30, np.array([300.0, 340.0, 390.0, 450.0]), 360.0
    exact = -dimensions / 2 * np.log(kelvin / kelvin[0])
    mean = dimensions / 2 * GAS_CONSTANT * target
    exact_values = [mean, mean**2 * (1 + 2 / dimensions)]
    f, values, naive = [], [], []
    for _ in range(100):
        energies, rungs = oscillators(dimensions, kelvin, counts, rng)
        result = mbar(energies, rungs, kelvin, target)
        f.append(((result.free_energies - exact)[1:] / result.errors[1:])[[0, -1]])
        observables = np.stack([energies, energies**2], axis=1)
        found, errors = result.expectation(observables)
        values.append((found - exact_values) / errors)
        assert (expectation(result.log_weights, observables)[1] <= errors).all()
        naive.append(expectation(result.log_weights, observables)[1] / errors)
        assert result.free_energies[0] == result.errors[0] == 0
    # The two of each data set are correlated, which only widens chi^2: test them one by one.
    for column in (*np.transpose(f), *np.transpose(values)):
        assert abs(chi_square_z(column)) < 4
        assert abs(np.mean(column)) * 10 < 4
    # Taking the weights as known would leave out a part of the error that is not small.
    assert np.mean(naive) < 0.99


def test_double_well_between_rungs() -> None:
    """Populations and moments in one dimension against quadrature."""
    rng = np.random.default_rng(8)
    grid = np.linspace(-2.5, 2.5, 20001)

    def energy(x):
        return 12 * (x**2 - 1) ** 2 + 1.5 * x

    def density(kelvin):
        p = np.exp(-energy(grid) / (GAS_CONSTANT * kelvin))
        return p / p.sum()

    kelvin, target = [300.0, 450.0, 700.0], 360.0
    positions = np.concatenate(
        [np.interp(rng.random(3000), np.cumsum(density(one)), grid) for one in kelvin]
    )
    result = mbar(energy(positions), np.repeat([0, 1, 2], 3000), kelvin, target)
    observables = np.stack([positions > 0, positions, positions**2], axis=1)
    exact = density(target) @ np.stack([grid > 0, grid, grid**2], axis=1)
    found, errors = result.expectation(observables)
    assert (np.abs(found - exact) < 4 * errors).all()
    assert errors[0] < 0.01
    # and the free energies
    z = [np.exp(-energy(grid) / (GAS_CONSTANT * one)).sum() for one in kelvin]
    assert (np.abs(result.free_energies + np.log(z / z[0]))[1:] < 4 * result.errors[1:]).all()


@pytest.fixture(scope="module")
def sampled() -> tuple[np.ndarray, np.ndarray, list[float]]:
    kelvin = [300.0, 350.0, 420.0]
    energies, rungs = oscillators(20, kelvin, [200, 150, 0], np.random.default_rng(2))
    return energies, rungs, kelvin


def test_weights_sum_to_one_and_their_size_is_kishs(sampled) -> None:
    result = mbar(*sampled, target=330)
    assert result.weights.sum() == pytest.approx(1, abs=1e-12)
    assert result.effective_samples == pytest.approx(1 / np.square(result.weights).sum())
    assert 100 < result.effective_samples < 350
    assert mbar(*sampled, target=60).effective_samples < 20


def test_the_order_of_the_samples_does_not_matter(sampled) -> None:
    energies, rungs, kelvin = sampled
    order = np.random.default_rng(0).permutation(len(energies))
    one, other = mbar(energies, rungs, kelvin), mbar(energies[order], rungs[order], kelvin)
    assert one.target == 300
    np.testing.assert_allclose(other.log_weights, one.log_weights[order], rtol=0, atol=1e-10)
    np.testing.assert_allclose(other.free_energies, one.free_energies, rtol=0, atol=1e-10)
    np.testing.assert_allclose(other.errors, one.errors, rtol=1e-8)


def test_the_order_of_the_rungs_and_the_zero_of_energy_do_not_matter(sampled) -> None:
    energies, rungs, kelvin = sampled
    one = mbar(energies, rungs, kelvin, 320)
    other = mbar(energies - 1e6, 2 - rungs, kelvin[::-1], 320)
    np.testing.assert_allclose(other.log_weights, one.log_weights, rtol=0, atol=1e-7)
    # f of the last rung against the first, from either end.
    shift = -1e6 * (1 / kelvin[2] - 1 / kelvin[0]) / GAS_CONSTANT
    assert -other.free_energies[2] == pytest.approx(one.free_energies[2] + shift, abs=1e-7)
    assert other.errors[2] == pytest.approx(one.errors[2])


def test_one_temperature_is_plain_reweighting(sampled) -> None:
    energies = sampled[0][:200]
    result = mbar(energies, np.zeros(200, dtype=int), [300.0], 330)
    expected = -energies * (1 / 330 - 1 / 300) / GAS_CONSTANT
    difference = result.log_weights - expected
    assert np.ptp(difference) < 1e-10
    mean, error = result.expectation(energies)
    assert (mean, error) == pytest.approx(expectation(expected, energies))


def test_equal_temperatures_have_equal_free_energies(sampled) -> None:
    energies, rungs, _ = sampled
    result = mbar(energies, rungs, [300.0, 300.0], 300)
    assert result.free_energies == pytest.approx([0, 0])
    assert result.errors == pytest.approx([0, 0])
    assert result.effective_samples == pytest.approx(len(energies))


def test_errors_are_pymbars(sampled) -> None:
    energies, rungs, kelvin = sampled
    result = mbar(energies, rungs, kelvin)
    betas = 1 / (GAS_CONSTANT * np.array(kelvin))
    with module._quiet_pymbar():
        import pymbar

        other = pymbar.MBAR(np.outer(betas, energies), result.counts)
        free = other.compute_free_energy_differences(uncertainty_method="svd-ew")
        mean = other.compute_expectations(energies)
    np.testing.assert_allclose(result.free_energies, free["Delta_f"][0], atol=1e-7)
    np.testing.assert_allclose(result.errors, free["dDelta_f"][0], atol=1e-7)
    found = result.expectation(energies)
    np.testing.assert_allclose(found, (mean["mu"][0], mean["sigma"][0]), rtol=1e-6)


def test_many_degrees_of_freedom_converge() -> None:
    """From pymbar's own start this ladder does not converge within minutes."""
    rng = np.random.default_rng(1)
    kelvin = np.geomspace(300, 600, 8)
    energies, rungs = oscillators(300, kelvin, [300] * 8, rng)
    result = mbar(energies - 1e5, rungs, kelvin)
    exact = -150 * np.log(kelvin / 300) - 1e5 * (1 / kelvin - 1 / 300) / GAS_CONSTANT
    z = (result.free_energies - exact)[1:] / result.errors[1:]
    assert (np.abs(z) < 4).all()


def test_without_overlap_the_errors_say_so() -> None:
    energies, rungs = oscillators(3000, [300, 600], [50, 50], np.random.default_rng(1))
    assert mbar(energies, rungs, [300, 600]).errors[1] > 1e3


def test_a_solution_that_is_none_is_refused(sampled, monkeypatch) -> None:
    monkeypatch.setattr(module, "_solve", lambda *_: np.array([0.0, 1.0, 2.0]))
    with pytest.raises(cgml.CGMLError, match="did not converge.*temperatures between"):
        mbar(*sampled)


def test_quantities_are_stripped(sampled) -> None:
    from openmm import unit

    energies, rungs, kelvin = sampled
    plain = mbar(energies, rungs, kelvin, 320)
    kilocalories = energies / 4.184 * unit.kilocalories_per_mole
    other = mbar(kilocalories, rungs, kelvin * unit.kelvin, 320 * unit.kelvin)
    np.testing.assert_allclose(other.log_weights, plain.log_weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energies": np.array([1.0, np.nan, np.inf])}, "2 of 3 energies are not finite; leave"),
        ({"energies": np.zeros(0), "rungs": np.zeros(0, int)}, "at least one"),
        ({"energies": np.zeros((3, 1))}, r"energies have shape \(3, 1\)"),
        ({"rungs": np.zeros(2, int)}, r"rungs are int64 of shape \(2,\); give \(3,\) integers"),
        ({"rungs": np.zeros(3)}, "rungs are float64"),
        ({"rungs": np.array([0, 1, 2])}, "1 samples are of rungs such as 2.*give 0 to 1"),
        ({"temperatures": [300.0, -1.0]}, "positive numbers in kelvin"),
        ({"temperatures": []}, "at least one"),
        ({"target": 0}, "target temperature is 0"),
    ],
)
def test_bad_samples_are_refused(change, message) -> None:
    arguments = {
        "energies": np.array([1.0, 2.0, 3.0]),
        "rungs": np.array([0, 0, 1]),
        "temperatures": [300.0, 400.0],
    }
    with pytest.raises(cgml.InputError, match=message):
        mbar(**(arguments | change))


def test_pymbar_is_quiet_and_leaves_no_trace() -> None:
    code = """if True:
        import logging, sys
        import numpy as np
        from openmm_cgml.mbar import mbar
        assert "pymbar" not in sys.modules and "scipy" not in sys.modules
        np.random.seed(1)
        before, errors = np.random.get_state()[1].tolist(), np.geterr()
        result = mbar([1.0, 2.0, 3.0], np.array([0, 0, 1]), [300.0, 400.0])
        assert np.random.get_state()[1].tolist() == before and np.geterr() == errors
        assert logging.getLogger("pymbar").level == logging.NOTSET
        assert not logging.getLogger().handlers
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_users_level_of_pymbars_log_is_kept() -> None:
    logger = logging.getLogger("pymbar")
    try:
        logger.setLevel(logging.INFO)
        with module._quiet_pymbar():
            assert not logging.getLogger("pymbar.mbar").isEnabledFor(logging.WARNING)
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(logging.NOTSET)
