"""Weighted samples: means, errors, how many samples the weights leave, and whether to trust them.

Arrays in, arrays out; nothing here knows where the samples come from. Weights are given as
logarithms, normalised or not.
"""

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import InputError


def kish_size(log_weights: np.ndarray) -> float:
    """Return how many samples of equal weight are worth as much: (sum w)^2 / sum w^2.

    Args:
        log_weights: (samples,), normalised or not.

    Reference: Kish 1965, Survey Sampling, section 11.7.
    """
    return float(1 / np.square(normalised(log_weights)).sum())


def expectation(log_weights: np.ndarray, values: np.ndarray) -> tuple[Any, Any]:
    """Return weighted means and their standard errors for weights known beforehand.

        A = sum_n w_n A_n / sum_n w_n,    error^2 = sum_n w_n^2 (A_n - A)^2 / (sum_n w_n)^2

    The weights of MBAR are themselves estimated from the samples: use `MBARResult.expectation`,
    whose error has that part too.

    Args:
        log_weights: (samples,) of independent samples, normalised or not.
        values: (samples,) or (samples, observables).

    Returns:
        Mean and error: two floats, or two arrays (observables,).

    Raises:
        InputError: if shapes do not fit, or values or weights are not finite.

    Reference: Owen 2013, Monte Carlo theory, methods and examples, chapter 9 (delta method).
    """
    weights = normalised(log_weights)
    array = as_values(values, len(weights))
    mean = weights @ array
    deviations = weights[:, None] * (array - mean)
    return unpacked(values, mean, np.sqrt(np.square(deviations).sum(axis=0)))


def as_values(values: np.ndarray, samples: int) -> np.ndarray:
    """Return values as finite float64 (samples, observables)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or len(array) != samples:
        raise InputError(
            f"values have shape {array.shape}; give ({samples},) or ({samples}, observables), "
            "one row a sample"
        )
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise InputError(f"{bad} of {array.size} values are not finite; leave those samples out")
    return array.reshape(samples, -1)


def unpacked(values: np.ndarray, mean: np.ndarray, error: np.ndarray) -> tuple[Any, Any]:
    """Return floats if there was one observable without an axis of its own."""
    return (mean, error) if np.ndim(values) == 2 else (float(mean[0]), float(error[0]))


def normalised(log_weights: np.ndarray) -> np.ndarray:
    """Return weights (samples,) that sum to one.

    Raises:
        InputError: if there are none, one is nan or +inf, or all are zero.
    """
    array = _as_log_weights(log_weights)
    weights = np.exp(array - array.max())
    return weights / weights.sum()


def _as_log_weights(log_weights: np.ndarray) -> np.ndarray:
    array = np.asarray(log_weights, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"log weights have shape {array.shape}; give (samples,), at least one")
    # -inf is a weight of zero.
    if np.isnan(array).any() or not np.isfinite(array.max()):
        raise InputError("log weights hold nan or +inf, or only -inf; leave such samples out")
    return array


def log_mean(log_weights: np.ndarray) -> tuple[float, float]:
    """Return ln of the mean weight and its standard error, for independent samples.

    Of weights w = exp(-U / kT) / q of samples of a normalised density q it is ln Z, Z the
    partition function of U on the measure of q.

    Args:
        log_weights: (samples,), two or more.
    """
    array = _as_log_weights(log_weights)
    count = len(array)
    value = float(array.max() + np.log(np.exp(array - array.max()).mean()))
    # Rounding may make the variance of equal weights less than nothing.
    excess = max(0.0, count / kish_size(array) - 1)
    return value, float((excess / max(count - 1, 1)) ** 0.5)


def forward_fraction(log_weights: np.ndarray, probabilities: np.ndarray | None = None) -> float:
    """Return the effective share of samples as frames of the target see it.

        1 / (<w> <1 / w>),    averages over the target

    Samples of a proposal that misses a mode have even weights and a large `kish_size`: only frames
    from elsewhere show the mode, by their enormous w. For perfect frames of the target both agree.

    Args:
        log_weights: (frames,), of frames of the target that the proposal has not learned from.
        probabilities: (frames,) of these frames, up to a factor; uniform if None.

    Returns:
        Between 0 and 1; the share of infinitely many samples, not of those drawn.

    Reference: Midgley et al. 2023, arXiv:2208.01893, for effective sizes in both directions.
    """
    array = _as_log_weights(log_weights)
    shares = np.ones(len(array)) if probabilities is None else np.asarray(probabilities, float)
    if shares.shape != array.shape or not shares.sum() > 0 or (shares < 0).any():
        raise InputError(f"probabilities have shape {shares.shape}; give {array.shape}, not all 0")
    counted = shares > 0
    if not np.isfinite(array[counted]).all():
        return 0.0  # a frame of the target that has no weight
    logs, shares = array[counted], shares[counted] / shares.sum()
    up = np.exp(logs - logs.max()) @ shares
    down = np.exp(logs.min() - logs) @ shares
    return float(np.exp(logs.min() - logs.max()) / (up * down))


def pareto_limit(samples: int) -> float:
    """Return the k-hat below which so many samples give usable estimates, 0.7 at most.

    Reference: Vehtari et al. 2024, arXiv:1507.02646.
    """
    return min(1 - 1 / math.log10(max(samples, 11)), 0.7)


#: Fewer samples have no tail that could be fitted.
_FEWEST_FOR_A_TAIL = 25
# Where no weight is so many times the mean there is no tail either: of nearly equal weights, which
# pile up at their largest value, the fit is nonsense.
_EVEN = 5.0


def pareto_smoothed(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Return Pareto-smoothed log weights, normalised, and the shape k-hat of their tail.

    The largest weights are replaced by the expected order statistics of a generalised Pareto
    distribution fitted to them (by ArviZ), none larger than the largest. With k-hat above
    `pareto_limit` means do not converge in practice; above 0.5 the weights' variance is infinite.

    Args:
        log_weights: (samples,).

    Returns:
        (samples,) and k-hat: -inf where no weight is more than five times the mean, nan below 25
        samples, inf where no distribution fits; the weights then stay as they are.

    Reference: Vehtari et al. 2024, arXiv:1507.02646.
    """
    array = np.log(np.maximum(normalised(log_weights), np.finfo(np.float64).tiny))
    if len(array) < _FEWEST_FOR_A_TAIL:
        return array, float("nan")
    if np.exp(array.max()) * len(array) < _EVEN:
        return array, float("-inf")
    with np.errstate(all="ignore"):
        smoothed, shape = _psis(array)
    if not np.isfinite(smoothed).all():  # no distribution fits, as to many equal ones and a few
        return array, float("inf")
    smoothed = np.where(np.isneginf(_as_log_weights(log_weights)), -np.inf, np.asarray(smoothed))
    return np.log(np.maximum(normalised(smoothed), np.finfo(np.float64).tiny)), float(shape)


def _psis(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Return ArviZ's smoothed log weights and k-hat."""
    if sys.version_info >= (3, 11):
        from arviz_stats.base import array_stats

        # It takes log likelihoods, whose importance weights are the inverse: minus the logs.
        smoothed, shape = array_stats.psislw(-log_weights)
    else:  # the new package has it from Python 3.11 on, and this is the old one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces the new one
            import arviz

        smoothed, shape = arviz.psislw(log_weights)
    return np.asarray(smoothed), float(shape)


def without_top(log_weights: np.ndarray, share: float = 0.01) -> tuple[np.ndarray, float]:
    """Return log weights of which the largest are minus infinity, and the weight so removed.

    A biased estimate, for comparison with figures made that way; `pareto_smoothed` is better.

    Args:
        log_weights: (samples,).
        share: of the samples, from 0 to below 1.
    """
    if not 0 <= share < 1:
        raise InputError(f"share is {share}; give 0 to below 1, e.g. 0.01")
    weights = normalised(log_weights)
    top = np.argsort(weights)[len(weights) - int(share * len(weights)) :]
    array = _as_log_weights(log_weights).copy()
    array[top] = -np.inf
    return array, float(weights[top].sum())


# ---------------------------------------------------------------- errors and trust


def block_bootstrap(
    sums: np.ndarray,
    function: Callable[[np.ndarray], Any],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Return a function of sums over all samples, and its standard error by resampling blocks.

    Args:
        sums: (blocks, quantities) additive over samples, such as sum w and sum w A of each
            contiguous block. Blocks longer than the correlation are independent.
        function: of such sums (quantities,), e.g. ``lambda s: s[1] / s[0]``.
        resamples: sets of blocks that are drawn.
        seed: of these.

    Raises:
        InputError: if there are fewer than two blocks.

    Reference: Kunsch 1989, doi:10.1214/aos/1176347265.
    """
    parts = np.asarray(sums, dtype=np.float64)
    if parts.ndim != 2 or len(parts) < 2:
        raise InputError(f"sums have shape {parts.shape}; give (blocks, quantities), two or more")
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), resamples)
    drawn = np.array([function(one) for one in counts @ parts])
    value = np.asarray(function(parts.sum(0)), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        error = drawn.std(axis=0, ddof=1)
    return (float(value), float(error)) if value.ndim == 0 else (value, error)


def block_sums(values: np.ndarray, blocks: int) -> np.ndarray:
    """Return sums over contiguous blocks of nearly equal length (blocks, quantities).

    Args:
        values: (samples, quantities).
        blocks: how many, two or more; there are at most as many as samples.
    """
    starts = np.linspace(0, len(values), min(blocks, len(values)) + 1).astype(int)[:-1]
    return np.add.reduceat(np.asarray(values, dtype=np.float64), starts, axis=0)


#: Effective samples below which no mean is called converged.
_FEWEST_EFFECTIVE = 100
# Share of all weight that a single sample may have.
_HEAVIEST = 0.05
# A proposal whose weights are this much more even than the target's own frames find misses some.
_FORWARD = 0.5


@dataclass(frozen=True)
class WeightReport:
    """What weights are worth, and whether means with them can be trusted.

    Attributes:
        samples: how many.
        effective: samples of equal weight that are worth as much (Kish), before smoothing.
        pareto_k: shape of the weights' tail; see `pareto_smoothed`.
        largest: the largest share of the weight that one sample has.
        forward: `forward_fraction` of held-out frames; None: there were none, so that a mode
            that the proposal misses would go unnoticed.
        removed: share of the weight that clipping has removed.
        mirrored: share of the samples that are mirror images, without weight.
    """

    samples: int
    effective: float
    pareto_k: float
    largest: float
    forward: float | None = None
    removed: float = 0.0
    mirrored: float = 0.0

    @property
    def fraction(self) -> float:
        """Effective samples a sample."""
        return self.effective / self.samples

    @property
    def problems(self) -> tuple[str, ...]:
        """Return why means cannot be trusted; nothing if they can."""
        found = []
        limit = pareto_limit(self.samples)
        if not self.pareto_k < limit:
            found.append(
                f"the weights' tail is too heavy (k-hat {self.pareto_k:.2f} > {limit:.2f})"
            )
        if self.effective < _FEWEST_EFFECTIVE:
            found.append(f"only {self.effective:.0f} samples are effective")
        if self.largest > _HEAVIEST:
            found.append(f"one sample has {self.largest:.0%} of the weight")
        if self.forward is not None and self.forward < _FORWARD * self.fraction:
            found.append(
                f"held-out frames find {self.forward:.1%} effective and the samples "
                f"{self.fraction:.1%}: flow or PMF misses what the frames have"
            )
        return tuple(found)

    @property
    def converged(self) -> bool:
        """Whether nothing speaks against means with these weights."""
        return not self.problems

    def text(self) -> str:
        """Return the report in a line."""
        forward = "not checked against frames" if self.forward is None else f"{self.forward:.1%}"
        tail = "no tail" if np.isneginf(self.pareto_k) else f"k-hat {self.pareto_k:.2f}"
        mirrored = f", {self.mirrored:.2%} mirror images left out" if self.mirrored else ""
        state = "" if self.converged else f"; NOT CONVERGED: {'; '.join(self.problems)}"
        return (
            f"{self.effective:,.0f} of {self.samples:,} samples effective ({self.fraction:.1%}; "
            f"forward {forward}), {tail}{mirrored}{state}"
        )

    def record(self) -> dict[str, Any]:
        """Return the report, JSON-able; null where a number is not finite."""
        numbers = {k: v if v is None or np.isfinite(v) else None for k, v in asdict(self).items()}
        return {
            **numbers,
            "fraction": self.fraction,
            "pareto_limit": pareto_limit(self.samples),
            "converged": self.converged,
            "problems": list(self.problems),
        }


def weight_report(
    log_weights: np.ndarray,
    forward: float | None = None,
    removed: float = 0.0,
    mirrored: float = 0.0,
    pareto_k: float | None = None,
) -> WeightReport:
    """Return what weights are worth.

    Args:
        log_weights: (samples,), as they are, not smoothed.
        forward, removed, mirrored: as of `WeightReport`.
        pareto_k: of `pareto_smoothed`, if it is known already.
    """
    return WeightReport(
        samples=len(log_weights),
        effective=kish_size(log_weights),
        pareto_k=pareto_smoothed(log_weights)[1] if pareto_k is None else pareto_k,
        largest=float(normalised(log_weights).max()),
        forward=forward,
        removed=removed,
        mirrored=mirrored,
    )


@dataclass(frozen=True)
class Estimate:
    """A number with its error, and what speaks against it.

    Attributes:
        value: in `unit`.
        error: one standard error.
        unit: e.g. kJ/mol.
        problems: of `WeightReport`; as a text the number then says that it is not converged.
    """

    value: float
    error: float
    unit: str = ""
    problems: tuple[str, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems and bool(np.isfinite(self.value) and np.isfinite(self.error))

    def __str__(self) -> str:
        number = f"{self.value:.4g} ± {self.error:.2g}{' ' * bool(self.unit)}{self.unit}"
        if self.converged:
            return number
        reasons = self.problems or ("it is not finite",)
        return f"not converged ({'; '.join(reasons)}): {number}"

    def record(self) -> dict[str, Any]:
        """Return the number, JSON-able; null where it is not finite."""
        finite = {k: float(v) if np.isfinite(v) else None for k, v in
                  (("value", self.value), ("error", self.error))}  # fmt: skip
        return {**finite, "unit": self.unit, "converged": self.converged}
