"""Z-matrices: round trips, the volume element against Jacobians and quadrature, refusals."""

import itertools
import math

import torch

import numpy as np
import pytest

from openmm_cgml import geometry
from openmm_cgml.errors import InputError
from openmm_cgml.flow.internal import ZMatrix
from openmm_cgml.topology import CGTopology


def molecule(beads: int, bonds, names=None, chains=None) -> CGTopology:
    return CGTopology(
        bead_names=tuple(names or (f"B{k}" for k in range(beads))),
        bead_types=tuple(names or ("B",) * beads),
        residue_names=("RES",) * beads,
        residue_ids=tuple(range(1, beads + 1)),
        chain_ids=tuple(chains or "A" * beads),
        bonds=tuple(bonds),
        masses=(12.0,) * beads,
    )


def chain(beads: int) -> CGTopology:
    return molecule(beads, itertools.pairwise(range(beads)))


def peptide(residues: int) -> CGTopology:
    """N-CA(-CB)-C(-O)-N and so on."""
    bonds = [
        (5 * r + i, 5 * r + j)
        for r in range(residues)
        for i, j in [(0, 1), (1, 2), (1, 3), (3, 4), (3, 5)]
        if 5 * r + j < 5 * residues
    ]
    return molecule(5 * residues, bonds, ["N", "CA", "CB", "C", "O"] * residues)


MOLECULES = {
    "two": chain(2),
    "three": chain(3),
    "four": chain(4),
    "chain": chain(35),
    "peptide": peptide(4),
    "star": molecule(6, [(3, k) for k in (0, 1, 2, 4, 5)]),
    "ring": molecule(6, [*itertools.pairwise(range(6)), (0, 5)]),
    # A ring with a tail, and a branch of three at its end; beads in no order.
    "tadpole": molecule(
        9, [(4, 0), (0, 7), (7, 2), (2, 4), (7, 1), (1, 6), (6, 3), (6, 5), (6, 8)]
    ),
}
each_molecule = pytest.mark.parametrize("name", MOLECULES)


def shapes(zmatrix: ZMatrix, copies: int, seed: int = 1, dtype=torch.float64):
    """Random bonds, angles and torsions."""
    generator = torch.Generator().manual_seed(seed)
    bonds, angles, torsions = (
        torch.rand(copies, count, generator=generator, dtype=torch.float64)
        for count in zmatrix.counts
    )
    found = 0.1 + 0.3 * bonds, 0.3 + 2.5 * angles, math.pi * (2 * torsions - 1)
    return tuple(x.to(dtype) for x in found)


def rotations(vectors: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (..., 3, 3) of rotation vectors."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    generators = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
    return torch.linalg.matrix_exp(generators.unflatten(-1, (3, 3)))


def moved(positions: torch.Tensor) -> torch.Tensor:
    turn = rotations(torch.tensor([1.0, -2.0, 0.5], dtype=positions.dtype))
    return positions @ turn.T + torch.tensor([3.0, -1.0, 2.0], dtype=positions.dtype)


def helmert(beads: int) -> torch.Tensor:
    """Orthonormal rows (beads - 1, beads), each of sum 0."""
    rows = [[1.0] * k + [-float(k)] + [0.0] * (beads - k - 1) for k in range(1, beads)]
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=1)


# ---------------------------------------------------------------- both ways


@each_molecule
def test_coordinates_come_back(name: str) -> None:
    zmatrix = ZMatrix.of(MOLECULES[name])
    given = shapes(zmatrix, 200)
    positions = zmatrix.inverse(*given)
    assert positions.shape == (200, zmatrix.beads, 3)
    assert positions.mean(1).abs().max() < 1e-14
    bonds, angles, torsions = zmatrix(positions)
    assert (bonds - given[0]).abs().max() < 1e-12
    for found, expected in ((angles, given[1]), (torsions, given[2])):
        assert found.shape == expected.shape
        assert (found - expected).abs().lt(1e-10).all()


def test_round_trip_of_a_long_chain_of_ordinary_angles_has_twelve_digits() -> None:
    zmatrix = ZMatrix.of(MOLECULES["chain"])
    bonds, angles, torsions = shapes(zmatrix, 500)
    given = bonds, 1.2 + angles / 3, torsions
    for found, expected in zip(zmatrix(zmatrix.inverse(*given)), given, strict=True):
        assert (found - expected).abs().max() < 1e-12


@each_molecule
def test_positions_come_back_up_to_a_rigid_motion(name: str) -> None:
    zmatrix = ZMatrix.of(MOLECULES[name])
    generator = torch.Generator().manual_seed(2)
    positions = torch.randn(100, zmatrix.beads, 3, generator=generator, dtype=torch.float64)
    built = zmatrix.inverse(*zmatrix(positions))
    centred = positions - positions.mean(1, keepdim=True)
    # The proper rotation that fits best (Kabsch); a mirror image would not fit.
    left, _, right = torch.linalg.svd(built.mT @ centred)
    signs = torch.ones(100, 3, dtype=torch.float64)
    signs[:, 2] = torch.linalg.det(left @ right)
    fitted = built @ (left * signs.unsqueeze(1) @ right)
    assert (fitted - centred).abs().max() < 1e-9


@each_molecule
def test_rigid_motions_change_nothing(name: str) -> None:
    zmatrix = ZMatrix.of(MOLECULES[name])
    given = shapes(zmatrix, 50)
    for found, expected in zip(zmatrix(moved(zmatrix.inverse(*given))), given, strict=True):
        assert (found - expected).abs().lt(1e-9).all()


@each_molecule
def test_mirror_image_changes_the_signs_of_the_torsions(name: str) -> None:
    zmatrix = ZMatrix.of(MOLECULES[name])
    positions = zmatrix.inverse(*shapes(zmatrix, 50))
    here, there = zmatrix(positions), zmatrix(positions * torch.tensor([1.0, -1.0, 1.0]))
    assert torch.equal(here[0], there[0])
    torch.testing.assert_close(here[1], there[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(here[2], -there[2], rtol=0, atol=1e-9)


def test_orientation_is_fixed() -> None:
    zmatrix = ZMatrix.of(MOLECULES["peptide"])
    positions = zmatrix.inverse(*shapes(zmatrix, 20))
    first, second, third = (positions[:, zmatrix.rows[row][0]] for row in range(3))
    assert (second - first)[:, 0].min() > 0 and (second - first)[:, 1:].abs().max() < 1e-15
    assert (third - first)[:, 1].min() > 0 and (third - first)[:, 2].abs().max() < 1e-15


def test_torsions_of_another_period_give_the_same_positions() -> None:
    zmatrix = ZMatrix.of(MOLECULES["peptide"])
    bonds, angles, torsions = shapes(zmatrix, 5)
    here = zmatrix.inverse(bonds, angles, torsions)
    there = zmatrix.inverse(bonds, angles, torsions + 2 * math.pi)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-12)


def test_float32_stays_float32() -> None:
    zmatrix = ZMatrix.of(MOLECULES["chain"])
    bonds, angles, torsions = shapes(zmatrix, 50, dtype=torch.float32)
    given = bonds, 1.2 + angles / 3, torsions
    positions = zmatrix.inverse(*given)
    found = zmatrix(positions)
    volume = zmatrix.log_volume(*found[:2])
    assert {x.dtype for x in (positions, volume, *found)} == {torch.float32}
    for value, expected in zip(found, given, strict=True):
        assert (value - expected).abs().max() < 2e-4
    exact = zmatrix.log_volume(given[0].double(), given[1].double())
    assert (volume - exact).abs().max() < 1e-3


# ---------------------------------------------------------------- against geometry


@each_molecule
def test_coordinates_are_those_of_geometry(name: str) -> None:
    zmatrix = ZMatrix.of(MOLECULES[name])
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20, zmatrix.beads, 3, generator=generator, dtype=torch.float64)
    bonds, angles, torsions = zmatrix(x)
    rows = torch.tensor(zmatrix.rows)
    assert torch.equal(bonds, geometry.distances(x, rows[1:, :2]))
    assert torch.equal(torsions, geometry.dihedrals(x, rows[3:]))
    cosines = geometry.cosine_angles(
        geometry.displacements(x, rows[2:, :2]), geometry.displacements(x, rows[2:, 1:3])
    )
    torch.testing.assert_close(angles.cos(), cosines, rtol=0, atol=1e-12)
    assert (angles >= 0).all()


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_angles_near_pi_keep_their_digits_and_derivatives(gap: float) -> None:
    zmatrix = ZMatrix(3, [(0, -1, -1, -1), (1, 0, -1, -1), (2, 1, 0, -1)])
    x = torch.tensor(
        [[[0, 0, 0], [1, 0, 0], [1 + math.cos(gap), math.sin(gap), 0]]],
        dtype=torch.float64,
        requires_grad=True,
    )
    angle = zmatrix(x)[1].squeeze()
    assert math.pi - angle.item() == pytest.approx(gap, rel=1e-6)
    (gradient,) = torch.autograd.grad(angle, x)
    # Bead 2 closes the angle when it moves on across its bond, which has length 1.
    expected = torch.tensor([math.sin(gap), -math.cos(gap), 0.0], dtype=torch.float64)
    torch.testing.assert_close(gradient[0, 2], expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- the choice of references


@each_molecule
def test_bonds_are_bonds_and_references_are_their_neighbours(name: str) -> None:
    topology = MOLECULES[name]
    bonded = {frozenset(bond) for bond in topology.bonds}
    for i, j, k, m in ZMatrix.of(topology).rows:
        assert j < 0 or {i, j} in bonded
        assert k < 0 or {j, k} in bonded
        assert m < 0 or {j, m} in bonded or {k, m} in bonded


def test_chains_are_placed_from_their_middle() -> None:
    assert ZMatrix.of(chain(5)).rows == (
        (2, -1, -1, -1), (1, 2, -1, -1), (3, 2, 1, -1), (0, 1, 2, 3), (4, 3, 2, 1),
    )  # fmt: skip
    zmatrix = ZMatrix.of(chain(35))
    assert zmatrix.rows[0][0] == 17
    assert len(zmatrix._levels) == 16


def test_the_main_chain_has_the_torsions_and_branches_are_relative_to_it() -> None:
    topology = peptide(3)
    rows = {row[0]: row[1:] for row in ZMatrix.of(topology).rows}
    names = ZMatrix.of(topology).names(topology)
    # From residue 2's CA, bead 6, outwards: the ends are N of residue 1 and O of residue 3.
    assert rows[0] == (1, 3, 5)  # N-CA-C-N
    assert rows[2] == (1, 3, 0)  # CB, relative to N
    assert rows[13] == (11, 10, 8)  # C-CA-N-C
    assert rows[12] == (11, 10, 13)  # CB, relative to C
    assert rows[9] == (8, 6, 10)  # O, relative to the next N
    assert "torsion RES1-N RES2-CA RES4-C RES6-N" in names
    assert len(names) == len(set(names)) == sum(ZMatrix.of(topology).counts) == 3 * 15 - 6
    assert [name.split()[0] for name in names] == ["bond"] * 14 + ["angle"] * 13 + ["torsion"] * 12


def test_names_follow_the_order_of_the_coordinates() -> None:
    topology = chain(4)
    assert ZMatrix.of(topology).names(topology) == (
        "bond RES3-B2 RES2-B1",
        "bond RES1-B0 RES2-B1",
        "bond RES4-B3 RES3-B2",
        "angle RES1-B0 RES2-B1 RES3-B2",
        "angle RES4-B3 RES3-B2 RES2-B1",
        "torsion RES4-B3 RES3-B2 RES2-B1 RES1-B0",
    )


def test_torsions_past_the_middle_are_along_the_two_largest_arms() -> None:
    # Arms of one, three and two beads.
    topology = molecule(7, [(0, 1), (0, 2), (2, 3), (3, 4), (0, 5), (5, 6)])
    rows = {row[0]: row[1:] for row in ZMatrix.of(topology).rows}
    assert [rows[bead] for bead in (2, 5, 1)] == [(0, -1, -1), (0, 2, -1), (0, 2, 5)]
    assert [rows[bead] for bead in (3, 6, 4)] == [(2, 0, 5), (5, 0, 2), (3, 2, 0)]


@pytest.mark.parametrize(
    "rows",
    [
        # From one end on; the third bead is on the second.
        [(0, -1, -1, -1), (1, 0, -1, -1), (2, 1, 0, -1), (3, 2, 1, 0), (4, 3, 2, 1)],
        # Angles across no bonds.
        [(3, -1, -1, -1), (2, 3, -1, -1), (0, 3, 2, -1), (1, 0, 2, 3), (4, 1, 3, 0)],
    ],
)
def test_rows_of_ones_own(rows) -> None:
    zmatrix = ZMatrix(5, rows)
    given = shapes(zmatrix, 20)
    positions = zmatrix.inverse(*given)
    for bond, (i, j, *_) in zip(given[0].T, rows[1:], strict=True):
        assert torch.allclose((positions[:, i] - positions[:, j]).norm(dim=-1), bond)
    expected = turned_volume(zmatrix, [x[:1] for x in given], 1).item()
    found = zmatrix.log_volume(given[0][:1], given[1][:1]).item()
    assert found == pytest.approx(expected, abs=1e-10)
    for found, expected in zip(zmatrix(positions), given, strict=True):
        assert (found - expected).abs().lt(1e-10).all()


# ---------------------------------------------------------------- the volume element


def turned_volume(zmatrix: ZMatrix, given, seed: int) -> torch.Tensor:
    """ln |det| of orthonormal mean-free coordinates by internals and turns, plus ln of all turns.

    Turns are measured so that their whole volume is 8 pi^2: a rotation vector w has the density
    2 (1 - cos |w|) / |w|^2, whose integral over the ball of radius pi is that.
    """
    counts, basis = zmatrix.counts, helmert(zmatrix.beads)
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(3, generator=generator, dtype=torch.float64)

    def coordinates(inputs: torch.Tensor) -> torch.Tensor:
        *internals, turn = inputs.split([*counts, 3])
        positions = zmatrix.inverse(*(x.unsqueeze(0) for x in internals))[0]
        return (basis @ positions @ rotations(turn).T).flatten()

    inputs = torch.cat([*(x[0] for x in given), vector])
    jacobian = torch.autograd.functional.jacobian(coordinates, inputs)
    angle = vector.norm()
    density = 2 * (1 - angle.cos()) / angle**2
    return torch.linalg.slogdet(jacobian)[1] - density.log() + math.log(8 * math.pi**2)


def test_turns_of_the_test_have_the_whole_volume() -> None:
    angle = torch.linspace(0, math.pi, 20001, dtype=torch.float64)
    integral = torch.trapezoid(4 * math.pi * 2 * (1 - angle.cos()), angle).item()
    assert integral == pytest.approx(8 * math.pi**2, rel=1e-8)


@pytest.mark.parametrize("name", [n for n in MOLECULES if n != "two"])
def test_volume_is_the_determinant(name: str) -> None:
    zmatrix = ZMatrix.of(MOLECULES[name])
    for seed in range(2 if zmatrix.beads > 30 else 5):
        given = shapes(zmatrix, 1, seed=seed)
        expected = turned_volume(zmatrix, given, seed)
        assert zmatrix.log_volume(*given[:2]).item() == pytest.approx(expected.item(), abs=1e-10)


def test_volume_of_two_beads_is_the_determinant() -> None:
    zmatrix, basis = ZMatrix.of(chain(2)), helmert(2)

    def coordinates(inputs: torch.Tensor) -> torch.Tensor:
        bond, height, turn = inputs
        along = zmatrix.inverse(bond.view(1, 1), bond.new_zeros(1, 0), bond.new_zeros(1, 0))[0]
        wide = (1 - height**2).sqrt()
        direction = torch.stack([height, wide * turn.cos(), wide * turn.sin()])
        return (basis @ along[:, :1] * direction).flatten()

    inputs = torch.tensor([0.3, 0.4, 1.0], dtype=torch.float64)  # the sphere's measure is flat
    jacobian = torch.autograd.functional.jacobian(coordinates, inputs)
    expected = torch.linalg.slogdet(jacobian)[1] + math.log(4 * math.pi)
    found = zmatrix.log_volume(inputs[:1].view(1, 1), inputs.new_zeros(1, 0))
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)


def gauss_legendre(count: int, start: float, end: float) -> tuple[torch.Tensor, torch.Tensor]:
    points, weights = np.polynomial.legendre.leggauss(count)
    scale = (end - start) / 2
    return torch.tensor(start + scale * (points + 1)), torch.tensor(scale * weights)


@pytest.mark.parametrize("beads", [2, 3])
def test_a_gaussian_of_all_orientations_integrates_to_one(beads: int) -> None:
    zmatrix, width = ZMatrix.of(chain(beads)), 0.2
    bond = gauss_legendre(60, 0.0, 3.0)
    angle = gauss_legendre(60, 0.0, math.pi)
    axes = [bond] * (beads - 1) + [angle] * (beads - 2)
    points = torch.cartesian_prod(*(x for x, _ in axes)).view(-1, len(axes))
    weights = torch.cartesian_prod(*(w for _, w in axes)).view(-1, len(axes)).prod(1)
    bonds, angles = points.split([beads - 1, beads - 2], dim=1)
    positions = zmatrix.inverse(bonds, angles, points[:, :0])
    log_density = -positions.square().sum((1, 2)) / (2 * width**2)
    log_density = log_density - 1.5 * (beads - 1) * math.log(2 * math.pi * width**2)
    log_internal = log_density + zmatrix.log_volume(bonds, angles)
    assert (weights * log_internal.exp()).sum().item() == pytest.approx(1.0, abs=1e-10)


def test_densities_of_random_molecules_average_to_one() -> None:
    """Importance sampling of a Gaussian of four beads, through internal coordinates."""
    zmatrix, width, copies = ZMatrix.of(MOLECULES["four"]), 0.2, 40_000
    bonds, angles, torsions = shapes(zmatrix, copies, seed=4)
    bonds = bonds * 0 + 2 * (bonds - 0.1) / 0.3  # uniform to 2 nm: beyond is nothing
    angles = (angles - 0.3) * (math.pi / 2.5)
    positions = zmatrix.inverse(bonds, angles, torsions)
    log_gaussian = -positions.square().sum((1, 2)) / (2 * width**2)
    log_gaussian = log_gaussian - 4.5 * math.log(2 * math.pi * width**2)
    log_uniform = -3 * math.log(2) - 2 * math.log(math.pi) - math.log(2 * math.pi)
    ratio = (log_gaussian - (log_uniform - zmatrix.log_volume(bonds, angles))).exp()
    error = ratio.std().item() / math.sqrt(copies)
    assert error < 0.05
    assert abs(ratio.mean().item() - 1) < 3 * error


def test_volume_of_a_straight_angle_is_nothing_and_never_undefined() -> None:
    zmatrix = ZMatrix.of(chain(3))
    for dtype in (torch.float32, torch.float64):
        bonds = torch.full((2, 2), 0.3, dtype=dtype)
        angles = torch.tensor([[math.pi], [0.0]], dtype=dtype)
        volume = zmatrix.log_volume(bonds, angles)
        assert volume[0] < -15 and volume[1] == -math.inf


# ---------------------------------------------------------------- derivatives


@pytest.mark.parametrize("name", ["two", "three", "star", "tadpole"])
def test_first_and_second_derivatives(name: str) -> None:
    zmatrix = ZMatrix.of(MOLECULES[name])
    given = shapes(zmatrix, 1, seed=5)

    def log_density(positions: torch.Tensor) -> torch.Tensor:
        bonds, angles, torsions = zmatrix(positions)
        shape = bonds.sum(1) + angles.sin().sum(1) + torsions.cos().sum(1)
        return shape - zmatrix.log_volume(bonds, angles)

    positions = moved(zmatrix.inverse(*given)).requires_grad_()
    assert torch.autograd.gradcheck(log_density, positions)
    assert torch.autograd.gradgradcheck(log_density, positions)
    inputs = [x.clone().requires_grad_() for x in given if x.numel()]
    empty = list(given[len(inputs) :])
    assert torch.autograd.gradcheck(lambda *x: zmatrix.inverse(*x, *empty), inputs)


def test_forces_of_a_density_neither_push_nor_turn_the_molecule() -> None:
    zmatrix = ZMatrix.of(MOLECULES["peptide"])
    positions = zmatrix.inverse(*shapes(zmatrix, 10)).requires_grad_()
    bonds, angles, torsions = zmatrix(positions)
    value = torsions.sin().sum() - zmatrix.log_volume(bonds, angles).sum()
    (gradient,) = torch.autograd.grad(value, positions)
    scale = gradient.abs().max()
    assert gradient.sum(1).abs().max() < 1e-12 * scale
    assert torch.linalg.cross(positions.detach(), gradient).sum(1).abs().max() < 1e-12 * scale


# ---------------------------------------------------------------- refusals


def test_unconnected_parts_are_named() -> None:
    topology = molecule(6, [(0, 1), (2, 3), (3, 5)], chains="AABBCB")
    with pytest.raises(InputError) as error:
        ZMatrix.of(topology)
    assert "3 parts" in str(error.value)
    assert "RES1-B0 of chain A (beads: 2), RES3-B2 of chain B (beads: 3)" in str(error.value)
    assert "RES5-B4 of chain C (beads: 1)" in str(error.value)
    assert "train a flow for each molecule" in str(error.value)
    with pytest.raises(InputError, match="B3 of chain A .beads: 1. and 3 more;"):
        ZMatrix.of(molecule(7, []))


def test_one_bead_is_refused() -> None:
    with pytest.raises(InputError, match="1 bead has no internal coordinates"):
        ZMatrix.of(chain(1))


FIRST = [(0, -1, -1, -1), (1, 0, -1, -1), (2, 1, 0, -1)]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (FIRST, "3 rows for 4 beads"),
        ([*FIRST, (3, 2, 1, 1)], r"bead 3 by beads \[2, 1, 1\]"),
        ([*FIRST, (3, 2, 1, 3)], r"bead 3 by beads \[2, 1, 3\]"),
        ([*FIRST, (3, 2, 1, -1)], r"bead 3 by beads \[2, 1, -1\]"),
        ([*FIRST, (2, 1, 0, 3)], "places bead 2, which"),
        ([*FIRST, (4, 2, 1, 0)], "places bead 4, which"),
        ([*FIRST, (3, 2, 1)], r"row 3 is \(3, 2, 1\); give four numbers"),
        (
            [(0, -1, -1, -1), (1, 0, 2, -1), *FIRST[2:], (3, 2, 1, 0)],
            "a bead, the 1 to place",
        ),
        ([(0, -1, -1, -1), (1, 2, -1, -1), *FIRST[2:], (3, 2, 1, 0)], "have rows above"),
    ],
)
def test_rows_that_place_nothing_are_refused(rows, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        ZMatrix(4, rows)


def test_wrong_shapes_are_refused() -> None:
    zmatrix = ZMatrix.of(chain(4))
    bonds, angles, torsions = shapes(zmatrix, 3)
    with pytest.raises(InputError, match=r"\(3, 5, 3\), the z-matrix is of 4 beads"):
        zmatrix(torch.zeros(3, 5, 3))
    with pytest.raises(InputError, match=r"angles have shape \(3, 1\)"):
        zmatrix.inverse(bonds, torsions, angles)
    with pytest.raises(InputError, match=r"angles have shape \(2, 2\), but 3 copies"):
        zmatrix.log_volume(bonds, angles[:2])
    with pytest.raises(InputError, match="has 3 beads, the z-matrix 4"):
        zmatrix.names(chain(3))
