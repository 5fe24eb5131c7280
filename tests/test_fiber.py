"""Split-flows against exact results: fibers of linear maps, entropies, densities, energies."""

import math
from dataclasses import replace

import torch

import numpy as np
import pytest
from scipy import integrate as quadrature

import openmm_cgml as cgml
from openmm_cgml.backmapping import BeadFrames
from openmm_cgml.entropy import (
    compare_mappings,
    data_entropy,
    decompose,
    fiber_average,
    gaussian_entropy,
    mapping_entropy,
)
from openmm_cgml.errors import InputError
from openmm_cgml.flow.fiber import FiberFlow, Solver, integrate, split_flow
from openmm_cgml.flow.fiber_fit import FRAME_VECTORS, Kinds, frame_indices
from openmm_cgml.flow_training import fit_flow
from openmm_cgml.mapping.core import Mapping, slice_mapping
from openmm_cgml.mapping.fiber import fiber_of
from openmm_cgml.topology import surroundings
from openmm_cgml.units import thermal_energy

KT = float(thermal_energy(300))


def chain(atoms: int, residues: bool = False) -> cgml.CGTopology:
    return cgml.CGTopology(
        bead_names=tuple(f"C{k}" for k in range(atoms)), bead_types=("C",) * atoms,
        residue_names=("MOL",) * atoms, residue_ids=(1,) * atoms, chain_ids=("A",) * atoms,
        bonds=tuple((k, k + 1) for k in range(atoms - 1)), masses=(12.011,) * atoms,
    )  # fmt: skip


def mapping(matrix: np.ndarray) -> Mapping:
    """A map by its matrix; beads of a chain are bonded in order."""
    beads, atoms = matrix.shape
    return Mapping("custom", matrix, chain(beads), tuple(f"MOL1-C{k}" for k in range(atoms)))


MATRICES = {
    "slice": np.eye(7)[[0, 3, 6]],
    "com": np.array([[1, 2, 3, 0, 0, 0, 0], [0, 0, 0, 1, 5, 0, 0], [0, 0, 0, 0, 0, 2, 1.0]]),
    "partial": np.array([[1, 2, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 2, 1.0]]),
    "overlap": np.array([[1, 2, 3, 0, 0, 0, 0], [0, 0, 1, 1, 5, 0, 0], [0, 0, 0, 0, 1, 2, 1.0]]),
}
MATRICES = {name: m / m.sum(1, keepdims=True) for name, m in MATRICES.items()}


@pytest.fixture(params=list(MATRICES))
def matrix(request) -> np.ndarray:
    return MATRICES[request.param]


def random_chain(frames: int, atoms: int, seed: int = 0, size: float = 0.15) -> np.ndarray:
    steps = np.random.default_rng(seed).normal(size=(frames, atoms, 3)) * size
    return np.cumsum(steps, axis=1) + np.arange(atoms)[:, None] * [0.05, 0, 0]


def random_flow(matrix: np.ndarray, seed: int = 0, strength: float = 0.3) -> FiberFlow:
    """An untrained split-flow whose network does something."""
    atoms = matrix.shape[1]
    data = cgml.CGDataset(random_chain(300, atoms, seed), chain(atoms), 300.0)
    flow = split_flow(data, mapping(matrix), width=12, layers=2, heads=3, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in flow.velocity.layers:
            layer.factors.weight.normal_(0, strength, generator=generator)
    return flow


# ---------------------------------------------------------------- the linear algebra


def test_fiber_is_a_bijection_with_the_volume_that_is_told(matrix) -> None:
    fiber = fiber_of(matrix)
    whole = np.concatenate([fiber.matrix, fiber.basis])
    inverse = np.concatenate([fiber.lift, fiber.basis.T], axis=1)
    assert abs(np.linalg.det(whole) * np.linalg.det(inverse)) == pytest.approx(1, abs=1e-10)
    atoms = random_chain(5, 7)
    placed = fiber.place(fiber.beads_of(atoms), fiber.offsets(atoms))
    assert np.abs(placed - atoms).max() < 1e-12
    assert np.abs(matrix @ fiber.lift - np.eye(len(matrix))).max() < 1e-12
    assert np.abs(fiber.lift.sum(1) - 1).max() < 1e-12  # moves with the beads
    assert np.abs(matrix @ fiber.projector).max() < 1e-12
    assert fiber.log_volume == pytest.approx(3 * math.log(abs(np.linalg.det(whole))), abs=1e-10)
    assert fiber.removed == 3 * (7 - len(matrix))


def test_fiber_of_centres_of_mass_is_the_known_one() -> None:
    fiber = fiber_of(MATRICES["com"])
    weights = [np.square(row).sum() for row in MATRICES["com"]]
    assert fiber.log_volume == pytest.approx(1.5 * np.log(weights).sum())
    assert np.abs(fiber.lift - (MATRICES["com"] > 0).T).max() < 1e-12  # the assignment


def test_maps_that_cannot_be_split_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="position of bead C is given by the other beads"):
        fiber_of(np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]]), labels=["A", "B", "C"])
    with pytest.raises(InputError, match="as many beads as atoms"):
        fiber_of(np.eye(3))
    frozen = random_chain(50, 4)
    bond = frozen[:, 1] - frozen[:, 0]
    frozen[:, 1] = frozen[:, 0] + 0.1 * bond / np.linalg.norm(bond, axis=-1, keepdims=True)
    with pytest.raises(InputError, match=r"MOL1-C0-MOL1-C1.*minus infinity"):
        split_flow(cgml.CGDataset(frozen, chain(4), 300.0), mapping(np.eye(4)[[0, 3]]))


# ---------------------------------------------------------------- 7: invariants


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5"])
@pytest.mark.parametrize("precision", ["float", "double"])
def test_beads_are_kept_by_every_solver(matrix, method, precision) -> None:
    flow = getattr(random_flow(matrix), precision)()
    beads = np.einsum("ba,fak->fbk", matrix, random_chain(20, 7, seed=3)) + 50.0
    solver = Solver(method, steps=4, tolerance=1e-3)
    found = flow.sample(beads, 1, solver=solver)[0].numpy()
    error = np.abs(np.einsum("ba,fak->fbk", matrix, found) - beads).max()
    assert error < 1e-10
    again = flow.sample(beads, 1, solver=solver)[0].numpy()
    assert (again == found).all()
    assert np.abs(found - flow.sample(beads, 2, solver=solver)[0].numpy()).max() > 0.01


def test_the_field_itself_stays_on_the_fiber(matrix) -> None:
    """The beads are not only put back at the end."""
    flow = random_flow(matrix)
    beads = torch.tensor(np.einsum("ba,fak->fbk", matrix, random_chain(20, 7, seed=3)))
    given = flow.given(beads)
    start = given.mean + flow._noise(torch.randn(20, 7 - len(matrix), 3, dtype=torch.float64))

    def slope(time, state):
        return (flow.field(state[0], time.expand(20), given),)

    for solver in (Solver("euler", 5), Solver("rk4", 3), Solver("dopri5", tolerance=1e-4)):
        (end,) = integrate(slope, (start,), 0.0, 1.0, solver)
        assert float((end - start).abs().max()) > 0.01
        kept = torch.einsum("ba,fak->fbk", torch.tensor(matrix), given.lifted + end)
        assert float((kept - beads).abs().max()) < 1e-10


@pytest.mark.parametrize("name", ["slice", "overlap"])
def test_density_is_that_of_the_inverse_and_turns_with_the_molecule(name) -> None:
    matrix = MATRICES[name]
    flow = random_flow(matrix, strength=0.1)
    beads = np.einsum("ba,fak->fbk", matrix, random_chain(2, 7, seed=4))
    solver = Solver(steps=30)
    atoms, logs = flow.sample(beads, 5, solver=solver, density="exact")
    assert logs is not None
    back = flow.log_prob(atoms, solver=solver)
    assert float((back - logs).abs().max()) < 1e-3
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    moved = torch.tensor(atoms.numpy() @ turn + [3.0, -2.0, 7.0])
    assert float((flow.log_prob(moved, solver=solver) - back).abs().max()) < 1e-5
    mirrored = atoms * torch.tensor([1.0, 1.0, -1.0])
    assert float((flow.log_prob(mirrored, solver=solver) - back).abs().max()) > 1e-3


def test_log_density_is_the_log_determinant_of_the_sampler() -> None:
    """ln q = ln N - ln |d c(1) / d c(0)|, by finite differences through the whole solver."""
    matrix = MATRICES["overlap"]
    flow = random_flow(matrix, strength=0.1)
    beads = torch.tensor(np.einsum("ba,fak->fbk", matrix, random_chain(1, 7, seed=4)))
    given = flow.given(beads)

    def end(normals: torch.Tensor) -> torch.Tensor:
        start = given.mean + flow._noise(normals.view(1, -1, 3))
        solver = Solver(steps=15)
        found = flow._carried(start, given, 0.0, 1.0, solver, None, torch.Generator())[0]
        return torch.einsum("am,bak->bmk", flow.modes, found).flatten()

    normals = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    jacobian = torch.stack(
        [(end(normals + d) - end(normals - d)) / 2e-4 for d in 1e-4 * torch.eye(12).double()], 1
    )
    wanted = (
        -0.5 * (normals.square() + math.log(2 * math.pi)).sum() - torch.linalg.slogdet(jacobian)[1]
    )
    atoms = given.lifted + torch.einsum("am,mk->ak", flow.modes, end(normals).view(-1, 3))[None]
    found = flow.log_prob(atoms, solver=Solver(steps=30)).detach()
    assert float(found) == pytest.approx(float(wanted.detach()), abs=5e-3)


def test_hutchinson_agrees_with_the_exact_divergence() -> None:
    flow = random_flow(MATRICES["com"])
    atoms = random_chain(1, 7, seed=8)
    exact = float(flow.log_prob(atoms, solver=Solver(steps=10)))
    many = np.repeat(atoms, 400, 0)
    found = flow.log_prob(many, density="hutchinson", solver=Solver(steps=10), seed=3).numpy()
    assert abs(found.mean() - exact) < 4 * found.std() / 400**0.5
    assert found.std() > 1e-3


def test_every_parameter_is_trained() -> None:
    flow = random_flow(MATRICES["partial"])
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(16, 7, 3, generator=generator, dtype=torch.float64)
    time = torch.rand(16, generator=generator, dtype=torch.float64)
    error = flow.squared_error(torch.tensor(random_chain(16, 7, 9)), normals, time)
    assert error.shape == (16,)
    error.mean().backward()
    assert not [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]


# ---------------------------------------------------------------- 1, 2, 4: Gaussian molecules


def gaussian_flow(matrix: np.ndarray, precision: np.ndarray, noise: float | None) -> FiberFlow:
    """The split-flow of exp(-r P r / 2) on each axis, P having no centre of mass; exact."""
    atoms, top = matrix.shape[1], chain(matrix.shape[1])
    beads = chain(len(matrix))
    fiber = fiber_of(matrix, top.bonds)
    inner = fiber.basis @ precision @ fiber.basis.T
    values, vectors = np.linalg.eigh(np.linalg.inv(inner))
    # Mean of c at given R, from the lift on; then by vectors from the home bead to others.
    onto = -np.linalg.solve(inner, fiber.basis @ precision @ fiber.lift)
    mean_of = fiber.basis.T @ onto  # (atoms, beads)
    assert np.abs(mean_of.sum(1)).max() < 1e-9
    around, mean = frame_indices(beads), np.zeros((atoms, FRAME_VECTORS))
    for atom, home in enumerate(fiber.home):
        for k, bead in enumerate(around[home]):
            if bead != home:
                mean[atom, k] = mean_of[atom, bead]
    widths = np.sqrt(values)
    names = tuple(f"MOL-C{k}" for k in range(atoms))
    kinds = Kinds(names, ("self",), (0.2,), (0.1,), 0.3, atoms, 0.01)
    if ((matrix != 0).sum(1) > 1).any():
        extra = np.flatnonzero((matrix != 0).sum(1) != 1)
        kinds = replace(kinds, sites=(*names, *(f"MOL-C{b} bead" for b in extra)))
    return FiberFlow(
        top, 300.0, beads, matrix.tolist(), mean.tolist(), (fiber.basis.T @ vectors).tolist(),
        widths.tolist(), (widths if noise is None else np.full(len(widths), noise)).tolist(),
        kinds, width=12, layers=1, heads=3,
    ).double()  # fmt: skip


def springs(atoms: int, stiffness: float, seed: int | None = None) -> np.ndarray:
    """P of a chain of springs, with a few more between all atoms by chance."""
    steps = np.diff(np.eye(atoms), axis=0)
    found = stiffness * steps.T @ steps
    if seed is not None:
        extra = np.abs(np.random.default_rng(seed).normal(size=(atoms, atoms))) * stiffness / 3
        extra = np.triu(extra, 1) + np.triu(extra, 1).T
        found += np.diag(extra.sum(1)) - extra
    return found


EXACT = Solver("dopri5", tolerance=1e-13)


@pytest.mark.parametrize("noise", [pytest.param(None, marks=pytest.mark.slow), 0.08])
@pytest.mark.parametrize("name", ["slice", "overlap"])
def test_gaussian_molecules_are_exact(name, noise) -> None:
    """Entropy, fiber averages and W = E - TS in closed form, with the velocity that is known."""
    matrix, precision = MATRICES[name], springs(7, 100.0, seed=5)
    flow = gaussian_flow(matrix, precision, noise)
    beads = np.einsum("ba,fak->fbk", matrix, random_chain(2, 7, seed=6))
    frames = BeadFrames(beads, flow.bead_topology)
    inner = flow.fiber.basis @ precision @ flow.fiber.basis.T
    wanted = 1.5 * (len(inner) * math.log(2 * math.pi * math.e) - np.linalg.slogdet(inner)[1])

    def energy(r: np.ndarray) -> np.ndarray:
        return 0.5 * KT * np.einsum("fak,ac,fck->f", r, precision, r)

    parts = decompose(flow, frames, energy, samples=2, solver=EXACT)
    # W in closed form: the least energy on the fiber less the Gaussian integral.
    lowest = flow.fiber.place(beads, flow.given(torch.tensor(beads)).mean.numpy())
    log_z = 1.5 * (len(inner) * math.log(2 * math.pi) - np.linalg.slogdet(inner)[1])
    exact_w = energy(lowest) - KT * (log_z - flow.fiber.log_volume)
    assert np.abs(parts.mean_force_potential - exact_w).max() < 1e-10
    assert np.abs(parts.gap).max() < 1e-10
    # The chain rule: ln p(r) = ln p(R) + ln p(r | R), whatever the sample.
    atoms, logs = flow.sample(beads[:1], 3, solver=EXACT, density="exact")
    whole = -energy(atoms.numpy()) / KT - (-exact_w[:1] / KT)
    assert np.abs(whole - (logs.numpy() + flow.fiber.log_volume)).max() < 1e-10
    # Averages over samples have their own noise.
    one = BeadFrames(beads[:1], flow.bead_topology)
    found = mapping_entropy(flow, one, 2, convention="coordinates", solver=EXACT)
    assert np.abs(found.values - wanted).max() < 1e-10
    quick = {"solver": Solver(steps=4), "seed": 1}
    thermodynamic = mapping_entropy(flow, frames, 2, **quick)
    same = mapping_entropy(flow, frames, 2, convention="coordinates", **quick)
    shift = same.values - thermodynamic.values
    assert np.abs(shift - flow.fiber.log_volume).max() < 1e-10
    mean, error = fiber_average(flow, frames, energy, 500)
    averages = energy(lowest) + KT * flow.removed / 2
    assert (np.abs(mean - averages) < 4 * error).all()


@pytest.mark.parametrize(("every", "wanted"), [(2, 3.2170948), (4, 10.6910053)])
def test_bead_spring_entropy_is_the_known_constant(every, wanted) -> None:
    """Keep every m-th bead of an ideal chain: 3/2 [(m - 1) ln(2 pi e / kappa) - ln m] a bridge."""
    atoms = 2 * every + 1
    flow = gaussian_flow(np.eye(atoms)[::every], springs(atoms, 1.0), None)
    assert gaussian_entropy(flow.spread.numpy()) == pytest.approx(2 * wanted, abs=1e-6)
    beads = random_chain(1, 3, seed=2, size=1.0)
    frames = BeadFrames(beads, flow.bead_topology)
    found = mapping_entropy(flow, frames, 2, solver=Solver(steps=20))
    assert found.values[0] == pytest.approx(2 * wanted, abs=1e-4)
    angstrom = mapping_entropy(
        flow, frames, 2, solver=Solver(steps=10), length_unit="angstrom", seed=4
    )
    nanometre = mapping_entropy(flow, frames, 2, solver=Solver(steps=10), seed=4)
    assert angstrom.per_degree[0] - nanometre.per_degree[0] == pytest.approx(math.log(10))
    assert "per angstrom" in angstrom.text() and "W = E - TS" in angstrom.text()


@pytest.mark.parametrize("ratio", [0.1, 0.5, 2.0])
def test_divergence_of_a_known_velocity(ratio) -> None:
    """The integral of the divergence is d ln(s / sigma), by fixed steps to 1e-3 a degree."""
    sigma = 0.1
    flow = gaussian_flow(np.eye(3)[[0, 2]], springs(3, 0.5 / (ratio * sigma) ** 2), sigma)
    beads = torch.tensor(random_chain(5, 2, seed=1))
    given = flow.given(beads)
    start = given.mean + flow._noise(torch.ones(5, 1, 3, dtype=torch.float64))
    for solver, error in ((Solver(steps=20), 1e-3), (EXACT, 1e-10)):
        total = flow._carried(start, given, 0.0, 1.0, solver, "exact", torch.Generator())[1]
        assert float((total / 3 - math.log(ratio)).abs().max()) < error


def test_kinds_by_the_graph_are_shared_along_a_chain() -> None:
    """Inner atoms of alike beads learn together; the ends, and rigid copies of them, do not."""
    generator = np.random.default_rng(0)
    positions = np.cumsum(generator.normal(size=(60, 24, 3)), 1) * 0.05
    matrix = np.kron(np.eye(6), np.full((1, 4), 0.25))
    data = cgml.CGDataset(positions, chain(24), 300.0)
    by_name, by_graph = (
        split_flow(data, mapping(matrix), kinds=kinds, width=12, layers=1, heads=3)
        for kinds in ("names", "graph")
    )
    assert len(by_graph.kinds.sites) < len(by_name.kinds.sites) / 2
    assert len(by_graph.kinds.pairs) < len(by_name.kinds.pairs) / 2
    site = by_graph.sites.site
    assert site[8] == site[12] and site[9] == site[13] and site[0] != site[8] != site[9]
    beads = by_graph.fiber.beads_of(positions[:3])
    made, logs = by_graph.sample(beads, 1, solver=Solver(steps=2), density="hutchinson")
    assert np.abs(by_graph.fiber.beads_of(made.numpy()) - beads).max() < 1e-12
    assert torch.isfinite(logs).all()
    with pytest.raises(InputError, match="choose of names, graph"):
        split_flow(data, mapping(matrix), kinds="types")


def test_equivalent_atoms_of_one_atom_are_told_apart() -> None:
    """Three ends of one atom are interchangeable, but their order is kept by their own kinds."""
    names = surroundings(["C"] * 5, [(0, 1), (1, 2), (1, 3), (1, 4)])
    assert names[0] == names[2] == names[3] == names[4] != names[1]
    top = replace(chain(5), bonds=((0, 1), (1, 2), (1, 3), (1, 4)))
    positions = np.random.default_rng(1).normal(size=(40, 5, 3)) * 0.1
    data = cgml.CGDataset(positions, top, 300.0)
    flow = split_flow(data, mapping(np.eye(5)[:2]), kinds="graph", width=12, layers=1, heads=3)
    assert len(set(flow.sites.site.tolist())) == 5


# ---------------------------------------------------------------- 2, 3, 5, 6: trained


def trained(
    positions: np.ndarray, matrix: np.ndarray, epochs: int, schedule: str = "cosine", **settings
) -> FiberFlow:
    data = cgml.CGDataset(positions, chain(positions.shape[1]), 300.0)
    train, valid = data.split(0.9)
    flow = split_flow(train, mapping(matrix), **{"width": 24, "layers": 2, "heads": 6, **settings})
    fit_flow(flow, train, valid, epochs=epochs, batch_size=256, learning_rate=1e-2,
             schedule=schedule)  # fmt: skip
    return flow


def ends(frames: int, seed: int, low: float = 0.2, high: float = 0.4) -> np.ndarray:
    """Two atoms at uniform distances (frames, 2, 3)."""
    generator = np.random.default_rng(seed)
    axis = generator.normal(size=(frames, 3))
    axis *= generator.uniform(low, high, (frames, 1)) / np.linalg.norm(axis, axis=1, keepdims=True)
    return np.stack([0 * axis, axis], 1)


def entropies(flow: FiberFlow, distances: list[float], samples: int = 60) -> np.ndarray:
    beads = np.array([[[0, 0, 0], [d, 0, 0]] for d in distances])
    frames = BeadFrames(beads, flow.bead_topology)
    return mapping_entropy(flow, frames, samples, solver=Solver(steps=16)).values


def test_trained_entropy_of_a_chain() -> None:
    positions = random_chain(4000, 5, seed=1, size=1.0) - np.arange(5)[:, None] * [0.05, 0, 0]
    flow = trained(positions, np.eye(5)[::2], 16, "warmup_cosine", prior=0.5)
    test = random_chain(100, 5, seed=2, size=1.0) - np.arange(5)[:, None] * [0.05, 0, 0]
    frames = BeadFrames(test[:, ::2], flow.bead_topology)
    model = mapping_entropy(flow, frames, 4, solver=Solver(steps=8))
    data = data_entropy(flow, test, solver=Solver(steps=8))
    assert abs(model.mean[0] - 2 * 3.2170948) / flow.removed < 0.02
    assert data.mean[0] > 2 * 3.2170948 - 4 * data.mean[1]


def test_trained_entropy_depends_on_the_beads() -> None:
    """An atom between two others, the more at large the further they are apart."""

    def width(distance: np.ndarray) -> np.ndarray:
        return 0.02 + 0.2 * (distance - 0.2)

    kept = ends(6000, 2)
    distance = np.linalg.norm(kept[:, 1], axis=-1)
    noise = np.random.default_rng(3).normal(size=(6000, 3)) * width(distance)[:, None]
    positions = np.stack([kept[:, 0], kept.mean(1) + noise, kept[:, 1]], 1)
    flow = trained(positions, np.eye(3)[[0, 2]], epochs=60)
    asked = [0.22, 0.26, 0.3, 0.34, 0.38]
    wanted = [gaussian_entropy(width(np.array([d]))) for d in asked]
    gap = (entropies(flow, asked) - wanted) / 3
    assert abs(gap.mean()) < 0.02
    assert np.abs(gap).max() < 0.08  # shrunk towards the mean, the more the less it is trained


def ring_entropy(distance: float, length: float, width: float) -> float:
    """Entropy of an atom held by stiff springs to both ends, by quadrature over the half plane."""

    def energy(rho: float, z: float) -> float:
        one, other = math.hypot(rho, z + distance / 2), math.hypot(rho, z - distance / 2)
        return ((one - length) ** 2 + (other - length) ** 2) / (2 * width**2)

    def over(function) -> float:
        return quadrature.dblquad(
            lambda z, rho: 2 * math.pi * rho * function(energy(rho, z)), 0, 0.3, -0.15, 0.15,
            epsabs=1e-12,
        )[0]  # fmt: skip

    total = over(lambda e: math.exp(-e))
    return math.log(total) + over(lambda e: e * math.exp(-e)) / total


def ring_samples(kept: np.ndarray, length: float, width: float, seed: int) -> np.ndarray:
    """Rejection from a box about the middle."""
    generator = np.random.default_rng(seed)
    found = np.full((len(kept), 3), np.nan)
    middle = kept.mean(1)
    while (todo := np.isnan(found[:, 0])).any():
        tried = middle[todo] + generator.uniform(-0.22, 0.22, (int(todo.sum()), 3))
        energy = sum(
            (np.linalg.norm(tried - kept[todo, k], axis=-1) - length) ** 2 for k in (0, 1)
        ) / (2 * width**2)
        kept_now = generator.random(len(tried)) < np.exp(-energy)
        found[np.flatnonzero(todo)[kept_now]] = tried[kept_now]
    return found


def test_trained_entropy_of_a_stretched_triatomic() -> None:
    """A ring of places that closes as the ends are pulled apart: the entropy falls."""
    kept = ends(6000, 4, 0.12, 0.28)
    positions = np.stack([kept[:, 0], ring_samples(kept, 0.15, 0.015, 5), kept[:, 1]], 1)
    flow = trained(positions, np.eye(3)[[0, 2]], epochs=50)
    asked = [0.16, 0.2, 0.25]
    wanted = [ring_entropy(d, 0.15, 0.015) for d in asked]
    assert np.diff(wanted).max() < 0  # falls
    found = entropies(flow, asked)
    assert np.abs(found - wanted).max() / 3 < 0.05
    assert abs(np.mean(found - wanted)) / 3 < 0.02


@pytest.mark.slow
def test_trained_flow_keeps_both_modes() -> None:
    """Two equal separated Gaussians along the bond: ln 2 more than one."""
    kept = ends(6000, 6, 0.3, 0.4)
    axis = kept[:, 1] / np.linalg.norm(kept[:, 1], axis=-1, keepdims=True)
    generator = np.random.default_rng(7)
    side = generator.choice([-1.0, 1.0], 6000)[:, None] * 0.06
    noise = generator.normal(size=(6000, 3)) * 0.012
    positions = np.stack([kept[:, 0], kept.mean(1) + side * axis + noise, kept[:, 1]], 1)
    flow = trained(positions, np.eye(3)[[0, 2]], epochs=50)
    wanted = gaussian_entropy(np.array([0.012])) + math.log(2)
    found = entropies(flow, [0.32, 0.35, 0.38], samples=500)
    assert abs(found.mean() - wanted) / 3 < 0.02
    beads = np.tile([[[0, 0, 0], [0.35, 0, 0]]], (1000, 1, 1))
    drawn = flow.sample(beads, 1)[0].numpy()[:, 1, 0] > 0.175
    assert abs(drawn.mean() - 0.5) < 0.06


@pytest.mark.slow
def test_compiled_training_is_the_same_and_leaves_nothing_behind(tmp_path) -> None:
    kept = ends(300, 2)
    noise = np.random.default_rng(3).normal(size=(300, 3)) * 0.03
    positions = np.stack([kept[:, 0], kept.mean(1) + noise, kept[:, 1]], 1)
    train, valid = cgml.CGDataset(positions, chain(3), 300.0).split(0.8)
    losses = []
    for compiled in (False, True):
        flow = split_flow(train, mapping(np.eye(3)[[0, 2]]), width=12, layers=1, heads=3)
        result = fit_flow(flow, train, valid, epochs=2, batch_size=60, compile=compiled)
        losses.append([h["valid_loss"] for h in result.history])
        assert "forward" not in vars(flow.velocity)
    assert np.allclose(*losses, rtol=1e-4)
    cgml.save_flow(tmp_path / "a.flow", result)


# ---------------------------------------------------------------- which map


def test_maps_are_ranked_by_what_they_lose() -> None:
    """Stiff bonds within beads lose little, soft ones much; by closed forms."""
    stiff = np.array([400.0, 20.0, 400.0, 20.0, 400.0])
    steps = np.diff(np.eye(6), axis=0)
    precision = steps.T @ (stiff[:, None] * steps)
    first = np.eye(6)[[0, 2, 4]]  # one atom of each stiff pair
    second = np.eye(6)[[0, 1, 5]]
    flows = {
        name: gaussian_flow(m, precision, None) for name, m in (("pairs", first), ("ends", second))
    }
    inner = {n: f.fiber.basis @ precision @ f.fiber.basis.T for n, f in flows.items()}
    exact = {
        n: 1.5 * (3 * math.log(2 * math.pi * math.e) - np.linalg.slogdet(p)[1])
        for n, p in inner.items()
    }
    generator = np.random.default_rng(0)
    lengths = generator.normal(size=(24, 5, 3)) / np.sqrt(stiff)[:, None]
    positions = np.concatenate([np.zeros((24, 1, 3)), np.cumsum(lengths, 1)], 1)
    quick = Solver(steps=5)
    ranked = compare_mappings(flows, positions, samples=2, solver=quick)
    assert [one.name for one in ranked] == ["pairs", "ends"] and exact["pairs"] < exact["ends"]
    for one in ranked:
        assert abs(one.data.mean[0] - exact[one.name]) < 4 * one.data.mean[1]
        assert one.model.mean[0] == pytest.approx(exact[one.name], abs=5e-3)
        assert abs(one.gap[0]) < 4 * one.gap[1]
    flows["fewer"] = gaussian_flow(np.eye(6)[[0, 5]], precision, None)
    with pytest.raises(InputError, match="different numbers of beads.*reference='volume'"):
        compare_mappings(flows, positions)
    names = [
        one.name for one in compare_mappings(flows, positions, reference="volume", solver=quick)
    ]
    scaled = {n: gaussian_flow(m, precision / 100, None) for n, m in
              (("pairs", first), ("ends", second), ("fewer", np.eye(6)[[0, 5]]))}  # fmt: skip
    again = [
        one.name
        for one in compare_mappings(scaled, 10 * positions, reference="volume", solver=quick)
    ]
    assert names == again  # another unit of length


def test_files_and_other_molecules(tmp_path) -> None:
    flow = random_flow(MATRICES["com"])
    cgml.save_flow(tmp_path / "a.flow", flow)
    loaded = cgml.load_split_flow(tmp_path / "a.flow")
    atoms = random_chain(3, 7, seed=8)
    assert float((loaded.log_prob(atoms) - flow.log_prob(atoms)).abs().max()) < 1e-12
    with pytest.raises(InputError, match="split-flow"):
        cgml.load_flow(tmp_path / "a.flow")
    with pytest.raises(InputError, match="Gaussian of its own molecule"):
        loaded.for_molecule(chain(7), mapping(MATRICES["slice"]))
    data = cgml.CGDataset(random_chain(300, 7), chain(7), 300.0)
    general = split_flow(data, mapping(MATRICES["slice"]), prior=0.1, width=12, layers=1, heads=3)
    other = general.double().for_molecule(chain(5), mapping(np.eye(5)[[0, 2, 4]]))
    assert other.sample(random_chain(4, 3), 0)[0].shape == (4, 5, 3)
    assert other.velocity is general.velocity
    longer = chain(9)
    with pytest.raises(InputError, match=r"MOL1-C7.*not learned"):
        general.for_molecule(longer, mapping(np.eye(9)[[0, 4, 8]]))


def test_several_molecules_are_learned_together() -> None:
    collection = cgml.DatasetCollection({
        "five": cgml.CGDataset(random_chain(200, 5), chain(5), 300.0),
        "seven": cgml.CGDataset(random_chain(200, 7, 1), chain(7), 300.0),
    })  # fmt: skip

    def every_other(top):
        return slice_mapping(top, list(range(0, top.n_atoms, 2)))

    flow = split_flow(collection, every_other, prior=0.15, width=12, layers=1, heads=3)
    result = fit_flow(flow, collection, collection, epochs=2, batch_size=50)
    assert set(result.molecules) == {"five", "seven"}
    seven = result.molecules["seven"].pmf.flow
    assert seven.velocity is result.molecules["five"].pmf.flow.velocity
    assert seven.double().sample(random_chain(2, 4), 0)[0].shape == (2, 7, 3)
    with pytest.raises(InputError, match="share no Gaussian"):
        split_flow(collection, every_other)


def test_bad_arguments_are_named() -> None:
    flow = random_flow(MATRICES["slice"])
    with pytest.raises(InputError, match="choose exact or hutchinson"):
        flow.sample(random_chain(2, 3), density="about")
    with pytest.raises(InputError, match="takes 3 beads"):
        flow.sample(random_chain(2, 4))
