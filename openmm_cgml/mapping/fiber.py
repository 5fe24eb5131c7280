"""What a linear map leaves out: the fiber of atom positions above given beads.

    r = L R + Q' c,    R = M r,    c = Q (r - L R)

with Q an orthonormal basis of the null space of M, and L a lift, M L = 1, that moves with the
beads. All of it acts on each Cartesian axis alone.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Fiber:
    """The linear algebra of one molecule's map; see `fiber_of`.

    Attributes:
        matrix: M (beads, atoms), of full rank, rows summing to one.
        lift: L (atoms, beads), rows summing to one.
        basis: Q (atoms - beads, atoms).
        projector: Q' Q (atoms, atoms).
        assigned: (atoms, beads), rows summing to one: which beads an atom goes with.
    """

    matrix: np.ndarray
    lift: np.ndarray
    basis: np.ndarray
    projector: np.ndarray
    assigned: np.ndarray

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return self.matrix.shape[1]

    @property
    def beads(self) -> int:
        """Number of beads."""
        return self.matrix.shape[0]

    @property
    def removed(self) -> int:
        """Degrees of freedom that the map removes, of all three axes."""
        return 3 * (self.atoms - self.beads)

    @property
    def log_volume(self) -> float:
        """Ln det(M M') / 2 of all three axes: 0 for a slice.

        A density of the atoms at given beads, nm^-(3 atoms) over that of the beads, is that of c
        times the exponential of this.
        """
        return 1.5 * float(np.linalg.slogdet(self.matrix @ self.matrix.T)[1])

    @property
    def home(self) -> np.ndarray:
        """(atoms,) the bead that each atom goes with most."""
        return self.assigned.argmax(1)

    def beads_of(self, positions: np.ndarray) -> np.ndarray:
        """Return beads (frames, beads, 3) of atoms (frames, atoms, 3), nm."""
        return np.einsum("ba,fak->fbk", self.matrix, positions)

    def offsets(self, positions: np.ndarray) -> np.ndarray:
        """Return r - L M r (frames, atoms, 3), nm: how far atoms are from their lifted places.

        Args:
            positions: (frames, atoms, 3), nm.
        """
        return positions - np.einsum("ab,fbk->fak", self.lift, self.beads_of(positions))

    def place(self, beads: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return atoms whose beads are the given ones to round-off, (frames, atoms, 3), nm.

        Args:
            beads: (frames, beads, 3), nm.
            offsets: (frames, atoms, 3), nm; what of them would move a bead is taken away.
        """
        lifted = np.einsum("ab,fbk->fak", self.lift, np.asarray(beads, dtype=np.float64))
        return lifted + np.einsum("ac,fck->fak", self.projector, np.asarray(offsets, np.float64))


def fiber_of(
    matrix: np.ndarray,
    bonds: Sequence[tuple[int, int]] = (),
    labels: Sequence[str] | None = None,
) -> Fiber:
    """Return the fiber of a map.

    Args:
        matrix: (beads, atoms), rows summing to one.
        bonds: between atoms; those that are in no bead go with the nearest.
        labels: of the beads, for messages.

    Raises:
        InputError: if the map keeps all degrees of freedom, or beads depend on each other.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    beads, atoms = matrix.shape
    names = list(labels) if labels is not None else [str(b) for b in range(beads)]
    values = np.linalg.svd(matrix, compute_uv=False)
    if len(values) < beads or values[-1] < 1e-9 * values[0]:
        raise InputError(
            f"the position of {_dependent(matrix, names)} is given by the other beads; leave it "
            "out of the map"
        )
    if beads == atoms:
        raise InputError(
            f"the map has as many beads as atoms ({atoms}), so that nothing is left to be "
            "generated; choose a coarser one"
        )
    basis = np.linalg.svd(matrix, full_matrices=True)[2][beads:]
    projector = basis.T @ basis
    assigned = _assigned(np.abs(matrix), bonds)
    lift = np.linalg.pinv(matrix) + projector @ assigned
    if ((matrix != 0).sum(1) == 1).all():
        # A slice: exact zeros and ones, so that atoms that are beads stay bit for bit.
        kept = (matrix != 0).any(0)
        projector = np.diag((~kept).astype(float))
        lift = np.where(kept[:, None], (matrix != 0).T.astype(float), assigned)
    return Fiber(matrix, lift, basis, projector, assigned)


def _dependent(matrix: np.ndarray, names: list[str]) -> str:
    """Return the first bead that is a combination of those before it."""
    for bead in range(1, len(matrix)):
        values = np.linalg.svd(matrix[: bead + 1], compute_uv=False)
        if len(values) <= bead or values[-1] < 1e-9 * values[0]:
            return f"bead {names[bead]}"
    return f"bead {names[-1]}"


def _assigned(weights: np.ndarray, bonds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return (atoms, beads): shares in the beads, or the bead that is nearest along bonds."""
    beads, atoms = weights.shape
    found = np.zeros((atoms, beads))
    total = weights.sum(0)
    inside = total > 0
    found[inside] = (weights[:, inside] / total[inside]).T
    around: list[list[int]] = [[] for _ in range(atoms)]
    for first, second in bonds:
        around[first].append(second)
        around[second].append(first)
    reached, queue = inside.copy(), deque(np.flatnonzero(inside).tolist())
    while queue:
        atom = queue.popleft()
        for other in sorted(around[atom]):
            if not reached[other]:
                found[other, found[atom].argmax()] = 1.0
                reached[other] = True
                queue.append(other)
    for atom in np.flatnonzero(~reached):  # bonded to none: with the bead of the nearest number
        other = np.flatnonzero(reached)[np.abs(np.flatnonzero(reached) - atom).argmin()]
        found[atom, found[other].argmax()] = 1.0
    return found
