"""Training on Lightning: `fit` takes a PMF and frames, returns a `FitResult`."""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import lightning
import numpy as np
from lightning.pytorch import callbacks
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy

from .archives import require_modest_zip
from .dataset import CGDataset
from .errors import InputError, first_line
from .force_noise import ForceNoise, estimate_force_noise
from .losses import Objective, Terms, objective_of
from .pmf.core import PMF, energy_and_forces
from .training_compile import CompiledResidual, pays
from .training_data import BatchStream, Frames, Source, open_sources
from .training_settings import Settings
from .training_state import Checkpoints, Stopped, claim, seeded
from .training_step import BEST, Training

logger = logging.getLogger(__name__)

# Of a validation file, so many frames tell the noise floor.
_NOISE_FRAMES = 50_000


@dataclass(frozen=True, eq=False)
class FitResult:
    """A trained PMF and how it came about; what `save_model` writes.

    Attributes:
        pmf: the PMF with the weights of the best validation loss, in eval mode. Trained on
            several molecules: that of the first.
        dataset: training frames of that molecule, for topology, temperature and provenance; of a
            file the first ones only.
        history: one dict an epoch: ``epoch``, ``train_rmse``, ``valid_rmse`` (kJ/mol/nm), or
            ``train_loss``, ``valid_loss`` (no unit) where the loss is no force residual,
            ``learning_rate``.
        noise: residual, noise floor and model error on the validation frames; None if those have
            no forces.
        metrics: numbers and settings for the model's card.
        molecules: name -> result of each molecule, which share their weights; empty for one.
    """

    pmf: PMF
    dataset: CGDataset
    history: list[dict[str, float]]
    noise: ForceNoise | None
    metrics: dict[str, Any] = field(default_factory=dict)
    molecules: dict[str, "FitResult"] = field(default_factory=dict)


def fit(
    pmf: PMF,
    train: Frames,
    valid: Frames,
    *,
    loss: str | Objective = "force_matching",
    epochs: int = 60,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    schedule: str = "cosine",
    gradient_clip: float | None = 1.0,
    ema: float | None = None,
    spectral_norm: float | None = None,
    accumulate: int = 1,
    precision: str = "32",
    patience: int | None = None,
    compile: bool | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    resume: bool = True,
    checkpoint_seconds: float = 300.0,
    checkpoint_steps: int | None = None,
    accelerator: str = "auto",
    progress: bool | None = None,
) -> FitResult:
    """Train a PMF with Adam and keep its best epoch by validation loss.

    Terms without trainable parameters (priors) are evaluated once and subtracted from the target,
    not once a step, where the loss is of forces at the data's own positions.

    Started by torchrun, the processes share every batch (one a device, `directory` is needed);
    batches, losses and weights are those of one process up to rounding.

    Args:
        pmf: the PMF; its parameters are changed in place. For several molecules its
            ``for_topology(topology)`` returns that of each, with the same parameters.
        train: training frames: a dataset, a collection of several molecules, or the path of a
            file of either, which is read in blocks (for data larger than memory). Each batch is
            of one molecule.
        valid: validation frames, from other stretches of the run (`CGDataset.split`).
        loss: a name in `LOSSES`, or an `Objective`.
        epochs: passes over the training frames.
        batch_size: frames a step, over all processes.
        learning_rate: the highest.
        schedule: ``"cosine"``: falls to 1 %; ``"warmup_cosine"``: rises over the first 5 % of the
            steps before; ``"constant"``; ``"plateau"``: halves after 5 epochs that are not
            better.
        gradient_clip: largest norm of the gradient of the loss, which is of order one; None: any.
        ema: decay of an average of the weights over steps, such as 0.999, which is validated and
            kept instead of the weights; None: none.
        spectral_norm: limit of the largest singular value of each weight matrix; None: none.
        accumulate: batches whose gradients are summed up to one step.
        precision: ``"32"``, or ``"bf16-mixed"``: matrix products of training steps in bfloat16.
        patience: epochs that may pass without a better validation loss before training stops;
            None: all are made.
        compile: compile the loss and its gradient, in 10 to 40 s, after which a step takes a half
            to a third of the time; None: if there are so many steps that it pays. For force
            matching and denoising in single precision, by PMFs whose shapes are static.
        seed: of the order of the frames and of all noise; the same seed gives the same result.
        directory: where checkpoints go: ``best.ckpt`` and ``last.ckpt``, besides ``history.csv``
            and, if TensorBoard is installed, its logs. None: a temporary one.
        resume: continue from ``directory/last.ckpt`` if it is there; it must be of the same
            training (data, PMF and settings). The result is that of a run that never stopped.
        checkpoint_seconds: between checkpoints within an epoch. SIGINT and SIGTERM write one at
            once.
        checkpoint_steps: instead, optimiser steps between them.
        accelerator: as in lightning.Trainer: ``"auto"``, ``"cpu"``, ``"gpu"``.
        progress: show a progress bar; None: if the output is a terminal.

    Raises:
        InputError: if forces are missing, frames or PMF do not fit each other, a setting makes no
            sense, the directory holds another training's checkpoints, or the loss stops being
            finite.
    """
    settings = Settings(
        epochs, batch_size, learning_rate, seed, schedule, gradient_clip, ema, spectral_norm,
        accumulate, precision, patience,
    )  # fmt: skip
    started = time.perf_counter()
    rank, ranks = _join_processes(accelerator, directory)
    work = prepare(pmf, train, valid, loss, settings, rank, ranks)
    with tempfile.TemporaryDirectory() as scratch, seeded(seed + rank):
        folder = Path(directory) if directory is not None else Path(scratch)
        module = work.module(folder)
        for terms, compiles in zip(work.molecules, work.compiles(compile), strict=True):
            if compiles:
                terms.compiled = CompiledResidual(terms.trainable, required=compile is True)
        checkpoint = _claimed(folder, work.record(pmf), resume, rank, ranks)
        saving = Checkpoints(
            folder, checkpoint_seconds, checkpoint_steps, watch=directory is not None
        )
        _run(module, work.stream, checkpoint, saving, accelerator, progress)
        best = torch.load(folder / BEST, map_location="cpu", weights_only=True)
    module.load_state_dict(best["state_dict"])
    for terms in work.molecules:
        terms.compiled = None
        terms.to("cpu").eval()
        terms.pmf.to("cpu").eval()
    metrics = {
        **settings.to_dict(),
        "loss": work.objective.describe()["name"],
        "objective": work.objective.describe(),
        "train_frames": sum(len(s) for s in work.train),
        "valid_frames": sum(len(s) for s in work.valid),
        "train_seconds": time.perf_counter() - started,
    }
    return _results(work, module.history, metrics)


@dataclass(frozen=True, eq=False)
class Work:
    """All that a training needs, checked and fitted to each other.

    Attributes:
        train, valid: the frames of each molecule.
        molecules: the PMF of each.
        objective: prepared.
        settings: of the training.
        stream: the training batches.
    """

    train: list[Source]
    valid: list[Source]
    molecules: list[Terms]
    objective: Objective
    settings: Settings
    stream: BatchStream

    def module(self, folder: Path) -> Training:
        """Return what Lightning trains."""
        return Training(
            self.molecules, self.objective, self.settings, self.valid, len(self.stream), folder
        )

    def compiles(self, wanted: bool | None) -> list[bool]:
        """Return for each molecule whether its steps are compiled; wanted None: if it pays.

        Raises:
            InputError: if they shall be in mixed precision, which is compiled to something else.
        """
        single = self.settings.precision == "32"
        if wanted and not single:
            raise InputError(
                f"steps of precision {self.settings.precision} cannot be compiled; leave out one "
                "of the two"
            )
        if wanted is not None or not single:
            return [bool(wanted)] * len(self.molecules)
        steps = [self.settings.epochs * batches for batches in self.stream.counts]
        return [pays(m.trainable, s) for m, s in zip(self.molecules, steps, strict=True)]

    def record(self, pmf: PMF) -> dict[str, Any]:
        """Return what makes this training this one; seeds of initial weights apart."""
        return {
            "training data": [s.summary.digest for s in self.train],
            "validation data": [s.summary.digest for s in self.valid],
            "PMF": pmf.architecture(),
            "loss": self.objective.describe(),
            **self.settings.to_dict(),
            "processes": self.stream.ranks,
        }


def prepare(
    pmf: PMF,
    train: Frames,
    valid: Frames,
    loss: str | Objective,
    settings: Settings,
    rank: int = 0,
    ranks: int = 1,
) -> Work:
    """Check what `fit` is given and return it ready for training; arguments as there.

    Raises:
        InputError: as `fit`.
    """
    objective = objective_of(loss)
    name = objective.describe()["name"]
    if not objective.comparable and (settings.patience or settings.schedule == "plateau"):
        raise InputError(
            f"values of {name} in different epochs cannot be compared; leave out patience and "
            'the schedule "plateau"'
        )
    sources = {"training": open_sources(train), "validation": open_sources(valid)}
    for which, several in sources.items():
        for source in several:
            _check(source, which, objective, name)
    training, validation = sources["training"], sources["validation"]
    topologies = [[(s.name, s.dataset.topology) for s in several] for several in sources.values()]
    if topologies[0] != topologies[1]:
        raise InputError("training and validation datasets have different beads; split one")
    molecules = _molecules(pmf, training)
    if objective.at_data:
        for source in (*training, *validation):
            source.attach(molecules[source.molecule])
    sample = ((molecules[s.molecule], batch) for s in training for batch in s.sample())
    stream = BatchStream(training, settings.batch_size, settings.seed, rank, ranks)
    return Work(training, validation, molecules, objective.prepared(sample), settings, stream)


def _check(source: Source, which: str, objective: Objective, name: str) -> None:
    """Refuse frames that an objective cannot learn from."""
    which = f"the {which} dataset" + f" of molecule {source.name}" * bool(source.name)
    mapping = source.dataset.mapping
    if objective.needs_forces and not source.summary.forces:
        raise InputError(
            f"{which} has no forces, which {name} needs; map the trajectory with its forces"
        )
    if objective.uses_weights and source.summary.weight == 0:
        raise InputError(f"all frames of {which} have weight zero, and {name} counts by weights")
    # At other temperatures forces have other means, and distributions are others; weights mend it.
    weighted = objective.all_weighted and source.dataset.weights is not None
    if mapping.get("reference", {}).get("remd_all_rungs") and not weighted:
        raise InputError(
            f"{which} holds frames of several temperatures, which {name} may not mix without "
            "their weights; let it count by them (ForceMatching(weighted=True)), or run the "
            "replica exchange without all_rungs (--all-rungs)"
        )
    if "denoising" in _names(objective) and "noise" in mapping:
        raise InputError(
            f"{which} was mapped with noise, and denoising would add more; train it by force "
            "matching, or map without noise"
        )


def _names(objective: Objective) -> set[str]:
    described = objective.describe()
    return {described["name"], *(part["name"] for part in described.get("parts", []))}


def _molecules(pmf: PMF, sources: list[Source]) -> list[Terms]:
    """Return the PMF of each molecule, split into its terms."""
    if len(sources) == 1 and not sources[0].name:
        return [Terms(pmf)]
    return [Terms(pmf.for_topology(source.dataset.topology)) for source in sources]


def _join_processes(accelerator: str, directory: Any) -> tuple[int, int]:
    """Return rank and number of the processes that torchrun started, joined to a group."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return 0, 1
    if directory is None:
        raise InputError(
            f"{size} processes share this training; give a directory that all of them see"
        )
    if not dist.is_initialized():
        missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
        if missing:
            raise InputError(
                f"WORLD_SIZE is {size} but {', '.join(missing)} is not set; start with torchrun"
            )
        on_gpu = accelerator != "cpu" and torch.cuda.is_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    return dist.get_rank(), dist.get_world_size()


def _claimed(
    folder: Path, record: dict[str, Any], resume: bool, rank: int, ranks: int
) -> Path | None:
    """Let the first process claim the folder, and all know what it found."""
    if ranks == 1:
        return claim(folder, record, resume)
    found: list[Any] = [None]
    if rank == 0:
        try:
            found = [claim(folder, record, resume)]
        except InputError as error:
            found = [error]
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], InputError):
        raise found[0]
    return found[0]


def _run(
    module: Training,
    stream: BatchStream,
    checkpoint: Path | None,
    saving: Checkpoints,
    accelerator: str,
    progress: bool | None,
) -> None:
    """Let Lightning train."""
    if checkpoint is not None:
        state = _read(checkpoint)  # before Lightning, which would unpickle anything
        if state["training"]["finished"]:
            module.on_load_checkpoint(state)
            return
    settings = module.settings
    show = stream.rank == 0 and (sys.stderr.isatty() if progress is None else progress)
    with _quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
        try:
            trainer = lightning.Trainer(
                max_epochs=settings.epochs,
                accelerator=accelerator,
                **_devices(stream.ranks),
                precision=settings.precision,  # type: ignore[arg-type]
                logger=_loggers(module.folder),
                plugins=[_CheckedCheckpoints()],
                callbacks=[saving, *([callbacks.RichProgressBar(leave=False)] if show else [])],
                enable_checkpointing=True,
                enable_progress_bar=show,
                enable_model_summary=False,
                accumulate_grad_batches=settings.accumulate,
                gradient_clip_val=settings.gradient_clip,
                limit_val_batches=0,  # the module validates
                use_distributed_sampler=False,
            )
            trainer.fit(module, stream, ckpt_path=checkpoint)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C; it ignores further ones too
            logger.warning("training stopped; with checkpoints in a folder it can be continued")
            raise KeyboardInterrupt from stop
        except Stopped as stop:
            logger.warning("training stopped; the same call goes on from %s", module.folder)
            if stop.number == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + stop.number) from None


class _CheckedCheckpoints(TorchCheckpointIO):
    """Let Lightning read checkpoints as `_read` does; it would unpickle anything."""

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Return the content of a checkpoint: tensors and plain values."""
        return _read(Path(path))


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            require_modest_zip(archive, checkpoint.stat().st_size)
        return torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"checkpoint {checkpoint} is damaged or of another version ({first_line(error)}); "
            "delete it to start again"
        ) from error


def _devices(ranks: int) -> dict[str, Any]:
    """Return the Trainer's arguments for one process, or for torchrun's."""
    if ranks == 1:
        return {"devices": 1}
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks)))
    # Constants of energies have no gradient by forces; buffers are the same everywhere.
    strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    return {"devices": local, "num_nodes": ranks // local, "strategy": strategy}


def _loggers(folder: Path) -> Any:
    """Return TensorBoard's logger if it is installed; ``history.csv`` is written without one."""
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError:
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from announcing itself, and put the signals' handlers back."""
    names = [
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
    ]
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _results(work: Work, history: list[dict[str, float]], metrics: dict[str, Any]) -> FitResult:
    results = {}
    for train, valid, terms in zip(work.train, work.valid, work.molecules, strict=True):
        noise = _noise(valid, terms.pmf) if valid.summary.forces else None
        found: dict[str, Any] = {"ranges": train.summary.ranges.to_dict()}
        if noise is not None:
            logger.info(
                "%sforce RMSE %.1f kJ/mol/nm, of which noise that no model removes about %.1f",
                train.label,
                noise.residual,
                noise.floor,
            )
            found |= noise_metrics(noise)
        results[train.name] = FitResult(
            terms.pmf, train.dataset, history, noise, {**metrics, **found}
        )
    first = next(iter(results.values()))
    return first if list(results) == [""] else replace(first, molecules=results)


def force_noise(pmf: PMF, valid: CGDataset) -> ForceNoise:
    """Return residual, noise floor and model error of a PMF on frames it was not trained on."""
    return _noise(open_sources(valid)[0], pmf)


def noise_metrics(noise: ForceNoise) -> dict[str, float]:
    """Return a force noise by its names in a model's card."""
    return {
        "force_rmse": noise.residual,
        "force_noise_floor": noise.floor,
        "force_noise_floor_error": noise.floor_error,
        "force_model_error": noise.model_error,
    }


def _noise(source: Source, pmf: PMF) -> ForceNoise:
    stride = -(-len(source) // _NOISE_FRAMES)
    positions, residuals, seen = [], [], 0
    for chunk in source.chunks(4096):
        assert chunk.forces is not None
        part = slice(-seen % stride, None, stride)
        seen += len(chunk)
        x = chunk.positions[part]
        left = chunk.forces[part] - energy_and_forces(pmf, x, chunk.box)[1]
        positions.append(x.double().numpy())
        residuals.append(left.double().numpy())
    return estimate_force_noise(np.concatenate(positions), np.concatenate(residuals))
