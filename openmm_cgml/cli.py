"""The ``cgml`` command: each step reads files and writes one."""

import logging
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .command_analyze import analyze_command, report_command
from .command_backmap import backmap_command, entropy_command
from .command_data import data_app
from .command_flow import distill_command, flow_app
from .command_map import map_command
from .command_options import Output, Threads, completing, parse_numbers, parse_properties, say
from .command_reference import reference_command
from .command_reweight import reweight_command
from .command_step import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    RECORD,
    SETTINGS,
    Outcome,
    Sections,
    add,
    arguments_of,
    check_inputs,
    read_echo,
    step,
)
from .command_train import train_command
from .errors import CGMLError, InputError

app = typer.Typer(
    cls=Sections,
    context_settings=SETTINGS,
    help="Machine-learned coarse-graining in OpenMM: map, train, simulate, analyze.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # loading rich takes as long as all else that --help needs
)


#: Of a run's settings, what the record of a command has.
_SAID = ("copies", "temperatures_K", "timestep_ps", "seed", "backend", "platform",
         "replica_steps_per_second")  # fmt: skip

_Model = Annotated[str, typer.Argument(help="Model file from `cgml train`.")]
_Start = Annotated[str, typer.Option(help="Dataset; starts are drawn from it by weight.")]
_Length = Annotated[float, typer.Option(help="Length of each copy's trajectory, ns.")]
_Timestep = Annotated[float, typer.Option(help="ps.")]
_Friction = Annotated[float, typer.Option(help="1/ps.")]
_Interval = Annotated[float, typer.Option(help="Between frames, ps.")]
_OnSick = Annotated[str, typer.Option(help="Copies no longer finite: reset, drop or raise.")]
_Seconds = Annotated[float | None, typer.Option(help="Stop after so long, to go on another time.")]
_Checkpoint = Annotated[float, typer.Option(help="Seconds between checkpoints.")]
_Platform = Annotated[
    str | None,
    typer.Option(
        help="OpenMM platform.",
        autocompletion=completing(("CUDA", "HIP", "OpenCL", "CPU", "Reference")),
    ),
]
_Properties = Annotated[
    list[str] | None,
    typer.Option("--property", help="Platform property, e.g. DeviceIndex=1; repeatable."),
]
_Backend = Annotated[
    str | None,
    typer.Option(
        help="torchforce, native, python or fastest (if not given).",
        autocompletion=completing(("torchforce", "native", "python", "fastest")),
    ),
]


@step("cgml compile molecule.pt")
def compile_command(
    model: _Model,
    copies: Annotated[
        int, typer.Option(min=1, help="One, or several: one package does for any number.")
    ] = 100,
    periodic: Annotated[bool, typer.Option("--periodic", help="For a periodic box.")] = False,
    platform: _Platform = None,
    threads: Threads = 1,
) -> Outcome:
    """Compile a model for this machine now, not in the first run; exit code 1 if it cannot be."""
    from .engine import find_platform
    from .native.force import device_for, load
    from .native.package import compile_package
    from .system import load_model

    _use_threads(threads)
    loaded = load_model(model)
    device = device_for(find_platform(platform).getName())
    try:
        load()
        package = compile_package(loaded.file, copies, periodic, device)
    except CGMLError as error:
        say(f"error: {' '.join(str(error).split())}; other backends run it (`cgml doctor`)")
        return Outcome(code=FAILED)
    what = (
        "any number of copies"
        if copies > 1
        else f"one copy and {threads} thread{'s' * (threads > 1)}"
    )
    say(
        f"package of {loaded.file.name} for {what}{', periodic' * periodic}, {package.device}, "
        "this processor and this torch; backend native takes it from the cache"
    )
    return Outcome({"package": str(package.path), "device": package.device},
                   text=str(package.path))  # fmt: skip


@step(
    "cgml simulate molecule.pt --start dataset.h5 --copies 100 --ns 1 -o cg.h5",
    "cgml simulate molecule.pt --start dataset.h5 --ns 1 --report cg.html -o cg.h5",
    pages=True,
)
def simulate_command(
    model: _Model,
    output: Output,
    start: _Start,
    ns: _Length,
    copies: Annotated[int, typer.Option(min=1)] = 100,
    temperature: Annotated[
        float | None, typer.Option(help="K; the training temperature if not given.")
    ] = None,
    timestep: _Timestep = 0.002,
    friction: _Friction = 1.0,
    interval: _Interval = 0.5,
    minimize: Annotated[bool, typer.Option("--minimize", help="Relax every copy first.")] = False,
    on_sick: _OnSick = "reset",
    seconds: _Seconds = None,
    checkpoint_seconds: _Checkpoint = 30.0,
    seed: int = 0,
    platform: _Platform = None,
    platform_property: _Properties = None,
    backend: _Backend = None,
    threads: Threads = 1,
) -> Outcome:
    """Run Langevin dynamics of many copies in one OpenMM Context; go on where it stopped."""
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
        minimize=minimize,
        on_sick=on_sick,
        seed=seed,
        platform=platform,
        properties=parse_properties(platform_property),
        backend=backend,
    )
    run = simulation.run(
        output, ns=ns, interval=interval, seconds=seconds, checkpoint_seconds=checkpoint_seconds
    )
    return _describe(output, run, seconds)


@step(
    "cgml remd molecule.pt --start dataset.h5 --highest 600 --copies 16 --ns 1 -o remd.h5",
    "cgml remd molecule.pt --start dataset.h5 --temperatures 300,380,480,600 --ns 1 -o remd.h5",
    pages=True,
)
def remd_command(
    model: _Model,
    output: Output,
    start: _Start,
    ns: _Length,
    temperatures: Annotated[
        str | None, typer.Option(help="Of the rungs, K, with commas; else --highest.")
    ] = None,
    highest: Annotated[
        float | None, typer.Option(help="K; rungs from the training temperature to here.")
    ] = None,
    rungs: Annotated[
        int | None, typer.Option(min=2, help="With --highest; else as --acceptance needs.")
    ] = None,
    acceptance: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Aimed at, found by a short run.")
    ] = 0.3,
    copies: Annotated[int, typer.Option(min=1, help="Independent ladders.")] = 16,
    exchange_interval: Annotated[float, typer.Option(help="Between exchanges, ps.")] = 0.2,
    exchange: Annotated[str, typer.Option(help="neighbour or gibbs.")] = "neighbour",
    timestep: _Timestep = 0.002,
    friction: _Friction = 1.0,
    interval: _Interval = 0.5,
    on_sick: _OnSick = "reset",
    seconds: _Seconds = None,
    checkpoint_seconds: _Checkpoint = 30.0,
    seed: int = 0,
    platform: _Platform = None,
    platform_property: _Properties = None,
    backend: _Backend = None,
    threads: Threads = 1,
) -> Outcome:
    """Run temperature replica exchange, many ladders in one OpenMM Context."""
    from .dataset import read_dataset
    from .files import require_writable
    from .remd import ReplicaExchange, ladder
    from .run_file import read_checkpoint
    from .system import load_model

    _use_threads(threads)
    require_writable(output)
    if (temperatures is None) == (highest is None):
        raise InputError("give either --temperatures or --highest")
    loaded, dataset = load_model(model), read_dataset(start)
    settings: dict[str, Any] = {
        "timestep": timestep,
        "friction": friction,
        "seed": seed,
        "platform": platform,
        "properties": parse_properties(platform_property),
        "backend": backend,
    }
    begun = read_checkpoint(output)
    if temperatures is not None:
        values = parse_numbers(temperatures, float, len(temperatures.split(",")), "temperatures")
    elif begun is not None:
        values = begun[0]["temperatures_K"]  # a proposal is made once
    else:
        trial: dict[str, Any] = {} if rungs else {"model": loaded, "start": dataset, **settings}
        values = ladder(
            loaded.temperature, highest, rungs, acceptance=acceptance, **trial
        ).tolist()
        say("temperatures: " + " ".join(f"{t:.1f}" for t in values) + " K")
    simulation = ReplicaExchange(
        loaded,
        dataset,
        values,
        copies,
        exchange_interval=exchange_interval,
        exchange=exchange,
        on_sick=on_sick,
        **settings,
    )
    run = simulation.run(
        output, ns=ns, interval=interval, seconds=seconds, checkpoint_seconds=checkpoint_seconds
    )
    return _describe(output, run, seconds)


def _describe(output: Path, run: Any, seconds: float | None) -> Outcome:
    record = {
        "finished": run.finished,
        "frames": len(run),
        **{k: run.info[k] for k in _SAID if k in run.info},
        "statistics": run.info.get("statistics") or {},
        "resets": sum(e["what"] in ("reset", "dropped") for e in run.events),
    }
    if not run.finished:  # why was logged
        return Outcome(record, INTERRUPTED if seconds is None else 0)
    speed = run.info.get("replica_steps_per_second", float("nan"))
    copies, dt = run.info["copies"], run.info["timestep_ps"]
    say(
        f"{output}: {len(run)} frames of {copies} copies, {speed:,.0f} replica-steps/s "
        f"({speed * dt * 86.4:,.0f} ns/day, {speed * dt * 86.4 / copies:,.1f} a copy)"
    )
    statistics = run.info.get("statistics") or {}
    if rates := statistics.get("neighbour_acceptance"):
        say(
            "acceptance " + " ".join("-" if r is None else f"{r:.2f}" for r in rates)
            + f", {statistics['round_trips']} round trips"
        )  # fmt: skip
    if (samples := statistics.get("effective_samples")) is not None:
        say(f"effective samples: {samples:,.0f}")
    lost = [e for e in run.events if e["what"] in ("reset", "dropped")]
    if lost:
        say(f"{len(lost)} times a copy was no longer finite; first: {lost[0]}")
    if run.extrapolating is not None and run.extrapolating.any():
        say(f"{run.extrapolating.mean():.2%} of the frames are outside the training data")
    return Outcome(record)


@step(
    "cgml export cg.h5 -o cg.dcd",
    "cgml export remd.h5 --temperature 300 -o cold.xtc",
)
def export_command(
    run: Annotated[str, typer.Argument(help="Run from `cgml simulate` or `cgml remd`.")],
    output: Output,
    temperature: Annotated[
        float | None, typer.Option(help="K; all frames at this temperature.")
    ] = None,
    copy: Annotated[int | None, typer.Option(help="Or one copy, through all of them.")] = None,
    stride: Annotated[int, typer.Option(min=1, help="Every so many frames.")] = 1,
) -> dict[str, Any]:
    """Write a run as DCD or XTC with PDB, energies and swaps as tables; also while it runs."""
    from .export import export_run
    from .files import require_writable
    from .run_file import read_run

    require_writable(output)
    written = export_run(read_run(run, stride=stride), output, temperature=temperature, copy=copy)
    say(f"{written.trajectory}: {written.frames} frames")
    say(f"{written.topology}, {written.energies}")
    if written.exchanges is not None:
        say(f"{written.exchanges}")
    return {
        "frames": written.frames,
        "topology": str(written.topology),
        "energies": str(written.energies),
    }


@step("cgml benchmark molecule.pt --start dataset.h5 --seconds 60", prints=True)
def benchmark_command(
    model: _Model,
    start: _Start,
    seconds: Annotated[float, typer.Option(min=1.0, help="To spend, about.")] = 30.0,
    platform: _Platform = None,
    backend: _Backend = None,
    threads: Threads = 1,
) -> dict[str, Any]:
    """Say how many copies are best for a model on this machine, and where the time goes."""
    from .benchmark import backend_speeds
    from .benchmark import benchmark as measure
    from .dataset import read_dataset

    _use_threads(threads)
    dataset = read_dataset(start)
    report = measure(model, dataset, seconds=0.9 * seconds, platform=platform, backend=backend)
    say(report.text())
    record = report.record()
    if backend in (None, "fastest"):
        best = report.best
        record["backends"] = backend_speeds(
            model, dataset, best.copies, platform=best.platform, seconds=0.1 * seconds
        )
        say(f"replica-steps/s of {best.copies} copies on {best.platform} by backend:")
        for name, speed in record["backends"].items():
            say(f"{name:<10} {speed:>24,.0f}")
    return record


@step("cgml doctor")
def doctor_command() -> Outcome:
    """Say what works on this machine; exit code 1 if nothing does."""
    from .doctor import diagnose

    diagnosis = diagnose()
    lines = [f"{name:>14}  {version}" for name, version in diagnosis.versions.items()]
    lines += [f"{c.status:>14}  {c.name}: {c.detail}" for c in diagnosis.checks]
    checks = [vars(check) for check in diagnosis.checks]
    return Outcome(
        {"versions": diagnosis.versions, "checks": checks}, diagnosis.exit_code, "\n".join(lines)
    )


@step("cgml quickstart -o demo", "cgml quickstart --quick -o demo", prints=True)
def quickstart_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path(
        "demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="A small version, in seconds; not converged.")
    ] = False,
    backend: _Backend = None,
    seed: int = 0,
    threads: Threads = 1,
) -> dict[str, Any]:
    """Do everything on the data in the package: map, train, export, simulate, compare."""
    from .quickstart import FULL, QUICK
    from .quickstart import quickstart as run

    _use_threads(threads)
    summary = run(output, effort=QUICK if quick else FULL, backend=backend, seed=seed)
    say(f"report: {output / 'report.html'}")
    return summary


@step("cgml rerun cg.h5.run.toml -o again.h5", repeats=False)
def rerun_command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The .run.toml beside an output.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Instead of the output it names.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if a file that it reads is another now.")
    ] = False,
) -> dict[str, Any]:
    """Give a command again, with all options as they were; in the folder where it was given."""
    held = read_echo(file)
    check_inputs(file, held, force)
    words = held["command"].split()
    program = context.find_root()
    command: Any = program.command
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            raise InputError(f"{file} names {held['command']!r}, which is no command of cgml")
    if command.callback is None or words == ["rerun"]:
        raise InputError(f"{file} names {held['command']!r}, which cannot be given again")
    options = {**held["options"], **({"output": str(output)} if output is not None else {})}
    arguments = arguments_of(file, command, options)
    say("cgml " + shlex.join([*words, *arguments]))
    # Its numbers are in this command's record: there is one line of JSON, if any.
    made = command.make_context(words[-1], ["--no-json", *arguments], parent=program)
    with made:
        command.invoke(made)
    return {"repeated": held["command"], "options": options, **made.meta[RECORD]}


_SECTIONS: dict[str, dict[str, Callable[..., None]]] = {
    "Begin": {"quickstart": quickstart_command, "doctor": doctor_command},
    "Data": {"reference": reference_command, "map": map_command},
    "Models": {"train": train_command, "distill": distill_command},
    "Simulations": {
        "compile": compile_command,
        "benchmark": benchmark_command,
        "simulate": simulate_command,
        "remd": remd_command,
        "export": export_command,
    },
    "Results": {
        "analyze": analyze_command,
        "report": report_command,
        "reweight": reweight_command,
        "backmap": backmap_command,
        "entropy": entropy_command,
        "rerun": rerun_command,
    },
}
_GROUPS = {"Data": {"data": data_app}, "Models": {"flow": flow_app}}

for _section, _commands in _SECTIONS.items():
    for _name, _command in _commands.items():
        add(app, _name, _command, _section)
    for _name, _group in _GROUPS.get(_section, {}).items():
        app.add_typer(_group, name=_name, rich_help_panel=_section)


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
        sys.exit(BAD_INPUT)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning):  # others are for developers
        say(f"warning: {message}")


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


if __name__ == "__main__":
    main()
