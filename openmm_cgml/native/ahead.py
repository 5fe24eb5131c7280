"""Compiling in another process while this one does something else, such as training."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import CGMLError
from ..model_file import read_model_file
from .force import device_for, load
from .package import compile_package

logger = logging.getLogger(__name__)


@contextmanager
def compiling(path: str | Path, copies: int, *, periodic: bool = False) -> Iterator[None]:
    """Compile the native force and a model while the block runs, and wait for them at its end.

    A package holds no weights, so the model may be the untrained one of a training that is the
    block. Nothing happens where they cannot be compiled: whoever uses the model says why.

    Args:
        path: the model file.
        copies: number of copies.
        periodic: whether the System will be.
    """
    logger.info("compiling for this machine in another process meanwhile")
    code = "import sys; from openmm_cgml.native import ahead; ahead.prepare(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(copies), str(int(periodic))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        yield
        process.wait()
    finally:
        process.kill()
        process.wait()


def prepare(path: str, copies: str, periodic: str) -> None:
    """Compile the native force and a model's package; arguments as text."""
    torch.set_num_threads(1)
    try:
        load()
        compile_package(read_model_file(path), int(copies), periodic == "1", device_for(None))
    except CGMLError as error:
        logger.debug("%s", error)
