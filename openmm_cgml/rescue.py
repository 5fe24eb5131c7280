"""When reweighting is not enough: checks by dynamics, annealing, and pooling with a run.

What a flow never draws, its weights never see. The engine does: from frames of high weight
(`check_by_dynamics`), along a bridge of ensembles from the flow to the PMF (`anneal`), or by a run
whose frames are combined with the flow's (`combine`).
"""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # before openmm

import numpy as np

import openmm  # isort: skip

from .boltzmann import (
    WeightedSamples,
    energies_of,
    log_densities,
    systematic,
    weighted_samples,
)
from .correlation import statistical_inefficiency
from .engine import find_platform
from .errors import CGMLError, InputError
from .flow.core import Flow
from .mbar import mbar_target
from .progress import ProgressBar
from .reweight import Estimate, kish_size, log_mean, normalised
from .run_file import Run
from .simulate import Langevin
from .system import Model
from .units import GAS_CONSTANT

logger = logging.getLogger(__name__)

_CHUNK = 1024  # frames whose densities are computed together

# Share of the weighted samples whose density under the flow is lower than what counts as outside.
_RARE = 1e-3


@dataclass(frozen=True)
class DynamicsCheck:
    """Whether dynamics of a PMF stay in the ensemble that the weights say it has.

    Attributes:
        copies: independent runs from frames drawn by weight.
        ps: length of each.
        outside: share of the last frames where the flow's density is lower than in all but one in
            a thousand weighted samples: about 0.001 if nothing is wrong, more if the PMF has
            basins that the flow does not draw.
        energy: mean of the last frames minus that of the weighted samples, kJ/mol.
    """

    copies: int
    ps: float
    outside: float
    energy: Estimate

    @property
    def suspicious(self) -> bool:
        """Whether more copies have left than chance explains, or the energy has drifted."""
        allowed = _RARE + 4 * (_RARE / self.copies) ** 0.5 + 1 / self.copies
        return self.outside > allowed or abs(self.energy.value) > 5 * self.energy.error

    def text(self) -> str:
        """Return the check in a line."""
        verdict = (
            "the PMF leads where the flow does not draw, which the weights cannot see"
            if self.suspicious
            else "nothing speaks against the weights"
        )
        return (
            f"{self.copies} copies for {self.ps:g} ps from weighted samples: {self.outside:.1%} "
            f"end outside the flow, mean energy {self.energy.value:+.2f} ± "
            f"{self.energy.error:.2f} kJ/mol from the weighted one; {verdict}"
        )


def check_by_dynamics(
    samples: WeightedSamples,
    flow: Flow,
    model: Model | str | Path,
    *,
    copies: int = 200,
    ps: float = 10.0,
    seed: int = 0,
    **settings: Any,
) -> DynamicsCheck:
    """Run the engine from frames drawn by weight, and see whether they stay in the ensemble.

    Args:
        samples: weighted by the same model.
        flow: that they were drawn from.
        model: the PMF.
        copies: independent runs.
        ps: length of each.
        seed: of frames and noise.
        **settings: of `Langevin`, such as the time step.

    Raises:
        CGMLError: if the run does not finish.
    """
    simulation = Langevin(
        model, samples.resample(copies, seed), copies=copies, seed=seed,
        **{"friction": 5.0, **settings},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = simulation.run(
            Path(folder) / "check.h5", ns=ps / 1000, interval=ps / 2, progress=False
        )
    if not run.finished:
        raise CGMLError("the check was interrupted; run it again")
    last = np.asarray(run.positions[-1], dtype=np.float64)
    order = np.argsort(density := log_densities(flow, samples.positions).numpy())
    edge = density[order][np.searchsorted(np.cumsum(samples.weights[order]), _RARE)]
    mean = samples.expectation(samples.energies)
    now = energies_of(simulation.model, last)
    return DynamicsCheck(
        copies=copies,
        ps=float(ps),
        outside=float((log_densities(flow, last).numpy() < edge).mean()),
        energy=Estimate(
            float(now.mean() - mean.value),
            float(np.hypot(mean.error, now.std(ddof=1) / copies**0.5)),
            "kJ/mol",
        ),
    )


# ---------------------------------------------------------------- annealing


@dataclass(frozen=True, eq=False)
class Annealed:
    """Samples carried from a flow to a PMF.

    Attributes:
        samples: with what weights are left, ln Z from all stages.
        shares: (stages + 1,) of the PMF in the bridge, from 0 to 1.
        effective: (stages,) Kish's share of the particles after each stage, before resampling.
        resampled: how many times.
    """

    samples: WeightedSamples
    shares: np.ndarray
    effective: np.ndarray
    resampled: int


class _FlowForces:
    """What a PythonForce calls: a flow's potential of mean force for all particles."""

    def __init__(self, flow: Flow, copies: int) -> None:
        self.flow, self.copies = flow, copies

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        share = state.getParameters()[_FLOW_SHARE]
        positions = state.getPositions(asNumpy=True)._value.reshape(self.copies, -1, 3)
        if share == 0:
            return 0.0, np.zeros((positions.shape[0] * positions.shape[1], 3))
        frames = torch.as_tensor(positions).to(next(self.flow.parameters()))
        forces = [self.flow.forces(x) for x in frames.split(_CHUNK)]
        # The energy is never read: dynamics need forces alone.
        return 0.0, share * torch.cat(forces).double().cpu().numpy().reshape(-1, 3)


_PMF_SHARE, _FLOW_SHARE = "pmf_share", "flow_share"


def anneal(
    samples: WeightedSamples,
    flow: Flow,
    model: Model,
    *,
    particles: int = 1000,
    steps: int = 50,
    keep: float = 0.9,
    timestep: float = 0.002,
    friction: float = 5.0,
    most_stages: int = 200,
    seed: int = 0,
    platform: Any = None,
    backend: str | None = None,
    progress: bool | None = None,
) -> Annealed:
    """Carry a flow's samples to the ensemble of a PMF, by sequential Monte Carlo.

        p_a(x) ~ q(x)^(1 - a) exp(-a U(x) / kT),    a from 0 to 1

    Each stage raises a as far as the weights stay even, draws particles anew by weight if less
    than half of them are effective, and runs Langevin dynamics of the bridge in OpenMM. Moves
    leave p_a unchanged up to the error of the time step.

    Args:
        samples: of the flow, weighted by the model; the first ones are the particles.
        flow: that they were drawn from.
        model: the PMF.
        particles: how many.
        steps: of dynamics a stage.
        keep: conditional effective share of the particles in a stage, below one; larger: more
            stages.
        timestep, friction: ps, 1/ps.
        most_stages: before it gives up.
        seed: of moves and choices.
        platform, backend: as of `Langevin` and `Model.create_force`.
        progress: show a progress bar; None: if the output is a terminal.

    Returns:
        The particles with their weights. The error of ln Z adds up those of the stages.

    Raises:
        InputError: if there are fewer samples than particles.
        CGMLError: if the stages do not suffice, or a particle is no longer finite.

    Reference: Del Moral et al. 2006, doi:10.1111/j.1467-9868.2006.00553.x; for the stages Zhou
    et al. 2016, arXiv:1303.3123; for flows arXiv:2502.18462.
    """
    alive, share = _with_weight(samples)
    if not 2 <= particles <= len(alive):
        raise InputError(f"particles is {particles}; give 2 to {len(alive)}, the samples")
    if not 0 < keep < 1:
        raise InputError(f"keep is {keep}; give a share between 0 and 1")
    kt = samples.kt
    context = _bridge(flow, model, particles, timestep, friction, seed, platform, backend)
    positions = np.asarray(samples.positions[alive[:particles]])
    logs, log_z, variance = np.zeros(particles), share, 0.0
    shares, effective, resampled = [0.0], [], 0
    with ProgressBar(progress, 100, "annealing") as bar:
        while shares[-1] < 1:
            bar.update(round(100 * shares[-1]), f"stage {len(shares)}")
            if len(shares) > most_stages:
                raise CGMLError(
                    f"{most_stages} stages lead to {shares[-1]:.2f} of the PMF; flow and PMF have "
                    "too little in common: fine-tune the flow, or raise most_stages"
                )
            energies = energies_of(model, positions)
            gap = -energies / kt - log_densities(flow, positions).numpy()
            step = _next_step(gap, logs, keep, 1 - shares[-1])
            rise, error = log_mean(_ratio_terms(logs, step * gap))
            log_z, variance = log_z + rise, variance + error**2
            logs = logs + step * gap
            shares.append(min(1.0, shares[-1] + step))
            effective.append(kish_size(logs) / particles)
            if effective[-1] < 0.5:
                chosen = systematic(normalised(logs), particles, seed + len(shares))
                positions, logs, resampled = positions[chosen], np.zeros(particles), resampled + 1
            positions = _moved(
                context, positions, shares[-1], steps, samples.temperature, seed + len(shares)
            )
    energies = energies_of(model, positions)
    found = weighted_samples(
        positions, samples.topology, samples.temperature, logs, energies,
        log_z=(log_z, variance**0.5),
    )  # fmt: skip
    logger.info(
        "annealed in %d stages, resampled %d times: %s", len(effective), resampled,
        found.report.text(),
    )  # fmt: skip
    return Annealed(found, np.array(shares), np.array(effective), resampled)


def _with_weight(samples: WeightedSamples) -> tuple[np.ndarray, float]:
    """Return which samples are no mirror images, and ln of their share of the flow."""
    alive = np.flatnonzero(np.isfinite(samples.raw_log_weights))
    return alive, float(np.log(len(alive) / len(samples)))


def _ratio_terms(logs: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Return ln(n W exp(more)), W the normalised weights of logs: their mean is the ratio of Z."""
    return np.log(np.maximum(normalised(logs), 1e-300)) + np.log(len(logs)) + more


def _next_step(gap: np.ndarray, logs: np.ndarray, keep: float, left: float) -> float:
    """Return by how much the share of the PMF can rise, by bisection."""
    shares = normalised(logs)

    def conditional(step: float) -> float:
        rise = np.exp(step * gap - (step * gap).max())
        return float((shares @ rise) ** 2 / (shares @ rise**2))

    if conditional(left) >= keep:
        return left
    low, high = 0.0, left
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if conditional(middle) >= keep else (low, middle)
    return max(low, 1e-6)


def _bridge(
    flow: Flow, model: Model, copies: int, timestep: float, friction: float, seed: int,
    platform: Any, backend: str | None,
) -> Any:  # fmt: skip
    """Return a Context of all particles under both potentials, each with a share."""
    system = openmm.System()
    for _ in range(copies):
        for mass in model.topology.masses:
            system.addParticle(mass)
    system.addForce(model.create_force(copies=copies, backend=backend, scale_parameter=_PMF_SHARE))
    system.addForce(openmm.PythonForce(_FlowForces(flow, copies), {_FLOW_SHARE: 1.0}))
    integrator = openmm.LangevinMiddleIntegrator(model.temperature, friction, timestep)
    integrator.setRandomNumberSeed(seed + 1)  # 0 would mean: from the clock
    return openmm.Context(system, integrator, find_platform(platform))


def _moved(
    context: Any, positions: np.ndarray, share: float, steps: int, temperature: float, seed: int
) -> np.ndarray:
    """Return positions after some steps of the bridge, with fresh velocities."""
    context.setParameter(_PMF_SHARE, share)
    context.setParameter(_FLOW_SHARE, 1 - share)
    context.setPositions(positions.reshape(-1, 3))
    context.setVelocitiesToTemperature(temperature, seed)
    context.getIntegrator().step(steps)
    moved = context.getState(positions=True).getPositions(asNumpy=True)._value
    moved = moved.reshape(positions.shape)
    if bad := int((~np.isfinite(moved)).any((1, 2)).sum()):
        raise CGMLError(f"{bad} particles are no longer finite; take a shorter time step")
    return np.asarray(moved - moved.mean(1, keepdims=True))


# ---------------------------------------------------------------- pooling with a run


def combine(
    samples: WeightedSamples, flow: Flow, run: Run, pmf: Any, seed: int = 0
) -> WeightedSamples:
    """Combine a flow's samples with a run of the PMF, at one or several temperatures, by MBAR.

    The flow is one state, of reduced energy -ln q and known free energy 0; each rung of the run
    another, U / kT_k. Frames of the run are thinned to independent ones, by the energy's
    correlation.

    Args:
        samples: of the flow, weighted by the same PMF.
        flow: that they were drawn from.
        run: after its equilibration, see `Run.after`.
        pmf: as of `Proposal.weigh`.
        seed: of the order of the frames.

    Returns:
        All frames with their weights at the flow's temperature.

    Raises:
        CGMLError: if flow and run overlap too little.
    """
    frames, rungs = _independent(run)
    kt = samples.kt
    temperatures = np.asarray(run.temperatures)
    alive, share = _with_weight(samples)
    own = samples.positions[alive]
    positions = np.concatenate([own, frames - frames.mean(1, keepdims=True)])
    energies = np.concatenate([samples.energies[alive], energies_of(pmf, frames)])
    density = log_densities(flow, positions).numpy() - share
    table = [-density, *(energies / (GAS_CONSTANT * t) for t in temperatures)]
    states = np.concatenate([np.zeros(len(own), int), 1 + rungs])
    logs, free_energy, error = mbar_target(np.stack(table, axis=1), states, energies / kt)
    # In random order: error bars take blocks of samples for alike.
    order = np.random.default_rng(seed).permutation(len(positions))
    return weighted_samples(
        positions[order], samples.topology, samples.temperature, logs[order], energies[order],
        log_z=(-free_energy, error),
    )  # fmt: skip


def _independent(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return every g-th frame of each rung (frames, beads, 3), nm, and its rung."""
    frames, rungs = [], []
    for number, temperature in enumerate(run.temperatures):
        own = run.at_temperature(float(temperature))
        stride = int(np.ceil(statistical_inefficiency(np.asarray(own.energy, float))))
        kept = np.asarray(own.positions[::stride], dtype=np.float64)
        healthy = np.ones(kept.shape[:2], bool) if own.sick is None else ~own.sick[::stride]
        frames.append(kept[healthy])
        rungs.append(np.full(len(frames[-1]), number))
    return np.concatenate(frames), np.concatenate(rungs)
