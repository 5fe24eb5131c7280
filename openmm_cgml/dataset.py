"""Mapped frames: `CGDataset` in memory, and its HDF5 file."""

import copy
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, first_line
from .files import atomic_path, require_file, segments_folder
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

    def trajectories(self) -> list[np.ndarray]:
        """Return the frame numbers of each continuous run, in order; one run if none is told."""
        if self.trajectory is None:
            return [np.arange(len(self))]
        order = np.argsort(self.trajectory, kind="stable")
        cuts = np.flatnonzero(np.diff(self.trajectory[order])) + 1
        return np.split(order, cuts)

    def split(
        self, fraction: float = 0.9, blocks: int = 10, by: str = "blocks", seed: int = 0
    ) -> tuple["CGDataset", "CGDataset"]:
        """Split into training and validation frames, which share as little as they can.

        Args:
            fraction: of the frames that go to the first part.
            blocks: with ``by="blocks"``, number of blocks in all; a trajectory has at least one.
            by: ``"blocks"``: each contiguous block gives its first `fraction` to the first part
                and the rest to the second, so correlated neighbours meet only at the borders and
                both parts see the whole run; no block spans two trajectories. ``"trajectory"``:
                whole trajectories, drawn with `seed`, which share nothing. ``"shuffle"``: frames
                drawn with `seed`; neighbours in time then fall on both sides, so the second part
                does not tell overfitting, and a warning says so.
            seed: of ``"trajectory"`` and ``"shuffle"``.

        Returns:
            The two parts, frames in their old order.

        Raises:
            InputError: if a part would be empty, or there are fewer than two trajectories.
        """
        if not 0 < fraction < 1:
            raise InputError(f"fraction is {fraction}; give a number between 0 and 1")
        if blocks < 1:
            raise InputError(f"blocks is {blocks}; give at least 1")
        if by not in ("blocks", "trajectory", "shuffle"):
            raise InputError(f"split by {by!r} is unknown; choose blocks, trajectory or shuffle")
        if by == "blocks":
            first, remedy = self._block_heads(fraction, blocks), "use fewer blocks or more frames"
            how = f"in {blocks} blocks"
        elif by == "trajectory":
            first, remedy = self._whole_trajectories(fraction, seed), "give more trajectories"
            how = "of whole trajectories"
        else:
            warnings.warn(
                "frames are split at random: neighbours in time fall on both sides, so validation "
                'looks better than it is; split by "blocks" or "trajectory"',
                stacklevel=2,
            )
            order = np.random.default_rng(seed).permutation(len(self))
            first, remedy = order[: round(fraction * len(self))], "use more frames"
            how = "at random"
        taken = np.zeros(len(self), dtype=bool)
        taken[first] = True
        if taken.all() or not taken.any():
            raise InputError(f"{len(self)} frames {how} cannot be split at {fraction}; {remedy}")
        return self.select(taken), self.select(~taken)

    def _block_heads(self, fraction: float, blocks: int) -> np.ndarray:
        """Return the first frames of each block, blocks shared out by trajectory length."""
        heads = []
        for frames in self.trajectories():
            share = max(1, round(blocks * len(frames) / len(self)))
            for piece in np.array_split(frames, min(share, len(frames))):
                heads.append(piece[: round(fraction * len(piece))])
        return np.concatenate(heads)

    def _whole_trajectories(self, fraction: float, seed: int) -> np.ndarray:
        runs = self.trajectories()
        if len(runs) < 2:
            raise InputError(
                "the frames are of one trajectory and cannot be split by trajectory; "
                'split by "blocks", or merge datasets of several runs'
            )
        order = np.random.default_rng(seed).permutation(len(runs))
        sums = np.cumsum([len(runs[k]) for k in order])[:-1] / len(self)
        count = int(np.abs(sums - fraction).argmin()) + 1
        if abs(sums[count - 1] - fraction) > 0.1:
            warnings.warn(
                f"of {len(runs)} whole trajectories the first part got {sums[count - 1]:.0%} of "
                f"the frames, not {fraction:.0%}",
                stacklevel=3,
            )
        return np.concatenate([runs[k] for k in order[:count]])

    def subsample(self, count: int | None = None, stride: int | None = None) -> "CGDataset":
        """Return fewer frames, evenly spaced; weights and everything beside them go along.

        Args:
            count: how many frames, spread over the whole dataset.
            stride: instead: every so many frames of each trajectory, from its first.

        Raises:
            InputError: unless one of them is given and can be met.
        """
        if count is not None and stride is None:
            if not 1 <= count <= len(self):
                raise InputError(f"{count} of {len(self)} frames were asked for; give 1 to all")
            return self.select(np.arange(count) * len(self) // count)
        if stride is None or count is not None:
            raise InputError("subsample takes either count or stride; give one of them")
        if stride < 1:
            raise InputError(f"stride is {stride}; give at least 1")
        return self.select(np.sort(np.concatenate([t[::stride] for t in self.trajectories()])))

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
        frames: Any = slice(None)
        if beads <= 64:
            pairs |= {(i, j) for i in range(beads) for j in range(i + 1, beads)}
            frames = _crowded_frames(self.positions)  # a hundredth of them, of all pairs
            if not len(frames):
                return
        positions, number = self.positions[frames], np.arange(len(self))[frames]
        for i, j in sorted(pairs):
            gap = np.abs(positions[:, i] - positions[:, j]).max(-1)
            if gap.min() < 1e-3:
                label, frame = self.topology.label, first_frame + int(number[gap.argmin()])
                raise InputError(
                    f"beads {label(i)} and {label(j)} overlap in frame {frame} "
                    "(less than 0.001 nm apart); check the mapping and the units"
                )


def _crowded_frames(positions: np.ndarray) -> np.ndarray:
    """Return the numbers of the frames in which two beads may overlap.

    Two that do are within 0.001 nm along x, and so are all between them: there are neighbours in
    the order of x that close, and likewise in y and z. Sorting finds them without all pairs.
    """
    found = [np.arange(0)]
    for start in range(0, len(positions), 4096):
        part = positions[start : start + 4096]
        near = np.arange(start, start + len(part))
        for axis in range(3):
            along = np.sort(part[:, :, axis], axis=1)
            close = (along[:, 1:] - along[:, :-1] < 1e-3).any(axis=1)
            near, part = near[close], part[close]
        found.append(near)
    return np.concatenate(found)


class GroupWriter:
    """Write a dataset's layout into an open HDF5 file or group, chunk by chunk.

    Args:
        group: h5py.File or h5py.Group, empty.
        topology: the beads.
        temperature: K.
    """

    def __init__(self, group: Any, topology: CGTopology, temperature: float) -> None:
        self._group = group
        self._topology = topology
        self._temperature = strip(temperature, "kelvin", what="temperature", positive=True)
        self._names: tuple[str, ...] | None = None
        self._mapping: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._bias = ""
        self._variable_names: tuple[str, ...] = ()

    def add(self, chunk: CGDataset) -> None:
        """Append the frames of a dataset.

        Raises:
            InputError: if its beads, or what it holds beside them, differ from earlier chunks.
        """
        require_equal_beads(self._topology, chunk.topology, "the file", "the chunk")
        present = {n: v for n in PER_FRAME if (v := getattr(chunk, n)) is not None}
        if self._names is None:
            self._names = tuple(present)
            self._variable_names = chunk.variable_names
            for name, values in present.items():
                data = self._group.create_dataset(
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
        if chunk.variable_names != self._variable_names:
            raise InputError(
                f"chunk has variables {chunk.variable_names}, earlier ones {self._variable_names}"
            )
        for name, values in present.items():
            data = self._group[f"frames/{name}"]
            data.resize(len(data) + len(values), axis=0)
            data[-len(values) :] = values

    def describe(self, mapping: dict[str, Any], sources: dict[str, str], bias: str = "") -> None:
        """Record how the frames were made."""
        self._mapping, self._sources, self._bias = mapping, sources, bias

    def finish(self) -> None:
        """Write what is known only in the end.

        Raises:
            InputError: if no frame was added.
        """
        from .version import __version__

        if self._names is None:
            raise InputError("no frames were written to the dataset; add some")
        self._group["topology"] = self._topology.to_json()
        self._group["mapping"] = json.dumps(self._mapping)
        self._group.attrs.update(
            schema_version=SCHEMA_VERSION,
            kind="dataset",
            package_version=__version__,
            temperature_K=self._temperature,
            sources=json.dumps(self._sources),
            bias=self._bias,
            variable_names=json.dumps(self._variable_names),
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

    def __enter__(self) -> "DatasetWriter":
        import h5py

        with ExitStack() as stack:
            partial = stack.enter_context(atomic_path(self._path))
            file = stack.enter_context(h5py.File(partial, "w"))
            self._writer = GroupWriter(file, self._topology, self._temperature)
            self._stack = stack.pop_all()
        return self

    def add(self, chunk: CGDataset) -> None:
        """Append the frames of a dataset; see `GroupWriter.add`."""
        self._writer.add(chunk)

    def describe(self, mapping: dict[str, Any], sources: dict[str, str], bias: str = "") -> None:
        """Record how the frames were made."""
        self._writer.describe(mapping, sources, bias)

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        try:
            if kind is None:
                self._writer.finish()
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        self._stack.__exit__(kind, value, traceback)


def require_equal_beads(one: CGTopology, other: CGTopology, first: str, second: str) -> None:
    """Refuse two topologies that differ, naming the first bead, bond or mass that does.

    Args:
        one, other: the topologies.
        first, second: what they belong to, for the message.

    Raises:
        InputError: if they differ.
    """
    if one == other:
        return
    remedy = "map both with the same mapping, or keep them apart in a collection"
    if len(one) != len(other):
        raise InputError(
            f"{first} has {len(one)} beads, {second} has {len(other)}; they are of different "
            f"molecules or mappings: {remedy}"
        )
    for bead in range(len(one)):
        names = [f"{top.label(bead)} of type {top.bead_types[bead]}" for top in (one, other)]
        if names[0] != names[1]:
            raise InputError(
                f"bead {bead} is {names[0]} in {first} but {names[1]} in {second}; {remedy}"
            )
        if one.masses[bead] != other.masses[bead] or one.chain_ids[bead] != other.chain_ids[bead]:
            what = "mass" if one.masses[bead] != other.masses[bead] else "chain"
            values = [
                f"{top.masses[bead]:.6g} Da" if what == "mass" else top.chain_ids[bead]
                for top in (one, other)
            ]
            raise InputError(
                f"bead {one.label(bead)} has {what} {values[0]} in {first} but {values[1]} in "
                f"{second}; {remedy}"
            )
    i, j = sorted(set(one.bonds) ^ set(other.bonds))[0]
    having = first if (i, j) in one.bonds else second
    raise InputError(
        f"beads {one.label(i)} and {one.label(j)} are bonded in {having} only; {remedy}"
    )


def read_dataset(path: str | Path) -> CGDataset:
    """Read a dataset file into memory.

    Raises:
        InputError: if the file is missing, damaged, not a dataset, or of a newer schema.
    """
    with open_dataset(path) as (group, described):
        return read_group(group, described, f"dataset {path}")


def iterate_dataset(path: str | Path, size: int = 10_000) -> Iterator[CGDataset]:
    """Yield a dataset file in chunks of at most `size` frames, for files larger than memory.

    Raises:
        InputError: as `read_dataset`.
    """
    if size < 1:
        raise InputError(f"chunks of {size} frames were asked for; give at least 1")
    with open_dataset(path) as (group, described):
        for start in range(0, len(group["frames/positions"]), size):
            yield read_group(
                group, described, f"dataset {path}", slice(start, start + size), start
            )


def read_group(
    group: Any, described: dict[str, Any], where: str, frames: Any = slice(None), first: int = 0
) -> CGDataset:
    """Read frames of an open dataset, file or group; `where` names it in errors.

    Raises:
        InputError: if a stored array is damaged or holds what no dataset may.
    """
    try:
        arrays: dict[str, Any] = {
            n: np.asarray(d[frames]) for n, d in group["frames"].items() if n in PER_FRAME
        }
    except OSError as error:
        raise InputError(
            f"{where}: an array cannot be read ({first_line(error)}); the file is damaged, "
            "make it again"
        ) from error
    try:
        return CGDataset(first_frame=first, **arrays, **described)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


@contextmanager
def open_dataset(path: str | Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the open file and what it holds besides frames: arguments of `CGDataset`.

    Raises:
        InputError: as `read_dataset`.
    """
    with open_hdf5(path, "dataset", SCHEMA_VERSION) as handle:
        yield handle, describe_group(handle, f"dataset {path}")


#: What to do with a file of another kind than the one asked for.
_ELSEWHERE = {
    "run": "it is a run of CG copies: read it with read_run (`cgml export`, `cgml analyze`); ",
    "collection": "it holds several molecules: read it with read_collection; ",
    "dataset": "it is a dataset of one molecule: read it with read_dataset; ",
}
_MAKE = {
    "dataset": "make one with `cgml map`",
    "collection": "make one with DatasetCollection.save or `cgml data merge --name`",
}


@contextmanager
def open_hdf5(path: str | Path, kind: str, newest: int) -> Iterator[Any]:
    """Yield an open HDF5 file of the package's after checking that it is one of that kind.

    Args:
        path: the file.
        kind: its attribute ``kind``: ``"dataset"`` or ``"collection"``.
        newest: the newest schema version that is understood.

    Raises:
        InputError: if it is missing, unfinished, damaged, of another kind or of a newer schema.
    """
    import h5py

    path = Path(path)
    folder = segments_folder(path)
    if not path.exists() and folder.is_dir():
        raise InputError(
            f"{kind} {path} is not there yet: the run that writes it was stopped or still goes on "
            f"(its parts are in {folder}); start the same command again, it goes on to the end"
        )
    path = require_file(path, kind)
    try:
        handle = h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            f"{kind} {path} is damaged or cut short, not a whole HDF5 file; make it again"
        ) from error
    with handle:
        version = handle.attrs.get("schema_version")
        found = handle.attrs.get("kind", "dataset")
        if version is None:
            hint = ""
            if "coordinates" in handle:
                hint = (
                    "it is an MDTraj trajectory: one of beads goes through `cgml data convert`; "
                )
            raise InputError(f"{path} is not a {kind}; {hint}{_MAKE[kind]}")
        if found != kind:
            raise InputError(
                f"{path} is not a {kind}; {_ELSEWHERE.get(str(found), '')}{_MAKE[kind]}"
            )
        if version > newest:
            raise InputError(
                f"{kind} {path} has schema {version}, this version reads up to "
                f"{newest}; upgrade openmm_cgml"
            )
        yield handle


def describe_group(group: Any, where: str) -> dict[str, Any]:
    """Return what an open dataset holds besides frames, after checking that it is whole.

    Raises:
        InputError: if something is missing or damaged, or arrays differ in length.
    """
    try:
        described = {
            "topology": CGTopology.from_json(group["topology"].asstr()[()]),
            "temperature": float(group.attrs["temperature_K"]),
            "mapping": json.loads(group["mapping"].asstr()[()]),
            "sources": json.loads(group.attrs["sources"]),
            "bias": str(group.attrs.get("bias", "")),
            "variable_names": tuple(json.loads(group.attrs.get("variable_names", "[]"))),
        }
        count = len(group["frames/positions"])
        lengths = {n: len(d) for n, d in group["frames"].items() if n in PER_FRAME}
    except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            f"{where} is damaged or cut short, not a whole HDF5 file; make it again"
        ) from error
    for name, length in lengths.items():
        if length != count:
            raise InputError(
                f"{where} holds {count} frames of positions but {length} of {name}; it was "
                "changed or damaged, make it again"
            )
    return described
