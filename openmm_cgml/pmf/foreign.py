"""Modules of other packages: loaded, looked at, and recorded where they cannot be compiled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, first_line
from ..files import require_file

#: What a module is called with; the box comes after it, where it is taken.
CALLS = {
    "batched": ("positions (copies, beads, 3)", "types (beads,)"),
    "flat": ("types (atoms,)", "positions (atoms, 3)", "batch (atoms,)"),
}


def load(path: str | Path, trust: bool) -> nn.Module:
    """Return the ScriptModule of a file.

    Raises:
        InputError: if the file is not trusted, missing or damaged, or uses operators of a package
            that is not imported.
    """
    path = require_file(path, "TorchScript file")
    if not trust:
        raise InputError(
            f"TorchScript file {path} is a program that nobody has checked; "
            "pass trust=True only if you made it yourself"
        )
    try:
        return torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        reason = first_line(error)
        if "Unknown builtin op" in str(error):
            reason += " Import the package that has this operator first"
        raise InputError(f"TorchScript file {path} cannot be loaded: {reason}") from error


def signature(module: Any, call: str) -> tuple[bool, bool]:
    """Return whether a module takes a box, and whether it gives a tuple.

    Raises:
        InputError: if TorchScript cannot compile it, or it cannot be called like this.
    """
    name = type(module).__name__
    try:
        script = module if isinstance(module, torch.jit.ScriptModule) else torch.jit.script(module)
    except Exception as error:
        raise InputError(
            f"TorchScript cannot compile {name}: {str(error).strip()[:300]}; write it in "
            "TorchScript's subset of Python, or pass trace=True if its operations do not depend "
            "on the number of copies"
        ) from error
    schema: Any = script._c._get_method("forward").schema
    wanted, found = CALLS[call], schema.arguments[1:]
    given = len(wanted)
    extra = found[given:]
    boxes = [one for one in extra if one.name.lower().startswith(("box", "cell"))]
    takes_box = bool(boxes) and boxes[0] is extra[0] and extra[0].type.kind() == "OptionalType"
    others = extra[1:] if takes_box else extra
    # A box in another place, or one that must be given, would be left out silently.
    missing = [one for one in others if one in boxes or not one.has_default_value()]
    if len(found) < given or missing:
        raise InputError(
            f"{name} takes ({', '.join(one.name for one in found)}) but {call!r} calls it with "
            f"({', '.join(wanted)}[, box or None]); wrap it in a module that does so"
        )
    answer = schema.returns[0].type
    gives_more = answer.kind() == "TupleType"
    kind = answer.elements()[0].kind() if gives_more else answer.kind()
    if kind != "TensorType":
        raise InputError(f"{name} returns {answer}; return the energies, or them first in a tuple")
    return takes_box, gives_more


def record(module: nn.Module, call: str, types: Sequence[int], positions: Tensor) -> nn.Module:
    """Return a record of a module, tried with another number of copies.

    Args:
        module: the module.
        call: a name of `CALLS`.
        types: one number a bead.
        positions: (copies, beads, 3) of two copies or more, in the module's units.

    Raises:
        InputError: if it cannot be recorded or serves one number of copies only.
    """
    name = type(module).__name__
    numbers = torch.tensor(list(types), device=positions.device)

    def inputs(frames: Tensor) -> tuple[Tensor, ...]:
        if call == "batched":
            return frames, numbers
        copies = torch.arange(len(frames), device=frames.device)
        return (
            numbers.repeat(len(frames)),
            frames.reshape(-1, 3),
            copies.repeat_interleave(len(numbers)),
        )

    other = 1.1 * torch.cat([positions.flip(0), positions[:1]])
    training = module.training
    try:
        traced = torch.jit.trace(module.eval(), inputs(positions), check_trace=False)
        found, expected = traced(*inputs(other)), module(*inputs(other))
    except Exception as error:
        raise InputError(
            f"{name} cannot be recorded for any number of copies: {first_line(error)}"
        ) from error
    finally:
        module.train(training)
    if isinstance(expected, tuple):
        found, expected = found[0], expected[0]
    if found.shape != expected.shape or not torch.allclose(found, expected, 1e-4, 1e-5):
        raise InputError(
            f"{name}, recorded with 2 copies, gives other energies for 3: its operations depend "
            "on the number of copies; write it in TorchScript's subset of Python instead"
        )
    return traced
