"""Do all-atom simulations run from structures backmapped of coarse-grained simulations?

The engine runs a PMF of five beads (capped alanine) and one of ten C-alpha beads (chignolin), each
trained here by force matching. Frames of the runs are backmapped by the split-flows of
``benchmarks.backmapping`` (all 22 atoms; 93 heavy atoms and hydrogens by rule), relaxed with the
beads held, and run freely for 10 ps: amber99sb, OBC, bonds with hydrogens constrained, 2 fs.

Needs CGML_DATA or ``../shared/data``; ``--quick`` takes the package's frames and two structures.
CGML_MODELS as of ``benchmarks.backmapping``.
"""

import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from benchmarks.backmapping import DATA, PACKAGE, SOURCE, alanine, chignolin, packaged, trained
from benchmarks.contract import Outcome, Target, main
from openmm_cgml.backmapping import BeadFrames, read_beads
from openmm_cgml.flow.fiber import FiberFlow
from openmm_cgml.relaxation import relax, survives

SEED = 0
STABLE = 0.95
FORCE_FIELD = ["amber99sb.xml", "amber99_obc.xml"]
#: Structures of each molecule.
COUNT = {"alanine": 200, "chignolin": 60}


def run(quick: bool) -> Outcome:
    """Simulate the beads, backmap, relax, simulate the atoms."""
    torch.set_num_threads(1)
    targets: list[Target] = []
    details: dict[str, Any] = {}
    cases = {"alanine": packaged} if quick else {"alanine": alanine, "chignolin": chignolin}
    for name, load in cases.items():
        case = load()
        flow, _ = trained(name, case, keep=not quick)
        mapping = "backbone" if name == "alanine" else "calpha"
        beads = chosen(simulated(name, mapping, quick), flow, 2 if quick else COUNT[name])
        made = cgml.backmap(flow, beads, seed=SEED, progress=False)
        relaxed = relax(
            made, FORCE_FIELD, flow.fiber.matrix, platform="Reference", constraints="HBonds"
        )
        stable = survives(relaxed, ps=1.0 if quick else 10.0, seed=SEED, platform="Reference")
        share = float(stable.mean())
        error = (share * (1 - share) / len(stable)) ** 0.5
        targets += [
            Target(f"{name}: stable for 10 ps", "", STABLE, share, error, False, SOURCE),
            Target(f"{name}: bead error after relaxation", "nm", 1e-5, relaxed.bead_error, None,
                   True, SOURCE),
        ]  # fmt: skip
        details[name] = {
            "structures": len(stable),
            "energy before relaxation, median, kJ/mol": float(np.median(relaxed.before)),
            "energy after, median, kJ/mol": float(np.median(relaxed.after)),
        }
        print(f"{name}: {stable.sum()} of {len(stable)} stable", flush=True)
    return Outcome(targets, SEED, details)


def chosen(beads: BeadFrames, flow: FiberFlow, count: int) -> BeadFrames:
    """Return some frames, evenly spaced over copies and times."""
    index = np.linspace(0, len(beads) - 1, count).astype(int)
    return BeadFrames(beads.positions[index], flow.bead_topology)


def simulated(name: str, mapping: str, quick: bool) -> BeadFrames:
    """Train a PMF of a molecule's beads and return frames of its simulation."""
    with resources.as_file(PACKAGE) as files, tempfile.TemporaryDirectory() as folder:
        if name == "alanine":
            setup = json.loads((files / "quickstart.json").read_text())
            topology = cgml.read_topology(files / setup["topology"])
            source = cgml.read_trajectory(files / setup["trajectory"], top=topology)
        else:
            topology = cgml.read_topology(DATA / name / "topology.pdb")
            with np.load(DATA / name / "tremd.npz") as stored:
                positions, forces = (stored[k][:800, 0] for k in ("positions", "forces"))
            source = cgml.read_trajectory(positions, top=topology, forces=forces)
        dataset = cgml.map_trajectory(source, cgml.MAPPINGS[mapping](topology), temperature=300)
        if quick:
            dataset = dataset.select(slice(None, None, 20))
        train, valid = dataset.split(0.9)
        pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train))
        result = cgml.fit(pmf, train, valid, epochs=1 if quick else 40, progress=False)
        model = Path(folder) / "pmf.pt"
        cgml.save_model(model, result)
        simulation = cgml.Langevin(model, start=dataset, copies=8 if quick else 32, seed=SEED)
        simulation.run(
            Path(folder) / "run.h5", ns=0.001 if quick else 0.02, interval=0.2, progress=False
        )
        return read_beads(Path(folder) / "run.h5")


if __name__ == "__main__":
    main("backmapped_runs", __doc__, run)
