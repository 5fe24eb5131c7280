"""All-atom Systems from a user's files: PDB and force field, Amber prmtop, or System XML."""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openmm
import openmm.app as app
import scipy.sparse
import scipy.sparse.csgraph

from ..errors import InputError, first_line
from ..files import require_file, sha256
from ..mapping.constraints import constraints_from_system
from ..periodic import WholeMolecules
from ..texts import read_xml
from ..topology import atom_label, read_topology
from ..units import strip
from .repair import Replacement, repaired

#: Names of constraint settings -> OpenMM's.
CONSTRAINTS = {
    "none": None,
    "hbonds": app.HBonds,
    "allbonds": app.AllBonds,
    "hangles": app.HAngles,
}
#: Implicit solvents of prmtop files.
IMPLICIT = {
    "vacuum": None,
    "hct": app.HCT,
    "obc1": app.OBC1,
    "obc2": app.OBC2,
    "gbn": app.GBn,
    "gbn2": app.GBn2,
}
#: Water models -> the one whose box of water fills the space (the same kind of molecule).
WATERS = {
    "tip3p": "tip3p",
    "tip3pfb": "tip3p",
    "spce": "spce",
    "tip4pew": "tip4pew",
    "tip4pfb": "tip4pew",
    "tip5p": "tip5p",
}
#: Shapes of a box of solvent.
SHAPES = {
    "cube": np.eye(3),
    "dodecahedron": np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0.5**0.5]]),
    "octahedron": np.array([[1, 0, 0], [1 / 3, 8**0.5 / 3, 0], [-1 / 3, 2**0.5 / 3, 6**0.5 / 3]]),
}

_DEFAULT_FIELD = "amber99sb.xml"
_DEFAULT_IMPLICIT = "amber99_obc.xml"
_CUTOFF = 1.0
_BAROSTATS = ("MonteCarloBarostat", "MonteCarloAnisotropicBarostat", "MonteCarloMembraneBarostat",
              "MonteCarloFlexibleBarostat")  # fmt: skip


@dataclass(frozen=True, eq=False)
class ReferenceSystem:
    """An all-atom System with all that a run needs to know of it.

    Attributes:
        topology: openmm.app.Topology.
        system: openmm.System, without bias, barostat or thermostat.
        positions: (atoms, 3), nm; molecules are whole.
        description: how it was made, JSON-able: force field, solvent, constraints, ...
        sources: file name -> SHA-256 of what it was made from.
        solvated: whether the solvent was added here, so that its density is not yet right.

    Raises:
        InputError: if numbers of atoms differ, or the System holds a thermostat or barostat.
    """

    topology: Any
    system: Any
    positions: np.ndarray
    description: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    solvated: bool = False

    def __post_init__(self) -> None:
        positions = np.asarray(self.positions, dtype=np.float64)
        atoms, particles = self.topology.getNumAtoms(), self.system.getNumParticles()
        if not atoms == particles == len(positions):
            raise InputError(
                f"the topology has {atoms} atoms, the System {particles} particles and there are "
                f"{len(positions)} positions; give files of the same molecule"
            )
        if not np.isfinite(positions).all():
            bad = int(np.argmax(~np.isfinite(positions).all(axis=1)))
            raise InputError(f"position of atom {self.label(bad)} is not finite; repair the file")
        for force in self.system.getForces():
            kind = type(force).__name__
            if kind in _BAROSTATS or kind == "AndersenThermostat":
                raise InputError(
                    f"the System holds a {kind}; remove it: the run has its own thermostat, and "
                    "a dataset is of one volume (npt= equilibrates it before)"
                )
        if self.periodic:
            # OpenMM keeps them so, and biases and maps rely on it.
            positions = WholeMolecules(self.mdtraj).make_whole(positions[None], self.box)[0]
        object.__setattr__(self, "positions", positions)

    @cached_property
    def mdtraj(self) -> Any:
        """The topology as an mdtraj.Topology."""
        return read_topology(self.topology)

    def label(self, atom: int) -> str:
        """Return how errors name an atom, e.g. ``ALA2-CA``."""
        return atom_label(self.mdtraj, atom)

    @property
    def periodic(self) -> bool:
        """Whether the System has a periodic box."""
        return bool(self.system.usesPeriodicBoundaryConditions())

    @property
    def box(self) -> np.ndarray:
        """Box vectors (3, 3), nm, of the System."""
        return box_array(self.system.getDefaultPeriodicBoxVectors())

    @cached_property
    def bonds(self) -> list[tuple[int, int]]:
        """Bonded pairs of atoms."""
        return [(a.index, b.index) for a, b in self.topology.bonds()]

    @cached_property
    def constraints(self) -> list[tuple[int, int]]:
        """Constrained pairs of atoms."""
        return constraints_from_system(self.system)

    @cached_property
    def solute(self) -> np.ndarray:
        """Indices of the atoms that are neither water nor single ions; all if nothing else is."""
        return solute_atoms(self.topology)

    @cached_property
    def timestep(self) -> float:
        """A timestep, ps, that the constraints allow: 0.002 if bonds to hydrogen are fixed."""
        elements = _elements(self.topology)
        fixed = {frozenset(pair) for pair in self.constraints}
        solute = set(self.solute.tolist())
        loose = any(
            "H" in (elements[i], elements[j]) and frozenset((i, j)) not in fixed
            for i, j in self.bonds
            if i in solute
        )
        return 0.001 if loose else 0.002


def solute_atoms(topology: Any) -> np.ndarray:
    """Return the atoms that are neither water nor single ions; all if nothing else is there.

    Water is one oxygen, two hydrogens and virtual sites, whatever its name.

    Args:
        topology: openmm.app.Topology.
    """
    bonds = [(a.index, b.index) for a, b in topology.bonds()]
    everything = molecules(topology.getNumAtoms(), bonds)
    elements = _elements(topology)
    kept = [m for m in everything if not _is_solvent(elements, m)]
    return np.sort(np.concatenate(kept or everything))


def molecules(atoms: int, bonds: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Return the atoms of each connected molecule, in the order of their first atoms."""
    pairs = np.array(bonds, dtype=int).reshape(-1, 2)
    graph = scipy.sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(atoms, atoms))
    component = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    order = np.argsort(component, kind="stable")
    cuts = np.flatnonzero(np.diff(component[order])) + 1
    return sorted(np.split(order, cuts), key=lambda m: int(m[0]))


def box_array(vectors: Any) -> np.ndarray:
    """Return OpenMM's box vectors as an array (3, 3), nm."""
    nanometer = openmm.unit.nanometer
    return np.array([[x.value_in_unit(nanometer) for x in row] for row in vectors])


def build_system(
    source: Any,
    *,
    coordinates: str | Path | None = None,
    forcefield: Sequence[str] = (),
    solvent: str | None = None,
    padding: Any = 1.0,
    shape: str = "cube",
    ionic_strength: Any = 0.0,
    implicit: str | None = None,
    constraints: str = "hbonds",
    hydrogen_mass: Any = None,
    replace: Sequence[str] = (),
    remove_water: bool = False,
) -> ReferenceSystem:
    """Make a System from a user's files.

    Args:
        source: a .pdb or .cif file; an Amber .prmtop or .parm7; or a .xml file of an OpenMM
            System, whose own constraints and masses count.
        coordinates: for prmtop an .inpcrd, .rst7 or .pdb; for XML a .pdb or .cif.
        forcefield: OpenMM force field files (names that OpenMM knows, or paths), for PDB. None
            given: amber99sb with OBC implicit solvent, or with `solvent`.
        solvent: fill a box with this water, one of `WATERS`.
        padding: distance of the solute from the faces of the box, nm.
        shape: of the box, one of `SHAPES`.
        ionic_strength: of added salt, mol/l; charges are neutralised in any case.
        implicit: for prmtop without a box: one of `IMPLICIT`.
        constraints: one of `CONSTRAINTS`. Water stays rigid with all of them.
        hydrogen_mass: Da, taken from the bonded heavy atoms; None: as in the force field.
        replace: residues of a PDB that the force field lacks -> similar ones, as
            ``OLD=NEW:ATOM=ATOM,...`` with the heavy atoms whose names differ (``NLE=MET:CD=SD``):
            heavy atoms stay where they are, hydrogens are added anew.
        remove_water: leave out the water of a PDB, such as that of a crystal.

    Raises:
        InputError: if a file or option does not fit, or the force field lacks a residue.
    """
    repairs = [Replacement.parse(text) for text in replace]
    if constraints not in CONSTRAINTS:
        raise InputError(
            f"constraints are {constraints!r}; choose one of {', '.join(CONSTRAINTS)}"
        )
    mass = None
    if hydrogen_mass is not None:
        mass = strip(hydrogen_mass, "dalton", what="hydrogen mass", positive=True)
    path = require_file(source, "molecule")
    suffix = path.suffix.lower()
    if suffix in (".pdb", ".ent", ".cif", ".mmcif"):
        if coordinates is not None:
            raise InputError(f"{path.name} has its own coordinates; leave {coordinates} out")
        if implicit is not None:
            raise InputError(
                "implicit= is for prmtop files; with a PDB file give a force field file of the "
                f"implicit solvent, such as {_DEFAULT_IMPLICIT}"
            )
        return _from_pdb(
            path,
            tuple(forcefield),
            solvent=solvent,
            padding=padding,
            shape=shape,
            ionic_strength=ionic_strength,
            constraints=constraints,
            hydrogen_mass=mass,
            repairs=repairs,
            remove_water=remove_water,
        )
    if repairs or remove_water:
        raise InputError(f"residues and water can be changed in a PDB file, not in {path.name}")
    if forcefield or solvent is not None:
        what = "forcefield" if forcefield else "solvent"
        raise InputError(f"{what} is for PDB files; {path.name} has its own force field")
    if suffix in (".prmtop", ".parm7", ".top7"):
        return _from_prmtop(path, coordinates, implicit, constraints, mass)
    if suffix == ".xml":
        if implicit is not None or mass is not None:
            what = "implicit" if implicit is not None else "hydrogen_mass"
            raise InputError(f"{what} cannot be changed: {path.name} is a finished System")
        return _from_xml(path, coordinates)
    raise InputError(
        f"cannot make a System from {path.name}; give a .pdb, .cif, .prmtop or System .xml file"
    )


# ---------------------------------------------------------------- PDB and force field


def _from_pdb(
    path: Path,
    forcefield: tuple[str, ...],
    *,
    solvent: str | None,
    padding: Any,
    shape: str,
    ionic_strength: Any,
    constraints: str,
    hydrogen_mass: float | None,
    repairs: Sequence[Replacement],
    remove_water: bool,
) -> ReferenceSystem:
    if solvent is not None and solvent not in WATERS:
        raise InputError(f"solvent is {solvent!r}; choose one of {', '.join(WATERS)}")
    structure = _read_structure(path)
    names = forcefield or (_DEFAULT_FIELD, *(() if solvent else (_DEFAULT_IMPLICIT,)))
    field, names = _forcefield(names, solvent)
    description: dict[str, Any] = {"forcefield": [Path(n).name for n in names]}
    sources = {path.name: sha256(path)}
    sources |= {Path(n).name: sha256(n) for n in names if Path(n).is_file()}

    topology, positions, changes = repaired(
        structure.topology, structure.positions, repairs, remove_water
    )
    if changes:
        description["changes"] = changes
    modeller = app.Modeller(topology, positions)
    elements = {a.element.symbol for a in modeller.topology.atoms() if a.element is not None}
    try:
        if "H" not in elements or repairs:
            with _fixed_random(1):
                modeller.addHydrogens(field)
            description["hydrogens"] = "added"
        has_water = _has_water(modeller.topology)
        if solvent is not None:
            if has_water:
                raise InputError(
                    f"{path.name} already has water; leave solvent out to use it, or remove it"
                )
            _solvate(modeller, field, solvent, padding, shape, ionic_strength, description)
            has_water = True
        elif not has_water:
            modeller.topology.setPeriodicBoxVectors(None)  # a PDB's crystal is no solution
        elif modeller.topology.getPeriodicBoxVectors() is None:
            raise InputError(
                f"{path.name} holds water but no box; add a CRYST1 record, or remove the water "
                "and give solvent="
            )
        system = field.createSystem(
            modeller.topology,
            nonbondedMethod=app.PME if has_water else app.NoCutoff,
            nonbondedCutoff=_CUTOFF,
            constraints=CONSTRAINTS[constraints],
            rigidWater=True,
            hydrogenMass=hydrogen_mass,
            removeCMMotion=False,  # it would take three degrees of freedom from the solute
        )
    except InputError:
        raise
    except Exception as error:
        raise InputError(_template_problem(path, names, error)) from error
    implicit = _implicit_force(system)
    if has_water and implicit:
        raise InputError(
            f"force field {', '.join(names)} has implicit solvent ({implicit}) and the box holds "
            "water; leave one of them out (remove_water=)"
        )
    description |= {
        "solvent": solvent or ("water of the file" if has_water else implicit or "vacuum"),
        "nonbonded": f"PME, {_CUTOFF} nm" if has_water else "no cutoff",
        "constraints": constraints,
        "hydrogen_mass_Da": hydrogen_mass,
    }
    return ReferenceSystem(
        modeller.topology,
        system,
        _in_nanometer(modeller.positions),
        description,
        sources,
        solvated=solvent is not None,
    )


def _read_structure(path: Path) -> Any:
    reader = app.PDBxFile if path.suffix.lower() in (".cif", ".mmcif") else app.PDBFile
    try:
        structure = reader(str(path))
    except Exception as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}); give a whole PDB or mmCIF file"
        ) from error
    if structure.topology.getNumAtoms() == 0:
        raise InputError(f"{path} holds no atoms; give a PDB or mmCIF file of the molecule")
    return structure


def _forcefield(names: Sequence[str], solvent: str | None) -> tuple[Any, tuple[str, ...]]:
    """Return the force field, with the water's file added if none of them has it."""
    used = tuple(str(n) for n in names)

    def load(files: tuple[str, ...]) -> Any:
        try:
            return app.ForceField(*files)
        except Exception as error:
            raise InputError(
                f"force field {', '.join(files)} cannot be loaded ({first_line(error)}); give "
                "names that OpenMM knows, such as amber14-all.xml, or paths"
            ) from error

    loaded = load(used)
    if solvent is not None and "HOH" not in loaded._templates:
        folder = "amber14/" if any(n.startswith("amber14") for n in used) else ""
        used += (f"{folder}{solvent}.xml",)
        loaded = load(used)
    return loaded, used


def _solvate(
    modeller: Any,
    forcefield: Any,
    solvent: str,
    padding: Any,
    shape: str,
    ionic_strength: Any,
    description: dict[str, Any],
) -> None:
    if shape not in SHAPES:
        raise InputError(f"shape is {shape!r}; choose one of {', '.join(SHAPES)}")
    gap = strip(padding, "nanometer", what="padding", positive=True)
    salt = strip(ionic_strength, "molar", what="ionic strength")
    if salt < 0:
        raise InputError(f"ionic strength is {salt:g} mol/l; give 0 or more")
    # OpenMM's own padding is the distance between images; here, as elsewhere, to the face.
    points = _in_nanometer(modeller.positions)
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    width = 2 * float(np.linalg.norm(points - centre, axis=1).max()) + 2 * gap
    narrowest = SHAPES[shape].diagonal().min()
    least = (2 * _CUTOFF + 0.15) / narrowest  # equilibration shrinks it a little
    if width < least:
        raise InputError(
            f"the box would be {width * narrowest:.2f} nm wide, too small for a cutoff of "
            f"{_CUTOFF} nm; give a padding of at least {gap + (least - width) / 2 + 0.005:.2f} nm"
        )
    with _fixed_random(1):  # which waters become ions
        modeller.addSolvent(
            forcefield,
            model=WATERS[solvent],
            boxVectors=tuple(openmm.Vec3(*row) for row in width * SHAPES[shape]),
            ionicStrength=salt * openmm.unit.molar,
        )
    description["box"] = {"padding_nm": gap, "shape": shape, "ionic_strength_M": salt}
    description["water_molecules"] = sum(r.name == "HOH" for r in modeller.topology.residues())


class _fixed_random:
    """Give OpenMM's Modeller, which uses Python's global generator, a fixed seed meanwhile."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._state = random.getstate()
        random.seed(self._seed)

    def __exit__(self, *_: Any) -> None:
        random.setstate(self._state)


def _template_problem(path: Path, names: Sequence[str], error: Exception) -> str:
    text = " ".join(str(error).split())
    said = text if len(text) < 400 else f"{text[:400]}..."
    return (
        f"force field {', '.join(names)} does not fit {path.name}: {said} Give a force field that "
        "has this residue (forcefield=, several files are possible), replace it by a similar one "
        "(replace=), complete its atoms and hydrogens (e.g. with pdbfixer), or give a prmtop or a "
        "System XML"
    )


def _implicit_force(system: Any) -> str | None:
    for force in system.getForces():
        if isinstance(force, (openmm.GBSAOBCForce, openmm.CustomGBForce)):
            return "implicit, " + type(force).__name__
    return None


# ---------------------------------------------------------------- prmtop


def _from_prmtop(
    path: Path,
    coordinates: str | Path | None,
    implicit: str | None,
    constraints: str,
    hydrogen_mass: float | None,
) -> ReferenceSystem:
    if coordinates is None:
        raise InputError(f"{path.name} has no coordinates; give an .inpcrd, .rst7 or .pdb file")
    where = require_file(coordinates, "coordinates")
    if implicit is not None and implicit not in IMPLICIT:
        raise InputError(f"implicit is {implicit!r}; choose one of {', '.join(IMPLICIT)}")
    try:
        parameters = app.AmberPrmtopFile(str(path))
        if where.suffix.lower() in (".pdb", ".cif"):
            structure = _read_structure(where)
            box = structure.topology.getPeriodicBoxVectors()
        else:
            structure = app.AmberInpcrdFile(str(where))
            box = structure.boxVectors
        periodic = parameters.topology.getPeriodicBoxVectors() is not None
        if periodic and implicit is not None:
            raise InputError(f"{path.name} has a periodic box; leave implicit={implicit!r} out")
        if not periodic and implicit is None:
            raise InputError(
                f"{path.name} has no box, so say what stands for the solvent: implicit= one of "
                f"{', '.join(IMPLICIT)}"
            )
        system = parameters.createSystem(
            nonbondedMethod=app.PME if periodic else app.NoCutoff,
            nonbondedCutoff=_CUTOFF * openmm.unit.nanometer,
            constraints=CONSTRAINTS[constraints],
            rigidWater=True,
            implicitSolvent=IMPLICIT[implicit or "vacuum"],
            hydrogenMass=None if hydrogen_mass is None else hydrogen_mass * openmm.unit.dalton,
            removeCMMotion=False,
        )
        if periodic and box is not None:
            system.setDefaultPeriodicBoxVectors(*box)
            parameters.topology.setPeriodicBoxVectors(box)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path.name} with {where.name} cannot be used ({first_line(error)}); give a whole "
            "prmtop and coordinates of the same atoms"
        ) from error
    return ReferenceSystem(
        parameters.topology,
        system,
        _in_nanometer(structure.positions),
        {
            "forcefield": [path.name],
            "solvent": "as in the prmtop, periodic" if periodic else implicit,
            "nonbonded": f"PME, {_CUTOFF} nm" if periodic else "no cutoff",
            "constraints": constraints,
            "hydrogen_mass_Da": hydrogen_mass,
        },
        {path.name: sha256(path), where.name: sha256(where)},
    )


# ---------------------------------------------------------------- System XML


def _from_xml(path: Path, coordinates: str | Path | None) -> ReferenceSystem:
    if coordinates is None:
        raise InputError(f"{path.name} has no topology; give the .pdb or .cif file of its atoms")
    where = require_file(coordinates, "coordinates")
    root = require_safe_xml(path)
    try:
        # Written anew, so that OpenMM reads what was looked at, whatever the file's encoding.
        system = openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))
    except Exception as error:
        raise InputError(
            f"{path} is no OpenMM System ({first_line(error)}); write it again"
        ) from (error)
    structure = _read_structure(where)
    count = system.getNumConstraints()
    return ReferenceSystem(
        structure.topology,
        system,
        _in_nanometer(structure.positions),
        {
            "forcefield": [path.name],
            "solvent": "as in the System",
            "nonbonded": "as in the System",
            "constraints": f"as in the System ({count})",
            "hydrogen_mass_Da": None,
        },
        {path.name: sha256(path), where.name: sha256(where)},
    )


def require_safe_xml(path: Path) -> ElementTree.Element:
    """Return System XML, parsed as text, unless it holds forces that run programs.

    A PythonForce is unpickled as OpenMM reads the XML; plugins' forces run scripts and models of
    their own. What remains are the kinds of force that are in OpenMM itself.

    Raises:
        InputError: naming the force.
    """
    root = read_xml(path, "System XML")
    if root.tag != "System":
        raise InputError(
            f"{path} holds a {root.tag}, not an OpenMM System; give a serialised System"
        )
    known = {
        name
        for name, kind in vars(openmm).items()
        if isinstance(kind, type) and issubclass(kind, openmm.Force)
    } - {"PythonForce"}
    for element in root.iter():
        kind = element.get("type", "")
        if (kind.endswith("Force") or element.tag == "Force") and kind not in known:
            raise InputError(
                f"{path.name} holds a {kind or 'force without a type'}, which may run a program "
                "of its own; give a System of OpenMM's own forces, or attach a DatasetReporter "
                "to your own script"
            )
    return root


# ---------------------------------------------------------------- helpers


def _in_nanometer(positions: Any) -> np.ndarray:
    return np.array(positions.value_in_unit(openmm.unit.nanometer), dtype=np.float64)


def _elements(topology: Any) -> list[str]:
    return [a.element.symbol if a.element is not None else "" for a in topology.atoms()]


def _has_water(topology: Any) -> bool:
    bonds = [(a.index, b.index) for a, b in topology.bonds()]
    elements = _elements(topology)
    return any(_is_water(elements, m) for m in molecules(topology.getNumAtoms(), bonds))


def _is_water(elements: Sequence[str], molecule: np.ndarray) -> bool:
    """Whether a molecule is one oxygen, two hydrogens and virtual sites, by whatever name."""
    found = sorted(elements[a] for a in molecule[:7] if elements[a])
    return len(molecule) <= 6 and found == ["H", "H", "O"]


def _is_solvent(elements: Sequence[str], molecule: np.ndarray) -> bool:
    return len(molecule) == 1 or _is_water(elements, molecule)


def warn_of_timestep(timestep: float, allowed: float, hydrogen_mass: float | None) -> None:
    """Warn where bonds to hydrogen vibrate and the timestep is longer than they allow."""
    if allowed < 0.002 and timestep > 0.00101 and not (hydrogen_mass or 0) > 2:
        warnings.warn(
            f"bonds to hydrogen are not constrained and the timestep is {timestep:g} ps; "
            "0.001 ps or less keeps their energy right",
            stacklevel=3,
        )
