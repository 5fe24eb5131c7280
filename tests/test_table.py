"""Mapping tables: what each key does, and every way to get one wrong."""

import json

import mdtraj
import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.mapping.residue import left_out
from openmm_cgml.mapping.table_file import parse_mapping_table, read_mapping_table
from openmm_cgml.topology import atom_masses

CAPPED = """
name = "my map"
description = "backbone and side chain"

[residues.ACE]
BB = ["CH3", "C", "O"]

[residues.ALA]
aliases = ["DAL"]
BB = { atoms = ["N", "CA", "C", "O"], type = "P4", weights = "equal" }
SC = ["CB"]

[residues.NME]
BB = ["N", "C|CH3"]
"""


@pytest.fixture(scope="module")
def top(data) -> mdtraj.Topology:
    return cgml.read_topology(data / "topology.pdb")


@pytest.fixture
def table(tmp_path):
    """Write a table and return its path."""

    def write(text: str, suffix: str = ".toml"):
        path = tmp_path / f"table{suffix}"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def labels(mapping) -> list[str]:
    return [mapping.topology.label(b) for b in range(len(mapping.topology))]


def atoms_of(mapping, bead: int) -> set[str]:
    row = mapping.matrix[[bead]]
    return {mapping.atom_labels[a] for a in row.indices}


# ---------------------------------------------------------------- what it does


def test_residues(top, table) -> None:
    mapping = cgml.table_mapping(top, table(CAPPED))
    assert mapping.name == "my map"
    assert labels(mapping) == ["ACE1-BB", "ALA2-BB", "ALA2-SC", "NME3-BB"]
    assert mapping.topology.bead_types == ("ACE-BB", "P4", "ALA-SC", "NME-BB")
    assert mapping.topology.bonds == ((0, 1), (1, 2), (1, 3))
    np.testing.assert_allclose(mapping.matrix[[1]].data, 0.25)
    masses = atom_masses(top)[[16, 18]]
    np.testing.assert_allclose(mapping.matrix[[3]].data, masses / masses.sum())
    assert left_out(mapping, top) == {}


def test_selections(top, table) -> None:
    path = table("""
        [[bead]]
        name = "L"
        type = "cap"
        select = "resSeq 1"
        [[bead]]
        name = "M"
        select = "name CA CB"
        weights = [3, 1]
    """)
    mapping = cgml.table_mapping(top, path)
    assert mapping.name == "table"
    assert labels(mapping) == ["ACE1-L", "ALA2-M"]
    assert mapping.topology.bead_types == ("cap", "M")
    np.testing.assert_allclose(mapping.matrix[[1]].data, [0.75, 0.25])
    com = cgml.com_mapping(top, [range(6)])
    np.testing.assert_allclose(mapping.matrix[[0]].toarray(), com.matrix.toarray())
    assert left_out(mapping, top) == {"NME": 1}


def test_both_in_one(top, table) -> None:
    """A selection describes the residues that it touches; its beads come first."""
    path = table("""
        [[bead]]
        name = "end"
        select = "resSeq 3 and name N"
        [residues.ALA]
        A = ["CA"]
        [residues.ACE]
        C = ["C"]
    """)
    assert labels(cgml.table_mapping(top, path)) == ["NME3-end", "ACE1-C", "ALA2-A"]


def test_hydrogens_go_with_their_atoms(top, table) -> None:
    text = "hydrogens = true\n" + CAPPED.replace('["CB"]', '{ atoms = ["CB"], hydrogens = false }')
    mapping = cgml.table_mapping(top, table(text))
    assert atoms_of(mapping, 0) == {f"ACE1-{n}" for n in ("CH3", "C", "O", "H1", "H2", "H3")}
    assert atoms_of(mapping, 1) == {f"ALA2-{n}" for n in ("N", "CA", "C", "O", "H", "HA")}
    assert atoms_of(mapping, 2) == {"ALA2-CB"}
    com = cgml.MAPPINGS["residue_com"](top)
    np.testing.assert_allclose(mapping.matrix[[0]].toarray(), com.matrix[[0]].toarray())


def test_json_is_the_same(top, table) -> None:
    content = {
        "name": "my map",
        "residues": {
            "ACE": {"BB": ["CH3", "C", "O"]},
            "ALA": {
                "BB": {"atoms": ["N", "CA", "C", "O"], "type": "P4", "weights": "equal"},
                "SC": ["CB"],
            },
            "NME": {"BB": ["N", "C|CH3"]},
        },
    }
    from_json = cgml.table_mapping(top, table(json.dumps(content), ".json"))
    from_toml = cgml.table_mapping(top, table(CAPPED))
    assert from_json.topology == from_toml.topology
    assert (from_json.matrix != from_toml.matrix).nnz == 0
    in_memory = cgml.table_mapping(top, parse_mapping_table(content))
    assert in_memory.topology == from_toml.topology


def test_aliases_alternatives_and_absent_atoms(top, table) -> None:
    renamed = top.copy()
    renamed.residue(1).name = "DAL"
    next(a for a in renamed.residue(2).atoms if a.name == "C").name = "CH3"
    text = CAPPED.replace('SC = ["CB"]', 'SC = ["CB", "CG?"]')
    mapping = cgml.table_mapping(renamed, table(text))
    assert labels(mapping) == ["ACE1-BB", "DAL2-BB", "DAL2-SC", "NME3-BB"]
    # The type is the table's: a residue and its alias are of one kind.
    assert mapping.topology.bead_types[2] == "ALA-SC"


def test_bonds_of_ones_own(top, table) -> None:
    text = CAPPED.replace('SC = ["CB"]', 'SC = ["CB"]\nbonds = []')
    assert cgml.table_mapping(top, table(text)).topology.bonds == ((0, 1), (1, 3))
    path = table("""
        bonds = [["A", "C"]]
        [[bead]]
        name = "A"
        select = "resSeq 1"
        [[bead]]
        name = "B"
        select = "resSeq 2"
        [[bead]]
        name = "C"
        select = "resSeq 3"
    """)
    assert cgml.table_mapping(top, path).topology.bonds == ((0, 2),)


def test_shared_atoms_and_leave_out(top, table) -> None:
    path = table("""
        shared_atoms = true
        leave_out = ["ACE", "NME"]
        [residues.ALA]
        A = ["N", "CA"]
        B = ["CA", "C"]
    """)
    mapping = cgml.table_mapping(top, path)
    assert labels(mapping) == ["ALA2-A", "ALA2-B"] and mapping.topology.bonds == ((0, 1),)
    assert left_out(mapping, top) == {"ACE": 1, "NME": 1}


def test_include(top, table) -> None:
    """The packaged table, with one residue of one's own in place of its."""
    path = table('include = "martini"\n[residues.ALA]\nBB = ["N", "CA", "C", "O"]\nSC1 = ["CB"]\n')
    mapping = cgml.table_mapping(top, path)
    assert labels(mapping) == ["ACE1-BB", "ALA2-BB", "ALA2-SC1", "NME3-BB"]
    assert len(atoms_of(mapping, 0)) == 6 and len(atoms_of(mapping, 1)) == 4


# ---------------------------------------------------------------- what is refused

BAD_FILES = {
    "broken TOML": ("[residues.ALA\n", "is broken: "),
    "text for a table": ('residues = "ALA"\n', "residues is 'ALA', not a table of keys"),
    "no beads": ('name = "x"\n', "has no beads; add [[bead]] or [residues.NAME] entries"),
    "no beads in a residue": ("[residues.ALA]\n", "residue ALA has no beads; add NAME ="),
    "unknown key": (
        'hydrogen = true\n[residues.ALA]\nA = ["CA"]\n',
        "key 'hydrogen' is unknown; did you mean 'hydrogens'? known: name, ",
    ),
    "unknown key of a bead": (
        '[residues.ALA]\nA = { atom = ["CA"] }\n',
        "residue ALA: bead A: key 'atom' is unknown; did you mean 'atoms'? known: atoms, type",
    ),
    "unknown key of a selection": (
        '[[bead]]\nname = "A"\nselection = "all"\n',
        "bead number 1: key 'selection' is unknown; did you mean 'select'?",
    ),
    "no name": ('[[bead]]\nselect = "all"\n', "bead number 1 has no name; add one"),
    "no selection": ('[[bead]]\nname = "A"\n', "bead A has no select; add one"),
    "no atoms": ('[residues.ALA]\nA = { type = "x" }\n', "bead A has no atoms; add atoms ="),
    "empty list": ("[residues.ALA]\nA = []\n", "residue ALA: bead A has an empty list of atoms"),
    "atom twice": (
        '[residues.ALA]\nA = ["CA", "CA"]\n', "residue ALA: bead A: atoms has 'CA' twice; rename"
    ),
    "atom that is a number": ("[residues.ALA]\nA = [1]\n", "bead A: atoms holds 1, not a name"),
    "name twice": (
        '[[bead]]\nname = "A"\nselect = "name CA"\n[[bead]]\nname = "A"\nselect = "name N"\n',
        "has 'A' twice; rename or remove one",
    ),
    "residue twice": (
        '[residues.ALA]\nA = ["CA"]\n[residues.GLY]\naliases = ["ALA"]\nA = ["CA"]\n',
        "residue ALA is described by [residues.ALA] and [residues.GLY]; remove it from one",
    ),
    "unknown weights": (
        '[residues.ALA]\nA = { atoms = ["CA"], weights = "masses" }\n',
        "bead A: weights 'masses' are unknown; choose 'mass' or 'equal', or list one an atom",
    ),
    "weights that sum to zero": (
        '[residues.ALA]\nA = { atoms = ["CA", "N"], weights = [0, 0] }\n',
        "bead A: weights [0, 0] are not numbers of at least 0 with a positive sum; correct",
    ),
    "negative weights": (
        '[residues.ALA]\nA = { atoms = ["CA", "N"], weights = [2, -1] }\n',
        "bead A: weights [2, -1] are not numbers of at least 0",
    ),
    "weights that are no numbers": (
        '[residues.ALA]\nA = { atoms = ["CA", "N"], weights = [1, nan] }\n', "weights [1, nan] are"
    ),
    "weights for all": ("weights = [1]\n", "weights for all beads is 'mass' or 'equal'; list the"),
    "weights and hydrogens": (
        'hydrogens = true\n[residues.ALA]\nA = { atoms = ["CA"], weights = [1] }\n',
        "bead A has listed weights, which hydrogens that are added would not have; set",
    ),
    "weights and absent atoms": (
        '[residues.ALA]\nA = { atoms = ["CA", "X?"], weights = [1, 1] }\n',
        "bead A has listed weights and atoms that may be absent (?)",
    ),
    "bond to nothing": (
        '[residues.ALA]\nbonds = [["BB", "SC2"]]\nBB = ["CA"]\nSC1 = ["CB"]\n',
        "a bond names bead 'SC2', which is not there; did you mean 'SC1'? known: BB, SC1",
    ),
    "bond to itself": (
        '[residues.ALA]\nbonds = [["A", "A"]]\nA = ["CA"]\n', "bond ['A', 'A'] does not join two"
    ),
    "flag that is a text": (
        'hydrogens = "yes"\n[residues.ALA]\nA = ["CA"]\n', "hydrogens is 'yes'; write true or fal"
    ),
    "unknown table": ('include = "martiny"\n', "no mapping table 'martiny' to include; did you m"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(table, case) -> None:
    text, words = BAD_FILES[case]
    with pytest.raises(cgml.InputError) as caught:
        read_mapping_table(table(text))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    if case != "unknown table":
        assert str(caught.value).startswith(f"mapping table {table(text)}")


CAPS = '\nleave_out = ["ACE", "NME"]\n'
BAD_MATCHES = {
    "missing atom": (
        CAPS + '[residues.ALA]\nSC1 = ["CB", "CG"]\n',
        "residue ALA2: bead SC1 takes an atom CG, which is not there (atoms: N, H, CA, HA, CB, ",
    ),
    "two alternatives": (
        CAPS + '[residues.ALA]\nSC1 = ["CB|CA"]\n',
        "residue ALA2: bead SC1 takes one of CB, CA, but 2 are there; name one alone",
    ),
    "all absent": (
        CAPS + '[residues.ALA]\nSC1 = ["CG?"]\n', "residue ALA2: bead SC1 has none of its atoms; "
    ),
    "atom in two beads": (
        CAPS + '[residues.ALA]\nA = ["N", "CA"]\nB = ["CA", "CB"]\n',
        "atom ALA2-CA is in the beads A and B; take it out of one, or set shared_atoms = true",
    ),
    "atom in two selections": (
        '[[bead]]\nname = "A"\nselect = "name CA N"\n[[bead]]\nname = "B"\nselect = "resSeq 3"\n',
        "atom NME3-N is in the beads A and B; take",
    ),
    "unknown residue": (
        '[residues.ALA]\nA = ["CA"]\n[residues.NMA]\nA = ["N"]\n[residues.ACE]\nA = ["C"]\n',
        "does not describe residue NME3 (did you mean NMA? then add it to the aliases there); ",
    ),
    "no such residues": (
        '\nleave_out = ["ACE", "ALA", "NME"]\n[residues.LIG]\nA = ["CA"]\n',
        "gives this topology no beads: it has no residue of LIG; check the residues' names",
    ),
    "wrong number of weights": (
        CAPS + '[residues.ALA]\nA = { atoms = ["CA", "CB"], weights = [1, 1, 1] }\n',
        "residue ALA2: bead A has 3 weights but 2 atoms (ALA2-CA, ALA2-CB); give as many",
    ),
    "empty selection": (
        '[[bead]]\nname = "A"\nselect = "name XX"\n',
        "bead A: selection 'name XX' matches no atoms; correct it",
    ),
    "broken selection": (
        '[[bead]]\nname = "A"\nselect = "name CA and"\n',
        "bead A: selection 'name CA and' is not understood",
    ),
    "incomplete": (
        'complete = true\n' + CAPS + '[residues.ALA]\nA = ["N", "CA", "C", "O"]\n',
        "atom ALA2-CB is in no bead, although the table is complete: ALA is modified, or its ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MATCHES)
def test_bad_matches(top, table, case) -> None:
    text, words = BAD_MATCHES[case]
    with pytest.raises(cgml.InputError) as caught:
        cgml.table_mapping(top, table(text))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"mapping table {table(text)}")


def test_other_bad_files(table, tmp_path) -> None:
    with pytest.raises(cgml.InputError, match="gone.toml does not exist; check the path"):
        read_mapping_table(tmp_path / "gone.toml")
    for text, suffix, words in (
        ("x", ".yaml", "table.yaml has an unknown format '.yaml'; give .toml or .json"),
        ('{"residues": {}, "residues": {}}', ".json", "is broken: key 'residues' stands twice; "),
        ("[1, 2]", ".json", "table.json is [1, 2], not a table of keys; correct it"),
        ("{", ".json", "table.json is broken: Expecting property name"),
    ):
        with pytest.raises(cgml.InputError) as caught:
            read_mapping_table(table(text, suffix))
        assert words in str(caught.value)


def test_bytes_that_are_no_text(tmp_path) -> None:
    path = tmp_path / "table.toml"
    path.write_bytes(b"name = \xff\n")
    with pytest.raises(cgml.InputError, match="table.toml is broken: 'utf-8' codec"):
        read_mapping_table(path)


def test_topologies_that_do_not_fit(top, table) -> None:
    unbonded = top.copy()
    unbonded._bonds = []
    with pytest.raises(
        cgml.InputError, match="bead BB takes hydrogens, but ACE1-H1 has no bond; "
    ):
        cgml.table_mapping(unbonded, table("hydrogens = true\n" + CAPPED))
    same = top.copy()
    next(a for a in same.residue(1).atoms if a.name == "HB2").name = "HB1"
    with pytest.raises(cgml.InputError, match="residue ALA2 has two atoms called HB1, so names"):
        cgml.table_mapping(same, table(CAPPED))
    site = top.copy()
    site.atom(10).element = mdtraj.element.virtual
    with pytest.raises(
        cgml.InputError, match="residue ALA2: bead SC has no atoms with mass; choos"
    ):
        cgml.table_mapping(site, table(CAPPED))


def test_solvent_needs_no_entry_but_may_have_one(top, table) -> None:
    solvated = top.copy()
    chain = solvated.add_chain("W")
    for number in (4, 5):
        water = solvated.add_residue("HOH", chain, resSeq=number)
        atoms = [
            solvated.add_atom(n, mdtraj.element.get_by_symbol(n[0]), water)
            for n in ("O", "H1", "H2")
        ]
        for hydrogen in atoms[1:]:
            solvated.add_bond(atoms[0], hydrogen)
    mapping = cgml.table_mapping(solvated, table(CAPPED))
    assert left_out(mapping, solvated) == {"HOH": 2}
    with_water = cgml.table_mapping(solvated, table(CAPPED + '[residues.HOH]\nW = ["O"]\n'))
    assert labels(with_water)[4:] == ["HOH4-W", "HOH5-W"]
