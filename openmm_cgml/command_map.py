"""``cgml map``: an all-atom trajectory to a dataset of beads."""

from typing import Annotated, Any

import typer

from .command_options import Output, say
from .mapping import FORCE_MAPS, MAPPINGS


def map_command(
    trajectory: Annotated[list[str], typer.Argument(help="All-atom trajectory file(s).")],
    output: Output,
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
    from .files import require_writable
    from .mapped import map_trajectory
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
    say(f"{output}: {len(dataset)} frames of {len(dataset.topology)} beads")
    say("beads: " + " ".join(dataset.topology.label(b) for b in range(len(dataset.topology))))
    if dataset.forces is None:
        say("no forces in the data: force matching needs some (--forces)")
    else:
        groups = dataset.mapping["force_map"]["constraint_groups"]
        rms = float((dataset.forces.astype(float) ** 2).mean() ** 0.5)
        say(f"{force_map} force map, {len(groups)} constrained groups, force RMS {rms:.0f}")
