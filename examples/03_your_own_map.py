"""Define beads by selection strings, and see what the force map does to the noise.

All valid force maps of one position map have the same mean force. So the one whose mapped force
has the smaller mean square has less noise, by that difference.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
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
mean_squares = {}
print(f"{'map':<22}{'beads':>6}" + "".join(f"{name:>12}" for name in cgml.FORCE_MAPS))
for name, mapping in maps.items():
    left = []
    for force_map in cgml.FORCE_MAPS:
        dataset = cgml.map_trajectory(
            trajectory,
            mapping,
            temperature=300,
            force_map=force_map,
            constraints=data / "system.xml",
            output=options.output / f"{name.replace(' ', '_')}_{force_map}.h5",
        )
        left.append(dataset.mapping["force_map"]["mean_square"] ** 0.5)
    mean_squares[name] = left
    # All have the same mean force: what is less is less noise.
    print(f"{name:<22}{len(mapping.topology):>6}" + "".join(f"{rms:>12.1f}" for rms in left))
print("root mean squares of the mapped forces per component, kJ/mol/nm")
cgml.draw_mapping(
    maps["heavy backbone"], top, next(trajectory.chunks(1)).positions, options.output / "map.png"
)

# The picture of all three: forces of every map, by every force map.
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
colours = {"basic": "#999999", "optimal": "#0072b2", "rotation": "#d55e00"}
for k, force_map in enumerate(cgml.FORCE_MAPS):
    places = np.arange(len(maps)) + 0.27 * (k - 1)
    heights = [left[k] for left in mean_squares.values()]
    bars = axis.bar(places, heights, 0.25, color=colours[force_map], label=force_map)
    axis.bar_label(bars, fmt="%.0f", fontsize=8)
axis.set_xticks(range(len(maps)), list(maps))
axis.set(ylabel="root mean square of\nmapped forces (kJ/mol/nm)")
axis.legend(title="force map", frameon=False)
figure.savefig(options.output / "forces.png", dpi=100)
print(options.output / "forces.png")
