"""``cgml analyze`` and ``cgml report``: pages about runs, comparisons and any file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .command_options import Output, parse_numbers
from .command_step import step
from .errors import InputError


@step(
    "cgml analyze cg.h5 -o run.html",
    "cgml analyze cg.h5 --reference reference.h5 --dihedral 0,1,2,3 --dihedral 1,2,3,4 "
    "-o report.html",
    prints=True,
)
def analyze_command(
    run: Annotated[str, typer.Argument(help="Run from `cgml simulate` or `cgml remd`.")],
    output: Output,
    reference: Annotated[
        str | None,
        typer.Option(help="Reference to compare with: dataset (.h5) or .npz histogram."),
    ] = None,
    dihedral: Annotated[
        list[str] | None,
        typer.Option(
            help="With --reference: four bead indices from 0, e.g. 0,1,2,3; give it twice."
        ),
    ] = None,
    state: Annotated[
        str, typer.Option(help="Range of the first dihedral whose free energy is compared, rad.")
    ] = "0,2.2",
    discard: Annotated[float, typer.Option(help="ps left out at the start of each copy.")] = 0.0,
    model: Annotated[
        str | None,
        typer.Option(help="With --reference: model file, for the training curve in the report."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Rung to look at, K; that of the training if not given.")
    ] = None,
    native: Annotated[
        str | None,
        typer.Option(help="Structure (.pdb, or dataset) for RMSD and native contacts."),
    ] = None,
    tica: Annotated[
        float | None, typer.Option(help="Lag of TICA, ps; a twentieth of the run if not given.")
    ] = None,
    rdf: Annotated[
        bool | None,
        typer.Option("--rdf/--no-rdf", help="Radial distributions; of many molecules anyway."),
    ] = None,
) -> dict[str, Any]:
    """Write a page about a run, or, with --reference, about its comparison with one.

    Alone: energies, exchanges, structure, torsions, contacts, convergence, timescales.
    """
    from .files import require_writable

    require_writable(output)
    if (reference is None) != (not dihedral):
        raise InputError(
            "a comparison needs --reference and --dihedral twice; leave both out for a page "
            "about the run alone"
        )
    if reference is None:
        if model is not None:
            raise InputError("--model is for a comparison; its own page is of `cgml report`")
        return _alone(run, output, discard, temperature, native, tica, rdf)
    if native is not None or tica is not None or rdf is not None:
        raise InputError(
            "--native, --tica and --rdf are for a page about the run alone; leave out --reference"
        )
    return _compared(run, output, reference, dihedral or [], state, discard, model, temperature)


@step("cgml report dataset.h5 -o dataset.html", "cgml report molecule.pt -o model.html")
def report_command(
    file: Annotated[
        str, typer.Argument(help="Run (finished or not), dataset, collection, model or flow.")
    ],
    output: Output,
) -> dict[str, Any]:
    """Write a self-contained HTML page about any file that cgml wrote."""
    from .file_report import write_file_report
    from .files import require_writable

    require_writable(output)
    return write_file_report(file, output)


def _alone(
    run: str, output: Path, discard: float, temperature: float | None, native: str | None,
    tica: float | None, rdf: bool | None,
) -> dict[str, Any]:  # fmt: skip
    from .file_report import recognise, write_file_report
    from .native_structure import read_native
    from .run_file import read_run
    from .run_view import RunChoices

    if (kind := recognise(run)) != "run":
        raise InputError(f"{run} is a {kind}, not a run; `cgml report {run}` writes its page")
    structure = None
    if native is not None:
        structure = read_native(native, read_run(run, stride=1_000_000).topology)
    choices = RunChoices(
        discard_ps=discard, temperature=temperature, native=structure,
        native_name="" if native is None else Path(native).name, tica_lag_ps=tica, rdf=rdf,
    )  # fmt: skip
    return write_file_report(run, output, choices)


def _compared(
    run: str, output: Path, reference: str, dihedral: list[str], state: str, discard: float,
    model: str | None, temperature: float | None,
) -> dict[str, Any]:  # fmt: skip
    from .analysis import compare
    from .dataset import read_dataset
    from .report import write_report
    from .run_file import read_run
    from .system import load_model

    quadruples = [parse_numbers(d, int, 4, "dihedral") for d in dihedral]
    low, high = parse_numbers(state, float, 2, "state")
    frames = read_run(run)
    source: Any = read_dataset(reference) if reference.endswith((".h5", ".hdf5")) else reference
    if temperature is None:
        only = len(frames.temperatures) == 1
        temperature = float(
            frames.temperatures[0] if only else frames.info["training_temperature_K"]
        )
    comparison = compare(
        frames, source, quadruples, temperature=temperature, state=(low, high), discard_ps=discard
    )
    training = load_model(model).card["training"] if model else {}
    labels = ["-".join(frames.topology.label(b) for b in q) for q in quadruples]
    write_report(
        output,
        comparison,
        title=f"{Path(run).name} against {Path(reference).name}",
        lead=f"{len(frames)} frames of {frames.positions.shape[1]} copies.",
        labels=(labels[0], labels[1]),
        training=training,
        run=frames.info,
        notes=[],
    )
    return comparison.record()
