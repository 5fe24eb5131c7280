"""The prior and the network that ``cgml train`` is asked for."""

import difflib
import inspect
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError, first_line
from .pmf import PMFS

_ONE_MOLECULE = ("cgnet",)  # networks that tell beads apart by their number
_NO_PRIOR = "none"


@dataclass(frozen=True)
class PriorChoice:
    """A prior as options name it; None where they do not.

    Attributes:
        terms: with commas, as of `fit_prior`, or ``"none"``.
        by: as of `fit_prior`.
        orders: as of `fit_prior`.
        charges: TYPE=CHARGE each; types that are not named have none.
        permittivity: as of `Charges`.
        screening: as of `Charges`, nm.
        table: a file, of which all of the above is then taken.
        write: a file for the table that is fitted.

    Raises:
        InputError: if options contradict each other.
    """

    terms: str | None = None
    by: str | None = None
    orders: int | None = None
    charges: Sequence[str] = ()
    permittivity: float | None = None
    screening: float | None = None
    table: Path | None = None
    write: Path | None = None

    def __post_init__(self) -> None:
        fitting = {
            "--prior-by": self.by,
            "--prior-orders": self.orders,
            "--charge": self.charges or None,
            "--permittivity": self.permittivity,
            "--screening": self.screening,
            "--write-prior": self.write,
        }
        given = [name for name, value in fitting.items() if value is not None]
        if self.table is not None and (self.terms is not None or given):
            first = "--prior" if self.terms is not None else given[0]
            raise InputError(
                f"--prior-table has all of the prior; leave out {first}, or edit {self.table}"
            )
        if self.terms == _NO_PRIOR and given:
            raise InputError(f"--prior none is no prior; leave out {given[0]}")
        if not self.charges and (self.permittivity is not None or self.screening is not None):
            raise InputError("--permittivity and --screening are of charges; add --charge")
        if self.orders is not None and "torsions" not in self.names:
            raise InputError(
                "--prior-orders is the number of torsions' harmonics; add torsions to --prior"
            )

    @property
    def names(self) -> list[str]:
        """The terms."""
        from .pmf.prior import DEFAULT_TERMS

        if self.terms is None:
            return list(DEFAULT_TERMS)
        return [name.strip() for name in self.terms.split(",")]

    def make(self, sample: Any, network: str) -> tuple[Any, Any]:
        """Return the prior, fitted to a dataset or a collection, and its table; None without.

        By type if not told otherwise for several molecules, and for large ones, whose pairs are
        too many; but a network that has all pairs among its own features shares those.

        Raises:
            InputError: if there are no such terms, beads or types, or the table cannot be read.
        """
        from .pmf.message import MOST_DENSE
        from .pmf.prior import fit_prior, fit_prior_table, read_prior_table

        topologies = _topologies(sample)
        if self.terms == _NO_PRIOR:
            return None, None
        if self.table is not None:
            table = read_prior_table(self.table)
            try:
                priors = [table.to_pmf(topology) for topology in topologies]
            except InputError as error:
                raise InputError(f"prior table {self.table}: {error}") from None
            return priors[0], table
        several = len(topologies) > 1
        large = len(topologies[0]) > MOST_DENSE and network not in _ONE_MOLECULE
        by = self.by or ("type" if several or large else "term")
        if by == "term" and several:
            raise InputError("several molecules share a prior by bead type; take --prior-by type")
        settings: dict[str, Any] = {"charges": self._charges(topologies)}
        if self.orders is not None:
            settings["orders"] = self.orders
        if by != "type":
            if self.write is not None:
                raise InputError("--write-prior is for a prior by bead type; add --prior-by type")
            return fit_prior(sample, self.names, by=by, **settings), None
        table = fit_prior_table(sample, self.names, **settings)
        return table.to_pmf(topologies[0]), table

    def _charges(self, topologies: Sequence[Any]) -> Any:
        from .pmf.prior import Charges

        if not self.charges:
            return None
        known = sorted({kind for topology in topologies for kind in topology.bead_types})
        charges = dict.fromkeys(known, 0.0)
        for kind, charge in assignments(self.charges, "--charge", "TYPE=CHARGE").items():
            if kind not in charges:
                raise InputError(
                    f"--charge: no bead is of type {kind!r}; the types are {', '.join(known)}"
                )
            charges[kind] = charge
        screening = {"permittivity": self.permittivity, "screening": self.screening}
        return Charges(charges, **{k: v for k, v in screening.items() if v is not None})


def network_settings(
    network: str,
    width: int | None,
    depth: int | None,
    assigned: Sequence[str],
    family: Mapping[str, Any] = PMFS,
) -> dict[str, Any]:
    """Return the settings of a network that options give.

    Args:
        network: a name of `family`.
        width: None: the network's own.
        depth: None: the network's own.
        assigned: NAME=VALUE each, VALUE a JSON scalar.
        family: the registry that the name is looked up in.

    Raises:
        InputError: if the network has no such setting, or one is given twice or has a value of
            another kind.
    """
    known = _settings_of(family[network])
    settings = assignments(assigned, "--set", "NAME=VALUE")
    for name, value in (("width", width), ("depth", depth)):
        if value is None:
            continue
        if name in settings:
            raise InputError(f"--{name} and --set {name} say the same; leave one out")
        settings[name] = value
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{network} has no setting {name!r}; {hint}it has {', '.join(known)}")
        # A whole number will do for a real one; True is neither.
        kinds = known[name]
        kind = float if type(value) is int and int not in kinds else type(value)
        # All numbers count or measure something.
        good = kind not in (int, float) or 0 < value < math.inf
        if not good or (kind not in kinds and Any not in kinds):
            said = " or ".join(_KINDS.get(kind, str(kind)) for kind in kinds)
            raise InputError(f"{network}: setting {name} is {json.dumps(value)}; give {said}")
    return settings


def _settings_of(builder: Any) -> dict[str, tuple[Any, ...]]:
    """Return the settings of what makes a network, and what types their values may have."""
    hints = typing.get_type_hints(builder)
    found = {}
    for one in inspect.signature(builder).parameters.values():
        if one.kind is one.KEYWORD_ONLY and one.name != "seed":
            hint = hints.get(one.name, Any)
            several = typing.get_origin(hint) in (typing.Union, types.UnionType)
            found[one.name] = typing.get_args(hint) if several else (hint,)
    return found


def require_serves(network: str, sample: Any) -> None:
    """Refuse a network of one molecule for a collection of several.

    Raises:
        InputError: naming the networks that serve.
    """
    if network in _ONE_MOLECULE and len(_topologies(sample)) > 1:
        others = ", ".join(name for name in PMFS if name not in _ONE_MOLECULE)
        raise InputError(f"{network} knows one molecule only; for several choose {others}")


def make_network(
    network: str,
    sample: Any,
    settings: dict[str, Any],
    seed: int,
    family: Mapping[str, Any] = PMFS,
) -> Any:
    """Return an untrained network of a family for a dataset or a collection.

    Raises:
        InputError: if the network has no use for a value.
    """
    try:
        return family[network](sample, **settings, seed=seed)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # torch's, e.g. of too much memory
        given = ", ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
        raise InputError(
            f"{network} cannot be made with {given or 'its own settings'}: {first_line(error)}"
        ) from error


def assignments(texts: Sequence[str], option: str, form: str) -> dict[str, Any]:
    """Return what NAME=VALUE texts assign, each value a JSON scalar.

    Raises:
        InputError: if a text is of another form, or a name occurs twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise InputError(f"{option} {text!r} is not of the form {form}")
        if name in found:
            raise InputError(f"{option} gives {name!r} twice; leave one out")
        try:
            found[name] = json.loads(value, parse_constant=_refuse)
        except ValueError:
            raise InputError(
                f"{option} {text!r}: {value!r} is no number, true, false, null or text in "
                'double quotes ("...")'
            ) from None
        if isinstance(found[name], list | dict):
            raise InputError(f"{option} {text!r}: give one value, not a list")
    return found


_KINDS: dict[Any, str] = {
    int: "a whole number above 0",
    float: "a number above 0",
    bool: "true or false",
    str: 'text in double quotes ("...")',
    types.NoneType: "null",
}


def _refuse(constant: str) -> Any:  # NaN and Infinity, which Python's reader takes
    raise ValueError(constant)


def _topologies(sample: Any) -> list[Any]:
    """Return the molecules of a dataset or a collection."""
    datasets = getattr(sample, "datasets", {"": sample})
    return [dataset.topology for dataset in datasets.values()]
