"""Which atoms should be beads? Maps of capped alanine ranked by what they leave open.

A split-flow learns the atoms at given beads, once for every map; its density tells the mapping
entropy h(c | R): the less, the more the beads say about the atoms. All maps here have five beads,
so that the order does not depend on the unit of length. Two estimates bracket it: of frames that
no flow has learned from (the data estimate: entropy plus what the fit misses), and of the flow's
own samples (the model estimate). Each map is trained twice: the second training shows the error
that frames do not. Writes ``ranking.json`` and ``ranking.png``, and the split-flows, which are
not trained again.

    python 16_choosing_a_map.py --output maps
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import openmm_cgml as cgml
from openmm_cgml.entropy import MapEntropy
from openmm_cgml.flow.fiber import Solver

DATA = Path(cgml.__file__).parent / "data" / "quickstart"
#: Which heavy atoms make a bead; several: their centre of mass.
MAPS = {
    "backbone": ["ACE-C", "ALA-N", "ALA-CA", "ALA-C", "NME-N"],
    "rim": ["ACE-CH3", "ACE-O", "ALA-CB", "ALA-O", "NME-C"],
    "residue": ["ALA-N", "ALA-CA", "ALA-CB", "ALA-C", "ALA-O"],
    "one end": ["ACE-CH3", "ACE-C", "ACE-O", "ALA-N", "ALA-CA"],
    "groups": ["ACE-CH3", "ACE-C ACE-O ALA-N", "ALA-CA ALA-CB", "ALA-C ALA-O NME-N", "NME-C"],
}


def main() -> None:
    """Train a split-flow for each map, rank them, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each map")
    parser.add_argument("--frames", type=int, default=100, help="that maps are ranked on")
    parser.add_argument("--quick", action="store_true", help="a small version, not converged")
    options = parser.parse_args()
    quick, folder = options.quick, options.output
    if quick:
        options.epochs, options.frames = 3, 60
    folder.mkdir(parents=True, exist_ok=True)

    trajectory = cgml.read_trajectory(DATA / "trajectory.npz", top=DATA / "topology.pdb")
    heavy = cgml.MAPPINGS["heavy_atom"](trajectory.topology)
    atoms = cgml.map_trajectory(
        trajectory, heavy, temperature=300, constraints=DATA / "system.xml"
    )
    # A split-flow learns from positions; forces would be looked at for nothing.
    atoms = replace(atoms, forces=None).subsample(stride=20 if quick else 5)
    train, rest = atoms.split(0.8)
    valid, test = rest.split(0.5)
    held_out = test.draw(options.frames)  # by weight: the run was biased
    names = {k: v for k, v in MAPS.items() if not quick or k in ("backbone", "one end")}

    rankings = []
    for seed in range(options.seeds):
        flows = {}
        for name, beads in names.items():
            path = folder / f"{name.replace(' ', '_')}_{seed}.flow"
            if not path.exists():
                size = {"layers": 1, "width": 12, "heads": 3} if quick else {}
                flow = cgml.split_flow(train, mapping(train, beads, name), seed=seed, **size)
                result = cgml.fit_flow(
                    flow, train, valid, epochs=options.epochs, batch_size=64,
                    learning_rate=6e-3, ema=0.9 if quick else 0.995, schedule="warmup_cosine",
                    seed=seed,
                )  # fmt: skip
                cgml.save_flow(path, result)
            flows[name] = cgml.load_split_flow(path)
        # Random directions are right on average, which is all that a ranking takes.
        rankings.append(cgml.compare_mappings(
            flows, held_out, density="hutchinson", solver=Solver(steps=6),
            samples=2, seed=seed,
        ))  # fmt: skip
        print(f"training {seed + 1}")
        for one in rankings[-1]:
            print(one.text())

    record = [
        {one.name: {"data": one.data.record(), "model": one.model.record()} for one in ranking}
        for ranking in rankings
    ]
    (folder / "ranking.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(folder / "ranking.png", rankings, [label(train, k) for k in range(len(train.topology))])
    print(folder / "ranking.png")


def label(atoms: cgml.CGDataset, index: int) -> str:
    """Return an atom's name with its residue's."""
    return f"{atoms.topology.residue_names[index]}-{atoms.topology.bead_names[index]}"


def mapping(atoms: cgml.CGDataset, beads: list[str], name: str) -> object:
    """Return a map of heavy atoms to centres of mass; of one atom, the atom."""
    labels = [label(atoms, k) for k in range(len(atoms.topology))]
    groups = [[labels.index(atom) for atom in bead.split()] for bead in beads]
    return cgml.com_mapping(
        atoms.topology.to_mdtraj(atoms=True), groups, names=list("ABCDE")[: len(groups)], name=name
    )


def draw(path: Path, rankings: list[list[MapEntropy]], labels: list[str]) -> None:
    """Draw what makes each map's beads, and both estimates with two standard errors."""
    order = [one.name for one in rankings[0]]
    lowest = rankings[0][0].data.mean[0]
    figure, axes = plt.subplots(1, 2, figsize=(10, 1.4 + 0.55 * len(order)), layout="constrained",
                                sharey=True, width_ratios=[1, 1.4])  # fmt: skip
    colours = plt.get_cmap("cividis")(np.linspace(0, 0.95, 5))
    for row, name in enumerate(order):
        axes[0].plot(range(len(labels)), [row] * len(labels), "o", color="#dddddd", ms=5)
        for bead, atoms in enumerate(MAPS[name]):
            places = [labels.index(atom) for atom in atoms.split()]
            axes[0].plot(places, [row] * len(places), "o-", color=colours[bead], ms=10)
    axes[0].set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].invert_yaxis()
    axes[0].set_title("atoms of each bead", fontsize=10)
    for seed, ranking in enumerate(rankings):
        for one in ranking:
            row = order.index(one.name) + 0.3 * (seed - (len(rankings) - 1) / 2)
            for kind, colour, marker in (
                (one.data, "#0072b2", "o"), (one.model, "#d55e00", "s"),
            ):  # fmt: skip
                mean, error = kind.mean
                axes[1].errorbar(mean - lowest, row, xerr=2 * error, fmt=marker, capsize=3,
                                 color=colour, mfc=colour if seed == 0 else "white")  # fmt: skip
    axes[1].plot([], [], "o", color="#0072b2", label="held-out frames (upper bound)")
    axes[1].plot([], [], "s", color="#d55e00", label="the flow's own samples")
    if len(rankings) > 1:
        axes[1].plot([], [], "o", color="#555555", mfc="white", label="another training")
    axes[1].legend(frameon=False, fontsize=8)
    axes[1].grid(alpha=0.25, axis="x")
    axes[1].set_xlabel("mapping entropy, more than of the first map (nats)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
