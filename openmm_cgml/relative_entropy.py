"""Relative entropy: match the distribution of the beads, with samples of the model itself."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import numpy as np

from .errors import InputError
from .losses import Batch, Objective, Terms
from .pmf.core import PMF


class RelativeEntropy(Objective):
    """The relative entropy of the data and the model, by its gradient.

    S = <ln p_data / p_model>_data = beta <U>_data + ln Z + const has the gradient

        dS/dtheta = beta (<dU/dtheta>_data - <dU/dtheta>_model),

    which is that of the loss here, beta (mean U of the data - mean U of the samples). It needs no
    forces. The value itself tells little: it is 0 wherever the mean energies agree, so the last
    epoch is kept and not the best. Frames of a biased run count by their weights.

    Args:
        sampler: takes the whole PMF and returns positions (samples, beads, 3), nm, of its
            equilibrium: usually a run of the engine (docs/training.md has one). If it has
            ``state_dict`` and ``load_state_dict``, checkpoints hold its state.
        refresh: steps that share samples. Large ones save time while the model changes little.

    Raises:
        InputError: if there is no sampler, or refresh is below one.

    Reference: Shell 2008, doi:10.1063/1.2992060, eq. 5.
    """

    comparable = False

    def __init__(self, sampler: Callable[[PMF], Any] | None = None, refresh: int = 10) -> None:
        if sampler is None:
            raise InputError(
                "relative_entropy needs samples of the model: RelativeEntropy(sampler=...), a "
                "function that takes a PMF and returns positions"
            )
        if refresh < 1:
            raise InputError(f"refresh is {refresh}; give at least 1 step")
        self.sampler, self.refresh = sampler, refresh
        self._steps: dict[int, int] = {}
        self._samples: dict[int, Tensor] = {}

    def __call__(self, terms: Terms, batch: Batch, differentiable: bool = True) -> Tensor:
        """Return the difference of mean energies in kT, a scalar."""
        samples = self._current(terms, batch, step=differentiable)
        energies = terms.trainable(batch.positions, batch.box)
        if batch.weights is not None:
            energies = batch.weights * energies
        return (energies.mean() - terms.trainable(samples, batch.box).mean()) / batch.kt

    def _current(self, terms: Terms, batch: Batch, step: bool) -> Tensor:
        molecule = batch.molecule
        if molecule not in self._samples or (
            step and self._steps.get(molecule, 0) % self.refresh == 0
        ):
            self._samples[molecule] = self._draw(terms.pmf, batch)
        if step:
            self._steps[molecule] = self._steps.get(molecule, 0) + 1
        return self._samples[molecule].to(batch.positions)

    def _draw(self, pmf: PMF, batch: Batch) -> Tensor:
        drawn = self.sampler(pmf)
        samples = drawn if isinstance(drawn, Tensor) else torch.as_tensor(np.asarray(drawn))
        samples = samples.detach().to(batch.positions)
        if samples.dim() != 3 or samples.shape[1:] != batch.positions.shape[1:]:
            raise InputError(
                f"the sampler returned positions of shape {tuple(samples.shape)}; the frames need "
                f"(samples, {batch.positions.shape[1]}, 3)"
            )
        if not bool(torch.isfinite(samples).all()):
            raise InputError(
                "the sampler returned positions that are not finite; lower the learning rate, or "
                "its time step"
            )
        return samples

    def describe(self) -> dict[str, Any]:
        """Return name and settings."""
        return {"name": "relative_entropy", "refresh": self.refresh}

    def state_dict(self) -> dict[str, Any]:
        """Return the samples in use, the steps, and the sampler's own state if it has one."""
        state: dict[str, Any] = {
            "steps": dict(self._steps),
            "samples": {k: v.cpu() for k, v in self._samples.items()},
        }
        if hasattr(self.sampler, "state_dict"):
            state["sampler"] = self.sampler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up samples, steps and the sampler's state."""
        self._steps, self._samples = dict(state["steps"]), dict(state["samples"])
        if "sampler" in state and hasattr(self.sampler, "load_state_dict"):
            self.sampler.load_state_dict(state["sampler"])
