"""``cgml map``: an all-atom trajectory to a dataset of beads, and pictures of beads."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from .command_options import completing, say
from .command_step import step
from .errors import InputError
from .mapping import FORCE_MAPS, MAPPINGS

#: How many beads are listed by name.
_LISTED = 200


@step(
    "cgml map --top molecule.pdb --mapping backbone --draw map.png",
    "cgml map run.dcd --top molecule.pdb --forces forces.npy --temperature 300 -o dataset.h5",
    pages=True,
)
def map_command(
    context: typer.Context,
    trajectory: Annotated[
        list[str] | None,
        typer.Argument(help="All-atom trajectory file(s); none to see the beads alone."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Dataset to write.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the ensemble, K.")] = None,
    top: Annotated[str | None, typer.Option(help="Topology: .pdb, .prmtop, .psf, .top.")] = None,
    mapping: Annotated[
        str,
        typer.Option(help=f"One of: {', '.join(MAPPINGS)}.", autocompletion=completing(MAPPINGS)),
    ] = "backbone",
    table: Annotated[
        str | None, typer.Option(help="Instead of --mapping: your table of beads, .toml or .json.")
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of --mapping: a selection; once: every atom a bead; "
            "several times: one bead each."
        ),
    ] = None,
    com: Annotated[bool, typer.Option("--com", help="Selections give centres of mass.")] = False,
    draw: Annotated[
        str | None, typer.Option(help="Picture of the beads to write: .png, .svg or .pdf.")
    ] = None,
    forces: Annotated[str | None, typer.Option(help="Forces: .npy or .npz.")] = None,
    weights: Annotated[str | None, typer.Option(help="Frame weights: .npy or .npz.")] = None,
    bias_energy: Annotated[str | None, typer.Option(help="Bias energy: .npy or .npz.")] = None,
    bias: Annotated[str, typer.Option(help="What the run was biased by, in words.")] = "",
    force_map: Annotated[
        str,
        typer.Option(
            help=f"One of: {', '.join(FORCE_MAPS)}.", autocompletion=completing(FORCE_MAPS)
        ),
    ] = "rotation",
    noise: Annotated[
        float | None,
        typer.Option(help="Smear the beads by Gaussian noise so wide, nm: less noise in forces."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
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
) -> dict[str, Any]:
    """Map an all-atom trajectory, and its forces, to a dataset of beads.

    Without a trajectory: show what beads a mapping makes of a topology, and --draw them.
    """
    from .files import require_writable
    from .mapped import map_trajectory
    from .topology import read_topology
    from .trajectory import read_trajectory

    if not trajectory:
        if top is None or output or forces or temperature is not None:
            context.fail("Missing argument 'TRAJECTORY...'.")
        atoms = read_topology(top)
        beads = _beads(atoms, mapping, table, select, com)
        _say_counts(beads)
        _say_beads(beads, atoms)
        if draw is not None:
            _draw(draw, beads, atoms, *_coordinates(top, atoms))
        return _record(beads)
    if output is None and draw is None:
        context.fail("Missing option '--output' / '-o'.")
    if output is not None and temperature is None:
        context.fail("Missing option '--temperature'.")
    if output is not None:
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
    atoms = source.topology
    beads = _beads(atoms, mapping, table, select, com)
    if draw is not None:
        frame = next(source.chunks(1))
        _draw(draw, beads, atoms, frame.positions, None if frame.box is None else frame.box[0])
    if output is None or temperature is None:
        _say_counts(beads)
        _say_beads(beads, atoms)
        return _record(beads)
    dataset = map_trajectory(
        source,
        beads,
        temperature=temperature,
        force_map=force_map,
        constraints="find" if system is None else system,
        periodic=not no_box,
        noise=noise,
        seed=seed,
        bias=bias,
        output=output,
    )
    say(f"{output}: {len(dataset)} frames of {len(dataset.topology)} beads")
    _say_beads(beads, atoms)
    if dataset.forces is None:
        say("no forces in the data: force matching needs some (--forces)")
    else:
        _say_forces(dataset.mapping["force_map"])
    found = dataset.mapping.get("force_map") or {}
    return {
        **_record(beads),
        "frames": len(dataset),
        "temperature_K": dataset.temperature,
        "force_map": found.get("name"),
        "force_rms": {name: square**0.5 for name, square in found.get("compared", {}).items()},
    }


def _record(beads: Any) -> dict[str, Any]:
    return {"beads": [beads.topology.label(k) for k in range(len(beads.topology))]}


def _say_forces(force_map: dict[str, Any]) -> None:
    """Print what the force map left of the forces, beside what others would."""
    rms = force_map["mean_square"] ** 0.5
    groups = len(force_map["constraint_groups"])
    say(
        f"{force_map['name']} force map, {groups} constrained groups, "
        f"force RMS {rms:.0f} kJ/mol/nm per component"
    )
    if len(compared := force_map["compared"]) > 1:
        left = ", ".join(f"{name} {square**0.5:.0f}" for name, square in compared.items())
        say(f"RMS that each map leaves, of the same mean force: {left}")


def _beads(
    atoms: Any, mapping: str, table: str | None, select: list[str] | None, com: bool
) -> Any:
    """Return the `Mapping` that the options describe."""
    from .mapping.custom import selection_mapping
    from .mapping.table import table_mapping

    if table is not None and select:
        raise InputError("--table and --select both say what the beads are; give one of them")
    if table is not None:
        return table_mapping(atoms, table)
    if select:
        chosen: Any = select[0] if len(select) == 1 else select
        return selection_mapping(atoms, chosen, kind="com" if com else "slice")
    return MAPPINGS[mapping](atoms)


def _say_beads(beads: Any, atoms: Any) -> None:
    """Print the beads, and which residues have none."""
    from .mapping.residue import left_out

    labels = [beads.topology.label(b) for b in range(len(beads.topology))]
    more = f" and {len(labels) - _LISTED} more" if len(labels) > _LISTED else ""
    say(f"beads: {' '.join(labels[:_LISTED])}{more}")
    if missing := left_out(beads, atoms):
        say(f"without beads: {_counted(missing)}")


def _say_counts(beads: Any) -> None:
    """Print how many beads there are of each type."""
    counts = _counted(Counter(beads.topology.bead_types))
    count = f"{len(beads.topology)} bead{'s' if len(beads.topology) > 1 else ''}"
    say(f"{beads.name}: {count} of {beads.n_atoms} atoms: {counts}")


def _counted(counts: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _coordinates(top: str, atoms: Any) -> tuple[Any, Any]:
    """Return (positions, box) of the topology's own file, None for what it does not hold."""
    if not top.lower().endswith((".pdb", ".gro", ".h5", ".hdf5")):
        say(f"{top} is drawn flat: only a .pdb, .gro or .h5 file, or a trajectory, has positions")
        return None, None
    from .trajectory import read_trajectory

    frame = next(read_trajectory(top, top=atoms).chunks(1))
    return frame.positions, None if frame.box is None else frame.box[0]


def _draw(path: str, beads: Any, atoms: Any, positions: Any, box: Any) -> None:
    from .map_picture import draw_mapping

    draw_mapping(beads, atoms, positions, path, box=box)
    say(f"{path}: picture of the beads")
