"""Position maps: the right atoms of any peptide, by elements and bonds rather than by names."""

import mdtraj
import numpy as np
import pytest
import scipy.sparse
from openmm import app

import openmm_cgml as cgml
from openmm_cgml.mapping.core import Mapping, group_mapping
from openmm_cgml.mapping.residue import left_out
from openmm_cgml.topology import atom_label, atom_masses

# Both charged ends, a proline, side chains with amides, hydroxyls, carboxylates, a disulfide.
CHAIN = "NGLY ASN GLN SER ASP PRO CYX THR LYS ARG HIE TRP GLU TYR MET CYX CASP".split()
CAPPED = "ACE PRO ASN CYX GLY NME".split()


@pytest.fixture(scope="module")
def top(data) -> mdtraj.Topology:
    """The package's molecule: two caps around one residue."""
    return cgml.read_topology(data / "topology.pdb")


@pytest.fixture(scope="module")
def templates() -> dict:
    """Atoms and bonds of every residue, as amber99sb has them."""
    return app.ForceField("amber99sb.xml")._templates


def peptide(
    templates, chains, *, hydrogens=True, disulfides=(), bonds=True, names=None
) -> mdtraj.Topology:
    """Chains of residue templates, numbered through from 1; `names` renames atoms."""
    top = mdtraj.Topology()
    sulphurs = {}
    for chain in chains:
        new_chain, before = top.add_chain(), {}
        for name in chain:
            number = top.n_residues + 1
            residue = top.add_residue(name[-3:], new_chain, resSeq=number)
            atoms = {}
            for index, atom in enumerate(templates[name].atoms):
                symbol = atom.element.symbol
                if hydrogens or symbol != "H":
                    element = mdtraj.element.get_by_symbol(symbol)
                    atoms[index] = top.add_atom(atom.name, element, residue)
            named = {a.name: a for a in atoms.values()}
            if bonds:
                for i, j in templates[name].bonds:
                    if i in atoms and j in atoms:
                        top.add_bond(atoms[i], atoms[j])
                if "C" in before:
                    top.add_bond(before["C"], named["N"])
            before, sulphurs[number] = named, named.get("SG")
    for i, j in disulfides:
        top.add_bond(sulphurs[i], sulphurs[j])
    for atom in top.atoms if names else ():
        atom.name = names(atom)
    return top


def labels(mapping) -> list[str]:
    return [mapping.topology.label(b) for b in range(len(mapping.topology))]


def kept(mapping) -> list[int]:
    """The one atom of each bead of a slice map."""
    assert mapping.is_slice
    return mapping.matrix.indices.tolist()


# ---------------------------------------------------------------- presets, the package's molecule


def test_backbone_of_a_capped_residue(top) -> None:
    """Five beads, although a methyl carbon of the last cap is called C too."""
    mapping = cgml.MAPPINGS["backbone"](top)
    assert labels(mapping) == ["ACE1-C", "ALA2-N", "ALA2-CA", "ALA2-C", "NME3-N"]
    assert mapping.topology.bead_types == ("C", "N", "CA", "C", "N")
    assert mapping.topology.bonds == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert mapping.topology.masses == pytest.approx(tuple(atom_masses(top)[kept(mapping)]))
    assert mapping.name == "backbone" and mapping.n_atoms == 22
    assert mapping.topology.chain_ids == ("A",) * 5


def test_calpha_of_a_capped_residue(top) -> None:
    mapping = cgml.MAPPINGS["calpha"](top)
    assert labels(mapping) == ["ALA2-CA"]
    assert mapping.topology.bead_types == ("ALA",)
    assert mapping.topology.bonds == ()


def test_residue_com_of_the_molecule(top, data) -> None:
    mapping = cgml.MAPPINGS["residue_com"](top)
    assert mapping.topology.bead_names == ("ACE", "ALA", "NME")
    assert mapping.topology.bead_types == ("ACE", "ALA", "NME")
    assert mapping.topology.bonds == ((0, 1), (1, 2))
    masses = atom_masses(top)
    groups = [range(6), range(6, 16), range(16, 22)]
    np.testing.assert_allclose(mapping.topology.masses, [masses[list(g)].sum() for g in groups])
    with np.load(data / "trajectory.npz") as run:
        positions = run["positions"][:20].astype(float)
    expected = np.stack(
        [np.average(positions[:, list(g)], axis=1, weights=masses[list(g)]) for g in groups], 1
    )
    np.testing.assert_allclose(mapping.map_positions(positions), expected, atol=1e-12)
    # A map keeps translations.
    shift = np.array([1.0, -2.0, 0.5])
    moved = mapping.map_positions(positions + shift)
    np.testing.assert_allclose(moved, expected + shift, atol=1e-12)


def test_slices_are_the_atoms_themselves(top, data) -> None:
    mapping = cgml.MAPPINGS["backbone"](top)
    with np.load(data / "trajectory.npz") as run:
        positions = run["positions"][:20]
    np.testing.assert_array_equal(
        mapping.map_positions(positions), positions[:, [4, 6, 8, 14, 16]]
    )


# ---------------------------------------------------------------- presets on peptides


@pytest.mark.parametrize("hydrogens", [True, False], ids=["all atoms", "heavy atoms"])
@pytest.mark.parametrize("anonymous", [False, True], ids=["named", "anonymous"])
def test_peptides(templates, hydrogens, anonymous) -> None:
    """Side-chain amides, hydroxyls and carboxylates are no backbone, whatever atoms are called."""
    arguments = {"hydrogens": hydrogens, "disulfides": [(7, 16)]}
    top = peptide(templates, [CHAIN, CAPPED], **arguments)
    expected = [f"{n[-3:]}{k}-{a}" for k, n in enumerate(CHAIN, 1) for a in ("N", "CA", "C")]
    expected += ["ACE18-C"]
    expected += [f"{n}{k}-{a}" for k, n in enumerate(CAPPED[1:-1], 19) for a in ("N", "CA", "C")]
    expected += ["NME23-N"]
    atoms = [a for a in range(top.n_atoms) if atom_label(top, a) in expected]
    if anonymous:
        top = peptide(
            templates, [CHAIN, CAPPED], names=lambda a: f"{a.element.symbol}{a.index}", **arguments
        )
    backbone = cgml.MAPPINGS["backbone"](top)
    assert kept(backbone) == atoms
    ends = len(CHAIN) * 3
    assert backbone.topology.bead_types == ("N", "CA", "C") * len(CHAIN) + (
        "C", *("N", "CA", "C") * 4, "N"
    )  # fmt: skip
    # Along both chains, and across the disulfide between the alpha carbons of residues 7 and 16.
    along = {(b, b + 1) for b in range(ends + 13) if b + 1 != ends}
    assert set(backbone.topology.bonds) == along | {(3 * 6 + 1, 3 * 15 + 1)}
    assert set(backbone.topology.chain_ids[:ends]) == {"0"}
    assert set(backbone.topology.chain_ids[ends:]) == {"1"}

    calpha = cgml.MAPPINGS["calpha"](top)
    assert kept(calpha) == [atoms[3 * k + 1] for k in range(17)] + [
        atoms[ends + 2 + 3 * k] for k in range(4)
    ]
    assert calpha.topology.bead_types == (*(n[-3:] for n in CHAIN), *CAPPED[1:-1])
    along = {(b, b + 1) for b in range(20) if b != 16}
    assert set(calpha.topology.bonds) == along | {(6, 15)}

    com = cgml.MAPPINGS["residue_com"](top)
    assert len(com.topology) == 23
    assert set(com.topology.bonds) == {(b, b + 1) for b in range(22) if b != 16} | {(6, 15)}
    assert sum(com.topology.masses) == pytest.approx(atom_masses(top).sum())


@pytest.mark.parametrize(
    "residue", ["ALA", "ASH", "GLH", "LYN", "CYM", "HIP", "VAL", "ILE", "PHE"]
)
@pytest.mark.parametrize("hydrogens", [True, False])
def test_protonation_states_and_the_rest(templates, residue, hydrogens) -> None:
    top = peptide(templates, [["ACE", residue, "NME"]], hydrogens=hydrogens)
    mapping = cgml.MAPPINGS["backbone"](top)
    assert labels(mapping) == [
        "ACE1-C", f"{residue}2-N", f"{residue}2-CA", f"{residue}2-C", "NME3-N"
    ]  # fmt: skip


def test_amide_cap(templates) -> None:
    top = peptide(templates, [["NALA", "SER", "NHE"]])
    assert labels(cgml.MAPPINGS["backbone"](top))[-2:] == ["SER2-C", "NHE3-N"]


def test_bridges_of_side_chains_are_no_backbone(templates) -> None:
    """A lactam bridge is an amide between two residues, but not between their backbones."""
    top = peptide(templates, [["ACE", "LYN", "GLY", "ASH", "NME"]])
    atoms = {atom_label(top, a.index): a for a in top.atoms}
    gone = {atoms[n] for n in ("LYN2-HZ2", "ASH4-OD2", "ASH4-HD2")}
    top._bonds = [b for b in top._bonds if not gone & set(b)]
    top.add_bond(atoms["LYN2-NZ"], atoms["ASH4-CG"])
    found = labels(cgml.MAPPINGS["backbone"](top))
    assert len(found) == 11 and not {"LYN2-NZ", "ASH4-CG"} & set(found)


def test_a_cap_of_two_carbonyls(templates) -> None:
    """Oxamic acid: its first carbon has a nitrogen and a carbonyl, but is no alpha carbon."""
    top = mdtraj.Topology()
    cap = top.add_residue("OXM", top.add_chain(), resSeq=0)
    atoms = {
        name: top.add_atom(name, mdtraj.element.get_by_symbol(name[0]), cap)
        for name in ("N1", "H1", "H2", "C1", "O1", "C2", "O2")
    }
    for i, j in map(str.split, ("N1 H1", "N1 H2", "N1 C1", "C1 O1", "C1 C2", "C2 O2")):
        top.add_bond(atoms[i], atoms[j])
    joined = top.join(peptide(templates, [["GLY", "NME"]]))
    nitrogen = next(a for a in joined.atoms if a.residue.name == "GLY" and a.name == "N")
    joined.add_bond(joined.atom(5), nitrogen)
    found = [label.partition("-")[::2] for label in labels(cgml.MAPPINGS["backbone"](joined))]
    assert [(residue[:3], atom) for residue, atom in found] == [
        ("OXM", "C2"), ("GLY", "N"), ("GLY", "CA"), ("GLY", "C"), ("NME", "N")
    ]  # fmt: skip


def test_water_and_ions_are_no_backbone(templates) -> None:
    top = peptide(templates, [["ACE", "GLY", "NME"]])
    chain = top.add_chain("W")
    for number in range(3):
        water = top.add_residue("HOH", chain, resSeq=number)
        atoms = [
            top.add_atom(n, mdtraj.element.get_by_symbol(n[0]), water) for n in ("O", "H1", "H2")
        ]
        top.add_bond(atoms[0], atoms[1])
        top.add_bond(atoms[0], atoms[2])
    top.add_atom("NA", mdtraj.element.sodium, top.add_residue("NA", chain, resSeq=9))
    assert len(cgml.MAPPINGS["backbone"](top).topology) == 5
    com = cgml.MAPPINGS["residue_com"](top)
    assert com.topology.bead_types == ("ACE", "GLY", "NME")
    assert left_out(com, top) == {"HOH": 3, "NA": 1}


def test_virtual_sites_weigh_nothing(templates) -> None:
    top = peptide(templates, [["ACE", "GLY", "NME"]])
    site = top.add_atom("M", mdtraj.element.virtual, top.add_residue("X", top.add_chain("X")))
    with pytest.raises(cgml.InputError) as caught:
        cgml.MAPPINGS["residue_com"](top)
    assert str(caught.value) == (
        "bead X of mapping 'residue_com' has no atoms with mass; "
        "choose atoms other than virtual sites"
    )
    with pytest.raises(cgml.InputError, match="bead X3-M has mass 0.0; .* leave them out"):
        cgml.slice_mapping(top, [0, site.index])


@pytest.mark.parametrize("preset", ["backbone", "calpha"])
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda t: peptide(t, [CHAIN], bonds=False), "has no bonds, so the backbone cannot be"),
        (lambda t: peptide(t, [["K+", "Cl-"]]), "has no bonds, so the backbone cannot be"),
        (lambda t: peptide(t, [["DA5"]]), "no amino acid found"),
        (lambda t: unbond(peptide(t, [CHAIN]), 5), "residue PRO6 has backbone atoms but not"),
        (lambda t: unbond(peptide(t, [CHAIN], hydrogens=False), 2), "residue ASN2 has backbone"),
    ],
)
def test_bonds_are_needed(templates, preset, broken, words) -> None:
    with pytest.raises(cgml.InputError) as caught:
        cgml.MAPPINGS[preset](broken(templates))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    remedies = ("give a .prmtop", "choose the beads yourself with a selection")
    assert any(r in str(caught.value) for r in remedies)


def unbond(top: mdtraj.Topology, residue: int) -> mdtraj.Topology:
    """Take away the bonds of one residue."""
    top._bonds = [b for b in top._bonds if residue not in {a.residue.index for a in b}]
    return top


def test_two_alpha_carbons_are_refused(templates) -> None:
    """A residue that is really two, as some programs write dimers."""
    top = peptide(templates, [["ACE", "GLY", "GLY", "NME"]])
    first, second = top.residue(1), top.residue(2)
    for atom in second.atoms:
        atom.residue = first
    with pytest.raises(cgml.InputError) as caught:
        cgml.MAPPINGS["backbone"](top)
    assert str(caught.value) == (
        "residue GLY2 has two alpha carbons; choose the beads yourself with a selection"
    )


@pytest.mark.parametrize(("name", "near"), [("backbon", "backbone"), ("c_alpha", "calpha")])
def test_unknown_presets_name_the_nearest(name, near) -> None:
    with pytest.raises(cgml.InputError) as caught:
        cgml.MAPPINGS[name]
    assert str(caught.value) == (
        f"unknown mapping {name!r}; did you mean {near!r}? known: {', '.join(cgml.MAPPINGS)}"
    )


@pytest.mark.parametrize("preset", list(cgml.MAPPINGS))
def test_every_preset_is_a_map(top, preset) -> None:
    """What holds for any of the table, now and later."""
    mapping = cgml.MAPPINGS[preset](top)
    assert mapping.name == preset
    assert mapping.matrix.shape == (len(mapping.topology), top.n_atoms)
    np.testing.assert_allclose(mapping.matrix.sum(axis=1), 1)
    assert mapping.atom_labels == tuple(atom_label(top, a) for a in range(top.n_atoms))


# ---------------------------------------------------------------- selections


def test_one_string_makes_every_atom_a_bead(top) -> None:
    mapping = cgml.selection_mapping(top, "name CA CB or (resSeq 3 and name N)")
    assert labels(mapping) == ["ALA2-CA", "ALA2-CB", "NME3-N"]
    assert mapping.name == "custom"
    assert mapping.topology.bead_types == ("CA", "CB", "N")
    # C of residue 2 is no bead: it belongs to CA, and its bond to N joins those two.
    assert mapping.topology.bonds == ((0, 1), (0, 2))


def test_lists_keep_their_order(top) -> None:
    mapping = cgml.selection_mapping(top, ["resSeq 3 and name N", "name CA", "name CB"])
    assert labels(mapping) == ["NME3-N", "ALA2-CA", "ALA2-CB"]
    assert mapping.topology.bonds == ((0, 1), (1, 2))
    found = mapping.map_positions(np.arange(66.0).reshape(1, 22, 3))
    np.testing.assert_array_equal(found[0, :, 0], [48, 24, 30])


def test_dicts_name_beads(top) -> None:
    beads = {"BB": "name CA", "SC": "name CB"}
    mapping = cgml.selection_mapping(top, beads)
    assert mapping.topology.bead_names == ("BB", "SC")
    assert mapping.topology.bead_types == ("BB", "SC")
    assert labels(mapping) == ["ALA2-BB", "ALA2-SC"]
    com = cgml.selection_mapping(top, {"L": "resSeq 1", "R": "resSeq 2 3"}, kind="com")
    assert com.topology.bead_names == ("L", "R") and com.topology.bonds == ((0, 1),)
    assert com.topology.masses == pytest.approx(
        [atom_masses(top)[:6].sum(), atom_masses(top)[6:].sum()]
    )


def test_centres_of_mass(top) -> None:
    whole = cgml.selection_mapping(top, "all", kind="com")
    assert len(whole.topology) == 1 and not whole.is_slice
    assert whole.topology.masses[0] == pytest.approx(atom_masses(top).sum())
    listed = cgml.selection_mapping(top, ["name CB or name HB1", "name N"], kind="com")
    assert labels(listed)[0] == "ALA2-CB"
    masses = atom_masses(top)[[10, 11]]
    np.testing.assert_allclose(listed.matrix.toarray()[0, [10, 11]], masses / masses.sum())


@pytest.mark.parametrize(
    ("selection", "kind", "said"),
    [
        ("name XX", "slice", "selection 'name XX' matches no atoms; correct it (atom "),
        ("name XX", "com", "selection 'name XX' matches no atoms; correct it (atom "),
        (["name CA", "name N"], "slice", "selection 'name N' matches 2 atoms; a slice map needs "),
        ({"A": "name H"}, "slice", "selection 'name H' matches 2 atoms; a slice map needs one "),
        ([], "slice", "mapping 'custom' has no beads; the selection matched no atoms"),
        ({}, "com", "mapping 'custom' has no beads; the selection matched no atoms"),
        ("name CA", "centre", "mapping kind 'centre' is unknown; choose 'slice' or 'com'"),
        (["name CA", "index 8"], "slice", "beads ALA2-CA and ALA2-CA are the same atoms"),
        (["index 1 2", "index 2 1"], "com", "beads ACE1-CH3 and ACE1-CH3 are the same atoms"),
    ],
)
def test_wrong_selections(top, selection, kind, said) -> None:
    with pytest.raises(cgml.InputError) as caught:
        cgml.selection_mapping(top, selection, kind=kind)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name CA and", "end of text is unexpected at character 12"),
        ("name = CA", "'=' is unexpected at character 6"),
        ("", "no keyword that it knows"),
        ('__import__("os")', "'_' is unexpected at character 1"),
        ("name ==", "end of text is unexpected at character 8"),
    ],
)
def test_selections_that_are_not_understood(top, text, reason) -> None:
    """The parser's own message has two thousand characters."""
    with pytest.raises(cgml.InputError) as caught:
        cgml.selection_mapping(top, text)
    assert str(caught.value) == (
        f"selection {text!r} is not understood ({reason}); "
        'use mdtraj\'s selection language, e.g. "name CA and resSeq 2"'
    )


# ---------------------------------------------------------------- by hand


def test_mass_is_that_of_the_momentum(top) -> None:
    """Noid 2008, eq. 23: an atom's own, the total for a centre of mass, less for anything else."""
    masses = atom_masses(top)
    atoms = [4, 5, 6]
    (com,) = cgml.com_mapping(top, [atoms]).topology.masses
    assert com == pytest.approx(masses[atoms].sum())
    (centroid,) = group_mapping(top, [atoms], [[1 / 3] * 3]).topology.masses
    assert centroid == pytest.approx(9 / (1 / masses[atoms]).sum())
    assert centroid < com
    assert cgml.slice_mapping(top, [8]).topology.masses == pytest.approx((masses[8],))


def test_a_weight_of_zero_is_no_atom(top) -> None:
    mapping = group_mapping(top, [[8, 10], [6]], [[1.0, 0.0], [1.0]])
    assert mapping.is_slice and mapping.matrix.nnz == 2
    assert mapping.topology.masses[0] == pytest.approx(atom_masses(top)[8])


def test_beads_may_share_atoms(top) -> None:
    mapping = cgml.com_mapping(top, [[4, 6, 8], [8, 14, 16]], names=["L", "R"], types=["T", "T"])
    assert mapping.topology.bead_names == ("L", "R") and mapping.topology.bead_types == ("T", "T")
    assert mapping.topology.bonds == ((0, 1),)


def test_bonds_are_contracted_to_the_nearest_bead(top) -> None:
    """Far ends of the molecule: every bond between lies with one of them, one joins them."""
    ends = cgml.slice_mapping(top, [1, 18])
    assert ends.topology.bonds == ((0, 1),)
    three = cgml.slice_mapping(top, [1, 8, 18])
    assert three.topology.bonds == ((0, 1), (1, 2))


def test_what_shared_atoms_lead_to_belongs_to_the_lower_bead(top) -> None:
    """N of the last residue hangs on C, which two beads share: one of them has the bond."""
    mapping = cgml.com_mapping(top, [[8, 14], [10, 14], [18]])
    assert mapping.topology.bonds == ((0, 1), (0, 2))


def test_separate_molecules_are_not_bonded(templates) -> None:
    top = peptide(templates, [["ACE", "GLY", "NME"], ["ACE", "GLY", "NME"]])
    assert cgml.MAPPINGS["calpha"](top).topology.bonds == ()


@pytest.mark.parametrize(
    ("groups", "weights", "said"),
    [
        ([[8, 10]], [[0.5, 0.4]], "weights of bead ALA2-CA sum to 0.9, not 1; normalise them"),
        ([[8, 10]], [[0.5, float("nan")]], "bead ALA2-CA has mass nan"),
        ([[8, 8]], [[0.5, 0.5]], "bead 0 of mapping 'custom' has atom ALA2-CA twice; list"),
        ([[8], []], [[1.0], []], "mapping 'custom' leaves bead 1 without atoms; give it some"),
        ([[8], [10]], [[1.0], [0.0]], "mapping leaves bead ALA2-CB without atoms; give it some"),
        ([[8], [8]], [[1.0], [1.0]], "beads ALA2-CA and ALA2-CA are the same atoms (ALA2-CA)"),
        ([[8, 22]], [[0.5, 0.5]], "bead 0 of mapping 'custom' names atom 22 but atoms are 0"),
        ([[-1]], [[1.0]], "bead 0 of mapping 'custom' names atom -1 but atoms are 0 to 21; count"),
        ([[1.5]], [[1.0]], "bead 0 of mapping 'custom' names atom 1.5 but atoms are 0 to 21"),
        ([[8, 10]], [[1.0]], "mapping 'custom' needs one weight an atom; give as many"),
        ([], [], "mapping 'custom' has no beads; the selection matched no atoms"),
    ],
)
def test_wrong_groups(top, groups, weights, said) -> None:
    with pytest.raises(cgml.InputError) as caught:
        group_mapping(top, groups, weights)
    assert str(caught.value).startswith(said)


def test_wrong_groups_of_the_other_makers(top) -> None:
    for make in (
        lambda: cgml.slice_mapping(top, [3, 22]),
        lambda: cgml.com_mapping(top, [[3], [22]]),
    ):
        with pytest.raises(cgml.InputError, match="bead 1 of .* names atom 22 .*; count from 0"):
            make()
    with pytest.raises(cgml.InputError, match="bead B of mapping 'custom' has atom ACE1-H3 twice"):
        cgml.com_mapping(top, [[1], [3, 3]], names=["A", "B"])
    with pytest.raises(cgml.InputError, match="has 2 beads but 1 names; give one a bead"):
        cgml.slice_mapping(top, [1, 2], names=["A"])
    with pytest.raises(cgml.InputError, match="2 beads but 1 bead_types; give one a bead"):
        cgml.slice_mapping(top, [1, 2], types=["A"])


def test_equal_beads_are_found_in_any_order_of_atoms(top) -> None:
    with pytest.raises(cgml.InputError, match=r"the same atoms \(ALA2-CA, ALA2-CB\); remove one"):
        cgml.com_mapping(top, [[8, 10], [10, 8]])
    # The same atoms with other weights are another bead.
    group_mapping(top, [[8, 10], [8, 10]], [[0.5, 0.5], [0.4, 0.6]])


def test_equal_rows_of_any_matrix_are_found(top) -> None:
    good = cgml.com_mapping(top, [[8, 10], [4, 6]])
    data, columns = [0.5, 0.5, 0.5, 0.5], [8, 10, 10, 8]
    unsorted = scipy.sparse.csr_array((data, columns, [0, 2, 4]), shape=(2, 22))
    with pytest.raises(cgml.InputError, match=r"the same atoms \(ALA2-CA, ALA2-CB\); remove one"):
        Mapping("custom", unsorted, good.topology, good.atom_labels)


def test_mapping_checks_what_it_is_made_of(top) -> None:
    good = cgml.slice_mapping(top, [4, 6])
    with pytest.raises(
        cgml.InputError, match=r"shape \(2, 22\) but there are 2 beads and 3 atoms"
    ):
        Mapping("custom", good.matrix, good.topology, ("A", "B", "C"))
    broken = good.matrix.copy()
    broken.data[1] = np.nan
    with pytest.raises(cgml.InputError, match="weights of bead ALA2-N sum to nan, not 1"):
        Mapping("custom", broken, good.topology, good.atom_labels)


@pytest.mark.parametrize("shape", [(22, 3), (5, 21, 3), (5, 22, 2)])
def test_positions_of_another_molecule(top, shape) -> None:
    with pytest.raises(cgml.InputError) as caught:
        cgml.MAPPINGS["backbone"](top).map_positions(np.zeros(shape))
    assert str(caught.value) == (
        f"values have shape {shape} but the map takes (frames, 22, 3); "
        "give the trajectory that the mapping was made for"
    )
