"""Compiled code is kept on this machine, in folders named by all that it depends on.

A folder is complete or not there: it is built beside its place and moved there in one step. Its
content is checked against a hash before it is loaded, so a cut or changed file is built again.
Everything in it can be deleted at any time.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..files import atomic_path, sha256

try:
    import fcntl
except ImportError:  # Windows: two processes may build the same, and the first one's stays
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

#: Environment variable: where compiled code is kept, instead of the user's cache folder.
FOLDER_VARIABLE = "OPENMM_CGML_CACHE"

_CODE, _CARD = "code.so", "card.json"


def folder() -> Path:
    """Return the folder of compiled code; it need not exist."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "openmm_cgml"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openmm_cgml"


def find(kind: str, settings: dict[str, Any]) -> Path | None:
    """Return the compiled code of these settings if it is there and whole."""
    for root in (folder(), *_own_folders()):
        place = root / kind / _key(settings)
        if _is_whole(place):
            return place / _CODE
    return None


def build(
    kind: str, settings: dict[str, Any], make: Callable[[Path], None], announcement: str
) -> Path:
    """Return compiled code, made now if it is not there.

    Of several processes that ask for the same, one builds and the others wait for it.

    Args:
        kind: folder of such code, e.g. ``"packages"``.
        settings: all that the code depends on, JSON.
        make: writes the code to the path that it is given.
        announcement: one line for the user, printed before the build.

    Raises:
        OSError: if the disk is full.
        Exception: whatever `make` raises; nothing is left behind then.
    """
    if (known := find(kind, settings)) is not None:
        return known
    place = _writable_folder(kind) / _key(settings)
    with _lock(place.with_suffix(".lock")):
        if (known := find(kind, settings)) is not None:
            return known
        _remove_leftovers(place)
        print(f"openmm_cgml: {announcement}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix=f"{place.name}.", dir=place.parent) as name:
            made = Path(name) / "made"
            made.mkdir()
            make(made / _CODE)
            card = {"sha256": sha256(made / _CODE), "settings": settings}
            (made / _CARD).write_text(json.dumps(card, indent=1))
            if place.exists():
                logger.warning("%s was damaged; it was built again", place)
                place.rename(Path(name) / "damaged")
            made.rename(place)
    return place / _CODE


def remember(kind: str, question: dict[str, Any], answer: str) -> None:
    """Keep a short answer, in this process at least."""
    key = _key(question)
    _answers[kind, key] = answer
    with suppress(OSError):
        with atomic_path(_writable_folder(kind) / key) as partial:
            partial.write_text(answer)


def recall(kind: str, question: dict[str, Any]) -> str | None:
    """Return the answer that `remember` kept, or None."""
    key = _key(question)
    if (kind, key) not in _answers:
        try:
            _answers[kind, key] = (folder() / kind / key).read_text()
        except (OSError, ValueError):
            return None
    return _answers[kind, key]


_answers: dict[tuple[str, str], str] = {}


@cache
def processor() -> str:
    """Return what machine code depends on: the processor's kind and its instruction sets.

    Code for another processor would end the process (SIGILL) instead of raising an error.
    """
    lines = {platform.machine(), platform.processor()}
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("flags", "Features", "model name", "cpu family")
        lines |= {line for line in info.read_text().splitlines() if line.startswith(wanted)}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _key(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def _is_whole(place: Path) -> bool:
    try:
        card = json.loads((place / _CARD).read_text())
        return bool(card["sha256"] == sha256(place / _CODE))
    except (OSError, ValueError, KeyError, TypeError):
        return False


_temporary: list[tempfile.TemporaryDirectory] = []


def _own_folders() -> list[Path]:
    return [Path(one.name) for one in _temporary]


def _writable_folder(kind: str) -> Path:
    """Return the folder of a kind of code, this process's own where the cache is read-only."""
    root = folder()
    try:
        (root / kind).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root / kind):
            return root / kind
    except OSError as error:
        if not _temporary:
            _temporary.append(tempfile.TemporaryDirectory(prefix="openmm_cgml_"))
            logger.warning(
                "compiled code cannot be kept in %s (%s), so it is built again in every process; "
                "set %s to a folder that can be written",
                root,
                error.strerror or error,
                FOLDER_VARIABLE,
            )
        own = _own_folders()[0] / kind
        own.mkdir(exist_ok=True)
        return own


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock that ends with its process, so that a killed owner keeps nobody waiting."""
    with open(path, "a+") as handle:
        said = False
        while not _try_lock(handle):
            if not said:
                handle.seek(0)
                owner = handle.read().strip() or "another process"
                print(f"openmm_cgml: {owner} builds the same; waiting", file=sys.stderr)
                said = True
            time.sleep(0.2)
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def _try_lock(handle: Any) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        logger.debug("no locks in %s: %s", handle.name, error)
    return True


def _remove_leftovers(place: Path) -> None:
    """Remove what a process that was killed while it built this left; we hold its lock."""
    for left in place.parent.glob(f"{place.name}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
