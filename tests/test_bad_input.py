"""Bad input: one line that names the culprit and the remedy, exit code 2, nothing left behind."""

import io
import json
import logging
import os
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import torch  # before openmm

import h5py
import mdtraj
import numpy as np
import openmm
import pytest
from handmade import write_run
from openmm import unit

import openmm_cgml as cgml
from openmm_cgml import cli
from openmm_cgml.files import segments_folder
from openmm_cgml.mapping.force_map import ForceMap
from openmm_cgml.pmf.core import build
from openmm_cgml.run_file import RunWriter
from openmm_cgml.units import strip, strip_array, thermal_energy

FRAMES = 60


# ---------------------------------------------------------------- what the cases are made of


@pytest.fixture(scope="module")
def files(data, dataset, model, tmp_path_factory) -> dict[str, Path]:
    """Good and bad files of every kind; no test writes to them."""
    folder = tmp_path_factory.mktemp("input")
    paths = {"top": data / "topology.pdb", "system": data / "system.xml"}
    paths["reference"] = data / "reference.npz"

    def path(name: str) -> Path:
        stem, _, suffix = name.rpartition("_")
        paths[name] = folder / f"{stem}.{suffix}"
        return paths[name]

    def cut(name: str, source: Path, size: float) -> None:
        raw = source.read_bytes()
        path(name).write_bytes(raw[: int(size * len(raw))])

    with np.load(data / "trajectory.npz") as run:
        arrays = {name: run[name][-FRAMES:] for name in run.files}
    positions, forces = arrays["positions"], arrays["forces"]
    np.savez(path("run_npz"), positions=positions, forces=forces)
    np.save(path("positions_npy"), positions)
    frames = mdtraj.Trajectory(positions, mdtraj.load_topology(str(paths["top"])))
    for kind in ("dcd", "xtc"):
        frames.save(str(path(f"run_{kind}")))
        cut(f"cut_{kind}", paths[f"run_{kind}"], 0.7)
    cut("cut_npz", paths["run_npz"], 0.7)

    np.save(path("fewer_npy"), forces[:-1])
    np.save(path("more_npy"), np.concatenate([forces, forces]))
    bad = forces.copy()
    bad[37, 14, 2] = np.nan
    np.save(path("nanforces_npy"), bad)
    bad = positions.copy()
    bad[41, 6, 0] = np.inf
    np.save(path("nan_npy"), bad)
    bad = positions.copy()
    bad[5, 6] = bad[5, 8]
    np.save(path("overlap_npy"), bad)
    np.save(path("angstrom_npy"), 10 * positions)
    np.save(path("atoms_npy"), positions[:, 1:])
    np.save(path("negative_npy"), np.linspace(-0.1, 1, FRAMES))
    np.save(path("zero_npy"), np.zeros(FRAMES))
    np.savez(path("unnamed_npz"), x=positions)
    path("run_abc").write_text("?")
    path("cut_pdb").write_bytes(paths["top"].read_bytes()[:40])

    text = paths["system"].read_text()
    tied = '<Constraint d=".15" p1="6" p2="8"/>'
    path("tied_xml").write_text(text.replace("<Constraints>", f"<Constraints>{tied}"))
    path("beyond_xml").write_text(text.replace('p1="10" p2="11"', 'p1="10" p2="22"'))
    path("state_xml").write_text('<?xml version="1.0" ?><State/>')
    path("cut_xml").write_text(text[: len(text) // 2])

    small = dataset.select(slice(600, 800))
    small.save(path("data_h5"))
    cut("cut_h5", paths["data_h5"], 0.6)
    path("noise_h5").write_bytes(os.urandom(5000))
    small.select(slice(0, 4)).save(path("few_h5"))
    cgml.CGDataset(small.positions, small.topology, 300.0).save(path("noforces_h5"))
    none = cgml.CGDataset(
        small.positions, small.topology, 300.0, small.forces, weights=np.zeros(len(small))
    )
    none.save(path("noweight_h5"))
    for name, chosen in (("other", "element C or index 6"), ("fewerbeads", "name CA or index 6")):
        mapping = cgml.selection_mapping(mdtraj.load_topology(str(paths["top"])), chosen)
        trajectory = cgml.read_trajectory(positions, top=paths["top"])
        cgml.map_trajectory(trajectory, mapping, temperature=300).save(path(f"{name}_h5"))
    small.save(path("newer_h5"))
    with h5py.File(paths["newer_h5"], "r+") as handle:
        handle.attrs["schema_version"] = 7
    small.save(path("notopology_h5"))
    with h5py.File(paths["notopology_h5"], "r+") as handle:
        del handle["topology"]

    frames = np.repeat(small.positions[None, :4], 30, axis=0)
    write_run(path("sim_h5"), small.topology, frames)
    cut("cutsim_h5", paths["sim_h5"], 0.6)
    path("newersim_h5").write_bytes(paths["sim_h5"].read_bytes())
    with h5py.File(paths["newersim_h5"], "r+") as handle:
        handle.attrs["schema_version"] = 7

    archive = model.file.archive
    path("model_pt").write_bytes(archive)
    path("cutmodel_pt").write_bytes(archive[: len(archive) // 2])
    weights = model.rebuild().terms[-1].network.first.weight.detach().numpy().tobytes()
    assert archive.count(weights) == 1
    middle = archive.index(weights) + len(weights) // 2
    path("flipped_pt").write_bytes(
        archive[:middle] + bytes([archive[middle] ^ 1]) + archive[middle + 1 :]
    )
    path("noise_pt").write_bytes(os.urandom(5000))
    with zipfile.ZipFile(path("zip_pt"), "w") as entries:
        entries.writestr("hello.txt", "no TorchScript")
    path("newer_pt").write_bytes(with_card(model.card | {"schema_version": 7}))
    wrong = {**model.card["topology"]}
    wrong = {k: v[:4] if k != "bonds" else v[:3] for k, v in wrong.items()}
    path("card_pt").write_bytes(with_card(model.card | {"topology": wrong}))
    path("nojson_pt").write_bytes(with_card("{"))
    save(Bare(), path("bare_pt"))
    for name, module in (
        ("fromfile", FromFile), ("save", Saves), ("print", Prints), ("fork", Forks),
        ("setstate", SetsState),
    ):  # fmt: skip
        save(module(json.dumps(model.card)), path(f"{name}_pt"))
    np.savez(path("noedges_npz"), probability=np.ones((60, 60)))
    cut("cutreference_npz", paths["reference"], 0.5)
    return paths


class Bare(torch.nn.Module):
    """TorchScript, but no model."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return positions.sum()


class Impostor(torch.nn.Module):
    """Everything that a model file has; what it does when called is the subclass's matter."""

    def __init__(self, card: str, beads: int = 5) -> None:
        super().__init__()
        self.card_json, self.beads, self.copies, self.highest_particle = card, beads, 1, -1
        self.register_buffer("particles", torch.zeros(0, dtype=torch.int64))

    @torch.jit.export
    def card(self) -> str:
        return self.card_json

    @torch.jit.export
    def copy_energies(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        return positions.sum().reshape(1)

    @torch.jit.export
    def energies_and_forces(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.copy_energies(positions, box_vectors), torch.zeros_like(positions)

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.copy_energies(positions, box_vectors).sum()


class FromFile(Impostor):
    """Would make a file of any size anywhere, or overwrite one."""

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        return positions.sum() + torch.from_file("sprung", shared=True, size=10).sum()


class Saves(Impostor):
    @torch.jit.export
    def copy_energies(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        torch.save(positions, "sprung")
        return positions.sum().reshape(1)


class Prints(Impostor):
    """The operator is in a branch of a method that only another method calls."""

    @torch.jit.export
    def helper(self, positions: torch.Tensor) -> torch.Tensor:
        if positions.numel() > 1000:
            print("sprung")
        return positions

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.helper(positions).sum()


class Forks(Impostor):
    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.jit._wait(torch.jit._fork(torch.sum, positions))


class SetsState(Impostor):
    """`__setstate__` runs while the archive is loaded."""

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.card_json, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.card_json, self.training = state[0], state[1]
        self.beads, self.copies, self.highest_particle = 5, 1, -1
        self.particles = torch.from_file("sprung", shared=True, size=1).long()


def save(module: torch.nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.script(module), str(path))


def with_card(card: dict | str) -> bytes:
    """A harmless model with a card of one's own."""
    buffer = io.BytesIO()
    text = card if isinstance(card, str) else json.dumps(card)
    torch.jit.save(torch.jit.script(Impostor(text)), buffer)
    return buffer.getvalue()


# ---------------------------------------------------------------- the command line

MAP = "map {run_npz} --top {top} --temperature 300 -o {out}"
ARRAY = "map {positions_npy} --top {top} --temperature 300 -o {out}"
TRAIN = "train {data_h5} --epochs 1 --width 4 -o {out}"
SIMULATE = "simulate {model_pt} --start {data_h5} --ns 0.001 --copies 2 -o {out}"
REMD = "remd {model_pt} --start {data_h5} --ns 0.001 --copies 2 --temperatures 300,330 -o {out}"
ANALYZE = "analyze {sim_h5} --reference {reference} --dihedral 0,1,2,3 --dihedral 1,2,3,4 -o {out}"


def put(command: str, old: str, new: str) -> str:
    assert old in command
    return command.replace(old, new)


CASES = {
    # trajectories
    "missing file": (put(MAP, "{run_npz}", "gone.dcd"), "gone.dcd does not exist|check the path"),
    "cut DCD": (put(MAP, "{run_npz}", "{cut_dcd}"), "{cut_dcd}|cut short|60 frames|make it again"),
    "cut XTC": (put(MAP, "{run_npz}", "{cut_xtc}"), "{cut_xtc}|cut short|make it again"),
    "cut npz": (put(MAP, "{run_npz}", "{cut_npz}"), "{cut_npz}|cut short|make it again"),
    "unknown format": (put(MAP, "{run_npz}", "{run_abc}"), "{run_abc}|'.abc'|give .dcd"),
    "unnamed array": (put(MAP, "{run_npz}", "{unnamed_npz}"), "{unnamed_npz}|positions|rename"),
    "NaN in positions": (
        put(MAP, "{run_npz}", "{nan_npy}"),
        "{nan_npy}|not finite|frame 41|ALA2-N|remove the frame",
    ),
    "overlapping beads": (
        put(MAP, "{run_npz}", "{overlap_npy}"),
        "ALA2-N and ALA2-CA|overlap|frame 5|check the mapping",
    ),
    "wrong unit": (
        put(MAP, "{run_npz}", "{angstrom_npy}"),
        "{angstrom_npy}|median bond|length unit angstrom?",
    ),
    "unknown unit": (MAP + " --length-unit inch", "length unit 'inch'|choose one of nm"),
    "unknown force unit": (MAP + " --force-unit N", "force unit 'N'|choose one of kJ/mol/nm"),
    "wrong atoms": (
        put(MAP, "{run_npz}", "{atoms_npy}"),
        "{atoms_npy}|21 atoms|22|give the topology",
    ),
    "fewer forces": (
        ARRAY + " --forces {fewer_npy}",
        "forces of {fewer_npy}: 59 frames|60 or more in {positions_npy}|same frames, one to one",
    ),
    "more forces": (
        ARRAY + " --forces {more_npy}",
        "forces of {more_npy}: 120 frames|60 in {positions_npy}|same frames",
    ),
    "NaN in forces": (
        ARRAY + " --forces {nanforces_npy}",
        "forces of {nanforces_npy}: not finite|frame 37|ALA2-C;|remove the frame",
    ),
    "negative weights": (
        ARRAY + " --weights {negative_npy}",
        "weights of {negative_npy}|frame 0|-0.1|none may be negative",
    ),
    "zero weights": (
        ARRAY + " --weights {zero_npy}",
        "the weights are all zero|give the weights",
    ),
    "wrong weights": (ARRAY + " --weights {positions_npy}", "weights|(60, 22, 3)|give (frames)"),
    # topologies and mappings
    "no topology": (put(MAP, "--top {top}", ""), "{run_npz}|no topology|give one"),
    "missing topology": (put(MAP, "{top}", "gone.prmtop"), "topology gone.prmtop|check the path"),
    "damaged topology": (put(MAP, "{top}", "{cut_pdb}"), "{cut_pdb}|complete"),
    "unknown topology": (put(MAP, "{top}", "{run_abc}"), "{run_abc}|'.abc'|give .pdb"),
    "unknown preset": (
        MAP + " --mapping backbon",
        "unknown mapping 'backbon'|did you mean 'backbone'?|calpha",
    ),
    "no atoms": (MAP + " --select name_XX", "'name XX' matches no atoms|correct it|CH3"),
    "selection syntax": (
        MAP + " --select name_CA_and",
        "'name CA and' is not understood|character 12|use mdtraj's selection language",
    ),
    "two atoms a bead": (
        MAP + " --select name_CA --select name_N",
        "'name N' matches 2 atoms|narrow it",
    ),
    # force maps
    "unknown force map": (
        MAP + " --force-map optimum",
        "unknown force map 'optimum'|did you mean 'optimal'?",
    ),
    "tied beads": (
        MAP + " --system {tied_xml}",
        "constraints tie beads|ALA2-N|ALA2-CA|other beads",
    ),
    "tied beads, basic": (
        MAP + " --system {tied_xml} --force-map basic",
        "constraints tie beads|ALA2-N|ALA2-CA|other beads",
    ),
    "constraint beyond": (MAP + " --system {beyond_xml}", "atom 22|22 atoms|give the System"),
    "no System": (MAP + " --system {state_xml}", "{state_xml}|State|System"),
    "cut System": (MAP + " --system {cut_xml}", "{cut_xml}|not XML|System"),
    "missing System": (MAP + " --system gone.xml", "System XML gone.xml|check the path"),
    # temperatures and outputs
    "negative temperature": (put(MAP, "300", "-300"), "temperature is -300|positive|kelvin"),
    "no number": (put(MAP, "300", "nan"), "temperature is nan|positive|kelvin"),
    "output folder": (put(MAP, "{out}", "gone/out.h5"), "gone/out.h5|folder gone|create it"),
    "output is a folder": (put(MAP, "{out}", "{folder}"), "{folder}|is a folder|name of a file"),
    # datasets
    "missing dataset": (put(TRAIN, "{data_h5}", "gone.h5"), "dataset gone.h5|check the path"),
    "cut dataset": (put(TRAIN, "{data_h5}", "{cut_h5}"), "{cut_h5}|cut short|make it again"),
    "no dataset": (put(TRAIN, "{data_h5}", "{noise_h5}"), "{noise_h5}|make it again"),
    "a run is no dataset": (
        put(TRAIN, "{data_h5}", "{sim_h5}"),
        "{sim_h5}|not a dataset|cgml map",
    ),
    "newer dataset": (put(TRAIN, "{data_h5}", "{newer_h5}"), "{newer_h5}|schema 7|1|upgrade"),
    "dataset without topology": (
        put(TRAIN, "{data_h5}", "{notopology_h5}"),
        "{notopology_h5}|dam",
    ),
    "no forces": (put(TRAIN, "{data_h5}", "{noforces_h5}"), "no forces|map the trajectory with"),
    "no weight": (put(TRAIN, "{data_h5}", "{noweight_h5}"), "weight zero|take frames"),
    "few frames": (put(TRAIN, "{data_h5}", "{few_h5}"), "4 frames|split|more frames"),
    "unknown network": (
        TRAIN + " --network cgnett",
        "unknown PMF 'cgnett'|did you mean 'cgnet'?",
    ),
    "model folder": (put(TRAIN, "{out}", "gone/m.pt"), "gone/m.pt|folder gone|create it"),
    # models
    "missing model": (put(SIMULATE, "{model_pt}", "gone.pt"), "model file gone.pt|check the path"),
    "cut model": (put(SIMULATE, "{model_pt}", "{cutmodel_pt}"), "{cutmodel_pt}|damaged|again"),
    "noise": (put(SIMULATE, "{model_pt}", "{noise_pt}"), "{noise_pt}|not a model file|again"),
    "a zip": (put(SIMULATE, "{model_pt}", "{zip_pt}"), "{zip_pt}|not a model file|again"),
    "no card": (put(SIMULATE, "{model_pt}", "{bare_pt}"), "{bare_pt}|without a card|save_model()"),
    "card is no JSON": (put(SIMULATE, "{model_pt}", "{nojson_pt}"), "{nojson_pt}|damaged|again"),
    "card of other beads": (
        put(SIMULATE, "{model_pt}", "{card_pt}"),
        "{card_pt}|4 beads|5|export it again",
    ),
    "newer model": (put(SIMULATE, "{model_pt}", "{newer_pt}"), "{newer_pt}|schema 7|1|upgrade"),
    "reads files": (
        put(SIMULATE, "{model_pt}", "{fromfile_pt}"),
        "{fromfile_pt}|aten::from_file|trust=True",
    ),
    "writes files": (put(SIMULATE, "{model_pt}", "{save_pt}"), "{save_pt}|aten::save|trust=True"),
    "prints": (put(SIMULATE, "{model_pt}", "{print_pt}"), "{print_pt}|calls print|trust=True"),
    "starts threads": (
        put(SIMULATE, "{model_pt}", "{fork_pt}"),
        "{fork_pt}|fork|trust=True",
    ),
    "runs on loading": (
        put(SIMULATE, "{model_pt}", "{setstate_pt}"),
        "{setstate_pt}|while it is loaded|trust=True",
    ),
    # simulations
    "another molecule": (
        put(SIMULATE, "{data_h5}", "{fewerbeads_h5}"),
        "model has 5 beads|2|give the model of this molecule",
    ),
    "other beads": (
        put(SIMULATE, "{data_h5}", "{other_h5}"),
        "7|5 beads|give the model of this molecule",
    ),
    "no start": (put(SIMULATE, "{data_h5}", "{noweight_h5}"), "weight zero|take frames"),
    "unknown platform": (SIMULATE + " --platform Cuda9", "'Cuda9'|choose one of|Reference"),
    "unknown backend": (
        SIMULATE + " --backend torchforc",
        "'torchforc'|did you mean 'torchforce'",
    ),
    "unknown remedy": (SIMULATE + " --on-sick heal", "'heal'|reset, drop, raise"),
    "property without value": (SIMULATE + " --property Threads", "'Threads'|NAME=VALUE"),
    "unknown property": (
        SIMULATE + " --platform Reference --property Threads=1",
        "cannot run this on Reference",
    ),
    "no rungs": (
        put(REMD, " --temperatures 300,330", ""),
        "give either --temperatures or --highest",
    ),
    "one rung": (put(REMD, "300,330", "300"), "at least two, ascending"),
    "rungs descend": (put(REMD, "300,330", "330,300"), "at least two, ascending"),
    "rungs in letters": (put(REMD, "300,330", "warm,hot"), "'warm,hot'|numbers with commas"),
    "unknown exchange": (REMD + " --exchange neighbor", "did you mean 'neighbour'"),
    "hot is cold": (put(REMD, "--temperatures 300,330", "--highest 200 --rungs 3"), "ascend"),
    "export's ending": ("export {sim_h5} -o {out}", "{out}|.dcd or .xtc"),
    "export's copy": ("export {sim_h5} --copy 9 -o x.dcd", "no copy 9|copies 0 to 3"),
    "export's temperature": (
        "export {sim_h5} --temperature 350 -o x.dcd",
        "no rung is at 350 K|300 K",
    ),
    "export of nothing": ("export gone.h5 -o x.dcd", "run gone.h5|check the path"),
    "benchmark of nothing": (
        "benchmark gone.pt --start {data_h5}",
        "model file gone.pt|check the path",
    ),
    "cold": (SIMULATE + " --temperature 0", "temperature is 0|positive"),
    "no time step": (SIMULATE + " --timestep 0", "timestep is 0|positive"),
    "no interval": (SIMULATE + " --interval -1", "interval is -1|positive"),
    "no length": (put(SIMULATE, "0.001", "0"), "ns is 0|positive"),
    "too short": (put(SIMULATE, "0.001", "0.0001"), "50 steps|250 steps|longer"),
    "output there": (
        put(SIMULATE, "{out}", "{sim_h5}"),
        "{sim_h5} holds another run|choose another output",
    ),
    "unfinished run": (put(SIMULATE, "{out}", "{begun}"), "{begun}.segments|000000.h5|damaged"),
    # analyses
    "missing run": (put(ANALYZE, "{sim_h5}", "gone.h5"), "run gone.h5|check the path"),
    "cut run": (put(ANALYZE, "{sim_h5}", "{cutsim_h5}"), "{cutsim_h5}|cut short|make it again"),
    "a dataset is no run": (put(ANALYZE, "{sim_h5}", "{data_h5}"), "{data_h5}|cgml simulate"),
    "newer run": (put(ANALYZE, "{sim_h5}", "{newersim_h5}"), "{newersim_h5}|schema 7|upgrade"),
    "missing reference": (put(ANALYZE, "{reference}", "gone.npz"), "reference gone.npz|check the"),
    "cut reference": (
        put(ANALYZE, "{reference}", "{cutreference_npz}"),
        "{cutreference_npz}|make it again",
    ),
    "other arrays": (
        put(ANALYZE, "{reference}", "{noedges_npz}"),
        "{noedges_npz}|'edges'|it needs",
    ),
    "bead beyond": (put(ANALYZE, "1,2,3,4", "1,2,3,5"), "[1, 2, 3, 5]|bead 5|0 to 4|count from 0"),
    "bead below": (
        put(ANALYZE, "1,2,3,4", "1,2,3,-1"),
        "[1, 2, 3, -1]|bead -1|0 to 4|count from 0",
    ),
    "bead twice": (put(ANALYZE, "1,2,3,4", "1,2,3,3"), "[1, 2, 3, 3]|four different beads"),
    "three beads": (put(ANALYZE, "1,2,3,4", "1,2,3"), "dihedral '1,2,3'|e.g. 0,1,2,3"),
    "letters": (put(ANALYZE, "1,2,3,4", "C,N,CA,C"), "dihedral 'C,N,CA,C'|e.g. 0,1,2,3"),
    "one dihedral": (put(ANALYZE, "--dihedral 1,2,3,4", ""), "1 dihedrals|give two"),
    "empty state": (ANALYZE + " --state 7,8", "7.0|8.0|rad"),
    "nothing left": (ANALYZE + " --discard 99", "15 ps|99"),
    "page folder": (put(ANALYZE, "{out}", "gone/a.html"), "gone/a.html|folder gone|create it"),
    # the demo
    "demo over a file": ("quickstart --output {run_abc}", "{run_abc}|choose another"),
    "demo's backend": (
        "quickstart --quick --backend torchforc --output {out}",
        "'torchforc'|did you mean 'torchforce'",
    ),
}


def run(command: str, monkeypatch, capfd) -> tuple[int, str, str]:
    """The exit code and output of `cgml`, in this process."""
    # Underscores within a selection stand for spaces.
    arguments = [a.replace("_", " ") if a.startswith("name_") else a for a in command.split()]
    monkeypatch.setattr(sys, "argv", ["cgml", *arguments])
    level = logging.getLogger("openmm_cgml").level
    capfd.readouterr()
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        logging.getLogger("openmm_cgml").setLevel(level)
    return stopped.value.code, *capfd.readouterr()


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_helps(name, files, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    names = files | {"out": tmp_path / "out.h5", "folder": tmp_path / "folder"}
    names["begun"] = tmp_path / "begun.h5"
    (tmp_path / "folder").mkdir()
    segments_folder(names["begun"]).mkdir()
    (segments_folder(names["begun"]) / "000000.h5").write_bytes(b"frames")
    before = snapshot(tmp_path, files)
    command, words = (text.format_map(names) for text in CASES[name])

    code, printed, said = run(command, monkeypatch, capfd)

    assert code == 2
    assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith("\n"), said
    assert len(said) < 600
    assert [w for w in words.split("|") if w not in said] == [], said
    assert printed == ""
    assert snapshot(tmp_path, files) == before


def snapshot(folder: Path, files: dict[str, Path]) -> set:
    """Every path below a folder and beside the input, and the size of every file."""
    found = [*folder.rglob("*"), *files["data_h5"].parent.rglob("*")]
    return {(p, p.stat().st_size if p.is_file() else None) for p in found}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("map {run_npz} --top {top} -o {out}", "Missing option '--temperature'"),
        (put(MAP, "300", "warm"), "Invalid value for '--temperature'"),
        (put(MAP, "-o {out}", ""), "Missing option '--output'"),
        (put(TRAIN, "--epochs 1", "--epochs 0"), "Invalid value for '--epochs'"),
        (put(SIMULATE, "--copies 2", "--copies 0"), "Invalid value for '--copies'"),
        ("mapp {run_npz}", "No such command 'mapp'"),
    ],
)
def test_usage_errors_show_the_usage(command, words, files, tmp_path, monkeypatch, capfd) -> None:
    code, printed, said = run(
        command.format_map(files | {"out": tmp_path / "out.h5"}), monkeypatch, capfd
    )
    plain = " ".join(said.replace("│", " ").split())
    assert code == 2 and printed == ""
    assert words in plain and "Usage: " in plain
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- classes of errors


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cutmodel_pt", cgml.ModelFileError),
        ("noise_pt", cgml.ModelFileError),
        ("zip_pt", cgml.ModelFileError),
        ("bare_pt", cgml.ModelFileError),
        ("nojson_pt", cgml.ModelFileError),
        ("newer_pt", cgml.ModelFileError),
        ("card_pt", cgml.ModelFileError),
        ("fromfile_pt", cgml.UntrustedModelError),
        ("save_pt", cgml.UntrustedModelError),
        ("print_pt", cgml.UntrustedModelError),
        ("fork_pt", cgml.UntrustedModelError),
        ("setstate_pt", cgml.UntrustedModelError),
    ],
)
def test_model_file_errors(files, name, kind, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught:
        cgml.load_model(files[name])
    assert type(caught.value) is kind and isinstance(caught.value, (cgml.InputError, ValueError))
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_is_seen(files) -> None:
    with pytest.raises(cgml.ModelFileError, match="flipped.pt is damaged .* export it again"):
        cgml.load_model(files["flipped_pt"])


def test_trust_is_the_users_to_give(files) -> None:
    assert cgml.load_model(files["print_pt"], trust=True).topology.label(0) == "ACE1-C"
    with pytest.raises(cgml.ModelFileError, match="without a card"):
        cgml.load_model(files["bare_pt"], trust=True)


def test_errors_are_value_errors() -> None:
    """Who knows nothing of this package's classes can still catch them."""
    for kind in (cgml.InputError, cgml.ModelFileError, cgml.UntrustedModelError):
        assert issubclass(kind, ValueError) and issubclass(kind, cgml.CGMLError)
    assert issubclass(cgml.BackendError, RuntimeError)


# ---------------------------------------------------------------- quantities


@pytest.mark.parametrize(
    ("value", "unit_name", "positive"),
    [
        (300 * unit.nanometer, "kelvin", True),
        (2 * unit.femtosecond, "per_picosecond", False),
        ("warm", "kelvin", False),
        (None, "picosecond", False),
        ([1.0, 2.0], "picosecond", False),
        (float("inf"), "kelvin", False),
        (float("nan"), "kelvin", False),
        (-1 * unit.femtosecond, "picosecond", True),
        (0, "picosecond", True),
        (np.ones(1000) * unit.kelvin, "kelvin", False),
    ],
)
def test_quantities_of_another_kind(value, unit_name, positive) -> None:
    with pytest.raises(cgml.InputError) as caught:
        strip(value, unit_name, what="the setting", positive=positive)
    said = str(caught.value)
    assert said.startswith("the setting is ") and "; give a" in said and unit_name in said
    assert "\n" not in said and len(said) < 200


def test_quantities_of_the_right_kind() -> None:
    assert strip(2 * unit.femtosecond, "picosecond", what="x") == pytest.approx(0.002)
    assert strip(2 / unit.femtosecond, "per_picosecond", what="x") == pytest.approx(2000)
    assert strip(np.float32(4), "picosecond", what="x") == 4.0
    pint = SimpleNamespace(magnitude=5.0)
    pint.to = lambda name: SimpleNamespace(magnitude={"1/picosecond": 7.0}[name])
    assert strip(pint, "per_picosecond", what="x") == 7.0
    kt = unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin
    expected = kt.value_in_unit(unit.kilojoule_per_mole)
    assert thermal_energy(300 * unit.kelvin) == pytest.approx(expected, rel=1e-9)
    pressure = np.ones(2) * unit.kilocalorie_per_mole / unit.angstrom
    found = strip_array(pressure, "kilojoule/mole/nanometer", what="x")
    np.testing.assert_allclose(found, 41.84)
    assert strip_array([[1, 2]], "nanometer", what="x").tolist() == [[1, 2]]


# ---------------------------------------------------------------- training and running


def test_force_maps_that_are_inconsistent(data, trajectory) -> None:
    """A map of one's own is held against the position map and the constraints."""
    mapping = cgml.MAPPINGS["backbone"](trajectory.topology)
    constraints = data / "system.xml"

    def attempt(matrix: np.ndarray) -> str:
        with pytest.raises(cgml.InputError) as caught:
            cgml.map_trajectory(
                trajectory,
                mapping,
                temperature=300,
                force_map=ForceMap("custom", matrix, ()),
                constraints=constraints,
            )
        return str(caught.value)

    kept = mapping.matrix.toarray()
    assert attempt(kept).startswith(
        "force map ignores the constraint ALA2-CA-ALA2-HA: bead ALA2-CA"
    )
    assert "bead ALA2-CA moves bead ALA2-CA by 2 instead of 1; use" in attempt(
        kept * np.array([1, 1, 2, 1, 1])[:, None]
    )
    swapped = attempt(kept[[1, 0, 2, 3, 4]])
    assert "inconsistent with the position map" in swapped and "FORCE_MAPS" in swapped
    assert "shape (4, 22), the position map (5, 22)" in attempt(kept[:4])


def test_training_needs_forces_and_equal_beads(dataset) -> None:
    pmf = cgml.PMFS["cgnet"](dataset, width=4, depth=1)
    bare = cgml.CGDataset(dataset.positions, dataset.topology, 300.0)
    for train, valid, which in ((bare, dataset, "training"), (dataset, bare, "validation")):
        with pytest.raises(cgml.InputError) as caught:
            cgml.fit(pmf, train, valid, epochs=1)
        assert str(caught.value).startswith(f"the {which} dataset has no forces")
    with pytest.raises(cgml.InputError, match="unknown loss 'forces'; did you mean 'force_match"):
        cgml.fit(pmf, dataset, dataset, loss="forces", epochs=1)


def test_models_are_not_written_to_nowhere(dataset, tmp_path) -> None:
    pmf = cgml.PMFS["cgnet"](dataset, width=4, depth=1)
    with pytest.raises(cgml.InputError, match="folder .*gone does not exist; create it first"):
        cgml.save_model(tmp_path / "gone" / "model.pt", pmf, dataset)
    with pytest.raises(cgml.InputError, match="pass the dataset that it belongs to"):
        cgml.save_model(tmp_path / "model.pt", pmf)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (np.zeros((3, 5, 3)), "start has shape (3, 5, 3); give (2, 5, 3), (5, 3) or a dataset"),
        (np.zeros((4, 3)), "start has shape (4, 3); give (2, 5, 3), (5, 3) or a dataset"),
        (np.full((2, 5, 3), np.nan), "start of copy 0 is not finite; give other positions"),
    ],
)
def test_starts_that_do_not_fit(model, start, said) -> None:
    with pytest.raises(cgml.InputError) as caught:
        cgml.Langevin(model, start, copies=2)
    assert str(caught.value) == said


def test_a_model_of_other_beads_names_the_bead(model, dataset) -> None:
    top = dataset.topology
    names = (*top.residue_names[:4], "NMA")
    other = cgml.CGTopology(
        top.bead_names,
        top.bead_types,
        names,
        top.residue_ids,
        top.chain_ids,
        top.bonds,
        top.masses,
    )
    start = cgml.CGDataset(dataset.positions, other, 300.0)
    with pytest.raises(cgml.InputError) as caught:
        cgml.Langevin(model, start, copies=2)
    assert str(caught.value) == (
        "bead 4 is NME3-N in the model but NMA3-N in the start dataset; "
        "give the model of this molecule and mapping"
    )


def test_what_a_killed_writer_left_is_no_run(dataset, tmp_path) -> None:
    path = tmp_path / "run.h5"
    RunWriter(path, dataset.topology, {})
    assert list(tmp_path.iterdir()) == []
    # Killed while it wrote its first segment.
    segments_folder(path).mkdir()
    (segments_folder(path) / ".000000.h5.123.tmp").write_bytes(b"half")
    with pytest.raises(cgml.InputError, match=r"run .*run.h5 does not exist"):
        cgml.read_run(path)
    write_run(path, dataset.topology, dataset.positions[None, :2])
    assert len(cgml.read_run(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


# ---------------------------------------------------------------- programs in disguise


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "openmm_cgml.cli:main",
        "openmm_cgml.pmf.core:build",
        "openmm_cgml.pmf.core:importlib",
        "openmm_cgml.pmf.core:missing",
        "openmm_cgml.pmf.missing:PMF",
        "torch.nn:Linear",
        "openmm_cgml.pmf:Registry",
        "..pmf.core:PMF",
        "",
    ],
)
def test_architectures_may_not_name_other_code(name) -> None:
    with pytest.raises(cgml.InputError, match="architecture names .*, which is not a PMF"):
        build({"class": name, "arguments": {"command": "touch sprung"}})


def test_cards_may_not_name_other_code(model, tmp_path) -> None:
    card = model.card | {"architecture": {"class": "os:system", "arguments": {}}}
    (tmp_path / "model.pt").write_bytes(with_card(card))
    with pytest.raises(cgml.InputError, match="architecture names 'os', which is not a PMF"):
        cgml.load_model(tmp_path / "model.pt").rebuild()


def rezip(source: Path, target: Path, rename=lambda name: name, decoy: bool = False) -> None:
    """Copy an archive under other entry names, or with a harmless twin after each program."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            new.writestr(rename(entry), old.read(entry))
        for entry in old.namelist() if decoy else ():
            if entry.endswith(".py"):
                new.writestr(entry, old.read(entry).replace(b"__setstate__", b"__harmless__"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "disguise",
    [
        {"decoy": True},
        {"rename": lambda name: name.replace(".py", ".PY")},
        {"rename": lambda name: name.replace("/code/", "/CODE/")},
    ],
    ids=["twin", "upper-case suffix", "upper-case folder"],
)
def test_programs_are_found_where_torch_finds_them(files, disguise, tmp_path, monkeypatch) -> None:
    """Torch's zip reader ignores case and takes the first of two entries of one name."""
    monkeypatch.chdir(tmp_path)
    rezip(files["setstate_pt"], tmp_path / "model.pt", **disguise)
    with pytest.raises(cgml.ModelFileError):
        cgml.load_model(tmp_path / "model.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def writing_hook(
    self, inputs: tuple[torch.Tensor, torch.Tensor | None], output: torch.Tensor
) -> torch.Tensor:
    return output + torch.from_file("sprung", shared=True, size=10).sum()


def test_hooks_are_programs_too(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = Impostor(json.dumps(model.card))
    module.register_forward_hook(writing_hook)
    save(module, tmp_path / "model.pt")
    with pytest.raises(cgml.UntrustedModelError):
        cgml.load_model(tmp_path / "model.pt")


class Trap:
    """A PythonForce's callable whose unpickling leaves a file."""

    def __call__(self, state):
        return 0.0, np.zeros((1, 3))

    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def xml_of(force) -> str:
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(force)
    return openmm.XmlSerializer.serialize(system)


def torch_force(module: torch.nn.Module):
    import openmmtorch

    return openmmtorch.TorchForce(torch.jit.script(module))


def inside(force):
    """The force as a collective variable of another."""
    outer = openmm.CustomCVForce("a")
    outer.addCollectiveVariable("a", force)
    return outer


XML = {
    "PythonForce": (lambda: xml_of(openmm.PythonForce(Trap())), "holds a PythonForce"),
    "PythonForce inside": (
        lambda: xml_of(inside(openmm.PythonForce(Trap()))),
        "holds a PythonForce",
    ),
    "PythonForce spelt otherwise": (
        lambda: xml_of(openmm.PythonForce(Trap())).replace("PythonForce", "Python&#70;orce"),
        "PythonForce",
    ),
    "TorchForce": (lambda: xml_of(torch_force(FromFile("", 1))), "aten::from_file"),
    "TorchForce inside": (
        lambda: xml_of(inside(torch_force(FromFile("", 1)))),
        "aten::from_file",
    ),
    "TorchForce that runs on loading": (
        lambda: xml_of(torch_force(SetsState("", 1))),
        "system.xml",
    ),
}


@pytest.mark.parametrize("name", XML)
def test_systems_that_hold_programs(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, words = XML[name]
    text = make()
    for left in tmp_path.iterdir():  # making it may have sprung the trap
        left.unlink()
    (tmp_path / "system.xml").write_text(text)
    with pytest.raises(cgml.UntrustedModelError) as caught:
        cgml.load_system(tmp_path / "system.xml")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["system.xml"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"not XML", "system.xml is not"),
        (b'<?xml version="1.0" ?><State/>', "system.xml"),
        (b"\xff\xfe<System/>", "system.xml is not"),
        (openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.1)).encode(), "not an OpenMM"),
    ],
    ids=["empty", "text", "State", "UTF-16", "integrator"],
)
def test_systems_that_are_none(content, words, tmp_path) -> None:
    (tmp_path / "system.xml").write_bytes(content)
    with pytest.raises(cgml.InputError) as caught:
        cgml.load_system(tmp_path / "system.xml")
    assert words in str(caught.value) and "\n" not in str(caught.value)
