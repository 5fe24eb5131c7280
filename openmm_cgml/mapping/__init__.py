"""Linear maps of positions and forces from atoms to beads.

`MAPPINGS` holds the presets: ``MAPPINGS["backbone"](topology)`` returns a `Mapping`.

`FORCE_MAPS` holds the makers of force maps that go with any of them:
``FORCE_MAPS["optimal"](mapping, constraints)`` takes frames by ``add(forces, positions)`` and
returns the map by ``fit()``.
"""

from ..registry import Registry

MAPPINGS = Registry(
    "mapping",
    {
        "calpha": "openmm_cgml.mapping.residue:calpha",
        "calpha_cbeta": "openmm_cgml.mapping.residue:calpha_cbeta",
        "backbone": "openmm_cgml.mapping.residue:backbone",
        "core_beta": "openmm_cgml.mapping.residue:core_beta",
        "five_bead": "openmm_cgml.mapping.residue:five_bead",
        "heavy_atom": "openmm_cgml.mapping.molecule:heavy_atom",
        "all_atom": "openmm_cgml.mapping.molecule:all_atom",
        "residue_com": "openmm_cgml.mapping.residue:residue_com",
        "martini": "openmm_cgml.mapping.martini:martini",
        "molecule_com": "openmm_cgml.mapping.molecule:molecule_com",
    },
)

FORCE_MAPS = Registry(
    "force map",
    {
        "basic": "openmm_cgml.mapping.force_map:BasicFit",
        "optimal": "openmm_cgml.mapping.force_map:OptimalFit",
        "rotation": "openmm_cgml.mapping.rotation:RotationFit",
    },
)
