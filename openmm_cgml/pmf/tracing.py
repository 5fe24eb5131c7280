"""What torch's compiler can do with a PMF, and without its remarks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def untraceable(pmf: nn.Module) -> str | None:
    """Return why a PMF cannot be traced into a program of static shapes; None if it can."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in pmf.modules()):
        return "it holds a TorchScript program, which the compiler cannot look into"
    if any(not getattr(part, "dense", True) for part in pmf.modules()):
        return "it searches for neighbours, whose number changes from step to step"
    return None


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Hide torch's remarks about compilers for devices that are not asked for."""
    noisy = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "torch._inductor")]
    levels = [one.level for one in noisy]
    for one in noisy:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(noisy, levels, strict=True):
            one.setLevel(level)
