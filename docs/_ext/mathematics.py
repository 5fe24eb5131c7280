"""Formulas as MathML in the page: no script, no other server, readable without a network.

Without latex2mathml the pages take MathJax from its server, which is Sphinx's own way.
"""

import re
from html import escape
from typing import Any

from docutils import nodes


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer, or MathJax where latex2mathml is not installed."""
    try:
        import latex2mathml.converter  # noqa: F401
    except ImportError:
        app.setup_extension("sphinx.ext.mathjax")
    else:
        app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
        app.config.html_math_renderer = "mathml"  # type: ignore[attr-defined]
    return {"parallel_read_safe": True}


def to_mathml(latex: str, display: str) -> str:
    """The formula as a ``math`` element, LaTeX kept as its alternative text."""
    from latex2mathml.converter import convert

    # What latex2mathml writes for these is not what LaTeX does.
    latex = re.sub(r"\\(?:textstyle|displaystyle)\b", "", latex)
    latex = latex.replace(r"\lVert", r"\|").replace(r"\rVert", r"\|")
    element = convert(latex.strip(), display=display)
    return element.replace("<math ", f'<math alttext="{escape(latex.strip(), quote=True)}" ', 1)


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(to_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _display(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{to_mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode
