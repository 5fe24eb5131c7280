"""Compare a coarse-grained run with a reference: free energies over two dihedrals.

Divergences are reported as the excess over sampling noise. A Jensen-Shannon divergence between two
finite samples of the same distribution is not zero but about (K/8)(1/n1 + 1/n2) for K populated
bins; halves of each sample, which have half the frames, measure that term:

    JS* = JS(q, p) - JS(p1, p2)/4 - JS(q1, q2)/4

with p the reference, q the model and 1, 2 contiguous halves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .archives import load_arrays
from .dataset import CGDataset
from .errors import InputError
from .files import require_file
from .run_file import Run
from .units import thermal_energy

BINS = 60


@dataclass(frozen=True, eq=False)
class DihedralDistribution:
    """A probability over two dihedrals, with that of several contiguous blocks for its noise.

    Attributes:
        edges: (bins + 1,) bin edges of both angles, radians, -pi to pi.
        probability: (bins, bins), axis 0 the first angle; sums to one.
        blocks: (blocks, bins, bins), each summing to one; an even number, in order.
    """

    edges: np.ndarray
    probability: np.ndarray
    blocks: np.ndarray

    @property
    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the two contiguous halves."""
        middle = len(self.blocks) // 2
        return self.blocks[:middle].mean(0), self.blocks[middle:].mean(0)

    @property
    def sampling_divergence(self) -> float:
        """A quarter of the halves' divergence: what sampling noise adds to any comparison."""
        return js_divergence(*self.halves) / 4

    def centres(self) -> np.ndarray:
        """Bin centres (bins,), radians."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])


@dataclass(frozen=True)
class StateFreeEnergy:
    """Free energy of a state against the rest, -kT ln[p / (1 - p)].

    Attributes:
        value: kJ/mol; infinite where the state or the rest was never seen.
        error: standard error, kJ/mol.
        population: p.
    """

    value: float
    error: float
    population: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far a model's distribution is from the reference's.

    Attributes:
        model, reference: the distributions.
        js: Jensen-Shannon divergence, nats, sampling noise included.
        js_excess: JS*, nats; about zero for a perfect model.
        js_excess_error: standard error of it from the model's sampling (jackknife over blocks).
        js_reference_error: what the reference's noise adds to `js`, nats.
        free_energy_rmse: kJ/mol, over bins that both visit, weighted by the reference.
        coverage: reference probability of the bins that the model visits.
        kt: kJ/mol.
        state: the range of the first dihedral that makes the state, radians.
        state_model, state_reference: its free energies.
    """

    model: DihedralDistribution
    reference: DihedralDistribution
    js: float
    js_excess: float
    js_excess_error: float
    js_reference_error: float
    free_energy_rmse: float
    coverage: float
    kt: float
    state: tuple[float, float]
    state_model: StateFreeEnergy
    state_reference: StateFreeEnergy

    @property
    def delta_f(self) -> tuple[float, float]:
        """Model minus reference free energy of the state, and its standard error, kJ/mol."""
        difference = self.state_model.value - self.state_reference.value
        error = float(np.hypot(self.state_model.error, self.state_reference.error))
        return difference, error

    def record(self) -> dict[str, Any]:
        """Return the numbers as JSON; null where one is not finite (a state never seen)."""

        def finite(value: float) -> float | None:
            return float(value) if np.isfinite(value) else None

        difference, error = self.delta_f
        return {
            "js": finite(self.js),
            "js_excess": finite(self.js_excess),
            "js_excess_error": finite(self.js_excess_error),
            "js_reference_error": finite(self.js_reference_error),
            "delta_f_kj_mol": {"value": finite(difference), "error": finite(error)},
            "free_energy_rmse_kj_mol": finite(self.free_energy_rmse),
            "coverage": finite(self.coverage),
        }


def dihedral_angles(
    positions: Any, quadruples: Sequence[Sequence[int]], box_vectors: Any = None
) -> np.ndarray:
    """Return dihedrals of frames.

    Args:
        positions: (frames, beads, 3), nm.
        quadruples: bead indices of each dihedral.
        box_vectors: (3, 3), or (frames, 3, 3), nm; None: not periodic.

    Returns:
        (frames, dihedrals), radians in (-pi, pi].

    Raises:
        InputError: if a quadruple names a bead that does not exist, or one twice.
    """
    import torch

    from . import geometry

    beads = np.shape(positions)[1]
    for quadruple in quadruples:
        if len(quadruple) != 4 or len(set(quadruple)) != 4:
            raise InputError(f"dihedral {list(quadruple)} does not name four different beads")
        outside = [bead for bead in quadruple if not 0 <= bead < beads]
        if outside:
            raise InputError(
                f"dihedral {list(quadruple)} names bead {outside[0]}, but beads are "
                f"0 to {beads - 1}; count from 0"
            )
    index = torch.tensor([list(q) for q in quadruples])

    def angles(part: Any, box: Any) -> np.ndarray:
        xyz = torch.as_tensor(np.asarray(part), dtype=torch.float64)
        vectors = None if box is None else torch.as_tensor(np.asarray(box), dtype=torch.float64)
        return geometry.dihedrals(xyz, index, vectors).numpy()

    if np.ndim(box_vectors) == 3:
        return np.concatenate(
            [angles(x[None], box) for x, box in zip(positions, box_vectors, strict=True)]
        )
    chunks = np.array_split(np.asarray(positions), max(1, len(positions) // 100_000))
    return np.concatenate([angles(chunk, box_vectors) for chunk in chunks])


def dihedral_distribution(
    angles: np.ndarray, weights: np.ndarray | None = None, *, blocks: int = 20, bins: int = BINS
) -> DihedralDistribution:
    """Return the histogram of two dihedrals, and those of contiguous blocks.

    Args:
        angles: (frames, 2), radians, in an order in which neighbours are correlated: time, or
            copy after copy.
        weights: (frames,); uniform if None.
        blocks: number of contiguous blocks.
        bins: bins an angle.

    Raises:
        InputError: if there are fewer frames than blocks, or no weight.
    """
    if len(angles) < blocks:
        raise InputError(f"{len(angles)} frames are too few for {blocks} blocks; run longer")
    edges = np.linspace(-np.pi, np.pi, bins + 1)
    weights = np.ones(len(angles)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not weights.sum() > 0:
        raise InputError("all frames have weight zero; take frames that have some")
    index = np.clip(np.floor((angles + np.pi) / (2 * np.pi) * bins).astype(int), 0, bins - 1)
    flat = index[:, 0] * bins + index[:, 1]
    # Blocks of equal weight rather than equal length: a stretch of zero weights says nothing.
    cumulative = np.cumsum(weights) / weights.sum()
    block = np.minimum((cumulative * blocks - 1e-9).clip(0).astype(int), blocks - 1)
    counts = np.zeros((blocks, bins * bins))
    np.add.at(counts, (block, flat), weights)
    filled = counts[counts.sum(1) > 0]
    if len(filled) % 2:
        filled = filled[:-1]
    return DihedralDistribution(
        edges=edges,
        probability=(counts.sum(0) / counts.sum()).reshape(bins, bins),
        blocks=(filled / filled.sum(1, keepdims=True)).reshape(-1, bins, bins),
    )


def distribution_of(
    source: Any, quadruples: Sequence[Sequence[int]], *, discard_ps: float = 0.0
) -> DihedralDistribution:
    """Return the distribution of two dihedrals in a run, a dataset, or a reference file.

    Args:
        source: a `Run`, a `CGDataset` (its weights count), or an .npz file with ``probability``
            (bins, bins), ``probability_first_half``, ``probability_second_half`` and ``edges``.
        quadruples: two quadruples of bead indices.
        discard_ps: of a run: time at the start that is left out.

    Raises:
        InputError: if the file lacks an array or nothing is left.
    """
    if isinstance(source, Run):
        if len(source.temperatures) > 1:
            raise InputError(
                f"the run has {len(source.temperatures)} temperatures; take one with "
                "run.at_temperature(...)"
            )
        kept = source.after(discard_ps)
        # Copy after copy: blocks are then independent copies, not correlated times.
        ordered = kept.positions.transpose(1, 0, 2, 3).reshape(-1, *kept.positions.shape[2:])
        if kept.sick is not None:
            ordered = ordered[~kept.sick.T.ravel()]
        box = source.info.get("box_vectors_nm")
        return dihedral_distribution(dihedral_angles(ordered, quadruples, box))
    if isinstance(source, CGDataset):
        angles = dihedral_angles(source.positions, quadruples, source.box)
        return dihedral_distribution(angles, source.weights)
    path = require_file(source, "reference")
    names = ("edges", "probability", "probability_first_half", "probability_second_half")
    try:
        with load_arrays(path) as handle:
            missing = [n for n in names if n not in handle.files]
            if missing:
                raise InputError(f"reference {path} has no array {missing[0]!r}; it needs {names}")
            edges, whole, first, second = (np.asarray(handle[n], dtype=float) for n in names)
    except InputError:
        raise
    except Exception as error:  # numpy lets errors of zip and of its own formats through
        raise InputError(f"reference {path} is not a whole .npz file; make it again") from error
    return DihedralDistribution(
        edges, whole / whole.sum(), np.stack([first / first.sum(), second / second.sum()])
    )


def js_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two histograms, nats (0 to ln 2).

    Raises:
        InputError: if they have different bins.
    """
    if p.shape != q.shape:
        raise InputError(f"histograms have {p.shape} and {q.shape} bins; use the same")
    p, q = p.ravel() / p.sum(), q.ravel() / q.sum()
    mean = 0.5 * (p + q)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / mean), 0) + np.where(q > 0, q * np.log(q / mean), 0)
    return 0.5 * float(np.sum(terms))


def js_excess(model: DihedralDistribution, reference: DihedralDistribution) -> float:
    """Return JS*, the divergence in excess of both samples' noise (module docstring)."""
    return (
        js_divergence(model.probability, reference.probability)
        - model.sampling_divergence
        - reference.sampling_divergence
    )


def state_free_energy(
    distribution: DihedralDistribution, low: float, high: float, kt: float
) -> StateFreeEnergy:
    """Return -kT ln[p / (1 - p)] of the state whose first dihedral lies between two angles.

    Bins count whole, by their centres. The error is propagated from the standard error of p over
    the contiguous blocks.

    Args:
        distribution: over two dihedrals.
        low, high: radians.
        kt: kJ/mol.
    """
    centres = distribution.centres()
    inside = (centres > low) & (centres < high)
    if not inside.any():
        raise InputError(f"no bin of the first dihedral lies between {low} and {high} rad")
    p = float(distribution.probability[inside].sum())
    parts = distribution.blocks[:, inside].sum(axis=(1, 2))
    if not 0 < p < 1:
        return StateFreeEnergy(float("inf") if p == 0 else float("-inf"), float("inf"), p)
    spread = float(np.std(parts, ddof=1)) / len(parts) ** 0.5
    return StateFreeEnergy(float(-kt * np.log(p / (1 - p))), kt * spread / (p * (1 - p)), p)


def free_energy(probability: np.ndarray, kt: float) -> np.ndarray:
    """Return -kT ln p, its minimum at zero, kJ/mol; nan where p is zero."""
    with np.errstate(divide="ignore"):
        values = -kt * np.log(probability)
    values = np.where(np.isfinite(values), values, np.nan)
    return values - np.nanmin(values)


def free_energy_profile(
    distribution: DihedralDistribution, axis: int, kt: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the free energy along one dihedral and its standard error over blocks.

    Args:
        distribution: over two dihedrals.
        axis: 0 or 1, the dihedral that is kept.
        kt: kJ/mol.

    Returns:
        Two arrays (bins,), kJ/mol; nan where nothing was seen.
    """
    marginal = distribution.probability.sum(axis=1 - axis)
    parts = distribution.blocks.sum(axis=2 - axis)
    spread = parts.std(axis=0, ddof=1) / len(parts) ** 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(marginal > 0, kt * spread / marginal, np.nan)
    return free_energy(marginal, kt), error


def compare(
    model: Any,
    reference: Any,
    quadruples: Sequence[Sequence[int]],
    *,
    temperature: float,
    state: tuple[float, float] = (0.0, 2.2),
    discard_ps: float = 0.0,
) -> Comparison:
    """Compare a model's distribution of two dihedrals with a reference's.

    Args:
        model, reference: anything that `distribution_of` takes; of a replica exchange the rung
            at `temperature`.
        quadruples: two quadruples of bead indices.
        temperature: K.
        state: range of the first dihedral whose free energy is compared, radians.
        discard_ps: of a run: time at the start that is left out.

    Raises:
        InputError: if the bins differ or there are not two dihedrals.
    """
    if len(quadruples) != 2:
        raise InputError(f"{len(quadruples)} dihedrals were given; give two")
    kt = thermal_energy(temperature)
    if isinstance(model, Run):
        model = model.at_temperature(temperature)
    q = distribution_of(model, quadruples, discard_ps=discard_ps)
    p = distribution_of(reference, quadruples)
    excess = js_excess(q, p)
    both = (q.probability > 0) & (p.probability > 0)
    weight = p.probability[both] / p.probability[both].sum()
    gap = -kt * (np.log(q.probability[both]) - np.log(p.probability[both]))
    gap -= (weight * gap).sum()  # free energies have no zero
    return Comparison(
        model=q,
        reference=p,
        js=js_divergence(q.probability, p.probability),
        js_excess=excess,
        js_excess_error=_excess_error(q, p),
        js_reference_error=p.sampling_divergence,
        free_energy_rmse=float((weight * gap**2).sum() ** 0.5),
        coverage=float(p.probability[q.probability > 0].sum()),
        kt=kt,
        state=state,
        state_model=state_free_energy(q, *state, kt),
        state_reference=state_free_energy(p, *state, kt),
    )


def _excess_error(model: DihedralDistribution, reference: DihedralDistribution) -> float:
    """Return the jackknife standard error of JS(q, p) over the model's blocks."""
    count = len(model.blocks)
    total = model.blocks.sum(0)
    values = np.array(
        [
            js_divergence((total - block) / (count - 1), reference.probability)
            for block in model.blocks
        ]
    )
    return float(((count - 1) / count * ((values - values.mean()) ** 2).sum()) ** 0.5)
