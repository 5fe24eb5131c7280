"""Shared-bias (multiple-walker) metadynamics: all copies push the same hills.

`openmm.app.Metadynamics` takes a force group for every object and so stops at 31 of them in a
System: it serves one or a few copies. Here the bias is one bond-type force, written for one copy;
the engine gives every copy a term, and all terms read one tabulated function. A reporter adds
hills where the copies are. Its ``state_dict`` is part of the checkpoints, so a stopped run goes on
with its bias.

Needs the folder that example 02 writes: ``dataset.h5`` and ``model.pt``.
"""

import argparse
import logging
from pathlib import Path

import torch  # noqa: F401  (before openmm)

import numpy as np
import openmm

import openmm_cgml as cgml
from openmm_cgml.analysis import dihedral_angles, distribution_of, free_energy_profile
from openmm_cgml.units import thermal_energy

BINS = 180


class SharedBias:
    """Well-tempered metadynamics of one dihedral, shared by all copies.

    Args:
        beads: the four beads of the dihedral.
        temperature: K.
        bias_factor: how much hotter the dihedral gets.
        height: of the first hills, kJ/mol, of all copies together.
        width: of hills, radians.
        every: steps between hills.
    """

    def __init__(self, beads, temperature, bias_factor=10.0, height=2.0, width=0.25, every=250):
        self.every = every
        self.height, self.width = height, width
        self.bias_factor = bias_factor
        self.scale = thermal_energy(temperature) * (bias_factor - 1)  # k times Delta T
        self.grid = np.linspace(-np.pi, np.pi, BINS + 1)
        self.bias = np.zeros(BINS + 1)
        table = openmm.Continuous1DFunction(self.bias, -np.pi, np.pi, True)
        self.force = openmm.CustomCompoundBondForce(4, "bias(dihedral(p1, p2, p3, p4))")
        self.force.addTabulatedFunction("bias", table)
        self.force.addBond(beads, [])
        self.beads = list(beads)

    def attach(self, simulation) -> None:
        """Let the bias grow while this simulation runs."""
        self.simulation = simulation
        simulation.reporters.append(self)

    def describeNextReport(self, simulation):
        """OpenMM asks: in how many steps, and what of the State?"""
        return (self.every - simulation.currentStep % self.every, False, False, False, False)

    def report(self, simulation, state) -> None:
        """Add a hill where each copy is, lower where the bias is high already."""
        angles = dihedral_angles(self.simulation.positions, [self.beads])[:, 0]
        now = np.interp(angles, self.grid, self.bias)
        heights = self.height / len(angles) * np.exp(-now / self.scale)
        away = np.angle(np.exp(1j * (self.grid[:, None] - angles)))
        self.bias = self.bias + (heights * np.exp(-0.5 * (away / self.width) ** 2)).sum(1)
        self.bias[-1] = self.bias[0]
        self._publish()

    def _publish(self) -> None:
        self.force.getTabulatedFunction(0).setFunctionParameters(self.bias, -np.pi, np.pi)
        self.simulation.update_force(self.force)

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps of the bias."""
        return {"bias": self.bias}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Go back to a checkpoint's bias."""
        self.bias = state["bias"]
        self._publish()

    def free_energy(self) -> np.ndarray:
        """The free energy along the dihedral, kJ/mol, its minimum at zero."""
        estimate = -self.bias * self.bias_factor / (self.bias_factor - 1)
        return estimate - estimate.min()


def main() -> None:
    """Push all copies over the barrier of phi, and compare with the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="folder that example 02 wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for run and picture")
    parser.add_argument("--quick", action="store_true", help="a small version")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    model = cgml.load_model(options.input / "model.pt")
    dataset = cgml.read_dataset(options.input / "dataset.h5")
    phi = [0, 1, 2, 3]
    bias = SharedBias(phi, model.temperature)
    simulation = cgml.Langevin(
        model,
        dataset.positions[dataset.probabilities.argmax()],  # all in one basin
        copies=64,
        forces=[bias.force],
        timestep=0.004,
        friction=5.0,
    )
    bias.attach(simulation)
    run = simulation.run(options.output / "run.h5", ns=0.01 if options.quick else 0.2)

    kept = run.after(0.5 * float(run.time[-1]))
    angles = dihedral_angles(kept.positions.reshape(-1, *kept.positions.shape[2:]), [phi])
    print(f"copies with phi > 0, biased: {(angles > 0).mean():.2f}")
    picture(options.output / "free_energy.png", bias, model.temperature)
    print(options.output / "free_energy.png")


def picture(path: Path, bias: SharedBias, temperature: float) -> None:
    """Draw the free energy that the bias has found beside the all-atom reference."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    reference = distribution_of(
        Path(cgml.__file__).parent / "data" / "quickstart" / "reference.npz", []
    )
    profile, error = free_energy_profile(reference, 0, thermal_energy(temperature))
    phi, band = np.degrees(reference.centres()), 2 * error
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(phi, profile, color="#222222", label="all atoms")
    axes.fill_between(phi, profile - band, profile + band, color="#222222", alpha=0.25, lw=0)
    # One bias has no error of its own: start from other seeds to see it.
    axes.plot(np.degrees(bias.grid), bias.free_energy(), color="#d55e00",
              label="beads, from the shared bias")  # fmt: skip
    axes.set(xlabel="φ (degrees)", ylabel="free energy (kJ/mol)", xlim=(-180, 180), ylim=(-1, 40))
    axes.set_xticks(range(-180, 181, 60))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
