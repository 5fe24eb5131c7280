"""Distances, angles, dihedrals and minimum images: the only place where they are computed.

Every function takes torch tensors, works under TorchScript and autograd, and accepts any leading
batch shape. Positions are ``(copies, beads, 3)`` in nm; index tensors are ``(terms, k)`` int64.
"""

import torch
from torch import Tensor


def minimum_image(displacements: Tensor, box_vectors: Tensor | None) -> Tensor:
    """Shift displacements by box vectors to the nearest periodic image.

    Args:
        displacements: (..., 3), nm.
        box_vectors: (3, 3) in OpenMM's reduced form (rows a, b, c; lower triangular), or None
            for no periodicity.

    Returns:
        (..., 3), nm. Exact for displacements shorter than half the smallest box width.
    """
    if box_vectors is None:
        return displacements
    box = box_vectors.to(displacements)
    for row in range(2, -1, -1):
        shift = torch.round(displacements[..., row] / box[row, row])
        displacements = displacements - shift.unsqueeze(-1) * box[row]
    return displacements


def displacements(
    positions: Tensor,
    pairs: Tensor,
    box_vectors: Tensor | None = None,
) -> Tensor:
    """Return the vectors from the first to the second bead of each pair.

    Args:
        positions: (copies, beads, 3), nm.
        pairs: (terms, 2) bead indices.
        box_vectors: (3, 3) or None.

    Returns:
        (copies, terms, 3), nm.
    """
    first = positions.index_select(1, pairs[:, 0])
    second = positions.index_select(1, pairs[:, 1])
    return minimum_image(second - first, box_vectors)


def norm(vectors: Tensor) -> Tensor:
    """Return the Euclidean length over the last dimension."""
    return vectors.square().sum(-1).sqrt()


def cosine_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of the bond angle between consecutive bond vectors.

    Args:
        first: (..., 3) vector from bead i to j, nm.
        second: (..., 3) vector from bead j to k, nm.

    Returns:
        (...), cos of the angle i-j-k (the angle at j, so consecutive parallel bonds give -1).
    """
    return -(first * second).sum(-1) / (norm(first) * norm(second))


def damped_torsions(first: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
    """Return sin(phi) and cos(phi), each times the sines of the two bond angles.

    The factor sin(a) sin(b) makes both smooth everywhere, also where three beads are in line and
    the torsion itself is undefined; plain sin and cos have infinite gradients there.

    Args:
        first, second, third: (..., 3) consecutive bond vectors of the four beads, nm.

    Returns:
        Two tensors (...): sin(phi) sin(a) sin(b) and cos(phi) sin(a) sin(b); phi in the IUPAC
        convention (cis is 0).
    """
    left = torch.linalg.cross(first, second)
    right = torch.linalg.cross(second, third)
    length_first, length_second, length_third = norm(first), norm(second), norm(third)
    scale = length_first * length_second * length_third
    sine = (first * right).sum(-1) / scale
    cosine = (left * right).sum(-1) / (scale * length_second)
    return sine, cosine


def dihedrals(
    positions: Tensor,
    quadruples: Tensor,
    box_vectors: Tensor | None = None,
) -> Tensor:
    """Return dihedral angles.

    Args:
        positions: (copies, beads, 3), nm.
        quadruples: (terms, 4) bead indices.
        box_vectors: (3, 3) or None.

    Returns:
        (copies, terms), radians in (-pi, pi], IUPAC convention (cis is 0).
    """
    sine, cosine = damped_torsions(
        displacements(positions, quadruples[:, 0:2], box_vectors),
        displacements(positions, quadruples[:, 1:3], box_vectors),
        displacements(positions, quadruples[:, 2:4], box_vectors),
    )
    return torch.atan2(sine, cosine)


def distances(
    positions: Tensor,
    pairs: Tensor,
    box_vectors: Tensor | None = None,
) -> Tensor:
    """Return the distances (copies, terms) in nm between the beads of each pair."""
    return norm(displacements(positions, pairs, box_vectors))


def all_pairs(beads: int) -> Tensor:
    """Return the (beads (beads - 1) / 2, 2) indices of all pairs i < j."""
    return torch.triu_indices(beads, beads, offset=1).T.contiguous()
