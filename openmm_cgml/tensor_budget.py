"""Limiting what a card of a stranger can make torch allocate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: What an operation costs besides its tensor, so that loops over empty tensors end too.
_CALL = 1 << 10


class _Budget(TorchDispatchMode):
    """Refuse operations that make new tensors once they have made too many bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        count = 1
        for given in args:
            if isinstance(given, (list, tuple, torch.Size)):
                for length in given:
                    count *= max(1, length) if isinstance(length, int) else 1
        if func.namespace == "aten" and any(
            word in func.name()
            for word in ("empty", "zeros", "ones", "full", "rand", "eye", "repeat", "expand")
        ):
            self._left -= 4 * count
        self._left -= _CALL
        if self._left < 0:
            raise MemoryError("it asks for far more memory than its file has bytes")
        return func(*args, **(kwargs or {}))


@contextmanager
def limited_tensors(limit: int) -> Iterator[None]:
    """Raise MemoryError where torch would make tensors of more than `limit` bytes in the block.

    Args:
        limit: bytes, as single precision counts them.
    """
    with _Budget(limit):
        yield
