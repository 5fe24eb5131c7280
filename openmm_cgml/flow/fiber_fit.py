"""What a split-flow takes from frames before it is trained: kinds, mean, modes and spreads."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import numpy as np

from ..errors import InputError
from ..mapping.fiber import Fiber
from ..topology import CGTopology, bond_separations, bonded_beads, surroundings

# Beads around a bead whose vectors make its frame, and the pairs of them that are multiplied.
_AROUND = 4
_CROSSED = ((0, 1), (0, 2), (1, 2))
_LENGTH = 0.3  # nm, of the products

#: Vectors of a bead's frame.
FRAME_VECTORS = _AROUND + len(_CROSSED)

# Bonds and residues beyond which two atoms of a chain are no kind of their own.
_BONDS, _RESIDUES = 6, 2
_BEAD_BONDS = 3  # that a bond between beads counts for

# Bonds up to which the surroundings make kinds by the graph, of atoms and of atoms in pairs.
_SITE_ROUNDS, _PAIR_ROUNDS = 3, 1

# Frames that kinds and modes are fitted to.
_FRAMES = 4000

# Ridge of the mean's coefficients, and least spread along a mode, nm.
_RIDGE, _LEAST = 1e-4, 1e-3
_NARROWEST = 2e-3  # nm, of a distance


def frame_indices(beads: CGTopology) -> np.ndarray:
    """Return (beads, 4) the nearest other beads of each along bonds; itself where there are none.

    Args:
        beads: the beads with their bonds.
    """
    separations = bond_separations(len(beads), beads.bonds)
    found = np.tile(np.arange(len(beads))[:, None], (1, _AROUND))
    for bead in range(len(beads)):
        order = np.lexsort((np.abs(np.arange(len(beads)) - bead), separations[bead]))
        others = order[order != bead][:_AROUND]
        found[bead, : len(others)] = others
    return found


def frame_vectors(beads: Tensor, indices: np.ndarray) -> Tensor:
    """Return vectors that turn with the beads (copies, beads, 7, 3), nm.

    Those to the beads around, and products of two of them, which tell mirror images apart.

    Args:
        beads: (copies, beads, 3), nm.
        indices: from `frame_indices`.
    """
    around = torch.as_tensor(indices, device=beads.device)
    to = beads[:, around] - beads[:, :, None]
    crossed = [torch.linalg.cross(to[:, :, i], to[:, :, j]) / _LENGTH for i, j in _CROSSED]
    return torch.cat([to, torch.stack(crossed, 2)], 2)


@dataclass(frozen=True)
class Kinds:
    """Kinds of sites and of pairs of them, which a network's weights belong to.

    By names, atoms are of one kind if atom and residue have the same names. Pairs with fewer than
    six bonds between are of one kind if both are, within a residue; of residues at most two apart
    if names, order and number of bonds are the same. All others are if the elements are.

    By the graph, atoms are of one kind if elements, bonds and beads are the same up to three bonds
    away, and pairs if they are up to one bond away, with the same number of bonds between: the
    carbons of a chain share what they learn.

    Attributes:
        sites, pairs: names.
        lengths, widths: mean and standard deviation of the distance of each kind of pair, nm.
        size: of the beads' frames, nm.
        typical: sites of a molecule.
        stiff: spread below which deviations count no more for being small, nm.
        by: ``"names"`` or ``"graph"``.
    """

    sites: tuple[str, ...]
    pairs: tuple[str, ...]
    lengths: tuple[float, ...]
    widths: tuple[float, ...]
    size: float
    typical: int
    stiff: float
    by: str = "names"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return asdict(self)

    def of(
        self, atoms: CGTopology, beads: CGTopology, fiber: Fiber
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return kinds of sites (sites,), of pairs (sites, sites), mean distances and widths, nm.

        Args:
            atoms: of the molecule.
            beads: likewise.
            fiber: of the map.

        Raises:
            InputError: if a kind of atom is not among those that were learned.
        """
        site_names, pair_names = _NAMES[self.by](atoms, beads, fiber)
        known = {name: k for k, name in enumerate(self.sites)}
        for number, name in enumerate(site_names):
            if name not in known:
                label = atoms.label(number) if number < len(atoms) else name
                raise InputError(
                    f"{label} is of a kind that the split-flow has not learned; train it on "
                    "molecules with such residues"
                )
        rows = {name: k for k, name in enumerate(self.pairs)}
        # The second name of a pair is that of the elements, which have been learned if both have.
        pair = np.array(
            [[rows.get(one, rows.get(other, 0)) for one, other in line] for line in pair_names]
        )
        return (
            np.array([known[name] for name in site_names]),
            pair,
            np.asarray(self.lengths)[pair],
            np.asarray(self.widths)[pair],
        )


def extra_sites(fiber: Fiber) -> np.ndarray:
    """Return the beads that are no single atom: sites beside the atoms."""
    return np.flatnonzero((fiber.matrix != 0).sum(1) != 1)


def _names(
    atoms: CGTopology, beads: CGTopology, fiber: Fiber
) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Return the names of the kinds of sites, and of pairs: the particular and the general one."""
    count = len(atoms)
    residues = [*zip(atoms.chain_ids, atoms.residue_ids, atoms.residue_names, strict=True)]
    names = [f"{r}-{a}" for r, a in zip(atoms.residue_names, atoms.bead_names, strict=True)]
    short = list(atoms.bead_names)
    elements = [_element(m) for m in atoms.masses]
    bonds = bond_separations(count, atoms.bonds)
    apart = bond_separations(len(beads), beads.bonds)
    home = fiber.home.tolist()
    for bead in extra_sites(fiber).tolist():
        residues.append(
            (beads.chain_ids[bead], beads.residue_ids[bead], beads.residue_names[bead])
        )
        names.append(f"{beads.residue_names[bead]}-{beads.bead_names[bead]} bead")
        short.append(f"{beads.bead_names[bead]} bead")
        elements.append("bead")
        home.append(bead)
    order = {r: k for k, r in enumerate(dict.fromkeys(residues[:count]))}

    def pair(i: int, j: int) -> tuple[str, str]:
        general = f"{elements[i]} {elements[j]}"
        if i == j:
            return "self", "self"
        between = _steps(i, j, count, bonds, apart, home)
        if between >= _BONDS:
            return general, general
        if residues[i] == residues[j]:
            return f"{names[i]} {names[j]}", general
        along = order.get(residues[j], -9) - order.get(residues[i], -9)
        if residues[i][0] == residues[j][0] and abs(along) <= _RESIDUES:
            return f"{short[i]} {short[j]} {along:+d} {between}", general
        return general, general

    sites = len(names)
    return names, [[pair(i, j) for j in range(sites)] for i in range(sites)]


def _graph_names(
    atoms: CGTopology, beads: CGTopology, fiber: Fiber
) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """Return the names of kinds by what is bonded to atoms, and of pairs as `_names`."""
    elements = [_element(m) for m in atoms.masses]
    home = fiber.home.tolist()
    bonds = bond_separations(len(atoms), atoms.bonds)
    apart = bond_separations(len(beads), beads.bonds)
    around = bonded_beads(atoms.bonds)
    wide, near = (
        surroundings(elements, atoms.bonds, rounds, [home[i] == home[j] for i, j in atoms.bonds])
        for rounds in (_SITE_ROUNDS, _PAIR_ROUNDS)
    )
    # Equivalent atoms of one atom are numbered, or their order would mean nothing.
    for several in around.values():
        for colours in (wide, near):
            seen: dict[str, int] = {}
            for atom in sorted(a for a in several if len(around[a]) == 1):
                seen[colours[atom]] = seen.get(colours[atom], 0) + 1
                colours[atom] += "'" * (seen[colours[atom]] - 1)
    extra = extra_sites(fiber).tolist()
    for bead in extra:
        name = f"{''.join(sorted(elements[a] for a in np.flatnonzero(fiber.home == bead)))} bead"
        wide, near, home = [*wide, name], [*near, name], [*home, bead]
    elements += ["bead"] * len(extra)

    def pair(i: int, j: int) -> tuple[str, str]:
        general = f"{elements[i]} {elements[j]}"
        if i == j:
            return "self", "self"
        between = _steps(i, j, len(atoms), bonds, apart, home)
        if between >= _BONDS:
            return general, general
        along = int(np.sign(home[j] - home[i]))
        return f"{near[i]} {near[j]} {along:+d} {between}", general

    return wide, [[pair(i, j) for j in range(len(wide))] for i in range(len(wide))]


def _steps(
    i: int, j: int, count: int, bonds: np.ndarray, apart: np.ndarray, home: Sequence[int]
) -> int:
    """Return bonds between sites; for beads those between them stand for as many each."""
    if max(i, j) < count:
        return min(int(bonds[i, j]), _BONDS)
    return min(1 + _BEAD_BONDS * int(apart[home[i], home[j]]), _BONDS)


_NAMES = {"names": _names, "graph": _graph_names}

#: What kinds of atoms can be told by.
KINDS = tuple(_NAMES)


def _element(mass: float) -> str:
    """Return an element's symbol, or the mass, rounded."""
    return {1: "H", 12: "C", 14: "N", 16: "O", 31: "P", 32: "S"}.get(round(mass), f"{mass:.0f}")


def fit_kinds(
    molecules: Sequence[tuple[CGTopology, CGTopology, Fiber, np.ndarray]],
    stiff: float,
    by: str = "names",
) -> Kinds:
    """Return the kinds of some molecules, and their usual distances.

    Args:
        molecules: of each its atoms, beads, fiber, and frames (frames, atoms, 3), nm.
        stiff, by: see `Kinds`.
    """
    sites: dict[str, None] = {}
    sums: dict[str, np.ndarray] = {"self": np.array([1.0, 0.0, _NARROWEST**2])}
    square, many = 0.0, 0.0
    for atoms, beads, fiber, positions in molecules:
        extra = extra_sites(fiber)
        names, pairs = _NAMES[by](atoms, beads, fiber)
        sites |= dict.fromkeys(names)
        part = positions[:: max(1, len(positions) // 200)]
        where = fiber.beads_of(part)
        part = np.concatenate([part, where[:, extra]], 1)
        apart = np.linalg.norm(part[:, :, None] - part[:, None], axis=-1)
        found = np.stack([np.ones_like(apart[0]), apart.mean(0), (apart**2).mean(0)], -1)
        for i, line in enumerate(pairs):
            for j, both in enumerate(line):
                for name in dict.fromkeys(both):
                    if i != j:
                        sums[name] = sums.get(name, 0.0) + found[i, j]
        to = where[:, frame_indices(beads)] - where[:, :, None]
        square, many = square + float(np.square(to).sum(-1).mean()), many + 1
    totals = np.array(list(sums.values()))
    lengths = totals[:, 1] / totals[:, 0]
    variances = totals[:, 2] / totals[:, 0] - lengths**2
    return Kinds(
        tuple(sites), tuple(sums), tuple(lengths.tolist()),
        tuple(np.sqrt(np.maximum(variances, _NARROWEST**2)).tolist()),
        max(0.1, (square / many) ** 0.5), len(pairs), stiff, by,
    )  # fmt: skip


def fit_gaussian(
    fiber: Fiber, beads: CGTopology, positions: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the Gaussian of atoms at given beads that turns with them.

    Args:
        fiber: of the map.
        beads: topology of the beads.
        positions: (frames, atoms, 3), nm, whole molecules.
        probabilities: (frames,).

    Returns:
        Coefficients of the mean (atoms, vectors), modes (atoms, atoms - beads) and standard
        deviations along them, nm.
    """
    chosen = slice(None, None, max(1, len(positions) // _FRAMES))
    positions = np.asarray(positions[chosen], dtype=np.float64)
    shares = probabilities[chosen] / probabilities[chosen].sum()
    where = fiber.beads_of(positions)
    offsets = fiber.offsets(positions)
    vectors = frame_vectors(torch.as_tensor(where), frame_indices(beads)).numpy()
    vectors = vectors[:, fiber.home]
    mean = np.zeros(vectors.shape[1:3])
    for atom in range(fiber.atoms):
        basis = vectors[:, atom] * shares[:, None, None] ** 0.5
        target = offsets[:, atom] * shares[:, None] ** 0.5
        square = np.einsum("fvk,fwk->vw", basis, basis)
        scale = max(np.trace(square) / len(square), 1e-12)
        onto = np.einsum("fvk,fk->v", basis, target)
        mean[atom] = np.linalg.solve(square + _RIDGE * scale * np.eye(len(square)), onto)
    left = offsets - np.einsum("af,bafk->bak", mean, vectors)
    along = np.einsum("ma,fak->fmk", fiber.basis, left)
    covariance = np.einsum("f,fmk,fnk->mn", shares, along, along) / 3
    values, turned = np.linalg.eigh(covariance)
    return mean, fiber.basis.T @ turned, np.maximum(values, _LEAST**2) ** 0.5
