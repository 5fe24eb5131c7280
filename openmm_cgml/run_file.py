"""Runs of many copies on disk: written in closed segments, read as one trajectory.

A run that is still going, or was killed, is a folder ``NAME.segments`` of complete HDF5 files,
each with frames and, in the same file and so never apart from them, the state to go on from. A
finished one is the single file ``NAME``, which also holds the last state, so that it can be made
longer. `read_run` reads either.
"""

import errno
import glob
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import atomic_path, require_file, require_writable, segments_folder
from .hdf5_files import kind_of, open_hdf5_file, stored_text, text_of, write_hdf5_file
from .texts import parse_json
from .topology import CGTopology

logger = logging.getLogger(__name__)

#: Version of the layout; a reader refuses newer ones.
SCHEMA_VERSION = 2

#: Arrays with one row a frame: name, unit, type.
FRAME_ARRAYS = {
    "positions": ("nm", np.float32),
    "time": ("ps", np.float64),
    "energy": ("kJ/mol", np.float64),
    "kinetic_energy": ("kJ/mol", np.float32),
    "rung": ("", np.int16),
    "sick": ("", np.bool_),
    "extrapolating": ("", np.bool_),
}

#: Further arrays of the runs whose settings have a key of that name.
OPTIONAL_ARRAYS = {"force_uncertainty": ("kJ/mol/nm", np.float32)}

#: Arrays with one row an exchange.
EXCHANGE_ARRAYS = {"time": ("ps", np.float64), "rung": ("", np.int16)}


# Every rank of a run writes its copies; these have no copies and are the same on all ranks.
_SHARED = ("time",)


@dataclass(frozen=True, eq=False)
class Run:
    """Frames of several copies of a molecule.

    Attributes:
        positions: (frames, copies, beads, 3), nm.
        time: (frames,), ps.
        topology: the beads of one copy.
        info: settings of the run (temperatures_K, timestep_ps, platform, backend, ...).
        energy: (frames, copies), kJ/mol: potential energy, users' forces included.
        kinetic_energy: (frames, copies), kJ/mol.
        rung: (frames, copies) index into the temperatures at which a copy ran then.
        sick: (frames, copies) bool: the copy was reset or dropped; leave such frames out.
        extrapolating: (frames, copies) bool: outside the training data, by a distance, an angle
            or, of an ensemble, the uncertainty of its forces.
        force_uncertainty: (frames, copies), kJ/mol/nm: by how much the forces of an ensemble's
            members differ; None of any other model.
        exchange_time: (exchanges,), ps.
        exchange_rung: (exchanges, copies): rungs after each exchange.
        events: what happened to single copies: dictionaries with copy, time_ps, what, ...
        finished: whether the run reached its end.
    """

    positions: np.ndarray
    time: np.ndarray
    topology: CGTopology
    info: dict[str, Any] = field(default_factory=dict)
    energy: np.ndarray | None = None
    kinetic_energy: np.ndarray | None = None
    rung: np.ndarray | None = None
    sick: np.ndarray | None = None
    extrapolating: np.ndarray | None = None
    force_uncertainty: np.ndarray | None = None
    exchange_time: np.ndarray | None = None
    exchange_rung: np.ndarray | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = True

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def temperatures(self) -> np.ndarray:
        """Temperatures of the rungs, K; one for a run at a single temperature."""
        return np.asarray(self.info["temperatures_K"], dtype=float)

    def after(self, discard_ps: float) -> "Run":
        """Return the run without its start.

        Raises:
            InputError: if nothing is left.
        """
        keep = self.time > discard_ps
        if not keep.any():
            raise InputError(
                f"the run is {self.time[-1]:.3g} ps long, nothing is left after {discard_ps} ps"
                if len(self)
                else "the run has no frames yet; wait, or run longer"
            )
        return self._select(keep)

    def at_temperature(self, temperature: float) -> "Run":
        """Return the frames at one rung: of each ladder, whichever copy was there.

        Args:
            temperature: K, to within 0.5 K of a rung's.

        Returns:
            A run whose "copies" are the places at that temperature: the ladders of a replica
            exchange, or the copies that ran at it.

        Raises:
            InputError: if no rung has that temperature.
        """
        temperatures = self.temperatures
        rung = int(np.abs(temperatures - temperature).argmin())
        if abs(temperatures[rung] - temperature) > 0.5:
            known = ", ".join(f"{t:g}" for t in temperatures)
            raise InputError(f"no rung is at {temperature:g} K; the run has {known} K")
        if self.rung is None or len(temperatures) == 1:
            return self
        # argsort is stable: places stay in the order of their copies, so of their ladders.
        there = self.rung == rung
        width = int(there[0].sum()) if len(there) else 0
        columns = np.argsort(~there, axis=1, kind="stable")[:, :width]
        if "ladders" in self.info:
            columns = self._by_ladder(there, columns)
        rows = np.arange(len(self))[:, None]
        changed: dict[str, Any] = {
            name: values[rows, columns]
            for name, values in self._arrays().items()
            if name not in _SHARED
        }
        return replace(
            self,
            exchange_time=None,
            exchange_rung=None,
            info={**self.info, "temperatures_K": [float(temperatures[rung])], "copies": width},
            **changed,
        )

    def draw(self, count: int, seed: int = 0) -> np.ndarray:
        """Return frames of any copies and temperatures at random, (frames, beads, 3), nm.

        Args:
            count: at most so many; none twice, none of a copy while it was sick.
            seed: of the choice.
        """
        healthy = np.ones(self.positions.shape[:2], bool) if self.sick is None else ~self.sick
        frames, copies = np.nonzero(healthy)
        chosen = np.random.default_rng(seed).permutation(len(frames))[:count]
        return np.asarray(self.positions[frames[chosen], copies[chosen]])

    def of_copy(self, copy: int) -> "Run":
        """Return the frames of one copy, through all its temperatures.

        Raises:
            InputError: if there is no such copy.
        """
        copies = self.positions.shape[1]
        if not 0 <= copy < copies:
            raise InputError(f"there is no copy {copy}; the run has copies 0 to {copies - 1}")
        changed: dict[str, Any] = {
            name: values[:, copy : copy + 1]
            for name, values in self._arrays().items()
            if name not in _SHARED
        }
        return replace(self, **changed)

    def _by_ladder(self, there: np.ndarray, columns: np.ndarray) -> np.ndarray:
        ladders = int(self.info["ladders"])
        place = there.reshape(len(there), ladders, -1).argmax(axis=2)
        return place + np.arange(ladders) * (there.shape[1] // ladders)

    def _select(self, frames: Any) -> "Run":
        changed: dict[str, Any] = {n: v[frames] for n, v in self._arrays().items()}
        return replace(self, **changed)

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays with one row a frame that the run has, by name."""
        names = (*FRAME_ARRAYS, *OPTIONAL_ARRAYS)
        return {n: v for n in names if (v := getattr(self, n)) is not None}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a run needs to go on as if it had never stopped.

    Attributes:
        step: integrator steps done.
        arrays: positions, velocities, rungs and counters.
        state: JSON: random generators, totals.
        blob: OpenMM's own checkpoint, which alone holds its random stream.
    """

    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]
    blob: bytes


class RunWriter:
    """Write one rank's share of a run, segment by segment.

    Args:
        path: the finished run's file (.h5).
        topology: the beads of one copy.
        info: settings of the run, JSON-able; `info["ranks"]` processes write it. Keys named as in
            `OPTIONAL_ARRAYS` say that it has those arrays.
        rank: this process.
        wait: called when this rank has looked at what is there; returns when all have.
    """

    def __init__(
        self,
        path: str | Path,
        topology: CGTopology,
        info: dict[str, Any],
        rank: int = 0,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = require_writable(path)
        self.folder = segments_folder(self.path)
        self.topology, self.info, self.rank = topology, dict(info), rank
        self._table = _frame_arrays(self.info)
        self._ranks = int(info.get("ranks", 1))
        self._next = sum(part != [self.path] for part in _parts(self.path))
        wait()
        self._remove_left_overs()
        self._clear()

    def _remove_left_overs(self) -> None:
        """Remove files of this rank that a kill left and that are no part of the run.

        Ranks may meet only after this: a new file of one beside an old one of another would pass
        for a whole segment.
        """
        ending = ".h5" if self.rank == 0 else f".{self.rank}.h5"
        for file in self.folder.glob(f"??????{ending}"):
            if int(file.name[:6]) >= self._next:
                file.unlink()
        if self.rank == 0:
            half = f".{glob.escape(self.path.name)}.*.tmp"
            for file in (*self.path.parent.glob(half), *self.folder.glob(".*.tmp")):
                file.unlink()

    def _clear(self) -> None:
        self._frames: dict[str, list[Any]] = {name: [] for name in self._table}
        self._exchanges: dict[str, list[Any]] = {name: [] for name in EXCHANGE_ARRAYS}
        self.events: list[dict[str, Any]] = []
        self.pending_bytes = 0

    def add(self, **values: Any) -> None:
        """Append one frame; names as in the tables above, arrays (copies, ...)."""
        for name, (_, kind) in self._table.items():
            row: np.ndarray = np.array(values[name], dtype=kind)
            self._frames[name].append(row)
            self.pending_bytes += row.nbytes

    def add_exchange(self, time: float, rung: np.ndarray) -> None:
        """Append the rungs after an exchange."""
        self._exchanges["time"].append(time)
        self._exchanges["rung"].append(np.array(rung, dtype=np.int16))
        self.pending_bytes += self._exchanges["rung"][-1].nbytes

    def flush(self, checkpoint: Checkpoint) -> None:
        """Close the current segment with the state after it: both are safe from here on.

        Raises:
            InputError: if the disk is full; what was written before stays.
        """
        segment = self.folder / _segment_name(self._next, self.rank)
        try:
            self.folder.mkdir(exist_ok=True)
            # Made in memory: HDF5 itself may end the process when the disk is full.
            with atomic_path(segment) as partial:
                partial.write_bytes(self._image(checkpoint))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise InputError(
                f"cannot write {segment}: {'the disk is full' if full else error.strerror}; what "
                "was written before is safe: make room, then start the same run again to go on"
            ) from error
        self._next += 1
        self._clear()

    def _image(self, checkpoint: Checkpoint) -> bytes:
        with write_hdf5_file("segment", driver="core", backing_store=False) as handle:
            _write_head(handle, self.topology, self.info, checkpoint.step, finished=False)
            for group, table, rows in (
                ("frames", self._table, self._frames),
                ("exchanges", EXCHANGE_ARRAYS, self._exchanges),
            ):
                for name, (unit, kind) in table.items():
                    values: np.ndarray = np.array(rows[name], dtype=kind)
                    data = handle.create_dataset(f"{group}/{name}", data=values)
                    data.attrs["unit"] = stored_text(unit)
            handle["events"] = stored_text(json.dumps(self.events))
            _write_checkpoint(handle, checkpoint, self.rank)
            handle.flush()
            return handle.id.get_file_image()

    def finish(self, **info: Any) -> bool:
        """Join all segments into the one file and remove them; `info` is added to the run's.

        Call on one rank, when all have flushed. Where the disk has too little room for the copy
        the segments stay, and `read_run` reads them just the same.

        Returns:
            Whether there is now one file.
        """
        parts = _parts(self.path)
        needed = sum(file.stat().st_size for part in parts for file in part)
        try:
            if parts != [[self.path]]:  # else a kill came when only the removal was left to do
                _require_room(self.path, int(1.05 * needed) + (1 << 20))
                _consolidate(self.path, parts, self.topology, {**self.info, **info})
        except OSError as error:
            logger.warning(
                "%s stays in segments, which can be read just the same: joining them needs %.3g "
                "MB (%s); make room and start the same run again to join them",
                self.path,
                needed / 1e6,
                error.strerror or error,
            )
            return False
        # What cannot be removed, because somebody reads it, is known to be no part of the run.
        shutil.rmtree(self.folder, ignore_errors=True)
        return True


def read_run(path: str | Path, *, stride: int = 1) -> Run:
    """Read a run, finished, still going or killed.

    Args:
        path: the run's file, which need not exist yet while the run is going.
        stride: take every so many frames.

    Raises:
        InputError: if there is neither a file nor segments, or they are damaged.
    """
    path = Path(path)
    if stride < 1:
        raise InputError(f"stride is {stride}; give 1 or more")
    while True:
        before = _files_of(path)
        try:
            return _read_run(path, stride)
        except InputError:
            # A run that is finished just now moves from its segments into the file.
            if _files_of(path) == before:
                raise


def _files_of(path: Path) -> tuple[int, list[str]]:
    """Return which files a run has just now: the inode of the joined one and the segments' names.

    Times of change are too coarse: the removal of two segments may share one.
    """
    try:
        joined = path.stat().st_ino
    except (OSError, ValueError):
        joined = 0
    return joined, _names(segments_folder(path))


def _names(folder: Path) -> list[str]:
    """Return the sorted names in a folder; none if it is not there, or is removed meanwhile."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


def _read_run(path: Path, stride: int) -> Run:
    parts = _parts(path)
    if not parts:
        require_file(path, "run")  # says what is wrong with it
        raise InputError(f"run {path} has come to be just now; read it again")
    pieces, skip = [], 0
    for part in parts:
        piece, frames = _read_part(part, stride, skip)
        skip = (skip - frames) % stride
        pieces.append(piece)
    last = pieces[-1]
    try:
        arrays: dict[str, Any] = {
            name: np.concatenate([p[name] for p in pieces])
            for name in (*_frame_arrays(last["info"]), "exchange_time", "exchange_rung")
        }
    except (ValueError, KeyError) as error:
        raise InputError(
            f"the parts of run {path} are of different runs ({error}); put back its own"
        ) from error
    return Run(
        topology=last["topology"],
        info=last["info"],
        events=[event for p in pieces for event in p["events"]],
        finished=last["finished"],
        **arrays,
    )


def outside_training(run: Run) -> dict[str, float]:
    """Return which fraction of a run's frames is outside the training data; sick ones left out.

    Returns:
        ``extrapolating``, by any reason, and of an ensemble with a limit ``uncertain``, by the
        uncertainty of its forces; empty if nothing is known.
    """
    if run.extrapolating is None or not len(run):
        return {}
    well = np.ones_like(run.extrapolating) if run.sick is None else ~run.sick
    if not well.any():
        return {}
    found = {"extrapolating": float(run.extrapolating[well].mean())}
    limit = (run.info.get("force_uncertainty") or {}).get("limit")
    if run.force_uncertainty is not None and limit is not None:
        found["uncertain"] = float((~(run.force_uncertainty[well] <= limit)).mean())
    return found


def read_checkpoint(path: str | Path, rank: int = 0) -> tuple[dict[str, Any], Checkpoint] | None:
    """Return a run's settings and the last state from which it can go on; None if there is none.

    Raises:
        InputError: if a file is damaged.
    """
    parts = _parts(Path(path))
    if not parts:
        return None
    files = parts[-1]
    with _opened(files[rank if len(files) > rank else 0]) as handle:
        info = parse_json(text_of(handle.attrs["info"]))
        name = f"checkpoint/{rank}"
        if name not in handle:
            return info, Checkpoint(int(handle.attrs["step"]), {}, {}, b"")
        group = handle[name]
        return info, Checkpoint(
            step=int(handle.attrs["step"]),
            arrays={k: np.asarray(v) for k, v in group["arrays"].items()},
            state=parse_json(text_of(group["state"][()])),
            blob=bytes(np.asarray(group["openmm"])),
        )


def _frame_arrays(info: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return the arrays with one row a frame of a run with these settings."""
    return FRAME_ARRAYS | {n: kind for n, kind in OPTIONAL_ARRAYS.items() if n in info}


def _segment_name(number: int, rank: int) -> str:
    return f"{number:06d}.h5" if rank == 0 else f"{number:06d}.{rank}.h5"


def _parts(path: Path) -> list[list[Path]]:
    """Return the files that make the run, in order: each a list of one file a rank.

    Raises:
        InputError: if a segment is missing or damaged.
    """
    # Listed first: a run that is being finished is then seen in both places, not in neither.
    folder = segments_folder(path)
    firsts = [folder / name for name in _names(folder) if re.fullmatch(r".{6}\.h5", name)]
    parts: list[list[Path]] = []
    step = -1
    if os.path.exists(path):  # False for a name that none can have
        with _opened(path) as handle:
            step = int(handle.attrs["step"])
        parts.append([path])
    number = 0
    for first in firsts:
        with _opened(first) as handle:
            if int(handle.attrs["step"]) <= step:
                continue  # a kill came between joining the segments and removing them
            ranks = int(parse_json(text_of(handle.attrs["info"])).get("ranks", 1))
        files = [first.with_name(_segment_name(number, rank)) for rank in range(ranks)]
        lacking = [file for file in files if not file.exists()]
        if lacking and first == firsts[-1] == files[0]:
            break  # a kill came before every rank had written its file
        if lacking:
            raise InputError(
                f"segment {lacking[0]} is missing; put it back, or remove those after it to go "
                "on from what was before"
            )
        parts.append(files)
        number += 1
    return parts


class _opened:
    """Open a run's file for reading, with errors that say what is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = require_file(path, "run")

    def __enter__(self) -> Any:
        try:
            self._handle = open_hdf5_file(self.path)
        except OSError as error:
            raise self._damaged() from error
        try:
            if kind_of(self._handle) != "run":
                raise InputError(f"{self.path} is not a run; make one with `cgml simulate`")
            version = int(self._handle.attrs.get("schema_version", 0))
            if version > SCHEMA_VERSION:
                raise InputError(
                    f"run {self.path} has schema {version}, this version reads up to "
                    f"{SCHEMA_VERSION}; upgrade openmm_cgml"
                )
            if version < SCHEMA_VERSION:
                raise InputError(
                    f"run {self.path} was written by an older version (schema {version}); "
                    "simulate again"
                )
        except InputError:
            self._handle.close()
            raise
        except Exception as error:  # an attribute of another kind
            self._handle.close()
            raise self._damaged() from error
        return self._handle

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        self._handle.close()
        # h5py, and what is not of the form that it should be, have an error for every damage.
        if kind is not None and issubclass(kind, Exception) and not issubclass(kind, InputError):
            raise self._damaged() from error

    def _damaged(self) -> InputError:
        if self.path.parent.name.endswith(".segments"):
            return InputError(
                f"segment {self.path} is damaged or cut short; remove it and those after it to go "
                "on from what was before"
            )
        return InputError(f"run {self.path} is damaged or cut short; make it again")


def _read_part(files: Sequence[Path], stride: int, skip: int) -> tuple[dict[str, Any], int]:
    """Read one part, all ranks; return it and its number of frames before thinning."""
    shares = []
    for file in files:
        with _opened(file) as handle:
            frames = len(handle["frames/time"])
            info = parse_json(text_of(handle.attrs["info"]))
            table = _frame_arrays(info)
            share = {name: handle["frames"][name][skip::stride] for name in table}
            # A negative start would count from the end.
            share["exchange_time"] = handle["exchanges/time"][:]
            share["exchange_rung"] = handle["exchanges/rung"][:]
            share["topology"] = CGTopology.from_json(text_of(handle["topology"][()]))
            share["info"] = info
            share["events"] = parse_json(text_of(handle["events"][()]))
            # Segments may hold the whole run, where there was no room to join them.
            end = info.get("steps", math.inf)
            share["finished"] = bool(handle.attrs["finished"] or handle.attrs["step"] >= end)
            _require_shapes(handle, share, table)
        shares.append(share)
    joined = dict(shares[0]) if frames else _without_frames(shares[0])
    for name in table:
        if frames and name not in _SHARED:
            joined[name] = np.concatenate([s[name] for s in shares], axis=1)
    if not len(joined["exchange_time"]):
        joined["exchange_rung"] = np.zeros((0, int(joined["info"]["copies"])), dtype=np.int16)
    joined["events"] = [event for s in shares for event in s["events"]]
    return joined, frames


def _require_shapes(handle: Any, share: dict[str, Any], table: dict[str, Any]) -> None:
    """Raise ValueError unless arrays are of numbers and of the shapes that `Run` says."""
    count, copies = len(share["time"]), int(share["info"]["copies"])
    own = share["positions"].shape[1:2] or (0,)
    shapes = {"positions": (count, *own, len(share["topology"]), 3), "time": (count,)}
    for name, (_, kind) in table.items() if count else ():  # a part without frames has no shapes
        found = share[name]
        if not count and not found.size:  # written before the first frame
            continue
        if found.shape != shapes.get(name, (count, *own)) or not np.can_cast(
            found.dtype, kind, "same_kind"
        ):
            raise ValueError(f"{name} has shape {found.shape} and type {found.dtype}")
    exchanges = len(share["exchange_time"])
    if share["exchange_time"].shape != (exchanges,) or (
        exchanges and share["exchange_rung"].shape != (exchanges, copies)
    ):
        raise ValueError("exchanges have another shape")
    if not 0 < copies < 1 << 31 or (count and copies < own[0]):
        raise ValueError(f"{own[0]} copies are there of {copies}")
    if not isinstance(share["events"], list):
        raise ValueError("events are no list")
    float(handle.attrs["step"])


def _without_frames(share: dict[str, Any]) -> dict[str, Any]:
    """Give the arrays of a part without frames the shape that joining needs."""
    copies, beads = int(share["info"]["copies"]), len(share["topology"])
    empty: dict[str, np.ndarray] = {
        name: np.zeros((0, copies), dtype=kind)
        for name, (_, kind) in _frame_arrays(share["info"]).items()
        if name not in _SHARED
    }
    empty["positions"] = np.zeros((0, copies, beads, 3), dtype=np.float32)
    return {**share, **empty}


def _require_room(path: Path, size: int) -> None:
    """Raise OSError unless the disk has room beside `path`, and a quota allows it.

    HDF5 may end the process where it runs out of space.
    """
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(trial, "wb") as handle:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # cannot be told here
            raise
    finally:
        trial.unlink(missing_ok=True)


def _consolidate(
    path: Path, parts: list[list[Path]], topology: CGTopology, info: dict[str, Any]
) -> None:
    """Write one file of all parts, part after part, so that memory holds one at a time."""
    with atomic_path(path) as partial, write_hdf5_file(partial) as out:
        events: list[Any] = []
        for part in parts:
            piece, _ = _read_part(part, 1, 0)
            events.extend(piece["events"])
            for group, table in (("frames", _frame_arrays(info)), ("exchanges", EXCHANGE_ARRAYS)):
                for name, (unit, kind) in table.items():
                    values = piece[name if group == "frames" else f"exchange_{name}"]
                    _append(out, f"{group}/{name}", values, kind, unit)
        with _opened(parts[-1][0]) as last:
            step = int(last.attrs["step"])
        for file in parts[-1]:
            with _opened(file) as last:
                for rank in last["checkpoint"]:
                    last.copy(f"checkpoint/{rank}", out.require_group("checkpoint"))
        out["events"] = stored_text(json.dumps(events))
        _write_head(out, topology, info, step, finished=True)


def _append(handle: Any, name: str, values: np.ndarray, kind: Any, unit: str) -> None:
    if name not in handle:
        rows = max(1, min(len(values), (1 << 20) // max(1, values[:1].nbytes)))
        handle.create_dataset(
            name,
            shape=(0, *values.shape[1:]),
            maxshape=(None, *values.shape[1:]),
            chunks=(rows, *(max(1, n) for n in values.shape[1:])),
            dtype=kind,
        ).attrs["unit"] = stored_text(unit)
    dataset = handle[name]
    start = len(dataset)
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def _write_head(
    handle: Any, topology: CGTopology, info: dict[str, Any], step: int, finished: bool
) -> None:
    handle["topology"] = stored_text(topology.to_json())
    handle.attrs.update(
        schema_version=SCHEMA_VERSION,
        kind=stored_text("run"),
        info=stored_text(json.dumps(info)),
        step=step,
        finished=finished,
    )


def _write_checkpoint(handle: Any, checkpoint: Checkpoint, rank: int) -> None:
    group = handle.create_group(f"checkpoint/{rank}")
    for name, values in checkpoint.arrays.items():
        group[f"arrays/{name}"] = values
    group.require_group("arrays")
    group["state"] = stored_text(json.dumps(checkpoint.state))
    group["openmm"] = np.frombuffer(checkpoint.blob, dtype=np.uint8)
