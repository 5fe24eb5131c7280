"""The backend switch: which OpenMM Force evaluates a model. Nothing else chooses.

A backend is a `Backend`: it makes the Force, and reads single copies back from a Context that
holds it. The engine knows no more of it.
"""

import ctypes
import functools
import io
import logging
import os
import subprocess
import sys
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # before openmm: TorchForce's plugins need its libraries

import numpy as np

import openmm  # isort: skip

from .errors import BackendError, InputError
from .model_file import ModelFile
from .registry import Registry

logger = logging.getLogger(__name__)

#: Backends in the order in which they are tried when none is asked for.
BACKENDS = Registry(
    "backend",
    {
        "torchforce": "openmm_cgml.force:TorchForceBackend",
        "python": "openmm_cgml.force:PythonForceBackend",
    },
)

#: Class of the Force that each backend makes.
FORCE_CLASSES = {"torchforce": "TorchForce", "python": "PythonForce"}

#: Context parameter of a guarded TorchForce; 1: its forces are the copies' report.
_REPORT = "cgml_report"

# What openmmtorch 1.5 from PyPI was compiled against; other pairs are tried in a subprocess.
_TESTED_TORCH, _TESTED_OPENMM = ("2.9",), ("8.4", "8.5")

_TORCH_KERNELS = ["CalcTorchForce"]


@dataclass(frozen=True, eq=False)
class CopyReport:
    """What the Force says of each copy at the Context's positions.

    Attributes:
        energies: (copies,), kJ/mol, float64; 0 for a sick copy.
        sick: (copies,) int64: evaluations since the Context was made in which the copy's energy
            or forces were not finite.
    """

    energies: np.ndarray
    sick: np.ndarray


class Backend(ABC):
    """How a model becomes an OpenMM Force.

    Args:
        model: the model file.
        particles: as in `Model.create_force`.
        copies: number of copies.
        periodic: whether the System is.
        guarded: hold sick copies still instead of passing NaN on; needed for `read`.
        cuda_graphs: replay one recorded graph of CUDA kernels, where the backend can.
    """

    def __init__(
        self,
        model: ModelFile,
        particles: Any = None,
        copies: int = 1,
        periodic: bool = False,
        guarded: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        self.model, self.particles, self.copies = model, particles, copies
        self.periodic, self.guarded, self.cuda_graphs = periodic, guarded, cuda_graphs

    @abstractmethod
    def create(self) -> Any:
        """Return the Force."""

    @abstractmethod
    def read(self, context: Any, force_group: int) -> CopyReport:
        """Read the copies from a Context that holds the (guarded) Force, alone in its group.

        One evaluation; the Context's state and its next steps are as if it had not happened.
        """


def create_force(
    model: ModelFile,
    particles: Any = None,
    copies: int = 1,
    force_group: int = 0,
    periodic: bool = False,
    backend: str | None = None,
) -> Any:
    """Return the OpenMM Force of a model; see `openmm_cgml.system.Model.create_force`."""
    chosen = BACKENDS[choose_backend(backend)](model, particles, copies, periodic)
    return finish_force(chosen, force_group)


def finish_force(backend: Backend, force_group: int) -> Any:
    """Return a backend's Force, named and in its group."""
    if not 0 <= force_group < 32:
        raise InputError(f"force_group is {force_group}; OpenMM has groups 0 to 31")
    force = backend.create()
    force.setForceGroup(force_group)
    force.setName(f"PMF {backend.model.name}")
    return force


def choose_backend(name: str | None = None) -> str:
    """Return a backend that works here.

    Args:
        name: the backend asked for; None: ``"torchforce"`` where it works, else ``"python"`` with
            a warning that says why.

    Raises:
        InputError: if there is no backend of that name.
        BackendError: if the backend asked for does not work here.
    """
    if name is not None:
        BACKENDS[name]  # noqa: B018  (unknown names raise)
        if name == "torchforce" and (reason := torchforce_problem()):
            raise BackendError(f"TorchForce does not work here: {reason}")
        return name
    reason = torchforce_problem()
    if reason is None:
        return "torchforce"
    warnings.warn(
        f"TorchForce does not work here ({reason}); using the slower PythonForce. "
        "`pip install 'openmm_cgml[torchforce]'` installs versions that fit each other.",
        stacklevel=2,
    )
    return "python"


class TorchForceBackend(Backend):
    """openmmtorch.TorchForce with the model's TorchScript program."""

    def create(self) -> Any:
        """Return the TorchForce."""
        program = self.model.program(
            self.particles, self.copies, periodic=self.periodic, guarded=self.guarded
        )
        graphs = {"useCUDAGraphs": "true"} if self.cuda_graphs else {}
        force = import_openmmtorch().TorchForce(program, graphs)
        force.setOutputsForces(True)
        force.setUsesPeriodicBoundaryConditions(self.periodic)
        if self.guarded:
            force.addGlobalParameter(_REPORT, 0.0)
        return force

    def read(self, context: Any, force_group: int) -> CopyReport:
        """Read the copies; the program answers in the place of forces."""
        context.setParameter(_REPORT, 1.0)
        state = context.getState(getForces=True, groups=1 << force_group)
        # Setting a parameter also tells the integrator that the forces it may hold are not valid.
        context.setParameter(_REPORT, 0.0)
        return _copy_report(state.getForces(asNumpy=True)._value, self.copies)


class PythonForceBackend(Backend):
    """openmm.PythonForce: slower, but works with any torch."""

    def create(self) -> Any:
        """Return the PythonForce.

        Raises:
            BackendError: if OpenMM is older than 8.4.
        """
        if not hasattr(openmm, "PythonForce"):
            raise BackendError("this OpenMM has no PythonForce; install openmm 8.4 or newer")
        self.evaluator = PythonEvaluator(
            self.model, self.particles, self.copies, self.periodic, self.guarded
        )
        force = openmm.PythonForce(self.evaluator)
        force.setUsesPeriodicBoundaryConditions(self.periodic)
        return force

    def read(self, context: Any, force_group: int) -> CopyReport:
        """Read the copies from the program, which lives in this process."""
        answer = self.evaluator.evaluate(context.getState(getPositions=True), 1.0)[1]
        return _copy_report(answer, self.copies)


class PythonEvaluator:
    """The callable behind a PythonForce: an OpenMM State in, energy and forces out.

    A class of module level, so that the force can be pickled with its System.
    """

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments
        self._load(*arguments)

    def _load(
        self, model: ModelFile, particles: Any, copies: int, periodic: bool, guarded: bool
    ) -> None:
        self._periodic, self._guarded = periodic, guarded
        self._program = model.program(particles, copies, periodic=periodic, guarded=guarded)

    def __call__(self, state: Any) -> tuple[float, Any]:
        """Return the energy (kJ/mol) and forces (particles, 3), kJ/mol/nm, float64."""
        return self.evaluate(state, 0.0)

    def evaluate(self, state: Any, report: float) -> tuple[float, np.ndarray]:
        """Call the program; `report` as in `ForceProgram`, ignored if not guarded."""
        positions = state.getPositions(asNumpy=True)._value
        arguments = [torch.tensor(positions, dtype=torch.float64)]
        if self._periodic:
            vectors = state.getPeriodicBoxVectors(asNumpy=True)._value
            arguments.append(torch.tensor(vectors, dtype=torch.float64))
        if self._guarded:
            arguments.append(torch.tensor(report))
        energy, forces = self._program(*arguments)
        return float(energy), forces.detach().numpy()

    def __getstate__(self) -> dict[str, Any]:
        return {"_arguments": self._arguments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._arguments = state["_arguments"]
        self._load(*self._arguments)


def _copy_report(answer: np.ndarray, copies: int) -> CopyReport:
    """Unpack what a guarded program gives in the place of forces."""
    first = answer.reshape(copies, -1, 3)[:, 0]
    return CopyReport(first[:, 0].astype(float), np.rint(first[:, 1]).astype(np.int64))


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
        [sys.executable, "-c", "from openmm_cgml import force; force.try_torchforce()"],
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
