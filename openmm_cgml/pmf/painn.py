"""PaiNN: messages of scalars and vectors, so that beads know directions, not distances only.

Schütt, Unke, Gastegger 2021, arXiv:2102.03150, with one addition: triple products of the vectors
let a network tell left from right, which a mirror image of the original does not change.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..units import thermal_energy
from .message import MessagePMF, message_arguments
from .radial import RadialFilter


class _Block(nn.Module):
    """One round: what each bead sends, and what it makes of the sums it gets."""

    def __init__(self, width: int, chiral: bool) -> None:
        super().__init__()
        self.chiral, self.width = chiral, width
        self.soft = 1e-4  # keeps lengths of vectors differentiable where they are zero
        self.send = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * width))
        # As many vectors as are mixed: two for their product, a third for the triple product.
        self.mix = nn.Linear(width, (3 if chiral else 2) * width, bias=False)
        self.update = nn.Sequential(
            nn.Linear((3 if chiral else 2) * width, width), nn.SiLU(), nn.Linear(width, 3 * width)
        )

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Update scalars (groups, beads, width) and vectors (groups, beads, 3, width)."""
        mixed = self.mix(vectors)
        left, right = mixed[..., : self.width], mixed[..., self.width : 2 * self.width]
        length = (right.square().sum(2) + self.soft).sqrt()
        known = [scalars, length]
        if self.chiral:
            third = mixed[..., 2 * self.width :]
            x, y, z = left.unbind(2)
            a, b, c = right.unbind(2)
            d, e, f = third.unbind(2)
            triple = x * (b * f - c * e) + y * (c * d - a * f) + z * (a * e - b * d)
            # Bounded, so that one large vector does not rule the network.
            sizes = (1 + left.square().sum(2)) * (1 + third.square().sum(2))
            known.append(triple / (sizes.sqrt() * length))
        gates = self.update(torch.cat(known, dim=-1))
        turn, cross, add = gates.split(self.width, dim=-1)
        scalars = scalars + add + cross * (left * right).sum(2)
        return scalars, vectors + left * turn.unsqueeze(2)


class PaiNN(MessagePMF):
    """Beads send scalars and vectors through learned functions of their distance.

    Args:
        bead_types: type of each bead.
        type_names: all types that the network knows.
        cutoff: distance beyond which beads do not see each other, nm.
        width: features of a bead.
        blocks: rounds of messages.
        basis: Gaussians.
        chiral: whether it can tell mirror images apart.
        energy_scale: kJ/mol, factor on the network's output; kT is natural.
        dense: whether to look at all pairs.
        knots: intervals of tabulated filters; 0: none. See `tabulated`.
    """

    def __init__(
        self,
        bead_types: Sequence[str],
        type_names: Sequence[str],
        cutoff: float,
        width: int = 64,
        blocks: int = 2,
        basis: int = 32,
        chiral: bool = True,
        energy_scale: float = 1.0,
        dense: bool = True,
        knots: int = 0,
    ) -> None:
        super().__init__()
        self._arguments = {
            "type_names": list(type_names),
            "cutoff": cutoff,
            "width": width,
            "blocks": blocks,
            "basis": basis,
            "chiral": chiral,
            "energy_scale": energy_scale,
            "dense": dense,
            "knots": knots,
        }
        self._set_pairs(bead_types, type_names, cutoff, dense)
        self.width = width
        self.embedding = nn.Embedding(len(type_names), width)
        self.radial = nn.ModuleList(
            RadialFilter(basis, 0, 3 * width, cutoff, knots) for _ in range(blocks)
        )
        self.blocks = nn.ModuleList(_Block(width, chiral) for _ in range(blocks))
        self.output = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False)
        )
        self.energy_scale = energy_scale

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        distances, units, first, second = self.pairs_of(positions, box_vectors)
        scalars = self.nodes(self.embedding.weight, positions)
        groups, beads, width = scalars.size(0), scalars.size(1), self.width
        vectors = torch.zeros_like(scalars).unsqueeze(2).expand(groups, beads, 3, width)
        for number, (radial, block) in enumerate(zip(self.radial, self.blocks)):  # noqa: B905
            filters = radial(distances)
            if number == 0:  # beads of one type still send the same
                sent = self.nodes(block.send(self.embedding.weight), positions)  # type: ignore[operator]
            else:
                sent = block.send(scalars)  # type: ignore[operator]
            new, along, stay = sent.split(width, dim=-1)
            w_new, w_along, w_stay = filters.split(width, dim=-1)
            scalars = scalars + self.convolve(new, w_new, first, second, False)
            # From a bead to its neighbour, so opposite for the other one.
            directed = (units.unsqueeze(-1) * w_along.unsqueeze(2)).flatten(2)
            sums = self.convolve(along.repeat(1, 1, 3), directed, first, second, True)
            if number > 0:  # no vectors to pass on yet
                turned = (vectors * stay.unsqueeze(2)).flatten(2)
                sums = sums + self.convolve(turned, w_stay.repeat(1, 1, 3), first, second, False)
            vectors = vectors + sums.view(groups, beads, 3, width)
            scalars, vectors = block(scalars, vectors)
        energies = self.output(scalars).view(positions.size(0), -1)
        return self.energy_scale * energies.sum(-1)


def painn(
    dataset: Any,
    *,
    width: int = 64,
    depth: int = 2,
    basis: int = 32,
    cutoff: float | None = None,
    chiral: bool = True,
    dense: bool | None = None,
    seed: int = 0,
) -> PaiNN:
    """Return an untrained `PaiNN` for a dataset's beads.

    Args:
        dataset: a `CGDataset`, or a `DatasetCollection` of several molecules.
        width: features of a bead.
        depth: rounds of messages.
        basis: Gaussians that the functions of the distance are made of.
        cutoff: nm; None: the largest distance in the data, at most 1.2 nm.
        chiral: tell mirror images apart.
        dense: look at all pairs; None: for molecules that are small.
        seed: of the initial weights; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PaiNN(
            **message_arguments(dataset, cutoff, dense),
            width=width,
            blocks=depth,
            basis=basis,
            chiral=chiral,
            energy_scale=thermal_energy(dataset.temperature),
        )
