"""Maps from a user's table of beads, which `mapping.table_file` reads."""

import difflib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..topology import atom_label, atom_masses
from .core import Mapping, bonded_neighbours, group_mapping
from .custom import select_atoms
from .residue import solute_residues
from .table_file import BeadRule, MappingTable, read_mapping_table


def table_mapping(top: Any, table: MappingTable | str | Path) -> Mapping:
    """Apply a mapping table to a topology.

    Beads by selection come first, in their order, then those of residues, in the topology's.

    Args:
        top: mdtraj.Topology.
        table: a `MappingTable`, or the .toml or .json file of one.

    Returns:
        A map of the table's name. Water and monatomic ions that the table does not name have no
        beads where there is anything else; `left_out` counts them.

    Raises:
        InputError: as `read_mapping_table`; or if a selection matches nothing, a residue is
            neither described nor left out, an atom is missing or in two beads, or the weights do
            not fit the atoms.
    """
    if not isinstance(table, MappingTable):
        table = read_mapping_table(table)
    where = f"mapping table {table.source}"
    maker = _Maker(top)
    for rule in table.beads:
        here = f"{where}: bead {rule.name}"
        try:
            atoms = select_atoms(top, rule.atoms[0])
        except InputError as error:
            raise InputError(f"{here}: {error}") from error
        maker.add(rule, atoms, here)
    replaced = [(0, len(table.beads), table.bonds)]
    by_selection = {top.atom(a).residue.index for group in maker.groups for a in group}
    solute = {residue.index for residue in solute_residues(top)}
    for residue in top.residues if table.residues else ():
        if residue.name not in table.residues:
            known = residue.name in table.leave_out or residue.index not in solute
            if not known and residue.index not in by_selection:
                raise InputError(_unknown_residue(residue, table, where))
            continue
        described = table.residues[residue.name]
        begin = len(maker.groups)
        named = _atoms_by_name(residue, where)
        for rule in described.beads:
            here = f"{where}: residue {residue}: bead {rule.name}"
            maker.add(rule, _resolve(rule, named, here), here)
        replaced.append((begin, len(maker.groups), described.bonds))
        if described.complete:
            _require_complete(residue, maker.groups[begin:], where)
    if not maker.groups:
        raise InputError(
            f"{where} gives this topology no beads: it has no residue of "
            f"{', '.join(dict.fromkeys(table.residues))}; check the residues' names"
        )
    if not table.shared_atoms:
        maker.require_disjoint(where)
    mapping = group_mapping(
        top,
        maker.groups,
        maker.weights,
        name=table.name,
        names=[rule.name for rule in maker.rules],
        types=[rule.type for rule in maker.rules],
    )
    bonds = set(mapping.topology.bonds)
    for begin, end, pairs in replaced:
        if pairs is not None:
            number = {maker.rules[bead].name: bead for bead in range(begin, end)}
            bonds = {(i, j) for i, j in bonds if not begin <= i < j < end}
            bonds |= {(number[i], number[j]) for i, j in pairs}
    return replace(mapping, topology=replace(mapping.topology, bonds=tuple(bonds)))


class _Maker:
    """The beads found so far: their rules, atoms and weights."""

    def __init__(self, top: Any) -> None:
        self.top = top
        self.masses = atom_masses(top)
        self.rules: list[BeadRule] = []
        self.groups: list[list[int]] = []
        self.weights: list[list[float]] = []
        self._neighbours = bonded_neighbours(top)
        self._hydrogens = {
            a.index for a in top.atoms if a.element is not None and a.element.symbol in ("H", "D")
        }

    def add(self, rule: BeadRule, atoms: list[int], where: str) -> None:
        """Add a bead.

        Raises:
            InputError: if hydrogens have no bonds, or the weights do not fit.
        """
        if rule.hydrogens:
            self._require_bonded_hydrogens(atoms, where)
            bonded = (h for a in atoms for h in self._neighbours[a] if h in self._hydrogens)
            atoms = list(dict.fromkeys([*atoms, *bonded]))
        self.rules.append(rule)
        self.groups.append(atoms)
        self.weights.append(self._weights(rule, atoms, where))

    def require_disjoint(self, where: str) -> None:
        """Refuse an atom in two beads."""
        owner: dict[int, int] = {}
        for bead, group in enumerate(self.groups):
            for atom in group:
                if owner.setdefault(atom, bead) != bead:
                    raise InputError(
                        f"{where}: atom {atom_label(self.top, atom)} is in the beads "
                        f"{self.rules[owner[atom]].name} and {self.rules[bead].name}; take it out "
                        "of one, or set shared_atoms = true"
                    )

    def _weights(self, rule: BeadRule, atoms: list[int], where: str) -> list[float]:
        if isinstance(rule.weights, tuple):
            if len(rule.weights) != len(atoms):
                raise InputError(
                    f"{where} has {len(rule.weights)} weights but {len(atoms)} atoms "
                    f"({', '.join(atom_label(self.top, a) for a in atoms[:12])}); give as many"
                )
            values = np.array(rule.weights)
        else:
            values = self.masses[atoms] if rule.weights == "mass" else np.ones(len(atoms))
        if not values.sum() > 0:
            raise InputError(
                f"{where} has no atoms with mass; choose atoms other than virtual sites"
            )
        return [float(v) for v in values / values.sum()]

    def _require_bonded_hydrogens(self, atoms: Iterable[int], where: str) -> None:
        for residue in dict.fromkeys(self.top.atom(a).residue for a in atoms):
            for atom in residue.atoms:
                if atom.index in self._hydrogens and not self._neighbours[atom.index]:
                    raise InputError(
                        f"{where} takes hydrogens, but {atom_label(self.top, atom.index)} has no "
                        "bond; give a topology with bonds (.prmtop, .psf, .pdb with CONECT "
                        "records), or hydrogens = false"
                    )


def _atoms_by_name(residue: Any, where: str) -> dict[str, int]:
    named: dict[str, int] = {}
    for atom in residue.atoms:
        if atom.name in named:
            raise InputError(
                f"{where}: residue {residue} has two atoms called {atom.name}, so names do not "
                "tell them apart; rename one in the topology"
            )
        named[atom.name] = atom.index
    return named


def _resolve(rule: BeadRule, named: dict[str, int], where: str) -> list[int]:
    """Return the atoms of a bead in one residue."""
    atoms = []
    for entry in rule.atoms:
        choices = entry.removesuffix("?").split("|")
        found = [named[choice] for choice in choices if choice in named]
        if len(found) > 1:
            raise InputError(
                f"{where} takes one of {', '.join(choices)}, but {len(found)} are there; "
                "name one alone"
            )
        if not found and not entry.endswith("?"):
            raise InputError(
                f"{where} takes an atom {' or '.join(choices)}, which is not there (atoms: "
                f"{', '.join(named)}); correct the name, add an alternative ({choices[0]}|OTHER), "
                f"or mark it as one that may be absent ({choices[0]}?)"
            )
        atoms += found
    if not atoms:
        raise InputError(f"{where} has none of its atoms; leave out the bead or the residue")
    return atoms


def _require_complete(residue: Any, groups: list[list[int]], where: str) -> None:
    """Refuse a residue with heavy atoms in no bead."""
    taken = {a for group in groups for a in group}
    for atom in residue.atoms:
        symbol = atom.element.symbol if atom.element is not None else "VS"
        if symbol not in ("H", "D", "VS") and atom.index not in taken:
            raise InputError(
                f"{where}: atom {residue}-{atom.name} is in no bead, although the table is "
                f"complete: {residue.name} is modified, or its atoms have other names; describe "
                f"it by [residues.{residue.name}] in a table of your own"
            )


def _unknown_residue(residue: Any, table: MappingTable, where: str) -> str:
    near = difflib.get_close_matches(residue.name, table.residues, n=1, cutoff=0.6)
    hint = f" (did you mean {near[0]}? then add it to the aliases there)" if near else ""
    return (
        f"{where} does not describe residue {residue}{hint}; add [residues.{residue.name}] to it, "
        f'or to your own that has include = "martini", or leave_out = ["{residue.name}"]'
    )
