"""Capped alanine by three roads: forces, a flow that teaches, and weights instead of dynamics.

All start from the package's frames of a metadynamics run, on five beads.

1. Force matching: a network learns the mapped forces, and runs in replica exchange.
2. Flow-matching: a normalizing flow learns the density of the frames, without their forces; its
   samples teach another network, which runs in replica exchange.
3. A Boltzmann generator: the samples of the flow, weighted by the network of the first road. No
   dynamics at all.

Each is compared with an all-atom run that nothing was trained on. Writes the models, the runs,
``summary.json`` and ``roads.png``; models and runs that are there already are not made again.

    python 15_alanine_three_roads.py --output roads
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import openmm_cgml as cgml
from openmm_cgml.analysis import Comparison, free_energy, free_energy_profile

DATA = Path(cgml.__file__).parent / "data" / "quickstart"
PHI_PSI = [[0, 1, 2, 3], [1, 2, 3, 4]]
COLOURS = ("#0072b2", "#d55e00", "#009e73")
DASHES = ("-", "--", (0, (4, 1, 1, 1)))


def main() -> None:
    """Go all three roads, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--quick", action="store_true", help="seconds, not converged")
    options = parser.parse_args()
    quick, folder = options.quick, options.output
    folder.mkdir(parents=True, exist_ok=True)

    trajectory = cgml.read_trajectory(DATA / "trajectory.npz", top=DATA / "topology.pdb")
    mapping = cgml.MAPPINGS["backbone"](trajectory.topology)
    dataset = cgml.map_trajectory(
        trajectory, mapping, temperature=300, constraints=DATA / "system.xml"
    )
    if quick:
        dataset = dataset.select(slice(None, None, 5))
    train, valid = dataset.split(0.9)

    # Road 1: forces.
    matched = folder / "force_matching.pt"
    if not matched.exists():
        pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train))
        cgml.save_model(matched, cgml.fit(pmf, train, valid, epochs=6 if quick else 50))

    # Road 2: the same frames without forces, by way of a density.
    flow_file, taught = folder / "density.flow", folder / "flow_matching.pt"
    if not flow_file.exists():
        silent = [replace(part, forces=None) for part in (train, valid)]
        flow = cgml.FLOWS["coupling"](silent[0])
        cgml.save_flow(flow_file, cgml.fit_flow(flow, *silent, epochs=2 if quick else 20))
    flow = cgml.load_flow(flow_file)
    if not taught.exists():
        student = cgml.distill(
            flow, "cgnet", count=2000 if quick else 60_000, epochs=2 if quick else 15
        )
        cgml.save_model(taught, student.result)

    # Road 3: the flow's samples with weights exp(-U / kT) / q.
    proposal = cgml.propose(flow, 5000 if quick else 200_000, held_out=valid)
    weighted = proposal.weigh(cgml.load_model(matched))
    print(weighted.report.text())

    samples = {
        "force matching": simulated(matched, dataset, 0.004, options),
        "flow-matching": simulated(taught, dataset, 0.002, options),  # a flow's edges are steep
        "Boltzmann generator": weighted.dataset(),
    }
    comparisons = {
        name: cgml.compare(sample, DATA / "reference.npz", PHI_PSI, temperature=300)
        for name, sample in samples.items()
    }
    record = {name: one.record() for name, one in comparisons.items()}
    record["effective_samples"] = weighted.report.effective
    for name, one in comparisons.items():
        gap, error = one.delta_f
        print(f"{name:<20} JS* {one.js_excess:.4f} ± {js_error(one):.4f} nats, "
              f"free energy of phi > 0 off by {gap:+.2f} ± {error:.2f} kJ/mol")  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(folder / "roads.png", comparisons)
    print(folder / "roads.png")


def simulated(
    model: Path, dataset: cgml.CGDataset, timestep: float, options: argparse.Namespace
) -> cgml.Run:
    """Run ladders from one frame, so that populations are the model's own."""
    path = model.with_suffix(".h5")
    if not path.exists():
        simulation = cgml.ReplicaExchange(
            model, dataset.positions[dataset.probabilities.argmax()], cgml.ladder(300, 1000, 4),
            copies=8 if options.quick else 64, exchange_interval=0.1, timestep=timestep,
            friction=5.0,
        )  # fmt: skip
        simulation.run(path, ns=0.006 if options.quick else 0.1,
                       interval=0.1 if options.quick else 0.2)  # fmt: skip
    run = cgml.read_run(path).at_temperature(300)
    return run.after(0.2 * float(run.time[-1]))


def js_error(one: Comparison) -> float:
    """Return the standard error of JS*: of the model's sampling, and of the reference's."""
    return float(np.hypot(one.js_excess_error, one.js_reference_error))


def draw(path: Path, comparisons: dict[str, Comparison]) -> None:
    """Draw the maps of reference and roads, and below them profiles and JS*."""
    figure, axes = plt.subplots(2, 4, figsize=(11.5, 5.8), layout="constrained")
    reference = next(iter(comparisons.values())).reference
    kt = next(iter(comparisons.values())).kt
    edges, centres = np.degrees(reference.edges), np.degrees(reference.centres())
    maps = {"all atoms": reference} | {name: one.model for name, one in comparisons.items()}
    for axis, (name, sample) in zip(axes[0], maps.items(), strict=True):
        values = free_energy(sample.probability, kt)
        image = axis.pcolormesh(edges, edges, values.T, vmin=0, vmax=30, cmap="viridis")
        axis.set(title=name, facecolor="#efefef", xlabel="φ (degrees)", aspect="equal")
        axis.set(xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
    axes[0, 0].set_ylabel("ψ (degrees)")
    figure.colorbar(image, ax=axes[0], label="free energy (kJ/mol)", pad=0.01)

    lines = [(reference, "all atoms", "#222222", "-", 2.5)]
    lines += [
        (one.model, name, colour, dashes, 1.4)
        for (name, one), colour, dashes in zip(comparisons.items(), COLOURS, DASHES, strict=True)
    ]
    for which, axis in enumerate(axes[1, :2]):
        for sample, name, colour, dashes, width in lines:
            values, error = free_energy_profile(sample, which, kt)
            axis.plot(centres, values, color=colour, ls=dashes, lw=width, label=name)
            axis.fill_between(
                centres, values - 2 * error, values + 2 * error, color=colour, alpha=0.25, lw=0
            )
        axis.set(xlabel=f"{'φψ'[which]} (degrees)", xticks=range(-180, 181, 90), ylim=(-1, 32))
    axes[1, 0].set_ylabel("free energy (kJ/mol)")

    bars = axes[1, 2]
    for place, ((_, one), colour) in enumerate(zip(comparisons.items(), COLOURS, strict=True)):
        bars.errorbar(place, one.js_excess, 2 * js_error(one), fmt="o", capsize=4, color=colour)
    bars.axhline(0, color="#999999", lw=0.8)
    bars.set(ylabel="JS* (nats)", xlabel="road", xlim=(-0.6, 2.6))
    bars.set_xticks(range(3), ["forces", "flow", "weights"])
    axes[1, 3].axis("off")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    axes[1, 3].legend(handles, labels, frameon=False, loc="center left")
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
