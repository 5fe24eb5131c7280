"""Orders of import: TorchForce works in any of them, or another force stands in."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch  # before openmm: the first of the orders

import numpy as np
import openmm
import pytest

import openmm_cgml as cgml

ROOT = Path(__file__).resolve().parent.parent

# Processes start with one of these and go on with EVALUATE: each costs seconds, so there are few.
OPENMM_FIRST = """
    import openmm, openmm.app
    system = openmm.System()
    system.addParticle(1.0)
    openmm.Context(system, openmm.VerletIntegrator(0.001))
    assert "torch" not in sys.modules
    import openmm_cgml as cgml
"""
# The package takes no side when it is imported, so this is openmm before torch as well.
PACKAGE_FIRST = """
    import openmm_cgml as cgml
    import openmm
    assert "torch" not in sys.modules
"""
NO_OPENMMTORCH = """
    import importlib.abc

    class Blocker(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "openmmtorch":
                raise ImportError("no such library")

    sys.meta_path.insert(0, Blocker())
    import openmm_cgml as cgml
    import openmm

    try:
        cgml.load_model(sys.argv[1]).create_force(backend="torchforce")
    except cgml.BackendError as error:
        print("refused:", error)
"""
NO_COMPILER = """
    import os

    os.environ["PATH"] = ""
    os.environ.pop("CXX", None)
    os.environ["OPENMM_CGML_CACHE"] = sys.argv[1] + ".cache"  # empty
"""
EVALUATE = """
    import numpy as np

    model = cgml.load_model(sys.argv[1])
    positions = np.load(sys.argv[2])
    energies = model.energy_and_forces(positions)[0]
    print(type(model.create_force(copies=len(positions))).__name__)
    platforms = [openmm.Platform.getPlatform(k) for k in range(openmm.Platform.getNumPlatforms())]
    print(*sorted(p.getName() for p in platforms if p.getName() in ("CPU", "Reference")))
    for platform in platforms:
        if platform.getName() in ("CPU", "Reference"):
            system = model.create_system(len(positions))
            context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
            context.setPositions(positions.reshape(-1, 3))
            found = context.getState(getEnergy=True).getPotentialEnergy()._value
            print(abs(found / energies.sum() - 1) < 1e-5)
"""


@pytest.fixture(scope="module")
def arguments(model, dataset, tmp_path_factory) -> list[str]:
    """A model file and positions of four copies."""
    folder = tmp_path_factory.mktemp("imports")
    (folder / "model.pt").write_bytes(model.file.archive)
    np.save(folder / "positions.npy", dataset.positions[:4].astype(float))
    return [str(folder / "model.pt"), str(folder / "positions.npy")]


def run(beginning: str, arguments: list[str]) -> tuple[list[str], str]:
    """Run a script in this checkout; return its lines and what it said on stderr."""
    script = "import sys\n" + textwrap.dedent(beginning) + textwrap.dedent(EVALUATE)
    environment = {k: v for k, v in os.environ.items() if k != "OPENMM_CGML_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(
    "beginning", [OPENMM_FIRST, PACKAGE_FIRST], ids=["openmm first", "package first"]
)
def test_torchforce_is_repaired_where_openmm_came_first(beginning, arguments) -> None:
    lines, said = run(beginning, arguments)
    # Loading the plugins' whole directory again would register the CPU platform twice.
    assert lines == ["TorchForce", "CPU Reference", "True", "True"]
    assert said == ""


def test_torchforce_needs_no_repair_where_torch_came_first(model, dataset) -> None:
    assert list(sys.modules).index("torch") < list(sys.modules).index("openmm")
    assert torch.__version__ and type(model.create_force()).__name__ == "TorchForce"
    names = [
        openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())
    ]
    assert names.count("CPU") == names.count("Reference") == 1


REFUSED = (
    "refused: backend 'torchforce' does not work here: "
    "openmmtorch is not importable (no such library)"
)


def test_native_force_stands_in(arguments) -> None:
    lines, said = run(NO_OPENMMTORCH, arguments)
    # A backend that is asked for by name is refused, never replaced in silence.
    assert lines == [REFUSED, "Force", "CPU Reference", "True", "True"]
    # Nothing to warn of: it is the faster one. A first use says what it compiles.
    assert all(line.startswith("openmm_cgml: ") for line in said.splitlines())


def test_python_force_stands_in_and_says_so_once(arguments) -> None:
    lines, said = run(NO_OPENMMTORCH + NO_COMPILER, arguments)
    assert lines == [REFUSED, "PythonForce", "CPU Reference", "True", "True"]
    # Three forces were made; the reasons are said with the first.
    assert said.count("UserWarning") == 1 and said.count("works here") == 1
    assert (
        "neither TorchForce (openmmtorch is not importable (no such library)) nor the native "
        "force (there is no C++ compiler; install g++, or set CXX) works here; using the slower "
        "PythonForce. See `cgml doctor`."
    ) in said


def test_exports_are_all_there() -> None:
    """Every name of the package can be had, and `dir` shows no more and no fewer."""
    assert set(cgml.__all__) == set(dir(cgml))
    for name in cgml.__all__:
        assert getattr(cgml, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Langevn'"):
        cgml.Langevn  # noqa: B018
