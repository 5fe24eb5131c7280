"""Distances, angles, dihedrals and minimum images: the only place where they are computed.

Every function takes torch tensors, works under TorchScript and autograd, and accepts any leading
batch shape. Positions are ``(copies, beads, 3)`` in nm; index tensors are ``(terms, k)`` int64.
`InternalCoordinates` has the gradient of the same coordinates written by hand, for engines.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


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


def angles(
    positions: Tensor,
    triples: Tensor,
    box_vectors: Tensor | None = None,
) -> Tensor:
    """Return the angles of triples of beads, exact digits also near 0 and pi.

    The arc cosine would lose half of them there, and its derivative all.

    Args:
        positions: (copies, beads, 3), nm.
        triples: (terms, 3) bead indices, the tip second.
        box_vectors: (3, 3) or None.

    Returns:
        (copies, terms), radians in [0, pi].
    """
    first = displacements(positions, triples[:, 0:2], box_vectors)
    second = displacements(positions, triples[:, 1:3], box_vectors)
    return torch.atan2(norm(torch.linalg.cross(first, second)), -(first * second).sum(-1))


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


#: Numbers that the matrices of sums may have, all together, 16 MB.
_MOST_ADDING = 4_000_000


class Internals(NamedTuple):
    """Internal coordinates, and what their gradient needs again.

    Copies come last: every row is one long vector, so that gathers copy blocks and sums run over
    whole vectors. With copies first the same operations take five times as long.

    Attributes:
        values: (coordinates, copies), distances in nm.
        lengths: (vectors, 1, copies), nm.
        units: (vectors, 3, copies), directions of the vectors.
        left: (products, 3, copies), first factors.
        right: (products, 3, copies), second factors.
        products: (products, 1, copies), scalar products of the factors.
        crosses: (3 torsions, 3, copies), vector products of the torsions' factors.
    """

    values: Tensor
    lengths: Tensor
    units: Tensor
    left: Tensor
    right: Tensor
    products: Tensor
    crosses: Tensor


class InternalCoordinates(nn.Module):
    """Distances, cosines of angles, damped sines and cosines of torsions of one molecule.

    Called, it returns them for training, in operations that autograd differentiates. `evaluate`
    and `forces` are the same for engines, with the gradient written by hand.

    Args:
        pairs: (i, j) of each distance.
        angles: (i, j, k) of each angle at j.
        torsions: (i, j, k, l) of each torsion; see `damped_torsions`.
    """

    first: Tensor
    second: Tensor
    left: Tensor
    right: Tensor
    cycle: Tensor
    added: Tensor
    to_steps: Tensor
    to_beads: Tensor

    def __init__(
        self,
        pairs: Sequence[Sequence[int]] = (),
        angles: Sequence[Sequence[int]] = (),
        torsions: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        # A name for each coordinate, in the order of the values.
        self.names: list[tuple] = [
            *(("distance", *p) for p in pairs),
            *(("angle", *a) for a in angles),
            *(("sine", *t) for t in torsions),
            *(("cosine", *t) for t in torsions),
        ]
        # Vectors: first those of the pairs, then the steps that angles and torsions consist of.
        steps: dict[tuple[int, int], int] = {}

        def step(i: int, j: int) -> int:
            return steps.setdefault((i, j), len(steps))

        # Angles go outwards from the tip, so that the product of their directions is the cosine.
        # With u, v, w the directions along a torsion, the damped cosine is (u v)(v w) - u w and
        # the damped sine u (v x w); w goes back in the third product, so that all signs are plus.
        u = [step(i, j) for i, j, _, _ in torsions]
        v = [step(j, k) for _, j, k, _ in torsions]
        w = [step(k, m) for _, _, k, m in torsions]
        back = [step(m, k) for _, _, k, m in torsions]
        left = [step(j, i) for i, j, _ in angles] + u + v + u
        right = [step(j, k) for _, j, k in angles] + v + w + back
        ends = index_buffer([*pairs, *steps], 2)
        self.pairs, self.angles, self.torsions = len(pairs), len(angles), len(torsions)
        self.steps = len(steps)
        self.register_buffer("first", ends[:, 0].clone())
        self.register_buffer("second", ends[:, 1].clone())
        self.register_buffer("left", torch.tensor(left, dtype=torch.int64) + len(pairs))
        self.register_buffer("right", torch.tensor(right, dtype=torch.int64) + len(pairs))
        self.register_buffer("cycle", torch.tensor([1, 2, 0]))
        # Sums as matrix products: on a GPU index_add would add in a random order. But matrices
        # grow with the square of the molecule.
        self.beads = int(ends.max()) + 1 if len(ends) else 0
        added = torch.tensor(left + right + w + u + v, dtype=torch.int64)
        self.small = self.beads * len(ends) + len(added) * len(steps) <= _MOST_ADDING
        self.register_buffer("added", added)
        matrices = added.new_zeros(0).float(), added.new_zeros(0).float()
        if self.small:
            to_beads = _adding(self.first, self.beads) - _adding(self.second, self.beads)
            matrices = _adding(added, len(steps)), to_beads
        self.register_buffer("to_steps", matrices[0])
        self.register_buffer("to_beads", matrices[1])

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return the coordinates (copies, coordinates); arguments as of `displacements`."""
        ends = torch.stack([self.first, self.second], dim=1)
        vectors = displacements(positions, ends, box_vectors)
        a, n = self.angles, self.torsions
        left = vectors.index_select(1, self.left[: a + n])
        right = vectors.index_select(1, self.right[: a + 2 * n])
        cosines = cosine_angles(-left[:, :a], right[:, :a])
        sine, cosine = damped_torsions(left[:, a:], right[:, a : a + n], right[:, a + n :])
        return torch.cat([norm(vectors[:, : self.pairs]), cosines, sine, cosine], dim=1)

    def evaluate(self, positions: Tensor, box_vectors: Tensor | None = None) -> Internals:
        """Compute the coordinates.

        Args:
            positions: (copies, beads, 3), nm.
            box_vectors: (3, 3), nm, or None.
        """
        beads = positions.permute(1, 2, 0).contiguous()
        vectors = beads.index_select(0, self.second).sub_(beads.index_select(0, self.first))
        if box_vectors is not None:
            vectors = minimum_image(vectors.transpose(1, 2), box_vectors).transpose(1, 2)
        lengths = (vectors * vectors).sum(1, keepdim=True).sqrt_()
        units = vectors.div_(lengths)
        left, right = units.index_select(0, self.left), units.index_select(0, self.right)
        products = (left * right).sum(1, keepdim=True)
        crosses = self.cross(left[self.angles :], right[self.angles :])
        n = self.torsions
        sines = (left[self.angles : self.angles + n] * crosses[n : 2 * n]).sum(1, keepdim=True)
        cosines, uv, vw, uw = products.split([self.angles, n, n, n])
        parts = [lengths[: self.pairs], cosines, sines, torch.addcmul(uw, uv, vw)]
        values = torch.cat(parts).squeeze(1)
        return Internals(values, lengths, units, left, right, products, crosses)

    def forces(self, internals: Internals, gradient: Tensor, beads: int) -> Tensor:
        """Turn the gradient of an energy by the coordinates into forces.

        Args:
            internals: from `evaluate`.
            gradient: (coordinates, copies), kJ/mol a unit of each coordinate.
            beads: number of beads; those beyond the coordinates' feel no force.

        Returns:
            (copies, beads, 3), kJ/mol/nm.
        """
        n, copies = self.torsions, gradient.size(1)
        stretch, bend, sine, cosine = gradient.unsqueeze(1).split([self.pairs, self.angles, n, n])
        uv, vw = internals.products[self.angles : self.angles + 2 * n].split([n, n])
        slopes = torch.cat([bend, cosine * vw, cosine * uv, cosine])
        # The crosses are the gradient of the sine by w, u, v.
        twists = internals.crosses * torch.cat([sine, sine, sine])
        pulls = torch.cat([internals.right * slopes, internals.left * slopes, twists])
        steps = self.sum_rows(pulls, self.to_steps, self.added, self.steps)
        # So far by directions; a direction changes only across itself, by 1 / length.
        pair_units, units = internals.units.split([self.pairs, self.steps])
        steps.addcmul_((steps * units).sum(1, keepdim=True), units, value=-1)
        steps.div_(internals.lengths[self.pairs :])
        pulls = torch.cat([pair_units * stretch, steps])
        if self.small:
            forces = torch.mm(self.to_beads, pulls.view(-1, 3 * copies)).view(-1, 3, copies)
        else:
            forces = self.sum_rows(pulls, self.to_beads, self.first, self.beads)
            forces = forces - self.sum_rows(pulls, self.to_beads, self.second, self.beads)
        if forces.size(0) < beads:
            forces = nn.functional.pad(forces, [0, 0, 0, 0, 0, beads - forces.size(0)])
        return forces.permute(2, 0, 1).contiguous()

    def sum_rows(self, rows: Tensor, matrix: Tensor, to: Tensor, count: int) -> Tensor:
        """Return (count, 3, copies): rows (terms, 3, copies) added up where `to` says."""
        if self.small:
            return torch.mm(matrix, rows.view(-1, 3 * rows.size(2))).view(-1, 3, rows.size(2))
        sums = torch.zeros_like(rows[:1]).expand(count, -1, -1)
        return sums.index_add(0, to, rows)

    def cross(self, first: Tensor, second: Tensor) -> Tensor:
        """Return vector products over dimension 1; torch's own is four times slower here."""
        turned = first * second.index_select(1, self.cycle)
        turned.addcmul_(first.index_select(1, self.cycle), second, value=-1)
        return turned.index_select(1, self.cycle)


def union(parts: Iterable[InternalCoordinates]) -> tuple[InternalCoordinates, list[list[int]]]:
    """Return coordinates that comprise several others', each once, and where each's are there."""
    wanted = [part.names for part in parts]
    names = list(dict.fromkeys(name for part in wanted for name in part))
    pairs, angles, torsions = (
        [beads for kind, *beads in names if kind == which]
        for which in ("distance", "angle", "sine")
    )
    joint = InternalCoordinates(pairs, angles, torsions)
    row = {name: k for k, name in enumerate(joint.names)}
    return joint, [[row[name] for name in part] for part in wanted]


def index_buffer(terms: Sequence[Sequence[int]], width: int) -> Tensor:
    """Return bead indices as a (terms, width) int64 tensor, also where there are none."""
    return torch.tensor([list(t) for t in terms], dtype=torch.int64).reshape(-1, width)


def _adding(rows: Sequence[int] | Tensor, count: int) -> Tensor:
    """Return the (count, terms) matrix that adds each term to its row."""
    return (torch.arange(count)[:, None] == torch.as_tensor(rows)).float()
