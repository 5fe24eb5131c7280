"""Sphinx configuration: ``sphinx-build docs build/docs`` with the extras torchforce and docs."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from openmm_cgml.version import __version__  # noqa: E402

project = "openmm_cgml"
copyright = "the openmm_cgml developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types where they matter, and shapes and units
napoleon_google_docstring = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = "openmm_cgml"
