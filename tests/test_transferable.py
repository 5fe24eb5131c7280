"""One model of bead types, trained on two molecules, runs both and a third from one file."""

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.pmf.core import energy_and_forces
from openmm_cgml.units import thermal_energy

SPRING, LENGTH = 2000.0, 0.35


def molecule(types: str) -> cgml.CGTopology:
    n = len(types)
    names = tuple(f"B{k}" for k in range(n))
    bonds = tuple((k, k + 1) for k in range(n - 1))
    return cgml.CGTopology(
        names, tuple(types), ("M",) * n, tuple(range(n)), ("A",) * n, bonds, (50.0,) * n
    )


def frames(types: str, count: int, seed: int) -> cgml.CGDataset:
    """Chains of springs with beads on a helix; the forces are those of the springs."""
    rng = np.random.default_rng(seed)
    turn = 1.2 * np.arange(len(types))
    helix = np.stack([0.2 * np.cos(turn), 0.2 * np.sin(turn), 0.25 * np.arange(len(types))], -1)
    x = helix + 0.02 * rng.standard_normal((count, len(types), 3))
    steps = np.diff(x, axis=1)
    lengths = np.linalg.norm(steps, axis=-1, keepdims=True)
    pull = SPRING * (lengths - LENGTH) * steps / lengths
    forces = np.zeros_like(x)
    forces[:, :-1] += pull
    forces[:, 1:] -= pull
    return cgml.CGDataset(x, molecule(types), temperature=300.0, forces=forces)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    train, valid = (
        cgml.DatasetCollection({"one": frames("ABAB", n, s), "two": frames("BAABA", n, s + 9)})
        for n, s in ((600, 0), (100, 50))
    )
    prior = cgml.fit_prior_table(train, ("repulsion",))
    network = cgml.PMFS["schnet"](train, width=16, basis=12, seed=1)
    pmf = cgml.SumPMF(prior.to_pmf(train["one"].topology), network)
    result = cgml.fit(
        pmf, train, valid, epochs=15, batch_size=50, learning_rate=3e-3, progress=False
    )
    path = tmp_path_factory.mktemp("transferable") / "model.pt"
    cgml.save_model(path, result)
    return path


@pytest.mark.parametrize(("name", "types"), [("one", "ABAB"), ("two", "BAABA")])
def test_both_molecules_run_from_one_file(path, name, types) -> None:
    model = cgml.load_model(path, name)
    assert model.topology == molecule(types)
    data = frames(types, 40, seed=77)
    energies, forces = model.energy_and_forces(data.positions)
    pmf = model.rebuild()
    expected = energy_and_forces(pmf, _tensor(data.positions))
    assert np.allclose(energies, expected[0], rtol=1e-4, atol=1e-3)
    assert np.allclose(forces, expected[1], rtol=1e-3, atol=0.5)
    # It has learned something of the springs: better than no model at all.
    assert np.square(forces - data.forces).mean() < 0.5 * np.square(data.forces).mean()
    simulation = cgml.Langevin(model, data, copies=3, seed=0)
    simulation.engine.step(100)
    assert np.isfinite(simulation.engine.positions).all()
    speed = simulation.engine.velocities
    kinetic = 0.5 * 50 * np.square(speed).sum() / (3 * speed.size / 3)
    assert 0.2 < kinetic / (0.5 * thermal_energy(300)) < 3


def test_a_molecule_it_was_not_trained_on(path) -> None:
    model = cgml.load_model(path, molecule("ABABA"))
    assert len(model.topology) == 5 and "ranges" not in model.card["training"]
    energies, _ = model.energy_and_forces(frames("ABABA", 5, seed=3).positions)
    assert np.isfinite(energies).all()


def test_what_cannot_be_served(path, dataset, tmp_path) -> None:
    with pytest.raises(cgml.InputError, match="has no molecule 'three'; it has one, two"):
        cgml.load_model(path, "three")
    with pytest.raises(cgml.InputError, match="of types A-C|bead type C"):
        cgml.load_model(path, molecule("ABAC"))
    single = tmp_path / "single.pt"
    cgml.save_model(single, cgml.PMFS["cgnet"](dataset, width=4, depth=1), dataset)
    with pytest.raises(cgml.InputError, match="trained on one only"):
        cgml.load_model(single, "one")
    with pytest.raises(cgml.InputError, match="CGNet knows one molecule only"):
        cgml.load_model(single, molecule("AB"))


def _tensor(values: np.ndarray):
    import torch

    return torch.as_tensor(values, dtype=torch.float32)
