"""`Model`: a loaded model file that makes OpenMM Forces and Systems."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import numpy as np

import openmm  # isort: skip

from . import force as backends
from .errors import InputError, UntrustedModelError
from .files import atomic_path
from .model_file import ModelFile, read_model_file
from .native import force as native
from .pmf.core import PMF
from .texts import read_xml
from .topology import CGTopology
from .torchforce import load_torch_plugins
from .trusted_program import load_program

_CHUNK = 4096  # frames whose energies are computed together


@dataclass(frozen=True)
class Model:
    """A trained PMF, ready for OpenMM. Make one with `load_model`.

    Attributes:
        file: the content of the model file.
    """

    file: ModelFile

    @property
    def card(self) -> dict[str, Any]:
        """What the file says about itself: units, temperature, topology, training, ..."""
        return self.file.card

    @property
    def topology(self) -> CGTopology:
        """The beads of one copy."""
        return self.file.topology

    @property
    def temperature(self) -> float:
        """Temperature of the training data, K: the one at which the PMF is physical."""
        return float(self.card["temperature_K"])

    def create_force(
        self,
        particles: Sequence[int] | None = None,
        copies: int = 1,
        force_group: int = 0,
        periodic: bool = False,
        backend: str | None = None,
        scale_parameter: str | None = None,
    ) -> Any:
        """Return an OpenMM Force for ``system.addForce``.

        Args:
            particles: indices of the beads in the System, copy after copy; None: the System holds
                the copies of this model and nothing else.
            copies: number of copies of the molecule; they do not feel each other.
            force_group: 0 to 31.
            periodic: take minimum images in the System's periodic box.
            backend: ``"torchforce"``, ``"native"`` (compiled for this machine, on first use),
                ``"python"``, or ``"fastest"`` (found by a trial); None: the first that works.
            scale_parameter: name of a Context parameter, 1 by default, that multiplies energy
                and forces: ``context.setParameter(name, 0.5)``.

        Returns:
            openmmtorch.TorchForce, the native openmm.Force, or openmm.PythonForce. A System whose
            particles do not fit raises an OpenMMException that says so.

        Raises:
            InputError: if particles, copies or group make no sense.
            BackendError: if the backend asked for does not work here.
        """
        return backends.create_force(
            self.file, particles, copies, force_group, periodic, backend, scale_parameter
        )

    def create_system(
        self,
        copies: int = 1,
        force_group: int = 0,
        box_vectors: Any = None,
        backend: str | None = None,
    ) -> Any:
        """Return an OpenMM System of the copies, masses set, without a centre-of-mass remover.

        Args:
            copies: number of copies, each taking ``len(topology)`` consecutive particles.
            force_group: of the PMF.
            box_vectors: three vectors, nm; None: not periodic.
            backend: as in `create_force`.
        """
        system = openmm.System()
        for _ in range(copies):
            for mass in self.topology.masses:
                system.addParticle(mass)
        if box_vectors is not None:
            system.setDefaultPeriodicBoxVectors(*box_vectors)
        force = self.create_force(
            copies=copies,
            force_group=force_group,
            periodic=box_vectors is not None,
            backend=backend,
        )
        system.addForce(force)
        return system

    def energy_and_forces(
        self, positions: Any, box_vectors: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate the model in torch, without OpenMM.

        Args:
            positions: (copies, beads, 3), nm.
            box_vectors: (3, 3), nm, or None.

        Returns:
            Energies (copies,), kJ/mol, and forces (copies, beads, 3), kJ/mol/nm.

        Raises:
            InputError: if the shape does not fit.
        """
        xyz = self._require_shape(positions)
        module = self.file.module(copies=len(xyz))
        flat = torch.tensor(xyz.reshape(-1, 3), dtype=torch.float64, requires_grad=True)
        box = None if box_vectors is None else torch.as_tensor(np.asarray(box_vectors))
        energies = module.copy_energies(flat, box)
        (gradient,) = torch.autograd.grad(energies.sum(), flat)
        return energies.detach().numpy(), -gradient.numpy().reshape(xyz.shape)

    def energies(self, positions: Any, box_vectors: Any = None) -> np.ndarray:
        """Evaluate the model in torch, without OpenMM and without forces.

        Args:
            positions: (frames, beads, 3), nm; any number.
            box_vectors: (3, 3), nm, or None.

        Returns:
            (frames,), kJ/mol, double precision.

        Raises:
            InputError: if the shape does not fit.
        """
        xyz = torch.as_tensor(self._require_shape(positions), dtype=torch.float64)
        module = self.file.module()
        box = None if box_vectors is None else torch.as_tensor(np.asarray(box_vectors))
        found = []
        with torch.no_grad():
            for chunk in xyz.split(_CHUNK):
                module.copies = len(chunk)
                found.append(module.copy_energies(chunk.reshape(-1, 3), box).double())
        return torch.cat(found).numpy()

    def _require_shape(self, positions: Any) -> np.ndarray:
        xyz = np.asarray(positions)
        if xyz.ndim != 3 or xyz.shape[1:] != (len(self.topology), 3):
            raise InputError(
                f"positions have shape {xyz.shape}; give (copies, {len(self.topology)}, 3)"
            )
        return xyz

    def rebuild(self) -> PMF:
        """Return the PMF as an ordinary torch module, e.g. to train it further."""
        return self.file.rebuild().tabulated(0)


def load_model(
    path: str | Path, molecule: str | CGTopology | None = None, *, trust: bool = False
) -> Model:
    """Load a model file.

    Args:
        path: the file that `save_model` wrote.
        molecule: with a transferable model, the name of a molecule that it was trained on, or the
            topology of any other with bead types that it knows; None: the one in the file.
        trust: skip the check of what the file's program does; for your own files only.

    Raises:
        ModelFileError: if the file is damaged, not a model, or too new.
        UntrustedModelError: if its program does more than arithmetic.
        InputError: if the model cannot serve that molecule.
    """
    file = read_model_file(path, trust=trust)
    return Model(file if molecule is None else file.for_molecule(molecule))


def save_system(path: str | Path, system: Any) -> None:
    """Write an OpenMM System, models included, as XML.

    Raises:
        InputError: if it holds a PythonForce, whose XML would run code when it is read.
    """
    for one in system.getForces():
        if type(one).__name__ == "PythonForce":
            raise InputError(
                f"force {one.getName()!r} is a PythonForce, whose XML runs code when it is read; "
                "save the model file and create the System again"
            )
    text = openmm.XmlSerializer.serialize(system)
    with atomic_path(path) as partial:
        partial.write_text(text)


def load_system(path: str | Path, *, trust: bool = False) -> Any:
    """Read an OpenMM System that `save_system` wrote.

    Raises:
        InputError: if the file is missing or not a System.
        UntrustedModelError: if it holds a PythonForce, a force of a plugin, or a TorchForce whose
            program does more than arithmetic. They are looked for before OpenMM reads the XML, at
            any depth.
    """
    path = Path(path)
    root = read_xml(path, "System XML")
    if not trust:
        known = _harmless_kinds()
        for element in root.iter():
            _require_harmless(element, path, known)
    load_torch_plugins()
    if any(element.get("type") == "CGMLForce" for element in root.iter()):
        native.load()
    try:
        # Written anew, so that OpenMM reads what was looked at, whatever the file's encoding.
        system = openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))
    except Exception as error:
        raise InputError(f"{path} is not an OpenMM System: {str(error).strip()}") from error
    if not isinstance(system, openmm.System):
        raise InputError(f"{path} holds a {type(system).__name__}, not an OpenMM System")
    return system


def _harmless_kinds() -> set[str]:
    """Return the kinds of object of OpenMM's own that may be in a System."""
    bases = (openmm.Force, openmm.TabulatedFunction, openmm.System)
    return {
        name
        for name, kind in vars(openmm).items()
        if isinstance(kind, type) and issubclass(kind, bases)
    } - {"PythonForce"}


def _require_harmless(element: ElementTree.Element, path: Path, known: set[str]) -> None:
    kind = element.get("type", "")
    if kind == "PythonForce":
        raise UntrustedModelError(
            f"{path} holds a PythonForce, which runs code when it is read; "
            "create the System from the model file instead"
        )
    # Its first version named a file; a program beside that name would not be the one that runs.
    if kind == "TorchForce" and element.get("version") not in ("2", "3", "4"):
        raise UntrustedModelError(
            f"{path} holds a TorchForce of an early version, which reads another file; "
            "create the System from the model file instead"
        )
    if kind in ("TorchForce", "CGMLForce"):
        try:
            if kind == "TorchForce":
                archive = bytes.fromhex(element.get("encodedFileContents", ""))
            else:
                archive = base64.b64decode(element.get("archive", ""), validate=True)
        except ValueError:
            archive = b""
        load_program(archive, str(path))
    elif kind[:1].isalpha() and kind not in known and (element.tag == "Force" or "Force" in kind):
        raise UntrustedModelError(
            f"{path} holds a {kind:.60}, a plugin's, which may run a program of its own; "
            "pass trust=True only if you made it yourself"
        )
