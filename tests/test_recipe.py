"""The conda recipe: read, rendered and built by rattler-build, with no channel but one made here.

That channel has a `python` that calls this one, and empty packages under the names of the recipe's
requirements in the versions that are installed here. So the build, what is in the package and what
an installation of it does are real; that conda-forge has the requirements is not shown.
"""

import ensurepip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from test_packaging import CONDA_NAMES, ROOT, active, setup_arguments, tracked_copy  # noqa: F401

import openmm_cgml
from openmm_cgml.version import __version__

rattler_build = pytest.importorskip("rattler_build")

RECIPE = ROOT / "conda-recipe" / "recipe.yaml"
PLATFORM = "linux-64"
PYTHON = "{}.{}".format(*sys.version_info)

PYTHON_STUB = """#!/bin/sh
prefix=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$prefix/lib/python{python}/site-packages:{pip}"
export PIP_PREFIX="$prefix" PIP_IGNORE_INSTALLED=1 PIP_NO_INDEX=1 PYTHONDONTWRITEBYTECODE=1
export OPENMM_CGML_CACHE="{cache}"
exec "{executable}" "$@"
"""


def render(text: str | None = None, folder: Path | None = None) -> "rattler_build.RenderedVariant":
    """Render a recipe; there is one variant of it."""
    if text is None:
        recipe = rattler_build.Stage0Recipe.from_file(
            (folder or ROOT) / "conda-recipe/recipe.yaml"
        )
    else:
        recipe = rattler_build.Stage0Recipe.from_yaml(text)
    platforms = rattler_build.PlatformConfig(target_platform=PLATFORM)
    (variant,) = recipe.render(
        rattler_build.VariantConfig({}), rattler_build.RenderConfig(platforms)
    )
    return variant


# ---------------------------------------------------------------- reading


def test_recipe_renders() -> None:
    found = render().recipe.to_dict()
    assert found["package"] == {"name": "openmm_cgml", "version": __version__}
    assert found["build"]["noarch"] == "python"
    assert re.fullmatch(r"pyh[0-9a-f]{7}_0", found["build"]["string"])
    lowest = found["context"]["python_min"]
    assert f"python >={lowest}" in found["requirements"]["run"]
    assert f"python {lowest}.*" in found["requirements"]["host"]
    assert found["about"]["license"] == "MIT"
    assert "${{" not in json.dumps(found).replace("${{ PYTHON }}", "")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("about:", "abuot:", "unknown top-level field 'abuot'"),
        ("  noarch: python", "  noarhc: python", "unknown field 'noarhc'"),
        ("noarch: python", "noarch: pyhton", "invalid noarch type 'pyhton'"),
        ("- pymbar >=4", "- pymbar >=>4", "unable to parse version spec"),
        ("python ${{ python_min }}", "python ${{ python_mni }}", "undefined value"),
        ("license: MIT", "license: MTI-2", "failed to parse SPDX license"),
        ("cgml = openmm_cgml.cli:main", "cgml openmm_cgml.cli:main", "missing entry point sep"),
        ("pip_check: false", "pip_check: never", "expected a boolean value"),
        ("  summary:", "  license: MIT\n  summary:", "Duplicate key"),
    ],
)
def test_mistakes_in_a_recipe_are_caught(old, new, complaint) -> None:
    text = RECIPE.read_text()
    assert old in text
    with pytest.raises(Exception, match=complaint):
        render(text.replace(old, new, 1))


# ---------------------------------------------------------------- building

linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info < (3, 11),
    reason="the channel made here has Linux x86-64 and the recipe's Pythons only",
)


def pip_wheel() -> Path:
    return next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))


@pytest.fixture(scope="module")
def rattler_cache(tmp_path_factory):
    """Else the stubs would go to the user's cache, under the names of the real packages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RATTLER_CACHE_DIR", str(tmp_path_factory.mktemp("rattler")))
        yield


@pytest.fixture(scope="module")
def channel(tmp_path_factory, setup_arguments, rattler_cache) -> str:  # noqa: F811
    """URL of the channel."""
    folder = tmp_path_factory.mktemp("channel")
    stub = tmp_path_factory.mktemp("stub")

    def add(name: str, version: str, subdir: str, files: Path) -> None:
        rattler_build.assemble_package(
            name, version, subdir, "0", folder / subdir, files_dir=files,
            noarch="generic" if subdir == "noarch" else None,
        )  # fmt: skip

    (stub / "python" / "bin").mkdir(parents=True)
    for name in ("python", f"python{PYTHON}"):
        program = stub / "python" / "bin" / name
        program.write_text(
            PYTHON_STUB.format(
                python=PYTHON, pip=pip_wheel(), executable=sys.executable,
                cache=os.environ["OPENMM_CGML_CACHE"],
            )
        )  # fmt: skip
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    add("python", platform.python_version(), PLATFORM, stub / "python")

    required = [one.name for one in active(setup_arguments["install_requires"], PYTHON)]
    versions = {CONDA_NAMES.get(n, n): metadata.version(n).split("+")[0] for n in required}
    versions["pip"] = pip_wheel().name.split("-")[1]
    for name, version in versions.items():
        files = stub / name
        files.mkdir()
        (files / f"{name}.txt").write_text("an empty package for a test\n")
        add(name, version, "noarch", files)
    for subdir in ("noarch", PLATFORM):
        index_channel(folder / subdir)
    return folder.as_uri()


def index_channel(folder: Path) -> None:
    """Write repodata.json of the packages in a folder."""
    packages = {}
    for path in folder.glob("*.conda"):
        package = rattler_build.Package.from_file(path)
        content = path.read_bytes()
        packages[path.name] = {
            "name": package.name,
            "version": package.version,
            "build": package.build_string,
            "build_number": package.build_number,
            "depends": package.depends,
            "subdir": folder.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
        }
    index = {"info": {"subdir": folder.name}, "packages": {}, "packages.conda": packages}
    (folder / "repodata.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def package(channel, tmp_path_factory) -> "rattler_build.Package":
    """The recipe, built from a clean copy of the tree."""
    source = tracked_copy(tmp_path_factory.mktemp("tree") / "source")
    # The host environment's Python is the lowest; here it is the only one there is.
    recipe = source / "conda-recipe" / "recipe.yaml"
    text = re.sub(r'python_min: "[\d.]+"', f'python_min: "{PYTHON}"', recipe.read_text())
    recipe.write_text(text)
    output = tmp_path_factory.mktemp("output")
    result = render(folder=source).run_build(
        rattler_build.ToolConfiguration(use_sharded=False), output_dir=output, channels=[channel]
    )
    (path,) = result.packages
    assert path.name.startswith(f"openmm_cgml-{__version__}-pyh") and path.suffix == ".conda"
    # The host's environment is as large as its Python; nothing needs it any more.
    shutil.rmtree(output / "bld", ignore_errors=True)
    return rattler_build.Package.from_file(path)


@linux
def test_package_has_the_package_and_nothing_else(package, tmp_path) -> None:
    source = tracked_copy(tmp_path / "source") / "openmm_cgml"
    expected = {
        f"site-packages/openmm_cgml/{path.relative_to(source).as_posix()}"
        for path in source.rglob("*")
        if path.is_file()
    }
    info = f"site-packages/openmm_cgml-{__version__}.dist-info/"
    found = {name for name in package.files if not name.startswith(info)}
    assert found == expected
    assert f"{info}entry_points.txt" in package.files
    assert f"{info}licenses/LICENSE" in package.files
    assert "site-packages/openmm_cgml/data/mappings/martini.toml" in found
    assert "site-packages/openmm_cgml/native/force.cpp" in found
    assert package.noarch == "python" and package.subdir == "noarch" and package.license == "MIT"
    assert package.constrains == []


@linux
def test_package_makes_the_command(package, tmp_path) -> None:
    """conda makes the scripts of a noarch package on installation, from info/link.json."""
    name = package.filename.removesuffix(".conda")
    with zipfile.ZipFile(package.path) as archive:
        archive.extractall(tmp_path)
    info, files = (unpack_zst(tmp_path / f"{part}-{name}.tar.zst") for part in ("info", "pkg"))
    link = json.loads(info["info/link.json"])
    assert link["noarch"] == {"type": "python", "entry_points": ["cgml = openmm_cgml.cli:main"]}
    (entries,) = (data for place, data in files.items() if place.endswith("entry_points.txt"))
    assert b"[openmmml.potentials]\ncgml = openmm_cgml.plugin:CGML" in entries
    about = json.loads(info["info/about.json"])
    assert about["summary"] == "Machine-learned coarse-grained simulation in OpenMM"
    assert info["info/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def unpack_zst(path: Path) -> dict[str, bytes]:
    """Return the files of a .tar.zst."""
    zstandard = pytest.importorskip("zstandard")
    content = zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}


@linux
@pytest.mark.slow
def test_the_recipes_own_tests_pass(package, channel) -> None:
    """Solved and installed into an environment of its own; imports, `cgml --help`, the doctor."""
    assert package.test_count == 2
    for number in range(package.test_count):
        result = package.run_test(number, channel=[channel])
        assert result.success, "\n".join(result.output)
    assert "python 3" not in openmm_cgml.__file__  # this process still has its own
