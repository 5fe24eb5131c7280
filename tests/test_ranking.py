"""Several PMFs on one set of samples: the order, what is flagged, and the page."""

import json

import torch  # before openmm

import numpy as np
import pytest
from test_flow import flow_of, frames

import openmm_cgml as cgml
from openmm_cgml import command_reweight, plot, report
from openmm_cgml.analysis import dihedral_angles
from openmm_cgml.boltzmann import propose
from openmm_cgml.ranking import CANNOT_SEE, energy_histograms, rank_pmfs

TORSIONS = [[0, 1, 2, 3], [1, 2, 3, 4]]


class Bent(cgml.PMF):
    """Bonds and angles, and a force that pulls the ends of the first torsion together."""

    def __init__(self, strength: float = 0.0) -> None:
        super().__init__()
        self.strength = float(strength)

    def forward(
        self, positions: torch.Tensor, box_vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Energies."""
        bonds = positions[:, 1:] - positions[:, :-1]
        lengths = bonds.square().sum(dim=2).sqrt()
        bend = (bonds[:, :-1] * bonds[:, 1:]).sum(dim=2)
        ends = (positions[:, 3] - positions[:, 0]).square().sum(dim=1)
        stiff = 3100.0 * (lengths - 0.4).square().sum(dim=1)
        return stiff + 2600.0 * (bend - 0.066).square().sum(dim=1) + self.strength * ends

    def arguments(self) -> dict:
        return {"strength": self.strength}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A flow, three models of which one has seen half of the torsions, and a reference."""
    folder = tmp_path_factory.mktemp("ranking")
    dataset = frames(5, 4000, stiff=0.3)
    flow = flow_of(dataset, strength=0.0)
    cgml.fit_flow(flow, *dataset.split(0.9), epochs=10, batch_size=64, progress=False)
    turn = dihedral_angles(dataset.positions, TORSIONS)[:, 0]
    few = dataset.select(turn > 1.0)
    models = {}
    for name, strength, data in (("good", 0.0, dataset), ("bad", 9.0, dataset), ("few", 0.0, few)):
        result = cgml.fit(
            cgml.SumPMF(Bent(strength), cgml.PMFS["cgnet"](data, width=4)),
            *with_forces(data).split(0.9), epochs=1, learning_rate=1e-9, progress=False,
        )  # fmt: skip
        cgml.save_model(folder / f"{name}.pt", result)
        models[name] = cgml.load_model(folder / f"{name}.pt")
    cgml.save_flow(folder / "a.flow", flow)
    proposal = propose(flow, 4000, seed=1, held_out=dataset)
    proposal.weigh(models["good"]).dataset().save(folder / "reference.h5")
    dataset.save(folder / "held_out.h5")
    return folder, flow, models, proposal


def with_forces(dataset: cgml.CGDataset) -> cgml.CGDataset:
    return cgml.CGDataset(
        dataset.positions, dataset.topology, 300.0, forces=np.zeros_like(dataset.positions)
    )


def test_the_nearest_to_the_reference_comes_first(made) -> None:
    folder, flow, models, proposal = made
    scores = rank_pmfs(
        proposal, models, reference=cgml.read_dataset(folder / "reference.h5"),
        dihedrals=TORSIONS, state=(-1.0, 1.0),
    )  # fmt: skip
    assert {s.name for s in scores[:2]} == {"good", "few"} and scores[2].name == "bad"
    by_name = {s.name: s for s in scores}
    assert by_name["bad"].divergence.value > by_name["good"].divergence.value + 0.01
    assert by_name["good"].comparison.js == pytest.approx(0, abs=1e-9)
    # What was trained on half of the torsions is told apart, though its energies are the same.
    assert by_name["few"].extrapolates and not by_name["good"].extrapolates
    assert by_name["few"].outside > 0.2
    assert any("it extrapolates" in w for w in by_name["few"].warnings)
    assert "EXTRAPOLATES" in by_name["few"].text() and "JS*" in by_name["few"].text()
    record = json.loads(json.dumps(by_name["few"].record()))
    assert record["extrapolates"] and record["comparison"]["js_excess"] is not None


def test_without_a_reference_the_most_effective_comes_first(made) -> None:
    _, flow, models, proposal = made
    scores = rank_pmfs(proposal, {k: models[k] for k in ("bad", "good")})
    assert [s.name for s in scores] == ["good", "bad"]
    assert scores[0].divergence is None and scores[0].record()["comparison"] is None
    fractions = [s.samples.report.fraction for s in scores]
    assert fractions[0] > fractions[1]


def test_energies_before_and_after_and_of_a_reference(made) -> None:
    _, _, models, proposal = made
    (score,) = rank_pmfs(proposal, {"bad": models["bad"]})
    edges, densities = energy_histograms(score, score.samples.energies[:500])
    assert set(densities) == {"flow", "reweighted", "reference"}
    for values in densities.values():
        assert (values * np.diff(edges)).sum() == pytest.approx(1.0)
    centres = 0.5 * (edges[1:] + edges[:-1])
    means = {k: float((v * centres).sum() / v.sum()) for k, v in densities.items()}
    exact = score.samples.expectation(score.samples.energies).value
    lowest = score.samples.energies.min()
    assert means["reweighted"] == pytest.approx(exact - lowest, rel=0.05)
    assert means["flow"] == pytest.approx(score.samples.energies.mean() - lowest, rel=0.05)
    assert plot.energy_distributions(edges, densities).startswith(b"\x89PNG")


def test_the_page_has_everything(made, tmp_path) -> None:
    folder, flow, models, proposal = made
    scores = rank_pmfs(
        proposal, models, reference=cgml.read_dataset(folder / "reference.h5"),
        dihedrals=TORSIONS, state=(-1.0, 1.0), flow=flow, check_ps=0.2, copies=20,
        timestep=0.001, backend="python",
    )  # fmt: skip
    report.write_reweighting(
        tmp_path / "page.html", scores, title="a <b>", lead="lead", labels=("φ", "ψ"),
        quadruples=TORSIONS, notes=["a note"],
    )  # fmt: skip
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;" in page and CANNOT_SEE in page and "a note" in page
    assert page.count("data:image/png") == 1 + 4 * len(scores)
    assert "it extrapolates" in page and "20 copies for 0.2 ps" in page
    (only,) = rank_pmfs(proposal, {"good": models["good"]})
    report.write_reweighting(tmp_path / "page.html", [only], title="t", lead="l")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("data:image/png") == 2


# ---------------------------------------------------------------- the command


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command; returns its exit code, what it prints and what it says."""
    import sys

    from openmm_cgml.cli import main

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cgml", "reweight", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def test_one_pmf(made, call, tmp_path) -> None:
    folder = made[0]
    code, out, said = call(
        folder / "good.pt", "--flow", folder / "a.flow", "-o", tmp_path / "page.html",
        "--samples", 2000, "--ensemble", tmp_path / "ensemble.h5",
        "--held-out", folder / "held_out.h5", "--reference", folder / "reference.h5",
        "--dihedral", "0,1,2,3", "--dihedral", "1,2,3,4", "--state=-1,1",
    )  # fmt: skip
    (record,) = json.loads(out)["pmfs"]
    assert code == (0 if record["weights"]["converged"] else 3)
    assert record["name"] == "good" and record["weights"]["forward"] > 0
    assert record["comparison"]["js_excess"] < 0.25
    assert "good: " in said and (tmp_path / "page.html").stat().st_size > 50_000
    ensemble = cgml.read_dataset(tmp_path / "ensemble.h5")
    assert len(ensemble) == 2000 and ensemble.weights.mean() == pytest.approx(1, rel=1e-5)
    assert ensemble.mapping["boltzmann"]["samples"] == 2000


def test_several_pmfs_and_weights_that_have_not_converged(
    made, call, tmp_path, monkeypatch
) -> None:
    folder = made[0]
    arguments = ("--flow", folder / "a.flow", "-o", tmp_path / "page.html", "--samples", 120)
    monkeypatch.setenv("OPENMM_CGML_BACKEND", "python")
    monkeypatch.setattr(command_reweight, "_CHECK", 0.1)
    code, out, said = call(folder / "good.pt", folder / "bad.pt", "--compare", *arguments)
    records = json.loads(out)["pmfs"]
    assert {r["name"] for r in records} == {"good", "bad"}
    assert all(r["dynamics"] is not None for r in records)  # of PMFs that are compared
    assert code == 3 and "NOT CONVERGED: " in said  # of 120 samples fewer than 100 are effective
    assert (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("good.pt", "bad.pt"), "2 models were given; add --compare"),
        (("good.pt", "bad.pt", "--compare", "--ensemble", "e.h5"), "an ensemble is of one PMF"),
        (("good.pt", "--reference", "reference.h5"), "needs --reference and --dihedral twice"),
        (("good.pt", "good.pt", "--compare"), "two model files have the same name"),
        (("none.pt",), "none.pt"),
        (("good.pt", "--broad", "0.5", "--held-out", "none.h5"), "none.h5"),
    ],
)
def test_one_line_and_nothing_written(made, call, tmp_path, arguments, complaint) -> None:
    folder = made[0]
    filled = [str(folder / a) if a.endswith((".pt", ".h5")) else a for a in arguments]
    before = sorted(folder.iterdir())
    code, out, said = call(*filled, "--flow", folder / "a.flow", "-o", tmp_path / "page.html")
    assert code == 2 and complaint in said and not out
    assert not list(tmp_path.iterdir()) and sorted(folder.iterdir()) == before
