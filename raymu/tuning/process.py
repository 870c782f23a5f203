"""What the process of a trial does."""

import contextlib
from collections import UserDict
from typing import Any

from ray import tune

from raymu import memory, reference_models
from raymu.checkpoints import Checkpoints
from raymu.distributed import nodes
from raymu.distributed.worker_groups import WorkerError, for_all, in_group
from raymu.engines import Options
from raymu.errors import NodeError
from raymu.evaluation import tsne
from raymu.row import Row
from raymu.storage import Location
from raymu.trial import OF_THE_MACHINE, blank_row, run_trial
from raymu.tuning.sweep import Sweep, Task
from raymu.workers import Workers

CHECKPOINTS = "checkpoints"  # in a sweep's directory, of trials that have begun, by number


def tune_trial(
    config: dict[str, Any], sweep: Sweep, options: Options, directory: Location, driver: nodes.Driver
) -> None:
    """What an actor of Tune does, trial after trial; data, references and other workers stay with its process."""
    task: Task = config["task"]
    try:
        what, kept = id_of_trial(directory.name, task.number), checkpoints_of(directory, task.number)
        in_group(driver, options, what, _work, task, sweep, options, kept, driver)
    except WorkerError as error:
        if isinstance(error.__cause__, (*OF_THE_MACHINE, NodeError)):
            raise
        row = blank_of(sweep, task, options)
        text = str(error).strip()
        tune.report(_result(row | {"status": "error", "error": text.splitlines()[-1], "traceback": text}))


def checkpoints_of(directory: Location, number: int) -> Checkpoints:
    """Checkpoints of a trial, in its sweep's directory."""
    return Checkpoints(directory / CHECKPOINTS / str(number))


def _work(task: Task, sweep: Sweep, options: Options, checkpoints: Checkpoints, driver: nodes.Driver) -> None:
    """What every worker of a trial does. The first one reports."""
    nodes.prepare(driver, task.scenario)
    method, searches = sweep.configured(task.config), task.source == "search"
    row, model = run_trial(
        task.scenario,
        method,
        seed=task.seed,
        objective=sweep.protocol.objective,
        metrics=sweep.protocol.metrics,
        options=options,
        rungs=sweep.rungs(method) if searches else (),
        chooses_epochs=searches and bool(sweep.chosen),
        asks=searches and sweep.is_judged_at_rungs,
        report=for_all(lambda row: tune.report(_result(row))),
        checkpoints=checkpoints,
    )
    more = {}
    if task.projected and model is not None:
        with contextlib.suppress(Exception):  # a row is never lost for a picture
            compared = {**reference_models.load_models(task.scenario, options), "tuned": model}
            device, further = reference_models.default_device(), sweep.protocol.metrics
            loaded = reference_models.load(task.scenario, device, options, further)
            more["features"] = {"trial_id": task.confirms, **tsne(compared, loaded.data)}
    if Workers().rank == 0:
        tune.report(_result(row) | more)


def _result(row: Row) -> dict[str, Any]:
    """What Tune is told. In a dict it would find every number, and keep statistics of each."""
    return {"row": UserDict(row), "gpu": memory.share(reference_models.default_device())}


def blank_of(sweep: Sweep, task: Task, options: Options) -> Row:
    """Row of a trial that has not begun."""
    return blank_row(
        task.scenario,
        sweep.configured(task.config),
        seed=task.seed,
        objective=sweep.protocol.objective,
        metrics=sweep.protocol.metrics,
        options=options,
    )


def id_of_trial(name: str, number: int) -> str:
    """Name of a trial: the sweep's, and its number in it."""
    return f"{name}-{number:04d}"
