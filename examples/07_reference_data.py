"""Training data from nothing but a PDB file: all-atom metadynamics straight into a dataset.

The run maps positions and unbiased forces to beads as it goes. Started again after a stop it goes
on where it was. The same in the shell:

    cgml reference molecule.pdb -o data.h5 --ns 5 --method metadynamics \
        --variable phi --variable psi

Then an all-atom script of your own, which writes a dataset through a reporter.
"""

import argparse
import logging
from importlib import resources
from pathlib import Path

import numpy as np
import openmm
from openmm import app

import openmm_cgml as cgml
from openmm_cgml.units import thermal_energy

TEMPERATURE = 300.0


def main() -> None:
    """Make a biased dataset and look at its weights; then an unbiased one with OpenMM's tools."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the datasets")
    parser.add_argument("--quick", action="store_true", help="a small version, not converged")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    with resources.as_file(resources.files(cgml) / "data" / "quickstart") as data:
        metadynamics(data / "topology.pdb", options)
        own_script(data / "topology.pdb", options)


def metadynamics(pdb: Path, options: argparse.Namespace) -> None:
    """Bias along phi and psi, both functions of the beads; weights undo the bias."""
    run = cgml.run_reference(
        pdb,
        options.output / "metadynamics.h5",
        ns=0.02 if options.quick else 5,
        method="metadynamics",
        variables=("phi", "psi"),
        bias_factor=6,
        temperature=TEMPERATURE,
        mapping="backbone",
        equilibrate=1 if options.quick else 50,
        calibrate=50 if options.quick else 1000,
    )
    dataset = run.dataset()
    print(f"{run.output}: {run.frames} frames, {run.ns_per_day:.0f} ns/day")
    print(f"bias: {dataset.bias}")
    print(f"weights: worth {run.effective_samples:.0f} frames of equal weight")
    positive = (dataset.variables[:, 0] > 0) & (dataset.variables[:, 0] < 2.2)
    share = dataset.probabilities[positive].sum()
    print(f"phi > 0: {positive.mean():.1%} of the frames, {share:.2%} of the weight")
    if 0 < share < 1:
        odds = np.log(share / (1 - share))
        print(f"free energy of phi > 0: {-thermal_energy(TEMPERATURE) * odds:.1f} kJ/mol")


def own_script(pdb: Path, options: argparse.Namespace) -> None:
    """Attach a reporter to a Simulation that was set up elsewhere."""
    structure = app.PDBFile(str(pdb))
    forcefield = app.ForceField("amber99sb.xml", "amber99_obc.xml")
    system = forcefield.createSystem(structure.topology, constraints=app.HBonds)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, 0.002)
    simulation = app.Simulation(structure.topology, system, integrator)
    simulation.context.setPositions(structure.positions)
    simulation.minimizeEnergy()
    simulation.step(500)

    path = options.output / "own.h5"
    if path.exists():
        print(f"{path} is there already")
        return
    with cgml.DatasetReporter(path, 50, "backbone", TEMPERATURE) as reporter:
        simulation.reporters.append(reporter)
        simulation.step(1000 if options.quick else 100_000)
    dataset = cgml.read_dataset(path)
    print(f"{path}: {len(dataset)} frames, force RMS {dataset.forces.std():.0f} kJ/mol/nm")


if __name__ == "__main__":
    main()
