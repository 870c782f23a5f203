"""The command line: `raymu ...`, and what the scripts in `sweeps/` call."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core
import yaml
from rich.console import Console
from rich.table import Table

from raymu.errors import InputError, StorageError
from raymu.protocol import Confirmation, Protocol
from raymu.scenario import SCENARIOS, Scenario
from raymu.scenario import get as get_scenario
from raymu.values import NOT_NEGATIVE, checked, unknown

if TYPE_CHECKING:  # they import torch and Ray, which `raymu --help` does not need
    from raymu.engines.options import Options
    from raymu.method import Method, Range
    from raymu.storage import Location
    from raymu.tuning.sweep import Sweep

DEFAULT_SCENARIO = "digits"
DEFAULT_STORAGE = "raymu-results"
MOST_NAMED = 5  # of what differs between two rows

console = Console(stderr=False)

app = typer.Typer(
    help="Tune machine-unlearning methods fairly. Start with: raymu sweep salun",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

StorageArgument = Annotated[str, typer.Argument(help="A sweep's directory or URI, or one above it.")]
OF_SCENARIO = ("forget", "forget_share", "model_seed")  # what a row also says outside its scenario_fields
OF_RUN = ("method", "head", "train", "config", "objective", "seed", "threads", "workers", "engine")
AS_IN_JSON = {  # what YAML reads as no text; to YAML 1.1 010 is 8, 1:30 is 90 and 1e-05 a text
    "null": "null|~|",
    "bool": "true|false",
    "int": "-?(0|[1-9][0-9]*)",
    "float": "-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][-+]?[0-9]+)?",
}
BY_HAND = ("scenario", *OF_SCENARIO, *OF_RUN)  # what a file for --config may say that is no row
MethodFlag = Annotated[
    str | None,
    typer.Option(help="Only among the trials of this method: its name, or a file of your own that defines it."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ScenarioFlag = Annotated[str | None, typer.Option("--scenario", help="What to unlearn; see: raymu scenarios")]
ForgetFlag = Annotated[str | None, typer.Option(help="Classes to forget, by number: 3 or 0,1,2")]
ShareFlag = Annotated[
    float | None, typer.Option("--forget-share", help="Forget no class, but this share of the training samples: 0.01")
]
HEAD_HELP = "The model's own linear head, or cmf: class-mean features."
TRAIN_HELP = "Train all weights, or the classifier alone (the control)."
DataFlag = Annotated[
    str | None, typer.Option(help="Where the dataset's files are, or shall be downloaded to; of shards also a URI.")
]
WeightsFlag = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Safetensors file with the scenario's pretrained weights. (default: from the Hugging Face hub)",
    ),
]
CPUS_HELP = "CPU cores of a trial or of each of its workers: its threads, and the processes that decode images."
WORKERS_HELP = "Processes that share a trial's work, under DeepSpeed."
WorkersFlag = Annotated[int, typer.Option(help=WORKERS_HELP)]
ZeroFlag = Annotated[int | None, typer.Option(help="What they share out: ZeRO stage 0 to 3. (default: 1)")]
OffloadFlag = Annotated[bool, typer.Option("--offload", help="Keep the optimizer's state in the CPU's memory.")]
CheckpointingFlag = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Compute activations anew instead of keeping them.")
]
DeepSpeedFlag = Annotated[Path | None, typer.Option(help="A DeepSpeed configuration (JSON) instead of the above.")]


# Entry points


def main() -> None:
    """`raymu`."""
    _run(app)


def sweep_main(sweep: "Callable[[], Sweep | list[Sweep]]") -> None:
    """What a script in `sweeps/` ends with: read the flags, run the sweep, print the comparison.

    Args:
        sweep: makes the sweep, or several that run one after the other and are ranked, for which they share scenario
            and protocol. Flags that are given win over what it says.
    """

    def program() -> None:
        made = sweep()
        _sweep_app(made if isinstance(made, list) else [made])()

    _run(program)


def _run(program: Callable[[], None]) -> None:
    """Turn the errors that a user can mend into one line and exit code 2, Ctrl-C into 130."""
    try:
        program()
    except (InputError, StorageError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


# raymu sweep METHOD


class _Methods(typer.core.TyperGroup):
    """One command a method, made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        from raymu import method

        return method.names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from raymu import method
        from raymu.tuning.sweep import Sweep

        sweep = Sweep(method.get(cmd_name), get_scenario(DEFAULT_SCENARIO))
        return typer.main.get_command(_sweep_app([sweep]))


app.add_typer(typer.Typer(cls=_Methods, no_args_is_help=True), name="sweep", help="Tune a method with Ray Tune.")


def _sweep_app(sweeps: "list[Sweep]") -> typer.Typer:
    """A program with one command, whose defaults are what the sweeps say.

    Raises:
        InputError: they differ in scenario or protocol, so that they could not be ranked.
    """
    for what in ("scenario", "protocol"):
        for sweep in sweeps:
            if getattr(sweep, what) != getattr(sweeps[0], what):
                raise InputError(
                    f"sweeps that are ranked share one {what}: {sweeps[0].name} and {sweep.name} differ in it; give"
                    " each a script"
                )
    names = ", ".join(sweep.method.name() for sweep in sweeps)
    summary = (sweeps[0].method.__doc__ or "").strip().split("\n\n")[0] if len(sweeps) == 1 else "Then rank them."
    program = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    program.command(help=f"Tune {names}. {' '.join(summary.split())}")(_sweep_command(sweeps))
    return program


def _sweep_command(defaults: "list[Sweep]") -> Callable[..., None]:
    from raymu.distributed.session import Resources
    from raymu.storage import locate
    from raymu.tuning.sweep import Sweep
    from raymu.tuning.trackers.settings import Trackers

    default, resources = defaults[0], Resources()
    budget = default.protocol
    heads, trains = {sweep.head for sweep in defaults}, {sweep.train for sweep in defaults}

    def command(
        scenario: Annotated[str, typer.Option(help="What to unlearn; see: raymu scenarios")] = default.scenario.name,
        forget: ForgetFlag = None,
        forget_share: ShareFlag = None,
        head: Annotated[str | None, typer.Option(help=HEAD_HELP)] = default.head if len(heads) == 1 else None,
        train: Annotated[str | None, typer.Option(help=TRAIN_HELP)] = default.train if len(trains) == 1 else None,
        data_dir: DataFlag = None,
        weights_file: WeightsFlag = None,
        trials: Annotated[int, typer.Option(help="How many settings to try.")] = budget.trials,
        ranges: Annotated[
            list[str] | None,
            typer.Option("--range", metavar="NAME=LOW:HIGH", help="Search another range. May be repeated."),
        ] = None,
        max_epochs: Annotated[int | None, typer.Option(help="The longest that a searched setting may be.")] = (
            budget.max_epochs
        ),
        max_images: Annotated[
            int | None, typer.Option(help="Training images after which a search begins no trial any more.")
        ] = budget.max_images,
        searcher: Annotated[str, typer.Option(help="tpe, random, quasi_random, grid, nsga2.")] = budget.searcher,
        scheduler: Annotated[
            str, typer.Option(help="asha or median stop hopeless trials early; none runs all in full.")
        ] = budget.scheduler,
        seed: Annotated[
            str, typer.Option(help="Draws the suggestions and everything random in a trial; 0,1,2 are three searches.")
        ] = ",".join(map(str, budget.search_seeds)),
        objective: Annotated[
            str, typer.Option(help="What is maximised on validation: hmean, weighted, oracle_gap, pareto.")
        ] = budget.objective,
        confirm_seeds: Annotated[
            int, typer.Option(help="Run the best again on so many seeds. (0: nothing is confirmed)")
        ] = budget.confirmation.seeds,
        confirm_originals: Annotated[
            int, typer.Option(help="On so many originals trained for it. (0: on the one searched on)")
        ] = budget.confirmation.originals,
        confirm_top: Annotated[
            int, typer.Option(help="So many of a method's best settings.")
        ] = budget.confirmation.top,
        confirm_forget: Annotated[
            list[str] | None, typer.Option(metavar="CLASSES", help="Forget other classes, too. May be repeated.")
        ] = None,
        storage: Annotated[str, typer.Option(help="Directory of all sweeps, or a URI: s3://...")] = DEFAULT_STORAGE,
        name: Annotated[
            str | None,
            typer.Option(help="Its directory in the storage. (default: the method; where there are several, all)"),
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished sweep.")] = False,
        address: Annotated[
            str | None,
            typer.Option(help="Ray cluster to join. (default: this machine's, or a new local one)"),
        ] = resources.address,
        cpus_per_trial: Annotated[
            int | None,
            typer.Option(help=f"{CPUS_HELP} (default: 1; on GPUs 1 thread, and the node's cores per GPU decode)"),
        ] = None,
        gpus_per_trial: Annotated[
            str | None,
            typer.Option(
                help="GPUs of a trial or of each of its workers, e.g. 0.25; auto for as many trials a GPU as its memory"
                " allows and as it gets through more images with. (default: 1 where there are any)"
            ),
        ] = None,
        workers: WorkersFlag = resources.options.workers,
        zero: ZeroFlag = resources.options.zero,
        offload: OffloadFlag = resources.options.offload,
        gradient_checkpointing: CheckpointingFlag = resources.options.checkpointing,
        deepspeed: DeepSpeedFlag = None,
        checkpoint_every: Annotated[
            float, typer.Option(metavar="SECONDS", help="The end of an epoch is kept if the last was so long ago.")
        ] = resources.options.checkpoint_s,
        concurrent: Annotated[
            int | None, typer.Option(help="Trials at once, at most; how far a cluster grows. (default: as many as fit)")
        ] = resources.concurrent,
        tensorboard: Annotated[Path | None, typer.Option(help="Directory for TensorBoard's event files.")] = None,
        mlflow: Annotated[str | None, typer.Option(help="MLflow's tracking URI: sqlite:///mlflow.db")] = None,
        wandb: Annotated[str | None, typer.Option(help="Project of Weights & Biases.")] = None,
        optuna: Annotated[
            str | None, typer.Option(help="Database for a study that optuna-dashboard opens: sqlite:///study.db")
        ] = None,
    ) -> None:
        chosen = default.scenario if scenario == default.scenario.name else get_scenario(scenario)
        forget_sets = tuple(_numbers("--confirm-forget", text) for text in confirm_forget or [])
        protocol = Protocol(
            trials,
            max_epochs,
            max_images,
            searcher,  # type: ignore[arg-type]
            scheduler,  # type: ignore[arg-type]
            _numbers("--seed", seed),
            objective,
            Confirmation(confirm_seeds, confirm_originals, confirm_top, forget_sets or budget.confirmation.forget),
        )

        def asked(one: Sweep) -> Sweep:
            its_head: Any = head or one.head
            return Sweep(
                method=one.method,
                scenario=_with_forget(chosen, forget, forget_share),
                protocol=protocol,
                space={**one.space, **_parse_ranges(one.method, its_head, ranges or [])},
                head=its_head,
                train=train or one.train,  # type: ignore[arg-type]
            )

        trackers = Trackers(tensorboard, mlflow, wandb, optuna)
        options: dict[str, Any] = {
            "data_dir": data_dir,
            "weights_file": weights_file,
            "resume": resume,
            "trackers": trackers,
        }
        engine = dataclasses.replace(
            resources.options,
            workers=workers,
            zero=zero,
            offload=offload,
            checkpointing=gradient_checkpointing,
            deepspeed=_text(deepspeed),
            checkpoint_s=checkpoint_every,
            **_known({"threads": cpus_per_trial, "cores": cpus_per_trial}),
        )
        given = Resources(address, engine, _gpus(gpus_per_trial), concurrent)
        if len(defaults) == 1:
            sweep = asked(default)
            location = locate(storage) / (name or sweep.name)
            if not _sweep_and_show(sweep, location, given, **options):
                raise InputError(f"no completed trial to choose from; see: raymu results {location}")
            return
        if ranges:
            raise InputError("--range is for a sweep of one method")
        sweeps, left_out = [], []
        for one in defaults:
            try:
                sweeps.append(asked(one))
            except InputError as error:
                left_out.append(error)
        if not sweeps:
            raise left_out[0]
        names = [sweep.name for sweep in sweeps]
        if twice := [one for one in names if names.count(one) > 1]:
            raise InputError(f"two of the sweeps are {twice[0]}: one of a method, head and trained part is ranked")
        for reason in left_out:
            console.print(f"left out: {reason}", highlight=False, soft_wrap=True)
        _sweep_and_rank(sweeps, locate(storage) / (name or "all"), given, **options)

    return command


def _gpus(text: str | None) -> "float | Literal['auto'] | None":
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--gpus-per-trial takes a number or auto, not {text!r}") from error


def _sweep_and_rank(sweeps: "list[Sweep]", storage: "Location", resources: Any, **options: Any) -> None:
    from raymu.distributed.session import session
    from raymu.results import ranking, reader, report, tables

    with session(resources.address):
        for sweep in sweeps:
            _sweep_and_show(sweep, storage / sweep.name, resources, **options)
            console.print()
    done = [one for sweep in sweeps for one in reader.load(storage / sweep.name)]
    ranked = ranking.rank(done)
    if not ranked:
        raise InputError(f"no completed trial to choose from; see: raymu results {storage}")
    console.print(tables.ranking(ranked))
    path = Path(storage.path if storage.local else ".") / "report.html"
    report.write(done, ranked, path)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)


def _sweep_and_show(sweep: "Sweep", location: "Location", resources: Any, **options: Any) -> bool:
    """Run a sweep and print how it went; return whether a trial completed."""
    from raymu import references
    from raymu.results import ranking, reader, tables
    from raymu.tuning.driver import run_sweep

    protocol = sweep.protocol
    console.print(
        f"tuning {sweep.name} on {sweep.scenario.name}, forgetting {sweep.scenario.forgotten}:"
        f" {protocol.trials} trials, {protocol.scheduler}, into {location}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        rows = run_sweep(sweep, location, resources, console, **options)
    except KeyboardInterrupt:
        done = len(reader.read(location))
        typer.echo(f"interrupted after {done} trials; the same command with --resume continues", err=True)
        raise
    statuses = [row["status"] for row in rows]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
    console.print()
    ranked = ranking.rank(reader.load(location))
    if not ranked:
        console.print(f"no completed trial: {counts}", highlight=False)
        return False
    (end,) = ranked
    console.print(tables.comparison(end.figures, protocol.objective))
    for name, setting in sweep.method.settings(sweep.scenario, sweep.head, sweep.train).items():
        mark = "published" if setting == sweep.published else "also published, not run"
        console.print(f"{mark}: {name}, {tables.setting(setting)}", highlight=False, soft_wrap=True)
    if end.published is not None and end.published["fallback"]:
        console.print(
            f"published: a fallback, since nothing is for {sweep.scenario.architecture_name} on"
            f" {sweep.scenario.dataset_name}, batches of {sweep.scenario.recipe.batch_size}, {sweep.head} head,"
            f" training {sweep.train}",
            highlight=False,
            soft_wrap=True,
        )
    if end.score.runs:
        console.print(
            f"means over {end.score.runs} runs on {end.score.originals} originals, with 95 % intervals", highlight=False
        )
    console.print()
    for line in (
        f"tuned setting: {tables.setting(end.tuned['config'])} ({end.tuned['trial_id']}, {protocol.objective}"
        f" {end.tuned['score']:.3f} on validation)",
        f"trials: {counts}",
        f"results: {location}",
        f"references: {references.directory(sweep.scenario)}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return True


def _with_forget(scenario: Scenario, forget: str | None, share: float | None) -> Scenario:
    if share is not None:
        if forget is not None:
            raise InputError("--forget and --forget-share exclude each other")
        if not 0 < share < 1:
            raise InputError(f"--forget-share takes a share between 0 and 1, not {share:g}")
        return dataclasses.replace(scenario, forget=(), forget_share=share)
    if forget is None:
        return scenario
    return dataclasses.replace(scenario, forget=_numbers("--forget", forget), forget_share=0.0)


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(checked(flag, part, int) for part in text.split(","))
    except InputError as error:
        raise InputError(f"{flag} takes numbers such as 3 or 0,1,2, not {text!r}") from error


def _parse_ranges(method: "type[Method]", head: Any, texts: list[str]) -> "dict[str, Range]":
    from raymu.method import Range

    known, ranges = method.ranges(head), {}
    for text in texts:
        name, _, ends = text.partition("=")
        if name not in known:
            raise InputError(unknown(f"searched hyperparameter of {method.name()}", name, list(known)))
        try:
            low, high = (float(end) for end in ends.split(":"))
        except ValueError as error:
            raise InputError(f"--range takes NAME=LOW:HIGH such as lr=1e-4:1e-2, not {text!r}") from error
        if name in ranges:
            raise InputError(f"--range {name} is given twice")
        ranges[name] = Range(low, high, known[name].scale)
    return ranges


# raymu run


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
    layers: Annotated[bool, typer.Option("--layers", help="Probe every block, not the last features alone.")] = False,
) -> None:
    """Unlearn once and keep the model. One worker does without Ray."""
    row = _read_row(config)
    rest = {"offload": offload, "checkpointing": gradient_checkpointing, "deepspeed": _text(deepspeed)}
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
        options=_engine(row, threads=cpus_per_trial, cores=cpus_per_trial, workers=workers, zero=zero, **rest),
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
    from raymu import cache, engines, export, references
    from raymu.data import splits
    from raymu.evaluation.layers import check_blocks
    from raymu.method import get as get_method
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
    task = _with_forget(_task(given, scenario), forget, forget_share)
    goal = objective or given.get("objective", "hmean")
    check(task, chosen, goal)
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
    trial = (out.absolute(), task, instance, number, goal, options, layers)
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
    console.print(tables.comparison({chosen.name(): figures_of(row, goal)}, goal))
    if layers:
        console.print(tables.layers(cache.load_json(out / export.LAYERS)))
    if others := _others(given, row):
        typer.echo(f"warning: these may not be the row's figures: {'; '.join(others)}", err=True)
    console.print(f"row and model: {out}", highlight=False, soft_wrap=True)


def _task(row: Mapping[str, Any], name: str | None) -> Scenario:
    """The scenario of that name, or else the row's own."""
    if name is not None:
        return get_scenario(name)
    if "scenario_hash" not in row:  # written by hand
        changes = {field: row[field] for field in OF_SCENARIO if field in row}
        if {"forget", "forget_share"} & changes.keys():
            changes = {"forget": (), "forget_share": 0.0, **changes}
        return Scenario.from_dict({**get_scenario(row.get("scenario", DEFAULT_SCENARIO)).as_dict(), **changes})
    if "scenario_fields" not in row:
        raise InputError(
            f"the row names its scenario, {row['scenario']}, but does not hold it, since raymu 0.1 made it: raymu run"
            " --config takes such a row, with --scenario and where need be --forget"
        )
    task = Scenario.from_dict(row["scenario_fields"])
    if task.hash != row["scenario_hash"]:
        raise InputError(f"the row was changed: its scenario_fields are not those of {row['scenario_hash']}")
    for field, value in {"scenario": task.name, **{one: task.as_dict()[one] for one in OF_SCENARIO}}.items():
        if row.get(field, value) != value:
            raise InputError(f"the row was changed: its {field} is {row[field]}, in its scenario_fields {value}")
    return task


def _others(given: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Differences between a given row and the row of the same trial run again, as "column is X there, Y here"."""
    from raymu.trial import IDENTITY, MADE_WITH, NO_METRICS

    if "scenario_hash" in given and "scenario_fields" not in given:
        return ["raymu 0.1 made the row, which does not say by what code"]
    if any(given.get(key) != row[key] for key in IDENTITY if key not in MADE_WITH):
        return []  # another trial was asked for
    if given.get("status") == "stopped":
        return [f"its trial was stopped after {given['epochs']} epochs, this one went on for {row['epochs']}"]
    keys = [*MADE_WITH, *(key for key in NO_METRICS if key != "probe"), "score"]
    differ = [key for key in keys if key in given and given[key] != row[key] and given.get("status") == "completed"]
    return [f"{key} is {given[key]} there, {row[key]} here" for key in differ[:MOST_NAMED]]


def _engine(row: Mapping[str, Any], **given: Any) -> "Options":
    """What carried out the row's trial, except for what is given."""
    from raymu.engines.options import ENGINES, Options

    engine = row.get("engine", "pytorch")
    if engine not in list(ENGINES):
        raise InputError(unknown("engine", str(engine), list(ENGINES)))
    said = {
        "threads": row.get("threads"),
        "workers": row.get("workers"),
        "zero": ENGINES[engine],
        "deepspeed": row.get("deepspeed"),
    }
    if said["deepspeed"] or given.get("deepspeed"):
        said["zero"] = None
    return Options(**{**_known(said), **_known(given)})


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _in_workers(out: Path, options: "Options", call: tuple[Any, ...]) -> None:
    from raymu.distributed.nodes import at_home
    from raymu.distributed.session import Resources, fit_to_cluster, session
    from raymu.distributed.worker_groups import side_by_side, take_along
    from raymu.storage import locate

    take_along(type(call[3]).__module__)
    with session(None), at_home(locate(out)) as home:
        side_by_side(home, fit_to_cluster(Resources(options=options)), [call])


def _text(path: Path | None) -> str | None:
    """What the file says."""
    try:
        return None if path is None else path.read_text()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text") from error


def _read_row(path: Path | None) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; empty for None."""
    if path is None:
        return {}

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            pairs = [[self.construct_object(one, deep=True) for one in pair] for pair in node.value]
            names = [name for name, _ in pairs]
            if twice := [name for name in names if names.count(name) > 1]:
                raise InputError(f"{path} says {twice[0]} twice")
            return dict(pairs)

    Loader.yaml_implicit_resolvers = {}
    for kind, words in AS_IN_JSON.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"({words})$"), None)
    try:
        content = yaml.load(_text(path) or "", Loader)
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a name that is a list
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise InputError(f"{path} needs a `config` with hyperparameters, as `raymu best --yaml` prints it")
    if "scenario_hash" not in content:
        for name in content.keys() - set(BY_HAND):
            raise InputError(f"{path}: {unknown('field', str(name), list(BY_HAND))}")
    return content


# What there is


@app.command()
def methods(
    as_json: JsonFlag = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the README's table.")] = False,
) -> None:
    """List the unlearning methods, their hyperparameters, published values and ranges."""
    from raymu import method

    described = []
    for name in method.names():
        cls = method.get(name)
        described.append(
            {
                "name": name,
                "paper": cls.paper,
                "needs": list(cls.needs),
                "forgets": ["classes"] if cls.classes_only else ["classes", "samples"],
                "hyperparameters": {
                    field.name: {
                        "default": field.default,
                        **(dataclasses.asdict(field.metadata["range"]) if field.metadata["range"] else {}),
                        "doc": field.metadata["doc"],
                    }
                    for field in cls.hyperparameters("cmf").values()
                },
                "published": [
                    {"dataset": dataset, "head": head, "name": called, "config": dict(values)}
                    for (dataset, head, called), values in cls.published.items()
                ],
            }
        )
    if as_json:
        typer.echo(json.dumps(described, indent=2))
        return
    if as_markdown:
        typer.echo(method.markdown_table())
        return
    for name in method.names():
        cls = method.get(name)
        console.print(f"[bold]{name}[/bold]  {cls.paper}", highlight=False)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), show_header=False)
        for field in cls.hyperparameters().values():
            search, doc = field.metadata["range"] or "fixed", field.metadata["doc"]
            table.add_row(field.name, method.shown(field.default), str(search), doc)
        for (dataset, head, called), values in cls.published.items():
            setting = " ".join(f"{key}={method.shown(value)}" for key, value in values.items())
            table.add_row(f"{dataset} {head}", called, "", setting)
        console.print(table, highlight=False)
    console.print(
        "Hyperparameters: default, range that a sweep covers, meaning. Below them what is published by dataset and"
        " head: what the authors' code says, which is the published setting, and what the paper's table says where it"
        " differs, for the architecture that they trained on that dataset. Elsewhere the setting for CIFAR-10 is the"
        " fallback. With --head cmf, temperature (1, 1..64 log) is"
        " searched as well."
    )


@app.command()
def scenarios(as_json: JsonFlag = False) -> None:
    """List the scenarios: what has to be forgotten."""
    if as_json:
        typer.echo(json.dumps([scenario.as_dict() for scenario in SCENARIOS.values()], indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("scenario", "dataset", "architecture", "forget", "training"):
        table.add_column(heading, no_wrap=heading == "scenario")
    for task in SCENARIOS.values():
        recipe = task.recipe
        training = f"{recipe.epochs} epochs, {recipe.optimizer}, lr {recipe.lr:g}, batch {recipe.batch_size}"
        table.add_row(task.name, task.dataset_name, task.pretrained or task.architecture_name, task.forgotten, training)
    console.print(table, highlight=False)


# Results


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

    rows = _choose(storage, method, rule)
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


def _choose(storage: str, method: str | None, rule: str) -> list[dict[str, Any]]:
    """What a rule takes of the sweeps of a storage: of every sweep, and then of those."""
    from raymu.method import get as get_method
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


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Directory for model.safetensors, row.json and its card, README.md.")],
    storage: StorageArgument = DEFAULT_STORAGE,
    method: MethodFlag = None,
    data_dir: DataFlag = None,
    weights_file: WeightsFlag = None,
) -> None:
    """Unlearn once more at the best setting, and keep the model with a card that says what it is."""
    from raymu.method import names
    from raymu.plugins import is_file

    row = _choose(storage, method, "tuned")[0]
    if row["method"] not in names() and not is_file(method or ""):
        raise InputError(f"{row['method']} is none of raymu's methods: name the file of yours, --method path/to/own.py")
    _unlearn(method or row["method"], out, row, data_dir=data_dir, weights_file=weights_file, options=_engine(row))


@app.command()
def doctor(
    storage: Annotated[Path, typer.Option(help="Directory of all sweeps.")] = Path(DEFAULT_STORAGE),
) -> None:
    """Say what works on this machine, and what is missing."""
    from raymu.doctor import examine

    marks = {"ok": "[green]ok[/green]", "optional": "[yellow]optional[/yellow]", "missing": "[red]missing[/red]"}
    states = []
    for finding in examine(storage):
        states.append(finding.state)
        console.print(f"{marks[finding.state]} [bold]{finding.what}[/bold]", end=": ", highlight=False)
        console.print(finding.detail, markup=False, highlight=False, soft_wrap=True)
    if "missing" in states:
        sys.exit(1)
