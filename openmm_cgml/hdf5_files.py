"""Opening HDF5 files of strangers: nothing outside the file, no bombs, no foreign code."""

from pathlib import Path
from typing import Any

from .archives import most_expanded
from .errors import InputError

_MOST_OBJECTS = 100_000
#: Strings of no fixed length may share their bytes, so that few bytes become many.
_MOST_TEXTS = 16
#: deflate, shuffle, checksums, szip, nbit, scale-offset, lzf: those that come with h5py. Any
#: other would be a plugin, machine code that HDF5 looks for in a folder.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
_KINDS = {"INTEGER", "FLOAT", "STRING", "ENUM"}


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
        self._error: Exception | None = None

    def run(self) -> None:
        self._root.links.visit(self._visit, info=True)
        if self._error is not None:
            raise self._error

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

    def _look_at_numbers(self, name: bytes, data: Any) -> None:
        from h5py import h5d, h5t

        created, kind = data.get_create_plist(), data.get_type()
        names = {getattr(h5t, k): k for k in (*_KINDS, "REFERENCE", "VLEN", "COMPOUND", "OPAQUE")}
        if (found := names.get(kind.get_class(), "unknown")) not in _KINDS:
            raise self._refused(name, f"holds elements of kind {found.lower()}")
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
