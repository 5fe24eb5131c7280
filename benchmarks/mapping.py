"""How fast are beads made from a trajectory, against only reading it, and in how much memory?

A made-up chain of 25 residues with four atoms each, in a box: a million frames in a DCD file, and
a tenth as many with the molecule torn across the boundary (DCD) and in an XTC file. The ceiling is
a bare loop over `mdtraj.iterload`; the two take turns, on files that are in the page cache. All is
timed: reading, checking, mapping, writing HDF5, the hash of the source, reading the dataset back.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mdtraj
import numpy as np
from mdtraj.formats import DCDTrajectoryFile, XTCTrajectoryFile

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from openmm_cgml.mapping.core import slice_mapping

ISSUE = "mapping issue: a million frames of 100 atoms"
SEED = 0
CHUNK = 2000
SIDE = 8.0
RESIDUES = 25
#: file, map, title, goal for the fraction of the speed of reading alone
CASES = (
    ("whole.dcd", "slice", "kept C-alpha atoms, DCD", 0.5),
    ("whole.dcd", "residue_com", "centres of mass, DCD", 0.5),
    ("torn.dcd", "residue_com", "centres of mass of torn molecules, DCD", None),
    ("whole.xtc", "slice", "kept C-alpha atoms, XTC", None),
)
# In a process of its own, without torch: what `map_trajectory` itself needs.
PEAK = """
import json, sys
import openmm_cgml as cgml
from openmm_cgml.mapping.core import slice_mapping
path, top, name, output, report = sys.argv[1:]
source = cgml.read_trajectory(path, top=top)
if name == "slice":
    mapping = slice_mapping(source.topology, source.topology.select("name CA"))
else:
    mapping = cgml.MAPPINGS[name](source.topology)
dataset = cgml.map_trajectory(source, mapping, temperature=300, output=output)
# Of this program alone: the ru_maxrss of a new process starts with its parent's.
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
peak = int(status["VmHWM"].split()[0]) / 1e6
open(report, "w").write(json.dumps([peak, len(dataset)]))
"""


def run(quick: bool) -> Outcome:
    """Write the files, time both in turn, and measure memory."""
    frames, rounds = (20_000, 1) if quick else (1_000_000, 5)
    targets: list[Target] = []
    details: dict[str, object] = {"frames": frames, "atoms": 4 * RESIDUES, "chunk": CHUNK}
    with tempfile.TemporaryDirectory() as name, quiet_readers():
        folder = Path(name)
        counts = {"whole.dcd": frames, "torn.dcd": frames // 10, "whole.xtc": frames // 10}
        for file, count in counts.items():
            write(folder / file, count, torn=file.startswith("torn"))
        details["bytes"] = {file: (folder / file).stat().st_size for file in counts}
        for file, mapping, title, goal in CASES:
            seconds = interleaved(folder, file, mapping, rounds)
            read, read_cpu, mapped, mapped_cpu = np.array(seconds).T
            ratios = (read / mapped).tolist()
            speed = (counts[file] / mapped).tolist()
            error = statistics.stdev(ratios) / len(ratios) ** 0.5 if rounds > 1 else None
            targets += [
                Target(
                    f"speed of mapping over reading alone: {title}", "", goal,
                    statistics.median(ratios), error, at_most=False,
                    source=ISSUE if goal else "",
                ),
                Target(f"the same of CPU time: {title}", "", None,
                       statistics.median((read_cpu / mapped_cpu).tolist()), at_most=False),
                Target(f"frames mapped: {title}", "1/s", None, statistics.median(speed),
                       at_most=False),
                Target(f"frames only read: {title}", "1/s", None,
                       statistics.median((counts[file] / read).tolist()), at_most=False),
            ]  # fmt: skip
            details[title] = {
                "read_seconds": read.tolist(),
                "map_seconds": mapped.tolist(),
                "map_cpu_seconds": mapped_cpu.tolist(),
            }
        for mapping in ("slice", "residue_com"):
            peak, mapped_frames = peak_memory(folder, "whole.dcd", mapping)
            targets.append(
                Target(f"peak memory, {mapping}, {mapped_frames} frames", "GB", 2.0, peak,
                       source=ISSUE)
            )  # fmt: skip
        peak, _ = peak_memory(folder, "torn.dcd", "residue_com")
        targets.append(Target("peak memory, a tenth of the frames", "GB", None, peak))
    return Outcome(targets, SEED, details)


def interleaved(folder: Path, file: str, mapping: str, rounds: int) -> list[tuple[float, ...]]:
    """Return the seconds of reading and of mapping (wall, CPU; wall, CPU), round by round."""
    top = cgml.read_topology(folder / "chain.pdb")
    kept = mapping == "slice"
    chosen = slice_mapping(top, top.select("name CA")) if kept else cgml.MAPPINGS[mapping](top)

    def read() -> None:
        for chunk in mdtraj.iterload(str(folder / file), chunk=CHUNK, top=top):
            chunk.xyz  # noqa: B018

    def mapped() -> None:
        source = cgml.read_trajectory(folder / file, top=top)
        cgml.map_trajectory(
            source, chosen, temperature=300, output=folder / "beads.h5", chunk=CHUNK
        )

    read()  # into the page cache
    if rounds > 1:
        mapped()  # what is imported when it is needed
    return [(*timed(read), *timed(mapped)) for _ in range(rounds)]


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds that a call takes, on the wall and of all cores."""
    wall, cores = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cores


def peak_memory(folder: Path, file: str, mapping: str) -> tuple[float, int]:
    """Return the peak memory of mapping a file, GB, and its number of frames."""
    report = folder / "peak.json"
    arguments = [folder / file, folder / "chain.pdb", mapping, folder / "beads.h5", report]
    subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)],
        check=True,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
    )
    peak, frames = json.loads(report.read_text())
    return peak, frames


def topology() -> mdtraj.Topology:
    """A peptide of N, CA, C and O."""
    top = mdtraj.Topology()
    chain = top.add_chain()
    last = None
    for number in range(RESIDUES):
        residue = top.add_residue("GLY", chain, resSeq=number + 1)
        n, ca, c, o = (
            top.add_atom(name, mdtraj.element.Element.getBySymbol(name[0]), residue)
            for name in ("N", "CA", "C", "O")
        )
        for pair in ((n, ca), (ca, c), (c, o)):
            top.add_bond(*pair)
        if last is not None:
            top.add_bond(last, n)
        last = c
    return top


def write(path: Path, frames: int, torn: bool) -> None:
    """Write a random walk along a helix; each frame is a new one."""
    generator = np.random.default_rng(SEED)
    turn = 0.6 * np.arange(3 * RESIDUES)
    steps = 0.12 * np.stack([np.cos(turn), np.sin(turn), 0.3 + 0 * turn], axis=1).astype("f4")
    top = topology()
    kind, scale = (XTCTrajectoryFile, 1) if path.suffix == ".xtc" else (DCDTrajectoryFile, 10)
    with kind(str(path), "w") as handle:
        for start in range(0, frames, 10_000):
            count = min(10_000, frames - start)
            walk = generator.standard_normal((count, len(steps), 3), dtype=np.float32)
            walk *= 0.02
            walk += steps
            backbone = np.cumsum(walk, axis=1).reshape(count, RESIDUES, 3, 3)
            oxygen = backbone[:, :, 2:] + np.float32([0.0, 0.0, -0.12])
            positions = np.concatenate([backbone, oxygen], axis=2).reshape(count, -1, 3)
            if torn:
                positions = np.mod(positions - positions[:, 49:50], np.float32(SIDE))
            if scale == 1:
                box = np.repeat(SIDE * np.eye(3, dtype=np.float32)[None], count, axis=0)
                handle.write(positions, box=box)
            else:
                lengths = np.full((count, 3), SIDE * scale, dtype=np.float32)
                angles = np.full((count, 3), 90, dtype=np.float32)
                handle.write(positions * scale, cell_lengths=lengths, cell_angles=angles)
    mdtraj.Trajectory(positions[:1], top).save_pdb(str(path.with_name("chain.pdb")))


@contextmanager
def quiet_readers() -> Iterator[None]:
    """Drop what mdtraj's DCD reader prints in C, which would come after the record."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


if __name__ == "__main__":
    main("mapping", __doc__, run)
