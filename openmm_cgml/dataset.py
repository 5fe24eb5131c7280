"""Mapped frames: `CGDataset`, and reading one from the file that `dataset_file` lays out."""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .dataset_file import PER_FRAME, DatasetWriter, open_dataset, read_arrays
from .errors import InputError
from .topology import CGTopology
from .units import strip


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
    arrays: dict[str, Any] = read_arrays(group, where, frames)
    try:
        return CGDataset(first_frame=first, **arrays, **described)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
