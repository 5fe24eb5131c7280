"""Backmapping: ensembles of atomistic structures for the frames of a coarse-grained trajectory.

Reference: arXiv:2511.01464.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .archives import load_arrays
from .dataset import CGDataset, read_dataset
from .errors import InputError
from .files import atomic_path, require_file, require_writable, segments_folder
from .molecules import require_copies
from .periodic import WholeMolecules
from .progress import ProgressBar
from .run_file import Run, read_run
from .topology import CGTopology
from .trajectory import read_trajectory

if TYPE_CHECKING:  # torch takes seconds to import
    from .flow.fiber import FiberFlow, Solver

#: Structures that are generated, and written, together.
CHUNK = 256

#: Heavy atoms of two residues that are nearer clash, nm.
CLASH = 0.12

_SUFFIXES = {".dcd": "dcd", ".xtc": "xtc"}


@dataclass(frozen=True, eq=False)
class Structures:
    """Atomistic structures of coarse-grained frames.

    Attributes:
        positions: (structures, atoms, 3), nm, double precision; the structures of a frame follow
            each other. In a box molecules are whole and near their beads.
        beads: (structures, beads, 3), nm, those that they were generated for.
        frame: (structures,) number of the frame.
        topology: the atoms.
        log_density: (structures,) ln q(c | R), nm^-(removed degrees of freedom); None if it was
            not asked for, or was lost.
        box: (structures, 3, 3) box vectors, nm, or None.
        relaxed: whether they were relaxed since; then they have no density any more.
        exact: whether the densities are exact, not those of random directions.
    """

    positions: np.ndarray
    beads: np.ndarray
    frame: np.ndarray
    topology: CGTopology
    log_density: np.ndarray | None = None
    box: np.ndarray | None = None
    relaxed: bool = False
    exact: bool = True

    def __len__(self) -> int:
        return len(self.positions)

    def to_mdtraj(self) -> Any:
        """Return an mdtraj.Trajectory, in single precision, with elements and bonds."""
        import mdtraj

        found = mdtraj.Trajectory(self.positions, self.topology.to_mdtraj(atoms=True))
        if self.box is not None:
            found.unitcell_vectors = np.asarray(self.box, dtype=np.float32)
        return found


@dataclass(frozen=True, eq=False)
class BeadFrames:
    """Frames of beads, whole molecules.

    Attributes:
        positions: (frames, beads, 3), nm.
        topology: the beads.
        box: (frames, 3, 3), nm, or None.
        weights: (frames,) or None.
    """

    positions: np.ndarray
    topology: CGTopology
    box: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.positions)


def read_beads(source: Any, top: Any = None, *, stride: int = 1) -> BeadFrames:
    """Return the beads of a coarse-grained trajectory.

    Args:
        source: a `Run` or `CGDataset`, or the .h5 file of either (of a replica exchange the
            frames at the lowest temperature); or any trajectory of beads that
            `read_trajectory` takes, such as a .pdb, or a .dcd with a `top`.
        top: topology of the beads, for files without one.
        stride: every so many frames.

    Raises:
        InputError: if the file is neither, or frames of the run are all sick.
    """
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() in (".h5", ".hdf5"):
        source = _read_own(source)
    if isinstance(source, Run):
        own = source.at_temperature(float(np.min(source.temperatures)))
        well = np.ones(own.positions.shape[:2], bool) if own.sick is None else ~own.sick
        if not well.any():
            raise InputError("all frames of the run are of sick copies; see its events")
        box = own.info.get("box_vectors_nm")
        # Copy after copy, each in the order of time.
        positions = own.positions.swapaxes(0, 1)[well.T][::stride]
        whole = None if box is None else np.tile(np.asarray(box), (len(positions), 1, 1))
        return _whole(BeadFrames(np.asarray(positions, np.float64), own.topology, whole))
    if isinstance(source, CGDataset):
        weights = None if source.weights is None else source.weights[::stride]
        box = None if source.box is None else np.asarray(source.box[::stride], np.float64)
        positions = np.asarray(source.positions[::stride], np.float64)
        return _whole(BeadFrames(positions, source.topology, box, weights))
    trajectory = read_trajectory(source, top)
    chunks = list(trajectory.chunks())
    positions = np.concatenate([c.positions for c in chunks])[::stride]
    boxes = [c.box for c in chunks if c.box is not None]
    box = np.concatenate(boxes)[::stride] if boxes else None
    ones = [1.0] * trajectory.topology.n_atoms
    topology = CGTopology.from_mdtraj(trajectory.topology, masses=ones)
    return BeadFrames(np.asarray(positions, np.float64), topology, box)


def _read_own(path: str | Path) -> Any:
    require_file(path)
    try:
        return read_run(path)
    except InputError as error:
        try:
            return read_dataset(path)
        except InputError:
            raise InputError(
                f"{path} is neither a run nor a dataset of beads ({error}); give one of `cgml "
                "simulate`, `cgml remd` or `cgml map`, or a .pdb or .dcd of beads"
            ) from error


def _whole(frames: BeadFrames) -> BeadFrames:
    """Return frames whose molecules are whole across the boundaries."""
    if frames.box is None:
        return frames
    molecules = WholeMolecules(frames.topology.to_mdtraj())
    positions = molecules.make_whole(frames.positions, frames.box)
    return BeadFrames(positions, frames.topology, frames.box, frames.weights)


def backmap(
    flow: "FiberFlow | str | Path",
    source: Any,
    n: int = 1,
    *,
    top: Any = None,
    stride: int = 1,
    density: str | None = None,
    solver: "Solver | None" = None,
    candidates: int = 1,
    seed: int = 0,
    progress: bool | None = None,
) -> Structures:
    """Return atomistic structures for the frames of a coarse-grained trajectory.

    Beads of the structures are the given ones to round-off, whatever the solver.

    Args:
        flow: a `FiberFlow`, or its file. Of a molecule: a trajectory of many such molecules, one
            after the other, is backmapped molecule by molecule, each given its own beads alone.
        source, top, stride: as of `read_beads`.
        n: structures a frame.
        density: ``"exact"`` for the log-density of each, which weights need, ``"hutchinson"`` for
            one that is right on average, or None.
        solver: as of `FiberFlow.sample`.
        candidates: of many molecules, so many structures of each are generated and one is taken
            that is not within 0.12 nm of another molecule, if there is one. They have no density
            then.
        seed: of the random numbers; the same structures whatever the number of frames at a time.
        progress: show a bar; None: if the output is a terminal.

    Raises:
        InputError: if the beads are not those of the flow.
    """
    parts = list(
        generate(
            flow, source, n, top=top, stride=stride, density=density, solver=solver,
            candidates=candidates, seed=seed, progress=progress,
        )
    )  # fmt: skip
    return join(parts)


def join(parts: list[Structures]) -> Structures:
    """Return structures one after the other."""
    first = parts[0]
    densities = [p.log_density for p in parts if p.log_density is not None]
    boxes = [p.box for p in parts if p.box is not None]
    return Structures(
        np.concatenate([p.positions for p in parts]), np.concatenate([p.beads for p in parts]),
        np.concatenate([p.frame for p in parts]), first.topology,
        np.concatenate(densities) if densities else None,
        np.concatenate(boxes) if boxes else None, first.relaxed, first.exact,
    )  # fmt: skip


def generate(
    flow: "FiberFlow | str | Path",
    source: Any,
    n: int = 1,
    *,
    top: Any = None,
    stride: int = 1,
    density: str | None = None,
    solver: "Solver | None" = None,
    candidates: int = 1,
    seed: int = 0,
    progress: bool | None = None,
    skip: int = 0,
) -> Iterator[Structures]:
    """Yield the structures of `backmap`, some at a time.

    Args:
        flow, source, n, top, stride, density, solver, candidates, seed, progress: as there.
        skip: parts that are left out, of an earlier call.
    """
    flow = loaded(flow)
    if density is None:
        flow = copy.deepcopy(flow).float()  # beads are exact all the same
    frames = source if isinstance(source, BeadFrames) else read_beads(source, top, stride=stride)
    many = require_copies(frames.topology, flow.bead_topology, "the trajectory")
    if n < 1 or candidates < 1:
        raise InputError(f"n is {n} and candidates {candidates}; give at least 1")
    if candidates > 1 and density is not None:
        raise InputError("structures chosen among candidates have no density; leave out one")
    topology = repeated(flow.topology, many)
    index = np.repeat(np.arange(len(frames)), n)
    size = max(1, CHUNK // many)
    with ProgressBar(progress, len(index), "backmapping") as bar:
        for number, start in enumerate(range(0, len(index), size)):
            if number < skip:
                continue
            bar.update(start, f"{start} of {len(index)} structures")
            part = index[start : start + size]
            beads = frames.positions[part]
            box = None if frames.box is None else frames.box[part]
            positions, logs = _made(
                flow, beads, many, box, density, solver, candidates, [seed, number]
            )
            exact = density != "hutchinson"
            yield Structures(positions, beads, part, topology, logs, box, exact=exact)


def _made(
    flow: "FiberFlow", beads: np.ndarray, many: int, box: np.ndarray | None, density: str | None,
    solver: Any, candidates: int, seed: list[int],
) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """Return atoms (structures, atoms, 3), nm, and log-densities (structures,) or None."""
    single = beads.reshape(len(beads) * many, -1, 3)
    drawn = []
    for candidate in range(candidates):
        state = np.random.SeedSequence([*seed, candidate]).generate_state(1)[0]
        atoms, logs = flow.sample(single, int(state), solver=solver, density=density)
        drawn.append(atoms.cpu().numpy().reshape(len(beads), many, -1, 3))
    found = drawn[0]
    if candidates > 1 and many > 1:
        heavy = np.array([m > 1.5 for m in flow.topology.masses])
        stacked = np.stack(drawn, 2)  # (structures, molecules, candidates, atoms, 3)
        found = np.stack([
            chosen_apart(one, heavy, None if box is None else box[k])
            for k, one in enumerate(stacked)
        ])  # fmt: skip
    total = None if logs is None else logs.cpu().numpy().reshape(len(beads), many).sum(1)
    return found.reshape(len(beads), -1, 3), total


def chosen_apart(
    candidates: np.ndarray, heavy: np.ndarray, box: np.ndarray | None, sweeps: int = 3
) -> np.ndarray:
    """Return one candidate of each molecule, so that few heavy atoms of two molecules clash.

    Molecules that clash take, one after the other, the candidate with the fewest clashes with all
    others as they are.

    Args:
        candidates: (molecules, candidates, atoms, 3), nm.
        heavy: (atoms,) bool.
        box: (3, 3), nm, or None.
        sweeps: over all molecules, at most.
    """
    from scipy.spatial import cKDTree

    many, choices = candidates.shape[:2]
    edges = None
    wrapped = candidates[:, :, heavy]
    if box is not None:
        if np.abs(box - np.diag(np.diag(box))).max() > 1e-6:
            raise InputError("candidates are compared in rectangular boxes alone; use one")
        edges = np.diag(box)
        wrapped = wrapped - np.floor(wrapped / edges) * edges
        wrapped = np.where(wrapped >= edges, 0.0, wrapped)
    taken = np.zeros(many, dtype=int)
    owner = np.repeat(np.arange(many), int(heavy.sum()))
    for _ in range(sweeps):
        current = wrapped[np.arange(many), taken]
        tree = cKDTree(current.reshape(-1, 3), boxsize=edges)
        pairs = tree.query_pairs(CLASH, output_type="ndarray")
        pairs = pairs[owner[pairs[:, 0]] != owner[pairs[:, 1]]]
        clashing = np.unique(owner[pairs])
        if not len(clashing):
            break
        for molecule in clashing:
            current = wrapped[np.arange(many), taken]
            others = np.delete(current, molecule, 0).reshape(-1, 3)
            near = cKDTree(others, boxsize=edges)
            counts = [
                sum(map(len, near.query_ball_point(wrapped[molecule, c], CLASH)))
                for c in range(choices)
            ]
            taken[molecule] = int(np.argmin(counts))
    return candidates[np.arange(many), taken]


def repeated(topology: CGTopology, many: int) -> CGTopology:
    """Return the topology of so many molecules, one after the other, residues numbered on."""
    if many == 1:
        return topology
    count, last = len(topology), max(topology.residue_ids) - min(topology.residue_ids) + 1
    return CGTopology(
        bead_names=topology.bead_names * many, bead_types=topology.bead_types * many,
        residue_names=topology.residue_names * many,
        residue_ids=tuple(r + k * last for k in range(many) for r in topology.residue_ids),
        chain_ids=topology.chain_ids * many,
        bonds=tuple((i + k * count, j + k * count) for k in range(many)
                    for i, j in topology.bonds),
        masses=topology.masses * many,
    )  # fmt: skip


def loaded(flow: Any) -> "FiberFlow":
    """Return a split-flow, read if it is a file."""
    if isinstance(flow, (str, Path)):
        from .flow_file import load_split_flow

        return load_split_flow(flow)
    return flow.double()


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class Written:
    """What `write_backmapped` wrote.

    Attributes:
        trajectory: the .dcd or .xtc.
        topology: .pdb of the first structure, with bonds.
        table: .npz: `frame`, and `log_density` if there is one.
        structures: how many.
    """

    trajectory: Path
    topology: Path
    table: Path
    structures: int


def write_backmapped(
    output: str | Path, flow: Any, source: Any, n: int = 1, **settings: Any
) -> Written:
    """Write the structures of `backmap` as they are generated, and go on where a call stopped.

    Beside ``NAME.dcd`` come ``NAME.pdb`` and ``NAME.npz``. Until all are there, parts lie in
    ``NAME.dcd.segments``; the same call again continues from them.

    Args:
        output: ``*.dcd`` or ``*.xtc`` (which rounds to 0.001 nm, so that beads and densities are
            no longer exact).
        flow, source, n: as of `backmap`.
        **settings: likewise.

    Raises:
        InputError: as `backmap`; if the ending is unknown, or the parts are of other settings.
    """
    output = require_writable(output)
    kind = _SUFFIXES.get(output.suffix.lower())
    if kind is None:
        raise InputError(f"cannot tell the format of {output}; end it in .dcd or .xtc")
    flow = loaded(flow)
    top, stride = settings.pop("top", None), settings.pop("stride", 1)
    frames = source if isinstance(source, BeadFrames) else read_beads(source, top, stride=stride)
    folder = segments_folder(output)
    folder.mkdir(exist_ok=True)
    _claim(folder, flow, frames, n, settings)
    done = sorted(folder.glob("??????.npz"))
    written = len(done)
    for number, part in enumerate(generate(flow, frames, n, skip=written, **settings), written):
        arrays: dict[str, Any] = {"positions": part.positions, "frame": part.frame}
        for name in ("log_density", "box"):
            if getattr(part, name) is not None:
                arrays[name] = getattr(part, name)
        with atomic_path(folder / f"{number:06d}.npz") as partial, open(partial, "wb") as handle:
            np.savez(handle, **arrays)
    return _consolidated(output, folder, repeated(flow.topology, _many(flow, frames)), kind)


def read_structures(written: Written, frames: BeadFrames) -> Structures:
    """Return structures that were written, in the files' precision.

    Args:
        written: from `write_backmapped`.
        frames: the beads that they are of.
    """
    import mdtraj

    trajectory = mdtraj.load(str(written.trajectory), top=str(written.topology))
    with load_arrays(written.table) as table:
        frame = table["frame"]
        logs = table["log_density"] if "log_density" in table else None
    topology = CGTopology.from_mdtraj(trajectory.topology)
    box = None if frames.box is None else frames.box[frame]
    positions = np.asarray(trajectory.xyz, dtype=np.float64)
    return Structures(positions, frames.positions[frame], frame, topology, logs, box)


def _many(flow: "FiberFlow", frames: BeadFrames) -> int:
    return len(frames.topology) // len(flow.bead_topology)


def _claim(
    folder: Path, flow: "FiberFlow", frames: BeadFrames, n: int, settings: dict[str, Any]
) -> None:
    """Refuse a folder with parts of another call."""
    digest = hashlib.sha256(np.ascontiguousarray(frames.positions).tobytes())
    for name, value in sorted(flow.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    told = {k: repr(v) for k, v in sorted(settings.items()) if k != "progress"}
    record = json.dumps({"inputs": digest.hexdigest(), "n": n, **told})
    claim = folder / "call.json"
    if claim.exists() and claim.read_text(encoding="utf-8") != record:
        raise InputError(
            f"{folder} holds parts of a call with another model, trajectory or settings; give "
            "another output, or remove that folder"
        )
    with atomic_path(claim) as partial:
        partial.write_text(record, encoding="utf-8")


def _consolidated(output: Path, folder: Path, topology: CGTopology, kind: str) -> Written:
    """Join the parts to one trajectory, and remove them."""
    import mdtraj
    from mdtraj.formats import DCDTrajectoryFile, XTCTrajectoryFile
    from mdtraj.utils import box_vectors_to_lengths_and_angles

    top = topology.to_mdtraj(atoms=True)
    parts = sorted(folder.glob("??????.npz"))
    frame, logs, count = [], [], 0
    opened = {"dcd": DCDTrajectoryFile, "xtc": XTCTrajectoryFile}[kind]
    table, pdb = output.with_suffix(".npz"), output.with_suffix(".pdb")
    with atomic_path(output) as partial, opened(str(partial), "w") as handle:
        for path in parts:
            with load_arrays(path) as part:
                positions = part["positions"].astype(np.float32)
                box = part["box"] if "box" in part else None
                frame.append(part["frame"])
                if "log_density" in part:
                    logs.append(part["log_density"])
            if kind == "dcd":
                cells = None
                if box is not None:
                    six = np.array([box_vectors_to_lengths_and_angles(*b) for b in box])
                    cells = 10 * six[:, :3], six[:, 3:]
                handle.write(10 * positions, *(cells or ()))
            else:
                numbers = np.arange(count, count + len(positions))
                handle.write(
                    positions, time=numbers.astype(np.float32), step=numbers.astype(np.int32),
                    box=None if box is None else box.astype(np.float32),
                )  # fmt: skip
            if count == 0:
                first = mdtraj.Trajectory(positions[:1], top)
                if box is not None:
                    first.unitcell_vectors = box[:1].astype(np.float32)
                with atomic_path(pdb) as half:
                    first.save_pdb(str(half), force_overwrite=True)
            count += len(positions)
    arrays: dict[str, Any] = {"frame": np.concatenate(frame)}
    if logs:
        arrays["log_density"] = np.concatenate(logs)
    with atomic_path(table) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
    for path in (*parts, folder / "call.json"):
        path.unlink()
    folder.rmdir()
    return Written(output, pdb, table, count)
