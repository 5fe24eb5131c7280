"""A Boltzmann generator whose every step has an exact answer: Müller-Brown along x.

The all-atom system is a particle in the Müller-Brown potential V(x, y), kT = 1; the bead is x. An
unbiased run and one that is pushed over the barrier by a bias along x give the data. A density
learns where frames are, a PMF the mean force, V's alone, which the bias does not change. Samples
of either density, weighted by either PMF, are then the ensemble of that PMF; what each combination
makes of the free energy is drawn beside the exact one.

    python 11_muller_brown.py --output muller_brown.png
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch  # before openmm

import numpy as np
import openmm
from scipy.special import ndtr

from openmm_cgml.flow.transforms import TRANSFORMS
from openmm_cgml.reweight import WeightReport, log_mean, normalised, weight_report
from openmm_cgml.units import GAS_CONSTANT

#: V = sum of A exp(a (x - X)^2 + b (x - X) (y - Y) + c (y - Y)^2); A, a, b, c, X, Y.
TERMS = (
    (-17.3, -0.0039, 0.0, -0.0391, 48.0, 8.0),
    (-8.7, -0.0039, 0.0, -0.0391, 32.0, 16.0),
    (-14.7, -0.0254, 0.043, -0.0254, 24.0, 32.0),
    (1.3, 0.00273, 0.0023, 0.00273, 16.0, 24.0),
)
#: The bias -4 exp(-(x - 32)^2 / 50), in OpenMM's words.
BIAS = "-4*exp(-(x-32)^2/50)"
GRID = np.linspace(0.0, 60.0, 1201)
_Y = np.linspace(-20.0, 70.0, 3601)


def potential(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return V and its slope along x."""
    energy = np.zeros(np.broadcast(x, y).shape)
    slope = np.zeros_like(energy)
    for amplitude, a, b, c, x0, y0 in TERMS:
        dx, dy = x - x0, y - y0
        term = amplitude * np.exp(a * dx**2 + b * dx * dy + c * dy**2)
        energy += term
        slope += term * (2 * a * dx + b * dy)
    return energy, slope


def bias(x: np.ndarray) -> np.ndarray:
    """Return the bias."""
    return -4 * np.exp(-((x - 32) ** 2) / 50)


@dataclass(frozen=True, eq=False)
class Exact:
    """By quadrature over y, on `GRID`.

    Attributes:
        energy: U(x) = -ln int exp(-V) dy, its minimum zero.
        density: p(x), normalised.
        force: mean force along x at fixed x.
        variance: of that force: what no function of x can explain.
    """

    energy: np.ndarray
    density: np.ndarray
    force: np.ndarray
    variance: np.ndarray


def exact(with_bias: bool = False) -> Exact:
    """Integrate over y; with the bias the density changes, force and variance do not."""
    energy, slope = potential(GRID[:, None], _Y[None])
    lowest = energy.min(axis=1, keepdims=True)
    weights = np.exp(lowest - energy)
    total = weights.sum(axis=1)
    free = lowest[:, 0] - np.log(total * (_Y[1] - _Y[0]))
    force = -(weights * slope).sum(axis=1) / total
    variance = (weights * slope**2).sum(axis=1) / total - force**2
    free = free + bias(GRID) if with_bias else free
    density = np.exp(free.min() - free)
    density /= np.trapezoid(density, GRID)
    return Exact(free - free.min(), density, force, variance)


def simulate(
    with_bias: bool, chains: int, records: int, discard: int, seed: int = 0, steps: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Run independent particles in OpenMM; returns x and V's force (records, chains).

    The forces are of V alone, whatever the bias: enhanced-sampling force matching. Behind the
    barrier a particle stays for some 300 records: runs must be long, not only many.
    """
    terms = "+".join(
        f"({A})*exp(({a})*(x-{X})^2+({b})*(x-{X})*(y-{Y})+({c})*(y-{Y})^2)"
        for A, a, b, c, X, Y in TERMS
    )
    force = openmm.CustomExternalForce(f"{terms}{BIAS if with_bias else ''}+z^2/2")
    system = openmm.System()
    for _ in range(chains):
        force.addParticle(system.addParticle(1.0), [])
    system.addForce(force)
    # kT = 1 kJ/mol; time step 0.1 ps and friction 0.1/ps in these units.
    integrator = openmm.LangevinMiddleIntegrator(1 / GAS_CONSTANT, 0.1, 0.1)
    integrator.setRandomNumberSeed(seed + 1)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, integrator, platform)
    start = np.random.default_rng(seed).uniform(10, 50, (chains, 3)) * [1, 1, 0]
    context.setPositions(start)
    integrator.step(discard * steps)  # forget the start
    x, forces = np.empty((records, chains)), np.empty((records, chains))
    for record in range(records):
        integrator.step(steps)
        positions = context.getState(positions=True).getPositions(asNumpy=True)._value
        x[record] = positions[:, 0]
        forces[record] = -potential(positions[:, 0], positions[:, 1])[1]
    return x, forces


@dataclass(frozen=True, eq=False)
class ForceMatched:
    """A PMF whose force is a sum of Gaussians over a spring, as wide as the data.

    Force matching is linear then, and its minimum exact. Away from the data the spring is left.
    """

    coefficients: np.ndarray
    centres: np.ndarray
    width: float
    mean: float
    variance: float

    def energy(self, x: np.ndarray) -> np.ndarray:
        """Return U(x); it has no zero."""
        steps = ndtr((np.asarray(x)[:, None] - self.centres) / self.width)
        return steps @ self.coefficients + 0.5 * (x - self.mean) ** 2 / self.variance

    @classmethod
    def fit(cls, x: np.ndarray, forces: np.ndarray, count: int = 60) -> "ForceMatched":
        """Minimise the mean square of F + dU/dx."""
        x, forces = np.ravel(x), np.ravel(forces)
        centres = np.linspace(x.min(), x.max(), count)
        width = 1.2 * (centres[1] - centres[0])
        mean, variance = x.mean(), x.var()
        matrix, right = 1e-9 * len(x) * np.eye(count), np.zeros(count)
        for part in np.array_split(np.arange(len(x)), -(-len(x) // 100_000)):
            offsets = (x[part, None] - centres) / width
            slope = np.exp(-0.5 * offsets**2) / (width * math.sqrt(2 * math.pi))
            matrix += slope.T @ slope
            right -= slope.T @ (forces[part] + (x[part] - mean) / variance)
        return cls(np.linalg.solve(matrix, right), centres, width, mean, variance)


class Density:
    """A one-dimensional flow: a smooth monotone map of a logistic number.

    The same transform as in `CouplingFlow`, its parameters fitted by maximum likelihood.
    """

    def __init__(self, x: np.ndarray, components: int = 24, steps: int = 400, seed: int = 0):
        data = torch.as_tensor(np.ravel(x))
        self.mean, self.spread = float(data.mean()), float(data.std())
        self.kind = TRANSFORMS["smooth"][1]
        draw = torch.Generator().manual_seed(seed)
        size = self.kind.parameters(components)
        self.raw = torch.randn(size, generator=draw, dtype=torch.float64).requires_grad_(True)
        optimizer = torch.optim.Adam([self.raw], lr=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            batch = data[torch.randint(len(data), (4096,), generator=draw)]
            optimizer.zero_grad()
            (-self._log_prob(batch).mean()).backward()
            optimizer.step()
            schedule.step()
        self.raw = self.raw.detach()

    def _log_prob(self, x: torch.Tensor) -> torch.Tensor:
        latent, log_slope = self.kind(self.raw).forward((x - self.mean) / self.spread)
        logistic = latent - 2 * torch.nn.functional.softplus(latent)
        return logistic + log_slope - math.log(self.spread)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Return ln q(x)."""
        return self._log_prob(torch.as_tensor(x)).numpy()

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """Return independent samples (count,)."""
        draw = np.random.default_rng(seed)
        latent = torch.as_tensor(draw.logistic(size=count))
        found = self.kind(self.raw.expand(count, -1)).inverse(latent)[0]
        return self.mean + self.spread * found.numpy()


@dataclass(frozen=True, eq=False)
class Reweighted:
    """Samples of a density, weighted by a PMF.

    Attributes:
        x: (samples,).
        weights: (samples,), summing to one.
        report: what they are worth.
        log_z: ln of the integral of exp(-U), and its error.
    """

    x: np.ndarray
    weights: np.ndarray
    report: WeightReport
    log_z: tuple[float, float]

    def profile(self, edges: np.ndarray) -> np.ndarray:
        """Return -ln p in bins; infinite where no sample was."""
        counts = np.histogram(self.x, edges, weights=self.weights)[0]
        with np.errstate(divide="ignore"):
            return -np.log(counts / np.diff(edges))

    def errors(self, edges: np.ndarray) -> np.ndarray:
        """Return standard errors of the profile; nan where no sample was."""
        counts = np.histogram(self.x, edges, weights=self.weights)[0]
        squares = np.histogram(self.x, edges, weights=self.weights**2)[0]
        with np.errstate(invalid="ignore"):
            return np.sqrt(squares) / counts


def reweight(density: Density, energy, count: int, seed: int = 0) -> Reweighted:
    """Weigh samples of a density by exp(-U): w = exp(-U) / q."""
    x = density.sample(count, seed)
    logs = -energy(x) - density.log_prob(x)
    return Reweighted(x, normalised(logs), weight_report(logs), log_mean(logs))


def main() -> None:
    """Simulate, learn, weigh, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    parser.add_argument("--quick", action="store_true", help="seconds, more noise")
    options = parser.parse_args()
    length = (20, 1000, 300) if options.quick else (40, 10_000, 2000)
    count = 20_000 if options.quick else 200_000
    runs = {name: simulate(name == "biased", *length) for name in ("unbiased", "biased")}
    densities = {
        name: Density(x, steps=150 if options.quick else 400) for name, (x, _) in runs.items()
    }
    pmfs = {name: ForceMatched.fit(*data) for name, data in runs.items()}
    found = {
        (q, u): reweight(densities[q], pmfs[u].energy, count) for q in densities for u in pmfs
    }
    truth = exact()
    beyond = GRID > 31.2
    population = np.trapezoid(truth.density[beyond], GRID[beyond])
    print(f"behind the barrier, exact: {population:.4f}")
    for (q, u), result in found.items():
        share = float(result.weights[result.x > 31.2].sum())
        print(f"density of {q} frames, PMF of {u} ones: {share:.4f}; {result.report.text()}")
    draw(options.output, truth, densities, found)


def draw(path: Path, truth: Exact, densities: dict, found: dict) -> None:
    """Draw the data's densities on the left, and what reweighting makes of them on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    styles = {"unbiased": ("#0072b2", "-"), "biased": ("#d55e00", "--")}
    for axis in axes:
        axis.plot(GRID, truth.energy, color="#222222", lw=4, alpha=0.3, label="exact")
    for name, density in densities.items():
        free = -density.log_prob(GRID)
        colour, dashes = styles[name]
        axes[0].plot(GRID, free - free.min(), color=colour, ls=dashes, label=f"density, {name}")
    edges = np.linspace(12, 48, 73)
    centres = 0.5 * (edges[1:] + edges[:-1])
    for (q, u), result in found.items():
        profile, error = result.profile(edges), result.errors(edges)
        profile = profile - profile.min()
        axes[1].plot(centres, profile, color=styles[q][0], ls=styles[u][1], lw=1.4,
                     label=f"density {q}, PMF {u}")  # fmt: skip
        axes[1].fill_between(
            centres, profile - 2 * error, profile + 2 * error, color=styles[q][0], alpha=0.2, lw=0
        )
    axes[0].set(ylabel="free energy / kT", title="what the frames show", xlabel="x")
    axes[1].set(title="reweighted", xlabel="x")
    for axis in axes:
        axis.set(ylim=(-0.5, 12), xlim=(12, 48))
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
