"""``python -m openmm_cgml``: the command line, e.g. for ``torchrun -m openmm_cgml train``."""

from .cli import main

main()
