"""Correlated series: how many independent samples they are worth, and the errors of their means.

Arrays in, arrays out; nothing here knows where the series come from.
"""

import numpy as np

from .errors import InputError

#: Values that one Fourier transform takes at a time: memory stays some tens of MB.
_CHUNK = 1 << 20


def statistical_inefficiency(series: np.ndarray) -> float:
    """Return how many successive frames are worth one independent sample.

        g = 1 + 2 sum_t (1 - t/T) C(t)/C(0)

    with C(t) pooled over the chains, about the mean of all of them, and T frames a chain. So a
    chain that does not move in T frames is one sample (g = T), and differences between chains
    that should not differ count as slow correlation, which one chain alone cannot show. `series`
    that is the same everywhere has g = T too: each chain is then one sample of nothing.

    The sum ends at the first pair of lags C(2k) + C(2k+1) that is not positive (Geyer's initial
    positive sequence). Windows proportional to the correlation time itself (Sokal's c = 5) end
    where the fast part of a series has decayed: where 10 % of the variance is slow, they find a
    sixth of g. Geyer's monotone sequence scatters less, but also underestimates slow tails.

    Args:
        series: (frames,) or (frames, chains), a quantity along independent chains with the same
            distribution; for replica exchange one rung of independent ladders, not the rungs of
            one ladder.

    Returns:
        Between 1 and frames. Known to about 4 sqrt(g / samples) relative, and useless below some
        ten effective samples, where slow motion may not have been seen at all.

    Raises:
        InputError: if `series` has another shape, is empty or is not finite.

    Reference: Geyer 1992, doi:10.1214/ss/1177011137, section 3.3; Wolff 2004,
    doi:10.1016/S0010-4655(03)00467-3, section 2, for pooling chains.
    """
    chains = _as_chains(series)
    return _inefficiency(_pooled_autocovariance(chains), chains)


def effective_sample_size(series: np.ndarray) -> float:
    """Return how many independent samples chains are worth: frames x chains / g.

    Args:
        series: (frames,), (frames, chains) or (frames, chains, observables). Of several
            observables the slowest counts: the sample is no better than its worst coordinate.

    Raises:
        InputError: as `statistical_inefficiency`.
    """
    array = np.asarray(series)
    observables = np.moveaxis(array, 2, 0) if array.ndim == 3 else [array]
    if not len(observables):
        raise InputError(f"series has shape {array.shape}; give at least one observable")
    return min(_as_chains(one).size / statistical_inefficiency(one) for one in observables)


def mean_and_error(series: np.ndarray) -> tuple[float, float]:
    """Return the mean of a correlated series and its standard error.

        error^2 = C(0) / (n - 1),    n = frames x chains / g

    Args:
        series: (frames,) or (frames, chains), see `statistical_inefficiency`.

    Returns:
        Mean and error in the series' unit. The error is nan where the series says nothing about
        it: all values are the same, or there is one effective sample only.

    Raises:
        InputError: as `statistical_inefficiency`.
    """
    chains = _as_chains(series)
    covariance = _pooled_autocovariance(chains)
    effective = chains.size / _inefficiency(covariance, chains)
    mean = float(chains.mean())
    if effective <= 1 or _is_constant(covariance, chains):
        return mean, float("nan")
    return mean, float(np.sqrt(covariance[0] / (effective - 1)))


def _as_chains(series: np.ndarray) -> np.ndarray:
    """Return a series as finite float64 (frames, chains)."""
    array = np.asarray(series, dtype=np.float64)
    if array.ndim not in (1, 2) or array.size == 0:
        raise InputError(
            f"series has shape {array.shape}; give (frames,) or (frames, chains), at least one"
        )
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise InputError(f"{bad} of {array.size} values are not finite; leave those chains out")
    return array.reshape(len(array), -1)


def _pooled_autocovariance(chains: np.ndarray) -> np.ndarray:
    """Return sum over chains and frames of d(s) d(s+t) / (frames x chains), (frames,) lags t.

    Dividing by all frames instead of the frames - t terms of the sum brings in (1 - t/T).
    """
    frames, count = chains.shape
    padded = 1 << (2 * frames - 1).bit_length()  # zeros keep the ends apart
    deviations = chains - chains.mean()
    power = np.zeros(padded // 2 + 1)
    step = max(1, _CHUNK // padded)
    for start in range(0, count, step):
        spectrum = np.fft.rfft(deviations[:, start : start + step], padded, axis=0)
        power += (spectrum.real**2 + spectrum.imag**2).sum(axis=1)
    return np.fft.irfft(power, padded)[:frames] / chains.size


def _is_constant(covariance: np.ndarray, chains: np.ndarray) -> bool:
    """Whether the variance is what rounding alone can make."""
    rounding = 4 * np.finfo(np.float64).eps * np.abs(chains).max()
    return bool(covariance[0] <= rounding**2)


def _inefficiency(covariance: np.ndarray, chains: np.ndarray) -> float:
    frames = len(covariance)
    if _is_constant(covariance, chains):
        return float(frames)
    correlation = np.append(covariance, np.zeros(frames % 2)) / covariance[0]
    pairs = correlation.reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    end = negative[0] if len(negative) else len(pairs)
    return float(np.clip(2 * pairs[:end].sum() - 1, 1.0, frames))
