"""How fast a model runs here: replica-steps a second by platform and number of copies."""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BackendError, InputError
from .units import strip

logger = logging.getLogger(__name__)

#: Numbers of copies that are tried, until more of them make no copy faster.
COPIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

#: So near to the highest throughput, fewer copies are better.
_NEAR = 0.95

_ROUNDS = 5

# TorchScript optimises its graph in its first calls.
_FIRST_STEPS = 5


@dataclass(frozen=True)
class Speed:
    """One platform with one number of copies; times are those of a clock on the wall.

    Attributes:
        platform: OpenMM's name.
        copies: number of copies.
        backend: what evaluated the PMF.
        step_seconds: of one step of all copies, median.
        spread_seconds: half the distance between the quartiles of it.
        force_seconds: of one evaluation of the PMF at new positions, read from OpenMM.
        setup_seconds: from the model file to the first step.
    """

    platform: str
    copies: int
    backend: str
    step_seconds: float
    spread_seconds: float
    force_seconds: float
    setup_seconds: float

    @property
    def throughput(self) -> float:
        """Replica-steps per second."""
        return self.copies / self.step_seconds

    @property
    def rest_seconds(self) -> float:
        """What a step takes besides the PMF: the integrator, mostly."""
        return max(0.0, self.step_seconds - self.force_seconds)

    def record(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **asdict(self),
            "rest_seconds": self.rest_seconds,
            "replica_steps_per_second": self.throughput,
        }


@dataclass(frozen=True)
class BenchmarkReport:
    """What `benchmark` measured.

    Attributes:
        model: name of the model file.
        beads: of one copy.
        backend: what evaluated the PMF where it was fastest.
        threads: torch's.
        speeds: by platform, then by copies.
        frame_seconds: what writing a frame of all copies adds to a run, at `best`; None if there
            was no time for it.
        exchange_seconds: what an exchange between two rungs adds, likewise.
        notes: what was not measured, and why.
    """

    model: str
    beads: int
    backend: str
    threads: int
    speeds: tuple[Speed, ...]
    frame_seconds: float | None = None
    exchange_seconds: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Speed:
        """The fewest copies within 5 % of the highest throughput, on the platform that has it."""
        fastest = max(self.speeds, key=lambda s: s.throughput)
        near = [
            s
            for s in self.speeds
            if s.platform == fastest.platform and s.throughput >= _NEAR * fastest.throughput
        ]
        return min(near, key=lambda s: s.copies)

    def record(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **asdict(self),
            "notes": list(self.notes),
            "speeds": [s.record() for s in self.speeds],
            "best": self.best.record(),
        }

    def text(self) -> str:
        """Return a table for people."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''} of torch"
        lines = [
            f"{self.model}: {self.beads} beads, {self.backend}, {threads}",
            "",
            f"{'platform':<10} {'copies':>7} {'replica-steps/s':>16} {'ms/step':>10}"
            f" {'PMF':>6} {'rest':>6}",
        ]
        best = self.best
        for one in self.speeds:
            rest = one.rest_seconds / one.step_seconds
            lines.append(
                f"{one.platform:<10} {one.copies:>7} {one.throughput:>16,.0f}"
                f" {1e3 * one.step_seconds:>10.3f} {1 - rest:>6.0%} {rest:>6.0%}"
                f"{'  <- best' if one is best else ''}"
            )
        more = any(s.platform == best.platform and s.copies > best.copies for s in self.speeds)
        lines += [
            "",
            f"best: {best.copies} copies on {best.platform}, {best.throughput:,.0f} "
            f"replica-steps/s; more copies {'gain less than 5 %' if more else 'not measured'}",
        ]
        for what, seconds in (
            ("a frame of all copies", self.frame_seconds),
            ("an exchange of temperatures", self.exchange_seconds),
        ):
            if seconds is not None:
                lines.append(
                    f"{what} costs {1e3 * seconds:.2f} ms, {seconds / best.step_seconds:.1f} steps"
                )
        return "\n".join([*lines, *self.notes])


def benchmark(
    model: Any,
    start: Any,
    *,
    copies: Sequence[int] = COPIES,
    seconds: Any = 20.0,
    platform: Any = None,
    backend: str | None = None,
) -> BenchmarkReport:
    """Measure how fast a model runs here, and how many copies are best.

    Copies are made at the training temperature with the settings of `Langevin`. Their number
    grows until that gains no more, or time or memory would run out.

    Args:
        model: a `Model` or a model file's path.
        start: a `CGDataset`, or the positions (beads, 3), nm, of one copy.
        copies: numbers of copies to try.
        seconds: for everything, about; each platform gets at least one measurement. Compiling,
            at a model's first use on this machine, comes on top.
        platform: an openmm.Platform or its name; None: all that work.
        backend: as in `Model.create_force`.

    Raises:
        InputError: if start and model do not fit, or a setting makes no sense.
        BackendError: if nothing could be measured.
    """
    import torch  # before openmm

    from .system import Model, load_model

    if start is None:
        raise InputError("a benchmark needs positions; give start, a dataset of the molecule")
    counts = sorted({int(n) for n in copies})
    if not counts or counts[0] < 1:
        raise InputError(f"copies are {list(copies)}; give numbers of at least 1")
    seconds = strip(seconds, "second", what="seconds", positive=True)
    loaded = model if isinstance(model, Model) else load_model(model)
    platforms = _platforms(platform)
    _compile(loaded, start, counts, platforms, backend)
    end = time.monotonic() + seconds
    # The last quarter of the time is for frames and exchanges.
    speeds, notes = _all_speeds(loaded, start, counts, platforms, backend, end, share=0.75)
    if not speeds:
        raise BackendError("; ".join(notes))
    report = BenchmarkReport(
        loaded.file.name,
        len(loaded.topology),
        max(speeds, key=lambda one: one.throughput).backend,
        torch.get_num_threads(),
        tuple(speeds),
    )
    frame, exchange = _event_seconds(loaded, start, report.best, end - time.monotonic())
    if frame is None:
        notes.append("frames and exchanges were not measured: out of time; give more seconds")
    return replace(report, frame_seconds=frame, exchange_seconds=exchange, notes=tuple(notes))


def backend_speeds(
    model: Any,
    start: Any,
    copies: int,
    *,
    platform: Any = None,
    backends: Sequence[str] | None = None,
    seconds: float = 1.0,
) -> dict[str, float]:
    """Measure Langevin steps of one number of copies with each backend that works here.

    Args:
        model: a `Model` or a model file's path.
        start: as in `benchmark`.
        copies: number of copies.
        platform: an openmm.Platform or its name; None: the engine's choice.
        backends: their names; None: all. Those that do not work here are left out.
        seconds: for the steps of all backends, about; making the Contexts comes on top.

    Returns:
        Replica-steps per second by backend, in the order of the table.

    Raises:
        InputError: if start and model do not fit, or a setting makes no sense.
    """
    import torch  # noqa: F401  (before openmm)

    from openmm import OpenMMException

    from .force import BACKENDS, backend_problem
    from .simulate import Langevin

    engines = {}
    for name in BACKENDS if backends is None else backends:
        if backend_problem(name) is not None:
            continue
        try:
            one = Langevin(model, start, copies, platform=platform, backend=name)
            one.engine.step(_FIRST_STEPS)
        except (BackendError, OpenMMException) as error:
            logger.warning("backend %r does not run: %s", name, str(error).strip())
            continue
        engines[name] = one.engine
    if not engines:
        return {}
    block = seconds / len(engines) / _ROUNDS
    counts = {name: max(1, int(block / _step_seconds(e, 2))) for name, e in engines.items()}
    found: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(_ROUNDS):  # in turn, so that a disturbance hits all
        for name, engine in engines.items():
            found[name].append(_step_seconds(engine, counts[name]))
    return {name: copies / statistics.median(times) for name, times in found.items()}


def _step_seconds(engine: Any, count: int) -> float:
    began = time.perf_counter()
    engine.step(count)
    engine.context.getState(getVelocities=True)  # waits for a GPU
    return (time.perf_counter() - began) / count


def _platforms(platform: Any) -> list[Any]:
    """Return one platform or, for None, all."""
    import openmm

    from .engine import find_platform

    if platform is not None:
        return [find_platform(platform)]
    return [openmm.Platform.getPlatform(k) for k in range(openmm.Platform.getNumPlatforms())]


def _compile(
    model: Any, start: Any, counts: Sequence[int], platforms: Sequence[Any], backend: str | None
) -> None:
    """Compile now what the first steps would, which is once and no part of the speed."""
    from .dataset import CGDataset
    from .force import BACKEND_VARIABLE, FASTEST, backend_problem
    from .native.force import device_for
    from .native.package import compile_package

    named = backend or os.environ.get(BACKEND_VARIABLE) or FASTEST
    if named not in (FASTEST, "native") or backend_problem("native") is not None:
        return
    periodic = isinstance(start, CGDataset) and start.constant_box() is not None
    for device in {device_for(platform.getName()) for platform in platforms}:
        for copies in {counts[0], counts[-1]}:
            with suppress(InputError):  # the force says so and does without
                compile_package(model.file, copies, periodic, device)


def _all_speeds(
    model: Any,
    start: Any,
    counts: Sequence[int],
    platforms: Sequence[Any],
    backend: str | None,
    end: float,
    share: float,
) -> tuple[list[Speed], list[str]]:
    """Return the speeds of all platforms, and what went wrong."""
    speeds: list[Speed] = []
    notes: list[str] = []
    now = time.monotonic()
    until = now + share * (end - now)
    for k, one in enumerate(platforms):
        now = time.monotonic()
        its_end = now + max(0.0, until - now) / (len(platforms) - k)
        measured, note = _platform_speeds(model, start, counts, one, backend, its_end)
        speeds += measured
        notes += [f"{one.getName()}: {note}"] if note else []
    return speeds, notes


def _platform_speeds(
    model: Any, start: Any, counts: Sequence[int], platform: Any, backend: str | None, end: float
) -> tuple[list[Speed], str]:
    """Return the speeds of one platform, and why there are not more of them."""
    from openmm import OpenMMException

    speeds: list[Speed] = []
    memory: list[float] = []
    best, in_vain = 0.0, 0
    for k, copies in enumerate(counts):
        left = end - time.monotonic()
        if speeds:
            last = speeds[-1]
            # Set-up evaluates four times; a measurement takes at least four steps and evaluations.
            most = last.setup_seconds + 12 * last.step_seconds * copies / last.copies
            if most > left:
                return speeds, f"{copies} copies and more were not measured: out of time"
            if not _fits_memory(counts[:k], memory, copies):
                return speeds, f"{copies} copies and more were not measured: out of memory"
        try:
            one = _measure(model, start, copies, platform, backend, left / (len(counts) - k))
        except (BackendError, OpenMMException) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return speeds, f"{copies} copies do not run: {reason}"
        speeds.append(one)
        memory.append(_memory("self/status", "VmHWM"))
        in_vain = 0 if one.throughput > best / _NEAR else in_vain + 1
        best = max(best, one.throughput)
        if in_vain == 2:
            return speeds, ""
    return speeds, ""


def _measure(
    model: Any, start: Any, copies: int, platform: Any, backend: str | None, seconds: float
) -> Speed:
    from .simulate import Langevin

    began = time.perf_counter()
    engine = Langevin(model, start, copies, platform=platform, backend=backend).engine
    context = engine.context
    pmf = 1 << engine.system.getForce(0).getForceGroup()

    def step(count: int) -> None:
        engine.step(count)
        context.getState(getVelocities=True)  # waits for a GPU

    x = engine.positions.reshape(-1, 3)
    places = (x, x + 0.001)  # in turn: the native force does nothing twice at the same positions

    def force(count: int) -> None:
        for k in range(count):
            context.setPositions(places[k % 2])
            context.getState(getForces=True, groups=pmf)

    setup = time.perf_counter() - began
    once = _seconds(step, 1)
    block = max(0.01, (seconds - setup) / (2 * _ROUNDS))
    count = max(1, int(block / once))
    rounds = int(np.clip(block * _ROUNDS / (once * count), 2, _ROUNDS))
    steps, forces = [], []
    for _ in range(rounds):  # in turn, so that a disturbance hits both
        steps.append(_seconds(step, count) / count)
        forces.append(_seconds(force, count) / count)
    low, high = np.percentile(steps, [25, 75])
    return Speed(
        platform.getName(),
        copies,
        engine.backend,
        statistics.median(steps),
        float(high - low) / 2,
        statistics.median(forces),
        setup,
    )


def _event_seconds(
    model: Any, start: Any, best: Speed, seconds: float
) -> tuple[float | None, float | None]:
    """Return what a frame and an exchange cost: runs with many of them against runs without."""
    from .remd import ReplicaExchange
    from .simulate import Langevin

    # Two runs with and two without; an event takes about as long as two steps.
    steps = int((seconds - 3 * best.setup_seconds) / (8 * best.step_seconds))
    if steps < 10:
        return None, None
    steps = min(steps, 200)
    settings: dict[str, Any] = {"platform": best.platform, "backend": best.backend}
    simulation = Langevin(model, start, best.copies, **settings)
    few = _run_seconds(simulation, steps, steps)
    frame = (_run_seconds(simulation, steps, 1) - few) / (steps - 1)
    with _quiet():
        rungs = np.array([1.0, 1.05]) * model.temperature
        ladders = max(1, best.copies // 2)
        exchanging = ReplicaExchange(model, start, rungs, ladders, **settings)
    exchanging.exchange_stride = 0
    none = _run_seconds(exchanging, steps, steps)
    exchanging.exchange_stride = 1
    exchange = (_run_seconds(exchanging, steps, steps) - none) / steps
    return max(0.0, frame), max(0.0, exchange)


def _run_seconds(simulation: Any, steps: int, stride: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        interval = stride * simulation.timestep
        simulation.run(Path(folder) / "run.h5", steps=steps, interval=interval, progress=False)
        return time.perf_counter() - began


def _seconds(call: Callable[[int], None], count: int) -> float:
    began = time.perf_counter()
    call(count)
    return time.perf_counter() - began


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out warnings of temperatures: these are nobody's."""
    speaker = logging.getLogger("openmm_cgml.simulate")
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        speaker.setLevel(level)


def _fits_memory(counts: Sequence[int], peaks: Sequence[float], copies: int) -> bool:
    """Guess from the last two peaks whether more copies fit; True where it cannot be told."""
    if len(counts) < 2:
        return True
    a_copy = (peaks[-1] - peaks[-2]) / (counts[-1] - counts[-2])
    available = _memory("meminfo", "MemAvailable")
    return available == 0 or a_copy * (copies - counts[-1]) < available


def _memory(file: str, name: str) -> float:
    """Return an entry of one of /proc's tables, bytes; 0 where there is none."""
    try:
        lines = Path("/proc", file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in lines if line.startswith(name + ":")]
    return 1024 * float(found[0]) if found else 0.0
