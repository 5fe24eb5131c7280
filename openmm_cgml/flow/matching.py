"""Continuous flow on mean-free positions: a velocity that carries a Gaussian to the frames."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import numpy as np

from ..dataset import CGDataset
from ..errors import InputError
from .core import Flow, log_normal
from .samples import Contacts
from .velocity import Velocity

# Frames that share the solver's steps, and whose derivatives are in memory together.
_CHUNK = 256


class MatchingFlow(Flow):
    """Density that a velocity field makes of a Gaussian, dx/dt = v(x, t) from t = 0 to 1.

        ln q(x(1)) = ln N(x(0)) - int_0^1 div v dt

    The Gaussian is that of the frames in all orientations, N(0, C x 1) with C = <X X'> / 3, of
    rank N - 1. The velocity turns with the molecule, so that the density does not depend on the
    orientation. All is in the 3 N - 3 mean-free directions; the centre of mass has no part in it.
    The divergence is exact, one forward derivative for each of them, which is what it costs:
    some hundred times a `CouplingFlow`. It needs no bonds.

    Args:
        topology, temperature, contacts: as of `Flow`.
        covariance: C (beads, beads), nm^2.
        width, layers, heads: as of `Velocity`.
        tolerance: relative and absolute, of the adaptive solver (Dormand-Prince 5).
        channels: none.
        seed: of the initial weights.

    Raises:
        InputError: if there are channels.

    Reference: Lipman et al. 2023, arXiv:2210.02747; for noise that is turned onto the frames
    Klein et al. 2023, arXiv:2306.15030.
    """

    objective = "flow_matching"

    def __init__(
        self,
        topology: Any,
        temperature: float,
        contacts: Any,
        covariance: Sequence[Sequence[float]],
        width: int = 32,
        layers: int = 2,
        heads: int = 8,
        tolerance: float = 1e-5,
        channels: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(topology, temperature, contacts, channels)
        if channels:
            raise InputError("a continuous flow has no channels; leave them out")
        if heads < 3 or width % heads:
            raise InputError(f"width {width} is no multiple of heads {heads}, or these are not 3")
        self._settings = {
            "covariance": covariance,
            "width": width,
            "layers": layers,
            "heads": heads,
            "tolerance": tolerance,
            "seed": seed,
        }
        values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
        # The first, of eigenvalue 0, moves all beads alike. No buffers, which would be rounded to
        # the flow's precision.
        self.modes = torch.tensor(vectors[:, 1:].copy())
        self.spread = torch.tensor(np.maximum(values[1:], 1e-12) ** 0.5)
        self.size = float(self.spread.square().mean().sqrt())
        self.tolerance = float(tolerance)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.velocity = Velocity(self.beads, width, layers, heads)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's further arguments."""
        return self._settings

    def field(self, positions: Tensor, time: Tensor) -> Tensor:
        """Return the velocity (frames, beads, 3), nm.

        Args:
            positions: (frames, beads, 3), nm.
            time: (frames,), from 0 to 1.
        """
        return self.size * self.velocity(positions / self.size, time)

    def squared_error(self, positions: Tensor, normals: Tensor, time: Tensor) -> Tensor:
        """Return how far the velocity is from that of straight lines from noise to frames.

        Noise is turned onto its frame, which makes the lines shorter and leaves both ends'
        densities as they are, since neither depends on the orientation.

        Args:
            positions: (frames, beads, 3), nm.
            normals: (frames, beads, 3) standard normal numbers.
            time: (frames,), uniform from 0 to 1.

        Returns:
            (frames,), a degree of freedom, in units of the molecule's size.

        Reference: Lipman et al. 2023, arXiv:2210.02747, eq. 9 and 14.
        """
        ends = positions - positions.mean(1, keepdim=True)
        starts = _turned_onto(self._noise(normals[:, 1:]), ends)
        between = torch.lerp(starts, ends, time[:, None, None])
        gap = (self.field(between, time) - (ends - starts)) / self.size
        return gap.square().sum((1, 2)) / (3 * self.beads - 3)

    def joint_log_prob(self, positions: Tensor, channels: Tensor) -> Tensor:
        """Return the log-density (frames,); see `Flow`."""
        found = []
        for part in (positions - positions.mean(1, keepdim=True)).split(_CHUNK):
            starts, total = self._carried(part, 1.0, 0.0)
            found.append(self._log_noise(starts) + total)
        return torch.cat(found)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return positions (count, beads, 3), nm; see `Flow`."""
        return self._drawn(count, generator)[0]

    def sample(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return frames and their log-densities, both from one solution; see `Flow`."""
        generator = torch.Generator(device=next(self.parameters()).device).manual_seed(seed)
        with torch.no_grad():
            return self._drawn(count, generator)

    def divergence(self, positions: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity (frames, beads, 3), nm, and its exact divergence (frames,).

        Args:
            positions: (frames, beads, 3), nm, mean-free.
            time: (frames,).
        """
        axes = torch.eye(3, dtype=positions.dtype, device=positions.device)
        directions = torch.einsum("im,kl->mkil", self.modes.to(positions), axes).flatten(0, 1)

        def along(direction: Tensor) -> tuple[Tensor, Tensor]:
            velocity, change = torch.func.jvp(
                lambda x: self.field(x, time), (positions,), (direction.expand_as(positions),)
            )
            return velocity, (change * direction).sum((1, 2))

        velocities, slopes = torch.func.vmap(along)(directions)
        return velocities[0], slopes.sum(0)

    def _carried(self, positions: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        """Return positions at the end, and the integral of the divergence on the way."""
        from torchdiffeq import odeint

        def slope(time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return self.divergence(state[0], time.expand(len(positions)))

        times = torch.tensor([start, end], dtype=positions.dtype, device=positions.device)
        begin = (positions, torch.zeros_like(positions[:, 0, 0]))
        path, total = odeint(slope, begin, times, rtol=self.tolerance, atol=self.tolerance)
        return path[-1], total[-1]

    def _drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        like = next(self.parameters())
        shape = (count, self.beads - 1, 3)
        normals = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        frames, logs = [], []
        for starts in self._noise(normals).split(_CHUNK):
            ends, total = self._carried(starts, 0.0, 1.0)
            frames.append(ends)
            logs.append(self._log_noise(starts) - total)
        return torch.cat(frames), torch.cat(logs)

    def _noise(self, normals: Tensor) -> Tensor:
        """Return samples of the Gaussian (frames, beads, 3), nm, from (frames, beads - 1, 3)."""
        return torch.einsum("im,bmk->bik", (self.modes * self.spread).to(normals), normals)

    def _log_noise(self, positions: Tensor) -> Tensor:
        spread = self.spread.to(positions)
        normals = torch.einsum("im,bik->bmk", self.modes.to(positions), positions)
        return log_normal((normals / spread[:, None]).flatten(1)) - 3 * spread.log().sum()


def _turned_onto(positions: Tensor, targets: Tensor) -> Tensor:
    """Return frames turned as near to others as can be, without reflection; both mean-free."""
    with torch.no_grad():
        left, _, right = torch.linalg.svd(positions.transpose(1, 2) @ targets)
        signs = torch.ones_like(left[:, 0])
        signs[:, 2] = torch.det(left @ right).sign()
        turns = (left * signs[:, None]) @ right
    return positions @ turns


def matching(
    dataset: CGDataset,
    *,
    width: int = 32,
    layers: int = 2,
    heads: int = 8,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> MatchingFlow:
    """Return an untrained continuous flow for the molecule of a dataset.

    Args:
        dataset: gives the temperature and, by its weights, the covariance.
        width, layers, heads, tolerance, seed: as of `MatchingFlow`.

    Raises:
        InputError: if all frames have weight zero.
    """
    positions = np.asarray(dataset.positions, dtype=np.float64)
    positions = positions - positions.mean(1, keepdims=True)
    weighted = positions * dataset.probabilities[:, None, None]
    covariance = np.einsum("fik,fjk->ij", weighted, positions) / 3
    return MatchingFlow(
        dataset.topology, dataset.temperature, Contacts.of(dataset), covariance.tolist(),
        width=width, layers=layers, heads=heads, tolerance=tolerance, seed=seed,
    )  # fmt: skip
