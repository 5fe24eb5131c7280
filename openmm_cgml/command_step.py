"""What every command has in common: `--json`, a file that repeats it, provenance, exit codes.

A command is a function that returns its numbers. `step` turns it into one that prints them as JSON
if asked, and that writes beside its output a small file, ``OUTPUT.run.toml``, with all options as
they were, the versions, and the hashes of what was read. ``cgml rerun`` does that again.
"""

import functools
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .command_options import say
from .errors import InputError
from .files import atomic_path, require_file, require_writable, segments_folder
from .provenance import fingerprint, fingerprints, now, versions
from .texts import parse_toml, read_table, toml_text

#: Exit codes, the same for every command; Ctrl-C is the shell's.
FAILED, BAD_INPUT, NOT_CONVERGED, INTERRUPTED = 1, 2, 3, 130

#: Where a context keeps the numbers of its command, for one that gives it again.
RECORD = "openmm_cgml.record"

#: Help as wide as the terminal, within reason.
SETTINGS = {"max_content_width": 100}

_SUFFIX = ".run.toml"
_PAGE = "HTML page to write about the output."
_JSON = "Print the numbers as one line of JSON on standard output."


@dataclass(frozen=True)
class Outcome:
    """What a command returns if numbers are not all.

    Attributes:
        record: its numbers, JSON.
        code: the exit code.
        text: for standard output, where no JSON is printed.
    """

    record: dict[str, Any] = field(default_factory=dict)
    code: int = 0
    text: str = ""


def step(
    *examples: str, prints: bool = False, repeats: bool = True, pages: bool = False
) -> Callable[..., Any]:
    """Make a command of a function that returns its numbers, a dict or an `Outcome`.

    Args:
        examples: command lines that ``--help`` shows.
        prints: JSON is printed unless ``--no-json`` is given: of commands whose result is numbers.
        repeats: a ``.run.toml`` is written beside the output, if there is one.
        pages: ``--report`` writes a page about the output, as ``cgml report`` does.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        asked = inspect.signature(function).parameters

        @functools.wraps(function)
        def run(context: typer.Context, as_json: bool, **options: Any) -> None:
            started, date = time.perf_counter(), now()
            page = options.pop("report") if pages else None
            if page is not None:
                require_writable(page)
            before = {path: _state(path) for path in _files(options)}
            given = {"context": context, **options} if "context" in asked else options
            returned = function(**given)
            outcome = returned if isinstance(returned, Outcome) else Outcome(returned or {})
            context.meta[RECORD] = outcome.record
            read = [path for path, state in before.items() if _state(path) == state]
            echo = repeats and _echo_path(options)
            if echo or as_json:
                provenance = {
                    "command": _command_name(context),
                    "date": date,
                    "seconds": round(time.perf_counter() - started, 2),
                    "inputs": fingerprints(read),
                    "versions": versions(),
                }
                if echo:
                    _write_echo(echo, provenance, options)
                if as_json:
                    output = options.get("output")
                    told = {} if output is None else {"output": str(output)}
                    record = _finite({**told, **outcome.record, "provenance": provenance})
                    typer.echo(json.dumps(record, allow_nan=False))
            if outcome.text and not as_json:
                typer.echo(outcome.text)
            if page is not None and _echo_path(options) is not None:
                from .file_report import write_file_report

                write_file_report(options["output"], page)
            if outcome.code:
                raise typer.Exit(outcome.code)

        keyword = inspect.Parameter.KEYWORD_ONLY
        more: dict[str, tuple[Any, Any]] = {
            "as_json": (Annotated[bool, typer.Option("--json/--no-json", help=_JSON)], prints)
        }
        if pages:
            more = {"report": (Annotated[Path | None, typer.Option(help=_PAGE)], None), **more}
        parameters = [
            inspect.Parameter("context", keyword, annotation=typer.Context),
            *(p.replace(kind=keyword) for name, p in asked.items() if name != "context"),
            *(
                inspect.Parameter(name, keyword, annotation=kind, default=default)
                for name, (kind, default) in more.items()
            ),
        ]
        # What typer reads; `wraps` has put the function's own there.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.examples = examples  # type: ignore[attr-defined]
        return run

    return decorate


class Sections(TyperGroup):
    """A group whose ``--help`` lists commands under the headings that `add` was given."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, heading by heading."""
        shown = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        width = max(len(name) for name, _ in shown)
        for section in dict.fromkeys(getattr(c, "rich_help_panel", None) for _, c in shown):
            rows = [
                (name.ljust(width), command.get_short_help_str(200))
                for name, command in shown
                if getattr(command, "rich_help_panel", None) == section and not command.hidden
            ]
            with formatter.section(section or "Commands"):
                formatter.write_dl(rows)


def add(
    app: typer.Typer, name: str, command: Callable[..., None], section: str | None = None
) -> None:
    """Give an app a command made by `step`, with its examples, under a heading of its help."""
    examples: tuple[str, ...] = getattr(command, "examples", ())
    # \b: lines are kept as they are.
    epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples) if examples else None
    app.command(name, epilog=epilog, rich_help_panel=section, context_settings=SETTINGS)(command)


def _command_name(context: Any) -> str:
    words: list[str] = []
    while context.parent is not None:  # the outermost is the program, by whatever name
        words, context = [context.info_name, *words], context.parent
    return " ".join(words)


def _finite(value: Any) -> Any:
    """Return a record without NaN and infinities, which JSON does not have: null instead."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---------------------------------------------------------------- files that repeat a command


def read_echo(path: str | Path) -> dict[str, Any]:
    """Return what a ``.run.toml`` holds: command, options, inputs, versions.

    Raises:
        InputError: if it is none.
    """
    text = read_table(path, "command file")
    try:
        held = parse_toml(text)
    except ValueError as error:
        raise InputError(f"{path} is no TOML ({error}); give a file that cgml wrote") from None
    tables = ("options", "inputs", "versions")
    if not isinstance(held.get("command"), str) or any(
        not isinstance(held.get(name), dict) for name in tables
    ):
        raise InputError(f"{path} names no command; give a {_SUFFIX} file that cgml wrote")
    return held


def arguments_of(path: str | Path, command: Any, options: dict[str, Any]) -> list[str]:
    """Return the words of a command line that gives a command these options.

    Args:
        path: the file they are from, for errors.
        command: the command, of typer.
        options: name -> value.

    Raises:
        InputError: if the command has no such option.
    """
    parameters = {p.name: p for p in command.params}
    words, positional = [], []
    for name, value in options.items():
        if name not in parameters:
            raise InputError(
                f"{path}: {command.name} of this version has no option {name!r}; delete its line"
            )
        parameter = parameters[name]
        values = value if isinstance(value, list) else [value]
        if parameter.param_type_name == "argument":
            positional += [str(v) for v in values]
        elif isinstance(value, bool):
            names = parameter.opts if value else parameter.secondary_opts
            words += names[:1]  # a flag that can only be switched on has no other name
        else:
            for one in values:
                words += [parameter.opts[0], str(one)]
    return [*words, *(["--", *positional] if positional else [])]


def check_inputs(path: str | Path, held: dict[str, Any], force: bool) -> None:
    """Compare the files that a command read with those that are there now.

    Raises:
        InputError: if one is missing, or is another and `force` is not set.
    """
    for name, known in held["inputs"].items():
        require_file(name, "input")
        if fingerprint(name) == known:
            continue
        told = f"{name} is not the file that {Path(path).name} was made with"
        if not force:
            raise InputError(f"{told}; put that one there, or add --force to use this one")
        say(f"warning: {told}")
    for package, version in versions().items():
        if (other := held["versions"].get(package, version)) != version:
            say(f"warning: {package} was {other} and is {version}: numbers may differ")


def _files(options: dict[str, Any]) -> Iterator[Path]:
    """Yield the files that options name and that are there."""
    for value in options.values():
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, Path) or (isinstance(one, str) and 0 < len(one) < 4096):
                try:
                    if Path(one).is_file():
                        yield Path(one)
                except (OSError, ValueError):
                    pass  # no path, whatever it is


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _echo_path(options: dict[str, Any]) -> Path | None:
    output = options.get("output")
    if output is None:
        return None
    output = Path(output)
    if output.is_dir():
        return output / _SUFFIX[1:]
    if not output.exists() and not segments_folder(output).exists():  # a dry run
        return None
    return output.with_name(output.name + _SUFFIX)


def _write_echo(path: Path, provenance: dict[str, Any], options: dict[str, Any]) -> None:
    lines = [f"# `cgml rerun {path.name}` does this again."]
    lines += [f"{name} = {_toml(provenance[name])}" for name in ("command", "date", "seconds")]
    for title, table in (
        ("options", options), ("inputs", provenance["inputs"]),
        ("versions", provenance["versions"]),
    ):  # fmt: skip
        lines += ["", f"[{title}]"]
        lines += [f"{_key(k)} = {_toml(v)}" for k, v in table.items() if v is not None]
    with atomic_path(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _key(name: str) -> str:
    return name if name.isidentifier() and name.isascii() else toml_text(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(one) for one in value)}]"
    return toml_text(str(value))
