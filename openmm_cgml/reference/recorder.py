"""All-atom frames mapped to beads as they come, in closed segments, joined when a run ends.

While a run goes on its frames are in a folder ``NAME.segments``: complete dataset files
``000000.h5``, ``000001.h5``, ..., and ``checkpoint.npz`` with the state after the last of them,
which is written after it. A segment newer than the checkpoint is that of a run that was killed
between the two; it is removed, and its frames are made again.
"""

import errno
import glob
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..archives import load_arrays
from ..dataset import CGDataset, iterate_dataset, read_dataset
from ..dataset_file import PER_FRAME, DatasetWriter
from ..errors import InputError
from ..files import atomic_path, require_writable, segments_folder
from ..hdf5_files import write_hdf5_file
from ..mapped import describe_mapping
from ..mapping import FORCE_MAPS
from ..mapping.core import Mapping
from ..periodic import WholeMolecules, reduced_boxes
from ..texts import parse_json
from ..topology import atom_label

logger = logging.getLogger(__name__)

#: Frames that are mapped together.
_CHUNK = 500
_CHECKPOINT, _CALIBRATION, _LOCK = "checkpoint.npz", "calibration.npz", "lock"


# ---------------------------------------------------------------- from all atoms to beads


class BeadMapper:
    """The maps of positions and forces, and the atoms of the System that they take.

    Args:
        top: mdtraj.Topology of the whole System.
        mapping: name in `MAPPINGS`, a function of a topology, or a `Mapping` made for `atoms` or
            for the whole System.
        atoms: indices of the atoms that names and functions are applied to: the solute.
        constraints: constrained pairs of the whole System.
        keep_box: record box vectors, so that a model takes minimum images; else the molecules
            are isolated: whole, together, and centred on the origin.

    Attributes:
        mapping: of the atoms `atoms` alone.
        atoms: indices of the molecules that have beads.
        constraints: constrained pairs among them, in their numbering.

    Raises:
        InputError: if the mapping does not fit, or a bead is of atoms outside.
    """

    def __init__(
        self,
        top: Any,
        mapping: Any,
        atoms: np.ndarray,
        constraints: Sequence[tuple[int, int]],
        *,
        keep_box: bool = False,
    ) -> None:
        self.atoms = np.asarray(atoms, dtype=int)
        self.top = _subset(top, self.atoms)
        made = mapping
        if isinstance(mapping, str):
            from ..mapping import MAPPINGS

            made = MAPPINGS[mapping](self.top)
        elif not isinstance(mapping, Mapping):
            made = mapping(self.top)
        if made.n_atoms == top.n_atoms != len(self.atoms):
            made = self._cut(top, made)
        labels = tuple(atom_label(self.top, a) for a in range(self.top.n_atoms))
        if made.atom_labels != labels:
            raise InputError(
                f"the mapping was made for {made.n_atoms} atoms "
                f"({', '.join(made.atom_labels[:3])}, ...), the molecules without solvent have "
                f"{len(labels)} ({', '.join(labels[:3])}, ...); make it for these, by name or by "
                "a function of their topology"
            )
        self.mapping = made
        number = {int(a): k for k, a in enumerate(self.atoms)}
        self.constraints = [
            (number[i], number[j]) for i, j in constraints if i in number and j in number
        ]
        self.keep_box = keep_box
        # The force map may look at all atoms, so all are made whole.
        self._molecules = WholeMolecules(self.top, self.mapping.matrix.indices, others=True)

    def _cut(self, top: Any, mapping: Mapping) -> Mapping:
        """Leave molecules without beads out of a map of the whole System."""
        molecule = WholeMolecules(top).molecule
        used = np.isin(molecule, molecule[np.unique(mapping.matrix.indices)])
        self.atoms = np.flatnonzero(used)
        self.top = _subset(top, self.atoms)
        return replace(
            mapping,
            matrix=mapping.matrix[:, self.atoms],
            atom_labels=tuple(mapping.atom_labels[a] for a in self.atoms),
        )

    def digest(self) -> str:
        """Return a hash of the position map and its beads."""
        matrix, topology = self.mapping.matrix, self.mapping.topology
        digest = hashlib.sha256(topology.to_json().encode())
        for part in (matrix.indptr, matrix.indices, matrix.data):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def whole(self, positions: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """Return positions (frames, atoms, 3) with molecules whole and, if isolated, together."""
        if box is None:
            return positions
        positions = self._molecules.make_whole(positions, box)
        return positions if self.keep_box else self._molecules.bring_together(positions, box)

    def map(
        self,
        positions: np.ndarray,
        forces: np.ndarray | None,
        force_map: Any,
        box: np.ndarray | None,
    ) -> dict[str, np.ndarray]:
        """Map frames.

        Args:
            positions, forces: (frames, atoms, 3) of `atoms`, nm and kJ/mol/nm.
            force_map: with ``map_forces(forces, positions)``; None: no forces.
            box: (frames, 3, 3) nm, of a periodic System.

        Returns:
            Arrays of a dataset: positions, perhaps forces and box.
        """
        positions = self.whole(positions, box)
        beads = self.mapping.map_positions(positions)
        if box is None or not self.keep_box:
            # An isolated molecule drifts, and float32 numbers have no digits to spare for it.
            beads -= beads.mean(axis=1, keepdims=True)
        found = {"positions": beads.astype(np.float32)}
        if force_map is not None and forces is not None:
            found["forces"] = force_map.map_forces(forces, positions).astype(np.float32)
        if box is not None and self.keep_box:
            found["box"] = reduced_boxes(box).astype(np.float32)
        return found

    def fit_force_map(self, name: str, forces: np.ndarray, positions: np.ndarray) -> Any:
        """Return a force map of `FORCE_MAPS`, fitted to frames of `atoms` if it needs any."""
        fit = FORCE_MAPS[name](self.mapping, self.constraints)
        if fit.uses_frames:
            fit.add(np.asarray(forces, np.float64), np.asarray(positions, np.float64))
        return fit.fit(in_sample=False)


def _subset(top: Any, atoms: np.ndarray) -> Any:
    return top if len(atoms) == top.n_atoms else top.subset(atoms)


# ---------------------------------------------------------------- segments


@dataclass(frozen=True, eq=False)
class ReferenceState:
    """All that a run needs to go on: what is written after each segment.

    Attributes:
        frames: frames recorded so far.
        segments: segments closed so far.
        settings: of the run, JSON-able; they must be the same when it goes on.
        state: counters, JSON-able.
        arrays: positions, velocities, bias grids, ...
        blob: OpenMM's own checkpoint, which alone holds its random stream.
    """

    frames: int
    segments: int
    settings: dict[str, Any]
    state: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    blob: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the content of an .npz file."""
        described = {
            "frames": self.frames,
            "segments": self.segments,
            "settings": self.settings,
            "state": self.state,
        }
        buffer = io.BytesIO()
        content: dict[str, Any] = {f"array_{n}": v for n, v in self.arrays.items()}
        content["described"] = np.frombuffer(json.dumps(described).encode(), dtype=np.uint8)
        content["blob"] = np.frombuffer(self.blob, dtype=np.uint8)
        np.savez(buffer, **content)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, where: Path) -> "ReferenceState":
        """Read what `to_bytes` wrote.

        Raises:
            InputError: if it is damaged.
        """
        try:
            with load_arrays(io.BytesIO(content)) as stored:
                described = parse_json(stored["described"].tobytes().decode())
                arrays = {n[6:]: stored[n] for n in stored.files if n.startswith("array_")}
                return cls(arrays=arrays, blob=stored["blob"].tobytes(), **described)
        except Exception as error:
            raise InputError(
                f"the checkpoint in {where} is damaged; remove it and start the run again"
            ) from error


class DatasetRecorder:
    """Write the frames of one run, and join them when it ends.

    Args:
        output: dataset file.
        mapper: the maps.
        temperature: K.
        variable_names: of the collective variables.

    Attributes:
        frames: recorded so far, those not yet in a segment included.
        force_map: of the forces; to be set before the first frame if forces are recorded.
        provenance: `CGDataset.mapping["reference"]`, JSON-able.
        sources: file name -> SHA-256.
        bias: what the run was biased by, in words.

    Raises:
        InputError: if the output cannot be written or another process writes it.
    """

    def __init__(
        self,
        output: str | Path,
        mapper: BeadMapper,
        temperature: float,
        *,
        variable_names: Sequence[str] = (),
    ) -> None:
        self.output = require_writable(output)
        self.folder = segments_folder(self.output)
        self.mapper, self.temperature = mapper, float(temperature)
        self.variable_names = tuple(variable_names)
        self.force_map: Any = None
        self.provenance: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.bias = ""
        self.frames = 0
        self._segments = 0
        self._pending: list[dict[str, Any]] = []
        self._mapped: list[dict[str, np.ndarray]] = []
        self._lock: Any = None

    # -- beginning and going on -----------------------------------------------------------------

    def open(self) -> None:
        """Make the folder and keep other processes out of it."""
        with _told_if_full(self.folder):
            self.folder.mkdir(exist_ok=True)
            self._lock = _locked(self.folder)
        for path in self.output.parent.glob(f".{glob.escape(self.output.name)}.*.tmp"):
            path.unlink()  # of a process that was killed while it joined segments

    def restore(self, state: ReferenceState) -> None:
        """Go on after a checkpoint: remove segments that are newer."""
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
        for path in _segment_files(self.folder):
            if int(path.stem) >= state.segments:
                logger.info("%s is newer than the checkpoint; its frames are made again", path)
                path.unlink()
        missing = set(range(state.segments)) - {int(p.stem) for p in _segment_files(self.folder)}
        if missing:
            raise InputError(
                f"segment {min(missing):06}.h5 is missing in {self.folder}; restore it, or remove "
                "the folder and start the run again"
            )
        self.frames, self._segments = state.frames, state.segments
        self._pending, self._mapped = [], []

    def truncate(self, frames: int) -> None:
        """Forget all frames in segments after the first ones."""
        start = 0
        for path in _segment_files(self.folder):
            count = _count(path)
            if start >= frames:
                path.unlink()
            elif start + count > frames:
                self._shorten(path, frames - start)
            start += count
        self.frames = min(self.frames, frames)
        self._segments = len(_segment_files(self.folder))

    def _shorten(self, path: Path, frames: int) -> None:
        import h5py

        part = read_dataset(path).select(slice(frames))
        with h5py.File(path) as handle:
            names = list(handle["reference"]) if "reference" in handle else []
            numbers = {n: np.asarray(handle[f"reference/{n}"])[:frames] for n in names}
        with atomic_path(path) as partial:
            part.save(partial)
            _write_group(partial, numbers)

    def close(self) -> None:
        """Let other processes write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- frames ---------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Frames that are not in a segment yet."""
        return len(self._pending) + sum(len(p["positions"]) for p in self._mapped)

    def add(
        self,
        positions: np.ndarray,
        forces: np.ndarray | None = None,
        *,
        box: np.ndarray | None = None,
        **numbers: Any,
    ) -> None:
        """Add one frame.

        Args:
            positions, forces: (atoms, 3) of the whole System, nm and kJ/mol/nm.
            box: (3, 3), nm, of a periodic System.
            numbers: of this frame: ``bias_energy``, ``weights``, ``trajectory``, ``variables``
                (variables,), and others, which go beside the dataset's own arrays. The same
                ones in every frame.
        """
        atoms = self.mapper.atoms
        frame: dict[str, Any] = {"positions": positions[atoms], "box": box, **numbers}
        frame["forces"] = None if forces is None or self.force_map is None else forces[atoms]
        self._pending.append(frame)
        self.frames += 1
        if len(self._pending) >= _CHUNK:
            self._map_pending()

    def _map_pending(self) -> None:
        if not self._pending:
            return
        names = [n for n, v in self._pending[0].items() if v is not None]
        stacked = {n: np.stack([np.asarray(f[n]) for f in self._pending]) for n in names}
        first = self.frames - len(self._pending)
        mapped = self.mapper.map(
            stacked.pop("positions"),
            stacked.pop("forces", None),
            self.force_map,
            stacked.pop("box", None),
        )
        mapped |= stacked
        self._dataset(mapped, first)  # before it is too late for a message about the frame
        self._mapped.append(mapped)
        self._pending = []

    def _dataset(self, arrays: dict[str, np.ndarray], first_frame: int) -> CGDataset:
        own: dict[str, Any] = {n: v for n, v in arrays.items() if n in PER_FRAME}
        if not self.variable_names:
            own.pop("variables", None)
        return CGDataset(
            topology=self.mapper.mapping.topology,
            temperature=self.temperature,
            variable_names=self.variable_names if "variables" in own else (),
            first_frame=first_frame,
            **own,
        )

    # -- segments -------------------------------------------------------------------------------

    def flush(self, settings: dict[str, Any], state: dict[str, Any], **rest: Any) -> None:
        """Close a segment with the frames so far, then write the checkpoint.

        Args:
            settings, state: as in `ReferenceState`.
            rest: ``arrays`` and ``blob``, likewise.

        Raises:
            InputError: if the disk is full; what was written before stays.
        """
        first = self.frames - self.pending
        self._map_pending()
        with _told_if_full(self.folder):
            if self._mapped:
                arrays = {
                    n: np.concatenate([part[n] for part in self._mapped]) for n in self._mapped[0]
                }
                with atomic_path(self.folder / f"{self._segments:06}.h5") as partial:
                    with DatasetWriter(
                        partial, self.mapper.mapping.topology, self.temperature
                    ) as writer:
                        writer.add(self._dataset(arrays, first))
                        writer.describe(self._described(None), self.sources, self.bias)
                    _write_group(partial, {n: v for n, v in arrays.items() if n not in PER_FRAME})
                self._segments += 1
            checkpoint = ReferenceState(self.frames, self._segments, settings, state, **rest)
            with atomic_path(self.folder / _CHECKPOINT) as partial:
                partial.write_bytes(checkpoint.to_bytes())
        self._mapped = []

    def save_calibration(self, forces: np.ndarray, positions: np.ndarray) -> None:
        """Keep the frames that the force map is fitted to, so that it can be fitted again."""
        with _told_if_full(self.folder), atomic_path(self.folder / _CALIBRATION) as partial:
            with open(partial, "wb") as handle:
                np.savez(handle, forces=forces, positions=positions)

    def load_calibration(self) -> tuple[np.ndarray, np.ndarray]:
        """Return forces and positions (frames, atoms, 3) of `save_calibration`.

        Raises:
            InputError: if the file is missing or damaged.
        """
        path = self.folder / _CALIBRATION
        try:
            with load_arrays(path) as stored:
                return stored["forces"], stored["positions"]
        except Exception as error:
            raise InputError(
                f"{path} is missing or damaged, so the force map cannot be made again; remove "
                f"{self.folder} and start the run again"
            ) from error

    # -- the end --------------------------------------------------------------------------------

    def numbers(self, *names: str) -> dict[str, np.ndarray]:
        """Return numbers of all frames in segments, by name: what weights are made from."""
        import h5py

        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for path in _segment_files(self.folder):
            with h5py.File(path) as handle:
                for name in names:
                    group = "frames" if name in PER_FRAME else "reference"
                    found[name].append(np.asarray(handle[f"{group}/{name}"]))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def finish(self, weights: np.ndarray | None = None) -> None:
        """Join the segments to the dataset, a chunk at a time, and remove them.

        Args:
            weights: (frames,); None: those recorded with the frames, if there are any.

        Raises:
            InputError: if the disk is full; the segments stay.
        """
        if self.pending:
            raise InputError("frames are not in a segment yet; flush them first")
        files = _segment_files(self.folder)
        total = _SquareMean()
        with _told_if_full(self.output), atomic_path(self.output) as partial:
            with DatasetWriter(partial, self.mapper.mapping.topology, self.temperature) as writer:
                start = 0
                for chunk in _chunks(files):
                    if weights is not None:
                        mine = weights[start : start + len(chunk)]
                        chunk = replace(chunk, weights=mine, first_frame=start)
                    total.add(chunk.forces)
                    writer.add(chunk)
                    start += len(chunk)
                if start != self.frames:
                    raise InputError(
                        f"{self.folder} holds {start} frames, {self.frames} were recorded; remove "
                        "it and start the run again"
                    )
                writer.describe(self._described(total.mean), self.sources, self.bias)
            self._finish_group(partial, files)
        self.close()
        # At once out of the way: a folder that is half removed must not pass for a run.
        removed = self.folder.with_name(f".{self.folder.name}.old")
        shutil.rmtree(removed, ignore_errors=True)
        self.folder.rename(removed)
        shutil.rmtree(removed)

    def _finish_group(self, partial: Path, files: list[Path]) -> None:
        import h5py

        names: list[str] = []
        with h5py.File(files[0]) as handle:
            if "reference" in handle:
                names = list(handle["reference"])
        _write_group(partial, self.numbers(*names))
        # So that a finished run can be made longer.
        for name in (_CHECKPOINT, _CALIBRATION):
            if (path := self.folder / name).exists():
                with write_hdf5_file(partial, "a") as handle:
                    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
                    handle.create_dataset(f"checkpoint/{name}", data=content)

    def _described(self, mean_square: float | None) -> dict[str, Any]:
        described = describe_mapping(self.mapper.mapping, self.force_map, mean_square)
        return {**described, "reference": self.provenance}


class _SquareMean:
    """Mean square of the forces that pass by."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, forces: np.ndarray | None) -> None:
        if forces is not None:
            self._sum += float(np.square(forces, dtype=np.float64).sum())
            self._count += forces.size

    @property
    def mean(self) -> float | None:
        return self._sum / self._count if self._count else None


def in_progress(output: str | Path) -> bool:
    """Whether there are segments to go on from."""
    return (segments_folder(output) / _CHECKPOINT).exists()


def read_checkpoint(output: str | Path) -> ReferenceState | None:
    """Return the state that a run goes on from; None if there is none.

    A finished run's state is in its file.

    Raises:
        InputError: if it is damaged, or `output` is another file than such a run's.
    """
    output = Path(output)
    path = segments_folder(output) / _CHECKPOINT
    if path.exists():
        return ReferenceState.from_bytes(path.read_bytes(), path)
    if not output.exists():
        return None
    return ReferenceState.from_bytes(_stored(output, _CHECKPOINT), output)


def reopen(output: str | Path) -> None:
    """Make a finished run's file the first segment again, so that the run can be made longer.

    The file stays where it is until the longer one replaces it.
    """
    output = Path(output)
    folder = segments_folder(output)
    state = ReferenceState.from_bytes(_stored(output, _CHECKPOINT), output)
    contents = {_CHECKPOINT: replace(state, segments=1).to_bytes()}
    try:
        contents[_CALIBRATION] = _stored(output, _CALIBRATION)
    except InputError:
        pass  # its force map needed no frames
    with _told_if_full(folder):
        folder.mkdir(exist_ok=True)
        with atomic_path(folder / "000000.h5") as partial:
            shutil.copyfile(output, partial)
        for name in (_CALIBRATION, _CHECKPOINT):  # the checkpoint last: it makes the others count
            if name in contents:
                with atomic_path(folder / name) as partial:
                    partial.write_bytes(contents[name])


def _stored(output: Path, name: str) -> bytes:
    import h5py

    try:
        with h5py.File(output) as handle:
            return np.asarray(handle[f"checkpoint/{name}"]).tobytes()
    except (OSError, KeyError) as error:
        raise InputError(
            f"{output} exists and is not the dataset of a reference run that can go on; choose "
            "another output"
        ) from error


def read_segments(output: str | Path) -> CGDataset:
    """Read the frames of a run so far, during the run or after a kill; or its finished dataset.

    Args:
        output: the run's output.

    Raises:
        InputError: if there are no frames yet.
    """
    folder = segments_folder(output)
    parts = []
    for path in _segment_files(folder):
        try:
            parts.append(read_dataset(path))
        except InputError:
            if path.exists():
                raise
            break  # the run has ended meanwhile
    if not parts or not folder.exists():
        if Path(output).exists():
            return read_dataset(output)
        raise InputError(
            f"no frames of {output} have been written yet; wait for the first segment"
        )
    arrays: dict[str, Any] = dict.fromkeys(PER_FRAME)
    for name in PER_FRAME:
        if all(getattr(p, name) is not None for p in parts):
            arrays[name] = np.concatenate([getattr(p, name) for p in parts])
    return replace(parts[0], **arrays, first_frame=0)


def _segment_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.h5") if p.stem.isdigit())


def _count(path: Path) -> int:
    import h5py

    with h5py.File(path) as handle:
        return len(handle["frames/positions"])


def _chunks(files: list[Path]) -> Iterator[CGDataset]:
    for path in files:
        yield from iterate_dataset(path)


def _write_group(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Add numbers of the frames that are no part of a dataset, for whoever looks for them."""
    with write_hdf5_file(path, "a") as handle:
        for name, values in arrays.items():
            handle.create_dataset(f"reference/{name}", data=values)


def _locked(folder: Path) -> Any:
    """Return an open file whose lock the system removes when the process ends, however it does."""
    handle = open(folder / _LOCK, "a")
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # not on this system
    except OSError as error:
        handle.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return None  # a file system without locks
        raise InputError(
            f"another process is writing to {folder}; wait for it, or choose another output"
        ) from error
    return handle


@contextmanager
def _told_if_full(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and "No space" not in str(error):
            raise
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"cannot write {path}: the disk is full ({free / 1e6:.0f} MB left); make room and "
            "start the same run again, it goes on after its last segment"
        ) from error
