"""How long does `cgml reference` take from a PDB file to a dataset, and does a kill cost frames?

One command: 5 ns of metadynamics of capped alanine along phi and psi, HBonds, 2 fs, one core.
The same command is also killed (SIGKILL) while it runs and given again, on a shorter run.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

import torch  # noqa: F401  (before openmm)

import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.files import segments_folder
from openmm_cgml.units import thermal_energy

ISSUE = "maps issue: under 5 minutes on one core; a killed run resumes without a lost frame"
PACKAGE = resources.files(cgml) / "data" / "quickstart"


def command(pdb: Path, output: Path, ns: float, *more: str) -> list[str]:
    """Return the command."""
    return [
        *(sys.executable, "-m", "openmm_cgml.cli", "reference", str(pdb), "-o", str(output)),
        *("--ns", str(ns), "--method", "metadynamics", "--variable", "phi", "--variable", "psi"),
        *("--platform", "Reference", *more),
    ]


def run(quick: bool) -> Outcome:
    """Run, kill, run again."""
    ns = 0.02 if quick else 5.0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with resources.as_file(PACKAGE) as files, tempfile.TemporaryDirectory() as name:
        pdb, output = files / "topology.pdb", Path(name) / "data.h5"
        setup = json.loads((files / "quickstart.json").read_text())
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock = time.perf_counter()
        subprocess.run(command(pdb, output, ns), env=environment, check=True, capture_output=True)
        wall = time.perf_counter() - clock
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        dataset = cgml.read_dataset(output)
        inside = dihedral_angles(dataset.positions, setup["dihedrals"])[:, 0]
        low, high = setup["state"]
        share = float(dataset.probabilities[(inside > low) & (inside < high)].sum())
        free_energy = -thermal_energy(300) * np.log(share / (1 - share)) if share else np.inf
        lost, same = killed(pdb, Path(name), environment, 0.02 if quick else 0.2)
    targets = [
        Target(f"time of {ns:g} ns, from PDB to dataset", "s", 300.0, wall, source=ISSUE),
        Target("the same of CPU time", "s", None, cpu),
        Target("frames", "", None, len(dataset), at_most=False),
        Target("frames lost or repeated by a kill", "", 0.0, lost, source=ISSUE),
        Target("frames that differ from an uninterrupted run", "", 0.0, same, source=ISSUE),
    ]
    details = {"free_energy_of_phi_above_0": free_energy if np.isfinite(free_energy) else None}
    return Outcome(targets, 0, details)


def killed(pdb: Path, folder: Path, environment: dict, ns: float) -> tuple[int, int]:
    """Return how many frames a kill costs, and how many are not those of a run left alone."""
    for name, kill in (("whole.h5", False), ("killed.h5", True)):
        output = folder / name
        arguments = command(pdb, output, ns, "--checkpoint-seconds", "0.5", "--interval", "0.2")
        if kill:
            process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL)  # fmt: skip
            while len(list(segments_folder(output).glob("0*.h5"))) < 3 and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(arguments, env=environment, check=True, capture_output=True)
    whole, other = (cgml.read_dataset(folder / n) for n in ("whole.h5", "killed.h5"))
    lost = abs(len(whole) - len(other)) + abs(len(whole) - round(ns / 0.0002))
    count = min(len(whole), len(other))
    differ = (whole.positions[:count] != other.positions[:count]).any(axis=(1, 2))
    return lost, int(differ.sum())


if __name__ == "__main__":
    main("reference", __doc__, run)
