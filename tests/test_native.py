"""The native force: its numbers, copies of it, and all that can go wrong around its compilers."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch  # before openmm

import numpy as np
import openmm
import pytest
from handmade import PairNetwork, Springs

import openmm_cgml as cgml
from openmm_cgml import force as backends
from openmm_cgml.native import cache, library
from openmm_cgml.native import force as native
from openmm_cgml.native.package import compile_package, find_package
from openmm_cgml.pmf import cgnet
from openmm_cgml.pmf.cgnet import CGNet
from openmm_cgml.pmf.core import energy_and_forces
from openmm_cgml.pmf.prior import HarmonicBonds

pytestmark = pytest.mark.backend

BOX = np.diag([2.0, 2.4, 2.2])

#: That of the other tests' model, so that they share what is compiled.
SIZES = {"cgnet": {"width": 32, "depth": 2}}

#: The others take another 15 s each.
NETWORKS = [
    name if name == "cgnet" else pytest.param(name, marks=pytest.mark.slow) for name in cgml.PMFS
]
needs_torchforce = pytest.mark.skipif(
    backends.backend_problem("torchforce") is not None, reason="no TorchForce here"
)


@pytest.fixture(scope="module", autouse=True)
def needs_a_compiler() -> None:
    if reason := native.problem():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def models(dataset, tmp_path_factory) -> Callable[..., "cgml.system.Model"]:
    """A function that returns an untrained model."""
    folder = tmp_path_factory.mktemp("models")

    def get(name: str, prior: bool = True, seed: int = 1) -> "cgml.system.Model":
        pmf = cgml.PMFS[name](dataset, seed=seed, **SIZES.get(name, {}))
        if prior:
            pmf = cgml.SumPMF(cgml.fit_prior(dataset), pmf)
        cgml.save_model(folder / f"{name}.pt", pmf, dataset)
        return cgml.load_model(folder / f"{name}.pt")

    return get


@pytest.fixture
def unloaded(monkeypatch) -> Iterator[None]:
    """The native force as in a process that has not loaded it, and again as it was."""
    kept = library.load()  # OpenMM still knows its functions
    functions = (library.load, native.load, native.problem)
    for function in functions:
        function.cache_clear()
    monkeypatch.setattr(native, "_told", set())
    yield
    monkeypatch.undo()
    for function in functions:
        function.cache_clear()
    native.load()
    del kept


@pytest.fixture
def new_cache(tmp_path, monkeypatch) -> Path:
    """A cache with the compiled force in it and nothing else."""
    folder = tmp_path / "cache"
    folder.mkdir()
    library.load()
    (folder / "libraries").symlink_to(cache.folder() / "libraries")
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr(native, "_told", set())
    monkeypatch.setattr(cache, "_answers", {})
    return folder


@pytest.fixture
def new_choices(model, monkeypatch, request) -> None:
    """A cache with all that is compiled, but no choice of a backend in it."""
    native.create_force(model.file, copies=2)
    old = cache.folder()
    folder = request.getfixturevalue("new_cache")
    for kind in ("packages", "graphs"):
        (folder / kind).symlink_to(old / kind)


@pytest.fixture
def no_compiler(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


def system_of(force, particles: int) -> openmm.System:
    system = openmm.System()
    for _ in range(particles):
        system.addParticle(12.0)
    system.setDefaultPeriodicBoxVectors(*BOX)
    system.addForce(force)
    return system


def context_of(
    system: openmm.System, positions, platform: str = "Reference", step: float = 0.0005
) -> openmm.Context:
    properties = {"Threads": "1"} if platform == "CPU" else {}
    context = openmm.Context(
        system,
        openmm.VerletIntegrator(step),
        openmm.Platform.getPlatform(platform),
        properties,
    )
    put(context, positions)
    return context


def put(context: openmm.Context, positions) -> None:
    context.setPositions(np.asarray(positions, dtype=np.float64).reshape(-1, 3))


def evaluate(context: openmm.Context) -> tuple[float, np.ndarray]:
    state = context.getState(getEnergy=True, getForces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def exact(model, positions, box=None) -> tuple[np.ndarray, np.ndarray]:
    """Energies and forces of the network in float64."""
    pmf = model.rebuild().double()
    box = None if box is None else torch.tensor(box)
    energies, forces = energy_and_forces(pmf, torch.tensor(np.asarray(positions, float)), box)
    return energies.numpy(), forces.numpy()


def near(energy):
    """Float32: to the digits of the terms, which may cancel."""
    return pytest.approx(energy, rel=1e-5, abs=1e-4)


def assert_equal(found: tuple[float, np.ndarray], expected: tuple) -> None:
    energy, forces = found
    energies, expected_forces = expected
    assert energy == near(energies.sum())
    error = np.linalg.norm(forces - expected_forces.reshape(forces.shape))
    assert error / np.linalg.norm(expected_forces) < 1e-5


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("copies", [2, 7, 1000])
def test_equals_the_float64_network(models, dataset, name, copies) -> None:
    model, positions = models(name), dataset.positions[:copies]
    force = native.create_force(model.file, copies=copies)
    system, expected = system_of(force, copies * 5), exact(model, positions)
    for platform in ("Reference", "CPU"):
        context = context_of(system, positions, platform)
        assert_equal(evaluate(context), expected)
        assert native.status(force, context)[0], "it runs as TorchScript"


@pytest.mark.parametrize("name", NETWORKS)
def test_one_copy_equals_the_float64_network(models, dataset, name) -> None:
    """It has a package of its own."""
    model, positions = models(name), dataset.positions[3]
    force = native.create_force(model.file)
    system = system_of(force, 5)
    for platform in ("Reference", "CPU"):
        context = context_of(system, positions, platform)
        assert native.status(force, context)[0]
        assert_equal(evaluate(context), exact(model, positions[None]))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_prior_in_a_periodic_box(models, dataset, name) -> None:
    model, positions = models(name, prior=False), dataset.positions[:7].astype(float)
    positions -= positions.mean(1, keepdims=True)
    force = native.create_force(model.file, copies=7, periodic=True)
    torn = positions.copy()
    torn[0, 1] += BOX[0]
    torn[3, 4] -= BOX[1] - 2 * BOX[2]
    for platform in ("Reference", "CPU"):
        context = context_of(system_of(copy.deepcopy(force), 35), torn, platform)
        # What is torn apart is rounded to float32 at some nm from where it belongs.
        rounded = torn.astype(np.float32)
        assert_equal(evaluate(context), exact(model, rounded, BOX))
        # Another box at the same positions is another evaluation.
        context.setPeriodicBoxVectors(*(1.5 * BOX))
        assert_equal(evaluate(context), exact(model, rounded, 1.5 * BOX))


def test_compiled_with_beads_whose_inverse_is_rounded() -> None:
    """49 (1 / 49.0) is less than 1: the number of copies must not be found by such a product."""
    beads = 49
    chain = tuple((i, i + 1) for i in range(beads - 1))
    topology = cgml.CGTopology(
        bead_names=("A",) * beads, bead_types=("A",) * beads, residue_names=("X",) * beads,
        residue_ids=tuple(range(beads)), chain_ids=("A",) * beads, bonds=chain,
        masses=(1.0,) * beads,
    )  # fmt: skip
    positions = np.cumsum(np.random.default_rng(0).normal(size=(3, beads, 3)), axis=1)
    dataset = cgml.CGDataset(positions, topology, 300.0)
    pmf = HarmonicBonds(chain, [1.5] * len(chain), [1.0] * len(chain))
    with tempfile.TemporaryDirectory() as folder:
        cgml.save_model(Path(folder) / "chain.pt", pmf, dataset)
        model = cgml.load_model(Path(folder) / "chain.pt")
    for copies in (2, 3):
        force = native.create_force(model.file, copies=copies)
        context = context_of(system_of(force, copies * beads), positions[:copies], "Reference")
        assert native.status(force, context)[0]
        assert_equal(evaluate(context), exact(model, positions[:copies].astype(np.float32)))


def test_a_subset_out_of_order_with_scales(model, dataset) -> None:
    """Two copies among other particles, scaled together and one by one."""
    particles = [8, 1, 2, 11, 4, 0, 3, 6, 9, 10]
    force = native.create_force(model.file, particles, 2, scale_parameter="lambda")
    positions = np.random.default_rng(0).standard_normal((13, 3))
    positions[particles] = dataset.positions[[30, 60]].reshape(-1, 3)
    energies, expected = exact(model, dataset.positions[[30, 60]])
    for platform in ("Reference", "CPU"):
        twin = copy.deepcopy(force)
        system = system_of(twin, 13)
        context = context_of(system, positions, platform)
        for common, scales in ((1.0, None), (0.25, None), (0.5, [3.0, -1.0]), (1.0, [0.0, 1.0])):
            context.setParameter("lambda", common)
            if scales is not None:
                native.set_scales(twin, context, scales)
            factors = common * np.array([1.0, 1.0] if scales is None else scales)
            energy, forces = evaluate(context)
            assert energy == near((factors * energies).sum())
            assert np.abs(forces[[5, 7, 12]]).max() == 0
            wanted = (factors[:, None, None] * expected).reshape(-1, 3)
            assert np.allclose(forces[particles], wanted, rtol=1e-4, atol=1e-2)
            read, sick = native.read_copies(twin, context, 2)
            assert read == near(factors * energies) and not sick.any()


def test_reading_copies_costs_no_evaluation_and_leaves_no_trace(model, dataset) -> None:
    ends, positions = [], dataset.positions[:7]
    for reads in (False, True):
        force = native.create_force(model.file, copies=7, guarded=True)
        system = system_of(force, 35)
        context = context_of(system, positions)
        for _ in range(20):
            context.getIntegrator().step(1)
            if reads:
                energies, sick = native.read_copies(force, context, 7)
                assert not sick.any()
                assert energies.sum() == pytest.approx(evaluate(context)[0], rel=1e-9)
        places = context.getState(getPositions=True).getPositions(asNumpy=True)._value
        evaluations = native.status(force, context)[1]
        ends.append((places, evaluations))
    assert np.array_equal(ends[0][0], ends[1][0])
    # The last reading is one that the next step would have made.
    assert ends[0][1] == 20 and ends[1][1] == 21
    assert energies == near(exact(model, ends[1][0].reshape(7, 5, 3))[0])


def test_a_sick_copy_is_held_still_and_counted(model, dataset) -> None:
    """NaN positions of one copy: the others do not notice, to the bit."""
    positions = dataset.positions[:7].astype(float)
    force = native.create_force(model.file, copies=7, guarded=True)
    system = system_of(force, 35)
    context = context_of(system, positions)
    _, healthy = evaluate(context)
    energies, sick = native.read_copies(force, context, 7)
    assert sick.tolist() == [0] * 7
    others = np.arange(7) != 4
    for k, bad in enumerate((np.nan, np.inf, 1e30), start=1):
        ill = positions.copy()
        ill[4, 2, 1] = bad
        put(context, ill)
        energy, forces = evaluate(context)
        read, sick = native.read_copies(force, context, 7)
        assert np.isfinite(energy) and read[4] == 0
        assert np.array_equal(read[others], energies[others])
        forces, before = forces.reshape(7, 5, 3), healthy.reshape(7, 5, 3)
        assert np.array_equal(forces[others], before[others]) and not forces[4].any()
        assert sick.tolist() == [0, 0, 0, 0, k, 0, 0]
    put(context, positions)
    assert np.array_equal(evaluate(context)[1], healthy)


def test_nan_passes_through_an_unguarded_force(model, dataset) -> None:
    positions = dataset.positions[:2].astype(float)
    context = context_of(system_of(native.create_force(model.file, copies=2), 10), positions)
    positions[1, 0] = np.nan
    put(context, positions)
    assert np.isnan(evaluate(context)[0])


@pytest.mark.parametrize("copies", [1000, pytest.param(1, marks=pytest.mark.slow)])
def test_two_threads_of_torch_give_the_same_energies(model, dataset, copies) -> None:
    """Many copies are shared out between them; one has a package that uses both."""
    positions = dataset.positions[:copies]
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            force = native.create_force(model.file, copies=copies)
            system = system_of(force, 5 * copies)
            context = context_of(system, positions)
            found.append(native.read_copies(force, context, copies)[0])
            assert native.status(force, context)[0]
        finally:
            torch.set_num_threads(1)
    assert np.allclose(*found, rtol=1e-6)


def test_two_contexts_in_two_threads_give_what_one_does(model, dataset) -> None:
    def run(first: int) -> np.ndarray:
        system = system_of(native.create_force(model.file, copies=50), 250)
        context = context_of(system, dataset.positions[first : first + 50])
        barrier.wait()
        context.getIntegrator().step(200)
        return context.getState(getPositions=True).getPositions(asNumpy=True)._value

    def keep(first: int) -> None:
        ends[first] = run(first)

    barrier = threading.Barrier(1)
    alone = {first: run(first) for first in (0, 50)}
    barrier, ends = threading.Barrier(2), {}
    workers = [threading.Thread(target=keep, args=(first,)) for first in (0, 50)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for first in (0, 50):
        assert np.array_equal(ends[first], alone[first])


def test_models_of_the_same_operations_share_a_package(models, dataset) -> None:
    """Weights are the model's own, also of two that are alive at the same time."""
    one, other = models("cgnet"), models("cgnet", seed=2)
    package = compile_package(one.file, 2)
    assert compile_package(other.file, 3).path == package.path
    x, contexts = dataset.positions[:2], []
    for model in (one, other, one):
        system = model.create_system(2, backend="native")
        contexts.append((context_of(system, x), exact(model, x), system))
    assert abs(contexts[0][1][0] - contexts[1][1][0]).max() > 0.1
    for context, expected, system in contexts:
        assert native.status(system.getForce(0), context)[0]
        assert_equal(evaluate(context), expected)


@pytest.mark.parametrize("copies", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_a_network_that_needs_autograd(dataset, copies, tmp_path, monkeypatch) -> None:
    """Its gradient is traced; its weights are still its own, in a package that others share."""
    monkeypatch.setattr(cgnet, "PairNetwork", PairNetwork, raising=False)
    monkeypatch.setattr(PairNetwork, "__module__", cgnet.__name__)
    x, paths = dataset.positions[:copies], set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        file = cgml.save_model(tmp_path / "pairs.pt", PairNetwork(5), dataset)
        paths.add(compile_package(file, copies).path)
        system = system_of(native.create_force(file, copies=copies), 5 * copies)
        context = context_of(system, x)
        assert native.status(system.getForce(0), context)[0]
        assert_equal(evaluate(context), exact(file, x))
    assert len(paths) == 1


def test_indices_are_the_model_s_own_as_well(models, dataset, tmp_path) -> None:
    """Other angles and torsions, but as many: the same package."""
    arguments = models("cgnet", prior=False).rebuild().arguments()
    x, paths, networks = dataset.positions[:7], set(), []
    for bonds in ([(0, 1), (1, 2), (2, 3), (3, 4)], [(1, 0), (0, 3), (3, 2), (2, 4)]):
        torch.manual_seed(0)
        network = CGNet(**{**arguments, "bonds": bonds})
        file = cgml.save_model(tmp_path / "model.pt", network, dataset)
        paths.add(compile_package(file, 7, periodic=True).path)
        system = system_of(native.create_force(file, copies=7, periodic=True), 35)
        networks.append((context_of(system, x), exact(file, x, BOX)))
    assert len(paths) == 1
    for context, expected in networks:
        assert_equal(evaluate(context), expected)


@needs_torchforce
def test_energy_drifts_no_more_than_with_torchforce(model, dataset) -> None:
    copies, drifts = 20, {}
    for backend in ("torchforce", "native"):
        system = model.create_system(copies, backend=backend)
        context = context_of(system, dataset.draw(copies, seed=1))
        context.setVelocitiesToTemperature(300, 1)
        totals = []
        for _ in range(40):
            context.getIntegrator().step(50)
            state = context.getState(getEnergy=True)
            totals.append(state.getPotentialEnergy()._value + state.getKineticEnergy()._value)
        drift = np.polyfit(np.arange(40) * 0.025, totals, 1)[0]  # kJ/mol/ps
        drifts[backend] = abs(drift) / (copies * 15)
    # The same dynamics, but of chaotic rounding.
    assert drifts["native"] < drifts["torchforce"] + 1e-3, drifts


# ---------------------------------------------------------------- copies of the force


def test_copies_of_a_system_are_exact(model, dataset) -> None:
    """XML, deepcopy and pickle: everything in the XML, and energies to the bit."""
    particles = np.random.default_rng(0).permutation(10)
    system = openmm.System()
    for _ in range(10):
        system.addParticle(12.0)
    force = native.create_force(
        model.file, particles, 2, guarded=True, scale_parameter="lambda & <mu>"
    )
    force.setForceGroup(5)
    force.setName('PMF "a" & <b>')
    text = openmm.XmlSerializer.serialize(force)
    # Scales of single copies are in the XML alone.
    text = text.replace("<Scales/>", '<Scales><Scale value=".25"/><Scale value="3"/></Scales>')
    system.addForce(openmm.XmlSerializer.deserialize(text))
    text = openmm.XmlSerializer.serialize(system)
    assert text.count("<Scale ") == 2 and text.count("<Particle index") == 10
    positions = np.empty((10, 3))
    positions[particles] = dataset.positions[:2].reshape(-1, 3)
    expected = evaluate(context_of(system, positions))
    energies = exact(model, dataset.positions[:2])[0]
    assert expected[0] == near(0.25 * energies[0] + 3 * energies[1])
    for other in (
        openmm.XmlSerializer.deserialize(text),
        copy.deepcopy(system),
        pickle.loads(pickle.dumps(system)),
    ):
        assert openmm.XmlSerializer.serialize(other) == text
        twin = other.getForce(0)
        assert twin.getForceGroup() == 5 and twin.getName() == 'PMF "a" & <b>'
        assert not twin.usesPeriodicBoundaryConditions()
        energy, forces = evaluate(context_of(other, positions))
        assert energy == expected[0] and np.array_equal(forces, expected[1])
    text = text.replace('periodic="0"', 'periodic="1"')
    other = openmm.XmlSerializer.deserialize(text)
    assert other.usesPeriodicBoundaryConditions()
    assert openmm.XmlSerializer.serialize(other) == text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('version="1"', 'version="2"', "written by a newer openmm_cgml"),
        ('archive="', 'archive="*', "the model in this XML is damaged"),
        ('copies="2"', 'copies="0"', "at least one copy and one bead"),
    ],
)
def test_xml_that_makes_no_sense_is_refused(model, old, new, message) -> None:
    text = openmm.XmlSerializer.serialize(native.create_force(model.file, copies=2))
    assert text.count(old) == 1
    with pytest.raises(Exception, match=message):
        openmm.XmlSerializer.deserialize(text.replace(old, new))


FRESH = """
import openmm  # before torch, as a user may
import os, sys
import numpy as np
import torch
torch.set_num_threads(1)
import openmm_cgml as cgml
from openmm_cgml.force import fastest_backend
from openmm_cgml.native import force as native

def context(system):
    one = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference")
    )
    one.setPositions(np.load("positions.npy"))
    state = one.getState(getEnergy=True)
    print(native.status(system.getForce(0), one)[0], state.getPotentialEnergy()._value.hex())
    return one

system = cgml.load_system("system.xml")
alive = [context(system)]
model = cgml.load_model(sys.argv[1]).file
print(fastest_backend(model, 7, platform=openmm.Platform.getPlatform("Reference")))
os.environ["OPENMM_CGML_CACHE"] = os.path.abspath("empty")
alive += [context(system), context(system)]
"""


def test_a_fresh_process(model, dataset, new_choices, tmp_path) -> None:
    """XML there: compiled with the cache, else TorchScript with one warning; a clean exit.

    Its Contexts are alive at the end, and the choice of a backend is the one made here.
    """
    reference = openmm.Platform.getPlatform("Reference")
    chosen = backends.fastest_backend(model.file, 7, platform=reference)
    system = model.create_system(7, backend="native")
    (tmp_path / "model.pt").write_bytes(model.file.archive)
    cgml.save_system(tmp_path / "system.xml", system)
    np.save(tmp_path / "positions.npy", dataset.positions[:7].reshape(-1, 3).astype(float))
    done = subprocess.run(
        [sys.executable, "-c", FRESH, "model.pt"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cgml.__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, again, *others = done.stdout.splitlines()
    expected = evaluate(context_of(system, dataset.positions[:7]))[0]
    assert first == f"True {expected.hex()}"
    assert again == chosen
    assert len(others) == 2
    for line in others:
        compiled, energy = line.split()
        assert compiled == "False" and float.fromhex(energy) == pytest.approx(expected, rel=1e-6)
    said = [line for line in done.stderr.splitlines() if "openmm_cgml" in line or "model" in line]
    assert len(said) == 1 and f"no compiled package of model {model.file.name}" in said[0]
    assert "cgml compile" in said[0]


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("case", ["Langevin", "exchange"])
def test_a_run_goes_on_as_if_never_stopped(model, dataset, case, tmp_path, monkeypatch) -> None:
    """Bit-identical, and with the backend of the run where the choice is left to the engine."""
    monkeypatch.setenv(backends.BACKEND_VARIABLE, "python")

    def simulation(backend: str | None) -> "cgml.Langevin":
        if case == "Langevin":
            return cgml.Langevin(model, dataset, 4, backend=backend)
        temperatures = [300.0, 330.0]
        return cgml.ReplicaExchange(
            model, dataset, temperatures, copies=2, exchange_interval=0.02, backend=backend
        )

    def run(output: Path, backend: str | None, **limit: float) -> "cgml.run_file.Run":
        return simulation(backend).run(output, steps=200, interval=0.02, **limit)

    whole = run(tmp_path / "whole.h5", "native")
    assert whole.info["backend"] == "native" and whole.info["program"] == "compiled"
    parts = 0
    while not (part := run(tmp_path / "run.h5", None if parts else "native",
                           seconds=0.0 if parts < 2 else 1e9)).finished:  # fmt: skip
        parts += 1
    assert parts == 2 and len(part) == len(whole) == 20
    for name in ("positions", "energy", "kinetic_energy", "rung"):
        assert np.array_equal(getattr(part, name), getattr(whole, name)), name
    assert part.info["backend"] == "native"


# ---------------------------------------------------------------- the fastest backend


def test_the_fastest_backend_is_found_once(model, new_choices, monkeypatch, capfd) -> None:
    reference = openmm.Platform.getPlatform("Reference")

    def ask() -> str:
        return backends.fastest_backend(model.file, 5, platform=reference)

    first = ask()
    assert first in backends.BACKENDS
    (line,) = [one for one in capfd.readouterr().err.splitlines() if "fastest" in one]
    assert f"{first} is the fastest backend for 5 copies of {model.file.name} on" in line
    monkeypatch.setattr(cache, "_answers", {})  # as in another process

    def no_trial(*_) -> float:
        raise AssertionError("tried again")

    monkeypatch.setattr(backends, "_trial", no_trial)
    assert ask() == ask() == first
    assert not capfd.readouterr().err


def test_the_environment_beats_the_trial(model, dataset, new_choices, monkeypatch) -> None:
    monkeypatch.setenv(backends.BACKEND_VARIABLE, "python")
    assert cgml.Langevin(model, dataset, 2).engine.backend == "python"
    assert isinstance(model.create_force(), openmm.PythonForce)
    assert cgml.Langevin(model, dataset, 2, backend="native").engine.backend == "native"
    monkeypatch.setenv(backends.BACKEND_VARIABLE, "fastest")
    monkeypatch.setattr(backends, "_trial", lambda name, *_: float(name != "native"))
    assert cgml.Langevin(model, dataset, 6).engine.backend == "native"


def test_a_backend_that_fails_its_trial_is_left_out(
    model, new_choices, monkeypatch, caplog
) -> None:
    def trial(name: str, *_) -> float:
        if name == "native":
            raise openmm.OpenMMException("out of luck\n")
        return 1.0 if name == "python" else 2.0

    monkeypatch.setattr(backends, "_trial", trial)
    assert backends.fastest_backend(model.file, 11) == "python"
    assert warnings_of(caplog) == ["backend 'native' does not work here: out of luck"]
    monkeypatch.setattr(backends, "_trial", lambda *_: 1 / 0)
    with pytest.raises(cgml.BackendError, match="no backend works here"):
        backends.fastest_backend(model.file, 12)


# ---------------------------------------------------------------- errors


def test_systems_that_do_not_fit_are_refused(model, dataset) -> None:
    force = native.create_force(model.file, copies=2)
    with pytest.raises(
        openmm.OpenMMException,
        match=f"model {model.file.name}: the System has 9 particles but the model has 2 copies",
    ):
        context_of(system_of(force, 9), dataset.positions[:2])
    force = native.create_force(model.file, [0, 1, 2, 3, 4, 5, 6, 7, 8, 99], 2)
    with pytest.raises(
        openmm.OpenMMException, match=f"{model.file.name}: .* uses particle 99 but"
    ):
        context_of(system_of(force, 10), dataset.positions[:2])
    with pytest.raises(cgml.InputError, match="copies is 0"):
        native.create_force(model.file, copies=0)
    with pytest.raises(cgml.InputError, match="different and not negative"):
        native.create_force(model.file, [0, 1, 2, 3, 3])


def test_another_number_of_copies_is_refused(model, dataset) -> None:
    """Else memory would be read and written that is not there."""
    force = native.create_force(model.file, copies=3)
    system = system_of(force, 15)
    context = context_of(system, dataset.positions[:3])
    for call in (
        lambda: native.read_copies(force, context, 2),
        lambda: native.read_copies(force, context, 4),
        lambda: native.set_scales(force, context, np.ones(2)),
        lambda: native.set_scales(force, context, np.ones((2, 2))),
    ):
        with pytest.raises(openmm.OpenMMException, match="small.pt: it has 3 copies here, not"):
            call()


def test_another_force_is_refused(model, dataset) -> None:
    force = openmm.CustomExternalForce("x")
    context = context_of(system_of(force, 5), dataset.positions[0])
    with pytest.raises(openmm.OpenMMException, match="this Force is not a CGMLForce"):
        native.status(force, context)


class Fences(cgml.PMF):
    """Springs to the origin, that raise where a bead is beyond 5 nm."""

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        return self.checked(positions).square().sum(dim=(1, 2))

    def checked(self, positions: torch.Tensor) -> torch.Tensor:
        if bool((positions > 5.0).any()):
            raise ValueError("a bead is beyond the fence")
        return positions

    def arguments(self) -> dict:
        return {}


def test_an_error_in_the_network_is_openmm_s(dataset, tmp_path) -> None:
    """Also from a method that TorchScript inlines; the Context can be used afterwards."""
    cgml.save_model(tmp_path / "fences.pt", Fences(), dataset)
    model = cgml.load_model(tmp_path / "fences.pt")
    inside = dataset.positions[:2] - dataset.positions[:2].mean((0, 1))
    context = context_of(model.create_system(2, backend="native"), inside)
    expected = evaluate(context)
    for _ in range(5):
        put(context, inside + 9.0)
        with pytest.raises(
            openmm.OpenMMException, match="^model fences.pt: .*a bead is beyond the fence$"
        ):
            evaluate(context)
        put(context, inside)
        assert evaluate(context)[0] == pytest.approx(expected[0], rel=1e-6)


# ---------------------------------------------------------------- models that cannot be compiled


def test_a_model_of_a_class_of_one_s_own_runs_as_torchscript(
    dataset, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(native, "_told", set())
    cgml.save_model(tmp_path / "springs.pt", Springs(), dataset)
    model = cgml.load_model(tmp_path / "springs.pt")
    for copies in (3, 1):
        caplog.clear()
        positions = dataset.positions[:copies]
        expected = model.energy_and_forces(positions)
        for _ in range(2):
            force = native.create_force(model.file, copies=copies)
            system = system_of(force, 5 * copies)
            for platform in ("Reference", "CPU"):
                assert_equal(evaluate(context_of(system, positions, platform)), expected)
            context = context_of(system, positions)
            assert not native.status(force, context)[0]
        (said,) = warnings_of(caplog)
        assert said.startswith("model springs.pt cannot be compiled: ")
        assert "it runs as TorchScript in the native force, slower" in said
    # A box, scales and other particles are the force's, not the program's.
    force = native.create_force(model.file, range(4, -1, -1), periodic=True, scale_parameter="s")
    context = context_of(system_of(force, 5), dataset.positions[0, ::-1])
    context.setParameter("s", 0.5)
    energy, forces = evaluate(context)
    assert energy == pytest.approx(0.5 * expected[0].sum(), rel=1e-5)
    assert np.allclose(forces[::-1], 0.5 * expected[1][0], rtol=1e-4, atol=1e-3)


def test_without_a_compiler_a_new_model_runs_as_torchscript(
    model, dataset, new_cache, no_compiler, caplog
) -> None:
    """The force itself is there already."""
    force = native.create_force(model.file, copies=2)
    system = system_of(force, 10)
    context = context_of(system, dataset.positions[:2])
    assert not native.status(force, context)[0]
    assert_equal(evaluate(context), exact(model, dataset.positions[:2]))
    (said,) = warnings_of(caplog)
    assert said.startswith(
        f"model {model.file.name} cannot be compiled: there is no C++ compiler; "
    )


def test_without_a_compiler_what_is_compiled_already_serves(
    model, dataset, no_compiler, unloaded, caplog
) -> None:
    force = native.create_force(model.file, copies=2)
    system = system_of(force, 10)
    context = context_of(system, dataset.positions[:2])
    assert native.status(force, context)[0] and not warnings_of(caplog)


def broken_compiler(folder: Path) -> str:
    script = folder / "broken"
    script.write_text("#!/bin/sh\n[ $1 = --version ] || echo 'x.cpp: error: tired' >&2; exit 1\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.slow
def test_a_model_that_the_compiler_fails_on_runs_as_torchscript(
    model, new_cache, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("CXX", broken_compiler(tmp_path))
    native.create_force(model.file, copies=2)
    (said,) = warnings_of(caplog)
    assert said.startswith(f"model {model.file.name} cannot be compiled: ")
    assert not list((new_cache / "packages").glob("*.*/"))


# ---------------------------------------------------------------- no native force


@pytest.mark.parametrize("cxx", [None, "", "no-such-compiler -O2"])
def test_no_compiler_is_told(
    model, unloaded, no_compiler, cxx, tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    assert native.problem() == "there is no C++ compiler; install g++, or set CXX"
    with pytest.raises(
        cgml.BackendError, match="'native' does not work here: there is no C\\+\\+"
    ):
        model.create_force(backend="native")
    monkeypatch.setattr(backends, "torchforce_problem", lambda: "no TorchForce")
    monkeypatch.delenv(backends.BACKEND_VARIABLE, raising=False)
    with pytest.warns(UserWarning, match="no TorchForce.*there is no C\\+\\+ compiler"):
        assert backends.choose_backend() == "python"
    assert not capfd.readouterr().err


def test_a_failing_compiler_is_quoted(unloaded, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", broken_compiler(tmp_path))
    with pytest.raises(
        cgml.BackendError, match="cannot compile the native force: x.cpp: error: t"
    ):
        native.load()
    assert "x.cpp: error: tired" in native.problem()
    assert not list((tmp_path / "cache" / "libraries").glob("*/"))


def test_a_wrong_cxx_beside_a_good_compiler_does_not_matter(monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert library.compiler() in (["g++"], ["c++"], ["clang++"])
    monkeypatch.setenv("CXX", "sh -c")
    assert library.compiler() == ["sh", "-c"]


def test_a_library_of_other_versions_is_not_loaded(unloaded, tmp_path, monkeypatch) -> None:
    """It could end the process."""
    shipped = tmp_path / "libcgml.so"
    shipped.write_bytes(b"not a library")
    monkeypatch.setattr(library, "SHIPPED", shipped)
    for card in ("{", "{}", '{"torch": "1.0", "openmm": "7.0"}'):
        shipped.with_suffix(".json").write_text(card)
        assert native.problem() is None
        native.problem.cache_clear()
    monkeypatch.setattr(library, "_fits", dict)
    shipped.with_suffix(".json").write_text("{}")
    for function in (library.load, native.load):
        function.cache_clear()
    assert "the native force does not load" in native.problem()


# ---------------------------------------------------------------- the cache


def write(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text)


def refuse(path: Path) -> None:
    raise AssertionError("built again")


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_code_is_built_once(own_cache, capfd) -> None:
    built = cache.build("things", {"of": "one"}, write("code"), "building a thing")
    assert built.read_text() == "code"
    assert capfd.readouterr().err == "openmm_cgml: building a thing\n"
    assert cache.build("things", {"of": "one"}, refuse, "") == built
    assert cache.find("things", {"of": "one"}) == built
    assert cache.find("things", {"of": "two"}) is None
    assert not capfd.readouterr().err


def test_what_fails_leaves_nothing(own_cache) -> None:
    with pytest.raises(AssertionError):
        cache.build("things", {}, refuse, "")
    assert not [path for path in (own_cache / "things").iterdir() if path.is_dir()]
    assert cache.build("things", {}, write("code"), "").read_text() == "code"


@pytest.mark.parametrize("damage", ["cut", "gone", "card", "no card"])
def test_damaged_code_is_built_again(own_cache, damage, caplog) -> None:
    code = cache.build("things", {}, write("code"), "")
    card = code.with_name("card.json")
    if damage == "cut":
        code.write_text("co")
    elif damage == "gone":
        code.unlink()
    elif damage == "card":
        card.write_text('{"sha256"')
    else:
        card.unlink()
    assert cache.find("things", {}) is None
    assert cache.build("things", {}, write("new"), "").read_text() == "new"
    (said,) = warnings_of(caplog)
    assert "was damaged; it was built again" in said and str(code.parent) in said
    assert sorted(path.suffix for path in (own_cache / "things").iterdir()) == ["", ".lock"]


@pytest.mark.parametrize("where", ["cache", "cache/things"])
def test_a_read_only_cache(tmp_path, where, monkeypatch, caplog, capfd) -> None:
    """A file stands where a folder should be, which stops root as well."""
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_temporary", [])
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text("")
    built = cache.build("things", {}, write("code"), "building")
    assert built.read_text() == "code" and tmp_path not in built.parents
    assert cache.build("things", {}, refuse, "") == built
    cache.build("things", {"another": 1}, write("code"), "")
    cache.remember("things", {"question": 1}, "answer")
    assert cache.recall("things", {"question": 1}) == "answer"
    (said,) = warnings_of(caplog)
    assert "compiled code cannot be kept in" in said and cache.FOLDER_VARIABLE in said


def test_a_lock_that_nobody_holds_is_not_waited_for(own_cache, capfd) -> None:
    code = cache.build("things", {}, write("code"), "")
    code.parent.with_suffix(".lock").write_text("process 1 on elsewhere")
    code.unlink()
    cache.build("things", {}, write("code"), "building")
    assert "waiting" not in capfd.readouterr().err


BUILDER = """
import sys, time
from openmm_cgml.native import cache

def make(path):
    with open("made", "a") as log:
        log.write("x")
    (path.parent / "half").write_text("")
    time.sleep(float(sys.argv[1]))
    path.write_text("code")

print(cache.build("things", {}, make, "building"))
"""


def builder(folder: Path, seconds: float) -> subprocess.Popen:
    root = str(Path(cgml.__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(seconds)],
        cwd=folder, env={**os.environ, "PYTHONPATH": root}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_until_building(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob("cache/things/*/made/half")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_build_is_done_by_the_next(own_cache, tmp_path, capfd) -> None:
    process = builder(tmp_path, 1000)
    wait_until_building(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert cache.find("things", {}) is None
    assert cache.build("things", {}, write("new"), "building").read_text() == "new"
    assert "waiting" not in capfd.readouterr().err
    assert sorted(path.suffix for path in (own_cache / "things").iterdir()) == ["", ".lock"]


def test_of_two_builders_one_waits(own_cache, tmp_path) -> None:
    first = builder(tmp_path, 2)
    wait_until_building(tmp_path)
    second = builder(tmp_path, 2)
    (place, said), (other, waited) = first.communicate(), second.communicate()
    assert first.returncode == second.returncode == 0 and place == other
    assert said == "openmm_cgml: building\n"
    assert waited.startswith(f"openmm_cgml: process {first.pid} on ")
    assert waited.endswith(" builds the same; waiting\n")
    assert (tmp_path / "made").read_text() == "x"


def test_code_for_another_processor_is_not_found(model, dataset, monkeypatch, caplog) -> None:
    """It would end the process with an illegal instruction."""
    force = native.create_force(model.file, copies=2)
    assert find_package(model.file.archive, 2, False, "cpu") is not None
    monkeypatch.setattr(cache, "processor", lambda: "another")
    monkeypatch.setattr(native, "_told", set())
    assert find_package(model.file.archive, 2, False, "cpu") is None
    system = system_of(force, 10)
    context = context_of(system, dataset.positions[:2])
    assert not native.status(force, context)[0]
    assert_equal(evaluate(context), exact(model, dataset.positions[:2]))
    (said,) = warnings_of(caplog)
    assert f"no compiled package of model {model.file.name}" in said


def test_a_package_keeps_no_part_of_its_making(model) -> None:
    package = compile_package(model.file, 2)
    assert sorted(path.name for path in package.path.parent.iterdir()) == ["card.json", "code.so"]
