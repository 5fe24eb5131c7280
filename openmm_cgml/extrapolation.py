"""Where the training data lie: ranges of internal coordinates, and who has left them."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

import numpy as np

from . import geometry
from .dataset import CGDataset
from .topology import bonded_angles

# All pairs of a large molecule would be most of the card; its bonds and angles say enough.
_MOST_PAIRS = 1000

# Two finite samples of one distribution have different extremes. A range is therefore widened by
# this fraction of its width before a frame counts as outside.
_MARGIN = 0.1


@dataclass(frozen=True)
class CoordinateRanges:
    """Extremes of distances and bond angles in a dataset; minimum images in a periodic box.

    Attributes:
        pairs: bead indices: all pairs, or the bonded ones of a molecule with very many.
        shortest, longest: nm, one a pair.
        angles: bead indices of the bonded triples.
        smallest, largest: radians, one an angle.
    """

    pairs: list[list[int]]
    shortest: list[float]
    longest: list[float]
    angles: list[list[int]]
    smallest: list[float]
    largest: list[float]

    @classmethod
    def of(cls, dataset: CGDataset) -> "CoordinateRanges":
        """Return the ranges of a dataset."""
        topology = dataset.topology
        pairs = geometry.all_pairs(len(topology)).tolist()
        if len(pairs) > _MOST_PAIRS:
            pairs = [list(bond) for bond in topology.bonds]
        triples = [list(triple) for triple in bonded_angles(topology.bonds)]
        boxes = [None] if dataset.box is None else list(dataset.box)
        frames = [dataset.positions] if dataset.box is None else dataset.positions[:, None]
        values = [_coordinates(x, pairs, triples, b) for x, b in zip(frames, boxes, strict=True)]
        distances = np.concatenate([d for d, _ in values])
        angles = np.concatenate([a for _, a in values])
        return cls(
            pairs,
            distances.min(0).tolist(),
            distances.max(0).tolist(),
            triples,
            angles.min(0).tolist(),
            angles.max(0).tolist(),
        )

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> "CoordinateRanges | None":
        """Return the ranges in a model file's card; None if it was written without."""
        record = card.get("training", {}).get("ranges")
        return cls(**record) if record else None

    def to_dict(self) -> dict[str, Any]:
        """Return the ranges as JSON."""
        return asdict(self)

    def outside(self, positions: np.ndarray, box_vectors: Any = None) -> np.ndarray:
        """Return which copies have a distance or angle clearly outside the training data.

        Args:
            positions: (copies, beads, 3), nm.
            box_vectors: (3, 3), nm, or None.

        Returns:
            (copies,) bool; a copy that is not finite is outside.
        """
        distances, angles = _coordinates(positions, self.pairs, self.angles, box_vectors)
        return _leave(distances, self.shortest, self.longest) | _leave(
            angles, self.smallest, self.largest
        )


def _leave(values: np.ndarray, low: list[float], high: list[float]) -> np.ndarray:
    lowest, highest = np.asarray(low), np.asarray(high)
    margin = _MARGIN * (highest - lowest)
    return ~((values >= lowest - margin) & (values <= highest + margin)).all(axis=1)


def _coordinates(
    positions: Any, pairs: list[list[int]], triples: list[list[int]], box_vectors: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return distances (copies, pairs), nm, and angles (copies, triples), radians."""
    xyz = torch.as_tensor(np.asarray(positions), dtype=torch.float64)
    box = None if box_vectors is None else torch.as_tensor(np.asarray(box_vectors)).double()
    pair = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    triple = torch.tensor(triples, dtype=torch.int64).reshape(-1, 3)
    cosines = geometry.cosine_angles(
        geometry.displacements(xyz, triple[:, 0:2], box),
        geometry.displacements(xyz, triple[:, 1:3], box),
    )
    angles = cosines.clamp(-1, 1).acos()
    return geometry.distances(xyz, pair, box).numpy(), angles.numpy()
