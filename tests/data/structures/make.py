"""Make the test structures of this folder: ``python make.py RAW`` (see README.md).

RAW is a folder with the raw inputs: 2F4K.pdb and 5AWL.pdb of the Protein Data Bank, and
dmpc.pdb, a bilayer with CHARMM's atom names. PeptideBuilder (PyPI) is needed as well.
"""

import io
import sys
from collections.abc import Iterable
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import PeptideBuilder
from Bio.PDB import PDBIO
from openmm import app, unit

HERE = Path(__file__).resolve().parent
# Human insulin, chains A and B, and its three disulfides as (chain, residue) pairs.
INSULIN = ("GIVEQCCTSICSLYQLENYCN", "FVNQHLCGSHLVEALYLVCGERGFFYTPKT")
DISULFIDES = [((0, 6), (0, 11)), ((0, 7), (1, 7)), ((0, 20), (1, 19))]


def write(name: str, top: app.Topology, positions: np.ndarray, remark: str) -> None:
    """Write a PDB; OpenMM adds CONECT records for what is no standard residue."""
    with open(HERE / f"{name}.pdb", "w") as handle:
        handle.write(f"REMARK   1 {remark}\n")
        app.PDBFile.writeModel(top, positions * unit.nanometer, handle, keepIds=True)
        app.PDBFile.writeFooter(top, handle)


def extended(sequence: str, chain: str, shift: float) -> app.Modeller:
    """Build an extended chain of heavy atoms with OXT."""
    structure = PeptideBuilder.make_structure(
        sequence, [-120.0] * (len(sequence) - 1), [130.0] * (len(sequence) - 1)
    )
    PeptideBuilder.add_terminal_OXT(structure)
    writer, text = PDBIO(), io.StringIO()
    writer.set_structure(structure)
    writer.save(text)
    text.seek(0)
    file = app.PDBFile(text)
    (only,) = file.topology.chains()
    only.id = chain
    positions = np.array(file.positions.value_in_unit(unit.nanometer))
    positions += np.array([0.0, 0.0, shift]) - positions.mean(0)
    return app.Modeller(file.topology, positions * unit.nanometer)


def relaxed(modeller: app.Modeller, steps: int) -> np.ndarray:
    """Minimise, and bend the chains until the disulfides close; no native fold comes of it."""
    system = app.ForceField("amber14-all.xml").createSystem(
        modeller.topology, nonbondedMethod=app.CutoffNonPeriodic
    )
    (bonds,) = [f for f in system.getForces() if isinstance(f, openmm.HarmonicBondForce)]
    atoms = list(modeller.topology.atoms())
    bridges = [
        (k, bonds.getBondParameters(k))
        for k in range(bonds.getNumBonds())
        if all(atoms[i].name == "SG" for i in bonds.getBondParameters(k)[:2])
    ]
    integrator = openmm.LangevinMiddleIntegrator(300, 20, 0.001)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(modeller.topology, system, integrator)
    # Sulphurs begin far apart: a full bond between them would tear the chains.
    for stiffness in (0, 100, 1000, 10000, None) if bridges else (None,):
        for k, (i, j, length, full) in bridges:
            bonds.setBondParameters(k, i, j, length, full if stiffness is None else stiffness)
        bonds.updateParametersInContext(simulation.context)
        if stiffness == 0 or not bridges:
            simulation.context.setPositions(modeller.positions)
        simulation.minimizeEnergy(maxIterations=200)
        simulation.context.setVelocitiesToTemperature(300, 1)
        simulation.step(steps)
    simulation.minimizeEnergy(maxIterations=500)
    state = simulation.context.getState(getPositions=True)
    return state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)


def protein(name: str, sequences: Iterable[str], disulfides: list, steps: int, what: str) -> None:
    parts = [extended(s, "AB"[k], 1.2 * k) for k, s in enumerate(sequences)]
    modeller = parts[0]
    for part in parts[1:]:
        modeller.add(part.topology, part.positions)
    chains = [list(chain.residues()) for chain in modeller.topology.chains()]
    for ends in disulfides:
        sulphurs = [
            next(a for a in chains[c][number - 1].atoms() if a.name == "SG") for c, number in ends
        ]
        modeller.topology.addBond(*sulphurs)
    modeller.addHydrogens(app.ForceField("amber14-all.xml"), pH=7.0)
    write(name, modeller.topology, relaxed(modeller, steps), what)


def chignolin(raw: Path) -> None:
    """Keep 5AWL's protein, with hydrogens."""
    file = app.PDBFile(str(raw))
    modeller = app.Modeller(file.topology, file.positions)
    modeller.deleteWater()
    modeller.addHydrogens(app.ForceField("amber14-all.xml"), pH=7.0)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    write("chignolin", modeller.topology, positions, "5AWL WITH HYDROGENS")


def norleucine(raw: Path) -> None:
    """Keep 2F4K as it is, waters without hydrogens too, and add the bonds of its NLE."""
    loaded = mdtraj.load_pdb(str(raw))
    top, positions = loaded.topology, loaded.xyz[0].astype(float)
    known = {frozenset((a.index, b.index)) for a, b in top.bonds}
    for a in [a for a in top.atoms if a.residue.name == "NLE"]:
        for b in top.atoms:
            reach = 0.13 if "H" in (a.element.symbol, b.element.symbol) else 0.19
            close = np.linalg.norm(positions[a.index] - positions[b.index]) < reach
            if a is not b and close and frozenset((a.index, b.index)) not in known:
                known.add(frozenset((a.index, b.index)))
                top.add_bond(a, b)
    write("norleucine", top.to_openmm(), positions, "2F4K WITH CONECT RECORDS OF ITS NLE")


def lipids(raw: Path, count: int) -> None:
    loaded = mdtraj.load_pdb(str(raw))
    # Whole ones, half of each leaflet.
    span = [np.ptp(loaded.xyz[0, [a.index for a in r.atoms]], axis=0).max()
            for r in loaded.topology.residues]  # fmt: skip
    top = [
        next(loaded.xyz[0, a.index, 2] for a in r.atoms if a.name == "P")
        for r in loaded.topology.residues
    ]
    whole = [r for r in loaded.topology.residues if span[r.index] < 3]
    order = sorted(whole, key=lambda r: top[r.index])
    chosen = sorted(order[: count // 2] + order[-count // 2 :], key=lambda r: r.index)
    part = loaded.atom_slice([a.index for r in chosen for a in r.atoms])
    write("bilayer", part.topology.to_openmm(), part.xyz[0].astype(float), f"{count} LIPIDS")


def water(name: str, model: str, edge: float) -> None:
    field = app.ForceField(f"{'tip3p' if model == 'tip3p' else 'tip4pew'}.xml")
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    modeller.addSolvent(field, model=model, boxSize=openmm.Vec3(edge, edge, edge))
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    write(name, modeller.topology, positions, f"WATER BOX, {model.upper()}")


def main(raw: Path) -> None:
    chignolin(raw / "5AWL.pdb")
    norleucine(raw / "2F4K.pdb")
    lipids(raw / "dmpc.pdb", 6)
    water("water3", "tip3p", 1.5)
    water("water4", "tip4pew", 1.5)
    protein("glycines", ["GGGGSGGGGSGG"], [], 4000, "GLYCINE LINKER, BUILT")
    protein("disulfides", INSULIN, DISULFIDES, 4000, "SEQUENCE OF HUMAN INSULIN, BUILT")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
