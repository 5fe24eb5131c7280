"""Every script in examples/ runs, in its small version, and writes what it says."""

import itertools
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.image as mpimg
import mdtraj
import numpy as np
import pytest

import openmm_cgml as cgml

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(script: str, *arguments: object) -> None:
    """Run an example in this process: torch, openmm and lightning are imported once for all."""
    (path,) = EXAMPLES.glob(script if script.endswith(".py") else f"{script}_*.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path.name, *map(str, arguments), "--quick"])
        runpy.run_path(str(path), run_name="__main__")


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Path:
    """The folder that example 02 writes; 01 and 04 begin with it."""
    folder = tmp_path_factory.mktemp("road")
    run("02", "--output", folder)
    return folder


def drawn(path: Path) -> None:
    """A picture is there that a page can show, and it is not empty."""
    image = mpimg.imread(path)[..., :3]
    assert image.shape[1] >= 500 and path.stat().st_size < 400_000
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20  # curves, not only a frame


def test_examples_are_numbered_and_all_run_here():
    names = sorted(path.name[:2] for path in EXAMPLES.glob("*.py"))
    called = set(re.findall(r'run\("(\d\d)"', Path(__file__).read_text(encoding="utf-8")))
    assert names == [f"{k:02}" for k in range(1, len(names) + 1)] and set(names) == called


def test_gallery_shows_every_example():
    """Each script has its command and its picture on the page; pictures are small."""
    page = (EXAMPLES.parent / "docs" / "gallery.md").read_text(encoding="utf-8")
    folder = EXAMPLES.parent / "docs" / "images" / "gallery"
    for path in [*EXAMPLES.glob("*.py"), *(EXAMPLES / "slurm").glob("*.sh")]:
        assert f"examples/{path.relative_to(EXAMPLES).as_posix()}" in page, path.name
    for path in (EXAMPLES / "notebooks").glob("*.ipynb"):
        assert path.name in page
    shown = set(re.findall(r"\(images/gallery/(\w+\.png)\)", page))
    assert shown == {path.name for path in folder.glob("*.png")}
    assert all((folder / name).stat().st_size <= 120_000 for name in shown)


def test_add_force_to_openmm_script(road, tmp_path, capsys):
    run("01", "--input", road, "--output", tmp_path)
    said = capsys.readouterr().out
    assert "largest force of the PMF on the gas: 0 kJ/mol/nm" in said
    assert len((tmp_path / "energies.csv").read_text().splitlines()) == 21
    # Some ten independent samples of a restraint (spread 0.8 of its mean) and of 100 atoms.
    found = dict(re.findall(r"mean (restraint|kinetic) energy.*: ([\d.]+) kJ/mol;", said))
    assert abs(float(found["restraint"]) - 3.74) < 4
    assert float(found["kinetic"]) == pytest.approx(3.74, rel=0.12)
    drawn(tmp_path / "energies.png")


def test_from_trajectory_to_simulation(road):
    files = {"dataset.h5", "model.pt", "simulation.h5", "free_energy.png"}
    assert {p.name for p in road.iterdir()} == files
    drawn(road / "free_energy.png")


def test_your_own_map(tmp_path, capsys):
    run("03", "--output", tmp_path)
    rows = re.findall(r"(\d+) +([\d.]+) +([\d.]+) +([\d.]+)\n", capsys.readouterr().out)
    assert len(rows) == 3 and len(list(tmp_path.glob("*.h5"))) == 9
    drawn(tmp_path / "map.png")
    drawn(tmp_path / "forces.png")
    assert all(float(c) <= float(b) < float(a) for _, a, b, c in rows)


def test_compare_with_reference(road, tmp_path, capsys):
    run("04", "--input", road, "--output", tmp_path)
    printed = re.findall(r"JS\* (-?[\d.]+)", capsys.readouterr().out)
    # The reweighted training data are close to the reference, a model of two epochs is not.
    assert abs(float(printed[0])) < 0.01 < float(printed[1])
    assert "Training" in (tmp_path / "report.html").read_text(encoding="utf-8")
    drawn(tmp_path / "profiles.png")


def test_flow_matching(road, tmp_path, capsys):
    run("09", "--input", road, "--output", tmp_path)
    said = capsys.readouterr().out
    assert re.search(r"flow and PMF: [\d,]+ of 20,000 samples effective", said)
    assert float(re.search(r"training data: ([\d.]+)%", said)[1]) < 50
    files = {"molecule.flow", "student.pt", "run.h5", "flow.png"}
    assert {p.name for p in tmp_path.iterdir()} == files
    drawn(tmp_path / "flow.png")


def test_folding(tmp_path, capsys):
    """From a trajectory; what is there is not done again."""
    structure = Path(__file__).parent / "data" / "structures" / "chignolin.pdb"
    native = mdtraj.load(structure)
    shifts = np.random.default_rng(0).normal(0, 0.03, (200, native.n_atoms, 3))
    mdtraj.Trajectory(native.xyz + shifts, native.topology).save_xtc(tmp_path / "protein.xtc")
    sources = ("--trajectory", tmp_path / "protein.xtc", "--topology", structure)
    times = []
    for _ in range(2):
        run("10", *sources, "--native", structure, "--output", tmp_path / "out")
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert said["residues"] == 10 and said["frames"] == 200
        assert said["RMSD_data"] < 0.08 < said["RMSD_flow"] < 1
        assert 0 < said["effective_samples"] <= 1 and said["folded_data"] == 1
        times.append({p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()})
        assert {"folding.png", "summary.json", "molecule.flow", "exchange_1.h5"} <= times[
            -1
        ].keys()
    assert times[0]["student_1.pt"] == times[1]["student_1.pt"]
    drawn(tmp_path / "out" / "folding.png")


def test_metadynamics(road, tmp_path, capsys):
    run("05", "--input", road, "--output", tmp_path)
    said = capsys.readouterr().out
    assert float(re.search(r"phi > 0, biased: ([\d.]+)", said)[1]) >= 0
    assert {p.name for p in tmp_path.iterdir()} == {"run.h5", "free_energy.png"}
    drawn(tmp_path / "free_energy.png")


def test_replica_exchange(road, tmp_path, capsys):
    run("06", "--input", road, "--output", tmp_path)
    said = capsys.readouterr().out
    rungs = re.search(r"rungs: ([\d ]+) K", said)[1].split()
    accepted = re.search(r"accepted: ([\d. ]+)\n", said)[1].split()
    assert len(accepted) == len(rungs) - 1
    assert all(0.1 < float(rate) < 0.9 for rate in accepted)
    assert int(re.search(r"round trips: (\d+)", said)[1]) > 0
    assert len(re.findall(r"free energy of phi > 0, .+: \S+ ± \S+ kJ/mol", said)) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"run.h5", "free_energy.png"}
    drawn(tmp_path / "free_energy.png")


def test_reference_data(tmp_path, capsys):
    run("07", "--output", tmp_path)
    said = capsys.readouterr().out
    assert re.search(r"metadynamics.h5: 20 frames, \d+ ns/day", said)
    assert re.search(r"own.h5: 20 frames, force RMS \d+ kJ/mol/nm", said)
    run("07", "--output", tmp_path)  # complete, and says so
    assert {p.name for p in tmp_path.iterdir()} == {"metadynamics.h5", "own.h5", "data.png"}
    drawn(tmp_path / "data.png")


def test_explicit_solvent_recipe(tmp_path, capsys):
    run("08", "--output", tmp_path)
    said = capsys.readouterr().out
    assert "metadynamics_0.h5: 5 of 5 frames" in said
    assert '"beads": 5, "solute_atoms": 22' in said
    drawn(tmp_path / "metadynamics_0.png")


@pytest.mark.slow
def test_explicit_solvent_recipe_of_a_chain(tmp_path, capsys):
    run("08", "--output", tmp_path, "--residues", 3, "--method", "unbiased")
    assert '"beads": 11, "solute_atoms": 42' in capsys.readouterr().out


def test_slurm_job(road, tmp_path, capsys):
    """What the job starts on many processes runs in one."""
    run("slurm/remd.py", "--input", road, "--output", tmp_path, "--ns", 1, "--seconds", 600)
    assert capsys.readouterr().out.splitlines()[-1] == "8 frames of 16 copies, finished"
    assert {p.name for p in tmp_path.iterdir()} == {"run.h5", "run.png"}
    drawn(tmp_path / "run.png")


def test_slurm_script_in_a_queue(tmp_path):
    """With stand-ins for SLURM's commands: what each machine is told to run."""
    script = EXAMPLES / "slurm" / "remd.sh"
    for name, text in (("scontrol", "echo node7; echo node8"), ("srun", 'printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    queue = {
        "SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_SUBMIT_DIR": str(script.parent), "PATH": f"{tmp_path}:/usr/bin:/bin",
    }  # fmt: skip
    said = subprocess.run(["bash", script, "in", "out"], env=queue, check=True,
                          capture_output=True, text=True).stdout.splitlines()  # fmt: skip
    assert said[:2] == ["--kill-on-bad-exit=1", "torchrun"]
    assert "--rdzv-endpoint=node7:23456" in said and "--nnodes=2" in said
    program = said.index(str(script.parent / "remd.py"))
    assert said[program + 1 :] == [
        "--input", "in", "--output", "out", "--ns", "100", "--seconds", "13800",
    ]  # fmt: skip
    assert subprocess.run(["bash", script], capture_output=True).returncode != 0  # no folders


@pytest.mark.slow
def test_slurm_script_rehearses(road, tmp_path):
    """Outside of a queue: the same program in two processes, which share one run."""
    script = EXAMPLES / "slurm" / "remd.sh"
    beside = str(Path(sys.executable).parent)
    paths = {
        "PATH": f"{beside}:{os.environ['PATH']}",
        "PYTHONPATH": f"{EXAMPLES.parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    said = subprocess.run(["bash", script, road, tmp_path], env={**os.environ, **paths},
                          check=True, capture_output=True, text=True).stdout  # fmt: skip
    assert "8 frames of 16 copies, finished" in said
    drawn(tmp_path / "run.png")


def test_muller_brown(tmp_path, capsys):
    run("11", "--output", tmp_path / "free.png")
    shares = re.findall(r"PMF of \w+ ones: ([\d.]+)", capsys.readouterr().out)
    assert len(shares) == 4 and all(0.001 < float(share) < 0.2 for share in shares)
    drawn(tmp_path / "free.png")


def test_all_the_way_back(tmp_path, capsys):
    run("12", "--output", tmp_path)
    said = capsys.readouterr().out
    assert "4 of 4 run freely" in said and "80 structures" in said
    drawn(tmp_path / "back.png")


def test_protein_backmapping(tmp_path, capsys):
    structure = Path(__file__).parent / "data" / "structures" / "chignolin.pdb"
    native = mdtraj.load(structure)
    shifts = np.random.default_rng(0).normal(0, 0.01, (200, native.n_atoms, 3))
    mdtraj.Trajectory(native.xyz + shifts, native.topology).save_dcd(tmp_path / "protein.dcd")
    sources = ("--trajectory", tmp_path / "protein.dcd", "--topology", structure)
    run("13", *sources, "--output", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["structures"] == 80 and found["bead_error"] < 1e-6
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"planes.png", "entropy.png", "atoms.dcd", "atoms.pdb", "protein.flow"} <= names
    drawn(tmp_path / "out" / "entropy.png")


def test_bilayer_backmapping(tmp_path, capsys):
    """Sixteen chains of carbons in a box, by their centres of mass."""
    top, generator = mdtraj.Topology(), np.random.default_rng(0)
    chain = top.add_chain()
    for _ in range(16):
        residue = top.add_residue("CHN", chain)
        atoms = [top.add_atom(f"C{k}", mdtraj.element.carbon, residue) for k in range(6)]
        for one, other in itertools.pairwise(atoms):
            top.add_bond(one, other)
    zigzag = np.stack([0.125 * np.arange(6), 0.08 * (np.arange(6) % 2), 0 * np.arange(6)], 1)
    corners = np.stack(np.meshgrid(*[[0.4, 1.2]] * 2, [0.3, 0.8, 1.3, 1.8]), -1).reshape(-1, 1, 3)
    places = (corners + zigzag).reshape(-1, 3)
    noisy = places + generator.normal(0, 0.01, (40, *places.shape))
    made = mdtraj.Trajectory(noisy, top, unitcell_lengths=[[2.0] * 3] * 40,
                             unitcell_angles=[[90.0] * 3] * 40)  # fmt: skip
    made.save_dcd(tmp_path / "many.dcd")
    made[0].save_pdb(tmp_path / "many.pdb")
    sources = ("--trajectory", tmp_path / "many.dcd", "--topology", tmp_path / "many.pdb")
    run("14", *sources, "--mapping", "residue_com", "--output", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["bead_error"] < 1e-6 and set(found["clashes_by_candidates"]) == {"1", "2"}
    boxed = mdtraj.load(tmp_path / "out" / "bilayer.dcd", top=tmp_path / "out" / "bilayer.pdb")
    assert boxed.n_atoms == 96 and np.allclose(boxed.unitcell_lengths, 2.0)
    drawn(tmp_path / "out" / "tails.png")


def test_alanine_three_roads(tmp_path, capsys):
    times = []
    for _ in range(2):
        run("15", "--output", tmp_path)
        times.append((tmp_path / "flow_matching.pt").stat().st_mtime_ns)
    assert times[0] == times[1]  # what is there is not made again
    found = json.loads((tmp_path / "summary.json").read_text())
    roads = ("force matching", "flow-matching", "Boltzmann generator")
    # Worse than converged models (0.01); as few frames spread evenly over the plane: 0.6.
    assert all(0 < found[road]["js_excess"] < 0.5 for road in roads)
    assert found["Boltzmann generator"]["js_excess"] < 0.35
    assert found["effective_samples"] > 10
    assert len(re.findall(r"JS\* [\d.]+ ± [\d.]+ nats", capsys.readouterr().out)) == 6
    drawn(tmp_path / "roads.png")


def test_choosing_a_map(tmp_path, capsys):
    run("16", "--output", tmp_path)
    for ranking in json.loads((tmp_path / "ranking.json").read_text()):
        # Beads at one end say little about the other, by every estimate.
        for kind in ("data", "model"):
            values = {name: one[kind]["mean"] for name, one in ranking.items()}
            assert values["one end"] > values["backbone"] + 5
    assert capsys.readouterr().out.count("5 beads") == 4
    drawn(tmp_path / "ranking.png")


def test_umbrella_sampling(road, tmp_path, capsys):
    run("17", "--input", road, "--output", tmp_path)
    table = np.loadtxt(tmp_path / "free_energy.csv", delimiter=",")
    assert table.shape == (60, 3) and np.nanmin(table[:, 1]) == 0
    assert np.isfinite(table[:, 1]).sum() >= 58  # windows are everywhere, barriers included
    assert 5 < np.nanmax(table[:, 1]) < 120
    assert re.search(r"phi > 0: -?[\d.]+ ± [\d.]+ kJ/mol", capsys.readouterr().out)
    drawn(tmp_path / "free_energy.png")


def test_transferable(tmp_path, capsys):
    run("18", "--output", tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert {name.partition(", ")[0] for name in found} == {"A", "AG", "GA"}
    assert {"GA, prior alone", "GA, own model", "GA, one model for all"} <= set(found)
    assert all(0 < one["js_excess"] < 0.69 for one in found.values())
    # The model knows what it learned by name, and any chain of these types by its beads.
    learned = cgml.read_dataset(tmp_path / "AG.h5")
    energies = [
        cgml.load_model(tmp_path / "shared.pt", one).energies(learned.positions[:3])
        for one in ("AG", learned.topology)
    ]
    assert np.allclose(*energies) and np.ptp(energies[0]) > 0
    drawn(tmp_path / "transferable.png")
