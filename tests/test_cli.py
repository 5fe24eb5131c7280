"""The `cgml` command: the whole road in files, step by step, and what each step says."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import torch  # before openmm

import numpy as np
import pytest
import typer

import openmm_cgml as cgml
from openmm_cgml import cli
from openmm_cgml.force import BACKENDS, backend_problem
from openmm_cgml.native.force import device_for
from openmm_cgml.native.package import find_package

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = sorted(typer.main.get_command(cli.app).commands)


@pytest.fixture
def cgml_command(monkeypatch, capsys):
    """Run `cgml` in this process; returns stdout and stderr of a run that went well."""

    def run(*arguments, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["cgml", *map(str, arguments)])
        level = logging.getLogger("openmm_cgml").level
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as stopped:
                cli.main()
        finally:
            logging.getLogger("openmm_cgml").setLevel(level)
        printed, said = capsys.readouterr()
        assert (stopped.value.code or 0) == code, said
        return printed, said

    return run


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory) -> Path:
    """A folder with 400 all-atom frames in a user's formats; the steps below add to it."""
    folder = tmp_path_factory.mktemp("road")
    with np.load(data / "trajectory.npz") as run:
        arrays = {name: run[name][-8000::20] for name in run.files}
    np.savez(folder / "run.npz", positions=arrays["positions"] * 10.0)
    np.save(folder / "forces.npy", arrays["forces"] / 41.84)
    np.save(folder / "weights.npy", arrays["weights"])
    np.save(folder / "bias.npy", arrays["bias_energy"])
    return folder


def test_the_road(cgml_command, folder, data, dataset) -> None:
    """Each step reads what the one before it wrote; results equal those of the Python calls."""
    # map
    printed, said = cgml_command(
        *("map", folder / "run.npz", "--top", data / "topology.pdb", "--temperature", 300),
        *("--forces", folder / "forces.npy", "--weights", folder / "weights.npy"),
        *("--bias-energy", folder / "bias.npy", "--bias", "metadynamics on (phi, psi)"),
        *("--length-unit", "angstrom", "--force-unit", "kcal/mol/angstrom"),
        *("--system", data / "system.xml", "-o", folder / "data.h5"),
    )
    mapped = cgml.read_dataset(folder / "data.h5")
    rms = float((mapped.forces.astype(float) ** 2).mean() ** 0.5)
    compared = mapped.mapping["force_map"]["compared"]
    assert printed == ""
    assert said.splitlines() == [
        f"{folder / 'data.h5'}: 400 frames of 5 beads",
        "beads: ACE1-C ALA2-N ALA2-CA ALA2-C NME3-N",
        f"rotation force map, 6 constrained groups, force RMS {rms:.0f} kJ/mol/nm per component",
        "RMS that each map leaves, of the same mean force: "
        + ", ".join(f"{name} {square**0.5:.0f}" for name, square in compared.items()),
    ]
    assert list(compared) == ["basic", "optimal", "rotation"]
    trajectory = cgml.read_trajectory(
        folder / "run.npz",
        top=data / "topology.pdb",
        forces=folder / "forces.npy",
        weights=folder / "weights.npy",
        bias_energy=folder / "bias.npy",
        length_unit="angstrom",
        force_unit="kcal/mol/angstrom",
    )
    mapping = cgml.MAPPINGS["backbone"](trajectory.topology)
    expected = cgml.map_trajectory(
        trajectory, mapping, temperature=300, constraints=data / "system.xml"
    )
    assert expected.topology == mapped.topology == dataset.topology
    assert mapped.bias == "metadynamics on (phi, psi)"
    for name in ("positions", "forces", "weights", "bias_energy"):
        np.testing.assert_array_equal(getattr(mapped, name), getattr(expected, name))
    assert set(mapped.sources) == {"run.npz", "forces.npy", "weights.npy", "bias.npy"}

    # train
    arguments = ("train", folder / "data.h5", "--epochs", 1, "--width", 16, "--depth", 2)
    printed, said = cgml_command(
        *arguments, "--batch-size", 40, "--seed", 3, "-o", folder / "model.pt"
    )
    model = cgml.load_model(folder / "model.pt")
    training = model.card["training"]
    assert printed == "" and said.splitlines()[-1] == (
        f"{folder / 'model.pt'}: validation force RMSE {training['force_rmse']:.1f} kJ/mol/nm, "
        f"of which about {training['force_noise_floor']:.1f} is noise that no model can remove; "
        f"model error about {training['force_model_error']:.1f}"
    )
    assert (training["epochs"], training["seed"], training["batch_size"]) == (1, 3, 40)
    assert (training["train_frames"], training["valid_frames"]) == (360, 40)
    assert model.temperature == 300.0 and model.topology == mapped.topology
    assert [t["arguments"].get("width") for t in terms(model)] == [None, None, None, 16]
    cgml_command(*arguments, "--batch-size", 40, "--seed", 3, "-o", folder / "again.pt")
    again = cgml.load_model(folder / "again.pt")
    positions = mapped.positions[:3]
    np.testing.assert_array_equal(
        model.energy_and_forces(positions)[1], again.energy_and_forces(positions)[1]
    )

    # simulate
    printed, said = cgml_command(
        *("simulate", folder / "model.pt", "--start", folder / "data.h5", "--ns", 0.004),
        *("--copies", 3, "--interval", 0.1, "--timestep", 0.001, "--friction", 2),
        *("--seed", 5, "--platform", "Reference", "-o", folder / "sim.h5"),
    )
    run = cgml.read_run(folder / "sim.h5")
    assert printed == ""
    assert f"{folder / 'sim.h5'}: 40 frames of 3 copies, " in said
    assert run.positions.shape == (40, 3, 5, 3) and np.isfinite(run.positions).all()
    np.testing.assert_allclose(run.time, 0.1 * np.arange(1, 41), atol=1e-9)
    settings = {
        "temperatures_K": [300.0], "timestep_ps": 0.001, "friction_per_ps": 2.0, "copies": 3,
        "steps_per_frame": 100, "seed": 5, "platform": "Reference", "model": "model.pt",
    }  # fmt: skip
    assert {k: run.info[k] for k in settings} == settings
    np.testing.assert_allclose(
        run.positions[0], mapped.draw(3, seed=5), atol=0.15
    )  # started from frames of the dataset, 0.1 ps ago

    # analyze: against a reference histogram, and against the dataset itself
    for reference, extra in (
        (data / "reference.npz", ("--model", folder / "model.pt")),
        (folder / "data.h5", ("--discard", 1.0, "--state", "-3,0")),
    ):
        printed, said = cgml_command(
            *("analyze", folder / "sim.h5", "--reference", reference),
            *("--dihedral", "0,1,2,3", "--dihedral", "1,2,3,4", "-o", folder / "report.html"),
            *extra,
        )
        numbers = json.loads(printed)
        assert set(numbers) == {
            "js", "js_excess", "js_excess_error", "js_reference_error", "delta_f_kj_mol",
            "free_energy_rmse_kj_mol", "coverage", "output", "provenance",
        }  # fmt: skip
        assert 0 < numbers["js"] < np.log(2) and 0 < numbers["coverage"] <= 1
        page = (folder / "report.html").read_text()
        assert f"sim.h5 against {reference.name}" in page
        assert "ACE1-C-ALA2-N-ALA2-CA-ALA2-C" in page


def test_remd(cgml_command, dataset, model, tmp_path) -> None:
    """Temperatures given, counted or found; stopped by the clock; gone on with; compared."""
    dataset.save(tmp_path / "data.h5")
    (tmp_path / "model.pt").write_bytes(model.file.archive)
    common = ("remd", tmp_path / "model.pt", "--start", tmp_path / "data.h5", "--timestep", 0.004)
    output = tmp_path / "run.h5"
    given = (
        *(*common, "--copies", 3, "--temperatures", "300,360", "--interval", 0.2, "--seed", 2),
        *("--ns", 0.008, "-o", output),
    )
    cgml_command(*given)
    run = cgml.read_run(output)
    assert run.finished and run.positions.shape == (40, 6, 5, 3)
    assert run.info["temperatures_K"] == [300.0, 360.0] and run.info["ladders"] == 3
    _, said = cgml_command(*given)
    assert "complete" in said or "40 frames" in said
    printed, _ = cgml_command(
        *("analyze", output, "--reference", tmp_path / "data.h5", "-o", tmp_path / "page.html"),
        *("--dihedral", "0,1,2,3", "--dihedral", "1,2,3,4"),
    )
    assert 0 < json.loads(printed)["js"] < np.log(2)

    stopped = (
        *(*common, "--highest", 500, "--rungs", 3, "--copies", 2, "--exchange", "gibbs"),
        *("--ns", 0.02, "-o", tmp_path / "other.h5"),
    )
    cgml_command(*stopped, "--seconds", 0.01)
    assert not cgml.read_run(tmp_path / "other.h5").finished
    _, said = cgml_command(*stopped)
    run = cgml.read_run(tmp_path / "other.h5")
    assert run.finished and len(run) == 40 and run.info["exchange"] == "gibbs"
    assert np.allclose(run.temperatures, [300, 387.298, 500], atol=0.01)
    assert "round trips" in said and "effective samples" in said

    _, said = cgml_command(
        *(*common, "--highest", 600, "--acceptance", 0.6, "--copies", 1, "--ns", 0.002),
        *("-o", tmp_path / "found.h5"),
    )
    assert re.search(r"temperatures: 300\.0 .* 600\.0 K", said)
    # Its proposal is kept when it goes on.
    cgml_command(
        *(*common, "--highest", 600, "--acceptance", 0.6, "--copies", 1, "--ns", 0.003),
        *("-o", tmp_path / "found.h5"),
    )
    assert len(cgml.read_run(tmp_path / "found.h5")) == 6


def test_benchmark(cgml_command, dataset, model, tmp_path) -> None:
    dataset.save(tmp_path / "data.h5")
    (tmp_path / "model.pt").write_bytes(model.file.archive)
    printed, said = cgml_command(
        *("benchmark", tmp_path / "model.pt", "--start", tmp_path / "data.h5", "--seconds", 3),
        *("--platform", "Reference"),
    )
    record = json.loads(printed)
    assert record["best"]["replica_steps_per_second"] > 0
    assert "replica-steps/s" in said
    working = [b for b in BACKENDS if backend_problem(b) is None]
    assert list(record["backends"]) == working
    table = said.partition("by backend:\n")[2].splitlines()
    assert [line.split()[0] for line in table] == working


def test_compile(cgml_command, model, tmp_path, monkeypatch) -> None:
    (tmp_path / "model.pt").write_bytes(model.file.archive)
    printed, said = cgml_command("compile", tmp_path / "model.pt", "--copies", 7)
    package = find_package(model.file.archive, 100, False, device_for("Reference"))
    assert package is not None and printed == f"{package.path}\n" and package.path.exists()
    assert "package of model.pt for any number of copies" in said
    cgml_command("compile", tmp_path / "gone.pt", code=2)

    def refuse(*_):
        raise cgml.InputError("model model.pt cannot be compiled: an operator is unknown")

    monkeypatch.setattr("openmm_cgml.native.package.compile_package", refuse)
    printed, said = cgml_command("compile", tmp_path / "model.pt", code=1)
    assert printed == "" and len(said.splitlines()) == 1
    assert said.startswith("error: model model.pt cannot be compiled: an operator is unknown;")


def terms(model) -> list[dict]:
    return model.card["architecture"]["arguments"]["terms"]


def test_selections(cgml_command, folder, data) -> None:
    """Once: every atom a bead; several times: one bead each; with --com: centres of mass."""
    start = ("map", folder / "run.npz", "--top", data / "topology.pdb", "--temperature", 300)
    end = ("--length-unit", "angstrom", "-o", folder / "selected.h5")
    masses = []
    for select in (
        ("--select", "element C"),
        ("--select", "name CA", "--select", "name CB"),
        ("--com", "--select", "resSeq 1", "--select", "resSeq 2"),
    ):
        _, said = cgml_command(*start, *select, *end)
        assert said.splitlines()[-1] == (
            "no forces in the data: force matching needs some (--forces)"
        )
        masses.append(cgml.read_dataset(folder / "selected.h5").topology.masses)
    assert [len(m) for m in masses] == [6, 2, 2]
    assert masses[1] == pytest.approx((12.011, 12.011), abs=1e-3)
    assert masses[2] == pytest.approx((43.04, 71.08), abs=0.01)


def test_several_files_are_one_trajectory(cgml_command, folder, data) -> None:
    _, said = cgml_command(
        *("map", folder / "run.npz", folder / "run.npz", "--top", data / "topology.pdb"),
        *("--temperature", 300, "--length-unit", "angstrom", "-o", folder / "twice.h5"),
    )
    assert said.startswith(f"{folder / 'twice.h5'}: 800 frames of 5 beads")


def test_checkpoints_belong_to_one_training(cgml_command, dataset, tmp_path, monkeypatch) -> None:
    """The same command goes on where it was; another one is refused; Ctrl-C is no error."""
    dataset.select(slice(1000, 1400)).save(tmp_path / "data.h5")
    arguments = ("train", tmp_path / "data.h5", "--width", 4, "--checkpoints", tmp_path / "ck")
    cgml_command(*arguments, "--epochs", 1, "-o", tmp_path / "one.pt")
    first = (tmp_path / "ck" / "last.ckpt").stat().st_mtime_ns
    cgml_command(*arguments, "--epochs", 1, "-o", tmp_path / "two.pt")
    assert (tmp_path / "ck" / "last.ckpt").stat().st_mtime_ns == first  # nothing was left to do
    one, two = (cgml.load_model(tmp_path / f"{n}.pt") for n in ("one", "two"))
    forces = [m.energy_and_forces(dataset.positions[:2])[1] for m in (one, two)]
    np.testing.assert_array_equal(*forces)
    _, said = cgml_command(*arguments, "--epochs", 3, "-o", tmp_path / "three.pt", code=2)
    assert said.startswith(f"error: {tmp_path / 'ck'} holds checkpoints of another training")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("openmm_cgml.train.fit", stop)
    _, said = cgml_command(*arguments, "-o", tmp_path / "four.pt", code=130)
    assert "Traceback" not in said
    assert {p.name for p in tmp_path.iterdir()} == {
        *("data.h5", "ck", "one.pt", "one.pt.run.toml", "two.pt", "two.pt.run.toml"),
    }


def test_doctor(cgml_command) -> None:
    printed, said = cgml_command("doctor")
    lines = {tuple(line.split(maxsplit=1)) for line in printed.splitlines()}
    versions = dict(line for line in lines if line[0] not in ("ok", "warning", "failure"))
    assert versions["openmm_cgml"] in (cgml.__version__, "not installed")
    assert versions["torch"] == torch.__version__.split("+")[0]
    assert versions["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert {"openmm", "openmmtorch", "mdtraj", "ParmEd", "numpy", "h5py"} <= set(versions)
    findings = {line[1].split(": ")[0]: line[0] for line in lines if line[0] not in versions}
    assert findings["TorchForce"] == "ok"
    assert findings["native force"] == findings["cache"] == findings["platforms"] == "ok"
    for backend in ("torchforce", "native", "python"):
        for platform in ("Reference", "CPU"):
            assert findings[f"{backend} on {platform}"] == "ok"
    assert "failure" not in findings.values()
    assert "relative error of energy" in printed


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(cgml_command, command) -> None:
    printed, said = cgml_command(*([command] if command else []), "--help")
    assert said == "" and "Usage: " in printed
    plain = " ".join(printed.replace("│", " ").split())
    if command is None:
        assert all(name in plain for name in COMMANDS)
    if command == "map":
        assert f"One of: {', '.join(cgml.MAPPINGS)}." in plain
    if command in ("simulate", "remd", "benchmark", "quickstart"):
        assert all(name in plain for name in (*BACKENDS, "fastest"))
    if command == "train":
        assert f"One of: {', '.join(cgml.PMFS)}." in plain


def test_no_arguments_show_the_commands(cgml_command) -> None:
    printed, said = cgml_command(code=2)
    assert all(name in printed + said for name in COMMANDS)


def test_as_a_program(tmp_path) -> None:
    """Exit code, one line, no traceback: what a shell script sees."""
    # An absolute home, so that no file of the user's is found; the checkout is on the path.
    done = subprocess.run(
        [sys.executable, "-m", "openmm_cgml.cli", "map", "gone.dcd", "--temperature", "300",
         "-o", "out.h5"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: trajectory gone.dcd does not exist; check the path\n"
    assert list(tmp_path.iterdir()) == []
