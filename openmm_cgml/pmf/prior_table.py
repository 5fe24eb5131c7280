"""Priors by bead type as tables that a person can read and edit, and the PMF made of one.

The file is TOML; docs/priors.md has an example.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import geometry
from ..errors import InputError, first_line
from ..files import atomic_path
from ..texts import parse_toml, read_table, toml_text
from ..topology import CGTopology
from .core import PMF, InternalPMF, SumPMF
from .message import MOST_DENSE
from .prior_indices import REPULSION_BONDS, term_indices, torsion_shares, types_of
from .prior_rows import (
    ROWS,
    AngleRow,
    BondRow,
    Charges,
    ImproperRow,
    RepulsionRow,
    Row,
    TorsionRow,
)
from .prior_terms import (
    FourierTorsions,
    HarmonicAngles,
    HarmonicBonds,
    Impropers,
    PriorTerm,
    Repulsion,
)
from .short_range import ShortRangeRepulsion, close_pairs

_HEADER = """\
# Prior energies by bead type, written by openmm_cgml; see docs/priors.md there.
# Units: nm, kJ/mol, e; cosines and sines of angles have none. Edit numbers as you like.
"""


_TERMS: dict[str, Any] = {
    "bonds": HarmonicBonds,
    "angles": HarmonicAngles,
    "torsions": FourierTorsions,
    "impropers": Impropers,
    "repulsion": Repulsion,
}


def make_term(kind: str, indices: Sequence[Sequence[int]], rows: Sequence[Any]) -> PriorTerm:
    """Return the term of a kind with a row of parameters for each of its indices."""
    parameters = {n: [getattr(row, n) for row in rows] for n in ROWS[kind].parameters()}
    if kind == "torsions":
        orders = max(len(row.cosines) for row in rows)
        shares = torsion_shares(indices)
        parameters = {
            name: [
                [share * value for value in series] + [0.0] * (orders - len(series))
                for series, share in zip(table, shares, strict=True)
            ]
            for name, table in parameters.items()
        }
    return _TERMS[kind](indices, **parameters)


@dataclass(frozen=True)
class PriorTable:
    """Parameters of a prior by bead type, for any molecule of these types.

    A kind of term without rows is left out; one with rows must have them for all of a molecule's
    types.

    Attributes:
        bonds: rows of pairs of types.
        angles: rows of triples.
        torsions: rows of quadruples.
        impropers: rows of quadruples.
        repulsion: rows of pairs.
        electrostatics: charges, or None.

    Raises:
        InputError: if two rows are of the same types.
    """

    bonds: tuple[BondRow, ...] = ()
    angles: tuple[AngleRow, ...] = ()
    torsions: tuple[TorsionRow, ...] = ()
    impropers: tuple[ImproperRow, ...] = ()
    repulsion: tuple[RepulsionRow, ...] = ()
    electrostatics: Charges | None = None

    def __post_init__(self) -> None:
        for kind in ROWS:
            rows = tuple(getattr(self, kind))
            object.__setattr__(self, kind, rows)
            seen = set()
            for row in rows:
                if row.types in seen:
                    raise InputError(
                        f"[[{kind}]] has two rows of types {row.label}; remove one (a row holds "
                        "for both directions)"
                    )
                seen.add(row.types)

    def terms(self, topology: CGTopology) -> list[PriorTerm]:
        """Return the terms of a molecule: none if it has nothing that the table has rows for.

        Raises:
            InputError: if beads have types for which there is no row, or there are no rows at all.
        """
        if self == PriorTable():
            raise InputError("the prior table has no rows; add some, or leave the prior out")
        kinds = [kind for kind in ROWS if getattr(self, kind)]
        terms = [term for kind in kinds if (term := self._term(kind, topology)) is not None]
        if self.electrostatics is not None:
            charged = self.electrostatics.term(topology)
            terms += [] if charged is None else [charged]
        return terms

    def to_pmf(self, topology: CGTopology) -> PMF:
        """Return the prior of a molecule.

        In a molecule of more than `MOST_DENSE` beads the repulsion is a `ShortRangeRepulsion`:
        cut off, and without a list of all pairs.

        Returns:
            A `TypedPrior`; for a large molecule the sum of one without repulsion and the
            repulsion, or that alone if there is nothing else.

        Raises:
            InputError: as `terms`.
        """
        if not self.repulsion or len(topology) <= MOST_DENSE:
            return TypedPrior(self, topology)
        repulsion = self._short_range(topology)
        others = replace(self, repulsion=())
        if others == PriorTable():
            return repulsion
        return SumPMF(TypedPrior(others, topology), repulsion)

    def to_dict(self) -> dict[str, Any]:
        """Return the content as a TOML parser does; `from_dict` reads it back exactly."""
        content: dict[str, Any] = {}
        for kind, row_class in ROWS.items():
            if rows := getattr(self, kind):
                names = ["types", *row_class.parameters()]
                content[kind] = [{n: _plain(getattr(row, n)) for n in names} for row in rows]
        if self.electrostatics is not None:
            content["electrostatics"] = {
                "permittivity": self.electrostatics.permittivity,
                "screening": self.electrostatics.screening,
                "charges": dict(self.electrostatics.charges),
            }
        return content

    @classmethod
    def from_dict(cls, content: Any, where: str = "prior table") -> "PriorTable":
        """Read the output of `to_dict`, or what a TOML parser returns of a file.

        Args:
            content: the outermost table.
            where: how errors name it.

        Raises:
            InputError: if a section or a key is unknown or missing, or a value does not fit.
        """
        content = _keys(content, [*ROWS, "electrostatics"], (), where, "section")
        sections: dict[str, Any] = {
            kind: _rows(kind, content[kind], where) for kind in ROWS if kind in content
        }
        if "electrostatics" in content:
            here = f"{where}, [electrostatics]"
            known = [f.name for f in fields(Charges)]
            entry = _keys(content["electrostatics"], known, ("charges",), here, "key")
            sections["electrostatics"] = _located(here, lambda: Charges(**entry))
        return _located(where, lambda: cls(**sections))

    def to_toml(self) -> str:
        """Return the text of the file."""
        content = self.to_dict()
        blocks = [_HEADER]
        for kind in ROWS:
            for row in content.get(kind, ()):
                lines = [f"{name} = {_toml(value)}" for name, value in row.items()]
                if kind == "angles":
                    degrees = math.degrees(math.acos(row["cosine"]))
                    lines[1] += f"  # {degrees:.1f} degrees"
                blocks.append("\n".join([f"[[{kind}]]", *lines, ""]))
        if "electrostatics" in content:
            charges = content["electrostatics"].pop("charges")
            lines = [
                f"{name} = {_toml(value)}" for name, value in content["electrostatics"].items()
            ]
            blocks.append("\n".join(["[electrostatics]", *lines, ""]))
            lines = [f"{toml_text(kind)} = {_toml(charge)}" for kind, charge in charges.items()]
            blocks.append("\n".join(["[electrostatics.charges]", *lines, ""]))
        return "\n".join(blocks)

    def save(self, path: str | Path) -> None:
        """Write a TOML file; an existing one is replaced only when the new one is complete."""
        with atomic_path(path) as partial:
            partial.write_text(self.to_toml(), encoding="utf-8")

    def _term(self, kind: str, topology: CGTopology) -> PriorTerm | None:
        indices = term_indices(topology, kind)
        if not indices:
            return None
        by_types = {row.types: row for row in getattr(self, kind)}
        rows = []
        for beads in indices:
            types = types_of(topology, beads, kind)
            if types not in by_types:
                labels = ", ".join(topology.label(bead) for bead in beads)
                raise InputError(
                    f"beads {labels} are of types {'-'.join(types)}, for which the prior table "
                    f"has no row in [[{kind}]]; add one with types = {json.dumps(types)}, or fit "
                    "the table on a molecule that has such beads"
                )
            rows.append(by_types[types])
        return make_term(kind, indices, rows)

    def _short_range(self, topology: CGTopology) -> ShortRangeRepulsion:
        kinds = {kind for row in self.repulsion for kind in row.types}
        names = sorted(kinds | set(topology.bead_types))
        strength, radius = ([[0.0] * len(names) for _ in names] for _ in range(2))
        for row in self.repulsion:
            i, j = (names.index(kind) for kind in row.types)
            strength[i][j] = strength[j][i] = row.strength
            radius[i][j] = radius[j][i] = row.radius
        excluded = close_pairs(topology, REPULSION_BONDS)
        return ShortRangeRepulsion(topology.bead_types, names, strength, radius, excluded)


def read_prior_table(path: str | Path) -> PriorTable:
    """Read a prior table.

    Args:
        path: a .toml file.

    Raises:
        InputError: if the file is missing or broken, or as `PriorTable.from_dict`.
    """
    text = read_table(path, "prior table")
    try:
        content = parse_toml(text)
    except ValueError as error:
        raise InputError(
            f"prior table {path} is broken: {first_line(error)}; correct it there"
        ) from error
    return PriorTable.from_dict(content, f"prior table {path}")


class TypedPrior(InternalPMF):
    """A prior by bead type; it can be made again for another molecule.

    It has all terms that the table has rows for, the repulsion of all pairs too;
    `PriorTable.to_pmf` makes a cheaper one of large molecules. Without any term its energy is
    zero.

    Args:
        table: a `PriorTable`, or its content as of `PriorTable.to_dict`.
        topology: the molecule, or its content as in `CGTopology.to_json`.
    """

    rows: Tensor
    sizes: list[int]

    def __init__(
        self, table: PriorTable | dict[str, Any], topology: CGTopology | dict[str, Any]
    ) -> None:
        super().__init__()
        if not isinstance(table, PriorTable):
            table = PriorTable.from_dict(table)
        if not isinstance(topology, CGTopology):
            topology = CGTopology.from_json(json.dumps(topology))
        self.table, self.topology = table, topology
        terms = table.terms(topology)
        self.terms = nn.ModuleList(terms)
        self.coordinates, rows = geometry.union([term.coordinates for term in terms])
        self.sizes = [len(r) for r in rows]
        self.register_buffer("rows", torch.tensor(sum(rows, []), dtype=torch.int64))

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Tensor:
        """Return energies (copies,), kJ/mol."""
        energies = torch.zeros_like(positions[:, 0, 0])
        for term in self.terms:
            energies = energies + term(positions, box_vectors)
        return energies

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (copies,), kJ/mol, and their gradient by each coordinate."""
        if len(self.sizes) == 0:
            return values.sum(0), torch.zeros_like(values)  # of no values
        parts = values.index_select(0, self.rows).split(self.sizes)
        energies: list[Tensor] = []
        slopes: list[Tensor] = []
        for term in self.terms:
            energy, slope = term.value_and_gradient(parts[len(slopes)])  # type: ignore[operator]
            energies.append(energy)
            slopes.append(slope)
        gradient = torch.zeros_like(values).index_add_(0, self.rows, torch.cat(slopes))
        return torch.stack(energies).sum(0), gradient

    def for_topology(self, topology: CGTopology) -> PMF:
        """Return the prior of another molecule, from the same table; see `PriorTable.to_pmf`.

        Raises:
            InputError: as `PriorTable.terms`.
        """
        prior = self.table.to_pmf(topology).train(self.training)
        return prior.to(self.coordinates.to_beads)  # precision and device

    def arguments(self) -> dict[str, Any]:
        """Return the table and the topology."""
        topology = json.loads(self.topology.to_json())
        return {"table": self.table.to_dict(), "topology": topology}


def _rows(kind: str, entries: Any, where: str) -> list[Row]:
    row_class = ROWS[kind]
    if not isinstance(entries, list):
        raise InputError(f"{where}: {kind} is no list of rows; begin each row with [[{kind}]]")
    rows = []
    known = ["types", *row_class.parameters()]
    for number, entry in enumerate(entries, 1):
        here = f"{where}, [[{kind}]] number {number}"
        checked = _keys(entry, known, known, here, "key")
        rows.append(_located(here, lambda entry=checked: row_class(**entry)))
    return rows


def _keys(
    entry: Any, known: Sequence[str], needed: Sequence[str], where: str, what: str
) -> dict[str, Any]:
    """Return a table whose keys are all known and complete."""
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is {entry!r:.60}, not a table of keys; correct it")
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"{where}: {what} {key!r} is unknown; {hint}known: {', '.join(known)}"
            )
    for key in needed:
        if key not in entry:
            raise InputError(f"{where} has no {key}; add it")
    return dict(entry)


def _located(where: str, make: Any) -> Any:
    try:
        return make()
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(v) for v in value)}]"
    return toml_text(value) if isinstance(value, str) else repr(float(value))
