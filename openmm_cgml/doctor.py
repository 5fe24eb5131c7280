"""Does it work here? Versions, known-bad pairs, plugins, energies and forces on every platform."""

import importlib.metadata
import platform as machine
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import CGDataset
from .topology import CGTopology

_PACKAGES = (
    "openmm_cgml",
    "torch",
    "openmm",
    "openmmtorch",
    "mdtraj",
    "ParmEd",
    "numpy",
    "scipy",
    "h5py",
    "lightning",
)


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
        A `Diagnosis`; energies and forces of each combination are compared with torch's own.
    """
    versions = {"python": machine.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    diagnosis = Diagnosis(versions)
    checks = diagnosis.checks
    openmm_first = "openmm" in sys.modules and "torch" not in sys.modules
    try:
        import torch
        import openmm  # isort: skip
    except ImportError as error:
        checks.append(Check("imports", "failure", f"{error}; install it"))
        return diagnosis
    checks.append(_torchforce(openmm_first))
    checks.append(_version_pair(versions))
    checks.append(
        Check("GPU", "ok", f"{torch.cuda.get_device_name(0)}")
        if torch.cuda.is_available()
        else Check("GPU", "ok", "none visible to torch; everything runs on the CPU")
    )
    checks.extend(_evaluations(openmm))
    works = [c for c in checks if c.name.startswith(("torchforce", "python")) and c.status == "ok"]
    if not works:
        checks.append(Check("backends", "failure", "no backend works; see the lines above"))
    return diagnosis


def _torchforce(openmm_first: bool) -> Check:
    from .torchforce import load_torch_plugins, torchforce_problem

    still_failing = load_torch_plugins()
    problem = torchforce_problem()
    if problem is not None:
        return Check(
            "TorchForce",
            "warning",
            f"{problem}; the slower PythonForce is used. "
            "pip install 'openmm_cgml[torchforce]' installs versions that fit",
        )
    detail = "loads" + (" (openmm was imported before torch: repaired)" if openmm_first else "")
    if still_failing:
        detail += f"; not on every platform: {still_failing[0].splitlines()[0]}"
    return Check("TorchForce", "ok", detail)


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
                checks.append(Check(name, "warning", f"does not run: {reason}"))
                continue
            energy_error = abs(found[0] - energies.sum()) / abs(energies.sum())
            force_error = np.linalg.norm(found[1] - forces) / np.linalg.norm(forces)
            good = energy_error < 1e-5 and force_error < 1e-5
            detail = f"relative error of energy {energy_error:.1e}, of forces {force_error:.1e}"
            checks.append(Check(name, "ok" if good else "failure", detail))
    return checks


def _evaluate(
    openmm: Any, model: Any, positions: np.ndarray, platform: Any, backend: str
) -> tuple[float, np.ndarray]:
    system = model.create_system(len(positions), backend=backend)
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, platform)
    context.setPositions(positions.reshape(-1, 3))
    state = context.getState(getEnergy=True, getForces=True)
    forces = state.getForces(asNumpy=True)._value.reshape(positions.shape)
    return float(state.getPotentialEnergy()._value), forces


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
