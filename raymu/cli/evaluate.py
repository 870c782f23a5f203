"""`raymu evaluate`: what a model still knows that anybody's code unlearned."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymu.cli.flags import (
    CPUS_HELP,
    ClassesFlag,
    DataFlag,
    ForgetFlag,
    JsonFlag,
    LayersFlag,
    MetricFlag,
    OwnFlag,
    ShareFlag,
    TrainShareFlag,
    WeightsFlag,
    load_own,
    with_forget,
    with_subset,
)
from raymu.cli.program import app, console
from raymu.errors import Diverged, InputError, Undefined
from raymu.values import SCENARIO

if TYPE_CHECKING:  # they import torch and Ray, which `raymu --help` does not need
    from raymu.engines import Options
    from raymu.objective import Objective
    from raymu.row import Row
    from raymu.scenario import Scenario


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Weights (.safetensors, .pth) of whatever code, or a directory of raymu run or export."),
    ],
    scenario: Annotated[
        str | None,
        typer.Option(help=f"What it unlearned; see: raymu scenarios (default: the directory's, or {SCENARIO})"),
    ] = None,
    forget: ForgetFlag = None,
    forget_share: ShareFlag = None,
    classes: ClassesFlag = None,
    train_share: TrainShareFlag = None,
    objective: Annotated[str | None, typer.Option(help="Of the score. (default: the directory's, or removal)")] = None,
    metric: MetricFlag = None,
    data_dir: DataFlag = None,
    weights_file: WeightsFlag = None,
    cpus_per_trial: Annotated[
        int | None, typer.Option(help=f"{CPUS_HELP} (default: the directory's threads, or 1)")
    ] = None,
    own: OwnFlag = None,
    layers: LayersFlag = False,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="NAME.csv",
            help="Write what is still known of each held-out forget image, and a picture of them: NAME.png.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a model that any code unlearned, beside original, retrained and dead network.

    References that are missing are trained.
    """
    from raymu import export, fixed_points, reference_models, unlearned
    from raymu import objective as objectives
    from raymu.engines import Options
    from raymu.evaluation import metrics
    from raymu.evaluation.layers import check_blocks
    from raymu.evaluation.samples import check_room
    from raymu.methods.retrain import Retrain
    from raymu.results import tables
    from raymu.results.ranking import figures_of
    from raymu.scenarios import get
    from raymu.study import from_a_row, prepared, scenario_of
    from raymu.trial import check
    from raymu.tuning.progress import busy

    load_own(own)
    _, row = export.made_by(checkpoint)
    whole = scenario_of(row) if scenario is None and row else get(scenario or SCENARIO)
    task = with_forget(with_subset(whole, classes, train_share), forget, forget_share)
    with from_a_row():
        scored_by = objectives.get(objective or row.get("objective", objectives.default(task.has_retrained).name))
        found = [metrics.get(one) for one in metric or row.get("metrics", [])]
    threads = cpus_per_trial or row.get("threads", 1)
    options = Options(threads=threads, cores=threads)
    check(task, Retrain, scored_by, found)
    if layers:
        check_blocks(task)
    if samples is not None:
        check_room(samples)
    model = export.load(checkpoint, task)
    task = prepared(task, data_dir, weights_file)
    try:
        with busy(console, "training the references" if reference_models.missing(task) else "measuring the model"):
            measured = unlearned.evaluate(model, task, found, options, objective=scored_by)
            profiles = unlearned.layers(model, task, options) if layers else None
    except (Diverged, Undefined) as error:
        raise InputError(f"{checkpoint} cannot be measured: {error}") from error
    rows = {
        which: fixed_points.as_trial(one, task, found)
        for which, one in {**fixed_points.scored(task, scored_by, found), unlearned.UNLEARNED: measured}.items()
    }
    memory = reference_models.memory(task, found)
    _compare(row, rows, task, scored_by, options)
    if as_json:
        shown: dict[str, Any] = {**rows, "memory": fixed_points.in_json(memory)}
        typer.echo(json.dumps(shown | ({"layers": profiles} if layers else {}), indent=2))
    else:
        console.print(f"{checkpoint} on {task.title}", highlight=False, soft_wrap=True)
        figures = {which: figures_of(one, scored_by.name) for which, one in rows.items()}
        console.print(tables.comparison(figures, scored_by.name, console.width))
        for line in (*fixed_points.memory_lines([memory]), fixed_points.nothing_to_forget([memory])):
            console.print(line, highlight=False, soft_wrap=True)
        if profiles is not None:
            console.print(tables.layers(profiles))
    if samples is not None:
        said = unlearned.samples(model, task, options, out=samples)
        known = sum(one["probe"] == one["label"] for one in said)
        ends = f", pictures: {samples.with_suffix('.png')}" if known else ""
        typer.echo(f"the probe still names {known} of {len(said)} forget images: {samples}{ends}", err=as_json)


def _compare(
    row: "Row", rows: "Mapping[str, Row]", task: "Scenario", objective: "Objective", options: "Options"
) -> None:
    """Warn where the row of the trial that made the model says otherwise."""
    from raymu import reference_models
    from raymu.study import differences_to
    from raymu.unlearned import UNLEARNED

    if not row:
        return
    if row["scenario_hash"] != task.hash:
        typer.echo(f"note: the model was made by a trial on another scenario, {row['scenario']}", err=True)
        return
    weights = {f"{which}_weights": rows[which]["weights"] for which in reference_models.of(task)}
    made_with = {
        "evaluation_code": reference_models.evaluation_code(),
        "objective": objective.name,
        "objective_code": objective.code(),
        "metrics": rows[UNLEARNED].get("metrics", {}),
        "threads": options.threads,
        **weights,
    }
    if others := differences_to(row, {**row, **rows[UNLEARNED], "seed": row["seed"], **made_with}):
        typer.echo(f"warning: these are not the figures of its row: {'; '.join(others)}", err=True)
