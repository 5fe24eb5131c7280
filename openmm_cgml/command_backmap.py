"""``cgml backmap`` and ``cgml entropy``: atoms for beads, and what beads leave open about them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .command_options import Output, Threads, say
from .command_step import step
from .errors import InputError
from .provenance import describe

_Traj = Annotated[
    str,
    typer.Option("--traj", help="Run or dataset (.h5), or .pdb, .dcd, .xtc of beads."),
]
_Top = Annotated[str | None, typer.Option(help="Topology of the beads, for files without one.")]
_Stride = Annotated[int, typer.Option(min=1, help="Every so many frames.")]
_Steps = Annotated[
    int | None, typer.Option(min=1, help="Of the solver; if not said, 6, and 40 for densities.")
]
_Report = Annotated[Path | None, typer.Option(help="HTML page to write.")]


@step(
    "cgml backmap --model split.flow --traj cg.h5 -n 5 -o atoms.dcd",
    "cgml backmap --model split.flow --traj cg.h5 --relax amber14-all.xml -o relaxed.dcd",
    prints=True,
)
def backmap_command(
    model: Annotated[str, typer.Option(help="Split-flow from `cgml flow split`.")],
    traj: _Traj,
    output: Output,
    top: _Top = None,
    number: Annotated[
        int, typer.Option("-n", "--number", min=1, help="Structures of each frame.")
    ] = 1,
    stride: _Stride = 1,
    density: Annotated[
        bool, typer.Option("--density", help="Exact log-density of each structure, for weights.")
    ] = False,
    candidates: Annotated[
        int, typer.Option(min=1, help="Of many molecules: choose of so many, to avoid clashes.")
    ] = 1,
    steps: _Steps = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Dataset of the atoms whose beads --traj are: adds metrics."),
    ] = None,
    report: _Report = None,
    relax: Annotated[
        list[str] | None,
        typer.Option(help="Force field file: relax with beads held; repeatable."),
    ] = None,
    seed: int = 0,
    threads: Threads = 1,
) -> dict[str, Any]:
    """Generate atomistic structures of a coarse-grained trajectory; go on where it stopped.

    Writes NAME.dcd, NAME.pdb and NAME.npz (frames and log-densities); with --relax also
    NAME.relaxed.dcd, NAME.relaxed.pdb and NAME.system.xml, to start simulations from.
    """
    import torch

    from .backmapping import read_beads, read_structures, write_backmapped
    from .files import require_writable
    from .flow.fiber import Solver
    from .flow_file import load_split_flow

    torch.set_num_threads(threads)
    for path in (output, report):
        if path is not None:
            require_writable(path)
    flow = load_split_flow(model)
    frames = read_beads(traj, top, stride=stride)
    written = write_backmapped(
        output, flow, frames, number, density="exact" if density else None,
        solver=None if steps is None else Solver(steps=steps), candidates=candidates, seed=seed,
    )  # fmt: skip
    say(f"{output}: {written.structures:,} structures of {len(frames):,} frames")
    record: dict[str, Any] = {"structures": written.structures, "frames": len(frames)}
    structures = read_structures(written, frames)
    if reference is not None:
        from .dataset import read_dataset
        from .quality import assess

        atoms = read_dataset(reference).positions[::stride]
        if len(atoms) != len(frames):
            raise InputError(
                f"{reference} has {len(atoms)} frames and {traj} {len(frames)}; give the dataset "
                "whose beads they are"
            )
        quality = assess(structures, atoms, flow.fiber.matrix)
        record["quality"] = quality.record()
        say(quality.text())
    if relax:
        record["relaxed"] = _relaxed(output, structures, relax, flow)
    if report is not None:
        from .report import write_backmapping, write_structures

        about: dict[str, Any] = {
            "title": f"{Path(traj).name} backmapped",
            "lead": f"{written.structures:,} structures by {Path(model).name}, seed {seed}.",
            "relaxed": _told(record.get("relaxed")),
            "provenance": describe([model, traj, top, reference], number=number, seed=seed),
        }
        if reference is None:
            write_structures(report, structures, **about)
        else:
            write_backmapping(report, quality, **about)
    return record


def _told(relaxed: dict[str, float] | None) -> dict[str, float] | None:
    """Return the numbers of a relaxation by names for a page."""
    names = {"before": "median energy before, kJ/mol", "after": "median energy after, kJ/mol",
             "bead_error": "largest distance of a bead from its place, nm"}  # fmt: skip
    return None if relaxed is None else {names[k]: v for k, v in relaxed.items()}


def _relaxed(output: Path, structures: Any, forcefield: list[str], flow: Any) -> dict[str, Any]:
    """Write relaxed structures and their System; return the energies."""
    import mdtraj
    import numpy as np
    import openmm

    from .files import atomic_path
    from .relaxation import relax

    found = relax(structures, forcefield, flow.fiber.matrix)
    trajectory = mdtraj.Trajectory(
        found.structures.positions, mdtraj.Topology.from_openmm(found.topology)
    )
    base = output.with_suffix("")
    for path, save in (
        (Path(f"{base}.relaxed.dcd"), trajectory.save_dcd),
        (Path(f"{base}.relaxed.pdb"), trajectory[0].save_pdb),
    ):
        with atomic_path(path) as partial:
            save(str(partial), force_overwrite=True)
    with atomic_path(f"{base}.system.xml") as partial:
        partial.write_text(openmm.XmlSerializer.serialize(found.system), encoding="utf-8")
    say(
        f"{base}.relaxed.dcd: median energy {np.median(found.before):.0f} -> "
        f"{np.median(found.after):.0f} kJ/mol, beads moved {found.bead_error:.1e} nm at most; "
        "relaxed structures have no log-density"
    )
    return {
        "before": float(np.median(found.before)), "after": float(np.median(found.after)),
        "bead_error": found.bead_error,
    }  # fmt: skip


@step(
    "cgml entropy split.flow --traj cg.h5 --report entropy.html -o entropy.npz",
    "cgml entropy split.flow other.flow --atoms atoms.h5 --reference volume -o ranking.npz",
    prints=True,
)
def entropy_command(
    models: Annotated[list[str], typer.Argument(help="Split-flows of `cgml flow split`.")],
    output: Output,
    traj: Annotated[
        str | None, typer.Option("--traj", help="Beads whose entropy is wanted; of one model.")
    ] = None,
    top: _Top = None,
    atoms: Annotated[
        str | None,
        typer.Option(help="Dataset of atoms that no model has learned from: the data estimator."),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Of each frame.")] = 8,
    stride: _Stride = 1,
    reference: Annotated[str, typer.Option(help="length, noise or volume.")] = "length",
    length_unit: Annotated[str, typer.Option(help="nm or angstrom.")] = "nm",
    fast: Annotated[
        bool, typer.Option("--fast", help="Random directions, right on average.")
    ] = False,
    steps: Annotated[
        int, typer.Option(min=1, help="Of the solver; fewer are faster, and less exact.")
    ] = 40,
    report: _Report = None,
    seed: int = 0,
    threads: Threads = 1,
) -> dict[str, Any]:
    """Mapping entropy along a trajectory, or of several maps of one molecule.

    One model: S(R) of every frame of --traj into NAME.npz, means on standard output. Several:
    which map loses least, by --atoms.
    """
    import torch

    import numpy as np

    from .dataset import read_dataset
    from .entropy import compare_mappings, data_entropy, differences, mapping_entropy, read_beads
    from .files import atomic_path, require_writable
    from .flow.fiber import Solver

    torch.set_num_threads(threads)
    solver = Solver(steps=steps)
    for path in (output, report):
        if path is not None:
            require_writable(path)
    density = "hutchinson" if fast else "exact"
    arrays: dict[str, Any]
    frames = None if atoms is None else read_dataset(atoms).select(slice(None, None, stride))
    if len(models) > 1:
        if frames is None or traj is not None:
            raise InputError("several maps are compared on atoms: give --atoms, not --traj")
        named = {Path(m).stem: m for m in models}
        if len(named) < len(models):
            raise InputError("two model files have the same name; rename one")
        ranked = compare_mappings(
            named, frames.positions, weights=frames.weights, samples=samples, density=density,
            reference=reference, seed=seed, solver=solver,
        )  # fmt: skip
        more = differences(ranked)
        for one, (gap, error) in zip(ranked, more, strict=True):
            say(f"{one.text()}; {gap:.2f} ± {error:.2f} more than the first")
        maps = [
            {"name": one.name, "beads": one.beads, "data": one.data.record(),
             "model": one.model.record(), "more": gap, "more_error": error}
            for one, (gap, error) in zip(ranked, more, strict=True)
        ]  # fmt: skip
        record: dict[str, Any] = {"maps": maps}
        arrays = {one.name: one.data.values for one in ranked}
        if report is not None:
            from .report import write_mapping_comparison

            write_mapping_comparison(
                report, ranked, more, title="Which map loses least?",
                lead=f"{len(ranked)} maps on {len(frames):,} frames of {Path(str(atoms)).name}.",
                provenance=describe([*models, atoms], samples=samples, seed=seed),
            )  # fmt: skip
    else:
        if traj is None:
            raise InputError("give the beads whose entropy is wanted: --traj")
        choice: dict[str, Any] = {
            "reference": reference, "length_unit": length_unit, "density": density,
            "solver": solver,
        }  # fmt: skip
        found = mapping_entropy(
            models[0], read_beads(traj, top, stride=stride), samples, seed=seed, **choice
        )
        say(found.text())
        record, arrays = (
            {"model": found.record()},
            {"entropy": found.values, "error": found.errors},
        )
        if frames is not None:
            checked = data_entropy(
                models[0], frames.positions, weights=frames.weights, seed=seed, **choice
            )
            say(checked.text())
            record["data"] = checked.record()
            arrays["data"] = checked.values
        if report is not None:
            from .report import write_entropy

            rows = {name: "{mean:.3f} ± {error:.3f}".format(**one) + f" {one['unit']}"
                    for name, one in record.items()}  # fmt: skip
            write_entropy(
                report, found, rows, title=f"Mapping entropy of {Path(traj).name}",
                lead=f"{len(found.values):,} frames, {samples} samples of each by "
                f"{Path(models[0]).name}, seed {seed}.",
                provenance=describe([*models, traj, top, atoms], samples=samples, seed=seed),
            )  # fmt: skip
    with atomic_path(output) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
    return record
