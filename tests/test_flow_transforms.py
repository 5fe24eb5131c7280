"""The four transforms: inverses, derivatives of every kind, smoothness, tails and bad input."""

import math

import torch
from torch.autograd import gradcheck, gradgradcheck

import pytest

import openmm_cgml as cgml
from openmm_cgml.errors import CGMLError
from openmm_cgml.flow import transforms
from openmm_cgml.flow.transforms import (
    TRANSFORMS,
    CircularMixture,
    CircularSpline,
    LineMixture,
    LineSpline,
    Transform,
    wrap,
)

KINDS = [kind for family in TRANSFORMS.values() for kind in family]
CIRCULAR = [circle for circle, _ in TRANSFORMS.values()]
MIXTURES, SPLINES = TRANSFORMS["smooth"], TRANSFORMS["spline"]
DTYPES = [torch.float32, torch.float64]

all_kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def values_and_parameters(kind, count, scale, dtype=torch.float64, components=6, seed=0):
    """Values all over the domain (and beyond the spline's edge), and raw parameters."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    raw = scale * torch.randn(count, kind.parameters(components), **options)
    if kind in CIRCULAR:
        x = 2 * math.pi * torch.rand(count, **options) - math.pi
    else:
        x = 2.5 * torch.randn(count, **options)
    return x.to(dtype), raw.to(dtype)


def distance(kind, first, second):
    return (wrap(first - second) if kind in CIRCULAR else first - second).abs()


def gradient(value, *inputs):
    return torch.autograd.grad(value.sum(), inputs, create_graph=True)


# ---------------------------------------------------------------- inverse


@all_kinds
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 3.0, 10.0])
def test_inverse_undoes_forward_to_the_dtypes_precision(kind, dtype, scale) -> None:
    x, raw = values_and_parameters(kind, 2000, scale, dtype)
    transform = kind(raw)
    y, log_slope = transform.forward(x)
    for target in (y, x):  # x is as good a latent value as any
        found, log_back = transform.inverse(target)
        again, log_there = transform.forward(found)
        assert found.dtype == log_back.dtype == dtype
        # Of the function, and of x times the slope: no result can be nearer to the root.
        rounding = 1 + target.abs() + log_there.exp() * (10 + raw.abs().amax(-1))
        rounding = 20 * torch.finfo(dtype).eps * rounding
        assert (distance(kind, again, target) <= rounding).all()
        assert torch.equal(log_back, -log_there)
        if dtype == torch.float64 and scale <= 3:
            assert distance(kind, again, target).max() < 1e-12
    steep = log_slope > math.log(0.1)
    assert distance(kind, transform.inverse(y)[0], x)[steep].max() < 5e4 * torch.finfo(dtype).eps


@all_kinds
def test_shapes_are_broadcast(kind) -> None:
    x, raw = values_and_parameters(kind, 12, 1.0)
    columns = raw[:4].view(4, 1, -1)
    whole = kind(columns.expand(4, 3, -1))
    for method in ("forward", "inverse"):
        one = getattr(kind(columns), method)(x[:3])
        for found, expected in zip(one, getattr(whole, method)(x[:3].expand(4, 3)), strict=True):
            assert found.shape == (4, 3)
            torch.testing.assert_close(found, expected)
        single = getattr(kind(raw[0]), method)(x.view(2, 6))
        assert single[0].shape == single[1].shape == (2, 6)
        assert getattr(kind(raw[:0]), method)(x[:0])[0].shape == (0,)


def test_blocks_of_the_numerical_inverse_agree(monkeypatch) -> None:
    x, raw = values_and_parameters(CircularMixture, 100, 3.0)
    whole = CircularMixture(raw).inverse(x)[0]
    monkeypatch.setattr(transforms, "_BLOCK", 7)
    torch.testing.assert_close(CircularMixture(raw).inverse(x)[0], whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", MIXTURES, ids=lambda kind: kind.__name__)
def test_an_inverse_that_has_not_converged_raises(kind, monkeypatch) -> None:
    monkeypatch.setattr(transforms, "_MOST_STEPS", 4)
    x, raw = values_and_parameters(kind, 50, 2.0)
    with pytest.raises(CGMLError, match=f"{kind.__name__}.inverse: .* not converged after 4"):
        kind(raw).inverse(x)


@pytest.mark.parametrize("kind", SPLINES, ids=lambda kind: kind.__name__)
def test_spline_inverse_at_and_beside_knots_in_float32(kind) -> None:
    """Where rounding makes the discriminant negative or leads to the neighbouring bin."""
    _, raw = values_and_parameters(kind, 500, 3.0, torch.float32, components=12)
    raw[:, -2:] = 0  # the knots where the table has them
    transform = kind(raw)
    for beside in (-1e-6, 0.0, 1e-6):
        y = transform._knots[1].T + beside
        x, log_slope = transform.inverse(y)
        again, _ = transform.forward(x)
        steepness = (-log_slope).exp()
        assert x.isfinite().all()
        assert (distance(kind, again, y) <= 1e-5 * (1 + steepness)).all()


def test_inverse_of_a_spline_has_its_derivative_at_a_knot() -> None:
    _, raw = values_and_parameters(LineSpline, 30, 1.0)
    transform = LineSpline(raw)
    y = transform._knots[1][:, 3].clone().requires_grad_()
    slope = transform._knots[2][:, 3]
    torch.testing.assert_close(gradient(transform.inverse(y)[0], y)[0], 1 / slope)


# ---------------------------------------------------------------- derivatives


@all_kinds
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_derivative_is_autograds(kind, dtype) -> None:
    x, raw = values_and_parameters(kind, 1000, 1.5, dtype)
    x.requires_grad_()
    y, log_slope = kind(raw).forward(x)
    tolerance = {"rtol": 0, "atol": 2e-3 if dtype == torch.float32 else 1e-10}
    torch.testing.assert_close(gradient(y, x)[0].log(), log_slope, **tolerance)
    latent = x.detach().requires_grad_()
    back, log_slope = kind(raw).inverse(latent)
    torch.testing.assert_close(gradient(back, latent)[0].log(), log_slope)


@all_kinds
@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_first_and_second_derivatives_by_values_and_parameters(kind, method) -> None:
    x, raw = values_and_parameters(kind, 4, 0.7, components=3, seed=2)
    x = x.clamp(-3, 3).requires_grad_()
    raw.requires_grad_()

    def function(values, parameters):
        return getattr(kind(parameters), method)(values)

    assert gradcheck(function, (x, raw))
    assert gradgradcheck(function, (x, raw))


@all_kinds
def test_inverse_without_gradients_equals_that_with(kind) -> None:
    x, raw = values_and_parameters(kind, 20, 1.0)
    with torch.no_grad():
        plain = kind(raw).inverse(x)
    assert not plain[0].requires_grad
    found = kind(raw.requires_grad_()).inverse(x)
    (along,) = torch.autograd.grad(found[0].sum() + found[1].sum(), raw)
    assert along.isfinite().all() and not along.requires_grad
    for one, other in zip(plain, found, strict=True):
        assert torch.equal(one, other.detach())


# ---------------------------------------------------------------- shape


@all_kinds
def test_strictly_monotone(kind) -> None:
    _, raw = values_and_parameters(kind, 200, 2.0)
    end = math.pi if kind in CIRCULAR else 8.0
    x = torch.linspace(-end, end, 2001, dtype=torch.float64).unsqueeze(-1)
    y, log_slope = kind(raw).forward(x)
    assert log_slope.isfinite().all()
    rise = y.diff(dim=0)
    assert ((wrap(rise) if kind in CIRCULAR else rise) > 0).all()


@pytest.mark.parametrize("kind", CIRCULAR, ids=lambda kind: kind.__name__)
def test_circle_turns_once_into_itself(kind) -> None:
    _, raw = values_and_parameters(kind, 100, 1.0)
    raw[:, -2] = 0  # where the spline closes is at +-pi
    transform = kind(raw)
    x = math.pi * torch.linspace(-1, 1, 4001, dtype=torch.float64).unsqueeze(-1)
    y, log_slope = transform.forward(x)
    assert (y > -math.pi - 1e-12).all() and (y < math.pi + 1e-12).all()
    turn = wrap(y.diff(dim=0)).sum(0)
    torch.testing.assert_close(turn, torch.full_like(turn, 2 * math.pi))
    sides = [
        transform.forward(torch.full_like(x[:1], side * (math.pi - 1e-10))) for side in (-1, 1)
    ]
    assert distance(kind, sides[0][0], sides[1][0]).max() < 1e-7
    torch.testing.assert_close(sides[0][1], sides[1][1])
    # Any other representation of the angle is the same point.
    moved, log_moved = transform.forward(x + 4 * math.pi)
    assert distance(kind, moved, y).max() < 1e-11
    torch.testing.assert_close(log_moved, log_slope)


@pytest.mark.parametrize("kind", CIRCULAR, ids=lambda kind: kind.__name__)
def test_no_point_of_the_circle_is_special(kind) -> None:
    """Moving all means (or the knots) by an angle is a rotation of the picture."""
    x, raw = values_and_parameters(kind, 300, 1.0, components=5)
    moved = raw.clone()
    moved[:, slice(5, 10) if kind is CircularMixture else -2] += 2.0
    y, log_slope = kind(raw).forward(x)
    other, log_other = kind(moved).forward(x + 2.0)
    assert distance(kind, other, y + 2.0).max() < 1e-11
    torch.testing.assert_close(log_other, log_slope)
    turned = raw.clone()
    turned[:, -1] += 3.0
    assert distance(kind, kind(turned).forward(x)[0], y + 3.0).max() < 1e-11


def jumps(kind, intervals: int) -> float:
    """Largest step of d log(slope) / dx between neighbours on a grid.

    On the circle the first point, -pi, is pi: the first step is the one from there.
    """
    _, raw = values_and_parameters(kind, 1, 1.0, components=5, seed=5)
    end = math.pi if kind in CIRCULAR else 4.9
    x = torch.linspace(-end, end, intervals + 1, dtype=torch.float64).requires_grad_()
    (force,) = gradient(kind(raw).forward(x)[1], x)
    return force.diff().abs().max().item()


@pytest.mark.parametrize("kind", MIXTURES, ids=lambda kind: kind.__name__)
def test_forces_of_mixtures_are_continuous(kind) -> None:
    assert jumps(kind, 20000) == pytest.approx(jumps(kind, 10000) / 2, rel=0.01)


@pytest.mark.parametrize("kind", SPLINES, ids=lambda kind: kind.__name__)
def test_forces_of_splines_jump_at_knots(kind) -> None:
    """As they must: the reason for the mixtures."""
    assert jumps(kind, 20000) == pytest.approx(jumps(kind, 10000), rel=0.05)
    assert jumps(kind, 20000) > 0.3


@pytest.mark.parametrize("kind", MIXTURES, ids=lambda kind: kind.__name__)
def test_third_and_fourth_derivative_of_mixtures_are_continuous(kind) -> None:
    """Also where the images of the wrapped normal change, d = +-pi of each component."""
    _, raw = values_and_parameters(kind, 1, 0.5, components=2, seed=3)
    means = raw[0, 2:4] + torch.tensor([-math.pi / 2, math.pi / 2])
    seams = torch.cat([means + math.pi, torch.tensor([math.pi, -math.pi])])
    sides = []
    for side in (-1e-9, 1e-9):
        x = (seams + side).requires_grad_()
        orders = [kind(raw).forward(x)[1]]
        for _ in range(3):
            orders += gradient(orders[-1], x)
        sides.append(torch.stack(orders))
    torch.testing.assert_close(*sides, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- against the formulas


@pytest.mark.parametrize("raw_width", [-50.0, 0.0, 50.0])
def test_circular_mixture_is_the_distribution_of_wrapped_normals(raw_width) -> None:
    """With 41 images and the mixture's own numbers: three are enough for all widths."""
    x, raw = values_and_parameters(CircularMixture, 400, 2.0, components=3)
    raw[:, 6:9] = raw_width
    transform = CircularMixture(raw)
    y, log_slope = transform.forward(x)
    weights, means, sharpness, uniform, rotation = transform._constrained
    images = 2 * math.pi * torch.arange(-20, 21, dtype=torch.float64)
    z = (x[:, None, None] - means[..., None] - images) * sharpness[..., None]
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=z.dtype), 1.0)
    density = (normal.log_prob(z).exp().sum(-1) * sharpness * weights).sum(-1)
    slope = uniform + (1 - uniform) * 2 * math.pi * density
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-12)
    start = torch.full_like(x, -math.pi)
    z_start = (start[:, None, None] - means[..., None] - images) * sharpness[..., None]
    part = ((normal.cdf(z) - normal.cdf(z_start)).sum(-1) * weights).sum(-1)
    risen = 2 * math.pi * (uniform * (x + math.pi) / (2 * math.pi) + (1 - uniform) * part)
    assert distance(CircularMixture, y - transform.forward(start)[0], risen).max() < 1e-12
    low, high = 1 / CircularMixture.WIDEST, 1 / CircularMixture.NARROWEST
    assert (sharpness > low - 1e-9).all() and (sharpness < high + 1e-9).all()


def test_line_mixture_is_the_logit_of_the_distribution() -> None:
    x, raw = values_and_parameters(LineMixture, 500, 1.0)
    log_weights, means, log_scales = LineMixture(raw)._constrained
    part = torch.sigmoid((x.unsqueeze(-1) - means) / log_scales.exp())
    expected = torch.logit((log_weights.exp() * part).sum(-1))
    near = expected.abs() < 12  # further out the logit has lost its digits
    torch.testing.assert_close(LineMixture(raw).forward(x)[0][near], expected[near])
    assert near.sum() > 450


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_line_mixture_far_out(dtype, scale) -> None:
    """Linear, with the slope of the widest component; there and back."""
    _, raw = values_and_parameters(LineMixture, 200, scale, dtype)
    raw.requires_grad_()
    transform = LineMixture(raw)
    widest = transform._constrained[2].amax(-1)
    for far in (-1e3, 1e3):
        x = torch.full((200,), far, dtype=dtype, requires_grad=True)
        y, log_slope = transform.forward(x)
        along = gradient(y + log_slope, x, raw)
        assert y.isfinite().all() and all(one.isfinite().all() for one in along)
        # Not in all rows: the next widest may be hardly narrower, and heavier.
        clear = (log_slope + widest).abs() < 1e-5
        assert clear.double().mean() > 0.75
        assert (log_slope >= -widest - 1e-5).all()
        x_back, log_back = transform.inverse(y)
        torch.testing.assert_close(x_back, x)
        torch.testing.assert_close(log_back, -log_slope, rtol=0, atol=1e-4)


def test_line_mixture_between_modes_underflows_nowhere() -> None:
    """The density of two narrow modes far apart is e^-100 between them, not zero."""
    raw = torch.tensor([0.0, 0.0, -5.0, 5.0, -50.0, -50.0], requires_grad=True)
    x = torch.zeros(1, requires_grad=True)
    y, log_slope = LineMixture(raw).forward(x)
    assert -120 < log_slope.item() < -80 and abs(y.item()) < 1e-5
    assert all(one.isfinite().all() for one in gradient(y + log_slope, x, raw))


def test_line_spline_is_the_identity_beyond_its_edge() -> None:
    _, raw = values_and_parameters(LineSpline, 50, 2.0)
    for far in (-1e3, -5.0, 5.0, 7.5):
        x = torch.full((50,), far, dtype=torch.float64, requires_grad=True)
        for values, log_slope in (LineSpline(raw).forward(x), LineSpline(raw).inverse(x)):
            torch.testing.assert_close(values, x, rtol=0, atol=1e-13 * abs(far))
            assert log_slope.abs().max() < 1e-13
            torch.testing.assert_close(gradient(values, x)[0], torch.ones_like(x))


@pytest.mark.parametrize(
    ("kind", "components", "tolerance"),
    [
        (CircularSpline, 8, 1e-14),
        (LineSpline, 8, 1e-14),
        (LineSpline, 1, 1e-14),
        (LineMixture, 1, 1e-13),
        (LineMixture, 12, 0.5),
        (CircularMixture, 12, 1e-7),
        (CircularMixture, 8, 1e-7),
        (CircularMixture, 4, 0.05),
    ],
)
def test_zero_parameters_are_nearly_the_identity(kind, components, tolerance) -> None:
    x, _ = values_and_parameters(kind, 1000, 1.0)
    transform = kind(torch.zeros(kind.parameters(components), dtype=torch.float64))
    y, log_slope = transform.forward(x)
    assert distance(kind, y, x).max() < tolerance
    assert log_slope.abs().max() < max(tolerance, 1e-13)


@pytest.mark.parametrize("kind", MIXTURES, ids=lambda kind: kind.__name__)
def test_components_start_apart(kind) -> None:
    """Equal components would have equal gradients, and stay equal, under a zeroed last layer."""
    x, _ = values_and_parameters(kind, 100, 1.0)
    raw = torch.zeros(100, kind.parameters(4), dtype=torch.float64, requires_grad=True)
    (along,) = gradient(kind(raw).forward(x)[1], raw)
    means = along.sum(0)[4:8]
    assert means.sort().values.diff().min() > 1e-4


# ---------------------------------------------------------------- bad input


@all_kinds
@pytest.mark.parametrize("where", ["values", "raw parameters"])
def test_nan_shows_in_the_density_and_raises_in_sampling(kind, where) -> None:
    x, raw = values_and_parameters(kind, 10, 1.0)
    (x if where == "values" else raw)[3] = math.nan
    y, log_slope = kind(raw).forward(x)
    assert y[3].isnan() and log_slope[3].isnan()
    assert y.isnan().sum() == log_slope.isnan().sum() == 1
    with pytest.raises(
        cgml.InputError, match=f"{kind.__name__}.inverse: .* {where} are not finite"
    ):
        kind(raw).inverse(x)


def test_nan_beyond_the_splines_edge_is_not_the_identity() -> None:
    raw = torch.full((LineSpline.parameters(4),), math.nan)
    assert LineSpline(raw).forward(torch.tensor([9.0]))[0].isnan()


@all_kinds
def test_wrong_sizes_and_dtypes_raise(kind) -> None:
    for components in (1, 2, 7):
        size = kind.parameters(components)
        assert kind(torch.zeros(3, size)).components == components
        with pytest.raises(cgml.InputError, match=f"{size + 1} raw parameters"):
            kind(torch.zeros(3, size + 1))
    with pytest.raises(cgml.InputError, match="0 components"):
        kind.parameters(0)
    with pytest.raises(cgml.InputError, match="raw parameters"):
        kind(torch.tensor(1.0))
    with pytest.raises(cgml.InputError, match="float64.*float32"):
        kind(torch.zeros(3, size)).forward(torch.zeros(3, dtype=torch.float64))


def test_table() -> None:
    assert all(issubclass(kind, Transform) for kind in KINDS)
    assert len(set(KINDS)) == 4
