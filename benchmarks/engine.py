"""How many replica-steps a second does the engine make on one thread, and what limits it?

A replica-step is energy, forces and integrator of one copy for one step. The network is a peer's:
8 hidden layers of 160 SiLU units on the internal coordinates of 10 beads in a chain; flowm's has
60 features, ours 67 (45 distances, 8 angles, sine and cosine of 7 torsions). Weights are random:
speed does not depend on them. Timings are CPU seconds of this process, wall-clock seconds where
threads are compared; candidates take turns (A B C A B C ...), and ratios are taken round by round.

Baselines, in the same run:

- a PyTorch loop: the same network in eager mode, autograd, float32, all copies in one batch, one
  force call a step, as flowm and mlcg do it; in a process of its own, where nothing of ours is
  loaded that would change it (the engine tells glibc to keep memory, which helps the loop too);
- one OpenMM Context a copy, stepped in turn, ten steps at a turn, as samplers do it that know one
  replica a Context (theirs also copy states in and out; this one does not).
"""

import logging
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # before openmm

import numpy as np
import openmm

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from openmm_cgml.engine import lfmiddle_integrator
from openmm_cgml.force import BACKENDS, backend_problem
from openmm_cgml.units import GAS_CONSTANT

SEED = 0
BEADS, WIDTH, DEPTH = 10, 160, 8
MASS, TEMPERATURE, TIMESTEP, FRICTION = 12.0, 300.0, 0.002, 1.0

#: Single-threaded, both: the question is what one core does.
PLATFORMS: dict[str, dict[str, str]] = {"Reference": {}, "CPU": {"Threads": "1"}}

#: Copies -> how many times as fast as the PyTorch loop the fastest backend is.
SPEEDUPS = {1: 15.0, 10: 6.0, 100: 2.2, 1000: 1.4}
THREADS, THREAD_COPIES, THREAD_SPEEDUP = 2, (100, 1000), 1.7
#: The backends that work here, and the one of the parts that compare something else.
NAMES = [name for name in BACKENDS if backend_problem(name) is None]
BEST = "native" if "native" in NAMES else NAMES[0]
GROWTH = (200, 500, 1000, 2000, 5000)
MEMORY = (1000, 2000, 3000, 4000, 5000)
SERIAL_COPIES, SERIAL_TURN = 64, 10
RUNGS, LADDERS, EXCHANGE_STEPS = 8, 12, 100
ISSUE, NATIVE_ISSUE = "engine issue", "native force issue"


def run(quick: bool) -> Outcome:
    """Answer the question part by part."""
    outcome = Outcome([], SEED)
    clock = Clock(rounds=2, seconds=0.02) if quick else Clock(rounds=7, seconds=0.4)
    dataset = chain()
    network = cgml.PMFS["cgnet"](dataset, width=WIDTH, depth=DEPTH, seed=SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = saved(folder / "network.pt", network, dataset)
        whole = saved(folder / "whole.pt", cgml.SumPMF(cgml.fit_prior(dataset), network), dataset)
        goals = {n: goal for n, goal in SPEEDUPS.items() if not quick or n <= 10}
        path = folder / "network.pt"
        platform, step = speeds(outcome, clock, plain, whole, path, network, dataset, goals)
        threads(outcome, clock, plain, dataset, (10,) if quick else THREAD_COPIES)
        serial_contexts(outcome, clock, plain, dataset, 3 if quick else SERIAL_COPIES, platform)
        growth(outcome, clock, plain, dataset, (10, 20) if quick else GROWTH, platform)
        memory(outcome, folder / "network.pt", (10, 20) if quick else MEMORY, platform)
        integrators(outcome, clock, (1, 10) if quick else (100, 1000), platform, step)
        exchanges(outcome, clock, plain, dataset, 1 if quick else LADDERS, platform)
    return outcome


# -- the molecule -------------------------------------------------------------------------------


def chain(frames: int = 2000) -> cgml.CGDataset:
    """Return frames of a stiff chain that does not cross itself: something to start from."""
    generator = np.random.default_rng(SEED)
    direction = np.tile([1.0, 0.0, 0.0], (frames, 1))
    beads = [np.zeros((frames, 3))]
    for _ in range(BEADS - 1):
        direction = direction + 0.8 * generator.standard_normal((frames, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        bond = 0.38 + 0.01 * generator.standard_normal((frames, 1))
        beads.append(beads[-1] + bond * direction)
    positions = np.stack(beads, axis=1)
    first, second = np.triu_indices(BEADS, 2)
    gaps = np.linalg.norm(positions[:, first] - positions[:, second], axis=2)
    names = tuple(f"B{k}" for k in range(BEADS))
    topology = cgml.CGTopology(
        names, names, ("MOL",) * BEADS, tuple(range(BEADS)), ("A",) * BEADS,
        tuple((k, k + 1) for k in range(BEADS - 1)), (MASS,) * BEADS,
    )  # fmt: skip
    return cgml.CGDataset(positions[gaps.min(1) > 0.4], topology, temperature=TEMPERATURE)


def saved(path: Path, pmf: cgml.PMF, dataset: cgml.CGDataset) -> Any:
    """Write a model file and load it again."""
    cgml.save_model(path, pmf, dataset)
    return cgml.load_model(path)


def network_flop(features: int) -> float:
    """Return FLOP of the network's products a replica-step: forward and gradient by the input."""
    weights = features * WIDTH + (DEPTH - 1) * WIDTH**2 + WIDTH
    return 2.0 * 2.0 * weights


# -- what is timed ------------------------------------------------------------------------------


class EngineRun:
    """Our engine: all copies of a simulation in one Context."""

    def __init__(self, simulation: cgml.Langevin) -> None:
        self.simulation, self.engine = simulation, simulation.engine
        self.first = self.engine.positions, self.engine.velocities

    def restart(self) -> None:
        """Go back to the start: without a prior the beads drift apart."""
        self.engine.positions, self.engine.velocities = self.first

    def steps(self, count: int) -> None:
        """Integrate."""
        self.engine.step(count)


class WholeRun(EngineRun):
    """The same through `run`, each turn to a new file, with one frame."""

    def steps(self, count: int) -> None:
        """Run."""
        with tempfile.TemporaryDirectory() as folder:
            self.simulation.run(
                Path(folder) / "run.h5", steps=count, interval=count * TIMESTEP, progress=False
            )


class ThreadedRun(EngineRun):
    """Our engine with several threads."""

    def __init__(self, make: Callable[[], cgml.Langevin], threads: int) -> None:
        self.threads = threads
        with self.using_threads():
            super().__init__(make())

    @contextmanager
    def using_threads(self) -> Iterator[None]:
        """Use them for a while; other candidates have one."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def steps(self, count: int) -> None:
        """Integrate."""
        with self.using_threads():
            self.engine.step(count)


def settings(platform: str, backend: str = BEST) -> dict[str, Any]:
    """Return the settings that all simulations share."""
    return {
        "timestep": TIMESTEP, "friction": FRICTION, "seed": SEED, "backend": backend,
        "platform": platform, "properties": PLATFORMS[platform],
    }  # fmt: skip


def engine_run(
    model: Any, dataset: cgml.CGDataset, copies: int, platform: str, backend: str = BEST
) -> EngineRun:
    """Return copies at one temperature: OpenMM's LangevinMiddleIntegrator."""
    return EngineRun(cgml.Langevin(model, dataset, copies, **settings(platform, backend)))


class TorchLoop:
    """The baseline: LFMiddle in PyTorch, float32, one batch, one autograd call a step."""

    def __init__(self, network: cgml.PMF, dataset: cgml.CGDataset, copies: int) -> None:
        self.network = network.requires_grad_(False)
        self.first = torch.as_tensor(dataset.draw(copies, SEED), dtype=torch.float32)
        self.generator = torch.Generator().manual_seed(SEED)
        self.noise = torch.empty_like(self.first)
        self.decay = math.exp(-FRICTION * TIMESTEP)
        self.sigma = math.sqrt(GAS_CONSTANT * TEMPERATURE / MASS * (1 - self.decay**2))
        self.restart()

    def restart(self) -> None:
        """Go back to the start."""
        self.x, self.v = self.first.clone(), torch.zeros_like(self.first)

    def gradient(self) -> torch.Tensor:
        """Return the gradient of the energy."""
        x = self.x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.network(x).sum(), x)
        self.x = x.detach()
        return gradient

    def steps(self, count: int) -> None:
        """Integrate."""
        for _ in range(count):
            gradient = self.gradient()
            with torch.no_grad():
                self.v.add_(gradient, alpha=-TIMESTEP / MASS)
                self.x.add_(self.v, alpha=0.5 * TIMESTEP)
                self.noise.normal_(generator=self.generator)
                self.v.mul_(self.decay).add_(self.noise, alpha=self.sigma)
                self.x.add_(self.v, alpha=0.5 * TIMESTEP)


class LoopProcess:
    """The baseline in its own process, which waits while it has no turn."""

    def __init__(self, path: Path, copies: int, module: str = "engine") -> None:
        code = f"from benchmarks import {module}; {module}.serve_loop()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(copies)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def restart(self) -> None:
        """Every turn starts anew."""

    def steps(self, count: int) -> None:
        """Integrate."""
        self.seconds(count)

    def seconds(self, count: int) -> tuple[float, float]:
        """Integrate; return CPU seconds of that process and seconds on the clock."""
        print(count, file=self.process.stdin, flush=True)
        cpu, wall = self.process.stdout.readline().split()
        return float(cpu), float(wall)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def serve_loop(dataset: cgml.CGDataset | None = None) -> None:
    """Be the baseline's process: answer each number of steps with the seconds that they took."""
    torch.set_num_threads(1)
    copies = int(sys.argv[2])
    network = cgml.load_model(sys.argv[1]).rebuild()  # without tables
    loop = TorchLoop(network, chain() if dataset is None else dataset, copies)
    for line in sys.stdin:
        loop.restart()
        loop.steps(1)
        print(*_seconds(loop, int(line)), flush=True)


class SerialContexts:
    """The baseline: a Context for each copy, stepped in turn."""

    def __init__(self, model: Any, dataset: cgml.CGDataset, copies: int, platform: str) -> None:
        self.first, self.contexts = dataset.draw(copies, SEED), []
        for k in range(copies):
            integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, TIMESTEP)
            integrator.setRandomNumberSeed(k + 1)
            context = openmm.Context(
                model.create_system(), integrator, openmm.Platform.getPlatform(platform),
                PLATFORMS[platform],
            )  # fmt: skip
            self.contexts.append(context)
        self.restart()
        self.steps(3 * SERIAL_TURN)  # TorchScript optimises in its first calls

    def restart(self) -> None:
        """Go back to the start."""
        for context, positions in zip(self.contexts, self.first, strict=True):
            context.setPositions(positions)
            context.setVelocitiesToTemperature(TEMPERATURE, SEED + 1)

    def steps(self, count: int) -> None:
        """Integrate; in whole turns."""
        for _ in range(-(-count // SERIAL_TURN)):
            for context in self.contexts:
                context.getIntegrator().step(SERIAL_TURN)


class FreeParticles:
    """An integrator with nothing to integrate: its own cost."""

    def __init__(self, integrator: Any, particles: int, platform: str) -> None:
        system = openmm.System()
        for _ in range(particles):
            system.addParticle(MASS)
        self.context = openmm.Context(
            system, integrator, openmm.Platform.getPlatform(platform), PLATFORMS[platform]
        )
        if isinstance(integrator, openmm.CustomIntegrator):
            sigma = math.sqrt(GAS_CONSTANT * TEMPERATURE / MASS)
            noise = integrator.getGlobalVariableByName("b")
            integrator.setPerDofVariableByName("sigma", np.full((particles, 3), noise * sigma))
        self.restart()
        self.steps = integrator.step

    def restart(self) -> None:
        """Go back to the start."""
        self.context.setPositions(np.zeros((self.context.getSystem().getNumParticles(), 3)))
        self.context.setVelocitiesToTemperature(TEMPERATURE, SEED + 1)


class ForceProgram:
    """The engine's force program, called without OpenMM."""

    def __init__(self, model: Any, dataset: cgml.CGDataset, copies: int) -> None:
        self.program = model.file.program(copies=copies, guarded=True)
        for weights in self.program.parameters():  # as TorchForce does
            weights.requires_grad_(False)
        positions = dataset.draw(copies, SEED).reshape(-1, 3)
        self.arguments = torch.as_tensor(positions, dtype=torch.float64), torch.zeros(())
        self.steps(5)  # TorchScript optimises in its first calls

    def restart(self) -> None:
        """Nothing to do: every call is the same."""

    def steps(self, count: int) -> None:
        """Evaluate."""
        for _ in range(count):
            self.program(*self.arguments)


class MatrixProducts:
    """What the machine can do: a float32 product of the network's shape at 1000 copies."""

    flop = 2.0 * 1000 * WIDTH * WIDTH

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.left = torch.randn(1000, WIDTH, generator=generator)
        self.right = torch.randn(WIDTH, WIDTH, generator=generator)
        self.out = torch.empty(1000, WIDTH)

    def restart(self) -> None:
        """Nothing to do."""

    def steps(self, count: int) -> None:
        """Multiply."""
        for _ in range(count):
            torch.mm(self.left, self.right, out=self.out)


# -- how it is timed ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Seconds a step, one value a round.

    Attributes:
        cpu: of all threads of the process.
        wall: on the clock; larger where other processes run.
    """

    cpu: np.ndarray
    wall: np.ndarray

    @property
    def median(self) -> float:
        """Median CPU seconds a step."""
        return float(np.median(self.cpu))

    def record(self) -> dict[str, float]:
        """Return median and spread (half the distance of the quartiles), microseconds a step."""
        low, high = np.percentile(self.cpu, [25, 75])
        wall = float(np.median(self.wall))
        return {
            "cpu_us": 1e6 * self.median,
            "spread_us": 5e5 * float(high - low),
            "wall_us": 1e6 * wall,
        }


@dataclass(frozen=True)
class Clock:
    """Times candidates in turn.

    Attributes:
        rounds: how often each candidate has its turn.
        seconds: how long a turn is, about.
    """

    rounds: int
    seconds: float

    def __call__(
        self, candidates: dict[Any, Any], least: int = 1, alike: bool = False
    ) -> dict[Any, Times]:
        """Return the times of candidates with `restart` and `steps`.

        Args:
            candidates: by name.
            least: number of steps of which a turn is a multiple.
            alike: the same number of steps for all, where a turn has a cost of its own.
        """
        counts = {name: self._count(one, least) for name, one in candidates.items()}
        if alike:
            counts = dict.fromkeys(counts, max(counts.values()))
        seconds: dict[Any, list[tuple[float, float]]] = {name: [] for name in candidates}
        for _ in range(self.rounds):
            for name, one in candidates.items():
                one.restart()
                one.steps(1)
                seconds[name].append(_seconds(one, counts[name]))
        return {
            name: Times(*(np.array(values).T / counts[name])) for name, values in seconds.items()
        }

    def _count(self, candidate: Any, least: int) -> int:
        count = least
        candidate.restart()
        candidate.steps(least)
        while (taken := _seconds(candidate, count)[0]) < self.seconds / 8:
            count *= 2
        return max(least, round(count * self.seconds / taken / least) * least)


def _seconds(candidate: Any, count: int) -> tuple[float, float]:
    if isinstance(candidate, LoopProcess):
        return candidate.seconds(count)
    wall, cpu = time.perf_counter(), time.process_time()
    candidate.steps(count)
    return time.process_time() - cpu, time.perf_counter() - wall


def ratio(slow: Times, fast: Times) -> tuple[float, float]:
    """Return the median over rounds of slow/fast, and its standard error."""
    return centre(slow.cpu / fast.cpu)


def centre(values: np.ndarray) -> tuple[float, float]:
    """Return the median and its standard error (1.25 times the mean's, as for a Gaussian)."""
    return float(np.median(values)), float(1.25 * values.std(ddof=1) / len(values) ** 0.5)


# -- the parts ----------------------------------------------------------------------------------


def speeds(
    outcome: Outcome,
    clock: Clock,
    plain: Any,
    whole: Any,
    path: Path,
    network: cgml.PMF,
    dataset: cgml.CGDataset,
    goals: dict[int, float],
) -> tuple[str, dict[int, float]]:
    """Engine against PyTorch loop; return the faster platform and the seconds of a step.

    The platform is that of the largest number of copies, the seconds are by number of copies.
    """
    products, best, step = MatrixProducts(), "", {}
    flop = network_flop(network.feature_mean.numel())
    table = outcome.details["microseconds a step"] = {}
    for copies, goal in goals.items():
        engines = {
            f"{backend} on {one}": engine_run(plain, dataset, copies, one, backend)
            for backend in NAMES
            for one in (PLATFORMS if backend == BEST else ["Reference"])
        }
        candidates = {
            **engines,
            "PyTorch loop": LoopProcess(path, copies),
            f"{BEST} with priors": engine_run(whole, dataset, copies, "Reference"),
            "TorchScript program alone": ForceProgram(plain, dataset, copies),
            "product of 1000 x 160 by 160 x 160": products,
        }
        times = clock(candidates)
        candidates["PyTorch loop"].close()
        table[str(copies)] = {name: one.record() for name, one in times.items()}
        best = min(PLATFORMS, key=lambda one: times[f"{BEST} on {one}"].median)
        engine, loop = times[f"{BEST} on {best}"], times["PyTorch loop"]
        rates = products.flop / times["product of 1000 x 160 by 160 x 160"].cpu
        step[copies] = engine.median
        outcome.targets += [
            Target(
                f"speed over the PyTorch loop, copies={copies}", "", goal, *ratio(loop, engine),
                at_most=False, source=NATIVE_ISSUE,
            ),
            *(
                Target(
                    f"{name}, copies={copies}", "replica-steps/s", None,
                    *centre(copies / times[name].cpu), at_most=False,
                )
                for name in (*engines, f"{BEST} with priors", "PyTorch loop")
            ),
            Target(
                f"fraction of the measured matrix-product rate, copies={copies}", "", None,
                *centre(flop * copies / engine.cpu / rates), at_most=False,
            ),
        ]  # fmt: skip
        outcome.details["matrix-product rate, GFLOP/s"] = float(np.median(rates)) / 1e9
    outcome.details["network FLOP a replica-step"] = flop
    return best, step


def threads(
    outcome: Outcome, clock: Clock, model: Any, dataset: cgml.CGDataset, counts: tuple[int, ...]
) -> None:
    """Does a second thread pay? On the clock: CPU seconds cannot tell."""
    for copies in counts:

        def make(copies: int = copies) -> cgml.Langevin:
            return cgml.Langevin(model, dataset, copies, **settings("Reference"))

        times = clock({n: ThreadedRun(make, n) for n in (1, THREADS)})
        outcome.targets.append(
            Target(
                f"speed of {THREADS} threads over one, on the clock, copies={copies}", "",
                THREAD_SPEEDUP, *centre(times[1].wall / times[THREADS].wall), at_most=False,
                source=NATIVE_ISSUE,
            )
        )  # fmt: skip


def serial_contexts(
    outcome: Outcome,
    clock: Clock,
    model: Any,
    dataset: cgml.CGDataset,
    copies: int,
    platform: str,
) -> None:
    """Against one Context a copy."""
    times = clock(
        {
            "engine": engine_run(model, dataset, copies, platform),
            "serial": SerialContexts(model, dataset, copies, platform),
        },
        least=SERIAL_TURN,
    )
    outcome.targets += [
        Target(
            f"speed over one Context a copy, copies={copies}", "", 20.0,
            *ratio(times["serial"], times["engine"]), at_most=False, source=ISSUE,
        ),
        Target(
            f"one Context a copy, copies={copies}", "replica-steps/s", None,
            *centre(copies / times["serial"].cpu), at_most=False,
        ),
    ]  # fmt: skip


def growth(
    outcome: Outcome,
    clock: Clock,
    model: Any,
    dataset: cgml.CGDataset,
    counts: tuple[int, ...],
    platform: str,
) -> None:
    """Does a replica-step cost the same, however many copies there are?"""
    times = clock({n: engine_run(model, dataset, n, platform) for n in counts})
    each = {n: one.median / n for n, one in times.items()}
    outcome.details["microseconds a replica-step"] = {str(n): 1e6 * t for n, t in each.items()}
    slow, fast = max(each, key=lambda n: each[n]), min(each, key=lambda n: each[n])
    value, error = ratio(times[slow], times[fast])
    outcome.targets.append(
        Target(
            f"time per replica-step, slowest ({slow}) over fastest ({fast}) of {counts[0]} to "
            f"{counts[-1]} copies", "", 1.2, value * fast / slow, error * fast / slow,
            source=ISSUE,
        )
    )  # fmt: skip


def memory(outcome: Outcome, path: Path, counts: tuple[int, ...], platform: str) -> None:
    """Is memory linear in the copies? The peak of a process that makes a few steps."""
    code = "from benchmarks import engine; engine.print_peak_memory()"
    peaks = []
    for copies in counts:
        command = [sys.executable, "-c", code, str(path), str(copies), platform]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peaks.append(float(done.stdout.split()[-1]))
    rise = peaks[-1] - peaks[0]
    line = np.interp(counts, [counts[0], counts[-1]], [peaks[0], peaks[-1]])
    outcome.details["peak memory, MiB"] = {
        str(n): peak / 2**20 for n, peak in zip(counts, peaks, strict=True)
    }
    between = f"{counts[0]} to {counts[-1]} copies"
    outcome.targets += [
        Target(f"memory a copy, {between}", "kB", None, rise / (counts[-1] - counts[0]) / 1e3),
        Target(
            f"memory: largest distance from a straight line, fraction of the rise, {between}", "",
            0.1, float(np.abs(peaks - line).max() / max(rise, 1.0)),
            source=f"{ISSUE}: linear; 10 % is ours",
        ),
    ]  # fmt: skip


def print_peak_memory() -> None:
    """Step some copies and print the peak of resident memory since they were made, bytes."""
    path, copies, platform = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    status = Path("/proc/self/status")
    if status.exists():
        Path("/proc/self/clear_refs").write_text("5")  # importing has a peak of its own
    engine_run(cgml.load_model(path), chain(), copies, platform).steps(10)
    if status.exists():
        lines = status.read_text().splitlines()
        print(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
    else:  # macOS counts bytes
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def integrators(
    outcome: Outcome,
    clock: Clock,
    counts: tuple[int, ...],
    platform: str,
    step: dict[int, float],
) -> None:
    """What does a temperature for every copy cost, against OpenMM's own integrator?

    The alternative would keep LangevinMiddle at one temperature and scale each copy's energy.
    """
    for copies in counts:
        particles = copies * BEADS
        one = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, TIMESTEP)
        own = lfmiddle_integrator(FRICTION, TIMESTEP, SEED + 1)
        times = clock(
            {
                "one temperature": FreeParticles(one, particles, platform),
                "temperature a copy": FreeParticles(own, particles, platform),
            }
        )
        extra = times["temperature a copy"].cpu - times["one temperature"].cpu
        outcome.targets += [
            Target(f"{name}, particles={particles} ({platform})", "ms/step", None, *centre(values))
            for name, values in (
                ("LangevinMiddleIntegrator", 1e3 * times["one temperature"].cpu),
                ("lfmiddle_integrator", 1e3 * times["temperature a copy"].cpu),
            )
        ]
        if copies in step:
            outcome.targets.append(
                Target(
                    f"extra cost of a temperature a copy, fraction of a step, copies={copies}",
                    "", None, *centre(extra / step[copies]),
                )
            )  # fmt: skip


def exchanges(
    outcome: Outcome,
    clock: Clock,
    model: Any,
    dataset: cgml.CGDataset,
    ladders: int,
    platform: str,
) -> None:
    """What does an exchange cost? Runs that exchange after every step, against runs that do not.

    Everything that an exchange adds to a run counts: energies, the test for sick copies, the
    state kept for going back, new temperatures, the record of rungs.
    """
    logging.getLogger("openmm_cgml").setLevel(logging.ERROR)  # of temperatures: we know
    temperatures = np.geomspace(TEMPERATURE, 1.4 * TEMPERATURE, RUNGS)
    copies = ladders * RUNGS
    often = cgml.ReplicaExchange(
        model, dataset, temperatures, ladders, exchange_interval=TIMESTEP, **settings(platform)
    )
    never = cgml.Langevin(
        model,
        dataset,
        copies,
        temperature=np.tile(temperatures, ladders),
        **settings(platform),
    )
    times = clock({"often": WholeRun(often), "never": WholeRun(never)}, alike=True)
    step = clock({"step": EngineRun(never)})["step"].median
    cost = times["often"].cpu - times["never"].cpu
    share = cost / (cost + EXCHANGE_STEPS * step)
    what = f"{RUNGS} rungs x {ladders} ladders"
    outcome.targets += [
        Target(f"one exchange, a copy, {what}", "us", None, *centre(1e6 * cost / copies)),
        Target(
            f"exchange every {EXCHANGE_STEPS} steps, share of the run, {what}", "", None,
            *centre(share),
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main("engine", __doc__, run)
