"""From an all-atom trajectory to a dataset of beads: `map_trajectory`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import CGDataset, read_dataset
from .dataset_file import PER_FRAME, DatasetWriter
from .errors import InputError
from .files import require_writable
from .formats import FileHashes
from .mapping import FORCE_MAPS
from .mapping.constraints import ConstraintFinder, constraints_from_system
from .mapping.core import Mapping, bonded_neighbours, triplets
from .mapping.force_map import ForceMap, check_force_map
from .mapping.noise import NoisedForceMap, add_noise, smear
from .periodic import WholeMolecules, reduced_boxes, require_near
from .topology import atom_label
from .trajectory import Frames, Trajectory
from .units import strip

#: Frames in which constraints are looked for: bonds that are not constrained vibrate in fewer.
_FIND_IN = 2000


def map_trajectory(
    trajectory: Trajectory,
    mapping: Mapping,
    *,
    temperature: Any,
    force_map: str | ForceMap = "rotation",
    constraints: Any = "find",
    periodic: bool = True,
    noise: Any = None,
    seed: int = 0,
    bias: str = "",
    output: str | Path | None = None,
    chunk: int = 2000,
) -> CGDataset:
    """Map a trajectory, and its forces if it has any, to a dataset.

    Reads the trajectory a chunk at a time: its beginning if constraints are to be found, once
    more for force maps that look at the forces, and once to map.

    Args:
        trajectory: from `read_trajectory`.
        mapping: the position map.
        temperature: K, of the physical ensemble that the frames (reweighted) represent.
        force_map: a name in `FORCE_MAPS`, or a `ForceMap` of your own, which is checked.
        constraints: pairs of atoms, an OpenMM System or its XML file, or ``"find"``: look for
            distances that never change.
        periodic: keep the trajectory's box, so that the model takes minimum images. False: treat
            a whole molecule as isolated, e.g. a solute whose solvent is averaged out.
        noise: standard deviation of Gaussian noise on the beads' positions, nm; the PMF is then
            that of the smeared beads, and forces are less noisy. See `mapping.noise`.
        seed: of the noise.
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
        biased = bool(bias) or not trajectory.beside.isdisjoint({"weights", "bias_energy"})
        fitted = _fit_force_map(
            trajectory, mapping, force_map, pairs, chunk, noise, temperature, biased
        )
    elif noise is not None:
        fitted = smear(mapping, noise, temperature)
    files = list(dict.fromkeys(s for s in trajectory.sources if s))
    names = [Path(s).name for s in files]
    hashes = FileHashes(
        {n if names.count(n) == 1 else s: s for n, s in zip(names, files, strict=True)}
    )
    parts = hashes.beside(_mapped_chunks(trajectory, mapping, fitted, periodic, chunk))
    if isinstance(fitted, NoisedForceMap):
        parts = _smeared(parts, fitted, np.random.default_rng(seed))
    residual = _Residual()
    if output is not None:
        with DatasetWriter(output, mapping.topology, temperature) as writer:
            for part in residual.watch(parts):
                # Checks each chunk; a bad frame leaves no file behind.
                writer.add(CGDataset(topology=mapping.topology, temperature=temperature, **part))
            provenance = describe_mapping(mapping, fitted, residual.mean_square, seed)
            writer.describe(provenance, hashes.result(), bias)
        return read_dataset(output)
    whole = list(residual.watch(parts))
    arrays: dict[str, Any] = {
        n: np.concatenate([p[n] for p in whole]) for n in whole[0] if n in PER_FRAME
    }
    return CGDataset(
        topology=mapping.topology,
        temperature=temperature,
        mapping=describe_mapping(mapping, fitted, residual.mean_square, seed),
        sources=hashes.result(),
        bias=bias,
        **arrays,
    )


class _Residual:
    """Mean square of the mapped forces, while they pass by."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def watch(self, parts: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for part in parts:
            if "forces" in part:
                self._sum += float(np.square(part["forces"], dtype=np.float64).sum())
                self._count += part["forces"].size
            yield part

    @property
    def mean_square(self) -> float | None:
        return self._sum / self._count if self._count else None


def _smeared(
    parts: Iterator[dict[str, Any]], force_map: NoisedForceMap, generator: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Add noise to the positions, and what it does to the forces."""
    for part in parts:
        noise = force_map.draw(part["positions"].shape, generator)
        part["positions"] = (part["positions"] + noise).astype(np.float32)
        if "forces" in part:
            part["forces"] = (part["forces"] + force_map.noise_forces(noise)).astype(np.float32)
        yield part


def _mapped_chunks(
    trajectory: Trajectory,
    mapping: Mapping,
    force_map: ForceMap | None,
    periodic: bool,
    chunk: int,
) -> Iterator[dict[str, Any]]:
    """Yield the mapped arrays of each chunk, and the number of its first frame."""
    start, molecules = 0, None
    for frames in trajectory.chunks(chunk):
        positions, box = frames.positions, frames.box
        if box is not None:
            if molecules is None:
                molecules = _bead_molecules(trajectory.topology, mapping, periodic, force_map)
            positions = molecules.make_whole(positions, box, start)
            _require_whole_beads(positions, box, mapping, molecules, start)
            if not periodic:
                positions = _one_piece(positions, box, mapping, molecules, start)
        mapped: dict[str, Any] = {
            "first_frame": start,
            "positions": mapping.map_positions(positions).astype(np.float32, copy=False),
        }
        if force_map is not None and frames.forces is not None:
            mapped["forces"] = force_map.map_forces(frames.forces, positions).astype(np.float32)
        if box is not None and periodic:
            mapped["box"] = reduced_boxes(box, start).astype(np.float32)
        for name in ("weights", "bias_energy"):
            if getattr(frames, name) is not None:
                mapped[name] = getattr(frames, name)
        yield mapped
        start += len(frames)


def _bead_molecules(
    top: Any, mapping: Mapping, periodic: bool, force_map: ForceMap | None
) -> WholeMolecules:
    """Return the molecules that must be whole before they are mapped.

    In a box a kept atom may lie anywhere, since the model takes minimum images; a bead of several
    atoms may not. Without it all beads must be in one piece. A force map may look at all atoms.
    """
    matrix = mapping.matrix
    several = np.repeat(np.diff(matrix.indptr) > 1, np.diff(matrix.indptr))
    atoms = matrix.indices[several] if periodic else matrix.indices
    return WholeMolecules(top, atoms, others=force_map is not None)


def _require_whole_beads(
    positions: np.ndarray,
    box: np.ndarray,
    mapping: Mapping,
    molecules: WholeMolecules,
    first_frame: int,
) -> None:
    """Refuse beads of atoms on two sides of a periodic boundary that no bonds hold together."""
    atoms = np.split(mapping.matrix.indices, mapping.matrix.indptr[1:-1])
    for bead in molecules.loose(atoms):
        what = f"bead {mapping.topology.label(bead)} is"
        require_near(positions, atoms[bead], box, what, first_frame)


def _one_piece(
    positions: np.ndarray,
    box: np.ndarray,
    mapping: Mapping,
    molecules: WholeMolecules,
    first_frame: int,
) -> np.ndarray:
    """Return positions from which the box can be left out: no bead needs another's image."""
    if molecules.bonds_are_missing():
        require_near(positions, mapping.matrix.indices, box, "beads are", first_frame)
        return positions
    return molecules.bring_together(positions, box)


def _constraint_pairs(
    trajectory: Trajectory, constraints: Any, chunk: int
) -> list[tuple[int, int]]:
    if not isinstance(constraints, str) or constraints != "find":
        if isinstance(constraints, (str, Path)) or hasattr(constraints, "getNumConstraints"):
            return constraints_from_system(constraints)
        return [(int(i), int(j)) for i, j in constraints]
    finder = ConstraintFinder(bonded_neighbours(trajectory.topology))
    for frames in _whole_frames(trajectory, chunk):
        finder.add(frames.positions)
        if finder.frames >= _FIND_IN:
            break
    return finder.constraints()


def _whole_frames(trajectory: Trajectory, chunk: int) -> Iterator[Frames]:
    """Yield frames with molecules whole."""
    start, molecules = 0, None
    for frames in trajectory.chunks(chunk):
        if frames.box is not None:
            molecules = molecules or WholeMolecules(trajectory.topology)
            positions = molecules.make_whole(frames.positions, frames.box, start)
            frames = replace(frames, positions=positions)
        start += len(frames)
        yield frames


def _fit_force_map(
    trajectory: Trajectory,
    mapping: Mapping,
    force_map: str | ForceMap,
    pairs: list[tuple[int, int]],
    chunk: int,
    noise: Any,
    temperature: float,
    biased: bool,
) -> Any:
    if not isinstance(force_map, str):
        check_force_map(mapping, force_map.matrix, pairs)
        if noise is not None:
            raise InputError("noise goes with force maps by name; leave noise or force_map out")
        return force_map
    fit = FORCE_MAPS[force_map](mapping, pairs)
    # Part of the best noised map is kT times the gradient of ln p of the frames themselves.
    if noise is not None and force_map == "optimal" and biased:
        raise InputError(
            "with noise, the optimal force map also learns from where the frames are, and these "
            "frames are biased; use force_map='rotation', which does not, or unbiased frames"
        )
    if fit.uses_frames:
        for frames in _whole_frames(trajectory, chunk):
            if frames.forces is not None:
                fit.add(frames.forces, frames.positions)
    return fit.fit() if noise is None else add_noise(fit, mapping, noise, temperature)


def describe_mapping(
    mapping: Mapping, force_map: Any = None, mean_square: float | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return the map's provenance, JSON-able: what `CGDataset.mapping` holds.

    Args:
        mapping: the position map.
        force_map: that of the forces; None if there are none.
        mean_square: of the mapped forces, per component, (kJ/mol/nm)^2.
        seed: of the noise.
    """
    described: dict[str, Any] = {
        "name": mapping.name,
        "atoms": list(mapping.atom_labels),
        "position_matrix": triplets(mapping.matrix),
    }
    if force_map is not None and (mean_square is not None):
        described["force_map"] = {**force_map.describe(), "mean_square": mean_square}
    if isinstance(force_map, NoisedForceMap):
        described["noise"] = {"kernel": "gaussian", "sigma_nm": force_map.sigma, "seed": seed}
    return described
