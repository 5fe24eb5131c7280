"""Whole files: a half-written one is never seen under its final name, a cut one never read."""

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it there when the block succeeds.

    The temporary file is flushed to disk before the rename and removed if the block raises, so
    the file under its final name is always complete: the old one or the new one.

    Raises:
        InputError: as `require_writable`.
    """
    path = require_writable(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with open(partial, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def require_writable(path: str | Path) -> Path:
    """Check early, before long work, that an output file can be written there.

    Raises:
        InputError: if the folder is missing or not writable, or the path is a folder.
    """
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {path}: folder {folder} is not writable; choose another")
    return path


def require_file(path: str | Path, what: str = "file") -> Path:
    """Check that an input file exists.

    Raises:
        InputError: if it is missing, a folder, or empty.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{what} {path} does not exist; check the path")
    if not path.is_file():
        raise InputError(f"{what} {path} is not a file; give a file")
    if path.stat().st_size == 0:
        raise InputError(f"{what} {path} is empty; it was probably cut short, make it again")
    return path


def sha256(path: str | Path) -> str:
    """Return the SHA-256 hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
