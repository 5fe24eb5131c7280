"""The Forces that a model makes: every backend on every platform against torch."""

import copy
import io
import json

import torch  # before openmm

import numpy as np
import openmm
import pytest

import openmm_cgml as cgml
from openmm_cgml import force as backends
from openmm_cgml.pmf.core import energy_and_forces

pytestmark = pytest.mark.backend

PLATFORMS = [
    openmm.Platform.getPlatform(k).getName()
    for k in range(openmm.Platform.getNumPlatforms())
    if openmm.Platform.getPlatform(k).getName() in ("Reference", "CPU", "CUDA")
]
BACKENDS = [b for b in backends.BACKENDS if backends.backend_problem(b) is None]
#: openmmtorch 1.5 crashes on copies of its force with OpenMM 8.6
COPYABLE = openmm.version.short_version < "8.6"


def evaluate(system, positions, platform: str = "Reference"):
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform(platform)
    )
    context.setPositions(np.asarray(positions, dtype=np.float64).reshape(-1, 3))
    state = context.getState(getEnergy=True, getForces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def test_torchforce_is_tested_here() -> None:
    """The pinned environment must not fall back in silence."""
    if torch.__version__.startswith("2.9") and COPYABLE:
        assert "torchforce" in BACKENDS


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("copies", [1, 7])
def test_energy_and_forces_equal_torch(model, dataset, backend, platform, copies) -> None:
    positions = dataset.positions[:copies]
    energy, forces = evaluate(model.create_system(copies, backend=backend), positions, platform)
    expected, expected_forces = model.energy_and_forces(positions)
    assert energy == pytest.approx(expected.sum(), rel=1e-5)
    error = np.linalg.norm(forces - expected_forces.reshape(-1, 3))
    assert error / np.linalg.norm(expected_forces) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_forces_are_minus_the_gradient_by_finite_differences(model, dataset, backend) -> None:
    """In OpenMM itself (float32 network: a coarse step), and of the float64 network finely."""
    system = model.create_system(backend=backend)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference")
    )
    start = dataset.positions[3].astype(np.float64)

    def energy(x: np.ndarray) -> float:
        context.setPositions(x)
        return context.getState(getEnergy=True).getPotentialEnergy()._value

    context.setPositions(start)
    forces = context.getState(getForces=True).getForces(asNumpy=True)._value
    numeric = np.zeros_like(forces)
    step = 2e-4
    for index in np.ndindex(forces.shape):
        shift = np.zeros_like(start)
        shift[index] = step
        numeric[index] = -(energy(start + shift) - energy(start - shift)) / (2 * step)
    assert np.linalg.norm(numeric - forces) / np.linalg.norm(forces) < 1e-3
    double = model.rebuild().double()
    exact = energy_and_forces(double, torch.tensor(start[None]))[1][0].numpy()
    assert np.linalg.norm(exact - forces) / np.linalg.norm(forces) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_file_serves_one_and_a_thousand_copies(model, dataset, backend) -> None:
    positions = dataset.positions[np.arange(1000)]
    energy, forces = evaluate(model.create_system(1000, backend=backend), positions)
    expected, expected_forces = model.energy_and_forces(positions)
    assert energy == pytest.approx(expected.sum(), rel=1e-5)
    assert np.allclose(forces.reshape(1000, -1, 3), expected_forces, rtol=1e-4, atol=1e-2)
    single = evaluate(model.create_system(1, backend=backend), positions[17])
    assert single[0] == pytest.approx(expected[17], rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_do_not_feel_each_other(model, dataset, backend) -> None:
    system = model.create_system(3, backend=backend)
    positions = dataset.positions[[5, 6, 7]].astype(np.float64)
    before = evaluate(system, positions)[1]
    positions[1:] = dataset.positions[[50, 90]] + 0.3  # moved onto and through copy 0
    positions[1] += positions[0].mean(0) - positions[1].mean(0)
    after = evaluate(system, positions)[1]
    assert np.abs(after[:5] - before[:5]).max() < 1e-6 * np.abs(before).max()
    assert np.abs(after[5:] - before[5:]).max() > 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_system_whose_particle_count_does_not_fit_raises(model, dataset, backend) -> None:
    """Ten particles are two copies of five beads, but the force was made for one."""
    system = openmm.System()
    for _ in range(10):
        system.addParticle(12.0)
    system.addForce(model.create_force(backend=backend))
    with pytest.raises(Exception, match=r"10 particles but the model has 1\s+copies of 5 beads"):
        evaluate(system, dataset.positions[:2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_particle_index_beyond_the_system_raises(model, dataset, backend) -> None:
    system = openmm.System()
    for _ in range(8):
        system.addParticle(12.0)
    system.addForce(model.create_force(particles=[0, 1, 2, 3, 9], backend=backend))
    with pytest.raises(Exception, match="uses particle 9 but the System has only 8"):
        evaluate(system, np.zeros((8, 3)) + np.arange(8)[:, None])


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_subset_of_a_system_that_holds_other_things(model, dataset, backend, platform) -> None:
    """Two copies, interleaved and out of order among other particles with a force of their own."""
    particles = [8, 1, 2, 11, 4, 0, 3, 6, 9, 10]
    system = openmm.System()
    for _ in range(13):
        system.addParticle(12.0)
    restraint = openmm.CustomExternalForce("x^2+y^2+z^2")
    restraint.addParticle(12, [])
    system.addForce(restraint)
    system.addForce(
        model.create_force(particles=particles, copies=2, force_group=3, backend=backend)
    )
    rng = np.random.default_rng(0)
    positions = rng.standard_normal((13, 3))
    beads = dataset.positions[[30, 60]].astype(np.float64)
    positions[particles] = beads.reshape(-1, 3)
    energy, forces = evaluate(system, positions, platform)
    expected, expected_forces = model.energy_and_forces(beads)
    assert energy == pytest.approx(expected.sum() + (positions[12] ** 2).sum(), rel=1e-5)
    assert np.allclose(forces[particles], expected_forces.reshape(-1, 3), rtol=1e-4, atol=1e-2)
    assert np.abs(forces[[5, 7]]).max() == 0
    assert system.getForce(1).getForceGroup() == 3


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_periodic_box_takes_minimum_images(model, dataset, backend, platform) -> None:
    box = np.diag([2.0, 2.4, 2.2])
    positions = dataset.positions[[8]].astype(np.float64)
    positions -= positions.mean(axis=1, keepdims=True)
    torn = positions.copy()
    torn[0, 1] += box[0]
    torn[0, 4] -= box[1]
    system = model.create_system(box_vectors=box.tolist(), backend=backend)
    assert system.usesPeriodicBoundaryConditions()
    energy, forces = evaluate(system, torn, platform)
    whole = model.energy_and_forces(positions)
    assert energy == pytest.approx(whole[0][0], rel=1e-4)
    assert np.allclose(forces, whole[1][0], rtol=1e-3, atol=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_beads_move_and_masses_are_those_of_the_card(model, dataset, backend) -> None:
    system = model.create_system(2, backend=backend)
    masses = [system.getParticleMass(k)._value for k in range(10)]
    assert masses == pytest.approx(list(model.topology.masses) * 2)
    assert not any(isinstance(f, openmm.CMMotionRemover) for f in system.getForces())


def test_no_device_is_baked_into_the_exported_graph(model) -> None:
    script = model.file.module(copies=4)
    for module in script.modules():
        for name in module._c._method_names():
            graph = module._c._get_method(name).graph.copy()
            torch._C._jit_pass_inline(graph)
            for line in str(graph).splitlines():
                assert "Device" not in line and "device=" not in line, line


@pytest.mark.skipif("torchforce" not in BACKENDS or not COPYABLE, reason="crashes upstream")
def test_xml_round_trip_keeps_energy_name_group_and_card(model, dataset, tmp_path) -> None:
    import openmmtorch

    system = model.create_system(2, force_group=5, backend="torchforce")
    expected = evaluate(system, dataset.positions[:2])
    cgml.save_system(tmp_path / "system.xml", system)
    loaded = cgml.load_system(tmp_path / "system.xml")
    for other in (loaded, copy.deepcopy(system)):
        energy, forces = evaluate(other, dataset.positions[:2])
        assert energy == pytest.approx(expected[0], rel=1e-7)
        assert np.allclose(forces, expected[1], rtol=1e-5, atol=1e-3)
        force = other.getForce(0)  # kept alive while its cast is in use
        assert force.getForceGroup() == 5
        module = openmmtorch.TorchForce.cast(force).getModule()
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
        card = torch.jit.load(io.BytesIO(buffer.getvalue())).card()
        assert json.loads(card) == model.card


def test_python_force_is_picklable_and_never_saved_as_xml(model, dataset, tmp_path) -> None:
    system = model.create_system(backend="python")
    twin = copy.deepcopy(system)
    x = dataset.positions[:1]
    assert evaluate(twin, x)[0] == pytest.approx(evaluate(system, x)[0], rel=1e-6)
    with pytest.raises(cgml.InputError, match="PythonForce"):
        cgml.save_system(tmp_path / "system.xml", system)
    assert not list(tmp_path.iterdir())


def test_nve_energy_is_conserved(model, dataset) -> None:
    """Smooth forces: the drift of a Verlet run is far below kT per degree of freedom."""
    copies = 20
    system = model.create_system(copies)
    integrator = openmm.VerletIntegrator(0.0005)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions(dataset.draw(copies, seed=1).reshape(-1, 3).astype(np.float64))
    context.setVelocitiesToTemperature(300, 1)
    totals = []
    for _ in range(40):
        integrator.step(50)
        state = context.getState(getEnergy=True)
        totals.append(state.getPotentialEnergy()._value + state.getKineticEnergy()._value)
    drift = np.polyfit(np.arange(40) * 0.025, totals, 1)[0]  # kJ/mol/ps
    assert abs(drift) / (copies * 15) < 0.01
