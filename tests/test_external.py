"""Networks of other packages: units, types, calls, boxes, and what is refused.

`PairGraph` is called and answers as TorchMD-Net's networks do, so that this is tested without
them; the example with a real one runs where torchmd-net is installed.
"""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import torch  # before openmm
from torch import Tensor, nn

import numpy as np
import openmm
import pytest

import openmm_cgml as cgml
from openmm_cgml import geometry
from openmm_cgml.force import BACKENDS
from openmm_cgml.pmf.core import build, energy_and_forces
from openmm_cgml.pmf.external import ExternalPMF, external
from openmm_cgml.trusted_program import require_trusted
from openmm_cgml.units import thermal_energy

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "external_network"
WEIGHTS = [0.3, 0.7, -0.4, 1.1, 0.9, -0.2]  # by the module's types
NUMBERS = {"C": 4, "CA": 1, "N": 3}
KCAL = 4.184
BOX = torch.tensor([[2.5, 0, 0], [0.4, 3.0, 0], [-0.3, 0.5, 2.8]], dtype=torch.float64)


class PairGraph(nn.Module):
    """Sum over pairs of w w' exp(-r / 4), in its own units; the signature of TorchMD-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(WEIGHTS, dtype=torch.float64))

    def forward(
        self,
        z: Tensor,
        pos: Tensor,
        batch: Tensor | None = None,
        box: Tensor | None = None,
        q: Tensor | None = None,
        extra_args: dict[str, Tensor] | None = None,
        num_systems: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        copies = torch.zeros_like(z) if batch is None else batch
        first, second = torch.where(copies.unsqueeze(0) == copies.unsqueeze(1))
        keep = first < second
        first, second = first[keep], second[keep]
        lengths = geometry.norm(geometry.minimum_image(pos[second] - pos[first], box))
        w = self.weights[z]
        terms = w[first] * w[second] * torch.exp(-lengths / 4)
        energies = torch.zeros(int(copies.max()) + 1, dtype=pos.dtype, device=pos.device)
        return energies.index_add(0, copies[first], terms).unsqueeze(1), torch.empty(0)


class PairBatch(nn.Module):
    """The same energy, of a batch of copies, and without a box."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(WEIGHTS, dtype=torch.float64))

    def forward(self, positions: Tensor, types: Tensor) -> Tensor:
        pairs = torch.triu_indices(types.size(0), types.size(0), 1)
        lengths = geometry.distances(positions, pairs.t())
        w = self.weights[types]
        return (w[pairs[0]] * w[pairs[1]] * torch.exp(-lengths / 4)).sum(1)


NETWORKS = {"flat": PairGraph, "batched": PairBatch}


def by_hand(positions: Tensor, types: list[int], length: float, energy: float) -> Tensor:
    """The networks' energy of positions in nm, kJ/mol; units as `external` takes numbers."""
    w = torch.tensor(WEIGHTS, dtype=torch.float64)[types]
    lengths = torch.cdist(positions, positions) / length
    products = torch.triu(w[:, None] * w, 1)
    return energy * (products * torch.exp(-lengths / 4)).sum((1, 2))


@pytest.fixture(params=list(NETWORKS))
def pmf(request, dataset) -> ExternalPMF:
    return external(
        NETWORKS[request.param](),
        dataset,
        length_unit="angstrom",
        energy_unit="kcal/mol",
        types=NUMBERS,
        call=request.param,
    )


@pytest.fixture
def positions(dataset) -> Tensor:
    return torch.tensor(dataset.positions[::400], dtype=torch.float64)


def types_of(dataset: cgml.CGDataset) -> list[int]:
    return [NUMBERS[kind] for kind in dataset.topology.bead_types]


# ---------------------------------------------------------------- energies and forces


def test_units_and_types_are_converted(pmf, dataset, positions) -> None:
    expected = by_hand(positions, types_of(dataset), 0.1, KCAL)
    assert pmf(positions).shape == (len(positions),)
    assert torch.allclose(pmf(positions), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("length", "energy", "nm", "kj"),
    [
        ("nm", "kJ/mol", 1.0, 1.0),
        ("angstrom", "eV", 0.1, 96.48533212),
        ("bohr", "hartree", 0.0529177210903, 2625.4996394799),
        (0.5, "kT", 0.5, thermal_energy(300)),
        ("nm", 7.0, 1.0, 7.0),
    ],
)
def test_every_unit(length, energy, nm, kj, dataset, positions) -> None:
    pmf = external(PairBatch(), dataset, length_unit=length, energy_unit=energy)
    # By default types are counted in alphabetical order.
    types = [["C", "CA", "N"].index(kind) for kind in dataset.topology.bead_types]
    assert torch.allclose(pmf(positions), by_hand(positions, types, nm, kj), rtol=1e-12)


def test_forces_are_minus_the_gradient_in_nm(pmf, positions) -> None:
    forces = energy_and_forces(pmf, positions)[1]
    step = 1e-6
    for bead, axis in ((0, 0), (2, 1), (4, 2)):
        shift = torch.zeros_like(positions)
        shift[:, bead, axis] = step
        slope = (pmf(positions + shift) - pmf(positions - shift)) / (2 * step)
        assert torch.allclose(-slope, forces[:, bead, axis], rtol=1e-6, atol=1e-7)


def test_engines_get_the_same(pmf, positions) -> None:
    script = torch.jit.script(pmf.eval())
    frozen = torch.jit.freeze(script, preserved_attrs=["energies_and_forces"])
    assert "device=" not in str(script.inlined_graph)
    for x, box in ((positions, None), (positions[:1], None), (positions, BOX)):
        energies, forces = energy_and_forces(pmf, x, box)
        for program in (pmf, *3 * [script], *3 * [frozen]):
            found = program.energies_and_forces(x, box)
            assert torch.allclose(found[0], energies, rtol=1e-12)
            assert torch.allclose(found[1], forces, rtol=1e-10, atol=1e-10)


def test_networks_can_be_trained(pmf, positions) -> None:
    forces = energy_and_forces(pmf, positions, differentiable=True)[1]
    forces.square().sum().backward()
    gradient = pmf.module.weights.grad
    assert (gradient[sorted(NUMBERS.values())] != 0).all()


def test_torn_molecules_are_the_same_in_a_box(pmf, positions) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-2, 3, positions.shape, generator=generator).to(positions)
    whole, forces = energy_and_forces(pmf, positions)
    torn, torn_forces = energy_and_forces(pmf, positions + images @ BOX, BOX)
    assert torch.allclose(torn, whole, rtol=1e-10)
    assert torch.allclose(torn_forces, forces, rtol=1e-8, atol=1e-8)


def test_molecules_are_made_whole_along_bonds_and_between_parts() -> None:
    """Branches, a bond backwards in the chain, a second part: all reached from the first bead."""
    bonds = ((0, 3), (1, 3), (2, 3), (1, 4), (6, 7))
    names = tuple(f"B{k}" for k in range(8))
    topology = cgml.CGTopology(
        names, ("B",) * 8, ("M",) * 8, (1,) * 8, ("A",) * 8, bonds, (1.0,) * 8
    )
    pmf = external(PairBatch(), topology).double()
    joints = pmf.arguments()["joints"]
    assert sorted(far for _, far in joints) == list(range(1, 8))
    assert {tuple(sorted(joint)) for joint in joints} - set(bonds) == {(4, 5), (5, 6)}
    generator = torch.Generator().manual_seed(1)
    whole = 0.2 * torch.randn(3, 8, 3, generator=generator, dtype=torch.float64)
    images = torch.randint(-2, 3, whole.shape, generator=generator).to(whole)
    torn = pmf.whole(whole + images @ BOX, BOX)
    assert torch.allclose(torn - torn[:, :1], whole - whole[:, :1], atol=1e-12)


def test_another_molecule_shares_the_network(pmf, dataset) -> None:
    names = ("A", "B", "C")
    topology = cgml.CGTopology(
        names, ("CA", "N", "CA"), ("M",) * 3, (1,) * 3, ("A",) * 3, ((0, 1), (1, 2)), (1.0,) * 3
    )
    other = pmf.for_topology(topology)
    x = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(other(x), by_hand(x, [1, 3, 1], 0.1, KCAL))
    assert other.module is pmf.module
    unknown = cgml.CGTopology(
        names, ("CA", "N", "S"), ("M",) * 3, (1, 2, 3), ("A",) * 3, (), (1.0,) * 3
    )
    with pytest.raises(cgml.InputError, match="bead M3-C is of type 'S', which has no number"):
        pmf.for_topology(unknown)


# ---------------------------------------------------------------- files and OpenMM


@pytest.mark.backend
@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("call", list(NETWORKS))
def test_it_runs_in_openmm(call, backend, dataset, tmp_path) -> None:
    network = external(NETWORKS[call](), dataset, types=NUMBERS, length_unit=0.1, call=call)
    pmf = cgml.SumPMF(cgml.fit_prior(dataset), network)
    frames = torch.tensor(dataset.positions[:3], dtype=torch.float64)
    energies, forces = energy_and_forces(pmf.double(), frames)
    cgml.save_model(tmp_path / "model.pt", pmf, dataset)
    model = cgml.load_model(tmp_path / "model.pt")  # plain operators: no trust is needed
    system = model.create_system(copies=3, backend=backend)
    integrator = openmm.LangevinMiddleIntegrator(300, 5, 0.001)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, integrator, platform)
    context.setPositions(frames.reshape(-1, 3).numpy())
    state = context.getState(getEnergy=True, getForces=True)
    found = state.getForces(asNumpy=True)._value.reshape(3, -1, 3)
    assert state.getPotentialEnergy()._value == pytest.approx(energies.sum().item(), rel=1e-4)
    assert np.allclose(found, forces, rtol=1e-3, atol=1e-3 * forces.abs().max())
    integrator.step(20)
    assert np.isfinite(context.getState(getEnergy=True).getPotentialEnergy()._value)


def test_the_file_runs_without_the_class(pmf, dataset, tmp_path) -> None:
    """The network's program is in the file, with its weights; the card says how it is called."""
    cgml.save_model(tmp_path / "model.pt", pmf, dataset)
    model = cgml.load_model(tmp_path / "model.pt")
    require_trusted(torch.jit.freeze(model.file.module()), "frozen")
    found = model.energy_and_forces(dataset.positions[:4])[0]
    expected = by_hand(torch.tensor(dataset.positions[:4]).double(), types_of(dataset), 0.1, KCAL)
    assert np.allclose(found, expected, rtol=1e-5)
    arguments = model.card["architecture"]["arguments"]
    assert arguments["numbers"] == NUMBERS and arguments["length"] == 0.1
    assert json.loads(json.dumps(pmf.arguments())) == pmf.arguments()


def test_a_card_alone_does_not_make_the_network_again(pmf) -> None:
    with pytest.raises(cgml.InputError, match=r"wrap the network again with external\(\)"):
        build(pmf.architecture())


def test_torchscript_files(dataset, positions, tmp_path) -> None:
    path = tmp_path / "network.pt"
    torch.jit.script(PairGraph()).save(str(path))
    options = {"types": NUMBERS, "call": "flat", "length_unit": "angstrom"}
    with pytest.raises(cgml.InputError, match="trust=True only if you made it yourself"):
        external(path, dataset, **options)
    pmf = external(path, dataset, trust=True, **options)
    assert torch.allclose(pmf(positions), by_hand(positions, types_of(dataset), 0.1, 1.0))
    cgml.save_model(tmp_path / "model.pt", pmf, dataset)
    found = cgml.load_model(tmp_path / "model.pt").energy_and_forces(positions.numpy())[0]
    assert np.allclose(found, pmf.double()(positions).detach(), rtol=1e-5)
    path.write_bytes(b"nothing")
    with pytest.raises(cgml.InputError, match="network.pt cannot be loaded"):
        external(path, dataset, trust=True, **options)
    with pytest.raises(cgml.InputError, match="missing.pt"):
        external(tmp_path / "missing.pt", dataset, trust=True)


# ---------------------------------------------------------------- recording


class NotScript(PairBatch):
    """Python that TorchScript does not know."""

    def forward(self, positions, types):
        return super().forward(positions, types)


class BakesCopies(NotScript):
    """As many energies as there were copies when it was recorded."""

    def forward(self, positions, types):
        return super().forward(positions, types) + torch.zeros(len(list(positions)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_modules_that_do_not_compile_can_be_recorded(dataset, positions) -> None:
    with pytest.raises(cgml.InputError, match="(?s)cannot compile NotScript: .*trace=True"):
        external(NotScript(), dataset)
    pmf = external(NotScript(), dataset, types=NUMBERS, trace=True)
    for x in (positions, positions[:1]):
        expected = by_hand(x, types_of(dataset), 1.0, 1.0)
        assert torch.allclose(torch.jit.script(pmf)(x), expected)
    with pytest.raises(cgml.InputError, match="BakesCopies.* any number of copies"):
        external(BakesCopies(), dataset, trace=True)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # it warns as well
def test_records_that_go_wrong_silently_are_refused(dataset) -> None:
    class Scales(nn.Module):
        def forward(self, positions, types):
            return len(list(positions)) * positions.square().sum((1, 2))

    with pytest.raises(cgml.InputError, match="2 copies, gives other energies for 3"):
        external(Scales(), dataset, trace=True)


# ---------------------------------------------------------------- what is refused


class PerBead(nn.Module):
    def forward(self, positions: Tensor, types: Tensor) -> Tensor:
        return positions.square().sum(-1)


class Mixes(nn.Module):
    def forward(self, positions: Tensor, types: Tensor) -> Tensor:
        return positions.square().sum((1, 2)) + positions.abs().sum()


class OwnForces(nn.Module):
    """As TorchMD-Net with derivative=True: the graph is gone when the energy comes out."""

    def forward(self, positions: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        positions.requires_grad_(True)
        energies = positions.square().square().sum((1, 2))
        forces = torch.autograd.grad([energies.sum()], [positions])[0]
        assert forces is not None
        return energies, -forces


class Constant(nn.Module):
    def forward(self, positions: Tensor, types: Tensor) -> Tensor:
        return torch.ones(positions.size(0))


class Infinite(nn.Module):
    def forward(self, positions: Tensor, types: Tensor) -> Tensor:
        return (positions - positions).sum((1, 2)) / 0.0


class NeedsBox(nn.Module):
    def forward(self, positions: Tensor, types: Tensor, box: Tensor) -> Tensor:
        return positions.square().sum((1, 2))


class BoxAtTheEnd(nn.Module):
    def forward(
        self,
        positions: Tensor,
        types: Tensor,
        charges: Tensor | None = None,
        cell: Tensor | None = None,
    ) -> Tensor:
        return positions.square().sum((1, 2))


class NeedsCharges(nn.Module):
    def forward(self, positions: Tensor, types: Tensor, charges: Tensor) -> Tensor:
        return positions.square().sum((1, 2))


class TakesOne(nn.Module):
    def forward(self, positions: Tensor) -> Tensor:
        return positions.square().sum((1, 2))


class GivesDict(nn.Module):
    def forward(self, positions: Tensor, types: Tensor) -> dict[str, Tensor]:
        return {"energy": positions.square().sum((1, 2))}


class Fails(nn.Module):
    def forward(self, positions: Tensor, types: Tensor) -> Tensor:
        return positions[:, 7].square().sum(-1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (PerBead, "PerBead returns 10 numbers for 2 copies of 5 beads; return one energy a copy"),
        (Mixes, "Mixes gives the first of two copies .*copies must not see each other"),
        (
            OwnForces,
            r"OwnForces gives no energy that can be differentiated .*gradient of your own",
        ),
        (Constant, "Constant gives no energy that can be differentiated"),
        (Infinite, "Infinite gives the energies .nan, nan. .*length_unit and types"),
        (NeedsBox, r"NeedsBox takes \(positions, types, box\) .*box or None.*wrap it"),
        (BoxAtTheEnd, r"BoxAtTheEnd takes \(positions, types, charges, cell\) .*wrap it"),
        (NeedsCharges, r"NeedsCharges takes \(positions, types, charges\) .*wrap it"),
        (TakesOne, r"TakesOne takes \(positions\) but 'batched' calls it with"),
        (GivesDict, r"GivesDict returns Dict.*; return the energies, or them first in a tuple"),
        (Fails, "Fails fails when called as 'batched': .*out of (range|bounds)"),
    ],
)
def test_modules_that_are_no_pmf_are_refused(module, message, dataset) -> None:
    with pytest.raises(cgml.InputError, match=f"(?s){message}"):
        external(module(), dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"call": "flt"}, "call is 'flt'; choose one of batched, flat"),
        ({"length_unit": "pm"}, "length unit 'pm' is unknown; choose one of nm"),
        ({"length_unit": -1.0}, "length unit is -1.0; give a name or a positive number"),
        ({"energy_unit": "cal"}, "energy unit 'cal' is unknown; choose one of kJ/mol.*kT"),
        ({"types": {"C": 0, "N": 1}}, "bead ALA2-CA is of type 'CA', which has no number"),
        ({"types": {"C": 0, "N": 1, "CA": 99}}, "PairBatch fails when called"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(options, message, dataset) -> None:
    with pytest.raises(cgml.InputError, match=f"(?s){message}"):
        external(PairBatch(), dataset, **options)


def test_topologies_have_no_temperature(dataset, positions) -> None:
    with pytest.raises(cgml.InputError, match="no temperature.* give external"):
        external(PairBatch(), dataset.topology, energy_unit="kT")
    pmf = external(PairBatch(), dataset.topology, types=NUMBERS)
    assert torch.allclose(pmf(positions), by_hand(positions, types_of(dataset), 1.0, 1.0))


# ---------------------------------------------------------------- a real one


@pytest.mark.skipif(
    importlib.util.find_spec("torchmdnet") is None, reason="torchmd-net is not installed"
)
def test_tensornet_example(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["tensornet.py", "--output", str(tmp_path), "--quick"])
    runpy.run_path(str(EXAMPLE / "tensornet.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "100 steps of 4 copies" in said
    assert "largest difference between OpenMM's forces and torch's: 0.0" in said
    assert (tmp_path / "tensornet.pt").exists()
