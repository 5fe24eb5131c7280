"""Ensembles: train several PMFs alike, and tell by their forces where none of them knows."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import CGDataset
from .errors import InputError
from .extrapolation import ForceSpread
from .pmf.core import PMF
from .pmf.ensemble import EnsemblePMF
from .train import FitResult, fit, force_noise, noise_metrics

#: Contiguous blocks that a bootstrap draws from; each longer than the forces' correlation.
_BLOCKS = 50

# Copies of a run whose forces are less certain than this are outside the training data: this
# quantile of the training frames, and, since a run has many more frames, a margin.
_QUANTILE, _MARGIN = 0.999, 1.2

_CHUNK = 4096  # frames that are evaluated together


def fit_ensemble(
    make: Callable[[int], PMF],
    train: CGDataset,
    valid: CGDataset,
    *,
    members: int = 4,
    seed: int = 0,
    bootstrap: bool = False,
    directory: str | Path | None = None,
    **settings: Any,
) -> FitResult:
    """Train several PMFs from different seeds and join them to one.

    Args:
        make: takes a seed, returns an untrained PMF with weights of that seed.
        train: training frames.
        valid: validation frames.
        members: how many.
        seed: of the first member; the others follow.
        bootstrap: whether each member sees other frames: as many blocks, of 50 contiguous ones,
            drawn with replacement. The spread then holds the sampling error of the data too,
            and every member is a little worse.
        directory: checkpoints of each go to ``member0``, ``member1``, ... in it.
        **settings: as of `fit`.

    Returns:
        The result of the `EnsemblePMF`: ``noise`` is that of its mean force, ``history`` the
        mean of the members', ``metrics["members"]`` has each member's force residual, and
        ``metrics["force_uncertainty"]`` what is typical in the training frames, and the limit
        beyond which a run's copies are flagged: 1.2 times the 99.9 % quantile; kJ/mol/nm.

    Raises:
        InputError: as `fit`; if there are fewer than two members.
    """
    if members < 2:
        raise InputError(f"members is {members}; an ensemble has at least 2")
    started = time.perf_counter()
    results = []
    for k in range(members):
        frames = train if not bootstrap else _resampled(train, seed + k)
        folder = None if directory is None else Path(directory) / f"member{k}"
        if folder is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
        results.append(
            fit(make(seed + k), frames, valid, seed=seed + k, directory=folder, **settings)
        )
    pmf = EnsemblePMF(*(r.pmf for r in results)).eval()
    noise = None if valid.forces is None else force_noise(pmf, valid)
    metrics = {
        **results[0].metrics,
        "train_seconds": time.perf_counter() - started,
        "members": [r.metrics.get("force_rmse") for r in results],
        "bootstrap": bootstrap,
        "force_uncertainty": _typical(pmf, train),
        **({} if noise is None else noise_metrics(noise)),
    }
    return FitResult(pmf, train, _mean([r.history for r in results]), noise, metrics)


def force_uncertainty(model: Any, positions: Any, box_vectors: Any = None) -> np.ndarray:
    """Return the standard deviation of an ensemble's forces, (copies,), kJ/mol/nm.

    Of the bead where it is largest (`EnsemblePMF.force_variance`). Runs of an ensemble store it
    for every frame (`Run.force_uncertainty`).

    Args:
        model: an `EnsemblePMF`, a sum with one in it, or what `load_model` returns of one.
        positions: (copies, beads, 3), nm.
        box_vectors: (3, 3), nm, or None.

    Raises:
        InputError: if the model is no ensemble.
    """
    file = getattr(model, "file", None)
    spread = ForceSpread.of(model if file is None else file.module().pmf)
    if spread is None:
        raise InputError(
            "the model is no ensemble, so its forces have no spread; train one by fit_ensemble"
        )
    return spread(positions, box_vectors)


def _typical(pmf: EnsemblePMF, train: CGDataset) -> dict[str, float]:
    """Return what the uncertainty of the forces is on training frames, and the limit for runs."""
    spread, box = ForceSpread([pmf]), train.constant_box()
    parts = [train.positions[k : k + _CHUNK] for k in range(0, len(train), _CHUNK)]
    values = np.concatenate([spread(part, box) for part in parts])
    limit = _MARGIN * np.quantile(values, _QUANTILE)
    return {"typical": float(np.median(values)), "limit": float(limit)}


def _resampled(train: CGDataset, seed: int) -> CGDataset:
    """Return blocks drawn with replacement, each whole and in order."""
    blocks = np.array_split(np.arange(len(train)), min(_BLOCKS, len(train)))
    drawn = np.random.default_rng((seed, 7)).integers(len(blocks), size=len(blocks))
    return train.select(np.concatenate([blocks[k] for k in np.sort(drawn)]))


def _mean(histories: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """Return the mean over members of each epoch that all of them have seen."""
    return [
        {name: float(np.mean([h[name] for h in epoch])) for name in epoch[0]}
        for epoch in zip(*histories, strict=False)
    ]
