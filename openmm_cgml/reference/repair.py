"""What is changed in a structure on request: residues replaced, water of the crystal removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import openmm.app as app

from ..errors import InputError


@dataclass(frozen=True)
class Replacement:
    """Another residue in the place of one, with its heavy atoms where they were.

    Attributes:
        old: residue name in the file.
        new: residue name in the force field.
        atoms: name of a heavy atom -> its name in the new residue, where the two differ.
    """

    old: str
    new: str
    atoms: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> "Replacement":
        """Read ``OLD=NEW`` or ``OLD=NEW:ATOM=ATOM,...``.

        Raises:
            InputError: if the text is not that.
        """
        residues, _, renamed = text.partition(":")
        pairs = [part.split("=") for part in (residues, *filter(None, renamed.split(",")))]
        if any(len(pair) != 2 or not all(pair) for pair in pairs):
            raise InputError(
                f"replacement {text!r} cannot be read; give OLD=NEW, or OLD=NEW:ATOM=ATOM,... "
                "where heavy atoms have other names, e.g. NLE=MET:CD=SD"
            )
        (old, new), *renames = pairs
        return cls(old, new, {name: other for name, other in renames})


def repaired(
    topology: Any, positions: Any, replacements: Sequence[Replacement], remove_water: bool
) -> tuple[Any, Any, list[str]]:
    """Return topology and positions as asked for, and what was done.

    Replaced residues lose their hydrogens (`Modeller.addHydrogens` adds those of the new ones) and
    have the bonds of the new residue.

    Args:
        topology: openmm.app.Topology.
        positions: of its atoms, with unit.
        replacements: of residues.
        remove_water: whether water molecules go.

    Raises:
        InputError: if there is no such residue, atom or water.
    """
    done = []
    modeller = app.Modeller(topology, positions)
    if remove_water:
        before = modeller.topology.getNumAtoms()
        modeller.deleteWater()
        if modeller.topology.getNumAtoms() == before:
            raise InputError("there is no water to remove; leave remove_water out")
        done.append("water removed")
    for replacement in replacements:
        count = _replace(modeller, replacement)
        done.append(f"{count} {replacement.old} replaced by {replacement.new}")
    return modeller.topology, modeller.positions, done


def _replace(modeller: Any, replacement: Replacement) -> int:
    """Replace every such residue of a Modeller; returns how many there were."""
    residues = [r for r in modeller.topology.residues() if r.name == replacement.old]
    if not residues:
        raise InputError(f"there is no residue {replacement.old} to replace; name one of the file")
    for residue in residues:
        _require_atoms(residue, replacement)
    indices = {residue.index for residue in residues}
    modeller.delete(
        [
            atom
            for residue in residues
            for atom in residue.atoms()
            if atom.element is not None and atom.element.symbol == "H"
        ]
    )
    old = modeller.topology
    changed = app.Topology()
    changed.setPeriodicBoxVectors(old.getPeriodicBoxVectors())
    made = {}
    for chain in old.chains():
        copy = changed.addChain(chain.id)
        for residue in chain.residues():
            new = residue.index in indices
            name = replacement.new if new else residue.name
            other = changed.addResidue(name, copy, residue.id, residue.insertionCode)
            for atom in residue.atoms():
                called = replacement.atoms.get(atom.name, atom.name) if new else atom.name
                element = atom.element if called == atom.name else _element(called)
                made[atom] = changed.addAtom(called, element, other, atom.id)
    changed.createStandardBonds()
    known = {frozenset((a, b)) for a, b in changed.bonds()}
    for first, second in old.bonds():
        pair = frozenset((made[first], made[second]))
        # What the new residue does not bond, is not bonded in it.
        within = first.residue is second.residue and first.residue.index in indices
        if pair not in known and not within:
            changed.addBond(made[first], made[second])
            known.add(pair)
    modeller.topology = changed
    return len(residues)


def _require_atoms(residue: Any, replacement: Replacement) -> None:
    names = {a.name for a in residue.atoms() if a.element is None or a.element.symbol != "H"}
    if missing := set(replacement.atoms) - names:
        raise InputError(
            f"residue {residue.name} {residue.id} has no atom {', '.join(sorted(missing))}; its "
            f"heavy atoms are {', '.join(sorted(names))}"
        )


def _element(name: str) -> Any:
    try:
        return app.element.get_by_symbol(name[0])
    except KeyError:
        raise InputError(
            f"atom name {name!r} of the new residue does not begin with its element; give the "
            "force field's name, e.g. SD"
        ) from None
