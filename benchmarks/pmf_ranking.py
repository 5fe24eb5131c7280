"""Which of several PMFs is best, told without dynamics? And what does resolution cost?

Capped alanine. Three PMFs on six beads (core with C-beta): force matching on an unbiased run
that never crosses to positive phi, on equilibrium frames, and enhanced-sampling force matching on
a biased run; all weigh the same samples of a flow of equilibrium frames, and a short run of the
engine checks each. Three seeds. Then one table of cost and accuracy at three resolutions: six
beads, ten heavy atoms, and all 22 atoms with the force field itself as the potential (a run
without constraints: frozen bonds have no density).
"""

import json
import os
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from benchmarks import reweighting
from benchmarks.contract import Outcome, Target, main
from benchmarks.reweighting import DATA, PACKAGE, TORSIONS, mapped
from openmm_cgml.boltzmann import propose
from openmm_cgml.ranking import rank_pmfs

ISSUE = "Boltzmann-generators issue"
SEEDS = (0, 1, 2)
#: Name -> role in `reweighting.FILES`.
PMFS = {"never crosses": "unbiased", "equilibrium": "equilibrium", "biased (ESFM)": "forces"}
FRAMES = 14_000
#: phi and psi of all atoms.
ATOMS = [[4, 6, 8, 14], [6, 8, 14, 16]]


def run(quick: bool) -> Outcome:
    """Rank, then compare resolutions."""
    torch.set_num_threads(1)
    rows = [row for seed in (SEEDS[:1] if quick else SEEDS) for row in ranked(seed, quick)]
    targets = []
    for name in PMFS:
        own = [row for row in rows if row["name"] == name]
        js = np.array([row["comparison"]["js_excess"] for row in own])
        error = float(js.std(ddof=1) / len(js) ** 0.5) if len(js) > 1 else None
        targets += [
            Target(f"{name}: JS*", "nats", None, float(js.mean()), error),
            Target(f"{name}: effective share", "", None,
                   float(np.mean([row["weights"]["fraction"] for row in own])), at_most=False),
            Target(f"{name}: forward effective share", "", None,
                   float(np.mean([row["weights"]["forward"] for row in own])), at_most=False),
            Target(f"{name}: samples outside its training data", "", None,
                   float(np.mean([row["outside_training"] for row in own]))),
            Target(f"{name}: mean rank", "", None, float(np.mean([row["rank"] for row in own]))),
        ]  # fmt: skip
    flagged = all(row["extrapolates"] for row in rows if row["name"] == "never crosses")
    wrongly = any(row["extrapolates"] for row in rows if row["name"] != "never crosses")
    targets.append(Target("the one that never crosses is flagged, no other is", "", 1.0,
                          float(flagged and not wrongly), at_most=False,
                          source=ISSUE))  # fmt: skip
    details: dict[str, Any] = {"ranking": rows}
    if not quick:
        details["all atoms"] = all_atoms()
        targets += [
            Target(f"all atoms: {label}", unit, None, details["all atoms"][key])
            for label, key, unit in (
                ("effective share", "fraction", ""), ("forward effective share", "forward", ""),
                ("JS*", "js_excess_reweighted", "nats"), ("training", "training_seconds", "s"),
                ("10 000 samples with weights", "seconds_10000", "s"),
            )
        ]  # fmt: skip
    return Outcome(targets, SEEDS[0], details)


def ranked(seed: int, quick: bool) -> list[dict[str, Any]]:
    """Return the scores of the PMFs of one seed."""
    models = {}
    folder = Path(os.environ.get("CGML_SCRATCH", "."))
    for name, role in PMFS.items():
        frames = mapped("core_beta", "forces" if quick else role, forces=True, quick=quick)
        chosen = np.random.default_rng(seed).permutation(len(frames))[:FRAMES]
        train, valid = frames.select(np.sort(chosen)).split(0.9)
        pmf = cgml.SumPMF(
            cgml.fit_prior(train), cgml.PMFS["cgnet"](train, width=128, depth=3, seed=seed)
        )
        started = time.perf_counter()
        result = cgml.fit(
            pmf, train, valid, epochs=1 if quick else 120, learning_rate=2e-3, ema=0.999,
            seed=seed, progress=False,
        )  # fmt: skip
        path = folder / f"ranking_{role}.pt"
        cgml.save_model(path, result)
        models[name] = cgml.load_model(path)
        print(name, f"{time.perf_counter() - started:.0f} s", flush=True)
        path.unlink()
    parts = mapped("core_beta", "equilibrium", forces=False, quick=quick).split(0.9)
    flow = cgml.fit_flow(
        cgml.FLOWS["coupling"](parts[0], seed=seed), *parts, epochs=1 if quick else 40,
        batch_size=128, seed=seed, progress=False,
    ).pmf.flow  # fmt: skip
    proposal = propose(flow, 2000 if quick else 100_000, seed=seed, held_out=parts[1])
    with resources.as_file(PACKAGE) as files:
        source = DATA / "ala2" / "reference_free_energy.npz"
        scores = rank_pmfs(
            proposal, models, reference=files / "reference.npz" if quick else source,
            dihedrals=TORSIONS["core_beta"], flow=flow, check_ps=0.1 if quick else 10.0,
            seed=seed, backend="python",
        )  # fmt: skip
    for score in scores:
        print(score.text(), flush=True)
    return [
        {"seed": seed, "rank": rank + 1, **score.record()} for rank, score in enumerate(scores)
    ]


class ForceField:
    """All-atom energies by OpenMM, for `Proposal.weigh`."""

    def __init__(self, pdb: Path, temperature: float) -> None:
        import openmm
        from openmm import app

        topology = app.PDBFile(str(pdb)).topology
        field = app.ForceField("amber99sb.xml", "amber99_obc.xml")
        system = field.createSystem(topology, nonbondedMethod=app.NoCutoff)
        self.context = openmm.Context(
            system, openmm.VerletIntegrator(0.001),
            openmm.Platform.getPlatformByName("Reference"),
        )  # fmt: skip
        self.temperature = temperature

    def energies(self, positions: np.ndarray) -> np.ndarray:
        """Return energies (frames,), kJ/mol."""
        found = []
        for frame in positions:
            self.context.setPositions(frame)
            found.append(self.context.getState(energy=True).getPotentialEnergy()._value)
        return np.array(found)


def all_atoms() -> dict[str, Any]:
    """Return the figures of a flow of all atoms, weighted by the force field."""
    with resources.as_file(PACKAGE) as files, np.load(
        DATA / "ala2" / "wtmetad_unconstrained.npz"
    ) as stored:  # fmt: skip
        setup = json.loads((files / "quickstart.json").read_text())
        topology = cgml.read_topology(files / setup["topology"])
        trajectory = cgml.read_trajectory(
            stored["positions"].astype(float), top=topology,
            weights=stored["weights"].astype(float),
        )  # fmt: skip
        everything = cgml.slice_mapping(topology, range(topology.n_atoms))
        frames = cgml.map_trajectory(trajectory, everything, temperature=300)
        field = ForceField(files / setup["topology"], 300.0)
    train, valid = frames.split(0.9)
    started = time.perf_counter()
    flow = cgml.fit_flow(
        cgml.FLOWS["coupling"](train, width=128), train, valid, epochs=40, batch_size=128,
        progress=False,
    ).pmf.flow  # fmt: skip
    trained = time.perf_counter() - started
    count = 50_000
    started = time.perf_counter()
    drawn = propose(flow, count, seed=0, held_out=valid)
    weighted = drawn.weigh(field)
    seconds = time.perf_counter() - started
    divergences: Callable[..., dict[str, Any]] = reweighting.divergences
    return {
        "training_seconds": trained,
        "seconds_10000": seconds * 10_000 / count,
        **weighted.report.record(),
        **divergences(drawn, weighted, ATOMS),
    }


if __name__ == "__main__":
    main("pmf_ranking", __doc__, run)
