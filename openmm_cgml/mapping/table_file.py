"""Reading a user's table of beads, a TOML or JSON file: see docs/mappings.md for the format.

`mapping.table` applies it to a topology.
"""

import difflib
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line
from ..texts import parse_json, parse_toml, read_table

_TOP_KEYS = (
    "name", "description", "include", "weights", "hydrogens", "complete", "shared_atoms",
    "leave_out", "bead", "bonds", "residues",
)  # fmt: skip
_BEAD_KEYS = ("name", "type", "select", "weights", "hydrogens")
_RESIDUE_BEAD_KEYS = ("atoms", "type", "weights", "hydrogens")

Weights = str | tuple[float, ...]


@dataclass(frozen=True)
class BeadRule:
    """One bead of a table.

    Attributes:
        name: name of the bead.
        type: its chemical type.
        atoms: names of its atoms in a residue, ``A|B`` for alternatives, ``?`` behind an atom
            that may be absent; or one mdtraj selection.
        weights: ``"mass"``, ``"equal"``, or one weight an atom.
        hydrogens: whether hydrogens go with the atoms that they are bonded to.
    """

    name: str
    type: str
    atoms: tuple[str, ...]
    weights: Weights
    hydrogens: bool


@dataclass(frozen=True)
class ResidueRule:
    """The beads of every residue of a name.

    Attributes:
        name: name of the residue.
        beads: its beads.
        bonds: pairs of bead names, or None to bond beads as their atoms are.
        complete: whether every heavy atom has to be in a bead.
    """

    name: str
    beads: tuple[BeadRule, ...]
    bonds: tuple[tuple[str, str], ...] | None
    complete: bool


@dataclass(frozen=True)
class MappingTable:
    """A mapping table as read; `table_mapping` applies it.

    Attributes:
        name: name of the mapping.
        source: the file, for messages.
        beads: beads by selection.
        bonds: pairs of names of those, or None to bond them as their atoms are.
        residues: {residue name or alias: its beads}.
        leave_out: names of residues that are to have no beads.
        shared_atoms: whether an atom may be in several beads.
    """

    name: str
    source: str
    beads: tuple[BeadRule, ...]
    bonds: tuple[tuple[str, str], ...] | None
    residues: dict[str, ResidueRule]
    leave_out: frozenset[str]
    shared_atoms: bool


def read_mapping_table(path: str | Path) -> MappingTable:
    """Read a mapping table.

    Args:
        path: a .toml or .json file.

    Raises:
        InputError: if the file is missing or broken, a key is unknown, a value is of the wrong
            kind, beads have the same name, weights do not fit, or there are no beads.
    """
    path = Path(path)
    text = read_table(path, "mapping table")
    try:
        if path.suffix.lower() == ".toml":
            content: Any = parse_toml(text)
        elif path.suffix.lower() == ".json":
            content = parse_json(text, object_pairs_hook=_unique)
        else:
            raise InputError(
                f"mapping table {path} has an unknown format {path.suffix!r}; give .toml or .json"
            )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"mapping table {path} is broken: {first_line(error)}; correct it there"
        ) from error
    return parse_mapping_table(content, source=str(path), name=path.stem)


@cache
def packaged_table(name: str) -> MappingTable:
    """Return a table that comes with the package, which ``include`` names.

    Raises:
        InputError: if there is none of that name.
    """
    folder = resources.files(__package__.rpartition(".")[0]) / "data" / "mappings"
    known = sorted(f.name.removesuffix(".toml") for f in folder.iterdir())
    if name not in known:
        raise InputError(f"no mapping table {name!r} to include; {_nearest(name, known)}")
    with resources.as_file(folder / f"{name}.toml") as path:
        # Not the path, which says nothing to a user and much about the machine.
        return replace(read_mapping_table(path), source=repr(name))


def parse_mapping_table(
    content: Any, *, source: str = "(in memory)", name: str = "table"
) -> MappingTable:
    """Check the content of a mapping table, as a TOML or JSON parser returns it.

    Args:
        content: the outermost table.
        source: where it comes from, for messages.
        name: name of the mapping if the table gives none.

    Raises:
        InputError: as `read_mapping_table`.
    """
    where = f"mapping table {source}"
    content = _table(content, where)
    _known_keys(content, _TOP_KEYS, where)
    defaults = {
        "weights": content.get("weights", "mass"),
        "hydrogens": _flag(content, "hydrogens", where, False),
    }
    complete = _flag(content, "complete", where, False)
    if not isinstance(defaults["weights"], str):
        raise InputError(f"{where}: weights for all beads is 'mass' or 'equal'; list them by bead")
    _text(content, "description", where, "")
    beads = []
    for number, entry in enumerate(_list(content.get("bead", []), f"{where}: bead"), 1):
        here = f"{where}: bead number {number}"
        entry = _table(entry, here)
        _known_keys(entry, _BEAD_KEYS, here)
        bead_name = _text(entry, "name", here)
        here = f"{where}: bead {bead_name}"
        atoms = (_text(entry, "select", here),)
        beads.append(_bead(bead_name, bead_name, atoms, {**defaults, **entry}, here))
    _unique_names([b.name for b in beads], where)
    rules: dict[str, ResidueRule] = {}
    for residue, entry in _table(content.get("residues", {}), f"{where}: residues").items():
        rule, names = _residue(residue, entry, defaults, complete, f"{where}: residue {residue}")
        for one in names:
            if one in rules:
                raise InputError(
                    f"{where}: residue {one} is described by [residues.{rules[one].name}] and "
                    f"[residues.{residue}]; remove it from one"
                )
            rules[one] = rule
    if "include" in content:  # the table's own residues go before those that it includes
        included = packaged_table(_text(content, "include", where))
        rules = {**included.residues, **rules}
    if not beads and not rules:
        raise InputError(f"{where} has no beads; add [[bead]] or [residues.NAME] entries")
    return MappingTable(
        name=_text(content, "name", where, name),
        source=source,
        beads=tuple(beads),
        bonds=_bonds(content, [b.name for b in beads], where),
        residues=rules,
        leave_out=frozenset(_texts(content.get("leave_out", []), f"{where}: leave_out")),
        shared_atoms=_flag(content, "shared_atoms", where, False),
    )


def _residue(
    name: str, entry: Any, defaults: dict[str, Any], complete: bool, where: str
) -> tuple[ResidueRule, list[str]]:
    """Return a residue's beads, and all names that they hold for."""
    entry = _table(entry, where)
    beads = []
    for bead, content in entry.items():
        if bead in ("aliases", "bonds"):
            continue
        here = f"{where}: bead {bead}"
        if not isinstance(content, MappingType):
            content = {"atoms": content}
        _known_keys(content, _RESIDUE_BEAD_KEYS, here)
        if "atoms" not in content:
            raise InputError(f'{here} has no atoms; add atoms = ["CA", ...]')
        atoms = _texts(content["atoms"], f"{here}: atoms")
        if not atoms:
            raise InputError(f"{here} has an empty list of atoms; give it some, or remove it")
        _unique_names(atoms, f"{here}: atoms")
        beads.append(_bead(bead, f"{name}-{bead}", tuple(atoms), {**defaults, **content}, here))
    if not beads:
        raise InputError(f'{where} has no beads; add NAME = ["ATOM", ...], or use leave_out')
    aliases = _texts(entry.get("aliases", []), f"{where}: aliases")
    bonds = _bonds(entry, [b.name for b in beads], where)
    return ResidueRule(name, tuple(beads), bonds, complete), [name, *aliases]


def _bead(
    name: str, default_type: str, atoms: tuple[str, ...], entry: MappingType[str, Any], where: str
) -> BeadRule:
    hydrogens = _flag(entry, "hydrogens", where, False)
    weights = entry["weights"]
    if isinstance(weights, str):
        if weights not in ("mass", "equal"):
            raise InputError(
                f"{where}: weights {weights!r} are unknown; choose 'mass' or 'equal', or list one "
                "an atom"
            )
    else:
        numbers = _list(weights, f"{where}: weights")
        good = [
            isinstance(w, (int, float)) and not isinstance(w, bool) and 0 <= w < 1e100
            for w in numbers
        ]
        if not all(good) or not sum(numbers) > 0:
            raise InputError(
                f"{where}: weights {list(numbers)} are not numbers of at least 0 with a positive "
                "sum; correct them"
            )
        if hydrogens:
            raise InputError(
                f"{where} has listed weights, which hydrogens that are added would not have; set "
                "its hydrogens = false and list them as atoms"
            )
        if any(atom.endswith("?") for atom in atoms):
            raise InputError(
                f"{where} has listed weights and atoms that may be absent (?); give 'mass' or "
                "'equal', or describe both cases"
            )
        weights = tuple(float(w) for w in numbers)
    return BeadRule(name, _text(entry, "type", where, default_type), atoms, weights, hydrogens)


def _bonds(
    entry: MappingType[str, Any], beads: Sequence[str], where: str
) -> tuple[tuple[str, str], ...] | None:
    if "bonds" not in entry:
        return None
    pairs = []
    for pair in _list(entry["bonds"], f"{where}: bonds"):
        ends = _texts(pair, f"{where}: a bond")
        for end in ends:
            if end not in beads:
                raise InputError(
                    f"{where}: a bond names bead {end!r}, which is not there; "
                    f"{_nearest(end, beads)}"
                )
        if len(ends) != 2 or ends[0] == ends[1]:
            raise InputError(f"{where}: bond {ends} does not join two beads; name two")
        pairs.append((ends[0], ends[1]))
    return tuple(pairs)


def _known_keys(entry: MappingType[str, Any], known: Sequence[str], where: str) -> None:
    for key in entry:
        if key not in known:
            raise InputError(f"{where}: key {key!r} is unknown; {_nearest(key, known)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(known)}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; a key that stands twice would silently hide the first."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return content


def _unique_names(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where} has {name!r} twice; rename or remove one")


def _table(value: Any, where: str) -> MappingType[str, Any]:
    if not isinstance(value, MappingType):
        raise InputError(f"{where} is {value!r:.60}, not a table of keys; correct it")
    return value


def _list(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(f"{where} is {value!r:.60}, not a list; write it in [ ]")
    return value


def _texts(value: Any, where: str) -> list[str]:
    texts = list(_list(value, where))
    wrong = [text for text in texts if not isinstance(text, str) or not text.strip("|? ")]
    if wrong:
        raise InputError(f"{where} holds {wrong[0]!r:.60}, not a name; write names in quotes")
    return texts


def _text(entry: MappingType[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if value is None:
        raise InputError(f"{where} has no {key}; add one")
    if not isinstance(value, str) or not (value or default == ""):
        raise InputError(f"{where}: {key} is {value!r:.60}, not a text; write it in quotes")
    return value


def _flag(entry: MappingType[str, Any], key: str, where: str, default: bool) -> bool:
    value = entry.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"{where}: {key} is {value!r:.60}; write true or false")
    return value
