"""What each kind of run adds to plain dynamics: hills, windows, or exchanges of temperature."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import openmm

from ..errors import InputError
from ..exchange import ExchangeStatistics, neighbour_swaps
from ..mbar import mbar
from ..units import GAS_CONSTANT, strip_array
from .bias import Metadynamics, Umbrella
from .machine import Machine
from .recorder import DatasetRecorder
from .variables import CollectiveVariable, variable_values

METHODS = ("unbiased", "remd", "metadynamics", "umbrella")
#: Weights of metadynamics: of the bias at each frame's time, or of the last bias.
WEIGHTS = ("ct", "final")


class Method:
    """What a method adds to plain dynamics at one temperature; this one adds nothing.

    Attributes:
        bias: its bias, None if it has none.
        legs: continuous runs, one after the other.
        stride: steps between its events; 0: it has none.
        copies: simulated at a time.
        per_record: frames of one moment.
    """

    name = "unbiased"
    bias: Any = None
    legs = 1
    stride = 0
    copies = 1
    per_record = 1
    can_grow = True
    variables: tuple[CollectiveVariable, ...] = ()

    def prepare(self, machine: Machine) -> None:
        """Make the Context that of the beginning, or of what was loaded."""

    def begin(self, machine: Machine, leg: int) -> None:
        """Start a leg."""

    def advance(self, machine: Machine, steps: int) -> None:
        """Step."""
        machine.step(steps)

    def event(self, machine: Machine) -> None:
        """Do what is due every `stride` steps."""

    def record(self, machine: Machine, recorder: DatasetRecorder, leg: int) -> None:
        """Add the frame of this moment."""
        recorder.add(**machine.frame(), trajectory=leg, **self._values(machine))

    def _values(self, machine: Machine) -> dict[str, Any]:
        if not self.variables:
            return {}
        positions = machine.whole_positions()
        return {"variables": variable_values(self.variables, positions[None])[0]}

    def weights(self, recorder: DatasetRecorder) -> np.ndarray | None:
        """Return weights (frames,) that need all frames, None if there are none."""
        return None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint needs besides OpenMM's."""
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take back what `arrays` returned."""

    def restore(self, machine: Machine) -> None:
        """Rebuild what needs the Context, before its own state is loaded."""

    def describe(self) -> dict[str, Any]:
        """Return settings, JSON-able."""
        return {}

    def text(self) -> str:
        """Return what the dataset says of the bias."""
        return ""

    def statistics(self) -> dict[str, Any]:
        """Return what came of it, JSON-able."""
        return {}


class MetadynamicsRun(Method):
    """Well-tempered metadynamics; see `Metadynamics`."""

    name = "metadynamics"

    def __init__(self, bias: Metadynamics, stride: int, weights: str, discard: int) -> None:
        if weights not in WEIGHTS:
            raise InputError(f"weights are {weights!r}; choose one of {', '.join(WEIGHTS)}")
        self.bias, self.stride = bias, stride
        self._weights, self._discard = weights, discard

    def prepare(self, machine: Machine) -> None:
        """Put the grid into the Context."""
        self.bias.apply(machine.context)

    def event(self, machine: Machine) -> None:
        """Deposit a hill."""
        self.bias.deposit(self._values(machine)["variables"])
        self.bias.apply(machine.context)

    def record(self, machine: Machine, recorder: DatasetRecorder, leg: int) -> None:
        """Add the frame, with the bias before the hill of this moment."""
        energy = machine.bias_energy()
        numbers: dict[str, Any] = {"bias_energy": energy}
        if self._weights == "ct":
            weight = math.exp(float(self.bias.log_weights(np.array(energy))))
            numbers["weights"] = weight if recorder.frames >= self._discard else 0.0
        recorder.add(**machine.frame(), trajectory=leg, **numbers, **self._values(machine))

    def weights(self, recorder: DatasetRecorder) -> np.ndarray | None:
        """Return weights of the last bias; those of c(t) are recorded with the frames."""
        if self._weights == "ct":
            return None
        values = recorder.numbers("variables")["variables"]
        energies = np.concatenate(
            [self.bias.energy(values[k : k + 20_000]) for k in range(0, len(values), 20_000)]
        )
        weights = np.exp((energies - energies.max()) / self.bias.kt)
        weights[: self._discard] = 0.0
        if not weights.sum() > 0:
            raise InputError("discard leaves no frame; discard less or run longer")
        return weights / weights.mean()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the grid."""
        return {"grid": self.bias.grid, "deposits": np.array(self.bias.deposits)}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take the grid."""
        self.bias.grid = arrays["grid"].copy()
        self.bias.deposits = int(arrays["deposits"])

    def describe(self) -> dict[str, Any]:
        """Return settings, JSON-able."""
        return {
            **self.bias.describe(),
            "steps_per_hill": self.stride,
            "weights": self._weights,
            "discarded_frames": self._discard,
        }

    def text(self) -> str:
        """Return what the dataset says of the bias."""
        bias = self.bias
        what = {
            "ct": "weights exp(beta (V(s,t) - c(t)))",
            "final": "weights exp(beta V(s)) of the last bias",
        }[self._weights]
        return (
            f"well-tempered metadynamics along {', '.join(v.name for v in bias.variables)}, bias "
            f"factor {bias.bias_factor:g}, height {bias.height:g} kJ/mol; {what}"
            + (f", zero for the first {self._discard} frames" if self._discard else "")
        )

    def statistics(self) -> dict[str, Any]:
        """Return what came of it, JSON-able."""
        return {"hills": self.bias.deposits, "c_kJ_mol": self.bias.offset()}


class UmbrellaRun(Method):
    """Umbrella windows, one after the other; see `Umbrella`."""

    name = "umbrella"
    can_grow = False

    # Stages in which a window's restraint is switched on, in the first half of its equilibration.
    _STAGES = 10

    def __init__(self, bias: Umbrella, temperature: float) -> None:
        self.bias, self._temperature = bias, temperature
        self.legs = len(bias.centres)

    def prepare(self, machine: Machine) -> None:
        """Set the window's centre."""
        self.bias.apply(machine.context)

    def begin(self, machine: Machine, leg: int) -> None:
        """Go to a window and equilibrate there."""
        self.bias.window = leg
        half = machine.settings.equilibrate // 2
        for stage in range(self._STAGES):
            self.bias.scale = (stage + 1) / self._STAGES
            self.bias.apply(machine.context)
            machine.step(half // self._STAGES)
        machine.step(machine.settings.equilibrate - half // self._STAGES * self._STAGES)

    def record(self, machine: Machine, recorder: DatasetRecorder, leg: int) -> None:
        """Add the frame; its trajectory number is the window's."""
        recorder.add(
            **machine.frame(),
            trajectory=leg,
            bias_energy=machine.bias_energy(),
            **self._values(machine),
        )

    def weights(self, recorder: DatasetRecorder) -> np.ndarray | None:
        """Return MBAR weights over all windows."""
        found = recorder.numbers("variables", "trajectory")
        return self.bias.weights(found["variables"], found["trajectory"], self._temperature)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the window."""
        return {"window": np.array(self.bias.window), "scale": np.array(self.bias.scale)}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take the window."""
        self.bias.window, self.bias.scale = int(arrays["window"]), float(arrays["scale"])

    def describe(self) -> dict[str, Any]:
        """Return settings, JSON-able."""
        return self.bias.describe()

    def text(self) -> str:
        """Return what the dataset says of the bias."""
        return (
            f"{self.legs} umbrella windows along "
            f"{', '.join(v.name for v in self.bias.variables)}, one after the other; MBAR weights"
        )


class ExchangeRun(Method):
    """Temperature replica exchange in one Context, which takes one copy after the other.

    Each copy keeps its state between its turns; an exchange gives copies other temperatures and
    scales their velocities (Sugita and Okamoto 1999, doi:10.1016/S0009-2614(99)01123-9).
    """

    name = "remd"

    def __init__(self, temperatures: Any, base: float, stride: int, all_rungs: bool) -> None:
        if temperatures is None:
            raise InputError("replica exchange needs temperatures, e.g. 300,332,367,406")
        kelvin = strip_array(temperatures, "kelvin", what="temperatures").astype(np.float64)
        kelvin = np.atleast_1d(kelvin)
        if kelvin.ndim != 1 or len(kelvin) < 2 or not (np.diff(kelvin) > 0).all():
            raise InputError(
                f"temperatures are {kelvin.tolist()}; give two or more, each above the one before"
            )
        if abs(kelvin[0] - base) > 1e-6:
            raise InputError(
                f"the first temperature is {kelvin[0]:g} K but the dataset is for {base:g} K; "
                "make them equal: the lowest rung is the one that is recorded"
            )
        self.temperatures, self.stride, self._all = kelvin, stride, bool(all_rungs)
        self.copies = len(kelvin)
        self.per_record = self.copies if self._all else 1
        self.rungs = np.arange(self.copies)
        self._statistics = ExchangeStatistics.start(1, self.copies)
        self._sweep = 0
        self._states: list[Any] = []
        self._loaded: dict[str, np.ndarray] = {}
        self._generator = np.random.default_rng(0)

    def prepare(self, machine: Machine) -> None:
        """Start the random numbers of the exchanges."""
        if self._states:
            return
        self._generator = np.random.default_rng([machine.settings.seed, 1])

    def begin(self, machine: Machine, leg: int) -> None:
        """Equilibrate a copy at each temperature."""
        start = machine.state()
        self._states = []
        for copy, kelvin in enumerate(self.temperatures):
            machine.take(start)
            machine.integrator.setTemperature(kelvin)
            machine.context.setVelocitiesToTemperature(kelvin, machine.settings.seed + 11 + copy)
            machine.step(machine.settings.equilibrate)
            self._states.append(machine.state())

    def _turns(self, machine: Machine) -> Iterator[int]:
        """Put each copy into the Context in turn."""
        for copy, rung in enumerate(self.rungs):
            machine.take(self._states[copy])
            machine.integrator.setTemperature(float(self.temperatures[rung]))
            yield copy

    def advance(self, machine: Machine, steps: int) -> None:
        """Step every copy in turn."""
        for copy in self._turns(machine):
            machine.step(steps)
            self._states[copy] = machine.state()

    def event(self, machine: Machine) -> None:
        """Exchange temperatures."""
        energies = np.empty(self.copies)
        for copy in range(self.copies):
            machine.take(self._states[copy])
            energies[copy] = machine.energy()
        betas = 1 / (GAS_CONSTANT * self.temperatures)
        swaps = neighbour_swaps(
            self.rungs[None], energies[None], betas, self._sweep, self._generator
        )
        self._sweep += 1
        before, self.rungs = self.rungs, np.asarray(swaps.rungs)[0]
        self._statistics.update(before[None], *swaps)
        for copy in np.flatnonzero(before != self.rungs).tolist():
            scale = math.sqrt(
                self.temperatures[self.rungs[copy]] / self.temperatures[before[copy]]
            )
            machine.take(self._states[copy])
            machine.context.setVelocities(machine.velocities() * scale)
            self._states[copy] = machine.state()

    def record(self, machine: Machine, recorder: DatasetRecorder, leg: int) -> None:
        """Add the frame of the first rung, or of every copy; numbers are the copies'."""
        for copy in range(self.copies):
            if not self._all and self.rungs[copy] != 0:
                continue
            machine.take(self._states[copy])
            numbers: dict[str, Any] = {}
            if self._all:
                numbers = {"energy": machine.energy(), "rung": int(self.rungs[copy])}
            recorder.add(**machine.frame(), trajectory=copy, **numbers, **self._values(machine))

    def weights(self, recorder: DatasetRecorder) -> np.ndarray | None:
        """Return MBAR weights at the first temperature if all rungs were kept."""
        if not self._all:
            return None
        found = recorder.numbers("energy", "rung")
        solved = mbar(
            found["energy"], found["rung"], self.temperatures, target=float(self.temperatures[0])
        )
        return solved.weights * len(found["energy"])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all copies, rungs, statistics and random numbers."""
        nm, speed = openmm.unit.nanometer, openmm.unit.nanometer / openmm.unit.picosecond
        arrays = {
            "rungs": self.rungs,
            "sweep": np.array(self._sweep),
            **{f"statistics_{k}": v for k, v in self._statistics.to_arrays().items()},
        }
        random = json.dumps(self._generator.bit_generator.state)
        arrays["generator"] = np.frombuffer(random.encode(), dtype=np.uint8)
        if self._states:
            arrays["positions"] = np.stack(
                [s.getPositions(asNumpy=True).value_in_unit(nm) for s in self._states]
            )
            arrays["velocities"] = np.stack(
                [s.getVelocities(asNumpy=True).value_in_unit(speed) for s in self._states]
            )
        return arrays

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take them; `restore` makes the copies."""
        self.rungs, self._sweep = arrays["rungs"].copy(), int(arrays["sweep"])
        prefix = "statistics_"
        self._statistics = ExchangeStatistics.from_arrays(
            {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
        )
        self._generator = np.random.default_rng(0)
        self._generator.bit_generator.state = json.loads(arrays["generator"].tobytes().decode())
        self._loaded = arrays

    def restore(self, machine: Machine) -> None:
        """Make the copies' States again."""
        loaded, self._loaded = self._loaded, {}
        for positions, velocities in zip(
            loaded.get("positions", ()), loaded.get("velocities", ()), strict=True
        ):
            machine.context.setPositions(positions)
            machine.context.setVelocities(velocities)
            self._states.append(machine.state())

    def describe(self) -> dict[str, Any]:
        """Return settings, JSON-able."""
        return {
            "temperatures_K": self.temperatures.tolist(),
            "steps_per_exchange": self.stride,
            "all_rungs": self._all,
        }

    def text(self) -> str:
        """Return what the dataset says of the bias."""
        kelvin = ", ".join(f"{t:g}" for t in self.temperatures)
        if not self._all:
            return f"none; replica exchange over {kelvin} K, frames of {self.temperatures[0]:g} K"
        return (
            f"frames of all rungs of a replica exchange over {kelvin} K: every use needs their "
            f"MBAR weights at {self.temperatures[0]:g} K, force matching too (forces at other "
            "temperatures have other means)"
        )

    def statistics(self) -> dict[str, Any]:
        """Return what came of it, JSON-able."""
        return self._statistics.summary()
