"""Smallest distances by type: the neighbour search against all pairs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.pmf import prior_contacts
from openmm_cgml.pmf.prior import fit_prior_table
from openmm_cgml.pmf.prior_contacts import closest_distances
from openmm_cgml.pmf.prior_indices import distant_pairs, types_of

BOX = np.array([[2.5, 0, 0], [0.4, 3.0, 0], [-0.3, 0.5, 2.8]])


def cluster(types: str, frames: int, seed: int = 0) -> cgml.CGDataset:
    """A chain whose beads move about places of their own in a globule."""
    rng = np.random.default_rng(seed)
    n = len(types)
    topology = cgml.CGTopology(
        tuple(f"B{k}" for k in range(n)), tuple(types), ("M",) * n, tuple(range(n)), ("A",) * n,
        tuple((k, k + 1) for k in range(n - 1)), (12.0,) * n,
    )  # fmt: skip
    grid = 0.5 * np.array(list(itertools.product(range(5), repeat=3)))[rng.permutation(125)[:n]]
    x = grid + 0.05 * rng.standard_normal((frames, n, 3))
    return cgml.CGDataset(x, topology, temperature=300.0)


def by_all_pairs(dataset: cgml.CGDataset, share: float, reach: float) -> dict:
    """Each pair's quantile, images of the beads of whole molecules tried one by one."""
    images = np.zeros((1, 3))
    if dataset.box is not None:
        images = np.array(list(itertools.product(range(-1, 2), repeat=3))) @ BOX
    found: dict = {}
    for i, j in distant_pairs(dataset.topology, 3):
        steps = dataset.positions[:, j].astype(float) - dataset.positions[:, i]
        lengths = np.linalg.norm(steps[:, None] + images, axis=-1).min(1)
        radius = np.quantile(np.minimum(lengths, reach), share)
        key = types_of(dataset.topology, (i, j), "repulsion")
        found[key] = min(found.get(key, reach), radius)
    return found


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("frames", "share"), [(1, 0.1), (31, 0.1), (70, 1e-3), (70, 0.33)])
def test_it_is_the_quantile_of_all_pairs(frames, share, periodic, monkeypatch) -> None:
    monkeypatch.setattr(prior_contacts, "_BEADS", 1000)  # several blocks, sorted several times
    monkeypatch.setattr(prior_contacts, "_PAIRS", 3000)
    whole = dataset = cluster("ABBAA" * 20 + "C", frames)
    if periodic:
        whole = replace(dataset, box=np.tile(BOX, (frames, 1, 1)))
        images = np.random.default_rng(1).integers(-1, 2, dataset.positions.shape)
        dataset = replace(whole, positions=whole.positions + images @ BOX)
    found = closest_distances(dataset, share)
    expected = by_all_pairs(whole, share, prior_contacts.REACH)
    assert set(found) == set(expected) == {
        ("A", "A"), ("A", "B"), ("A", "C"), ("B", "B"), ("B", "C")
    }  # fmt: skip
    for key, radius in expected.items():
        assert found[key] == pytest.approx(radius, abs=1e-6)
    assert min(expected.values()) < 0.5


def test_beads_that_never_meet_count_as_out_of_reach() -> None:
    dataset = cluster("AB" * 50, 20)
    far = cgml.CGDataset(5 * dataset.positions, dataset.topology, temperature=300.0)
    assert closest_distances(far, 1e-3) == dict.fromkeys(
        [("A", "A"), ("A", "B"), ("B", "B")], prior_contacts.REACH
    )
    # In a small box nothing can be farther apart than its images let it.
    box = np.tile(np.eye(3), (20, 1, 1))
    small = replace(dataset, box=box)
    assert prior_contacts._reach(small) == 0.5


def test_a_table_of_large_and_small_molecules_takes_the_smaller_radius() -> None:
    large, small = cluster("AB" * 50, 40), cluster("ABAB", 40, seed=1)
    tables = [fit_prior_table(sets, ["repulsion"]) for sets in (large, small, [large, small])]
    radii = [{row.types: row.radius for row in table.repulsion} for table in tables]
    assert radii[2] == {
        key: min(radius, radii[1].get(key, radius)) for key, radius in radii[0].items()
    }
    expected = by_all_pairs(large, 1e-3, prior_contacts.REACH)
    assert radii[0] == pytest.approx(expected, rel=1e-6)
