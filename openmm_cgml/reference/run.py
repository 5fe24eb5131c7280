"""All-atom runs that write a dataset of beads: `run_reference`.

Unbiased dynamics, temperature replica exchange, well-tempered metadynamics and umbrella windows.
Forces are those of the physical potential: the bias has a force group of its own, and at every
start of the program the others are compared with a System without the bias.
"""

import hashlib
import logging
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openmm

from ..dataset import CGDataset
from ..errors import InputError, first_line
from ..files import require_writable
from ..long_runs import processor_name, require_same_run, signals
from ..mapping import FORCE_MAPS
from ..progress import ProgressBar
from ..reweight import kish_size
from ..units import strip
from ..version import __version__
from .bias import Metadynamics, Umbrella, verify_unbiased
from .machine import Machine, Settings, Stopped, choose_platform, guarded, make_context
from .methods import METHODS, ExchangeRun, MetadynamicsRun, Method, UmbrellaRun
from .recorder import (
    BeadMapper,
    DatasetRecorder,
    in_progress,
    read_checkpoint,
    read_segments,
    reopen,
)
from .setup import ReferenceSystem, box_array, build_system, warn_of_timestep
from .variables import (
    CollectiveVariable,
    parse_variable,
    require_function_of_beads,
    require_one_molecule,
)

logger = logging.getLogger(__name__)

_ATMOSPHERE = 1.01325  # bar
_CALIBRATION_PS = 0.1  # between frames that the force map is fitted to


@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """What a call of `run_reference` did.

    Attributes:
        output: the dataset file.
        finished: whether the run came to its end; if not, the same call goes on.
        frames: recorded so far.
        total: frames of the whole run.
        ns_per_day: speed of this call, simulated time of all copies; nan if nothing was left.
        effective_samples: how many frames of equal weight are worth as much (Kish); None if the
            run is not finished.
        info: settings and statistics, JSON-able.
    """

    output: Path
    finished: bool
    frames: int
    total: int
    ns_per_day: float
    effective_samples: float | None
    info: dict[str, Any] = field(default_factory=dict)

    def dataset(self) -> CGDataset:
        """Read the frames so far."""
        return read_segments(self.output)


def run_reference(
    source: Any,
    output: str | Path,
    *,
    ns: Any,
    method: str = "unbiased",
    mapping: Any = "backbone",
    force_map: str | None = "rotation",
    temperature: Any = 300.0,
    variables: Sequence[str | CollectiveVariable] = (),
    interval: Any = 1.0,
    timestep: Any = None,
    friction: Any = 1.0,
    seed: int = 0,
    bias_factor: float = 6.0,
    height: Any = 1.0,
    widths: Sequence[float] = (0.35,),
    deposit: Any = 1.0,
    weights: str = "ct",
    discard: Any = 0.0,
    temperatures: Any = None,
    exchange: Any = 1.0,
    all_rungs: bool = False,
    centres: Any = None,
    springs: Sequence[float] = (100.0,),
    equilibrate: Any = 50.0,
    npt: Any = None,
    calibrate: int = 1000,
    keep_box: bool = False,
    platform: str | None = None,
    threads: int = 1,
    properties: dict[str, str] | None = None,
    seconds: float | None = None,
    checkpoint_seconds: float = 30.0,
    progress: bool | None = None,
    **setup: Any,
) -> ReferenceRun:
    """Run all-atom dynamics, and write a dataset of beads as it goes.

    The run is minimised and equilibrated, fits its force map to frames of the equilibration, and
    then records a frame every `interval`. One that was stopped, by Ctrl-C, SIGTERM, a limit or
    ``kill -9``, goes on when the same call is made again, without a lost or repeated frame; on
    the Reference platform its frames are the same to the bit as if it had never stopped. A
    finished one is made longer by a larger `ns` (not umbrella windows).

    Args:
        source: a `ReferenceSystem`, or a file for `build_system`.
        output: dataset file (HDF5). Until the run ends its frames are in segments beside it, see
            `read_segments`.
        ns: length, ns; of each window, and of each rung.
        method: one of `METHODS`.
        mapping: name in `MAPPINGS`, a function of an mdtraj.Topology, or a `Mapping`; of the
            molecules without water and ions.
        force_map: name in `FORCE_MAPS`; None: record no forces, and allow biases along atoms that
            the map does not keep.
        temperature: K.
        variables: collective variables, as text (`parse_variable`) or objects. Metadynamics and
            umbrella windows bias along them; the other methods only record them.
        interval: between frames, ps.
        timestep: ps; None: 0.002 if bonds to hydrogen are constrained, else 0.001.
        friction: 1/ps.
        seed: of velocities, noise and exchanges.
        bias_factor, height, widths, deposit: of metadynamics: gamma; the first hills' height,
            kJ/mol; widths, nm or radians, one or one a variable; time between hills, ps.
        weights: ``"ct"``: exp(beta (V(s, t) - c(t))) with the bias at each frame's time;
            ``"final"``: exp(beta V(s)) with the last bias.
        discard: ps at the beginning of a metadynamics run whose frames get weight zero, while
            the bias fills the first basins. They stay in the file: their forces are right.
        temperatures: rungs of a replica exchange, K, the first of them `temperature`.
        exchange: time between exchanges, ps.
        all_rungs: keep the frames of all rungs, with MBAR weights at `temperature`, which they
            then need; else those at `temperature` alone.
        centres: of umbrella windows, (windows,) or (windows, variables), nm or radians.
        springs: their force constants, one or one a variable: k (1 - cos(s - s0)) for torsions,
            k (s - s0)^2 / 2 for others; kJ/mol, kJ/mol/nm^2.
        equilibrate: ps before the first frame, before each window's, and at each rung.
        npt: ps at 1 atm before that, in a periodic box, which then has the mean volume of the
            second half; None: 100 if the solvent was added here, else 0.
        calibrate: frames that the force map is fitted to, 0.1 ps apart.
        keep_box: record box vectors; else the molecules are isolated: whole and centred.
        platform: name; None: CUDA, HIP or OpenCL if there is one, else the faster one of
            Reference and CPU in a short trial.
        threads: of the CPU platform.
        properties: further platform properties.
        seconds: wall-clock limit of the production, for queues; it then stops and can go on.
        checkpoint_seconds: how often a segment is closed: at most so much work is lost.
        progress: show a progress bar; None: if the output is a terminal.
        setup: arguments of `build_system`, if `source` is a file.

    Raises:
        InputError: if files, settings or an existing output do not fit.
        CGMLError: if the dynamics do not stay finite.
    """
    output = require_writable(output)
    found = read_checkpoint(output)
    kelvin = strip(temperature, "kelvin", what="temperature", positive=True)
    if force_map is not None:
        FORCE_MAPS[force_map]  # a name that is not there is told before anything is run
    if method not in METHODS:
        raise InputError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    if isinstance(source, ReferenceSystem):
        if setup:
            raise InputError(f"{', '.join(setup)} is for files; the System is made already")
        system = source
    else:
        system = build_system(source, **setup)
    step = system.timestep
    if timestep is not None:
        step = strip(timestep, "picosecond", what="timestep", positive=True)
        warn_of_timestep(step, system.timestep, system.description.get("hydrogen_mass_Da"))

    def to_steps(value: Any, what: str, least: float = 0) -> int:
        return _steps(value, what, step, least)

    mapper = BeadMapper(
        system.mdtraj, mapping, system.solute, system.constraints, keep_box=keep_box
    )
    if keep_box and not system.periodic:
        raise InputError("keep_box needs a periodic box; the System has none")
    chosen = [
        v if isinstance(v, CollectiveVariable) else parse_variable(v, system.mdtraj)
        for v in variables
    ]
    if system.periodic:
        require_one_molecule(chosen, system.bonds, system.mdtraj)
    stride = to_steps(interval, "interval", 1)
    plan: Method
    if method == "metadynamics":
        plan = MetadynamicsRun(
            Metadynamics(chosen, kelvin, height=height, widths=widths, bias_factor=bias_factor),
            to_steps(deposit, "deposit", 1),
            weights,
            to_steps(discard, "discard") // stride,
        )
    elif strip(discard, "picosecond", what="discard"):
        raise InputError(
            f"discard is for metadynamics; {method} has no transient, use equilibrate"
        )
    elif method == "umbrella":
        if centres is None:
            raise InputError("umbrella windows need centres; give e.g. centres=-180:180:24deg")
        plan = UmbrellaRun(Umbrella(chosen, centres, springs), kelvin)
    elif method == "remd":
        plan = ExchangeRun(temperatures, kelvin, to_steps(exchange, "exchange", 1), all_rungs)
    else:
        plan = Method()
    if temperatures is not None and method != "remd":
        raise InputError(f"temperatures are for method 'remd', not {method!r}; leave them out")
    if centres is not None and method != "umbrella":
        raise InputError(f"centres are for method 'umbrella', not {method!r}; leave them out")
    if plan.bias is not None and force_map is not None:
        require_function_of_beads(
            chosen,
            mapper.mapping,
            "record no forces (force_map=None, --no-forces)",
            mapper.atoms,
            system.mdtraj,
        )
    plan.variables = tuple(chosen)

    length = strip(ns, "nanosecond", what="ns", positive=True)
    leg_frames = round(length * 1000 / (stride * step))
    if leg_frames < 1:
        raise InputError(
            f"{length:g} ns are shorter than one interval of {stride * step:g} ps; run longer or "
            "make the interval shorter"
        )
    npt_ps = (100.0 if system.solvated else 0.0) if npt is None else npt
    if not system.periodic and strip(npt_ps, "picosecond", what="npt"):
        raise InputError("npt needs a periodic box; the System has none")
    if int(calibrate) < 1:
        raise InputError(f"calibrate is {calibrate}; give at least 1 frame")
    simulation = _Simulation(
        system,
        mapper,
        plan,
        Settings(
            temperature=kelvin,
            timestep=step,
            friction=strip(friction, "per_picosecond", what="friction", positive=True),
            seed=int(seed),
            stride=stride,
            leg_frames=leg_frames,
            ns=leg_frames * stride * step / 1000,
            method=method,
            force_map=force_map,
            equilibrate=to_steps(equilibrate, "equilibrate"),
            npt=to_steps(npt_ps, "npt"),
            calibrate=int(calibrate),
            keep_box=keep_box,
        ),
        choose_platform(platform, threads, properties, system, found),
    )
    return simulation.run(output, found, seconds, checkpoint_seconds, progress)


def _steps(value: Any, what: str, timestep: float, least: float) -> int:
    """Return a time in steps.

    Raises:
        InputError: if it is negative or not a whole number of them: frames would drift.
    """
    time_ps = strip(value, "picosecond", what=what)
    steps = round(time_ps / timestep)
    if time_ps < 0 or steps < least:
        raise InputError(f"{what} is {time_ps:g} ps; give {timestep * least:g} ps or more")
    if abs(steps * timestep - time_ps) > 1e-6 * max(time_ps, timestep):
        raise InputError(
            f"{what} is {time_ps:g} ps, not a whole number of steps of {timestep:g} ps; give "
            f"{steps * timestep:g}"
        )
    return steps


# ---------------------------------------------------------------- the run


class _Simulation:
    """One call of `run_reference`."""

    def __init__(
        self,
        system: ReferenceSystem,
        mapper: BeadMapper,
        plan: Method,
        settings: Settings,
        platform: tuple[Any, dict[str, str]],
    ) -> None:
        self.system, self.mapper, self.plan = system, mapper, plan
        self.settings, self.platform = settings, platform
        self.leg, self.step = 0, 0
        self.total = plan.legs * settings.leg_frames * plan.per_record
        self.ns_per_day = float("nan")

    def run(
        self,
        output: Path,
        found: Any,
        seconds: float | None,
        checkpoint_seconds: float,
        progress: bool | None,
    ) -> ReferenceRun:
        described = self._described()
        if found is not None:
            self._require_same_run(output, found.settings, described)
            if not in_progress(output):
                if found.frames >= self.total:
                    logger.info("%s is complete: %d frames", output, found.frames)
                    return self._result(output, found.frames, True)
                reopen(output)
        recorder = DatasetRecorder(
            output,
            self.mapper,
            self.settings.temperature,
            variable_names=[v.name for v in self.plan.variables],
        )
        recorder.sources, recorder.bias = self.system.sources, self.plan.text()
        recorder.open()
        try:
            found = read_checkpoint(output) if in_progress(output) else None
            return self._run(
                recorder, found, described, seconds, checkpoint_seconds, ProgressBar(progress)
            )
        finally:
            recorder.close()

    def _require_same_run(self, output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Refuse to go on with another run; a longer one of those that can grow is the same."""
        may_change, shorter = {"processor"}, []
        if self.plan.can_grow:
            may_change.add("ns")
            if now["ns"] < before["ns"] - 1e-9:
                shorter = [f"ns was {before['ns']:g}, now {now['ns']:g}: it can only grow"]
        require_same_run(output, before, now, may_change, shorter)

    def _run(
        self,
        recorder: DatasetRecorder,
        found: Any,
        described: dict[str, Any],
        seconds: float | None,
        checkpoint_seconds: float,
        bar: ProgressBar,
    ) -> ReferenceRun:
        with signals() as caught:
            with bar:
                try:
                    machine, box = self._start(recorder, found, described, caught, bar)
                except Stopped:
                    logger.warning(
                        "%s before the first frame; start the same run again: it begins anew",
                        caught[0],
                    )
                    return self._result(recorder.output, 0, False)
                recorder.provenance = self._provenance(described, box)
                why = self._produce(
                    machine, recorder, described, box, seconds, checkpoint_seconds, caught, bar
                )
            if machine.seconds:
                self.ns_per_day = machine.steps * self.settings.timestep / machine.seconds * 86.4
            if why is not None:
                logger.warning(
                    "%s after %d of %d frames; they are in %s: start the same run again to go on",
                    why,
                    recorder.frames,
                    self.total,
                    recorder.folder,
                )
                return self._result(recorder.output, recorder.frames, False)
        recorder.provenance = {**recorder.provenance, "statistics": self.plan.statistics()}
        recorder.finish(self.plan.weights(recorder))
        return self._result(recorder.output, recorder.frames, True)

    # -- beginning ------------------------------------------------------------------------------

    def _start(
        self,
        recorder: DatasetRecorder,
        found: Any,
        described: dict[str, Any],
        caught: list[str],
        bar: ProgressBar,
    ) -> tuple[Machine, np.ndarray | None]:
        """Return the Context at the first frame, or where the run stopped."""
        if found is not None:
            box = found.arrays.get("box")
            machine = Machine(
                self.system, self.plan.bias, self.settings, self.platform, box, caught
            )
            recorder.restore(found)
            if self.settings.force_map is not None:
                self._fit(recorder, *self._calibration(recorder))
            self.plan.load(found.arrays)
            self.leg, self.step = found.state["leg"], found.state["step"]
            self._verify(machine, found.arrays.get("positions_at_start"))
            self._take(machine, found.blob)
            logger.info(
                "%s goes on after %d of %d frames", recorder.output, found.frames, self.total
            )
            return machine, box
        positions = self.system.positions
        box = self.system.box if self.system.periodic else None
        if self.settings.npt and box is not None:
            bar.begin("NPT equilibration", self.settings.npt)
            positions, box = self._equilibrate_box(positions, caught, bar)
        machine = Machine(self.system, self.plan.bias, self.settings, self.platform, box, caught)
        frames = self._equilibrate(machine, positions, bar)
        recorder.frames = 0
        if self.settings.force_map is not None:
            if frames is not None:
                recorder.save_calibration(*frames)
            self._fit(recorder, *self._calibration(recorder))
        self.plan.prepare(machine)
        blob = machine.context.createCheckpoint()
        self._verify(machine, None)
        self._take(machine, blob)
        self._flush(recorder, machine, described, box)
        return machine, box

    def _calibration(self, recorder: DatasetRecorder) -> tuple[Any, Any]:
        if self._uses_frames():
            return recorder.load_calibration()
        return None, None

    def _uses_frames(self) -> bool:
        name = self.settings.force_map
        if name is None:
            return False
        return bool(FORCE_MAPS[name](self.mapper.mapping, self.mapper.constraints).uses_frames)

    def _fit(self, recorder: DatasetRecorder, forces: Any, positions: Any) -> None:
        assert self.settings.force_map is not None
        recorder.force_map = self.mapper.fit_force_map(self.settings.force_map, forces, positions)

    def _take(self, machine: Machine, blob: bytes) -> None:
        """Go to a state, random stream included, whatever was done to the Context before."""
        self.plan.restore(machine)
        try:
            machine.context.loadCheckpoint(blob)
        except openmm.OpenMMException as error:
            raise InputError(
                f"OpenMM cannot load the checkpoint ({first_line(error)}); go on with the same "
                "OpenMM, platform and device type"
            ) from error
        self.plan.prepare(machine)
        machine.start_clock()

    def _verify(self, machine: Machine, positions: Any) -> None:
        """Compare the recorded kind of forces with those of the System without the bias."""
        if positions is not None:
            machine.context.setPositions(positions)
        biased = self.plan.bias is not None
        if biased:
            self.plan.bias.disturb(machine.context)
        verify_unbiased(
            machine.context, machine.groups, machine.free_system, self.system.label, biased=biased
        )

    def _equilibrate_box(
        self, positions: np.ndarray, caught: list[str], bar: ProgressBar
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run at constant pressure; return positions in the box of mean volume."""
        settings = self.settings
        system = deepcopy(self.system.system)
        barostat = openmm.MonteCarloBarostat(_ATMOSPHERE, settings.temperature)
        barostat.setRandomNumberSeed(settings.seed + 2)
        system.addForce(barostat)
        integrator = openmm.LangevinMiddleIntegrator(
            settings.temperature, settings.friction, settings.timestep
        )
        integrator.setRandomNumberSeed(settings.seed + 3)
        context = make_context(system, integrator, *self.platform)
        context.setPositions(positions)
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, 500)
        context.setVelocitiesToTemperature(settings.temperature, settings.seed + 4)
        volumes, done, chunk = [], 0, max(1, min(50, settings.npt // 20))
        while done < settings.npt:
            if caught:
                raise Stopped
            count = min(chunk, settings.npt - done)
            guarded(integrator.step, count)
            done += count
            bar.update(done)
            if done > settings.npt // 2:
                state = context.getState()
                volumes.append(np.linalg.det(box_array(state.getPeriodicBoxVectors())))
        state = context.getState(getPositions=True)
        last = box_array(state.getPeriodicBoxVectors())
        factor = float((np.mean(volumes) / np.linalg.det(last)) ** (1 / 3))
        points = np.array(state.getPositions(asNumpy=True)._value)
        for members in context.getMolecules():  # as the barostat does: they keep their shape
            molecule = list(members)
            points[molecule] += (factor - 1) * points[molecule].mean(axis=0)
        return points, last * factor

    def _equilibrate(
        self, machine: Machine, positions: np.ndarray, bar: ProgressBar
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Minimise, equilibrate without bias, and gather frames for the force map."""
        settings = self.settings
        uses_frames = self._uses_frames()
        every = max(1, round(_CALIBRATION_PS / settings.timestep))
        count = settings.calibrate if uses_frames else 0
        bar.begin("equilibrating", settings.equilibrate + count * every)
        if isinstance(self.plan, UmbrellaRun):
            self.plan.bias.scale = 0.0
            self.plan.prepare(machine)
        machine.context.setPositions(positions)
        # After NPT there is little to relax, and much solvent to relax it in.
        openmm.LocalEnergyMinimizer.minimize(machine.context, 10.0, 50 if settings.npt else 1000)
        machine.context.setVelocitiesToTemperature(settings.temperature, settings.seed + 5)
        for done in range(0, settings.equilibrate, 500):
            machine.step(min(500, settings.equilibrate - done))
            bar.update(done)
        atoms = self.mapper.atoms
        forces = np.empty((count, len(atoms), 3), np.float32)
        points = np.empty_like(forces)
        for k in range(count):
            machine.step(every)
            frame = machine.frame()
            box = None if frame["box"] is None else frame["box"][None]
            forces[k] = frame["forces"][atoms]
            points[k] = self.mapper.whole(frame["positions"][None, atoms], box)[0]
            bar.update(settings.equilibrate + (k + 1) * every)
        machine.frame()  # says if it did not stay finite
        return (forces, points) if count else None

    # -- production -----------------------------------------------------------------------------

    def _produce(
        self,
        machine: Machine,
        recorder: DatasetRecorder,
        described: dict[str, Any],
        box: np.ndarray | None,
        seconds: float | None,
        checkpoint_seconds: float,
        caught: list[str],
        bar: ProgressBar,
    ) -> str | None:
        """Step and record to the end; return why not, or None."""
        plan, stride = self.plan, self.settings.stride
        end = self.settings.leg_frames * stride
        started = flushed = time.monotonic()
        bar.begin(plan.name, self.total)
        machine.may_stop = False
        begun = self.step > 0
        while self.leg < plan.legs:
            if not begun:
                if recorder.pending:
                    self._flush(recorder, machine, described, box)
                machine.may_stop = True
                try:
                    plan.begin(machine, self.leg)
                except Stopped:  # the equilibration begins again when the run goes on
                    return f"stopped by {caught[0]}"
                machine.may_stop, begun = False, True
            if self.step >= end:
                self.leg, self.step, begun = self.leg + 1, 0, self.leg + 1 >= plan.legs
                continue
            waits = [n - self.step % n for n in (stride, plan.stride) if n]
            plan.advance(machine, min(waits))
            self.step += min(waits)
            if self.step % stride == 0:
                plan.record(machine, recorder, self.leg)
            if plan.stride and self.step % plan.stride == 0:
                plan.event(machine)
            now = time.monotonic()
            speed = machine.steps * self.settings.timestep / max(machine.seconds, 1e-9) * 86.4
            bar.update(recorder.frames, f"{speed:,.0f} ns/day")
            over = seconds is not None and now - started > seconds
            last = self.leg == plan.legs - 1 and self.step >= end
            if (caught or over) and not last:
                self._flush(recorder, machine, described, box)
                return f"stopped by {caught[0]}" if caught else "stopped at its time limit"
            if now - flushed > checkpoint_seconds:
                self._flush(recorder, machine, described, box)
                flushed = time.monotonic()
        self.leg, self.step = plan.legs - 1, end
        self._flush(recorder, machine, described, box)
        return None

    def _flush(
        self,
        recorder: DatasetRecorder,
        machine: Machine,
        described: dict[str, Any],
        box: np.ndarray | None,
    ) -> None:
        arrays = self.plan.arrays()
        if box is not None:
            arrays["box"] = box
        # For the comparison of forces when it goes on: any place does, before the state is loaded.
        arrays["positions_at_start"] = machine.whole_positions().copy()
        recorder.flush(
            described,
            {"leg": self.leg, "step": self.step},
            arrays=arrays,
            blob=machine.context.createCheckpoint(),
        )

    # -- provenance -----------------------------------------------------------------------------

    def _described(self) -> dict[str, Any]:
        """Return all settings that must be the same when the run goes on."""
        settings, (platform, properties) = self.settings, self.platform
        digest = hashlib.sha256(openmm.XmlSerializer.serialize(self.system.system).encode())
        digest.update(
            repr(list(map(self.system.label, range(len(self.system.positions))))).encode()
        )
        mapping = self.mapper.mapping
        return {
            "method": settings.method,
            "ns": settings.ns,
            "temperature_K": settings.temperature,
            "timestep_ps": settings.timestep,
            "friction_per_ps": settings.friction,
            "steps_per_frame": settings.stride,
            "equilibration_steps": settings.equilibrate,
            "npt_steps": settings.npt,
            "seed": settings.seed,
            "mapping": mapping.name,
            "mapping_sha256": self.mapper.digest(),
            "force_map": settings.force_map,
            "calibration_frames": settings.calibrate if self._uses_frames() else 0,
            "keep_box": settings.keep_box,
            "variables": [v.name for v in self.plan.variables],
            **{f"{self.plan.name}_{k}": v for k, v in self.plan.describe().items()},
            "system": self.system.description,
            "system_sha256": digest.hexdigest(),
            "platform": platform.getName(),
            "platform_properties": properties,
            "versions": {"openmm": openmm.version.version, "openmm_cgml": __version__},
            "processor": processor_name(),
        }

    def _provenance(self, described: dict[str, Any], box: np.ndarray | None) -> dict[str, Any]:
        system = self.system
        return {
            **described,
            "atoms": system.topology.getNumAtoms(),
            "solute_atoms": len(self.mapper.atoms),
            "constraints": len(system.constraints),
            "box_nm": None if box is None else box.tolist(),
        }

    def _result(self, output: Path, frames: int, finished: bool) -> ReferenceRun:
        samples = None
        if finished:
            import h5py

            samples = float(frames)
            with h5py.File(output) as handle:
                if "frames/weights" in handle:
                    weights = np.asarray(handle["frames/weights"])
                    with np.errstate(divide="ignore"):
                        samples = kish_size(np.log(weights))
        info = {**self._described(), "statistics": self.plan.statistics()}
        return ReferenceRun(output, finished, frames, self.total, self.ns_per_day, samples, info)
