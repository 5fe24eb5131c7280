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

from collections.abc import Iterable
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

#: Fields up to which beads use those of their neighbours too.
_MOST = 160
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
            for start in range(0, len(forces), 500):  # fields take much more room than forces
                part = slice(start, start + 500)
                values = fields.evaluate(positions[part], forces[part])
                for bead, weights in enumerate(coefficients):
                    if len(weights):
                        added = fields.combine(values, bead, weights)
                        mapped[part, beads[:, bead]] += added.reshape(-1, len(beads), 3)
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
        self.fields = tuple(
            RigidMotions(mapping, kind, self.constraints) for kind in self.gram.kinds
        )
        shapes = []
        for fields in self.fields:
            for bead in range(len(fields.kind.matrix)):
                count = fields.count(bead)
                shapes += [(count, count), (count, len(fields.kind.groups))]
        self.sums = BlockSums(shapes)

    def add(self, forces: np.ndarray, positions: np.ndarray) -> None:
        """Take forces, kJ/mol/nm, and positions, nm, that follow those added before."""
        super().add(forces, positions)
        self.sums.add(len(forces), lambda part: self._moments(forces[part], positions[part]))

    def _moments(self, forces: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        moments = []
        for fields, tie in zip(self.fields, self.gram.ties, strict=True):
            if not any(fields.count(b) for b in range(len(fields.kind.matrix))):
                moments += [np.zeros((0, 0)), np.zeros((0, len(tie)))] * len(fields.kind.matrix)
                continue
            values = fields.evaluate(positions, forces)
            grouped = np.einsum("ga,nax->ngx", tie, fields.kind.gather(forces))
            flat = grouped.transpose(0, 2, 1).reshape(-1, len(tie))
            for bead in range(len(fields.kind.matrix)):
                columns = fields.columns(values, bead)
                moments += [columns.T @ columns, columns.T @ flat]
        return moments

    def fit(self, in_sample: bool = True) -> Any:
        """Return the map of least noise.

        Args:
            in_sample: whether it will be used on the frames added. The coefficients then are held
                back where there are few frames, or they would fit the mean force away.
        """
        base = super().fit(in_sample)
        rows = []  # of the constant map, for the groups of each kind
        for fields in self.fields:
            first = [g[0] for g in fields.kind.groups]
            atoms = fields.kind.atoms[0][first]
            rows += [np.asarray(base.matrix[[b]][:, atoms].todense()).ravel()
                     for b in fields.kind.beads[0]]  # fmt: skip
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

    Attributes:
        coordinates: bonds, angles and torsions of the beads, numbered within the molecule.
        motions: (coordinate, group, how): ``"slide"`` along the bond, ``"turn"`` about the
            coordinate's axis, ``"spin"`` about the group's own atom or bead, parallel to it.
    """

    def __init__(
        self, mapping: Mapping, kind: MoleculeKind, constraints: Iterable[tuple[int, int]]
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
        near = self._owners(atom_bonds)
        around = [{b} for b in range(len(kind.matrix))]
        for i, j in bonds:
            around[i].add(j)
            around[j].add(i)
        for reach in (1, 0):  # as far as the number of fields allows
            self.motions: list[tuple[int, int, str]] = []
            for number, beads in enumerate(self.coordinates):
                region = set(beads)
                if reach:
                    region = set().union(*(around[b] for b in beads))
                for group in range(len(kind.groups)):
                    if near[group] & region:
                        self.motions += [(number, group, how) for how in self._ways(beads, group)]
            self._bead_fields = [self._fields_of(b, near) for b in range(len(kind.matrix))]
            if max(self.count(b) for b in range(len(kind.matrix))) <= _MOST:
                break

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

    def _fields_of(self, bead: int, near: list[set[int]]) -> tuple[np.ndarray, ...]:
        """Return a bead's motions, their coordinates and its place in them, and free groups."""
        mine = [
            (m, c, self.coordinates[c].index(bead))
            for m, (c, _, _) in enumerate(self.motions)
            if bead in self.coordinates[c]
        ]
        region = {b for _, c, _ in mine for b in self.coordinates[c]} | {bead}
        free = [g for g, holds in enumerate(self._holds_bead) if not holds and near[g] & region]
        motions = np.array(mine, dtype=int).reshape(-1, 3)
        return motions[:, 0], motions[:, 1], motions[:, 2], np.array(free, dtype=int)

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

    def evaluate(self, positions: np.ndarray, forces: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return w . f of each motion, group forces, and gradients of the coordinates.

        Args:
            positions: (frames, atoms, 3) of the whole system, nm.
            forces: likewise, kJ/mol/nm.

        Returns:
            (samples, motions), (samples, groups, 3) and (samples, coordinates, 4, 3); a sample
            is a molecule in a frame.
        """
        x = self.kind.gather(np.asarray(positions, dtype=np.float64))
        f = self.kind.gather(np.asarray(forces, dtype=np.float64))
        beads = np.einsum("ba,nax->nbx", self.kind.matrix, x)
        centre = beads.mean(axis=1, keepdims=True)  # moments about nearby points round off less
        x, beads = x - centre, beads - centre
        tie = self.kind.tie
        group_forces = np.einsum("ga,nax->ngx", tie, f)
        moments = np.einsum("ga,nax->ngx", tie, np.cross(x, f))
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
