"""DCD files: where their frames are, reading them, and whether one was cut short."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .periodic import box_vectors


@dataclass(frozen=True)
class DCDLayout:
    """Where the frames of a DCD file are.

    Attributes:
        promised: number of frames that the header says.
        fixed: number of atoms that are written once only, so that frames differ in length.
        atoms: number of atoms.
        offset: bytes before the first frame.
        record: of one frame; blocks of numbers between markers of their length.
        free: (free atoms,), the atoms that later frames hold; None if that is all.
    """

    promised: int
    fixed: int
    atoms: int
    offset: int
    record: np.dtype[Any]
    free: np.ndarray | None = None

    @property
    def later(self) -> np.dtype[Any]:
        """The record of every frame but the first."""
        if self.free is None:
            return self.record
        names = self.record.names or ()
        fields = [(n, self.record[n]) for n in names]
        count = len(self.free)
        return np.dtype(
            [(n, (k.base, (count,)) if n in ("x", "y", "z", "w") else k) for n, k in fields]
        )


def dcd_layout(path: Path) -> DCDLayout:
    """Read the header.

    Raises:
        ValueError, struct.error: if it is not that of a DCD file, or cut short.
    """
    with open(path, "rb") as handle:
        head = handle.read(92)
        order = "<" if head[:4] == struct.pack("<i", 84) else ">"
        marker, promised, fixed, cell, fourth, version, end = (
            struct.unpack_from(order + "i", head, at)[0] for at in (0, 8, 40, 48, 52, 84, 88)
        )
        if (marker, end, head[4:8]) != (84, 84, b"CORD"):
            raise ValueError("not a DCD header")
        (title,) = struct.unpack(order + "i", handle.read(4))
        handle.seek(title + 4, 1)
        _, atoms, _ = struct.unpack(order + "3i", handle.read(12))
        if promised < 0 or title < 0 or atoms < 0 or not 0 <= fixed <= atoms:
            raise ValueError("not a DCD header")
        free = None
        if fixed:
            block = handle.read(4 * (atoms - fixed) + 8)
            free = np.frombuffer(block[4:-4], order + "i4").astype(np.int64) - 1
            if len(free) != atoms - fixed or ((free < 0) | (free >= atoms)).any():
                raise ValueError("fixed atoms are numbered wrongly")
        offset = handle.tell()
    # X-PLOR's files (version 0) have neither flag but a number of another kind in their place.
    blocks = [("cell", "f8", 6)] if version and cell else []
    blocks += [(name, "f4", atoms) for name in ("xyzw" if version and fourth else "xyz")]
    fields: list[tuple[Any, ...]] = []
    for name, kind, count in blocks:
        fields += [(name + "<", order + "i4"), (name, order + kind, (count,))]
        fields += [(name + ">", order + "i4")]
    return DCDLayout(promised, fixed, atoms, offset, np.dtype(fields), free)


def read_dcd(
    path: Path, layout: DCDLayout, atoms: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Read what mdtraj reads, several times as fast: it goes from number to number.

    Args:
        path: the file.
        layout: of the file.
        atoms: number of atoms of the topology.
        size: frames at a time.

    Yields:
        Positions (frames, atoms, 3), nm, and box vectors (frames, 3, 3), nm, or None.

    Raises:
        InputError: if there is another number of atoms, or a frame is damaged.
    """
    if layout.atoms != atoms:
        raise InputError(
            f"{path} does not fit the topology of {atoms} atoms (it has {layout.atoms}); "
            "give the topology that it was written with"
        )
    with open(path, "rb") as handle:
        handle.seek(layout.offset)
        start = 0
        first: np.ndarray | None = None
        record, count = layout.record, size if layout.free is None else 1
        while len(frames := np.fromfile(handle, record, count)):
            sizes = {n: record[n].itemsize for n in record.names or () if n.isalpha()}
            for name, length in sizes.items():
                wrong = (frames[name + "<"] != length) | (frames[name + ">"] != length)
                if wrong.any():
                    raise InputError(
                        f"{path} is damaged (a wrong marker in frame {start + int(wrong.argmax())}"
                        "); make it again, or cut it to whole frames"
                    )
            positions = np.empty((len(frames), atoms, 3), dtype=np.float32)
            if first is None:
                for axis, name in enumerate("xyz"):
                    np.multiply(frames[name], np.float32(0.1), out=positions[:, :, axis])
            else:
                positions[:] = first
                for axis, name in enumerate("xyz"):
                    positions[:, layout.free, axis] = np.float32(0.1) * frames[name]
            if layout.free is not None and first is None:
                first, record, count = positions[0].copy(), layout.later, size
            yield positions, _dcd_box(frames["cell"]) if "cell" in sizes else None
            start += len(frames)


def _dcd_box(cell: np.ndarray) -> np.ndarray | None:
    """Return box vectors of the numbers a, gamma, b, beta, alpha, c; None where all are zero.

    Angles are in degrees, or cosines where all three of a frame could be (as VMD takes them).
    """
    lengths, angles = 0.1 * cell[:, [0, 2, 5]], cell[:, [4, 3, 1]].astype(np.float64)
    if not lengths.any():
        return None
    cosines = (np.abs(angles) <= 1).all(axis=1)
    angles[cosines] = np.degrees(np.arccos(angles[cosines]))
    return box_vectors(lengths, angles)


def check_dcd(path: Path, size: int) -> str | None:
    """Return what is wrong with a file of `size` bytes that ends too early, None if it is whole.

    Raises:
        ValueError, struct.error: as `dcd_layout`.
    """
    layout = dcd_layout(path)
    held, rest = divmod(size - layout.offset, layout.record.itemsize)
    if layout.free is not None and held:
        later = size - layout.offset - layout.record.itemsize
        held, rest = divmod(later, layout.later.itemsize)
        held += 1
    if rest or held < layout.promised:
        part = " and a part of one" if rest else ""
        return f"is cut short: its header says {layout.promised} frames, it holds {held}{part}"
    return None
