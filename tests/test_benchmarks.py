"""The contract of benchmark scripts, checked on every script in its quick version."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import scripts
from benchmarks.contract import Target

ROOT = Path(__file__).parent.parent


def test_met_is_decided_by_the_direction() -> None:
    assert Target("a", "s", 1.0, 0.5).record()["met"] is True
    assert Target("a", "s", 1.0, 1.5).record()["met"] is False
    assert Target("a", "1/s", 1.0, 1.5, at_most=False).record()["met"] is True
    assert Target("a", "1/s", None, 1.5).record()["met"] is None
    assert json.dumps(Target("a", "s", 1.0, 0.5).record())


#: Half a minute and more each; the fast tests have the other scripts as a sample.
LONG = {"demo", "engine", "engine_networks", "training"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in scripts()]
)
def test_last_line_is_the_record(name: str, tmp_path) -> None:
    output = tmp_path / "out" / "record.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.strip().splitlines()[-1])
    assert record == json.loads(output.read_text())
    assert record.keys() >= {"hardware", "versions", "seed", "targets"}
    assert record["quick"] is True
    for target in record["targets"]:
        assert target.keys() >= {"name", "unit", "target", "measured", "error", "met"}
    assert record["hardware"]["cores"] >= 1 and record["versions"]["torch"]
