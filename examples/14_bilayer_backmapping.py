"""A lipid bilayer's heavy atoms at Martini-like beads, in its periodic box.

Takes an all-atom trajectory of many molecules of one kind, with its box. Every molecule is a frame
of its own; a split-flow learns three quarters of them, whose atoms share what they learn by their
chemical surroundings, and is tested on molecules that it has not seen. Then whole frames of the
bilayer are backmapped, molecule by molecule, each with some candidates of which one is taken that
does not clash with its neighbours. Writes ``metrics.json``, ``planes.png``, ``tails.png`` and
``bilayer.dcd``; what is there already is not done again.

    python 14_bilayer_backmapping.py --trajectory bilayer.dcd --topology lipids.pdb \
        --temperature 310 --output bilayer
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import openmm_cgml as cgml
from openmm_cgml import plot
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.backmapping import BeadFrames, repeated
from openmm_cgml.quality import clashing
from openmm_cgml.topology import bonded_beads, bonded_torsions


def main() -> None:
    """Train, test, backmap the bilayer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectory", type=Path, required=True, help="all atoms, with the box")
    parser.add_argument("--topology", type=Path, required=True, help="e.g. a PDB")
    parser.add_argument("--temperature", type=float, default=310.0, help="of it, K")
    parser.add_argument("--mapping", default="martini", help="to beads")
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="a small version, not converged")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.candidates = 1, 2
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)

    topology = cgml.read_topology(options.topology)
    trajectory = cgml.read_trajectory(options.trajectory, top=topology)
    heavy = cgml.MAPPINGS["heavy_atom"](topology)
    bilayer = cgml.map_trajectory(trajectory, heavy, temperature=options.temperature)
    molecules = cgml.single_molecules(bilayer)
    number = molecules.trajectory
    many = int(number.max()) + 1
    train = molecules.select(number < many * 3 // 4)
    valid = molecules.select((number >= many * 3 // 4) & (number < many * 13 // 16))
    unseen = np.asarray(molecules.select(number >= many * 13 // 16).positions, dtype=float)

    model = folder / "molecule.flow"
    if not model.exists():
        size = {"layers": 1, "width": 12, "heads": 3} if options.quick else {}
        flow = cgml.split_flow(train, options.mapping, kinds="graph", **size)
        result = cgml.fit_flow(
            flow, train, valid, epochs=options.epochs, batch_size=64, learning_rate=4e-3,
            ema=0.998, schedule="warmup_cosine", compile=not options.quick,
        )  # fmt: skip
        cgml.save_flow(model, result)
    flow = cgml.load_split_flow(model)

    # Molecules that were not trained on.
    frames = BeadFrames(flow.fiber.beads_of(unseen), flow.bead_topology)
    made = cgml.backmap(flow, frames, 2)
    quality = cgml.assess(made, unseen, flow.fiber.matrix)
    print(quality.text())
    if quality.plane is not None:
        (folder / "planes.png").write_bytes(plot.torsion_planes(quality.plane))
    draw(folder / "tails.png", unseen, made.positions, flow.topology)

    # Whole frames in the box. Beads are of the heavy atoms, as the split-flow's: centres of mass
    # of all atoms are up to 0.01 nm away, and would be other beads.
    step = max(1, len(bilayer) // (2 if options.quick else 10))
    places = np.asarray(molecules.positions, dtype=float).reshape(many, len(bilayer), -1, 3)
    places = flow.fiber.beads_of(places[:, ::step].swapaxes(0, 1).reshape(-1, *places.shape[2:]))
    beads = BeadFrames(
        places.reshape(-1, many * len(flow.bead_topology), 3),
        repeated(flow.bead_topology, many),
        np.asarray(bilayer.box[::step], dtype=float),
    )
    shares = {}
    for candidates in (1, options.candidates):
        boxed = cgml.backmap(flow, beads, candidates=candidates)
        shares[candidates] = clashing(boxed.positions, boxed.topology, boxed.box)
        print(f"{candidates} candidates: {shares[candidates]:.2%} of the molecules clash")
    cgml.write_backmapped(folder / "bilayer.dcd", flow, beads, candidates=options.candidates)
    summary = quality.record() | {"clashes_by_candidates": shares}
    (folder / "metrics.json").write_text(json.dumps(summary, indent=1) + "\n")


def draw(path: Path, original: np.ndarray, made: np.ndarray, topology: cgml.CGTopology) -> None:
    """Draw the distribution of torsions along the longest carbon chains, and of lengths."""
    around = bonded_beads(topology.bonds)
    carbon = [round(m) == 12 and len(around.get(k, ())) <= 2
              for k, m in enumerate(topology.masses)]  # fmt: skip
    torsions = [t for t in bonded_torsions(topology.bonds) if all(carbon[a] for a in t)]
    torsions = torsions or bonded_torsions(topology.bonds)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for positions, colour, name in (
        (original, "#222222", "original"), (made, "#d55e00", "backmapped"),
    ):  # fmt: skip
        angles = np.degrees(dihedral_angles(positions, torsions)).ravel() % 360
        axes[0].hist(
            angles, 72, range=(0, 360), density=True, histtype="step", color=colour, label=name
        )
        first, second = np.array(topology.bonds).T
        lengths = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1).ravel()
        axes[1].hist(lengths, 80, range=(0.1, 0.2), density=True, histtype="step", color=colour)
    axes[0].set(xlabel="torsions of the tails (degrees)", ylabel="density", xlim=(0, 360))
    axes[0].legend(frameon=False)
    axes[1].set(xlabel="all bonds (nm)", ylabel="density (1/nm)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
