"""Swap moves against exact distributions and rates, and what is counted about them."""

import itertools
import json
import time
import warnings

import numpy as np
import pytest
from scipy.special import betainc

import openmm_cgml as cgml
from openmm_cgml.exchange import (
    SWAPS,
    ExchangeStatistics,
    acceptance_probability,
    gibbs_swaps,
    neighbour_swaps,
    propose_ladder,
)
from openmm_cgml.units import GAS_CONSTANT


def betas_of(kelvin) -> np.ndarray:
    return 1 / (GAS_CONSTANT * np.asarray(kelvin, dtype=float))


def ladders_of_oscillators(ladders: int, betas, dimensions: int, rng):
    """Rungs in random order, and exact energies of harmonic oscillators at them."""
    rungs = rng.permuted(np.tile(np.arange(len(betas)), (ladders, 1)), axis=1)
    return rungs, rng.gamma(dimensions / 2, size=rungs.shape) / betas[rungs]


def exact_acceptance(dimensions: int, ratio: float) -> float:
    """Of swaps between harmonic oscillators at T and ratio x T.

    The acceptance is 2 P(the colder one has the higher energy), and X/(X + Y) of two Gamma(d/2)
    variables is Beta(d/2, d/2).
    """
    return 2 * betainc(dimensions / 2, dimensions / 2, 1 / (1 + ratio))


# ---------------------------------------------------------------- moves


@pytest.mark.parametrize("scheme", SWAPS)
@pytest.mark.parametrize("dimensions", [3, 30])
def test_acceptance_of_oscillators_is_exact(scheme, dimensions) -> None:
    rng = np.random.default_rng(1)
    kelvin = np.array([300.0, 360.0])
    rungs, energies = ladders_of_oscillators(40000, betas_of(kelvin), dimensions, rng)
    # One attempt: later ones have the same rate, but are no longer independent.
    options = {"attempts": 1} if scheme == "gibbs" else {}
    after, tried, made = SWAPS[scheme](rungs, energies, betas_of(kelvin), 0, rng, **options)
    exact = exact_acceptance(dimensions, 1.2)
    assert tried[0, 1] == 40000
    assert abs(made[0, 1] - 40000 * exact) < 4 * np.sqrt(40000 * exact * (1 - exact))
    assert made[0, 1] == (after != rungs).any(axis=1).sum()


@pytest.mark.parametrize("scheme", SWAPS)
@pytest.mark.parametrize("sweep", [0, 1])
@pytest.mark.parametrize("count", [4, 5])
def test_boltzmann_distributions_stay(scheme, sweep, count) -> None:
    """Means and variances of the energy at every rung, after a sweep of exact samples."""
    rng = np.random.default_rng(20 + sweep)
    ladders, dimensions = 20000, 12
    betas = betas_of(np.geomspace(300, 700, count))
    rungs, energies = ladders_of_oscillators(ladders, betas, dimensions, rng)
    after, _, made = SWAPS[scheme](rungs, energies, betas, sweep, rng)
    assert made.sum() > 0.2 * ladders
    np.testing.assert_array_equal(np.sort(after, axis=1), np.tile(np.arange(count), (ladders, 1)))
    for rung, beta in enumerate(betas):
        reduced = beta * energies[after == rung]  # Gamma(a): mean a, variance a
        a = dimensions / 2
        square = (reduced - a) ** 2
        assert abs(reduced.mean() - a) < 4 * np.sqrt(a / ladders)
        assert abs(square.mean() - a) < 4 * np.sqrt((2 * a**2 + 6 * a) / ladders)


@pytest.mark.parametrize("scheme", SWAPS)
@pytest.mark.parametrize("sweep", [0, 1])
def test_flows_between_states_balance(scheme, sweep) -> None:
    """As many ladders go from state i to j as back: permutations x which energies are high."""
    rng = np.random.default_rng(30 + sweep)
    betas = betas_of([300, 420, 600])
    rungs, energies = ladders_of_oscillators(200_000, betas, 8, rng)
    after, _, _ = SWAPS[scheme](rungs, energies, betas, sweep, rng)
    high = (energies > np.median(energies)) @ [1, 2, 4]
    place = np.array([9, 3, 1])
    codes = {
        int(place @ permutation): k
        for k, permutation in enumerate(itertools.permutations(range(3)))
    }
    number = np.full(27, -1)
    number[list(codes)] = list(codes.values())
    flows = np.zeros((8, 6, 6))
    np.add.at(flows, (high, number[rungs @ place], number[after @ place]), 1)
    there, back = flows, flows.transpose(0, 2, 1)
    z = (there - back) / np.sqrt(np.maximum(there + back, 1))
    upper = np.triu(there + back, 1) > 20
    assert upper.sum() >= (24 if scheme == "neighbour" else 100)
    assert np.abs(z[upper]).max() < 4.5  # up to 120 comparisons
    # The test has teeth: permutations are not equally likely, given the energies.
    populations = flows.sum(axis=2)[1]
    assert populations.max() > 1.5 * populations.min()


def test_neighbours_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    betas = betas_of([300, 350, 410, 480, 560])
    rungs, energies = ladders_of_oscillators(200, betas, 40, rng)
    frozen = rng.random(rungs.shape) < 0.1
    for sweep, mask in itertools.product(range(4), [None, frozen]):
        lower = range(sweep % 2, 4, 2)
        logs = -np.random.default_rng(sweep).standard_exponential((200, len(lower)))
        expected, tried, made = rungs.copy(), np.zeros((5, 5), int), np.zeros((5, 5), int)
        for ladder, (column, i) in itertools.product(range(200), enumerate(lower)):
            (a,), (b,) = (np.flatnonzero(rungs[ladder] == r) for r in (i, i + 1))
            if mask is not None and (mask[ladder, a] or mask[ladder, b]):
                continue
            tried[i, i + 1] += 1
            gain = (betas[i] - betas[i + 1]) * (energies[ladder, a] - energies[ladder, b])
            if logs[ladder, column] < gain:
                made[i, i + 1] += 1
                expected[ladder, a], expected[ladder, b] = i + 1, i
        before = rungs.copy()
        found = neighbour_swaps(rungs, energies, betas, sweep, np.random.default_rng(sweep), mask)
        np.testing.assert_array_equal(found.rungs, expected)
        np.testing.assert_array_equal(found.attempted, tried + tried.T)
        np.testing.assert_array_equal(found.accepted, made + made.T)
        np.testing.assert_array_equal(rungs, before)


def test_sweeps_take_turns() -> None:
    rng = np.random.default_rng(0)
    betas = betas_of(np.geomspace(300, 400, 5))
    rungs, energies = ladders_of_oscillators(10, betas, 4, rng)
    for sweep, pairs in [(0, [(0, 1), (2, 3)]), (1, [(1, 2), (3, 4)]), (2, [(0, 1), (2, 3)])]:
        tried = neighbour_swaps(rungs, energies, betas, sweep, rng).attempted
        assert sorted(zip(*np.nonzero(np.triu(tried)), strict=True)) == pairs
        assert tried.max() == 10


def test_gibbs_draws_rungs_afresh() -> None:
    """The default number of attempts is as good as many more; a sweep of neighbours is not."""
    rng = np.random.default_rng(4)
    betas = betas_of(np.geomspace(300, 600, 8))
    rungs, energies = ladders_of_oscillators(4000, betas, 100, rng)

    def memory(after):
        return np.corrcoef(rungs.ravel(), after.ravel())[0, 1]

    default = memory(gibbs_swaps(rungs, energies, betas, 0, rng).rungs)
    many = memory(gibbs_swaps(rungs, energies, betas, 0, rng, attempts=2000).rungs)
    assert default < many + 0.015
    assert memory(neighbour_swaps(rungs, energies, betas, 0, rng).rungs) > default + 0.05


@pytest.mark.parametrize("scheme", SWAPS)
def test_frozen_copies_keep_their_rung(scheme) -> None:
    rng = np.random.default_rng(6)
    betas = betas_of([300, 310, 320, 330])
    rungs, energies = ladders_of_oscillators(500, betas, 4, rng)
    frozen = rng.random(rungs.shape) < 0.2
    energies[frozen] = rng.choice([np.nan, np.inf, -np.inf], frozen.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after, tried, made = SWAPS[scheme](rungs, energies, betas, 0, rng, frozen)
    np.testing.assert_array_equal(after[frozen], rungs[frozen])
    np.testing.assert_array_equal(np.sort(after, axis=1), np.tile(np.arange(4), (500, 1)))
    assert (after != rungs).any() and (made <= tried).all()
    with pytest.raises(cgml.InputError, match=r"not finite.*frozen=~np.isfinite"):
        SWAPS[scheme](rungs, energies, betas, 0, rng)
    nothing = SWAPS[scheme](rungs, energies, betas, 0, rng, np.ones_like(frozen))
    np.testing.assert_array_equal(nothing.rungs, rungs)
    assert nothing.attempted.sum() == 0


@pytest.mark.parametrize("scheme", SWAPS)
def test_huge_energies_do_not_overflow(scheme) -> None:
    rng = np.random.default_rng(7)
    rungs = np.array([[0, 1], [0, 1]])
    energies = np.array([[1e6, -1e6], [-1e6, 1e6]])
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        options = {"attempts": 1} if scheme == "gibbs" else {}
        after = SWAPS[scheme](rungs, energies, betas_of([300, 600]), 0, rng, **options).rungs
    np.testing.assert_array_equal(after, [[1, 0], [0, 1]])  # the cold rung takes the low energy


@pytest.mark.parametrize("scheme", SWAPS)
def test_equal_temperatures_always_swap_and_one_rung_never(scheme) -> None:
    rng = np.random.default_rng(8)
    rungs, energies = ladders_of_oscillators(50, betas_of([300, 300]), 4, rng)
    _, tried, made = SWAPS[scheme](rungs, energies, betas_of([300, 300]), 0, rng)
    np.testing.assert_array_equal(tried, made)
    alone = SWAPS[scheme](np.zeros((5, 1), int), np.zeros((5, 1)), betas_of([300]), 0, rng)
    assert alone.rungs.shape == (5, 1) and alone.attempted.sum() == 0


@pytest.mark.parametrize("scheme", SWAPS)
def test_the_seed_decides(scheme) -> None:
    betas = betas_of([300, 320, 350])
    rungs, energies = ladders_of_oscillators(100, betas, 9, np.random.default_rng(0))
    one, same, other = (
        SWAPS[scheme](rungs, energies, betas, 0, np.random.default_rng(seed)).rungs
        for seed in (1, 1, 2)
    )
    assert (one == same).all() and (one != other).any()


@pytest.mark.parametrize("scheme", SWAPS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rungs": [[0, 1, 1]]}, r"rungs of ladder 0 are \[0, 1, 1\]; give each of 0 to 2 once"),
        ({"rungs": [[0, 1, 3]]}, "out of range; give integers 0 to 2"),
        ({"rungs": [[0.0, 1.0, 2.0]]}, "rungs are float64"),
        ({"rungs": [0, 1, 2]}, r"rungs have shape \(3,\)"),
        ({"betas": [1.0, 2.0]}, r"betas of shape \(2,\)"),
        ({"energies": [[1.0, 2.0]]}, r"energies have shape \(1, 2\)"),
        ({"energies": [[1.0, np.nan, 2.0]]}, "1 energies.*copy 1 of ladder 0"),
        ({"frozen": [True, False, False]}, r"frozen has shape \(3,\)"),
    ],
)
def test_bad_sweeps_are_refused(scheme, change, message) -> None:
    arguments = {
        "rungs": [[0, 1, 2]],
        "energies": [[1.0, 2.0, 3.0]],
        "betas": [0.4, 0.35, 0.3],
        "sweep": 0,
        "generator": np.random.default_rng(0),
    }
    with pytest.raises(cgml.InputError, match=message):
        SWAPS[scheme](**(arguments | change))


def test_a_sweep_costs_microseconds_a_copy() -> None:
    rng = np.random.default_rng(9)
    betas = betas_of(np.geomspace(300, 600, 8))
    rungs, energies = ladders_of_oscillators(1000, betas, 100, rng)
    for scheme, limit in [("neighbour", 5e-3), ("gibbs", 50e-3)]:
        times = []
        for sweep in range(10):
            start = time.perf_counter()
            SWAPS[scheme](rungs, energies, betas, sweep, rng)
            times.append(time.perf_counter() - start)
        assert min(times) < limit  # 0.3 and 5 ms measured on one core


# ---------------------------------------------------------------- statistics


def follow(*rungs) -> ExchangeStatistics:
    """Statistics of one ladder whose copies go through these rungs, with no swap matrices."""
    path = [np.array([one]) for one in rungs]
    count = path[0].shape[1]
    statistics, none = ExchangeStatistics.start(1, count), np.zeros((count, count), int)
    for before, after in itertools.pairwise(path):
        statistics.update(before, after, none, none)
    return statistics


def test_round_trips() -> None:
    # Copy 0 goes up and down again; copy 2 down and up; copy 1 touches the ends at last.
    found = follow([0, 1, 2], [1, 0, 2], [2, 0, 1], [2, 1, 0], [1, 2, 0], [0, 2, 1], [0, 1, 2])
    np.testing.assert_array_equal(found.half_trips, [[2, 1, 2]])
    np.testing.assert_array_equal(found.round_trips, [[1, 0, 1]])
    assert found.sweeps == 6
    # Waiting at an end, or leaving it and coming back, is no trip.
    waiting = follow(*[[0, 1, 2], [0, 1, 2], [1, 0, 2], [0, 1, 2]] * 3)
    assert waiting.half_trips.sum() == 0
    # A copy that starts in between starts to count at the end that it reaches first.
    assert follow([0, 1], [1, 0], [0, 1], [1, 0]).half_trips.tolist() == [[3, 3]]
    assert follow([0], [0]).round_trips.tolist() == [[0]]


def test_transitions_and_mixing_matrix() -> None:
    found = follow([0, 1, 2], [1, 0, 2], [1, 0, 2], [1, 2, 0])
    np.testing.assert_array_equal(found.transitions, [[1, 1, 1], [1, 2, 0], [1, 0, 2]])
    np.testing.assert_allclose(found.mixing_matrix()[0], [1 / 3] * 3)
    np.testing.assert_allclose(found.mixing_matrix().sum(axis=1), 1)


def test_mixing_time_of_a_known_chain() -> None:
    statistics = ExchangeStatistics.start(10, 2)
    statistics.transitions[:] = [[90, 10], [10, 90]]  # eigenvalues 1 and 0.8
    assert statistics.mixing_time() == pytest.approx(-1 / np.log(0.8))
    statistics.transitions[:] = [[100, 0], [0, 100]]
    assert statistics.mixing_time() == np.inf
    statistics.transitions[:] = [[50, 50], [50, 50]]
    assert statistics.mixing_time() == pytest.approx(0, abs=0.05)
    assert np.isnan(ExchangeStatistics.start(1, 2).mixing_time())


@pytest.fixture(scope="module")
def run() -> ExchangeStatistics:
    """200 sweeps in which configurations are drawn anew at their temperature."""
    rng = np.random.default_rng(3)
    betas = betas_of([300, 340, 385, 436])
    rungs, _ = ladders_of_oscillators(50, betas, 20, rng)
    statistics = ExchangeStatistics.start(50, 4)
    for sweep in range(200):
        energies = rng.gamma(10, size=rungs.shape) / betas[rungs]
        after, tried, made = neighbour_swaps(rungs, energies, betas, sweep, rng)
        statistics.update(rungs, after, tried, made)
        rungs = after
    return statistics


def test_acceptance_of_a_run(run) -> None:
    n = 50 * 100
    exact = [
        exact_acceptance(20, hot / cold) for cold, hot in [(300, 340), (340, 385), (385, 436)]
    ]
    for found, p in zip(run.acceptance(), exact, strict=True):
        assert abs(found - p) < 4 * np.sqrt(p * (1 - p) / n)
    np.testing.assert_allclose(run.mixing_matrix().sum(axis=1), 1)
    # Swaps of neighbours are the only transitions, half of the sweeps each.
    np.testing.assert_array_equal(np.diag(run.transitions, 1), np.diag(run.accepted, 1))
    assert 1 < run.mixing_time() < 20
    assert run.round_trips.mean() > 3


def test_untried_pairs_have_no_acceptance() -> None:
    statistics = ExchangeStatistics.start(2, 3)
    assert np.isnan(statistics.acceptance()).all()
    assert np.isnan(statistics.mixing_matrix()).all()
    assert statistics.summary()["neighbour_acceptance"] == [None, None]
    assert statistics.summary()["mixing_time_sweeps"] is None


def test_summary_is_json(run) -> None:
    summary = json.loads(json.dumps(run.summary(), allow_nan=False))
    assert summary["sweeps"] == 200 and summary["copies"] == 200
    assert summary["round_trips"] == run.round_trips.sum()
    assert len(summary["neighbour_acceptance"]) == 3


def test_statistics_go_on_from_a_checkpoint(run, tmp_path) -> None:
    np.savez(tmp_path / "s.npz", **run.to_arrays())
    with np.load(tmp_path / "s.npz") as arrays:
        other = ExchangeStatistics.from_arrays(arrays)
    assert other.summary() == run.summary()
    rungs, none = np.tile(np.arange(4), (50, 1)), np.zeros((4, 4), int)
    before = run.half_trips.copy()
    other.update(rungs, rungs[:, ::-1], none, none)
    assert other.sweeps == 201 and run.sweeps == 200
    np.testing.assert_array_equal(run.half_trips, before)
    with pytest.raises(cgml.InputError, match="lack last_end, half_trips"):
        ExchangeStatistics.from_arrays({n: none for n in ("attempted", "accepted", "transitions")})


def test_statistics_of_another_ladder_are_refused(run) -> None:
    rungs, none = np.tile(np.arange(3), (50, 1)), np.zeros((3, 3), int)
    with pytest.raises(cgml.InputError, match="50 ladders of 4 rungs; start new ones"):
        run.update(rungs, rungs, none, none)


# ---------------------------------------------------------------- ladders


def test_gaussian_acceptance_against_quadrature() -> None:
    rng = np.random.default_rng(5)
    x = np.linspace(-10, 10, 200_001)
    w = np.exp(-(x**2) / 2)
    for _ in range(20):
        means, variances = rng.normal(0, 5, 2), rng.uniform(1, 30, 2)
        betas = rng.uniform(0.2, 1, 2)
        m = (betas[0] - betas[1]) * (means[0] - means[1])
        s = abs(betas[0] - betas[1]) * np.sqrt(variances.sum())
        exact = (w * np.exp(np.minimum(0, m + s * x))).sum() / w.sum()
        found = acceptance_probability(*means, *variances, *betas)
        assert isinstance(found, float)
        assert found == pytest.approx(exact, rel=1e-7)
        swapped = acceptance_probability(*means[::-1], *variances[::-1], *betas[::-1])
        assert swapped == pytest.approx(found, rel=1e-12)


def test_gaussian_acceptance_of_large_systems_is_that_of_oscillators() -> None:
    a, (cold, hot) = 500, betas_of([300, 312])
    found = acceptance_probability(a / cold, a / hot, a / cold**2, a / hot**2, cold, hot)
    assert found == pytest.approx(exact_acceptance(1000, 1.04), rel=5e-3)


def test_gaussian_acceptance_at_its_limits() -> None:
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        assert acceptance_probability(5.0, 9.0, 1.0, 1.0, 0.4, 0.4) == 1
        assert acceptance_probability(5.0, 9.0, 0.0, 0.0, 0.4, 0.3) == pytest.approx(np.exp(-0.4))
        assert acceptance_probability(9.0, 5.0, 0.0, 0.0, 0.4, 0.3) == 1
        assert acceptance_probability(-1e6, 1e6, 1.0, 1.0, 0.4, 0.2) == 0
        assert acceptance_probability(1e6, -1e6, 1.0, 1.0, 0.4, 0.2) == 1
        # Without a difference of means, half of all wide differences are above zero.
        assert acceptance_probability(0.0, 0.0, 1e16, 1e16, 0.4, 0.3) == pytest.approx(0.5)
    near, exact = (acceptance_probability(5, 9, v, v, 0.4, 0.3) for v in (1e-18, 0))
    assert near == pytest.approx(exact, rel=1e-6)
    array = acceptance_probability(np.zeros((2, 3)), 1.0, 1.0, 1.0, 0.4, 0.3)
    assert array.shape == (2, 3) and ((0 < array) & (array < 1)).all()


def oscillator(dimensions: int):
    return lambda beta: dimensions / 2 / beta, lambda beta: dimensions / 2 / beta**2


def acceptances(kelvin, mean, variance) -> np.ndarray:
    cold, hot = betas_of(kelvin[:-1]), betas_of(kelvin[1:])
    return acceptance_probability(mean(cold), mean(hot), variance(cold), variance(hot), cold, hot)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_ladders_of_constant_heat_capacity_are_geometric(count) -> None:
    kelvin = propose_ladder(300, 600, *oscillator(100), count=count)
    np.testing.assert_allclose(kelvin, np.geomspace(300, 600, count), rtol=1e-6)
    assert (kelvin[0], kelvin[-1]) == (300, 600)


@pytest.mark.parametrize("target", [0.05, 0.3, 0.8])
def test_the_fewest_rungs_for_a_target(target) -> None:
    mean, variance = oscillator(200)
    kelvin = propose_ladder(300, 500, mean, variance, target=target)
    rates = acceptances(kelvin, mean, variance)
    assert rates.min() >= target - 1e-9 and np.ptp(rates) < 1e-6
    fewer = propose_ladder(300, 500, mean, variance, count=len(kelvin) - 1)
    assert acceptances(fewer, mean, variance).max() < target


def test_rungs_gather_where_the_heat_capacity_peaks() -> None:
    """Two states 60 kJ/mol apart, equal at 400 K, each with 40 harmonic degrees of freedom."""
    middle = float(betas_of(400))

    def upper(beta):
        return 1 / (1 + np.exp(60 * (beta - middle)))

    def mean(beta):
        return 20 / beta + 60 * upper(beta)

    def variance(beta):
        return 20 / beta**2 + 3600 * upper(beta) * (1 - upper(beta))

    kelvin = propose_ladder(300, 600, mean, variance, count=10)
    assert np.ptp(acceptances(kelvin, mean, variance)) < 1e-6
    steps = np.diff(np.log(kelvin))
    grid = np.linspace(300, 600, 3001)
    capacity = betas_of(grid) ** 2 * variance(betas_of(grid))
    narrowest = np.argmin(steps)
    assert kelvin[narrowest] < grid[capacity.argmax()] < kelvin[narrowest + 1]
    assert steps.min() < 0.6 * steps.max()


def test_a_target_within_reach_takes_two_rungs() -> None:
    kelvin = propose_ladder(300, 301, *oscillator(10), target=0.5)
    assert kelvin.tolist() == [300, 301]
    # Energies that do not depend on temperature: any ladder swaps always.
    flat = propose_ladder(300, 600, lambda beta: 0.0, lambda beta: 0.0, count=4)
    assert (np.diff(flat) > 0).all() and len(flat) == 4


def test_very_unlikely_swaps_are_still_equal() -> None:
    mean, variance = oscillator(20000)
    kelvin = propose_ladder(300, 600, mean, variance, count=3)
    np.testing.assert_allclose(kelvin, np.geomspace(300, 600, 3), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lowest": 600}, "not below the highest"),
        ({"lowest": -3}, "lowest temperature is -3"),
        ({"target": 0.3}, "either target, an acceptance, or count"),
        ({"count": None}, "either target"),
        ({"count": 1}, "count is 1; give at least 2"),
        ({"count": None, "target": 1.0}, "between 0 and 1"),
        ({"count": None, "target": 1 - 1e-9}, "more than 1000 rungs"),
        ({"mean": lambda beta: np.nan}, "mean and variance at 300 K are nan"),
        ({"variance": lambda beta: -1.0}, "give functions that return finite"),
    ],
)
def test_impossible_ladders_are_refused(change, message) -> None:
    mean, variance = oscillator(30)
    arguments = {"lowest": 300, "highest": 600, "mean": mean, "variance": variance, "count": 4}
    with pytest.raises(cgml.InputError, match=message):
        propose_ladder(**(arguments | change))


def test_unknown_schemes_are_named() -> None:
    with pytest.raises(cgml.InputError, match="unknown swap scheme 'neighbor'; did you mean"):
        SWAPS["neighbor"]
