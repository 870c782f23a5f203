"""`raymu run` and `raymu export`: unlearn once, and keep the model."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymu.cli.flags import (
    CPUS_HELP,
    DEFAULT_STORAGE,
    HEAD_HELP,
    TRAIN_HELP,
    WORKERS_HELP,
    CheckpointingFlag,
    DataFlag,
    DeepSpeedFlag,
    ForgetFlag,
    MethodFlag,
    OffloadFlag,
    OwnFlag,
    ScenarioFlag,
    ShareFlag,
    StorageArgument,
    WeightsFlag,
    ZeroFlag,
    load_own,
    text_of,
    with_forget,
)
from raymu.cli.given import differences_to, options_in, read_row, scenario_in
from raymu.cli.program import app, console
from raymu.cli.results import choose
from raymu.errors import InputError
from raymu.values import NOT_NEGATIVE, checked

if TYPE_CHECKING:  # they import torch and Ray, which `raymu --help` does not need
    from raymu.engines.options import Options


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
    head: Annotated[str | None, typer.Option(help=f"{HEAD_HELP} (default: the row's, or linear)")] = None,
    train: Annotated[str | None, typer.Option(help=f"{TRAIN_HELP} (default: the row's, or all)")] = None,
    objective: Annotated[str | None, typer.Option(help="Of the score. (default: the row's, or hmean)")] = None,
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
    layers: Annotated[bool, typer.Option("--layers", help="Probe every block, not the last features alone.")] = False,
) -> None:
    """Unlearn once and keep the model. One worker does without Ray."""
    load_own(own)
    row = read_row(config)
    rest = {"offload": offload, "checkpointing": gradient_checkpointing, "deepspeed": text_of(deepspeed)}
    _unlearn(
        method,
        out,
        row,
        scenario=scenario,
        forget=forget,
        forget_share=forget_share,
        head=head,
        train=train,
        objective=objective,
        seed=seed,
        data_dir=data_dir,
        options=options_in(row, threads=cpus_per_trial, cores=cpus_per_trial, workers=workers, zero=zero, **rest),
        weights_file=weights_file,
        layers=layers,
    )


def _unlearn(
    method: str,
    out: Path,
    given: Mapping[str, Any],
    *,
    scenario: str | None = None,
    forget: str | None = None,
    forget_share: float | None = None,
    head: str | None = None,
    train: str | None = None,
    objective: str | None = None,
    seed: int | None = None,
    data_dir: str | None = None,
    weights_file: Path | None = None,
    options: "Options",
    layers: bool = False,
) -> None:
    """Unlearn as the row says that is given, and as the rest says, which wins over it."""
    from raymu import cache, engines, export, references, splits
    from raymu import objective as objectives
    from raymu.evaluation import metrics
    from raymu.evaluation.layers import check_blocks
    from raymu.methods import get as get_method
    from raymu.models import compatibility, pretrained
    from raymu.results import tables
    from raymu.results.ranking import figures_of
    from raymu.trial import check

    chosen = get_method(method)
    if given.get("method", chosen.name()) != chosen.name():
        raise InputError(f"the config is a setting of {given['method']}, not of {chosen.name()}")
    if "scenario_fields" in given and given.get("method_code") != engines.code_of(chosen):
        raise InputError(
            f"{chosen.name()} is not the method that made the row: its code was edited since, or the row's method"
            " is defined in another file. Name that file: raymu run path/to/own.py, or raymu export --method"
            " path/to/own.py"
        )
    task = with_forget(scenario_in(given, scenario), forget, forget_share)
    goal = objectives.get(objective or given.get("objective", "hmean"))
    further = [metrics.get(name) for name in given.get("metrics", {})]
    check(task, chosen, goal, further)
    kind: Any = {"head": head or given.get("head", "linear"), "train": train or given.get("train", "all")}
    chosen.check_options(**kind)
    config_values = given["config"] if given else chosen.published_config(task, kind["head"])
    instance = chosen.from_config(config_values, **kind)
    number = checked("seed", given.get("seed", 0) if seed is None else seed, int, NOT_NEGATIVE)
    engines.check(task, options)
    if layers:
        check_blocks(task)
    pretrained.prepare(task, weights_file)
    compatibility.check(task, chosen)
    task = splits.prepare(task, data_dir)
    splits.check_split(task)
    export.make_room(out)
    console.print(f"{chosen.name()} on {task.name}, forgetting {task.forgotten}", highlight=False, soft_wrap=True)
    for line in splits.notes(task):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    missing = references.missing(task)
    trial = (out.absolute(), task, instance, number, goal, further, options, layers)
    with console.status(f"training the references: {', '.join(missing)}" if missing else "unlearning"):
        if options.stage is None:
            export.keep(*trial)
        else:
            _in_workers(out, options, (export.keep, *trial))
    row = cache.load_json(out / export.ROW)
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
    console.print(tables.comparison({chosen.name(): figures_of(row, goal.name)}, goal.name))
    if layers:
        console.print(tables.layers(cache.load_json(out / export.LAYERS)))
    if others := differences_to(given, row):
        typer.echo(f"warning: these may not be the row's figures: {'; '.join(others)}", err=True)
    console.print(f"row and model: {out}", highlight=False, soft_wrap=True)


def _in_workers(out: Path, options: "Options", call: tuple[Any, ...]) -> None:
    from raymu import plugins
    from raymu.distributed.nodes import at_home
    from raymu.distributed.session import Resources, fit_to_cluster, session
    from raymu.distributed.worker_groups import side_by_side, take_along
    from raymu.storage import locate

    take_along(plugins.loaded())
    with session(None), at_home(locate(out)) as home:
        side_by_side(home, fit_to_cluster(Resources(options=options)), [call])


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Directory for model.safetensors, row.json and its card, README.md.")],
    storage: StorageArgument = DEFAULT_STORAGE,
    method: MethodFlag = None,
    data_dir: DataFlag = None,
    weights_file: WeightsFlag = None,
    own: OwnFlag = None,
) -> None:
    """Unlearn once more at the best setting, and keep the model with a card that says what it is."""
    from raymu.methods import names
    from raymu.plugins import is_file

    load_own(own)
    row = choose(storage, method, "tuned")[0]
    if row["method"] not in names() and not is_file(method or ""):
        raise InputError(f"{row['method']} is none of raymu's methods: name the file of yours, --method path/to/own.py")
    _unlearn(method or row["method"], out, row, data_dir=data_dir, weights_file=weights_file, options=options_in(row))
