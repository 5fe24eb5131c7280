"""Formulas as MathML in the page: no script, no other server, readable without a network.

Without latex2mathml the pages take MathJax from its server, which is Sphinx's own way.
"""

import re
import unicodedata
from html import escape, unescape
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

    for pattern, plain in _PLAINER:
        latex = re.sub(pattern, plain, latex)
    element = convert(latex.strip(), display=display)
    element = re.sub(r'<(m[in]) mathvariant="([a-z-]+)">([^<]*)</\1>', _letters, element)
    return element.replace("<math ", f'<math alttext="{escape(latex.strip(), quote=True)}" ', 1)


# What latex2mathml does not read as LaTeX does, and the same that it does read.
_PLAINER = (
    (r"\\(?:textstyle|displaystyle)(?![A-Za-z])", ""),
    (r"\\[lr]Vert(?![A-Za-z])", r"\\|"),
    (r"(\\[Bb]igg?[lr]?)\s*\\langle(?![A-Za-z])", r"\1⟨"),
    (r"(\\[Bb]igg?[lr]?)\s*\\rangle(?![A-Za-z])", r"\1⟩"),
    (r"\\mathrm\{([A-Za-z]+)\}", r"\\text{\1}"),
    (r"([_^])(\\(?:mathrm|mathsf|mathbf|text)\{[^{}]*\})", r"\1{\2}"),
)


def _letters(match: re.Match[str]) -> str:
    """Letters of another style are characters of their own: browsers ignore the attribute."""
    tag, variant, text = match.groups()
    if variant == "normal":
        return match.group(0)  # the one that they know
    return f"<{tag}>{''.join(_styled(one, variant) for one in unescape(text))}</{tag}>"


def _styled(letter: str, variant: str) -> str:
    plain = unicodedata.name(letter, "").replace(" LETTER", "")
    plain = plain.removeprefix("LATIN ").removeprefix("GREEK ")
    style = variant.upper().replace("BOLD-", "BOLD ").replace("SANS-SERIF-", "SANS-SERIF ")
    for name in (f"MATHEMATICAL {style} {plain}", f"{style} {plain}"):
        try:
            return unicodedata.lookup(name)
        except KeyError:
            pass
    return letter


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(to_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _display(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{to_mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode
