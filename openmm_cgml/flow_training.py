"""Training of flows: the same trainer as of PMFs, with a likelihood."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .dataset import CGDataset
from .errors import InputError
from .extrapolation import CoordinateRanges
from .flow.core import Density, Flow, build
from .flow.fiber import FiberFlow, Solver
from .losses import Batch, ForceMatching, Mixture, Objective, Terms
from .pmf.core import PMF
from .pmf.tracing import quiet_compiler
from .topology import CGTopology
from .train import FitResult, fit
from .training_data import Frames, open_sources

_CHUNK = 4096  # frames whose densities are computed together

# Validation frames whose likelihood is told, of flows whose densities are dear.
_DEAR = 500
_FIBER_FRAMES = 64

__all__ = ["FlowMatching", "FlowPMF", "Likelihood", "fit_flow"]


class FlowPMF(PMF):
    """The potential of mean force of a flow, -kT ln p, for what takes a PMF: training, weights.

    Args:
        flow: a `Flow` or `FiberFlow` (whose U is of the atoms at given beads), or the architecture
            of one.
    """

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = build(flow) if isinstance(flow, dict) else flow

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol; the integral of exp(-U / kT) is one.

        Raises:
            InputError: if there is a box, in which a flow has no density.
        """
        if box_vectors is not None:
            raise InputError("a flow knows whole molecules in free space; leave out the box")
        return -self.flow.kt * self.flow.log_prob(positions)

    def for_topology(self, topology: CGTopology) -> PMF:
        """Return that of another molecule that the flow was made for; see `PMF.for_topology`."""
        known = getattr(self.flow, "molecules", {})
        return FlowPMF(known[topology]) if topology in known else super().for_topology(topology)

    def arguments(self) -> dict[str, Any]:
        """Return the flow's architecture."""
        return {"flow": self.flow.architecture()}


@dataclass(frozen=True)
class Likelihood(Objective):
    """Minus the mean log-likelihood of the frames a degree of freedom, of a `FlowPMF`.

    Frames count by their weights, so those of a biased run give the unbiased density. With
    channels it is the bound of `Flow.bound`, their numbers drawn anew in every step.

    Attributes:
        smearing: noise on each coordinate of the training frames, in units of its own spread.

    Reference: Koehler et al. 2023, doi:10.1021/acs.jctc.3c00016, eq. 7.
    """

    smearing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smearing < 1:
            raise InputError(f"smearing is {self.smearing}; give 0, or a little such as 0.1")

    def __call__(self, terms: Terms, batch: Batch, differentiable: bool = True) -> Tensor:
        """Return the loss, a scalar."""
        flow = getattr(terms.pmf, "flow", None)
        if not isinstance(flow, Flow):
            raise InputError("the likelihood is of a flow; train it by fit_flow")
        positions, normals = batch.positions, batch.normals().flatten(1)
        if self.smearing and differentiable:
            # Channels take the first of the numbers.
            noise = normals.roll(-flow.channels, 1)
            positions = flow.smeared(positions, noise, self.smearing)
        logs = flow.bound(positions, normals)
        weights = torch.ones_like(logs) if batch.weights is None else batch.weights
        return -(weights * logs).mean() / degrees_of_freedom(flow)

    def describe(self) -> dict[str, Any]:
        """Return name and settings."""
        return {"name": "likelihood", "smearing": self.smearing}


@dataclass(frozen=True)
class FlowMatching(Objective):
    """The error of a continuous flow's velocity; see `MatchingFlow.squared_error`.

    Frames count by their weights. Noise and times are drawn anew in every step.

    Reference: Lipman et al. 2023, arXiv:2210.02747.
    """

    def __call__(self, terms: Terms, batch: Batch, differentiable: bool = True) -> Tensor:
        """Return the loss, a scalar."""
        flow = getattr(terms.pmf, "flow", None)
        if not isinstance(flow, Density) or flow.objective != "flow_matching":
            raise InputError("flow matching is of a continuous flow; train it by fit_flow")
        normals = batch.normals()
        # The first bead's numbers are free: noise without its mean needs one bead less.
        time = torch.special.ndtr(normals[:, 0, 0])
        errors = flow.squared_error(batch.positions, normals, time)
        return (errors if batch.weights is None else batch.weights * errors).mean()

    def describe(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": "flow_matching"}


def degrees_of_freedom(flow: Density) -> int:
    """Return the number of a molecule's internal degrees of freedom."""
    return max(1, 3 * flow.beads - 6)


def fit_flow(
    flow: Density,
    train: Frames,
    valid: Frames,
    *,
    smearing: float = 0.0,
    force_weight: float = 0.0,
    epochs: int = 30,
    learning_rate: float = 3e-3,
    ema: float | None = 0.99,
    compile: bool | None = None,
    **settings: Any,
) -> FitResult:
    """Train a flow by maximum likelihood, or by flow matching, and keep its best epoch.

    Args:
        flow: the flow, changed in place; `Flow.objective` says which.
        train: training frames, weighted if the run was biased; as of `fit`.
        valid: validation frames.
        smearing: noise on the training frames' bonds, angles and torsions, new in every step, in
            units of each one's standard deviation. 0.1 keeps a flow of many torsions and few
            frames from being rugged, and widens the density by half a percent.
        force_weight: of force matching beside the likelihood, where the frames have forces; both
            are of order one. 0: none.
        compile: compile what is trained, which needs a C++ compiler. The network of a split-flow
            then takes two thirds of the time, after a minute or two; None: not of these, else as
            of `fit`.
        epochs, learning_rate, ema, **settings: as of `fit`. Averaged weights generalise better,
            the more so the fewer frames there are.

    Returns:
        The result: ``result.pmf.flow`` is the flow; the history has losses in nats a degree of
        freedom, ``metrics["log_likelihood"]`` is the mean of the validation frames, nats, and
        ``metrics["outside_training"]`` the share of them that have a distance, angle or
        torsion clearly outside the training data. The flow is in double precision.

    Raises:
        InputError: as `fit`.
    """
    loss: Objective = Likelihood(smearing)
    if flow.objective == "flow_matching":
        if smearing or force_weight:
            raise InputError("flow matching knows neither smearing nor forces; leave them out")
        loss = FlowMatching()
    if force_weight:
        loss = Mixture([(loss, 1.0), (ForceMatching(weighted=True), force_weight)])
    network = isinstance(flow, FiberFlow)
    if network:  # its density is of atoms at given beads, which no force is compared with
        train, valid = _without_forces(train), _without_forces(valid)
    with _compiled_network(flow) if network and compile else nullcontext():
        result = fit(
            FlowPMF(flow.float()), train, valid, loss=loss, epochs=epochs, ema=ema,
            learning_rate=learning_rate, compile=False if network else compile, **settings,
        )  # fmt: skip
    return scores(flow, valid, result)


def _without_forces(frames: Any) -> Any:
    return replace(frames, forces=None) if isinstance(frames, CGDataset) else frames


@contextmanager
def _compiled_network(flow: Any) -> Iterator[None]:
    """Compile the network of a split-flow for a while."""
    forward = flow.velocity.forward
    torch.compiler.reset()  # what earlier trainings compiled counts towards a limit
    # Shapes are few: those of whole batches and of the last ones.
    flow.velocity.forward = torch.compile(forward, dynamic=False)
    try:
        with quiet_compiler():
            yield
    finally:
        del flow.velocity.forward


def scores(flow: Density, valid: Frames, result: FitResult) -> FitResult:
    """Return the result with the validation frames' mean log-likelihood, nats, and outliers.

    The flow is in double precision afterwards. Of a continuous flow the likelihood is that of
    500 frames, evenly spaced.
    """
    flow.double()
    if isinstance(flow, FiberFlow):
        return _fiber_scores(flow, valid, result)
    dear = flow.objective == "flow_matching"
    ranges = CoordinateRanges(**result.metrics["ranges"])
    total, counted, outside, weight = 0.0, 0.0, 0.0, 0.0
    for source in open_sources(valid):
        stride = max(1, len(source) // _DEAR) if dear else 1
        for chunk in source.chunks(_CHUNK):
            weights = torch.ones(len(chunk)) if chunk.weights is None else chunk.weights
            with torch.no_grad():
                logs = flow.log_prob(chunk.positions[::stride])
            total += float((weights[::stride] * logs).sum())
            counted += float(weights[::stride].sum())
            far = torch.as_tensor(ranges.outside(chunk.positions.numpy()))
            outside += float((weights * far).sum())
            weight += float(weights.sum())
    found = {"log_likelihood": total / counted, "outside_training": outside / weight}
    return replace(result, metrics={**result.metrics, **found})


def _fiber_scores(flow: FiberFlow, valid: Frames, result: FitResult) -> FitResult:
    """Return the result with the mean log-density of some validation frames, by random directions.

    With several molecules each has its own.
    """
    several = dict(result.molecules) or {"": result}
    for (name, one), source in zip(several.items(), open_sources(valid), strict=True):
        own = flow.molecules.get(source.dataset.topology, flow).double()
        chunk = next(iter(source.chunks(_CHUNK)))
        frames = chunk.positions[:: max(1, len(chunk) // _FIBER_FRAMES)][:_FIBER_FRAMES]
        logs = own.log_prob(frames, density="hutchinson", solver=Solver(steps=20))
        found = {"log_likelihood": float(logs.mean())}
        several[name] = replace(one, metrics={**one.metrics, **found})
    if not result.molecules:
        return several[""]
    first = next(iter(several.values()))
    return replace(first, molecules=several)
