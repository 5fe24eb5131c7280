"""Presets for proteins, recognised by elements and bonds rather than by atom names alone.

Force fields and programs disagree on names (the methyl carbon of a C-terminal N-methyl cap is
``C`` in one and ``CH3`` in another), but not on bonds: a peptide carbon is bonded to a carbonyl
oxygen and to a nitrogen of the next residue.

Types are those of a transferable model: atoms of the peptide unit (N, C, O) are the same in every
residue, C-alpha and C-beta carry the name of theirs.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import InputError
from ..topology import atom_label, atom_masses
from .core import Mapping, bonded_neighbours, com_mapping, slice_mapping


def calpha(top: Any) -> Mapping:
    """Keep the C-alpha of every amino acid; bead types are residue names.

    A disulfide bonds the beads of its two cysteines, here and in every other preset: it is a
    covalent link, and beads are bonded as the molecule is.

    Args:
        top: mdtraj.Topology with bonds.

    Raises:
        InputError: if the topology has no bonds or no amino acids.
    """
    kinds = _backbone_atoms(top)
    atoms = sorted(a for a, kind in kinds.items() if kind == "CA")
    return slice_mapping(
        top, atoms, name="calpha", types=[top.atom(a).residue.name for a in atoms]
    )


def backbone(top: Any) -> Mapping:
    """Keep N, C-alpha and C of every amino acid, and the peptide N or C of every cap.

    Args:
        top: mdtraj.Topology with bonds.

    Returns:
        A slice map; bead types are ``N``, ``CA`` and ``C``.

    Raises:
        InputError: if the topology has no bonds or no peptide backbone.
    """
    kinds = _backbone_atoms(top)
    atoms = sorted(kinds)
    return slice_mapping(top, atoms, name="backbone", types=[kinds[a] for a in atoms])


def calpha_cbeta(top: Any) -> Mapping:
    """Keep C-alpha and C-beta of every amino acid, caps excepted.

    C-beta is any heavy side-chain atom bonded to C-alpha: none in glycine, one in most residues,
    two in alpha,alpha-disubstituted ones.

    Args:
        top: mdtraj.Topology with bonds.

    Returns:
        A slice map; bead types are the residue's name with ``-CA`` or ``-CB``.

    Raises:
        InputError: if the topology has no bonds or no amino acids.
    """
    return _peptide_slice(top, "calpha_cbeta", ("CA", "CB"))


def core_beta(top: Any) -> Mapping:
    """Keep `backbone`'s atoms and C-beta: N, CA, CB, C, and the peptide N or C of every cap.

    Args:
        top: mdtraj.Topology with bonds.

    Returns:
        A slice map; bead types are ``N``, ``C``, and the residue's name with ``-CA`` or ``-CB``.

    Raises:
        InputError: if the topology has no bonds or no amino acids.
    """
    return _peptide_slice(top, "core_beta", ("N", "CA", "CB", "C"))


def five_bead(top: Any) -> Mapping:
    """Keep N, CA, CB, C and O of every amino acid (no CB in glycine).

    Caps contribute what they have of the peptide unit: an acyl cap its carbonyl C and O, an amide
    cap its N. A terminal carboxylate contributes one oxygen, that called ``O`` if there is one.

    Args:
        top: mdtraj.Topology with bonds.

    Returns:
        A slice map; bead types are ``N``, ``C``, ``O``, and the residue's name with ``-CA`` or
        ``-CB``.

    Raises:
        InputError: if the topology has no bonds or no amino acids.
    """
    return _peptide_slice(top, "five_bead", ("N", "CA", "CB", "C", "O"))


def residue_com(top: Any) -> Mapping:
    """Map every residue to its centre of mass; bead names and types are residue names.

    Water and monatomic ions are left out beside other molecules, and mapped where there is
    nothing else. `left_out` counts them.

    Args:
        top: mdtraj.Topology.

    Raises:
        InputError: if a residue has no atoms with mass.
    """
    chosen = solute_residues(top)
    groups = [[a.index for a in residue.atoms] for residue in chosen]
    return com_mapping(top, groups, names=[r.name for r in chosen], name="residue_com")


def solute_residues(top: Any) -> list[Any]:
    """Return the residues that are no `solvent_residues`; all of them if there are only those."""
    solvent = {residue.index for residue in solvent_residues(top)}
    return [r for r in top.residues if r.index not in solvent] or list(top.residues)


def solvent_residues(top: Any) -> list[Any]:
    """Return the residues that are water or a monatomic ion, whatever their names.

    Water is one oxygen, two hydrogens (none in crystal structures) and massless sites, without a
    bond to another residue. A residue of one atom without bonds is an ion.
    """
    linked = {
        end.residue.index for a, b in top.bonds if a.residue is not b.residue for end in (a, b)
    }
    masses = atom_masses(top)
    found = []
    for residue in top.residues:
        elements = [
            "H" if a.element.symbol == "D" else a.element.symbol
            for a in residue.atoms
            if masses[a.index] > 0
        ]
        is_solvent = len(elements) == 1 or sorted(elements) == ["H", "H", "O"]
        if is_solvent and residue.index not in linked:
            found.append(residue)
    return found


def left_out(mapping: Mapping, top: Any) -> dict[str, int]:
    """Return {residue name: how many residues of that name no bead touches}.

    Args:
        mapping: a map made for `top`.
        top: mdtraj.Topology.

    Raises:
        InputError: if the map takes another number of atoms.
    """
    if mapping.n_atoms != top.n_atoms:
        raise InputError(
            f"the map takes {mapping.n_atoms} atoms but the topology has {top.n_atoms}; give the "
            "topology that it was made for"
        )
    touched = {top.atom(int(a)).residue.index for a in np.unique(mapping.matrix.indices)}
    return dict(Counter(r.name for r in top.residues if r.index not in touched))


def _peptide_slice(top: Any, name: str, kept: Iterable[str]) -> Mapping:
    """Keep the atoms of some kinds of the peptide chain, in the order of the atoms."""
    kinds = _backbone_atoms(top)
    kinds |= _betas_and_oxygens(top, kinds)
    atoms = sorted(a for a, kind in kinds.items() if kind in kept)

    def bead_type(atom: int) -> str:
        kind = kinds[atom]
        return f"{top.atom(atom).residue.name}-{kind}" if kind in ("CA", "CB") else kind

    return slice_mapping(top, atoms, name=name, types=[bead_type(a) for a in atoms])


def _betas_and_oxygens(top: Any, kinds: dict[int, str]) -> dict[int, str]:
    """Return {atom index: "CB" or "O"}, found from the backbone along bonds.

    Raises:
        InputError: if an amino acid that is named like one with a side chain has no bond to it.
    """
    neighbours = bonded_neighbours(top)
    atoms = list(top.atoms)
    element = [a.element.symbol if a.element is not None else "" for a in atoms]
    found: dict[int, str] = {}
    for atom, kind in kinds.items():
        if kind == "CA":
            own = [x for x in neighbours[atom] if atoms[x].residue is atoms[atom].residue]
            betas = [x for x in own if element[x] not in ("", "VS", "H", "D") and x not in kinds]
            named = [a for a in atoms[atom].residue.atoms if a.name == "CB"]
            if named and not betas:
                raise InputError(
                    f"{atom_label(top, named[0].index)} is not bonded to "
                    f"{atom_label(top, atom)}; give a .prmtop or .psf, or add CONECT records to "
                    "the .pdb"
                )
            found.update(dict.fromkeys(betas, "CB"))
        elif kind == "C":
            # A carboxylate has two; one without hydrogens cannot be told from a carboxylic acid.
            oxygens = [
                x for x in neighbours[atom] if element[x] == "O" and len(neighbours[x]) == 1
            ]
            found[min(oxygens, key=lambda x: (atoms[x].name != "O", x))] = "O"
    return found


def _backbone_atoms(top: Any) -> dict[int, str]:
    """Return {atom index: "N", "CA" or "C"} of the peptide backbone."""
    if top.n_bonds == 0:
        raise InputError(
            "the topology has no bonds, so the backbone cannot be recognised; "
            "give a .prmtop, .psf or a .pdb with CONECT records"
        )
    neighbours = bonded_neighbours(top)
    element = [a.element.symbol if a.element is not None else "" for a in top.atoms]
    residue = [a.residue.index for a in top.atoms]

    has_hydrogens = "H" in element

    def is_carbonyl(atom: int) -> bool:
        """Whether an atom is a carbonyl carbon; without hydrogens a hydroxyl looks alike.

        There, only a second N or O on the carbon (amide, carboxylate) tells the two apart.
        """
        if element[atom] != "C":
            return False
        around = [element[x] for x in neighbours[atom]]
        terminal = any(element[o] == "O" and len(neighbours[o]) == 1 for o in neighbours[atom])
        return terminal and (has_hydrogens or around.count("O") + around.count("N") >= 2)

    kinds: dict[int, str] = {}
    amino_acids = set()
    for alpha in range(top.n_atoms):
        if element[alpha] != "C":
            continue
        own = [x for x in neighbours[alpha] if residue[x] == residue[alpha]]
        nitrogens = [x for x in own if element[x] == "N"]
        carbonyls = [x for x in own if is_carbonyl(x)]
        if len(nitrogens) == 1 and len(carbonyls) == 1 and not is_carbonyl(alpha):
            if residue[alpha] in amino_acids:
                raise InputError(
                    f"residue {top.atom(alpha).residue} has two alpha carbons; "
                    "choose the beads yourself with a selection"
                )
            amino_acids.add(residue[alpha])
            kinds.update({nitrogens[0]: "N", alpha: "CA", carbonyls[0]: "C"})
    _require_bonded(top, amino_acids)
    # Caps have no alpha carbon: their peptide C or N counts. Side-chain amides do not, since
    # they lie in a residue that has one.
    for carbon in range(top.n_atoms):
        if not is_carbonyl(carbon):
            continue
        for nitrogen in neighbours[carbon]:
            if element[nitrogen] == "N" and residue[nitrogen] != residue[carbon]:
                for atom, kind in ((carbon, "C"), (nitrogen, "N")):
                    if residue[atom] not in amino_acids:
                        kinds[atom] = kind
    if "CA" not in kinds.values():
        raise InputError(
            "no amino acid found (an alpha carbon between an N and a carbonyl C in one residue); "
            "choose the beads yourself with a selection"
        )
    return kinds


def _require_bonded(top: Any, amino_acids: set[int]) -> None:
    """Refuse residues with a backbone by name that bonds do not confirm: bonds are missing."""
    for residue in top.residues:
        names = {a.name for a in residue.atoms}
        if residue.index not in amino_acids and {"N", "CA", "C", "O"} <= names:
            raise InputError(
                f"residue {residue} has backbone atoms but not their bonds (to each other, to the "
                "next residue, or to OXT at the end); give a .prmtop or .psf, or add CONECT "
                "records to the .pdb"
            )
