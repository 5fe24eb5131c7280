"""Potentials of mean force.

`PMFS` holds the networks: ``PMFS["cgnet"](dataset)`` returns an untrained `PMF` whose shapes and
normalisation come from the dataset.
"""

from ..registry import Registry

PMFS = Registry(
    "PMF",
    {
        "cgnet": "openmm_cgml.pmf.cgnet:cgnet",
        "schnet": "openmm_cgml.pmf.schnet:schnet",
        "painn": "openmm_cgml.pmf.painn:painn",
    },
)
