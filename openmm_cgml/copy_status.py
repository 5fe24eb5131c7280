"""What has happened to the copies of a run: which were sick, started anew, or left the data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass
class CopyStatus:
    """Of each copy of this rank, what a run knows besides its positions.

    Attributes:
        dropped: whether its frames no longer count, (copies,) bool.
        resets: new starts it was given, (copies,) int64.
        flagged: whether it was sick since the last frame, (copies,) bool.
        reported: reason -> whether it is known to be outside the training data, (copies,) bool.
    """

    dropped: np.ndarray
    resets: np.ndarray
    flagged: np.ndarray
    reported: dict[str, np.ndarray]

    @classmethod
    def of(cls, copies: int, reasons: Iterable[str]) -> "CopyStatus":
        """Return that of copies to which nothing has happened."""
        well = np.zeros(copies, dtype=bool)
        reported = {reason: well.copy() for reason in reasons}
        return cls(well.copy(), np.zeros(copies, dtype=np.int64), well.copy(), reported)

    @property
    def frozen(self) -> np.ndarray:
        """Whether it takes no part in exchanges, and its frames are marked, (copies,) bool."""
        return self.dropped | self.flagged

    def copy(self) -> "CopyStatus":
        """Return one that later changes do not reach."""
        reported = {reason: known.copy() for reason, known in self.reported.items()}
        return CopyStatus(self.dropped.copy(), self.resets.copy(), self.flagged.copy(), reported)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint keeps."""
        return {
            "dropped": self.dropped,
            "resets": self.resets,
            "flagged": self.flagged,
            **self.reported,
        }

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> "CopyStatus":
        """Return that of a checkpoint, with the reasons of this one."""
        return CopyStatus(
            arrays["dropped"].astype(bool),
            arrays["resets"].astype(np.int64),
            arrays["flagged"].astype(bool),
            {reason: arrays[reason].astype(bool) for reason in self.reported},
        )
