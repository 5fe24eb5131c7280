"""Priors: simple physics that keeps a network's molecule whole where it has seen no data.

Each is fitted to the equilibrium distribution of one internal coordinate, Jacobian included, and
is smooth wherever no two beads coincide. docs/priors.md has the formulas.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

import numpy as np

from ..collection import DatasetCollection
from ..dataset import CGDataset
from ..errors import InputError
from ..units import thermal_energy
from .core import PMF, SumPMF
from .message import MOST_DENSE
from .prior_contacts import closest_distances
from .prior_fit import fit_torsion, moments, pooled_moments, torsion_sample
from .prior_indices import term_indices, types_of
from .prior_rows import AngleRow, BondRow, Charges, ImproperRow, RepulsionRow, TorsionRow
from .prior_table import PriorTable, TypedPrior, make_term, read_prior_table
from .prior_terms import (
    Electrostatics,
    FourierTorsions,
    HarmonicAngles,
    HarmonicBonds,
    Impropers,
    PriorTerm,
    Repulsion,
    coordinates_of,
)

__all__ = [
    "AngleRow",
    "BondRow",
    "Charges",
    "Electrostatics",
    "FourierTorsions",
    "HarmonicAngles",
    "HarmonicBonds",
    "ImproperRow",
    "Impropers",
    "PriorTable",
    "PriorTerm",
    "Repulsion",
    "RepulsionRow",
    "TorsionRow",
    "TypedPrior",
    "fit_prior",
    "fit_prior_table",
    "read_prior_table",
]

#: What is fitted unless told otherwise.
DEFAULT_TERMS = ("bonds", "angles", "repulsion")

#: Harmonics of a torsion, unless told otherwise.
DEFAULT_ORDERS = 3

#: The distance below which this share of the frames lies is the radius of a repulsion.
CLOSEST_SHARE = 1e-3

#: Coordinates evaluated at a time, to bound the memory.
_BLOCK = 2_000_000

_Types = tuple[str, ...]


class _Fit(NamedTuple):
    """How a kind of term is fitted: samples are summarised, summaries pooled into a row.

    Attributes:
        width: beads of a term.
        summary: (coordinate, weights, orders) to a summary; the coordinate is (1, frames), or
            (2, frames) for damped sines and cosines.
        row: (types, summaries, kT) to a row of a `PriorTable`.
    """

    width: int
    summary: Callable[[np.ndarray, np.ndarray, int], Any]
    row: Callable[[_Types, Sequence[Any], float], Any]


def _bond_row(types: _Types, parts: Sequence[Any], kt: float) -> BondRow:
    pooled = pooled_moments(parts)
    return BondRow(types, length=pooled.mean, stiffness=kt / pooled.floored_variance)


def _angle_row(types: _Types, parts: Sequence[Any], kt: float) -> AngleRow:
    pooled = pooled_moments(parts)
    return AngleRow(types, cosine=pooled.mean, stiffness=kt / pooled.floored_variance)


def _torsion_row(types: _Types, parts: Sequence[Any], kt: float) -> TorsionRow:
    cosines, sines = (kt * fit_torsion(parts)).reshape(2, -1).tolist()
    return TorsionRow(types, cosines=tuple(cosines), sines=tuple(sines))


def _improper_row(types: _Types, parts: Sequence[Any], kt: float) -> ImproperRow:
    pooled = pooled_moments(parts)
    return ImproperRow(types, sine=pooled.mean, stiffness=kt / pooled.floored_variance)


def _repulsion_row(types: _Types, parts: Sequence[Any], kt: float) -> RepulsionRow:
    return RepulsionRow(types, radius=min(parts), strength=kt)


_FITS = {
    "bonds": _Fit(2, lambda d, w, n: moments(d[0], w / d[0] ** 2), _bond_row),
    "angles": _Fit(3, lambda c, w, n: moments(c[0], w), _angle_row),
    "torsions": _Fit(4, lambda x, w, n: torsion_sample(x[0], x[1], w, n), _torsion_row),
    "impropers": _Fit(4, lambda x, w, n: moments(x[0], w), _improper_row),
    "repulsion": _Fit(2, lambda d, w, n: float(np.quantile(d[0], CLOSEST_SHARE)), _repulsion_row),
}


def fit_prior(
    dataset: CGDataset,
    terms: Sequence[str] = DEFAULT_TERMS,
    *,
    by: str = "term",
    orders: int = DEFAULT_ORDERS,
    charges: Charges | None = None,
) -> PMF:
    """Fit bond, angle, torsion, improper and repulsion terms to a dataset's distributions.

    - bonds: the density of d over the Jacobian d^2 is taken as Gaussian, so d0 and kT/k are mean
      and variance under frame weights w / d^2;
    - angles: in cos a the Jacobian is flat, so c0 and kT/k are plain mean and variance;
    - torsions: the Jacobian is flat in t; Fourier coefficients of greatest likelihood, given the
      bond angles of each frame;
    - impropers: the Jacobian is flat in the damped sine too, hence mean and variance;
    - repulsion: pairs three or more bonds apart; kT at the distance that 0.1 % of the frames
      fall below.

    Args:
        dataset: the frames; their weights count, except for the repulsion: there all frames count
            alike, since biased ones too show which distances are possible.
        terms: which kinds to fit.
        by: ``"term"``: each term has its own parameters. ``"type"``: terms of the same bead types
            share theirs, and the prior can be made again for another molecule; see
            `fit_prior_table`. Take it for large molecules: their pairs are too many to be listed.
        orders: harmonics of the torsions.
        charges: charges by bead type, for screened Coulomb energies between beads four or more
            bonds apart; they are given, not fitted. None: no such energy.

    Returns:
        The sum of the terms, without trainable parameters: with ``by="type"`` as
        `PriorTable.to_pmf`.

    Raises:
        InputError: if a term is unknown, or the molecule has none of the coordinates asked for.
    """
    if not isinstance(dataset, CGDataset):
        raise InputError(
            f"fit_prior takes the dataset of one molecule, not {type(dataset).__name__}; for "
            "several take fit_prior_table, and its to_pmf() for each molecule"
        )
    if by not in ("term", "type"):
        raise InputError(f"prior by {by!r} is unknown; choose term or type")
    if by == "type":
        table = fit_prior_table(dataset, terms, orders=orders, charges=charges)
        return table.to_pmf(dataset.topology)
    kt = thermal_energy(dataset.temperature)
    fitted: list[PriorTerm] = []
    for kind in _checked(terms, orders):
        rows = [
            _FITS[kind].row(types, [summary], kt)
            for types, summary in _of_terms(dataset, kind, orders)
        ]
        if rows:
            fitted.append(make_term(kind, term_indices(dataset.topology, kind), rows))
    charged = charges.term(dataset.topology) if charges is not None else None
    fitted += [] if charged is None else [charged]
    _require_some(fitted, terms)
    return SumPMF(*fitted)


def fit_prior_table(
    datasets: CGDataset | DatasetCollection | Iterable[CGDataset],
    terms: Sequence[str] = DEFAULT_TERMS,
    *,
    orders: int = DEFAULT_ORDERS,
    charges: Charges | None = None,
) -> PriorTable:
    """Fit a prior by bead type, as `fit_prior`, to one molecule or several.

    Samples of all terms of the same types are pooled, a frame of one molecule counting as much as
    one of another on average. Of the radii of a repulsion the smallest is taken instead: in a pool
    many pairs that never meet would hide the few that do. In a molecule of more than `MOST_DENSE`
    beads pairs are found by a neighbour search, and no radius is above `prior_contacts.REACH`.

    Args:
        datasets: of one or several molecules, at one temperature.
        terms: as of `fit_prior`; kinds of which no molecule has any stay empty.
        orders: as of `fit_prior`.
        charges: as of `fit_prior`.

    Returns:
        The table; parameters rounded to seven digits, so that a person can read them.

    Raises:
        InputError: if a term is unknown, temperatures differ, or no molecule has any of the terms.
    """
    several = _several(datasets)
    kt = thermal_energy(several[0].temperature)
    sections: dict[str, list[Any]] = {}
    for kind in _checked(terms, orders):
        pools: dict[_Types, list[Any]] = {}
        for dataset in several:
            for types, summary in _of_types(dataset, kind, orders):
                pools.setdefault(types, []).append(summary)
        rows = [_FITS[kind].row(types, parts, kt) for types, parts in sorted(pools.items())]
        sections[kind] = [_rounded(row) for row in rows]
    _require_some([charges, *(rows for rows in sections.values() if rows)], terms)
    return PriorTable(**{k: tuple(v) for k, v in sections.items()}, electrostatics=charges)


def _checked(terms: Sequence[str], orders: int) -> list[str]:
    """Return the kinds to fit, each once."""
    for kind in terms:
        if kind not in _FITS:
            raise InputError(f"unknown prior term {kind!r}; known: {', '.join(_FITS)}")
    if int(orders) != orders or orders < 1:
        raise InputError(f"orders is {orders}; give a whole number of at least 1")
    return list(dict.fromkeys(terms))


def _require_some(found: Sequence[Any], terms: Sequence[str]) -> None:
    if not any(one is not None for one in found):
        raise InputError(f"the molecule has none of {', '.join(terms)}; leave the prior out")


def _several(datasets: Any) -> list[CGDataset]:
    if isinstance(datasets, CGDataset):
        several = [datasets]
    elif isinstance(datasets, DatasetCollection):
        several = list(datasets.datasets.values())
    else:
        several = list(datasets)
    if not several:
        raise InputError("a prior table needs at least one dataset; give some")
    for dataset in several:
        if abs(dataset.temperature - several[0].temperature) > 1e-6:
            raise InputError(
                f"datasets are at {several[0].temperature:g} K and {dataset.temperature:g} K; a "
                "prior holds at one temperature: give data of one"
            )
    return several


def _of_terms(dataset: CGDataset, kind: str, orders: int) -> Iterator[tuple[_Types, Any]]:
    """Yield types and summary of each term of a kind."""
    indices = term_indices(dataset.topology, kind)
    types = (types_of(dataset.topology, beads, kind) for beads in indices)
    yield from zip(types, _summaries(dataset, kind, indices, orders), strict=True)


def _of_types(dataset: CGDataset, kind: str, orders: int) -> Iterator[tuple[_Types, Any]]:
    """Yield the same where only types matter: of large molecules without a list of all pairs."""
    if kind == "repulsion" and len(dataset.topology) > MOST_DENSE:
        yield from closest_distances(dataset, CLOSEST_SHARE).items()
    else:
        yield from _of_terms(dataset, kind, orders)


def _summaries(
    dataset: CGDataset, kind: str, indices: Sequence[Sequence[int]], orders: int
) -> Iterator[Any]:
    """Yield the summary of each term's coordinate."""
    weights = dataset.probabilities * len(dataset)
    fit = _FITS[kind]
    size = max(1, _BLOCK // len(dataset))
    for start in range(0, len(indices), size):
        block = indices[start : start + size]
        values = _evaluate(dataset, block, fit.width)
        for samples in values.reshape(-1, len(block), len(dataset)).swapaxes(0, 1):
            yield fit.summary(samples, weights, orders)


def _evaluate(dataset: CGDataset, indices: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Return coordinates (coordinates, frames), float64, each frame in its own box."""
    coordinates = coordinates_of(indices, width)
    positions = torch.as_tensor(dataset.positions, dtype=torch.float64)
    if dataset.box is None:
        return coordinates(positions).numpy().T
    boxes, which = np.unique(dataset.box, axis=0, return_inverse=True)
    values = np.empty((len(coordinates.names), len(dataset)))
    order = np.argsort(which.ravel(), kind="stable")  # frames of one box together
    ends = np.cumsum(np.bincount(which.ravel()))[:-1]
    for box, frames in zip(boxes, np.split(order, ends), strict=True):
        vectors = torch.as_tensor(box, dtype=torch.float64)
        values[:, frames] = coordinates(positions[frames], vectors).numpy().T
    return values


def _rounded(row: Any) -> Any:
    """Return a row with seven digits a number: all that single precision holds."""

    def short(value: Any) -> Any:
        return [short(v) for v in value] if isinstance(value, tuple) else float(f"{value:.7g}")

    return type(row)(row.types, **{name: short(getattr(row, name)) for name in row.parameters()})
