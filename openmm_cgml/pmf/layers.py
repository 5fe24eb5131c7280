"""Parts that several PMFs are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DenseNet(nn.Module):
    """A multilayer perceptron with SiLU activations and residual hidden layers.

    Args:
        inputs: number of features.
        width: hidden units.
        depth: hidden layers, at least one.
    """

    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        # No output bias: an energy's zero is arbitrary, and forces would give it no gradient.
        self.last = nn.Linear(width, 1, bias=False)
        self.activation = nn.SiLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map features (copies, inputs) to (copies,)."""
        state = self.activation(self.first(features))
        for layer in self.hidden:
            state = state + self.activation(layer(state))
        return self.last(state).squeeze(-1)


def bonded_angles(beads: int, bonds: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return all (i, j, k) with bonds i-j and j-k, i < k."""
    around = _neighbours(beads, bonds)
    return sorted(
        (i, j, k) for j in range(beads) for i in around[j] for k in around[j] if i < k
    )


def bonded_torsions(
    beads: int, bonds: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int, int]]:
    """Return all (i, j, k, l) with bonds i-j, j-k and k-l, j < k, of four different beads."""
    around = _neighbours(beads, bonds)
    return sorted(
        (i, j, k, m)
        for j, k in sorted({(min(b), max(b)) for b in bonds})
        for i in around[j]
        for m in around[k]
        if len({i, j, k, m}) == 4
    )


def bond_separations(beads: int, bonds: Sequence[tuple[int, int]]) -> Tensor:
    """Return the (beads, beads) number of bonds between beads; `beads` where not connected."""
    around = _neighbours(beads, bonds)
    separations = torch.full((beads, beads), beads, dtype=torch.int64)
    for start in range(beads):
        reached, frontier, steps = {start}, [start], 0
        while frontier:
            for bead in frontier:
                separations[start, bead] = steps
            frontier = sorted({n for bead in frontier for n in around[bead]} - reached)
            reached.update(frontier)
            steps += 1
    return separations


def _neighbours(beads: int, bonds: Sequence[tuple[int, int]]) -> list[list[int]]:
    around: list[list[int]] = [[] for _ in range(beads)]
    for i, j in bonds:
        around[i].append(j)
        around[j].append(i)
    return [sorted(a) for a in around]
