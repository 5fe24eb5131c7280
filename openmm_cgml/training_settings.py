"""How a training goes: settings, checked once, and the learning rate they mean."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .errors import InputError

_FINAL = 0.01  # of the learning rate, at the end of a cosine schedule
_WARMUP = 0.05  # of all steps


def _constant(_: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    return _FINAL + (1 - _FINAL) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _warmup_cosine(progress: float) -> float:
    if progress < _WARMUP:
        return max(progress / _WARMUP, _FINAL)
    return _cosine((progress - _WARMUP) / (1 - _WARMUP))


#: Name -> factor on the learning rate by the share of the steps that are done. "plateau" halves
#: the rate after epochs without a better validation loss, besides.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "warmup_cosine": _warmup_cosine,
    "constant": _constant,
    "plateau": _constant,
}

PRECISIONS = ("32", "bf16-mixed")


@dataclass(frozen=True)
class Settings:
    """Settings of a training; `fit` explains them.

    Raises:
        InputError: if one makes no sense.
    """

    epochs: int = 60
    batch_size: int = 256
    learning_rate: float = 1e-3
    seed: int = 0
    schedule: str = "cosine"
    gradient_clip: float | None = 1.0
    ema: float | None = None
    spectral_norm: float | None = None
    accumulate: int = 1
    precision: str = "32"
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(
                f"epochs is {self.epochs}, batch_size {self.batch_size}; both must be at least 1"
            )
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"schedule {self.schedule!r} is unknown; choose {', '.join(SCHEDULES)}"
            )
        if self.precision not in PRECISIONS:
            raise InputError(
                f"precision {self.precision!r} does not work for forces, which are differentiated "
                f"a second time; choose {' or '.join(PRECISIONS)}"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(f"ema is {self.ema}; give a decay between 0 and 1, or None")
        positive = {
            "learning_rate": self.learning_rate,
            "gradient_clip": self.gradient_clip,
            "spectral_norm": self.spectral_norm,
            "accumulate": self.accumulate,
            "patience": self.patience,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; give a positive number")

    def steps(self, batches: int) -> int:
        """Return how many optimiser steps there are with so many batches an epoch."""
        return self.epochs * -(-batches // self.accumulate)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate at an optimiser step of so many."""
        return SCHEDULES[self.schedule](step / max(1, steps))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, JSON-able."""
        return asdict(self)
