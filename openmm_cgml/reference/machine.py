"""The OpenMM Context of an all-atom run: where it runs, how it steps, what is read from it."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm

from ..errors import CGMLError, InputError, first_line
from .bias import free_group
from .setup import ReferenceSystem, box_array

# Ctrl-C is seen only when OpenMM's step() returns.
_LONGEST_CALL_SECONDS = 0.5
# Positions beyond this, nm, are as good as not finite: float32 loses bonds there.
_FAR = 1e5
# Above this, Reference is not tried: it has no neighbour list.
_REFERENCE_ATOMS = 1000


def choose_platform(
    name: str | None,
    threads: int,
    properties: dict[str, str] | None,
    system: ReferenceSystem,
    found: Any,
) -> tuple[Any, dict[str, str]]:
    """Return the platform and its properties: the given, the one begun with, or the fastest.

    Raises:
        InputError: if it is not available.
    """
    available = [
        openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())
    ]
    if name is not None and name not in available:
        raise InputError(
            f"OpenMM platform {name!r} is not available; choose one of {', '.join(available)}"
        )
    if threads < 1:
        raise InputError(f"threads is {threads}; give at least 1")
    if name is None and found is not None:
        begun = found.settings.get("platform")
        name = begun if begun in available else None
    if name is None:
        name = next((p for p in ("CUDA", "HIP", "OpenCL") if p in available), None)
    if name is None:
        name = _faster(system, threads) if "CPU" in available else "Reference"
    platform = openmm.Platform.getPlatform(name)
    chosen = {}
    if name == "CPU":
        chosen["Threads"] = str(threads)
    elif "Precision" in platform.getPropertyNames():
        chosen["Precision"] = "mixed"
    return platform, {**chosen, **(properties or {})}


def _faster(system: ReferenceSystem, threads: int) -> str:
    """Return which of Reference and CPU is faster for this System, by a short trial."""
    if system.topology.getNumAtoms() > _REFERENCE_ATOMS:
        return "CPU"
    times = {}
    for name, properties in (("Reference", {}), ("CPU", {"Threads": str(threads)})):
        context = openmm.Context(
            system.system,
            openmm.VerletIntegrator(1e-6),
            openmm.Platform.getPlatform(name),
            properties,
        )
        context.setPositions(system.positions)
        context.getIntegrator().step(5)
        clock = time.perf_counter()
        context.getIntegrator().step(20)
        times[name] = time.perf_counter() - clock
        del context
    return min(times, key=lambda n: times[n])


@dataclass(frozen=True)
class Settings:
    """Settings of a run, stripped of units; lengths of time in steps.

    Attributes:
        temperature: K.
        timestep: ps.
        friction: 1/ps.
        seed: of velocities, noise and exchanges.
        stride: steps between frames.
        leg_frames: moments that are recorded in each leg.
        ns: length of each leg.
        method: name.
        force_map: name, None: no forces.
        equilibrate, npt: steps.
        calibrate: frames for the force map.
        keep_box: record box vectors.
    """

    temperature: float
    timestep: float
    friction: float
    seed: int
    stride: int
    leg_frames: int
    ns: float
    method: str
    force_map: str | None
    equilibrate: int
    npt: int
    calibrate: int
    keep_box: bool


class Stopped(Exception):
    """Ctrl-C or SIGTERM where there is nothing worth keeping yet."""


class Machine:
    """The Context of the production, with what is read from it."""

    def __init__(
        self,
        system: ReferenceSystem,
        bias: Any,
        settings: Settings,
        platform: tuple[Any, dict[str, str]],
        box: np.ndarray | None,
        caught: list[str],
    ) -> None:
        self.settings, self._reference, self._caught = settings, system, caught
        self.free_system = deepcopy(system.system)
        if box is not None:
            self.free_system.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in box))
        biased = deepcopy(self.free_system)
        self.bias_group: int | None = None
        if bias is not None:
            self.bias_group = free_group(biased)
            bias.force.setForceGroup(self.bias_group)
            biased.addForce(bias.force)
        self.groups = _others(self.bias_group)
        self.integrator = openmm.LangevinMiddleIntegrator(
            settings.temperature, settings.friction, settings.timestep
        )
        self.integrator.setRandomNumberSeed(settings.seed + 1)  # 0 would mean: from the clock
        # None of the forces has a random seed of its own: barostats are refused.
        self.context = make_context(biased, self.integrator, *platform)
        self._seconds_per_step = 0.0
        self._cached: Any = None
        self.steps, self.seconds = 0, 0.0
        self.may_stop = True

    def step(self, steps: int) -> None:
        """Step, in calls short enough for Ctrl-C.

        Raises:
            Stopped: if there was a signal and `may_stop`.
            CGMLError: if OpenMM stops.
        """
        self._cached = None
        left = steps
        while left > 0:
            if self._caught and self.may_stop:
                raise Stopped
            most = _LONGEST_CALL_SECONDS / self._seconds_per_step if self._seconds_per_step else 20
            count = min(left, max(1, int(most)))
            clock = time.perf_counter()
            guarded(self.integrator.step, count)
            spent = time.perf_counter() - clock
            self._seconds_per_step = spent / count
            self.seconds += spent
            self.steps += count
            left -= count

    def start_clock(self) -> None:
        """Count steps and seconds from here; what was read before is of another state."""
        self._cached = None
        self.steps, self.seconds = 0, 0.0

    def state(self) -> Any:
        """Return positions and velocities as an OpenMM State."""
        return self.context.getState(getPositions=True, getVelocities=True)

    def take(self, state: Any) -> None:
        """Put a State of `state` into the Context."""
        self._cached = None
        self.context.setPositions(state.getPositions(asNumpy=True))
        self.context.setVelocities(state.getVelocities(asNumpy=True))

    def velocities(self) -> np.ndarray:
        """Return velocities (atoms, 3), nm/ps."""
        return self.context.getState(getVelocities=True).getVelocities(asNumpy=True)._value

    def frame(self) -> dict[str, Any]:
        """Return positions, unbiased forces and box of this moment."""
        wanted = self.settings.force_map is not None
        state = self._state(wanted)
        positions = state.getPositions(asNumpy=True)._value
        lost = ~(np.abs(positions) < _FAR).all(axis=1)
        if lost.any():
            worst = int(np.argmax(lost))
            raise CGMLError(
                f"the position of {self._reference.label(worst)} is no longer finite; try a "
                "shorter timestep. The frames until the last checkpoint are kept"
            )
        forces = state.getForces(asNumpy=True)._value if wanted else None
        box = box_array(state.getPeriodicBoxVectors()) if self._reference.periodic else None
        return {"positions": positions, "forces": forces, "box": box}

    def whole_positions(self) -> np.ndarray:
        """Return positions (atoms, 3), nm; OpenMM keeps molecules as whole as they were."""
        return self._state(False).getPositions(asNumpy=True)._value

    def bias_energy(self) -> float:
        """Return the bias, kJ/mol, as OpenMM has it."""
        state = self.context.getState(getEnergy=True, groups={self.bias_group})
        return float(state.getPotentialEnergy()._value)

    def energy(self) -> float:
        """Return the unbiased potential energy, kJ/mol."""
        state = self.context.getState(getEnergy=True, groups=self.groups)
        return float(state.getPotentialEnergy()._value)

    def _state(self, forces: bool) -> Any:
        """Return the State of this moment, read once for all that ask."""
        if self._cached is None or (forces and not self._cached[0]):
            state = self.context.getState(getPositions=True, getForces=forces, groups=self.groups)
            self._cached = (forces, state)
        return self._cached[1]


def _others(group: int | None) -> set[int]:
    """Return the force groups without that of the bias."""
    return set(range(32)) - {group}


def make_context(system: Any, integrator: Any, platform: Any, properties: dict[str, str]) -> Any:
    """Return a Context.

    Raises:
        InputError: if the platform cannot take the System.
    """
    try:
        return openmm.Context(system, integrator, platform, properties)
    except openmm.OpenMMException as error:
        raise InputError(
            f"OpenMM cannot run this System on {platform.getName()}: {first_line(error)}; choose "
            "another platform or other properties"
        ) from error


def guarded(step: Callable[[int], None], count: int) -> None:
    """Step; OpenMM's exception becomes one that says what to do.

    Raises:
        CGMLError: if OpenMM stops.
    """
    try:
        step(count)
    except openmm.OpenMMException as error:
        raise CGMLError(
            f"OpenMM stopped: {first_line(error)}; try a shorter timestep, or a start without "
            "clashes"
        ) from error
