"""Other programs' arrays: units are told and checked, and what comes in can go out again."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import h5py
import mdtraj
import numpy as np
import pytest
from openmm import unit
from test_dataset import assert_equal, make
from test_dataset_info import springs

import openmm_cgml as cgml
from openmm_cgml import cli
from openmm_cgml.convert import ENERGY_UNITS, FORMATS

CALORIES = {"length_unit": "angstrom", "force_unit": "kcal/mol/angstrom"}


@pytest.fixture(scope="module")
def known() -> cgml.CGDataset:
    """Four beads with exact forces, so that units show in the virial."""
    return springs(400, beads=4, noise=1.0)


@pytest.fixture(scope="module")
def beads(known, tmp_path_factory):
    """A .pdb of the beads, as carbon atoms that have masses but no bonds."""
    top = mdtraj.Topology()
    chain = top.add_chain("A")
    for k in range(4):
        residue = top.add_residue("GLY", chain, resSeq=k + 1)
        top.add_atom("CA", mdtraj.element.carbon, residue)
    path = tmp_path_factory.mktemp("top") / "beads.pdb"
    mdtraj.Trajectory(np.asarray(known.positions[:1]), top).save_pdb(str(path))
    return path


def in_calories(dataset: cgml.CGDataset) -> tuple[np.ndarray, np.ndarray]:
    return 10 * np.asarray(dataset.positions), np.asarray(dataset.forces) / 41.84


def assert_same_frames(one: cgml.CGDataset, other: cgml.CGDataset, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(one.positions, other.positions, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(one.forces, other.forces, rtol=rtol, atol=1e-3)


# ---------------------------------------------------------------- arrays


def test_units_are_converted(known) -> None:
    positions, forces = in_calories(known)
    box = 30 * np.eye(3)
    found = cgml.from_arrays(
        positions, known.topology, 300, forces=forces, bias_energy=np.ones(400), box=box,
        energy_unit="kcal/mol", weights=np.arange(400), **CALORIES,
    )  # fmt: skip
    assert_same_frames(found, known)
    assert found.positions.dtype == found.forces.dtype == found.box.dtype == np.float32
    np.testing.assert_allclose(found.bias_energy, 4.184)
    np.testing.assert_allclose(found.box, np.broadcast_to(3 * np.eye(3), (400, 3, 3)))
    assert ENERGY_UNITS["kcal/mol"] == 4.184


def test_quantities_carry_their_units(known) -> None:
    positions, forces = in_calories(known)
    found = cgml.from_arrays(
        positions * unit.angstrom,
        known.topology,
        300 * unit.kelvin,
        forces=forces * unit.kilocalorie_per_mole / unit.angstrom,
    )
    assert_same_frames(found, known)


BAD = {
    "no length unit": ({"length_unit": None}, "positions are plain numbers; give length_unit: on"),
    "no force unit": (
        {"force_unit": None},
        "forces are plain numbers; give force_unit: one of kJ",
    ),
    "no energy unit": (
        {"bias_energy": np.ones(400)},
        "bias_energy are plain numbers; give energy_unit: one of kJ/mol, kcal/mol",
    ),
    "unknown length": ({"length_unit": "bohr"}, "length unit 'bohr' is unknown; choose one of nm"),
    "unknown force": (
        {"force_unit": "eV/A"},
        "force unit 'eV/A' is unknown; choose one of kJ/mol",
    ),
    "angstrom as nm": (
        {"length_unit": "nm"},
        "positions: the median bond is 3.",
    ),
    "forces of fewer frames": (
        {"forces": np.zeros((399, 4, 3))},
        "forces have shape (399, 4, 3) but the dataset needs (400, 4, 3)",
    ),
    "positions of other beads": (
        {"positions": np.zeros((400, 5, 3))},
        "positions have shape (400, 5, 3) but the dataset needs (400, 4, 3)",
    ),
    "negative weights": (
        {"weights": -np.ones(400)},
        "weight of frame 0 is -1; weights are probabilities up to a factor",
    ),
    "text": ({"positions": "run.npy"}, "positions is 'run.npy'; give numbers in nanometer"),
    "temperature": ({"temperature": -1}, "temperature is -1; give a positive number in kelvin"),
    "trajectory": ({"trajectory": np.linspace(0, 1, 400)}, "trajectory numbers are not whole"),
    "quantity and unit": (
        {"positions": np.ones((400, 4, 3)) * unit.nanometer},
        "positions carry their own unit; leave length_unit out",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_named(case, known) -> None:
    changes, said = BAD[case]
    positions, forces = in_calories(known)
    arguments = {"positions": positions, "topology": known.topology, "temperature": 300,
                 "forces": forces, **CALORIES}  # fmt: skip
    with pytest.raises(cgml.InputError) as caught:
        cgml.from_arrays(**(arguments | changes))
    assert str(caught.value).startswith(said)


def test_wrong_lengths_say_which_unit_would_fit(known) -> None:
    positions, _ = in_calories(known)
    with pytest.raises(cgml.InputError, match=r"the unit is wrong \(length unit angstrom\?\)"):
        cgml.from_arrays(positions, known.topology, 300, length_unit="nm")
    with pytest.raises(cgml.InputError, match=r"the unit is wrong \(length unit nm\?\)"):
        cgml.from_arrays(positions / 10, known.topology, 300, length_unit="angstrom")
    with pytest.raises(cgml.InputError, match=r"\(no unit of length fits\)"):
        cgml.from_arrays(100 * positions, known.topology, 300, length_unit="nm")
    taken = cgml.from_arrays(positions, known.topology, 300, length_unit="nm", check=False)
    np.testing.assert_allclose(taken.positions, positions, rtol=1e-6)


@pytest.mark.parametrize("unit_told", ["kJ/mol/nm", "kJ/mol/angstrom", "kcal/mol/nm"])
def test_wrong_force_units_are_doubted(unit_told, known) -> None:
    """The forces are in kcal/mol/angstrom."""
    positions, forces = in_calories(known)
    arguments = (positions, known.topology, 300)
    with pytest.warns(UserWarning, match="the virial of the forces is .* of what 300 K demands"):
        cgml.from_arrays(*arguments, forces=forces, length_unit="angstrom", force_unit=unit_told)


# ---------------------------------------------------------------- topologies


def test_bead_topologies(known, beads, tmp_path) -> None:
    top = cgml.bead_topology(beads, bonds="chain")
    assert top.bonds == ((0, 1), (1, 2), (2, 3))
    assert top.masses == pytest.approx((12.01,) * 4, abs=0.01)
    assert top.label(2) == "GLY3-CA" and top.bead_types == ("CA",) * 4
    pairs = [(0, 1), (3, 1), (2, 3)]
    given = cgml.bead_topology(beads, bonds=pairs, masses=72.0, types=[7, 7, 8, 9])
    assert given.bonds == ((0, 1), (1, 3), (2, 3)) and given.masses == (72.0,) * 4
    assert given.bead_types == ("7", "7", "8", "9")
    named = cgml.bead_topology(["BB", "SC"], bonds=[(0, 1)], masses=[72, 36])
    assert named.label(1) == "BEA1-SC" and named.masses == (72.0, 36.0)
    known.save(tmp_path / "known.h5")
    assert cgml.bead_topology(tmp_path / "known.h5") == known.topology
    assert cgml.bead_topology(known.topology) == known.topology


def test_beads_without_bonds_are_told(beads) -> None:
    with pytest.warns(UserWarning, match="beads without a bond: GLY3-CA; give bonds if they"):
        cgml.bead_topology(beads, bonds=[(0, 1), (1, 3)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "the 4 beads have no bonds (GLY1-CA, GLY2-CA, ...); give pairs (bonds), or bonds="),
        ({"bonds": "guess"}, "bonds are 'guess'; give pairs of bead numbers, or \"chain\""),
        ({"bonds": [(0, 4)]}, "bond 0-4 does not join two of the 4 beads"),
        ({"bonds": "chain", "masses": [1, 2]}, "masses have shape (2,); give one number or 4"),
        ({"bonds": "chain", "masses": 0}, "bead GLY1-CA has mass 0.0; give a positive mass"),
        ({"source": ["A", "B"]}, "bead names alone do not tell masses; give masses, Da"),
        ({"source": "gone.pdb"}, "topology gone.pdb does not exist; check the path"),
    ],
)
def test_bad_bead_topologies(arguments, said, beads) -> None:
    with pytest.raises(cgml.InputError) as caught:
        cgml.bead_topology(**({"source": beads} | arguments))
    assert str(caught.value).startswith(said)


def test_beads_that_are_no_elements_need_masses() -> None:
    top = make().topology.to_mdtraj()
    with pytest.raises(cgml.InputError, match="bead MOL1-A is no element, so its mass is unknown"):
        cgml.bead_topology(top)
    assert cgml.bead_topology(top, masses=10).masses == (10.0,) * 3


# ---------------------------------------------------------------- files


def test_npz_round_trip(tmp_path) -> None:
    dataset = make(trajectory=np.repeat([0, 4], 15), variables=np.ones((30, 1)),
                   variable_names=("phi",))  # fmt: skip
    cgml.to_npz(dataset, tmp_path / "data.npz")
    again = cgml.convert_files(tmp_path / "data.npz", "npz")
    assert_equal(again, dataset)
    np.testing.assert_array_equal(again.trajectory, dataset.trajectory)
    np.testing.assert_array_equal(again.variables, dataset.variables)
    assert again.variable_names == ("phi",)
    with pytest.raises(cgml.InputError, match="holds positions in nm, not angstrom; leave the"):
        cgml.convert_files(tmp_path / "data.npz", "npz", length_unit="angstrom")


def test_npz_of_others(known, beads, tmp_path) -> None:
    positions, forces = in_calories(known)
    np.savez(tmp_path / "run.npz", positions=positions, forces=forces, weights=np.ones(400))
    arguments = {"temperature": 300, "top": beads, "bonds": "chain", **CALORIES}
    found = cgml.convert_files(tmp_path / "run.npz", "npz", **arguments)
    assert_same_frames(found, known)
    assert set(found.sources) == {"run.npz"} and found.weights is not None
    for missing in ("temperature", "top", "bonds", "length_unit", "force_unit"):
        with pytest.raises(cgml.InputError, match="give"):
            cgml.convert_files(tmp_path / "run.npz", "npz", **(arguments | {missing: None}))


@pytest.mark.parametrize("kind", ["dcd", "xtc", "h5", "pdb"])
def test_mdtraj_files(kind, known, beads, tmp_path) -> None:
    path = tmp_path / f"run.{kind}"
    part = np.asarray(known.positions[:20])
    frames = mdtraj.Trajectory(part, mdtraj.load_topology(str(beads)))
    if kind == "h5":
        with h5py.File(path, "w") as handle:  # mdtraj itself needs PyTables
            handle["coordinates"] = 10 * part
            handle["coordinates"].attrs["units"] = "angstroms"
    else:
        frames.save(str(path))
    np.save(tmp_path / "forces.npy", known.forces[:20])
    arguments = {"temperature": 300, "top": beads, "bonds": "chain", "force_unit": "kJ/mol/nm",
                 "forces": tmp_path / "forces.npy"}  # fmt: skip
    found = cgml.convert_files(path, "mdtraj", **arguments)
    np.testing.assert_allclose(found.positions, part, atol=2e-3)
    np.testing.assert_allclose(found.forces, known.forces[:20], rtol=1e-6)
    assert set(found.sources) == {path.name, "forces.npy"}
    with pytest.raises(cgml.InputError, match="fixes its length unit; leave length_unit out"):
        cgml.convert_files(path, "mdtraj", **arguments, length_unit="angstrom")
    if kind in ("dcd", "xtc"):
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(cgml.InputError, match=f"run.{kind} is cut short"):
            cgml.convert_files(path, "mdtraj", **arguments)
        with pytest.raises(cgml.InputError, match="carries no topology; give one"):
            cgml.convert_files(path, "mdtraj", temperature=300)


def test_boxes_come_along(known, beads, tmp_path) -> None:
    frames = mdtraj.Trajectory(np.asarray(known.positions[:20]), mdtraj.load_topology(str(beads)))
    frames.unitcell_lengths, frames.unitcell_angles = np.full((20, 3), 4.0), np.full((20, 3), 90.0)
    frames.save(str(tmp_path / "run.dcd"))
    found = cgml.convert_files(
        tmp_path / "run.dcd", "mdtraj", temperature=300, top=beads, bonds="chain"
    )
    np.testing.assert_allclose(found.constant_box(), 4 * np.eye(3), atol=1e-5)


def test_cgnet_arrays(known, beads, tmp_path) -> None:
    positions, forces = in_calories(known)
    np.save(tmp_path / "x_coordinates.npy", positions)
    np.save(tmp_path / "x_forces.npy", forces)
    np.savez(tmp_path / "x.npz", coords=positions, Fs=forces)
    arguments = {"temperature": 300, "top": beads, "bonds": "chain", **CALORIES}
    for path, extra in (
        ("x_coordinates.npy", {"forces": tmp_path / "x_forces.npy"}),
        ("x.npz", {}),
    ):
        assert_same_frames(cgml.convert_files(tmp_path / path, "cgnet", **arguments, **extra),
                           known)  # fmt: skip
    several = cgml.convert_files([tmp_path / "x.npz", tmp_path / "x.npz"][:1], "cgnet",
                                 **arguments)  # fmt: skip
    assert several.trajectory is None


def test_several_files_are_trajectories(known, beads, tmp_path) -> None:
    for k in range(2):
        positions, forces = in_calories(known.select(slice(200 * k, 200 * (k + 1))))
        np.savez(tmp_path / f"{k}.npz", coordinates=positions, forces=forces)
    found = cgml.convert_files([tmp_path / "0.npz", tmp_path / "1.npz"], "cgnet",
                               temperature=300, top=beads, bonds="chain", **CALORIES)  # fmt: skip
    assert_same_frames(found, known)
    np.testing.assert_array_equal(found.trajectory, np.repeat([0, 1], 200))


def test_mlcg_arrays(known, beads, tmp_path) -> None:
    positions, forces = in_calories(known)
    np.save(tmp_path / "mol_cg_coords.npy", positions)
    np.save(tmp_path / "mol_cg_forces.npy", forces)
    np.save(tmp_path / "mol_cg_embeds.npy", np.array([7, 3, 3, 12]))
    shutil.copy(beads, tmp_path / "mol_cg_structure.pdb")
    found = cgml.convert_files(tmp_path / "mol_cg_coords.npy", "mlcg", temperature=300,
                               bonds="chain", **CALORIES)  # fmt: skip
    assert_same_frames(found, known)
    assert found.topology.bead_types == ("7", "3", "3", "12")
    assert found.topology.label(3) == "GLY4-CA"


@pytest.fixture
def metasets(known, tmp_path):
    positions, forces = in_calories(known)
    with h5py.File(tmp_path / "all.h5", "w") as handle:
        for name, stride in (("one", 1), ("two", 2)):
            group = handle.create_group(f"SET/{name}")
            group["cg_coords"], group["cg_forces"] = positions[::stride], forces[::stride]
            group["cg_delta_forces"] = 0 * forces[::stride]
            group.attrs["cg_embeds"] = np.array([7, 3, 3, 12])
            group.attrs["N_frames"] = len(positions[::stride])
    return tmp_path / "all.h5"


def test_mlcg_metasets(known, beads, metasets, tmp_path) -> None:
    arguments = {"temperature": 300, "bonds": "chain", **CALORIES}
    found = cgml.convert_files(metasets, "mlcg", top=beads, **arguments)
    assert {name: len(found[name]) for name in found} == {"one": 400, "two": 200}
    assert_same_frames(found["one"], known)
    assert found["two"].topology.bead_types == ("7", "3", "3", "12")
    found.save(tmp_path / "collection.h5")
    assert cgml.read_collection(tmp_path / "collection.h5").frames == 600
    each = cgml.convert_files(metasets, "mlcg", top={"one": beads, "two": beads}, **arguments)
    assert each.frames == 600
    with pytest.raises(cgml.InputError, match="SET/two carries no topology; give one for each"):
        cgml.convert_files(metasets, "mlcg", top={"one": beads}, **arguments)
    with h5py.File(metasets, "r+") as handle:
        del handle["SET/two/cg_forces"]
    with pytest.raises(cgml.InputError, match="SET/two has cg_delta_forces, from which a prior"):
        cgml.convert_files(metasets, "mlcg", top=beads, **arguments)


def test_bad_files_are_named(known, beads, tmp_path) -> None:
    positions, forces = in_calories(known)
    np.savez(tmp_path / "other.npz", xyz=positions)
    np.savez(tmp_path / "whole.npz", positions=positions, forces=forces)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:2000])
    np.save(tmp_path / "coords.npy", positions)
    np.save(tmp_path / "mol_cg_coords.npy", positions)
    np.save(tmp_path / "mol_cg_embeds.npy", np.arange(5))
    with h5py.File(tmp_path / "empty.h5", "w") as handle:
        handle["x"] = 1
    (tmp_path / "noise.h5").write_bytes(bytes(range(256)) * 20)
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object))
    arguments = {"temperature": 300, "top": beads, "bonds": "chain", **CALORIES}
    for name, kind, said in (
        ("gone.npz", "npz", "file .*gone.npz does not exist; check the path"),
        ("other.npz", "npz", r"has no array 'positions' \(it has xyz\); rename the array"),
        ("other.npz", "cgnet", r"has no array coordinates or coords or cg_coords \(it has xyz\)"),
        ("cut.npz", "npz", "cannot read .*cut.npz .* it is damaged, cut short or of another"),
        ("coords.npy", "npz", "coords.npy is no .npz file; give one, or choose another format"),
        ("coords.npy", "mlcg", "coords.npy is not named NAME_cg_coords.npy; give that file"),
        ("coords.npy", "mdtraj", 'is no mdtraj trajectory; choose the format "npz" or "cgnet"'),
        ("pickled.npy", "cgnet", "cannot read .*pickled.npy"),
        ("mol_cg_coords.npy", "mlcg", "5 embeddings of 4 beads; they must belong to the same"),
        ("empty.h5", "mlcg", "has no group METASET/MOLECULE with cg_coords"),
        ("noise.h5", "mlcg", "cannot read .*noise.h5"),
        ("whole.npz", "gro", "unknown format 'gro'"),
    ):
        changes = {"length_unit": None} if kind == "mdtraj" else {}
        with pytest.raises(cgml.InputError, match=said):
            cgml.convert_files(tmp_path / name, kind, **(arguments | changes))
    with pytest.raises(cgml.InputError, match="there is no file to convert"):
        cgml.convert_files([], "npz")
    with pytest.raises(cgml.InputError, match="forces and weights beside several files"):
        cgml.convert_files(["a.npz", "b.npz"], "npz", forces="f.npy")
    wrong = arguments | {"length_unit": "nm"}
    with pytest.raises(cgml.InputError, match="whole.npz: positions: the median bond is 3"):
        cgml.convert_files(tmp_path / "whole.npz", "npz", **wrong)


def test_every_format_has_a_reader() -> None:
    assert all(callable(FORMATS[name]) for name in FORMATS)


# ---------------------------------------------------------------- cgml data


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `cgml data` in this process; returns exit code, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cgml", "data", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed, said = capsys.readouterr()
        return int(stopped.value.code or 0), printed, said

    return run


@pytest.fixture
def workplace(known, beads, tmp_path, monkeypatch):
    """A folder with the files that docs/data.md names."""
    positions, forces = in_calories(known)
    known.save(tmp_path / "dataset.h5")
    known.select(slice(0, 250)).save(tmp_path / "one.h5")
    known.select(slice(250, None)).save(tmp_path / "other.h5")
    np.save(tmp_path / "mol_cg_coords.npy", positions)
    np.save(tmp_path / "mol_cg_forces.npy", forces)
    shutil.copy(beads, tmp_path / "mol_cg_structure.pdb")
    shutil.copy(beads, tmp_path / "beads.pdb")
    frames = mdtraj.Trajectory(np.asarray(known.positions), mdtraj.load_topology(str(beads)))
    frames.save(str(tmp_path / "run.xtc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_lines_of_the_page_run(command, workplace) -> None:
    page = Path(cgml.__file__).resolve().parent.parent / "docs" / "data.md"
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for b in blocks for line in re.sub(r"\\\n\s*", "", b).splitlines()]
    assert len(lines) == 9
    said = {}
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["cgml", "data"]
        code, printed, told = command(*words[2:])
        assert code == 0, told
        said[line] = printed + told
    first = said["cgml data info dataset.h5"]
    assert "frames       400 in one trajectory, 300 K" in first and "torsions, rad" in first
    sizes = {name: len(cgml.read_dataset(f"{name}.h5")) for name in (
        "train", "valid", "small", "whole", "one", "mol", "run")}  # fmt: skip
    assert sizes == {"train": 360, "valid": 40, "small": 40, "whole": 400, "one": 400,
                     "mol": 400, "run": 400}  # fmt: skip
    assert {n: len(d) for n, d in cgml.read_collection("both.h5").datasets.items()} == {
        "first": 400,
        "second": 150,
    }
    both = said["cgml data info both.h5"]
    assert "============ first" in both and "bead type  first  second" in both
    assert (
        "whole.h5: 400 frames of 4 beads, with forces, trajectory"
        in said["cgml data merge one.h5 other.h5 -o whole.h5"]
    )


def test_records_collections_and_export(command, workplace) -> None:
    record = json.loads(command("info", "dataset.h5", "--json")[1])
    assert record["frames"] == 400 and record["forces"]["virial"] == pytest.approx(1, abs=0.2)
    assert command("merge", "one.h5", "other.h5", *("--name", "a", "--name", "b"), "-o", "c.h5")[
        0
    ] == 0  # fmt: skip
    assert set(json.loads(command("info", "c.h5", "--json")[1])["molecules"]) == {"a", "b"}
    assert command("merge", "c.h5", "c.h5", "-o", "d.h5")[0] == 0
    assert len(cgml.read_collection("d.h5")["a"]) == 500
    assert command("subsample", "d.h5", "-o", "e.h5", "--count", 30)[0] == 0
    assert cgml.read_collection("e.h5").frames == 60
    assert command("split", "d.h5", "--train", "t.h5", "--valid", "v.h5")[0] == 0
    assert cgml.read_collection("v.h5").frames == 80
    assert command("export", "one.h5", "-o", "one.npz")[0] == 0
    assert command("convert", "one.npz", "-o", "again.h5", "--format", "npz")[0] == 0
    np.testing.assert_array_equal(cgml.read_dataset("again.h5").positions,
                                  cgml.read_dataset("one.h5").positions)  # fmt: skip


def test_bad_commands_are_one_line_and_leave_nothing(command, workplace, known) -> None:
    cgml.CGDataset(known.positions, known.topology, 310.0, known.forces).save("warm.h5")
    before = sorted(path.name for path in workplace.iterdir())
    convert = ("convert", "mol_cg_coords.npy", "-o", "x.h5", "--format", "mlcg", "--bonds",
               "chain", "--temperature", 300)  # fmt: skip
    for arguments, said in (
        (("info", "gone.h5"), "dataset gone.h5 does not exist; check the path"),
        (("merge", "one.h5", "warm.h5", "-o", "x.h5"), "one.h5 is at 300 K, warm.h5 at 310 K"),
        (("append", "one.h5", "warm.h5"), "one.h5 is at 300 K, warm.h5 at 310 K"),
        (("merge", "one.h5", "other.h5", "--name", "a", "-o", "x.h5"), "1 names for 2 files"),
        (
            ("merge", "one.h5", "other.h5", "--name", "a", "--name", "a", "-o", "x.h5"),
            "molecule name 'a' is given 2 times",
        ),
        (
            ("split", "one.h5", "--train", "a.h5", "--valid", "b.h5", "--by", "trajectory"),
            "the frames are of one trajectory",
        ),
        (("split", "one.h5", "--train", "a.h5", "--valid", "./a.h5"), "both parts would be"),
        (("subsample", "one.h5", "-o", "x.h5"), "subsample takes either count or stride"),
        (convert, "mol_cg_coords.npy: positions are plain numbers; give length_unit"),
        ((*convert, "--length-unit", "A", "--force-unit", "N"), "force unit 'N' is unknown"),
        ((*convert, "--length-unit", "nm", "--force-unit", "kJ/mol/nm"), "the unit is wrong"),
        ((*convert[:5], "abc"), "unknown format 'abc'"),
        ((*convert, "--length-unit", "A", "--masses", "a"), "masses 'a' is not 1 numbers"),
        (("export", "one.h5", "-o", "one.txt"), "one.txt does not end in .npz"),
    ):
        code, printed, told = command(*arguments)
        assert (code, printed) == (2, "") and told.startswith("error: ") and said in told, told
        assert len(told.splitlines()) == 1
    assert sorted(path.name for path in workplace.iterdir()) == before
