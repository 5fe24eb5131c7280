"""From structures to simulations: hydrogens, a System, and relaxation with beads held."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .backmapping import Structures
from .errors import InputError, first_line
from .topology import CGTopology
from .units import GAS_CONSTANT

# kJ/mol/nm^2, of beads of several atoms, before they are put back exactly.
_STIFFNESS = 50_000.0


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Structures after an energy minimisation with their beads held.

    Attributes:
        structures: all atoms, hydrogens too; no densities any more.
        before, after: potential energies (structures,), kJ/mol, of beads held, unminimised (with
            hydrogens where rules put them) and minimised.
        topology: openmm.app.Topology.
        system: openmm.System, to start simulations from, without restraints.
        bead_error: largest distance of a bead from its place, nm.
    """

    structures: Structures
    before: np.ndarray
    after: np.ndarray
    topology: Any
    system: Any
    bead_error: float


def with_hydrogens(
    structures: Structures, forcefield: Any, *, ph: float = 7.0
) -> tuple[Any, np.ndarray]:
    """Return the topology and positions of structures whose hydrogens are placed by rule.

    Args:
        structures: of heavy atoms, or of all.
        forcefield: an openmm.app.ForceField, or names of its files.
        ph: of the protonation states, the same in all structures.

    Returns:
        An openmm.app.Topology and positions (structures, atoms, 3), nm.

    Raises:
        InputError: if the force field does not know a residue, or its atoms are incomplete.
    """
    from openmm import app, unit

    forcefield = _forcefield(forcefield)
    top = structures.topology.to_openmm(atoms=True)
    if any(a.element.symbol == "H" for a in top.atoms()):
        return top, structures.positions
    states, found, made = None, [], None
    for frame in structures.positions:
        modeller = app.Modeller(top, frame * unit.nanometer)
        try:
            used = modeller.addHydrogens(forcefield, pH=ph, variants=states)
        except Exception as error:
            raise InputError(
                f"hydrogens cannot be added ({first_line(error)}); give a force field that knows "
                "the residues, and structures of all their heavy atoms"
            ) from error
        states = states or used
        made = made or modeller.topology
        found.append(np.array(modeller.positions.value_in_unit(unit.nanometer)))
    return made, np.array(found)


def relax(
    structures: Structures,
    forcefield: Any,
    beads: np.ndarray,
    *,
    ph: float = 7.0,
    iterations: int = 200,
    platform: str | None = None,
    **system_settings: Any,
) -> Relaxed:
    """Return structures minimised in OpenMM while their beads stay where they are.

    Atoms that are beads get no mass. Beads of several atoms are held by springs and afterwards
    put back exactly, r - L (M r - R). Hydrogens are added by rule where there are none. Relaxed
    structures have no density: they cannot be weighted.

    Args:
        structures: to relax.
        forcefield: an openmm.app.ForceField, or names of its files.
        beads: M (beads, atoms of the structures).
        ph: as of `with_hydrogens`.
        iterations: of the minimiser, at most.
        platform: of OpenMM; None: the fastest.
        **system_settings: of ForceField.createSystem; without constraints in any case here.

    Raises:
        InputError: if the force field does not fit the structures, or an energy is not finite.
    """
    import torch  # noqa: F401  OpenMM's plugins need it first

    import openmm
    from openmm import unit

    forcefield = _forcefield(forcefield)
    top, positions = with_hydrogens(structures, forcefield, ph=ph)
    place = _places(structures.topology, top)
    try:
        ready = forcefield.createSystem(top, **system_settings)
        held = forcefield.createSystem(
            top, **{**system_settings, "constraints": None, "rigidWater": False}
        )
    except Exception as error:
        raise InputError(
            f"the force field does not fit the structures: {first_line(error)}; name the files "
            "of one that knows every residue, and generate all its atoms"
        ) from error
    slices = (beads != 0).sum(1) == 1
    springs = _hold(held, beads, slices, place)
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(
        held, integrator, *([openmm.Platform.getPlatformByName(platform)] if platform else [])
    )
    total = np.zeros((len(beads), positions.shape[1]))
    total[:, place] = beads
    lift = np.linalg.pinv(total[~slices]) if (~slices).any() else None
    before, after, found = [], [], []
    for frame, targets in zip(positions, structures.beads, strict=True):
        for bond, bead in enumerate(np.flatnonzero(~slices)):
            springs.setBondParameters(bond, [bond], [*targets[bead]])
        if springs is not None:
            springs.updateParametersInContext(context)
        context.setPositions(frame)
        before.append(_energy(context))
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, iterations)
        state = context.getState(positions=True).getPositions(asNumpy=True)
        moved = np.asarray(state.value_in_unit(unit.nanometer))
        if lift is not None:
            moved = moved - lift @ (total[~slices] @ moved - targets[~slices])
            context.setPositions(moved)
        after.append(_energy(context))
        found.append(moved)
    atoms = np.array(found)
    if not np.isfinite(after).all():
        raise InputError(
            f"{int((~np.isfinite(after)).sum())} structures have no finite energy after "
            "relaxation; generate others, or look at their clashes"
        )
    off = np.linalg.norm(np.einsum("ba,fak->fbk", total, atoms) - structures.beads, axis=-1)
    topology = CGTopology.from_openmm(top)
    relaxed = replace(
        structures, positions=atoms, topology=topology, log_density=None, relaxed=True
    )
    return Relaxed(relaxed, np.array(before), np.array(after), top, ready, float(off.max()))


def _hold(system: Any, beads: np.ndarray, slices: np.ndarray, place: np.ndarray) -> Any:
    """Take the mass of atoms that are beads; return springs on the others, or None."""
    import openmm

    for bead in np.flatnonzero(slices):
        system.setParticleMass(int(place[beads[bead].argmax()]), 0.0)
    if slices.all():
        return None
    springs = openmm.CustomCentroidBondForce(1, "0.5*k*((x1-x0)^2+(y1-y0)^2+(z1-z0)^2)")
    springs.addGlobalParameter("k", _STIFFNESS)
    for axis in ("x0", "y0", "z0"):
        springs.addPerBondParameter(axis)
    for bond, bead in enumerate(np.flatnonzero(~slices)):
        members = np.flatnonzero(beads[bead])
        springs.addGroup(place[members].tolist(), beads[bead, members].tolist())
        springs.addBond([bond], [0.0, 0.0, 0.0])
    system.addForce(springs)
    return springs


def _places(structures: CGTopology, top: Any) -> np.ndarray:
    """Return where the atoms of structures are in a topology with hydrogens, (atoms,)."""
    if len(structures) == top.getNumAtoms():
        return np.arange(len(structures))
    found = {}
    for index, atom in enumerate(top.atoms()):
        found[(atom.residue.index, atom.name)] = index
    residues = [*zip(structures.chain_ids, structures.residue_ids, structures.residue_names,
                     strict=True)]  # fmt: skip
    number = {key: k for k, key in enumerate(dict.fromkeys(residues))}
    try:
        return np.array([
            found[(number[key], name)]
            for key, name in zip(residues, structures.bead_names, strict=True)
        ])  # fmt: skip
    except KeyError as error:
        raise InputError(
            f"atom {error} is not in the topology with hydrogens: the force field names or "
            "completes its residue otherwise; name atoms as it does"
        ) from error


def _energy(context: Any) -> float:
    return float(context.getState(energy=True).getPotentialEnergy()._value)


def _forcefield(forcefield: Any) -> Any:
    from openmm import app

    if isinstance(forcefield, (str, Path)):
        forcefield = [forcefield]
    if isinstance(forcefield, Sequence):
        try:
            return app.ForceField(*map(str, forcefield))
        except Exception as error:
            raise InputError(
                f"force field {', '.join(map(str, forcefield))} cannot be read "
                f"({first_line(error)}); give files that openmm.app.ForceField knows"
            ) from error
    return forcefield


def survives(
    relaxed: Relaxed, *, ps: float = 10.0, temperature: float = 300.0, timestep: float = 0.002,
    seed: int = 0, platform: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Return which structures a free simulation from them stays stable for (structures,).

    Stable: positions stay finite, and the mean kinetic temperature of the last tenth is within a
    factor of one and a half.

    Args:
        relaxed: from `relax`; its System, made with or without constraints.
        ps: length of the runs.
        temperature: K.
        timestep: ps; 0.002 needs constraints on bonds with hydrogens.
        seed: of velocities and noise.
        platform: of OpenMM; None: the fastest.
    """
    import torch  # noqa: F401

    import openmm

    integrator = openmm.LangevinMiddleIntegrator(temperature, 1.0, timestep)
    integrator.setRandomNumberSeed(seed + 1)
    context = openmm.Context(
        relaxed.system, integrator,
        *([openmm.Platform.getPlatformByName(platform)] if platform else []),
    )  # fmt: skip
    system = relaxed.system
    degrees = 3 * system.getNumParticles() - system.getNumConstraints()
    found = np.zeros(len(relaxed.structures), dtype=bool)
    for number, frame in enumerate(relaxed.structures.positions):
        context.setPositions(frame)
        context.applyConstraints(1e-6)
        context.setVelocitiesToTemperature(temperature, seed + number + 1)
        try:
            steps = round(ps / timestep)
            integrator.step(steps - steps // 10)
            kinetic = []
            for _ in range(10):
                integrator.step(max(1, steps // 100))
                state = context.getState(energy=True)
                kinetic.append(state.getKineticEnergy()._value)
        except openmm.OpenMMException:
            context.reinitialize()
            continue
        ratio = np.mean(kinetic) / (0.5 * degrees * GAS_CONSTANT * temperature)
        found[number] = bool(np.isfinite(ratio) and 1 / 1.5 < ratio < 1.5)
    return found
