"""How many replica-steps a second does the engine make with message-passing networks?

As `benchmarks.engine`, for two networks of a peer's (mlcg's) hyperparameters: SchNet on 10 beads,
all pairs (256 features, 128 filters, 3 rounds, 33 Gaussians), and PaiNN on 49 beads within 1.5 nm
(128 features, 4 rounds, 64 Gaussians; without triple products, which that one has not). Weights
are random. Model files hold tables of the filters; what these change in the forces is recorded.

Baseline, in the same run: the same network without tables in a PyTorch loop with autograd.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from benchmarks.engine import (
    BEST,
    SEED,
    TEMPERATURE,
    Clock,
    LoopProcess,
    MatrixProducts,
    chain,
    engine_run,
    saved,
)
from benchmarks.engine import serve_loop as serve

PEER = "mlcg on a Zen 5 core, specs of peers"
#: Network -> its settings, and copies -> (replica-steps/s to reach, their source).
SCHNET = {"width": 256, "depth": 3, "filters": 128, "basis": 33, "cutoff": 2.0}
PAINN = {"width": 128, "depth": 4, "basis": 64, "cutoff": 1.5, "chiral": False}
GOALS = {
    "schnet": {1: 2000.0, 10: 3500.0, 100: 4000.0, 1000: 4000.0},
    "painn": {1: 75.0, 10: 69.0, 100: 69.0},
}
SPEEDUP = 2.0
BLOB_BEADS = 49


def run(quick: bool) -> Outcome:
    """Time both networks."""
    outcome = Outcome([], SEED)
    clock = Clock(rounds=2, seconds=0.02) if quick else Clock(rounds=5, seconds=2.0)
    with tempfile.TemporaryDirectory() as folder:
        for name, settings, dataset in (
            ("schnet", SCHNET, chain()),
            ("painn", PAINN, blob()),
        ):
            small = {"width": 16, "filters": 16} if name == "schnet" else {"width": 16}
            pmf = cgml.PMFS[name](dataset, **(settings | (small if quick else {})))
            goals = {n: g for n, g in GOALS[name].items() if not quick or n <= 1}
            network(outcome, clock, name, pmf, dataset, goals, Path(folder) / f"{name}.pt")
    product = clock({"product": MatrixProducts()})["product"]
    outcome.targets.append(
        Target("matrix products of 160 columns", "GFLOP/s", None,
               MatrixProducts.flop / product.median / 1e9)
    )  # fmt: skip
    return outcome


def blob(frames: int = 50) -> cgml.CGDataset:
    """Return frames of 49 beads of 20 types 0.5 nm apart, about as dense as a protein."""
    generator = np.random.default_rng(SEED)
    lattice = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    noise = 0.02 * generator.standard_normal((frames, BLOB_BEADS, 3))
    beads = range(BLOB_BEADS)
    topology = cgml.CGTopology(
        tuple(f"B{k}" for k in beads), tuple(f"B{k % 20}" for k in beads), ("MOL",) * BLOB_BEADS,
        tuple(beads), ("A",) * BLOB_BEADS, tuple((k, k + 1) for k in range(BLOB_BEADS - 1)),
        (12.0,) * BLOB_BEADS,
    )  # fmt: skip
    return cgml.CGDataset(0.5 * lattice[:BLOB_BEADS] + noise, topology, temperature=TEMPERATURE)


def network(
    outcome: Outcome,
    clock: Clock,
    name: str,
    pmf: cgml.PMF,
    dataset: cgml.CGDataset,
    goals: dict[int, float],
    path: Path,
) -> None:
    """Time one network at several numbers of copies, beside its baseline."""
    model = saved(path, pmf, dataset)
    error = model.card["largest_error_of_tables"]
    positions = torch.as_tensor(dataset.positions, dtype=torch.float32)
    size = float(pmf.energies_and_forces(positions)[1].square().mean().sqrt())
    targets = outcome.targets
    targets.append(Target(f"{name}: parameters", "", None, _count(pmf)))
    targets.append(
        Target(f"{name}: largest error of tables over RMS force", "", 1e-4, error / size)
    )
    for copies, goal in goals.items():
        loop = LoopProcess(path, copies, "engine_networks")
        candidates: dict[Any, Any] = {
            "engine": engine_run(model, dataset, copies, "Reference", BEST),
            "loop": loop,
        }
        times = clock(candidates)
        loop.close()
        engine, base = times["engine"], times["loop"]
        rate = copies / engine.cpu
        targets.append(
            Target(f"{name}, {copies} copies", "replica-steps/s", goal, float(np.median(rate)),
                   _error(rate), at_most=False, source=PEER)
        )  # fmt: skip
        ratio = base.cpu / engine.cpu
        targets.append(
            Target(f"{name}, {copies} copies, over the PyTorch loop", "", SPEEDUP,
                   float(np.median(ratio)), _error(ratio), at_most=False,
                   source="networks issue")
        )  # fmt: skip


def serve_loop() -> None:
    """Be the baseline's process."""
    serve(blob() if "painn" in Path(sys.argv[1]).name else chain())


def _count(pmf: cgml.PMF) -> float:
    return float(sum(p.numel() for p in pmf.parameters()))


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    main("engine_networks", __doc__, run)
