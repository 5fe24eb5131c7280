"""Frames for training: in memory or read from a file in blocks, of one molecule or of several.

The order of the frames depends on seed and epoch alone, never on what was read before, so any
batch of any epoch can be found again: that is what makes a training resume exactly.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import numpy as np

from .collection import SCHEMA_VERSION as COLLECTION_VERSION
from .collection import DatasetCollection, read_collection
from .dataset import CGDataset, read_dataset, read_group
from .dataset_file import SCHEMA_VERSION as DATASET_VERSION
from .dataset_file import describe_group, open_dataset, open_hdf5, read_arrays
from .errors import InputError
from .extrapolation import CoordinateRanges
from .hdf5_files import kind_of, open_hdf5_file, text_of
from .losses import Batch, Terms
from .texts import parse_json
from .units import thermal_energy

#: What `open_sources` takes.
Frames = CGDataset | DatasetCollection | str | Path

_BLOCK = 4096  # frames of a file that are read together; four of its own chunks
_BUFFER = 256 * 2**20  # bytes that are shuffled together
_SAMPLE_BLOCKS = 5  # that scales are taken from, of a file
_CHECKED = ("positions", "forces", "weights", "box")  # what training sees of a dataset


@dataclass(frozen=True)
class Summary:
    """What has to be known of all frames before training.

    Attributes:
        frames: their number.
        digest: hash of all that training sees.
        ranges: extremes of internal coordinates.
        weight: sum of the frame weights; None if there are none.
        forces: whether there are forces.
    """

    frames: int
    digest: str
    ranges: CoordinateRanges
    weight: float | None
    forces: bool

    @classmethod
    def of(cls, chunks: Iterable[CGDataset]) -> "Summary":
        """Go through the chunks of one dataset once.

        Raises:
            InputError: if their boxes differ.
        """
        hashes = {name: hashlib.sha256() for name in _CHECKED}
        frames, weight, forces, topology = 0, None, False, ""
        ranges: CoordinateRanges | None = None
        box: np.ndarray | None = None
        for chunk in chunks:
            frames += len(chunk)
            forces, topology = chunk.forces is not None, chunk.topology.to_json()
            for name in _CHECKED:
                if (values := getattr(chunk, name)) is not None:
                    hashes[name].update(np.ascontiguousarray(values).tobytes())
            if chunk.weights is not None:
                weight = (weight or 0.0) + float(np.sum(chunk.weights, dtype=np.float64))
            own = CoordinateRanges.of(chunk)
            ranges = own if ranges is None else ranges.wider(own)
            vectors = chunk.constant_box()
            if vectors is not None and box is not None and np.ptp([vectors, box], 0).max() > 1e-4:
                raise InputError("box vectors change from frame to frame; use frames of one box")
            box = vectors
        if ranges is None:
            raise InputError("the dataset has no frames; map some")
        digest = hashlib.sha256(topology.encode())
        for one in hashes.values():
            digest.update(one.digest())
        return cls(frames, digest.hexdigest(), ranges, weight, forces)


class Source(ABC):
    """The frames of one molecule.

    Attributes:
        name: of the molecule in its collection; "" outside one.
        molecule: its number.
        dataset: some of its frames, for topology, temperature and provenance.
        summary: of all frames.
    """

    def __init__(self, name: str, molecule: int, dataset: CGDataset, summary: Summary) -> None:
        self.name, self.molecule, self.dataset, self.summary = name, molecule, dataset, summary
        box = dataset.constant_box()
        self.box = None if box is None else torch.as_tensor(box, dtype=torch.float32)
        self.kt = float(thermal_energy(dataset.temperature))
        self._terms: Terms | None = None

    def __len__(self) -> int:
        return self.summary.frames

    @property
    def label(self) -> str:
        """The molecule's name for messages."""
        return f"molecule {self.name}: " if self.name else ""

    def attach(self, terms: Terms) -> None:
        """Give batches the forces of the fixed terms of a PMF."""
        self._terms = terms if terms.fixed is not None else None

    @abstractmethod
    def shuffled(self, size: int, seed: int, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the whole batches of `size` frames of an epoch, from batch `start` on."""

    @abstractmethod
    def chunks(self, size: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yield all frames in order; of every `parts` chunks only the one numbered `part`."""

    @abstractmethod
    def sample(self) -> Iterator[Batch]:
        """Yield frames that scales can be taken from: all, or of a large file some blocks."""

    def batch(self, arrays: dict[str, Any]) -> Batch:
        """Return a batch of arrays that were read."""
        tensors: dict[str, Any] = {
            n: torch.as_tensor(np.asarray(arrays[n]), dtype=torch.float32)
            for n in ("positions", "forces")
            if arrays.get(n) is not None
        }
        weights = None
        if arrays.get("weights") is not None and self.summary.weight:
            mean = self.summary.weight / self.summary.frames
            weights = torch.as_tensor(np.asarray(arrays["weights"]) / mean, dtype=torch.float32)
        made = Batch(**tensors, kt=self.kt, weights=weights, box=self.box, molecule=self.molecule)
        return made if self._terms is None else replace(made, fixed=self._fixed(made))

    def _fixed(self, batch: Batch, chunk: int = 4096) -> Tensor:
        assert self._terms is not None
        device = next(self._terms.trainable.parameters()).device
        box = None if self.box is None else self.box.to(device)
        parts = [self._terms.fixed_forces(x.to(device), box) for x in batch.positions.split(chunk)]
        return torch.cat([p.cpu() for p in parts if p is not None])


class MemorySource(Source):
    """Frames of a dataset in memory."""

    def __init__(self, dataset: CGDataset, name: str = "", molecule: int = 0) -> None:
        super().__init__(name, molecule, dataset, Summary.of([dataset]))
        self._all = self._read()

    def _read(self) -> Batch:
        return self.batch(
            {n: getattr(self.dataset, n) for n in ("positions", "forces", "weights")}
        )

    def attach(self, terms: Terms) -> None:
        """Evaluate the fixed terms once, for all frames."""
        super().attach(terms)
        self._all = self._read()

    def shuffled(self, size: int, seed: int, epoch: int, start: int) -> Iterator[Batch]:
        """Yield batches in one random order of all frames."""
        order = np.random.default_rng((seed, epoch, self.molecule)).permutation(len(self))
        for first in range(start * size, len(self) // size * size, size):
            yield _take(self._all, torch.as_tensor(order[first : first + size]))

    def chunks(self, size: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yield all frames in order."""
        for first in range(part * size, len(self), parts * size):
            yield _take(self._all, slice(first, first + size))

    def sample(self) -> Iterator[Batch]:
        """Yield all frames."""
        yield from self.chunks(_BLOCK)


class FileSource(Source):
    """Frames of a dataset file, for what is larger than memory.

    Blocks of frames are read in random order; so many as fit into a buffer are shuffled together.

    Args:
        path: a dataset file, or a collection.
        name, molecule: of a collection, which molecule.
        block: frames read together.
        buffer: bytes that are shuffled together.

    Raises:
        InputError: if the file is damaged, or holds what no dataset may.
    """

    def __init__(
        self,
        path: str | Path,
        name: str = "",
        molecule: int = 0,
        *,
        block: int = _BLOCK,
        buffer: int = _BUFFER,
    ) -> None:
        self._path, self._group, self._block = path, f"molecules/{name}" if name else "/", block
        self._kind = ("collection", COLLECTION_VERSION) if name else ("dataset", DATASET_VERSION)
        self._where = f"{self._kind[0]} {path}" + f", molecule {name}" * bool(name)
        heads: list[CGDataset] = []
        summary = Summary.of(self._checked(heads))
        super().__init__(name, molecule, heads[0], summary)
        bytes_a_block = block * len(self.dataset.topology) * 3 * 4 * 3
        self._per_group = max(1, buffer // bytes_a_block)

    def _checked(self, heads: list[CGDataset]) -> Iterator[CGDataset]:
        """Yield all frames, checked; put a small first part into `heads`."""
        with open_hdf5(self._path, *self._kind) as handle:
            group = handle[self._group]
            described = describe_group(group, self._where)
            for first in range(0, len(group["frames/positions"]), self._block):
                frames = slice(first, first + self._block)
                chunk = read_group(group, described, self._where, frames, first)
                if not heads:
                    heads.append(chunk)
                yield chunk

    def _blocks(self, numbers: Iterable[int]) -> Iterator[dict[str, np.ndarray]]:
        with open_hdf5(self._path, *self._kind) as handle:
            for number in numbers:
                frames = slice(number * self._block, (number + 1) * self._block)
                yield read_arrays(handle[self._group], self._where, frames)

    def shuffled(self, size: int, seed: int, epoch: int, start: int) -> Iterator[Batch]:
        """Yield batches; those before `start` are not read."""
        key = (seed, epoch, self.molecule)
        count = -(-len(self) // self._block)
        order = np.random.default_rng(key).permutation(count)
        lengths = np.minimum(self._block, len(self) - order * self._block)
        skipped, left = start * size, len(self) // size - start
        rest: dict[str, np.ndarray] = {}
        for number, begin in enumerate(range(0, count, self._per_group)):
            part = slice(begin, begin + self._per_group)
            frames = int(lengths[part].sum())
            if skipped >= frames:
                skipped -= frames
                continue
            read = list(self._blocks(order[part].tolist()))
            mixed = np.random.default_rng((*key, number + 1)).permutation(frames)[skipped:]
            fresh = {n: np.concatenate([r[n] for r in read])[mixed] for n in read[0]}
            skipped = 0
            rest = {n: np.concatenate([rest[n], v]) if rest else v for n, v in fresh.items()}
            whole = len(rest["positions"]) // size
            batches = self.batch({n: v[: whole * size] for n, v in rest.items()})
            for k in range(min(whole, left)):
                yield _take(batches, slice(k * size, (k + 1) * size))
            left -= whole
            rest = {n: v[whole * size :] for n, v in rest.items()}

    def chunks(self, size: int, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yield all frames in order; every process reads all of them."""
        number = 0
        for arrays in self._blocks(range(-(-len(self) // self._block))):
            block = self.batch(arrays)
            for first in range(0, len(block), size):
                if number % parts == part:
                    yield _take(block, slice(first, first + size))
                number += 1

    def sample(self) -> Iterator[Batch]:
        """Yield some blocks, evenly spaced."""
        count = -(-len(self) // self._block)
        chosen = np.unique(np.linspace(0, count - 1, _SAMPLE_BLOCKS).astype(int)).tolist()
        for arrays in self._blocks(chosen):
            yield self.batch(arrays)


def open_sources(data: Frames) -> list[Source]:
    """Return the molecules of a dataset, a collection, or a file of either.

    A file is read in blocks whenever frames are needed, and once now, to check it.

    Raises:
        InputError: if it is none of them, or the file is damaged.
    """
    if isinstance(data, CGDataset):
        return [MemorySource(data)]
    if isinstance(data, DatasetCollection):
        return [MemorySource(d, name, k) for k, (name, d) in enumerate(data.datasets.items())]
    if not isinstance(data, str | Path):
        raise InputError(
            f"training data are of type {type(data).__name__}; give a dataset, a collection or "
            "the path of a file of one"
        )
    names = _molecules(data)
    if names is None:
        return [FileSource(data)]
    return [FileSource(data, name, k) for k, name in enumerate(names)]


def read_frames(path: str | Path) -> CGDataset | DatasetCollection:
    """Read a file of a dataset or a collection into memory.

    Raises:
        InputError: if it is neither, or damaged.
    """
    return read_dataset(path) if _molecules(path) is None else read_collection(path)


def sample_datasets(data: Frames, frames: int = 50_000) -> CGDataset | DatasetCollection:
    """Return the data, or of a file so many frames in memory: for priors and normalisations.

    Args:
        data: as of `open_sources`.
        frames: of each molecule at most, evenly spaced.
    """
    if not isinstance(data, str | Path):
        return data
    names = _molecules(data)
    if names is None:
        with open_dataset(data) as (group, described):
            return _thinned(group, described, f"dataset {data}", frames)
    with open_hdf5(data, "collection", COLLECTION_VERSION) as handle:
        found = {}
        for name in names:
            group, where = handle["molecules"][name], f"collection {data}, molecule {name}"
            found[name] = _thinned(group, describe_group(group, where), where, frames)
        return DatasetCollection(found)


def _thinned(group: Any, described: dict[str, Any], where: str, frames: int) -> CGDataset:
    stride = max(1, -(-len(group["frames/positions"]) // frames))
    return read_group(group, described, where, slice(None, None, stride))


class BatchStream:
    """The batches of all molecules, each of one molecule, molecules mixed at random.

    What Lightning trains from. It says where it is (`state_dict`) and can go on from there.

    Args:
        sources: the molecules.
        batch_size: frames of a batch, over all processes.
        seed: of the order.
        rank, ranks: this process among those that share each batch.

    Raises:
        InputError: if a batch, or a molecule's frames, cannot be shared by the processes.
    """

    def __init__(
        self, sources: list[Source], batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        if batch_size % ranks:
            raise InputError(
                f"batches of {batch_size} frames cannot be shared evenly by {ranks} processes; "
                "give a multiple"
            )
        for source in sources:
            if len(source) < ranks:
                raise InputError(
                    f"{source.label}{len(source)} frames are too few for {ranks} processes; use "
                    "fewer processes"
                )
        self.sources, self.seed, self.rank, self.ranks = sources, seed, rank, ranks
        self.sizes = [min(batch_size, len(s) // ranks * ranks) for s in sources]
        self.counts = [len(s) // size for s, size in zip(sources, self.sizes, strict=True)]
        self.epoch, self.position, self._start = 0, 0, 0

    @property
    def sampler(self) -> "BatchStream":
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch that was set by the time of the first."""
        start, self._start = self._start, 0
        turns = np.repeat(np.arange(len(self.sources)), self.counts)
        turns = np.random.default_rng((self.seed, self.epoch, 0, 1)).permutation(turns)
        done = np.bincount(turns[:start], minlength=len(self.sources)).tolist()
        streams = [
            source.shuffled(size, self.seed, self.epoch, first)
            for source, size, first in zip(self.sources, self.sizes, done, strict=True)
        ]
        for number in range(start, len(turns)):
            self.position = number + 1
            yield self._share(next(streams[turns[number]]), number)

    def _share(self, batch: Batch, number: int) -> Batch:
        total, share = len(batch), len(batch) // self.ranks
        first = self.rank * share
        seed = seed_of(self.seed, self.epoch, number)
        part = batch if self.ranks == 1 else _take(batch, slice(first, first + share))
        return replace(part, seed=seed, first=first, total=total)

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch have been given out."""
        return {"epoch": self.epoch, "position": self.position % max(1, len(self))}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after that many batches, in the next iteration only."""
        self.epoch, self._start = int(state["epoch"]), int(state["position"])


def seed_of(*numbers: int) -> int:
    """Return a seed for torch that differs between any two tuples of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _molecules(path: str | Path) -> list[str] | None:
    """Return the names in a collection file; None if the file is something else."""
    try:
        with open_hdf5_file(path) as handle:
            if kind_of(handle) != "collection":
                return None
    except OSError:
        return None  # the dataset's reader says what is wrong
    with open_hdf5(path, "collection", COLLECTION_VERSION) as handle:
        return list(parse_json(text_of(handle.attrs["names"])))


def _take(batch: Batch, frames: Any) -> Batch:
    names = ("positions", "forces", "fixed", "weights")
    taken = {n: v[frames] for n in names if (v := getattr(batch, n)) is not None}
    return replace(batch, **taken)
