"""``cgml train``: a dataset to a model file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .command_options import Checkpoints, Threads, completing, say
from .command_prior import PriorChoice, make_network, network_settings, require_serves
from .command_step import step
from .errors import InputError
from .pmf import PMFS

_LOSSES = ("force_matching", "denoising")


@step(
    "cgml train dataset.h5 --epochs 60 -o molecule.pt",
    "cgml train dataset.h5 --network schnet --set cutoff=1.2 -o molecule.pt",
    "cgml train dataset.h5 --prior bonds,angles,torsions,repulsion --dry-run",
    pages=True,
)
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
    network: Annotated[
        str, typer.Option(help=f"One of: {', '.join(PMFS)}.", autocompletion=completing(PMFS))
    ] = "cgnet",
    width: Annotated[
        int | None, typer.Option(min=1, help="Hidden units; the network's own if not given.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Hidden layers; the network's own if not given.")
    ] = None,
    assigned: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Another setting of the network, e.g. cutoff=1.2; an unknown one lists all.",
        ),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="Terms with commas (if not given bonds,angles,repulsion), or none."),
    ] = None,
    prior_by: Annotated[
        str | None,
        typer.Option(help="term: each its own parameters; type: by bead type, as of several."),
    ] = None,
    prior_orders: Annotated[
        int | None, typer.Option(min=1, help="Harmonics of the torsions; 3 if not given.")
    ] = None,
    charge: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=CHARGE", help="Charge of a bead type, e; repeatable."),
    ] = None,
    permittivity: Annotated[
        float | None, typer.Option(help="Between charges; 78 if not given.")
    ] = None,
    screening: Annotated[
        float | None, typer.Option(help="Debye length, nm; 0.96 if not given.")
    ] = None,
    prior_table: Annotated[
        Path | None, typer.Option(help="Take the prior from this table; fit none.")
    ] = None,
    write_prior: Annotated[
        Path | None, typer.Option(help="Write the prior's table, also of a dry run.")
    ] = None,
    loss: Annotated[
        str,
        typer.Option(help=f"One of: {', '.join(_LOSSES)}.", autocompletion=completing(_LOSSES)),
    ] = "force_matching",
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
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Compile the steps; if not said: where it pays."
        ),
    ] = None,
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
    checkpoints: Checkpoints = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will do and how long; write no model.")
    ] = False,
    threads: Threads = 1,
) -> dict[str, Any]:
    """Train a PMF and write a model file."""
    import torch

    from .files import require_writable
    from .losses import Denoising, ForceMatching
    from .model_file import save_model

    if output is None and not dry_run:
        context.fail("Missing option '--output' / '-o'.")
    torch.set_num_threads(threads)
    for path in (output, write_prior):
        if path is not None:
            require_writable(path)
    if output is not None and output == write_prior:
        raise InputError(f"--output and --write-prior are both {output}; give two files")
    if loss not in _LOSSES:
        raise InputError(f"loss {loss!r} is unknown; choose {' or '.join(_LOSSES)}")
    if loss == "denoising" and weighted:
        raise InputError("denoising counts by weights anyway; --weighted is for force_matching")
    if loss != "denoising" and noise is not None:
        raise InputError("--noise is the width of denoising's noise; add --loss denoising")
    if loss == "denoising" and noise is None:
        raise InputError("denoising needs the width of the noise: --noise, nm")
    choice = PriorChoice(
        prior, prior_by, prior_orders, charge or (), permittivity, screening, prior_table,
        write_prior,
    )  # fmt: skip
    options = network_settings(network, width, depth, assigned or ())
    training, validation, sample = _data(dataset, valid, stream)
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
        "compile": compile,
        "patience": patience,
        "seed": seed,
    }
    require_serves(network, sample)
    energy, table = choice.make(sample, network)

    def make(number: int) -> Any:
        from .pmf.core import SumPMF

        net = make_network(network, sample, options, number)
        return SumPMF(net) if energy is None else SumPMF(energy, net)

    if dry_run:
        from .training_plan import plan

        planned = plan(make(seed), training, validation, **settings)
        say(planned.text())
        if ensemble > 1:
            say(f"{ensemble} times, for an ensemble")
        if write_prior is not None:
            table.save(write_prior)
        return {
            "plan": {
                "parameters": sum(count for _, count in planned.terms),
                "steps": planned.steps,
                "seconds": planned.seconds * ensemble,
                "memory_bytes": planned.memory,
                "device": planned.device,
            }
        }
    result = _fit(make, training, validation, ensemble, bootstrap, checkpoints, settings)
    if _rank() == 0:
        assert output is not None
        save_model(output, result)
        if write_prior is not None:
            table.save(write_prior)
        _report(output, result)
    return _metrics(result)


def _metrics(result: Any) -> dict[str, Any]:
    """Return the final numbers, of each molecule where there are several."""
    molecules = {name: dict(one.metrics) for name, one in (result.molecules or {}).items()}
    return {"metrics": dict(result.metrics), **({"molecules": molecules} if molecules else {})}


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
