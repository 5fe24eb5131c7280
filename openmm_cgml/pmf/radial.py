"""Functions of a distance, as message-passing networks use them: filters, cutoffs and tables."""

from typing import Any

import torch
from torch import Tensor, nn


def cutoff_envelope(distances: Tensor, cutoff: float) -> Tensor:
    """Return a factor that falls from 1 to 0 at the cutoff, smooth to second order there.

    1 - 10 x^3 + 15 x^4 - 6 x^5 with x = distance / cutoff; 0 beyond. A cosine would leave a jump
    in the second derivative, that is a kink in the forces.

    Args:
        distances: nm, any shape.
        cutoff: nm.
    """
    x = (distances / cutoff).clamp(max=1.0)
    return 1 - x * x * x * (10 - 15 * x + 6 * x * x)


class GaussianBasis(nn.Module):
    """Gaussians with centres from 0 to the cutoff, as wide as their spacing.

    Schütt et al. 2018, doi:10.1063/1.5019779, equation 11.

    Args:
        size: number of Gaussians.
        cutoff: nm.
    """

    centres: Tensor

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(0, cutoff, size))
        self.factor = -0.5 * ((size - 1) / cutoff) ** 2

    def forward(self, distances: Tensor) -> Tensor:
        """Map distances (...), nm, to (..., size)."""
        return (self.factor * (distances.unsqueeze(-1) - self.centres).square()).exp()


class RadialFilter(nn.Module):
    """A learned function of the distance, (features,), that vanishes at the cutoff.

    For engines it can be tabulated: `fill_table` fits a cubic polynomial to every interval
    between knots, from values and slopes at both ends, so that the tabulated function has a
    continuous slope and costs one look-up instead of matrix products.

    Args:
        basis: number of Gaussians.
        hidden: units of the hidden layer; 0: the function is linear in the basis.
        features: number of functions.
        cutoff: nm.
        knots: intervals of the table; 0: evaluate the network.
    """

    table: Tensor

    def __init__(
        self, basis: int, hidden: int, features: int, cutoff: float, knots: int = 0
    ) -> None:
        super().__init__()
        self.cutoff, self.knots, self.features = cutoff, knots, features
        self.basis = GaussianBasis(basis, cutoff)
        layers: list[nn.Module] = []
        if hidden:
            layers = [nn.Linear(basis, hidden), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden or basis, features))
        # The last row is zero: where distances beyond the cutoff are looked up.
        self.register_buffer("table", torch.zeros(knots + 1 if knots else 0, 4 * features))

    def forward(self, distances: Tensor) -> Tensor:
        """Map distances (...), nm, to (..., features)."""
        if self.knots > 0:
            return self._look_up(distances)
        envelope = cutoff_envelope(distances, self.cutoff).unsqueeze(-1)
        return self.layers(self.basis(distances)) * envelope

    def _look_up(self, distances: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.interpolate(distances, False)
        return self._with_slope(distances)

    def interpolate(self, distances: Tensor, slope: bool) -> Tensor:
        """Return the table's functions, or their slopes, at distances (groups, pairs)."""
        density = self.knots / self.cutoff
        place = (distances * density).clamp(max=float(self.knots))
        row = place.floor()
        t = (place - row).unsqueeze(-1)
        rows = self.table.index_select(0, row.to(torch.int64).reshape(-1))
        c0, c1, c2, c3 = rows.view(distances.size(0), -1, 4 * self.features).split(
            self.features, dim=-1
        )
        if slope:
            return density * (c1 + t * (2 * c2 + 3 * t * c3))
        return c0 + t * (c1 + t * (c2 + t * c3))

    @torch.jit.unused
    def _with_slope(self, distances: Tensor) -> Tensor:
        return _LookUp.apply(distances, self)

    @torch.jit.unused
    def fill_table(self) -> None:
        """Compute the table from the network, in double precision."""
        step = self.cutoff / self.knots
        layers = [nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m
                  for m in self.layers]  # fmt: skip
        exact = nn.Sequential(*layers)
        exact.load_state_dict(self.layers.state_dict())
        exact.double()
        centres = self.basis.centres.double()

        def function(d: Tensor) -> Tensor:
            gaussians = (self.basis.factor * (d.unsqueeze(-1) - centres).square()).exp()
            return exact(gaussians) * cutoff_envelope(d, self.cutoff).unsqueeze(-1)

        knots = torch.arange(self.knots + 1, dtype=torch.float64, device=centres.device) * step
        with torch.no_grad():
            values, slopes = torch.func.jvp(function, (knots,), (torch.ones_like(knots),))
        values, slopes = values, slopes * step
        v0, v1, s0, s1 = values[:-1], values[1:], slopes[:-1], slopes[1:]
        rows = torch.cat([v0, s0, 3 * (v1 - v0) - 2 * s0 - s1, 2 * (v0 - v1) + s0 + s1], dim=1)
        self.table.zero_()
        self.table[:-1] = rows.to(self.table)


class _LookUp(torch.autograd.Function):
    """`RadialFilter.interpolate`; autograd would sum over the functions once for each power."""

    @staticmethod
    def forward(ctx: Any, distances: Tensor, radial: RadialFilter) -> Tensor:
        ctx.save_for_backward(distances)
        ctx.radial = radial
        return radial.interpolate(distances, False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (distances,) = ctx.saved_tensors
        slopes = ctx.radial.interpolate(distances, True)
        return (gradients[0] * slopes).sum(-1), None
