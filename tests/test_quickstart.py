"""The quickstart in its small version: the same road, not converged."""

import json

import torch  # noqa: F401  (before openmm)

import mdtraj
import pytest

from openmm_cgml.errors import InputError
from openmm_cgml.force import BACKENDS, backend_problem
from openmm_cgml.quickstart import FULL, Effort, quickstart

KEYS = {
    "backend", "platform", "frames", "train_seconds", "force_rmse", "force_noise_floor", "copies",
    "replica_steps_per_second", "js_phi_psi", "js_phi_psi_excess", "js_phi_psi_reference_error",
    "delta_f_kj_mol", "versions", "backends",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A medium effort: enough for the right basins."""
    folder = tmp_path_factory.mktemp("demo")
    effort = Effort(
        epochs=24, ladders=32, ps=30.0, discard_ps=10.0, flow_epochs=6, samples=8000,
        student_epochs=4, weighed=5000, atom_epochs=2, atom_frames=2500, compile_atoms=False,
        structures=60, entropy_frames=10,
    )  # fmt: skip
    quickstart(folder, effort=effort)
    return folder


def test_summary_and_files(folder) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["backend"] == "torchforce"  # as conftest.py asks for
    assert list(summary["backends"]) == [b for b in BACKENDS if backend_problem(b) is None]
    assert all(speed > 100 for speed in summary["backends"].values())
    assert summary["frames"] == 20_000 and summary["copies"] == 128
    names = {p.name for p in folder.iterdir()}
    assert names == {
        *("dataset.h5", "model.pt", "run.h5", "report.html", "summary.json"),
        *("molecule.flow", "student.pt", "student.h5"),
        *("atoms.flow", "atoms.dcd", "atoms.pdb", "atoms.npz"),
    }
    flow = summary["without_forces"]
    assert 0 < flow["effective_fraction"] < 1 and flow["flow_js_phi_psi_excess"] < 0.1
    page = (folder / "report.html").read_text()
    assert "the populations are the model&#x27;s own" in page
    assert "<h2>Replica-steps/s of 128 copies</h2>" in page
    assert "<th scope='row'>torchforce</th>" in page
    for title in ("Roads to the same free energy", "Samples of the flow, weighted",
                  "Back to atoms", "What the beads leave open"):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    assert page.count("<img") == 7
    assert summary["round_trips"] > 100 and summary["effective_samples"] > 100


def test_even_a_small_run_is_near_the_reference(folder) -> None:
    """Far looser than the full run's target of 0.02, far tighter than a wrong sign or unit."""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["js_phi_psi_excess"] < 0.06
    assert summary["coverage"] > 0.9
    # Of a barrier that no copy had crossed when it started.
    assert abs(summary["delta_f_kj_mol"]["value"]) < 5
    assert 100 < summary["force_noise_floor"] <= summary["force_rmse"] < 180


def test_the_full_effort_uses_all_frames_and_over_a_hundred_copies() -> None:
    assert FULL.stride == 1 and FULL.ladders * FULL.rungs >= 100


def test_a_wrong_backend_is_refused_before_minutes_are_spent(tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match="'pyton'.*'python'"):
        quickstart(tmp_path / "demo", backend="pyton")
    monkeypatch.setenv("OPENMM_CGML_BACKEND", "nativ")
    with pytest.raises(InputError, match="'nativ'.*'native'"):
        quickstart(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_all_roads_are_told(folder) -> None:
    """Reweighting, atoms and entropy: numbers that a wrong step would not give."""
    summary = json.loads((folder / "summary.json").read_text())
    assert {score["name"] for score in summary["reweighting"]} == {"model", "student"}
    for score in summary["reweighting"]:
        assert 0 < score["weights"]["fraction"] < 1 and score["comparison"]["js_excess"] < 0.3
    atoms = summary["backmapping"]
    assert atoms["structures"] == 250 and atoms["bead_error"] < 1e-5
    assert atoms["mirrored"][0] == 0 and atoms["clashes"][0] == 0
    made = mdtraj.load(folder / "atoms.dcd", top=folder / "atoms.pdb")
    assert made.n_frames == 60 and made.n_atoms == 10
    assert summary["entropy"]["frames"] == 10 and summary["entropy"]["removed"] == 15


@pytest.mark.slow
def test_the_full_quickstart_meets_its_target(tmp_path) -> None:
    summary = quickstart(tmp_path / "demo")
    assert summary["frames"] == 20_000
    assert summary["js_phi_psi_excess"] <= 0.02
    assert summary["without_forces"]["student_js_phi_psi_excess"] <= 0.02
    weighted = {score["name"]: score for score in summary["reweighting"]}["student"]
    assert weighted["weights"]["converged"] and weighted["comparison"]["js_excess"] <= 0.02
    assert summary["seconds"] < 600
