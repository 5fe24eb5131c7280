"""The contract of a flow: a normalised density of a molecule's shapes, with exact samples."""

import importlib
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import numpy as np

from ..dataset import CGDataset
from ..errors import InputError
from ..topology import CGTopology
from ..units import strip, thermal_energy
from .samples import Contacts, fit_to_teach

logger = logging.getLogger(__name__)

# Of the quadrature along each channel. The flow's dependence on a channel is smooth.
_POINTS = 16

# Share of the broader density in the frames that teach a PMF, of molecules of few torsions.
_EXPLORE, _FEW_TORSIONS = 0.25, 4


class Density(nn.Module, ABC):
    """What all densities of a molecule have: topology, temperature and a description.

    A subclass defines `log_prob` and `settings`, the constructor's keyword arguments besides
    topology and temperature.

    Attributes:
        objective: what `fit_flow` makes small: ``"likelihood"`` (minus it), or
            ``"flow_matching"``, for which the subclass defines `squared_error`.

    Args:
        topology: the beads or atoms, or what `arguments` has of them.
        temperature: of the frames it learns, K.
    """

    objective: str = "likelihood"

    def __init__(self, topology: CGTopology | dict[str, Any], temperature: float) -> None:
        super().__init__()
        if isinstance(topology, dict):
            topology = CGTopology.from_json(json.dumps(topology))
        self.topology, self.temperature = topology, float(temperature)
        self.beads = len(topology)

    @property
    def kt(self) -> float:
        """Thermal energy, kJ/mol."""
        return float(thermal_energy(self.temperature))

    @abstractmethod
    def log_prob(self, positions: Tensor) -> Tensor:
        """Return the log-density (frames,) of positions (frames, beads, 3), nm."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the constructor's further keyword arguments, JSON-able."""

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's keyword arguments, JSON-able."""
        return {
            "topology": json.loads(self.topology.to_json()),
            "temperature": self.temperature,
            **self.settings(),
        }

    def architecture(self) -> dict[str, Any]:
        """Return what `build` needs to make this density again, weights aside; JSON-able."""
        cls = type(self)
        return {"class": f"{cls.__module__}:{cls.__qualname__}", "arguments": self.arguments()}

    def squared_error(self, positions: Tensor, normals: Tensor, time: Tensor) -> Tensor:
        """Return the error of a velocity (frames,), of flow matching.

        Args:
            positions: (frames, beads, 3), nm.
            normals: (frames, beads, 3) standard normal numbers; those of the first bead are free.
            time: (frames,), uniform from 0 to 1.
        """
        raise NotImplementedError


class Flow(Density):
    """A density of the beads of one molecule, its centre of geometry at the origin.

    The measure is that of the 3 N - 3 coordinates left, nm^-(3 N - 3), with all orientations: the
    density does not change under rotation, and is normalised over all of them.

    A subclass defines `joint_log_prob`, `draw` and `settings`.

    Args:
        topology: the beads, or what `arguments` has of them.
        temperature: of the frames it learns, K.
        contacts: how close beads come in those frames, or what `arguments` has of that.
        channels: numbers besides the positions, standard normal and independent of them in the
            data, that the flow transforms along; the density of the positions is an integral over
            them.

    Reference: Papamakarios et al. 2021, arXiv:1912.02762; for the channels Huang et al. 2020,
    arXiv:2002.07101.
    """

    explores: bool = False

    def __init__(
        self,
        topology: CGTopology | dict[str, Any],
        temperature: float,
        contacts: Contacts | dict[str, Any],
        channels: int = 0,
    ) -> None:
        super().__init__(topology, temperature)
        if not 0 <= channels <= 2:
            raise InputError(f"a flow has {channels} channels; give 0, 1 or 2")
        self.contacts = Contacts(**contacts) if isinstance(contacts, dict) else contacts
        self.channels = channels
        # Plain arrays, not buffers, which would be rounded to the flow's precision.
        self._nodes, self._log_weights = _quadrature(channels, _POINTS)

    @abstractmethod
    def joint_log_prob(self, positions: Tensor, channels: Tensor) -> Tensor:
        """Return the log-density of positions and channels (frames,).

        Args:
            positions: (frames, beads, 3), nm; anywhere in space.
            channels: (frames, channels).
        """

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return positions (count, beads, 3), nm, mean-free, orientations at random."""

    def draw_broadly(self, count: int, generator: torch.Generator) -> Tensor:
        """Return frames of a broader density, which also covers barriers, (count, beads, 3), nm.

        Raises:
            InputError: if the flow knows none.
        """
        raise InputError(f"{type(self).__name__} has no broader density to explore; use explore=0")

    def log_breadth(self, positions: Tensor) -> Tensor:
        """Return ln of the density of `draw_broadly` over the flow's own (frames,)."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's keyword arguments, JSON-able."""
        own = {"contacts": self.contacts.to_dict(), "channels": self.channels}
        return {**super().arguments(), **own}

    def bound(self, positions: Tensor, normals: Tensor) -> Tensor:
        """Return a lower bound of the log-density, exact without channels, (frames,).

        What training makes large: its mean over the channels is at most `log_prob`, and is that
        where the flow's channels are independent of the positions.

        Args:
            positions: (frames, beads, 3), nm.
            normals: (frames, channels) standard normal numbers.
        """
        normals = normals[:, : self.channels]
        return self.joint_log_prob(positions, normals) - log_normal(normals)

    def smeared(self, positions: Tensor, normals: Tensor, width: float) -> Tensor:
        """Return frames with noise on each coordinate, (frames, beads, 3), nm.

        Args:
            positions: (frames, beads, 3), nm.
            normals: (frames, 3 beads) standard normal numbers.
            width: standard deviation of the noise, in units of each coordinate's own.

        Raises:
            InputError: if this kind of flow has no such coordinates.
        """
        raise InputError(f"{type(self).__name__} cannot smear frames; leave smearing out")

    def log_prob(self, positions: Tensor) -> Tensor:
        """Return the log-density (frames,), nm^-(3 N - 3).

        Channels are integrated over by Gauss-Hermite quadrature.

        Args:
            positions: (frames, beads, 3), nm; anywhere in space.

        Raises:
            InputError: if the number of beads is another.
        """
        if positions.dim() != 3 or tuple(positions.shape[1:]) != (self.beads, 3):
            raise InputError(
                f"positions have shape {tuple(positions.shape)}; this flow is of {self.beads} "
                "beads: (frames, beads, 3)"
            )
        return self.integrated(self.bound, positions.to(next(self.parameters())))

    def integrated(self, function: Callable[[Tensor, Tensor], Tensor], frames: Tensor) -> Tensor:
        """Return ln of the mean of exp(function) over normal channels (frames,).

        Args:
            function: of frames and channels (frames, channels), returns (frames,).
            frames: (frames, ...).
        """
        nodes = torch.as_tensor(self._nodes).to(frames)
        count, points = len(frames), len(nodes)
        repeated = frames.repeat_interleave(points, 0)
        values = function(repeated, nodes.repeat(count, 1)).view(count, points)
        return torch.logsumexp(values + torch.as_tensor(self._log_weights).to(frames), dim=1)

    def forces(self, positions: Tensor) -> Tensor:
        """Return kT times the gradient of the log-density, (frames, beads, 3), kJ/mol/nm."""
        with torch.enable_grad():
            leaf = positions.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.log_prob(leaf).sum(), leaf)
        return self.kt * gradient

    def sample(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return independent frames, and the log-density of each.

        Args:
            count: number of frames.
            seed: of the random numbers.

        Returns:
            Positions (count, beads, 3), nm, mean-free; log-densities (count,).
        """
        device = next(self.parameters()).device
        generator = torch.Generator(device=device).manual_seed(seed)
        with torch.no_grad():
            positions = self.draw(count, generator)
            return positions, self.log_prob(positions)

    def sample_dataset(
        self,
        count: int,
        *,
        explore: float | None = None,
        visited: Any = None,
        seed: int = 0,
        largest_force: Any = None,
        batch_size: int = 1024,
    ) -> CGDataset:
        """Return samples with their forces and weights, to teach a PMF by force matching.

        A part of the frames is drawn from a broader density: forces are right wherever they are
        evaluated, and what is learned of barriers keeps a PMF from inventing basins there, or
        from losing those behind. The weights make all frames together a sample of the flow.

        Frames in which beads are closer than in training are pushed apart: a repulsion is added
        to the forces, and its Boltzmann factor to the weight. What was left out and what the
        weights leave is logged, and kept in ``dataset.mapping["flow"]``.

        Args:
            count: samples to draw; the dataset has fewer if some are left out.
            explore: share of the broader density (`draw_broadly`), below one; None: a quarter
                for up to four torsions, else nothing, since most frames of many torsions at
                random are knots, and nothing where the flow knows no broader density.
            visited: (frames, beads, 3), nm, frames to add with the flow's forces and weight zero:
                those of a run of a PMF that the flow has taught, so that it unlearns the basins
                it has invented.
            seed: of the random numbers.
            largest_force: RMS component of the forces beyond which a sample is left out,
                kJ/mol/nm; None: five times the median.
            batch_size: samples whose forces are computed together.

        Raises:
            InputError: if none is left, the share is not from 0 to below 1, or visited frames are
                of other beads.
        """
        if explore is None:
            few = self.explores and 4 <= self.beads <= 3 + _FEW_TORSIONS
            explore = _EXPLORE if few else 0.0
        if not 0 <= explore < 1:
            raise InputError(f"explore is {explore}; give a share from 0 to below 1")
        limit = None
        if largest_force is not None:
            limit = strip(
                largest_force, "kilojoule/mole/nanometer", what="largest_force", positive=True
            )
        broad = round(explore * count)
        generator = torch.Generator(device=next(self.parameters()).device).manual_seed(seed)
        log_weights = torch.zeros(count, dtype=torch.float64)
        with torch.no_grad():
            positions = self.draw(count - broad, generator)
            if broad:
                positions = torch.cat([positions, self.draw_broadly(broad, generator)])
                ratio = torch.cat([self.log_breadth(x) for x in positions.split(batch_size)])
                log_weights = -(1 - explore + explore * ratio.double().exp()).log().cpu()
        extra = self._visited(visited, positions)
        positions = torch.cat([positions, extra])
        log_weights = torch.cat([log_weights, log_weights.new_full((len(extra),), -math.inf)])
        forces = torch.cat([self.forces(part) for part in positions.split(batch_size)])
        # In random order, so that any part of the dataset is like the whole.
        order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
        kept, total, weights, report = fit_to_teach(
            positions.cpu()[order], forces.cpu()[order], log_weights[order], broad, len(extra),
            self.kt, self.contacts, limit,
        )  # fmt: skip
        if report.kept == 0:
            raise InputError(f"{report.text()}: nothing to learn from; train the flow longer")
        logger.info("%s", report.text())
        return CGDataset(
            kept, self.topology, self.temperature, forces=total, weights=weights,
            mapping={"flow": report.to_dict()},
        )  # fmt: skip

    def _visited(self, visited: Any, like: Tensor) -> Tensor:
        """Return frames from elsewhere, centred."""
        if visited is None:
            return like[:0]
        frames = torch.as_tensor(np.asarray(visited)).to(like)
        if frames.dim() != 3 or tuple(frames.shape[1:]) != (self.beads, 3):
            raise InputError(
                f"visited frames have shape {tuple(frames.shape)}; give (frames, {self.beads}, 3)"
            )
        return frames - frames.mean(1, keepdim=True)


def build(architecture: dict[str, Any]) -> Density:
    """Make the untrained density that an architecture describes.

    Raises:
        InputError: if the class is not one of this package's flows.
    """
    module, _, name = str(architecture.get("class", "")).partition(":")
    cls = None
    if module.rpartition(".")[0] == __package__:
        try:
            cls = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError:
            pass
    if not (isinstance(cls, type) and issubclass(cls, Density)):
        raise InputError(f"architecture names {module}:{name}, which is not a flow")
    return cls(**architecture.get("arguments", {}))


def log_normal(values: Tensor) -> Tensor:
    """Return the log-density of standard normal numbers, summed over the last dimension."""
    return -0.5 * (values.square() + 1.8378770664093453).sum(-1)  # ln 2 pi


def _quadrature(dimensions: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Gauss-Hermite nodes (points^dimensions, dimensions) and the logs of their weights."""
    one, weights = np.polynomial.hermite_e.hermegauss(points)
    logs = np.log(weights / weights.sum())
    nodes, total = np.zeros((1, 0)), np.zeros(1)
    for _ in range(dimensions):
        nodes = np.concatenate(
            [np.repeat(nodes, points, 0), np.tile(one, len(nodes))[:, None]], axis=1
        )
        total = (total[:, None] + logs).ravel()
    return nodes, total
