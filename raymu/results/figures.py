"""The report's figures, drawn by plotly: the same for the page and for PNG.

Figures of the search are on validation, as the search saw it; what is confirmed is on test. Names that a user chose are
escaped by `label`, since plotly renders a subset of HTML.
"""

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from raymu.objective import MARGIN, score_name
from raymu.results import tables
from raymu.results.comparison import Estimate
from raymu.results.ranking import Ranked
from raymu.results.reader import SweepResults, search_rows
from raymu.results.style import COLOURS, GREEN, GREY, INK, TUNED, add_legend, empty_figure, side_by_side, styles
from raymu.results.tables import number
from raymu.row import Row

POINTS = 2000  # of a figure: more cannot be told apart, and take a browser long


def thinned(rows: Sequence[Row], most: int) -> list[Row]:
    """Rows, evenly thinned out where there are more than `most`."""
    return [rows[len(rows) * number // most] for number in range(most)] if len(rows) > most else list(rows)


def search_references(sweeps: Iterable[SweepResults]) -> dict[str, Row]:
    """The "original" and the "retrained" model that were searched on, as far as they are known."""
    for sweep in sweeps:
        for row in search_rows(sweep):
            if models := sweep.references.get(row["scenario_hash"]):
                return models
    return {}


def comparison(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> go.Figure:
    """Published against tuned on test, a line a method, best first; original and retrained as lines."""
    titles = ["retain", "forget", "probe-forget"]
    columns = ["test_retain_acc", "test_forget_acc", "test_probe_forget_acc"]
    figure = side_by_side(titles, 130 + 34 * len(ranked), shared_yaxes=True, horizontal_spacing=0.08)
    style = styles(sweeps)
    colours = [style[entry.sweep.name].colour for entry in ranked]
    for panel, column in enumerate(columns, start=1):
        for model, dash in (("original", "solid"), ("retrained", "dot")):
            value = _bar(_estimate(ranked[0], model, column))[0]
            figure.add_scatter(
                x=[value, value], y=[-0.5, len(ranked) - 0.5], mode="lines", name=model, showlegend=panel == 1,
                line={"color": INK, "width": 1.5, "dash": dash}, hoverinfo="skip", row=1, col=panel,
            )  # fmt: skip
        for kind, offset in (("published", -0.15), ("tuned", 0.15)):
            means, up, down = zip(*(_bar(_estimate(entry, kind, column)) for entry in ranked), strict=True)
            fill = ["white"] * len(ranked) if kind == "published" else colours
            figure.add_scatter(
                x=means, y=[y + offset for y in range(len(ranked))], mode="markers", showlegend=False, row=1, col=panel,
                marker={"color": fill, "size": 9, "line": {"width": 2, "color": colours}},
                error_x={"array": up, "arrayminus": down, "width": 3, "thickness": 1.2, "color": GREY},
                hovertext=[
                    f"{style[entry.sweep.name].label}, {kind}: {tables.percent(mean)} %"
                    for entry, mean in zip(ranked, means, strict=True)
                ],
                hoverinfo="text",
            )  # fmt: skip
    add_legend(figure, "published", {"color": "white", "size": 9, "line": {"width": 2, "color": GREY}})
    add_legend(figure, "tuned", {"color": GREY, "size": 9})
    figure.update_xaxes(range=[-0.04, 1.04], tickvals=[0, 0.5, 1], ticktext=["0", "50", "100"], tickangle=0)
    return figure.update_yaxes(axis_of_names([style[entry.sweep.name].label for entry in ranked]))


def _estimate(entry: Ranked, model: str, column: str) -> Estimate | None:
    figures = entry.figures[model]
    return None if figures is None else figures.metrics.get(column)


def _bar(estimate: Estimate | None) -> tuple[float | None, float, float]:
    """Mean, and how far its interval goes up and down."""
    if estimate is None or number(estimate.mean) is None:
        return None, 0.0, 0.0
    if estimate.low is None or estimate.high is None:
        return estimate.mean, 0.0, 0.0
    return estimate.mean, estimate.high - estimate.mean, estimate.mean - estimate.low


def axis_of_names(names: Sequence[str]) -> dict[str, Any]:
    """An axis of labels from top to bottom: by number, or two names of the same label would be one."""
    count = len(names)
    return {"tickvals": list(range(count)), "ticktext": list(names), "range": [count - 0.5, -0.5]}


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (x, y) that no other beats, x being better when low and y when high; by rising x."""
    front: list[tuple[float, float]] = []
    for x, below in sorted({(x, -y) for x, y in points}):
        if not front or -below > front[-1][1]:
            front.append((x, -below))
    return front


def tradeoff(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked], models: Mapping[str, Row]) -> go.Figure:
    """Retain against probe-forget accuracy on validation of every trial of the searches, and their Pareto front.

    The front is of completed trials. Where samples are forgotten there is none, since lower is not better.
    """
    x, y = "val_probe_forget_acc", "val_retain_acc"
    rows = [row for sweep in sweeps for row in search_rows(sweep) if row["status"] == "completed"]
    front = pareto((row[x], row[y]) for row in _with(rows, x, y) if row["forget"])
    figure = _cloud(sweeps, ranked, models, x, y, front)
    if "retrained" in models and (aim := _with([models["retrained"]], x, y)) and front:
        left = min(point[0] for point in (*front, (aim[0][x], 0)))
        figure.add_shape(
            x0=left - 0.02, x1=aim[0][x], y0=aim[0][y] - MARGIN, y1=1.005, fillcolor=GREEN, opacity=0.15, line_width=0,
            layer="below", name="as good as retrained", showlegend=True, legendrank=2000,
        )  # fmt: skip
    line = {"color": GREY, "width": 1.5, "shape": "hv"}
    xs, ys = [point[0] for point in front], [point[1] for point in front]
    figure.add_scatter(
        x=xs, y=ys, mode="lines", line=line, name="Pareto front", legendrank=2000, hoverinfo="skip", zorder=-1
    )
    return figure.update_layout(
        xaxis_title="probe-forget accuracy (validation)", yaxis_title="retain accuracy (validation)"
    )


def illusion(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked], models: Mapping[str, Row]) -> go.Figure:
    """What the probe reads of the forgotten against what the output says of it, on validation, for every trial."""
    figure = _cloud(sweeps, ranked, models, "val_forget_acc", "val_probe_forget_acc")
    line, name = {"color": GREY, "width": 1.5, "dash": "dash"}, "probe = output"
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, name=name, legendrank=2000, hoverinfo="skip")
    return figure.update_layout(
        xaxis={"title": "output-forget accuracy (validation)", "range": [-0.04, 1.04]},
        yaxis={"title": "probe-forget accuracy (validation)", "range": [-0.04, 1.04]},
    )


def _with(rows: Iterable[Row], x: str, y: str) -> list[Row]:
    return [row for row in rows if number(row.get(x)) is not None and number(row.get(y)) is not None]


def _cloud(
    sweeps: Sequence[SweepResults],
    ranked: Sequence[Ranked],
    models: Mapping[str, Row],
    x: str,
    y: str,
    needed: Iterable[tuple[float, float]] = (),
) -> go.Figure:
    """Trials of the searches that have both columns, `POINTS` of them at most and all at the needed places; the tuned
    settings outlined, and the two references.
    """
    figure = empty_figure(480).update_xaxes(tickformat=".1~%").update_yaxes(tickformat=".1~%")
    of_search = {sweep.name: search_rows(sweep) for sweep in sweeps}
    places, all_trials = set(needed), sum(map(len, of_search.values()))

    def add(name: str, rows: Iterable[Row], marker: dict[str, Any], legend: bool = False) -> None:
        rows = _with(rows, x, y)
        chosen = thinned(rows, -(-POINTS * len(rows) // max(all_trials, POINTS)))
        known = {id(row) for row in chosen}
        rows = chosen + [row for row in rows if (row[x], row[y]) in places and id(row) not in known]
        figure.add_scatter(
            x=[round(row[x], 5) for row in rows], y=[round(row[y], 5) for row in rows], mode="markers", marker=marker,
            name=name, legendgroup=name, showlegend=legend,
            hovertext=[f"{name}<br>{hover_text(row)}" for row in rows], hoverinfo="text",
        )  # fmt: skip

    style = styles(sweeps)
    stopped = {sweep: [row for row in rows if row["status"] == "stopped"] for sweep, rows in of_search.items()}
    for sweep, rows in of_search.items():
        name, colour, symbol, _ = style[sweep]
        add(name, stopped[sweep], {"color": colour, "symbol": f"{symbol}-open", "size": 7, "opacity": 0.4})
        completed = [row for row in rows if row["status"] == "completed"]
        add(name, completed, {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.7}, legend=True)
    outline = {"color": INK, "width": 2}
    for entry in ranked:
        name, colour, symbol, _ = style[entry.sweep.name]
        add(name, [entry.tuned], {"color": colour, "symbol": symbol, "size": 14, "line": outline})
    for model, symbol in (("original", "x-thin"), ("retrained", "asterisk")):
        marker = {"symbol": symbol, "size": 12, "line": {"color": INK, "width": 3}}
        add(model, [models[model]] if model in models else [], marker, legend=True)
    add_legend(figure, "tuned", {"color": "white", "size": 12, "line": outline})
    if any(stopped.values()):
        add_legend(figure, "stopped early", {"color": GREY, "symbol": "circle-open", "size": 7})
    return figure


def hover_text(row: Row) -> str:
    """Text that a point of a trial, or of a reference, shows under the pointer."""
    if "trial" not in row:
        return "reference"
    score = "" if number(row["score"]) is None else f", {score_name(row['objective'])} {row['score']:.3f}"
    return f"trial {row['trial']} ({row['status']}{score})<br>{html.escape(tables.setting(row['config']))}"


def features(drawn: Mapping[str, Any], unlearned: str = "tuned") -> go.Figure:
    """Three t-SNE maps of the same validation images, under the original, retrained and unlearned model.

    Args:
        drawn: what `features.json` holds. Forgotten classes are coloured, the others grey.
        unlearned: what the unlearned model is called.
    """
    models = [model for model in ("original", "retrained", "tuned") if model in drawn]
    titles = [unlearned if model == "tuned" else model for model in models]
    figure = side_by_side(titles, 340, horizontal_spacing=0.02)
    labels = drawn["labels"]
    colours = dict(zip(drawn["forget"], itertools.cycle([TUNED, *COLOURS]), strict=False))
    groups = [("other classes", "#BDBDBD", [i for i, of in enumerate(labels) if of not in colours])]
    groups += [(f"class {c}", colour, [i for i, of in enumerate(labels) if of == c]) for c, colour in colours.items()]
    for panel, model in enumerate(models, start=1):
        xs, ys = drawn[model]["x"], drawn[model]["y"]
        for name, colour, members in groups:
            figure.add_scatter(
                x=[number(xs[i]) for i in members], y=[number(ys[i]) for i in members], mode="markers",
                marker={"color": colour, "size": 5, "opacity": 0.8}, name=html.escape(name), legendgroup=name,
                showlegend=panel == 1, hovertext=[html.escape(f"class {labels[i]}") for i in members],
                hoverinfo="text", row=1, col=panel,
            )  # fmt: skip
    bare = {"showticklabels": False, "showgrid": False, "mirror": True}
    return figure.update_xaxes(bare).update_yaxes(bare)
