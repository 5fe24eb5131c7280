"""The contract of every PMF: in vacuum and in a box, in single and in double precision.

One molecule serves all, a helix of beads of three types. Coordinates and box vectors are short
binary fractions, so that moving beads by some of them is exact in single precision too, and what
is left is the rounding of the PMF itself.
"""

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch  # before openmm
from torch import Tensor, nn

import numpy as np
import openmm
import pytest

import openmm_cgml as cgml
from openmm_cgml import geometry
from openmm_cgml.force import BACKENDS
from openmm_cgml.native import force as native
from openmm_cgml.pmf.core import build, energy_and_forces
from openmm_cgml.pmf.external import external
from openmm_cgml.pmf.message import MessagePMF
from openmm_cgml.pmf.short_range import ShortRangeRepulsion, close_pairs

BOX = torch.tensor([[2.5, 0, 0], [0.375, 3.0, 0], [-0.25, 0.5, 2.75]], dtype=torch.float64)
BOXES = {"vacuum": None, "periodic": BOX}
TYPES = "ABCABCAB"
CUTOFF = 0.75
COPIES = 4
#: Largest error of energies and forces, as a share of what they are made of.
ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-5}
LENGTH = 0.1  # nm; energies are made of terms as large as forces times this


@dataclass(frozen=True)
class Claims:
    """What a PMF promises beyond what all do.

    Attributes:
        mirror: whether a mirror image has another energy.
        by_type: whether beads of one type may change places.
        cutoff: nm, beyond which beads do not see each other; such a PMF serves other molecules of
            the same types, and looks at all pairs or searches in cells.
    """

    mirror: bool = False
    by_type: bool = False
    cutoff: float | None = None


CLAIMS = {
    "cgnet": Claims(mirror=True),
    "schnet": Claims(by_type=True, cutoff=CUTOFF),
    "schnet cells": Claims(by_type=True, cutoff=CUTOFF),
    "painn": Claims(mirror=True, by_type=True, cutoff=CUTOFF),
    "painn cells": Claims(mirror=True, by_type=True, cutoff=CUTOFF),
    "external": Claims(by_type=True),
    "external flat": Claims(by_type=True),
    "prior": Claims(),
    "repulsion": Claims(cutoff=0.8),
    "repulsion cells": Claims(cutoff=0.8),
    "sum": Claims(mirror=True),
}
# A network that joins the table and claims nothing here fails at once.
NAMES = [*CLAIMS, *(name for name in cgml.PMFS if name not in CLAIMS)]
SIZES = {
    "cgnet": {"width": 16, "depth": 2},
    "schnet": {"width": 12, "basis": 10, "cutoff": CUTOFF},
    "painn": {"width": 8, "basis": 10, "cutoff": CUTOFF},
}
TRAINED = [name for name in NAMES if name.split()[0] not in ("prior", "repulsion")]


def names(claim: str) -> list[str]:
    return [name for name, claims in CLAIMS.items() if getattr(claims, claim)]


# ---------------------------------------------------------------- the PMFs


class Contacts(nn.Module):
    """Somebody else's network: angstrom, kcal/mol, a weight for each type."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.0, 1.1, -0.7, 0.4]))

    def forward(self, positions: Tensor, types: Tensor) -> Tensor:
        pairs = torch.triu_indices(types.size(0), types.size(0), 1).t()
        squares = (positions[:, pairs[:, 0]] - positions[:, pairs[:, 1]]).square().sum(-1)
        weights = self.weights[types]
        return (weights[pairs[:, 0]] * weights[pairs[:, 1]] * torch.exp(-squares / 20)).sum(1)


class FlatContacts(nn.Module):
    """The same of all copies' beads in one list, which knows periodic images."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.0, 1.1, -0.7, 0.4]))

    def forward(
        self, types: Tensor, positions: Tensor, batch: Tensor, box: Tensor | None = None
    ) -> Tensor:
        first, second = torch.where(batch.unsqueeze(0) == batch.unsqueeze(1))
        keep = first < second
        first, second = first[keep], second[keep]
        steps = geometry.minimum_image(positions[second] - positions[first], box)
        weights = self.weights[types]
        terms = weights[first] * weights[second] * torch.exp(-steps.square().sum(-1) / 20)
        energies = torch.zeros_like(positions[: int(batch.max()) + 1, 0])
        return energies.index_add(0, batch[first], terms)


def topology(types: str, bonds: list[tuple[int, int]] | None = None) -> cgml.CGTopology:
    """A chain, unless bonds are given."""
    n = len(types)
    if bonds is None:
        bonds = [(k, k + 1) for k in range(n - 1)]
    return cgml.CGTopology(
        tuple(f"B{k}" for k in range(n)), tuple(types), ("M",) * n, tuple(range(n)), ("A",) * n,
        tuple(bonds), (12.0,) * n,
    )  # fmt: skip


@functools.cache
def helices() -> cgml.CGDataset:
    """Noisy helices, all of one hand."""
    k = np.arange(len(TYPES))
    turn = np.radians(100.0) * k
    helix = np.stack([0.25 * np.cos(turn), 0.25 * np.sin(turn), 0.1 * k], axis=1)
    noise = np.random.default_rng(0).standard_normal((200, len(TYPES), 3))
    positions = np.round((helix + 0.04 * noise) * 2**13) / 2**13
    return cgml.CGDataset(positions, topology(TYPES), temperature=300.0)


@functools.cache
def made(name: str, dtype: torch.dtype = torch.float64) -> cgml.PMF:
    """The PMF of a name, the same for all tests."""
    kind, _, how = name.partition(" ")
    dataset = helices()
    if kind == "prior":
        pmf = cgml.fit_prior(dataset)
    elif kind == "sum":
        pmf = cgml.SumPMF(cgml.fit_prior(dataset), made("cgnet"))
    elif kind == "repulsion":
        strength = [[2.0, 3.0, 1.0], [3.0, 1.5, 2.0], [1.0, 2.0, 2.5]]
        radius = [[0.3, 0.35, 0.4], [0.35, 0.4, 0.3], [0.4, 0.3, 0.35]]
        pmf = ShortRangeRepulsion(
            TYPES, "ABC", strength, radius, close_pairs(dataset.topology, 3), dense=not how
        )
    elif kind == "external":
        module, call = (FlatContacts(), how) if how else (Contacts(), "batched")
        pmf = external(
            module, dataset, length_unit="angstrom", energy_unit="kcal/mol",
            types={"A": 1, "B": 2, "C": 3}, call=call,
        )  # fmt: skip
    else:
        sizes = {**SIZES.get(kind, {}), **({"dense": False} if how else {})}
        pmf = cgml.PMFS[kind](dataset, seed=1, **sizes)
        with torch.no_grad():  # fresh weights hardly bend anything
            for parameter in pmf.parameters():
                parameter.mul_(1.5)
    return copy.deepcopy(pmf).to(dtype).eval()


@functools.cache
def scripted(name: str, dtype: torch.dtype) -> torch.jit.ScriptModule:
    return torch.jit.script(made(name, dtype))


@dataclass(frozen=True, eq=False)
class Case:
    """A PMF, copies of its molecule, torn apart if there is a box, and that box."""

    name: str
    pmf: cgml.PMF
    positions: Tensor
    box: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        return self.positions.dtype

    def evaluate(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.pmf.energies_and_forces(positions, self.box)

    def like(self, *values: float) -> Tensor:
        return torch.tensor(values, dtype=self.dtype)


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(params=list(BOXES))
def box(request) -> Tensor | None:
    return BOXES[request.param]


@pytest.fixture(params=list(ROUNDING), ids=["double", "single"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def case(name, box, dtype) -> Case:
    positions = torch.tensor(helices().positions[:COPIES])
    if box is not None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(-2, 3, positions.shape, generator=generator)
        positions = positions + images.to(box) @ box
        box = box.to(dtype)
    return Case(name, made(name, dtype), positions.to(dtype), box)


periodic = pytest.mark.parametrize("box", [BOX], ids=["periodic"])
vacuum = pytest.mark.parametrize("box", [None], ids=["vacuum"])
double = pytest.mark.parametrize("dtype", [torch.float64], ids=["double"])
single = pytest.mark.parametrize("dtype", [torch.float32], ids=["single"])


def assert_near(found, expected, tolerance: float) -> None:
    """Energies and forces are the same, up to a share of the largest of all terms."""
    energies, forces = expected
    most = forces.abs().max().item()
    assert most > 0
    scale = max(energies.abs().max().item(), LENGTH * most)
    assert found[0].shape == energies.shape and found[1].shape == forces.shape
    assert (found[0] - energies).abs().max().item() <= tolerance * scale
    assert (found[1] - forces).abs().max().item() <= tolerance * most


def test_every_network_has_its_claims() -> None:
    """Those of the table in the documentation."""
    text = (Path(__file__).resolve().parent.parent / "docs" / "networks.md").read_text()
    for name in cgml.PMFS:
        (row,) = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
        assert CLAIMS[name].mirror == ("told apart" in row)
        assert bool(CLAIMS[name].cutoff) == ("within a cutoff" in row)
        assert CLAIMS[name].by_type == ("bead types" in row)


# ---------------------------------------------------------------- gradients


def test_forces_are_minus_the_gradient(case) -> None:
    """What engines call against autograd, and against differences in double precision."""
    energies, forces = case.evaluate(case.positions)
    expected = energy_and_forces(case.pmf, case.positions, case.box)
    assert_near((energies, forces), expected, ROUNDING[case.dtype])
    assert forces.dtype == energies.dtype == case.dtype and not forces.requires_grad
    if case.dtype is torch.float64:
        step = 1e-5
        beads = forces.size(1)
        shifts = step * torch.eye(3 * beads, dtype=case.dtype).view(-1, beads, 3)
        rise, fall = (case.pmf(case.positions[:1] + sign * shifts, case.box) for sign in (1, -1))
        slopes = (fall - rise).view(beads, 3) / (2 * step)
        assert (slopes - forces[0]).abs().max() < 1e-6 * forces[0].abs().max()


@double
@pytest.mark.parametrize("name", TRAINED)
def test_a_loss_of_forces_has_the_gradient_of_plain_autograd(case, monkeypatch) -> None:
    """By every parameter; and along one direction by differences."""
    pmf = copy.deepcopy(case.pmf)
    parameters = list(pmf.parameters())
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(case.positions.shape, generator=generator, dtype=case.dtype)

    def loss() -> Tensor:
        """As in training."""
        forces = energy_and_forces(pmf, case.positions, case.box, differentiable=True)[1]
        return (forces - target).square().sum()

    found = torch.autograd.grad(loss(), parameters)
    for gradient, (key, _) in zip(found, pmf.named_parameters(), strict=True):
        assert gradient.abs().max() > 0, key
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    values, step = [], 1e-5
    for sign in (1, -2):  # from the middle to one side, then to the other
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(sign * step * along)
        values.append(loss().item())
    with torch.no_grad():
        for parameter, along in zip(parameters, direction, strict=True):
            parameter.add_(step * along)
    slope = sum((g * d).sum().item() for g, d in zip(found, direction, strict=True))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)

    monkeypatch.setattr(MessagePMF, "_with_adjoint", MessagePMF._gathered)
    leaf = case.positions.clone().requires_grad_(True)
    (slopes,) = torch.autograd.grad(pmf(leaf, case.box).sum(), leaf, create_graph=True)
    plain = torch.autograd.grad((slopes + target).square().sum(), parameters, allow_unused=True)
    for gradient, expected in zip(found, plain, strict=True):
        assert expected is not None
        assert (gradient - expected).abs().max() <= 1e-10 * expected.abs().max()


# ---------------------------------------------------------------- symmetries


def test_nothing_changes_when_all_is_moved(case) -> None:
    moved = case.positions + case.like(1.375, -2.5, 0.8125)
    assert_near(case.evaluate(moved), case.evaluate(case.positions), ROUNDING[case.dtype])


@vacuum
def test_forces_turn_with_the_molecule(case) -> None:
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    rotation = (rotation * torch.det(rotation).sign()).to(case.dtype)
    energies, forces = case.evaluate(case.positions)
    turned = case.evaluate(case.positions @ rotation.T)
    # Turned positions are rounded again, and stiff bonds feel it.
    assert_near(turned, (energies, forces @ rotation.T), 10 * ROUNDING[case.dtype])


@periodic
def test_every_image_of_a_bead_is_that_bead(case) -> None:
    """Each bead by each lattice vector, one at a time."""
    frame = case.positions[:1]
    beads = frame.size(1)
    images = torch.zeros(beads, 3, beads, 3, dtype=case.dtype)
    for bead in range(beads):
        images[bead, :, bead] = case.box
    found = case.evaluate(frame + images.view(-1, beads, 3))
    energies, forces = case.evaluate(frame)
    expected = energies.expand(3 * beads), forces.expand(3 * beads, -1, -1)
    assert_near(found, expected, ROUNDING[case.dtype])


@periodic
def test_a_molecule_that_is_small_for_its_box_does_not_feel_it(case) -> None:
    whole = torch.tensor(helices().positions[:COPIES], dtype=case.dtype)
    expected = case.pmf.energies_and_forces(whole)
    assert_near(case.evaluate(case.positions), expected, ROUNDING[case.dtype])


@pytest.mark.parametrize("name", names("by_type"))
def test_beads_of_one_type_may_change_places(case) -> None:
    order = [6, 4, 2, 0, 7, 5, 3, 1]  # As, Bs and Cs among themselves
    assert [TYPES[k] for k in order] == list(TYPES)
    energies, forces = case.evaluate(case.positions)
    moved = case.evaluate(case.positions[:, order])
    assert_near(moved, (energies, forces[:, order]), ROUNDING[case.dtype])
    others = case.evaluate(case.positions[:, [1, 0, *range(2, 8)]])[0]  # an A with a B
    assert (others - energies).abs().min() > 1e-3 * (energies - energies.mean()).abs().max()


def test_mirror_images_are_told_apart_where_that_is_claimed(case) -> None:
    mirrored = case.positions * case.like(1.0, 1.0, -1.0)
    box = case.box
    if box is not None:  # turned around, its third vector points upwards again
        box = torch.cat([box[:2], box[2:] * case.like(-1.0, -1.0, 1.0)])
    energies, forces = case.evaluate(case.positions)
    found, found_forces = case.pmf.energies_and_forces(mirrored, box)
    expected = forces * case.like(1.0, 1.0, -1.0)
    if CLAIMS[case.name].mirror:  # far beyond rounding, and every copy
        most = forces.abs().max()
        assert (found - energies).abs().mean() > 1e-3 * LENGTH * most
        assert (found_forces - expected).abs().amax((1, 2)).min() > 1e-3 * most
    else:
        assert_near((found, found_forces), (energies, expected), ROUNDING[case.dtype])


# ---------------------------------------------------------------- copies and sizes


def test_copies_are_evaluated_as_if_alone(case) -> None:
    energies, forces = case.evaluate(case.positions)
    for k in range(COPIES):
        alone = case.evaluate(case.positions[k : k + 1])
        assert_near(alone, (energies[k : k + 1], forces[k : k + 1]), ROUNDING[case.dtype])
    others = case.positions.clone()
    others[1:] = others[:1] + 0.0625  # on top of the first
    changed = case.evaluate(others)
    assert_near((changed[0][:1], changed[1][:1]), (energies[:1], forces[:1]), ROUNDING[case.dtype])


@pytest.mark.parametrize("name", names("cutoff"))
def test_molecules_far_apart_have_the_sum_of_their_energies(case) -> None:
    """A larger box, in which the second is half of it away from the first."""
    box = None if case.box is None else 2 * case.box
    shift = case.like(6.0, 0.0, 0.0) if case.box is None else case.box.sum(0)
    whole = torch.tensor(helices().positions[:COPIES], dtype=case.dtype)
    n = len(TYPES)
    bonds = [(k, k + 1) for k in range(2 * n - 1) if k != n - 1]
    pair = case.pmf.for_topology(topology(2 * TYPES, bonds))
    both = pair.energies_and_forces(torch.cat([whole, whole + shift], dim=1), box)
    energies, forces = case.pmf.energies_and_forces(whole)
    assert_near(both, (2 * energies, torch.cat([forces, forces], dim=1)), ROUNDING[case.dtype])


# ---------------------------------------------------------------- cutoffs and neighbours


@double
@pytest.mark.parametrize("name", names("cutoff"))
def test_energies_go_to_zero_with_two_derivatives_at_the_cutoff(case) -> None:
    """As (1 - d / cutoff)^3, its slope as the square, the slope's slope linearly; across a face
    of the box too."""
    cutoff = CLAIMS[case.name].cutoff
    shares = case.like(1e-3, 1e-4, 0.0, -1e-3, -0.3)  # of the cutoff that are left
    distances = ((1 - shares) * cutoff).requires_grad_(True)
    direction = case.like(2.0, -1.0, 2.0) / 3
    arms = torch.stack([torch.zeros_like(direction), direction])
    positions = distances.view(-1, 1, 1) * arms
    if case.box is not None:
        positions = positions + torch.stack([torch.zeros_like(direction), case.box.sum(0)])
    energies = loose(case.pmf, 2, case.pmf.dense)(positions, case.box)
    values = [energies - energies[-1]]
    for _ in range(2):
        (slope,) = torch.autograd.grad(values[-1].sum(), distances, create_graph=True)
        values.append(slope)
    assert values[0][0].abs().item() > 1e-12
    for order, value in enumerate(values):
        assert (value[0] / value[1]).item() == pytest.approx(10 ** (3 - order), rel=0.05)
        assert value[2:].abs().max().item() < 1e-4 * value[0].abs().item()


def loose(pmf: cgml.PMF, beads: int, dense: bool) -> cgml.PMF:
    """The PMF of so many beads without bonds, which shares its parameters."""
    types = [TYPES[k % len(TYPES)] for k in range(beads)]
    changed = pmf.for_topology(topology(types, [])).arguments() | {"dense": dense}
    other = type(pmf)(**changed).to(next(t for t in pmf.buffers() if t.is_floating_point()).dtype)
    for key, child in pmf.named_children():
        setattr(other, key, child)
    return other.eval()


def crowd(*sides: int) -> Tensor:
    """Beads all over the box, (1, beads, 3), on a lattice that is not quite one."""
    sites = np.array(list(np.ndindex(sides)))
    noise = np.random.default_rng(4).uniform(-0.1, 0.1, sites.shape)
    return torch.tensor((sites + 0.5 + noise) / sides)[None] @ BOX


@double
@periodic
@pytest.mark.parametrize("name", names("cutoff"))
def test_nothing_jumps_when_a_bead_goes_through_the_whole_box(case) -> None:
    """It passes others within the cutoff, and is half a box away from each at some time.

    The work of the forces, by the trapezoid rule, is the change of the energy in every step up to
    the third order of its length; a jump of either would be of lower order.
    """
    others, errors = crowd(3, 3, 2), []
    pmf = loose(case.pmf, 19, case.pmf.dense)
    for steps in (300, 600):
        along = torch.arange(steps + 1, dtype=case.dtype)[:, None] / steps
        path = (case.box[0] + case.box[1]) / 3 + (along - 0.2) * case.box[2]
        beads = torch.cat([others.expand(steps + 1, -1, -1), path[:, None]], dim=1)
        energies, forces = pmf.energies_and_forces(beads, case.box)
        work = 0.5 * (forces[1:, -1] + forces[:-1, -1]) @ case.box[2] / steps
        errors.append((energies.diff() + work).abs().max().item())
        range_ = (energies.max() - energies.min()).item()
        assert (energies[-1] - energies[0]).abs().item() < 1e-9 * range_
    assert errors[1] < 1e-3 * range_
    assert errors[0] / errors[1] > 5  # 8, where the third derivative is smooth


@pytest.mark.parametrize("name", [name for name in names("cutoff") if " " not in name])
def test_all_pairs_and_cells_agree(case) -> None:
    """Of a molecule, and of enough beads all over the box for them to be sorted."""
    many = crowd(6, 6, 5).to(case.dtype)
    for beads, positions in ((8, case.positions), (180, many)):
        dense, cells = (loose(case.pmf, beads, how) for how in (True, False))
        expected = dense.energies_and_forces(positions, case.box)
        assert_near(cells.energies_and_forces(positions, case.box), expected, ROUNDING[case.dtype])


# ---------------------------------------------------------------- programs and files


@pytest.mark.backend
def test_torchscript_is_the_module(case) -> None:
    """Its first calls, which run other graphs than later ones, and frozen."""
    script = scripted(case.name, case.dtype)
    frozen = torch.jit.freeze(script, preserved_attrs=["energies_and_forces"])
    expected = energy_and_forces(case.pmf, case.positions, case.box)
    for program in (script, script, script, frozen):
        for recording in (True, False):
            with torch.set_grad_enabled(recording):
                found = program.energies_and_forces(case.positions, case.box)
                assert torch.is_grad_enabled() == recording
            assert found[1].is_contiguous() and not case.positions.requires_grad
            assert_near(found, expected, ROUNDING[case.dtype])
        energies = program(case.positions, case.box)
        assert_near((energies, found[1]), expected, ROUNDING[case.dtype])


def test_no_device_is_written_into_the_program(name) -> None:
    """A device may be asked of a tensor: every index is a buffer, and moves with the module."""
    graph = str(scripted(name, torch.float32).inlined_graph)
    assert "device=" not in graph and "Device = prim::Constant" not in graph


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("external")])
def test_architecture_and_weights_make_it_again(case) -> None:
    again = build(case.pmf.architecture()).to(case.dtype)
    again.load_state_dict(case.pmf.state_dict())
    assert torch.equal(again(case.positions, case.box), case.pmf(case.positions, case.box))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Callable[[str], "cgml.system.Model"]:
    """A function that returns the model of a name, from its file."""
    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def get(name: str) -> "cgml.system.Model":
        cgml.save_model(folder / f"{name}.pt", copy.deepcopy(made(name)), helices())
        return cgml.load_model(folder / f"{name}.pt")

    return get


def expected_of(model: "cgml.system.Model", case: Case) -> tuple[Tensor, Tensor]:
    """The model's own network, tables included, in double precision."""
    return energy_and_forces(model.file.rebuild().double(), case.positions.double(), case.box)


@pytest.mark.backend
@single
def test_a_model_file_is_the_module(case, models) -> None:
    """Up to the tables that it may hold, and they are as exact as its card says."""
    model = models(case.name)
    found = model.file.module(copies=COPIES).energies_and_forces(
        case.positions.reshape(-1, 3), case.box
    )
    assert_near(found, expected_of(model, case), ROUNDING[torch.float32])
    energies, forces = case.evaluate(case.positions)
    error = model.card["largest_error_of_tables"]
    bound = 2 * (error or 0) + ROUNDING[torch.float32] * forces.abs().max().item()
    assert (found[1] - forces).abs().max().item() <= bound


# ---------------------------------------------------------------- OpenMM


@pytest.fixture
def not_compiled(monkeypatch) -> None:
    """The native force runs TorchScript: compiling each network takes 15 s, and is tested."""
    monkeypatch.setattr(native, "compile_package", lambda *_: None)


@pytest.mark.backend
@single
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_the_force_in_openmm_is_that_of_torch(case, models, backend, not_compiled) -> None:
    """One copy and several; positions of many lattice vectors go through OpenMM as they are."""
    model = models(case.name)
    energies, forces = expected_of(model, case)
    for copies in (1, COPIES):
        box = None if case.box is None else case.box.tolist()
        system = model.create_system(copies, box_vectors=box, backend=backend)
        expected = energies[:copies].sum()[None], forces[:copies]
        for platform, properties in (("Reference", {}), ("CPU", {"Threads": "1"})):
            context = openmm.Context(
                system,
                openmm.VerletIntegrator(0.001),
                openmm.Platform.getPlatform(platform),
                properties,
            )
            context.setPositions(case.positions[:copies].reshape(-1, 3).double().numpy())
            state = context.getState(getEnergy=True, getForces=True)
            energy = torch.tensor([state.getPotentialEnergy()._value])
            found = torch.tensor(state.getForces(asNumpy=True)._value).view(copies, -1, 3)
            assert_near((energy, found), expected, ROUNDING[torch.float32])
