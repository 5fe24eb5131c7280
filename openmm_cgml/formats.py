"""Files of frames: opening each format, and refusing those that were cut short."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import InputError, first_line
from .files import require_file
from .units import LENGTH_UNITS, strip_array, unit_factor

#: What may lie beside positions, one value a frame.
BESIDE = ("forces", "weights", "bias_energy", "box")

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
        import h5py

        with h5py.File(self.path, "r") as handle:
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
            return Source(str(path), np.load(path, mmap_mode="r", allow_pickle=False), {})
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
    with np.load(path, allow_pickle=False) as handle:
        if "positions" not in handle.files:
            raise InputError(
                f"{path} has no array 'positions' (it has {', '.join(handle.files)}); "
                "rename the array"
            )
        beside = {name: handle[name] for name in BESIDE if name in handle.files}
        return Source(str(path), handle["positions"], beside)


def _open_mdtraj_hdf5(path: Path) -> Source:
    import h5py
    import mdtraj.utils

    with h5py.File(path, "r") as handle:
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
            vectors = mdtraj.utils.lengths_and_angles_to_box_vectors(
                *lengths.T, *np.asarray(handle["cell_angles"]).T
            )
            beside["box"] = np.stack(vectors, axis=1)
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
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return Source(str(path), None, {name: loaded})
        with loaded:
            if name not in loaded.files:
                raise InputError(
                    f"{path} has no array {name!r} (it has {', '.join(loaded.files)}); rename it"
                )
            return Source(str(path), None, {name: loaded[name]})
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
        yield chunk.xyz, chunk.unitcell_vectors


def require_whole_trajectory(path: Path) -> None:
    """Refuse a DCD, XTC, TRR or NetCDF file that ends inside a frame, or with frames missing.

    Readers of these formats stop in silence at some such places. Other formats pass.

    Raises:
        InputError: if the file is cut short or not of its format.
    """
    suffix = path.suffix.lower()
    checks = {
        ".dcd": _check_dcd,
        ".xtc": _check_frames,
        ".trr": _check_frames,
        ".nc": _check_netcdf,
    }
    if suffix not in checks:
        return
    try:
        with open(path, "rb") as handle:
            problem = checks[suffix](handle, path.stat().st_size, suffix)
    except (struct.error, ValueError):
        problem = f"is not a {suffix[1:].upper()} file, or damaged or cut short in its header"
    if problem:
        raise InputError(f"{path} {problem}; make it again, or cut it to whole frames")


def _check_dcd(handle: BinaryIO, size: int, _: str) -> str | None:
    head = handle.read(92)
    order = "<" if head[:4] == struct.pack("<i", 84) else ">"
    marker, promised, fixed, cell, fourth, version, end = (
        struct.unpack_from(order + "i", head, at)[0] for at in (0, 8, 40, 48, 52, 84, 88)
    )
    if (marker, end, head[4:8]) != (84, 84, b"CORD"):
        raise ValueError("not a DCD header")
    if fixed:
        return None  # its frames differ in length
    (title,) = struct.unpack(order + "i", handle.read(4))
    handle.seek(title + 4, 1)
    _, atoms, _ = struct.unpack(order + "3i", handle.read(12))
    # X-PLOR's files (version 0) have neither flag but a number of another kind in their place.
    blocks = 4 if version and fourth else 3
    frame = blocks * (4 * atoms + 8) + (56 if version and cell else 0)
    held, rest = divmod(size - handle.tell(), frame)
    if rest or held < promised:
        part = " and a part of one" if rest else ""
        return f"is cut short: its header says {promised} frames, it holds {held}{part}"
    return None


def _check_netcdf(handle: BinaryIO, size: int, _: str) -> str | None:
    """Map the frames that the header promises; the netCDF library fills in missing ones."""
    import scipy.io

    if handle.read(3) != b"CDF":
        return None  # a later format inside HDF5, which reports its own damage
    try:
        with scipy.io.netcdf_file(handle.name, "r", mmap=True):
            return None
    except Exception:  # its parser meets damage with errors of every kind
        return "is damaged or cut short"


def _check_frames(handle: BinaryIO, size: int, suffix: str) -> str | None:
    """Step from frame header to frame header of a file without an index."""
    measure: Callable[[BinaryIO], int] = {".xtc": _xtc_frame, ".trr": _trr_frame}[suffix]
    held = end = 0
    while end < size:
        handle.seek(end)
        try:
            length = measure(handle)
            if length <= 0:
                raise ValueError("damaged header")
            end += length
        except struct.error:
            end = size + 1
        except ValueError:
            if held:
                return f"is damaged: no frame begins after the first {held}"
            raise
        if end > size:
            return f"is cut short: it holds {held} frames and a part of one"
        held += 1
    return None


def _xtc_frame(handle: BinaryIO) -> int:
    """Return the length in bytes of the XTC frame whose header comes next."""
    magic, *_, atoms = struct.unpack(">3i10fi", handle.read(56))
    if magic not in (1995, 2023):
        raise ValueError("not an XTC frame")
    if atoms <= 9:
        return 56 + 12 * atoms
    handle.seek(32, 1)
    kind, width = (">i", 4) if magic == 1995 else (">q", 8)
    (packed,) = struct.unpack(kind, handle.read(width))
    return 88 + width + (packed + 3) // 4 * 4


def _trr_frame(handle: BinaryIO) -> int:
    """Return the length in bytes of the TRR frame whose header comes next."""
    magic, _, name = struct.unpack(">3i", handle.read(12))
    if magic != 1993:
        raise ValueError("not a TRR frame")
    name = (name + 3) // 4 * 4
    handle.seek(name, 1)
    *sizes, atoms, _, _ = struct.unpack(">13i", handle.read(52))
    box, arrays = sizes[2], [s for s in sizes[-3:] if s]
    double = box == 72 if box else bool(arrays) and arrays[0] == 24 * atoms
    return 12 + name + 52 + (16 if double else 8) + sum(sizes)
