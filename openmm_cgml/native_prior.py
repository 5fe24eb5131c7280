"""Priors as OpenMM's own forces: the same energies as the torch terms, without torch.

They run on every platform, can be inspected, scaled and serialised like any other force, and
leave a model file with its network alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch  # before openmm: TorchForce's plugins need its libraries

import openmm  # isort: skip

from .errors import InputError
from .pmf.core import PMF, SumPMF
from .pmf.prior_table import TypedPrior
from .pmf.prior_terms import (
    COULOMB_CONSTANT,
    Electrostatics,
    FourierTorsions,
    HarmonicAngles,
    HarmonicBonds,
    Impropers,
    PriorTerm,
    Repulsion,
)
from .pmf.short_range import ShortRangeRepulsion

# The damped sine s and cosine c of a torsion, by vectors a, b, c along it: smooth everywhere and
# several times as fast as by OpenMM's angles, but without periodic images.
_SINE = "s=(ax*(by*cz-bz*cy)+ay*(bz*cx-bx*cz)+az*(bx*cy-by*cx))/(la*lb*lc)"
_COSINE = "c=((ax*bx+ay*by+az*bz)*(bx*cx+by*cy+bz*cz)/(lb*lb)-(ax*cx+ay*cy+az*cz))/(la*lc)"
_VECTORS = [
    "la=distance(p1,p2)",
    "lb=distance(p2,p3)",
    "lc=distance(p3,p4)",
    *(f"{v}{x}={x}{k + 1}-{x}{k}" for k, v in enumerate("abc", 1) for x in "xyz"),
]
# The same by angles, in the nearest images: b is the damping, t the torsion.
_ANGLES = ["s=b*sin(t)", "t=dihedral(p1,p2,p3,p4)", "b=sin(angle(p1,p2,p3))*sin(angle(p2,p3,p4))"]


def prior_forces(
    pmf: PMF,
    copies: int = 1,
    particles: Sequence[int] | None = None,
    periodic: bool = False,
    force_group: int = 0,
    *,
    beads: int | None = None,
    system_particles: int | None = None,
) -> list[openmm.Force]:
    """Return the terms of a prior as OpenMM forces, one force for all terms of a kind.

    Energies and forces are those of the torch terms, of each copy by itself. One difference: with
    `periodic`, torsions and impropers with three beads exactly in line have no finite force, since
    OpenMM's dihedral angle has none.

    A `ShortRangeRepulsion` is a nonbonded force, which platform CPU computes in single precision.
    It searches for neighbours where one copy is the whole System; otherwise it looks at all pairs
    of each copy, which the torch term does not: docs/priors.md says when that is slower. OpenMM
    makes no Context with a periodic box whose smallest width is less than four times the largest
    radius, nor, except on Reference, with nonbonded forces that exclude different pairs.

    Args:
        pmf: a prior, as of `fit_prior`, `PriorTable.to_pmf` or `Model.rebuild`.
        copies: number of copies.
        particles: (copies * beads,) particle of each bead, copy after copy; None: the System's
            first particles, in that order.
        periodic: whether displacements take the minimum image in the System's box.
        force_group: of all the forces.
        beads: number of beads of one copy; needed with several copies where neither `particles`
            nor a prior by bead type tells it.
        system_particles: number of particles of the System; needed only where it has further ones
            and the prior a short-range repulsion. None: one more than the largest of `particles`.

    Returns:
        The forces; none if the prior has no terms.

    Raises:
        InputError: if the PMF has terms other than priors' (they are named), or the numbers of
            beads, copies and particles do not fit. Whether `system_particles` is the System's
            number OpenMM finds only when a Context is made: it then raises an `OpenMMException`.
    """
    terms = _prior_terms(pmf)
    if not 0 <= force_group < 32:
        raise InputError(f"force_group is {force_group}; OpenMM has groups 0 to 31")
    places = _places(pmf, terms, copies, particles, beads)
    where = _Placement(places, _system_size(places, system_particles), periodic)
    forces = []
    for term in terms:
        force = _MAKERS[type(term)](term, where)
        if not isinstance(force, openmm.CustomNonbondedForce):  # whose cutoff says so
            force.setUsesPeriodicBoundaryConditions(periodic)
        force.setForceGroup(force_group)
        force.setName(f"prior {type(term).__name__}")
        forces.append(force)
    return forces


@dataclass(frozen=True)
class _Placement:
    """Where forces act.

    Attributes:
        copies: the particles of each copy.
        particles: number of particles of the System.
        periodic: whether displacements take the minimum image.
    """

    copies: list[list[int]]
    particles: int
    periodic: bool


def _prior_terms(pmf: PMF) -> list[PriorTerm | ShortRangeRepulsion]:
    """Return the single terms of a prior, without those that have no rows."""
    if isinstance(pmf, SumPMF | TypedPrior):
        return [term for part in pmf.terms for term in _prior_terms(part)]  # type: ignore[arg-type]
    if type(pmf) not in _MAKERS:
        raise InputError(
            f"{type(pmf).__name__} is no term of a prior, and no OpenMM force can be written for "
            "it; give the prior alone, and evaluate the network by its model's create_force()"
        )
    if isinstance(pmf, PriorTerm) and not len(pmf.indices):
        return []
    return [pmf]  # type: ignore[list-item]


def _told(pmf: PMF) -> set[int]:
    """Return the numbers of beads that parts by bead type tell: one, or none."""
    if isinstance(pmf, SumPMF):
        return {beads for part in pmf.terms for beads in _told(part)}  # type: ignore[arg-type]
    if isinstance(pmf, TypedPrior):
        return {len(pmf.topology)}
    return {pmf.beads} if isinstance(pmf, ShortRangeRepulsion) else set()


def _molecule_size(pmf: PMF, beads: int | None) -> int | None:
    """Return the number of beads of one copy if it is given or the prior tells it."""
    told = sorted(_told(pmf))
    if len(told) > 1:
        raise InputError(
            f"the prior's terms are of molecules of {' and '.join(map(str, told))} beads; make "
            "them all for one molecule, by for_topology()"
        )
    if told and beads is not None and beads != told[0]:
        raise InputError(
            f"beads is {beads}, but the prior is that of a molecule of {told[0]}; leave it out"
        )
    return told[0] if told else beads


def _system_size(places: list[list[int]], particles: int | None) -> int:
    """Return the number of particles of the System, at least up to the last of the copies."""
    needed = max(p for copy in places for p in copy) + 1
    if particles is None:
        return needed
    if particles < needed:
        raise InputError(
            f"system_particles is {particles}, but the last particle of the copies has the index "
            f"{needed - 1}; give the number of all particles of the System"
        )
    return particles


def _places(
    pmf: PMF,
    terms: Sequence[PriorTerm | ShortRangeRepulsion],
    copies: int,
    particles: Sequence[int] | None,
    beads: int | None,
) -> list[list[int]]:
    """Return the particles of each copy."""
    if int(copies) != copies or copies < 1:
        raise InputError(f"copies is {copies}; give a whole number of at least 1")
    # A molecule has a bead, if no term.
    needed = max([1, *(int(t.indices.max()) + 1 for t in terms if isinstance(t, PriorTerm))])
    beads = _molecule_size(pmf, beads)
    if particles is None:
        if beads is None and copies > 1:
            raise InputError(
                f"the prior does not tell how many beads each of {copies} copies has; pass beads= "
                "or particles="
            )
        beads = beads or needed
        particles = range(copies * beads)
    indices = [int(p) for p in particles]
    if len(indices) % copies or (beads is not None and len(indices) != copies * beads):
        each = "" if beads is None else f" of {beads} beads"
        raise InputError(
            f"{len(indices)} particles were given for {copies} copies{each}; give one a bead and "
            "copy"
        )
    size = len(indices) // copies
    if size < needed:
        raise InputError(
            f"the prior has terms of bead {needed - 1}, but a copy has only {size} beads; give "
            "the molecule's number of beads, or all of its particles"
        )
    if len(set(indices)) != len(indices) or min(indices) < 0:
        raise InputError("particle indices must be different and not negative")
    return [indices[k : k + size] for k in range(0, len(indices), size)]


def _added(
    where: _Placement, term: PriorTerm, *parameters: torch.Tensor
) -> Iterator[tuple[list[int], list[float]]]:
    """Yield the particles and parameters of every term of every copy."""
    rows = torch.cat([p.double().reshape(len(term.indices), -1) for p in parameters], 1).tolist()
    for particles in where.copies:
        for beads, values in zip(term.indices.tolist(), rows, strict=True):
            yield [particles[b] for b in beads], values


def _bonds(term: HarmonicBonds, where: _Placement) -> openmm.Force:
    force = openmm.HarmonicBondForce()
    for particles, (length, stiffness) in _added(where, term, term.length, term.stiffness):
        force.addBond(*particles, length, stiffness)
    return force


def _angles(term: HarmonicAngles, where: _Placement) -> openmm.Force:
    force = openmm.CustomAngleForce("0.5*stiffness*(cos(theta)-cosine)^2")
    force.addPerAngleParameter("stiffness")
    force.addPerAngleParameter("cosine")
    for particles, values in _added(where, term, term.stiffness, term.cosine):
        force.addAngle(*particles, values)
    return force


def _repulsion(term: Repulsion, where: _Placement) -> openmm.Force:
    force = openmm.CustomBondForce("strength*(radius/r)^12")
    force.addPerBondParameter("strength")
    force.addPerBondParameter("radius")
    for particles, values in _added(where, term, term.strength, term.radius):
        force.addBond(*particles, values)
    return force


def _short_range(term: ShortRangeRepulsion, where: _Placement) -> openmm.Force:
    force = openmm.CustomNonbondedForce("strength(t1,t2)*(radius(t1,t2)/r)^12")
    kinds = len(term.type_names)
    for name, table in (("strength", term.strength), ("radius", term.radius)):
        values = table.double().reshape(-1).tolist()
        force.addTabulatedFunction(name, openmm.Discrete2DFunction(kinds, kinds, values))
    force.addPerParticleParameter("t")
    # OpenMM wants every particle of the System; those outside the copies are in no group.
    types = [0] * where.particles
    for particles in where.copies:
        for particle, kind in zip(particles, term.types.tolist(), strict=True):
            types[particle] = kind
        for first, second in term.excluded.tolist():
            force.addExclusion(particles[first], particles[second])
    for kind in types:
        force.addParticle([kind])
    if len(where.copies) > 1 or len(where.copies[0]) < where.particles:  # else all pairs count
        for particles in where.copies:
            force.addInteractionGroup(particles, particles)
    force.setNonbondedMethod(force.CutoffPeriodic if where.periodic else force.CutoffNonPeriodic)
    # OpenMM's switching function is the polynomial of `cutoff_envelope`.
    force.setCutoffDistance(term.cutoff)
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(0.5 * term.cutoff)
    return force


def _electrostatics(term: Electrostatics, where: _Placement) -> openmm.Force:
    # A number, not a global parameter, which every force of that name in a Context would share.
    force = openmm.CustomBondForce(f"strength*exp(-r/{term.screening.double().item()!r})/r")
    force.addPerBondParameter("strength")
    strength = COULOMB_CONSTANT / term.permittivity.double() * term.charge_products.double()
    for particles, values in _added(where, term, strength):
        force.addBond(*particles, values)
    return force


def _impropers(term: Impropers, where: _Placement) -> openmm.Force:
    definitions = _ANGLES if where.periodic else [_SINE, *_VECTORS]
    force = _compound(["0.5*stiffness*(s-centre)^2", *definitions], ["stiffness", "centre"])
    for particles, values in _added(where, term, term.stiffness, term.sine):
        force.addBond(particles, values)
    return force


def _torsions(term: FourierTorsions, where: _Placement) -> openmm.Force:
    orders = range(1, term.orders + 1)
    names = [f"c{n}" for n in orders] + [f"s{n}" for n in orders]
    if where.periodic:
        series = "+".join(f"b^{n}*(c{n}*cos({n}*t)+s{n}*sin({n}*t))" for n in orders)
        definitions = _ANGLES[1:]
    else:
        # OpenMM puts the whole of c and s wherever they stand, and differentiates: three orders
        # take a quarter of a second a Context, six two seconds.
        series = "+".join(f"c{n}*({_power(n, 0)})+s{n}*({_power(n, 1)})" for n in orders)
        definitions = [_SINE, _COSINE, *_VECTORS]
    force = _compound([series, *definitions], names)
    for particles, values in _added(where, term, term.cosines, term.sines):
        force.addBond(particles, values)
    return force


def _power(order: int, part: int) -> str:
    """Return the real (part 0) or imaginary (1) part of (c + i s)^order as a polynomial."""
    terms = []
    for k in range(part, order + 1, 2):
        sign = "-" if k % 4 > 1 else "+"
        terms.append(f"{sign}{math.comb(order, k)}*c^{order - k}*s^{k}")
    return "".join(terms).lstrip("+")


def _compound(
    expressions: Sequence[str], parameters: Sequence[str]
) -> openmm.CustomCompoundBondForce:
    """Return an empty force on quadruples."""
    force = openmm.CustomCompoundBondForce(4, ";".join(expressions))
    for name in parameters:
        force.addPerBondParameter(name)
    return force


_MAKERS: dict[type, Callable[[Any, _Placement], openmm.Force]] = {
    HarmonicBonds: _bonds,
    HarmonicAngles: _angles,
    FourierTorsions: _torsions,
    Impropers: _impropers,
    Repulsion: _repulsion,
    Electrostatics: _electrostatics,
    ShortRangeRepulsion: _short_range,
}
