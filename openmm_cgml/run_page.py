"""The page of one run: settings, energies, exchanges, structure, convergence, timescales.

A long run is thinned for the page, and the page says so; numbers in its record are of the same
frames as its figures.
"""

from pathlib import Path
from typing import Any

import numpy as np

from . import plot_run
from .landscape import (
    frame_interval,
)
from .page import figure, grid, heading, paragraph, row, table, write_page
from .run_file import Run
from .run_slow import settled, slow_motion
from .run_structure import contacts, rdf, structure, torsions
from .run_view import Part, RunChoices, View, masked, view_of


def write_run_page(
    path: str | Path, run: Run, *, title: str, choices: RunChoices | None = None, stride: int = 1
) -> dict[str, Any]:
    """Write the page of a run, finished or not.

    Args:
        path: the .html file.
        run: the run.
        title: heading.
        choices: what is shown.
        stride: every how many frames of the file were read, for the page to say.

    Returns:
        The page's numbers, JSON-able.

    Raises:
        InputError: if the run has no frames, nothing is left, or a choice does not fit it.
    """
    choices = choices or RunChoices()
    view = view_of(run, choices)
    part = Part()
    _what_it_is(part, view, stride)
    observables: dict[str, tuple[np.ndarray, str]] = {}
    _energies(part, view, observables)
    _exchanges(part, view)
    structure(part, view, observables)
    torsions(part, view)
    contacts(part, view)
    rdf(part, view)
    slow_motion(part, view)
    settled(part, view, observables)
    _outside(part, view)
    info = view.whole_run.info
    settings = {
        name.replace("_", " "): value for name, value in info.items()
        if isinstance(value, (str, int, float)) and not name.endswith("sha256")
    }  # fmt: skip
    part.sections += [heading("Settings"), table(settings)]
    lead = (
        f"{len(run):,} frames of {run.positions.shape[1]:,} copies, "
        f"{run.time[-1]:,.6g} ps each; shown at {view.temperature:g} K."
    )
    write_page(path, title, lead, part.notes, part.cards, part.sections, info)
    return part.record


def _what_it_is(part: Part, view: View, stride: int) -> None:
    run, shown = view.whole_run, view.run
    info = run.info
    if not run.finished:
        part.notes.append("The run is not finished: this page is about what there is so far.")
    training = info.get("training_temperature_K")
    if view.exchanged:
        rungs = ", ".join(f"{t:.0f}" for t in run.temperatures)
        part.notes.append(
            f"Replica exchange over {rungs} K. Only the rung at {training or view.temperature:g} "
            "K, the temperature of the training data, is a physical ensemble; the others carry "
            f"copies over barriers. All that follows is of the rung at {view.temperature:g} K."
        )
    elif training is not None and abs(training - view.temperature) > 0.5:
        part.notes.append(
            f"The model was trained at {training:g} K and this is {view.temperature:g} K: a "
            "potential of mean force holds at its own temperature only."
        )
    if view.choices.discard_ps > 0:
        part.notes.append(f"The first {view.choices.discard_ps:g} ps of each copy are left out.")
    thinned = stride * (
        max(1, round(frame_interval(shown) / frame_interval(run))) if len(shown) > 1 else 1
    )
    if thinned > 1:
        part.notes.append(
            f"To be quick, this page takes every {thinned}th frame of the run, and correlation "
            "between them is not resolved; effective samples are those of these frames."
        )
    part.cards += [
        (f"{len(shown):,} × {shown.positions.shape[1]:,}", f"frames × {view.lane} shown"),
        (f"{run.time[-1]:,.4g} ps", "of each copy, CG time"),
    ]
    if "replica_steps_per_second" in info:
        speed = float(info["replica_steps_per_second"])
        part.cards.append((f"{speed:,.0f}", f"replica-steps/s, {info.get('platform', '')}"))
    part.record |= {
        "kind": "run",
        "finished": run.finished,
        "frames": len(run),
        "copies": int(run.positions.shape[1]),
        "beads": len(run.topology),
        "temperature_K": view.temperature,
        "temperatures_K": run.temperatures.tolist(),
        "length_ps": float(run.time[-1]),
        "every_so_many_frames": thinned,
        "discard_ps": view.choices.discard_ps,
    }


def _energies(part: Part, view: View, observables: dict[str, tuple[np.ndarray, str]]) -> None:
    run, time = view.run, view.run.time
    drawn = []
    if run.energy is not None and np.ptp(run.energy) > 0:
        energy = masked(run.energy, view.well)
        observables["potential energy"] = (energy, "potential energy, kJ/mol")
        drawn.append(figure(
            plot_run.series(time, energy, "potential energy, kJ/mol"),
            f"Potential energy of the model in time, over {view.lane}; mean "
            f"{np.nanmean(energy):.1f} kJ/mol.", small=True,
        ))  # fmt: skip
        part.record["potential_energy_kj_mol"] = float(np.nanmean(energy))
    if run.kinetic_energy is not None and np.ptp(run.kinetic_energy) > 0:
        degrees = 3 * len(run.topology)
        kelvin = 2 * masked(run.kinetic_energy, view.well) / degrees
        kelvin *= view.temperature / view.kt
        mean = float(np.nanmean(kelvin))
        drawn.append(figure(
            plot_run.series(time, kelvin, "kinetic temperature, K", level=view.temperature),
            f"Temperature of the velocities in time; mean {mean:.1f} K; dashed: the "
            f"{view.temperature:g} K asked for.", small=True,
        ))  # fmt: skip
        part.record["kinetic_temperature_K"] = mean
    if drawn:
        part.sections += [heading("Energy and temperature"), row(drawn)]


def _exchanges(part: Part, view: View) -> None:
    if len(view.whole_run.temperatures) < 2:
        return
    run = view.whole_run
    statistics = run.info.get("statistics") or {}
    part.sections.append(heading("Exchange of temperatures"))
    rates = statistics.get("neighbour_acceptance")
    if not rates:
        part.sections.append(
            paragraph("Acceptance and round trips are known when the run is finished.")
        )
        return
    part.sections.append(figure(
        plot_run.acceptance(run.temperatures.tolist(), rates),
        "Accepted fraction of swaps of neighbouring temperatures; below about 0.1 a rung is "
        "missing there.", small=True,
    ))  # fmt: skip
    trips = {
        "round_trips": "round trips through the ladder",
        "copies_without_round_trip": "copies without one",
        "mixing_time_sweeps": "mixing time of the ladder, exchanges (a lower bound)",
        "sweeps": "exchanges",
        "effective_samples": "effective samples of the slowest coordinate",
    }
    rows = {text: statistics[key] for key, text in trips.items()
            if statistics.get(key) is not None}  # fmt: skip
    part.sections.append(table(rows))
    part.record["acceptance"] = rates
    part.record["round_trips"] = statistics.get("round_trips")
    part.cards.append((f"{statistics.get('round_trips', 0):,}", "round trips of temperatures"))


def _outside(part: Part, view: View) -> None:
    run = view.whole_run
    kinds: dict[str, int] = {}
    for event in run.events:
        kinds[event["what"]] = kinds.get(event["what"], 0) + 1
    lost = kinds.get("reset", 0) + kinds.get("dropped", 0)
    part.record["resets"] = lost
    if lost:
        part.notes.append(
            f"{'Once' if lost == 1 else f'{lost:,} times'} a copy was no longer finite and was "
            "reset or dropped; such frames are left out."
        )
    if run.extrapolating is not None:
        shown = view.run.extrapolating
        share = float(shown[view.well].mean()) if shown is not None and view.well.any() else 0.0
        part.record["extrapolating"] = share
        part.cards.append((f"{share:.2%}", "of the frames outside the training data"))
        if share > 0.01:
            part.notes.append(
                f"{share:.1%} of the frames are outside the training data, where the model has "
                "learned nothing."
            )
    if not run.events:
        return
    counted = ", ".join(f"{count:,} {what}" for what, count in sorted(kinds.items()))
    rows = [
        (f"{event.get('time_ps', 0):.6g}", str(event.get("copy", "")), str(event["what"]),
         str(event.get("why", "")), f"{event.get('temperature_K', float('nan')):.0f}")
        for event in run.events[:12]
    ]  # fmt: skip
    part.sections += [
        heading("Resets and extrapolation"),
        paragraph(f"Events of single copies, at any temperature: {counted}. The first:"),
        grid(("time, ps", "copy", "what", "why", "K"), rows),
    ]
