"""README and docs/ say nothing that is not so: their code runs, what they name exists.

Blocks are run as they stand, in the order of the page and in one namespace, in a folder with the
files that they read. `SMALLER` (Python) and `LIGHTER` (commands) are all that is changed in them:
options that only cost time. Of the shell's lines all are run but those that `NOT_RUN` names.
"""

import ast
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
SHELL = "(?:bash|sh)"
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
    "run[name])  #": "run[name][::10])  #",
}


# Of each command: options that are set to this, whether the page gives them or not.
LIGHTER = {
    "quickstart": {"--quick": ""},
    "reference": {"--ns": "0.005", "--equilibrate": "1", "--calibrate": "50"},
    "train": {"--epochs": "1"},
    "flow train": {"--epochs": "1"},
    "flow split": {"--epochs": "1"},
    "distill": {"--epochs": "1", "--count": "2000"},
    "simulate": {"--ns": "0.002", "--copies": "10"},
    "remd": {"--ns": "0.002", "--copies": "8"},
    "benchmark": {"--seconds": "2"},
    "reweight": {"--samples": "2000"},
    "backmap": {"--number": "1", "--stride": "20"},
    "entropy": {"--stride": "50", "--samples": "2", "--fast": ""},
    "analyze": {"--discard": "0"},
}

# Lines of the shell that no test of this file runs, and why.
NOT_RUN = {
    "cgml quickstart": "tests/test_quickstart.py",
    "cgml reference molecule.pdb -o solution.h5": "minutes of explicit solvent; test_examples.py",
    "pip install": "installs from PyPI; tests/test_packaging.py looks at what is required",
    "make ": "is how the tests themselves are run",
    "git ": "of a release; tests/test_release.py",
    "python tools/release.py": "tests/test_release.py",
    "python -m venv build/release": "of a release; tests/test_packaging.py does the same",
    "build/release/bin/": "likewise",
    "twine ": "publishes",
    "python -m benchmarks": "tests/test_benchmarks.py runs every quick version",
    "python examples/": "tests/test_examples.py runs every script",
    "torchrun ": "starts processes; tests/test_parallel.py and test_train_ranks.py do",
    "bash examples/slurm/": "tests/test_examples.py",
    "jupyter ": "tests/test_notebooks.py runs the notebooks",
    "srun ": "needs SLURM",
    "sbatch ": "needs SLURM",
    "for k in 1 2 3 4; do sbatch": "needs SLURM",
}

PAGES_NOT_RUN = {"docs/release.md": "publishes a version; tests/test_release.py has the rest"}

# Pages whose commands and Python go on from each other; the others' stand by themselves.
INTERTWINED = {"docs/tutorial.md", "docs/howto_protein.md", "docs/howto_network.md"}

# More than some seconds each, together more than the fast tests may take.
SLOW = {
    f"docs/{name}.md"
    for name in (
        *("backmapping", "engine", "reference"),
        *("howto_cluster", "howto_lipids", "howto_protein"),
    )
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
    cgml.ReplicaExchange(model, dataset, [300, 420], copies=4).run(folder / "remd.h5", steps=2500)
    _more_models(folder, dataset)
    _of_other_programs(folder, dataset)
    _bilayer(folder)
    return folder


def _more_models(folder: Path, dataset) -> None:
    """Flows, models beside the first one, and datasets beside the first one."""
    train, valid = dataset.split(0.9)
    flow = cgml.FLOWS["coupling"](train)
    cgml.save_flow(folder / "molecule.flow", cgml.fit_flow(flow, train, valid, epochs=1))
    for name in ("first.pt", "second.pt", "third.pt"):
        shutil.copy(folder / "molecule.pt", folder / name)
    valid.save(folder / "validation.h5")
    dataset.select(slice(0, 1000)).save(folder / "one.h5")
    dataset.select(slice(1000, None)).save(folder / "other.h5")
    cgml.save_model(folder / "second.pt", cgml.fit_prior(train), train)
    (folder / "reference.npz").write_bytes(
        (Path(cgml.__file__).parent / "data" / "quickstart" / "reference.npz").read_bytes()
    )


def _of_other_programs(folder: Path, dataset) -> None:
    """Beads as arrays of mlcg and cgnet, and as a trajectory with a PDB file."""
    import mdtraj

    angstrom, kcal = 10 * dataset.positions[:400], dataset.forces[:400] / 41.84
    np.save(folder / "mol_cg_coords.npy", angstrom)
    np.save(folder / "mol_cg_forces.npy", kcal)
    np.save(folder / "mol_cg_embeds.npy", np.array([1, 2, 3, 1, 2]))
    np.save(folder / "coords.npy", angstrom)
    np.save(folder / "Fs.npy", kcal)
    top = mdtraj.Topology()
    chain = top.add_chain()
    for name in dataset.topology.bead_names:
        element = mdtraj.element.get_by_symbol(name[0])
        top.add_atom(name, element, top.add_residue("ALA", chain))
    beads = mdtraj.Trajectory(dataset.positions[:100], top)
    beads[0].save_pdb(str(folder / "beads.pdb"))
    beads[0].save_pdb(str(folder / "mol_cg_structure.pdb"))
    beads.save_xtc(str(folder / "run.xtc"))


def _bilayer(folder: Path) -> None:
    """Six lipids that tremble, with springs' forces."""
    import mdtraj

    structure = ROOT / "tests" / "data" / "structures" / "bilayer.pdb"
    shutil.copy(structure, folder)
    lipids = mdtraj.load(structure)
    shifts = np.random.default_rng(0).normal(0, 0.005, (60, lipids.n_atoms, 3))
    mdtraj.Trajectory(lipids.xyz + shifts, lipids.topology).save_dcd(str(folder / "bilayer.dcd"))
    np.save(folder / "bilayer_forces.npy", (-shifts * 2.6 / 0.005**2).astype(np.float32))


@pytest.fixture
def workplace(files, tmp_path, monkeypatch) -> Path:
    """A copy of it for one page: pages write files of the same names."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written_anew(folder: Path, code: str, how: str) -> None:
    """Remove the runs that a page's code writes itself: none is ever written over another."""
    for name in ("cg.h5", "remd.h5"):
        if how.format(name) in code:
            (folder / name).unlink(missing_ok=True)


def script_of(text: str, place: Path, number: int) -> str:
    """A block as a file: TorchScript reads classes' sources."""
    script = place / f"block{number}.py"
    script.write_text(smaller(text), encoding="utf-8")
    return str(script)


def pages_with(*languages: str) -> list:
    return [
        pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW))
        for page in names([p for p in PAGES if any(blocks(p, one) for one in languages)])
        if page not in PAGES_NOT_RUN
    ]


@pytest.mark.parametrize(
    "page", [p for p in pages_with("python") if p.values[0] not in INTERTWINED]
)
def test_python_runs(page, workplace):
    written_anew(workplace, "".join(blocks(ROOT / page, "python")), '.run("{}"')
    namespace: dict = {}
    for number, block in enumerate(blocks(ROOT / page, "python")):
        script = script_of(block, workplace, number)
        namespace = runpy.run_path(script, init_globals=namespace, run_name="page")


def shell_lines(block: str) -> list[str]:
    """The commands of a block, without comments; a line that ends in a backslash goes on."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def lighter(line: str) -> list[str]:
    """The words of a command after ``cgml``, with less work to do."""
    words = shlex.split(line, comments=True)[1:]
    options = next((LIGHTER[c] for c in (" ".join(words[:2]), words[0]) if c in LIGHTER), {})
    for option, value in options.items():
        if not value:  # a flag
            words += [] if option in words else [option]
            continue
        short = {"--number": "-n"}.get(option, option)
        for name in {option, short}:
            if name in words:
                at = words.index(name)
                if float(words[at + 1]) > float(value) or option == "--stride":
                    words[at + 1] = value
                break
        else:
            words += [option, value]
    return words


@pytest.mark.parametrize("page", pages_with(SHELL))
def test_commands_run(page, workplace):
    text = (ROOT / page).read_text(encoding="utf-8")
    if page == "docs/tutorial.md":  # needs nothing but the package
        for path in workplace.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    written_anew(workplace, "".join(blocks(ROOT / page, SHELL)), "-o {}")
    namespace: dict = {}
    for number, (language, block) in enumerate(
        re.findall(r"^```(bash|sh|python)\n(.*?)^```", text, re.M | re.S)
    ):
        if language == "python":
            if page in INTERTWINED:
                script = script_of(block, workplace, number)
                namespace = runpy.run_path(script, init_globals=namespace, run_name="page")
            continue
        for line in shell_lines(block):
            if any(line.startswith(known) for known in NOT_RUN):
                continue
            elif line.startswith("cgml "):
                code = app(lighter(line), prog_name="cgml", standalone_mode=False)
                # 3: the numbers are not to be trusted, which is right of so short a run.
                assert not code or (code == 3 and "reweight" in line), f"{line}: exit code {code}"
            else:
                raise AssertionError(f"{line}: run it, or say in NOT_RUN why not")
    if page == "README.md":
        assert (workplace / "cold.energies.csv").exists()
        report = (workplace / "report.html").read_text(encoding="utf-8")
        assert "<h2>Free energy</h2>" in report


#: What makes the files that examples of ``--help`` read beside those of the pages.
BEFORE_HELP = (
    "cgml map run.dcd --top molecule.pdb --mapping heavy_atom --temperature 300 -o atoms.h5",
    "cgml flow split atoms.h5 --mapping backbone -o split.flow",
    "cgml flow split atoms.h5 --mapping core_beta -o other.flow",
)


@pytest.mark.slow
def test_examples_of_help_run(workplace):
    """Every one, in the order of the commands; files of an earlier one are used by later ones."""
    examples = []

    def collect(group, words=()):
        for name, command in group.items():
            if inner := getattr(command, "commands", None):
                collect(inner, (*words, name))
            else:
                examples.extend(line.strip() for line in command.epilog.splitlines()[2:])

    collect(COMMANDS)
    assert len(examples) > 30
    for line in [*BEFORE_HELP, *examples]:
        words = lighter(line)
        written = [words[k + 1] for k, word in enumerate(words) if word == "-o"]
        if words[0] in ("simulate", "remd", "reference"):  # never over another run
            for name in written:
                (workplace / name).unlink(missing_ok=True)
        code = app(words, prog_name="cgml", standalone_mode=False)
        assert not code or (code == 3 and words[0] == "reweight"), f"{line}: exit code {code}"
        for name in written:
            assert (workplace / name).exists(), line


def test_every_command_is_in_a_page():
    """What the program can do, a page does: and so the test above runs every command."""
    lines = [
        line
        for page in PAGES
        for block in blocks(page, SHELL)
        for line in shell_lines(block)
        if line.startswith("cgml ")
    ]
    for name, command in COMMANDS.items():
        for inner in getattr(command, "commands", {"": None}):
            called = f"cgml {name} {inner}".strip()
            assert any(f"{line} ".startswith(f"{called} ") for line in lines), called


def test_what_is_not_run_is_still_there():
    lines = [
        line for page in PAGES for block in blocks(page, SHELL) for line in shell_lines(block)
    ]
    for known in NOT_RUN:
        assert any(line.startswith(known) for line in lines), known


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
                slugs = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
                assert anchor in slugs, target


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


@pytest.mark.parametrize("page", names(PAGES))
def test_commands_are_in_blocks_that_are_run(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(.*)\n(.*?)^```", text, re.M | re.S):
        if language not in ("bash", "sh"):
            assert not re.search(r"^(\$ )?(cgml|pip|make|torchrun) ", block, re.M), block


def messages() -> set[str]:
    """Every text in the package, a field of an f-string as …, spaces joined."""

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value.replace("{{", "{").replace("}}", "}")
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) for part in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return text(node.left) + text(node.right)
        return "…"

    return {
        re.sub(r"%[-.\d]*[a-z](?![a-z])", "…", " ".join(text(node).split()))
        for path in Path(cgml.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp))
    }


def test_quoted_messages_are_in_the_source():
    known = messages()
    quoted = blocks(ROOT / "docs" / "troubleshooting.md", "text")
    assert len(quoted) >= 25
    for message in quoted:
        pieces = [re.escape(piece) for piece in " ".join(message.split()).split("…")]
        pattern = re.compile(".*?".join(pieces))
        assert any(pattern.search(text) for text in known), message
        assert len(max(pieces, key=len)) > 12, f"{message}: says too little to be found"
