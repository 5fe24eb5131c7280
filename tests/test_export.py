"""Exported runs, read back by MDTraj: the frames, their order, what belongs to each."""

import csv
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from handmade import Springs, write_run

import openmm_cgml as cgml
from openmm_cgml import cli
from openmm_cgml.export import export_run
from openmm_cgml.run_file import Checkpoint, Run, RunWriter

TOLERANCE = {"dcd": 1e-5, "xtc": 1e-3}  # nm; a DCD's numbers are Angstrom in float32
RUNGS = [300.0, 330.0, 370.0]
FRAMES, LADDERS = 6, 2
COPIES = LADDERS * len(RUNGS)


@pytest.fixture(scope="module")
def springs(dataset, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("springs") / "springs.pt"
    cgml.save_model(path, Springs(), dataset)
    return path


def add_frames(writer: RunWriter, topology, frames: range, sick=()) -> None:
    """Frames of a replica exchange in which every number says where it belongs."""
    beads, copies = len(topology), np.arange(COPIES)
    rng = np.random.default_rng(frames.start)
    for t in frames:
        rungs = np.concatenate([rng.permutation(len(RUNGS)) for _ in range(LADDERS)])
        writer.add_exchange(0.5 * t + 0.2, rungs)
        writer.add(
            positions=10 * rng.standard_normal((COPIES, beads, 3)),
            time=0.5 * (t + 1),
            energy=100.0 * t + copies + 0.25,
            kinetic_energy=10.0 * t + copies,
            rung=rungs,
            sick=[(t, c) in sick for c in copies],
            extrapolating=copies == t,
        )


def write_exchange(path: Path, topology, sick=(), **info) -> Run:
    """A finished run of two ladders of three temperatures."""
    info = {"copies": COPIES, "ladders": LADDERS, "temperatures_K": RUNGS, **info}
    writer = RunWriter(path, topology, info)
    add_frames(writer, topology, range(FRAMES), sick)
    writer.flush(Checkpoint(FRAMES, {}, {}, b""))
    writer.finish()
    return cgml.read_run(path)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load(written) -> mdtraj.Trajectory:
    return mdtraj.load(str(written.trajectory), top=str(written.topology))


@pytest.mark.parametrize("kind", ["dcd", "xtc"])
def test_frames_come_copy_after_copy(dataset, tmp_path, kind) -> None:
    # Twelve beads: XTC compresses from ten on.
    topology = chain(12)
    positions = 5 * np.random.default_rng(0).standard_normal((7, 3, 12, 3))
    write_run(tmp_path / "run.h5", topology, positions)
    written = export_run(cgml.read_run(tmp_path / "run.h5"), tmp_path / f"out.{kind}")
    read = load(written)
    assert written.frames == read.n_frames == 21 and written.exchanges is None
    expected = positions.transpose(1, 0, 2, 3).reshape(21, 12, 3)
    assert np.abs(read.xyz - expected).max() < TOLERANCE[kind]
    assert read.unitcell_lengths is None or kind == "xtc"
    if kind == "xtc":
        assert np.allclose(read.time, np.tile(0.5 * np.arange(1, 8), 3))
    rows = table(written.energies)
    assert [row["copy"] for row in rows] == [c for c in "012" for _ in range(7)]
    assert [float(row["time_ps"]) for row in rows] == [0.5 * t for t in range(1, 8)] * 3
    assert not list(tmp_path.glob(".*"))


def chain(beads: int) -> cgml.CGTopology:
    names = tuple(f"B{k}" for k in range(beads))
    bonds = tuple((k, k + 1) for k in range(beads - 1))
    residues = tuple(range(1, beads + 1))
    return cgml.CGTopology(
        names, names, ("ALA",) * beads, residues, ("A",) * beads, bonds, (12.0,) * beads
    )


def test_topology_has_the_beads_names_and_all_bonds(dataset, tmp_path) -> None:
    for topology in (dataset.topology, chain(12)):
        path = tmp_path / f"{len(topology)}.h5"
        write_run(path, topology, np.ones((2, 1, len(topology), 3)))
        written = export_run(cgml.read_run(path), path.with_suffix(".dcd"))
        read = mdtraj.load_topology(str(written.topology))
        assert tuple(atom.name for atom in read.atoms) == topology.bead_names
        assert tuple(atom.residue.name for atom in read.atoms) == topology.residue_names
        assert tuple(atom.residue.resSeq for atom in read.atoms) == topology.residue_ids
        bonds = {tuple(sorted((i.index, j.index))) for i, j in read.bonds}
        assert bonds == set(topology.bonds)


def test_what_viewers_need(tmp_path) -> None:
    """VMD and NGL tell atoms by chain, residue and name, and take bonds from CONECT alone."""
    names = "N CA CB C N CA CB C".split()
    bonds = tuple((4 * r + i, 4 * r + j) for r in range(2) for i, j in ((0, 1), (1, 2), (1, 3)))
    one = (*bonds, (3, 4))
    topology = cgml.CGTopology(
        tuple(names * 2), tuple(names * 2), ("GLY",) * 16, tuple(1 + k // 4 for k in range(16)),
        ("A",) * 8 + ("B",) * 8, (*one, *((i + 8, j + 8) for i, j in one)), (12.0,) * 16,
    )  # fmt: skip
    box = [[3.0, 0.0, 0.0], [0.5, 2.5, 0.0], [0.0, -0.5, 2.0]]
    positions = np.random.default_rng(2).uniform(-1, 1, (4, 2, 16, 3))
    write_run(tmp_path / "run.h5", topology, positions, box_vectors_nm=box)
    written = export_run(cgml.read_run(tmp_path / "run.h5"), tmp_path / "out.xtc")
    lines = written.topology.read_text().splitlines()
    atoms = [line for line in lines if line.startswith("ATOM")]
    told = [(line[21], line[22:27], line[12:16]) for line in atoms]
    assert len(set(told)) == 16
    assert [line[12:16].strip() for line in atoms] == names * 2
    # No bead passes for an element: viewers would guess bonds from its radius.
    assert {line[76:78].strip() for line in atoms} == {"VS"}
    assert sum(line.startswith("CRYST1") for line in lines) == 1
    index = {int(line[6:11]): k for k, line in enumerate(atoms)}
    found = [
        tuple(index[int(line[k : k + 5])] for k in (6, 11)) for line in lines
        if line.startswith("CONECT")
    ]  # fmt: skip
    assert sorted(found) == sorted(p for i, j in topology.bonds for p in ((i, j), (j, i)))
    assert {tuple(sorted((names[i % 8], names[j % 8]))) for i, j in found} == {
        ("CA", "N"), ("CA", "CB"), ("C", "CA"), ("C", "N"),
    }  # fmt: skip
    read = load(written)
    assert {tuple(sorted((i.index, j.index))) for i, j in read.topology.bonds} == set(
        topology.bonds
    )
    assert np.abs(read.unitcell_vectors - box).max() < 1e-4


@pytest.mark.slow
def test_more_beads_than_a_pdb_numbers(tmp_path) -> None:
    count = 100_002
    pairs = tuple((k, k + 1) for k in range(0, count, 2))
    names = ("A", "B") * (count // 2)
    topology = cgml.CGTopology(
        names, names, ("LIP",) * count, tuple(1 + k // 2 for k in range(count)),
        ("A",) * count, pairs, (12.0,) * count,
    )  # fmt: skip
    write_run(tmp_path / "run.h5", topology, np.ones((1, 1, count, 3)))
    with pytest.warns(UserWarning, match="numbers 99,999 atoms and these are 100,002 beads"):
        written = export_run(cgml.read_run(tmp_path / "run.h5"), tmp_path / "out.dcd")
    assert "CONECT" not in written.topology.read_text()
    assert load(written).n_atoms == count


def test_several_chains(tmp_path) -> None:
    """A PDB's TER lines count as atoms, so serial numbers and indices part ways."""
    whole = chain(6)
    topology = cgml.CGTopology(
        whole.bead_names, whole.bead_types, whole.residue_names, whole.residue_ids,
        ("A",) * 3 + ("B",) * 3, ((0, 1), (1, 2), (3, 4), (4, 5)), whole.masses,
    )  # fmt: skip
    write_run(tmp_path / "run.h5", topology, np.ones((2, 1, 6, 3)))
    written = export_run(cgml.read_run(tmp_path / "run.h5"), tmp_path / "out.dcd")
    read = mdtraj.load_topology(str(written.topology))
    bonds = {tuple(sorted((i.index, j.index))) for i, j in read.bonds}
    assert bonds == set(topology.bonds) and read.n_chains == 2


@pytest.mark.parametrize("kind", ["dcd", "xtc"])
def test_one_temperature_of_a_replica_exchange(dataset, tmp_path, kind) -> None:
    run = write_exchange(tmp_path / "run.h5", dataset.topology)
    for rung, temperature in enumerate(RUNGS):
        written = export_run(run, tmp_path / f"out.{kind}", temperature=temperature)
        read, rows = load(written), table(written.energies)
        assert read.n_frames == len(rows) == written.frames == LADDERS * FRAMES
        k = 0
        for ladder in range(LADDERS):
            for t in range(FRAMES):
                own = slice(ladder * len(RUNGS), (ladder + 1) * len(RUNGS))
                copy = own.start + int(np.flatnonzero(run.rung[t, own] == rung)[0])
                assert np.abs(read.xyz[k] - run.positions[t, copy]).max() < TOLERANCE[kind]
                assert rows[k] == {
                    "time_ps": f"{0.5 * (t + 1):g}",
                    "place": str(ladder),
                    "temperature_K": f"{temperature:g}",
                    "potential_kJ_mol": f"{100 * t + copy + 0.25:g}",
                    "kinetic_kJ_mol": f"{10 * t + copy:g}",
                    "extrapolating": str(int(copy == t)),
                }
                k += 1


def test_one_copy_of_a_replica_exchange(dataset, tmp_path) -> None:
    run = write_exchange(tmp_path / "run.h5", dataset.topology)
    written = export_run(run, tmp_path / "out.dcd", copy=4)
    rows = table(written.energies)
    assert np.abs(load(written).xyz - run.positions[:, 4]).max() < TOLERANCE["dcd"]
    assert [row["copy"] for row in rows] == ["4"] * FRAMES
    assert [float(row["temperature_K"]) for row in rows] == [RUNGS[r] for r in run.rung[:, 4]]
    assert [float(row["potential_kJ_mol"]) for row in rows] == run.energy[:, 4].tolist()
    swaps = table(written.exchanges)
    assert [float(row["time_ps"]) for row in swaps] == run.exchange_time.tolist()
    for copy in range(COPIES):
        rungs = [int(row[f"rung_of_copy_{copy}"]) for row in swaps]
        assert rungs == run.exchange_rung[:, copy].tolist()


def test_frames_of_sick_copies_are_left_out(dataset, tmp_path) -> None:
    run = write_exchange(tmp_path / "run.h5", dataset.topology, sick={(1, 4), (2, 4), (3, 0)})
    written = export_run(run, tmp_path / "out.dcd", copy=4)
    keep = [0, 3, 4, 5]
    assert np.abs(load(written).xyz - run.positions[keep, 4]).max() < TOLERANCE["dcd"]
    times = [float(row["time_ps"]) for row in table(written.energies)]
    assert times == [0.5 * (t + 1) for t in keep]
    total = sum(export_run(run, tmp_path / "t.dcd", temperature=t).frames for t in RUNGS)
    assert total == COPIES * FRAMES - 3
    all_sick = write_exchange(
        tmp_path / "sick.h5", dataset.topology, sick={(t, 1) for t in range(FRAMES)}
    )
    with pytest.raises(cgml.InputError, match="all frames are of sick copies"):
        export_run(all_sick, tmp_path / "sick.dcd", copy=1)


@pytest.mark.parametrize("kind", ["dcd", "xtc"])
def test_a_periodic_run_has_its_box(springs, dataset, tmp_path, kind) -> None:
    box = [[3.0, 0.0, 0.0], [0.5, 2.5, 0.0], [0.0, -0.5, 2.0]]
    start = dataset.positions[:2].astype(float)
    simulation = cgml.Langevin(springs, start, 2, box_vectors=box)
    run = simulation.run(tmp_path / "run.h5", steps=200, interval=0.1)
    written = export_run(run, tmp_path / f"out.{kind}")
    read = load(written)
    assert np.abs(read.unitcell_vectors - box).max() < 1e-4
    assert np.abs(read.xyz.reshape(2, 4, 5, 3) - run.positions.swapaxes(0, 1)).max() < 1e-3
    # The PDB has three decimals of an Angstrom and two of a degree.
    frame = mdtraj.load(str(written.topology))
    assert np.abs(frame.unitcell_vectors - box).max() < 1e-3


def test_a_run_is_exported_while_it_goes_on(dataset, tmp_path) -> None:
    info = {"copies": COPIES, "ladders": LADDERS, "temperatures_K": RUNGS}
    writer = RunWriter(tmp_path / "run.h5", dataset.topology, info)
    frames = 0
    for end in (4, 7):
        add_frames(writer, dataset.topology, range(frames, end))
        writer.flush(Checkpoint(end, {}, {}, b""))
        frames = end
        run = cgml.read_run(tmp_path / "run.h5")
        assert not (tmp_path / "run.h5").exists() and not run.finished
        written = export_run(run, tmp_path / "out.xtc", copy=2)
        assert load(written).n_frames == len(table(written.energies)) == end
        assert np.abs(load(written).xyz - run.positions[:, 2]).max() < TOLERANCE["xtc"]


def test_times_of_long_runs_stay_apart(dataset, tmp_path) -> None:
    run = write_exchange(tmp_path / "run.h5", dataset.topology)
    run.time[:] += 5e6
    run.exchange_time[:] += 5e6
    written = export_run(run, tmp_path / "out.dcd", copy=0)
    assert [float(row["time_ps"]) for row in table(written.energies)] == run.time.tolist()
    times = [float(row["time_ps"]) for row in table(written.exchanges)]
    assert np.allclose(times, run.exchange_time, rtol=0, atol=1e-6)


def test_what_cannot_be_exported(dataset, tmp_path) -> None:
    run = write_exchange(tmp_path / "run.h5", dataset.topology)
    for wrong, match, choice in (
        ("out.trr", "end it in .dcd or .xtc", {"copy": 0}),
        ("out", "end it in .dcd or .xtc", {"copy": 0}),
        ("out.dcd", r"3 temperatures \(300, 330, 370 K\); choose one, or a copy", {}),
        ("out.dcd", "no rung is at 310 K", {"temperature": 310}),
        ("out.dcd", "no copy 6; the run has copies 0 to 5", {"copy": 6}),
        ("out.dcd", "no copy -1", {"copy": -1}),
        ("out.dcd", "either temperature or copy, not both", {"copy": 0, "temperature": 300}),
        ("no/out.dcd", "does not exist; create it first", {"copy": 0}),
    ):
        with pytest.raises(cgml.InputError, match=match):
            export_run(run, tmp_path / wrong, **choice)
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def test_a_run_without_frames(dataset, tmp_path) -> None:
    writer = RunWriter(
        tmp_path / "run.h5", dataset.topology, {"copies": 2, "temperatures_K": [300.0]}
    )
    writer.flush(Checkpoint(0, {}, {}, b""))
    with pytest.raises(cgml.InputError, match="no frames to export; simulate longer"):
        export_run(cgml.read_run(tmp_path / "run.h5"), tmp_path / "out.dcd")


def test_another_topology_is_not_written_over(dataset, data, tmp_path) -> None:
    """``run.dcd`` next to the all-atom ``run.pdb`` would be an easy mistake."""
    run = write_exchange(tmp_path / "cg.h5", dataset.topology)
    atoms = (data / "topology.pdb").read_bytes()
    (tmp_path / "run.pdb").write_bytes(atoms)
    (tmp_path / "run.dcd").write_bytes(b"frames of all atoms")
    with pytest.raises(cgml.InputError, match="no export's; choose another name"):
        export_run(run, tmp_path / "run.dcd", copy=0)
    assert (tmp_path / "run.pdb").read_bytes() == atoms
    assert (tmp_path / "run.dcd").read_bytes() == b"frames of all atoms"
    # Its own it does.
    for copy in (0, 1):
        written = export_run(run, tmp_path / "beads.dcd", copy=copy)
    assert np.abs(load(written).xyz - run.positions[:, 1]).max() < TOLERANCE["dcd"]


def test_command(springs, dataset, tmp_path, monkeypatch, capsys) -> None:
    simulation = cgml.ReplicaExchange(
        springs, dataset, [300, 350], copies=3, exchange_interval=0.04, timestep=0.004
    )
    run = simulation.run(tmp_path / "run.h5", steps=80, interval=0.04)
    arguments = ["export", tmp_path / "run.h5", "--temperature", 350, "--stride", 2]
    output = tmp_path / "hot.xtc"
    monkeypatch.setattr(sys, "argv", ["cgml", *map(str, [*arguments, "-o", output])])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    names = [tmp_path / f"hot.{e}" for e in ("xtc", "pdb", "energies.csv", "exchanges.csv")]
    assert capsys.readouterr().err.splitlines() == [
        f"{names[0]}: 12 frames", f"{names[1]}, {names[2]}", f"{names[3]}"
    ]  # fmt: skip
    read = mdtraj.load(str(names[0]), top=str(names[1]))
    expected = run.at_temperature(350).positions[::2].swapaxes(0, 1).reshape(12, 5, 3)
    assert np.abs(read.xyz - expected).max() < TOLERANCE["xtc"]
    assert len(table(names[3])) == 8  # swaps are not thinned
