"""From an all-atom trajectory to a dataset of beads: `map_trajectory`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import PER_FRAME, CGDataset, DatasetWriter, read_dataset
from .errors import InputError
from .files import require_writable, sha256
from .mapping import FORCE_MAPS
from .mapping.constraints import ConstraintFinder, constraints_from_system
from .mapping.core import Mapping, bonded_neighbours, triplets
from .mapping.force_map import ForceMap, check_force_map
from .topology import CGTopology, atom_label
from .trajectory import Trajectory
from .units import strip


def map_trajectory(
    trajectory: Trajectory,
    mapping: Mapping,
    *,
    temperature: Any,
    force_map: str | ForceMap = "optimal",
    constraints: Any = "find",
    periodic: bool = True,
    bias: str = "",
    output: str | Path | None = None,
    chunk: int = 2000,
) -> CGDataset:
    """Map a trajectory, and its forces if it has any, to a dataset.

    Reads the trajectory a chunk at a time, and up to three times where forces are mapped: to find
    constraints, to gather force statistics, and to map.

    Args:
        trajectory: from `read_trajectory`.
        mapping: the position map.
        temperature: K, of the physical ensemble that the frames (reweighted) represent.
        force_map: a name in `FORCE_MAPS`, or a `ForceMap` of your own, which is checked.
        constraints: pairs of atoms, an OpenMM System or its XML file, or ``"find"``: look for
            distances that never change.
        periodic: keep the trajectory's box, so that the model takes minimum images. False: treat
            a whole molecule as isolated, e.g. a solute whose solvent is averaged out.
        bias: what the run was biased by, in words; travels with the dataset and its models.
        output: HDF5 file to write; also returned. None: in memory only.
        chunk: frames read at a time.

    Raises:
        InputError: if the mapping does not fit the topology, or the force map is inconsistent.
    """
    temperature = strip(temperature, "kelvin", what="temperature", positive=True)
    if isinstance(force_map, str):
        FORCE_MAPS[force_map]  # a name that is not there is told before the data are read
    if output is not None:
        require_writable(output)
    top = trajectory.topology
    labels = tuple(atom_label(top, a) for a in range(top.n_atoms))
    if labels != mapping.atom_labels:
        raise InputError(
            f"the mapping was made for {mapping.n_atoms} atoms "
            f"({', '.join(mapping.atom_labels[:3])}, ...), the trajectory has {len(labels)} "
            f"({', '.join(labels[:3])}, ...); make the mapping from the trajectory's topology"
        )
    fitted = None
    if trajectory.has_forces:
        pairs = _constraint_pairs(trajectory, constraints, chunk)
        fitted = _fit_force_map(trajectory, mapping, force_map, pairs, chunk)
    provenance = _describe(mapping, fitted)
    files = list(dict.fromkeys(s for s in trajectory.sources if s))
    names = [Path(s).name for s in files]
    sources = {
        n if names.count(n) == 1 else s: sha256(s) for n, s in zip(names, files, strict=True)
    }
    parts = _mapped_chunks(trajectory, mapping, fitted, periodic, chunk)
    if output is not None:
        with DatasetWriter(output, mapping.topology, temperature) as writer:
            writer.describe(provenance, sources, bias)
            for part in parts:
                # Checks each chunk; a bad frame leaves no file behind.
                writer.add(CGDataset(topology=mapping.topology, temperature=temperature, **part))
        return read_dataset(output)
    whole = list(parts)
    arrays: dict[str, Any] = {
        n: np.concatenate([p[n] for p in whole]) for n in whole[0] if n in PER_FRAME
    }
    return CGDataset(
        topology=mapping.topology,
        temperature=temperature,
        mapping=provenance,
        sources=sources,
        bias=bias,
        **arrays,
    )


def _mapped_chunks(
    trajectory: Trajectory,
    mapping: Mapping,
    force_map: ForceMap | None,
    periodic: bool,
    chunk: int,
) -> Iterator[dict[str, Any]]:
    """Yield the mapped arrays of each chunk, and the number of its first frame."""
    start = 0
    for frames in trajectory.chunks(chunk):
        mapped: dict[str, Any] = {
            "first_frame": start,
            "positions": mapping.map_positions(frames.positions).astype(np.float32),
        }
        if force_map is not None and frames.forces is not None:
            mapped["forces"] = force_map.map_forces(frames.forces, frames.positions).astype(
                np.float32
            )
        if frames.box is not None:
            _require_whole_beads(frames.positions, frames.box, mapping, start)
            if periodic:
                mapped["box"] = frames.box.astype(np.float32)
            else:
                _require_whole_molecule(mapped["positions"], frames.box, mapping.topology, start)
        for name in ("weights", "bias_energy"):
            if getattr(frames, name) is not None:
                mapped[name] = getattr(frames, name)
        yield mapped
        start += len(frames)


def _require_whole_beads(
    positions: np.ndarray, box: np.ndarray, mapping: Mapping, first_frame: int
) -> None:
    """Refuse beads whose atoms lie on two sides of a periodic boundary: their mean is nowhere."""
    if mapping.is_slice:
        return
    half = 0.5 * np.abs(np.diagonal(box, axis1=1, axis2=2))
    for bead in range(len(mapping.topology)):
        atoms = mapping.matrix[[bead]].indices
        spread = np.ptp(positions[:, atoms], axis=1)  # zero for a single atom
        if (spread > half).any():
            frame = first_frame + int(np.argmax((spread > half).any(axis=1)))
            raise InputError(
                f"bead {mapping.topology.label(bead)} is torn across the periodic boundary in "
                f"frame {frame}; make molecules whole first (e.g. mdtraj's image_molecules)"
            )


def _require_whole_molecule(
    positions: np.ndarray, box: np.ndarray, topology: CGTopology, first_frame: int
) -> None:
    """Refuse to drop the box where bonded beads lie on two sides of it."""
    half = 0.5 * np.abs(np.diagonal(box, axis1=1, axis2=2))
    for i, j in topology.bonds:
        torn = (np.abs(positions[:, i] - positions[:, j]) > half).any(axis=1)
        if torn.any():
            raise InputError(
                f"beads {topology.label(i)} and {topology.label(j)} are bonded across the "
                f"periodic boundary in frame {first_frame + int(torn.argmax())}, so the box "
                "cannot be left out; make molecules whole first (e.g. mdtraj's image_molecules)"
            )


def _constraint_pairs(
    trajectory: Trajectory, constraints: Any, chunk: int
) -> list[tuple[int, int]]:
    if not isinstance(constraints, str) or constraints != "find":
        if isinstance(constraints, (str, Path)) or hasattr(constraints, "getNumConstraints"):
            return constraints_from_system(constraints)
        return [(int(i), int(j)) for i, j in constraints]
    finder = ConstraintFinder(bonded_neighbours(trajectory.topology))
    for frames in trajectory.chunks(chunk):
        finder.add(frames.positions)
    return finder.constraints()


def _fit_force_map(
    trajectory: Trajectory,
    mapping: Mapping,
    force_map: str | ForceMap,
    pairs: list[tuple[int, int]],
    chunk: int,
) -> ForceMap:
    if isinstance(force_map, ForceMap):
        check_force_map(mapping, force_map.matrix, pairs)
        return force_map
    fit = FORCE_MAPS[force_map](mapping, pairs)
    if fit.uses_frames:
        for frames in trajectory.chunks(chunk):
            if frames.forces is not None:
                fit.add(frames.forces, frames.positions)
    return fit.fit()


def _describe(mapping: Mapping, force_map: ForceMap | None) -> dict[str, Any]:
    """Return the map's provenance, JSON-able: sparse matrices as triplets."""
    described: dict[str, Any] = {
        "name": mapping.name,
        "atoms": list(mapping.atom_labels),
        "position_matrix": triplets(mapping.matrix),
    }
    if force_map is not None:
        described["force_map"] = force_map.describe()
    return described
