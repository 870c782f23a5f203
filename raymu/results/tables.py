"""Tables for a terminal."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from raymu.objective import score_name
from raymu.results.comparison import Estimate, Lead
from raymu.results.cost import Spent, hours
from raymu.results.identity import forgotten, subset
from raymu.results.ranking import ACCURACIES, AREAS, FIXED, MEASURED, Figures, Ranked
from raymu.results.selection import score, sure
from raymu.results.status import Status
from raymu.row import Row

SCALES = {  # what the numbers of a score mean
    "removal": "removal: 0 = original and dead network, 1 = retrained",
    "hmean": "hmean: pays for damage, as that of dead (all kernels 0)",
}
MOST_TRIALS = 200  # that a table lists
NEEDED = 4  # columns of a table, however narrow a terminal is, such as rank, method, score and its interval
NO_RETRAINED = "no retrained model: nobody knows how much there is to forget"
NARROW = {
    "published": "pub-\nlished",
    "removal": "re-\nmoval",
    "95 %": "95 %",
}  # headings of a ranking, so that it fits
COLUMNS = {
    "retain": "retain_acc",
    "forget": "forget_acc",
    "attack": "attack_auc",
    "probe-forget": "probe_forget_acc",
    "NCC-forget": "ncc_forget_acc",
}
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}  # others take a backslash
OF_TRIAL = ("expected_score", *(f"val_{column}" for column in COLUMNS.values()))  # read for the table of trials


def comparison(models: Mapping[str, Figures | None], objective: str, width: int, search: Spent | None = None) -> Table:
    """Models (by name) side by side on test; None stands for a model that is not there.

    Args:
        width: characters of a line; where they do not do, the columns on the right are left out.
        search: what it took to find them.
    """
    score = score_name(objective)
    if is_alone := lacks_retrained(models):
        models = {name: figures for name, figures in models.items() if name != "retrained"}
    further = (NO_RETRAINED if is_alone else "", f"search: {search}" if search else "")
    table = _table(title("On test", models.values()), score, *further)
    table.add_column("model")
    confirmed = any(figures is not None and _ends(figures.score) for figures in models.values())
    columns = shown_columns(models.values())
    for heading in (score, *(["95 %"] if confirmed else []), *columns.values()):
        table.add_column(heading, justify="right")
    for name, figures in models.items():
        score, interval, *values = _cells(figures, columns)
        table.add_row(name, score, *([interval] if confirmed else []), *values)
    return _fitting(table, width)


def _fitting(table: Table, width: int) -> Table:
    """The table without the columns on the right for which lines of this width have no room."""
    endless = Console(width=10_000, markup=False, emoji=False)
    while len(table.columns) > NEEDED and Measurement.get(endless, endless.options, table).maximum > width:
        table.columns.pop()
    return table


def lacks_retrained(models: Mapping[str, Figures | None]) -> bool:
    """Whether the original is among models, and no retrained one."""
    return models.get("original") is not None and models.get("retrained") is None


def ranking(ranked: Sequence[Ranked], width: int) -> Table:
    """Sweeps, best first; above them the references of the first.

    Args:
        width: characters of a line; where they do not do, the columns on the right are left out.
    """
    further = NO_RETRAINED if lacks_retrained(ranked[0].figures) else ""
    table = _table(title("Tuned, on test", _tuned(ranked)), _score_of(ranked), further, padding=(0, 1, 0, 0))
    of_search, cells = hours([one.sweep for one in ranked])
    for heading in [*ranking_headings(ranked), *of_search]:
        justify: Any = "left" if heading == "method" else "right"
        shown = NARROW.get(heading) or heading.replace("-", "-\n").replace(" ", "\n")
        table.add_column(shown, justify=justify, no_wrap=True)
    for row, spent in zip(ranking_rows(ranked), [*([] for _ in FIXED), *cells], strict=True):
        table.add_row(*row, *spent)
    return _fitting(table, width)


def _score_of(ranked: Sequence[Ranked]) -> str:
    return score_name(ranked[0].tuned["objective"])


def _table(title: str, score: str, *further: str, **more: Any) -> Table:
    caption = "\n".join(filter(None, (SCALES.get(score), *further)))
    justify: Any = {"title_justify": "left", "caption_justify": "left"}
    return Table(title=title, caption=caption, box=None, pad_edge=False, **justify, **more)


def title(what: str, models: Iterable[Figures | None]) -> str:
    """What a table says, with the numbers of images where they are known."""
    images = {one.images for one in models if one is not None and one.images}
    counted = ", ".join(f"{retain:,} retain and {forget:,} forget images" for retain, forget in sorted(images))
    return f"{what}{f', {counted}' if counted else ''} (accuracies in %)"


def latex(ranked: Sequence[Ranked], comments: Iterable[str] = (), note: str = "") -> str:
    """The ranking as a LaTeX table (package booktabs) with a caption; the best score is bold.

    Args:
        comments: lines that stand above it; an empty one does not.
        note: last sentences of the caption.
    """
    headings = ranking_headings(ranked)
    lines = [[_escaped(cell) for cell in row] for row in [headings, *ranking_rows(ranked)]]
    for line in lines:
        line[:] = [re.sub(r"(?<=\d)-(?=[\d.])", "--", cell) if at != 1 else cell for at, cell in enumerate(line)]
    best = lines[1 + len(FIXED)]  # below headings and references
    best[2] = rf"\textbf{{{best[2]}}}"
    heading, *models = (" & ".join(line) + r" \\" for line in lines)
    columns = "".join("l" if heading == "method" else "r" for heading in headings)
    return "\n".join(
        [
            *(f"% {comment}" for comment in comments if comment),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(' '.join(filter(None, (caption(ranked), note))))}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            heading,
            r"\midrule",
            *models[: len(FIXED)],
            r"\midrule",
            *models[len(FIXED) :],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def caption(ranked: Sequence[Ranked]) -> str:
    """What a ranking is of, in a sentence."""
    identity, score = ranked[0].sweep.identity, ranked[0].score
    scenario = identity["scenario"]
    what = f"{scenario['name']}{subset(identity)}, forgetting {forgotten(identity)}: tuned settings on test"
    runs = f"means over {runs_in_words(score)}" if score.runs else "single runs"
    return f"{title(what, _tuned(ranked))}, {runs}{', with 95 % intervals' if score.low is not None else ''}."


def runs_in_words(score: Estimate) -> str:
    """'10 runs on 5 originals'."""
    originals = "1 original" if score.originals == 1 else f"{score.originals} originals"
    return f"{'1 run' if score.runs == 1 else f'{score.runs} runs'} on {originals}"


def _tuned(ranked: Sequence[Ranked]) -> list[Figures | None]:
    return [one.figures["tuned"] for one in ranked]


def ranking_headings(ranked: Sequence[Ranked]) -> list[str]:
    """Of what `ranking_rows` gives."""
    score = _score_of(ranked)
    return ["rank", "method", score, "95 %", "published", *_ranking_columns(ranked).values()]


def ranking_rows(ranked: Sequence[Ranked]) -> list[list[str]]:
    """The cells of a ranking: rank, method, the objective with its interval, the published setting's, and metrics."""
    columns = _ranking_columns(ranked)
    models = [("", which, ranked[0].figures[which], "") for which in FIXED]
    for one in ranked:
        published = one.figures["published"]
        shown = "-" if published is None else f"{published.score.mean:.3f}"
        models.append((place(one), one.sweep.name.rpartition("/")[2], one.figures["tuned"], shown))
    rows = []
    for rank, name, figures, published_score in models:
        score, interval, *values = _cells(figures, columns)
        rows.append([rank, name, score, interval, published_score, *values])
    return rows


def _ranking_columns(ranked: Sequence[Ranked]) -> dict[str, str]:
    """As `shown_columns`, without NCC's, so that 80 characters do."""
    return {column: heading for column, heading in shown_columns(_tuned(ranked)).items() if heading != "NCC-forget"}


def place(entry: Ranked) -> str:
    """'2', or '2 (1-4)' where it may be any of these."""
    return str(entry.rank) if entry.first == entry.last else f"{entry.rank} ({entry.first}-{entry.last})"


def shown_columns(figures: Iterable[Figures | None]) -> dict[str, str]:
    """Columns of a comparison with their headings: COLUMNS on test, and the user's metrics."""
    own = [column for one in figures if one is not None for column in one.metrics if column not in MEASURED]
    return {f"test_{metric}": heading for heading, metric in COLUMNS.items()} | {
        column: column.removeprefix("test_") for column in own
    }


def metric(column: str, value: float | None) -> str:
    """A metric's value: accuracies in percent; an area is near 1, where two digits more tell models apart."""
    if value is None or column in ACCURACIES:
        return percent(value)
    return f"{value:.4f}" if column in AREAS else f"{value:.3g}"


def _cells(figures: Figures | None, columns: Collection[str]) -> list[str]:
    if figures is None:
        return ["-"] * (len(columns) + 2)
    means = {column: one.mean for column, one in figures.metrics.items()}
    return [
        f"{figures.score.mean:.3f}",
        _ends(figures.score),
        *(metric(column, means.get(column)) for column in columns),
    ]


def _ends(score: Estimate) -> str:
    """'.41-.45', the ends of an interval; empty where there is none, or two digits show no width."""
    ends = dict.fromkeys(f"{end:.2f}".lstrip("0") for end in (score.low, score.high) if end is not None)
    return "-".join(ends) if len(ends) > 1 else ""


def _escaped(text: str) -> str:
    """Text as LaTeX takes it."""
    return re.sub(r"[&%$#_{}\\~^]", lambda found: LATEX.get(found[0], "\\" + found[0]), text)


def layers(profiles: Mapping[str, Sequence[Row]]) -> Table:
    """What the probe reads from every block on test, for models by name."""
    table = Table(title="Probe on test (accuracies in %)", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer")
    for name in profiles:
        table.add_column(f"{name}\nretain", justify="right")
        table.add_column("\nforget", justify="right")
    for rows in zip(*profiles.values(), strict=True):
        accuracies = (row[f"test_probe_{part}_acc"] for row in rows for part in ("retain", "forget"))
        table.add_row(rows[0]["layer"], *map(percent, accuracies))
    return table


def trials(rows: Sequence[Row]) -> Table:
    """One line a trial, best score first, of the best MOST_TRIALS, on validation as the search saw them, with the score
    that is expected of another run.
    """
    title = "On validation (accuracies in %)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    if len(rows) > MOST_TRIALS:
        table.caption = f"the best {MOST_TRIALS} of {len(rows):,}; --csv and --json print all"
        table.caption_justify = "left"
    table.add_column("trial", overflow="fold")
    table.add_column("status")
    for heading in ("score", "ex-pected", *COLUMNS):
        table.add_column(heading.replace("-", "-\n"), justify="right")
    table.add_column("setting", min_width=12)
    best = sorted(rows, key=lambda row: -1.0 if row["score"] is None else row["score"], reverse=True)
    for row in best[:MOST_TRIALS]:
        table.add_row(
            row["trial_id"],
            row["status"],
            fixed(row["score"]),
            fixed(row.get("expected_score")),
            *(metric(f"test_{name}", row.get(f"val_{name}")) for name in COLUMNS.values()),
            setting(row["config"]),
        )
    return table


def status(sweeps: Sequence[Status]) -> Table:
    """How far sweeps are, and below each of them what its processes do."""
    table = Table("sweep", "state", "trials", "confirmed", "best", "seen", box=None, pad_edge=False)
    for one in sweeps:
        state = f"{one.state} on {one.host}" if one.host and one.state != "ended" else one.state
        seen = "" if one.silent_s is None else f"{clock(one.silent_s)} ago"
        best = "-" if one.best is None else f"{one.best:.3f}"
        table.add_row(one.name, state, f"{one.searched}/{one.trials}", str(one.confirmed), best, seen)
        for process in one.running if one.state == "running" else []:
            epochs = f"epoch {process['epoch']} of {process['epochs']}" if process["epochs"] else "begins"
            table.add_row(f"  {process['what']}", f"{epochs}, {clock(process['seconds'])}")
    return table


def clock(seconds: float) -> str:
    """Time as 1:05, or 2:01:05 from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def setting(config: Mapping[str, float | str | None]) -> str:
    """'lr=0.0123 epochs=3'; a hyperparameter that is None is left out."""
    shown = {
        name: f"{value:.3g}" if isinstance(value, float) else value
        for name, value in config.items()
        if value is not None
    }
    return " ".join(f"{name}={value}" for name, value in shown.items())


def on_validation(row: Row) -> str:
    """'removal 0.812 on validation, 0.564 expected of another run'; the latter where less is known to be expected."""
    more = f", {fixed(sure(row))} expected of another run" if sure(row) < score(row) else ""
    return f"{score_name(row['objective'])} {fixed(row['score'])} on validation{more}"


def percent(value: float | None) -> str:
    """A fraction as a percentage with one digit, '-' where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def fixed(value: Any) -> str:
    """A score with three digits, '-' where there is none."""
    return "-" if number(value) is None else f"{value:.3f}"


def difference(value: Any) -> str:
    """A difference of scores with its sign and three digits, '-' where there is none."""
    return "-" if number(value) is None else f"{value:+.3f}"


def interval(estimate: Estimate | Lead | None, shown: Callable[[Any], str]) -> str:
    """'[0.41, 0.45]', its ends as `shown` shows them; empty where there is a single run."""
    if estimate is None or number(estimate.low) is None or number(estimate.high) is None:
        return ""
    return f"[{shown(estimate.low)}, {shown(estimate.high)}]"
