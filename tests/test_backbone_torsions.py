"""Backbone torsions found along the bonds, and their planes."""

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.backbone_torsions import backbone_dihedrals, ramachandran, residue_table
from openmm_cgml.units import thermal_energy


def topology(names: str, residues: list[int], bonds=None, chains=None) -> cgml.CGTopology:
    kinds = tuple(names.split())
    count = len(kinds)
    chain = [(k, k + 1) for k in range(count - 1)]
    return cgml.CGTopology(
        kinds, kinds, ("GLY",) * count, tuple(residues), tuple(chains or "A" * count),
        tuple(chain if bonds is None else bonds), (1.0,) * count,
    )  # fmt: skip


def test_backbone_beads_of_the_package(dataset, setup) -> None:
    found = backbone_dihedrals(dataset.topology)
    assert found.names == ("phi", "psi") and not found.pseudo
    assert [list(q) for q in found.quadruples[0]] == setup["dihedrals"]
    assert found.residues == ("ALA2",)
    angles = found.angles(dataset.positions[:9])
    assert angles.shape == (9, 1, 2)
    expected = dihedral_angles(dataset.positions[:9], setup["dihedrals"])
    np.testing.assert_allclose(angles[:, 0], expected)


def test_three_residues_and_no_ends() -> None:
    found = backbone_dihedrals(topology("N CA C " * 3, sorted([1, 2, 3] * 3)))
    assert found.residues == ("GLY2",)
    assert found.quadruples == (((2, 3, 4, 5), (3, 4, 5, 6)),)


def test_side_chains_and_breaks_are_no_matter() -> None:
    names = "N CA CB C N CA CB C N CA CB C"
    bonds = [b for k in (0, 4, 8) for b in ((k, k + 1), (k + 1, k + 2), (k + 1, k + 3))]
    joined = [*bonds, (3, 4), (7, 8)]
    found = backbone_dihedrals(topology(names, sorted([1, 2, 3] * 4), joined))
    assert found.quadruples == (((3, 4, 5, 7), (4, 5, 7, 8)),)
    with pytest.raises(cgml.InputError, match="no residue's phi and psi can be told"):
        backbone_dihedrals(topology(names, sorted([1, 2, 3] * 4), bonds))


def test_single_beads_have_pseudo_torsions_named_so() -> None:
    found = backbone_dihedrals(topology("CA " * 6, list(range(1, 7))))
    assert found.pseudo and found.names[0] == "pseudo-torsion before"
    assert found.residues == ("GLY3", "GLY4")
    assert found.quadruples[0] == ((0, 1, 2, 3), (1, 2, 3, 4))
    two = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7)]
    with pytest.raises(cgml.InputError, match="chain of five CA beads.*and there are CA; map"):
        backbone_dihedrals(topology("CA " * 8, list(range(8)), two, "AAAABBBB"))


def test_beads_that_cannot_give_them() -> None:
    with pytest.raises(cgml.InputError, match="there are W, X; map with `backbone`"):
        backbone_dihedrals(topology("W X W X", [1, 2, 3, 4]))


def test_plane_of_a_known_distribution() -> None:
    """A chain built from von Mises torsions: free energies within their errors."""
    rng = np.random.default_rng(0)
    torsions = rng.vonmises([-1.2, 2.0], 2.0, size=(20_000, 2))
    positions = np.zeros((len(torsions), 5, 3))
    positions[:, 1] = [1.0, 0, 0]
    positions[:, 2] = [1.0, 1.0, 0]
    for k, angle in enumerate(torsions.T, 3):
        a, b, c = (positions[:, k - j] for j in (3, 2, 1))
        axis = (c - b) / np.linalg.norm(c - b, axis=1)[:, None]
        normal = np.cross(b - a, axis)
        normal /= np.linalg.norm(normal, axis=1)[:, None]
        side = np.cross(normal, axis)
        positions[:, k] = (
            c + 0.3 * axis + (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * normal)
        )
    chain = topology("C N CA C N", [1, 2, 2, 2, 3])
    found = ramachandran(positions, chain, temperature=300, bins=12, blocks=20)
    angles = found.dihedrals.angles(positions)[:, 0]
    # The chain was built right (the sign of a torsion is what mirrors it).
    np.testing.assert_allclose(np.cos(angles), np.cos(torsions), atol=1e-9)
    np.testing.assert_allclose(np.sin(angles), np.sin(torsions), atol=1e-9)
    surface = found.pooled
    np.testing.assert_allclose(surface.values, found.by_residue[0].values)
    fine = np.linspace(-np.pi, np.pi, 12 * 50 + 1)
    middle = 0.5 * (fine[1:] + fine[:-1])
    one, other = (np.exp(2 * np.cos(middle - m)).reshape(12, 50).sum(1) for m in (-1.2, 2.0))
    exact = -thermal_energy(300) * np.log(np.outer(one / one.sum(), other / other.sum()))
    seen = surface.probability > 5e-3
    gap = (surface.values - exact)[seen]
    gap -= np.average(gap, weights=surface.probability[seen])
    z = gap / surface.errors[seen]
    assert seen.sum() > 30 and 0.6 < np.sqrt((z**2).mean()) < 1.5
    ((residue, phi, psi),) = residue_table(found)
    assert residue == "GLY2" and abs(phi + 69) < 30 and abs(psi - 115) < 30


def test_pooled_is_the_mean_of_residues_and_weights_count(dataset) -> None:
    chain = topology("C " + "N CA C " * 3 + "N", [1, *sorted([2, 3, 4] * 3), 5])
    positions = np.cumsum(np.random.default_rng(1).normal(size=(400, 11, 3)), axis=1)
    weights = np.repeat([1.0, 0.0], 200)
    found = ramachandran(positions, chain, temperature=300, weights=weights, bins=6)
    assert len(found.by_residue) == 3
    mean = np.mean([s.probability for s in found.by_residue], axis=0)
    np.testing.assert_allclose(found.pooled.probability, mean)
    half = ramachandran(positions[:200], chain, temperature=300, bins=6)
    np.testing.assert_allclose(half.pooled.probability, mean)
