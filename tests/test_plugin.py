"""openmm-ml's MLPotential("cgml"): the System is that of Model.create_system."""

import copy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch  # noqa: F401  (before openmm)

import numpy as np
import openmm
import pytest
from openmm import app, unit

import openmm_cgml as cgml
from openmm_cgml.correlation import statistical_inefficiency
from openmm_cgml.force import BACKENDS
from openmm_cgml.plugin import CGMLPotentialImplFactory
from openmm_cgml.torchforce import copies_crash
from openmm_cgml.units import GAS_CONSTANT

openmmml = pytest.importorskip("openmmml")
pytestmark = pytest.mark.backend

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ["torch", "openmm", "openmmml", "mdtraj", "h5py", "matplotlib", "lightning"]
TEMPERATURE = 300.0

backends = pytest.mark.parametrize("backend", list(BACKENDS))


def skip_where_copies_crash(backend: str) -> None:
    if backend == "torchforce" and copies_crash():
        pytest.skip("copying a TorchForce ends the process here")


@pytest.fixture(scope="module")
def path(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "model.pt"
    path.write_bytes(model.file.archive)
    return path


@pytest.fixture(scope="module")
def potential(path) -> "openmmml.MLPotential":
    return openmmml.MLPotential("cgml", modelPath=path)


@pytest.fixture
def topology(model) -> "app.Topology":
    return model.topology.to_openmm()


def context_of(system: "openmm.System", positions: np.ndarray, step: float = 0.001):
    integrator = openmm.VerletIntegrator(step)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions(positions.reshape(-1, 3).astype(float))
    return context


def energy_and_forces(system: "openmm.System", positions: np.ndarray, groups: int = -1):
    state = context_of(system, positions).getState(energy=True, forces=True, groups=groups)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def assert_same(found, expected, relative: float = 1e-5) -> None:
    assert found[0] == pytest.approx(expected[0], rel=relative, abs=1e-3)
    difference = np.linalg.norm(found[1] - expected[1])
    assert difference <= relative * np.linalg.norm(expected[1])


def masses(system: "openmm.System") -> list[float]:
    return [system.getParticleMass(k)._value for k in range(system.getNumParticles())]


def kinds(system: "openmm.System") -> list[str]:
    return [type(force).__name__ for force in system.getForces()]


# ---------------------------------------------------------------- the entry point


def test_entry_point_is_installed() -> None:
    """By setup.py; an environment made before it came needs `make env`."""
    (entry,) = metadata.entry_points(group="openmmml.potentials", name="cgml")
    assert entry.load() is CGMLPotentialImplFactory


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import openmm_cgml.plugin as plugin;"
        "plugin.CGMLPotentialImplFactory();"
        f"print(time.perf_counter() - start, *[m for m in {HEAVY} if m in sys.modules])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert runs[0][1:] == []
    assert min(float(run[0]) for run in runs) < 0.5


FRESH = """
import sys
from openmmml import MLPotential  # openmm, before torch

assert "torch" not in sys.modules
import numpy as np
import openmm

potential = MLPotential("cgml", modelPath=sys.argv[1])
from openmm_cgml import load_model

model = load_model(sys.argv[1])
system = potential.createSystem(model.topology.to_openmm(), backend=sys.argv[3])
platform = openmm.Platform.getPlatform("Reference")
context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
context.setPositions(np.load(sys.argv[2]).astype(float))
print(context.getState(energy=True).getPotentialEnergy()._value)
"""


@pytest.mark.parametrize("backend", ["torchforce", "native"])
def test_openmmml_imported_first(backend, path, model, dataset, tmp_path) -> None:
    np.save(tmp_path / "positions.npy", dataset.positions[0])
    done = subprocess.run(
        [sys.executable, "-c", FRESH, path, tmp_path / "positions.npy", backend],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = model.energies(dataset.positions[:1])[0]
    assert float(done.stdout.split()[-1]) == pytest.approx(expected, rel=1e-5, abs=1e-3)


# ---------------------------------------------------------------- createSystem


@backends
def test_system_is_the_models(backend, potential, model, topology, dataset) -> None:
    system = potential.createSystem(topology, backend=backend)
    ours = model.create_system(backend=backend)
    assert masses(system) == masses(ours) == list(model.topology.masses)
    assert kinds(system) == [*kinds(ours), "CMMotionRemover"]
    assert system.getForce(0).getName() == "PMF model.pt"
    assert kinds(potential.createSystem(topology, removeCMMotion=False)) == kinds(
        model.create_system()
    )
    for frame in dataset.positions[:3]:
        found = energy_and_forces(system, frame)
        assert_same(found, energy_and_forces(ours, frame), relative=1e-6)
        energies, forces = model.energy_and_forces(frame[None])
        assert_same(found, (energies[0], forces[0]))


def test_masses_are_the_models_where_atoms_have_elements(potential, model) -> None:
    top = with_elements(model.topology)
    assert masses(potential.createSystem(top)) == list(model.topology.masses)


@backends
def test_copies_do_not_feel_each_other(backend, potential, model, dataset) -> None:
    top = app.Modeller(model.topology.to_openmm(), dataset.positions[0] * unit.nanometer)
    top.add(model.topology.to_openmm(), dataset.positions[1] * unit.nanometer)
    with pytest.raises(cgml.InputError, match=r"there are 10 atoms .* give copies=2$"):
        potential.createSystem(top.topology, backend=backend)
    system = potential.createSystem(top.topology, backend=backend, copies=2)
    assert masses(system) == 2 * list(model.topology.masses)
    energies, forces = model.energy_and_forces(dataset.positions[:2])
    found = energy_and_forces(system, dataset.positions[:2])
    assert_same(found, (energies.sum(), forces.reshape(-1, 3)))


@backends
def test_box_of_the_topology(backend, potential, model, topology, dataset) -> None:
    """Nearest images: a molecule across the border has the energy of a whole one."""
    box = 4.0 * np.eye(3)
    topology.setPeriodicBoxVectors(box * unit.nanometer)
    system = potential.createSystem(topology, backend=backend)
    assert system.usesPeriodicBoundaryConditions()
    frame = dataset.positions[0].astype(float)
    whole = energy_and_forces(system, frame)
    energies, forces = model.energy_and_forces(frame[None])
    assert_same(whole, (energies[0], forces[0]))
    broken = frame.copy()
    broken[2:] += box[0] - 2 * box[1]
    assert_same(energy_and_forces(system, broken), whole, relative=1e-4)
    vectors = system.getDefaultPeriodicBoxVectors()
    assert np.allclose([v.value_in_unit(unit.nanometer) for v in vectors], box)


@backends
def test_scale_parameter(backend, potential, topology, dataset) -> None:
    system = potential.createSystem(topology, backend=backend, scaleParameter="pmf")
    context = context_of(system, dataset.positions[0])
    energies = []
    for scale in (1.0, 0.25):
        context.setParameter("pmf", scale)
        energies.append(context.getState(energy=True).getPotentialEnergy()._value)
    assert energies[1] == pytest.approx(0.25 * energies[0], rel=1e-5)


def test_a_molecule_of_a_transferable_file(tmp_path) -> None:
    from test_transferable import frames, molecule

    data = cgml.DatasetCollection({"one": frames("ABAB", 60, 0), "two": frames("BAABA", 60, 1)})
    network = cgml.PMFS["schnet"](data, width=8, basis=6, seed=1)
    cgml.save_model(tmp_path / "both.pt", network, data["one"])
    for types in ("ABAB", "BAABA"):
        chosen = {"modelPath": tmp_path / "both.pt", "molecule": molecule(types)}
        potential = openmmml.MLPotential("cgml", **chosen)
        system = potential.createSystem(molecule(types).to_openmm(), backend="python")
        x = frames(types, 1, 5).positions
        energies, forces = potential._impl.model.energy_and_forces(x)
        assert forces.shape == (1, len(types), 3) and np.abs(forces).max() > 0.01
        assert_same(energy_and_forces(system, x[0]), (energies[0], forces[0]))
    with pytest.raises(cgml.InputError, match="has no molecule 'three'"):
        openmmml.MLPotential("cgml", modelPath=tmp_path / "both.pt", molecule="three")


# ---------------------------------------------------------------- what is refused


def test_a_model_is_needed(tmp_path) -> None:
    with pytest.raises(cgml.InputError, match="has no model; give modelPath="):
        openmmml.MLPotential("cgml")
    with pytest.raises(cgml.InputError, match="missing.pt"):
        openmmml.MLPotential("cgml", modelPath=tmp_path / "missing.pt")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"device": "cuda"}, "choose it by the Platform's properties"),
        ({"precision": "double"}, "computes in float32"),
        ({"charge": 1}, "it has backend, copies, checkNames, scaleParameter"),
        ({"copies": 0}, "copies is 0; give a whole number"),
        ({"copies": 1.5}, "copies is 1.5; give a whole number"),
        ({"backend": "fast"}, "unknown backend 'fast'"),
    ],
)
def test_options_that_make_no_sense(option, message, potential, topology) -> None:
    with pytest.raises(cgml.InputError, match=message):
        potential.createSystem(topology, **option)


def test_unknown_option_of_the_potential(path) -> None:
    with pytest.raises(cgml.InputError, match="no option 'model_path': it has modelPath, mole"):
        openmmml.MLPotential("cgml", modelPath=path, model_path=path)


def test_first_bead_that_differs_is_named(potential, model, dataset) -> None:
    top = model.topology
    names = list(top.bead_names)
    names[2] = "XY"
    other = cgml.CGTopology(
        tuple(names), top.bead_types, top.residue_names, top.residue_ids, top.chain_ids,
        top.bonds, top.masses,
    ).to_openmm()  # fmt: skip
    label = f"{top.residue_names[2]}{top.residue_ids[2]}-"
    with pytest.raises(cgml.InputError) as caught:
        potential.createSystem(other)
    message = str(caught.value)
    assert message.startswith(f"atom 2 is {label}XY, where model.pt has bead 2, {top.label(2)};")
    assert "checkNames=False" in message
    # For programs that rename atoms, as OpenMM's reader of PDB files does.
    system = potential.createSystem(other, checkNames=False)
    energies, forces = model.energy_and_forces(dataset.positions[:1])
    assert_same(energy_and_forces(system, dataset.positions[0]), (energies[0], forces[0]))


def test_another_order_is_refused(potential, model) -> None:
    """Same beads, reversed: nothing else would notice."""
    top = model.topology
    last = len(top) - 1
    backwards = cgml.CGTopology(
        *(field[::-1] for field in (
            top.bead_names, top.bead_types, top.residue_names, top.residue_ids, top.chain_ids)),
        bonds=tuple((last - i, last - j) for i, j in top.bonds), masses=top.masses[::-1],
    )  # fmt: skip
    with pytest.raises(cgml.InputError, match="atom 0 is "):
        potential.createSystem(backwards.to_openmm())


def test_an_all_atom_topology_is_refused(potential, data) -> None:
    atomistic = app.PDBFile(str(data / "topology.pdb")).topology
    with pytest.raises(cgml.InputError, match="give the topology of the beads, not of the atoms"):
        potential.createSystem(atomistic)


# ---------------------------------------------------------------- the System in use


@pytest.mark.parametrize("remove", [False, True])
def test_langevin_has_the_right_temperature(remove, potential, topology, dataset) -> None:
    """Kinetic energy against equipartition, the centre of mass left out where it is removed."""
    system = potential.createSystem(topology, removeCMMotion=remove)
    friction, step = 2.0, 0.002
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, friction, step)
    integrator.setRandomNumberSeed(7)
    platform = openmm.Platform.getPlatform("Reference")
    simulation = app.Simulation(topology, system, integrator, platform)
    simulation.context.setPositions(dataset.positions[0].astype(float))
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 1)
    simulation.step(500)
    kinetic, potential_energy = [], []
    for _ in range(500):
        simulation.step(50)
        state = simulation.context.getState(energy=True)
        kinetic.append(state.getKineticEnergy()._value)
        potential_energy.append(state.getPotentialEnergy()._value)
    assert np.isfinite(potential_energy).all() and np.ptp(potential_energy) > 1
    beads = system.getNumParticles()
    # What the thermostat has put into the centre of mass since its last removal, one step ago.
    centre = 3 * (1 - np.exp(-2 * friction * step)) if remove else 3
    expected = (3 * beads - 3 + centre) / 2 * GAS_CONSTANT * TEMPERATURE
    g = statistical_inefficiency(np.array(kinetic))
    z = (np.mean(kinetic) - expected) / (np.std(kinetic) * np.sqrt(g / len(kinetic)))
    assert abs(z) < 3.5, z
    assert np.std(kinetic) * np.sqrt(g / len(kinetic)) < 0.07 * expected


@backends
def test_minimise(backend, potential, topology, dataset) -> None:
    system = potential.createSystem(topology, backend=backend)
    before = energy_and_forces(system, dataset.positions[0])
    simulation = app.Simulation(
        topology, system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(dataset.positions[0].astype(float))
    simulation.minimizeEnergy(tolerance=1.0)
    state = simulation.context.getState(energy=True, forces=True)
    assert state.getPotentialEnergy()._value < before[0] - 1
    assert np.abs(state.getForces(asNumpy=True)._value).max() < 0.05 * np.abs(before[1]).max()


@backends
def test_deepcopy(backend, potential, topology, dataset) -> None:
    skip_where_copies_crash(backend)
    system = potential.createSystem(topology, backend=backend)
    again = copy.deepcopy(system)
    assert masses(again) == masses(system) and again.getNumForces() == system.getNumForces()
    expected = energy_and_forces(system, dataset.positions[0])
    assert_same(energy_and_forces(again, dataset.positions[0]), expected)


@backends
def test_xml(backend, potential, topology, dataset, tmp_path) -> None:
    skip_where_copies_crash(backend)
    system = potential.createSystem(topology, backend=backend)
    if backend == "python":
        with pytest.raises(cgml.InputError, match="PythonForce"):
            cgml.save_system(tmp_path / "system.xml", system)
        return
    cgml.save_system(tmp_path / "system.xml", system)
    text = openmm.XmlSerializer.serialize(system)
    expected = energy_and_forces(system, dataset.positions[0])
    for again in (
        cgml.load_system(tmp_path / "system.xml"),
        openmm.XmlSerializer.deserialize(text),
    ):
        assert masses(again) == masses(system) and again.getNumForces() == system.getNumForces()
        assert_same(energy_and_forces(again, dataset.positions[0]), expected)


# ---------------------------------------------------------------- mixed Systems

BEFORE = 2  # other particles come first, so that the beads are not 0, 1, ...


def with_elements(topology: cgml.CGTopology, others: int = 0) -> "app.Topology":
    """Every bead a carbon (openmm-ml 1.8 reads the elements of mixed Systems), after others."""
    top = app.Topology()
    chain = top.addChain()
    for _ in range(others):
        top.addAtom("P", app.element.argon, top.addResidue("P", chain))
    for residue in topology.to_openmm().residues():
        new = top.addResidue(residue.name, chain, residue.id)
        for atom in residue.atoms():
            top.addAtom(atom.name, app.element.carbon, new)
    atoms = list(top.atoms())
    for i, j in topology.bonds:
        top.addBond(atoms[others + i], atoms[others + j])
    return top


def conventional(model, inside: bool = True) -> "openmm.System":
    """A System of argon-like particles and the molecule, by a conventional force field.

    Without `inside`, what remains of it in a mixed System: nothing acts within the molecule.
    """
    beads, total = len(model.topology), BEFORE + len(model.topology)
    system = openmm.System()
    for mass in [40.0] * BEFORE + list(model.topology.masses):
        system.addParticle(mass)
    pairs = openmm.NonbondedForce()
    for k in range(total):
        pairs.addParticle(0.1 * (-1) ** k, 0.2, 0.5)
    bonds, angles = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    bonds.addBond(0, 1, 0.4, 100.0)
    exceptions = [(BEFORE + i, BEFORE + j) for i in range(beads) for j in range(i)]
    if inside:
        exceptions = [(BEFORE + i, BEFORE + j) for i, j in model.topology.bonds]
        for i, j in exceptions:
            bonds.addBond(i, j, 0.3, 1000.0)
        angles.addAngle(BEFORE, BEFORE + 1, BEFORE + 2, 2.0, 50.0)
        system.addConstraint(BEFORE + 3, BEFORE + 4, 0.15)
    for i, j in exceptions:
        pairs.addException(i, j, 0.0, 0.2, 0.0)
    for force in (pairs, bonds, angles):
        system.addForce(force)
    return system


@pytest.fixture
def mixed_frame(dataset) -> np.ndarray:
    others = dataset.positions[0].mean(0) + [[0.5, 0.4, 0.3], [-0.4, 0.5, -0.3]]
    return np.concatenate([others, dataset.positions[0]]).astype(float)


@backends
def test_mixed_system(backend, potential, model, mixed_frame) -> None:
    """The PMF within the molecule, the force field for all else."""
    beads = range(BEFORE, BEFORE + len(model.topology))
    system = potential.createMixedSystem(
        with_elements(model.topology, BEFORE), conventional(model), beads, forceGroup=3,
        backend=backend,
    )  # fmt: skip
    energies, forces = model.energy_and_forces(mixed_frame[None, BEFORE:])
    pmf = energies[0], np.concatenate([np.zeros((BEFORE, 3)), forces[0]])
    assert_same(energy_and_forces(system, mixed_frame, groups=1 << 3), pmf)
    rest = energy_and_forces(conventional(model, inside=False), mixed_frame)
    whole = energy_and_forces(system, mixed_frame)
    assert abs(rest[0]) > 1 and np.abs(rest[1][BEFORE:]).max() > 1
    assert_same(whole, (pmf[0] + rest[0], pmf[1] + rest[1]))
    assert system.getNumConstraints() == 0
    assert masses(system) == masses(conventional(model))


@backends
def test_interpolation(backend, potential, model, mixed_frame) -> None:
    skip_where_copies_crash(backend)  # openmm-ml copies the force
    system = conventional(model)
    system.removeConstraint(0)
    beads = range(BEFORE, BEFORE + len(model.topology))
    top = with_elements(model.topology, BEFORE)
    both = potential.createMixedSystem(top, system, beads, interpolate=True, backend=backend)
    mixed = potential.createMixedSystem(top, system, beads, backend=backend)
    ends = [energy_and_forces(one, mixed_frame) for one in (system, mixed)]
    assert abs(ends[0][0] - ends[1][0]) > 1
    context = context_of(both, mixed_frame)
    for fraction in (0.0, 0.3, 1.0):
        context.setParameter("lambda_interpolate", fraction)
        state = context.getState(energy=True, forces=True)
        expected = [(1 - fraction) * ends[0][k] + fraction * ends[1][k] for k in range(2)]
        found = state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value
        assert_same(found, expected)


def test_mixed_system_in_a_box(potential, model, mixed_frame) -> None:
    system = conventional(model)
    system.getForce(0).setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    system.setDefaultPeriodicBoxVectors(*(5.0 * np.eye(3)))
    beads = range(BEFORE, BEFORE + len(model.topology))
    mixed = potential.createMixedSystem(
        with_elements(model.topology, BEFORE), system, beads, forceGroup=3
    )
    energies, forces = model.energy_and_forces(mixed_frame[None, BEFORE:])
    mixed_frame[-1] += [5.0, 0, 0]
    expected = energies[0], np.concatenate([np.zeros((BEFORE, 3)), forces[0]])
    assert_same(energy_and_forces(mixed, mixed_frame, groups=1 << 3), expected, relative=1e-4)


def test_a_part_of_a_molecule_is_refused(potential, model) -> None:
    top, system = with_elements(model.topology, BEFORE), conventional(model)
    with pytest.raises(cgml.InputError, match="mixed System whole molecules"):
        potential.createMixedSystem(top, system, range(BEFORE, BEFORE + 3))
    with pytest.raises(cgml.InputError, match=r"atom 6 is .*, where model.pt has bead 0, "):
        potential.createMixedSystem(top, system, range(BEFORE + 4, BEFORE - 1, -1))


def test_indices_beyond_the_topology(potential, topology) -> None:
    system = openmm.System()
    with pytest.raises(cgml.InputError, match="atoms has index 1 to 5, but the topology has 5"):
        potential._impl.addForces(topology, system, range(1, 6), 0)
