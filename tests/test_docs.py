"""README and docs/ say nothing that is not so: their code runs, what they name exists.

Blocks are run as they stand, in the order of the page and in one namespace, in a folder with the
files that they read. `SMALLER` is all that is changed in them: lengths that only cost time.
"""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer

import openmm_cgml as cgml
from openmm_cgml.cli import app
from openmm_cgml.force import BACKENDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMANDS = typer.main.get_command(app).commands

SMALLER = {
    "count=100_000": "count=2000",
    "epochs=30": "epochs=1",
    "epochs=60": "epochs=1",
    "--epochs 60": "--epochs 1",
    "ns=1)": "ns=0.002)",
    "--ns 1 ": "--ns 0.002 ",
    "--ns 5 ": "--ns 0.005 ",
    "copies=100": "copies=10",
    "--copies 100": "--copies 10",
    "--seconds 60": "--seconds 2",
    "step(1000)": "step(10)",
}


def names(pages: list[Path]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def code(page: Path) -> str:
    """All code of a page, in blocks and in lines, one piece a line."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return "\n".join([*fenced, *(" ".join(piece.split()) for piece in inline)])


def smaller(text: str) -> str:
    for long, short in SMALLER.items():
        text = text.replace(long, short)
    return text


@pytest.fixture(scope="module")
def files(trajectory, dataset, model, data, tmp_path_factory) -> Path:
    """A folder with the files that the pages name: a user's, a demo's and those of the steps."""
    import mdtraj

    folder = tmp_path_factory.mktemp("files")
    (frames,) = trajectory.chunks(10_000)
    for name, part in (("run", slice(0, None, 2)), ("independent", slice(1, None, 2))):
        mdtraj.Trajectory(frames.positions[part], trajectory.topology).save_dcd(
            str(folder / f"{name}.dcd")
        )
    np.save(folder / "forces.npy", frames.forces[::2])
    shutil.copy(data / "topology.pdb", folder / "molecule.pdb")
    shutil.copy(data / "system.xml", folder / "system.xml")
    (folder / "demo").mkdir()
    for name in ("demo/model.pt", "molecule.pt"):
        (folder / name).write_bytes(model.file.archive)
    for name in ("demo/dataset.h5", "dataset.h5", "reference.h5"):
        dataset.save(folder / name)
    cgml.Langevin(model, dataset, copies=4).run(folder / "cg.h5", steps=2500)
    return folder


@pytest.fixture
def workplace(files, tmp_path, monkeypatch) -> Path:
    """A copy of it for one page: pages write files of the same names."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", names([p for p in PAGES if blocks(p, "python")]))
def test_python_runs(page, workplace):
    if page == "README.md":
        (workplace / "cg.h5").unlink()  # its own run writes it, and never over another
    namespace: dict = {}
    for number, block in enumerate(blocks(ROOT / page, "python")):
        script = workplace / f"block{number}.py"  # a file: TorchScript reads classes' sources
        script.write_text(smaller(block), encoding="utf-8")
        namespace = runpy.run_path(str(script), init_globals=namespace, run_name="page")


def test_shell_runs(workplace):
    (workplace / "cg.h5").unlink()
    lines = [
        line
        for block in blocks(ROOT / "README.md", "bash")
        for line in block.splitlines()
        if line.startswith("cgml ")
    ]
    assert [line.split()[1] for line in lines] == [
        *("map", "reference", "data"),
        *("map", "train", "compile", "benchmark", "simulate", "remd", "export", "map", "analyze"),
    ]
    for line in lines:
        app(shlex.split(smaller(line))[1:], standalone_mode=False)
    assert (workplace / "cold.energies.csv").exists()
    assert "<h2>Free energy</h2>" in (workplace / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", names(PAGES))
def test_commands_and_options_exist(page):
    text = code(ROOT / page)
    for line in text.splitlines():
        found = re.search(r"\bcgml ([a-z]+)(.*)", line)
        if found is None or "import" in line:
            continue
        command, rest = found.groups()
        assert command in COMMANDS, f"{page}: cgml {command}"
        chosen = COMMANDS[command]
        if hasattr(chosen, "commands"):  # a group: its own command comes next
            inner = rest.split()[0].strip("`,.:") if rest.split() else ""
            if not inner:
                continue
            assert inner in chosen.commands, f"{page}: cgml {command} {inner}"
            chosen = chosen.commands[inner]
        options = {option for one in chosen.params for option in one.opts}
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest.split("#")[0]):
            assert option in options, f"{page}: cgml {command} {option}"


@pytest.mark.parametrize("page", names(PAGES))
def test_names_exist(page):
    text = code(ROOT / page)
    for name in re.findall(r"\bcgml\.(\w+)", text):
        assert hasattr(cgml, name), f"{page}: cgml.{name}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for target in re.findall(r"^make ([a-z-]+)", text, re.M):
        assert target in targets, f"{page}: make {target}"
    for extra in re.findall(r"(?:openmm_cgml|\.)\[(\w+)\]", text):
        assert f'"{extra}": [' in (ROOT / "setup.py").read_text(encoding="utf-8"), extra


@pytest.mark.parametrize("page", names(PAGES))
def test_links_lead_somewhere(page):
    source = ROOT / page
    prose = re.sub(
        r"^```.*?^```|`[^`]+`", "", source.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            linked = source.parent / path if path else source
            assert linked.exists(), f"{page}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.M)
                assert anchor in [t.lower().replace(" ", "-") for t in titles], target


def test_tables_are_documented():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    theory = (ROOT / "docs" / "force_matching.md").read_text(encoding="utf-8")
    networks = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    for table, text in ((BACKENDS, readme), (cgml.FORCE_MAPS, theory), (cgml.PMFS, networks)):
        for name in table:
            assert f"`{name}`" in text, f"{table.kind} {name}"


def test_model_card_keys_are_documented(model):
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    for key in [*model.card, "force_rmse", "force_noise_floor", "force_model_error", "history"]:
        assert f"`{key}`" in text, key
    assert set(model.card["training"]) >= {"force_rmse", "force_noise_floor", "history", "ranges"}


def test_file_keys_are_documented(files):
    import h5py

    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    for name in ("dataset.h5", "cg.h5"):
        with h5py.File(files / name) as handle:
            keys = [*handle.attrs, *(f"frames/{n}" for n in handle["frames"])]
            keys += [n for n in handle if n != "frames"]
        for key in keys:
            assert f"`{key}`" in text, f"{name}: {key}"
    for key in cgml.read_run(files / "cg.h5").info:
        assert f"`{key}`" in text, key
