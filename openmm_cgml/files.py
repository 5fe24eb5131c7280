"""Writing files so that a half-written one is never seen under its final name."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        InputError: if it is missing, a folder, a pipe or device, empty, or may not be read.
    """
    path = Path(path)
    try:
        status = path.stat()  # once: it may be removed meanwhile
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{what} {path} does not exist; check the path") from error
    except (OSError, ValueError) as error:  # links in a circle, a name that is too long, ...
        raise InputError(
            f"{what} {path!s:.200} cannot be opened ({error}); check the path"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{what} {path} is not a file; give a file")
    if status.st_size == 0:
        raise InputError(f"{what} {path} is empty; it was probably cut short, make it again")
    if not os.access(path, os.R_OK):
        raise InputError(f"{what} {path} may not be read; change its permissions")
    return path


def sha256(path: str | Path) -> str:
    """Return the SHA-256 hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def segments_folder(path: str | Path) -> Path:
    """Return where a run keeps its closed segments until it is finished."""
    path = Path(path)
    return path.with_name(path.name + ".segments")
