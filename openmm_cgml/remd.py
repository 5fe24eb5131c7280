"""Replica exchange: ladders of temperatures, many of them in one Context."""

import logging
from pathlib import Path
from typing import Any

import torch  # noqa: F401  (before openmm: TorchForce's plugins need its libraries)

import numpy as np

from .errors import InputError
from .exchange import SWAPS, ExchangeStatistics, propose_ladder
from .simulate import Langevin
from .system import Model
from .units import GAS_CONSTANT, strip, strip_array

logger = logging.getLogger(__name__)


class ReplicaExchange(Langevin):
    """Copies at the temperatures of a ladder that exchange them; many ladders side by side.

    A copy keeps its positions; on an exchange its thermostat gets another temperature, and its
    velocities are rescaled by the square root of the ratio (Sugita & Okamoto 1999,
    doi:10.1016/S0009-2614(99)01123-9). All copies' energies come from one batched evaluation.

    A PMF is the free energy at its training temperature, so only the rung at that temperature
    samples a physical ensemble; the others help it over barriers.

    Args:
        model: as in `Langevin`.
        start: as in `Langevin`, for all ladders times rungs copies.
        temperatures: of the rungs, K, ascending; see `ladder`.
        copies: number of independent ladders.
        exchange_interval: ps between exchanges.
        exchange: ``"neighbour"`` (even and odd pairs in turn) or ``"gibbs"`` (random pairs of
            all rungs; Chodera & Shirts 2011, doi:10.1063/1.3660669).
        **settings: all other arguments of `Langevin`, except temperature.

    Attributes:
        statistics: `ExchangeStatistics`: acceptance, mixing matrix, round trips.

    Raises:
        InputError: as `Langevin`; if the temperatures do not ascend; if `shared_forces` are given,
            whose energy cannot be told copy by copy.
    """

    def __init__(
        self,
        model: Model | str | Path,
        start: Any,
        temperatures: Any,
        copies: int = 1,
        *,
        exchange_interval: Any = 0.2,
        exchange: str = "neighbour",
        **settings: Any,
    ) -> None:
        values = strip_array(temperatures, "kelvin", what="temperatures").astype(float)
        if values.ndim != 1 or len(values) < 2 or not (np.diff(values) > 0).all():
            raise InputError(
                f"temperatures are {values.tolist()}; give at least two, ascending, e.g. "
                "ladder(300, 600, 8)"
            )
        if int(copies) < 1:
            raise InputError(f"copies is {copies}; give at least 1 ladder")
        SWAPS[exchange]  # noqa: B018  (unknown names raise)
        if settings.get("shared_forces"):
            raise InputError(
                "replica exchange needs the energy of every copy, which shared_forces do not "
                "tell; give the force for one copy, as one of forces"
            )
        if "temperature" in settings:
            raise InputError("replica exchange takes temperatures, not temperature")
        self.ladders = int(copies)
        super().__init__(
            model,
            start,
            self.ladders * len(values),
            temperature=np.tile(values, self.ladders),
            **settings,
        )
        interval = strip(exchange_interval, "picosecond", what="exchange_interval", positive=True)
        self.exchange_stride = max(1, round(interval / self.timestep))
        self.exchange = exchange
        self.statistics = ExchangeStatistics.start(self.ladders, len(values))
        self._betas = 1 / (GAS_CONSTANT * values)

    def _exchange(self, energies: np.ndarray, frozen: np.ndarray) -> None:
        shape = (self.ladders, len(self.temperatures))
        before = self.rungs.reshape(shape)
        after, attempted, accepted = SWAPS[self.exchange](
            before,
            energies.reshape(shape),
            self._betas,
            self.statistics.sweeps,
            self._common,
            frozen.reshape(shape),
        )
        self.statistics.update(before, after, attempted, accepted)
        self.rungs = after.reshape(-1)

    def _exchange_arrays(self) -> dict[str, np.ndarray]:
        return self.statistics.to_arrays()

    def _load_exchange_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        self.statistics = ExchangeStatistics.from_arrays(arrays)

    def _statistics(self) -> dict[str, Any]:
        return self.statistics.summary()

    def _live(self) -> str:
        rates = self.statistics.acceptance()
        if not np.isfinite(rates).any():
            return ""
        low, high = np.nanmin(rates), np.nanmax(rates)
        trips = int(self.statistics.round_trips.sum())
        return f"accept {low:.2f}-{high:.2f}, {trips} round trips"

    def _info(self, stride: int, output: Path) -> dict[str, Any]:
        return {
            **super()._info(stride, output),
            "ladders": self.ladders,
            "exchange": self.exchange,
            "steps_per_exchange": self.exchange_stride,
        }


def ladder(
    lowest: Any,
    highest: Any,
    count: int | None = None,
    *,
    model: Model | str | Path | None = None,
    start: Any = None,
    acceptance: float = 0.3,
    copies: int = 16,
    ps: float = 10.0,
    **settings: Any,
) -> np.ndarray:
    """Propose temperatures for a replica exchange.

    Without a model they grow by a constant factor, which gives equal acceptance where the heat
    capacity does not change. With one, a short run at trial temperatures measures the energies,
    and rungs are placed so that all neighbours accept equally often.

    Args:
        lowest, highest: K.
        count: number of rungs; None: the fewest that reach `acceptance` (needs a model).
        model: what will run.
        start: as in `Langevin`.
        acceptance: target for every pair of neighbours.
        copies: of the short run, at each trial temperature.
        ps: length of the short run; its first third is left out.
        **settings: further arguments of `Langevin`.

    Returns:
        (rungs,) temperatures, K, ascending.

    Raises:
        InputError: if the temperatures do not ascend, or neither count nor model is given.
    """
    low = strip(lowest, "kelvin", what="lowest", positive=True)
    high = strip(highest, "kelvin", what="highest", positive=True)
    if low >= high:
        raise InputError(f"lowest is {low:g} K and highest {high:g} K; let them ascend")
    if count is not None and count < 2:
        raise InputError(f"count is {count}; a ladder has at least 2 rungs")
    if model is None:
        if count is None:
            raise InputError("give either count, or model and start to find it")
        return np.geomspace(low, high, count)
    trials = np.geomspace(low, high, max(4, round(4 * np.log2(high / low)) + 1))
    energies = _trial_energies(model, start, trials, copies, ps, settings)
    betas = 1 / (GAS_CONSTANT * trials)
    degree = min(3, len(trials) - 1)
    mean = np.polynomial.Polynomial.fit(betas, energies.mean(1), degree)
    logarithm = np.polynomial.Polynomial.fit(betas, np.log(energies.var(1)), min(2, degree))
    return propose_ladder(
        low,
        high,
        mean,
        lambda beta: np.exp(logarithm(beta)),
        count=count,
        target=None if count is not None else acceptance,
    )


def _trial_energies(
    model: Any, start: Any, trials: np.ndarray, copies: int, ps: float, settings: dict[str, Any]
) -> np.ndarray:
    """Return potential energies (trials, samples), kJ/mol, of independent copies."""
    level = logging.getLogger("openmm_cgml.simulate")
    was = level.level
    level.setLevel(logging.ERROR)  # trial temperatures deserve no warning
    try:
        run = Langevin(
            model, start, copies * len(trials), temperature=np.repeat(trials, copies), **settings
        )
    finally:
        level.setLevel(was)
    steps = round(ps / run.timestep)
    run.engine.step(steps // 3)
    samples = []
    for _ in range(40):
        run.engine.step(max(1, steps // 60))
        report = run.engine.read()
        samples.append(np.where(report.sick > 0, np.nan, report.energies))
    # Every rank ran its share of the copies; all see all energies, and propose the same rungs.
    values = run.ranks.gather(np.stack(samples, axis=1)).reshape(len(trials), -1)
    if np.isnan(values).any():
        raise InputError(
            "copies are not finite in the short run; lower the highest temperature or the timestep"
        )
    return values
