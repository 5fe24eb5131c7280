"""Which network makes the best PMF? One prior, one training; scored by what it samples.

Capped alanine on five beads, the frames of `cgml quickstart` (bias factor 6, unbiased forces of
the rotation map); three seeds each. Force error against the noise floor, replica exchange of each
model (256 copies, all from one frame) against the independent reference.

Chignolin on C-alpha beads, the 300 K rung: training on 900 correlated frames that were started
folded, so nothing is claimed of folding; RMSD, radius of gyration and contacts of a run at 300 K
beside those of the data, and whether the chain stays one. It needs ``../shared/data`` or
CGML_DATA.
"""

import json
import os
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import torch  # before openmm

import mdtraj
import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from openmm_cgml.mapping.constraints import ConstraintFinder
from openmm_cgml.mapping.core import bonded_neighbours

ISSUE = "networks issue: best of the networks"
DATA = Path(os.environ.get("CGML_DATA", Path(__file__).parents[2] / "shared" / "data"))
PACKAGE = resources.files(cgml) / "data" / "quickstart"
#: Network -> settings, epochs.
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "cgnet": ({}, 60),
    "schnet": ({"width": 64}, 40),
    "painn": ({"width": 32}, 30),
}
TERMS = ("bonds", "angles", "torsions", "repulsion")
SEEDS = (0, 1, 2)
UNITS = {
    "js": "nats", "delta_f_error": "kJ/mol", "model_error": "kJ/mol/nm", "force_rmse": "kJ/mol/nm",
    "train_cpu_seconds": "s", "steps_per_second": "1/s",
}  # fmt: skip


def run(quick: bool) -> Outcome:
    """Train and sample."""
    torch.set_num_threads(1)
    details: dict[str, Any] = {}
    targets = []
    with resources.as_file(PACKAGE) as files:
        setup = json.loads((files / "quickstart.json").read_text())
        dataset = peptide(files, setup, 3000 if quick else None)
        for name, (settings, epochs) in NETWORKS.items():
            scores = [
                trained(dataset, name, settings, seed, 2 if quick else epochs, files, setup, quick)
                for seed in (SEEDS[:1] if quick else SEEDS)
            ]
            details[name] = {key: [s[key] for s in scores] for key in scores[0]}
            targets += [
                Target(f"{name}: {key}", unit, None, *_mean(details[name][key]))
                for key, unit in UNITS.items()
            ]
    best = min(float(np.mean(details[name]["js"])) for name in NETWORKS)
    targets.insert(0, Target("JS* of the best network", "nats", 0.004, best, source=ISSUE))
    if (DATA / "chignolin").is_dir():
        details["protein"] = protein(quick)
        for key, value in details["protein"]["targets"].items():
            targets.append(Target(f"protein: {key}", value[1], None, value[0]))
    return Outcome(targets, SEEDS[0], details)


def peptide(files: Path, setup: dict[str, Any], most: int | None) -> cgml.CGDataset:
    """Map the quickstart's frames."""
    trajectory = cgml.read_trajectory(files / setup["trajectory"], top=files / setup["topology"])
    mapping = cgml.MAPPINGS[setup["mapping"]](trajectory.topology)
    dataset = cgml.map_trajectory(
        trajectory, mapping, temperature=setup["temperature_K"],
        constraints=files / setup["system"], bias=setup["bias"],
    )  # fmt: skip
    return dataset if most is None else dataset.subsample(count=most)


def trained(
    dataset: cgml.CGDataset,
    name: str,
    settings: dict[str, Any],
    seed: int,
    epochs: int,
    files: Path,
    setup: dict[str, Any],
    quick: bool,
) -> dict[str, float]:
    """Train a network, sample it, and compare."""
    train, valid = dataset.split(0.9)
    network = cgml.PMFS[name](train, seed=seed, **settings)
    pmf = cgml.SumPMF(cgml.fit_prior(train, TERMS), network)
    clock = time.process_time()
    result = cgml.fit(pmf, train, valid, epochs=epochs, seed=seed, progress=False)
    seconds = time.process_time() - clock
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        cgml.save_model(path, result)
        simulation = cgml.ReplicaExchange(
            path, train.positions[0].astype(float), cgml.ladder(300, 1000, 4),
            copies=16 if quick else 64, exchange_interval=0.1, timestep=0.004, friction=5.0,
            seed=seed, backend="python" if quick else None,
        )  # fmt: skip
        ps, discard = (8.0, 2.0) if quick else (120.0, 20.0)
        clock = time.process_time()
        found = simulation.run(Path(folder) / "run.h5", ns=ps / 1000, interval=0.2, progress=False)
        sampling = time.process_time() - clock
        comparison = cgml.compare(
            found.after(discard), files / setup["reference"], setup["dihedrals"],
            temperature=300, state=tuple(setup["state"]),
        )  # fmt: skip
    copies = 4 * (16 if quick else 64)
    return {
        "js": comparison.js_excess,
        "js_error": comparison.js_excess_error,
        "delta_f_error": comparison.delta_f[0],
        "delta_f_uncertainty": comparison.delta_f[1],
        "force_rmse": result.noise.residual,
        "noise_floor": result.noise.floor,
        "model_error": result.noise.model_error,
        "parameters": float(sum(p.numel() for p in network.parameters())),
        "train_cpu_seconds": seconds,
        "steps_per_second": copies * ps / 0.004 / sampling,
    }


def protein(quick: bool) -> dict[str, Any]:
    """Train on the 300 K rung of the protein and run it there."""
    with np.load(DATA / "chignolin" / "tremd.npz") as z:
        positions = z["positions"][:, 0].astype(np.float64)
        forces = z["forces"][:, 0].astype(np.float64)
    topology = cgml.read_topology(DATA / "chignolin" / "topology.pdb")
    finder = ConstraintFinder(bonded_neighbours(topology))
    finder.add(positions)
    trajectory = cgml.read_trajectory(positions, top=topology, forces=forces)
    mapping = cgml.MAPPINGS["calpha"](topology)
    dataset = cgml.map_trajectory(
        trajectory, mapping, temperature=300, constraints=finder.constraints()
    )
    train, valid = dataset.split(0.9)
    prior = cgml.fit_prior(train, ("bonds", "angles", "torsions", "repulsion"))
    network = cgml.PMFS["cgnet"](train, width=64, depth=3, seed=0)
    result = cgml.fit(
        cgml.SumPMF(prior, network), train, valid, epochs=2 if quick else 60, seed=0,
        progress=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        cgml.save_model(path, result)
        simulation = cgml.ReplicaExchange(
            path, train, cgml.ladder(300, 450, 4), copies=4 if quick else 32,
            exchange_interval=0.2, timestep=0.004, friction=1.0, seed=0,
            backend="python" if quick else None,
        )  # fmt: skip
        ps = 4.0 if quick else 400.0
        found = simulation.run(Path(folder) / "run.h5", ns=ps / 1000, interval=1.0, progress=False)
        frames = found.after(ps / 4).at_temperature(300)
        model = np.asarray(frames.positions, dtype=np.float64).reshape(
            -1, len(dataset.topology), 3
        )
    data = np.asarray(dataset.positions, dtype=np.float64)
    targets: dict[str, tuple[float, str]] = {}
    record: dict[str, Any] = {}
    for label, values, unit in observables(data, model):
        targets[f"{label}, data, mean"] = (float(values[0].mean()), unit)
        targets[f"{label}, model, mean"] = (float(values[1].mean()), unit)
        edges = np.histogram_bin_edges(np.concatenate(values), bins=40)
        record[label] = {
            "edges": edges.tolist(),
            "data": np.histogram(values[0], edges, density=True)[0].tolist(),
            "model": np.histogram(values[1], edges, density=True)[0].tolist(),
        }
    contacts = [(_pairs(x) < 0.7).mean(0) for x in (data, model)]
    record["contacts"] = {"data": contacts[0].tolist(), "model": contacts[1].tolist()}
    targets["contact map, RMS difference"] = (
        float(np.sqrt(((contacts[0] - contacts[1]) ** 2).mean())), ""
    )  # fmt: skip
    steps = np.linalg.norm(np.diff(model, axis=1), axis=-1)
    targets["longest bond of the model"] = (float(steps.max()), "nm")
    targets["longest bond of the data"] = (
        float(np.linalg.norm(np.diff(data, axis=1), axis=-1).max()), "nm"
    )  # fmt: skip
    return {"targets": targets, "distributions": record}


def observables(data: np.ndarray, model: np.ndarray) -> list[tuple[str, list[np.ndarray], str]]:
    """Return RMSD from the first frame of the data, and radius of gyration, of both."""
    top = mdtraj.Topology()
    residue = top.add_residue("GLY", top.add_chain())
    for _ in range(data.shape[1]):
        top.add_atom("CA", mdtraj.element.carbon, residue)
    start = mdtraj.Trajectory(data[:1], top)
    rmsd = [mdtraj.rmsd(mdtraj.Trajectory(x, top), start).astype(float) for x in (data, model)]
    size = [np.sqrt(((x - x.mean(1, keepdims=True)) ** 2).sum(-1).mean(-1)) for x in (data, model)]
    return [("RMSD", rmsd, "nm"), ("radius of gyration", size, "nm")]


def _pairs(positions: np.ndarray) -> np.ndarray:
    """Return distances of beads three or more apart."""
    first, second = np.triu_indices(positions.shape[1], 3)
    return np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)


def _mean(values: Any) -> tuple[float, float | None]:
    values = np.asarray(values, dtype=float)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return float(values.mean()), None if error is None else float(error)


if __name__ == "__main__":
    main("networks", __doc__, run)
