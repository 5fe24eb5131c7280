"""Run all benchmarks, one process each: python -m benchmarks [--quick] [--output FOLDER]."""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def scripts() -> list[str]:
    """Return the names of the benchmark scripts."""
    shared = ("__init__", "__main__", "contract")
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in shared)


def main() -> int:
    """Run them and print one summary line a target, then all records as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small versions, in seconds")
    parser.add_argument("--output", type=Path, help="folder for the JSON files")
    options = parser.parse_args()
    records, failed = [], []
    for name in scripts():
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        command += ["--quick"] if options.quick else []
        command += ["--output", str(options.output / f"{name}.json")] if options.output else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            print(f"{name}: failed with exit code {done.returncode}", file=sys.stderr)
            failed.append(name)
            continue
        record = json.loads(done.stdout.strip().splitlines()[-1])
        records.append(record)
        for target in record["targets"]:
            verdict = {True: "met", False: "MISSED", None: "recorded"}[target["met"]]
            goal = "" if target["target"] is None else f" (target {target['target']:g})"
            print(f"{name}: {target['name']} = {target['measured']:g} {target['unit']}{goal} "
                  f"{verdict}")  # fmt: skip
    print(json.dumps({"records": records, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
