"""Force residuals and their gradient by the weights as one compiled program.

Training a network on forces differentiates twice, which leaves a thousand small operations a step;
traced together and compiled, they take a half to a third of the time.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from .errors import InputError, first_line
from .pmf.core import PMF, InternalPMF, SumPMF, energy_and_forces
from .pmf.tracing import quiet_compiler, untraceable

logger = logging.getLogger(__name__)

# Compiling takes 10 to 40 s. It is earned back after so many steps, and so many more where the
# PMF knows its own gradient, which is differentiated only once.
_STEPS, _STEPS_OF_INTERNAL = 2000, 20_000


class CompiledResidual:
    """The mean square force residual of a PMF, compiled at the first call for its shapes.

    Calls with other shapes, and all calls after a compilation that failed, run as they would
    without it.

    Args:
        pmf: terms with trainable parameters.
        required: whether a failure to compile is an error; else it is a warning.
    """

    def __init__(self, pmf: PMF, required: bool = False) -> None:
        self._pmf, self._required = pmf, required
        self._shapes: Any = None
        self._program: Callable[..., Any] | None = None

    def __call__(
        self, positions: Tensor, target: Tensor, weights: Tensor, box: Tensor | None
    ) -> Tensor:
        """Return the mean of weights (F - target)^2 over frames and components, a scalar.

        Args:
            positions: (frames, beads, 3), nm.
            target: (frames, beads, 3), kJ/mol/nm.
            weights: (frames,), in 1/(kJ/mol/nm)^2.
            box: (3, 3) box vectors, nm, or None.

        Raises:
            InputError: if the PMF cannot be compiled and it is required.
        """
        data = [positions, target, weights, *([] if box is None else [box])]
        named = {n: p for n, p in self._pmf.named_parameters() if p.requires_grad}
        if self._shapes is None:
            self._shapes = _shapes(data)
            self._program = self._compiled(data, named)
        if self._program is None or _shapes(data) != self._shapes:
            return force_residual(self._pmf, *data)
        return _Given.apply(self._program, len(data), *data, *named.values())

    def _compiled(self, data: list[Tensor], named: dict[str, nn.Parameter]) -> Any:
        started = time.perf_counter()
        try:
            program = _compile(self._pmf, data, named)
        except Exception as error:  # of every kind: compilers are missing, tracers meet anything
            reason = f"the training step cannot be compiled: {first_line(error)}"
            if self._required:
                raise InputError(f"{reason}; train without compile") from error
            logger.warning("%s; training goes on without", reason)
            return None
        logger.info("compiled the training step in %.0f s", time.perf_counter() - started)
        return program


def pays(pmf: PMF, steps: int) -> bool:
    """Return whether so many steps earn back the time that compiling takes.

    A rule of what is known before, not of times that are measured: the same training is to have
    the same rounding everywhere.
    """
    terms = list(pmf.terms) if isinstance(pmf, SumPMF) else [pmf]
    own = all(isinstance(term, InternalPMF) for term in terms)
    return untraceable(pmf) is None and steps >= (_STEPS_OF_INTERNAL if own else _STEPS)


class _Given(torch.autograd.Function):
    """A loss whose gradient by the parameters is computed along with it."""

    @staticmethod
    def forward(ctx: Any, program: Any, count: int, *tensors: Tensor) -> Tensor:
        loss, *gradients = program(*[t.detach() for t in tensors])
        ctx.count, ctx.gradients = count, gradients
        return loss

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        return (None, None, *[None] * ctx.count, *[slope * g for g in ctx.gradients])


def force_residual(
    pmf: PMF,
    positions: Tensor,
    target: Tensor,
    weights: Tensor,
    box: Tensor | None = None,
    *,
    differentiable: bool = True,
) -> Tensor:
    """Return the mean of weights (F - target)^2 over frames and components, a scalar.

    Not divided by the batch's sum of weights, which would bias the gradient.

    Args:
        pmf: whose forces F are.
        positions: (frames, beads, 3), nm.
        target: (frames, beads, 3), kJ/mol/nm.
        weights: (frames,), in 1/(kJ/mol/nm)^2.
        box: (3, 3) box vectors, nm, or None.
        differentiable: whether it can be differentiated by the parameters.
    """
    forces = energy_and_forces(pmf, positions, box, differentiable=differentiable)[1]
    return (weights * (forces - target).square().mean(dim=(1, 2))).mean()


def _compile(pmf: PMF, data: list[Tensor], named: dict[str, nn.Parameter]) -> Any:
    """Return a function of data and parameters that returns loss and gradients."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    if (why := untraceable(pmf)) is not None:
        raise InputError(why)

    def step(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, parameters = tensors[: len(data)], tensors[len(data) :]
        with _reparametrize_module(pmf, dict(zip(named, parameters, strict=True))):
            loss = force_residual(pmf, *inputs)
        return (loss, *torch.autograd.grad(loss, parameters, materialize_grads=True))

    parameters = [p.detach().requires_grad_() for p in named.values()]
    with torch.enable_grad():
        traced = make_fx(step, tracing_mode="real")(*data, *parameters)
    inputs: list[Any] = [*data, *[p.detach() for p in parameters]]
    modes = FakeTensorMode()
    for node, tensor in zip(traced.graph.find_nodes(op="placeholder"), inputs, strict=True):
        node.meta["val"] = modes.from_tensor(tensor)  # which a program all in C++ asks for
    with torch.no_grad(), quiet_compiler():
        program = torch._inductor.compile(traced, inputs, options=_options(data[0].device))
        program(*inputs)  # what is compiled late fails here
    return program


def _options(device: torch.device) -> dict[str, Any]:
    return {
        # One C++ file, not one a kernel: compiled and called sooner.
        "cpp_wrapper": device.type == "cpu",
        # Instruction sets are read from the processor; trying each takes seconds.
        "cpp.vec_isa_ok": True,
        # Else a pool of processes stays behind.
        "compile_threads": 1,
    }


def _shapes(tensors: Sequence[Tensor]) -> list[Any]:
    return [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]
