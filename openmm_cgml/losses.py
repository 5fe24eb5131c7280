"""Training objectives, and what part of their value no model can remove."""

from dataclasses import dataclass

import torch
from torch import Tensor

import numpy as np

from . import geometry
from .errors import InputError
from .registry import Registry

LOSSES = Registry("loss", {"force_matching": "openmm_cgml.losses:force_matching"})


def force_matching(predicted: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the weighted mean square force residual per component.

    Its minimum is the mean force, whatever the frame weights and also for frames from a biased
    run as long as the bias is a function of the beads and its force is not in `target`.

    Args:
        predicted: (frames, beads, 3), kJ/mol/nm.
        target: (frames, beads, 3), kJ/mol/nm.
        weights: (frames,), uniform if None.

    Returns:
        Scalar, (kJ/mol/nm)^2.

    Raises:
        InputError: if shapes differ.

    Reference: Noid et al. 2008, doi:10.1063/1.2938860, eq. 34.
    """
    if predicted.shape != target.shape:
        raise InputError(f"forces have shapes {tuple(predicted.shape)}, {tuple(target.shape)}")
    square = (predicted - target).square().mean(dim=(1, 2))
    if weights is None:
        return square.mean()
    return (weights * square).sum() / weights.sum()


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
    from scipy.spatial import cKDTree

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
