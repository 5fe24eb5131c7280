"""Mapped frames: `CGDataset` in memory, and its HDF5 file."""

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import atomic_path, require_file
from .topology import CGTopology
from .units import strip

#: Version of the HDF5 layout; a reader refuses newer ones.
SCHEMA_VERSION = 1

#: Arrays with one entry a frame, as they are named in the file.
PER_FRAME = (
    "positions",
    "forces",
    "weights",
    "bias_energy",
    "box",
    "trajectory",
    "variables",
)
_TYPES = {
    "weights": np.float64,
    "bias_energy": np.float64,
    "variables": np.float64,
    "trajectory": np.int32,
}
_UNITS = {"positions": "nm", "forces": "kJ/mol/nm", "bias_energy": "kJ/mol", "box": "nm"}


@dataclass(frozen=True, eq=False)
class CGDataset:
    """Frames of a coarse-grained molecule, with what is needed to learn from them.

    Attributes:
        positions: (frames, beads, 3), nm.
        topology: the beads.
        temperature: K, of the physical ensemble.
        forces: (frames, beads, 3), kJ/mol/nm, mapped, of the unbiased potential; or None.
        weights: (frames,) statistical weights that undo a bias; None if uniform.
        bias_energy: (frames,), kJ/mol; None if unbiased.
        box: (frames, 3, 3) box vectors, nm; None if not periodic.
        trajectory: (frames,) whole numbers: which continuous run each frame belongs to, frames
            of one run in order; None: all to one.
        variables: (frames, variables) collective variables that the run was biased along, nm or
            radians; None if there were none.
        variable_names: their names.
        mapping: provenance of the map (matrices as triplets, constraint groups, force noise).
        sources: file name -> SHA-256 of what it was made from.
        bias: what the run was biased by, in words; "" if it was not.

    One more argument, `first_frame`, is the number of the first frame in a longer run; it is for
    messages and not kept.

    Raises:
        InputError: if shapes or lengths do not fit, a value is not finite, a weight is negative,
            or two beads overlap.
    """

    positions: np.ndarray
    topology: CGTopology
    temperature: float
    forces: np.ndarray | None = None
    weights: np.ndarray | None = None
    bias_energy: np.ndarray | None = None
    box: np.ndarray | None = None
    trajectory: np.ndarray | None = None
    variables: np.ndarray | None = None
    variable_names: tuple[str, ...] = ()
    mapping: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    bias: str = ""
    first_frame: InitVar[int] = 0

    def __post_init__(self, first_frame: int) -> None:
        temperature = strip(self.temperature, "kelvin", what="temperature", positive=True)
        object.__setattr__(self, "temperature", temperature)
        if np.ndim(self.positions) != 3 or len(self.positions) == 0:
            raise InputError(
                f"positions have shape {np.shape(self.positions)}; give (frames, beads, 3)"
            )
        frames = len(self.positions)
        shapes = {
            "positions": (frames, len(self.topology), 3),
            "forces": (frames, len(self.topology), 3),
            "weights": (frames,),
            "bias_energy": (frames,),
            "box": (frames, 3, 3),
            "trajectory": (frames,),
            "variables": (frames, len(self.variable_names)),
        }
        object.__setattr__(self, "variable_names", tuple(self.variable_names))
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values is None:
                continue
            values = np.asarray(values)
            object.__setattr__(self, name, values)
            if values.shape != shape:
                raise InputError(
                    f"{name} have shape {values.shape} but the dataset needs {shape} "
                    "(frames, beads, 3 as the positions and the topology say)"
                )
            self._require_finite(name, values, first_frame)
        if self.trajectory is not None and not np.issubdtype(self.trajectory.dtype, np.integer):
            raise InputError("trajectory numbers are not whole; give integers, one a frame")
        if self.weights is not None:
            if (self.weights < 0).any():
                frame = int(np.argmax(self.weights < 0))
                raise InputError(
                    f"weight of frame {first_frame + frame} is {self.weights[frame]:.3g}; "
                    "weights are probabilities up to a factor, none may be negative"
                )
        self._require_apart(first_frame)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def probabilities(self) -> np.ndarray:
        """Weights (frames,), float64, summing to one; uniform if there are none.

        Raises:
            InputError: if all weights are zero.
        """
        if self.weights is None:
            return np.full(len(self), 1 / len(self))
        weights = np.asarray(self.weights, dtype=np.float64)
        if not weights.sum() > 0:
            raise InputError("all frames have weight zero; take frames that have some")
        return weights / weights.sum()

    def constant_box(self) -> np.ndarray | None:
        """Return the box vectors (3, 3), nm, that all frames share; None if not periodic.

        Raises:
            InputError: if they change from frame to frame.
        """
        if self.box is None:
            return None
        if np.ptp(self.box, axis=0).max() > 1e-4:
            raise InputError(
                "box vectors change from frame to frame; use frames of one box (NVT), or map with "
                "periodic=False (--no-box) if the molecule is whole"
            )
        return np.asarray(self.box[0], dtype=np.float64)

    def select(self, frames: Any) -> "CGDataset":
        """Return the dataset of the given frames (an index array, mask or slice)."""
        if isinstance(frames, (int, np.integer)):
            frames = [frames]
        part = copy.copy(self)  # frames that were checked are not checked again
        for name in PER_FRAME:
            if (values := getattr(self, name)) is not None:
                object.__setattr__(part, name, values[frames])
        if not len(part):
            raise InputError(f"no frame of {len(self)} is selected; select some")
        return part

    def split(self, fraction: float = 0.9, blocks: int = 10) -> tuple["CGDataset", "CGDataset"]:
        """Split into training and validation frames by contiguous blocks.

        Each of `blocks` contiguous blocks gives its first `fraction` to the first part and the
        rest to the second, so correlated neighbours meet only at `blocks` borders and both parts
        see the whole run. Never shuffled: that would leak neighbours into the validation.

        Raises:
            InputError: if a part would be empty.
        """
        if not 0 < fraction < 1:
            raise InputError(f"fraction is {fraction}; give a number between 0 and 1")
        if blocks < 1:
            raise InputError(f"blocks is {blocks}; give at least 1")
        pieces = np.array_split(np.arange(len(self)), min(blocks, len(self)))
        cuts = [round(fraction * len(piece)) for piece in pieces]
        first = np.concatenate([p[:c] for p, c in zip(pieces, cuts, strict=True)])
        second = np.concatenate([p[c:] for p, c in zip(pieces, cuts, strict=True)])
        if len(first) == 0 or len(second) == 0:
            raise InputError(
                f"{len(self)} frames in {blocks} blocks cannot be split at {fraction}; "
                "use fewer blocks or more frames"
            )
        return self.select(first), self.select(second)

    def draw(self, count: int, seed: int = 0) -> np.ndarray:
        """Draw positions (count, beads, 3), nm, by weight, with systematic resampling.

        Systematic resampling keeps each frame's expected count and has less variance than
        independent draws (Kitagawa 1996, doi:10.1080/10618600.1996.10474692).
        """
        generator = np.random.default_rng(seed)
        points = (np.arange(count) + generator.random()) / count
        cumulative = np.cumsum(self.probabilities)
        # To the right, and up to one exactly: a frame of weight zero is never met.
        frames = np.searchsorted(cumulative / cumulative[-1], points, side="right")
        return self.positions[generator.permutation(frames)]

    def save(self, path: str | Path) -> None:
        """Write the HDF5 file; an existing one is replaced only when the new one is complete."""
        with DatasetWriter(path, self.topology, self.temperature) as writer:
            writer.add(self)
            writer.describe(self.mapping, self.sources, self.bias)

    def _require_finite(self, name: str, values: np.ndarray, first_frame: int) -> None:
        if np.isfinite(values).all():
            return
        index = np.argwhere(~np.isfinite(values))[0]
        per_bead = name in ("positions", "forces")
        bead = f", bead {self.topology.label(int(index[1]))}" if per_bead else ""
        raise InputError(
            f"{name}: not finite in frame {first_frame + int(index[0])}{bead}; "
            "remove the frame, or repeat the run from before it"
        )

    def _require_apart(self, first_frame: int) -> None:
        """Refuse overlapping beads, looking at bonded and neighbouring beads of every frame."""
        beads = len(self.topology)
        pairs = set(self.topology.bonds) | {(i, i + 1) for i in range(beads - 1)}
        if beads <= 64:
            pairs |= {(i, j) for i in range(beads) for j in range(i + 1, beads)}
        for i, j in sorted(pairs):
            gap = np.abs(self.positions[:, i] - self.positions[:, j]).max(-1)
            if gap.min() < 1e-3:
                label, frame = self.topology.label, first_frame + int(gap.argmin())
                raise InputError(
                    f"beads {label(i)} and {label(j)} overlap in frame {frame} "
                    "(less than 0.001 nm apart); check the mapping and the units"
                )


class DatasetWriter:
    """Write a dataset chunk by chunk; the file appears when the block ends without an error.

    Args:
        path: HDF5 file.
        topology: the beads.
        temperature: K.

    Raises:
        InputError: if the folder cannot be written, or chunks differ in what they hold.
    """

    def __init__(self, path: str | Path, topology: CGTopology, temperature: float) -> None:
        self._path = path
        self._topology = topology
        self._temperature = strip(temperature, "kelvin", what="temperature", positive=True)
        self._names: tuple[str, ...] | None = None
        self._mapping: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._bias = ""
        self._variable_names: tuple[str, ...] = ()

    def __enter__(self) -> "DatasetWriter":
        import h5py

        with ExitStack() as stack:
            partial = stack.enter_context(atomic_path(self._path))
            self._file = stack.enter_context(h5py.File(partial, "w"))
            self._stack = stack.pop_all()
        return self

    def add(self, chunk: CGDataset) -> None:
        """Append the frames of a dataset."""
        present = {n: v for n in PER_FRAME if (v := getattr(chunk, n)) is not None}
        if self._names is None:
            self._names = tuple(present)
            self._variable_names = chunk.variable_names
            for name, values in present.items():
                data = self._file.create_dataset(
                    f"frames/{name}",
                    shape=(0, *values.shape[1:]),
                    maxshape=(None, *values.shape[1:]),
                    chunks=(max(1, min(1024, len(values))), *values.shape[1:]),
                    dtype=_TYPES.get(name, np.float32),
                )
                if name in _UNITS:
                    data.attrs["unit"] = _UNITS[name]
        if tuple(present) != self._names:
            raise InputError(f"chunk holds {tuple(present)}, earlier ones {self._names}")
        for name, values in present.items():
            data = self._file[f"frames/{name}"]
            data.resize(len(data) + len(values), axis=0)
            data[-len(values) :] = values

    def describe(self, mapping: dict[str, Any], sources: dict[str, str], bias: str = "") -> None:
        """Record how the frames were made."""
        self._mapping, self._sources, self._bias = mapping, sources, bias

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        self._stack.__exit__(kind, value, traceback)

    def _finish(self) -> None:
        from .version import __version__

        self._file["topology"] = self._topology.to_json()
        self._file["mapping"] = json.dumps(self._mapping)
        self._file.attrs.update(
            schema_version=SCHEMA_VERSION,
            kind="dataset",
            package_version=__version__,
            temperature_K=self._temperature,
            sources=json.dumps(self._sources),
            bias=self._bias,
            variable_names=json.dumps(self._variable_names),
        )


def read_dataset(path: str | Path) -> CGDataset:
    """Read a dataset file into memory.

    Raises:
        InputError: if the file is missing, damaged, not a dataset, or of a newer schema.
    """
    with _open(path) as (handle, described):
        for name, values in handle["frames"].items():
            if name in PER_FRAME:
                described[name] = np.asarray(values)
    try:
        return CGDataset(**described)
    except InputError as error:
        raise InputError(f"dataset {path}: {error}") from None


def iterate_dataset(path: str | Path, size: int = 10_000) -> Iterator[CGDataset]:
    """Yield a dataset file in chunks of at most `size` frames, for files larger than memory.

    Raises:
        InputError: as `read_dataset`.
    """
    if size < 1:
        raise InputError(f"chunks of {size} frames were asked for; give at least 1")
    with _open(path) as (handle, described):
        stored = {n: d for n, d in handle["frames"].items() if n in PER_FRAME}
        for start in range(0, len(stored["positions"]), size):
            frames: dict[str, Any] = {n: d[start : start + size] for n, d in stored.items()}
            yield CGDataset(first_frame=start, **frames, **described)


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the open file and what it holds besides frames: arguments of `CGDataset`."""
    import h5py

    path = require_file(path, "dataset")
    damaged = f"dataset {path} is damaged or cut short, not a whole HDF5 file; make it again"
    try:
        handle = h5py.File(path, "r")
    except OSError as error:
        raise InputError(damaged) from error
    with handle:
        version = handle.attrs.get("schema_version")
        if version is None or handle.attrs.get("kind", "dataset") != "dataset":
            raise InputError(f"{path} is not a dataset; make one with `cgml map`")
        if version > SCHEMA_VERSION:
            raise InputError(
                f"dataset {path} has schema {version}, this version reads up to "
                f"{SCHEMA_VERSION}; upgrade openmm_cgml"
            )
        try:
            described = {
                "topology": CGTopology.from_json(handle["topology"].asstr()[()]),
                "temperature": float(handle.attrs["temperature_K"]),
                "mapping": json.loads(handle["mapping"].asstr()[()]),
                "sources": json.loads(handle.attrs["sources"]),
                "bias": str(handle.attrs.get("bias", "")),
                "variable_names": tuple(json.loads(handle.attrs.get("variable_names", "[]"))),
            }
            handle["frames/positions"]
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InputError(damaged) from error
        yield handle, described
