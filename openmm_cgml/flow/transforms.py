"""Element-wise monotone maps of the circle and of the line, their parameters from a network.

A flow maps data to a latent variable with `forward` and back with `inverse`; both return the
logarithm of their derivative. Two families, `TRANSFORMS`: "smooth" (mixtures, infinitely often
differentiable, so that the forces of the density are smooth; inverted numerically) and "spline"
(rational-quadratic, cheap and inverted in closed form, but once differentiable only: the forces
jump at the knots).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CGMLError, InputError

_TURN = 2 * math.pi
# The numerical inverse: at most so many steps, and so many times the rounding error is a root.
_MOST_STEPS = 200
_ROUNDING = 16
# Values solved together: as many as stay in a processor's cache, or fill an accelerator.
_BLOCK, _DEVICE_BLOCK = 4096, 1 << 20


def wrap(angles: Tensor) -> Tensor:
    """Return angles, rad, moved by whole turns into (-pi, pi], up to rounding."""
    return angles - _TURN * ((angles - math.pi) / _TURN).ceil()


@dataclass(frozen=True, eq=False)
class Transform(ABC):
    """A monotone map of single numbers, one for each row of raw parameters.

    Raw parameters are unconstrained, as a network puts them out; all zero is the identity or
    nearly so. Everything is computed in their dtype. NaN among the raw parameters or values gives
    NaN in `forward` (so that a training loop sees it in its loss); `inverse` raises. Derivatives
    of any order that the map has are right, in both directions, with respect to the values and
    to the raw parameters.

    Attributes:
        raw: (..., parameters(components)); what `forward` and `inverse` are given is broadcast
            against (...).

    Raises:
        InputError: no number of components has so many raw parameters.
    """

    raw: Tensor

    def __post_init__(self) -> None:
        size = self.raw.size(-1) if self.raw.ndim else 0
        if self.components < 1 or self.parameters(self.components) != size:
            raise InputError(
                f"{type(self).__name__}: found {size} raw parameters a value, but one, two or "
                f"three components need {self._count(1)}, {self._count(2)} or {self._count(3)}; "
                f"let the network put out {type(self).__name__}.parameters(components)"
            )

    @classmethod
    def parameters(cls, components: int) -> int:
        """Return the number of raw parameters that one value needs.

        Args:
            components: of the mixture, or bins of the spline; at least one.
        """
        if components < 1:
            raise InputError(f"{cls.__name__}: {components} components; at least 1 is needed")
        return cls._count(components)

    @property
    def components(self) -> int:
        """Components of the mixture, or bins of the spline."""
        size = self.raw.size(-1) if self.raw.ndim else 0
        return (size - self._count(0)) // 3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log |dy/dx|.

        Args:
            x: (...), the dtype of the raw parameters; rad on the circle.
        """
        self._check_dtype(x)
        y, log_slope = self._evaluate(x)
        return self._into_range(y), log_slope

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log |dx/dy|.

        Args:
            y: (...), the dtype of the raw parameters; rad on the circle.

        Raises:
            InputError: a value or a raw parameter is not finite.
            CGMLError: the numerical inverse has not converged.
        """
        self._check_dtype(y)
        for name, tensor in [("values", y), ("raw parameters", self.raw)]:
            if bad := int((~tensor.isfinite()).sum()):
                raise InputError(
                    f"{type(self).__name__}.inverse: {bad} of {tensor.numel()} {name} are not "
                    "finite; the network that put them out has diverged (lower its learning rate)"
                )
        y, _ = torch.broadcast_tensors(y, self.raw[..., 0])
        x = self._into_range(_Root.apply(y, self.raw, type(self)))
        return x, -self._evaluate(x)[1]

    def _check_dtype(self, values: Tensor) -> None:
        if values.dtype != self.raw.dtype:
            raise InputError(
                f"{type(self).__name__}: values are {values.dtype}, raw parameters "
                f"{self.raw.dtype}; convert one of them"
            )

    @staticmethod
    @abstractmethod
    def _count(components: int) -> int:
        """Raw parameters of one value: 3 * components plus a constant."""

    @abstractmethod
    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of x, on the circle up to whole turns, and the logarithm of the slope."""

    @abstractmethod
    def _solve(self, y: Tensor) -> Tensor:
        """An x, on the circle up to whole turns, whose image is y; no derivatives needed."""

    @staticmethod
    def _into_range(values: Tensor) -> Tensor:
        return values


class _Root(torch.autograd.Function):
    """`Transform._solve` with derivatives from the implicit function theorem.

    dx = (dy - (df/draw) draw) / f'(x): how the root was found plays no part.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, raw: Tensor, kind: type[Transform]) -> Tensor:
        x = kind(raw)._solve(y)
        ctx.save_for_backward(x, raw)
        ctx.kind = kind
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, raw = ctx.saved_tensors
        again = torch.is_grad_enabled()  # the result will be differentiated once more
        with torch.enable_grad():
            # The root depends on raw, but not on a view of it: that gives the partial derivative.
            own = raw.view_as(raw) if again else raw.detach().requires_grad_()
            y, log_slope = ctx.kind(own)._evaluate(x if again else x.detach())
            along_y = gradients[0] * (-log_slope).exp()
            along_raw = None
            if ctx.needs_input_grad[1]:
                (along_raw,) = torch.autograd.grad(y, own, -along_y, create_graph=again)
        return along_y if again else along_y.detach(), along_raw, None


class _Mixture(Transform):
    """A transform whose inverse is found by bracketed Newton steps."""

    @abstractmethod
    def _start(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A lower and an upper bound and a guess of the root."""

    def _solve(self, y: Tensor) -> Tensor:
        raw = self.raw.expand(*y.shape, -1).reshape(y.numel(), self.raw.size(-1))
        size = _BLOCK if y.device.type == "cpu" else _DEVICE_BLOCK
        blocks = zip(raw.split(size), y.reshape(-1).split(size), strict=True)
        roots = [_find_roots(type(self), *block) for block in blocks]
        return torch.cat(roots).reshape(y.shape) if roots else torch.zeros_like(y)


def _find_roots(kind: type[_Mixture], raw: Tensor, target: Tensor) -> Tensor:
    """Solve kind(raw).forward(x) = target, (n,), each with a row of raw.

    Newton's method inside a bracket; a step that leaves it or does not halve the step before
    is replaced by bisection (rtsafe, Press et al., Numerical Recipes, section 9.4). A root is
    where the residual is no larger than the rounding errors of the function and of x.
    """
    eps = torch.finfo(target.dtype).eps
    roots = torch.empty_like(target)
    pending = torch.arange(target.numel(), device=target.device)
    transform = kind(raw)
    low, high, x = transform._start(target)
    step = high - low
    size = 1 + torch.maximum(low.abs(), high.abs())  # of what is subtracted from x, too
    for _ in range(_MOST_STEPS):
        value, log_slope = transform._evaluate(x)
        slope = log_slope.exp()
        residual = value - target
        done = residual.abs() <= _ROUNDING * eps * (1 + target.abs() + slope * size)
        low, high = torch.where(residual < 0, x, low), torch.where(residual > 0, x, high)
        newton = x - residual / slope
        length = (newton - x).abs()
        good = (newton > low) & (newton < high) & (2 * length < step)
        # A last step polishes the root, unless the slope is so small that it would be all noise.
        new = torch.where(length <= math.sqrt(eps) * size, newton, x)
        new = torch.where(done, new, torch.where(good, newton, 0.5 * (low + high)))
        x, step = new, (new - x).abs()
        left = int(target.numel() - done.sum())
        if left == 0:
            break
        if 2 * left < target.numel():
            roots[pending] = x
            open_ = (~done).nonzero().squeeze(-1)
            pending, target, low, high, x, step, size = (
                one[open_] for one in (pending, target, low, high, x, step, size)
            )
            transform = kind(transform.raw[open_])
    else:
        raise CGMLError(
            f"{kind.__name__}.inverse: {left} values have not converged after {_MOST_STEPS} "
            "steps; raw parameters this extreme are out of reach: use float64, or regularise the "
            "network"
        )
    roots[pending] = x
    return roots


def _bounded(raw: Tensor, bound: float) -> Tensor:
    """The raw parameters themselves near zero, within (-bound, bound) everywhere."""
    return bound * torch.tanh(raw / bound)


def _log_sum(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of sum(exp(terms)) and of the shares in it, these exact for large terms too."""
    top = terms.detach().amax(-1, keepdim=True)
    rest = terms - top
    total = rest.logsumexp(-1, keepdim=True)
    return (top + total).squeeze(-1), rest - total


# ---------------------------------------------------------------- mixtures


class CircularMixture(_Mixture):
    """Cumulative distribution of a mixture of wrapped normals and a uniform part; angles.

    With weights w, means m, widths s and the uniform part's weight u, up to a rotation,

        y = 2 pi F(x) = x + (1 - u) sum_k w_k [pi sum_j erf((d_k - 2 pi j) / (sqrt(2) s_k)) - d_k]

    where d_k = x - m_k in (-pi, pi]: the bracket is periodic, so that y turns once when x does,
    no point of the circle is special, and the map is an infinitely often differentiable
    diffeomorphism. Its slope is at least `LEAST_UNIFORM`. Three images, j = -1, 0, 1, are
    enough: the next ones are 3 pi / `WIDEST` = 8.6 standard deviations away (1e-17).

    Raw parameters: logits of the weights, shifts of the means from even spacing (rad), widths
    (between `NARROWEST` and `WIDEST`), logit of u, rotation (rad); 3 * components + 2. All zero:
    the components overlap to a nearly uniform density, closer to the identity the more there are
    (1e-7 from 8 components).

    References:
        Mixtures on the circle as flows: Rezende et al. 2020, arXiv:2002.02428, section 2.1; the
        uniform part: Köhler, Krämer, Noé 2021, arXiv:2110.00351; wrapped normal: Mardia, Jupp,
        Directional Statistics, section 3.5.7.
    """

    NARROWEST, WIDEST = 0.03, 1.1
    LEAST_UNIFORM = 1e-5

    @staticmethod
    def _count(components: int) -> int:
        return 3 * components + 2

    @cached_property
    def _constrained(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Weights, means, inverse widths (..., components), uniform weight, rotation (...)."""
        k = self.components
        weights, means, widths, uniform, rotation = self.raw.split([k, k, k, 1, 1], dim=-1)
        even = torch.arange(k, dtype=self.raw.dtype, device=self.raw.device)
        even = (even + 0.5) * (_TURN / k) - math.pi
        # Zero: as wide as the spacing, whose ripple is 2 exp(-2 pi^2) = 5e-9, if the bounds allow.
        span = math.log(self.WIDEST / self.NARROWEST)
        first = math.log(min(max(_TURN / k, 0.06), 0.75) / self.NARROWEST) / span
        fraction = torch.sigmoid(widths + math.log(first / (1 - first)))
        u = self.LEAST_UNIFORM + (1 - self.LEAST_UNIFORM) * torch.sigmoid(uniform.squeeze(-1) - 4)
        return (
            weights.softmax(-1),
            wrap(even + means),
            (-span * fraction).exp() / self.NARROWEST,
            u,
            wrap(rotation.squeeze(-1)),
        )

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, means, sharpness, uniform, rotation = self._constrained
        d = wrap(x.unsqueeze(-1) - means)
        z = d * (sharpness * math.sqrt(0.5))
        turn = _TURN * math.sqrt(0.5) * sharpness
        cumulative, density = torch.erf(z), (-z.square()).exp()
        for image in (z - turn, z + turn):
            cumulative = cumulative + torch.erf(image)
            density = density + (-image.square()).exp()
        shift = (weights * (math.pi * cumulative - d)).sum(-1)
        slope = math.sqrt(_TURN) * (weights * sharpness * density).sum(-1)
        y = x + rotation + (1 - uniform) * shift
        return y, (uniform + (1 - uniform) * slope).log()

    def _start(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turned = y - self._constrained[-1]
        return turned - math.pi, turned + math.pi, turned

    @staticmethod
    def _into_range(values: Tensor) -> Tensor:
        return wrap(values)


class LineMixture(_Mixture):
    """Logit of the cumulative distribution of a mixture of logistics; all real numbers.

        y = logit F(x),  F(x) = sum_k w_k sigmoid(z_k),  z_k = (x - m_k) / s_k

    Infinitely often differentiable, with nearly linear tails. F and 1 - F are both summed in
    logarithms, and so is the slope, F'/F + F'/(1 - F), where either fraction is a sum over the
    components' responsibilities for a tail: nothing cancels or underflows, however far out.

    Raw parameters: logits of the weights, shifts of the means from even spacing, logarithms of
    the scales (bounded: a factor of `FACTOR` either way); 3 * components. All zero: the identity
    for one component; else components spread over (-1, 1) with unit total variance.

    Reference: Ho et al. 2019, Flow++, arXiv:1902.00275, equations 13-15.
    """

    FACTOR = 20.0

    @staticmethod
    def _count(components: int) -> int:
        return 3 * components

    @cached_property
    def _constrained(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of the weights, means, logarithms of the scales, (..., components)."""
        k = self.components
        weights, means, scales = self.raw.split(k, dim=-1)
        even = torch.arange(k, dtype=self.raw.dtype, device=self.raw.device)
        even = (2 * even + 1) / k - 1
        # Variance of even spacing plus that of a logistic = that of the standard logistic.
        first = 1 - (1 - 1 / k**2) / math.pi**2
        log_scales = _bounded(scales, math.log(self.FACTOR)) + 0.5 * math.log(first)
        return weights.log_softmax(-1), even + means, log_scales

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_weights, means, log_scales = self._constrained
        z = (x.unsqueeze(-1) - means) * (-log_scales).exp()
        below, above = functional.logsigmoid(z), functional.logsigmoid(-z)
        left, left_shares = _log_sum(log_weights + below)
        right, right_shares = _log_sum(log_weights + above)
        rates = torch.cat([left_shares + above, right_shares + below], dim=-1)
        log_slope = (rates - torch.cat([log_scales, log_scales], dim=-1)).logsumexp(-1)
        return left - right, log_slope

    def _start(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_weights, means, log_scales = self._constrained
        # Where component k alone would have the value y: the mixture's root is between these.
        alone = means + y.unsqueeze(-1) * log_scales.exp()
        return alone.amin(-1), alone.amax(-1), (log_weights.exp() * alone).sum(-1)


# ---------------------------------------------------------------- splines


@dataclass(frozen=True)
class _Bins:
    """The bin of a rational-quadratic spline in which each value lies; all (...)."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    left: Tensor  # slopes at the ends
    right: Tensor

    @property
    def slope(self) -> Tensor:
        return self.height / self.width

    @property
    def bend(self) -> Tensor:
        return self.left + self.right - 2 * self.slope

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image and logarithm of the slope at x; Durkan et al. 2019, equations 4 and 5."""
        t = (x - self.x) / self.width
        u, slope = 1 - t, self.slope
        below = slope + self.bend * t * u
        y = self.y + self.height * t * (slope * t + self.left * u) / below
        rise = self.right * t * t + 2 * slope * t * u + self.left * u * u
        return y, 2 * (slope / below).log() + rise.log()

    def solve(self, y: Tensor) -> Tensor:
        """Place with image y; Durkan et al. 2019, equation 29, whose root does not cancel.

        Rounding can make the discriminant negative where the slope is steep (nflows #87): it is
        clamped, as is the place in the bin. Terms as large as the steeper end's slope cancel in
        a and b; a Newton step repairs what that costs.
        """
        dy = y - self.y
        a = self.height * (self.slope - self.left) + dy * self.bend
        b = self.height * self.left - dy * self.bend
        c = -self.slope * dy
        root = (b * b - 4 * a * c).clamp(min=0).sqrt()
        x = self.x + self.width * (2 * c / (-b - root)).clamp(0, 1)
        found, log_slope = self.evaluate(x)
        x = x - (found - y) / log_slope.exp()
        return torch.minimum(torch.maximum(x, self.x), self.x + self.width)


class _Spline(Transform):
    """Rational-quadratic spline on [-EDGE, EDGE]; Durkan et al. 2019, arXiv:1906.04032."""

    EDGE: float
    # The share of the range that is divided evenly among the bins, however the network wants it.
    EVEN = 0.05
    FACTOR = 50.0

    @property
    @abstractmethod
    def _knots(self) -> tuple[Tensor, Tensor, Tensor]:
        """Places x and y of the knots and slopes there, (..., bins + 1)."""

    def _edges(self, logits: Tensor) -> Tensor:
        """Knots from the logits of the bins' sizes; the outer ones exactly at -EDGE and EDGE."""
        sizes = self.EVEN / logits.size(-1) + (1 - self.EVEN) * logits.softmax(-1)
        inner = self.EDGE * (2 * sizes[..., :-1].cumsum(-1) - 1)
        end = torch.full_like(logits[..., :1], self.EDGE)
        return torch.cat([-end, inner, end], dim=-1)

    def _slopes(self, raw: Tensor) -> Tensor:
        return _bounded(raw, math.log(self.FACTOR)).exp()

    def _bins(self, values: Tensor, by_image: bool) -> _Bins:
        x, y, slopes = self._knots
        inner = (y if by_image else x)[..., 1:-1]
        index = (values.unsqueeze(-1) >= inner).sum(-1, keepdim=True)

        def take(table: Tensor) -> Tensor:
            table = table.expand(*index.shape[:-1], table.size(-1))
            return table.gather(-1, index).squeeze(-1)

        return _Bins(
            *(take(one[..., :-1]) for one in (x, y)),
            *(take(one.diff(dim=-1)) for one in (x, y)),
            *(take(one) for one in (slopes[..., :-1], slopes[..., 1:])),
        )


class CircularSpline(_Spline):
    """Rational-quadratic spline of the circle, with equal slopes where it closes; angles.

    Once continuously differentiable: the derivative of the log-derivative jumps at the knots.
    Two learned rotations, one that moves the knots and one of the image, so that no point of the
    circle is special.

    Raw parameters: logits of the bins' widths and heights, logarithms of the slopes at the knots
    (bounded: a factor of `FACTOR` either way), the two rotations (rad); 3 * components + 2. All
    zero: the identity.

    References:
        Durkan et al. 2019, Neural spline flows, arXiv:1906.04032, section 3.1; on the circle:
        Rezende et al. 2020, arXiv:2002.02428, section 2.1.2.
    """

    EDGE = math.pi

    @staticmethod
    def _count(components: int) -> int:
        return 3 * components + 2

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor, Tensor]:
        k = self.components
        widths, heights, slopes, _ = self.raw.split([k, k, k, 2], dim=-1)
        slopes = torch.cat([slopes, slopes[..., :1]], dim=-1)
        return self._edges(widths), self._edges(heights), self._slopes(slopes)

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        start, rotation = wrap(self.raw[..., -2:]).unbind(-1)
        turned = wrap(x - start)
        y, log_slope = self._bins(turned, by_image=False).evaluate(turned)
        return y + (start + rotation), log_slope

    def _solve(self, y: Tensor) -> Tensor:
        start, rotation = wrap(self.raw[..., -2:]).unbind(-1)
        turned = wrap(y - (start + rotation))
        return self._bins(turned, by_image=True).solve(turned) + start

    @staticmethod
    def _into_range(values: Tensor) -> Tensor:
        return wrap(values)


class LineSpline(_Spline):
    """Rational-quadratic spline between -`EDGE` and `EDGE`, the identity beyond; real numbers.

    Once continuously differentiable: the derivative of the log-derivative jumps at the knots.

    Raw parameters: logits of the bins' widths and heights, logarithms of the slopes at the inner
    knots (bounded: a factor of `FACTOR` either way); 3 * components - 1. All zero: the identity.

    Reference: Durkan et al. 2019, Neural spline flows, arXiv:1906.04032, section 3.1.
    """

    EDGE = 5.0

    @staticmethod
    def _count(components: int) -> int:
        return 3 * components - 1

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor, Tensor]:
        k = self.components
        widths, heights, slopes = self.raw.split([k, k, k - 1], dim=-1)
        slopes = self._slopes(functional.pad(slopes, (1, 1)))
        return self._edges(widths), self._edges(heights), slopes

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.EDGE, self.EDGE)
        y, log_slope = self._bins(inside, by_image=False).evaluate(inside)
        return y + (x - inside), log_slope  # in the tails the slope is that of the edge, 1

    def _solve(self, y: Tensor) -> Tensor:
        inside = y.clamp(-self.EDGE, self.EDGE)
        return self._bins(inside, by_image=True).solve(inside) + (y - inside)


# Name of a family -> its transform of the circle and its transform of the line.
TRANSFORMS: dict[str, tuple[type[Transform], type[Transform]]] = {
    "smooth": (CircularMixture, LineMixture),
    "spline": (CircularSpline, LineSpline),
}
