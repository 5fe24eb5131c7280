"""Replica exchange against exact results: harmonic and double-well systems at every rung."""

import logging
from dataclasses import replace

import torch  # before openmm

import numpy as np
import openmm
import physical_validation
import pytest
from scipy.special import betainc

import openmm_cgml as cgml
from openmm_cgml.correlation import mean_and_error
from openmm_cgml.mbar import mbar
from openmm_cgml.units import GAS_CONSTANT

SPRING = 800.0  # kJ/mol/nm^2
DEPTH, WIDTH, TILT = 4.0, 0.1, 10.0  # kJ/mol, nm, kJ/mol/nm


class Tethers(cgml.PMF):
    """Every coordinate of every bead in the same harmonic well: E is Gamma(15/2, kT)."""

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        return 400.0 * positions.square().sum(dim=(1, 2))

    def arguments(self) -> dict:
        return {}


class DoubleWell(cgml.PMF):
    """A tilted double well in the first bead's x, harmonic wells in all other coordinates."""

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        x = positions[:, 0, 0]
        well = 4.0 * ((x / 0.1).square() - 1).square() + 10.0 * x
        return well + 400.0 * (positions.square().sum(dim=(1, 2)) - x.square())

    def arguments(self) -> dict:
        return {}


@pytest.fixture(scope="module")
def tethers(dataset, tmp_path_factory) -> "cgml.system.Model":
    path = tmp_path_factory.mktemp("tethers") / "tethers.pt"
    cgml.save_model(path, Tethers(), dataset)
    return cgml.load_model(path)


@pytest.fixture(scope="module")
def double_well(dataset, tmp_path_factory) -> "cgml.system.Model":
    path = tmp_path_factory.mktemp("well") / "well.pt"
    cgml.save_model(path, DoubleWell(), dataset)
    return cgml.load_model(path)


def left_well() -> np.ndarray:
    start = np.zeros((5, 3))
    start[0, 0] = -WIDTH
    return start


def well_moments(temperature: float) -> tuple[float, float, float]:
    """Mean and variance of x and the population of x > 0, by quadrature."""
    x = np.linspace(-0.4, 0.4, 20001)
    energy = DEPTH * ((x / WIDTH) ** 2 - 1) ** 2 + TILT * x
    p = np.exp(-energy / (GAS_CONSTANT * temperature))
    p /= p.sum()
    mean = (p * x).sum()
    return mean, (p * (x - mean) ** 2).sum(), p[x > 0].sum()


def z_of(series: np.ndarray, expected: float) -> float:
    mean, error = mean_and_error(series)
    return (mean - expected) / error


@pytest.mark.parametrize("exchange", ["neighbour", "gibbs"])
def test_every_rung_is_exact(double_well, tmp_path, exchange) -> None:
    """Mean, variance, population and energies at 4 rungs, 10 seeds for each scheme.

    200 comparisons for each scheme: 10 seeds x 4 rungs x 5 quantities, autocorrelation-corrected.
    Every copy starts in the left well.
    """
    temperatures = [250.0, 300.0, 380.0, 480.0]
    z = []
    for seed in range(10):
        simulation = cgml.ReplicaExchange(
            double_well, left_well(), temperatures, copies=40, exchange=exchange,
            exchange_interval=0.08, timestep=0.004, friction=5.0, seed=seed,
        )  # fmt: skip
        run = simulation.run(tmp_path / f"{seed}.h5", steps=3500, interval=0.2).after(4.0)
        for temperature in temperatures:
            rung = run.at_temperature(temperature)
            x = rung.positions[:, :, 0, 0].astype(float)
            y = rung.positions[:, :, 1:].astype(float)
            mean, variance, population = well_moments(temperature)
            kt = GAS_CONSTANT * temperature
            z += [
                z_of(x, mean),
                z_of((x - mean) ** 2, variance),
                z_of((x > 0).astype(float), population),
                z_of((y**2).mean((2, 3)), kt / SPRING),
                z_of(rung.kinetic_energy.astype(float), 7.5 * kt),
            ]
    assert len(z) == 200
    assert np.abs(z).max() < 4, np.abs(z).max()
    # Nor may they be small together: errors that are too large would hide a bias.
    assert 0.7 < np.std(z) < 1.3, np.std(z)


def test_acceptance_is_the_analytic_rate(tethers, tmp_path) -> None:
    """Two neighbours of a harmonic system with 15 degrees of freedom: a Beta integral."""
    temperatures = np.array([300.0, 380.0, 480.0])
    simulation = cgml.ReplicaExchange(
        tethers, np.zeros((5, 3)), temperatures, copies=100, exchange_interval=0.4,
        timestep=0.004, friction=5.0, seed=3,
    )  # fmt: skip
    run = simulation.run(tmp_path / "run.h5", steps=8000, interval=4.0)
    rungs = run.exchange_rung.reshape(len(run.exchange_time), 100, 3)[10:]
    for low in (0, 1):
        # Sweeps take turns: even ones try the lower pair, odd ones the upper.
        before, after = rungs[:-1], rungs[1:]
        tried = slice((11 + low) % 2, None, 2)
        moved = ((before == low) & (after == low + 1)).any(axis=2)[tried]
        ratio = temperatures[low + 1] / temperatures[low]
        exact = 2 * betainc(7.5, 7.5, 1 / (1 + ratio))
        assert abs(z_of(moved.astype(float), exact)) < 4
        reported = run.info["statistics"]["neighbour_acceptance"][low]
        assert abs(reported - moved.mean()) < 0.05


@pytest.mark.parametrize("exchange", ["neighbour", "gibbs"])
def test_detailed_balance_of_the_whole_move(double_well, tmp_path, exchange) -> None:
    """Half a leg of dynamics, a swap, half a leg: flows between (rung, well) are symmetric.

    The neighbour scheme takes turns, so it is reversible over two sweeps: even, odd, even.
    """
    temperatures = [300.0, 360.0, 430.0]
    ladders = 150
    simulation = cgml.ReplicaExchange(
        double_well, left_well(), temperatures, ladders, exchange=exchange,
        exchange_interval=0.08, timestep=0.004, friction=5.0, seed=11,
    )  # fmt: skip
    run = simulation.run(tmp_path / "run.h5", steps=6000, interval=0.04).after(4.0)
    # Frames lie half-way between exchanges, or at them (those are left out).
    middle = np.isclose((run.time / 0.08) % 1, 0.5, atol=0.1)
    state = 2 * run.rung[middle].astype(int) + (run.positions[middle][:, :, 0, 0] > 0)
    if exchange == "neighbour":
        # A window around one sweep of the even kind, by itself a symmetric move.
        state = np.stack([state[:-1], state[1:]])[:, ::2]
    else:
        state = np.stack([state[:-1], state[1:]])
    per_ladder = state.reshape(2, -1, ladders, 3)
    z = []
    for i in range(6):
        for j in range(i):
            forth = (per_ladder[0] == i) & (per_ladder[1] == j)
            back = (per_ladder[0] == j) & (per_ladder[1] == i)
            net = forth.sum((0, 2)) - back.sum((0, 2)).astype(float)
            if (forth.sum() + back.sum()) > 200:
                z.append(net.mean() / (net.std(ddof=1) / np.sqrt(ladders)))
    assert len(z) >= 6
    assert np.abs(z).max() < 4, z


@pytest.mark.parametrize("timestep", [0.002, 0.004])
def test_kinetic_energies_and_ensembles_are_valid(tethers, tmp_path, timestep, caplog) -> None:
    """`physical_validation` on LFMiddle with two temperatures in one Context."""
    copies = 200
    temperatures = np.repeat([300.0, 318.0], copies // 2)
    simulation = cgml.Langevin(
        tethers, np.zeros((5, 3)), copies, temperature=temperatures, timestep=timestep,
        friction=5.0, seed=5,
    )  # fmt: skip
    run = simulation.run(tmp_path / "run.h5", ns=0.042, interval=1.0).after(2.0)
    units = physical_validation.data.UnitData(GAS_CONSTANT, 1, 1, 1, 1, 1, 1)
    system = physical_validation.data.SystemData(
        natoms=5, nconstraints=0, ndof_reduction_tra=0, ndof_reduction_rot=0,
        mass=np.array(tethers.topology.masses),
        molecule_idx=[0], nconstraints_per_molecule=[0],
    )  # fmt: skip
    data = []
    for temperature in (300.0, 318.0):
        rung = run.at_temperature(temperature)
        kinetic, potential = rung.kinetic_energy.ravel().astype(float), rung.energy.ravel()
        data.append(
            physical_validation.data.SimulationData(
                units=units,
                system=system,
                ensemble=physical_validation.data.EnsembleData(
                    "NVT", natoms=5, volume=1.0, temperature=temperature
                ),
                observables=physical_validation.data.ObservableData(
                    kinetic_energy=kinetic,
                    potential_energy=potential,
                    total_energy=kinetic + potential,
                ),
            )
        )
        mean, width = physical_validation.kinetic_energy.distribution(
            data[-1], verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
        )
        assert abs(mean) < 4 and abs(width) < 4
    deviation = physical_validation.ensemble.check(
        *data, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
    )
    assert np.abs(deviation).max() < 4


def test_forces_are_not_stale_after_a_swap(double_well, tmp_path) -> None:
    """Without friction a step after a swap is arithmetic on the PMF's own forces."""
    simulation = cgml.ReplicaExchange(
        double_well, left_well(), [300.0, 305.0, 310.0], copies=20, exchange_interval=0.04,
        timestep=0.004, friction=0.0, seed=1,
    )  # fmt: skip
    for steps in (10, 20, 30, 40):
        simulation.run(tmp_path / "run.h5", steps=steps, interval=0.04)
    run = cgml.read_run(tmp_path / "run.h5")
    swapped = (run.exchange_rung[-1] != run.exchange_rung[-2]).sum()
    assert swapped > 10
    x, v = simulation.positions, simulation.velocities
    forces = double_well.energy_and_forces(x)[1]
    masses = np.array(double_well.topology.masses).reshape(1, -1, 1)
    kicked = v + 0.004 * forces / masses
    simulation.engine.step(1)
    assert np.allclose(simulation.velocities, kicked, atol=1e-5)
    assert np.allclose(simulation.positions, x + 0.004 * kicked, atol=1e-7)


def test_velocities_are_rescaled_and_positions_stay(tethers, tmp_path) -> None:
    simulation = cgml.ReplicaExchange(
        tethers, np.zeros((5, 3)), [300.0, 320.0], copies=30, exchange_interval=0.04,
        timestep=0.004, seed=2,
    )  # fmt: skip
    simulation.engine.step(400)
    energies = simulation.engine.read().energies
    x, v, before = simulation.positions, simulation.velocities, simulation.rungs.copy()
    from openmm_cgml.simulate import _Loop

    writer = cgml.run_file.RunWriter(tmp_path / "x.h5", tethers.topology, {"copies": 60})
    loop = _Loop(simulation, writer, 10, 10, None, 1e9)
    loop._exchange(energies)
    after = simulation.rungs
    assert 0 < (after != before).sum() < 60
    assert np.array_equal(simulation.positions, x)
    factor = np.sqrt(simulation.temperatures[after] / simulation.temperatures[before])
    assert np.allclose(simulation.velocities, v * factor[:, None, None], rtol=1e-12)
    # And the thermostat follows: its noise belongs to the new temperature.
    sigma = simulation.integrator.getPerDofVariableByName("sigma")
    b = simulation.integrator.getGlobalVariableByName("b")
    masses = np.tile(tethers.topology.masses, 60)
    kt = GAS_CONSTANT * np.repeat(simulation.temperatures[after], 5)
    assert np.allclose([s[0] for s in sigma], b * np.sqrt(kt / masses))


def test_users_forces_count_in_swaps(tethers, tmp_path) -> None:
    """A further harmonic well for every copy doubles the stiffness at every rung."""
    extra = openmm.CustomExternalForce("0.5*k*(x^2+y^2+z^2)")
    extra.addGlobalParameter("k", SPRING)
    for bead in range(5):
        extra.addParticle(bead, [])
    temperatures = [300.0, 380.0, 480.0]
    simulation = cgml.ReplicaExchange(
        tethers, np.zeros((5, 3)), temperatures, copies=40, forces=[extra],
        exchange_interval=0.08, timestep=0.004, friction=5.0, seed=4,
    )  # fmt: skip
    run = simulation.run(tmp_path / "run.h5", steps=4000, interval=0.2).after(2.0)
    z = []
    for temperature in temperatures:
        rung = run.at_temperature(temperature)
        kt = GAS_CONSTANT * temperature
        z.append(z_of((rung.positions.astype(float) ** 2).mean((2, 3)), kt / (2 * SPRING)))
        z.append(z_of(rung.energy, 7.5 * kt))
    assert np.abs(z).max() < 4, z
    exact = 800.0 * (simulation.positions**2).sum((1, 2))
    assert np.allclose(simulation.engine.read().energies, exact, rtol=1e-5)


def test_mbar_gives_any_temperature(tethers, tmp_path) -> None:
    simulation = cgml.ReplicaExchange(
        tethers, np.zeros((5, 3)), [300.0, 360.0, 430.0], copies=40, exchange_interval=0.2,
        timestep=0.004, friction=5.0, seed=6,
    )  # fmt: skip
    run = simulation.run(tmp_path / "run.h5", steps=6000, interval=0.8).after(2.0)
    target = 330.0
    result = mbar(run.energy.ravel(), run.rung.ravel(), run.temperatures, target)
    squares = (run.positions.astype(float) ** 2).mean((2, 3)).ravel()
    mean, error = result.expectation(squares)
    assert abs(mean - GAS_CONSTANT * target / SPRING) < 4 * error
    assert result.effective_samples > 0.5 * squares.size


def test_output_by_temperature_and_by_copy(tethers, tmp_path) -> None:
    simulation = cgml.ReplicaExchange(
        tethers, np.zeros((5, 3)), [300.0, 330.0], copies=4, exchange_interval=0.04, timestep=0.004
    )
    run = simulation.run(tmp_path / "run.h5", steps=400, interval=0.04)
    assert run.positions.shape == (40, 8, 5, 3)
    low, high = run.at_temperature(300), run.at_temperature(330)
    assert low.positions.shape == (40, 4, 5, 3) and low.temperatures == [300.0]
    assert (low.rung == 0).all() and (high.rung == 1).all()
    for frame in (0, 17, 39):
        for place in range(4):
            copies = slice(2 * place, 2 * place + 2)  # a ladder's copies stay in their ladder
            at = int(np.flatnonzero(run.rung[frame, copies] == 0)[0]) + 2 * place
            assert np.array_equal(low.positions[frame, place], run.positions[frame, at])
    one = run.of_copy(3)
    assert one.positions.shape == (40, 1, 5, 3)
    sick = np.broadcast_to(np.arange(8) < 6, (40, 8))  # all but two copies
    ill = replace(run, sick=sick)
    drawn = ill.draw(1000, seed=1)
    assert drawn.shape == (80, 5, 3) and len(np.unique(drawn[:, 0, 0])) == 80
    assert np.isin(drawn, run.positions[:, 6:]).all() and ill.draw(7).shape == (7, 5, 3)
    # Ten steps between frames: a copy moves little, whatever its temperature.
    assert np.abs(np.diff(one.positions, axis=0)).max() < 0.2
    assert np.array_equal(run.exchange_rung[:-1], run.rung[1:])  # frames precede exchanges
    with pytest.raises(cgml.InputError, match="no rung is at 310 K; the run has 300, 330 K"):
        run.at_temperature(310)


def test_what_is_physical_is_said(tethers, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        cgml.ReplicaExchange(tethers, np.zeros((5, 3)), [300.0, 330.0])
    assert "only the copies at that temperature sample the physical ensemble" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        cgml.ReplicaExchange(tethers, np.zeros((5, 3)), [310.0, 330.0])
    assert "its ensemble is not the physical one" in caplog.text


def test_ladder_reaches_the_acceptance_asked_for(tethers, tmp_path) -> None:
    assert np.allclose(cgml.ladder(300, 600, 3), [300, 300 * 2**0.5, 600])
    proposed = cgml.ladder(
        300, 600, model=tethers, start=np.zeros((5, 3)), acceptance=0.5, timestep=0.004,
        friction=5.0,
    )  # fmt: skip
    assert proposed[0] == 300 and proposed[-1] == 600
    # Constant heat capacity: the exact answer is geometric, its rate the Beta integral.
    ratio = (proposed[1:] / proposed[:-1]).max()
    rates = 2 * betainc(7.5, 7.5, 1 / (1 + ratio))
    assert rates > 0.45
    fewer = 2 ** (1 / (len(proposed) - 2))
    assert 2 * betainc(7.5, 7.5, 1 / (1 + fewer)) < 0.53


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperatures": [300.0]}, "at least two, ascending"),
        ({"temperatures": [400.0, 300.0]}, "at least two, ascending"),
        ({"exchange": "nieghbour"}, "neighbour"),
        ({"copies": 0}, "at least 1 ladder"),
        ({"temperature": 300.0}, "takes temperatures"),
        ({"shared_forces": [openmm.HarmonicBondForce()]}, "energy of every copy"),
        ({"exchange_interval": -1.0}, "exchange_interval is -1.0"),
        ({"integrator": openmm.LangevinMiddleIntegrator(300, 1, 0.002)}, "per-DOF variable kT"),
    ],
)
def test_bad_settings_are_refused(tethers, arguments, message) -> None:
    settings = {"temperatures": [300.0, 330.0], **arguments}
    with pytest.raises(cgml.InputError, match=message):
        cgml.ReplicaExchange(tethers, np.zeros((5, 3)), **settings)
    with pytest.raises(cgml.InputError, match="let them ascend"):
        cgml.ladder(400, 300, 4)
    with pytest.raises(cgml.InputError, match="either count, or model"):
        cgml.ladder(300, 400)
