"""A PMF with an exact ensemble, and run files whose frames a test chooses."""

from pathlib import Path

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from openmm_cgml import geometry
from openmm_cgml.run_file import Checkpoint, RunWriter


class Springs(cgml.PMF):
    """Springs of zero length along the chain: every bond vector is Gaussian."""

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        bonds = positions[:, 1:] - positions[:, :-1]
        return 400.0 * bonds.square().sum(dim=(1, 2))

    def arguments(self) -> dict:
        return {}


class PairNetwork(cgml.PMF):
    """A network of all distances, smooth, whose gradient nobody wrote by hand."""

    pairs: torch.Tensor
    decay: torch.Tensor

    def __init__(self, beads: int) -> None:
        super().__init__()
        self.beads = beads
        # Not contiguous, which a package must not take for granted.
        self.register_buffer("pairs", torch.triu_indices(beads, beads, offset=1).T)
        self.register_buffer("decay", torch.tensor([1.5, 3.0]))
        inputs = 2 * len(self.pairs)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(inputs, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        )

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        lengths = geometry.distances(positions, self.pairs, box_vectors)
        features = torch.exp(-self.decay * lengths.unsqueeze(-1)).flatten(1)
        return 10 * self.network(features).squeeze(-1)

    def arguments(self) -> dict:
        return {"beads": self.beads}


def write_run(path: Path, topology, positions: np.ndarray, **info) -> None:
    """Write a finished run with frames of one's own: positions (frames, copies, beads, 3)."""
    copies = positions.shape[1]
    info = {"copies": copies, "temperatures_K": [300.0], "training_temperature_K": 300.0, **info}
    writer = RunWriter(path, topology, info)
    for k, frame in enumerate(positions):
        add_frame(writer, 0.5 * (k + 1), frame)
    writer.flush(Checkpoint(len(positions), {}, {}, b""))
    writer.finish()


def add_frame(writer: RunWriter, time: float, positions: np.ndarray) -> None:
    """Add a frame of which only the positions matter."""
    none = np.zeros(len(positions))
    writer.add(
        positions=positions, time=time, energy=none, kinetic_energy=none, rung=none,
        sick=none, extrapolating=none,
    )  # fmt: skip
