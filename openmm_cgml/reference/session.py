"""What a long run owes its user: a progress bar, a clean stop, and no mixing with another run."""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError

logger = logging.getLogger(__name__)

# Of a run's settings, these may change when it goes on.
_MAY_CHANGE = {"ns", "processor"}


def require_same(
    output: Path, before: dict[str, Any], now: dict[str, Any], can_grow: bool
) -> None:
    """Refuse to go on with another run than the one that is there."""
    # Numbers as JSON keeps them.
    now = json.loads(json.dumps(now))
    allowed = _MAY_CHANGE if can_grow else _MAY_CHANGE - {"ns"}
    differing = [
        f"{key} was {_short(before.get(key))}, now {_short(now.get(key))}"
        for key in sorted(set(before) | set(now))
        if key not in allowed and before.get(key) != now.get(key)
    ]
    if "ns" in allowed and now["ns"] < before["ns"] - 1e-9:
        differing.append(f"ns was {before['ns']:g}, now {now['ns']:g}: it can only grow")
    if len(differing) > 4:
        differing[4:] = [f"and {len(differing) - 4} more"]
    if differing:
        raise InputError(
            f"{output} holds another run: {'; '.join(differing)}. Use the same settings to go on "
            "with it, or choose another output"
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


def processor() -> str:
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


class Progress:
    """A progress bar with time left on a terminal; nothing elsewhere."""

    def __init__(self, show: bool | None) -> None:
        self._show = sys.stderr.isatty() if show is None else show
        self._bar: Any = None
        self._task: Any = None
        self._at = 0.0

    def __enter__(self) -> "Progress":
        if self._show:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=14),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self

    def begin(self, what: str, total: int) -> None:
        """Start another bar."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total, note="")

    def update(self, done: int, note: str = "") -> None:
        """Move the bar, not more often than anybody sees."""
        if self._bar is None or self._task is None or time.monotonic() - self._at < 0.2:
            return
        self._at = time.monotonic()
        self._bar.update(self._task, completed=done, note=note)

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
