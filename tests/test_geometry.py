"""Distances, angles, dihedrals and minimum images against hand-made values and mdtraj."""

import math

import torch

import mdtraj
import numpy as np
import pytest

from openmm_cgml import geometry


def test_dihedrals_agree_with_mdtraj(trajectory) -> None:
    frames = next(trajectory.chunks(50)).positions
    quadruples = [[4, 6, 8, 14], [6, 8, 14, 16], [1, 4, 6, 8]]
    ours = geometry.dihedrals(torch.tensor(frames), torch.tensor(quadruples)).numpy()
    theirs = mdtraj.compute_dihedrals(mdtraj.Trajectory(frames, trajectory.topology), quadruples)
    difference = np.angle(np.exp(1j * (ours - theirs)))
    assert np.abs(difference).max() < 1e-5


@pytest.mark.parametrize("degrees", [-179.0, -60.0, 0.0, 45.0, 90.0, 180.0])
def test_dihedral_of_a_built_molecule(degrees: float) -> None:
    phi = math.radians(degrees)
    x = torch.tensor(
        [[[1, 0, 0], [0, 0, 0], [0, 0, 1], [math.cos(phi), math.sin(phi), 1]]],
        dtype=torch.float64,
    )
    value = geometry.dihedrals(x, torch.tensor([[0, 1, 2, 3]])).item()
    assert math.cos(value - phi) == pytest.approx(1.0)
    assert math.sin(value) == pytest.approx(math.sin(phi), abs=1e-12)


def test_cosine_of_a_right_angle_and_of_a_straight_one() -> None:
    x = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 2, 0], [0, 4, 0]]])
    first = geometry.displacements(x, torch.tensor([[0, 1], [1, 2]]))
    second = geometry.displacements(x, torch.tensor([[1, 2], [2, 3]]))
    assert geometry.cosine_angles(first, second)[0].tolist() == pytest.approx([0.0, -1.0])


def test_damped_torsions_are_smooth_where_three_beads_are_in_line() -> None:
    x = torch.tensor(
        [[[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.2, 0.1, 0]]],
        dtype=torch.float64,
        requires_grad=True,
    )
    chain = torch.tensor([[0, 1, 2, 3]])
    steps = [geometry.displacements(x, chain[:, k : k + 2]) for k in range(3)]
    sine, cosine = geometry.damped_torsions(*steps)
    for value in (sine, cosine):
        assert value.item() == pytest.approx(0.0)
        (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 21  # two over the bond length


def test_minimum_image_in_a_triclinic_box_finds_the_nearest_of_all_images() -> None:
    box = torch.tensor([[3.0, 0, 0], [0.5, 2.8, 0], [-0.4, 0.3, 2.5]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    vectors = 8 * (torch.rand(200, 3, generator=generator, dtype=torch.float64) - 0.5)
    shifts = torch.cartesian_prod(*[torch.arange(-4.0, 5.0, dtype=torch.float64)] * 3) @ box
    nearest = (vectors[:, None] + shifts).norm(dim=-1).amin(1)
    found = geometry.minimum_image(vectors, box).norm(dim=-1)
    short = nearest < 0.5 * 2.5  # the documented range
    assert short.sum() > 20
    assert torch.allclose(found[short], nearest[short])


def test_no_box_means_no_change() -> None:
    vectors = torch.randn(4, 3)
    assert geometry.minimum_image(vectors, None) is vectors


@pytest.mark.parametrize(
    ("pairs", "angles", "torsions"),
    [
        ([(0, 3), (5, 1)], [(0, 1, 2), (4, 2, 5)], [(0, 1, 2, 3), (5, 3, 1, 0)]),
        ([(0, 3), (5, 1), (0, 5)], [], []),
        ([], [(0, 1, 2)], []),
        ([], [], [(2, 1, 0, 4)]),
    ],
    ids=["all kinds", "distances", "an angle", "a torsion"],
)
def test_sums_of_large_molecules_are_those_of_small_ones(
    pairs, angles, torsions, monkeypatch
) -> None:
    """By matrices up to a size and term by term beyond it: the same values and forces."""
    box = torch.tensor([[3.0, 0, 0], [0.5, 2.8, 0], [-0.4, 0.3, 2.5]], dtype=torch.float64)
    small = geometry.InternalCoordinates(pairs, angles, torsions).double()
    monkeypatch.setattr(geometry, "_MOST_ADDING", 0)
    large = geometry.InternalCoordinates(pairs, angles, torsions).double()
    assert small.small and not large.small
    generator = torch.Generator().manual_seed(0)
    beads = 8  # the last two are in no coordinate
    x = torch.randn(3, beads, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(len(small.names), 3, generator=generator, dtype=torch.float64)
    for vectors in (None, box):
        values = small(x, vectors)
        (gradient,) = torch.autograd.grad((values.T * pull).sum(), x)
        for coordinates in (small, large):
            internals = coordinates.evaluate(x.detach(), vectors)
            forces = coordinates.forces(internals, pull, beads)
            assert torch.allclose(internals.values.T, values, rtol=1e-12)
            assert torch.allclose(forces, -gradient, rtol=1e-10, atol=1e-12)
            assert forces[:, 6:].abs().max() == 0
