"""All the way back: weights that make backmapped samples an atomistic ensemble.

    w = exp(-(u(r) - U(R)) / kT) / q(c | R)

for beads R that are an ensemble of U. Atoms and densities must be complete: u is of exactly the
atoms that were generated, and nothing is frozen.
"""

import warnings
from typing import Any

import numpy as np

from .backmapping import Structures
from .errors import InputError
from .reweight import WeightReport, pareto_smoothed, weight_report
from .units import thermal_energy

# Forces of implicit solvents, by parts of their names: such a u is itself a free energy.
_IMPLICIT = ("GBSA", "CustomGB", "GeneralizedKirkwood")


def system_energies(system: Any, positions: np.ndarray, platform: str = "Reference") -> np.ndarray:
    """Return potential energies (structures,), kJ/mol, of an OpenMM System.

    Args:
        system: openmm.System, or its XML file.
        positions: (structures, atoms, 3), nm.
        platform: of OpenMM; of few atoms Reference is the fastest.

    Raises:
        InputError: if the numbers of atoms differ, or the System has constraints.
    """
    import torch  # noqa: F401  OpenMM's plugins need it first

    import openmm

    if isinstance(system, (str, bytes)) or hasattr(system, "read_text"):
        from .system import load_system

        system = load_system(str(system))
    require_unconstrained(system)
    if system.getNumParticles() != positions.shape[1]:
        raise InputError(
            f"the System has {system.getNumParticles()} particles and the structures "
            f"{positions.shape[1]} atoms; u must be of exactly the atoms that were generated"
        )
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform)
    )
    found = np.empty(len(positions))
    for number, frame in enumerate(np.asarray(positions, dtype=np.float64)):
        context.setPositions(frame)
        found[number] = context.getState(energy=True).getPotentialEnergy()._value
    return found


def require_unconstrained(system: Any) -> None:
    """Refuse a System with constraints.

    Raises:
        InputError: with the reason.
    """
    if count := system.getNumConstraints():
        raise InputError(
            f"the System has {count} constraints: atoms that cannot move apart have no density on "
            "the fiber (S = -infinity), so neither weights nor W = E - TS exist; make it with "
            "constraints=None and rigidWater=False, and take frames of such a run"
        )


def is_implicit(system: Any) -> bool:
    """Return whether a System has an implicit solvent."""
    names = [type(force).__name__ for force in system.getForces()]
    return any(part in name for name in names for part in _IMPLICIT)


def atomistic_weights(
    structures: Structures,
    energies: np.ndarray,
    bead_energies: np.ndarray | None,
    temperature: Any,
    *,
    bead_weights: np.ndarray | None = None,
    system: Any = None,
) -> tuple[np.ndarray, WeightReport]:
    """Return the weights of backmapped structures in the atomistic ensemble, and their worth.

    A coarse-grained simulation, a split-flow and these weights are a Boltzmann generator of the
    atoms. If the beads are frames of the all-atom ensemble itself leave `bead_energies` out only
    with `bead_weights` exp(-(W - U) / kT) of your own.

    Args:
        structures: with exact log-densities (those of random directions are right on average
            alone, and their exponentials are not; `Structures.exact` tells).
        energies: u (structures,), kJ/mol, of the physical potential, without any bias; see
            `system_energies`.
        bead_energies: U (frames,), kJ/mol, of the PMF that the beads are an ensemble of; one of
            each frame, or of each structure. None: the beads are drawn uniformly.
        temperature: K.
        bead_weights: (frames,) of beads that are weighted samples.
        system: if given, a warning tells where u is itself a free energy.

    Returns:
        Pareto-smoothed log weights (structures,), normalised, and the report of the raw ones.

    Raises:
        InputError: if there are no densities, or shapes do not fit.
    """
    if structures.log_density is None:
        why = "were relaxed since" if structures.relaxed else "were generated without"
        raise InputError(
            f"the structures {why} log-densities; generate them with density='exact', unrelaxed"
        )
    if not structures.exact:
        raise InputError(
            "the log-densities are of random directions, right on average, so that weights made "
            "of them would be wrong; generate the structures with density='exact'"
        )
    kt = float(thermal_energy(temperature))
    u = np.asarray(energies, dtype=np.float64)
    if u.shape != (len(structures),):
        raise InputError(f"energies have shape {u.shape}; give ({len(structures)},)")
    logs = -u / kt - structures.log_density
    if bead_energies is not None:
        logs = logs + _of_each(bead_energies, structures) / kt
    if bead_weights is not None:
        with np.errstate(divide="ignore"):
            logs = logs + np.log(_of_each(bead_weights, structures))
    if system is not None:
        require_unconstrained(system)
        if is_implicit(system):
            warnings.warn(
                "the solvent is implicit: u is itself a free energy of the solvent, and the "
                "ensemble that of this model at its temperature alone",
                stacklevel=2,
            )
    smoothed, shape = pareto_smoothed(logs)
    return smoothed, weight_report(logs, pareto_k=shape)


def _of_each(values: np.ndarray, structures: Structures) -> np.ndarray:
    """Return the values of the structures, given as they are or by frame, (structures,)."""
    array = np.asarray(values, dtype=np.float64)
    return array if len(array) == len(structures) else array[structures.frame]
