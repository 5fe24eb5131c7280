"""How good are ensembles of flow samples reweighted by a PMF, and how many samples are left?

Capped alanine, heavy atoms (10 beads) and core with C-beta (6 beads). The PMF comes from
enhanced-sampling force matching on 40 ns of metadynamics (bias factor 6), on the
configuration-dependent force map; the proposal is a coupling flow (a) of equilibrium frames, (b)
of the raw frames of a weakly biased run (bias factor 1.5), whose own weights leave 85 %. Three
seeds of everything; 200 000 samples; (phi, psi) against the independent reference on 60 x 60 bins,
and on 100 x 100 beside the published figures. Then the same after fine-tuning on the PMF. Data of
CGML_DATA or ``../shared/data``; the package's own in the quick version.
"""

import json
import os
import time
from importlib import resources
from pathlib import Path
from typing import Any

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from openmm_cgml import plot
from openmm_cgml.analysis import dihedral_angles, dihedral_distribution, js_divergence
from openmm_cgml.boltzmann import Proposal, WeightedSamples, energies_of, propose
from openmm_cgml.fine_tuning import fine_tune
from openmm_cgml.ranking import PMFScore, energy_histograms
from openmm_cgml.reweight import block_bootstrap

DATA = Path(os.environ.get("CGML_DATA", Path(__file__).parents[2] / "shared" / "data"))
PACKAGE = resources.files(cgml) / "data" / "quickstart"
SOURCE = "Boltzmann-generators issue"
SEEDS = (0, 1, 2)
#: phi and psi of each map.
TORSIONS = {
    "heavy_atom": [[1, 3, 4, 6], [3, 4, 6, 8]],
    "core_beta": [[0, 1, 2, 4], [1, 2, 4, 5]],
}
#: Least effective share by proposal and map.
LEAST = {
    ("equilibrium", "core_beta"): 0.80, ("equilibrium", "heavy_atom"): 0.70,
    ("biased", "core_beta"): 0.6, ("biased", "heavy_atom"): 0.6,
}  # fmt: skip
#: Published JS on 100 x 100 bins and effective share (explicit solvent, another reference).
PUBLISHED = {
    ("equilibrium", "heavy_atom"): (0.0048, 0.51), ("equilibrium", "core_beta"): (0.0052, 0.55),
    ("biased", "heavy_atom"): (0.0063, 0.41), ("biased", "core_beta"): (0.0057, 0.48),
}  # fmt: skip
FILES = {
    "equilibrium": "equilibrium.npz",
    "biased": "wtmetad_gamma1.5.npz",
    "forces": "wtmetad_gamma6.npz",
    "unbiased": "unbiased.npz",
}


def run(quick: bool) -> Outcome:
    """Train, weigh, score."""
    torch.set_num_threads(1)
    jobs = [
        (mapping, seed)
        for seed in (SEEDS[:1] if quick else SEEDS)
        for mapping in (("core_beta",) if quick else TORSIONS)
    ]
    done = Path(os.environ["CGML_DONE"]) if os.environ.get("CGML_DONE") and not quick else None
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    if done is not None and done.exists():
        for line in done.read_text().splitlines():
            mapping, seed, rows = json.loads(line)
            found[mapping, seed] = rows
    wanted = os.environ.get("CGML_ONLY")
    for job in jobs:
        if job in found or (wanted and wanted != job[0]):
            continue
        found[job] = scored(*job, quick)
        if done is not None:
            with done.open("a") as file:
                file.write(json.dumps([*job, found[job]]) + "\n")
    rows = [row for several in found.values() for row in several]
    return Outcome(targets(rows), SEEDS[0], {"rows": rows, "published": [
        {"proposal": p, "map": m, "js_100": js, "effective": n}
        for (p, m), (js, n) in PUBLISHED.items()
    ]})  # fmt: skip


def scored(mapping: str, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Return the figures of one map and seed, for both proposals, before and after tuning."""
    started = time.perf_counter()
    force_frames = mapped(mapping, "forces", forces=True, quick=quick)
    train, valid = force_frames.split(0.9)
    pmf = cgml.SumPMF(
        cgml.fit_prior(train), cgml.PMFS["cgnet"](train, width=128, depth=3, seed=seed)
    )
    pmf = cgml.fit(
        pmf, train, valid, epochs=1 if quick else 60, learning_rate=2e-3, ema=0.999, seed=seed,
        progress=False,
    ).pmf  # fmt: skip
    pmf_seconds = time.perf_counter() - started
    equilibrium = mapped(mapping, "equilibrium", forces=False, quick=quick)
    held_out = equilibrium.split(0.9)[1]
    rows = []
    for proposal in ("equilibrium", "biased"):
        frames = equilibrium if proposal == "equilibrium" else mapped(
            mapping, "biased", forces=False, quick=quick
        )  # fmt: skip
        started = time.perf_counter()
        parts = frames.split(0.9)
        flow = cgml.fit_flow(
            cgml.FLOWS["coupling"](parts[0], seed=seed), *parts, epochs=1 if quick else 40,
            batch_size=128, seed=seed, progress=False,
        ).pmf.flow  # fmt: skip
        seconds = {"pmf": pmf_seconds, "flow": time.perf_counter() - started}
        for tuned in (False, True):
            if tuned:
                started = time.perf_counter()
                fine_tune(
                    flow, pmf, *parts, samples=64 if quick else 512, epochs=1 if quick else 6,
                    seed=seed, progress=False,
                )  # fmt: skip
                seconds["fine_tuning"] = time.perf_counter() - started
            started = time.perf_counter()
            drawn = propose(flow, 1000 if quick else 200_000, seed=seed, held_out=held_out)
            weighted = drawn.weigh(pmf)
            seconds["samples"] = time.perf_counter() - started
            if (mapping, proposal, seed, tuned) == ("core_beta", "biased", 0, False):
                draw(weighted, held_out, pmf, TORSIONS[mapping])
            rows.append({
                "map": mapping, "proposal": proposal, "seed": seed, "tuned": tuned,
                "seconds": dict(seconds), **weighted.report.record(),
                **divergences(drawn, weighted, TORSIONS[mapping]),
            })  # fmt: skip
            print({k: v for k, v in rows[-1].items() if not isinstance(v, (dict, list))})
    return rows


def mapped(mapping: str, role: str, forces: bool, quick: bool) -> cgml.CGDataset:
    """Return frames of one role: all the same weight, as the methods want them."""
    with resources.as_file(PACKAGE) as files:
        setup = json.loads((files / "quickstart.json").read_text())
        topology = cgml.read_topology(files / setup["topology"])
        source = DATA / "ala2" / FILES[role]
        if quick or not source.is_file():
            with np.load(files / setup["trajectory"]) as stored:
                weights = stored["weights"] / stored["weights"].sum()
                draw = np.random.default_rng(0)
                chosen = np.arange(len(weights)) if role != "equilibrium" else draw.choice(
                    len(weights), 1500, p=weights
                )  # fmt: skip
                few = slice(None, None, 5) if quick else slice(None)
                positions, force = stored["positions"][chosen][few], stored["forces"][chosen][few]
        else:
            with np.load(source) as stored:
                positions, force = stored["positions"], stored["forces"]
        force_map = {"force_map": "rotation", "constraints": files / setup["system"]}
        trajectory = cgml.read_trajectory(
            positions.astype(float), top=topology, forces=force.astype(float) if forces else None
        )
        return cgml.map_trajectory(
            trajectory, cgml.MAPPINGS[mapping](topology), temperature=setup["temperature_K"],
            **(force_map if forces else {}),
        )  # fmt: skip


def divergences(
    drawn: Proposal, weighted: WeightedSamples, torsions: list[list[int]]
) -> dict[str, Any]:
    """Return JS* on 60 bins and JS on 100, before and after reweighting, and the population."""
    angles = dihedral_angles(drawn.positions, torsions)
    reference = {bins: reference_on(bins) for bins in (60, 100)}
    found: dict[str, Any] = {}
    for name, weights in (("flow", None), ("reweighted", weighted.weights)):
        model = dihedral_distribution(angles, weights, blocks=100, bins=60)
        found[f"js_excess_{name}"], found[f"js_excess_error_{name}"] = excess(
            model.blocks, reference[60]
        )
        fine = dihedral_distribution(angles, weights, bins=100)
        if reference[100] is not None:
            whole = reference[100][0]
            found[f"js_100_{name}"] = js_divergence(fine.probability, whole)
        centres = model.centres()
        found[f"population_{name}"] = float(model.probability[centres > 0].sum())
    found["population_reference"] = float(reference[60][0][model.centres() > 0].sum())
    return found


def reference_on(bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the reference's probabilities and those of its halves."""
    names = ("probability", "probability_first_half", "probability_second_half")
    source = DATA / "ala2" / "reference_free_energy.npz"
    if bins == 100:
        if not source.is_file():
            return None
        names = tuple(name.replace("probability", "probability_100") for name in names)
    with resources.as_file(PACKAGE) as files, np.load(
        source if source.is_file() else files / "reference.npz"
    ) as stored:  # fmt: skip
        whole, first, second = (stored[name] / stored[name].sum() for name in names)
    return whole, first, second


def excess(blocks: np.ndarray, reference: Any) -> tuple[float, float]:
    """Return JS* and its error by block bootstrap over the model's blocks of equal weight."""
    whole, first, second = reference
    floor = js_divergence(first, second) / 4
    middle = len(blocks) // 2
    noise = js_divergence(blocks[:middle].mean(0), blocks[middle:].mean(0)) / 4
    _, error = block_bootstrap(
        blocks.reshape(len(blocks), -1),
        lambda sums: js_divergence(sums.reshape(whole.shape), whole),
        resamples=200,
    )
    return js_divergence(blocks.mean(0), whole) - floor - noise, error


def draw(
    weighted: WeightedSamples, held_out: cgml.CGDataset, pmf: Any, torsions: list[list[int]]
) -> None:
    """Draw free energies and energies before and after, into the folder CGML_FIGURES."""
    source = DATA / "ala2" / "reference_free_energy.npz"
    if not os.environ.get("CGML_FIGURES") or not source.is_file():
        return
    import io

    from PIL import Image

    comparison = cgml.compare(
        weighted.dataset(), source, torsions, temperature=weighted.temperature
    )
    flow = dihedral_distribution(dihedral_angles(weighted.positions, torsions))
    profiles = plot.reweighted_profiles(flow, comparison, ("φ", "ψ"))
    score = PMFScore("PMF", weighted)
    energies = plot.energy_distributions(
        *energy_histograms(score, energies_of(pmf, held_out.positions), bins=50)
    )
    parts = [Image.open(io.BytesIO(png)) for png in (profiles, energies)]
    high = min(part.height for part in parts)
    parts = [part.resize((part.width * high // part.height, high)) for part in parts]
    whole = Image.new("RGB", (sum(part.width for part in parts), high), "white")
    whole.paste(parts[0], (0, 0))
    whole.paste(parts[1], (parts[0].width, 0))
    whole = whole.resize((whole.width * 5 // 8, high * 5 // 8), Image.Resampling.LANCZOS)
    whole.save(Path(os.environ["CGML_FIGURES"]) / "reweighting.png", optimize=True)


def targets(rows: list[dict[str, Any]]) -> list[Target]:
    """Return the issue's targets: before fine-tuning, since both sizes must agree."""
    found = []

    def column(key: str, **wanted: Any) -> np.ndarray:
        chosen = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
        return np.array([np.nan if r.get(key) is None else r[key] for r in chosen], dtype=float)

    def add(name: str, unit: str, goal: float | None, values: np.ndarray, at_most: bool) -> None:
        error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
        found.append(Target(name, unit, goal, float(values.mean()), error, at_most,
                            SOURCE if goal is not None else ""))  # fmt: skip

    for tuned in (False, True):
        for (proposal, mapping), least in LEAST.items():
            which = {"proposal": proposal, "map": mapping, "tuned": tuned}
            if not len(column("fraction", **which)):
                continue
            label = f"{mapping}, {proposal}" + ", fine-tuned" * tuned
            goal = None if tuned else 0.005
            add(f"JS*: {label}", "nats", goal, column("js_excess_reweighted", **which), True)
            effective = column("fraction", **which)
            add(f"effective share: {label}", "", None if tuned else least, effective, False)
            ratio = column("forward", **which) / effective
            add(f"forward over reverse effective share: {label}", "", None if tuned else 0.8,
                ratio, False)  # fmt: skip
            add(f"JS* of the flow: {label}", "nats", None, column("js_excess_flow", **which), True)
            add(f"JS, 100 x 100: {label}", "nats", None,
                column("js_100_reweighted", **which), True)  # fmt: skip
            add(f"k-hat: {label}", "", None, column("pareto_k", **which), True)
            add(f"population of positive phi: {label}", "", None,
                column("population_reweighted", **which), True)  # fmt: skip
    return found


if __name__ == "__main__":
    main("reweighting", __doc__, run)
