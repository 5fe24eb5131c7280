"""Files of frames: opening each format, and reading what it holds."""

import hashlib
import struct
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .archives import load_arrays, require_numbers
from .dcd import dcd_layout, read_dcd
from .errors import InputError, first_line
from .files import require_file
from .hdf5_files import open_hdf5_file
from .periodic import box_vectors
from .units import LENGTH_UNITS, strip_array, unit_factor
from .whole_files import require_whole_trajectory

#: What may lie beside positions, one value a frame.
BESIDE = ("forces", "weights", "bias_energy", "box")

#: Arrays of an .npz from this size on are not loaded.
_MAPPED_BYTES = 1 << 20

_Item = TypeVar("_Item")

_MDTRAJ_FORMATS = (".dcd", ".xtc", ".trr", ".nc", ".pdb")


@dataclass(frozen=True, eq=False)
class Source:
    """One file or array: a part of a trajectory, or something given beside the whole of it.

    Attributes:
        name: the file, or "" for an array.
        positions: a file that mdtraj reads, something array-like (frames, atoms, 3), or None.
        beside: what else it holds, name -> array-like (frames, ...).
    """

    name: str
    positions: Any
    beside: dict[str, Any]

    @property
    def label(self) -> str:
        """How errors name it."""
        return self.name or "the position array"


@dataclass(frozen=True)
class _Stored:
    """An array in an HDF5 file, read a slice at a time."""

    path: Path
    name: str
    shape: tuple[int, ...]
    factor: float = 1.0

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, frames: slice) -> np.ndarray:
        with open_hdf5_file(self.path) as handle:
            return np.asarray(handle[self.name][frames]) * self.factor


def open_file(path: Path) -> Source:
    """Open a trajectory file of any known format.

    Raises:
        InputError: if it is damaged, lacks positions, or its format is unknown.
    """
    suffix = path.suffix.lower()
    if suffix in _MDTRAJ_FORMATS:
        return Source(str(path), path, {})
    try:
        if suffix == ".npz":
            return _open_npz(path)
        if suffix == ".npy":
            array = require_numbers(load_arrays(path, mmap_mode="r"), "its array")
            return Source(str(path), array, {})
        if suffix in (".h5", ".hdf5"):
            return _open_mdtraj_hdf5(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot read {path}: {first_line(error)}; it is damaged or cut short, make it again"
        ) from error
    raise InputError(
        f"trajectory {path} has an unknown format {suffix!r}; give "
        f"{', '.join(_MDTRAJ_FORMATS)}, .h5, .npz or .npy"
    )


def _open_npz(path: Path) -> Source:
    with load_arrays(path) as handle:
        if "positions" not in handle.files:
            raise InputError(
                f"{path} has no array 'positions' (it has {', '.join(handle.files)}); "
                "rename the array"
            )
        beside = {n: _npz_array(path, handle, n) for n in BESIDE if n in handle.files}
        return Source(str(path), _npz_array(path, handle, "positions"), beside)


def _npz_array(path: Path, handle: Any, name: str) -> np.ndarray:
    """Return an array of an open .npz; a large one that is not compressed stays on disk."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < _MAPPED_BYTES:
            return require_numbers(handle[name], name)
        with archive.open(entry) as content:
            while content.read(1 << 20):
                pass  # to its end, where its checksum is compared
    with open(path, "rb") as raw:
        raw.seek(entry.header_offset + 26)
        raw.seek(sum(struct.unpack("<2H", raw.read(4))), 1)  # its name and extra field
        npy = np.lib.format
        first = npy.read_magic(raw) == (1, 0)
        header = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
        shape, fortran, kind = header(raw)
        if kind.hasobject:
            return handle[name]  # which refuses it
        at = raw.tell()
    require_numbers(np.empty(0, kind), name)
    return np.memmap(path, kind, mode="r", offset=at, shape=shape, order="F" if fortran else "C")


def _open_mdtraj_hdf5(path: Path) -> Source:
    with open_hdf5_file(path) as handle:
        if "coordinates" not in handle:
            raise InputError(
                f"{path} is not an MDTraj HDF5 trajectory (no 'coordinates'); "
                "give an all-atom trajectory"
            )
        stored = handle["coordinates"]
        unit = stored.attrs.get("units", "nanometers")
        unit = (unit.decode() if isinstance(unit, bytes) else str(unit)).removesuffix("s")
        factor = unit_factor(LENGTH_UNITS, unit, f"{path}: length")
        positions = _Stored(path, "coordinates", stored.shape, factor)
        beside: dict[str, Any] = {}
        if "cell_lengths" in handle:
            lengths = np.asarray(handle["cell_lengths"]) * factor
            beside["box"] = box_vectors(lengths, np.asarray(handle["cell_angles"]))
        for name in ("forces", "weights", "bias_energy"):
            if name in handle:
                beside[name] = _Stored(path, name, handle[name].shape)
    return Source(str(path), positions, beside)


def read_array(source: Any, name: str) -> Source:
    """Return an array given beside a trajectory: an array itself, a quantity, .npy or .npz.

    Args:
        source: the array or its file.
        name: what it is: one of `BESIDE`; in an .npz, the array's name.

    Raises:
        InputError: if the file is missing or damaged, or lacks the array.
    """
    if not isinstance(source, (str, Path)):
        units = {"forces": "kilojoule/mole/nanometer", "bias_energy": "kilojoule/mole"}
        array = strip_array(source, units.get(name, "dimensionless"), what=name)
        return Source("", None, {name: array})
    path = require_file(source, name)
    try:
        loaded = load_arrays(path, mmap_mode="r")
        if isinstance(loaded, np.ndarray):
            return Source(str(path), None, {name: require_numbers(loaded, "its array")})
        with loaded:
            if name not in loaded.files:
                raise InputError(
                    f"{path} has no array {name!r} (it has {', '.join(loaded.files)}); rename it"
                )
            return Source(str(path), None, {name: _npz_array(path, loaded, name)})
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot read {name} from {path}: {first_line(error)}; give a whole .npy or .npz file"
        ) from error


def read_positions(
    source: Source, top: Any, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield positions (frames, atoms, 3) and box vectors of at most `size` frames at a time.

    Raises:
        InputError: if the file is damaged, cut short, or does not fit the topology.
    """
    import mdtraj

    if not isinstance(source.positions, Path):
        for start in range(0, len(source.positions), size):
            yield source.positions[start : start + size], None
        return
    path = source.positions
    require_whole_trajectory(path)
    if path.suffix.lower() == ".dcd":
        yield from read_dcd(path, dcd_layout(path), top.n_atoms, size)
        return
    with_top = {} if path.suffix.lower() == ".pdb" else {"top": top}
    chunks = iter(mdtraj.iterload(str(path), chunk=size, **with_top))
    while True:
        try:
            chunk = next(chunks)
        except StopIteration:
            return
        except Exception as error:
            reason = first_line(error)
            if "atoms" in reason or "shape" in reason:
                raise InputError(
                    f"{path} does not fit the topology of {top.n_atoms} atoms ({reason}); "
                    "give the topology that it was written with"
                ) from error
            raise InputError(
                f"{path} is damaged or cut short ({reason}); "
                "make it again, or cut it to whole frames"
            ) from error
        if chunk.n_frames == 0:
            return
        yield chunk.xyz, unit_cells(chunk)


def unit_cells(frames: Any) -> np.ndarray | None:
    """Return the box vectors (frames, 3, 3), nm, of an mdtraj.Trajectory; None without.

    Its own `unitcell_vectors` looks at the frames one by one, which takes four times as long as
    to read them.
    """
    if frames.unitcell_lengths is None or frames.unitcell_angles is None:
        return None
    return box_vectors(frames.unitcell_lengths, frames.unitcell_angles)


class FileHashes:
    """SHA-256 of files, taken in a thread of its own while something else reads them.

    Hashing needs the interpreter only between the pieces that it reads, which are large: a reader
    in C keeps it for a whole chunk of frames.

    Args:
        files: name -> file.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = dict(files)
        self._found: dict[str, str] = {}
        self._error: InputError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def beside(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """Yield the items and hash meanwhile; where they end early, so does the hashing."""
        self._thread.start()
        try:
            yield from items
            self._thread.join()
        finally:
            self._stop.set()

    def result(self) -> dict[str, str]:
        """Return the hex digests by name, when all items have come.

        Raises:
            InputError: if a file could not be read again.
        """
        if self._error is not None:
            raise self._error
        return self._found

    def _run(self) -> None:
        buffer = memoryview(bytearray(1 << 24))
        for name, file in self._files.items():
            digest = hashlib.sha256()
            try:
                with open(file, "rb", buffering=0) as handle:
                    while (count := handle.readinto(buffer)) and not self._stop.is_set():
                        digest.update(buffer[:count])
            except OSError as error:
                self._error = InputError(
                    f"cannot read {file} once more for its SHA-256 ({first_line(error)}); keep it "
                    "in place while it is mapped"
                )
                return
            self._found[name] = digest.hexdigest()
