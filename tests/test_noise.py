"""Noised force maps: the mean force is that of smeared beads, exactly."""

import numpy as np
import pytest
from test_force_map import (  # noqa: F401
    COM,
    KT,
    SHARED,
    SLICE,
    chain_topology,
    gaussian_chain,
    make_mapping,
)

import openmm_cgml as cgml
from openmm_cgml.mapping.noise import add_noise


@pytest.mark.parametrize("kind", ["basic", "optimal", "rotation"])
@pytest.mark.parametrize("sigma", [0.005, 0.03])
@pytest.mark.parametrize(
    "matrix", [SLICE, COM, SHARED / SHARED.sum(1, keepdims=True)], ids=["slice", "com", "shared"]
)
def test_forces_are_those_of_smeared_beads(gaussian_chain, matrix, kind, sigma) -> None:  # noqa: F811
    """Beads of a Gaussian chain plus noise are Gaussian: F = -kT (S + s^2)^-1 R, z < 4."""
    if kind == "basic" and matrix.any(axis=0).sum() != (matrix != 0).sum():
        pytest.skip("the basic map is not defined where beads share atoms")
    hessian, positions, forces = gaussian_chain
    mapping = make_mapping(matrix)
    maker = cgml.FORCE_MAPS[kind](mapping, ())
    maker.add(forces, positions)
    force_map = add_noise(maker, mapping, sigma, 300)
    noise = force_map.draw((len(positions), len(matrix), 3), np.random.default_rng(1))
    beads = mapping.map_positions(positions) + noise
    mapped = force_map.map_forces(forces, positions) + force_map.noise_forces(noise)
    covariance = matrix @ np.linalg.pinv(hessian) @ matrix.T + sigma**2 / KT * np.eye(len(matrix))
    centre = np.eye(len(matrix)) - 1 / len(matrix)
    exact = -np.linalg.pinv(centre @ covariance @ centre)
    # Steps as coordinates: forces do not feel where the chain is.
    steps = np.diff(beads, axis=1)
    x = steps.transpose(0, 2, 1).reshape(-1, steps.shape[1])
    y = mapped.transpose(0, 2, 1).reshape(-1, mapped.shape[1])
    if kind == "optimal":
        assert force_map.mean_square == pytest.approx((y**2).mean(), rel=0.02)
    fitted, *_ = np.linalg.lstsq(x, y, rcond=None)
    expected = np.stack([exact[:, k + 1 :].sum(1) for k in range(len(matrix) - 1)])
    noise_left = y - x @ fitted
    errors = np.sqrt(np.outer(np.diag(np.linalg.inv(x.T @ x)), noise_left.var(axis=0)))
    z = (fitted - expected) / np.maximum(errors, 1e-9 * np.abs(expected).max())
    assert np.abs(z).max() < 4, z  # at most 12 comparisons


def test_less_noise_in_the_forces_the_more_the_beads_are_smeared(gaussian_chain) -> None:  # noqa: F811
    _, positions, forces = gaussian_chain
    mapping = make_mapping(SLICE)
    maker = cgml.FORCE_MAPS["optimal"](mapping, ())
    maker.add(forces, positions)
    squares = [add_noise(maker, mapping, s, 300).mean_square for s in (1e-4, 0.003, 0.01, 0.03)]
    assert squares == sorted(squares, reverse=True) and squares[3] < 0.8 * squares[0]
    assert squares[0] == pytest.approx(maker.fit().mean_square, rel=0.02)


def test_a_noised_dataset_says_so(gaussian_chain, tmp_path) -> None:  # noqa: F811
    _, positions, forces = gaussian_chain
    trajectory = cgml.read_trajectory(positions[:400], top=chain_topology(8), forces=forces[:400])
    mapping = make_mapping(SLICE)
    how = {"temperature": 300, "constraints": ()}
    plain = cgml.map_trajectory(trajectory, mapping, **how)
    noised = cgml.map_trajectory(
        trajectory, mapping, **how, noise=0.01, seed=4, output=tmp_path / "n.h5"
    )
    assert "noise" not in plain.mapping
    assert noised.mapping["noise"] == {"kernel": "gaussian", "sigma_nm": 0.01, "seed": 4}
    shift = noised.positions - plain.positions
    assert shift.std() == pytest.approx(0.01, rel=0.05)
    again = cgml.map_trajectory(trajectory, mapping, **how, noise=0.01, seed=4)
    assert np.array_equal(again.positions, noised.positions)
    assert np.array_equal(again.forces, noised.forces)
    without = cgml.read_trajectory(positions[:400], top=chain_topology(8))
    smeared = cgml.map_trajectory(without, mapping, **how, noise=0.01, seed=4)
    assert smeared.forces is None and np.array_equal(smeared.positions, noised.positions)


@pytest.mark.parametrize("sigma", [0.0, -0.01, np.nan, "wide"])
def test_noise_is_a_length(gaussian_chain, sigma) -> None:  # noqa: F811
    _, positions, forces = gaussian_chain
    trajectory = cgml.read_trajectory(positions[:50], top=chain_topology(8), forces=forces[:50])
    with pytest.raises(cgml.InputError, match="noise"):
        cgml.map_trajectory(
            trajectory, make_mapping(SLICE), temperature=300, constraints=(), noise=sigma
        )


def test_the_best_noised_map_of_biased_frames_is_refused(gaussian_chain) -> None:  # noqa: F811
    """Its forces are partly kT grad ln p of the frames, bias included."""
    _, positions, forces = gaussian_chain
    trajectory = cgml.read_trajectory(
        positions[:400], top=chain_topology(8), forces=forces[:400], weights=np.ones(400)
    )
    how = {"temperature": 300, "constraints": (), "noise": 0.01}
    with pytest.raises(cgml.InputError, match="frames are biased; use force_map='rotation'"):
        cgml.map_trajectory(trajectory, make_mapping(SLICE), force_map="optimal", **how)
    assert cgml.map_trajectory(trajectory, make_mapping(SLICE), **how).forces is not None
