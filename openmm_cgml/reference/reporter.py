"""`DatasetReporter`: a dataset of beads from an all-atom OpenMM script of the user's own."""

import logging
import time
import warnings
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import openmm

from ..errors import InputError
from ..files import require_writable, segments_folder
from ..mapping import FORCE_MAPS
from ..mapping.constraints import constraints_from_system
from ..topology import atom_label, read_topology
from ..units import strip, thermal_energy
from ..version import __version__
from .bias import log_sum, verify_unbiased
from .recorder import BeadMapper, DatasetRecorder, in_progress, read_checkpoint
from .setup import box_array, solute_atoms
from .variables import (
    CollectiveVariable,
    parse_variable,
    require_function_of_beads,
    require_kept_atoms,
    variable_values,
)

logger = logging.getLogger(__name__)


class DatasetReporter:
    """Map a running all-atom simulation to a dataset of beads, with unbiased forces.

    Append it to the `reporters` of an openmm.app.Simulation. Frames are in closed segments beside
    `file` until `close` joins them; as a context manager it closes itself::

        with DatasetReporter("data.h5", 500, "backbone", 300, metadynamics=meta) as reporter:
            simulation.reporters.append(reporter)
            meta.step(simulation, 2_500_000)

    Made again in a script that was restarted, it goes on: frames later than the simulation's
    current step, which will come again, are removed.

    Args:
        file: dataset to write.
        interval: steps between frames.
        mapping: name in `MAPPINGS`, a function of an mdtraj.Topology, or a `Mapping`; of the
            molecules without water and ions.
        temperature: K, of the thermostat.
        bias_forces: the openmm.Force objects of a bias, each in a force group without others.
        bias_groups: or their force groups.
        metadynamics: an openmm.app.Metadynamics, whose force is then the bias; its variables,
            bias energies and weights exp(beta (V - c(t))) are recorded.
        unbiased_system: the System before the bias was added, for a stricter check of forces.
        force_map: name in `FORCE_MAPS`; None: no forces.
        variables: collective variables to record, as text or objects. With
            `metadynamics`, its own values are recorded instead. Those that are given are checked
            to be functions of the beads if there is a bias.
        calibrate: frames that the force map is fitted to, if it needs any. They stay in memory
            until then and are recorded all the same.
        keep_box: record box vectors; else the molecules are isolated: whole and centred.
        bias: what the run is biased by, in words; None: made from the above.
        checkpoint_seconds: how often a segment is closed.

    Raises:
        InputError: if the file cannot be written or settings do not fit; at the first step if
            the mapping or the bias does not fit the simulation; at the first frame if the
            forces are not those of the System without the bias.
    """

    def __init__(
        self,
        file: str | Path,
        interval: int,
        mapping: Any,
        temperature: Any,
        *,
        bias_forces: Sequence[Any] = (),
        bias_groups: Iterable[int] = (),
        metadynamics: Any = None,
        unbiased_system: Any = None,
        force_map: str | None = "basic",
        variables: Sequence[str | CollectiveVariable] = (),
        calibrate: int = 1000,
        keep_box: bool = False,
        bias: str | None = None,
        checkpoint_seconds: float = 30.0,
    ) -> None:
        self.file = require_writable(file)
        if interval != int(interval) or interval < 1:
            raise InputError(f"interval is {interval}; give a whole number of steps, at least 1")
        self.interval = int(interval)
        self.temperature = strip(temperature, "kelvin", what="temperature", positive=True)
        if force_map is not None:
            FORCE_MAPS[force_map]
        if calibrate < 1:
            raise InputError(f"calibrate is {calibrate}; give at least 1 frame")
        if self.file.exists() and not segments_folder(self.file).exists():
            raise InputError(f"{self.file} exists; choose another file, or remove it")
        if metadynamics is not None and variables:
            raise InputError("metadynamics has its own variables; leave variables out")
        self._mapping, self._keep_box = mapping, keep_box
        self._force_map, self._calibrate = force_map, int(calibrate)
        self._bias_forces = list(bias_forces)
        self._bias_groups = {int(g) for g in bias_groups}
        self._metadynamics = metadynamics
        self._unbiased = unbiased_system
        self._given_variables = list(variables)
        self._text = bias
        self._seconds = checkpoint_seconds
        self._waiting: list[dict[str, Any]] = []
        self._recorder: DatasetRecorder | None = None
        self._verified = False
        self._last_step = -1
        self._flushed = time.monotonic()

    # -- OpenMM's protocol ----------------------------------------------------------------------

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:
        """Say when the next frame is due; called by OpenMM."""
        if self._recorder is None:
            self._begin(simulation)
        steps = self.interval - simulation.currentStep % self.interval
        # Forces are read here, of the right force groups.
        return {"steps": steps, "periodic": False, "include": []}

    def report(self, simulation: Any, state: Any) -> None:
        """Record a frame; called by OpenMM."""
        del state
        assert self._recorder is not None
        if not self._verified:
            self._verify(simulation)
        forces = self._force_map is not None
        now = simulation.context.getState(getPositions=True, getForces=forces, groups=self._groups)
        positions = now.getPositions(asNumpy=True)._value
        if not np.isfinite(positions).all():
            worst = int(np.argmax(~np.isfinite(positions).all(axis=1)))
            raise InputError(
                f"the position of {atom_label(self._top, worst)} is no longer finite at step "
                f"{simulation.currentStep}; try a shorter timestep"
            )
        frame: dict[str, Any] = {
            "positions": positions,
            "forces": now.getForces(asNumpy=True)._value if forces else None,
            "box": box_array(now.getPeriodicBoxVectors()) if self._periodic else None,
            "step": int(simulation.currentStep),
            **self._bias_numbers(simulation, positions),
        }
        if self._recorder.force_map is None and forces:
            self._waiting.append(frame)
            if len(self._waiting) >= self._calibrate:
                self._fit()
        else:
            self._recorder.add(**frame)
        if time.monotonic() - self._flushed > self._seconds:
            self.flush()

    def flush(self) -> None:
        """Close a segment with the frames so far; those that wait for the force map stay."""
        if self._recorder is not None:
            self._recorder.flush(self._settings, {})
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the dataset and remove the segments.

        Raises:
            InputError: if there are no frames.
        """
        if self._recorder is None:
            raise InputError(
                f"{self.file} has no frames: the reporter was not used; append it to "
                "simulation.reporters before stepping"
            )
        if self._waiting:
            logger.warning(
                "the force map is fitted to %d frames instead of %d: the run was shorter",
                len(self._waiting),
                self._calibrate,
            )
            self._fit()
        self.flush()
        if not self._recorder.frames:
            raise InputError(f"{self.file} has no frames; step at least {self.interval} steps")
        self._recorder.finish()
        self._recorder = None

    def __enter__(self) -> "DatasetReporter":
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is None:
            self.close()
        elif self._recorder is not None:
            self.flush()  # what there is, for a restart
            self._recorder.close()

    # -- beginning ------------------------------------------------------------------------------

    def _begin(self, simulation: Any) -> None:
        system = simulation.system
        self._top = read_topology(simulation.topology)
        self._periodic = bool(system.usesPeriodicBoundaryConditions())
        if self._keep_box and not self._periodic:
            raise InputError("keep_box needs a periodic box; the System has none")
        mapper = BeadMapper(
            self._top,
            self._mapping,
            solute_atoms(simulation.topology),
            constraints_from_system(system),
            keep_box=self._keep_box,
        )
        self._find_bias(system)
        self._variables = tuple(
            v if isinstance(v, CollectiveVariable) else parse_variable(v, self._top)
            for v in self._given_variables
        )
        if self._is_biased and self._force_map is not None:
            self._require_kept(mapper)
        names = [v.name for v in self._variables]
        if self._metadynamics is not None:
            names = [f"variable {k + 1}" for k in range(len(self._metadynamics.variables))]
        self._settings = {
            "method": "reporter",
            "interval": self.interval,
            "temperature_K": self.temperature,
            "mapping": mapper.mapping.name,
            "mapping_sha256": mapper.digest(),
            "force_map": self._force_map,
            "keep_box": self._keep_box,
            "variables": names,
            "bias_groups": sorted(self._bias_groups),
        }
        recorder = DatasetRecorder(self.file, mapper, self.temperature, variable_names=names)
        recorder.bias = self._text if self._text is not None else self._words()
        recorder.provenance = {
            **self._settings,
            "timestep_ps": simulation.integrator.getStepSize()._value,
            "integrator": type(simulation.integrator).__name__,
            "constraints": system.getNumConstraints(),
            "box_nm": box_array(simulation.context.getState().getPeriodicBoxVectors()).tolist()
            if self._periodic
            else None,
            "platform": simulation.context.getPlatform().getName(),
            "versions": {"openmm": openmm.version.version, "openmm_cgml": __version__},
        }
        self._uses_frames = False
        if self._force_map is not None:
            fit = FORCE_MAPS[self._force_map](mapper.mapping, mapper.constraints)
            self._uses_frames = bool(fit.uses_frames)
            if not self._uses_frames:
                recorder.force_map = fit.fit(in_sample=False)
        recorder.open()
        self._recorder = recorder
        if in_progress(self.file):
            self._go_on(recorder, int(simulation.currentStep))

    def _go_on(self, recorder: DatasetRecorder, step: int) -> None:
        found = read_checkpoint(self.file)
        assert found is not None
        differing = [k for k, v in self._settings.items() if found.settings.get(k) != v]
        if differing:
            key = differing[0]
            raise InputError(
                f"{self.file} holds another run: {key} was {found.settings.get(key)}, now "
                f"{self._settings[key]}; use the same settings, or choose another file"
            )
        recorder.restore(found)
        if not found.frames:
            return
        steps = recorder.numbers("step")["step"]
        if step == 0:
            raise InputError(
                f"{self.file} has frames up to step {steps[-1]}, the simulation is at step 0; "
                "load its checkpoint before stepping, choose another file, or remove "
                f"{recorder.folder}"
            )
        if self._uses_frames:
            recorder.force_map = recorder.mapper.fit_force_map(
                str(self._force_map), *recorder.load_calibration()
            )
        kept = int(np.count_nonzero(steps <= step))
        if kept < len(steps):
            logger.info("%d frames after step %d come again", len(steps) - kept, step)
            recorder.truncate(kept)
        logger.info("%s goes on after %d frames", self.file, recorder.frames)

    # -- bias -----------------------------------------------------------------------------------

    @property
    def _is_biased(self) -> bool:
        return bool(self._bias_groups)

    def _find_bias(self, system: Any) -> None:
        """Find the groups of the bias, and a System without it."""
        forces = list(self._bias_forces)
        if self._metadynamics is not None:
            forces.append(self._metadynamics._force)
        indices = []
        for force in forces:
            same = [k for k, f in enumerate(system.getForces()) if int(f.this) == int(force.this)]
            if not same:
                raise InputError(
                    f"the bias {force.getName()} is not in the System; give the object that was "
                    "passed to addForce"
                )
            indices.append(same[0])
        if not indices:
            indices = [
                k
                for k, f in enumerate(system.getForces())
                if f.getForceGroup() in self._bias_groups
            ]
            if self._bias_groups and not indices:
                groups = ", ".join(map(str, sorted(self._bias_groups)))
                raise InputError(f"no force of the System is in the bias groups {groups}")
        self._bias_groups |= {system.getForce(k).getForceGroup() for k in indices}
        self._groups = set(range(32)) - self._bias_groups
        if self._unbiased is None:
            self._unbiased = deepcopy(system)
            for index in sorted(set(indices), reverse=True):
                self._unbiased.removeForce(index)
        elif self._unbiased.getNumParticles() != system.getNumParticles():
            raise InputError("unbiased_system has another number of particles; give its copy")

    def _require_kept(self, mapper: BeadMapper) -> None:
        """Refuse biases along atoms that the map does not keep, as far as their forces tell."""
        rest = ("record no forces (force_map=None)", mapper.atoms, self._top)
        require_function_of_beads(self._variables, mapper.mapping, *rest)
        forces = list(self._bias_forces)
        if self._metadynamics is not None:
            forces += [v.force for v in self._metadynamics.variables]
        unknown = []
        for force in forces:
            terms = _terms(force)
            if terms is None:
                unknown.append(force.getName())
            for atoms in terms or ():
                require_kept_atoms(force.getName(), atoms, mapper.mapping, *rest)
        if unknown or (not forces and not self._variables):
            which = ", ".join(unknown) or "the bias"
            warnings.warn(
                f"cannot tell of {which} whether it is a function of the beads; if it is not, it "
                "changes the mean force on them. Name its variables (variables=)",
                stacklevel=2,
            )

    def _verify(self, simulation: Any) -> None:
        """Compare forces with a System without the bias, and leave no trace in the run."""
        state = simulation.context.createCheckpoint()
        try:
            verify_unbiased(
                simulation.context,
                self._groups,
                self._unbiased,
                lambda atom: atom_label(self._top, atom),
                biased=False,  # metadynamics begins with none
            )
        finally:
            simulation.context.loadCheckpoint(state)
        self._verified = True

    def _bias_numbers(self, simulation: Any, positions: np.ndarray) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        if self._variables:
            numbers["variables"] = variable_values(self._variables, positions[None])[0]
        if not self._is_biased:
            return numbers
        state = simulation.context.getState(getEnergy=True, groups=self._bias_groups)
        energy = float(state.getPotentialEnergy()._value)
        numbers["bias_energy"] = energy
        if self._metadynamics is not None:
            values = self._metadynamics.getCollectiveVariables(simulation)
            numbers["variables"] = np.array(values, dtype=np.float64)
            kt = thermal_energy(self.temperature)
            numbers["weights"] = float(np.exp((energy - self._offset()) / kt))
        return numbers

    def _offset(self) -> float:
        """Return c(t) of an openmm.app.Metadynamics, kJ/mol; see `bias.Metadynamics`."""
        kt, gamma = thermal_energy(self.temperature), float(self._metadynamics.biasFactor)
        grid = np.asarray(self._metadynamics._totalBias, dtype=np.float64) / kt
        steps = np.zeros(grid.shape)
        for axis in range(grid.ndim):  # the trapezoid rule: ends count half
            for end in (0, -1):
                steps[(slice(None),) * axis + (end,)] -= np.log(2)
        above = log_sum(gamma / (gamma - 1) * grid + steps)
        return kt * (above - log_sum(grid / (gamma - 1) + steps))

    def _words(self) -> str:
        if self._metadynamics is not None:
            return (
                f"openmm.app.Metadynamics, bias factor {self._metadynamics.biasFactor:g}; weights "
                "exp(beta (V(s,t) - c(t)))"
            )
        if self._is_biased:
            return f"forces of groups {', '.join(map(str, sorted(self._bias_groups)))}; no weights"
        return ""

    # -- force map ------------------------------------------------------------------------------

    def _fit(self) -> None:
        """Fit the force map to the frames that waited for it, and record them."""
        assert self._recorder is not None and self._force_map is not None
        mapper = self._recorder.mapper
        forces = np.stack([f["forces"][mapper.atoms] for f in self._waiting]).astype(np.float32)
        positions = np.stack([f["positions"][mapper.atoms] for f in self._waiting])
        box = np.stack([f["box"] for f in self._waiting]) if self._periodic else None
        positions = mapper.whole(positions, box).astype(np.float32)
        self._recorder.save_calibration(forces, positions)
        self._recorder.force_map = mapper.fit_force_map(self._force_map, forces, positions)
        waiting, self._waiting = self._waiting, []
        for frame in waiting:
            self._recorder.add(**frame)


def _terms(force: Any) -> list[tuple[int, ...]] | None:
    """Return the atoms of each term of a force, None if its kind is not known."""
    if isinstance(force, openmm.CustomCVForce):
        inner = [
            _terms(force.getCollectiveVariable(k))
            for k in range(force.getNumCollectiveVariables())
        ]
        return None if None in inner else [t for terms in inner for t in terms or ()]
    for name, kind in (
        ("Torsion", openmm.CustomTorsionForce),
        ("Angle", openmm.CustomAngleForce),
        ("Bond", openmm.CustomBondForce),
        ("Bond", openmm.HarmonicBondForce),
    ):
        if isinstance(force, kind):
            count = {"Torsion": 4, "Angle": 3, "Bond": 2}[name]
            read = getattr(force, f"get{name}Parameters")
            number = getattr(force, f"getNum{name}s")()
            return [tuple(int(a) for a in read(k)[:count]) for k in range(number)]
    if isinstance(force, openmm.CustomCompoundBondForce):
        return [tuple(force.getBondParameters(k)[0]) for k in range(force.getNumBonds())]
    return None
