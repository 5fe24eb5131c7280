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
from ..topology import bonded_angles, bonded_torsions
from ..units import thermal_energy
from .core import PMF, index_buffer
from .layers import DenseNet


class CGNet(PMF):
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

    pairs: Tensor
    angle_first: Tensor
    angle_first_sign: Tensor
    angle_second: Tensor
    angle_second_sign: Tensor
    torsion_first: Tensor
    torsion_first_sign: Tensor
    torsion_second: Tensor
    torsion_second_sign: Tensor
    torsion_third: Tensor
    torsion_third_sign: Tensor
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
        pairs = geometry.all_pairs(beads)
        # Angles and torsions reuse the displacements of all pairs: (index, sign) into them.
        number = {tuple(p): k for k, p in enumerate(pairs.tolist())}

        def steps(chains: Sequence[tuple[int, ...]], at: int) -> tuple[Tensor, Tensor]:
            ends = [(c[at], c[at + 1]) for c in chains]
            where = torch.tensor([number[min(e), max(e)] for e in ends], dtype=torch.int64)
            sign = torch.tensor([1.0 if i < j else -1.0 for i, j in ends]).reshape(-1, 1)
            return where, sign

        angles = bonded_angles(bonds)
        torsions = bonded_torsions(bonds)
        self.register_buffer("pairs", index_buffer(pairs.tolist(), 2))
        for name, chains, at in (
            ("angle_first", angles, 0),
            ("angle_second", angles, 1),
            ("torsion_first", torsions, 0),
            ("torsion_second", torsions, 1),
            ("torsion_third", torsions, 2),
        ):
            where, sign = steps(chains, at)
            self.register_buffer(name, where)
            self.register_buffer(name + "_sign", sign)
        features = len(pairs) + len(angles) + 2 * len(torsions)
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
        vectors = geometry.displacements(positions, self.pairs, box_vectors)
        cosines = geometry.cosine_angles(
            vectors.index_select(1, self.angle_first) * self.angle_first_sign,
            vectors.index_select(1, self.angle_second) * self.angle_second_sign,
        )
        sine, cosine = geometry.damped_torsions(
            vectors.index_select(1, self.torsion_first) * self.torsion_first_sign,
            vectors.index_select(1, self.torsion_second) * self.torsion_second_sign,
            vectors.index_select(1, self.torsion_third) * self.torsion_third_sign,
        )
        return torch.cat([geometry.norm(vectors), cosines, sine, cosine], dim=1)

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        features = self.features(positions, box_vectors)
        return self.energy_scale * self.network(
            (features - self.feature_mean) * self.feature_scale
        )

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
