"""All-atom trajectories with forces, weights and bias energies beside them, read in chunks."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import require_file
from .topology import read_topology
from .units import FORCE_UNITS, LENGTH_UNITS, unit_factor

_MDTRAJ_FORMATS = (".dcd", ".xtc", ".trr", ".nc", ".pdb")


@dataclass(frozen=True)
class Frames:
    """A chunk of consecutive all-atom frames.

    Attributes:
        positions: (frames, atoms, 3), nm.
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


@dataclass(frozen=True)
class Trajectory:
    """A trajectory on disk (or in memory) with its topology; iterate `chunks`.

    Make one with `read_trajectory`.

    Attributes:
        topology: mdtraj.Topology of all atoms.
        sources: the position files, for provenance ("" where arrays were given).
    """

    topology: Any
    sources: tuple[str, ...]
    _positions: "tuple[Any, ...]"
    _extra: "dict[str, Any]"
    _length_factor: float
    _force_factor: float

    @property
    def has_forces(self) -> bool:
        """Whether forces travel with the frames."""
        return "forces" in self._extra

    def chunks(self, size: int = 2000) -> Iterator[Frames]:
        """Yield the frames in order, at most `size` at a time.

        Raises:
            InputError: if a file is damaged or cut short, holds another number of atoms than the
                topology, has non-finite values, or forces and positions differ in length.
        """
        start = 0
        for source, name in zip(self._positions, self.sources, strict=True):
            for positions, box in _read_positions(source, name, self.topology, size):
                chunk = self._assemble(positions, box, start, name)
                start += len(chunk)
                yield chunk
        if start == 0:
            raise InputError(f"{self._label()} holds no frames; check that the run wrote any")
        for key, values in self._extra.items():
            if len(values) != start:
                raise InputError(
                    f"{key} has {len(values)} frames but {self._label()} has {start}; "
                    "they must belong to the same frames, one to one"
                )

    def _label(self) -> str:
        return ", ".join(s for s in self.sources if s) or "the position array"

    def _assemble(self, positions: Any, box: Any, start: int, name: str) -> Frames:
        atoms = self.topology.n_atoms
        where = name or "the position array"
        if positions.ndim != 3 or positions.shape[1:] != (atoms, 3):
            found = positions.shape[1] if positions.ndim == 3 else positions.shape
            raise InputError(
                f"{where} has {found} atoms a frame but the topology has {atoms}; "
                "give the topology that the trajectory was written with"
            )
        stop = start + len(positions)
        positions = np.asarray(positions, dtype=np.float64) * self._length_factor
        _require_finite(positions, f"positions of {where}", start, self.topology)
        if start == 0:
            _check_length_unit(positions[0], self.topology, where)
        extra: dict[str, np.ndarray] = {}
        for key, values in self._extra.items():
            if len(values) < stop:
                raise InputError(
                    f"{key} has {len(values)} frames but {self._label()} has more "
                    f"({stop} or above); they must belong to the same frames, one to one"
                )
            part = np.asarray(values[start:stop], dtype=np.float64)
            if key == "forces":
                part = part * self._force_factor
            _require_finite(part, key, start, self.topology)
            extra[key] = part
        if box is not None and "box" not in extra:
            extra["box"] = np.asarray(box, dtype=np.float64) * self._length_factor
        return Frames(positions=positions, **extra)


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
        top: topology, anything that `read_topology` takes; may be left out where `trajectory`
            carries one (mdtraj.Trajectory, .pdb, .h5).
        forces: unbiased forces, same frames: .npy, .npz (array ``forces``) or an array. An .npz
            or .h5 trajectory that holds ``forces`` provides them itself.
        weights: (frames,) statistical weights, likewise.
        bias_energy: (frames,) bias energy in kJ/mol, likewise.
        length_unit: unit of positions in .npz, .npy and arrays: nm or angstrom. Files whose
            format fixes the unit (.dcd, .xtc, ...) are converted on their own.
        force_unit: unit of the forces: kJ/mol/nm, kcal/mol/angstrom, ...

    Raises:
        InputError: if a file is missing or unreadable, or a unit is unknown.
    """
    import mdtraj

    length_factor = unit_factor(LENGTH_UNITS, length_unit, "length")
    force_factor = unit_factor(FORCE_UNITS, force_unit, "force")
    sources = trajectory if isinstance(trajectory, (list, tuple)) else [trajectory]
    positions: list[Any] = []
    names: list[str] = []
    extra: dict[str, Any] = {}
    for source in sources:
        if isinstance(source, mdtraj.Trajectory):
            top = source.topology if top is None else top
            names.append("")
            positions.append(source.xyz)
            if source.unitcell_vectors is not None:
                extra["box"] = source.unitcell_vectors
        elif isinstance(source, (str, Path)):
            path = require_file(source, "trajectory")
            names.append(str(path))
            arrays = _open_arrays(path)
            if arrays is None:
                positions.append(path)
            else:
                positions.append(arrays.pop("positions"))
                if len(sources) == 1:
                    extra.update(arrays)
            if top is None and path.suffix.lower() in (".pdb", ".h5", ".hdf5"):
                top = path
        else:
            names.append("")
            positions.append(np.asarray(source))
        if length_factor != 1.0 and not isinstance(positions[-1], np.ndarray):
            raise InputError(
                f"{names[-1]} has a format that fixes its length unit; leave length_unit out"
            )
    if top is None:
        raise InputError(f"{names[0] or 'the trajectory'} carries no topology; give one with top=")
    for key, given in (("forces", forces), ("weights", weights), ("bias_energy", bias_energy)):
        if given is not None:
            extra[key] = _read_array(given, key)
    return Trajectory(
        read_topology(top), tuple(names), tuple(positions), extra, length_factor, force_factor
    )


def _open_arrays(path: Path) -> dict[str, Any] | None:
    """Return the arrays of an array-like trajectory file, or None for mdtraj's formats."""
    suffix = path.suffix.lower()
    if suffix in _MDTRAJ_FORMATS:
        return None
    known = ("positions", "forces", "weights", "bias_energy", "box")
    try:
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as handle:
                found = {key: handle[key] for key in known if key in handle.files}
                if "positions" not in found:
                    raise InputError(
                        f"{path} has no array 'positions' (it has {', '.join(handle.files)}); "
                        "rename the array"
                    )
            return found
        if suffix == ".npy":
            return {"positions": np.load(path, mmap_mode="r", allow_pickle=False)}
        if suffix in (".h5", ".hdf5"):
            return _read_mdtraj_hdf5(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot read {path}: {error}; it is damaged or cut short, make it again"
        ) from error
    raise InputError(
        f"trajectory {path} has an unknown format {suffix!r}; give "
        f"{', '.join(_MDTRAJ_FORMATS)}, .h5, .npz or .npy"
    )


def _read_mdtraj_hdf5(path: Path) -> dict[str, Any]:
    import h5py
    import mdtraj.utils

    with h5py.File(path, "r") as handle:
        if "coordinates" not in handle:
            raise InputError(f"{path} is not an MDTraj HDF5 trajectory (no 'coordinates')")
        found = {"positions": np.asarray(handle["coordinates"])}
        if "cell_lengths" in handle:
            vectors = mdtraj.utils.lengths_and_angles_to_box_vectors(
                *np.asarray(handle["cell_lengths"]).T, *np.asarray(handle["cell_angles"]).T
            )
            found["box"] = np.stack(vectors, axis=1)
        if "forces" in handle:
            found["forces"] = np.asarray(handle["forces"])
    return found


def _read_array(source: Any, key: str) -> np.ndarray:
    if not isinstance(source, (str, Path)):
        return np.asarray(source)
    path = require_file(source, key)
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if key not in loaded.files:
                raise InputError(
                    f"{path} has no array {key!r} (it has {', '.join(loaded.files)}); rename it"
                )
            return loaded[key]
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot read {key} from {path}: {error}; give a .npy or .npz file"
        ) from error


def _read_positions(
    source: Any, name: str, top: Any, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    import mdtraj

    if isinstance(source, np.ndarray):
        for start in range(0, len(source), size):
            yield source[start : start + size], None
        return
    if source.suffix.lower() == ".dcd":
        _require_whole_dcd(source)
    with_top = {} if source.suffix.lower() == ".pdb" else {"top": top}
    chunks = iter(mdtraj.iterload(str(source), chunk=size, **with_top))
    while True:
        try:
            chunk = next(chunks)
        except StopIteration:
            return
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if "atoms" in reason or "shape" in reason:
                raise InputError(
                    f"{name} does not fit the topology of {top.n_atoms} atoms ({reason}); "
                    "give the topology that it was written with"
                ) from error
            raise InputError(
                f"{name} is damaged or cut short ({reason}); "
                "make it again, or cut it to whole frames"
            ) from error
        if chunk.n_frames == 0:
            return
        yield chunk.xyz, chunk.unitcell_vectors


def _require_whole_dcd(path: Path) -> None:
    """Refuse a DCD that holds fewer frames than its header says or ends inside a frame.

    DCD readers (VMD's plugin, in mdtraj too) silently stop at the last whole frame.
    """
    size = path.stat().st_size
    with open(path, "rb") as handle:
        head = handle.read(92)
        order = "<" if head[:4] == struct.pack("<i", 84) else ">"
        if len(head) < 92 or struct.unpack(order + "i", head[:4])[0] != 84:
            raise InputError(f"{path} is not a DCD file, or cut short; make it again")
        promised, has_cell = (
            struct.unpack(order + "i", head[8:12])[0],
            struct.unpack(order + "i", head[48:52])[0],
        )
        title = struct.unpack(order + "i", handle.read(4))[0]
        handle.seek(title + 4 + 4, 1)
        atoms = struct.unpack(order + "i", handle.read(4))[0]
        handle.seek(4, 1)
        header = handle.tell()
    frame = 3 * (4 * atoms + 8) + (56 if has_cell else 0)
    held, rest = divmod(size - header, frame)
    if rest or held < promised:
        raise InputError(
            f"{path} is cut short: its header says {promised} frames, it holds {held}"
            + (" and a part of one" if rest else "")
            + "; make it again, or cut it to whole frames"
        )


def _require_finite(values: np.ndarray, what: str, start: int, top: Any) -> None:
    if np.isfinite(values).all():
        return
    index = np.argwhere(~np.isfinite(values))[0]
    atom = f", atom {top.atom(int(index[1]))}" if len(index) > 1 else ""
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
            f"the unit is wrong (length_unit={hint!r}?) or the atoms are in another order"
        )
