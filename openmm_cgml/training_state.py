"""Checkpoints: whose they are, when they are written, and the random state in them."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import numpy as np
from lightning.pytorch import callbacks

from .errors import InputError
from .files import atomic_path
from .texts import parse_json
from .training_step import BEST, HISTORY

LAST = "last.ckpt"
RECORD = "training.json"


class Stopped(BaseException):
    """A signal asked for the end, and the checkpoint has been written.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def claim(folder: Path, training: dict[str, Any], resume: bool) -> Path | None:
    """Write down which training a folder's checkpoints belong to, or refuse another's.

    A checkpoint alone would be taken for any training whose weights have the same shapes.

    Args:
        folder: made if missing.
        training: data, PMF and settings, JSON-able.
        resume: whether to go on from a checkpoint; else old ones are removed.

    Returns:
        The checkpoint to go on from; None if there is none.

    Raises:
        InputError: if the folder holds checkpoints of another training, or cannot be made.
    """
    record, last = folder / RECORD, folder / LAST
    text = json.dumps(training, indent=1)
    if resume and last.exists():
        try:
            found = dict(parse_json(record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # missing or damaged: nobody knows whose they are
            found = {}
        differing = [k for k, v in json.loads(text).items() if found.get(k) != v]
        if differing:
            raise InputError(
                f"{folder} holds checkpoints of another training (other {', '.join(differing)}); "
                "give another folder, or delete them"
            )
        return last
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make folder {folder}: {error.strerror}; give another") from None
    for old in (LAST, BEST, HISTORY):
        (folder / old).unlink(missing_ok=True)
    with atomic_path(record) as partial:
        partial.write_text(text)
    return None


class Checkpoints(callbacks.Checkpoint):
    """Write the last state after every epoch, now and then between, and when a signal comes.

    A checkpoint is never written in the middle of accumulated gradients, which it would lose.
    Where several processes share a training, all agree on the batch.

    Args:
        folder: where `LAST` goes.
        seconds: between checkpoints within an epoch.
        steps: instead: optimiser steps between them; None: by time.
        watch: whether to write one on SIGINT and SIGTERM, and stop.
    """

    def __init__(self, folder: Path, seconds: float, steps: int | None, watch: bool) -> None:
        super().__init__()
        self._folder, self._seconds, self._steps = folder, seconds, steps
        self._watch = watch and threading.current_thread() is threading.main_thread()
        self._signal = 0
        self._saved = time.monotonic()
        self._random: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Restore random states, and take signals over from Lightning, which has set its own."""
        if self._random:
            set_random_state(self._random[trainer.global_rank % len(self._random)])
        self._saved = time.monotonic()
        if self._watch:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self._signal:  # asked twice: no time for a checkpoint
            raise KeyboardInterrupt
        self._signal = number

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        """Write a checkpoint if one is due."""
        accumulate = trainer.accumulate_grad_batches
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # the end of the epoch has its own
        if (index + 1) % accumulate:
            return
        if self._steps is not None:
            due = trainer.global_step % self._steps == 0
        else:
            due = time.monotonic() - self._saved > self._seconds
        due, number = self._agreed(trainer, due)
        if due or number:
            self._save(trainer)
        if number:
            raise Stopped(number)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Write a checkpoint."""
        self._save(trainer)
        number = self._agreed(trainer, False)[1]
        if number and not module.finished:
            raise Stopped(number)

    def _agreed(self, trainer: Any, due: bool) -> tuple[bool, int]:
        """Return whether a checkpoint is due in any process, and the signal that any has got."""
        if trainer.world_size == 1:
            return due, self._signal
        votes = torch.tensor([int(due), self._signal], device=trainer.strategy.root_device)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes[0]), int(votes[1])

    def _save(self, trainer: Any) -> None:
        partial = self._folder / f".{LAST}.tmp"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            with open(partial, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(partial, self._folder / LAST)
        self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return the random states of all processes."""
        own = random_state()
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return {"random": [own]}
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, own)
        return {"random": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the random states for the start of training."""
        self._random = list(state["random"])


def random_state() -> dict[str, Any]:
    """Return the states of torch's, numpy's and Python's global random numbers."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [str(name), torch.as_tensor(np.asarray(keys, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random numbers while the block runs, for PMFs and samplers that use them."""
    before = random_state()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        set_random_state(before)
