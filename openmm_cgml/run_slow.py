"""Slow motion and convergence on the page of a run."""

import numpy as np

from . import plot_run
from .analysis import dihedral_angles
from .landscape import (
    frame_interval,
    free_energy_surface,
    tica,
    time_series,
    torsion_features,
)
from .page import figure, grid, heading, paragraph, row
from .run_convergence import Convergence, convergence, halves_divergence
from .run_view import Part, View, number, text_of
from .timescales import implied_timescales
from .topology import bonded_torsions

_TORSIONS = 40
# R-hat above which chains do not agree yet (Vehtari et al. 2021).
_RHAT = 1.01


def slow_motion(part: Part, view: View) -> None:
    """Add TICA's plane and implied timescales, of copies that were never exchanged."""
    run, asked = view.run, view.choices.tica_lag_ps
    if asked is None and (
        view.exchanged or len(run) < 20 or not view.single or len(run.topology) < 3
        or not _has_deeptime()
    ):  # fmt: skip
        if view.exchanged:
            part.sections += [
                heading("Timescales"),
                paragraph("Copies changed temperature, so their frames are no time series of a "
                          "molecule: there are no timescales to give."),
            ]  # fmt: skip
        return
    copies = len(time_series(run))  # says what is wrong with it
    interval = frame_interval(run)
    features = torsion_features(run.topology, view.box)
    lag = asked if asked is not None else interval * max(1, len(run) // 20)
    width = features(view.positions[:1, 0]).shape[1]
    slowest = tica(run, features, lag=lag, count=min(2, width))
    steps = np.unique(np.geomspace(1, max(1, len(run) // 4), 6).astype(int))
    found = implied_timescales(
        run, features, (interval * steps).tolist(), resamples=30, count=min(3, width)
    )
    projected = np.concatenate([slowest(features(copy)) for copy in time_series(run)])
    # A coordinate of no variance would have no bins.
    kept = projected[:, np.ptp(projected, axis=0) > 1e-9][:, :2]
    surface = free_energy_surface(kept, temperature=view.temperature, bins=40)
    drawn = []
    if kept.shape[1] == 2:
        labels = ("TICA 1", "TICA 2")
        drawn += [
            figure(plot_run.plane(surface, labels, angles=False),
                   f"Free energy over the two slowest linear coordinates (TICA, lag {lag:.3g} ps) "
                   "of sines and cosines of all torsions along the bonds.", small=True),
            figure(plot_run.plane(surface, labels, angles=False, errors=True),
                   "Its standard error over ten contiguous blocks.", small=True),
        ]  # fmt: skip
    else:
        drawn.append(figure(plot_run.profile(surface, "TICA 1"),
                            f"Free energy along the slowest coordinate (TICA, lag {lag:.3g} ps); "
                            "band: two standard errors.", small=True))  # fmt: skip
    drawn.append(figure(
        plot_run.timescales(found),
        f"Implied timescales by TICA, {copies} copies, two standard errors by bootstrap over "
        "copies. They are in CG time: a coarse-grained molecule is faster than the real one. "
        "Level is good; in the shade they are shorter than the lag and mean nothing.", small=True,
    ))  # fmt: skip
    part.sections += [heading("Slow motion, in CG time"), row(drawn)]
    part.record["implied_timescales_ps_cg_time"] = {
        "lags_ps": found.lags.tolist(),
        "values": [[number(v) for v in line] for line in found.values],
        "errors": [[number(v) for v in line] for line in found.errors],
    }
    part.record["tica_lag_ps"] = float(lag)


def settled(part: Part, view: View, observables: dict[str, tuple[np.ndarray, str]]) -> None:
    """Add running means, effective samples, R-hat and the divergence of halves."""
    run, interval = view.run, frame_interval(view.run)
    healthy: np.ndarray = np.asarray(view.well.all(axis=0))
    if len(run) < 8 or not healthy.any():
        return
    found: dict[str, Convergence] = {}
    for name, (values, _) in observables.items():
        if np.ptp(values[:, healthy]) > 0:
            found[name] = convergence(values[:, healthy])
    slowest, plane = _slowest_torsion(view, healthy)
    if slowest is not None:
        found[slowest[0]] = slowest[1]
    if not found:
        return
    drawn = [
        figure(plot_run.running_mean(one, interval, observables[name][1]),
               f"Mean of the {name} by the length of the run; two standard errors with "
               "correlation in them; dashed: all of it.", small=True)
        for name, one in list(found.items())[:2] if name in observables
    ]  # fmt: skip
    if plane is not None:
        halves = halves_divergence(plane, bins=[np.linspace(-np.pi, np.pi, 13)] * plane.shape[2])
        drawn.append(figure(
            plot_run.halves(halves, interval),
            "Divergence of the distributions of torsions in the first and second half of the "
            "run, by its length, and what independent frames would have. Well above: motion "
            "slower than the run.", small=True,
        ))  # fmt: skip
        part.record["halves_divergence_nats"] = float(halves.values[-1])
        part.record["halves_divergence_floor_nats"] = float(halves.floor[-1])
    rows = [
        (
            name,
            f"{one.mean:.5g}",
            text_of(one.error),
            f"{one.effective:,.0f}",
            text_of(one.rhat, 4),
        )
        for name, one in found.items()
    ]
    part.sections += [
        heading("Is it long enough?"),
        row(drawn),
        grid(("observable", "mean", "standard error", "effective samples", "split R-hat"), rows),
        paragraph(f"{int(healthy.sum()):,} {view.lane}. R-hat compares half chains with each "
                  f"other (rank-normalised, Vehtari et al. 2021): above {_RHAT} they do not "
                  "agree yet. Errors take the copies as independent of each other, and none of "
                  "it tells what no copy has seen."),
    ]  # fmt: skip
    part.record["convergence"] = {
        name: {"mean": one.mean, "error": number(one.error), "effective": one.effective,
               "rhat": number(one.rhat)}
        for name, one in found.items()
    }  # fmt: skip
    least = min(one.effective for one in found.values())
    worst = max((one.rhat for one in found.values() if np.isfinite(one.rhat)), default=np.nan)
    part.cards += [(f"{least:,.0f}", "effective samples, slowest observable"),
                   (text_of(float(worst), 4), "largest split R-hat (1 is good)")]  # fmt: skip
    if worst > _RHAT:
        part.notes.append(
            f"Split R-hat reaches {worst:.3f}: single {view.lane} have not yet seen what all have "
            "together, so slow populations still depend on where they started. Run longer, or "
            "leave out more of the start (--discard)."
        )


def _slowest_torsion(
    view: View, healthy: np.ndarray
) -> tuple[tuple[str, Convergence] | None, np.ndarray | None]:
    """Return the least converged torsion, and the angles (frames, copies, 1 or 2) of the plane."""
    topology = view.run.topology
    torsions = bonded_torsions(topology.bonds)
    if not torsions:
        return None, None
    torsions = torsions[:: -(-len(torsions) // _TORSIONS)]
    frames = view.positions[:, healthy]
    flat = frames.reshape(-1, *frames.shape[2:])
    angles = dihedral_angles(flat, torsions).reshape(*frames.shape[:2], len(torsions))
    worst: tuple[str, Convergence] | None = None
    for k, torsion in enumerate(torsions):
        for function in (np.cos, np.sin):
            values = function(angles[:, :, k])
            if np.ptp(values) < 1e-5:
                continue
            one = convergence(values, points=1)
            if worst is None or one.effective < worst[1].effective:
                name = "-".join(topology.label(b) for b in torsion)
                worst = (f"{function.__name__} of the slowest torsion, {name}", one)
    return worst, angles[:, :, :2]


def _has_deeptime() -> bool:
    from importlib.util import find_spec

    return find_spec("deeptime") is not None
