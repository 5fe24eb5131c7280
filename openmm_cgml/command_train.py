"""``cgml train``: a dataset to a model file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .command_options import Threads, say
from .errors import InputError
from .pmf import PMFS

_ONE_MOLECULE = ("cgnet",)  # networks that tell beads apart by their number
_LOSSES = ("force_matching", "denoising")


def train_command(
    context: typer.Context,
    dataset: Annotated[
        str, typer.Argument(help="Dataset from `cgml map`, or a collection of several molecules.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
    valid: Annotated[
        str | None, typer.Option(help="Validation dataset; else a tenth of each block.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read frames in blocks: larger than memory.")
    ] = False,
    network: Annotated[str, typer.Option(help=f"One of: {', '.join(PMFS)}.")] = "cgnet",
    width: Annotated[int, typer.Option(min=1, help="Hidden units.")] = 128,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Hidden layers; the network's own if not given.")
    ] = None,
    loss: Annotated[str, typer.Option(help=f"One of: {', '.join(_LOSSES)}.")] = "force_matching",
    noise: Annotated[
        float | None, typer.Option(help="Of denoising: width of the noise, nm.")
    ] = None,
    weighted: Annotated[
        bool, typer.Option("--weighted", help="Force matching counts frames by their weights.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1)] = 60,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-3,
    schedule: Annotated[
        str, typer.Option(help="cosine, warmup_cosine, constant or plateau.")
    ] = "cosine",
    clip: Annotated[float, typer.Option(min=0.0, help="Largest gradient norm; 0: any.")] = 1.0,
    ema: Annotated[
        float | None, typer.Option(help="Decay of averaged weights, e.g. 0.999.")
    ] = None,
    spectral_norm: Annotated[
        float | None, typer.Option(help="Limit of each matrix's largest singular value.")
    ] = None,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches a step.")] = 1,
    precision: Annotated[str, typer.Option(help="32 or bf16-mixed.")] = "32",
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")
    ] = None,
    ensemble: Annotated[
        int, typer.Option(min=1, help="Train so many and write their mean and spread.")
    ] = 1,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="With --ensemble: each sees other blocks.")
    ] = False,
    seed: int = 0,
    checkpoints: Annotated[
        str | None, typer.Option(help="Folder; a run that was stopped continues from it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will do and how long; write nothing.")
    ] = False,
    threads: Threads = 1,
) -> None:
    """Train a PMF and write a model file."""
    import torch

    from .files import require_writable
    from .losses import Denoising, ForceMatching
    from .model_file import save_model

    if output is None and not dry_run:
        context.fail("Missing option '--output' / '-o'.")
    torch.set_num_threads(threads)
    if output is not None:
        require_writable(output)
    if loss not in _LOSSES:
        raise InputError(f"loss {loss!r} is unknown; choose {' or '.join(_LOSSES)}")
    if loss == "denoising" and weighted:
        raise InputError("denoising counts by weights anyway; --weighted is for force_matching")
    if loss != "denoising" and noise is not None:
        raise InputError("--noise is the width of denoising's noise; add --loss denoising")
    if loss == "denoising" and noise is None:
        raise InputError("denoising needs the width of the noise: --noise, nm")
    training, validation, sample = _data(dataset, valid, stream)
    options = {"width": width, **({} if depth is None else {"depth": depth})}
    settings: dict[str, Any] = {
        "loss": ForceMatching(weighted) if loss == "force_matching" else Denoising(noise),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "gradient_clip": clip or None,
        "ema": ema,
        "spectral_norm": spectral_norm,
        "accumulate": accumulate,
        "precision": precision,
        "patience": patience,
        "seed": seed,
    }
    prior = _prior(sample, network)

    def make(number: int) -> Any:
        from .pmf.core import SumPMF

        return SumPMF(prior, PMFS[network](sample, **options, seed=number))

    if dry_run:
        from .training_plan import plan

        say(plan(make(seed), training, validation, **settings).text())
        if ensemble > 1:
            say(f"{ensemble} times, for an ensemble")
        return
    result = _fit(make, training, validation, ensemble, bootstrap, checkpoints, settings)
    if _rank() == 0:
        assert output is not None
        save_model(output, result)
        _report(output, result)


def _fit(
    make: Any, training: Any, validation: Any, ensemble: int, bootstrap: bool,
    checkpoints: str | None, settings: dict[str, Any],
) -> Any:  # fmt: skip
    from .dataset import CGDataset
    from .train import fit

    if ensemble == 1:
        if bootstrap:
            raise InputError("--bootstrap is for the members of an --ensemble; give its size")
        return fit(make(settings["seed"]), training, validation, directory=checkpoints, **settings)
    if not isinstance(training, CGDataset):
        raise InputError("an ensemble is trained on one molecule in memory; leave out --stream")
    from .ensemble import fit_ensemble

    return fit_ensemble(
        make, training, validation, members=ensemble, bootstrap=bootstrap, directory=checkpoints,
        **settings,
    )  # fmt: skip


def _data(dataset: str, valid: str | None, stream: bool) -> tuple[Any, Any, Any]:
    """Return training data, validation data, and frames in memory to build the PMF from."""
    from .training_data import read_frames, sample_datasets

    if not stream:
        training = read_frames(dataset)
        if valid is None:
            training, validation = training.split(0.9)
        else:
            validation = read_frames(valid)
        return training, validation, training
    if valid is None:
        raise InputError(
            "--stream needs --valid: divide the file once by `cgml data split`, or leave it out"
        )
    return dataset, valid, sample_datasets(dataset)


def _prior(sample: Any, network: str) -> Any:
    from .dataset import CGDataset
    from .pmf.prior import fit_prior, fit_prior_table

    if isinstance(sample, CGDataset):
        return fit_prior(sample)
    if network in _ONE_MOLECULE:
        others = ", ".join(name for name in PMFS if name not in _ONE_MOLECULE)
        raise InputError(f"{network} knows one molecule only; for several choose {others}")
    first = next(iter(sample.datasets.values()))
    return fit_prior_table(sample).to_pmf(first.topology)


def _rank() -> int:
    import os

    return int(os.environ.get("RANK", "0"))


def _report(output: Path, result: Any) -> None:
    results = result.molecules or {"": result}
    for name, one in results.items():
        where = f"{output}{name and f', {name}'}"
        if (noise := one.noise) is None:
            best = min(h["valid_rmse"] for h in one.history)
            say(f"{where}: validation RMSE of the noisy target {best:.1f} kJ/mol/nm")
            continue
        say(
            f"{where}: validation force RMSE {noise.residual:.1f} kJ/mol/nm, of which about "
            f"{noise.floor:.1f} is noise that no model can remove; model error about "
            f"{noise.model_error:.1f}"
        )
