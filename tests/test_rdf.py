"""Radial distribution functions against exact ones, in boxes of any shape."""

import numpy as np
import pytest
from handmade import chi_square_z
from scipy.stats import chi

import openmm_cgml as cgml
from openmm_cgml.rdf import radial_distribution

TRICLINIC = np.array([[4.0, 0.0, 0.0], [1.5, 3.6, 0.0], [-1.2, 0.9, 3.2]])


def beads(count: int, types=None, bonds=()) -> cgml.CGTopology:
    kinds = tuple(types or "W" * count)
    return cgml.CGTopology(
        kinds, kinds, ("W",) * count, tuple(range(count)), ("A",) * count, bonds, (1.0,) * count
    )


def gas(frames: int, count: int, box: np.ndarray, seed: int = 0) -> np.ndarray:
    """Independent beads, some of them outside the box."""
    return np.random.default_rng(seed).uniform(-1, 2, size=(frames, count, 3)) @ box


@pytest.mark.parametrize("box", [np.diag([3.0, 4.0, 5.0]), TRICLINIC], ids=["cuboid", "triclinic"])
@pytest.mark.parametrize("count", [20, 300], ids=["all pairs", "columns"])
def test_ideal_gas_is_one(box, count) -> None:
    """40 bins; their z-scores have the spread of true ones."""
    found = radial_distribution(gas(400 if count < 100 else 40, count, box), box, bins=40,
                                blocks=40)  # fmt: skip
    assert found.edges[-1] == pytest.approx(np.diag(box).min() / 2)
    assert found.pairs == count * (count - 1)
    filled = found.errors > 0
    z = (found.values - 1)[filled] / found.errors[filled]
    assert filled.sum() >= 38 and abs(chi_square_z(z)) < 4 and np.abs(z).max() < 4.5


def test_few_molecules_and_pairs_between_them_are_one() -> None:
    """Two beads a molecule: only pairs of different molecules count, above and below."""
    rng = np.random.default_rng(1)
    centres = gas(3000, 4, TRICLINIC, 2)
    positions = np.repeat(centres, 2, axis=1) + 0.05 * rng.normal(size=(3000, 8, 3))
    topology = beads(8, "ABABABAB", tuple((k, k + 1) for k in range(0, 8, 2)))
    for first, second, pairs in ((None, None, 48), ("A", None, 12), ("A", "B", 12)):
        found = radial_distribution(
            positions, TRICLINIC, topology=topology, first=first, second=second, bins=25,
            blocks=30,
        )  # fmt: skip
        assert found.pairs == pairs
        seen = found.errors > 0
        z = (found.values - 1)[seen] / found.errors[seen]
        assert seen.sum() > 20 and abs(chi_square_z(z)) < 4.5
    inside = radial_distribution(
        positions, TRICLINIC, topology=topology, first="A", second="B", same_molecule=True
    )
    assert inside.values[:10].max() > 50 and inside.pairs == 16


def test_harmonic_pair() -> None:
    """Two beads whose distance vector is Gaussian: g = V (2 pi s^2)^-3/2 exp(-r^2 / 2 s^2)."""
    rng, sigma = np.random.default_rng(3), 0.3
    first = gas(40_000, 1, TRICLINIC, 4)
    positions = np.concatenate([first, first + sigma * rng.normal(size=first.shape)], axis=1)
    found = radial_distribution(positions, TRICLINIC, cutoff=1.2, bins=60, blocks=40)
    fine = np.linspace(0, 1.2, 60 * 50 + 1)
    middle = 0.5 * (fine[1:] + fine[:-1])
    # Averaged over each bin's shell.
    gauss = np.exp(-(middle**2) / (2 * sigma**2)) * middle**2
    per_bin = gauss.reshape(60, 50).sum(1) / (middle**2).reshape(60, 50).sum(1)
    exact = np.linalg.det(TRICLINIC) * (2 * np.pi * sigma**2) ** -1.5 * per_bin
    seen = found.errors > 0
    z = (found.values - exact)[seen] / found.errors[seen]
    assert seen.sum() > 50 and abs(chi_square_z(z)) < 4 and np.abs(z).max() < 5
    within = chi(3).cdf(1.2 / sigma)
    assert abs(found.coordination()[-1] - within) < 4 * (within * (1 - within) / 40_000) ** 0.5


def test_lattice_has_its_shells() -> None:
    """Simple cubic, spacing 0.5: 6 at 1, 12 at sqrt 2, 8 at sqrt 3, 6 at 2 spacings."""
    sites = 0.5 * np.stack(np.meshgrid(*[np.arange(6)] * 3), -1).reshape(-1, 3)
    found = radial_distribution(sites[None] + 7.7, np.eye(3) * 3, cutoff=1.3, bins=130)
    inside = np.searchsorted(found.edges[1:], np.array([0.49, 0.6, 0.75, 0.9, 1.05]))
    np.testing.assert_allclose(found.coordination()[inside], [0, 6, 18, 26, 32], atol=1e-9)
    # Away from the shells there is nothing.
    assert found.values[:48].max() == 0


def test_weights_and_changing_boxes() -> None:
    small, large = np.eye(3) * 2.0, np.eye(3) * 4.0
    one, other = gas(300, 12, small, 5), gas(300, 12, large, 6)
    positions = np.concatenate([one, other])
    boxes = np.concatenate([np.tile(small, (300, 1, 1)), np.tile(large, (300, 1, 1))])
    weights = np.repeat([1.0, 0.0], 300)
    both = radial_distribution(positions, boxes, cutoff=0.9, bins=15)
    only = radial_distribution(positions, boxes, cutoff=0.9, bins=15, weights=weights)
    alone = radial_distribution(one, small, cutoff=0.9, bins=15)
    np.testing.assert_allclose(only.values, alone.values)
    z = ((both.values - 1) / np.hypot(both.errors, 1e-9))[3:]
    assert np.abs(z).max() < 5
    assert alone.density == pytest.approx(11 / 8)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"cutoff": 1.7}, "half of this one's smallest width is 1.6 nm.*take a cutoff of 1.6 nm"),
        ({"cutoff": 0.0}, "needs a box"),
        ({"box_vectors": None}, "an isolated molecule has no density"),
        ({"box_vectors": np.ones((2, 3, 3))}, "one for each of the 3 frames"),
        ({"box_vectors": TRICLINIC.T}, "not in reduced form"),
        ({"first": "X"}, "no bead has type 'X'; there are W"),
        ({"first": "X", "topology": None}, "needs topology="),
        ({"first": [5, 6]}, r"beads \[5, 6\] are not some of 0 to 3"),
        ({"first": [1]}, "no pair of the chosen beads is left"),
        ({"topology": beads(4, None, ((0, 1), (1, 2), (2, 3)))}, "all of one molecule"),
        ({"topology": beads(5)}, "frames have 4 beads, the topology 5"),
        ({"weights": np.zeros(3)}, "all frames have weight zero"),
    ],
)
def test_what_is_refused(settings, problem) -> None:
    given = {"box_vectors": TRICLINIC, "topology": beads(4), **settings}
    with pytest.raises(cgml.InputError, match=problem):
        radial_distribution(gas(3, 4, TRICLINIC), **given)
