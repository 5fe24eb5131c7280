"""Training on Lightning: `fit` takes a PMF and datasets, returns a `FitResult`."""

import hashlib
import json
import logging
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

import lightning
import numpy as np
from lightning.pytorch import callbacks

from .dataset import CGDataset
from .errors import InputError
from .extrapolation import CoordinateRanges
from .files import atomic_path
from .force_noise import ForceNoise, estimate_force_noise
from .losses import LOSSES
from .pmf.core import PMF, SumPMF, energy_and_forces

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FitResult:
    """A trained PMF and how it came about; what `save_model` writes.

    Attributes:
        pmf: the PMF with the weights of the best validation loss, in eval mode.
        dataset: the training data, for its topology, temperature and provenance.
        history: one dict an epoch: ``epoch``, ``train_rmse``, ``valid_rmse`` (kJ/mol/nm),
            ``learning_rate``.
        noise: residual, noise floor and model error on the validation frames.
        metrics: numbers and settings for the model's card.
    """

    pmf: PMF
    dataset: CGDataset
    history: list[dict[str, float]]
    noise: ForceNoise
    metrics: dict[str, Any] = field(default_factory=dict)


def fit(
    pmf: PMF,
    train: CGDataset,
    valid: CGDataset,
    *,
    loss: str = "force_matching",
    epochs: int = 60,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    directory: str | Path | None = None,
    resume: bool = True,
    accelerator: str = "auto",
    progress: bool | None = None,
) -> FitResult:
    """Train a PMF on a dataset's forces.

    Adam with a cosine schedule, gradients clipped to norm 1 of the scaled loss. The best epoch by
    validation loss is kept. Terms without trainable parameters (priors) are evaluated once and
    subtracted from the target, not once a step.

    Args:
        pmf: the PMF; its parameters are changed in place.
        train: training frames, with forces.
        valid: validation frames, from other stretches of the run (`CGDataset.split`).
        loss: a name in `LOSSES`.
        epochs: passes over the training frames.
        batch_size: frames a step.
        learning_rate: of the first epoch; it falls to 1 % of that.
        seed: of the order of the frames; the same seed gives the same result.
        directory: where checkpoints go: ``best.ckpt`` and ``last.ckpt``. None: a temporary one.
        resume: continue from ``directory/last.ckpt`` if it is there; it must be of the same
            training (data, PMF and settings).
        accelerator: as in lightning.Trainer: ``"auto"``, ``"cpu"``, ``"gpu"``.
        progress: show a progress bar; None: if the output is a terminal.

    Raises:
        InputError: if forces are missing, datasets or PMF do not fit each other, the directory
            holds another training's checkpoints, or the loss stops being finite.
    """
    objective = LOSSES[loss]
    for name, dataset in (("training", train), ("validation", valid)):
        if dataset.forces is None:
            raise InputError(
                f"the {name} dataset has no forces, which {loss} needs; map the trajectory with "
                "its forces"
            )
        # At other temperatures forces have other means, and this loss knows no weights.
        if dataset.mapping.get("reference", {}).get("remd_all_rungs"):
            raise InputError(
                f"the {name} dataset holds frames of several temperatures, which {loss} may not "
                "mix; run the replica exchange without all_rungs (--all-rungs)"
            )
    if train.topology != valid.topology:
        raise InputError("training and validation datasets have different beads; split one")
    if epochs < 1 or batch_size < 1:
        raise InputError(f"epochs is {epochs}, batch_size {batch_size}; both must be at least 1")
    fixed, trainable = _split_terms(pmf)
    train_frames, valid_frames = _Frames.of(train, fixed), _Frames.of(valid, fixed)
    module = _Training(trainable, objective, train_frames.rms(), learning_rate, epochs)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(directory) if directory is not None else Path(scratch)
        _claim(
            folder,
            {
                "training data": _digest(train),
                "validation data": _digest(valid),
                "PMF": pmf.architecture(),
                "loss": loss,
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "seed": seed,
            },
            resume,
        )
        _run(module, train_frames, valid_frames, folder, epochs, batch_size, seed, resume,
             accelerator, progress)  # fmt: skip
        best = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
    module.load_state_dict(best["state_dict"])
    pmf.to("cpu").eval()
    residuals = valid_frames.residuals(trainable.to("cpu"))
    noise = estimate_force_noise(np.asarray(valid.positions, dtype=np.float64), residuals)
    logger.info(
        "force RMSE %.1f kJ/mol/nm, of which noise that no model removes about %.1f",
        noise.residual,
        noise.floor,
    )
    return FitResult(
        pmf=pmf,
        dataset=train,
        history=module.history,
        noise=noise,
        metrics={
            "loss": loss,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
            "train_frames": len(train),
            "valid_frames": len(valid),
            "train_seconds": time.perf_counter() - started,
            "force_rmse": noise.residual,
            "force_noise_floor": noise.floor,
            "force_noise_floor_error": noise.floor_error,
            "force_model_error": noise.model_error,
            "ranges": CoordinateRanges.of(train).to_dict(),
        },
    )


def _claim(folder: Path, training: dict[str, Any], resume: bool) -> None:
    """Write down which training a folder's checkpoints belong to, or refuse another's.

    A checkpoint alone would be taken for any training whose weights have the same shapes.
    """
    record = folder / "training.json"
    text = json.dumps(training, indent=1)
    if resume and (folder / "last.ckpt").exists():
        found = json.loads(record.read_text()) if record.exists() else {}
        differing = [k for k, v in json.loads(text).items() if found.get(k) != v]
        if differing:
            raise InputError(
                f"{folder} holds checkpoints of another training (other {', '.join(differing)}); "
                "give another folder, or delete them"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("last.ckpt", "best.ckpt"):
        (folder / old).unlink(missing_ok=True)
    with atomic_path(record) as partial:
        partial.write_text(text)


def _digest(dataset: CGDataset) -> str:
    """Return a hash of what training sees of a dataset."""
    digest = hashlib.sha256(dataset.topology.to_json().encode())
    for values in (dataset.positions, dataset.forces, dataset.box):
        if values is not None:
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _split_terms(pmf: PMF) -> tuple[PMF | None, PMF]:
    """Separate the terms without trainable parameters from the rest."""
    terms = list(pmf.terms) if isinstance(pmf, SumPMF) else [pmf]
    moving = [t for t in terms if any(p.requires_grad for p in t.parameters())]
    still = [t for t in terms if not any(t is m for m in moving)]
    if not moving:
        raise InputError("the PMF has no trainable parameters; add a network to its terms")
    return (SumPMF(*still) if still else None), SumPMF(*moving)


@dataclass(frozen=True, eq=False)
class _Frames(Dataset):
    """Tensors of a dataset; the target is the force that the fixed terms leave."""

    positions: Tensor
    target: Tensor
    box: Tensor | None

    @classmethod
    def of(cls, dataset: CGDataset, fixed: PMF | None) -> "_Frames":
        positions = torch.as_tensor(dataset.positions, dtype=torch.float32)
        target = torch.as_tensor(dataset.forces, dtype=torch.float32)
        box = dataset.constant_box()
        vectors = None if box is None else torch.as_tensor(box, dtype=torch.float32)
        frames = cls(positions, target, vectors)
        if fixed is None:
            return frames
        return replace(frames, target=target - frames.forces(fixed))

    def forces(self, pmf: nn.Module, chunk: int = 4096) -> Tensor:
        parts = self.positions.split(chunk)
        return torch.cat([energy_and_forces(pmf, p, self.box)[1] for p in parts])

    def residuals(self, pmf: nn.Module) -> np.ndarray:
        return (self.target - self.forces(pmf)).double().numpy()

    def rms(self) -> float:
        return float(self.target.double().square().mean().sqrt())

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, frames: list[int]) -> tuple[Tensor, Tensor]:
        return self.positions[frames], self.target[frames]


class _ShuffledBatches(Sampler):
    """Batches of frame indices in an order that depends on seed and epoch only.

    So a run that resumes at an epoch sees the batches that it would have seen uninterrupted.
    """

    def __init__(self, frames: int, batch_size: int, seed: int) -> None:
        self.frames, self.batch_size, self.seed, self.epoch = frames, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:  # called by Lightning
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, self.frames // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(self.frames)
        for batch in range(len(self)):  # the rest of the frames comes in other epochs
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()


class _Training(lightning.LightningModule):
    """One optimiser step and one validation step; scales, schedule and history."""

    def __init__(
        self, pmf: PMF, objective: Any, scale: float, learning_rate: float, epochs: int
    ) -> None:
        super().__init__()
        self.pmf = pmf
        self.objective = objective
        self.scale = scale  # kJ/mol/nm; losses of order one suit Adam and clipping
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.box: Tensor | None = None
        self.history: list[dict[str, float]] = []

    def _loss(self, batch: Any, differentiable: bool) -> Tensor:
        positions, target = batch
        box = None if self.box is None else self.box.to(positions)
        forces = energy_and_forces(self.pmf, positions, box, differentiable=differentiable)[1]
        return self.objective(forces / self.scale, target / self.scale, None)

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss = self._loss(batch, differentiable=True)
        self.log("train", loss.detach(), on_step=False, on_epoch=True, batch_size=1)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._sum, self._frames = 0.0, 0

    def validation_step(self, batch: Any, _: int) -> None:
        self._sum += float(self._loss(batch, differentiable=False)) * len(batch[0])
        self._frames += len(batch[0])

    def on_validation_epoch_end(self) -> None:
        mean = self._sum / self._frames
        self.log("valid", mean)
        self.log("valid_rmse", mean**0.5 * self.scale, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        values = self.trainer.callback_metrics
        record = {
            "epoch": float(self.current_epoch),
            "train_rmse": float(values["train"]) ** 0.5 * self.scale,
            "valid_rmse": float(values["valid"]) ** 0.5 * self.scale,
            "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
        }
        self.history.append(record)
        if not np.isfinite(record["train_rmse"]):
            raise InputError(
                f"the loss is not finite in epoch {self.current_epoch}; lower the learning rate "
                "or look for wrong forces in the dataset"
            )

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.pmf.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, steps, eta_min=0.01 * self.learning_rate
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["history"])


def _run(
    module: _Training,
    train: _Frames,
    valid: _Frames,
    folder: Path,
    epochs: int,
    batch_size: int,
    seed: int,
    resume: bool,
    accelerator: str,
    progress: bool | None,
) -> None:
    """Let Lightning train, with checkpoints of the best and the last epoch in `folder`."""
    import sys

    module.box = train.box
    show = sys.stderr.isatty() if progress is None else progress
    # "last" is saved after the validation of every epoch, so history and weights agree in it.
    keep_best = callbacks.ModelCheckpoint(
        dirpath=folder, filename="best", monitor="valid", enable_version_counter=False,
        save_weights_only=True,
    )  # fmt: skip
    keep_last = callbacks.ModelCheckpoint(
        dirpath=folder, filename="last", enable_version_counter=False,
        save_on_train_epoch_end=True,
    )  # fmt: skip
    bars = [callbacks.RichProgressBar(leave=False)] if show else []
    last = folder / "last.ckpt"
    checkpoint = str(last) if resume and last.exists() else None
    train_loader: DataLoader = DataLoader(
        train, sampler=_ShuffledBatches(len(train), batch_size, seed), batch_size=None
    )
    chunks = [c.tolist() for c in np.array_split(np.arange(len(valid)), -(-len(valid) // 4096))]
    valid_loader: DataLoader = DataLoader(valid, sampler=chunks, batch_size=None)
    quiet = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda")
    levels = {name: logging.getLogger(name).level for name in quiet}
    on_interrupt = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
        for name in quiet:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            trainer = lightning.Trainer(
                max_epochs=epochs,
                accelerator=accelerator,
                devices=1,
                logger=False,
                callbacks=[keep_best, keep_last, *bars],
                enable_progress_bar=show,
                enable_model_summary=False,
                gradient_clip_val=1.0,
                inference_mode=False,  # forces are gradients, in validation too
                num_sanity_val_steps=0,
            )
            trainer.fit(module, train_loader, valid_loader, ckpt_path=checkpoint)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C; it ignores further ones too
            logger.warning("training stopped; with checkpoints in a folder it can be continued")
            raise KeyboardInterrupt from stop
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
