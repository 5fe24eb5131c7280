"""How good and how fast is the demo: from all-atom frames to a compared coarse-grained run?"""

import tempfile

import numpy as np

from benchmarks.contract import Outcome, Target, main
from openmm_cgml.quickstart import FULL, QUICK, quickstart

SEEDS = (0, 1, 2)  # the demo's own is the first
ISSUE = "foundation issue: the demo's targets"


def run(quick: bool) -> Outcome:
    """Run the quickstart with several seeds and sort the summaries into targets."""
    summaries = []
    for seed in SEEDS[:1] if quick else SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            summaries.append(quickstart(folder, effort=QUICK if quick else FULL, seed=seed))
    first = summaries[0]
    js = [s["js_phi_psi_excess"] for s in summaries]
    rmse = [s["free_energy_rmse_kj_mol"] for s in summaries]
    difference = first["delta_f_kj_mol"]
    targets = [
        Target(
            "js_phi_psi_excess", "nats", 0.02, first["js_phi_psi_excess"],
            first["js_phi_psi_excess_error"], source=ISSUE,
        ),
        Target("js_phi_psi_excess, worst seed", "nats", 0.02, max(js), source=ISSUE),
        Target("js_phi_psi_excess, mean over seeds", "nats", None, *mean_and_error(js)),
        Target("free_energy_rmse, mean over seeds", "kJ/mol", None, *mean_and_error(rmse)),
        Target(
            "delta_f model minus reference", "kJ/mol", None, difference["value"],
            difference["error"],
        ),
        Target("seconds without installation", "s", 360.0, first["seconds"], source=ISSUE),
        Target("copies", "", 100, first["copies"], at_most=False, source=ISSUE),
        Target("train_seconds", "s", None, first["train_seconds"]),
        Target("force_rmse", "kJ/mol/nm", None, first["force_rmse"]),
        Target("force_noise_floor", "kJ/mol/nm", None, first["force_noise_floor"]),
        Target(
            "replica_steps_per_second", "1/s", None, first["replica_steps_per_second"],
            at_most=False,
        ),
    ]  # fmt: skip
    return Outcome(targets, SEEDS[0], {"seeds": SEEDS[: len(js)], "summaries": summaries})


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error; None with one value."""
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return float(np.mean(values)), error


if __name__ == "__main__":
    main("demo", __doc__, run)
