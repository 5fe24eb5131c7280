"""The contract of a PMF, and the sum of several."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from .. import geometry
from ..errors import InputError
from ..geometry import InternalCoordinates
from ..topology import CGTopology


class PMF(nn.Module):
    """A potential of mean force: positions of copies of one molecule in, energies out.

    A subclass defines ``forward(positions, box_vectors=None)``:

    - positions: (copies, beads, 3), nm, in the module's own dtype;
    - box_vectors: (3, 3), nm, or None; if given, displacements take the minimum image;
    - returns (copies,), kJ/mol, each depending on its own copy only,

    is written in the subset of Python that TorchScript compiles, keeps every index in a buffer
    (so that the exported graph has no device in it), and defines `arguments`, the JSON-able
    constructor arguments. Energies do not change under translation and rotation and are smooth.
    """

    @torch.jit.export
    def energies_and_forces(
        self, positions: Tensor, box_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and forces (copies, beads, 3), kJ/mol/nm.

        What an engine calls in every step; arguments as of `forward`, which is differentiated.
        A PMF may have its gradient written by hand instead, as `InternalPMF` has: much faster
        for small networks.
        """
        if not torch.jit.is_scripting():
            return energy_and_forces(self, positions, box_vectors)
        recording = torch.is_grad_enabled()
        torch.set_grad_enabled(True)  # TorchScript has no enable_grad
        # A clone, not detach(): freezing drops that, and the caller's tensor would be marked.
        leaf = positions.clone().requires_grad_(True)
        energies = self.forward(leaf, box_vectors)
        gradient = torch.autograd.grad([energies.sum()], [leaf])[0]
        torch.set_grad_enabled(recording)
        assert gradient is not None  # for TorchScript's types
        return energies.detach(), (-gradient).contiguous()

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's keyword arguments, JSON-able."""
        raise NotImplementedError

    def for_topology(self, topology: CGTopology) -> "PMF":
        """Return the PMF for another molecule; both share their trainable parameters.

        Raises:
            InputError: if it knows one molecule only, or has no parameters for a bead's type.
        """
        raise InputError(
            f"{type(self).__name__} knows one molecule only; for several take a network of bead "
            "types (schnet, painn) and a prior fitted by type"
        )

    def tabulated(self, knots: int = 1024) -> "PMF":
        """Return the PMF with tables for functions of distances; itself if it has none.

        For engines: faster, with the same forces to about six digits, and not to be trained.

        Args:
            knots: intervals of a table; 0: none.
        """
        return self

    def architecture(self) -> dict[str, Any]:
        """Return what `build` needs to make this module again, weights aside; JSON-able."""
        cls = type(self)
        return {"class": f"{cls.__module__}:{cls.__qualname__}", "arguments": self.arguments()}


class InternalPMF(PMF):
    """A PMF of internal coordinates: distances, cosines of angles, damped torsions.

    Besides `forward`, for training, a subclass has the `coordinates` and `value_and_gradient`, for
    engines. In a sum, terms of this kind share the evaluation of their coordinates.
    """

    coordinates: InternalCoordinates

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and their gradient by each coordinate.

        Args:
            values: (coordinates, copies), nm or of no unit.

        Returns:
            Energies, and a new tensor of the shape of `values`.
        """
        raise NotImplementedError

    @torch.jit.export
    def energies_and_forces(
        self, positions: Tensor, box_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and forces (copies, beads, 3), kJ/mol/nm."""
        internals = self.coordinates.evaluate(positions, box_vectors)
        energies, gradient = self.value_and_gradient(internals.values)
        forces = self.coordinates.forces(internals, gradient, positions.size(1))
        return energies.detach(), forces.detach()


class SumPMF(PMF):
    """The sum of several PMFs, e.g. a prior and a network.

    Args:
        *terms: PMFs, or architectures of them (as `build` takes).
    """

    rows: Tensor
    sizes: list[int]

    def __init__(self, *terms: Any) -> None:
        super().__init__()
        if not terms:
            raise InputError("a SumPMF needs at least one term")
        modules: list[nn.Module] = []
        for term in terms:
            module = build(term) if isinstance(term, dict) else term
            if not isinstance(module, PMF):
                raise InputError(f"{type(module).__name__} is not a PMF; make it a subclass")
            # A sum within a sum is flattened: one loop, and fit() finds the trainable terms.
            modules.extend(_terms(module))
        self.terms = nn.ModuleList(modules)
        internal = [term.coordinates for term in modules if isinstance(term, InternalPMF)]
        self.coordinates, rows = geometry.union(internal)
        self.sizes = [len(r) for r in rows]
        self.register_buffer("rows", torch.tensor(sum(rows, []), dtype=torch.int64))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        energies = torch.zeros_like(positions[:, 0, 0])
        for term in self.terms:
            energies = energies + term(positions, box_vectors)
        return energies

    @torch.jit.export
    def energies_and_forces(
        self, positions: Tensor, box_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and forces (copies, beads, 3), kJ/mol/nm."""
        internals = self.coordinates.evaluate(positions, box_vectors)
        values = internals.values.index_select(0, self.rows).split(self.sizes)
        energies: list[Tensor] = []
        slopes: list[Tensor] = []
        others: list[Tensor] = []
        for term in self.terms:
            if hasattr(term, "value_and_gradient"):  # TorchScript cannot tell subclasses
                energy, slope = term.value_and_gradient(values[len(slopes)])  # type: ignore[operator]
                slopes.append(slope)
            else:
                energy, force = term.energies_and_forces(positions, box_vectors)  # type: ignore[operator]
                others.append(force)
            energies.append(energy)
        gradient = torch.zeros_like(internals.values)
        if len(slopes) > 0:
            gradient.index_add_(0, self.rows, torch.cat(slopes))
        forces = self.coordinates.forces(internals, gradient, positions.size(1))
        for force in others:
            forces = forces + force
        return torch.stack(energies).sum(0).detach(), forces.detach()

    def for_topology(self, topology: CGTopology) -> "SumPMF":
        """Return the sum for another molecule; see `PMF.for_topology`."""
        return SumPMF(*[t.for_topology(topology) for t in self._pmfs()]).train(self.training)

    def tabulated(self, knots: int = 1024) -> "SumPMF":
        """Return the sum with tables in its terms; see `PMF.tabulated`."""
        return SumPMF(*[t.tabulated(knots) for t in self._pmfs()]).train(self.training)

    @torch.jit.unused
    def _pmfs(self) -> list[PMF]:
        return [t for t in self.terms if isinstance(t, PMF)]

    def arguments(self) -> dict[str, Any]:
        """Return the terms' architectures."""
        return {"terms": [t.architecture() for t in self._pmfs()]}


def _terms(module: PMF) -> list[nn.Module]:
    return list(module.terms) if isinstance(module, SumPMF) else [module]


def build(architecture: dict[str, Any], program: Any = None) -> PMF:
    """Make the untrained module that an architecture describes.

    Args:
        architecture: of `PMF.architecture`.
        program: the PMF's ScriptModule; networks from elsewhere, which no card describes, are
            taken from it.

    Raises:
        InputError: if the class is not one of this package's PMFs: a model file may not name
            arbitrary code.
    """
    module, _, name = str(architecture.get("class", "")).partition(":")
    if module.rpartition(".")[0] != __package__:
        raise InputError(f"architecture names {module!r}, which is not a PMF of this package")
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        cls = None
    if not (isinstance(cls, type) and issubclass(cls, PMF)):
        raise InputError(f"architecture names {module}:{name}, which is not a PMF")
    arguments = dict(architecture.get("arguments", {}))
    if (found := getattr(program, "module", None)) is not None:
        arguments["module"] = found
    terms = [
        build(term, getattr(getattr(program, "terms", None), str(number), None))
        if isinstance(term, dict)
        else term
        for number, term in enumerate(arguments.pop("terms", ()))
    ]
    return cls(*terms, **arguments)


def energy_and_forces(
    pmf: nn.Module,
    positions: Tensor,
    box_vectors: Tensor | None = None,
    *,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor]:
    """Evaluate a PMF and its forces by automatic differentiation.

    Args:
        pmf: a `PMF`.
        positions: (copies, beads, 3), nm.
        box_vectors: (3, 3), nm, or None.
        differentiable: whether the forces can be differentiated again, for training.

    Returns:
        Energies (copies,), kJ/mol, and forces (copies, beads, 3), kJ/mol/nm.
    """
    if differentiable and isinstance(pmf, SumPMF):
        parts = [
            energy_and_forces(term, positions, box_vectors, differentiable=True)
            for term in pmf.terms
        ]
        return sum(e for e, _ in parts), sum(f for _, f in parts)  # type: ignore[return-value]
    if differentiable and isinstance(pmf, InternalPMF):
        # Its own gradient: differentiating that once is cheaper than the energy twice.
        internals = pmf.coordinates.evaluate(positions.detach(), box_vectors)
        energies, gradient = pmf.value_and_gradient(internals.values)
        return energies, pmf.coordinates.forces(internals, gradient, positions.size(1))
    with torch.enable_grad():
        positions = positions.detach().requires_grad_(True)
        energies = pmf(positions, box_vectors)
        (gradient,) = torch.autograd.grad(
            energies.sum(), positions, create_graph=differentiable, allow_unused=True
        )
    forces = torch.zeros_like(positions) if gradient is None else (-gradient).contiguous()
    return (energies, forces) if differentiable else (energies.detach(), forces.detach())
