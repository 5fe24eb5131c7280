"""One replica exchange on all processes that torchrun started; goes on where it stopped.

``remd.sh`` is the job that runs it on several machines. On one machine:

    torchrun --nproc-per-node=4 remd.py --input FOLDER --output FOLDER --ns 10

Without torchrun it is one process with all copies. Nothing below says which: every process makes
the same simulation and holds its share of the copies, on the GPU of its number. The first one
draws the run, however far it is: the walk of copies over temperatures, and the free energy along
phi at the first temperature, of each process's copies and of all.
"""

import argparse
import logging
import os
from pathlib import Path

import torch

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import openmm_cgml as cgml
from openmm_cgml.analysis import dihedral_angles

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--input", type=Path, required=True, help="folder of dataset.h5, model.pt")
parser.add_argument("--output", type=Path, required=True, help="folder that all processes see")
parser.add_argument("--ns", type=float, default=100.0, help="of each copy, over all jobs")
parser.add_argument("--seconds", type=float, help="stop after so long; the next job goes on")
parser.add_argument("--quick", action="store_true", help="a small version")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)

torch.set_num_threads(1)
first = os.environ.get("RANK", "0") == "0"
logging.basicConfig(level=logging.WARNING if first else logging.ERROR, format="%(message)s")
logging.getLogger("openmm_cgml").setLevel(logging.INFO if first else logging.ERROR)

# The same on every process and in every job. So the rungs are given, not proposed by a short run.
simulation = cgml.ReplicaExchange(
    options.input / "model.pt",
    cgml.read_dataset(options.input / "dataset.h5"),
    cgml.ladder(300, 600, 4),
    copies=4 if options.quick else 256,
    exchange_interval=0.1,
    timestep=0.004,
    friction=5.0,
)
run = simulation.run(
    options.output / "run.h5",
    ns=0.004 if options.quick else options.ns,
    interval=0.5 if options.quick else 2.0,
    seconds=options.seconds,
)
if first:
    state = "finished" if run.finished else "to be continued"
    print(f"{len(run)} frames of {simulation.copies} copies, {state}")

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for k in range(processes):  # a copy of each
        copy = k * simulation.copies // processes
        kelvin = run.temperatures[run.exchange_rung[:, copy]]
        shown = run.exchange_time < 20
        axes[0].step(run.exchange_time[shown], kelvin[shown], lw=1, color=f"C{k}")
    axes[0].set(xlabel="time (ps)", ylabel="temperature (K)", yticks=run.temperatures.round())
    axes[0].set_title("one copy of each process")

    cold = run.after(0.25 * float(run.time[-1])).at_temperature(300)
    ladders = cold.positions.shape[1]  # in the order of the copies, so of the processes
    for k in range(-1, processes):
        share = slice(None) if k < 0 else slice(ladders * k // processes,
                                                ladders * (k + 1) // processes)  # fmt: skip
        frames = cold.positions[:, share].swapaxes(0, 1).reshape(-1, len(run.topology), 3)
        found = cgml.free_energy_surface(
            dihedral_angles(frames, [[0, 1, 2, 3]])[:, 0], temperature=300,
            bins=[np.linspace(-np.pi, np.pi, 46)],
        )  # fmt: skip
        x, y, e = np.degrees(found.centres[0]), found.values, np.nan_to_num(found.errors)
        colour = "#222222" if k < 0 else f"C{k}"
        name = "all processes" if k < 0 else f"ladders of process {k}"
        axes[1].plot(x, y, color=colour, lw=2.5 if k < 0 else 1, label=name)
        axes[1].fill_between(x, y - 2 * e, y + 2 * e, color=colour, alpha=0.15, lw=0)
    axes[1].set(xlabel="φ (degrees)", ylabel="free energy at 300 K (kJ/mol)")
    axes[1].set_xticks(range(-180, 181, 90))
    axes[1].legend(frameon=False, fontsize=8)
    figure.savefig(options.output / "run.png", dpi=100)
