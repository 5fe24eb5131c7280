"""Every preset on every test molecule: bead counts by hand, types, bonds, and what is left out."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest
from openmm import app

import openmm_cgml as cgml
from openmm_cgml.mapping.residue import left_out, solute_residues, solvent_residues
from openmm_cgml.mapping.table_file import packaged_table
from openmm_cgml.topology import atom_masses

ROOT = Path(__file__).resolve().parent.parent
STRUCTURES = ROOT / "tests" / "data" / "structures"
PRESETS = [
    "calpha", "calpha_cbeta", "backbone", "core_beta", "five_bead", "heavy_atom", "residue_com",
    "martini", "molecule_com", "all_atom",
]  # fmt: skip

# Beads in the order of PRESETS, counted by hand; None: refused. For a protein of n residues, g of
# them glycines: calpha n, calpha_cbeta n + (n - g), backbone 3 n, core_beta 3 n + (n - g),
# five_bead one more a residue for O, residue_com n. All atoms: villin 576 but for 14 hydrogens
# of GLN67 and PHE76 that the file lacks; insulin C257 H381 N65 O77 S6 at its charge of -2; DMPC
# 118 each.
COUNTS = {
    # ACE-ALA-NME: CA; CA, CB; caps add C and N to the backbone, C, O and N to five_bead. Heavy:
    # ACE 3 + ALA 5 + NME 2. Martini: one bead each.
    "capped alanine": (1, 2, 5, 6, 8, 10, 3, 3, 1, 22),
    # YYDPETGTWY: n = 10, g = 1. Heavy: Y 12 x 3, D 8, P 7, E 9, T 7 x 2, G 4, W 14 = 92, and OXT.
    # Martini: Y 4 x 3, D P E T T 2 each, G 1, W 5.
    "chignolin": (10, 19, 30, 39, 49, 93, 10, 28, 1, 166),
    # LSDEDFKAVFGMTRSAFANLPLWxQQHLxKEKGLF, x norleucine: n = 35, g = 2, and 52 waters. Heavy:
    # L 8x5, S 6x2, D 8x2, E 9x2, F 11x4, K 9x3, A 5x3, V 7, G 4x2, M 8, T 7, R 11, N 8, P 7, W 14,
    # x 8x2, Q 9x2, H 10 = 286, and OXT. Martini: A 1x3, G 1x2, K 3x3, R 3, F 4x4, W 5, H 4, the
    # other 20 residues 2 each. Molecules: the protein and the waters.
    "villin, two norleucines": (35, 68, 105, 138, 173, 287, 35, 82, 53, 562),
    # Insulin, GIVEQCCTSICSLYQLENYCN and FVNQHLCGSHLVEALYLVCGERGFFYTPKT: n = 21 + 30, g = 4.
    # Heavy: C257 N65 O77 S6. Martini, chain A: G 1, Y 4x2, 18 others 2 each: 45; B: F 4x3, H 4x2,
    # Y 4x2, G 1x3, A 1, R 3, K 3, 17 others 2 each: 72. One molecule, by two of the disulfides.
    "insulin, two chains": (51, 98, 153, 200, 251, 405, 51, 117, 1, 786),
    # GGGGSGGGGSGG: n = 12, g = 10. Heavy: G 4 x 10, S 6 x 2, and OXT. Martini: 10 x 1 + 2 x 2.
    "glycine linker": (12, 14, 36, 38, 50, 53, 12, 14, 1, 95),
    # Six DMPC, C36 N O8 P: 46 heavy atoms each; 4 beads of the head and 3 a tail.
    "DMPC bilayer, 6 lipids": (*(None,) * 5, 276, 6, 60, 6, 708),
    "water box, 3 sites": (*(None,) * 5, 102, 102, None, 102, 306),
    "water box, 4 sites": (*(None,) * 5, 103, 103, None, 103, 309),
}
FILES = dict(
    zip(
        COUNTS,
        ("", "chignolin", "norleucine", "disulfides", "glycines", "bilayer", "water3", "water4"),
        strict=True,
    )
)


@pytest.fixture(scope="module")
def tops(data) -> dict[str, mdtraj.Topology]:
    paths = {name: STRUCTURES / f"{file}.pdb" for name, file in FILES.items()}
    paths["capped alanine"] = data / "topology.pdb"
    return {name: cgml.read_topology(path) for name, path in paths.items()}


def labels(mapping) -> list[str]:
    return [mapping.topology.label(b) for b in range(len(mapping.topology))]


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("molecule", COUNTS)
def test_counts(tops, molecule, preset) -> None:
    expected = COUNTS[molecule][PRESETS.index(preset)]
    if expected is None:
        with pytest.raises(cgml.InputError, match="no amino acid found|only HOH"):
            cgml.MAPPINGS[preset](tops[molecule])
        return
    mapping = cgml.MAPPINGS[preset](tops[molecule])
    assert len(mapping.topology) == expected
    assert mapping.name == preset
    np.testing.assert_allclose(mapping.matrix.sum(axis=1), 1)
    waters = 52 if "villin" in molecule and preset != "molecule_com" else 0
    assert left_out(mapping, tops[molecule]).get("HOH", 0) == waters


def test_every_preset_is_counted() -> None:
    assert set(PRESETS) == set(cgml.MAPPINGS)


def test_counts_are_documented() -> None:
    """The table in docs/mappings.md is this one; the test's message is what to paste there."""
    rows = ["| | " + " | ".join(f"`{p}`" for p in PRESETS) + " |", "|---" * 11 + "|"]
    for molecule, counts in COUNTS.items():
        cells = ["refused" if c is None else str(c) for c in counts]
        rows.append(f"| {molecule} | " + " | ".join(cells) + " |")
    expected = "\n".join(rows)
    assert expected in (ROOT / "docs" / "mappings.md").read_text(encoding="utf-8"), expected


def test_presets_are_documented() -> None:
    text = (ROOT / "docs" / "mappings.md").read_text(encoding="utf-8")
    for preset in cgml.MAPPINGS:
        assert f"| `{preset}` |" in text, preset


def test_structures_stand_alone() -> None:
    for path in STRUCTURES.iterdir():
        if path.suffix == ".pdb":
            assert path.stat().st_size < 300_000
            assert f"`{path.name}`" in (STRUCTURES / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- proteins


def test_beads_of_a_capped_residue(tops) -> None:
    top = tops["capped alanine"]
    core = cgml.MAPPINGS["core_beta"](top)
    assert labels(core) == ["ACE1-C", "ALA2-N", "ALA2-CA", "ALA2-CB", "ALA2-C", "NME3-N"]
    assert core.topology.bead_types == ("C", "N", "ALA-CA", "ALA-CB", "C", "N")
    assert core.topology.bonds == ((0, 1), (1, 2), (2, 3), (2, 4), (4, 5))
    five = cgml.MAPPINGS["five_bead"](top)
    assert labels(five) == [
        "ACE1-C", "ACE1-O", "ALA2-N", "ALA2-CA", "ALA2-CB", "ALA2-C", "ALA2-O", "NME3-N"
    ]  # fmt: skip
    assert five.topology.bead_types == ("C", "O", "N", "ALA-CA", "ALA-CB", "C", "O", "N")
    assert cgml.MAPPINGS["calpha_cbeta"](top).topology.bead_types == ("ALA-CA", "ALA-CB")
    assert cgml.MAPPINGS["heavy_atom"](top).topology.bead_types[:2] == ("ACE-CH3", "ACE-C")
    martini = cgml.MAPPINGS["martini"](top)
    assert martini.topology.bead_types == ("ACE-BB", "ALA-BB", "NME-BB")
    # Each of these residues is one bead, hydrogens included.
    com = cgml.MAPPINGS["residue_com"](top)
    np.testing.assert_allclose(martini.matrix.toarray(), com.matrix.toarray())
    whole = cgml.MAPPINGS["molecule_com"](top)
    assert labels(whole) == ["ACE1-ACE-1-NME"] and whole.topology.bead_types == ("ACE-ALA-NME",)
    assert whole.topology.masses[0] == pytest.approx(atom_masses(top).sum())
    assert left_out(cgml.MAPPINGS["calpha"](top), top) == {"ACE": 1, "NME": 1}


@pytest.mark.parametrize("preset", ["calpha", "residue_com"])
def test_disulfides_are_bonds_between_beads(tops, preset) -> None:
    """Within chain A, and twice between the chains: a covalent link like any other."""
    mapping = cgml.MAPPINGS[preset](tops["insulin, two chains"])
    along = {(b, b + 1) for b in range(50) if b != 20}
    assert set(mapping.topology.bonds) == along | {(5, 10), (6, 21 + 6), (19, 21 + 18)}
    assert mapping.topology.chain_ids == ("A",) * 21 + ("B",) * 30


def test_disulfides_join_c_betas_where_there_are_some(tops) -> None:
    mapping = cgml.MAPPINGS["calpha_cbeta"](tops["insulin, two chains"])
    named = labels(mapping)
    chains = mapping.topology.chain_ids
    found = {
        tuple(f"{chains[b]}-{named[b]}" for b in bond)
        for bond in mapping.topology.bonds
        if all(named[b].endswith("CB") for b in bond)
    }
    assert found == {
        ("A-CYS6-CB", "A-CYS11-CB"), ("A-CYS7-CB", "B-CYS7-CB"), ("A-CYS20-CB", "B-CYS19-CB")
    }  # fmt: skip


def test_norleucine_is_an_amino_acid(tops) -> None:
    top = tops["villin, two norleucines"]
    five = cgml.MAPPINGS["five_bead"](top)
    assert [n for n in labels(five) if n.startswith("NLE65")] == [
        "NLE65-N", "NLE65-CA", "NLE65-C", "NLE65-O", "NLE65-CB"
    ]  # fmt: skip
    assert {"NLE-CA", "NLE-CB"} <= set(five.topology.bead_types)
    martini = cgml.MAPPINGS["martini"](top)
    assert martini.topology.bead_types.count("NLE-SC1") == 2


def test_one_oxygen_of_a_carboxylate(tops) -> None:
    found = labels(cgml.MAPPINGS["five_bead"](tops["chignolin"]))
    assert "TYR10-O" in found and "TYR10-OXT" not in found


def retype(top: mdtraj.Topology, change) -> mdtraj.Topology:
    """Return a copy with residues renamed or atoms changed by `change`."""
    top = top.copy()
    change(top)
    return top


@pytest.mark.parametrize("name", ["DAL", "AIB", "ORN"])
def test_side_chains_are_found_by_bonds(tops, name) -> None:
    """D-residues and names that no table knows; a second beta carbon is one more bead."""

    def change(top) -> None:
        residue = top.residue(1)
        residue.name = name
        atoms = {a.name: a for a in residue.atoms}
        atoms["CB"].name = "C17"
        if name == "AIB":  # HA becomes a methyl's carbon
            atoms["HA"].element = mdtraj.element.carbon

    top = retype(tops["capped alanine"], change)
    types = cgml.MAPPINGS["calpha_cbeta"](top).topology.bead_types
    assert sorted(types) == [f"{name}-CA", *[f"{name}-CB"] * (2 if name == "AIB" else 1)]
    with pytest.raises(cgml.InputError, match=rf"'martini' does not describe residue {name}2"):
        cgml.MAPPINGS["martini"](top)


def test_a_side_chain_without_its_bond_is_refused(tops) -> None:
    def change(top) -> None:
        top._bonds = [b for b in top._bonds if {a.name for a in b} != {"CA", "CB"}]

    top = retype(tops["chignolin"], change)
    assert len(cgml.MAPPINGS["backbone"](top).topology) == 30
    with pytest.raises(cgml.InputError) as caught:
        cgml.MAPPINGS["core_beta"](top)
    assert str(caught.value) == (
        "TYR1-CB is not bonded to TYR1-CA; give a .prmtop or .psf, or add CONECT records to the "
        ".pdb"
    )


@pytest.mark.parametrize("preset", ["calpha", "calpha_cbeta", "core_beta", "five_bead"])
def test_bonds_that_a_reader_drops_are_named(preset, tmp_path) -> None:
    """Without CONECT records, mdtraj bonds standard residues and leaves norleucine in atoms."""
    lines = (STRUCTURES / "norleucine.pdb").read_text().splitlines()
    path = tmp_path / "plain.pdb"
    path.write_text("\n".join(line for line in lines if not line.startswith("CONECT")))
    with pytest.raises(cgml.InputError) as caught:
        cgml.MAPPINGS[preset](cgml.read_topology(path))
    assert str(caught.value).startswith("residue NLE65 has backbone atoms but not their bonds")
    assert "add CONECT records" in str(caught.value)


def test_two_residues_fused_into_one_are_refused() -> None:
    """A chromophore, as in fluorescent proteins."""
    top = mdtraj.Topology()
    chain = top.add_chain()
    before, fused, after = (
        top.add_residue(n, chain, resSeq=k) for k, n in enumerate(("ALA", "CRO", "VAL"), 64)
    )
    atoms = {}
    for residue, names in (
        (before, "N CA C O H HA"),
        (fused, "N1 CA1 C1 N2 C2 O2 CA2 N3 CA3 C3 O3"),
        (after, "N CA C O OXT H"),
    ):
        for name in names.split():
            element = mdtraj.element.get_by_symbol(name[0])
            atoms[f"{residue.name}-{name}"] = top.add_atom(name, element, residue)
    bonds = """ALA-N ALA-CA ALA-CA ALA-C ALA-C ALA-O ALA-N ALA-H ALA-CA ALA-HA ALA-C CRO-N1
        CRO-N1 CRO-CA1 CRO-CA1 CRO-C1 CRO-C1 CRO-N2 CRO-C1 CRO-N3 CRO-N2 CRO-CA2 CRO-CA2 CRO-C2
        CRO-C2 CRO-O2 CRO-C2 CRO-N3 CRO-N3 CRO-CA3 CRO-CA3 CRO-C3 CRO-C3 CRO-O3 CRO-C3 VAL-N
        VAL-N VAL-CA VAL-CA VAL-C VAL-C VAL-O VAL-C VAL-OXT VAL-N VAL-H""".split()
    for i, j in zip(bonds[::2], bonds[1::2], strict=True):
        top.add_bond(atoms[i], atoms[j])
    with pytest.raises(cgml.InputError) as caught:
        cgml.MAPPINGS["backbone"](top)
    assert str(caught.value) == (
        "residue CRO65 has two alpha carbons; choose the beads yourself with a selection"
    )


# ---------------------------------------------------------------- solvent


def with_solvent(top: mdtraj.Topology, water: mdtraj.Topology, count: int) -> mdtraj.Topology:
    """Return a molecule with some water, a sodium and a chloride behind it."""
    top = top.join(water.subset(range(count * water.residue(0).n_atoms)))
    chain = top.add_chain("I")
    for symbol in ("Na", "Cl"):
        residue = top.add_residue(symbol.upper(), chain)
        top.add_atom(symbol.upper(), mdtraj.element.get_by_symbol(symbol), residue)
    return top


@pytest.mark.parametrize("water", ["water box, 3 sites", "water box, 4 sites"])
@pytest.mark.parametrize("preset", [p for p in PRESETS if p != "molecule_com"])
def test_solvent_beside_a_protein_is_left_out_and_counted(tops, preset, water) -> None:
    alone = cgml.MAPPINGS[preset](tops["chignolin"])
    top = with_solvent(tops["chignolin"], tops[water], 5)
    mapping = cgml.MAPPINGS[preset](top)
    assert mapping.topology.bead_types == alone.topology.bead_types
    assert mapping.topology.bonds == alone.topology.bonds
    assert left_out(mapping, top) == {"HOH": 5, "NA": 1, "CL": 1}


def test_molecules_of_a_mixture(tops) -> None:
    top = with_solvent(tops["capped alanine"], tops["water box, 4 sites"], 3)
    mapping = cgml.MAPPINGS["molecule_com"](top)
    types = ("ACE-ALA-NME", "HOH", "HOH", "HOH", "NA", "CL")
    assert mapping.topology.bead_types == types
    assert mapping.topology.bonds == () and left_out(mapping, top) == {}
    assert mapping.topology.masses[1] == pytest.approx(18.015, abs=1e-3)
    assert not mapping.matrix.toarray()[:, [a.index for a in top.atoms if a.name == "M"]].any()


def test_solvent_is_told_by_what_it_is_made_of(tops) -> None:
    """Names are programs' own; water is O and two H, an ion one atom without bonds."""

    def rename(top) -> None:
        for residue in top.residues:
            residue.name = "W2O" if residue.n_atoms == 4 else "XX"

    top = retype(
        with_solvent(tops["capped alanine"], tops["water box, 4 sites"], 2),
        rename,
    )
    assert [r.name for r in solvent_residues(top)] == ["W2O", "W2O", "XX", "XX"]
    assert len(solute_residues(top)) == 3
    # One heavy atom that is bonded to another residue is a cap, not an ion.
    amide = tops["capped alanine"]
    amide = amide.subset([a.index for a in amide.atoms if a.element.symbol != "H"][:-1])
    assert [r.name for r in solute_residues(amide)] == ["ACE", "ALA", "NME"]


def test_only_solvent_is_mapped(tops) -> None:
    four = tops["water box, 4 sites"]
    heavy = cgml.MAPPINGS["heavy_atom"](four)
    assert set(heavy.topology.bead_names) == {"O"} and heavy.topology.masses[0] > 15.9
    com = cgml.MAPPINGS["residue_com"](four)
    molecules = cgml.MAPPINGS["molecule_com"](four)
    np.testing.assert_array_equal(com.matrix.toarray(), molecules.matrix.toarray())


def test_molecules_need_bonds(tops) -> None:
    def unbond(top) -> None:
        top._bonds = []

    with pytest.raises(cgml.InputError) as caught:
        cgml.MAPPINGS["molecule_com"](retype(tops["water box, 3 sites"], unbond))
    assert str(caught.value).startswith(
        "residue HOH1 (and 101 others) is in 3 pieces, so molecules cannot be told apart: bonds"
    )


def test_left_out_is_of_the_same_topology(tops) -> None:
    mapping = cgml.MAPPINGS["calpha"](tops["capped alanine"])
    with pytest.raises(cgml.InputError, match="takes 22 atoms but the topology has 166; give"):
        left_out(mapping, tops["chignolin"])


# ---------------------------------------------------------------- martini

# Beads of Martini 2.2 a residue; protonation states have those of the residue.
MARTINI = {
    1: "GLY ALA ACE NME NHE",
    2: "VAL LEU ILE PRO MET CYS CYX CYM SER THR ASP ASH GLU GLH ASN GLN HYP",
    3: "LYS LYN ARG",
    4: "PHE TYR HID HIE HIP",
    5: "TRP",
    10: "DLPC DMPC",
    12: "DPPC POPC DOPC",
}


@pytest.fixture(scope="module")
def templates() -> dict:
    """Atoms and bonds of every residue, as Amber and CHARMM have them."""
    amber = app.ForceField("amber14-all.xml")._templates
    lipids = app.ForceField("amber14/lipid17.xml")._templates
    charmm = app.ForceField("charmm36.xml")._templates
    return {"charmm": charmm, "amber": {**lipids, **amber}}


def template_topology(template, name: str) -> mdtraj.Topology:
    top = mdtraj.Topology()
    residue = top.add_residue(name, top.add_chain("A"), resSeq=1)
    atoms = [
        top.add_atom(a.name, mdtraj.element.get_by_symbol(a.element.symbol), residue)
        for a in template.atoms
    ]
    for i, j in template.bonds:
        top.add_bond(atoms[i], atoms[j])
    return top


@pytest.mark.parametrize(
    ("beads", "name"), [(n, name) for n, names in MARTINI.items() for name in names.split()]
)
@pytest.mark.parametrize("field", ["amber", "charmm"])
def test_martini_takes_every_atom_once(templates, field, beads, name) -> None:
    """Any force field's names; every atom, hydrogens too, has weight in exactly one bead."""
    names = {"HID": "HSD", "HIE": "HSE", "HIP": "HSP"} if field == "charmm" else {}
    name = names.get(name, name)
    if name not in templates[field]:
        pytest.skip(f"{field} has no {name}")
    top = template_topology(templates[field][name], name)
    mapping = cgml.MAPPINGS["martini"](top)
    assert len(mapping.topology) == beads
    np.testing.assert_array_equal((mapping.matrix.toarray() > 0).sum(0), 1)
    assert sum(mapping.topology.masses) == pytest.approx(atom_masses(top).sum())


def test_martini_bonds_and_types_of_a_lipid(tops) -> None:
    mapping = cgml.MAPPINGS["martini"](tops["DMPC bilayer, 6 lipids"])
    beads = mapping.topology
    names = ("NC3", "PO4", "GL1", "GL2", "C1A", "C2A", "C3A", "C1B", "C2B", "C3B")
    types = ("NC3", "PO4", "GL1", "GL2", "C4", "C5", "E4", "C4", "C5", "E4")
    assert beads.bead_names == names * 6 and beads.bead_types == types * 6
    one = {(0, 1), (1, 2), (2, 3), (2, 4), (4, 5), (5, 6), (3, 7), (7, 8), (8, 9)}
    assert {b for b in beads.bonds if b[1] < 10} == one and len(beads.bonds) == 54


def test_martini_double_bonds(templates) -> None:
    """In the oleoyl tails only, and the bond lies between the two beads of type D4."""
    for name, doubles in (("POPC", 2), ("DOPC", 4), ("DPPC", 0)):
        top = template_topology(templates["charmm"][name], name)
        mapping = cgml.MAPPINGS["martini"](top)
        assert mapping.topology.bead_types.count("D4") == doubles
        assert sum(n[0] == "D" for n in mapping.topology.bead_names) == doubles / 2
    owner = {
        mapping.atom_labels[a].partition("-")[2]: mapping.topology.bead_names[b]
        for b, a in zip(*cgml.MAPPINGS["martini"](top).matrix.nonzero(), strict=True)
    }
    assert owner["C21"] == "GL1" and owner["C31"] == "GL2"


def test_martini_protonation_states(templates) -> None:
    """A charge more or less is another type of bead; tautomers share theirs."""
    types = {
        name: cgml.MAPPINGS["martini"](template_topology(t, name)).topology.bead_types[-1]
        for name, t in templates["amber"].items()
        if name in ("ASP", "ASH", "HID", "HIE", "HIP", "CYS", "CYX")
    }
    assert types["HID"] == types["HIE"] == "HIS-SC3" != types["HIP"]
    assert len({types[n] for n in ("ASP", "ASH", "CYS", "CYX")}) == 4


def test_martini_selenomethionine(templates) -> None:
    top = template_topology(templates["amber"]["MET"], "MSE")
    sulphur = next(a for a in top.atoms if a.name == "SD")
    sulphur.name, sulphur.element = "SE", mdtraj.element.selenium
    assert cgml.MAPPINGS["martini"](top).topology.bead_types == ("BB", "MSE-SC1")


def test_martini_refuses_what_it_does_not_know(tops, templates) -> None:
    martini = cgml.MAPPINGS["martini"]

    def said(top) -> str:
        with pytest.raises(cgml.InputError) as caught:
            martini(top)
        return str(caught.value)

    assert said(tops["water box, 4 sites"]).endswith(
        "stands for four molecules, which no fixed map can follow as they diffuse; choose "
        "residue_com or molecule_com: one bead a molecule"
    )
    assert "residue PC1 is a head or tail of a lipid in Amber's naming" in said(
        retype(tops["chignolin"], lambda t: setattr(t.residue(0), "name", "PC"))
    )
    ligand = retype(tops["chignolin"], lambda t: setattr(t.residue(1), "name", "TYS"))
    assert said(ligand) == (
        "mapping table 'martini' does not describe residue TYS2 (did you mean TYR? then add it to "
        "the aliases there); add [residues.TYS] to it, or to your own that has "
        'include = "martini", or leave_out = ["TYS"]'
    )
    # A phosphate on a tyrosine that is still called TYR.
    modified = tops["chignolin"].copy()
    atom = modified.add_atom("P", mdtraj.element.phosphorus, modified.residue(0))
    assert atom.index == 166
    assert "atom TYR1-P is in no bead, although the table is complete: TYR is modified" in said(
        modified
    )
    missing = template_topology(templates["amber"]["TYR"], "PHE")
    next(a for a in missing.atoms if a.name == "CZ").name = "CX"
    assert "residue PHE1: bead SC3 takes an atom CZ, which is not there (" in said(missing)


def test_the_packaged_table_names_no_path() -> None:
    table = packaged_table("martini")
    assert table.source == "'martini'" and len(table.residues) > 50
    with pytest.raises(cgml.InputError, match="no mapping table 'martni' to include; did you mea"):
        packaged_table("martni")
