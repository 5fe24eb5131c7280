"""How do flow, reweighting and taught PMF fare as chains grow?

``examples/10_folding.py`` on C-alpha beads of the proteins of doi:10.1021/acs.jctc.3c00016, ten to
35 residues. CGML_PROTEINS names a folder with ``NAME.h5``, a dataset of each, and with what the
example has written before (``NAME/``), which is not done again; structures are those of CGML_DATA
or ``../shared/data``. The first is made from replica exchange that is there, the others by

    cgml reference 2JOF.pdb -o 2JOF.h5 --ns 0.4 --interval 0.2 --method remd --all-rungs \\
        --temperatures 300,323,348,374,403,434 --mapping calpha --hydrogen-mass 3 \\
        --timestep 0.004
    cgml reference 1FME.pdb -o 1FME.h5 --ns 0.25 --interval 0.1 --method remd --all-rungs \\
        --temperatures 300,318,337,357 --mapping calpha --hydrogen-mass 3 --timestep 0.004
    cgml reference 2F4K.pdb -o 2F4K.h5 --ns 0.06 --interval 0.04 --method remd --all-rungs \\
        --temperatures 300,316.5,334,352 --mapping calpha --hydrogen-mass 3 --timestep 0.004 \\
        --remove-water --replace NLE=MET:CD=SD

Fractions of a nanosecond from the folded structure: how flow and PMF hold what is in the data is
measured, not folding. With ``--quick`` a hairpin with noise.
"""

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch  # before openmm

import mdtraj
import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from benchmarks.data_efficiency import DATA
from openmm_cgml.mbar import mbar

EXAMPLE = Path(__file__).parents[1] / "examples" / "10_folding.py"
PROTEINS = ("CLN025", "2JOF", "1FME", "2F4K")
#: Of the summary: label, unit.
COLUMNS = {
    "effective_frames": ("effective frames of the data", ""),
    "log_likelihood_per_degree": ("held-out log-likelihood a degree of freedom", "nats"),
    "js_distances_flow": ("JS of distances, flow and data", "nats"),
    "clashing": ("clashing samples", ""),
    "effective_samples": ("effective samples after the repulsion", ""),
    "agreement": ("samples effective for the PMF", ""),
    "js_distances_PMF": ("JS of distances, PMF and data", "nats"),
    "RMSD_data": ("RMSD, data", "nm"),
    "RMSD_flow": ("RMSD, flow", "nm"),
    "RMSD_PMF": ("RMSD, PMF", "nm"),
    "folded_data": ("folded, data", ""),
    "folded_flow": ("folded, flow", ""),
    "folded_PMF": ("folded, PMF", ""),
    "Q_data": ("native contacts, data", ""),
    "Q_flow": ("native contacts, flow", ""),
    "Q_PMF": ("native contacts, PMF", ""),
}


def run(quick: bool) -> Outcome:
    """Run the example for each protein."""
    torch.set_num_threads(1)
    details: dict[str, Any] = {}
    targets = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if quick else Path(os.environ.get("CGML_PROTEINS", temporary))
        if quick:
            hairpin(folder)
        elif not (folder / "CLN025.h5").exists():
            replica_exchange(folder / "CLN025.h5")
        for name in ("hairpin",) if quick else PROTEINS:
            dataset = folder / f"{name}.h5"
            if not dataset.exists():
                continue
            native = (folder if quick else DATA / "structures") / f"{name}.pdb"
            details[name] = recipe(dataset, native, folder / name, quick)
            residues = details[name]["residues"]
            targets += [
                Target(f"{name}, {residues} residues: {label}", unit, None, details[name][key])
                for key, (label, unit) in COLUMNS.items()
            ]
            first = details[name]["folded_PMF_by_round"][0]
            label = f"{name}, {residues} residues: folded, PMF that saw only the flow's samples"
            targets.append(Target(label, "", None, first))
    return Outcome(targets, 0, details)


def recipe(dataset: Path, native: Path, output: Path, quick: bool) -> dict[str, Any]:
    """Run the example as from the command line, and return its summary."""
    before = sys.argv
    length = ["--quick"] if quick else ["--ps", "60", "--samples", "30000"]
    files = ["--input", str(dataset), "--native", str(native), "--output", str(output)]
    sys.argv = [EXAMPLE.name, *files, *length]
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        sys.argv = before
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary


def replica_exchange(path: Path) -> None:
    """Write all rungs of the first protein with their MBAR weights at the lowest one."""
    with np.load(DATA / "chignolin" / "tremd.npz") as stored:
        positions = stored["positions"].astype(float)
        energies = stored["energies"].astype(float)
        kelvin = stored["temperatures"].astype(float)
    frames, rungs = energies.shape
    found = mbar(energies.ravel(), np.tile(np.arange(rungs), frames), kelvin)
    weights = found.weights / found.weights.mean()
    topology = cgml.read_topology(DATA / "chignolin" / "topology.pdb")
    flat = positions.reshape(frames * rungs, *positions.shape[2:])
    dataset = cgml.map_trajectory(
        cgml.read_trajectory(flat, top=topology, weights=weights),
        cgml.MAPPINGS["calpha"](topology), temperature=float(kelvin[0]),
    )  # fmt: skip
    kept = weights > 1e-3  # the rest is too hot to matter
    cgml.CGDataset(
        dataset.positions[kept], dataset.topology, dataset.temperature, weights=weights[kept]
    ).save(path)


def hairpin(folder: Path) -> None:
    """Write eight beads in two strands, with noise, and their structure."""
    along = 0.38 * np.minimum(np.arange(8), np.arange(8)[::-1])
    native = np.stack([along, 0.5 * (np.arange(8) > 3), 0.1 * (np.arange(8) % 2)], axis=1)
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for number in range(8):
        residue = topology.add_residue("GLY", chain, number + 1)
        topology.add_atom("CA", mdtraj.element.carbon, residue)
    mdtraj.Trajectory(native, topology).save_pdb(str(folder / "hairpin.pdb"))
    noise = 0.02 * np.random.default_rng(0).normal(size=(400, 8, 3))
    beads = cgml.CGTopology(
        ("CA",) * 8, ("G",) * 8, ("GLY",) * 8, tuple(range(8)), ("A",) * 8,
        tuple((i, i + 1) for i in range(7)), (57.0,) * 8,
    )  # fmt: skip
    cgml.CGDataset(native + noise, beads, 300.0).save(folder / "hairpin.h5")


if __name__ == "__main__":
    main("flow_proteins", __doc__, run)
