"""Collective variables of all-atom runs: torsions, distances and angles of atoms."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from ..errors import InputError
from ..mapping import MAPPINGS
from ..mapping.core import Mapping, bonded_neighbours
from ..topology import atom_label

#: Kinds of variable -> how many atoms they have.
KINDS = {"torsion": 4, "angle": 3, "distance": 2}


@dataclass(frozen=True)
class CollectiveVariable:
    """A torsion (radians, from -pi to pi), an angle (radians) or a distance (nm) of atoms.

    Attributes:
        kind: one of `KINDS`.
        atoms: indices of its atoms.
        name: what datasets call it.
        low, high: ends of the range in which a metadynamics bias acts, with walls beyond; of a
            torsion the whole circle, of an angle 0 to pi, and None for a distance: give them.

    Raises:
        InputError: if the kind is unknown, atoms are too few or equal, or the range is empty.
    """

    kind: str
    atoms: tuple[int, ...]
    name: str = ""
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind of variable is {self.kind!r}; give one of {', '.join(KINDS)}")
        atoms = tuple(int(a) for a in self.atoms)
        object.__setattr__(self, "atoms", atoms)
        object.__setattr__(self, "name", self.name or f"{self.kind}:{','.join(map(str, atoms))}")
        if len(atoms) != KINDS[self.kind]:
            raise InputError(
                f"variable {self.name} has {len(atoms)} atoms; a {self.kind} needs "
                f"{KINDS[self.kind]}"
            )
        if len(set(atoms)) < len(atoms):
            raise InputError(f"variable {self.name} has an atom twice; give different atoms")
        if self.periodic:
            if (self.low, self.high) not in ((None, None), (-math.pi, math.pi)):
                raise InputError(
                    f"variable {self.name} is a torsion and goes round the whole circle; leave "
                    "its range out"
                )
            object.__setattr__(self, "low", -math.pi)
            object.__setattr__(self, "high", math.pi)
        elif self.kind == "angle":
            object.__setattr__(self, "low", 0.0 if self.low is None else float(self.low))
            object.__setattr__(self, "high", math.pi if self.high is None else float(self.high))
        if (self.low is None) != (self.high is None) or (
            self.low is not None and self.high is not None and not self.low < self.high
        ):
            raise InputError(
                f"range of variable {self.name} is {self.low} to {self.high}; give a lower and a "
                "higher end"
            )

    @property
    def periodic(self) -> bool:
        """Whether both ends of its range are the same place."""
        return self.kind == "torsion"

    @property
    def unit(self) -> str:
        """Unit of its values."""
        return "nm" if self.kind == "distance" else "rad"

    def values(self, positions: np.ndarray) -> np.ndarray:
        """Return its value in each frame, (frames,), from whole molecules.

        Args:
            positions: (frames, atoms, 3), nm.
        """
        points = np.asarray(positions, dtype=np.float64)[:, list(self.atoms)]
        bonds = np.diff(points, axis=1)
        if self.kind == "distance":
            return np.linalg.norm(bonds[:, 0], axis=-1)
        if self.kind == "angle":
            back, on = -bonds[:, 0], bonds[:, 1]
            across = np.linalg.norm(np.cross(back, on), axis=-1)
            return np.arctan2(across, (back * on).sum(-1))
        first, middle, last = bonds[:, 0], bonds[:, 1], bonds[:, 2]
        one, two = np.cross(first, middle), np.cross(middle, last)
        length = np.linalg.norm(middle, axis=-1)
        # OpenMM's sign is the same: IUPAC's.
        return np.arctan2(length * (first * two).sum(-1), (one * two).sum(-1))

    def expression(self, order: dict[int, int]) -> str:
        """Return the variable in the language of OpenMM's custom forces.

        Args:
            order: atom -> its number, from 1, in the force.
        """
        names = ", ".join(f"p{order[a]}" for a in self.atoms)
        function = "dihedral" if self.kind == "torsion" else self.kind
        return f"{function}({names})"


def variable_values(variables: Sequence[CollectiveVariable], positions: np.ndarray) -> np.ndarray:
    """Return the values of several variables, (frames, variables)."""
    if not variables:
        return np.zeros((len(positions), 0))
    return np.stack([v.values(positions) for v in variables], axis=1)


def parse_variable(text: str, top: Any) -> CollectiveVariable:
    """Read a variable from text.

    Args:
        text: ``phi`` or ``psi`` with a residue number (``phi:2``, which may be left out where
            there is one), or ``torsion:``, ``angle:``, ``distance:`` and atoms with commas, by
            label (``ALA2-CA``) or index from 0. ``@LOW:HIGH`` after it is the range, nm or
            radians: ``distance:ALA2-N,GLY9-O@0.2:1.8``.
        top: mdtraj.Topology of these atoms.

    Raises:
        InputError: if it cannot be read or an atom or residue is not there.
    """
    body, _, span = text.strip().partition("@")
    low, high = _range(text, span) if span else (None, None)
    kind, _, rest = body.partition(":")
    kind = kind.strip().lower()
    if kind in ("phi", "psi"):
        if span:
            raise InputError(f"variable {text!r} is a torsion; leave its range out")
        return _backbone_torsion(kind, rest.strip(), top)
    if kind not in KINDS:
        raise InputError(
            f"variable {text!r} cannot be read; give e.g. phi:2, psi:2, or {', '.join(KINDS)} "
            "with atoms, such as distance:ALA2-N,ALA2-C"
        )
    atoms = [_atom(part.strip(), text, top) for part in rest.split(",") if part.strip()]
    name = f"{kind}:{','.join(atom_label(top, a) for a in atoms)}"
    return CollectiveVariable(kind, tuple(atoms), name, low, high)


def _range(text: str, span: str) -> tuple[float, float]:
    try:
        low, high = (float(x) for x in span.split(":"))
    except ValueError:
        raise InputError(
            f"range of variable {text!r} cannot be read; give @LOW:HIGH, e.g. @0.2:1.8"
        ) from None
    return low, high


def _atom(name: str, text: str, top: Any) -> int:
    if re.fullmatch(r"\d+", name):
        index = int(name)
        if index >= top.n_atoms:
            raise InputError(
                f"variable {text!r} names atom {index}, but atoms are 0 to {top.n_atoms - 1}"
            )
        return index
    found = [a for a in range(top.n_atoms) if atom_label(top, a) == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"variable {text!r}: {len(found)} atoms are called {name} (atoms "
            f"{', '.join(map(str, found[:4]))}, ...); give the index of one, from 0"
        )
    import difflib

    near = difflib.get_close_matches(
        name, [atom_label(top, a) for a in range(top.n_atoms)], 3, 0.5
    )
    hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    raise InputError(f"variable {text!r}: there is no atom {name}{hint}")


def _backbone_torsion(kind: str, residue: str, top: Any) -> CollectiveVariable:
    """Find phi or psi along bonds, so that names of atoms do not matter."""
    beads = MAPPINGS["backbone"](top)
    kinds = dict(zip(beads.matrix.indices.tolist(), beads.topology.bead_types, strict=True))
    neighbours = bonded_neighbours(top)
    found: dict[int, list[tuple[int, ...]]] = {}
    for alpha, what in kinds.items():
        if what != "CA":
            continue
        nitrogen = _next(kinds, neighbours, alpha, "N")
        carbon = _next(kinds, neighbours, alpha, "C")
        if kind == "phi":
            atoms = (_next(kinds, neighbours, nitrogen, "C"), nitrogen, alpha, carbon)
        else:
            atoms = (nitrogen, alpha, carbon, _next(kinds, neighbours, carbon, "N"))
        if all(a is not None for a in atoms):
            number = int(top.atom(alpha).residue.resSeq)
            found.setdefault(number, []).append(tuple(int(a) for a in atoms if a is not None))
    listed = ", ".join(f"{kind}:{n}" for n in found) or "none"
    if residue:
        if not re.fullmatch(r"-?\d+", residue):
            raise InputError(
                f"variable {kind}:{residue} needs a residue number; there are {listed}"
            )
        chosen = found.get(int(residue), [])
        if not chosen:
            raise InputError(f"there is no {kind} of residue {residue}; there are {listed}")
    else:
        chosen = [atoms for several in found.values() for atoms in several]
        if len(chosen) != 1:
            raise InputError(
                f"{kind} needs a residue number, since there are {len(chosen)}: {listed}"
            )
        residue = str(next(iter(found)))
    if len(chosen) > 1:
        raise InputError(
            f"{kind}:{residue} is in {len(chosen)} chains; give torsion:A,B,C,D with indices"
        )
    return CollectiveVariable("torsion", chosen[0], f"{kind}:{residue}")


def _next(
    kinds: dict[int, str], neighbours: list[list[int]], atom: int | None, kind: str
) -> int | None:
    if atom is None:
        return None
    return next((a for a in neighbours[atom] if kinds.get(a) == kind), None)


def require_function_of_beads(
    variables: Sequence[CollectiveVariable],
    mapping: Mapping,
    advice: str,
    atoms: Sequence[int] | np.ndarray | None = None,
    top: Any = None,
) -> None:
    """Refuse variables that the beads' positions do not determine.

    A bias along such a variable is not constant on the atomistic states of one bead
    configuration, so it changes the mean of the mapped forces there, and no frame weight that
    force matching would use undoes it. A variable is determined if the differences between its
    atoms' positions are linear combinations of bead positions.

    Args:
        variables: of the atoms of `mapping`, or of a larger topology.
        mapping: the position map.
        advice: what else could be done, for the message.
        atoms: the mapping's atoms in the larger topology; None: there is none.
        top: the larger mdtraj.Topology.

    Raises:
        InputError: naming the variable and the atom.
    """
    for variable in variables:
        require_kept_atoms(variable.name, variable.atoms, mapping, advice, atoms, top)


def require_kept_atoms(
    name: str,
    used: Sequence[int],
    mapping: Mapping,
    advice: str,
    atoms: Sequence[int] | np.ndarray | None = None,
    top: Any = None,
) -> None:
    """Refuse a function of the relative positions of atoms that beads do not determine.

    Args:
        name: what the function is called.
        used: its atoms.
        mapping, advice, atoms, top: as in `require_function_of_beads`.

    Raises:
        InputError: naming the atom.
    """
    number = {int(a): k for k, a in enumerate(range(mapping.n_atoms) if atoms is None else atoms)}
    outside = [a for a in used if a not in number]
    if outside:
        label = f"atom {outside[0]}" if top is None else atom_label(top, outside[0])
        raise InputError(
            f"variable {name} is not a function of the beads: {label} is not part of the mapped "
            f"molecules; bias along kept atoms, or {advice}"
        )
    here = [number[a] for a in used]
    rows = [_unit(a, mapping.n_atoms) for a in here]
    hidden = [a for a, row in zip(here, rows, strict=True) if not _in_row_space(row, mapping)]
    if not hidden or all(_in_row_space(row - rows[0], mapping) for row in rows[1:]):
        return
    labels = ", ".join(mapping.atom_labels[a] for a in hidden)
    raise InputError(
        f"variable {name} is not a function of the beads: the map does not keep {labels}. A bias "
        "along it would change the mean force on the beads; bias along kept atoms, keep "
        f"{'this atom' if len(hidden) == 1 else 'these atoms'}, or {advice}"
    )


def require_one_molecule(
    variables: Sequence[CollectiveVariable], bonds: Sequence[tuple[int, int]], top: Any
) -> None:
    """Refuse variables across molecules of a periodic box: their image would not be defined.

    Raises:
        InputError: naming the variable and two atoms.
    """
    pairs = np.array(bonds, dtype=int).reshape(-1, 2)
    graph = scipy.sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(top.n_atoms,) * 2)
    molecule = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    for variable in variables:
        first, *others = variable.atoms
        for other in others:
            if molecule[other] != molecule[first]:
                raise InputError(
                    f"variable {variable.name} joins {atom_label(top, first)} and "
                    f"{atom_label(top, other)} of two molecules in a periodic box, where either "
                    "may be in any image; use variables within a molecule"
                )


def _unit(atom: int, atoms: int) -> np.ndarray:
    row = np.zeros(atoms)
    row[atom] = 1.0
    return row


def _in_row_space(row: np.ndarray, mapping: Mapping) -> bool:
    """Whether a row vector over atoms is a combination of the mapping matrix's rows.

    Only beads connected to its atoms through shared atoms matter: the others' rows have no
    atom in common with them.
    """
    matrix = mapping.matrix
    beads, atoms = matrix.shape
    coo = matrix.tocoo()
    graph = scipy.sparse.coo_array(
        (np.ones(coo.nnz), (coo.row, beads + coo.col)), shape=(beads + atoms,) * 2
    )
    component = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    touched = set(component[beads + np.flatnonzero(row)])
    rows = np.flatnonzero([c in touched for c in component[:beads]])
    columns = np.flatnonzero([c in touched for c in component[beads:]])
    if not len(rows):
        return False
    part = matrix[rows].toarray()[:, columns]
    found, *_ = np.linalg.lstsq(part.T, row[columns], rcond=None)
    return bool(np.abs(part.T @ found - row[columns]).max() < 1e-9)
