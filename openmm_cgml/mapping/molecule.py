"""Presets for any molecule: every heavy atom, or whole molecules."""

from collections import Counter
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from ..errors import InputError
from ..topology import atom_masses
from .core import Mapping, com_mapping, slice_mapping
from .residue import solute_residues


def all_atom(top: Any) -> Mapping:
    """Keep every atom but massless sites, for what is to be generated from coarser beads.

    Water and monatomic ions are left out as by `heavy_atom`.

    Args:
        top: mdtraj.Topology.

    Returns:
        A slice map; bead types are residue and atom names, e.g. ``ALA-HA``.
    """
    return _atoms(top, "all_atom", hydrogens=True)


def heavy_atom(top: Any) -> Mapping:
    """Keep every atom but hydrogens and massless sites.

    Water and monatomic ions are left out beside other molecules, and kept where there is nothing
    else. `left_out` counts them.

    Args:
        top: mdtraj.Topology.

    Returns:
        A slice map; bead types are residue and atom names, e.g. ``ALA-CB``.

    Raises:
        InputError: if there are only hydrogens.
    """
    return _atoms(top, "heavy_atom", hydrogens=False)


def _atoms(top: Any, name: str, hydrogens: bool) -> Mapping:
    masses = atom_masses(top)
    atoms = [
        a
        for residue in solute_residues(top)
        for a in residue.atoms
        if masses[a.index] > 0 and (hydrogens or a.element.symbol not in ("H", "D"))
    ]
    types = [f"{a.residue.name}-{a.name}" for a in atoms]
    return slice_mapping(top, [a.index for a in atoms], name=name, types=types)


def molecule_com(top: Any) -> Mapping:
    """Map every molecule, water and ions too, to its centre of mass.

    A molecule is what bonds join. Massless sites weigh nothing, so a 4-site water is its three
    atoms.

    Args:
        top: mdtraj.Topology with bonds.

    Returns:
        A map whose bead types are the names of a molecule's residues, joined by ``-``; so are the
        bead names up to two residues, beyond them the first and the last with the number of those
        between.

    Raises:
        InputError: if the bonds of a residue do not hold it together.
    """
    masses = atom_masses(top)
    molecule = molecules(top)
    groups: dict[int, list[int]] = {}
    for atom in np.flatnonzero(masses > 0):
        groups.setdefault(int(molecule[atom]), []).append(int(atom))
    _require_whole(top, molecule, masses)
    residues = [
        [r.name for r in dict.fromkeys(top.atom(a).residue for a in group)]
        for group in groups.values()
    ]
    return com_mapping(
        top,
        list(groups.values()),
        names=["-".join(r if len(r) < 3 else (r[0], str(len(r) - 2), r[-1])) for r in residues],
        types=["-".join(r) for r in residues],
        name="molecule_com",
    )


def molecules(top: Any) -> np.ndarray:
    """Return (atoms,) numbers of the connected components of the bonds."""
    pairs = np.array([(a.index, b.index) for a, b in top.bonds], dtype=int).reshape(-1, 2)
    graph = scipy.sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(top.n_atoms,) * 2)
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1]


def _require_whole(top: Any, molecule: np.ndarray, masses: np.ndarray) -> None:
    """Refuse residues in several pieces: each atom would pass for a molecule."""
    broken: Counter[str] = Counter()
    first = None
    for residue in top.residues:
        pieces = {int(molecule[a.index]) for a in residue.atoms if masses[a.index] > 0}
        if len(pieces) > 1:
            first = first or (residue, len(pieces))
            broken[residue.name] += 1
    if first is not None:
        residue, pieces_of_first = first
        others = f" (and {sum(broken.values()) - 1} others)" if sum(broken.values()) > 1 else ""
        raise InputError(
            f"residue {residue}{others} is in {pieces_of_first} pieces, so molecules cannot be "
            "told apart: bonds are missing; give a .prmtop or .psf, or add CONECT records to the "
            ".pdb"
        )
