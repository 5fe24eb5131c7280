"""A reference structure of the beads, from a dataset or from a structure file."""

from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import require_file
from .topology import CGTopology, require_equal_beads


def read_native(path: str | Path, topology: CGTopology) -> np.ndarray:
    """Return one structure of the beads, (beads, 3), nm.

    Args:
        path: a dataset (.h5), whose first frame is taken, or a structure file that mdtraj reads
            (.pdb, .gro, ...): of the beads, or of all atoms if every bead is one atom with the
            bead's name and residue.
        topology: the beads.

    Raises:
        InputError: if the file has other beads, or atoms that beads cannot be told from.
    """
    path = require_file(path, "native structure")
    if path.suffix in (".h5", ".hdf5"):
        from .dataset import read_dataset

        dataset = read_dataset(path)
        require_equal_beads(topology, dataset.topology, "the run", str(path))
        return np.asarray(dataset.positions[0], dtype=np.float64)
    import mdtraj

    try:
        structure = mdtraj.load(str(path))[0]
    except Exception as error:  # mdtraj's readers raise anything
        raise InputError(
            f"{path} is no structure that mdtraj reads; give a .pdb of one molecule, or a dataset"
        ) from error
    if structure.n_atoms == len(topology) and _names(structure.topology) == list(
        topology.bead_names
    ):
        return np.asarray(structure.xyz[0], dtype=np.float64)
    return np.asarray(structure.xyz[0][_atoms(structure.topology, topology, path)], np.float64)


def _names(top: Any) -> list[str]:
    return [atom.name for atom in top.atoms]


def _atoms(top: Any, topology: CGTopology, path: Path) -> list[int]:
    """Return the atom of each bead, by name and residue; residues are counted in order."""
    residues: list[dict[str, int]] = []
    names: list[str] = []
    for residue in top.residues:
        residues.append({atom.name: atom.index for atom in residue.atoms})
        names.append(residue.name)
    own: dict[tuple[str, int], int] = {}
    keys = list(zip(topology.chain_ids, topology.residue_ids, strict=True))
    for key in keys:
        own.setdefault(key, len(own))
    # The beads may begin after residues that have none, such as caps.
    wanted = list(dict.fromkeys(zip(keys, topology.residue_names, strict=True)))
    for first in range(len(names) - len(wanted) + 1):
        if names[first : first + len(wanted)] == [name for _, name in wanted]:
            found = [
                residues[first + own[key]].get(bead)
                for key, bead in zip(keys, topology.bead_names, strict=True)
            ]
            if None not in found:
                return [index for index in found if index is not None]
    raise InputError(
        f"the beads cannot be told from the atoms of {path}: it has residues "
        f"{'-'.join(names[:6])}{'...' if len(names) > 6 else ''}, and bead "
        f"{topology.label(0)} and the others are to be atoms of these names; map it to a dataset "
        "(`cgml map`) and give that"
    )
