"""Priors as OpenMM's own forces: the energies and forces of the torch terms."""

import torch  # before openmm

import numpy as np
import openmm
import pytest

import openmm_cgml as cgml
from openmm_cgml.errors import InputError
from openmm_cgml.native_prior import prior_forces
from openmm_cgml.pmf.prior import (
    Charges,
    Electrostatics,
    FourierTorsions,
    HarmonicAngles,
    HarmonicBonds,
    Impropers,
    PriorTable,
    Repulsion,
    TypedPrior,
    fit_prior,
)
from openmm_cgml.pmf.short_range import ShortRangeRepulsion, close_pairs

pytestmark = pytest.mark.backend

BOX = np.array([[2.5, 0, 0], [0.4, 3.0, 0], [-0.3, 0.5, 2.8]])
BEADS = 8
QUADRUPLES = [(0, 1, 2, 3), (4, 1, 3, 5), (6, 0, 4, 2)]
RNG = np.random.default_rng(0)
SERIES = RNG.normal(0, 5, (2, 3, 3)).tolist()
TERMS = {
    "bonds": HarmonicBonds([(0, 1), (4, 2), (6, 5)], [9000.0, 80.0, 5.0], [0.3, 0.5, 0.1]),
    "angles": HarmonicAngles([(0, 1, 2), (3, 1, 0)], [50.0, 3.0], [-0.2, 0.9]),
    "one order": FourierTorsions(QUADRUPLES, [[2.0]] * 3, [[-1.0]] * 3),
    "torsions": FourierTorsions(QUADRUPLES, *SERIES),
    "impropers": Impropers(QUADRUPLES, [40.0, 5.0, 9.0], [0.4, -0.3, 0.0]),
    "repulsion": Repulsion([(0, 5), (5, 3)], [2.5] * 2, [0.4] * 2),
    "electrostatics": Electrostatics([(0, 5), (5, 3)], [1.0, -0.25], 4.0, 0.7),
}
TERMS["all"] = cgml.SumPMF(*TERMS.values())


def evaluate(forces, positions: np.ndarray, platform: str) -> tuple[float, np.ndarray]:
    """Energy, kJ/mol, and forces (particles, 3), kJ/mol/nm."""
    system = openmm.System()
    for _ in range(len(positions)):
        system.addParticle(12.0)
    system.setDefaultPeriodicBoxVectors(*BOX)
    for force in forces:
        system.addForce(force)
    context = openmm.Context(
        system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatform(platform),
        {"Threads": "1"} if platform == "CPU" else {},
    )
    context.setPositions(positions)
    state = context.getState(getEnergy=True, getForces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def require_equal(
    pmf, forces, positions: np.ndarray, platform: str, periodic: bool, tolerance: float = 1e-6
) -> None:
    """OpenMM agrees with torch to the tolerance; positions are (copies, beads, 3)."""
    box = torch.tensor(BOX) if periodic else None
    energies, expected = pmf.double().energies_and_forces(torch.tensor(positions), box)
    energy, found = evaluate(forces, positions.reshape(-1, 3), platform)
    expected = expected.numpy().reshape(-1, 3)
    assert np.abs(expected).max() > 1e-3
    # Relative to the sum of sizes: terms of different signs may cancel.
    assert abs(energy - energies.sum().item()) < tolerance * energies.abs().sum().item()
    errors = np.abs(found - expected).reshape(len(positions), -1).max(1)
    sizes = np.abs(expected).reshape(len(positions), -1).max(1)
    assert (errors < tolerance * sizes + 1e-12).all()


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("name", TERMS)
def test_energies_and_forces_are_those_of_the_torch_terms(name, platform) -> None:
    """Strained at random, too: beads overlap in part, angles and torsions are anything."""
    positions = np.random.default_rng(1).normal(0, 0.4, (5, BEADS, 3))
    positions[1] *= 0.3
    positions[2] *= 3
    forces = prior_forces(TERMS[name], copies=5, beads=BEADS)
    require_equal(TERMS[name], forces, positions, platform, periodic=False)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("name", TERMS)
def test_a_torn_molecule_in_a_triclinic_box_too(name, platform) -> None:
    rng = np.random.default_rng(2)
    positions = rng.normal(0, 0.4, (4, BEADS, 3))
    positions = positions + rng.integers(-2, 3, positions.shape) @ BOX
    forces = prior_forces(TERMS[name], copies=4, beads=BEADS, periodic=True)
    assert all(force.usesPeriodicBoundaryConditions() for force in forces)
    require_equal(TERMS[name], forces, positions, platform, periodic=True)


@pytest.mark.parametrize("periodic", [False, True])
def test_four_orders_of_a_torsion(periodic) -> None:
    rng = np.random.default_rng(3)
    pmf = FourierTorsions(QUADRUPLES[:1], *rng.normal(0, 2, (2, 1, 4)).tolist())
    positions = rng.normal(0, 0.4, (2, 4, 3))
    forces = prior_forces(pmf, copies=2, beads=4, periodic=periodic)
    require_equal(pmf, forces, positions, "Reference", periodic)


@pytest.mark.parametrize("name", ["torsions", "impropers", "angles"])
def test_beads_in_line_or_nearly_so_have_finite_forces(name) -> None:
    line = np.zeros((2, BEADS, 3))
    line[:, :, 0] = 0.3 * np.arange(BEADS)
    line[1] += 1e-6 * np.random.default_rng(4).standard_normal((BEADS, 3))
    pmf = TERMS[name].double()
    forces = prior_forces(pmf, copies=2, beads=BEADS)
    found = evaluate(forces, line.reshape(-1, 3), "Reference")[1]
    expected = pmf.energies_and_forces(torch.tensor(line))[1].numpy().reshape(-1, 3)
    size = np.abs(expected).max()
    # On the line all forces vanish, so what there is comes from 1e-6 nm beside it.
    assert 1e-8 < size < 1
    # OpenMM's angle is an arc cosine, known to 1e-8 only; elsewhere forces are about k / 0.3 nm.
    rounding = 1e-6 * 50 / 0.3 if name == "angles" else 0.0
    assert np.abs(found - expected).max() < 1e-6 * size + rounding


def test_a_fitted_prior_by_type_knows_its_beads(dataset) -> None:
    pmf = fit_prior(
        dataset,
        ("bonds", "angles", "torsions", "impropers", "repulsion"),
        by="type",
        charges=Charges({kind: 0.5 for kind in dataset.topology.bead_types}),
    )
    forces = prior_forces(pmf, copies=3)
    assert [force.getName() for force in forces] == [
        f"prior {name}"
        for name in ("HarmonicBonds", "HarmonicAngles", "FourierTorsions", "Repulsion",
                     "Electrostatics")
    ]  # fmt: skip
    positions = np.array(dataset.positions[:3], dtype=np.float64)
    require_equal(pmf, forces, positions, "Reference", periodic=False)
    # In a sum, and by term, they are the same terms.
    require_equal(pmf, prior_forces(cgml.SumPMF(pmf), 3, beads=5), positions, "CPU", False)


def test_particles_of_a_larger_system() -> None:
    """Copies anywhere in the System, their beads in any order; others feel nothing."""
    rng = np.random.default_rng(5)
    particles = rng.permutation(30)[: 3 * BEADS]
    everything = rng.normal(0, 0.4, (30, 3))
    forces = prior_forces(TERMS["all"], 3, particles.tolist(), force_group=7)
    assert {force.getForceGroup() for force in forces} == {7}
    energy, found = evaluate(forces, everything, "Reference")
    x = torch.tensor(everything[particles].reshape(3, BEADS, 3))
    energies, expected = TERMS["all"].double().energies_and_forces(x)
    assert energy == pytest.approx(energies.sum().item(), rel=1e-9)
    expected = expected.numpy().reshape(-1, 3)
    assert np.allclose(found[particles], expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    others = np.setdiff1d(np.arange(30), particles)
    assert not found[others].any()


def test_forces_survive_xml() -> None:
    positions = np.random.default_rng(6).normal(0, 0.4, (1, BEADS, 3))
    forces = [openmm.XmlSerializer.clone(f) for f in prior_forces(TERMS["all"])]
    require_equal(TERMS["all"], forces, positions[:, :7], "Reference", periodic=False)


def test_networks_are_refused_by_name(dataset) -> None:
    pmf = cgml.SumPMF(fit_prior(dataset), cgml.PMFS["cgnet"](dataset, width=4, depth=1))
    with pytest.raises(InputError, match="CGNet is no term of a prior.*give the prior alone"):
        prior_forces(pmf)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"copies": 0}, "copies is 0; give a whole number"),
        ({"copies": 2}, "how many beads each of 2 copies has; pass beads= or particles="),
        ({"copies": 2, "beads": 5}, "has terms of bead 6, but a copy has only 5 beads"),
        ({"copies": 2, "particles": range(15)}, "15 particles were given for 2 copies; give one"),
        ({"particles": range(9), "beads": 8}, "9 particles were given for 1 copies of 8 beads"),
        ({"particles": [0, 1, 2, 3, 4, 5, 5]}, "different and not negative"),
        ({"particles": [-1, 1, 2, 3, 4, 5, 6]}, "different and not negative"),
        ({"force_group": 32}, "force_group is 32; OpenMM has groups 0 to 31"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        prior_forces(TERMS["all"], **arguments)


def test_the_last_bead_may_be_in_no_term() -> None:
    """A prior by type tells the number of beads, its terms' indices would not."""
    topology = cgml.CGTopology(
        ("A", "A", "A"), ("A", "A", "A"), ("M",) * 3, (1, 2, 3), ("A",) * 3, ((0, 1),), (1.0,) * 3
    )
    table = PriorTable.from_dict(
        {"bonds": [{"types": ["A", "A"], "length": 0.3, "stiffness": 100.0}]}
    )
    (force,) = prior_forces(table.to_pmf(topology), copies=2)
    assert [force.getBondParameters(k)[:2] for k in range(2)] == [[0, 1], [3, 4]]


def chain(types: str) -> cgml.CGTopology:
    """One chain of beads."""
    n = len(types)
    return cgml.CGTopology(
        tuple(f"B{k}" for k in range(n)), tuple(types), ("M",) * n, tuple(range(n)), ("A",) * n,
        tuple((k, k + 1) for k in range(n - 1)), (12.0,) * n,
    )  # fmt: skip


LONG = chain("ABCB" * 30)  # more beads than a list of all pairs is made for
CUTOFF = 1.1


def repulsion(topology: cgml.CGTopology = LONG, dense: bool = False) -> ShortRangeRepulsion:
    """Of three types in the molecule and one, first, that is not: nobody knows its radius."""
    types = ["0", "A", "B", "C"]
    strength = [[0.0] * 4, [0.0, 2.0, 3.0, 1.0], [0.0, 3.0, 1.5, 2.5], [0.0, 1.0, 2.5, 0.7]]
    radius = [[0.0] * 4, [0.0, 0.3, 0.35, 0.4], [0.0, 0.35, 0.45, 0.5], [0.0, 0.4, 0.5, 0.55]]
    excluded = close_pairs(topology, 3)
    return ShortRangeRepulsion(topology.bead_types, types, strength, radius, excluded, dense)


def coils(copies: int, beads: int = len(LONG)) -> np.ndarray:
    """Random walks, nm, that cross themselves, each other and a wall of the box."""
    steps = np.random.default_rng(7).standard_normal((copies, beads, 3))
    steps *= 0.3 / np.linalg.norm(steps, axis=-1, keepdims=True)
    return np.cumsum(steps, axis=1)


@pytest.mark.parametrize(("platform", "tolerance"), [("Reference", 1e-6), ("CPU", 1e-4)])
@pytest.mark.parametrize("periodic", [False, True], ids=["vacuum", "periodic"])
@pytest.mark.parametrize("copies", [1, 3])
def test_short_range_repulsion(copies, periodic, platform, tolerance) -> None:
    """Single precision on CPU: the twelfth power multiplies a distance's rounding by thirteen."""
    pmf = repulsion()
    assert pmf.cutoff == pytest.approx(CUTOFF)
    (force,) = prior_forces(pmf, copies, periodic=periodic)
    assert force.usesPeriodicBoundaryConditions() == periodic
    assert force.getNumInteractionGroups() == (0 if copies == 1 else copies)
    require_equal(pmf, [force], coils(copies), platform, periodic, tolerance)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_pair_of_beads_at_any_distance(copies) -> None:
    """What is left of one pair, where its energy is whole, switched, and none."""
    pmf = repulsion(chain("ABCB"), dense=True).double()  # beads 0 and 3 alone repel each other
    forces = prior_forces(pmf, copies)
    size = 3.0 * (0.35 / np.array([0.2, 0.54, 0.7, 1.0])) ** 12
    x = (np.array([0.7, 1.0]) - 0.55) / 0.55
    size[2:] *= 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
    for distance, energy in zip([0.2, 0.54, 0.7, 1.0, 1.101], [*size, 0.0], strict=True):
        positions = np.zeros((copies, 4, 3))
        positions[:, 1, 1] = 0.3
        positions[:, 2, 2] = 0.3
        positions[:, 3, 0] = distance
        found = evaluate([openmm.XmlSerializer.clone(f) for f in forces],
                         positions.reshape(-1, 3), "Reference")[0]  # fmt: skip
        assert found == pytest.approx(copies * energy, rel=1e-6, abs=0)


def test_short_range_repulsion_of_one_type() -> None:
    topology = chain("A" * 100)
    pmf = ShortRangeRepulsion("A" * 100, ["A"], [[2.0]], [[0.5]], close_pairs(topology, 3))
    require_equal(pmf, prior_forces(pmf, 2), coils(2, 100), "Reference", periodic=False)


@pytest.mark.parametrize("periodic", [False, True], ids=["vacuum", "periodic"])
@pytest.mark.parametrize("copies", [1, 3])
def test_short_range_repulsion_in_a_larger_system(copies, periodic) -> None:
    """Copies anywhere in the System, their beads in any order; others, though near, are not."""
    rng = np.random.default_rng(8)
    pmf = repulsion().double()
    size, total = len(LONG) * copies, len(LONG) * copies + 40
    particles = rng.permutation(total - 1)[:size]  # the last is none of ours
    x = coils(copies)
    everything = rng.uniform(-1, 1, (total, 3)) + x.reshape(-1, 3).mean(0)
    everything[particles] = x.reshape(-1, 3)
    forces = prior_forces(pmf, copies, particles.tolist(), periodic, system_particles=total)
    energy, found = evaluate(forces, everything, "Reference")
    box = torch.tensor(BOX) if periodic else None
    energies, expected = pmf.energies_and_forces(torch.tensor(x), box)
    assert energy == pytest.approx(energies.sum().item(), rel=1e-9)
    expected = expected.numpy().reshape(-1, 3)
    assert np.allclose(found[particles], expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert not found[np.setdiff1d(np.arange(total), particles)].any()


def test_a_system_of_other_size_is_refused() -> None:
    """By OpenMM, when a Context is made; a number that cannot be right, at once."""
    forces = prior_forces(repulsion(), 2)
    for particles in (2 * len(LONG) - 1, 2 * len(LONG) + 1):
        clones = [openmm.XmlSerializer.clone(force) for force in forces]
        with pytest.raises(openmm.OpenMMException, match="exactly as many particles"):
            evaluate(clones, np.zeros((particles, 3)), "Reference")
    with pytest.raises(InputError, match="system_particles is 239, but the last.*index 239; give"):
        prior_forces(repulsion(), 2, system_particles=239)


def test_a_box_in_which_beads_would_see_two_images_is_refused_by_openmm() -> None:
    topology = chain("A" * 100)
    excluded = close_pairs(topology, 3)
    for radius in (0.62, 0.64):  # of 2.5 nm, the smallest width, a quarter is 0.625
        pmf = ShortRangeRepulsion("A" * 100, ["A"], [[2.0]], [[radius]], excluded)
        forces = prior_forces(pmf, periodic=True)
        if radius < 0.625:
            require_equal(pmf, forces, coils(1, 100), "Reference", periodic=True)
        else:
            with pytest.raises(openmm.OpenMMException, match="half the periodic box size"):
                evaluate(forces, coils(1, 100)[0], "Reference")


def test_a_fitted_prior_of_a_large_molecule_in_full() -> None:
    """Bonds, angles, torsions, impropers if any, repulsion and charges, of three copies."""
    dataset = cgml.CGDataset(coils(20), LONG, temperature=300.0)
    pmf = fit_prior(
        dataset,
        ("bonds", "angles", "torsions", "repulsion"),
        by="type",
        charges=Charges({"A": 0.5, "B": -0.5, "C": 0.0}),
    )
    forces = prior_forces(pmf, copies=3)
    assert [force.getName() for force in forces] == [
        f"prior {name}"
        for name in ("HarmonicBonds", "HarmonicAngles", "FourierTorsions", "Electrostatics",
                     "ShortRangeRepulsion")
    ]  # fmt: skip
    positions = coils(23)[20:]
    require_equal(pmf, forces, positions, "Reference", periodic=False)
    forces = prior_forces(pmf, copies=3, periodic=True)
    require_equal(pmf, forces, positions, "Reference", periodic=True)


def test_a_prior_without_terms_has_no_forces() -> None:
    """A molecule of two beads has no angle."""
    table = PriorTable.from_dict(
        {"angles": [{"types": ["A", "A", "A"], "cosine": 0.3, "stiffness": 100.0}]}
    )
    pmf = table.to_pmf(chain("AA"))
    assert isinstance(pmf, TypedPrior) and not len(pmf.terms)
    for empty in (pmf, cgml.SumPMF(pmf, HarmonicBonds([], [], []))):
        assert prior_forces(empty, copies=3) == []
        with pytest.raises(InputError, match="5 particles were given for 3 copies of 2 beads"):
            prior_forces(empty, 3, range(5))
    assert prior_forces(HarmonicBonds([], [], [])) == []


def test_beads_that_contradict_the_prior_are_refused() -> None:
    with pytest.raises(InputError, match="beads is 7, but the prior is that of a molecule of 120"):
        prior_forces(repulsion(), beads=7)
    pmf = cgml.SumPMF(repulsion(), repulsion(chain("ABC" * 40 + "A")))
    with pytest.raises(InputError, match="of molecules of 120 and 121 beads; make them all"):
        prior_forces(pmf)
