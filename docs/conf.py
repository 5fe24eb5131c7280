"""Sphinx configuration: ``sphinx-build docs build/docs`` with the extras torchforce and docs."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

from openmm_cgml.version import __version__  # noqa: E402

project = "openmm_cgml"
copyright = "the openmm_cgml developers"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathematics",
    "generated",
    "docstrings",
]
exclude_patterns = ["_ext"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
smartquotes = False  # "--option" is no dash

default_role = "code"  # `name` in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types where they matter, and shapes and units
napoleon_google_docstring = True
napoleon_use_ivar = True
napoleon_use_param = False  # "first, second: (...)" stays one entry

# Every reference must lead somewhere. Only types of other packages, and words that napoleon takes
# for types, have no page here.
nitpicky = True
nitpick_ignore_regex = [(r"py:(class|exc|obj)", r"(?!openmm_cgml).*")]

html_theme = "furo"
html_title = "openmm_cgml"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_theme_options = {
    f"{ground}_css_variables": {
        "color-brand-primary": colour,
        "color-brand-content": colour,
        "color-api-name": colour,
        "color-api-pre-name": "var(--color-foreground-muted)",
    }
    for ground, colour in (("light", "#0b6e4f"), ("dark", "#5fc9a4"))
}
