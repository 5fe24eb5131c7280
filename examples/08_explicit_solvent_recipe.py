"""100 ns and more of molecules in explicit water, on one GPU, into datasets of the solute.

The water is averaged out: of each frame only the solute's beads are kept, whole and without a box,
with the forces that the water exerts on them. Both recipes go on where they stopped when the
script is started again, so a queue with a time limit (--seconds) does no harm.

    python 08_explicit_solvent_recipe.py --output ala2 --ns 120
    python 08_explicit_solvent_recipe.py --output ala3 --residues 3 --method unbiased --seeds 5

The first is capped alanine, one metadynamics run along phi and psi; the second capped tri-alanine,
five unbiased runs, which `cgml data` can join. Chains are built from the package's residue; --pdb
takes any other solute. The picture shows where each run went, and what it has found so far.
"""

import argparse
import json
import logging
from importlib import resources
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import openmm
from openmm import app

import openmm_cgml as cgml

#: The System: amber14SB in TIP3P, 150 mM salt would be ionic_strength=0.15.
WATER = {
    "forcefield": ("amber14-all.xml", "amber14/tip3p.xml"),
    "solvent": "tip3p",
    "padding": 1.0,
    "shape": "dodecahedron",
    "constraints": "hbonds",
    "hydrogen_mass": 3.0,
}
SETTINGS = {
    "temperature": 300.0,
    "timestep": 0.004,
    "friction": 1.0,
    "interval": 2.0,
    "mapping": "backbone",
    "force_map": "rotation",
    "equilibrate": 200.0,
    "npt": 500.0,
    "calibrate": 2000,
}
QUICK_WATER = {"padding": 0.68, "shape": "cube"}
QUICK = {"interval": 0.04, "force_map": "basic", "equilibrate": 0.04, "npt": 0.2}


def main() -> None:
    """Run what is asked for; print one line a dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the datasets")
    parser.add_argument("--residues", type=int, default=1, help="alanines between the caps")
    parser.add_argument("--pdb", type=Path, help="another solute")
    parser.add_argument("--method", choices=("metadynamics", "unbiased"), default="metadynamics")
    parser.add_argument("--ns", type=float, default=100.0, help="of each run")
    parser.add_argument("--seeds", type=int, default=1, help="independent runs")
    parser.add_argument("--platform", default=None, help="CUDA, OpenCL, ...; None: the fastest")
    parser.add_argument("--seconds", type=float, help="stop after so long, to go on later")
    parser.add_argument("--quick", action="store_true", help="a small version, on the CPU")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    water, settings, ns = dict(WATER), dict(SETTINGS), options.ns
    platform = options.platform
    if options.quick:
        water, settings, ns, platform = water | QUICK_WATER, settings | QUICK, 0.0002, "CPU"
    middle = 2 + (options.residues - 1) // 2
    chosen = ("phi", "psi") if options.pdb else (f"phi:{middle}", f"psi:{middle}")
    bias: dict = {"method": options.method, "variables": chosen}  # unbiased: only recorded
    if options.method == "metadynamics":
        # Hills are 1 kJ/mol every 2 ps: slower than without water, whose relaxation they outrun.
        bias |= {"bias_factor": 6.0, "deposit": 0.08 if options.quick else 2.0}

    solute = options.pdb or write_chain(options.output / "solute.pdb", options.residues)
    finished = []
    for seed in range(options.seeds):
        run = cgml.run_reference(
            solute,
            options.output / f"{options.method}_{seed}.h5",
            ns=ns,
            seed=seed,
            platform=platform,
            seconds=options.seconds,
            **settings,
            **bias,
            **water,
        )
        print(f"{run.output}: {run.frames} of {run.total} frames, {run.ns_per_day:.1f} ns/day")
        finished.append(run.finished)
        if run.finished:
            describe(run)
            draw(Path(run.output).with_suffix(".png"), run.dataset())
    if not all(finished):
        print("start the same command again to go on")


def write_chain(path: Path, residues: int) -> Path:
    """Write an extended chain of so many residues between caps, from the package's one of one.

    The motion that carries a residue's peptide bond (C, N, CA) onto the next one's is applied
    again and again; minimisation does the rest.
    """
    with resources.as_file(resources.files(cgml) / "data" / "quickstart") as data:
        one = app.PDBFile(str(data / "topology.pdb"))
    points = np.array(one.positions.value_in_unit(openmm.unit.nanometer))
    first, middle, last = one.topology.residues()
    atom = {(r.index, a.name): a.index for r in (first, middle, last) for a in r.atoms()}
    here = points[[atom[0, "C"], atom[1, "N"], atom[1, "CA"]]]
    there = points[[atom[1, "C"], atom[2, "N"], atom[2, "C"]]]
    u, _, v = np.linalg.svd((here - here.mean(0)).T @ (there - there.mean(0)))
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v

    top, positions = app.Topology(), []
    chain = top.addChain("A")
    moves = [(first, 0), *((middle, k) for k in range(residues)), (last, residues - 1)]
    for residue, times in moves:
        copy = top.addResidue(residue.name, chain)
        part = points[[a.index for a in residue.atoms()]]
        for _ in range(times):
            part = (part - here.mean(0)) @ rotation + there.mean(0)
        positions.extend(part)
        for a in residue.atoms():
            top.addAtom(a.name, a.element, copy)
    top.createStandardBonds()
    with open(path, "w", encoding="utf-8") as handle:
        app.PDBFile.writeFile(top, np.array(positions) * openmm.unit.nanometer, handle)
    return path


def describe(run) -> None:
    """Say what the solute is, and how much the frames are worth."""
    dataset = run.dataset()
    about = dataset.mapping["reference"]
    box = np.array(about["box_nm"])
    record = {
        "beads": len(dataset.topology),
        "solute_atoms": about["solute_atoms"],
        "atoms": about["atoms"],
        "box_volume_nm3": round(float(np.linalg.det(box)), 2),
        "effective_samples": round(run.effective_samples, 1),
    }
    print(json.dumps(record))


def draw(path: Path, dataset: cgml.CGDataset) -> None:
    """Draw the run's way over both variables, and the free energy along the first."""
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.6), layout="constrained")
    points = np.degrees(dataset.variables)
    share = np.linspace(0, 100, len(points))
    image = axes[0].scatter(*points.T, 6, share, cmap="cividis")
    figure.colorbar(image, ax=axes[0], label="time (% of the run)")
    names = [f"{name} (degrees)" for name in dataset.variable_names]
    axes[0].set(xlabel=names[0], ylabel=names[1], xlim=(-180, 180), ylim=(-180, 180))
    axes[0].set(xticks=range(-180, 181, 90), yticks=range(-180, 181, 90), aspect="equal")
    found = cgml.free_energy_surface(
        dataset.variables[:, 0], temperature=dataset.temperature, weights=dataset.weights,
        bins=[np.linspace(-np.pi, np.pi, 31)], blocks=min(10, len(dataset)),
    )  # fmt: skip
    x, y, e = np.degrees(found.centres[0]), found.values, np.nan_to_num(found.errors)
    axes[1].plot(x, y, "o-", ms=3, color="#0072b2")
    axes[1].fill_between(x, y - 2 * e, y + 2 * e, color="#0072b2", alpha=0.25, lw=0)
    axes[1].set(xlabel=names[0], ylabel="free energy (kJ/mol)", xticks=range(-180, 181, 90))
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
