"""Maps from a user's own selection strings (mdtraj's selection language)."""

import re
import warnings
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from typing import Any

from ..errors import InputError, first_line
from .core import Mapping, com_mapping, slice_mapping


def selection_mapping(
    top: Any, selection: str | Sequence[str] | MappingType[str, str], *, kind: str = "slice"
) -> Mapping:
    """Make a map from selection strings.

    Args:
        top: mdtraj.Topology.
        selection: one string: every selected atom becomes a bead (``kind="slice"``). A list of
            strings, or a dict from bead name to string: each becomes one bead, the one selected
            atom (``"slice"``) or the centre of mass of the selected atoms (``"com"``).
        kind: ``"slice"`` or ``"com"``.

    Raises:
        InputError: if a selection is not understood, selects nothing, or selects several atoms
            for one bead of a slice map.
    """
    if kind not in ("slice", "com"):
        raise InputError(f"mapping kind {kind!r} is unknown; choose 'slice' or 'com'")
    if isinstance(selection, str):
        atoms = select_atoms(top, selection)
        if kind == "slice":
            return slice_mapping(top, atoms)
        return com_mapping(top, [atoms])
    names: list[str] | None
    if isinstance(selection, MappingType):
        names, texts = list(selection), list(selection.values())
    else:
        names, texts = None, list(selection)
    groups = [select_atoms(top, text) for text in texts]
    if kind == "com":
        return com_mapping(top, groups, names=names)
    for text, group in zip(texts, groups, strict=True):
        if len(group) != 1:
            raise InputError(
                f"selection {text!r} matches {len(group)} atoms; a slice map needs one a bead, "
                "narrow it or take centres of mass (com)"
            )
    return slice_mapping(top, [g[0] for g in groups], names=names)


def select_atoms(top: Any, text: str) -> list[int]:
    """Return the atoms that a selection matches.

    Raises:
        InputError: if it is not understood, or matches nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mdtraj's parser uses deprecated names
            atoms = [int(a) for a in top.select(text)]
    except Exception as error:
        reason = first_line(error)
        # The parser lists every keyword that it expected; where it stopped says more.
        if stop := re.search(r"found (.+?)\s+\(at char (\d+)\)", reason):
            reason = f"{stop[1]} is unexpected at character {int(stop[2]) + 1}"
        elif len(reason) > 200:
            reason = "no keyword that it knows"
        raise InputError(
            f"selection {text!r} is not understood ({reason}); "
            'use mdtraj\'s selection language, e.g. "name CA and resSeq 2"'
        ) from error
    if not atoms:
        names = ", ".join(sorted({a.name for a in top.atoms})[:12])
        raise InputError(
            f"selection {text!r} matches no atoms; correct it (atom names here: {names}, ...)"
        )
    return atoms
