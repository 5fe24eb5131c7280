"""Does it work here? Versions, known-bad pairs, plugins, energies and forces on every platform."""

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import CGDataset
from .provenance import versions as installed_versions
from .topology import CGTopology

_SILENT = "does not run"


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        status: ``"ok"``, ``"warning"`` (works, but not everything) or ``"failure"``.
        detail: what was found, and the remedy.
    """

    name: str
    status: str
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings.

    Attributes:
        versions: package -> version, or "not installed".
        checks: in the order made.
    """

    versions: dict[str, str]
    checks: list[Check] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 if models can be run here, 1 if not."""
        return int(any(c.status == "failure" for c in self.checks))


def diagnose() -> Diagnosis:
    """Look at versions and evaluate a small model on every platform with every backend.

    Returns:
        A `Diagnosis`; energies and forces of each combination are compared with torch's own. The
        native force and its small model are compiled if this machine has not done so before.
    """
    versions = installed_versions()
    diagnosis = Diagnosis(versions)
    checks = diagnosis.checks
    openmm_first = "openmm" in sys.modules and "torch" not in sys.modules
    try:
        import torch
        import openmm  # isort: skip
    except ImportError as error:
        checks.append(Check("imports", "failure", f"{error}; install it"))
        return diagnosis
    platforms = _platforms(openmm)
    checks.append(_torchforce(openmm_first))
    checks.append(_native())
    checks.append(_cache())
    checks.append(_version_pair(versions))
    checks.append(
        Check("GPU", "ok", f"{torch.cuda.get_device_name(0)}")
        if torch.cuda.is_available()
        else Check("GPU", "ok", "none visible to torch; everything runs on the CPU")
    )
    checks.extend(_evaluations(openmm))
    checks.append(_platform_list(platforms, _platforms(openmm)))
    checks.append(_backends(checks))
    return diagnosis


def _platforms(openmm: Any) -> list[str]:
    return [
        openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())
    ]


def _torchforce(openmm_first: bool) -> Check:
    from .torchforce import load_torch_plugins, torchforce_problem

    still_failing = load_torch_plugins()
    problem = torchforce_problem()
    if problem is not None:
        return Check(
            "TorchForce",
            "warning",
            f"{problem}; {_instead('native', 'python')}. "
            "pip install 'openmm_cgml[torchforce]' installs versions that fit",
        )
    detail = "loads" + (" (openmm was imported before torch: repaired)" if openmm_first else "")
    if still_failing:
        detail += f"; not on every platform: {still_failing[0].splitlines()[0]}"
    return Check("TorchForce", "ok", detail)


def _native() -> Check:
    from .native import force, library

    if (problem := force.problem()) is not None:
        return Check("native force", "warning", f"{problem}; {_instead('torchforce', 'python')}")
    if (compiler := library.compiler()) is None:
        detail = "loads, but no C++ compiler is here, so models not yet in the cache run slower"
        return Check("native force", "warning", f"{detail}; install g++, or set CXX")
    return Check("native force", "ok", f"loads; compiler: {' '.join(compiler)}")


def _instead(*names: str) -> str:
    """Say which of these backends stands in for one that does not work."""
    from .force import backend_problem

    working = [name for name in names if backend_problem(name) is None]
    if not working:
        return "nor does another backend work"
    return f"backend {working[0]!r} is used instead{', slower' * (working[0] == 'python')}"


def _cache() -> Check:
    """Look at the folder of compiled code."""
    from .native import cache

    folder = cache.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        detail = (
            f"{folder} cannot be written ({error.strerror or error}), so code is compiled again "
            f"in every process; set {cache.FOLDER_VARIABLE} to a folder that can"
        )
        return Check("cache", "warning", detail)
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return Check("cache", "ok", f"{folder}: {sum(sizes) / 1e6:.1f} MB, can be written")


def _platform_list(before: list[str], after: list[str]) -> Check:
    """Loading a plugin twice registers its platform twice, and OpenMM then takes either."""
    if before != after or len(set(after)) < len(after):
        detail = f"were {', '.join(before)}, and after loading the backends {', '.join(after)}"
        return Check("platforms", "warning", detail)
    return Check("platforms", "ok", f"{', '.join(after)}; the backends leave the list as it is")


def _backends(checks: list[Check]) -> Check:
    """Say which backends run at all, and which of them a simulation takes."""
    from .force import BACKEND_VARIABLE, BACKENDS

    found = [c for c in checks if c.status != "failure" and not c.detail.startswith(_SILENT)]
    working = [b for b in BACKENDS if any(c.name.startswith(f"{b} on ") for c in found)]
    if not working:
        return Check("backends", "failure", "no backend works; see the lines above")
    chosen = os.environ.get(BACKEND_VARIABLE)
    taken = f"{chosen} ({BACKEND_VARIABLE})" if chosen else "the fastest"
    return Check("backends", "ok", f"{', '.join(working)}; simulations take {taken}")


def _version_pair(versions: dict[str, str]) -> Check:
    def release(name: str) -> tuple[int, ...]:
        digits = versions[name].split("+")[0].split(".")[:2]
        return tuple(int(d) for d in digits if d.isdigit())

    if "not installed" in (versions["openmmtorch"], versions["torch"], versions["openmm"]):
        return Check("version pair", "ok", "openmmtorch is not installed, no pair to check")
    if versions["openmmtorch"].startswith("1.5"):
        if release("torch") != (2, 9):
            return Check(
                "version pair",
                "warning",
                f"openmmtorch 1.5 was built against torch 2.9, here is {versions['torch']}; "
                "pip install 'torch==2.9.*'",
            )
        if release("openmm") >= (8, 6):
            return Check(
                "version pair",
                "warning",
                "openmmtorch 1.5 crashes when a System is copied or read from XML with openmm "
                f"{versions['openmm']}; pip install 'openmm<8.6'",
            )
    return Check("version pair", "ok", "no known-bad combination")


def _evaluations(openmm: Any) -> list[Check]:
    """Compare energies and forces with torch autograd: every backend on every platform."""
    from .force import BACKENDS, backend_problem
    from .model_file import save_model
    from .pmf import PMFS
    from .pmf.core import SumPMF
    from .pmf.prior import fit_prior
    from .system import load_model

    dataset = _small_dataset()
    checks = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.pt"
        save_model(path, SumPMF(fit_prior(dataset), PMFS["cgnet"](dataset, width=16)), dataset)
        model = load_model(path)
    positions = np.asarray(dataset.positions[:4], dtype=np.float64)
    energies, forces = model.energy_and_forces(positions)
    for backend in BACKENDS:
        if backend_problem(backend) is not None:
            continue
        for k in range(openmm.Platform.getNumPlatforms()):
            platform = openmm.Platform.getPlatform(k)
            name = f"{backend} on {platform.getName()}"
            try:
                found = _evaluate(openmm, model, positions, platform, backend)
            except Exception as error:
                # A platform without a device is no failure: others do the work.
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                checks.append(Check(name, "warning", f"{_SILENT}: {reason}"))
                continue
            energy_error = abs(found[0] - energies.sum()) / abs(energies.sum())
            force_error = np.linalg.norm(found[1] - forces) / np.linalg.norm(forces)
            detail = f"relative error of energy {energy_error:.1e}, of forces {force_error:.1e}"
            if not (energy_error < 1e-5 and force_error < 1e-5):
                checks.append(Check(name, "failure", detail))
            elif found[2]:
                checks.append(Check(name, "ok", detail))
            else:
                detail += "; the network cannot be compiled here and runs as TorchScript, slower"
                checks.append(Check(name, "warning", detail))
    return checks


def _evaluate(
    openmm: Any, model: Any, positions: np.ndarray, platform: Any, backend: str
) -> tuple[float, np.ndarray, bool]:
    """Return energy, forces, and whether what should be compiled is."""
    from .native import force as native

    system = model.create_system(len(positions), backend=backend)
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, platform)
    context.setPositions(positions.reshape(-1, 3))
    state = context.getState(getEnergy=True, getForces=True)
    forces = state.getForces(asNumpy=True)._value.reshape(positions.shape)
    compiled = backend != "native" or native.status(system.getForce(0), context)[0]
    return float(state.getPotentialEnergy()._value), forces, compiled


def _small_dataset() -> CGDataset:
    """Return a jittered zigzag chain of six beads: something to fit a prior to."""
    generator = np.random.default_rng(0)
    beads = 6
    chain = np.stack([0.3 * np.arange(beads), 0.1 * (np.arange(beads) % 2), 0 * np.arange(beads)])
    names = tuple(f"B{k}" for k in range(beads))
    topology = CGTopology(
        names, names, ("MOL",) * beads, (1,) * beads, ("A",) * beads,
        tuple((k, k + 1) for k in range(beads - 1)), (12.0,) * beads,
    )  # fmt: skip
    positions = chain.T + 0.03 * generator.standard_normal((50, beads, 3))
    return CGDataset(positions, topology, temperature=300.0)
