"""What all commands share: examples, `--json`, files that repeat a command, exit codes."""

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import openmm_cgml as cgml
from openmm_cgml import command_step
from openmm_cgml.cli import app
from openmm_cgml.command_data import _FORMATS
from openmm_cgml.convert import FORMATS
from openmm_cgml.errors import InputError


def commands(group, words=()) -> dict[tuple[str, ...], object]:
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, (*words, name))
        else:
            found[(*words, name)] = command
    return found


COMMANDS = commands(typer.main.get_command(app))


def cgml_run(line: str, capsys) -> tuple[dict, str]:
    """Give a command with --json; its numbers and what it said."""
    capsys.readouterr()
    code = app([*shlex.split(line)[1:], "--json"], standalone_mode=False)
    assert not code, line
    printed, said = capsys.readouterr()
    assert printed.count("\n") == 1, printed
    return json.loads(printed, parse_constant=pytest.fail), said


@pytest.fixture
def place(dataset, model, tmp_path, monkeypatch) -> Path:
    dataset.save(tmp_path / "dataset.h5")
    (tmp_path / "molecule.pt").write_bytes(model.file.archive)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_examples_and_json(words):
    command = COMMANDS[words]
    lines = [line.strip() for line in command.epilog.splitlines()[2:]]
    assert lines and all(line.startswith(f"cgml {' '.join(words)}") for line in lines)
    options = {option for one in command.params for option in one.opts}
    assert "--json" in options
    for line in lines:
        given = [word for word in shlex.split(line) if word.startswith("--")]
        assert set(given) <= options, line
    # The first sentence stands in the list of commands, so it has to be one.
    assert command.help.split("\n")[0].endswith(".")


def test_what_a_command_prints_and_leaves(place, capsys):
    """Numbers, hashes of what was read, versions; all options in a file beside the output."""
    line = "cgml simulate molecule.pt --start dataset.h5 --copies 2 --ns 0.001 -o 'my cg.h5'"
    record, _ = cgml_run(line, capsys)
    assert record["finished"] and record["frames"] == 2 and record["copies"] == 2
    assert record["replica_steps_per_second"] > 0 and record["backend"]
    source = record["provenance"]
    assert source["command"] == "simulate" and source["seconds"] > 0
    assert source["versions"]["torch"] != "not installed"
    assert source["inputs"] == {
        name: command_step.fingerprint(place / name) for name in ("molecule.pt", "dataset.h5")
    }
    held = command_step.read_echo(place / "my cg.h5.run.toml")
    assert held["inputs"] == source["inputs"] and held["versions"] == source["versions"]
    assert held["options"]["copies"] == 2 and held["options"]["timestep"] == 0.002
    assert held["options"]["seed"] == 0 and held["options"]["minimize"] is False
    assert "temperature" not in held["options"]  # not given, and found in the model


def test_rerun_gives_the_same(place, capsys):
    """To the bit; also where options are lists, flags and paths with spaces."""
    cgml_run(
        "cgml simulate molecule.pt --start dataset.h5 --copies 2 --ns 0.005 --seed 3 "
        "--platform CPU --property Threads=1 --minimize -o 'the first.h5'",
        capsys,
    )
    record, said = cgml_run("cgml rerun 'the first.h5.run.toml' -o second.h5", capsys)
    assert (
        "--minimize" in said
        and "--property Threads=1" in said
        and record["repeated"] == "simulate"
    )
    first, second = (cgml.read_run(f"{name}.h5") for name in ("the first", "second"))
    assert (first.positions == second.positions).all()
    assert (place / "second.h5.run.toml").exists()
    # One line of JSON also where the command itself prints its numbers unasked.
    cgml_run("cgml analyze second.h5 --reference dataset.h5 --dihedral 0,1,2,3 --dihedral 1,2,3,4 "
             "-o page.html", capsys)  # fmt: skip
    record, _ = cgml_run("cgml rerun page.html.run.toml -o again.html", capsys)
    assert 0 < record["js"] < 1 and record["repeated"] == "analyze"

    cgml_run("cgml data subsample dataset.h5 --count 50 -o few.h5", capsys)
    cgml_run("cgml data merge few.h5 few.h5 --weights as_is -o both.h5", capsys)
    (place / "both.h5").unlink()
    record, _ = cgml_run("cgml rerun both.h5.run.toml", capsys)
    assert record["frames"] == 100  # the command's own numbers
    assert len(cgml.read_dataset("both.h5")) == 100


def test_rerun_wants_the_same_files(place, capsys):
    cgml_run("cgml data subsample dataset.h5 --count 50 -o few.h5", capsys)
    shutil.copy("few.h5", "dataset.h5")
    with pytest.raises(InputError, match=r"dataset.h5 is not the file .* --force"):
        app(["rerun", "few.h5.run.toml", "-o", "again.h5"], standalone_mode=False)
    assert not Path("again.h5").exists()
    _, said = cgml_run("cgml rerun few.h5.run.toml -o again.h5 --force", capsys)
    assert "warning: dataset.h5 is not the file" in said
    Path("dataset.h5").unlink()
    with pytest.raises(InputError, match=r"input dataset.h5 does not exist"):
        app(["rerun", "few.h5.run.toml"], standalone_mode=False)


def test_rerun_names_other_versions(place, capsys):
    cgml_run("cgml data subsample dataset.h5 --count 50 -o few.h5", capsys)
    text = Path("few.h5.run.toml").read_text(encoding="utf-8")
    Path("few.h5.run.toml").write_text(text.replace('numpy = "', 'numpy = "0'), encoding="utf-8")
    _, said = cgml_run("cgml rerun few.h5.run.toml", capsys)
    assert "warning: numpy was 0" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("a = [", "is no TOML"),
        ("\xff\xfe", "names no command|is no TOML"),
        ('command = "map"', "names no command"),
        ('command = "fly"\n[options]\n[inputs]\n[versions]', "which is no command"),
        ('command = "data"\n[options]\n[inputs]\n[versions]', "cannot be given again"),
        ('command = "rerun"\n[options]\n[inputs]\n[versions]', "cannot be given again"),
        ('command = "map"\n[options]\nwarp = 9\n[inputs]\n[versions]', "no option 'warp'"),
    ],
)
def test_files_that_repeat_nothing(content, words, tmp_path):
    (tmp_path / "x.run.toml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        app(["rerun", str(tmp_path / "x.run.toml")], standalone_mode=False)


def test_nothing_is_left_where_nothing_was_done(place, capsys):
    with pytest.raises(InputError):
        app(shlex.split("data subsample gone.h5 --count 5 -o few.h5"), standalone_mode=False)
    cgml_run("cgml train dataset.h5 --dry-run -o other.pt", capsys)
    assert {path.name for path in place.iterdir()} == {"dataset.h5", "molecule.pt"}


def test_numbers_that_json_has_not():
    record = {"a": float("nan"), "b": [float("inf"), 1], "c": {"d": -float("inf")}}
    assert command_step._finite(record) == {"a": None, "b": [None, 1], "c": {"d": None}}


def test_formats_are_those_there_are():
    assert tuple(FORMATS) == _FORMATS


def test_toml_is_read_as_it_was_written(tmp_path):
    options = {"text": 'a "b"\n\\c \x7f é 𝛼', "list": [Path("x y"), "z"], "number": 1e-300,
               "large": 10**12, "flag": True, "none": None, "with-dash": -1.5}  # fmt: skip
    provenance = {"command": "map", "date": "now", "seconds": 1.0, "inputs": {"a b": "c"},
                  "versions": {}}  # fmt: skip
    command_step._write_echo(tmp_path / "x.toml", provenance, options)
    held = command_step.read_echo(tmp_path / "x.toml")
    options["list"] = ["x y", "z"]
    del options["none"]
    assert held["options"] == options and held["inputs"] == {"a b": "c"}


def least_seconds(*arguments: str, times: int = 5) -> float:
    """Processor time of a process of its own, the least of several; other processes run beside."""
    found = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def test_help_and_import_are_quick():
    assert least_seconds("-c", "import openmm_cgml") < 0.15
    assert least_seconds("-m", "openmm_cgml", "--help") < 0.3
    code = "import sys; from openmm_cgml import cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"numpy", "torch", "openmm", "rich", "h5py"} & set(done.stdout.split())


def test_names_are_completed():
    """As a shell asks: the words so far, and which of them is being typed."""
    for line, expected in (
        ("cgml tr", {"train"}),
        ("cgml train --network ", set(cgml.PMFS)),
        ("cgml map --mapping c", {"calpha", "calpha_cbeta", "core_beta"}),
        ("cgml simulate a.pt --backend t", {"torchforce"}),
    ):
        number = len(line.split()) - (not line.endswith(" "))
        environment = {**os.environ, "_CGML_COMPLETE": "complete_bash", "COMP_WORDS": line,
                       "COMP_CWORD": str(number)}  # fmt: skip
        code = "from openmm_cgml.cli import app; app(prog_name='cgml')"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                              text=True)  # fmt: skip
        assert set(done.stdout.split()) == expected, line
