"""Configuration-dependent force maps: fields without a mean, less noise, the same mean force."""

import math

import mdtraj
import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.mapping.constraints import constraint_groups, constraints_from_system
from openmm_cgml.mapping.core import Mapping
from openmm_cgml.mapping.kinds import molecule_kinds
from openmm_cgml.mapping.rotation import RigidMotions, RotationFit
from openmm_cgml.units import thermal_energy

KT = thermal_energy(300)


def topology(atoms: int, bonds: list[tuple[int, int]]) -> mdtraj.Topology:
    top = mdtraj.Topology()
    residue = top.add_residue("MOL", top.add_chain())
    made = [top.add_atom(f"C{k}", mdtraj.element.carbon, residue) for k in range(atoms)]
    for i, j in bonds:
        top.add_bond(made[i], made[j])
    return top


def motions(mapping: Mapping, constraints=()) -> RigidMotions:
    groups = constraint_groups(constraints, mapping.n_atoms)
    (kind,) = molecule_kinds(mapping, groups)
    return RigidMotions(mapping, kind, constraints)


def means(
    fields: RigidMotions, mapping: Mapping, positions: np.ndarray, forces: np.ndarray
) -> np.ndarray:
    """z-scores of each field, of each bead, along each bead step, times functions of the beads."""
    beads = mapping.map_positions(positions)
    steps = np.diff(beads, axis=1)
    lengths = np.linalg.norm(steps, axis=-1)
    ends = np.linalg.norm(beads[:, 0] - beads[:, -1], axis=-1)
    values = fields.evaluate(positions, forces)  # one molecule, so frames are samples
    found = []
    for bead in range(beads.shape[1]):
        columns = fields.columns(values, bead).reshape(len(positions), 3, -1)
        for step in range(steps.shape[1]):
            along = np.einsum("nxf,nx->nf", columns, steps[:, step])
            for weight in (np.ones_like(ends), ends - ends.mean(), np.cos(20 * lengths[:, step])):
                samples = along * weight[:, None]
                error = samples.std(axis=0) / math.sqrt(len(samples))
                moving = error > 1e-9 * np.abs(forces).max()
                found.append((samples.mean(axis=0) / np.where(moving, error, np.inf))[moving])
    return np.concatenate(found)


@pytest.fixture(scope="module")
def chain() -> tuple[Mapping, np.ndarray, np.ndarray]:
    """Exact samples of a harmonic chain of nine atoms, five of them beads."""
    atoms, frames = 9, 20_000
    springs = {(k, k + 1): 300.0 + 100.0 * k for k in range(atoms - 1)}
    springs |= {(0, 4): 150.0, (2, 6): 90.0, (3, 8): 60.0, (1, 5): 200.0}
    hessian = np.zeros((atoms, atoms))
    for (i, j), k in springs.items():
        hessian[[i, j], [i, j]] += k
        hessian[[i, j], [j, i]] -= k
    values, vectors = np.linalg.eigh(hessian)
    rng = np.random.default_rng(11)
    modes = rng.standard_normal((frames, atoms - 1, 3)) * np.sqrt(KT / values[1:, None])
    positions = np.einsum("am,fmx->fax", vectors[:, 1:], modes)
    forces = -np.einsum("ab,fbx->fax", hessian, positions)
    top = topology(atoms, [(k, k + 1) for k in range(atoms - 1)])
    return cgml.slice_mapping(top, [0, 2, 4, 6, 8]), positions, forces


def test_fields_have_no_mean_at_fixed_beads(chain) -> None:
    mapping, positions, forces = chain
    fields = motions(mapping)
    assert {how for _, _, how in fields.motions} == {"slide", "turn"}
    z = means(fields, mapping, positions, forces)
    assert len(z) > 500
    assert np.abs(z).max() < 4.5, np.sort(np.abs(z))[-5:]  # p = 7e-6 each
    assert 0.8 < z.std() < 1.2


def test_an_axis_through_an_atom_that_moves_has_a_mean(chain) -> None:
    """Negative control: sliding along a direction to the moving atom itself changes volumes."""
    mapping, positions, forces = chain
    away = positions[:, 1] - positions[:, 0]
    power = (away * forces[:, 1]).sum(-1)
    # < d . f > = -kT div d = -3 kT
    error = power.std() / math.sqrt(len(power))
    assert abs(power.mean()) > 20 * error and abs(power.mean() + 3 * KT) < 4 * error


@pytest.fixture(scope="module")
def satellite() -> tuple[Mapping, np.ndarray, np.ndarray]:
    """Bead x with a satellite h at a fixed distance, springs from h to beads y, z and from y to u.

    The satellite turns about x: the group {x, h} is one body that contains a bead.
    """
    rng = np.random.default_rng(5)
    frames, kappas = 100_000, (900.0, 400.0, 700.0)
    noise = [math.sqrt(KT / k) * rng.standard_normal((frames, 3)) for k in kappas]
    h = rng.standard_normal((frames, 3))
    h *= 0.1 / np.linalg.norm(h, axis=1, keepdims=True)
    y, z = h + noise[0], h + noise[1]
    u = y + noise[2]
    positions = np.stack([np.zeros_like(h), h, y, z, u], axis=1)
    forces = np.zeros_like(positions)
    for (i, j), k, step in zip([(1, 2), (1, 3), (2, 4)], kappas, noise, strict=True):
        forces[:, i] += k * step
        forces[:, j] -= k * step
    top = topology(5, [(0, 1), (0, 2), (2, 3), (2, 4)])
    return cgml.slice_mapping(top, [0, 2, 3, 4]), positions, forces


def test_a_constrained_group_turns_about_its_bead(satellite) -> None:
    mapping, positions, forces = satellite
    fields = motions(mapping, [(0, 1)])
    assert {how for _, _, how in fields.motions} == {"spin"}
    z = means(fields, mapping, positions, forces)
    assert len(z) > 50
    assert np.abs(z).max() < 4.5, np.sort(np.abs(z))[-5:]
    # Without the constraint the satellite may not be turned alone: it is free, and turns.
    free = motions(mapping)
    assert {how for _, _, how in free.motions} == {"slide", "turn"}
    assert np.abs(means(free, mapping, positions, forces)).max() > 20


def fit(mapping: Mapping, constraints, positions, forces) -> tuple:
    maps = []
    for name in ("basic", "optimal", "rotation"):
        maker = cgml.FORCE_MAPS[name](mapping, constraints)
        for start in range(0, len(forces), 700):
            maker.add(forces[start : start + 700], positions[start : start + 700])
        maps.append(maker.fit(in_sample=False))
    return tuple(maps)


def test_all_maps_have_one_mean_force_and_rotation_has_the_least_noise(satellite) -> None:
    mapping, positions, forces = satellite
    half = len(positions) // 2
    maps = fit(mapping, [(0, 1)], positions[:half], forces[:half])
    held = slice(half, None)
    mapped = [m.map_forces(forces[held], positions[held]) for m in maps]
    squares = [float((f**2).mean()) for f in mapped]
    assert squares[2] < 0.97 * squares[1] <= 0.97 * squares[0]
    assert maps[2].mean_square == pytest.approx(squares[2], rel=0.03)
    beads = mapping.map_positions(positions[held])
    steps = beads[:, None] - beads[:, :, None]
    worst = []
    for one in mapped[:2]:
        difference = mapped[2] - one
        for i in range(4):
            for j in range(4):
                along = (difference * steps[:, i, j][:, None]).sum(-1)
                for weight in (1.0, np.linalg.norm(steps[:, i, j], axis=-1)[:, None]):
                    samples = along * weight
                    worst.append(samples.mean(0) / (samples.std(0) / math.sqrt(half) + 1e-12))
    z = np.array(worst)
    assert np.abs(z).max() < 4.5, np.sort(np.abs(z).ravel())[-5:]  # 256 comparisons


def test_rotation_of_everything_turns_the_forces(satellite) -> None:
    mapping, positions, forces = satellite
    rotation = fit(mapping, [(0, 1)], positions[:2000], forces[:2000])[2]
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    turn *= np.linalg.det(turn)
    part = slice(0, 50)
    moved = rotation.map_forces(forces[part] @ turn.T, positions[part] @ turn.T + 1.5)
    assert np.allclose(moved, rotation.map_forces(forces[part], positions[part]) @ turn.T)


def test_shipped_data_keep_their_mean_force_and_lose_torque_noise(trajectory, data) -> None:
    mapping = cgml.MAPPINGS["backbone"](trajectory.topology)
    constraints = constraints_from_system(data / "system.xml")
    frames = [f for f in trajectory.chunks(2000)]
    positions = np.concatenate([f.positions for f in frames])
    forces = np.concatenate([f.forces for f in frames])
    half = len(forces) // 2
    maps = fit(mapping, constraints, positions[:half], forces[:half])
    held = slice(half, None)
    beads = mapping.map_positions(positions[held])
    axis = beads[:, 2] - beads[:, 1]
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    lever = np.cross(axis[:, None], beads[:, 3:] - beads[:, [2]])
    torques = [
        (lever * m.map_forces(forces[held], positions[held])[:, 3:]).sum((-1, -2)) / KT
        for m in maps
    ]
    basic, optimal, rotation = (t.std() for t in torques)
    # 61, 27 and 13 kT/rad, of which about 11 are the mean force itself.
    assert optimal < 0.5 * basic and rotation < 0.6 * optimal
    for other in torques[:2]:
        blocks = (other - torques[2]).reshape(20, -1).mean(axis=1)
        assert abs(blocks.mean()) < 4 * blocks.std(ddof=1) / math.sqrt(20)


def test_few_frames_leave_the_optimal_map(chain) -> None:
    mapping, positions, forces = chain
    maker = RotationFit(mapping, ())
    with pytest.raises(cgml.InputError, match="fitted to forces"):
        maker.fit()
    maker.add(forces[:5], positions[:5])
    assert np.isfinite(maker.fit().map_forces(forces[:9], positions[:9])).all()
    with pytest.raises(cgml.InputError, match="needs the positions"):
        maker.fit().map_forces(forces[:9])


def test_a_map_without_chemical_bonds_between_beads_is_the_optimal_one() -> None:
    top = topology(4, [(0, 1), (2, 3)])
    mapping = cgml.slice_mapping(top, [0, 2])
    rng = np.random.default_rng(1)
    forces, positions = rng.standard_normal((2, 900, 4, 3))
    _, optimal, rotation = fit(mapping, (), positions, forces)
    assert np.allclose(
        rotation.map_forces(forces, positions), optimal.map_forces(forces), atol=0.2
    )


def test_collinear_beads_give_finite_forces(chain) -> None:
    mapping, positions, forces = chain
    rotation = fit(mapping, (), positions[:2000], forces[:2000])[2]
    straight = np.zeros((1, 9, 3))
    straight[0, :, 0] = np.arange(9) * 0.1
    assert np.isfinite(rotation.map_forces(forces[:1], straight)).all()


def test_few_frames_do_not_lose_their_mean_force(chain) -> None:
    """Fitted to and used on the same frames, many coefficients would fit the forces away."""
    mapping, positions, forces = chain
    maker = RotationFit(mapping, ())
    maker.add(forces[:60], positions[:60])
    free, held = maker.fit(in_sample=False), maker.fit()
    assert held.ridge is None or held.ridge > (free.ridge or 0)
    for fitted, row in zip(held.coefficients[0], free.coefficients[0], strict=True):
        assert np.abs(fitted).sum() <= np.abs(row).sum() + 1e-12


def test_large_molecules_move_less_and_in_the_end_nothing(chain) -> None:
    """The moments of the fields stay within the memory given."""
    mapping, positions, forces = chain
    (kind,) = molecule_kinds(mapping, constraint_groups((), mapping.n_atoms))
    full = motions(mapping)
    size = sum(a * b for a, b in full.shapes())
    less = RigidMotions(mapping, kind, (), room=size // 2)
    assert 0 < sum(a * b for a, b in less.shapes()) <= size // 2
    assert 0 < less.most < full.most
    assert np.abs(means(less, mapping, positions, forces)).max() < 4.5
    with pytest.warns(UserWarning, match="5 beads is too large .* optimal constant one"):
        none = RigidMotions(mapping, kind, (), room=1)
    assert none.most == 0 and not none.motions


def test_parts_of_a_stream_do_not_change_the_map(chain, monkeypatch) -> None:
    mapping, positions, forces = chain
    whole = fit(mapping, (), positions[:1500], forces[:1500])[2]
    monkeypatch.setattr("openmm_cgml.mapping.rotation._NUMBERS", 50_000)  # a few samples at a time
    parts = fit(mapping, (), positions[:1500], forces[:1500])[2]
    expected = whole.map_forces(forces[:200], positions[:200])
    assert np.allclose(parts.map_forces(forces[:200], positions[:200]), expected, rtol=1e-6)
