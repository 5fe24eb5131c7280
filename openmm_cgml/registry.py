"""Tables of named, lazily imported family members (mappings, PMF networks, losses, ...)."""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import InputError


class Registry(Mapping[str, Any]):
    """A read-only table from a name to an object, imported on first use.

    Args:
        kind: what the entries are, for error messages, e.g. ``"mapping"``.
        entries: name -> ``"package.module:object"``.
    """

    def __init__(self, kind: str, entries: dict[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            raise InputError(self._miss(name))
        module, _, attribute = self._entries[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"<{self.kind}s: {', '.join(self)}>"

    def _miss(self, name: str) -> str:
        near = difflib.get_close_matches(str(name), self._entries, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown {self.kind} {name!r}; {hint}known: {', '.join(self)}"
