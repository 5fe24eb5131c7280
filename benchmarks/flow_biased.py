"""What does a flow learn from a weakly biased run, and from an unbiased one as long?

Capped alanine on five beads. The first 10 ns of metadynamics with bias factor 1.5, reweighted by
its weights; and 10 ns without bias, which never leave the basin they began in. The same flow, the
same training, three seeds; 100 000 samples of each against the independent reference. With
CGML_FIGURES the folder of a picture. Needs CGML_DATA or ``../shared/data``; without, the package's
own biased frames stand for both (``--quick`` only).
"""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from benchmarks.data_efficiency import DATA, PACKAGE, compared, figures
from openmm_cgml.analysis import free_energy
from openmm_cgml.units import thermal_energy

SEEDS = (0, 1, 2)
#: Name -> file and number of frames of 10 ns.
RUNS = {"biased, reweighted": ("wtmetad_gamma1.5.npz", 10_000), "unbiased": ("unbiased.npz", 3333)}


def run(quick: bool) -> Outcome:
    """Train and score."""
    torch.set_num_threads(1)
    details: dict[str, Any] = {}
    maps: dict[str, np.ndarray] = {}
    targets = []
    with resources.as_file(PACKAGE) as files:
        setup = json.loads((files / "quickstart.json").read_text())
        for name, (file, count) in RUNS.items():
            dataset = mapped(file, 400 if quick else count, files, setup)
            found = []
            for seed in SEEDS[:1] if quick else SEEDS:
                train, valid = dataset.split(0.9)
                flow = cgml.FLOWS["coupling"](train, seed=seed)
                cgml.fit_flow(
                    flow, train, valid, epochs=1 if quick else 20, seed=seed, progress=False
                )
                drawn = flow.sample(2000 if quick else 100_000, seed=seed)[0].numpy()
                samples = cgml.CGDataset(drawn, dataset.topology, dataset.temperature)
                comparison = compared(samples, files, setup)
                found.append(figures(comparison) | {
                    "population": comparison.state_model.population,
                    "population_reference": comparison.state_reference.population,
                })  # fmt: skip
                maps[name] = comparison.model.probability
                maps["reference"] = comparison.reference.probability
            details[name] = found
            weights = np.ones(len(dataset)) if dataset.weights is None else dataset.weights
            details[f"{name}: effective frames"] = float(weights.sum() ** 2 / (weights**2).sum())
            for label, key, unit in (
                ("JS*", "js", "nats"), ("population of positive phi", "population", "")
            ):  # fmt: skip
                values = np.array([one[key] for one in found])
                error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
                targets.append(Target(f"{name}: {label}", unit, None, float(values.mean()), error))
        targets.append(Target("reference: population of positive phi", "", None,
                              found[0]["population_reference"]))  # fmt: skip
        if os.environ.get("CGML_FIGURES"):
            draw(Path(os.environ["CGML_FIGURES"]) / "flow_biased.png", maps)
    return Outcome(targets, SEEDS[0], details)


def mapped(file: str, count: int, files: Path, setup: dict[str, Any]) -> cgml.CGDataset:
    """Return the first frames of a run on five beads, with its weights."""
    source = DATA / "ala2" / file
    with np.load(source if source.is_file() else files / setup["trajectory"]) as stored:
        positions = stored["positions"][:count].astype(float)
        biased = "weights" in stored.files and source.is_file()
        weights = stored["weights"][:count].astype(float) if biased else None
    topology = cgml.read_topology(files / setup["topology"])
    return cgml.map_trajectory(
        cgml.read_trajectory(positions, top=topology, weights=weights),
        cgml.MAPPINGS[setup["mapping"]](topology),
        temperature=setup["temperature_K"],
    )


def draw(path: Path, maps: dict[str, np.ndarray]) -> None:
    """Draw the three free energies side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained", sharey=True)
    titles = {
        "reference": "reference", "biased, reweighted": "flow of 10 ns with bias, reweighted",
        "unbiased": "flow of 10 ns without bias",
    }  # fmt: skip
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        values = free_energy(maps[name], float(thermal_energy(300.0)))
        edges = np.linspace(-180, 180, len(values) + 1)
        image = axis.pcolormesh(edges, edges, values.T, vmin=0, vmax=25, cmap="viridis")
        axis.set(xlabel="phi (degrees)", title=title, xticks=[-180, -90, 0, 90, 180])
        axis.set_aspect("equal")
    axes[0].set(ylabel="psi (degrees)", yticks=[-180, -90, 0, 90, 180])
    figure.colorbar(image, ax=axes, label="free energy (kJ/mol)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main("flow_biased", __doc__, run)
