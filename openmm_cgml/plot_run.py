"""Figures of one run or dataset, as PNG bytes: series, contacts, planes, timescales, convergence.

Each is one panel, as wide as a phone; pages put them side by side where there is room.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .canvas import (
    DASHED,
    DASHES,
    DOTTED,
    EMPTY,
    MARKERS,
    MODEL,
    ONE,
    REFERENCE,
    SERIES,
    png,
    subplots,
)  # fmt: skip
from .landscape import FreeEnergySurface
from .rdf import RadialDistribution
from .run_convergence import Convergence, HalvesDivergence
from .timescales import ImpliedTimescales
from .topology import CGTopology

_DEGREES = 180 / np.pi


def series(time: np.ndarray, values: np.ndarray, label: str, level: float | None = None) -> bytes:
    """Draw an observable of several copies in time: median, where half and nine tenths are, one.

    Args:
        time: (frames,), ps.
        values: (frames, copies).
        label: of the axis, with the unit.
        level: a horizontal line, dashed: a value to compare with.
    """
    figure, axis = subplots(1, 1)
    if values.shape[1] > 1:
        low, quarter, middle, upper, high = np.nanquantile(
            values, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1
        )
        axis.fill_between(time, low, high, color=MODEL, alpha=0.18, lw=0, label="90 % of copies")
        axis.fill_between(time, quarter, upper, color=MODEL, alpha=0.4, lw=0, label="50 %")
        axis.plot(time, middle, color=MODEL, lw=1.8, label="median")
        axis.plot(time, values[:, 0], color="black", lw=0.7, ls=DOTTED, label="first copy")
        # Above the axes: there is no place in them that all series leave free.
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    else:
        axis.plot(time, values[:, 0], color=MODEL, lw=1.1)
    if level is not None:
        axis.axhline(level, color=REFERENCE, ls=DASHED, lw=1.4)
    axis.set(xlabel="time, ps", ylabel=label)
    axis.margins(x=0.01)
    axis.grid(alpha=0.25)
    return png(figure)


def histograms(
    named: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str, periodic: bool = False
) -> bytes:
    """Draw densities by name.

    Args:
        named: name -> (bins + 1,) edges and (bins,) densities; at most six.
        label: of the axis, with the unit.
        periodic: of angles, drawn from -180 to 180 degrees.
    """
    figure, axis = subplots(1, 1)
    for k, (name, (edges, density)) in enumerate(named.items()):
        axis.stairs(density, edges, color=SERIES[k], ls=DASHES[k], lw=1.8, label=name)
    axis.set(xlabel=label, ylabel=f"density, 1/{label.rpartition(', ')[2]}")
    axis.set_ylim(bottom=0)
    if periodic:
        axis.set_xticks([-180, -90, 0, 90, 180])
    figure.legend(loc="outside upper center", ncols=2 if len(named) > 1 else 1, frameon=False)
    axis.grid(alpha=0.25)
    return png(figure)


def radial_distributions(named: Mapping[str, RadialDistribution]) -> bytes:
    """Draw g(r) by name with bands of two standard errors; at most six."""
    figure, axis = subplots(1, 1)
    for k, (name, found) in enumerate(named.items()):
        r = found.centres
        axis.plot(r, found.values, color=SERIES[k], ls=DASHES[k], lw=1.6, label=name)
        axis.fill_between(
            r, found.values - 2 * found.errors, found.values + 2 * found.errors,
            color=SERIES[k], alpha=0.25, lw=0,
        )  # fmt: skip
    axis.axhline(1, color="#767676", lw=0.8)
    axis.set(xlabel="r, nm", ylabel="g(r)")
    axis.set_ylim(bottom=0)
    axis.margins(x=0.01)
    figure.legend(loc="outside upper center", ncols=2 if len(named) > 1 else 1, frameon=False)
    axis.grid(alpha=0.25)
    return png(figure)


def contacts(run: np.ndarray, reference: np.ndarray | None, names: tuple[str, str]) -> bytes:
    """Draw a contact map, and in its lower triangle another's.

    Args:
        run: (beads, beads) probabilities; nan: not counted.
        reference: likewise; None: the map is drawn twice.
        names: of the upper and the lower triangle.
    """
    beads = len(run)
    shown = run.copy()
    if reference is not None:
        lower = np.tril_indices(beads)
        shown[lower] = reference[lower]
    figure, axis = subplots(1, 1, (ONE[0], 4.1))
    axis.set_facecolor(EMPTY)
    edges = np.arange(beads + 1) + 0.5
    mesh = axis.pcolormesh(edges, edges, shown, cmap="cividis", vmin=0, vmax=1)
    axis.plot([0.5, beads + 0.5], [0.5, beads + 0.5], color="black", lw=0.7)
    figure.colorbar(mesh, ax=axis, label="probability of contact", shrink=0.85)
    if reference is not None:
        box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2}
        axis.text(0.97, 0.04, names[0], transform=axis.transAxes, ha="right", bbox=box)
        axis.text(0.03, 0.96, names[1], transform=axis.transAxes, va="top", bbox=box)
    axis.set(xlabel="bead", ylabel="bead", aspect="equal")
    return png(figure)


def plane(
    surface: FreeEnergySurface, labels: tuple[str, str], *, angles: bool = True,
    errors: bool = False, top: float = 30.0,
) -> bytes:  # fmt: skip
    """Draw a free energy over two observables, or its standard error; kJ/mol.

    Args:
        surface: over two observables.
        labels: of the axes.
        angles: the observables are radians, and drawn in degrees.
        errors: draw the error.
        top: largest free energy of the colours.
    """
    scale = _DEGREES if angles else 1.0
    x, y = (edges * scale for edges in surface.edges)
    figure, axis = subplots(1, 1, (ONE[0], 4.0))
    axis.set_facecolor(EMPTY)
    if errors:
        known = surface.errors[np.isfinite(surface.errors)]
        high = max(float(np.quantile(known, 0.95)), 1e-3) if known.size else 1.0
        mesh = axis.pcolormesh(x, y, surface.errors.T, cmap="cividis", vmin=0, vmax=high)
        figure.colorbar(mesh, ax=axis, label="standard error, kJ/mol", extend="max")
    else:
        high = min(top, float(np.nanmax(surface.values)) or 1.0)
        mesh = axis.pcolormesh(x, y, surface.values.T, cmap="viridis", vmin=0, vmax=high)
        centres = [0.5 * (e[1:] + e[:-1]) for e in (x, y)]
        axis.contour(*centres, np.ma.masked_invalid(surface.values.T), linewidths=0.6,
                     levels=np.arange(4, max(high, 8), 4), colors="white", alpha=0.7)  # fmt: skip
        clipped = float(np.nanmax(surface.values)) > high
        figure.colorbar(mesh, ax=axis, label="free energy, kJ/mol",
                        extend="max" if clipped else "neither")  # fmt: skip
    unit = ", degrees" if angles else ""
    axis.set(xlabel=labels[0] + unit, ylabel=labels[1] + unit)
    if angles:
        axis.set_xticks([-180, -90, 0, 90, 180])
        axis.set_yticks([-180, -90, 0, 90, 180])
    return png(figure)


def profile(surface: FreeEnergySurface, label: str) -> bytes:
    """Draw a free energy over one observable with a band of two standard errors."""
    figure, axis = subplots(1, 1)
    (x,) = surface.centres
    axis.plot(x, surface.values, color=MODEL, lw=1.8)
    axis.fill_between(
        x, surface.values - 2 * surface.errors, surface.values + 2 * surface.errors,
        color=MODEL, alpha=0.25, lw=0,
    )  # fmt: skip
    axis.set(xlabel=label, ylabel="free energy, kJ/mol")
    axis.grid(alpha=0.25)
    return png(figure)


def timescales(found: ImpliedTimescales) -> bytes:
    """Draw implied timescales by lag with two standard errors; shaded: faster than the lag."""
    figure, axis = subplots(1, 1)
    for k, (values, errors) in enumerate(zip(found.values.T, found.errors.T, strict=True)):
        if not np.isfinite(values).any():
            continue
        lower = np.minimum(2 * np.nan_to_num(errors), 0.999 * np.nan_to_num(values))
        axis.errorbar(
            found.lags, values, yerr=[lower, 2 * np.nan_to_num(errors)], color=SERIES[k],
            ls=DASHES[k], marker=MARKERS[k], ms=5, lw=1.6, capsize=3, label=f"{k + 1}",
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="lag, ps of CG time")
    axis.set_ylabel("timescale, ps of CG time")
    low, high = axis.get_xlim()
    bottom = min(axis.get_ylim()[0], found.lags.min() / 2)
    line = np.geomspace(low, high, 50)
    axis.fill_between(line, bottom, line, color="#767676", alpha=0.2, lw=0)
    axis.set(xlim=(low, high))
    axis.set_ylim(bottom=bottom)
    figure.legend(loc="outside upper center", ncols=6, frameon=False, title="process")
    axis.grid(alpha=0.25, which="both")
    return png(figure)


def running_mean(found: Convergence, interval: float, label: str) -> bytes:
    """Draw an observable's mean by the length of the run, with two standard errors.

    Args:
        found: from `convergence`.
        interval: between frames, ps.
        label: of the axis, with the unit.
    """
    figure, axis = subplots(1, 1)
    time = found.lengths * interval
    axis.plot(time, found.means, color=MODEL, lw=1.8, marker="o", ms=3.5)
    axis.fill_between(
        time, found.means - 2 * found.errors, found.means + 2 * found.errors,
        color=MODEL, alpha=0.25, lw=0,
    )  # fmt: skip
    axis.axhline(found.mean, color=REFERENCE, ls=DASHED, lw=1.2)
    axis.set(xlabel="length of each copy, ps", ylabel=label)
    axis.grid(alpha=0.25)
    return png(figure)


def halves(found: HalvesDivergence, interval: float) -> bytes:
    """Draw the divergence of a run's halves by its length, and what independent frames have."""
    figure, axis = subplots(1, 1)
    time = found.lengths * interval
    axis.plot(time, found.values, color=MODEL, marker="o", ms=4, lw=1.6, label="halves")
    axis.plot(time, found.floor, color=REFERENCE, ls=DASHED, lw=1.6, label="independent frames")
    axis.set(yscale="log", xlabel="length of each copy, ps", ylabel="JS divergence, nats")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    axis.grid(alpha=0.25, which="both")
    return png(figure)


def learning(history: Sequence[Mapping[str, float]], label: str) -> bytes:
    """Draw the loss of training and validation over epochs."""
    figure, axis = subplots(1, 1)
    epochs = [h["epoch"] + 1 for h in history]
    for name, text, colour, dashes in (
        ("train_loss", "training", "#767676", DOTTED), ("valid_loss", "validation", MODEL, "-"),
    ):  # fmt: skip
        values = [h.get(name, np.nan) for h in history]
        if np.isfinite(values).any():
            axis.plot(epochs, values, color=colour, ls=dashes, lw=1.8, label=text, marker="o",
                      ms=3 if len(history) < 12 else 0)  # fmt: skip
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    axis.grid(alpha=0.25)
    return png(figure)


def acceptance(temperatures: Sequence[float], rates: Sequence[float | None]) -> bytes:
    """Draw how often neighbouring temperatures were exchanged."""
    figure, axis = subplots(1, 1)
    places = np.arange(len(rates))
    values = [0.0 if rate is None else rate for rate in rates]
    bars = axis.bar(places, values, color=REFERENCE, width=0.65)
    if len(rates) <= 8:
        axis.bar_label(bars, [f"{v:.2f}" for v in values])
    pairs = [f"{a:.0f}\n{b:.0f}" for a, b in zip(temperatures, temperatures[1:], strict=False)]
    every = -(-len(rates) // 8)
    axis.set_xticks(places[::every], pairs[::every])
    axis.set(ylim=(0, 1), xlabel="neighbouring temperatures, K", ylabel="accepted swaps")
    axis.grid(alpha=0.25, axis="y")
    return png(figure)


def beads(topology: CGTopology, positions: np.ndarray, most: int = 200) -> bytes:
    """Draw beads and bonds of one molecule along its two long axes.

    Args:
        topology: the beads.
        positions: (beads, 3), nm, not cut by a box.
        most: beads that are drawn; more only as a line along the bonds.
    """
    centred = positions - positions.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    flat = np.zeros((len(centred), 2))
    flat[:, : min(2, len(axes))] = (centred @ axes.T)[:, :2]
    kinds = list(dict.fromkeys(topology.bead_types))
    span = np.ptp(flat, axis=0) + 0.15 * np.ptp(flat) + 1e-3
    figure, axis = subplots(1, 1, (ONE[0], float(np.clip(ONE[0] * span[1] / span[0], 1.6, 4.2))))
    for i, j in topology.bonds:
        axis.plot(*flat[[i, j]].T, color="#767676", lw=2.2, zorder=1)
    if len(topology) <= most:
        size = float(np.clip(9000 / len(topology), 60, 600))
        for kind in kinds:
            chosen = [k for k, t in enumerate(topology.bead_types) if t == kind]
            colour = SERIES[kinds.index(kind) % len(SERIES)]
            axis.scatter(*flat[chosen].T, s=size, color=colour, edgecolor="black", lw=0.8,
                         zorder=2, clip_on=False)  # fmt: skip
        if len(topology) <= 16:
            for k, place in enumerate(flat):
                dark = SERIES[kinds.index(topology.bead_types[k]) % len(SERIES)] != SERIES[4]
                axis.text(*place, topology.bead_names[k], ha="center", va="center", zorder=3,
                          color="white" if dark else "black", weight="bold")  # fmt: skip
    axis.set(aspect="equal")
    axis.margins(0.18)
    axis.set_axis_off()
    return png(figure)
