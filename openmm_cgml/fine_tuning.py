"""Fine-tuning of a flow on a PMF, so that more of its samples are effective.

The PMF's energies say where the flow's density should be larger and smaller; frames keep it from
leaving modes.
"""

from typing import Any

import torch
from torch import Tensor

from .boltzmann import energies_of
from .errors import InputError
from .flow.core import Flow
from .flow_training import FlowPMF, Likelihood, degrees_of_freedom, scores
from .losses import Batch, Mixture, Objective, Terms
from .train import FitResult, fit
from .training_data import Frames


class LogVariance(Objective):
    """The variance of the log weights of the flow's own samples.

        L = Var_q[ln q(x) + U(x) / kT],    x drawn from q and held fixed

    Zero if and only if q is the ensemble of the PMF. Its gradient is twice that of the relative
    entropy KL(q || p), with less noise, and needs neither forces nor gradients through the
    samples. It is that of the flow's samples alone: a mode that the flow has left stays out of
    its sight, so mix it with the likelihood (`fine_tune`) and look at `forward_fraction`.

    Args:
        pmf: as of `Proposal.weigh`.
        samples: drawn anew in every step.
        largest: log weights further from their median, in nats, are cut off there: a twisted
            sample would rule the step.

    Reference: Richter et al. 2020, arXiv:2010.10436.
    """

    def __init__(self, pmf: Any, samples: int = 256, largest: float = 10.0) -> None:
        if samples < 2:
            raise InputError(f"samples is {samples}; a variance needs at least 2")
        self.pmf, self.samples, self.largest = pmf, samples, largest

    def __call__(self, terms: Terms, batch: Batch, differentiable: bool = True) -> Tensor:
        """Return the variance, a degree of freedom, a scalar."""
        flow = getattr(terms.pmf, "flow", None)
        if not isinstance(flow, Flow):
            raise InputError("the log variance is of a flow; train it by fine_tune")
        generator = torch.Generator(device=batch.positions.device).manual_seed(batch.seed)
        with torch.no_grad():
            drawn = flow.draw(self.samples, generator)
        energies = torch.as_tensor(energies_of(self.pmf, drawn.cpu().numpy())).to(drawn)
        gap = flow.log_prob(drawn) + energies / batch.kt
        middle = gap.detach().median()
        variance = gap.clamp(middle - self.largest, middle + self.largest).var()
        return variance / degrees_of_freedom(flow)

    def describe(self) -> dict[str, Any]:
        """Return name and settings."""
        return {"name": "log_variance", "samples": self.samples, "largest": self.largest}


def fine_tune(
    flow: Flow,
    pmf: Any,
    train: Frames,
    valid: Frames,
    *,
    likelihood_weight: float = 0.1,
    samples: int = 256,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    ema: float | None = 0.99,
    **settings: Any,
) -> FitResult:
    """Train a flow on a PMF by the log variance, with the frames' likelihood beside it.

    Args:
        flow: trained by `fit_flow`; changed in place.
        pmf: as of `Proposal.weigh`.
        train, valid: frames as of `fit_flow`.
        likelihood_weight: of the likelihood, both counted a degree of freedom; it keeps modes.
        samples: of the flow, a step.
        epochs, learning_rate, ema, **settings: as of `fit`.

    Returns:
        As `fit_flow`.

    Raises:
        InputError: as `fit`; and if the weight is negative.
    """
    if likelihood_weight < 0:
        raise InputError(f"likelihood_weight is {likelihood_weight}; give 0 or more")
    parts: list[tuple[Objective, float]] = [(LogVariance(pmf, samples), 1.0)]
    if likelihood_weight:
        parts.append((Likelihood(), likelihood_weight))
    result = fit(
        FlowPMF(flow.float()), train, valid, loss=Mixture(parts), epochs=epochs,
        learning_rate=learning_rate, ema=ema, **settings,
    )  # fmt: skip
    return scores(flow, valid, result)
