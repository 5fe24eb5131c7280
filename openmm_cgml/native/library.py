"""Building the OpenMM force in force.cpp, loading it, and calling it by ctypes."""

import base64
import ctypes
import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import torch  # before openmm: the library needs both

import numpy as np

import openmm  # isort: skip

from ..errors import BackendError
from ..files import sha256
from . import cache

SOURCE = Path(__file__).with_name("force.cpp")

#: A library that was built with the package (see setup.py), and the card of what it fits.
SHIPPED = Path(__file__).with_name("libcgml.so")

NO_COMPILER = "there is no C++ compiler; install g++, or set CXX"

_Resolver = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64
)


def compiler() -> list[str] | None:
    """Return the C++ compiler, as words of a command; None if there is none."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for words in (chosen, ["g++"], ["c++"], ["clang++"]):
        if words and shutil.which(words[0]):
            return words
    return None


def compile_library(output: str | Path) -> None:
    """Compile force.cpp against the installed torch and OpenMM; needs no Python headers.

    Raises:
        BackendError: if there is no compiler, or it fails.
    """
    words = compiler()
    if words is None:
        raise BackendError(NO_COMPILER)
    command = [*words, *_arguments(), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise BackendError(f"{words[0]} cannot compile the native force: {errors[0][:300]}")


def ship(folder: str | Path) -> None:
    """Compile the library, and write its card, into the folder that `SHIPPED` is in.

    Raises:
        BackendError: as `compile_library`.
    """
    output = Path(folder) / SHIPPED.name
    compile_library(output)
    output.with_suffix(".json").write_text(json.dumps(_fits()))


@functools.cache
def load() -> Any:
    """Return the library (ctypes), built first if need be.

    Raises:
        BackendError: if it cannot be built or loaded.
    """
    if _is_fitting(SHIPPED):
        path = SHIPPED
    else:
        # Not the compiler: where there is none, a library from elsewhere serves.
        settings = {**_fits(), "arguments": _arguments()}
        if compiler() is None and cache.find("libraries", settings) is None:
            raise BackendError(NO_COMPILER)
        line = "building the native force for this torch and OpenMM (once, about 15 s)"
        try:
            path = cache.build("libraries", settings, compile_library, line)
        except OSError as error:
            raise BackendError(f"the native force cannot be kept: {error}") from error
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(f"the native force does not load: {error}") from error
    library.cgml_error.restype = ctypes.c_char_p
    return library


def register(resolver: Callable[[bytes, list[str]], list[str]]) -> None:
    """Tell the library who finds the package of a model when a Context is made.

    Args:
        resolver: gets the model file's bytes and the lines of the question (model, copies,
            periodic, platform, devices); returns path (empty: run the TorchScript), device,
            copies a call (0: any) and threads. An error's text becomes OpenMM's.
    """

    def call(archive: int, size: int, question: bytes, answer: int, room: int) -> int:
        try:
            lines = resolver(ctypes.string_at(archive, size), question.decode().split("\n"))
            status = 0
        except Exception as error:
            lines, status = [str(error).replace("\n", " ")], 1
        text = "\n".join(lines).encode()[: room - 1]
        ctypes.memmove(answer, text + b"\0", len(text) + 1)
        return status

    library = load()
    library.resolver = _Resolver(call)  # kept: ctypes does not
    _check(library, library.cgml_register(library.resolver))


def make_force(
    archive: bytes,
    *,
    model: str,
    copies: int,
    beads: int,
    particles: Any = None,
    periodic: bool = False,
    guarded: bool = False,
    parameter: str = "",
) -> Any:
    """Return the Force (an openmm.Force) of a model file; `register` comes first."""
    indices = [] if particles is None else [int(p) for p in particles]
    attributes = {
        "type": "CGMLForce", "version": 1, "forceGroup": 0, "name": "CGMLForce",
        "model": model, "copies": copies, "beads": beads,
        "periodic": int(periodic), "guarded": int(guarded),
        "parameter": parameter, "defaultValue": 1,
        "archive": base64.b64encode(archive).decode(),
    }  # fmt: skip
    words = " ".join(f"{name}={quoteattr(str(value))}" for name, value in attributes.items())
    rows = "".join(f'<Particle index="{index}"/>' for index in indices)
    return openmm.XmlSerializer.deserialize(
        f"<Force {words}><Particles>{rows}</Particles><Scales/></Force>"
    )


def read_copies(force: Any, context: Any, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each copy's energy (copies,), kJ/mol, and count of sick evaluations (copies,).

    Raises:
        openmm.OpenMMException: if the force has another number of copies, or the model fails.
    """
    energies, sick = np.empty(copies), np.empty(copies, dtype=np.int64)
    pointers = (ctypes.c_void_p(energies.ctypes.data), ctypes.c_void_p(sick.ctypes.data))
    _check(load(), load().cgml_read(*_address(force, context), *pointers, ctypes.c_int64(copies)))
    return energies, sick


def set_scales(force: Any, context: Any, scales: np.ndarray) -> None:
    """Multiply each copy's energy and forces in a Context by its factor (copies,), no unit.

    Raises:
        openmm.OpenMMException: if the force has another number of copies.
    """
    scales = np.ascontiguousarray(scales, dtype=np.float64)
    pointer, count = ctypes.c_void_p(scales.ctypes.data), ctypes.c_int64(scales.size)
    _check(load(), load().cgml_set_scales(*_address(force, context), pointer, count))


def status(force: Any, context: Any) -> tuple[bool, int]:
    """Return whether a Context runs compiled code, and its evaluations so far."""
    compiled, evaluations = ctypes.c_int64(), ctypes.c_int64()
    _check(
        load(),
        load().cgml_status(
            *_address(force, context), ctypes.byref(compiled), ctypes.byref(evaluations)
        ),
    )
    return bool(compiled.value), evaluations.value


def _address(force: Any, context: Any) -> tuple[Any, Any]:
    return ctypes.c_void_p(int(force.this)), ctypes.c_void_p(int(context.this))


def _check(library: Any, status: int) -> None:
    if status != 0:
        raise openmm.OpenMMException(library.cgml_error().decode())


def _fits() -> dict[str, str]:
    """Return what a library must have been built from, or it could end the process."""
    return {
        "torch": f"{torch.__version__}, C++11 ABI {torch._C._GLIBCXX_USE_CXX11_ABI}",
        "openmm": openmm.version.full_version,
        "source": sha256(SOURCE),
    }


def _is_fitting(library: Path) -> bool:
    try:
        return bool(json.loads(library.with_suffix(".json").read_text()) == _fits())
    except (OSError, ValueError):
        return False


def _arguments() -> list[str]:
    """Return the compiler's arguments, but for the output."""
    torch_root = Path(torch.__file__).parent
    openmm_lib = Path(openmm.version.openmm_library_path)
    # torch's headers need C++20 since 2.12 or so; older ones compile with it as well.
    flags = ["-shared", "-fPIC", "-O3", "-std=c++20", "-fopenmp", "-w"]
    if torch._C._GLIBCXX_USE_CXX11_ABI is False:
        flags.append("-D_GLIBCXX_USE_CXX11_ABI=0")
    return [
        *flags,
        f"-I{_openmm_include()}",
        f"-I{torch_root / 'include'}",
        str(SOURCE),
        f"-L{torch_root / 'lib'}",
        "-ltorch_cpu",
        "-lc10",
        f"-L{openmm_lib}",
        "-lOpenMM",
    ]


def _openmm_include() -> Path:
    """Return OpenMM's headers: in the wheel beside the libraries, in conda in the environment."""
    for place in (
        Path(openmm.version.openmm_library_path).parent / "include",
        Path(sys.prefix) / "include",
    ):
        if (place / "openmm" / "Force.h").exists():
            return place
    raise BackendError("OpenMM's headers are not installed with it; reinstall openmm")
