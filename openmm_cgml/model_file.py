"""The model file: one TorchScript archive that holds the PMF and a card that describes it.

A file is a program, so reading one never unpickles Python objects and, before anything in it is
evaluated, checks every operator of every method against a list of plain tensor arithmetic.
"""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .archives import most_expanded
from .dataset import CGDataset
from .errors import InputError, ModelFileError, first_line
from .files import atomic_path, require_file
from .pmf.core import PMF, build, energy_and_forces
from .tensor_budget import limited_tensors
from .texts import parse_json
from .topology import CGTopology
from .trusted_program import load_program

if TYPE_CHECKING:  # lightning takes seconds to import, and loading a model needs none of it
    from .train import FitResult

#: Version of the card's layout; a reader refuses newer ones.
SCHEMA_VERSION = 1

UNITS = {"length": "nm", "energy": "kJ/mol", "mass": "Da", "time": "ps", "temperature": "K"}

_CARD_ENTRY = "card.json"


class ExportedModel(nn.Module):
    """What a model file holds: a PMF behind the interface that `TorchForce` calls.

    Positions of the whole System come in; `particles` picks the beads of all copies. Buffers and
    attributes set by `specialise` say which particles and how many copies, so one file serves any
    System, and a System that does not fit is refused, never reinterpreted.

    Args:
        pmf: the PMF.
        beads: beads of one copy.
        card: the card, JSON.
    """

    particles: Tensor
    like: Tensor

    def __init__(self, pmf: PMF, beads: int, card: str) -> None:
        super().__init__()
        self.pmf = pmf
        self.beads = beads
        self.copies = 1
        self.card_json = card
        self.highest_particle = -1
        self.register_buffer("particles", torch.zeros(0, dtype=torch.int64))
        # Gives the dtype and device to cast to; a stored device would break on another machine.
        self.register_buffer("like", torch.zeros((), dtype=torch.float32))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return the summed energy of all copies, float64 scalar, kJ/mol.

        Args:
            positions: (particles of the System, 3), nm, any float dtype.
            box_vectors: (3, 3), nm, or None.
        """
        # Raised here, not in copy_energies(): in OpenMM an error from an inlined method ends the
        # process, because the interpreter follows its call stack into a freed copy of the module.
        if self.highest_particle >= positions.size(0):
            raise ValueError(
                f"the model uses particle {self.highest_particle} but the System has only "
                f"{positions.size(0)}; give create_force() the System's own particle indices"
            )
        if self.highest_particle < 0 and positions.size(0) != self.copies * self.beads:
            raise ValueError(
                f"the System has {positions.size(0)} particles but the model has {self.copies} "
                f"copies of {self.beads} beads; pass copies= or particles= to create_force()"
            )
        return self.copy_energies(positions, box_vectors).sum(dtype=torch.float64)

    @torch.jit.export
    def copy_energies(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return the energy of each copy (copies,), kJ/mol; arguments as in `forward`."""
        if box_vectors is not None:
            box_vectors = box_vectors.to(self.like)
        return self.pmf(self.beads_of(positions), box_vectors)

    @torch.jit.export
    def energies_and_forces(
        self, positions: Tensor, box_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and forces (copies, beads, 3), kJ/mol/nm.

        In the model's own precision; arguments as in `forward`.
        """
        if box_vectors is not None:
            box_vectors = box_vectors.to(self.like)
        return self.pmf.energies_and_forces(self.beads_of(positions), box_vectors)

    @torch.jit.export
    def beads_of(self, positions: Tensor) -> Tensor:
        """Return the copies' beads (copies, beads, 3), in the model's precision."""
        if self.highest_particle >= 0:
            positions = positions.index_select(0, self.particles)
        return positions.to(self.like).view(self.copies, self.beads, 3)

    @torch.jit.export
    def card(self) -> str:
        """Return the card; it survives OpenMM's XML, where extra files do not."""
        return self.card_json


class ForceProgram(nn.Module):
    """A model as an engine evaluates it: energy and forces in one call, sick copies held still.

    ``forward(positions[, box_vectors][, report][, scale])``, the second argument if `periodic`,
    the third if `guarded`, the fourth if `scaled`. Returns the energy, a scalar, kJ/mol, and the
    forces on all particles of the System, (particles, 3), kJ/mol/nm, both multiplied by the scale.

    A guarded program gives a copy no energy and no force where either is not finite, or a force
    is beyond any chemistry, so that NaN never reaches positions; it counts these evaluations in
    `sick`. TorchForce passes nothing per copy back, hence `report`: where it is not 0, the force
    on each copy's first bead is (its energy, its count, 0), and all others are zero.

    Args:
        script: the model file's program, already set up for its particles.
        periodic: whether box vectors come in.
        guarded: whether sick copies are held still, and `report` comes in.
        scaled: whether a `scale` comes in.
    """

    sick: Tensor

    def __init__(self, script: Any, periodic: bool, guarded: bool, scaled: bool = False) -> None:
        super().__init__()
        self.model = script
        self.periodic = periodic
        self.guarded = guarded
        self.scaled = scaled
        # One step moves a bead of 12 Da by 3 nm under such a force: no molecule survives it.
        self.force_limit = 1e7
        self.register_buffer("sick", torch.zeros(script.copies, dtype=torch.float32))

    def forward(
        self,
        positions: Tensor,
        first: Tensor | None = None,
        second: Tensor | None = None,
        third: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return energy and forces; see the class."""
        # Raised here, not in a method that is inlined: in OpenMM that would end the process.
        if self.model.highest_particle >= positions.size(0):
            raise ValueError(
                f"the model uses particle {self.model.highest_particle} but the System has only "
                f"{positions.size(0)}; give create_force() the System's own particle indices"
            )
        if (
            self.model.highest_particle < 0
            and positions.size(0) != self.model.copies * self.model.beads
        ):
            raise ValueError(
                f"the System has {positions.size(0)} particles but the model has "
                f"{self.model.copies} copies of {self.model.beads} beads; pass copies= or "
                "particles= to create_force()"
            )
        # Positions come in marked for autograd; nothing here needs it, or may be recorded.
        # Not detach(), which freezing drops, nor no_grad(), a class whose methods no check sees.
        recording = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        given = [first, second, third]
        box_vectors = given.pop(0) if self.periodic else None
        report = given.pop(0) if self.guarded else None
        scale = given.pop(0) if self.scaled else None
        energies, forces = self.model.energies_and_forces(positions, box_vectors)
        if scale is not None:
            energies, forces = energies * scale, forces * scale
        if self.guarded:
            energies, forces = self.guard(energies, forces, report)
        forces = forces.to(positions.dtype).view(-1, 3)
        if self.model.highest_particle >= 0:
            everywhere = torch.zeros_like(positions)
            forces = everywhere.index_copy_(0, self.model.particles, forces)
        torch.set_grad_enabled(recording)
        return energies.sum(dtype=torch.float64), forces

    def guard(
        self, energies: Tensor, forces: Tensor, report: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Hold sick copies still and count them, or report."""
        # NaN compares false, so one comparison finds it and too large forces alike.
        well = (forces.abs().amax((1, 2)) < self.force_limit) & torch.isfinite(energies)
        energies = torch.where(well, energies, 0.0)
        forces = torch.where(well.view(-1, 1, 1), forces, 0.0)
        if report is not None:
            reporting = report.reshape(()) > 0
            self.sick.add_((~well).logical_and(~reporting))
            answer = torch.zeros_like(forces)
            answer[:, 0, 0] = energies
            answer[:, 0, 1] = self.sick
            forces = torch.where(reporting, answer, forces)
        return energies, forces

    @torch.jit.export
    def card(self) -> str:
        """Return the model's card."""
        return self.model.card_json


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file.

    Attributes:
        name: the file's name, for messages.
        archive: the TorchScript archive.
        card: the card.
    """

    name: str
    archive: bytes = field(repr=False)
    card: dict[str, Any] = field(repr=False)

    @property
    def topology(self) -> CGTopology:
        """The beads of one copy."""
        return CGTopology.from_json(json.dumps(self.card["topology"]))

    def module(self, particles: Any = None, copies: int = 1) -> Any:
        """Return a fresh ScriptModule for some particles of a System.

        Args:
            particles: indices of the beads, copy after copy, bead after bead; None: the System
                holds nothing else.
            copies: number of copies.

        Raises:
            InputError: if the number of particles is not copies times beads, an index is
                negative or occurs twice.
        """
        indices = self.check_particles(particles, copies)
        module = torch.jit.load(io.BytesIO(self.archive), map_location="cpu")
        module.copies = int(copies)
        if indices is not None:
            module.particles = indices
            module.highest_particle = int(indices.max())
        for parameter in module.parameters():
            # Else autograd would keep all it needs for gradients that nobody asks for.
            parameter.requires_grad_(False)
        return module.eval()

    def check_particles(self, particles: Any, copies: int) -> Tensor | None:
        """Return the indices of the copies' particles, int64; None if none are given.

        Raises:
            InputError: as `module`.
        """
        if int(copies) != copies or copies < 1:
            raise InputError(f"copies is {copies}; give a whole number of at least 1")
        if particles is None:
            return None
        indices = torch.as_tensor([int(p) for p in particles], dtype=torch.int64)
        beads = len(self.topology)
        if len(indices) != copies * beads:
            raise InputError(
                f"model {self.name} has {copies} x {beads} beads but {len(indices)} "
                "particles were given; give one a bead and copy"
            )
        if len(indices.unique()) != len(indices) or int(indices.min()) < 0:
            raise InputError("particle indices must be different and not negative")
        return indices

    def program(
        self,
        particles: Any = None,
        copies: int = 1,
        *,
        periodic: bool = False,
        guarded: bool = False,
        scaled: bool = False,
    ) -> Any:
        """Return the ScriptModule of a `ForceProgram`; arguments as there and in `module`."""
        shell = ForceProgram(self.module(particles, copies), periodic, guarded, scaled)
        return torch.jit.script(shell.eval())

    def for_molecule(self, molecule: "str | CGTopology") -> "ModelFile":
        """Return the content for another molecule, its beads typed anew.

        Args:
            molecule: the name of one that the model was trained on, or any topology whose bead
                types the model knows.

        Raises:
            InputError: if the model knows one molecule only, has none of this name, or lacks
                parameters for a bead's type.
        """
        known = self.card.get("molecules", {})
        if isinstance(molecule, str):
            if molecule not in known:
                raise InputError(
                    f"model {self.name} has no molecule {molecule!r}; "
                    + (f"it has {', '.join(known)}" if known else "it was trained on one only")
                )
            topology = CGTopology.from_json(json.dumps(known[molecule]["topology"]))
        else:
            topology = molecule
        described = json.loads(topology.to_json())
        trained = next((m for m in known.values() if m["topology"] == described), None)
        training = {k: v for k, v in self.card["training"].items() if k != "ranges"}
        card = {
            **self.card,
            "topology": described,
            # What was mapped, and where its data lay, holds for that molecule only.
            "mapping": trained["mapping"] if trained else {},
            "training": training | ({"ranges": trained["ranges"]} if trained else {}),
        }
        pmf = self.rebuild().for_topology(topology)
        card["architecture"] = pmf.architecture()
        return ModelFile(self.name, _archive(pmf, card), card)

    def rebuild(self) -> PMF:
        """Return the PMF as an ordinary module again, from the card and the stored weights."""
        script = torch.jit.load(io.BytesIO(self.archive), map_location="cpu")
        try:
            with limited_tensors(most_expanded(len(self.archive))):
                pmf = build(self.card["architecture"], getattr(script, "pmf", None))
                pmf.load_state_dict(script.pmf.state_dict())
        except InputError:
            raise
        except Exception as error:  # any, of a constructor that gets what it does not expect
            raise ModelFileError(
                f"model {self.name} cannot be made again from its card ({first_line(error)}); "
                "export it again"
            ) from error
        return pmf.eval()


def save_model(
    path: str | Path,
    model: "FitResult | PMF",
    dataset: CGDataset | None = None,
    *,
    tabulate: bool = True,
) -> ModelFile:
    """Write a model file; an existing one is replaced only when the new one is complete.

    Args:
        path: usually ``*.pt``.
        model: what `fit` returned, or a PMF with parameters from elsewhere.
        dataset: with a bare PMF: gives the topology, temperature and mapping.
        tabulate: store functions of a single distance, where a network has some, as tables too,
            and evaluate those: faster, and the card says what it changes.

    Raises:
        InputError: if a bare PMF comes without a dataset, TorchScript cannot compile the PMF, or
            the path cannot be written.
    """
    from .version import __version__

    if isinstance(model, PMF):
        pmf, training = model, {}
    else:
        pmf, dataset = model.pmf, model.dataset
        training = {**model.metrics, "history": model.history}
    if dataset is None:
        raise InputError("a bare PMF has no topology; pass the dataset that it belongs to")
    pmf, error = _tabulated(pmf, dataset) if tabulate else (pmf, None)
    card = {
        "schema_version": SCHEMA_VERSION,
        "package_version": __version__,
        "torch_version": torch.__version__,
        "units": UNITS,
        "temperature_K": dataset.temperature,
        "topology": json.loads(dataset.topology.to_json()),
        "mapping": dataset.mapping,
        "architecture": pmf.architecture(),
        "largest_error_of_tables": error,
        "training": training,
        "data_sources": dataset.sources,
        "data_bias": dataset.bias,
    }
    if molecules := getattr(model, "molecules", {}):
        card["molecules"] = {name: _molecule(result) for name, result in molecules.items()}
    archive = _archive(pmf, card)
    with atomic_path(path) as partial:
        partial.write_bytes(archive)
    return ModelFile(Path(path).name, archive, json.loads(json.dumps(card)))


def _molecule(result: "FitResult") -> dict[str, Any]:
    """Return what a card says of one molecule of several."""
    return {
        "topology": json.loads(result.dataset.topology.to_json()),
        "mapping": result.dataset.mapping,
        "ranges": result.metrics["ranges"],
    }


def _archive(pmf: PMF, card: dict[str, Any]) -> bytes:
    """Return the TorchScript archive of a PMF with its card."""
    text = json.dumps(card)
    beads = len(card["topology"]["bead_names"])
    shell = ExportedModel(pmf.to("cpu").float().eval(), beads, text).eval()
    try:
        script = torch.jit.script(shell)
    except Exception as error:
        raise InputError(
            f"TorchScript cannot compile {type(pmf).__name__}: {str(error).strip()[:300]}; "
            "write its forward in TorchScript's subset of Python"
        ) from error
    buffer = io.BytesIO()
    torch.jit.save(script, buffer, _extra_files={_CARD_ENTRY: text.encode()})
    return buffer.getvalue()


def _tabulated(pmf: PMF, dataset: CGDataset) -> tuple[PMF, float | None]:
    """Return a PMF with tables, and the largest error of its forces on frames, kJ/mol/nm."""
    pmf = pmf.to("cpu").eval()
    fast = pmf.tabulated()
    if fast.architecture() == pmf.architecture():
        return pmf, None
    few = max(1, len(dataset) // 50)
    positions = torch.as_tensor(dataset.positions[::few], dtype=torch.float32)
    boxes = [None] * len(positions) if dataset.box is None else list(dataset.box[::few])
    errors = []
    for x, box in zip(positions.split(1), boxes, strict=True):
        vectors = None if box is None else torch.as_tensor(box, dtype=torch.float32)
        difference = energy_and_forces(fast, x, vectors)[1] - energy_and_forces(pmf, x, vectors)[1]
        errors.append(float(difference.abs().max()))
    return fast, max(errors)


def read_model_file(path: str | Path, *, trust: bool = False) -> ModelFile:
    """Read and check a model file.

    Args:
        path: the file.
        trust: skip the operator check, for a file of your own that uses unusual operators.

    Raises:
        ModelFileError: if the file is damaged, not a model, or of a newer schema.
        UntrustedModelError: if its program uses an operator outside the allow-list.
    """
    path = require_file(path, "model file")
    return parse_model(path.read_bytes(), str(path), trust=trust)


def parse_model(archive: bytes, name: str, *, trust: bool = False) -> ModelFile:
    """Check the bytes of a model file; see `read_model_file`."""
    damaged = f"model file {name} is damaged or not a model file; export it again"
    script = load_program(archive, name, trust=trust)
    if not (hasattr(script, "card") and hasattr(script, "copy_energies")):
        raise ModelFileError(
            f"{name} is a TorchScript file without a card, not a model file; "
            "save models with save_model()"
        )
    try:
        card = parse_json(script.card())
        version = int(card["schema_version"])
        beads = len(CGTopology.from_json(json.dumps(card["topology"])))
        hot = 0 < float(card["temperature_K"]) < float("inf")
        if not hot or not isinstance(card["architecture"], dict):
            raise ValueError("the card lacks what makes a model")
    except Exception as error:  # its program may fail in any way
        raise ModelFileError(damaged) from error
    if version > SCHEMA_VERSION:
        raise ModelFileError(
            f"model file {name} has schema {version}, this version reads up to "
            f"{SCHEMA_VERSION}; upgrade openmm_cgml"
        )
    if script.beads != beads:
        raise ModelFileError(
            f"model file {name}: its card has {beads} beads, its program {script.beads}; "
            "export it again"
        )
    if not hasattr(script, "energies_and_forces"):
        raise ModelFileError(
            f"model file {name} was written by an older version, without a force program; "
            "export it again"
        )
    return ModelFile(Path(name).name, archive, card)
