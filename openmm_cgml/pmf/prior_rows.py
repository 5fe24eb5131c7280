"""Rows of a prior table: parameters by bead type, checked one by one."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from ..errors import InputError
from ..topology import CGTopology
from .prior_indices import term_indices, type_key
from .prior_terms import Electrostatics

_POSITIVE = ("length", "radius", "permittivity", "screening")
_NOT_NEGATIVE = ("stiffness", "strength")
_WITHIN_ONE = ("cosine", "sine")


@dataclass(frozen=True)
class Row:
    """Parameters of all terms whose beads have some types, in either direction."""

    kind: ClassVar[str]
    width: ClassVar[int]

    types: tuple[str, ...]

    def __post_init__(self) -> None:
        types = _sequence(self.types, "types")
        if len(types) != self.width or not all(isinstance(t, str) and t for t in types):
            raise InputError(f"types are {types!r:.80}; give {self.width} bead types in quotes")
        object.__setattr__(self, "types", type_key(types, self.kind))
        for name in self.parameters():
            value = getattr(self, name)
            if name in ("cosines", "sines"):
                value = tuple(_number(v, name, self.label) for v in _sequence(value, name))
            else:
                value = _number(value, name, self.label)
            object.__setattr__(self, name, value)

    @property
    def label(self) -> str:
        """How messages name the row."""
        return "-".join(self.types)

    @classmethod
    def parameters(cls) -> list[str]:
        """Return the names of the parameters."""
        return [f.name for f in fields(cls) if f.name != "types"]


@dataclass(frozen=True)
class BondRow(Row):
    """Harmonic bonds; see `HarmonicBonds`.

    Attributes:
        types: of the two beads.
        length: d0, nm.
        stiffness: k, kJ/mol/nm^2.
    """

    kind = "bonds"
    width = 2
    length: float
    stiffness: float


@dataclass(frozen=True)
class AngleRow(Row):
    """Harmonic cosines of angles; see `HarmonicAngles`.

    Attributes:
        types: of the three beads, the tip second.
        cosine: c0.
        stiffness: k, kJ/mol.
    """

    kind = "angles"
    width = 3
    cosine: float
    stiffness: float


@dataclass(frozen=True)
class TorsionRow(Row):
    """A Fourier series; see `FourierTorsions`. Torsions about one bond share it evenly.

    Attributes:
        types: of the four beads.
        cosines: c_n, kJ/mol, from n = 1 on.
        sines: s_n, kJ/mol, as many.
    """

    kind = "torsions"
    width = 4
    cosines: tuple[float, ...]
    sines: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.cosines) != len(self.sines) or not self.cosines:
            raise InputError(
                f"{self.label}: {len(self.cosines)} cosines and {len(self.sines)} sines; give as "
                "many of both, at least one"
            )


@dataclass(frozen=True)
class ImproperRow(Row):
    """Harmonic damped sines of impropers; see `Impropers`. The order of the types counts.

    Attributes:
        types: of the four beads, the branched one second, its neighbours as in
            `improper_indices`.
        sine: s0.
        stiffness: k, kJ/mol.
    """

    kind = "impropers"
    width = 4
    sine: float
    stiffness: float


@dataclass(frozen=True)
class RepulsionRow(Row):
    """Repulsion; see `Repulsion`.

    Attributes:
        types: of the two beads.
        radius: nm.
        strength: kJ/mol, the energy at that distance.
    """

    kind = "repulsion"
    width = 2
    radius: float
    strength: float


@dataclass(frozen=True)
class Charges:
    """Charges by bead type, and what lies between them; see `Electrostatics`.

    Attributes:
        charges: bead type -> charge, e; types without one are listed with 0.
        permittivity: relative to the vacuum's; water at 300 K by default.
        screening: Debye length, nm; 0.1 mol/l of monovalent salt by default.
    """

    charges: dict[str, float] = field(default_factory=dict)
    permittivity: float = 78.0
    screening: float = 0.96

    def __post_init__(self) -> None:
        if not isinstance(self.charges, Mapping) or not self.charges:
            raise InputError(
                f"charges are {self.charges!r:.60}; give a table of bead type = charge"
            )
        charges = {str(t): _number(q, "charge", str(t)) for t, q in self.charges.items()}
        object.__setattr__(self, "charges", charges)
        for name in ("permittivity", "screening"):
            value = _number(getattr(self, name), name, "electrostatics")
            object.__setattr__(self, name, value)

    def term(self, topology: CGTopology) -> Electrostatics | None:
        """Return the term for a molecule; None if no two charges are far enough apart.

        Raises:
            InputError: if a bead's type has no charge.
        """
        for bead, kind in enumerate(topology.bead_types):
            if kind not in self.charges:
                raise InputError(
                    f"bead {topology.label(bead)} is of type {kind!r}, which has no charge in "
                    f"[electrostatics.charges]; add {json.dumps(kind)} = 0.0 or what it has"
                )
        charge = [self.charges[kind] for kind in topology.bead_types]
        pairs = [
            (i, j) for i, j in term_indices(topology, "electrostatics") if charge[i] * charge[j]
        ]
        if not pairs:
            return None
        products = [charge[i] * charge[j] for i, j in pairs]
        return Electrostatics(pairs, products, self.permittivity, self.screening)


#: Kinds of terms, in the order of a file, and the class of their rows.
ROWS: dict[str, type[Row]] = {
    row.kind: row for row in (BondRow, AngleRow, TorsionRow, ImproperRow, RepulsionRow)
}


def _sequence(value: Any, name: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(f"{name} are {value!r:.60}, not a list; write them in [ ]")
    return value


def _number(value: Any, name: str, label: str) -> float:
    """Return a parameter as a float, if it is within what its name allows."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        number = float(value) if real else math.nan
    except OverflowError:  # a whole number that no float holds
        number = math.inf
    allowed = "a finite number"
    good = math.isfinite(number)
    if name in _POSITIVE:
        good, allowed = good and number > 0, "a number above 0"
    elif name in _NOT_NEGATIVE:
        good, allowed = good and number >= 0, "a number of at least 0"
    elif name in _WITHIN_ONE:
        good, allowed = good and abs(number) <= 1, "a number from -1 to 1"
    if not good:
        raise InputError(f"{label}: {name} is {value!r:.60}; give {allowed}")
    return number
