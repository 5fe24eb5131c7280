"""Trajectories of many copies on disk: written in closed segments, read as one run.

A run that is still going, or was killed, is a folder ``NAME.segments`` of complete HDF5 files; a
finished one is the single file ``NAME``. `read_run` reads either.
"""

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import atomic_path, require_file, require_writable
from .topology import CGTopology

#: Version of the layout; a reader refuses newer ones.
SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class Run:
    """Frames of several copies of a molecule.

    Attributes:
        positions: (frames, copies, beads, 3), nm.
        time: (frames,), ps.
        topology: the beads of one copy.
        info: settings of the run (temperature_K, timestep_ps, platform, backend, ...).
    """

    positions: np.ndarray
    time: np.ndarray
    topology: CGTopology
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)


class RunWriter:
    """Write a run segment by segment, so that whatever was written stays readable.

    Args:
        path: the finished run's file (.h5).
        topology: the beads of one copy.
        info: settings of the run, JSON-able.
        segment_seconds: a segment is closed at the first frame after so long.

    Raises:
        InputError: if the file, or segments of an unfinished run, are there already.
    """

    def __init__(
        self,
        path: str | Path,
        topology: CGTopology,
        info: dict[str, Any],
        segment_seconds: float = 20.0,
    ) -> None:
        self.path = require_writable(path)
        self.folder = segments_folder(self.path)
        if self.path.exists():
            raise InputError(f"{self.path} is there already; move it or choose another output")
        if any(self.folder.glob("*.h5")):
            raise InputError(
                f"{self.folder} holds frames of an unfinished run; read them with "
                f"read_run({str(self.path)!r}), then move them or choose another output"
            )
        self.topology, self.info = topology, dict(info)
        self.segment_seconds = segment_seconds
        self._count = 0
        self._times: list[float] = []
        self._positions: list[np.ndarray] = []
        self._opened = time.monotonic()

    def add(self, time_ps: float, positions: np.ndarray) -> None:
        """Append one frame: positions (copies, beads, 3), nm."""
        self._times.append(time_ps)
        self._positions.append(np.asarray(positions, dtype=np.float32))
        if time.monotonic() - self._opened > self.segment_seconds:
            self.flush()

    def flush(self) -> None:
        """Close the current segment: its frames are safe from here on."""
        self._opened = time.monotonic()
        if self._times:
            self.folder.mkdir(exist_ok=True)
            _write(
                self.folder / f"{self._count:06d}.h5",
                np.array(self._times),
                np.stack(self._positions),
                self.topology,
                self.info,
            )
            self._count += 1
            self._times, self._positions = [], []

    def finish(self, **info: Any) -> None:
        """Join the segments into the one file and remove them; `info` is added to the run's."""
        self.flush()
        self.info.update(info)
        parts = [_read(p) for p in sorted(self.folder.glob("*.h5"))]
        if parts:
            _write(
                self.path,
                np.concatenate([p.time for p in parts]),
                np.concatenate([p.positions for p in parts]),
                self.topology,
                self.info,
            )
            shutil.rmtree(self.folder)


def read_run(path: str | Path) -> Run:
    """Read a run, finished, still going or killed.

    Raises:
        InputError: if there is neither a file nor segments, or they are damaged.
    """
    path = Path(path)
    segments = sorted(segments_folder(path).glob("*.h5"))
    if path.exists() or not segments:
        return _read(require_file(path, "run"))
    parts = [_read(p) for p in segments]
    return Run(
        positions=np.concatenate([p.positions for p in parts]),
        time=np.concatenate([p.time for p in parts]),
        topology=parts[0].topology,
        info=parts[0].info,
    )


def segments_folder(path: Path) -> Path:
    """Return the folder of a run's segments."""
    return path.with_name(path.name + ".segments")


def _write(
    path: Path, times: np.ndarray, positions: np.ndarray, topology: CGTopology, info: Any
) -> None:
    import h5py

    with atomic_path(path) as partial, h5py.File(partial, "w") as handle:
        frames = handle.create_dataset("frames/positions", data=positions)
        frames.attrs["unit"] = "nm"
        handle.create_dataset("frames/time", data=times).attrs["unit"] = "ps"
        handle["topology"] = topology.to_json()
        handle.attrs.update(schema_version=SCHEMA_VERSION, kind="run", info=json.dumps(info))


def _read(path: Path) -> Run:
    import h5py

    try:
        with h5py.File(path, "r") as handle:
            if handle.attrs.get("kind") != "run":
                raise InputError(f"{path} is not a run; make one with `cgml simulate`")
            version = handle.attrs["schema_version"]
            if version > SCHEMA_VERSION:
                raise InputError(
                    f"run {path} has schema {version}, this version reads up to "
                    f"{SCHEMA_VERSION}; upgrade openmm_cgml"
                )
            return Run(
                positions=np.asarray(handle["frames/positions"]),
                time=np.asarray(handle["frames/time"]),
                topology=CGTopology.from_json(handle["topology"].asstr()[()]),
                info=json.loads(handle.attrs["info"]),
            )
    except InputError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"run {path} is damaged or cut short; make it again") from error
