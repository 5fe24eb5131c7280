"""Progress bars of long work."""

import sys
from typing import Any


class ProgressBar:
    """A progress bar with time left on a terminal; nothing elsewhere."""

    def __init__(self, show: bool | None, total: int, what: str) -> None:
        self.show = sys.stderr.isatty() if show is None else show
        self.total, self.what = total, what

    def __enter__(self) -> "ProgressBar":
        if self.show:
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
            self._task = self._bar.add_task(self.what, total=self.total, note="")
            self._bar.start()
        return self

    def update(self, done: int, note: str) -> None:
        """Show that so much of the total is done."""
        if self.show:
            self._bar.update(self._task, completed=done, note=note)

    def __exit__(self, *_: Any) -> None:
        if self.show:
            self._bar.stop()
