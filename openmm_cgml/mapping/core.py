"""`Mapping`: a linear map of atom positions to beads, and the makers of its two common kinds."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse

from ..errors import InputError
from ..topology import CGTopology, atom_label, atom_masses

#: Frames that `apply_matrix` takes at a time.
_BLOCK_FRAMES = 128


@dataclass(frozen=True, eq=False)
class Mapping:
    """A linear map R = M r from atoms to beads, with the beads' topology.

    Attributes:
        name: the preset's name, or ``"custom"``.
        matrix: sparse (beads, atoms); rows sum to one, so translations are kept.
        topology: the beads.
        atom_labels: names of the atoms, for messages.
        atom_bonds: (bonds, 2) chemical bonds between atoms; they tell molecules apart.

    Raises:
        InputError: if a row does not sum to one, a bead has no atoms, or two beads are equal.
    """

    name: str
    matrix: Any
    topology: CGTopology
    atom_labels: tuple[str, ...]
    atom_bonds: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=int))

    def __post_init__(self) -> None:
        matrix = scipy.sparse.csr_array(self.matrix, dtype=np.float64)
        matrix.eliminate_zeros()
        matrix.sort_indices()  # so that equal beads are equal bytes
        object.__setattr__(self, "matrix", matrix)
        bonds = np.asarray(self.atom_bonds, dtype=int).reshape(-1, 2)
        object.__setattr__(self, "atom_bonds", bonds)
        if matrix.shape != (len(self.topology), len(self.atom_labels)):
            raise InputError(
                f"mapping matrix has shape {matrix.shape} but there are {len(self.topology)} "
                f"beads and {len(self.atom_labels)} atoms"
            )
        counts = np.diff(matrix.indptr)
        sums = np.asarray(matrix.sum(axis=1)).ravel()
        seen: dict[bytes, int] = {}
        for bead in range(len(self.topology)):
            label = self.topology.label(bead)
            if counts[bead] == 0:
                raise InputError(f"mapping leaves bead {label} without atoms; give it some")
            if not abs(sums[bead] - 1) <= 1e-9:
                raise InputError(
                    f"weights of bead {label} sum to {sums[bead]:.6g}, not 1; normalise them"
                )
            row = matrix[[bead]]
            key = row.indices.tobytes() + row.data.tobytes()
            if key in seen:
                other = self.topology.label(seen[key])
                raise InputError(
                    f"beads {other} and {label} are the same atoms "
                    f"({', '.join(self.atom_labels[a] for a in row.indices)}); remove one"
                )
            seen[key] = bead

    @property
    def n_atoms(self) -> int:
        """Number of atoms that the map takes."""
        return len(self.atom_labels)

    @property
    def is_slice(self) -> bool:
        """Whether every bead is one atom."""
        return bool((np.diff(self.matrix.indptr) == 1).all())

    def map_positions(self, positions: np.ndarray) -> np.ndarray:
        """Map positions (frames, atoms, 3) to (frames, beads, 3), nm.

        Raises:
            InputError: if the number of atoms differs.
        """
        return apply_matrix(self.matrix, positions)


def apply_matrix(matrix: Any, values: np.ndarray) -> np.ndarray:
    """Apply a (beads, atoms) matrix to each Cartesian axis of (frames, atoms, 3) values.

    Sums are taken in float64, and so returned; where every bead is one atom, that atom's values
    are returned as they are, in their own type.

    Raises:
        InputError: if the number of atoms differs.
    """
    values = np.asarray(values)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if values.ndim != 3 or values.shape[1:] != (matrix.shape[1], 3):
        raise InputError(
            f"values have shape {values.shape} but the map takes (frames, {matrix.shape[1]}, 3); "
            "give the trajectory that the mapping was made for"
        )
    matrix = scipy.sparse.csr_array(matrix)
    beads, frames = matrix.shape[0], len(values)
    if len(matrix.data) == beads and (np.diff(matrix.indptr) == 1).all() and _ones(matrix.data):
        return np.take(values, matrix.indices, axis=1)  # atoms that are kept, exactly
    used = np.unique(matrix.indices)
    if len(used) < matrix.shape[1]:
        matrix = matrix[:, used]
    mapped = np.empty((frames, beads, 3))
    # A sparse product wants atoms first. A block at a time they are turned in the cache, and there
    # is no copy of all atoms in float64.
    for start in range(0, frames, _BLOCK_FRAMES):
        block = values[start : start + _BLOCK_FRAMES]
        if len(used) < values.shape[1]:
            block = np.take(block, used, axis=1)
        flat = np.ascontiguousarray(block.transpose(1, 2, 0), dtype=np.float64)
        product = np.asarray(matrix @ flat.reshape(len(used), -1))
        mapped[start : start + len(block)] = product.reshape(beads, 3, -1).transpose(2, 0, 1)
    return mapped


def _ones(values: np.ndarray) -> bool:
    return bool((values == 1).all())


def triplets(matrix: Any) -> dict[str, list[Any]]:
    """Return a sparse matrix as JSON-able lists."""
    coo = matrix.tocoo()
    return {
        "row": coo.row.tolist(),
        "column": coo.col.tolist(),
        "value": coo.data.tolist(),
    }


def slice_mapping(
    top: Any,
    atoms: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
    name: str = "custom",
) -> Mapping:
    """Return the map that keeps the given atoms, one a bead.

    Args:
        top: mdtraj.Topology.
        atoms: indices of the kept atoms, in the order of the beads.
        names: bead names; the atom names if None.
        types: bead types; the names if None.
        name: name of the mapping.

    Raises:
        InputError: if no atom is given, one twice, or one that does not exist.
    """
    return group_mapping(
        top, [[a] for a in atoms], [[1.0] for _ in atoms], name=name, names=names, types=types
    )


def com_mapping(
    top: Any,
    groups: Sequence[Sequence[int]],
    *,
    names: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
    name: str = "custom",
) -> Mapping:
    """Return the map to the centres of mass of groups of atoms.

    Args:
        top: mdtraj.Topology.
        groups: atom indices of each bead.
        names: bead names; the first atom's name if None.
        types: bead types; the names if None.
        name: name of the mapping.

    Raises:
        InputError: if a group is empty or massless, or names an atom that does not exist.
    """
    _check_groups(top, groups, names, name)
    masses = atom_masses(top)
    weights = []
    for bead, group in enumerate(groups):
        total = float(sum(masses[a] for a in group))
        if not total > 0:
            raise InputError(
                f"bead {names[bead] if names else bead} of mapping {name!r} has no atoms with "
                "mass; choose atoms other than virtual sites"
            )
        weights.append([float(masses[a]) / total for a in group])
    return group_mapping(top, groups, weights, name=name, names=names, types=types)


def group_mapping(
    top: Any,
    groups: Sequence[Sequence[int]],
    weights: Sequence[Sequence[float]],
    *,
    name: str = "custom",
    names: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
) -> Mapping:
    """Return the map whose beads are weighted sums of atoms.

    A bead belongs to its first atom's residue. Its mass is that of its momentum,
    1 / sum(w^2 / m) (Noid et al. 2008, doi:10.1063/1.2938860, eq. 23): the atom's for a kept
    atom, the total for a centre of mass. Beads are bonded where the molecule's graph, contracted
    to its nearest beads, is.

    Args:
        top: mdtraj.Topology.
        groups: atom indices of each bead.
        weights: their weights, each summing to one.
        name: name of the mapping.
        names: bead names; the first atom's name if None.
        types: bead types; the names if None.

    Raises:
        InputError: as `Mapping`.
    """
    _check_groups(top, groups, names, name)
    if [len(group) for group in weights] != [len(group) for group in groups]:
        raise InputError(f"mapping {name!r} needs one weight an atom; give as many")
    rows = [bead for bead, group in enumerate(groups) for _ in group]
    columns = [int(a) for group in groups for a in group]
    values = [float(w) for group in weights for w in group]
    matrix = scipy.sparse.csr_array((values, (rows, columns)), shape=(len(groups), top.n_atoms))
    masses = atom_masses(top)
    first = [top.atom(int(group[0])) for group in groups]
    bead_names = tuple(names) if names is not None else tuple(a.name for a in first)
    beads = CGTopology(
        bead_names=bead_names,
        bead_types=tuple(types) if types is not None else bead_names,
        residue_names=tuple(a.residue.name for a in first),
        residue_ids=tuple(int(a.residue.resSeq) for a in first),
        chain_ids=tuple(
            str(getattr(a.residue.chain, "chain_id", None) or a.residue.chain.index) for a in first
        ),
        bonds=(),
        masses=tuple(_momentum_mass(g, w, masses) for g, w in zip(groups, weights, strict=True)),
    )
    labels = tuple(atom_label(top, a) for a in range(top.n_atoms))
    bonds = _contracted_bonds(top, [set(map(int, group)) for group in groups])
    atom_bonds = np.array([(a.index, b.index) for a, b in top.bonds]).reshape(-1, 2)
    return Mapping(name, matrix, replace(beads, bonds=bonds), labels, atom_bonds)


def _check_groups(
    top: Any, groups: Sequence[Sequence[int]], names: Sequence[str] | None, name: str
) -> None:
    if not groups:
        raise InputError(f"mapping {name!r} has no beads; the selection matched no atoms")
    if names is not None and len(names) != len(groups):
        raise InputError(
            f"mapping {name!r} has {len(groups)} beads but {len(names)} names; give one a bead"
        )
    for bead, group in enumerate(groups):
        label = f"bead {names[bead] if names is not None else bead}"
        if not len(group):
            raise InputError(f"mapping {name!r} leaves {label} without atoms; give it some")
        wrong = [a for a in group if a != int(a) or not 0 <= a < top.n_atoms]
        if wrong:
            raise InputError(
                f"{label} of mapping {name!r} names atom {wrong[0]} but atoms are 0 to "
                f"{top.n_atoms - 1}; count from 0"
            )
        twice = [a for a, count in Counter(group).items() if count > 1]
        if twice:
            raise InputError(
                f"{label} of mapping {name!r} has atom {atom_label(top, twice[0])} twice; "
                "list it once"
            )


def bonded_neighbours(top: Any) -> list[list[int]]:
    """Return each atom's bonded atoms of an mdtraj.Topology."""
    neighbours: list[list[int]] = [[] for _ in range(top.n_atoms)]
    for a, b in top.bonds:
        neighbours[a.index].append(b.index)
        neighbours[b.index].append(a.index)
    return neighbours


def _momentum_mass(group: Sequence[int], weights: Sequence[float], masses: np.ndarray) -> float:
    used = [(w, masses[a]) for a, w in zip(group, weights, strict=True) if w != 0]
    if any(m <= 0 for _, m in used):
        return 0.0  # CGTopology names the bead
    if not used:
        return 1.0  # Mapping names the bead
    return float(1 / sum(w**2 / m for w, m in used))


def _contracted_bonds(top: Any, groups: list[set[int]]) -> tuple[tuple[int, int], ...]:
    """Bond two beads if a chemical bond joins the atoms nearest to each, counted in bonds.

    Atoms outside the map go to the bead that a breadth-first search along bonds reaches them
    from first (the lower bead on a tie), so C-alpha beads of neighbouring residues are bonded
    although no chemical bond joins them.
    """
    neighbours = bonded_neighbours(top)
    owners: dict[int, set[int]] = {}
    queue: deque[int] = deque()
    for bead, group in enumerate(groups):
        for atom in sorted(group):
            if atom not in owners:
                owners[atom] = set()
                queue.append(atom)
            owners[atom].add(bead)
    while queue:
        atom = queue.popleft()
        for other in neighbours[atom]:
            if other not in owners:
                owners[other] = {min(owners[atom])}
                queue.append(other)
    bonds = set()
    for a, b in top.bonds:
        for i in owners.get(a.index, ()):
            for j in owners.get(b.index, ()):
                if i != j:
                    bonds.add((min(i, j), max(i, j)))
    return tuple(sorted(bonds))
