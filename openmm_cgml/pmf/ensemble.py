"""Several PMFs of one molecule, whose disagreement says where none of them knows."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..topology import CGTopology
from .core import PMF, build


class EnsemblePMF(PMF):
    """The mean of PMFs that were trained alike from different seeds.

    Args:
        *terms: the members, at least two: PMFs, or architectures of them (as `build` takes).

    Raises:
        InputError: if there are fewer.
    """

    def __init__(self, *terms: Any) -> None:
        super().__init__()
        members = [build(term) if isinstance(term, dict) else term for term in terms]
        if len(members) < 2:
            raise InputError(
                f"an ensemble of {len(members)} PMF has no variance; give at least two members"
            )
        for member in members:
            if not isinstance(member, PMF):
                raise InputError(f"{type(member).__name__} is not a PMF; make it a subclass")
        self.terms = nn.ModuleList(members)  # by the name that `build` looks for

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return the members' mean energies (copies,), kJ/mol."""
        energies = torch.zeros_like(positions[:, 0, 0])
        for member in self.terms:
            energies = energies + member(positions, box_vectors)
        return energies / len(self.terms)

    @torch.jit.export
    def energies_and_forces(
        self, positions: Tensor, box_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mean energies (copies,), kJ/mol, and forces (copies, beads, 3), kJ/mol/nm."""
        energies = torch.zeros_like(positions[:, 0, 0])
        forces = torch.zeros_like(positions)
        for member in self.terms:
            energy, force = member.energies_and_forces(positions, box_vectors)  # type: ignore[operator]
            energies = energies + energy
            forces = forces + force
        return energies / len(self.terms), forces / len(self.terms)

    @torch.jit.export
    def force_variance(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return how much the members' forces differ, (copies,), (kJ/mol/nm)^2.

        It is max over beads of sum_m |F_m - mean F|^2 / (M - 1), with M members: the largest over
        the beads, since one bead where no data are is enough, and a mean would hide it.

        Args:
            positions: (copies, beads, 3), nm.
            box_vectors: (3, 3), nm, or None.

        Reference: Zhang et al. 2020, doi:10.1016/j.cpc.2020.107206, eq. 3 ("model deviation"),
        which divides by M.
        """
        each: list[Tensor] = []
        for member in self.terms:
            each.append(member.energies_and_forces(positions, box_vectors)[1])  # type: ignore[operator]
        forces = torch.stack(each)
        spread = (forces - forces.mean(0)).square().sum(-1).sum(0)
        return spread.amax(1) / (len(self.terms) - 1)

    def for_topology(self, topology: CGTopology) -> "EnsemblePMF":
        """Return the ensemble for another molecule; see `PMF.for_topology`."""
        return EnsemblePMF(*[m.for_topology(topology) for m in self._pmfs()]).train(self.training)

    def tabulated(self, knots: int = 512) -> "EnsemblePMF":
        """Return the ensemble with tables in its members; see `PMF.tabulated`."""
        return EnsemblePMF(*[m.tabulated(knots) for m in self._pmfs()]).train(self.training)

    @torch.jit.unused
    def _pmfs(self) -> list[PMF]:
        return [m for m in self.terms if isinstance(m, PMF)]

    def arguments(self) -> dict[str, Any]:
        """Return the members' architectures."""
        return {"terms": [m.architecture() for m in self._pmfs()]}
