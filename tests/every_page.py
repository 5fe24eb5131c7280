"""One page of each kind that the package writes, in a folder."""

from pathlib import Path

import torch  # noqa: F401  (before openmm)

import numpy as np
from test_export import write_exchange
from test_flow import flow_of, frames

import openmm_cgml as cgml
from openmm_cgml import report
from openmm_cgml.analysis import compare
from openmm_cgml.boltzmann import propose
from openmm_cgml.entropy import MapEntropy, MappingEntropy
from openmm_cgml.file_report import write_file_report
from openmm_cgml.flow.fiber import split_flow
from openmm_cgml.quality import Divergence, Quality, TorsionPlane
from openmm_cgml.ranking import rank_pmfs
from openmm_cgml.run_file import Checkpoint, RunWriter
from openmm_cgml.run_view import RunChoices

TORSIONS = [[0, 1, 2, 3], [1, 2, 3, 4]]
BOX = [[3.2, 0.0, 0.0], [0.8, 3.0, 0.0], [-0.5, 0.6, 2.8]]


def chain(beads: int, molecules: int = 1, names: str = "CA") -> cgml.CGTopology:
    """Alike molecules, each a chain of beads."""
    count = beads * molecules
    bonds = [
        (m * beads + k, m * beads + k + 1) for m in range(molecules) for k in range(beads - 1)
    ]
    kinds = [names if beads > 2 else "XY"[k % 2] for k in range(count)]
    return cgml.CGTopology(
        tuple(kinds), tuple(kinds), ("GLY",) * count,
        tuple(1 + k if beads > 2 else 1 + k // beads for k in range(count)),
        tuple(str(k // beads) for k in range(count)), tuple(bonds), (20.0,) * count,
    )  # fmt: skip


def walk(frames: int, copies: int, beads: int, seed: int = 0) -> np.ndarray:
    """A chain that forgets its shape in some ten frames, (frames, copies, beads, 3)."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(copies, beads, 3))
    found = np.empty((frames, copies, beads, 3))
    for k in range(frames):
        state = 0.9 * state + 0.19**0.5 * rng.normal(size=state.shape)
        found[k] = state
    steps = np.zeros((1, 1, beads, 3))
    steps[..., 0], steps[..., 1] = 0.12, 0.2 * (-1.0) ** np.arange(beads)
    return np.cumsum(steps + 0.12 * found, axis=2)


def write_run(
    path: Path, topology, positions: np.ndarray, finished: bool = True, sick=(), **info
) -> Path:
    """A run with energies, velocities and events, finished or not."""
    rng = np.random.default_rng(1)
    count, copies = positions.shape[:2]
    info = {
        "copies": copies, "temperatures_K": [300.0], "training_temperature_K": 300.0,
        "platform": "Reference", "backend": "torchforce", "seed": 3, "timestep_ps": 0.01,
        "model_sha256": "ab" * 32, "versions": {"openmm": "8.5.2", "torch": "2.9.1"},
        "replica_steps_per_second": 12345.6, "steps": 10 * count + (not finished), **info,
    }  # fmt: skip
    writer = RunWriter(path, topology, info)
    for k, frame in enumerate(positions):
        gone = np.isin(np.arange(copies), [c for t, c in sick if t == k])
        writer.add(
            positions=frame, time=0.1 * (k + 1), energy=rng.normal(-5, 2, copies),
            kinetic_energy=rng.normal(3.74 * len(topology), 1.0, copies),
            rung=np.zeros(copies), sick=gone, extrapolating=gone,
        )  # fmt: skip
        for copy in np.flatnonzero(gone):
            writer.events.append(
                {"what": "reset", "copy": int(copy), "time_ps": 0.1 * (k + 1), "why": "not finite",
                 "temperature_K": 300.0}
            )  # fmt: skip
    writer.flush(Checkpoint(10 * count, {}, {}, b""))
    if finished:
        writer.finish()
    return path


def every_page(folder: Path, data: Path, dataset, model, setup) -> dict[str, Path]:
    """Write a page of every kind; return them by kind."""
    pages: dict[str, Path] = {}

    def of(kind: str, file, choices: RunChoices | None = None) -> None:
        pages[kind] = folder / f"{kind}.html"
        write_file_report(file, pages[kind], choices)

    dataset.save(folder / "dataset.h5")
    of("dataset", folder / "dataset.h5")
    (folder / "model.pt").write_bytes(model.file.archive)
    of("model", folder / "model.pt")
    _flows(folder, of)
    _runs(folder, of, dataset)
    _comparisons(folder, pages, data, dataset, model, setup)
    cgml.DatasetCollection(
        {"one": frames(5, 200), "two": frames(6, 200)}
    ).save(folder / "collection.h5")  # fmt: skip
    of("collection", folder / "collection.h5")
    several = chain(2, 60)
    rng = np.random.default_rng(4)
    liquid = rng.uniform(0, 1, (30, 60, 1, 3)) @ np.array(BOX) + rng.normal(0, 0.1, (30, 60, 2, 3))
    boxed = cgml.CGDataset(
        liquid.reshape(30, 120, 3), several, 300.0, box=np.tile(BOX, (30, 1, 1)),
        weights=rng.uniform(size=30),
    )  # fmt: skip
    boxed.save(folder / "liquid.h5")
    of("liquid", folder / "liquid.h5")
    return pages


def _flows(folder: Path, of) -> None:
    beads = frames(5, 200)
    flow = flow_of(beads, 0.05)
    result = cgml.fit_flow(flow, *beads.split(0.8), epochs=2, batch_size=64, progress=False)
    cgml.save_flow(folder / "a.flow", result)
    of("flow", folder / "a.flow")
    from test_fiber import mapping

    split = split_flow(beads, mapping(np.eye(5)[[0, 2, 4]]), width=12, layers=1, heads=3)
    cgml.save_flow(folder / "split.flow", split)
    of("split-flow", folder / "split.flow")


def _runs(folder: Path, of, dataset) -> None:
    write_run(folder / "chain.h5", chain(12), walk(120, 6, 12), sick={(50, 2)})
    native = walk(1, 1, 12, seed=9)[0, 0]
    of("run", folder / "chain.h5", RunChoices(discard_ps=0.5, native=native, native_name="a.pdb"))
    liquid = walk(40, 2, 2)[:, :, None] * 0.2 + np.random.default_rng(3).uniform(
        -3, 3, (40, 2, 50, 1, 3)
    )
    write_run(folder / "box.h5", chain(2, 50), liquid.reshape(40, 2, 100, 3), False,
              box_vectors_nm=BOX)  # fmt: skip
    of("unfinished", folder / "box.h5")
    write_exchange(
        folder / "exchange.h5", dataset.topology, training_temperature_K=300.0,
        statistics={"neighbour_acceptance": [0.31, None], "round_trips": 4,
                    "copies_without_round_trip": 2, "mixing_time_sweeps": 3.2, "sweeps": 9,
                    "effective_samples": None},
    )  # fmt: skip
    of("exchange", folder / "exchange.h5")


def _comparisons(folder: Path, pages, data: Path, dataset, model, setup) -> None:
    def place(kind: str) -> Path:
        pages[kind] = folder / f"{kind}.html"
        return pages[kind]

    comparison = compare(dataset, data / "reference.npz", setup["dihedrals"], temperature=300)
    report.write_report(
        place("comparison"), comparison, title="A model against a reference", lead="Some frames.",
        labels=("φ", "ψ"), training=model.card["training"],
        run={"backend": "torchforce", "platform": "CPU", "replica_steps_per_second": 1e5,
             "copies": 64, "versions": {"torch": "2.9"}, "model_sha256": "cd" * 32},
        notes=["The model was trained for a minute."], backends={"native": 2e5, "python": 1e4},
    )  # fmt: skip
    beads = frames(5, 200)
    flow = flow_of(beads, 0.0)
    cgml.save_model(folder / "prior.pt", cgml.SumPMF(cgml.fit_prior(beads)), beads)
    scores = rank_pmfs(
        propose(flow, 400, seed=1),
        {name: cgml.load_model(folder / "prior.pt") for name in ("one", "two")},
        reference=beads, dihedrals=TORSIONS, state=(-1.0, 1.0),
    )  # fmt: skip
    report.write_reweighting(
        place("reweighting"), scores, title="a.flow weighted", lead="400 samples.",
        labels=("first", "second"), quadruples=TORSIONS,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    kinds = tuple(f"GLY-A{k} GLY-B{k}" for k in range(14))
    divergence = Divergence(kinds, rng.uniform(0, 0.1, 14), np.full(14, 0.01), np.full(14, 0.01))
    edges = np.linspace(-2, 2, 21)
    plane = TorsionPlane(
        (edges, edges), rng.poisson(3, (20, 20)), rng.poisson(3, (20, 20)), 0.4, 0.3
    )
    report.write_backmapping(
        place("backmapping"),
        Quality(
            500, 2e-6, (0.99, 1.0), divergence, divergence, divergence, 0.02, (0.01, 0.005),
            (0, 4000), (1, 500), (0, 100), 0.5, (0.05, 0.04), plane,
        ),
        title="Backmapped structures", lead="500 structures.", relaxed={"energy, kJ/mol": -12.5},
    )  # fmt: skip

    def entropy(mean: float) -> MappingEntropy:
        return MappingEntropy(
            mean + rng.normal(size=60), np.full(60, 0.2), 30, "data", "length", "nm",
            "coordinates", np.full(60, 1 / 60),
        )  # fmt: skip

    found = entropy(-50)
    report.write_entropy(
        place("entropy"),
        found,
        {"mean": found.mean[0]},
        title="Mapping entropy",
        lead="60 frames.",
    )
    ranked = [MapEntropy(name, 5 + k, entropy(-50 + k), entropy(-49 + k))
              for k, name in enumerate(("backbone", "calpha"))]  # fmt: skip
    report.write_mapping_comparison(
        place("mappings"), ranked, [(0.0, 0.0), (1.2, 0.3)], title="Which map loses least?",
        lead="Two maps.",
    )  # fmt: skip
