"""Does a large periodic system conserve its energy, and what does a bead cost as systems grow?

Chains of 10 beads at 2 beads/nm^3 in a cubic box: bonds and angles, short-range repulsion, and a
SchNet within 0.9 nm (random weights, scaled to forces of thermal size), neighbours found by cells
in every step. Energy drift of velocity Verlet without thermostat, per degree of freedom; time of
an evaluation per bead from 500 to 5000 beads, one thread.
"""

import tempfile
from pathlib import Path

import torch  # before openmm

import numpy as np
import openmm

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from benchmarks.engine import Clock
from openmm_cgml.engine import keep_memory
from openmm_cgml.pmf.core import energy_and_forces
from openmm_cgml.pmf.prior import HarmonicAngles, HarmonicBonds
from openmm_cgml.pmf.short_range import ShortRangeRepulsion, close_pairs
from openmm_cgml.topology import bonded_angles
from openmm_cgml.units import thermal_energy

ISSUE = "networks issue: energy drift within bounds, cost per bead flat from 500 to 5000 beads"
SEED, LENGTH, DENSITY, MASS = 0, 10, 2.0, 50.0
TEMPERATURE, TIMESTEP = 300.0, 0.005
KT = thermal_energy(TEMPERATURE)
TYPES = ["A", "B"]
SIZES = (500, 1000, 2000, 5000)


def run(quick: bool) -> Outcome:
    """Integrate one system, time several."""
    beads = 200 if quick else 2000
    drift, spread = energy_drift(beads, ps=0.2 if quick else 10.0)
    targets = [
        Target(f"energy drift, {beads} beads", "kT a degree of freedom and ns", 0.02, drift,
               source="networks issue; bound ours: 1 % of the kinetic energy in 250 ps"),
        Target("standard deviation of the energy a degree of freedom", "kT", None, spread),
    ]  # fmt: skip
    clock = Clock(rounds=2, seconds=0.02) if quick else Clock(rounds=5, seconds=1.0)
    sizes = (100, 200) if quick else SIZES
    with tempfile.TemporaryDirectory() as folder:
        runs = {n: Evaluations(n, Path(folder)) for n in sizes}
        times = clock(runs)
    cost = {n: 1e6 * times[n].median / n for n in sizes}
    targets += [Target(f"an evaluation, {n} beads", "us a bead", None, cost[n]) for n in sizes]
    targets.append(
        Target(f"cost a bead, largest over smallest of {sizes[0]} to {sizes[-1]} beads", "", 1.3,
               max(cost.values()) / min(cost.values()), source=ISSUE)
    )  # fmt: skip
    return Outcome(targets, SEED)


def chains(beads: int) -> tuple[cgml.CGDataset, np.ndarray]:
    """Return one frame of straight chains on a lattice, and box vectors, nm."""
    count = beads // LENGTH
    edge = (beads / DENSITY) ** (1 / 3)
    side = int(np.ceil(count**0.5))
    step = edge / side
    rise = min(0.35, edge / LENGTH)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1)
    feet = grid.reshape(-1, 2)[:count] * step
    positions = np.zeros((count, LENGTH, 3))
    positions[:, :, :2] = feet[:, None]
    positions[:, :, 2] = rise * np.arange(LENGTH)
    positions[:, 1::2, 0] += 0.1  # zigzag
    n = count * LENGTH
    names = tuple(f"B{k % LENGTH}" for k in range(n))
    topology = cgml.CGTopology(
        names, tuple(TYPES[k % 2] for k in range(n)), ("MOL",) * n,
        tuple(k // LENGTH for k in range(n)), ("A",) * n,
        tuple((k, k + 1) for k in range(n - 1) if k % LENGTH != LENGTH - 1), (MASS,) * n,
    )  # fmt: skip
    box = edge * np.eye(3)
    dataset = cgml.CGDataset(
        positions.reshape(1, n, 3), topology, temperature=TEMPERATURE, box=box[None]
    )
    return dataset, box


def network(dataset: cgml.CGDataset, box: np.ndarray) -> cgml.PMF:
    """Return the whole potential."""
    topology = dataset.topology
    schnet = cgml.PMFS["schnet"](dataset, width=32, cutoff=0.9, dense=False, seed=SEED)
    positions = torch.as_tensor(dataset.positions, dtype=torch.float32)
    vectors = torch.as_tensor(box, dtype=torch.float32)
    forces = energy_and_forces(schnet, positions, vectors)[1]
    with torch.no_grad():  # as strong as what thermal motion feels
        schnet.output[2].weight.mul_(10 * KT / float(forces.square().mean().sqrt()))
    triples = bonded_angles(topology.bonds)
    return cgml.SumPMF(
        HarmonicBonds(
            topology.bonds, [5000.0] * len(topology.bonds), [0.36] * len(topology.bonds)
        ),
        HarmonicAngles(triples, [30.0] * len(triples), [-0.7] * len(triples)),
        ShortRangeRepulsion(
            topology.bead_types, TYPES, [[KT] * 2] * 2, [[0.35] * 2] * 2, close_pairs(topology, 3)
        ),
        schnet,
    )


class Evaluations:
    """Forces of a system again and again, in an OpenMM Context."""

    def __init__(self, beads: int, folder: Path) -> None:
        dataset, box = chains(beads)
        path = folder / f"{beads}.pt"
        cgml.save_model(path, network(dataset, box), dataset)
        system = cgml.load_model(path).create_system(box_vectors=box)
        system.setDefaultPeriodicBoxVectors(*box)
        self.integrator = openmm.VerletIntegrator(TIMESTEP)
        platform = openmm.Platform.getPlatform("Reference")
        self.context = openmm.Context(system, self.integrator, platform)
        keep_memory()  # as the engine does
        self.first = dataset.positions[0]
        self.restart()
        self.steps(5)  # TorchScript optimises in its first calls

    def restart(self) -> None:
        """Go back to the start."""
        self.context.setPositions(self.first)
        self.context.setVelocitiesToTemperature(TEMPERATURE, SEED + 1)

    def steps(self, count: int) -> None:
        """Integrate."""
        self.integrator.step(count)


def energy_drift(beads: int, ps: float) -> tuple[float, float]:
    """Return the drift, kT a degree of freedom and ns, and the energy's standard deviation."""
    with tempfile.TemporaryDirectory() as folder:
        system = Evaluations(beads, Path(folder))
    openmm.LocalEnergyMinimizer.minimize(system.context, maxIterations=50)
    system.context.setVelocitiesToTemperature(TEMPERATURE, SEED + 1)
    system.steps(200)  # half of the kinetic energy goes into the potential
    energies = []
    for _ in range(100):
        system.steps(max(1, round(ps / TIMESTEP / 100)))
        state = system.context.getState(getEnergy=True)
        total = state.getPotentialEnergy() + state.getKineticEnergy()
        energies.append(total.value_in_unit(openmm.unit.kilojoule_per_mole))
    per = np.array(energies) / KT / (3 * beads)
    slope = np.polyfit(np.linspace(0, ps / 1000, len(per)), per, 1)[0]
    return float(abs(slope)), float(per.std())


if __name__ == "__main__":
    main("large_system", __doc__, run)
