"""A protein's heavy atoms at its C-alpha beads: how good, how diverse, and how much is open when?

Takes any all-atom trajectory of a protein at one temperature (DCD, XTC, .npz, ...) and its
topology. A split-flow is trained on the first part; the last fifth is backmapped from its C-alpha
atoms alone and compared: side chains and backbone torsions that the beads do not give, original
against backmapped, and the mapping entropy along the trajectory beside the radius of gyration and
the RMSD from the first frame. With a force field some structures are relaxed and run freely.
Writes ``metrics.json``, ``planes.png``, ``entropy.png`` and the structures; what is there already
is not done again.

    python 13_protein_backmapping.py --trajectory protein.xtc --topology protein.pdb \
        --force-field amber14-all.xml --output protein
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
from openmm_cgml.backmapping import BeadFrames
from openmm_cgml.flow.fiber import Solver
from openmm_cgml.relaxation import relax, survives


def main() -> None:
    """Train, backmap, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectory", type=Path, required=True, help="all atoms, equilibrium")
    parser.add_argument("--topology", type=Path, required=True, help="e.g. a PDB")
    parser.add_argument("--temperature", type=float, default=300.0, help="of it, K")
    parser.add_argument("--force-field", nargs="*", help="files for openmm.app.ForceField")
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--epochs", type=int, default=600)
    parser.add_argument("--per-frame", type=int, default=4, help="structures of a frame")
    parser.add_argument("--quick", action="store_true", help="a small version, not converged")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.per_frame = 1, 2
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)

    topology = cgml.read_topology(options.topology)
    atoms = cgml.map_trajectory(
        cgml.read_trajectory(options.trajectory, top=topology),
        cgml.MAPPINGS["heavy_atom"](topology),
        temperature=options.temperature,
    )
    held_out = np.asarray(atoms.select(slice(len(atoms) * 4 // 5, None)).positions, dtype=float)
    train, valid = atoms.select(slice(0, len(atoms) * 4 // 5)).split(0.9, by="blocks")

    model = folder / "protein.flow"
    if not model.exists():
        size = {"layers": 1, "width": 12, "heads": 3} if options.quick else {}
        flow = cgml.split_flow(train, "calpha", **size)
        result = cgml.fit_flow(
            flow, train, valid, epochs=options.epochs, batch_size=40, learning_rate=5e-3,
            ema=0.998, schedule="warmup_cosine", compile=not options.quick,
        )  # fmt: skip
        cgml.save_flow(model, result)
    flow = cgml.load_split_flow(model)

    frames = BeadFrames(flow.fiber.beads_of(held_out), flow.bead_topology)
    cgml.write_backmapped(folder / "atoms.dcd", flow, frames, options.per_frame)
    made = cgml.backmap(flow, frames, options.per_frame)
    quality = cgml.assess(made, held_out, flow.fiber.matrix)
    print(quality.text())
    summary = quality.record()
    if quality.plane is not None:
        (folder / "planes.png").write_bytes(plot.torsion_planes(quality.plane))

    if options.force_field:
        count = 2 if options.quick else 50
        chosen = np.linspace(0, len(frames) - 1, count).astype(int)
        some = BeadFrames(frames.positions[chosen], frames.topology)
        relaxed = relax(
            cgml.backmap(flow, some), options.force_field, flow.fiber.matrix, constraints="HBonds"
        )
        stable = survives(relaxed, ps=5.0 if options.quick else 10.0)
        summary |= {
            "energy_before": float(np.median(relaxed.before)),
            "energy_after": float(np.median(relaxed.after)), "stable": float(stable.mean()),
        }  # fmt: skip
        print(f"{stable.sum()} of {count} relaxed structures run freely")

    # A third of the default's steps: measured to move S by far less than two samples' errors.
    entropy = cgml.mapping_entropy(
        flow, frames, 2, stride=1, density="hutchinson", seed=1,
        solver=Solver(steps=2 if options.quick else 12),
    )  # fmt: skip
    print(entropy.text())
    summary["entropy"] = entropy.record()
    (folder / "metrics.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(folder / "entropy.png", frames, entropy.per_degree, entropy.errors / flow.removed)


def draw(path: Path, frames: BeadFrames, values: np.ndarray, errors: np.ndarray) -> None:
    """Draw the entropy along the frames, and what the chain does meanwhile."""
    figure, axes = plt.subplots(3, 1, figsize=(8, 6), layout="constrained", sharex=True)
    number = np.arange(len(values))
    axes[0].plot(number, values, color="#0072b2", lw=1)
    axes[0].fill_between(number, values - errors, values + errors, color="#0072b2", alpha=0.25)
    axes[0].set_ylabel("S/k a removed\nDOF (nats; nm)")
    axes[1].plot(number, cgml.radius_of_gyration(frames.positions), color="#d55e00", lw=1)
    axes[1].set_ylabel("radius of\ngyration (nm)")
    axes[2].plot(number, cgml.rmsd(frames.positions, frames.positions[0]), color="#009e73", lw=1)
    axes[2].set(ylabel="RMSD from the\nfirst (nm)", xlabel="held-out frame")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
