"""What all figures share: sizes, colours, and text that can be read on a phone and in print."""

import io
from typing import Any

#: Okabe and Ito's colours, told apart with any colour vision; doi:10.1038/nmeth.1618.
MODEL, REFERENCE, OTHER = "#D55E00", "#0072B2", "#E69F00"
SERIES = (MODEL, REFERENCE, "#009E73", "#CC79A7", "#56B4E9", "#000000")
#: Dashes and markers go with them: nothing is told by colour alone.
DASHED, DOTTED = (0, (5, 2)), (0, (1, 1.2))
DASHES: tuple[Any, ...] = ("-", DASHED, DOTTED, (0, (5, 1.5, 1, 1.5)), (0, (9, 2)), (0, (3, 3)))
MARKERS = ("o", "s", "^", "D", "v", "x")
#: Where nothing was seen.
EMPTY = "#efefef"

#: Inches of a figure with one panel.
ONE = (4.8, 3.3)
# Points that a figure is wide on a phone of 375 pixels, and a wide one, which scrolls in its box
# (page.py). Its text is to have eight points there.
_PHONE, _SCROLLED, _SMALLEST = 258.0, 510.0, 8.0


def subplots(rows: int, columns: int, size: tuple[float, float] = ONE) -> tuple[Any, Any]:
    """Return a matplotlib figure and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figure, not pyplot: no global state, no display.
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def png(figure: Any) -> bytes:
    """Return a figure as a PNG file, with text as large as the page needs it."""
    from matplotlib.text import Text

    width = figure.get_size_inches()[0]
    # Narrow ones are shown as wide as the phone, wide ones in a box that scrolls.
    points = _SMALLEST * 72 * width / (_PHONE if width <= NARROW else _SCROLLED)
    for axis in figure.axes:
        axis.tick_params(labelsize=points)
        axis.spines[["top", "right"]].set_visible(axis.get_facecolor()[0] < 0.99)
    for text in figure.findobj(Text):
        text.set_fontsize(points)
    figure.draw_without_rendering()  # the layout of the first pass has other tick labels
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


#: Inches; wider figures scroll on a phone.
NARROW = 5.0
