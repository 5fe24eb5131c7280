"""The HDF5 file of a dataset: writing frames into it, opening and checking it.

Frames go in as anything that has the arrays as attributes, and come out as plain arrays: `dataset`
makes `CGDataset` of them.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .errors import InputError, first_line
from .files import atomic_path, require_file, segments_folder
from .hdf5_files import kind_of, open_hdf5_file, stored_text, text_of, write_hdf5_file
from .texts import parse_json
from .topology import CGTopology, require_equal_beads
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


class Chunk(Protocol):
    """Frames to write, such as a `CGDataset`; arrays of `PER_FRAME` that it has are attributes."""

    @property
    def topology(self) -> CGTopology:
        """The beads."""

    @property
    def variable_names(self) -> tuple[str, ...]:
        """Names of the columns of ``variables``."""


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

    def add(self, chunk: Chunk) -> None:
        """Append frames.

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
                    data.attrs["unit"] = stored_text(_UNITS[name])
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
        self._group["topology"] = stored_text(self._topology.to_json())
        self._group["mapping"] = stored_text(json.dumps(self._mapping))
        self._group.attrs.update(
            schema_version=SCHEMA_VERSION,
            kind=stored_text("dataset"),
            package_version=stored_text(__version__),
            temperature_K=self._temperature,
            sources=stored_text(json.dumps(self._sources)),
            bias=stored_text(self._bias),
            variable_names=stored_text(json.dumps(self._variable_names)),
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
        with ExitStack() as stack:
            partial = stack.enter_context(atomic_path(self._path))
            file = stack.enter_context(write_hdf5_file(partial))
            self._writer = GroupWriter(file, self._topology, self._temperature)
            self._stack = stack.pop_all()
        return self

    def add(self, chunk: Chunk) -> None:
        """Append the frames of a `CGDataset`; see `GroupWriter.add`."""
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


@contextmanager
def open_dataset(path: str | Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the open file and what it holds besides frames: arguments of `CGDataset`.

    Raises:
        InputError: as `open_hdf5` and `describe_group`.
    """
    with open_hdf5(path, "dataset", SCHEMA_VERSION) as handle:
        yield handle, describe_group(handle, f"dataset {path}")


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
    path = Path(path)
    folder = segments_folder(path)
    if not os.path.exists(path) and os.path.isdir(folder):  # False for an impossible name
        raise InputError(
            f"{kind} {path} is not there yet: the run that writes it was stopped or still goes on "
            f"(its parts are in {folder}); start the same command again, it goes on to the end"
        )
    path = require_file(path, kind)
    try:
        handle = open_hdf5_file(path)
    except OSError as error:
        raise InputError(
            f"{kind} {path} is damaged or cut short, not a whole HDF5 file; make it again"
        ) from error
    with handle:
        try:
            version = handle.attrs.get("schema_version")
            found = kind_of(handle)
            version = None if version is None else int(version)
        except Exception as error:
            raise InputError(
                f"{kind} {path} is damaged, its attributes are of another kind; make it again"
            ) from error
        if version is None:
            hint = ""
            if "coordinates" in handle:
                hint = (
                    "it is an MDTraj trajectory: one of beads goes through `cgml data convert`; "
                )
            raise InputError(f"{path} is not a {kind}; {hint}{_MAKE[kind]}")
        if found != kind:
            raise InputError(f"{path} is not a {kind}; {_ELSEWHERE.get(found, '')}{_MAKE[kind]}")
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
            "topology": CGTopology.from_json(text_of(group["topology"][()])),
            "temperature": float(group.attrs["temperature_K"]),
            "mapping": parse_json(text_of(group["mapping"][()])),
            "sources": parse_json(text_of(group.attrs["sources"])),
            "bias": text_of(group.attrs.get("bias", "")),
            "variable_names": tuple(parse_json(text_of(group.attrs.get("variable_names", "[]")))),
        }
        count = len(group["frames/positions"])
        lengths = {n: len(d) for n, d in group["frames"].items() if n in PER_FRAME}
    except Exception as error:  # h5py has one for every kind of damage
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


def read_arrays(group: Any, where: str, frames: Any = slice(None)) -> dict[str, np.ndarray]:
    """Return arrays of an open dataset, file or group; `where` names it in errors.

    Raises:
        InputError: if one is damaged.
    """
    try:
        return {n: np.asarray(d[frames]) for n, d in group["frames"].items() if n in PER_FRAME}
    except Exception as error:
        raise InputError(
            f"{where}: an array cannot be read ({first_line(error)}); the file is damaged, "
            "make it again"
        ) from error
