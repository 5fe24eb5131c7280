"""Which backend does what in this pair of torch and OpenMM: rows of the table in docs/backends.md.

``tools/matrix.py`` runs these tests, and all others marked ``backend``, in every pair, and reads
the outcomes from pytest's ``--junitxml`` report. What may end the process in an untested pair runs
in another one: this file is also a script.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch  # before openmm

import numpy as np
import openmm
import pytest

import openmm_cgml as cgml
from openmm_cgml.force import BACKENDS, backend_problem, choose_backend

pytestmark = pytest.mark.backend

COPIES = 7
PLATFORMS = [("Reference", None), ("CPU", {"Threads": "1"})]

TORCH = ".".join(torch.__version__.split(".")[:2])
OPENMM = tuple(int(part) for part in openmm.version.short_version.split(".")[:2])
#: openmmtorch 1.5 from PyPI was made for these.
FITTING = TORCH == "2.9" and torch.version.cuda is not None and OPENMM in ((8, 4), (8, 5))


class Case:
    """A backend, and a model and positions to try it with."""

    def __init__(self, backend: str, folder: Path) -> None:
        self.backend = backend
        self.model = cgml.load_model(folder / "model.pt")
        self.positions = np.load(folder / "positions.npy")

    def simulation(self, platform: str, properties: dict | None) -> "cgml.Langevin":
        return cgml.Langevin(
            self.model, self.positions, COPIES, seed=5, backend=self.backend, platform=platform,
            properties=properties,
        )  # fmt: skip

    def system(self) -> "openmm.System":
        return self.model.create_system(COPIES, force_group=5, backend=self.backend)

    def assert_right(self, system: "openmm.System", platform: str = "Reference") -> None:
        """Energy and forces are those of torch."""
        integrator = openmm.VerletIntegrator(0.001)
        context = openmm.Context(system, integrator, openmm.Platform.getPlatform(platform))
        context.setPositions(self.positions.reshape(-1, 3))
        state = context.getState(getEnergy=True, getForces=True)
        forces = state.getForces(asNumpy=True)._value.reshape(self.positions.shape)
        energies, expected = self.model.energy_and_forces(self.positions)
        assert state.getPotentialEnergy()._value == pytest.approx(energies.sum(), rel=1e-5)
        assert np.linalg.norm(forces - expected) / np.linalg.norm(expected) <= 1e-5


def forces(case: Case) -> None:
    for platform, _ in PLATFORMS:
        case.assert_right(case.system(), platform)


def dynamics(case: Case) -> None:
    for platform, properties in PLATFORMS:
        one = case.simulation(platform, properties)
        with tempfile.TemporaryDirectory() as folder:
            run = one.run(Path(folder) / "run.h5", steps=100, interval=0.02)
        assert run.positions.shape[:2] == (10, COPIES) and not run.sick.any()
        for frame in (0, -1):
            expected = case.model.energy_and_forces(run.positions[frame])[0]
            assert np.allclose(run.energy[frame], expected, rtol=1e-4, atol=1e-2)  # float32 frames
        assert np.abs(run.positions[-1] - run.positions[0]).min(axis=(1, 2)).max() > 0


def copies(case: Case) -> None:
    for platform, properties in PLATFORMS:
        engine = case.simulation(platform, properties).engine
        engine.step(20)
        report = engine.read()
        expected = case.model.energy_and_forces(engine.positions)[0]
        assert np.allclose(report.energies, expected, rtol=1e-5, atol=1e-3)
        assert (report.sick == 0).all()


def deepcopy(case: Case) -> None:
    system = copy.deepcopy(case.system())
    assert system.getForce(0).getForceGroup() == 5
    case.assert_right(system)


def xml(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cgml.save_system(Path(folder) / "system.xml", case.system())
        system = cgml.load_system(Path(folder) / "system.xml")
    assert system.getForce(0).getForceGroup() == 5
    case.assert_right(system)


def restart(case: Case) -> None:
    """Stopped after every segment, a run comes to the same end, to the bit."""
    length = {"steps": 60, "interval": 0.04, "checkpoint_seconds": 0}
    for platform, properties in PLATFORMS:
        with tempfile.TemporaryDirectory() as folder:
            whole = case.simulation(platform, properties).run(Path(folder) / "whole.h5", **length)
            stops = -1
            finished = False
            while not finished:
                again = case.simulation(platform, properties).run(
                    Path(folder) / "again.h5", seconds=0, **length
                )
                finished, stops = again.finished, stops + 1
        assert stops > 0
        for name in ("positions", "energy", "kinetic_energy"):
            assert np.array_equal(getattr(again, name), getattr(whole, name)), name


CHECKS = {
    "forces": forces,
    "dynamics": dynamics,
    "copies": copies,
    "deepcopy": deepcopy,
    "XML": xml,
    "restart": restart,
}


def attempt(check: str, backend: str, folder: Path) -> tuple[str, str]:
    """Return what becomes of a check, and why if it is refused; wrong numbers raise."""
    try:
        choose_backend(backend)
        CHECKS[check](Case(backend, folder))
    except (cgml.BackendError, cgml.InputError) as error:
        return "refused", str(error)
    return "works", ""


def attempt_elsewhere(check: str, backend: str, folder: Path) -> tuple[str, str]:
    """Do the same in a process of its own, which may crash."""
    done = subprocess.run(
        [sys.executable, __file__, check, backend, folder],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cgml.__file__).parent.parent)},
    )
    if done.returncode < 0:
        return "crashes", f"signal {-done.returncode}"
    assert done.returncode == 0, done.stderr
    outcome, reason = json.loads(done.stdout.splitlines()[-1])
    return outcome, reason


@pytest.fixture(scope="module")
def folder(model, dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backends")
    (folder / "model.pt").write_bytes(model.file.archive)
    np.save(folder / "positions.npy", dataset.positions[:COPIES].astype(np.float64))
    return folder


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("one", list(BACKENDS))
def test_backend(one, check, folder, record_property) -> None:
    may_crash = one == "torchforce" and not FITTING and backend_problem(one) is None
    outcome, reason = (attempt_elsewhere if may_crash else attempt)(check, one, folder)
    record_property(
        "backend",
        json.dumps(
            {
                "backend": one,
                "check": check,
                "outcome": outcome,
                "reason": reason,
                "torch": torch.__version__,
                "openmm": openmm.version.short_version,
            }
        ),
    )
    if may_crash:
        # openmmtorch 1.5 with OpenMM 8.6 evaluates well, but crashes on copies of its force.
        assert outcome == "works" or (outcome == "crashes" and check in ("deepcopy", "XML"))
    elif one == "torchforce" and not FITTING:
        assert outcome == "refused" and "'torchforce' does not work here: " in reason
    elif (one, check) == ("python", "XML"):
        assert outcome == "refused" and "runs code when it is read" in reason
    else:
        assert outcome == "works", reason


def test_native_is_what_is_taken_where_torchforce_does_not_work_in_full() -> None:
    works = backend_problem("torchforce") is None
    assert choose_backend() == ("torchforce" if works and FITTING else "native")
    assert works or not FITTING


if __name__ == "__main__":
    check, backend, place = sys.argv[1:]
    torch.set_num_threads(1)
    print(json.dumps(attempt(check, backend, Path(place))))
