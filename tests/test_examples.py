"""Every script in examples/ runs, in its small version, and writes what it says."""

import itertools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest

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


def test_examples_are_numbered_and_all_run_here():
    names = sorted(path.name[:2] for path in EXAMPLES.glob("*.py"))
    called = set(re.findall(r'run\("(\d\d)"', Path(__file__).read_text(encoding="utf-8")))
    assert names == [f"{k:02}" for k in range(1, len(names) + 1)] and set(names) == called


def test_add_force_to_openmm_script(road, tmp_path, capsys):
    run("01", "--input", road, "--output", tmp_path)
    assert "largest force of the PMF on the gas: 0 kJ/mol/nm" in capsys.readouterr().out
    assert len((tmp_path / "energies.csv").read_text().splitlines()) == 21


def test_from_trajectory_to_simulation(road):
    assert {p.name for p in road.iterdir()} == {"dataset.h5", "model.pt", "simulation.h5"}


def test_your_own_map(tmp_path, capsys):
    run("03", "--output", tmp_path)
    rows = re.findall(r"(\d+) +([\d.]+) +([\d.]+) +([\d.]+)\n", capsys.readouterr().out)
    assert len(rows) == 3 and len(list(tmp_path.glob("*.h5"))) == 9
    assert (tmp_path / "map.png").stat().st_size > 10_000
    assert all(float(c) <= float(b) < float(a) for _, a, b, c in rows)


def test_compare_with_reference(road, tmp_path, capsys):
    run("04", "--input", road, "--output", tmp_path)
    printed = re.findall(r"JS\* (-?[\d.]+)", capsys.readouterr().out)
    # The reweighted training data are close to the reference, a model of two epochs is not.
    assert abs(float(printed[0])) < 0.01 < float(printed[1])
    assert "Training" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_flow_matching(road, tmp_path, capsys):
    run("09", "--input", road, "--output", tmp_path)
    said = capsys.readouterr().out
    assert re.search(r"flow and PMF: [\d,]+ of 20,000 samples effective", said)
    assert float(re.search(r"training data: ([\d.]+)%", said)[1]) < 50
    assert {p.name for p in tmp_path.iterdir()} == {"molecule.flow", "student.pt", "run.h5"}


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


def test_metadynamics(road, tmp_path, capsys):
    run("05", "--input", road, "--output", tmp_path)
    said = capsys.readouterr().out
    assert float(re.search(r"phi > 0, biased: ([\d.]+)", said)[1]) >= 0
    assert {p.name for p in tmp_path.iterdir()} == {"run.h5", "free_energy.png"}


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


def test_reference_data(tmp_path, capsys):
    run("07", "--output", tmp_path)
    said = capsys.readouterr().out
    assert re.search(r"metadynamics.h5: 20 frames, \d+ ns/day", said)
    assert re.search(r"own.h5: 20 frames, force RMS \d+ kJ/mol/nm", said)
    run("07", "--output", tmp_path)  # complete, and says so
    assert {p.name for p in tmp_path.iterdir()} == {"metadynamics.h5", "own.h5"}


def test_explicit_solvent_recipe(tmp_path, capsys):
    run("08", "--output", tmp_path)
    said = capsys.readouterr().out
    assert "metadynamics_0.h5: 5 of 5 frames" in said
    assert '"beads": 5, "solute_atoms": 22' in said


@pytest.mark.slow
def test_explicit_solvent_recipe_of_a_chain(tmp_path, capsys):
    run("08", "--output", tmp_path, "--residues", 3, "--method", "unbiased")
    assert '"beads": 11, "solute_atoms": 42' in capsys.readouterr().out


def test_slurm_job(road, tmp_path, capsys):
    """The script's shell is valid; what it starts on many processes runs in one."""
    script = EXAMPLES / "slurm" / "remd.sh"
    subprocess.run(["bash", "-n", script], check=True)
    options = re.findall(r"--[a-z]+", script.read_text(encoding="utf-8").partition("/remd.py")[2])
    assert options == ["--input", "--output", "--ns", "--seconds"]
    run("slurm/remd.py", "--input", road, "--output", tmp_path, "--ns", 1, "--seconds", 600)
    assert capsys.readouterr().out.splitlines()[-1] == "8 frames of 16 copies, finished"
    assert {p.name for p in tmp_path.iterdir()} == {"run.h5"}


def test_muller_brown(tmp_path, capsys):
    run("11", "--output", tmp_path / "free.png")
    shares = re.findall(r"PMF of \w+ ones: ([\d.]+)", capsys.readouterr().out)
    assert len(shares) == 4 and all(0.001 < float(share) < 0.2 for share in shares)
    assert (tmp_path / "free.png").stat().st_size > 20_000


def test_all_the_way_back(tmp_path, capsys):
    run("12", "--output", tmp_path)
    said = capsys.readouterr().out
    assert "4 of 4 run freely" in said and "80 structures" in said
    assert (tmp_path / "back.png").stat().st_size > 10_000


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
