"""How good are backmapped structures, and how fast do they come?

The paper's three systems, each by a split-flow trained on frames that are not tested: capped
alanine without constraints (5 beads to 22 atoms), chignolin (10 to 93 heavy atoms, 300 K) and DMPC
lipids (10 Martini-like centres of mass to 46 heavy atoms; trained and tested on different lipids).
Against them stand, on the same frames: the training frame whose beads are nearest, turned and put
on the beads; on alanine a flow of all coordinates that learns to keep the beads, as in the paper;
on chignolin ``cgback`` (PyPI), where it is installed.

Needs CGML_DATA or ``../shared/data``; ``--quick`` does with the package's own frames. With
CGML_MODELS, a folder, trained split-flows are kept there and read again; CGML_ONLY names systems.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources, util
from pathlib import Path
from typing import Any

import torch  # before openmm

import numpy as np

import openmm_cgml as cgml
from benchmarks.contract import Outcome, Target, main
from benchmarks.data_efficiency import DATA, PACKAGE
from openmm_cgml.backmapping import BeadFrames, Structures
from openmm_cgml.flow.fiber import FiberFlow
from openmm_cgml.quality import Quality

SEED = 0
JS, SHARE, SPEED, PLANE = 0.02, 0.005, 5.0, 0.3
SOURCE = "split-flow issue"
#: Standard deviation of the paper's noise, nm (arXiv:2511.01464).
PAPER_NOISE = 0.04
#: Structures that cgback makes, and how many residues at a time.
PEER, PEER_BATCH = 30, 32


@dataclass(frozen=True, eq=False)
class Case:
    """One system: data, map, and how its split-flow is made and trained.

    Attributes:
        train, valid, test: frames of the atoms; the last are seen by no training.
        mapping: to beads.
        flow, fit: settings of `split_flow` and `fit_flow`.
        n: structures of each test frame.
    """

    train: cgml.CGDataset
    valid: cgml.CGDataset
    test: np.ndarray
    mapping: Any
    flow: dict[str, Any]
    fit: dict[str, Any]
    n: int = 1


def run(quick: bool) -> Outcome:
    """Train, backmap and score."""
    torch.set_num_threads(1)
    targets: list[Target] = []
    details: dict[str, Any] = {}
    cases: dict[str, Callable[[], Case]] = (
        {"alanine": packaged} if quick
        else {"alanine": alanine, "chignolin": chignolin, "dmpc": dmpc}
    )  # fmt: skip
    if only := os.environ.get("CGML_ONLY"):
        cases = {name: load for name, load in cases.items() if name in only.split(",")}
    for name, load in cases.items():
        case = load()
        flow, seconds = trained(name, case, keep=not quick)
        frames = BeadFrames(flow.fiber.beads_of(case.test), flow.bead_topology)
        started = time.perf_counter()
        made = cgml.backmap(flow, frames, case.n, seed=SEED + 1, progress=False)
        rate = len(made) / (time.perf_counter() - started)
        quality = scored(made, case, flow)
        details[name] = {
            "training frames": len(case.train), "training seconds": seconds,
            "split-flow": quality.record() | {"structures per second": rate},
            "nearest neighbour": scored(nearest(flow, case, frames), case, flow).record(),
        }  # fmt: skip
        targets += graded(name, quality)
        targets.append(Target(f"{name}: structures a second", "1/s", None, rate))
        if name == "chignolin":
            targets += peer(case, flow, frames, rate, details[name])
        print(f"{name}\n{quality.text()}\n{rate:.2f} structures a second", flush=True)
    if "alanine" not in cases:
        return Outcome(targets, SEED, details)
    case = cases["alanine"]()
    joint, _ = trained("joint", case, keep=False, make=joint_flow)
    frames = BeadFrames(joint.fiber.beads_of(case.test), joint.bead_topology)
    made = cgml.backmap(joint, frames, case.n, seed=SEED + 1, progress=False)
    quality = scored(made, case, joint)
    details["alanine"]["all coordinates flow"] = quality.record()
    print(f"alanine, all coordinates flow\n{quality.text()}", flush=True)
    return Outcome(targets, SEED, details)


def scored(made: Structures, case: Case, flow: FiberFlow) -> Quality:
    """Return the metrics of structures."""
    return cgml.assess(made, case.test[: made.frame.max() + 1], flow.fiber.matrix)


def graded(name: str, quality: Quality) -> list[Target]:
    """Return the issue's targets of one system."""
    clashes, own = quality.clashes
    found = [
        Target(f"{name}: bead error", "nm", 1e-5, quality.bead_error, None, True, SOURCE),
        Target(f"{name}: JS of bonds beyond the halves', mean over kinds", "nats", JS,
               quality.bonds.beyond, None, True, SOURCE),
        Target(f"{name}: JS of torsions beyond the halves', mean over kinds", "nats", JS,
               quality.torsions.beyond, None, True, SOURCE),
        Target(f"{name}: JS* of bonds", "nats", None, quality.bonds.mean),
        Target(f"{name}: JS* of angles", "nats", None, quality.angles.mean),
        Target(f"{name}: JS* of torsions", "nats", None, quality.torsions.mean),
        Target(f"{name}: wrong stereocentres of {quality.mirrored[1]}", "", 0,
               quality.mirrored[0], None, True, SOURCE),
        Target(f"{name}: wrong cis peptides of {quality.cis[1]}", "", 0, quality.cis[0], None,
               True, SOURCE),
        Target(f"{name}: residues that clash, beyond the reference's share", "", SHARE,
               clashes - own, None, True, SOURCE),
    ]  # fmt: skip
    if quality.plane is not None and np.isfinite(quality.plane.floor):
        beyond = quality.plane.difference - quality.plane.floor
        found.append(
            Target(f"{name}: plane of torsions, rms beyond its floor", "kT", PLANE, beyond, None,
                   True, SOURCE)
        )  # fmt: skip
    if np.isfinite(quality.diversity):
        found.append(Target(f"{name}: diversity score", "", None, quality.diversity))
    return found


# ---------------------------------------------------------------- the systems


def alanine(mapping: Any = "backbone", weighted: bool = False) -> Case:
    """Capped alanine, metadynamics without constraints; weights for maps that hide phi or psi."""
    with np.load(DATA / "ala2" / "wtmetad_unconstrained.npz") as stored:
        positions, weights = stored["positions"], stored["weights"]
    topology = cgml.CGTopology.from_mdtraj(cgml.read_topology(DATA / "ala2" / "topology.pdb"))
    frames = cgml.CGDataset(
        positions[:16000], topology, 300.0, weights=weights[:16000] if weighted else None
    )
    train, valid = frames.split(0.95, by="blocks")
    fit = {"epochs": 45, "batch_size": 64, "learning_rate": 6e-3, "ema": 0.995}
    return Case(train, valid, positions[16000::4].astype(float), mapping, {}, fit, n=2)


def chignolin() -> Case:
    """Chignolin at 300 K from replica exchange: 800 frames, and 200 later ones."""
    folder = DATA / "chignolin"
    mapping = cgml.MAPPINGS["heavy_atom"](cgml.read_topology(folder / "topology.pdb"))
    with np.load(folder / "tremd.npz") as stored:
        positions = mapping.map_positions(stored["positions"][:, 0].astype(float))
    train, valid = cgml.CGDataset(positions[:800], mapping.topology, 300.0).split(0.9, by="blocks")
    fit = {"epochs": 620, "batch_size": 40, "learning_rate": 5e-3, "ema": 0.998}
    return Case(train, valid, positions[800:], "calpha", {}, fit, n=4)


def dmpc() -> Case:
    """Lipids of a bilayer: 96 to learn from, 8 to validate with, 24 to test."""
    folder = DATA / "dmpc"
    mapping = cgml.MAPPINGS["heavy_atom"](cgml.read_topology(folder / "topology.pdb"))
    with np.load(folder / "bilayer.npz") as stored:
        atoms = mapping.map_positions(stored["positions"].astype(float))
        bilayer = cgml.CGDataset(atoms, mapping.topology, 310.0, box=stored["box"])
    lipids = cgml.single_molecules(bilayer)
    assert isinstance(lipids, cgml.CGDataset) and lipids.trajectory is not None
    number = lipids.trajectory
    fit = {"epochs": 12, "batch_size": 64, "learning_rate": 4e-3, "ema": 0.998}
    return Case(
        lipids.select(number < 96), lipids.select((number >= 96) & (number < 104)),
        np.asarray(lipids.select(number >= 104).positions, dtype=float), "martini",
        {"kinds": "graph"}, fit, n=2,
    )  # fmt: skip


def packaged() -> Case:
    """The package's own frames of capped alanine, heavy atoms: does it work?"""
    with resources.as_file(PACKAGE) as files:
        setup = json.loads((files / "quickstart.json").read_text())
        topology = cgml.read_topology(files / setup["topology"])
        with np.load(files / setup["trajectory"]) as stored:
            positions = stored["positions"][:300].astype(float)
    mapping = cgml.MAPPINGS["heavy_atom"](topology)
    atoms = mapping.map_positions(positions)
    train, valid = cgml.CGDataset(atoms[:200], mapping.topology, 300.0).split(0.8)
    small = {"layers": 1, "width": 12, "heads": 3}
    return Case(train, valid, atoms[200:], "backbone", small, {"epochs": 1, "batch_size": 64})


def trained(
    name: str, case: Case, *, keep: bool = True, make: Callable[..., FiberFlow] = cgml.split_flow
) -> tuple[FiberFlow, float]:
    """Return the split-flow of a case, and the seconds that its training took."""
    folder = os.environ.get("CGML_MODELS")
    path = Path(folder) / f"{name}.flow" if folder and keep else None
    flow = make(case.train, case.mapping, seed=SEED, **case.flow)
    if path is not None and path.is_file():
        stored = cgml.load_split_flow(path)
        flow.load_state_dict(stored.state_dict())
        return flow.double(), float(json.loads(path.with_suffix(".json").read_text())["seconds"])
    result = cgml.fit_flow(
        flow, case.train, case.valid, schedule="warmup_cosine", seed=SEED, compile=keep,
        progress=False, **case.fit,
    )  # fmt: skip
    seconds = float(result.metrics["train_seconds"])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cgml.save_flow(path, result)
        losses = [(h["train_loss"], h["valid_loss"]) for h in result.history]
        path.with_suffix(".json").write_text(json.dumps({"seconds": seconds, "losses": losses}))
    return flow, seconds


# ---------------------------------------------------------------- baselines


def nearest(flow: FiberFlow, case: Case, frames: BeadFrames) -> Structures:
    """Return, for each test frame, the training frame with the nearest beads, turned and moved."""
    known = np.asarray(case.train.positions, dtype=float)
    centred = flow.fiber.beads_of(known)
    centred = centred - centred.mean(1, keepdims=True)
    offsets = flow.fiber.offsets(known)
    found = []
    for beads in frames.positions:
        here = beads - beads.mean(0)
        u, s, v = np.linalg.svd(np.einsum("fbi,bj->fij", centred, here))
        sign = np.sign(np.linalg.det(u @ v))
        best = int(np.argmax(s[:, 0] + s[:, 1] + sign * s[:, 2] - (centred**2).sum((1, 2)) / 2))
        turn = u[best] @ np.diag([1, 1, sign[best]]) @ v[best]
        found.append(flow.fiber.place(beads[None], (offsets[best] @ turn)[None])[0])
    index = np.arange(len(frames))
    return Structures(np.array(found), frames.positions, index, flow.topology)


class JointFlow(FiberFlow):
    """The paper's own formulation, a baseline: all coordinates flow, beads are kept by learning.

    Beads begin in the place of an atom, other atoms at them with noise. The same network.

    Reference: arXiv:2511.01464.
    """

    def _sites(self) -> Any:
        sites = super()._sites()
        free = torch.zeros_like(sites.projector)
        atoms = range(len(self.topology))
        free[atoms, atoms] = 1.0
        return replace(sites, projector=free, scale=sites.scale.clamp_min(PAPER_NOISE / 4))

    def squared_error(
        self, positions: torch.Tensor, normals: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        """Return the squared error of all coordinates' velocity (frames,), nm^2 by the noise's."""
        positions, beads = self._split(positions)
        given = self.given(beads)
        starts = self._noise(normals[:, 1 : 1 + len(self.noise)])
        ends = positions - given.lifted
        between = torch.lerp(starts, ends, time[:, None, None])
        gap = self.field(between, time, given) - (ends - starts)
        return (gap / PAPER_NOISE).square().sum((1, 2)) / (3 * len(self.topology))

    def _placed(self, beads: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        lifted = torch.einsum("ab,fbk->fak", self.lift.to(beads), beads)
        return lifted + offsets.to(beads)


def joint_flow(train: cgml.CGDataset, mapping: Any, **settings: Any) -> FiberFlow:
    """Return an untrained flow of all coordinates."""
    flow = cgml.split_flow(train, mapping, prior=PAPER_NOISE, **settings)
    return JointFlow(flow.topology, flow.temperature, **flow.settings())


def peer(
    case: Case, flow: FiberFlow, frames: BeadFrames, rate: float, details: dict[str, Any]
) -> list[Target]:
    """Return the speed and the chirality of cgback on the same frames, where it is installed."""
    if util.find_spec("cgback") is None:
        details["cgback"] = "not installed (pip install cgback): not compared"
        return []
    count = min(PEER, len(frames))
    positions = frames.positions[: 1 + count]
    _, alone = backmapped_by_peer(positions[:1], flow)
    atoms, together = backmapped_by_peer(positions, flow)
    theirs = count / (together - alone)  # without the start of the process
    index = np.arange(len(atoms))
    made = Structures(atoms, positions, index, flow.topology)
    # Distributions need more structures than this: against as many frames.
    few = replace(case, test=case.test[: len(atoms)])
    quality = scored(made, few, flow)
    ours = cgml.backmap(
        flow, BeadFrames(positions, flow.bead_topology), seed=SEED + 1, progress=False
    )
    details["cgback"] = quality.record() | {"structures per second": theirs}
    details["split-flow, as many frames"] = scored(ours, few, flow).record()
    return [
        Target("chignolin: cgback, structures a second", "1/s", None, theirs),
        Target("chignolin: speed, split-flow over cgback", "", SPEED, rate / theirs, None, False,
               SOURCE),
    ]  # fmt: skip


def backmapped_by_peer(beads: np.ndarray, flow: FiberFlow) -> tuple[np.ndarray, float]:
    """Return heavy atoms (frames, atoms, 3), nm, that cgback makes, and the seconds it takes.

    All frames are chains of one file, far apart, so that it makes them in batches. Hydrogens and
    terminal oxygens, which it adds by rule in a hundredth of the time, are among the work.
    """
    import mdtraj

    residues = flow.bead_topology.residue_names
    edge = 6.0  # nm, between chains
    shifts = edge * np.array([(k % 10, k // 10 % 10, k // 100) for k in range(len(beads))])
    lines, serial = [], 0
    for number, frame in enumerate(10 * (beads + shifts[:, None])):
        chain = chr(ord("A") + number % 26)
        for residue, place in enumerate(frame):
            serial += 1
            lines.append(
                f"ATOM  {serial:5d}  CA  {residues[residue]:3s} {chain}{residue + 1:4d}    "
                f"{place[0]:8.3f}{place[1]:8.3f}{place[2]:8.3f}  1.00  0.00           C"
            )
        lines.append("TER")
    code = "from cgback.backmapper_app import main; main()"
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "beads.pdb", Path(folder) / "atoms.pdb"
        given.write_text("\n".join([*lines, "END", ""]))
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code, str(given), "-o", str(found), "-b", str(PEER_BATCH)],
            check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        seconds = time.perf_counter() - started
        made = mdtraj.load(str(found), standard_names=False)
    count = len(residues)
    order = {
        (a.residue.index // count, a.residue.index % count, a.name): a.index
        for a in made.topology.atoms
    }
    first = min(flow.topology.residue_ids)
    wanted = [(i - first, n) for i, n in
              zip(flow.topology.residue_ids, flow.topology.bead_names, strict=True)]  # fmt: skip
    index = np.array([[order[k, r, n] for r, n in wanted] for k in range(len(beads))])
    return made.xyz[0][index].astype(float) - shifts[:, None], seconds


if __name__ == "__main__":
    main("backmapping", __doc__, run)
