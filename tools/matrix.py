"""Runs the tests marked `backend` in every pair of torch and OpenMM; writes the docs' table.

Called by the Makefile with .venv's Python; standard library only. .venv is one of the pairs, the
others are made in .matrix. A pair that cannot be installed on this machine is passed over, loudly.
Without --write the table is compared with what was found, and the work tree left as it is.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import bootstrap

ROOT = bootstrap.ROOT
MATRIX = ROOT / ".matrix"
PAGE = ROOT / "docs" / "backends.md"
BEGIN, END = "<!-- written by make matrix -->", "<!-- end -->"

PINS = dict(re.findall(r"^(torch|openmm)==(\S+)", bootstrap.CONSTRAINTS.read_text(), re.MULTILINE))
CPU_TORCH, NEXT_OPENMM = "2.13.0", "8.6.1"

# PyPI has torch for Linux with CUDA only. Searched where pip's own settings lead to no CPU build.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_INDEX_VARIABLE = "TORCH_CPU_INDEX"

CHECKS = {
    "forces": "forces",
    "dynamics": "dynamics",
    "copies": "single copies",
    "deepcopy": "`deepcopy`",
    "XML": "XML",
    "restart": "restart",
}

Outcomes = dict[str, dict[str, dict[str, str]]]  # backend -> check -> what the test recorded


class NotInstallable(Exception):
    """A pair cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class Cell:
    """A pair of torch and OpenMM."""

    torch: str
    openmm: str

    @property
    def is_home(self) -> bool:
        """Whether it is .venv's."""
        return (self.torch, self.openmm) == (PINS["torch"], PINS["openmm"])

    @property
    def cpu_only(self) -> bool:
        """Whether its torch is a build without CUDA."""
        return self.torch == CPU_TORCH

    @property
    def env(self) -> Path:
        """Folder of its environment."""
        name = f"torch-{self.torch}-openmm-{self.openmm}"
        return bootstrap.ENV if self.is_home else MATRIX / name

    @property
    def title(self) -> str:
        """First columns of its rows."""
        return f"| {self.torch}{', CPU-only' if self.cpu_only else ''} | {self.openmm} |"

    def requirements(self) -> list[str]:
        """What is installed besides the package: exact versions, and what openmmtorch lacks."""
        if self.cpu_only:
            # Elsewhere than on macOS builds without CUDA say so in their version.
            torch = [
                f"torch=={self.torch}+cpu ; sys_platform != 'darwin'",
                f"torch=={self.torch} ; sys_platform == 'darwin'",
            ]
        else:
            # As in setup.py's extra torchforce, which excludes this OpenMM.
            nvrtc = "sys_platform == 'linux' and platform_machine == 'x86_64'"
            nvrtc += " and (python_version == '3.10' or python_version == '3.13')"
            torch = [f"torch=={self.torch}", f"nvidia-cuda-nvrtc==13.* ; {nvrtc}"]
        return [*torch, f"openmm=={self.openmm}", "openmmtorch==1.5"]


CELLS = [
    Cell(torch, openmm)
    for torch in (PINS["torch"], CPU_TORCH)
    for openmm in (PINS["openmm"], NEXT_OPENMM)
]

# ---------------------------------------------------------------- environments


def stamp_of(cell: Cell) -> str:
    """What an environment is made from."""
    digest = hashlib.sha256(f"{cell.env} {cell.requirements()} {sys.version_info}".encode())
    for path in [*bootstrap.INPUTS, Path(__file__).resolve()]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def make_environment(cell: Cell) -> Path:
    """Bring a cell's environment up to date; return its Python.

    Raises:
        NotInstallable: if it cannot be made here.
    """
    python, stamp = cell.env / "bin" / "python", cell.env / "matrix-stamp"
    if cell.is_home or (stamp.exists() and stamp.read_text() == stamp_of(cell)):
        return python
    bootstrap.say(f"Making {cell.env.relative_to(ROOT)}")
    constraints = MATRIX / f"{cell.env.name}.txt"
    constraints.parent.mkdir(exist_ok=True)
    pins = bootstrap.CONSTRAINTS.read_text()
    # openmm-ml follows OpenMM: its versions from 1.8 on need OpenMM 8.6.
    free = re.sub(r"^(torch|openmm|openmmml)==.*\n", "", pins, flags=re.MULTILINE)
    constraints.write_text(free)
    arguments = ["-c", constraints, "-e", ".[dev]", *cell.requirements()]
    indexes: list[list[object]] = [[]]
    if cell.cpu_only:
        chosen = os.environ.get(CPU_INDEX_VARIABLE)
        added = ["--extra-index-url", chosen or CPU_INDEX]
        indexes = [added] if chosen else [[], added]
    reasons = []
    for index in indexes:
        try:
            bootstrap.make(cell.env, [*index, *arguments], bootstrap.output)
        except subprocess.CalledProcessError as error:
            reasons.append(error.stderr.strip())
        else:
            stamp.write_text(stamp_of(cell))
            return python
    raise NotInstallable("\n".join(reasons))


# ---------------------------------------------------------------- tests


def run_tests(cell: Cell, python: Path) -> Path | None:
    """Run the tests of a cell; return pytest's report, None if any failed."""
    report = MATRIX / f"{cell.env.name.lstrip('.')}.xml"
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [
            *(python, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"),
            *("-m", "backend and not slow and not gpu", f"--junitxml={report}"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return report if done.returncode == 0 else None


def read_report(cell: Cell, report: Path) -> Outcomes:
    """Return what tests/test_backends.py recorded in pytest's report.

    Raises:
        SystemExit: if the report is of other versions.
    """
    outcomes: Outcomes = {}
    for element in ElementTree.parse(report).iter("property"):
        if element.get("name") == "backend":
            found: dict[str, Any] = json.loads(element.get("value", ""))
            versions = found["torch"].split("+")[0], found["openmm"]
            if versions != (cell.torch, cell.openmm):
                raise SystemExit(f"{cell.env} has torch {versions[0]} and OpenMM {versions[1]}")
            outcomes.setdefault(found["backend"], {})[found["check"]] = found
    if not outcomes or any(set(checks) != set(CHECKS) for checks in outcomes.values()):
        raise SystemExit(f"{report} lacks outcomes of tests/test_backends.py")
    return outcomes


# ---------------------------------------------------------------- the table


def rows(cell: Cell, outcomes: Outcomes) -> list[str]:
    """Return the lines of the table for one cell."""
    return [
        f"{cell.title} `{backend}` | "
        + " | ".join(checks[check]["outcome"] for check in CHECKS)
        + " |"
        for backend, checks in outcomes.items()
    ]


def reasons(outcomes: Outcomes) -> list[str]:
    """Return why something was refused."""
    found = [
        f"{backend}: {checks[check]['reason']}"
        for backend, checks in outcomes.items()
        for check in CHECKS
        if checks[check]["outcome"] == "refused"
    ]
    return list(dict.fromkeys(found))


def committed_rows(cell: Cell) -> list[str]:
    """Return a cell's lines as they stand in the page."""
    return [line for line in PAGE.read_text().splitlines() if line.startswith(cell.title)]


def write_page(found: dict[Cell, Outcomes]) -> None:
    """Write the table; lines of cells that were not run stay."""
    header = ["torch", "OpenMM", "backend", *CHECKS.values()]
    table = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for cell in CELLS:
        table += rows(cell, found[cell]) if cell in found else committed_rows(cell)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    text = "\n".join([before + BEGIN, *table, END + after])
    if text != PAGE.read_text():
        PAGE.write_text(text)


def compare_with_page(found: dict[Cell, Outcomes]) -> list[str]:
    """Return what is wrong in the page."""
    problems = []
    for cell, outcomes in found.items():
        now = rows(cell, outcomes)
        if (then := committed_rows(cell)) != now:
            problems += [
                f"{PAGE.relative_to(ROOT)} does not say what was found; run make matrix",
                *(f"- {line}" for line in then),
                *(f"+ {line}" for line in now),
            ]
    return problems


def main() -> int:
    """Run the cells; the exit status."""
    parser = argparse.ArgumentParser(description="Run the backend tests in every pair.")
    parser.add_argument("--quick", action="store_true", help="the pair furthest from .venv's only")
    parser.add_argument("--write", action="store_true", help="rewrite the table")
    parser.add_argument("--home", type=Path, help="report of a test run of .venv's, not run again")
    options = parser.parse_args()

    cells = CELLS[-1:] if options.quick else CELLS
    if options.home:
        cells = [CELLS[0], *(cell for cell in cells if not cell.is_home)]
    MATRIX.mkdir(exist_ok=True)
    found: dict[Cell, Outcomes] = {}
    failed, skipped = [], []
    for cell in cells:
        name = f"torch {cell.torch} with OpenMM {cell.openmm}"
        start = time.monotonic()
        try:
            python = make_environment(cell)
        except NotInstallable as error:
            skipped.append(f"SKIPPED {name}: not installable here.\n{error}")
            continue
        installed = time.monotonic()
        report = options.home if cell.is_home and options.home else None
        if report is None:
            bootstrap.say(f"Testing the backends of {name}")
            report = run_tests(cell, python)
        if report is None:
            failed.append(f"FAILED {name}")
            continue
        found[cell] = read_report(cell, report)
        tested = time.monotonic()
        bootstrap.say(f"{name}: made in {installed - start:.0f} s, ran {tested - installed:.0f} s")
        for line in reasons(found[cell]):
            bootstrap.say(f"  refused: {line}")

    if options.write and not failed:
        write_page(found)
    for line in [*skipped, *failed, *(problems := compare_with_page(found))]:
        bootstrap.say(line)
    return int(bool(failed or problems))


if __name__ == "__main__":
    sys.exit(main())
