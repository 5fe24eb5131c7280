"""Radial distribution functions of many molecules in a box."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError
from .observables import molecule_of
from .topology import CGTopology

#: Beads of all frames that one search for neighbours takes: memory stays some tens of MB.
_BEADS_AT_ONCE = 20_000


@dataclass(frozen=True, eq=False)
class RadialDistribution:
    """How much likelier a distance is than between beads that know nothing of each other.

    Attributes:
        edges: (bins + 1,) bin edges, nm.
        values: (bins,) g(r).
        errors: (bins,) standard errors over blocks.
        density: mean number of second beads in the box that a first one may meet, over its
            volume, 1/nm^3.
        pairs: number of pairs of a first and a second bead in a frame; of alike beads each pair
            counts twice.
    """

    edges: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    density: float
    pairs: int

    @property
    def centres(self) -> np.ndarray:
        """Bin centres (bins,), nm."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    def coordination(self) -> np.ndarray:
        """Return how many second beads are within each bin's upper edge of a first, (bins,)."""
        return np.cumsum(self.density * self.values * _shells(self.edges))


def radial_distribution(
    positions: Any,
    box_vectors: Any,
    *,
    topology: CGTopology | None = None,
    first: str | Sequence[int] | None = None,
    second: str | Sequence[int] | None = None,
    same_molecule: bool = False,
    cutoff: float | None = None,
    bins: int = 100,
    weights: Any = None,
    blocks: int = 10,
) -> RadialDistribution:
    """Return the radial distribution function g(r) of beads in a periodic box.

        g(r) = < n(r, r + dr) > / < pairs 4 pi r^2 dr / V >

    with n the number of pairs at that distance. Pairs within a molecule are left out above and
    below, so that g is 1 between molecules that know nothing of each other, at any number of them.

    Args:
        positions: (frames, beads, 3), nm, inside the box or not; in an order in which neighbours
            are correlated: time, or copy after copy.
        box_vectors: (3, 3), or (frames, 3, 3), nm, in OpenMM's reduced form (lower triangular).
        topology: the beads; needed for bead types and to tell molecules (joined by bonds) apart.
        first, second: a bead type, or bead indices; None: all beads, and of `second`: as `first`.
        same_molecule: count pairs within a molecule too.
        cutoff: nm; largest distance. None: half of the box's smallest width.
        bins: of equal width, from 0 to the cutoff.
        weights: (frames,); None: all alike.
        blocks: contiguous blocks of equal weight, for the errors.

    Raises:
        InputError: if there is no box, the cutoff is beyond half of one, or no pair is left.

    Reference: Allen and Tildesley 2017, Computer Simulation of Liquids, eq. 2.94 and 8.21.
    """
    frames = np.asarray(positions, dtype=np.float64)
    boxes, widest = _boxes(frames, box_vectors)
    if cutoff is None:
        cutoff = widest
    if not 0 < cutoff <= widest * (1 + 1e-9):
        raise InputError(
            f"g(r) up to {cutoff:g} nm needs a box at least {2 * cutoff:g} nm wide, but half of "
            f"this one's smallest width is {widest:g} nm: beyond it a bead would see two images "
            f"of another; take a cutoff of {widest:.4g} nm or less"
        )
    one = _selected(first, topology, frames.shape[1])
    other = one if second is None else _selected(second, topology, frames.shape[1])
    molecule = np.arange(frames.shape[1])
    if topology is not None and not same_molecule:
        molecule = molecule_of(topology)
    pairs = _count_pairs(one, other, molecule)
    if not pairs:
        raise InputError(
            "no pair of the chosen beads is left: they are one bead, or all of one molecule; "
            "choose others, or count pairs within a molecule too (same_molecule=True)"
        )
    given = np.ones(len(frames)) if weights is None else np.asarray(weights, dtype=np.float64)
    count = min(blocks, len(frames))
    block = _blocks(given, count)
    edges = np.linspace(0, cutoff, bins + 1)
    found = np.zeros((count, bins))
    expected = np.zeros(count)
    beads = np.flatnonzero(one | other)
    step = max(1, _BEADS_AT_ONCE // len(beads))
    step = 1 if len(boxes) > 1 else step
    for start in range(0, len(frames), step):
        box = boxes[start if len(boxes) > 1 else 0]
        lengths_of = _distances(
            frames[start : start + step][:, beads], box, cutoff, one[beads], other[beads],
            molecule[beads],
        )  # fmt: skip
        for k, lengths in enumerate(lengths_of, start):
            found[block[k]] += given[k] * np.histogram(lengths, edges)[0]
            expected[block[k]] += given[k] * pairs / abs(np.linalg.det(box))
    shells = _shells(edges)
    total = expected.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = found[expected > 0] / (expected[expected > 0, None] * shells)
        spread = parts.std(0, ddof=1) / len(parts) ** 0.5 if len(parts) > 1 else np.nan * shells
    return RadialDistribution(
        edges,
        found.sum(0) / (total * shells),
        spread,
        density=float(total / given.sum() / one.sum()),
        pairs=pairs,
    )


def _boxes(frames: np.ndarray, box_vectors: Any) -> tuple[np.ndarray, float]:
    """Return box vectors (1 or frames, 3, 3) and half of their smallest width."""
    if frames.ndim != 3 or frames.shape[2] != 3 or not len(frames):
        raise InputError(f"positions have shape {frames.shape}; give (frames, beads, 3)")
    if box_vectors is None:
        raise InputError(
            "g(r) needs a periodic box: an isolated molecule has no density; its distances are "
            "those of pair_distances"
        )
    boxes = np.asarray(box_vectors, dtype=np.float64)
    boxes = boxes[None] if boxes.ndim == 2 else boxes
    if boxes.shape not in ((1, 3, 3), (len(frames), 3, 3)):
        raise InputError(
            f"box vectors have shape {np.shape(box_vectors)}; give (3, 3) or one for each of the "
            f"{len(frames)} frames"
        )
    if np.abs(boxes[:, [0, 0, 1], [1, 2, 2]]).max() > 1e-6:
        raise InputError(
            "box vectors are not in reduced form: a along x, b in the xy plane; turn box and "
            "positions, as OpenMM does on reading"
        )
    return boxes, float(np.diagonal(boxes, axis1=1, axis2=2).min()) / 2


def _selected(
    chosen: str | Sequence[int] | None, topology: CGTopology | None, beads: int
) -> np.ndarray:
    """Return (beads,) bool."""
    if topology is not None and len(topology) != beads:
        raise InputError(f"frames have {beads} beads, the topology {len(topology)}")
    if chosen is None:
        return np.ones(beads, bool)
    if isinstance(chosen, str):
        if topology is None:
            raise InputError(f"bead type {chosen!r} needs topology=; or give bead indices")
        found = np.array([kind == chosen for kind in topology.bead_types])
        if not found.any():
            known = ", ".join(dict.fromkeys(topology.bead_types))
            raise InputError(f"no bead has type {chosen!r}; there are {known}")
        return found
    index = np.asarray(chosen)
    if index.size == 0 or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= beads:
        raise InputError(f"beads {index.tolist()} are not some of 0 to {beads - 1}")
    return np.isin(np.arange(beads), index)


def _count_pairs(one: np.ndarray, other: np.ndarray, molecule: np.ndarray) -> int:
    """Return the number of ordered pairs of a first and a second bead of different molecules."""
    # Where every bead is a molecule of its own, this leaves out a bead with itself.
    inside = np.bincount(molecule, one) * np.bincount(molecule, other)
    return int(one.sum()) * int(other.sum()) - int(inside.sum())


def _blocks(weights: np.ndarray, count: int) -> np.ndarray:
    if not weights.sum() > 0:
        raise InputError("all frames have weight zero; take frames that have some")
    along = np.cumsum(weights) / weights.sum() * count
    return np.minimum((along - 1e-9).clip(0).astype(int), count - 1)


def _distances(
    frames: np.ndarray, box: np.ndarray, cutoff: float, one: np.ndarray, other: np.ndarray,
    molecule: np.ndarray,
) -> list[np.ndarray]:  # fmt: skip
    """Return of each frame the distances of the ordered pairs that count, nm."""
    import torch

    from . import geometry
    from .neighbours import neighbour_pairs

    beads = frames.shape[1]
    xyz, vectors = torch.as_tensor(frames), torch.as_tensor(box)
    # Rounding may put the widest cutoff beyond the half of the box that it was made from.
    flat = neighbour_pairs(xyz, min(cutoff, float(vectors.diagonal().min()) / 2), vectors)
    apart = xyz.reshape(-1, 3)[flat[1]] - xyz.reshape(-1, 3)[flat[0]]
    lengths = geometry.norm(geometry.minimum_image(apart, vectors)).numpy()
    (i, j), frame = flat.numpy() % beads, flat[0].numpy() // beads
    times = (one[i] & other[j]).astype(int) + (one[j] & other[i])
    times[molecule[i] == molecule[j]] = 0
    return [np.repeat(lengths[frame == k], times[frame == k]) for k in range(len(frames))]


def _shells(edges: np.ndarray) -> np.ndarray:
    return 4 / 3 * np.pi * np.diff(edges**3)
