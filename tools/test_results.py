"""Writes docs/test_results.md from reports of `make test-all`: what ran, how long, what did not.

    python tools/test_results.py build/tests.xml [more.xml ...]

Several reports are one: of a run in parts. A test in more than one counts as in the last.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

from openmm_cgml.long_runs import processor_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "test_results.md"
PACKAGES = ("torch", "openmm", "openmmtorch", "mdtraj", "numpy", "lightning")
OUTCOMES = ("passed", "failed", "skipped")


@dataclass(frozen=True)
class Result:
    """One test: its file and name, outcome, seconds, and why it failed or was skipped."""

    file: str
    name: str
    outcome: str
    seconds: float
    reason: str = ""


def read(report: Path) -> list[Result]:
    """Return the tests of a JUnit report."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome, reason = "failed", child.get("message", "")
            elif child.tag == "skipped":
                outcome, reason = "skipped", child.get("message", "")
        name = case.get("classname", "").removeprefix("tests.").split(".")[0]
        seconds = float(case.get("time", 0))
        found.append(Result(name, case.get("name", ""), outcome, seconds, reason))
    return found


def page(results: list[Result], about: dict[str, str]) -> str:
    """Return the page about these tests."""
    unique = list({(r.file, r.name): r for r in results}.values())
    files = defaultdict(list)
    for result in unique:
        files[result.file].append(result)
    totals = Counter(r.outcome for r in unique)
    lines = [
        "# Test results",
        "",
        "The last run of everything, slow tests, fuzzing, browser, examples and pairs of versions",
        "included; `make test-all` writes this page.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in about.items()),
        f"| tests | {', '.join(f'{totals[o]:,} {o}' for o in OUTCOMES if totals[o])} |",
        f"| time, one after the other | {sum(r.seconds for r in unique) / 60:.0f} min |",
        "",
        "| file | passed | failed | skipped | seconds |",
        "|---|---|---|---|---|",
    ]
    for file, own in sorted(files.items()):
        counts = Counter(r.outcome for r in own)
        numbers = " | ".join(str(counts[o] or "") for o in OUTCOMES)
        lines.append(f"| `{file}` | {numbers} | {sum(r.seconds for r in own):.0f} |")
    failed = [r for r in unique if r.outcome == "failed"]
    if failed:
        lines += ["", "## Failed", "", *(f"- `{r.file}`: `{r.name}`" for r in failed)]
    reasons = Counter(plain(r.reason) for r in unique if r.outcome == "skipped")
    if reasons:
        lines += ["", "## Skipped", "", "| tests | why |", "|---|---|"]
        lines += [f"| {count} | {reason} |" for reason, count in reasons.most_common()]
    return "\n".join(lines) + "\n"


def plain(reason: str) -> str:
    """Return a reason in one line for a table, without places on this machine."""
    return re.sub(r"(?<!\w)/[\w./-]+/", "", " ".join(reason.split())).replace("|", "/")[:160]


def machine() -> dict[str, str]:
    """Return when and where this is, and the versions."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "commit": commit or "not in a repository",
        "machine": f"{processor_name()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, {versions}",
    }


def main() -> None:
    """Read the reports that are named and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    results = [result for report in options.reports for result in read(report)]
    if not results:
        sys.exit("no test in these reports; give those of pytest --junitxml")
    options.output.write_text(page(results, machine()), encoding="utf-8")
    print(f"{options.output}: {len(results)} tests")


if __name__ == "__main__":
    main()
