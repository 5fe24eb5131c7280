"""Umbrella sampling of a coarse-grained model in plain OpenMM: a System, a bias, MBAR.

The loop is OpenMM's own: the model is one Force of a System, the bias another. A spring on phi
is moved from window to window by a context parameter; MBAR joins the windows to one free energy,
which is drawn beside the all-atom reference. `05_metadynamics.py` biases many copies at once.

Needs ``model.pt`` and ``dataset.h5`` of capped alanine, e.g. from example 02 or `cgml quickstart`.

    python 17_umbrella_sampling.py --input demo --output umbrella
"""

import argparse
from pathlib import Path

import torch  # noqa: F401  (before openmm)

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import openmm

import openmm_cgml as cgml
from openmm_cgml.analysis import dihedral_angles, distribution_of, free_energy_profile
from openmm_cgml.mbar import mbar_states
from openmm_cgml.units import thermal_energy

PHI = [0, 1, 2, 3]
SPRING = 150.0  # kJ/mol

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--input", type=Path, default=Path("demo"), help="with model.pt, dataset.h5")
parser.add_argument("--output", type=Path, required=True, help="folder for table and picture")
parser.add_argument("--quick", action="store_true", help="a small version, not converged")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)
windows, frames, stride = (36, 25, 8) if options.quick else (36, 800, 25)

model = cgml.load_model(options.input / "model.pt")
# One copy is fastest as compiled code, which is made on first use.
system = model.create_system(backend=None if options.quick else "fastest")
bias = openmm.CustomTorsionForce("spring*(1 - cos(theta - centre))")
bias.addGlobalParameter("spring", SPRING)
bias.addGlobalParameter("centre", 0.0)
bias.addTorsion(*PHI, [])
system.addForce(bias)

integrator = openmm.LangevinMiddleIntegrator(model.temperature, 5.0, 0.004)
integrator.setRandomNumberSeed(1)
context = openmm.Context(system, integrator)

# Windows begin with the frame of the data that is nearest, not where the last one ended.
known = cgml.read_dataset(options.input / "dataset.h5").positions
angles = dihedral_angles(known, [PHI])[:, 0]
centres = np.linspace(-np.pi, np.pi, windows, endpoint=False)
phi = np.empty((windows, frames))
for window, centre in enumerate(centres):
    context.setParameter("centre", centre)
    context.setPositions(known[np.cos(angles - centre).argmax()])
    context.setVelocitiesToTemperature(model.temperature, window)
    integrator.step(8 * stride)
    positions = np.empty((frames, *known.shape[1:]))
    for frame in range(frames):
        integrator.step(stride)
        positions[frame] = context.getState(positions=True).getPositions(asNumpy=True)._value
    phi[window] = dihedral_angles(positions, [PHI])[:, 0]


def weights_of(part: np.ndarray) -> np.ndarray:
    """Return weights that undo the bias, of frames (windows, frames), summing to one."""
    kt, states = thermal_energy(model.temperature), np.arange(windows).repeat(part.shape[1])
    energies = SPRING / kt * (1 - np.cos(part.ravel()[:, None] - centres))
    return np.exp(mbar_states(lambda chosen: energies[chosen], states, windows))


# Errors: five stretches of every window, each joined by itself.
edges = np.linspace(-np.pi, np.pi, 61)
kt = thermal_energy(model.temperature)
stretches = [
    np.histogram(part.ravel(), edges, weights=weights_of(part))[0]
    for part in np.array_split(phi, 5, axis=1)
]
share = np.histogram(phi.ravel(), edges, weights=weights_of(phi))[0]
error = np.std(stretches, axis=0, ddof=1) / 5**0.5
with np.errstate(divide="ignore", invalid="ignore"):
    free = np.where(share > 0, -kt * np.log(share / share.max()), np.nan)
    band = 2 * kt * error / share
middle = np.degrees(0.5 * (edges[1:] + edges[:-1]))
np.savetxt(options.output / "free_energy.csv", np.c_[middle, free, band / 2], "%.4f", ",",
           header="phi,free_energy,error")  # fmt: skip
positive = [part[(middle > 0) & (middle < 126)].sum() for part in (share, *stretches)]
odds = -kt * np.log(np.array(positive) / (1 - np.array(positive)))
print(f"free energy of phi > 0: {odds[0]:.2f} ± {odds[1:].std(ddof=1) / 5**0.5:.2f} kJ/mol")

reference = distribution_of(Path(cgml.__file__).parent / "data/quickstart/reference.npz", [])
all_atom, all_atom_error = free_energy_profile(reference, 0, kt)
figure, axes = plt.subplots(2, 1, figsize=(6.4, 5), layout="constrained", sharex=True,
                            height_ratios=[1, 2])  # fmt: skip
for window in range(windows):
    axes[0].hist(np.degrees(phi[window]), 120, range=(-180, 180), histtype="step", density=True,
                 color=plt.cm.cividis(window / windows))  # fmt: skip
axes[0].set_ylabel("density in the\nwindows (1/degree)")
for x, values, two, colour, name in (
    (np.degrees(reference.centres()), all_atom, 2 * all_atom_error, "#222222", "all atoms"),
    (middle, free, band, "#d55e00", "beads, umbrella windows"),
):
    axes[1].plot(x, values, color=colour, label=name)
    axes[1].fill_between(x, values - two, values + two, color=colour, alpha=0.25, lw=0)
axes[1].set(xlabel="φ (degrees)", ylabel="free energy (kJ/mol)", xticks=range(-180, 181, 60))
axes[1].set(xlim=(-180, 180), ylim=(-1, 40))
axes[1].legend(frameon=False)
figure.savefig(options.output / "free_energy.png", dpi=100)
print(options.output / "free_energy.png")
