"""Getting openmm-torch to work: its plugins, its import, a trial where versions may not fit."""

import ctypes
import functools
import io
import logging
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch  # before openmm: TorchForce's plugins need its libraries

import openmm  # isort: skip

logger = logging.getLogger(__name__)

# What openmmtorch 1.5 from PyPI was compiled against; other pairs are tried in a subprocess.
_TESTED_TORCH, _TESTED_OPENMM = ("2.9",), ("8.4", "8.5")

_TORCH_KERNELS = ["CalcTorchForce"]


@functools.cache
def torchforce_problem() -> str | None:
    """Return why TorchForce cannot be used in this process, or None if it can.

    Repairs what can be repaired: plugins that failed to load because openmm was imported before
    torch are loaded again.
    """
    failures = load_torch_plugins()
    try:
        import_openmmtorch()
    except ImportError as error:
        return f"openmmtorch is not importable ({error})"
    if not _has_torch_kernels():
        return "its plugin did not load" + (f" ({failures[0]})" if failures else "")
    torch_version = ".".join(torch.__version__.split(".")[:2])
    openmm_version = ".".join(openmm.version.short_version.split(".")[:2])
    if torch_version in _TESTED_TORCH and openmm_version in _TESTED_OPENMM:
        return None
    # A wrong pair can end the process (C++ ABI), so it is tried in another one.
    trial = subprocess.run(
        [sys.executable, "-c", "from openmm_cgml import torchforce; torchforce.try_torchforce()"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    if trial.returncode == 0:
        return None
    return (
        f"openmmtorch was built for another torch or OpenMM than {torch.__version__} and "
        f"{openmm.version.short_version}; energies fail"
    )


def copies_crash() -> bool:
    """Return whether copying a TorchForce, or reading it from XML, ends the process here.

    That of openmmtorch 1.5 does so with OpenMM 8.6; it evaluates well.
    """
    major, minor = (int(part) for part in openmm.version.short_version.split(".")[:2])
    try:
        return (major, minor) >= (8, 6) and metadata.version("openmmtorch").startswith("1.5")
    except metadata.PackageNotFoundError:  # built from source
        return False


def load_torch_plugins() -> list[str]:
    """Load openmm-torch's plugins that failed because openmm was imported before torch.

    Returns:
        Messages of the plugins that still fail; OpenCL's and CUDA's do on machines without them.
    """
    _preload_cuda_compiler()
    if _has_torch_kernels():
        return []
    # Read first: loading a library erases the list. A whole directory is never loaded again,
    # since that would register a second CPU platform.
    messages = openmm.Platform.getPluginLoadFailures()
    reported = [m.split("Error loading library ")[-1] for m in messages]
    paths = [Path(m.split(": ")[0]) for m in reported if "Torch" in m.split(": ")[0]]
    if not paths:
        folders = (
            Path(openmm.version.openmm_library_path) / "plugins",
            Path(openmm.Platform.getDefaultPluginsDirectory()),
        )
        paths = sorted({p for f in folders if f.is_dir() for p in f.glob("*Torch*")})
    failures = []
    for path in paths:
        try:
            openmm.Platform.loadPluginLibrary(str(path))
        except Exception as error:
            failures.append(str(error).strip())
    return failures


def try_torchforce() -> None:
    """Evaluate a minimal TorchForce; raises, or ends the process, where it cannot work."""

    class Square(torch.nn.Module):
        def forward(self, positions: torch.Tensor) -> torch.Tensor:
            return positions.square().sum()

    load_torch_plugins()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(Square(), torch.zeros(1, 3)), buffer)
    buffer.seek(0)
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(import_openmmtorch().TorchForce(torch.jit.load(buffer)))
    integrator = openmm.VerletIntegrator(0.001)
    platform = openmm.Platform.getPlatform("Reference")
    context = openmm.Context(system, integrator, platform)
    context.setPositions([openmm.Vec3(1, 0, 0)])
    context.getState(getEnergy=True, getForces=True)


def import_openmmtorch() -> Any:
    """Import openmmtorch without the deprecation notice that it causes on every start."""

    def is_news(record: logging.LogRecord) -> bool:
        return "simtk.openmm" not in record.getMessage()

    logging.getLogger().addFilter(is_news)
    try:
        import openmmtorch
    finally:
        logging.getLogger().removeFilter(is_news)
    return openmmtorch


def _preload_cuda_compiler() -> None:
    """Load the CUDA 13 compiler library, if installed, so that openmmtorch finds it.

    The wheels of openmmtorch 1.5 for Python 3.10 and 3.13 were linked against libnvrtc.so.13,
    which torch 2.9 does not bring; the extra ``torchforce`` installs it in a place that the
    loader does not search.
    """
    for entry in sys.path:
        library = Path(entry or ".") / "nvidia" / "cu13" / "lib" / "libnvrtc.so.13"
        if library.exists():
            try:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                logger.debug("cannot load %s: %s", library, error)
            return


def _has_torch_kernels() -> bool:
    return any(
        openmm.Platform.getPlatform(k).supportsKernels(_TORCH_KERNELS)
        for k in range(openmm.Platform.getNumPlatforms())
    )
