"""The look of every figure of a report, and figures as bytes.

Figures are made with Matplotlib's object interface inside `styled`: nobody's global settings
change, and a user's ``matplotlibrc`` does not reach the report.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLORS", "Picture", "picture", "plain_text", "styled"]

# Okabe and Ito's palette for colour-blind readers, its yellow and black left out, and three more.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00",
    "#56B4E9", "#7A5195", "#8C6D31", "#C0392B", "#5F6B6D",
)  # fmt: skip

_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.formatter.min_exponent": 4,
    "axes.grid": True,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "figure.facecolor": "white",
    "font.size": 9.5,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    # Text stays text: it can be searched and selected, and is a third of the size of outlines.
    "svg.fonttype": "none",
    # Without a salt of our own, identifiers in the SVG differ from run to run.
    "svg.hashsalt": "tracelab",
    "xtick.color": "#555555",
    "xtick.labelsize": 8.5,
    "ytick.color": "#555555",
    "ytick.labelsize": 8.5,
}
_LONGEST_TEXT = 48
_DPI = 150


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure of the page, drawn.

    Parameters
    ----------
    name : str
        Stem of its files, unique on the page.
    caption : str
        One line under it.
    svg : bytes
        A complete SVG file.
    png : bytes
        The same as pixels.
    """

    name: str
    caption: str
    svg: bytes
    png: bytes

    @property
    def inline(self) -> Markup:
        """The SVG element alone, with identifiers that no other figure of the page has."""
        text = self.svg.decode()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
        prefix = f"{self.name}-"
        text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
        label = html.escape(self.caption, quote=True)
        return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style inside the ``with`` block, and leave no trace of it."""
    import matplotlib.style
    from cycler import cycler

    style = {**_STYLE, "axes.prop_cycle": cycler(color=COLORS)}
    with matplotlib.style.context(["default", style]), warnings.catch_warnings():
        # A name in a script that the pixel font lacks: the SVG shows it in the reader's font.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


def picture(figure: Figure, name: str, caption: str) -> Picture:
    """Return a figure as SVG and PNG; the same figure gives the same bytes.

    Call it inside `styled`: some of a figure is decided only while it is drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    # Not savefig, which draws each format twice and solves the layout again: most of a report's
    # time is spent here.
    pixels: Any = FigureCanvasAgg(figure)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    svg, png = io.BytesIO(), io.BytesIO()
    vectors: Any = FigureCanvasSVG(figure)
    vectors.print_svg(svg, metadata={"Date": None, "Creator": None})
    figure.set_dpi(_DPI)
    pixels.print_png(png, metadata={"Software": None})
    return Picture(name, caption, svg.getvalue(), png.getvalue())


def plain_text(text: Hashable) -> str:
    """Return text that Matplotlib shows as it stands: no mathematics, no hidden legend entry."""
    shown = "".join(letter if letter.isprintable() else "�" for letter in str(text))
    if len(shown) > _LONGEST_TEXT:
        half = _LONGEST_TEXT // 2
        shown = f"{shown[:half]}…{shown[-half:]}"
    shown = shown.replace("$", r"\$")
    # A label that begins with an underscore is left out of legends.
    return f" {shown}" if shown.startswith("_") else shown
