"""CGnet: a dense network on the internal coordinates of one molecule.

Wang et al. 2019, doi:10.1021/acscentsci.8b00913, with two changes that make it smooth everywhere:
cosines instead of angles, and sines and cosines of torsions (damped where three beads are in
line) instead of the angles themselves, whose jump at +-pi the original passes to the energy.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import geometry
from ..dataset import CGDataset
from ..errors import InputError
from ..topology import bonded_angles, bonded_torsions
from ..units import thermal_energy
from .core import InternalPMF
from .layers import DenseNet


class CGNet(InternalPMF):
    """A dense network on all distances, bonded angles and torsions of one molecule.

    It knows left from right hands through the sines of torsions. One molecule only: beads are
    told apart by their index.

    Args:
        beads: number of beads.
        bonds: pairs of bonded beads.
        width: hidden units.
        depth: hidden layers.
        energy_scale: kJ/mol, factor on the network's output; kT is natural.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(
        self,
        beads: int,
        bonds: Sequence[tuple[int, int]],
        width: int = 128,
        depth: int = 4,
        energy_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self._arguments = {
            "beads": beads,
            "bonds": [list(b) for b in bonds],
            "width": width,
            "depth": depth,
            "energy_scale": energy_scale,
        }
        self.coordinates = geometry.InternalCoordinates(
            geometry.all_pairs(beads).tolist(), bonded_angles(bonds), bonded_torsions(bonds)
        )
        features = len(self.coordinates.names)
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.network = DenseNet(features, width, depth)
        self.energy_scale = energy_scale

    def features(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return distances (nm), cosines of angles, damped sines and cosines of torsions.

        Args:
            positions: (copies, beads, 3), nm.
            box_vectors: (3, 3), nm, or None.

        Returns:
            (copies, features), not normalised.
        """
        return self.coordinates(positions, box_vectors)

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        features = self.features(positions, box_vectors)
        return self.energy_scale * self.network(
            (features - self.feature_mean) * self.feature_scale
        )

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and (features, copies), kJ/mol a unit of each."""
        mean, scale = self.feature_mean.unsqueeze(1), self.feature_scale.unsqueeze(1)
        energies, gradient = self.network.value_and_gradient(((values - mean) * scale).t())
        gradient = gradient.t().contiguous().mul_(self.energy_scale * scale)
        return energies * self.energy_scale, gradient

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._arguments)


def cgnet(dataset: CGDataset, *, width: int = 128, depth: int = 4, seed: int = 0) -> CGNet:
    """Return an untrained `CGNet` whose features are normalised by a dataset.

    Args:
        dataset: gives the beads, bonds, temperature and feature statistics.
        width: hidden units.
        depth: hidden layers.
        seed: of the initial weights; the global random state is left as it was.
    """
    if not isinstance(dataset, CGDataset):
        raise InputError(
            f"cgnet knows one molecule only, not a {type(dataset).__name__}; take one of its "
            "datasets, or schnet or painn for all"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CGNet(
            len(dataset.topology),
            dataset.topology.bonds,
            width,
            depth,
            energy_scale=thermal_energy(dataset.temperature),
        )
    stride = max(1, len(dataset) // 20_000)
    positions = torch.as_tensor(dataset.positions[::stride], dtype=torch.float32)
    with torch.no_grad():
        if dataset.box is None:
            features = network.features(positions)
        else:
            boxes = torch.as_tensor(dataset.box[::stride], dtype=torch.float32)
            features = torch.cat(
                [network.features(x[None], b) for x, b in zip(positions, boxes, strict=True)]
            )
        network.feature_mean.copy_(features.mean(0))
        network.feature_scale.copy_(1 / features.std(0).clamp_min(1e-4))
    return network
