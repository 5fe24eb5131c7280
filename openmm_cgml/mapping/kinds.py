"""Kinds of molecules: identical ones share the statistics of their forces and one force map.

A bead's force is best estimated from the atoms of its own molecule. Kept apart by molecule, force
maps stay small however large the system: a bilayer of 128 lipids has one kind and needs the
matrices of a single lipid, and the solvent needs none.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from .core import Mapping

#: Memory that the sums of one fit may take, bytes.
_MEMORY = 1 << 29
_FEWEST = 4  # blocks, whatever memory they take
# The residue's number in an atom's label, e.g. ALA2-CA.
_NUMBER = re.compile(r"-?\d+-(?=[^-]*$)")


@dataclass(frozen=True, eq=False)
class MoleculeKind:
    """Identical molecules that have beads; atoms, beads and groups are numbered within one.

    Attributes:
        atoms: (molecules, atoms) indices in the whole system.
        beads: (molecules, beads) indices in the mapping.
        groups: sets of atoms tied by constraints, free atoms as groups of one.
        matrix: dense (beads, atoms) position map of one molecule.
    """

    atoms: np.ndarray
    beads: np.ndarray
    groups: tuple[tuple[int, ...], ...]
    matrix: np.ndarray

    @property
    def tie(self) -> np.ndarray:
        """Dense 0/1 (groups, atoms) matrix that sums atoms over their group."""
        tie = np.zeros((len(self.groups), self.atoms.shape[1]))
        for group, atoms in enumerate(self.groups):
            tie[group, list(atoms)] = 1
        return tie

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Return (frames, atoms, 3) values as (frames x molecules, atoms of one, 3)."""
        return values[:, self.atoms].reshape(-1, self.atoms.shape[1], 3)


def molecule_kinds(mapping: Mapping, groups: Sequence[Sequence[int]]) -> tuple[MoleculeKind, ...]:
    """Return the kinds of molecules with beads.

    A molecule is what chemical bonds, constraints and shared beads join. Two are of one kind if
    their atoms' names, constraints and beads are the same in the same order. A mapping without
    bonds between atoms counts as one molecule.

    Args:
        mapping: the position map.
        groups: sets of atoms tied by constraints, free atoms as groups of one.
    """
    n = mapping.n_atoms
    if len(mapping.atom_bonds):
        joined = [mapping.atom_bonds]
        joined += [np.array([(g[0], a) for a in g[1:]]) for g in groups if len(g) > 1]
        joined += [
            np.array([(row[0], a) for a in row[1:]])
            for row in np.split(mapping.matrix.indices, mapping.matrix.indptr[1:-1])
            if len(row) > 1
        ]
        pairs = np.concatenate(joined)
        graph = scipy.sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(n, n))
        component = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    else:
        component = np.zeros(n, dtype=int)
    bead_home = component[mapping.matrix.indices[mapping.matrix.indptr[:-1]]]
    atoms_of, beads_of, groups_of = defaultdict(list), defaultdict(list), defaultdict(list)
    wanted = set(bead_home.tolist())
    for atom, home in enumerate(component.tolist()):
        if home in wanted:
            atoms_of[home].append(atom)
    for bead, home in enumerate(bead_home.tolist()):
        beads_of[home].append(bead)
    for group in groups:
        if component[group[0]] in wanted:
            groups_of[int(component[group[0]])].append(group)
    found: dict[tuple, list[int]] = {}
    local: dict[int, tuple[tuple[tuple[int, ...], ...], np.ndarray]] = {}
    for home in dict.fromkeys(bead_home.tolist()):
        atoms = atoms_of[home]
        index = {a: k for k, a in enumerate(atoms)}
        tied = tuple(tuple(index[a] for a in g) for g in groups_of[home])
        matrix = mapping.matrix[beads_of[home]][:, atoms].toarray()
        names = tuple(_NUMBER.sub("-", mapping.atom_labels[a]) for a in atoms)
        local[home] = tied, matrix
        found.setdefault((names, tied, matrix.tobytes()), []).append(home)
    return tuple(
        MoleculeKind(
            np.array([atoms_of[h] for h in homes]),
            np.array([beads_of[h] for h in homes]),
            *local[homes[0]],
        )
        for homes in found.values()
    )


class BlockSums:
    """Sums over contiguous blocks of a stream of frames, for cross-validation.

    Memory does not grow with the number of frames: when there are too many blocks, neighbours
    are joined and blocks double.

    Args:
        shapes: of the arrays that are summed.
        block_frames: consecutive frames of the first blocks.

    Attributes:
        blocks: for each block the sums, one array a shape.
        frames: number of frames in each block.
    """

    max_blocks = 40
    #: Numbers that a block may have, so that there is room for enough of them.
    room = _MEMORY // (8 * _FEWEST)

    def __init__(self, shapes: Sequence[tuple[int, ...]], block_frames: int = 250) -> None:
        self._shapes = [tuple(shape) for shape in shapes]
        size = 8 * sum(int(np.prod(shape)) for shape in self._shapes)
        room = 2 * int(_MEMORY // (2 * max(size, 1)))  # joined in pairs, so even
        self.max_blocks = min(type(self).max_blocks, max(room, _FEWEST))
        self._block_frames = block_frames
        self.blocks: list[list[np.ndarray]] = []
        self.frames: list[int] = []

    def add(self, count: int, evaluate: Callable[[slice], Sequence[np.ndarray]]) -> None:
        """Add `count` frames that follow those added before.

        Args:
            count: number of frames.
            evaluate: returns the sums over a slice of them, one array a shape.
        """
        start = 0
        while start < count:
            if not self.frames or self.frames[-1] >= self._block_frames:
                self._open_block()
            stop = min(count, start + self._block_frames - self.frames[-1])
            for total, part in zip(self.blocks[-1], evaluate(slice(start, stop)), strict=True):
                total += part
            self.frames[-1] += stop - start
            start = stop

    def total(self) -> list[np.ndarray]:
        """Return the sums over all frames."""
        return [sum(parts[1:], start=parts[0].copy()) for parts in zip(*self.blocks, strict=True)]

    def folds(self, count: int = 5) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        """Yield the sums over all but a stretch of blocks, and over it; nothing if one block."""
        if len(self.blocks) < 2:
            return
        total = self.total()
        for stretch in np.array_split(np.arange(len(self.blocks)), min(count, len(self.blocks))):
            held = [
                sum(parts[1:], start=parts[0].copy())
                for parts in zip(*(self.blocks[b] for b in stretch), strict=True)
            ]
            yield [t - h for t, h in zip(total, held, strict=True)], held

    def _open_block(self) -> None:
        if len(self.blocks) == self.max_blocks:
            pairs = zip(self.blocks[::2], self.blocks[1::2], strict=True)
            self.blocks = [[a + b for a, b in zip(x, y, strict=True)] for x, y in pairs]
            self.frames = [a + b for a, b in zip(self.frames[::2], self.frames[1::2], strict=True)]
            self._block_frames *= 2
        self.blocks.append([np.zeros(shape) for shape in self._shapes])
        self.frames.append(0)
