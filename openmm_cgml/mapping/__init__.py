"""Linear maps of positions and forces from atoms to beads.

`MAPPINGS` holds the presets: ``MAPPINGS["backbone"](topology)`` returns a `Mapping`.

`FORCE_MAPS` holds the force maps that go with any of them: functions of a mapping and the
constrained pairs, and of the force statistics (`ForceGram`) if they have an argument ``gram``.
"""

from ..registry import Registry

MAPPINGS = Registry(
    "mapping",
    {
        "calpha": "openmm_cgml.mapping.residue:calpha",
        "backbone": "openmm_cgml.mapping.residue:backbone",
        "residue_com": "openmm_cgml.mapping.residue:residue_com",
    },
)

FORCE_MAPS = Registry(
    "force map",
    {
        "basic": "openmm_cgml.mapping.force_map:basic_force_map",
        "optimal": "openmm_cgml.mapping.force_map:optimal_force_map",
    },
)
