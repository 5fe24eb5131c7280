"""An equivariant transformer: velocities of the beads of one molecule."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

# Radial functions, and how far they reach in units of the molecule's own size.
_RADIAL, _REACH = 8, 5.0

_HARMONICS = 3  # of the time

# Added to squared lengths, in units of the molecule's size, so that they are smooth at zero: an
# adaptive solver takes small steps wherever something bends on a small scale.
_SOFT = 0.04


class Velocity(nn.Module):
    """Velocities that turn with the molecule, do not change when it is moved, and sum to zero.

    Beads attend to each other by what they carry and by how far apart they are. Each head also
    draws beads towards or away from each other; the velocity is a sum of these vectors, with
    factors that depend on what the bead carries. Triple products of vectors enter what beads
    carry and cross products the velocity, so that mirror images may move differently.

    Args:
        beads: number of beads; each has features of its own, and so has each pair.
        width: numbers that a bead carries; a multiple of `heads`.
        layers: of attention.
        heads: of each, three or more.

    Reference: Tholke and De Fabritiis 2022, arXiv:2202.02541, for attention with distances.
    """

    centres: Tensor
    others: Tensor

    def __init__(self, beads: int, width: int = 32, layers: int = 2, heads: int = 8) -> None:
        super().__init__()
        clock = 1 + 2 * _HARMONICS
        self.bead = nn.Parameter(torch.randn(beads, width) / width**0.5)
        self.clock = nn.Linear(clock, width)
        self.layers = nn.ModuleList(_Attention(beads, width, heads, clock) for _ in range(layers))
        self.register_buffer("centres", torch.linspace(0.0, _REACH, _RADIAL), persistent=False)
        self.register_buffer("others", 1 - torch.eye(beads)[..., None], persistent=False)

    def forward(self, positions: Tensor, time: Tensor) -> Tensor:
        """Return velocities (frames, beads, 3).

        Args:
            positions: (frames, beads, 3), in units of the molecule's size.
            time: (frames,), from 0 to 1.
        """
        clock = clock_features(time)
        apart = positions[:, None] - positions[:, :, None]
        lengths = _length(apart)
        # No longer than one, else what is far away would rule.
        directions = self.others * apart / (1 + lengths)[..., None]
        offsets = (lengths[..., None] - self.centres) * (_RADIAL / _REACH)
        radial = (-0.5 * offsets.square()).exp()
        beads = self.bead + self.clock(clock)[:, None]
        total = torch.zeros_like(positions)
        for layer in self.layers:
            beads, velocity = layer(beads, radial, directions, clock)
            total = total + velocity
        return total - total.mean(1, keepdim=True)


def clock_features(time: Tensor) -> Tensor:
    """Return smooth functions of times from 0 to 1, (frames,), as (frames, features)."""
    waves = math.pi * time[:, None] * torch.arange(1, _HARMONICS + 1).to(time)
    return torch.cat([time[:, None] - 0.5, waves.cos(), waves.sin()], dim=1)


class _Attention(nn.Module):
    """One layer: what beads carry afterwards, and its part of the velocity."""

    def __init__(self, beads: int, width: int, heads: int, clock: int) -> None:
        super().__init__()
        self.heads, self.triples = heads, heads // 3
        self.pair = nn.Parameter(torch.randn(beads, beads, 2 * heads) * 0.1)
        self.time = nn.Linear(clock, 2 * heads, bias=False)
        self.radial = nn.Linear(_RADIAL, 2 * heads, bias=False)
        self.own = nn.Linear(width, 4 * width, bias=False)
        self.seen = nn.Linear(width + heads + self.triples, width)
        self.thought = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.factors = nn.Linear(width, 2 * heads)
        nn.init.zeros_(self.factors.weight)
        nn.init.zeros_(self.factors.bias)

    def forward(
        self, beads: Tensor, radial: Tensor, directions: Tensor, clock: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (frames, beads, width) and (frames, beads, 3)."""
        own = self.own(layer_norm(beads, beads.shape[-1:])).unflatten(-1, (4, self.heads, -1))
        ask, key, value, pull = own.unbind(2)
        scale = ask.shape[-1] ** -0.5
        pair = self.pair + self.radial(radial) + self.time(clock)[:, None, None]
        bias, draw = pair.chunk(2, -1)
        shares = (scale * torch.einsum("bihc,bjhc->bijh", ask, key) + bias).softmax(2)
        gathered = torch.einsum("bijh,bjhc->bihc", shares, value).flatten(2)
        draw = draw + scale * torch.einsum("bihc,bjhc->bijh", ask, pull)
        vectors = torch.einsum("bijh,bijk->bihk", draw, directions)
        crossed = torch.linalg.cross(vectors, vectors.roll(1, 2))
        # Two heads further on: with the two that are crossed a triple product.
        handed = (crossed * vectors.roll(2, 2)).sum(-1)[:, :, 2 : 2 + self.triples]
        told = torch.cat([gathered, _length(vectors), handed], -1)
        beads = beads + self.seen(told)
        beads = beads + self.thought(layer_norm(beads, beads.shape[-1:]))
        plain, cross = self.factors(beads).chunk(2, -1)
        velocity = torch.einsum("bih,bihk->bik", plain, vectors)
        return beads, velocity + torch.einsum("bih,bihk->bik", cross, crossed)


def _length(vectors: Tensor) -> Tensor:
    """Return lengths, smooth at zero."""
    return (vectors.square().sum(-1) + _SOFT).sqrt()
