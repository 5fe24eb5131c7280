"""Progress bars of long work."""

import sys
import time
from typing import Any

_SECONDS = 0.2  # a bar moves no more often than anybody sees


class ProgressBar:
    """A progress bar with time left on a terminal; nothing elsewhere.

    Args:
        show: whether there is one; None: if the output is a terminal.
        total: of the first piece of work; None: `begin` says later.
        what: its name.
    """

    def __init__(self, show: bool | None, total: int | None = None, what: str = "") -> None:
        self._show = sys.stderr.isatty() if show is None else show
        self._first = None if total is None else (what, total)
        self._bar: Any = None
        self._task: Any = None
        self._at = 0.0
        self._total = 0

    def __enter__(self) -> "ProgressBar":
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
            if self._first is not None:
                self.begin(*self._first)
        return self

    def begin(self, what: str, total: int) -> None:
        """Start a piece of work, instead of the one before."""
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total, note="")
            self._total, self._at = total, 0.0

    def update(self, done: int, note: str = "") -> None:
        """Show that so much of the total is done."""
        if self._task is None or (time.monotonic() - self._at < _SECONDS and done < self._total):
            return
        self._at = time.monotonic()
        self._bar.update(self._task, completed=done, note=note)

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
