"""Repulsion by neighbour search against the sum over a list of pairs."""

import torch

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import geometry
from openmm_cgml.pmf.core import build, energy_and_forces
from openmm_cgml.pmf.prior import Repulsion
from openmm_cgml.pmf.short_range import ShortRangeRepulsion, close_pairs

TYPES = ["A", "B"]
STRENGTH = [[2.0, 3.0], [3.0, 1.5]]
RADIUS = [[0.30, 0.35], [0.35, 0.4]]
BOX = torch.tensor([[2.5, 0, 0], [0.4, 3.0, 0], [-0.3, 0.5, 2.8]], dtype=torch.float64)


def chains(count: int) -> cgml.CGTopology:
    """Chains of five beads each."""
    n = 5 * count
    bonds = tuple((k, k + 1) for k in range(n - 1) if k % 5 != 4)
    kinds = tuple(TYPES[k % 2] for k in range(n))
    names = tuple(f"B{k}" for k in range(n))
    return cgml.CGTopology(
        names, kinds, ("M",) * n, tuple(range(n)), ("A",) * n, bonds, (12.0,) * n
    )


def make(topology: cgml.CGTopology, dense: bool = False) -> ShortRangeRepulsion:
    repulsion = ShortRangeRepulsion(
        topology.bead_types, TYPES, STRENGTH, RADIUS, close_pairs(topology, 3), dense
    )
    return repulsion.double()


def positions(copies: int, beads: int) -> torch.Tensor:
    rng = np.random.default_rng(2)
    return torch.tensor(2.4 * rng.random((copies, beads, 3)))


@pytest.mark.parametrize("box", [None, BOX], ids=["vacuum", "periodic"])
@pytest.mark.parametrize("dense", [True, False])
def test_it_is_the_sum_over_pairs_up_to_what_is_switched_off(dense, box) -> None:
    topology = chains(8)
    x = positions(3, len(topology))
    pairs = [
        p for p in geometry.all_pairs(len(topology)).tolist()
        if tuple(p) not in close_pairs(topology, 3)
    ]  # fmt: skip
    kinds = [[TYPES.index(topology.bead_types[k]) for k in p] for p in pairs]
    listed = Repulsion(
        pairs, [STRENGTH[i][j] for i, j in kinds], [RADIUS[i][j] for i, j in kinds]
    ).double()
    expected, found = listed(x, box), make(topology, dense)(x, box)
    # Only pairs farther apart than the largest radius differ, by less than all of them.
    distances = geometry.distances(x, torch.tensor(pairs), box)
    beyond = torch.where(distances > 0.4, listed.strength * (listed.radius / distances) ** 12, 0)
    assert (found <= expected).all() and (expected - found <= beyond.sum(-1)).all()
    assert (expected - found).min() > 0 and (distances < 0.3).any()
    forces = energy_and_forces(make(topology, dense), x, box)[1]
    by_list = energy_and_forces(listed, x, box)[1]
    assert (forces - by_list).abs().max() < 500 < by_list.abs().max() / 100


def test_cells_equal_all_pairs_also_scripted() -> None:
    topology = chains(40)  # enough beads for the neighbour search to sort
    x = positions(2, len(topology))
    dense, cells = make(topology, True), make(topology)
    script = torch.jit.script(cells)
    expected, forces = energy_and_forces(dense, x, BOX)
    for program in (cells, script):
        energies, found = program.energies_and_forces(x, BOX)
        assert torch.allclose(energies, expected, rtol=1e-10)
        assert torch.allclose(found, forces, rtol=1e-8, atol=1e-8 * forces.abs().max())


def test_bonded_beads_do_not_repel() -> None:
    topology = chains(1)
    assert close_pairs(topology, 3) == [
        (0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4)
    ]  # fmt: skip
    x = torch.zeros(1, 5, 3, dtype=torch.float64)
    x[0, :, 0] = torch.tensor([0.0, 0.1, 0.2, 5.0, 10.0])
    assert make(topology)(x).item() == 0
    x[0, 3, 0] = 0.5  # three bonds from the first; largest radius 0.4
    distance = 0.5
    share = (distance - 0.4) / 0.4
    switch = 1 - 10 * share**3 + 15 * share**4 - 6 * share**5
    expected = 3.0 * (0.35 / distance) ** 12 * switch
    assert make(topology)(x).item() == pytest.approx(expected, rel=1e-6)


def test_another_molecule_and_a_file() -> None:
    small, large = chains(1), chains(30)
    moved = make(small).for_topology(large)
    x = positions(1, len(large))
    assert torch.equal(moved(x), make(large)(x))
    assert not moved.dense and moved.for_topology(small).dense
    assert torch.equal(build(moved.architecture()).double()(x), moved(x))


def test_tables_must_be_symmetric() -> None:
    with pytest.raises(cgml.InputError, match="radius .* symmetric table of 2 by 2"):
        ShortRangeRepulsion(["A"], TYPES, STRENGTH, [[0.3, 0.1], [0.2, 0.3]])
