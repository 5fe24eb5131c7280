"""Mapping entropy: what beads leave open about the atoms, along a trajectory and between maps.

    W(R) = E(R) - T S(R),    S(R) = -k < ln [pi(r) / pi(R)] >_R

W is the potential of mean force, -kT ln of the integral of exp(-u / kT) over the fiber of R; E the
mean of u on it. S is an entropy of a density: it depends on the unit of length, here nm, and every
number says so. With c the coordinates in the null space of the map, of which there are d,

    S / k = h(c | R) - ln det(M M') / 2        (three axes)

The second term, 0 for slices, is a constant of the map, of no interest along a trajectory; maps
are compared by h(c | R).

Reference: arXiv:2511.01464; Foley et al. 2015, doi:10.1063/1.4929836, for W = E - T S.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .backmapping import BeadFrames, loaded, read_beads
from .correlation import mean_and_error, statistical_inefficiency
from .errors import InputError
from .molecules import require_copies
from .progress import ProgressBar
from .reweight import log_mean
from .units import GAS_CONSTANT

if TYPE_CHECKING:  # torch takes seconds to import
    from .flow.fiber import FiberFlow, Solver

#: What an entropy is counted from.
REFERENCES = ("length", "noise", "volume")

_UNITS = {"nm": 1.0, "angstrom": 10.0}

# Frames whose samples are generated together.
_SAMPLES = 256


@dataclass(frozen=True, eq=False)
class MappingEntropy:
    """Entropies of the fibers of some frames, in units of k (nats).

    Attributes:
        values: (frames,) S / k of each, in the convention below.
        errors: (frames,) their standard errors; nan where unknown.
        removed: degrees of freedom d that the map removes.
        estimator: ``"model"``: of the split-flow's own samples. ``"data"``: minus its mean
            log-density of all-atom frames, the true entropy plus the relative entropy of the
            frames to the flow, on average over frames an upper bound; one value is no entropy.
        reference: ``"length"``: densities are per nm or Angstrom. ``"noise"``: less the entropy of
            the split-flow's noise. ``"volume"``: less that of atoms spread as the whole molecule
            is, the only one by which maps of different numbers of beads can be compared.
        length_unit: of ``"length"``.
        convention: ``"thermodynamic"``: S of W = E - T S. ``"coordinates"``: h(c | R), to compare
            maps. ``"information"``: minus that, the relative entropy to a flat fiber that some
            authors call information loss.
        weights: (frames,) summing to one.
    """

    values: np.ndarray
    errors: np.ndarray
    removed: int
    estimator: str
    reference: str
    length_unit: str
    convention: str
    weights: np.ndarray

    @property
    def per_degree(self) -> np.ndarray:
        """(frames,) a removed degree of freedom."""
        return self.values / self.removed

    @property
    def mean(self) -> tuple[float, float]:
        """Mean over the frames and its standard error, of correlated frames."""
        if np.ptp(self.values) < 1e-9 * (1 + np.abs(self.values).max()):
            return float(self.values.mean()), 0.0
        if np.ptp(self.weights) < 1e-12 * self.weights.max():
            return mean_and_error(self.values)
        mean = float(self.weights @ self.values)
        # Frames that count differently: the effective number of them, less for correlation.
        effective = 1 / np.square(self.weights).sum() / statistical_inefficiency(self.values)
        spread = float(self.weights @ (self.values - mean) ** 2)
        return mean, (spread / max(effective - 1, 1)) ** 0.5

    @property
    def unit(self) -> str:
        """What a number is, in words."""
        since = {
            "length": f"densities per {self.length_unit}",
            "noise": "relative to the split-flow's noise",
            "volume": "relative to atoms spread as the molecule",
        }[self.reference]
        named = {"thermodynamic": "S/k, W = E - TS", "coordinates": "h(c|R)",
                 "information": "-h(c|R), information in the fiber"}[self.convention]  # fmt: skip
        return f"nats; {named}; {since}; {self.estimator} estimator"

    def text(self) -> str:
        """Return the mean in a line."""
        mean, error = self.mean
        return (
            f"{mean:.3f} ± {error:.3f} ({mean / self.removed:.4f} ± {error / self.removed:.4f} a "
            f"removed degree of freedom, {self.removed} of them) {self.unit}"
        )

    def record(self) -> dict[str, Any]:
        """Return the mean, JSON-able."""
        mean, error = self.mean
        return {
            "mean": mean, "error": error, "per_degree": mean / self.removed,
            "per_degree_error": error / self.removed, "removed": self.removed,
            "frames": len(self.values), "unit": self.unit,
        }  # fmt: skip


def mapping_entropy(
    flow: Any,
    source: Any,
    samples: int = 8,
    *,
    top: Any = None,
    stride: int = 1,
    density: str = "exact",
    solver: "Solver | None" = None,
    reference: str = "length",
    length_unit: str = "nm",
    convention: str = "thermodynamic",
    seed: int = 0,
    progress: bool | None = None,
) -> MappingEntropy:
    """Return S(R) of frames of beads, by samples of a split-flow (the model estimator).

        S / k = -< ln q(c | R) >

    Args:
        flow: a `FiberFlow` of one molecule, or its file.
        source, top, stride: beads, as of `read_beads`.
        samples: of each frame, two or more.
        density: ``"exact"``, or ``"hutchinson"``: random directions, as right on average, for
            large molecules.
        solver: None: Runge-Kutta of fourth order in 40 steps.
        reference, length_unit, convention: as of `MappingEntropy`.
        seed: of the samples.
        progress: show a bar; None: if the output is a terminal.

    Raises:
        InputError: if beads or choices do not fit.
    """
    flow = loaded(flow)
    frames = source if isinstance(source, BeadFrames) else read_beads(source, top, stride=stride)
    _require_one(flow, frames)
    if samples < 2:
        raise InputError(f"samples is {samples}; give at least 2, for error bars")
    values = np.empty((len(frames), samples))
    size = max(1, _SAMPLES // samples)
    with ProgressBar(progress, len(frames), "entropies") as bar:
        for start in range(0, len(frames), size):
            bar.update(start, f"frame {start} of {len(frames)}")
            part = np.repeat(frames.positions[start : start + size], samples, 0)
            found = flow.entropies(part, seed + start, solver=solver, density=density)
            values[start : start + size] = found.cpu().numpy().reshape(-1, samples)
    return _entropy(
        flow, values.mean(1), values.std(1, ddof=1) / samples**0.5, "model", reference,
        length_unit, convention, frames.weights, frames.positions,
    )  # fmt: skip


def data_entropy(
    flow: Any,
    positions: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    density: str = "exact",
    solver: "Solver | None" = None,
    reference: str = "length",
    length_unit: str = "nm",
    convention: str = "thermodynamic",
    seed: int = 0,
) -> MappingEntropy:
    """Return minus ln q(c | R) of all-atom frames (the data estimator).

    Its mean is that of S(R) / k plus the relative entropy of the frames to the split-flow: it is
    above the model's estimate where the flow is too narrow or misses something. Take frames that
    it has not learned from.

    Args:
        flow: a `FiberFlow` of one molecule, or its file.
        positions: (frames, atoms, 3), nm, whole molecules.
        weights: (frames,) of frames of a biased run.
        density, solver, reference, length_unit, convention, seed: as of `mapping_entropy`.
    """
    flow = loaded(flow)
    atoms = np.asarray(positions, dtype=np.float64)
    logs = flow.log_prob(atoms, solver=solver, density=density, seed=seed).cpu().numpy()
    return _entropy(
        flow, -logs, np.full(len(logs), np.nan), "data", reference, length_unit, convention,
        weights, flow.fiber.beads_of(atoms),
    )  # fmt: skip


def _entropy(
    flow: "FiberFlow", values: np.ndarray, errors: np.ndarray, estimator: str, reference: str,
    length_unit: str, convention: str, weights: np.ndarray | None, beads: np.ndarray,
) -> MappingEntropy:  # fmt: skip
    """Return entropies h(c | R) in nm in another convention."""
    if reference not in REFERENCES:
        raise InputError(f"reference {reference!r} is unknown; choose of {', '.join(REFERENCES)}")
    if length_unit not in _UNITS:
        raise InputError(f"length unit {length_unit!r} is unknown; choose nm or angstrom")
    if convention not in ("thermodynamic", "coordinates", "information"):
        raise InputError(
            f"convention {convention!r} is unknown; choose thermodynamic, coordinates or "
            "information"
        )
    if reference == "length":
        values = values + flow.removed * math.log(_UNITS[length_unit])
    elif reference == "noise":
        values = values - gaussian_entropy(flow.noise.numpy())
    else:
        values = values - gaussian_entropy(np.full(flow.removed // 3, _size(beads)))
    if convention == "thermodynamic":
        # A constant of the map, without a unit: beads and c are lengths both.
        values = values - flow.fiber.log_volume
    elif convention == "information":
        values = -values
    shares = np.full(len(values), 1 / len(values)) if weights is None else np.asarray(weights)
    return MappingEntropy(
        values, errors, flow.removed, estimator, reference, length_unit, convention,
        shares / shares.sum(),
    )  # fmt: skip


def gaussian_entropy(widths: np.ndarray) -> float:
    """Return the entropy of Gaussians of these standard deviations on three axes, nats."""
    return float(3 * (0.5 * math.log(2 * math.pi * math.e) + np.log(widths)).sum())


def _size(beads: np.ndarray) -> float:
    """Return the standard deviation of beads about their centre, one axis, nm."""
    return float((beads - beads.mean(1, keepdims=True)).std())


def _require_one(flow: "FiberFlow", frames: BeadFrames) -> None:
    if require_copies(frames.topology, flow.bead_topology, "the trajectory") > 1:
        raise InputError(
            "the trajectory is of several molecules, and entropies are of one; take one molecule "
            "a frame (single_molecules)"
        )


# ---------------------------------------------------------------- averages and energies


def fiber_average(
    flow: Any,
    source: Any,
    observable: Callable[[np.ndarray], np.ndarray],
    samples: int = 8,
    *,
    top: Any = None,
    seed: int = 0,
    solver: "Solver | None" = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of an observable over the atoms of each frame of beads.

    Args:
        flow, source, top, samples, seed, solver: as of `mapping_entropy`.
        observable: of positions (structures, atoms, 3), nm, returns (structures,).

    Returns:
        Means (frames,) and their standard errors (frames,).

    Reference: arXiv:2511.01464, proposition A.2.
    """
    flow = loaded(flow)
    frames = source if isinstance(source, BeadFrames) else read_beads(source, top)
    _require_one(flow, frames)
    found = np.empty((len(frames), samples))
    size = max(1, _SAMPLES // samples)
    for start in range(0, len(frames), size):
        part = np.repeat(frames.positions[start : start + size], samples, 0)
        atoms = flow.sample(part, seed + start, solver=solver)[0].cpu().numpy()
        found[start : start + size] = np.asarray(observable(atoms)).reshape(-1, samples)
    return found.mean(1), found.std(1, ddof=1) / samples**0.5


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Energy, entropy and potential of mean force of frames of beads.

    Attributes:
        energy: (frames,) E_q(R), the mean of u over the split-flow's samples, kJ/mol.
        entropy: (frames,) T S_q(R), kJ/mol, of these samples, densities per nm.
        mean_force_potential: (frames,) W(R) = -kT ln < exp(-u / kT) / q >, kJ/mol, which does not
            depend on how good the split-flow is.
        energy_error, entropy_error, mean_force_potential_error: (frames,) standard errors.
        effective: (frames,) effective samples of W.
        temperature: K.
    """

    energy: np.ndarray
    entropy: np.ndarray
    mean_force_potential: np.ndarray
    energy_error: np.ndarray
    entropy_error: np.ndarray
    mean_force_potential_error: np.ndarray
    effective: np.ndarray
    temperature: float

    @property
    def gap(self) -> np.ndarray:
        """(frames,) E_q - T S_q - W, kJ/mol: kT times the relative entropy of q, never negative.

        With finite samples W is too high and the gap too small, the more so the fewer are
        effective.
        """
        return self.energy - self.entropy - self.mean_force_potential


def decompose(
    flow: Any,
    source: Any,
    energy: Callable[[np.ndarray], np.ndarray],
    samples: int = 64,
    *,
    top: Any = None,
    seed: int = 0,
    solver: "Solver | None" = None,
) -> Decomposition:
    """Return W = E - T S of frames of beads, each part by itself.

    Args:
        flow: a `FiberFlow` of one molecule, of all the atoms that the energy is of.
        source, top, samples, seed, solver: as of `mapping_entropy`; densities are exact.
        energy: of positions (structures, atoms, 3), nm, returns (structures,), kJ/mol; see
            `atomistic.system_energies`.

    Raises:
        InputError: as `mapping_entropy`.
    """
    flow = loaded(flow)
    frames = source if isinstance(source, BeadFrames) else read_beads(source, top)
    _require_one(flow, frames)
    kt = GAS_CONSTANT * flow.temperature
    rows = []
    size = max(1, _SAMPLES // samples)
    for start in range(0, len(frames), size):
        part = np.repeat(frames.positions[start : start + size], samples, 0)
        atoms, found = flow.sample(part, seed + start, solver=solver, density="exact")
        assert found is not None
        u = np.asarray(energy(atoms.cpu().numpy()), dtype=np.float64).reshape(-1, samples)
        log_q = found.cpu().numpy().reshape(-1, samples) + flow.fiber.log_volume
        for one, log in zip(u, log_q, strict=True):
            logs = -one / kt - log
            value, error = log_mean(logs)
            shares = np.exp(logs - logs.max())
            rows.append([
                one.mean(), -kt * log.mean(), -kt * value, one.std(ddof=1) / samples**0.5,
                kt * log.std(ddof=1) / samples**0.5, kt * error,
                shares.sum() ** 2 / np.square(shares).sum(),
            ])  # fmt: skip
    columns = np.array(rows).T
    return Decomposition(
        columns[0],
        columns[1],
        columns[2],
        columns[3],
        columns[4],
        columns[5],
        columns[6],
        flow.temperature,
    )


# ---------------------------------------------------------------- which map


@dataclass(frozen=True)
class MapEntropy:
    """What one map leaves open; see `compare_mappings`.

    Attributes:
        name: of the map.
        beads: how many.
        model, data: by both estimators.
    """

    name: str
    beads: int
    model: MappingEntropy
    data: MappingEntropy

    @property
    def gap(self) -> tuple[float, float]:
        """Data less model estimate, nats, and its error: what the fit leaves."""
        return (
            self.data.mean[0] - self.model.mean[0],
            math.hypot(self.data.mean[1], self.model.mean[1]),
        )

    def text(self) -> str:
        """Return the numbers in a line."""
        gap, error = self.gap
        mean, own = self.data.mean
        return (
            f"{self.name}: {self.beads} beads, {mean:.2f} ± {own:.2f} by the data, "
            f"{self.model.mean[0]:.2f} ± {self.model.mean[1]:.2f} by the model (gap {gap:.2f} ± "
            f"{error:.2f}), {mean / self.data.removed:.4f} a removed degree of freedom"
        )


def compare_mappings(
    flows: Mapping[str, Any],
    positions: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    samples: int = 2,
    density: str = "exact",
    solver: "Solver | None" = None,
    reference: str = "length",
    seed: int = 0,
) -> list[MapEntropy]:
    """Return split-flows of several maps of one molecule, that of the least entropy first.

    The entropy h(c | R) is what the beads do not tell about the atoms: the information that is
    lost. By the data estimator, an upper bound, since a split-flow that has learned less would
    otherwise seem to lose less.

    Args:
        flows: name -> `FiberFlow` or its file, of the same atoms.
        positions: (frames, atoms, 3), nm, that none has learned from.
        weights: (frames,) of frames of a biased run.
        samples: of each frame, for the model's estimate.
        density, solver: as of `mapping_entropy`.
        reference: as of `MappingEntropy`.
        seed: of the samples.

    Raises:
        InputError: if atoms differ, or maps of different numbers of beads are not compared by
            volume: the order would depend on the unit of length.
    """
    several = {name: loaded(flow) for name, flow in flows.items()}
    if len({flow.removed for flow in several.values()}) > 1 and reference != "volume":
        counts = ", ".join(f"{n}: {len(f.bead_topology)}" for n, f in several.items())
        raise InputError(
            f"the maps have different numbers of beads ({counts}), and by nm or Angstrom their "
            "order would differ; compare them with reference='volume'"
        )
    names = {flow.topology.bead_names for flow in several.values()}
    if len(names) > 1:
        raise InputError("the split-flows are of different atoms; train all on the same frames")
    found = []
    for name, flow in several.items():
        beads = flow.fiber.beads_of(np.asarray(positions, dtype=np.float64))
        choice: dict[str, Any] = {
            "density": density, "reference": reference, "convention": "coordinates", "seed": seed,
            "solver": solver,
        }  # fmt: skip
        frames = BeadFrames(beads, flow.bead_topology, None, weights)
        found.append(
            MapEntropy(
                name, len(flow.bead_topology),
                mapping_entropy(flow, frames, samples, **choice),
                data_entropy(flow, positions, weights=weights, **choice),
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: one.data.mean[0])


def differences(ranked: Sequence[MapEntropy]) -> list[tuple[float, float]]:
    """Return by how much each map loses more than the first, nats, with errors, frame by frame."""
    first = ranked[0].data
    found = []
    for one in ranked:
        gap = one.data.values - first.values
        weights = one.data.weights
        mean = float(weights @ gap)
        effective = 1 / np.square(weights).sum() / statistical_inefficiency(gap)
        spread = float(weights @ (gap - mean) ** 2)
        found.append((mean, (spread / max(effective - 1, 1)) ** 0.5))
    return found
