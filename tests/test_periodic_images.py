"""Molecules cut by periodic boundaries are made whole, exactly, before they are mapped."""

import mdtraj
import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.mapping.core import com_mapping, slice_mapping
from openmm_cgml.periodic import (
    WholeMolecules,
    box_edges,
    box_vectors,
    reduced_boxes,
    require_boxes,
)

FRAMES = 40
ROOT = np.sqrt(2)
SIDE = 2.4
BOXES = {
    "cubic": SIDE * np.eye(3),
    "orthorhombic": np.diag([1.9, 2.6, 3.3]),
    "triclinic": np.array([[2.5, 0, 0], [0.8, 2.3, 0], [-1.1, 0.6, 2.2]]),
    "truncated octahedron": SIDE
    * np.array([[1, 0, 0], [1 / 3, 2 * ROOT / 3, 0], [-1 / 3, ROOT / 3, np.sqrt(6) / 3]]),
    "rhombic dodecahedron": SIDE * np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, ROOT / 2]]),
    # As other programs write them: the same lattice by vectors that are not the shortest.
    "not reduced": np.array([[2.5, 0, 0], [0.8 + 5.0, 2.3, 0], [-1.1 - 2.5, 0.6 + 4.6, 2.2]]),
}
# Turned in space, so that it is no lower triangle.
TURN = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))[0]
BOXES["turned"] = BOXES["triclinic"] @ (TURN * np.sign(np.linalg.det(TURN)))


def topology(atoms: int, bonds: list[tuple[int, int]], residue: int = 5) -> mdtraj.Topology:
    """One chain of carbon atoms."""
    top = mdtraj.Topology()
    chain = top.add_chain()
    for a in range(atoms):
        if a % residue == 0:
            group = top.add_residue("MOL", chain, resSeq=a // residue + 1)
        top.add_atom(f"C{a % residue + 1}", mdtraj.element.carbon, group)
    for i, j in bonds:
        top.add_bond(top.atom(i), top.atom(j))
    return top


def chain_bonds(first: int, last: int) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(first, last - 1)]


#: A ring of six with a branched tail, a chain that is longer than the box, and a lone atom.
BONDS = [*chain_bonds(0, 6), (0, 5), (5, 6), (6, 7), (6, 8), (8, 9), *chain_bonds(10, 45)]
ATOMS = 46


@pytest.fixture(scope="module")
def top() -> mdtraj.Topology:
    return topology(ATOMS, BONDS)


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    """Positions of whole molecules, their bonds 0.12 to 0.18 nm long."""
    generator = np.random.default_rng(0)
    angle = np.arange(6) * np.pi / 3
    ring = 0.15 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    tail = ring[5] + np.cumsum([[0.1, -0.1, 0], [0.1, 0, 0.1], [-0.1, 0, 0.1], [0, 0.1, 0.1]], 0)
    tail[2] = tail[0] + [0.0, -0.1, 0.1]  # the branch: atom 8 hangs on atom 6
    tail[3] = tail[2] + [0.1, -0.1, 0.0]
    chain = 0.3 + np.cumsum(np.tile([0.13, 0.06, 0.02], (35, 1)), axis=0)
    positions = np.concatenate([ring, tail, chain, [[1.0, 0.2, 0.3]]])
    return positions + generator.uniform(-0.01, 0.01, (FRAMES, ATOMS, 3))


def cut(positions: np.ndarray, box: np.ndarray, seed: int = 1) -> np.ndarray:
    """Shift every atom by box vectors of its own; the first frame stays whole."""
    counts = np.random.default_rng(seed).integers(-2, 3, positions.shape)
    counts[0] = 0
    return positions + counts @ box


def bond_vectors(positions: np.ndarray) -> np.ndarray:
    first, second = np.array(BONDS).T
    return positions[:, second] - positions[:, first]


def read(positions, top, box) -> "cgml.trajectory.Trajectory":
    """A trajectory with box vectors exactly as given (mdtraj's own would turn them)."""
    from dataclasses import replace

    source = cgml.read_trajectory(positions, top=top)
    (held,) = source._sources
    vectors = np.broadcast_to(box, (len(positions), 3, 3))
    return replace(source, _sources=(replace(held, beside={"box": vectors}),))


# ---------------------------------------------------------------- exactly whole


@pytest.mark.parametrize("name", BOXES)
def test_bond_vectors_and_centres_are_the_original_ones(top, whole, name) -> None:
    box = BOXES[name]
    torn = cut(whole, box)
    kept = torn.copy()
    found = WholeMolecules(top).make_whole(torn, box)
    np.testing.assert_array_equal(torn, kept)  # the argument is not written to
    assert np.abs(bond_vectors(torn)).max() > 1
    np.testing.assert_allclose(bond_vectors(found), bond_vectors(whole), atol=1e-6)
    # The centres of the molecules are at images of the original ones.
    for molecule in (slice(0, 10), slice(10, 45), slice(45, 46)):
        moved = (found[:, molecule].mean(1) - whole[:, molecule].mean(1)) @ np.linalg.inv(box)
        np.testing.assert_allclose(moved, np.round(moved), atol=1e-6)
    # First atoms and lone ones stay; a whole frame is the same to the bit.
    np.testing.assert_array_equal(found[:, [0, 10, 45]], torn[:, [0, 10, 45]])
    np.testing.assert_array_equal(found[0], torn[0])


def test_every_frame_has_its_own_box(top, whole) -> None:
    """NPT; more frames than are looked at in one go, most of them whole."""
    boxes = BOXES["triclinic"] * (1 + 0.2 * np.random.default_rng(3).random((2000, 1, 1)))
    many = np.tile(whole, (50, 1, 1))
    torn = many.copy()
    torn[::7] = cut(many, boxes)[::7]
    found = WholeMolecules(top).make_whole(torn, boxes)
    np.testing.assert_allclose(bond_vectors(found), bond_vectors(many), atol=1e-6)
    untouched = np.arange(2000) % 7 > 0
    np.testing.assert_array_equal(found[untouched], many[untouched])


@pytest.mark.parametrize("name", BOXES)
def test_float32_stays_float32(top, whole, name) -> None:
    torn = cut(whole, BOXES[name]).astype(np.float32)
    found = WholeMolecules(top).make_whole(torn, BOXES[name])
    assert found.dtype == np.float32
    np.testing.assert_allclose(bond_vectors(found), bond_vectors(whole), atol=4e-6)


def test_whole_molecules_are_not_copied(top, whole) -> None:
    """Also one that is longer than the box is wide."""
    assert np.ptp(whole[0, 10:45], axis=0).max() > SIDE
    assert WholeMolecules(top).make_whole(whole, BOXES["cubic"]) is whole
    empty = WholeMolecules(topology(4, []))
    assert empty.make_whole(whole[:, :4], BOXES["cubic"]).shape == (FRAMES, 4, 3)


@pytest.mark.parametrize("name", [n for n in BOXES if n not in ("not reduced", "turned")])
def test_as_mdtraj_does(top, whole, name) -> None:
    """mdtraj walks bonds by atom number, so it may choose other images of whole molecules."""
    frames = mdtraj.Trajectory(cut(whole, BOXES[name]).astype(np.float32), top)
    frames.unitcell_vectors = np.repeat(BOXES[name][None], FRAMES, axis=0)
    theirs = frames.make_molecules_whole().xyz
    ours = WholeMolecules(top).make_whole(frames.xyz, BOXES[name])
    np.testing.assert_allclose(bond_vectors(ours), bond_vectors(theirs), atol=1e-5)


def test_only_needed_branches_are_walked_but_rings_are(top, whole) -> None:
    box = BOXES["cubic"]
    molecules = WholeMolecules(top, [6, 7, 20, 22])
    # 6-7 alone, and 20 to 22; the ring has no needed atom but stays, to be checked.
    bonds = {tuple(sorted(bond)) for bond in molecules.bonds.tolist()}
    assert bonds == {(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5), (5, 6), (6, 7), (20, 21),
                     (21, 22)}  # fmt: skip
    torn = cut(whole, box)
    found = molecules.make_whole(torn, box)
    for i, j in [(6, 7), (20, 22)]:
        np.testing.assert_allclose(found[:, j] - found[:, i], whole[:, j] - whole[:, i], atol=1e-6)
    np.testing.assert_array_equal(found[:, [8, 9, 15, 30]], torn[:, [8, 9, 15, 30]])
    everything = WholeMolecules(top, [6], others=True)
    assert len(everything.bonds) == len(BONDS)


# ---------------------------------------------------------------- through map_trajectory


@pytest.fixture(scope="module")
def centres(top):
    return com_mapping(top, [range(0, 6), range(6, 10), range(10, 30), range(30, 45)])


@pytest.mark.parametrize("name", [n for n in BOXES if n != "turned"])
def test_centres_of_mass_of_a_wrapped_trajectory(top, whole, centres, name, tmp_path) -> None:
    box = BOXES[name]
    ours = cgml.map_trajectory(
        read(cut(whole, box), top, box), centres, temperature=300, output=tmp_path / "beads.h5"
    )
    expected = cgml.map_trajectory(read(whole, top, box), centres, temperature=300)
    np.testing.assert_allclose(expected.positions, centres.map_positions(whole), atol=1e-6)
    moved = (ours.positions - expected.positions) @ np.linalg.inv(box)
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-5)
    # Beads of one molecule in one piece.
    for i, j in [(0, 1), (2, 3)]:
        np.testing.assert_allclose(
            ours.positions[:, j] - ours.positions[:, i],
            expected.positions[:, j] - expected.positions[:, i],
            atol=5e-6,
        )
    # The box is stored as OpenMM wants it, and is the same lattice.
    stored = ours.box[0].astype(float)
    np.testing.assert_array_equal(np.triu(stored, 1), 0)
    for row, column in ((1, 0), (2, 0), (2, 1)):
        assert abs(stored[row, column]) <= 0.5001 * stored[column, column]
    integer = stored @ np.linalg.inv(box)
    np.testing.assert_allclose(integer, np.round(integer), atol=1e-5)


def test_a_file_of_wrapped_frames(top, whole, centres, tmp_path) -> None:
    """DCD, with lengths and angles for a box, in chunks smaller than the file."""
    box = BOXES["truncated octahedron"]
    frames = mdtraj.Trajectory(cut(whole, box), top)
    frames.unitcell_vectors = np.repeat(box[None], FRAMES, axis=0)
    frames.save(str(tmp_path / "run.dcd"))
    source = cgml.read_trajectory(tmp_path / "run.dcd", top=top)
    found = cgml.map_trajectory(source, centres, temperature=300, periodic=False, chunk=7)
    expected = centres.map_positions(whole)
    for i, j in [(0, 1), (2, 3)]:
        np.testing.assert_allclose(
            found.positions[:, j] - found.positions[:, i],
            expected[:, j] - expected[:, i],
            atol=1e-5,
        )


def test_kept_atoms_stay_where_they_are_in_a_box(top, whole) -> None:
    box = BOXES["triclinic"]
    torn = cut(whole, box).astype(np.float32)
    mapping = slice_mapping(top, [0, 6, 12, 40])
    found = cgml.map_trajectory(read(torn, top, box), mapping, temperature=300)
    np.testing.assert_array_equal(found.positions, torn[:, [0, 6, 12, 40]])


def test_without_a_box_molecules_come_together(top, whole) -> None:
    """The larger one stays; the other is brought to the image nearest to it, branches too."""
    box = np.diag([4.0, 5.0, 6.0])
    near = whole.copy()
    near[:, :10] += whole[:, 10:45].mean(1, keepdims=True) + [0.0, 0.5, 0.0]
    mapping = slice_mapping(top, [1, 6, 9, 10, 20, 30, 44])
    found = cgml.map_trajectory(
        read(cut(near, box), top, box), mapping, temperature=300, periodic=False
    )
    assert found.box is None
    expected = mapping.map_positions(near)
    moved = (found.positions - expected) @ np.linalg.inv(box)
    np.testing.assert_allclose(moved, np.repeat(moved[:, :1], 7, axis=1), atol=1e-5)
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-5)


def test_the_nearest_image_in_a_skew_box(top) -> None:
    """Against all images within three box vectors."""
    generator = np.random.default_rng(8)
    pair = topology(3, [(0, 1)])
    steps = np.stack(np.meshgrid(*3 * [np.arange(-3, 4)]), -1).reshape(-1, 3)
    for name in ("truncated octahedron", "rhombic dodecahedron", "triclinic", "turned"):
        box = BOXES[name]
        positions = generator.uniform(0, 1, (500, 3, 3)) @ box
        positions[:, 1] = positions[:, 0] + 0.1
        found = WholeMolecules(pair).bring_together(positions, box)
        centre = positions[:, :2].mean(1)
        images = positions[:, 2][:, None] + steps @ box
        shortest = np.linalg.norm(images - centre[:, None], axis=-1).min(1)
        distance = np.linalg.norm(found[:, 2] - centre, axis=-1)
        np.testing.assert_allclose(distance, shortest, atol=1e-9)
        np.testing.assert_array_equal(found[:, :2], positions[:, :2])


def test_forces_and_constraints_of_a_wrapped_run(trajectory) -> None:
    """All that is found from positions is found from whole ones: the same force map."""
    frames = next(trajectory.chunks(400))
    box = np.repeat(3.0 * np.eye(3)[None], 400, axis=0)
    mapping = cgml.MAPPINGS["residue_com"](trajectory.topology)
    arguments = {"top": trajectory.topology, "forces": frames.forces}
    shift = np.array([0.1, 0.2, 0.3]) - frames.positions[:, 8:9]  # the box's corner is inside
    for positions in (frames.positions, np.mod(frames.positions + shift, 3.0)):
        run = mdtraj.Trajectory(positions, trajectory.topology)
        run.unitcell_vectors = box
        found = cgml.map_trajectory(
            cgml.read_trajectory(run, **arguments), mapping, temperature=300, periodic=False
        )
        if positions is frames.positions:
            expected = found
    assert np.ptp(positions[:, :, 0], axis=1).max() > 2.5  # torn
    np.testing.assert_allclose(found.forces, expected.forces, rtol=1e-4, atol=1e-2)
    bonds = found.positions[:, 1:] - found.positions[:, :-1]
    expected_bonds = expected.positions[:, 1:] - expected.positions[:, :-1]
    np.testing.assert_allclose(bonds, expected_bonds, atol=1e-5)


# ---------------------------------------------------------------- boxes


def test_vectors_of_lengths_and_angles() -> None:
    lengths = np.array([[3.0, 4.0, 5.0], [3.0, 3.0, 3.0], [3.1, 3.2, 3.3]])
    angles = np.array([[90.0, 90.0, 90.0], [109.4712206, 109.4712206, 109.4712206], [80, 95, 70]])
    frames = mdtraj.Trajectory(np.zeros((3, 1, 3)), topology(1, []))
    frames.unitcell_lengths, frames.unitcell_angles = lengths, angles
    found = box_vectors(lengths, angles)
    np.testing.assert_allclose(found, frames.unitcell_vectors, atol=1e-6)
    np.testing.assert_array_equal(found[0], np.diag(lengths[0]))
    np.testing.assert_allclose(box_edges(found), np.diagonal(found, axis1=1, axis2=2), rtol=1e-12)
    np.testing.assert_allclose(box_edges(found @ TURN).prod(-1), np.linalg.det(found @ TURN))


def test_reduced_boxes_that_are_reduced_are_left() -> None:
    octahedron = np.repeat(BOXES["truncated octahedron"][None], 2, axis=0)
    assert reduced_boxes(octahedron) is octahedron
    # Half an edge by rounding is no reason to choose another vector in each frame.
    edge = np.array([[[2.0, 0, 0], [1.0000001, 2, 0], [-1.0000001, 1, 2]]])
    assert reduced_boxes(edge) is edge


def said(function, *arguments, **named) -> str:
    with pytest.raises(cgml.InputError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CHANGED = np.repeat(BOXES["cubic"][None], FRAMES, axis=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"box": np.zeros((3, 3))}, "frame 17 has no box (all zeros); others have one; give one"),
        ({"row": 2, "by": 0.0}, "of volume 0 nm^3; give three right-handed vectors"),
        ({"row": 1, "by": -1.0}, "frame 17 has box vectors (2.4 0 0), (0 -2.4 0), (0 0 2.4) of"),
        ({"row": 0, "by": np.nan}, "box: not finite in frame 17; remove the frame"),
    ],
)
def test_wrong_boxes_are_named(top, whole, change, words) -> None:
    boxes = CHANGED.copy()
    if "box" in change:
        boxes[17] = change["box"]
    else:
        boxes[17, change["row"]] *= change["by"]
    trajectory = read(whole, top, boxes)
    message = said(lambda: list(trajectory.chunks(10)))
    assert words in message and "frame 17" in message


def test_angles_that_no_box_has(top, whole, tmp_path) -> None:
    frames = mdtraj.Trajectory(whole, top)
    frames.unitcell_lengths = np.full((FRAMES, 3), 3.0)
    frames.unitcell_angles = np.full((FRAMES, 3), 90.0)
    frames.unitcell_angles[9] = [50, 60, 150]
    message = said(lambda: list(cgml.read_trajectory(frames).chunks(4)))
    assert "not finite in frame 9" in message
    frames.save_dcd(str(tmp_path / "run.dcd"))
    source = cgml.read_trajectory(tmp_path / "run.dcd", top=top)
    message = said(lambda: list(source.chunks(4)))
    assert message == (
        f"box of {tmp_path / 'run.dcd'}: frame 9 has box vectors that are not finite, or angles "
        "that no box has; correct the box, or leave it out"
    )


@pytest.mark.parametrize("size", [10, FRAMES])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # in mdtraj
def test_a_box_in_some_frames_only(top, whole, size, tmp_path) -> None:
    path = tmp_path / "run.xtc"
    with mdtraj.formats.XTCTrajectoryFile(str(path), "w") as handle:
        boxes = CHANGED.astype(np.float32)
        boxes[10:] = 0
        handle.write(whole.astype(np.float32), box=boxes)
    message = said(lambda: list(cgml.read_trajectory(path, top=top).chunks(size)))
    expected = {
        10: f"{path} lacks box from frame 10 on, unlike its first frames; give frames that all",
        FRAMES: f"box of {path}: frame 10 has no box (all zeros); others have one; give one",
    }
    assert expected[size] in message


def test_a_box_too_small_for_the_bonds(top, whole, centres) -> None:
    box = 0.25 * np.eye(3)
    message = said(cgml.map_trajectory, read(whole, top, box), centres, temperature=300)
    assert "but the box is 0.25 nm wide at its narrowest" in message
    assert message.startswith("bond MOL") and "the topology is that of the trajectory" in message


def test_a_topology_of_another_order(top, whole, centres) -> None:
    """Bonds between atoms that are far apart: no image is right."""
    wrong = topology(ATOMS, [*BONDS, (10, 40)])
    mapping = com_mapping(wrong, [range(10, 45)])
    box = BOXES["cubic"]
    message = said(cgml.map_trajectory, read(whole, wrong, box), mapping, temperature=300)
    assert "bond MOL3-C1-MOL9-C1 is 1" in message and "image of the atom is not unique" in message


def test_molecules_without_end_are_named() -> None:
    """A chain that is bonded to its own image, as in a crystal or a fibre."""
    atoms = 12
    top = topology(atoms, [*chain_bonds(0, atoms), (0, atoms - 1)])
    positions = np.zeros((6, atoms, 3))
    positions[..., 0] = 0.15 * np.arange(atoms)
    box = np.diag([0.15 * atoms, 2.0, 2.0])
    mapping = com_mapping(top, [range(6), range(6, 12)])
    message = said(cgml.map_trajectory, read(positions, top, box), mapping, temperature=300)
    assert (
        message.startswith("bond MOL")
        and "own periodic image in frame 0: it is endless" in message
    )
    kept = slice_mapping(top, [0, 6])
    assert cgml.map_trajectory(read(positions, top, box), kept, temperature=300).box is not None
    message = said(
        cgml.map_trajectory, read(positions, top, box), kept, temperature=300, periodic=False
    )
    assert "endless" in message


def test_beads_that_no_bonds_hold_together(whole) -> None:
    loose = topology(ATOMS, [])
    box = BOXES["cubic"]
    mapping = com_mapping(loose, [range(0, 6), range(6, 10)])
    # Near enough to be in one piece, they need no bonds.
    assert len(cgml.map_trajectory(read(whole, loose, box), mapping, temperature=300)) == FRAMES
    message = said(
        cgml.map_trajectory, read(cut(whole, box), loose, box), mapping, temperature=300
    )
    assert message == (
        "bead MOL1-C1 is torn across the periodic boundary in frame 1 (more than half the box "
        "apart), and no bonds say which images belong together; give a topology with bonds, or "
        "make molecules whole first (e.g. mdtraj's image_molecules)"
    )


@pytest.mark.parametrize("bonds", [[], [(4, 5), *chain_bonds(10, 45)]])
def test_a_molecule_without_bonds_does_not_leave_its_box(whole, bonds) -> None:
    """Nor does a residue that no template knows, beside one that is bonded."""
    loose = topology(ATOMS, bonds)
    box = BOXES["cubic"]
    mapping = slice_mapping(loose, [0, 3, 6])
    arguments = {"temperature": 300, "periodic": False}
    kept = cgml.map_trajectory(read(whole, loose, box), mapping, **arguments)
    np.testing.assert_allclose(kept.positions, whole[:, [0, 3, 6]], atol=1e-6)
    message = said(cgml.map_trajectory, read(cut(whole, box), loose, box), mapping, **arguments)
    assert message.startswith("beads are torn across the periodic boundary in frame 1 ")


def test_a_turned_box_is_not_for_models(top, whole, centres) -> None:
    box = BOXES["turned"]
    source = read(cut(whole, box), top, box)
    message = said(cgml.map_trajectory, source, centres, temperature=300)
    assert message.startswith("the box of frame 0 is not lower triangular (a along x, b in the")
    found = cgml.map_trajectory(source, centres, temperature=300, periodic=False)
    assert found.box is None and len(found) == FRAMES


def test_boxes_alone() -> None:
    require_boxes(CHANGED, "box", 0)
    assert said(require_boxes, 0 * CHANGED, "box of run.npz", 20) == (
        "box of run.npz: frame 20 has no box (all zeros); give one for every frame, or for none"
    )
