"""Shared data: the package's own all-atom run, mapped, and a small model of it."""

import json
import os
from importlib import resources
from pathlib import Path

import torch  # before openmm

import numpy as np
import pytest

import openmm_cgml as cgml

# The engine's own choice would compile every model of every test; tests of that choice undo this.
os.environ.setdefault("OPENMM_CGML_BACKEND", "torchforce")
torch.set_num_threads(1)  # several pytest workers share few cores

TEMPERATURE = 300.0


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the package's data."""
    with resources.as_file(resources.files(cgml) / "data" / "quickstart") as folder:
        yield folder


@pytest.fixture(scope="session")
def setup(data: Path) -> dict:
    """What the quickstart does with the data."""
    return json.loads((data / "quickstart.json").read_text())


@pytest.fixture(scope="session")
def trajectory(data: Path) -> "cgml.trajectory.Trajectory":
    """Every tenth all-atom frame: 2000, with forces, weights and bias energies."""
    with np.load(data / "trajectory.npz") as run:
        arrays = {name: run[name][::10] for name in run.files}
    return cgml.read_trajectory(top=data / "topology.pdb", trajectory=arrays.pop("positions"),
                                **arrays)  # fmt: skip


@pytest.fixture(scope="session")
def dataset(trajectory, setup) -> cgml.CGDataset:
    """Those frames on five backbone beads, optimal force map."""
    mapping = cgml.MAPPINGS[setup["mapping"]](trajectory.topology)
    return cgml.map_trajectory(trajectory, mapping, temperature=TEMPERATURE)


@pytest.fixture(scope="session")
def model(dataset, tmp_path_factory) -> "cgml.system.Model":
    """A small trained model, written to a file and loaded again."""
    train, valid = dataset.split(0.8)
    pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train, width=32, depth=2))
    path = tmp_path_factory.mktemp("model") / "small.pt"
    cgml.save_model(path, cgml.fit(pmf, train, valid, epochs=8, batch_size=64))
    return cgml.load_model(path)
