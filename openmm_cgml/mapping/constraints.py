"""Constraints of the all-atom run: from an OpenMM System, or found in the data."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from ..errors import InputError
from ..texts import read_xml


def constraint_groups(
    constraints: Iterable[tuple[int, int]], atoms: int
) -> tuple[tuple[int, ...], ...]:
    """Return the sets of atoms that constraints join, free atoms as groups of one.

    Raises:
        InputError: if a constraint names an atom that does not exist.
    """
    pairs = np.array(list(constraints), dtype=int).reshape(-1, 2)
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= atoms):
        raise InputError(
            f"a constraint names atom {int(pairs.max())} but there are {atoms} atoms; "
            "give the System of this topology"
        )
    graph = scipy.sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(atoms, atoms))
    component = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    groups: list[list[int]] = [[] for _ in range(component.max() + 1)]
    for atom, group in enumerate(component):
        groups[group].append(atom)
    return tuple(sorted(tuple(g) for g in groups))


def constraints_from_system(system: Any) -> list[tuple[int, int]]:
    """Return the constrained pairs of an OpenMM System, or of a System XML file's path.

    The XML is parsed as text, not deserialised: deserialising could run code that it holds.

    Raises:
        InputError: if the file is missing or not a System.
    """
    if hasattr(system, "getNumConstraints"):
        found = [system.getConstraintParameters(k) for k in range(system.getNumConstraints())]
        return [(int(i), int(j)) for i, j, _ in found]
    path = Path(system)
    root = read_xml(path, "System XML")
    if root.tag != "System":
        raise InputError(
            f"{path} holds a {root.tag}, not an OpenMM System; give a serialised System"
        )
    try:
        return [(int(c.get("p1", 0)), int(c.get("p2", 0))) for c in root.iterfind("Constraints/*")]
    except ValueError as error:
        raise InputError(
            f"{path} has a constraint without atoms ({error}); make it again"
        ) from None


class ConstraintFinder:
    """Find constrained distances in a trajectory, streamed: pairs whose length never changes.

    Candidates are atoms one or two bonds apart; memory does not grow with frames.

    Args:
        neighbours: each atom's bonded atoms.
        tolerance: largest standard deviation of a constrained distance, nm. Bonds that are free
            to vibrate have 0.002 nm or more at 300 K; rounding to 0.001 nm in XTC files leaves
            0.0004.
    """

    def __init__(self, neighbours: Sequence[Sequence[int]], tolerance: float = 1e-3) -> None:
        pairs = {(i, j) for i, around in enumerate(neighbours) for j in around if i < j}
        for around in neighbours:
            pairs |= {(i, j) for i in around for j in around if i < j}
        self.pairs = np.array(sorted(pairs), dtype=int).reshape(-1, 2)
        self.tolerance = tolerance
        self._reference = np.zeros(len(self.pairs))
        self._sum = np.zeros(len(self.pairs))
        self._square = np.zeros(len(self.pairs))
        self.frames = 0

    def add(self, positions: np.ndarray) -> None:
        """Add positions (frames, atoms, 3), nm."""
        if not len(self.pairs):
            return
        vectors = positions[:, self.pairs[:, 1]] - positions[:, self.pairs[:, 0]]
        lengths = np.sqrt((vectors**2).sum(-1))
        if self.frames == 0:
            self._reference = lengths[0]
        lengths = lengths - self._reference
        self._sum += lengths.sum(0)
        self._square += (lengths**2).sum(0)
        self.frames += len(lengths)

    def constraints(self) -> list[tuple[int, int]]:
        """Return the pairs found.

        Raises:
            InputError: if fewer than 10 frames were seen: too few to tell.
        """
        if self.frames < 10:
            raise InputError(
                f"{self.frames} frames are too few to find constraints in; "
                "give the OpenMM System, or constraints=()"
            )
        variance = self._square / self.frames - (self._sum / self.frames) ** 2
        fixed = np.sqrt(np.maximum(variance, 0)) < self.tolerance
        return [(int(i), int(j)) for i, j in self.pairs[fixed]]


def tie_matrix(groups: Sequence[Sequence[int]]) -> Any:
    """Return the sparse 0/1 (groups, atoms) matrix that sums atoms over their group."""
    rows = [g for g, atoms in enumerate(groups) for _ in atoms]
    columns = [a for atoms in groups for a in atoms]
    return scipy.sparse.csr_array((np.ones(len(rows)), (rows, columns)))
