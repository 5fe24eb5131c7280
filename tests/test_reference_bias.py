"""Biases of all-atom runs: what acts is what is recorded, and weights return what was biased."""

import copy
import math

import numpy as np
import openmm
import pytest

import openmm_cgml as cgml
from openmm_cgml import InputError
from openmm_cgml.mapping.core import group_mapping
from openmm_cgml.reference.bias import Metadynamics, Umbrella, free_group, verify_unbiased
from openmm_cgml.reference.methods import MetadynamicsRun
from openmm_cgml.reference.setup import build_system
from openmm_cgml.reference.variables import (
    CollectiveVariable,
    parse_variable,
    require_function_of_beads,
    variable_values,
)
from openmm_cgml.units import thermal_energy

KT = thermal_energy(300.0)


@pytest.fixture(scope="module")
def molecule(data):
    return build_system(data / "topology.pdb")


@pytest.fixture(scope="module")
def frames(trajectory):
    (found,) = trajectory.chunks(10_000)
    return found.positions[::50]


def torsions(molecule):
    return [parse_variable(text, molecule.mdtraj) for text in ("phi", "psi")]


def context_of(molecule, bias, platform="Reference", group=None):
    system = copy.deepcopy(molecule.system)
    bias.force.setForceGroup(free_group(system) if group is None else group)
    system.addForce(bias.force)
    properties = {"Threads": "1"} if platform == "CPU" else {}
    where = openmm.Platform.getPlatform(platform)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), where, properties)
    context.setPositions(molecule.positions)
    return context, bias.force.getForceGroup()


# ---------------------------------------------------------------- variables


def test_variables_agree_with_mdtraj(molecule, frames):
    import mdtraj

    run = mdtraj.Trajectory(frames, molecule.mdtraj)
    phi, psi = torsions(molecule)
    assert (phi.name, psi.name) == ("phi:2", "psi:2")
    for variable in (phi, psi):
        expected = mdtraj.compute_dihedrals(run, [variable.atoms])[:, 0]
        np.testing.assert_allclose(variable.values(frames), expected, atol=2e-5)
    angle = parse_variable("angle:ALA2-N,ALA2-CA,ALA2-C", molecule.mdtraj)
    np.testing.assert_allclose(
        angle.values(frames), mdtraj.compute_angles(run, [angle.atoms])[:, 0], atol=2e-5
    )
    distance = parse_variable("distance:0,21@0.1:2", molecule.mdtraj)
    assert (distance.low, distance.high, distance.unit) == (0.1, 2.0, "nm")
    np.testing.assert_allclose(
        distance.values(frames), np.linalg.norm(frames[:, 0] - frames[:, 21], axis=1), atol=1e-6
    )
    named = parse_variable("torsion:ACE1-C,ALA2-N,ALA2-CA,ALA2-C", molecule.mdtraj)
    assert named.atoms == phi.atoms


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("phi:9", "no phi of residue 9; there are phi:2"),
        ("phi:x", "needs a residue number"),
        ("chi:2", "cannot be read"),
        ("torsion:0,1,2", "has 3 atoms; a torsion needs 4"),
        ("distance:0,0", "has an atom twice"),
        ("distance:0,99", "names atom 99, but atoms are 0 to 21"),
        ("distance:ALA2-CX,ALA2-C", "no atom ALA2-CX; did you mean"),
        ("distance:0,5@1:0.2", "range of variable distance:ACE1-H1,ACE1-O is 1.0 to 0.2"),
        ("distance:0,5@a:b", "range of variable .* cannot be read"),
        ("torsion:4,6,8,14@0:1", "goes round the whole circle"),
    ],
)
def test_bad_variables(molecule, text, problem):
    with pytest.raises(InputError, match=problem):
        parse_variable(text, molecule.mdtraj)


def test_hidden_variables_are_refused(molecule):
    beads = cgml.MAPPINGS["backbone"](molecule.mdtraj)
    require_function_of_beads(torsions(molecule), beads, "...")
    hidden = parse_variable("torsion:ALA2-H,ALA2-N,ALA2-CA,ALA2-C", molecule.mdtraj)
    with pytest.raises(InputError, match="does not keep ALA2-H"):
        require_function_of_beads([hidden], beads, "...")


def test_beads_that_share_atoms_determine_differences(molecule):
    """The difference of beads (a+c)/2 and (b+c)/2 is (a-b)/2: that distance is a function."""
    shared = group_mapping(molecule.mdtraj, [[4, 5], [6, 5], [8]], [[0.5, 0.5], [0.5, 0.5], [1.0]])
    require_function_of_beads([CollectiveVariable("distance", (4, 6))], shared, "...")
    for atoms in ((4, 5), (4, 8)):
        with pytest.raises(InputError, match="is not a function of the beads"):
            require_function_of_beads([CollectiveVariable("distance", atoms)], shared, "...")


# ---------------------------------------------------------------- the force


def filled(variables, hills=40, **settings):
    bias = Metadynamics(variables, 300.0, **settings)
    generator = np.random.default_rng(1)
    for _ in range(hills):
        bias.deposit([generator.uniform(a.low, a.high) for a in bias.axes])
    return bias


CASES = {
    "two torsions": (("phi", "psi"), {}),
    "one torsion": (("phi",), {}),
    "distance, inside": (("distance:4,16@0.2:0.9",), {"widths": (0.05,)}),
    "distance, at its wall": (("distance:4,16@0.6:0.9",), {"widths": (0.05,)}),
    "angle and distance": (
        ("angle:6,8,14", "distance:4,16@0.2:0.9"),
        {"widths": (0.2, 0.05)},
    ),
}


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("case", CASES)
def test_force_is_that_of_the_grid(molecule, frames, case, platform):
    """Energy and forces in OpenMM are those of the spline on the grid, updated in the Context."""
    texts, settings = CASES[case]
    variables = [parse_variable(text, molecule.mdtraj) for text in texts]
    bias = filled(variables, **settings)
    context, group = context_of(molecule, bias, platform)
    empty = context.getState(getEnergy=True, groups={group}).getPotentialEnergy()._value
    bias.apply(context)
    tolerance = 1e-9 if platform == "Reference" else 1e-4
    for positions in frames[:6].astype(float):
        context.setPositions(positions)
        state = context.getState(getEnergy=True, getForces=True, groups={group})
        energy = bias.energy(variable_values(variables, positions[None]))[0]
        found = state.getPotentialEnergy()._value
        assert found == pytest.approx(energy, abs=tolerance * 10, rel=1e-6)
        forces = state.getForces(asNumpy=True)._value
        atom, axis, step = 8, 1, 1e-5
        if 8 not in {a for v in variables for a in v.atoms}:
            atom = 4
        ends = np.repeat(positions[None], 2, axis=0)
        ends[:, atom, axis] += [step, -step]
        slope = -np.diff(bias.energy(variable_values(variables, ends)))[0] / (-2 * step)
        assert -forces[atom, axis] == pytest.approx(-slope, rel=2e-3, abs=1e-2)
    assert empty != pytest.approx(found)


def test_periodic_grid_has_no_seam(molecule):
    bias = filled(torsions(molecule))
    both = bias.energy([[math.pi - 1e-9, 0.3], [-math.pi + 1e-9, 0.3]])
    assert both[0] == pytest.approx(both[1], abs=1e-6)
    np.testing.assert_array_equal(bias.grid[0], bias.grid[-1])
    np.testing.assert_array_equal(bias.grid[:, 0], bias.grid[:, -1])


def test_hills_shrink_as_they_pile_up(molecule):
    """h exp(-V / (k dT)), V what is there; the spline gives a hill back to 5e-4."""
    bias = Metadynamics(torsions(molecule), 300.0, height=2.0, bias_factor=3.0)
    point, expected = [0.1, -3.1], 0.0
    for _ in range(5):
        expected += 2.0 * math.exp(-expected / (KT * 2.0))
        bias.deposit(point)
        assert bias.energy([point])[0] == pytest.approx(expected, rel=2e-3)


# ---------------------------------------------------------------- weights of metadynamics


def free_energy(bias):
    """Some free energy on the grid, and weights of the trapezoid rule."""
    x, y = np.meshgrid(*(a.points for a in bias.axes), indexing="ij")
    surface = 5 * np.cos(x) + 7 * np.sin(y) * np.cos(x) + 3 * np.cos(2 * y)
    steps = np.add.outer(bias.axes[0].log_steps, bias.axes[1].log_steps)
    return surface, np.exp(steps)


@pytest.mark.parametrize("gamma", [1.5, 6.0, 20.0])
def test_weights_return_the_free_energy(molecule, gamma):
    """For the limit V = -(1 - 1/gamma) F + const they are exact, and their mean is one."""
    bias = Metadynamics(torsions(molecule), 300.0, bias_factor=gamma)
    surface, volume = free_energy(bias)
    bias.grid = -(1 - 1 / gamma) * surface + 25.0
    biased = np.exp(-(surface + bias.grid) / KT)
    biased /= (biased * volume).sum()
    weights = np.exp(bias.log_weights(bias.grid))
    recovered = -KT * np.log(biased * weights)
    assert np.ptp(recovered - surface) < 1e-10
    assert (biased * weights * volume).sum() == pytest.approx(1.0, abs=1e-10)
    # A constant in V changes nothing.
    bias.grid = bias.grid + 100.0
    np.testing.assert_allclose(np.exp(bias.log_weights(bias.grid)), weights, rtol=1e-9)


def test_wrong_offset_is_noticed(molecule):
    """Negative control: with another gamma the mean weight is not one."""
    bias = Metadynamics(torsions(molecule), 300.0, bias_factor=6.0)
    surface, volume = free_energy(bias)
    bias.grid = -(1 - 1 / 6.0) * surface
    biased = np.exp(-(surface + bias.grid) / KT)
    biased /= (biased * volume).sum()
    bias.bias_factor = 3.0
    weights = np.exp(bias.log_weights(bias.grid))
    assert abs((biased * weights * volume).sum() - 1) > 0.1


class Recorded:
    """A recorder that has some values."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def numbers(self, *names):
        return {name: self.arrays[name] for name in names}


def test_final_weights_and_discard(molecule):
    bias = filled(torsions(molecule))
    values = np.random.default_rng(0).uniform(-3, 3, (50, 2))
    plan = MetadynamicsRun(bias, 500, "final", 10)
    weights = plan.weights(Recorded(variables=values))
    assert weights.mean() == pytest.approx(1) and (weights[:10] == 0).all()
    ratio = np.exp(bias.energy(values[10:]) / KT)
    np.testing.assert_allclose(weights[10:] / weights[10], ratio / ratio[0], rtol=1e-12)
    with pytest.raises(InputError, match="discard leaves no frame"):
        MetadynamicsRun(bias, 500, "final", 50).weights(Recorded(variables=values))


# ---------------------------------------------------------------- umbrella windows


def test_mbar_returns_an_exact_distribution():
    """A rotor in a cos(s), umbrella windows sampled exactly: 12 bins, z-scores below 4."""
    variable = CollectiveVariable("torsion", (0, 1, 2, 3))
    centres = np.linspace(-np.pi, np.pi, 8, endpoint=False)
    bias = Umbrella([variable], centres, [20.0])
    grid = np.linspace(-np.pi, np.pi, 4001)
    energy = 6 * np.cos(grid) + 2 * np.sin(2 * grid)
    generator, edges = np.random.default_rng(3), np.linspace(-np.pi, np.pi, 13)
    found = []
    for _ in range(24):
        values = []
        for window in range(8):
            density = np.exp(-(energy + bias.energies(grid[:, None])[:, window]) / KT)
            cumulative = np.cumsum((density[1:] + density[:-1]) / 2)
            points = generator.random(200) * cumulative[-1]
            values.append(np.interp(points, np.append(0, cumulative), grid))
        weights = bias.weights(
            np.concatenate(values)[:, None], np.repeat(np.arange(8), 200), 300.0
        )
        histogram = np.histogram(np.concatenate(values), edges, weights=weights)[0]
        found.append(histogram / histogram.sum())
    density = np.exp(-energy / KT)
    centre = (grid[1:] + grid[:-1]) / 2
    exact = np.histogram(centre, edges, weights=(density[1:] + density[:-1]) / 2)[0]
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    z = (np.mean(found, axis=0) - exact / exact.sum()) / error
    assert np.abs(z).max() < 4 and np.square(z).mean() < 3


def test_windows_that_do_not_overlap_are_told():
    variable = CollectiveVariable("torsion", (0, 1, 2, 3))
    bias = Umbrella([variable], [0.0, 3.0], [1e5])
    values = np.concatenate([np.full(20, 0.0), np.full(20, 3.0)])
    values += 1e-3 * np.random.default_rng(0).standard_normal(40)
    # MBAR's equations have a solution; only the overlap says that it is any one.
    with pytest.raises(cgml.CGMLError, match="states 0 and 1 overlap by"):
        bias.weights(values[:, None], np.repeat([0, 1], 20), 300.0)


# ---------------------------------------------------------------- forces without the bias


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_forces_without_the_bias_are_verified(molecule, platform):
    bias = filled(torsions(molecule))
    context, group = context_of(molecule, bias, platform)
    others = set(range(32)) - {group}
    with pytest.raises(InputError, match="exerts no force"):  # the grid was not applied yet
        verify_unbiased(context, others, molecule.system, molecule.label)
    bias.disturb(context)
    assert verify_unbiased(context, others, molecule.system, molecule.label) < 1e-5


def test_bias_among_other_forces_is_caught(molecule):
    """Negative control: in group 0, with the bonds."""
    bias = filled(torsions(molecule))
    context, _ = context_of(molecule, bias, group=0)
    bias.disturb(context)
    with pytest.raises(InputError, match="are not unbiased: that on (ACE1|ALA2|NME3)-"):
        verify_unbiased(context, set(range(31)), molecule.system, molecule.label)


def test_no_free_group():
    system = openmm.System()
    for group in range(32):
        force = openmm.HarmonicBondForce()
        force.setForceGroup(group)
        system.addForce(force)
    with pytest.raises(InputError, match="all 32 force groups"):
        free_group(system)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"bias_factor": 1.0}, "bias factor is 1.0"),
        ({"height": -1}, "height of the hills"),
        ({"widths": (0.3, 0.3, 0.3)}, "3 widths for 2 variables"),
        ({"widths": (3.0,)}, "more than a third"),
        ({"widths": (0.001,)}, "too small"),
    ],
)
def test_bad_metadynamics(molecule, settings, problem):
    with pytest.raises(InputError, match=problem):
        Metadynamics(torsions(molecule), 300.0, **settings)


def test_bad_variables_for_metadynamics(molecule):
    with pytest.raises(InputError, match="give one or two"):
        Metadynamics([], 300.0)
    with pytest.raises(InputError, match="has no range"):
        Metadynamics([CollectiveVariable("distance", (0, 1))], 300.0)
    phi = torsions(molecule)[0]
    with pytest.raises(InputError, match="given twice"):
        Metadynamics([phi, phi], 300.0)
    mixed = [phi, parse_variable("distance:4,16@0.2:0.9", molecule.mdtraj)]
    with pytest.raises(InputError, match="a torsion and none"):
        Metadynamics(mixed, 300.0, widths=(0.3, 0.05))


def test_bad_umbrella(molecule):
    phi = torsions(molecule)[:1]
    with pytest.raises(InputError, match="180 of variable phi:2 is no angle in radians"):
        Umbrella(phi, [180.0], [10.0])
    with pytest.raises(InputError, match="2 springs for 1"):
        Umbrella(phi, [1.0], [10.0, 10.0])
    with pytest.raises(InputError, match="centres have shape"):
        Umbrella(phi, [[1.0, 2.0]], [10.0])
    with pytest.raises(InputError, match="need a variable"):
        Umbrella([], [1.0], [10.0])
