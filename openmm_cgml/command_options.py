"""Options and helpers that several commands share."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import InputError

# More threads gain little for a few beads, and cost much where other processes run too.
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of torch.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]

Checkpoints = Annotated[
    str | None, typer.Option(help="Folder; a run that was stopped continues from it.")
]


def completing(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what a shell is told when a value is completed: those of the names that begin so."""
    known = list(names)
    return lambda incomplete: [name for name in known if name.startswith(incomplete)]


def say(text: str) -> None:
    """Print to standard error: standard output is for results that programs read."""
    typer.echo(text, err=True)


def parse_numbers(text: str, kind: type, count: int, what: str) -> list[Any]:
    """Return numbers given with commas.

    Raises:
        InputError: if there are not `count` of them.
    """
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise InputError(f"{what} {text!r} is not {count} numbers with commas; e.g. 0,1,2,3")
    return values


def parse_properties(given: list[str] | None) -> dict[str, str]:
    """Return platform properties given as NAME=VALUE.

    Raises:
        InputError: naming one that is not.
    """
    found = {}
    for entry in given or ():
        name, sign, value = entry.partition("=")
        if not sign:
            raise InputError(f"platform property {entry!r} is not NAME=VALUE; e.g. DeviceIndex=1")
        found[name] = value
    return found
