"""What a long run owes its user: a clean stop, and no mixing with another run."""

import json
import logging
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

logger = logging.getLogger(__name__)

_MOST_NAMED = 4


def require_same_run(
    output: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    may_change: Collection[str],
    also: Sequence[str] = (),
    remedy: str = "",
) -> None:
    """Refuse to go on with another run than the one that is there.

    Args:
        output: the run's file.
        before: settings it was begun with, as JSON keeps them.
        now: settings it shall go on with.
        may_change: settings that make no other run.
        also: further differences, in words.
        remedy: what else the user may do about them.

    Raises:
        InputError: naming the settings that differ.
    """
    now = json.loads(json.dumps(now))
    differing = [
        f"{key} was {_short(before.get(key))}, now {_short(now.get(key))}"
        for key in sorted({*before, *now})
        if key not in may_change and before.get(key) != now.get(key)
    ]
    differing += also
    if len(differing) > _MOST_NAMED:
        differing[_MOST_NAMED:] = [f"and {len(differing) - _MOST_NAMED} more"]
    if differing:
        raise InputError(
            f"{output} holds another run: {'; '.join(differing)}. Use the same settings to go on "
            f"with it, or choose another output{remedy}"
        )
    if before.get("processor") != now.get("processor"):
        logger.warning(
            "%s was begun on another processor (%s): results may differ in the last digits",
            output,
            before.get("processor"),
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:50]}..."


def processor_name() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


@contextmanager
def signals() -> Iterator[list[str]]:
    """Collect Ctrl-C and SIGTERM (queues send it) instead of dying; a second one interrupts."""
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)

    previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
