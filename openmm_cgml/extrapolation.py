"""Where the training data end: seen internal coordinates, and forces that members dispute."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

import numpy as np

from . import geometry
from .dataset import CGDataset
from .topology import bonded_angles, bonded_torsions

# All pairs of a large molecule would be most of the card; its bonds and angles say enough.
_MOST_PAIRS = 1000

# Two finite samples of one distribution have different extremes. A range is therefore widened by
# this fraction of its width before a frame counts as outside.
_MARGIN = 0.1

# A torsion has no range on its circle. It has been seen in those of so many sectors where frames
# were, and in the sectors next to these.
_SECTORS = 36


@dataclass(frozen=True)
class CoordinateRanges:
    """Extremes of distances and bond angles in a dataset, and where torsions were.

    Minimum images in a periodic box. A card written by an earlier version has no torsions.

    Attributes:
        pairs: bead indices: all pairs, or the bonded ones of a molecule with very many.
        shortest, longest: nm, one a pair.
        angles: bead indices of the bonded triples.
        smallest, largest: radians, one an angle.
        torsions: bead indices of the bonded quadruples; none of a molecule with very many.
        sectors: of each torsion, the sectors of 10 degrees, from -180 on, with a frame in it.
    """

    pairs: list[list[int]]
    shortest: list[float]
    longest: list[float]
    angles: list[list[int]]
    smallest: list[float]
    largest: list[float]
    torsions: list[list[int]] = field(default_factory=list)
    sectors: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(cls, dataset: CGDataset) -> "CoordinateRanges":
        """Return the ranges of a dataset."""
        topology = dataset.topology
        pairs = geometry.all_pairs(len(topology)).tolist()
        if len(pairs) > _MOST_PAIRS:
            pairs = [list(bond) for bond in topology.bonds]
        triples = [list(triple) for triple in bonded_angles(topology.bonds)]
        torsions = [list(four) for four in bonded_torsions(topology.bonds)]
        if len(torsions) > _MOST_PAIRS:
            torsions = []
        boxes = [None] if dataset.box is None else list(dataset.box)
        frames = [dataset.positions] if dataset.box is None else dataset.positions[:, None]
        values = [_coordinates(x, pairs, triples, b) for x, b in zip(frames, boxes, strict=True)]
        distances = np.concatenate([d for d, _ in values])
        angles = np.concatenate([a for _, a in values])
        seen = [_sectors(x, torsions, b) for x, b in zip(frames, boxes, strict=True)]
        return cls(
            pairs,
            distances.min(0).tolist(),
            distances.max(0).tolist(),
            triples,
            angles.min(0).tolist(),
            angles.max(0).tolist(),
            torsions,
            [np.unique(column).tolist() for column in np.concatenate(seen).T],
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
        """Return which copies have a distance, angle or torsion outside the training data.

        Args:
            positions: (copies, beads, 3), nm.
            box_vectors: (3, 3), nm, or None.

        Returns:
            (copies,) bool; a copy that is not finite is outside.
        """
        distances, angles = _coordinates(positions, self.pairs, self.angles, box_vectors)
        far = _leave(distances, self.shortest, self.longest)
        far |= _leave(angles, self.smallest, self.largest)
        if not self.torsions:
            return far
        known = np.zeros((len(self.torsions), _SECTORS), dtype=bool)
        for torsion, sectors in enumerate(self.sectors):
            known[torsion, sectors] = True
        known |= np.roll(known, 1, axis=1) | np.roll(known, -1, axis=1)
        found = _sectors(positions, self.torsions, box_vectors)
        return far | ~known[np.arange(len(self.torsions)), found].all(axis=1)

    def wider(self, other: "CoordinateRanges") -> "CoordinateRanges":
        """Return what either has seen, of the same molecule."""
        low, high = (np.minimum, np.maximum)
        return replace(
            self,
            shortest=low(self.shortest, other.shortest).tolist(),
            longest=high(self.longest, other.longest).tolist(),
            smallest=low(self.smallest, other.smallest).tolist(),
            largest=high(self.largest, other.largest).tolist(),
            sectors=[
                sorted({*one, *two}) for one, two in zip(self.sectors, other.sectors, strict=True)
            ],
        )


@dataclass(frozen=True)
class ForceSpread:
    """How much the members of an ensemble differ in their forces, and how much is too much.

    Attributes:
        ensembles: the modules with ``force_variance``; the variances of several add.
        typical: median over frames like the training data, kJ/mol/nm; None if it was not measured.
        limit: kJ/mol/nm, beyond which a copy counts as outside of them; likewise.
    """

    ensembles: list[Any]
    typical: float | None = None
    limit: float | None = None

    @classmethod
    def of(cls, pmf: Any, card: dict[str, Any] | None = None) -> "ForceSpread | None":
        """Return the spread of a PMF that is or holds an ensemble; None of any other.

        Args:
            pmf: a `PMF`, or the program of one.
            card: of its model file, which may say what is typical.
        """
        found = _ensembles(pmf)
        record = (card or {}).get("training", {}).get("force_uncertainty") or {}
        return cls(found, record.get("typical"), record.get("limit")) if found else None

    def to_dict(self) -> dict[str, float | None]:
        """Return what is typical and too much as JSON."""
        return {"typical": self.typical, "limit": self.limit}

    def __call__(self, positions: Any, box_vectors: Any = None) -> np.ndarray:
        """Return the standard deviation of each copy's forces (copies,), kJ/mol/nm.

        One evaluation of all members, by torch, on the device where they are.

        Args:
            positions: (copies, beads, 3), nm.
            box_vectors: (3, 3), nm, or None.
        """
        tensors = (t for e in self.ensembles for t in (*e.parameters(), *e.buffers()))
        like = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
        xyz = torch.as_tensor(np.asarray(positions)).to(like)
        box = None if box_vectors is None else torch.as_tensor(np.asarray(box_vectors)).to(like)
        # Unoptimised: TorchScript's first calls run another graph than later ones, which can
        # change last digits, and a run that goes on would not write what an uninterrupted one
        # does. They also take half a second to compile what is then no faster.
        with torch.no_grad(), torch.jit.optimized_execution(False):
            variance = sum(ensemble.force_variance(xyz, box) for ensemble in self.ensembles)
        return variance.sqrt().double().cpu().numpy()  # type: ignore[union-attr]


@dataclass(frozen=True)
class Sighting:
    """What a `Monitor` sees in one frame.

    Attributes:
        flags: for each of the monitor's reasons, (copies,) bool: outside the training data by it.
        uncertainty: (copies,), kJ/mol/nm, of the forces; None without an ensemble.
        limit: of it.
    """

    flags: dict[str, np.ndarray]
    uncertainty: np.ndarray | None = None
    limit: float | None = None

    @property
    def extrapolating(self) -> np.ndarray:
        """(copies,) bool: outside the training data by any reason."""
        return np.logical_or.reduce(list(self.flags.values()))

    def why(self, reason: str, copy: int) -> str:
        """Return in words why a copy has a flag."""
        if reason == "extrapolated":
            return "a distance, angle or torsion is outside the training data"
        assert self.uncertainty is not None
        return (
            f"the ensemble's forces differ by {self.uncertainty[copy]:.0f} kJ/mol/nm, more than "
            f"{self.limit:.0f}, the limit that its training data set"
        )


@dataclass(frozen=True)
class Monitor:
    """Looks which copies of a run are outside the data that its model was trained on.

    Attributes:
        ranges: of distances and angles; None if the model file has none.
        spread: of the forces; None if the model is no ensemble.
    """

    ranges: CoordinateRanges | None = None
    spread: ForceSpread | None = None

    @classmethod
    def of(cls, pmf: Any, card: dict[str, Any]) -> "Monitor":
        """Return the monitor for a model file: the PMF in its program, and its card."""
        return cls(CoordinateRanges.from_card(card), ForceSpread.of(pmf, card))

    @property
    def reasons(self) -> list[str]:
        """Names of what it looks at; of arrays in checkpoints."""
        return ["extrapolated"] + (["uncertain"] if self.spread is not None else [])

    def look(self, positions: np.ndarray, box_vectors: Any = None) -> Sighting:
        """Look at the copies.

        Args:
            positions: (copies, beads, 3), nm.
            box_vectors: (3, 3), nm, or None.
        """
        flags = {reason: np.zeros(len(positions), dtype=bool) for reason in self.reasons}
        if self.ranges is not None:
            flags["extrapolated"] = self.ranges.outside(positions, box_vectors)
        if self.spread is None:
            return Sighting(flags)
        uncertainty, limit = self.spread(positions, box_vectors), self.spread.limit
        if limit is not None:
            flags["uncertain"] = ~(uncertainty <= limit)  # not finite is outside
        return Sighting(flags, uncertainty, limit)


def _ensembles(pmf: Any) -> list[Any]:
    """Return the ensembles in a PMF or its program, the outermost of nested ones."""
    if hasattr(pmf, "force_variance"):
        return [pmf]
    terms = getattr(pmf, "terms", None)  # of a program they can only be had as children
    inner = terms.children() if isinstance(terms, torch.nn.Module) else ()
    return [found for term in inner for found in _ensembles(term)]


def _leave(values: np.ndarray, low: list[float], high: list[float]) -> np.ndarray:
    lowest, highest = np.asarray(low), np.asarray(high)
    margin = _MARGIN * (highest - lowest)
    return ~((values >= lowest - margin) & (values <= highest + margin)).all(axis=1)


def _sectors(positions: Any, torsions: list[list[int]], box_vectors: Any) -> np.ndarray:
    """Return the sector of each torsion (copies, torsions); 0 where it is not finite."""
    xyz = torch.as_tensor(np.asarray(positions), dtype=torch.float64)
    box = None if box_vectors is None else torch.as_tensor(np.asarray(box_vectors)).double()
    index = torch.tensor(torsions, dtype=torch.int64).reshape(-1, 4)
    turns = (geometry.dihedrals(xyz, index, box) + math.pi) / (2 * math.pi)
    return (turns.nan_to_num() * _SECTORS).long().clamp(0, _SECTORS - 1).numpy()


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
