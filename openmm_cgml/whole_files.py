"""Refusing trajectory files that were cut short, of formats whose readers say nothing."""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .dcd import check_dcd
from .errors import InputError

#: Magic number, size, step, time and box, and number of atoms once more.
_XTC_HEADER = struct.Struct(">i48xi")


def require_whole_trajectory(path: Path) -> None:
    """Refuse a DCD, XTC, TRR or NetCDF file that ends inside a frame, or with frames missing.

    Readers of these formats stop in silence at some such places. Other formats pass.

    Raises:
        InputError: if the file is cut short or not of its format.
    """
    suffix = path.suffix.lower()
    checks: dict[str, Callable[[BinaryIO, int, str], str | None]] = {
        ".dcd": lambda _, size, __: check_dcd(path, size),
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
    measure: Callable[[Any, int], int] = {".xtc": _xtc_frame, ".trr": _trr_frame}[suffix]
    held = end = 0
    # Mapped: seeking and reading take longer than to unpack small compressed frames.
    with mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ) as content:
        while end < size:
            try:
                length = measure(content, end)
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


def _xtc_frame(content: Any, at: int) -> int:
    """Return the length in bytes of the XTC frame whose header is at `at`."""
    magic, *_, atoms = _XTC_HEADER.unpack_from(content, at)
    if magic not in (1995, 2023):
        raise ValueError("not an XTC frame")
    if atoms <= 9:
        return 56 + 12 * atoms
    kind, width = (">i", 4) if magic == 1995 else (">q", 8)
    (packed,) = struct.unpack_from(kind, content, at + 88)
    return 88 + width + (packed + 3) // 4 * 4


def _trr_frame(content: Any, at: int) -> int:
    """Return the length in bytes of the TRR frame whose header is at `at`."""
    magic, _, name = struct.unpack_from(">3i", content, at)
    if magic != 1993:
        raise ValueError("not a TRR frame")
    name = (name + 3) // 4 * 4
    if name < 0:
        raise ValueError("damaged header")
    *sizes, atoms, _, _ = struct.unpack_from(">13i", content, at + 12 + name)
    box, arrays = sizes[2], [s for s in sizes[-3:] if s]
    double = box == 72 if box else bool(arrays) and arrays[0] == 24 * atoms
    return 12 + name + 52 + (16 if double else 8) + sum(sizes)
