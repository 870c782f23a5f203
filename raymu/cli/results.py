"""`raymu results`, `raymu best` and `raymu report`: what sweeps found."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from raymu.cli.flags import DEFAULT_STORAGE, JsonFlag, MethodFlag, StorageArgument
from raymu.cli.program import app, console
from raymu.errors import InputError
from raymu.values import unknown


@app.command()
def results(
    storage: StorageArgument = DEFAULT_STORAGE,
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
    storage: StorageArgument = DEFAULT_STORAGE,
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
    from raymu.results import ranking, tables

    rows = choose(storage, method, rule)
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


def choose(storage: str, method: str | None, rule: str) -> list[dict[str, Any]]:
    """Rows that a rule chooses: from each sweep in the storage, and then from these."""
    from raymu.methods import get as get_method
    from raymu.plugins import is_file
    from raymu.results import reader, selection

    kind, _, argument = rule.partition(":")
    if kind not in (rules := ["tuned", "pareto", "cheapest", "constrained"]):
        raise InputError(unknown("rule", kind, rules))
    if argument and kind != "constrained":
        raise InputError(f"--rule {kind} takes no {argument!r}")
    sweeps = reader.load(storage)
    if method is not None:
        if is_file(method):
            method = get_method(method).name()
        known = sorted({row["method"] for sweep in sweeps for row in sweep.rows})
        if method not in known:
            raise InputError(unknown("method in this storage", method, known))
        sweeps = [sweep for sweep in sweeps if any(row["method"] == method for row in sweep.rows)]
    rows = [row for sweep in sweeps for row in sweep.rows]
    if kind == "pareto":
        return selection.ParetoFront().choose(rows)
    if kind == "constrained":
        try:
            loss = float(argument)
        except ValueError as error:
            raise InputError(f"--rule constrained takes a share, as in constrained:0.02, not {argument!r}") from error
        scenario = selection.candidates(rows)[0]["scenario_hash"]
        original = next(
            (sweep.references[scenario]["original"] for sweep in sweeps if scenario in sweep.references), None
        )
        if original is None:
            raise InputError(f"{storage} does not say what the original reached")
        return selection.Constrained(original, loss).choose(rows)
    chosen, reasons = [], []
    for sweep in sweeps:
        try:
            chosen += [selection.tuned(sweep.rows)] if kind == "tuned" else selection.Cheapest().choose(sweep.rows)
        except InputError as error:
            reasons.append(error)
    if not chosen:
        raise reasons[0]
    return selection.Best().choose(chosen)


@app.command()
def report(
    storage: StorageArgument = DEFAULT_STORAGE,
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
