"""The energy terms that priors consist of; parameters are tables, one row a term.

Each is smooth wherever no two beads coincide, also where beads are in line.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import geometry
from ..errors import InputError
from .core import InternalPMF

#: 1 / (4 pi epsilon_0), kJ/mol nm/e^2 (CODATA 2018).
COULOMB_CONSTANT = 138.935457644


class PriorTerm(InternalPMF):
    """Energy terms of one kind, with a row of bead indices and parameters each, as buffers.

    Args:
        indices: (terms, 2) pairs, (terms, 3) angles or (terms, 4) torsions.
        width: 2, 3 or 4: which of them.
    """

    indices: Tensor

    def __init__(self, indices: Sequence[Sequence[int]], width: int) -> None:
        super().__init__()
        self.register_buffer("indices", geometry.index_buffer(indices, width))
        self.coordinates = coordinates_of(indices, width)

    def arguments(self) -> dict[str, Any]:
        """Return the indices and the parameters as tables."""
        return {name: value.tolist() for name, value in self.named_buffers(recurse=False)}


def coordinates_of(indices: Sequence[Sequence[int]], width: int) -> geometry.InternalCoordinates:
    """Return distances of pairs, cosines of triples, or sines and cosines of quadruples."""
    kind = {2: "pairs", 3: "angles", 4: "torsions"}[width]
    return geometry.InternalCoordinates(**{kind: indices})


class HarmonicBonds(PriorTerm):
    """Sum of k/2 (d - d0)^2 over pairs.

    Args:
        indices: (terms, 2) bead indices.
        stiffness: k, kJ/mol/nm^2, one a term.
        length: d0, nm, one a term.
    """

    stiffness: Tensor
    length: Tensor

    def __init__(
        self,
        indices: Sequence[Sequence[int]],
        stiffness: Sequence[float],
        length: Sequence[float],
    ) -> None:
        super().__init__(indices, 2)
        self.register_buffer("stiffness", torch.tensor(stiffness, dtype=torch.float32))
        self.register_buffer("length", torch.tensor(length, dtype=torch.float32))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        stretch = geometry.distances(positions, self.indices, box_vectors) - self.length
        return (0.5 * self.stiffness * stretch.square()).sum(-1)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and (terms, copies), kJ/mol/nm."""
        return _harmonic(values, self.stiffness, self.length)


class HarmonicAngles(PriorTerm):
    """Sum of k/2 (cos a - c0)^2 over triples: smooth also where three beads are in line.

    Args:
        indices: (terms, 3) bead indices, the middle one at the angle's tip.
        stiffness: k, kJ/mol, one a term.
        cosine: c0, one a term.
    """

    stiffness: Tensor
    cosine: Tensor

    def __init__(
        self,
        indices: Sequence[Sequence[int]],
        stiffness: Sequence[float],
        cosine: Sequence[float],
    ) -> None:
        super().__init__(indices, 3)
        self.register_buffer("stiffness", torch.tensor(stiffness, dtype=torch.float32))
        self.register_buffer("cosine", torch.tensor(cosine, dtype=torch.float32))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        cosines = geometry.cosine_angles(
            geometry.displacements(positions, self.indices[:, 0:2], box_vectors),
            geometry.displacements(positions, self.indices[:, 1:3], box_vectors),
        )
        return (0.5 * self.stiffness * (cosines - self.cosine).square()).sum(-1)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,) and (terms, copies), kJ/mol."""
        return _harmonic(values, self.stiffness, self.cosine)


class FourierTorsions(PriorTerm):
    """Sum of b^n (c_n cos(n t) + s_n sin(n t)) over quadruples and n = 1, 2, ...

    b is the product of the sines of the two bond angles. The n-th term is a homogeneous polynomial
    of degree n in b cos t and b sin t, the real part of (c_n - i s_n) (b cos t + i b sin t)^n, so
    it vanishes smoothly where three beads are in line and t is undefined. A series in t alone has
    infinite forces there.

    Args:
        indices: (terms, 4) bead indices along the torsion.
        cosines: (terms, orders) c_n, kJ/mol.
        sines: (terms, orders) s_n, kJ/mol.

    Raises:
        InputError: if the shapes do not fit.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(
        self,
        indices: Sequence[Sequence[int]],
        cosines: Sequence[Sequence[float]],
        sines: Sequence[Sequence[float]],
    ) -> None:
        super().__init__(indices, 4)
        tables = [torch.tensor(table, dtype=torch.float32) for table in (cosines, sines)]
        shapes = [tuple(table.shape) for table in tables]
        if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != len(self.indices):
            raise InputError(
                f"{len(self.indices)} torsions have cosines of shape {shapes[0]} and sines of "
                f"shape {shapes[1]}; give both as (torsions, orders)"
            )
        self.orders = shapes[0][1]
        self.register_buffer("cosines", tables[0])
        self.register_buffer("sines", tables[1])

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        sine, cosine = _damped(positions, self.indices, box_vectors)
        # Horner's scheme for the polynomial of weights c_n - i s_n in cosine + i sine.
        real, imaginary = self.cosines[:, self.orders - 1], -self.sines[:, self.orders - 1]
        for n in range(self.orders - 2, -1, -1):
            real, imaginary = (
                real * cosine - imaginary * sine + self.cosines[:, n],
                real * sine + imaginary * cosine - self.sines[:, n],
            )
        return (real * cosine - imaginary * sine).sum(-1)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,) and (2 terms, copies), kJ/mol, by the sines, then cosines."""
        sine, cosine = values.split(self.indices.size(0))
        # Horner's scheme again, and with it the derivative by cosine + i sine.
        real = self.cosines[:, self.orders - 1 :].expand_as(sine)
        imaginary = -self.sines[:, self.orders - 1 :].expand_as(sine)
        slope, turn = real, imaginary
        for n in range(self.orders - 2, -1, -1):
            real, imaginary = (
                real * cosine - imaginary * sine + self.cosines[:, n : n + 1],
                real * sine + imaginary * cosine - self.sines[:, n : n + 1],
            )
            slope, turn = (
                slope * cosine - turn * sine + real,
                slope * sine + turn * cosine + imaginary,
            )
        energies = (real * cosine - imaginary * sine).sum(0)
        return energies, torch.cat([-turn, slope])


class Impropers(PriorTerm):
    """Sum of k/2 (s - s0)^2 over quadruples, s = sin(t) sin(a) sin(b): holds the handedness.

    With a branched bead second in a quadruple of it and three of its neighbours, s is positive on
    one side of the plane of the first three and negative on the other, so a mirror image has
    another energy. It is smooth everywhere, where the improper torsion t is not.

    Args:
        indices: (terms, 4) bead indices; see `prior_indices.improper_indices`.
        stiffness: k, kJ/mol, one a term.
        sine: s0, one a term.
    """

    stiffness: Tensor
    sine: Tensor

    def __init__(
        self,
        indices: Sequence[Sequence[int]],
        stiffness: Sequence[float],
        sine: Sequence[float],
    ) -> None:
        super().__init__(indices, 4)
        self.register_buffer("stiffness", torch.tensor(stiffness, dtype=torch.float32))
        self.register_buffer("sine", torch.tensor(sine, dtype=torch.float32))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        sine = _damped(positions, self.indices, box_vectors)[0]
        return (0.5 * self.stiffness * (sine - self.sine).square()).sum(-1)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,) and (2 terms, copies), kJ/mol, by the sines, then cosines."""
        sine, cosine = values.split(self.indices.size(0))
        energies, gradient = _harmonic(sine, self.stiffness, self.sine)
        return energies, torch.cat([gradient, torch.zeros_like(cosine)])


class Repulsion(PriorTerm):
    """Sum of strength (radius / d)^12 over pairs.

    Args:
        indices: (terms, 2) bead indices.
        strength: kJ/mol, one a term: the energy at d = radius.
        radius: nm, one a term.
    """

    strength: Tensor
    radius: Tensor

    def __init__(
        self,
        indices: Sequence[Sequence[int]],
        strength: Sequence[float],
        radius: Sequence[float],
    ) -> None:
        super().__init__(indices, 2)
        self.register_buffer("strength", torch.tensor(strength, dtype=torch.float32))
        self.register_buffer("radius", torch.tensor(radius, dtype=torch.float32))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        steps = geometry.displacements(positions, self.indices, box_vectors)
        # Through the squared distance: no square root, no infinite gradient of one.
        inverse_cube = (self.radius.square() / steps.square().sum(-1)).pow(3)
        return (self.strength * inverse_cube.square()).sum(-1)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and (terms, copies), kJ/mol/nm."""
        strength = self.strength.unsqueeze(1)
        power = (self.radius.unsqueeze(1) / values).pow_(3)
        power.mul_(power)
        power.mul_(power)
        return (power * strength).sum(0), power.mul_(-12 * strength).div_(values)


class Electrostatics(PriorTerm):
    """Sum of q_i q_j / (4 pi epsilon_0 epsilon d) exp(-d / screening) over pairs.

    Charges in a solution of ions (Debye and Hueckel 1923, Phys. Z. 24, 185).

    Args:
        indices: (terms, 2) bead indices.
        charge_products: q_i q_j, e^2, one a term.
        permittivity: epsilon, relative to the vacuum's.
        screening: Debye length, nm.
    """

    charge_products: Tensor
    permittivity: Tensor
    screening: Tensor

    def __init__(
        self,
        indices: Sequence[Sequence[int]],
        charge_products: Sequence[float],
        permittivity: float,
        screening: float,
    ) -> None:
        super().__init__(indices, 2)
        products = torch.tensor(charge_products, dtype=torch.float32)
        self.coulomb = COULOMB_CONSTANT  # TorchScript knows no global numbers
        self.register_buffer("charge_products", products)
        self.register_buffer("permittivity", torch.tensor(permittivity, dtype=torch.float32))
        self.register_buffer("screening", torch.tensor(screening, dtype=torch.float32))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        lengths = geometry.distances(positions, self.indices, box_vectors)
        strength = self.coulomb / self.permittivity * self.charge_products
        return (strength * torch.exp(-lengths / self.screening) / lengths).sum(-1)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and (terms, copies), kJ/mol/nm."""
        strength = (self.coulomb / self.permittivity * self.charge_products).unsqueeze(1)
        energies = strength * torch.exp(-values / self.screening) / values
        return energies.sum(0), -energies * (1 / values + 1 / self.screening)


def _damped(
    positions: Tensor, quadruples: Tensor, box_vectors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return damped sines and cosines of torsions, (copies, terms) each."""
    return geometry.damped_torsions(
        geometry.displacements(positions, quadruples[:, 0:2], box_vectors),
        geometry.displacements(positions, quadruples[:, 1:3], box_vectors),
        geometry.displacements(positions, quadruples[:, 2:4], box_vectors),
    )


def _harmonic(values: Tensor, stiffness: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum (copies,) and the gradient (terms, copies) of k/2 (value - centre)^2."""
    # Numbers multiply the parameters, not the terms: a frozen program holds these products.
    stiffness = stiffness.unsqueeze(1)
    stretch = values - centre.unsqueeze(1)
    gradient = stretch * stiffness
    return stretch.mul_(stretch).mul_(0.5 * stiffness).sum(0), gradient
