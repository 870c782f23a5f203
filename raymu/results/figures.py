"""The report's figures, drawn by plotly: the same for the page and for PNG.

Figures of the search are on validation, as the search saw it; what is confirmed is on test. Names that a user chose are
escaped by `label`, since plotly renders a subset of HTML.
"""

import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from raymu.results import tables
from raymu.results.ranking import Estimate, Ranked
from raymu.results.store import Row, SweepResults

# Apart for colour-blind readers as far as fifteen colours can be (Okabe and Ito, then Tol); the shape says the rest.
_CODES = "0072B2 D55E00 009E73 CC79A7 E69F00 56B4E9 332288 882255 999933 44AA99 AA4499 117733 CC6677 8C510A 7F7F7F"
COLOURS = tuple(f"#{code}" for code in _CODES.split())
_SYMBOLS = "circle square diamond triangle-up triangle-down cross x star pentagon hexagon triangle-left triangle-right"
SYMBOLS = (*_SYMBOLS.split(), "bowtie", "hourglass", "star-diamond", "star-square")
DASHES = ("solid", "dash", "dot", "dashdot")
INK, GREY, PALE = "#222222", "#767676", "#D5D5D5"
SHADES = sample_colorscale(["#C6DBEF", "#4292C6", "#08306B"], 8)  # of the lines of trials, by rising score
TUNED = "#D55E00"
ENOUGH_TRIALS = 10  # fewer say nothing of what matters
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
    """Sweep name -> style. It hangs on the set of names alone, not on their ranks.

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


def search_rows(sweep: SweepResults) -> list[Row]:
    """The rows of the search, the published setting included; no confirmation."""
    return [row for row in sweep.rows if row.get("source") != "confirmation"]


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def search_references(sweeps: Iterable[SweepResults]) -> dict[str, Row]:
    """The "original" and the "retrained" model that were searched on, as far as they are known."""
    for sweep in sweeps:
        for row in search_rows(sweep):
            if models := sweep.references.get(row["scenario_hash"]):
                return models
    return {}


def _figure(height: int, **layout: Any) -> go.Figure:
    return go.Figure(layout={"template": TEMPLATE, "height": height, **layout})


def _panels(titles: Sequence[str], height: int, **layout: Any) -> go.Figure:
    """Plots side by side."""
    figure = make_subplots(1, len(titles), subplot_titles=titles, figure=_figure(height), **layout)
    return figure.update_annotations(font_size=12)


def _legend(figure: go.Figure, name: str, marker: dict[str, Any]) -> None:
    """An entry of the legend that belongs to no sweep."""
    figure.add_scatter(x=[None], y=[None], name=name, mode="markers", marker=marker, legendrank=2000)


def comparison(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> go.Figure:
    """Published against tuned on test, a line a method, best first; original and retrained as lines."""
    titles = ["retain", "forget", "probe-forget"]
    columns = ["test_retain_acc", "test_forget_acc", "test_probe_forget_acc"]
    figure = _panels(titles, 130 + 34 * len(ranked), shared_yaxes=True, horizontal_spacing=0.08)
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
    _legend(figure, "published", {"color": "white", "size": 9, "line": {"width": 2, "color": GREY}})
    _legend(figure, "tuned", {"color": GREY, "size": 9})
    figure.update_xaxes(range=[-0.04, 1.04], tickvals=[0, 0.5, 1], ticktext=["0", "50", "100"], tickangle=0)
    return figure.update_yaxes(_names([style[entry.sweep.name].label for entry in ranked]))


def _estimate(entry: Ranked, model: str, column: str) -> Estimate | None:
    figures = entry.figures[model]
    return None if figures is None else figures.metrics.get(column)


def _bar(estimate: Estimate | None) -> tuple[float | None, float, float]:
    """Mean, and how far its interval goes up and down."""
    if estimate is None or number(estimate.mean) is None:
        return None, 0.0, 0.0
    return estimate.mean, (number(estimate.high) or 0) - estimate.mean, estimate.mean - (number(estimate.low) or 0)


def _names(names: Sequence[str]) -> dict[str, Any]:
    """An axis of labels from top to bottom: by number, or two names of the same label would be one."""
    count = len(names)
    return {"tickvals": list(range(count)), "ticktext": list(names), "range": [count - 0.5, -0.5]}


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (x, y) that no other beats, x being better when low and y when high; by rising x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def tradeoff(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked], models: Mapping[str, Row]) -> go.Figure:
    """Retain against probe-forget accuracy on validation of every trial of the searches, and their Pareto front.

    The front is of completed trials, whose probe is the strong one. With the objective `oracle_gap` lower is not
    better, so there is none.
    """
    x, y = "val_probe_forget_acc", "val_retain_acc"
    rows = [row for sweep in sweeps for row in search_rows(sweep) if row["status"] == "completed"]
    front = pareto((row[x], row[y]) for row in _with(rows, x, y) if row["objective"] != "oracle_gap")
    figure = _cloud(sweeps, ranked, models, x, y)
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


def _with(rows: Iterable[Row], *columns: str) -> list[Row]:
    return [row for row in rows if all(number(row.get(column)) is not None for column in columns)]


def _cloud(
    sweeps: Sequence[SweepResults], ranked: Sequence[Ranked], models: Mapping[str, Row], x: str, y: str
) -> go.Figure:
    """Every trial of the searches that has both columns, the tuned settings outlined, and the two references."""
    figure = _figure(480).update_xaxes(tickformat=".0%").update_yaxes(tickformat=".0%")

    def add(name: str, rows: Iterable[Row], marker: dict[str, Any], legend: bool = False) -> None:
        rows = _with(rows, x, y)
        figure.add_scatter(
            x=[row[x] for row in rows], y=[row[y] for row in rows], mode="markers", marker=marker,
            name=name, legendgroup=name, showlegend=legend,
            hovertext=[f"{name}<br>{_hover(row)}" for row in rows], hoverinfo="text",
        )  # fmt: skip

    style = styles(sweeps)
    for sweep in sweeps:
        name, colour, symbol, _ = style[sweep.name]
        stopped = [row for row in search_rows(sweep) if row["status"] == "stopped"]
        add(name, stopped, {"color": colour, "symbol": f"{symbol}-open", "size": 7, "opacity": 0.4})
        completed = [row for row in search_rows(sweep) if row["status"] == "completed"]
        add(name, completed, {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.7}, legend=True)
    outline = {"color": INK, "width": 2}
    for entry in ranked:
        name, colour, symbol, _ = style[entry.sweep.name]
        add(name, [entry.tuned], {"color": colour, "symbol": symbol, "size": 14, "line": outline})
    for model, symbol in (("original", "x-thin"), ("retrained", "asterisk")):
        marker = {"symbol": symbol, "size": 12, "line": {"color": INK, "width": 3}}
        add(model, [models[model]] if model in models else [], marker, legend=True)
    _legend(figure, "tuned", {"color": "white", "size": 12, "line": outline})
    _legend(figure, "stopped early", {"color": GREY, "symbol": "circle-open", "size": 7})
    return figure


def _hover(row: Row) -> str:
    if "trial" not in row:
        return "reference"
    score = "" if number(row["score"]) is None else f", {row['objective']} {row['score']:.3f}"
    return f"trial {row['trial']} ({row['status']}{score})<br>{html.escape(tables.setting(row['config']))}"


def draws(rows: Iterable[Row]) -> list[float]:
    """What each trial of a search is worth to `expected_best`.

    The published setting is left out: it was not drawn. A trial that ended in an error or diverged is worth 0. One that
    was stopped early is worth its last score, but no more than the worst completed trial: the scheduler found it behind
    others, `best` never chooses it, and its score is the cheap probe's, which does not compare with the strong one's.
    """
    searched = [row for row in rows if row.get("source") == "search"]
    floor = min((number(row["score"]) or 0.0 for row in searched if row["status"] == "completed"), default=0.0)
    worth = []
    for row in searched:
        score = number(row["score"]) or 0.0
        worth.append({"completed": score, "stopped": min(score, floor)}.get(row["status"], 0.0))
    return worth


def expected_best(scores: Sequence[float]) -> list[float]:
    """The expected highest of n draws, with replacement, from `scores`, for n = 1 .. len(scores).

    E[max] = sum_i s_(i) ((i / N)^n - ((i - 1) / N)^n), s_(i) being the i-th lowest of N scores (Dodge et al., Show Your
    Work, EMNLP 2019, equations 7 and 8).
    """
    count = len(scores)
    below = np.arange(count + 1) / max(count, 1)
    return [float(np.sort(scores) @ np.diff(below**n)) for n in range(1, count + 1)]


def effort(sweeps: Sequence[SweepResults]) -> go.Figure:
    """Expected best score on validation after n trials, a line a method."""
    figure = _figure(460)
    style = styles(sweeps)
    for sweep in sweeps:
        best = expected_best(draws(sweep.rows))
        name, colour, symbol, dash = style[sweep.name]
        figure.add_scatter(
            x=list(range(1, len(best) + 1)), y=best, mode="lines+markers", name=name,
            line={"color": colour, "dash": dash, "width": 2}, marker={"symbol": symbol, "size": 8, "maxdisplayed": 8},
            hovertext=[f"{name}<br>{n} trials: {score:.3f}" for n, score in enumerate(best, start=1)], hoverinfo="text",
        )  # fmt: skip
    return figure.update_layout(xaxis_title="trials", yaxis_title="expected best score (validation)")


def importance(sweep: SweepResults) -> dict[str, float]:
    """Hyperparameter -> its share (in 0..1) of the variance of the score (functional ANOVA; Hutter et al., ICML 2014).

    Over completed and diverged trials, always by the same random forest. Empty where they are fewer than
    `ENOUGH_TRIALS` or all score the same.
    """
    space = sweep.identity.get("space", {})
    distributions = {name: _distribution(search) for name, search in space.items()}
    trials = []
    for row in search_rows(sweep):
        params = {name: number(row["config"].get(name)) for name in space}
        inside = all(x is not None and space[name]["low"] <= x <= space[name]["high"] for name, x in params.items())
        if row["status"] in ("completed", "diverged") and number(row["score"]) is not None and inside:
            trials.append(optuna.create_trial(params=params, distributions=distributions, value=row["score"]))
    if len(trials) < ENOUGH_TRIALS or len({trial.value for trial in trials}) == 1 or not space:
        return {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    optuna.logging.set_verbosity(verbosity)
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: share for name, share in shares.items() if number(share) is not None}


def _distribution(search: Mapping[str, Any]) -> BaseDistribution:
    if search["scale"] == "int":
        return IntDistribution(int(search["low"]), int(search["high"]))
    return FloatDistribution(search["low"], search["high"], log=search["scale"] == "log")


def hyperparameters(sweep: SweepResults, tuned: Row | None, published: Row | None) -> go.Figure:
    """Parallel coordinates of the search, turned on the side (a line of axes a hyperparameter, a line a trial), and the
    importance of every hyperparameter.

    Not `go.Parcoords`: each takes three WebGL contexts, of which a browser keeps sixteen, so five methods would be the
    most that one page shows.
    """
    space = sweep.identity.get("space", {})
    rows = [row for row in search_rows(sweep) if all(number(row["config"].get(name)) is not None for name in space)]
    scored = [row for row in rows if row["status"] == "completed" and number(row["score"]) is not None]
    low = min((row["score"] for row in scored), default=0.0)
    high = max((row["score"] for row in scored), default=1.0)
    scores = {"low": low, "high": high if high > low else low + 1, "scale": "linear"}
    axes = [*space.values(), scores]
    positions = list(range(len(axes)))
    titles = ["setting and score of each trial", "importance"]
    layout = {"shared_yaxes": True, "column_widths": [0.78, 0.22], "horizontal_spacing": 0.05}
    figure = _panels(titles, 150 + 46 * len(axes), **layout)

    def add(name: str, rows: Sequence[Row], line: dict[str, Any], legend: bool, mode: str = "lines") -> None:
        """The lines of trials, as one trace; None breaks a line."""
        xs: list[float | None] = []
        for row in rows:
            xs += [_scaled(row["config"][name], space[name]) for name in space]
            score = number(row["score"]) if row["status"] == "completed" else None
            xs += [None if score is None else _scaled(score, scores), None]
        texts = [f"{html.escape(name)}<br>{_hover(row)}" for row in rows for _ in (*positions, None)]
        ys = [*positions, None] * len(rows)
        marker = {"size": 9, "color": line["color"], "symbol": "diamond"}
        figure.add_scatter(
            x=xs, y=ys, mode=mode, name=name, line=line, marker=marker, showlegend=legend, hovertext=texts,
            hoverinfo="text", row=1, col=1,
        )  # fmt: skip

    add("not completed", [row for row in rows if row["status"] != "completed"], {"color": PALE, "width": 1}, True)
    shades = [int(len(SHADES) * min(_scaled(row["score"], scores), 0.99)) for row in scored]
    for shade, colour in enumerate(SHADES):
        among = [row for row, its in zip(scored, shades, strict=True) if its == shade]
        line = {"color": colour, "width": 1.3}
        add("completed: darker for a higher score", among, line, colour == SHADES[-1])
    add("published", [published] if published in rows else [], {"color": INK, "dash": "dash"}, True, "lines+markers")
    add("tuned", [tuned] if tuned in rows else [], {"color": TUNED, "width": 3}, True, "lines+markers")
    below = [y + 0.2 for y in positions]
    for place, end, anchor in ((0.0, "low", "middle right"), (1.0, "high", "middle left")):
        figure.add_scatter(
            x=[place] * len(axes), y=below, text=[f"{search[end]:.3g}" for search in axes],
            mode="text", textposition=anchor, textfont={"size": 11, "color": GREY},
            showlegend=False, hoverinfo="skip", row=1, col=1,
        )  # fmt: skip
    shares = importance(sweep)
    if shares:
        widths = [shares.get(name, 0.0) for name in space]
        figure.add_bar(
            x=widths, y=positions[:-1], orientation="h", width=0.4, marker_color=GREY, cliponaxis=False,
            text=[f"{100 * width:.0f} %" for width in widths], textposition="outside",
            showlegend=False, hoverinfo="skip", row=1, col=2,
        )  # fmt: skip
    else:
        middle = (len(axes) - 1) / 2
        figure.add_annotation(x=0.8, y=middle, text="too few<br>trials", showarrow=False, font_color=GREY, row=1, col=2)
    figure.update_xaxes(range=[-0.04, 1.04], showticklabels=False, showgrid=False, showline=False)
    figure.update_xaxes(range=[0, 1.6], col=2)
    figure.update_yaxes(
        {
            **_names([*map(label, space), "score"]),
            "range": [len(axes) - 0.4, -0.4],
            "gridcolor": PALE,
            "showline": False,
        }
    )
    figure.update_yaxes(showgrid=False, col=2)
    return figure


def _scaled(value: float, search: Mapping[str, Any]) -> float:
    """Where a value lies between the ends of its range, 0..1; a little beyond them if it is outside."""
    low, high = float(search["low"]), float(search["high"])
    if search["scale"] == "log":
        value, low, high = math.log(max(value, low / 2)), math.log(low), math.log(high)
    return min(max((value - low) / (high - low), -0.03), 1.03)


def cost(sweeps: Sequence[SweepResults]) -> go.Figure:
    """Seconds that all trials of each search took, in unlearning (full) and in evaluation (pale)."""
    figure = _figure(120 + 28 * len(sweeps), barmode="stack", bargap=0.35)
    style = [styles(sweeps)[sweep.name] for sweep in sweeps]
    colours = [its.colour for its in style]
    for part, column, opacity in (("unlearning", "unlearn_s", 1.0), ("evaluation", "evaluate_s", 0.4)):
        sums = [sum(number(row.get(column)) or 0.0 for row in search_rows(sweep)) for sweep in sweeps]
        figure.add_bar(
            x=sums, y=list(range(len(sweeps))), orientation="h", marker={"color": colours, "opacity": opacity},
            hovertext=[f"{its.label}, {part}: {seconds:,.1f} s" for its, seconds in zip(style, sums, strict=True)],
            hoverinfo="text", textposition="none", showlegend=False,
        )  # fmt: skip
        _legend(figure, part, {"color": GREY, "opacity": opacity, "symbol": "square", "size": 11})
    return figure.update_layout(
        xaxis={"title": "seconds", "rangemode": "tozero"},
        yaxis=_names([its.label for its in style]),
    )


def features(drawn: Mapping[str, Any], unlearned: str = "tuned") -> go.Figure:
    """Three t-SNE maps of the same validation images, under the original, retrained and unlearned model.

    Args:
        drawn: what `features.json` holds. Forgotten classes are coloured, the others grey.
        unlearned: what the unlearned model is called.
    """
    models = [model for model in ("original", "retrained", "tuned") if model in drawn]
    titles = [unlearned if model == "tuned" else model for model in models]
    figure = _panels(titles, 340, horizontal_spacing=0.02)
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
