"""Training objectives, and what part of their value no model can remove.

An `Objective` turns a PMF and a batch of frames into one number of order one, which training makes
small. `LOSSES` holds those that need nothing but data; `Mixture` adds several up.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .force_noise import ForceNoise, estimate_force_noise
from .pmf.core import PMF, SumPMF, energy_and_forces
from .registry import Registry
from .training_compile import CompiledResidual, force_residual
from .units import strip

__all__ = [
    "LOSSES",
    "Batch",
    "CustomLoss",
    "Denoising",
    "ForceMatching",
    "ForceNoise",
    "Mixture",
    "Objective",
    "Terms",
    "estimate_force_noise",
    "force_matching",
]

LOSSES = Registry(
    "loss",
    {
        "force_matching": "openmm_cgml.losses:ForceMatching",
        "denoising": "openmm_cgml.losses:Denoising",
        "relative_entropy": "openmm_cgml.relative_entropy:RelativeEntropy",
    },
)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some frames of one molecule, or this process's share of them.

    Attributes:
        positions: (frames, beads, 3), nm.
        kt: thermal energy, kJ/mol.
        forces: (frames, beads, 3), kJ/mol/nm, mapped; None if the data have none.
        fixed: (frames, beads, 3), kJ/mol/nm, of the terms without trainable parameters at
            `positions`; None if there are no such terms, or nobody asked.
        weights: (frames,), with mean one over the whole dataset; None if uniform.
        box: (3, 3) box vectors, nm, or None.
        molecule: which molecule of a collection.
        seed: of all that is drawn for this batch.
        first, total: the share starts at this frame of so many in the whole batch.
    """

    positions: Tensor
    kt: float
    forces: Tensor | None = None
    fixed: Tensor | None = None
    weights: Tensor | None = None
    box: Tensor | None = None
    molecule: int = 0
    seed: int = 0
    first: int = 0
    total: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    def to(self, device: Any) -> "Batch":
        """Return the batch on another device."""
        names = ("positions", "forces", "fixed", "weights", "box")
        moved = {n: v.to(device) for n in names if (v := getattr(self, n)) is not None}
        return replace(self, **moved)

    def normals(self) -> Tensor:
        """Draw standard normal numbers of the shape of `positions`.

        They depend on the batch's seed alone, not on what was drawn before nor on how many
        processes share the batch.
        """
        generator = torch.Generator().manual_seed(self.seed)
        shape = (max(self.total, self.first + len(self)), *self.positions.shape[1:])
        drawn = torch.randn(shape, generator=generator)[self.first : self.first + len(self)]
        return drawn.to(self.positions)


class Terms(nn.Module):
    """A PMF whose terms with trainable parameters are told apart from the others.

    Args:
        pmf: the whole PMF, of one molecule.

    Raises:
        InputError: if it has no trainable parameters.
    """

    def __init__(self, pmf: PMF) -> None:
        super().__init__()
        terms = list(pmf.terms) if isinstance(pmf, SumPMF) else [pmf]
        moving = [t for t in terms if any(p.requires_grad for p in t.parameters())]
        still = [t for t in terms if not any(t is m for m in moving)]
        if not moving:
            raise InputError("the PMF has no trainable parameters; add a network to its terms")
        self.fixed = SumPMF(*still) if still else None
        self.trainable = SumPMF(*moving)
        self._whole = (pmf,)  # in a tuple: not registered a second time
        self.compiled: CompiledResidual | None = None

    @property
    def pmf(self) -> PMF:
        """The whole PMF."""
        return self._whole[0]

    def residual(
        self,
        positions: Tensor,
        target: Tensor,
        scale: float,
        weights: Tensor | None,
        box: Tensor | None,
        differentiable: bool,
    ) -> Tensor:
        """Return the mean square residual of the trainable terms' forces, in units of `scale`.

        Args:
            positions: (frames, beads, 3), nm.
            target: (frames, beads, 3), kJ/mol/nm.
            scale: kJ/mol/nm.
            weights: (frames,), with mean one over the dataset; None if uniform.
            box: (3, 3) box vectors, nm, or None.
            differentiable: whether it is for training.
        """
        if weights is None:
            weights = positions.new_ones(len(positions))
        weights = weights / scale**2
        if differentiable and self.compiled is not None:
            return self.compiled(positions, target, weights, box)
        return force_residual(
            self.trainable, positions, target, weights, box, differentiable=differentiable
        )

    def fixed_forces(self, positions: Tensor, box: Tensor | None) -> Tensor | None:
        """Return the other terms' forces (frames, beads, 3), kJ/mol/nm; None if there are none."""
        return None if self.fixed is None else energy_and_forces(self.fixed, positions, box)[1]


class Objective:
    """What training makes small: a number of order one, the mean over the frames of a batch.

    Attributes:
        needs_forces: whether frames must have forces.
        uses_weights: whether frames count by their weights, if they have any.
        all_weighted: whether they do so in every part of it.
        at_data: whether the fixed terms' forces at the data's own positions are used; they are
            then evaluated once, not once a step.
        comparable: whether values of different epochs can be compared, so that the best epoch
            can be told. If not, the last one is kept.
    """

    needs_forces: bool = False
    uses_weights: bool = True
    at_data: bool = False
    comparable: bool = True

    @property
    def all_weighted(self) -> bool:
        """Whether frames count by their weights in every part."""
        return self.uses_weights

    def prepared(self, sample: Iterable[tuple[Terms, Batch]]) -> "Objective":
        """Return this objective after a look at training frames, for scales and the like."""
        return self

    def __call__(self, terms: Terms, batch: Batch, differentiable: bool = True) -> Tensor:
        """Return the loss, a scalar of no unit.

        Args:
            terms: the PMF.
            batch: frames.
            differentiable: whether parameters will get gradients of it; not in validation.
        """
        raise NotImplementedError

    def residual(self, loss: float) -> float | None:
        """Return the RMS force residual that a loss stands for, kJ/mol/nm; None if it is none."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return name and settings, JSON-able."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold so that training goes on exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""


def force_matching(predicted: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the weighted mean square force residual per component.

    Its minimum is the mean force, whatever the frame weights and also for frames from a biased
    run as long as the bias is a function of the beads and its force is not in `target`.

    Args:
        predicted: (frames, beads, 3), kJ/mol/nm.
        target: (frames, beads, 3), kJ/mol/nm.
        weights: (frames,), uniform if None.

    Returns:
        Scalar, (kJ/mol/nm)^2.

    Raises:
        InputError: if shapes differ.

    Reference: Noid et al. 2008, doi:10.1063/1.2938860, eq. 34.
    """
    if predicted.shape != target.shape:
        raise InputError(f"forces have shapes {tuple(predicted.shape)}, {tuple(target.shape)}")
    square = (predicted - target).square().mean(dim=(1, 2))
    if weights is None:
        return square.mean()
    return (weights * square).sum() / weights.sum()


@dataclass(frozen=True)
class ForceMatching(Objective):
    """Mean square residual of the mapped forces, in units of the forces' own mean square.

    Frames of a biased run need no weights, if the bias is a function of the beads and the forces
    are those of the unbiased potential: given the beads, the atoms are distributed as without the
    bias, so the mean force is the same. Weights only say where the fit is to be good, and cost
    effective frames.

    Args:
        weighted: whether frames count by the dataset's weights.
        scale: kJ/mol/nm; `fit` takes the RMS of the force that the fixed terms leave.

    Reference: Noid et al. 2008, doi:10.1063/1.2938860, eq. 34; for biased frames "enhanced
    sampling force matching", arXiv:2510.11148.
    """

    weighted: bool = False
    scale: float = 1.0
    needs_forces = True
    at_data = True

    @property
    def uses_weights(self) -> bool:  # type: ignore[override]
        """Whether frames count by their weights."""
        return self.weighted

    def prepared(self, sample: Iterable[tuple[Terms, Batch]]) -> "ForceMatching":
        """Return the same with the scale of the sample."""
        return replace(self, scale=_rms(self.target(batch) for _, batch in sample))

    def target(self, batch: Batch) -> Tensor:
        """Return what the trainable terms are to give (frames, beads, 3), kJ/mol/nm."""
        if batch.forces is None:
            raise InputError("these frames have no forces, which force_matching needs")
        return batch.forces if batch.fixed is None else batch.forces - batch.fixed

    def __call__(self, terms: Terms, batch: Batch, differentiable: bool = True) -> Tensor:
        """Return the loss, a scalar."""
        weights = batch.weights if self.weighted else None
        return terms.residual(
            batch.positions, self.target(batch), self.scale, weights, batch.box, differentiable
        )

    def residual(self, loss: float) -> float:
        """Return the RMS residual, kJ/mol/nm."""
        return loss**0.5 * self.scale

    def describe(self) -> dict[str, Any]:
        """Return name and settings."""
        return {"name": "force_matching", "weighted": self.weighted}


@dataclass(frozen=True)
class Denoising(Objective):
    """Match the forces of smeared beads: noise is drawn anew in every step.

    With R' = R + s e, e ~ N(0, 1) on every bead and axis, the force

        F = (1 - c) f - c kT e / s

    has the mean force of R' as its mean, for every c: that of the PMF smeared by the Gaussian.
    c = 1 is denoising score matching, which needs no forces; c = 0 is force matching on smeared
    positions; in between the noises of both partly cancel. The trained PMF is the smeared one,
    softer than the molecule's own by about s.

    The noise part tells the distribution of the frames, not their forces, so frames of a biased
    run count by their weights here.

    Args:
        sigma: s, nm.
        noise_share: c; None: the one of least variance, f^2 / (f^2 + (kT/s)^2) with f^2 the mean
            square of the training forces, and 1 if there are none.
        scale: kJ/mol/nm; `fit` takes the RMS of the target.

    Raises:
        InputError: if sigma is missing or not positive, or the share not from 0 to 1.

    Reference: Vincent 2011, doi:10.1162/NECO_a_00142; Durumeric et al. 2024, arXiv:2407.01286,
    whose matrix C is c times one here (`mapping.noise` has the optimal one of atoms).
    """

    sigma: Any = None
    noise_share: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.sigma is None:
            raise InputError("denoising needs the width of the noise: Denoising(sigma=..., nm)")
        sigma = strip(self.sigma, "nanometer", what="noise", positive=True)
        object.__setattr__(self, "sigma", sigma)
        if self.noise_share is not None and not 0 <= self.noise_share <= 1:
            raise InputError(f"noise_share is {self.noise_share}; give 0 to 1, or None")

    @property
    def needs_forces(self) -> bool:  # type: ignore[override]
        """Whether a part of the target are mapped forces."""
        return self.noise_share is not None and self.noise_share < 1

    def prepared(self, sample: Iterable[tuple[Terms, Batch]]) -> "Denoising":
        """Return the same with the share and the scale of the sample."""
        pairs = list(sample)
        share = self.noise_share
        if share is None:
            forces = [b.forces for _, b in pairs if b.forces is not None]
            share = 1.0
            if len(forces) == len(pairs):
                square = _rms(forces) ** 2
                share = square / (square + (pairs[0][1].kt / self.sigma) ** 2)
        chosen = replace(self, noise_share=float(share))
        return replace(chosen, scale=_rms(chosen.target(t, b)[1] for t, b in pairs))

    def target(self, terms: Terms, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return smeared positions and what the trainable terms are to give there."""
        share = 1.0 if self.noise_share is None else self.noise_share
        normals = batch.normals()
        positions = batch.positions + self.sigma * normals
        target = (-share * batch.kt / self.sigma) * normals
        if share < 1:
            if batch.forces is None:
                raise InputError("these frames have no forces; use noise_share=1")
            target = target + (1 - share) * batch.forces
        fixed = terms.fixed_forces(positions, batch.box)
        return positions, target if fixed is None else target - fixed

    def __call__(self, terms: Terms, batch: Batch, differentiable: bool = True) -> Tensor:
        """Return the loss, a scalar."""
        positions, target = self.target(terms, batch)
        return terms.residual(
            positions, target, self.scale, batch.weights, batch.box, differentiable
        )

    def residual(self, loss: float) -> float:
        """Return the RMS residual of the noisy target, kJ/mol/nm."""
        return loss**0.5 * self.scale

    def describe(self) -> dict[str, Any]:
        """Return name and settings."""
        return {"name": "denoising", "sigma_nm": self.sigma, "noise_share": self.noise_share}


class CustomLoss(Objective):
    """A loss of your own, e.g. a likelihood: any function of a PMF and frames.

    Args:
        function: takes the whole PMF and a `Batch`; returns a scalar tensor of order one, the
            mean over the frames. Several processes average theirs.
        name: told to the checkpoints and the model's card.
        needs_forces: whether it reads `Batch.forces`.
        comparable: as of `Objective`.
    """

    def __init__(
        self,
        function: Callable[[PMF, Batch], Tensor],
        name: str = "custom",
        needs_forces: bool = False,
        comparable: bool = True,
    ) -> None:
        self.function, self.name = function, name
        self.needs_forces, self.comparable = needs_forces, comparable

    def __call__(self, terms: Terms, batch: Batch, differentiable: bool = True) -> Tensor:
        """Return the function's value."""
        return self.function(terms.pmf, batch)

    def describe(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": self.name}


class Mixture(Objective):
    """The weighted sum of several objectives, each already of order one.

    Args:
        parts: (objective, weight) pairs; an objective may be a name in `LOSSES`.

    Raises:
        InputError: if there are none, or a weight is not positive.
    """

    def __init__(self, parts: Sequence[tuple[Any, float]]) -> None:
        self.parts = [(objective_of(part), float(weight)) for part, weight in parts]
        if not self.parts:
            raise InputError("a mixture of no objectives has no minimum; give some")
        for part, weight in self.parts:
            if not weight > 0:
                raise InputError(
                    f"{part.describe()['name']} has weight {weight:g} in the mixture; give a "
                    "positive one, or leave it out"
                )
        members = [part for part, _ in self.parts]
        self.needs_forces = any(m.needs_forces for m in members)
        self.uses_weights = any(m.uses_weights for m in members)
        self.at_data = any(m.at_data for m in members)
        self.comparable = all(m.comparable for m in members)

    @property
    def all_weighted(self) -> bool:
        """Whether frames count by their weights in every part."""
        return all(part.all_weighted for part, _ in self.parts)

    def prepared(self, sample: Iterable[tuple[Terms, Batch]]) -> "Mixture":
        """Return the mixture of the prepared objectives."""
        pairs = list(sample)
        return Mixture([(part.prepared(pairs), weight) for part, weight in self.parts])

    def __call__(self, terms: Terms, batch: Batch, differentiable: bool = True) -> Tensor:
        """Return the sum."""
        losses = [weight * part(terms, batch, differentiable) for part, weight in self.parts]
        return torch.stack(losses).sum()

    def describe(self) -> dict[str, Any]:
        """Return the parts and weights."""
        parts = [{**part.describe(), "weight": weight} for part, weight in self.parts]
        return {"name": "mixture", "parts": parts}

    def state_dict(self) -> dict[str, Any]:
        """Return the parts' states."""
        return {str(k): part.state_dict() for k, (part, _) in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give each part its state."""
        for k, (part, _) in enumerate(self.parts):
            part.load_state_dict(state[str(k)])


def objective_of(loss: Any) -> Objective:
    """Return an objective, or the one of that name in `LOSSES`.

    Raises:
        InputError: if the name is unknown or needs settings, or it is no objective.
    """
    if isinstance(loss, str):
        return LOSSES[loss]()
    if not isinstance(loss, Objective):
        raise InputError(
            f"loss is of type {type(loss).__name__}; give a name ({', '.join(LOSSES)}) or an "
            "Objective; a function of PMF and Batch goes into CustomLoss"
        )
    return loss


def _rms(parts: Iterable[Tensor]) -> float:
    square, count = 0.0, 0
    for part in parts:
        square += float(part.double().square().sum())
        count += part.numel()
    return (square / count) ** 0.5 if square > 0 else 1.0
