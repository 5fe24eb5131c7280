"""Replica exchange: propose a ladder, run many of them, use one rung or reweight all of them.

A PMF is the free energy at its training temperature, so only the rung there is physical; the
others carry copies over barriers. Their frames still count: they are of the same potential, whose
Boltzmann factor at the training temperature is known, so MBAR gives each its weight there.

Needs the folder that example 02 writes: ``dataset.h5`` and ``model.pt``.
"""

import argparse
import logging
from pathlib import Path

import numpy as np

import openmm_cgml as cgml
from openmm_cgml.analysis import (
    dihedral_angles,
    dihedral_distribution,
    distribution_of,
    free_energy,
    free_energy_profile,
    state_free_energy,
)
from openmm_cgml.mbar import mbar
from openmm_cgml.units import thermal_energy

PHI_PSI = [[0, 1, 2, 3], [1, 2, 3, 4]]


def main() -> None:
    """Run ladders from one frame, and compare two estimates of the free energy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="folder that example 02 wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for run and picture")
    parser.add_argument("--quick", action="store_true", help="a small version, not converged")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    model = cgml.load_model(options.input / "model.pt")
    dataset = cgml.read_dataset(options.input / "dataset.h5")
    settings = {"timestep": 0.004, "friction": 5.0}

    # 1. A short run at trial temperatures says how many rungs it takes, and where.
    temperatures = cgml.ladder(
        model.temperature,
        900,
        model=model,
        start=dataset,
        acceptance=0.4,
        ps=2 if options.quick else 10,
        **settings,
    )
    print("rungs:", " ".join(f"{t:.0f}" for t in temperatures), "K")

    # 2. All ladders start in one basin: what they know of the others they have found themselves.
    simulation = cgml.ReplicaExchange(
        model,
        dataset.positions[dataset.probabilities.argmax()],
        temperatures,
        copies=8 if options.quick else 64,
        exchange_interval=0.1,
        **settings,
    )
    ns = 0.008 if options.quick else 0.08
    run = simulation.run(options.output / "run.h5", ns=ns, interval=0.2)
    statistics = run.info["statistics"]
    rates = statistics["neighbour_acceptance"]
    print("accepted:", " ".join("-" if rate is None else f"{rate:.2f}" for rate in rates))
    print(f"round trips: {statistics['round_trips']} by {statistics['copies']} copies")
    print(f"independent samples at {temperatures[0]:.0f} K: {statistics['effective_samples']:.0f}")

    # 3. The first rung alone, and all rungs with their weights at its temperature.
    kept = run.after(0.25 * float(run.time[-1]))
    alone = distribution_of(kept.at_temperature(model.temperature), PHI_PSI)
    well = ~kept.sick.T.ravel()  # ladder after ladder, as the errors want it
    energies, rungs = kept.energy.T.ravel()[well], kept.rung.T.ravel()[well]
    everything = mbar(energies, rungs, run.temperatures, target=model.temperature)
    positions = kept.positions.swapaxes(0, 1).reshape(-1, *kept.positions.shape[2:])[well]
    together = dihedral_distribution(dihedral_angles(positions, PHI_PSI), everything.weights)
    print(f"frames: {(rungs == 0).sum()} at the first rung; with their weights all {len(rungs)} "
          f"are worth as many as {everything.effective_samples:.0f}")  # fmt: skip

    reference = distribution_of(
        Path(cgml.__file__).parent / "data" / "quickstart" / "reference.npz", []
    )
    kt = thermal_energy(model.temperature)
    estimates = {"all atoms": reference, "first rung": alone, "all rungs, MBAR": together}
    for name, one in estimates.items():
        state = state_free_energy(one, 0.0, 2.2, kt)  # phi > 0
        print(f"free energy of phi > 0, {name}: {state.value:.2f} ± {state.error:.2f} kJ/mol")
    picture(options.output / "free_energy.png", estimates, kt)
    print(options.output / "free_energy.png")


def picture(path: Path, estimates: dict, kt: float) -> None:
    """Draw maps of the two estimates, and all along phi with bands of two standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    names = list(estimates)
    for axis, name in zip(axes, names[1:], strict=False):
        one = estimates[name]
        edges, values = np.degrees(one.edges), free_energy(one.probability, kt)
        mesh = axis.pcolormesh(edges, edges, values.T, vmin=0, vmax=40)
        axis.set(title=name, xlabel="φ (degrees)", aspect="equal", facecolor="#efefef")
        axis.set_yticks(range(-180, 181, 90))
    axes[0].set_ylabel("ψ (degrees)")
    figure.colorbar(mesh, ax=axes[:2], label="free energy (kJ/mol)")
    styles = (("#222222", "-"), ("#0072b2", ".-"), ("#d55e00", "-"))
    for name, (colour, style) in zip(names, styles, strict=True):
        values, errors = free_energy_profile(estimates[name], 0, kt)
        phi = np.degrees(estimates[name].centres())
        axes[2].plot(phi, values, style, color=colour, label=name)
        band = values - 2 * errors, values + 2 * errors
        axes[2].fill_between(phi, *band, color=colour, alpha=0.25, lw=0)
    axes[2].set(xlabel="φ (degrees)", ylabel="free energy (kJ/mol)", ylim=(0, 45))
    axes[2].legend(frameon=False)
    for axis in axes:
        axis.set_xticks(range(-180, 181, 90))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
