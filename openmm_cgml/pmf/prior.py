"""Priors: simple physics that keeps a network's molecule whole where it has seen no data.

Each is fitted to the equilibrium distribution of one internal coordinate, Jacobian included, and
is smooth wherever no two beads coincide.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import numpy as np

from .. import geometry
from ..dataset import CGDataset
from ..errors import InputError
from ..topology import bond_separations, bonded_angles
from ..units import thermal_energy
from .core import InternalPMF, SumPMF


class _FittedTerms(InternalPMF):
    """Energy terms with one row of indices and parameters each; parameters are buffers."""

    indices: Tensor

    def __init__(self, indices: Sequence[Sequence[int]], width: int) -> None:
        super().__init__()
        self.register_buffer("indices", geometry.index_buffer(indices, width))
        self.coordinates = (
            geometry.InternalCoordinates(pairs=indices)
            if width == 2
            else geometry.InternalCoordinates(angles=indices)
        )

    def arguments(self) -> dict[str, Any]:
        """Return the indices and the parameters as tables."""
        return {name: value.tolist() for name, value in self.named_buffers(recurse=False)}


class HarmonicBonds(_FittedTerms):
    """Sum of k/2 (d - d0)^2 over pairs.

    Args:
        indices: (terms, 2) bead indices.
        stiffness: k, kJ/mol/nm^2, one a term.
        length: d0, nm, one a term.
    """

    stiffness: Tensor
    length: Tensor

    def __init__(
        self,
        indices: Sequence[Sequence[int]],
        stiffness: Sequence[float],
        length: Sequence[float],
    ) -> None:
        super().__init__(indices, 2)
        self.register_buffer("stiffness", torch.tensor(stiffness, dtype=torch.float32))
        self.register_buffer("length", torch.tensor(length, dtype=torch.float32))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        stretch = geometry.distances(positions, self.indices, box_vectors) - self.length
        return (0.5 * self.stiffness * stretch.square()).sum(-1)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and (terms, copies), kJ/mol/nm."""
        return _harmonic(values, self.stiffness, self.length)


class HarmonicAngles(_FittedTerms):
    """Sum of k/2 (cos a - c0)^2 over triples: smooth also where three beads are in line.

    Args:
        indices: (terms, 3) bead indices, the middle one at the angle's tip.
        stiffness: k, kJ/mol, one a term.
        cosine: c0, one a term.
    """

    stiffness: Tensor
    cosine: Tensor

    def __init__(
        self,
        indices: Sequence[Sequence[int]],
        stiffness: Sequence[float],
        cosine: Sequence[float],
    ) -> None:
        super().__init__(indices, 3)
        self.register_buffer("stiffness", torch.tensor(stiffness, dtype=torch.float32))
        self.register_buffer("cosine", torch.tensor(cosine, dtype=torch.float32))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        cosines = geometry.cosine_angles(
            geometry.displacements(positions, self.indices[:, 0:2], box_vectors),
            geometry.displacements(positions, self.indices[:, 1:3], box_vectors),
        )
        return (0.5 * self.stiffness * (cosines - self.cosine).square()).sum(-1)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,) and (terms, copies), kJ/mol."""
        return _harmonic(values, self.stiffness, self.cosine)


class Repulsion(_FittedTerms):
    """Sum of strength (radius / d)^12 over pairs.

    Args:
        indices: (terms, 2) bead indices.
        strength: kJ/mol, one a term: the energy at d = radius.
        radius: nm, one a term.
    """

    strength: Tensor
    radius: Tensor

    def __init__(
        self,
        indices: Sequence[Sequence[int]],
        strength: Sequence[float],
        radius: Sequence[float],
    ) -> None:
        super().__init__(indices, 2)
        self.register_buffer("strength", torch.tensor(strength, dtype=torch.float32))
        self.register_buffer("radius", torch.tensor(radius, dtype=torch.float32))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        steps = geometry.displacements(positions, self.indices, box_vectors)
        # Through the squared distance: no square root, no infinite gradient of one.
        inverse_cube = (self.radius.square() / steps.square().sum(-1)).pow(3)
        return (self.strength * inverse_cube.square()).sum(-1)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and (terms, copies), kJ/mol/nm."""
        strength = self.strength.unsqueeze(1)
        power = (self.radius.unsqueeze(1) / values).pow_(3)
        power.mul_(power)
        power.mul_(power)
        return (power * strength).sum(0), power.mul_(-12 * strength).div_(values)


def _harmonic(values: Tensor, stiffness: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum (copies,) and the gradient (terms, copies) of k/2 (value - centre)^2."""
    # Numbers multiply the parameters, not the terms: a frozen program holds these products.
    stiffness = stiffness.unsqueeze(1)
    stretch = values - centre.unsqueeze(1)
    gradient = stretch * stiffness
    return stretch.mul_(stretch).mul_(0.5 * stiffness).sum(0), gradient


def fit_prior(
    dataset: CGDataset, terms: Sequence[str] = ("bonds", "angles", "repulsion")
) -> SumPMF:
    """Fit bond, angle and repulsion terms to a dataset's (weighted) distributions.

    - bonds: the density of d over the Jacobian d^2 is taken as Gaussian, so d0 and kT/k are mean
      and variance under frame weights w / d^2;
    - angles: in cos a the Jacobian is flat, so c0 and kT/k are plain mean and variance;
    - repulsion: pairs three or more bonds apart; kT at the distance that 0.1 % of the frames
      fall below.

    Args:
        dataset: the frames; their weights count for bonds and angles. For the repulsion all
            frames count alike: biased ones show which distances are possible.
        terms: which terms to fit.

    Returns:
        The sum of the terms, without trainable parameters.

    Raises:
        InputError: if a term is unknown, or the molecule has none of the coordinates asked for.
    """
    fitters = {"bonds": _fit_bonds, "angles": _fit_angles, "repulsion": _fit_repulsion}
    unknown = [t for t in terms if t not in fitters]
    if unknown:
        raise InputError(f"unknown prior term {unknown[0]!r}; known: {', '.join(fitters)}")
    fitted = [term for name in terms if (term := fitters[name](dataset)) is not None]
    if not fitted:
        raise InputError(
            "the molecule has no bonds, angles or non-bonded pairs; leave the prior out"
        )
    return SumPMF(*fitted)


def _fit_bonds(dataset: CGDataset) -> HarmonicBonds | None:
    bonds = dataset.topology.bonds
    if not bonds:
        return None
    lengths = _evaluate(dataset, geometry.distances, bonds, 2)
    weights = dataset.probabilities[:, None] / lengths**2
    mean, variance = _moments(lengths, weights)
    kt = thermal_energy(dataset.temperature)
    return HarmonicBonds(bonds, (kt / variance).tolist(), mean.tolist())


def _fit_angles(dataset: CGDataset) -> HarmonicAngles | None:
    triples = bonded_angles(dataset.topology.bonds)
    if not triples:
        return None

    def cosines(positions: Tensor, indices: Tensor, box: Tensor | None) -> Tensor:
        return geometry.cosine_angles(
            geometry.displacements(positions, indices[:, 0:2], box),
            geometry.displacements(positions, indices[:, 1:3], box),
        )

    values = _evaluate(dataset, cosines, triples, 3)
    mean, variance = _moments(values, dataset.probabilities[:, None])
    kt = thermal_energy(dataset.temperature)
    return HarmonicAngles(triples, (kt / variance).tolist(), mean.tolist())


def _fit_repulsion(dataset: CGDataset) -> Repulsion | None:
    beads = len(dataset.topology)
    separations = bond_separations(beads, dataset.topology.bonds)
    pairs = [p for p in geometry.all_pairs(beads).tolist() if separations[p[0], p[1]] >= 3]
    if not pairs:
        return None
    lengths = _evaluate(dataset, geometry.distances, pairs, 2)
    radius = np.quantile(lengths, 1e-3, axis=0)
    kt = thermal_energy(dataset.temperature)
    return Repulsion(pairs, [kt] * len(pairs), radius.tolist())


def _evaluate(
    dataset: CGDataset, coordinate: Any, indices: Sequence[Sequence[int]], width: int
) -> np.ndarray:
    """Return an internal coordinate (frames, terms) in float64, frame by frame in its box."""
    index = geometry.index_buffer(indices, width)
    positions = torch.as_tensor(dataset.positions, dtype=torch.float64)
    if dataset.box is None:
        return coordinate(positions, index, None).numpy()
    boxes = torch.as_tensor(dataset.box, dtype=torch.float64)
    return torch.cat(
        [coordinate(x[None], index, box) for x, box in zip(positions, boxes, strict=True)]
    ).numpy()


def _moments(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weights = weights / weights.sum(0)
    mean = (weights * values).sum(0)
    variance = (weights * (values - mean) ** 2).sum(0)
    # Beads rigidly tied to each other would give an infinite force constant.
    return mean, np.maximum(variance, 1e-8)
