"""Periodic boxes: whole beads are asked for, torn molecules of kept atoms are no problem."""

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


def test_centres_of_mass_of_torn_molecules_are_refused(torn) -> None:
    source = cgml.read_trajectory(torn)
    mapping = cgml.MAPPINGS["residue_com"](source.topology)
    with pytest.raises(cgml.InputError, match="bead .* is torn across the periodic boundary"):
        cgml.map_trajectory(source, mapping, temperature=300)


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
