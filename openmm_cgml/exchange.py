"""Replica exchange: swaps of rungs between copies, their statistics, and where to put the rungs.

A ladder is a set of copies of one system, each at its own temperature (its rung). All functions
work on many independent ladders at once and loop over none of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .errors import InputError
from .registry import Registry
from .units import GAS_CONSTANT, strip

#: Name -> function (rungs, energies, betas, sweep, generator, frozen=None) -> Swaps.
SWAPS = Registry(
    "swap scheme",
    {
        "neighbour": "openmm_cgml.exchange:neighbour_swaps",
        "gibbs": "openmm_cgml.exchange:gibbs_swaps",
    },
)

#: More rungs than any ladder needs: a target acceptance that asks for more is a mistake.
_MOST_RUNGS = 1000


class Swaps(NamedTuple):
    """What one sweep of swaps did.

    Attributes:
        rungs: (ladders, count) the rung of each copy after it.
        attempted: (count, count) swaps tried between two rungs, over all ladders; symmetric.
        accepted: (count, count) those of them that were made.
    """

    rungs: np.ndarray
    attempted: np.ndarray
    accepted: np.ndarray


# ---------------------------------------------------------------- moves


def neighbour_swaps(
    rungs: np.ndarray,
    energies: np.ndarray,
    betas: np.ndarray,
    sweep: int,
    generator: np.random.Generator,
    frozen: np.ndarray | None = None,
) -> Swaps:
    """Try to swap every other pair of neighbouring rungs.

        p(swap) = min(1, exp[(b_i - b_j) (E_i - E_j)])

    Even sweeps try (0, 1), (2, 3), ..., odd ones (1, 2), (3, 4), ... Taking turns carries copies
    through the ladder in straight runs, which choosing at random does not.

    Args:
        rungs: (ladders, count) int, the rung at which each copy runs; every row a permutation.
        energies: (ladders, count) kJ/mol, of each copy's configuration.
        betas: (count,) inverse temperatures of the rungs, mol/kJ.
        sweep: number of the sweep; only whether it is even matters.
        generator: source of the random numbers.
        frozen: (ladders, count) bool, copies that keep their rung (their energies may be nan).

    Returns:
        New arrays; the input is left alone.

    Raises:
        InputError: if shapes do not fit, rows are no permutations, or energies are not finite.

    Reference: Sugita and Okamoto 1999, doi:10.1016/S0009-2614(99)01123-9; Syed et al. 2022,
    doi:10.1111/rssb.12464, for taking turns.
    """
    rungs, energies, betas, active = _checked(rungs, energies, betas, frozen)
    count = len(betas)
    holders = _holders(rungs)
    lower = np.arange(sweep % 2, count - 1, 2)
    cold, hot = holders[:, lower], holders[:, lower + 1]
    gain = (betas[lower] - betas[lower + 1]) * (
        np.take_along_axis(energies, cold, axis=1) - np.take_along_axis(energies, hot, axis=1)
    )
    accepted = gain > _log_uniform(generator, gain.shape)
    tried = np.full(len(lower), len(rungs))
    if active is not None:
        movable = np.take_along_axis(active, cold, axis=1) & np.take_along_axis(active, hot, 1)
        accepted &= movable
        tried = movable.sum(axis=0)

    moved = rungs.copy()
    np.put_along_axis(moved, cold, lower + accepted, axis=1)
    np.put_along_axis(moved, hot, lower + 1 - accepted, axis=1)
    pairs = lower * count + lower + 1
    return Swaps(moved, _matrix(pairs, tried, count), _matrix(pairs, accepted.sum(axis=0), count))


def gibbs_swaps(
    rungs: np.ndarray,
    energies: np.ndarray,
    betas: np.ndarray,
    sweep: int,
    generator: np.random.Generator,
    frozen: np.ndarray | None = None,
    attempts: int | None = None,
) -> Swaps:
    """Try so many swaps of random pairs that the rungs are drawn afresh, given the energies.

    Every ladder pairs its copies at random, all pairs of a round are tried at once with the
    probability of `neighbour_swaps`, and rounds repeat. (One pairing for all ladders would be
    twice as fast and still sample every ladder's distribution, but a given sequence of pairings
    does not run backwards as often as forwards, so ladders would drift alike.)

    Args:
        rungs, energies, betas, sweep, generator, frozen: see `neighbour_swaps`; the number of the
            sweep does not matter.
        attempts: swaps to try in each ladder, in whole rounds of count // 2. The literature's
            count^3 to count^5 is more than is needed: the correlation of rungs before and after
            stops falling at about count^2 (measured for 4 to 16 rungs, 0.3 to 0.7 of neighbouring
            swaps accepted). Default: 2 count^2.

    Returns:
        New arrays; the input is left alone.

    Raises:
        InputError: as `neighbour_swaps`.

    Reference: Chodera and Shirts 2011, doi:10.1063/1.3660669.
    """
    rungs, energies, betas, active = _checked(rungs, energies, betas, frozen)
    count = len(betas)
    half = count // 2
    attempts = 2 * count**2 if attempts is None else attempts
    rounds = -(-attempts // half) if half else 0

    moved, energies = rungs.ravel().copy(), energies.ravel()
    movable = None if active is None else active.ravel()
    copies = np.arange(rungs.size).reshape(rungs.shape)
    attempted, accepted = np.zeros(count**2, dtype=np.int64), np.zeros(count**2, dtype=np.int64)
    for _ in range(rounds):
        order = generator.permuted(copies, axis=1)
        one, other = order[:, :half].ravel(), order[:, half : 2 * half].ravel()
        if movable is not None:
            may = movable[one] & movable[other]
            one, other = one[may], other[may]
        here, there = moved[one], moved[other]
        gain = (betas[here] - betas[there]) * (energies[one] - energies[other])
        swap = gain > _log_uniform(generator, gain.shape)
        moved[one], moved[other] = np.where(swap, there, here), np.where(swap, here, there)
        pairs = here * count + there
        attempted += np.bincount(pairs, minlength=count**2)
        accepted += np.bincount(pairs[swap], minlength=count**2)
    every = np.arange(count**2)
    return Swaps(
        moved.reshape(rungs.shape),
        _matrix(every, attempted, count),
        _matrix(every, accepted, count),
    )


def _log_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return logarithms of numbers uniform in (0, 1): comparing these cannot overflow."""
    return -generator.standard_exponential(shape)


def _matrix(pairs: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """Return the symmetric matrix of numbers given for pairs of rungs i * count + j."""
    flat = np.zeros(count**2, dtype=np.int64)
    flat[pairs] = numbers
    matrix = flat.reshape(count, count)
    return matrix + matrix.T


def _holders(rungs: np.ndarray) -> np.ndarray:
    """Return the inverse permutations: which copy is at each rung (ladders, count)."""
    ladders, count = rungs.shape
    holders = np.full((ladders, count), -1, dtype=np.int64)
    np.put_along_axis(holders, rungs, np.arange(count)[None], axis=1)
    return holders


def _checked(
    rungs: Any, energies: Any, betas: Any, frozen: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the arrays of a sweep and which copies may move, None if all may."""
    rungs, energies = np.asarray(rungs), np.asarray(energies, dtype=np.float64)
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or rungs.ndim != 2 or rungs.shape[1] != len(betas):
        raise InputError(
            f"rungs have shape {rungs.shape} for betas of shape {betas.shape}; give "
            "(ladders, count) and (count,)"
        )
    if energies.shape != rungs.shape:
        raise InputError(f"energies have shape {energies.shape}, rungs {rungs.shape}; give equal")
    _require_permutations(rungs)
    if frozen is not None:
        frozen = np.asarray(frozen, dtype=bool)
        if frozen.shape != rungs.shape:
            raise InputError(f"frozen has shape {frozen.shape}, rungs {rungs.shape}; give equal")
        frozen = frozen if frozen.any() else None
    if frozen is not None:
        energies = np.where(frozen, 0.0, energies)
    finite = np.isfinite(energies)
    if not finite.all():
        ladder, copy = np.argwhere(~finite)[0]
        raise InputError(
            f"{np.count_nonzero(~finite)} energies are not finite, first that of copy {copy} of "
            f"ladder {ladder}; restart such copies, or pass frozen=~np.isfinite(energies)"
        )
    return rungs.astype(np.int64), energies, betas, None if frozen is None else ~frozen


def _require_permutations(rungs: np.ndarray) -> None:
    count = rungs.shape[1]
    inside = rungs.dtype.kind in "iu" and bool(((rungs >= 0) & (rungs < count)).all())
    if inside:
        wrong = np.flatnonzero((_holders(rungs) < 0).any(axis=1))
        if not len(wrong):
            return
        raise InputError(
            f"rungs of ladder {wrong[0]} are {rungs[wrong[0]].tolist()}; give each of 0 to "
            f"{count - 1} once"
        )
    raise InputError(f"rungs are {rungs.dtype} or out of range; give integers 0 to {count - 1}")


# ---------------------------------------------------------------- statistics


@dataclass(eq=False)
class ExchangeStatistics:
    """What the sweeps of a run did, added up.

    Attributes:
        attempted, accepted: (count, count) swaps between two rungs; symmetric.
        transitions: (count, count) copies at rung i before a sweep and at rung j after it.
        last_end: (ladders, count) the end of the ladder that each copy touched last: 0 the first
            rung, 1 the last rung, -1 neither yet.
        half_trips: (ladders, count) times that a copy has come from one end to the other.
    """

    attempted: np.ndarray
    accepted: np.ndarray
    transitions: np.ndarray
    last_end: np.ndarray
    half_trips: np.ndarray

    @classmethod
    def start(cls, ladders: int, count: int) -> "ExchangeStatistics":
        """Return the statistics of no sweeps of `ladders` ladders with `count` rungs."""
        none = np.zeros((count, count), dtype=np.int64)
        ends = np.full((ladders, count), -1, dtype=np.int64)
        return cls(none, none.copy(), none.copy(), ends, np.zeros_like(ends))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "ExchangeStatistics":
        """Return the statistics that `to_arrays` wrote.

        Raises:
            InputError: if an array is missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in arrays]
        if missing:
            raise InputError(
                f"exchange statistics lack {', '.join(missing)}; take those of `to_arrays`"
            )
        return cls(**{name: np.array(arrays[name], dtype=np.int64) for name in names})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return copies of all arrays by name, for a checkpoint."""
        return {field.name: getattr(self, field.name).copy() for field in dataclasses.fields(self)}

    def update(
        self,
        before: np.ndarray,
        after: np.ndarray,
        attempted: np.ndarray,
        accepted: np.ndarray,
    ) -> None:
        """Add one sweep.

        Args:
            before, after: (ladders, count) rungs of the copies.
            attempted, accepted: (count, count), see `Swaps`.

        Raises:
            InputError: if these are not the statistics of so many ladders and rungs.
        """
        count = len(self.attempted)
        shapes = [np.shape(one) for one in (before, after, attempted, accepted)]
        if shapes != [self.last_end.shape] * 2 + [(count, count)] * 2:
            raise InputError(
                f"a sweep of shapes {shapes} does not fit statistics of "
                f"{self.last_end.shape[0]} ladders of {count} rungs; start new ones"
            )
        self.attempted += attempted
        self.accepted += accepted
        pairs = np.asarray(before, dtype=np.int64) * count + after
        moves = np.bincount(pairs.ravel(), minlength=count**2)
        self.transitions += moves.reshape(count, count)
        self._touch(before)  # matters for the first sweep only: later it is the last `after`
        self._touch(after)

    def _touch(self, rungs: np.ndarray) -> None:
        last = len(self.attempted) - 1
        if last == 0:
            return  # a ladder of one rung has no ends to travel between
        end = np.where(rungs == 0, 0, np.where(rungs == last, 1, self.last_end))
        self.half_trips += (self.last_end >= 0) & (end != self.last_end)
        self.last_end = end

    @property
    def round_trips(self) -> np.ndarray:
        """(ladders, count) times that a copy came back to the end that it touched first.

        From the first rung to the last and back, or the other way round for copies that touched
        the last rung first.
        """
        return self.half_trips // 2

    @property
    def sweeps(self) -> int:
        """Number of sweeps."""
        return int(self.transitions.sum()) // max(1, self.last_end.size)

    def acceptance(self) -> np.ndarray:
        """Return the accepted fraction of each neighbouring pair (count - 1,), nan if untried."""
        tried, made = np.diag(self.attempted, 1), np.diag(self.accepted, 1)
        return np.where(tried > 0, made / np.maximum(tried, 1), np.nan)

    def mixing_matrix(self) -> np.ndarray:
        """Return the probability (count, count) of going from rung i to j in a sweep.

        Rows sum to one; nan before the first sweep.
        """
        totals = self.transitions.sum(axis=1, keepdims=True)
        return np.where(totals > 0, self.transitions / np.maximum(totals, 1), np.nan)

    def mixing_time(self) -> float:
        """Return in how many sweeps the memory of the rung decays to 1/e: -1 / ln lambda_2.

        lambda_2 is the second eigenvalue of the mixing matrix, made reversible. A lower bound:
        configurations that relax slowly keep copies near their rung for longer than the last
        rung alone tells.

        Returns:
            Sweeps; inf if some rungs were not connected, nan before the first sweep.

        Reference: Chodera and Shirts 2011, doi:10.1063/1.3660669.
        """
        if not self.sweeps:
            return float("nan")
        both = (self.transitions + self.transitions.T).astype(np.float64)
        scale = 1 / np.sqrt(both.sum(axis=1))
        eigenvalues = np.linalg.eigvalsh(both * np.outer(scale, scale))
        second = eigenvalues[-2] if len(eigenvalues) > 1 else 0.0
        if second <= 0:
            return 0.0
        return float("inf") if second > 1 - 1e-12 else float(-1 / np.log(second))

    def summary(self) -> dict[str, Any]:
        """Return the figures that matter as JSON; null where there is none."""
        time = self.mixing_time()
        return {
            "sweeps": self.sweeps,
            "neighbour_acceptance": [
                float(one) if np.isfinite(one) else None for one in self.acceptance()
            ],
            "round_trips": int(self.round_trips.sum()),
            "copies": int(self.round_trips.size),
            "copies_without_round_trip": int(np.count_nonzero(self.round_trips == 0)),
            "mixing_time_sweeps": time if np.isfinite(time) else None,
        }


# ---------------------------------------------------------------- ladders


def acceptance_probability(
    mean_i: Any, mean_j: Any, var_i: Any, var_j: Any, beta_i: Any, beta_j: Any
) -> Any:
    """Return the expected acceptance of swaps between two rungs with Gaussian energies.

        <min(1, e^x)> = Phi(m/s) + exp(m + s^2/2) Phi(-s - m/s)

    where x = (b_i - b_j)(E_i - E_j) has mean m = (b_i - b_j)(mean_i - mean_j) and variance
    s^2 = (b_i - b_j)^2 (var_i + var_j).

    Args:
        mean_i, mean_j: kJ/mol.
        var_i, var_j: (kJ/mol)^2.
        beta_i, beta_j: mol/kJ. All may be arrays that broadcast.

    Returns:
        Between 0 and 1; a float if all were.

    Reference: Rathore, Chopra and de Pablo 2005, doi:10.1063/1.1831273, for acceptance from
    energy distributions; the integral is elementary.
    """
    log = _log_acceptance(mean_i, mean_j, var_i, var_j, beta_i, beta_j)
    return np.exp(log) if np.ndim(log) else float(np.exp(log))


def _log_acceptance(
    mean_i: Any, mean_j: Any, var_i: Any, var_j: Any, beta_i: Any, beta_j: Any
) -> np.ndarray:
    """Return ln of `acceptance_probability`, which may be too small for a float."""
    from scipy.special import erfcx, log_ndtr

    step = np.asarray(beta_i, dtype=np.float64) - beta_j
    m = step * (np.asarray(mean_i, dtype=np.float64) - mean_j)
    s = np.abs(step) * np.sqrt(np.asarray(var_i, dtype=np.float64) + var_j)
    sharp = s <= 1e-12 * np.maximum(1.0, np.abs(m))  # x is m, as far as it matters
    s = np.where(sharp, 1.0, s)
    z = s + m / s
    # exp(m + s^2/2) Phi(-z) = exp(-(m/s)^2/2) erfcx(z/sqrt 2)/2 without the large terms' loss.
    right = np.log(erfcx(np.maximum(z, 0) / np.sqrt(2)) / 2) - (m / s) ** 2 / 2
    left = m + s**2 / 2 + log_ndtr(-z)
    smooth = np.logaddexp(log_ndtr(m / s), np.where(z > 0, right, left))
    return np.minimum(0.0, np.where(sharp, m, smooth))


def propose_ladder(
    lowest: Any,
    highest: Any,
    mean: Callable[[float], float],
    variance: Callable[[float], float],
    *,
    target: float | None = None,
    count: int | None = None,
) -> np.ndarray:
    """Return temperatures between which neighbouring rungs all swap equally often.

    Args:
        lowest, highest: first and last temperature, K.
        mean: mean energy in kJ/mol at an inverse temperature in mol/kJ.
        variance: its variance in (kJ/mol)^2, e.g. from a short run at a few temperatures.
        target: take the fewest rungs whose acceptance is at least this, or
        count: take this many rungs. Give one of them.

    Returns:
        (count,) K, ascending, `lowest` and `highest` included.

    Raises:
        InputError: if temperatures are not ascending, `target` or `count` makes no ladder, or
            `mean` and `variance` do not return finite energies.
    """
    low = strip(lowest, "kelvin", what="lowest temperature", positive=True)
    high = strip(highest, "kelvin", what="highest temperature", positive=True)
    if low >= high:
        raise InputError(f"lowest temperature {low} K is not below the highest, {high} K; swap")
    if (target is None) == (count is None):
        raise InputError("give either target, an acceptance, or count, a number of rungs")
    first, last = 1 / (GAS_CONSTANT * low), 1 / (GAS_CONSTANT * high)
    log_swap = _log_swap(mean, variance)
    if target is not None:
        count = _fewest(first, last, target, log_swap)
    if count is None or count < 2:
        raise InputError(f"count is {count}; give at least 2, the ends of the ladder")
    betas = np.array(_equal_steps(first, last, count, log_swap))
    kelvin = 1 / (GAS_CONSTANT * betas)
    kelvin[0], kelvin[-1] = low, high  # to the last digit
    return kelvin


#: ln acceptance between two inverse temperatures.
_LogSwap = Callable[[float, float], float]


def _log_swap(mean: Callable[[float], float], variance: Callable[[float], float]) -> _LogSwap:
    def moments(beta: float) -> tuple[float, float]:
        energy, square = float(mean(beta)), float(variance(beta))
        if not (np.isfinite(energy) and np.isfinite(square) and square >= 0):
            kelvin = 1 / (GAS_CONSTANT * beta)
            raise InputError(
                f"mean and variance at {kelvin:.6g} K are {energy}, {square}; give functions that "
                "return finite energies everywhere between the lowest and highest temperature"
            )
        return energy, square

    def log_swap(i: float, j: float) -> float:
        (mean_i, var_i), (mean_j, var_j) = moments(i), moments(j)
        return float(_log_acceptance(mean_i, mean_j, var_i, var_j, i, j))

    return log_swap


def _next(beta: float, last: float, log_acceptance: float, log_swap: _LogSwap) -> float:
    """Return the next inverse temperature at this acceptance, `last` if that is within reach."""
    from scipy.optimize import brentq

    if log_swap(beta, last) >= log_acceptance:
        return last
    return brentq(lambda b: log_swap(beta, b) - log_acceptance, last, beta, xtol=1e-14)


def _fewest(first: float, last: float, target: float, log_swap: _LogSwap) -> int:
    """Return how many rungs it takes if each is as far from the last as `target` allows."""
    if not 0 < target < 1:
        raise InputError(f"target acceptance is {target}; give a number between 0 and 1")
    beta, count = first, 1
    while beta > last:
        beta, count = _next(beta, last, float(np.log(target)), log_swap), count + 1
        if count > _MOST_RUNGS:
            raise InputError(
                f"target acceptance {target} takes more than {_MOST_RUNGS} rungs; lower it or "
                "the highest temperature"
            )
    return count


def _equal_steps(first: float, last: float, count: int, log_swap: _LogSwap) -> list[float]:
    """Return `count` inverse temperatures with equal acceptance between neighbours."""
    from scipy.optimize import brentq

    def inner(log_acceptance: float) -> list[float]:
        betas = [first]
        for _ in range(count - 2):
            betas.append(_next(betas[-1], last, log_acceptance, log_swap))
        return betas

    def excess(log_acceptance: float) -> float:
        # Falls as the wanted acceptance rises: what is left for the last pair grows.
        return log_swap(inner(log_acceptance)[-1], last) - log_acceptance

    whole = log_swap(first, last)
    if count == 2 or whole > -1e-12:  # with nothing to share out, any places will do
        return list(np.linspace(first, last, count))
    found = brentq(excess, whole, -1e-12, xtol=1e-12)
    return [*inner(found), last]
