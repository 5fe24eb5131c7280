"""The continuous flow: what velocities and densities must be, and that it learns."""

import math

import torch

import numpy as np
import pytest
from handmade import gaussian_flow
from test_flow import frames, topology

import openmm_cgml as cgml
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.errors import InputError
from openmm_cgml.flow import FLOWS
from openmm_cgml.flow.core import build
from openmm_cgml.flow.matching import MatchingFlow, _turned_onto
from openmm_cgml.flow_file import load_flow, save_flow
from openmm_cgml.flow_training import FlowMatching, fit_flow


def moving(dataset: cgml.CGDataset, strength: float = 0.04, **settings) -> MatchingFlow:
    """A flow whose every parameter is random."""
    settings = {"width": 8, "layers": 2, "heads": 4, "tolerance": 1e-5, **settings}
    flow = FLOWS["matching"](dataset, **settings).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in flow.parameters():
            p += strength * torch.randn(p.shape, generator=draw, dtype=p.dtype)
    return flow


def rotation(seed: int = 0) -> torch.Tensor:
    turn = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).double()
    turn = torch.linalg.qr(turn)[0]
    return turn * torch.det(turn)


@pytest.fixture(scope="module")
def made():
    dataset = frames(5)
    return moving(dataset), torch.tensor(dataset.positions[:4]).double()


def test_velocities_turn_with_the_molecule_and_sum_to_zero(made) -> None:
    flow, positions = made
    time, turn = torch.linspace(0, 1, 4).double(), rotation()
    found = flow.field(positions, time)
    assert found.abs().max() > 1e-3
    assert torch.allclose(flow.field(positions @ turn.T + 0.4, time), found @ turn.T, atol=1e-10)
    assert found.sum(1).abs().max() < 1e-12
    mirror = torch.tensor([1.0, 1.0, -1.0])
    mirrored = flow.field(positions * mirror, time) * mirror
    assert (mirrored - found).abs().max() > 1e-6  # it tells mirror images apart


def test_velocities_are_defined_where_beads_coincide(made) -> None:
    flow, positions = made
    together = positions.clone()
    together[:, 1] = together[:, 0]
    together.requires_grad_(True)
    found = flow.field(together, torch.full((4,), 0.3).double())
    (slope,) = torch.autograd.grad(found.square().sum(), together)
    assert bool(found.isfinite().all()) and bool(slope.isfinite().all())


def test_divergence_is_the_trace_of_the_jacobian(made) -> None:
    flow, positions = made
    centred, time = positions - positions.mean(1, keepdim=True), torch.full((4,), 0.6).double()
    velocity, found = flow.divergence(centred, time)
    assert torch.equal(velocity, flow.field(centred, time))
    for k in range(4):
        matrix = torch.autograd.functional.jacobian(
            lambda x, k=k: flow.field(x[None], time[k : k + 1])[0], centred[k]
        )
        size = matrix.numel() ** 0.5
        whole = torch.trace(matrix.reshape(round(size), -1))
        # Moving all beads alike changes nothing and adds nothing.
        assert float(found[k].detach()) == pytest.approx(float(whole), abs=1e-9)


def test_density_does_not_change_under_rigid_motion(made) -> None:
    flow, positions = made
    logs = flow.log_prob(positions)
    moved = flow.log_prob(positions @ rotation().T + 0.7)
    assert torch.allclose(moved, logs, atol=2e-3, rtol=0)
    mirrored = flow.log_prob(positions * torch.tensor([1.0, 1.0, -1.0]))
    assert (mirrored - logs).abs().max() > 0.01


def test_a_flow_that_stands_still_is_its_gaussian() -> None:
    """The exact density of mean-free frames in 3 N - 3 dimensions."""
    top = topology(4)
    exact = gaussian_flow(top)
    flow = MatchingFlow(**{**exact.arguments(), "tolerance": 1e-8}).double()
    positions, logs = flow.sample(50, seed=3)
    assert torch.allclose(positions, exact.sample(50, seed=3)[0], atol=1e-9)
    # In bond vectors: independent, of variance kT / 800; sum over x of N^(-3/2) per direction.
    bonds = positions[:, 1:] - positions[:, :-1]
    variance = flow.kt / 800
    density = -0.5 * bonds.square().sum((1, 2)) / variance
    density = density - 4.5 * math.log(2 * math.pi * variance) + 1.5 * math.log(4)
    assert torch.allclose(logs, density, atol=1e-6)
    assert positions.mean(1).abs().max() < 1e-12


def test_density_of_samples_is_that_told_with_them(made) -> None:
    flow, _ = made
    positions, logs = flow.sample(6, seed=2)
    assert torch.allclose(flow.log_prob(positions), logs, atol=2e-3)


def test_density_integrates_to_one() -> None:
    """Two beads: over all bond vectors, (x2 - x1) / sqrt(2) in orthonormal directions."""
    flow = moving(frames(2))
    lengths = torch.linspace(1e-3, 4.0, 500).double()
    positions = torch.zeros(len(lengths), 2, 3).double()
    positions[:, 1, 0] = lengths
    with torch.no_grad():
        density = flow.log_prob(positions).exp()
    shell = 4 * math.pi * lengths**2 / 2**1.5
    assert float(torch.trapezoid(density * shell, lengths)) == pytest.approx(1.0, abs=2e-3)


def test_forces_are_the_gradient(made) -> None:
    flow, positions = made
    positions = positions[:2]
    found = flow.forces(positions)
    draw, h = torch.Generator().manual_seed(2), 3e-3
    along = torch.randn(positions.shape, generator=draw, dtype=torch.float64)
    up, down = flow.log_prob(positions + h * along), flow.log_prob(positions - h * along)
    slope = flow.kt * (up - down) / (2 * h)
    assert torch.allclose((found * along).sum((1, 2)), slope, rtol=0.01, atol=0.1)


def test_noise_is_turned_onto_frames_without_reflection() -> None:
    draw = torch.Generator().manual_seed(4)
    frames_ = torch.randn(20, 5, 3, generator=draw).double()
    frames_ = frames_ - frames_.mean(1, keepdim=True)
    turn = rotation(3)
    assert torch.allclose(_turned_onto(frames_ @ turn, frames_), frames_, atol=1e-9)
    mirrored = frames_ * torch.tensor([1.0, 1.0, -1.0])
    turned = _turned_onto(mirrored, frames_)
    assert (turned - frames_).square().sum((1, 2)).min() > 1e-3
    # No other rotation comes nearer.
    others = (mirrored @ turn - frames_).square().sum((1, 2))
    assert ((turned - frames_).square().sum((1, 2)) <= others).all()


def test_training_finds_the_density_and_chirality(tmp_path) -> None:
    dataset = frames(4, 2500, stiff=20.0)
    train, valid = dataset.split(0.8)
    flow = FLOWS["matching"](train, width=16, layers=1, heads=4, tolerance=1e-3)
    result = fit_flow(flow, train, valid, epochs=20, batch_size=128, progress=False)
    assert result.metrics["loss"] == "flow_matching"
    still = gaussian_like(train).log_prob(torch.as_tensor(valid.positions)).mean()
    assert result.metrics["log_likelihood"] > float(still.detach()) + 2.0
    drawn = dihedral_angles(flow.sample(100, seed=1)[0].numpy(), [[0, 1, 2, 3]])
    assert (drawn > 0).mean() > 0.7  # all of the data; half if it knew no left and right
    save_flow(tmp_path / "a.flow", result)
    loaded = load_flow(tmp_path / "a.flow")
    one = torch.as_tensor(valid.positions[:3])
    assert torch.equal(loaded.log_prob(one), flow.eval().log_prob(one))


def gaussian_like(dataset: cgml.CGDataset) -> MatchingFlow:
    return FLOWS["matching"](dataset, width=8, layers=1, heads=4, tolerance=1e-3).double()


def test_weights_of_frames_count() -> None:
    """Half of the frames are twice as large, and have no weight."""
    dataset = frames(3, 200)
    positions = np.concatenate([dataset.positions, 2 * dataset.positions])
    weights = np.repeat([1.0, 0.0], 200)
    weighted = cgml.CGDataset(positions, dataset.topology, 300.0, weights=weights)
    assert gaussian_like(weighted).size == pytest.approx(gaussian_like(dataset).size)
    flow = FLOWS["matching"](weighted, width=8, layers=1, heads=4)
    from openmm_cgml.flow_training import FlowPMF
    from openmm_cgml.losses import Batch, Terms

    def loss(frames_, w):
        batch = Batch(torch.tensor(frames_).float(), flow.kt, weights=w, seed=1)
        return float(FlowMatching()(Terms(FlowPMF(flow)), batch).detach())

    only = loss(positions[:200], None)
    both = loss(positions, torch.tensor(2 * weights).float())
    assert both == pytest.approx(only, rel=0.2)
    assert loss(positions[200:], None) > 1.5 * only


def test_what_makes_no_sense_is_refused() -> None:
    dataset = frames(4)
    flow = FLOWS["matching"](dataset, width=8)
    with pytest.raises(InputError, match="neither smearing nor forces"):
        fit_flow(flow, dataset, dataset, smearing=0.1, progress=False)
    with pytest.raises(InputError, match="no channels"):
        MatchingFlow(**{**flow.arguments(), "channels": 1})
    with pytest.raises(InputError, match="no multiple"):
        FLOWS["matching"](dataset, width=9)
    with pytest.raises(InputError, match="no broader density"):
        flow.sample_dataset(10, explore=0.5)
    assert flow.tolerance == 1e-5
    drawn = gaussian_like(dataset).sample_dataset(6, largest_force=1e9)
    assert drawn.forces is not None and drawn.mapping["flow"]["broad"] == 0
    again = build(flow.architecture())
    assert torch.equal(again.double().modes, flow.double().modes)
