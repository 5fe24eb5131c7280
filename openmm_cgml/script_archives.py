"""PyTorch's archives of strangers: programs read as text, values compared with what they declare.

`torch.jit.load` runs a program's ``__setstate__`` and puts values into attributes of another type.
Both are therefore looked for here, before.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .archives import Refused, Unsafe
from .pickles import Device, Global, Instance, Pickle, Storage, TensorValue, of_kind

_DEEPEST = 100  # nesting of a program or value; torch's own parser overflows the stack at some


@dataclass(frozen=True)
class Program:
    """What the source in a TorchScript archive defines and calls.

    Attributes:
        classes: class name -> attribute name -> type as written.
        tuples: names of classes that are named tuples, likewise.
        calls: all that is called and not defined here: ``aten::add``, ``print``, ...
    """

    classes: dict[str, dict[str, ast.expr]]
    tuples: dict[str, dict[str, ast.expr]]
    calls: frozenset[str]


#: What the language itself has; none of it reaches beyond the program's values.
_LANGUAGE = set(
    """
    annotate unchecked_cast uninitialized int float bool str len range isinstance getattr hasattr
    list tuple dict set zip enumerate max min abs round sum sorted ord chr complex divmod pow
    reversed map any all
    """.split()
)
_BASES = {"Module", "NamedTuple"}
_STATEMENTS = (
    ast.Module, ast.ClassDef, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.AnnAssign,
    ast.AugAssign, ast.Expr, ast.If, ast.While, ast.For, ast.Return, ast.Pass, ast.Break,
    ast.Continue, ast.Call, ast.Attribute, ast.Name, ast.Constant, ast.List, ast.Tuple, ast.Dict,
    ast.Set, ast.Subscript, ast.Slice, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp,
    ast.Starred, ast.keyword, ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.ListComp, ast.comprehension, ast.Assert, ast.Raise, ast.Delete,
)  # fmt: skip


def read_program(entries: Mapping[str, bytes]) -> Program:
    """Read the source in a TorchScript archive, as text.

    Args:
        entries: of the archive, as `without_folder` returns them.

    Raises:
        Unsafe: if it runs when it is loaded, or has what TorchScript's own printer never writes.
        Refused: if it cannot be read.
    """
    classes: dict[str, dict[str, ast.expr]] = {}
    tuples: dict[str, dict[str, ast.expr]] = {}
    defined: set[str] = set()
    trees = []
    for name, content in entries.items():
        if not name.startswith("code/") or name.endswith(".debug_pkl"):
            continue
        if not name.endswith(".py"):
            raise Unsafe(f"it has an entry {name}")
        module = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
        tree = _parse(content)
        trees.append(tree)
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                if len(bases) != len(node.bases) or not bases <= _BASES:
                    raise Unsafe(f"its class {node.name} is of an unknown kind")
                table = tuples if bases == {"NamedTuple"} else classes
                table[f"{module}.{node.name}"] = dict(_attributes(node))
                defined.add(f"{module}.{node.name}")
                defined |= {f"{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
            elif isinstance(node, ast.FunctionDef):
                defined.add(f"{module}.{node.name}")
    # Both run while an archive is loaded or written, before any graph can be looked at.
    if running := defined & {"__setstate__", "__getstate__"}:
        raise Unsafe(f"it runs code while it is loaded ({', '.join(sorted(running))})")
    calls = {call for tree in trees for call in _calls(tree)} - defined
    return Program(classes, tuples, frozenset(calls))


def _attributes(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Yield names and types: ``name : Type``, or ``__annotations__["0"] = Type``."""
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            if one.value is None:  # else a constant, which is nowhere else
                yield one.target.id, one.annotation
        elif isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Subscript):
            if isinstance(one.targets[0].slice, ast.Constant):
                yield str(one.targets[0].slice.value), one.value


def _parse(content: bytes) -> ast.Module:
    try:
        tree = ast.parse(content.decode("utf-8"))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise Refused(f"its program cannot be read ({type(error).__name__})") from error
    level: list[ast.AST] = [tree]
    for _ in range(_DEEPEST):
        level = [inner for node in level for inner in ast.iter_child_nodes(node)]
        for node in level:
            if not isinstance(node, _STATEMENTS):
                raise Unsafe(f"its program has a {type(node).__name__}")
    if level:
        raise Refused("its program is nested too deeply")
    return tree


def _calls(tree: ast.AST) -> Iterator[str]:
    """Yield what a program calls, or could call by a name of its own for it."""
    nodes = list(ast.walk(tree))
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            name = _dotted(node) or ""
            if name.startswith("torch."):
                yield "aten::" + name.removeprefix("torch.")
            elif name.startswith("ops."):
                yield name.removeprefix("ops.").replace(".", "::", 1)
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    within = {id(node) for function in functions for node in ast.walk(function)}
    yield from _called([node for node in nodes if id(node) not in within])
    for function in functions:
        yield from _called(list(ast.walk(function)))


def _called(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield what is called in a function; names of its own for others are its own alone."""
    # The printer writes ``_0 = __torch__.geometry.distances`` and then ``_0(...)``.
    aliases: dict[str, bool] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target, whole = node.targets[0].id, _dotted(node.value) or ""
            own = whole.startswith("__torch__.")
            aliases[target] = aliases.get(target, True) and own
    for node in nodes:
        if isinstance(node, ast.Call):
            name = _dotted(node.func) or ""
            if name.startswith("__torch__.") or (name and "." not in name):
                if name not in _LANGUAGE and not aliases.get(name, False):
                    yield name
            elif not name.startswith(("torch.", "ops.")):  # a method, of a value or a module
                yield node.func.attr if isinstance(node.func, ast.Attribute) else "a value"


def _dotted(node: ast.expr) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])


_PLAIN: dict[str, Any] = {
    "Tensor": TensorValue, "int": int, "float": (int, float), "bool": bool, "str": str,
    "NoneType": type(None), "Device": Device, "number": (int, float),
}  # fmt: skip
_SAFE_ENTRIES = re.compile(
    r"(version|byteorder|constants\.pkl|data\.pkl"
    r"|code/[\w/.]+\.py(\.debug_pkl)?|(data|constants)/\d+|extra/[^/]+"
    r"|\.\w+(/\w+)?)"  # of how it was written; versions differ in which there are
)


def require_tensors(entries: Mapping[str, bytes]) -> None:
    """Check a file of `torch.save` that holds tensors and plain values only.

    Raises:
        Unsafe, Refused: if it holds more, or is damaged.
    """
    require_known_entries(entries)
    if any(name.startswith("code/") or name == "constants.pkl" for name in entries):
        raise Unsafe("it holds a program where numbers belong")
    Pickle(_entry(entries, "data.pkl"), _records(entries, "data")).value()


def require_known_entries(entries: Mapping[str, bytes]) -> None:
    """Refuse an archive with entries that a PyTorch file of today does not have.

    Raises:
        Unsafe: naming one.
    """
    for name in entries:
        if not _SAFE_ENTRIES.fullmatch(name):
            raise Unsafe(f"it has an entry {name[:60]!r}")


def require_matching_values(entries: Mapping[str, bytes], program: Program) -> None:
    """Check that the values in a TorchScript archive are of the types that its classes say.

    Raises:
        Unsafe, Refused: if not, or if they are damaged.
    """
    scripted = {*program.classes, *program.tuples}
    constants = Pickle(
        _entry(entries, "constants.pkl"), _records(entries, "constants"), scripted or ("none",)
    ).value()
    if _holds_instances(of_kind(constants, tuple)):
        raise Unsafe("its constants hold objects")
    root = Pickle(_entry(entries, "data.pkl"), _records(entries, "data"), scripted).value()
    try:
        _require_instance(of_kind(root, Instance), program, {})
    except RecursionError:
        raise Refused("its values are nested without end") from None


def _records(entries: Mapping[str, bytes], folder: str) -> dict[str, int]:
    start = f"{folder}/"
    return {n.removeprefix(start): len(c) for n, c in entries.items() if n.startswith(start)}


def _entry(entries: Mapping[str, bytes], name: str) -> bytes:
    if name not in entries:
        raise Refused(f"it has no {name}")
    return entries[name]


def _require_instance(made: Instance, program: Program, seen: dict[int, Instance]) -> None:
    if id(made) in seen:
        return
    seen[id(made)] = made
    declared = program.classes.get(made.kind)
    if declared is None:
        raise Unsafe(f"it makes an object of {made.kind}")
    if set(declared) != set(made.attributes):
        raise Refused(f"an object of {made.kind} has other attributes than its class")
    for name, annotation in declared.items():
        if not _fits(made.attributes[name], annotation, program, seen):
            raise Refused(
                f"attribute {name} of {made.kind} is of another type than its class says"
            )


def _fits(value: Any, kind: ast.expr, program: Program, seen: dict[int, Instance]) -> bool:
    """Whether a value is of a type, as the source of a TorchScript class writes it."""
    if isinstance(kind, ast.Constant):
        return kind.value is None and value is None
    if isinstance(kind, ast.Subscript):
        outer = _dotted(kind.value)
        inner = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        if outer == "Optional":
            return value is None or _fits(value, inner[0], program, seen)
        if outer == "Final":
            return _fits(value, inner[0], program, seen)
        if outer == "List":
            fits = (_fits(one, inner[0], program, seen) for one in _either(value, list))
            return isinstance(value, list) and all(fits)
        if outer == "Dict":
            return isinstance(value, dict) and all(
                _fits(k, inner[0], program, seen) and _fits(v, inner[1], program, seen)
                for k, v in value.items()
            )
        if outer == "Tuple":
            if inner and isinstance(inner[0], ast.Tuple):  # Tuple[()]
                inner = inner[0].elts
            return _fit_all(value, inner, program, seen)
        return False
    name = _dotted(kind)
    if name == "Any":
        return not _holds_instances(value)
    if name in _PLAIN:
        if isinstance(value, bool) and name != "bool":
            return False
        return isinstance(value, _PLAIN[name])
    if name in program.tuples:
        return _fit_all(value, list(program.tuples[name].values()), program, seen)
    if isinstance(value, Instance) and value.kind == name:
        _require_instance(value, program, seen)
        return True
    return False


def _fit_all(value: Any, kinds: list[ast.expr], program: Program, seen: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == len(kinds)
        and all(_fits(v, k, program, seen) for v, k in zip(value, kinds, strict=True))
    )


def _either(value: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else ()


def _holds_instances(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_instances(one) for one in value)
    if isinstance(value, dict):
        return any(_holds_instances(one) for item in value.items() for one in item)
    return isinstance(value, (Instance, Global, Storage))
