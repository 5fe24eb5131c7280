"""The ``cgml`` command: each step reads files and writes one."""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import CGMLError, InputError
from .mapping import FORCE_MAPS, MAPPINGS
from .pmf import PMFS

app = typer.Typer(
    help="Machine-learned coarse-graining in OpenMM: map, train, simulate, analyze.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# More threads gain little for a few beads, and cost much where other processes run too.
_Threads = Annotated[int, typer.Option(min=1, help="CPU threads of torch.")]
_Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]


@app.command("map")
def map_command(
    trajectory: Annotated[list[str], typer.Argument(help="All-atom trajectory file(s).")],
    output: _Output,
    temperature: Annotated[float, typer.Option(help="Of the ensemble, K.")],
    top: Annotated[str | None, typer.Option(help="Topology: .pdb, .prmtop, .psf, .top.")] = None,
    mapping: Annotated[str, typer.Option(help=f"One of: {', '.join(MAPPINGS)}.")] = "backbone",
    select: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of --mapping: a selection; once: every atom a bead; "
            "several times: one bead each."
        ),
    ] = None,
    com: Annotated[bool, typer.Option("--com", help="Selections give centres of mass.")] = False,
    forces: Annotated[str | None, typer.Option(help="Forces: .npy or .npz.")] = None,
    weights: Annotated[str | None, typer.Option(help="Frame weights: .npy or .npz.")] = None,
    bias_energy: Annotated[str | None, typer.Option(help="Bias energy: .npy or .npz.")] = None,
    bias: Annotated[str, typer.Option(help="What the run was biased by, in words.")] = "",
    force_map: Annotated[str, typer.Option(help=f"One of: {', '.join(FORCE_MAPS)}.")] = "optimal",
    system: Annotated[
        str | None,
        typer.Option(help="OpenMM System XML, for its constraints; else found in the data."),
    ] = None,
    no_box: Annotated[
        bool, typer.Option("--no-box", help="Treat a whole molecule as isolated: leave the box.")
    ] = False,
    length_unit: Annotated[str, typer.Option(help="Of array files: nm, angstrom.")] = "nm",
    force_unit: Annotated[
        str, typer.Option(help="kJ/mol/nm, kcal/mol/angstrom, ...")
    ] = "kJ/mol/nm",
) -> None:
    """Map an all-atom trajectory, and its forces, to a dataset of beads."""
    from .dataset import map_trajectory
    from .files import require_writable
    from .mapping.custom import selection_mapping
    from .trajectory import read_trajectory

    require_writable(output)
    source = read_trajectory(
        list(trajectory) if len(trajectory) > 1 else trajectory[0],
        top=top,
        forces=forces,
        weights=weights,
        bias_energy=bias_energy,
        length_unit=length_unit,
        force_unit=force_unit,
    )
    if select:
        chosen: Any = select[0] if len(select) == 1 else select
        beads = selection_mapping(source.topology, chosen, kind="com" if com else "slice")
    else:
        beads = MAPPINGS[mapping](source.topology)
    dataset = map_trajectory(
        source,
        beads,
        temperature=temperature,
        force_map=force_map,
        constraints="find" if system is None else system,
        periodic=not no_box,
        bias=bias,
        output=output,
    )
    _say(f"{output}: {len(dataset)} frames of {len(dataset.topology)} beads")
    _say("beads: " + " ".join(dataset.topology.label(b) for b in range(len(dataset.topology))))
    if dataset.forces is None:
        _say("no forces in the data: force matching needs some (--forces)")
    else:
        groups = dataset.mapping["force_map"]["constraint_groups"]
        rms = float((dataset.forces.astype(float) ** 2).mean() ** 0.5)
        _say(f"{force_map} force map, {len(groups)} constrained groups, force RMS {rms:.0f}")


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="Dataset from `cgml map`.")],
    output: _Output,
    network: Annotated[str, typer.Option(help=f"One of: {', '.join(PMFS)}.")] = "cgnet",
    width: Annotated[int, typer.Option(min=1, help="Hidden units.")] = 128,
    depth: Annotated[int, typer.Option(min=1, help="Hidden layers.")] = 4,
    epochs: Annotated[int, typer.Option(min=1)] = 60,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-3,
    seed: int = 0,
    checkpoints: Annotated[
        str | None, typer.Option(help="Folder; a run that was stopped continues from it.")
    ] = None,
    threads: _Threads = 1,
) -> None:
    """Train a PMF by force matching and write a model file."""
    from .dataset import read_dataset
    from .files import require_writable
    from .model_file import save_model
    from .pmf.core import SumPMF
    from .pmf.prior import fit_prior
    from .train import fit

    _use_threads(threads)
    require_writable(output)
    training, validation = read_dataset(dataset).split(0.9)
    result = fit(
        SumPMF(fit_prior(training), PMFS[network](training, width=width, depth=depth, seed=seed)),
        training,
        validation,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        directory=checkpoints,
    )
    save_model(output, result)
    noise = result.noise
    _say(
        f"{output}: validation force RMSE {noise.residual:.1f} kJ/mol/nm, of which about "
        f"{noise.floor:.1f} is noise that no model can remove; model error about "
        f"{noise.model_error:.1f}"
    )


@app.command()
def simulate(
    model: Annotated[str, typer.Argument(help="Model file from `cgml train`.")],
    output: _Output,
    start: Annotated[str, typer.Option(help="Dataset; starts are drawn from it by weight.")],
    ns: Annotated[float, typer.Option(help="Length of each copy's trajectory, ns.")],
    copies: Annotated[int, typer.Option(min=1)] = 100,
    temperature: Annotated[
        float | None, typer.Option(help="K; the training temperature if not given.")
    ] = None,
    timestep: Annotated[float, typer.Option(help="ps.")] = 0.002,
    friction: Annotated[float, typer.Option(help="1/ps.")] = 1.0,
    interval: Annotated[float, typer.Option(help="Between frames, ps.")] = 0.5,
    seed: int = 0,
    platform: Annotated[str | None, typer.Option(help="OpenMM platform.")] = None,
    backend: Annotated[str | None, typer.Option(help="torchforce or python.")] = None,
    threads: _Threads = 1,
) -> None:
    """Run Langevin dynamics of many copies in one OpenMM Context."""
    from .dataset import read_dataset
    from .files import require_writable
    from .simulate import Langevin

    _use_threads(threads)
    require_writable(output)
    simulation = Langevin(
        model,
        read_dataset(start),
        copies=copies,
        temperature=temperature,
        timestep=timestep,
        friction=friction,
        seed=seed,
        platform=platform,
        backend=backend,
    )
    run = simulation.run(output, ns=ns, interval=interval)
    speed = run.info["replica_steps_per_second"]
    _say(f"{output}: {len(run)} frames of {copies} copies, {speed:,.0f} replica-steps/s")


@app.command()
def analyze(
    run: Annotated[str, typer.Argument(help="Run from `cgml simulate`.")],
    reference: Annotated[str, typer.Option(help="Reference: dataset (.h5) or .npz histogram.")],
    output: _Output,
    dihedral: Annotated[
        list[str], typer.Option(help="Four bead indices from 0, e.g. 0,1,2,3; give it twice.")
    ],
    state: Annotated[
        str, typer.Option(help="Range of the first dihedral whose free energy is compared, rad.")
    ] = "0,2.2",
    discard: Annotated[float, typer.Option(help="ps left out at the start of each copy.")] = 0.0,
    model: Annotated[
        str | None, typer.Option(help="Model file, for the training curve in the report.")
    ] = None,
) -> None:
    """Compare a run with a reference; write report.html and print the numbers as JSON."""
    from .analysis import compare
    from .dataset import read_dataset
    from .files import require_writable
    from .report import write_report
    from .reporters import read_run
    from .system import load_model

    require_writable(output)
    quadruples = [_numbers(d, int, 4, "dihedral") for d in dihedral]
    low, high = _numbers(state, float, 2, "state")
    frames = read_run(run)
    source: Any = read_dataset(reference) if reference.endswith((".h5", ".hdf5")) else reference
    comparison = compare(
        frames,
        source,
        quadruples,
        temperature=frames.info["temperature_K"],
        state=(low, high),
        discard_ps=discard,
    )
    training = load_model(model).card["training"] if model else {}
    labels = tuple(
        "-".join(frames.topology.label(b) for b in quadruple) for quadruple in quadruples
    )
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
    typer.echo(json.dumps(comparison.record()))


@app.command()
def doctor() -> None:
    """Say what works on this machine; exit code 1 if nothing does."""
    from .doctor import diagnose

    diagnosis = diagnose()
    for name, version in diagnosis.versions.items():
        typer.echo(f"{name:>14}  {version}")
    for check in diagnosis.checks:
        typer.echo(f"{check.status:>14}  {check.name}: {check.detail}")
    raise typer.Exit(diagnosis.exit_code)


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path(
        "demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="A small version, in seconds; not converged.")
    ] = False,
    backend: Annotated[str | None, typer.Option(help="torchforce or python.")] = None,
    seed: int = 0,
    threads: _Threads = 1,
) -> None:
    """Do everything on the data in the package: map, train, export, simulate, compare."""
    from .quickstart import FULL, QUICK
    from .quickstart import quickstart as run

    _use_threads(threads)
    summary = run(output, effort=QUICK if quick else FULL, backend=backend, seed=seed)
    _say(f"report: {output / 'report.html'}")
    typer.echo(json.dumps(summary))


def main() -> None:
    """Run the command; errors on input are one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("openmm_cgml").setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            app()
    except CGMLError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning):  # others are for developers
        _say(f"warning: {message}")


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _numbers(text: str, kind: type, count: int, what: str) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise InputError(f"{what} {text!r} is not {count} numbers with commas; e.g. 0,1,2,3")
    return values


if __name__ == "__main__":
    main()
