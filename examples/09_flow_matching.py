"""A PMF without forces: a flow learns the density of the frames and teaches the PMF.

Takes a dataset from `cgml map` or `cgml reference`, or the folder that example 02 writes; its
forces are not looked at, its weights are. Writes the flow, the model and a short run, and says how
far the three are from each other; the picture shows it along two torsions.

    python 09_flow_matching.py --input my_dataset.h5 --output flow
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import openmm_cgml as cgml
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.topology import bonded_torsions


def main() -> None:
    """Train, distill, run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="dataset, or its folder")
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--quick", action="store_true", help="seconds, not converged")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.input / "dataset.h5" if options.input.is_dir() else options.input
    train, valid = replace(cgml.read_dataset(path), forces=None).split(0.9)

    result = cgml.fit_flow(
        cgml.FLOWS["coupling"](train), train, valid, epochs=2 if options.quick else 20
    )
    cgml.save_flow(options.output / "molecule.flow", result)
    print(f"log-likelihood of validation frames: {result.metrics['log_likelihood']:.2f} nats")

    student = cgml.distill(
        result.pmf.flow,
        "cgnet",
        count=2000 if options.quick else 60_000,
        epochs=2 if options.quick else 15,
    )
    cgml.save_model(options.output / "student.pt", student.result)
    print(student.text())

    # 2 fs: the edges of a flow's density are steep.
    simulation = cgml.Langevin(
        options.output / "student.pt", train, copies=16 if options.quick else 128, timestep=0.002
    )
    run = simulation.run(
        options.output / "run.h5", steps=500 if options.quick else 50_000, interval=0.2
    )
    print(f"outside the training data: {run.extrapolating.mean():.1%} of the run's frames")
    samples = result.pmf.flow.sample_dataset(2000 if options.quick else 50_000)
    kept = run.after(0.1 * float(run.time[-1])).positions.swapaxes(0, 1)  # copy after copy
    sources = {
        "frames": (train.positions, train.weights),
        "flow": (samples.positions, samples.weights),
        "PMF that it taught": (kept.reshape(-1, *kept.shape[2:]), None),
    }
    draw(options.output / "flow.png", sources, train)


def draw(path: Path, sources: dict, train: cgml.CGDataset) -> None:
    """Draw free energies along the first torsions, with bands of two standard errors."""
    torsions = bonded_torsions(train.topology.bonds)[:2]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    styles = (("#222222", "-"), ("#0072b2", "--"), ("#d55e00", "-"))
    for (name, (positions, weights)), (colour, dashes) in zip(
        sources.items(), styles, strict=True
    ):
        angles = dihedral_angles(positions, torsions)
        for axis, values in zip(axes, angles.T, strict=True):
            found = cgml.free_energy_surface(
                values, temperature=train.temperature, weights=weights,
                bins=[np.linspace(-np.pi, np.pi, 61)],
            )  # fmt: skip
            x, y, e = np.degrees(found.centres[0]), found.values, np.nan_to_num(found.errors)
            axis.plot(x, y, color=colour, ls=dashes, label=name)
            axis.fill_between(x, y - 2 * e, y + 2 * e, color=colour, alpha=0.25, lw=0)
    for axis, beads in zip(axes, torsions, strict=True):
        names = " ".join(train.topology.bead_names[bead] for bead in beads)
        axis.set(xlabel=f"torsion {names} (degrees)", xticks=range(-180, 181, 90), ylim=(-1, 32))
    axes[0].set_ylabel("free energy (kJ/mol)")
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
