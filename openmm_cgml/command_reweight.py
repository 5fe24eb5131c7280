"""``cgml reweight``: a flow's samples as the ensemble of a PMF, or of several to be compared."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .command_options import Output, Threads, parse_numbers, say
from .command_step import NOT_CONVERGED, Outcome, step
from .errors import InputError
from .provenance import describe

# ps; seconds of a run, after the model has been compiled once.
_CHECK = 5.0


@step(
    "cgml reweight molecule.pt --flow molecule.flow --ensemble weighted.h5 -o weights.html",
    "cgml reweight first.pt second.pt --compare --flow molecule.flow -o ranking.html",
    prints=True,
)
def reweight_command(
    models: Annotated[list[str], typer.Argument(help="Model files from `cgml train`.")],
    flow: Annotated[str, typer.Option(help="Flow from `cgml flow train`.")],
    output: Output,
    compare: Annotated[
        bool, typer.Option("--compare", help="Rank several PMFs on the same samples.")
    ] = False,
    ensemble: Annotated[
        Path | None, typer.Option(help="Dataset to write: the samples with their weights.")
    ] = None,
    samples: Annotated[int, typer.Option(min=100, help="To draw.")] = 50_000,
    broad: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the flow's broader density.")
    ] = 0.0,
    held_out: Annotated[
        str | None,
        typer.Option(help="Dataset that the flow has not learned from; finds missed modes."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Dataset (.h5) or .npz histogram to compare with.")
    ] = None,
    dihedral: Annotated[
        list[str] | None,
        typer.Option(help="With --reference: four bead indices from 0; give it twice."),
    ] = None,
    state: Annotated[
        str, typer.Option(help="Range of the first dihedral whose free energy is compared, rad.")
    ] = "0,2.2",
    check: Annotated[
        float | None,
        typer.Option(min=0.0, help="ps of dynamics from weighted samples; with --compare 5."),
    ] = None,
    clip: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Leave out so many of the heaviest instead.")
    ] = 0.0,
    seed: int = 0,
    threads: Threads = 1,
) -> Outcome:
    """Weigh a flow's samples by a PMF; write a report, print the numbers as JSON.

    Exit code 3 if the weights have not converged.
    """
    import torch

    from .boltzmann import energies_of, propose, systematic
    from .files import require_writable
    from .flow_file import load_flow
    from .ranking import rank_pmfs
    from .report import write_reweighting
    from .system import load_model

    torch.set_num_threads(threads)
    for path in (output, ensemble):
        if path is not None:
            require_writable(path)
    if len(models) > 1 and not compare:
        raise InputError(f"{len(models)} models were given; add --compare to rank them")
    if ensemble is not None and len(models) > 1:
        raise InputError("an ensemble is of one PMF; leave out --ensemble, or the other models")
    if (reference is None) != (not dihedral):
        raise InputError("a comparison needs --reference and --dihedral twice")
    if len({Path(model).stem for model in models}) < len(models):
        raise InputError("two model files have the same name; rename one")
    quadruples = [parse_numbers(d, int, 4, "dihedral") for d in dihedral or ()]
    low, high = parse_numbers(state, float, 2, "state")
    density = load_flow(flow)
    loaded = {Path(model).stem: load_model(model) for model in models}
    frames = None if held_out is None else _dataset(held_out)
    proposal = propose(density, samples, seed=seed, broad=broad, held_out=frames)
    scores = rank_pmfs(
        proposal, loaded, reference=_reference(reference), dihedrals=quadruples,
        state=(low, high), flow=density, clip=clip, seed=seed,
        check_ps=_CHECK * compare if check is None else check,
    )  # fmt: skip
    names = ["-".join(density.topology.label(b) for b in q) for q in quadruples]
    energies = None
    if frames is not None:
        drawn = frames.positions[systematic(frames.probabilities, len(frames), seed)]
        energies = {n: energies_of(model, drawn) for n, model in loaded.items()}
    notes = [f"{broad:.0%} of the samples are of a broader density."] if broad else []
    write_reweighting(
        output, scores, title=f"{Path(flow).name} weighted by {', '.join(loaded)}",
        lead=f"{samples:,} samples of the flow, seed {seed}, {density.temperature:g} K.",
        labels=(names[0], names[1]) if names else None, quadruples=quadruples,
        reference_frames=energies, notes=notes,
        provenance=describe([*models, flow, held_out, reference], samples=samples, seed=seed),
    )  # fmt: skip
    for score in scores:
        say(score.text())
    if ensemble is not None:
        scores[0].samples.dataset().save(ensemble)
        say(f"{ensemble}: {samples:,} weighted samples")
    record = {"pmfs": [score.record() for score in scores]}
    if not all(score.samples.report.converged for score in scores):
        say(
            "not converged: draw more samples, fine-tune the flow, anneal, or combine with a run; "
            "see docs/boltzmann.md"
        )
        return Outcome(record, NOT_CONVERGED)
    return Outcome(record)


def _dataset(path: str) -> Any:
    from .dataset import read_dataset

    return read_dataset(path)


def _reference(path: str | None) -> Any:
    if path is None:
        return None
    return _dataset(path) if path.endswith((".h5", ".hdf5")) else path
