"""How good and how fast is the demo: from all-atom frames to a compared coarse-grained run?"""

import tempfile

from benchmarks.contract import Outcome, Target, main
from openmm_cgml.quickstart import FULL, QUICK, quickstart

SEED = 0
ISSUE = "foundation issue: the demo's targets"


def run(quick: bool) -> Outcome:
    """Run the quickstart and sort its summary into targets."""
    with tempfile.TemporaryDirectory() as folder:
        summary = quickstart(folder, effort=QUICK if quick else FULL, seed=SEED)
    difference = summary["delta_f_kj_mol"]
    targets = [
        Target(
            "js_phi_psi_excess", "nats", 0.02, summary["js_phi_psi_excess"],
            summary["js_phi_psi_excess_error"], source=ISSUE,
        ),
        Target("seconds without installation", "s", 360.0, summary["seconds"], source=ISSUE),
        Target("copies", "", 100, summary["copies"], at_most=False, source=ISSUE),
        Target(
            "delta_f model minus reference", "kJ/mol", None, difference["value"],
            difference["error"],
        ),
        Target(
            "free_energy_rmse", "kJ/mol", None, summary["free_energy_rmse_kj_mol"]
        ),
        Target("train_seconds", "s", None, summary["train_seconds"]),
        Target("force_rmse", "kJ/mol/nm", None, summary["force_rmse"]),
        Target("force_noise_floor", "kJ/mol/nm", None, summary["force_noise_floor"]),
        Target(
            "replica_steps_per_second", "1/s", None, summary["replica_steps_per_second"],
            at_most=False,
        ),
    ]  # fmt: skip
    return Outcome(targets, SEED, summary)


if __name__ == "__main__":
    main("demo", __doc__, run)
