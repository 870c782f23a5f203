"""The command line: `raymu ...`, and what the scripts in `sweeps/` call."""

import csv
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
import yaml
from rich.console import Console
from rich.table import Table

from raymu.errors import InputError
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS, Scenario
from raymu.scenario import get as get_scenario

if TYPE_CHECKING:  # they import torch and Ray, which `raymu --help` does not need
    from raymu.method import Method, Range
    from raymu.sweep import Sweep

DEFAULT_SCENARIO = "digits"
DEFAULT_STORAGE = Path("raymu-results")

console = Console(stderr=False)

app = typer.Typer(
    help="Tune machine-unlearning methods fairly. Start with: raymu sweep salun",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

StorageArgument = Annotated[Path, typer.Argument(help="A sweep's directory, or one above it.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ScenarioFlag = Annotated[str | None, typer.Option("--scenario", help="What to unlearn; see: raymu scenarios")]
ForgetFlag = Annotated[str | None, typer.Option(help="Classes to forget, by number: 3 or 0,1,2")]
ShareFlag = Annotated[
    float | None, typer.Option("--forget-share", help="Forget no class, but this share of the training samples: 0.01")
]
HEAD_HELP = "The model's own linear head, or cmf: class-mean features."
TRAIN_HELP = "Train all weights, or the classifier alone (the control)."
DataFlag = Annotated[Path | None, typer.Option(help="Where the dataset's files are, or shall be downloaded to.")]
CpusFlag = Annotated[int, typer.Option("--cpus-per-trial", help="CPU threads of a trial.")]


# Entry points


def main() -> None:
    """`raymu`."""
    _run(app)


def sweep_main(sweep: "Callable[[], Sweep | list[Sweep]]") -> None:
    """What a script in `sweeps/` ends with: read the flags, run the sweep, print the comparison.

    Args:
        sweep: makes the sweep, or several that run one after the other and are ranked. Flags that are given win over
            what it says.
    """

    def program() -> None:
        made = sweep()
        _sweep_app(made if isinstance(made, list) else [made])()

    _run(program)


def _run(program: Callable[[], None]) -> None:
    """Turn the errors that a user can mend into one line and exit code 2, Ctrl-C into 130."""
    try:
        program()
    except InputError as error:
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
        from raymu.sweep import Sweep

        sweep = Sweep(method.get(cmd_name), get_scenario(DEFAULT_SCENARIO))
        return typer.main.get_command(_sweep_app([sweep]))


app.add_typer(typer.Typer(cls=_Methods, no_args_is_help=True), name="sweep", help="Tune a method with Ray Tune.")


def _sweep_app(sweeps: "list[Sweep]") -> typer.Typer:
    """A program with one command, whose defaults are what the first of the sweeps says."""
    names = ", ".join(sweep.method.name() for sweep in sweeps)
    summary = (sweeps[0].method.__doc__ or "").strip().split("\n\n")[0] if len(sweeps) == 1 else "Then rank them."
    program = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    program.command(help=f"Tune {names}. {' '.join(summary.split())}")(_sweep_command(sweeps))
    return program


def _sweep_command(defaults: "list[Sweep]") -> Callable[..., None]:
    from raymu.sweep import Resources, Sweep

    default, resources = defaults[0], Resources()
    budget = default.protocol

    def command(
        scenario: Annotated[str, typer.Option(help="What to unlearn; see: raymu scenarios")] = default.scenario.name,
        forget: ForgetFlag = None,
        forget_share: ShareFlag = None,
        head: Annotated[str, typer.Option(help=HEAD_HELP)] = default.head,
        train: Annotated[str, typer.Option(help=TRAIN_HELP)] = default.train,
        data_dir: DataFlag = None,
        trials: Annotated[int, typer.Option(help="How many settings to try.")] = budget.trials,
        ranges: Annotated[
            list[str] | None,
            typer.Option("--range", metavar="NAME=LOW:HIGH", help="Search another range. May be repeated."),
        ] = None,
        seed: Annotated[
            int, typer.Option(help="Draws the suggestions and everything random in a trial.")
        ] = budget.seed,
        objective: Annotated[
            str, typer.Option(help="What is maximised on validation: hmean, weighted or oracle_gap.")
        ] = budget.objective,
        scheduler: Annotated[
            str, typer.Option(help="asha stops hopeless trials early; none runs all in full.")
        ] = budget.scheduler,
        storage: Annotated[Path, typer.Option(help="Directory of all sweeps.")] = DEFAULT_STORAGE,
        name: Annotated[
            str | None,
            typer.Option(help="Its directory in the storage. (default: the method; where there are several, all)"),
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished sweep.")] = False,
        address: Annotated[
            str | None,
            typer.Option(help="Ray cluster to join. (default: this machine's, or a new local one)"),
        ] = resources.address,
        cpus_per_trial: CpusFlag = resources.cpus_per_trial,
        gpus_per_trial: Annotated[
            float | None, typer.Option(help="GPUs of a trial, e.g. 0.25. (default: 1 where there are any)")
        ] = resources.gpus_per_trial,
        concurrent: Annotated[
            int | None, typer.Option(help="Trials at once, at most. (default: as many as fit)")
        ] = resources.concurrent,
    ) -> None:
        chosen = default.scenario if scenario == default.scenario.name else get_scenario(scenario)
        protocol = Protocol(trials, seed, objective, scheduler)  # type: ignore[arg-type]

        def asked(method: "type[Method]", space: "Mapping[str, Range]") -> Sweep:
            return Sweep(
                method=method,
                scenario=_with_forget(chosen, forget, forget_share),
                protocol=protocol,
                space={**space, **_parse_ranges(method, head, ranges or [])},
                head=head,  # type: ignore[arg-type]
                train=train,  # type: ignore[arg-type]
            )

        options: dict[str, Any] = {"data_dir": data_dir, "resume": resume}
        given = Resources(address, cpus_per_trial, gpus_per_trial, concurrent)
        if len(defaults) == 1:
            sweep = asked(default.method, default.space)
            _sweep_and_show(sweep, _local(storage) / (name or sweep.name), given, **options)
            return
        if ranges:
            raise InputError("--range is for a sweep of one method")
        sweeps, left_out = [], []
        for one in defaults:
            try:
                sweeps.append(asked(one.method, one.space))
            except InputError as error:
                left_out.append(error)
        if not sweeps:
            raise left_out[0]
        for reason in left_out:
            console.print(f"left out: {reason}", highlight=False, soft_wrap=True)
        _sweep_and_rank(sweeps, _local(storage) / (name or "all"), given, **options)

    return command


def _sweep_and_rank(sweeps: "list[Sweep]", directory: Path, resources: Any, **options: Any) -> None:
    from raymu.results import tables
    from raymu.sweep import session

    done = {}
    with session(resources.address):
        for sweep in sweeps:
            done[sweep.name] = _sweep_and_show(sweep, directory / sweep.name, resources, **options)
            console.print()
    console.print(tables.ranking(done, sweeps[0].protocol.objective))


def _sweep_and_show(
    sweep: "Sweep", directory: Path, resources: Any, *, data_dir: Path | None, resume: bool
) -> dict[str, Any]:
    """Run a sweep and print how it went; return the rows of "original", "retrained", "published" and "tuned"."""
    from raymu import references
    from raymu.results import select, store, tables
    from raymu.sweep import run_sweep

    console.print(
        f"tuning {sweep.name} on {sweep.scenario.name}, forgetting {sweep.scenario.forgotten}:"
        f" {sweep.protocol.trials} trials, {sweep.protocol.scheduler}, into {directory}",
        highlight=False,
        soft_wrap=True,
    )
    try:
        rows = run_sweep(sweep, directory, resources, console, data_dir=data_dir, resume=resume)
    except KeyboardInterrupt:
        done = len(store.read(directory))
        typer.echo(
            f"interrupted after {done} of {sweep.protocol.trials} trials; the same command with --resume continues",
            err=True,
        )
        raise
    models: dict[str, Any] = {**references.metrics(sweep.scenario), "published": select.published(rows)}
    console.print()
    try:
        tuned = models["tuned"] = select.best(rows)
    except InputError as error:
        console.print(tables.comparison(models, sweep.protocol.objective))
        raise InputError(f"{error}; see: raymu results {directory}") from error
    console.print(tables.comparison(models, sweep.protocol.objective))
    if models["published"] is not None and models["published"]["fallback"]:
        console.print(
            f"published: a fallback, since the paper gives no setting for {sweep.scenario.dataset} with a {sweep.head}"
            " head",
            highlight=False,
        )
    console.print()
    statuses = [row["status"] for row in rows]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
    for line in (
        f"tuned setting: {tables.setting(tuned['config'])} ({tuned['trial_id']}, {sweep.protocol.objective}"
        f" {tuned['score']:.3f} on validation)",
        f"trials: {counts}",
        f"results: {directory}",
        f"references: {references.directory(sweep.scenario)}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return models


def _with_forget(scenario: Scenario, forget: str | None, share: float | None) -> Scenario:
    if share is not None:
        if forget is not None:
            raise InputError("--forget and --forget-share exclude each other")
        if not 0 < share < 1:
            raise InputError(f"--forget-share takes a share between 0 and 1, not {share:g}")
        return dataclasses.replace(scenario, forget=(), forget_share=share)
    if forget is None:
        return scenario
    try:
        classes = tuple(int(part) for part in forget.split(","))
    except ValueError as error:
        raise InputError(f"--forget takes class numbers such as 3 or 0,1,2, not {forget!r}") from error
    return dataclasses.replace(scenario, forget=classes, forget_share=0.0)


def _parse_ranges(method: "type[Method]", head: Any, texts: list[str]) -> "dict[str, Range]":
    from raymu.method import Range
    from raymu.scenario import unknown

    known, ranges = method.ranges(head), {}
    for text in texts:
        name, _, ends = text.partition("=")
        if name not in known:
            raise InputError(unknown(f"searched hyperparameter of {method.name()}", name, list(known)))
        try:
            low, high = (float(end) for end in ends.split(":"))
        except ValueError as error:
            raise InputError(f"--range takes NAME=LOW:HIGH such as lr=1e-4:1e-2, not {text!r}") from error
        ranges[name] = Range(low, high, known[name].scale)
    return ranges


def _local(storage: Path) -> Path:
    if "://" in str(storage) or ":/" in str(storage):
        raise InputError(f"storage {storage}: only directories are supported, not URLs")
    return storage.expanduser()


# raymu run


@app.command()
def run(
    method: Annotated[str, typer.Argument(help="See: raymu methods")],
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
    cpus_per_trial: Annotated[int | None, typer.Option(help="CPU threads. (default: the row's, or 1)")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Probe every block, not the last features alone.")] = False,
) -> None:
    """Unlearn once, without Ray, and keep the model."""
    from raymu import cache, data, models, references
    from raymu.evaluation.layers import check_blocks, profile
    from raymu.method import get as get_method
    from raymu.results import tables
    from raymu.trial import check, run_trial

    given = _read_row(config)
    chosen = get_method(method)
    if given.get("method", method) != method:
        raise InputError(f"{config} is a setting of {given['method']}, not of {method}")
    task = get_scenario(scenario or given.get("scenario", DEFAULT_SCENARIO))
    if given.get("forget_share"):
        task = _with_forget(task, None, given["forget_share"])
    elif "forget" in given:
        task = _with_forget(task, ",".join(map(str, given["forget"])), None)
    task = _with_forget(task, forget, forget_share)
    goal = objective or given.get("objective", "hmean")
    check(task, chosen, goal)
    options: Any = {"head": head or given.get("head", "linear"), "train": train or given.get("train", "all")}
    chosen.check_options(**options)
    config_values = given["config"] if given else chosen.published_config(task, options["head"])
    instance = chosen.from_config(config_values, **options)
    if layers:
        check_blocks(models.build(task, task.model_seed))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error
    data.prepare(task, data_dir)
    data.check_split(task)
    threads = cpus_per_trial or given.get("threads", 1)
    missing = references.missing(task)
    with console.status(f"training the references: {', '.join(missing)}" if missing else "unlearning"):
        row, model = run_trial(
            task,
            instance,
            seed=given.get("seed", 0) if seed is None else seed,
            objective=goal,
            threads=threads,
        )
    cache.save_json(out / "row.json", row)
    if row["status"] == "error":
        typer.echo(row["traceback"], err=True)
        sys.exit(1)
    if model is not None:
        cache.save_tensors(out / "model.safetensors", model.state_dict())
    console.print(f"{row['status']}: {tables.setting(row['config'])}", highlight=False)
    if row["status"] == "completed":
        console.print(tables.comparison({method: row}, row["objective"]))
    if layers and model is not None:
        with console.status("probing every block"), references.cpu_threads(threads):
            loaded = references.load(task, references.default_device(), threads)
            profiles = {**references.profiles(task, threads), method: profile(model, loaded.data)}
        cache.save_json(out / "layers.json", profiles)
        console.print(tables.layers(profiles))
    console.print(f"row and model: {out}", highlight=False, soft_wrap=True)


def _read_row(path: Path | None) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; empty for None."""
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise InputError(f"{path} needs a `config` with hyperparameters, as `raymu best --yaml` prints it")
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
                    {"dataset": dataset, "head": head, "config": dict(values)}
                    for (dataset, head), values in cls.published.items()
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
            table.add_row(field.name, "-" if field.default is None else f"{field.default:g}", str(search), doc)
        for (dataset, head), values in cls.published.items():
            table.add_row(f"{dataset} {head}", "", "", " ".join(f"{key}={value:g}" for key, value in values.items()))
        console.print(table, highlight=False)
    console.print(
        "Hyperparameters: default, range that a sweep covers, meaning. Below them what the paper gives by dataset and"
        " head; elsewhere the setting for CIFAR-10 is the fallback. With --head cmf, temperature (1, 1..64 log) is"
        " searched as well."
    )


@app.command()
def scenarios(as_json: JsonFlag = False) -> None:
    """List the scenarios: what has to be forgotten."""
    if as_json:
        typer.echo(json.dumps([{**s.as_dict(), "hash": s.hash} for s in SCENARIOS.values()], indent=2))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("scenario", "dataset", "architecture", "forget", "training"):
        table.add_column(heading)
    for task in SCENARIOS.values():
        recipe = task.recipe
        training = f"{recipe.epochs} epochs, lr {recipe.lr:g}, batch {recipe.batch_size}"
        table.add_row(task.name, task.dataset, task.architecture, task.forgotten, training)
    console.print(table, highlight=False)


# Results


@app.command()
def results(
    storage: StorageArgument = DEFAULT_STORAGE,
    as_json: JsonFlag = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Print every trial's row."""
    from raymu.results import store, tables

    rows = store.read_all(storage)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif as_csv:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        writer = csv.DictWriter(sys.stdout, columns)
        writer.writeheader()
        for row in rows:
            nested = {key: json.dumps(value) for key, value in row.items() if isinstance(value, (dict, list))}
            writer.writerow(row | nested)
    else:
        console.print(tables.trials(rows), highlight=False)


@app.command()
def best(
    storage: StorageArgument = DEFAULT_STORAGE,
    method: Annotated[str | None, typer.Option(help="Only among the trials of this method.")] = None,
    as_json: JsonFlag = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print YAML, as `raymu run --config` reads it.")] = False,
) -> None:
    """Print the setting that is best on validation."""
    from raymu.results import select, store, tables
    from raymu.scenario import unknown

    rows = store.read_all(storage)
    if method is not None:
        known = sorted({row["method"] for row in rows})
        if method not in known:
            raise InputError(unknown("method in this storage", method, known))
        rows = [row for row in rows if row["method"] == method]
    row = select.best(rows)
    if as_json:
        typer.echo(json.dumps(row, indent=2))
    elif as_yaml:
        typer.echo(yaml.safe_dump(row, sort_keys=False), nl=False)
    else:
        console.print(f"{row['trial_id']}: {row['method']} {tables.setting(row['config'])}", highlight=False)
        console.print(f"{row['objective']} on validation: {row['score']:.3f}", highlight=False)
        console.print(tables.comparison({row["trial_id"]: row}, row["objective"]))


@app.command()
def doctor(
    storage: Annotated[Path, typer.Option(help="Directory of all sweeps.")] = DEFAULT_STORAGE,
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
