"""Compare a simulation with an independent reference, beside what its training data give.

Needs the folder that example 02 writes: ``dataset.h5``, ``model.pt`` and ``simulation.h5``.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import openmm_cgml as cgml
from openmm_cgml.analysis import free_energy_profile
from openmm_cgml.report import write_report

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--input", type=Path, required=True, help="folder that example 02 wrote")
parser.add_argument("--output", type=Path, required=True, help="folder for report and picture")
parser.add_argument("--quick", action="store_true", help="leave out less of the start")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)

run = cgml.read_run(options.input / "simulation.h5")
dataset = cgml.read_dataset(options.input / "dataset.h5")
model = cgml.load_model(options.input / "model.pt")
reference = Path(cgml.__file__).parent / "data" / "quickstart" / "reference.npz"
dihedrals = [[0, 1, 2, 3], [1, 2, 3, 4]]  # phi and psi
settings = {"temperature": 300, "state": (0.0, 2.2)}  # the state with positive phi

# The reweighted training data against the same reference: a yardstick for the model.
comparisons = {
    "training data": cgml.compare(dataset, reference, dihedrals, **settings),
    "model": cgml.compare(
        run, reference, dihedrals, discard_ps=0.5 if options.quick else 5.0, **settings
    ),
}
for name, one in comparisons.items():
    difference, error = one.delta_f
    print(
        f"{name:<14} JS {one.js:.4f}  model noise {one.model.sampling_divergence:.4f}  "
        f"reference noise {one.js_reference_error:.4f}  JS* {one.js_excess:.4f}"
    )
    print(f"{'':<14} free energy of the state off by {difference:+.2f} ± {error:.2f} kJ/mol")

write_report(
    options.output / "report.html",
    comparisons["model"],
    title="A model against its reference",
    lead=f"{len(run)} frames of {run.positions.shape[1]} copies.",
    labels=("φ", "ψ"),
    training=model.card["training"],
    run=run.info,
    notes=["Starts come from reweighted data, so slow populations are partly borrowed."],
)
print(options.output / "report.html")

# The picture: all three along both dihedrals, with bands of two standard errors.
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
one = comparisons["model"]
samples = {
    "reference": (one.reference, "#222222", "-"),
    "training data": (comparisons["training data"].model, "#0072b2", "--"),
    "model": (one.model, "#d55e00", "-"),
}
for which, axis in enumerate(axes):
    for name, (sample, colour, dashes) in samples.items():
        x = np.degrees(sample.centres())
        values, error = free_energy_profile(sample, which, one.kt)
        axis.plot(x, values, color=colour, ls=dashes, lw=1.4, label=name)
        axis.fill_between(
            x, values - 2 * error, values + 2 * error, color=colour, alpha=0.25, lw=0
        )
    axis.set(xlabel=f"{'φψ'[which]} (degrees)", xticks=range(-180, 181, 90), ylim=(-1, 32))
axes[0].set_ylabel("free energy (kJ/mol)")
axes[1].legend(frameon=False)
figure.savefig(options.output / "profiles.png", dpi=100)
print(options.output / "profiles.png")
