"""SchNet: continuous-filter convolutions between beads; one network for many molecules.

Schütt et al. 2018, doi:10.1063/1.5019779; for coarse-graining Husic et al. 2020,
doi:10.1063/5.0026133. It sees distances only, so it cannot tell mirror images apart: leave that
to a prior (torsions, impropers) or take `painn`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..units import thermal_energy
from .message import MessagePMF, message_arguments
from .radial import RadialFilter


class _Interaction(nn.Module):
    """What a block does to each bead, before and after the sum over neighbours."""

    def __init__(self, width: int, filters: int) -> None:
        super().__init__()
        self.before = nn.Linear(width, filters, bias=False)
        self.after = nn.Sequential(nn.Linear(filters, width), nn.SiLU(), nn.Linear(width, width))


class SchNet(MessagePMF):
    """Beads send messages through learned functions of their distance.

    Args:
        bead_types: type of each bead.
        type_names: all types that the network knows.
        cutoff: distance beyond which beads do not see each other, nm.
        width: features of a bead.
        filters: functions of the distance in a block.
        blocks: rounds of messages.
        basis: Gaussians.
        energy_scale: kJ/mol, factor on the network's output; kT is natural.
        dense: whether to look at all pairs.
        knots: intervals of tabulated filters; 0: none. See `tabulated`.
    """

    def __init__(
        self,
        bead_types: Sequence[str],
        type_names: Sequence[str],
        cutoff: float,
        width: int = 128,
        filters: int = 128,
        blocks: int = 2,
        basis: int = 32,
        energy_scale: float = 1.0,
        dense: bool = True,
        knots: int = 0,
    ) -> None:
        super().__init__()
        self._arguments = {
            "type_names": list(type_names),
            "cutoff": cutoff,
            "width": width,
            "filters": filters,
            "blocks": blocks,
            "basis": basis,
            "energy_scale": energy_scale,
            "dense": dense,
            "knots": knots,
        }
        self._set_pairs(bead_types, type_names, cutoff, dense)
        self.embedding = nn.Embedding(len(type_names), width)
        self.radial = nn.ModuleList(
            RadialFilter(basis, filters, filters, cutoff, knots) for _ in range(blocks)
        )
        self.interactions = nn.ModuleList(_Interaction(width, filters) for _ in range(blocks))
        # No output bias: an energy's zero is arbitrary, and forces would give it no gradient.
        self.output = nn.Sequential(
            nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1, bias=False)
        )
        self.energy_scale = energy_scale

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        distances, _, first, second = self.pairs_of(positions, box_vectors)
        states = self.nodes(self.embedding.weight, positions)
        for number, (radial, interaction) in enumerate(zip(self.radial, self.interactions)):  # noqa: B905
            if number == 0:  # beads of one type still send the same
                sent = self.nodes(interaction.before(self.embedding.weight), positions)  # type: ignore[operator]
            else:
                sent = interaction.before(states)  # type: ignore[operator]
            messages = self.convolve(sent, radial(distances), first, second, False)
            states = states + interaction.after(messages)  # type: ignore[operator]
        energies = self.output(states).view(positions.size(0), -1)
        return self.energy_scale * energies.sum(-1)


def schnet(
    dataset: Any,
    *,
    width: int = 128,
    depth: int = 2,
    filters: int | None = None,
    basis: int = 32,
    cutoff: float | None = None,
    dense: bool | None = None,
    seed: int = 0,
) -> SchNet:
    """Return an untrained `SchNet` for a dataset's beads.

    Args:
        dataset: a `CGDataset`, or a `DatasetCollection` of several molecules.
        width: features of a bead.
        depth: rounds of messages.
        filters: functions of the distance in a round; None: as many as `width`.
        basis: Gaussians that these are made of.
        cutoff: nm; None: the largest distance in the data, at most 1.2 nm.
        dense: look at all pairs; None: for molecules that are small.
        seed: of the initial weights; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SchNet(
            **message_arguments(dataset, cutoff, dense),
            width=width,
            filters=filters or width,
            blocks=depth,
            basis=basis,
            energy_scale=thermal_energy(dataset.temperature),
        )
