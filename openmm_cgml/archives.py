"""Zip archives and arrays of strangers, compared with limits before anything is unpacked.

zipfile and numpy believe what a file says of its sizes; other readers may find other entries.
"""

import io
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

#: Bytes that any file may expand to, whatever its own size.
ALLOWANCE = 1 << 28
#: How often its own size a file may expand to beyond the allowance; trajectories reach 5.
RATIO = 32

_MOST_ENTRIES = 100_000
_END = b"PK\x05\x06"


class Refused(ValueError):
    """An archive is damaged, or made to mislead its reader."""


class Unsafe(Refused):
    """An archive holds more than numbers and arithmetic."""


def most_expanded(size: int) -> int:
    """Return how many bytes a file of `size` bytes may expand to in memory."""
    return ALLOWANCE + RATIO * size


def require_modest_zip(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse a zip file that expands to too much, or in which two entries share a name or bytes.

    Args:
        archive: the open file; only its table of contents is looked at.
        size: of the file, bytes.

    Raises:
        Refused: saying why.
    """
    entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES:
        raise Refused(f"it has {len(entries)} entries; at most {_MOST_ENTRIES} are read")
    expanded = sum(entry.file_size for entry in entries)
    if expanded > most_expanded(size):
        raise Refused(f"its {size} bytes would expand to {expanded}")
    if len({entry.filename.lower() for entry in entries}) != len(entries):
        raise Refused("two of its entries have one name")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise Refused("two of its entries overlap")
        if entry.flag_bits & 0x1 or entry.compress_type not in (0, 8):
            raise Refused("it is encrypted or compressed by an unusual method")
        end = entry.header_offset + 30 + len(entry.filename.encode()) + entry.compress_size
    if end > size:
        raise Refused("an entry reaches beyond its end")


def read_zip(raw: bytes) -> dict[str, bytes]:
    """Return the entries of a zip file that every reader reads alike, checksums compared.

    Nothing may stand before the first entry or after the end of the table of contents, which may
    stand there once only.

    Raises:
        Refused: saying why.
    """
    if not raw.startswith(b"PK\x03\x04") or raw[-22:-18] != _END or raw[-2:] != b"\0\0":
        raise Refused("it is no zip file, or something stands before or after it")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            require_modest_zip(archive, len(raw))
            if min(entry.header_offset for entry in archive.infolist()) != 0:
                raise Refused("something stands before its first entry")
            return {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except Refused:
        raise
    except Exception as error:  # zipfile lets errors of zlib, struct and others through
        raise Refused(f"it is damaged ({error})") from error


def without_folder(entries: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the entries of a PyTorch file without the one folder that they all lie in.

    Raises:
        Refused: if there are several.
    """
    folders = {name.partition("/")[0] for name in entries}
    if len(folders) != 1 or any("/" not in name for name in entries):
        raise Refused("its entries do not lie in one folder")
    return {name.partition("/")[2]: content for name, content in entries.items()}


def load_arrays(path: Any, **options: Any) -> Any:
    """Return what `numpy.load` does of an .npy or .npz file, never an object that is pickled.

    Args:
        path: the file.
        options: of `numpy.load`.

    Raises:
        Refused: if an .npz would expand to far more than its size.
        Exception: as `numpy.load`, for damaged files.
    """
    import numpy as np

    with nullcontext(path) if hasattr(path, "read") else open(path, "rb") as handle:
        if handle.read(2) == b"PK":
            with zipfile.ZipFile(handle) as archive:
                require_modest_zip(archive, handle.seek(0, 2))
        handle.seek(0)
    return np.load(path, **options, allow_pickle=False)


def require_numbers(array: Any, what: str) -> Any:
    """Return an array after checking that it holds plain numbers.

    Raises:
        Refused: if it holds text, records or anything else.
    """
    if array.dtype.kind not in "biuf":
        raise Refused(f"{what} is of type {array.dtype!s:.40}, not of numbers")
    return array
