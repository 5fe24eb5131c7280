"""Langevin dynamics of independent copies, and the loop that every run goes through."""

import hashlib
import logging
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch  # noqa: F401  (before openmm: TorchForce's plugins need its libraries)

import numpy as np

import openmm  # isort: skip

from .copy_status import CopyStatus
from .dataset import CGDataset
from .engine import Engine, find_backend, find_platform, lfmiddle_integrator
from .errors import CGMLError, InputError
from .extrapolation import Monitor, Sighting
from .files import segments_folder
from .force import BACKENDS, FASTEST, backend_problem
from .long_runs import processor_name, require_same_run, signals
from .parallel import Ranks
from .progress import ProgressBar
from .replicas import replicate_topology, start_positions
from .reporters import ReporterHost
from .run_file import (
    Checkpoint,
    Run,
    RunWriter,
    outside_training,
    read_checkpoint,
    read_run,
)
from .sampling import SlowCoordinates, effective_samples
from .system import Model, load_model
from .units import strip, strip_array

logger = logging.getLogger(__name__)

#: What becomes of a copy whose energy, forces or positions are not finite.
SICK_ACTIONS = ("reset", "drop", "raise")

# Of a run's settings, these may change when it goes on.
_MAY_CHANGE = {"steps", "wall_seconds", "replica_steps_per_second", "statistics", "processor"}

# Ctrl-C is seen only when OpenMM's step() returns.
_LONGEST_CALL_SECONDS = 0.5

# Effective sample sizes for the progress bar take a moment.
_SECONDS_BETWEEN_SIZES = 5.0

# Frames waiting in memory for their segment.
_MOST_PENDING_BYTES = 256 << 20


class SimulationError(CGMLError, RuntimeError):
    """A copy left the range of finite numbers; the message names it and the time."""


class Langevin:
    """Independent copies of one molecule, Langevin dynamics, one batched force call a step.

    The scheme is LFMiddle (Zhang et al. 2019, doi:10.1021/acs.jpca.9b02771): OpenMM's
    LangevinMiddleIntegrator where all copies have one temperature, else the same steps with noise
    of each copy's own (`lfmiddle_integrator`). There is no centre-of-mass remover.

    Started by torchrun, every process holds a share of the copies; see `parallel`.

    Args:
        model: a `Model` or a model file's path.
        start: a `CGDataset`, of which frames are drawn by weight, or positions
            (copies, beads, 3) or (beads, 3), nm.
        copies: number of copies.
        temperature: K, one or one a copy; the training temperature if None, the only one at
            which the PMF is physical.
        timestep: ps.
        friction: 1/ps.
        seed: of starts, velocities and noise.
        forces: further OpenMM forces, written for one copy (bead indices 0 to n - 1); every copy
            gets them. Kinds that cannot act on single copies are refused, with the reason.
        shared_forces: further forces written for the System of all copies, added as they are.
        integrator: an OpenMM integrator instead of the above; its own settings count.
        minimize: relax every copy first.
        on_sick: what becomes of a copy that is no longer finite: ``"reset"`` to a frame of the
            start, ``"drop"``: likewise, but all its later frames are flagged and it no longer
            exchanges, or ``"raise"``.
        platform: an openmm.Platform or its name; None: the fastest of CUDA, HIP, OpenCL that
            loads, else Reference, which beats CPU for small molecules.
        properties: platform properties, e.g. ``{"DeviceIndex": "1"}``.
        backend: as in `Model.create_force`.
        cuda_graphs: as in `Engine`.
        box_vectors: (3, 3), nm, of a periodic box; None: that of the start dataset, if it has one.

    Attributes:
        status: `CopyStatus`: which copies were sick, and what became of them.
        reporters: OpenMM reporters, or anything with ``describeNextReport`` and ``report``; append
            to it. OpenMM's raise an error on NaN. One with ``state_dict()`` and
            ``load_state_dict()`` (dictionaries of arrays) is part of the checkpoints; the files of
            others are not rewound when a run resumes.
        context, system, integrator: OpenMM's.

    Raises:
        InputError: if start and model do not fit, or a setting makes no sense.
    """

    def __init__(
        self,
        model: Model | str | Path,
        start: Any,
        copies: int = 100,
        *,
        temperature: Any = None,
        timestep: Any = 0.002,
        friction: Any = 1.0,
        seed: int = 0,
        forces: Sequence[Any] = (),
        shared_forces: Sequence[Any] = (),
        integrator: Any = None,
        minimize: bool = False,
        on_sick: str = "reset",
        platform: Any = None,
        properties: dict[str, str] | None = None,
        backend: str | None = None,
        cuda_graphs: bool = False,
        box_vectors: Any = None,
    ) -> None:
        self.model = model if isinstance(model, Model) else load_model(model)
        self.copies = int(copies)
        if self.copies < 1:
            raise InputError(f"copies is {copies}; give at least 1")
        if on_sick not in SICK_ACTIONS:
            raise InputError(f"on_sick is {on_sick!r}; give one of {', '.join(SICK_ACTIONS)}")
        self.on_sick = on_sick
        if temperature is None:
            own = getattr(integrator, "getTemperature", None)
            temperature = self.model.temperature if own is None else own()
        self.temperatures, self.rungs = _rungs(temperature, self.copies)
        self.timestep = strip(timestep, "picosecond", what="timestep", positive=True)
        self.friction: float | None = strip(friction, "per_picosecond", what="friction")
        if self.friction is None or self.friction < 0:
            raise InputError(f"friction is {self.friction} per ps; give 0 or more")
        self.seed = int(seed)
        self.ranks = Ranks.discover()
        self.share = self.ranks.share(self.copies)
        self._warn_of_temperatures()
        self._start = start
        self._given_positions = start_positions(self.model, start, self.copies, self.seed)
        if box_vectors is None and isinstance(start, CGDataset):
            box_vectors = start.constant_box()
        self.box_vectors = None if box_vectors is None else np.asarray(box_vectors).tolist()
        noise_seed = self.seed + 1 + 7919 * self.ranks.rank  # 0 would mean: from the clock
        if integrator is None:
            integrator = self._make_integrator(noise_seed)
        else:
            self.timestep, self.friction = integrator.getStepSize()._value, None
        if self.ranks.size > 1 and "DeviceIndex" not in (properties or {}):
            properties = _device_of_rank(platform, properties, self.ranks)
        self._settings: dict[str, Any] = {
            "forces": forces,
            "box_vectors": self.box_vectors,
            "platform": find_platform(platform),
            "properties": properties,
            "cuda_graphs": cuda_graphs,
        }
        self._minimized = minimize
        self._monitor = Monitor.of(self.model.file.module().pmf, self.model.card)
        self._starts: dict[Path, str] = {}
        self.steps_per_second = float("nan")
        self.reporters: list[Any] = []
        self._backend_is_ours = backend in (None, FASTEST)
        self._build(self._find_backend(backend), integrator, shared_forces)

    # -- set-up ---------------------------------------------------------------------------------

    def _find_backend(self, backend: str | None) -> str:
        """Return the backend of all ranks: the first one tries, the others follow."""
        found: str | CGMLError = ""
        if self.ranks.rank == 0:
            copies, periodic = self.share.stop - self.share.start, self.box_vectors is not None
            where = self._settings["platform"], self._settings["properties"]
            try:
                found = find_backend(backend, self.model, copies, periodic, *where)
            except CGMLError as error:
                found = error  # the others would wait for ever
        found = self.ranks.same(found)
        if isinstance(found, CGMLError):
            raise found
        return found

    def _build(self, backend: str, integrator: Any, shared_forces: Sequence[Any]) -> None:
        """Make the engine and put it at the start."""
        self.engine = Engine(
            self.model,
            self.share.stop - self.share.start,
            integrator,
            shared_forces=shared_forces,
            backend=backend,
            **self._settings,
        )
        self.integrator, self.context = integrator, self.engine.context
        self.system, self.forces = self.engine.system, self.engine.replicas
        # One generator for decisions that all ranks must share, one for this rank's own.
        self._common = np.random.default_rng([self.seed, 1])
        self._own = np.random.default_rng([self.seed, 2, self.ranks.rank])
        self._first_positions = self._given_positions
        self.engine.positions = self._given_positions[self.share]
        self.engine.warm_up()
        if self._minimized:
            self._minimize()
        if len(self.temperatures) > 1 or self.engine.has_temperatures:
            self.engine.set_temperatures(self._copy_temperatures())
        self.engine.velocities = self._first_velocities()
        self.status = CopyStatus.of(self.engine.copies, self._monitor.reasons)
        self._host = ReporterHost(
            self.context, self.system, integrator, self._app_topology, self.reporters
        )

    def _take_backend_of(self, before: dict[str, Any]) -> None:
        """Go on with the backend with which a run was begun, if the choice was left to us.

        Another machine, or an emptied cache, may have chosen differently.
        """
        backend = str(before.get("backend"))
        untouched = self.context.getStepCount() == 0
        if not (self._backend_is_ours and untouched and backend in BACKENDS):
            return
        if backend == self.engine.backend or backend_problem(backend):
            return
        logger.info("going on with backend %r, with which the run was begun", backend)
        first = 1 + len(self.engine.replicas)
        shared = self.system.getForces()[first : first + self.engine.shared_forces]
        described = self.engine.described  # before the integrator was given temperatures
        self._build(backend, deepcopy(self.integrator), [deepcopy(force) for force in shared])
        self.engine.described = described

    def _make_integrator(self, seed: int) -> Any:
        assert self.friction is not None
        if len(self.temperatures) > 1:
            return lfmiddle_integrator(self.friction, self.timestep, seed)
        integrator = openmm.LangevinMiddleIntegrator(
            float(self.temperatures[0]), self.friction, self.timestep
        )
        integrator.setRandomNumberSeed(seed)
        return integrator

    def _warn_of_temperatures(self) -> None:
        trained = self.model.temperature
        others = self.temperatures[np.abs(self.temperatures - trained) > 0.5]
        if len(others) == len(self.temperatures):
            logger.warning(
                "the PMF was trained at %.1f K; at %s K its ensemble is not the physical one",
                trained,
                ", ".join(f"{t:.1f}" for t in others),
            )
        elif len(others):
            logger.warning(
                "the PMF was trained at %.1f K: only the copies at that temperature sample the "
                "physical ensemble; the others only help them to cross barriers",
                trained,
            )

    def _minimize(self) -> None:
        left = self.engine.minimize()
        self.engine.read()  # what was sick on the way does not matter
        left[self._sick_now()] = np.inf
        lost = np.flatnonzero(~(left < 1e4))
        if len(lost):
            raise InputError(
                f"copy {self.share.start + int(lost[0])} ({len(lost)} in all) keeps a force of "
                f"{left[lost[0]]:.3g} kJ/mol/nm after minimisation; give another start"
            )
        self.engine.warm_up()
        self._first_positions = self.ranks.gather(self.engine.positions)

    def _sick_now(self) -> np.ndarray:
        _ = self.engine.forces  # evaluated once more, and counted
        return self.engine.read().sick > 0

    def _first_velocities(self) -> np.ndarray:
        # Drawn for all copies, so that they do not depend on the number of ranks.
        generator = np.random.default_rng([self.seed, 0])
        masses = np.asarray(self.model.topology.masses).reshape(-1, 1)
        noise = generator.standard_normal((self.copies, len(masses), 3))
        return self.engine.thermal_velocities(noise[self.share], self._copy_temperatures())

    def _app_topology(self) -> Any:
        topology = replicate_topology(self.model.topology, self.engine.copies).to_openmm()
        if self.box_vectors is not None:
            topology.setPeriodicBoxVectors([openmm.Vec3(*row) for row in self.box_vectors])
        return topology

    # -- state ----------------------------------------------------------------------------------

    @property
    def positions(self) -> np.ndarray:
        """Current positions (copies, beads, 3), nm; of this rank's copies."""
        return self.engine.positions

    @property
    def velocities(self) -> np.ndarray:
        """Current velocities (copies, beads, 3), nm/ps; of this rank's copies."""
        return self.engine.velocities

    def update_force(self, force: Any) -> None:
        """Pass changed tabulated functions of one of `forces` on; see `Engine.update_force`."""
        self.engine.update_force(force)

    def _copy_temperatures(self) -> np.ndarray:
        return self.temperatures[self.rungs[self.share]]

    # -- what a replica exchange adds -----------------------------------------------------------

    #: Steps between exchanges; 0: none.
    exchange_stride = 0

    def _exchange(self, energies: np.ndarray, frozen: np.ndarray) -> None:
        """Exchange temperatures, given all copies' energies (copies,), kJ/mol."""

    def _exchange_arrays(self) -> dict[str, np.ndarray]:
        return {}

    def _load_exchange_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        pass

    def _statistics(self) -> dict[str, Any]:
        return {}

    def _watched_temperature(self) -> float:
        """The training temperature if there are copies at it, else the lowest."""
        nearest = int(np.abs(self.temperatures - self.model.temperature).argmin())
        there = abs(self.temperatures[nearest] - self.model.temperature) < 0.5
        return float(self.temperatures[nearest if there else 0])

    def _live(self) -> str:
        return ""

    # -- running --------------------------------------------------------------------------------

    def run(
        self,
        output: str | Path,
        *,
        ns: float | None = None,
        steps: int | None = None,
        interval: Any = 0.5,
        seconds: float | None = None,
        checkpoint_seconds: float = 30.0,
        progress: bool | None = None,
    ) -> Run:
        """Run, writing a frame of all copies every `interval`; go on if `output` was begun before.

        A run that was stopped, by Ctrl-C, SIGTERM, a limit, ``kill -9`` or a full disk, goes on
        when the same script is started again, and its trajectory is the same to the bit as if it
        had never stopped, provided that platform, backend, threads, versions and model are the
        same: all are checked. A finished run is made longer by a larger `ns`.

        Args:
            output: HDF5 file. While the run goes on, its frames are in closed segments beside
                it; `read_run` reads them at any time.
            ns: length of each copy's trajectory, ns, counted from the beginning of `output`.
            steps: or its length in steps.
            interval: time between frames, ps.
            seconds: wall-clock limit, for queues; the run then stops early and can go on.
            checkpoint_seconds: how often a segment is closed: at most so much work is lost.
            progress: show a progress bar; None: if the output is a terminal.

        Returns:
            The frames written; `Run.finished` says whether the run came to its end.

        Raises:
            InputError: if `output` holds another run, or the disk is full.
            SimulationError: if a copy stops being finite and `on_sick` is ``"raise"``; frames
                until then are kept.
        """
        stride, total = self._lengths(ns, steps, interval)
        output = Path(output)
        found = read_checkpoint(output, self.ranks.rank)
        if found is not None:
            self._take_backend_of(found[0])
        self.ranks.wait()  # nobody writes before everybody has looked
        if found is None:
            self._starts.pop(output.absolute(), None)
        info = self._info(stride, output)
        writer_info = {**info, "steps": total}
        self._host.currentStep = self._resume(output, info, found)
        if self._host.currentStep >= total and not segments_folder(output).exists():
            run = read_run(output)
            logger.info("%s is complete: %d frames", output, len(run))
            return run
        writer = RunWriter(
            output, self.model.topology, writer_info, self.ranks.rank, self.ranks.wait
        )
        loop = _Loop(self, writer, stride, total, seconds, checkpoint_seconds)
        with ProgressBar(progress and self.ranks.rank == 0, total, "simulating") as bar:
            stopped = loop.run(bar)
        self.steps_per_second = loop.steps_per_second
        self.ranks.wait()
        if not stopped and self.ranks.rank == 0:
            writer.finish(**self._results(output))
        self.ranks.wait()
        if stopped:
            logger.warning(
                "%s after %d of %d steps; its frames are in %s: start the same run again to go on",
                stopped,
                self._host.currentStep,
                total,
                output,
            )
        return read_run(output)

    def _results(self, output: Path) -> dict[str, Any]:
        """Return what a finished run's file says of it, besides its settings."""
        watched = read_run(output).at_temperature(self._watched_temperature())
        statistics = {
            **self._statistics(),
            "effective_samples": effective_samples(watched),
            **outside_training(watched),
        }
        speed = self.steps_per_second
        speeds = {"replica_steps_per_second": speed} if np.isfinite(speed) else {}
        return {**speeds, "statistics": statistics}

    def _lengths(self, ns: float | None, steps: int | None, interval: Any) -> tuple[int, int]:
        if (ns is None) == (steps is None):
            raise InputError("give the length of the run: either ns or steps")
        interval = strip(interval, "picosecond", what="interval", positive=True)
        stride = max(1, round(interval / self.timestep))
        if ns is not None:
            length = strip(ns, "nanosecond", what="ns", positive=True)
            steps = round(length * 1000 / self.timestep)
        total = int(steps or 0) // stride * stride
        if total < 1:
            raise InputError(
                f"the run of {steps} steps is shorter than one interval of {stride} steps; "
                "make it longer or the interval shorter"
            )
        return stride, total

    def _info(self, stride: int, output: Path) -> dict[str, Any]:
        where = output.absolute()
        if where not in self._starts:
            digest = hashlib.sha256(self.ranks.gather(self.engine.positions).tobytes())
            digest.update(self.ranks.gather(self.engine.velocities).tobytes())
            digest.update(self.rungs.tobytes())
            self._starts[where] = digest.hexdigest()
        settings = {
            **self.engine.settings(),
            "copies": self.copies,
            "temperatures_K": [float(t) for t in self.temperatures],
            "training_temperature_K": self.model.temperature,
            "timestep_ps": self.timestep,
            "friction_per_ps": self.friction,
            "steps_per_frame": stride,
            "seed": self.seed,
            "on_sick": self.on_sick,
            "start_sha256": self._starts[where],
            "ranks": self.ranks.size,
            "processor": processor_name(),
        }
        if self._monitor.spread is not None:
            settings["force_uncertainty"] = self._monitor.spread.to_dict()
        return self.ranks.same(settings)

    # -- resuming -------------------------------------------------------------------------------

    def _resume(
        self, output: Path, info: dict[str, Any], found: tuple[dict[str, Any], Checkpoint] | None
    ) -> int:
        """Go to the last state of a run that was begun before; return its steps."""
        if found is None:
            return 0
        before, checkpoint = found
        remedy = ""
        if "program" in before and before["program"] != info.get("program"):
            remedy = "; `cgml doctor` says whether models can be compiled here"
        require_same_run(output, before, info, _MAY_CHANGE, remedy=remedy)
        self._load(checkpoint)
        logger.info("%s goes on from step %d", output, checkpoint.step)
        return checkpoint.step

    def _save(self) -> Checkpoint:
        arrays = {
            "positions": self.engine.positions,
            "velocities": self.engine.velocities,
            "rungs": self.rungs,
            "unread": self.engine.unread,
            **self.status.arrays(),
            **{f"exchange_{k}": v for k, v in self._exchange_arrays().items()},
        }
        for k, reporter in enumerate(self.reporters):
            if hasattr(reporter, "state_dict"):
                for name, values in reporter.state_dict().items():
                    arrays[f"reporter{k}_{name}"] = np.asarray(values)
        state = {
            "common": self._common.bit_generator.state,
            "own": self._own.bit_generator.state,
        }
        return Checkpoint(self._host.currentStep, arrays, state, self.engine.checkpoint())

    def _load(self, checkpoint: Checkpoint) -> None:
        arrays = checkpoint.arrays
        self.engine.restore(checkpoint.blob)
        self.rungs = arrays["rungs"].astype(np.int64)
        self.engine.unread = arrays["unread"]
        self.status = self.status.with_arrays(arrays)
        self._load_exchange_arrays(_with_prefix(arrays, "exchange_"))
        if len(self.temperatures) > 1:
            self.engine.set_temperatures(self._copy_temperatures())
        for k, reporter in enumerate(self.reporters):
            if hasattr(reporter, "load_state_dict"):
                reporter.load_state_dict(_with_prefix(arrays, f"reporter{k}_"))
        self._common.bit_generator.state = checkpoint.state["common"]
        self._own.bit_generator.state = checkpoint.state["own"]

    # -- sick copies ----------------------------------------------------------------------------

    def _heal(self, sick: np.ndarray, why: str, events: list[dict[str, Any]]) -> None:
        """Give sick copies (copies,) bool a new start, and write down that it happened."""
        if self.on_sick == "raise":
            bad = np.flatnonzero(sick)
            raise SimulationError(
                f"copy {self.share.start + int(bad[0])} ({len(bad)} of {self.copies}) is no "
                f"longer finite at {self.engine.time:.3f} ps ({why}); try a shorter timestep, or "
                "train on more data or with a stronger prior"
            )
        where = np.flatnonzero(sick)
        positions, velocities = self.engine.positions, self.engine.velocities
        positions[where] = self._fresh_positions(len(where))
        noise = self._own.standard_normal(positions[where].shape)
        temperatures = self._copy_temperatures()[where]
        velocities[where] = self.engine.thermal_velocities(noise, temperatures)
        self.engine.positions, self.engine.velocities = positions, velocities
        self.status.resets[where] += 1
        self.status.flagged[where] = True
        if self.on_sick == "drop":
            self.status.dropped[where] = True
        for copy in where:
            event = {
                "what": "dropped" if self.on_sick == "drop" else "reset",
                "copy": self.share.start + int(copy),
                "time_ps": self.engine.time,
                "temperature_K": float(self._copy_temperatures()[copy]),
                "why": why,
            }
            events.append(event)
            logger.warning(
                "copy %d %s at %.3f ps: %s", event["copy"], event["what"], event["time_ps"], why
            )

    def _fresh_positions(self, count: int) -> np.ndarray:
        if isinstance(self._start, CGDataset) and not self._minimized:
            return self._start.draw(count, int(self._own.integers(2**31)))
        return self._first_positions[self._own.integers(self.copies, size=count)]


class _Loop:
    """One call of `Langevin.run`: steps, and what is due after them."""

    def __init__(
        self,
        simulation: Langevin,
        writer: RunWriter,
        stride: int,
        total: int,
        seconds: float | None,
        checkpoint_seconds: float,
    ) -> None:
        self.simulation, self.engine = simulation, simulation.engine
        self.host = simulation._host
        self.writer, self.stride, self.total = writer, stride, total
        self.seconds, self.checkpoint_seconds = seconds, checkpoint_seconds
        self.steps_per_second = float("nan")
        self._step_seconds = 0.0
        self._watched = np.searchsorted(simulation.temperatures, simulation._watched_temperature())
        self._slow = SlowCoordinates(simulation.model.topology, simulation.box_vectors)
        self._sampled, self._sampled_at = "", time.monotonic()

    def run(self, bar: ProgressBar) -> str | None:
        """Run to the end; return why not, or None."""
        started = flushed = time.monotonic()
        first = saved = self.host.currentStep
        with signals() as caught:
            while self.host.currentStep < self.total:
                if not self._to_next_event(caught):
                    break
                now = time.monotonic()
                done = self.host.currentStep - first
                self.steps_per_second = done * self.simulation.copies / max(now - started, 1e-9)
                bar.update(self.host.currentStep, self._note())
                if self.simulation.ranks.size > 1 and not any(self._due(0)):
                    continue  # only this rank's reporters: nothing to agree on
                late = now - flushed > self.checkpoint_seconds
                full = self.writer.pending_bytes > _MOST_PENDING_BYTES
                over = self.seconds is not None and now - started > self.seconds
                stop, flush = self.simulation.ranks.any(bool(caught) or over, late or full)
                if stop:
                    break
                if flush:
                    self.writer.flush(self.simulation._save())
                    saved, flushed = self.host.currentStep, time.monotonic()
            if self.host.currentStep > saved:
                self.writer.flush(self.simulation._save())
        if self.host.currentStep >= self.total:
            return None
        return f"stopped by {caught[0]}" if caught else "stopped at its time limit"

    def _to_next_event(self, caught: list[str]) -> bool:
        """Step to the next frame, exchange or report and do it; False if interrupted before."""
        host, simulation = self.host, self.simulation
        waits = [n - host.currentStep % n for n in (self.stride, simulation.exchange_stride) if n]
        if (report := host.next_report()) is not None:
            waits.append(max(1, report))
        wait = min(waits)
        due = host.due_in(wait)
        before = self._remember()
        frame_due, exchange_due = self._due(wait)
        try:
            if not self._advance(wait, before, caught):
                # The interval is done again when the run goes on, so that what happens in it
                # does not depend on where it was interrupted.
                self._go_back(before)
                return False
            energies = self._examine(frame_due or exchange_due)
        except SimulationError:
            # The state is not worth going on from; the one before and its frames are.
            self._go_back(before)
            self.writer.flush(simulation._save())
            raise
        host.currentStep += wait
        if energies is not None and frame_due:
            self._add_frame(energies)
        if energies is not None and exchange_due:
            self._exchange(energies)
        if energies is not None and frame_due:
            # Only now: who was sick until this frame does not exchange with it either.
            simulation.status.flagged[:] = False
        host.report(due)
        return True

    def _due(self, wait: int) -> tuple[bool, bool]:
        """Return whether a frame and whether an exchange is due after so many steps."""
        step, exchange = self.host.currentStep + wait, self.simulation.exchange_stride
        return step % self.stride == 0, bool(exchange) and step % exchange == 0

    def _remember(self) -> tuple[Any, ...]:
        """Return all that stepping and healing change."""
        one = self.simulation
        # Where energies were read there is nothing unread, which saves the evaluation.
        read = any(self._due(0))
        unread = np.zeros(self.engine.copies, dtype=np.int64) if read else self.engine.unread
        generator = one._own.bit_generator.state
        events = len(self.writer.events)
        return self.engine.checkpoint(), unread, one.status.copy(), generator, events

    def _go_back(self, before: tuple[Any, ...]) -> None:
        one = self.simulation
        blob, unread, one.status, generator, events = before
        self.engine.restore(blob)
        self.engine.unread = unread
        one._own.bit_generator.state = generator
        del self.writer.events[events:]

    def _advance(self, steps: int, before: tuple[Any, ...], caught: list[str]) -> bool:
        """Step; on a NaN that stops OpenMM, go back, heal the copy and step again.

        Returns:
            False if interrupted.
        """
        healed = np.zeros(self.engine.copies, dtype=int)
        blob, unread = before[:2]
        while True:
            try:
                return self._step(steps, caught)
            except openmm.OpenMMException as error:
                sick = ~np.isfinite(self.engine.positions).all(axis=(1, 2))
                if not sick.any():
                    raise SimulationError(f"OpenMM stopped: {str(error).strip()}") from error
                hopeless = np.flatnonzero(sick & (healed >= 3))
                if len(hopeless):
                    raise SimulationError(
                        f"copy {self.simulation.share.start + int(hopeless[0])} stops being "
                        "finite again and again; try a shorter timestep or other forces"
                    ) from error
                self.engine.restore(blob)
                self._heal(sick, "positions not finite")
                # The steps that are done again count again.
                unread = self.engine.unread = np.where(sick, 0, unread)
                healed += sick
                blob = self.engine.checkpoint()

    def _step(self, steps: int, caught: list[str]) -> bool:
        left = steps
        while left:
            # Alone, a rank may stop at once; several must agree, which they do at events.
            if caught and self.simulation.ranks.size == 1:
                return False
            most = _LONGEST_CALL_SECONDS / self._step_seconds if self._step_seconds else 20
            count = min(left, max(1, int(most)))
            clock = time.monotonic()
            self.engine.step(count)
            self._step_seconds = (time.monotonic() - clock) / count
            left -= count
        return True

    def _examine(self, energies: bool) -> np.ndarray | None:
        """Look for sick copies, heal them, and return all energies of this rank, kJ/mol.

        Args:
            energies: False: look at the positions only, and return None.
        """
        lost = ~np.isfinite(self.engine.positions).all(axis=(1, 2))
        if lost.any():  # before anything is evaluated: CPU would throw
            self._heal(lost, "positions not finite")
        if not energies:
            return None
        report = self.engine.read()
        sick = (report.sick > 0) | ~np.isfinite(report.energies)
        sick &= ~lost
        if sick.any():
            self._heal(sick, "energy or forces not finite, or beyond 1e7 kJ/mol/nm")
        if lost.any() or sick.any():
            report = self.engine.read()
        return report.energies

    def _heal(self, sick: np.ndarray, why: str) -> None:
        self.simulation._heal(sick, why, self.writer.events)

    def _add_frame(self, energies: np.ndarray) -> None:
        simulation = self.simulation
        positions = self.engine.positions
        sighting = simulation._monitor.look(positions, simulation.box_vectors)
        self._report(sighting)
        if simulation.ranks.size == 1:
            self._slow.add(positions[simulation.rungs == self._watched])
        self.writer.add(
            positions=positions,
            time=self.engine.time,
            energy=energies,
            kinetic_energy=self.engine.kinetic_energies(),
            rung=simulation.rungs[simulation.share],
            sick=simulation.status.frozen,
            extrapolating=sighting.extrapolating,
            force_uncertainty=sighting.uncertainty,
        )

    def _report(self, sighting: Sighting) -> None:
        """Write down which copies have left the training data for the first time, and why."""
        simulation = self.simulation
        for reason, flags in sighting.flags.items():
            for copy in np.flatnonzero(flags & ~simulation.status.reported[reason]):
                self.writer.events.append(
                    {
                        "what": "extrapolating",
                        "copy": simulation.share.start + int(copy),
                        "time_ps": self.engine.time,
                        "temperature_K": float(simulation._copy_temperatures()[copy]),
                        "why": sighting.why(reason, int(copy)),
                    }
                )
            simulation.status.reported[reason] |= flags

    def _exchange(self, energies: np.ndarray) -> None:
        simulation = self.simulation
        given = np.stack([energies, simulation.status.frozen], axis=1)
        gathered = simulation.ranks.gather(given)
        before = simulation._copy_temperatures()
        simulation._exchange(gathered[:, 0], gathered[:, 1] > 0)
        after = simulation._copy_temperatures()
        if (after != before).any():
            # Positions stay, so forces stay right; velocities become those of the new rung.
            self.engine.velocities *= np.sqrt(after / before).reshape(-1, 1, 1)
            self.engine.set_temperatures(after)
        if simulation.ranks.rank == 0:
            self.writer.add_exchange(self.engine.time, simulation.rungs)

    def _note(self) -> str:
        per_day = self.steps_per_second * self.simulation.timestep * 86.4
        speed = (
            f"{self.steps_per_second:,.0f} steps/s, {per_day:,.0f} ns/day "
            f"({per_day / self.simulation.copies:,.0f} a copy)"
        )
        if time.monotonic() - self._sampled_at > _SECONDS_BETWEEN_SIZES:
            size = self._slow.effective_samples()
            self._sampled = "" if size is None else f"ESS {size:,.0f}"
            self._sampled_at = time.monotonic()
        return ", ".join(n for n in (speed, self.simulation._live(), self._sampled) if n)


def _rungs(temperature: Any, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the different temperatures, ascending, and each copy's index into them."""
    values = np.atleast_1d(strip_array(temperature, "kelvin", what="temperature")).astype(float)
    if values.shape not in ((1,), (copies,)):
        raise InputError(
            f"{values.size} temperatures for {copies} copies; give one, or one a copy"
        )
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError(f"temperature is {values.min():g} K; give a positive one")
    different, rungs = np.unique(np.broadcast_to(values, (copies,)), return_inverse=True)
    return different, rungs.astype(np.int64)


def _device_of_rank(
    platform: Any, properties: dict[str, str] | None, ranks: Ranks
) -> dict[str, str] | None:
    if "DeviceIndex" not in find_platform(platform).getPropertyNames():
        return properties
    return {**(properties or {}), "DeviceIndex": str(ranks.local_rank)}


def _with_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
