"""The parts of a self-contained HTML page: heading, main numbers, figures, tables, provenance.

A page holds its style and its figures and asks the network for nothing. It is one column that
fits a phone, prints on A4, and says in text what its figures show.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import atomic_path

# Contrasts on white: text 15, the paler text 6.6; the note's 13. Folded tables open in print by
# ::details-content where a browser has it, and by beforeprint where it has not.
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1c2733;
       background: #fff; max-width: 1100px; margin: 2.5rem auto; padding: 0 1.5rem;
       overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 0.2rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; }
p.lead { color: #4a5866; margin-top: 0; max-width: 46rem; }
dl.cards { display: flex; flex-wrap: wrap; gap: 0.8rem; margin: 1.4rem 0; padding: 0; }
.card { border: 1px solid #c9d2db; border-radius: 8px; padding: 0.7rem 1rem; min-width: 9.5rem;
        max-width: 100%; display: flex; flex-direction: column-reverse;
        justify-content: flex-end; }
.card dd { margin: 0; font-size: 1.35rem; font-weight: 700; font-variant-numeric: tabular-nums; }
.card dt { color: #4a5866; font-size: 0.85rem; }
figure { margin: 0 0 1.4rem; }
img { width: 100%; height: auto; display: block; } img.small { max-width: 520px; }
.row { display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
.row figure { flex: 1 1 400px; max-width: 520px; min-width: 0; }
figcaption { color: #4a5866; font-size: 0.88rem; max-width: 60rem; margin-top: 0.3rem; }
.wide { overflow-x: auto; max-width: 100%; }
.wide:focus-visible { outline: 2px solid #22577a; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
td, th { text-align: left; vertical-align: top; padding: 0.25rem 1.2rem 0.25rem 0;
         border-bottom: 1px solid #e3e8ed; }
thead th { white-space: nowrap; }
.rows th { font-weight: 600; min-width: 8rem; }
.rows td { overflow-wrap: anywhere; }
.note { background: #fff7e0; border-left: 4px solid #a87400; padding: 0.6rem 1rem;
        max-width: 52rem; }
details { margin-top: 2.2rem; border-top: 1px solid #c9d2db; padding-top: 0.8rem; }
summary { cursor: pointer; font-weight: 600; }
summary:focus-visible { outline: 2px solid #22577a; }
details table { font-size: 0.82rem; margin-top: 0.6rem; }
a { color: #1a4f73; }
@media (max-width: 600px) {
  body { margin: 1rem auto; padding: 0 0.9rem; }
  h1 { font-size: 1.35rem; }
  dl.cards { display: grid; grid-template-columns: 1fr 1fr; gap: 0.6rem; }
  .card { min-width: 0; padding: 0.6rem 0.7rem; }
  .card dd { font-size: 1.1rem; }
  .row figure { flex-basis: 100%; }
  figure.panels { overflow-x: auto; }
  figure.panels::before { content: "scrolls sideways"; display: block; font-size: 0.8rem;
                          color: #4a5866; position: sticky; left: 0; }
  figure.panels img { width: 680px; max-width: none; }
  figure.panels figcaption { position: sticky; left: 0; width: calc(100vw - 1.8rem); }
  td, th { padding-right: 0.8rem; }
  tbody td { white-space: nowrap; } tbody th { min-width: 8rem; }
  .rows td { white-space: normal; }
  .rows th { min-width: 6.5rem; }
}
@media print {
  @page { size: A4; margin: 16mm 14mm; }
  body { max-width: none; margin: 0; padding: 0; font-size: 10.5pt; }
  .card, figure, tr, .note { break-inside: avoid; }
  .row figure { flex: 1 1 75mm; max-width: 88mm; }
  dl.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 3mm; }
  .card { min-width: 0; }
  h2, thead, summary { break-after: avoid; }
  thead { display: table-header-group; }
  figure.panels { overflow: visible; }
  figure.panels img { width: 100%; }
  img { max-height: 235mm; object-fit: contain; object-position: left top; }
  .wide { overflow: visible; }
  table { font-size: 8.5pt; }
  thead th { white-space: normal; }
  td, th { padding-right: 0.5rem; }
  details::details-content { content-visibility: visible; block-size: auto; }
  a[href^="http"]::after { content: " (" attr(href) ")"; font-size: 0.85em; }
}
"""

# Nothing but the folded table depends on it.
_OPEN_IN_PRINT = (
    "addEventListener('beforeprint',()=>"
    "document.querySelectorAll('details').forEach(d=>d.open=true))"
)


def write_page(
    path: str | Path,
    title: str,
    lead: str,
    notes: Sequence[str],
    cards: Sequence[tuple[str, str]],
    sections: Sequence[str],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a page: heading, caveats, the main numbers, and what else there is.

    Args:
        path: the .html file.
        title, lead: heading, and a sentence below it.
        notes: caveats, shown above everything else.
        cards: main numbers, each with what it is.
        sections: HTML: headings `<h2>`, and what `figure`, `table` and `grid` return.
        provenance: name -> text, number, or such a table in turn: where the numbers come from
            (versions, seeds, hashes); folded at the foot.
    """
    cells = "".join(
        f"<div class='card'><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>"
        for v, k in cards
    )
    body = "".join(
        [
            f"<h1>{html.escape(title)}</h1><p class='lead'>{html.escape(lead)}</p>",
            *(f"<p class='note' role='note'>{html.escape(n)}</p>" for n in notes),
            f"<dl class='cards'>{cells}</dl>" if cells else "",
            *sections,
            _provenance(provenance),
        ]
    )
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        # An icon of its own: browsers ask a server for one otherwise.
        "<link rel='icon' href='data:,'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{body}</main><script>{_OPEN_IN_PRINT}</script></body></html>\n"
    )
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def figure(png: bytes, caption: str, small: bool = False) -> str:
    """Return a figure with its caption, which is also what a screen reader says.

    Args:
        png: the picture.
        caption: what it shows, in full.
        small: one panel; wide ones scroll in their box on a phone, so that they can be read.
    """
    data = base64.b64encode(png).decode()
    width, height = (int.from_bytes(png[k : k + 4], "big") for k in (16, 20))
    # Wide ones may scroll, so the keyboard must reach them.
    kind, panels = (" class='small'", "") if small else ("", " class='panels' tabindex='0'")
    return (
        f"<figure{panels}><img{kind} width='{width}' height='{height}' "
        f"alt='{html.escape(caption)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def row(figures: Sequence[str]) -> str:
    """Return small figures side by side where there is room, below each other on a phone."""
    return f"<div class='row'>{''.join(figures)}</div>"


def heading(text: str) -> str:
    """Return the heading of a section."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def table(rows: Mapping[str, Any]) -> str:
    """Return a table of names and values."""
    body = "".join(
        f"<tr><th scope='row'>{html.escape(str(k))}</th><td>{_cell(v)}</td></tr>"
        for k, v in rows.items()
    )
    return f"<div class='wide'><table class='rows'><tbody>{body}</tbody></table></div>"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with a row of headings; the first cell of each row names it."""
    top = "".join(f"<th scope='col'>{html.escape(c)}</th>" for c in head)
    body = "".join(
        f"<tr><th scope='row'>{html.escape(row[0])}</th>"
        + "".join(f"<td>{html.escape(c)}</td>" for c in row[1:])
        + "</tr>"
        for row in rows
    )
    # It may scroll, so the keyboard must reach it.
    return (
        "<div class='wide' tabindex='0' role='region' aria-label='table'>"
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _provenance(rows: Mapping[str, Any] | None) -> str:
    if not rows:
        return ""
    return (
        "<details><summary>Provenance: versions, settings, hashes</summary>"
        f"{table(_flat(rows))}</details>"
    )


def _flat(rows: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested tables as one, with joined names."""
    found: dict[str, Any] = {}
    for name, value in rows.items():
        joined = f"{above} {name}" if above else str(name)
        if isinstance(value, Mapping):
            found |= _flat(value, joined)
        elif value is not None and value != [] and value != "":
            found[joined] = value
    return found


def _cell(value: Any) -> str:
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))
