"""Whether a run is long enough: running means, split R-hat, and how alike its halves are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .analysis import js_divergence
from .correlation import mean_and_error, statistical_inefficiency
from .errors import InputError


@dataclass(frozen=True, eq=False)
class Convergence:
    """How an observable's mean settles with the length of a run.

    Attributes:
        mean, error: over all frames; the error is nan where the series says nothing about it.
        effective: independent samples that the series is worth.
        rhat: split R-hat; nan if a chain has fewer than four frames or nothing moves.
        lengths: (points,) frames of each chain that went into each running mean.
        means, errors: (points,) running means and their standard errors.
    """

    mean: float
    error: float
    effective: float
    rhat: float
    lengths: np.ndarray
    means: np.ndarray
    errors: np.ndarray


def convergence(series: Any, points: int = 20) -> Convergence:
    """Return how the mean of a series settles, with errors that its correlation is in.

    Args:
        series: (frames,) or (frames, chains), an observable along independent chains, in time.
        points: lengths at which the running mean is taken.

    Raises:
        InputError: if `series` has another shape, is empty or is not finite.
    """
    whole = np.asarray(series, dtype=np.float64)
    mean, error = mean_and_error(whole)
    chains = whole.reshape(len(whole), -1)
    lengths = np.unique(np.linspace(0, len(chains), points + 1).round().astype(int)[1:])
    lengths = lengths[lengths > 0]
    steps = np.array([mean_and_error(chains[:n]) for n in lengths])
    return Convergence(
        mean,
        error,
        chains.size / statistical_inefficiency(chains),
        split_rhat(chains) if len(chains) >= 4 and np.ptp(chains) > 0 else float("nan"),
        lengths,
        steps[:, 0],
        steps[:, 1],
    )


def split_rhat(series: Any, *, rank: bool = True) -> float:
    """Return split R-hat: how far the variance between half chains exceeds that within them.

        R-hat^2 = (n - 1)/n + B / W,     B = variance of the means, W = mean of the variances

    of the halves of all chains, n frames each. 1 if all sample the same; above 1.01, they do not
    yet. It tells nothing that no chain has seen, as where all start from one state.

    Args:
        series: (frames,) or (frames, chains), an observable along independent chains; a middle
            frame is left out where there is an odd number.
        rank: of normal scores of the ranks, and of those of the distances from the median; the
            larger counts. It also finds chains that differ in spread, and needs no finite
            variance. Otherwise of the values themselves.

    Raises:
        InputError: if there are fewer than four frames, or not finite ones.

    Reference: Vehtari et al. 2021, doi:10.1214/20-BA1221, eq. 1-4 and section 4.
    """
    values = np.asarray(series, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) < 4 or not np.isfinite(values).all():
        raise InputError(
            f"series has shape {np.shape(series)}; give (frames,) or (frames, chains), at least "
            "four frames, all finite"
        )
    half = len(values) // 2
    halves = np.concatenate([values[:half], values[-half:]], axis=1)
    if not rank:
        return _rhat(halves)
    folded = np.abs(halves - np.median(halves))
    return max(_rhat(_normal_scores(halves)), _rhat(_normal_scores(folded)))


def _rhat(halves: np.ndarray) -> float:
    frames = len(halves)
    within = halves.var(axis=0, ddof=1).mean()
    between = halves.mean(axis=0).var(ddof=1)
    if not within > 0:  # each half at a value of its own
        return float("inf") if between > 0 else float("nan")
    return float(np.sqrt((frames - 1) / frames + between / within))


def _normal_scores(values: np.ndarray) -> np.ndarray:
    """Return normal scores of the ranks of all values (Vehtari et al. 2021, eq. 14)."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    ranks = rankdata(values.ravel()).reshape(values.shape)
    scores: np.ndarray = ndtri((ranks - 3 / 8) / (values.size + 1 / 4))
    return scores


@dataclass(frozen=True, eq=False)
class HalvesDivergence:
    """How alike the first and the second half of a run are, by the run's length.

    Attributes:
        lengths: (points,) frames of each chain.
        values: (points,) Jensen-Shannon divergence of the halves, nats; 0 to ln 2.
        floor: (points,) what it is about if all frames were independent, nats.
    """

    lengths: np.ndarray
    values: np.ndarray
    floor: np.ndarray


def halves_divergence(
    series: Any, *, bins: int | Sequence[np.ndarray] = 20, points: int = 10
) -> HalvesDivergence:
    """Return the divergence of the distributions in both halves of a run of growing length.

    Of K populated bins and n independent frames it is (K - 1) / 2n on average where nothing
    changes. What stays well above, or does not fall with the length, is motion slower than the
    run.

    Args:
        series: (frames, chains), or (frames, chains, 2) of two observables, in time.
        bins: number of bins over the range of all, or the edges of each observable.
        points: lengths, from a few frames to all.

    Raises:
        InputError: if `series` has another shape or fewer than four frames.
    """
    values = np.asarray(series, dtype=np.float64)
    values = values[:, :, None] if values.ndim == 2 else values
    if values.ndim != 3 or len(values) < 4 or values.shape[2] > 2:
        raise InputError(
            f"series has shape {np.shape(series)}; give (frames, chains) or (frames, chains, 2), "
            "at least four frames"
        )
    flat = values.reshape(-1, values.shape[2])
    if isinstance(bins, int):
        edges = [np.histogram_bin_edges(column, bins) for column in flat.T]
    else:
        edges = [np.asarray(one, dtype=np.float64) for one in bins]
    lengths = np.unique(np.linspace(4, len(values), points).round().astype(int))
    divergences, floors = [], []
    for length in lengths:
        half = length // 2
        first, second = (
            np.histogramdd(part.reshape(-1, values.shape[2]), edges)[0]
            for part in (values[:half], values[length - half : length])
        )
        divergences.append(js_divergence(first, second))
        populated = np.count_nonzero(first + second)
        floors.append((populated - 1) / (2 * (first.sum() + second.sum())))
    return HalvesDivergence(lengths, np.array(divergences), np.array(floors))
