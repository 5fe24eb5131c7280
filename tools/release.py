"""Steps of a release that would go wrong by hand; docs/release.md says when to take which.

version   writes a version into all places that have one
check     says what stands in the way of a release
build     makes dist/ from the last commit: source distribution, wheel, their checksums
feedstock prints the conda recipe with the published source distribution as its source

Standard library and setuptools only.
"""

import argparse
import datetime
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Where the version stands, and how.
PLACES = {
    "openmm_cgml/version.py": r'^__version__ = "(?P<version>[^"]+)"$',
    "conda-recipe/recipe.yaml": r'^  version: "(?P<version>[^"]+)"',
}
HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>\S+)$", re.MULTILINE)
VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")

#: PyPI's address of a source distribution that does not depend on the file's content.
SOURCE = "https://pypi.org/packages/source/o/openmm_cgml/openmm_cgml-${{ version }}.tar.gz"


class ReleaseError(Exception):
    """A step cannot be taken; the message says why."""


# ---------------------------------------------------------------- versions


def versions(root: Path = ROOT) -> dict[str, str]:
    """Return the version in each of its places.

    Raises:
        ReleaseError: if a place has none.
    """
    found = {}
    for name, pattern in PLACES.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        if match is None:
            raise ReleaseError(f"{name} has no line like {pattern}")
        found[name] = match["version"]
    return found


def set_version(version: str, date: str | None = None, root: Path = ROOT) -> None:
    """Write a version into its places, and a date into the changelog's heading of it.

    Args:
        version: e.g. ``0.2.0`` or ``0.2.0rc1``.
        date: of the release, ``2027-01-31``; None: today.
        root: of the tree.

    Raises:
        ReleaseError: if it is no version, or the changelog does not begin with it or a section
            that is not released.
    """
    if not VERSION.fullmatch(version):
        raise ReleaseError(f"{version!r} is no version; give three numbers, as 0.2.0 or 0.2.0rc1")
    changelog = root / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    first = HEADING.search(text)
    if first is None or (first["date"] != "Unreleased" and first["version"] != version):
        raise ReleaseError(
            f"CHANGELOG.md does not begin with a section '## [{version}] - Unreleased'; write one"
        )
    found = versions(root)  # all places, before any is changed
    date = date or datetime.date.today().isoformat()
    heading = f"## [{version}] - {date}"
    changelog.write_text(text.replace(first[0], heading, 1), encoding="utf-8")
    for name, pattern in PLACES.items():
        place = root / name
        text = place.read_text(encoding="utf-8")
        old = found[name]
        text = re.sub(
            pattern, lambda m, old=old: m[0].replace(old, version), text, count=1, flags=re.M
        )
        place.write_text(text, encoding="utf-8")


def problems(root: Path = ROOT) -> list[str]:
    """Return what stands in the way of a release."""
    found = versions(root)
    version = found["openmm_cgml/version.py"]
    said = [
        f"{name} has version {one}, openmm_cgml/version.py {version}"
        for name, one in found.items()
        if one != version
    ]
    heading = HEADING.search((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if heading is None or heading["version"] != version:
        said.append(f"CHANGELOG.md does not begin with a section of version {version}")
    elif not re.fullmatch(r"\d{4}-\d\d-\d\d", heading["date"]):
        said.append(f"CHANGELOG.md has no date for version {version}, but {heading['date']!r}")
    if changed := git("status", "--porcelain", root=root):
        said.append(f"there are changes without a commit:\n{changed}")
    tagged = git("tag", "--list", f"v{version}", root=root)
    if tagged and f"v{version}" not in git("tag", "--points-at", "HEAD", root=root).split():
        said.append(f"tag v{version} is of another commit: this version was released before")
    return said


def git(*arguments: str, root: Path = ROOT) -> str:
    """Return what a git command prints.

    Raises:
        ReleaseError: if it fails.
    """
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.rstrip()


# ---------------------------------------------------------------- products


def build(target: Path, root: Path = ROOT) -> list[Path]:
    """Build the source distribution from the last commit, and the wheel from that.

    Nothing that lies about in the work tree can get into them.

    Args:
        target: folder; must not hold products of an earlier build.
        root: of the tree.

    Returns:
        The source distribution and the wheel; their checksums are in SHA256SUMS beside them.

    Raises:
        ReleaseError: if the folder is not empty, or a build fails.
    """
    if target.exists() and any(target.iterdir()):
        raise ReleaseError(f"{target} is not empty; remove what an earlier build left there")
    target.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(
        ["git", "archive", "--format=tar", "HEAD"], cwd=root, capture_output=True, check=True
    ).stdout
    epoch = git("log", "-1", "--format=%ct", root=root)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _extract(BytesIO(archive), folder / "tree")
        sdist = _product("sdist", folder / "tree", target, epoch)
        _extract(BytesIO(sdist.read_bytes()), folder / "unpacked")
        (tree,) = (folder / "unpacked").iterdir()
        wheel = _product("wheel", tree, target, epoch)
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in (sdist, wheel))
    (target / "SHA256SUMS").write_text(sums)
    return [sdist, wheel]


def sha256(path: Path) -> str:
    """Return a file's checksum."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _product(kind: str, source: Path, target: Path, epoch: str) -> Path:
    code = (
        "import sys; from setuptools import build_meta; "
        f"print(build_meta.build_{kind}(sys.argv[1]))"
    )
    variables = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CGML_BUILD_NATIVE")
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(target.resolve())],
        cwd=source,
        env={**variables, "SOURCE_DATE_EPOCH": epoch},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ReleaseError(f"building the {kind} failed:\n{done.stderr.strip()}")
    return target / done.stdout.split()[-1]


def _extract(content: BytesIO, folder: Path) -> None:
    with tarfile.open(fileobj=content) as archive:
        # Ours; Pythons from 3.12 on warn without a filter, early 3.10 and 3.11 know none.
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safe)


# ---------------------------------------------------------------- the feedstock


def feedstock(
    sdist: Path, homepage: str | None = None, maintainers: Sequence[str] = (), root: Path = ROOT
) -> str:
    """Return the recipe of a feedstock.

    Args:
        sdist: the source distribution that was uploaded.
        homepage: of the project.
        maintainers: GitHub names.
        root: of the tree.

    Raises:
        ReleaseError: if the file is of another version, or the recipe has another source.
    """
    text = (root / "conda-recipe" / "recipe.yaml").read_text(encoding="utf-8")
    version = versions(root)["conda-recipe/recipe.yaml"]
    if sdist.name != f"openmm_cgml-{version}.tar.gz":
        raise ReleaseError(f"{sdist.name} is not the source distribution of version {version}")
    if text.count("\nsource:\n  path: ..\n") != 1:
        raise ReleaseError("conda-recipe/recipe.yaml has another source than 'path: ..'")
    source = f"\nsource:\n  url: {SOURCE}\n  sha256: {sha256(sdist)}\n"
    text = text.replace("\nsource:\n  path: ..\n", source)
    # The comments there are about this tree.
    text = text[text.index("schema_version:") :]
    if homepage:
        text = text.replace("\nabout:\n", f"\nabout:\n  homepage: {homepage}\n")
    if maintainers:
        names = "".join(f"    - {name}\n" for name in maintainers)
        text = f"{text.rstrip()}\n\nextra:\n  recipe-maintainers:\n{names}"
    return text


def main(arguments: Sequence[str] | None = None) -> int | str:
    """Take a step; the exit status, or one line on what went wrong."""
    parser = argparse.ArgumentParser(description="Steps of a release; see docs/release.md.")
    steps = parser.add_subparsers(dest="step", required=True)
    one = steps.add_parser("version", help="write a version into all its places")
    one.add_argument("version")
    one.add_argument("--date", help="of the release (default: today)")
    steps.add_parser("check", help="say what stands in the way of a release")
    one = steps.add_parser("build", help="make source distribution and wheel from the last commit")
    one.add_argument("--output", type=Path, default=ROOT / "dist", help="folder (default: dist)")
    one = steps.add_parser("feedstock", help="print the recipe for conda-forge")
    one.add_argument("sdist", type=Path)
    one.add_argument("--homepage")
    one.add_argument("--maintainer", action="append", default=[], help="GitHub name; repeatable")
    options = parser.parse_args(arguments)
    try:
        if options.step == "version":
            set_version(options.version, options.date)
        elif options.step == "check":
            if said := problems():
                return "\n".join(said)
            print(f"ready: {versions()['openmm_cgml/version.py']}")
        elif options.step == "build":
            for path in build(options.output):
                print(sha256(path), path)
        else:
            print(feedstock(options.sdist, options.homepage, options.maintainer), end="")
    except ReleaseError as error:
        return str(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
