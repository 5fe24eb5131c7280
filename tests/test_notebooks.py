"""Every notebook of examples/ runs in its small version, holds no outputs, and ends in a picture.

The cells run here in this process; the slow test runs them in a kernel, as a reader does.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path: Path) -> list[str]:
    """The code of a notebook's cells."""
    book = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


def names(path: Path) -> str:
    return path.stem


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CGML_QUICK", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return tmp_path


@pytest.fixture
def ran(request, small) -> dict:
    """What a notebook's cells leave behind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.close("all")
    script = small / "cells.py"  # a file: TorchScript reads classes' sources
    script.write_text("\n\n".join(cells(request.param)), encoding="utf-8")
    yield runpy.run_path(str(script), run_name="notebook")
    plt.close("all")


def test_there_are_three():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_is_stripped_and_small(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert 'QUICK = bool(os.environ.get("CGML_QUICK"))' in "".join(code[0]["source"])
    assert path.stat().st_size < 20_000 and set(book["metadata"]) == {
        "kernelspec",
        "language_info",
    }
    assert "plt.subplots(" in "".join(code[-1]["source"])  # ends in a picture


@pytest.mark.parametrize("ran", NOTEBOOKS[:1], ids=names, indirect=True)
def test_tour(ran):
    found = ran["comparison"]
    # A short training and some hundred frames, but of this molecule: most are where it is
    # likely, on a seventh of the plane.
    likely = found.reference.probability > 1 / found.reference.probability.size
    assert likely.mean() < 0.15 and found.model.probability[likely].sum() > 0.5
    assert np.isfinite(found.js_excess)
    assert ran["run"].finished and len(ran["result"].history) == 15
    assert ran["result"].noise.residual < 1.5 * ran["result"].noise.floor
    assert_drawn(ran["figure"], panels=4)


@pytest.mark.parametrize("ran", NOTEBOOKS[1:2], ids=names, indirect=True)
def test_choosing_a_map(ran):
    ranked = {one.name: one for one in ran["ranked"]}
    assert set(ranked) == {"backbone", "rim"}
    assert all(one.beads == 5 and one.data.removed == 15 for one in ranked.values())
    # Both leave little open: the atoms are within hundredths of a nm of where the beads say.
    assert all(one.data.mean[0] < -15 for one in ranked.values())
    assert_drawn(ran["figure"], panels=1)


@pytest.mark.parametrize("ran", NOTEBOOKS[2:], ids=names, indirect=True)
def test_a_run_and_a_bias(ran):
    biased, free = ran["kept"]["biased"], ran["kept"]["free"]
    assert len(biased) == len(free) == 32 * 32
    # The bias lowers the barrier: more frames beyond it than in the free run.
    assert (np.cos(biased) > 0.7).mean() > (np.cos(free) > 0.7).mean()
    # Weights move the population back towards that of the free run.
    share = {
        "free": (np.cos(free) > 0.3).mean(),
        "biased": (np.cos(biased) > 0.3).mean(),
        "weighted": np.average(np.cos(biased) > 0.3, weights=ran["weights"]),
    }
    assert abs(share["weighted"] - share["free"]) < abs(share["biased"] - share["free"])
    assert_drawn(ran["figure"], panels=1)


def assert_drawn(figure, panels: int) -> None:
    """The last picture has its panels, all with something in them and with labelled axes."""
    assert len(figure.axes) == panels
    for axis in figure.axes:
        assert axis.has_data() and (axis.get_xlabel() or axis.get_ylabel())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_runs_in_a_kernel(path, small, monkeypatch):
    monkeypatch.delenv("MPLBACKEND")  # the kernel's own, which shows pictures in the notebook
    client = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    client.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(small)}}
    ).execute()
    kinds = [kind for output in book.cells[-1].outputs for kind in output.get("data", {})]
    assert "image/png" in kinds
