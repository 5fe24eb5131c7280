"""Parts of pages that are made from the program itself when the pages are built.

A page holds the line ``<!-- generated: NAME -->``, and the text takes its place: it is never
out of date, and cannot be edited by mistake.
"""

import ast
import re
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "openmm_cgml"


def setup(app: Any) -> dict[str, Any]:
    """Fill in the generated parts as pages are read."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}


def _fill(app: Any, name: str, source: list[str]) -> None:
    for part, make in PARTS.items():
        mark = f"<!-- generated: {part} -->"
        if mark in source[0]:
            source[0] = source[0].replace(mark, make())


def commands() -> str:
    """Every command of ``cgml`` with its help, arguments and options, as Markdown."""
    import typer

    from openmm_cgml.cli import app

    root = typer.main.get_command(app)
    return "\n".join(_command(name, command) for name, command in _leaves("cgml", root))


def _leaves(name: str, command: Any) -> list[tuple[str, Any]]:
    if hasattr(command, "commands"):
        return [
            leaf
            for inner, one in command.commands.items()
            for leaf in _leaves(f"{name} {inner}", one)
        ]
    return [(name, command)]


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join([name, *(_usage(a) for a in arguments), *(_required(o) for o in options)])
    lines = [f"## {name}", "", " ".join((command.help or "").split()), "", "```text"]
    lines += [" ".join(usage.split()), "```", "", "| | what | if not given |", "|---|---|---|"]
    lines += [f"| `{a.metavar or a.name.upper()}` | {_text(a)} | |" for a in arguments]
    for option in options:
        names = ", ".join(f"`{o}`" for o in [*option.opts, *option.secondary_opts])
        lines.append(f"| {names} | {_text(option)} | {_default(option)} |")
    lines += ["", *_examples(command)]
    return "\n".join([*lines, "", ""])


def _examples(command: Any) -> list[str]:
    epilog = (getattr(command, "epilog", None) or "").replace("\b", "")
    shown = [line.strip() for line in epilog.splitlines() if line.strip().startswith("cgml ")]
    return ["```text", *shown, "```"] if shown else []


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _required(option: Any) -> str:
    return f"{option.opts[0]} {option.name.upper()}" if option.required else ""


def _text(parameter: Any) -> str:
    text = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
    low, high = _limit(parameter, "min"), _limit(parameter, "max")
    if low is not None and high is not None:
        text += f" ({low} to {high})"
    elif low is not None:
        text += f" (at least {low})"
    return re.sub(r"([*<>])", r"\\\1", text)


def _limit(parameter: Any, name: str) -> Any:
    # Of the parameter itself, or of its type where typer still builds on click.
    return getattr(parameter, name, getattr(getattr(parameter, "type", None), name, None))


def _default(option: Any) -> str:
    default = option.default
    if option.required:
        return "required"
    if option.is_flag or default is None or callable(default) or default in ((), []):
        return ""
    return f"`{default}`"


def modules() -> str:
    """A table of all modules with the first sentence of what each says of itself."""
    lines = ["| module | |", "|---|---|"]
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if text is None or path.stem == "__main__":
            continue
        first = " ".join(text.split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{name}` | {first} |")
    return "\n".join(lines)


PARTS = {"commands": commands, "modules": modules}
