"""Coarse-grained Boltzmann generators: samples of a flow, weighted to the ensemble of a PMF.

    w = exp(-U / kT) / q,    A = sum w A / sum w

with q the flow's exact density. The samples and their densities are drawn once (`propose`) and
weighted by any number of PMFs (`Proposal.weigh`), without dynamics.

Reference: arXiv:2602.10637; Noe et al. 2019, doi:10.1126/science.aaw1147, for the weights.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

import numpy as np

from . import geometry
from .dataset import CGDataset
from .errors import InputError
from .flow.core import Flow
from .pmf.core import PMF
from .reweight import (
    Estimate,
    WeightReport,
    block_bootstrap,
    block_sums,
    expectation,
    forward_fraction,
    log_mean,
    normalised,
    pareto_smoothed,
    weight_report,
    without_top,
)
from .topology import CGTopology, bonded_beads
from .units import thermal_energy

_CHUNK = 4096  # frames whose energies are computed together

# Share of frames in which a stereocentre has its own sense.
_ONE_SENSE = 0.9

# For errors of differences: independent samples in so many blocks.
_BLOCKS = 100


@dataclass(frozen=True, eq=False)
class Proposal:
    """Samples with the density that they were drawn from, to be weighted by PMFs.

    Attributes:
        positions: (samples, beads, 3), nm, independent.
        log_density: (samples,), nm^-(3 N - 3), all orientations; normalised.
        topology: the beads.
        temperature: K.
        held_out: frames of the all-atom ensemble that the flow has not learned from, with their
            weights; None: there are none, and a mode that the flow misses goes unnoticed.
        held_out_density: (frames,) of these.
        mirrored: (samples,) whether a stereocentre is the other way round (`mirror_images`):
            such samples get no weight, since PMFs know no more of mirror images than that they
            have never seen one, and many give them the same energy.
    """

    positions: np.ndarray
    log_density: np.ndarray
    topology: CGTopology
    temperature: float
    held_out: CGDataset | None = None
    held_out_density: np.ndarray | None = None
    mirrored: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def kt(self) -> float:
        """Thermal energy, kJ/mol."""
        return float(thermal_energy(self.temperature))

    def weigh(self, pmf: Any, *, clip: float = 0.0) -> "WeightedSamples":
        """Return the samples weighted to the ensemble of a PMF.

        Args:
            pmf: a `PMF`, a `Model`, or anything with ``energies(positions)`` (samples,), kJ/mol;
                its zero does not matter.
            clip: share of the samples, those of the largest weights, that are left out instead of
                Pareto smoothing; for comparison with figures made so, since it biases.

        Raises:
            InputError: if the PMF is of other beads or another temperature, or an energy is nan.
        """
        self._require_fitting(pmf)
        energies = energies_of(pmf, self.positions)
        logs = -energies / self.kt - self.log_density
        mirrored = 0.0
        if self.mirrored is not None:
            logs = np.where(self.mirrored, -np.inf, logs)
            mirrored = float(self.mirrored.mean())
        forward = None
        if self.held_out is not None and self.held_out_density is not None:
            found = energies_of(pmf, self.held_out.positions)
            forward = forward_fraction(
                -found / self.kt - self.held_out_density, self.held_out.probabilities
            )
        removed = 0.0
        used = None
        if clip:
            used, removed = without_top(logs, clip)
        return weighted_samples(
            self.positions, self.topology, self.temperature, logs, energies, used=used,
            forward=forward, removed=removed, mirrored=mirrored,
        )  # fmt: skip

    def _require_fitting(self, pmf: Any) -> None:
        other = getattr(pmf, "topology", None)
        if isinstance(other, CGTopology) and len(other) != len(self.topology):
            raise InputError(
                f"the flow has {len(self.topology)} beads and the PMF {len(other)}; train both on "
                "one map"
            )
        own = getattr(pmf, "temperature", None)
        if isinstance(own, float) and abs(own - self.temperature) > 0.5:
            raise InputError(
                f"the flow is of {self.temperature:g} K and the PMF of {own:g} K; a PMF is a free "
                "energy of its own temperature: train both at one"
            )


def propose(
    flow: Flow,
    count: int,
    *,
    seed: int = 0,
    broad: float = 0.0,
    held_out: CGDataset | None = None,
) -> Proposal:
    """Draw samples and their densities from a flow.

    Args:
        flow: in double precision, as `load_flow` returns it.
        count: samples.
        seed: of the random numbers.
        broad: share drawn from the flow's broader density (`Flow.draw_broadly`); the density is
            then that of the mixture, weights stay exact, and basins that a PMF has where the flow
            has no samples show.
        held_out: frames of the all-atom ensemble that the flow has not learned from.

    Raises:
        InputError: if counts or beads do not fit.
    """
    if count < 2:
        raise InputError(f"count is {count}; draw at least 2 samples")
    if not 0 <= broad < 1:
        raise InputError(f"broad is {broad}; give a share from 0 to below 1")
    _require_same_ensemble(flow, held_out)
    many = min(round(broad * count), count - 1)
    broad = many / count
    positions, log_density = flow.sample(count - many, seed)
    if many:
        generator = torch.Generator(device=positions.device).manual_seed(seed + 1)
        with torch.no_grad():
            more = flow.draw_broadly(many, generator)
            log_density = torch.cat([log_density, flow.log_prob(more)])
            positions = torch.cat([positions, more])
        log_density = _mixed(flow, positions, log_density, broad)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        positions, log_density = positions[order], log_density[order]
    return _proposal(flow, positions, log_density, held_out, broad)


def log_densities(flow: Flow, positions: Any) -> torch.Tensor:
    """Return log-densities (frames,) in double precision, in parts that fit in memory.

    Args:
        flow: in double precision.
        positions: (frames, beads, 3), nm.
    """
    frames = torch.as_tensor(positions, dtype=torch.float64)
    with torch.no_grad():
        return torch.cat([flow.log_prob(x).double().cpu() for x in frames.split(_CHUNK)])


def _require_same_ensemble(flow: Flow, held_out: CGDataset | None) -> None:
    if held_out is not None and abs(held_out.temperature - flow.temperature) > 0.5:
        raise InputError(
            f"the flow is of {flow.temperature:g} K and the held-out frames of "
            f"{held_out.temperature:g} K; give frames of the flow's ensemble"
        )


def _proposal(
    flow: Flow, positions: Any, log_density: Any, held_out: CGDataset | None, broad: float
) -> Proposal:
    density = None
    if held_out is not None:
        frames = torch.as_tensor(held_out.positions, dtype=torch.float64)
        found = log_densities(flow, frames)
        density = (_mixed(flow, frames, found, broad) if broad else found).numpy()
    drawn = positions.double().cpu().numpy()
    like = drawn if held_out is None else held_out.positions
    return Proposal(
        drawn, log_density.double().cpu().numpy(), flow.topology, flow.temperature, held_out,
        density, mirror_images(drawn, flow.topology, like),
    )  # fmt: skip


def mirror_images(positions: np.ndarray, topology: CGTopology, like: np.ndarray) -> np.ndarray:
    """Return which frames have a stereocentre the other way round than frames to go by.

    A stereocentre is a bead with three bonds or more, the first three of which have the same
    sense in nine of ten frames to go by; planar ones have either.

    Args:
        positions: (frames, beads, 3), nm.
        topology: the bonds.
        like: (others, beads, 3), nm, to go by.

    Returns:
        (frames,) bool.
    """
    found = np.zeros(len(positions), dtype=bool)
    for centre, others in bonded_beads(topology.bonds).items():
        if len(others) < 3:
            continue
        sense = handedness(like, centre, sorted(others)[:3])
        if abs(sense.mean()) >= 2 * _ONE_SENSE - 1:
            found |= handedness(positions, centre, sorted(others)[:3]) * sense.mean() < 0
    return found


def handedness(positions: np.ndarray, centre: int, others: list[int]) -> np.ndarray:
    """Return the sign of the triple product of three bonds (frames,).

    Args:
        positions: (frames, beads, 3), nm.
        centre: the bead that the bonds begin at.
        others: the three they end at.
    """
    ends = torch.tensor([[centre, other] for other in others])
    bonds = geometry.displacements(torch.as_tensor(np.asarray(positions)), ends).unbind(1)
    volume = (bonds[0] * torch.linalg.cross(bonds[1], bonds[2])).sum(-1)
    return volume.sign().double().numpy()


def _mixed(flow: Flow, positions: torch.Tensor, log_density: Any, broad: float) -> torch.Tensor:
    """Return the log-density of the mixture with the broader one."""
    with torch.no_grad():
        ratio = torch.cat([flow.log_breadth(x) for x in positions.split(_CHUNK)])
    return log_density + torch.logaddexp(
        torch.full_like(ratio, math.log(1 - broad)), ratio + math.log(broad)
    )


@dataclass(frozen=True, eq=False)
class WeightedSamples:
    """Frames with weights that make them an ensemble of a PMF.

    Attributes:
        positions: (samples, beads, 3), nm, independent.
        topology: the beads.
        temperature: K.
        log_weights: (samples,) those used: Pareto-smoothed, or clipped; normalised.
        raw_log_weights: (samples,) before that.
        energies: (samples,) of the PMF, kJ/mol.
        report: what the raw weights are worth.
        free_energy: -kT ln Z of the PMF, kJ/mol: what to add to its energies so that they are
            -kT ln of a density, nm^-(3 N - 3), all orientations.
    """

    positions: np.ndarray
    topology: CGTopology
    temperature: float
    log_weights: np.ndarray
    raw_log_weights: np.ndarray
    energies: np.ndarray
    report: WeightReport
    free_energy: Estimate

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def kt(self) -> float:
        """Thermal energy, kJ/mol."""
        return float(thermal_energy(self.temperature))

    @cached_property
    def weights(self) -> np.ndarray:
        """(samples,) probabilities; they sum to one."""
        return normalised(self.log_weights)

    def expectation(self, values: Any, unit: str = "") -> Any:
        """Return the mean of an observable, or of several.

        Args:
            values: (samples,) or (samples, observables), or a function of positions that returns
                such.
            unit: of the values.

        Returns:
            An `Estimate`, or a list of them.
        """
        array = np.asarray(values(self.positions) if callable(values) else values, dtype=float)
        mean, error = expectation(self.log_weights, array)
        if array.ndim == 1:
            return Estimate(mean, error, unit, self.report.problems)
        return [
            Estimate(float(m), float(e), unit, self.report.problems)
            for m, e in zip(mean, error, strict=True)
        ]

    def free_energy_difference(self, first: Any, second: Any, seed: int = 0) -> Estimate:
        """Return F(second) - F(first) = -kT ln(p_second / p_first) of two states, kJ/mol.

        Args:
            first, second: (samples,) whether a sample is in the state.
            seed: of the block bootstrap for the error.
        """
        masks = np.stack([np.asarray(first, bool), np.asarray(second, bool)], axis=1)
        if len(masks) != len(self):
            raise InputError(f"states are of {len(masks)} samples; there are {len(self)}")
        sums = block_sums(self.weights[:, None] * masks, _BLOCKS)

        def difference(total: np.ndarray) -> float:
            with np.errstate(divide="ignore", invalid="ignore"):
                return float(-self.kt * (np.log(total[1]) - np.log(total[0])))

        value, error = block_bootstrap(sums, difference, seed=seed)
        return Estimate(value, error, "kJ/mol", self.report.problems)

    def dataset(self) -> CGDataset:
        """Return the samples as a dataset whose weights, of mean one, are those used."""
        return CGDataset(
            self.positions,
            self.topology,
            self.temperature,
            weights=self.weights * len(self),
            mapping={"boltzmann": self.report.record()},
        )

    def resample(self, count: int, seed: int = 0) -> np.ndarray:
        """Return frames drawn by their weights (count, beads, 3), nm; some more than once."""
        return self.positions[systematic(self.weights, count, seed)]


def weighted_samples(
    positions: np.ndarray,
    topology: CGTopology,
    temperature: float,
    log_weights: np.ndarray,
    energies: np.ndarray,
    *,
    used: np.ndarray | None = None,
    log_z: tuple[float, float] | None = None,
    forward: float | None = None,
    removed: float = 0.0,
    mirrored: float = 0.0,
) -> WeightedSamples:
    """Return weighted samples with their report.

    Args:
        positions, topology, temperature, energies: as of `WeightedSamples`.
        log_weights: (samples,), raw.
        used: clipped ones; None: smoothed here.
        log_z: ln Z of the PMF and its error; None: the mean weight.
        forward, removed, mirrored: as of `WeightReport`.
    """
    smoothed, shape = pareto_smoothed(log_weights)
    report = weight_report(log_weights, forward, removed, mirrored, shape)
    value, error = log_mean(log_weights) if log_z is None else log_z
    kt = float(thermal_energy(temperature))
    return WeightedSamples(
        positions, topology, temperature,
        smoothed if used is None else used, log_weights, energies, report,
        Estimate(-kt * value, kt * error, "kJ/mol", report.problems),
    )  # fmt: skip


def systematic(probabilities: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return indices, each as often as count times its probability to within one, shuffled.

    Args:
        probabilities: (samples,), summing to one.
        count: indices to return.
        seed: of the random numbers.

    Reference: Douc and Cappe 2005, arXiv:cs/0507025.
    """
    generator = np.random.default_rng(seed)
    places = (np.arange(count) + generator.random()) / count
    found = np.searchsorted(np.cumsum(probabilities), places)
    return generator.permutation(found.clip(0, len(probabilities) - 1))


def energies_of(pmf: Any, positions: np.ndarray) -> np.ndarray:
    """Return energies (frames,) in double precision, kJ/mol, of a PMF or whatever has `energies`.

    Raises:
        InputError: if one is nan.
    """
    if isinstance(pmf, PMF):
        like = next(iter(pmf.parameters()), torch.zeros((), dtype=torch.float64))
        frames = torch.as_tensor(np.asarray(positions))
        with torch.no_grad():
            found = torch.cat([pmf(x.to(like)).double().cpu() for x in frames.split(_CHUNK)])
        energies = found.numpy()
    else:
        energies = np.asarray(pmf.energies(positions), dtype=np.float64)
    if bad := int(np.isnan(energies).sum()):
        raise InputError(
            f"{bad} of {len(energies)} energies of the PMF are nan; it was not trained to the "
            "end, or cannot be evaluated in this precision"
        )
    return energies
