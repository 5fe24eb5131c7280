"""Datasets from other programs' files and arrays, with units told, and out to .npz again."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .archives import load_arrays
from .collection import DatasetCollection
from .dataset import CGDataset
from .dataset_file import open_dataset
from .dataset_info import virial_ratio
from .errors import InputError, first_line
from .files import atomic_path, require_file, sha256
from .formats import open_file, read_positions
from .hdf5_files import open_hdf5_file
from .merging import merge
from .registry import Registry
from .texts import parse_json
from .topology import CGTopology, atom_masses, read_topology
from .units import FORCE_UNITS, LENGTH_UNITS, is_quantity, strip_array, unit_factor

#: Factors that turn a named unit of energy into kJ/mol.
ENERGY_UNITS = {"kJ/mol": 1.0, "kcal/mol": 4.184}

#: Name -> function (paths, Options) -> CGDataset or DatasetCollection.
FORMATS = Registry(
    "format",
    {
        "npz": "openmm_cgml.convert:read_npz",
        "mdtraj": "openmm_cgml.convert:read_mdtraj",
        "cgnet": "openmm_cgml.convert:read_cgnet",
        "mlcg": "openmm_cgml.convert:read_mlcg",
    },
)

# Beads next to each other, nm: two atoms of one bond, or two groups of a dozen atoms.
_NEIGHBOURS = (0.08, 1.2)

_COORDINATES = ("coordinates", "coords", "cg_coords", "positions", "R", "pos")
_FORCES = ("forces", "Fs", "F", "cg_forces")
_WEIGHTS = ("weights", "subsampling_weights")


def from_arrays(
    positions: Any,
    topology: CGTopology,
    temperature: Any,
    *,
    length_unit: str | None = None,
    forces: Any = None,
    force_unit: str | None = None,
    bias_energy: Any = None,
    energy_unit: str | None = None,
    weights: Any = None,
    box: Any = None,
    trajectory: Any = None,
    variables: Any = None,
    variable_names: Sequence[str] = (),
    mapping: dict[str, Any] | None = None,
    sources: dict[str, str] | None = None,
    bias: str = "",
    check: bool = True,
) -> CGDataset:
    """Return a dataset of arrays, in units that are told: there is no default for them.

    Args:
        positions: (frames, beads, 3).
        topology: the beads; see `bead_topology`.
        temperature: K.
        length_unit: of positions and box: nm, angstrom; left out for an openmm or pint quantity.
        forces: (frames, beads, 3), mapped, total and of the unbiased potential.
        force_unit: kJ/mol/nm, kcal/mol/angstrom, ...; with forces.
        bias_energy: (frames,).
        energy_unit: kJ/mol or kcal/mol; with bias energies.
        weights: (frames,).
        box: (frames, 3, 3), or (3, 3) for all frames.
        trajectory: (frames,) whole numbers; see `CGDataset`.
        variables, variable_names: (frames, variables), nm or radians; see `CGDataset`.
        mapping, sources, bias: provenance; see `CGDataset`.
        check: refuse neighbouring beads at impossible distances, which tell a wrong unit, and
            warn of forces whose virial does not fit the temperature.

    Raises:
        InputError: if a unit is missing or unknown, beads are at impossible distances, or as
            `CGDataset`.
    """
    lengths = _factor(positions, LENGTH_UNITS, length_unit, "length", "positions")
    arrays: dict[str, Any] = {
        "positions": lengths * _numbers(positions, "nanometer", "positions"),
        "weights": None if weights is None else _numbers(weights, "dimensionless", "weights"),
        "trajectory": None if trajectory is None else np.asarray(trajectory),
        "variables": None if variables is None else np.asarray(variables, dtype=np.float64),
    }
    if box is not None:
        own = 1.0 if is_quantity(box) else lengths
        vectors = own * _numbers(box, "nanometer", "box")
        if vectors.ndim == 2:
            vectors = np.broadcast_to(vectors, (len(arrays["positions"]), *vectors.shape))
        arrays["box"] = vectors.astype(np.float32)
    if forces is not None:
        factor = _factor(forces, FORCE_UNITS, force_unit, "force", "forces")
        forces = factor * _numbers(forces, "kilojoule/mole/nanometer", "forces")
        arrays["forces"] = forces.astype(np.float32)
    if bias_energy is not None:
        factor = _factor(bias_energy, ENERGY_UNITS, energy_unit, "energy", "bias_energy")
        arrays["bias_energy"] = factor * _numbers(bias_energy, "kilojoule/mole", "bias_energy")
    if check:
        _check_length_unit(arrays["positions"], topology, length_unit)
    arrays["positions"] = arrays["positions"].astype(np.float32)
    dataset = CGDataset(
        topology=topology,
        temperature=temperature,
        variable_names=tuple(variable_names),
        mapping=mapping or {},
        sources=sources or {},
        bias=bias,
        **arrays,
    )
    if check:
        _check_force_unit(dataset)
    return dataset


def bead_topology(
    source: Any,
    *,
    bonds: Iterable[tuple[int, int]] | str | None = None,
    masses: Sequence[float] | float | None = None,
    types: Sequence[str] | None = None,
) -> CGTopology:
    """Return the topology of beads from what another program has of it.

    Args:
        source: a `CGTopology`, a dataset file, anything that `read_topology` takes whose atoms
            are the beads (a .pdb), or a list of bead names (residue ``BEA1``).
        bonds: pairs of bead numbers, or ``"chain"``: each bead with the next of its chain. They
            are never guessed; None: those of the source.
        masses: Da, one a bead or one for all; None: those of the source, where an atom's element
            tells it.
        types: one a bead; None: those of the source, else the names.

    Raises:
        InputError: if there are no bonds, or a bead has no mass, and none were given.
    """
    top = _source_topology(source, masses, types)
    if isinstance(bonds, str):
        if bonds != "chain":
            raise InputError(f'bonds are {bonds!r}; give pairs of bead numbers, or "chain"')
        chains = top.chain_ids
        bonds = [(i, i + 1) for i in range(len(top) - 1) if chains[i] == chains[i + 1]]
    fields = vars(top) | {"bonds": top.bonds if bonds is None else tuple(map(tuple, bonds))}
    top = CGTopology(**fields)
    if not top.bonds and len(top) > 1:
        raise InputError(
            f"the {len(top)} beads have no bonds ({top.label(0)}, {top.label(1)}, ...); give "
            'pairs (bonds), or bonds="chain" to join each bead with the next of its chain'
        )
    bonded = {bead for bond in top.bonds for bead in bond}
    alone = [top.label(bead) for bead in range(len(top)) if bead not in bonded]
    if alone and len(top) > 1:
        more = ", ..." if len(alone) > 5 else ""
        warnings.warn(
            f"beads without a bond: {', '.join(alone[:5])}{more}; give bonds if they should have "
            "some",
            stacklevel=2,
        )
    return top


def _source_topology(source: Any, masses: Any, types: Any) -> CGTopology:
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() in (".h5", ".hdf5"):
        with open_dataset(source) as (_, described):
            source = described["topology"]
    if isinstance(source, CGTopology):
        fields = dict(vars(source))
        if masses is not None:
            fields["masses"] = _per_bead(masses, len(source), "masses")
        if types is not None:
            fields["bead_types"] = tuple(map(str, types))
        return CGTopology(**fields)
    if isinstance(source, (list, tuple)) and all(isinstance(name, str) for name in source):
        if masses is None:
            raise InputError("bead names alone do not tell masses; give masses, Da")
        count = len(source)
        return CGTopology(
            tuple(source),
            tuple(map(str, types)) if types is not None else tuple(source),
            ("BEA",) * count, (1,) * count, ("A",) * count, (), _per_bead(masses, count, "masses"),
        )  # fmt: skip
    top = read_topology(source)
    if masses is None:
        known = atom_masses(top)
        for bead, mass in enumerate(known):
            if not mass > 0:
                atom = top.atom(bead)
                raise InputError(
                    f"bead {atom.residue.name}{atom.residue.resSeq}-{atom.name} is no element, so "
                    "its mass is unknown; give masses, Da, one a bead or one for all"
                )
        masses = known
    return CGTopology.from_mdtraj(
        top,
        masses=_per_bead(masses, top.n_atoms, "masses"),
        types=None if types is None else list(map(str, types)),
    )


def _per_bead(values: Any, count: int, what: str) -> tuple[float, ...]:
    array = strip_array(values, "dalton", what=what).astype(float)
    if array.ndim == 0:
        array = np.full(count, float(array))
    if array.shape != (count,):
        raise InputError(f"{what} have shape {array.shape}; give one number or {count}")
    return tuple(array.tolist())


def convert_files(
    paths: Sequence[str | Path] | str | Path,
    format: str,
    *,
    temperature: Any = None,
    length_unit: str | None = None,
    force_unit: str | None = None,
    energy_unit: str | None = None,
    top: Any = None,
    bonds: Iterable[tuple[int, int]] | str | None = None,
    masses: Sequence[float] | float | None = None,
    forces: str | Path | None = None,
    weights: str | Path | None = None,
    check: bool = True,
) -> CGDataset | DatasetCollection:
    """Read another program's files of beads; several are trajectories of one molecule.

    Formats:

    - ``"npz"``: arrays ``positions``, and as they are there ``forces``, ``weights``,
      ``bias_energy``, ``box``, ``trajectory``. Files of `to_npz` hold their units, topology and
      temperature too.
    - ``"mdtraj"``: what mdtraj reads: .h5, .dcd, .xtc, .trr, .nc, .pdb of beads. These fix their
      length unit.
    - ``"cgnet"``: .npy of coordinates with `forces` beside it, or .npz with arrays
      ``coordinates`` or ``coords`` and ``forces`` or ``Fs``.
    - ``"mlcg"``: ``NAME_cg_coords.npy`` with ``NAME_cg_forces.npy``, ``NAME_cg_embeds.npy`` and
      ``NAME_cg_structure.pdb`` beside it, .npz with such arrays, or the HDF5 of metasets, which
      becomes a `DatasetCollection`.

    Args:
        paths: file or files.
        format: a name in `FORMATS`.
        temperature: K.
        length_unit, force_unit, energy_unit: see `from_arrays`; files that do not fix their units
            need them.
        top: the beads; see `bead_topology`. For an HDF5 of several molecules a dictionary of
            them by name.
        bonds, masses: see `bead_topology`.
        forces, weights: .npy files of one array file.
        check: see `from_arrays`.

    Raises:
        InputError: if a file is missing or damaged, lacks an array, or as `from_arrays`.
    """
    listed = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not listed:
        raise InputError("there is no file to convert; give at least one")
    if len(listed) > 1 and (forces is not None or weights is not None):
        raise InputError("forces and weights beside several files; convert them one by one")
    options: dict[str, Any] = {
        "temperature": temperature,
        "length_unit": length_unit,
        "force_unit": force_unit,
        "energy_unit": energy_unit,
        "top": top,
        "bonds": bonds,
        "masses": masses,
        "forces": forces,
        "weights": weights,
        "check": check,
    }
    read: Callable[..., Any] = FORMATS[format]
    found = [read(require_file(path, "file"), **options) for path in listed]
    if len(found) == 1:
        return found[0]
    if any(isinstance(one, DatasetCollection) for one in found):
        raise InputError("files of several molecules cannot be joined; convert them one by one")
    return merge(found)


# ---------------------------------------------------------------- formats


def read_npz(path: Path, **options: Any) -> CGDataset:
    """Read the package's own arrays from .npz; see `convert_files`."""
    arrays = _load(path)
    if "positions" not in arrays:
        raise InputError(
            f"{path} has no array 'positions' (it has {', '.join(arrays) or 'none'}); rename the "
            'array, or choose the format "cgnet" or "mlcg"'
        )
    stored = _stored_provenance(path, arrays)
    for name, kind in (("positions", "length"), ("forces", "force"), ("bias_energy", "energy")):
        unit = stored.get("units", {}).get(name)
        if unit is not None:
            given = options[f"{kind}_unit"]
            if given not in (None, unit):
                raise InputError(f"{path} holds {name} in {unit}, not {given}; leave the unit out")
            options[f"{kind}_unit"] = unit
    if options["top"] is None and "topology" in stored:
        options["top"] = stored["topology"]
    if options["temperature"] is None:
        options["temperature"] = stored.get("temperature")
    own: dict[str, Any] = {
        n: arrays[n] for n in ("weights", "bias_energy", "box", "trajectory") if n in arrays
    }
    if options["weights"] is not None:
        own["weights"] = _array(options["weights"])
    forces = arrays.get("forces") if options["forces"] is None else _array(options["forces"])
    if "variables" in arrays:
        own["variables"] = arrays["variables"]
        own["variable_names"] = tuple(stored.get("variable_names", ()))
    own |= {name: stored[name] for name in ("mapping", "bias", "sources") if name in stored}
    return _assemble(path, arrays["positions"], forces, options, **own)


def read_mdtraj(path: Path, **options: Any) -> CGDataset:
    """Read a trajectory of beads in a format of mdtraj's; see `convert_files`."""
    if options["length_unit"] not in (None, "nm"):
        raise InputError(f"{path} fixes its length unit; leave length_unit out")
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        raise InputError(f'{path} is no mdtraj trajectory; choose the format "npz" or "cgnet"')
    if options["top"] is None:
        if suffix not in (".pdb", ".h5", ".hdf5"):
            raise InputError(f"{path} carries no topology; give one (top)")
        options["top"] = read_topology(path)
    options["length_unit"] = "nm"
    source = open_file(path)
    top = options["top"] = _topology(options)
    positions: list[Any] = []
    boxes: list[Any] = []
    for part, vectors in read_positions(source, top.to_mdtraj(), 10_000):
        positions.append(np.asarray(part, dtype=np.float64))
        if vectors is not None:
            boxes.append(vectors)
    box = np.concatenate(boxes) if boxes else source.beside.get("box")
    beside: dict[str, Any] = {n: np.asarray(v[:]) for n, v in source.beside.items() if n != "box"}
    for name in ("forces", "weights"):
        if options[name] is not None:
            beside[name] = _array(options[name])
    if not positions:
        raise InputError(f"{path} holds no frames; check that the run wrote any")
    forces = beside.pop("forces", None)
    return _assemble(path, np.concatenate(positions), forces, options, box=box, **beside)


def read_cgnet(path: Path, **options: Any) -> CGDataset:
    """Read arrays as cgnet's examples have them; see `convert_files`."""
    arrays = {"coordinates": _array(path)} if path.suffix.lower() == ".npy" else _load(path)
    positions = _first_of(path, arrays, _COORDINATES)
    forces = _first_of(path, arrays, _FORCES, needed=False)
    weights = _first_of(path, arrays, _WEIGHTS, needed=False)
    if options["forces"] is not None:
        forces = _array(options["forces"])
    if options["weights"] is not None:
        weights = _array(options["weights"])
    return _assemble(path, positions, forces, options, weights=weights)


def read_mlcg(path: Path, **options: Any) -> CGDataset | DatasetCollection:
    """Read mlcg's arrays, or its HDF5 of metasets; see `convert_files`."""
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _read_metasets(path, options)
    if path.suffix.lower() == ".npz":
        arrays = _load(path)
    else:
        ending = "_cg_coords.npy"
        if not path.name.endswith(ending):
            raise InputError(f"{path} is not named NAME{ending}; give that file, .npz or .h5")
        stem = path.name.removesuffix(ending)
        arrays = {"cg_coords": _array(path)}
        for name in ("cg_forces", "cg_embeds"):
            beside = path.with_name(f"{stem}_{name}.npy")
            if beside.exists():
                arrays[name] = _array(beside)
        structure = path.with_name(f"{stem}_cg_structure.pdb")
        if options["top"] is None and structure.exists():
            options["top"] = structure
    if options["forces"] is not None:
        arrays["cg_forces"] = _array(options["forces"])
    _refuse_delta_forces(path, arrays)
    weights = _first_of(path, arrays, _WEIGHTS, needed=False)
    if options["weights"] is not None:
        weights = _array(options["weights"])
    positions = _first_of(path, arrays, _COORDINATES)
    forces = _first_of(path, arrays, _FORCES, needed=False)
    return _assemble(
        path, positions, forces, options, types=arrays.get("cg_embeds"), weights=weights
    )


def _read_metasets(path: Path, options: dict[str, Any]) -> DatasetCollection:
    """Read every molecule of every metaset; names are METASET:MOLECULE where there are several."""
    import h5py

    tops = options["top"]
    found: dict[str, CGDataset] = {}
    with _readable(path), open_hdf5_file(path) as handle:
        groups = {
            (metaset, molecule): handle[metaset][molecule]
            for metaset in handle
            if isinstance(handle[metaset], h5py.Group)
            for molecule in handle[metaset]
            if isinstance(handle[metaset][molecule], h5py.Group)
        }
        groups = {key: g for key, g in groups.items() if "cg_coords" in g}
        if not groups:
            raise InputError(
                f"{path} has no group METASET/MOLECULE with cg_coords; it is no HDF5 of mlcg's"
            )
        for (metaset, molecule), group in groups.items():
            name = molecule if len({m for m, _ in groups}) == 1 else f"{metaset}:{molecule}"
            arrays = {n: np.asarray(d) for n, d in group.items() if isinstance(d, h5py.Dataset)}
            where = f"{path}, {metaset}/{molecule}"
            _refuse_delta_forces(where, arrays)
            top = tops.get(name) if isinstance(tops, dict) else tops
            own = {**options, "top": top, "forces": None, "weights": None}
            if top is None:
                raise InputError(
                    f"{where} carries no topology; give one for each molecule, by name: top="
                    f"{{{name!r}: ...}}"
                )
            found[name] = _assemble(
                where,
                arrays["cg_coords"],
                _first_of(where, arrays, _FORCES, needed=False),
                own,
                types=group.attrs.get("cg_embeds"),
                weights=_first_of(where, arrays, _WEIGHTS, needed=False),
                box=arrays.get("cell"),
                sources={path.name: sha256(path)},
            )
    return DatasetCollection(found)


def to_npz(dataset: CGDataset, path: str | Path) -> None:
    """Write a dataset as .npz, for programs that read numpy's files; nothing is lost.

    Arrays are named as in the HDF5 file. ``provenance`` is a JSON string with units, topology,
    temperature, mapping, sources and bias, from which ``convert_files(path, "npz")`` makes the
    dataset again.

    Raises:
        InputError: if the file cannot be written.
    """
    names = ("positions", "forces", "weights", "bias_energy", "box", "trajectory", "variables")
    arrays = {n: v for n in names if (v := getattr(dataset, n)) is not None}
    provenance = {
        "units": {"positions": "nm", "forces": "kJ/mol/nm", "bias_energy": "kJ/mol"},
        "topology": dataset.topology.to_json(),
        "temperature": dataset.temperature,
        "mapping": dataset.mapping,
        "sources": dataset.sources,
        "bias": dataset.bias,
        "variable_names": list(dataset.variable_names),
    }
    with atomic_path(path) as partial, open(partial, "wb") as handle:
        np.savez(handle, provenance=np.array(json.dumps(provenance)), **arrays)


# ---------------------------------------------------------------- parts of the readers


def _topology(options: dict[str, Any], types: Any = None) -> CGTopology:
    if options["top"] is None:
        raise InputError(
            "arrays carry no topology; give one (top): a .pdb of the beads, a dataset, or names"
        )
    return bead_topology(
        options["top"], bonds=options["bonds"], masses=options["masses"], types=types
    )


def _assemble(
    where: str | Path,
    positions: Any,
    forces: Any,
    options: dict[str, Any],
    types: Any = None,
    sources: dict[str, str] | None = None,
    **beside: Any,
) -> CGDataset:
    """Return the dataset of a file's arrays; errors name the file."""
    if options["temperature"] is None:
        raise InputError(f"{where} does not tell the temperature; give it, K")
    if types is not None:
        types = np.asarray(types).ravel()
        if len(types) != np.shape(positions)[1]:
            raise InputError(
                f"{where}: {len(types)} embeddings of {np.shape(positions)[1]} beads; they must "
                "belong to the same molecule"
            )
    top = _topology(options, None if types is None else [str(t) for t in types])
    if sources is None:
        files = [where, options["forces"], options["weights"]]
        sources = {Path(f).name: sha256(f) for f in files if f is not None}
    try:
        return from_arrays(
            positions,
            top,
            options["temperature"],
            length_unit=options["length_unit"],
            forces=forces,
            force_unit=options["force_unit"],
            energy_unit=options["energy_unit"],
            sources=sources,
            check=options["check"],
            **beside,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Turn whatever a reader raises into an error that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot read {path} ({first_line(error)}); it is damaged, cut short or of another "
            "format: make it again, or choose another format"
        ) from error


def _load(path: Path) -> dict[str, np.ndarray]:
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path} is no .npz file; give one, or choose another format")
    with _readable(path), load_arrays(path) as handle:
        return {name: handle[name] for name in handle.files}


def _array(path: str | Path) -> np.ndarray:
    path = require_file(path, "array file")
    with _readable(path):
        loaded = load_arrays(path)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) == 1:
                return loaded[loaded.files[0]]
            names = ", ".join(loaded.files)
    raise InputError(f"{path} holds several arrays ({names}); give an .npy file of one")


def _first_of(
    where: str | Path, arrays: dict[str, Any], names: Sequence[str], needed: bool = True
) -> Any:
    for name in names:
        if name in arrays:
            return arrays[name]
    if needed:
        raise InputError(
            f"{where} has no array {' or '.join(names[:3])} (it has {', '.join(arrays) or 'none'})"
            "; rename the array"
        )
    return None


def _refuse_delta_forces(where: str | Path, arrays: dict[str, Any]) -> None:
    """Refuse forces that a prior was taken off: a PMF trained on them lacks the prior."""
    delta = [name for name in arrays if "delta_forces" in name]
    if delta and not any(name in arrays for name in _FORCES):
        raise InputError(
            f"{where} has {delta[0]}, from which a prior was subtracted, and no total forces; "
            "give the file with cg_forces"
        )


def _stored_provenance(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if "provenance" not in arrays:
        return {}
    try:
        stored = parse_json(str(arrays["provenance"]))
        stored["topology"] = CGTopology.from_json(stored["topology"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its provenance is damaged; make it again") from error
    return stored


def _factor(values: Any, table: dict[str, float], unit: str | None, kind: str, what: str) -> float:
    if is_quantity(values):
        if unit is not None:
            raise InputError(f"{what} carry their own unit; leave {kind}_unit out")
        return 1.0
    if unit is None:
        raise InputError(f"{what} are plain numbers; give {kind}_unit: one of {', '.join(table)}")
    return unit_factor(table, unit, kind)


def _numbers(values: Any, unit: str, what: str) -> np.ndarray:
    return strip_array(values, unit, what=what).astype(np.float64)


def _check_length_unit(positions: np.ndarray, top: CGTopology, unit: str | None) -> None:
    """Refuse neighbouring beads at distances that no molecule has: the wrong unit."""
    if positions.ndim != 3 or not len(positions) or positions.shape[1:] != (len(top), 3):
        return  # the dataset itself says what is wrong
    first = positions[:: max(1, len(positions) // 20)]
    if top.bonds:
        i, j = np.array(top.bonds).T
        lengths, what = np.linalg.norm(first[:, i] - first[:, j], axis=-1), "bond"
    elif len(top) > 1:
        apart = np.linalg.norm(first[:, :, None] - first[:, None], axis=-1)
        apart[:, np.arange(len(top)), np.arange(len(top))] = np.inf
        lengths, what = apart.min(axis=-1), "nearest bead"
    else:
        return
    length = float(np.median(lengths))
    low, high = _NEIGHBOURS
    if np.isfinite(length) and not low < length < high:
        other = "angstrom" if LENGTH_UNITS[unit or "nm"] == 1 else "nm"
        fits = low < length * LENGTH_UNITS[other] / LENGTH_UNITS[unit or "nm"] < high
        hint = f"length unit {other}?" if fits else "no unit of length fits"
        raise InputError(
            f"positions: the median {what} is {length:.3g} nm long, beads are {low}-{high} nm "
            f"apart; the unit is wrong ({hint}) or the beads are in another order. If it is "
            "right, leave the check out (check=False, --no-check)"
        )


def _check_force_unit(dataset: CGDataset) -> None:
    """Warn where the virial says that the forces are not those of the positions."""
    if dataset.forces is None or dataset.box is not None or len(dataset.topology) < 2:
        return
    if dataset.weights is not None and not np.sum(dataset.weights) > 0:
        return
    ratio, error = virial_ratio(dataset)
    if not abs(ratio - 1) > max(0.5, 5 * error):
        return
    warnings.warn(
        f"the virial of the forces is {ratio:.3g} of what {dataset.temperature:g} K demands: "
        "the unit is wrong (factors 4.2, 10, 42), a prior was subtracted, or they are not mapped",
        stacklevel=3,
    )
