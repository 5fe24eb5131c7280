"""HDF5 files: written with checksums, and those of strangers opened with limits."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from .archives import most_expanded
from .errors import InputError

_MOST_OBJECTS = 100_000
#: Strings of no fixed length may share their bytes, so that few bytes become many.
_MOST_TEXTS = 16
#: deflate, shuffle, checksums, szip, nbit, scale-offset, lzf: those that come with h5py. Any
#: other would be a plugin, machine code that HDF5 looks for in a folder.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
_KINDS = {"INTEGER", "FLOAT", "STRING", "ENUM"}
#: HDF5 1.8's format, which everything reads and whose descriptions of objects carry checksums: a
#: damaged one is an error at once. In the older one, h5py's own choice, it may be followed without
#: end; newer ones refuse a file whose writer was killed.
_FORMAT = ("v108", "v108")
#: Begin of a heap: signature, version, three zeros.
_HEAP = b"GCOL\x01\0\0\0"


def write_hdf5_file(path: str | Path, mode: str = "w", **options: Any) -> Any:
    """Return an h5py.File, open for writing.

    Args:
        path: the file, or its name in memory.
        mode: ``"w"``: a new one; ``"a"``: more in one of this package's own.
        options: of `h5py.File`.

    Raises:
        OSError: if it cannot be written.
    """
    import h5py

    return h5py.File(path, mode, libver=_FORMAT, **options)


def stored_text(text: str) -> Any:
    """Return a text as it is written to HDF5: of fixed length, beside what it describes.

    Texts of no fixed length, h5py's own choice, lie in heaps, which have no checksums.
    """
    import h5py

    raw = text.encode() or b"\0"  # HDF5 has no text of length zero
    return np.array(raw, dtype=h5py.string_dtype("utf-8", len(raw)))


def text_of(value: Any) -> str:
    """Return a text that was read from HDF5, written in either way.

    Raises:
        UnicodeDecodeError: if it is damaged.
    """
    value = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    return value.decode() if isinstance(value, bytes) else str(value)


def kind_of(handle: Any) -> str:
    """Return what an open file says it is; "dataset" where it says nothing."""
    kind = handle.attrs.get("kind", "dataset")
    # Compared with known words only: a damaged one is none of them.
    return kind.decode(errors="replace") if isinstance(kind, bytes) else str(kind)


def open_hdf5_file(path: str | Path) -> Any:
    """Return an open h5py.File, for reading, after looking at every object in it.

    Raises:
        OSError: if the file is damaged or cut short.
        InputError: if it links to other files, needs plugins, holds objects other than groups and
            numbers or text, or would expand to far more than its size.
    """
    import h5py

    handle = h5py.File(path, "r")
    try:
        _Inspection(handle, Path(path)).run()
    except InputError:
        handle.close()
        raise
    except Exception as error:  # h5py has one for every kind of damage
        handle.close()
        raise OSError(f"damaged ({type(error).__name__})") from error
    except BaseException:
        handle.close()
        raise
    return handle


class _Inspection:
    """Walk over all links of a file; group cycles are walked once."""

    def __init__(self, handle: Any, path: Path) -> None:
        self._root, self._path = handle.id, path
        self._limit = most_expanded(path.stat().st_size)
        self._objects = self._bytes = 0
        self._has_heaps = False
        self._error: Exception | None = None

    def run(self) -> None:
        self._look_at_attributes(b"/", self._root)
        self._root.links.visit(self._visit, info=True)
        if self._error is not None:
            raise self._error
        if self._has_heaps:
            _require_whole_heaps(self._path)

    def _visit(self, name: bytes, link: Any) -> bool | None:
        """Look at one link; HDF5 loses an error that is raised here, and stops at any answer."""
        try:
            self._look(name, link)
        except Exception as error:
            self._error = error
            return True
        return None

    def _look(self, name: bytes, link: Any) -> None:
        from h5py import h5d, h5l, h5o

        self._objects += 1
        if self._objects > _MOST_OBJECTS:
            raise self._refused(name, f"is one of more than {_MOST_OBJECTS} objects")
        if link.type != h5l.TYPE_HARD:
            raise self._refused(name, "is a link to another place or file")
        if h5o.get_info(self._root, name).type == h5o.TYPE_DATASET:
            self._look_at_numbers(name, h5d.open(self._root, name))
        self._look_at_attributes(name, h5o.open(self._root, name))

    def _look_at_attributes(self, name: bytes, owner: Any) -> None:
        from h5py import h5a

        count = h5a.get_num_attrs(owner)
        self._objects += count
        if self._objects > _MOST_OBJECTS:
            raise self._refused(name, f"has one of more than {_MOST_OBJECTS} attributes")
        for number in range(count):
            self._note_heap(h5a.open(owner, index=number).get_type())

    def _note_heap(self, kind: Any) -> None:
        """Note if values of this type lie in a heap: all but numbers and texts of fixed length."""
        from h5py import h5t

        numbers = (h5t.INTEGER, h5t.FLOAT, h5t.ENUM, h5t.BITFIELD)
        if kind.get_class() == h5t.STRING:
            self._has_heaps |= kind.is_variable_str()
        else:
            self._has_heaps |= kind.get_class() not in numbers

    def _look_at_numbers(self, name: bytes, data: Any) -> None:
        from h5py import h5d, h5t

        created, kind = data.get_create_plist(), data.get_type()
        names = {getattr(h5t, k): k for k in (*_KINDS, "REFERENCE", "VLEN", "COMPOUND", "OPAQUE")}
        if (found := names.get(kind.get_class(), "unknown")) not in _KINDS:
            raise self._refused(name, f"holds elements of kind {found.lower()}")
        self._note_heap(kind)
        if created.get_layout() == h5d.VIRTUAL or created.get_external_count():
            raise self._refused(name, "has its numbers in another file")
        for number in range(created.get_nfilters()):
            if created.get_filter(number)[0] not in _FILTERS:
                raise self._refused(name, "needs a plugin to be read")
        shape = data.get_space().get_simple_extent_dims()
        count = 1
        for length in shape:
            count *= length
        if kind.get_class() == h5t.STRING and kind.is_variable_str() and count > _MOST_TEXTS:
            raise self._refused(name, f"holds {count} texts")
        self._bytes += count * kind.get_size()
        chunk = kind.get_size()
        if created.get_layout() == h5d.CHUNKED:
            for length in created.get_chunk():
                chunk *= length
        if max(self._bytes, chunk) > self._limit:
            raise self._refused(name, f"of shape {shape} would take {self._bytes} bytes of memory")

    def _refused(self, name: bytes, why: str) -> InputError:
        return InputError(
            f"{self._path}: {name.decode(errors='replace')[:60]!r} {why}, which no file of this "
            "kind does; make it again, with the numbers in the file itself"
        )


def _require_whole_heaps(path: Path) -> None:
    """Refuse a file with a heap whose parts do not fill it: HDF5 follows them without end.

    Raises:
        OSError: if there is one.

    Reference: HDF5 file format specification 3.0, III.E, global heap.
    """
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        at = raw.find(_HEAP)
        while at >= 0:
            end = at + int.from_bytes(raw[at + 8 : at + 16], "little")
            place = at + 16
            # What is left at the end is free, and may be too short to say so.
            while place + 16 <= min(end, len(raw)):
                size = int.from_bytes(raw[place + 8 : place + 16], "little")
                free = raw[place : place + 2] == b"\0\0"
                length = size if free else 16 + (size + 7) // 8 * 8
                if length < 16 or place + length > end:
                    raise OSError("damaged heap")
                place += length
            if end > len(raw):
                raise OSError("damaged heap")
            at = raw.find(_HEAP, at + 4)
