"""The backend switch: which OpenMM Force evaluates a model. Nothing else chooses.

A backend is a `Backend`: it makes the Force, and reads single copies back from a Context that
holds it. The engine knows no more of it.
"""

import hashlib
import logging
import os
import sys
import time
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch  # before openmm: TorchForce's plugins need its libraries

import numpy as np

import openmm  # isort: skip

from .errors import BackendError, InputError
from .model_file import ModelFile
from .native import cache
from .native import force as native
from .native.library import compiler
from .registry import Registry
from .torchforce import copies_crash, import_openmmtorch, torchforce_problem

logger = logging.getLogger(__name__)

#: Backends. `create_force` takes the first that works, the engine the one that proves fastest.
BACKENDS = Registry(
    "backend",
    {
        "torchforce": "openmm_cgml.force:TorchForceBackend",
        "native": "openmm_cgml.force:NativeBackend",
        "python": "openmm_cgml.force:PythonForceBackend",
    },
)

#: Context parameter of a guarded TorchForce; 1: its forces are the copies' report.
_REPORT = "cgml_report"

#: Backend name that stands for the one that a short trial finds to be the fastest.
FASTEST = "fastest"

#: Environment variable: the backend to use where none is named.
BACKEND_VARIABLE = "OPENMM_CGML_BACKEND"

_TRIAL_SECONDS = 0.2


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
        scale_parameter: a Context parameter (1 by default) that multiplies energy and forces.
        platform: name of the platform on which it will run; None: not known.
    """

    def __init__(
        self,
        model: ModelFile,
        particles: Any = None,
        copies: int = 1,
        periodic: bool = False,
        guarded: bool = False,
        cuda_graphs: bool = False,
        scale_parameter: str | None = None,
        platform: str | None = None,
    ) -> None:
        self.model, self.particles, self.copies = model, particles, copies
        self.periodic, self.guarded, self.cuda_graphs = periodic, guarded, cuda_graphs
        self.scale_parameter, self.platform = scale_parameter, platform

    @abstractmethod
    def create(self) -> Any:
        """Return the Force."""

    @abstractmethod
    def read(self, context: Any, force_group: int) -> CopyReport:
        """Read the copies from a Context that holds the (guarded) Force, alone in its group.

        At most one evaluation; the Context's state and its next steps are as if it had not
        happened.
        """

    def program(self, context: Any) -> str:
        """Return what evaluates the network in a Context: ``"TorchScript"`` or ``"compiled"``."""
        return "TorchScript"


def create_force(
    model: ModelFile,
    particles: Any = None,
    copies: int = 1,
    force_group: int = 0,
    periodic: bool = False,
    backend: str | None = None,
    scale_parameter: str | None = None,
) -> Any:
    """Return the OpenMM Force of a model; see `openmm_cgml.system.Model.create_force`."""
    backend = backend or os.environ.get(BACKEND_VARIABLE)
    if backend == FASTEST:
        backend = fastest_backend(model, copies, periodic=periodic)
    chosen = BACKENDS[choose_backend(backend)](
        model, particles, copies, periodic, scale_parameter=scale_parameter
    )
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
        name: the backend asked for; None: ``"torchforce"`` where it works and copies of a System
            do not crash, else ``"native"``, else what works, with a warning that says why.

    Raises:
        InputError: if there is no backend of that name.
        BackendError: if the backend asked for does not work here.
    """
    if name is not None:
        if reason := backend_problem(name):
            raise BackendError(f"backend {name!r} does not work here: {reason}")
        return name
    reason = torchforce_problem()
    if reason is None and not copies_crash():
        return "torchforce"
    if backend_problem("native") is None:
        return "native"
    if reason is None:
        return "torchforce"
    _warn_of_python()
    return "python"


def _warn_of_python() -> None:
    warnings.warn(
        f"neither TorchForce ({torchforce_problem()}) nor the native force ({native.problem()}) "
        "works here; using the slower PythonForce. See `cgml doctor`.",
        stacklevel=3,
    )


def backend_problem(name: str) -> str | None:
    """Return why a backend cannot be used in this process, or None if it can.

    Raises:
        InputError: if there is no backend of that name.
    """
    BACKENDS[name]  # noqa: B018  (unknown names raise)
    if name == "torchforce":
        return torchforce_problem()
    if name == "native":
        return native.problem()
    return None if hasattr(openmm, "PythonForce") else "this OpenMM is older than 8.4"


def fastest_backend(
    model: ModelFile,
    copies: int = 1,
    *,
    periodic: bool = False,
    platform: Any = None,
    properties: dict[str, str] | None = None,
) -> str:
    """Return the backend that evaluates a model fastest here, by a short trial of each.

    The answer is kept on this machine, so that the same run takes the same backend again.

    Args:
        model: the model file.
        copies: number of copies.
        periodic: whether the System is.
        platform: an openmm.Platform; None: OpenMM's choice.
        properties: platform properties.

    Raises:
        BackendError: if no backend works here.
    """
    names = [name for name in BACKENDS if backend_problem(name) is None]
    if names == ["python"]:
        _warn_of_python()
        return "python"
    where = platform.getName() if platform is not None else "the default platform"
    question = {
        "model": hashlib.sha256(model.archive).hexdigest(),
        "copies": copies,
        "periodic": periodic,
        "platform": where,
        "properties": properties or {},
        "backends": names,
        "compiler": compiler(),  # without one, the native force may run TorchScript
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, openmm.version.full_version],
        "processor": cache.processor(),
    }
    if (known := cache.recall("choices", question)) is not None and known in names:
        return str(known)
    seconds: dict[str, float] = {}
    for name in names:
        try:
            seconds[name] = _trial(name, model, copies, periodic, platform, properties)
        except Exception as error:
            logger.warning("backend %r does not work here: %s", name, str(error).strip())
    if not seconds:
        raise BackendError("no backend works here; see `cgml doctor`")
    best = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {1e6 * t:.0f}" for name, t in seconds.items())
    print(
        f"openmm_cgml: {best} is the fastest backend for {copies} copies of {model.name} on "
        f"{where} (us an evaluation: {times})",
        file=sys.stderr,
        flush=True,
    )
    cache.remember("choices", question, best)
    return best


def _trial(
    name: str,
    model: ModelFile,
    copies: int,
    periodic: bool,
    platform: Any,
    properties: dict[str, str] | None,
) -> float:
    """Return the wall-clock seconds of one evaluation in a Context."""
    force = BACKENDS[name](
        model,
        copies=copies,
        periodic=periodic,
        guarded=True,
        platform=None if platform is None else platform.getName(),
    )
    system = openmm.System()
    particles = copies * len(model.topology)
    for _ in range(particles):
        system.addParticle(1.0)
    system.setDefaultPeriodicBoxVectors((9, 0, 0), (0, 9, 0), (0, 0, 9))
    system.addForce(finish_force(force, 0))
    integrator = openmm.VerletIntegrator(0.001)
    # Optional arguments of Context cannot be None.
    chosen = [] if platform is None else [platform, properties or {}]
    context = openmm.Context(system, integrator, *chosen)
    # Spread out like beads of a chain; two places in turn, since a force may remember the last.
    generator = np.random.default_rng(0)
    places = [np.cumsum(0.2 * generator.standard_normal((particles, 3)), axis=0) for _ in range(2)]

    def evaluate(count: int) -> float:
        start = time.perf_counter()
        for k in range(count):
            context.setPositions(places[k % 2])
            context.getState(getForces=True)
        return time.perf_counter() - start

    evaluate(6)  # TorchScript optimises in its first calls
    count = max(2, int(_TRIAL_SECONDS / 4 / max(evaluate(2) / 2, 1e-6)))
    return min(evaluate(count) for _ in range(3)) / count


class TorchForceBackend(Backend):
    """openmmtorch.TorchForce with the model's TorchScript program."""

    def create(self) -> Any:
        """Return the TorchForce."""
        program = self.model.program(
            self.particles,
            self.copies,
            periodic=self.periodic,
            guarded=self.guarded,
            scaled=self.scale_parameter is not None,
        )
        graphs = {"useCUDAGraphs": "true"} if self.cuda_graphs else {}
        force = import_openmmtorch().TorchForce(program, graphs)
        force.setOutputsForces(True)
        force.setUsesPeriodicBoundaryConditions(self.periodic)
        if self.guarded:
            force.addGlobalParameter(_REPORT, 0.0)
        if self.scale_parameter is not None:
            force.addGlobalParameter(self.scale_parameter, 1.0)
        return force

    def read(self, context: Any, force_group: int) -> CopyReport:
        """Read the copies; the program answers in the place of forces."""
        context.setParameter(_REPORT, 1.0)
        state = context.getState(getForces=True, groups=1 << force_group)
        # Setting a parameter also tells the integrator that the forces it may hold are not valid.
        context.setParameter(_REPORT, 0.0)
        return _copy_report(state.getForces(asNumpy=True)._value, self.copies)


class NativeBackend(Backend):
    """The force of `openmm_cgml.native`, its network compiled ahead of time: the fastest."""

    def create(self) -> Any:
        """Return the Force (an openmm.Force)."""
        self.force = native.create_force(
            self.model,
            self.particles,
            self.copies,
            periodic=self.periodic,
            guarded=self.guarded,
            scale_parameter=self.scale_parameter,
            platform=self.platform,
        )
        return self.force

    def read(self, context: Any, force_group: int) -> CopyReport:
        """Read the copies; what is evaluated for this is not evaluated again in the next step."""
        return CopyReport(*native.read_copies(self.force, context, self.copies))

    def program(self, context: Any) -> str:
        """Return what runs in a Context; see the base class."""
        return "compiled" if native.status(self.force, context)[0] else "TorchScript"


class PythonForceBackend(Backend):
    """openmm.PythonForce: slower, but works with any torch."""

    def create(self) -> Any:
        """Return the PythonForce."""
        self.evaluator = PythonEvaluator(
            self.model,
            self.particles,
            self.copies,
            self.periodic,
            self.guarded,
            self.scale_parameter,
        )
        defaults = {self.scale_parameter: 1.0} if self.scale_parameter else {}
        force = openmm.PythonForce(self.evaluator, defaults)
        force.setUsesPeriodicBoundaryConditions(self.periodic)
        return force

    def read(self, context: Any, force_group: int) -> CopyReport:
        """Read the copies from the program, which lives in this process."""
        state = context.getState(getPositions=True, getParameters=True)
        return _copy_report(self.evaluator.evaluate(state, 1.0)[1], self.copies)


class PythonEvaluator:
    """The callable behind a PythonForce: an OpenMM State in, energy and forces out.

    A class of module level, so that the force can be pickled with its System.
    """

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments
        self._load(*arguments)

    def _load(
        self,
        model: ModelFile,
        particles: Any,
        copies: int,
        periodic: bool,
        guarded: bool,
        scale_parameter: str | None = None,
    ) -> None:
        self._periodic, self._guarded, self._scale = periodic, guarded, scale_parameter
        self._program = model.program(
            particles,
            copies,
            periodic=periodic,
            guarded=guarded,
            scaled=scale_parameter is not None,
        )

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
        if self._scale:
            arguments.append(torch.tensor(state.getParameters()[self._scale]))
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
