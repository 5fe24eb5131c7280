"""Is a coarse-grained Boltzmann generator right where the answer is known exactly?

Müller-Brown along x, of examples/11_muller_brown.py, kT = 1. First the exact numbers by
quadrature. Then two million frames of an unbiased and of a biased run: the free energy of samples
of either density, weighted by the PMF of either run, against the exact one where p > 1e-4, in
units of its standard error

    sigma^2(x) = int v(x') / (N_eff p(x')) dx' + 1 / (B p(x) dx)

from the highest bin on, with v the variance of the force at fixed x, p the training density,
N_eff the independent frames, and the second term that of B samples in bins dx. Then how the error
falls with B, for the exact energy and for a learned one; and a PMF with the bias left in.
"""

import runpy
from pathlib import Path
from typing import Any

import torch  # noqa: F401  (before openmm)

import numpy as np

from benchmarks.contract import Outcome, Target, main
from openmm_cgml.correlation import statistical_inefficiency

ISSUE = "Boltzmann-generators issue"
SPEC = "specification, by quadrature"
EXAMPLE = Path(__file__).parents[1] / "examples" / "11_muller_brown.py"
MB: dict[str, Any] = runpy.run_path(str(EXAMPLE))
GRID = MB["GRID"]
#: Bins of the profile, and how rare one may be.
EDGES, RARE = np.linspace(10.0, 50.0, 81), 1e-4
BARRIER = 31.2
#: Golden values and their last printed digit.
GOLDEN = {
    "first minimum, x": (23.02, 0.01), "second minimum, x": (41.62, 0.01),
    "second minimum, kT": (3.54, 0.01), "barrier, x": (31.20, 0.01), "barrier, kT": (5.30, 0.01),
    "P(x > 31.2)": (0.0383, 1e-4), "mean of x": (23.511, 1e-3),
    "standard deviation of x": (4.012, 1e-3), "biased mean of x": (25.502, 1e-3),
    "biased P(x > 31.2)": (0.0939, 1e-4), "noise floor": (0.4202, 1e-4),
    "noise floor, biased": (0.4081, 1e-4), "effective share of the bias": (0.641, 1e-3),
}  # fmt: skip
MINIMA = ((23.08, 31.08, -12.686), (41.90, 8.45, -9.266), (31.18, 15.48, -7.022))


def golden() -> dict[str, float]:
    """Return the exact numbers."""
    plain, biased = MB["exact"](), MB["exact"](with_bias=True)
    fine = np.linspace(GRID[0], GRID[-1], 400_001)
    left, right = fine < BARRIER, fine > 38
    middle = (fine > 26) & (fine < 38)

    def vertex(mask: np.ndarray, sign: float) -> tuple[float, float]:
        """Return the extremum of a parabola through the three grid points about it."""
        own = np.interp(fine[mask], GRID, sign * plain.energy)
        k = int(np.abs(GRID - fine[mask][own.argmin()]).argmin())
        c = np.polyfit(GRID[k - 1 : k + 2] - GRID[k], plain.energy[k - 1 : k + 2], 2)
        x = -c[1] / (2 * c[0])
        return float(GRID[k] + x), float(np.polyval(c, x))

    first, second, top = vertex(left, 1), vertex(right, 1), vertex(middle, -1)

    def mean(p: np.ndarray, values: np.ndarray) -> float:
        return float(np.trapezoid(p * values, GRID))

    def beyond(p: np.ndarray) -> float:
        """Return the integral from the barrier on, which is no grid point."""
        x = np.linspace(BARRIER, GRID[-1], 20_001)
        return float(np.trapezoid(np.interp(x, GRID, p), x))

    p, q = plain.density, biased.density
    average = mean(p, GRID)
    factor = np.exp(MB["bias"](GRID))  # target over proposal, up to a constant
    return {
        "first minimum, x": first[0], "second minimum, x": second[0],
        "second minimum, kT": second[1] - first[1], "barrier, x": top[0],
        "barrier, kT": top[1] - first[1], "P(x > 31.2)": beyond(p), "mean of x": average,
        "standard deviation of x": mean(p, (GRID - average) ** 2) ** 0.5,
        "biased mean of x": mean(q, GRID), "biased P(x > 31.2)": beyond(q),
        "noise floor": mean(p, plain.variance), "noise floor, biased": mean(q, plain.variance),
        "effective share of the bias": mean(q, factor) ** 2 / mean(q, factor**2),
    }  # fmt: skip


def minima() -> list[tuple[float, float, float]]:
    """Return the minima of the potential, near the golden ones."""
    from scipy.optimize import minimize

    found = []
    for x, y, _ in MINIMA:
        best = minimize(
            lambda z: float(MB["potential"](np.float64(z[0]), np.float64(z[1]))[0]), (x, y),
            method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12},
        )  # fmt: skip
        found.append((float(best.x[0]), float(best.x[1]), float(best.fun)))
    return found


def scores(
    result: Any, effective: float, training: np.ndarray, count: int
) -> tuple[float, float, np.ndarray]:
    """Return the largest |z| of a reweighted profile, the RMS error in kT, and all errors.

    Args:
        result: reweighted samples.
        effective: independent training frames of the PMF.
        training: their density on `GRID`.
        count: samples.
    """
    truth = MB["exact"]()
    centres = 0.5 * (EDGES[1:] + EDGES[:-1])
    width = EDGES[1] - EDGES[0]
    # Bins against bins: the mean of the exact density over each.
    fine = np.linspace(EDGES[0], EDGES[-1], 80 * 200 + 1)
    cells = np.interp(fine[:-1] + 0.5 * (fine[1] - fine[0]), GRID, truth.density)
    expected = cells.reshape(80, -1).mean(1)
    share = result.report.fraction
    common = (expected > RARE) & (count * share * expected * width > 20)
    zero = int(expected.argmax())
    gap = result.profile(EDGES) + np.log(expected)
    gap = gap - gap[zero]
    rate = truth.variance / (effective * np.maximum(training, 1e-300))
    total = np.concatenate([[0.0], np.cumsum(0.5 * (rate[1:] + rate[:-1]) * np.diff(GRID))])
    known = np.interp(centres, GRID, total)
    sampled = 1 / (count * share * expected * width) + 1 / (count * share * expected[zero] * width)
    sigma = np.sqrt(np.abs(known - known[zero]) + sampled)
    z = (gap / sigma)[common & (np.arange(80) != zero)]
    return float(np.abs(z).max()), float(np.sqrt((gap[common] ** 2).mean())), gap


def run(quick: bool) -> Outcome:
    """Check the exact numbers, then learn and weigh."""
    found = golden()
    targets = [
        Target(f"{name}: off by", "last printed digits", 0.5 + 1e-6,
               abs(found[name] - value) / digit, source=SPEC)
        for name, (value, digit) in GOLDEN.items()
    ]  # fmt: skip
    worst = max(
        max(abs(a - b) / d for a, b, d in zip(one, two, (0.01, 0.01, 0.001), strict=True))
        for one, two in zip(minima(), MINIMA, strict=True)
    )
    targets.append(Target("minima of the potential: off by", "last printed digits", 0.5 + 1e-6,
                          worst, source=SPEC))  # fmt: skip
    length = (20, 1000, 300) if quick else (20, 100_000, 3000)
    count = 10_000 if quick else 1_000_000
    runs = {name: MB["simulate"](name == "biased", *length) for name in ("unbiased", "biased")}
    density = {n: MB["exact"](with_bias=n == "biased").density for n in runs}
    pmfs = {name: MB["ForceMatched"].fit(*data) for name, data in runs.items()}
    flows = {n: MB["Density"](x, steps=60 if quick else 600) for n, (x, _) in runs.items()}
    effective, details = {}, {"golden": found}
    for name, (x, forces) in runs.items():
        residual = forces - np.interp(x, GRID, MB["exact"]().force)
        between = (x > 23) & (x < 41.6)
        series = np.where(between, residual / np.interp(x, GRID, density[name]), 0.0)
        effective[name] = x.size / statistical_inefficiency(series)
        details[f"independent {name} frames"] = effective[name]
        details[f"inefficiency of {name} forces"] = statistical_inefficiency(residual)
    for q, flow in flows.items():
        for u, pmf in pmfs.items():
            result = MB["reweight"](flow, pmf.energy, count, seed=7)
            z, rms, _ = scores(result, effective[u], density[u], count)
            targets += [
                Target(f"density {q}, PMF {u}: largest |z| of the profile", "", 4.0, z,
                       source=ISSUE),
                Target(f"density {q}, PMF {u}: RMS error of the profile", "kT", None, rms),
                Target(f"density {q}, PMF {u}: effective share", "", None, result.report.fraction),
                Target(f"density {q}, PMF {u}: P(x > 31.2)", "", None,
                       float(result.weights[result.x > BARRIER].sum())),
            ]  # fmt: skip
    targets += convergence(flows["biased"], pmfs["biased"], quick, details)
    x, forces = runs["biased"]
    left_in = MB["ForceMatched"].fit(x, forces + (x - 32) / 25 * MB["bias"](x))
    result = MB["reweight"](flows["unbiased"], left_in.energy, count, seed=7)
    targets.append(
        Target("bias left in the forces: largest |z| of the profile", "", 4.0,
               scores(result, effective["biased"], density["biased"], count)[0], at_most=False,
               source=ISSUE + ", negative control")
    )  # fmt: skip
    return Outcome(targets, 0, details)


def convergence(flow: Any, pmf: Any, quick: bool, details: dict[str, Any]) -> list[Target]:
    """Return how the error of P(x > 31.2) falls with the number of samples."""
    truth = MB["exact"]()
    exact = details["golden"]["P(x > 31.2)"]

    def true_energy(x: np.ndarray) -> np.ndarray:
        """Return the exact U, as steep beyond the grid as at its ends."""
        return np.interp(x, GRID, truth.energy) + 10 * np.abs(x - np.clip(x, GRID[0], GRID[-1]))

    own = np.exp(-pmf.energy(GRID) + pmf.energy(GRID).min())
    beyond = GRID >= BARRIER
    bias = float(np.trapezoid(own[beyond], GRID[beyond]) / np.trapezoid(own, GRID)) - exact
    sizes = (300, 3000) if quick else (1000, 10_000, 100_000, 1_000_000)
    repeats = 3 if quick else 24
    errors: dict[str, list[float]] = {"exact": [], "learned": []}
    for count in sizes:
        for name, energy in (("exact", true_energy), ("learned", pmf.energy)):
            shares = []
            for seed in range(repeats if count < 1_000_000 else repeats // 3):
                result = MB["reweight"](flow, energy, count, seed=1000 * count + seed)
                shares.append(float(result.weights[result.x > BARRIER].sum()))
            errors[name].append(float(np.sqrt(np.mean((np.array(shares) - exact) ** 2))))
    slope = float(np.polyfit(np.log(sizes), np.log(errors["exact"]), 1)[0])
    details |= {"samples": list(sizes), "errors": errors, "bias of the PMF": bias}
    return [
        Target("exact U: slope of ln error over ln samples, off -1/2 by", "", 0.1,
               abs(slope + 0.5), source=ISSUE),
        Target("learned U: error at the most samples over the PMF's own bias", "", None,
               errors["learned"][-1] / abs(bias)),
    ]  # fmt: skip


if __name__ == "__main__":
    main("muller_brown", __doc__, run)
