"""Coupling flow on bonds, angles and torsions: smooth, of full support, inverted exactly."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import numpy as np

from .. import geometry
from ..dataset import CGDataset
from ..errors import InputError
from .core import Flow, log_normal
from .internal import ZMatrix
from .samples import Contacts
from .transforms import TRANSFORMS

#: Features of conditioning line coordinates are bounded, so that a frame far outside the data
#: changes where its own density goes, not that of everything conditioned on it.
_BOUND = 6.0


class Coupling(nn.Module):
    """Transforms some coordinates by parameters that a network makes of others.

    Args:
        kind: ``"circle"`` (radians) or ``"line"``.
        targets: which coordinates of that kind are transformed.
        circle, line: which coordinates of each kind the parameters depend on.
        transform: a name in `TRANSFORMS`.
        components: of each transform.
        width: hidden units of the network, which has two hidden layers.
    """

    targets: Tensor
    circle: Tensor
    line: Tensor

    def __init__(
        self,
        kind: str,
        targets: Sequence[int],
        circle: Sequence[int],
        line: Sequence[int],
        transform: str,
        components: int,
        width: int,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.transform = TRANSFORMS[transform][0 if kind == "circle" else 1]
        for name, indices in (("targets", targets), ("circle", circle), ("line", line)):
            self.register_buffer(name, torch.tensor(list(indices), dtype=torch.int64))
        outputs = len(targets) * self.transform.parameters(components)
        inputs = 4 * len(circle) + len(line)
        self.own = nn.Parameter(torch.zeros(outputs))
        self.network: nn.Module | None = None
        if inputs:
            last = nn.Linear(width, outputs, bias=False)
            nn.init.zeros_(last.weight)
            self.network = nn.Sequential(
                nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
            )

    def apply_to(
        self, circle: Tensor, line: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return both kinds of coordinates afterwards, and the log-derivative (frames,).

        Args:
            circle: (frames, torsions), radians.
            line: (frames, line coordinates).
            inverse: whether latent numbers become coordinates.
        """
        parameters = self.own.expand(len(circle), -1)
        if self.network is not None:
            angles, given = circle[:, self.circle], line[:, self.line]
            bounded = given / (1 + (given / _BOUND).square()).sqrt()
            twice = 2 * angles
            features = [angles.cos(), angles.sin(), twice.cos(), twice.sin(), bounded]
            parameters = parameters + self.network(torch.cat(features, dim=1))
        transform = self.transform(parameters.view(len(circle), len(self.targets), -1))
        values = (circle if self.kind == "circle" else line)[:, self.targets]
        new, log_slope = transform.inverse(values) if inverse else transform.forward(values)
        if self.kind == "circle":
            circle = circle.index_copy(1, self.targets, new)
        else:
            line = line.index_copy(1, self.targets, new)
        return circle, line, log_slope.sum(1)


class CouplingFlow(Flow):
    """Density of internal coordinates, p(torsions) p(angles | torsions) p(bonds | both).

    Angles enter as the logit of theta / pi and bonds as the logarithm, standardised, so that
    every angle in (0, pi) and every length has a density; channels as the logit of the normal
    distribution's integral. Torsions are on the circle. Latent numbers are uniform for torsions
    and logistic for the rest.

    Args:
        topology, temperature, contacts: as of `Flow`.
        rows: (bead, bond, angle, torsion partner) of each bead, of `ZMatrix`.
        angle_scale: mean and standard deviation of each angle's logit.
        bond_scale: mean and standard deviation of each bond's logarithm.
        torsion_scale: circular standard deviation of each torsion, radians; None: one.
        blocks: pairs of couplings of the torsions.
        angle_blocks: pairs of couplings of the angles.
        bond_blocks: pairs of couplings of the bonds; 0: given the rest they are independent.
        components: of each transform.
        width: hidden units of the networks.
        transform: ``"smooth"`` or ``"spline"``.
        channels: as of `Flow`.
        seed: of the initial weights.

    Reference: Koehler et al. 2023, doi:10.1021/acs.jctc.3c00016; the circle Rezende et al. 2020,
    arXiv:2002.02428; the line Ho et al. 2019, arXiv:1902.00275.
    """

    explores = True
    scale: Tensor
    torsion_spread: Tensor

    def __init__(
        self,
        topology: Any,
        temperature: float,
        contacts: Any,
        rows: Sequence[Sequence[int]],
        angle_scale: Sequence[Sequence[float]],
        bond_scale: Sequence[Sequence[float]],
        torsion_scale: Sequence[float] | None = None,
        blocks: int = 2,
        angle_blocks: int = 1,
        bond_blocks: int = 1,
        components: int = 8,
        width: int = 64,
        transform: str = "smooth",
        channels: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(topology, temperature, contacts, channels)
        if transform not in TRANSFORMS:
            raise InputError(f"transform is {transform!r}; choose {' or '.join(TRANSFORMS)}")
        self._settings = {
            "rows": [list(map(int, r)) for r in rows],
            "angle_scale": angle_scale,
            "bond_scale": bond_scale,
            "torsion_scale": torsion_scale,
            "blocks": blocks,
            "angle_blocks": angle_blocks,
            "bond_blocks": bond_blocks,
            "components": components,
            "width": width,
            "transform": transform,
            "seed": seed,
        }
        self.coordinates = ZMatrix(self.beads, rows)
        self.bonds, self.angles, self.torsions = self.coordinates.counts
        scale = torch.tensor([*angle_scale, *bond_scale], dtype=torch.float64).view(-1, 2)
        self.register_buffer("scale", scale)
        spread = [1.0] * self.torsions if torsion_scale is None else torsion_scale
        self.register_buffer(
            "torsion_spread", torch.tensor(spread, dtype=torch.float64), persistent=False
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(
                Coupling(kind, targets, circle, line, transform, components, width)
                for kind, targets, circle, line in self._plan(blocks, angle_blocks, bond_blocks)
            )

    def _plan(self, blocks: int, angle_blocks: int, bond_blocks: int) -> list[tuple]:
        """Return kind, targets and conditions of the couplings, from data to latent numbers."""
        circle = list(range(self.torsions))
        angles = list(range(self.angles))
        bonds = list(range(self.angles, self.angles + self.bonds))
        extra = list(range(self.angles + self.bonds, self.angles + self.bonds + self.channels))
        plan: list[tuple] = []
        for given, own, count in ((angles, bonds, bond_blocks), ([], angles, angle_blocks)):
            # The last pair sees the data itself; with none, coordinates are independent.
            for half, rest in _halves(own, count):
                plan.append(("line", half, circle, [*given, *rest]))
        plan = [entry for entry in plan if entry[1]]
        self.given_torsions = len(plan)
        for number, (half, rest) in enumerate(_halves(circle, blocks)):
            plan.append(("circle", half, rest, extra))
            if extra and number % 2:
                plan.append(("line", extra, circle, []))
        return [entry for entry in plan if entry[1]]

    def joint_log_prob(self, positions: Tensor, channels: Tensor) -> Tensor:
        """Return the log-density of positions and channels (frames,); see `Flow`."""
        bonds, angles, torsions = self.coordinates(positions)
        scale = self.scale.to(positions)
        lines = _lines(bonds, angles)
        extra, ratio = _logits(channels)
        line = torch.cat([(lines - scale[:, 0]) / scale[:, 1], extra], dim=1)
        total = -self.coordinates.log_volume(bonds, angles) - scale[:, 1].log().sum()
        total = total + log_normal(channels) + ratio - bonds.log().sum(1)
        total = total + (math.pi / (angles * (math.pi - angles))).log().sum(1)
        line, log_slope = self._to_latent(self.layers, torsions, line)
        return total + log_slope + _log_logistic(line) - self.torsions * math.log(2 * math.pi)

    def _to_latent(self, layers: Any, circle: Tensor, line: Tensor) -> tuple[Tensor, Tensor]:
        """Return the line's latent numbers, and the log-derivative of all (frames,)."""
        total = torch.zeros_like(line[:, 0])
        for layer in layers:
            circle, line, log_slope = layer.apply_to(circle, line, inverse=False)
            total = total + log_slope
        return line, total

    def smeared(self, positions: Tensor, normals: Tensor, width: float) -> Tensor:
        """Return frames with noise on bonds, angles and torsions; see `Flow`."""
        bonds, angles, torsions = self.coordinates(positions)
        spread = torch.cat([self.torsion_spread, self.scale[:, 1]]).to(positions)
        noise = width * spread * normals[:, : len(spread)]
        turned, moved = noise.split([self.torsions, len(self.scale)], dim=1)
        return self._positions(torsions + turned, _lines(bonds, angles) + moved)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return positions (count, beads, 3), nm; see `Flow`."""
        circle, line = self._latent(count, generator)
        for layer in reversed(self.layers[self.given_torsions :]):
            circle, line, _ = layer.apply_to(circle, line, inverse=True)  # type: ignore[operator]
        return self._placed(circle, line, generator)

    def draw_broadly(self, count: int, generator: torch.Generator) -> Tensor:
        """Return frames of any torsions, angles and bonds as the flow has them; see `Flow`."""
        circle, line = self._latent(count, generator)
        return self._placed(circle, line, generator)

    def log_breadth(self, positions: Tensor) -> Tensor:
        """Return ln of the density of `draw_broadly` over the flow's (frames,); see `Flow`."""
        torsions = self.coordinates(positions)[2]

        def density(frames: Tensor, channels: Tensor) -> Tensor:
            extra, ratio = _logits(channels)
            # Torsions depend on channels alone: any angles and bonds will do.
            line = torch.cat([extra.new_zeros(len(extra), len(self.scale)), extra], dim=1)
            layers = self.layers[self.given_torsions :]
            line, log_slope = self._to_latent(layers, frames, line)
            return ratio + log_slope + _log_logistic(line[:, len(self.scale) :])

        return -self.integrated(density, torsions)

    def _latent(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw latent numbers: uniform angles, and logistic ones."""
        made = self._made(generator)
        circle = math.pi * (2 * torch.rand(count, self.torsions, **made) - 1)
        tiny = math.log(torch.finfo(made["dtype"]).tiny)
        uniform = torch.rand(count, len(self.scale) + self.channels, **made)
        return circle, uniform.log().clamp(min=tiny) - (-uniform).log1p().clamp(min=tiny)

    def _placed(self, circle: Tensor, line: Tensor, generator: torch.Generator) -> Tensor:
        """Return frames with these torsions, the rest from latent numbers."""
        for layer in reversed(self.layers[: self.given_torsions]):
            circle, line, _ = layer.apply_to(circle, line, inverse=True)  # type: ignore[operator]
        scale = self.scale.to(line)
        positions = self._positions(circle, line[:, : len(scale)] * scale[:, 1] + scale[:, 0])
        return torch.einsum(
            "nij,nkj->nki", _rotations(len(circle), self._made(generator)), positions
        )

    def _positions(self, torsions: Tensor, lines: Tensor) -> Tensor:
        """Return frames from torsions and `_lines`."""
        angles = math.pi * lines[:, : self.angles].sigmoid()
        return self.coordinates.inverse(lines[:, self.angles :].exp(), angles, torsions)

    def _made(self, generator: torch.Generator) -> dict[str, Any]:
        like = next(self.parameters())
        return {"generator": generator, "device": like.device, "dtype": like.dtype}

    def settings(self) -> dict[str, Any]:
        """Return the constructor's further arguments."""
        return self._settings


def coupling(
    dataset: CGDataset,
    *,
    blocks: int = 2,
    angle_blocks: int = 1,
    bond_blocks: int = 1,
    components: int = 8,
    width: int = 64,
    transform: str = "smooth",
    channels: int = 0,
    seed: int = 0,
) -> CouplingFlow:
    """Return an untrained flow for the molecule of a dataset.

    Args:
        dataset: gives the bonds, the temperature, and (by its weights) where each bond and angle
            lies.
        blocks, angle_blocks, bond_blocks, components, width, transform, channels, seed: as of
            `CouplingFlow`.

    Raises:
        InputError: if not all beads are connected by bonds, or a molecule is torn across the
            boundaries of a periodic box, or all frames have weight zero.
    """
    if dataset.weights is not None and not np.sum(dataset.weights) > 0:
        raise InputError("all frames have weight zero; give frames that have some")
    _require_whole(dataset)
    coordinates = ZMatrix.of(dataset.topology)
    bonds, angles, torsions = coordinates(torch.as_tensor(dataset.positions, dtype=torch.float64))
    weights = None if dataset.weights is None else np.asarray(dataset.weights, dtype=np.float64)
    return CouplingFlow(
        dataset.topology, dataset.temperature, Contacts.of(dataset), coordinates.rows,
        _scale((angles / (math.pi - angles)).log().numpy(), weights),
        _scale(bonds.log().numpy(), weights),
        _circular_spread(torsions.numpy(), weights),
        blocks=blocks, angle_blocks=angle_blocks, bond_blocks=bond_blocks, components=components,
        width=width, transform=transform, channels=channels, seed=seed,
    )  # fmt: skip


def _lines(bonds: Tensor, angles: Tensor) -> Tensor:
    """Return what stands for angles and bonds on the line."""
    return torch.cat([(angles / (math.pi - angles)).log(), bonds.log()], dim=1)


def _logits(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of the normal distribution's integral, and ln of slope over density."""
    below, above = torch.special.log_ndtr(channels), torch.special.log_ndtr(-channels)
    return below - above, -(below + above).sum(1)


def _log_logistic(values: Tensor) -> Tensor:
    """Return the log-density of standard logistic numbers, summed over the last dimension."""
    return (values - 2 * nn.functional.softplus(values)).sum(1)


def _require_whole(dataset: CGDataset) -> None:
    """Refuse frames in which a bond leads to another image; whole molecules need no box."""
    if dataset.box is None:
        return
    ends = geometry.index_buffer(dataset.topology.bonds, 2)
    positions = torch.as_tensor(dataset.positions, dtype=torch.float64)
    boxes = torch.as_tensor(dataset.box, dtype=torch.float64)
    for number, (frame, box) in enumerate(zip(positions.split(1), boxes, strict=True)):
        moved = geometry.displacements(frame, ends, box) - geometry.displacements(frame, ends)
        torn = moved[0].abs().amax(1) > 1e-6
        if bool(torn.any()):
            first, second = ends[int(torn.nonzero()[0])].tolist()
            labels = [dataset.topology.label(bead) for bead in (first, second)]
            raise InputError(
                f"frame {number}: the molecule is torn across the boundary between {labels[0]} "
                f"and {labels[1]}; map it whole, as map_trajectory does"
            )


def _scale(values: np.ndarray, weights: np.ndarray | None) -> list[list[float]]:
    """Return mean and standard deviation of each column."""
    if values.shape[1] == 0:  # numpy cannot average nothing
        return []
    mean = np.average(values, axis=0, weights=weights)
    spread = np.average((values - mean) ** 2, axis=0, weights=weights) ** 0.5
    return np.stack([mean, np.maximum(spread, 1e-4)], axis=1).tolist()


def _circular_spread(values: np.ndarray, weights: np.ndarray | None) -> list[float]:
    """Return the circular standard deviation of each column, that of a flat one at most."""
    if values.shape[1] == 0:  # numpy cannot average nothing
        return []
    length = np.abs(np.average(np.exp(1j * values), axis=0, weights=weights))
    flat = math.pi / 3**0.5
    return np.minimum((-2 * np.log(length.clip(1e-300))) ** 0.5, flat).tolist()


def _halves(members: list[int], pairs: int) -> list[tuple[list[int], list[int]]]:
    """Return halves to be transformed in turn, each with the rest, which it depends on.

    Neighbours along the chain are in different halves, and in every second pair of halves those
    of the chain's two ends.
    """
    if pairs == 0 or len(members) == 1:
        return [(members, [])] if members else []
    found = []
    for number in range(pairs):
        middle = (len(members) + 1) // 2
        split = (members[::2], members[1::2]) if number % 2 == 0 else (
            members[:middle], members[middle:],
        )  # fmt: skip
        found += [(split[0], split[1]), (split[1], split[0])]
    return found


def _rotations(count: int, made: dict[str, Any]) -> Tensor:
    """Return uniformly random rotation matrices (count, 3, 3)."""
    w, x, y, z = nn.functional.normalize(torch.randn(count, 4, **made), dim=1).unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=1).view(count, 3, 3)
