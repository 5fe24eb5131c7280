"""What a training would do and how long it would take, from a few steps that are thrown away."""

import copy
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from .losses import Objective
from .pmf.core import PMF
from .train import Work, prepare
from .training_data import Frames, MemorySource
from .training_settings import Settings

_WARM, _MOST = 3, 30  # steps that are not timed, and that are
_SECONDS = 3.0  # or for so long


@dataclass(frozen=True)
class MoleculePlan:
    """One molecule of a training.

    Attributes:
        name: in its collection; "" outside one.
        beads: of the molecule.
        train, valid: frames.
        effective: frames that the weights leave, (sum w)^2 / sum w^2; None if there are none.
        streamed: whether frames are read from a file in every epoch.
    """

    name: str
    beads: int
    train: int
    valid: int
    effective: float | None
    streamed: bool


@dataclass(frozen=True)
class TrainingPlan:
    """What `fit` would do with the same arguments.

    Attributes:
        molecules: the data.
        terms: class -> number of trainable parameters of each term of the PMF.
        loss: name and settings of the objective.
        settings: of the training.
        batches, steps: of an epoch, and of the optimiser in all.
        seconds_a_step, seconds_a_validation: measured on this machine, not compiled.
        compiled: whether the steps of all molecules will be compiled.
        memory: bytes that this process has taken at most, or the GPU if it is used.
        device: where it was measured.
    """

    molecules: list[MoleculePlan]
    terms: list[tuple[str, int]]
    loss: dict[str, Any]
    settings: Settings
    batches: int
    steps: int
    seconds_a_step: float
    seconds_a_validation: float
    memory: int
    device: str
    compiled: bool = False

    @property
    def seconds(self) -> float:
        """Time of the whole training, without what compiling takes and saves."""
        batches = self.batches * self.settings.epochs
        return self.seconds_a_step * batches + self.seconds_a_validation * self.settings.epochs

    def text(self) -> str:
        """Return the plan in words."""
        s = self.settings
        lines = []
        for m in self.molecules:
            weights = "no weights"
            if m.effective is not None:
                weights = f"weights, worth {m.effective:,.0f} frames"
                used = self.loss.get("weighted", self.loss["name"] != "force_matching")
                weights += "" if used else " (not used by this loss)"
            where = "read from the file in every epoch" if m.streamed else "in memory"
            lines.append(
                f"data: {m.name and m.name + ', '}{m.train:,} training and {m.valid:,} validation "
                f"frames of {m.beads} beads, {weights}, {where}"
            )
        pmf = " + ".join(f"{name} ({count:,})" if count else name for name, count in self.terms)
        total = sum(count for _, count in self.terms)
        lines.append(f"PMF: {pmf}; {total:,} trainable parameters")
        settings = ", ".join(f"{k} {_short(v)}" for k, v in self.loss.items() if k != "name")
        lines.append(f"loss: {self.loss['name']}" + (f" ({settings})" if settings else ""))
        lines.append(
            f"{s.epochs} epochs of {self.batches:,} batches of at most {s.batch_size} frames: "
            f"{self.steps:,} steps of Adam, learning rate {s.learning_rate:g} ({s.schedule})"
        )
        extra = {
            "gradients clipped at": s.gradient_clip,
            "weights averaged with decay": s.ema,
            "spectral norms limited to": s.spectral_norm,
            "batches a step": s.accumulate if s.accumulate > 1 else None,
            "epochs of patience": s.patience,
            "precision": s.precision if s.precision != "32" else None,
        }
        chosen = [f"{name} {value}" for name, value in extra.items() if value is not None]
        lines.append("; ".join(chosen) if chosen else "nothing clipped or averaged")
        lines.append(
            f"time: {1000 * self.seconds_a_step:.1f} ms a batch, {self.seconds_a_validation:.2f} "
            f"s a validation on {self.device}: about {_duration(self.seconds)} in all"
        )
        if self.compiled:
            lines.append("steps are compiled: a minute at first, half the time then")
        lines.append(f"memory: {self.memory / 2**20:,.0f} MiB so far")
        return "\n".join(lines)


def plan(
    pmf: PMF,
    train: Frames,
    valid: Frames,
    *,
    loss: str | Objective = "force_matching",
    compile: bool | None = None,
    accelerator: str = "auto",
    **settings: Any,
) -> TrainingPlan:
    """Say what `fit` would do, after some steps with a copy of the PMF; writes nothing.

    Args:
        pmf, train, valid, loss, compile, accelerator: as of `fit`.
        **settings: those of `fit` that `Settings` has.

    Raises:
        InputError: as `fit`.
    """
    chosen = Settings(**settings)
    work = prepare(copy.deepcopy(pmf), train, valid, loss, chosen)
    compiled = all(work.compiles(compile))
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    step = _time_steps(work, device)
    validation = _time_validation(work, device)
    return TrainingPlan(
        molecules=[
            MoleculePlan(
                t.name, len(t.dataset.topology), len(t), len(v), _effective(t),
                not isinstance(t, MemorySource),
            )
            for t, v in zip(work.train, work.valid, strict=True)
        ],
        terms=_terms(pmf),
        loss=work.objective.describe(),
        settings=chosen,
        batches=len(work.stream),
        steps=chosen.steps(len(work.stream)),
        seconds_a_step=step,
        seconds_a_validation=validation,
        memory=_memory(gpu),
        device=torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        compiled=compiled,
    )  # fmt: skip


def _time_steps(work: Work, device: torch.device) -> float:
    """Return seconds a batch."""
    modules = torch.nn.ModuleList(work.molecules).to(device).train()
    optimizer = torch.optim.Adam(modules.parameters(), lr=work.settings.learning_rate)
    mixed = work.settings.precision == "bf16-mixed"
    spent, done = 0.0, 0
    while done < _WARM + _MOST and spent < _SECONDS:
        for batch in work.stream:
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext():
                loss = work.objective(work.molecules[batch.molecule], batch.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            float(loss.detach())  # waits for the device
            done += 1
            spent += time.perf_counter() - started if done > _WARM else 0.0
            if done >= _WARM + _MOST or spent > _SECONDS:
                break
    return spent / max(1, done - _WARM)


def _time_validation(work: Work, device: torch.device) -> float:
    """Return seconds for all validation frames, from one part of each molecule's."""
    seconds = 0.0
    for source in work.valid:
        terms = work.molecules[source.molecule].eval()
        for _ in range(2):  # the first is for caches
            started = time.perf_counter()
            batch = next(source.chunks(min(1024, len(source)))).to(device)
            with torch.no_grad():
                float(work.objective(terms, replace(batch, total=len(batch)), False))
            spent = time.perf_counter() - started
        seconds += spent * len(source) / len(batch)
    return seconds


def _effective(source: Any) -> float | None:
    """Return the effective number of frames under the weights, of a sample of a file."""
    if not source.summary.weight:
        return None
    weights = torch.cat([b.weights for b in source.sample() if b.weights is not None]).double()
    share = float(weights.sum() ** 2 / weights.square().sum()) / len(weights)
    return share * len(source)


def _terms(pmf: PMF) -> list[tuple[str, int]]:
    terms = list(getattr(pmf, "terms", [pmf]))
    return [
        (type(t).__name__, sum(p.numel() for p in t.parameters() if p.requires_grad))
        for t in terms
    ]


def _memory(gpu: bool) -> int:
    if gpu:
        return int(torch.cuda.max_memory_allocated())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
