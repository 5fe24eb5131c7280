"""Training objectives, and what part of their value no model can remove."""

from torch import Tensor

from .errors import InputError
from .force_noise import ForceNoise, estimate_force_noise
from .registry import Registry

__all__ = ["LOSSES", "ForceNoise", "estimate_force_noise", "force_matching"]

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
