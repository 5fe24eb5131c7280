"""Add a trained PMF to an OpenMM script that has particles and forces of its own.

The System holds an ideal gas and, after it, one coarse-grained molecule. The PMF acts on the
molecule's particles only; a restraint of the user's holds one bead in place. What gas and
restraint do has an exact answer, which is drawn beside it.

Needs ``model.pt`` and ``dataset.h5``, e.g. in the folder that ``cgml quickstart`` writes.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import openmm
from scipy.stats import gamma

import openmm_cgml as cgml
from openmm_cgml.units import thermal_energy

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--input", type=Path, default=Path("demo"), help="with model.pt, dataset.h5")
parser.add_argument("--output", type=Path, required=True, help="folder for table and picture")
parser.add_argument("--quick", action="store_true", help="fewer steps")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)

model = cgml.load_model(options.input / "model.pt")
molecule = cgml.read_dataset(options.input / "dataset.h5").draw(1)[0]  # (beads, 3), nm

# The existing script: gas atoms, and a harmonic restraint on the molecule's third bead.
gas, mass, held = 100, 39.948, 2
system = openmm.System()
for one in [mass] * gas + list(model.topology.masses):
    system.addParticle(one)
restraint = openmm.CustomExternalForce("500*(x^2 + y^2 + z^2)")  # kJ/mol, nm
restraint.addParticle(gas + held)
restraint.setForceGroup(2)
system.addForce(restraint)

# What is new. Beads are given in the order of the model's topology.
beads = [gas + bead for bead in range(len(model.topology))]
system.addForce(model.create_force(particles=beads, force_group=1))

integrator = openmm.LangevinMiddleIntegrator(model.temperature, 5.0, 0.002)
integrator.setRandomNumberSeed(1)
context = openmm.Context(system, integrator)
cloud = np.random.default_rng(1).uniform(-2, 2, (gas, 3))
context.setPositions(np.concatenate([cloud, molecule - molecule[held]]))
context.setVelocitiesToTemperature(model.temperature, 1)

rows = []
for _ in range(20 if options.quick else 400):
    integrator.step(50)
    pmf, held_by = (context.getState(getEnergy=True, groups={g}) for g in (1, 2))
    speeds = context.getState(getVelocities=True).getVelocities(asNumpy=True)[:gas]._value
    rows.append([pmf.getPotentialEnergy()._value, held_by.getPotentialEnergy()._value,
                 0.5 * mass * (speeds**2).sum()])  # fmt: skip
table = np.array(rows)
np.savetxt(options.output / "energies.csv", table, "%.6g", ",", header="pmf,restraint,gas_kinetic")
forces = context.getState(getForces=True, groups={1}).getForces(asNumpy=True)._value

means, kt = table.mean(0), thermal_energy(model.temperature)
print(f"largest force of the PMF on the gas: {np.abs(forces[:gas]).max():g} kJ/mol/nm")
print(f"mean PMF energy: {means[0]:.2f} kJ/mol")
print(f"mean restraint energy: {means[1]:.2f} kJ/mol; 3/2 kT is {1.5 * kt:.2f}")
print(f"mean kinetic energy of a gas atom: {means[2] / gas:.2f} kJ/mol; 3/2 kT is {1.5 * kt:.2f}")

# The picture. Energies of a thermostatted gas and of a harmonic restraint have a gamma density.
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
axes[0].plot(0.1 * np.arange(1, len(table) + 1), table[:, 0], color="#0072b2", lw=0.8)
axes[0].set(xlabel="time (ps)", ylabel="energy of the PMF (kJ/mol)")
panels = ((axes[1], 1, 1.5, "of the restraint"), (axes[2], 2, 1.5 * gas, "of the gas, kinetic"))
for axis, column, shape, name in panels:
    axis.hist(table[:, column], 25, density=True, color="#0072b2", alpha=0.4, label="run")
    energy = np.linspace(max(0, 0.9 * table[:, column].min()), 1.05 * table[:, column].max(), 200)
    axis.plot(energy, gamma.pdf(energy, shape, scale=kt), color="#d55e00", label="exact")
    axis.set(xlabel=f"energy {name} (kJ/mol)", ylabel="density (mol/kJ)")
    axis.legend(frameon=False)
figure.savefig(options.output / "energies.png", dpi=100)
print(options.output / "energies.png")
