"""Users' OpenMM forces, written for one copy of the molecule, made to act on each of many copies.

Copy ``k`` of a molecule of ``beads`` beads is particles ``k*beads`` to ``(k+1)*beads - 1``. The
terms of the force are repeated with their indices moved; there are none between copies. A force
whose energy is no sum of such terms is refused with what to write instead.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch  # noqa: F401  (before openmm: TorchForce's plugins need its libraries)

import openmm  # isort: skip

from .errors import InputError


class _Terms(NamedTuple):
    """One list of a force: getNum<name>s, get<name><content> and add<name> are its methods."""

    name: str
    indices: int  # how many of a term's leading entries are indices, or sequences of them
    of: str = "bead"  # what the indices count
    content: str = "Parameters"


_SUPPORTED = {
    "HarmonicBondForce": [_Terms("Bond", 2)],
    "HarmonicAngleForce": [_Terms("Angle", 3)],
    "PeriodicTorsionForce": [_Terms("Torsion", 4)],
    "RBTorsionForce": [_Terms("Torsion", 4)],
    "CustomBondForce": [_Terms("Bond", 2)],
    "CustomAngleForce": [_Terms("Angle", 3)],
    "CustomTorsionForce": [_Terms("Torsion", 4)],
    "CustomCompoundBondForce": [_Terms("Bond", 1)],
    "CustomCentroidBondForce": [_Terms("Group", 1), _Terms("Bond", 1, of="group")],
    "CustomExternalForce": [_Terms("Particle", 1)],
    "CustomNonbondedForce": [
        _Terms("Particle", 0),
        _Terms("Exclusion", 2, content="Particles"),
        _Terms("InteractionGroup", 2),
    ],
}

_SHARED_BOX = "all copies share one box; leave it out, they run at constant volume"
_SOLVENT = "; leave it out, a PMF averages over the solvent already"
_ALL_PARTICLES = (
    "it sees the particles of all copies at once; add it to the PMF (SumPMF), or write it as a "
    "CustomCompoundBondForce"
)
# Class -> why not; what to do instead.
_REFUSED = {
    "NonbondedForce": "it would act between copies; use a CustomNonbondedForce, which gets one "
    "interaction group a copy, or a CustomBondForce over the pairs",
    "GayBerneForce": "it would act between copies; use a CustomCompoundBondForce over the pairs "
    "and the beads that orient them",
    "ConstantPotentialForce": "it would act between copies; use a CustomNonbondedForce, which "
    "gets one interaction group a copy",
    "CustomManyParticleForce": "it would act between copies; use a CustomCompoundBondForce with "
    "one bond for each set of beads",
    "CustomHbondForce": "donors would see the acceptors of other copies; use a "
    "CustomCompoundBondForce with one bond for each donor and acceptor",
    "CustomGBForce": "its computed values would count the beads of other copies; use a "
    "CustomNonbondedForce or a CustomCompoundBondForce",
    "GBSAOBCForce": "its Born radii would count the beads of other copies" + _SOLVENT,
    "LCPOForce": "its surface areas would count the beads of other copies" + _SOLVENT,
    "CustomCVForce": "its energy is one function of variables, not one a copy; write it as a "
    "CustomCompoundBondForce or CustomCentroidBondForce with one bond over its beads",
    "RMSDForce": "it is one deviation of one set of particles, not one a copy; use a "
    "CustomBondForce over distances of the reference",
    "RGForce": "it is one radius of gyration of one set of particles, not one a copy; use a "
    "CustomCompoundBondForce with one bond over its beads",
    "OrientationRestraintForce": "it is one rotation of one set of particles, not one a copy; use "
    "a CustomExternalForce on beads that fix the orientation",
    "ATMForce": "its energy is one function of all forces in it, not one a copy; write it as a "
    "CustomBondForce or CustomCompoundBondForce with a global parameter",
    "CMAPTorsionForce": "its maps correct an all-atom force field, whose place the PMF takes; use "
    "a CustomCompoundBondForce with a Continuous2DFunction of two dihedrals",
    "DrudeForce": "it belongs to the charges of a NonbondedForce, which would act between copies; "
    "use a HarmonicBondForce if beads shall be tethered",
    "CustomVolumeForce": _SHARED_BOX,
    "MonteCarloBarostat": _SHARED_BOX,
    "MonteCarloAnisotropicBarostat": _SHARED_BOX,
    "MonteCarloMembraneBarostat": _SHARED_BOX,
    "MonteCarloFlexibleBarostat": _SHARED_BOX,
    "RPMDMonteCarloBarostat": _SHARED_BOX,
    "CMMotionRemover": "it would couple the momenta of the copies; leave it out, Langevin "
    "dynamics needs none",
    "AndersenThermostat": "it would be a second thermostat, with one temperature for all copies; "
    "leave it out, the integrator is the thermostat",
    "PythonForce": _ALL_PARTICLES,
    "TorchForce": _ALL_PARTICLES,
    # What OpenMM's Python gives for a plugin's force that came out of a System.
    "Force": "it is a plugin's force, of a class unknown here; write it as a "
    "CustomCompoundBondForce",
}


def replicate_force(force: openmm.Force, beads: int, copies: int) -> openmm.Force:
    """Return a force that acts on each copy as the given one acts on one.

    Everything but the terms is the same: energy function, global parameters and their
    derivatives, functions, cutoff, periodicity, group, name. A global parameter is one for all
    copies. Without interaction groups of its own, a CustomNonbondedForce gets one for each copy.

    Args:
        force: written for one copy, with bead indices 0 to ``beads - 1``; not changed.
        beads: number of beads of one copy.
        copies: number of copies; with one, the result equals the given force.

    Raises:
        InputError: if the class of force cannot be replicated (the message says what can be
            used instead), if a term names a bead that does not exist, or if a
            CustomNonbondedForce has not one particle a bead.
    """
    if beads < 1 or copies < 1:
        raise InputError(f"{beads} beads and {copies} copies; give at least one of each")
    kind = _supported_kind(force)
    # The deepcopy is the first copy with all that is not a term; the others' terms are appended.
    replicated = deepcopy(force)
    sizes = {"bead": beads}
    if kind == "CustomNonbondedForce":
        _separate_copies(replicated, beads, copies)
    elif kind == "CustomCentroidBondForce":
        sizes["group"] = force.getNumGroups()
    for terms in _SUPPORTED[kind]:
        count = getattr(replicated, f"getNum{terms.name}s")()
        get = getattr(replicated, f"get{terms.name}{terms.content}")
        add = getattr(replicated, f"add{terms.name}")
        originals = [get(number) for number in range(count)]
        for number, values in enumerate(originals):
            _require_own_copy(force, terms, number, values, sizes[terms.of])
        for copy in range(1, copies):
            for values in originals:
                if terms.indices:
                    add(*_move(values, terms.indices, copy * sizes[terms.of]))
                else:
                    add(values)
    return replicated


def replicate_forces(
    forces: Sequence[openmm.Force], beads: int, copies: int
) -> list[openmm.Force]:
    """Return `replicate_force` of each force, in order.

    Raises:
        InputError: as `replicate_force` does.
    """
    return [replicate_force(force, beads, copies) for force in forces]


def _supported_kind(force: Any) -> str:
    """Name of the OpenMM class; a user's own subclass of it counts as that class."""
    if not isinstance(force, openmm.Force):
        raise InputError(f"{force!r} is not a force; give an openmm.Force")
    names = [one.__name__ for one in type(force).__mro__]
    for name in names:
        if name in _SUPPORTED:
            return name
        # All forces are a Force, which says nothing unless it is the class itself.
        if name in _REFUSED and (name != "Force" or name == names[0]):
            raise InputError(f"{name} cannot be replicated: {_REFUSED[name]}")
    raise InputError(
        f"{names[0]} cannot be replicated: nothing says that it would not act between copies; "
        f"supported: {', '.join(_SUPPORTED)}"
    )


def _separate_copies(force: openmm.CustomNonbondedForce, beads: int, copies: int) -> None:
    """Give the first copy its interaction group, if it has none."""
    if force.getNumParticles() != beads:
        raise InputError(
            f"force {force.getName()!r} has {force.getNumParticles()} particles, the molecule "
            f"{beads} beads; write the force for one copy, with one particle a bead"
        )
    if copies == 1:
        return
    periodic = force.getNonbondedMethod() == force.CutoffPeriodic
    if periodic and force.getUseLongRangeCorrection():
        # OpenMM multiplies it with the square of the number of particles of the whole System,
        # so that it is not the sum of the copies' corrections.
        raise InputError(
            f"force {force.getName()!r} has a long-range correction, which OpenMM takes over all "
            "copies; call setUseLongRangeCorrection(False): in a box of constant volume it is a "
            "constant energy and no force"
        )
    if force.getNumInteractionGroups() == 0:
        force.addInteractionGroup(range(beads), range(beads))


def _require_own_copy(
    force: openmm.Force, terms: _Terms, number: int, values: Sequence[Any], size: int
) -> None:
    for entry in values[: terms.indices]:
        for index in entry if isinstance(entry, Sequence) else [entry]:
            if not 0 <= index < size:
                raise InputError(
                    f"{terms.name} {number} of force {force.getName()!r} names {terms.of} "
                    f"{index}; one copy has {terms.of}s 0 to {size - 1}; write the force for one "
                    f"copy, with {terms.of} indices 0 to N-1"
                )


def _move(values: Sequence[Any], indices: int, offset: int) -> list[Any]:
    """A term's values, with all indices among the leading entries raised by the offset."""
    moved = [
        [index + offset for index in entry] if isinstance(entry, Sequence) else entry + offset
        for entry in values[:indices]
    ]
    return [*moved, *values[indices:]]
