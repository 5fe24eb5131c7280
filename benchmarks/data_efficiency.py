"""How many equilibrium frames does a coarse-grained model need, with forces and without?

Capped alanine on five beads; distinct equilibrium frames of CGML_DATA or ``../shared/data`` (the
package's own, drawn by their weights, without it), training sizes from 500 up, nested, three
seeds. Four ways to the same beads: the flow's samples themselves; a PMF that the flow has taught,
run by replica exchange; force matching of the same PMF on the basic and on the optimal force map;
and enhanced-sampling force matching, on as many biased frames. All against the independent
reference, on its 60 x 60 grid. A tenth of the frames validates.
"""

import json
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from openmm_cgml.analysis import Comparison

DATA = Path(os.environ.get("CGML_DATA", Path(__file__).parents[2] / "shared" / "data"))
PACKAGE = resources.files(cgml) / "data" / "quickstart"
SOURCE = "flow-matching issue"
SIZES, SEEDS = (500, 2000, 6000, 14_700), (0, 1, 2)
#: Of basic-map force matching, the tenfold of one of the sizes above.
MORE, TENTH = 20_000, 2000
#: The flow scores itself and its student.
WAYS = ("flow", "basic", "optimal", "biased")
#: Steps of a training, whatever the number of frames.
STEPS, FLOW_STEPS, STUDENT_STEPS, BATCH = 4000, 2000, 6000, 128


def run(quick: bool) -> Outcome:
    """Train and score."""
    torch.set_num_threads(1)
    sizes, seeds = ((300,), SEEDS[:1]) if quick else (SIZES, SEEDS)
    jobs = [(way, size, seed) for seed in seeds for size in sizes
            for way in (("flow", "basic") if quick else WAYS)]  # fmt: skip
    if os.environ.get("CGML_MORE") and not quick:
        jobs += [("basic", MORE, seed) for seed in seeds]
    done = Path(os.environ["CGML_DONE"]) if os.environ.get("CGML_DONE") and not quick else None
    found = done_before(done)
    with resources.as_file(PACKAGE) as files, tempfile.TemporaryDirectory() as folder:
        setup = json.loads((files / "quickstart.json").read_text())
        for job in jobs:
            if job in found:
                continue
            scores = scored(*job, files, setup, Path(folder), quick)
            found[job] = {name: figures(comparison) for name, comparison in scores.items()}
            if done is not None:
                with done.open("a") as file:
                    file.write(json.dumps([*job, found[job]]) + "\n")
    details: dict[str, Any] = {}
    for job in jobs:
        for name, entry in found[job].items():
            details.setdefault(name, {}).setdefault(str(job[1]), []).append(entry)
    if os.environ.get("CGML_FIGURES"):
        draw(Path(os.environ["CGML_FIGURES"]) / "data_efficiency.png", details)
    return Outcome(targets(details, sizes), SEEDS[0], details)


def done_before(path: Path | None) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Return what a file has of way, size and seed -> figures by name."""
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(way, size, seed): scores for way, size, seed, scores in lines}


def targets(details: dict[str, Any], sizes: tuple[int, ...]) -> list[Target]:
    """Return the issue's targets, and all JS*."""

    def js(name: str, size: int) -> np.ndarray:
        return np.array([one["js"] for one in details[name][str(size)]])

    found = []
    if "student" in details and len(sizes) > 1:
        most = sizes[-1]
        found = [
            Target(f"JS* of the flow, {most} frames", "nats", 0.003, *_mean(js("flow", most)),
                   source=SOURCE),
            Target(f"JS* of the student, {most} frames", "nats", 0.006,
                   *_mean(js("student", most)), source=SOURCE),
        ]  # fmt: skip
        many = MORE if str(MORE) in details["basic"] else most
        ratio = js("student", TENTH).mean() / js("basic", many).mean()
        name = f"JS* of the student, {TENTH} frames, over force matching (basic), {many}"
        found.append(Target(name, "", 1.0, float(ratio), source=SOURCE))
    return found + [
        Target(f"JS*: {name}, {size} frames", "nats", None, *_mean(js(name, int(size))))
        for name, by_size in details.items()
        for size in by_size
    ]


def scored(
    way: str, size: int, seed: int, files: Path, setup: dict[str, Any], folder: Path, quick: bool
) -> dict[str, Comparison]:
    """Train one way; the flow scores itself and its student."""
    force_map = {"biased": "optimal"}.get(way, way)
    dataset = frames(size, seed, "basic" if way == "flow" else force_map, way == "biased", files,
                     setup)  # fmt: skip
    train, valid = dataset.split(0.9)
    steps = FLOW_STEPS if way == "flow" else STEPS
    epochs = 2 if quick else max(2, steps * BATCH // len(train))
    if way == "flow":
        bare = [cgml.CGDataset(d.positions, d.topology, d.temperature) for d in (train, valid)]
        result = cgml.fit_flow(
            cgml.FLOWS["coupling"](bare[0], seed=seed), *bare, epochs=epochs, batch_size=BATCH,
            patience=max(10, epochs // 5), ema=0.99, seed=seed, progress=False,
        )  # fmt: skip
        flow = result.pmf.flow
        drawn = flow.sample(2000 if quick else 200_000, seed=seed)[0].numpy()
        samples = cgml.CGDataset(drawn, train.topology, train.temperature)
        scores = {"flow": compared(samples, files, setup)}
        if not quick:
            count = 50_000
            student = cgml.distill(
                flow, count=count, seed=seed, progress=False,
                epochs=STUDENT_STEPS * 256 // (9 * count // 10) + 1,
            )  # fmt: skip
            scores["student"] = simulated(
                student.result, train, seed, files, setup, folder, quick, timestep=0.002
            )
        return scores
    pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train, seed=seed))
    result = cgml.fit(
        pmf, train, valid, epochs=epochs, batch_size=BATCH, patience=max(10, epochs // 5),
        learning_rate=3e-3, seed=seed, progress=False,
    )  # fmt: skip
    return {way: simulated(result, train, seed, files, setup, folder, quick)}


def frames(
    size: int, seed: int, force_map: str, biased: bool, files: Path, setup: dict[str, Any]
) -> cgml.CGDataset:
    """Return so many frames, those of smaller sizes among them, in random order."""
    source = DATA / "ala2" / ("wtmetad_gamma6.npz" if biased else "equilibrium.npz")
    generator = np.random.default_rng(seed)
    if size == MORE:
        found = frames(SIZES[-1], seed, force_map, biased, files, setup)
        other = cgml.read_dataset(os.environ["CGML_MORE"])
        chosen = rejected(np.asarray(other.weights), generator)[: size - len(found)]
        if len(found) + len(chosen) < size:
            raise cgml.InputError(f"CGML_MORE gives {len(chosen)} frames; make it longer")
        return cgml.CGDataset(
            np.concatenate([found.positions, other.positions[chosen]]),
            found.topology, found.temperature,
            forces=np.concatenate([found.forces, other.forces[chosen]]),
        )  # fmt: skip
    if source.is_file():
        with np.load(source) as stored:
            chosen = generator.permutation(len(stored["positions"]))[:size]
            positions = stored["positions"][chosen].astype(float)
            forces = stored["forces"][chosen].astype(float)
    else:
        with np.load(files / setup["trajectory"]) as stored:
            weights = np.ones(len(stored["positions"])) if biased else stored["weights"]
            chosen = generator.choice(len(weights), size, p=weights / weights.sum())
            positions = stored["positions"][chosen].astype(float)
            forces = stored["forces"][chosen].astype(float)
    topology = cgml.read_topology(files / setup["topology"])
    trajectory = cgml.read_trajectory(positions, top=topology, forces=forces)
    return cgml.map_trajectory(
        trajectory, cgml.MAPPINGS[setup["mapping"]](topology),
        temperature=setup["temperature_K"], force_map=force_map,
        constraints=files / setup["system"],
    )  # fmt: skip


def rejected(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return frames drawn without repetition by weights, of which a few above the cap."""
    cap = np.quantile(weights[weights > 0], 0.999)
    return generator.permutation(np.flatnonzero(generator.uniform(0, cap, len(weights)) < weights))


def simulated(
    result: Any,
    train: cgml.CGDataset,
    seed: int,
    files: Path,
    setup: dict[str, Any],
    folder: Path,
    quick: bool,
    timestep: float = 0.004,
) -> Comparison:
    """Run replica exchange of a model, all copies from one frame."""
    cgml.save_model(folder / "model.pt", result)
    (folder / "run.h5").unlink(missing_ok=True)
    simulation = cgml.ReplicaExchange(
        folder / "model.pt", train.positions[0].astype(float), cgml.ladder(300, 1000, 4),
        copies=16 if quick else 64, exchange_interval=0.1, timestep=timestep, friction=5.0,
        seed=seed, backend="python" if quick else None,
    )  # fmt: skip
    ps, discard = (8.0, 2.0) if quick else (120.0, 20.0)
    found = simulation.run(folder / "run.h5", ns=ps / 1000, interval=0.2, progress=False)
    return compared(found.after(discard), files, setup)


def compared(model: Any, files: Path, setup: dict[str, Any]) -> Comparison:
    """Compare with the reference."""
    return cgml.compare(
        model, files / setup["reference"], setup["dihedrals"], temperature=300,
        state=tuple(setup["state"]),
    )  # fmt: skip


def figures(comparison: Comparison) -> dict[str, float]:
    """Return JS*, both relative entropies, the free-energy error and the coverage."""
    q, p = comparison.model.probability, comparison.reference.probability
    both, often = (q > 0) & (p > 0), p > 1e-4
    gap = comparison.kt * (np.log(q[often & both]) - np.log(p[often & both]))
    return {
        "js": comparison.js_excess,
        "js_error": comparison.js_excess_error,
        "kl_reference_model": float((p[both] * np.log(p[both] / q[both])).sum()),
        "kl_model_reference": float((q[both] * np.log(q[both] / p[both])).sum()),
        "free_energy_mse": float((gap**2).mean()),
        "coverage": float((often & both).sum() / often.sum()),
        "delta_f": comparison.delta_f[0],
    }


def draw(path: Path, details: dict[str, Any]) -> None:
    """Draw three measures of error over the number of frames."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {
        "flow": "flow", "student": "PMF taught by the flow",
        "basic": "force matching, basic map", "optimal": "force matching, optimal map",
        "biased": "enhanced-sampling force matching",
    }  # fmt: skip
    labels = {
        "js": "JS* (nats)", "kl_reference_model": "relative entropy (nats)",
        "free_energy_mse": "free energy, mean square error (kJ/mol)$^2$",
    }  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.9), layout="constrained")
    colours = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73")
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for (name, title), colour, mark in zip(names.items(), colours, "osv^D", strict=True):
            sizes = sorted(map(int, details.get(name, {})))
            values = [np.array([one[key] for one in details[name][str(n)]]) for n in sizes]
            errors = [v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in values]
            means = [v.mean() for v in values]
            axis.errorbar(sizes, means, errors, color=colour, marker=mark, ms=5, label=title)
        axis.set(xscale="log", yscale="log", xlabel="training frames", ylabel=label)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return float(values.mean()), error


if __name__ == "__main__":
    main("data_efficiency", __doc__, run)
