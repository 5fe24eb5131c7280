"""What engines call, in PMFs of any make and sums of them; and what cgnet alone promises.

The contract that all networks pass in vacuum and in a box is in test_network_contract.py.
"""

import math

import torch
from torch import Tensor

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import geometry
from openmm_cgml.pmf.cgnet import CGNet
from openmm_cgml.pmf.core import energy_and_forces
from openmm_cgml.pmf.prior import HarmonicAngles, HarmonicBonds, Repulsion


@pytest.fixture
def positions(dataset) -> torch.Tensor:
    return torch.tensor(dataset.positions[::400], dtype=torch.float64)


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


def test_a_pmf_needs_no_gradient_of_its_own(dataset, positions) -> None:
    check_energies_and_forces(EndToEnd(), positions)
    prior, network = cgml.fit_prior(dataset), cgml.PMFS["cgnet"](dataset, width=16, depth=2)
    check_energies_and_forces(cgml.SumPMF(prior, network).double(), positions)
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


def test_cgnet_is_finite_for_beads_in_line(dataset) -> None:
    pmf = cgml.SumPMF(cgml.fit_prior(dataset), cgml.PMFS["cgnet"](dataset)).double()
    line = torch.zeros(1, 5, 3, dtype=torch.float64)
    line[0, :, 0] = 0.14 * torch.arange(5)
    energies, forces = energy_and_forces(pmf, line)
    assert torch.isfinite(energies).all() and torch.isfinite(forces).all()
