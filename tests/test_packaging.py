"""setup.py, the conda recipe and the constraints agree; pip's settings reach uv."""

import ensurepip
import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import types
import venv
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from openmm_cgml.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAMES = {"torch": "pytorch", "openmmtorch": "openmm-torch", "matplotlib": "matplotlib-base"}
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]

bootstrap = types.SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "bootstrap.py")))


@pytest.fixture(scope="module")
def setup_arguments():
    """The arguments of setup(), without setuptools (which only the build needs)."""
    fake = types.ModuleType("setuptools")
    fake.find_packages = lambda **_: []
    fake.setup = mock.Mock()
    with mock.patch.dict(sys.modules, setuptools=fake):
        runpy.run_path(str(ROOT / "setup.py"))
    return fake.setup.call_args.kwargs


@pytest.fixture(scope="module")
def recipe():
    return yaml.safe_load((ROOT / "conda-recipe" / "recipe.yaml").read_text())


def active(lines: list[str], python: str) -> list[Requirement]:
    """The requirements whose markers hold on Linux under a Python version."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
    }
    requirements = [Requirement(line) for line in lines]
    return [one for one in requirements if not one.marker or one.marker.evaluate(environment)]


def active_constraints(python: str) -> list[Requirement]:
    lines = (ROOT / "constraints" / "torchforce.txt").read_text().splitlines()
    return active([line for line in lines if line and not line.startswith("#")], python)


def tracked_copy(target: Path) -> Path:
    """Copy what is under version control to a new folder, as a release is made from it.

    Tests that run from a source distribution have no version control: all but caches then.
    """
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not (ROOT / ".git").exists():
        names = ["*.egg-info", "__pycache__", ".*", "build", "dist", "demo", "libcgml.*"]
        return Path(shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*names)))
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


# ---------------------------------------------------------------- metadata


def test_version(setup_arguments, recipe):
    assert setup_arguments["version"] == __version__
    assert recipe["context"]["version"] == __version__


def test_recipe_requires_what_setup_requires(setup_arguments, recipe):
    """On its lowest Python: a noarch recipe knows no markers."""
    lowest = recipe["context"]["python_min"]
    expected = {
        (CONDA_NAMES.get(one.name, one.name), str(one.specifier))
        for one in active(setup_arguments["install_requires"], lowest)
    }
    expected.add(("python", ">=${{python_min}}"))
    found = {
        (line.split()[0], "".join(line.split()[1:])) for line in recipe["requirements"]["run"]
    }
    assert found == expected


def test_markers_hold_for_every_python_of_the_recipe(setup_arguments, recipe):
    lowest = PYTHONS.index(recipe["context"]["python_min"])
    named = [
        {str(one) for one in active(setup_arguments["install_requires"], python)}
        for python in PYTHONS[lowest:]
    ]
    assert all(one == named[0] for one in named)


def test_recipe_builds_with_what_the_build_requires(recipe):
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    host = ["".join(line.split()) for line in recipe["requirements"]["host"]]
    assert set(build) <= set(host)


def test_recipe_has_the_console_script(setup_arguments, recipe):
    scripts = setup_arguments["entry_points"]["console_scripts"]
    assert recipe["build"]["python"]["entry_points"] == scripts


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_are_exact_and_unambiguous(python):
    names = [canonicalize_name(one.name) for one in active_constraints(python)]
    assert len(names) == len(set(names))
    for one in active_constraints(python):
        assert [specifier.operator for specifier in one.specifier] == ["=="]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", ["torchforce", "cuda12", "dev"])
def test_constraints_satisfy_setup(setup_arguments, python, extra):
    pinned = {canonicalize_name(one.name): one for one in active_constraints(python)}
    lines = setup_arguments["install_requires"] + setup_arguments["extras_require"][extra]
    for requirement in active(lines, python):
        (pin,) = pinned[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version), f"{requirement} but {pin}"


# ---------------------------------------------------------------- tools/bootstrap.py


def uv_settings(environ=None, **settings):
    settings = {name.replace("_", "-"): value for name, value in settings.items()}
    return bootstrap.uv_settings(settings, environ or {})


ALWAYS = {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_PYTHON_DOWNLOADS": "never"}


def test_pip_config_is_parsed_by_section():
    listing = (
        ":env:.find-links='\\n/a\\n/b'\n"
        "global.extra-index-url='https://one.example/simple?x=1'\n"
        "WARNING: something else\n"
        "install.no-index='true'\n"
    )
    assert bootstrap.parse_pip_config(listing) == {
        ":env:": {"find-links": "\n/a\n/b"},
        "global": {"extra-index-url": "https://one.example/simple?x=1"},
        "install": {"no-index": "true"},
    }


def test_install_section_beats_global_and_the_environment_both():
    sections = {
        ":env:": {"default-timeout": "9", "cert": " "},
        "install": {"find-links": "/install"},
        "global": {"find-links": "/global", "timeout": "5", "cert": "/pem"},
        "download": {"no-index": "1"},
    }
    expected = {"find-links": "/install", "timeout": "9", "cert": "/pem"}
    assert bootstrap.install_settings(sections) == expected


def test_nothing_set_gives_pips_index_strategy_alone():
    assert uv_settings() == (ALWAYS, [])


def test_every_setting_is_translated(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    environment, arguments = uv_settings(
        index_url="https://main.example/simple",
        extra_index_url=f"\nhttps://more.example/simple\n{one.as_uri()}",
        find_links=f"{one} {two.as_uri()}\nhttps://wheels.example/",
        trusted_host="main.example\nmore.example:8080",
        cert="/certs/ca.pem",
        timeout="180",
        proxy="http://proxy.example:3128",
    )
    assert arguments == []
    assert environment == ALWAYS | {
        "UV_DEFAULT_INDEX": "https://main.example/simple",
        "UV_INDEX": f"https://more.example/simple {one.as_uri()}",
        "UV_FIND_LINKS": f"{one},{two},https://wheels.example/",
        "UV_INSECURE_HOST": "main.example more.example:8080",
        "SSL_CERT_FILE": "/certs/ca.pem",
        "UV_HTTP_TIMEOUT": "180",
        "ALL_PROXY": "http://proxy.example:3128",
    }


def test_absent_places_are_dropped(tmp_path):
    gone = tmp_path / "gone"
    settings = {"extra_index_url": f"{gone.as_uri()} https://a.example", "find_links": str(gone)}
    assert uv_settings(**settings) == (ALWAYS | {"UV_INDEX": "https://a.example"}, [])


def test_absent_main_index_does_not_open_the_public_one(tmp_path):
    gone = (tmp_path / "gone").as_uri()
    assert uv_settings(index_url=gone) == (ALWAYS, ["--no-index"])
    environment, arguments = uv_settings(index_url=gone, extra_index_url="https://a.example")
    assert (environment["UV_DEFAULT_INDEX"], arguments) == ("https://a.example", [])
    assert "UV_INDEX" not in environment


@pytest.mark.parametrize(("value", "arguments"), [("1", ["--no-index"]), ("false", [])])
def test_no_index(value, arguments):
    assert uv_settings(no_index=value) == (ALWAYS, arguments)


def test_what_the_user_set_for_uv_stays():
    environ = {"UV_INDEX_URL": "https://mine.example", "UV_INDEX_STRATEGY": "first-index"}
    environ |= {"SSL_CERT_FILE": "/mine.pem", "UV_REQUEST_TIMEOUT": "7"}
    settings = {"index_url": "https://pip.example", "cert": "/pip.pem", "timeout": "180"}
    assert uv_settings(environ, **settings) == ({"UV_PYTHON_DOWNLOADS": "never"}, [])


def test_stamp_is_honoured_only_for_the_same_inputs(tmp_path, monkeypatch):
    names = bootstrap.is_current.__globals__
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    monkeypatch.setitem(names, "ENV", tmp_path)
    monkeypatch.setitem(names, "STAMP", tmp_path / "stamp")
    assert not bootstrap.is_current(exact=False)

    digest, version = bootstrap.expected_stamp()
    (tmp_path / "stamp").write_text(f"{digest}\n{version}\n")
    assert bootstrap.is_current(exact=False) and bootstrap.is_current(exact=True)

    # Another Python matters only to who named one; other inputs always do.
    (tmp_path / "stamp").write_text(f"{digest}\n3.0\n")
    assert bootstrap.is_current(exact=False) and not bootstrap.is_current(exact=True)
    monkeypatch.setitem(names, "INPUTS", [ROOT / "setup.py"])
    assert not bootstrap.is_current(exact=False)


# ---------------------------------------------------------------- wheel and source distribution


def build(kind: str, source: Path, target: Path) -> Path:
    """Build in a process of its own, without an index; return the wheel or source distribution."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=clean_environment(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target / done.stdout.split()[-1]


def clean_environment(**more: str) -> dict[str, str]:
    """Variables of a shell that knows nothing of this checkout."""
    kept = ("PATH", "HOME", "LANG", "OPENMM_CGML_CACHE", "SSL_CERT_FILE")
    return {name: os.environ[name] for name in kept if name in os.environ} | more


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Wheel and source distribution, made from a clean copy of the tracked files."""
    folder = tmp_path_factory.mktemp("products")
    source = tracked_copy(folder / "source")
    listed = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    (folder / "dist").mkdir()
    return types.SimpleNamespace(
        files=listed,
        wheel=build("wheel", tracked_copy(folder / "again"), folder / "dist"),
        sdist=build("sdist", source, folder / "dist"),
    )


def wheel_content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}


def without_metadata(content: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in content.items() if ".dist-info/" not in name}


def test_wheel_holds_the_package(products):
    """All of it, with data and C++ source, and nothing else: no tests, nothing compiled."""
    assert products.wheel.name == f"openmm_cgml-{__version__}-py3-none-any.whl"
    content = wheel_content(products.wheel)
    expected = {name for name in products.files if name.startswith("openmm_cgml/")}
    assert set(without_metadata(content)) == expected
    for name in ("py.typed", "native/force.cpp", "data/mappings/martini.toml",
                 "data/quickstart/trajectory.npz"):  # fmt: skip
        assert f"openmm_cgml/{name}" in expected
    entries = content[f"openmm_cgml-{__version__}.dist-info/entry_points.txt"].decode()
    assert "cgml = openmm_cgml.cli:main" in entries
    assert "cgml = openmm_cgml.plugin:CGMLPotentialImplFactory" in entries
    assert content[f"openmm_cgml-{__version__}.dist-info/licenses/LICENSE"]


def test_source_distribution_holds_the_tree(products):
    """Every tracked file: tests, docs, examples, constraints, recipe, as MANIFEST.in says.

    But for hidden ones, which are about version control and its hosts.
    """
    root = f"openmm_cgml-{__version__}/"
    with tarfile.open(products.sdist) as archive:
        found = {one.name.removeprefix(root) for one in archive if one.isfile()}
    made = {name for name in found if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    expected = {name for name in products.files if not name.startswith(".")}
    assert found - made == expected
    for name in ("LICENSE", "CHANGELOG.md", "Makefile", "constraints/torchforce.txt",
                 "conda-recipe/recipe.yaml", "docs/index.md", "tests/conftest.py"):  # fmt: skip
        assert name in found
    assert any(name.startswith("examples/") for name in found)


def test_wheel_of_the_source_distribution_is_the_same(products, tmp_path):
    with tarfile.open(products.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build("wheel", tmp_path / f"openmm_cgml-{__version__}", tmp_path)
    assert again.name == products.wheel.name
    first, second = wheel_content(products.wheel), wheel_content(again)
    assert set(first) == set(second)
    assert without_metadata(first) == without_metadata(second)


def fresh_environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel, that sees this one's other packages; its `bin`.

    The path is added by a .pth file, whose folders are not searched for .pth files in turn: an
    editable installation in this environment is not seen.
    """
    venv.EnvBuilder(with_pip=False).create(folder)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ran = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    here = sysconfig.get_path("purelib")
    (Path(ran.stdout.strip()) / "dependencies.pth").write_text(f"{here}\n")
    pip = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")) / "pip"
    subprocess.run(
        [python, pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed",
         "--no-compile", "--disable-pip-version-check", wheel],
        check=True, env=clean_environment(), cwd=folder,
    )  # fmt: skip
    return folder / "bin"


def run_in(folder: Path, *command: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True,
        env=clean_environment(OMP_NUM_THREADS="1", COLUMNS="200"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


USE = """
from importlib import resources
import numpy as np
import openmm_cgml as cgml
import openmm

print(cgml.__file__)
data = resources.files(cgml) / "data" / "quickstart"
with np.load(data / "trajectory.npz") as run:
    frames = run["positions"][::500], run["forces"][::500]
trajectory = cgml.read_trajectory(frames[0], top=data / "topology.pdb", forces=frames[1])
mapping = cgml.MAPPINGS["backbone"](trajectory.topology)
dataset = cgml.map_trajectory(trajectory, mapping, temperature=300)
cgml.save_model("model.pt", cgml.PMFS["cgnet"](dataset, width=8, depth=1), dataset)
system = cgml.load_model("model.pt").create_system(backend="python")
platform = openmm.Platform.getPlatform("Reference")
context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
context.setPositions(dataset.positions[0].astype(float))
context.getIntegrator().step(2)
print(context.getState(energy=True).getPotentialEnergy()._value)
"""


def test_wheel_in_a_fresh_environment(products, tmp_path):
    """From another folder, without a path to this checkout: the command, the doctor, two steps."""
    programs = fresh_environment(tmp_path / "env", products.wheel)
    work = tmp_path / "work"
    work.mkdir()
    assert "quickstart" in run_in(work, programs / "cgml", "--help")
    report = run_in(work, programs / "cgml", "doctor")
    assert f"openmm_cgml  {__version__}" in report
    (work / "use.py").write_text(USE)
    place, energy = run_in(work, programs / "python", "use.py").splitlines()[-2:]
    assert Path(place).is_relative_to(tmp_path / "env") and np.isfinite(float(energy))


@pytest.fixture(scope="module")
def uv(products):
    """uv's command, in .uv; made there if need be, as `make env` does."""
    try:
        available = bootstrap.prepare_uv()
    except (OSError, subprocess.CalledProcessError):
        available = False
    if not available:
        pytest.skip("uv cannot be had here")
    python = bootstrap.UV_ENV / "bin" / "python"
    listing = bootstrap.output(python, "-m", "pip", "config", "list")
    settings, more = bootstrap.uv_settings(
        bootstrap.install_settings(bootstrap.parse_pip_config(listing)), os.environ
    )

    def run(*arguments: object) -> "subprocess.CompletedProcess":
        extra = more if arguments[:2] == ("pip", "install") else []
        command = [str(part) for part in (python, "-m", "uv", *arguments, *extra)]
        return subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True
        )

    return run


@pytest.mark.slow
def test_wheel_with_its_dependencies_from_the_index(products, uv, tmp_path):
    """The README's installation, in an environment of its own; then the whole road, small."""
    target = tmp_path / "env"
    assert uv("venv", "--quiet", "--python", sys.executable, target).returncode == 0
    python = target / "bin" / "python"
    done = uv(
        "pip", "install", "--python", python, "-c", ROOT / "constraints" / "torchforce.txt",
        f"{products.wheel}[torchforce]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert uv("pip", "check", "--python", python).returncode == 0
    installed = uv("pip", "list", "--python", python).stdout.split()
    assert "pytest" not in installed and "openmmml" not in installed
    work = tmp_path / "work"
    work.mkdir()
    text = run_in(work, target / "bin" / "cgml", "quickstart", "--quick", "--output", "demo")
    summary = json.loads(text.splitlines()[-1])
    assert summary and (work / "demo" / "model.pt").exists()


def interpreter(python: str) -> str | None:
    """A Python of a version, run to see that it is one: a version manager's shim may refuse."""
    managed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    several = [shutil.which(f"python{python}"), *managed.glob(f"{python}.*/bin/python")]
    for one in filter(None, several):
        code = "import sys; print(*sys.version_info[:2], sep='.')"
        done = subprocess.run([one, "-c", code], capture_output=True, text=True)
        if done.stdout.strip() == python:
            return str(one)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_wheel_on_every_python(products, uv, python, tmp_path):
    """Imported with numpy alone, as a light import promises; the command with what it needs."""
    target, found = tmp_path / "env", interpreter(python)
    if found is None:
        pytest.skip(f"no Python {python} here")
    assert uv("venv", "--quiet", "--python", found, target).returncode == 0
    light = ["numpy", "typer", "rich"] + (["tomli"] if python == "3.10" else [])
    constraints = ROOT / "constraints" / "torchforce.txt"
    command = ("pip", "install", "--python", target / "bin" / "python", "-c", constraints)
    assert uv(*command, *light).returncode == 0
    done = uv(*command, "--no-deps", products.wheel)
    assert done.returncode == 0, done.stderr
    code = "import sys, openmm_cgml, openmm_cgml.plugin; print(*sys.version_info[:2], sep='.')"
    assert run_in(tmp_path, target / "bin" / "python", "-c", code).strip() == python
    assert "quickstart" in run_in(tmp_path, target / "bin" / "cgml", "--help")


# ---------------------------------------------------------------- CGML_BUILD_NATIVE=1

LOADS = """
from openmm_cgml.native import force, library
print(force.problem(), library.__file__)
library._fits = lambda: {"torch": "another"}
for function in (library.load, force.load, force.problem):
    function.cache_clear()
print(force.problem())
"""


@pytest.mark.slow
def test_a_wheel_with_the_native_force_needs_no_compiler(tmp_path):
    """But only for the torch and OpenMM that it was built with."""
    from openmm_cgml.native import force, library

    if force.problem():
        pytest.skip(force.problem())
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "libcgml.*")
    shutil.copytree(ROOT / "openmm_cgml", source / "openmm_cgml", ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env={**os.environ, "CGML_BUILD_NATIVE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = source.glob("*.whl")
    assert not wheel.name.endswith("-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    place = tmp_path / "installed" / "openmm_cgml" / "native"
    assert (place / "libcgml.so").exists()
    assert json.loads((place / "libcgml.json").read_text()) == library._fits()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "PATH": str(tmp_path)}
    environment |= {"OPENMM_CGML_CACHE": str(tmp_path / "cache"), "CXX": ""}
    done = subprocess.run(
        [sys.executable, "-c", LOADS], cwd=tmp_path, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"None {place / 'library.py'}"
    assert "there is no C++ compiler" in second
