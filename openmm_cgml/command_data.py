"""``cgml data``: look into datasets, join them, take parts of them, convert other programs'."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .command_options import Output, parse_numbers, say
from .command_step import Outcome, add, step
from .errors import InputError
from .units import FORCE_UNITS, LENGTH_UNITS

data_app = typer.Typer(
    help="Look into datasets, join and divide them, convert other programs' arrays.",
    no_args_is_help=True,
)

#: Names in `convert.FORMATS`, which is not imported: numpy would slow ``--help`` down.
_FORMATS = ("npz", "mdtraj", "cgnet", "mlcg")

_File = Annotated[str, typer.Argument(help="Dataset, or a collection of several molecules.")]
_Weights = Annotated[
    str, typer.Option(help="per_frame: each file counts by its frames; as_is: as they are.")
]


@step("cgml data info dataset.h5", repeats=False)
def info_command(
    file: _File,
    rows: Annotated[int, typer.Option(min=1, help="Of each kind of coordinate.")] = 12,
    max_frames: Annotated[
        int, typer.Option(min=1, help="Of more, coordinates are from every so many.")
    ] = 20_000,
) -> Outcome:
    """Say how much a dataset is worth: frames, weights, correlation, forces, coverage, doubts."""
    from .dataset import CGDataset
    from .dataset_info import describe

    found = _open(file)
    molecules = {"": found} if isinstance(found, CGDataset) else found.datasets
    infos = {name: describe(data, max_frames) for name, data in molecules.items()}
    records = {name: info.record() for name, info in infos.items()}
    lines = []
    for name, info in infos.items():
        lines += [f"{'=' * 12} {name}"] * bool(name) + [info.text(rows)] + [""] * bool(name)
    if not isinstance(found, CGDataset):
        lines.append(_types_table(found))
    return Outcome(records.get("", {"molecules": records}), text="\n".join(lines))


@step("cgml data merge one.h5 other.h5 -o both.h5", pages=True)
def merge_command(
    files: Annotated[list[str], typer.Argument(help="Datasets, or collections.")],
    output: Output,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Several molecules: one name a file; they stay side by side."),
    ] = None,
    weights: _Weights = "per_frame",
) -> dict[str, Any]:
    """Join datasets of the same beads; with --name, collect those of several molecules."""
    from .collection import collect_files, read_collection
    from .merging import merge_files

    if name:
        if len(name) != len(files):
            raise InputError(f"{len(name)} names for {len(files)} files; give one a file")
        collect_files(list(zip(name, files, strict=True)), output)
    elif all(_kind(file) == "collection" for file in files):
        joined = read_collection(files[0])
        for file in files[1:]:
            joined = joined.merge(read_collection(file), weights)
        joined.save(output)
    else:
        merge_files(files, output, weights)
    return _written(output)


@step("cgml data append one.h5 other.h5", repeats=False)
def append_command(
    file: Annotated[str, typer.Argument(help="Dataset that gets longer.")],
    more: Annotated[list[str], typer.Argument(help="Datasets whose frames are added.")],
    weights: _Weights = "per_frame",
) -> dict[str, Any]:
    """Add frames to a dataset; a kill on the way leaves the file as it was."""
    from .merging import merge_files

    merge_files([file, *more], file, weights)
    return _written(Path(file))


@step("cgml data split dataset.h5 --train train.h5 --valid valid.h5")
def split_command(
    file: _File,
    train: Annotated[Path, typer.Option(help="File of the first part.")],
    valid: Annotated[Path, typer.Option(help="File of the second part.")],
    fraction: Annotated[float, typer.Option(help="Of the frames, for the first part.")] = 0.9,
    by: Annotated[str, typer.Option(help="blocks, trajectory or shuffle.")] = "blocks",
    blocks: Annotated[int, typer.Option(min=1, help="Contiguous blocks.")] = 10,
    seed: Annotated[int, typer.Option(help="Of trajectory and shuffle.")] = 0,
) -> dict[str, Any]:
    """Split into training and validation frames that are not neighbours in time."""
    from .files import require_writable

    for path in (train, valid):
        require_writable(path)
    if train.resolve() == valid.resolve():
        raise InputError(f"both parts would be written to {train}; give two files")
    parts = _open(file).split(fraction, blocks, by, seed)
    for path, part in zip((train, valid), parts, strict=True):
        part.save(path)
    return {"train": _written(train), "valid": _written(valid)}


@step("cgml data subsample dataset.h5 --count 1000 -o fewer.h5", pages=True)
def subsample_command(
    file: _File,
    output: Output,
    stride: Annotated[
        int | None, typer.Option(help="Every so many frames of each trajectory.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Or so many frames, evenly spaced.")] = None,
) -> dict[str, Any]:
    """Take fewer frames, evenly spaced."""
    from .files import require_writable

    require_writable(output)
    _open(file).subsample(count=count, stride=stride).save(output)
    return _written(output)


@step(
    "cgml data convert coords.npy --forces Fs.npy --format cgnet --length-unit angstrom "
    "--force-unit kcal/mol/angstrom --temperature 300 --top C,N,CA,C,N --bonds chain "
    "--masses 12,14,12,12,14 -o converted.h5",
    pages=True,
)
def convert_command(
    files: Annotated[list[str], typer.Argument(help="Files of beads; several: trajectories.")],
    output: Output,
    format: Annotated[str, typer.Option("--format", help=f"One of: {', '.join(_FORMATS)}.")],
    temperature: Annotated[float | None, typer.Option(help="Of the ensemble, K.")] = None,
    length_unit: Annotated[
        str | None, typer.Option(help=f"Of arrays: {', '.join(LENGTH_UNITS)}; no default.")
    ] = None,
    force_unit: Annotated[
        str | None, typer.Option(help=f"Of forces: {', '.join(FORCE_UNITS)}; no default.")
    ] = None,
    energy_unit: Annotated[
        str | None, typer.Option(help="Of bias energies: kJ/mol, kcal/mol; no default.")
    ] = None,
    top: Annotated[
        str | None, typer.Option(help="The beads: .pdb, a dataset, or names with commas.")
    ] = None,
    bonds: Annotated[
        str | None, typer.Option(help='"chain", or bead numbers from 0: 0-1,1-2.')
    ] = None,
    masses: Annotated[
        str | None, typer.Option(help="Da, with commas: one a bead, or one for all.")
    ] = None,
    forces: Annotated[str | None, typer.Option(help="Forces: .npy.")] = None,
    weights: Annotated[str | None, typer.Option(help="Frame weights: .npy.")] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Take distances and forces on trust.")
    ] = False,
) -> dict[str, Any]:
    """Make a dataset of another program's files of beads (not of atoms: `cgml map`)."""
    from .convert import convert_files
    from .files import require_writable

    require_writable(output)
    names: Any = top
    if top is not None and not Path(top).suffix:
        names = top.split(",")
    data = convert_files(
        files,
        format,
        temperature=temperature,
        length_unit=length_unit,
        force_unit=force_unit,
        energy_unit=energy_unit,
        top=names,
        bonds=_bonds(bonds),
        masses=_masses(masses),
        forces=forces,
        weights=weights,
        check=not no_check,
    )
    data.save(output)
    return _written(output)


@step("cgml data export dataset.h5 -o arrays.npz")
def export_command(
    file: Annotated[str, typer.Argument(help="Dataset.")],
    output: Output,
) -> dict[str, Any]:
    """Write a dataset as .npz, for programs that read numpy's files."""
    from .convert import to_npz
    from .dataset import read_dataset
    from .files import require_writable

    if output.suffix.lower() != ".npz":
        raise InputError(f"{output} does not end in .npz; that is what is written, name it so")
    require_writable(output)
    data = read_dataset(file)
    to_npz(data, output)
    say(f"{output}: {len(data):,} frames, in nm, kJ/mol/nm, kJ/mol")
    return {"frames": len(data), "beads": len(data.topology)}


for _name, _command in (
    ("info", info_command), ("merge", merge_command), ("append", append_command),
    ("split", split_command), ("subsample", subsample_command), ("convert", convert_command),
    ("export", export_command),
):  # fmt: skip
    add(data_app, _name, _command)


def _kind(file: str | Path) -> str:
    """Return the attribute ``kind`` of an HDF5 file; "dataset" where it cannot be told."""
    from .hdf5_files import kind_of, open_hdf5_file

    try:
        with open_hdf5_file(file) as handle:
            return kind_of(handle)
    except OSError:
        return "dataset"  # its reader says what is wrong


def _open(file: str | Path) -> Any:
    from .collection import read_collection
    from .dataset import read_dataset

    return read_collection(file) if _kind(file) == "collection" else read_dataset(file)


def _written(path: Path) -> dict[str, Any]:
    """Say and return what a file that was just written holds, from its head."""
    from .hdf5_files import open_hdf5_file

    record = {}
    with open_hdf5_file(path) as handle:
        molecules = handle.get("molecules")
        groups = {"": handle} if molecules is None else dict(molecules.items())
        for name, group in groups.items():
            frames, beads, _ = group["frames/positions"].shape
            beside = [n for n in group["frames"] if n != "positions"]
            held = f", with {', '.join(sorted(beside))}" if beside else ""
            say(f"{path}{name and f', {name}'}: {frames:,} frames of {beads} beads{held}")
            record[name] = {"frames": int(frames), "beads": int(beads), "with": sorted(beside)}
    return record.get("", {"molecules": record})


def _types_table(collection: Any) -> str:
    """Return a table of how many beads of each type the molecules have."""
    names, types = list(collection), collection.bead_types()
    rows = [["bead type", *names]]
    rows += [[t, *(str(counts.get(n, "-")) for n in names)] for t, counts in types.items()]
    widths = [max(len(row[k]) for row in rows) for k in range(len(names) + 1)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _bonds(text: str | None) -> Any:
    if text is None or text == "chain":
        return text
    return [tuple(parse_numbers(p.replace("-", ","), int, 2, "bond")) for p in text.split(",")]


def _masses(text: str | None) -> Any:
    if text is None:
        return None
    values = parse_numbers(text, float, len(text.split(",")), "masses")
    return values[0] if len(values) == 1 else values
