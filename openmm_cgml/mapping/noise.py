"""Forces of smeared beads: Gaussian noise on the positions, less noise in the forces.

With R' = M r + e, e ~ N(0, s^2) on every bead and axis, the PMF of R' is that of R smeared by the
Gaussian. Noise counts as further degrees of freedom with the potential kT e^2 / (2 s^2), whose
force is -kT e / s^2. A map F = B f - C kT e / s^2 has the mean force of R' if B M^T + C = 1 and B
keeps constraints: B itself need not fit M any more, and the noise of f weighs against that of
kT e / s^2. The best such map has

    B = L M (G + L M^T M)^-1,    L = (kT / s)^2,  G = < f f^T >.

As s goes to 0 it becomes the optimal map; as s grows, the forces of the atoms are left out and
what remains is denoising score matching.

Reference: Durumeric et al. 2024, arXiv:2407.01286; Kraemer et al. 2023,
doi:10.1021/acs.jpclett.3c00444.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from ..errors import InputError
from ..units import strip, thermal_energy
from .core import Mapping, apply_matrix, triplets
from .force_map import ForceMap, OptimalFit


@dataclass(frozen=True, eq=False)
class NoisedForceMap:
    """A force map of beads smeared by a Gaussian.

    Attributes:
        base: how the atoms' forces are mapped.
        noise_matrix: sparse (beads, beads), C above.
        sigma: standard deviation of the noise on each axis, nm.
        kt: thermal energy, kJ/mol.
        mean_square: mean of F^2 per component, (kJ/mol/nm)^2; None if not known.
    """

    base: Any
    noise_matrix: Any
    sigma: float
    kt: float
    mean_square: float | None = None

    @property
    def name(self) -> str:
        """The name of the map without noise, and the noise."""
        return f"{self.base.name}, noised"

    @property
    def constraint_groups(self) -> tuple[tuple[int, ...], ...]:
        """Atoms tied by constraints, each group ascending."""
        return self.base.constraint_groups

    def draw(self, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        """Draw noise for bead positions of this shape, nm."""
        return generator.normal(0, self.sigma, shape)

    def map_forces(self, forces: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Map the atoms' part of forces (frames, atoms, 3) to (frames, beads, 3), kJ/mol/nm."""
        return self.base.map_forces(forces, positions)

    def noise_forces(self, noise: np.ndarray) -> np.ndarray:
        """Return the noise's part of the forces (frames, beads, 3), kJ/mol/nm.

        Args:
            noise: (frames, beads, 3) that is added to the beads' positions, nm.
        """
        if not self.noise_matrix.nnz:
            return np.zeros_like(noise)
        return apply_matrix(self.noise_matrix, noise) * (-self.kt / self.sigma**2)

    def describe(self) -> dict[str, Any]:
        """Return what a dataset records of the map, JSON-able."""
        return {
            **self.base.describe(),
            "name": self.name,
            "mean_square": self.mean_square,
            "noise_matrix": triplets(self.noise_matrix),
        }


def smear(mapping: Mapping, sigma: Any, temperature: Any) -> NoisedForceMap:
    """Return the noise for positions without forces; arguments as of `add_noise`."""
    sigma = strip(sigma, "nanometer", what="noise", positive=True)
    beads = len(mapping.topology)
    nothing = scipy.sparse.csr_array((beads, beads))
    return NoisedForceMap(None, nothing, sigma, thermal_energy(temperature))


def add_noise(fit: Any, mapping: Mapping, sigma: Any, temperature: Any) -> NoisedForceMap:
    """Return the map of forces on smeared beads.

    Args:
        fit: a member of `FORCE_MAPS` that has taken its frames. For ``optimal``, the map is the
            best for the noise; for others it stays as it is, which is correct too (C = 0).
        mapping: the position map.
        sigma: standard deviation of the noise on each axis, nm.
        temperature: K.

    Raises:
        InputError: if sigma is not positive, or no forces were given.
    """
    sigma = strip(sigma, "nanometer", what="noise", positive=True)
    kt = thermal_energy(temperature)
    beads = len(mapping.topology)
    if type(fit) is not OptimalFit:
        return NoisedForceMap(fit.fit(), scipy.sparse.csr_array((beads, beads)), sigma, kt)
    gram = fit.gram
    if not gram.sums.blocks:
        raise InputError("the optimal force map is fitted to forces; give some, or use 'basic'")
    strength = (kt / sigma) ** 2
    matrix = scipy.sparse.lil_array(mapping.matrix.shape)
    left = scipy.sparse.lil_array((beads, beads))
    frames, square = sum(gram.sums.frames), 0.0
    for kind, tie, total in zip(gram.kinds, gram.ties, gram.sums.total(), strict=True):
        grouped_map = kind.matrix @ tie.T
        mean = total / (3 * frames * len(kind.atoms))
        # Not invertible where atoms have no forces, or forces sum to zero and beads do not see it.
        rows = np.linalg.lstsq(
            mean + strength * grouped_map.T @ grouped_map, strength * grouped_map.T, rcond=1e-12
        )[0].T
        rest = np.eye(len(rows)) - rows @ grouped_map.T
        square += len(kind.beads) * float(
            np.einsum("ig,gh,ih->", rows, mean, rows)
            + (kt / sigma) ** 2 * (rest**2).sum()
        )  # fmt: skip
        for atoms, own in zip(kind.atoms, kind.beads, strict=True):
            matrix[np.ix_(own, atoms)] = rows @ tie
            left[np.ix_(own, own)] = rest
    base = ForceMap("optimal", scipy.sparse.csr_array(matrix), gram.groups)
    return NoisedForceMap(base, scipy.sparse.csr_array(left), sigma, kt, square / beads)
