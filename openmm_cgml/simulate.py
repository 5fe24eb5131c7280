"""Langevin dynamics of independent copies in one OpenMM Context."""

import logging
import time
from pathlib import Path
from typing import Any

import torch  # noqa: F401  (before openmm: TorchForce's plugins need its libraries)

import numpy as np

import openmm  # isort: skip

from .dataset import CGDataset
from .errors import CGMLError, InputError
from .force import FORCE_CLASSES, choose_backend
from .replicas import start_positions
from .reporters import Run, RunWriter, read_run
from .system import Model, load_model
from .units import strip

logger = logging.getLogger(__name__)


class SimulationError(CGMLError, RuntimeError):
    """A copy left the range of finite numbers; the message names it and the time."""


class Langevin:
    """Independent copies of one molecule, Langevin dynamics, one batched force call a step.

    The integrator is OpenMM's LangevinMiddleIntegrator (LFMiddle; Zhang et al. 2019,
    doi:10.1021/acs.jpca.9b02771). There is no centre-of-mass remover.

    Args:
        model: a `Model` or a model file's path.
        start: a `CGDataset`, of which frames are drawn by weight, or positions
            (copies, beads, 3), nm.
        copies: number of copies.
        temperature: K; the training temperature if None, the only one at which the PMF is
            physical.
        timestep: ps.
        friction: 1/ps.
        seed: of starts, velocities and noise.
        platform: an openmm.Platform or its name; None: the fastest of CUDA, HIP, OpenCL that
            loads, else Reference, which beats CPU for small molecules.
        properties: platform properties, e.g. ``{"DeviceIndex": "1"}``.
        backend: as in `Model.create_force`.
        box_vectors: (3, 3), nm, of a periodic box; None: that of the start dataset, if it has one.

    Raises:
        InputError: if start and model do not fit, or the platform is unknown.
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
        platform: Any = None,
        properties: dict[str, str] | None = None,
        backend: str | None = None,
        box_vectors: Any = None,
    ) -> None:
        self.model = model if isinstance(model, Model) else load_model(model)
        self.copies = int(copies)
        if self.copies < 1:
            raise InputError(f"copies is {copies}; give at least 1")
        self.temperature = (
            self.model.temperature
            if temperature is None
            else strip(temperature, "kelvin", what="temperature", positive=True)
        )
        self.timestep = strip(timestep, "picosecond", what="timestep", positive=True)
        self.friction = strip(friction, "per_picosecond", what="friction")
        if self.friction < 0:
            raise InputError(f"friction is {self.friction} per ps; give 0 or more")
        self.seed = int(seed)
        positions = start_positions(self.model, start, self.copies, self.seed)
        if abs(self.temperature - self.model.temperature) > 0.5:
            logger.warning(
                "the PMF was trained at %.1f K; at %.1f K its ensemble is not the physical one",
                self.model.temperature,
                self.temperature,
            )
        self.backend = choose_backend(backend)
        if box_vectors is None and isinstance(start, CGDataset):
            box_vectors = start.constant_box()
        self.box_vectors = None if box_vectors is None else np.asarray(box_vectors).tolist()
        self.system = self.model.create_system(
            self.copies, box_vectors=self.box_vectors, backend=self.backend
        )
        self.integrator = openmm.LangevinMiddleIntegrator(
            self.temperature, self.friction, self.timestep
        )
        self.integrator.setRandomNumberSeed(self.seed + 1)  # 0 would mean: from the clock
        self.context = openmm.Context(
            self.system, self.integrator, find_platform(platform), properties or {}
        )
        self.context.setPositions(positions.reshape(-1, 3))
        # TorchScript optimises a graph in its first calls; later ones differ in the last digits.
        for _ in range(3):
            self.context.getState(getEnergy=True, getForces=True)
        self.context.setVelocitiesToTemperature(self.temperature, self.seed + 1)
        self.steps_per_second = float("nan")

    @property
    def positions(self) -> np.ndarray:
        """Current positions (copies, beads, 3), nm."""
        state = self.context.getState(getPositions=True)
        return state.getPositions(asNumpy=True)._value.reshape(self.copies, -1, 3)

    def run(
        self,
        output: str | Path,
        *,
        ns: float | None = None,
        steps: int | None = None,
        interval: Any = 0.5,
        seconds: float | None = None,
        progress: bool | None = None,
    ) -> Run:
        """Run, writing a frame of all copies every `interval`.

        Args:
            output: HDF5 file. While the run goes on, its frames are in closed segments beside
                it; `read_run` reads them at any time.
            ns: length of each copy's trajectory, ns.
            steps: or its length in steps.
            interval: time between frames, ps.
            seconds: wall-clock limit; the run then ends early, with what it has.
            progress: show a progress bar; None: if the output is a terminal.

        Returns:
            The frames written. Ctrl-C ends the run early and keeps them.

        Raises:
            InputError: if the output is there already or no length is given.
            SimulationError: if a copy's positions stop being finite; frames until then are kept.
        """
        if (ns is None) == (steps is None):
            raise InputError("give the length of the run: either ns or steps")
        interval = strip(interval, "picosecond", what="interval", positive=True)
        stride = max(1, round(interval / self.timestep))
        if ns is not None:
            length = strip(ns, "nanosecond", what="ns", positive=True)
            steps = round(length * 1000 / self.timestep)
        frames = int(steps or 0) // stride
        if frames < 1:
            raise InputError(
                f"the run of {steps} steps is shorter than one interval of {stride} steps; "
                "make it longer or the interval shorter"
            )
        writer = RunWriter(output, self.model.topology, self._info(stride))
        started = time.perf_counter()
        done = 0
        try:
            with _Progress(progress, frames, "simulating") as bar:
                for done in range(1, frames + 1):
                    self._step(stride)
                    positions = self.positions
                    self._require_finite(positions)
                    writer.add(self.context.getTime()._value, positions)
                    elapsed = time.perf_counter() - started
                    self.steps_per_second = done * stride * self.copies / elapsed
                    bar.update(done, self._speed())
                    if seconds is not None and elapsed > seconds:
                        break
        except KeyboardInterrupt:
            logger.warning("interrupted; the frames until then are kept in %s", output)
        except BaseException:
            writer.flush()
            raise
        writer.finish(replica_steps_per_second=self.steps_per_second)
        return read_run(output)

    def _step(self, stride: int) -> None:
        try:
            self.integrator.step(stride)
        except openmm.OpenMMException as error:
            self._require_finite(self.positions)  # names the copy, where OpenMM does not
            raise SimulationError(f"OpenMM stopped: {str(error).strip()}") from error

    def _speed(self) -> str:
        per_day = self.steps_per_second * self.timestep * 86.4
        return (
            f"{self.steps_per_second:,.0f} steps/s, {per_day:,.0f} ns/day "
            f"({per_day / self.copies:,.0f} a copy)"
        )

    def _info(self, stride: int) -> dict[str, Any]:
        from .version import __version__

        return {
            "model": self.model.file.name,
            "copies": self.copies,
            "temperature_K": self.temperature,
            "timestep_ps": self.timestep,
            "friction_per_ps": self.friction,
            "box_vectors_nm": self.box_vectors,
            "steps_per_frame": stride,
            "seed": self.seed,
            "platform": self.context.getPlatform().getName(),
            "backend": FORCE_CLASSES[self.backend],
            "versions": {
                "openmm_cgml": __version__,
                "openmm": openmm.version.short_version,
                "torch": torch.__version__,
            },
        }

    def _require_finite(self, positions: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=(1, 2)))
        if len(bad):
            raise SimulationError(
                f"copy {int(bad[0])} ({len(bad)} of {self.copies}) is no longer finite at "
                f"{self.context.getTime()._value:.3f} ps; try a shorter timestep, or train on "
                "more data or with a stronger prior"
            )


def find_platform(platform: Any = None) -> Any:
    """Return an openmm.Platform for a name, itself, or the fastest one.

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


class _Progress:
    """A progress bar with time left on a terminal; nothing elsewhere."""

    def __init__(self, show: bool | None, total: int, what: str) -> None:
        import sys

        self.show = sys.stderr.isatty() if show is None else show
        self.total, self.what = total, what

    def __enter__(self) -> "_Progress":
        if self.show:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=14),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self.what, total=self.total, note="")
            self._bar.start()
        return self

    def update(self, done: int, note: str) -> None:
        if self.show:
            self._bar.update(self._task, completed=done, note=note)

    def __exit__(self, *_: Any) -> None:
        if self.show:
            self._bar.stop()
