"""A PMF with an exact ensemble, run files whose frames a test chooses, scores of z-scores."""

from pathlib import Path

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from openmm_cgml import geometry
from openmm_cgml.flow.matching import MatchingFlow
from openmm_cgml.run_file import Checkpoint, RunWriter
from openmm_cgml.units import thermal_energy


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


def chi_square_z(z: np.ndarray) -> float:
    """By how many of its own standard errors sum z^2 differs from that of true z-scores."""
    z = np.ravel(z)
    return float((np.square(z).sum() - z.size) / np.sqrt(2 * z.size))


class GaussianFlow(MatchingFlow):
    """A continuous flow that stands still: its density is its Gaussian."""

    def _carried(self, positions, start, end):
        return positions, torch.zeros_like(positions[:, 0, 0])


def gaussian_flow(topology: cgml.CGTopology, width: float = 1.0) -> GaussianFlow:
    """The ensemble of `Springs` at 300 K, exactly, or one so many times as wide."""
    steps = np.diff(np.eye(len(topology)), axis=0)
    covariance = width**2 * thermal_energy(300) / 800 * np.linalg.pinv(steps.T @ steps)
    contacts = {"pairs": [], "closest": []}
    return GaussianFlow(topology, 300.0, contacts, covariance.tolist(), width=8, layers=1).double()


def springs_log_z(flow) -> float:
    """ln Z of `Springs` on mean-free positions, from its exact `gaussian_flow`."""
    variances = flow.spread.numpy() ** 2
    return float(1.5 * np.log(2 * np.pi * variances).sum())
