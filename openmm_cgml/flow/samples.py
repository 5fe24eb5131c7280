"""What of a flow's samples is fit to teach a PMF, and with which weight."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import numpy as np

from .. import geometry
from ..dataset import CGDataset
from ..reweight import kish_size
from ..topology import bond_separations

#: Beads up to so many bonds apart keep their distance by bonds and angles.
_BONDS = 2

#: Stiffness of the repulsion, kT/nm^2, as in the code of doi:10.1021/acs.jctc.3c00016.
STIFFNESS = 1600.0

#: Samples are left out whose forces are so many times the median ones: twisted into a corner of
#: the flow where it has seen no data, which a network would spend itself on.
_STRONG = 5.0

_CHUNK = 4096  # frames whose pairs are computed together

# Of the weight: hot rungs of a replica exchange are full of frames that do not matter.
_NEGLIGIBLE = 1e-4

# kT; the weight of such a sample would be below 3e-9.
_OVERLAP = 20.0


@dataclass(frozen=True)
class SampleReport:
    """What became of a flow's samples.

    Attributes:
        drawn: samples, and visited frames.
        not_finite: of which left out since a number was not finite.
        strong: of which left out since the RMS component of the forces was above the limit.
        limit: that limit, kJ/mol/nm.
        overlapping: of which left out since their repulsion, below, was above 20 kT.
        broad: samples from a broader density than the flow's.
        visited: frames from elsewhere, of weight zero.
        clashing: fraction of the flow's frames, by the weights, in which two beads are closer than
            in any of the training frames.
        effective: frames that the weights leave, (sum w)^2 / sum w^2.
    """

    drawn: int
    not_finite: int
    strong: int
    overlapping: int
    broad: int
    visited: int
    limit: float
    clashing: float
    effective: float

    @property
    def kept(self) -> int:
        """Frames in the dataset."""
        return self.drawn - self.not_finite - self.strong - self.overlapping

    def to_dict(self) -> dict[str, Any]:
        """Return the report, JSON-able."""
        return {**asdict(self), "kept": self.kept, "text": self.text()}

    def text(self) -> str:
        """Return the report in a line."""
        return (
            f"{self.drawn - self.visited:,} samples of the flow, {self.broad:,} of them from a "
            f"broader density, and {self.visited:,} frames from elsewhere: "
            f"{self.kept:,} kept, {self.strong:,} with forces "
            f"above {self.limit:.0f} kJ/mol/nm left out, {self.overlapping:,} overlapping, "
            f"{self.not_finite:,} not finite; "
            f"{100 * self.clashing:.2f} % have beads closer than in training; the "
            f"weights leave {self.effective:,.0f} effective frames"
        )


class Contacts:
    """Distances of beads that no bond or angle keeps apart: how close they come in a dataset.

    Args:
        pairs: (pairs, 2) beads.
        closest: (pairs,) smallest distance, nm.
    """

    def __init__(self, pairs: Any, closest: Any) -> None:
        self.pairs = torch.as_tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        self.closest = torch.as_tensor(closest, dtype=torch.float64).reshape(-1)

    @classmethod
    def of(cls, dataset: CGDataset) -> "Contacts":
        """Return those of the frames of a dataset, but for some that have next to no weight."""
        separations = bond_separations(len(dataset.topology), dataset.topology.bonds)
        first, second = np.triu_indices(len(dataset.topology), 1)
        apart = separations[first, second] > _BONDS
        pairs = np.stack([first[apart], second[apart]], axis=1)
        positions = dataset.positions
        if dataset.weights is not None:
            positions = positions[_counting(np.asarray(dataset.weights, dtype=np.float64))]
        closest = np.full(len(pairs), np.inf)
        for part in np.array_split(positions, -(-len(positions) // _CHUNK)):
            found = geometry.distances(torch.as_tensor(part).double(), torch.as_tensor(pairs))
            closest = np.minimum(closest, found.amin(0).numpy()) if len(pairs) else closest
        return cls(pairs, closest)

    def to_dict(self) -> dict[str, Any]:
        """Return pairs and distances, JSON-able."""
        return {"pairs": self.pairs.tolist(), "closest": self.closest.tolist()}

    def overlaps(self, positions: Tensor) -> Tensor:
        """Return how much closer each pair is (frames, pairs), nm; 0 where it is not."""
        found = geometry.distances(positions, self.pairs.to(positions.device))
        return (self.closest.to(positions) - found).clamp(min=0.0)

    def repulsion(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return U = k sum of squared overlaps and -grad U, in kT and kT/nm.

        Args:
            positions: (frames, beads, 3), nm.

        Returns:
            (frames,) and (frames, beads, 3).
        """
        found = [self._repulsion(part) for part in positions.split(_CHUNK)]
        energies, push = zip(*found, strict=True)
        return torch.cat(energies), torch.cat(push)

    def _repulsion(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = positions.detach().requires_grad_(True)
            energies = STIFFNESS * self.overlaps(leaf).square().sum(1)
            (gradient,) = torch.autograd.grad(energies.sum(), leaf, allow_unused=True)
        slope = torch.zeros_like(positions) if gradient is None else gradient
        return energies.detach(), -slope


def _counting(weights: np.ndarray) -> np.ndarray:
    """Return the frames that have all but `_NEGLIGIBLE` of the weight, the heaviest ones."""
    order = np.argsort(weights)[::-1]
    before = np.cumsum(weights[order]) - weights[order]
    return order[before < (1 - _NEGLIGIBLE) * weights.sum()]


def fit_to_teach(
    positions: Tensor,
    forces: Tensor,
    log_weights: Tensor,
    broad: int,
    visited: int,
    kt: float,
    contacts: Contacts,
    limit: float | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, SampleReport]:
    """Leave out samples with enormous forces, and push overlapping beads apart.

    The rest has the density p exp(-U / kT), with U the repulsion, by its weights, and the
    forces of that density.

    Args:
        positions: (samples, beads, 3), nm, drawn from the flow, or also from elsewhere.
        forces: (samples, beads, 3), kJ/mol/nm, of the flow.
        log_weights: (samples,): with them the samples are the flow's.
        broad, visited: samples that are from a broader density, and frames that are no samples
            (their log weights are minus infinity), for the report.
        kt: thermal energy, kJ/mol.
        contacts: of the training frames.
        limit: largest RMS component of a sample's forces, kJ/mol/nm; None: five times the median.

    Returns:
        Positions, forces and weights (mean one) of the samples kept, and the report.
    """
    finite = torch.isfinite(positions).all(2).all(1) & torch.isfinite(forces).all(2).all(1)
    strength = forces.square().mean(dim=(1, 2)).sqrt()
    if limit is None:
        own = strength[finite & log_weights.isfinite()]
        limit = _STRONG * float(own.median()) if len(own) else math.inf
    weak = strength <= limit
    energies, push = contacts.repulsion(positions)
    apart = energies <= _OVERLAP
    kept = finite & weak & apart
    energies, push = energies[kept], push[kept]
    logs = log_weights[kept] - energies.double()
    weights = torch.exp(logs)
    if len(weights):
        weights = weights / weights.mean()
    report = SampleReport(
        drawn=len(positions),
        not_finite=int((~finite).sum()),
        strong=int((finite & ~weak).sum()),
        overlapping=int((finite & weak & ~apart).sum()),
        limit=float(limit),
        broad=broad,
        visited=visited,
        clashing=float((weights * (energies > 0)).mean()) if len(energies) else 0.0,
        effective=kish_size(logs.cpu().numpy()) if bool(logs.isfinite().any()) else 0.0,
    )
    total = forces[kept] + kt * push
    return positions[kept].cpu().numpy(), total.cpu().numpy(), weights.cpu().numpy(), report
