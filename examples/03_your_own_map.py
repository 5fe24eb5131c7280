"""Define beads by selection strings, and see what the force map does to the noise.

All valid force maps of one position map have the same mean force. So the one whose mapped force
has the smaller mean square has less noise, by that difference.
"""

import argparse
from pathlib import Path

import numpy as np

import openmm_cgml as cgml

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--output", type=Path, required=True, help="folder for the datasets")
parser.add_argument("--quick", action="store_true", help="every tenth frame")
options = parser.parse_args()
options.output.mkdir(parents=True, exist_ok=True)
data = Path(cgml.__file__).parent / "data" / "quickstart"

with np.load(data / "trajectory.npz") as arrays:
    stride = 10 if options.quick else 1
    positions, forces = (arrays[name][::stride] for name in ("positions", "forces"))
trajectory = cgml.read_trajectory(positions, top=data / "topology.pdb", forces=forces)
top = trajectory.topology

maps = {
    # One string: every selected atom is a bead.
    "heavy backbone": cgml.selection_mapping(top, "backbone and element != H"),
    # Several: one bead each; a dict names them.
    "methyls and C-alpha": cgml.selection_mapping(
        top,
        {
            "ME1": "resname ACE and name CH3",
            "CA": "resname ALA and name CA",
            "ME2": "resname NME and element C",
        },
    ),
    # The same as centres of mass of all selected atoms.
    "residues": cgml.selection_mapping(
        top, {name: f"resname {name}" for name in ("ACE", "ALA", "NME")}, kind="com"
    ),
}
print(f"{'map':<22}{'beads':>6}{'RMS basic':>12}{'RMS optimal':>13}{'noise removed':>15}")
for name, mapping in maps.items():
    square = {}
    for force_map in cgml.FORCE_MAPS:
        dataset = cgml.map_trajectory(
            trajectory,
            mapping,
            temperature=300,
            force_map=force_map,
            constraints=data / "system.xml",
            output=options.output / f"{name.replace(' ', '_')}_{force_map}.h5",
        )
        square[force_map] = float((dataset.forces.astype(float) ** 2).mean())
    removed = max(square["basic"] - square["optimal"], 0) ** 0.5
    print(
        f"{name:<22}{len(mapping.topology):>6}{square['basic'] ** 0.5:>12.1f}"
        f"{square['optimal'] ** 0.5:>13.1f}{removed:>15.1f}"
    )
print("root mean squares per component, kJ/mol/nm")
