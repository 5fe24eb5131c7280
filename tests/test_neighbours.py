"""Neighbour pairs against all pairs and all images, where a search could lose or repeat one."""

import itertools
import math

import torch

import numpy as np
import pytest

from openmm_cgml import geometry
from openmm_cgml.errors import InputError
from openmm_cgml.neighbours import box_fits, check_box, neighbour_pairs

CUTOFF = 1.0
BEADS = 300  # enough for the search by columns
FEW = 90  # few enough for all pairs
CUBE = np.diag([5.3, 4.1, 4.7])
TRICLINIC = np.array([[5.2, 0, 0], [2.4, 4.6, 0], [-2.5, 2.2, 4.3]])
# Room for three cutoffs along two axes, along one, along none.
THIN = [np.diag(lengths) for lengths in itertools.product([2.0, 5.5], repeat=3)]
SCRIPT = torch.jit.script(neighbour_pairs)


def nearest(positions: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """Distances (copies, beads, beads) between the nearest of all images near by."""
    xyz = positions.astype(float)
    images = np.zeros((1, 3))
    if box is not None:
        xyz = xyz - np.floor(xyz @ np.linalg.inv(box)) @ box
        images = np.array(list(itertools.product([-2, -1, 0, 1, 2], repeat=3))) @ box
    steps = xyz[:, :, None] - xyz[:, None]
    lengths = np.full(steps.shape[:-1], math.inf)
    for image in images:
        np.minimum(lengths, np.linalg.norm(steps + image, axis=-1), out=lengths)
    return lengths


def matrix(pairs: torch.Tensor, copies: int, beads: int) -> np.ndarray:
    """How often each pair was found, (copies, beads, beads)."""
    first, second = pairs.numpy()
    assert pairs.dtype == torch.int64 and (first < second).all()
    assert (first // beads == second // beads).all()
    found = np.zeros((copies, beads, beads), int)
    np.add.at(found, (first // beads, first % beads, second % beads), 1)
    return found


def check(positions: np.ndarray, box: np.ndarray | None, cutoff: float = CUTOFF) -> int:
    """Compare both programs with all pairs; return how many pairs there are."""
    copies, beads, _ = positions.shape
    upper = np.triu(np.ones((beads, beads), bool), 1)
    lengths = nearest(positions, box)
    # Rounding decides about pairs at the cutoff itself.
    blur = 4 * np.finfo(positions.dtype).eps * max(1.0, np.abs(positions).max(initial=0.0))
    vectors = None if box is None else torch.tensor(box)
    for program in (neighbour_pairs, SCRIPT):
        found = matrix(program(torch.tensor(positions), cutoff, vectors), copies, beads)
        assert found.max(initial=0) <= 1
        assert (found[upper & (lengths < cutoff - blur)] == 1).all()
        assert (found[~upper | (lengths > cutoff + blur)] == 0).all()
    return int(found.sum())


def scattered(beads: int, box: np.ndarray, copies: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((copies, beads, 3)) @ box


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("beads", [FEW, BEADS])
@pytest.mark.parametrize("box", [None, CUBE, TRICLINIC], ids=["open", "cube", "triclinic"])
def test_random_beads(box, beads, copies, dtype) -> None:
    positions = scattered(beads, TRICLINIC if box is None else box, copies).astype(dtype)
    assert check(positions, box) > beads * copies / 2


@pytest.mark.parametrize("box", THIN, ids=lambda box: str(np.diag(box)))
def test_boxes_without_room_for_three_cutoffs(box) -> None:
    assert check(scattered(BEADS, box), box) > BEADS


@pytest.mark.parametrize("width", [3.0, np.nextafter(3.0, 4), np.nextafter(3.0, 2), 3.00001, 4.0])
def test_widths_of_whole_cutoffs(width) -> None:
    """Where one column more or less fits, and images of a bead are as near as they can be."""
    box = np.diag([width] * 3)
    assert check(scattered(BEADS, box), box) > BEADS


@pytest.mark.parametrize("box", [CUBE, TRICLINIC], ids=["cube", "triclinic"])
def test_beads_in_any_image(box) -> None:
    """Torn molecules and negative coordinates: the same pairs as with all beads in the box."""
    inside = scattered(BEADS, box)
    images = np.random.default_rng(1).integers(-4, 5, inside.shape) @ box
    torn = inside + images
    assert check(torn, box) == check(inside, box)
    assert check(torn.astype(np.float32), box) > BEADS


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("spacing", [0.5, 1.0])
def test_beads_on_faces_of_cells(periodic, spacing) -> None:
    """A lattice, negative too: each bead on a face, and pairs at the cutoff, which are not in."""
    sides = (8, 6, 7)
    box = spacing * np.diag(sides) if periodic else None
    lattice = spacing * (np.array(list(np.ndindex(sides)))[None] - 2.0)
    beads = lattice.shape[1]
    found = matrix(
        neighbour_pairs(torch.tensor(lattice), CUTOFF, None if box is None else torch.tensor(box)),
        1,
        beads,
    )
    expected = np.triu(nearest(lattice, box)[0] < CUTOFF, 1)
    assert (found[0] == expected).all()
    # Of each bead's 26 nearest in a full lattice half belong to it; no edges in a box.
    if box is not None:
        assert found.sum() == (0 if spacing == 1 else 13 * beads)
    check(lattice + 1e-9, box)
    check(lattice - 1e-9, box)
    check(lattice - 1e-20, box)  # so little below a face of the box that it rounds to the other


@pytest.mark.parametrize("box", [None, np.diag([60.0] * 3)], ids=["open", "box"])
def test_clusters_and_empty_space(box) -> None:
    rng = np.random.default_rng(3)
    centres = 60 * rng.random((1, 12, 1, 3))
    positions = (centres + 0.4 * rng.standard_normal((1, 12, 40, 3))).reshape(1, -1, 3)
    assert check(positions, box) > 12 * 40


@pytest.mark.parametrize("box", [None, np.diag([700.5, 800.2, 900.1])], ids=["open", "box"])
@pytest.mark.parametrize("axis", range(3))
def test_partners_as_far_as_can_be(axis, box) -> None:
    """Many lonely pairs, wherever the faces of their cells are: none falls between two cells."""
    sites = np.array(list(np.ndindex(12, 12, 12)))
    first = 50.0 * sites + np.random.default_rng(2).random(sites.shape)
    second = first.copy()
    second[:, axis] += CUTOFF * (1 - 1e-9)
    positions = torch.tensor(np.concatenate([first, second])[None])
    vectors = None if box is None else torch.tensor(box)
    pairs = neighbour_pairs(positions, CUTOFF, vectors)
    assert sorted(pairs[0].tolist()) == list(range(len(sites)))
    assert (pairs[1] - pairs[0] == len(sites)).all()


@pytest.mark.parametrize("beads", [5, BEADS])
@pytest.mark.parametrize("box", [None, CUBE], ids=["open", "box"])
def test_all_beads_on_one_spot(box, beads) -> None:
    positions = np.full((2, beads, 3), -7.25)
    assert check(positions, box) == beads * (beads - 1)


def test_bead_far_away() -> None:
    """Further than any grid could reach: the others lose no pair, at no more cost."""
    positions = scattered(BEADS, CUBE)
    expected = check(positions, None)
    for far in (1e5, -1e5, 1e12, -1e30):
        for axis in range(3):
            more = np.concatenate([positions, np.full((1, 1, 3), 2.0)], axis=1)
            more[0, -1, axis] = far
            pairs = neighbour_pairs(torch.tensor(more), CUTOFF)
            assert pairs.size(1) == expected and int(pairs.max()) < BEADS


def test_beads_where_columns_repeat() -> None:
    """Open space has a finite number of columns; beads many of them apart are no neighbours."""
    positions = scattered(BEADS, CUBE)
    apart = positions + np.array([[8192.0, 0, 0]])
    both = np.concatenate([positions, apart], axis=1)
    assert check(both, None) == 2 * check(positions, None)


@pytest.mark.parametrize("beads", [5, BEADS])
def test_sick_beads_are_in_no_pair(beads) -> None:
    positions = scattered(beads, 0.4 * np.eye(3), copies=2)
    positions[0, 1, 2], positions[1, 3, 0] = math.nan, math.inf
    for box in (None, torch.tensor(CUBE)):
        pairs = neighbour_pairs(torch.tensor(positions), CUTOFF, box)
        assert not set(pairs.flatten().tolist()) & {1, beads + 3}
        assert pairs.size(1) == (beads - 1) * (beads - 2)


@pytest.mark.parametrize("beads", [1, 2, 0])
def test_hardly_any_beads(beads) -> None:
    assert neighbour_pairs(torch.zeros(3, beads, 3), CUTOFF).shape == (2, 3 if beads == 2 else 0)
    assert neighbour_pairs(torch.zeros(0, BEADS, 3), CUTOFF).shape == (2, 0)


def test_small_and_large_cutoffs() -> None:
    positions = scattered(BEADS, CUBE)
    for cutoff in (1e-3, 0.1, 2.05):
        check(positions, CUBE, cutoff)
    assert check(positions, None, 100.0) == BEADS * (BEADS - 1) // 2


@pytest.mark.parametrize("beads", [FEW, BEADS])
def test_no_gradient_is_recorded_and_recording_goes_on(beads) -> None:
    positions = torch.tensor(scattered(beads, CUBE), requires_grad=True)
    for recording in (True, False):
        with torch.set_grad_enabled(recording):
            for program in (neighbour_pairs, SCRIPT, SCRIPT):
                assert not program(positions, CUTOFF).requires_grad
                assert torch.is_grad_enabled() == recording


def test_pairs_serve_a_differentiable_energy() -> None:
    """Used as they will be: forces on the flat beads are those of all pairs."""
    positions = torch.tensor(scattered(BEADS, CUBE, copies=2), requires_grad=True)
    box = torch.tensor(CUBE)
    first, second = neighbour_pairs(positions, CUTOFF, box)
    flat = positions.reshape(-1, 3)
    lengths = geometry.norm(geometry.minimum_image(flat[second] - flat[first], box))
    (gradient,) = torch.autograd.grad((1 - lengths).square().sum(), positions)
    everything = geometry.distances(positions, geometry.all_pairs(BEADS), box)
    (expected,) = torch.autograd.grad((1 - everything).clamp_min(0).square().sum(), positions)
    assert torch.allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("beads", [FEW, BEADS])
def test_program_uses_trusted_operators_only(beads) -> None:
    from openmm_cgml.trusted_program import require_trusted

    class Count(torch.nn.Module):
        def forward(self, positions: torch.Tensor, box_vectors: torch.Tensor) -> torch.Tensor:
            return neighbour_pairs(positions, 1.0, box_vectors).sum()

    script = torch.jit.script(Count().eval())
    require_trusted(script, "a count")
    positions, box = torch.tensor(scattered(beads, CUBE)), torch.tensor(CUBE)
    frozen = torch.jit.freeze(script)
    for _ in range(3):
        assert frozen(positions, box) == neighbour_pairs(positions, CUTOFF, box).sum()


# ---------------------------------------------------------------- boxes too small


def test_cutoffs_beyond_half_the_box_are_refused() -> None:
    box = torch.tensor(np.diag([5.0, 1.9, 4.0]))
    message = r"cutoff of 1 nm .* width, 1.9 nm: .* box at least 2 nm wide, or a smaller cutoff"
    with pytest.raises(InputError, match=message):
        check_box(box, 1.0)
    with pytest.raises(ValueError, match=message):
        neighbour_pairs(torch.zeros(1, 5, 3), 1.0, box)
    check_box(box, 0.95)
    check_box(None, 100.0)
    assert not box_fits(box, 1.0) and box_fits(box, 0.95)


def test_half_the_smallest_width_is_the_limit() -> None:
    """In a skewed box too: up to it no lattice vector is short enough for a second image."""
    images = np.array(list(itertools.product([-2, -1, 0, 1, 2], repeat=3))) @ TRICLINIC
    lengths = np.sort(np.linalg.norm(images, axis=1))
    assert lengths[1] >= np.diag(TRICLINIC).min() - 1e-12
    limit = float(np.diag(TRICLINIC).min()) / 2
    check(scattered(BEADS, TRICLINIC), TRICLINIC, limit)
    with pytest.raises(InputError, match="smaller cutoff"):
        check_box(torch.tensor(TRICLINIC), limit * 1.0001)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, math.nan])
def test_cutoffs_that_are_no_lengths_are_refused(cutoff) -> None:
    with pytest.raises(InputError, match="length above zero"):
        check_box(None, cutoff)


def test_scripts_do_not_raise_but_say_that_the_box_is_too_small() -> None:
    """An error in a program that OpenMM runs would end the process."""

    class Poisoned(torch.nn.Module):
        def forward(self, positions: torch.Tensor, box_vectors: torch.Tensor) -> torch.Tensor:
            pairs = neighbour_pairs(positions, 1.0, box_vectors)
            energy = 0.0 * pairs.sum() + positions.sum()
            return torch.where(box_fits(box_vectors, 1.0), energy, float("nan"))

    script = torch.jit.script(Poisoned())
    x = torch.ones(1, 5, 3)
    assert script(x, 2.0 * torch.eye(3)).isfinite() and script(x, 1.9 * torch.eye(3)).isnan()
