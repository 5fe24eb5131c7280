"""Where a result comes from: versions, hashes of the files that were read, and the time."""

import importlib.metadata
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from .files import sha256

#: Distributions whose versions change numbers.
PACKAGES = (
    "openmm_cgml",
    "torch",
    "openmm",
    "openmmtorch",
    "mdtraj",
    "ParmEd",
    "numpy",
    "scipy",
    "h5py",
    "lightning",
)

#: Larger files are told apart by their size and name: hashing them would take minutes.
_LARGEST = 4 << 30


def versions() -> dict[str, str]:
    """Return package -> version, or "not installed"; nothing is imported."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def fingerprint(path: str | Path) -> str:
    """Return "sha256:..." of a file's content, or "bytes:..." where it is too large to hash."""
    path = Path(path)
    size = path.stat().st_size
    return f"bytes:{size}" if size > _LARGEST else f"sha256:{sha256(path)}"


def fingerprints(paths: Iterable[str | Path]) -> dict[str, str]:
    """Return path -> `fingerprint`."""
    return {str(path): fingerprint(path) for path in paths}


def describe(paths: Iterable[str | Path | None], **settings: object) -> dict[str, object]:
    """Return where a page's numbers come from: the files that were read, settings, versions.

    Args:
        paths: files; None where one was not given.
        settings: seed and what else tells the numbers apart.
    """
    # Names alone: pages are passed on, and say nothing of their maker's folders.
    read: dict[str, str] = {}
    for path in dict.fromkeys(Path(p) for p in paths if p is not None):
        name, number = path.name, 2
        while name in read:  # of another folder
            name, number = f"{path.name} ({number})", number + 1
        read[name] = fingerprint(path)
    return {"date": now(), **settings, "inputs": read, "versions": versions()}


def now() -> str:
    """Return the time, ISO 8601, UTC, seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
