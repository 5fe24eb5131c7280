"""What every benchmark script shares: its options, its record, its last line.

A script defines ``run(quick) -> list[Target]`` (and what else it wants kept) and ends with
``main(__doc__, run)``. Its last printed line is one JSON object with ``hardware``, ``versions``,
``seed`` and ``targets``; a target that is missed is reported as missed.
"""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Target:
    """One number with its goal.

    Attributes:
        name: what was measured.
        unit: of target, measured and error; "" for a bare number.
        target: the goal, or None for a number that is only recorded.
        measured: what came out.
        error: one standard error of `measured`, or None.
        at_most: whether smaller is better.
        source: where the goal comes from.
    """

    name: str
    unit: str
    target: float | None
    measured: float
    error: float | None = None
    at_most: bool = True
    source: str = ""

    def record(self) -> dict[str, Any]:
        """Return the JSON object, with ``met``: null where there is no goal."""
        met = None
        if self.target is not None:
            good = self.measured <= self.target if self.at_most else self.measured >= self.target
            met = bool(good)
        return {**asdict(self), "met": met}


@dataclass
class Outcome:
    """What a benchmark returns.

    Attributes:
        targets: its numbers.
        seed: of its random numbers.
        details: anything else worth keeping, JSON-able.
    """

    targets: list[Target]
    seed: int
    details: dict[str, Any] = field(default_factory=dict)


def main(name: str, doc: str, run: Callable[[bool], Outcome]) -> None:
    """Parse the options, run, write the record and print it as the last line."""
    parser = argparse.ArgumentParser(description=doc.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small version, in seconds")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # CPU figures are of one thread
    outcome = run(options.quick)
    record = {
        "benchmark": name,
        "quick": options.quick,
        "hardware": hardware(),
        "versions": versions(),
        "seed": outcome.seed,
        "targets": [t.record() for t in outcome.targets],
        **({"details": outcome.details} if outcome.details else {}),
    }
    # Quick runs say whether a script works, not how fast anything is: never among the results.
    output = options.output
    if output is None and not options.quick:
        output = RESULTS / f"{name}.json"
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


def hardware() -> dict[str, Any]:
    """Return the processor, the number of usable cores and the GPU, if any."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line]
        named = {key.strip(): value.strip() for key, value in fields}
        name = named.get("model name", name)
        name += f" (family {named.get('cpu family', '?')}, model {named.get('model', '?')})"
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Return the versions of what the figures depend on."""
    found = {"python": platform.python_version()}
    for package in ("openmm_cgml", "torch", "openmm", "openmmtorch", "numpy", "lightning"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
