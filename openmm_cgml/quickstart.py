"""The whole road on the data that ships with the package: what ``cgml quickstart`` runs."""

import json
import logging
import os
import shutil
import time
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .analysis import Comparison, compare
from .dataset import CGDataset
from .entropy import MappingEntropy
from .errors import InputError
from .files import atomic_path, segments_folder
from .mapping import MAPPINGS
from .provenance import describe
from .quality import Quality
from .quickstart_page import write_quickstart
from .ranking import PMFScore

if TYPE_CHECKING:
    from .backmapping import BeadFrames

logger = logging.getLogger(__name__)

_ROADS = (
    "Two models of the same frames: one learned the mapped forces (model.pt, {train_seconds:.0f} "
    "s), the other never saw a force: a flow learned the density of the frames "
    "({flow_seconds:.0f} s) and taught it by its samples ({student_seconds:.0f} s, student.pt). "
    "Both ran in replica exchange. The third road runs nothing: it weighs the flow's samples by "
    "the first model. The flow's own samples, unweighted, have JS* = {flow_js_phi_psi_excess:.4f}."
)
_RUN = (
    "All copies started from one and the same frame and {discard:.0f} ps of each were left out, "
    "so the populations are the model's own. Only the rung at {temperature:.0f} K, the "
    "temperature of the training data, is shown: the others are no physical ensemble, they only "
    "carry copies over the barriers. {trips} round trips; about {samples} independent samples; "
    "{speed} replica-steps/s through the backend {backend}."
)
_WEIGHTS = (
    "{samples:,} samples of the flow, each weighted by exp(-U/kT) over its density: the ensemble "
    "of the model U without dynamics. The more of them are effective, the nearer flow and model."
)
_ATOMS = (
    "A split-flow learned the heavy atoms at given beads ({atom_seconds:.0f} s, atoms.flow). "
    "Here it generates them for the beads of held-out all-atom frames; for {structures} frames of "
    "the run they are in atoms.dcd, with their beads where the run has them."
)
_ENTROPY = (
    "What atoms can do while the beads stay: the mapping entropy of {frames} frames of the run. "
    "Where it is high, beads say least about the atoms."
)


@dataclass(frozen=True)
class Effort:
    """How much work the quickstart does.

    Attributes:
        epochs: of training.
        ladders: of temperatures, side by side in one Context.
        rungs: temperatures of a ladder.
        highest: the last of them, K.
        ps: length of each copy's trajectory.
        discard_ps: of it, left out of the comparison.
        stride: every how many frames of the data are used.
        backend: where none is named; None: the first that works, without compiling anything.
        flow_epochs: of the flow that learns from the same frames without their forces.
        samples: that it teaches a second model by.
        student_epochs: of the second model.
        weighed: samples of the flow that the models weigh.
        atom_epochs: of the split-flow, which generates atoms.
        atom_frames: that it learns from.
        compile_atoms: whether its steps are compiled, which takes a minute.
        structures: frames of the run that get atoms.
        entropy_frames: of them, whose mapping entropy is found.
        caveat: what the page says above everything else.
    """

    epochs: int = 50
    ladders: int = 64
    rungs: int = 4
    highest: float = 1000.0
    ps: float = 120.0
    discard_ps: float = 20.0
    stride: int = 1
    backend: str | None = "fastest"
    flow_epochs: int = 20
    samples: int = 60_000
    student_epochs: int = 15
    weighed: int = 50_000
    atom_epochs: int = 12
    atom_frames: int = 12_000
    compile_atoms: bool = True
    structures: int = 1000
    entropy_frames: int = 120
    caveat: str = ""


FULL = Effort()
QUICK = Effort(epochs=4, ladders=16, ps=8.0, discard_ps=2.0, stride=4, backend=None,
               flow_epochs=2, samples=2000, student_epochs=2, weighed=2000, atom_epochs=1,
               atom_frames=800, compile_atoms=False, structures=64, entropy_frames=12,
               caveat="A small version, which is not converged: it shows what is done, not how "
               "well.")  # fmt: skip

#: Files of an earlier quickstart that would be gone on with, or kept, instead of written anew.
_OLD = ("run.h5", "student.h5", "report.html", "summary.json", "atoms.dcd", "atoms.pdb",
        "atoms.npz")  # fmt: skip

# LFMiddle samples the same distribution from 1 to 6 fs, within errors (docs/engine.md).
_TIMESTEP = 0.004  # ps
_FRICTION = 5.0  # 1/ps
# The flow's forces are steeper than mapped ones: at 4 fs its student has 6 instead of 2 % of its
# population beyond phi = 0, at 2 fs it has what the flow has.
_STUDENT_TIMESTEP = 0.002


def quickstart(
    output: str | Path,
    *,
    effort: Effort = FULL,
    backend: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Map, train, export, simulate and compare; write everything into a folder.

    Args:
        output: folder; made if missing. Files of an earlier quickstart in it are replaced.
        effort: `FULL` (minutes) or `QUICK` (seconds, not converged).
        backend: as in `Model.create_force`; None: the fastest.
        seed: of weights, batches, starts and noise.
        progress: show progress bars; None: if the output is a terminal.

    Returns:
        The summary, which is also ``summary.json``.

    Raises:
        InputError: if the folder cannot be made.
    """
    from .benchmark import backend_speeds
    from .force import BACKEND_VARIABLE, BACKENDS, FASTEST, choose_backend
    from .mapped import map_trajectory
    from .model_file import save_model
    from .pmf import PMFS
    from .pmf.core import SumPMF
    from .pmf.prior import fit_prior
    from .system import load_model
    from .train import fit
    from .trajectory import read_trajectory

    named = backend or os.environ.get(BACKEND_VARIABLE) or effort.backend
    chosen = choose_backend(None if named == FASTEST else named)  # raises before minutes are spent
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make folder {folder}: {error.strerror}; choose another"
        ) from None
    for old in _OLD:
        (folder / old).unlink(missing_ok=True)
        shutil.rmtree(segments_folder(folder / old), ignore_errors=True)
    started = time.perf_counter()
    data = resources.files(__package__) / "data" / "quickstart"
    setup = json.loads((data / "quickstart.json").read_text(encoding="utf-8"))
    with resources.as_file(data) as files:
        read = [files / setup[name] for name in ("trajectory", "topology", "reference")]
        provenance = describe(read, seed=seed)
        trajectory = read_trajectory(files / setup["trajectory"], top=files / setup["topology"])
        logger.info("mapping %s", setup["title"])
        dataset = map_trajectory(
            trajectory,
            MAPPINGS[setup["mapping"]](trajectory.topology),
            temperature=setup["temperature_K"],
            force_map="rotation",
            constraints=files / setup["system"],
            bias=setup["bias"],
            output=folder / "dataset.h5",
        ).select(slice(None, None, effort.stride))
        train, valid = dataset.split(0.9)
        pmf = SumPMF(fit_prior(train), PMFS["cgnet"](train, seed=seed))
        logger.info("training on %d frames, %d epochs", len(train), effort.epochs)
        clock = time.perf_counter()
        result = fit(pmf, train, valid, epochs=effort.epochs, seed=seed, progress=progress)
        train_seconds = time.perf_counter() - clock
        save_model(folder / "model.pt", result)
        model = load_model(folder / "model.pt")
        start = dataset.positions[dataset.probabilities.argmax()]
        trial = _Trial(setup, effort, files, seed, progress, start)
        copies = effort.ladders * effort.rungs
        logger.info(
            "simulating %d ladders of %d temperatures, %.0f ps each",
            effort.ladders,
            effort.rungs,
            effort.ps,
        )
        # Where none is named the first model runs through TorchForce, if that works here, and the
        # second by what is fastest.
        run, comparison = trial.simulate(model, folder / "run.h5", backend or chosen)
        student = _learn_without_forces(train, valid, folder, trial, named or chosen)
        scores = _weigh(student, {"model": model, "student": student.model}, valid, trial)
        atoms = _back_to_atoms(trajectory, run, folder, trial)
    # After the runs: Reference's random numbers are global to the process.
    backends = backend_speeds(
        model, start, copies, backends=list(BACKENDS) if effort.backend else [chosen]
    )
    weighted = next(s for s in scores if s.name == "model").comparison
    assert weighted is not None
    summary = _summary(comparison, dataset, result.metrics, train_seconds, run.info)
    summary["without_forces"] = student.record
    summary["reweighting"] = [score.record() for score in scores]
    summary["backmapping"] = {**atoms.record, **atoms.quality.record()}
    summary["entropy"] = atoms.entropy.record()
    summary["backends"] = {name: round(speed) for name, speed in backends.items()}
    summary["seconds"] = round(time.perf_counter() - started, 1)
    write_quickstart(
        folder / "report.html",
        title=setup["title"],
        lead=(
            f"From {len(dataset):,} all-atom frames to coarse-grained force fields by two roads, "
            "their simulation and reweighting, and back to atoms; against an independent all-atom "
            "reference."
        ),
        labels=tuple(setup["labels"]),
        roads={
            "force matching": comparison,
            "flow-matching": student.comparison,
            "weighted samples": weighted,
        },
        run=run.info,
        training=model.card["training"],
        scores=scores,
        quality=atoms.quality,
        entropy=atoms.entropy,
        beads=atoms.beads,
        dihedrals=setup["dihedrals"],
        texts={
            "roads": _ROADS.format(train_seconds=train_seconds, **student.record),
            "run": _describe_run(effort, setup["temperature_K"], run.info),
            "weights": _WEIGHTS.format(samples=effort.weighed),
            "atoms": _ATOMS.format(**atoms.record),
            "entropy": _ENTROPY.format(frames=len(atoms.beads)),
        },
        backends=backends,
        provenance={**provenance, "seconds": summary["seconds"]},
        notes=[effort.caveat] * bool(effort.caveat),
    )  # fmt: skip
    with atomic_path(folder / "summary.json") as unfinished:
        unfinished.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


@dataclass(frozen=True)
class _Trial:
    """How models of the quickstart are simulated and compared with the reference."""

    setup: dict[str, Any]
    effort: Effort
    files: Path
    seed: int
    progress: bool | None
    start: Any

    def simulate(
        self, model: Any, output: Path, backend: str | None, timestep: float = _TIMESTEP
    ) -> tuple[Any, Comparison]:
        """Run replica exchange of a model and compare it with the reference."""
        from .remd import ReplicaExchange, ladder

        effort = self.effort
        simulation = ReplicaExchange(
            model,
            self.start,
            ladder(self.setup["temperature_K"], effort.highest, effort.rungs),
            effort.ladders,
            exchange_interval=0.1,
            timestep=timestep,
            friction=_FRICTION,
            seed=self.seed,
            backend=backend,
        )
        # As many steps, whatever they are long.
        length = timestep / _TIMESTEP
        run = simulation.run(
            output, ns=effort.ps * length / 1000, interval=0.2, progress=self.progress
        )
        return run, self.compare(run, effort.discard_ps * length)

    def compare(self, model: Any, discard_ps: float = 0.0) -> Comparison:
        """Compare a run or a dataset with the reference."""
        return compare(
            model,
            self.files / self.setup["reference"],
            self.setup["dihedrals"],
            temperature=self.setup["temperature_K"],
            state=tuple(self.setup["state"]),
            discard_ps=discard_ps,
        )


@dataclass(frozen=True)
class _Student:
    """A model that never saw a force, the flow that taught it, and how both do."""

    flow: Any
    model: Any
    comparison: Comparison
    record: dict[str, Any]


def _learn_without_forces(
    train: CGDataset, valid: CGDataset, folder: Path, trial: _Trial, backend: str | None
) -> _Student:
    """Let a flow learn the density of the weighted frames, and a second model from the flow."""
    from .distillation import distill
    from .flow import FLOWS
    from .flow_file import save_flow
    from .flow_training import fit_flow
    from .model_file import save_model
    from .system import load_model

    effort, seed, progress = trial.effort, trial.seed, trial.progress
    bare = [replace(part, forces=None) for part in (train, valid)]
    logger.info("training a flow on the same frames without their forces")
    clock = time.perf_counter()
    result = fit_flow(
        FLOWS["coupling"](bare[0], seed=seed), *bare, epochs=effort.flow_epochs, seed=seed,
        progress=progress,
    )  # fmt: skip
    seconds = time.perf_counter() - clock
    save_flow(folder / "molecule.flow", result)
    flow: Any = result.pmf.flow
    drawn = CGDataset(
        flow.sample(4 * effort.samples, seed)[0].numpy(), train.topology, train.temperature
    )
    logger.info("teaching a model by %d samples of the flow", effort.samples)
    clock = time.perf_counter()
    taught = distill(
        flow, count=effort.samples, seed=seed, epochs=effort.student_epochs, progress=progress
    )
    student_seconds = time.perf_counter() - clock
    save_model(folder / "student.pt", taught.result)
    model = load_model(folder / "student.pt")
    logger.info("simulating the model that the flow has taught")
    _, found = trial.simulate(model, folder / "student.h5", backend, timestep=_STUDENT_TIMESTEP)
    density = trial.compare(drawn)
    agreement = taught.agreements[""]
    record = {
        "flow_seconds": round(seconds, 1),
        "flow_js_phi_psi_excess": density.record()["js_excess"],
        "student_seconds": round(student_seconds, 1),
        "student_js_phi_psi_excess": found.record()["js_excess"],
        "student_js_phi_psi_excess_error": found.record()["js_excess_error"],
        "effective_fraction": agreement.effective / agreement.samples,
    }
    return _Student(flow, model, found, record)


def _weigh(
    student: _Student, models: dict[str, Any], valid: CGDataset, trial: _Trial
) -> list[PMFScore]:
    """Weigh samples of the flow by each model; the best first."""
    from .boltzmann import propose
    from .ranking import rank_pmfs

    logger.info("weighing %d samples of the flow", trial.effort.weighed)
    # Not the seed that taught the student: these samples are new to it.
    proposal = propose(student.flow, trial.effort.weighed, seed=trial.seed + 1, held_out=valid)
    return rank_pmfs(
        proposal, models, reference=trial.files / trial.setup["reference"],
        dihedrals=trial.setup["dihedrals"], state=tuple(trial.setup["state"]), flow=student.flow,
        seed=trial.seed, check_ps=0.0,
    )  # fmt: skip


@dataclass(frozen=True)
class _Atoms:
    """What a split-flow makes of held-out frames and of the run."""

    quality: Quality
    entropy: MappingEntropy
    beads: "BeadFrames"
    record: dict[str, Any]


def _back_to_atoms(trajectory: Any, run: Any, folder: Path, trial: _Trial) -> _Atoms:
    """Learn the heavy atoms at given beads; generate those of the run, and their entropy."""
    from .backmapping import BeadFrames, backmap, write_backmapped
    from .entropy import mapping_entropy
    from .flow.fiber import split_flow
    from .flow_file import load_split_flow, save_flow
    from .flow_training import fit_flow
    from .mapped import map_trajectory
    from .quality import assess

    effort, seed, setup = trial.effort, trial.seed, trial.setup
    atoms = map_trajectory(
        trajectory, MAPPINGS["heavy_atom"](trajectory.topology),
        temperature=setup["temperature_K"], force_map="basic",
    )  # fmt: skip
    atoms = atoms.subsample(count=effort.atom_frames)
    train, valid = atoms.split(0.9)
    logger.info("training a split-flow on the heavy atoms of %d frames", len(train))
    clock = time.perf_counter()
    result = fit_flow(
        split_flow(train, setup["mapping"], seed=seed), train, valid, epochs=effort.atom_epochs,
        batch_size=128, learning_rate=6e-3, ema=0.995, schedule="warmup_cosine", seed=seed,
        progress=trial.progress, compile=effort.compile_atoms,
    )  # fmt: skip
    seconds = time.perf_counter() - clock
    save_flow(folder / "atoms.flow", result)
    flow = load_split_flow(folder / "atoms.flow")
    held_out = np.asarray(valid.positions, dtype=np.float64)
    known = BeadFrames(flow.fiber.beads_of(held_out), flow.bead_topology)
    quality = assess(backmap(flow, known, seed=seed), held_out, flow.fiber.matrix)
    logger.info("generating the atoms of %d frames of the run", effort.structures)
    cold = run.at_temperature(setup["temperature_K"]).after(effort.discard_ps)
    frames = cold.positions.reshape(-1, *cold.positions.shape[2:])
    spread = np.linspace(0, len(frames) - 1, effort.structures).round().astype(int)
    beads = BeadFrames(frames[spread].astype(np.float64), flow.bead_topology)
    write_backmapped(folder / "atoms.dcd", folder / "atoms.flow", beads, seed=seed)
    some = np.linspace(0, len(beads) - 1, effort.entropy_frames).round().astype(int)
    few = BeadFrames(beads.positions[some], beads.topology)
    logger.info("mapping entropy of %d frames", len(few))
    entropy = mapping_entropy(flow, few, 4, density="hutchinson", seed=seed)
    record = {"atom_seconds": round(seconds, 1), "structures": len(beads)}
    return _Atoms(quality, entropy, few, record)


def _describe_run(effort: Effort, temperature: float, info: dict[str, Any]) -> str:
    statistics = info["statistics"]
    samples = statistics["effective_samples"]
    return _RUN.format(
        discard=effort.discard_ps,
        temperature=temperature,
        trips=f"{statistics['round_trips']:,}",
        samples="?" if samples is None else f"{samples:,.0f}",
        speed=f"{info['replica_steps_per_second']:,.0f}",
        backend=info["backend"],
    )


def _summary(
    comparison: Comparison,
    dataset: Any,
    metrics: dict[str, Any],
    train_seconds: float,
    info: dict[str, Any],
) -> dict[str, Any]:
    numbers = comparison.record()
    # The demo's two dihedrals are phi and psi; its readers look for these names.
    named = {k.replace("js", "js_phi_psi", 1): v for k, v in numbers.items()}
    return {
        "backend": info["backend"],
        "platform": info["platform"],
        "frames": len(dataset),
        "train_seconds": round(train_seconds, 1),
        "force_rmse": metrics["force_rmse"],
        "force_noise_floor": metrics["force_noise_floor"],
        "force_model_error": metrics["force_model_error"],
        "copies": info["copies"],
        "temperatures_K": info["temperatures_K"],
        "replica_steps_per_second": info["replica_steps_per_second"],
        "acceptance": info["statistics"]["neighbour_acceptance"],
        "round_trips": info["statistics"]["round_trips"],
        "effective_samples": info["statistics"]["effective_samples"],
        **named,
        "versions": info["versions"],
    }
