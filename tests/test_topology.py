"""Bead topologies, and the same molecule from every program's files and objects."""

import itertools
import json
import random
import textwrap

import mdtraj
import numpy as np
import pytest
from openmm import app, unit

import openmm_cgml as cgml
from openmm_cgml.topology import (
    atom_label,
    atom_masses,
    bond_separations,
    bonded_angles,
    bonded_torsions,
)


def fields(**changes) -> dict:
    """Arguments of a topology of four beads: three in a chain of two residues, one apart."""
    values = {
        "bead_names": ("N", "CA", "C", "B"),
        "bead_types": ("N", "CA", "C", "CB"),
        "residue_names": ("GLY", "GLY", "SER", "SER"),
        "residue_ids": (7, 7, 8, 1),
        "chain_ids": ("A", "A", "A", "B"),
        "bonds": ((2, 1), (0, 1), (1, 0)),
        "masses": (14.0, 12.0, 12.5, 70.0),
    }
    return values | changes


@pytest.fixture
def beads() -> cgml.CGTopology:
    return cgml.CGTopology(**fields())


@pytest.fixture(scope="module")
def molecule(data):
    """The package's molecule as openmm.app has it, and its System with constraints."""
    pdb = app.PDBFile(str(data / "topology.pdb"))
    return pdb, app.ForceField("amber99sb.xml").createSystem(pdb.topology)


@pytest.fixture(scope="module")
def structure(molecule):
    """The same as a ParmEd structure with parameters."""
    import parmed

    pdb, system = molecule
    return parmed.openmm.load_topology(pdb.topology, system, xyz=pdb.positions)


def content(top: mdtraj.Topology) -> dict:
    """What has to be equal whatever the topology came from (chain names differ by format)."""
    return {
        "atoms": [atom_label(top, a) for a in range(top.n_atoms)],
        "elements": [a.element.symbol for a in top.atoms],
        "residues": [(r.name, r.resSeq, r.n_atoms) for r in top.residues],
        "chains": [c.n_atoms for c in top.chains],
        "bonds": sorted(tuple(sorted((a.index, b.index))) for a, b in top.bonds),
    }


# ---------------------------------------------------------------- CGTopology


def test_bonds_are_ordered_and_unique(beads) -> None:
    assert beads.bonds == ((0, 1), (1, 2))
    assert len(beads) == 4
    assert beads.label(2) == "SER8-C"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bead_names": ()}, "topology has no beads; give at least one"),
        ({"masses": (1.0,)}, "topology has 4 beads but 1 masses; give one a bead"),
        ({"chain_ids": ("A",) * 5}, "topology has 4 beads but 5 chain_ids; give one a bead"),
        ({"bonds": ((1, 1),)}, "bond 1-1 does not join two of the 4 beads; correct the bonds"),
        ({"bonds": ((0, 4),)}, "bond 0-4 does not join two of the 4 beads; correct the bonds"),
        ({"bonds": ((-1, 2),)}, "bond -1-2 does not join two of the 4 beads; correct the bonds"),
        ({"masses": (1.0, 0.0, 1.0, 1.0)}, "bead GLY7-CA has mass 0.0; give a positive mass"),
        ({"masses": (1.0, 1.0, -2.0, 1.0)}, "bead SER8-C has mass -2.0; give a positive mass"),
        ({"masses": (float("nan"), 1.0, 1.0, 1.0)}, "bead GLY7-N has mass nan"),
        ({"masses": (float("inf"), 1.0, 1.0, 1.0)}, "bead GLY7-N has mass inf"),
    ],
)
def test_validation(changes, message) -> None:
    with pytest.raises(cgml.InputError) as caught:
        cgml.CGTopology(**fields(**changes))
    assert str(caught.value).startswith(message)


def test_json_round_trip_is_exact(beads) -> None:
    again = cgml.CGTopology.from_json(beads.to_json())
    assert again == beads
    assert json.loads(beads.to_json()).keys() == fields().keys()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"bonds": []}', '{"bonds": 3}', '{"bonds": [[0, "x"]]}', "null"]
)
def test_damaged_json_is_an_input_error(text) -> None:
    with pytest.raises(cgml.InputError, match="stored topology is damaged.*make its file again"):
        cgml.CGTopology.from_json(text)


def test_mdtraj_round_trip(beads) -> None:
    top = beads.to_mdtraj()
    assert (top.n_chains, top.n_residues, top.n_atoms, top.n_bonds) == (2, 3, 4, 2)
    again = cgml.CGTopology.from_mdtraj(top, masses=beads.masses, types=beads.bead_types)
    assert again == beads
    # Neither masses nor types have a place in mdtraj: the names stand in for types.
    assert cgml.CGTopology.from_mdtraj(top, masses=beads.masses).bead_types == beads.bead_names
    with pytest.raises(cgml.InputError, match="bead GLY7-N has mass 0.0"):
        cgml.CGTopology.from_mdtraj(top)


def test_openmm_round_trip(beads) -> None:
    top = beads.to_openmm()
    assert [a.name for a in top.atoms()] == list(beads.bead_names)
    assert {a.element for a in top.atoms()} == {None}
    assert [(r.name, r.id, r.chain.id) for r in top.residues()] == [
        ("GLY", "7", "A"),
        ("SER", "8", "A"),
        ("SER", "1", "B"),
    ]
    again = cgml.CGTopology.from_openmm(top, masses=beads.masses, types=beads.bead_types)
    assert again == beads


@pytest.mark.parametrize("program", ["mdtraj", "openmm"])
def test_beads_keep_their_order_where_residues_do_not(beads, program) -> None:
    """Atoms are listed residue by residue: one that is entered twice must not swallow beads."""
    mixed = cgml.CGTopology(
        **fields(residue_ids=(7, 8, 7, 1), residue_names=("GLY", "SER", "GLY", "SER"))
    )
    top = getattr(mixed, f"to_{program}")()
    atoms = list(top.atoms if program == "mdtraj" else top.atoms())
    assert [a.name for a in atoms] == list(mixed.bead_names)
    assert [a.index for a in atoms] == [0, 1, 2, 3]
    again = getattr(cgml.CGTopology, f"from_{program}")(top, mixed.masses, mixed.bead_types)
    assert again == mixed


@pytest.mark.parametrize("program", ["mdtraj", "openmm"])
@pytest.mark.parametrize(
    "changes",
    [
        # The last residue of one chain and the first of the next may look alike,
        {"residue_names": ("GLY",) * 4, "residue_ids": (7, 7, 1, 1), "chain_ids": tuple("AAAB")},
        # and so may neighbours in number alone (insertion codes).
        {"residue_names": ("GLY", "SER", "SER", "SER"), "residue_ids": (7, 7, 7, 1)},
    ],
)
def test_residues_are_told_apart_by_chain_number_and_name(program, changes) -> None:
    beads = cgml.CGTopology(**fields(**changes))
    top = getattr(beads, f"to_{program}")()
    assert len(list(top.residues if program == "mdtraj" else top.residues())) == 3
    found = getattr(cgml.CGTopology, f"from_{program}")(top, beads.masses, beads.bead_types)
    assert found == beads


def test_element_masses_are_taken_where_there_are_elements(data) -> None:
    top = cgml.read_topology(data / "topology.pdb")
    atoms = cgml.CGTopology.from_mdtraj(top)
    assert atoms.masses == tuple(atom_masses(top))
    assert atoms.masses[8] == pytest.approx(12.011, abs=1e-3)  # CA
    assert sum(atoms.masses) == pytest.approx(144.17, abs=0.01)
    assert atoms.chain_ids == ("A",) * 22


# ---------------------------------------------------------------- graph


def brute_force(bonds, count: int) -> list[tuple[int, ...]]:
    """Chains of `count` different beads along bonds, each once, by trying everything."""
    joined = {frozenset(b) for b in bonds}
    beads = sorted({b for bond in bonds for b in bond})
    chains = [
        c
        for c in itertools.permutations(beads, count)
        if all(frozenset(pair) in joined for pair in zip(c[:-1], c[1:], strict=True))
    ]
    middle = (lambda c: c[0] < c[2]) if count == 3 else (lambda c: c[1] < c[2])
    return sorted(c for c in chains if middle(c))


@pytest.mark.parametrize(
    "bonds",
    [
        [(0, 1), (1, 2), (2, 3), (3, 4)],
        [(0, 1), (1, 2), (2, 0)],  # a ring of three has no torsion: its ends would be one bead
        [(0, 1), (0, 2), (0, 3)],
        [(0, 1), (1, 2), (2, 3), (3, 0), (3, 5)],
        random.Random(3).sample([(i, j) for i in range(7) for j in range(i)], 9),
    ],
    ids=["chain", "triangle", "star", "square", "random"],
)
def test_angles_and_torsions(bonds) -> None:
    assert bonded_angles(bonds) == brute_force(bonds, 3)
    assert bonded_torsions(bonds) == brute_force(bonds, 4)


def test_separations() -> None:
    found = bond_separations(5, [(0, 1), (1, 2), (2, 3)])
    assert found.tolist() == [
        [0, 1, 2, 3, 5],
        [1, 0, 1, 2, 5],
        [2, 1, 0, 1, 5],
        [3, 2, 1, 0, 5],
        [5, 5, 5, 5, 0],
    ]


def test_no_bonds_no_terms() -> None:
    assert bonded_angles([]) == [] and bonded_torsions([]) == []
    assert bond_separations(2, []).tolist() == [[0, 2], [2, 0]]


# ---------------------------------------------------------------- reading


def test_the_molecule(data) -> None:
    """What all others are compared with, spelt out."""
    found = content(cgml.read_topology(data / "topology.pdb"))
    assert found["residues"] == [("ACE", 1, 6), ("ALA", 2, 10), ("NME", 3, 6)]
    assert found["atoms"][4:9] == ["ACE1-C", "ACE1-O", "ALA2-N", "ALA2-H", "ALA2-CA"]
    assert found["atoms"][18] == "NME3-C"  # OpenMM's name of that methyl carbon
    assert len(found["bonds"]) == 21
    assert {(4, 6), (14, 16), (16, 18)} < set(found["bonds"])


@pytest.mark.parametrize("suffix", ["prmtop", "parm7", "psf", "top", "gro", "cif"])
def test_files_agree(data, molecule, structure, suffix, tmp_path) -> None:
    path = tmp_path / f"molecule.{suffix}"
    if suffix == "cif":
        with open(path, "w") as handle:
            app.PDBxFile.writeFile(molecule[0].topology, molecule[0].positions, handle)
    else:
        structure.save(str(path))
    expected = content(cgml.read_topology(data / "topology.pdb"))
    assert content(cgml.read_topology(path)) == expected
    assert content(cgml.read_topology(str(path))) == expected


def test_gro_and_top_make_one_trajectory(data, structure, tmp_path) -> None:
    """Coordinates of the .gro come in as frames, bonds and numbers from the .top."""
    structure.save(str(tmp_path / "molecule.top"))
    structure.save(str(tmp_path / "molecule.gro"))
    frame = mdtraj.load(str(tmp_path / "molecule.gro"))
    trajectory = cgml.read_trajectory(frame, top=tmp_path / "molecule.top")
    assert content(trajectory.topology) == content(cgml.read_topology(data / "topology.pdb"))
    (chunk,) = trajectory.chunks()
    np.testing.assert_allclose(chunk.positions[0], structure.coordinates / 10, atol=6e-4)


def test_objects_agree(data, molecule, structure) -> None:
    pdb, _ = molecule
    top = cgml.read_topology(data / "topology.pdb")
    assert cgml.read_topology(top) is top
    frames = mdtraj.Trajectory(np.zeros((1, 22, 3)), top)
    assert cgml.read_topology(frames) is top
    for source in (pdb, pdb.topology, structure, structure.topology):
        assert content(cgml.read_topology(source)) == content(top)
    chain = [c.chain_id for c in cgml.read_topology(pdb).chains]
    assert chain == ["A"]


def test_masses_come_from_elements_not_from_repartitioned_files(structure, tmp_path) -> None:
    """A heavier hydrogen is a matter of the integrator: beads weigh what the molecule weighs."""
    import parmed
    from parmed.tools import HMassRepartition

    heavy = parmed.amber.AmberParm.from_structure(structure)
    HMassRepartition(heavy, 3.024).execute()
    heavy.save(str(tmp_path / "heavy.prmtop"))
    top = cgml.read_topology(tmp_path / "heavy.prmtop")
    assert atom_masses(top)[0] == pytest.approx(1.008, abs=1e-3)


def test_virtual_sites_have_no_mass() -> None:
    top = app.Topology()
    residue = top.addResidue("HOH", top.addChain("W"), id="12")
    for name, symbol in (("O", "O"), ("H1", "H"), ("H2", "H"), ("M", None)):
        element = None if symbol is None else app.Element.getBySymbol(symbol)
        top.addAtom(name, element, residue)
    found = cgml.read_topology(top)
    assert atom_label(found, 3) == "HOH12-M"
    assert [round(m, 2) for m in atom_masses(found)] == [16.0, 1.01, 1.01, 0.0]


def test_residues_without_numbers_are_counted(molecule) -> None:
    top = app.Topology()
    chain = top.addChain("A")
    for identity in ("-3", "12A"):
        top.addAtom("CA", app.element.carbon, top.addResidue("GLY", chain, id=identity))
    assert [r.resSeq for r in cgml.read_topology(top).residues] == [-3, 1]


def test_missing_gromacs_includes_are_named(tmp_path) -> None:
    path = tmp_path / "system.top"
    path.write_text('#include "nowhere.ff/forcefield.itp"\n[ system ]\nx\n[ molecules ]\nx 1\n')
    with pytest.raises(cgml.InputError) as caught:
        cgml.read_topology(path)
    message = str(caught.value)
    assert "nowhere.ff/forcefield.itp" in message and "$GMXDATA/top, set it" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.prmtop", "%VERSION\n%FLAG TITLE\n", ["a.prmtop is damaged", "make it again"]),
        ("a.psf", "not a psf\n", ["cannot read topology", "a.psf", "complete"]),
        ("a.psf", "PSF\n\n       1 !NTITLE\n x\n", ["a.psf"]),
        ("a.top", "; nothing\n", ["cannot read topology", "a.top", "complete"]),
        ("a.top", "[ moleculetype ]\nx 3\n", ["a.top holds no atoms", "complete"]),
        ("a.cif", "data_x\n", ["cannot read topology", "a.cif", "complete"]),
        ("a.xyz", "1\n", ["unknown format '.xyz'", "give .pdb, .cif, .prmtop"]),
        ("a.pdb", "", ["a.pdb is empty", "make it again"]),
        ("a.h5", "text", ["cannot read topology", "a.h5", "complete"]),
    ],
)
def test_damaged_files(name, text, words, tmp_path) -> None:
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    with pytest.raises(cgml.InputError) as caught:
        cgml.read_topology(path)
    assert [w for w in words if w not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_cut_prmtop_is_refused_anywhere(structure, tmp_path) -> None:
    """ParmEd reads some in silence and ends the process on others."""
    structure.save(str(tmp_path / "whole.prmtop"))
    raw = (tmp_path / "whole.prmtop").read_bytes()
    path = tmp_path / "cut.prmtop"
    damage = [raw.find(b"%FLAG DIHEDRAL_PERIODICITY") + 27, raw.find(b"%FORMAT", 4000) + 3]
    for size in [*damage, *range(100, int(0.9 * len(raw)), 997)]:
        path.write_bytes(raw[:size])
        with pytest.raises(cgml.InputError, match="cut.prmtop"):
            cgml.read_topology(path)


@pytest.mark.parametrize("source", [None, 3, {"a": 1}, 3 * unit.nanometer])
def test_other_objects_are_refused(source) -> None:
    with pytest.raises(cgml.InputError, match="cannot read a topology from .*; give a file or"):
        cgml.read_topology(source)
