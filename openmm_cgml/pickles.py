"""Pickles of strangers, read as descriptions: no name is looked up and no object is made.

PyTorch takes the sizes of tensors from a pickle without comparing them with the bytes stored; here
they are compared.
"""

import pickletools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .archives import Refused, Unsafe


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
            of_kind(stack[-1], list).append(value)
        elif code == "APPENDS":
            values = self._marked()
            of_kind(stack[-1], list).extend(values)
        elif code in ("SETITEM", "SETITEMS"):
            values = self._last(2) if code == "SETITEM" else self._marked()
            of_kind(stack[-1], dict).update(zip(values[::2], values[1::2], strict=True))
        elif code == "GLOBAL":
            stack.append(self._named(argument))
        elif code == "NEWOBJ":
            kind, arguments = self._last(2)
            if arguments != () or kind.name not in self._classes:
                raise Unsafe(f"it makes an object of {kind.name}")
            stack.append(Instance(kind.name))
        elif code == "BUILD":
            (attributes,) = self._last(1)
            made = of_kind(stack[-1], Instance)
            if not isinstance(attributes, dict):
                raise Refused(f"an object of {made.kind} has no table of attributes")
            made.attributes = attributes
        elif code == "BINPERSID":
            stack.append(self._storage(*self._last(1)[0]))
        elif code == "REDUCE":
            function, arguments = self._last(2)
            stack.append(self._call(of_kind(function, Global).name, *arguments))
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
            return of_kind(values, list)
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


def of_kind(value: Any, kind: type) -> Any:
    """Return a value that is of this type.

    Raises:
        Refused: if it is of another.
    """
    if not isinstance(value, kind):
        raise Refused("its table of values is damaged")
    return value


def _whole(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 48


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorValue:
    """Check that a tensor lies within its storage, which torch does not in TorchScript files."""
    count = of_kind(storage, Storage).count
    numbers = (offset, *of_kind(shape, tuple), *of_kind(strides, tuple))
    if len(shape) != len(strides) or len(shape) > 64 or not all(map(_whole, numbers)):
        raise Refused("a tensor has an impossible shape")
    total = 1
    for length in shape:
        total *= length
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if total and (last >= count or total > max(count, 1 << 24)):
        raise Refused(f"a tensor of shape {shape} reaches beyond its {count} numbers")
    return TensorValue()
