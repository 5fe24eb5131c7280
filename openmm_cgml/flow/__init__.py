"""Normalised densities of beads.

`FLOWS` holds the flows: ``FLOWS["coupling"](dataset)`` returns an untrained `Flow` for the
molecule of the dataset.
"""

from ..registry import Registry

FLOWS = Registry(
    "flow",
    {
        "coupling": "openmm_cgml.flow.coupling:coupling",
        "matching": "openmm_cgml.flow.matching:matching",
    },
)
