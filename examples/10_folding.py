"""A protein by flow-matching: from its trajectory to folding, without forces.

Takes C-alpha beads of an equilibrium trajectory (DCD, XTC, ..., with its topology), or a dataset
from `cgml map` or `cgml reference`, whose weights count. A flow learns their density and teaches a
PMF, which then runs: copies at one temperature, and replica exchange. Flow, PMF and data are
compared: RMSD from the native structure, its contacts and the order in which they form, the
slowest coordinates, principal components. Where the PMF goes and the flow does not, it has learned
nothing: frames of a short run go back to the flow for their forces, and the PMF learns again
(``--rounds``). Writes ``summary.json`` and ``folding.png`` besides the
models and runs; what is there already is not done again.

    python 10_folding.py --trajectory protein.xtc --topology protein.pdb --native native.pdb \
        --output folding
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import mdtraj
import numpy as np

import openmm_cgml as cgml
from openmm_cgml.analysis import js_divergence
from openmm_cgml.distillation import with_prior

#: Fraction of native contacts of what counts as folded.
FOLDED = 0.6
#: Of dynamics: the edges of a flow's density are steep.
SETTINGS = {"timestep": 0.002, "friction": 5.0}
COLOURS = {"data": "#222222", "flow": "#0072b2", "PMF": "#d55e00"}


def main() -> None:
    """Train, teach, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, help="dataset of C-alpha beads")
    source.add_argument("--trajectory", type=Path, help="all-atom trajectory, at equilibrium")
    parser.add_argument("--topology", type=Path, help="of the trajectory, e.g. a PDB")
    parser.add_argument("--temperature", type=float, default=300.0, help="of it, K")
    parser.add_argument("--native", type=Path, required=True, help="PDB of the folded protein")
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--epochs", type=int, default=30, help="of flow and PMF")
    parser.add_argument("--samples", type=int, default=50_000, help="that teach the PMF")
    parser.add_argument("--rounds", type=int, default=3, help="of teaching; 1: the flow's samples")
    parser.add_argument("--ps", type=float, default=300.0, help="of each copy")
    parser.add_argument("--quick", action="store_true", help="a small version, not converged")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.samples, options.ps, options.rounds = 2, 1000, 4.0, 2
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)

    data = cgml.read_dataset(options.input) if options.input else mapped(options)
    structure = native(options.native, data)
    contacts = cgml.NativeContacts.of(structure)
    train, valid = data.split(0.9)
    summary = {"residues": len(data.topology), "frames": len(data), **effective(data)}

    summary |= learned(folder, train, valid, options)
    flow = cgml.load_flow(folder / "molecule.flow")
    samples = flow.sample_dataset(options.samples)
    report = samples.mapping["flow"]
    summary |= {
        "clashing": report["clashing"],
        "effective_samples": report["effective"] / report["drawn"],
    }
    visited, folded = None, []
    for number in range(options.rounds):
        summary |= taught(folder, flow, number, visited, options)
        exchanged = replica_exchange(folder, number, train, options)
        more = exchanged.draw(options.samples // 4)
        visited = more if visited is None else np.concatenate([visited, more])
        exchanged = exchanged.after(exchanged.time[-1] / 4).at_temperature(data.temperature)
        folded.append(float((contacts.fraction(in_order(exchanged)) > FOLDED).mean()))

    summary["folded_PMF_by_round"] = folded
    single = copies(folder, options.rounds - 1, train, options)
    found = compared(folder, data, samples, exchanged, single, structure, options)
    (folder / "summary.json").write_text(json.dumps(summary | found, indent=1) + "\n")
    print(json.dumps(summary | found))


def mapped(options: argparse.Namespace) -> cgml.CGDataset:
    """Map a trajectory to C-alpha beads."""
    topology = cgml.read_topology(options.topology)
    return cgml.map_trajectory(
        cgml.read_trajectory(options.trajectory, top=topology),
        cgml.MAPPINGS["calpha"](topology),
        temperature=options.temperature,
    )


def native(path: Path, data: cgml.CGDataset) -> np.ndarray:
    """Return the C-alpha atoms of a structure (beads, 3), nm."""
    structure = mdtraj.load(path)
    atoms = [a.index for a in structure.topology.atoms
             if a.name == "CA" and a.element.symbol == "C"]  # fmt: skip
    if len(atoms) != len(data.topology):
        raise SystemExit(
            f"{path} has {len(atoms)} C-alpha atoms, the data {len(data.topology)}; give the "
            "structure of the same chain"
        )
    return structure.xyz[0, atoms].astype(float)


def in_order(run: cgml.Run) -> np.ndarray:
    """Return frames copy after copy, so that blocks are independent (frames, beads, 3)."""
    return run.positions.swapaxes(0, 1).reshape(-1, len(run.topology), 3)


def effective(data: cgml.CGDataset) -> dict[str, float]:
    """Return what the frames are worth."""
    weights = np.ones(len(data)) if data.weights is None else data.weights
    return {"effective_frames": float(weights.sum() ** 2 / (weights**2).sum())}


def learned(
    folder: Path, train: cgml.CGDataset, valid: cgml.CGDataset, options: argparse.Namespace
) -> dict[str, float]:
    """Train the flow, unless it is there."""
    notes = folder / "flow.json"
    if not (folder / "molecule.flow").exists() or not notes.exists():
        begin = time.perf_counter()
        result = cgml.fit_flow(
            cgml.FLOWS["coupling"](train, width=128), train, valid, smearing=0.1,
            epochs=options.epochs, batch_size=128,
        )  # fmt: skip
        cgml.save_flow(folder / "molecule.flow", result)
        degrees = 3 * len(train.topology) - 6
        notes.write_text(json.dumps({
            "flow_seconds": time.perf_counter() - begin,
            "log_likelihood_per_degree": result.metrics["log_likelihood"] / degrees,
            "outside_training": result.metrics["outside_training"],
        }))  # fmt: skip
    return json.loads(notes.read_text())


def taught(
    folder: Path,
    flow: cgml.Flow,
    number: int,
    visited: np.ndarray | None,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Let the flow teach a PMF, unless it is there."""
    notes, model = folder / f"student_{number}.json", folder / f"student_{number}.pt"
    if not (model.exists() and notes.exists()):
        begin = time.perf_counter()
        student = cgml.distill(
            flow,
            with_prior("cgnet", {"width": 256, "depth": 2}),
            count=options.samples,
            visited=visited,
            batch_size=128,
            epochs=2 if options.quick else options.epochs // 2,
        )
        cgml.save_model(model, student.result)
        found = student.agreements[""]
        notes.write_text(json.dumps({
            "student_seconds": time.perf_counter() - begin,
            "agreement": found.effective / found.samples,
            "flow_to_pmf_kT": found.flow_to_pmf,
            "pmf_to_flow_kT": found.pmf_to_flow,
        }))  # fmt: skip
    return json.loads(notes.read_text())


def replica_exchange(
    folder: Path, number: int, train: cgml.CGDataset, options: argparse.Namespace
) -> cgml.Run:
    """Run the PMF by replica exchange, from frames of the data."""
    kelvin = train.temperature
    simulation = cgml.ReplicaExchange(
        folder / f"student_{number}.pt", train, cgml.ladder(kelvin, 1.4 * kelvin, 4),
        copies=8 if options.quick else 16, exchange_interval=0.5, **SETTINGS,
    )  # fmt: skip
    last = number == options.rounds - 1
    ps = options.ps if last else max(4.0, options.ps / 3)
    interval = 0.5 if options.quick else 1.0
    return simulation.run(folder / f"exchange_{number}.h5", ns=ps / 1000, interval=interval)


def copies(
    folder: Path, number: int, train: cgml.CGDataset, options: argparse.Namespace
) -> cgml.Run:
    """Run copies at one temperature, from frames of the data."""
    simulation = cgml.Langevin(
        folder / f"student_{number}.pt", train, copies=8 if options.quick else 32, **SETTINGS
    )
    interval = 0.5 if options.quick else 1.0
    return simulation.run(folder / "copies.h5", ns=options.ps / 1000, interval=interval)


def compared(
    folder: Path,
    data: cgml.CGDataset,
    samples: cgml.CGDataset,
    exchanged: cgml.Run,
    single: cgml.Run,
    structure: np.ndarray,
    options: argparse.Namespace,
) -> dict[str, object]:
    """Compare what data, flow and PMF sample, in numbers and in a picture."""
    frames = {
        "data": (np.asarray(data.positions), data.weights),
        "flow": (np.asarray(samples.positions), samples.weights),
        "PMF": (in_order(exchanged), None),
    }
    contacts = cgml.NativeContacts.of(structure)
    features = {name: cgml.pair_distances(x, 3) for name, (x, _) in frames.items()}
    slow = cgml.tica(
        single, lambda x: cgml.pair_distances(x, 3), lag=5 if not options.quick else 1
    )
    wide = cgml.principal_components(features["data"], frames["data"][1])

    found: dict[str, object] = {"tica_timescales_ps": slow.timescales.tolist()}
    values: dict[str, dict[str, np.ndarray]] = {}
    maps = {name: cgml.contact_map(x, w) for name, (x, w) in frames.items()}
    for name, (positions, weights) in frames.items():
        values[name] = {
            "RMSD": cgml.rmsd(positions, structure),
            "Q": contacts.fraction(positions),
            "size": cgml.radius_of_gyration(positions),
            "tica": slow(features[name]),
            "pca": wide(features[name]),
        }
        for label in ("RMSD", "Q", "size"):
            found[f"{label}_{name}"] = float(np.average(values[name][label], weights=weights))
        folded = values[name]["Q"] > FOLDED
        share = np.average(folded, weights=weights)
        found[f"folded_{name}"] = float(share)
        if share > 0:
            w = None if weights is None else weights[folded]
            found[f"folded_RMSD_{name}"] = float(
                np.average(values[name]["RMSD"][folded], weights=w)
            )
    for name in ("flow", "PMF"):
        found[f"js_distances_{name}"] = distances_js(features, frames, name)
        for label in ("RMSD", "tica", "pca"):
            found[f"js_{label}_{name}"] = histogram_js(values, frames, name, label)
        found[f"contact_map_rms_{name}"] = float(
            np.sqrt(np.nanmean((maps[name] - maps["data"]) ** 2))
        )
    draw(folder / "folding.png", frames, values, contacts, single, structure, data.temperature)
    return found


def distances_js(features: dict, frames: dict, name: str) -> float:
    """Return the mean divergence of the distances' distributions, bins of 0.01 nm, nats."""
    pairs = []
    for one, other in zip(features["data"].T, features[name].T, strict=True):
        edges = np.arange(0, max(one.max(), other.max()) + 0.02, 0.01)
        both = [np.histogram(x, edges, weights=frames[k][1])[0]
                for x, k in ((one, "data"), (other, name))]  # fmt: skip
        pairs.append(js_divergence(*both))
    return float(np.mean(pairs))


def histogram_js(values: dict, frames: dict, name: str, label: str) -> float:
    """Return the divergence of an observable's distribution, 30 bins an axis, nats."""
    pair = [np.reshape(values[k][label], (len(frames[k][0]), -1)) for k in ("data", name)]
    edges = [np.linspace(min(a.min(), b.min()), max(a.max(), b.max()) + 1e-9, 31)
             for a, b in zip(pair[0].T, pair[1].T, strict=True)]  # fmt: skip
    both = [np.histogramdd(x, edges, weights=frames[k][1])[0]
            for x, k in zip(pair, ("data", name), strict=True)]  # fmt: skip
    return js_divergence(*both)


def draw(
    path: Path,
    frames: dict,
    values: dict,
    contacts: cgml.NativeContacts,
    single: cgml.Run,
    structure: np.ndarray,
    kelvin: float,
) -> None:
    """Draw free energies over RMSD and over the slowest coordinates, and folding."""
    figure, axes = plt.subplots(2, 4, figsize=(15, 6.8), layout="constrained")
    top = max(np.quantile(v["RMSD"], 0.999) for v in values.values())
    for name, (_, weights) in frames.items():
        profile = cgml.free_energy_surface(
            values[name]["RMSD"], temperature=kelvin, weights=weights,
            bins=[np.linspace(0, top, 41)],
        )  # fmt: skip
        x, y, e = profile.centres[0], profile.values, np.nan_to_num(profile.errors)
        axes[0, 0].plot(x, y, color=COLOURS[name], label=name)
        axes[0, 0].fill_between(x, y - e, y + e, color=COLOURS[name], alpha=0.25, lw=0)
    axes[0, 0].set(xlabel="RMSD from the native structure (nm)", ylabel="free energy (kJ/mol)")
    axes[0, 0].set_ylim(0, 20)
    axes[0, 0].legend(frameon=False)

    everything = np.concatenate([v["tica"] for v in values.values()])
    low, high = np.quantile(everything, [0.001, 0.999], axis=0)
    edges = [np.linspace(a, b, 41) for a, b in zip(low, high, strict=True)]
    for axis, (name, (_, weights)) in zip(axes[0, 1:], frames.items(), strict=True):
        surface = cgml.free_energy_surface(
            values[name]["tica"], temperature=kelvin, weights=weights, bins=edges
        )
        image = axis.pcolormesh(*edges, surface.values.T, vmin=0, vmax=20, cmap="viridis")
        axis.set(xlabel="slowest coordinate", ylabel="second slowest", title=name)
    figure.colorbar(image, ax=axes[0, 3], label="free energy (kJ/mol)")

    every = np.asarray(single.positions, dtype=float)
    for copy in range(min(6, every.shape[1])):
        axes[1, 0].plot(
            single.time,
            cgml.rmsd(every[:, copy], structure),
            lw=0.7,
            color=plt.cm.cividis(copy / 6),
        )
    axes[1, 0].set(xlabel="time of six copies (ps, the model's own)", ylabel="RMSD (nm)")
    for axis, (name, (positions, weights)) in zip(axes[1, 1:], frames.items(), strict=True):
        centres, order = contacts.folding_order(positions, weights)
        image = axis.pcolormesh(
            np.arange(order.shape[1] + 1) + 0.5, np.linspace(0, 1, len(centres) + 1), order,
            vmin=0, vmax=1, cmap="cividis",
        )  # fmt: skip
        axis.set(xlabel="residue", ylabel="all native contacts Q", title=name)
    figure.colorbar(image, ax=axes[1, 3], label="contacts of the residue")
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
