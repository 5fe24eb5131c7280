"""Do two biases along the beads give the same mean forces, and do wrong ones show?

1. Müller-Brown by quadrature: mean forces under three biases, kT = 1.
2. Capped alanine, five beads: the forces along phi and psi of two metadynamics runs (bias factors
   1.5 and 6, in ``../shared/data`` or CGML_DATA), in bins of 10 degrees, frames in a bin by their
   weights, with errors from the scatter in the bin and the correlation of its residuals.
3. The same on short runs of `run_reference`, with two negative controls: a bias that is left in
   the forces, and a bias along psi where the beads know phi alone. Those must fail.
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch  # noqa: F401  (before openmm)

import numpy as np
import openmm
import scipy.stats

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from benchmarks.muller_brown import MB
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.correlation import statistical_inefficiency
from openmm_cgml.mapping.constraints import constraints_from_system
from openmm_cgml.reference.reporter import DatasetReporter
from openmm_cgml.reference.run import run_reference
from openmm_cgml.reference.setup import ReferenceSystem, build_system
from openmm_cgml.units import thermal_energy

ISSUE = "maps issue: bias invariance; z-scores of all bins together, and of the worst"
DATA = Path(os.environ.get("CGML_DATA", Path(__file__).parents[2] / "shared" / "data"))
SEED = 1
KT = thermal_energy(300)
#: phi and psi of the five backbone beads.
TORSIONS = [[0, 1, 2, 3], [1, 2, 3, 4]]
#: Where the windows are, rad.
PHI, PSI = -1.4, 1.2
PACKAGE = resources.files(cgml) / "data" / "quickstart"

# ---------------------------------------------------------------- Müller-Brown

#: Energy and slope by x, kT = 1.
muller_brown = MB["potential"]
X = np.linspace(10, 50, 401)
Y = np.linspace(-15, 60, 6001)
Bias = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def mean_force(bias: Bias, subtract: bool = True) -> np.ndarray:
    """Return the mean force along x on `X`, under a bias that returns energy and slope by x."""
    energy, slope = muller_brown(X[:, None], Y[None])
    added, steepness = bias(X[:, None], Y[None])
    total = energy + added
    weights = np.exp(-(total - total.min(axis=1, keepdims=True)))
    force = -slope if subtract else -slope - steepness
    return (weights * force).sum(axis=1) / weights.sum(axis=1)


def no_bias(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """No bias."""
    return np.zeros_like(x + y), np.zeros_like(x + y)


def well(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The authors' bias along x."""
    bump = -4 * np.exp(-((x - 32) ** 2) / 50) + 0 * y
    return bump, bump * -(x - 32) / 25


def wave(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Another bias along x."""
    return 3 * np.sin(x / 4) + 0 * y, 0.75 * np.cos(x / 4) + 0 * y


def hidden_well(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A bias along y, which the bead does not know."""
    bump = -4 * np.exp(-((y - 20) ** 2) / 50) + 0 * x
    return bump, 0 * bump


# ---------------------------------------------------------------- two runs


class Binned(NamedTuple):
    """Mean generalised forces in bins of (phi, psi): kT/rad, nan where there are few frames."""

    mean: np.ndarray
    error: np.ndarray


class Agreement(NamedTuple):
    """How well two runs agree.

    Attributes:
        bins: compared, over both torsions.
        worst: largest |z|.
        total: chi-square of all bins as a normal z-score.
    """

    bins: int
    worst: float
    total: float


def generalised_forces(dataset: cgml.CGDataset, torsions: list[list[int]]) -> np.ndarray:
    """Return F . dR/dphi (frames, torsions), kT/rad: beads beyond the axis are turned about it."""
    x, f = dataset.positions.astype(np.float64), dataset.forces.astype(np.float64)
    found = []
    for _, j, k, end in torsions:
        axis = x[:, k] - x[:, j]
        axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
        lever = np.cross(axis[:, None], x[:, end:] - x[:, [k]])
        found.append((lever * f[:, end:]).sum((-1, -2)) / KT)
    return np.stack(found, axis=1)


def binned(
    dataset: cgml.CGDataset, torsions: list[list[int]], bins: int = 36, least: float = 20.0
) -> Binned:
    """Bin the generalised forces by the torsions; bins of `least` effective frames or more."""
    forces = generalised_forces(dataset, torsions)
    angles = dihedral_angles(dataset.positions, torsions)
    cells = np.floor((angles + np.pi) / (2 * np.pi) * bins).astype(int) % bins
    which = cells @ (bins ** np.arange(len(torsions)))
    if dataset.weights is not None:
        log_weights = np.log(np.maximum(dataset.weights, 1e-300))
    else:
        log_weights = np.zeros(len(dataset))
    shape = (bins ** len(torsions), len(torsions))
    mean, error, size = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape[0])
    residual = np.zeros_like(forces)
    counts = np.bincount(which, minlength=shape[0])
    for number in np.flatnonzero(counts >= 3):
        mine = which == number
        weights = np.exp(log_weights[mine] - log_weights[mine].max())
        weights /= weights.sum()
        mean[number] = weights @ forces[mine]
        residual[mine] = forces[mine] - mean[number]
        size[number] = 1 / (weights**2).sum()
        factor = size[number] / max(size[number] - 1, 1e-9)
        error[number] = np.sqrt(factor * (weights**2 @ residual[mine] ** 2))
    correlated = np.array([statistical_inefficiency(r) for r in residual.T])
    mean[size[:, None] / correlated < least] = np.nan
    return Binned(mean, error * np.sqrt(correlated))


def agreement(
    one: cgml.CGDataset, other: cgml.CGDataset, torsions: list[list[int]] = TORSIONS
) -> Agreement:
    """Compare the mean generalised forces of two runs in the bins that both visit."""
    a, b = binned(one, torsions), binned(other, torsions)
    z = (a.mean - b.mean) / np.hypot(a.error, b.error)
    z = z[np.isfinite(z)]
    if not len(z):
        raise SystemExit("the runs have no bin in common: make them longer")
    chi_square = float((z**2).sum())
    # Wilson-Hilferty: a normal score that does not run out of digits where p does.
    cube = 2 / (9 * len(z))
    total = ((chi_square / len(z)) ** (1 / 3) - (1 - cube)) / np.sqrt(cube)
    return Agreement(len(z), float(np.abs(z).max()), float(total))


def expected_worst(bins: int) -> float:
    """Return the |z| that the worst of so many bins passes once in a thousand times."""
    return float(scipy.stats.norm.isf(0.0005 / bins))


def shared_run(name: str) -> cgml.CGDataset:
    """Map one of the long runs, with its weights."""
    with np.load(DATA / "ala2" / f"{name}.npz") as arrays, resources.as_file(PACKAGE) as files:
        weighted = arrays["weights"] > 0  # zero while the bias grows fast
        source = cgml.read_trajectory(
            arrays["positions"][weighted],
            top=files / "topology.pdb",
            forces=arrays["forces"][weighted],
            weights=arrays["weights"][weighted].astype(np.float64),
        )
        mapping = cgml.MAPPINGS["backbone"](source.topology)
        pairs = constraints_from_system(files / "system.xml")
        return cgml.map_trajectory(
            source, mapping, temperature=300, constraints=pairs, force_map="rotation"
        )


# ---------------------------------------------------------------- runs of our own


def metadynamics(folder: Path, bias_factor: float, ns: float, seed: int) -> cgml.CGDataset:
    """Run metadynamics along phi and psi."""
    with resources.as_file(PACKAGE / "topology.pdb") as pdb:
        run = run_reference(
            pdb,
            folder / f"metadynamics_{bias_factor}.h5",
            ns=ns,
            method="metadynamics",
            variables=["phi", "psi"],
            bias_factor=bias_factor,
            interval=0.2,
            force_map="rotation",
            platform="Reference",
            seed=seed,
        )
    return run.dataset()


def umbrella(folder: Path, spring: float, ns: float, seed: int) -> cgml.CGDataset:
    """Run one umbrella window, k (1 - cos) along phi and psi, in a populated region."""
    with resources.as_file(PACKAGE / "topology.pdb") as pdb:
        run = run_reference(
            pdb,
            folder / f"umbrella_{spring}.h5",
            ns=ns,
            method="umbrella",
            variables=["phi", "psi"],
            centres=[[PHI, PSI]],
            springs=[spring],
            interval=0.1,
            equilibrate=20.0,
            calibrate=200,
            force_map="rotation",
            platform="Reference",
            seed=seed,
        )
    return run.dataset()


def left_in(folder: Path, ns: float, seed: int) -> cgml.CGDataset:
    """Run with the same kind of bias in the force group of the physical forces: it is recorded."""
    system = _system()
    for atoms, centre in (
        (("ACE-C", "ALA-N", "ALA-CA", "ALA-C"), PHI),
        (("ALA-N", "ALA-CA", "ALA-C", "NME-N"), PSI),
    ):
        force = openmm.CustomTorsionForce(f"40*(1-cos(theta-({centre})))")
        force.addTorsion(*_atoms(*atoms), [])
        system.system.addForce(force)
    run = run_reference(
        system,
        folder / "left_in.h5",
        ns=ns,
        variables=["phi", "psi"],
        interval=0.1,
        equilibrate=20.0,
        calibrate=200,
        force_map="rotation",
        platform="Reference",
        seed=seed,
    )
    return run.dataset()


def phi_alone(top: Any) -> Any:
    """Return the map that keeps the four atoms of phi: psi is averaged out."""
    return cgml.slice_mapping(top, _atoms("ACE-C", "ALA-N", "ALA-CA", "ALA-C"))


def along_phi(folder: Path, ns: float, seed: int) -> cgml.CGDataset:
    """Run metadynamics along phi for the four atoms of phi."""
    with resources.as_file(PACKAGE / "topology.pdb") as pdb:
        run = run_reference(
            pdb,
            folder / "along_phi.h5",
            ns=ns,
            method="metadynamics",
            mapping=phi_alone,
            variables=["phi"],
            interval=0.2,
            platform="Reference",
            seed=seed,
        )
    return run.dataset()


def hidden(folder: Path, ns: float, seed: int) -> cgml.CGDataset:
    """Run with a bias along psi, which the four beads do not know; forces are unbiased."""
    system = _system()
    force = openmm.CustomTorsionForce(f"30*(1-cos(theta-({PSI})))")
    force.addTorsion(*_atoms("ALA-N", "ALA-CA", "ALA-C", "NME-N"), [])
    force.setForceGroup(7)
    system.system.addForce(force)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.002)
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = openmm.app.Simulation(system.topology, system.system, integrator, platform)
    simulation.context.setPositions(system.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300, seed)
    simulation.step(10_000)
    mapping = phi_alone(cgml.read_topology(system.topology))
    output = folder / "hidden.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the bias is hidden is what is shown here
        with DatasetReporter(
            output, 100, mapping, temperature=300, bias_groups={7}, force_map="rotation"
        ) as reporter:
            simulation.reporters.append(reporter)
            simulation.step(int(ns * 500_000))
    return cgml.read_dataset(output)


def _system() -> ReferenceSystem:
    with resources.as_file(PACKAGE / "topology.pdb") as pdb:
        return build_system(pdb)


def _atoms(*labels: str) -> list[int]:
    with resources.as_file(PACKAGE / "topology.pdb") as pdb:
        top = cgml.read_topology(pdb)
    index = {f"{a.residue.name}-{a.name}": a.index for a in top.atoms}
    return [index[label] for label in labels]


def run(quick: bool) -> Outcome:
    """Compare."""
    unbiased = mean_force(no_bias)
    targets = [
        Target("Müller-Brown: largest difference of mean forces, two biases", "kT", 1e-10,
               max(float(np.abs(mean_force(b) - unbiased).max()) for b in (well, wave)),
               source=ISSUE),
        Target("Müller-Brown control, bias left in", "kT", 0.1,
               float(np.abs(mean_force(well, subtract=False) - unbiased).max()), at_most=False,
               source=ISSUE),
        Target("Müller-Brown control, hidden variable", "kT", 0.1,
               float(np.abs(mean_force(hidden_well) - unbiased).max()), at_most=False,
               source=ISSUE),
    ]  # fmt: skip
    details: dict[str, Any] = {}
    pairs: list[tuple[str, cgml.CGDataset, cgml.CGDataset, bool]] = []
    if not quick and DATA.is_dir():
        one, other = shared_run("wtmetad_gamma1.5"), shared_run("wtmetad_gamma6")
        pairs.append(("bias factors 1.5 and 6, 20 and 40 ns", one, other, True))
    ns = 0.1 if quick else 4.0
    soft, stiff = 15.0, 60.0  # kJ/mol
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        right = umbrella(folder, soft, ns, SEED)
        pairs += [
            ("own windows, springs 15 and 60", right, umbrella(folder, stiff, ns, 2), True),
            ("control: bias left in the forces", right, left_in(folder, ns, 3), False),
        ]
        if not quick:
            six = metadynamics(folder, 6.0, ns, 4)
            pairs += [
                ("own runs, bias factors 6 and 3", six, metadynamics(folder, 3.0, ns, 5), True),
                ("control: hidden variable", along_phi(folder, ns, 6), hidden(folder, ns, 7),
                 False),
            ]  # fmt: skip
        for label, first, second, agrees in pairs:
            torsions = TORSIONS if len(first.topology) == 5 else TORSIONS[:1]
            found = agreement(first, second, torsions)
            details[label] = found._asdict()
            targets.append(
                Target(f"{label}: z-score of {found.bins} comparisons", "", 4.0, found.total,
                       at_most=agrees, source=ISSUE)
            )  # fmt: skip
            targets.append(
                Target(f"{label}: worst |z|", "", expected_worst(found.bins) if agrees else None,
                       found.worst, source=ISSUE)
            )  # fmt: skip
    return Outcome(targets, SEED, details)


if __name__ == "__main__":
    main("bias_invariance", __doc__, run)
