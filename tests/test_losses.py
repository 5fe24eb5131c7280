"""Force matching and the noise floor estimate, on a system whose noise is known."""

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.losses import estimate_force_noise, force_matching


def test_force_matching_is_the_weighted_mean_square_per_component() -> None:
    predicted, target = torch.zeros(2, 3, 3), torch.ones(2, 3, 3)
    target[1] = 3.0
    assert force_matching(predicted, target).item() == pytest.approx(5.0)
    assert force_matching(predicted, target, torch.tensor([3.0, 1.0])).item() == pytest.approx(3.0)
    with pytest.raises(cgml.InputError, match="shapes"):
        force_matching(predicted, target[:, :2])


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, np.ndarray, float]:
    """Positions of four beads in random poses; noise of known size in the body frame."""
    rng = np.random.default_rng(11)
    frames, noise = 4000, 50.0
    shape = np.array([[0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.3, 0.15, 0.12]])
    body = shape + 0.01 * rng.standard_normal((frames, 4, 3))
    rotations = np.linalg.qr(rng.standard_normal((frames, 3, 3)))[0]
    rotations *= np.linalg.det(rotations)[:, None, None]
    positions = np.einsum("fij,fbj->fbi", rotations, body)
    return positions, rotations, noise * rng.standard_normal((frames, 4, 3))


def test_noise_floor_of_a_perfect_model_is_its_residual(noisy) -> None:
    positions, _, noise = noisy
    found = estimate_force_noise(positions, noise)
    assert found.residual == pytest.approx(50, rel=0.02)
    assert abs(found.floor - found.residual) < 4 * found.floor_error + 0.1


def test_smooth_model_error_is_told_from_noise_in_any_pose(noisy) -> None:
    """A constant error in the body frame, turned with the molecule, is found in full."""
    positions, rotations, noise = noisy
    error = 30.0 * np.array([[1, 0, 0], [-1, 1, 0], [0, -1, 1], [0, 0, -1.0]])
    rms = float(np.sqrt((error**2).mean()))
    found = estimate_force_noise(positions, noise + np.einsum("fij,bj->fbi", rotations, error))
    assert found.model_error == pytest.approx(rms, rel=0.15)
    assert found.floor == pytest.approx(50, rel=0.03)
    assert found.floor < found.residual - 4 * found.floor_error


def test_floor_is_never_above_the_residual_and_few_frames_do_not_fail(noisy) -> None:
    positions, _, noise = noisy
    for frames in (1, 5, 30):
        found = estimate_force_noise(positions[:frames], noise[:frames])
        assert found.floor <= found.residual + 1e-9
