"""An equivariant network: velocities of the atoms of a molecule whose beads are given."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from .velocity import clock_features

#: Functions of a distance.
_RADIAL = 8

# Added to squared lengths, nm^2, so that they are smooth at zero.
_SOFT = 1e-5

# Numbers of a site that neighbours see.
_TOLD = 16


@dataclass(frozen=True, eq=False)
class Sites:
    """The sites of one molecule: its atoms, then beads that are no single atom.

    Attributes:
        site: (sites,) kinds.
        pair: (sites, sites) kinds.
        usual: (sites, sites) usual distances, nm.
        width: (sites, sites) their standard deviations in the data, nm.
        noise: (sites, sites) standard deviations of pairs on each axis at t = 0, nm.
        scale: (sites,) of the velocities, nm.
        projector: (sites, sites) onto what keeps the beads; zero for beads.
    """

    site: Tensor
    pair: Tensor
    usual: Tensor
    width: Tensor
    noise: Tensor
    scale: Tensor
    projector: Tensor

    def to(self, dtype: torch.dtype, device: torch.device) -> "Sites":
        """Return the same in another precision, on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}
        return Sites(**{n: v.to(dtype) if v.is_floating_point() else v for n, v in moved.items()})


class FiberVelocity(nn.Module):
    """Velocities that turn with the molecule and do not change when it is moved.

    In each layer a site sees all others where they are expected at t = 1: distances are compared
    with the usual ones of the kind of pair, on the scale of the noise at that time and on that of
    the data, by functions that are learned for each kind. Vectors are summed over the pairs and
    mixed with those of the beads around and of the other sites. Triple products enter what sites
    carry, and cross products the velocity, so that mirror images may move differently. What a
    layer adds to the velocity moves the sites for the next.

    Weights belong to kinds of sites and pairs, not to numbers of atoms: molecules share them.

    Args:
        sites: number of kinds of sites.
        pairs: number of kinds of pairs.
        frames: vectors that are given for each site.
        typical: sites of a molecule: sums over more begin with smaller weights.
        width: numbers that a site carries.
        layers: how many.
        heads: vectors that a site carries, three or more.

    Reference: Satorras et al. 2021, arXiv:2102.09844, for positions that move from layer to
    layer; Schutt et al. 2021, arXiv:2102.03150, for vectors that sites carry.
    """

    upper: Tensor

    def __init__(
        self,
        sites: int,
        pairs: int,
        frames: int,
        typical: int,
        width: int = 48,
        layers: int = 4,
        heads: int = 12,
    ) -> None:
        super().__init__()
        clock = _clock(torch.zeros(1)).shape[1]
        self.heads = heads
        self.site = nn.Embedding(sites, width)
        self.clock = nn.Linear(clock, width)
        self.frames = nn.Embedding(sites, frames * heads)
        self.shapes = nn.Linear(frames * (frames + 1) // 2, width)
        self.layers = nn.ModuleList(
            _Layer(pairs, typical, width, heads, clock) for _ in range(layers)
        )
        nn.init.normal_(self.frames.weight, std=0.3)
        upper = torch.triu_indices(frames, frames)
        self.register_buffer("upper", upper[0] * frames + upper[1], persistent=False)

    def forward(
        self, positions: Tensor, straight: Tensor, frames: Tensor, time: Tensor, sites: Sites
    ) -> Tensor:
        """Return velocities beside the straight ones (copies, sites, 3), nm.

        Args:
            positions: (copies, sites, 3), nm.
            straight: (copies, sites, 3), nm, velocities that are known.
            frames: (copies, sites, frames, 3), of order one.
            time: (copies,), from 0 to 1.
            sites: of the molecule.
        """
        clock = _clock(time)
        left = (1 - time)[:, None, None]
        noise = (left * sites.noise).square() + (time[:, None, None] * sites.width).square()
        scales = 1 / noise.sqrt(), 1 / (1.5 * sites.width)
        products = torch.einsum("bifk,bigk->bifg", frames, frames).flatten(2)
        shapes = products.index_select(2, self.upper).tanh()
        carried = self.site(sites.site) + self.clock(clock)[:, None] + self.shapes(shapes)
        own = self.frames(sites.site).unflatten(1, (-1, self.heads))
        vectors = torch.einsum("ifh,bifk->bihk", own, frames)
        total = torch.zeros_like(positions)
        expected = positions
        for layer in self.layers:
            radial, directions = _radial(expected, sites.usual, scales)
            carried, vectors, velocity = layer(
                carried, vectors, radial, directions, clock, sites.pair
            )
            velocity = sites.scale[:, None] * velocity
            total = total + torch.einsum("ij,bjk->bik", sites.projector, velocity)
            expected = positions + left * (straight + total)
        return total


class _Layer(nn.Module):
    """One layer: what sites carry afterwards, their vectors, and its part of the velocity."""

    def __init__(self, pairs: int, typical: int, width: int, heads: int, clock: int) -> None:
        super().__init__()
        self.heads, self.triples = heads, heads // 3
        self.draw = nn.Embedding(pairs, _RADIAL * heads)
        self.look = nn.Embedding(pairs, _RADIAL * heads)
        self.pass_on = nn.Embedding(pairs, heads)
        self.hear = nn.Embedding(pairs, _TOLD)
        for table in (self.draw, self.look):
            nn.init.normal_(table.weight, std=0.7 / typical**0.5)
        for table in (self.pass_on, self.hear):
            nn.init.normal_(table.weight, std=0.5 / typical**0.5)
        self.gate = nn.Linear(clock, heads)
        self.tell = nn.Linear(width, _TOLD, bias=False)
        self.mix = nn.Linear(heads, heads, bias=False)
        self.seen = nn.Linear(width + _TOLD + 3 * heads + self.triples, width)
        self.thought = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.factors = nn.Linear(width, 2 * heads)
        nn.init.zeros_(self.factors.weight)
        nn.init.zeros_(self.factors.bias)

    def forward(
        self,
        carried: Tensor,
        vectors: Tensor,
        radial: Tensor,
        directions: Tensor,
        clock: Tensor,
        pair: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (copies, sites, width), (copies, sites, heads, 3) and (copies, sites, 3).

        Args:
            carried, vectors: likewise.
            radial: (sites, copies, sites, functions).
            directions: (sites, copies, 3, sites), of order one.
            clock: (copies, features).
            pair: (sites, sites).
        """
        sites = len(pair)
        # Sums over neighbours and functions at once, a matrix product for each site.
        pulls = (directions[..., None] * radial[:, :, None]).flatten(3).flatten(1, 2)
        draw = self.draw(pair).view(sites, -1, self.heads)
        drawn = (pulls @ draw).unflatten(1, (-1, 3)).permute(1, 0, 3, 2)
        look = self.look(pair).view(sites, -1, self.heads)
        looked = (radial.flatten(2) @ look).transpose(0, 1)
        drawn = drawn * (1 + self.gate(clock))[:, None, :, None]
        mixed = torch.einsum("hg,bigk->bihk", self.mix.weight, vectors)
        mixed = mixed + torch.einsum("ijh,bjhk->bihk", self.pass_on(pair), vectors)
        along = (drawn * mixed).sum(-1)
        vectors = drawn + mixed
        sizes = (vectors.square().sum(-1) + 0.01).sqrt()
        # Of order one, so that products do not grow from layer to layer.
        vectors = vectors / (0.5 + sizes)[..., None]
        crossed = torch.linalg.cross(vectors, vectors.roll(1, 2))
        handed = (crossed * vectors.roll(2, 2)).sum(-1)[:, :, 2 : 2 + self.triples]
        state = layer_norm(carried, carried.shape[-1:])
        heard = torch.einsum("ijc,bjc->bic", self.hear(pair), self.tell(state))
        seen = [state, heard, torch.asinh(looked), torch.asinh(sizes), torch.asinh(along), handed]
        carried = carried + self.seen(torch.cat(seen, -1))
        carried = carried + self.thought(layer_norm(carried, carried.shape[-1:]))
        plain, cross = self.factors(carried).chunk(2, -1)
        plain = plain * (1 + sizes)
        velocity = torch.einsum("bih,bihk->bik", plain, vectors)
        return carried, vectors, velocity + torch.einsum("bih,bihk->bik", cross, crossed)


def _clock(time: Tensor) -> Tensor:
    """Return smooth functions of the time, finer towards its end (copies, features)."""
    # Adaptive solvers look beyond the end.
    late = (1.03 - time.clamp(0, 1)).log()[:, None]
    return torch.cat([clock_features(time), late / 2, (late / 2).square() - 1], 1)


def _radial(
    positions: Tensor, usual: Tensor, scales: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return functions of the distances (sites, copies, sites, functions), and directions."""
    place = positions.transpose(1, 2)
    apart = place[None] - positions.transpose(0, 1)[..., None]  # (sites, copies, 3, sites)
    lengths = (apart.square().sum(2) + _SOFT).sqrt()
    offset = lengths - usual[:, None]
    one, other = offset * scales[0].transpose(0, 1), offset * scales[1][:, None]
    radial = torch.stack(
        [
            torch.ones_like(offset), one.tanh(), (one / 3).tanh(), (-0.5 * one.square()).exp(),
            other.tanh(), (other / 4).tanh(), (-0.1 * other.square()).exp(), (10 * offset).tanh(),
        ], -1,
    )  # fmt: skip
    return radial, apart / (lengths + 0.05)[:, :, None]
