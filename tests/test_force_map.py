"""Force maps on systems with exact answers, and on the shipped data."""

import math

import mdtraj
import numpy as np
import pytest
import scipy.sparse

import openmm_cgml as cgml
from openmm_cgml.mapping.constraints import ConstraintFinder, constraints_from_system
from openmm_cgml.mapping.core import Mapping
from openmm_cgml.mapping.force_map import (
    ForceGram,
    ForceMap,
    basic_force_map,
    check_force_map,
    optimal_force_map,
)
from openmm_cgml.units import thermal_energy

KT = thermal_energy(300)


def chain_topology(atoms: int) -> mdtraj.Topology:
    top = mdtraj.Topology()
    residue = top.add_residue("MOL", top.add_chain())
    made = [top.add_atom(f"C{k}", mdtraj.element.carbon, residue) for k in range(atoms)]
    for a, b in zip(made, made[1:], strict=False):
        top.add_bond(a, b)
    return top


# ---------------------------------------------------------------- Gaussian chain


@pytest.fixture(scope="module")
def gaussian_chain() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact samples of a harmonic chain of eight atoms: Hessian, positions, forces."""
    atoms, frames = 8, 20_000
    springs = {(k, k + 1): 200.0 + 150.0 * k for k in range(atoms - 1)}
    springs |= {(0, 3): 90.0, (2, 7): 60.0, (4, 6): 120.0}
    hessian = np.zeros((atoms, atoms))
    for (i, j), k in springs.items():
        hessian[[i, j], [i, j]] += k
        hessian[[i, j], [j, i]] -= k
    values, vectors = np.linalg.eigh(hessian)
    rng = np.random.default_rng(7)
    modes = rng.standard_normal((frames, atoms - 1, 3)) * np.sqrt(KT / values[1:, None])
    positions = np.einsum("am,fmx->fax", vectors[:, 1:], modes)
    forces = -np.einsum("ab,fbx->fax", hessian, positions)
    return hessian, positions, forces


def exact_hessian(hessian: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Hessian of the PMF of the beads: the inverse of their covariance, without translations."""
    covariance = matrix @ np.linalg.pinv(hessian) @ matrix.T
    beads = len(matrix)
    centre = np.eye(beads) - np.ones((beads, beads)) / beads
    return np.linalg.pinv(centre @ covariance @ centre)


SLICE = np.eye(8)[[0, 2, 5, 7]]
COM = scipy.linalg.block_diag([[1 / 3] * 3], [[0.5] * 2], [[1 / 3] * 3])
#: neighbouring beads share atoms 2 and 5; only the optimal map is defined
SHARED = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]])


@pytest.mark.parametrize(
    ("matrix", "kind"),
    [
        (SLICE, "basic"),
        (SLICE, "optimal"),
        (COM, "basic"),
        (COM, "optimal"),
        (SHARED / SHARED.sum(1, keepdims=True), "optimal"),
    ],
    ids=["slice-basic", "slice-optimal", "com-basic", "com-optimal", "shared-optimal"],
)
def test_gaussian_chain_pmf_is_recovered(gaussian_chain, matrix, kind) -> None:
    """Force matching of a linear force gives the exact PMF's Hessian, every element z < 4."""
    hessian, positions, forces = gaussian_chain
    mapping = make_mapping(matrix)
    gram = ForceGram(mapping, ())
    gram.add(forces)
    force_map = (
        optimal_force_map(mapping, (), gram) if kind == "optimal" else basic_force_map(mapping)
    )
    beads = mapping.map_positions(positions)
    mapped = force_map.map_forces(forces)
    # Bond vectors as coordinates: the beads' own are linearly dependent up to translations.
    steps = np.diff(beads, axis=1)
    x = steps.transpose(0, 2, 1).reshape(-1, steps.shape[1])
    y = mapped.transpose(0, 2, 1).reshape(-1, mapped.shape[1])
    fitted, residual, *_ = np.linalg.lstsq(x, y, rcond=None)
    exact = -exact_hessian(hessian, matrix)
    # F = -K R with R = cumulative steps: column k gets all beads right of step k.
    expected = np.stack([exact[:, k + 1 :].sum(1) for k in range(len(matrix) - 1)])
    noise = y - x @ fitted
    errors = np.sqrt(
        np.outer(np.diag(np.linalg.inv(x.T @ x)), noise.var(axis=0))
    )  # (steps, beads); frames and axes are independent
    z = (fitted - expected) / np.maximum(errors, 1e-9 * np.abs(expected).max())
    assert np.abs(z).max() < 4, z  # at most 12 comparisons, p = 8e-4


def test_optimal_map_of_a_gaussian_chain_has_the_least_noise(gaussian_chain) -> None:
    hessian, positions, forces = gaussian_chain
    mapping = make_mapping(SLICE)
    gram = ForceGram(mapping, ())
    gram.add(forces)
    optimal = optimal_force_map(mapping, (), gram)
    basic = basic_force_map(mapping)
    # With a linear force field the optimal map removes the noise altogether: the mean force of
    # the beads is a constant combination of the atoms' forces, B = -K_eff M H^+.
    exact = exact_hessian(hessian, SLICE) @ SLICE @ np.linalg.pinv(hessian)
    assert np.abs(optimal.matrix.toarray() - optimal.matrix.toarray().mean(1, keepdims=True)
                  - exact + exact.mean(1, keepdims=True)).max() < 0.02  # fmt: skip
    squares = [(m.map_forces(forces) ** 2).mean() for m in (basic, optimal)]
    assert squares[1] < 0.9 * squares[0]
    assert optimal.mean_square == pytest.approx(squares[1], rel=0.02)
    assert optimal.compared["basic"] == pytest.approx(squares[0], rel=1e-9)


def test_inconsistent_map_is_refused_with_the_beads_named(gaussian_chain) -> None:
    _, positions, forces = gaussian_chain
    mapping = make_mapping(SLICE)
    wrong = basic_force_map(mapping).matrix.toarray()
    wrong[1, 5] = 0.5  # bead 1 takes half of bead 2's force
    with pytest.raises(cgml.InputError, match="bead MOL0-C2 moves bead MOL0-C5 by 0.5"):
        check_force_map(mapping, wrong)
    trajectory = cgml.read_trajectory(positions[:50], top=chain_topology(8), forces=forces[:50])
    with pytest.raises(cgml.InputError, match="inconsistent"):
        cgml.map_trajectory(
            trajectory, mapping, temperature=300, force_map=ForceMap("mine", wrong, ())
        )


def make_mapping(matrix: np.ndarray) -> Mapping:
    from openmm_cgml.mapping.core import group_mapping

    top = chain_topology(matrix.shape[1])
    groups = [np.flatnonzero(row).tolist() for row in matrix]
    weights = [row[row != 0].tolist() for row in matrix]
    return group_mapping(top, groups, weights)


# ---------------------------------------------------------------- rigid bond


@pytest.fixture(scope="module")
def rigid_satellite() -> dict[str, np.ndarray]:
    """Bead x, satellite h at a fixed distance b from it, spring kappa from h to bead y.

    W(rho) = kappa rho^2 / 2 - kT ln(sinh(a) / a), a = beta kappa b rho, rho = |x - y|.
    """
    rng = np.random.default_rng(3)
    frames, b, kappa = 200_000, 0.1, 900.0
    direction = rng.standard_normal((frames, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    h = b * direction
    y = h + math.sqrt(KT / kappa) * rng.standard_normal((frames, 3))
    positions = np.stack([np.zeros_like(h), h, y], axis=1)
    spring = -kappa * (h - y)
    forces = np.stack([np.zeros_like(spring), spring, -spring], axis=1)
    return {"positions": positions, "forces": forces, "b": b, "kappa": kappa}


def satellite_mapping() -> Mapping:
    return cgml.slice_mapping(chain_topology(3), [0, 2])


def mean_force_z(case: dict, force_map: ForceMap, bead: int) -> np.ndarray:
    """z-scores of the binned radial force on a bead against -dW/drho."""
    positions, forces = case["positions"], case["forces"]
    beads = satellite_mapping().map_positions(positions)
    mapped = force_map.map_forces(forces)[:, bead]
    separation = beads[:, bead] - beads[:, 1 - bead]
    rho = np.linalg.norm(separation, axis=1)
    radial = (mapped * separation).sum(1) / rho
    a = case["kappa"] * case["b"] * rho / KT
    slope = case["kappa"] * rho - case["kappa"] * case["b"] * (1 / np.tanh(a) - 1 / a)
    error = radial + slope  # zero on average in every bin if the map is right
    bins = np.digitize(rho, np.quantile(rho, np.linspace(0, 1, 13)[1:-1]))
    groups = [error[bins == k] for k in range(12)]
    return np.array([g.mean() / (g.std() / math.sqrt(len(g))) for g in groups])


@pytest.mark.parametrize("kind", ["basic", "optimal"])
def test_rigid_bond_mean_force_is_exact_with_the_satellites_force(rigid_satellite, kind) -> None:
    mapping = satellite_mapping()
    gram = ForceGram(mapping, [(0, 1)])
    gram.add(rigid_satellite["forces"])
    force_map = (
        optimal_force_map(mapping, [(0, 1)], gram)
        if kind == "optimal"
        else basic_force_map(mapping, [(0, 1)])
    )
    assert force_map.constraint_groups == ((0, 1), (2,))
    for bead in (0, 1):
        z = mean_force_z(rigid_satellite, force_map, bead)
        assert np.abs(z).max() < 4, z  # 24 comparisons, p = 1.5e-3


def test_rigid_bond_force_on_the_kept_atom_alone_is_wrong_and_refused(rigid_satellite) -> None:
    alone = ForceMap("slice", scipy.sparse.csr_array(np.eye(3)[[0, 2]]), ())
    assert np.abs(mean_force_z(rigid_satellite, alone, 0)).max() > 50
    with pytest.raises(cgml.InputError, match="ignores the constraint MOL0-C0-MOL0-C1"):
        check_force_map(satellite_mapping(), alone.matrix, [(0, 1)])


def test_rigid_bond_is_found_in_the_data_and_used(rigid_satellite) -> None:
    trajectory = cgml.read_trajectory(
        rigid_satellite["positions"][:2000],
        top=chain_topology(3),
        forces=rigid_satellite["forces"][:2000],
    )
    dataset = cgml.map_trajectory(trajectory, satellite_mapping(), temperature=300)
    assert dataset.mapping["force_map"]["constraint_groups"] == [[0, 1]]
    spring = rigid_satellite["forces"][:2000, 1]
    assert np.allclose(dataset.forces[:, 0], spring, atol=1e-3)


def test_constraint_between_two_beads_leaves_no_constant_map() -> None:
    mapping = cgml.slice_mapping(chain_topology(3), [0, 1])
    gram = ForceGram(mapping, [(0, 1)])
    gram.add(np.random.default_rng(0).standard_normal((100, 3, 3)))
    with pytest.raises(cgml.InputError, match="tie beads MOL0-C[01] and MOL0-C[01]"):
        basic_force_map(mapping, [(0, 1)])
    with pytest.raises(cgml.InputError, match="tie beads MOL0-C[01] and MOL0-C[01]"):
        optimal_force_map(mapping, [(0, 1)], gram)


# ---------------------------------------------------------------- the shipped data


def test_constraints_found_in_the_data_are_those_of_the_system(trajectory, data) -> None:
    from openmm_cgml.mapping.core import bonded_neighbours

    finder = ConstraintFinder(bonded_neighbours(trajectory.topology))
    for frames in trajectory.chunks(700):
        finder.add(frames.positions)
    expected = {tuple(sorted(p)) for p in constraints_from_system(data / "system.xml")}
    assert len(expected) == 12
    assert set(finder.constraints()) == expected


def test_constraints_from_a_system_object_equal_those_from_its_xml(data) -> None:
    import openmm

    system = openmm.XmlSerializer.deserialize((data / "system.xml").read_text())
    assert constraints_from_system(system) == constraints_from_system(data / "system.xml")


def test_optimal_map_cuts_the_noise_of_the_shipped_data(trajectory) -> None:
    """Both maps have one mean force; what the mean squares differ by is noise."""
    mapping = cgml.MAPPINGS["backbone"](trajectory.topology)
    dataset = cgml.map_trajectory(trajectory, mapping, temperature=300, force_map="optimal")
    basic = cgml.map_trajectory(trajectory, mapping, temperature=300, force_map="basic")
    ratio = (basic.forces.astype(float) ** 2).mean() / (dataset.forces.astype(float) ** 2).mean()
    assert 1.5 < ratio < 1.8  # 1065^2 / 828^2 on all frames
    difference = basic.forces.astype(float) - dataset.forces
    # The difference is pure noise: uncorrelated with the optimal map's forces.
    cross = (difference * dataset.forces).mean() / (dataset.forces.astype(float) ** 2).mean()
    assert abs(cross) < 0.05


def test_force_statistics_stay_small_however_many_frames_come(trajectory) -> None:
    """Blocks are joined, contiguous and cover every frame; the sum is that of one pass."""
    mapping = cgml.MAPPINGS["backbone"](trajectory.topology)
    gram = ForceGram(mapping, (), block_frames=3)
    forces = np.concatenate([f.forces for f in trajectory.chunks(2000)])
    for start in range(0, len(forces), 37):
        gram.add(forces[start : start + 37])
    sums = gram.sums
    assert len(sums.blocks) <= sums.max_blocks and sum(sums.frames) == len(forces)
    assert len(set(sums.frames[:-1])) == 1
    flat = forces.transpose(1, 0, 2).reshape(22, -1)
    assert np.allclose(sums.total()[0], flat @ flat.T, rtol=1e-9)
    for kept, held in sums.folds():
        assert np.allclose(kept[0] + held[0], flat @ flat.T, rtol=1e-9)


def test_identical_molecules_share_their_rows_and_solvent_has_none() -> None:
    """Two equal chains, one other and a lone atom: three chains with beads, of two kinds."""
    top = mdtraj.Topology()
    for residue, size in (("CHA", 4), ("SOL", 1), ("CHA", 4), ("CHB", 3)):
        home = top.add_residue(residue, top.add_chain())
        atoms = [top.add_atom(f"C{k}", mdtraj.element.carbon, home) for k in range(size)]
        for a, b in zip(atoms, atoms[1:], strict=False):
            top.add_bond(a, b)
    mapping = cgml.slice_mapping(top, [0, 3, 5, 8, 9, 11])
    gram = ForceGram(mapping, ())
    assert [kind.atoms.tolist() for kind in gram.kinds] == [
        [[0, 1, 2, 3], [5, 6, 7, 8]],
        [[9, 10, 11]],
    ]
    assert [kind.beads.tolist() for kind in gram.kinds] == [[[0, 1], [2, 3]], [[4, 5]]]
    gram.add(np.random.default_rng(0).standard_normal((600, 12, 3)))
    rows = optimal_force_map(mapping, (), gram).matrix.toarray()
    assert np.array_equal(rows[:2, :4], rows[2:4, 5:9])
    assert not rows[:, 4].any() and not rows[:2, 5:].any() and not rows[4:, :9].any()
    assert np.allclose(rows @ mapping.matrix.toarray().T, np.eye(6))


def test_streaming_does_not_change_the_optimal_map(trajectory) -> None:
    mapping = cgml.MAPPINGS["backbone"](trajectory.topology)
    whole, pieces = ForceGram(mapping, ()), ForceGram(mapping, ())
    whole.add(np.concatenate([f.forces for f in trajectory.chunks(2000)]))
    for frames in trajectory.chunks(500):
        pieces.add(frames.forces)
    first = optimal_force_map(mapping, (), whole).matrix.toarray()
    second = optimal_force_map(mapping, (), pieces).matrix.toarray()
    assert np.allclose(first, second, atol=1e-9)
