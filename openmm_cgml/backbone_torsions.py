"""Planes of backbone torsions: phi and psi, or of models without N and C beads pseudo-torsions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .analysis import dihedral_angles
from .errors import InputError
from .landscape import FreeEnergySurface, free_energy_surface
from .topology import CGTopology, bonded_beads

# Names of beads that stand for a whole residue's backbone.
_ONE_BEAD = ("CA", "BB")


@dataclass(frozen=True)
class BackboneDihedrals:
    """Two torsions about each residue of a chain.

    Attributes:
        names: of the first and the second torsion: ``phi`` and ``psi``, or of models with one
            backbone bead a residue ``pseudo-torsion before`` and ``pseudo-torsion after``, which
            are no phi and psi.
        residues: labels of the residues, e.g. ``GLY7``.
        quadruples: (residues) pairs of quadruples of bead indices.
    """

    names: tuple[str, str]
    residues: tuple[str, ...]
    quadruples: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @property
    def pseudo(self) -> bool:
        """Whether these are pseudo-torsions of single backbone beads."""
        return self.names[0] != "phi"

    def angles(self, positions: Any, box_vectors: Any = None) -> np.ndarray:
        """Return both torsions of every residue, (frames, residues, 2), radians.

        Args:
            positions: (frames, beads, 3), nm.
            box_vectors: (3, 3) or (frames, 3, 3), nm; None: not periodic.
        """
        flat = [q for pair in self.quadruples for q in pair]
        return dihedral_angles(positions, flat, box_vectors).reshape(len(positions), -1, 2)


def backbone_dihedrals(topology: CGTopology) -> BackboneDihedrals:
    """Find the two torsions about each residue, along the bonds of the beads.

    With beads named N, CA and C they are phi (C of the residue before, N, CA, C) and psi (N, CA,
    C, N of the next). Where a residue is one bead named CA or BB, they are the torsions of the
    four beads that end one residue after it, and that begin one before it.

    Args:
        topology: the beads, with bonds.

    Raises:
        InputError: if no residue has both.

    Reference: Ramachandran, Ramakrishnan and Sasisekharan 1963,
    doi:10.1016/S0022-2836(63)80023-6; pseudo-torsions: Levitt 1976,
    doi:10.1016/0022-2836(76)90004-8.
    """
    names, joined = topology.bead_names, bonded_beads(topology.bonds)

    def beside(bead: int, name: str) -> list[int]:
        return [other for other in sorted(joined.get(bead, ())) if names[other] == name]

    centres, found = [], []
    for centre in (k for k, name in enumerate(names) if name == "CA"):
        for n in beside(centre, "N")[:1]:
            for c in beside(centre, "C")[:1]:
                before = [b for b in beside(n, "C") if b != c][:1]
                after = [a for a in beside(c, "N") if a != n][:1]
                if before and after:
                    centres.append(centre)
                    found.append(((before[0], n, centre, c), (n, centre, c, after[0])))
    kind = ("phi", "psi")
    if not found:
        kind = ("pseudo-torsion before", "pseudo-torsion after")
        for centre, name in enumerate(names):
            if name in _ONE_BEAD and len(near := beside(centre, name)) == 2:
                before, after = ([b for b in beside(m, name) if b != centre] for m in near)
                if before and after:
                    inner = (near[0], centre, near[1])
                    centres.append(centre)
                    found.append(((before[0], *inner), (*inner, after[0])))
    if not found:
        there = ", ".join(dict.fromkeys(names))
        raise InputError(
            f"no residue's phi and psi can be told: that takes bonded beads N, CA and C of a "
            f"residue and those next to it (or a chain of five CA beads, for pseudo-torsions), "
            f"and there are {there}; map with `backbone`, or give quadruples of beads yourself"
        )
    residues = tuple(topology.label(k).rsplit("-", 1)[0] for k in centres)
    return BackboneDihedrals(kind, residues, tuple(found))


@dataclass(frozen=True, eq=False)
class Ramachandran:
    """Free energies over two torsions, of each residue and of all together.

    Attributes:
        dihedrals: which torsions.
        pooled: of all residues.
        by_residue: in the order of `dihedrals.residues`.
    """

    dihedrals: BackboneDihedrals
    pooled: FreeEnergySurface
    by_residue: tuple[FreeEnergySurface, ...]


def ramachandran(
    positions: Any,
    topology: CGTopology,
    *,
    temperature: Any,
    weights: Any = None,
    box_vectors: Any = None,
    dihedrals: BackboneDihedrals | None = None,
    bins: int = 36,
    blocks: int = 10,
) -> Ramachandran:
    """Return free energies over phi and psi with their errors, of each residue and pooled.

    Args:
        positions: (frames, beads, 3), nm, in an order in which neighbours are correlated: time, or
            copy after copy.
        topology: the beads.
        temperature: K.
        weights: (frames,); None: all alike.
        box_vectors: (3, 3) or (frames, 3, 3), nm; None: not periodic.
        dihedrals: from `backbone_dihedrals`, which is asked if None.
        bins: of each torsion, from -pi to pi.
        blocks: contiguous blocks of equal weight, for the errors.

    Raises:
        InputError: if the beads have no such torsions, or there are fewer frames than blocks.
    """
    which = backbone_dihedrals(topology) if dihedrals is None else dihedrals
    angles = which.angles(positions, box_vectors)
    edges = [np.linspace(-np.pi, np.pi, bins + 1)] * 2

    def surface(values: np.ndarray, given: Any) -> FreeEnergySurface:
        return free_energy_surface(
            values, temperature=temperature, weights=given, bins=edges, blocks=blocks
        )

    residues = angles.shape[1]
    # Frame by frame, so that a block of the pooled ones is of the same frames for all residues.
    every = None if weights is None else np.repeat(np.asarray(weights), residues)
    return Ramachandran(
        which,
        surface(angles.reshape(-1, 2), every),
        tuple(surface(angles[:, k], weights) for k in range(residues)),
    )


def residue_table(found: Ramachandran) -> Sequence[tuple[str, float, float]]:
    """Return of each residue its lowest free energy's two torsions, degrees."""
    rows = []
    for residue, surface in zip(found.dihedrals.residues, found.by_residue, strict=True):
        i, j = np.unravel_index(int(surface.probability.argmax()), surface.probability.shape)
        first, second = (np.degrees(c) for c in surface.centres)
        rows.append((residue, float(first[i]), float(second[j])))
    return rows
