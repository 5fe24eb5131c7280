"""Force maps: which combination of atomistic forces estimates the beads' mean force.

A constant linear force map F = B f has the mean force of the map R = M r if (Ciccotti, Kapral,
Vanden-Eijnden 2005, doi:10.1002/cphc.200400669; Noid et al. 2008, doi:10.1063/1.2938860)

1. B M^T = 1: bead I's row moves bead I by one and no other bead, and
2. the row's displacement keeps every constrained distance; a constant row does so if it has the
   same value on all atoms that constraints join.

All such maps have the same mean force; they differ in noise. The *basic* map sums the forces on
the atoms of a bead and what is constrained to them. The *optimal* map has the least variance
(Kraemer et al. 2023, doi:10.1021/acs.jpclett.3c00444).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse

from ..errors import InputError
from .constraints import constraint_groups, tie_matrix
from .core import Mapping, apply_matrix, triplets
from .kinds import BlockSums, molecule_kinds

#: Ridge strengths tried by cross-validation, in units of the mean diagonal of the Gram matrix.
RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, eq=False)
class ForceMap:
    """A constant linear force map F = B f.

    Attributes:
        name: ``"basic"``, ``"optimal"`` or ``"custom"``.
        matrix: sparse (beads, atoms).
        constraint_groups: atoms tied by constraints, each group ascending.
        mean_square: mean of F^2 per component over the frames it was fitted on,
            (kJ/mol/nm)^2; None if it was not fitted. Cross-validated for the optimal map.
        ridge: regularisation chosen, in units of the mean diagonal of the Gram matrix.
        compared: mean squares that the maps leave on the frames of the fit, name -> (kJ/mol/nm)^2;
            cross-validated where there is something to fit.
    """

    name: str
    matrix: Any
    constraint_groups: tuple[tuple[int, ...], ...]
    mean_square: float | None = None
    ridge: float | None = None
    compared: dict[str, float] = field(default_factory=dict)

    def map_forces(self, forces: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """Map forces (frames, atoms, 3) to (frames, beads, 3), kJ/mol/nm.

        Positions have no influence: the map is constant.
        """
        return apply_matrix(self.matrix, forces)

    def describe(self) -> dict[str, Any]:
        """Return what a dataset records of the map, JSON-able."""
        return {
            "name": self.name,
            "matrix": triplets(self.matrix),
            "constraint_groups": [list(g) for g in self.constraint_groups if len(g) > 1],
            "mean_square": self.mean_square,
            "ridge": self.ridge,
            "compared": self.compared,
        }


class BasicFit:
    """Make the basic map; takes no statistics.

    Like every entry of `FORCE_MAPS`: made from a mapping and the constrained pairs, fed with
    consecutive frames by `add` if `uses_frames`, and `fit` returns the map.
    """

    uses_frames = False

    def __init__(self, mapping: Mapping, constraints: Iterable[tuple[int, int]]) -> None:
        self.mapping, self.constraints = mapping, list(constraints)

    def add(self, forces: np.ndarray, positions: np.ndarray) -> None:
        """Take forces and positions (frames, atoms, 3)."""

    def fit(self, in_sample: bool = True) -> ForceMap:
        """Return the map; `in_sample`: whether it will be used on the frames added."""
        return basic_force_map(self.mapping, self.constraints)


class OptimalFit(BasicFit):
    """Make the optimal map from streamed force statistics."""

    uses_frames = True

    def __init__(self, mapping: Mapping, constraints: Iterable[tuple[int, int]]) -> None:
        super().__init__(mapping, constraints)
        self.gram = ForceGram(mapping, self.constraints)

    def add(self, forces: np.ndarray, positions: np.ndarray) -> None:
        """Take forces (frames, atoms, 3), kJ/mol/nm, that follow those added before."""
        self.gram.add(forces)

    def fit(self, in_sample: bool = True) -> ForceMap:
        """Return the map of least noise on the frames added."""
        return optimal_force_map(self.mapping, self.constraints, self.gram)


class ForceGram:
    """Second moments of the atomistic forces, streamed; what the optimal map is made from.

    One (groups, groups) matrix a kind of molecule, in contiguous blocks of frames: see
    `BlockSums`.

    Args:
        mapping: the position map.
        constraints: pairs of atoms at fixed distances.
        block_frames: consecutive frames of the first blocks.
    """

    def __init__(
        self, mapping: Mapping, constraints: Iterable[tuple[int, int]], block_frames: int = 250
    ) -> None:
        self.groups = constraint_groups(constraints, mapping.n_atoms)
        self.kinds = molecule_kinds(mapping, self.groups)
        self.ties = [kind.tie for kind in self.kinds]
        shapes = [2 * (len(kind.groups),) for kind in self.kinds]
        self.sums = BlockSums(shapes, block_frames)

    def add(self, forces: np.ndarray) -> None:
        """Add forces (frames, atoms, 3), kJ/mol/nm, that follow those added before."""
        self.sums.add(len(forces), lambda part: self._moments(forces[part]))

    def _moments(self, forces: np.ndarray) -> list[np.ndarray]:
        moments = []
        for kind, tie in zip(self.kinds, self.ties, strict=True):
            flat = _group_sums(tie, kind.gather(forces))
            moments.append(flat @ flat.T)
        return moments


def _group_sums(tie: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """Return forces (samples, atoms, 3) summed over groups, as (groups, samples x 3)."""
    atoms = np.asarray(forces, dtype=np.float64).transpose(1, 0, 2)
    return tie @ atoms.reshape(atoms.shape[0], -1)


def basic_force_map(mapping: Mapping, constraints: Iterable[tuple[int, int]] = ()) -> ForceMap:
    """Sum the forces on each bead's atoms and on all atoms constrained to them.

    Args:
        mapping: the position map; its beads must not share atoms or constrained groups.
        constraints: pairs of atoms at fixed distances.

    Raises:
        InputError: if two beads share atoms, or constraints join atoms of two beads.
    """
    groups = constraint_groups(constraints, mapping.n_atoms)
    tie = tie_matrix(groups)
    grouped = scipy.sparse.csr_array(mapping.matrix @ tie.T)
    used = scipy.sparse.csr_array((np.abs(mapping.matrix) @ tie.T) > 0, dtype=np.float64)
    shared = np.flatnonzero(np.asarray(used.sum(axis=0)).ravel() > 1)
    if len(shared):
        pair = np.flatnonzero(used[:, [int(shared[0])]].toarray().ravel())[:2]
        _require_solvable(mapping, pair, grouped[pair].toarray())
        first, second = (mapping.topology.label(int(b)) for b in pair)
        raise InputError(
            f"beads {first} and {second} share atoms, so the basic force map is not defined; "
            "use the optimal force map"
        )
    result = ForceMap("basic", scipy.sparse.csr_array(used @ tie), groups)
    check_force_map(mapping, result.matrix, constraints)
    return result


def optimal_force_map(
    mapping: Mapping, constraints: Iterable[tuple[int, int]], gram: ForceGram
) -> ForceMap:
    """Return the valid constant map of least mean square force.

    Minimises b^T G b for each bead's row b under B M^T = 1, with constrained atoms tied; G is the
    Gram matrix of the forces summed over frames and axes (one map for all axes keeps rotations),
    plus a ridge chosen by cross-validation over contiguous blocks. Since all valid maps have the
    same mean force, the least mean square is the least noise. A bead's row is zero outside its
    molecule, and identical molecules share their rows.

    Args:
        mapping: the position map.
        constraints: pairs of atoms at fixed distances.
        gram: streamed second moments of the forces.

    Raises:
        InputError: if no forces were given, or no valid constant map exists.

    Reference: Kraemer et al. 2023, doi:10.1021/acs.jpclett.3c00444.
    """
    if not gram.sums.blocks:
        raise InputError("the optimal force map is fitted to forces; give some, or use 'basic'")
    groups = constraint_groups(constraints, mapping.n_atoms)
    if groups != gram.groups:
        raise InputError("the force statistics were gathered with other constraints; redo them")
    frames = sum(gram.sums.frames)
    matrix = scipy.sparse.lil_array(mapping.matrix.shape)
    square, ridges = 0.0, []
    folds = list(gram.sums.folds())
    for number, (kind, tie) in enumerate(zip(gram.kinds, gram.ties, strict=True)):
        grouped_map = kind.matrix @ tie.T
        _require_solvable(mapping, kind.beads[0], grouped_map)
        scores = dict.fromkeys(RIDGES, 0.0)
        for kept, held in folds:
            solve = _LeastRows(kept[number], grouped_map)
            for ridge in RIDGES:
                rows = solve(ridge)
                scores[ridge] += float(np.einsum("ig,gh,ih->", rows, held[number], rows))
        ridge = min(scores, key=lambda r: scores[r]) if folds else 1e-3
        total = gram.sums.total()[number]
        rows = _LeastRows(total, grouped_map)(ridge)
        square += scores[ridge] if folds else float(np.einsum("ig,gh,ih->", rows, total, rows))
        ridges.append(ridge)
        for atoms, beads in zip(kind.atoms, kind.beads, strict=True):
            matrix[np.ix_(beads, atoms)] = rows @ tie
    components = frames * 3 * len(mapping.topology)
    compared = {"optimal": square / components}
    if (basic := _basic_square(mapping, constraints, gram)) is not None:
        compared = {"basic": basic / components, **compared}
    result = ForceMap(
        "optimal",
        scipy.sparse.csr_array(matrix),
        groups,
        mean_square=square / components,
        ridge=max(ridges),
        compared=compared,
    )
    check_force_map(mapping, result.matrix, constraints)
    return result


def _basic_square(
    mapping: Mapping, constraints: Iterable[tuple[int, int]], gram: ForceGram
) -> float | None:
    """Return the sum of squares of the basic map's forces; None where it is not defined."""
    try:
        basic = scipy.sparse.csr_array(basic_force_map(mapping, constraints).matrix)
    except InputError:
        return None
    square = 0.0
    for kind, total in zip(gram.kinds, gram.sums.total(), strict=True):
        first = kind.atoms[0][[group[0] for group in kind.groups]]
        rows = basic[kind.beads[0]][:, first].toarray()
        square += float(np.einsum("ig,gh,ih->", rows, total, rows))
    return square


def check_force_map(
    mapping: Mapping, matrix: Any, constraints: Iterable[tuple[int, int]] = ()
) -> None:
    """Check that a constant force map has the position map's mean force.

    Args:
        mapping: the position map.
        matrix: (beads, atoms) force map, sparse or dense.
        constraints: pairs of atoms at fixed distances.

    Raises:
        InputError: naming the bead, and the other bead or the constrained atoms, where it fails.
    """
    matrix = scipy.sparse.csr_array(matrix, dtype=np.float64)
    if matrix.shape != mapping.matrix.shape:
        raise InputError(
            f"force map has shape {matrix.shape}, the position map {mapping.matrix.shape}; "
            "they must be equal"
        )
    label = mapping.topology.label
    identity = scipy.sparse.eye_array(len(mapping.topology), format="csr")
    wrong = (matrix @ mapping.matrix.T - identity).tocoo()
    if wrong.nnz and np.abs(wrong.data).max() > 1e-8:
        worst = int(np.abs(wrong.data).argmax())
        i, j = int(wrong.row[worst]), int(wrong.col[worst])
        raise InputError(
            f"force map is inconsistent with the position map: the row of bead {label(i)} "
            f"moves bead {label(j)} by {wrong.data[worst] + (i == j):.4g} instead of "
            f"{int(i == j)}; use FORCE_MAPS['basic'] or ['optimal']"
        )
    columns = scipy.sparse.csc_array(matrix)
    pairs = np.array(list(constraints), dtype=int).reshape(-1, 2)
    gaps = abs(columns[:, pairs[:, 0]] - columns[:, pairs[:, 1]]).tocoo()
    if gaps.nnz and gaps.data.max() > 1e-8:
        worst = int(gaps.data.argmax())
        bead, (first, second) = label(int(gaps.row[worst])), pairs[gaps.col[worst]]
        raise InputError(
            f"force map ignores the constraint {mapping.atom_labels[first]}-"
            f"{mapping.atom_labels[second]}: bead {bead} weighs their forces differently; "
            "give both the same weight"
        )


class _LeastRows:
    """Rows b of least b^T (G + ridge) b that move one bead, (M b) = e_I, at many ridges."""

    def __init__(self, gram: np.ndarray, grouped_map: np.ndarray) -> None:
        scale = np.trace(gram) / len(gram) or 1.0
        values, self._vectors = np.linalg.eigh(gram / scale)
        self._values = np.maximum(values, 0)  # forces that sum to zero make G singular
        self._map, self._inverse = grouped_map, np.linalg.pinv(grouped_map.T)
        self._seen = grouped_map @ self._vectors

    def __call__(self, ridge: float) -> np.ndarray:
        weighted = self._seen / (self._values + ridge)
        rows = np.linalg.solve(weighted @ self._seen.T, weighted) @ self._vectors.T
        missed = np.eye(len(rows)) - rows @ self._map.T  # by round-off
        return rows + missed @ self._inverse


def _require_solvable(mapping: Mapping, beads: np.ndarray, grouped_map: np.ndarray) -> None:
    """Refuse maps for which no constant row can move one bead and keep all constraints."""
    if np.linalg.matrix_rank(grouped_map) == len(grouped_map):
        return
    kernel = np.linalg.svd(grouped_map.T)[2][-1]
    first, second = (mapping.topology.label(int(beads[b])) for b in np.argsort(-abs(kernel))[:2])
    raise InputError(
        f"constraints tie beads {first} and {second} together, so no constant force map "
        "exists; use data with fewer constraints (HBonds or none), or other beads"
    )
