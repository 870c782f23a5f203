"""`raymu results`, `raymu best` and `raymu report`: what sweeps found."""

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from raymu.cli.flags import JsonFlag, MethodFlag, StorageArgument
from raymu.cli.program import app, console
from raymu.errors import InputError
from raymu.values import STORAGE


@app.command()
def results(
    storage: StorageArgument = STORAGE,
    as_json: JsonFlag = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_ranking: Annotated[bool, typer.Option("--ranking", help="Rank the sweeps instead.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print the ranking as a LaTeX table.")] = False,
) -> None:
    """Print every trial's row, or the ranking."""
    from raymu.results import ranking, reader, tables

    if as_ranking or as_latex:
        ranked = ranking.rank(reader.load(storage))
        if not ranked:
            raise InputError(f"no completed trial in {storage}")
        if as_latex:
            typer.echo(tables.latex(ranked))
        else:
            console.print(tables.ranking(ranked))
    elif as_json:
        typer.echo(json.dumps(reader.read_all(storage), indent=2))
    elif as_csv:
        typer.echo(reader.table(storage).to_csv(index=False), nl=False)
    else:
        console.print(tables.trials(reader.read_all(storage)), highlight=False)


@app.command()
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
    """Print the setting that is best on validation."""
    from raymu.results import ranking, selection, tables

    rows = selection.best(storage, method=name_of(method), rule=rule)
    if as_json:
        typer.echo(json.dumps(rows if rule == "pareto" else rows[0], indent=2))
    elif as_yaml:
        typer.echo(yaml.safe_dump(rows[0], sort_keys=False), nl=False)
    else:
        for row in rows:
            console.print(f"{row['trial_id']}: {row['method']} {tables.setting(row['config'])}", highlight=False)
            console.print(f"{row['objective']} on validation: {row['score']:.3f}", highlight=False)
        objective = rows[0]["objective"]
        figures = {row["trial_id"]: ranking.figures_of(row, objective) for row in rows}
        console.print(tables.comparison(figures, objective))


def name_of(method: str | None) -> str | None:
    """Name of a method, or of the one that a file of the user's defines."""
    from raymu.plugins import is_file

    if method is None or not is_file(method):
        return method
    from raymu.methods import get

    return get(method).name()


@app.command()
def report(
    storage: StorageArgument = STORAGE,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page, one file.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option(help="Write every figure into this directory, too.")] = None,
) -> None:
    """Write a page with the ranking, the figures and the best settings."""
    from raymu.results import ranking, reader
    from raymu.results import report as page

    sweeps = reader.load(storage)
    ranked = ranking.rank(sweeps)
    page.write(sweeps, ranked, out)
    console.print(f"report: {out}", highlight=False, soft_wrap=True)
    if png is not None:
        for path in page.write_png(sweeps, ranked, png):
            console.print(f"figure: {path}", highlight=False, soft_wrap=True)
