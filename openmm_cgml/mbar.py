"""Samples of several states combined: MBAR over temperatures, and over biases.

Arrays in, arrays out; pymbar solves the equations.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import CGMLError, InputError
from .reweight import as_values, kish_size, unpacked
from .units import GAS_CONSTANT, strip, strip_array

#: Largest error of a rung's normalisation, sum_n W_nk - 1, at which MBAR counts as solved.
_TOLERANCE = 1e-6
#: Entries of a matrix (samples, states) that are made at a time.
_CHUNK = 1 << 20
# Newton's method; L-BFGS-B where states overlap so little that its steps do not help.
_PROTOCOL = (
    {"method": "adaptive", "options": {"min_sc_iter": 0, "maxiter": 100}},
    {"method": "L-BFGS-B", "options": {"maxiter": 1000}},
)

# ---------------------------------------------------------------- MBAR over temperatures


@dataclass(frozen=True, eq=False)
class MBARResult:
    """Samples of one potential at several temperatures, combined and reweighted to one.

    Attributes:
        temperatures: (rungs,) K.
        target: K, where `log_weights` hold.
        energies: (samples,) kJ/mol.
        counts: (rungs,) samples drawn at each temperature.
        free_energies: (rungs,) f = -ln Z, reduced, relative to the first rung.
        errors: (rungs,) standard errors of these differences.
        log_weights: (samples,) ln w, normalised: the w sum to one.
    """

    temperatures: np.ndarray
    target: float
    energies: np.ndarray
    counts: np.ndarray
    free_energies: np.ndarray
    errors: np.ndarray
    log_weights: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """(samples,) probabilities at the target."""
        return np.exp(self.log_weights)

    @property
    def effective_samples(self) -> float:
        """How many samples of equal weight are worth as much (Kish)."""
        return kish_size(self.log_weights)

    def expectation(self, values: np.ndarray) -> tuple[Any, Any]:
        """Return means at the target temperature and their asymptotic standard errors.

        The errors hold for independent samples; for samples of statistical inefficiency g they
        are sqrt(g) too small, so take every g-th frame first.

        Args:
            values: (samples,) or (samples, observables).

        Returns:
            Mean and error: two floats, or two arrays (observables,).

        Raises:
            InputError: if the shape does not fit or values are not finite.

        Reference: Shirts and Chodera 2008, doi:10.1063/1.2978177, section IV.
        """
        array = as_values(values, len(self.energies))
        mean = self.weights @ array
        deviations = self.weights[:, None] * (array - mean)
        rungs, _ = _rung_weights(
            self.energies, _betas(self.temperatures), self.counts, self.free_energies
        )
        return unpacked(values, mean, np.sqrt(_variance(deviations, rungs, self.counts)))


def mbar(
    energies: Any, rungs: np.ndarray, temperatures: Any, target: float | None = None
) -> MBARResult:
    """Combine samples of one potential drawn at several temperatures (MBAR).

        ln w_n = -b E_n - ln sum_k N_k exp(f_k - b_k E_n) + const

    with the f_k that make every rung's own weights sum to one. Solved by pymbar, started from
    thermodynamic integration, df/db = <E>: from pymbar's own start, f = 0, ladders of more than a
    few hundred degrees of freedom run for minutes or do not converge.

    Args:
        energies: (samples,) kJ/mol, independent samples of any order.
        rungs: (samples,) index into `temperatures` of where each was drawn.
        temperatures: (rungs,) K; rungs without samples are allowed.
        target: K, temperature of the weights; the first rung's if None. Far outside the ladder
            `effective_samples` drops to a few.

    Raises:
        InputError: if shapes do not fit, there are no samples, or energies are not finite.
        CGMLError: if no solution is found.

    Reference: Shirts and Chodera 2008, doi:10.1063/1.2978177, section III.
    """
    kelvin = _as_temperatures(temperatures)
    samples, index = _as_samples(energies, rungs, len(kelvin))
    kept = float(kelvin[0]) if target is None else strip(target, "kelvin", **_TARGET)
    betas = _betas(kelvin)
    counts = np.bincount(index, minlength=len(kelvin))
    free_energies = _solve(samples, index, betas, counts)

    weights, log_mixture = _rung_weights(samples, betas, counts, free_energies)
    residual = np.abs(weights.sum(axis=0) - 1).max()
    if not residual < _TOLERANCE:
        raise CGMLError(
            f"MBAR did not converge (the weights of a temperature sum to 1 only within "
            f"{residual:.1g}); the energies at neighbouring temperatures overlap too little: "
            "sample temperatures between them"
        )
    log_weights = -_betas(kept) * samples - log_mixture
    errors = np.sqrt(_variance(weights - weights[:, :1], weights, counts))
    return MBARResult(
        temperatures=kelvin,
        target=kept,
        energies=samples,
        counts=counts,
        free_energies=free_energies,
        errors=errors,
        log_weights=log_weights - _log_sum(log_weights[:, None])[0],
    )


_TARGET: dict[str, Any] = {"what": "target temperature", "positive": True}


def _betas(kelvin: Any) -> Any:
    """Return inverse temperatures, mol/kJ."""
    return 1 / (GAS_CONSTANT * kelvin)


def _as_temperatures(temperatures: Any) -> np.ndarray:
    kelvin = strip_array(temperatures, "kelvin", what="temperatures").astype(np.float64)
    if kelvin.ndim != 1 or kelvin.size == 0:
        raise InputError(f"temperatures have shape {kelvin.shape}; give (rungs,), at least one")
    if not (np.isfinite(kelvin) & (kelvin > 0)).all():
        raise InputError(f"temperatures are {kelvin.tolist()}; give positive numbers in kelvin")
    return kelvin


def _as_samples(energies: Any, rungs: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return energies as finite float64 and rungs as indices below `count`."""
    samples = strip_array(energies, "kilojoule/mole", what="energies").astype(np.float64)
    index = np.asarray(rungs)
    if samples.ndim != 1 or samples.size == 0:
        raise InputError(f"energies have shape {samples.shape}; give (samples,), at least one")
    if index.shape != samples.shape or index.dtype.kind not in "iu":
        raise InputError(
            f"rungs are {index.dtype} of shape {index.shape}; give {samples.shape} integers, "
            "the index of the temperature of each sample"
        )
    outside = (index < 0) | (index >= count)
    if outside.any():
        raise InputError(
            f"{outside.sum()} samples are of rungs such as {index[outside][0]}; there are "
            f"{count} temperatures, so give 0 to {count - 1}"
        )
    bad = int(np.count_nonzero(~np.isfinite(samples)))
    if bad:
        raise InputError(
            f"{bad} of {samples.size} energies are not finite; leave those samples out: "
            "keep = np.isfinite(energies)"
        )
    return samples, index


def _solve(
    samples: np.ndarray, index: np.ndarray, betas: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return the free energies (rungs,) by pymbar, f[0] = 0."""
    order = np.argsort(index, kind="stable")  # pymbar wants the samples rung by rung
    with _quiet_pymbar():
        import pymbar

        solved = pymbar.MBAR(
            betas[:, None] * samples[order],
            counts,
            initial_f_k=_integrated(samples, index, betas, counts),
            maximum_iterations=0,  # otherwise pymbar raises the limits above to its own
            solver_protocol=_PROTOCOL,
        )
    return np.asarray(solved.f_k, dtype=np.float64)


def _integrated(
    samples: np.ndarray, index: np.ndarray, betas: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return free energies (rungs,) from the mean energies by the trapezoid rule, f[0] = 0."""
    known = np.flatnonzero(counts)
    known = known[np.argsort(betas[known])]
    means = np.bincount(index, samples, minlength=len(counts))[known] / counts[known]
    steps = np.diff(betas[known]) * (means[1:] + means[:-1]) / 2
    # Rungs without samples take no part in the solution; any start will do.
    free_energies = np.interp(betas, betas[known], np.concatenate([[0.0], np.cumsum(steps)]))
    return free_energies - free_energies[0]


@contextmanager
def _quiet_pymbar() -> Iterator[None]:
    """Keep pymbar's advice on import and its progress to itself, and leave no trace of it.

    It logs warnings (no JAX; its time series need thought) and reseeds numpy's global generator.
    Whether it converged is checked on the result.
    """
    logger = logging.getLogger("pymbar")
    level = logger.level
    state = np.random.get_state()  # noqa: NPY002
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        np.random.set_state(state)  # noqa: NPY002


def _log_sum(terms: np.ndarray) -> np.ndarray:
    """Return ln sum exp over the first axis."""
    largest = terms.max(axis=0)
    return largest + np.log(np.exp(terms - largest).sum(axis=0))


def _rung_weights(
    samples: np.ndarray, betas: np.ndarray, counts: np.ndarray, free_energies: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples' weights at every rung, and the log density that they were drawn from.

    Returns:
        W (samples, rungs), each column summing to one, and ln sum_k N_k exp(f_k - b_k E_n)
        (samples,).
    """
    exponents = free_energies[:, None] - betas[:, None] * samples
    sampled = counts > 0
    log_mixture = _log_sum(exponents[sampled] + np.log(counts[sampled])[:, None])
    return np.exp(exponents - log_mixture).T, log_mixture


def _variance(deviations: np.ndarray, weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the asymptotic variances d' (I - W N W')^+ d of estimates, with W N W' = M M'.

    Since (I - M M')^+ = I + M (I - M' M)^+ M' for d that sums to zero, only a matrix of rungs is
    inverted. The first term is the variance for known weights, the second what their own
    estimation adds.

    Args:
        deviations: d (samples, estimates), each column summing to zero.
        weights: W (samples, rungs).
        counts: N (rungs,).

    Reference: Shirts and Chodera 2008, doi:10.1063/1.2978177, appendix D.
    """
    scaled = weights * np.sqrt(counts)
    # The null vector of I - M'M, to which M'd is orthogonal; adding it makes the matrix regular.
    null = np.sqrt(counts / counts.sum())
    matrix = np.eye(len(counts)) - scaled.T @ scaled + np.outer(null, null)
    values, vectors = np.linalg.eigh(matrix)
    # Rungs without overlap: an eigenvalue is rounding about zero, the error is just large.
    values = np.maximum(values, np.finfo(np.float64).eps)
    projected = vectors.T @ (scaled.T @ deviations)
    known = np.square(deviations).sum(axis=0)
    return known + (np.square(projected) / values[:, None]).sum(axis=0)


# ---------------------------------------------------------------- MBAR over biased states


#: Entries of a matrix (samples, states) that MBAR is solved with; weights are of all samples.
_MOST_ENTRIES = 20_000_000
# Overlap of states below which their free energies are not related, and that they should have.
_LEAST_OVERLAP, _GOOD_OVERLAP = 1e-3, 0.03


def mbar_states(
    reduced: Callable[[Any], np.ndarray], states: np.ndarray, count: int
) -> np.ndarray:
    """Return log weights of samples of several biased states in the unbiased one (MBAR).

        ln w_n = -ln sum_k N_k exp(f_k - u_k(n)) + const

    with the f_k that make every state's own weights sum to one. Where samples times states are
    more than 20 million, the f_k come from evenly spaced samples of each state; all samples get
    weights.

    Args:
        reduced: indices of samples -> their reduced bias energies in every state,
            (samples, count).
        states: (samples,) index of the state that each was drawn from.
        count: number of states; states without samples are allowed.

    Returns:
        (samples,) ln w, normalised: the w sum to one.

    Raises:
        InputError: if there are no samples or an index is not a state's.
        CGMLError: if no solution is found: states overlap too little.

    Reference: Shirts and Chodera 2008, doi:10.1063/1.2978177, section III.
    """
    index = np.asarray(states)
    if index.ndim != 1 or not index.size or index.min() < 0 or index.max() >= count:
        raise InputError(
            f"states have shape {index.shape}; give (samples,) numbers from 0 to {count - 1}"
        )
    order = np.argsort(index, kind="stable")  # pymbar wants the samples state by state
    used = order[:: max(1, -(-index.size * count // _MOST_ENTRIES))]
    counts = np.bincount(index[used], minlength=count)
    energies = np.asarray(reduced(used), dtype=np.float64).T
    start = -_log_sum(-energies.T)
    with _quiet_pymbar():
        import pymbar

        solved = pymbar.MBAR(
            energies,
            counts,
            initial_f_k=start - start[0],
            maximum_iterations=0,
            solver_protocol=_PROTOCOL,
        )
    free = np.asarray(solved.f_k, dtype=np.float64)
    sampled = counts > 0
    bonus = (free + np.log(np.maximum(counts, 1)))[sampled]
    log_mixture = _log_sum(bonus[:, None] - energies[sampled])
    weights = np.exp(free[:, None] - energies - log_mixture)
    residual = float(np.abs(weights.sum(axis=1)[sampled] - 1).max())
    if not residual < _TOLERANCE:
        raise CGMLError(
            f"MBAR did not converge (the weights of a state sum to 1 only within {residual:.1g}); "
            "neighbouring windows overlap too little: add windows between them or soften springs"
        )
    _require_overlap(weights[sampled], counts[sampled], np.flatnonzero(sampled))
    log_weights = np.empty(index.size)
    step = max(1, _CHUNK * 8 // count)
    for first in range(0, index.size, step):
        part = np.arange(first, min(first + step, index.size))
        log_weights[part] = -_log_sum(bonus[:, None] - np.asarray(reduced(part)).T[sampled])
    return log_weights - _log_sum(log_weights[:, None])[0]


def mbar_target(
    reduced: np.ndarray, states: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Return log weights of samples of several states in another one, and its free energy.

    Args:
        reduced: (samples, states) reduced energies u_k(n); that of the first state such that its
            partition function is known.
        states: (samples,) index of the state that each was drawn from, independently.
        target: (samples,) reduced energies of the other state.

    Returns:
        (samples,) ln w, normalised; the target's f = -ln Z less the first state's; and the
        standard error of this difference.

    Raises:
        InputError, CGMLError: as `mbar_states`.

    Reference: Shirts and Chodera 2008, doi:10.1063/1.2978177, sections III and IV.
    """
    table = reduced - np.asarray(target)[:, None]
    logs = mbar_states(lambda index: table[index], states, table.shape[1])
    # The weights of every state from those of the target; f_k - f_target makes them sum to one.
    others = logs[:, None] - table
    free = _log_sum(others)
    weights = np.exp(np.column_stack([logs, others - free]))
    counts = np.concatenate([[0], np.bincount(states, minlength=table.shape[1])])
    variance = _variance(weights[:, :1] - weights[:, 1:2], weights, counts)
    return logs, float(free[0]), float(np.sqrt(variance[0]))


def _require_overlap(weights: np.ndarray, counts: np.ndarray, states: np.ndarray) -> None:
    """Refuse states that fall into parts without overlap: nothing relates their free energies.

    MBAR's equations then have solutions all the same, of which the solver returns any one. The
    overlap O_ij = N_j sum_n W_ni W_nj is the probability to find a sample of i where j would.

    Args:
        weights: W' (states, samples), rows summing to one.
        counts: N (states,).
        states: (states,) their numbers, for messages.

    Reference: Klimovich, Shirts and Mobley 2015, doi:10.1007/s10822-015-9840-9, for the overlap
    matrix and 0.03 as the least between neighbours.
    """
    overlap = (weights @ weights.T) * counts
    shared = np.maximum(overlap, overlap.T)

    def reached(least: float) -> np.ndarray:
        linked = shared > least
        seen = np.zeros(len(states), dtype=bool)
        seen[0] = True
        while True:
            more = seen | linked[seen].any(axis=0)
            if (more == seen).all():
                return seen
            seen = more

    for least, fatal in ((_LEAST_OVERLAP, True), (_GOOD_OVERLAP, False)):
        seen = reached(least)
        if seen.all():
            continue
        between = np.where(seen[:, None] & ~seen, shared, -1.0)
        i, j = np.unravel_index(int(between.argmax()), between.shape)
        text = (
            f"states {states[i]} and {states[j]} overlap by {shared[i, j]:.2g} and nothing else "
            "joins their sides; add windows between them, soften springs, or run longer"
        )
        if fatal:
            raise CGMLError(f"MBAR cannot relate all states: {text}")
        warnings.warn(f"free energies between states are uncertain: {text}", stacklevel=4)
        return
