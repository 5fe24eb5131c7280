"""``cgml flow`` and ``cgml distill``: the road without forces, and one line for what is wrong."""

import json
import sys

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml.cli import main
from openmm_cgml.flow_file import read_flow_card


@pytest.fixture(scope="module")
def files(dataset, tmp_path_factory):
    """A dataset without forces, and a flow trained on it."""
    folder = tmp_path_factory.mktemp("flow")
    bare = cgml.CGDataset(
        dataset.positions, dataset.topology, dataset.temperature, weights=dataset.weights
    )
    bare.save(folder / "bare.h5")
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command; returns its exit code and what it says."""

    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cgml", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return run


def test_the_road_without_forces(files, call, caplog) -> None:
    small = ("--set", "width=8", "--set", "components=2", "--epochs", 1, "--batch-size", 100)
    code, said = call("flow", "train", files / "bare.h5", "-o", files / "a.flow", *small)
    assert code == 0 and "mean log-likelihood of the validation frames" in said
    card = read_flow_card(files / "a.flow")
    assert card["architecture"]["arguments"]["width"] == 8
    assert len(card["training"]["history"]) == 1
    code, said = call("flow", "sample", files / "a.flow", "-o", files / "s.h5", "--count", 300)
    samples = cgml.read_dataset(files / "s.h5")
    assert code == 0 and "300 samples of the flow" in said
    assert 100 < len(samples) <= 300 and samples.forces is not None
    assert samples.mapping["flow"]["kept"] == len(samples)
    expected = cgml.load_flow(files / "a.flow").sample_dataset(300)
    assert np.allclose(expected.positions, samples.positions, atol=1e-6)
    code, said = call(
        "distill", files / "a.flow", "-o", files / "m.pt", "--count", 400, "--epochs", 1,
        "--set", "width=8",
    )  # fmt: skip
    assert code == 0 and "samples effective" in said
    model = cgml.load_model(files / "m.pt")
    assert model.topology == samples.topology
    assert json.dumps(model.card["training"])
    run = cgml.Langevin(model, samples, copies=4, timestep=0.001, backend="python")
    run.run(files / "run.h5", steps=10, interval=0.002, progress=False)
    again = ("distill", files / "a.flow", "-o", files / "n.pt", "--count", 400, "--epochs", 1,
             "--set", "width=8", "--visited", files / "run.h5")  # fmt: skip
    caplog.set_level("INFO", "openmm_cgml")
    caplog.clear()
    assert call(*again)[0] == 0 and "20 frames from elsewhere" in caplog.text
    code, said = call(*again, files / "a.flow", "--name", "one", "--name", "two")
    assert code == 2 and "visited runs are for one flow" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("flow", "train", "{bare}", "--set", "wide=3"), "coupling has no setting 'wide'"),
        (("flow", "train", "{bare}", "--flow", "planar"), "unknown flow 'planar'"),
        (("flow", "train", "none.h5"), "none.h5"),
        (("flow", "sample", "{bare}"), "is no flow file, or damaged"),
        (("distill", "{bare}"), "is no flow file, or damaged"),
        (("distill", "{bare}", "--network", "cgnest"), "unknown PMF 'cgnest'"),
    ],
)
def test_one_line_and_nothing_written(files, tmp_path, call, arguments, complaint) -> None:
    filled = [str(a).format(bare=files / "bare.h5") for a in arguments]
    code, said = call(*filled, "-o", tmp_path / "out")
    assert code == 2 and complaint in said
    assert len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_several_flows_need_names(files, call, tmp_path) -> None:
    dataset = cgml.read_dataset(files / "bare.h5")
    cgml.save_flow(tmp_path / "a.flow", cgml.FLOWS["coupling"](dataset, width=4, components=2))
    two = (tmp_path / "a.flow", tmp_path / "a.flow")
    code, said = call("distill", *two, "-o", tmp_path / "m.pt", "--name", "one")
    assert code == 2 and "2 flows need as many different names" in said
    assert not (tmp_path / "m.pt").exists()
