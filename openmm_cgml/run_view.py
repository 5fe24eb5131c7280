"""The frames that the page of a run is about, and what the page gathers."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .errors import InputError
from .observables import molecule_of, whole
from .run_file import FRAME_ARRAYS, OPTIONAL_ARRAYS, Run
from .units import thermal_energy

# Bead positions of all frames that series are of: some seconds at most.
_SERIES = 6_000_000


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
class Part:
    """Sections of the page, its numbers, caveats and main numbers, as they come."""

    sections: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cards: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class View:
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


def view_of(run: Run, choices: RunChoices) -> View:
    """Return the frames of a run that its page shows; raise InputError if there are none."""
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
    return View(
        chosen, run, choices, float(thermal_energy(chosen.temperatures[0])), exchanged, molecule,
        positions,
    )  # fmt: skip


def _thinned(run: Run, step: int) -> Run:
    names = (*FRAME_ARRAYS, *OPTIONAL_ARRAYS)
    arrays: dict[str, Any] = {n: v for n in names if (v := getattr(run, n)) is not None}
    return replace(run, **{name: values[::step] for name, values in arrays.items()})


def masked(values: np.ndarray, well: np.ndarray) -> np.ndarray:
    """Return values (frames, copies) as float64, nan where a frame does not count."""
    return np.where(well, np.asarray(values, dtype=np.float64), np.nan)


def number(value: float) -> float | None:
    """Return a number for JSON: None where it is not finite."""
    return float(value) if np.isfinite(value) else None


def text_of(value: float, digits: int = 2) -> str:
    """Return a number to be read: a dash where it is not finite."""
    return f"{value:.{digits}g}" if np.isfinite(value) else "-"
