"""Training data from nothing but a PDB file: all-atom metadynamics straight into a dataset.

The run maps positions and unbiased forces to beads as it goes. Started again after a stop it goes
on where it was. The same in the shell:

    cgml reference molecule.pdb -o data.h5 --ns 5 --method metadynamics \
        --variable phi --variable psi

Then an all-atom script of your own, which writes a dataset through a reporter. The picture shows
where both went, and what is left of the bias when frames count by their weights.
"""

import argparse
import logging
from importlib import resources
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import openmm
from openmm import app

import openmm_cgml as cgml
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.units import thermal_energy

TEMPERATURE = 300.0


def main() -> None:
    """Make a biased dataset and look at its weights; then an unbiased one with OpenMM's tools."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the datasets")
    parser.add_argument("--ns", type=float, default=5.0, help="of the biased run")
    parser.add_argument("--quick", action="store_true", help="a small version, not converged")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    with resources.as_file(resources.files(cgml) / "data" / "quickstart") as data:
        biased = metadynamics(data / "topology.pdb", options)
        unbiased = own_script(data / "topology.pdb", options)
    draw(options.output / "data.png", biased, unbiased)


def metadynamics(pdb: Path, options: argparse.Namespace) -> cgml.CGDataset:
    """Bias along phi and psi, both functions of the beads; weights undo the bias."""
    run = cgml.run_reference(
        pdb,
        options.output / "metadynamics.h5",
        ns=0.02 if options.quick else options.ns,
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
    return dataset


def own_script(pdb: Path, options: argparse.Namespace) -> cgml.CGDataset:
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
        return cgml.read_dataset(path)
    with cgml.DatasetReporter(path, 50, "backbone", TEMPERATURE) as reporter:
        simulation.reporters.append(reporter)
        simulation.step(1000 if options.quick else 100_000)
    dataset = cgml.read_dataset(path)
    print(f"{path}: {len(dataset)} frames, force RMS {dataset.forces.std():.0f} kJ/mol/nm")
    return dataset


def draw(path: Path, biased: cgml.CGDataset, unbiased: cgml.CGDataset) -> None:
    """Draw the frames of both on (phi, psi), and free energies along phi with their errors."""
    blue, orange, bins = "#0072b2", "#d55e00", [np.linspace(-np.pi, np.pi, 46)]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
    phi = {}
    for axis, name, data, colour in (
        (axes[0], "metadynamics", biased, blue), (axes[1], "own script", unbiased, orange),
    ):  # fmt: skip
        torsions = dihedral_angles(data.positions, [[0, 1, 2, 3], [1, 2, 3, 4]])
        phi[name] = torsions[:, 0]
        axis.plot(*np.degrees(torsions).T, ".", ms=2, color=colour)
        axis.set(title=f"{name}, {len(data)} frames", aspect="equal", xlabel="φ (degrees)")
        axis.set(xlim=(-180, 180), ylim=(-180, 180), ylabel="ψ (degrees)")
        axis.set(xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
    for label, name, weights, colour, dashes in (
        ("metadynamics, as it is", "metadynamics", None, blue, ":"),
        ("metadynamics, weighted", "metadynamics", biased.weights, blue, "-"),
        ("own script, unbiased", "own script", None, orange, "-"),
    ):
        found = cgml.free_energy_surface(
            phi[name], temperature=TEMPERATURE, weights=weights, bins=bins
        )
        x, y, e = np.degrees(found.centres[0]), found.values, np.nan_to_num(found.errors)
        axes[2].plot(x, y, color=colour, ls=dashes, label=label)
        axes[2].fill_between(x, y - 2 * e, y + 2 * e, color=colour, alpha=0.2, lw=0)
    axes[2].set(xlabel="φ (degrees)", ylabel="free energy (kJ/mol)", xticks=range(-180, 181, 90))
    axes[2].set_ylim(-1, 35)
    axes[2].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
