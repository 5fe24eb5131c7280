"""Write a run for other programs: DCD or XTC with a PDB topology, energies and swaps as tables."""

import csv
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import atomic_path
from .run_file import Run

#: Trajectory formats by the file name's ending.
FORMATS = ("dcd", "xtc")

_MOST_SERIALS = 99_999
# First line of the topology: how a file of this module is told from a user's.
_REMARK = "REMARK   1 BEADS OF A RUN, WRITTEN BY OPENMM_CGML"


@dataclass(frozen=True)
class Exported:
    """What `export_run` wrote.

    Attributes:
        trajectory, topology, energies: the files.
        exchanges: rungs after every exchange; None if the run has none.
        frames: number of frames.
    """

    trajectory: Path
    topology: Path
    energies: Path
    exchanges: Path | None
    frames: int


def export_run(
    run: Run, output: str | Path, *, temperature: float | None = None, copy: int | None = None
) -> Exported:
    """Write frames of one molecule, and a table with one row for each.

    Frames come copy after copy (or ladder after ladder), each in the order of time. Those of a
    sick copy are left out. Beside ``NAME.dcd`` come ``NAME.pdb``, ``NAME.energies.csv`` and, for a
    replica exchange, ``NAME.exchanges.csv``.

    Args:
        run: the run.
        output: ``*.dcd`` or ``*.xtc``.
        temperature: K; all frames at this temperature. Of a replica exchange give either this or
            `copy`.
        copy: one copy's trajectory, through all its temperatures.

    Raises:
        InputError: if the ending is unknown, the choice is missing, nothing is left, or
            ``NAME.pdb`` is there and was not written by an export.
    """
    output = Path(output)
    kind = output.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise InputError(f"cannot tell the format of {output}; end it in .dcd or .xtc")
    chosen = _choose(run, temperature, copy)
    shape = chosen.positions.shape[:2]
    well = np.ones(shape, bool) if chosen.sick is None else ~chosen.sick
    index = np.argwhere(well.T)[:, ::-1]  # (frame, place), place after place
    if not len(index):
        raise InputError(
            "all frames are of sick copies; see the run's events"
            if well.size
            else "the run has no frames to export; simulate longer"
        )
    topology = output.with_suffix(".pdb")
    _require_ours(topology)
    positions = chosen.positions[index[:, 0], index[:, 1]]
    times = chosen.time[index[:, 0]]
    with atomic_path(output) as partial:
        _write_trajectory(partial, kind, positions, times, run.info.get("box_vectors_nm"))
    with atomic_path(topology) as partial:
        _write_pdb(partial, run, positions[:1])
    energies = output.with_suffix(".energies.csv")
    # At one of several temperatures a place is a ladder's, through which copies pass.
    what = "place" if copy is None and len(run.temperatures) > 1 else "copy"
    _write_energies(energies, chosen, index, what, copy)
    exchanges = None
    if run.exchange_time is not None and len(run.exchange_time):
        exchanges = output.with_suffix(".exchanges.csv")
        _write_exchanges(exchanges, run)
    return Exported(output, topology, energies, exchanges, len(index))


def _choose(run: Run, temperature: float | None, copy: int | None) -> Run:
    if temperature is not None and copy is not None:
        raise InputError("give either temperature or copy, not both")
    if temperature is not None:
        return run.at_temperature(temperature)
    if copy is not None:
        return run.of_copy(copy)
    if len(run.temperatures) > 1:
        known = ", ".join(f"{t:g}" for t in run.temperatures)
        raise InputError(
            f"the run has {len(run.temperatures)} temperatures ({known} K); choose one, or a copy"
        )
    return run


def _write_trajectory(
    path: Path, kind: str, positions: np.ndarray, times: np.ndarray, box: Any
) -> None:
    from mdtraj.formats import DCDTrajectoryFile, XTCTrajectoryFile
    from mdtraj.utils import box_vectors_to_lengths_and_angles

    cell = None if box is None else np.asarray(box, dtype=np.float32)
    if kind == "dcd":
        lengths = angles = None
        if cell is not None:
            six = box_vectors_to_lengths_and_angles(*cell)
            lengths, angles = 10 * np.array(six[:3]), np.array(six[3:])
        with DCDTrajectoryFile(str(path), "w") as dcd:
            for start in range(0, len(positions), 10_000):
                part = 10 * positions[start : start + 10_000]  # Angstrom
                dcd.write(
                    part,
                    None if lengths is None else np.tile(lengths, (len(part), 1)),
                    None if angles is None else np.tile(angles, (len(part), 1)),
                )
        return
    with XTCTrajectoryFile(str(path), "w") as xtc:
        for start in range(0, len(positions), 10_000):
            part = positions[start : start + 10_000]
            xtc.write(
                np.ascontiguousarray(part),
                time=times[start : start + 10_000].astype(np.float32),
                step=np.arange(start, start + len(part), dtype=np.int32),
                box=None if cell is None else np.tile(cell, (len(part), 1, 1)),
            )


def _require_ours(topology: Path) -> None:
    """Refuse to write over a topology of somebody else's, such as the all-atom molecule's."""
    if topology.exists():
        with open(topology, encoding="utf-8", errors="replace") as file:
            if file.readline().rstrip() != _REMARK:
                raise InputError(
                    f"{topology} is there already and is no export's; choose another name"
                )


def _write_pdb(path: Path, run: Run, positions: np.ndarray) -> None:
    import mdtraj

    frame = mdtraj.Trajectory(positions, run.topology.to_mdtraj())
    if (box := run.info.get("box_vectors_nm")) is not None:
        frame.unitcell_vectors = np.asarray(box, dtype=np.float32)[None]
    frame.save_pdb(str(path))
    lines = path.read_text(encoding="utf-8").splitlines()
    serials = [line[6:11] for line in lines if line.startswith(("ATOM", "HETATM"))]
    # MDTraj leaves out bonds of standard residues, which readers know of atoms but not of beads.
    own = [line for line in lines if not line.startswith(("REMARK", "CONECT", "END"))]
    pairs = [pair for i, j in run.topology.bonds for pair in ((i, j), (j, i))]
    if pairs and len(serials) > _MOST_SERIALS:
        # Numbers begin anew, so a bond would join beads that it does not.
        warnings.warn(
            f"a PDB numbers {_MOST_SERIALS:,} atoms and these are {len(serials):,} beads: its "
            "bonds are left out; take them from the run's topology",
            stacklevel=2,
        )
        pairs = []
    bonds = [f"CONECT{serials[i]}{serials[j]}" for i, j in sorted(pairs)]
    path.write_text("\n".join([_REMARK, *own, *bonds, "END", ""]), encoding="utf-8")


def _write_energies(
    path: Path, chosen: Run, index: np.ndarray, what: str, copy: int | None
) -> None:
    header = ["time_ps", what, "temperature_K", "potential_kJ_mol", "kinetic_kJ_mol"]
    temperatures = chosen.temperatures
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*header, "extrapolating"])
        for t, p in index:
            rung = 0 if len(temperatures) == 1 or chosen.rung is None else chosen.rung[t, p]
            table.writerow(
                [
                    f"{chosen.time[t]:.10g}",
                    p if copy is None else copy,
                    f"{temperatures[rung]:.6g}",
                    _number(chosen.energy, t, p),
                    _number(chosen.kinetic_energy, t, p),
                    "" if chosen.extrapolating is None else int(chosen.extrapolating[t, p]),
                ]
            )


def _number(values: np.ndarray | None, t: int, p: int) -> str:
    return "" if values is None else f"{values[t, p]:.8g}"


def _write_exchanges(path: Path, run: Run) -> None:
    assert run.exchange_time is not None and run.exchange_rung is not None
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        copies = run.exchange_rung.shape[1]
        table.writerow(["time_ps", *(f"rung_of_copy_{c}" for c in range(copies))])
        for time, rungs in zip(run.exchange_time, run.exchange_rung, strict=True):
            table.writerow([f"{time:.10g}", *rungs.tolist()])
