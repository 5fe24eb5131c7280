"""The contract that every PMF in the registry, the priors and their sum must pass."""

import math

import torch
from torch import Tensor

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import geometry
from openmm_cgml.pmf.cgnet import CGNet
from openmm_cgml.pmf.core import build, energy_and_forces
from openmm_cgml.pmf.prior import HarmonicAngles, HarmonicBonds, Repulsion
from openmm_cgml.units import thermal_energy

pytestmark = pytest.mark.backend

NAMES = ["prior", "sum", *cgml.PMFS]


def make(name: str, dataset: cgml.CGDataset) -> cgml.PMF:
    if name == "prior":
        return cgml.fit_prior(dataset)
    if name == "sum":
        return cgml.SumPMF(cgml.fit_prior(dataset), cgml.PMFS["cgnet"](dataset, width=16, depth=2))
    return cgml.PMFS[name](dataset)


@pytest.fixture(params=NAMES)
def pmf(request, dataset) -> cgml.PMF:
    torch.manual_seed(0)
    return make(request.param, dataset).double()


@pytest.fixture
def positions(dataset) -> torch.Tensor:
    return torch.tensor(dataset.positions[::400], dtype=torch.float64)


def test_forces_are_minus_the_gradient(pmf, positions) -> None:
    forces = energy_and_forces(pmf, positions)[1]
    step = 1e-5
    for bead, axis in ((0, 0), (2, 1), (4, 2)):
        shift = torch.zeros_like(positions)
        shift[:, bead, axis] = step
        slope = (pmf(positions + shift) - pmf(positions - shift)) / (2 * step)
        assert torch.allclose(-slope, forces[:, bead, axis], rtol=1e-5, atol=1e-3)


def test_energy_is_invariant_under_translation_and_rotation(pmf, positions) -> None:
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    rotation = rotation * torch.det(rotation).sign()
    moved = positions @ rotation.T + torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)
    energies, forces = energy_and_forces(pmf, positions)
    moved_energies, moved_forces = energy_and_forces(pmf, moved)
    assert torch.allclose(energies, moved_energies, rtol=1e-8)
    assert torch.allclose(forces @ rotation.T, moved_forces, rtol=1e-6, atol=1e-6)
    assert forces.sum(1).abs().max() < 1e-6 * forces.abs().max()


def test_copies_do_not_feel_each_other(pmf, positions) -> None:
    together = pmf(positions)
    assert torch.allclose(together, torch.cat([pmf(x[None]) for x in positions]))
    other = positions.clone()
    other[1:] += 0.02 * torch.randn_like(other[1:])
    assert torch.equal(pmf(other)[0], together[0])


def test_periodic_images_do_not_change_the_energy(pmf, positions) -> None:
    box = torch.diag(torch.tensor([2.5, 3.0, 2.8], dtype=torch.float64))
    inside = positions - positions.mean(1, keepdim=True)
    wrapped = inside.clone()
    wrapped[:, 0] += box[0]
    wrapped[:, 3] -= box[2] + box[1]
    whole, whole_forces = energy_and_forces(pmf, inside, box)
    torn, torn_forces = energy_and_forces(pmf, wrapped, box)
    assert torch.allclose(whole, pmf(inside), rtol=1e-9)
    assert torch.allclose(whole, torn, rtol=1e-8)
    assert torch.allclose(whole_forces, torn_forces, rtol=1e-5, atol=1e-5)


def test_torchscript_equals_eager(pmf, positions) -> None:
    script = torch.jit.script(pmf)
    assert torch.equal(script(positions), pmf(positions))


def test_architecture_and_weights_rebuild_the_module(pmf, positions) -> None:
    again = build(pmf.architecture()).double()
    again.load_state_dict(pmf.state_dict())
    assert torch.equal(again(positions), pmf(positions))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "prior"])
def test_gradient_reaches_every_parameter(name, dataset, positions) -> None:
    pmf = make(name, dataset).double()
    forces = energy_and_forces(pmf, positions, differentiable=True)[1]
    forces.square().sum().backward()
    for key, parameter in pmf.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


def test_indices_are_buffers_so_that_the_graph_has_no_device(pmf) -> None:
    graph = str(torch.jit.script(pmf.float()).inlined_graph)
    # A device may be asked of a tensor, but none may be written down.
    assert "device=" not in graph and "Device = prim::Constant" not in graph


@pytest.mark.parametrize("name", list(cgml.PMFS))
def test_seed_decides_the_weights_and_the_global_generator_is_left_alone(name, dataset) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (cgml.PMFS[name](dataset, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


# ---------------------------------------------------------------- what engines call

BOX = torch.tensor([[2.5, 0, 0], [0.4, 3.0, 0], [-0.3, 0.5, 2.8]], dtype=torch.float64)


class EndToEnd(cgml.PMF):
    """A spring between the first and the last bead; defines `forward` only."""

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        steps = geometry.minimum_image(positions[:, -1] - positions[:, 0], box_vectors)
        return 50 * steps.square().sum(-1)


def check_energies_and_forces(pmf: cgml.PMF, positions: Tensor) -> None:
    """The method of engines agrees with autograd: eager, scripted and frozen, in a box or not."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-2, 3, positions.shape, generator=generator).to(positions)
    script = torch.jit.script(pmf.eval())
    frozen = torch.jit.freeze(script, preserved_attrs=["energies_and_forces"])
    for x, box in ((positions, None), (positions[:1], None), (positions + images @ BOX, BOX)):
        energies, forces = energy_and_forces(pmf, x, box)
        scale = forces.abs().max().item()
        # Three times: TorchScript's first two calls run other graphs than later ones.
        for program in (pmf, *3 * [script], *3 * [frozen]):
            for recording in (True, False):
                with torch.set_grad_enabled(recording):
                    found, by_hand = program.energies_and_forces(x, box)
                    assert torch.is_grad_enabled() == recording
                assert torch.allclose(found, energies, rtol=1e-9)
                assert torch.allclose(by_hand, forces, rtol=1e-9, atol=1e-10 * scale)
                assert by_hand.shape == x.shape and by_hand.is_contiguous()
        assert not x.requires_grad


def test_engines_get_the_forces_of_autograd(pmf, positions) -> None:
    check_energies_and_forces(pmf, positions)


def test_a_pmf_needs_no_gradient_of_its_own(dataset, positions) -> None:
    check_energies_and_forces(EndToEnd(), positions)
    prior, network = (make(name, dataset) for name in ("prior", "cgnet"))
    check_energies_and_forces(cgml.SumPMF(EndToEnd(), prior, network).double(), positions)
    check_energies_and_forces(cgml.SumPMF(EndToEnd(), EndToEnd()).double(), positions)


def test_engines_get_the_forces_of_branched_molecules_and_single_terms() -> None:
    bonds = [(0, 1), (2, 1), (3, 1), (1, 4), (5, 4), (4, 6)]
    torch.manual_seed(0)
    positions = 0.4 * torch.randn(4, 8, 3, dtype=torch.float64)
    for pmf in (
        CGNet(8, bonds, width=8, depth=1),
        HarmonicBonds(bonds, [1e4] * 6, [0.3] * 6),  # the last bead is in no term
        HarmonicAngles([(0, 1, 2), (3, 1, 0)], [50.0] * 2, [-0.2] * 2),
        Repulsion([(0, 6), (5, 3)], [2.5] * 2, [0.4] * 2),
    ):
        check_energies_and_forces(pmf.double(), positions)


def test_single_precision_serves_engines(dataset, positions) -> None:
    pmf = make("sum", dataset)
    energies, forces = energy_and_forces(pmf, positions.float())
    found, by_hand = pmf.energies_and_forces(positions.float())
    assert by_hand.dtype == torch.float32
    assert torch.allclose(found, energies, rtol=1e-4)
    assert torch.allclose(by_hand, forces, rtol=1e-3, atol=1e-4 * forces.abs().max().item())


# ---------------------------------------------------------------- cgnet


def turned(dataset: cgml.CGDataset, angle: float) -> torch.Tensor:
    """The first frame with its last bead turned about the last bond but one."""
    x = torch.tensor(dataset.positions[0], dtype=torch.float64)
    axis = x[3] - x[2]
    axis = axis / axis.norm()
    arm = x[4] - x[3]
    along = (arm @ axis) * axis
    across = arm - along
    other = torch.linalg.cross(axis, across)
    x[4] = x[3] + along + math.cos(angle) * across + math.sin(angle) * other
    return x[None]


def test_cgnet_has_no_jump_at_any_torsion(dataset) -> None:
    """Energies and forces around a full turn change smoothly, +-pi included."""
    torch.manual_seed(3)
    pmf = cgml.PMFS["cgnet"](dataset, width=32, depth=2).double()
    angles = np.linspace(0, 2 * math.pi, 721)
    frames = torch.cat([turned(dataset, a) for a in angles])
    energies, forces = energy_and_forces(pmf, frames)
    assert torch.allclose(energies[0], energies[-1])
    # A jump would be one step that is unlike the largest others.
    for steps in (energies.diff().abs(), (forces[1:] - forces[:-1]).norm(dim=(1, 2))):
        assert steps.max() < 1.5 * steps.sort().values[-20]


def test_cgnet_tells_mirror_images_apart_and_the_prior_does_not(dataset, positions) -> None:
    mirrored = positions * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    network = cgml.PMFS["cgnet"](dataset).double()
    prior = cgml.fit_prior(dataset).double()
    assert (network(positions) - network(mirrored)).abs().min() > 1e-4
    assert torch.allclose(prior(positions), prior(mirrored))


def test_cgnet_is_finite_for_beads_in_line(dataset) -> None:
    pmf = cgml.SumPMF(cgml.fit_prior(dataset), cgml.PMFS["cgnet"](dataset)).double()
    line = torch.zeros(1, 5, 3, dtype=torch.float64)
    line[0, :, 0] = 0.14 * torch.arange(5)
    energies, forces = energy_and_forces(pmf, line)
    assert torch.isfinite(energies).all() and torch.isfinite(forces).all()


# ---------------------------------------------------------------- priors


def chain_of(topology, frames: np.ndarray) -> cgml.CGDataset:
    return cgml.CGDataset(frames, topology, temperature=300.0)


def test_bond_prior_recovers_the_spring_that_made_the_data() -> None:
    """Bond vectors of density exp(-k (d - d0)^2 / 2 kT): the Jacobian d^2 must be undone."""
    rng = np.random.default_rng(0)
    kt, stiffness, length, frames = thermal_energy(300), 500.0, 0.35, 40_000
    # Soft on purpose: sd 0.07 nm, so forgetting the Jacobian would shift d0 by 0.03 nm.
    grid = np.linspace(0.001, 0.9, 20_000)
    density = grid**2 * np.exp(-0.5 * stiffness * (grid - length) ** 2 / kt)
    lengths = rng.choice(grid, size=frames, p=density / density.sum())
    directions = rng.standard_normal((frames, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    beads = np.stack([np.zeros((frames, 3)), lengths[:, None] * directions], axis=1)
    topology = cgml.CGTopology(
        ("A", "B"), ("A", "B"), ("M", "M"), (1, 1), ("A", "A"), ((0, 1),), (1.0, 1.0)
    )
    (bonds,) = cgml.fit_prior(chain_of(topology, beads), terms=["bonds"]).terms
    assert isinstance(bonds, HarmonicBonds)
    weight = 1 / lengths**2
    effective = weight.sum() ** 2 / (weight**2).sum()
    error = math.sqrt(kt / stiffness / effective)
    assert abs(bonds.length.item() - length) < 4 * error
    assert abs(bonds.stiffness.item() / stiffness - 1) < 4 * math.sqrt(2 / effective)


def test_angle_prior_recovers_the_spring_in_the_cosine() -> None:
    rng = np.random.default_rng(1)
    kt, stiffness, cosine, frames = thermal_energy(300), 300.0, -0.3, 20_000
    values = np.clip(cosine + math.sqrt(kt / stiffness) * rng.standard_normal(frames), -1, 1)
    angle = np.arccos(values)
    beads = np.zeros((frames, 3, 3))
    beads[:, 0, 0] = 0.3
    beads[:, 2] = 0.3 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    names = ("A", "B", "C")
    topology = cgml.CGTopology(
        names, names, ("M",) * 3, (1,) * 3, ("A",) * 3, ((0, 1), (1, 2)), (1.0,) * 3
    )
    (angles,) = cgml.fit_prior(chain_of(topology, beads), terms=["angles"]).terms
    assert isinstance(angles, HarmonicAngles)
    assert abs(angles.cosine.item() - cosine) < 4 * math.sqrt(kt / stiffness / frames)
    assert abs(angles.stiffness.item() / stiffness - 1) < 4 * math.sqrt(2 / frames)


def test_repulsion_is_kt_where_few_frames_go(dataset) -> None:
    (repulsion,) = cgml.fit_prior(dataset, terms=["repulsion"]).terms
    assert isinstance(repulsion, Repulsion)
    assert sorted(repulsion.indices.tolist()) == [[0, 3], [0, 4], [1, 4]]
    kt = thermal_energy(300)
    for (i, j), radius in zip(repulsion.indices.tolist(), repulsion.radius.tolist(), strict=True):
        lengths = np.linalg.norm(dataset.positions[:, i] - dataset.positions[:, j], axis=1)
        assert 0 < (lengths < radius).mean() <= 0.002
        pair = Repulsion([[0, 1]], [kt], [radius])
        at_radius = torch.tensor([[[0.0, 0, 0], [radius, 0, 0]]])
        assert pair(at_radius).item() == pytest.approx(kt, rel=1e-5)


def test_prior_weights_count(dataset) -> None:
    """Frames of weight zero do not change the bond prior."""
    half = len(dataset) // 2
    weights = np.r_[np.ones(half), np.zeros(len(dataset) - half)]
    from dataclasses import replace

    weighted = cgml.fit_prior(replace(dataset, weights=weights), terms=["bonds"]).terms[0]
    cut = cgml.fit_prior(
        replace(dataset.select(slice(half)), weights=None), terms=["bonds"]
    ).terms[0]
    assert torch.allclose(weighted.length, cut.length)
    assert torch.allclose(weighted.stiffness, cut.stiffness, rtol=1e-4)
