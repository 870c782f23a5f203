"""How the report's figures look."""

import html
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from raymu.results.reader import SweepResults

# Apart for colour-blind readers as far as fifteen colours can be (Okabe and Ito, then Tol); the shape says the rest.
_CODES = "0072B2 D55E00 009E73 CC79A7 E69F00 56B4E9 332288 882255 999933 44AA99 AA4499 117733 CC6677 8C510A 7F7F7F"
COLOURS = tuple(f"#{code}" for code in _CODES.split())
_SYMBOLS = "circle square diamond triangle-up triangle-down cross x star pentagon hexagon triangle-left triangle-right"
SYMBOLS = (*_SYMBOLS.split(), "bowtie", "hourglass", "star-diamond", "star-square")
DASHES = ("solid", "dash", "dot", "dashdot")
INK, GREY, PALE = "#222222", "#767676", "#D5D5D5"
SHADES = sample_colorscale(["#C6DBEF", "#4292C6", "#08306B"], 8)  # of the lines of trials, by rising score
TUNED, GREEN = "#D55E00", "#009E73"
LONGEST_LABEL = 18
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
_AXIS = {"title": {"standoff": 12}, "automargin": True, "gridcolor": "#EBEBEB", "zeroline": False}
_AXIS |= {"linecolor": PALE, "showline": True}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 12, "color": INK},
        "margin": {"l": 4, "r": 12, "t": 28, "b": 4},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"orientation": "h", "xref": "container", "yref": "container", "x": 0, "y": 0, "yanchor": "bottom"}
        | {"maxheight": 1, "traceorder": "normal"},
        "hovermode": "closest",
        "dragmode": False,  # or a finger that scrolls the page would draw a box
    }
)


class Style(NamedTuple):
    """How a sweep is drawn in every figure. `label` is its name as plotly's text: escaped, and short."""

    label: str
    colour: str
    symbol: str
    dash: str


def styles(sweeps: Iterable[SweepResults]) -> dict[str, Style]:
    """Sweep name -> style. It depends on the set of names alone, not on their ranks.

    A directory that all sweeps lie in is left out of labels.
    """
    names = sorted({sweep.name for sweep in sweeps})
    directory = names[0].rpartition("/")[0] + "/" if names else ""
    shared = directory if all(name.startswith(directory) for name in names) else ""
    cycles = zip(*map(itertools.cycle, (COLOURS, SYMBOLS, DASHES)), strict=True)
    return {name: Style(label(name.removeprefix(shared)), *style) for name, style in zip(names, cycles, strict=False)}


def label(name: str) -> str:
    """A name as plotly's text: escaped, and its middle left out where it is long."""
    half = LONGEST_LABEL // 2
    return html.escape(name if len(name) <= LONGEST_LABEL else f"{name[:half]}…{name[-half:]}")


def empty_figure(height: int, **layout: Any) -> go.Figure:
    """Figure in the style of the report, without a trace. `height` is in pixels."""
    return go.Figure(layout={"template": TEMPLATE, "height": height, **layout})


def side_by_side(titles: Sequence[str], height: int, **layout: Any) -> go.Figure:
    """Plots side by side."""
    figure = make_subplots(1, len(titles), subplot_titles=titles, figure=empty_figure(height), **layout)
    return figure.update_annotations(font_size=12)


def add_legend(figure: go.Figure, name: str, marker: dict[str, Any]) -> None:
    """An entry of the legend that belongs to no sweep."""
    figure.add_scatter(x=[None], y=[None], name=name, mode="markers", marker=marker, legendrank=2000)
