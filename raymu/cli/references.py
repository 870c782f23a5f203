"""`raymu references`: what bounds unlearning on a scenario, and what there is to forget."""

import dataclasses
import json
from typing import Annotated

import typer

from raymu.cli.flags import (
    CPUS_HELP,
    ClassesFlag,
    DataFlag,
    ForgetFlag,
    JsonFlag,
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
from raymu.values import SCENARIO, Bounds, checked


@app.command()
def references(
    scenario: Annotated[str, typer.Option(help="What to unlearn; see: raymu scenarios")] = SCENARIO,
    forget: ForgetFlag = None,
    forget_share: ShareFlag = None,
    classes: ClassesFlag = None,
    train_share: TrainShareFlag = None,
    originals: Annotated[int, typer.Option(help="Number of originals, trained independently of each other.")] = 1,
    objective: Annotated[str, typer.Option(help="Of the score.")] = "removal",
    metric: MetricFlag = None,
    data_dir: DataFlag = None,
    weights_file: WeightsFlag = None,
    cpus_per_trial: Annotated[int, typer.Option(help=CPUS_HELP)] = 1,
    own: OwnFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Train or load the references of a scenario, and say what there is to forget.

    Beside original and retrained model stand a dead and an untrained network, which no objective should pay for.
    """
    from raymu import fixed_points, splits
    from raymu import objective as objectives
    from raymu import references as trained
    from raymu.engines import Options
    from raymu.evaluation import metrics
    from raymu.methods.retrain import Retrain
    from raymu.models import compatibility, pretrained
    from raymu.results import tables
    from raymu.results.ranking import figures_of
    from raymu.scenario import get
    from raymu.trial import check

    load_own(own)
    checked("--originals", originals, int, Bounds(1))
    task = with_forget(with_subset(get(scenario), classes, train_share), forget, forget_share)
    scored_by, further = objectives.get(objective), metric or []
    found = [metrics.get(one) for one in further]
    options = Options(threads=cpus_per_trial, cores=cpus_per_trial)
    check(task, Retrain, scored_by, found)
    pretrained.prepare(task, weights_file)
    compatibility.check(task)
    task = splits.prepare(task, data_dir)
    splits.check_split(task)
    tasks = [dataclasses.replace(task, model_seed=task.model_seed + number) for number in range(originals)]
    with console.status("training and measuring the references"):
        rows = [fixed_points.measured(one, scored_by, found, options) for one in tasks]
        memories = [trained.memory(one, found) for one in tasks]
    if as_json:
        shown = [{**of, "memory": fixed_points.in_json(each)} for of, each in zip(rows, memories, strict=True)]
        typer.echo(json.dumps(shown if originals > 1 else shown[0], indent=2))
        return
    console.print(f"{task.title}", highlight=False, soft_wrap=True)
    models = {which: [of[which] for of in rows] for which in rows[0]}
    figures = {which: figures_of(of[0], objective, of if originals > 1 else ()) for which, of in models.items()}
    console.print(tables.comparison(figures, scored_by.name))
    for line in (*fixed_points.memory_lines(memories), fixed_points.nothing_to_forget(memories)):
        console.print(line, highlight=False, soft_wrap=True)
