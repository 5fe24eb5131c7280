"""Topologies: `CGTopology` for beads, and readers of all-atom topologies."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, first_line
from .files import require_file
from .hdf5_files import open_hdf5_file
from .texts import parse_json


@dataclass(frozen=True)
class CGTopology:
    """Beads, their names, types, residues, chains, bonds and masses.

    Attributes:
        bead_names: one name a bead, as in a PDB file.
        bead_types: one chemical type a bead; beads of one type are interchangeable for a
            transferable model.
        residue_names: name of each bead's residue.
        residue_ids: number of each bead's residue, as in the source file.
        chain_ids: chain of each bead.
        bonds: pairs of bead indices, i < j.
        masses: Da.

    Raises:
        InputError: if lengths differ, a bond names no bead, or a mass is not positive.
    """

    bead_names: tuple[str, ...]
    bead_types: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_ids: tuple[int, ...]
    chain_ids: tuple[str, ...]
    bonds: tuple[tuple[int, int], ...]
    masses: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.bead_names:
            raise InputError("topology has no beads; give at least one")
        for name in ("bead_types", "residue_names", "residue_ids", "chain_ids", "masses"):
            if len(getattr(self, name)) != len(self):
                raise InputError(
                    f"topology has {len(self)} beads but {len(getattr(self, name))} {name}; "
                    "give one a bead"
                )
        ordered = sorted({(min(i, j), max(i, j)) for i, j in self.bonds})
        for i, j in ordered:
            if i == j or i < 0 or j >= len(self):
                raise InputError(
                    f"bond {i}-{j} does not join two of the {len(self)} beads; correct the bonds"
                )
        object.__setattr__(self, "bonds", tuple(ordered))
        for bead, mass in enumerate(self.masses):
            if not 0 < mass < float("inf"):
                raise InputError(
                    f"bead {self.label(bead)} has mass {mass}; give a positive mass in Da "
                    "(virtual sites have none: leave them out of the mapping)"
                )

    def __len__(self) -> int:
        return len(self.bead_names)

    def label(self, bead: int) -> str:
        """Return how errors name a bead, e.g. ``ALA2-CA``."""
        return f"{self.residue_names[bead]}{self.residue_ids[bead]}-{self.bead_names[bead]}"

    def to_json(self) -> str:
        """Return the topology as JSON; `from_json` reads it back exactly."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "CGTopology":
        """Read the output of `to_json`.

        Raises:
            InputError: if it is not one.
        """
        try:
            fields = parse_json(text)
            fields["bonds"] = tuple((int(i), int(j)) for i, j in fields["bonds"])
            _require_kinds(fields)
            return cls(**{k: tuple(v) for k, v in fields.items()})
        except InputError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise InputError(
                f"a stored topology is damaged ({type(error).__name__}: {error}); make its file "
                "again"
            ) from error

    def to_mdtraj(self, atoms: bool = False) -> Any:
        """Return an mdtraj.Topology; beads are its atoms, with virtual-site elements.

        Bead types and masses have no place in mdtraj and are not kept.

        Args:
            atoms: every bead is one atom, of the element that its mass tells.

        Raises:
            InputError: if a mass is no element's.
        """
        import mdtraj

        elements = _elements(self) if atoms else [mdtraj.element.virtual] * len(self)

        top = mdtraj.Topology()
        for bead, (new_chain, new_residue) in enumerate(self._starts()):
            if new_chain:
                chain = top.add_chain(self.chain_ids[bead])
            if new_residue:
                residue = top.add_residue(
                    self.residue_names[bead], chain, resSeq=self.residue_ids[bead]
                )
            top.add_atom(self.bead_names[bead], elements[bead], residue)
        added = list(top.atoms)
        for i, j in self.bonds:
            top.add_bond(added[i], added[j])
        return top

    def to_openmm(self, atoms: bool = False) -> Any:
        """Return an openmm.app.Topology; beads are element-less atoms (set masses yourself).

        Args:
            atoms: every bead is one atom, of the element that its mass tells.

        Raises:
            InputError: if a mass is no element's.
        """
        from openmm import app

        elements: list[Any] = [None] * len(self)
        if atoms:
            elements = [app.Element.getBySymbol(e.symbol) for e in _elements(self)]
        top = app.Topology()
        added = []
        for bead, (new_chain, new_residue) in enumerate(self._starts()):
            if new_chain:
                chain = top.addChain(self.chain_ids[bead])
            if new_residue:
                residue = top.addResidue(
                    self.residue_names[bead], chain, id=str(self.residue_ids[bead])
                )
            added.append(top.addAtom(self.bead_names[bead], elements[bead], residue))
        for i, j in self.bonds:
            top.addBond(added[i], added[j])
        return top

    def _starts(self) -> Iterator[tuple[bool, bool]]:
        """Yield of each bead whether a chain and whether a residue begins with it.

        A residue that is left and entered again begins twice: other programs list atoms residue
        by residue, so joining the parts would change the order of the beads.
        """
        before: Any = (None, None)
        for key in zip(self.chain_ids, self.residue_ids, self.residue_names, strict=True):
            yield key[0] != before[0], key != before
            before = key

    @classmethod
    def from_mdtraj(
        cls, top: Any, masses: Sequence[float] | None = None, types: Sequence[str] | None = None
    ) -> "CGTopology":
        """Take every atom of an mdtraj.Topology as a bead.

        Args:
            top: mdtraj.Topology.
            masses: Da, one a bead; element masses if None (virtual sites have none).
            types: one a bead; the names if None.
        """
        atoms = list(top.atoms)
        return cls(
            bead_names=tuple(a.name for a in atoms),
            bead_types=tuple(types) if types is not None else tuple(a.name for a in atoms),
            residue_names=tuple(a.residue.name for a in atoms),
            residue_ids=tuple(int(a.residue.resSeq) for a in atoms),
            chain_ids=tuple(_chain_label(a.residue.chain) for a in atoms),
            bonds=tuple((a.index, b.index) for a, b in top.bonds),
            masses=tuple(float(m) for m in (masses if masses is not None else atom_masses(top))),
        )

    @classmethod
    def from_openmm(
        cls, top: Any, masses: Sequence[float] | None = None, types: Sequence[str] | None = None
    ) -> "CGTopology":
        """Take every atom of an openmm.app.Topology as a bead; see `from_mdtraj`."""
        return cls.from_mdtraj(_from_openmm(top), masses=masses, types=types)


def read_topology(source: Any) -> Any:
    """Read an all-atom topology.

    Args:
        source: a file (.pdb, .cif, .prmtop, .parm7, .psf, .gro, .top, .h5), or an mdtraj,
            openmm.app or ParmEd topology object (an openmm.app.PDBFile and the like too).

    Returns:
        mdtraj.Topology, with bonds where the source has them.

    Raises:
        InputError: if the file is missing or unreadable.
    """
    import mdtraj

    if isinstance(source, mdtraj.Topology):
        return source
    if isinstance(source, mdtraj.Trajectory):
        return source.topology
    if isinstance(source, (str, Path)):
        top = _read_topology_file(require_file(source, "topology"))
        if top.n_atoms == 0:
            raise InputError(f"topology {source} holds no atoms; check that it is complete")
        return top
    if hasattr(source, "residues") and hasattr(source, "topology"):
        return _from_parmed(source)
    if hasattr(source, "topology"):  # openmm.app files and simulations
        source = source.topology
    if hasattr(source, "getNumAtoms"):
        return _from_openmm(source)
    raise InputError(
        f"cannot read a topology from {type(source).__name__}; give a file or an mdtraj, "
        "openmm.app or ParmEd topology"
    )


def atom_masses(top: Any) -> np.ndarray:
    """Return element masses (atoms,) in Da of an mdtraj.Topology; 0 for virtual sites."""
    return np.array([a.element.mass if a.element is not None else 0.0 for a in top.atoms])


def atom_label(top: Any, index: int) -> str:
    """Return how errors name an atom of an mdtraj.Topology, e.g. ``ALA2-CA``."""
    atom = top.atom(int(index))
    return f"{atom.residue.name}{atom.residue.resSeq}-{atom.name}"


def bonded_angles(bonds: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return all (i, j, k) with bonds i-j and j-k, i < k."""
    around = bonded_beads(bonds)
    return sorted((i, j, k) for j in around for i in around[j] for k in around[j] if i < k)


def bonded_torsions(bonds: Iterable[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Return all (i, j, k, l) with bonds i-j, j-k and k-l, j < k, of four different beads."""
    around = bonded_beads(bonds)
    return sorted(
        (i, j, k, m)
        for j in around
        for k in around[j]
        if j < k
        for i in around[j]
        for m in around[k]
        if len({i, j, k, m}) == 4
    )


def bond_separations(beads: int, bonds: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return the (beads, beads) number of bonds between beads; `beads` where not connected."""
    around = bonded_beads(bonds)
    separations = np.full((beads, beads), beads)
    for start in range(beads):
        reached, frontier, steps = {start}, [start], 0
        while frontier:
            separations[start, frontier] = steps
            frontier = sorted({n for b in frontier for n in around.get(b, ())} - reached)
            reached.update(frontier)
            steps += 1
    return separations


def surroundings(
    labels: Sequence[str],
    bonds: Sequence[tuple[int, int]],
    rounds: int | None = None,
    marks: Sequence[object] | None = None,
) -> list[str]:
    """Return a name of each atom (atoms,) by what is bonded around it: colour refinement.

    Two atoms have the same if labels, bonds and their marks are the same up to so many bonds away;
    of the whole molecule those that have the same are, but for rare graphs, interchangeable.

    Args:
        labels: of the atoms, e.g. elements.
        bonds: pairs.
        rounds: how many bonds away; None: to the end.
        marks: of the bonds, or None.

    Reference: Weisfeiler and Leman 1968.
    """
    around: dict[int, list[tuple[int, str]]] = {k: [] for k in range(len(labels))}
    for (i, j), mark in zip(bonds, marks or [""] * len(bonds), strict=True):
        around[i].append((j, str(mark)))
        around[j].append((i, str(mark)))
    found = [str(label) for label in labels]
    for _ in range(len(labels) if rounds is None else rounds):
        told = [
            f"{found[k]}({','.join(sorted(f'{m}{found[j]}' for j, m in around[k]))})"
            for k in range(len(found))
        ]
        # Digests, or the names would grow without bound.
        new = [f"{label}-{sha256(t.encode()).hexdigest()[:10]}"
               for label, t in zip(labels, told, strict=True)]  # fmt: skip
        if rounds is None and len(set(new)) == len(set(found)):
            break
        found = new
    return found


def require_equal_beads(one: CGTopology, other: CGTopology, first: str, second: str) -> None:
    """Refuse two topologies that differ, naming the first bead, bond or mass that does.

    Args:
        one, other: the topologies.
        first, second: what they belong to, for the message.

    Raises:
        InputError: if they differ.
    """
    if one == other:
        return
    remedy = "map both with the same mapping, or keep them apart in a collection"
    if len(one) != len(other):
        raise InputError(
            f"{first} has {len(one)} beads, {second} has {len(other)}; they are of different "
            f"molecules or mappings: {remedy}"
        )
    for bead in range(len(one)):
        names = [f"{top.label(bead)} of type {top.bead_types[bead]}" for top in (one, other)]
        if names[0] != names[1]:
            raise InputError(
                f"bead {bead} is {names[0]} in {first} but {names[1]} in {second}; {remedy}"
            )
        if one.masses[bead] != other.masses[bead] or one.chain_ids[bead] != other.chain_ids[bead]:
            what = "mass" if one.masses[bead] != other.masses[bead] else "chain"
            values = [
                f"{top.masses[bead]:.6g} Da" if what == "mass" else top.chain_ids[bead]
                for top in (one, other)
            ]
            raise InputError(
                f"bead {one.label(bead)} has {what} {values[0]} in {first} but {values[1]} in "
                f"{second}; {remedy}"
            )
    i, j = sorted(set(one.bonds) ^ set(other.bonds))[0]
    having = first if (i, j) in one.bonds else second
    raise InputError(
        f"beads {one.label(i)} and {one.label(j)} are bonded in {having} only; {remedy}"
    )


def _require_kinds(fields: dict[str, Any]) -> None:
    """Raise TypeError where a stored topology holds a number for a name, or the like."""
    kinds: dict[str, Any] = {"residue_ids": int, "masses": (int, float), "bonds": tuple}
    for name, values in fields.items():
        kind = kinds.get(name, str)
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{name} is no list")
        if wrong := [v for v in values if not isinstance(v, kind) or isinstance(v, bool)]:
            raise TypeError(f"{name} holds {wrong[0]!r:.40}")


def bonded_beads(bonds: Iterable[tuple[int, int]]) -> dict[int, set[int]]:
    """Return the beads bonded to each that has any."""
    around: dict[int, set[int]] = {}
    for i, j in bonds:
        around.setdefault(i, set()).add(j)
        around.setdefault(j, set()).add(i)
    return around


def _elements(topology: CGTopology) -> list[Any]:
    """Return the mdtraj elements of atoms by their masses."""
    from mdtraj.core.element import Element

    known = sorted({e for e in Element._elements_by_symbol.values() if e.mass > 0},
                   key=lambda e: e.mass)  # fmt: skip
    masses = np.array([e.mass for e in known])
    found = []
    for atom, mass in enumerate(topology.masses):
        nearest = int(np.abs(masses - mass).argmin())
        if abs(masses[nearest] - mass) > 0.05:
            raise InputError(
                f"{topology.label(atom)} has mass {mass:g} Da, which is no element's; give frames "
                "of atoms, as of the maps heavy_atom or all_atom"
            )
        found.append(known[nearest])
    return found


def _read_topology_file(path: Path) -> Any:
    import mdtraj

    suffix = path.suffix.lower()
    try:
        if suffix in (".prmtop", ".parm7", ".psf", ".top"):
            _require_whole_sections(path)
            return _from_parmed(_parmed_reader(path)(str(path)))
        if suffix == ".cif":
            from openmm import app

            return _from_openmm(app.PDBxFile(str(path)).topology)
        if suffix in (".h5", ".hdf5"):
            return _read_mdtraj_hdf5_topology(path)
        if suffix in (".pdb", ".gro"):
            return mdtraj.load_topology(str(path))
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        reason = first_line(error)
        remedy = "check that the file is complete and of that format"
        if suffix == ".top" and "Could not find" in reason:
            remedy = "GROMACS include files are searched in $GMXDATA/top, set it"
        raise InputError(f"cannot read topology {path}: {reason}; {remedy}") from error
    raise InputError(
        f"topology {path} has an unknown format {suffix!r}; give .pdb, .cif, .prmtop, .parm7, "
        ".psf, .gro, .top or .h5"
    )


def _require_whole_sections(path: Path) -> None:
    """Refuse an Amber topology with a section cut short: ParmEd ends the process on some."""
    text = path.read_text(errors="replace")
    sections = re.split(r"^%FLAG", text, flags=re.MULTILINE)[1:]
    whole = re.compile(r"^%FORMAT *\(.+\)", re.MULTILINE)
    if sections and not (all(whole.search(s) for s in sections) and text.endswith("\n")):
        raise InputError(f"topology {path} is damaged or cut short; make it again")


def _parmed_reader(path: Path) -> Any:
    """Return the reader of one format: ParmEd's own choice would run what is in System XML."""
    from parmed import amber, charmm, gromacs

    if path.suffix.lower() == ".psf":
        return charmm.CharmmPsfFile
    with open(path, errors="replace") as handle:
        whole = handle.readline().startswith("%VERSION")
    if path.suffix.lower() == ".top" and not whole:
        if not gromacs.GromacsTopologyFile.id_format(str(path)):
            raise ValueError("it is no topology of GROMACS or Amber")
        return gromacs.GromacsTopologyFile
    return amber.LoadParm


def _from_parmed(structure: Any) -> Any:
    """Convert a ParmEd Structure; residues are counted from 1 where the file has no numbers."""
    top = _from_openmm(structure.topology)
    # ParmEd counts from 0 there, the PDB files and programs that these names are compared with
    # from 1.
    if [r.number for r in structure.residues] == list(range(len(structure.residues))):
        for residue in top.residues:
            residue.resSeq += 1
    return top


def _from_openmm(top: Any) -> Any:
    """Convert an openmm.app.Topology, keeping names, residue numbers, chains and bonds."""
    import mdtraj

    out = mdtraj.Topology()
    atoms = []
    for chain in top.chains():
        new_chain = out.add_chain(chain.id)
        for residue in chain.residues():
            number = int(residue.id) if str(residue.id).lstrip("-").isdigit() else None
            new_residue = out.add_residue(residue.name, new_chain, resSeq=number)
            for atom in residue.atoms():
                element = (
                    mdtraj.element.virtual
                    if atom.element is None
                    else mdtraj.element.get_by_symbol(atom.element.symbol)
                )
                atoms.append(out.add_atom(atom.name, element, new_residue))
    for bond in top.bonds():
        out.add_bond(atoms[bond[0].index], atoms[bond[1].index])
    return out


def _read_mdtraj_hdf5_topology(path: Path) -> Any:
    """Read the topology of an MDTraj HDF5 file with h5py (mdtraj itself needs PyTables)."""
    import mdtraj

    with open_hdf5_file(path) as handle:
        if "topology" not in handle:
            raise InputError(f"{path} holds no topology; give one with a .pdb or .prmtop file")
        stored = np.asarray(handle["topology"]).ravel()[0]
        content = parse_json(stored.decode() if isinstance(stored, bytes) else str(stored))
    if "chains" not in content:
        raise InputError(f"{path} is not an MDTraj HDF5 file; give an all-atom topology")
    top = mdtraj.Topology()
    atoms = {}
    for chain in content["chains"]:
        new_chain = top.add_chain(chain.get("chain_id"))
        for residue in chain["residues"]:
            new_residue = top.add_residue(residue["name"], new_chain, resSeq=residue.get("resSeq"))
            for atom in residue["atoms"]:
                symbol = atom["element"]
                element = (
                    mdtraj.element.virtual
                    if symbol in ("", "VS")
                    else mdtraj.element.get_by_symbol(symbol)
                )
                atoms[atom["index"]] = top.add_atom(atom["name"], element, new_residue)
    for i, j in content["bonds"]:
        top.add_bond(atoms[i], atoms[j])
    return top


def _chain_label(chain: Any) -> str:
    return str(getattr(chain, "chain_id", None) or chain.index)
