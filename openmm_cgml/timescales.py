"""Implied timescales of runs, in the coarse-grained model's own time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InputError
from .landscape import frame_interval, time_series
from .run_file import Run

METHODS = ("tica", "msm")

_NEEDS = "a Markov model needs deeptime: pip install openmm_cgml[analysis]"


@dataclass(frozen=True, eq=False)
class ImpliedTimescales:
    """The slowest relaxation times of a run, at several lags.

    All are of the run's own, coarse-grained time: friction and the smoother energy make a
    coarse-grained molecule faster than what it models, and each motion by another factor.

    Attributes:
        lags: (lags,), ps of CG time; what whole numbers of frames made of those asked for.
        values: (lags, timescales), ps of CG time, the slowest first; nan where a process was not
            resolved.
        errors: (lags, timescales) standard errors, of the bootstrap over copies; nan for one copy.
        method: ``tica`` or ``msm``.
        copies: that were left to take from.
    """

    lags: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    method: str
    copies: int


def implied_timescales(
    run: Run,
    features: Callable[[np.ndarray], np.ndarray],
    lags: Sequence[float],
    *,
    method: str = "tica",
    count: int = 3,
    states: int = 50,
    resamples: int = 50,
    seed: int = 0,
) -> ImpliedTimescales:
    """Return implied timescales t = -lag / ln |eigenvalue| of a run.

    Where they no longer rise with the lag, they are the molecule's. Below the line t = lag
    nothing can be told.

    Args:
        run: copies at one temperature, never exchanged: a swap is no motion.
        features: of positions (frames, beads, 3), returns (frames, features).
        lags: ps; whole numbers of frames of the run are taken.
        method: ``tica``, of linear combinations of the features (a lower bound), or ``msm``, of a
            reversible Markov model on `states` clusters of them (by deeptime).
        count: of timescales.
        states: clusters of a Markov model.
        resamples: draws of copies with replacement, for the errors.
        seed: of clusters and draws.

    Raises:
        InputError: if the run is a replica exchange, a lag too long, or deeptime is missing (msm).

    Reference: Swope, Pitera and Suits 2004, doi:10.1021/jp037421y; TICA: Perez-Hernandez et al.
    2013, doi:10.1063/1.4811489; estimator of the Markov model: Prinz et al. 2011,
    doi:10.1063/1.3565032.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is unknown; give {' or '.join(METHODS)}")
    series = [np.asarray(features(copy), dtype=np.float64) for copy in time_series(run)]
    interval = frame_interval(run)
    frames = np.unique([max(1, round(lag / interval)) for lag in lags])
    if not len(frames):
        raise InputError("no lags were given; give some, in ps")
    if frames[-1] >= len(run):
        raise InputError(
            f"the lag of {frames[-1] * interval:g} ps is {frames[-1]} frames and each copy has "
            f"{len(run)}; run longer, or take shorter lags"
        )
    generator = np.random.default_rng(seed)
    if method == "msm":
        series = _clustered(series, states, seed)
    draws = generator.integers(len(series), size=(resamples, len(series)))
    values = np.full((len(frames), count), np.nan)
    errors = np.full((len(frames), count), np.nan)
    for row, lag in enumerate(frames):
        parts: Any = _moments(series, lag) if method == "tica" else _counts(series, lag)
        solve: Any = _tica_eigenvalues if method == "tica" else _msm_eigenvalues
        everything = np.ones(len(series))
        values[row] = _timescales(solve(parts, everything), lag, count)
        if len(series) > 1 and resamples > 1:
            found = np.array(
                [
                    _timescales(solve(parts, np.bincount(draw, minlength=len(series))), lag, count)
                    for draw in draws
                ]
            )
            seen = np.isfinite(found).sum(0) > resamples / 2
            errors[row, seen] = np.nanstd(found[:, seen], axis=0, ddof=1)
    return ImpliedTimescales(
        frames * interval, values * interval, errors * interval, method, len(series)
    )


def _timescales(eigenvalues: np.ndarray, lag: int, count: int) -> np.ndarray:
    """Return timescales (count,) in frames, the slowest first, nan where there is none."""
    sizes = np.sort(np.abs(eigenvalues))[::-1]
    sizes = sizes[(sizes > 1e-12) & (sizes < 1)][:count]
    found = np.full(count, np.nan)
    found[: len(sizes)] = -lag / np.log(sizes)
    return found


def _moments(series: Sequence[np.ndarray], lag: int) -> tuple[np.ndarray, ...]:
    """Return what TICA needs of each copy: the sums of pairs, features and products of both."""
    counts, sums, instantaneous, lagged = [], [], [], []
    for values in series:
        x, y = values[:-lag], values[lag:]
        counts.append(len(x))
        sums.append(0.5 * (x.sum(0) + y.sum(0)))
        instantaneous.append(0.5 * (x.T @ x + y.T @ y))
        product = x.T @ y
        lagged.append(0.5 * (product + product.T))
    return np.array(counts), np.array(sums), np.array(instantaneous), np.array(lagged)


def _tica_eigenvalues(moments: tuple[np.ndarray, ...], times: np.ndarray) -> np.ndarray:
    """Return the eigenvalues of reversible TICA of each copy so many times."""
    count, total, instantaneous, lagged = (
        np.tensordot(times.astype(float), one, axes=1) for one in moments
    )
    mean = total / count
    covariance = instantaneous / count - np.outer(mean, mean)
    variances, vectors = np.linalg.eigh(covariance)
    kept = variances > 1e-6 * variances.max()
    whitening = vectors[:, kept] / np.sqrt(variances[kept])
    found: np.ndarray = np.linalg.eigvalsh(
        whitening.T @ (lagged / count - np.outer(mean, mean)) @ whitening
    )
    return found


def _clustered(series: Sequence[np.ndarray], states: int, seed: int) -> list[np.ndarray]:
    """Return the cluster of every frame, (frames,) a copy."""
    flat = np.concatenate(series)
    points, labels = np.unique(flat, axis=0, return_inverse=True)
    if len(points) > states:
        try:
            from deeptime.clustering import KMeans
        except ImportError:
            raise InputError(_NEEDS) from None
        fewer = flat[:: max(1, len(flat) // 20_000)]
        estimator = KMeans(states, fixed_seed=seed, n_jobs=1, max_iter=100, tolerance=1e-4)
        labels = estimator.fit(fewer).fetch_model().transform(flat)
    ends = np.cumsum([len(one) for one in series])[:-1]
    return np.split(np.asarray(labels).ravel(), ends)


def _counts(series: Sequence[np.ndarray], lag: int) -> np.ndarray:
    """Return the transitions of each copy, (copies, states, states)."""
    states = 1 + max(int(one.max()) for one in series)
    found = np.zeros((len(series), states, states))
    for copy, labels in enumerate(series):
        np.add.at(found[copy], (labels[:-lag], labels[lag:]), 1)
    return found


def _msm_eigenvalues(counts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the eigenvalues but the first of the reversible Markov model of the copies."""
    try:
        from deeptime.markov import TransitionCountModel
        from deeptime.markov.msm import MaximumLikelihoodMSM
    except ImportError:
        raise InputError(_NEEDS) from None
    total = np.tensordot(times.astype(float), counts, axes=1)
    connected = TransitionCountModel(total).submodel_largest(directed=True)
    if connected.n_states < 2:
        return np.zeros(0)
    model = MaximumLikelihoodMSM(reversible=True).fit(connected).fetch_model()
    found: np.ndarray = np.sort(np.abs(model.eigenvalues()))[::-1][1:]
    return found
