"""Archives of strangers, looked at as data: zip entries, pickles and programs; nothing is run.

PyTorch's own readers believe what a file says: `torch.jit.load` runs a program's ``__setstate__``,
takes the sizes of tensors from the pickle without comparing them with the bytes stored, and puts
values into attributes of another type. All that is therefore compared here, before.
"""

import ast
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

#: Bytes that any file may expand to, whatever its own size.
ALLOWANCE = 1 << 28
#: How often its own size a file may expand to beyond the allowance; trajectories reach 5.
RATIO = 32

_MOST_ENTRIES = 100_000
_DEEPEST = 100  # nesting of a program or value; torch's own parser overflows the stack at some
_END = b"PK\x05\x06"


class Refused(ValueError):
    """An archive is damaged, or made to mislead its reader."""


class Unsafe(Refused):
    """An archive holds more than numbers and arithmetic."""


def most_expanded(size: int) -> int:
    """Return how many bytes a file of `size` bytes may expand to in memory."""
    return ALLOWANCE + RATIO * size


# ---------------------------------------------------------------- zip


def require_modest_zip(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse a zip file that expands to too much, or in which two entries share a name or bytes.

    Args:
        archive: the open file; only its table of contents is looked at.
        size: of the file, bytes.

    Raises:
        Refused: saying why.
    """
    entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES:
        raise Refused(f"it has {len(entries)} entries; at most {_MOST_ENTRIES} are read")
    expanded = sum(entry.file_size for entry in entries)
    if expanded > most_expanded(size):
        raise Refused(f"its {size} bytes would expand to {expanded}")
    if len({entry.filename.lower() for entry in entries}) != len(entries):
        raise Refused("two of its entries have one name")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise Refused("two of its entries overlap")
        if entry.flag_bits & 0x1 or entry.compress_type not in (0, 8):
            raise Refused("it is encrypted or compressed by an unusual method")
        end = entry.header_offset + 30 + len(entry.filename.encode()) + entry.compress_size
    if end > size:
        raise Refused("an entry reaches beyond its end")


def read_zip(raw: bytes) -> dict[str, bytes]:
    """Return the entries of a zip file that every reader reads alike, checksums compared.

    Nothing may stand before the first entry or after the end of the table of contents, which may
    stand there once only.

    Raises:
        Refused: saying why.
    """
    if not raw.startswith(b"PK\x03\x04") or raw[-22:-18] != _END or raw[-2:] != b"\0\0":
        raise Refused("it is no zip file, or something stands before or after it")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            require_modest_zip(archive, len(raw))
            if min(entry.header_offset for entry in archive.infolist()) != 0:
                raise Refused("something stands before its first entry")
            return {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except Refused:
        raise
    except Exception as error:  # zipfile lets errors of zlib, struct and others through
        raise Refused(f"it is damaged ({error})") from error


def without_folder(entries: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the entries of a PyTorch file without the one folder that they all lie in.

    Raises:
        Refused: if there are several.
    """
    folders = {name.partition("/")[0] for name in entries}
    if len(folders) != 1 or any("/" not in name for name in entries):
        raise Refused("its entries do not lie in one folder")
    return {name.partition("/")[2]: content for name, content in entries.items()}


# ---------------------------------------------------------------- pickles


@dataclass
class Global:
    """A name that a pickle asks for: ``module name``."""

    name: str


@dataclass
class Storage:
    """Numbers of a tensor."""

    count: int


@dataclass
class TensorValue:
    """A tensor; its numbers lie within its storage."""


@dataclass
class Instance:
    """An object of a TorchScript class."""

    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Device:
    """A torch device."""


_MARK = object()
_SIZES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1,
    "Byte": 1, "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8,
}  # fmt: skip
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None}
_LISTS = {f"torch.jit._pickle build_{kind}list" for kind in ("int", "double", "bool", "tensor")}


class Pickle:
    """Read a pickle of tensors, plain values and, of TorchScript, instances of its own classes.

    No name is looked up and no object made: each operation is carried out on descriptions.

    Args:
        content: the pickle.
        sizes: bytes of each record that a storage may name.
        classes: names of the TorchScript classes; anything else that a pickle asks for is refused.
    """

    def __init__(self, content: bytes, sizes: Mapping[str, int], classes: Any = ()) -> None:
        self._content, self._sizes, self._classes = content, sizes, classes
        self._stack: list[Any] = []
        self._memo: list[Any] = []

    def value(self) -> Any:
        """Return what the pickle describes.

        Raises:
            Unsafe: if it asks for anything but tensors and plain values.
            Refused: if it is damaged, or a tensor reaches beyond its numbers.
        """
        try:
            for code, argument, _ in pickletools.genops(self._content):
                if code.name == "STOP":
                    break
                self._step(code.name, argument)
            (value,) = self._stack
        except Refused:
            raise
        except Exception as error:  # of pickletools, or of a stack with too little on it
            raise Refused(f"its table of values is damaged ({error})") from error
        return value

    def _step(self, code: str, argument: Any) -> None:
        stack = self._stack
        if code in _NUMBERS:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"LIST": list, "DICT": dict, "TUPLE": tuple}[code[6:]]())
        elif code == "MARK":
            stack.append(_MARK)
        elif code in ("BINPUT", "LONG_BINPUT"):
            if argument > len(self._memo):
                raise Refused("its table of values leaves places out")
            self._memo[argument : argument + 1] = [stack[-1]]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif code in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[5:] or 0)
            stack.append(tuple(self._last(count) if count else self._marked()))
        elif code == "APPEND":
            (value,) = self._last(1)
            _of(stack[-1], list).append(value)
        elif code == "APPENDS":
            values = self._marked()
            _of(stack[-1], list).extend(values)
        elif code in ("SETITEM", "SETITEMS"):
            values = self._last(2) if code == "SETITEM" else self._marked()
            _of(stack[-1], dict).update(zip(values[::2], values[1::2], strict=True))
        elif code == "GLOBAL":
            stack.append(self._named(argument))
        elif code == "NEWOBJ":
            kind, arguments = self._last(2)
            if arguments != () or kind.name not in self._classes:
                raise Unsafe(f"it makes an object of {kind.name}")
            stack.append(Instance(kind.name))
        elif code == "BUILD":
            (attributes,) = self._last(1)
            made = _of(stack[-1], Instance)
            if not isinstance(attributes, dict):
                raise Refused(f"an object of {made.kind} has no table of attributes")
            made.attributes = attributes
        elif code == "BINPERSID":
            stack.append(self._storage(*self._last(1)[0]))
        elif code == "REDUCE":
            function, arguments = self._last(2)
            stack.append(self._call(_of(function, Global).name, *arguments))
        elif code != "PROTO":
            raise Unsafe(f"its table of values does {code}")

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise Refused("its table of values is damaged")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _marked(self) -> list[Any]:
        at = max(i for i, value in enumerate(self._stack) if value is _MARK)
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def _named(self, name: str) -> Global:
        dotted = name.replace(" ", ".")
        if dotted in self._classes:
            return Global(dotted)
        scripted = bool(self._classes) or name in _LISTS
        known = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"} | (
            {"torch device", "torch.jit._pickle restore_type_tag", *_LISTS} if scripted else set()
        )
        storage = re.fullmatch(r"torch (\w+)Storage", name)
        if name not in known and not (storage and storage[1] in _SIZES):
            raise Unsafe(f"it asks for {dotted}")
        return Global(name)

    def _storage(self, word: str, kind: Global, key: str, place: str, count: int) -> Storage:
        size = _SIZES[kind.name.removeprefix("torch ").removesuffix("Storage")]
        if word != "storage" or not _whole(count) or not isinstance(place, str):
            raise Refused("its numbers are described wrongly")
        if self._sizes.get(key, -1) < size * count:
            raise Refused(f"it says {count} numbers where fewer are stored")
        return Storage(count)

    def _call(self, name: str, *arguments: Any) -> Any:
        if name == "collections OrderedDict":
            if arguments:
                raise Refused("its table of values is damaged")
            return {}
        if name in _LISTS:
            (values,) = arguments
            return _of(values, list)
        if name == "torch.jit._pickle restore_type_tag":
            value, _ = arguments
            return value
        if name == "torch device":
            if not all(isinstance(a, (str, int)) for a in arguments):
                raise Refused("its table of values is damaged")
            return Device()
        if name == "torch._utils _rebuild_tensor_v2":
            return _tensor(*arguments[:4])
        raise Unsafe(f"it calls {name}")


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise Refused("its table of values is damaged")
    return value


def _whole(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 48


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorValue:
    """Check that a tensor lies within its storage, which torch does not in TorchScript files."""
    count = _of(storage, Storage).count
    numbers = (offset, *_of(shape, tuple), *_of(strides, tuple))
    if len(shape) != len(strides) or len(shape) > 64 or not all(map(_whole, numbers)):
        raise Refused("a tensor has an impossible shape")
    total = 1
    for length in shape:
        total *= length
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if total and (last >= count or total > max(count, 1 << 24)):
        raise Refused(f"a tensor of shape {shape} reaches beyond its {count} numbers")
    return TensorValue()


# ---------------------------------------------------------------- TorchScript


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
    if _holds_instances(_of(constants, tuple)):
        raise Unsafe("its constants hold objects")
    root = Pickle(_entry(entries, "data.pkl"), _records(entries, "data"), scripted).value()
    try:
        _require_instance(_of(root, Instance), program, {})
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


# ---------------------------------------------------------------- numpy


def load_arrays(path: Any, **options: Any) -> Any:
    """Return what `numpy.load` does of an .npy or .npz file, never an object that is pickled.

    Args:
        path: the file.
        options: of `numpy.load`.

    Raises:
        Refused: if an .npz would expand to far more than its size.
        Exception: as `numpy.load`, for damaged files.
    """
    import numpy as np

    with nullcontext(path) if hasattr(path, "read") else open(path, "rb") as handle:
        if handle.read(2) == b"PK":
            with zipfile.ZipFile(handle) as archive:
                require_modest_zip(archive, handle.seek(0, 2))
        handle.seek(0)
    return np.load(path, **options, allow_pickle=False)


def require_numbers(array: Any, what: str) -> Any:
    """Return an array after checking that it holds plain numbers.

    Raises:
        Refused: if it holds text, records or anything else.
    """
    if array.dtype.kind not in "biuf":
        raise Refused(f"{what} is of type {array.dtype!s:.40}, not of numbers")
    return array
