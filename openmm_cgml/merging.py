"""Datasets of the same beads joined into one: `merge`, and `merge_files` and `append` on disk."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import CGDataset, iterate_dataset
from .dataset_file import PER_FRAME, DatasetWriter, open_dataset
from .errors import InputError
from .files import require_writable
from .topology import CGTopology, require_equal_beads

_CHUNK = 10_000  # frames at a time


def merge(datasets: Sequence[CGDataset], weights: str = "per_frame") -> CGDataset:
    """Join datasets of the same beads into one.

    Beads, temperature, position map, noise kernel, variables, and whether there are forces and a
    box must be the same in all. Trajectories keep apart: they are numbered anew. A dataset
    without weights has weight 1 for each frame, one without a bias has bias energy 0. Force maps
    may differ, since all of them have the same mean force; all are recorded.

    Args:
        datasets: at least one.
        weights: weights are known up to a factor for each run, so nothing says how much two runs
            count against each other. ``"per_frame"``: scale those of each dataset to mean 1, so
            that it counts by its number of frames; ``"as_is"``: keep them, where one analysis
            (such as MBAR) made all of them.

    Raises:
        InputError: if datasets do not fit together; it names the first thing that differs.
    """
    parts = [Part.of(data, f"dataset {k}") for k, data in enumerate(datasets, 1)]
    plan = _Plan.of(parts, weights)
    pieces = [plan.adapt(k, data) for k, data in enumerate(datasets)]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(piece, name) for piece in pieces])
        for name in PER_FRAME
        if getattr(pieces[0], name) is not None
    }
    first = datasets[0]
    return CGDataset(
        topology=first.topology,
        temperature=first.temperature,
        variable_names=first.variable_names,
        mapping=plan.mapping,
        sources=plan.sources,
        bias=plan.bias,
        **arrays,
    )


def merge_files(
    paths: Sequence[str | Path], output: str | Path, weights: str = "per_frame"
) -> Path:
    """Join dataset files into one, some thousand frames at a time; see `merge`.

    The output appears when it is complete and may be one of the inputs. Memory does not grow
    with the files.

    Raises:
        InputError: as `merge` and `read_dataset`, before anything is written; or if the output
            cannot be written.
    """
    return _write([Part.of_file(path) for path in paths], output, weights)


def append(path: str | Path, more: CGDataset | str | Path, weights: str = "per_frame") -> Path:
    """Add frames to a dataset file, as new trajectories; see `merge`.

    The file is replaced by a longer one when that is complete, so a crash or a kill on the way
    leaves it as it was. That takes disk space for both.

    Args:
        path: the file that gets longer.
        more: a dataset, or the file of one.
        weights: see `merge`.

    Raises:
        InputError: as `merge_files`.
    """
    if not isinstance(more, CGDataset):
        return merge_files([path, more], path, weights)
    return _write([Part.of_file(path), Part.of(more, "the new frames")], path, weights)


def _write(parts: "Sequence[Part]", output: str | Path, weights: str) -> Path:
    path = require_writable(output)
    plan = _Plan.of(parts, weights)
    with DatasetWriter(path, parts[0].topology, parts[0].temperature) as writer:
        writer.describe(plan.mapping, plan.sources, plan.bias)
        for k, part in enumerate(parts):
            for chunk in part.chunks():
                writer.add(plan.adapt(k, chunk))
    return path


@dataclass(frozen=True)
class Part:
    """What joining needs to know of a dataset before it reads the frames.

    Attributes:
        label: how errors name it.
        frames: number of them.
        present: names of the arrays that it has.
        weight: sum of its weights.
        runs: numbers of its trajectories.
        described: what it holds besides frames, as `describe_group` returns it.
        chunks: yields the frames, some thousand at a time.
    """

    label: str
    frames: int
    present: frozenset[str]
    weight: float
    runs: tuple[int, ...]
    described: dict[str, Any]
    chunks: Callable[[], Iterable[CGDataset]]

    @property
    def topology(self) -> CGTopology:
        """The beads."""
        return self.described["topology"]

    @property
    def temperature(self) -> float:
        """K."""
        return self.described["temperature"]

    @classmethod
    def of(cls, data: CGDataset, label: str) -> "Part":
        """Return what is known of a dataset in memory."""
        described = {
            name: getattr(data, name)
            for name in (
                "topology", "temperature", "mapping", "sources", "bias", "variable_names",
            )
        }  # fmt: skip
        return cls(
            label,
            len(data),
            frozenset(n for n in PER_FRAME if getattr(data, n) is not None),
            float(len(data) if data.weights is None else np.sum(data.weights, dtype=np.float64)),
            (0,) if data.trajectory is None else tuple(np.unique(data.trajectory).tolist()),
            described,
            lambda: [data],
        )

    @classmethod
    def of_file(cls, path: str | Path) -> "Part":
        """Return what is known of a dataset file, some of whose arrays are read for it.

        Raises:
            InputError: as `read_dataset`.
        """
        with open_dataset(path) as (handle, described):
            stored = {n: d for n, d in handle["frames"].items() if n in PER_FRAME}
            count = len(stored["positions"])

            def slices(name: str) -> Iterator[np.ndarray]:
                return (stored[name][s : s + 1_000_000] for s in range(0, count, 1_000_000))

            weight, runs = float(count), {0}
            if "weights" in stored:
                weight = float(sum(part.sum(dtype=np.float64) for part in slices("weights")))
            if "trajectory" in stored:
                runs = set().union(*(np.unique(part).tolist() for part in slices("trajectory")))
        return cls(
            str(path),
            count,
            frozenset(stored),
            weight,
            tuple(sorted(runs)),
            described,
            lambda: iterate_dataset(path, _CHUNK),
        )


@dataclass(frozen=True)
class _Plan:
    """How the frames of each part change when they are joined."""

    parts: tuple[Part, ...]
    fill: frozenset[str]
    scales: tuple[float, ...]
    first_runs: tuple[int, ...]
    mapping: dict[str, Any]
    sources: dict[str, str]
    bias: str

    @classmethod
    def of(cls, parts: Sequence[Part], weights: str) -> "_Plan":
        if not parts:
            raise InputError("there is nothing to merge; give at least one dataset")
        if weights not in ("per_frame", "as_is"):
            raise InputError(f"weights {weights!r} is unknown; choose per_frame or as_is")
        for part in parts[1:]:
            _require_fit(parts[0], part)
        fill = frozenset(
            name for name in ("weights", "bias_energy") if any(name in p.present for p in parts)
        )
        for part in parts:
            _check_weight(part, fill, weights)
        scale = [
            p.frames / p.weight if weights == "per_frame" and "weights" in p.present else 1.0
            for p in parts
        ]
        counts = np.cumsum([0, *(len(p.runs) for p in parts[:-1])])
        return cls(
            tuple(parts),
            fill,
            tuple(scale),
            tuple(counts.tolist()),
            _merged_mapping(parts),
            _merged_sources(parts),
            "; ".join(dict.fromkeys(b for p in parts if (b := p.described["bias"]))),
        )

    def adapt(self, part: int, chunk: CGDataset) -> CGDataset:
        """Return frames of a part as they are in the whole."""
        adapted = chunk.select(slice(None))
        frames = len(chunk)
        if "weights" in self.fill:
            weights = np.ones(frames) if chunk.weights is None else chunk.weights
            object.__setattr__(adapted, "weights", self.scales[part] * weights)
        if "bias_energy" in self.fill and chunk.bias_energy is None:
            object.__setattr__(adapted, "bias_energy", np.zeros(frames))
        runs = np.zeros(frames, np.int32) if chunk.trajectory is None else chunk.trajectory
        numbers = self.first_runs[part] + np.searchsorted(self.parts[part].runs, runs)
        object.__setattr__(adapted, "trajectory", numbers.astype(np.int32))
        return adapted


def _require_fit(one: Part, other: Part) -> None:
    """Refuse two datasets whose frames are not of one ensemble of the same beads."""
    require_equal_beads(one.topology, other.topology, one.label, other.label)
    if abs(one.temperature - other.temperature) > 1e-6:
        raise InputError(
            f"{one.label} is at {one.temperature:g} K, {other.label} at {other.temperature:g} K; "
            "a PMF holds at one temperature: merge data of one, or reweight the other first"
        )
    for name, remedy in (
        ("forces", "map both with forces, or leave them out of both"),
        ("box", "map both with the box, or both without (--no-box)"),
        ("variables", "leave them out of both"),
    ):
        if (name in one.present) != (name in other.present):
            having, lacking = (one, other) if name in one.present else (other, one)
            raise InputError(f"{having.label} has {name}, {lacking.label} has none; {remedy}")
    names = [p.described["variable_names"] for p in (one, other)]
    if names[0] != names[1]:
        raise InputError(
            f"{one.label} has the variables {', '.join(names[0])}, {other.label} "
            f"{', '.join(names[1])}; merge runs along the same variables"
        )
    maps = [p.described["mapping"] for p in (one, other)]
    _require_equal_maps(one.label, other.label, *maps)
    if maps[0].get("noise") != maps[1].get("noise"):
        raise InputError(
            f"the noise kernel of {one.label} is {maps[0].get('noise')}, that of {other.label} "
            f"{maps[1].get('noise')}; map both with the same noise, or without"
        )


def _require_equal_maps(one: str, other: str, first: Any, second: Any) -> None:
    atoms = first.get("atoms"), second.get("atoms")
    remedy = "map both trajectories with the same mapping"
    if atoms[0] and atoms[1] and atoms[0] != atoms[1]:
        odd = next((a for a in zip(*atoms, strict=False) if a[0] != a[1]), None)
        found = f"atom {odd[0]} stands where the other has {odd[1]}" if odd else "numbers differ"
        raise InputError(
            f"{one} was mapped from {len(atoms[0])} atoms, {other} from {len(atoms[1])} ({found});"
            f" {remedy}"
        )
    matrices = first.get("position_matrix"), second.get("position_matrix")
    if not (matrices[0] and matrices[1]):
        if matrices[0] or matrices[1]:
            warnings.warn(
                f"{other if matrices[0] else one} does not say how its beads were made; that they "
                "are those of the other is taken on trust",
                stacklevel=2,
            )
        return
    for a, b in zip(_rows(matrices[0]), _rows(matrices[1]), strict=False):
        if a.keys() != b.keys() or any(abs(a[k] - b[k]) > 1e-6 for k in a):
            raise InputError(
                f"{one} and {other} have the same beads, made of other atoms or with other "
                f"weights (position maps {first.get('name')!r} and {second.get('name')!r}); "
                f"{remedy}"
            )


def _rows(matrix: dict[str, list[Any]]) -> list[dict[int, float]]:
    rows: dict[int, dict[int, float]] = {}
    for row, column, value in zip(matrix["row"], matrix["column"], matrix["value"], strict=True):
        rows.setdefault(row, {})[column] = value
    return [rows[row] for row in sorted(rows)]


def _check_weight(part: Part, fill: frozenset[str], weights: str) -> None:
    biased = part.described["bias"]
    if not part.weight > 0 and weights == "per_frame":
        raise InputError(
            f"all frames of {part.label} have weight zero; leave it out, or keep weights as they "
            'are (weights="as_is")'
        )
    if "bias_energy" in fill and "bias_energy" not in part.present and biased:
        raise InputError(
            f"{part.label} was biased ({biased}) but has no bias energies, unlike others; map it "
            "with them (--bias-energy)"
        )
    if "weights" in fill and "weights" not in part.present and biased:
        warnings.warn(
            f"{part.label} was biased ({biased}) and has no weights: its frames count as if it "
            "was not",
            stacklevel=2,
        )


def _merged_mapping(parts: Sequence[Part]) -> dict[str, Any]:
    """Return the first map that is known; force maps that differ are listed under "maps"."""
    known = [p.described["mapping"] for p in parts if p.described["mapping"]]
    if not known:
        return {}
    merged = dict(next((m for m in known if m.get("position_matrix")), known[0]))
    listed: list[dict[str, Any]] = []
    for one in known:
        force_map = one.get("force_map")
        for each in [] if force_map is None else force_map.get("maps", [force_map]):
            if each not in listed:
                listed.append(each)
    if len(listed) == 1:
        merged["force_map"] = listed[0]
    elif listed:
        groups = [g for each in listed for g in each.get("constraint_groups", [])]
        merged["force_map"] = {
            "name": "several",
            "maps": listed,
            "constraint_groups": [list(g) for g in sorted({tuple(g) for g in groups})],
        }
    return merged


def _merged_sources(parts: Sequence[Part]) -> dict[str, str]:
    """Return all sources; files of one name but different content get numbers."""
    merged: dict[str, str] = {}
    for part in parts:
        shared = [n for n, h in part.described["sources"].items() if h in merged.values()]
        if shared:
            warnings.warn(
                f"{part.label} comes from {shared[0]}, like a dataset before it: a frame that is "
                "in both counts twice",
                stacklevel=2,
            )
        for name, digest in part.described["sources"].items():
            free, number = name, 1
            while merged.get(free, digest) != digest:
                number += 1
                free = f"{name} ({number})"
            merged[free] = digest
    return merged
