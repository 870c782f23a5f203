"""The report: one HTML page that works offline, and its figures as PNG."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from raymu.errors import InputError
from raymu.results import figures, search_figures, style, tables
from raymu.results.comparison import FEWEST, Estimate
from raymu.results.figures import number, search_rows
from raymu.results.ranking import Ranked
from raymu.results.reader import SweepResults
from raymu.row import SETTING, Row

ENOUGH_ORIGINALS = 5
MANY = 4  # names are a number in the headline
PNG_WIDTH = 900  # pixels, at scale 2


class Drawing(NamedTuple):
    """A figure, the section of the page that it belongs to, and whose it is if it is one sweep's."""

    section: str
    sweep: str | None
    figure: go.Figure


def write(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked], path: Path) -> None:
    """Write the report as one HTML file that loads nothing else.

    Args:
        sweeps: all that were run.
        ranked: the sweeps with a completed trial, best first.

    Raises:
        InputError: the file cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("raymu.results").joinpath("report.html.j2").read_text(encoding="utf-8"))
    sweeps = _best_first(sweeps, ranked)
    plots: dict[str, list[tuple[str | None, Markup]]] = {}
    for index, drawing in enumerate(drawings(sweeps, ranked)):
        plot = drawing.figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"plot-{index}",
            config={"responsive": True, "displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]},
        )
        plots.setdefault(drawing.section, []).append((drawing.sweep, Markup(plot)))
    styles = style.styles(sweeps)
    page = template.render(
        sweeps=sweeps,
        ranked=ranked,
        plots=plots,
        plotlyjs=Markup(get_plotlyjs()),
        colours={name: style.colour for name, style in styles.items()},
        references=("original", "retrained") if ranked else (),
        metrics=tables.shown_columns(entry.figures["tuned"] for entry in ranked),
        metric=lambda column: lambda value: tables.metric(column, number(value)),
        objective=ranked[0].tuned["objective"] if ranked else "score",
        headline=headline(ranked),
        about=about(sweeps, ranked),
        warnings=list(cautions(sweeps, ranked)),
        unfinished=[
            (sweep, _errors(sweep)) for sweep in sweeps if not any(row["status"] == "completed" for row in sweep.rows)
        ],
        costs=[cost(sweep) for sweep in sweeps],
        facts=facts(sweeps),
        configs=[(entry, yaml.safe_dump(config(entry.tuned), sort_keys=False)) for entry in ranked],
        seconds=seconds,
        interval=interval,
        place=tables.place,
        fixed=fixed,
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def write_png(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked], directory: Path) -> list[Path]:
    """Write every figure as a PNG and return the files.

    Raises:
        InputError: Kaleido or a Chrome is missing, or the directory cannot be written.
    """
    try:
        import kaleido
        from kaleido.errors import BrowserFailedError, ChromeNotFoundError
    except ImportError as error:
        raise InputError("PNG figures need Kaleido: pip install 'kaleido>=1'") from error
    paths, tasks = [], []
    for index, drawing in enumerate(drawings(sweeps, ranked), start=1):
        name = "-".join(filter(None, (drawing.section, drawing.sweep)))
        paths.append(directory / f"{index:02d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:80]}.png")
        size = {"width": PNG_WIDTH, "height": drawing.figure.layout.height, "scale": 2}
        tasks.append({"fig": drawing.figure, "path": paths[-1], "opts": size})
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Not by plotly, which would have the browser load MathJax from the net. Its own plotly.js is on the disk.
        kaleido.write_fig_from_object_sync(tasks, cancel_on_error=True, kopts={"mathjax": False})
    except (ChromeNotFoundError, BrowserFailedError) as error:
        raise InputError(
            "PNG figures need Chrome or Chromium: install one (apt install chromium, or plotly_get_chrome), or name its"
            " executable in BROWSER_PATH"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write to {directory}: {error.strerror}") from error
    return paths


def drawings(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> Iterator[Drawing]:
    """Every figure, in the order of the page. What could only be empty is left out."""
    sweeps = _best_first(sweeps, ranked)
    if ranked:
        searched = figures.search_references(sweeps)
        yield Drawing("comparison", None, figures.comparison(sweeps, ranked))
        yield Drawing("tradeoff", None, figures.tradeoff(sweeps, ranked, searched))
        yield Drawing("illusion", None, figures.illusion(sweeps, ranked, searched))
    found = [sweep for sweep in sweeps if search_figures.draws(sweep.rows)]
    if found:
        yield Drawing("effort", None, search_figures.effort(found))
    of = {entry.sweep.name: entry for entry in ranked}
    for sweep in found:
        entry = of.get(sweep.name)
        figure = search_figures.hyperparameters(sweep, entry and entry.tuned, entry and entry.published)
        yield Drawing("hyperparameters", sweep.name, figure)
    if found:
        yield Drawing("cost", None, search_figures.cost(sweeps))
    for sweep in sweeps:
        if sweep.features:
            entry = of.get(sweep.name)
            is_tuned = entry is None or entry.tuned["trial_id"] == sweep.features.get("trial_id")
            drawn = figures.features(sweep.features, "tuned" if is_tuned else "best of the search")
            yield Drawing("features", sweep.name, drawn)


def _best_first(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> list[SweepResults]:
    """The ranked sweeps, then the others."""
    places = {entry.sweep.name: place for place, entry in enumerate(ranked)}
    return sorted(sweeps, key=lambda sweep: places.get(sweep.name, len(places)))


def headline(ranked: Sequence[Ranked]) -> str:
    """Who won, or that nobody did, in one sentence."""
    if not ranked:
        return "No trial completed, so there is nothing to rank."
    first = ranked[0]
    score = f"{first.tuned['objective']} {fixed(first.score.mean)}"
    if not first.score.runs:
        return f"Highest on test: {first.sweep.name} ({score}), by a single run, so no place is certain."
    if first.score.low is not None:
        score += f", interval {interval(first.score, fixed)}"
    if len(ranked) == 1:
        return f"{first.sweep.name}: {score}."
    rivals = [entry.sweep.name for entry in ranked[1:] if not entry.behind.significant]
    if rivals:
        who = " and ".join(rivals) if len(rivals) < MANY else f"{len(rivals)} others"
        return f"Highest mean: {first.sweep.name} ({score}). Nothing tells it from {who}."
    second = ranked[1]
    ahead = f"{fixed(second.behind.mean)} [{fixed(second.behind.low)}, {fixed(second.behind.high)}]"
    return f"{first.sweep.name} is first ({score}), {ahead} ahead of {second.sweep.name}."


def about(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> dict[str, str]:
    """Scenario, what is forgotten, budget and confirmation, in words."""
    scenarios = [sweep.identity.get("scenario", {}) for sweep in sweeps]
    budgets = [sweep.identity.get("protocol", {}) for sweep in sweeps]
    return {
        "Scenario": _listed(f"{s.get('name')} ({s.get('dataset')}, {s.get('architecture')})" for s in scenarios),
        "To forget": _listed(map(_forgotten, scenarios)),
        "Budget": _listed(
            f"{b.get('trials')} trials a search, searcher {b.get('searcher')}, scheduler {b.get('scheduler')},"
            f" objective {b.get('objective')}"
            for b in budgets
        ),
        "Confirmation": _listed(
            f"{entry.score.runs} runs on {entry.score.originals} originals" if entry.score.runs else "none"
            for entry in ranked
        ),
    }


def _forgotten(scenario: Mapping[str, Any]) -> str:
    if scenario.get("forget_share"):
        return f"{100 * scenario['forget_share']:g} % of the samples"
    classes = scenario.get("forget", [])
    return f"class{'' if len(classes) == 1 else 'es'} {', '.join(map(str, classes))}"


def _listed(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values)) or "-"


def cautions(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> Iterator[str]:
    """What a reader has to know before the ranking."""
    yield from (f"{sweep.name}: {sweep.missing}." for sweep in sweeps if sweep.missing)
    single = [entry.sweep.name for entry in ranked if not entry.score.runs]
    if single:
        who = "Nothing was" if len(single) == len(ranked) else f"{', '.join(single)}: not"
        yield f"{who} confirmed: these are figures of single runs, the lucky maximum of a search, without an interval."
    few = [entry for entry in ranked if 0 < entry.score.originals < ENOUGH_ORIGINALS]
    if few:
        yield (
            f"Fewer than {ENOUGH_ORIGINALS} independently trained originals: an interval over so few says little, since"
            f" most of the variance is between originals; below {FEWEST} no difference is told from none."
        )

    fallback = [entry.sweep.name for entry in ranked if entry.published is not None and entry.published.get("fallback")]
    if fallback:
        who = "" if len(fallback) == len(ranked) else f" ({', '.join(fallback)})"
        yield f"“Published” is a fallback{who}: nothing is for this dataset, architecture, batch size and head."
    named = [
        f"{entry.sweep.name} {entry.published['published']}"
        for entry in ranked
        if entry.published is not None and entry.published.get("published")
    ]
    if named:
        yield f"“Published” is what the authors' code says, or else the paper's table: {', '.join(named)}."


def cost(sweep: SweepResults) -> Row:
    """What a search took: sums over its trials, and how they ended ("38 completed, 2 diverged")."""
    rows = search_rows(sweep)
    sums = {
        column: sum(number(row.get(column)) or 0 for row in rows) for column in ("unlearn_s", "evaluate_s", "images")
    }
    counts = Counter(row["status"] for row in rows)
    return {"name": sweep.name, **sums, "ended": ", ".join(f"{count} {status}" for status, count in counts.items())}


def facts(sweeps: Sequence[SweepResults]) -> dict[str, dict[str, list[str]]]:
    """All that is known of how the sweeps were run: field -> value -> names of the sweeps that have it."""
    found: dict[str, dict[str, list[str]]] = {}
    for sweep in sweeps:
        known = {**sweep.identity, "space": _space(sweep)}
        seeds = {
            f"{column} ({kind})": sorted({row[column] for row in rows if row.get(column) is not None})
            for kind, rows in (
                ("search", search_rows(sweep)),
                ("confirmation", [row for row in sweep.rows if row.get("source") == "confirmation"]),
            )
            for column in ("seed", "search_seed", "model_seed")
        }
        for field, value in _flat({**known, **{k: v for k, v in seeds.items() if v}, "environment": sweep.environment}):
            found.setdefault(field, {}).setdefault(value, []).append(sweep.name)
    return found


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """("protocol.trials", "40"), for every field."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _space(sweep: SweepResults) -> str:
    space = sweep.identity.get("space", {})
    return "; ".join(f"{name} {r['low']:g}..{r['high']:g} {r['scale']}" for name, r in space.items())


def _errors(sweep: SweepResults) -> str:
    """How the trials of a sweep ended of which none completed, and the first error."""
    error = next((row["error"] for row in sweep.rows if row.get("error")), None)
    return (cost(sweep)["ended"] or "no trial ended") + (f"; first error: {error}" if error else "")


def config(tuned: Row) -> dict[str, Any]:
    """What `raymu run METHOD --config` needs of a row."""
    return {field: tuned[field] for field in SETTING if field in tuned}


def fixed(value: Any) -> str:
    """A score with three digits, '-' where there is none."""
    return "-" if number(value) is None else f"{value:.3f}"


def interval(estimate: Estimate | None, shown: Callable[[Any], str]) -> str:
    """'[0.41, 0.45]', its ends as `shown` shows them; empty where there is a single run."""
    if estimate is None or number(estimate.low) is None or number(estimate.high) is None:
        return ""
    return f"[{shown(estimate.low)}, {shown(estimate.high)}]"


def seconds(value: Any) -> str:
    """Seconds with one digit, '-' where there are none."""
    return "-" if number(value) is None else f"{value:,.1f}"
