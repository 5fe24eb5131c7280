"""Force maps that depend on the configuration: less noise than any constant map, same mean force.

Let w(r) be a displacement of the atoms that leaves every bead in place, M w = 0, keeps every
constrained distance and does not change volumes, div w = 0. Then (integration by parts in the
distribution at fixed beads; Ciccotti, Kapral, Vanden-Eijnden 2005, doi:10.1002/cphc.200400669)

    < w . f >_R = 0,

so any vector c(R) times w . f can be added to a bead's force without changing its mean. With
suitable c it takes noise away: forces on atoms beside the beads say what of a bead's force is
mere fluctuation. The displacements here are rigid motions of one constrained group of atoms:

- translation along a bond between two beads,
- rotation about an axis through beads: the axis of a torsion, or the normal of an angle,
- rotation about itself, or about the bead it contains, parallel to such an axis.

Their axes depend on beads and not on the atoms that move, so they do not change volumes; a group
moves as one body, so distances within it, and angles between its constrained bonds, do not change.
The vectors c(R) are gradients of the coordinate (bond, angle, torsion) by the bead. This is linear
in the coefficients, which least squares finds on top of the optimal constant map; Kraemer et al.
2023, doi:10.1021/acs.jpclett.3c00444, have the constant case.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..topology import bonded_angles, bonded_torsions
from .core import Mapping
from .force_map import ForceMap, OptimalFit
from .kinds import BlockSums, MoleculeKind

#: Ridge strengths tried by cross-validation, in units of each field's own mean square; the last
#: leaves the optimal constant map as it is.
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0, 100.0, np.inf)

#: Fields a bead up to which groups near its neighbours count too.
_MOST = 160
#: Numbers that fields may take at a time, 32 MB.
_NUMBERS = 4_000_000
#: Share of the mean force that may be lost where a map is used on the frames it was fitted to: p
#: coefficients fitted to n numbers take p / n of anything away that is in them.
_LOST = 0.01
# Where three beads are nearly in line, a torsion's gradient diverges; a vector that is a function
# of the beads may be any, so it is turned down there.
_IN_LINE = 0.05


@dataclass(frozen=True, eq=False)
class RotationForceMap:
    """The optimal constant map, and for each bead rigid motions of groups of atoms near it.

    Attributes:
        base: the optimal constant map.
        fields: the motions of each kind of molecule.
        coefficients: for each kind and each of its beads, what its fields are multiplied by.
        mean_square: cross-validated mean of F^2 per component, (kJ/mol/nm)^2.
        ridge: regularisation chosen.
    """

    base: ForceMap
    fields: tuple["RigidMotions", ...]
    coefficients: tuple[tuple[np.ndarray, ...], ...]
    mean_square: float | None = None
    ridge: float | None = None
    name: str = "rotation"

    @property
    def matrix(self) -> Any:
        """The constant part, sparse (beads, atoms)."""
        return self.base.matrix

    @property
    def constraint_groups(self) -> tuple[tuple[int, ...], ...]:
        """Atoms tied by constraints, each group ascending."""
        return self.base.constraint_groups

    def map_forces(self, forces: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """Map forces (frames, atoms, 3) to (frames, beads, 3), kJ/mol/nm.

        Args:
            forces: kJ/mol/nm.
            positions: (frames, atoms, 3) of the same frames, nm, molecules whole.

        Raises:
            InputError: if no positions are given.
        """
        if positions is None:
            raise InputError(f"the {self.name} force map needs the positions too; give them")
        mapped = self.base.map_forces(forces)
        for fields, coefficients in zip(self.fields, self.coefficients, strict=True):
            beads = fields.kind.beads
            if not any(len(c) for c in coefficients):
                continue
            added = np.zeros((len(forces) * len(beads), beads.shape[1], 3))
            for part, x, f in fields.samples(positions, forces):
                values = fields.evaluate(x, f)
                for bead, weights in enumerate(coefficients):
                    if len(weights):
                        added[part, bead] = fields.combine(values, bead, weights)
            mapped[:, beads] += added.reshape(len(forces), *beads.shape, 3)
        return mapped

    def describe(self) -> dict[str, Any]:
        """Return what a dataset records of the map, JSON-able."""
        kinds = []
        for fields, coefficients in zip(self.fields, self.coefficients, strict=True):
            kinds.append(
                {
                    "beads": fields.kind.beads.tolist(),
                    "coordinates": [list(c) for c in fields.coordinates],
                    "fields": [fields.names(b) for b in range(len(coefficients))],
                    "coefficients": [c.tolist() for c in coefficients],
                }
            )
        return {
            **self.base.describe(),
            "name": self.name,
            "mean_square": self.mean_square,
            "rotation_ridge": self.ridge,
            "compared": {**self.base.compared, self.name: self.mean_square},
            "kinds": kinds,
        }


class RotationFit(OptimalFit):
    """Make the configuration-dependent map from streamed forces and positions."""

    def __init__(self, mapping: Mapping, constraints: Iterable[tuple[int, int]]) -> None:
        super().__init__(mapping, constraints)
        room = BlockSums.room // len(self.gram.kinds)
        self.fields = tuple(
            RigidMotions(mapping, kind, self.constraints, room) for kind in self.gram.kinds
        )
        self.sums = BlockSums([shape for fields in self.fields for shape in fields.shapes()])

    def add(self, forces: np.ndarray, positions: np.ndarray) -> None:
        """Take forces, kJ/mol/nm, and positions, nm, that follow those added before."""
        super().add(forces, positions)
        self.sums.add(len(forces), lambda part: self._moments(forces[part], positions[part]))

    def _moments(self, forces: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        moments = []
        for fields in self.fields:
            sums = [np.zeros(shape) for shape in fields.shapes()]
            for _, x, f in fields.samples(positions, forces) if any(s.size for s in sums) else ():
                values = fields.evaluate(x, f)
                for bead in range(len(fields.kind.matrix)):
                    columns = fields.columns(values, bead)
                    near = values[1][:, fields.near[bead]].transpose(0, 2, 1)
                    sums[2 * bead] += columns.T @ columns
                    sums[2 * bead + 1] += columns.T @ near.reshape(len(columns), -1)
            moments += sums
        return moments

    def fit(self, in_sample: bool = True) -> Any:
        """Return the map of least noise.

        Args:
            in_sample: whether it will be used on the frames added. The coefficients then are held
                back where there are few frames, or they would fit the mean force away.
        """
        base = super().fit(in_sample)
        rows = []  # of the constant map, for the groups near each bead
        for fields in self.fields:
            first = [g[0] for g in fields.kind.groups]
            atoms = fields.kind.atoms[0][first]
            for bead, number in enumerate(fields.kind.beads[0]):
                row = np.asarray(base.matrix[[number]].todense()).ravel()
                rows.append(row[atoms[fields.near[bead]]])
        molecules = [len(f.kind.beads) for f in self.fields for _ in f.kind.matrix]
        scores = dict.fromkeys(RIDGES, 0.0)
        folds = list(self.sums.folds())
        for kept, held in folds:
            for number, row in enumerate(rows):
                squares, cross = kept[2 * number : 2 * number + 2]
                solve = _Ridge(squares, cross @ row)
                for ridge in RIDGES:
                    scores[ridge] += _change(solve(ridge), row, *held[2 * number : 2 * number + 2])
        total = self.sums.total()
        solvers = [_Ridge(total[2 * n], total[2 * n + 1] @ row) for n, row in enumerate(rows)]
        allowed = list(RIDGES)
        if in_sample:
            room = [_LOST * 3 * sum(self.sums.frames) * count for count in molecules]
            allowed = [
                ridge
                for ridge in RIDGES
                if all(s.freedom(ridge) <= r for s, r in zip(solvers, room, strict=True))
            ]
        ridge = min(allowed, key=lambda r: scores[r]) if folds else np.inf
        solved = [solver(ridge) for solver in solvers]
        parts = iter(solved)
        coefficients = tuple(tuple(next(parts) for _ in f.kind.matrix) for f in self.fields)
        components = 3 * sum(self.sums.frames) * sum(molecules)
        change = scores[ridge]
        return RotationForceMap(
            base,
            self.fields,
            coefficients,
            mean_square=float((base.mean_square or 0.0) + change / components),
            ridge=None if np.isinf(ridge) else ridge,
        )


class RigidMotions:
    """Rigid motions of constrained groups that leave beads in place, of one kind of molecule.

    Args:
        mapping: the position map.
        kind: the molecules.
        constraints: pairs of atoms at fixed distances.
        room: numbers that the moments of the fields may take. Where they would take more, only
            groups closer to the beads are moved, none if need be.

    Attributes:
        coordinates: bonds, angles and torsions of the beads, numbered within the molecule.
        motions: (coordinate, group, how): ``"slide"`` along the bond, ``"turn"`` about the
            coordinate's axis, ``"spin"`` about the group's own atom or bead, parallel to it.
        near: for each bead, the groups whose forces are weighed against its fields. Farther ones
            hardly depend on what these move; leaving them out does not change the mean force.
        most: fields that one bead has at most.
    """

    def __init__(
        self,
        mapping: Mapping,
        kind: MoleculeKind,
        constraints: Iterable[tuple[int, int]],
        room: int = BlockSums.room,
    ) -> None:
        self.kind = kind
        local = {int(b): k for k, b in enumerate(kind.beads[0])}
        bonds = [(local[i], local[j]) for i, j in mapping.topology.bonds if i in local]
        self.coordinates: list[tuple[int, ...]] = [
            *bonds,
            *bonded_angles(bonds),
            *bonded_torsions(bonds),
        ]
        index = {int(a): k for k, a in enumerate(kind.atoms[0])}
        atom_bonds = [(index[i], index[j]) for i, j in mapping.atom_bonds.tolist() if i in index]
        tied = [(index[i], index[j]) for i, j in constraints if i in index]
        self._holds_bead, self._anchor = self._anchors(tied)
        owners = self._owners(atom_bonds)
        self._around: list[set[int]] = [{b} for b in range(len(kind.matrix))]
        for i, j in bonds:
            self._around[i].add(j)
            self._around[j].add(i)
        for reach in (1, 0, -1, None):
            self._choose(owners, reach)
            size = sum(int(np.prod(shape)) for shape in self.shapes())
            if size <= room and (reach != 1 or self.most <= _MOST):
                break
        if reach is None:
            warnings.warn(
                f"a molecule of {len(kind.matrix)} beads is too large for a force map that "
                "depends on the configuration; its map is the optimal constant one",
                stacklevel=2,
            )

    def _choose(self, owners: list[set[int]], reach: int | None) -> None:
        """Choose the motions, each bead's share of them, and the groups near."""
        beads = range(len(self.kind.matrix))
        self.motions: list[tuple[int, int, str]] = []
        for number, coordinate in enumerate(self.coordinates):
            region = self._region(coordinate, reach)
            for group in range(len(self.kind.groups)):
                if owners[group] & region:
                    self.motions += [(number, group, how) for how in self._ways(coordinate, group)]
        self._bead_fields = [self._fields_of(b, owners, reach) for b in beads]
        self.near = [self._groups_near(b, owners) for b in beads]
        self.most = max(self.count(b) for b in beads)

    def _region(self, beads: Sequence[int], reach: int | None) -> set[int]:
        """Return the beads whose groups a coordinate moves: also neighbours, its own, inner."""
        if reach is None:
            return set()
        if reach == 1:
            return set().union(*(self._around[b] for b in beads))
        return set(beads if reach == 0 or len(beads) == 2 else beads[1:-1])

    def _anchors(self, tied: list[tuple[int, int]]) -> tuple[list[bool], list[int | None]]:
        """Return of each group whether it has atoms of beads, and the atom that it spins about."""
        partners = np.bincount(
            np.array(tied, dtype=int).ravel(), minlength=self.kind.matrix.shape[1]
        )
        rows = [set(np.flatnonzero(row)) for row in self.kind.matrix]
        holds, anchors = [], []
        for group in self.kind.groups:
            beads = [row for row in rows if row & set(group)]
            holds.append(bool(beads))
            anchor: int | None = None
            if len(group) > 1 and not beads:
                anchor = max(group, key=lambda a: (partners[a], -a))
            elif len(group) > 1 and len(beads) == 1 and len(beads[0]) == 1:
                anchor = int(next(iter(beads[0])))
            anchors.append(None if anchor is None else int(anchor))
        return holds, anchors

    def _owners(self, bonds: list[tuple[int, int]]) -> list[set[int]]:
        """Return the beads nearest to each group, counted in bonds; all where there are none."""
        around: dict[int, list[int]] = {}
        for i, j in bonds:
            around.setdefault(i, []).append(j)
            around.setdefault(j, []).append(i)
        owner: dict[int, set[int]] = {}
        for bead, row in enumerate(self.kind.matrix):
            for index in np.flatnonzero(row):
                owner.setdefault(int(index), set()).add(bead)
        frontier = sorted(owner)
        while frontier:
            reached: dict[int, set[int]] = {}
            for atom in frontier:
                for other in around.get(atom, ()):
                    if other not in owner:
                        reached.setdefault(other, set()).update(owner[atom])
            owner |= reached
            frontier = sorted(reached)
        everyone = set(range(len(self.kind.matrix)))
        return [
            set().union(*(owner.get(a, everyone) for a in group)) for group in self.kind.groups
        ]

    def _ways(self, beads: tuple[int, ...], group: int) -> list[str]:
        if len(beads) == 2:
            return [] if self._holds_bead[group] else ["slide"]
        ways = [] if self._holds_bead[group] else ["turn"]
        return ways if self._anchor[group] is None else [*ways, "spin"]

    def _fields_of(
        self, bead: int, owners: list[set[int]], reach: int | None
    ) -> tuple[np.ndarray, ...]:
        """Return a bead's motions, their coordinates and its place in them, and free groups."""
        mine = [
            (m, c, self.coordinates[c].index(bead))
            for m, (c, _, _) in enumerate(self.motions)
            if bead in self.coordinates[c]
        ]
        region = {b for _, c, _ in mine for b in self.coordinates[c]} | {bead}
        if reach is None:
            region = set()
        elif reach == -1:
            region = self._around[bead]
        free = [g for g, holds in enumerate(self._holds_bead) if not holds and owners[g] & region]
        motions = np.array(mine, dtype=int).reshape(-1, 3)
        return motions[:, 0], motions[:, 1], motions[:, 2], np.array(free, dtype=int)

    def _groups_near(self, bead: int, owners: list[set[int]]) -> np.ndarray:
        """Return the groups of beads up to two bonds from what a bead's fields move."""
        moved = {self.motions[m][1] for m in self._bead_fields[bead][0]}
        moved |= set(self._bead_fields[bead][3].tolist())
        region = {bead}.union(*(owners[g] for g in moved))
        for _ in range(2):
            region = set().union(*(self._around[b] for b in region))
        return np.array([g for g, own in enumerate(owners) if own & region], dtype=int)

    def shapes(self) -> list[tuple[int, int]]:
        """Return for each bead the shapes of its fields' moments, and of those with forces."""
        found = []
        for bead in range(len(self.kind.matrix)):
            count = self.count(bead)
            found += [(count, count), (count, len(self.near[bead]))]
        return found

    def samples(
        self, positions: np.ndarray, forces: np.ndarray
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield (which, positions, forces) of as many samples as there is room for.

        A sample is a molecule in a frame, with its own atoms only; frames (n, atoms, 3) of the
        whole system come apart in the order (frame, molecule).
        """
        molecules = len(self.kind.atoms)
        width = 12 * len(self.motions) + 6 * self.most + 60 * len(self.coordinates)
        size = max(1, _NUMBERS // (width + 6 * self.kind.atoms.shape[1]))
        step = max(1, size // molecules)
        for start in range(0, len(forces), step):
            x = self.kind.gather(positions[start : start + step])
            f = self.kind.gather(forces[start : start + step])
            for first in range(0, len(x), size):
                count = len(x[first : first + size])
                offset = start * molecules + first
                yield (
                    slice(offset, offset + count),
                    np.asarray(x[first : first + count], dtype=np.float64),
                    np.asarray(f[first : first + count], dtype=np.float64),
                )

    def count(self, bead: int) -> int:
        """Return the number of a bead's fields."""
        motions, _, _, free = self._bead_fields[bead]
        return len(motions) + len(free)

    def names(self, bead: int) -> list[list[Any]]:
        """Return [how, coordinate, group] of each field; coordinate None where there is none."""
        motions, _, _, free = self._bead_fields[bead]
        named: list[list[Any]] = [
            [how, c, list(self.kind.groups[g])] for c, g, how in (self.motions[m] for m in motions)
        ]
        return named + [["translate", None, list(self.kind.groups[g])] for g in free]

    def evaluate(self, x: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return w . f of each motion, group forces, and gradients of the coordinates.

        Args:
            x: positions (samples, atoms of one molecule, 3), nm; see `samples`.
            f: forces, likewise, kJ/mol/nm.

        Returns:
            (samples, motions), (samples, groups, 3) and (samples, coordinates, 4, 3).
        """
        beads = self.kind.matrix @ x
        centre = beads.mean(axis=1, keepdims=True)  # moments about nearby points round off less
        x, beads = x - centre, beads - centre
        tie = self.kind.tie
        group_forces = tie @ f
        moments = tie @ np.cross(x, f)
        anchors = [0 if a is None else a for a in self._anchor]
        spins = moments - np.cross(x[:, anchors], group_forces)
        axes, points, gradients = self._axes(beads)
        powers = np.zeros((len(x), len(self.motions)))
        for how in ("slide", "turn", "spin"):
            chosen = [m for m, motion in enumerate(self.motions) if motion[2] == how]
            c = [self.motions[m][0] for m in chosen]
            g = [self.motions[m][1] for m in chosen]
            if how == "slide":
                pull = group_forces[:, g]
            elif how == "turn":
                pull = moments[:, g] - np.cross(points[:, c], group_forces[:, g])
            else:
                pull = spins[:, g]
            powers[:, chosen] = np.einsum("nmx,nmx->nm", axes[:, c], pull)
        return powers, group_forces, gradients

    def _axes(self, beads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return of each coordinate its axis, a point on it, and its gradient by its beads."""
        samples, count = len(beads), len(self.coordinates)
        axes, points = np.zeros((samples, count, 3)), np.zeros((samples, count, 3))
        gradients = np.zeros((samples, count, 4, 3))
        for width in (2, 3, 4):
            rows = [k for k, c in enumerate(self.coordinates) if len(c) == width]
            if not rows:
                continue
            quads = beads[:, [list(self.coordinates[k]) for k in rows]]
            gradients[:, rows, :width] = _gradients(quads)
            points[:, rows] = quads[:, :, 1]
            if width == 3:
                back, on = quads[:, :, 0] - quads[:, :, 1], quads[:, :, 2] - quads[:, :, 1]
                axis = np.cross(back, on)
            else:
                axis = quads[:, :, width // 2] - quads[:, :, width // 2 - 1]
            length = np.linalg.norm(axis, axis=-1, keepdims=True)
            axes[:, rows] = axis / np.where(length > 0, length, np.inf)
        return axes, points, gradients

    def columns(self, values: tuple[np.ndarray, ...], bead: int) -> np.ndarray:
        """Return a bead's fields (samples x 3, fields) from `evaluate`'s values."""
        powers, group_forces, gradients = values
        motions, coordinates, places, free = self._bead_fields[bead]
        turned = powers[:, motions, None] * gradients[:, coordinates, places]
        fields = np.concatenate([turned, group_forces[:, free]], axis=1)
        return fields.transpose(0, 2, 1).reshape(3 * len(fields), fields.shape[1])

    def combine(
        self, values: tuple[np.ndarray, ...], bead: int, coefficients: np.ndarray
    ) -> np.ndarray:
        """Return the sum (samples, 3) of a bead's fields times coefficients."""
        return (self.columns(values, bead) @ coefficients).reshape(-1, 3)


class _Ridge:
    """Solutions of one ridge regression at many strengths, from its moments."""

    def __init__(self, squares: np.ndarray, cross: np.ndarray) -> None:
        scale = np.sqrt(np.diag(squares))
        self._scale = np.where(scale > 0, scale, np.inf)  # fields that never move anything
        values, vectors = np.linalg.eigh(squares / np.outer(self._scale, self._scale))
        self._values, self._vectors = np.maximum(values, 0), vectors
        self._target = vectors.T @ (cross / self._scale)

    def freedom(self, ridge: float) -> float:
        """Return the effective number of coefficients."""
        return 0.0 if np.isinf(ridge) else float((self._values / (self._values + ridge)).sum())

    def __call__(self, ridge: float) -> np.ndarray:
        if np.isinf(ridge):
            return np.zeros(len(self._scale))
        return -(self._vectors @ (self._target / (self._values + ridge))) / self._scale


def _change(
    coefficients: np.ndarray, row: np.ndarray, squares: np.ndarray, cross: np.ndarray
) -> float:
    """Return by how much fields change a bead's sum of squared forces."""
    return float(coefficients @ squares @ coefficients + 2 * coefficients @ cross @ row)


def _gradients(beads: np.ndarray) -> np.ndarray:
    """Return the gradients of distances, angles or torsions of (..., 2-4, 3) beads by them."""
    import torch

    from ..geometry import cosine_angles, damped_torsions, norm

    x = torch.from_numpy(np.ascontiguousarray(beads)).requires_grad_()
    steps = x[..., 1:, :] - x[..., :-1, :]
    if beads.shape[-2] == 2:
        value = norm(steps[..., 0, :])
        damping = torch.ones_like(value)
    elif beads.shape[-2] == 3:
        cosine = cosine_angles(steps[..., 0, :], steps[..., 1, :])
        value, damping = cosine, torch.ones_like(cosine)
    else:
        sine, cosine = damped_torsions(steps[..., 0, :], steps[..., 1, :], steps[..., 2, :])
        value = torch.atan2(sine, cosine)
        bent = (sine.square() + cosine.square()).sqrt().detach()
        damping = bent / (bent + _IN_LINE)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    found = (gradient * damping[..., None, None]).numpy()
    return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
