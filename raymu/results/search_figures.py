"""The report's figures of searches, on validation, as the search saw it."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from raymu.results.figures import axis_of_names, hover_text, thinned
from raymu.results.reader import SweepResults, search_rows
from raymu.results.style import GREY, INK, PALE, SHADES, TUNED, empty_figure, label, side_by_side, styles
from raymu.results.tables import number
from raymu.row import Row

ENOUGH_TRIALS = 10  # fewer say nothing of what matters
MANY_TRIALS = 1000  # more take long, and say no more
LINES = 2000  # of trials, in all figures of hyperparameters together
STEPS = 200  # numbers of trials for which the expected best score is computed


def draws(rows: Iterable[Row]) -> list[float]:
    """What each trial of a search is worth to `expected_best`.

    The published setting is left out: it was not drawn. A trial that ended in an error or diverged is worth 0. One that
    was stopped early is worth its last score, but no more than the worst completed trial: the scheduler found it behind
    others, and `best` never chooses it.
    """
    searched = [row for row in rows if row.get("source") == "search"]
    floor = min((number(row["score"]) or 0.0 for row in searched if row["status"] == "completed"), default=0.0)
    most = {"completed": math.inf, "stopped": floor}
    return [min(number(row["score"]) or 0.0, most.get(row["status"], 0.0)) for row in searched]


def expected_best(scores: Sequence[float], numbers: Iterable[int]) -> list[float]:
    """The expected highest of n draws, with replacement, from `scores`, for each of some numbers n.

    E[max] = sum_i s_(i) ((i / N)^n - ((i - 1) / N)^n), s_(i) being the i-th lowest of N scores (Dodge et al., Show Your
    Work, EMNLP 2019, equations 7 and 8).
    """
    ordered, below = np.sort(scores), np.arange(len(scores) + 1) / max(len(scores), 1)
    return [float(ordered @ np.diff(below**n)) for n in numbers]


def effort(sweeps: Sequence[SweepResults]) -> go.Figure:
    """Expected best score on validation after n trials, a line a method."""
    figure = empty_figure(460)
    style = styles(sweeps)
    for sweep in sweeps:
        scores = draws(sweep.rows)
        numbers = sorted({round(n) for n in np.linspace(1, len(scores), min(STEPS, len(scores)))})
        best = expected_best(scores, numbers)
        name, colour, symbol, dash = style[sweep.name]
        figure.add_scatter(
            x=numbers, y=best, mode="lines+markers", name=name,
            line={"color": colour, "dash": dash, "width": 2}, marker={"symbol": symbol, "size": 8, "maxdisplayed": 8},
            hovertext=[f"{name}<br>{n} trials: {score:.3f}" for n, score in zip(numbers, best, strict=True)],
            hoverinfo="text",
        )  # fmt: skip
    longest = max(line.x[-1] for line in figure.data)
    whole = {"title": "trials", "tick0": 0, "dtick": max(1, round(longest / 8))}
    return figure.update_layout(xaxis=whole, yaxis={"title": "expected best score (validation)", "rangemode": "tozero"})


def importance(sweep: SweepResults) -> dict[str, float]:
    """Hyperparameter -> its share (in 0..1) of the variance of the score (functional ANOVA; Hutter et al., ICML 2014).

    Over completed and diverged trials, `MANY_TRIALS` of them at most, always by the same random forest. Empty where
    they are fewer than `ENOUGH_TRIALS` or all score the same. What each trial chooses is an outcome, and has no share.
    """
    space = {k: search for k, search in sweep.identity.get("space", {}).items() if k != sweep.identity.get("chosen")}
    distributions = {name: _distribution(search) for name, search in space.items()}
    trials = []
    for row in thinned(search_rows(sweep), MANY_TRIALS):
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


def hyperparameters(sweep: SweepResults, tuned: Row | None, published: Row | None, most: int = LINES) -> go.Figure:
    """Parallel coordinates of the search, turned on the side (a line of axes a hyperparameter, a line a trial), and the
    importance of every hyperparameter.

    Args:
        most: lines; of more trials half of them are the best, and the others evenly chosen.

    Not `go.Parcoords`: each takes three WebGL contexts, of which a browser keeps sixteen, so five methods would be the
    most that one page shows.
    """
    space = sweep.identity.get("space", {})
    rows = [row for row in search_rows(sweep) if all(number(row["config"].get(name)) is not None for name in space)]
    scored = [row for row in rows if row["status"] == "completed" and number(row["score"]) is not None]
    if len(rows) > most:
        best = sorted(scored, key=lambda row: -row["score"])[: most // 2]
        kept = {id(row) for row in [*best, *thinned(rows, most - len(best)), tuned, published]}
        rows, scored = ([row for row in some if id(row) in kept] for some in (rows, scored))
    low = min((row["score"] for row in scored), default=0.0)
    high = max((row["score"] for row in scored), default=1.0)
    scores = {"low": low, "high": high if high > low else low + 1, "scale": "linear"}
    axes = [*space.values(), scores]
    positions = list(range(len(axes)))
    titles = ["setting and score of each trial", "importance"]
    layout = {"shared_yaxes": True, "column_widths": [0.78, 0.22], "horizontal_spacing": 0.05}
    figure = side_by_side(titles, 150 + 46 * len(axes), **layout)

    def add(name: str, rows: Sequence[Row], line: dict[str, Any], legend: bool, mode: str = "lines") -> None:
        """The lines of trials, as one trace; None breaks a line."""
        xs: list[float | None] = []
        texts: list[str | None] = []  # at the first place: at every one they were most of the page
        for row in rows:
            xs += [round(_scaled(row["config"][name], space[name]), 4) for name in space]
            score = number(row["score"]) if row["status"] == "completed" else None
            xs += [None if score is None else round(_scaled(score, scores), 4), None]
            texts += [f"{html.escape(name)}<br>{hover_text(row)}", *[None] * len(axes)]
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
        parts, chosen = zip(space, widths, strict=True), sweep.identity.get("chosen")
        texts = ["chosen" if name == chosen else f"{100 * width:.0f} %" for name, width in parts]
        figure.add_bar(
            x=widths, y=positions[:-1], orientation="h", width=0.4, marker_color=GREY, cliponaxis=False,
            text=texts, textposition="outside",
            showlegend=False, hoverinfo="skip", row=1, col=2,
        )  # fmt: skip
    else:
        middle = (len(axes) - 1) / 2
        figure.add_annotation(x=0.8, y=middle, text="too few<br>trials", showarrow=False, font_color=GREY, row=1, col=2)
    figure.update_xaxes(range=[-0.04, 1.04], showticklabels=False, showgrid=False, showline=False)
    figure.update_xaxes(range=[0, 1.6], col=2)
    figure.update_yaxes(
        {
            **axis_of_names([*map(label, space), "score"]),
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
