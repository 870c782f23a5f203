"""`raymu sweep METHOD`, and what the scripts in `sweeps/` call."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from raymu.cli.flags import (
    CPUS_HELP,
    HEAD_HELP,
    SCENARIO_HELP,
    TRAIN_HELP,
    CheckpointingFlag,
    ClassesFlag,
    DataFlag,
    DeepSpeedFlag,
    ForgetFlag,
    MetricFlag,
    OffloadFlag,
    ShareFlag,
    TrainShareFlag,
    WeightsFlag,
    WorkersFlag,
    ZeroFlag,
    classes_in,
    numbers_in,
    text_of,
    with_forget,
    with_subset,
)
from raymu.cli.outcome import sweep_and_rank, sweep_and_show
from raymu.cli.program import app, console, run_program
from raymu.cli.summaries import summaries
from raymu.errors import InputError
from raymu.values import SCENARIO, STORAGE, given_values, unknown

if TYPE_CHECKING:  # they import torch and Ray, which `raymu --help` does not need
    from raymu.method import Method, Range
    from raymu.tuning.sweep import Sweep


LOADING = "loading PyTorch and Ray"  # which takes seconds, in which a terminal would show nothing


def sweep_main(sweep: "Callable[[], Sweep | list[Sweep]]") -> None:
    """Last call of a script in `sweeps/`: it reads the flags, runs the sweep and prints the comparison.

    Args:
        sweep: makes the sweep, or several that run one after the other and are ranked, for which they share scenario
            and protocol. Flags that are given win over what it says.
    """

    def program() -> None:
        with console.status(LOADING):
            made = sweep()
            command = _sweep_app(made if isinstance(made, list) else [made])
        command()

    run_program(program)


class _Tune(typer.core.TyperCommand):
    """Command of one method. Until it is asked for its flags it is no more than a name and a line."""

    def make_context(self, info_name: str | None, *given: Any, **more: Any) -> Any:
        with console.status(LOADING):
            from raymu import methods
            from raymu.scenarios import get as get_scenario
            from raymu.tuning.sweep import Sweep

            sweep = Sweep(methods.get(str(self.name)), get_scenario(SCENARIO))
            command = typer.main.get_command(_sweep_app([sweep]))
        return command.make_context(info_name, *given, **more)


class _Methods(typer.core.TyperGroup):
    """A command for each method, also for that of a file of the user's."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(summaries())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        known = summaries().get(cmd_name)
        return None if known is None and ctx.resilient_parsing else _Tune(cmd_name, help=known)


app.add_typer(
    typer.Typer(cls=_Methods, no_args_is_help=True, subcommand_metavar="METHOD [ARGS]..."),
    name="sweep",
    help="Tune a method with Ray Tune: one of raymu's, or that of a file of your own (path/to/own.py).",
)


def _sweep_app(sweeps: "list[Sweep]") -> typer.Typer:
    """A program with one command, whose defaults are what the sweeps say.

    Raises:
        InputError: there is none, or they differ in scenario or protocol, so that they could not be ranked.
    """
    if not sweeps:
        raise InputError("there is no sweep")
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
    from raymu import objective as objectives
    from raymu.distributed.session import Resources
    from raymu.evaluation import metrics
    from raymu.protocol import AUTO, Confirmation, Protocol
    from raymu.scenarios import get as get_scenario
    from raymu.storage import locate
    from raymu.study import possible
    from raymu.tuning.sweep import Sweep, directory_name
    from raymu.tuning.trackers.settings import Trackers

    default, resources = defaults[0], Resources()
    budget = default.protocol
    heads, trains = {sweep.head for sweep in defaults}, {sweep.train for sweep in defaults}

    def command(
        scenario: Annotated[str, typer.Option(help=SCENARIO_HELP)] = default.scenario.name,
        forget: ForgetFlag = None,
        forget_share: ShareFlag = None,
        classes: ClassesFlag = None,
        train_share: TrainShareFlag = None,
        head: Annotated[str | None, typer.Option(help=HEAD_HELP)] = default.head if len(heads) == 1 else None,
        train: Annotated[str | None, typer.Option(help=TRAIN_HELP)] = default.train if len(trains) == 1 else None,
        data_dir: DataFlag = None,
        weights_file: WeightsFlag = None,
        trials: Annotated[
            str,
            typer.Option(
                help="How many settings to try; auto for {} at most, and none any more when {} in a row were expected"
                " to improve on the best score by less than its noise.".format(*AUTO)
            ),
        ] = str(budget.trials),
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
        max_hours: Annotated[
            float | None,
            typer.Option(
                help="Hours of wall time after which a search begins no trial any more, all resumptions together. Not"
                " reproducible to the trial, unlike --max-images."
            ),
        ] = budget.max_hours,
        searcher: Annotated[str, typer.Option(help="gp, tpe, random, quasi_random, grid, nsga2.")] = budget.searcher,
        scheduler: Annotated[
            str, typer.Option(help="none runs all trials in full; asha or median stop some early.")
        ] = budget.scheduler,
        seed: Annotated[
            str, typer.Option(help="Draws the suggestions and everything random in a trial; 0,1,2 are three searches.")
        ] = ",".join(map(str, budget.search_seeds)),
        objective: Annotated[
            str | None,
            typer.Option(
                help="What is maximised on validation: removal, hmean, weighted, pareto."
                f" (default: {budget.objective.name}; hmean where there is no retrained model)"
            ),
        ] = None,
        confirm_seeds: Annotated[
            int, typer.Option(help="Number of seeds on which the best settings run again. (0: nothing is confirmed)")
        ] = budget.confirmation.seeds,
        confirm_originals: Annotated[
            int, typer.Option(help="Number of originals that are trained for that. (0: the one searched on serves)")
        ] = budget.confirmation.originals,
        confirm_top: Annotated[
            int, typer.Option(help="Number of a method's best settings that run again.")
        ] = budget.confirmation.top,
        confirm_forget: Annotated[
            list[str] | None, typer.Option(metavar="CLASSES", help="Forget other classes, too. May be repeated.")
        ] = None,
        metric: MetricFlag = None,
        storage: Annotated[str, typer.Option(help="Directory of all sweeps, or a URI: s3://...")] = STORAGE,
        name: Annotated[
            str | None,
            typer.Option(help="Its directory in the storage. (default: the method, or all; and what is not default)"),
        ] = None,
        mirror: Annotated[
            bool, typer.Option("--mirror/--no-mirror", help="Keep references and data in the storage, too, for others.")
        ] = True,
        resume: Annotated[
            bool,
            typer.Option(
                "--resume",
                help="Continue an unfinished sweep, or let one grow by more --trials, --confirm-seeds,"
                " --confirm-originals or --confirm-top.",
            ),
        ] = False,
        anyway: Annotated[
            bool, typer.Option("--anyway", help="Go on where the references show that there is nothing to forget.")
        ] = False,
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
        trial_timeout: Annotated[
            float | None,
            typer.Option(
                metavar="SECONDS",
                help="An attempt at a trial ends after so long, as one whose process died: it is tried again twice."
                " (default: one ends that gives no sign of life)",
            ),
        ] = resources.timeout_s,
        tensorboard: Annotated[Path | None, typer.Option(help="Directory for TensorBoard's event files.")] = None,
        mlflow: Annotated[str | None, typer.Option(help="MLflow's tracking URI: sqlite:///mlflow.db")] = None,
        wandb: Annotated[str | None, typer.Option(help="Project of Weights & Biases.")] = None,
        optuna: Annotated[
            str | None, typer.Option(help="Database for a study that optuna-dashboard opens: sqlite:///study.db")
        ] = None,
    ) -> None:
        chosen = default.scenario if scenario == default.scenario.name else get_scenario(scenario)
        usual = budget.objective if chosen.has_retrained else objectives.default(has_retrained=False)
        forget_sets = tuple(classes_in(chosen, text) for text in confirm_forget or [])
        count, patience = AUTO if trials == "auto" else (_count(trials), budget.patience)
        protocol = Protocol(
            count,
            max_epochs,
            max_images,
            max_hours,
            searcher,  # type: ignore[arg-type]
            scheduler,  # type: ignore[arg-type]
            numbers_in("--seed", seed),
            usual if objective in (None, usual.name) else objectives.get(objective),
            Confirmation(confirm_seeds, confirm_originals, confirm_top, forget_sets or budget.confirmation.forget),
            (*budget.metrics, *map(metrics.get, metric or [])),
            patience,
        )

        def asked(one: Sweep) -> Sweep:
            its_head: Any = head or one.head
            return Sweep(
                method=one.method,
                scenario=with_forget(with_subset(chosen, classes, train_share), forget, forget_share),
                protocol=protocol,
                space={**one.space, **_parse_ranges(one.method, its_head, ranges or [])},
                head=its_head,
                train=train or one.train,  # type: ignore[arg-type]
            )

        trackers = Trackers(tensorboard, mlflow, wandb, optuna)
        options: dict[str, Any] = {
            "data_dir": data_dir,
            "weights_file": weights_file,
            "mirror": mirror,
            "resume": resume,
            "anyway": anyway,
            "trackers": trackers,
        }
        engine = dataclasses.replace(
            resources.options,
            workers=workers,
            zero=zero,
            offload=offload,
            checkpointing=gradient_checkpointing,
            deepspeed=text_of(deepspeed),
            checkpoint_s=checkpoint_every,
            **given_values({"threads": cpus_per_trial, "cores": cpus_per_trial}),
        )
        given = Resources(address, engine, _gpus(gpus_per_trial), concurrent, trial_timeout)
        if len(defaults) == 1:
            sweep = asked(default)
            if not sweep_and_show(sweep, locate(storage), name, given, **options):
                directory = locate(storage) / (name or sweep.directory)
                raise InputError(f"no completed trial to choose from; see: raymu results {directory}")
            return
        if ranges:
            raise InputError("--range is for a sweep of one method")
        sweeps, refused = possible(functools.partial(asked, one) for one in defaults)
        for reason in refused:
            console.print(f"left out: {reason}", highlight=False, soft_wrap=True)
        where = name or directory_name("all", sweeps[0].scenario, sweeps[0].protocol.objective.name)
        sweep_and_rank(sweeps, locate(storage), where, given, **options)

    return command


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"--trials takes a whole number or auto, not {text!r}") from error


def _gpus(text: str | None) -> "float | Literal['auto'] | None":
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--gpus-per-trial takes a number or auto, not {text!r}") from error


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
