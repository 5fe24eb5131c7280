"""How much a run has sampled: effective sample sizes of slow coordinates, live and afterwards."""

from typing import Any

import torch

import numpy as np

from . import geometry
from .correlation import effective_sample_size
from .run_file import Run
from .topology import CGTopology, bonded_torsions

# Enough for a figure that is known to a few per cent, and cheap at any length of run.
_MOST_FRAMES = 2048
_MOST_PLACES = 512
_MOST_TORSIONS = 16


class SlowCoordinates:
    """Coordinates that decorrelate slowly, collected while a run goes on.

    Radius of gyration and sines and cosines of bonded torsions, the slow ones of a chain. When
    frames become many every second one is dropped and from then on every second one taken.

    Args:
        topology: the beads of one copy.
        box_vectors: (3, 3), nm, or None.
    """

    def __init__(self, topology: CGTopology, box_vectors: Any = None) -> None:
        torsions = bonded_torsions(topology.bonds)
        stride = -(-len(torsions) // _MOST_TORSIONS) or 1
        self._torsions = torch.tensor(torsions[::stride], dtype=torch.int64).reshape(-1, 4)
        self._box = None if box_vectors is None else torch.tensor(box_vectors).double()
        self._rows: list[np.ndarray] = []
        self._stride, self._seen = 1, 0

    def add(self, positions: np.ndarray) -> None:
        """Add a frame: positions (copies, beads, 3), nm, of copies at one temperature."""
        if self._seen % self._stride == 0:
            self._rows.append(self.of(positions))
            if len(self._rows) > _MOST_FRAMES:
                self._rows = self._rows[::2]
                self._stride *= 2
        self._seen += 1

    def of(self, positions: np.ndarray) -> np.ndarray:
        """Return the coordinates of copies, (copies, coordinates)."""
        xyz = torch.as_tensor(np.asarray(positions), dtype=torch.float64)
        angles = geometry.dihedrals(xyz, self._torsions, self._box)
        parts = [angles.sin(), angles.cos()]
        if self._box is None:
            spread = (xyz - xyz.mean(1, keepdim=True)).square().sum(-1).mean(-1).sqrt()
            parts.append(spread.unsqueeze(1))
        return torch.cat(parts, dim=1).numpy().astype(np.float32)

    def effective_samples(self) -> float | None:
        """Return the effective sample size of the slowest coordinate; None if there is none."""
        if len(self._rows) < 4 or not self._rows[0].shape[1]:
            return None
        widths = {len(row) for row in self._rows}
        if len(widths) > 1:
            return None
        values = np.stack(self._rows)
        finite = np.isfinite(values).all(axis=(0, 2))
        return effective_sample_size(values[:, finite]) if finite.any() else None


def effective_samples(run: Run) -> float | None:
    """Return the effective sample size of the slowest coordinate of a run at one temperature.

    Nothing of the start is left out, so that copies that have not yet forgotten where they began
    count as few samples. Thinned where there are very many frames or copies.

    Args:
        run: e.g. `run.at_temperature(300)`.
    """
    if not len(run):
        return None
    places = run.positions.shape[1]
    keep = slice(None, None, -(-places // _MOST_PLACES))
    slow = SlowCoordinates(run.topology, run.info.get("box_vectors_nm"))
    for positions in run.positions[:, keep]:
        slow.add(positions)
    size = slow.effective_samples()
    return None if size is None else size * places / run.positions[:1, keep].shape[1]
