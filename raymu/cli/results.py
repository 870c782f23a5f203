"""`raymu results`, `raymu best` and `raymu report`: what sweeps found."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from raymu.cli.flags import JsonFlag, MethodFlag, StorageArgument
from raymu.cli.program import app, console
from raymu.errors import InputError
from raymu.results.garbage import uncollected
from raymu.values import STORAGE, as_cell

if TYPE_CHECKING:  # `raymu --help` does not need it
    from raymu.results.groups import Group

FOLLOW_S = 5.0  # between two looks at a storage


@app.command()
@uncollected()
def results(
    storage: StorageArgument = STORAGE,
    as_json: JsonFlag = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_ranking: Annotated[bool, typer.Option("--ranking", help="Rank the sweeps instead.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print the ranking as a LaTeX table.")] = False,
    equal: Annotated[
        str | None,
        typer.Option(
            "--at-equal",
            metavar="images|hours",
            help="Rank what each search had found when it had spent as much as the cheapest one did in all.",
        ),
    ] = None,
) -> None:
    """Print every trial's row, or the ranking; sweeps that do not compare one group after the other."""
    from raymu.results import cost, groups, ranking, reader, tables

    is_ranking = as_ranking or as_latex
    if is_ranking and (as_json or as_csv):
        raise InputError("--json and --csv print every trial: give one of these, or --ranking or --latex")
    if equal is not None and not is_ranking:
        raise InputError("--at-equal is for a ranking: give --ranking or --latex as well")
    if as_json:
        typer.echo(json.dumps(reader.read_all(storage), indent=2))
        return
    if as_csv:
        from pandas.api.types import is_numeric_dtype

        from raymu.results.outputs import load  # and what draws a report, which takes seconds

        table = load(storage)
        for name in table.columns:
            if not is_numeric_dtype(table[name]):
                table[name] = table[name].map(as_cell)
        typer.echo(table.to_csv(index=False), nl=False)
        return
    sweeps = reader.load(storage, () if is_ranking else tables.OF_TRIAL)
    found = groups.grouped(groups.sound(sweeps) if is_ranking else sweeps)
    for number, group in enumerate(found, start=1):
        heading = _heading(number, found)
        if not is_ranking:
            _print(heading)
            console.print(tables.trials([row for sweep in group.sweeps for row in sweep.rows]), highlight=False)
            continue
        chosen, note = (group.sweeps, "") if equal is None else cost.at_equal(group.sweeps, equal)
        if ranked := ranking.rank(chosen):
            if as_latex:
                typer.echo(tables.latex(ranked, comments=[heading, groups.said_of_part(group.sweeps)], note=note))
            else:
                _print(heading)
                console.print(tables.ranking(ranked, console.width))
                _print(groups.said_of_part(group.sweeps))
                _print(note)
        elif len(found) == 1:
            raise InputError(f"no completed trial in {storage}")
        else:
            _print(f"{heading}: no completed trial")


@app.command()
def status(
    storage: StorageArgument = STORAGE,
    as_json: JsonFlag = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until no sweep runs any more.")] = False,
) -> None:
    """Print how far sweeps are, from any machine that reads the storage."""
    from rich.live import Live

    from raymu.results import tables
    from raymu.results.status import status as look

    if as_json:
        if follow:
            raise InputError("--json prints once: leave --follow out")
        typer.echo(json.dumps([one._asdict() for one in look(storage)], indent=2))
        return
    found = look(storage)
    if not follow:
        console.print(tables.status(found))
        return
    with Live(tables.status(found), console=console, auto_refresh=False) as live:
        while any(one.state == "running" for one in found):
            time.sleep(FOLLOW_S)
            found = look(storage)
            live.update(tables.status(found), refresh=True)


def _heading(number: int, groups: "list[Group]") -> str:
    """Heading of a group: its sweeps, and why they do not compare with the first group's; empty for a single group."""
    if len(groups) == 1:
        return ""
    group = groups[number - 1]
    return f"group {number} of {len(groups)}: {group.names}{f'; apart, since {group.apart}' if group.apart else ''}"


def _print(line: str) -> None:
    if line:
        console.print(line, highlight=False, soft_wrap=True)


@app.command()
@uncollected()
def best(
    storage: StorageArgument = STORAGE,
    method: MethodFlag = None,
    rule: Annotated[
        str,
        typer.Option(
            help="tuned (highest objective, over the confirmation if there is one), pareto, cheapest (within a standard"
            " error of the best), or constrained:0.02 (least probe-forget that costs at most 2 points of retain)."
        ),
    ] = "tuned",
    as_json: JsonFlag = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print YAML, as `raymu run --config` reads it.")] = False,
) -> None:
    """Print the setting that is best on validation, of each group of sweeps that compare."""
    from raymu.results import groups, ranking, reader, selection, tables

    sweeps, wanted = reader.load(storage), name_of(method)
    found = groups.grouped([one for one in sweeps if any(row["method"] == wanted for row in one.rows)] or sweeps)
    if len(found) > 1 and (as_json or as_yaml):
        named = "; ".join(group.names for group in found)
        raise InputError(f"these groups of sweeps do not compare, so name a directory of one of them: {named}")
    empty = 0
    for number, group in enumerate(found, start=1):
        try:
            rows = selection.best(group.sweeps, method=wanted, rule=rule)
        except selection.NothingCompleted as error:
            empty += 1
            if empty == len(found):
                raise
            _print(f"{_heading(number, found)}: {error}")
            continue
        if as_json:
            typer.echo(json.dumps(rows if rule == "pareto" else rows[0], indent=2))
        elif as_yaml:
            typer.echo(yaml.safe_dump(dict(rows[0]), sort_keys=False), nl=False)
        else:
            _print(_heading(number, found))
            objective, runs, figures = rows[0]["objective"], dict[str, Any](), dict[str, Any]()
            for sweep in group.sweeps:
                runs |= selection.confirmed(selection.part(sweep))
            for row in rows:
                trial = row["trial_id"]
                console.print(f"{trial}: {row['method']} {tables.setting(row['config'])}", highlight=False)
                console.print(tables.on_validation(row), highlight=False)
                is_known = trial in runs or ranking.is_measured(row)
                figures[trial] = ranking.figures_of(row, objective, runs.get(trial, [])) if is_known else None
                if trial in runs:
                    _print(f"confirmed: {tables.runs_in_words(figures[trial].score)}")
            console.print(tables.comparison(figures, objective, console.width))
            if None in figures.values():
                _print("-: not read on test, as only what may become the tuned setting is; raymu run does it")


def name_of(method: str | None) -> str | None:
    """Name of a method, or of the one that a file of the user's defines."""
    from raymu.plugins import is_file

    if method is None or not is_file(method):
        return method
    from raymu.methods import get

    return get(method).name()


@app.command()
def report(
    storages: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STORAGE",
            help="A sweep's directory or URI, or one above it. Of several: what changed since the first.",
            show_default=STORAGE,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page, one file.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option(help="Write every figure into this directory, too.")] = None,
) -> None:
    """Write a page with the ranking, the figures and the best settings; or with storages side by side."""
    from raymu.results import outputs

    first, *others = storages or [STORAGE]
    page = outputs.report(first, out, png, beside=others)
    console.print(f"report: {page.path}", highlight=False, soft_wrap=True)
    for path in page.figures:
        console.print(f"figure: {path}", highlight=False, soft_wrap=True)
