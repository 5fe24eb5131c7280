"""Parameters of prior terms from samples of their coordinates; arrays in, numbers out.

A sample is summarised first, and summaries are pooled: over the terms of the same bead types, and
over molecules. Weights need not be normalised; they count relative to those of other summaries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: Beads rigidly tied to each other would give an infinite force constant.
LEAST_VARIANCE = 1e-8

#: Penalty on squared Fourier coefficients, 1/kT^2: against a mean log-likelihood of order one it
#: is nothing where there are data, and where there are none it keeps the series from exploding.
RIDGE = 1e-5

_GRID, _LEVELS, _ITERATIONS = 360, 16, 200


class Moments(NamedTuple):
    """Total weight, mean and variance of a sample."""

    weight: float
    mean: float
    variance: float

    @property
    def floored_variance(self) -> float:
        """The variance, but not so small that a force constant would be infinite."""
        return max(self.variance, LEAST_VARIANCE)


def moments(values: np.ndarray, weights: np.ndarray) -> Moments:
    """Return the weighted moments of a sample (frames,)."""
    total = weights.sum()
    mean = (weights * values).sum() / total
    variance = (weights * (values - mean) ** 2).sum() / total
    return Moments(float(total), float(mean), float(variance))


def pooled_moments(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all samples together."""
    weights, means, variances = np.array(parts).T
    mean = np.average(means, weights=weights)
    variance = np.average(variances + (means - mean) ** 2, weights=weights)
    return Moments(float(weights.sum()), float(mean), float(variance))


class TorsionSample(NamedTuple):
    """What the likelihood of a torsional energy needs of a sample.

    Attributes:
        weight: total weight.
        features: (2 orders,) means of b^n cos(n t), then of b^n sin(n t).
        damping: (levels,) values that stand for the sample's b = sin(a1) sin(a2).
        shares: (levels,) weights of those, summing to `weight`.
    """

    weight: float
    features: np.ndarray
    damping: np.ndarray
    shares: np.ndarray


def torsion_sample(
    sine: np.ndarray, cosine: np.ndarray, weights: np.ndarray, orders: int
) -> TorsionSample:
    """Summarise damped sines and cosines (frames,) of one torsion."""
    powers = (cosine + 1j * sine)[:, None] ** np.arange(1, orders + 1)
    total = weights.sum()
    mean = weights @ powers / total
    # Groups of equal weight, in the order of b, each by its mean.
    damping = np.hypot(sine, cosine)
    order = np.argsort(damping)
    position = np.cumsum(weights[order]) - 0.5 * weights[order]
    group = np.minimum((_LEVELS * position / total).astype(int), _LEVELS - 1)
    shares = np.bincount(group, weights[order], _LEVELS)
    sums = np.bincount(group, weights[order] * damping[order], _LEVELS)
    kept = shares > 0
    return TorsionSample(
        float(total),
        np.concatenate([mean.real, mean.imag]),
        sums[kept] / shares[kept],
        shares[kept],
    )


def fit_torsion(samples: Sequence[TorsionSample]) -> np.ndarray:
    """Return the Fourier coefficients of the energy that makes samples most likely.

    The density of t at given b is taken as exp(-U(t, b)) / Z(b), U the sum over n of
    b^n (c_n cos(n t) + s_n sin(n t)); the Jacobian is flat in t. This is an exponential family,
    whose log-likelihood is concave: Newton's method on a grid of t finds its one maximum.

    Args:
        samples: pooled by their weights.

    Returns:
        (2 orders,) c_n, then s_n, in kT.
    """
    weights = np.array([s.weight for s in samples])
    target = np.average([s.features for s in samples], axis=0, weights=weights)
    shares = np.concatenate([s.shares for s in samples]) / weights.sum()
    grid = _grid_features(np.concatenate([s.damping for s in samples]), len(target) // 2)
    natural = np.zeros(len(target))
    value, gradient, hessian = _log_likelihood(natural, target, shares, grid)
    for _ in range(_ITERATIONS):
        step = np.linalg.solve(hessian, gradient)
        gain = gradient @ step
        if gain < 1e-14:
            break
        length = 1.0
        while True:
            found = _log_likelihood(natural + length * step, target, shares, grid)
            if found[0] >= value + 1e-4 * length * gain or length < 1e-8:
                break
            length /= 2
        natural = natural + length * step
        value, gradient, hessian = found
    return -natural


def _grid_features(damping: np.ndarray, orders: int) -> np.ndarray:
    """Return (levels, grid, 2 orders) features at every angle of a grid."""
    angles = 2 * np.pi * np.arange(_GRID) / _GRID
    powers = np.exp(1j * angles)[:, None] ** np.arange(1, orders + 1)
    scale = damping[:, None] ** np.arange(1, orders + 1)
    around = np.concatenate([powers.real, powers.imag], axis=1)
    return np.concatenate([scale, scale], axis=1)[:, None] * around


def _log_likelihood(
    natural: np.ndarray, target: np.ndarray, shares: np.ndarray, grid: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the penalised mean log-likelihood, its gradient and its negative Hessian."""
    exponents = grid @ natural
    highest = exponents.max(axis=1, keepdims=True)
    density = np.exp(exponents - highest)
    norm = density.mean(axis=1, keepdims=True)
    density /= norm * grid.shape[1]
    means = np.einsum("lg,lgf->lf", density, grid)
    logs = (np.log(norm) + highest)[:, 0]
    value = natural @ target - shares @ logs - 0.5 * RIDGE * natural @ natural
    gradient = target - shares @ means - RIDGE * natural
    weighted = grid * (shares[:, None] * density)[:, :, None]
    features = grid.shape[2]
    second = weighted.reshape(-1, features).T @ grid.reshape(-1, features)
    hessian = second - (shares[:, None] * means).T @ means + RIDGE * np.eye(features)
    return float(value), gradient, hessian
