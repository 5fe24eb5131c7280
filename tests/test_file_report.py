"""Pages about files: what a file is, the numbers of its page, what is refused; both commands."""

import json
import sys

import torch  # noqa: F401  (before openmm)

import mdtraj
import numpy as np
import pytest
from every_page import BOX, chain, walk, write_run
from handmade import Springs

import openmm_cgml as cgml
from openmm_cgml import cli, run_view
from openmm_cgml.file_report import recognise, write_file_report
from openmm_cgml.native_structure import read_native
from openmm_cgml.observables import NativeContacts, radius_of_gyration, rmsd
from openmm_cgml.run_view import RunChoices
from openmm_cgml.units import thermal_energy


def test_files_are_told_by_what_is_in_them(dataset, tmp_path) -> None:
    dataset.save(tmp_path / "a.run")
    assert recognise(tmp_path / "a.run") == "dataset"
    cgml.DatasetCollection({"x": dataset}).save(tmp_path / "b")
    assert recognise(tmp_path / "b") == "collection"
    cgml.save_model(tmp_path / "c.flow", Springs(), dataset)
    assert recognise(tmp_path / "c.flow") == "model"
    cgml.save_flow(tmp_path / "d.pt", cgml.FLOWS["coupling"](dataset, width=8, components=2))
    assert recognise(tmp_path / "d.pt") == "flow"
    write_run(tmp_path / "e.h5", chain(5), walk(3, 2, 5))
    assert recognise(tmp_path / "e.h5") == "run"
    write_run(tmp_path / "f.h5", chain(5), walk(3, 2, 5), finished=False)
    assert not (tmp_path / "f.h5").exists() and recognise(tmp_path / "f.h5") == "run"


def test_what_is_no_file_of_ours(tmp_path) -> None:
    import h5py

    (tmp_path / "text").write_text("x")
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 20)
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with h5py.File(tmp_path / "other.h5", "w") as handle:
        handle.attrs["kind"] = "bank"
    for name, problem in (
        ("text", "no file of this package.*give a run, dataset, collection, model, flow or"),
        ("a.npz", "no file of this package"),
        ("cut.h5", "damaged or cut short"),
        ("other.h5", "is a bank, of which there is no page"),
        ("none", "does not exist"),
    ):
        with pytest.raises(cgml.InputError, match=problem):
            write_file_report(tmp_path / name, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_numbers_of_a_run(tmp_path) -> None:
    topology, positions = chain(12), walk(100, 4, 12)
    write_run(tmp_path / "run.h5", topology, positions, sick={(60, 1), (61, 3)})
    native = walk(1, 1, 12, seed=5)[0, 0]
    found = write_file_report(
        tmp_path / "run.h5", tmp_path / "page.html",
        RunChoices(discard_ps=2.0, native=native, native_name="x.pdb", tica_lag_ps=0.4),
    )  # fmt: skip
    json.dumps(found, allow_nan=False)
    run = cgml.read_run(tmp_path / "run.h5").after(2.0)
    well = ~run.sick
    flat = run.positions[well]
    assert (found["frames"], found["copies"], found["finished"]) == (100, 4, True)
    assert found["resets"] == 2 and found["rmsd_to"] == "x.pdb"
    assert found["radius_of_gyration_nm"] == pytest.approx(radius_of_gyration(flat).mean())
    assert found["rmsd_nm"] == pytest.approx(rmsd(flat, native).mean())
    assert found["native_contacts"] == pytest.approx(
        NativeContacts.of(native).fraction(flat).mean()
    )
    assert found["potential_energy_kj_mol"] == pytest.approx(run.energy[well].mean())
    kinetic = 2 * run.kinetic_energy[well].mean() / 36 * 300 / thermal_energy(300)
    assert found["kinetic_temperature_K"] == pytest.approx(kinetic, rel=1e-5)
    assert found["extrapolating"] == pytest.approx(run.extrapolating[well].mean())
    assert found["tica_lag_ps"] == 0.4 and found["implied_timescales_ps_cg_time"]["values"]
    # An Ornstein-Uhlenbeck walk that forgets in -0.1 / ln 0.9 = 0.95 ps; torsions mix faster.
    slow = found["implied_timescales_ps_cg_time"]
    assert slow["lags_ps"][0] == pytest.approx(0.1) and 0.1 < slow["values"][0][0] < 1.5
    page = (tmp_path / "page.html").read_text()
    assert "The first 2 ps of each copy are left out" in page and "below the diagonal" in page
    assert "2 times a copy was no longer finite" in page


def test_a_run_in_a_box(tmp_path) -> None:
    """Molecules that the box cuts are as large as whole ones."""
    positions = walk(30, 3, 5)
    box = np.array(BOX)
    cut = positions + np.random.default_rng(0).integers(-1, 2, (30, 3, 5, 3)) @ box
    for name, xyz, info in (("whole", positions, {}), ("cut", cut, {"box_vectors_nm": BOX})):
        write_run(tmp_path / f"{name}.h5", chain(5), xyz, **info)
    found = [
        write_file_report(tmp_path / f"{n}.h5", tmp_path / "p.html") for n in ("whole", "cut")
    ]
    for key in ("radius_of_gyration_nm", "rmsd_nm"):
        assert found[1][key] == pytest.approx(found[0][key], rel=1e-4)
    assert "rdf" not in found[1]  # one molecule


def test_frames_that_are_not_finite_do_not_count(tmp_path) -> None:
    positions = walk(60, 3, 12)
    whole = write_run(tmp_path / "a.h5", chain(12), positions, sick={(0, 0), (30, 2)})
    broken = positions.copy()
    broken[0, 0], broken[30, 2] = np.nan, np.inf
    write_run(tmp_path / "b.h5", chain(12), broken, sick={(0, 0), (30, 2)})
    one, other = (write_file_report(tmp_path / n, tmp_path / "p.html") for n in (whole, "b.h5"))
    assert one == other and np.isfinite(one["rmsd_nm"])
    sick = {(t, c) for t in range(5) for c in range(2)}
    write_run(tmp_path / "c.h5", chain(12), walk(5, 2, 12), sick=sick)
    with pytest.raises(cgml.InputError, match="all frames are of sick copies"):
        write_file_report(tmp_path / "c.h5", tmp_path / "p.html")


def test_long_runs_are_thinned_and_the_page_says_so(tmp_path, monkeypatch) -> None:
    write_run(tmp_path / "run.h5", chain(12), walk(400, 2, 12))
    monkeypatch.setattr(run_view, "_SERIES", 400 * 2 * 12 // 4)
    found = write_file_report(tmp_path / "run.h5", tmp_path / "page.html")
    assert found["every_so_many_frames"] == 4 and found["frames"] == 400
    assert "takes every 4th frame of the run" in (tmp_path / "page.html").read_text()


def test_a_run_without_frames_and_choices_that_do_not_fit(dataset, tmp_path) -> None:
    write_run(tmp_path / "none.h5", chain(5), walk(0, 2, 5), finished=False)
    write_run(tmp_path / "two.h5", chain(2, 3), walk(9, 2, 6))
    write_run(tmp_path / "short.h5", chain(5), walk(9, 2, 5))
    write_run(tmp_path / "swapped.h5", chain(5), walk(30, 4, 5), ladders=2,
              temperatures_K=[300.0, 350.0])  # fmt: skip
    dataset.save(tmp_path / "data.h5")
    for name, choices, problem in (
        ("none", RunChoices(), "no frames yet"),
        ("two", RunChoices(native=np.zeros((6, 3))), "of one molecule, and the run has 3"),
        ("short", RunChoices(rdf=True), "needs a periodic box, and the run has none"),
        ("short", RunChoices(tica_lag_ps=50.0), "take a shorter lag"),
        ("short", RunChoices(discard_ps=50.0), "nothing is left after 50"),
        ("short", RunChoices(temperature=400.0), "no rung is at 400 K"),
        ("swapped", RunChoices(tica_lag_ps=0.2), "no time series of a molecule"),
        ("data", RunChoices(), "is a dataset; these choices are for a run"),
    ):
        with pytest.raises(cgml.InputError, match=problem):
            write_file_report(tmp_path / f"{name}.h5", tmp_path / "page.html", choices)


def test_numbers_of_a_dataset_and_a_model(dataset, model, tmp_path) -> None:
    dataset.save(tmp_path / "data.h5")
    found = write_file_report(tmp_path / "data.h5", tmp_path / "page.html")
    assert found["kind"] == "dataset" and found["frames"] == len(dataset)
    assert found["forces"]["rms"] == pytest.approx(float(np.sqrt((dataset.forces**2).mean())))
    json.dumps(found, allow_nan=False)
    (tmp_path / "m.pt").write_bytes(model.file.archive)
    found = write_file_report(tmp_path / "m.pt", tmp_path / "page.html")
    assert found["force_rmse"] == model.card["training"]["force_rmse"]
    assert found["terms"][-1] == "CGNet" and "HarmonicBonds" in found["terms"]
    page = (tmp_path / "page.html").read_text()
    assert "noise that no model removes" in page and "HarmonicBonds" in page


def test_a_native_structure(dataset, data, tmp_path) -> None:
    topology = dataset.topology
    frame = dataset.positions[7]
    dataset.select([7]).save(tmp_path / "one.h5")
    np.testing.assert_allclose(read_native(tmp_path / "one.h5", topology), frame, atol=1e-6)
    mdtraj.Trajectory(frame, topology.to_mdtraj()).save_pdb(str(tmp_path / "beads.pdb"))
    np.testing.assert_allclose(read_native(tmp_path / "beads.pdb", topology), frame, atol=2e-4)
    atoms = mdtraj.load(str(data / "topology.pdb"))
    found = read_native(data / "topology.pdb", topology)
    labels = [f"{a.residue.name}{a.residue.resSeq}-{a.name}" for a in atoms.topology.atoms]
    expected = [atoms.xyz[0][labels.index(topology.label(k))] for k in range(5)]
    np.testing.assert_allclose(found, expected)


def test_native_structures_that_do_not_fit(dataset, data, tmp_path) -> None:
    with pytest.raises(cgml.InputError, match="beads cannot be told from the atoms"):
        read_native(data / "topology.pdb", chain(12))
    (tmp_path / "x.pdb").write_text("nothing\n")
    with pytest.raises(cgml.InputError, match="no structure that mdtraj reads"):
        read_native(tmp_path / "x.pdb", dataset.topology)
    dataset.save(tmp_path / "d.h5")
    with pytest.raises(cgml.InputError, match="beads"):
        read_native(tmp_path / "d.h5", chain(12))


def call(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["cgml", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stopped:
        code = stopped.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def test_commands(tmp_path, monkeypatch, capsys) -> None:
    write_run(tmp_path / "run.h5", chain(12), walk(60, 3, 12))
    native = walk(1, 1, 12, seed=5)[0]
    mdtraj.Trajectory(native, chain(12).to_mdtraj()).save_pdb(str(tmp_path / "n.pdb"))
    page = tmp_path / "page.html"
    code, out, _ = call(
        monkeypatch, capsys, "analyze", tmp_path / "run.h5", "--native", tmp_path / "n.pdb",
        "--discard", 1, "--tica", 0.3, "-o", page,
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0 and found["discard_ps"] == 1.0 and found["rmsd_to"] == "n.pdb"
    assert "<h1>Run run.h5</h1>" in page.read_text()
    code, out, _ = call(monkeypatch, capsys, "report", tmp_path / "run.h5", "-o", page, "--json")
    assert code == 0 and json.loads(out)["kind"] == "run"
    assert "copy&#x27;s first frame" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("analyze", "run.h5", "--reference", "a.npz"), "needs --reference and --dihedral twice"),
        (("analyze", "run.h5", "--dihedral", "0,1,2,3"), "needs --reference and --dihedral twice"),
        (("analyze", "run.h5", "--model", "a.pt"), "--model is for a comparison"),
        (
            ("analyze", "run.h5", "--reference", "a.npz", "--dihedral", "0,1,2,3", "--rdf"),
            "leave out --reference",
        ),
        (("analyze", "data.h5"), "is a dataset, not a run; `cgml report"),
        (("analyze", "run.h5", "--native", "none.pdb"), "none.pdb does not exist"),
    ],
)
def test_commands_refuse(arguments, problem, dataset, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run.h5", chain(5), walk(4, 2, 5))
    dataset.save(tmp_path / "data.h5")
    (tmp_path / "a.npz").write_bytes(b"x")
    (tmp_path / "a.pt").write_bytes(b"x")
    code, _, said = call(monkeypatch, capsys, *arguments, "-o", tmp_path / "page.html")
    assert code == 2 and problem in said
    assert not (tmp_path / "page.html").exists()
