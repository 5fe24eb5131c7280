"""The engine: many copies of one molecule in one OpenMM Context."""

import ctypes
import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any

import torch  # before openmm: TorchForce's plugins need its libraries

import numpy as np

import openmm  # isort: skip

from .errors import BackendError, InputError
from .force import (
    BACKEND_VARIABLE,
    BACKENDS,
    FASTEST,
    CopyReport,
    choose_backend,
    fastest_backend,
    finish_force,
)
from .replicate import replicate_forces
from .system import Model
from .units import GAS_CONSTANT

# Platform properties that say where to work, not how: a queue changes them from job to job.
_WHERE = ("DeviceIndex", "TempDirectory")


# openmm-torch records a CUDA graph after ten evaluations.
_GRAPH_WARM_UP = 15

# Numbers of glibc's mallopt() parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


class Engine:
    """Copies of one molecule in one System and one Context, evaluated as a batch.

    Copy k has particles k n to (k + 1) n - 1. Nothing acts between copies and nothing removes
    their centre-of-mass motion.

    Args:
        model: the model.
        copies: number of copies.
        integrator: an OpenMM integrator. One with a per-DOF variable ``kT`` or ``sigma`` (see
            `lfmiddle_integrator`) can hold every copy at a temperature of its own.
        forces: further OpenMM forces, written for one copy; each copy gets them (`replicate`).
        shared_forces: further forces, written for the System of all copies, added as they are.
        box_vectors: (3, 3), nm, or None.
        platform: an openmm.Platform or its name; None: see `find_platform`.
        properties: platform properties.
        backend: as in `Model.create_force`; None: see `find_backend`.
        cuda_graphs: replay one recorded graph of CUDA kernels in every step, for small models
            whose time goes into launching them. Only TorchForce can: name backend
            ``"torchforce"``. Energies are compared with torch's in `warm_up`.

    Raises:
        InputError: if a force cannot be replicated or a setting does not exist.
        BackendError: if OpenMM cannot make the Context.
    """

    def __init__(
        self,
        model: Model,
        copies: int,
        integrator: Any,
        *,
        forces: Sequence[Any] = (),
        shared_forces: Sequence[Any] = (),
        box_vectors: Any = None,
        platform: Any = None,
        properties: dict[str, str] | None = None,
        backend: str | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.model, self.copies, self.integrator = model, copies, integrator
        self.beads = len(model.topology)
        self.box_vectors = box_vectors
        keep_memory()
        self._platform = find_platform(platform)
        self.backend = find_backend(
            backend, model, copies, box_vectors is not None, self._platform, properties
        )
        self._masses = np.tile(model.topology.masses, copies).reshape(copies, -1, 1)
        self._force = BACKENDS[self.backend](
            model.file,
            copies=copies,
            periodic=box_vectors is not None,
            guarded=True,
            cuda_graphs=cuda_graphs,
            platform=self._platform.getName(),
        )
        self.user_forces = list(forces)
        self.replicas = replicate_forces(forces, self.beads, copies)
        others = [*self.replicas, *shared_forces]
        # Alone in its group, so that what it says of single copies can be read.
        self._group = _free_group(others)
        self.shared_forces = len(shared_forces)
        self.system = openmm.System()
        for mass in self._masses.ravel():
            self.system.addParticle(mass)
        if box_vectors is not None:
            self.system.setDefaultPeriodicBoxVectors(*box_vectors)
        self.system.addForce(finish_force(self._force, self._group))
        for force in others:
            self.system.addForce(force)
        # Reference's random numbers are global to the process: nothing may be made after the
        # Context that is to run.
        self._single = self._one_copy() if forces else None
        self.described = self._describe_forces(others)
        try:
            self.context = openmm.Context(
                self.system, integrator, self._platform, properties or {}
            )
        except openmm.OpenMMException as error:
            raise BackendError(
                f"OpenMM cannot run this on {self._platform.getName()}: {str(error).strip()}"
            ) from error
        self._seen = np.zeros(copies, dtype=np.int64)

    def _one_copy(self) -> Any:
        """Return a Context of one copy with the users' forces alone, for its energy."""
        system = openmm.System()
        for mass in self.model.topology.masses:
            system.addParticle(mass)
        if self.box_vectors is not None:
            system.setDefaultPeriodicBoxVectors(*self.box_vectors)
        self._single_forces = replicate_forces(self.user_forces, self.beads, 1)
        for force in self._single_forces:
            system.addForce(force)
        integrator = openmm.VerletIntegrator(0.001)
        return openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))

    def warm_up(self) -> None:
        """Let TorchScript optimise its graph, which it does in its first calls.

        Later calls differ from these in the last digits, so a restart would too. To be called
        when positions are set, before anything that counts.

        Raises:
            BackendError: if a recorded CUDA graph gives other energies than torch.
        """
        for _ in range(_GRAPH_WARM_UP if self._force.cuda_graphs else 3):
            self.context.getState(getEnergy=True, getForces=True)
        if self._force.cuda_graphs:
            expected = self.model.energy_and_forces(self.positions, self.box_vectors)[0]
            energies = self._force.read(self.context, self._group).energies
            if not np.allclose(energies, expected, rtol=1e-3, atol=1e-2):
                raise BackendError(
                    "CUDA graphs give wrong energies with this openmm-torch; leave cuda_graphs out"
                )
        self._seen = self._force.read(self.context, self._group).sick

    @property
    def unread(self) -> np.ndarray:
        """(copies,) sick evaluations since the last reading; they belong to a checkpoint."""
        return self._force.read(self.context, self._group).sick - self._seen

    @unread.setter
    def unread(self, values: np.ndarray) -> None:
        self._seen = self._force.read(self.context, self._group).sick - values

    @property
    def positions(self) -> np.ndarray:
        """Current positions (copies, beads, 3), nm."""
        state = self.context.getState(getPositions=True)
        return state.getPositions(asNumpy=True)._value.reshape(self.copies, -1, 3)

    @positions.setter
    def positions(self, values: np.ndarray) -> None:
        self.context.setPositions(np.ascontiguousarray(values).reshape(-1, 3))

    @property
    def velocities(self) -> np.ndarray:
        """Current velocities (copies, beads, 3), nm/ps."""
        state = self.context.getState(getVelocities=True)
        return state.getVelocities(asNumpy=True)._value.reshape(self.copies, -1, 3)

    @velocities.setter
    def velocities(self, values: np.ndarray) -> None:
        self.context.setVelocities(np.ascontiguousarray(values).reshape(-1, 3))

    @property
    def forces(self) -> np.ndarray:
        """Forces at the current positions (copies, beads, 3), kJ/mol/nm, users' included."""
        state = self.context.getState(getForces=True)
        return state.getForces(asNumpy=True)._value.reshape(self.copies, -1, 3)

    @property
    def time(self) -> float:
        """Time of the Context, ps."""
        return float(self.context.getTime()._value)

    def kinetic_energies(self) -> np.ndarray:
        """Return kinetic energies (copies,), kJ/mol."""
        return 0.5 * (self._masses * self.velocities**2).sum((1, 2))

    @property
    def has_temperatures(self) -> bool:
        """Whether the integrator can hold every copy at a temperature of its own."""
        return bool({"kT", "sigma"} & set(_per_dof_variables(self.integrator)))

    def set_temperatures(self, temperatures: np.ndarray) -> None:
        """Hold every copy at its temperature (copies,), K.

        Raises:
            InputError: if the integrator has one temperature only.
        """
        kt = GAS_CONSTANT * np.asarray(temperatures, dtype=float).reshape(-1, 1, 1)
        names = _per_dof_variables(self.integrator)
        if "kT" in names:
            values = np.broadcast_to(kt, (self.copies, self.beads, 3))
            self._set_per_dof("kT", values)
        elif "sigma" in names:
            noise = self.integrator.getGlobalVariableByName("b")
            self._set_per_dof("sigma", noise * np.sqrt(kt / self._masses))
        else:
            raise InputError(
                f"{type(self.integrator).__name__} holds one temperature for all copies; give a "
                "CustomIntegrator with a per-DOF variable kT, or none"
            )

    def _set_per_dof(self, name: str, values: np.ndarray) -> None:
        full = np.ascontiguousarray(np.broadcast_to(values, (self.copies, self.beads, 3)))
        self.integrator.setPerDofVariableByName(name, full.reshape(-1, 3))

    def thermal_velocities(self, noise: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
        """Return Maxwell-Boltzmann velocities (copies, beads, 3), nm/ps.

        Args:
            noise: standard normal numbers of that shape.
            temperatures: (copies,), K.
        """
        kt = GAS_CONSTANT * np.asarray(temperatures, dtype=float).reshape(-1, 1, 1)
        return np.sqrt(kt / self._masses[: len(kt)]) * noise

    def step(self, steps: int) -> None:
        """Integrate.

        Raises:
            openmm.OpenMMException: on some platforms if a position is not finite.
        """
        self.integrator.step(steps)

    def read(self) -> CopyReport:
        """Return each copy's potential energy and its sick evaluations since the last reading.

        One batched evaluation of the PMF; users' forces are evaluated copy by copy.
        """
        report = self._force.read(self.context, self._group)
        energies = report.energies + self._user_energies()
        sick, self._seen = report.sick - self._seen, report.sick
        return CopyReport(energies, sick)

    def _user_energies(self) -> np.ndarray:
        energies = np.zeros(self.copies)
        if self._single is not None:
            for name in self._single.getParameters():
                self._single.setParameter(name, self.context.getParameter(name))
            for copy, positions in enumerate(self.positions):
                self._single.setPositions(positions)
                state = self._single.getState(getEnergy=True)
                energies[copy] = state.getPotentialEnergy()._value
        return energies

    def update_force(self, force: Any) -> None:
        """Pass changed tabulated functions of one of the users' `forces` on to all copies.

        Args:
            force: the object given as one of `forces`, its functions already changed.

        Raises:
            InputError: if it is not one of them.
        """
        known = [k for k, one in enumerate(self.user_forces) if one is force]
        if not known:
            raise InputError(f"{force.getName()} is not one of this simulation's forces")
        for target, context in (
            (self.replicas[known[0]], self.context),
            (self._single_forces[known[0]], self._single),
        ):
            for k in range(force.getNumTabulatedFunctions()):
                source = force.getTabulatedFunction(k)
                target.getTabulatedFunction(k).setFunctionParameters(
                    *source.getFunctionParameters()
                )
            target.updateParametersInContext(context)

    def checkpoint(self) -> bytes:
        """Return OpenMM's checkpoint: positions, velocities, parameters and random stream."""
        return bytes(self.context.createCheckpoint())

    def restore(self, blob: bytes) -> None:
        """Go back to a checkpoint of this or an equal engine.

        Raises:
            InputError: if the checkpoint is of another engine.
        """
        try:
            self.context.loadCheckpoint(blob)
        except openmm.OpenMMException as error:
            raise InputError(f"the checkpoint does not fit: {str(error).strip()}") from error

    def minimize(self, tolerance: float = 10.0, most_steps: int = 500) -> np.ndarray:
        """Relax every copy by itself, by FIRE (Bitzek et al. 2006).

        Each copy has its own step and stops by itself, so a bad start does not hold up the
        others, as it does in a minimiser of the total energy.

        Args:
            tolerance: largest force component at which a copy is done, kJ/mol/nm.
            most_steps: evaluations of the forces at most.

        Returns:
            (copies,) largest force components that are left, kJ/mol/nm.
        """
        x = self.positions
        v = np.zeros_like(x)
        # With unit masses the step is a length per force: 1e-6 nm per kJ/mol/nm is a stiff bond's.
        step = np.full((self.copies, 1, 1), 1e-3)
        mixing = np.full((self.copies, 1, 1), 0.1)
        downhill = np.zeros((self.copies, 1, 1), dtype=int)
        for _ in range(most_steps):
            force = self.forces
            worst = np.abs(force).max((1, 2))
            moving = (worst > tolerance).reshape(-1, 1, 1)
            if not moving.any():
                break
            length = np.sqrt((force**2).sum((1, 2), keepdims=True))
            speed = np.sqrt((v**2).sum((1, 2), keepdims=True))
            good = (force * v).sum((1, 2), keepdims=True) > 0
            turned = (1 - mixing) * v + mixing * force * speed / np.maximum(length, 1e-12)
            v = np.where(good, turned, 0.0)
            downhill = np.where(good, downhill + 1, 0)
            faster = downhill > 5
            step = np.where(faster, np.minimum(step * 1.1, 1e-2), np.where(good, step, step * 0.5))
            mixing = np.where(faster, mixing * 0.99, np.where(good, mixing, 0.1))
            v = v + step * force
            move = step * v
            # No bead goes further than 0.01 nm at once, whatever the force.
            largest = np.abs(move).max((1, 2), keepdims=True)
            x = x + np.where(moving, move * np.minimum(1, 0.01 / np.maximum(largest, 1e-12)), 0.0)
            self.positions = x
        return np.abs(self.forces).max((1, 2))

    def settings(self) -> dict[str, Any]:
        """Return what a bit-identical continuation needs to be the same, JSON."""
        from .version import __version__

        platform = self.context.getPlatform()
        properties = {
            name: platform.getPropertyValue(self.context, name)
            for name in platform.getPropertyNames()
            if name not in _WHERE
        }
        return {
            "model": self.model.file.name,
            "model_sha256": hashlib.sha256(self.model.file.archive).hexdigest(),
            "box_vectors_nm": self.box_vectors,
            "platform": platform.getName(),
            "platform_properties": properties,
            "backend": self.backend,
            "program": self._force.program(self.context),
            "torch_threads": torch.get_num_threads(),
            **self.described,
            "versions": {
                "openmm_cgml": __version__,
                "openmm": openmm.version.short_version,
                "torch": torch.__version__,
            },
        }

    def _describe_forces(self, forces: Sequence[Any]) -> dict[str, Any]:
        digest = hashlib.sha256()
        for force in forces:
            digest.update(openmm.XmlSerializer.serialize(force).encode())
        integrator = openmm.XmlSerializer.serialize(self.integrator)
        return {
            "forces": [type(f).__name__ for f in forces],
            "forces_sha256": digest.hexdigest() if forces else None,
            "integrator": type(self.integrator).__name__,
            "integrator_sha256": hashlib.sha256(integrator.encode()).hexdigest(),
        }


def keep_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the system after every step.

    A batch of many copies allocates megabytes in every step. By default glibc maps each such
    block anew, and the page faults cost more than the arithmetic on it; with this, blocks are
    used again. Process-wide; does nothing with other C libraries.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 << 20)


def lfmiddle_integrator(friction: float, timestep: float, seed: int) -> Any:
    """Return a CustomIntegrator of the LFMiddle scheme with a temperature for every particle.

    The same steps as OpenMM's LangevinMiddleIntegrator (Zhang et al. 2019,
    doi:10.1021/acs.jpca.9b02771), but the noise of each degree of freedom has its own size
    ``sigma`` = b sqrt(kT / m), which `Engine.set_temperatures` sets.

    Args:
        friction: 1/ps.
        timestep: ps.
        seed: of the noise; not 0, which means the clock.
    """
    decay = math.exp(-friction * timestep)
    integrator = openmm.CustomIntegrator(timestep)
    integrator.addGlobalVariable("a", decay)
    integrator.addGlobalVariable("b", math.sqrt(1 - decay**2))
    integrator.addPerDofVariable("sigma", 0.0)
    integrator.addPerDofVariable("kicked", 0.0)
    integrator.addUpdateContextState()
    # Three passes over the particles instead of the textbook's four: both half drifts in one.
    integrator.addComputePerDof("kicked", "v + dt*f/m")
    integrator.addComputePerDof("v", "a*kicked + sigma*gaussian")
    integrator.addComputePerDof("x", "x + 0.5*dt*(kicked + v)")
    integrator.setRandomNumberSeed(seed)
    return integrator


def find_backend(
    backend: str | None,
    model: Model,
    copies: int,
    periodic: bool,
    platform: Any,
    properties: dict[str, str] | None = None,
) -> str:
    """Return the backend that an engine takes: the one asked for, else the fastest here.

    Where none is asked for, the environment variable ``OPENMM_CGML_BACKEND`` is looked at first.

    Raises:
        InputError: if there is no backend of that name.
        BackendError: if it does not work here.
    """
    backend = backend or os.environ.get(BACKEND_VARIABLE) or FASTEST
    if backend != FASTEST:
        return choose_backend(backend)
    return fastest_backend(
        model.file, copies, periodic=periodic, platform=platform, properties=properties
    )


def find_platform(platform: Any = None) -> Any:
    """Return an openmm.Platform for a name, itself, or the fastest one.

    None: the first of CUDA, HIP, OpenCL that loads, else Reference, which beats CPU for small
    molecules.

    Raises:
        InputError: if there is no platform of that name.
    """
    if platform is not None and not isinstance(platform, str):
        return platform
    available = [
        openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())
    ]
    if platform is None:
        preferred = [p for p in ("CUDA", "HIP", "OpenCL") if p in available]
        platform = preferred[0] if preferred else "Reference"
    if platform not in available:
        raise InputError(
            f"OpenMM platform {platform!r} is not available; choose one of {', '.join(available)}"
        )
    return openmm.Platform.getPlatform(platform)


def _per_dof_variables(integrator: Any) -> list[str]:
    if not isinstance(integrator, openmm.CustomIntegrator):
        return []
    return [integrator.getPerDofVariableName(k) for k in range(integrator.getNumPerDofVariables())]


def _free_group(forces: Sequence[Any]) -> int:
    taken = {force.getForceGroup() for force in forces}
    free = [group for group in range(32) if group not in taken]
    if not free:
        raise InputError("the forces use all 32 force groups; leave one to the PMF")
    return free[0]
