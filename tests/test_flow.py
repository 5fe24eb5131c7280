"""The contract of flows: normalised, sampled as they say, smooth, and what becomes of samples."""

import math
from dataclasses import replace

import torch

import numpy as np
import pytest
from scipy import stats

import openmm_cgml as cgml
from openmm_cgml import geometry
from openmm_cgml.distillation import agreement, distill
from openmm_cgml.errors import InputError
from openmm_cgml.flow import FLOWS
from openmm_cgml.flow.core import build
from openmm_cgml.flow.samples import STIFFNESS, Contacts
from openmm_cgml.flow_file import load_flow, save_flow
from openmm_cgml.flow_training import FlowPMF, Likelihood, fit_flow
from openmm_cgml.pmf.core import SumPMF, energy_and_forces

BRANCHED = ((0, 1), (1, 2), (1, 3), (3, 4), (4, 5))


def topology(beads: int, bonds=None) -> cgml.CGTopology:
    bonds = tuple((i, i + 1) for i in range(beads - 1)) if bonds is None else bonds
    return cgml.CGTopology(
        bead_names=("A",) * beads, bead_types=("A",) * beads, residue_names=("X",) * beads,
        residue_ids=tuple(range(beads)), chain_ids=("A",) * beads, bonds=bonds,
        masses=(12.0,) * beads,
    )  # fmt: skip


def frames(
    beads: int, count: int = 400, seed: int = 0, bonds=None, stiff: float = 2.0
) -> cgml.CGDataset:
    """Steps of about 0.4 nm, tetrahedral angles more or less, torsions about one radian."""
    top = topology(beads, bonds)
    from openmm_cgml.flow.internal import ZMatrix

    rng = np.random.default_rng(seed)
    coordinates = ZMatrix.of(top)
    shape = [(count, n) for n in coordinates.counts]
    positions = coordinates.inverse(
        torch.tensor(0.4 * np.exp(0.05 * rng.normal(size=shape[0]))),
        torch.tensor(2.0 + 0.15 * rng.normal(size=shape[1])).clamp(0.3, 3.0),
        torch.tensor(rng.vonmises(1.0, stiff, size=shape[2])),
    )
    return cgml.CGDataset(positions.numpy(), top, 300.0)


def flow_of(dataset: cgml.CGDataset, strength: float = 0.3, **settings):
    """A flow whose every parameter is random."""
    flow = FLOWS["coupling"](dataset, width=16, components=3, **settings).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in flow.parameters():
            p += strength * torch.randn(p.shape, generator=draw, dtype=p.dtype)
    return flow


KINDS = {
    "two": (2, {}),
    "three": (3, {}),
    "four": (4, {}),
    "six": (6, {"blocks": 2, "angle_blocks": 2}),
    "branched": (6, {"bonds": BRANCHED}),
    "spline": (6, {"transform": "spline"}),
    "channels": (5, {"channels": 1}),
}


@pytest.fixture(scope="module", params=KINDS)
def made(request):
    beads, settings = KINDS[request.param]
    settings = dict(settings)
    dataset = frames(beads, bonds=settings.pop("bonds", None))
    return flow_of(dataset, **settings), torch.tensor(dataset.positions[:8]).double()


def test_density_does_not_change_under_rigid_motion_and_splits_into_copies(made) -> None:
    flow, positions = made
    logs = flow.log_prob(positions)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[
        0
    ]
    turn = turn * torch.det(turn)
    assert torch.allclose(flow.log_prob(positions @ turn.T + 0.7), logs, atol=1e-9, rtol=0)
    each = torch.cat([flow.log_prob(x) for x in positions.split(1)])
    assert torch.allclose(each, logs, atol=1e-11, rtol=0)


def test_mirror_images_have_other_densities(made) -> None:
    flow, positions = made
    mirrored = flow.log_prob(positions * torch.tensor([1.0, 1.0, -1.0]))
    differs = (mirrored - flow.log_prob(positions)).abs().max() > 1e-3
    assert bool(differs) == (flow.beads > 3)


def test_density_is_that_of_the_latent_numbers_by_the_jacobian(made) -> None:
    """Autograd's determinant of the whole map, against the closed forms, to 1e-8."""
    flow = made[0]
    if flow.channels:
        pytest.skip("an integral over channels has no single map")
    positions = flow.sample(3, seed=4)[0]
    coordinates = flow.coordinates(positions)
    circle, line = flow.torsions, len(flow.scale)

    def latent(flat):
        bonds, angles, torsions = (
            x[None] for x in flat.split([flow.bonds, flow.angles, flow.torsions])
        )
        lines = torch.cat([(angles / (math.pi - angles)).log(), bonds.log()], dim=1)
        values = (torsions, (lines - flow.scale[:, 0]) / flow.scale[:, 1])
        for layer in flow.layers:
            *values, _ = layer.apply_to(*values, inverse=False)
        return torch.cat([values[0][0], values[1][0]])

    for k in range(len(positions)):
        flat = torch.cat([x[k] for x in coordinates])
        matrix = torch.autograd.functional.jacobian(latent, flat)
        tail = latent(flat)[circle:]
        base = (tail - 2 * torch.nn.functional.softplus(tail)).sum() - circle * math.log(
            2 * math.pi
        )
        bonds, angles, _ = (x[k : k + 1] for x in coordinates)
        volume = flow.coordinates.log_volume(bonds, angles)[0]
        expected = base + torch.linalg.slogdet(matrix)[1] - volume
        assert len(tail) == line
        found = flow.log_prob(positions[k : k + 1])[0]
        assert found.item() == pytest.approx(expected.item(), abs=1e-8)


def test_forces_are_the_gradient(made) -> None:
    flow, positions = made
    found = flow.forces(positions)
    h = 1e-6
    draw = torch.Generator().manual_seed(2)
    for _ in range(3):
        along = torch.randn(positions.shape, generator=draw, dtype=torch.float64)
        slope = (flow.log_prob(positions + h * along) - flow.log_prob(positions - h * along)) / (
            2 * h
        )
        expected = flow.kt * slope
        assert torch.allclose((found * along).sum((1, 2)), expected, rtol=1e-4, atol=1e-3)
    energies, forces = energy_and_forces(FlowPMF(flow), positions)
    assert torch.allclose(forces, found)
    assert torch.allclose(energies, -flow.kt * flow.log_prob(positions))


def test_samples_have_the_density_that_is_told(made) -> None:
    """The mean of f / p over samples of p is the integral of f: here a broader flow's, one."""
    flow, _ = made
    positions, logs = flow.sample(4000, seed=3)
    assert torch.allclose(positions.mean(1), torch.zeros(3).double(), atol=1e-12)
    again, same = flow.sample(4000, seed=3)
    assert torch.equal(positions, again) and torch.allclose(logs, same, rtol=0, atol=1e-9)
    assert not torch.equal(positions, flow.sample(4000, seed=4)[0])
    other = FLOWS["coupling"](frames(flow.beads, bonds=flow.topology.bonds)).double()
    with torch.no_grad():
        ratio = torch.exp(other.log_prob(positions) - logs).numpy()
        back, own = other.sample(4000, seed=5)
        bridge = (flow.log_prob(back) - own).numpy()
    # Bennett's bridge: both densities are normalised, so the free-energy difference is zero.
    forward = 1 / (1 + 1 / ratio)
    backward = 1 / (1 + np.exp(-bridge))
    spread = (forward.var() + backward.var()) / 4000
    assert abs(forward.mean() - backward.mean()) < 4 * spread**0.5


def test_orientations_are_uniform() -> None:
    flow = flow_of(frames(4))
    positions, _ = flow.sample(4000, seed=0)
    first = torch.nn.functional.normalize(positions[:, 1] - positions[:, 0], dim=1).numpy()
    across = np.cross(first, positions[:, 2].numpy() - positions[:, 1].numpy())
    for axis in (*first.T, *(across / np.linalg.norm(across, axis=1, keepdims=True)).T):
        assert stats.kstest(axis, stats.uniform(-1, 2).cdf).pvalue > 1e-4


# ---------------------------------------------------------------- exact systems


def test_two_beads_integrate_to_one_and_are_sampled_so() -> None:
    flow = flow_of(frames(2))
    lengths = torch.exp(torch.linspace(-4, 3, 40_001)).double()
    positions = torch.zeros(len(lengths), 2, 3).double()
    positions[:, 1, 0] = lengths
    density = flow.log_prob(positions).exp().detach() * 4 * math.pi * lengths**2 / 2**1.5
    cumulative = torch.cumulative_trapezoid(density, lengths).numpy()
    assert cumulative[-1] == pytest.approx(1, abs=1e-6)
    drawn = flow.sample(20_000, seed=1)[0]
    found = (drawn[:, 1] - drawn[:, 0]).norm(dim=1).numpy()
    edges = np.interp(np.linspace(0, 1, 41)[1:-1], cumulative, lengths[1:].numpy())
    counts = np.bincount(np.searchsorted(edges, found), minlength=40)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_three_beads_integrate_to_one_and_are_sampled_so() -> None:
    flow = flow_of(frames(3))
    one = torch.linspace(-2.2, 0.5, 90).double().exp()
    angle = torch.linspace(0.002, math.pi - 0.002, 180).double()
    a, b, t = (g.ravel() for g in torch.meshgrid(one, one, angle, indexing="ij"))
    zero = torch.zeros_like(a)
    positions = torch.stack(
        [
            torch.stack([a, zero, zero], 1), torch.zeros(len(a), 3).double(),
            torch.stack([b * t.cos(), b * t.sin(), zero], 1),
        ], dim=1,
    )  # fmt: skip
    with torch.no_grad():
        volume = 8 * math.pi**2 * a**2 * b**2 * t.sin() / 3**1.5
        density = (flow.log_prob(positions).exp() * volume).view(90, 90, 180)
    by_angle = torch.trapezoid(torch.trapezoid(density, one, dim=0), one, dim=0)
    cumulative = torch.cumulative_trapezoid(by_angle, angle).numpy()
    assert cumulative[-1] == pytest.approx(1, abs=2e-3)
    drawn = flow.sample(20_000, seed=1)[0]
    steps = drawn[:, [0, 2]] - drawn[:, 1:2]
    cosine = torch.nn.functional.cosine_similarity(steps[:, 0], steps[:, 1], dim=1)
    shares = np.linspace(0, 1, 21)[1:-1] * cumulative[-1]
    edges = np.interp(shares, cumulative, angle[1:].numpy())
    counts = np.bincount(np.searchsorted(edges, cosine.acos().numpy()), minlength=20)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_no_length_or_angle_is_impossible() -> None:
    flow = flow_of(frames(4))
    for length, angle in ((0.01, 2.0), (40.0, 2.0), (0.4, 0.001), (0.4, 3.1415)):
        positions = flow.coordinates.inverse(
            torch.full((1, 3), length).double(), torch.full((1, 2), angle).double(),
            torch.zeros(1, 1).double(),
        )  # fmt: skip
        assert torch.isfinite(flow.log_prob(positions)).all()
        assert torch.isfinite(flow.forces(positions)).all()


@pytest.mark.parametrize("transform", ["smooth", "spline"])
def test_forces_are_continuous_unless_splined(transform) -> None:
    """Along a torsion, the largest step of the force falls with the step; a spline's does not."""
    flow = flow_of(frames(4), transform=transform)
    largest = []
    for count in (2000, 8000):
        torsion = torch.linspace(-math.pi, math.pi, count + 1).double()[:, None]
        positions = flow.coordinates.inverse(
            torch.full((count + 1, 3), 0.4).double(), torch.full((count + 1, 2), 2.0).double(),
            torsion,
        )  # fmt: skip
        with torch.enable_grad():
            torsion.requires_grad_(True)
            bonds, angles = torch.full((1, 3), 0.4).double(), torch.full((1, 2), 2.0).double()
            moved = flow.coordinates.inverse(
                bonds.expand(count + 1, -1), angles.expand(count + 1, -1), torsion
            )
            (slope,) = torch.autograd.grad(flow.log_prob(moved).sum(), torsion)
        assert torch.allclose(flow.log_prob(positions[:1]), flow.log_prob(positions[-1:]))
        jump = (slope[0] - slope[-1]).abs()
        largest.append(max(float(slope.diff(dim=0).abs().max()), float(jump)))
    falls = largest[0] / largest[1]

    assert (3 < falls < 5) if transform == "smooth" else falls < 1.5


# ---------------------------------------------------------------- training


def test_training_finds_a_known_density_also_from_weighted_frames() -> None:
    """Frames of two torsion states, one drawn too often and weighted down."""
    rng = np.random.default_rng(0)
    from openmm_cgml.flow.internal import ZMatrix

    top = topology(4)
    coordinates = ZMatrix.of(top)

    def drawn(count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
        left = rng.random(count) < share
        torsion = np.where(left, rng.vonmises(-1.2, 8.0, count), rng.vonmises(1.0, 20.0, count))
        positions = coordinates.inverse(
            torch.tensor(0.4 * np.exp(0.05 * rng.normal(size=(count, 3)))),
            torch.tensor(rng.normal(1.9, 0.1, size=(count, 2))), torch.tensor(torsion)[:, None],
        )  # fmt: skip
        return positions.numpy(), left

    positions, left = drawn(8000, 0.9)
    weights = np.where(left, 0.5 / 0.9, 0.5 / 0.1)
    train = cgml.CGDataset(positions, top, 300.0, weights=weights)
    valid = cgml.CGDataset(drawn(4000, 0.5)[0], top, 300.0)
    result = fit_flow(
        FLOWS["coupling"](train, width=16, components=4), train, valid, epochs=14, batch_size=200,
        learning_rate=1e-2,
    )  # fmt: skip
    flow = result.pmf.flow
    x = torch.tensor(valid.positions)
    bonds, angles, torsions = (c.numpy() for c in coordinates(x))
    exact = (
        stats.norm(np.log(0.4), 0.05).logpdf(np.log(bonds)).sum(1) - np.log(bonds).sum(1)
        + stats.norm(1.9, 0.1).logpdf(angles).sum(1)
        + np.log(
            0.5 * stats.vonmises(8.0, -1.2).pdf(torsions[:, 0])
            + 0.5 * stats.vonmises(20.0, 1.0).pdf(torsions[:, 0])
        )
        - coordinates.log_volume(*coordinates(x)[:2]).numpy()
    )  # fmt: skip
    excess = exact - flow.log_prob(x).detach().numpy()
    error = excess.std() / len(excess) ** 0.5
    assert -4 * error < excess.mean() < 0.06
    told = result.metrics["log_likelihood"]
    assert told == pytest.approx(exact.mean() - excess.mean(), abs=1e-3)
    assert result.metrics["outside_training"] < 0.01
    losses = [h["valid_loss"] for h in result.history]
    assert -min(losses) * 6 == pytest.approx(told, abs=1e-2)
    right = geometry.dihedrals(flow.sample(20_000)[0], torch.tensor([[0, 1, 2, 3]])) > 0
    assert float(right.double().mean()) == pytest.approx(0.5, abs=0.04)


def test_smearing_widens_every_coordinate_as_told() -> None:
    """Variances add: a tenth of each standard deviation is one percent of the variance."""
    dataset = frames(6, count=20_000, bonds=BRANCHED)
    flow = FLOWS["coupling"](dataset, width=8).double()
    positions = torch.as_tensor(dataset.positions).double()
    draw = torch.Generator().manual_seed(0)
    normals = torch.randn(len(positions), 18, generator=draw, dtype=torch.float64)
    moved = flow.smeared(positions, normals, 0.1)
    for one, other, spread in zip(
        flow.coordinates(positions), flow.coordinates(moved),
        (0.05 * 0.4, None, flow.torsion_spread), strict=True,
    ):  # fmt: skip
        step = torch.remainder(other - one + math.pi, 2 * math.pi) - math.pi
        expected = 0.1 * (one.std(0) if spread is None else torch.as_tensor(spread))
        np.testing.assert_allclose(step.std(0) / expected, 1.0, atol=0.05)


def test_smearing_is_for_training_frames_alone() -> None:
    """The validation loss is the likelihood of the frames as they are."""
    train, valid = frames(5, count=600).split(0.8)
    flow = FLOWS["coupling"](train, width=8)
    result = fit_flow(
        flow, train, valid, smearing=0.9, epochs=15, batch_size=64, progress=False, seed=1
    )
    degrees = 3 * flow.beads - 6
    best = min(float(row["valid_loss"]) for row in result.history)
    assert -best * degrees == pytest.approx(result.metrics["log_likelihood"], abs=1e-3)
    other = fit_flow(
        FLOWS["coupling"](train, width=8), train, valid, epochs=15, batch_size=64,
        progress=False, seed=1,
    )  # fmt: skip
    assert other.metrics["log_likelihood"] > result.metrics["log_likelihood"] + 0.05


def test_forces_beside_the_likelihood_bring_the_forces_nearer() -> None:
    """Frames of a known flow with its forces: both trainings see the same frames."""
    teacher = flow_of(frames(4), strength=0.2)
    train, valid = teacher.sample_dataset(2000, explore=0, seed=2).split(0.5)
    positions, forces = torch.as_tensor(valid.positions), torch.as_tensor(valid.forces)
    errors = []
    for weight in (0.0, 3.0):
        flow = FLOWS["coupling"](train, width=16, components=3)
        fit_flow(flow, train, valid, force_weight=weight, epochs=15, batch_size=64, progress=False)
        errors.append(float((flow.forces(positions.double()) - forces).abs().median()))
    assert errors[1] < 0.8 * errors[0]
    bare = replace(train, forces=None)
    with pytest.raises(InputError, match="has no forces"):
        fit_flow(flow, bare, bare, force_weight=1.0, epochs=1, progress=False)


@pytest.mark.parametrize("width", [-0.1, 1.0])
def test_smearing_has_limits(width) -> None:
    with pytest.raises(InputError, match="smearing is"):
        Likelihood(width)


def test_channels_are_trained_by_a_bound_below_the_density() -> None:
    flow = flow_of(frames(5), channels=2, strength=0.15)
    positions = torch.tensor(frames(5).positions[:20])
    exact = flow.log_prob(positions)
    draw = torch.Generator().manual_seed(0)
    each = [
        flow.bound(positions, torch.randn(20, 2, generator=draw, dtype=torch.float64))
        for _ in range(1000)
    ]
    logs = torch.stack(each).detach()
    assert (logs.mean(0) <= exact + 0.05).all()
    ratio = (logs - exact.detach()).exp()
    z = (ratio.mean(0) - 1) / (ratio.std(0) / len(ratio) ** 0.5)
    assert z.abs().max() < 4.5


# ---------------------------------------------------------------- samples, files, students


@pytest.mark.parametrize("explore", [0.0, 0.4])
def test_samples_are_a_dataset_with_the_forces_of_the_reweighted_density(explore) -> None:
    flow = flow_of(frames(6), strength=0.6)
    flow.contacts = Contacts(flow.contacts.pairs, flow.contacts.closest + 0.06)
    dataset = flow.sample_dataset(3000, seed=1, explore=explore)
    report = dataset.mapping["flow"]
    assert report["drawn"] == 3000 and report["kept"] == len(dataset)
    left_out = report["strong"] + report["overlapping"] + report["not_finite"]
    assert left_out == 3000 - len(dataset)
    assert report["strong"] > 0 and report["overlapping"] > 0 and len(dataset) > 1000
    assert report["broad"] == round(3000 * explore)
    positions = torch.tensor(dataset.positions).double()
    energies = STIFFNESS * flow.contacts.overlaps(positions).square().sum(1).numpy()
    breadth = np.exp(flow.log_breadth(positions).detach().numpy())
    weights = np.exp(-energies) / (1 - explore + explore * breadth)
    share = weights / weights.mean()
    assert np.allclose(dataset.weights, share, rtol=2e-3, atol=1e-5)
    assert report["effective"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-2)
    assert report["clashing"] == pytest.approx(np.mean(share * (energies > 0)), abs=1e-2)

    def log_density(x: torch.Tensor) -> torch.Tensor:
        return flow.log_prob(x) - STIFFNESS * flow.contacts.overlaps(x).square().sum(1)

    x = positions[:50].requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_density(x).sum(), x)
    assert np.allclose(dataset.forces[:50], flow.kt * gradient.numpy(), rtol=1e-3, atol=0.5)


@pytest.mark.parametrize("channels", [0, 1])
def test_the_broader_density_is_what_it_says(channels) -> None:
    """The mean of u / q over samples of q is one, and of q / u over samples of u."""
    flow = flow_of(frames(5), strength=0.2, channels=channels)
    with torch.no_grad():
        own = flow.log_breadth(flow.sample(4000, seed=1)[0])
        drawn = flow.draw_broadly(4000, torch.Generator().manual_seed(2))
        other = -flow.log_breadth(drawn)
    for ratio in (own.exp(), other.exp()):
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / 4000**0.5
    torsions = flow.coordinates(drawn)[2].numpy()
    for column in torsions.T:
        assert stats.kstest(column, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-4


def test_a_limit_on_forces_and_its_end() -> None:
    flow = flow_of(frames(4))
    few = flow.sample_dataset(500, largest_force=120.0, explore=0)
    own = flow.forces(torch.tensor(few.positions).double())
    assert 0 < len(few) < 500 and own.square().mean((1, 2)).sqrt().max() <= 121
    with pytest.raises(cgml.InputError, match="share from 0 to below 1"):
        flow.sample_dataset(20, explore=1.0)
    with pytest.raises(cgml.InputError, match="nothing to learn from"):
        flow.sample_dataset(20, largest_force=1e-6)


def test_contacts_are_the_closest_distances_of_frames_that_count() -> None:
    dataset = frames(5)
    contacts = Contacts.of(dataset)
    assert contacts.pairs.tolist() == [[0, 3], [0, 4], [1, 4]]
    found = geometry.distances(torch.tensor(dataset.positions), contacts.pairs)
    assert torch.allclose(contacts.closest, found.double().amin(0))
    assert not contacts.overlaps(torch.tensor(dataset.positions).double()).any()
    weights = np.ones(len(dataset))
    weights[int(found[:, 0].argmin())] = 0
    for little in (0, 1e-3):  # as a hot rung's frame has
        weights[weights < 1] = little
        few = cgml.CGDataset(dataset.positions, dataset.topology, 300.0, weights=weights)
        assert Contacts.of(few).closest[0] > contacts.closest[0]


def test_frames_of_several_temperatures_need_their_weights() -> None:
    dataset = frames(4, count=200)
    hot = replace(dataset, mapping={"reference": {"remd_all_rungs": True}})
    flow = FLOWS["coupling"](dataset, width=8)
    settings = {"epochs": 1, "batch_size": 100, "progress": False}
    with pytest.raises(InputError, match="may not mix without their weights"):
        fit_flow(flow, *hot.split(0.5), **settings)
    weighted = replace(hot, weights=np.random.default_rng(0).uniform(size=200))
    assert fit_flow(flow, *weighted.split(0.5), **settings).metrics["log_likelihood"] > 0


def test_a_file_holds_the_flow(made, tmp_path) -> None:
    flow, positions = made
    save_flow(tmp_path / "a.flow", flow)
    again = load_flow(tmp_path / "a.flow")
    assert torch.equal(again.log_prob(positions), flow.log_prob(positions))
    assert again.topology == flow.topology and again.temperature == 300.0
    assert torch.equal(again.sample(5)[0], flow.sample(5)[0])


def test_bad_files_and_data(dataset, tmp_path) -> None:
    path = tmp_path / "a.flow"
    with pytest.raises(cgml.InputError, match="no flow; give what fit_flow returned"):
        save_flow(path, cgml.fit_prior(dataset))  # type: ignore[arg-type]
    path.write_bytes(b"not a flow")
    with pytest.raises(cgml.InputError, match="no flow file, or damaged"):
        load_flow(path)
    with pytest.raises(cgml.InputError, match="not a flow"):
        build({"class": "os:system", "arguments": {}})
    with pytest.raises(cgml.InputError, match="no bonds connect"):
        FLOWS["coupling"](
            cgml.CGDataset(frames(4).positions, topology(4, ((0, 1), (2, 3))), 300.0)
        )  # fmt: skip
    with pytest.raises(cgml.InputError, match="channels"):
        FLOWS["coupling"](frames(4), channels=9)
    with pytest.raises(cgml.InputError, match="transform"):
        FLOWS["coupling"](frames(4), transform="steep")
    with pytest.raises(cgml.InputError, match=r"this flow is of 4 beads"):
        flow_of(frames(4)).log_prob(torch.zeros(2, 5, 3))
    whole = frames(3)
    torn = whole.positions.copy()
    torn[1, 2, 0] += 5.0
    box = np.repeat(5.0 * np.eye(3)[None], len(torn), 0)
    with pytest.raises(cgml.InputError, match=r"frame 1: the molecule is torn"):
        FLOWS["coupling"](cgml.CGDataset(torn, whole.topology, 300.0, box=box))
    FLOWS["coupling"](cgml.CGDataset(whole.positions, whole.topology, 300.0, box=box))


class Shifted(cgml.PMF):
    """Another PMF's energies, a little steeper and with another zero."""

    def __init__(self, pmf: cgml.PMF, factor: float, zero: float) -> None:
        super().__init__()
        self.pmf, self.factor, self.zero = pmf, factor, zero

    def forward(self, positions, box_vectors=None):
        return self.factor * self.pmf(positions) + self.zero


def test_agreement_is_exact_for_a_flow_s_own_energy() -> None:
    flow = flow_of(frames(4))
    flow.contacts = Contacts(flow.contacts.pairs, 0 * flow.contacts.closest)  # nothing clashes
    found = agreement(flow, Shifted(FlowPMF(flow), 1.0, 7.0), samples=500)
    assert found.effective == pytest.approx(500)
    assert found.free_energy == pytest.approx(7.0)
    assert abs(found.flow_to_pmf) < 1e-9 and abs(found.pmf_to_flow) < 1e-9
    other = agreement(flow, Shifted(FlowPMF(flow), 1.1, 0.0), samples=5000)
    assert other.effective < 4990 and other.flow_to_pmf > 0 and other.pmf_to_flow > 0
    assert "effective" in other.text()


def test_agreement_survives_samples_without_weight() -> None:
    flow = flow_of(frames(4))

    class Walled(Shifted):
        def forward(self, positions, box_vectors=None):
            energy = super().forward(positions, box_vectors)
            far = (positions[:, 0] - positions[:, -1]).norm(dim=-1)
            return torch.where(far > far.median(), math.inf, energy)

    found = agreement(flow, Walled(FlowPMF(flow), 1.0, 0.0), samples=500)
    assert found.effective == pytest.approx(250, rel=0.1)
    assert math.isfinite(found.pmf_to_flow) and found.flow_to_pmf == math.inf


def test_agreement_is_with_the_flow_whose_beads_are_apart() -> None:
    """A PMF that has the repulsion too agrees with what taught it; one without does not."""
    flow = flow_of(frames(5), strength=0.1)
    flow.contacts = Contacts(flow.contacts.pairs, 0 * flow.contacts.closest + 0.45)

    class Apart(FlowPMF):
        def forward(self, positions, box_vectors=None):
            overlap = flow.contacts.overlaps(positions).square().sum(1)
            return super().forward(positions) + flow.kt * STIFFNESS * overlap

    found = agreement(flow, Apart(flow), samples=4000)
    assert abs(found.flow_to_pmf) < 1e-9 and abs(found.pmf_to_flow) < 1e-9
    assert found.effective < 3900
    assert agreement(flow, FlowPMF(flow), samples=4000).flow_to_pmf > 0.01


def test_visited_frames_are_taught_with_weight_zero() -> None:
    dataset = frames(5)
    flow = flow_of(dataset, strength=0.1)
    elsewhere = frames(5, count=50, seed=7).positions + 3.0
    plain = flow.sample_dataset(400, explore=0, seed=3, largest_force=1e6)
    both = flow.sample_dataset(400, explore=0, visited=elsewhere, seed=3, largest_force=1e6)
    extra = both.weights == 0
    assert both.mapping["flow"]["visited"] == 50 and 40 <= extra.sum() <= 50
    assert len(both) == len(plain) + extra.sum()
    assert both.mapping["flow"]["effective"] == pytest.approx(plain.mapping["flow"]["effective"])
    np.testing.assert_allclose(both.positions[extra].mean(1), 0, atol=1e-9)
    expected = flow.forces(torch.as_tensor(both.positions[extra]))
    push = flow.kt * flow.contacts.repulsion(torch.as_tensor(both.positions[extra]))[1]
    np.testing.assert_allclose(both.forces[extra], (expected + push).numpy(), rtol=1e-6, atol=1e-6)
    with pytest.raises(
        InputError, match=r"visited frames have shape \(400, 4, 3\); give \(frames, 5, 3\)"
    ):
        flow.sample_dataset(10, visited=frames(4).positions)
    with pytest.raises(InputError, match="visited frames are of three, which is no flow"):
        distill({"five": flow}, visited={"three": elsewhere}, count=10)


def test_flows_of_two_molecules_teach_one_network() -> None:
    flows = {"one": flow_of(frames(4)), "two": flow_of(frames(5))}
    made = distill(
        flows, lambda data: cgml.PMFS["schnet"](data, width=8), count=400, samples=200, epochs=2,
        batch_size=60,
    )  # fmt: skip
    assert set(made.agreements) == {"one", "two"}
    assert set(made.result.molecules) == {"one", "two"}
    assert "one: flow and PMF" in made.text()
    for found in made.agreements.values():
        assert 1 <= found.effective <= 200


def test_a_student_comes_nearer_to_its_teacher() -> None:
    flow = flow_of(frames(4), strength=0.1)
    few, more = (
        distill(flow, count=4000, samples=2000, epochs=epochs, batch_size=100)
        for epochs in (1, 12)
    )
    assert isinstance(more.result.pmf, SumPMF)
    assert more.agreements[""].effective > max(1000, few.agreements[""].effective)
    assert more.agreements[""].pmf_to_flow < few.agreements[""].pmf_to_flow
