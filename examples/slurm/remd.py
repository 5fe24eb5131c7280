"""One replica exchange on all processes that torchrun started; goes on where it stopped.

``remd.sh`` is the job that runs it on several machines. On one machine:

    torchrun --nproc-per-node=4 remd.py --input FOLDER --output FOLDER --ns 10

Without torchrun it is one process with all copies. Nothing below says which: every process makes
the same simulation and holds its share of the copies, on the GPU of its number.
"""

import argparse
import logging
import os
from pathlib import Path

import torch

import openmm_cgml as cgml

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
