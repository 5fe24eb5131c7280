"""A PMF without forces: a flow learns the density of the frames and teaches the PMF.

Takes a dataset from `cgml map` or `cgml reference`, or the folder that example 02 writes; its
forces are not looked at, its weights are. Writes the flow, the model and a short run, and says how
far the three are from each other.

    python 09_flow_matching.py --input my_dataset.h5 --output flow
"""

import argparse
from dataclasses import replace
from pathlib import Path

import openmm_cgml as cgml


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
        cgml.FLOWS["coupling"](train), train, valid, epochs=2 if options.quick else 30
    )
    cgml.save_flow(options.output / "molecule.flow", result)
    print(f"log-likelihood of validation frames: {result.metrics['log_likelihood']:.2f} nats")

    student = cgml.distill(
        result.pmf.flow,
        "cgnet",
        count=2000 if options.quick else 100_000,
        epochs=2 if options.quick else 20,
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


if __name__ == "__main__":
    main()
