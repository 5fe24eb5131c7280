"""Training of flows: the same trainer as of PMFs, with a likelihood."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .extrapolation import CoordinateRanges
from .flow.core import Flow, build
from .losses import Batch, ForceMatching, Mixture, Objective, Terms
from .pmf.core import PMF
from .train import FitResult, fit
from .training_data import Frames, open_sources

_CHUNK = 4096  # frames whose densities are computed together

__all__ = ["FlowPMF", "Likelihood", "fit_flow"]


class FlowPMF(PMF):
    """The potential of mean force of a flow, -kT ln p, for what takes a PMF: training, weights.

    Args:
        flow: a `Flow`, or the architecture of one.
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

    def arguments(self) -> dict[str, Any]:
        """Return the flow's architecture."""
        return {"flow": self.flow.architecture()}


@dataclass(frozen=True)
class Likelihood(Objective):
    """Minus the mean log-likelihood of the frames a degree of freedom, of a `FlowPMF`.

    Frames count by their weights, so those of a biased run give the unbiased density. With
    channels it is the bound of `Flow.bound`, their numbers drawn anew in every step.

    Reference: Koehler et al. 2023, doi:10.1021/acs.jctc.3c00016, eq. 7.
    """

    def __call__(self, terms: Terms, batch: Batch, differentiable: bool = True) -> Tensor:
        """Return the loss, a scalar."""
        flow = getattr(terms.pmf, "flow", None)
        if not isinstance(flow, Flow):
            raise InputError("the likelihood is of a flow; train it by fit_flow")
        logs = flow.bound(batch.positions, batch.normals().flatten(1))
        weights = torch.ones_like(logs) if batch.weights is None else batch.weights
        return -(weights * logs).mean() / degrees_of_freedom(flow)

    def describe(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": "likelihood"}


def degrees_of_freedom(flow: Flow) -> int:
    """Return the number of a molecule's internal degrees of freedom."""
    return max(1, 3 * flow.beads - 6)


def fit_flow(
    flow: Flow,
    train: Frames,
    valid: Frames,
    *,
    force_weight: float = 0.0,
    epochs: int = 30,
    learning_rate: float = 3e-3,
    ema: float | None = 0.99,
    **settings: Any,
) -> FitResult:
    """Train a flow by maximum likelihood and keep its best epoch.

    Args:
        flow: the flow, changed in place.
        train: training frames, weighted if the run was biased; as of `fit`.
        valid: validation frames.
        force_weight: of force matching beside the likelihood, where the frames have forces; both
            are of order one. 0: none.
        epochs, learning_rate, ema, **settings: as of `fit`. Averaged weights generalise better,
            the more so the fewer frames there are.

    Returns:
        The result: ``result.pmf.flow`` is the flow; the history has losses in nats a degree of
        freedom, ``metrics["log_likelihood"]`` is the mean of the validation frames, nats, and
        ``metrics["outside_training"]`` the share of them that have a distance or angle clearly
        outside the training data. The flow is in double precision.

    Raises:
        InputError: as `fit`.
    """
    loss: Objective = Likelihood()
    if force_weight:
        loss = Mixture([(loss, 1.0), (ForceMatching(weighted=True), force_weight)])
    result = fit(
        FlowPMF(flow), train, valid, loss=loss, epochs=epochs, learning_rate=learning_rate,
        ema=ema, **settings,
    )  # fmt: skip
    flow.double()
    return replace(result, metrics={**result.metrics, **_scores(flow, valid, result)})


def _scores(flow: Flow, valid: Frames, result: FitResult) -> dict[str, float]:
    """Return the mean log-likelihood of validation frames, nats, and how many are far out."""
    ranges = CoordinateRanges(**result.metrics["ranges"])
    total, outside, weight = 0.0, 0.0, 0.0
    for source in open_sources(valid):
        for chunk in source.chunks(_CHUNK):
            weights = torch.ones(len(chunk)) if chunk.weights is None else chunk.weights
            with torch.no_grad():
                logs = flow.log_prob(chunk.positions)
            total += float((weights * logs).sum())
            far = torch.as_tensor(ranges.outside(chunk.positions.numpy()))
            outside += float((weights * far).sum())
            weight += float(weights.sum())
    return {"log_likelihood": total / weight, "outside_training": outside / weight}
