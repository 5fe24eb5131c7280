"""Prior terms and their fits: formulas, gradients, exact recovery, Jacobians, pooling."""

import dataclasses
import json
import math

import torch
from torch import Tensor

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import geometry
from openmm_cgml.errors import InputError
from openmm_cgml.pmf.core import build, energy_and_forces
from openmm_cgml.pmf.prior import (
    Charges,
    Electrostatics,
    FourierTorsions,
    HarmonicAngles,
    HarmonicBonds,
    Impropers,
    Repulsion,
    TypedPrior,
    fit_prior,
    fit_prior_table,
)
from openmm_cgml.pmf.prior_fit import LEAST_VARIANCE, fit_torsion, torsion_sample
from openmm_cgml.pmf.prior_indices import distant_pairs, improper_indices, torsion_shares
from openmm_cgml.topology import bonded_torsions
from openmm_cgml.units import thermal_energy

ALL = ("bonds", "angles", "torsions", "impropers", "repulsion")
KT = thermal_energy(300)
BOX = torch.tensor([[2.5, 0, 0], [0.4, 3.0, 0], [-0.3, 0.5, 2.8]], dtype=torch.float64)
QUADRUPLES = [(0, 1, 2, 3), (4, 1, 3, 5), (5, 0, 4, 2)]


def topology_of(types: str, bonds: list[tuple[int, int]]) -> cgml.CGTopology:
    """A molecule of beads whose types are letters."""
    n = len(types)
    return cgml.CGTopology(
        tuple(types), tuple(types), ("M",) * n, tuple(range(n)), ("A",) * n, tuple(bonds),
        (1.0,) * n,
    )  # fmt: skip


def branched(units: int) -> cgml.CGTopology:
    """A chain of As, each with a B at its side."""
    chain = [(2 * k, 2 * k + 2) for k in range(units - 1)]
    return topology_of("AB" * units, chain + [(2 * k, 2 * k + 1) for k in range(units)])


def grown(topology: cgml.CGTopology, frames: int, seed: int = 0) -> cgml.CGDataset:
    """Frames of a branched molecule, side beads to one side: noisy, but never torn."""
    rng = np.random.default_rng(seed)
    beads = len(topology)
    ideal = np.array([[0.3 * (k // 2), 0.1 * (k // 2 % 2), 0.25 * (k % 2)] for k in range(beads)])
    positions = ideal + 0.03 * rng.standard_normal((frames, beads, 3))
    weights = rng.random(frames)
    return cgml.CGDataset(positions, topology, temperature=300.0, weights=weights)


def chain_of(topology, frames: np.ndarray, weights: np.ndarray | None = None) -> cgml.CGDataset:
    return cgml.CGDataset(frames, topology, temperature=300.0, weights=weights)


def torsion_beads(t: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Four beads (frames, 4, 3) of given torsions and bond angles."""
    beads = np.zeros((len(t), 4, 3))
    beads[:, 0] = 0.3 * np.stack([np.sin(first), 0 * t, np.cos(first)], axis=1)
    beads[:, 2, 2] = 0.3
    arm = np.stack([np.sin(second) * np.cos(t), np.sin(second) * np.sin(t), -np.cos(second)], 1)
    beads[:, 3] = beads[:, 2] + 0.3 * arm
    return beads


def draw_torsions(rng, cosines, sines, damping: np.ndarray) -> np.ndarray:
    """Draw t (frames,) from exp(-U(t, b) / kT), by rejection; coefficients in kT."""
    orders = np.arange(1, len(cosines) + 1)
    bound = np.abs(cosines).sum() + np.abs(sines).sum()
    drawn = np.full(len(damping), np.nan)
    while (left := np.flatnonzero(np.isnan(drawn))).size:
        t = rng.uniform(-np.pi, np.pi, left.size)
        phases = t[:, None] * orders
        powers = damping[left, None] ** orders
        energy = (powers * (np.cos(phases) * cosines + np.sin(phases) * sines)).sum(1)
        taken = rng.random(left.size) < np.exp(-energy - bound)
        drawn[left[taken]] = t[taken]
    return drawn


# ---------------------------------------------------------------- terms


def terms() -> dict[str, cgml.PMF]:
    rng = np.random.default_rng(3)
    topology = branched(4)
    charges = Charges({"A": 1.0, "B": -0.5}, permittivity=20.0)
    table = fit_prior_table(grown(topology, 50), ALL, charges=charges)
    return {
        "bonds": HarmonicBonds([(0, 1), (4, 2)], [900.0, 80.0], [0.3, 0.5]),
        "angles": HarmonicAngles([(0, 1, 2), (3, 1, 0)], [50.0, 3.0], [-0.2, 0.9]),
        "one order": FourierTorsions(QUADRUPLES, [[2.0]] * 3, [[-1.0]] * 3),
        "torsions": FourierTorsions(
            QUADRUPLES, rng.normal(0, 3, (3, 4)).tolist(), rng.normal(0, 3, (3, 4)).tolist()
        ),
        "impropers": Impropers(QUADRUPLES, [40.0, 5.0, 9.0], [0.4, -0.3, 0.0]),
        "repulsion": Repulsion([(0, 5), (5, 3)], [2.5] * 2, [0.4] * 2),
        "electrostatics": Electrostatics([(0, 5), (5, 3)], [1.0, -0.25], 4.0, 0.7),
        "typed": table.to_pmf(topology),
        "sum": cgml.SumPMF(
            table.to_pmf(topology), HarmonicBonds([(0, 3)], [5.0], [0.4]), Repulsion(
                [(0, 7)], [1.0], [0.3]
            ),
        ),
    }  # fmt: skip


NAMES = list(terms())


@pytest.fixture
def positions() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.4 * torch.randn(4, 8, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_forces_are_minus_the_gradient(name, positions) -> None:
    pmf = terms()[name].double()
    forces = pmf.energies_and_forces(positions)[1]
    step = 1e-5
    scale = forces.abs().max()
    for bead in range(8):
        for axis in range(3):
            shift = torch.zeros_like(positions)
            shift[:, bead, axis] = step
            slope = (pmf(positions + shift) - pmf(positions - shift)) / (2 * step)
            error = (slope + forces[:, bead, axis]).abs()
            size = forces.flatten(1).abs().amax(1).clamp_min(1e-9 * scale)
            assert (error / size).max() < 1e-5, (bead, axis)


@pytest.mark.parametrize("name", NAMES)
def test_what_engines_call_agrees_with_autograd(name, positions) -> None:
    """Eager, scripted and frozen; whole molecules and ones torn by a triclinic box."""
    pmf = terms()[name].double().eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-2, 3, positions.shape, generator=generator).to(positions)
    script = torch.jit.script(pmf)
    frozen = torch.jit.freeze(script, preserved_attrs=["energies_and_forces"])
    whole = pmf(positions, BOX)
    for x, box in ((positions, None), (positions[:1], None), (positions + images @ BOX, BOX)):
        energies, forces = energy_and_forces(pmf, x, box)
        scale = forces.abs().max().item()
        for program in (pmf, *3 * [script], *3 * [frozen]):
            found, by_hand = program.energies_and_forces(x, box)
            assert torch.allclose(found, energies, rtol=1e-9)
            assert torch.allclose(by_hand, forces, rtol=1e-9, atol=1e-10 * scale)
            assert by_hand.shape == x.shape
        if box is not None:
            assert torch.allclose(energies, whole, rtol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_forces_can_be_traced_for_compilation(name, positions) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    pmf = terms()[name].double()
    with torch.no_grad():
        program = make_fx(
            lambda x: pmf.energies_and_forces(x, BOX),
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(positions)
        other = torch.cat([positions, positions + 0.02])  # another number of copies
        expected = pmf.energies_and_forces(other, BOX)
        for found, right in zip(program(other), expected, strict=True):
            assert torch.allclose(found, right, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_architecture_rebuilds_it_after_json(name, positions) -> None:
    pmf = terms()[name]
    again = build(json.loads(json.dumps(pmf.architecture())))
    again.load_state_dict(pmf.state_dict())
    assert type(again) is type(pmf)
    assert torch.equal(again(positions.float()), pmf(positions.float()))


@pytest.mark.parametrize("name", ["HarmonicBonds", "HarmonicAngles", "Repulsion"])
def test_models_saved_before_the_terms_moved_can_be_rebuilt(name) -> None:
    term = next(t for t in terms().values() if type(t).__name__ == name)
    old = {"class": f"openmm_cgml.pmf.prior:{name}", "arguments": term.arguments()}
    assert build(old).arguments() == term.arguments()


def test_torsions_are_the_damped_series(positions) -> None:
    pmf = terms()["torsions"].double()
    index = pmf.indices
    t = geometry.dihedrals(positions, index)
    cosines = [
        geometry.cosine_angles(
            geometry.displacements(positions, index[:, k : k + 2]),
            geometry.displacements(positions, index[:, k + 1 : k + 3]),
        )
        for k in (0, 1)
    ]
    b = ((1 - cosines[0] ** 2) * (1 - cosines[1] ** 2)).sqrt()
    expected = sum(
        b**n * (pmf.cosines[:, n - 1] * (n * t).cos() + pmf.sines[:, n - 1] * (n * t).sin())
        for n in range(1, 5)
    ).sum(-1)
    assert torch.allclose(pmf(positions), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["torsions", "impropers"])
def test_beads_in_line_are_no_singularity(name) -> None:
    """The force goes linearly with the distance from the line, and is zero on it."""
    pmf = terms()[name].double()
    line = torch.zeros(1, 6, 3, dtype=torch.float64)
    line[0, :, 0] = 0.3 * torch.arange(6)
    across = torch.randn(1, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    at = [pmf.energies_and_forces(line + shift * across)[1] for shift in (0.0, 1e-6, 2e-6)]
    assert at[0].abs().max() < 1e-12
    assert torch.allclose(at[2], 2 * at[1], atol=1e-4 * at[1].abs().max().item())


def test_impropers_know_left_from_right(positions) -> None:
    mirrored = positions * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    pmf = terms()["impropers"].double()
    turned = Impropers(QUADRUPLES, [40.0, 5.0, 9.0], [-0.4, 0.3, 0.0]).double()
    assert (pmf(positions) - pmf(mirrored)).abs().min() > 1e-3
    assert torch.allclose(pmf(positions), turned(mirrored), rtol=1e-6)


def test_electrostatics_is_coulombs_law_with_screening() -> None:
    """Two unit charges 1 nm apart in a vacuum: 138.935 kJ/mol."""
    pair = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0]]], dtype=torch.float64)
    bare = Electrostatics([(0, 1)], [1.0], 1.0, 1e9).double()
    assert bare(pair).item() == pytest.approx(138.935, abs=1e-3)
    screened = Electrostatics([(0, 1)], [-0.5], 80.0, 0.5).double()
    assert screened(pair).item() == pytest.approx(-0.5 * 138.9354576 / 80 * math.exp(-2))


def test_torsions_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"2 torsions have cosines of shape \(2, 1\) and sines"):
        FourierTorsions(QUADRUPLES[:2], [[1.0], [2.0]], [[1.0], [2.0], [3.0]])


# ---------------------------------------------------------------- which beads


def test_impropers_come_from_branches_alone() -> None:
    assert improper_indices(topology_of("AAAA", [(0, 1), (1, 2), (2, 3)])) == []
    # Neighbours by type, then index; the branched bead second.
    assert improper_indices(branched(3)) == [(0, 2, 4, 3)]
    star = topology_of("CBAXD", [(3, k) for k in (0, 1, 2, 4)])
    assert improper_indices(star) == [(2, 3, 1, 0), (2, 3, 1, 4)]


def test_torsions_about_one_bond_share_its_energy() -> None:
    torsions = bonded_torsions(branched(4).bonds)
    shares = torsion_shares(torsions)
    for bond in {(j, k) for _, j, k, _ in torsions}:
        assert sum(s for t, s in zip(torsions, shares, strict=True) if t[1:3] == bond) == (
            pytest.approx(1)
        )
    assert min(shares) == 0.25 and max(shares) == 0.5


def test_beads_without_a_bond_between_them_repel_each_other() -> None:
    assert distant_pairs(topology_of("AB", []), 3) == [(0, 1)]
    assert distant_pairs(topology_of("ABC", [(0, 1)]), 4) == [(0, 2), (1, 2)]
    assert distant_pairs(topology_of("ABC", [(0, 1), (1, 2)]), 3) == []
    chain = topology_of("ABCDE", [(k, k + 1) for k in range(4)])
    assert distant_pairs(chain, 3) == [(0, 3), (0, 4), (1, 4)]
    assert distant_pairs(chain, 4) == [(0, 4)]


# ---------------------------------------------------------------- fits to exact densities


def test_bond_prior_recovers_the_spring_that_made_the_data() -> None:
    """Bond vectors of density exp(-k (d - d0)^2 / 2 kT): the Jacobian d^2 must be undone."""
    rng = np.random.default_rng(0)
    stiffness, length, frames = 500.0, 0.35, 40_000
    # Soft on purpose: sd 0.07 nm, so forgetting the Jacobian would shift d0 by 0.03 nm.
    grid = np.linspace(0.001, 0.9, 20_000)
    density = grid**2 * np.exp(-0.5 * stiffness * (grid - length) ** 2 / KT)
    lengths = rng.choice(grid, size=frames, p=density / density.sum())
    directions = rng.standard_normal((frames, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    beads = np.stack([np.zeros((frames, 3)), lengths[:, None] * directions], axis=1)
    (bonds,) = fit_prior(chain_of(topology_of("AB", [(0, 1)]), beads), terms=["bonds"]).terms
    assert isinstance(bonds, HarmonicBonds)
    weight = 1 / lengths**2
    effective = weight.sum() ** 2 / (weight**2).sum()
    error = math.sqrt(KT / stiffness / effective)
    assert abs(bonds.length.item() - length) < 4 * error
    assert abs(bonds.stiffness.item() / stiffness - 1) < 4 * math.sqrt(2 / effective)


def test_angle_prior_recovers_the_spring_in_the_cosine() -> None:
    rng = np.random.default_rng(1)
    stiffness, cosine, frames = 300.0, -0.3, 20_000
    values = np.clip(cosine + math.sqrt(KT / stiffness) * rng.standard_normal(frames), -1, 1)
    angle = np.arccos(values)
    beads = np.zeros((frames, 3, 3))
    beads[:, 0, 0] = 0.3
    beads[:, 2] = 0.3 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    topology = topology_of("ABC", [(0, 1), (1, 2)])
    (angles,) = fit_prior(chain_of(topology, beads), terms=["angles"]).terms
    assert isinstance(angles, HarmonicAngles)
    assert abs(angles.cosine.item() - cosine) < 4 * math.sqrt(KT / stiffness / frames)
    assert abs(angles.stiffness.item() / stiffness - 1) < 4 * math.sqrt(2 / frames)


CHAIN = topology_of("ABCD", [(0, 1), (1, 2), (2, 3)])


@pytest.mark.parametrize("weighted", [False, True])
def test_torsion_prior_recovers_the_series_that_made_the_data(weighted) -> None:
    """Also with bond angles that vary, on which the series depends through its damping."""
    rng = np.random.default_rng(2)
    frames = 40_000
    true = np.array([0.8, -0.6, 0.5, 0.4, 0.7, -0.3])  # kT
    angles = np.arccos(rng.uniform(-0.75, 0.75, (2, frames)))
    damping = np.sin(angles).prod(0)
    orders = np.arange(1, 4)
    if weighted:  # uniform frames, their weights make the density
        t = rng.uniform(-np.pi, np.pi, frames)
        phases, powers = t[:, None] * orders, damping[:, None] ** orders
        energy = powers * (np.cos(phases) * true[:3] + np.sin(phases) * true[3:])
        weights = np.exp(-energy.sum(1))
        # Conditional on b they must be normalised, or weights would depend on the angles.
        weights /= np.mean(
            [
                np.exp(-sum(
                    damping**n * (a * np.cos(n * x) + s * np.sin(n * x))
                    for n, a, s in zip(orders, true[:3], true[3:], strict=True)
                ))
                for x in 2 * np.pi * np.arange(48) / 48
            ],
            axis=0,
        )  # fmt: skip
    else:
        t, weights = draw_torsions(rng, true[:3], true[3:], damping), None
    dataset = chain_of(CHAIN, torsion_beads(t, *angles), weights)
    (term,) = fit_prior(dataset, terms=["torsions"]).terms
    assert isinstance(term, FourierTorsions)
    found = torch.cat([term.cosines[0], term.sines[0]]).double().numpy() / KT
    # The Fisher information at given damping is the mean conditional covariance of the features;
    # weighted, the score's covariance goes with the squared weights.
    p = np.full(frames, 1 / frames) if weights is None else weights / weights.sum()
    powers = (damping * np.exp(1j * t))[:, None] ** orders
    features = np.concatenate([powers.real, powers.imag], axis=1)
    grid = np.exp(2j * np.pi * np.arange(96) / 96)[:, None] ** orders
    grid = np.concatenate([grid.real, grid.imag], axis=1)
    scaled = np.concatenate([damping[:, None] ** orders] * 2, axis=1)
    density = np.exp(-(scaled * true) @ grid.T)
    density /= density.sum(1, keepdims=True)
    score = features - scaled * (density @ grid)
    second = np.einsum("fg,ga,gb->fab", density, grid, grid, optimize=True)
    mean = density @ grid
    covariance = second - mean[:, :, None] * mean[:, None, :]
    information = np.einsum("f,fa,fb,fab->ab", p, scaled, scaled, covariance, optimize=True)
    inverse = np.linalg.inv(information)
    sandwich = inverse @ ((p[:, None] * score).T @ (p[:, None] * score)) @ inverse
    z = (found - true) / np.sqrt(np.diag(sandwich))
    assert np.abs(z).max() < 3.5, z  # six comparisons
    assert np.sqrt(np.diag(sandwich)).max() < 0.1  # so that the test can tell
    if not weighted:  # the direction counts as well
        assert np.abs(found + true).max() > 1


def test_torsions_of_a_free_chain_have_no_energy() -> None:
    """Directions at random: the Jacobian is flat in t, and no other."""
    rng = np.random.default_rng(3)
    steps = rng.standard_normal((20_000, 4, 3))
    steps *= 0.3 / np.linalg.norm(steps, axis=2, keepdims=True)
    (term,) = fit_prior(chain_of(CHAIN, steps.cumsum(1)), terms=["torsions"]).terms
    # b^2 has mean 4/9, cos^2 1/2: the error of c_1 is kT / sqrt(frames * 2 / 9), of others more.
    error = KT / math.sqrt(20_000 * 2 / 9)
    assert abs(term.cosines[0, 0].item()) < 4 * error
    assert abs(term.sines[0, 0].item()) < 4 * error


@pytest.mark.parametrize("width", [0.02, 0.3])
def test_a_torsion_that_hardly_moves_has_a_finite_energy_with_its_well_there(width) -> None:
    rng = np.random.default_rng(4)
    t = 2.0 + width * rng.standard_normal(2000)
    sample = torsion_sample(0.8 * np.sin(t), 0.8 * np.cos(t), np.ones(2000), 3)
    cosines, sines = fit_torsion([sample]).reshape(2, 3)
    grid = np.linspace(-np.pi, np.pi, 721)
    energy = sum(
        0.8**n * (cosines[n - 1] * np.cos(n * grid) + sines[n - 1] * np.sin(n * grid))
        for n in (1, 2, 3)
    )
    assert abs(grid[energy.argmin()] - 2.0) < 0.05
    assert 5 < np.ptp(energy) < 1000


def test_improper_prior_recovers_centre_and_stiffness() -> None:
    rng = np.random.default_rng(5)
    frames, centre, stiffness = 20_000, 0.35, 500.0
    s = centre + math.sqrt(KT / stiffness) * rng.standard_normal(frames)
    # Bead 1 branched; quadruple (0, 1, 2, 3), a right angle at bead 1: s is w along u x v.
    beads = np.zeros((frames, 4, 3))
    beads[:, 0, 0], beads[:, 2, 1] = -0.3, 0.3
    beads[:, 3] = beads[:, 2] + 0.4 * np.stack([0 * s, -np.sqrt(1 - s**2), s], axis=1)
    topology = topology_of("AXBC", [(1, 0), (1, 2), (1, 3)])
    (term,) = fit_prior(chain_of(topology, beads), terms=["impropers"]).terms
    assert isinstance(term, Impropers)
    assert term.indices.tolist() == [[0, 1, 2, 3]]
    assert abs(term.sine.item() - centre) < 4 * math.sqrt(KT / stiffness / frames)
    assert abs(term.stiffness.item() / stiffness - 1) < 4 * math.sqrt(2 / frames)


def test_the_jacobian_of_an_improper_is_flat() -> None:
    """A direction at random has uniform components (Archimedes): s is uniform too."""
    rng = np.random.default_rng(6)
    frames = 20_000
    w = rng.standard_normal((frames, 3))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    beads = np.zeros((frames, 4, 3))
    beads[:, 0], beads[:, 2, 1] = [-0.3, 0.1, 0.0], 0.3
    beads[:, 3] = beads[:, 2] + 0.2 * w
    torsion = geometry.InternalCoordinates(torsions=[(0, 1, 2, 3)])
    s = torsion(torch.tensor(beads))[:, 0].numpy()
    share = np.sort(np.abs(s) / np.abs(s).max())
    # Kolmogorov: sup |F - x| sqrt(n) exceeds 1.95 with probability 0.001.
    expected = np.arange(1, frames + 1) / frames
    assert np.abs(share - expected).max() * math.sqrt(frames) < 1.95


def test_repulsion_is_kt_where_few_frames_go(dataset) -> None:
    (repulsion,) = fit_prior(dataset, terms=["repulsion"]).terms
    assert isinstance(repulsion, Repulsion)
    assert sorted(repulsion.indices.tolist()) == [[0, 3], [0, 4], [1, 4]]
    for (i, j), radius in zip(repulsion.indices.tolist(), repulsion.radius.tolist(), strict=True):
        lengths = np.linalg.norm(dataset.positions[:, i] - dataset.positions[:, j], axis=1)
        assert 0 < (lengths < radius).mean() <= 0.002
        pair = Repulsion([[0, 1]], [KT], [radius])
        at_radius = torch.tensor([[[0.0, 0, 0], [radius, 0, 0]]])
        assert pair(at_radius).item() == pytest.approx(KT, rel=1e-5)


def test_rigid_beads_have_a_finite_stiffness() -> None:
    beads = np.tile(np.eye(3)[:2], (10, 1, 1))
    (bonds,) = fit_prior(chain_of(topology_of("AB", [(0, 1)]), beads), terms=["bonds"]).terms
    assert bonds.stiffness.item() == pytest.approx(KT / LEAST_VARIANCE)


# ---------------------------------------------------------------- weights, boxes, pools


def same(one: cgml.PMF, other: cgml.PMF, rtol: float = 1e-5) -> None:
    """Two priors have the same terms, up to rounding."""
    pairs = list(zip(one.named_buffers(), other.named_buffers(), strict=True))
    assert len(pairs) > 5
    for (name, a), (_, b) in pairs:
        assert torch.allclose(a, b, rtol=rtol, atol=1e-5), name


def test_frames_of_weight_zero_do_not_count() -> None:
    dataset = grown(branched(4), 400)
    half = np.r_[dataset.weights[:200], np.zeros(200)]
    kinds = ALL[:4]  # the repulsion counts all frames alike
    weighted = fit_prior(dataclasses.replace(dataset, weights=half), kinds)
    same(weighted, fit_prior(dataset.select(slice(200)), kinds))


def test_a_torn_molecule_in_changing_boxes_gives_the_same_prior() -> None:
    whole = grown(branched(4), 60)
    rng = np.random.default_rng(7)
    boxes = np.stack([BOX.numpy(), 1.1 * BOX.numpy()])[rng.integers(0, 2, 60)]
    images = rng.integers(-1, 2, whole.positions.shape)
    torn = dataclasses.replace(whole, positions=whole.positions + images @ boxes, box=boxes)
    same(fit_prior(torn, ALL), fit_prior(whole, ALL))


def test_blocks_of_terms_change_nothing(monkeypatch) -> None:
    dataset = grown(branched(4), 100)
    at_once = fit_prior(dataset, ALL)
    monkeypatch.setattr("openmm_cgml.pmf.prior._BLOCK", 250)  # two terms at a time
    same(fit_prior(dataset, ALL), at_once, rtol=0)


def test_terms_of_one_type_have_pooled_moments() -> None:
    dataset = grown(branched(4), 300)
    table = fit_prior_table(dataset, ALL)
    assert [row.types for row in table.bonds] == [("A", "A"), ("A", "B")]
    x, p = dataset.positions, dataset.probabilities
    lengths = np.stack([np.linalg.norm(x[:, i] - x[:, i + 2], axis=1) for i in (0, 2, 4)])
    weights = p / lengths**2
    mean = np.average(lengths, weights=weights)
    assert table.bonds[0].length == pytest.approx(mean, rel=1e-6)
    variance = np.average((lengths - mean) ** 2, weights=weights)
    assert table.bonds[0].stiffness == pytest.approx(KT / variance, rel=1e-6)
    # By term: each has its own, and the smallest radius is the type's.
    single = {type(t).__name__: t for t in fit_prior(dataset, ALL).terms}
    assert single["HarmonicBonds"].length.unique().numel() == 7
    radii = {row.types: row.radius for row in table.repulsion}
    ends = [i % 2 == j % 2 == 0 for i, j in single["Repulsion"].indices.tolist()]
    smallest = single["Repulsion"].radius[torch.tensor(ends)].min().item()
    assert radii["A", "A"] == pytest.approx(smallest, rel=1e-6)


def test_parts_of_a_dataset_pool_to_the_whole() -> None:
    """Moments pool exactly, torsions up to how damping is grouped."""
    dataset = dataclasses.replace(grown(branched(4), 400), weights=None)
    parts = [dataset.select(slice(0, 100)), dataset.select(slice(100, 400))]
    whole, pooled = fit_prior_table(dataset, ALL), fit_prior_table(parts, ALL)
    for kind in ("bonds", "angles", "impropers"):
        for one, other in zip(getattr(whole, kind), getattr(pooled, kind), strict=True):
            assert dataclasses.astuple(one)[1:] == pytest.approx(dataclasses.astuple(other)[1:])
    for one, other in zip(whole.torsions, pooled.torsions, strict=True):
        assert one.cosines == pytest.approx(other.cosines, rel=0.05, abs=0.05)
    collection = cgml.DatasetCollection({"one": parts[0], "two": parts[1]})
    assert fit_prior_table(collection, ALL) == pooled


def test_molecules_of_different_sizes_share_one_table() -> None:
    sets = [grown(branched(3), 80), grown(branched(5), 80, seed=1)]
    table = fit_prior_table(sets, ALL)
    for dataset in sets:
        prior = table.to_pmf(dataset.topology)
        assert torch.isfinite(prior(torch.tensor(dataset.positions[:4]).float())).all()
    assert {row.types for row in table.torsions} == {
        ("A", "A", "A", "A"), ("A", "A", "A", "B"), ("B", "A", "A", "B"),
    }  # fmt: skip


def test_by_type_and_by_term_agree_where_no_type_occurs_twice() -> None:
    topology = topology_of("ABCDEF", [(0, 1), (1, 2), (2, 3), (3, 4), (1, 5)])
    dataset = grown(topology, 200)
    typed = fit_prior(dataset, ALL, by="type")
    assert isinstance(typed, TypedPrior)
    plain = fit_prior(dataset, ALL)
    x = torch.tensor(dataset.positions[:5])
    assert torch.allclose(typed.double()(x), plain.double()(x), rtol=1e-5)


# ---------------------------------------------------------------- model files, errors


@pytest.mark.parametrize("by", ["term", "type"])
def test_a_model_file_with_all_terms_is_trusted_and_rebuilt(by, tmp_path) -> None:
    from openmm_cgml.model_file import read_model_file

    dataset = grown(branched(4), 60)
    pmf = cgml.SumPMF(
        fit_prior(dataset, ALL, by=by, charges=Charges({"A": 0.5, "B": -0.5})),
        cgml.PMFS["cgnet"](dataset, width=8, depth=1),
    )
    cgml.save_model(tmp_path / "model.pt", pmf, dataset)
    again = read_model_file(tmp_path / "model.pt").rebuild()
    x = torch.tensor(dataset.positions[:3]).float()
    for found, expected in zip(
        again.energies_and_forces(x), pmf.energies_and_forces(x), strict=True
    ):
        assert torch.equal(found, expected)


def test_bad_requests_are_refused_with_a_remedy() -> None:
    dataset = grown(branched(3), 10)
    cold = dataclasses.replace(dataset, temperature=280.0)
    single = chain_of(topology_of("A", []), np.zeros((3, 1, 3)))
    for message, call in {
        r"unknown prior term 'torsion'; known: bonds, angles, torsions": lambda: fit_prior(
            dataset, ["torsion"]
        ),
        "by 'bead' is unknown; choose term or type": lambda: fit_prior(dataset, by="bead"),
        "orders is 0; give a whole": lambda: fit_prior(dataset, ["torsions"], orders=0),
        "for several take fit_prior_table": lambda: fit_prior([dataset, dataset]),
        "leave the prior out": lambda: fit_prior(single),
        "has none of torsions; leave the prior out": lambda: fit_prior_table(single, ["torsions"]),
        "at 300 K and 280 K": lambda: fit_prior_table([dataset, cold]),
        "at least one dataset": lambda: fit_prior_table([]),
        "bead M1-B is of type 'B', which has no charge": lambda: fit_prior(
            dataset, charges=Charges({"A": 1.0})
        ),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
