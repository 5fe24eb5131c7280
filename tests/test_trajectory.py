"""All-atom trajectories: every format gives the same frames, a damaged file none."""

import gc
import json
import pickle
import re
import shutil
import struct
import tracemalloc
from pathlib import Path

import h5py
import mdtraj
import numpy as np
import pytest
from openmm import unit

import openmm_cgml as cgml
from openmm_cgml.files import sha256
from openmm_cgml.formats import FileHashes

FRAMES = 24
#: Largest rounding of a position in each format, nm.
PRECISION = {"dcd": 1e-6, "trr": 1e-6, "nc": 1e-6, "xtc": 5.1e-4, "pdb": 5.1e-5}
ALL = [*PRECISION, "h5", "npz", "npy"]
# Triclinic, and different in every frame.
BOX = np.array([[3.0, 0, 0], [0.5, 2.8, 0], [0.2, -0.3, 2.9]]) * (
    1 + 0.01 * np.arange(FRAMES)[:, None, None]
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*netCDF4", "ignore:Cannot close a netcdf_file:RuntimeWarning"
)


@pytest.fixture(scope="module")
def arrays(data) -> dict[str, np.ndarray]:
    """The last frames of the package's run, which have weight."""
    with np.load(data / "trajectory.npz") as run:
        return {name: run[name][-FRAMES:] for name in run.files}


@pytest.fixture(scope="module")
def top(data) -> mdtraj.Topology:
    return cgml.read_topology(data / "topology.pdb")


@pytest.fixture(scope="module")
def files(arrays, top, tmp_path_factory) -> dict[str, Path]:
    """The same frames, in a triclinic box, in every format (.npz and .npy: positions alone)."""
    folder = tmp_path_factory.mktemp("formats")
    paths = {name: folder / f"run.{name}" for name in ALL}
    frames = mdtraj.Trajectory(arrays["positions"], top)
    frames.unitcell_vectors = BOX
    for name in PRECISION:
        frames.save(str(paths[name]))
    write_hdf5(paths["h5"], frames)
    np.savez(paths["npz"], positions=arrays["positions"])
    np.save(paths["npy"], arrays["positions"])
    return paths


def write_hdf5(path: Path, frames: mdtraj.Trajectory, **beside) -> None:
    """Write MDTraj's HDF5 layout (its own writer needs PyTables)."""
    chains = [
        {
            "index": chain.index,
            "chain_id": chain.chain_id,
            "residues": [
                {
                    "index": residue.index,
                    "name": residue.name,
                    "resSeq": residue.resSeq,
                    "segmentID": "",
                    "atoms": [
                        {"index": a.index, "name": a.name, "element": a.element.symbol}
                        for a in residue.atoms
                    ],
                }
                for residue in chain.residues
            ],
        }
        for chain in frames.topology.chains
    ]
    bonds = [[a.index, b.index] for a, b in frames.topology.bonds]
    with h5py.File(path, "w") as handle:
        handle.attrs["conventions"] = "Pande"
        handle["topology"] = [json.dumps({"chains": chains, "bonds": bonds}).encode()]
        handle["coordinates"] = frames.xyz
        handle["coordinates"].attrs["units"] = b"nanometers"
        if frames.unitcell_lengths is not None:
            handle["cell_lengths"] = frames.unitcell_lengths
            handle["cell_angles"] = frames.unitcell_angles
        for name, values in beside.items():
            handle[name] = values


def whole(trajectory, size: int = 1000) -> dict[str, np.ndarray]:
    """All frames of a trajectory, joined."""
    chunks = list(trajectory.chunks(size))
    assert all(len(c) <= size for c in chunks)
    names = [n for n in vars(chunks[0]) if getattr(chunks[0], n) is not None]
    return {n: np.concatenate([getattr(c, n) for c in chunks]) for n in names}


def message(trajectory, **arguments) -> str:
    """The error of reading a trajectory to its end."""
    with pytest.raises(cgml.InputError) as caught:
        for _ in cgml.read_trajectory(trajectory, **arguments).chunks(7):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("name", ALL)
def test_every_format_gives_the_same_frames(files, arrays, top, name) -> None:
    trajectory = cgml.read_trajectory(files[name], top=top)
    assert trajectory.sources == (str(files[name]),)
    assert not trajectory.has_forces
    found = whole(trajectory)
    assert found["positions"].dtype == np.float32  # no copy in another type
    np.testing.assert_allclose(
        found["positions"], arrays["positions"], rtol=0, atol=PRECISION.get(name, 0)
    )


@pytest.mark.parametrize("name", ["dcd", "trr", "nc", "xtc", "h5"])
def test_boxes_travel(files, top, name) -> None:
    found = whole(cgml.read_trajectory(files[name], top=top), size=5)
    np.testing.assert_allclose(found["box"], BOX, rtol=0, atol=6e-4)


def test_objects_and_arrays(arrays, top) -> None:
    frames = mdtraj.Trajectory(arrays["positions"], top)
    found = whole(cgml.read_trajectory(frames))
    np.testing.assert_array_equal(found["positions"], arrays["positions"])
    assert found.keys() == {"positions"}
    frames.unitcell_vectors = BOX
    trajectory = cgml.read_trajectory(frames)
    assert trajectory.topology is top and trajectory.sources == ("",)
    np.testing.assert_allclose(whole(trajectory)["box"], BOX, atol=1e-6)
    found = whole(cgml.read_trajectory(arrays["positions"], top=top))
    np.testing.assert_array_equal(found["positions"], arrays["positions"])
    assert "box" not in found


@pytest.mark.parametrize("name", ["pdb", "h5"])
def test_topology_of_the_trajectory_itself(files, top, name) -> None:
    found = cgml.read_trajectory(files[name]).topology
    assert [str(a) for a in found.atoms] == [str(a) for a in top.atoms]
    assert found.n_bonds == top.n_bonds
    assert [c.chain_id for c in found.chains] == ["A"]


def test_hdf5_in_angstrom(files, arrays, tmp_path) -> None:
    path = tmp_path / "run.h5"
    shutil.copy(files["h5"], path)
    with h5py.File(path, "r+") as handle:
        for name in ("coordinates", "cell_lengths"):
            handle[name][...] = 10 * handle[name][...]
        handle["coordinates"].attrs["units"] = "angstroms"
    found = whole(cgml.read_trajectory(path))
    np.testing.assert_allclose(found["positions"], arrays["positions"], rtol=1e-6)
    np.testing.assert_allclose(found["box"], BOX, atol=1e-5)
    with h5py.File(path, "r+") as handle:
        handle["coordinates"].attrs["units"] = "furlongs"
    assert "length unit 'furlong' is unknown; choose one of nm" in message(path)


# ---------------------------------------------------------------- forces and the rest beside them


@pytest.mark.parametrize("kind", ["npy", "npz", "array"])
def test_forces_beside(files, arrays, top, kind, tmp_path) -> None:
    forces = arrays["forces"]
    if kind == "npy":
        np.save(tmp_path / "forces.npy", arrays["forces"])
        forces = tmp_path / "forces.npy"
    elif kind == "npz":
        np.savez(tmp_path / "forces.npz", forces=arrays["forces"], weights=arrays["weights"])
        forces = str(tmp_path / "forces.npz")
    trajectory = cgml.read_trajectory(files["dcd"], top=top, forces=forces)
    assert trajectory.has_forces
    assert trajectory.sources == (str(files["dcd"]), "" if kind == "array" else str(forces))
    found = whole(trajectory, size=5)
    np.testing.assert_array_equal(found["forces"], arrays["forces"])
    assert "weights" not in found  # asked for by name only


def test_large_arrays_stay_on_disk(files, arrays, top, tmp_path) -> None:
    """A memory map of an .npy, slices of an HDF5 file: nothing is loaded at once."""
    np.save(tmp_path / "forces.npy", arrays["forces"])
    trajectory = cgml.read_trajectory(files["npy"], top=top, forces=tmp_path / "forces.npy")
    assert isinstance(trajectory._given[0].beside["forces"], np.memmap)
    assert isinstance(trajectory._sources[0].positions, np.memmap)
    stored = cgml.read_trajectory(files["h5"])._sources[0].positions
    assert not isinstance(stored, np.ndarray) and len(stored) == FRAMES


def test_large_arrays_of_an_npz_stay_on_disk(arrays, top, tmp_path) -> None:
    """Where they are not compressed; what is damaged there is seen all the same."""
    big = {n: np.concatenate([v] * 200) for n, v in arrays.items()}
    path = tmp_path / "run.npz"
    np.savez(path, **big)
    trajectory = cgml.read_trajectory(path, top=top)
    assert isinstance(trajectory._sources[0].positions, np.memmap)
    assert isinstance(trajectory._sources[0].beside["forces"], np.memmap)
    given = cgml.read_trajectory(big["positions"], top=top, forces=path)
    assert isinstance(given._given[0].beside["forces"], np.memmap)
    for name, values in whole(trajectory, 1000).items():
        np.testing.assert_array_equal(values, big[name])
    np.savez_compressed(tmp_path / "small.npz", **big)
    small = whole(cgml.read_trajectory(tmp_path / "small.npz", top=top), 1000)
    np.testing.assert_array_equal(small["forces"], big["forces"])
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert "it is damaged or cut short, make it again" in message(path, top=top)


@pytest.mark.parametrize("kind", ["npz", "npy", "dcd"])
def test_memory_does_not_grow_with_frames(arrays, top, kind, tmp_path) -> None:
    """13 MB of positions and as much of forces are read in a tenth of that."""
    positions = np.concatenate([arrays["positions"]] * 2000).astype(np.float32)
    forces = np.concatenate([arrays["forces"]] * 2000).astype(np.float32)
    path = tmp_path / f"run.{kind}"
    if kind == "npz":
        np.savez(path, positions=positions, forces=forces)
        trajectory = cgml.read_trajectory(path, top=top)
    else:
        np.save(tmp_path / "forces.npy", forces)
        if kind == "npy":
            np.save(path, positions)
        else:
            mdtraj.Trajectory(positions, top).save(str(path))
        trajectory = cgml.read_trajectory(path, top=top, forces=tmp_path / "forces.npy")
    next(trajectory.chunks(10))  # imports
    tracemalloc.start()
    try:
        assert sum(len(chunk) for chunk in trajectory.chunks(200)) == len(positions)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.6e6 < 0.11 * (positions.nbytes + forces.nbytes)


def test_hashes_are_taken_beside_the_reading(files) -> None:
    names = {name: str(files[name]) for name in ("dcd", "xtc")}
    hashes = FileHashes(names)
    assert list(hashes.beside(iter([1, 2]))) == [1, 2]
    assert hashes.result() == {n: sha256(f) for n, f in names.items()}
    gone = FileHashes({"gone": "gone.dcd"})
    list(gone.beside(iter([1])))
    with pytest.raises(
        cgml.InputError, match="cannot read gone.dcd once more .* keep it in place"
    ):
        gone.result()


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_one_file_may_hold_it_all(arrays, top, kind, tmp_path) -> None:
    path = tmp_path / f"run.{kind}"
    if kind == "npz":
        np.savez(path, box=BOX, extra=1, **arrays)
    else:
        frames = mdtraj.Trajectory(arrays["positions"], top)
        frames.unitcell_vectors = BOX
        beside = {n: v for n, v in arrays.items() if n != "positions"}
        write_hdf5(path, frames, **beside)
    trajectory = cgml.read_trajectory(path, top=top)
    assert trajectory.has_forces
    found = whole(trajectory, size=7)
    assert found.keys() == {"positions", "forces", "weights", "bias_energy", "box"}
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
    np.testing.assert_allclose(found["box"], BOX, atol=1e-5)


def test_what_is_given_replaces_what_the_file_holds(arrays, top, tmp_path) -> None:
    np.savez(tmp_path / "run.npz", **arrays)
    other = np.arange(1.0, FRAMES + 1)
    found = whole(cgml.read_trajectory(tmp_path / "run.npz", top=top, weights=other))
    np.testing.assert_array_equal(found["weights"], other)
    np.testing.assert_array_equal(found["forces"], arrays["forces"])


@pytest.mark.parametrize("name", [*ALL, "array"])
@pytest.mark.parametrize("size", [1, 7, FRAMES])
def test_chunks_join_to_the_whole(files, arrays, top, name, size) -> None:
    source = arrays["positions"] if name == "array" else files[name]
    beside = {n: arrays[n] for n in ("forces", "weights", "bias_energy")}
    trajectory = cgml.read_trajectory(source, top=top, **beside)
    one, parts = whole(trajectory), whole(trajectory, size)
    assert one.keys() == parts.keys()
    for key, values in one.items():
        np.testing.assert_array_equal(values, parts[key])
    assert [len(c) for c in trajectory.chunks(size)][:-1] == [size] * (-(-FRAMES // size) - 1)


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize("name", ["dcd", "xtc", "npy", "h5"])
def test_lists_of_files(files, arrays, top, name) -> None:
    twice = np.concatenate([arrays["forces"]] * 2)
    trajectory = cgml.read_trajectory([files[name], str(files[name])], top=top, forces=twice)
    found = whole(trajectory, size=7)
    np.testing.assert_allclose(
        found["positions"],
        np.concatenate([arrays["positions"]] * 2),
        rtol=0,
        atol=PRECISION.get(name, 0),
    )
    np.testing.assert_array_equal(found["forces"], twice)


def test_lists_keep_what_each_file_holds(arrays, top, tmp_path) -> None:
    cut = 9
    for k, part in enumerate((slice(None, cut), slice(cut, None))):
        np.savez(tmp_path / f"{k}.npz", box=BOX[part], **{n: v[part] for n, v in arrays.items()})
    trajectory = cgml.read_trajectory([tmp_path / "0.npz", tmp_path / "1.npz"], top=top)
    found = whole(trajectory, size=4)
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(found["box"], BOX)


def test_lists_of_objects_keep_their_boxes(arrays, top) -> None:
    frames = mdtraj.Trajectory(arrays["positions"], top)
    frames.unitcell_vectors = BOX
    found = whole(cgml.read_trajectory([frames[:10], frames[10:]]), size=4)
    np.testing.assert_allclose(found["box"], BOX, atol=1e-6)


@pytest.mark.parametrize("odd", ["forces", "box"])
def test_lists_of_unlike_files_are_refused(arrays, top, odd, tmp_path) -> None:
    beside = {"forces": arrays["forces"], "box": BOX}
    np.savez(tmp_path / "0.npz", positions=arrays["positions"], **beside)
    del beside[odd]
    np.savez(tmp_path / "1.npz", positions=arrays["positions"], **beside)
    first, second = tmp_path / "0.npz", tmp_path / "1.npz"
    said = message([first, second], top=top)
    assert said == f"{second} lacks {odd}, unlike {first}; give files that hold the same"
    said = message([second, first], top=top)
    assert said == f"{first} has {odd}, unlike {second}; give files that hold the same"


# ---------------------------------------------------------------- units


def test_units_of_arrays(arrays, top, tmp_path) -> None:
    np.savez(
        tmp_path / "run.npz",
        positions=arrays["positions"] * 10.0,
        forces=arrays["forces"] / 41.84,
        box=BOX * 10,
    )
    found = whole(
        cgml.read_trajectory(
            tmp_path / "run.npz",
            top=top,
            length_unit="angstrom",
            force_unit="kcal/mol/angstrom",
        )
    )
    np.testing.assert_allclose(found["positions"], arrays["positions"], rtol=1e-6)
    np.testing.assert_allclose(found["forces"], arrays["forces"], rtol=1e-6)
    np.testing.assert_allclose(found["box"], BOX, rtol=1e-12)


def test_quantities(arrays, top) -> None:
    force = unit.kilocalorie_per_mole / unit.angstrom
    arguments = {
        "forces": arrays["forces"] * force,
        "bias_energy": arrays["bias_energy"] * unit.kilocalorie_per_mole,
        "weights": arrays["weights"] * unit.dimensionless,
    }
    found = whole(cgml.read_trajectory(arrays["positions"] * unit.angstrom * 10, top, **arguments))
    np.testing.assert_allclose(found["positions"], arrays["positions"], rtol=1e-6)
    np.testing.assert_allclose(found["forces"], 41.84 * arrays["forces"], rtol=1e-6)
    np.testing.assert_allclose(found["bias_energy"], 4.184 * arrays["bias_energy"], rtol=1e-6)
    np.testing.assert_array_equal(found["weights"], arrays["weights"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"length_unit": "inch"}, "length unit 'inch' is unknown; choose one of nm, nanometer"),
        ({"force_unit": "newton"}, "force unit 'newton' is unknown; choose one of kJ/mol/nm"),
        ({"forces": np.ones(3) * unit.nanometer}, "give numbers in kilojoule/mole/nanometer or"),
        ({"forces": ["a", "b"]}, "forces is ['a', 'b']; give numbers in kilojoule/mole/nanometer"),
        ({"bias_energy": 3 * unit.kelvin}, "bias_energy is "),
    ],
)
def test_wrong_units(arrays, top, arguments, words) -> None:
    assert words in message(arrays["positions"], top=top, **arguments)


def test_a_quantity_and_a_unit_contradict(arrays, top) -> None:
    said = message(arrays["positions"] * unit.nanometer, top=top, length_unit="angstrom")
    assert said == "the trajectory fixes its length unit; leave length_unit out"
    forces = arrays["forces"] * (unit.kilojoule_per_mole / unit.nanometer)
    said = message(arrays["positions"], top=top, forces=forces, force_unit="kcal/mol/nm")
    assert said == "forces carry their own unit; leave force_unit out"


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("npz", "npy")])
def test_formats_with_a_unit_take_no_other(files, top, name) -> None:
    said = message(files[name], top=top, length_unit="angstrom")
    assert said == f"{files[name]} fixes its length unit; leave length_unit out"


def test_wrong_length_unit_is_seen_from_the_bonds(arrays, top, tmp_path) -> None:
    positions = arrays["positions"].astype(float)
    said = message(10 * positions, top=top)
    assert "median bond is 1.0" in said and "length unit angstrom?" in said
    said = message(positions, top=top, length_unit="angstrom")
    assert "median bond is 0.01" in said and "length unit nm?" in said
    np.save(tmp_path / "run.npy", 10 * positions)
    assert str(tmp_path / "run.npy") in message(tmp_path / "run.npy", top=top)
    # A few bonds broken by a periodic boundary say nothing about the unit.
    wrapped = positions.copy()
    wrapped[:, :3] += 3.0
    assert len(whole(cgml.read_trajectory(wrapped, top=top))["positions"]) == FRAMES


# ---------------------------------------------------------------- damaged files


def cuts(path: Path) -> list[int]:
    """Places inside a file, near its ends and spread over it, but not between two frames."""
    size = path.stat().st_size
    return [1, 3, 50, 91, 95, 150, size // 3 + 1, size // 2 + 1, size - 100, size - 5, size - 1]


@pytest.mark.parametrize("name", ["dcd", "xtc", "trr", "nc", "h5", "npz", "npy"])
def test_cut_files_are_refused(files, top, name, tmp_path, capfd) -> None:
    raw = files[name].read_bytes()
    path = tmp_path / f"cut.{name}"
    for size in cuts(files[name]):
        path.write_bytes(raw[:size])
        said = message(path, top=top)
        assert str(path) in said, size
        assert "make it again" in said, size
    # The readers in C say nothing of their own between the lines.
    assert capfd.readouterr() == ("", "")
    gc.collect()  # scipy's netCDF reader warns when it goes; here that is ignored


@pytest.mark.parametrize("name", ["dcd", "xtc", "trr"])
def test_every_byte_counts(files, top, name, tmp_path) -> None:
    """Inside the second frame no cut passes; exactly between frames .xtc and .trr do."""
    raw = files[name].read_bytes()
    path = tmp_path / f"cut.{name}"
    length = {"trr": len(raw) // FRAMES, "dcd": 56 + 3 * (4 * 22 + 8)}.get(name)
    if name == "xtc":
        starts = [k for k in range(len(raw)) if raw[k : k + 8] == struct.pack(">2i", 1995, 22)]
        assert len(starts) == FRAMES
        first, last = starts[1], starts[2]
        between = starts
    else:
        first = len(raw) - (FRAMES - 1) * length
        last = first + length
        between = range(first, len(raw), length)
    for size in range(first, last + 1):
        path.write_bytes(raw[:size])
        if size in between and name != "dcd":
            frames = list(between).index(size) + (name != "xtc")
            assert sum(len(c) for c in cgml.read_trajectory(path, top=top).chunks()) == frames
        else:
            assert "is cut short" in message(path, top=top), size


def test_dcd_says_how_many_frames_it_should_hold(files, top, tmp_path) -> None:
    raw = files["dcd"].read_bytes()
    path = tmp_path / "cut.dcd"
    frame = 56 + 3 * (4 * 22 + 8)
    remedy = "; make it again, or cut it to whole frames"
    path.write_bytes(raw[:-frame])
    said = message(path, top=top)
    assert said == f"{path} is cut short: its header says 24 frames, it holds 23" + remedy
    path.write_bytes(raw[:-1])
    said = message(path, top=top)
    assert said.endswith("says 24 frames, it holds 23 and a part of one" + remedy)
    # A run that is killed may have written frames that its header does not count yet.
    path.write_bytes(raw[:8] + struct.pack("<i", FRAMES - 2) + raw[12:])
    assert sum(len(c) for c in cgml.read_trajectory(path, top=top).chunks()) in (22, 24)


def test_big_endian_and_xplor_headers_are_understood(files, arrays, top, tmp_path) -> None:
    """X-PLOR's DCD files (version 0) have a number of another kind where the cell flag is."""
    from openmm_cgml.whole_files import require_whole_trajectory

    atoms, frames = 5, 3
    for order in "<>":
        numbers = [0] * 20
        numbers[0] = frames
        numbers[9:11] = struct.unpack(order + "2i", struct.pack(order + "d", 0.002))
        head = struct.pack(order + "i4s20ii", 84, b"CORD", *numbers, 84)
        title = struct.pack(order + "2i80si", 84, 1, b"x" * 80, 84)
        count = struct.pack(order + "3i", 4, atoms, 4)
        block = struct.pack(order + f"i{atoms}fi", 4 * atoms, *[0.0] * atoms, 4 * atoms)
        path = tmp_path / "xplor.dcd"
        path.write_bytes(head + title + count + 3 * frames * block)
        require_whole_trajectory(path)
        path.write_bytes(head + title + count + (3 * frames - 1) * block)
        with pytest.raises(cgml.InputError, match="says 3 frames, it holds 2 and a part"):
            require_whole_trajectory(path)


def swapped(raw: bytes) -> bytes:
    """A DCD file of 22 atoms in a box in the other byte order, but for its texts."""
    (title,) = struct.unpack("<i", raw[92:96])
    head = b"".join(raw[k : k + 4] if k == 4 else raw[k : k + 4][::-1] for k in range(0, 100, 4))
    texts, after = raw[100 : 96 + title], raw[96 + title :]
    parts = [after[k : k + 4][::-1] for k in range(0, 16, 4)]
    block = 4 * 22 + 8
    for start in range(16, len(after), 56 + 3 * block):
        parts += [after[start : start + 4][::-1]]
        parts += [after[k : k + 8][::-1] for k in range(start + 4, start + 52, 8)]
        rest = range(start + 52, start + 56 + 3 * block, 4)
        parts += [after[k : k + 4][::-1] for k in rest]
    return head + texts + b"".join(parts)


def test_dcd_is_read_as_mdtraj_reads_it(files, top, tmp_path) -> None:
    """To the bit, in either byte order, with angles or (as mdtraj writes) cosines, and without."""
    paths = {name: tmp_path / f"{name}.dcd" for name in ("plain", "swapped", "angles", "bare")}
    raw = files["dcd"].read_bytes()
    paths["plain"].write_bytes(raw)
    paths["swapped"].write_bytes(swapped(raw))
    begin, length = len(raw) - FRAMES * (56 + 3 * 96), 56 + 3 * 96
    angles = bytearray(raw)
    for start in range(begin, len(raw), length):
        cell = np.frombuffer(angles, "<f8", 6, start + 4)
        cell[[1, 3, 4]] = np.degrees(np.arccos(cell[[1, 3, 4]]))
    paths["angles"].write_bytes(angles)
    mdtraj.Trajectory(mdtraj.load(files["dcd"], top=top).xyz, top).save_dcd(str(paths["bare"]))
    for name, path in paths.items():
        found, expected = whole(cgml.read_trajectory(path, top=top), 7), mdtraj.load(path, top=top)
        np.testing.assert_array_equal(found["positions"], expected.xyz)
        if name == "bare":
            assert "box" not in found and expected.unitcell_vectors is None
        else:
            np.testing.assert_allclose(found["box"], expected.unitcell_vectors, atol=1e-6)


def test_dcd_with_a_wrong_marker(files, top, tmp_path) -> None:
    raw = bytearray(files["dcd"].read_bytes())
    raw[-4:] = struct.pack("<i", 87)
    (tmp_path / "run.dcd").write_bytes(raw)
    said = message(tmp_path / "run.dcd", top=top)
    assert said == (
        f"{tmp_path / 'run.dcd'} is damaged (a wrong marker in frame {FRAMES - 1}); make it "
        "again, or cut it to whole frames"
    )


@pytest.mark.parametrize("name", ["dcd", "xtc", "trr"])
def test_files_of_another_kind(files, top, name, tmp_path) -> None:
    path = tmp_path / f"other.{name}"
    path.write_bytes(files["npz"].read_bytes())
    said = message(path, top=top)
    assert said.startswith(f"{path} is not a {name.upper()} file, or damaged or cut short")
    raw = bytearray(files[name].read_bytes())
    raw[-1500:] = bytes(1500)
    path.write_bytes(raw)
    if name != "dcd":  # whose frames have no header
        assert "is damaged: no frame begins after the first" in message(path, top=top)


def test_pickles_are_not_loaded(arrays, top, tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    (tmp_path / "run.npy").write_bytes(pickle.dumps(Trap()))
    np.save(tmp_path / "objects.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "run.npz", positions=np.array([Trap()], dtype=object))
    for name in ("run.npy", "objects.npy", "run.npz"):
        assert f"cannot read {tmp_path / name}" in message(tmp_path / name, top=top)
        said = message(arrays["positions"], top=top, forces=tmp_path / name)
        assert str(tmp_path / name) in said
    assert not (tmp_path / "sprung").exists()


# ---------------------------------------------------------------- data that do not fit


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("pdb",)])
def test_wrong_number_of_atoms(files, top, name) -> None:
    smaller = top.subset(range(21))
    said = message(files[name], top=smaller)
    assert str(files[name]) in said and "21" in said and "give the topology that" in said


@pytest.mark.parametrize("name", ["npz", "dcd", "h5"])
@pytest.mark.parametrize("key", ["forces", "weights", "bias_energy"])
@pytest.mark.parametrize("size", [FRAMES - 1, FRAMES + 1])
def test_numbers_of_frames_differ(files, arrays, top, name, key, size) -> None:
    values = np.resize(arrays[key], (size, *arrays[key].shape[1:]))
    said = message(files[name], top=top, **{key: values})
    frames = FRAMES if size > FRAMES else "2[1-4] or more"  # chunks of 7
    pattern = f"{key}: {size} frames, but {frames} in {files[name]}; they must belong to the same"
    assert re.match(pattern, said)


def test_each_file_of_a_list_fits_itself(arrays, top, tmp_path) -> None:
    """Ten too few forces in one file are not made up by ten too many in the next."""
    names = []
    for k, size in enumerate((FRAMES - 4, FRAMES)):
        names.append(tmp_path / f"{k}.npz")
        np.savez(
            names[-1], positions=arrays["positions"][: FRAMES - 2], forces=arrays["forces"][:size]
        )
    said = message(names, top=top)
    assert said.startswith(f"forces of {names[0]}: 20 frames, but 21 or more in {names[0]}; they")
    said = message(names[::-1], top=top)
    assert said.startswith(f"forces of {names[1]}: 24 frames, but 22 in {names[1]}; they must")


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("forces", (FRAMES, 21, 3), "forces have 21 atoms a frame but the topology has 22"),
        ("forces", (FRAMES, 66), f"forces have shape ({FRAMES}, 66); give (frames, 22, 3)"),
        ("weights", (FRAMES, 1), f"weights have shape ({FRAMES}, 1); give (frames)"),
        ("weights", (), "weights have shape (); give (frames)"),
        ("bias_energy", (FRAMES, 22, 3), "bias_energy have shape (24, 22, 3); give (frames)"),
    ],
)
def test_shapes_beside(arrays, top, key, shape, words) -> None:
    assert message(arrays["positions"], top=top, **{key: np.ones(shape)}).startswith(words)


@pytest.mark.parametrize("shape", [(), (22, 3), (FRAMES, 66), (FRAMES, 22, 2)])
def test_shapes_of_positions(top, shape) -> None:
    said = message(np.ones(shape), top=top)
    assert said == f"positions have shape {shape}; give (frames, 22, 3)"


def test_box_shape(arrays, top, tmp_path) -> None:
    path = tmp_path / "run.npz"
    np.savez(path, positions=arrays["positions"], box=np.ones((FRAMES, 3)))
    assert message(path, top=top) == f"box of {path} have shape (24, 3); give (frames, 3, 3)"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(files, arrays, top, value, tmp_path) -> None:
    bad = arrays["positions"].copy()
    bad[17, 8, 1] = value
    remedy = "; remove the frame, or repeat the run from before it"
    said = message(bad, top=top)
    assert said == (
        "positions of the position array: not finite in frame 17, atom ALA2-CA" + remedy
    )
    np.save(tmp_path / "bad.npy", bad)
    said = message([files["npy"], tmp_path / "bad.npy"], top=top)
    assert said == (
        f"positions of {tmp_path / 'bad.npy'}: not finite in frame {FRAMES + 17}, atom ALA2-CA"
        + remedy
    )
    forces = arrays["forces"].copy()
    forces[22, 4, 0] = value
    said = message(files["xtc"], top=top, forces=forces)
    assert said == "forces: not finite in frame 22, atom ACE1-C" + remedy
    weights = arrays["weights"].copy()
    weights[9] = value
    said = message(files["xtc"], top=top, weights=weights)
    assert said == "weights: not finite in frame 9" + remedy


def test_weights_are_looked_at_first(arrays, top, tmp_path) -> None:
    weights = arrays["weights"].copy()
    weights[13] = -0.5
    with pytest.raises(cgml.InputError) as caught:
        cgml.read_trajectory(arrays["positions"], top=top, weights=weights)
    assert str(caught.value) == (
        "weights: frame 13 has -0.5; weights are probabilities up to a factor, none may be "
        "negative"
    )
    with pytest.raises(cgml.InputError) as caught:
        cgml.read_trajectory(arrays["positions"], top=top, weights=0 * weights)
    said = "the weights are all zero; give the weights of these frames, or none"
    assert str(caught.value) == said
    # One file of a list may have none, all together may not.
    for k, factor in enumerate((0, 1)):
        np.savez(tmp_path / f"{k}.npz", **{**arrays, "weights": factor * arrays["weights"]})
    names = [tmp_path / "0.npz", tmp_path / "1.npz"]
    assert len(whole(cgml.read_trajectory(names, top=top))["weights"]) == 2 * FRAMES
    assert message([names[0], names[0]], top=top) == said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.dcd", ["trajectory", "gone.dcd does not exist; check the path"]),
        ("empty.xtc", ["trajectory", "empty.xtc is empty", "make it again"]),
        ("folder.npz", ["trajectory", "folder.npz is not a file; give a file"]),
        ("run.abc", ["run.abc has an unknown format '.abc'; give .dcd, .xtc"]),
        ("other.npz", ["other.npz has no array 'positions' (it has xyz)", "rename the array"]),
        ("other.h5", ["other.h5 is not an MDTraj HDF5 trajectory (no 'coordinates')"]),
    ],
)
def test_files_that_are_none(top, name, words, tmp_path) -> None:
    (tmp_path / "empty.xtc").touch()
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "run.abc").write_text("abc")
    np.savez(tmp_path / "other.npz", xyz=np.zeros(3))
    with h5py.File(tmp_path / "other.h5", "w") as handle:
        handle["frames"] = 1
    said = message(tmp_path / name, top=top)
    assert [w for w in words if w not in said] == []


def test_forces_files_that_are_none(arrays, top, tmp_path) -> None:
    np.savez(tmp_path / "other.npz", f=arrays["forces"])
    said = message(arrays["positions"], top=top, forces=tmp_path / "other.npz")
    assert said == f"{tmp_path / 'other.npz'} has no array 'forces' (it has f); rename it"
    said = message(arrays["positions"], top=top, forces=tmp_path / "gone.npy")
    assert said == f"forces {tmp_path / 'gone.npy'} does not exist; check the path"
    np.save(tmp_path / "cut.npy", arrays["forces"])
    raw = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(raw[:-1])
    said = message(arrays["positions"], top=top, forces=tmp_path / "cut.npy")
    assert f"cannot read forces from {tmp_path / 'cut.npy'}" in said and "give a whole" in said


def test_nothing_to_read(arrays, top) -> None:
    assert message([], top=top) == "the list of trajectory files is empty; give at least one"
    said = message(arrays["positions"])
    assert said == "the trajectory carries no topology; give one (top)"
    said = message(np.zeros((0, 22, 3)), top=top)
    assert said == "the position array holds no frames; check that the run wrote any"
    with pytest.raises(cgml.InputError, match="chunks of 0 frames .* give at least 1"):
        next(cgml.read_trajectory(arrays["positions"], top=top).chunks(0))
