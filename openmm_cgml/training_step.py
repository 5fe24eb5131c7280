"""One step of a training and what happens after each epoch, as Lightning calls them."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import lightning
import numpy as np

from .errors import InputError
from .files import atomic_path
from .losses import Batch, Objective, Terms
from .training_data import Source, seed_of
from .training_settings import Settings
from .training_weights import AveragedWeights, SpectralLimit

BEST = "best.ckpt"
HISTORY = "history.csv"

# Of the plateau schedule: epochs that may pass without a better loss, and the factor then.
_PLATEAU_EPOCHS, _PLATEAU_FACTOR = 5, 0.5


class Training(lightning.LightningModule):
    """Steps, validation, history and the best weights.

    Args:
        molecules: the PMF of each molecule; they share their trainable parameters.
        objective: prepared.
        settings: of the training.
        valid: validation frames of each molecule.
        batches: training batches an epoch.
        folder: where the best weights and the history are written.
    """

    def __init__(
        self,
        molecules: list[Terms],
        objective: Objective,
        settings: Settings,
        valid: list[Source],
        batches: int,
        folder: Path,
    ) -> None:
        super().__init__()
        self.molecules = nn.ModuleList(molecules)
        self._terms = tuple(molecules)  # the same, with their type
        self.objective, self.settings, self.valid = objective, settings, valid
        self.batches, self.folder = batches, folder
        self.history: list[dict[str, float]] = []
        self.best: tuple[float, int] | None = None  # validation loss, epoch
        self.finished = False
        self._sum, self._frames = torch.zeros((), dtype=torch.float64), 0
        self._average = AveragedWeights(self.molecules, settings.ema) if settings.ema else None
        self._limit = None
        if settings.spectral_norm:
            self._limit = SpectralLimit(self.molecules, settings.spectral_norm, settings.seed)
        self._plateau: Any = None
        self._plateau_state: dict[str, Any] | None = None

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch."""
        loss = self.objective(self._terms[batch.molecule], batch)
        self._sum = self._sum.to(loss.device) + loss.detach().double() * len(batch)
        self._frames += len(batch)
        return loss

    def transfer_batch_to_device(self, batch: Batch, device: Any, index: int) -> Batch:
        """Move a batch; Lightning does not look into its dataclass."""
        return batch.to(device)

    def configure_optimizers(self) -> Any:
        """Return Adam with the schedule of the settings."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.settings.learning_rate)
        steps = self.settings.steps(self.batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.settings.factor(step, steps)
        )
        if self.settings.schedule == "plateau":
            # Not Lightning's: it would step after the epoch's checkpoint has been written.
            self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=_PLATEAU_FACTOR, patience=_PLATEAU_EPOCHS
            )
            if self._plateau_state is not None:
                self._plateau.load_state_dict(self._plateau_state)
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Step, then limit norms, then average: a checkpoint after the batch has all of it."""
        super().optimizer_step(*arguments, **named)
        if self._limit is not None:
            self._limit.apply()
        if self._average is not None:
            self._average.update()

    def on_train_epoch_end(self) -> None:
        """Validate, keep the best weights, decide whether to stop."""
        train = self._mean(float(self._sum), self._frames)
        self._sum, self._frames = torch.zeros((), dtype=torch.float64), 0
        with self._average.used() if self._average is not None else nullcontext():
            valid = self.validate()
            self._record(train, valid)
            if not np.isfinite([train, valid]).all():
                raise InputError(
                    f"the loss is not finite in epoch {self.current_epoch}; lower the learning "
                    "rate or look for wrong forces in the dataset"
                )
            if self.best is None or valid < self.best[0] or not self.objective.comparable:
                self.best = (valid, self.current_epoch)
                self._write_best()
        if self._plateau is not None:
            self._plateau.step(valid)
        waited = self.current_epoch - self.best[1]
        if self.settings.patience is not None and waited >= self.settings.patience:
            self.trainer.should_stop = True
        self.finished = self.trainer.should_stop or self.current_epoch + 1 == self.settings.epochs

    def validate(self) -> float:
        """Return the mean loss of the validation frames, in single precision."""
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        size = min(4096, max(256, 4 * self.settings.batch_size))
        total, frames = 0.0, 0
        for source in self.valid:
            for number, chunk in enumerate(source.chunks(size, rank, ranks)):
                # The same noise in every epoch: losses are compared.
                seed = seed_of(self.settings.seed, source.molecule, number * ranks + rank, 1)
                batch = _seeded(chunk, seed).to(self.device)
                with torch.no_grad():  # forces turn gradients on for themselves
                    loss = self.objective(self._terms[source.molecule], batch, False)
                total, frames = total + float(loss) * len(batch), frames + len(batch)
        return self._mean(total, frames)

    def _mean(self, total: float, frames: int) -> float:
        """Return the mean over the frames of all processes."""
        sums = torch.tensor([total, frames], dtype=torch.float64)
        if self.trainer.world_size > 1:
            sums = sums.to(self.device)
            dist.all_reduce(sums)
        return float(sums[0] / sums[1])

    def _record(self, train: float, valid: float) -> None:
        found = {"epoch": float(self.current_epoch)}
        if self.objective.residual(train) is None:
            found |= {"train_loss": train, "valid_loss": valid}
        else:
            found |= {
                "train_rmse": self.objective.residual(train) or 0.0,
                "valid_rmse": self.objective.residual(valid) or 0.0,
            }
        for name in ("valid_rmse", "valid_loss"):
            if name in found:
                self.log(name, found[name], prog_bar=True, sync_dist=False)
        found["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.history.append(found)
        if self.trainer.is_global_zero:
            with atomic_path(self.folder / HISTORY) as partial:
                lines = [",".join(found), *(",".join(map(repr, h.values())) for h in self.history)]
                partial.write_text("\n".join(lines) + "\n")

    def _write_best(self) -> None:
        if self.trainer.is_global_zero:
            with atomic_path(self.folder / BEST) as partial:
                torch.save({"state_dict": self.state_dict()}, partial)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know of."""
        sums = torch.tensor([float(self._sum), self._frames], dtype=torch.float64)
        if self.trainer.world_size > 1:  # the first process will go on with the sums of all
            sums = sums.to(self.device)
            dist.all_reduce(sums)
        checkpoint["training"] = {
            "history": self.history,
            "best": self.best,
            "finished": self.finished,
            "sum": float(sums[0]),
            "frames": int(sums[1]),
            "objective": self.objective.state_dict(),
            "average": self._average and self._average.state_dict(),
            "limit": self._limit and self._limit.state_dict(),
            "plateau": self._plateau and self._plateau.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what `on_save_checkpoint` added."""
        state = checkpoint["training"]
        self.history, self.best = list(state["history"]), state["best"]
        self.finished = state["finished"]
        if not dist.is_initialized() or dist.get_rank() == 0:
            self._sum = torch.tensor(state["sum"], dtype=torch.float64)
            self._frames = state["frames"]
        self.objective.load_state_dict(state["objective"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self._limit is not None:
            self._limit.load_state_dict(state["limit"])
        self._plateau_state = state["plateau"]


def _seeded(batch: Batch, seed: int) -> Batch:
    return replace(batch, seed=seed, first=0, total=len(batch))
