"""Molecular dynamics of a periodic system through the neighbour search conserves its energy."""

import torch  # before openmm

import numpy as np
import openmm
import pytest

import openmm_cgml as cgml
from openmm_cgml.native import force as native
from openmm_cgml.pmf.core import energy_and_forces
from openmm_cgml.pmf.prior import HarmonicAngles, HarmonicBonds
from openmm_cgml.pmf.short_range import ShortRangeRepulsion, close_pairs
from openmm_cgml.topology import bonded_angles
from openmm_cgml.units import thermal_energy

pytestmark = pytest.mark.backend

CHAINS, LENGTH, MASS, TEMPERATURE = 36, 5, 50.0, 300.0  # enough beads for a search by columns
BEADS = CHAINS * LENGTH
CUTOFF = 0.75
BOX = np.array([[4.5, 0, 0], [0.5, 4.5, 0], [-0.4, 0.6, 4.6]])  # nm
KT = thermal_energy(TEMPERATURE)
TYPES = ["A", "B"]
STEP, TIME = 0.016, 0.96  # ps; stiff bonds swing in 0.45 ps


def chains() -> cgml.CGDataset:
    """One frame: a zigzag chain on each site of a lattice that fills the box."""
    sites = np.array(list(np.ndindex(6, 3, 2))) + 0.5
    feet = sites / (6, 3, 2) @ BOX
    k = np.arange(LENGTH)
    zigzag = np.stack([0.15 * (k % 2), 0.0 * k, 0.32 * (k - 2)], axis=1)
    noise = 0.02 * np.random.default_rng(0).standard_normal((BEADS, 3))
    positions = (feet[:, None] + zigzag).reshape(1, BEADS, 3) + noise
    topology = cgml.CGTopology(
        tuple(f"B{k % LENGTH}" for k in range(BEADS)), tuple(TYPES[k % 2] for k in range(BEADS)),
        ("MOL",) * BEADS, tuple(k // LENGTH for k in range(BEADS)), ("A",) * BEADS,
        tuple((k, k + 1) for k in range(BEADS - 1) if k % LENGTH != LENGTH - 1), (MASS,) * BEADS,
    )  # fmt: skip
    return cgml.CGDataset(positions, topology, temperature=TEMPERATURE, box=BOX[None])


def potential(dataset: cgml.CGDataset, name: str) -> cgml.PMF:
    """Bonds, angles, repulsion, and a network as strong as what thermal motion feels."""
    topology = dataset.topology
    network = cgml.PMFS[name](dataset, width=8, basis=10, cutoff=CUTOFF, dense=False, seed=0)
    positions = torch.tensor(dataset.positions, dtype=torch.float32)
    forces = energy_and_forces(network, positions, torch.tensor(BOX, dtype=torch.float32))[1]
    with torch.no_grad():
        network.output[2].weight.mul_(6 * KT / float(forces.square().mean().sqrt()))
    bonds, triples = topology.bonds, bonded_angles(topology.bonds)
    repulsion = ShortRangeRepulsion(
        topology.bead_types, TYPES, [[KT] * 2] * 2, [[0.35] * 2] * 2, close_pairs(topology, 3)
    )
    return cgml.SumPMF(
        HarmonicBonds(bonds, [5000.0] * len(bonds), [0.36] * len(bonds)),
        HarmonicAngles(triples, [30.0] * len(triples), [-0.7] * len(triples)),
        repulsion,
        network,
    )


@pytest.mark.parametrize(("name", "backend"), [("schnet", "native"), ("painn", "python")])
def test_energy_of_a_large_periodic_system_is_conserved(
    name, backend, tmp_path, monkeypatch
) -> None:
    """No drift, and fluctuations that fall with the square of the time step."""
    monkeypatch.setattr(native, "compile_package", lambda *_: None)  # a search cannot be compiled
    dataset = chains()
    cgml.save_model(tmp_path / "model.pt", potential(dataset, name), dataset)
    system = cgml.load_model(tmp_path / "model.pt").create_system(
        box_vectors=BOX.tolist(), backend=backend
    )
    integrator = openmm.VerletIntegrator(STEP / 2)
    platform = openmm.Platform.getPlatform("Reference")
    context = openmm.Context(system, integrator, platform)
    context.setPositions(dataset.positions[0])
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    integrator.step(100)  # what the lattice has stored becomes motion
    start = context.getState(getPositions=True, getVelocities=True)

    spreads = []
    for step in (STEP, STEP / 2):
        integrator.setStepSize(step)
        context.setState(start)
        totals = []
        for _ in range(round(TIME / STEP)):
            integrator.step(round(STEP / step))
            state = context.getState(getEnergy=True)
            totals.append(state.getPotentialEnergy()._value + state.getKineticEnergy()._value)
        reduced = np.array(totals) / KT / (3 * BEADS)  # per degree of freedom
        times = STEP * np.arange(len(reduced))
        drift = np.polyfit(times, reduced, 1)[0]
        spreads.append(reduced.std())
        assert abs(drift) < 3e-3  # kT per degree of freedom and ps
    assert spreads[0] / spreads[1] == pytest.approx(4, rel=0.2)
