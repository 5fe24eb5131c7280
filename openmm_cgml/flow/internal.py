"""The shape of a molecule of beads as bonds, angles and torsions, and back."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import numpy as np

from ..errors import InputError
from ..geometry import angles as bond_angles
from ..geometry import dihedrals, distances, index_buffer, norm
from ..topology import CGTopology, bond_separations

Row = tuple[int, int, int, int]

_NONE = -1


class ZMatrix(nn.Module):
    """A bijection between the shape of a molecule and its bonds, angles and torsions.

    Called, it turns positions into coordinates; `inverse` builds positions of one orientation
    with the centre of geometry at the origin. Every bead but the first has a bond, every one but
    the first two an angle, every one but the first three a torsion: 3 N - 6 coordinates of N
    beads, 1 of two. A mirror image has the same bonds and angles and the opposite torsions.

    Both directions follow the dtype and device of what they are given and can be differentiated
    any number of times, except where the coordinates themselves have no derivative: at bonds of
    length 0, and torsions where three of the four beads are in line.

    Molecules must be whole: there is no minimum image here.

    Args:
        beads: number of beads N, at least 2.
        rows: (i, j, k, l) of each bead i in the order in which they are placed: bond i-j, angle
            i-j-k, torsion i-j-k-l. References stand in rows above; -1 where a coordinate is
            absent, which is in the first three rows.

    Attributes:
        beads: number of beads.
        rows: the same, as tuples.

    Raises:
        InputError: if the rows do not place every bead once by distinct beads placed before.
    """

    table: Tensor

    def __init__(self, beads: int, rows: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.beads = beads
        self.rows = _checked(beads, rows)
        self._levels = _levels(self.rows)
        # Not part of the state: the rows make it.
        self.register_buffer("table", index_buffer(self.rows, 4), persistent=False)

    @classmethod
    def of(cls, topology: CGTopology) -> "ZMatrix":
        """Choose the z-matrix of a molecule whose bonds connect all its beads.

        Beads are placed outwards along the bonds from the middle of the molecule, which halves
        the lever arm of a long chain. Of the beads that branch off together, the one with the
        largest part of the molecule behind it has the torsion about the bond; the others have
        theirs relative to it, which is stiff and holds the chirality. Bonds that close rings are
        no coordinates: their lengths follow from the others.

        Raises:
            InputError: if the topology has one bead only, or unconnected parts.
        """
        _require_two(len(topology))
        return cls(len(topology), _tree_rows(topology))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of bonds, angles and torsions."""
        return self.beads - 1, self.beads - 2, max(self.beads - 3, 0)

    def names(self, topology: CGTopology) -> tuple[str, ...]:
        """Return what messages call each coordinate, e.g. ``bond ALA2-CA ALA2-N``.

        Args:
            topology: names of the beads.

        Returns:
            Bonds, then angles, then torsions, each in the order of the rows.

        Raises:
            InputError: if the topology has another number of beads.
        """
        if len(topology) != self.beads:
            raise InputError(
                f"topology has {len(topology)} beads, the z-matrix {self.beads}; give the "
                "topology that the z-matrix was made of"
            )
        labels = [topology.label(bead) for bead in range(self.beads)]
        return tuple(
            " ".join([kind, *(labels[bead] for bead in row[:width])])
            for kind, width in (("bond", 2), ("angle", 3), ("torsion", 4))
            for row in self.rows[width - 1 :]
        )

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the internal coordinates of whole molecules.

        Args:
            positions: (copies, beads, 3), nm; anywhere, turned in any way.

        Returns:
            Bonds (copies, N - 1) in nm, angles (copies, N - 2) in radians in [0, pi], torsions
            (copies, N - 3) in radians in [-pi, pi], IUPAC convention (cis is 0).

        Raises:
            InputError: if the positions are not of that many beads.
        """
        if positions.dim() != 3 or positions.shape[1:] != (self.beads, 3):
            raise InputError(
                f"positions have shape {tuple(positions.shape)}, the z-matrix is of {self.beads} "
                f"beads; give (copies, {self.beads}, 3)"
            )
        return (
            distances(positions, self.table[1:, :2]),
            bond_angles(positions, self.table[2:, :3]),
            dihedrals(positions, self.table[3:]),
        )

    def inverse(self, bonds: Tensor, angles: Tensor, torsions: Tensor) -> Tensor:
        """Build positions from internal coordinates.

        Args:
            bonds: (copies, N - 1), nm, positive.
            angles: (copies, N - 2), radians in (0, pi).
            torsions: (copies, N - 3), radians, of any period.

        Returns:
            (copies, N, 3), nm: centre of geometry at the origin; the second bead is in the
            direction of x from the first, the third on the side of positive y.

        Raises:
            InputError: if their shapes are not those that `forward` returns.
        """
        self._require_shapes(bonds=bonds, angles=angles, torsions=torsions)
        placed = self._first_three(bonds, angles)
        # What each further bead adds to the one it is bonded to, in the frame of its references:
        # (copies, 3) a row.
        across = bonds[:, 2:] * angles[:, 1:].sin()
        steps = torch.stack(
            [bonds[:, 2:] * angles[:, 1:].cos(), across * torsions.cos(), across * torsions.sin()],
            dim=-1,
        ).unbind(1)
        for level in self._levels:
            step = torch.stack([steps[row - 3] for row in level], dim=1)
            j, k, m = (
                torch.stack([placed[self.rows[row][column]] for row in level], dim=1)
                for column in (1, 2, 3)
            )
            found = (j + _out_of_frame(step, k - j, m - k)).unbind(1)
            placed.update((self.rows[row][0], x) for row, x in zip(level, found, strict=True))
        positions = torch.stack([placed[bead] for bead in range(self.beads)], dim=1)
        return positions - positions.mean(1, keepdim=True)

    def log_volume(self, bonds: Tensor, angles: Tensor) -> Tensor:
        """Return ln of the volume of positions per volume of internal coordinates.

        With V the volume that this is the logarithm of, a density p of internal coordinates and
        the density q of the same shapes in all orientations are related by::

            ln q(x) = ln p(bonds, angles, torsions) - ln V
            ln V = sum 2 ln d + sum ln sin(theta) + ln(8 pi^2) - (3/2) ln N

        q is a density of mean-free positions, in nm^-(3N-3), measured along orthonormal
        directions of the space of positions with their centre of geometry at the origin.

        The first bond vector has d^2 dd and the sphere's 4 pi, the second bond d^2 sin(theta) and
        2 pi for turns about the first, every further one d^2 sin(theta) dd dtheta dphi, whatever
        its torsion is relative to. This is the volume of the positions relative to the first
        bead. Subtracting the mean of N numbers of which the first is 0 has the determinant
        N^(-1/2) (det(1 - 11^T / N) = 1 / N in N - 1 dimensions), in each of three directions.
        Two beads have no turns about their bond: 4 pi in the place of 8 pi^2.

        Args:
            bonds: (copies, N - 1), nm.
            angles: (copies, N - 2), radians in [0, pi].

        Returns:
            (copies,); -inf where beads coincide or three in a row are in line.

        Raises:
            InputError: if their shapes are not those that `forward` returns.
        """
        self._require_shapes(bonds=bonds, angles=angles)
        turns = 8 * math.pi**2 if self.beads > 2 else 4 * math.pi
        constant = math.log(turns) - 1.5 * math.log(self.beads)
        # Pi rounded to float32 is above pi: its sine is negative.
        sines = angles.sin().abs()
        return 2 * bonds.log().sum(1) + sines.log().sum(1) + constant

    def _first_three(self, bonds: Tensor, angles: Tensor) -> dict[int, Tensor]:
        """Return the positions (copies, 3) of the beads of the first three rows."""
        zero = torch.zeros_like(bonds[:, 0])
        placed = {
            self.rows[0][0]: torch.stack([zero, zero, zero], dim=-1),
            self.rows[1][0]: torch.stack([bonds[:, 0], zero, zero], dim=-1),
        }
        for bead, j, k, _ in self.rows[2:3]:
            towards = 1.0 if k == self.rows[1][0] else -1.0
            along = towards * bonds[:, 1] * angles[:, 0].cos()
            step = torch.stack([along, bonds[:, 1] * angles[:, 0].sin(), zero], dim=-1)
            placed[bead] = placed[j] + step
        return placed

    def _require_shapes(self, **coordinates: Tensor) -> None:
        copies = len(coordinates["bonds"])
        for (name, values), count in zip(coordinates.items(), self.counts, strict=False):
            if values.shape != (copies, count):
                raise InputError(
                    f"{name} have shape {tuple(values.shape)}, but {copies} copies of "
                    f"{self.beads} beads have {(copies, count)}; give them as `forward` returns "
                    "them"
                )


def _out_of_frame(steps: Tensor, axis: Tensor, side: Tensor) -> Tensor:
    """Turn vectors (copies, beads, 3) in frames along `axis`, then towards `side`, into nm."""
    axis = axis / norm(axis).unsqueeze(-1)
    normal = torch.linalg.cross(axis, side)
    normal = normal / norm(normal).unsqueeze(-1)
    towards = torch.linalg.cross(normal, axis)
    along, toward, out = steps.unsqueeze(-1).unbind(-2)
    # Seen along the axis from j to k, a positive torsion is clockwise (IUPAC).
    return along * axis + toward * towards - out * normal


def _require_two(beads: int) -> None:
    if beads < 2:
        raise InputError(
            f"a molecule of {beads} bead has no internal coordinates; map it to at least two beads"
        )


def _checked(beads: int, rows: Sequence[Sequence[int]]) -> tuple[Row, ...]:
    """Return the rows as tuples if they are those of a z-matrix."""
    _require_two(beads)
    if len(rows) != beads:
        raise InputError(f"{len(rows)} rows for {beads} beads; give a row for each")
    placed: set[int] = set()
    for number, row in enumerate(rows):
        width = min(number, 3)
        if len(row) != 4 or any(bead != _NONE for bead in row[width + 1 :]):
            raise InputError(
                f"row {number} is {tuple(row)}; give four numbers: a bead, the {width} to place "
                "it by, and -1 for the rest"
            )
        bead, *references = row[: width + 1]
        if bead in placed or not 0 <= bead < beads:
            raise InputError(
                f"row {number} places bead {bead}, which is none of the {beads} beads or has a "
                "row above; give a row for each"
            )
        if len(set(references)) != width or not placed.issuperset(references):
            raise InputError(
                f"row {number} places bead {bead} by beads {references}; give different beads "
                "that have rows above"
            )
        placed.add(bead)
    return tuple((int(i), int(j), int(k), int(m)) for i, j, k, m in rows)


def _levels(rows: Sequence[Row]) -> list[list[int]]:
    """Return the numbers of rows, from the fourth on, that can be placed together, in order."""
    depth = {row[0]: -1 for row in rows[:3]}
    levels: list[list[int]] = []
    for number, (bead, *references) in enumerate(rows[3:], 3):
        depth[bead] = 1 + max(depth[reference] for reference in references)
        if depth[bead] == len(levels):
            levels.append([])
        levels[depth[bead]].append(number)
    return levels


def _tree_rows(topology: CGTopology) -> list[Row]:
    """Return the rows of a spanning tree of the bonds; see `ZMatrix.of`."""
    root, parent, children = _spanning_tree(topology)
    order = [root]
    for bead in order:  # which grows meanwhile
        order += children[bead]
    # From two beads on the root has a child, from three on it has two: it is no end of a chain.
    axis, *turns = children[root]
    rows: list[Row] = [(root, _NONE, _NONE, _NONE), (axis, root, _NONE, _NONE)]
    for bead in order[2:]:
        j = parent[bead]
        k = axis if j == root else parent[j]
        foremost = next(child for child in children[j] if child != k)
        if bead != foremost:
            last = foremost
        elif j == root:
            last = _NONE  # the third row
        elif k == root:
            last = turns[0] if j == axis else axis
        else:
            last = parent[k]
        rows.append((bead, j, k, last))
    return rows


def _spanning_tree(topology: CGTopology) -> tuple[int, dict[int, int], list[list[int]]]:
    """Return the bead in the middle, the bead inwards of each other, the beads outwards of each.

    Beads outwards are in the order of the number of beads behind them, most first.
    """
    beads = len(topology)
    separations = bond_separations(beads, topology.bonds)
    _require_connected(topology, separations)
    root = min(range(beads), key=lambda b: (separations[b].max(), separations[b].sum(), b))
    depth = separations[root]
    inwards: dict[int, int] = {}
    for i, j in topology.bonds:  # in order: of several beads inwards, the first
        if depth[i] != depth[j]:
            inner, outer = (i, j) if depth[i] < depth[j] else (j, i)
            inwards.setdefault(outer, inner)
    outwards: list[list[int]] = [[] for _ in range(beads)]
    behind = [1] * beads
    for bead in sorted(inwards, key=lambda b: -depth[b]):
        outwards[inwards[bead]].append(bead)
        behind[inwards[bead]] += behind[bead]
    return root, inwards, [sorted(out, key=lambda b: (-behind[b], b)) for out in outwards]


def _require_connected(topology: CGTopology, separations: np.ndarray) -> None:
    """Refuse a topology of several parts, given the numbers of bonds between all beads."""
    together = separations < len(topology)
    firsts = [bead for bead in range(len(topology)) if not together[bead, :bead].any()]
    if len(firsts) == 1:
        return
    parts = [
        f"{topology.label(b)} of chain {topology.chain_ids[b]} (beads: {together[b].sum()})"
        for b in firsts[:4]
    ]
    more = f" and {len(firsts) - 4} more" if len(firsts) > 4 else ""
    raise InputError(
        f"topology has {len(firsts)} parts that no bonds connect, beginning with "
        f"{', '.join(parts)}{more}; internal coordinates do not say where the parts are: train a "
        "flow for each molecule, or give the topology the missing bonds"
    )
