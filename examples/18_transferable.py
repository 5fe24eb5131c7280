"""One model of several molecules, tried on molecules that it has not seen.

Capped chains of alanine (A) and glycine (G) are made and run with all atoms, in implicit solvent
and at 400 K, where short runs go everywhere. One PaiNN, which knows beads by their types, learns
the forces of some of them; each is then run with it, and so are chains that it was not trained on.
Beside it stand the prior alone, which is transferable too, and a model that was trained on the
very chain. Writes the datasets, the models, the runs and ``transferable.png``; what is there
already is not made again.

    python 18_transferable.py --output transferable
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import openmm
from openmm import app

import openmm_cgml as cgml
from openmm_cgml.analysis import Comparison, free_energy

TEMPERATURE = 400.0  # K
LEARNED = ("A", "G", "AA", "AG")
COLOURS = {"prior alone": "#999999", "one model for all": "#0072b2", "own model": "#d55e00"}
MARKERS = {"prior alone": "s", "one model for all": "o", "own model": "^"}
DATA = Path(cgml.__file__).parent / "data" / "quickstart"


def main() -> None:
    """Make data, train one model, run it for every chain, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--ns", type=float, default=4.0, help="of all atoms, of each chain")
    parser.add_argument("--new", nargs="+", default=["GA"], help="chains it is not trained on")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="a small version, not converged")
    options = parser.parse_args()
    quick, folder = options.quick, options.output
    folder.mkdir(parents=True, exist_ok=True)
    learned, new = ("A", "AG") if quick else LEARNED, options.new

    # 1. All-atom data.
    data = {chain: all_atom(folder, chain, options) for chain in (*learned, *new)}
    train, valid = cgml.DatasetCollection({name: data[name] for name in learned}).split(0.9)
    print("beads of each type:", train.bead_types())

    # 2. One model. Its prior goes by type as well.
    shared = folder / "shared.pt"
    prior = cgml.fit_prior_table(train)
    if not shared.exists():
        fit(shared, prior, train, valid, options)

    # 3. Run it for every chain, from one frame.
    comparisons: dict[str, dict[str, list[Comparison]]] = {}
    for chain, reference in data.items():
        topology = reference.topology
        models = {"one model for all": cgml.load_model(shared, topology)}
        if chain in new:  # what else there is for it
            own, alone = folder / f"own_{chain}.pt", folder / f"prior_{chain}.pt"
            cgml.save_model(alone, prior.to_pmf(topology), reference)
            if not own.exists():
                parts = reference.split(0.9)
                fit(own, cgml.fit_prior_table(parts[0]), *parts, options)
            models |= {"prior alone": cgml.load_model(alone), "own model": cgml.load_model(own)}
        for name, model in models.items():
            run_file = folder / f"{chain}_{name.split()[0]}.h5"
            if not run_file.exists():
                copies = cgml.Langevin(
                    model, reference.positions[0], copies=16 if quick else 64, timestep=0.004,
                    friction=5.0,
                )  # fmt: skip
                interval = 0.1 if quick else 0.2
                copies.run(run_file, ns=0.002 if quick else 0.02, interval=interval)
            run = cgml.read_run(run_file)
            comparisons.setdefault(chain, {})[name] = [
                cgml.compare(run, reference, torsions, temperature=TEMPERATURE,
                             discard_ps=0.2 if quick else 5.0)
                for torsions in phi_psi(topology)
            ]  # fmt: skip

    record = {}
    for chain, models in comparisons.items():
        for name, several in models.items():
            mean, error = js(several)
            record[f"{chain}, {name}"] = {"js_excess": mean, "error": error}
            print(f"{chain:<4} {name:<18} JS* a residue {mean:.4f} ± {error:.4f} nats")
    (folder / "summary.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(folder / "transferable.png", comparisons, learned)


def all_atom(folder: Path, chain: str, options: argparse.Namespace) -> cgml.CGDataset:
    """Return frames of N, CA, CB, C with forces, from a run that is made if it is not there."""
    pdb, path = folder / f"{chain}.pdb", folder / f"{chain}.h5"
    if not path.exists():
        write_chain(pdb, chain)
        cgml.run_reference(
            pdb,
            path,
            ns=0.01 if options.quick else options.ns,
            temperature=TEMPERATURE,
            mapping="core_beta",
            force_map="basic" if options.quick else "rotation",
            interval=0.1 if options.quick else 1.0,
            hydrogen_mass=3.0,
            timestep=0.004,
            equilibrate=1 if options.quick else 20,
        )
    return cgml.read_dataset(path)


def fit(path: Path, prior: cgml.PriorTable, train, valid, options: argparse.Namespace) -> None:
    """Train a PaiNN on what forces the prior leaves, of one chain or several."""
    one = next(iter(train.datasets.values())) if hasattr(train, "datasets") else train
    small = {"width": 16, "depth": 1} if options.quick else {"width": 48}
    pmf = cgml.SumPMF(prior.to_pmf(one.topology), cgml.PMFS["painn"](train, **small))
    result = cgml.fit(
        pmf, train, valid, epochs=2 if options.quick else options.epochs, batch_size=128,
        learning_rate=2e-3,
    )  # fmt: skip
    cgml.save_model(path, result)


def phi_psi(topology: cgml.CGTopology) -> list[list[list[int]]]:
    """Return the four beads of phi and of psi of every residue."""
    chain = [k for k, kind in enumerate(topology.bead_types) if not kind.endswith("-CB")]
    return [[chain[k : k + 4], chain[k + 1 : k + 5]] for k in range(0, len(chain) - 4, 3)]


def js(several: list[Comparison]) -> tuple[float, float]:
    """Return the mean JS* over residues, and its error with the reference's own noise."""
    errors = [np.hypot(one.js_excess_error, one.js_reference_error) for one in several]
    mean = float(np.mean([one.js_excess for one in several]))
    return mean, float(np.linalg.norm(errors) / len(several))


def write_chain(path: Path, letters: str) -> None:
    """Write a capped chain of A and G, from the package's capped alanine.

    The motion that carries a residue's peptide bond (C, N, CA) onto the next one's is applied
    again and again. Glycine has a hydrogen where alanine has its C-beta.
    """
    one = app.PDBFile(str(DATA / "topology.pdb"))
    points = np.array(one.positions.value_in_unit(openmm.unit.nanometer))
    first, middle, last = one.topology.residues()
    place = {(r.index, a.name): points[a.index] for r in (first, middle, last) for a in r.atoms()}
    here = np.array([place[0, "C"], place[1, "N"], place[1, "CA"]])
    there = np.array([place[1, "C"], place[2, "N"], place[2, "C"]])
    u, _, v = np.linalg.svd((here - here.mean(0)).T @ (there - there.mean(0)))
    rotation = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    alanine = [(a.name, a.element, place[1, a.name]) for a in middle.atoms()]
    bond = place[1, "CB"] - place[1, "CA"]
    hydrogen = place[1, "CA"] + 0.109 * bond / np.linalg.norm(bond)
    kept = {"HA": "HA2"} | {name: name for name in ("N", "H", "CA", "C", "O")}
    glycine = [(kept[name], element, xyz) for name, element, xyz in alanine if name in kept]
    glycine.append(("HA3", app.element.hydrogen, hydrogen))
    caps = [[(a.name, a.element, points[a.index]) for a in r.atoms()] for r in (first, last)]
    residues = {"A": ("ALA", alanine), "G": ("GLY", glycine)}

    top, positions = app.Topology(), []
    chain = top.addChain("A")
    parts = [("ACE", caps[0], 0), *((*residues[x], k) for k, x in enumerate(letters)),
             ("NME", caps[1], len(letters) - 1)]  # fmt: skip
    for name, atoms, times in parts:
        residue = top.addResidue(name, chain)
        for atom, element, xyz in atoms:
            for _ in range(times):
                xyz = (xyz - here.mean(0)) @ rotation + there.mean(0)
            top.addAtom(atom, element, residue)
            positions.append(xyz)
    top.createStandardBonds()
    with open(path, "w", encoding="utf-8") as handle:
        app.PDBFile.writeFile(top, np.array(positions) * openmm.unit.nanometer, handle)


def draw(path: Path, comparisons: dict, learned: tuple[str, ...]) -> None:
    """Draw the last chain's residues, all atoms above the model, and JS* of all."""
    chain, models = list(comparisons.items())[-1]
    residues = models["one model for all"]
    figure = plt.figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[len(residues) + 0.4, 2.2])
    axes = left.subplots(2, len(residues), sharex=True, sharey=True, squeeze=False)
    edges = np.degrees(residues[0].reference.edges)
    for number, one in enumerate(residues):
        for row, sample in enumerate((one.reference, one.model)):
            values = free_energy(sample.probability, one.kt)
            image = axes[row, number].pcolormesh(edges, edges, values.T, vmin=0, vmax=20)
            axes[row, number].set(aspect="equal", facecolor="#efefef")
            axes[row, number].set(xticks=[-180, 0, 180], yticks=[-180, 0, 180])
        axes[0, number].set_title(f"{chain}, residue {number + 1}", fontsize=10)
        axes[1, number].set_xlabel("φ (degrees)")
    axes[0, 0].set_ylabel("all atoms\nψ (degrees)")
    axes[1, 0].set_ylabel("one model for all\nψ (degrees)")
    left.colorbar(image, ax=axes, label="free energy (kJ/mol)", shrink=0.7)
    axis = right.subplots()
    for place, models in enumerate(comparisons.values()):
        for name, several in models.items():
            mean, error = js(several)
            shift = list(COLOURS).index(name) * 0.15 - 0.15
            axis.errorbar(place + shift, mean, 2 * error, fmt=MARKERS[name], capsize=3,
                          color=COLOURS[name], label=name)  # fmt: skip
    handles, labels = axis.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    axis.legend(named.values(), named.keys(), frameon=False)
    names = [f"{name}\n{'learned' if name in learned else 'new'}" for name in comparisons]
    axis.set_xticks(range(len(names)), names)
    axis.axhline(0, color="#999999", lw=0.8)
    axis.set(ylabel="JS* a residue (nats)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
