"""Damaged files of every kind: each is read, or refused with this package's own error.

The slow run damages over 10 000 files; ``OPENMM_CGML_FUZZ=result.json`` keeps its counts,
``OPENMM_CGML_FUZZ_COUNT=50`` makes it that many a reader, for a quick look.
"""

import json
import os
import sys
from pathlib import Path

import torch  # before openmm

import h5py
import mdtraj
import numpy as np
import openmm
import pytest
from fuzzing import (
    MEMORY,
    SECONDS,
    Outcome,
    Reader,
    damage_bytes,
    damage_hdf5,
    damage_head,
    damage_json_bytes,
    damage_text,
    damage_xtc,
    damage_zip,
    run,
    texts_in_heap,
)
from handmade import write_run
from openmm import app

import openmm_cgml as cgml
from openmm_cgml.convert import to_npz
from openmm_cgml.dataset import read_dataset
from openmm_cgml.flow_file import load_flow
from openmm_cgml.mapping.constraints import constraints_from_system
from openmm_cgml.mapping.table_file import read_mapping_table
from openmm_cgml.pmf.prior_table import read_prior_table
from openmm_cgml.reference.recorder import ReferenceState
from openmm_cgml.reference.setup import require_safe_xml
from openmm_cgml.run_file import read_checkpoint
from openmm_cgml.topology import CGTopology
from openmm_cgml.whole_files import require_whole_trajectory

SEED = 20261122

#: How many damaged files of each kind the slow run reads; together more than 10 000.
COUNTS = {
    "model": 1200, "flow": 700, "system": 300, "checkpoint": 300,
    "dataset": 900, "dataset_heap": 900, "run": 700, "collection": 400, "mdtraj_h5": 400,
    "metasets": 300,
    "npz": 500, "npy": 200, "own_npz": 400, "state_npz": 200,
    "dcd": 500, "dcd_fixed": 300, "xtc": 500, "xtc_packing": 800, "trr": 400, "nc": 300,
    "pdb": 200,
    "top_pdb": 200, "top_cif": 150, "top_prmtop": 300, "top_psf": 200, "top_gro": 150,
    "top_top": 150, "topology": 500, "table_toml": 400, "table_json": 300, "prior_toml": 500,
    "constraints_xml": 200,
}  # fmt: skip
FEW = 12  # numbers below it are the fast tests'


# ---------------------------------------------------------------- what reads them


def read_model(path: Path) -> None:
    model = cgml.load_model(path)
    positions = np.random.default_rng(0).normal(size=(2, len(model.topology), 3))
    try:
        model.energies(positions)
    except (RuntimeError, cgml.CGMLError):  # a program may fail; it may not crash
        pass


def read_system(path: Path) -> None:
    cgml.load_system(path)


def read_trajectory(path: Path, top: str = "top.pdb") -> None:
    for chunk in cgml.read_trajectory(path, top=path.with_name(top)).chunks(7):
        assert chunk.positions.ndim == 3


def read_mdtraj_h5(path: Path) -> None:
    for chunk in cgml.read_trajectory(path).chunks(7):
        assert chunk.positions.ndim == 3


def read_runs(path: Path) -> None:
    cgml.read_run(path)
    read_checkpoint(path)


def read_own_npz(path: Path) -> None:
    cgml.convert_files(path, "npz")


def read_metasets(path: Path) -> None:
    top = read_dataset(path.with_name("beads.h5")).topology
    cgml.convert_files(
        path, "mlcg", top=top, temperature=300, length_unit="nm", force_unit="kJ/mol/nm"
    )


def read_state(path: Path) -> None:
    ReferenceState.from_bytes(path.read_bytes(), path)


def read_training(path: Path) -> None:
    from openmm_cgml.train import _read

    _read(path)


def read_constraints(path: Path) -> None:
    constraints_from_system(path)
    require_safe_xml(path)


def read_stored_topology(path: Path) -> None:
    CGTopology.from_json(path.read_text(errors="surrogateescape"))


@pytest.fixture(scope="session")
def readers(data, dataset, model, tmp_path_factory) -> dict[str, Reader]:
    """Whole, small files of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    made: dict[str, Reader] = {}

    def add(name, read, damage, file, **beside) -> None:
        read(file)  # it is whole
        made[name] = Reader(name, file, read, damage, beside)

    small = dataset.select(slice(0, 24))
    top = folder / "top.pdb"
    top.write_bytes((data / "topology.pdb").read_bytes())
    with np.load(data / "trajectory.npz") as whole:
        positions, forces = whole["positions"][:24], whole["forces"][:24]
    frames = mdtraj.Trajectory(positions, mdtraj.load_topology(str(top)))
    beside = {"top.pdb": top}

    (folder / "model.pt").write_bytes(model.file.archive)
    add("model", read_model, damage_zip, folder / "model.pt")
    flow = cgml.FLOWS["coupling"](dataset, width=8, components=2)
    cgml.save_flow(folder / "a.flow", flow)
    add("flow", load_flow, damage_zip, folder / "a.flow")
    cgml.save_system(folder / "system.xml", model.create_system(backend="torchforce"))
    add("system", read_system, damage_text, folder / "system.xml")
    state = {"state_dict": flow.state_dict(), "training": {"finished": False}, "epoch": 3}
    torch.save(state, folder / "last.ckpt")
    add("checkpoint", read_training, damage_zip, folder / "last.ckpt")
    xml = folder / "constraints.xml"
    xml.write_bytes((data / "system.xml").read_bytes())
    add("constraints_xml", read_constraints, damage_text, xml)

    small.save(folder / "beads.h5")
    add("dataset", read_dataset, damage_hdf5, folder / "beads.h5")
    (folder / "heap.h5").write_bytes((folder / "beads.h5").read_bytes())
    texts_in_heap(folder / "heap.h5")
    add("dataset_heap", read_dataset, damage_hdf5, folder / "heap.h5")
    copies = np.repeat(small.positions[None, :4], 6, axis=0)
    write_run(folder / "run.h5", small.topology, copies)
    add("run", read_runs, damage_hdf5, folder / "run.h5")
    cgml.DatasetCollection({"a": small, "b": small}).save(folder / "both.h5")
    add("collection", cgml.read_collection, damage_hdf5, folder / "both.h5")
    _mdtraj_h5(folder / "traj.h5", frames)
    add("mdtraj_h5", read_mdtraj_h5, damage_hdf5, folder / "traj.h5")
    with h5py.File(folder / "sets.h5", "w") as handle:
        group = handle.create_group("SET/molecule")
        group["cg_coords"], group["cg_forces"] = small.positions, small.forces
        group.attrs["cg_embeds"] = np.arange(len(small.topology))
    add(
        "metasets", read_metasets, damage_hdf5, folder / "sets.h5",
        **{"beads.h5": folder / "beads.h5"},
    )  # fmt: skip

    np.savez_compressed(folder / "run.npz", positions=positions, forces=forces)
    add("npz", read_trajectory, damage_zip, folder / "run.npz", **beside)
    np.save(folder / "run.npy", positions)
    add("npy", read_trajectory, damage_head, folder / "run.npy", **beside)
    to_npz(small, folder / "own.npz")
    add("own_npz", read_own_npz, damage_zip, folder / "own.npz")
    stored = ReferenceState(24, 1, {"a": 1}, {"b": [2]}, {"x": positions[0]}, b"blob")
    (folder / "state.npz").write_bytes(stored.to_bytes())
    add("state_npz", read_state, damage_zip, folder / "state.npz")

    for kind in ("dcd", "xtc", "trr", "nc", "pdb"):
        some = frames[:6] if kind == "pdb" else frames
        some.unitcell_vectors = np.tile(3 * np.eye(3, dtype=np.float32), (len(some), 1, 1))
        file = folder / f"run.{kind}"
        some.save(str(file))
        damage = damage_text if kind == "pdb" else damage_bytes
        add(kind, read_trajectory, _head_or_all(damage), file, **beside)
    add("xtc_packing", read_trajectory, damage_xtc, folder / "run.xtc", **beside)
    (folder / "fixed.dcd").write_bytes(_dcd_of_fixed_atoms(positions))
    add("dcd_fixed", read_trajectory, _head_or_all(damage_bytes), folder / "fixed.dcd", **beside)

    for suffix, text in _topologies(data, folder).items():
        add(f"top_{suffix}", cgml.read_topology, damage_text, text)
    (folder / "topology.json").write_text(small.topology.to_json())
    add("topology", read_stored_topology, damage_json_bytes, folder / "topology.json")
    (folder / "table.toml").write_text(TABLE)
    add("table_toml", read_mapping_table, damage_text, folder / "table.toml")
    (folder / "table.json").write_text(json.dumps(JSON_TABLE))
    add("table_json", read_mapping_table, damage_json_bytes, folder / "table.json")
    cgml.fit_prior_table(dataset).save(folder / "prior.toml")
    add("prior_toml", read_prior_table, damage_text, folder / "prior.toml")
    assert set(made) == set(COUNTS)
    return made


TABLE = """
name = "two a residue"
weights = "mass"
complete = false
[[bead]]
name = "HEAD"
select = "name CA and index 8"
[residues.ALA]
BB = ["N", "CA", "C", "O?"]
SC = {atoms = ["CB"], type = "C3", weights = [1.0], hydrogens = false}
bonds = [["BB", "SC"]]
aliases = ["ALX"]
"""
JSON_TABLE = {
    "name": "two a residue",
    "residues": {"ALA": {"BB": ["N", "CA"], "SC": {"atoms": ["CB"]}, "bonds": [["BB", "SC"]]}},
    "leave_out": ["HOH"],
}


def _head_or_all(damage):
    def either(raw: bytes, random: np.random.Generator) -> bytes:
        return damage_head(raw, random) if random.random() < 0.4 else damage(raw, random)

    return either


def _mdtraj_h5(path: Path, frames: mdtraj.Trajectory) -> None:
    """As mdtraj writes it, whose own writer needs another package."""
    atoms = [
        {"index": a.index, "name": a.name, "element": a.element.symbol} for a in frames.top.atoms
    ]
    residues = [
        {"name": r.name, "resSeq": r.resSeq, "atoms": [atoms[a.index] for a in r.atoms]}
        for r in frames.top.residues
    ]
    bonds = [[a.index, b.index] for a, b in frames.top.bonds]
    text = json.dumps({"chains": [{"index": 0, "residues": residues}], "bonds": bonds})
    with h5py.File(path, "w") as handle:
        handle["coordinates"] = frames.xyz
        handle["coordinates"].attrs["units"] = "nanometers"
        handle["topology"] = np.array([text.encode()])


def _dcd_of_fixed_atoms(positions: np.ndarray) -> bytes:
    """A DCD file whose first atom is written once only."""

    def block(content: bytes) -> bytes:
        size = len(content).to_bytes(4, "little")
        return size + content + size

    frames, atoms, _ = positions.shape
    head = np.zeros(20, "<i4")
    head[[0, 2, 8, 19]] = frames, 1, 1, 24
    raw = block(b"CORD" + head.tobytes()) + block((0).to_bytes(4, "little"))
    raw += block(atoms.to_bytes(4, "little"))
    raw += block(np.arange(2, atoms + 1, dtype="<i4").tobytes())
    for number, frame in enumerate(10 * positions.astype("<f4")):
        for axis in range(3):
            raw += block((frame if number == 0 else frame[1:])[:, axis].tobytes())
    return raw


def _topologies(data: Path, folder: Path) -> dict[str, Path]:
    import parmed

    pdb = app.PDBFile(str(data / "topology.pdb"))
    system = app.ForceField("amber99sb.xml").createSystem(pdb.topology)
    structure = parmed.openmm.load_topology(pdb.topology, system, xyz=pdb.positions)
    paths = {}
    for suffix in ("pdb", "cif", "prmtop", "psf", "gro", "top"):
        paths[suffix] = folder / f"molecule.{suffix}"
        if suffix == "cif":
            with open(paths[suffix], "w") as handle:
                app.PDBxFile.writeFile(pdb.topology, pdb.positions, handle)
        elif suffix == "pdb":
            paths[suffix].write_bytes((data / "topology.pdb").read_bytes())
        else:
            structure.save(str(paths[suffix]))
    return paths


# ---------------------------------------------------------------- the runs


@pytest.mark.parametrize("name", COUNTS)
def test_a_few_damaged_files(name, readers, tmp_path) -> None:
    require_good(run(readers[name], tmp_path, 8, SEED))


@pytest.mark.slow
def test_ten_thousand_damaged_files(readers, tmp_path) -> None:
    few = os.environ.get("OPENMM_CGML_FUZZ_COUNT")
    only = os.environ.get("OPENMM_CGML_FUZZ_ONLY", "").split()
    outcomes: list[Outcome] = []
    for name, count in COUNTS.items():
        if not only or name in only:
            outcomes.append(run(readers[name], tmp_path, int(few or count), SEED, first=FEW))
            if place := os.environ.get("OPENMM_CGML_FUZZ"):
                Path(place).write_text(json.dumps(report(outcomes), indent=1))
    total = report(outcomes)["total"]
    for outcome in outcomes:
        require_good(outcome)
    assert few or only or total >= 10_000


def report(outcomes: list[Outcome]) -> dict:
    """What the slow run keeps."""
    return {
        "seed": SEED,
        "total": sum(sum(o.counts.values()) for o in outcomes),
        "seconds": round(sum(o.seconds for o in outcomes), 1),
        "limits": {"seconds": SECONDS, "memory": MEMORY},
        "versions": {
            "python": sys.version.split()[0], "torch": torch.__version__,
            "openmm": openmm.version.version, "mdtraj": mdtraj.__version__,
            "h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version,
        },
        "readers": {
            o.name: {**o.counts, "seconds": round(o.seconds, 1), "failures": o.failures}
            for o in outcomes
        },
    }  # fmt: skip


def require_good(outcome: Outcome) -> None:
    """Nothing but files that were read or refused."""
    assert outcome.failures == []
    assert outcome.counts["refused"] > 0


# ---------------------------------------------------------------- whole files are still read


@pytest.mark.parametrize("size", [1, 7, 24])
def test_fixed_atoms_are_read_as_mdtraj_reads_them(size, data, tmp_path) -> None:
    top, path = data / "topology.pdb", tmp_path / "fixed.dcd"
    with np.load(data / "trajectory.npz") as whole:
        path.write_bytes(_dcd_of_fixed_atoms(whole["positions"][:24]))
    chunks = cgml.read_trajectory(path, top=top).chunks(size)
    found = np.concatenate([chunk.positions for chunk in chunks])
    np.testing.assert_array_equal(found, mdtraj.load(str(path), top=str(top)).xyz)


@pytest.mark.parametrize(
    ("atoms", "frames", "spread"),
    [(3, 70, 1.0), (10, 5, 1.0), (10, 70, 1.0), (600, 70, 0.1), (600, 5, 3.0), (31, 90, 9000.0)],
)
def test_packing_of_whole_files_passes(atoms, frames, spread, tmp_path) -> None:
    """Molecules of three atoms, as of water, which XTC packs in runs of small steps."""
    random = np.random.default_rng(0)
    centres = spread * random.normal(size=(frames, atoms // 3 + 1, 1, 3))
    positions = centres + 0.1 * random.normal(size=(frames, atoms // 3 + 1, 3, 3))
    positions = positions.reshape(frames, -1, 3)[:, :atoms].astype(np.float32)
    top = mdtraj.Topology()
    residue = top.add_residue("A", top.add_chain())
    for _ in range(atoms):
        top.add_atom("C", mdtraj.element.carbon, residue)
    mdtraj.Trajectory(positions, top).save(str(tmp_path / "run.xtc"))
    require_whole_trajectory(tmp_path / "run.xtc")
    assert (
        np.abs(mdtraj.load(str(tmp_path / "run.xtc"), top=top).xyz - positions).max() < 1e-2
    )  # rounding of large numbers
