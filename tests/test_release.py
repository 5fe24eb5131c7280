"""tools/release.py: versions in their places, what is in the way, products, the feedstock."""

import hashlib
import runpy
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest
from test_packaging import tracked_copy
from test_recipe import render

from openmm_cgml.version import __version__

ROOT = Path(__file__).resolve().parent.parent
release = types.SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "release.py")))


@pytest.fixture
def tree(tmp_path) -> Path:
    """What a release touches, committed."""
    tree = tmp_path / "tree"
    for name in ("openmm_cgml/version.py", "conda-recipe/recipe.yaml", "CHANGELOG.md"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    (tree / "CHANGELOG.md").write_text(f"# Changelog\n\n## [{__version__}] - Unreleased\n\n- A.\n")
    commit(tree, "init", "--quiet")
    return tree


def commit(tree: Path, *before: str) -> None:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (before, ["add", "--all"], [*who, "commit", "--quiet", "-m", "x"]):
        if arguments:
            subprocess.run(["git", *arguments], cwd=tree, check=True)


def test_places_of_this_tree_agree():
    assert set(release.versions().values()) == {__version__}


def test_a_version_is_written_everywhere(tree):
    release.set_version("1.2.0rc1", "2031-02-03", tree)
    assert set(release.versions(tree).values()) == {"1.2.0rc1"}
    assert "## [1.2.0rc1] - 2031-02-03\n" in (tree / "CHANGELOG.md").read_text()
    recipe = (tree / "conda-recipe" / "recipe.yaml").read_text()
    assert recipe == (ROOT / "conda-recipe" / "recipe.yaml").read_text().replace(
        f'  version: "{__version__}"', '  version: "1.2.0rc1"'
    )
    assert render(recipe).recipe.package.version == "1.2.0rc1"


@pytest.mark.parametrize("version", ["1.2", "v1.2.0", "1.2.0-rc1", ""])
def test_what_is_no_version(tree, version):
    with pytest.raises(release.ReleaseError, match="is no version; give three numbers"):
        release.set_version(version, root=tree)


def test_a_version_needs_a_section(tree):
    release.set_version("1.0.0", "2031-02-03", tree)
    with pytest.raises(release.ReleaseError, match="does not begin with a section"):
        release.set_version("1.1.0", root=tree)
    assert set(release.versions(tree).values()) == {"1.0.0"}


def test_what_is_in_the_way_of_a_release(tree):
    (said,) = release.problems(tree)
    assert said == f"CHANGELOG.md has no date for version {__version__}, but 'Unreleased'"
    release.set_version("1.0.0", "2031-02-03", tree)
    (said,) = release.problems(tree)
    assert said.startswith("there are changes without a commit:\n M CHANGELOG.md")
    commit(tree)
    assert release.problems(tree) == []
    subprocess.run(["git", "tag", "v1.0.0"], cwd=tree, check=True)
    assert release.problems(tree) == []
    (tree / "new").touch()
    commit(tree)
    assert release.problems(tree) == [
        "tag v1.0.0 is of another commit: this version was released before"
    ]
    version = tree / "openmm_cgml" / "version.py"
    version.write_text(version.read_text().replace("1.0.0", "1.0.1"))
    commit(tree)
    assert release.problems(tree) == [
        "conda-recipe/recipe.yaml has version 1.0.0, openmm_cgml/version.py 1.0.1",
        "CHANGELOG.md does not begin with a section of version 1.0.1",
    ]


def test_products_are_of_the_last_commit(tmp_path):
    tree = tracked_copy(tmp_path / "tree")
    commit(tree, "init", "--quiet")
    (tree / "openmm_cgml" / "stray.py").touch()
    sdist, wheel = release.build(tmp_path / "dist", tree)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    with tarfile.open(sdist) as archive:
        names += archive.getnames()
    assert "openmm_cgml/system.py" in names
    assert f"openmm_cgml-{__version__}/tests/conftest.py" in names
    assert not any("stray" in name for name in names)
    assert (tmp_path / "dist" / "SHA256SUMS").read_text() == "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in (sdist, wheel)
    )
    with pytest.raises(release.ReleaseError, match="is not empty; remove what an earlier build"):
        release.build(tmp_path / "dist", tree)

    recipe = release.feedstock(sdist, "https://example.org", ["someone"])
    found = render(recipe).recipe.to_dict()
    (source,) = found["source"]
    assert source["sha256"] == hashlib.sha256(sdist.read_bytes()).hexdigest()
    assert str(source["url"]).rstrip("/").endswith(f"/openmm_cgml-{__version__}.tar.gz")
    assert found["about"]["homepage"].rstrip("/") == "https://example.org"
    assert found["extra"] == {"recipe-maintainers": ["someone"]}
    # All else is what is built and tested from this tree.
    ours = render().recipe.to_dict()
    for one in (ours, found):
        del one["build"]["string"]  # a hash of the whole recipe
    for key in ("package", "build", "requirements", "tests"):
        assert found[key] == ours[key]


def test_feedstock_of_another_file(tmp_path):
    with pytest.raises(release.ReleaseError, match="is not the source distribution of version"):
        release.feedstock(tmp_path / "openmm_cgml-9.9.9.tar.gz")


def test_steps_say_what_is_wrong_in_a_line(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "release.py", "feedstock", tmp_path / "x.tar.gz"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("x.tar.gz is not the source distribution")
