"""Compiling a model's energy and forces ahead of time, for this machine.

A package is machine code. It is made here from a portable model file and kept in this machine's
cache; none is ever loaded from a file that somebody sent. It holds operations, not weights: those
come from the model file when it is loaded, so models that differ in nothing else share a package,
and one can be compiled before its model is trained.
"""

import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..model_file import ModelFile
from ..pmf.tracing import quiet_compiler, untraceable
from ..version import __version__
from . import cache as storage
from .library import NO_COMPILER, compiler

logger = logging.getLogger(__name__)

#: Copies of one call of a dynamic package: their activations stay in the processor's cache.
MOST_COPIES = 256

# Sources of what is compiled: the model file holds weights and names of classes.
_SOURCES = ("geometry.py", "neighbours.py", "pmf", "native/package.py")


@dataclass(frozen=True)
class Package:
    """Compiled code of one model.

    Attributes:
        path: the shared library.
        device: torch device that it runs on.
        copies: copies of one call; 0: any number.
        threads: threads that may run it at once, or that it uses itself if it is of one copy.
    """

    path: Path
    device: str
    copies: int
    threads: int


class _EnergyAndForces(nn.Module):
    """A PMF as it is compiled: positions (copies, beads, 3) in, energies and forces out."""

    def __init__(self, pmf: Any) -> None:
        super().__init__()
        self.pmf = pmf

    def forward(self, positions: Tensor, box_vectors: Tensor | None = None) -> Any:
        """Return energies (copies,) and forces (copies, beads, 3)."""
        return self.pmf.energies_and_forces(positions, box_vectors)


def find_package(archive: bytes, copies: int, periodic: bool, device: str) -> Package | None:
    """Return the package for a model file's bytes if this machine has compiled it."""
    question = _question(archive, copies, periodic, device)
    graph = storage.recall("graphs", question)
    if graph is None:
        return None
    path = storage.find("packages", _settings(question, graph))
    return None if path is None else _package(path, question)


def compile_package(
    model: ModelFile, copies: int, periodic: bool = False, device: str = "cpu"
) -> Package:
    """Return the package for a model, compiled now if this machine has not done so before.

    There are two kinds: for one copy, and for any larger number.

    Raises:
        InputError: if the model cannot be compiled; the message says why.
    """
    question = _question(model.archive, copies, periodic, device)
    what = "one copy" if copies == 1 else "any number of copies"
    line = f"compiling {model.name} for {what} on this {device} (once, about 15 s)"
    exported = None
    try:
        graph = storage.recall("graphs", question)
        if graph is None:
            exported = _export_model(model, question)
            graph = _hash_of(exported, model)
            storage.remember("graphs", question, graph)
        settings = _settings(question, graph)
        if compiler() is None and storage.find("packages", settings) is None:
            raise InputError(NO_COMPILER)

        def make(path: Path) -> None:
            _compile(exported or _export_model(model, question), settings, path)

        return _package(storage.build("packages", settings, make, line), question)
    except Exception as error:
        logger.debug("compiling %s", model.name, exc_info=True)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"model {model.name} cannot be compiled: {reason[:300]}") from error


def _package(path: Path, question: dict[str, Any]) -> Package:
    copies = 1 if question["shape"] == "one copy" else MOST_COPIES
    return Package(path, question["device"], copies, torch.get_num_threads())


def _settings(question: dict[str, Any], graph: str) -> dict[str, Any]:
    """Return all that a package depends on: what it computes, and for which machine."""
    return {**{name: value for name, value in question.items() if name != "model"}, "graph": graph}


def _question(archive: bytes, copies: int, periodic: bool, device: str) -> dict[str, Any]:
    """Return all that decides which package a model needs."""
    one = copies == 1
    settings: dict[str, Any] = {
        "model": hashlib.sha256(archive).hexdigest(),
        "openmm_cgml": __version__,
        "sources": _hash_of_sources(),
        "torch": torch.__version__,
        "processor": storage.processor(),
        "device": device,
        "shape": "one copy" if one else "any number of copies",
        # Baked in. Many copies are shared out between threads from outside.
        "threads": torch.get_num_threads() if one else 1,
        "periodic": periodic,
    }
    if device != "cpu":
        settings["gpu"] = torch.cuda.get_device_name(device)
    return settings


@cache
def _hash_of_sources() -> str:
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for name in _SOURCES:
        place = root / name
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _export_model(model: ModelFile, question: dict[str, Any]) -> Any:
    """Return the exported program of a model's energies and forces."""
    device, one = question["device"], question["shape"] == "one copy"
    pmf = model.rebuild().requires_grad_(False).to(device)
    if (why := untraceable(pmf)) is not None:
        raise InputError(why)
    for tensor in (*pmf.parameters(), *pmf.buffers()):
        # As the force hands them over; other strides would be compiled in.
        tensor.data = tensor.data.contiguous()
    beads = len(model.topology)
    program = _EnergyAndForces(pmf).eval()
    # Far apart: no two copies or beads alike, nothing zero, whatever the network tests for.
    draw = torch.Generator().manual_seed(0)
    positions = 0.5 * torch.randn(1 if one else 7, beads, 3, generator=draw)
    inputs = [positions.to(device)]
    # The copies are a dimension of their own: as a quotient, beads would divide rows in floating
    # point, and be one copy short for some numbers of beads.
    shapes: list[Any] = [None if one else {0: torch.export.Dim("copies", min=2)}]
    if question["periodic"]:
        inputs.append(10 * torch.eye(3, device=device))
        shapes.append(None)
    exported = export(program, tuple(inputs), tuple(shapes))
    table = torch.export.default_decompositions()
    table[torch.ops.aten.mm.default] = _product
    table[torch.ops.aten.addmm.default] = _biased_product
    exported = exported.run_decompositions(table)
    _keep_sums_apart(exported.graph_module)
    return exported


def _hash_of(exported: Any, model: ModelFile) -> str:
    """Return a hash of what an exported program computes, the values of weights left out."""
    digest = hashlib.sha256(exported.graph_module.code.encode())
    pmf = model.rebuild()
    weights = {
        f"pmf.{name}"
        for named in (pmf.named_parameters, pmf.named_buffers)
        for name, _ in named(remove_duplicate=False)
    }
    constants = {**exported.state_dict, **exported.constants}
    for entry in exported.graph_signature.input_specs:
        digest.update(f"{entry.kind} {entry.arg} {entry.target}".encode())
        if isinstance(value := constants.get(entry.target), Tensor):
            digest.update(f"{value.shape} {value.stride()} {value.dtype}".encode())
            if entry.target not in weights:  # made while tracing: part of the program
                digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _compile(exported: Any, settings: dict[str, Any], path: Path) -> None:
    folder = tempfile.TemporaryDirectory(dir=path.parent)
    with quiet_compiler(), folder as scratch, _scratch(scratch):
        archive = torch._inductor.aoti_compile_and_package(
            exported,
            package_path=str(Path(scratch) / "package.pt2"),
            inductor_configs={
                "cpp.cxx": (None, (compiler() or ["g++"])[0]),
                "cpp.threads": settings["threads"],
                # Instruction sets are read from the processor; trying each takes seconds.
                "cpp.vec_isa_ok": True,
                # Results that two later operations read are stored, not computed twice: 4 % of a
                # step. One block of memory instead of thirty: 2 % of a step of few copies.
                "realize_reads_threshold": 1,
                "memory_planning": True,
                # Else small ones are compiled in, and other weights could not take their place.
                "always_keep_tensor_constants": True,
                # Else a pool of processes stays behind.
                "compile_threads": 1,
                # Else kernels for GPUs would be files of their own, which the cache does not keep.
                "aot_inductor.embed_kernel_binary": settings["device"] != "cpu",
            },
        )
        with zipfile.ZipFile(archive) as members:
            names = [name for name in members.namelist() if name.endswith(".so")]
            path.write_bytes(members.read(names[0]))


def export(program: nn.Module, inputs: tuple, shapes: tuple) -> Any:
    """Return the exported program of a module, the gradient of one that uses autograd with it.

    Traced first, since torch.export by itself does not see through autograd.

    Args:
        program: the module.
        inputs: example inputs.
        shapes: the dynamic dimensions of each, as torch.export takes them.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = "real" if all(shape is None for shape in shapes) else "symbolic"
    traced = make_fx(program, tracing_mode=mode, _allow_non_fake_inputs=True)(*inputs)
    # Weights get their names back, by which they are found when the package is loaded.
    names = {
        id(tensor): name
        for name, tensor in (*program.named_parameters(), *program.named_buffers())
    }
    for node in traced.graph.find_nodes(op="get_attr"):
        value = getattr(traced, node.target)
        if id(value) in names:
            node.target = names[id(value)]
        else:
            setattr(program, node.target, value)
    return torch.export.export(
        torch.fx.GraphModule(program, traced.graph), inputs, dynamic_shapes=shapes
    )


def _product(left: Tensor, right: Tensor) -> Any:
    # With one row a library call costs more than the arithmetic, so it is compiled too.
    if left.shape[0] != 1:
        return NotImplemented
    if right.stride(-1) == 1:
        return (left.t() * right).sum(0, keepdim=True)
    return (left * right.t()).sum(1).unsqueeze(0)


def _biased_product(
    bias: Tensor, left: Tensor, right: Tensor, beta: Any = 1, alpha: Any = 1
) -> Any:
    if beta != 1 or alpha != 1:
        return NotImplemented
    product = _product(left, right) if left.shape[0] == 1 else torch.mm(left, right)
    return bias + product


def _keep_sums_apart(module: Any) -> None:
    """Let sums with matrix products be fused with what follows, not made in the library call.

    There they cost a pass over memory: up to 8 % of a step. The compiler would put a + product
    into the call, but leaves a - (-product) alone.
    """
    aten, graph = torch.ops.aten, module.graph
    for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        products = [x for x in node.args if getattr(x, "target", None) is aten.mm.default]
        if len(node.args) == 2 and products and not node.kwargs:
            other = node.args[0] if node.args[1] is products[0] else node.args[1]
            with graph.inserting_before(node):
                negative = graph.call_function(aten.neg.default, (products[0],))
                negative.meta["val"] = products[0].meta["val"]
            node.target, node.args = aten.sub.Tensor, (other, negative)
    module.recompile()


@contextmanager
def _scratch(folder: str) -> Iterator[None]:
    """Keep the compiler's own cache, which it never empties, in a folder that is removed."""
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
