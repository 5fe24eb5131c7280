"""Observables of chains against mdtraj and against what is known exactly."""

import mdtraj
import numpy as np
import pytest

from openmm_cgml.errors import InputError
from openmm_cgml.observables import (
    NativeContacts,
    contact_map,
    molecule_of,
    pair_distances,
    radius_of_gyration,
    rmsd,
    whole,
)
from openmm_cgml.topology import CGTopology


@pytest.fixture
def frames():
    return np.random.default_rng(3).normal(size=(50, 7, 3))


def bead_trajectory(positions):
    topology = mdtraj.Topology()
    residue = topology.add_residue("GLY", topology.add_chain())
    for _ in range(positions.shape[1]):
        topology.add_atom("CA", mdtraj.element.carbon, residue)
    return mdtraj.Trajectory(positions, topology)


def hairpin(beads=8):
    """Two strands, 0.5 nm apart."""
    along = np.minimum(np.arange(beads), np.arange(beads)[::-1]) * 0.38
    across = np.where(np.arange(beads) < beads / 2, 0.0, 0.5)
    return np.stack([along, across, np.zeros(beads)], axis=1)


def test_rmsd_is_mdtrajs(frames):
    trajectory = bead_trajectory(frames)
    expected = mdtraj.rmsd(trajectory, trajectory, frame=4)
    np.testing.assert_allclose(rmsd(frames, frames[4]), expected, atol=2e-5)


def test_rmsd_of_moved_and_mirrored_frames(frames):
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    assert rmsd(frames @ turn + 5, frames[0])[0] < 1e-6
    assert rmsd(frames[:1] * [1, 1, -1], frames[0])[0] > 0.1


def test_rmsd_needs_the_same_beads(frames):
    with pytest.raises(InputError, match=r"the reference has shape \(6, 3\)"):
        rmsd(frames, frames[0, :6])


def test_radius_of_gyration_is_mdtrajs(frames):
    expected = mdtraj.compute_rg(bead_trajectory(frames))
    np.testing.assert_allclose(radius_of_gyration(frames), expected, rtol=2e-5)
    two = np.array([[[0, 0, 0], [4.0, 0, 0]]])
    # Centre at 1, squared distances 1 and 9 with weights 3/4 and 1/4.
    assert radius_of_gyration(two, [3, 1])[0] == pytest.approx(3**0.5)


def test_contact_map_is_weighted():
    near, far = np.zeros((1, 5, 3)), np.arange(5)[None, :, None] * np.ones((1, 5, 3))
    both = np.concatenate([near, far])
    found = contact_map(both, [1, 3], cutoff=0.5)
    assert found[0, 3] == found[3, 0] == pytest.approx(0.25)
    assert np.isnan(found[0, 2])
    assert pair_distances(far, 4)[0] == pytest.approx([4 * 3**0.5])


def test_native_contacts():
    native = hairpin()
    contacts = NativeContacts.of(native, cutoff=0.6)
    # Facing beads four or more apart; the next nearest are 0.63 nm away.
    assert {tuple(pair) for pair in contacts.pairs} == {(0, 7), (1, 6)}
    line = np.stack([np.arange(8) * 0.38, np.zeros(8), np.zeros(8)], axis=1)
    both = np.stack([native, line])
    folded, straight = contacts.fraction(both)
    assert folded > 0.98 and straight < 0.05
    own = contacts.by_bead(both)
    assert np.isnan(own[:, [2, 3, 4, 5]]).all()
    assert own[0, 0] > 0.98 > own[1, 0]


def test_folding_order_tells_what_folds_first():
    """Frames in which the ends meet only when all else has: their beads fold last."""
    native = hairpin(10)
    contacts = NativeContacts.of(native, cutoff=0.55)
    opened = native.copy()
    opened[:2] += [0, -2, 0]
    line = np.stack([np.arange(10) * 0.38, np.zeros(10), np.zeros(10)], axis=1)
    positions = np.stack([line, opened, native])
    centres, order = contacts.folding_order(positions, [1, 1, 1], bins=5)
    whole = contacts.fraction(positions)
    rows = np.minimum((whole * 5).astype(int), 4)
    assert list(rows) == sorted(set(rows))  # three bins
    assert order[rows[1], 0] < 0.05 and order[rows[1], 2] > 0.95
    assert np.isnan(order[~np.isin(np.arange(5), rows)]).all()
    assert centres == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])


def test_no_native_contacts():
    line = np.stack([np.arange(8) * 0.38, np.zeros(8), np.zeros(8)], axis=1)
    with pytest.raises(InputError, match=r"within 1.0 nm .*folded structure"):
        NativeContacts.of(line)


def test_contacts_of_another_molecule():
    contacts = NativeContacts.of(hairpin())
    with pytest.raises(InputError, match="frames have 10 beads, the contacts 8"):
        contacts.fraction(hairpin(10)[None])


def test_one_frame_needs_an_axis():
    with pytest.raises(InputError, match=r"give \(frames, beads, 3\)"):
        radius_of_gyration(hairpin())


def test_distances_and_contacts_across_the_border_of_a_box():
    box = np.array([[3.0, 0, 0], [0.9, 2.8, 0], [-0.6, 0.5, 2.6]])
    rng = np.random.default_rng(7)
    positions = 0.4 * rng.normal(size=(20, 6, 3)).clip(-1, 1)
    cut = positions + rng.integers(-2, 3, size=(20, 6, 3)) @ box
    np.testing.assert_allclose(pair_distances(cut, 2, box), pair_distances(positions, 2))
    boxes = np.tile(box, (20, 1, 1))
    np.testing.assert_allclose(pair_distances(cut, 2, boxes), pair_distances(positions, 2))
    np.testing.assert_array_equal(
        contact_map(cut, cutoff=0.5, box_vectors=box), contact_map(positions, cutoff=0.5)
    )
    native = NativeContacts.of(hairpin(), cutoff=0.7)
    moved = hairpin()[None] + rng.integers(-1, 2, size=(9, 8, 1)) * box[0]
    assert native.fraction(moved, box) == pytest.approx(native.fraction(hairpin()[None])[0])


def test_molecules_are_made_whole():
    """A ring and a pair, cut by a triclinic box that changes: sizes are those of whole ones."""
    topology = CGTopology(
        ("B",) * 7, ("B",) * 7, ("X",) * 7, tuple(range(7)), ("A",) * 7,
        ((0, 1), (1, 2), (2, 3), (3, 4), (0, 4), (5, 6)), (1.0,) * 7,
    )  # fmt: skip
    assert molecule_of(topology).tolist() == [0] * 5 + [1] * 2
    angle = 2 * np.pi * np.arange(5) / 5
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    once = np.concatenate([ring, [[4.0, 0, 0], [4.5, 0, 0]]])
    boxes = (
        np.array([[3.0, 0, 0], [0.9, 2.8, 0], [-0.6, 0.5, 2.6]])
        * np.linspace(1, 1.1, 12)[:, None, None]
    )
    shifts = np.random.default_rng(8).integers(-2, 3, size=(12, 7, 3))
    cut = once + np.einsum("nbi,nij->nbj", shifts, boxes)
    found = whole(cut, topology, boxes)
    assert radius_of_gyration(found[:, :5]) == pytest.approx(1.0)
    assert np.abs(found[:, 6] - found[:, 5] - [0.5, 0, 0]).max() < 1e-9
    # Only images changed.
    images = np.einsum("nbi,nij->nbj", found - cut, np.linalg.inv(boxes))
    assert np.abs(images - images.round()).max() < 1e-9
