"""Refusing trajectory files that were cut short, of formats whose readers say nothing."""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .dcd import check_dcd
from .errors import InputError

#: Magic number, number of atoms, step, time and box, number of atoms once more.
_XTC_HEADER = struct.Struct(">2i44xi")
#: Precision, least and greatest integers, and how few bits the smallest steps take.
_XTC_PACKING = struct.Struct(">f7i")
_XTC_BITS = range(9, 73)  # of its table
_XTC_BLOCK = 4096  # frames


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
    starts: list[int] = []
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
            if suffix == ".xtc":
                starts.append(end - length)
                if len(starts) == _XTC_BLOCK or end == size:
                    if not _is_packed_well(np.frombuffer(content, np.uint8), content, starts):
                        return f"is damaged: the packing of one of its first {held} frames"
                    starts.clear()
    return None


def _is_packed_well(numbers: np.ndarray, content: Any, starts: list[int]) -> bool:
    """Whether the packed positions of XTC frames end where they should.

    The reader, in C, writes beyond its arrays where they do not. What a step holds is skipped, and
    only how long it is looked at, in all frames at once.

    Reference: the format is that of the xdrfile library, ``xdr3dfcoord``.
    """
    packings = [p for p in (_xtc_packing(content, at) for at in starts) if p is not None]
    if len(packings) < 64:  # too few to be faster together
        return all(_is_one_packed_well(content, *packing) for packing in packings)
    begin, end, big, bits, left = np.array(packings, dtype=np.int64).T
    at, run = 8 * begin, np.zeros_like(begin)
    while len(at):
        at = at + big
        byte = np.minimum(at >> 3, len(numbers) - 2)
        word = (numbers[byte].astype(np.int64) << 8) | numbers[byte + 1]
        shift = at & 7
        told = (word >> (15 - shift)) & 1  # else as many small steps follow as the last time
        code = (word >> (10 - shift)) & 31
        run = np.where(told, code // 3, run)
        at = at + 1 + 5 * told + run * bits
        bits = bits + told * (code % 3 - 1)
        left = left - 1 - run
        wrong = (left < 0) | (at > 8 * end) | (bits < _XTC_BITS[0]) | (bits > _XTC_BITS[-1])
        if wrong.any():
            return False
        if not left.all():
            more = left > 0
            at, big, bits, left, run, end = (v[more] for v in (at, big, bits, left, run, end))
    return True


def _is_one_packed_well(
    content: Any, begin: int, end: int, big: int, bits: int, left: int
) -> bool:
    packed = content[begin:end] + b"\0\0"
    at, last, run = 0, 8 * (end - begin), 0
    while left > 0:
        at += big
        if at >= last:
            return False
        byte, shift = at >> 3, at & 7
        word = packed[byte] << 8 | packed[byte + 1]
        at += 1
        if word >> (15 - shift) & 1:
            run, change = divmod(word >> (10 - shift) & 31, 3)
            at += 5 + run * bits
            bits += change - 1
            if bits not in _XTC_BITS:
                return False
        else:
            at += run * bits
        left -= 1 + run
    return left == 0 and at <= last


def _xtc_packing(content: Any, at: int) -> tuple[int, int, int, int, int] | None:
    """Return where a frame's packed positions begin and end, bits of a position and of a step."""
    magic, atoms, _ = _XTC_HEADER.unpack_from(content, at)
    if atoms <= 9:
        return None
    kind, width = (">i", 4) if magic == 1995 else (">q", 8)
    (packed,) = struct.unpack_from(kind, content, at + 88)
    _, *ends, bits = _XTC_PACKING.unpack_from(content, at + 56)
    sizes = [high - low + 1 for low, high in zip(ends[:3], ends[3:], strict=True)]
    if max(sizes) > 0xFFFFFF:
        big = sum(min(32, size.bit_length()) for size in sizes)
    else:
        big = (sizes[0] * sizes[1] * sizes[2]).bit_length()
    begin = at + 88 + width
    return begin, begin + packed, big, bits, atoms


def _xtc_frame(content: Any, at: int) -> int:
    """Return the length in bytes of the XTC frame whose header is at `at`."""
    magic, atoms, again = _XTC_HEADER.unpack_from(content, at)
    if magic not in (1995, 2023) or atoms != again or atoms < 0:
        raise ValueError("not an XTC frame")
    if atoms <= 9:
        return 56 + 12 * atoms
    kind, width = (">i", 4) if magic == 1995 else (">q", 8)
    (packed,) = struct.unpack_from(kind, content, at + 88)
    # The reader, in C, trusts all of these: its buffer has room for 3.6 words an atom.
    precision, *ends, bits = _XTC_PACKING.unpack_from(content, at + 56)
    if (
        not 0 < precision < 1e9
        or any(low > high for low, high in zip(ends[:3], ends[3:], strict=True))
        or bits not in _XTC_BITS
        or not 0 < packed <= 4 * int(3.6 * atoms) - 12
    ):
        raise ValueError("damaged packing")
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
    # The reader, in C, makes room for the atoms and reads the sizes.
    if (
        not atoms > 0
        or any(sizes[:2] + sizes[3:7])
        or box not in (0, 36, 72)
        or any(s not in (12 * atoms, 24 * atoms) for s in arrays)
        or len(set(arrays)) > 1
    ):
        raise ValueError("damaged header")
    double = box == 72 if box else bool(arrays) and arrays[0] == 24 * atoms
    return 12 + name + 52 + (16 if double else 8) + sum(sizes)
