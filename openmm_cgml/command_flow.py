"""``cgml flow`` and ``cgml distill``: densities without forces, and PMFs that learn from them."""

from typing import Annotated, Any

import typer

from .command_options import Checkpoints, Output, Threads, completing, say
from .command_prior import make_network, network_settings
from .command_step import add, step
from .errors import InputError
from .flow import FLOWS
from .mapping import MAPPINGS
from .pmf import PMFS

flow_app = typer.Typer(
    help="Train a density of beads on frames without forces, and draw from it.",
    no_args_is_help=True,
)

_Flow = Annotated[str, typer.Argument(help="Flow from `cgml flow train`.")]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Setting of the flow or network: NAME=VALUE; repeatable."),
]
_LargestForce = Annotated[
    float | None, typer.Option(help="Leave out stronger ones, RMS component, kJ/mol/nm.")
]
_Explore = Annotated[
    float | None, typer.Option(help="Share of any torsions; if not said: of few, a quarter.")
]
_Count = Annotated[int, typer.Option(min=1)]
_Rate = Annotated[float, typer.Option(min=0.0)]


@step("cgml flow train dataset.h5 --epochs 30 -o molecule.flow", pages=True)
def train_command(
    dataset: Annotated[str, typer.Argument(help="Dataset from `cgml map`; no forces needed.")],
    output: Output,
    valid: Annotated[
        str | None, typer.Option(help="Validation dataset; else a tenth of each block.")
    ] = None,
    flow: Annotated[
        str, typer.Option(help=f"One of: {', '.join(FLOWS)}.", autocompletion=completing(FLOWS))
    ] = "coupling",
    assigned: _Set = None,
    smearing: Annotated[
        float, typer.Option(min=0.0, help="Noise on training frames, in units of their spread.")
    ] = 0.0,
    force_weight: Annotated[
        float, typer.Option(min=0.0, help="Of force matching beside the likelihood.")
    ] = 0.0,
    epochs: _Count = 30,
    batch_size: _Count = 256,
    learning_rate: _Rate = 3e-3,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")
    ] = None,
    seed: int = 0,
    checkpoints: Checkpoints = None,
    threads: Threads = 1,
) -> dict[str, Any]:
    """Train a flow by maximum likelihood; frames count by their weights."""
    import torch

    from .files import require_writable
    from .flow_file import save_flow
    from .flow_training import fit_flow

    torch.set_num_threads(threads)
    require_writable(output)
    training, validation = _frames(dataset, valid)
    settings = network_settings(flow, None, None, assigned or (), FLOWS)
    untrained = make_network(flow, training, settings, seed, FLOWS)
    result = fit_flow(
        untrained, training, validation, smearing=smearing, force_weight=force_weight,
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, patience=patience,
        seed=seed, directory=checkpoints,
    )  # fmt: skip
    save_flow(output, result)
    say(
        f"{output}: mean log-likelihood of the validation frames "
        f"{result.metrics['log_likelihood']:.3f} nats; "
        f"{100 * result.metrics['outside_training']:.1f} % of them have a distance, angle or "
        "torsion clearly outside the training data"
    )
    return {"metrics": dict(result.metrics)}


@step("cgml flow sample molecule.flow --count 100000 -o samples.h5", pages=True)
def sample_command(
    flow: _Flow,
    output: Output,
    count: Annotated[int, typer.Option(min=1, help="Samples to draw.")] = 100_000,
    explore: _Explore = None,
    largest_force: _LargestForce = None,
    seed: int = 0,
    threads: Threads = 1,
) -> dict[str, Any]:
    """Draw samples with forces and weights: a dataset as `cgml map` writes it."""
    import torch

    from .files import require_writable
    from .flow_file import load_flow

    torch.set_num_threads(threads)
    require_writable(output)
    dataset = load_flow(flow).sample_dataset(
        count, explore=explore, seed=seed, largest_force=largest_force
    )
    dataset.save(output)
    say(f"{output}: {dataset.mapping['flow']['text']}")
    return {"frames": len(dataset), "flow": dataset.mapping["flow"]}


@step("cgml flow split atoms.h5 --mapping backbone --epochs 60 -o split.flow", pages=True)
def split_command(
    dataset: Annotated[
        str, typer.Argument(help="Dataset of atoms: `cgml map` with heavy_atom or all_atom.")
    ],
    mapping: Annotated[
        str, typer.Option(help=f"From these atoms to beads; one of: {', '.join(MAPPINGS)}.")
    ],
    output: Output,
    valid: Annotated[
        str | None, typer.Option(help="Validation dataset; else a tenth of each block.")
    ] = None,
    molecule: Annotated[
        str | None, typer.Option(help="Of several kinds of molecules: which, by its residues.")
    ] = None,
    prior: Annotated[
        float | None, typer.Option(min=1e-3, help="Noise, nm; if not said, fitted to the frames.")
    ] = None,
    assigned: _Set = None,
    epochs: _Count = 60,
    batch_size: _Count = 64,
    learning_rate: _Rate = 5e-3,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")
    ] = None,
    seed: int = 0,
    checkpoints: Checkpoints = None,
    threads: Threads = 1,
) -> dict[str, Any]:
    """Train a split-flow: the density of a molecule's atoms at given beads, for `cgml backmap`.

    Of many equal molecules each is a frame of its own.
    """
    import torch

    from .files import require_writable
    from .flow.fiber import split_flow
    from .flow_file import save_flow
    from .flow_training import fit_flow

    torch.set_num_threads(threads)
    require_writable(output)
    training, validation = (_molecule(part, molecule) for part in _frames(dataset, valid))
    settings = network_settings("split", None, None, assigned or (), {"split": split_flow})
    untrained = split_flow(
        training, mapping, prior="fitted" if prior is None else prior, seed=seed, **settings
    )
    result = fit_flow(
        untrained, training, validation, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, ema=0.995, schedule="warmup_cosine", patience=patience,
        seed=seed, directory=checkpoints,
    )  # fmt: skip
    save_flow(output, result)
    say(
        f"{output}: {len(untrained.bead_topology)} beads to {len(untrained.topology)} atoms, mean "
        f"log-density of validation frames {result.metrics['log_likelihood']:.2f} nats "
        f"({untrained.removed} removed degrees of freedom, nm)"
    )
    return {"metrics": dict(result.metrics), "removed": untrained.removed}


for _name, _command in (
    ("train", train_command), ("sample", sample_command), ("split", split_command),
):  # fmt: skip
    add(flow_app, _name, _command)


def _molecule(dataset: Any, name: str | None) -> Any:
    """Return a dataset with one molecule a frame."""
    from .collection import DatasetCollection
    from .molecules import single_molecules

    found = single_molecules(dataset)
    if not isinstance(found, DatasetCollection):
        return found
    if name not in found.datasets:
        raise InputError(
            f"the dataset has several kinds of molecules ({', '.join(found.datasets)}); choose "
            "one by --molecule"
        )
    return found.datasets[name]


@step("cgml distill molecule.flow --network cgnet -o student.pt", pages=True)
def distill_command(
    flows: Annotated[list[str], typer.Argument(help="Flows from `cgml flow train`.")],
    output: Output,
    name: Annotated[
        list[str] | None, typer.Option(help="Several flows: one molecule's name each.")
    ] = None,
    network: Annotated[
        str, typer.Option(help=f"One of: {', '.join(PMFS)}.", autocompletion=completing(PMFS))
    ] = "cgnet",
    assigned: _Set = None,
    count: Annotated[int, typer.Option(min=100, help="Samples of each flow.")] = 100_000,
    explore: _Explore = None,
    visited: Annotated[
        list[str] | None,
        typer.Option(help="Run of a PMF it taught, to learn from too; repeatable."),
    ] = None,
    largest_force: _LargestForce = None,
    epochs: _Count = 20,
    batch_size: _Count = 256,
    learning_rate: _Rate = 3e-3,
    seed: int = 0,
    checkpoints: Checkpoints = None,
    threads: Threads = 1,
) -> dict[str, Any]:
    """Teach a PMF by the samples and forces of flows, write its model file, compare the two."""
    import torch

    from .distillation import distill, with_prior
    from .files import require_writable
    from .flow_file import load_flow
    from .model_file import save_model

    torch.set_num_threads(threads)
    require_writable(output)
    settings = network_settings(network, None, None, assigned or ())
    loaded: Any = [load_flow(path) for path in flows]
    if len(loaded) > 1:
        names = name or []
        if len(names) != len(loaded) or len(set(names)) != len(names):
            raise InputError(f"{len(loaded)} flows need as many different names: --name for each")
        loaded = dict(zip(names, loaded, strict=True))
    else:
        loaded = loaded[0]
    distilled = distill(
        loaded, with_prior(network, settings), count=count, explore=explore,
        visited=_visited(visited, isinstance(loaded, dict), count // 4, seed),
        largest_force=largest_force, seed=seed, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate,
        directory=checkpoints,
    )  # fmt: skip
    save_model(output, distilled.result)
    say(f"{output}:\n{distilled.text()}")
    return {
        "metrics": dict(distilled.result.metrics),
        "agreements": {name: vars(one) for name, one in distilled.agreements.items()},
    }


def _visited(runs: list[str] | None, several: bool, most: int, seed: int) -> Any:
    """Return frames of runs, of all temperatures, a quarter as many as samples at most."""
    if not runs:
        return None
    if several:
        raise InputError("visited runs are for one flow; in Python distill takes them by name")
    import numpy as np

    from .run_file import read_run

    share = -(-most // len(runs))
    return np.concatenate([read_run(path).draw(share, seed) for path in runs])


def _frames(dataset: str, valid: str | None) -> tuple[Any, Any]:
    from .dataset import read_dataset

    training = read_dataset(dataset)
    return training.split(0.9) if valid is None else (training, read_dataset(valid))
