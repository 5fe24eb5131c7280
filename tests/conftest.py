"""Shared data: the package's own all-atom run, mapped, and a small model of it."""

import hashlib
import json
import os
import sys
import tempfile
from contextlib import suppress
from importlib import resources
from pathlib import Path

import torch  # before openmm

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.force import backend_problem, choose_backend

ROOT = Path(__file__).resolve().parent.parent

# What one test or worker has compiled serves all, and later runs too; `make clean` removes it.
CACHE = Path(os.environ.setdefault("OPENMM_CGML_CACHE", str(ROOT / "build" / "cache")))
# The engine's own choice would compile every model of every test; tests of that choice undo this.
os.environ["OPENMM_CGML_BACKEND"] = os.environ.get("OPENMM_CGML_BACKEND") or choose_backend()
torch.set_num_threads(1)  # several pytest workers share few cores

TEMPERATURE = 300.0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a backend that does not work in this pair of torch and OpenMM, in the tests for all."""
    backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
    if backend and item.get_closest_marker("backend") and (problem := backend_problem(backend)):
        pytest.skip(problem)


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
    """Those frames on five backbone beads, default force map."""
    mapping = cgml.MAPPINGS[setup["mapping"]](trajectory.topology)
    return cgml.map_trajectory(trajectory, mapping, temperature=TEMPERATURE)


@pytest.fixture(scope="session")
def model(dataset) -> "cgml.system.Model":
    """A small trained model, written to a file and loaded again."""
    # One file for all workers, and for later runs of the same sources: trained again it would have
    # other bytes, and be compiled again.
    place = CACHE / "models" / sources() / "small.pt"
    if not place.exists():
        train, valid = dataset.split(0.8)
        pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train, width=32, depth=2))
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            path = Path(folder) / "small.pt"
            cgml.save_model(path, cgml.fit(pmf, train, valid, epochs=8, batch_size=64))
            with suppress(FileExistsError):  # another worker's, which this one then takes as well
                os.link(path, place)
    return cgml.load_model(place)


def sources() -> str:
    """A hash of all that makes the model."""
    digest = hashlib.sha256(f"{sys.prefix} {torch.__version__}".encode())
    package = Path(cgml.__file__).parent
    for path in sorted([*package.rglob("*.py"), *(package / "data").rglob("*.*"), Path(__file__)]):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
