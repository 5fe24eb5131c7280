"""Datasets of several molecules, kept apart under names: for training one model on all of them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .dataset import CGDataset, read_group
from .dataset_file import GroupWriter, describe_group, open_hdf5
from .errors import InputError
from .files import atomic_path
from .hdf5_files import stored_text, text_of, write_hdf5_file
from .merging import Part, merge
from .texts import parse_json

#: Version of a collection's layout; that of its groups is the datasets' own.
SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class DatasetCollection:
    """Datasets of several molecules, to train one model on all of them.

    Attributes:
        datasets: molecule's name -> its dataset, all at one temperature.

    Raises:
        InputError: if there are none, temperatures differ, or only some have forces.
    """

    datasets: dict[str, CGDataset] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "datasets", _by_name(self.datasets))
        if not self.datasets:
            raise InputError("a collection needs at least one molecule; give some")
        names = list(self.datasets)
        for name, data in self.datasets.items():
            if not isinstance(data, CGDataset):
                raise InputError(f"{name} is of type {type(data).__name__}; give datasets")
            _require_one_ensemble(Part.of(self.datasets[names[0]], names[0]),
                                  Part.of(data, name))  # fmt: skip

    @property
    def temperature(self) -> float:
        """K."""
        return next(iter(self.datasets.values())).temperature

    @property
    def frames(self) -> int:
        """Number of frames of all molecules together."""
        return sum(len(data) for data in self.datasets.values())

    def __len__(self) -> int:
        return len(self.datasets)

    def __iter__(self) -> Iterator[str]:
        return iter(self.datasets)

    def __getitem__(self, name: str) -> CGDataset:
        if name not in self.datasets:
            raise InputError(
                f"there is no molecule {name!r}; the collection has {', '.join(self.datasets)}"
            )
        return self.datasets[name]

    def bead_types(self) -> dict[str, dict[str, int]]:
        """Return of each bead type how many beads of each molecule have it.

        A model that is to work for all molecules learns a type from those that have it; one that
        a single molecule has is not tested on any other.
        """
        counts = {name: Counter(d.topology.bead_types) for name, d in self.datasets.items()}
        types = sorted({kind for count in counts.values() for kind in count})
        return {t: {name: c[t] for name, c in counts.items() if t in c} for t in types}

    def split(
        self, fraction: float = 0.9, blocks: int = 10, by: str = "blocks", seed: int = 0
    ) -> tuple["DatasetCollection", "DatasetCollection"]:
        """Split every molecule's frames; see `CGDataset.split`.

        Raises:
            InputError: if the frames of a molecule, which is named, cannot be split.
        """
        parts = self._of_each(lambda data: data.split(fraction, blocks, by, seed))
        return tuple(
            DatasetCollection({name: part[side] for name, part in parts.items()})
            for side in (0, 1)
        )  # type: ignore[return-value]

    def subsample(
        self, count: int | None = None, stride: int | None = None
    ) -> "DatasetCollection":
        """Return fewer frames of every molecule; see `CGDataset.subsample`."""
        return DatasetCollection(self._of_each(lambda data: data.subsample(count, stride)))

    def merge(self, other: "DatasetCollection", weights: str = "per_frame") -> "DatasetCollection":
        """Return the molecules of both; the frames of one that is in both are joined by `merge`.

        Raises:
            InputError: if a molecule in both has other beads in one, or temperatures differ.
        """
        joined = dict(self.datasets)
        for name, data in other.datasets.items():
            try:
                joined[name] = merge([joined[name], data], weights) if name in joined else data
            except InputError as error:
                raise InputError(f"molecule {name}: {error}") from None
        return DatasetCollection(joined)

    def save(self, path: str | Path) -> None:
        """Write one HDF5 file; an existing one is replaced only when the new one is complete."""
        _write_collection(path, {name: Part.of(d, name) for name, d in self.datasets.items()})

    def _of_each(self, function: Callable[[CGDataset], Any]) -> dict[str, Any]:
        results = {}
        for name, data in self.datasets.items():
            try:
                results[name] = function(data)
            except InputError as error:
                raise InputError(f"molecule {name}: {error}") from None
        return results


def collect_files(
    paths: Mapping[str, str | Path] | Iterable[tuple[str, str | Path]], output: str | Path
) -> Path:
    """Put dataset files of several molecules into one collection, some frames at a time.

    Args:
        paths: molecule's name -> its dataset file, or pairs of them.
        output: file to write.

    Raises:
        InputError: as `DatasetCollection`.
    """
    named = _by_name(paths)
    if not named:
        raise InputError("a collection needs at least one molecule; give some")
    parts = {name: Part.of_file(path) for name, path in named.items()}
    first = next(iter(parts.values()))
    for part in parts.values():
        _require_one_ensemble(first, part)
    _write_collection(output, parts)
    return Path(output)


def read_collection(path: str | Path) -> DatasetCollection:
    """Read a collection file into memory.

    Raises:
        InputError: if the file is missing, damaged, not a collection, or of a newer schema.
    """
    with open_hdf5(path, "collection", SCHEMA_VERSION) as handle:
        try:
            names = parse_json(text_of(handle.attrs["names"]))
            groups = {name: handle["molecules"][name] for name in names}
        except Exception as error:  # names of another kind, objects that are no groups
            raise InputError(
                f"collection {path} is damaged or cut short; make it again"
            ) from error
        datasets = {}
        for name, group in groups.items():
            where = f"collection {path}, molecule {name}"
            datasets[name] = read_group(group, describe_group(group, where), where)
        return DatasetCollection(datasets)


def _by_name(given: Any) -> dict[str, Any]:
    """Return a mapping, or pairs, as a dictionary; names are unique and fit into a path."""
    pairs = list(given.items()) if isinstance(given, Mapping) else list(given)
    names = [name for name, _ in pairs]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"molecule name {name!r} is given {count} times; names are unique")
        if not isinstance(name, str) or not name or "/" in name or name in (".", ".."):
            raise InputError(f"molecule name {name!r} cannot be stored; give a word without /")
    return dict(pairs)


def _require_one_ensemble(one: Part, other: Part) -> None:
    if abs(one.temperature - other.temperature) > 1e-6:
        raise InputError(
            f"{one.label} is at {one.temperature:g} K, {other.label} at {other.temperature:g} K; "
            "one model holds at one temperature: collect data of one"
        )
    if ("forces" in one.present) != ("forces" in other.present):
        having, lacking = (one, other) if "forces" in one.present else (other, one)
        raise InputError(
            f"{having.label} has forces, {lacking.label} has none; map all molecules with forces, "
            "or none"
        )


def _write_collection(path: str | Path, molecules: Mapping[str, Part]) -> None:
    from .version import __version__

    with atomic_path(path) as partial, write_hdf5_file(partial) as handle:
        for name, part in molecules.items():
            group = handle.create_group(f"molecules/{name}")
            writer = GroupWriter(group, part.topology, part.temperature)
            for chunk in part.chunks():
                writer.add(chunk)
            described = part.described
            writer.describe(described["mapping"], described["sources"], described["bias"])
            writer.finish()
        handle.attrs.update(
            schema_version=SCHEMA_VERSION,
            kind=stored_text("collection"),
            package_version=stored_text(__version__),
            names=stored_text(json.dumps(list(molecules))),
        )
