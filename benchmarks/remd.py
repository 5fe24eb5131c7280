"""How right is replica exchange of a learned PMF, started from one basin, against all atoms?

Capped alanine, five beads. The PMF is trained by force matching on all-atom frames of biased runs
(their forces are unbiased); all copies start from one frame with phi < 0; the reference is an
independent all-atom run of which nothing was trained on.

The larger data set is used where it is: set CGML_DATA to its folder, or keep it in
``../shared/data``. Without it, and in the quick version, the package's own data are.
"""

import json
import os
import tempfile
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch  # noqa: F401  (before openmm)

import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from openmm_cgml.analysis import dihedral_angles, distribution_of
from openmm_cgml.mbar import mbar
from openmm_cgml.sampling import effective_samples
from openmm_cgml.units import thermal_energy

ISSUE = "engine issue: capped alanine, 300 K rung"
#: Of weights, batches, velocities and noise; CGML_SEED=0 for another PMF of the same data.
SEED = int(os.environ.get("CGML_SEED", "1"))
DATA = Path(os.environ.get("CGML_DATA", Path(__file__).parents[2] / "shared" / "data")) / "ala2"
RUNS = ("wtmetad_gamma6", "wtmetad_gamma1.5", "equilibrium")


def run(quick: bool) -> Outcome:
    """Train, sample and compare."""
    package = resources.files(cgml) / "data" / "quickstart"
    with resources.as_file(package) as files, tempfile.TemporaryDirectory() as folder:
        setup = json.loads((files / "quickstart.json").read_text())
        small = quick or not DATA.is_dir()
        dataset = package_dataset(files, quick) if small else larger_dataset()
        clock = time.process_time()
        model = trained(dataset, Path(folder) / "model.pt", epochs=4 if quick else 30)
        train_seconds = time.process_time() - clock
        angles = dihedral_angles(dataset.positions, setup["dihedrals"])
        start = dataset.positions[np.flatnonzero(angles[:, 0] < -1.0)[0]].astype(float)
        simulation = cgml.ReplicaExchange(
            model,
            start,
            cgml.ladder(300, 1000, 4),
            copies=16 if quick else 256,
            exchange_interval=0.1,
            timestep=0.004,
            friction=5.0,
            seed=SEED,
        )
        clock = time.process_time()
        ps, discard = (8.0, 2.0) if quick else (600.0, 30.0)
        output = Path(folder) / "run.h5"
        whole = simulation.run(output, ns=ps / 1000, interval=0.5, checkpoint_seconds=300.0)
        run_seconds = time.process_time() - clock
        kept = whole.after(discard)
        rung = kept.at_temperature(300)
        comparison = cgml.compare(
            kept,
            files / setup["reference"],
            setup["dihedrals"],
            temperature=300,
            state=tuple(setup["state"]),
        )
        reference = distribution_of(files / setup["reference"], setup["dihedrals"])
    numbers = comparison.record()
    difference, error = comparison.delta_f
    frames = rung.positions.shape[0] * rung.positions.shape[1]
    sampled = effective_samples(rung) or 0.0
    statistics = whole.info["statistics"]
    targets = [
        Target(
            "JS*, 300 K rung", "nats", 0.010, comparison.js_excess, comparison.js_excess_error,
            source=ISSUE,
        ),
        Target("|dF(phi > 0) - reference|", "kJ/mol", 0.8, abs(difference), error, source=ISSUE),
        Target("decorrelated frames", "", 1e5, sampled, at_most=False, source=ISSUE),
        Target("frames at 300 K", "", None, frames, at_most=False),
        Target(
            "dF(phi > 0) of the model by MBAR over all rungs", "kJ/mol", None,
            *mbar_delta_f(kept, setup), at_most=False,
        ),
        Target("dF(phi > 0) of the model", "kJ/mol", None, comparison.state_model.value,
               comparison.state_model.error),
        Target("dF(phi > 0) of the reference", "kJ/mol", None, comparison.state_reference.value,
               comparison.state_reference.error),
        Target("replica-steps/s of CPU time", "1/s", None,
               simulation.copies * ps / 0.004 / run_seconds, at_most=False),
        Target("CPU time of training", "s", None, train_seconds),
        Target("CPU time of sampling", "s", None, run_seconds),
    ]  # fmt: skip
    details = {
        "data": "package" if small else list(RUNS),
        "training_frames": len(dataset),
        "temperatures_K": whole.info["temperatures_K"],
        "statistics": statistics,
        "comparison": numbers,
        "reference_bins": int((reference.probability > 0).sum()),
        "sick": sum(e["what"] != "extrapolating" for e in whole.events),
        "extrapolating_by_rung": [
            float(whole.extrapolating[whole.rung == k].mean())
            for k in range(len(whole.temperatures))
        ],
    }
    return Outcome(targets, SEED, details)


def package_dataset(files: Path, quick: bool) -> cgml.CGDataset:
    """Return the beads of the package's data."""
    source = cgml.read_trajectory(files / "trajectory.npz", top=files / "topology.pdb")
    mapping = cgml.MAPPINGS["backbone"](source.topology)
    whole = cgml.map_trajectory(source, mapping, temperature=300, constraints=files / "system.xml")
    return whole.select(slice(None, None, 8 if quick else 1))


def larger_dataset() -> cgml.CGDataset:
    """Return the beads of all biased runs, shuffled."""
    parts = []
    for name in RUNS:
        with np.load(DATA / f"{name}.npz") as arrays:
            source = cgml.read_trajectory(
                arrays["positions"], top=DATA / "topology.pdb", forces=arrays["forces"]
            )
        mapping = cgml.MAPPINGS["backbone"](source.topology)
        parts.append(
            cgml.map_trajectory(source, mapping, temperature=300, constraints=DATA / "system.xml")
        )
    order = np.random.default_rng(SEED).permutation(sum(len(p) for p in parts))
    positions = np.concatenate([p.positions for p in parts])[order]
    forces = np.concatenate([p.forces for p in parts])[order]
    return replace(parts[0], positions=positions, forces=forces)


def trained(dataset: cgml.CGDataset, path: Path, epochs: int) -> "cgml.system.Model":
    """Train the quickstart's network."""
    train, valid = dataset.split(0.9)
    pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train, seed=SEED))
    cgml.save_model(path, cgml.fit(pmf, train, valid, epochs=epochs, seed=SEED))
    return cgml.load_model(path)


def mbar_delta_f(run: cgml.run_file.Run, setup: dict) -> tuple[float, float]:
    """Return the free energy of phi > 0 at 300 K from all rungs, kJ/mol, and its error.

    Frames 2 ps apart, which are decorrelated.
    """
    stride = max(1, round(2.0 / float(run.time[1] - run.time[0])))
    positions = run.positions[::stride].reshape(-1, *run.positions.shape[2:])
    inside = dihedral_angles(positions, setup["dihedrals"])[:, 0]
    low, high = setup["state"]
    result = mbar(run.energy[::stride].ravel(), run.rung[::stride].ravel(), run.temperatures, 300)
    p, error = result.expectation(((inside > low) & (inside < high)).astype(float))
    kt = thermal_energy(300)
    return float(-kt * np.log(p / (1 - p))), float(kt * error / (p * (1 - p)))


if __name__ == "__main__":
    main("remd", __doc__, run)
