"""`raymu references`: what bounds unlearning on a scenario, and what there is to forget."""

import dataclasses
import json
from typing import Annotated

import typer

from raymu.cli.flags import (
    CPUS_HELP,
    OBJECTIVE_HELP,
    SCENARIO_HELP,
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
    scenario: Annotated[str, typer.Option(help=SCENARIO_HELP)] = SCENARIO,
    forget: ForgetFlag = None,
    forget_share: ShareFlag = None,
    classes: ClassesFlag = None,
    train_share: TrainShareFlag = None,
    originals: Annotated[int, typer.Option(help="Number of originals, trained independently of each other.")] = 1,
    objective: Annotated[str | None, typer.Option(help=OBJECTIVE_HELP)] = None,
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
    from raymu import fixed_points, reference_models, study
    from raymu import objective as objectives
    from raymu.engines import Options
    from raymu.evaluation import metrics
    from raymu.results import tables
    from raymu.results.ranking import figures_of
    from raymu.scenarios import get
    from raymu.tuning.progress import busy

    load_own(own)
    checked("--originals", originals, int, Bounds(1))
    task = with_forget(with_subset(get(scenario), classes, train_share), forget, forget_share)
    found = [metrics.get(one) for one in metric or []]
    scored_by = objectives.get(objective) if objective else objectives.default(task.has_retrained)
    options = Options(threads=cpus_per_trial, cores=cpus_per_trial)
    tasks = [dataclasses.replace(task, model_seed=task.model_seed + number) for number in range(originals)]
    with busy(console, "training and measuring the references"):
        rows = [study.references(tasks[0], scored_by, found, options, data_dir, weights_file)]
        rows += [study.references(one, scored_by, found, options) for one in tasks[1:]]  # on the same data
    if as_json:
        typer.echo(json.dumps(rows if originals > 1 else rows[0], indent=2))
        return
    memories = [reference_models.memory(one, found) for one in tasks]
    console.print(task.title, highlight=False, soft_wrap=True)
    models = {which: [of[which] for of in rows] for which in rows[0] if which != "memory"}
    figures = {which: figures_of(of[0], scored_by.name, of if originals > 1 else ()) for which, of in models.items()}
    console.print(tables.comparison(figures, scored_by.name, console.width))
    for line in (*fixed_points.memory_lines(memories), fixed_points.nothing_to_forget(memories)):
        console.print(line, highlight=False, soft_wrap=True)
