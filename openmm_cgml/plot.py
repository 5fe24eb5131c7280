"""Figures of a comparison and of a training run, as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .analysis import Comparison, DihedralDistribution, free_energy, free_energy_profile
from .canvas import DASHED, DOTTED, MODEL, ONE, OTHER, REFERENCE, png, subplots

#: kJ/mol; the difference map leaves out bins whose reference free energy is higher.
DIFFERENCE_BELOW = 20.0
#: kJ/mol; bins of the difference map that are lower by more are dotted.
MARKED = 2.0

_DEGREES = 180 / np.pi


def free_energy_maps(comparison: Comparison, labels: tuple[str, str], title: str) -> bytes:
    """Draw reference, model and their difference side by side; shared colours, kJ/mol.

    Args:
        comparison: from `analysis.compare`.
        labels: names of the two dihedrals, matplotlib text.
        title: name of the model's map.
    """
    reference = free_energy(comparison.reference.probability, comparison.kt)
    model = free_energy(comparison.model.probability, comparison.kt)
    weight = np.where(np.isfinite(reference + model), comparison.reference.probability, 0)
    shift = float(np.nansum(weight * np.nan_to_num(model - reference)) / weight.sum())
    top = 30.0
    edges = comparison.reference.edges * _DEGREES
    figure, axes = subplots(1, 3, (11.5, 3.9))
    for axis, values, name in ((axes[0], reference, "reference"), (axes[1], model, title)):
        mesh = axis.pcolormesh(edges, edges, values.T, cmap="viridis", vmin=0, vmax=top)
        centres = comparison.reference.centres() * _DEGREES
        axis.contour(centres, centres, np.ma.masked_invalid(values.T), linewidths=0.5,
                     levels=np.arange(4, top, 4), colors="white", alpha=0.6)  # fmt: skip
        axis.set_title(name)
    figure.colorbar(mesh, ax=list(axes[:2]), label="free energy, kJ/mol", pad=0.015)
    # Where the reference is higher, a model bin holds a count or two: noise, not a difference.
    difference = np.where(reference < DIFFERENCE_BELOW, model - reference - shift, np.nan)
    mesh = axes[2].pcolormesh(edges, edges, difference.T, cmap="RdBu_r", vmin=-8, vmax=8)
    low, high = np.nonzero(difference < -MARKED)
    axes[2].plot(centres[low], centres[high], ".", ms=1.6, color="black")  # both ends are dark
    figure.colorbar(mesh, ax=axes[2], label="difference, kJ/mol", pad=0.03)
    axes[2].set_title("difference")
    for axis in axes:
        axis.set(xlabel=f"{labels[0]}, degrees", aspect="equal")
        axis.set_xticks([-180, -90, 0, 90, 180])
        axis.set_yticks([-180, -90, 0, 90, 180])
        axis.set_facecolor("#efefef")
    axes[0].set_ylabel(f"{labels[1]}, degrees")
    return png(figure)


def profiles(comparison: Comparison, labels: tuple[str, str], title: str) -> bytes:
    """Draw the free energy along each dihedral with bands of two standard errors."""
    figure, axes = subplots(1, 2, (9.5, 3.2))
    centres = comparison.reference.centres() * _DEGREES
    for which, axis in enumerate(axes):
        for distribution, colour, name, dashes in (
            (comparison.reference, REFERENCE, "reference", DASHED),
            (comparison.model, MODEL, title, "-"),
        ):
            values, error = free_energy_profile(distribution, which, comparison.kt)
            axis.plot(centres, values, color=colour, ls=dashes, label=name, lw=1.8)
            axis.fill_between(
                centres, values - 2 * error, values + 2 * error, color=colour, alpha=0.25, lw=0
            )
        axis.set(xlabel=f"{labels[which]}, degrees", ylim=(-1, 32), xlim=(-180, 180))
        axis.set_xticks([-180, -90, 0, 90, 180])
        axis.grid(alpha=0.25)
    low, high = (a * _DEGREES for a in comparison.state)
    axes[0].axvspan(low, high, color="#888888", alpha=0.12, lw=0)
    axes[0].set_ylabel("free energy, kJ/mol")
    axes[1].legend(frameon=False)
    return png(figure)


def training_curve(history: list[dict[str, float]], noise_floor: float) -> bytes:
    """Draw the force RMSE of training and validation over epochs, and the noise floor."""
    figure, axis = subplots(1, 1)
    epochs = [h["epoch"] + 1 for h in history]
    train, valid = ([h[k] for h in history] for k in ("train_rmse", "valid_rmse"))
    axis.plot(epochs, train, color="#767676", ls=DOTTED, lw=1.6, label="training")
    axis.plot(epochs, valid, color=MODEL, lw=1.8, label="validation")
    axis.axhline(noise_floor, color=REFERENCE, ls=DASHED, lw=1.4, label="noise floor")
    low = min(noise_floor, *train, *valid)
    high = float(np.quantile([*train, *valid], 0.97)) if len(history) > 4 else max(*train, *valid)
    axis.set_ylim(low - 0.1 * (high - low), high + 0.2 * (high - low))
    axis.set(xlabel="epoch", ylabel="force RMSE, kJ/mol/nm")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return png(figure)


#: Colours of the flow, the reweighted flow and the reference, and dashes for those without colour.
_ENSEMBLES = {
    "flow": (OTHER, DOTTED),
    "reweighted": (MODEL, "-"),
    "reference": (REFERENCE, DASHED),
}


def energy_distributions(edges: np.ndarray, densities: dict[str, np.ndarray]) -> bytes:
    """Draw the PMF's energy in the flow's samples, by their weights, and in a reference.

    Args:
        edges: (bins + 1,), kJ/mol.
        densities: name -> (bins,), mol/kJ; names of `_ENSEMBLES`.
    """
    figure, axis = subplots(1, 1)
    for name, values in densities.items():
        colour, dashes = _ENSEMBLES[name]
        axis.stairs(values, edges, color=colour, ls=dashes, lw=1.8, label=name)
    axis.set(xlabel="energy of the PMF above its lowest, kJ/mol", ylabel="density, mol/kJ")
    axis.set_xlim(edges[0], edges[-1])
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return png(figure)


def reweighted_profiles(
    flow: DihedralDistribution, comparison: Comparison, labels: tuple[str, str]
) -> bytes:
    """Draw free energies along two dihedrals before and after reweighting and in the reference.

    Args:
        flow: distribution of the samples without weights.
        comparison: of the reweighted samples with the reference.
        labels: names of the dihedrals.
    """
    named = {"flow": flow, "reweighted": comparison.model, "reference": comparison.reference}
    return several_profiles(named, _ENSEMBLES, comparison.kt, labels)


def several_profiles(
    named: Mapping[str, DihedralDistribution], styles: Mapping[str, tuple[str, Any]], kt: float,
    labels: tuple[str, str],
) -> bytes:  # fmt: skip
    """Draw free energies along two dihedrals with bands of two standard errors over blocks.

    Args:
        named: name -> distribution over the two.
        styles: name -> colour and dashes.
        kt: kJ/mol.
        labels: names of the dihedrals.
    """
    figure, axes = subplots(1, 2, (9.5, 3.2))
    for which, axis in enumerate(axes):
        for name, distribution in named.items():
            colour, dashes = styles[name]
            centres = distribution.centres() * _DEGREES
            values, error = free_energy_profile(distribution, which, kt)
            axis.plot(centres, values, color=colour, ls=dashes, label=name, lw=1.6)
            axis.fill_between(
                centres, values - 2 * error, values + 2 * error, color=colour, alpha=0.2, lw=0
            )
        axis.set(xlabel=f"{labels[which]}, degrees", ylim=(-1, 32), xlim=(-180, 180))
        axis.set_xticks([-180, -90, 0, 90, 180])
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("free energy, kJ/mol")
    axes[1].legend(frameon=False)
    return png(figure)


def weight_tail(log_weights: np.ndarray, smoothed: np.ndarray) -> bytes:
    """Draw the largest normalised weights, in order, as they are and smoothed.

    Args:
        log_weights: (samples,), raw.
        smoothed: (samples,), used.
    """
    figure, axis = subplots(1, 1)
    count = len(log_weights)
    shown = np.unique(np.geomspace(1, count, 400).astype(int)) - 1
    for values, name, colour, dashes in (
        (log_weights, "as they are", OTHER, DOTTED), (smoothed, "used", MODEL, "-"),
    ):  # fmt: skip
        weights = np.exp(values - values.max())
        ordered = np.sort(weights / weights.sum())[::-1] * count
        axis.plot(shown + 1, ordered[shown], color=colour, ls=dashes, label=name, lw=1.8)
    axis.axhline(1, color="#888888", lw=0.8)
    axis.set(xscale="log", yscale="log", xlabel="samples, the heaviest first")
    axis.set_ylabel("weight over the mean weight")
    axis.set_ylim(bottom=1e-3)
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return png(figure)


def ranking(names: list[str], divergences: list[float], errors: list[float]) -> bytes:
    """Draw the divergence of several PMFs from the reference, with two standard errors."""
    figure, axis = subplots(1, 1, (ONE[0], 1.0 + 0.4 * len(names)))
    places = np.arange(len(names))[::-1]
    axis.errorbar(divergences, places, xerr=[2 * e for e in errors], fmt="o", color=MODEL,
                  capsize=3)  # fmt: skip
    axis.set_yticks(places, names)
    axis.set(xlabel="JS* to the reference, nats", ylim=(-0.6, len(names) - 0.4))
    axis.set_xlim(left=min(0.0, *(d - 3 * e for d, e in zip(divergences, errors, strict=True))))
    axis.grid(alpha=0.25, axis="x")
    return png(figure)


def torsion_planes(plane: Any) -> bytes:
    """Draw the free energy of reference and structures on the plane of a `TorsionPlane`."""
    figure, axes = subplots(1, 2, (8.6, 3.6))
    for axis, counts, name in (
        (axes[0], plane.reference, "reference"), (axes[1], plane.made, "backmapped"),
    ):  # fmt: skip
        with np.errstate(divide="ignore"):
            values = -np.log(counts / max(counts.sum(), 1))
        values = np.where(np.isfinite(values), values - values[np.isfinite(values)].min(), np.nan)
        mesh = axis.pcolormesh(*plane.edges, values.T, cmap="viridis", vmin=0, vmax=7)
        axis.set(title=name, xlabel="first component of the torsions")
        axis.set_facecolor("#efefef")
    axes[0].set_ylabel("second")
    figure.colorbar(mesh, ax=list(axes), label="free energy, kT", pad=0.02)
    return png(figure)


def log_densities(edges: np.ndarray, counts: np.ndarray) -> bytes:
    """Draw a histogram of log-densities.

    Args:
        edges: (bins + 1,), nats.
        counts: (bins,).
    """
    figure, axis = subplots(1, 1)
    axis.stairs(counts, edges, color=MODEL, fill=True, alpha=0.6)
    axis.set(xlabel="log-density, nats", ylabel="structures")
    axis.grid(alpha=0.25)
    return png(figure)


def entropy_trace(values: np.ndarray, errors: np.ndarray, label: str) -> bytes:
    """Draw an entropy along a trajectory with bands of two standard errors.

    Args:
        values, errors: (frames,).
        label: of the axis, with the unit.
    """
    figure, axis = subplots(1, 1)
    frames = np.arange(len(values))
    axis.plot(frames, values, color=MODEL, lw=1.4)
    axis.fill_between(frames, values - 2 * errors, values + 2 * errors, color=MODEL, alpha=0.25)
    axis.set(xlabel="frame", ylabel=label, xlim=(0, max(1, len(values) - 1)))
    axis.grid(alpha=0.25)
    return png(figure)


def entropy_bars(names: Sequence[str], more: np.ndarray, errors: np.ndarray) -> bytes:
    """Draw what each map loses more than the first, with two standard errors.

    Args:
        names: of the maps.
        more, errors: (maps,), nats.
    """
    figure, axis = subplots(1, 1, (ONE[0], 1.0 + 0.4 * len(names)))
    rows = np.arange(len(names))[::-1]
    axis.axvline(0, color="#51606f", lw=0.8)
    axis.barh(rows, more, xerr=2 * np.asarray(errors), color=REFERENCE, height=0.6, capsize=3)
    axis.set_yticks(rows, names)
    axis.set_xlabel("lost more than by the first map, nats")
    return png(figure)
