"""``cgml reference``: an all-atom run that writes a dataset of beads as it goes."""

import itertools
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from .command_options import Output, completing, parse_properties, say
from .command_step import INTERRUPTED, Outcome, step
from .errors import InputError
from .mapping import FORCE_MAPS, MAPPINGS

_METHODS = ("unbiased", "remd", "metadynamics", "umbrella")


@step(
    "cgml reference molecule.pdb --ns 5 --method metadynamics --variable phi --variable psi "
    "-o biased.h5",
    "cgml reference molecule.pdb --ns 5 --method remd --temperatures 300,350,410,480 -o data.h5",
    pages=True,
)
def reference_command(
    molecule: Annotated[
        Path, typer.Argument(help="A .pdb or .cif; an Amber .prmtop; or an OpenMM System .xml.")
    ],
    output: Output,
    ns: Annotated[float, typer.Option(help="Length, ns; of each window and each rung.")],
    coordinates: Annotated[
        Path | None, typer.Option(help="Of a prmtop (.inpcrd, .rst7, .pdb) or System XML (.pdb).")
    ] = None,
    method: Annotated[
        str,
        typer.Option(help=f"One of: {', '.join(_METHODS)}.", autocompletion=completing(_METHODS)),
    ] = "unbiased",
    mapping: Annotated[
        str,
        typer.Option(help=f"One of: {', '.join(MAPPINGS)}.", autocompletion=completing(MAPPINGS)),
    ] = "backbone",
    table: Annotated[
        Path | None, typer.Option(help="Instead of --mapping: a file that lists the beads.")
    ] = None,
    force_map: Annotated[
        str,
        typer.Option(
            help=f"One of: {', '.join(FORCE_MAPS)}.", autocompletion=completing(FORCE_MAPS)
        ),
    ] = "rotation",
    no_forces: Annotated[
        bool, typer.Option("--no-forces", help="Positions and weights alone; any bias may act.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    interval: Annotated[float, typer.Option(help="Between frames, ps.")] = 1.0,
    forcefield: Annotated[
        list[str] | None,
        typer.Option(help="OpenMM force field file for a PDB; repeatable. None: amber99sb, OBC."),
    ] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(help="Residue the force field lacks: NLE=MET:CD=SD; repeatable."),
    ] = None,
    remove_water: Annotated[
        bool, typer.Option("--remove-water", help="Leave out the water of a PDB.")
    ] = False,
    solvent: Annotated[
        str | None, typer.Option(help="Fill a box with this water: tip3p, tip4pew, spce, ...")
    ] = None,
    padding: Annotated[float, typer.Option(help="Solute to the faces of that box, nm.")] = 1.0,
    box_shape: Annotated[str, typer.Option(help="cube, dodecahedron or octahedron.")] = "cube",
    ionic_strength: Annotated[float, typer.Option(help="Of added salt, mol/l.")] = 0.0,
    implicit: Annotated[
        str | None,
        typer.Option(help="For a prmtop without box: vacuum, hct, obc1, obc2, gbn or gbn2."),
    ] = None,
    constraints: Annotated[
        str, typer.Option(help="none, hbonds, allbonds or hangles; water is always rigid.")
    ] = "hbonds",
    hydrogen_mass: Annotated[
        float | None, typer.Option(help="Da, taken from the bonded atoms.")
    ] = None,
    timestep: Annotated[
        float | None, typer.Option(help="ps; 0.002, or 0.001 if bonds to hydrogen are free.")
    ] = None,
    friction: Annotated[float, typer.Option(help="1/ps.")] = 1.0,
    seed: int = 0,
    variable: Annotated[
        list[str] | None,
        typer.Option(help="phi:2, psi:2, torsion:A,B,C,D, angle:A,B,C, distance:A,B@0.2:1.8."),
    ] = None,
    bias_factor: Annotated[float, typer.Option(help="Metadynamics: gamma.")] = 6.0,
    height: Annotated[float, typer.Option(help="Metadynamics: first hills, kJ/mol.")] = 1.0,
    width: Annotated[
        str, typer.Option(help="Metadynamics: of hills, nm or rad; commas for several.")
    ] = "0.35",
    deposit: Annotated[float, typer.Option(help="Metadynamics: between hills, ps.")] = 1.0,
    weights: Annotated[str, typer.Option(help="Metadynamics: ct or final.")] = "ct",
    discard: Annotated[
        float, typer.Option(help="Metadynamics: first ps, to which weight zero is given.")
    ] = 0.0,
    temperatures: Annotated[
        str | None, typer.Option(help="Replica exchange: of the rungs, K, with commas.")
    ] = None,
    exchange: Annotated[float, typer.Option(help="Replica exchange: between swaps, ps.")] = 1.0,
    all_rungs: Annotated[
        bool, typer.Option("--all-rungs", help="Replica exchange: keep all, with MBAR weights.")
    ] = False,
    centres: Annotated[
        list[str] | None,
        typer.Option(help="Umbrella: first:last:count, or with commas; rad or nm; deg after it."),
    ] = None,
    spring: Annotated[
        str, typer.Option(help="Umbrella: kJ/mol/rad^2 or kJ/mol/nm^2; commas for several.")
    ] = "100",
    equilibrate: Annotated[
        float, typer.Option(help="ps before the first frame, and in each window.")
    ] = 50.0,
    npt: Annotated[
        float | None, typer.Option(help="ps at 1 atm before that; 100 with --solvent.")
    ] = None,
    calibrate: Annotated[int, typer.Option(min=1, help="Frames for the force map.")] = 1000,
    keep_box: Annotated[
        bool, typer.Option("--keep-box", help="Record box vectors; else isolated molecules.")
    ] = False,
    platform: Annotated[
        str | None, typer.Option(help="OpenMM platform; the fastest if not given.")
    ] = None,
    platform_property: Annotated[
        list[str] | None,
        typer.Option("--property", help="Platform property, e.g. DeviceIndex=1; repeatable."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU platform.")] = 1,
    seconds: Annotated[
        float | None, typer.Option(help="Stop after so long, to go on another time.")
    ] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Between segments.")] = 30.0,
) -> Outcome:
    """Run all-atom dynamics, biased or not, into a dataset; go on where it stopped."""
    from .reference.run import run_reference

    beads: Any = mapping
    if table is not None:
        beads = _from_table(table)
    run = run_reference(
        molecule,
        output,
        ns=ns,
        method=method,
        mapping=beads,
        force_map=None if no_forces else force_map,
        temperature=temperature,
        variables=variable or (),
        interval=interval,
        timestep=timestep,
        friction=friction,
        seed=seed,
        bias_factor=bias_factor,
        height=height,
        widths=_numbers(width, "width"),
        deposit=deposit,
        weights=weights,
        discard=discard,
        temperatures=None if temperatures is None else _numbers(temperatures, "temperatures"),
        exchange=exchange,
        all_rungs=all_rungs,
        centres=None if centres is None else parse_centres(centres),
        springs=_numbers(spring, "spring"),
        equilibrate=equilibrate,
        npt=npt,
        calibrate=calibrate,
        keep_box=keep_box,
        platform=platform,
        threads=threads,
        properties=parse_properties(platform_property),
        seconds=seconds,
        checkpoint_seconds=checkpoint_seconds,
        coordinates=coordinates,
        forcefield=forcefield or (),
        solvent=solvent,
        padding=padding,
        shape=box_shape,
        ionic_strength=ionic_strength,
        implicit=implicit,
        constraints=constraints,
        hydrogen_mass=hydrogen_mass,
        replace=replace or (),
        remove_water=remove_water,
    )
    statistics = run.info["statistics"]
    record = {
        "finished": run.finished,
        "frames": run.frames,
        "total_frames": run.total,
        "ns_per_day": None if math.isnan(run.ns_per_day) else run.ns_per_day,
        "effective_samples": run.effective_samples,
        **{k: run.info[k] for k in ("method", "temperature_K", "timestep_ps", "platform", "seed")},
        "statistics": statistics,
    }
    if not run.finished:  # why was logged
        return Outcome(record, INTERRUPTED if seconds is None else 0)
    say(
        f"{output}: {run.frames} frames, {run.ns_per_day:,.0f} ns/day on {record['platform']}"
        if record["ns_per_day"]
        else f"{output}: {run.frames} frames"
    )
    samples = run.effective_samples
    if samples is not None and samples < run.frames - 0.5:
        say(f"weights: worth {samples:,.0f} frames of equal weight (Kish)")
    if rates := statistics.get("neighbour_acceptance"):
        say("acceptance " + " ".join("-" if r is None else f"{r:.2f}" for r in rates))
    return Outcome(record)


def parse_centres(texts: list[str]) -> Any:
    """Return window centres (windows, variables): every combination of the variables' own.

    Args:
        texts: one for each variable: ``FIRST:LAST:COUNT`` or numbers with commas, in radians or
            nm; ``deg`` after it for degrees. A whole circle leaves out its last point, which is
            the first again.

    Raises:
        InputError: if one cannot be read.
    """
    import numpy as np

    axes = []
    for text in texts:
        body = text.strip()
        degrees = body.endswith("deg")
        body = body.removesuffix("deg")
        try:
            if ":" in body:
                first, last, count = body.split(":")
                turn = 360.0 if degrees else 2 * math.pi
                whole = abs(abs(float(last) - float(first)) - turn) < 1e-3
                values = np.linspace(float(first), float(last), int(count), endpoint=not whole)
            else:
                values = np.array([float(part) for part in body.split(",")])
            if not len(values):
                raise ValueError
        except ValueError:
            raise InputError(
                f"centres {text!r} cannot be read; give FIRST:LAST:COUNT or numbers with commas, "
                "deg after it for degrees, e.g. -180:180:24deg"
            ) from None
        axes.append(np.radians(values) if degrees else values)
    return np.array(list(itertools.product(*axes)))


def _from_table(path: Path) -> Any:
    def mapping(top: Any) -> Any:
        from .mapping.table import table_mapping

        return table_mapping(top, path)

    return mapping


def _numbers(text: str, what: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{what} {text!r} is no number, nor several with commas") from None
