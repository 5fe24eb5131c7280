"""The same numbers on the processor and on a GPU.

Every body runs here on the CPU, with the fast tests, and once more on a GPU where there is one:
``python -m pytest -m gpu``.
"""

import torch  # before openmm

import numpy as np
import openmm
import pytest

import openmm_cgml as cgml
from openmm_cgml.force import BACKENDS
from openmm_cgml.reference.run import run_reference

OPENMM_HAS_CUDA = "CUDA" in {
    openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())
}
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
NEEDS_PLATFORM = pytest.mark.skipif(not OPENMM_HAS_CUDA, reason="OpenMM has no CUDA platform here")

#: OpenMM's platform, and the error of single precision on it.
PLATFORMS = [("Reference", 1e-5), pytest.param("CUDA", 1e-4, marks=[*GPU, NEEDS_PLATFORM])]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
ACCELERATORS = ["cpu", pytest.param("gpu", marks=GPU)]


@pytest.mark.backend
@pytest.mark.parametrize("platform, error", PLATFORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_energies_and_forces(model, dataset, backend, platform, error) -> None:
    copies = 33
    positions = dataset.positions[:copies]
    context = openmm.Context(
        model.create_system(copies, backend=backend), openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatform(platform),
    )  # fmt: skip
    context.setPositions(positions.reshape(-1, 3))
    state = context.getState(getEnergy=True, getForces=True)
    forces = state.getForces(asNumpy=True)._value.reshape(positions.shape)
    energies, expected = model.energy_and_forces(positions)
    assert state.getPotentialEnergy()._value == pytest.approx(energies.sum(), rel=error)
    assert np.linalg.norm(forces - expected) / np.linalg.norm(expected) < error


@pytest.mark.backend
@pytest.mark.parametrize("platform, error", PLATFORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_and_its_continuation(model, dataset, backend, platform, error, tmp_path) -> None:
    """Right energies in the file, the temperature that was asked for, and on after a stop."""
    copies, out = 64, tmp_path / "run.h5"

    def run(ns: float) -> "cgml.run_file.Run":
        simulation = cgml.Langevin(
            model, dataset, copies, seed=3, friction=5.0, backend=backend, platform=platform
        )
        return simulation.run(out, ns=ns, interval=0.2)

    assert run(0.001).finished
    whole = run(0.003)
    assert whole.positions.shape[:2] == (15, copies) and not whole.sick.any()
    for frame in (0, 14):  # frames are stored in single precision
        expected = model.energy_and_forces(whole.positions[frame])[0]
        assert np.allclose(whole.energy[frame], expected, rtol=10 * error, atol=0.02)
    beads = whole.positions.shape[2]
    kinetic = whole.kinetic_energy[5:].mean(0)  # of each copy; copies are independent
    z = kinetic.mean() - 1.5 * beads * cgml.units.thermal_energy(model.temperature)
    assert abs(z / (kinetic.std(ddof=1) / copies**0.5)) < 4


@pytest.mark.parametrize("platform, error", PLATFORMS)
def test_replica_exchange(model, dataset, platform, error, tmp_path) -> None:
    simulation = cgml.ReplicaExchange(
        model, dataset, [300.0, 360.0, 430.0], 16, seed=3, platform=platform
    )
    run = simulation.run(tmp_path / "run.h5", ns=0.004, interval=0.2)
    assert run.finished and not run.sick.any()
    assert 0.2 < simulation.statistics.acceptance().mean() <= 1
    low, high = (run.energy[run.rung == rung].mean() for rung in (0, 2))
    assert low < high


@pytest.mark.parametrize("platform, error", PLATFORMS)
def test_reference_run(platform, error, data, tmp_path) -> None:
    """All atoms, mapped as they go."""
    run = run_reference(
        data / "topology.pdb", tmp_path / "data.h5", ns=0.0004, interval=0.02, equilibrate=0.1,
        forcefield=["amber99sb.xml", "amber99_obc.xml"], platform=platform, progress=False,
    )  # fmt: skip
    assert run.finished and run.info["platform"] == platform
    assert np.isfinite(cgml.read_dataset(run.output).forces).all()


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_training(accelerator, dataset, tmp_path) -> None:
    """The same seeds: the first validation losses agree, and what is saved runs on the CPU."""
    train, valid = dataset.select(slice(0, 600)).split(0.8)

    def fit(where: str) -> "cgml.train.FitResult":
        pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train, width=16, depth=1))
        return cgml.fit(pmf, train, valid, epochs=2, batch_size=64, seed=0, accelerator=where)

    result, expected = fit(accelerator), fit("cpu")
    losses = [[epoch["valid_rmse"] for epoch in one.history] for one in (result, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    cgml.save_model(tmp_path / "m.pt", result)
    assert np.isfinite(cgml.load_model(tmp_path / "m.pt").energies(valid.positions[:4])).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["coupling", "matching"])
def test_flows(kind, device, dataset) -> None:
    """Densities of samples that were made there, found again there and on the CPU."""
    flow = cgml.FLOWS[kind](dataset, width=16).double()
    moved = cgml.FLOWS[kind](dataset, width=16).double().to(device)
    moved.load_state_dict(flow.state_dict())
    with torch.no_grad():
        positions, logs = moved.sample(16, seed=1)
        assert positions.device.type == device
        there = moved.log_prob(positions)
        here = flow.log_prob(positions.cpu())
    assert torch.allclose(logs, there, atol=1e-3)
    assert torch.allclose(there.cpu(), here, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@NEEDS_PLATFORM
def test_recorded_graphs_of_kernels(model, dataset, tmp_path) -> None:
    """Energies are those without; the engine itself compares them as it warms up."""
    simulation = cgml.Langevin(
        model, dataset, 64, platform="CUDA", backend="torchforce", cuda_graphs=True
    )
    run = simulation.run(tmp_path / "run.h5", ns=0.001, interval=0.2)
    expected = model.energy_and_forces(run.positions[-1])[0]
    assert np.allclose(run.energy[-1], expected, rtol=1e-3, atol=0.05)
