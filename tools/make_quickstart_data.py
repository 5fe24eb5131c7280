"""Make openmm_cgml/data/quickstart from the all-atom originals: every second frame of the run.

Usage: python tools/make_quickstart_data.py FOLDER_OF_THE_ORIGINALS
"""

import shutil
import sys
from pathlib import Path

import numpy as np

STRIDE = 2


def main(source: Path) -> None:
    """Write the subset."""
    target = Path(__file__).parent.parent / "openmm_cgml" / "data" / "quickstart"
    with np.load(source / "wtmetad_gamma6.npz") as run:
        arrays = {k: run[k][::STRIDE] for k in ("positions", "forces", "weights", "bias_energy")}
    # 1e-5 nm and 0.01 kJ/mol/nm: far below thermal motion, and it compresses better.
    arrays["positions"] = np.round(arrays["positions"].astype(np.float64), 5).astype(np.float32)
    arrays["forces"] = np.round(arrays["forces"].astype(np.float64), 2).astype(np.float32)
    np.savez_compressed(target / "trajectory.npz", **arrays)
    for name, kept in (
        ("topology.pdb", "topology.pdb"),
        ("system.xml", "system.xml"),
        ("reference_free_energy.npz", "reference.npz"),
    ):
        shutil.copyfile(source / name, target / kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
