"""The whole road on the data that ships with the package: what ``cgml quickstart`` runs."""

import json
import logging
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from .analysis import Comparison, compare
from .dataset import CGDataset
from .errors import InputError
from .files import atomic_path, segments_folder
from .mapping import MAPPINGS
from .report import write_report

logger = logging.getLogger(__name__)

_OWN = (
    "All copies started from one and the same frame and {discard:.0f} ps of each were left out, "
    "so the populations are the model's own. Only the rung at {temperature:.0f} K, the "
    "temperature of the training data, is shown: the others are no physical ensemble, they only "
    "carry copies over the barriers. {trips} round trips; about {samples} independent samples."
)

_FLOW = (
    "Without forces: a flow trained on the same frames in {flow_seconds:.0f} s samples the two "
    "dihedrals with JS* = {flow_js_phi_psi_excess:.4f}; a second model, which learned from the "
    "flow's samples and their forces in {student_seconds:.0f} s (student.pt), with JS* = "
    "{student_js_phi_psi_excess:.4f} in a run of its own (student.h5). "
    "{effective_fraction:.0%} of the flow's samples are effective for it."
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


FULL = Effort()
QUICK = Effort(epochs=4, ladders=16, ps=8.0, discard_ps=2.0, stride=4, backend=None,
               flow_epochs=2, samples=2000, student_epochs=2)  # fmt: skip

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
    from .native.ahead import compiling
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
    for old in ("run.h5", "student.h5", "report.html", "summary.json"):
        (folder / old).unlink(missing_ok=True)
        shutil.rmtree(segments_folder(folder / old), ignore_errors=True)
    started = time.perf_counter()
    data = resources.files(__package__) / "data" / "quickstart"
    setup = json.loads((data / "quickstart.json").read_text(encoding="utf-8"))
    with resources.as_file(data) as files:
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
        save_model(folder / "model.pt", pmf, train)  # untrained, to be compiled
        logger.info("training on %d frames, %d epochs", len(train), effort.epochs)
        clock = time.perf_counter()
        compiles = named in (FASTEST, "native")
        copies = effort.ladders * effort.rungs
        with compiling(folder / "model.pt", copies) if compiles else nullcontext():
            result = fit(pmf, train, valid, epochs=effort.epochs, seed=seed, progress=progress)
            train_seconds = time.perf_counter() - clock
        save_model(folder / "model.pt", result)
        model = load_model(folder / "model.pt")
        start = dataset.positions[dataset.probabilities.argmax()]
        trial = _Trial(setup, effort, files, seed, progress, named or chosen, start)
        logger.info(
            "simulating %d ladders of %d temperatures, %.0f ps each",
            effort.ladders,
            effort.rungs,
            effort.ps,
        )
        run, comparison = trial.simulate(model, folder / "run.h5")
        without_forces = _learn_without_forces(train, valid, folder, trial)
    # After the run: Reference's random numbers are global to the process.
    backends = backend_speeds(
        model, start, copies, backends=list(BACKENDS) if effort.backend else [chosen]
    )
    summary = _summary(comparison, dataset, result.metrics, train_seconds, run.info)
    summary["without_forces"] = without_forces
    summary["backends"] = {name: round(speed) for name, speed in backends.items()}
    summary["seconds"] = round(time.perf_counter() - started, 1)
    write_report(
        folder / "report.html",
        comparison,
        title=setup["title"],
        lead=(
            f"A force field learned from {len(dataset):,} all-atom frames by force matching, run "
            f"as {copies} copies that exchange {effort.rungs} temperatures in one "
            "OpenMM Context, against an independent all-atom reference."
        ),
        labels=tuple(setup["labels"]),
        training=model.card["training"],
        run=run.info,
        backends=backends,
        notes=[
            _note(effort, setup["temperature_K"], run.info["statistics"]),
            _FLOW.format(**without_forces),
        ],
    )
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
    backend: str | None
    start: Any

    def simulate(
        self, model: Any, output: Path, timestep: float = _TIMESTEP
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
            backend=self.backend,
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


def _learn_without_forces(
    train: CGDataset, valid: CGDataset, folder: Path, trial: _Trial
) -> dict[str, Any]:
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
    student = distill(
        flow, count=effort.samples, seed=seed, epochs=effort.student_epochs, progress=progress
    )
    student_seconds = time.perf_counter() - clock
    save_model(folder / "student.pt", student.result)
    _, found = trial.simulate(
        load_model(folder / "student.pt"), folder / "student.h5", timestep=_STUDENT_TIMESTEP
    )
    density = trial.compare(drawn)
    agreement = student.agreements[""]
    return {
        "flow_seconds": round(seconds, 1),
        "flow_js_phi_psi_excess": density.record()["js_excess"],
        "student_seconds": round(student_seconds, 1),
        "student_js_phi_psi_excess": found.record()["js_excess"],
        "student_js_phi_psi_excess_error": found.record()["js_excess_error"],
        "effective_fraction": agreement.effective / agreement.samples,
    }


def _note(effort: Effort, temperature: float, statistics: dict[str, Any]) -> str:
    samples = statistics["effective_samples"]
    return _OWN.format(
        discard=effort.discard_ps,
        temperature=temperature,
        trips=f"{statistics['round_trips']:,}",
        samples="?" if samples is None else f"{samples:,.0f}",
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
