"""Flow-matching: a flow's samples and forces teach a PMF, which is then held against the flow.

Reference: Koehler et al. 2023, doi:10.1021/acs.jctc.3c00016.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import numpy as np

from .boltzmann import propose
from .collection import DatasetCollection
from .dataset import CGDataset
from .errors import InputError
from .flow.core import Flow
from .pmf import PMFS
from .pmf.core import PMF, SumPMF
from .pmf.prior import fit_prior, fit_prior_table
from .reweight import log_mean, normalised
from .train import FitResult, fit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agreement:
    """How far a PMF is from a flow, from the flow's samples alone, without dynamics.

    With w = exp(-U / kT) / q, q the flow's density and the samples drawn from it. What taught the
    PMF is the flow with beads kept apart (`Contacts.repulsion`): relative entropies are to that.

    Attributes:
        samples: number of samples.
        effective: samples that the weights leave, (sum w)^2 / sum w^2.
        free_energy: -kT ln of the PMF's partition function, mean of w, kJ/mol: what to add to the
            PMF's energies so that they are -kT ln of a density.
        free_energy_error: standard error, kJ/mol; meaningless if few samples are effective.
        flow_to_pmf: relative entropy of the flow, beads apart, to the PMF, in kT.
        pmf_to_flow: the other way round, in kT. Both are from the weighted samples.
    """

    samples: int
    effective: float
    free_energy: float
    free_energy_error: float
    flow_to_pmf: float
    pmf_to_flow: float

    def text(self) -> str:
        """Return the numbers in a line."""
        return (
            f"flow and PMF: {self.effective:,.0f} of {self.samples:,} samples effective "
            f"({100 * self.effective / self.samples:.0f} %), relative entropies "
            f"{self.flow_to_pmf:.3f} and {self.pmf_to_flow:.3f} kT, free energy of the PMF "
            f"{self.free_energy:.2f} +- {self.free_energy_error:.2f} kJ/mol"
        )


def agreement(flow: Flow, pmf: PMF, samples: int = 20_000, seed: int = 0) -> Agreement:
    """Compare a PMF with a flow of the same molecule; see `Agreement`.

    It sees what the flow samples: a basin that the PMF alone has goes unnoticed.

    Args:
        flow: the flow, in double precision as `load_flow` returns it.
        pmf: the PMF; its energies may have any zero.
        samples: to draw, two or more.
        seed: of the samples.
    """
    proposal = propose(flow, samples, seed=seed)
    found = proposal.weigh(pmf)
    raw = found.raw_log_weights
    apart = -flow.contacts.repulsion(torch.as_tensor(found.positions))[0].numpy()
    if proposal.mirrored is not None:  # they count for neither
        apart = np.where(proposal.mirrored, -np.inf, apart)
    with np.errstate(invalid="ignore"):
        gap = (apart - log_mean(apart)[0]) - (raw - log_mean(raw)[0])
    return Agreement(
        samples=samples,
        effective=found.report.effective,
        free_energy=found.free_energy.value,
        free_energy_error=found.free_energy.error,
        flow_to_pmf=_mean(apart, gap),
        pmf_to_flow=-_mean(raw, gap),
    )


def _mean(log_weights: np.ndarray, values: np.ndarray) -> float:
    """Return the mean where there is weight; infinite if it is."""
    weights = normalised(log_weights)
    counted = weights > 0
    return float(weights[counted] @ values[counted])


@dataclass(frozen=True, eq=False)
class Distilled:
    """A PMF that flows have taught.

    Attributes:
        result: what `fit` returned; `save_model` writes it.
        agreements: flow's name -> its agreement with the PMF; "" for a single flow.
    """

    result: FitResult
    agreements: dict[str, Agreement]

    def text(self) -> str:
        """Return the agreements, a line each."""
        return "\n".join(
            f"{name and name + ': '}{found.text()}" for name, found in self.agreements.items()
        )


def distill(
    flow: Flow | Mapping[str, Flow],
    network: str | Callable[[CGDataset | DatasetCollection], PMF] = "cgnet",
    *,
    count: int = 100_000,
    explore: float | None = None,
    visited: Any = None,
    seed: int = 0,
    largest_force: Any = None,
    samples: int = 20_000,
    epochs: int = 20,
    learning_rate: float = 3e-3,
    **settings: Any,
) -> Distilled:
    """Teach a PMF by force matching on a flow's samples, and compare the two.

    Args:
        flow: one, or several by name, of molecules that share the network's weights.
        network: a name in `PMFS`, which gets a fitted prior, or a function from the samples to
            an untrained PMF.
        count: samples of each flow; a tenth of them validates.
        seed: of samples and training.
        visited: frames (frames, beads, 3), nm, that a PMF taught before has visited (`Run.draw`),
            to be taught as well; of several flows a mapping of names to frames.
        explore, largest_force: as of `Flow.sample_dataset`.
        samples: for the comparison, drawn anew.
        epochs, learning_rate, **settings: as of `fit`.

    Raises:
        InputError: as `fit` and `Flow.sample_dataset`.
    """
    flows = {"": flow} if isinstance(flow, Flow) else dict(flow)
    if not flows:
        raise InputError("there is no flow to learn from; give at least one")
    others = {"": visited} if isinstance(flow, Flow) else dict(visited or {})
    if unknown := set(others) - set(flows):
        raise InputError(f"visited frames are of {', '.join(sorted(unknown))}, which is no flow")
    drawn = {
        name: one.sample_dataset(
            count,
            explore=explore,
            visited=others.get(name),
            seed=seed + 2 * k,
            largest_force=largest_force,
        )
        for k, (name, one) in enumerate(flows.items())
    }
    dataset: Any = drawn[""] if isinstance(flow, Flow) else DatasetCollection(drawn)
    train, valid = dataset.split(0.9)
    make = with_prior(network) if isinstance(network, str) else network
    settings = {"seed": seed, "epochs": epochs, "learning_rate": learning_rate, **settings}
    result = fit(make(train), train, valid, **settings)
    results = result.molecules or {"": result}
    found = {
        name: agreement(one, results[name].pmf, samples, seed=seed + 2 * k + 1)
        for k, (name, one) in enumerate(flows.items())
    }
    distilled = Distilled(result, found)
    logger.info("%s", distilled.text())
    return distilled


def with_prior(network: str, settings: Mapping[str, Any] | None = None) -> Callable[[Any], PMF]:
    """Return a function from samples to a prior fitted to them plus an untrained network.

    Args:
        network: a name in `PMFS`.
        settings: of the network.
    """

    def make(train: Any) -> PMF:
        made = PMFS[network](train, **(settings or {}))
        if isinstance(train, CGDataset):
            return SumPMF(fit_prior(train), made)
        first = next(iter(train.datasets.values()))
        return SumPMF(fit_prior_table(train).to_pmf(first.topology), made)

    return make
