"""Repulsion in large systems: between all beads that come close, found by a neighbour search."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..topology import CGTopology
from .message import MOST_DENSE, MessagePMF
from .prior_indices import REPULSION_BONDS
from .radial import cutoff_envelope

#: Cutoff over the largest radius; (1/2)^12 of the strength would be left there.
_REACH = 2.0


class ShortRangeRepulsion(MessagePMF):
    """Sum of strength (radius / d)^12 over pairs, switched off beyond the largest radius.

    Closer beads repel each other as by `Repulsion`, whose list of pairs grows with the square of
    the beads.

    Args:
        bead_types: type of each bead.
        type_names: all types.
        strength: (types, types), kJ/mol: the energy at d = radius.
        radius: (types, types), nm; 0: not known, for types of which no two beads repel.
        excluded: pairs of beads that do not repel each other.
        dense: whether to look at all pairs.

    Raises:
        InputError: if a table is not symmetric or of another shape, or there is no radius for
            beads that repel each other.
    """

    strength: Tensor
    radius: Tensor
    excluded: Tensor
    keys: Tensor

    def __init__(
        self,
        bead_types: Sequence[str],
        type_names: Sequence[str],
        strength: Sequence[Sequence[float]],
        radius: Sequence[Sequence[float]],
        excluded: Sequence[Sequence[int]] = (),
        dense: bool = False,
    ) -> None:
        super().__init__()
        for name, values in (("strength", strength), ("radius", radius)):
            table = torch.tensor(values, dtype=torch.float32)
            if table.shape != 2 * (len(type_names),) or not torch.equal(table, table.T):
                raise InputError(
                    f"{name} of a repulsion must be a symmetric table of {len(type_names)} by "
                    f"{len(type_names)} types"
                )
            self.register_buffer(name, table)
        self._set_pairs(bead_types, type_names, _REACH * float(self.radius.max()), dense)
        pairs = sorted({(min(p), max(p)) for p in excluded})
        beads = self.beads
        self.register_buffer("excluded", torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2))
        self._require_radii()
        # One past the last, so that a search never ends behind the list.
        keys = [i * beads + j for i, j in pairs] + [beads * beads]
        self.register_buffer("keys", torch.tensor(keys, dtype=torch.int64))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        distances, _, first, second = self.pairs_of(positions, box_vectors)
        one, other = first.remainder(self.beads), second.remainder(self.beads)
        place = one * self.beads + other
        counts = self.keys[torch.searchsorted(self.keys, place)] != place
        kinds = self.types[one] * len(self.type_names) + self.types[other]
        radius = self.radius.reshape(-1)[kinds]
        strength = self.strength.reshape(-1)[kinds] * counts
        half = 0.5 * self.cutoff
        switch = cutoff_envelope((distances - half).clamp(min=0.0), half)
        terms = strength * (radius / distances).pow(12) * switch
        if self.dense:
            return terms.sum(-1)
        copies = first.div(self.beads, rounding_mode="floor")
        return torch.zeros_like(positions[:, 0, 0]).index_add(0, copies, terms[0])

    def for_topology(self, topology: CGTopology) -> "ShortRangeRepulsion":
        """Return the repulsion for another molecule of the same types.

        Raises:
            InputError: if beads that repel each other are of types without a radius.
        """
        changed = {
            "bead_types": list(topology.bead_types),
            "dense": len(topology) <= MOST_DENSE,
            "excluded": close_pairs(topology, REPULSION_BONDS),
        }
        other = ShortRangeRepulsion(**(self.arguments() | changed)).to(self.radius)
        return other.train(self.training)

    def tabulated(self, knots: int = 1024) -> "ShortRangeRepulsion":
        """Return itself: nothing in it is worth a table."""
        return self

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "bead_types": [self.type_names[t] for t in self.types.tolist()],
            "type_names": self.type_names,
            "strength": self.strength.tolist(),
            "radius": self.radius.tolist(),
            "excluded": self.excluded.tolist(),
            "dense": self.dense,
        }

    def _require_radii(self) -> None:
        repelling = pair_counts(self.types, len(self.type_names), self.excluded) > 0
        missing = torch.nonzero(repelling & (self.radius == 0)).tolist()
        if missing:
            one, other = (self.type_names[kind] for kind in missing[0])
            types = json.dumps([one, other])
            raise InputError(
                f"beads of types {one}-{other} repel each other, for which the prior has no "
                f"radius; add a row to [[repulsion]] with types = {types}, or fit the prior on a "
                "molecule that has such beads"
            )


def pair_counts(types: Tensor, kinds: int, excluded: Tensor) -> Tensor:
    """Return (kinds, kinds) how many beads of each type meet others of each type.

    Args:
        types: (beads,) numbers of types.
        kinds: number of types.
        excluded: (pairs, 2) pairs of beads not to be counted.
    """
    sizes = torch.bincount(types, minlength=kinds)
    near = torch.zeros_like(sizes.repeat(kinds, 1))
    one, other = types[excluded].unbind(1)
    near.index_put_((one, other), torch.ones_like(one), accumulate=True)
    return torch.outer(sizes, sizes) - torch.diag(sizes) - near - near.T


def close_pairs(topology: CGTopology, bonds: int) -> list[tuple[int, int]]:
    """Return pairs i < j joined by fewer bonds than so many."""
    near: list[set[int]] = [set() for _ in range(len(topology))]
    for i, j in topology.bonds:
        near[i].add(j)
        near[j].add(i)
    reached = [{k} for k in range(len(topology))]
    for _ in range(bonds - 1):
        reached = [set.union(r, *(near[k] for k in r)) for r in reached]
    return [(i, j) for i, r in enumerate(reached) for j in sorted(r) if i < j]
