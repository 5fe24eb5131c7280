"""Free energies over any observables, and the coordinates that show most: PCA and TICA."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .analysis import dihedral_angles, free_energy
from .errors import InputError
from .observables import pair_distances
from .run_file import Run
from .topology import CGTopology, bonded_torsions
from .units import thermal_energy


@dataclass(frozen=True, eq=False)
class FreeEnergySurface:
    """A free energy over one or two observables, with its error.

    Attributes:
        edges: bin edges of each observable.
        probability: (bins,) or (bins, bins), sums to one.
        values: free energy, kJ/mol, its minimum zero; nan where there was no frame.
        errors: standard errors over blocks, kJ/mol; nan where fewer than two blocks were.
    """

    edges: tuple[np.ndarray, ...]
    probability: np.ndarray
    values: np.ndarray
    errors: np.ndarray

    @property
    def centres(self) -> tuple[np.ndarray, ...]:
        """Bin centres of each observable."""
        return tuple(0.5 * (edges[1:] + edges[:-1]) for edges in self.edges)


def free_energy_surface(
    values: Any,
    *,
    temperature: Any,
    weights: Any = None,
    bins: int | Sequence[np.ndarray] = 50,
    blocks: int = 10,
) -> FreeEnergySurface:
    """Return the free energy over one or two observables.

    Args:
        values: (frames,) or (frames, 2), in an order in which neighbours are correlated: time, or
            copy after copy.
        temperature: K.
        weights: (frames,); None: all alike.
        bins: number of bins, over the range of frames with a weight, or the edges of each
            observable.
        blocks: contiguous blocks of equal weight, for the errors.

    Raises:
        InputError: if there is no frame with a weight inside the bins, or fewer than blocks.
    """
    kt = float(thermal_energy(temperature))
    columns = np.asarray(values, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or columns.shape[1] not in (1, 2):
        raise InputError(f"values have shape {columns.shape}; give (frames,) or (frames, 2)")
    given = np.ones(len(columns)) if weights is None else np.asarray(weights, dtype=np.float64)
    seen = columns[given > 0]
    if len(seen) < blocks:
        raise InputError(f"{len(seen)} frames with a weight are too few for {blocks} blocks")
    if isinstance(bins, int):
        edges = [np.histogram_bin_edges(column, bins) for column in seen.T]
    else:
        edges = [np.asarray(one, dtype=np.float64) for one in bins]
    position = np.cumsum(given) / given.sum() * blocks
    block = np.minimum(position.clip(0, blocks - 1e-9).astype(int), blocks - 1)
    parts = np.stack(
        [
            np.histogramdd(columns[block == b], edges, weights=given[block == b])[0]
            for b in range(blocks)
        ]
    )
    total = parts.sum(0)
    if not total.sum() > 0:
        raise InputError("no frame lies within the bins; give others")
    probability = total / total.sum()
    shares = parts / parts.sum(axis=tuple(range(1, parts.ndim)), keepdims=True).clip(1e-300)
    spread = shares.std(0, ddof=1) / blocks**0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where((parts > 0).sum(0) > 1, kt * spread / probability, np.nan)
    return FreeEnergySurface(tuple(edges), probability, free_energy(probability, kt), errors)


@dataclass(frozen=True, eq=False)
class Projection:
    """Linear coordinates of features; call it to project.

    Attributes:
        mean: (features,).
        components: (features, coordinates).
        variance: share of the variance of each coordinate, of `principal_components`.
        timescales: of each coordinate, ps of the run's own time, of `tica`: a coarse-grained
            model is faster than what it models.
    """

    mean: np.ndarray
    components: np.ndarray
    variance: np.ndarray = field(default_factory=lambda: np.zeros(0))
    timescales: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __call__(self, features: Any) -> np.ndarray:
        """Return coordinates (frames, coordinates) of features (frames, features)."""
        return (np.asarray(features, dtype=np.float64) - self.mean) @ self.components


def principal_components(features: Any, weights: Any = None, count: int = 2) -> Projection:
    """Return the directions along which features vary most.

    Args:
        features: (frames, features).
        weights: (frames,); None: all alike.
        count: of coordinates.
    """
    values = np.asarray(features, dtype=np.float64)
    mean = np.average(values, axis=0, weights=weights)
    covariance = np.cov(values.T, aweights=weights).reshape(values.shape[1], -1)
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(variances)[::-1][:count]
    components = vectors[:, order]
    components = components * np.sign(components[np.abs(components).argmax(0), range(len(order))])
    return Projection(mean, components, variance=variances[order] / variances.sum())


def tica(
    run: Run, features: Callable[[np.ndarray], np.ndarray], *, lag: float, count: int = 2
) -> Projection:
    """Return the slowest linear coordinates of a run (TICA, by deeptime).

    Args:
        run: copies at one temperature, never exchanged: a swap is no motion.
        features: of positions (frames, beads, 3), returns (frames, features).
        lag: ps; a whole number of frames of the run is taken.
        count: of coordinates.

    Raises:
        InputError: if the run is a replica exchange or too short, or deeptime is missing.

    Reference: Perez-Hernandez et al. 2013, doi:10.1063/1.4811489.
    """
    series = [features(copy) for copy in time_series(run)]
    interval = frame_interval(run)
    frames = max(1, round(lag / interval))
    if frames >= len(run):
        raise InputError(
            f"the lag of {lag:g} ps is {frames} frames and each copy has {len(run)}; run longer, "
            "or take a shorter lag"
        )
    try:
        from deeptime.decomposition import TICA
    except ImportError:
        raise InputError("tica needs deeptime: pip install openmm_cgml[analysis]") from None
    estimator = TICA(lagtime=frames, dim=count, scaling=None)
    model = estimator.fit_from_timeseries(series).fetch_model()
    return Projection(
        np.asarray(model.mean_0),
        np.asarray(model.instantaneous_coefficients)[:, :count],
        timescales=np.asarray(model.timescales())[:count] * interval,
    )


def time_series(run: Run) -> list[np.ndarray]:
    """Return the frames of each copy of a run, in time, (copies) x (frames, beads, 3), nm.

    Raises:
        InputError: if copies changed temperature or place, or some were reset on the way.
    """
    if len(run.temperatures) > 1 or "ladders" in run.info:
        raise InputError(
            "frames of a replica exchange are no time series of a molecule; run copies at one "
            "temperature (Langevin)"
        )
    keep = np.ones(run.positions.shape[1], bool) if run.sick is None else ~run.sick.any(0)
    if not keep.any():
        raise InputError("every copy of the run was reset; see run.events")
    return [np.asarray(run.positions[:, copy]) for copy in np.flatnonzero(keep)]


def frame_interval(run: Run) -> float:
    """Return the time between frames of a run, ps; inf if there is one frame only."""
    return float(np.median(np.diff(run.time))) if len(run) > 1 else float("inf")


def torsion_features(
    topology: CGTopology, box_vectors: Any = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of positions: sines and cosines of all torsions along the bonds.

    What `tica` and `implied_timescales` take where nothing better is known: it does not change
    with the molecule's place and orientation, and has no jump at half a turn. Of beads without
    torsions the distances of all pairs.

    Args:
        topology: the beads.
        box_vectors: (3, 3), nm; None: not periodic.
    """
    torsions = bonded_torsions(topology.bonds)

    def features(positions: np.ndarray) -> np.ndarray:
        if not torsions:
            return pair_distances(positions, 1, box_vectors)
        angles = dihedral_angles(positions, torsions, box_vectors)
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    return features
