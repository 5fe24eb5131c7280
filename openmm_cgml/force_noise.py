"""How much of the forces is noise: what no function of the beads predicts."""

from dataclasses import dataclass

import numpy as np

from .errors import InputError
from .topology import CGTopology, bond_separations

# The fit in `rough_residuals`: at most so many coefficients, and so many multiplications.
_MOST_COEFFICIENTS = 1200
_MOST_WORK = 2e10


@dataclass(frozen=True)
class ForceNoise:
    """A split of a force residual into what a better model could remove and what none can.

    Attributes:
        residual: root mean square of reference minus model force, kJ/mol/nm per component.
        floor: estimate of its irreducible part (root mean square), kJ/mol/nm.
        model_error: estimate of the rest (root mean square), kJ/mol/nm; 0 if not resolved.
        floor_error: standard error of `floor`.
    """

    residual: float
    floor: float
    model_error: float
    floor_error: float


def estimate_force_noise(
    positions: np.ndarray, residuals: np.ndarray, neighbours: int = 4, gap: int = 20
) -> ForceNoise:
    """Estimate the force noise floor from held-out residuals of a trained model.

    The mapped force of a frame is the mean force plus noise from the atoms that were averaged
    out. Residual = noise + (mean force - model force). Noise is independent between frames, the
    model's error is a smooth function of the beads; so the covariance of the residuals of two
    frames with nearly the same bead positions is the model's mean square error, and the rest of
    the mean square residual is the floor.

    Bias: upwards. Neighbours are a finite distance apart, so model error that varies on a shorter
    scale counts as noise; the floor lies between the true one and the residual. Frames less than
    `gap` apart in time are not paired, since their noise may be correlated.

    Args:
        positions: (frames, beads, 3), nm, not used in training, in time order.
        residuals: (frames, beads, 3), reference minus model force, kJ/mol/nm.
        neighbours: nearest frames (in distances and the chain's handedness) paired with each.
        gap: least difference of frame indices of a pair.

    Returns:
        Root-mean-square values per component.
    """
    import torch

    from scipy.spatial import cKDTree

    from . import geometry

    frames, beads, _ = positions.shape
    square = float(np.mean(residuals**2))
    xyz = torch.as_tensor(positions, dtype=torch.float64)
    features = [geometry.distances(xyz, geometry.all_pairs(beads))]
    if beads >= 4:
        chain = torch.arange(beads - 3).unsqueeze(1) + torch.arange(4)
        torsions = geometry.dihedrals(xyz, chain)
        features += [0.1 * torch.sin(torsions), 0.1 * torch.cos(torsions)]
    points = torch.cat(features, dim=1).numpy()
    count = min(frames, neighbours + 2 * gap + 1)
    found = cKDTree(points).query(points, k=count)[1].reshape(frames, count)
    covariances = np.full((frames, neighbours), np.nan)
    centred = positions - positions.mean(1, keepdims=True)
    apart = np.abs(found - np.arange(frames)[:, None]) >= gap
    order = np.argsort(~apart, axis=1, kind="stable")[:, :neighbours]
    chosen = np.take_along_axis(found, order, axis=1)
    valid = np.take_along_axis(apart, order, axis=1)
    for k in range(chosen.shape[1]):
        other = chosen[:, k]
        rotation = _superposing_rotations(centred[other], centred)
        turned = np.einsum("fij,fbj->fbi", rotation, residuals[other])
        values = (turned * residuals).mean(axis=(1, 2))
        covariances[:, k] = np.where(valid[:, k], values, np.nan)
    if not np.isfinite(covariances).any():
        return ForceNoise(square**0.5, square**0.5, 0.0, float("nan"))
    per_frame = np.nanmean(covariances[np.isfinite(covariances).any(axis=1)], axis=1)
    model_square = max(0.0, float(per_frame.mean()))
    floor = max(square - model_square, 0.0) ** 0.5
    # Error of a mean over correlated frames: from 20 contiguous blocks.
    blocks = [b.mean() for b in np.array_split(per_frame, min(20, len(per_frame)))]
    error = float(np.std(blocks, ddof=1) / len(blocks) ** 0.5) if len(blocks) > 1 else 0.0
    return ForceNoise(
        residual=square**0.5,
        floor=floor,
        model_error=model_square**0.5,
        floor_error=error / (2 * floor) if floor > 0 else float("nan"),
    )


def _superposing_rotations(mobile: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the rotations (frames, 3, 3) that best turn centred `mobile` onto `target`."""
    u, _, vt = np.linalg.svd(np.einsum("fbi,fbj->fij", target, mobile))
    sign = np.sign(np.linalg.det(u @ vt))
    u[:, :, 2] *= sign[:, None]
    return u @ vt


def rough_residuals(
    positions: np.ndarray, forces: np.ndarray, topology: CGTopology
) -> tuple[np.ndarray, np.ndarray]:
    """Take a rough mean force off the forces, where no trained model is at hand.

        F = sum_p u_p g_p(z)

    along the directions u_p between beads at most three bonds apart (of few beads: all pairs),
    with polynomials g_p of their standardised distances z: of second order in all of them and
    with their cubes, or, where that is too much, of third order in the pair's own. Linear least
    squares; each half of the frames, in ten contiguous blocks, gets the fit to the other half, so
    that the residuals are held out. `estimate_force_noise` turns them into a bound on the noise.

    Args:
        positions: (frames, beads, 3), nm, one isolated molecule, in time order.
        forces: (frames, beads, 3), kJ/mol/nm.
        topology: the beads.

    Returns:
        Residuals (kept, beads, 3), kJ/mol/nm, and the numbers of the frames kept (kept,): evenly
        spaced, as many as a fit of some seconds takes.

    Raises:
        InputError: if there are fewer than 20 frames or 2 beads.

    Reference: Noid et al. 2008, doi:10.1063/1.2938857 (multiscale coarse-graining, linear fit).
    """
    frames, beads, _ = np.shape(positions)
    if frames < 20 or beads < 2:
        raise InputError(
            f"{frames} frames of {beads} beads are too few for a fit of the forces; give at "
            "least 20 frames of 2 beads"
        )
    some = positions[:: max(1, frames // 5000)]
    basis = _PairBasis.of(np.asarray(some, dtype=np.float64), topology)
    work = 3 * beads * basis.size**2
    kept = np.arange(0, frames, max(1, int(np.ceil(frames * work / _MOST_WORK))))
    if len(kept) < 20:
        kept = np.linspace(0, frames - 1, 20).astype(int)
    xyz = np.asarray(positions[kept], dtype=np.float64)
    target = np.asarray(forces[kept], dtype=np.float64)
    half = np.concatenate([np.full(len(b), k % 2) for k, b in enumerate(np.array_split(kept, 10))])
    residuals = np.empty_like(target)
    chunk = max(1, int(2e7 / (3 * beads * basis.size)))
    for side in (0, 1):
        matrix, vector = np.zeros((basis.size, basis.size)), np.zeros(basis.size)
        (train,), (held,) = np.nonzero(half == side), np.nonzero(half != side)
        for start in range(0, len(train), chunk):
            part = train[start : start + chunk]
            rows = basis.rows(xyz[part])
            matrix += rows.T @ rows
            vector += rows.T @ target[part].ravel()
        # A ridge: distances are not independent, and few frames do not fix all coefficients.
        ridge = 1e-4 * np.trace(matrix) / basis.size + 1e-12
        fitted = np.linalg.solve(matrix + ridge * np.eye(basis.size), vector)
        for start in range(0, len(held), chunk):
            part = held[start : start + chunk]
            predicted = (basis.rows(xyz[part]) @ fitted).reshape(len(part), beads, 3)
            residuals[part] = target[part] - predicted
    return residuals, kept


@dataclass(frozen=True, eq=False)
class _PairBasis:
    """Forces along pairs of beads, times polynomials of distances."""

    beads: int
    first: np.ndarray
    second: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    coupled: bool

    @classmethod
    def of(cls, positions: np.ndarray, topology: CGTopology) -> "_PairBasis":
        beads = len(topology)
        first, second = np.triu_indices(beads, 1)
        if not cls._fits(len(first), coupled=True):
            near = bond_separations(beads, topology.bonds)[first, second]
            for reach in (3, 2, 1):
                chosen = near <= reach
                if cls._fits(int(chosen.sum()), coupled=False):
                    break
            if not chosen.any():  # no bonds are told
                chosen = second - first == 1
            first, second = first[chosen], second[chosen]
        lengths = np.linalg.norm(positions[:, second] - positions[:, first], axis=-1)
        return cls(
            beads, first, second, lengths.mean(0), np.maximum(lengths.std(0), 1e-6),
            cls._fits(len(first), coupled=True),
        )  # fmt: skip

    @staticmethod
    def _fits(pairs: int, coupled: bool) -> bool:
        terms = 1 + 2 * pairs + pairs * (pairs + 1) // 2 if coupled else 4
        return pairs * terms <= _MOST_COEFFICIENTS

    @property
    def size(self) -> int:
        pairs = len(self.first)
        return pairs * (1 + 2 * pairs + pairs * (pairs + 1) // 2 if self.coupled else 4)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Return (frames * beads * 3, size) forces of unit coefficients."""
        frames, pairs = len(positions), len(self.first)
        vectors = positions[:, self.second] - positions[:, self.first]
        lengths = np.linalg.norm(vectors, axis=-1)
        units = vectors / np.maximum(lengths, 1e-9)[..., None]
        # Rare large deviations would rule a fit by squares.
        z = np.clip((lengths - self.mean) / self.deviation, -3, 3)
        ones = np.ones((frames, 1))
        if self.coupled:
            one, other = np.triu_indices(pairs)
            shared = np.concatenate([ones, z, z**3, z[:, one] * z[:, other]], axis=1)
            factors = np.broadcast_to(shared[:, None], (frames, pairs, shared.shape[1]))
        else:
            factors = np.stack([np.ones_like(z), z, z**2, z**3], axis=-1)
        terms = factors.shape[-1]
        rows = np.zeros((frames, self.beads, 3, pairs, terms))
        for p in range(pairs):
            force = units[:, p, :, None] * factors[:, p, None, :]
            rows[:, self.second[p], :, p] += force
            rows[:, self.first[p], :, p] -= force
        return rows.reshape(frames * self.beads * 3, pairs * terms)
