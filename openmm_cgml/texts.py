"""Reading JSON, TOML and XML of strangers: limits on size and nesting, no entities."""

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from .errors import InputError
from .files import require_file

#: Of tables that people write, bytes.
_LONGEST_TABLE = 1 << 22
_DEEPEST = 100
# A key of very many parts takes the parser the square of their number.
_LONG_KEY = re.compile(r"(?:[\w\"'-]+[ \t]*\.[ \t]*){50}")


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: if it is none, or nested too deeply.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML text says.

    Raises:
        ValueError: if it is none, too long, or nested too deeply.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if len(text) > _LONGEST_TABLE:
        raise ValueError(f"it has {len(text)} characters; at most {_LONGEST_TABLE} are read")
    if _LONG_KEY.search(text):
        raise ValueError("a key has too many parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def toml_text(text: str) -> str:
    """Return a text as TOML writes it."""
    # JSON's strings are TOML's, but for this one character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_table(path: str | Path, what: str) -> str:
    """Return the text of a file that people write.

    Raises:
        InputError: if it is missing, too long, or not UTF-8.
    """
    path = require_file(path, what)
    if (size := path.stat().st_size) > _LONGEST_TABLE:
        raise InputError(
            f"{what} {path} has {size} bytes; at most {_LONGEST_TABLE} are read: split it"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} is broken: {error}; save it as UTF-8") from None


def read_xml(path: str | Path, what: str) -> ElementTree.Element:
    """Return the outermost element of an XML file without a document type, hence without entities.

    Raises:
        InputError: if it is missing, damaged, has a document type, or is nested too deeply.
    """
    path = require_file(path, what)
    content = path.read_bytes()
    try:
        _require_plain_xml(content)
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not XML ({error}); give a serialised OpenMM System") from None


def _require_plain_xml(content: bytes) -> None:
    depth = 0

    def start(*_: Any) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")

    def end(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: Any) -> None:
        raise ValueError("it has a document type, which may stand for anything")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)
