"""A replicated force is the sum of the force on each copy, with every setting of the original."""

from xml.etree import ElementTree

import torch  # noqa: F401  (before openmm)

import numpy as np
import pytest

import openmm  # isort: skip

from openmm_cgml.errors import InputError
from openmm_cgml.replicate import _REFUSED, _SUPPORTED, replicate_force, replicate_forces

BEADS = 5
COPIES = 3
BOX = 4.0  # nm
MASSES = [10.0, 12.0, 30.0, 14.0, 25.0]
TERMS = {"Bonds", "Angles", "Torsions", "Particles", "Groups", "Exclusions", "InteractionGroups"}


def harmonic_bond() -> openmm.Force:
    force = openmm.HarmonicBondForce()
    for i in range(BEADS - 1):
        force.addBond(i, i + 1, 0.3 + 0.01 * i, 1000.0 + i)
    return force


def harmonic_angle() -> openmm.Force:
    force = openmm.HarmonicAngleForce()
    for i in range(BEADS - 2):
        force.addAngle(i, i + 1, i + 2, 1.8 + 0.1 * i, 50.0 + i)
    return force


def periodic_torsion() -> openmm.Force:
    force = openmm.PeriodicTorsionForce()
    force.addTorsion(0, 1, 2, 3, 2, 0.4, 3.0)
    force.addTorsion(4, 3, 2, 1, 1, 0.1, 5.0)
    return force


def rb_torsion() -> openmm.Force:
    force = openmm.RBTorsionForce()
    force.addTorsion(1, 2, 3, 4, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    return force


def custom_bond() -> openmm.Force:
    force = openmm.CustomBondForce("scale*k*(r-r0)^4")
    force.addGlobalParameter("scale", 2.5)
    force.addEnergyParameterDerivative("scale")
    force.addPerBondParameter("k")
    force.addPerBondParameter("r0")
    force.addBond(0, 4, [3.0, 0.7])
    force.addBond(3, 1, [5.0, 0.6])
    return force


def custom_angle() -> openmm.Force:
    force = openmm.CustomAngleForce("k*cos(theta)")
    force.addPerAngleParameter("k")
    force.addAngle(4, 0, 2, [3.0])
    return force


def custom_torsion() -> openmm.Force:
    force = openmm.CustomTorsionForce("k*cos(theta-phase)")
    force.addGlobalParameter("phase", 0.4)
    force.addPerTorsionParameter("k")
    force.addTorsion(4, 0, 2, 1, [3.0])
    return force


def compound_bond() -> openmm.Force:
    force = openmm.CustomCompoundBondForce(3, "k*table(distance(p1,p2))*angle(p1,p2,p3)")
    values = list(np.cos(np.linspace(0, 3, 30)))
    force.addTabulatedFunction("table", openmm.Continuous1DFunction(values, 0, 3))
    force.addPerBondParameter("k")
    force.addBond([0, 2, 4], [3.0])
    force.addBond([3, 2, 1], [4.0])
    return force


def centroid_bond() -> openmm.Force:
    force = openmm.CustomCentroidBondForce(2, "k*distance(g1,g2)^2")
    force.addPerBondParameter("k")
    force.addGroup([0, 1])  # weighted by mass
    force.addGroup([2, 4], [1.0, 3.0])
    force.addGroup([3])
    force.addBond([0, 1], [30.0])
    force.addBond([2, 0], [40.0])
    return force


def external() -> openmm.Force:
    force = openmm.CustomExternalForce("k*periodicdistance(x, y, z, 0.1, 0.2, z0)^2")
    force.addGlobalParameter("k", 10.0)
    force.addPerParticleParameter("z0")
    force.addParticle(1, [0.3])  # not every bead
    force.addParticle(3, [0.4])
    return force


def nonbonded() -> openmm.Force:
    force = openmm.CustomNonbondedForce("e*q1*q2/r; e=138.9/80")
    force.addPerParticleParameter("q")
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(0.7)
    force.setCutoffDistance(0.9)
    force.setNonbondedMethod(force.CutoffNonPeriodic)
    for i in range(BEADS):
        force.addParticle([i - 1.7])
    for i in range(BEADS - 1):
        force.addExclusion(i, i + 1)
    return force


def nonbonded_groups() -> openmm.Force:
    force = nonbonded()
    force.addInteractionGroup([0, 1], [2, 3, 4])
    force.addInteractionGroup([2, 3, 4], [2, 3, 4])
    return force


MAKERS = [
    harmonic_bond,
    harmonic_angle,
    periodic_torsion,
    rb_torsion,
    custom_bond,
    custom_angle,
    custom_torsion,
    compound_bond,
    centroid_bond,
    external,
    nonbonded,
    nonbonded_groups,
]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def force(request) -> openmm.Force:
    force = request.param()
    force.setName("the user's own")
    force.setForceGroup(7)
    return force


def make_periodic(force: openmm.Force) -> None:
    if isinstance(force, openmm.CustomNonbondedForce):
        force.setNonbondedMethod(force.CutoffPeriodic)
        force.setUseLongRangeCorrection(False)
    elif not isinstance(force, openmm.CustomExternalForce):  # its periodicdistance() is
        force.setUsesPeriodicBoundaryConditions(True)


def positions(copies: int = COPIES) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.3, (copies, BEADS, 3))


def context_of(force: openmm.Force, copies: int, platform: str = "Reference") -> openmm.Context:
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*(BOX * np.eye(3)))
    for _ in range(copies):
        for mass in MASSES:
            system.addParticle(mass)
    system.addForce(force)
    return openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform)
    )


def evaluate(
    force: openmm.Force, xyz: np.ndarray, platform: str = "Reference"
) -> tuple[float, np.ndarray]:
    """Energy, kJ/mol, and forces (copies, beads, 3), kJ/mol/nm, of all copies together."""
    context = context_of(force, len(xyz), platform)
    context.setPositions(xyz.reshape(-1, 3))
    state = context.getState(getEnergy=True, getForces=True)
    forces = np.asarray(state.getForces(asNumpy=True)._value)
    return state.getPotentialEnergy()._value, forces.reshape(xyz.shape)


def one_by_one(force: openmm.Force, xyz: np.ndarray) -> tuple[float, np.ndarray]:
    """The same, each copy in a System of its own, with the original force."""
    context = context_of(openmm.XmlSerializer.clone(force), 1)
    energies, forces = [], []
    for one in xyz:
        context.setPositions(one)
        state = context.getState(getEnergy=True, getForces=True)
        energies.append(state.getPotentialEnergy()._value)
        forces.append(np.asarray(state.getForces(asNumpy=True)._value))
    return float(sum(energies)), np.stack(forces)


def assert_same(found, expected, rtol: float = 1e-9) -> None:
    assert found[0] == pytest.approx(expected[0], rel=rtol)
    assert expected[0] != 0
    assert np.allclose(found[1], expected[1], rtol=rtol, atol=rtol * np.abs(expected[1]).max())


def settings(force: openmm.Force) -> tuple:
    """The XML without what is a list of terms."""
    root = ElementTree.fromstring(openmm.XmlSerializer.serialize(force))
    return root.attrib, [ElementTree.tostring(one) for one in root if one.tag not in TERMS]


def test_every_supported_class_has_a_case() -> None:
    assert {type(make()).__name__ for make in MAKERS} == set(_SUPPORTED)


def test_sum_over_copies(force) -> None:
    replicated = replicate_force(force, BEADS, COPIES)
    assert type(replicated) is type(force)
    assert_same(evaluate(replicated, positions()), one_by_one(force, positions()))


def test_settings_are_kept(force) -> None:
    before = openmm.XmlSerializer.serialize(force)
    replicated = replicate_force(force, BEADS, COPIES)
    assert settings(replicated) == settings(force)
    assert replicated.getName() == "the user's own"
    assert replicated.getForceGroup() == 7
    assert openmm.XmlSerializer.serialize(force) == before  # not changed


def test_periodic_settings_are_kept(force) -> None:
    make_periodic(force)
    replicated = replicate_force(force, BEADS, COPIES)
    assert settings(replicated) == settings(force)
    assert replicated.usesPeriodicBoundaryConditions()


def test_one_copy_is_the_same_force(force) -> None:
    replicated = replicate_force(force, BEADS, 1)
    assert openmm.XmlSerializer.serialize(replicated) == openmm.XmlSerializer.serialize(force)
    assert replicated is not force


def test_a_molecule_torn_by_the_box(force) -> None:
    make_periodic(force)
    whole = positions() + 0.1
    torn = np.mod(whole, BOX)
    assert (torn != whole).any(axis=(1, 2)).all()
    found = evaluate(replicate_force(force, BEADS, COPIES), torn)
    assert_same(found, one_by_one(force, torn))
    if not isinstance(force, openmm.CustomCentroidBondForce):  # OpenMM: centres of torn groups
        assert_same(found, one_by_one(force, whole))


def test_copies_on_top_of_each_other_feel_nothing(force) -> None:
    xyz = np.repeat(positions(1), 2, axis=0)
    energy, forces = evaluate(replicate_force(force, BEADS, 2), xyz)
    single, single_forces = one_by_one(force, xyz[:1])
    assert energy == pytest.approx(2 * single, rel=1e-9)
    assert np.allclose(forces, single_forces, rtol=1e-9)


@pytest.mark.parametrize("make", [nonbonded, nonbonded_groups])
@pytest.mark.parametrize("periodic", [False, True])
def test_nonbonded_on_the_cpu(make, periodic) -> None:
    force = make()
    if periodic:
        make_periodic(force)
    found = evaluate(replicate_force(force, BEADS, COPIES), positions(), "CPU")
    assert_same(found, one_by_one(force, positions()), rtol=1e-5)  # single precision


def test_nonbonded_computed_values() -> None:
    force = openmm.CustomNonbondedForce("scale*w1*w2*r")
    force.addGlobalParameter("scale", 2.0)
    force.addPerParticleParameter("q")
    force.addComputedValue("w", "q^2")
    for i in range(BEADS):
        force.addParticle([i + 1.0])
    replicated = replicate_force(force, BEADS, COPIES)
    assert_same(evaluate(replicated, positions()), one_by_one(force, positions()))


def test_global_parameter_acts_on_all_copies() -> None:
    context = context_of(replicate_force(custom_bond(), BEADS, COPIES), COPIES)
    context.setPositions(positions().reshape(-1, 3))
    before = context.getState(getForces=True).getForces(asNumpy=True)._value
    context.setParameter("scale", 5.0)
    state = context.getState(getEnergy=True, getForces=True, getParameterDerivatives=True)
    assert np.allclose(state.getForces(asNumpy=True)._value, 2 * before, rtol=1e-9)
    derivative = state.getEnergyParameterDerivatives()["scale"]
    assert derivative == pytest.approx(state.getPotentialEnergy()._value / 5.0, rel=1e-9)


def test_forces_in_order() -> None:
    found = replicate_forces([custom_bond(), external()], BEADS, COPIES)
    assert [one.getName() for one in found] == ["CustomBondForce", "CustomExternalForce"]
    assert found[0].getNumBonds() == 2 * COPIES
    assert replicate_forces([], BEADS, COPIES) == []


def test_a_force_that_a_system_owns() -> None:
    system = openmm.System()
    system.addForce(custom_bond())
    replicated = replicate_force(system.getForce(0), BEADS, COPIES)
    assert_same(evaluate(replicated, positions()), one_by_one(custom_bond(), positions()))


def test_a_users_subclass_counts_as_its_class() -> None:
    class Restraint(openmm.CustomBondForce):
        def __init__(self) -> None:
            super().__init__("r^2")
            self.addBond(0, 4)

    replicated = replicate_force(Restraint(), BEADS, COPIES)
    assert_same(evaluate(replicated, positions()), one_by_one(Restraint(), positions()))


# ---------------------------------------------------------------- what is refused


def openmm_forces(base: type = openmm.Force) -> set[type]:
    return {base}.union(*(openmm_forces(one) for one in base.__subclasses__()))


OTHERS = {
    one.__name__: one
    for one in openmm_forces()
    if one.__name__ not in _SUPPORTED and one.__module__ == "openmm.openmm"
}


@pytest.mark.parametrize("name", sorted(_REFUSED.keys() | OTHERS.keys()))
def test_refused_classes(name) -> None:
    kind = OTHERS.get(name) or type(name, (openmm.Force,), {})
    with pytest.raises(InputError) as raised:
        replicate_force(kind.__new__(kind), BEADS, COPIES)
    message = str(raised.value)
    assert message.startswith(f"{name} cannot be replicated: ")
    assert message.count("; ") == 1  # the reason; the remedy
    assert name in _REFUSED or message.endswith(", ".join(_SUPPORTED))


@pytest.mark.parametrize(
    "make",
    [
        openmm.NonbondedForce,
        openmm.CMAPTorsionForce,
        lambda: openmm.MonteCarloBarostat(1.0, 300.0),
        lambda: openmm.CustomCVForce("1"),
        lambda: openmm.XmlSerializer.clone(openmm.CMMotionRemover()),
    ],
)
def test_refused_forces(make) -> None:
    with pytest.raises(InputError, match="cannot be replicated"):
        replicate_forces([custom_bond(), make()], BEADS, COPIES)


def test_a_subclass_of_a_refused_class_gets_its_reason() -> None:
    class Mine(openmm.NonbondedForce):
        pass

    with pytest.raises(InputError, match="^NonbondedForce cannot .* CustomNonbondedForce"):
        replicate_force(Mine(), BEADS, COPIES)


def test_no_force() -> None:
    with pytest.raises(InputError, match="'HarmonicBondForce' is not a force; give an openmm"):
        replicate_force("HarmonicBondForce", BEADS, COPIES)


@pytest.mark.parametrize(("beads", "copies"), [(0, 1), (5, 0)])
def test_at_least_one(beads, copies) -> None:
    with pytest.raises(InputError, match=f"{beads} beads and {copies} copies; give at least one"):
        replicate_force(custom_bond(), beads, copies)


def test_a_force_for_a_larger_molecule(force) -> None:
    with pytest.raises(InputError, match='force "the user\'s own" .*; write the force for one'):
        replicate_force(force, 3, COPIES)


@pytest.mark.parametrize("index", [-1, BEADS])
def test_index_outside_the_copy(index) -> None:
    force = custom_bond()
    force.setName("pull")
    force.addBond(0, index, [1.0, 1.0])
    with pytest.raises(InputError) as raised:
        replicate_force(force, BEADS, COPIES)
    assert str(raised.value) == (
        f"Bond 2 of force 'pull' names bead {index}; one copy has beads 0 to 4; write the force "
        "for one copy, with bead indices 0 to N-1"
    )


def test_group_outside_the_copy() -> None:
    """It would be a group of the next copy once there is one."""
    force = centroid_bond()
    force.addBond([0, 3], [1.0])
    with pytest.raises(InputError, match="Bond 2 .* names group 3; one copy has groups 0 to 2;"):
        replicate_force(force, BEADS, COPIES)


def test_exclusion_and_interaction_group_outside_the_copy() -> None:
    force = nonbonded()
    force.addExclusion(0, 9)
    with pytest.raises(InputError, match="Exclusion 4 .* names bead 9"):
        replicate_force(force, BEADS, COPIES)
    force = nonbonded_groups()
    force.addInteractionGroup([0], [1, 9])
    with pytest.raises(InputError, match="InteractionGroup 2 .* names bead 9"):
        replicate_force(force, BEADS, COPIES)


def test_nonbonded_without_every_bead() -> None:
    with pytest.raises(InputError, match="has 5 particles, the molecule 6 beads; write"):
        replicate_force(nonbonded(), 6, COPIES)


def test_long_range_correction() -> None:
    """OpenMM's is no sum over interaction groups; where it has no effect, the flag is kept."""
    force = nonbonded()
    force.setUseLongRangeCorrection(True)
    assert replicate_force(force, BEADS, COPIES).getUseLongRangeCorrection()
    force.setNonbondedMethod(force.CutoffPeriodic)
    assert replicate_force(force, BEADS, 1).getUseLongRangeCorrection()
    with pytest.raises(InputError, match="setUseLongRangeCorrection"):
        replicate_force(force, BEADS, COPIES)
