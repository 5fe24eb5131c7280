"""PMFs held against each other without dynamics: one set of a flow's samples weighs them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .analysis import Comparison, compare
from .reweight import Estimate

if TYPE_CHECKING:  # they load torch and openmm
    from .boltzmann import Proposal, WeightedSamples
    from .flow.core import Flow
    from .rescue import DynamicsCheck
    from .system import Model

# Share of the proposal's samples outside a PMF's training data that is worth a word.
_MANY = 0.01

#: What no reweighting can see; said wherever a ranking is shown.
CANNOT_SEE = (
    "Weights see what the flow samples. A basin that a PMF alone has stays unseen; check by "
    "dynamics, or draw a share from a broader density."
)


@dataclass(frozen=True, eq=False)
class PMFScore:
    """How one PMF does on the samples of a flow.

    Attributes:
        name: of the PMF.
        samples: weighted by it.
        outside: share of the flow's samples, as they were drawn, where the PMF extrapolates: a
            distance, angle or torsion that its training data do not have; None: not known.
        weight_outside: the same by the PMF's weights.
        comparison: with the reference; None: there was none.
        check: by dynamics from weighted samples; None: there was none.
    """

    name: str
    samples: "WeightedSamples"
    outside: float | None = None
    weight_outside: float | None = None
    comparison: Comparison | None = None
    check: "DynamicsCheck | None" = None

    @property
    def extrapolates(self) -> bool:
        """Whether the flow goes where the PMF has no training data."""
        return self.outside is not None and self.outside > _MANY

    @property
    def divergence(self) -> Estimate | None:
        """JS* from the reference, nats; None: there was none."""
        if self.comparison is None:
            return None
        return Estimate(
            self.comparison.js_excess, self.comparison.js_excess_error, "nats",
            self.samples.report.problems,
        )  # fmt: skip

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before trusting the numbers."""
        found = list(self.samples.report.problems)
        if self.extrapolates and self.outside is not None:
            found.append(
                f"{self.outside:.1%} of the samples, with {self.weight_outside:.1%} of the "
                "weight, are where the PMF has no training data: it extrapolates"
            )
        if self.check is not None and self.check.suspicious:
            found.append(self.check.text())
        return tuple(found)

    def text(self) -> str:
        """Return the score in a line."""
        parts = [f"{self.name}: {self.samples.report.text()}"]
        if self.comparison is not None:
            difference, error = self.comparison.delta_f
            parts.append(
                f"JS* {self.comparison.js_excess:.4f} ± {self.comparison.js_excess_error:.4f} "
                f"nats, free energy of the state {difference:+.2f} ± {error:.2f} kJ/mol, RMSE "
                f"{self.comparison.free_energy_rmse:.2f} kJ/mol"
            )
        if self.extrapolates:
            parts.append("EXTRAPOLATES")
        if self.check is not None:
            parts.append(self.check.text())
        return "; ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return the numbers, JSON-able."""
        return {
            "name": self.name,
            "weights": self.samples.report.record(),
            "free_energy": self.samples.free_energy.record(),
            "outside_training": self.outside,
            "weight_outside_training": self.weight_outside,
            "extrapolates": self.extrapolates,
            "comparison": None if self.comparison is None else self.comparison.record(),
            "dynamics": None if self.check is None else {
                "outside": self.check.outside,
                "energy": self.check.energy.record(),
                "suspicious": self.check.suspicious,
            },
            "warnings": list(self.warnings),
        }  # fmt: skip


def rank_pmfs(
    proposal: "Proposal",
    models: "Mapping[str, Model]",
    *,
    reference: Any = None,
    dihedrals: Sequence[Sequence[int]] = (),
    state: tuple[float, float] = (0.0, 2.2),
    flow: "Flow | None" = None,
    check_ps: float = 0.0,
    clip: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> list[PMFScore]:
    """Score PMFs on the same samples, the best first.

    Args:
        proposal: of `propose`.
        models: name -> model.
        reference, dihedrals, state: as of `analysis.compare`; None and (): no comparison, and
            PMFs are ordered by effective samples. One whose weights have not converged, or that
            is suspicious by dynamics, comes after all others.
        flow: that the samples are of; for the check.
        check_ps: length of a check by dynamics, ps; 0: none.
        clip: as of `Proposal.weigh`.
        seed: of the check.
        **settings: of `check_by_dynamics`.

    Raises:
        InputError: as `Proposal.weigh` and `analysis.compare`.
    """
    from .extrapolation import CoordinateRanges
    from .rescue import check_by_dynamics

    found = []
    for name, model in models.items():
        weighted = proposal.weigh(model, clip=clip)
        comparison = None
        if reference is not None:
            comparison = compare(
                weighted.dataset(), reference, dihedrals, temperature=proposal.temperature,
                state=state,
            )  # fmt: skip
        outside = weight_outside = None
        if (ranges := CoordinateRanges.from_card(model.card)) is not None:
            far = ranges.outside(proposal.positions)
            outside, weight_outside = float(far.mean()), float(weighted.weights[far].sum())
        check = None
        if check_ps and flow is not None:
            check = check_by_dynamics(weighted, flow, model, ps=check_ps, seed=seed, **settings)
        found.append(PMFScore(name, weighted, outside, weight_outside, comparison, check))
    return sorted(found, key=_order)


def _order(score: PMFScore) -> tuple[bool, float]:
    untrusted = not score.samples.report.converged
    untrusted |= score.check is not None and score.check.suspicious
    if score.comparison is None:
        return untrusted, -score.samples.report.fraction
    return untrusted, score.comparison.js_excess


def energy_histograms(
    score: PMFScore, reference: np.ndarray | None = None, bins: int = 80
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return densities of the PMF's energy: before and after reweighting, and of a reference.

    Args:
        score: of one PMF.
        reference: (frames,) its energies at frames of the all-atom ensemble, kJ/mol.
        bins: of the histogram, over all but the highest thousandth of the flow's samples.

    Returns:
        Edges (bins + 1,), kJ/mol above the lowest sample, and name -> density (bins,), mol/kJ.
    """
    energies = score.samples.energies
    lowest = float(np.min(energies))
    top = float(np.quantile(energies, 0.999))
    edges = np.linspace(0, top - lowest, bins + 1)
    drawn = {"flow": (energies, None), "reweighted": (energies, score.samples.weights)}
    found = {
        name: np.histogram(values - lowest, edges, weights=weights, density=True)[0]
        for name, (values, weights) in drawn.items()
    }
    if reference is not None:
        found["reference"] = np.histogram(reference - lowest, edges, density=True)[0]
    return edges, found
