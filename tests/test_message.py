"""What message-passing networks promise beyond the contract: adjoints, types, boxes, tables."""

import math

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.pmf.core import build, energy_and_forces
from openmm_cgml.pmf.message import MOST_DENSE, MessagePMF
from openmm_cgml.pmf.painn import PaiNN
from openmm_cgml.pmf.radial import RadialFilter, cutoff_envelope
from openmm_cgml.pmf.schnet import SchNet

NETWORKS = {"schnet": SchNet, "painn": PaiNN}
TYPES = ["A", "B", "A", "C", "B", "A"]


def make(name: str, types=TYPES, dense: bool = True, cutoff: float = 0.9, **more) -> MessagePMF:
    torch.manual_seed(1)
    network = NETWORKS[name](types, ["A", "B", "C"], cutoff, width=12, basis=10, **more)
    other = type(network)(**(network.arguments() | {"dense": dense}))
    for key, child in network.named_children():
        setattr(other, key, child)
    return other.double()


def frames(copies: int, beads: int = 6, seed: int = 0) -> torch.Tensor:
    """Beads on a rough grid, so that none coincide."""
    rng = np.random.default_rng(seed)
    side = math.ceil(beads ** (1 / 3))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:beads]
    return torch.tensor(0.4 * grid + 0.1 * rng.standard_normal((copies, beads, 3)))


@pytest.fixture(params=NETWORKS)
def name(request) -> str:
    return request.param


def test_adjoints_written_by_hand_can_be_differentiated_again(name) -> None:
    network, positions = make(name, TYPES[:4]), frames(1, 4).requires_grad_(True)
    assert torch.autograd.gradcheck(network, (positions,))
    assert torch.autograd.gradgradcheck(network, (positions,))


def test_one_network_serves_molecules_of_the_same_types(name) -> None:
    """Two far apart have the sum of their energies, each from the network made for it."""
    network, positions = make(name), frames(3)
    pair = network.for_topology(topology(TYPES + TYPES[:4]))
    far = torch.cat([positions, positions[:, :4] + 7.0], dim=1)
    part = network.for_topology(topology(TYPES[:4]))
    assert torch.allclose(pair(far), network(positions) + part(positions[:, :4]), rtol=1e-12)
    for mine, other in zip(network.parameters(), pair.parameters(), strict=True):
        assert mine is other
    with pytest.raises(cgml.InputError, match="bead type X is none of those"):
        network.for_topology(topology(["A", "X"]))
    with pytest.raises(cgml.InputError, match="knows one molecule only"):
        cgml.SumPMF(network, One()).for_topology(topology(TYPES))


class One(cgml.PMF):
    """Nothing."""

    def forward(self, positions, box_vectors: torch.Tensor | None = None):
        return positions.sum((1, 2))


def topology(types) -> cgml.CGTopology:
    n = len(types)
    names, types = tuple(f"B{k}" for k in range(n)), tuple(types)
    bonds = tuple((k, k + 1) for k in range(n - 1))
    return cgml.CGTopology(
        names, types, ("M",) * n, tuple(range(n)), ("A",) * n, bonds, (12.0,) * n
    )


def test_painn_without_triple_products_is_blind_to_mirrors() -> None:
    positions = frames(3)
    mirrored = positions * torch.tensor([1.0, 1.0, -1.0])
    blind = make("painn", chiral=False)
    assert (blind(positions) - blind(mirrored)).abs().max() < 1e-12


def test_a_box_too_small_for_the_cutoff_gives_no_number(name) -> None:
    network, positions = make(name), frames(2)
    small = torch.diag(torch.tensor([1.7, 3.0, 3.0], dtype=torch.float64))
    assert network(positions, small).isnan().all()
    cells = make(name, dense=False)
    with pytest.raises(cgml.InputError, match="cutoff"):
        cells(positions, small)
    assert torch.jit.script(cells)(positions, small).isnan().all()


def test_tables_are_the_network(name) -> None:
    network, positions = make(name), frames(20)
    energies, forces = energy_and_forces(network, positions)
    errors = []
    for knots in (100, 200):
        fast = network.tabulated(knots)
        found, found_forces = energy_and_forces(fast, positions)
        errors.append((found_forces - forces).abs().max() / forces.abs().max())
        again = build(fast.architecture()).double()
        again.load_state_dict(fast.state_dict())
        assert torch.equal(again(positions), found)
        assert torch.allclose(torch.jit.script(fast)(positions), found, rtol=1e-12)
        # Of the tabulated energy itself, so that dynamics conserve it.
        shift = torch.zeros_like(positions)
        shift[:, 1, 2] = 1e-6
        slope = (fast(positions + shift) - fast(positions - shift)) / 2e-6
        assert torch.allclose(-slope, found_forces[:, 1, 2], rtol=1e-4, atol=1e-6)
    assert errors[1] < 1e-4 and 5 < errors[0] / errors[1] < 12  # third order in the slope
    plain = fast.tabulated(0)
    assert torch.equal(plain(positions), energies)


def test_cubic_functions_are_tabulated_exactly() -> None:
    """Between knots the table is a cubic with the right values and slopes at both ends."""
    torch.manual_seed(0)
    radial = RadialFilter(8, 6, 5, cutoff=1.0, knots=16).double()
    radial.fill_table()
    knots = torch.arange(1, 16, dtype=torch.float64)[None] / 16
    exact = radial.layers(radial.basis(knots)) * cutoff_envelope(knots, 1.0)[..., None]
    assert torch.allclose(radial.interpolate(knots, False), exact, rtol=1e-12)
    close = radial.interpolate(knots - 1e-9, True), radial.interpolate(knots + 1e-9, True)
    assert torch.allclose(*close, atol=1e-5)
    assert (
        radial.interpolate(torch.tensor([[1.0, 3.0]], dtype=torch.float64), False).abs().max() == 0
    )


def test_large_molecules_use_cells(dataset) -> None:
    n = MOST_DENSE + 1
    rng = np.random.default_rng(0)
    big = cgml.CGDataset(rng.random((3, n, 3)) * 3, topology(["A"] * n), temperature=300.0)
    assert not cgml.PMFS["schnet"](big).dense and cgml.PMFS["schnet"](dataset).dense
    assert cgml.PMFS["painn"](big, dense=True).dense
    with pytest.raises(cgml.InputError, match="cutoff is -1"):
        cgml.PMFS["schnet"](dataset, cutoff=-1.0)


def test_a_collection_gives_the_types_of_all_molecules() -> None:
    sets = {
        key: cgml.CGDataset(frames(4, len(t)).numpy(), topology(t), temperature=300.0)
        for key, t in (("one", ["A", "B"]), ("two", ["B", "C", "C"]))
    }
    network = cgml.PMFS["schnet"](cgml.DatasetCollection(sets))
    assert network.type_names == ["A", "B", "C"] and network.beads == 2
    other = network.for_topology(sets["two"].topology)
    assert other(torch.as_tensor(sets["two"].positions).float()).shape == (4,)


def test_a_model_file_holds_tables_and_says_what_they_change(name, dataset, tmp_path) -> None:
    network = cgml.PMFS[name](dataset, width=12, seed=3)
    with torch.no_grad():  # as strong as a trained one
        network.output[2].weight.mul_(
            3000
            / network.energies_and_forces(
                torch.as_tensor(dataset.positions[:99], dtype=torch.float32)
            )[1]
            .abs()
            .max()
        )
    pmf = cgml.SumPMF(cgml.fit_prior(dataset), network)
    cgml.save_model(tmp_path / "model.pt", pmf, dataset)
    model = cgml.load_model(tmp_path / "model.pt")
    assert 0 < model.card["largest_error_of_tables"] < 0.05  # kJ/mol/nm
    positions = torch.tensor(dataset.positions[::500], dtype=torch.float32)
    energies, forces = pmf.energies_and_forces(positions)
    found = model.energy_and_forces(positions.numpy())
    assert np.allclose(found[0], energies.detach(), rtol=1e-4, atol=1e-2)
    assert np.allclose(found[1], forces.detach(), rtol=1e-3, atol=0.5)
    assert torch.equal(model.rebuild()(positions), pmf(positions))  # the network, to train it
    cgml.save_model(tmp_path / "plain.pt", pmf, dataset, tabulate=False)
    plain = cgml.load_model(tmp_path / "plain.pt")
    assert plain.card["largest_error_of_tables"] is None
