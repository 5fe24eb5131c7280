"""``cgml train``: what it writes, what it says, and that a dry run does neither more nor less."""

import re
import sys
from pathlib import Path

import torch  # before openmm

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import cli
from openmm_cgml.ensemble import force_uncertainty
from openmm_cgml.training_plan import plan

SMALL = ("--width", 8, "--epochs", 2, "--batch-size", 50)


@pytest.fixture
def train(monkeypatch, capsys):
    """Run ``cgml train``; returns what it says."""

    def run(*arguments, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["cgml", "train", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed, said = capsys.readouterr()
        assert (stopped.value.code or 0) == code, said
        assert printed == ""
        return said

    return run


@pytest.fixture
def path(dataset, tmp_path, monkeypatch) -> Path:
    dataset.select(slice(1000, 1400)).save(tmp_path / "data.h5")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data.h5"


def test_every_option_reaches_the_training(train, path) -> None:
    said = train(
        *(path, "-o", "model.pt", *SMALL, "--depth", 2, "--learning-rate", 0.002, "--seed", 3),
        *("--loss", "denoising", "--noise", 0.003, "--schedule", "constant", "--clip", 0),
        *("--ema", 0.9, "--spectral-norm", 3, "--accumulate", 2, "--precision", "bf16-mixed"),
        *("--patience", 5),
    )
    card = cgml.load_model("model.pt").card
    assert card["architecture"]["arguments"]["terms"][-1]["arguments"]["width"] == 8
    expected = {
        "epochs": 2, "batch_size": 50, "learning_rate": 0.002, "seed": 3, "schedule": "constant",
        "gradient_clip": None, "ema": 0.9, "spectral_norm": 3.0, "accumulate": 2,
        "precision": "bf16-mixed", "patience": 5, "loss": "denoising",
    }  # fmt: skip
    assert {k: card["training"][k] for k in expected} == expected
    assert card["training"]["objective"]["sigma_nm"] == 0.003
    rmse = card["training"]["force_rmse"]
    assert f"model.pt: validation force RMSE {rmse:.1f} kJ/mol/nm" in said


def test_a_dry_run_says_what_the_run_does_and_writes_nothing(train, path, dataset) -> None:
    arguments = (path, *SMALL, "--depth", 2, "--ema", 0.99, "--accumulate", 2)
    said = train(*arguments, "--dry-run")
    assert [p.name for p in Path().iterdir()] == ["data.h5"]
    assert "data: 360 training and 40 validation frames of 5 beads, weights, worth" in said
    assert "(not used by this loss), in memory" in said
    assert "2 epochs of 7 batches of at most 50 frames: 8 steps of Adam" in said
    assert "gradients clipped at 1.0; weights averaged with decay 0.99; batches a step 2" in said
    train(*arguments, "-o", "model.pt", "--checkpoints", "ck")
    state = torch.load("ck/last.ckpt", weights_only=True)
    assert state["global_step"] == 8
    parameters = sum(p.numel() for p in cgml.load_model("model.pt").file.rebuild().parameters())
    assert f"{parameters:,} trainable parameters" in said
    assert re.search(r"time: [\d.]+ ms a batch, [\d.]+ s a validation on CPU, 1 threads", said)


def test_a_plan_leaves_the_pmf_alone_and_times_what_it_says(dataset) -> None:
    """The estimate is of the order of the real thing, which Lightning makes longer."""
    import time

    data, valid = dataset.select(slice(600)).split(0.8, blocks=2)
    pmf = cgml.SumPMF(cgml.fit_prior(data), cgml.PMFS["cgnet"](data))
    before = [p.detach().clone() for p in pmf.parameters()]
    settings = {"epochs": 10, "batch_size": 32}
    found = plan(pmf, data, valid, accelerator="cpu", **settings)
    assert all(torch.equal(p, q) for p, q in zip(before, pmf.parameters(), strict=True))
    assert (found.batches, found.steps) == (15, 150)
    expected = found.seconds_a_step * 150 + found.seconds_a_validation * 10
    assert found.seconds == pytest.approx(expected)
    assert found.molecules[0].effective is None or found.molecules[0].effective <= len(data)
    cgml.fit(pmf, data, valid, epochs=1, batch_size=32, accelerator="cpu")  # imports, caches
    started = time.perf_counter()
    cgml.fit(pmf, data, valid, accelerator="cpu", **settings)
    assert 0.2 < found.seconds / (time.perf_counter() - started) < 3


def test_from_a_file_in_blocks(train, path) -> None:
    said = train(path, "--stream", "-o", "model.pt", *SMALL, code=2)
    assert "--stream needs --valid" in said
    data = cgml.read_dataset(path)
    for name, part in zip(("t.h5", "v.h5"), data.split(0.9), strict=True):
        part.save(name)
    assert "read from the file in every epoch" in train(
        "t.h5", "--valid", "v.h5", "--stream", *SMALL, "--dry-run"
    )
    train("t.h5", "--valid", "v.h5", "--stream", "-o", "blocks.pt", *SMALL)
    train(path, "-o", "memory.pt", *SMALL)
    one, two = (cgml.load_model(n).card["training"] for n in ("blocks.pt", "memory.pt"))
    assert one["valid_frames"] == two["valid_frames"] == 40
    assert one["force_rmse"] == pytest.approx(two["force_rmse"], rel=0.05)


def test_an_ensemble_is_written_as_one_model(train, path) -> None:
    arguments = (path, "-o", "model.pt", *SMALL, "--ensemble", 2, "--bootstrap")
    assert "2 times, for an ensemble" in train(*arguments, "--dry-run")
    said = train(*arguments)
    assert "model.pt: validation force RMSE" in said
    model = cgml.load_model("model.pt")
    positions = cgml.read_dataset(path).positions[:10]
    assert (force_uncertainty(model, positions) > 0).all()
    assert np.isfinite(model.energy_and_forces(positions)[1]).all()
    assert len(model.card["training"]["members"]) == 2


def test_several_molecules(train, path) -> None:
    """A collection, with a network of bead types."""
    data = cgml.read_dataset(path)
    half = data.select(slice(None, None, 2))
    cgml.DatasetCollection({"one": data, "two": half}).save("both.h5")
    said = train("both.h5", "--network", "schnet", *SMALL, "--dry-run")
    assert "data: one, 360 training" in said and "data: two, 180 training" in said
    said = train("both.h5", "--network", "schnet", "-o", "model.pt", *SMALL)
    assert "model.pt, one: validation force RMSE" in said and "model.pt, two: " in said
    said = train("both.h5", "-o", "model.pt", *SMALL, code=2)
    assert said.startswith("error: cgnet knows one molecule only; for several choose schnet")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--loss", "relative_entropy"), "choose force_matching or denoising"),
        (("--loss", "denoising"), "denoising needs the width of the noise: --noise"),
        (("--noise", "0.1"), "add --loss denoising"),
        (("--loss", "denoising", "--noise", "0.1", "--weighted"), "counts by weights anyway"),
        (("--bootstrap",), "--bootstrap is for the members of an --ensemble"),
        (("--schedule", "linear"), "schedule 'linear' is unknown"),
        (("--precision", "16-mixed"), "precision '16-mixed' does not work"),
    ],
)
def test_options_that_make_no_sense(train, path, options, said) -> None:
    assert said in train(path, "-o", "model.pt", *SMALL, *options, code=2)
    assert not Path("model.pt").exists()


def test_an_output_is_needed(train, path) -> None:
    assert "Missing option '--output'" in train(path, code=2)
