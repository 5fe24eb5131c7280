"""Docstrings are written to be read in a terminal; a few signs mean something else to Sphinx."""

import re
from typing import Any


def setup(app: Any) -> dict[str, Any]:
    """Escape them before napoleon reads the docstring."""
    app.connect("autodoc-process-docstring", _escape, priority=400)
    return {"parallel_read_safe": True}


def _escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        line = re.sub(r"(?<![\\*`\w])(\*{1,2})(?=\w+[:,)]?)(?![^`]*`)", _stars, line)
        lines[number] = re.sub(r"(?<![\\`])\|", r"\\|", line)


def _stars(match: re.Match[str]) -> str:
    return "\\*" * len(match.group(1))
