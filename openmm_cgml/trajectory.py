"""All-atom trajectories with forces, weights and bias energies beside them, read in chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import require_file
from .formats import BESIDE, Source, open_file, read_array, read_positions, unit_cells
from .periodic import require_boxes
from .topology import atom_label, read_topology
from .units import FORCE_UNITS, LENGTH_UNITS, is_quantity, strip_array, unit_factor


@dataclass(frozen=True, eq=False)
class Frames:
    """A chunk of consecutive all-atom frames.

    Attributes:
        positions: (frames, atoms, 3), nm, float32 or float64 as they are in the file; do not
            write to them, they may be a view of the array that was given.
        forces: (frames, atoms, 3), kJ/mol/nm, of the unbiased potential; None if unknown.
        weights: (frames,), statistical weights; None if uniform.
        bias_energy: (frames,), kJ/mol; None if unbiased.
        box: (frames, 3, 3) box vectors, nm; None if not periodic.
    """

    positions: np.ndarray
    forces: np.ndarray | None = None
    weights: np.ndarray | None = None
    bias_energy: np.ndarray | None = None
    box: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A trajectory on disk (or in memory) with its topology; iterate `chunks`.

    Make one with `read_trajectory`.

    Attributes:
        topology: mdtraj.Topology of all atoms.
    """

    topology: Any
    _sources: tuple[Source, ...]
    _given: tuple[Source, ...]
    _length_factor: float
    _force_factor: float

    @property
    def sources(self) -> tuple[str, ...]:
        """The files of positions and of what is beside them, for provenance ("" for arrays)."""
        return tuple(source.name for source in (*self._sources, *self._given))

    @property
    def beside(self) -> set[str]:
        """What travels with the positions: ``"forces"``, ``"weights"``, ``"bias_energy"``, ..."""
        return {name for source in (*self._given, self._sources[0]) for name in source.beside}

    @property
    def has_forces(self) -> bool:
        """Whether forces travel with the frames."""
        return "forces" in self.beside

    def chunks(self, size: int = 2000) -> Iterator[Frames]:
        """Yield the frames in order, at most `size` at a time.

        Raises:
            InputError: if a file is damaged or cut short, holds another number of atoms than the
                topology, has non-finite values or impossible boxes, or forces and positions
                differ in length.
        """
        if size < 1:
            raise InputError(f"chunks of {size} frames were asked for; give at least 1")
        start = 0
        first: set[str] = set()
        for source in self._sources:
            begin = start
            for positions, box in read_positions(source, self.topology, size):
                chunk = self._assemble(source, positions, box, begin, start)
                present = {name for name in BESIDE if getattr(chunk, name) is not None}
                if start == 0:
                    first = present
                if present != first:
                    odd = sorted(present ^ first)[0]
                    verb = "has" if odd in present else "lacks"
                    if source is self._sources[0]:
                        raise InputError(
                            f"{source.label} {verb} {odd} from frame {start} on, unlike its first "
                            "frames; give frames that all have it, or none"
                        )
                    raise InputError(
                        f"{source.label} {verb} {odd}, unlike {self._sources[0].label}; "
                        "give files that hold the same"
                    )
                start += len(chunk)
                yield chunk
            _require_length(source, start - begin, source.label)
        if start == 0:
            raise InputError(f"{self._label()} holds no frames; check that the run wrote any")
        for given in self._given:
            _require_length(given, start, self._label())

    def _label(self) -> str:
        return ", ".join(s.name for s in self._sources if s.name) or "the position array"

    def _assemble(
        self, source: Source, positions: Any, box: Any, begin: int, start: int
    ) -> Frames:
        """Return a chunk; `begin` and `start` are the first frames of its file and of itself."""
        where, frames = source.label, len(positions)
        _require_shape(positions, "positions", where, self.topology)
        positions = np.asarray(positions)
        if positions.dtype not in (np.float32, np.float64):
            positions = positions.astype(np.float64)
        if self._length_factor != 1:
            positions = positions * self._length_factor
        _require_finite(positions, f"positions of {where}", start, self.topology)
        if start == 0:
            _check_length_unit(positions[0], self.topology, where)
        factors = {"forces": self._force_factor, "box": self._length_factor}
        beside: dict[str, np.ndarray] = {}
        if box is not None:
            beside["box"] = np.asarray(box, dtype=np.float64) * self._length_factor
        for holder, offset in ((source, begin), *((given, 0) for given in self._given)):
            for name, values in holder.beside.items():
                part = np.asarray(values[start - offset : start - offset + frames], np.float64)
                what = f"{name} of {holder.name}" if holder.name else name
                if len(part) < frames:
                    at_least = f"{start - offset + frames} or more"
                    raise InputError(_unequal(what, len(values), where, at_least))
                _require_finite(part, what, start, self.topology)
                factor = factors.get(name, 1.0)
                beside[name] = part if factor == 1 else part * factor
        if "box" in beside:
            require_boxes(beside["box"], f"box of {where}", start)
        return Frames(positions=positions, **beside)


def read_trajectory(
    trajectory: Any,
    top: Any = None,
    forces: Any = None,
    *,
    weights: Any = None,
    bias_energy: Any = None,
    length_unit: str = "nm",
    force_unit: str = "kJ/mol/nm",
) -> Trajectory:
    """Open an all-atom trajectory for reading in chunks.

    Args:
        trajectory: a file or a list of files (.dcd, .xtc, .trr, .nc, .pdb, MDTraj .h5, .npz with
            a ``positions`` array, .npy), an mdtraj.Trajectory, or an array (frames, atoms, 3).
            An .npz or .h5 file may hold ``forces``, ``weights``, ``bias_energy`` and ``box`` too.
        top: topology, anything that `read_topology` takes; may be left out where `trajectory`
            carries one (mdtraj.Trajectory, .pdb, .h5).
        forces: unbiased forces, same frames: .npy, .npz (array ``forces``) or an array; they
            replace those of the trajectory's own files.
        weights: (frames,) statistical weights, likewise.
        bias_energy: (frames,) bias energy in kJ/mol, likewise.
        length_unit: unit of positions (and boxes) in .npz, .npy and arrays: nm or angstrom. Files
            whose format fixes the unit (.dcd, .xtc, ...) are converted on their own.
        force_unit: unit of the forces: kJ/mol/nm, kcal/mol/angstrom, ...

    Raises:
        InputError: if a file is missing or unreadable, a unit is unknown, or weights are negative
            or all zero.
    """
    import mdtraj

    length_factor = unit_factor(LENGTH_UNITS, length_unit, "length")
    force_factor = unit_factor(FORCE_UNITS, force_unit, "force")
    beside = {"forces": forces, "weights": weights, "bias_energy": bias_energy}
    given = [read_array(v, name) for name, v in beside.items() if v is not None]
    replaced = {name for name, v in beside.items() if v is not None}
    sources = []
    for one in trajectory if isinstance(trajectory, (list, tuple)) else [trajectory]:
        fixes_unit = is_quantity(one)
        if isinstance(one, mdtraj.Trajectory):
            top = one.topology if top is None else top
            cells = unit_cells(one)
            box = {} if cells is None else {"box": cells}
            source, fixes_unit = Source("", one.xyz, box), True
        elif isinstance(one, (str, Path)):
            path = require_file(one, "trajectory")
            if top is None and path.suffix.lower() in (".pdb", ".h5", ".hdf5"):
                top = path
            source = open_file(path)
            fixes_unit = path.suffix.lower() not in (".npz", ".npy")
        else:
            source = Source("", strip_array(one, "nanometer", what="the position array"), {})
        if fixes_unit and length_unit != "nm":
            raise InputError(
                f"{source.name or 'the trajectory'} fixes its length unit; leave length_unit out"
            )
        kept = {name: v for name, v in source.beside.items() if name not in replaced}
        sources.append(Source(source.name, source.positions, kept))
    if not sources:
        raise InputError("the list of trajectory files is empty; give at least one")
    if is_quantity(forces) and force_unit != "kJ/mol/nm":
        raise InputError("forces carry their own unit; leave force_unit out")
    if top is None:
        raise InputError(
            f"{sources[0].name or 'the trajectory'} carries no topology; give one (top)"
        )
    topology = read_topology(top)
    for source in [*sources, *given]:
        arrays = {"positions": source.positions, **source.beside}
        for name, values in arrays.items():
            if values is not None and not isinstance(values, Path):
                _require_shape(values, name, source.name, topology)
    _check_weights([source for source in [*sources, *given] if "weights" in source.beside])
    return Trajectory(topology, tuple(sources), tuple(given), length_factor, force_factor)


def _require_shape(values: Any, name: str, where: str, top: Any) -> None:
    atoms = top.n_atoms
    frame = {"positions": (atoms, 3), "forces": (atoms, 3), "box": (3, 3)}.get(name, ())
    shape = tuple(values.shape)
    if shape and shape[1:] == frame:
        return
    what = f"{name} of {where}" if where else name
    if len(shape) == 3 and frame == (atoms, 3) and shape[2] == 3:
        raise InputError(
            f"{what} have {shape[1]} atoms a frame but the topology has {atoms}; "
            "give the topology that they were written with"
        )
    wanted = ", ".join(["frames", *map(str, frame)])
    raise InputError(f"{what} have shape {shape}; give ({wanted})")


def _require_length(source: Source, frames: int, other: str) -> None:
    for name, values in source.beside.items():
        if len(values) != frames:
            what = f"{name} of {source.name}" if source.name else name
            raise InputError(_unequal(what, len(values), other, frames))


def _unequal(what: str, frames: int, other: str, others: Any) -> str:
    return (
        f"{what}: {frames} frames, but {others} in {other}; "
        "they must belong to the same frames, one to one"
    )


def _check_weights(sources: list[Source]) -> None:
    """Refuse weights that no frame could be drawn by, before anything long begins."""
    total, start = 0.0, 0
    for source in sources:
        what = f"weights of {source.name}" if source.name else "weights"
        weights = np.asarray(source.beside["weights"][:], dtype=np.float64)
        if (weights < 0).any():
            frame = int(np.argmax(weights < 0))
            raise InputError(
                f"{what}: frame {start + frame} has {weights[frame]:.3g}; weights are "
                "probabilities up to a factor, none may be negative"
            )
        total, start = total + float(weights.sum()), start + len(weights)
    if sources and total == 0:
        raise InputError("the weights are all zero; give the weights of these frames, or none")


def _require_finite(values: np.ndarray, what: str, start: int, top: Any) -> None:
    if np.isfinite(values).all():
        return
    index = np.argwhere(~np.isfinite(values))[0]
    per_atom = values.shape[1:] == (top.n_atoms, 3)
    atom = f", atom {atom_label(top, index[1])}" if per_atom else ""
    raise InputError(
        f"{what}: not finite in frame {start + int(index[0])}{atom}; "
        "remove the frame, or repeat the run from before it"
    )


def _check_length_unit(positions: np.ndarray, top: Any, where: str) -> None:
    """Refuse positions whose chemical bonds have impossible lengths: the wrong unit.

    Bonds broken across a periodic boundary are few, so the median is looked at.
    """
    bonds = [(a.index, b.index) for a, b in top.bonds]
    if not bonds:
        return
    i, j = np.array(bonds).T
    length = float(np.median(np.linalg.norm(positions[i] - positions[j], axis=-1)))
    if not 0.05 < length < 0.5:
        hint = "angstrom" if 0.5 <= length < 5 else "nm"
        raise InputError(
            f"{where}: the median bond is {length:.3g} nm long, chemical bonds are 0.1-0.2 nm; "
            f"the unit is wrong (length unit {hint}?) or the atoms are in another order"
        )
