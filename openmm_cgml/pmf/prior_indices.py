"""Which beads of a molecule the terms of a prior act on, and under which bead types."""

from collections import Counter
from collections.abc import Sequence

from ..topology import CGTopology, bond_separations, bonded_angles, bonded_torsions

Beads = tuple[int, ...]

#: Pairs fewer bonds apart have no such term: bonds, angles and torsions hold them.
REPULSION_BONDS, ELECTROSTATICS_BONDS = 3, 4


def term_indices(topology: CGTopology, kind: str) -> list[Beads]:
    """Return the beads of every term of a kind.

    Args:
        topology: the molecule.
        kind: ``"bonds"``, ``"angles"``, ``"torsions"``, ``"impropers"``, ``"repulsion"`` or
            ``"electrostatics"``.
    """
    if kind == "bonds":
        return list(topology.bonds)
    if kind == "angles":
        return list(bonded_angles(topology.bonds))
    if kind == "torsions":
        return list(bonded_torsions(topology.bonds))
    if kind == "impropers":
        return improper_indices(topology)
    bonds = REPULSION_BONDS if kind == "repulsion" else ELECTROSTATICS_BONDS
    return distant_pairs(topology, bonds)


def improper_indices(topology: CGTopology) -> list[Beads]:
    """Return (first, branched bead, second, other) for beads with three neighbours or more.

    Neighbours are ordered by type, those of one type by index, so that a branch of the same types
    has the same sign in every molecule. A bead of m neighbours has m - 2 rows: each neighbour
    after the first two is held on its side of their plane with the bead.
    """
    around: dict[int, list[int]] = {}
    for i, j in topology.bonds:
        around.setdefault(i, []).append(j)
        around.setdefault(j, []).append(i)
    found: list[Beads] = []
    for centre, neighbours in sorted(around.items()):
        first, *others = sorted(neighbours, key=lambda k: (topology.bead_types[k], k))
        found += [(first, centre, others[0], other) for other in others[1:]]
    return found


def distant_pairs(topology: CGTopology, bonds: int) -> list[Beads]:
    """Return pairs i < j that are at least so many bonds apart, or not connected at all."""
    beads = len(topology)
    separations = bond_separations(beads, topology.bonds)
    return [
        (i, j)
        for i in range(beads)
        for j in range(i + 1, beads)
        # As many bonds as beads stands for no connection, also in a molecule of few beads.
        if separations[i, j] >= min(bonds, beads)
    ]


def torsion_shares(torsions: Sequence[Sequence[int]]) -> list[float]:
    """Return for each torsion 1 / (number of torsions about the same bond).

    They turn together, so that each one's distribution holds the whole of what turning that bond
    costs; in full, the sum would count it several times.
    """
    about = Counter((j, k) for _, j, k, _ in torsions)
    return [1 / about[j, k] for _, j, k, _ in torsions]


def type_key(types: Sequence[str], kind: str) -> tuple[str, ...]:
    """Return bead types in the order under which a table lists them.

    A term read backwards is the same term, except an improper, whose sign would change.
    """
    key = tuple(types)
    return key if kind == "impropers" else min(key, key[::-1])


def types_of(topology: CGTopology, beads: Sequence[int], kind: str) -> tuple[str, ...]:
    """Return the key of a term's beads; see `type_key`."""
    return type_key([topology.bead_types[b] for b in beads], kind)
