"""Presets for proteins, recognised by elements and bonds rather than by atom names alone.

Force fields and programs disagree on names (the methyl carbon of a C-terminal N-methyl cap is
``C`` in one and ``CH3`` in another), but not on bonds: a peptide carbon is bonded to a carbonyl
oxygen and to a nitrogen of the next residue.
"""

from typing import Any

from ..errors import InputError
from .core import Mapping, bonded_neighbours, com_mapping, slice_mapping


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


def calpha(top: Any) -> Mapping:
    """Keep the C-alpha of every amino acid; bead types are residue names.

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


def residue_com(top: Any) -> Mapping:
    """Map every residue to its centre of mass; bead names and types are residue names."""
    groups = [[a.index for a in residue.atoms] for residue in top.residues]
    names = [residue.name for residue in top.residues]
    return com_mapping(top, groups, names=names, name="residue_com")


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
