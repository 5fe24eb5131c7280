"""What message-passing networks share: bead types, pairs of beads, sums over neighbours.

Small molecules use all pairs, in operations of fixed shape without a scatter: a GPU can record
them, and they compile to plain loops. Large ones search for neighbours in cells.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import geometry
from ..errors import InputError
from ..neighbours import box_fits, neighbour_pairs
from ..topology import CGTopology
from .core import PMF
from .radial import RadialFilter

#: Beads up to which all pairs are looked at.
MOST_DENSE = 96


class MessagePMF(PMF):
    """Base of networks in which beads exchange messages with all others within a cutoff.

    Beads differ by their type only, so such a network works for other molecules of the same
    types: see `for_topology`. A subclass calls `_set_pairs` in its constructor and `pairs_of`,
    `nodes` and `convolve` in its `forward`.

    Attributes:
        type_names: the types that it knows.
        cutoff: nm.
        dense: whether all pairs are looked at.
    """

    _arguments: dict[str, Any]  # a subclass sets it: the constructor's, bead types aside
    types: Tensor
    first: Tensor
    second: Tensor
    pair_of: Tensor
    sign: Tensor
    incidence: Tensor

    def _set_pairs(
        self, bead_types: Sequence[str], type_names: Sequence[str], cutoff: float, dense: bool
    ) -> None:
        unknown = sorted(set(bead_types) - set(type_names))
        if unknown:
            raise InputError(
                f"bead type {unknown[0]} is none of those the network was trained on "
                f"({', '.join(type_names)}); train it on a molecule that has it"
            )
        if not cutoff > 0:
            raise InputError(f"cutoff is {cutoff} nm; give a positive number")
        self.type_names = list(type_names)
        self.cutoff, self.dense, self.beads = float(cutoff), dense, len(bead_types)
        number = {name: k for k, name in enumerate(type_names)}
        self.register_buffer("types", torch.tensor([number[t] for t in bead_types]))
        beads = self.beads if dense else 0
        first, second = geometry.all_pairs(beads).unbind(1)
        count = len(first)
        pair_of = torch.full((beads, beads), count)
        pair_of[first, second] = pair_of[second, first] = torch.arange(count)
        sign = torch.zeros(beads, beads)
        sign[first, second], sign[second, first] = 1.0, -1.0
        incidence = torch.zeros(beads, count)
        incidence[first, torch.arange(count)] = -1.0
        incidence[second, torch.arange(count)] = 1.0
        for name, value in (("first", first.clone()), ("second", second.clone()),
                            ("pair_of", pair_of.reshape(-1)), ("sign", sign),
                            ("incidence", incidence)):  # fmt: skip
            self.register_buffer(name, value)

    def pairs_of(
        self, positions: Tensor, box_vectors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the pairs of beads that may be within the cutoff.

        Args:
            positions: (copies, beads, 3), nm.
            box_vectors: (3, 3), nm, or None.

        Returns:
            Distances (groups, pairs), nm; unit vectors (groups, pairs, 3) from the first to the
            second bead; indices of the first and the second. A group is a copy if `dense`, else
            there is one for all copies, and indices go through all beads of all copies.
        """
        if self.dense:
            # A matrix product: its gradient is one too, where a gather's would be a scatter.
            flat = positions.transpose(1, 2).reshape(-1, self.beads)
            vectors = torch.mm(flat, self.incidence.to(flat.dtype))
            vectors = vectors.view(positions.size(0), 3, -1).transpose(1, 2)
            vectors = geometry.minimum_image(vectors, box_vectors)
            first, second = self.first, self.second
        else:
            pairs = neighbour_pairs(positions, self.cutoff, box_vectors)
            first, second = pairs[0], pairs[1]
            flat = positions.reshape(1, -1, 3)
            vectors = flat.index_select(1, second) - flat.index_select(1, first)
            vectors = geometry.minimum_image(vectors, box_vectors)
        distances = geometry.norm(vectors)
        if box_vectors is not None:
            # Where a bead would see two images of another, no number is better than a wrong one.
            distances = torch.where(box_fits(box_vectors, self.cutoff), distances, float("nan"))
        return distances, vectors / distances.unsqueeze(-1), first, second

    def nodes(self, table: Tensor, positions: Tensor) -> Tensor:
        """Return a row of a table (types, features) for each bead, (groups, beads, features)."""
        rows = table.index_select(0, self.types).unsqueeze(0)
        copies = positions.size(0)
        if self.dense:
            return rows.expand(copies, -1, -1)
        return rows.expand(copies, -1, -1).reshape(1, -1, table.size(1))

    def convolve(
        self, states: Tensor, filters: Tensor, first: Tensor, second: Tensor, odd: bool
    ) -> Tensor:
        """Return for each bead the sum over its neighbours of their states times the filter.

        Args:
            states: (groups, beads, features).
            filters: (groups, pairs, features).
            first: indices of the pairs' first beads.
            second: of the second.
            odd: whether the filter changes its sign when the beads of a pair change places.
        """
        if not self.dense:
            back = -filters if odd else filters
            sums = torch.zeros_like(states)
            sums = sums.index_add(1, first, filters * states.index_select(1, second))
            return sums.index_add(1, second, back * states.index_select(1, first))
        if torch.jit.is_scripting():
            return self._gathered(states, filters, odd)
        return self._with_adjoint(states, filters, odd)

    def _gathered(self, states: Tensor, filters: Tensor, odd: bool) -> Tensor:
        groups, beads, features = states.shape
        padded = torch.cat([filters, torch.zeros_like(filters[:, :1])], dim=1)
        full = padded.index_select(1, self.pair_of).view(groups, beads, beads, features)
        if odd:
            full = full * self.sign.to(full.dtype).unsqueeze(-1)
        return (full * states.unsqueeze(1)).sum(2)

    @torch.jit.unused
    def _with_adjoint(self, states: Tensor, filters: Tensor, odd: bool) -> Tensor:
        return _Convolution.apply(states, filters, self, odd)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"bead_types": [self.type_names[t] for t in self.types.tolist()], **self._arguments}

    def for_topology(self, topology: CGTopology) -> "MessagePMF":
        """Return the network for another molecule; both share their parameters.

        Raises:
            InputError: if it has bead types that the network does not know.
        """
        dense = len(topology) <= MOST_DENSE
        changed = {"bead_types": list(topology.bead_types), "dense": dense}
        other = type(self)(**(self.arguments() | changed))
        for name, child in self.named_children():
            setattr(other, name, child)
        return other.train(self.training)

    def tabulated(self, knots: int = 1024) -> "MessagePMF":
        """Return a copy with tabulated filters; see `PMF.tabulated`."""
        other = type(self)(**(self.arguments() | {"knots": knots}))
        weights = {k: v for k, v in self.state_dict().items() if not k.endswith(".table")}
        other.load_state_dict(weights, strict=False)
        other.to(self.types.device, next(self.parameters()).dtype)
        for module in other.modules():
            if isinstance(module, RadialFilter) and knots:
                module.fill_table()
        return other.train(self.training)


def message_arguments(dataset: Any, cutoff: float | None, dense: bool | None) -> dict[str, Any]:
    """Return what a dataset, or a collection of several molecules, says of a network's beads.

    Args:
        dataset: a `CGDataset`, or a `DatasetCollection`: then the network is made for its first
            molecule and knows the types of all.
        cutoff: nm; None: the largest distance in the data, at most 1.2 nm.
        dense: whether to look at all pairs; None: if there are at most `MOST_DENSE` beads.
    """
    datasets = list(getattr(dataset, "datasets", {"": dataset}).values())
    topology = datasets[0].topology
    names = sorted({t for data in datasets for t in data.topology.bead_types})
    if cutoff is None:
        cutoff = min(1.2, max(_largest_distance(data) for data in datasets))
    return {
        "bead_types": list(topology.bead_types),
        "type_names": names,
        "cutoff": float(cutoff),
        "dense": len(topology) <= MOST_DENSE if dense is None else bool(dense),
    }


def _largest_distance(dataset: Any) -> float:
    stride = max(1, len(dataset) // 2000)
    positions = torch.as_tensor(dataset.positions[::stride], dtype=torch.float32)
    spread = (positions.amax(1) - positions.amin(1)).norm(dim=-1)
    return float(1.1 * spread.max())


class _Convolution(torch.autograd.Function):
    """`MessagePMF.convolve` over all pairs; its gradient needs no scatter."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, filters: Tensor, pmf: Any, odd: bool) -> Tensor:
        ctx.save_for_backward(states, filters)
        ctx.pmf, ctx.odd = pmf, odd
        return pmf._gathered(states, filters, odd)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        states, filters = ctx.saved_tensors
        by_states = by_filters = None
        if ctx.needs_input_grad[0]:
            by_states = _Convolution.apply(gradient, -filters if ctx.odd else filters,
                                           ctx.pmf, ctx.odd)  # fmt: skip
        if ctx.needs_input_grad[1]:
            by_filters = _PairProduct.apply(gradient, states, ctx.pmf, ctx.odd)
        return by_states, by_filters, None, None


class _PairProduct(torch.autograd.Function):
    """a_i b_j + a_j b_i of each pair (i, j), or the difference if odd."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, pmf: Any, odd: bool) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.pmf, ctx.odd = pmf, odd
        i, j = pmf.first, pmf.second
        product = left.index_select(1, i) * right.index_select(1, j)
        back = left.index_select(1, j) * right.index_select(1, i)
        return product - back if odd else product + back

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        left, right = ctx.saved_tensors
        by_left = by_right = None
        if ctx.needs_input_grad[0]:
            by_left = _Convolution.apply(right, gradient, ctx.pmf, ctx.odd)
        if ctx.needs_input_grad[1]:
            by_right = _Convolution.apply(left, -gradient if ctx.odd else gradient,
                                          ctx.pmf, ctx.odd)  # fmt: skip
        return by_left, by_right, None, None
