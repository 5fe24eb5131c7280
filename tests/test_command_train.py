"""``cgml train``: what it writes, what it says, and that a dry run does neither more nor less."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch  # before openmm

import numpy as np
import pytest

import openmm_cgml as cgml
from openmm_cgml import cli
from openmm_cgml.command_prior import _KINDS, PriorChoice, _settings_of, network_settings
from openmm_cgml.ensemble import force_uncertainty
from openmm_cgml.pmf.prior import Charges, read_prior_table
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


def terms_of(path: str) -> dict[str, dict]:
    """The terms of a model, and of sums in it, by class: their arguments."""
    terms = cgml.load_model(path).card["architecture"]["arguments"]["terms"]
    return {term["class"].partition(":")[2]: term["arguments"] for term in terms}


def test_a_network_is_set_by_name(train, path) -> None:
    said = ("--set", "cutoff=1", "--set", "basis=6", "--set", "filters=4", "--set", "width=8")
    train(path, "-o", "a.pt", *SMALL[2:], "--network", "schnet", *said, "--depth", 1)
    found = terms_of("a.pt")["SchNet"]
    expected = {"cutoff": 1.0, "basis": 6, "filters": 4, "width": 8, "blocks": 1}
    assert {name: found[name] for name in expected} == expected
    # Without any, the network's own.
    assert network_settings("painn", None, None, ["chiral=false"]) == {"chiral": False}


def test_a_prior_is_fitted_as_in_python(train, path) -> None:
    data = cgml.read_dataset(path).split(0.9)[0]
    kinds = sorted(set(data.topology.bead_types))
    asked = ("--prior", "bonds, torsions", "--prior-orders", 2, "--charge", f"{kinds[0]}=-0.5")
    asked = (*asked, "--permittivity", 10, "--screening", 0.5)
    train(path, "-o", "term.pt", *SMALL, *asked)
    charges = Charges({**dict.fromkeys(kinds, 0.0), kinds[0]: -0.5}, 10.0, 0.5)
    expected = cgml.fit_prior(data, ["bonds", "torsions"], orders=2, charges=charges)
    found = terms_of("term.pt")
    assert list(found)[:-1] == [type(term).__name__ for term in expected.terms]
    assert [found[type(term).__name__] for term in expected.terms] == [
        term.arguments() for term in expected.terms
    ]
    train(path, "-o", "type.pt", *SMALL, *asked, "--prior-by", "type")
    table = cgml.fit_prior_table(data, ["bonds", "torsions"], orders=2, charges=charges)
    assert terms_of("type.pt")["TypedPrior"]["table"] == json.loads(json.dumps(table.to_dict()))
    train(path, "-o", "none.pt", *SMALL, "--prior", "none")
    assert list(terms_of("none.pt")) == ["CGNet"]


def test_a_prior_is_written_edited_and_read(train, path) -> None:
    train(path, *SMALL, "--dry-run", "--prior-by", "type", "--write-prior", "prior.toml")
    assert sorted(p.name for p in Path().iterdir()) == ["data.h5", "prior.toml"]
    table = read_prior_table("prior.toml")
    row = table.bonds[0]
    edited = replace(table, bonds=(replace(row, stiffness=2 * row.stiffness), *table.bonds[1:]))
    edited.save("prior.toml")
    train(path, "-o", "model.pt", *SMALL, "--prior-table", "prior.toml")
    found = terms_of("model.pt")["TypedPrior"]["table"]
    assert found["bonds"][0]["stiffness"] == 2 * row.stiffness
    assert found == json.loads(json.dumps(edited.to_dict()))
    # A table without rows for the beads, or with a broken one.
    replace(edited, bonds=edited.bonds[1:]).save("few.toml")
    said = train(path, "-o", "no.pt", *SMALL, "--prior-table", "few.toml", code=2)
    assert said.startswith("error: prior table few.toml: beads ") and "[[bonds]]" in said
    Path("broken.toml").write_text(edited.to_toml().replace("stiffness", "stifness", 1))
    said = train(path, "-o", "no.pt", *SMALL, "--prior-table", "broken.toml", code=2)
    assert "broken.toml, [[bonds]] number 1: key 'stifness' is unknown" in said
    assert said.count("\n") == 1 and not Path("no.pt").exists()


def test_several_molecules_share_a_table(train, path) -> None:
    data = cgml.read_dataset(path)
    cgml.DatasetCollection({"one": data, "two": data.select(slice(0, 200))}).save("both.h5")
    few = ("--network", "schnet", *SMALL, "--dry-run")
    train("both.h5", *few, "--prior", "bonds", "--write-prior", "prior.toml")
    assert read_prior_table("prior.toml").bonds
    train("both.h5", *few, "--prior-table", "prior.toml")
    said = train("both.h5", *few, "--prior-by", "term", code=2)
    assert said == ("error: several molecules share a prior by bead type; take --prior-by type\n")


def test_large_molecules_have_a_prior_by_type() -> None:
    """Unless the network has all pairs among its features."""
    n, rng = 100, np.random.default_rng(0)
    kinds, zeros = tuple("AB" * (n // 2)), ("M",) * n
    bonds = tuple((k, k + 1) for k in range(n - 1))
    topology = cgml.CGTopology(kinds, kinds, zeros, tuple(range(n)), zeros, bonds, (1.0,) * n)
    x = np.cumsum(0.2 * rng.standard_normal((3, n, 3)), axis=1)
    data = cgml.CGDataset(x, topology, temperature=300.0)
    prior, table = PriorChoice().make(data, "schnet")
    assert type(prior.terms[-1]).__name__ == "ShortRangeRepulsion" and table.repulsion
    prior, table = PriorChoice().make(data, "cgnet")
    assert type(prior.terms[-1]).__name__ == "Repulsion" and table is None


@pytest.mark.parametrize("network", list(cgml.PMFS))
def test_every_setting_of_a_network_has_a_type_that_can_be_checked(network) -> None:
    settings = _settings_of(cgml.PMFS[network])
    assert {"width", "depth"} <= set(settings) and "seed" not in settings
    assert all(kind in _KINDS for kinds in settings.values() for kind in kinds)


SCHNET = ("--network", "schnet")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "cutof=1", *SCHNET), "no setting 'cutof'; did you mean 'cutoff'? it has width"),
        (("--set", "cutoff=1"), "cgnet has no setting 'cutoff'; it has width, depth"),
        (("--set", "seed=1"), "cgnet has no setting 'seed'"),
        (("--set", "cutoff", *SCHNET), "--set 'cutoff' is not of the form NAME=VALUE"),
        (("--set", "=1", *SCHNET), "--set '=1' is not of the form NAME=VALUE"),
        (("--set", "cutoff=wide", *SCHNET), "'wide' is no number, true, false, null or text"),
        (("--set", "cutoff=NaN", *SCHNET), "'NaN' is no number"),
        (("--set", "cutoff=[1]", *SCHNET), "give one value, not a list"),
        (("--set", "cutoff=-1", *SCHNET), "cutoff is -1; give a number above 0 or null"),
        (("--set", "cutoff=1e999", *SCHNET), "cutoff is Infinity; give a number above 0"),
        (("--set", "basis=2.5", *SCHNET), "basis is 2.5; give a whole number above 0"),
        (("--set", "basis=true", *SCHNET), "basis is true; give a whole number above 0"),
        (("--set", "dense=1", *SCHNET), "dense is 1; give true or false or null"),
        (("--set", "basis=2", "--set", "basis=3", *SCHNET), "--set gives 'basis' twice"),
        (("--set", "width=3"), "--width and --set width say the same"),
        (("--set", "basis=1000000000000000", *SCHNET), "cannot be made with"),
        (("--network", "schnett"), "unknown PMF 'schnett'; did you mean 'schnet'?"),
        (("--prior", "bond"), "unknown prior term 'bond'; known: bonds"),
        (("--prior", "bonds,none"), "unknown prior term 'none'"),
        (("--prior", "impropers"), "has none of impropers; leave the prior out"),
        (("--prior-by", "bead"), "prior by 'bead' is unknown; choose term or type"),
        (("--prior-orders", 2), "add torsions to --prior"),
        (("--prior", "none", "--prior-by", "type"), "is no prior; leave out --prior-by"),
        (("--prior", "none", "--charge", "C=1"), "is no prior; leave out --charge"),
        (("--permittivity", 3), "--permittivity and --screening are of charges; add --charge"),
        (("--charge", "C"), "--charge 'C' is not of the form TYPE=CHARGE"),
        (("--charge", "XY=1"), "no bead is of type 'XY'; the types are"),
        (("--charge", "C=true"), "C: charge is True; give a finite number"),
        (("--charge", "C=1", "--screening", 0), "screening is 0.0; give a number above 0"),
        (("--write-prior", "p.toml"), "a prior by bead type; add --prior-by type"),
        (("--prior-by", "type", "--write-prior", "model.pt"), "are both model.pt; give two"),
        (("--prior-by", "type", "--write-prior", "no/p.toml"), "cannot write no/p.toml"),
        (("--prior-table", "none.toml"), "prior table none.toml"),
        (("--prior-table", "none.toml", "--prior", "bonds"), "leave out --prior, or edit none"),
        (("--prior-table", "none.toml", "--charge", "C=1"), "leave out --charge, or edit none"),
    ],
)
def test_priors_and_networks_that_make_no_sense(train, path, options, said) -> None:
    message = train(path, "-o", "model.pt", *SMALL, *options, code=2)
    assert message.startswith("error: ") and message.count("\n") == 1
    assert said in message
    assert [p.name for p in Path().iterdir()] == ["data.h5"]


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
