"""From an all-atom trajectory with forces to a coarse-grained simulation, step by step.

The data are those of the package: capped alanine, a metadynamics run with unbiased forces and the
weights that undo the bias. ``cgml quickstart`` does the same in one command.
"""

import argparse
from pathlib import Path

import openmm_cgml as cgml
from openmm_cgml import plot

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--output", type=Path, required=True, help="folder for the files")
parser.add_argument("--quick", action="store_true", help="seconds, not converged")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)
run_file = options.output / "simulation.h5"
run_file.unlink(missing_ok=True)  # a run never overwrites another
data = Path(cgml.__file__).parent / "data" / "quickstart"

# 1. Map. The System says which distances were constrained; without it they are looked for.
trajectory = cgml.read_trajectory(data / "trajectory.npz", top=data / "topology.pdb")
mapping = cgml.MAPPINGS["backbone"](trajectory.topology)
dataset = cgml.map_trajectory(
    trajectory,
    mapping,
    temperature=300,
    constraints=data / "system.xml",
    output=options.output / "dataset.h5",
)
labels = [dataset.topology.label(bead) for bead in range(len(dataset.topology))]
print(f"{len(dataset)} frames of beads {' '.join(labels)}")

# 2. Train: a fitted prior plus a network on what forces it leaves.
if options.quick:
    dataset = dataset.select(slice(None, None, 10))
train, valid = dataset.split(0.9)
pmf = cgml.SumPMF(cgml.fit_prior(train), cgml.PMFS["cgnet"](train))
result = cgml.fit(pmf, train, valid, epochs=2 if options.quick else 50)
noise = result.noise
print(f"force RMSE {noise.residual:.1f} kJ/mol/nm, noise floor about {noise.floor:.1f}")

# 3. Export: one file, with everything that the next step needs to know.
cgml.save_model(options.output / "model.pt", result)

# 4. Simulate many copies at once. Starts are drawn by frame weight.
simulation = cgml.Langevin(
    options.output / "model.pt", start=dataset, copies=40 if options.quick else 512
)
run = simulation.run(run_file, ns=0.002 if options.quick else 0.04, interval=0.2)
print(f"{run.info['replica_steps_per_second']:,.0f} replica-steps/s on {run.info['platform']}")

# 5. Compare with an independent run that nothing was trained on.
comparison = cgml.compare(
    run, data / "reference.npz", [[0, 1, 2, 3], [1, 2, 3, 4]], temperature=300, discard_ps=1
)
print(f"JS* = {comparison.js_excess:.4f} ± {comparison.js_excess_error:.4f} nats")

# 6. A picture: both free energies, and their difference.
picture = plot.free_energy_maps(comparison, ("φ", "ψ"), "beads")
(options.output / "free_energy.png").write_bytes(picture)
print(options.output / "free_energy.png")
