"""Periodic boxes: beads are whole, torn molecules of kept atoms are no problem."""

from dataclasses import replace

import mdtraj
import numpy as np
import pytest

import openmm_cgml as cgml

BOX = np.diag([3.0, 3.0, 3.0])


@pytest.fixture
def torn(trajectory) -> mdtraj.Trajectory:
    """Frames in a periodic box whose boundary runs through the molecule."""
    positions = next(trajectory.chunks(20)).positions
    positions = positions - positions[:, :1]
    frames = mdtraj.Trajectory(np.mod(positions, 3.0), trajectory.topology)
    frames.unitcell_vectors = np.repeat(BOX[None], 20, axis=0)
    return frames


def test_centres_of_mass_of_torn_molecules_are_those_of_whole_ones(torn, trajectory) -> None:
    source = cgml.read_trajectory(torn)
    mapping = cgml.MAPPINGS["residue_com"](source.topology)
    found = cgml.map_trajectory(source, mapping, temperature=300).positions
    expected = mapping.map_positions(next(trajectory.chunks(20)).positions)
    np.testing.assert_allclose(np.diff(found, axis=1), np.diff(expected, axis=1), atol=1e-5)


def test_kept_atoms_of_torn_molecules_give_the_same_prior(torn, dataset, trajectory) -> None:
    """Box vectors travel with the frames; the prior takes minimum images."""
    source = cgml.read_trajectory(torn)
    mapping = cgml.MAPPINGS["backbone"](source.topology)
    periodic = cgml.map_trajectory(source, mapping, temperature=300)
    assert np.allclose(periodic.box, BOX, atol=1e-6)
    unweighted = replace(dataset.select(slice(20)), weights=None)
    whole = cgml.fit_prior(unweighted, terms=["bonds", "angles"]).arguments()
    found = cgml.fit_prior(periodic, terms=["bonds", "angles"]).arguments()
    for ours, theirs in zip(found["terms"], whole["terms"], strict=True):
        for name, values in ours["arguments"].items():
            assert np.allclose(values, theirs["arguments"][name], rtol=1e-3)


def test_a_run_keeps_the_box_of_its_start_and_analysis_uses_it(torn, tmp_path, setup) -> None:
    source = cgml.read_trajectory(torn)
    mapping = cgml.MAPPINGS["backbone"](source.topology)
    periodic = cgml.map_trajectory(source, mapping, temperature=300)
    cgml.save_model(tmp_path / "prior.pt", cgml.fit_prior(periodic), periodic)
    simulation = cgml.Langevin(tmp_path / "prior.pt", periodic, 6)
    energy = simulation.context.getState(getEnergy=True).getPotentialEnergy()._value
    assert energy < 6 * 50  # a torn molecule without its box has millions of kJ/mol
    run = simulation.run(tmp_path / "run.h5", ns=0.004, interval=0.5)
    assert np.allclose(run.info["box_vectors_nm"], BOX)
    from openmm_cgml.analysis import dihedral_angles, distribution_of

    assert distribution_of(run, setup["dihedrals"]).probability.sum() == pytest.approx(1)
    whole = next(cgml.read_trajectory(torn.xyz, top=torn.topology).chunks(20)).positions
    whole = whole - 3.0 * np.round((whole - whole[:, 8:9]) / 3.0)
    expected = dihedral_angles(mapping.map_positions(whole), setup["dihedrals"])
    found = dihedral_angles(periodic.positions, setup["dihedrals"], periodic.box)
    assert np.allclose(np.cos(found - expected), 1, atol=1e-5)


def test_a_molecule_that_leaves_its_box_is_made_whole(torn, trajectory) -> None:
    mapping = cgml.MAPPINGS["backbone"](torn.topology)
    found = cgml.map_trajectory(
        cgml.read_trajectory(torn), mapping, temperature=300, periodic=False
    )
    expected = mapping.map_positions(next(trajectory.chunks(20)).positions)
    np.testing.assert_allclose(
        np.diff(found.positions, axis=1), np.diff(expected, axis=1), atol=1e-5
    )
    whole = mdtraj.Trajectory(next(trajectory.chunks(20)).positions, torn.topology)
    whole.unitcell_vectors = BOX * np.linspace(1, 1.1, 20)[:, None, None]  # NPT
    kept = cgml.map_trajectory(cgml.read_trajectory(whole), mapping, temperature=300)
    with pytest.raises(cgml.InputError, match="periodic=False"):
        kept.constant_box()
    isolated = cgml.map_trajectory(
        cgml.read_trajectory(whole), mapping, temperature=300, periodic=False
    )
    assert isolated.box is None and isolated.constant_box() is None
