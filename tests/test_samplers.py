"""Samplers of others drive our System: OpenMM's integrators and methods, and openmmtools.

Most use a chain of springs, whose ensemble is known: every bond vector is Gaussian, so that the
mean potential energy is half kT for each of its coordinates. z-scores are corrected for
correlation in time; each test says how many it makes.
"""

import importlib
import io
import random
import warnings

import torch  # noqa: F401  (before openmm)

import numpy as np
import openmm
import pytest
from handmade import Springs
from openmm import app, unit
from openmm.amd import AMDIntegrator
from openmm.mtsintegrator import MTSIntegrator, MTSLangevinIntegrator

import openmm_cgml as cgml
from openmm_cgml.correlation import statistical_inefficiency
from openmm_cgml.units import thermal_energy

#: Methods that differ from one version of OpenMM to another.
in_every_pair = pytest.mark.backend

TEMPERATURE = 300.0
FRICTION, STEP = 5.0, 0.004
SPRING = 800.0  # kJ/mol/nm^2
BEADS = 5
BOND_COORDINATES = 3 * (BEADS - 1)


@pytest.fixture(scope="module")
def springs(dataset, tmp_path_factory) -> "cgml.system.Model":
    path = tmp_path_factory.mktemp("springs") / "springs.pt"
    cgml.save_model(path, Springs(), dataset)
    return cgml.load_model(path)


def reference() -> "openmm.Platform":
    return openmm.Platform.getPlatform("Reference")


def exact_sample(temperature: float = TEMPERATURE, seed: int = 0) -> np.ndarray:
    spread = np.sqrt(thermal_energy(temperature) / SPRING)
    bonds = spread * np.random.default_rng(seed).standard_normal((BEADS - 1, 3))
    return np.concatenate([np.zeros((1, 3)), bonds.cumsum(0)])


def simulation_of(model, integrator, system=None) -> "app.Simulation":
    system = system or model.create_system()
    integrator.setRandomNumberSeed(11) if hasattr(integrator, "setRandomNumberSeed") else None
    one = app.Simulation(model.topology.to_openmm(), system, integrator, reference())
    one.context.setPositions(exact_sample())
    one.context.setVelocitiesToTemperature(TEMPERATURE, 3)
    return one


def energies_of(simulation, frames: int, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Potential and kinetic energies (frames,), kJ/mol."""
    found = []
    for _ in range(frames):
        simulation.step(every)
        state = simulation.context.getState(energy=True)
        found.append([state.getPotentialEnergy()._value, state.getKineticEnergy()._value])
    return tuple(np.array(found).T)


def z_of(series: np.ndarray, expected: float) -> float:
    error = series.std() * np.sqrt(statistical_inefficiency(series) / len(series))
    return float((series.mean() - expected) / error)


# ---------------------------------------------------------------- integrators


def custom() -> "openmm.Integrator":
    """LFMiddle, written out."""
    integrator = openmm.CustomIntegrator(STEP)
    integrator.addGlobalVariable("a", np.exp(-FRICTION * STEP))
    integrator.addGlobalVariable("kT", thermal_energy(TEMPERATURE))
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v + dt*f/m")
    integrator.addComputePerDof("x", "x + 0.5*dt*v")
    integrator.addComputePerDof("v", "a*v + sqrt((1 - a*a)*kT/m)*gaussian")
    integrator.addComputePerDof("x", "x + 0.5*dt*v")
    return integrator


def compound() -> "openmm.Integrator":
    integrator = openmm.CompoundIntegrator()
    integrator.addIntegrator(openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, STEP))
    integrator.addIntegrator(openmm.VerletIntegrator(STEP))
    return integrator


THERMOSTATS = {
    "LangevinMiddle": lambda: openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, STEP),
    "Langevin": lambda: openmm.LangevinIntegrator(TEMPERATURE, FRICTION, STEP),
    "VariableLangevin": lambda: openmm.VariableLangevinIntegrator(TEMPERATURE, FRICTION, 3e-4),
    "MTSLangevin": lambda: MTSLangevinIntegrator(TEMPERATURE, FRICTION, STEP, [(0, 1)]),
    "Custom": custom,
    "Compound": compound,
}


@pytest.mark.parametrize("name", THERMOSTATS)
def test_thermostats(name, springs) -> None:
    """2 z-scores each, of potential and kinetic energy."""
    simulation = simulation_of(springs, THERMOSTATS[name]())
    simulation.step(200)
    potential, kinetic = energies_of(simulation, 500, 25)
    kt = thermal_energy(TEMPERATURE)
    z = [z_of(potential, BOND_COORDINATES / 2 * kt), z_of(kinetic, 3 * BEADS / 2 * kt)]
    assert np.abs(z).max() < 4, z


def test_nose_hoover(model, dataset) -> None:
    """Kinetic energy of the network's molecule, 1 z-score: of springs these are not ergodic."""
    simulation = simulation_of(model, openmm.NoseHooverIntegrator(TEMPERATURE, 20.0, 0.002))
    simulation.context.setPositions(dataset.positions[0].astype(float))
    simulation.step(1000)
    _, kinetic = energies_of(simulation, 500, 25)
    assert abs(z_of(kinetic, 3 * BEADS / 2 * thermal_energy(TEMPERATURE))) < 4


def test_brownian_dynamics(springs) -> None:
    """Positions alone; 1 z-score. Its discretisation error is step * spring / (2 m friction)."""
    step, friction = 1e-4, 200.0
    simulation = simulation_of(springs, openmm.BrownianIntegrator(TEMPERATURE, friction, step))
    potential, _ = energies_of(simulation, 1000, 20)
    assert abs(z_of(potential, BOND_COORDINATES / 2 * thermal_energy(TEMPERATURE))) < 4


def test_dissipative_particle_dynamics(springs) -> None:
    """2 z-scores; the thermostat acts on pairs.

    It conserves momentum and angular momentum, so that a free molecule would keep those it has:
    one bead is held by three other springs.
    """
    system = springs.create_system()
    hold = openmm.CustomExternalForce("300*x^2 + 400*y^2 + 500*z^2")
    hold.addParticle(0)
    system.addForce(hold)
    integrator = openmm.DPDIntegrator(TEMPERATURE, 4 * FRICTION, 1.0, STEP)
    simulation = simulation_of(springs, integrator, system)
    simulation.step(1000)
    potential, kinetic = energies_of(simulation, 1000, 25)
    expected = 3 * BEADS / 2 * thermal_energy(TEMPERATURE)
    z = z_of(potential, expected), z_of(kinetic, expected)
    assert np.abs(z).max() < 4, z


NVE = {
    "Verlet": lambda: openmm.VerletIntegrator(5e-4),
    "VariableVerlet": lambda: openmm.VariableVerletIntegrator(1e-6),
    "MTS": lambda: MTSIntegrator(0.001, [(0, 2)]),
}


@pytest.mark.parametrize("name", NVE)
def test_energy_is_conserved(name, model, dataset) -> None:
    """With the network, too: the forces are those of one energy."""
    simulation = simulation_of(model, NVE[name]())
    simulation.context.setPositions(dataset.positions[0].astype(float))
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 5)
    potential, kinetic = energies_of(simulation, 50, 20)
    # Verlet's kinetic energy is that of half a step earlier, corrected to first order.
    assert np.ptp(potential) > 5
    assert np.ptp(potential + kinetic) < 0.05 * np.ptp(potential)


def test_accelerated_dynamics(springs) -> None:
    """Raised energies; OpenMM says by how much the potential below the threshold is."""
    integrator = AMDIntegrator(0.002, 10.0, 40.0)
    simulation = simulation_of(springs, integrator)
    potential, _ = energies_of(simulation, 20, 20)
    raised = [integrator.getEffectiveEnergy(energy)._value for energy in potential]
    assert (np.array(raised)[potential < 40] > potential[potential < 40]).all()


def test_platform_cpu(springs) -> None:
    """On CPU as on Reference: same energies along one trajectory without noise."""
    found = []
    for name in ("Reference", "CPU"):
        one = app.Simulation(
            springs.topology.to_openmm(), springs.create_system(),
            openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform(name),
        )  # fmt: skip
        one.context.setPositions(exact_sample())
        found.append(energies_of(one, 10, 10))
    assert np.allclose(found[0], found[1], rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------- OpenMM's methods


@in_every_pair
def test_simulated_tempering(springs) -> None:
    """The energy at each of its temperatures; 3 z-scores."""
    simulation = simulation_of(
        springs, openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, STEP)
    )
    log = io.StringIO()
    tempering = app.SimulatedTempering(
        simulation, numTemperatures=3, minTemperature=300 * unit.kelvin,
        maxTemperature=360 * unit.kelvin, tempChangeInterval=10, reportInterval=100_000,
        reportFile=log,
    )  # fmt: skip
    random.seed(4)
    tempering.step(2000)
    rungs, energies = [], []
    for _ in range(1500):
        tempering.step(10)
        rungs.append(tempering.currentTemperature)
        energies.append(simulation.context.getState(energy=True).getPotentialEnergy()._value)
    rungs, energies = np.array(rungs), np.array(energies)
    for rung, temperature in enumerate(tempering.temperatures):
        mean = BOND_COORDINATES / 2 * thermal_energy(temperature)
        assert (rungs == rung).sum() > 100
        # Frames at one rung are pieces of one series: its correlation, all frames together.
        here = energies[rungs == rung]
        g = statistical_inefficiency(energies)
        z = (here.mean() - mean) / (here.std() * np.sqrt(max(g, 1) / len(here)))
        assert abs(z) < 4, (rung, z)


@in_every_pair
def test_metadynamics(model, dataset, tmp_path) -> None:
    """Hills along a torsion of four beads; what the Context feels is what was deposited."""
    system = model.create_system()
    torsion = openmm.CustomTorsionForce("theta")
    torsion.addTorsion(0, 1, 2, 3)
    variable = app.BiasVariable(torsion, -np.pi, np.pi, 0.3, True)
    factor, height = 6.0, 1.5
    meta = app.Metadynamics(
        system, [variable], TEMPERATURE * unit.kelvin, factor,
        height * unit.kilojoules_per_mole, 50,
    )  # fmt: skip
    simulation = simulation_of(
        model, openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, 0.002), system
    )
    simulation.context.setPositions(dataset.positions[0].astype(float))
    meta.step(simulation, 4000)
    bias = -meta.getFreeEnergy()._value * (factor - 1) / factor
    assert 3 * height < bias.max() < 80 * height
    (angle,) = meta.getCollectiveVariables(simulation)
    state = simulation.context.getState(energy=True, groups={system.getForce(1).getForceGroup()})
    grid = np.linspace(-np.pi, np.pi, len(bias))
    expected = np.interp(angle, grid, bias)
    assert state.getPotentialEnergy()._value == pytest.approx(expected, abs=0.05 * bias.max())
    # The network's group is its own: it still is the model's energy.
    state = simulation.context.getState(energy=True, positions=True, groups={0})
    x = state.getPositions(asNumpy=True)._value
    energy = state.getPotentialEnergy()._value
    assert energy == pytest.approx(model.energies(x[None])[0], rel=1e-5, abs=1e-3)


@in_every_pair
def test_replica_exchange_of_openmm(springs) -> None:
    """OpenMM 8.6's: the energy at each temperature; 3 z-scores."""
    if not hasattr(app, "ReplicaExchangeSampler"):
        pytest.skip("OpenMM has ReplicaExchangeSampler from 8.6 on")
    temperatures = [300.0, 340.0, 385.0]
    simulation = simulation_of(
        springs, openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, STEP)
    )
    states = [{"temperature": t * unit.kelvin} for t in temperatures]
    sampler = app.ReplicaExchangeSampler(states, simulation, 20)
    energies, rungs = [], []

    def report(one) -> None:
        found = [e[0] for e in one.replicaStateEnergy]
        found = [getattr(e, "_value", e) for e in found]
        order = np.argsort(one.replicaStateIndex)
        energies.append(np.array(found, dtype=float)[order])
        rungs.append(one.replicaStateIndex[0])

    sampler.reporters.append(report)
    random.seed(4)
    sampler.simulate(500)
    assert set(rungs) == {0, 1, 2}
    series = np.array(energies)[20:]
    for rung, temperature in enumerate(temperatures):
        expected = BOND_COORDINATES / 2 * thermal_energy(temperature)
        assert abs(z_of(series[:, rung], expected)) < 4


# ---------------------------------------------------------------- openmmtools


@pytest.fixture
def openmmtools():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tools = pytest.importorskip("openmmtools")
        for name in ("cache", "mcmc", "multistate", "states"):
            importlib.import_module(f"openmmtools.{name}")
    cache = tools.cache.global_context_cache
    cache.empty()
    cache.platform = reference()
    yield tools
    cache.empty()


@in_every_pair
def test_langevin_move_of_openmmtools(openmmtools, springs) -> None:
    """1 z-score; openmmtools draws the seeds itself, hence the wider limit."""
    state = openmmtools.states.ThermodynamicState(
        springs.create_system(), TEMPERATURE * unit.kelvin
    )
    sampler = openmmtools.states.SamplerState(exact_sample() * unit.nanometer)
    move = openmmtools.mcmc.LangevinDynamicsMove(
        timestep=STEP * unit.picosecond, collision_rate=FRICTION / unit.picosecond, n_steps=50
    )
    energies = []
    for _ in range(200):
        move.apply(state, sampler)
        energies.append(sampler.potential_energy.value_in_unit(unit.kilojoule_per_mole))
    expected = BOND_COORDINATES / 2 * thermal_energy(TEMPERATURE)
    assert abs(z_of(np.array(energies), expected)) < 5


@in_every_pair
@pytest.mark.filterwarnings("ignore")
def test_replica_exchange_of_openmmtools(openmmtools, springs, tmp_path) -> None:
    """Parallel tempering, written and read again: energies at 3 temperatures; 3 z-scores."""
    multistate = openmmtools.multistate
    state = openmmtools.states.ThermodynamicState(
        springs.create_system(), TEMPERATURE * unit.kelvin
    )
    move = openmmtools.mcmc.LangevinDynamicsMove(
        timestep=STEP * unit.picosecond, collision_rate=FRICTION / unit.picosecond, n_steps=50
    )
    tempering = multistate.ParallelTemperingSampler(
        mcmc_moves=move, number_of_iterations=150, online_analysis_interval=None
    )
    reporter = multistate.MultiStateReporter(str(tmp_path / "run.nc"), checkpoint_interval=50)
    tempering.create(
        state, openmmtools.states.SamplerState(exact_sample() * unit.nanometer), reporter,
        min_temperature=300 * unit.kelvin, max_temperature=380 * unit.kelvin, n_temperatures=3,
    )  # fmt: skip
    tempering.run()
    del tempering
    reporter = multistate.MultiStateReporter(str(tmp_path / "run.nc"), open_mode="r")
    reduced, *_ = reporter.read_energies()  # (iterations, replicas, states)
    indices = reporter.read_replica_thermodynamic_states()
    reporter.close()
    assert len(set(indices[:, 0].tolist())) == 3  # it exchanged
    reduced, indices = np.array(reduced)[10:], np.array(indices)[10:]
    for rung in range(3):
        replica = np.argmax(indices == rung, axis=1)
        own = reduced[np.arange(len(replica)), replica, rung]
        assert abs(z_of(own, BOND_COORDINATES / 2)) < 5, (rung, own.mean())
