"""The native force: made from a model, its package found when a Context is.

`create_force` makes it; `read_copies` and `set_scales` reach single copies in a Context. A model
that cannot be compiled runs as TorchScript in the same force.
"""

import functools
import hashlib
import logging
from typing import Any

import torch  # before openmm: the library needs both

from ..errors import BackendError, InputError
from ..model_file import ModelFile
from . import library
from .library import read_copies, set_scales, status
from .package import compile_package, find_package

__all__ = ["create_force", "load", "problem", "read_copies", "set_scales", "status"]

logger = logging.getLogger(__name__)

# Models of which the user knows that they run as TorchScript, and in which shape.
_told: set[tuple[str, bool, bool, str]] = set()


def create_force(
    model: ModelFile,
    particles: Any = None,
    copies: int = 1,
    *,
    periodic: bool = False,
    guarded: bool = False,
    scale_parameter: str | None = None,
    platform: str | None = None,
) -> Any:
    """Return the Force of a model, its network compiled for this machine where that can be done.

    Args:
        model: the model file.
        particles: as in `Model.create_force`.
        copies: number of copies.
        periodic: whether the System is.
        guarded: hold copies still whose energy or forces are not finite, and count them.
        scale_parameter: a Context parameter (1 by default) that multiplies energy and forces.
        platform: OpenMM's platform on which it will run, which says where the network should.

    Returns:
        An openmm.Force. Copies of it (XML, deepcopy, pickle) are the same force; in a process
        that has not imported this package, call `load` before reading the XML.

    Raises:
        BackendError: if the force cannot be built here.
        InputError: if the particles do not fit.
    """
    load()
    model.check_particles(particles, copies)
    device = device_for(platform)
    key = _key(model.archive, copies, periodic, device)
    if key not in _told:
        try:
            compile_package(model, copies, periodic, device)
        except InputError as error:
            logger.warning("%s; it runs as TorchScript in the native force, slower", error)
            _told.add(key)
    return library.make_force(
        model.archive,
        model=" ".join(model.name.split()),  # it stands in a line of the resolver's question
        copies=copies,
        beads=len(model.topology),
        particles=particles,
        periodic=periodic,
        guarded=guarded,
        parameter=scale_parameter or "",
    )


@functools.cache
def load() -> None:
    """Load the native force, built first if need be, so that OpenMM can read it from XML.

    Raises:
        BackendError: if it cannot be built or loaded.
    """
    library.register(_answer)


@functools.cache
def problem() -> str | None:
    """Return why the native force cannot be used in this process, or None if it can."""
    try:
        load()
    except BackendError as error:
        return str(error)
    return None


def device_for(platform: str | None) -> str:
    """Return the torch device that suits an OpenMM platform; None: the best there is."""
    on_gpu = platform in (None, "CUDA", "HIP") and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"


def _key(archive: bytes, copies: int, periodic: bool, device: str) -> tuple[str, bool, bool, str]:
    return hashlib.sha256(archive).hexdigest(), copies == 1, periodic, device


def _answer(archive: bytes, question: list[str]) -> list[str]:
    """Find the package for a force whose Context is being made; see `library.register`."""
    name, copies, periodic, platform, devices = question
    kind = device_for(platform)
    place = f"{kind}:{devices.split(',')[0] or 0}" if kind == "cuda" else kind
    for device in dict.fromkeys((kind, "cpu")):
        package = find_package(archive, int(copies), periodic == "1", device)
        if package is not None:
            where = place if device == kind else device
            return [str(package.path), where, str(package.copies), str(package.threads)]
    key = _key(archive, int(copies), periodic == "1", kind)
    if key not in _told:
        _told.add(key)
        logger.warning(
            "this machine has no compiled package of model %s; it runs as TorchScript, slower "
            "(`cgml compile` makes one)",
            name,
        )
    return ["", place, "0", "1"]
