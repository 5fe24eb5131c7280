"""The table of backends: complete, checked against what was found, kept where nothing was."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from openmm_cgml.force import BACKENDS

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "tools"))
matrix = importlib.import_module("matrix")
sys.path.pop(0)


@pytest.fixture
def page(tmp_path, monkeypatch) -> Path:
    """A copy of the page in its place."""
    page = tmp_path / "docs" / "backends.md"
    page.parent.mkdir()
    page.write_text(matrix.PAGE.read_text())
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "PAGE", page)
    monkeypatch.setattr(matrix, "MATRIX", tmp_path / ".matrix")
    return page


def report(path: Path, cell, outcome: str = "works", **changed) -> Path:
    """What pytest writes if every check came out the same."""
    root = ElementTree.Element("testsuites")
    for backend in BACKENDS:
        for check in matrix.CHECKS:
            record = {
                "backend": backend, "check": check, "outcome": outcome, "reason": "",
                "torch": f"{cell.torch}+cpu", "openmm": cell.openmm, **changed,
            }  # fmt: skip
            ElementTree.SubElement(root, "property", name="backend", value=json.dumps(record))
    ElementTree.ElementTree(root).write(path)
    return path


def test_the_page_has_every_pair_and_backend():
    assert len(set(matrix.CELLS)) == 4
    assert [cell.is_home for cell in matrix.CELLS] == [True, False, False, False]
    for cell in matrix.CELLS:
        found = [line.split("|")[3].strip() for line in matrix.committed_rows(cell)]
        assert found == [f"`{backend}`" for backend in BACKENDS]


def test_rows_of_pairs_that_were_not_run_stay(page, tmp_path):
    before = page.read_text()
    outcomes = {
        cell: matrix.read_report(cell, report(tmp_path / "tests.xml", cell, "dances"))
        for cell in matrix.CELLS[1:3]
    }
    assert matrix.compare_with_page(outcomes)
    matrix.write_page(outcomes)
    assert matrix.compare_with_page(outcomes) == []
    changed = set(page.read_text().splitlines()) ^ set(before.splitlines())
    assert len(changed) == 2 * 2 * len(BACKENDS)
    assert page.read_text().count("dances") == 2 * len(BACKENDS) * len(matrix.CHECKS)


def test_a_report_of_other_versions_or_with_holes_is_refused(tmp_path):
    cell = matrix.CELLS[1]
    with pytest.raises(SystemExit, match="has torch 2.8.0"):
        matrix.read_report(cell, report(tmp_path / "tests.xml", cell, torch="2.8.0"))
    with pytest.raises(SystemExit, match="lacks outcomes"):
        matrix.read_report(cell, report(tmp_path / "tests.xml", cell, check="forces"))


@pytest.mark.parametrize("index", [None, "https://my.example/cpu"])
def test_a_pair_that_cannot_be_installed_is_passed_over_loudly(page, index, monkeypatch, capsys):
    tried = []

    def fail(env, arguments, run):
        tried.append([a for a in arguments if str(a).startswith("http")])
        raise subprocess.CalledProcessError(1, ["pip"], stderr="no such version")

    monkeypatch.setattr(matrix.bootstrap, "make", fail)
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--quick"])
    monkeypatch.delenv(matrix.CPU_INDEX_VARIABLE, raising=False)
    if index:
        monkeypatch.setenv(matrix.CPU_INDEX_VARIABLE, index)
    assert matrix.main() == 0
    assert tried == ([[index]] if index else [[], [matrix.CPU_INDEX]])
    said = capsys.readouterr().err
    assert "SKIPPED torch 2.13.0 with OpenMM 8.6.1: not installable here.\nno such version" in said


def test_a_failed_test_or_another_table_fails(page, tmp_path, monkeypatch, capsys):
    cell = matrix.CELLS[-1]
    monkeypatch.setattr(matrix, "make_environment", lambda cell: Path(sys.executable))
    monkeypatch.setattr(matrix, "run_tests", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--quick"])
    assert matrix.main() == 1
    assert "FAILED torch 2.13.0" in capsys.readouterr().err
    wrong = report(tmp_path / "tests.xml", cell, "dances")
    monkeypatch.setattr(matrix, "run_tests", lambda *_: wrong)
    before = page.read_text()
    assert matrix.main() == 1
    assert "does not say what was found" in capsys.readouterr().err
    assert page.read_text() == before
