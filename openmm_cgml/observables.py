"""Observables of bead configurations: RMSD, size, distances, contacts, native contacts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError
from .topology import CGTopology

#: Of the smooth step that counts a native contact: steepness, 1/nm, and how much longer than in
#: the native state a distance is at its middle, as proposed for C-alpha models by Best, Hummer and
#: Eaton 2013, doi:10.1073/pnas.1311599110.
_STEEPNESS, _STRETCH = 50.0, 1.2


def rmsd(positions: Any, reference: Any) -> np.ndarray:
    """Return root-mean-square deviations after the best superposition, nm.

    Mirror images are not superposed.

    Args:
        positions: (frames, beads, 3), nm.
        reference: (beads, 3), nm.

    Returns:
        (frames,).

    Raises:
        InputError: if the numbers of beads differ.

    Reference: Kabsch 1976, doi:10.1107/S0567739476001873.
    """
    frames, target = _frames(positions), np.asarray(reference, dtype=np.float64)
    if target.shape != frames.shape[1:]:
        raise InputError(
            f"the reference has shape {target.shape}; these frames need {frames.shape[1:]}"
        )
    target = target - target.mean(0)
    found = np.empty(len(frames))
    for rows in _chunks(frames):
        centred = frames[rows] - frames[rows].mean(1, keepdims=True)
        covariance = np.einsum("nij,ik->njk", centred, target)
        singular = np.linalg.svd(covariance, compute_uv=False)
        singular[:, 2] *= np.sign(np.linalg.det(covariance))
        squares = (centred**2).sum((1, 2)) + (target**2).sum() - 2 * singular.sum(1)
        found[rows] = np.sqrt(squares.clip(0) / len(target))
    return found


def radius_of_gyration(positions: Any, masses: Any = None) -> np.ndarray:
    """Return radii of gyration (frames,), nm.

    Args:
        positions: (frames, beads, 3), nm.
        masses: (beads,); None: all alike.
    """
    frames = _frames(positions)
    weights = np.ones(frames.shape[1]) if masses is None else np.asarray(masses, dtype=np.float64)
    weights = weights / weights.sum()
    centred = frames - np.einsum("nbi,b->ni", frames, weights)[:, None]
    return np.sqrt(np.einsum("nbi,nbi,b->n", centred, centred, weights))


def pair_distances(positions: Any, separation: int = 1, box_vectors: Any = None) -> np.ndarray:
    """Return the distances of all beads so far apart in the order of beads.

    Args:
        positions: (frames, beads, 3), nm.
        separation: least difference of two beads' indices.
        box_vectors: (3, 3) or (frames, 3, 3), nm, of a periodic box; the nearest image counts.

    Returns:
        (frames, pairs), nm; pairs as of ``numpy.triu_indices(beads, separation)``.
    """
    frames = _frames(positions)
    pairs = np.stack(np.triu_indices(frames.shape[1], separation), axis=1)
    return _distances(frames, pairs, box_vectors)


def contact_map(
    positions: Any, weights: Any = None, *, cutoff: float = 1.0, separation: int = 3,
    box_vectors: Any = None,
) -> np.ndarray:  # fmt: skip
    """Return the probability of each pair to be within a cutoff, (beads, beads).

    Args:
        positions: (frames, beads, 3), nm.
        weights: (frames,); None: all alike.
        cutoff: nm.
        separation: least difference of two beads' indices; nearer ones are nan.
        box_vectors: (3, 3) or (frames, 3, 3), nm, of a periodic box; the nearest image counts.
    """
    frames = _frames(positions)
    beads = frames.shape[1]
    found = np.full((beads, beads), np.nan)
    first, second = np.triu_indices(beads, separation)
    lengths = pair_distances(frames, separation, box_vectors)
    close = np.average(lengths < cutoff, axis=0, weights=weights)
    found[first, second] = found[second, first] = close
    return found


def molecule_of(topology: CGTopology) -> np.ndarray:
    """Return which molecule each bead is of, (beads,): those that bonds join, from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.array(topology.bonds, dtype=np.int64).reshape(-1, 2)
    shape = (len(topology), len(topology))
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=shape)
    found: np.ndarray = connected_components(graph, directed=False)[1]
    return found.astype(np.int64)


def whole(positions: Any, topology: CGTopology, box_vectors: Any) -> np.ndarray:
    """Return frames in which no molecule is cut by the border of the box, nm.

    Each bead is moved to the image next to the bead that bonds lead to it from; so are the
    frames that `rmsd` and `radius_of_gyration` need in a periodic box, molecule by molecule.

    Args:
        positions: (frames, beads, 3), nm.
        topology: the beads; no bond may be longer than half of the box.
        box_vectors: (3, 3) or (frames, 3, 3), nm, in OpenMM's reduced form.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order

    frames = _frames(positions).copy()
    pairs = np.array(topology.bonds, dtype=np.int64).reshape(-1, 2)
    shape = (len(topology), len(topology))
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=shape).tocsr()
    molecule = molecule_of(topology)
    boxes = np.broadcast_to(np.asarray(box_vectors, dtype=np.float64), (len(frames), 3, 3))
    for start in np.unique(molecule, return_index=True)[1]:
        order, before = breadth_first_order(graph, start, directed=False)
        for bead in order[1:]:
            step = frames[:, bead] - frames[:, before[bead]]
            for row in range(2, -1, -1):
                images = np.round(step[:, row] / boxes[:, row, row])
                step -= images[:, None] * boxes[:, row]
            frames[:, bead] = frames[:, before[bead]] + step
    return frames


@dataclass(frozen=True, eq=False)
class NativeContacts:
    """Contacts of a native structure, and how many of them others have.

    Attributes:
        beads: number of beads.
        pairs: (contacts, 2) beads.
        distances: (contacts,) in the native structure, nm.

    Reference: Best, Hummer and Eaton 2013, doi:10.1073/pnas.1311599110, eq. 1, with the constants
    for C-alpha models.
    """

    beads: int
    pairs: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(cls, reference: Any, cutoff: float = 1.0, separation: int = 4) -> "NativeContacts":
        """Return the contacts of a structure.

        Args:
            reference: (beads, 3), nm.
            cutoff: nm.
            separation: least difference of two beads' indices.

        Raises:
            InputError: if there are none.
        """
        structure = np.asarray(reference, dtype=np.float64)
        distances = pair_distances(structure[None], separation)[0]
        pairs = np.stack(np.triu_indices(len(structure), separation), axis=1)
        close = distances < cutoff
        if not close.any():
            raise InputError(
                f"no two beads {separation} or more apart are within {cutoff} nm in the "
                "reference; give a folded structure (in nm), or a larger cutoff"
            )
        return cls(len(structure), pairs[close], distances[close])

    def made(self, positions: Any, box_vectors: Any = None) -> np.ndarray:
        """Return how far each contact is made, 0 to 1, (frames, contacts).

        Args:
            positions: (frames, beads, 3), nm.
            box_vectors: (3, 3) or (frames, 3, 3), nm, of a periodic box.
        """
        frames = _frames(positions)
        if frames.shape[1] != self.beads:
            raise InputError(f"frames have {frames.shape[1]} beads, the contacts {self.beads}")
        lengths = _distances(frames, self.pairs, box_vectors)
        exponent = _STEEPNESS * (lengths - _STRETCH * self.distances)
        return 0.5 * (1 - np.tanh(exponent / 2))

    def fraction(self, positions: Any, box_vectors: Any = None) -> np.ndarray:
        """Return the fraction of native contacts Q, (frames,)."""
        return self.made(positions, box_vectors).mean(1)

    def by_bead(self, positions: Any) -> np.ndarray:
        """Return the fraction of each bead's own contacts, (frames, beads); nan if it has none."""
        member = np.zeros((len(self.pairs), self.beads))
        rows = np.arange(len(self.pairs))
        member[rows, self.pairs[:, 0]] = member[rows, self.pairs[:, 1]] = 1
        with np.errstate(invalid="ignore"):
            return self.made(positions) @ member / member.sum(0)

    def folding_order(
        self, positions: Any, weights: Any = None, bins: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return which beads have their contacts, by how far the whole is folded.

        A bead above the diagonal folds early.

        Args:
            positions: (frames, beads, 3), nm.
            weights: (frames,); None: all alike.
            bins: of Q, between 0 and 1.

        Returns:
            Centres of the bins (bins,), and mean fractions (bins, beads), nan where no frame is.
        """
        whole, own = self.fraction(positions), self.by_bead(positions)
        given = np.ones(len(whole)) if weights is None else np.asarray(weights, dtype=np.float64)
        index = np.minimum((whole * bins).astype(int), bins - 1)
        total = np.bincount(index, given, bins)
        sums = np.zeros((bins, self.beads))
        np.add.at(sums, index, given[:, None] * own)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums / total[:, None]
        return (np.arange(bins) + 0.5) / bins, np.where(total[:, None] > 0, means, np.nan)


def _frames(positions: Any) -> np.ndarray:
    frames = np.asarray(positions, dtype=np.float64)
    if frames.ndim != 3 or frames.shape[2] != 3:
        raise InputError(f"positions have shape {frames.shape}; give (frames, beads, 3)")
    return frames


def _distances(frames: np.ndarray, pairs: np.ndarray, box_vectors: Any = None) -> np.ndarray:
    """Return distances (frames, pairs), nm."""
    import torch

    from . import geometry

    xyz, index = torch.as_tensor(frames), torch.as_tensor(pairs)
    if box_vectors is None:
        return geometry.distances(xyz, index).numpy()
    boxes = torch.as_tensor(np.asarray(box_vectors, dtype=np.float64))
    if boxes.dim() == 2:
        return geometry.distances(xyz, index, boxes).numpy()
    one_by_one = [geometry.distances(xyz[k : k + 1], index, boxes[k]) for k in range(len(xyz))]
    return torch.cat(one_by_one).numpy()


def _chunks(frames: np.ndarray, size: int = 20_000) -> list[slice]:
    return [slice(start, start + size) for start in range(0, len(frames), size)]
