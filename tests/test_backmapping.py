"""Backmapping of trajectories: files, resuming, many molecules, metrics, relaxation, weights."""

import json
import re
import shutil

import torch

import numpy as np
import openmm
import pytest
from openmm import app
from test_fiber import MATRICES, chain, mapping, random_chain, random_flow
from typer.testing import CliRunner

import openmm_cgml as cgml
from openmm_cgml.atomistic import atomistic_weights, system_energies
from openmm_cgml.backmapping import (
    BeadFrames,
    Structures,
    backmap,
    chosen_apart,
    read_beads,
    repeated,
    write_backmapped,
)
from openmm_cgml.cli import app as cgml_app
from openmm_cgml.errors import InputError
from openmm_cgml.flow.fiber import Solver, split_flow
from openmm_cgml.molecules import single_molecules
from openmm_cgml.quality import assess
from openmm_cgml.relaxation import relax, survives
from openmm_cgml.units import thermal_energy

QUICK = Solver(steps=2)


@pytest.fixture(scope="module")
def flow():
    return random_flow(MATRICES["overlap"], strength=0.05)


def beads_of(flow, frames: int, seed: int = 3) -> BeadFrames:
    return BeadFrames(flow.fiber.beads_of(random_chain(frames, 7, seed)), flow.bead_topology)


def test_structures_have_their_beads_and_frames(flow) -> None:
    frames = beads_of(flow, 5)
    found = backmap(flow, frames, 3, solver=QUICK)
    assert found.frame.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    error = flow.fiber.beads_of(found.positions) - frames.positions[found.frame]
    assert np.abs(error).max() < 1e-10 and found.log_density is None
    dense = backmap(flow, frames, 1, solver=QUICK, density="exact")
    assert dense.log_density is not None and dense.log_density.shape == (5,)
    assert found.to_mdtraj().n_atoms == 7


def test_files_are_resumed_and_of_one_call(flow, tmp_path, monkeypatch) -> None:
    from openmm_cgml import backmapping

    monkeypatch.setattr(backmapping, "CHUNK", 4)
    frames = beads_of(flow, 10)
    wanted = backmap(flow, frames, 1, solver=QUICK, density="exact", seed=3)
    made = backmapping._made
    calls = []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return made(*arguments)

    monkeypatch.setattr(backmapping, "_made", failing)
    call = {"solver": QUICK, "density": "exact", "seed": 3}
    with pytest.raises(KeyboardInterrupt):
        write_backmapped(tmp_path / "a.dcd", flow, frames, 1, **call)
    assert len(list((tmp_path / "a.dcd.segments").glob("*.npz"))) == 2
    with pytest.raises(InputError, match="another model, trajectory or settings"):
        write_backmapped(tmp_path / "a.dcd", flow, frames, 1, **{**call, "seed": 4})
    written = write_backmapped(tmp_path / "a.dcd", flow, frames, 1, **call)
    assert len(calls) == 4 and written.structures == 10  # one more
    import mdtraj

    read = mdtraj.load(str(written.trajectory), top=str(written.topology))
    assert np.abs(read.xyz - wanted.positions).max() < 1e-5
    with np.load(written.table) as table:
        assert np.abs(table["log_density"] - wanted.log_density).max() < 1e-9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.dcd", "a.npz", "a.pdb"]
    with pytest.raises(InputError, match=r"end it in \.dcd or \.xtc"):
        write_backmapped(tmp_path / "a.txt", flow, frames)


def test_beads_are_read_from_datasets_and_others_trajectories(flow, tmp_path) -> None:
    frames = beads_of(flow, 6)
    dataset = cgml.CGDataset(frames.positions.astype(np.float32), flow.bead_topology, 300.0)
    dataset.save(tmp_path / "beads.h5")
    found = read_beads(tmp_path / "beads.h5", stride=2)
    assert len(found) == 3 and np.abs(found.positions - frames.positions[::2]).max() < 1e-6
    import mdtraj

    mdtraj.Trajectory(frames.positions, flow.bead_topology.to_mdtraj()).save_pdb(
        str(tmp_path / "beads.pdb")
    )
    other = backmap(flow, tmp_path / "beads.pdb", solver=QUICK)
    assert np.abs(other.beads - frames.positions).max() < 1e-3
    with pytest.raises(InputError, match="neither a run nor a dataset"):
        (tmp_path / "no.h5").write_bytes(b"nothing")
        read_beads(tmp_path / "no.h5")
    with pytest.raises(InputError, match="no multiple of the 3"):
        backmap(flow, BeadFrames(random_chain(2, 4), chain(4)))
    renamed = cgml.CGTopology(**{**flow.bead_topology.__dict__, "bead_names": ("C0", "X", "C2")})
    with pytest.raises(InputError, match=r"MOL1-X of the trajectory is MOL1-C1"):
        backmap(flow, BeadFrames(frames.positions, renamed))


def test_many_molecules_are_made_one_by_one(flow) -> None:
    box = np.diag([3.0, 3.0, 3.0])
    one = beads_of(flow, 4).positions
    both = np.concatenate([one, one[::-1] + [1.5, 0, 0]], axis=1)
    frames = BeadFrames(both, repeated(flow.bead_topology, 2), np.tile(box, (4, 1, 1)))
    found = backmap(flow, frames, solver=QUICK, candidates=3)
    assert found.positions.shape == (4, 14, 3) and found.box is not None
    assert np.abs(flow.fiber.beads_of(found.positions[:, 7:]) - both[:, 3:]).max() < 1e-10
    with pytest.raises(InputError, match="have no density"):
        backmap(flow, frames, candidates=2, density="exact")


def test_candidates_that_clash_are_left() -> None:
    near, far = np.zeros((1, 3)), np.full((1, 3), 1.0)
    candidates = np.array([[near, far + 0.5], [near + 0.05, far]])
    chosen = chosen_apart(candidates, np.array([True]), np.diag([2.0, 2.0, 2.0]))
    assert np.linalg.norm(chosen[0] - chosen[1]) > 0.12
    across = np.array([[near, near + 0.5], [near + [1.95, 0, 0], near + [1.95, 0, 0]]])
    chosen = chosen_apart(across, np.array([True]), np.diag([2.0, 2.0, 2.0]))
    assert np.allclose(chosen[0], 0.5)


def test_single_molecules_are_whole_and_numbered() -> None:
    two = repeated(chain(3), 2)
    positions = random_chain(4, 6, size=0.05)
    positions[:, 3:] += 1.0
    torn = positions.copy()
    torn[:, 1] += [3.0, 0, 0]
    dataset = cgml.CGDataset(
        torn, two, 300.0, box=np.tile(np.diag([3.0, 3.0, 3.0]), (4, 1, 1)), weights=np.arange(4.0)
    )
    found = single_molecules(dataset)
    assert len(found) == 8 and found.trajectory.tolist() == [0] * 4 + [1] * 4
    assert np.allclose(found.positions[:4], positions[:, :3], atol=1e-6)
    assert found.weights.tolist() == [0, 1, 2, 3] * 2 and found.box is None
    mixed = cgml.CGTopology(**{**two.__dict__, "masses": (12.011,) * 5 + (15.999,)})
    assert set(single_molecules(cgml.CGDataset(positions, mixed, 300.0)).datasets) == {
        "MOL", "MOL-1",
    }  # fmt: skip


# ---------------------------------------------------------------- real molecules


@pytest.fixture(scope="module")
def peptide():
    """Capped peptide in implicit solvent without constraints, from OpenMM: topology and frames."""
    from importlib.resources import files

    pdb = app.PDBFile(str(files("openmm_cgml").joinpath("data/quickstart/topology.pdb")))
    forcefield = app.ForceField("amber99sb.xml", "amber99_obc.xml")
    system = forcefield.createSystem(pdb.topology, constraints=None)
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.001)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(pdb.positions)
    openmm.LocalEnergyMinimizer.minimize(context)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(2000)
    frames = []
    for _ in range(200):
        integrator.step(50)
        state = context.getState(positions=True)
        frames.append(state.getPositions(asNumpy=True)._value)
    atoms = cgml.CGTopology.from_openmm(pdb.topology)
    return atoms, np.array(frames), system, forcefield


def structures_of(atoms, frames, matrix) -> Structures:
    beads = np.einsum("ba,fak->fbk", matrix, frames)
    return Structures(frames, beads, np.arange(len(frames)), atoms)


def test_metrics_of_the_reference_itself_are_perfect_and_of_errors_not(peptide) -> None:
    atoms, frames, _, _ = peptide
    matrix = cgml.MAPPINGS["backbone"](atoms.to_mdtraj(atoms=True)).matrix.toarray()
    good = assess(structures_of(atoms, frames, matrix), frames, matrix)
    assert good.bead_error == 0 and good.bonds_right[0] == good.bonds_right[1] > 0.99
    assert good.bonds.mean < 0 and good.graph_distance == 0 and good.rmsd == (0, 0)
    assert good.mirrored == (0, len(frames))  # the one alpha carbon
    assert good.renumbered == (0, 3 * len(frames))  # three methyl groups
    assert good.cis == (0, 2 * len(frames)) and good.plane.difference == 0
    mirrored = frames * [1, 1, -1]
    bad = assess(structures_of(atoms, mirrored, matrix), frames, matrix)
    assert (
        bad.mirrored[0] == bad.mirrored[1]
        and bad.renumbered[0] == bad.renumbered[1]
        and bad.torsions.mean > 0.1
    )
    noisy = frames + np.random.default_rng(0).normal(size=frames.shape) * 0.02
    worse = assess(structures_of(atoms, noisy, matrix), frames, matrix)
    assert worse.bonds.mean > 0.2 and worse.bonds_right[0] < 0.8 and worse.rmsd[0] > 0.02
    record = json.loads(json.dumps(worse.record()))
    assert record["bonds"]["worst"] == worse.bonds.worst[1] and "JS*" in worse.text()


@pytest.mark.parametrize("kind", ["backbone", "residue_com"])
def test_relaxation_holds_the_beads(peptide, kind) -> None:
    """From heavy atoms with noise: hydrogens by rule, energies down, beads exact, a stable run."""
    atoms, frames, _, forcefield = peptide
    top = atoms.to_mdtraj(atoms=True)
    heavy = cgml.MAPPINGS["heavy_atom"](top)
    rows = heavy.matrix.indices
    matrix = cgml.MAPPINGS[kind](heavy.topology.to_mdtraj(atoms=True)).matrix.toarray()
    noise = np.random.default_rng(0).normal(size=(2, len(rows), 3)) * 0.005
    made = structures_of(heavy.topology, frames[:2][:, rows] + noise, matrix)
    found = relax(made, forcefield, matrix, platform="Reference", constraints=app.HBonds)
    assert found.bead_error < 1e-9 and (found.after < found.before - 20).all()
    assert found.structures.relaxed and found.structures.log_density is None
    assert found.structures.positions.shape == (2, 22, 3)
    assert survives(found, ps=10.0, platform="Reference").all()
    with pytest.raises(InputError, match="were relaxed since"):
        atomistic_weights(found.structures, np.zeros(2), None, 300)
    with pytest.raises(InputError, match="does not fit|cannot be added"):
        relax(made, ["tip3p.xml"], matrix)
    with pytest.raises(InputError, match="cannot be read"):
        relax(made, ["nonsense.xml"], matrix)


def test_energies_of_constrained_systems_are_refused(peptide) -> None:
    atoms, frames, system, forcefield = peptide
    energies = system_energies(system, frames[:3])
    assert np.isfinite(energies).all() and energies.std() > 0
    constrained = forcefield.createSystem(atoms.to_openmm(atoms=True), constraints=app.HBonds)
    with pytest.raises(InputError, match=r"12 constraints.*S = -infinity"):
        system_energies(constrained, frames[:1])
    with pytest.raises(InputError, match="22 particles"):
        system_energies(system, frames[:1, :5])


def test_weights_make_the_atomistic_ensemble(peptide) -> None:
    """Of a Gaussian molecule whose flow has another temperature, weights are exact."""
    from test_fiber import gaussian_flow, springs

    precision = springs(7, 100.0, seed=5)
    narrow = gaussian_flow(MATRICES["com"], 1.1 * precision, None)
    kt = float(thermal_energy(300))
    generator = np.random.default_rng(1)
    inner = np.linalg.pinv(precision)
    root = np.linalg.cholesky(inner + 1e-12 * np.eye(7))
    atoms = np.einsum("ac,fck->fak", root, generator.normal(size=(800, 7, 3)))
    frames = BeadFrames(narrow.fiber.beads_of(atoms), narrow.bead_topology)
    made = backmap(narrow, frames, density="exact", solver=Solver(steps=3))

    def energy(r):
        return 0.5 * kt * np.einsum("fak,ac,fck->f", r, precision, r)

    lowest = narrow.given(torch.tensor(frames.positions))
    least = energy((lowest.lifted + lowest.mean).numpy())
    logs, report = atomistic_weights(made, energy(made.positions), least, 300)
    assert 0.5 < report.fraction < 0.99 and report.converged
    weights = np.exp(logs)
    spread = np.square(np.diff(made.positions, axis=1)).sum((1, 2))
    exact = np.square(np.diff(atoms, axis=1)).sum((1, 2))
    mean = weights @ spread
    error = np.hypot(np.sqrt(np.sum((weights * (spread - mean)) ** 2)), exact.std() / 800**0.5)
    assert abs(mean - exact.mean()) < 4 * error
    assert abs(spread.mean() - exact.mean()) > 3 * spread.std() / 800**0.5  # unweighted is not
    rough = backmap(narrow, BeadFrames(frames.positions[:5], narrow.bead_topology),
                    density="hutchinson", solver=QUICK)  # fmt: skip
    with pytest.raises(InputError, match="right on average"):
        atomistic_weights(rough, np.zeros(5), None, 300)


def test_from_atoms_to_structures_and_entropies_on_the_command_line(peptide, tmp_path) -> None:
    atoms, frames, _, _ = peptide
    run = CliRunner()
    weights = np.linspace(0.5, 1.5, len(frames))
    dataset = cgml.CGDataset(frames.astype(np.float32), atoms, 300.0, weights=weights)
    dataset.save(tmp_path / "atoms.h5")
    mapped = cgml.MAPPINGS["backbone"](atoms.to_mdtraj(atoms=True))
    beads = mapped.map_positions(frames).astype(np.float32)
    cgml.CGDataset(beads, mapped.topology, 300.0).save(tmp_path / "beads.h5")
    base = ["flow", "split", f"{tmp_path}/atoms.h5", "--mapping", "backbone", "--epochs", "1"]
    small = ["--set", "width=12", "--set", "layers=1", "--set", "heads=3"]
    made = run.invoke(cgml_app, [*base, *small, "-o", f"{tmp_path}/a.flow"])
    assert made.exit_code == 0, made.output
    told = run.invoke(cgml_app, [
        "backmap", "--model", f"{tmp_path}/a.flow", "--traj", f"{tmp_path}/beads.h5", "--stride",
        "10", "-n", "2", "-o", f"{tmp_path}/b.dcd", "--reference", f"{tmp_path}/atoms.h5",
        "--report", f"{tmp_path}/b.html", "--steps", "2", "--relax", "amber99sb.xml", "--relax",
        "amber99_obc.xml",
    ])  # fmt: skip
    assert told.exit_code == 0, told.output
    alone = run.invoke(cgml_app, [
        "backmap", "--model", f"{tmp_path}/a.flow", "--traj", f"{tmp_path}/beads.h5", "--stride",
        "20", "-n", "2", "-o", f"{tmp_path}/alone.dcd", "--report", f"{tmp_path}/alone.html",
        "--steps", "2", "--density",
    ])  # fmt: skip
    assert alone.exit_code == 0, alone.output
    page = (tmp_path / "alone.html").read_text(encoding="utf-8")
    assert "Provenance" in page and "sha256:" in page
    assert "only atoms can tell" in page and "Log-density of the structures" in page
    record = json.loads(told.stdout.strip().splitlines()[-1])
    assert record["structures"] == 40 and record["quality"]["bead_error"] < 1e-5
    assert record["relaxed"]["after"] < record["relaxed"]["before"]
    page = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert (tmp_path / "b.system.xml").exists() and "energy after" in page
    assert "not compared: fewer than 100 values" in page  # too few frames
    assert not re.search(r"\bnan\b", page) and str(tmp_path) not in page
    told = run.invoke(cgml_app, [
        "entropy", f"{tmp_path}/a.flow", "--traj", f"{tmp_path}/beads.h5", "--stride", "50",
        "--samples", "2", "--fast", "--atoms", f"{tmp_path}/atoms.h5", "-o", f"{tmp_path}/s.npz",
        "--report", f"{tmp_path}/s.html",
    ])  # fmt: skip
    assert told.exit_code == 0, told.output
    record = json.loads(told.stdout.strip().splitlines()[-1])
    assert record["model"]["removed"] == 51 and "W = E - TS" in record["model"]["unit"]
    with np.load(tmp_path / "s.npz") as table:
        assert table["entropy"].shape == (4,) and table["data"].shape == (4,)
        first = table["entropy"]
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "Along the trajectory" in page and "<img" in page
    found = []
    for steps in ("12", "2"):  # of the same noise
        told = run.invoke(cgml_app, [
            "entropy", f"{tmp_path}/a.flow", "--traj", f"{tmp_path}/beads.h5", "--stride", "50",
            "--samples", "2", "--fast", "--steps", steps, "-o", f"{tmp_path}/s{steps}.npz",
        ])  # fmt: skip
        assert told.exit_code == 0, told.output
        with np.load(tmp_path / f"s{steps}.npz") as table:
            found.append(np.abs(table["entropy"] - first).max())
    assert 0 < found[0] < 0.1 * found[1]
    shutil.copy(tmp_path / "a.flow", tmp_path / "b.flow")
    told = run.invoke(cgml_app, [
        "entropy", f"{tmp_path}/a.flow", f"{tmp_path}/b.flow", "--stride", "50", "--samples", "2",
        "--fast", "--atoms", f"{tmp_path}/atoms.h5", "-o", f"{tmp_path}/r.npz",
        "--report", f"{tmp_path}/r.html",
    ])  # fmt: skip
    assert told.exit_code == 0, told.output
    ranked = json.loads(told.stdout.strip().splitlines()[-1])["maps"]
    assert [one["more"] for one in ranked] == [0.0, 0.0]  # the same map
    assert "Which map loses least?" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_frozen_bonds_and_split_flows_of_the_wrong_map(peptide) -> None:
    atoms, frames, _, _ = peptide
    data = cgml.CGDataset(frames, atoms, 300.0)
    other = mapping(MATRICES["slice"])
    with pytest.raises(InputError, match="takes 7 atoms and the frames have 22"):
        split_flow(data, other)
