"""What is done to weights beside the optimiser's steps: averages over steps, limited norms."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Exponential moving average of a module's parameters over the optimiser's steps.

    Early averages forget faster, min(decay, (1 + n) / (10 + n)) after n steps, so that the
    initial weights do not linger.

    Args:
        module: whose parameters are averaged.
        decay: of one step, below one.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._parameters = dict(module.named_parameters())
        self._decay, self._steps = decay, 0
        self._average = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after a step."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        for name, parameter in self._parameters.items():
            average = self._average[name] = self._average[name].to(parameter)
            average.lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the module have the averages while the block runs."""
        own = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._set(self._average)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return averages and steps."""
        return {"steps": self._steps, "average": {n: v.cpu() for n, v in self._average.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up averages and steps."""
        self._steps, self._average = int(state["steps"]), dict(state["average"])


class SpectralLimit:
    """Keeps the largest singular value of every weight matrix below a limit.

    After each step W becomes W / max(1, |W| / limit). The norm is found by power iteration that
    goes on from the singular vector of the step before. With activations of slope at most one,
    the network's Lipschitz constant is then below limit^layers in its own units.

    Args:
        module: whose matrices, parameters of two dimensions that are not embeddings.
        limit: of the norm.
        seed: of the first vectors.

    Reference: Koehler et al. 2023, doi:10.1021/acs.jctc.3c00016.
    """

    _FIRST, _LATER = 30, 3  # iterations

    def __init__(self, module: nn.Module, limit: float, seed: int = 0) -> None:
        tables = {
            id(p)
            for m in module.modules()
            if isinstance(m, nn.Embedding)
            for p in m.parameters(recurse=False)
        }
        self._matrices = [
            p
            for p in module.parameters()
            if p.dim() == 2 and p.requires_grad and id(p) not in tables
        ]
        self._limit = limit
        generator = torch.Generator().manual_seed(seed)
        self._vectors = [torch.randn(p.size(1), generator=generator) for p in self._matrices]
        self._iterations = self._FIRST

    @torch.no_grad()
    def apply(self) -> None:
        """Scale down the matrices that are above the limit."""
        for k, matrix in enumerate(self._matrices):
            vector = self._vectors[k].to(matrix)
            for _ in range(self._iterations):
                vector = nn.functional.normalize(matrix.t() @ (matrix @ vector), dim=0)
            self._vectors[k] = vector
            matrix.div_(((matrix @ vector).norm() / self._limit).clamp_min(1.0))
        self._iterations = self._LATER

    def state_dict(self) -> dict[str, Any]:
        """Return the singular vectors."""
        return {"vectors": [v.cpu() for v in self._vectors], "iterations": self._iterations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the singular vectors."""
        self._vectors, self._iterations = list(state["vectors"]), int(state["iterations"])
