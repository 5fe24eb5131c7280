"""Train a TensorNet of TorchMD-Net on forces of this package, and run it in OpenMM.

TorchMD-Net counts in the units of its data, usually angstrom and kcal/mol, numbers the types of
beads, and is called with all beads of all copies in one list. `external` does all that.

    pip install "openmm_cgml[external]"

Its operators come with the package, not with torch. So a program that loads the model file imports
it first, and says ``trust=True``, since nobody has checked those operators.
"""

import argparse
import time
from pathlib import Path

import torch  # before openmm

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import openmm
import torchmdnet.models.tensornet  # noqa: F401  (the operators, wherever the file is loaded)
from torchmdnet.models.model import create_model

import openmm_cgml as cgml
from openmm_cgml.pmf.external import external

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--output", type=Path, required=True, help="folder for tensornet.pt")
parser.add_argument("--quick", action="store_true", help="few frames, one epoch")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)

# Five backbone beads of the package's own all-atom run, with forces.
data = Path(cgml.__file__).parent / "data" / "quickstart"
with np.load(data / "trajectory.npz") as run:
    arrays = {name: run[name][:: 100 if options.quick else 20] for name in run.files}
trajectory = cgml.read_trajectory(
    top=data / "topology.pdb", trajectory=arrays.pop("positions"), **arrays
)
mapping = cgml.MAPPINGS["backbone"](trajectory.topology)
train, valid = cgml.map_trajectory(trajectory, mapping, temperature=300).split(0.8)

torch.manual_seed(0)
tensornet = create_model(
    {
        "model": "tensornet",
        "embedding_dimension": 16,
        "num_layers": 1,
        "num_rbf": 16,
        "rbf_type": "expnorm",
        "trainable_rbf": False,
        "activation": "silu",
        "cutoff_lower": 0.0,
        "cutoff_upper": 10.0,  # angstrom, as are all its lengths
        "max_z": 8,
        "max_num_neighbors": 32,
        "equivariance_invariance_group": "O(3)",
        "output_model": "Scalar",
        "reduce_op": "sum",
        "prior_model": None,
        "atom_filter": -1,
        "derivative": False,  # the energy alone: the PMF is differentiated as a whole
        "precision": 32,
    }
)
network = external(
    tensornet,
    train,
    length_unit="angstrom",
    energy_unit="kcal/mol",
    types={"CA": 1, "C": 2, "N": 3},  # rows of its embedding
    call="flat",
)
pmf = cgml.SumPMF(cgml.fit_prior(train), network)
result = cgml.fit(pmf, train, valid, epochs=1 if options.quick else 10)
print(f"force RMSE {result.metrics['force_rmse']:.1f} kJ/mol/nm")
cgml.save_model(options.output / "tensornet.pt", result)

model = cgml.load_model(options.output / "tensornet.pt", trust=True)
copies, steps = 4, 100
system = model.create_system(copies=copies)
integrator = openmm.LangevinMiddleIntegrator(model.temperature, 5, 0.002)
integrator.setRandomNumberSeed(1)
context = openmm.Context(system, integrator)
starts = train.positions[:copies]
context.setPositions(starts.reshape(-1, 3))
found = context.getState(getForces=True).getForces(asNumpy=True)._value
expected = model.energy_and_forces(starts)[1].reshape(-1, 3)
print(
    "largest difference between OpenMM's forces and torch's: "
    f"{np.abs(found - expected).max():.4f} kJ/mol/nm"
)
integrator.step(3)  # TorchScript optimises in its first calls
began = time.perf_counter()
integrator.step(steps)
energy = context.getState(getEnergy=True).getPotentialEnergy()._value
seconds = time.perf_counter() - began
print(
    f"{steps} steps of {copies} copies: {1e3 * seconds / steps:.1f} ms a step, {energy:.1f} kJ/mol"
)

figure, axis = plt.subplots(figsize=(4.6, 4), layout="constrained")
axis.plot(expected.ravel(), found.ravel(), "o", ms=3, color="#0072b2")
axis.axline((0, 0), slope=1, color="#999999", lw=0.8)
axis.set(xlabel="force by torch (kJ/mol/nm)", ylabel="force by OpenMM (kJ/mol/nm)")
figure.savefig(options.output / "forces.png", dpi=110)
print(options.output / "forces.png")
