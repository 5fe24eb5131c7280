"""The page of one run: settings, energies, exchanges, structure, convergence, timescales.

A long run is thinned for the page, and the page says so; numbers in its record are of the same
frames as its figures.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import plot_run
from .backbone_torsions import backbone_dihedrals, ramachandran, residue_table
from .errors import InputError
from .landscape import (
    frame_interval,
    free_energy_surface,
    tica,
    time_series,
    torsion_features,
)  # fmt: skip
from .observables import NativeContacts, contact_map, molecule_of, radius_of_gyration, rmsd, whole
from .page import figure, grid, heading, paragraph, row, table, write_page
from .rdf import radial_distribution
from .run_convergence import Convergence, convergence, halves_divergence
from .run_file import FRAME_ARRAYS, OPTIONAL_ARRAYS, Run
from .timescales import implied_timescales
from .topology import bonded_torsions
from .units import thermal_energy

# What the page looks at: bead positions of all frames for series, frames for distributions, bead
# distances for contact maps, and bead positions for g(r). Each is some seconds at most.
_SERIES, _STRUCTURES, _DISTANCES, _RDF_BEADS = 6_000_000, 20_000, 2e7, 300_000
_TORSIONS = 40
# R-hat above which chains do not agree yet (Vehtari et al. 2021).
_RHAT = 1.01
_CONTACT = 1.0  # nm


@dataclass(frozen=True, eq=False)
class RunChoices:
    """What a page of a run shows.

    Attributes:
        discard_ps: time at the start of each copy that is left out.
        temperature: K, of the rung of a replica exchange; None: that of the training data.
        native: (beads, 3) structure for RMSD and native contacts, nm; None: the first frames.
        native_name: where it is from.
        tica_lag_ps: lag of TICA; None: a twentieth of the run.
        rdf: whether to draw g(r); None: of several molecules in a box.
    """

    discard_ps: float = 0.0
    temperature: float | None = None
    native: np.ndarray | None = None
    native_name: str = ""
    tica_lag_ps: float | None = None
    rdf: bool | None = None


@dataclass
class _Part:
    """Sections of the page, its numbers, caveats and main numbers, as they come."""

    sections: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cards: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _View:
    """The frames that the page is about.

    Attributes:
        run: at one temperature, after what is left out, thinned.
        whole_run: as it was read.
        choices: what is shown.
        kt: kJ/mol.
        exchanged: whether copies changed temperature.
        molecule: (beads,).
        positions: (frames, copies, beads, 3), nm; molecules whole.
    """

    run: Run
    whole_run: Run
    choices: RunChoices
    kt: float
    exchanged: bool
    molecule: np.ndarray
    positions: np.ndarray

    @property
    def box(self) -> Any:
        """(3, 3), nm, or None."""
        return self.run.info.get("box_vectors_nm")

    @property
    def temperature(self) -> float:
        """K."""
        return float(self.run.temperatures[0])

    @property
    def single(self) -> bool:
        """Whether there is one molecule."""
        return int(self.molecule.max()) == 0

    @property
    def well(self) -> np.ndarray:
        """(frames, copies), frames that count."""
        if self.run.sick is None:
            return np.ones(self.positions.shape[:2], bool)
        return ~self.run.sick

    @property
    def lane(self) -> str:
        """What one column of a series is."""
        return "ladders" if self.exchanged else "copies"

    def structures(self, most: int) -> np.ndarray:
        """Return at most so many frames (frames, beads, 3), copy after copy."""
        frames, copies = np.nonzero(self.well.T)[::-1]
        step = -(-len(frames) // max(1, most))
        return self.positions[frames[::step], copies[::step]]


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
    view = _view(run, choices)
    part = _Part()
    _what_it_is(part, view, stride)
    observables: dict[str, tuple[np.ndarray, str]] = {}
    _energies(part, view, observables)
    _exchanges(part, view)
    _structure(part, view, observables)
    _torsions(part, view)
    _contacts(part, view)
    _rdf(part, view)
    _slow(part, view)
    _convergence(part, view, observables)
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


def _view(run: Run, choices: RunChoices) -> _View:
    if not len(run):
        raise InputError("the run has no frames yet; wait, or run longer")
    exchanged = len(run.temperatures) > 1 or "ladders" in run.info
    wanted = choices.temperature
    if wanted is None:
        wanted = run.info.get("training_temperature_K", float(run.temperatures[0]))
        if len(run.temperatures) == 1:
            wanted = float(run.temperatures[0])
    kept = run.after(choices.discard_ps) if choices.discard_ps > 0 else run
    chosen = kept.at_temperature(wanted)
    beads = len(run.topology)
    step = -(-(len(chosen) * chosen.positions.shape[1] * beads) // _SERIES)
    if step > 1 and len(chosen) // step < 50:
        step = max(1, len(chosen) // 50)
    chosen = _thinned(chosen, step)
    molecule = molecule_of(run.topology)
    positions = np.asarray(chosen.positions)
    if chosen.sick is not None:
        if chosen.sick.all():
            raise InputError("all frames are of sick copies; see the run's events")
        # They may not be finite, and none of them counts.
        positions = np.where(chosen.sick[:, :, None, None], np.float32(0), positions)
    if (box := run.info.get("box_vectors_nm")) is not None:
        flat = positions.reshape(-1, beads, 3)
        positions = whole(flat, run.topology, box).reshape(positions.shape)
    return _View(
        chosen, run, choices, float(thermal_energy(chosen.temperatures[0])), exchanged, molecule,
        positions,
    )  # fmt: skip


def _thinned(run: Run, step: int) -> Run:
    names = (*FRAME_ARRAYS, *OPTIONAL_ARRAYS)
    arrays: dict[str, Any] = {n: v for n in names if (v := getattr(run, n)) is not None}
    return replace(run, **{name: values[::step] for name, values in arrays.items()})


def _what_it_is(part: _Part, view: _View, stride: int) -> None:
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


def _energies(part: _Part, view: _View, observables: dict[str, tuple[np.ndarray, str]]) -> None:
    run, time = view.run, view.run.time
    drawn = []
    if run.energy is not None and np.ptp(run.energy) > 0:
        energy = _masked(run.energy, view.well)
        observables["potential energy"] = (energy, "potential energy, kJ/mol")
        drawn.append(figure(
            plot_run.series(time, energy, "potential energy, kJ/mol"),
            f"Potential energy of the model in time, over {view.lane}; mean "
            f"{np.nanmean(energy):.1f} kJ/mol.", small=True,
        ))  # fmt: skip
        part.record["potential_energy_kj_mol"] = float(np.nanmean(energy))
    if run.kinetic_energy is not None and np.ptp(run.kinetic_energy) > 0:
        degrees = 3 * len(run.topology)
        kelvin = 2 * _masked(run.kinetic_energy, view.well) / degrees
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


def _exchanges(part: _Part, view: _View) -> None:
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


def _structure(part: _Part, view: _View, observables: dict[str, tuple[np.ndarray, str]]) -> None:
    run, time, choices = view.run, view.run.time, view.choices
    positions, topology = view.positions, run.topology
    shape = positions.shape[:2]
    drawn = [figure(
        plot_run.beads(_first_molecule(topology, view.molecule), view.structures(1)[0][
            view.molecule == 0]),
        f"The beads of {'the' if view.single else 'one'} molecule in the first frame, along its "
        "long axes; one colour a bead type.", small=True,
    )]  # fmt: skip
    if np.bincount(view.molecule).max() > 2:
        radius = _masked(_gyration(view), view.well)
        name = "radius of gyration" if view.single else "mean radius of gyration"
        observables[name] = (radius, f"{name}, nm")
        drawn.append(figure(
            plot_run.series(time, radius, f"{name}, nm"),
            f"Radius of gyration{'' if view.single else ', mean over molecules,'} in time; mean "
            f"{np.nanmean(radius):.3f} nm.", small=True,
        ))  # fmt: skip
        part.record["radius_of_gyration_nm"] = float(np.nanmean(radius))
    native = choices.native
    if native is not None and not view.single:
        raise InputError(
            "RMSD and native contacts are of one molecule, and the run has "
            f"{int(view.molecule.max()) + 1}; leave --native out"
        )
    if view.single and len(topology) > 2 and (native is not None or not view.exchanged):
        firsts = view.well.argmax(axis=0)
        deviation = np.stack(
            [rmsd(positions[:, c], positions[firsts[c], c] if native is None else native)
             for c in range(shape[1])], axis=1,
        )  # fmt: skip
        what = choices.native_name or "the copy's first frame"
        deviation = _masked(deviation, view.well)
        if native is not None:  # to frames of their own, copies need not agree with each other
            observables["RMSD"] = (deviation, "RMSD, nm")
        drawn.append(figure(
            plot_run.series(time, deviation, "RMSD, nm"),
            f"RMSD to {what} after superposition, in time; mean {np.nanmean(deviation):.3f} nm.",
            small=True,
        ))  # fmt: skip
        part.record["rmsd_nm"] = float(np.nanmean(deviation))
        part.record["rmsd_to"] = what
    if native is not None and (contacts := _native_contacts(part, native)) is not None:
        flat = positions.reshape(-1, *positions.shape[2:])
        share = _masked(contacts.fraction(flat).reshape(shape), view.well)
        observables["native contacts Q"] = (share, "native contacts Q")
        drawn.append(figure(
            plot_run.series(time, share, "native contacts Q"),
            f"Fraction of the {len(contacts.pairs)} native contacts in time; mean "
            f"{np.nanmean(share):.3f}.", small=True,
        ))  # fmt: skip
        part.record["native_contacts"] = float(np.nanmean(share))
    part.sections += [heading("Structure"), row(drawn)]


def _native_contacts(part: _Part, native: np.ndarray) -> NativeContacts | None:
    try:
        return NativeContacts.of(native)
    except InputError as error:
        part.notes.append(f"Native contacts are not shown: {error}.")
        return None


def _torsions(part: _Part, view: _View) -> None:
    topology = view.run.topology
    frames = view.structures(_STRUCTURES)
    if len(frames) < 20:
        return
    try:
        which = backbone_dihedrals(topology)
    except InputError:
        return
    if len(frames) * len(which.residues) > 4_000_000:
        frames = frames[:: -(-len(frames) * len(which.residues) // 4_000_000)]
    found = ramachandran(
        frames, topology, temperature=view.temperature, box_vectors=view.box, dihedrals=which
    )
    part.sections += torsion_sections(found, f"{len(frames):,} frames")
    part.record["torsions"] = {
        "names": list(which.names),
        "residues": list(which.residues),
        "deepest_minimum_degrees": [list(one) for one in residue_table(found)],
    }


def torsion_sections(found: Any, frames: str) -> list[str]:
    """Return the sections of a `Ramachandran`: planes with errors, and the residues' minima."""
    which = found.dihedrals
    labels = which.names
    count = len(which.residues)
    about = "" if count == 1 else f" of {count} residues together"
    name = which.residues[0] if count == 1 else "all residues"
    drawn = [
        figure(plot_run.plane(found.pooled, labels),
               f"Free energy over {labels[0]} and {labels[1]}{about} ({name}), {frames}; 36 × 36 "
               "bins; lines every 4 kJ/mol. Grey: never visited.", small=True),
        figure(plot_run.plane(found.pooled, labels, errors=True),
               "Its standard error over ten contiguous blocks. Grey: visited in one block at "
               "most, so that nothing is known.", small=True),
    ]  # fmt: skip
    if 1 < count <= 4:
        drawn += [
            figure(plot_run.plane(surface, labels), f"The same of {residue}.", small=True)
            for residue, surface in zip(which.residues, found.by_residue, strict=True)
        ]
    title = "Pseudo-torsions of the backbone" if which.pseudo else "Ramachandran plane"
    sections = [heading(title), row(drawn)]
    if count > 1:
        rows = [(r, f"{a:.0f}", f"{b:.0f}") for r, a, b in residue_table(found)]
        sections += [
            paragraph("Deepest minimum of each residue, degrees, to the width of a bin:"),
            grid(("residue", *labels), rows[:80]),
        ]
    return sections


def _contacts(part: _Part, view: _View) -> None:
    beads = len(view.run.topology)
    if not view.single or not 8 <= beads <= 500:
        return
    frames = view.structures(int(max(100, _DISTANCES / beads**2)))
    found = contact_map(frames, cutoff=_CONTACT)
    reference, names = None, ("run", "")
    if view.choices.native is not None:
        reference = contact_map(view.choices.native[None], cutoff=_CONTACT)
        names = ("run", view.choices.native_name or "native")
    text = (
        f"Probability of two beads to be within {_CONTACT:g} nm, {len(frames):,} frames; beads "
        "fewer than three apart are left out"
    )
    text += f"; below the diagonal: {names[1]}." if reference is not None else "."
    part.sections += [
        heading("Contacts"),
        figure(plot_run.contacts(found, reference, names), text, small=True),
    ]


def _rdf(part: _Part, view: _View) -> None:
    topology = view.run.topology
    wanted = view.choices.rdf
    if wanted is None:
        wanted = view.box is not None and not view.single
    if not wanted:
        return
    if view.box is None:
        raise InputError("g(r) needs a periodic box, and the run has none; leave --rdf out")
    frames = view.structures(max(10, _RDF_BEADS // len(topology)))
    part_of = rdf_sections(frames, view.box, topology)
    part.sections += part_of[0]
    part.record["rdf"] = part_of[1]


def rdf_sections(
    frames: np.ndarray, box: Any, topology: Any, weights: Any = None
) -> tuple[list[str], dict[str, Any]]:
    """Return the section of g(r) of the two commonest bead types, and its numbers."""
    kinds = list(dict.fromkeys(topology.bead_types))
    common = sorted(kinds, key=lambda kind: -topology.bead_types.count(kind))[:2]
    chosen = [(a, b) for k, a in enumerate(common) for b in common[k:]]
    named = {}
    for a, b in chosen:
        try:
            named[f"{a}-{b}"] = radial_distribution(
                frames, box, topology=topology, first=a, second=b, weights=weights, bins=60
            )
        except InputError:
            if len(chosen) == 1:
                raise
    if not named:
        return [], {}
    rest = f"; of {len(kinds)} bead types the two commonest" if len(kinds) > 2 else ""
    sections = [
        heading("Radial distribution"),
        figure(
            plot_run.radial_distributions(named),
            f"g(r) between beads of different molecules, {len(frames):,} frames{rest}; bands are "
            "two standard errors over blocks. It ends at half of the box.", small=True,
        ),
    ]  # fmt: skip
    return sections, {
        name: {
            "first_peak_nm": float(f.centres[f.values.argmax()]),
            "height": float(f.values.max()),
        }
        for name, f in named.items()
    }


def _slow(part: _Part, view: _View) -> None:
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
        "values": [[_number(v) for v in line] for line in found.values],
        "errors": [[_number(v) for v in line] for line in found.errors],
    }
    part.record["tica_lag_ps"] = float(lag)


def _convergence(part: _Part, view: _View, observables: dict[str, tuple[np.ndarray, str]]) -> None:
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
        (name, f"{one.mean:.5g}", _text(one.error), f"{one.effective:,.0f}", _text(one.rhat, 4))
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
        name: {"mean": one.mean, "error": _number(one.error), "effective": one.effective,
               "rhat": _number(one.rhat)}
        for name, one in found.items()
    }  # fmt: skip
    least = min(one.effective for one in found.values())
    worst = max((one.rhat for one in found.values() if np.isfinite(one.rhat)), default=np.nan)
    part.cards += [(f"{least:,.0f}", "effective samples, slowest observable"),
                   (_text(float(worst), 4), "largest split R-hat (1 is good)")]  # fmt: skip
    if worst > _RHAT:
        part.notes.append(
            f"Split R-hat reaches {worst:.3f}: single {view.lane} have not yet seen what all have "
            "together, so slow populations still depend on where they started. Run longer, or "
            "leave out more of the start (--discard)."
        )


def _slowest_torsion(
    view: _View, healthy: np.ndarray
) -> tuple[tuple[str, Convergence] | None, np.ndarray | None]:
    """Return the least converged torsion, and the angles (frames, copies, 1 or 2) of the plane."""
    topology = view.run.topology
    torsions = bonded_torsions(topology.bonds)
    if not torsions:
        return None, None
    torsions = torsions[:: -(-len(torsions) // _TORSIONS)]
    from .analysis import dihedral_angles

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


def _outside(part: _Part, view: _View) -> None:
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


def _gyration(view: _View) -> np.ndarray:
    """Return radii of gyration (frames, copies), nm; of several molecules their mean."""
    flat = view.positions.reshape(-1, *view.positions.shape[2:])
    masses = np.asarray(view.run.topology.masses)
    sizes = np.bincount(view.molecule)
    chosen = np.flatnonzero(sizes > 2)
    total = np.zeros(len(flat))
    for molecule in chosen:
        members = view.molecule == molecule
        total += radius_of_gyration(flat[:, members], masses[members])
    return (total / len(chosen)).reshape(view.positions.shape[:2])


def _first_molecule(topology: Any, molecule: np.ndarray) -> Any:
    from .molecules import part_of

    return part_of(topology, np.flatnonzero(molecule == 0))


def _has_deeptime() -> bool:
    from importlib.util import find_spec

    return find_spec("deeptime") is not None


def _masked(values: np.ndarray, well: np.ndarray) -> np.ndarray:
    return np.where(well, np.asarray(values, dtype=np.float64), np.nan)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _text(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}g}" if np.isfinite(value) else "-"
