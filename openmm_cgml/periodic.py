"""Periodic boxes: their vectors, and molecules made whole across their boundaries."""

from collections.abc import Iterable
from itertools import pairwise, product
from typing import Any

import numpy as np

from .errors import InputError
from .topology import atom_label

#: Bonds times frames that are looked at together: bounds the memory, and stays in the cache.
_BLOCK = 25_000

_REMEDY = "make molecules whole first (e.g. mdtraj's image_molecules)"


def box_vectors(lengths: Any, angles: Any) -> np.ndarray:
    """Return box vectors (frames, 3, 3), nm: rows a along x, b in the xy plane, c.

    Angles that no box has give vectors that are not finite, for `require_boxes` to name.

    Args:
        lengths: (frames, 3), of a, b and c, nm.
        angles: (frames, 3), alpha (b to c), beta (a to c), gamma (a to b), degrees.
    """
    a, b, c = np.asarray(lengths, dtype=np.float64).T
    degrees = np.asarray(angles, dtype=np.float64).T
    # Exact at right angles, where the cosine of 90 degrees in radians is 6e-17.
    alpha, beta, gamma = np.where(degrees == 90, 0.0, np.cos(np.radians(degrees)))
    vectors = np.zeros((len(a), 3, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        sine = np.sqrt(1 - gamma**2)
        vectors[:, 0, 0] = a
        vectors[:, 1, 0], vectors[:, 1, 1] = b * gamma, b * sine
        vectors[:, 2, 0], vectors[:, 2, 1] = c * beta, c * (alpha - beta * gamma) / sine
        vectors[:, 2, 2] = np.sqrt(c**2 - vectors[:, 2, 0] ** 2 - vectors[:, 2, 1] ** 2)
    # Angles that were rounded to float32 leave some 1e-7 of what is a zero.
    vectors[np.abs(vectors) < 1e-6] = 0.0
    vectors[(a == 0) & (b == 0) & (c == 0)] = 0.0  # no box, whatever its angles
    return vectors


def box_edges(box: np.ndarray) -> np.ndarray:
    """Return (..., 3), nm: the diagonal of the box turned to have a along x and b in xy.

    A vector shorter than half the smallest is shorter than all its periodic images.
    """
    a, b = box[..., 0, :], box[..., 1, :]
    normal = np.cross(a, b)
    length, area = np.linalg.norm(a, axis=-1), np.linalg.norm(normal, axis=-1)
    volume = (normal * box[..., 2, :]).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([length, area / length, volume / area], axis=-1)


def require_boxes(box: np.ndarray, what: str, first_frame: int) -> None:
    """Refuse boxes (frames, 3, 3) that are not finite, span no volume, or are left-handed.

    Raises:
        InputError: naming the first such frame.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.abs(box).max(axis=(1, 2))
        volume = (np.cross(box[:, 0], box[:, 1]) * box[:, 2]).sum(axis=-1)
        wrong = ~(volume > 1e-9 * scale**3) | ~np.isfinite(volume)
    if not wrong.any():
        return
    frame = int(wrong.argmax())
    where = f"{what}: frame {first_frame + frame}"
    if not np.isfinite(box[frame]).all():
        raise InputError(
            f"{where} has box vectors that are not finite, or angles that no box has; correct "
            "the box, or leave it out"
        )
    if not scale[frame]:
        given = "; others have one" if (scale > 0).any() else ""
        raise InputError(
            f"{where} has no box (all zeros){given}; give one for every frame, or for none"
        )
    rows = ", ".join("({:.4g} {:.4g} {:.4g})".format(*row) for row in box[frame] + 0.0)
    raise InputError(
        f"{where} has box vectors {rows} of volume {volume[frame]:.3g} nm^3; give three "
        "right-handed vectors that span a volume, rows a, b and c"
    )


def reduced_boxes(box: np.ndarray, first_frame: int = 0) -> np.ndarray:
    """Return the same lattices with vectors as OpenMM wants them.

    Rows a, b, c, lower triangular, with b's x and c's x and y at most half the diagonal.

    Args:
        box: (frames, 3, 3), nm, lower triangular.
        first_frame: number of the first frame, for messages.

    Raises:
        InputError: if a box is turned otherwise: its frame would have to be turned with it.
    """
    upper = np.abs(box[:, [0, 0, 1], [1, 2, 2]]).max(axis=1) > 1e-5 * np.abs(box).max(axis=(1, 2))
    if upper.any():
        raise InputError(
            f"the box of frame {first_frame + int(upper.argmax())} is not lower triangular (a "
            "along x, b in the xy plane), as a model's box must be; turn positions, forces and "
            "box together, or map with periodic=False (--no-box)"
        )
    result = box
    for row, onto in ((2, 1), (2, 0), (1, 0)):
        ratio = result[:, row, onto] / result[:, onto, onto]
        # Half an edge is common (truncated octahedra) and may be a little more by rounding.
        count = np.where(np.abs(ratio) > 0.5001, np.round(ratio), 0.0)
        if count.any():
            result = result.copy() if result is box else result
            result[:, row] -= count[:, None] * result[:, onto]
    return result


class WholeMolecules:
    """The molecules of a topology, to be made whole across periodic boundaries.

    A molecule is what bonds connect. Each atom is shifted by box vectors to the image nearest to
    the atom it is bonded to, from the molecule's first atom outwards; that one stays in place.

    Args:
        top: mdtraj.Topology.
        atoms: the atoms that are needed; None: all.
        others: whether atoms that are not needed are made whole as well. False: branches and
            molecules without any needed atom stay as they are, which is faster.

    Attributes:
        molecule: (atoms,) number of the molecule of each atom.
        bonds: (bonds, 2) atoms whose bonds are looked at: first those of the tree, parent and
            child in the order of a breadth-first walk, then those that close rings.
    """

    def __init__(self, top: Any, atoms: Iterable[int] | None = None, others: bool = False) -> None:
        self._top = top
        needed = np.zeros(top.n_atoms, dtype=bool)
        needed[list(range(top.n_atoms) if atoms is None else atoms)] = True
        neighbours: list[set[int]] = [set() for _ in range(top.n_atoms)]
        for one, other in top.bonds:
            if one.index != other.index:
                neighbours[one.index].add(other.index)
                neighbours[other.index].add(one.index)
        self.molecule = _components(neighbours)
        self._used = np.isin(self.molecule, self.molecule[needed]) | others
        self._members = _grouped(np.flatnonzero(needed), self.molecule)
        if not others:
            _drop_ends(neighbours, self._used, needed)
        self._build(neighbours, self._used)

    def _build(self, neighbours: list[set[int]], used: np.ndarray) -> None:
        """Walk each molecule breadth first."""
        seen = ~used
        tree: list[tuple[int, int]] = []
        closing: list[tuple[int, int]] = []
        levels: list[list[tuple[int, int]]] = []
        for root in np.flatnonzero(used):
            if seen[root]:
                continue
            seen[root] = True
            level, front = 0, [int(root)]
            while front:
                found: list[tuple[int, int]] = []
                for parent in front:
                    for child in sorted(neighbours[parent]):
                        if not seen[child]:
                            seen[child] = True
                            found.append((parent, child))
                if found:
                    if level == len(levels):
                        levels.append([])
                    levels[level].extend(found)
                level, front = level + 1, [child for _, child in found]
        for found in levels:
            tree.extend(found)
        parents = {child: parent for parent, child in tree}
        for i in np.flatnonzero(used):
            for j in sorted(neighbours[i]):
                if i < j and parents.get(j) != i and parents.get(int(i)) != j and used[j]:
                    closing.append((int(i), j))
        self.bonds = np.array([*tree, *closing], dtype=np.intp).reshape(-1, 2)
        #: The bonds of each level of all trees.
        stops = np.cumsum([0, *map(len, levels)])
        self._levels = [slice(a, b) for a, b in pairwise(stops.tolist())]
        self._tree = len(tree)
        # Positions of atoms in the shifts, which are kept for atoms with bonds alone.
        self._bonded = np.unique(self.bonds)
        self._all = len(self._bonded) == len(used)
        self._ends = np.searchsorted(self._bonded, self.bonds)

    def make_whole(
        self, positions: np.ndarray, box: np.ndarray, first_frame: int = 0
    ) -> np.ndarray:
        """Return positions with the molecules whole; the argument itself where they are already.

        Args:
            positions: (frames, atoms, 3), nm.
            box: (frames, 3, 3) or (3, 3) box vectors, nm, of any form.
            first_frame: number of the first frame, for messages.

        Returns:
            (frames, atoms, 3), nm, of the type of `positions`; shifts are made in float64.

        Raises:
            InputError: if a bond is longer than half the box, so that its image is not unique, or
                a molecule is bonded to its own periodic image.
        """
        if not len(self.bonds) or not len(positions):
            return positions
        box = np.broadcast_to(np.asarray(box, dtype=np.float64), (len(positions), 3, 3))
        half = 0.5 * box_edges(box).min(axis=-1)
        first, second = np.ascontiguousarray(self._ends.T)
        result, size = positions, max(1, _BLOCK // len(self.bonds))
        for start in range(0, len(positions), size):
            part = slice(start, start + size)
            # Atoms first: a bond's ends are then long rows, gathered in a third of the time.
            atoms = positions[part].transpose(1, 2, 0)
            atoms = np.ascontiguousarray(atoms if self._all else atoms[self._bonded])
            vectors = np.take(atoms, second, axis=0)
            vectors -= np.take(atoms, first, axis=0)
            # Most blocks have nothing torn; sqrt(3) times a component is the longest it can be.
            if np.sqrt(3) * max(vectors.max(), -vectors.min()) < half[part].min():
                continue
            counts = self._counts(vectors, box[part], half[part], first_frame + start)
            torn = np.flatnonzero(counts.any(axis=(0, 1)))
            if not len(torn):
                continue
            shifts = self._shifts(counts[:, :, torn], first_frame + start + torn)
            moves = _lattice_vectors(shifts, box[start + torn]).transpose(2, 0, 1)
            result = positions.copy() if result is positions else result
            where: Any = start + torn
            if not self._all:
                where = np.ix_(where, self._bonded)
            result[where] = result[where] + moves
        return result

    def bring_together(self, positions: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Return positions with every molecule at its image nearest to the largest one.

        Of molecules that are whole, the centres of the needed atoms are compared; the largest is
        the one with the most needed atoms, the first of several. Molecules without stay.

        Args:
            positions: (frames, atoms, 3), nm.
            box: (frames, 3, 3) or (3, 3) box vectors, nm.
        """
        if len(self._members) < 2:
            return positions
        box = np.broadcast_to(np.asarray(box, dtype=np.float64), (len(positions), 3, 3))
        largest = max(range(len(self._members)), key=lambda m: len(self._members[m]))
        centre = _centre(positions, self._members[largest])
        result = positions
        for index, members in enumerate(self._members):
            if index == largest:
                continue
            shift = _nearest_shift(_centre(positions, members) - centre, box)
            moved = np.flatnonzero(np.abs(shift).max(axis=1) > 0)
            if len(moved):
                result = positions.copy() if result is positions else result
                same = self._used & (self.molecule == self.molecule[members[0]])
                where = np.ix_(moved, np.flatnonzero(same))
                result[where] = result[where] + shift[moved, None]
        return result

    def loose(self, groups: Iterable[Any]) -> list[int]:
        """Return which groups of atoms are of several molecules: nothing holds them together."""
        return [g for g, atoms in enumerate(groups) if len(set(self.molecule[list(atoms)])) > 1]

    def bonds_are_missing(self) -> bool:
        """Whether bonds cannot say which images of the needed atoms belong together.

        So it is where none of their molecules has a bond, and where one of their residues is of
        several molecules, as those that no template knows are in a PDB file without CONECT.
        """
        needed = [int(a) for members in self._members for a in members]
        sizes = np.bincount(self.molecule)
        if len(needed) > 1 and (sizes[self.molecule[needed]] == 1).all():
            return True
        residues = {self._top.atom(a).residue for a in needed}
        return any(len({self.molecule[a.index] for a in r.atoms}) > 1 for r in residues)

    def _counts(
        self, vectors: np.ndarray, box: np.ndarray, half: np.ndarray, first_frame: int
    ) -> np.ndarray:
        """Return how many of each box vector, (bonds, 3, frames), to take from bond vectors."""
        counts, nearest = _lattice_counts(vectors, *_turned(box))
        nearest *= nearest
        ratio = np.sqrt(nearest.sum(axis=1)) / half
        if ratio.max() >= 1:
            bond, frame = np.unravel_index(int(ratio.argmax()), ratio.shape)
            raise InputError(
                f"bond {self._label(int(bond))} is {ratio[bond, frame] * half[frame]:.3g} nm long "
                f"in frame {first_frame + int(frame)}, but the box is {2 * half[frame]:.3g} nm "
                "wide at its narrowest, so the image of the atom is not unique (a box must be "
                "more than twice as wide as the longest bond); check the box, and that the "
                "topology is that of the trajectory"
            )
        return counts

    def _shifts(self, counts: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Return how many of each box vector to add, (bonded atoms, 3, frames)."""
        shifts = np.zeros((len(self._bonded), 3, counts.shape[2]))
        first, second = self._ends.T
        for level in self._levels:
            shifts[second[level]] = shifts[first[level]] - counts[level]
        rest = slice(self._tree, None)
        open_ring = (shifts[second[rest]] - shifts[first[rest]] + counts[rest]).any(axis=1)
        if open_ring.any():
            bond, frame = np.argwhere(open_ring)[0]
            raise InputError(
                f"bond {self._label(self._tree + int(bond))} joins its molecule to the molecule's "
                f"own periodic image in frame {int(frames[frame])}: it is endless and cannot be "
                "made whole; remove the bonds across the boundary from the topology, or use a "
                "mapping of single atoms (with its box)"
            )
        return shifts

    def _label(self, bond: int) -> str:
        return "-".join(f"{atom_label(self._top, int(a))}" for a in self.bonds[bond])


def require_near(
    positions: np.ndarray, atoms: np.ndarray, box: np.ndarray, what: str, first_frame: int
) -> None:
    """Refuse atoms, not held together by bonds, that are further apart than half the box.

    Args:
        positions: (frames, atoms, 3), nm.
        atoms: their indices.
        box: (frames, 3, 3) box vectors, nm.
        what: how the message names them.
        first_frame: number of the first frame.

    Raises:
        InputError: naming the frame.
    """
    spread = np.ptp(np.take(positions, atoms, axis=1), axis=1)
    far = (spread > 0.5 * box_edges(box)).any(axis=1)
    if far.any():
        raise InputError(
            f"{what} torn across the periodic boundary in frame {first_frame + int(far.argmax())} "
            "(more than half the box apart), and no bonds say which images belong together; give "
            f"a topology with bonds, or {_REMEDY}"
        )


def _grouped(atoms: np.ndarray, molecule: np.ndarray) -> list[np.ndarray]:
    """Return the atoms of each molecule, molecules in the order of their numbers."""
    if not len(atoms):
        return []
    atoms = atoms[np.argsort(molecule[atoms], kind="stable")]
    return np.split(atoms, np.flatnonzero(np.diff(molecule[atoms])) + 1)


def _components(neighbours: list[set[int]]) -> np.ndarray:
    molecule = np.full(len(neighbours), -1)
    count = 0
    for root in range(len(neighbours)):
        if molecule[root] >= 0:
            continue
        molecule[root], todo = count, [root]
        while todo:
            for other in neighbours[todo.pop()]:
                if molecule[other] < 0:
                    molecule[other] = count
                    todo.append(other)
        count += 1
    return molecule


def _drop_ends(neighbours: list[set[int]], used: np.ndarray, needed: np.ndarray) -> None:
    """Cut off branches without needed atoms; rings stay, their closing bonds are a check."""
    ends = [int(a) for a in np.flatnonzero(used & ~needed) if len(neighbours[a]) == 1]
    while ends:
        end = ends.pop()
        used[end] = False
        for other in neighbours[end]:
            neighbours[other].discard(end)
            if len(neighbours[other]) == 1 and used[other] and not needed[other]:
                ends.append(other)
        neighbours[end] = set()


def _turned(box: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return boxes (frames, 3, 3) as lower triangles and the rotations that make them so."""
    if not box[:, [0, 0, 1], [1, 2, 2]].any() and (box[:, [0, 1], [0, 1]] > 0).all():
        return box, None
    first = box[:, 0] / np.linalg.norm(box[:, 0], axis=-1, keepdims=True)
    third = np.cross(box[:, 0], box[:, 1])
    third /= np.linalg.norm(third, axis=-1, keepdims=True)
    rotation = np.stack([first, np.cross(third, first), third], axis=-1)
    return np.tril(box @ rotation), rotation


def _lattice_counts(
    vectors: np.ndarray, lower: np.ndarray, rotation: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return which multiples of the box vectors to take from vectors, and what remains.

    Exact for vectors with an image shorter than half the smallest of `box_edges`.

    Args:
        vectors: (n, 3, frames).
        lower: (frames, 3, 3), from `_turned`.
        rotation: likewise.

    Returns:
        (n, 3, frames) whole numbers, and (n, 3, frames), turned by `rotation`.
    """
    rest = vectors.astype(np.float64)
    if rotation is not None:
        rest = (rest.transpose(2, 0, 1) @ rotation).transpose(1, 2, 0).copy()
    counts = np.empty_like(rest)
    for row in (2, 1, 0):
        np.rint(rest[:, row] / lower[:, row, row], out=counts[:, row])
        for axis in range(row + 1):
            if (edge := lower[:, row, axis]).any():
                rest[:, axis] -= counts[:, row] * edge
    return counts, rest


def _lattice_vectors(counts: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return sums (n, 3, frames) of as many of the rows of boxes (frames, 3, 3) as counts say."""
    sums = np.zeros_like(counts)
    for row, axis in product(range(3), repeat=2):
        if (edge := box[:, row, axis]).any():
            sums[:, axis] += counts[:, row] * edge
    return sums


def _nearest_shift(vectors: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the lattice vector to add to each vector (frames, 3) for its shortest image."""
    lower, rotation = _turned(box)
    lower = reduced_boxes(lower)
    start = vectors if rotation is None else (vectors[:, None] @ rotation)[:, 0]
    rest = _lattice_counts(start.T[None], lower, None)[1][0].T
    best, length = rest, (rest**2).sum(-1)
    # What remains lies in the brick around the origin: of a skew box not yet the shortest.
    for steps in product((-1, 0, 1), repeat=3):
        other = rest + np.asarray(steps, dtype=np.float64) @ lower
        square = (other**2).sum(-1)
        better = square < length - 1e-12
        best, length = np.where(better[:, None], other, best), np.where(better, square, length)
    shift = best - start
    # A sum of box vectors or nothing: rounding alone must move no atom.
    shift[np.abs(shift).max(axis=1) < 1e-9 * np.abs(lower).max(axis=(1, 2))] = 0.0
    return shift if rotation is None else (shift[:, None] @ rotation.transpose(0, 2, 1))[:, 0]


def _centre(positions: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    return np.take(positions, atoms, axis=1).mean(axis=1, dtype=np.float64)
