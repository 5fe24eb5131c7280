"""Networks of other packages: any torch module or TorchScript file, behind the contract of a PMF.

`external` wraps one: it converts units, hands over the types of beads, and calls the module in one
of two ways. The model file then holds the module's own program, so it runs without the package
that the module came from, as long as that uses torch's operators only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from .. import geometry
from ..dataset import CGDataset
from ..errors import InputError, first_line
from ..geometry import index_buffer
from ..topology import CGTopology
from ..units import LENGTH_UNITS, thermal_energy, unit_factor
from . import foreign
from .core import PMF
from .foreign import CALLS

#: Factors to nm; to kJ/mol (CODATA 2018). kT goes by the data's temperature.
_LENGTHS = {**LENGTH_UNITS, "bohr": 0.0529177210903}
_ENERGIES = {"kJ/mol": 1.0, "kcal/mol": 4.184, "eV": 96.48533212, "hartree": 2625.4996394799}


class ExternalPMF(PMF):
    """A module of another package as a PMF. Made by `external`, which has all checks.

    Args:
        module: the network, in eager torch or as a ScriptModule.
        types: one number a bead, as the module knows them.
        numbers: the number of each type of bead, for other molecules.
        length: nm, the module's unit of length.
        energy: kJ/mol, the module's unit of energy.
        call: a name of `CALLS`.
        joints: (from, to) of pairs of near beads, each bead but the first being reached once,
            after the one it is reached from. A module without a box gets molecules made whole
            along them.
    """

    types: Tensor
    first: Tensor
    second: Tensor
    paths: Tensor
    flat: Final[bool]
    takes_box: Final[bool]
    gives_more: Final[bool]

    def __init__(
        self,
        module: Any = None,
        *,
        types: Sequence[int],
        numbers: Mapping[str, int],
        length: float,
        energy: float,
        call: str,
        joints: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        if module is None:
            raise InputError(
                "a model file's card does not describe an external network; wrap the network "
                "again with external()"
            )
        self._arguments = {
            "types": list(types),
            "numbers": dict(numbers),
            "length": length,
            "energy": energy,
            "call": call,
            "joints": [list(joint) for joint in joints],
        }
        self.module = module
        self.length, self.energy = length, energy
        self.flat = call == "flat"
        self.takes_box, self.gives_more = foreign.signature(module, call)
        ends = index_buffer(joints, 2)
        paths = torch.zeros(len(types), len(ends))
        for joint, (near, far) in enumerate(joints):
            paths[far] = paths[near]
            paths[far, joint] = 1
        self.register_buffer("types", torch.tensor(list(types), dtype=torch.int64))
        self.register_buffer("first", ends[:, 0].clone())
        self.register_buffer("second", ends[:, 1].clone())
        self.register_buffer("paths", paths)

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        copies = positions.size(0)
        box: Tensor | None = None
        if box_vectors is not None:
            if self.takes_box:
                box = box_vectors / self.length
            else:
                positions = self.whole(positions, box_vectors)
        positions = positions / self.length
        if self.flat:
            types = self.types.repeat(copies)
            batch = torch.arange(copies, device=positions.device).unsqueeze(1)
            batch = batch.expand(copies, positions.size(1)).reshape(-1)
            atoms = positions.reshape(-1, 3)
            if self.takes_box:
                answer = self.module(types, atoms, batch, box)
            else:
                answer = self.module(types, atoms, batch)
        else:
            if self.takes_box:
                answer = self.module(positions, self.types, box)
            else:
                answer = self.module(positions, self.types)
        if self.gives_more:
            energies = answer[0]
        else:
            energies = answer
        return energies.reshape(-1) * self.energy

    def whole(self, positions: Tensor, box_vectors: Tensor) -> Tensor:
        """Return the molecules in one piece: the images of all beads nearest along the joints."""
        steps = positions.index_select(1, self.second) - positions.index_select(1, self.first)
        steps = geometry.minimum_image(steps, box_vectors)
        return positions[:, :1] + torch.matmul(self.paths, steps)

    def for_topology(self, topology: CGTopology) -> "ExternalPMF":
        """Return the same network, shared, for another molecule; see `PMF.for_topology`."""
        numbers: Any = self._arguments["numbers"]
        other: dict[str, Any] = {
            **self._arguments,
            "types": _types_of(topology, numbers),
            "joints": _joints_of(topology),
        }
        return ExternalPMF(self.module, **other).to(self.paths).train(self.training)

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the module: no JSON can hold it."""
        return dict(self._arguments)


def external(
    module: nn.Module | str | Path,
    of: CGDataset | CGTopology,
    *,
    length_unit: str | float = "nm",
    energy_unit: str | float = "kJ/mol",
    types: Mapping[str, int] | None = None,
    call: str = "batched",
    trace: bool = False,
    trust: bool = False,
) -> ExternalPMF:
    """Return a PMF that evaluates a network of another package.

    The module returns one energy a copy, (copies,) or (copies, 1), alone or as the first of a
    tuple. It is called in one of two ways:

    - ``"batched"``: ``module(positions, types[, box])`` with positions (copies, beads, 3) and
      types (beads,), the same for all copies;
    - ``"flat"``: ``module(types, positions, batch[, box])`` with all beads of all copies in one
      list, (atoms,), (atoms, 3), and the copy of each (atoms,): what TorchMD-Net and other
      graph networks take.

    An argument called ``box...`` or ``cell...`` in that place that may be None is given the box
    vectors (3, 3). Without one, molecules in a box are made whole along their bonds first; the
    network then sees no images, and the molecule must be smaller than half of the box.

    Any other call is a module of a few lines that makes it.

    Args:
        module: a torch module that TorchScript can compile, or a TorchScript file.
        of: gives the beads; a dataset also the temperature and frames to try the module on.
        length_unit: of the module: nm, angstrom, bohr, or a number of nm.
        energy_unit: of the module: kJ/mol, kcal/mol, eV, hartree, kT at the data's temperature,
            or a number of kJ/mol.
        types: a number for each type of bead in the topology, e.g. a row of the module's
            embedding; None: counted from 0 in alphabetical order.
        call: a name of `CALLS`.
        trace: record the module instead of compiling its source, for one that TorchScript cannot
            compile. Only where its operations do not depend on the number of copies, which is
            tried; the record may also hold on to this device.
        trust: load a TorchScript file. It is a program: pass True only if you made it yourself.

    Raises:
        InputError: if the module cannot be compiled or called like this, does not give one
            differentiable energy a copy, or mixes the copies; a type has no number; a unit is
            unknown.
    """
    topology = of if isinstance(of, CGTopology) else of.topology
    if call not in CALLS:
        raise InputError(f"call is {call!r}; choose one of {', '.join(CALLS)}")
    numbers = types
    if numbers is None:
        numbers = {name: row for row, name in enumerate(sorted(set(topology.bead_types)))}
    arguments: dict[str, Any] = {
        "types": _types_of(topology, numbers),
        "numbers": {str(name): int(number) for name, number in numbers.items()},
        "length": _factor(_LENGTHS, length_unit, "length"),
        "energy": _energy_factor(energy_unit, of),
        "call": call,
        "joints": _joints_of(topology),
    }
    network = module if isinstance(module, nn.Module) else foreign.load(module, trust)
    positions, box = _frames(of, network)
    if trace:
        network = foreign.record(
            network, call, arguments["types"], positions / arguments["length"]
        )
    pmf = ExternalPMF(network, **arguments)
    _try(pmf, positions, box, strict=not isinstance(of, CGTopology))
    return pmf


def _factor(table: dict[str, float], unit: str | float, what: str) -> float:
    factor = unit_factor(table, unit, what) if isinstance(unit, str) else float(unit)
    if not 0 < factor < float("inf"):
        raise InputError(f"the {what} unit is {unit}; give a name or a positive number")
    return factor


def _energy_factor(unit: str | float, of: CGDataset | CGTopology) -> float:
    if unit != "kT":
        return _factor({**_ENERGIES, "kT": 0.0}, unit, "energy")
    if isinstance(of, CGTopology):
        raise InputError(
            "a topology has no temperature, by which kT goes; give external() the dataset, or "
            "energy_unit in kJ/mol as a number"
        )
    return thermal_energy(of.temperature)


def _types_of(topology: CGTopology, numbers: Mapping[str, int]) -> list[int]:
    for bead, kind in enumerate(topology.bead_types):
        if kind not in numbers:
            raise InputError(
                f"bead {topology.label(bead)} is of type {kind!r}, which has no number; known: "
                f"{', '.join(map(str, numbers)) or 'none'}; add it to types"
            )
    return [int(numbers[kind]) for kind in topology.bead_types]


def _joints_of(topology: CGTopology) -> list[list[int]]:
    """Return pairs that reach all beads from the first, bonds if there are, else what follows."""
    neighbours: dict[int, list[int]] = {bead: [] for bead in range(len(topology))}
    for i, j in topology.bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    joints: list[list[int]] = []
    reached = {0}
    for start in range(len(topology)):
        if start not in reached:
            joints.append([start - 1, start])
            reached.add(start)
        waiting = [start]
        while waiting:
            near = waiting.pop()
            for far in neighbours[near]:
                if far not in reached:
                    joints.append([near, far])
                    reached.add(far)
                    waiting.append(far)
    return joints


def _frames(of: CGDataset | CGTopology, module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return positions of two copies, nm, and a box: of the data, else beads at random."""
    numbers = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    like = numbers[0].detach() if numbers else torch.zeros(())
    if isinstance(of, CGTopology):
        spread = 0.3 * len(of) ** (1 / 3)
        noise = torch.randn(2, len(of), 3, generator=torch.Generator().manual_seed(0))
        return (spread * noise).to(like), None
    frames = torch.as_tensor(of.positions[[0, len(of) // 2]])
    return frames.to(like), None if of.box is None else torch.as_tensor(of.box[0]).to(like)


def _try(pmf: ExternalPMF, positions: Tensor, box: Tensor | None, *, strict: bool) -> None:
    """Evaluate two copies; refuse what is not an energy of each."""
    name = type(pmf.module).__name__
    training = pmf.training
    pmf.eval().paths = pmf.paths.to(positions)
    leaf = positions.clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            together = pmf(leaf, box)
            alone = pmf(leaf[:1], box)
    except Exception as error:
        raise InputError(
            f"{name} fails when called as {pmf.arguments()['call']!r}: {str(error).strip()[-300:]}"
        ) from error
    if together.shape != (2,) or alone.shape != (1,):
        raise InputError(
            f"{name} returns {len(together)} numbers for 2 copies of {positions.size(1)} beads; "
            "return one energy a copy"
        )
    try:
        torch.autograd.grad(together.sum(), leaf)
    except RuntimeError as error:
        raise InputError(
            f"{name} gives no energy that can be differentiated by the positions "
            f"({first_line(error)}); return it before any detach() or gradient of your own"
        ) from error
    if strict and not bool(torch.isfinite(together).all()):
        raise InputError(
            f"{name} gives the energies {together.tolist()} for frames of the data; check "
            "length_unit and types"
        )
    # Single precision may add up in another order.
    if bool((together[:1] - alone).abs() > 1e-3 * (1 + alone.abs())):
        raise InputError(
            f"{name} gives the first of two copies {together[0].item():g} kJ/mol, and "
            f"{alone.item():g} if it is alone: copies must not see each other"
        )
    pmf.train(training)
