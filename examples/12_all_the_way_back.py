"""From atoms to beads, a coarse-grained simulation, and all the way back to atoms that run.

Capped alanine, the package's frames. A PMF of five beads is trained and run by the engine; a
split-flow learns the heavy atoms at given beads; every frame of the run gets atomistic structures,
whose beads are the run's to round-off. Hydrogens, relaxation with the beads held, and a free
all-atom simulation of each follow. Writes the structures, the System, and a picture: torsions that
the beads do not give, original against backmapped, and the mapping entropy along psi.

    python 12_all_the_way_back.py --output back
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import openmm_cgml as cgml
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.backmapping import BeadFrames, read_beads
from openmm_cgml.entropy import MappingEntropy
from openmm_cgml.relaxation import relax, survives

DATA = Path(cgml.__file__).parent / "data" / "quickstart"
FORCE_FIELD = ["amber99sb.xml", "amber99_obc.xml"]


def main() -> None:
    """Train, simulate, backmap, relax, simulate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--quick", action="store_true", help="a small version, not converged")
    options = parser.parse_args()
    quick, folder = options.quick, options.output
    folder.mkdir(parents=True, exist_ok=True)

    trajectory = cgml.read_trajectory(DATA / "trajectory.npz", top=DATA / "topology.pdb")
    beads = cgml.map_trajectory(
        trajectory, cgml.MAPPINGS["backbone"](trajectory.topology), temperature=300,
        constraints=DATA / "system.xml",
    )  # fmt: skip
    atoms = cgml.map_trajectory(
        trajectory, cgml.MAPPINGS["heavy_atom"](trajectory.topology), temperature=300,
        constraints=DATA / "system.xml",
    )  # fmt: skip
    atoms = replace(atoms, forces=None)  # a split-flow learns from positions
    stride = 10 if quick else 2
    beads, atoms = beads.select(slice(None, None, stride)), atoms.select(slice(None, None, stride))

    # 1. A coarse-grained simulation.
    run_file = folder / "cg.h5"
    if not run_file.exists():
        train, valid = beads.split(0.9)
        pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train))
        result = cgml.fit(pmf, train, valid, epochs=1 if quick else 40)
        cgml.save_model(folder / "pmf.pt", result)
        simulation = cgml.Langevin(folder / "pmf.pt", start=beads, copies=16 if quick else 64)
        simulation.run(run_file, ns=0.001 if quick else 0.02, interval=0.2)

    # 2. The atoms at given beads.
    train, valid = atoms.split(0.9)
    flow_file = folder / "atoms.flow"
    if not flow_file.exists():
        size = {"layers": 1, "width": 12, "heads": 3} if quick else {}
        flow = cgml.split_flow(train, "backbone", **size)
        result = cgml.fit_flow(
            flow, train, valid, epochs=1 if quick else 20, batch_size=64, learning_rate=6e-3,
            ema=0.995, schedule="warmup_cosine",
        )  # fmt: skip
        cgml.save_flow(flow_file, result)
    flow = cgml.load_split_flow(flow_file)

    # 3. How good is it? Held-out frames, against themselves.
    held_out = np.asarray(valid.positions, dtype=float)
    known = BeadFrames(flow.fiber.beads_of(held_out), flow.bead_topology)
    quality = cgml.assess(cgml.backmap(flow, known, n=2), held_out, flow.fiber.matrix)
    print(quality.text())

    # 4. Every frame of the run gets atoms; `cgml backmap` does the same.
    every = read_beads(run_file, stride=1 if quick else 25)
    written = cgml.write_backmapped(folder / "atoms.dcd", flow_file, every, n=1)
    print(f"{written.structures} structures in {written.trajectory}")

    # 5. Hydrogens by rule, beads held, then free.
    count = 4 if quick else 100
    spread = np.linspace(0, len(every) - 1, count).astype(int)
    some = BeadFrames(every.positions[spread], every.topology)
    relaxed = relax(
        cgml.backmap(flow, some), FORCE_FIELD, flow.fiber.matrix, platform="Reference",
        constraints="HBonds",
    )  # fmt: skip
    stable = survives(relaxed, ps=5.0 if quick else 10.0, platform="Reference")
    print(
        f"relaxed from {np.median(relaxed.before):.0f} to {np.median(relaxed.after):.0f} kJ/mol, "
        f"beads within {relaxed.bead_error:.1e} nm; {stable.sum()} of {count} run freely"
    )

    # 6. What the beads leave open, along the run.
    entropy = cgml.mapping_entropy(flow, every, 2 if quick else 4, stride=1, density="hutchinson")
    print(entropy.text())
    draw(folder / "back.png", quality.plane, every, entropy)


def draw(path: Path, plane: object, every: BeadFrames, entropy: MappingEntropy) -> None:
    """Draw both samples on the plane of torsions, and the entropy along psi."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, counts, title in (
        (axes[0], plane.reference, "held-out frames"), (axes[1], plane.made, "backmapped"),
    ):  # fmt: skip
        with np.errstate(divide="ignore"):
            values = -np.log(counts / counts.sum())
        values = np.where(np.isfinite(values), values - values.min(), np.nan)
        image = axis.pcolormesh(*plane.edges, values.T, vmin=0, vmax=6, cmap="viridis")
        axis.set(title=title, xlabel="torsions without beads, first component")
        axis.set(ylabel="second component", facecolor="#efefef")
    figure.colorbar(image, ax=axes[1], label="free energy (kT)")
    psi = dihedral_angles(every.positions, [[1, 2, 3, 4]])[:, 0]
    values = entropy.per_degree - entropy.per_degree.mean()
    edges = np.linspace(-np.pi, np.pi, 19)
    middle, mean, error = [], [], []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        own = values[(psi >= low) & (psi < high)]
        if len(own) >= 4:
            middle.append(np.degrees((low + high) / 2))
            mean.append(own.mean())
            error.append(own.std(ddof=1) / len(own) ** 0.5)
    axes[2].plot(np.degrees(psi), values, ".", ms=2, color="#b0b0b0", label="frames")
    axes[2].errorbar(middle, mean, 2 * np.array(error), color="#0072b2", lw=1.5, label="mean")
    axes[2].set(xlabel="ψ of the beads (degrees)", title="mapping entropy along the run")
    axes[2].set_ylabel("S/k a removed degree of\nfreedom, less its mean (nats)")
    axes[2].legend(frameon=False)
    axes[2].set(xlim=(-180, 180), xticks=[-180, -90, 0, 90, 180])
    if len(mean) > 1:
        wide = 4 * np.ptp(mean) + 1e-3
        axes[2].set_ylim(np.mean(mean) - wide, np.mean(mean) + wide)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
