"""The engine: users' forces and integrators, minimisation, what a Force says of its copies."""

import torch  # before openmm

import numpy as np
import openmm
import pytest
from openmm import app

import openmm_cgml as cgml
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.correlation import mean_and_error
from openmm_cgml.engine import Engine, lfmiddle_integrator
from openmm_cgml.extrapolation import CoordinateRanges
from openmm_cgml.units import GAS_CONSTANT, thermal_energy

pytestmark = pytest.mark.backend

KT = thermal_energy(300.0)


class Free(cgml.PMF):
    """No interaction: whatever acts is the user's."""

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        return (0.0 * positions).sum(dim=(1, 2))

    def arguments(self) -> dict:
        return {}


@pytest.fixture(scope="module")
def free(dataset, tmp_path_factory) -> "cgml.system.Model":
    path = tmp_path_factory.mktemp("free") / "free.pt"
    cgml.save_model(path, Free(), dataset)
    return cgml.load_model(path)


def tethers(stiffness: float) -> openmm.Force:
    """Every bead in a harmonic well of its own."""
    force = openmm.CustomExternalForce(f"{0.5 * stiffness}*(x^2+y^2+z^2)")
    for bead in range(5):
        force.addParticle(bead, [])
    return force


def integrator() -> openmm.Integrator:
    one = openmm.LangevinMiddleIntegrator(300, 5.0, 0.004)
    one.setRandomNumberSeed(7)
    return one


@pytest.mark.parametrize("backend", ["torchforce", "native", "python"])
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_reading_copies_is_exact_and_leaves_no_trace(model, dataset, backend, platform) -> None:
    """Energies of single copies come through the Force; trajectories do not notice."""
    ends = []
    for reads in (False, True):
        simulation = cgml.Langevin(
            model, dataset, 7, platform=platform, backend=backend, seed=5,
            properties={"Threads": "1"} if platform == "CPU" else None,
        )  # fmt: skip
        for _ in range(5):
            simulation.engine.step(10)
            if reads:
                report = simulation.engine.read()
                expected = model.energy_and_forces(simulation.positions)[0]
                assert np.allclose(report.energies, expected, rtol=1e-5, atol=1e-3)
                assert (report.sick == 0).all()
        ends.append(simulation.positions)
    assert np.array_equal(*ends)


@pytest.mark.parametrize("periodic", [False, True])
def test_energies_in_a_periodic_box(model, dataset, periodic) -> None:
    box = np.diag([3.0, 3.0, 3.0]) if periodic else None
    simulation = cgml.Langevin(model, dataset.positions[:3].astype(float), 3, box_vectors=box)
    shifted = simulation.positions
    if periodic:
        shifted[1, 2] += [3.0, -3.0, 6.0]  # one bead of one copy in other images
    simulation.engine.positions = shifted
    expected = model.energy_and_forces(dataset.positions[:3])[0]
    assert np.allclose(simulation.engine.read().energies, expected, rtol=1e-4, atol=2e-3)


def test_a_restraint_and_an_external_field_act_on_every_copy(free, tmp_path) -> None:
    """A bond restraint and a field along z, against their exact distributions."""
    bond = openmm.HarmonicBondForce()
    bond.addBond(0, 1, 0.0, 500.0)
    field = openmm.CustomExternalForce("g*z")
    field.addGlobalParameter("g", 20.0)
    field.addParticle(4, [])
    copies = 200
    simulation = cgml.Langevin(
        free, np.zeros((5, 3)), copies, forces=[bond, field, tethers(400.0)], timestep=0.004,
        friction=5.0, seed=3,
    )  # fmt: skip
    run = simulation.run(tmp_path / "run.h5", ns=0.04, interval=0.4).after(3.0)
    z = run.positions[:, :, 4, 2].astype(float)
    apart = (run.positions[:, :, 1] - run.positions[:, :, 0]).astype(float)
    # Relative coordinate of two tethered beads: stiffness 400/2 + 500.
    mean, error = mean_and_error((apart**2).mean(2))
    assert abs(mean - KT / 700.0) < 4 * error
    mean, error = mean_and_error(z)
    assert abs(mean + 20.0 / 400.0) < 4 * error
    mean, error = mean_and_error(run.energy)
    # 15 quadratic degrees of freedom, and the minimum of the tether in the field.
    assert abs(mean - (7.5 * KT - 20.0**2 / (2 * 400.0))) < 4 * error


def test_copies_feel_a_user_s_nonbonded_force_within_themselves_only(free) -> None:
    repulsion = openmm.CustomNonbondedForce("10/r^2")
    for _ in range(5):
        repulsion.addParticle([])
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(3, 5, 3))
    simulation = cgml.Langevin(free, apart, 3, forces=[repulsion])
    distance = np.linalg.norm(apart[:, :, None] - apart[:, None], axis=3)
    upper = np.triu_indices(5, 1)
    exact = (10 / distance[:, upper[0], upper[1]] ** 2).sum(1)
    assert np.allclose(simulation.engine.read().energies, exact, rtol=1e-6)
    total = simulation.context.getState(getEnergy=True).getPotentialEnergy()._value
    assert total == pytest.approx(exact.sum(), rel=1e-6)


def test_forces_that_cannot_be_replicated_are_refused(free) -> None:
    with pytest.raises(cgml.InputError, match="NonbondedForce cannot be replicated: "):
        cgml.Langevin(free, np.zeros((5, 3)), 3, forces=[openmm.NonbondedForce()])
    with pytest.raises(cgml.InputError, match="MonteCarloBarostat cannot be replicated: "):
        cgml.Langevin(free, np.zeros((5, 3)), 3, forces=[openmm.MonteCarloBarostat(1, 300)])


def test_shared_forces_are_added_as_they_are(free) -> None:
    """A force that ties two copies together: the user's business."""
    tie = openmm.HarmonicBondForce()
    tie.addBond(0, 5, 0.0, 100.0)
    start = np.zeros((2, 5, 3))
    start[1, 0, 0] = 0.3
    simulation = cgml.Langevin(free, start, 2, shared_forces=[tie])
    assert simulation.engine.forces[0, 0, 0] == pytest.approx(30.0)
    assert simulation.engine.forces[1, 0, 0] == pytest.approx(-30.0)


def test_global_parameters_can_be_changed_in_the_middle(free) -> None:
    well = openmm.CustomExternalForce("0.5*k*x^2")
    well.addGlobalParameter("k", 100.0)
    well.addParticle(0, [])
    start = np.zeros((2, 5, 3))
    start[:, 0, 0] = 0.2, 0.4
    simulation = cgml.Langevin(free, start, 2, forces=[well])
    assert np.allclose(simulation.engine.read().energies, [2.0, 8.0])
    simulation.context.setParameter("k", 200.0)
    assert np.allclose(simulation.engine.read().energies, [4.0, 16.0])


def test_a_shared_bias_is_updated_for_all_copies(free) -> None:
    """Multiple-walker metadynamics: one bond-type force, one table, a term for every copy."""
    grid = np.linspace(-np.pi, np.pi, 61)
    bias = openmm.CustomCompoundBondForce(4, "bias(dihedral(p1, p2, p3, p4))")
    bias.addTabulatedFunction(
        "bias", openmm.Continuous1DFunction(np.zeros(61), -np.pi, np.pi, True)
    )
    bias.addBond([0, 1, 2, 3], [])
    rng = np.random.default_rng(3)
    start = rng.normal(size=(40, 5, 3))
    simulation = cgml.Langevin(free, start, 40, forces=[bias])
    assert np.allclose(simulation.engine.read().energies, 0)
    hill = 3.0 * np.cos(grid)
    bias.getTabulatedFunction(0).setFunctionParameters(hill, -np.pi, np.pi)
    simulation.update_force(bias)
    angles = dihedral_angles(start, [[0, 1, 2, 3]])[:, 0]
    assert np.allclose(simulation.engine.read().energies, 3.0 * np.cos(angles), atol=2e-3)
    total = simulation.context.getState(getEnergy=True).getPotentialEnergy()._value
    assert total == pytest.approx((3.0 * np.cos(angles)).sum(), abs=0.05)
    with pytest.raises(cgml.InputError, match="not one of this simulation's forces"):
        simulation.update_force(openmm.CustomBondForce("r"))


def test_openmm_s_metadynamics_serves_few_copies_only() -> None:
    """Why the bias is written as one force: every object takes a force group of the System."""
    system = openmm.System()
    for _ in range(40):
        system.addParticle(12.0)
    with pytest.raises(Exception, match="[Ff]orce group"):
        for copy in range(40):
            distance = openmm.CustomExternalForce("x")
            distance.addParticle(copy, [])
            variable = app.BiasVariable(distance, -1, 1, 0.1)
            app.Metadynamics(system, [variable], 300, 6, 1.0, 100)
    assert 25 <= system.getNumForces() <= 32


def test_temperatures_per_copy(free, tmp_path) -> None:
    temperatures = np.repeat([250.0, 300.0, 400.0], 60)
    simulation = cgml.Langevin(
        free, np.zeros((5, 3)), 180, temperature=temperatures, forces=[tethers(800.0)],
        timestep=0.004, friction=5.0, seed=1,
    )  # fmt: skip
    run = simulation.run(tmp_path / "run.h5", ns=0.03, interval=0.4).after(2.0)
    assert run.temperatures.tolist() == [250.0, 300.0, 400.0]
    for temperature in (250.0, 300.0, 400.0):
        one = run.at_temperature(temperature)
        assert one.positions.shape[1] == 60
        kt = GAS_CONSTANT * temperature
        for series in (one.energy, one.kinetic_energy.astype(float)):
            mean, error = mean_and_error(series)
            assert abs(mean - 7.5 * kt) < 4 * error


def test_users_integrator_is_taken_as_it_is(free, tmp_path) -> None:
    verlet = openmm.VerletIntegrator(0.001)
    simulation = cgml.Langevin(
        free, np.zeros((5, 3)), 4, forces=[tethers(800.0)], integrator=verlet, seed=2
    )
    run = simulation.run(tmp_path / "run.h5", steps=2000, interval=0.1)
    assert run.info["timestep_ps"] == 0.001 and run.info["integrator"] == "VerletIntegrator"
    total = run.energy + run.kinetic_energy
    assert np.ptp(total, axis=0).max() < 0.02 * total.mean()  # energy is conserved


def test_users_custom_integrator_gets_a_temperature_per_copy(free, tmp_path) -> None:
    """The textbook's four passes, with a per-DOF variable kT."""
    custom = openmm.CustomIntegrator(0.004)
    decay = np.exp(-5.0 * 0.004)
    custom.addGlobalVariable("a", decay)
    custom.addGlobalVariable("b", np.sqrt(1 - decay**2))
    custom.addPerDofVariable("kT", 0.0)
    custom.addComputePerDof("v", "v + dt*f/m")
    custom.addComputePerDof("x", "x + 0.5*dt*v")
    custom.addComputePerDof("v", "a*v + b*sqrt(kT/m)*gaussian")
    custom.addComputePerDof("x", "x + 0.5*dt*v")
    custom.setRandomNumberSeed(4)
    simulation = cgml.Langevin(
        free, np.zeros((5, 3)), 100, temperature=np.repeat([300.0, 450.0], 50),
        forces=[tethers(800.0)], integrator=custom,
    )  # fmt: skip
    run = simulation.run(tmp_path / "run.h5", ns=0.03, interval=0.4).after(2.0)
    for temperature in (300.0, 450.0):
        mean, error = mean_and_error(run.at_temperature(temperature).energy)
        assert abs(mean - 7.5 * GAS_CONSTANT * temperature) < 4 * error


def test_lfmiddle_takes_the_steps_of_openmm_s(free) -> None:
    """Without noise three passes are the same arithmetic as LangevinMiddleIntegrator's."""
    ends = []
    for one in (openmm.LangevinMiddleIntegrator(300, 0.0, 0.002), None):
        engine = Engine(
            free, 3, one or lfmiddle_integrator(0.0, 0.002, 1), forces=[tethers(800.0)]
        )
        rng = np.random.default_rng(0)
        engine.positions = 0.05 * rng.normal(size=(3, 5, 3))
        engine.velocities = rng.normal(size=(3, 5, 3))
        if one is None:
            engine.set_temperatures(np.full(3, 300.0))
        engine.step(200)
        ends.append(engine.positions)
    assert np.allclose(*ends, atol=1e-12)


def test_every_copy_is_minimised_by_itself(model, dataset) -> None:
    """A hopeless copy does not hold up the others, which end as if alone."""
    start = dataset.positions[:6].astype(float)
    rng = np.random.default_rng(0)
    start[3] += 0.03 * rng.normal(size=(5, 3))
    engine = Engine(model, 6, integrator())
    engine.positions = start
    before = np.abs(engine.forces).max((1, 2))
    left = engine.minimize(tolerance=20.0, most_steps=1500)
    assert (left <= 20.0).all(), left
    assert (before > 100.0).all()
    together = engine.positions
    alone = Engine(model, 1, integrator())
    alone.positions = start[2:3]
    alone.minimize(tolerance=20.0, most_steps=1500)
    assert np.allclose(alone.positions[0], together[2], atol=1e-4)


def test_a_clash_that_cannot_be_relaxed_is_named(model, dataset) -> None:
    start = dataset.positions[:3].astype(float)
    start[1] = start[1, :1]  # all beads in one place
    with pytest.raises(cgml.InputError, match=r"copy 1 \(1 in all\)"):
        cgml.Langevin(model, start, 3, minimize=True)


def test_ranges_find_who_has_left_the_data(dataset) -> None:
    ranges = CoordinateRanges.of(dataset)
    assert not ranges.outside(dataset.positions).any()
    stretched = dataset.positions[:4].copy()
    stretched[1] *= 1.3
    stretched[2, 0] = np.nan
    assert ranges.outside(stretched).tolist() == [False, True, True, False]
    assert CoordinateRanges(**ranges.to_dict()) == ranges


def test_a_torsion_where_no_frame_was_is_outside(dataset) -> None:
    phi = dihedral_angles(dataset.positions, [[0, 1, 2, 3]])[:, 0]
    left = dataset.select(phi < -0.5)
    ranges = CoordinateRanges.of(left)
    assert not ranges.outside(left.positions).any()
    assert ranges.outside(dataset.positions[(phi > 0.5) & (phi < 2)]).all()
    # As far as the cards of earlier versions know.
    earlier = {k: v for k, v in ranges.to_dict().items() if k not in ("torsions", "sectors")}
    assert CoordinateRanges(**earlier).outside(dataset.positions[phi > 0.5]).mean() < 0.2
    both = ranges.wider(CoordinateRanges.of(dataset.select(phi >= -0.5)))
    assert both == CoordinateRanges.of(dataset)


def test_platform_without_the_property_is_refused_with_openmm_s_words(free) -> None:
    with pytest.raises(cgml.BackendError, match="cannot run this on Reference"):
        cgml.Langevin(free, np.zeros((5, 3)), 2, platform="Reference", properties={"No": "1"})


def test_cuda_graphs_are_checked_against_torch(model, dataset, monkeypatch) -> None:
    """Ignored by Reference, but the check of energies is the same everywhere."""
    cgml.Langevin(model, dataset, 3, platform="Reference", cuda_graphs=True)
    wrong = np.full(3, 1e3), np.zeros((3, 5, 3))
    monkeypatch.setattr(type(model), "energy_and_forces", lambda *_: wrong)
    with pytest.raises(cgml.BackendError, match="leave cuda_graphs out"):
        cgml.Langevin(model, dataset, 3, platform="Reference", cuda_graphs=True)


def test_the_temperature_of_a_user_s_integrator_counts(free) -> None:
    hot = openmm.LangevinMiddleIntegrator(450, 1.0, 0.002)
    simulation = cgml.Langevin(free, np.zeros((5, 3)), 3, integrator=hot)
    assert simulation.temperatures.tolist() == [450.0]
    custom = openmm.CustomIntegrator(0.002)
    custom.addPerDofVariable("kT", 0.0)
    cgml.Langevin(free, np.zeros((5, 3)), 3, integrator=custom, temperature=310.0)
    values = custom.getPerDofVariableByName("kT")
    assert np.allclose([v[0] for v in values], GAS_CONSTANT * 310.0)
