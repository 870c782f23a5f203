"""`raymu run` and `raymu export`: unlearn once, and keep the model."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymu.cli.flags import (
    CPUS_HELP,
    HEAD_HELP,
    OBJECTIVE_HELP,
    TRAIN_HELP,
    WORKERS_HELP,
    CheckpointingFlag,
    ClassesFlag,
    DataFlag,
    DeepSpeedFlag,
    ForgetFlag,
    LayersFlag,
    MethodFlag,
    OffloadFlag,
    OwnFlag,
    ScenarioFlag,
    ShareFlag,
    StorageArgument,
    TrainShareFlag,
    WeightsFlag,
    ZeroFlag,
    load_own,
    text_of,
    with_forget,
    with_subset,
)
from raymu.cli.given import read_row
from raymu.cli.program import app, console
from raymu.cli.results import name_of
from raymu.errors import InputError
from raymu.values import STORAGE

if TYPE_CHECKING:  # they import torch and Ray, which `raymu --help` does not need
    from raymu.study import Trial


@app.command()
def run(
    method: Annotated[str, typer.Argument(help="See: raymu methods. Or the file of your own: path/to/own.py")],
    out: Annotated[Path, typer.Option(help="Directory for row.json, model.safetensors and layers.json.")],
    config: Annotated[
        Path | None,
        typer.Option(help="A row, as `raymu best --yaml` prints it. (default: the published setting)"),
    ] = None,
    scenario: ScenarioFlag = None,
    forget: ForgetFlag = None,
    forget_share: ShareFlag = None,
    classes: ClassesFlag = None,
    train_share: TrainShareFlag = None,
    head: Annotated[str | None, typer.Option(help=f"{HEAD_HELP} (default: the row's, or linear)")] = None,
    train: Annotated[str | None, typer.Option(help=f"{TRAIN_HELP} (default: the row's, or all)")] = None,
    objective: Annotated[str | None, typer.Option(help=f"{OBJECTIVE_HELP} Of a row: the row's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws everything random. (default: the row's, or 0)")] = None,
    data_dir: DataFlag = None,
    weights_file: WeightsFlag = None,
    cpus_per_trial: Annotated[int | None, typer.Option(help=f"{CPUS_HELP} (default: the row's threads, or 1)")] = None,
    workers: Annotated[int | None, typer.Option(help=f"{WORKERS_HELP} (default: the row's, or 1)")] = None,
    zero: ZeroFlag = None,
    offload: OffloadFlag = False,
    gradient_checkpointing: CheckpointingFlag = False,
    deepspeed: DeepSpeedFlag = None,
    own: OwnFlag = None,
    layers: LayersFlag = False,
) -> None:
    """Unlearn once and keep the model. One worker does without Ray."""
    from raymu import objective as objectives
    from raymu.methods import get as get_method
    from raymu.scenarios import get as get_scenario
    from raymu.study import Trial, options_of, scenario_of

    load_own(own)
    chosen = get_method(method)  # first: its file may define what the row names
    row = read_row(config)
    options = options_of(
        row,
        threads=cpus_per_trial,
        cores=cpus_per_trial,
        workers=workers,
        zero=zero,
        offload=offload,
        checkpointing=gradient_checkpointing,
        deepspeed=text_of(deepspeed),
    )
    whole = scenario_of(row) if scenario is None else get_scenario(scenario)
    trial = Trial.of(
        row,
        method=chosen,
        scenario=with_forget(with_subset(whole, classes, train_share), forget, forget_share),
        head=head,
        train=train,
        objective=None if objective is None else objectives.get(objective),
        seed=seed,
        options=options,
        layers=layers,
    )
    _unlearn(trial, row, out, data_dir, weights_file)


def _unlearn(trial: "Trial", given: Mapping[str, Any], out: Path, data_dir: str | None, weights: Path | None) -> None:
    """Run a trial, keep its model and print how it went; beside what a given row says of it."""
    from raymu import cache, export, reference_models, splits
    from raymu.results import tables
    from raymu.results.ranking import figures_of
    from raymu.study import differences_to
    from raymu.tuning.progress import busy

    trial = trial.prepared(data_dir, weights)
    name, task, objective = trial.method.name(), trial.scenario, trial.objective.name
    console.print(f"{name} on {task.title}", highlight=False, soft_wrap=True)
    for line in splits.notes(task):
        console.print(line, highlight=False, soft_wrap=True)
    missing = reference_models.missing(task)
    with busy(console, f"training the references: {', '.join(missing)}" if missing else "unlearning"):
        row = trial.keep(out)
    if row["status"] == "error":
        kind, _, reason = row["error"].partition(": ")
        if kind == InputError.__name__:
            raise InputError(reason)
        typer.echo(row["traceback"], err=True)
        sys.exit(1)
    console.print(f"{row['status']}: {tables.setting(row['config'])}", highlight=False)
    if row["status"] != "completed":
        typer.echo(f"{row['error']}; there is no model, the row is in {out}", err=True)
        sys.exit(1)
    console.print(tables.comparison({name: figures_of(row, objective)}, objective, console.width))
    if trial.layers:
        console.print(tables.layers(cache.load_json(out / export.LAYERS)))
    if others := differences_to(given, row):
        typer.echo(f"warning: these may not be the row's figures: {'; '.join(others)}", err=True)
    console.print(f"row and model: {out}", highlight=False, soft_wrap=True)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Directory for model.safetensors, row.json and its card, README.md.")],
    storage: StorageArgument = STORAGE,
    method: MethodFlag = None,
    data_dir: DataFlag = None,
    weights_file: WeightsFlag = None,
    own: OwnFlag = None,
) -> None:
    """Unlearn once more at the best setting, and keep the model with a card that says what it is."""
    from raymu.methods import get as get_method
    from raymu.methods import names
    from raymu.plugins import is_file
    from raymu.results.selection import best
    from raymu.study import Trial

    load_own(own)
    row = best(storage, method=name_of(method))[0]
    if row["method"] not in names() and not is_file(method or ""):
        raise InputError(f"{row['method']} is none of raymu's methods: name the file of yours, --method path/to/own.py")
    _unlearn(Trial.of(row, method=get_method(method or row["method"])), row, out, data_dir, weights_file)
