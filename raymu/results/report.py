"""The report: one HTML page that works offline, and its figures as PNG."""

import base64
import gzip
import html
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from raymu.errors import InputError
from raymu.objective import score_name
from raymu.results import figures, groups, ranking, search_figures, style, tables, verdict
from raymu.results.changes import Changes, Storage, changes
from raymu.results.cost import hours
from raymu.results.identity import said_of_history
from raymu.results.ranking import Ranked, rank
from raymu.results.reader import SweepResults, search_rows
from raymu.results.tables import number
from raymu.row import SETTING, Row
from raymu.storage import Location, locate, mendable, write_bytes

PNG_WIDTH, TITLE_HEIGHT = 900, 24  # pixels, at scale 2
SECTIONS = {  # headings by section, in the order of the page
    "ranking": "Ranking",
    "tradeoff": "What forgetting costs",
    "illusion": "The illusion of unlearning",
    "comparison": "Published and tuned",
    "effort": "Search effort",
    "methods": "Method by method",
    "cost": "Cost",
    "protocol": "Protocol",
}
ALWAYS = ("ranking", "methods", "cost", "protocol")


class Chapter(NamedTuple):
    """Sweeps that compare, their ranking, best first, and why they do not compare with the storage's first chapter's;
    empty for that one. `storage` is its name, where the page is of several.
    """

    sweeps: Sequence[SweepResults]
    ranked: Sequence[Ranked]
    apart: str = ""
    storage: str = ""


class Drawing(NamedTuple):
    """A figure, its section of the page, whose it is if it is one sweep's, and what is to be seen."""

    section: str
    sweep: str | None
    figure: go.Figure
    title: str
    caption: str


def chapters(sweeps: Sequence[SweepResults], storage: str = "") -> list[Chapter]:
    """Sweeps of a storage by groups that compare; see `groups.sound` for what is left out.

    Args:
        storage: its name, where the page is of several.

    Raises:
        InputError: as `ranking.rank`.
    """
    found = groups.grouped(groups.sound(sweeps))
    return [Chapter(group.sweeps, rank(group.sweeps), group.apart, storage) for group in found]


def side_by_side(storages: Mapping[str, Sequence[SweepResults]]) -> tuple[list[Chapter], list[Changes]]:
    """Chapters of storages by name, one or more, and what changed from the first one to each of the others.

    Raises:
        InputError: as `ranking.rank` and `changes.changes`.
    """
    found = {name: chapters(sweeps, name if len(storages) > 1 else "") for name, sweeps in storages.items()}
    sides = [
        Storage(
            name, [one for chapter in of for one in chapter.sweeps], [one for chapter in of for one in chapter.ranked]
        )
        for name, of in found.items()
    ]
    return list(itertools.chain(*found.values())), [changes(sides[0], other) for other in sides[1:]]


def write(
    chapters: Sequence[Chapter],
    directory: Path | Location,
    name: str,
    changed: Sequence[Changes] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write the report as one HTML file that loads nothing else.

    Args:
        name: of the file.
        changed: between the storages that the chapters are of; it stands first.
        warnings: that hold for all of the page, such as what was left out.

    Raises:
        InputError: the file cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("raymu.results").joinpath("report.html.j2").read_text(encoding="utf-8"))
    numbers = itertools.count(1)
    contents = [_content(chapter, numbers) for chapter in chapters]
    contents[0]["warnings"][:0] = warnings
    page = template.render(
        title=_title(chapters, changed),
        changed=changed,
        chapters=contents,
        plotlyjs=Markup(base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()),
        metric=lambda column: lambda value: tables.metric(column, number(value)),
        seconds=seconds,
        setting=tables.setting,
        difference=tables.difference,
        interval=tables.interval,
        place=tables.place,
        fixed_points=ranking.FIXED,
        fixed=tables.fixed,
    )
    with mendable("write to", where := locate(directory)):
        write_bytes(where, name, page.encode())


def _title(chapters: Sequence[Chapter], changed: Sequence[Changes]) -> str:
    if changed:
        return f"{changed[0].there} and {', '.join(one.here for one in changed)}"
    return verdict.title(chapters[0].sweeps) if len(chapters) == 1 else f"{len(chapters)} rankings of sweeps"


def _content(chapter: Chapter, numbers: Iterator[int]) -> dict[str, Any]:
    """Content of a chapter, as the template shows it.

    Args:
        numbers: of the page's figures.
    """
    sweeps, ranked = _best_first(chapter.sweeps, chapter.ranked), chapter.ranked
    drawn = [(one, _plot(one, next(numbers))) for one in drawings(sweeps, ranked)]
    common = {one.section: plot for one, plot in drawn if one.sweep is None}
    kinds, cells = hours(sweeps)
    settings = {entry.sweep.name: yaml.safe_dump(config(entry.tuned), sort_keys=False) for entry in ranked}
    return {
        "sweeps": sweeps,
        "ranked": ranked,
        "apart": chapter.apart,
        "storage": chapter.storage,
        "title": verdict.title(sweeps),
        "headline": verdict.headline(ranked),
        "verdict": verdict.verdict(sweeps, ranked),
        "warnings": [
            *verdict.cautions(sweeps, ranked),
            *(f"{sweep.name}: no completed trial ({_errors(sweep)})." for sweep in sweeps if not _completed(sweep)),
        ],
        "contents": {section: heading for section, heading in SECTIONS.items() if section in {*common, *ALWAYS}},
        "caption": tables.caption(ranked) if ranked else "",
        "score": score_name(ranked[0].tuned["objective"]) if ranked else "score",
        "metrics": tables.shown_columns(entry.figures["tuned"] for entry in ranked),
        "colours": {name: style.colour for name, style in style.styles(sweeps).items()},
        "common": common,
        "methods": {
            sweep.name: {
                "config": settings.get(sweep.name),
                "plots": [plot for one, plot in drawn if one.sweep == sweep.name],
            }
            for sweep in sweeps
        },
        "hours": kinds,
        "costs": [cost(one) | {"hours": spent} for one, spent in zip(sweeps, cells, strict=True)],
        "facts": facts(sweeps),
        "seen": figures.search_references(sweeps).get("seen"),
    }


def _plot(drawing: Drawing, number: int) -> dict[str, Any]:
    return {
        "number": number,
        "title": drawing.title,
        "caption": drawing.caption,
        "height": drawing.figure.layout.height,
        "plot": Markup(drawing.figure.to_json().replace("<", r"\u003c")),  # nothing in it ends the script
    }


def write_png(chapters: Sequence[Chapter], directory: Path) -> list[Path]:
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
    drawn = (drawing for chapter in chapters for drawing in drawings(chapter.sweeps, chapter.ranked))
    for index, drawing in enumerate(drawn, start=1):
        name = "-".join(filter(None, (drawing.section, drawing.sweep)))
        paths.append(directory / f"{index:02d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:80]}.png")
        height = drawing.figure.layout.height + TITLE_HEIGHT
        tasks.append(
            {"fig": titled(drawing), "path": paths[-1], "opts": {"width": PNG_WIDTH, "height": height, "scale": 2}}
        )
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


def titled(drawing: Drawing) -> go.Figure:
    """Copy of a figure that says its title."""
    title = {"text": html.escape(drawing.title), "x": 0, "xref": "paper"}
    return go.Figure(drawing.figure).update_layout(title=title, margin_t=28 + TITLE_HEIGHT)


def drawings(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> Iterator[Drawing]:
    """Every figure, in the order of the page. What could only be empty is left out."""
    sweeps = _best_first(sweeps, ranked)
    rows = [row for sweep in sweeps for row in search_rows(sweep)]
    trials = f"{sum(row['status'] == 'completed' for row in rows):,} completed trials of {_searches(sweeps)}"
    looked_at = f"{trials}{_images(rows)}, as the search saw them"
    if len(rows) > figures.POINTS:
        looked_at += f"; {figures.POINTS:,} points are drawn at most, evenly chosen, and the front"
    if ranked:
        searched = figures.search_references(sweeps)
        drawn = figures.tradeoff(sweeps, ranked, searched)
        said = (
            f"{looked_at}. Up and left is better: the shaded field is as good as the retrained model, within the margin"
            " of retain accuracy that the default objective allows; nothing lies beyond the Pareto front."
        )
        yield Drawing("tradeoff", None, drawn, "Retain against probe-forget accuracy", said)
        drawn = figures.illusion(sweeps, ranked, searched)
        said = (
            f"{looked_at}. A trial far above the diagonal denies at the output what a probe still reads from its"
            " features; one that forgets comes down to the retrained model."
        )
        yield Drawing("illusion", None, drawn, "What the output denies and the features tell", said)
        drawn = figures.comparison(sweeps, ranked)
        said = (
            f"{verdict.measured_on(ranked)}. From the open circle (published setting) to the filled one (tuned) a"
            " method should stay right in retain, and move left, towards the retrained model, in the other two."
        )
        yield Drawing("comparison", None, drawn, "Published and tuned settings on test, %", said)
    found = [sweep for sweep in sweeps if any(row.get("source") == "search" for row in sweep.rows)]
    if found:
        drawn = search_figures.effort(found)
        said = (
            f"{len(rows):,} trials of {_searches(found)}. The score on validation that the best of n trials, drawn"
            " from the search's, can be expected to have (Dodge et al., EMNLP 2019): where lines cross, the order"
            " depends on the budget. The published setting is left out; an error or a divergence counts as 0, a trial"
            " that was stopped early at most as the worst completed one."
        )
        yield Drawing("effort", None, drawn, "Expected best score by the number of trials", said)
    of = {entry.sweep.name: entry for entry in ranked}
    for sweep in sweeps:
        entry = of.get(sweep.name)
        if sweep in found:
            count, most = len(search_rows(sweep)), search_figures.LINES // len(found)
            drawn = search_figures.hyperparameters(sweep, entry and entry.tuned, entry and entry.published, most)
            few = f"; the best {most // 2:,} and as many others, evenly chosen, are drawn" if count > most else ""
            said = (
                f"{count:,} trials{few}. Each line from top to bottom is one, the darker the better its score on"
                " validation, the lowest axis; bars: the share of the score's variance that a hyperparameter explains"
                " (functional ANOVA)."
            )
            yield Drawing("hyperparameters", sweep.name, drawn, "Hyperparameters", said)
        if sweep.features:
            is_tuned = entry is None or entry.tuned["trial_id"] == sweep.features.get("trial_id")
            drawn = figures.features(sweep.features, "tuned" if is_tuned else "best of the search")
            said = (
                f"t-SNE maps of the same {len(sweep.features['labels']):,} validation images. Where a forgotten class"
                " (coloured) keeps a cluster to itself, the features still know it."
            )
            yield Drawing("features", sweep.name, drawn, "Features before and after", said)


def _searches(sweeps: Sequence[SweepResults]) -> str:
    count = sum(len({row.get("search_seed") for row in search_rows(sweep)}) for sweep in sweeps)
    return f"{count} search{'es' if count > 1 else ''}"


def _images(rows: Iterable[Row]) -> str:
    """Numbers of validation's images in words, of the first row that says them, after a comma."""
    for row in rows:
        retain, forget = row.get("val_retain_images"), row.get("val_forget_images")
        if retain and forget:
            return f", {retain:,} retain and {forget:,} forget images of validation"
    return ""


def _best_first(sweeps: Sequence[SweepResults], ranked: Sequence[Ranked]) -> list[SweepResults]:
    """The ranked sweeps, then the others."""
    places = {entry.sweep.name: place for place, entry in enumerate(ranked)}
    return sorted(sweeps, key=lambda sweep: places.get(sweep.name, len(places)))


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
        if "history" in known:
            known["history"] = said_of_history(sweep.identity)
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
    space, chosen = sweep.identity.get("space", {}), sweep.identity.get("chosen")
    return "; ".join(
        f"{name} {r['low']:g}..{r['high']:g} {r['scale']}" + (" (chosen by each trial)" if name == chosen else "")
        for name, r in space.items()
    )


def _completed(sweep: SweepResults) -> bool:
    return any(row["status"] == "completed" for row in sweep.rows)


def _errors(sweep: SweepResults) -> str:
    """How the trials of a sweep ended of which none completed, and the first error."""
    error = next((row["error"] for row in sweep.rows if row.get("error")), None)
    return (cost(sweep)["ended"] or "no trial ended") + (f"; first error: {error}" if error else "")


def config(tuned: Row) -> dict[str, Any]:
    """What `raymu run METHOD --config` needs of a row."""
    return {field: tuned[field] for field in SETTING if field in tuned}


def seconds(value: Any) -> str:
    """Seconds with one digit, '-' where there are none."""
    return "-" if number(value) is None else f"{value:,.1f}"
