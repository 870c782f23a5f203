"""TensorBoard, MLflow, Weights & Biases and Optuna studies as trackers."""

import logging
import os
import time
from collections.abc import Container, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from ray.air.constants import TRAINING_ITERATION
from ray.tune.logger import LoggerCallback
from ray.tune.logger.tensorboardx import TBXLoggerCallback

from raymu.row import Row
from raymu.tuning.trackers.base import STATES, SWEEP, Distribution, catch_up, last_epoch, measurements

ENDED = "raymu-ended"  # a file beside those of a run of Weights & Biases that is complete


class TensorBoardTracker(TBXLoggerCallback):
    """Every trial has one directory."""

    def __init__(self, directory: Path, done: Sequence[Row], known: Container[str]) -> None:
        super().__init__()
        self._directory, self._done, self._known = directory, done, known

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Add what is missing.

        Raises:
            ValueError: the directory holds trials of another sweep.
        """
        there = {path.name for path in self._directory.glob("*/")}
        if not all(name in self._known for name in there):
            raise ValueError(f"{self._directory} holds trials of another sweep; choose another --tensorboard or --name")
        for row in self._done:
            if row["trial_id"] not in there:
                catch_up(self, row, self._directory / row["trial_id"])


def mlflow_tracker(
    uri: str, name: str, tags: Mapping[str, str], done: Sequence[Row], known: Container[str]
) -> LoggerCallback:
    """MLflow: a sweep is an experiment, a trial is a run."""
    # MLflow by itself tries for minutes, in which no trial would start.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    # Imported here, since they take seconds.
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Runs(MLflowLoggerCallback):
        """Every trial has one run, whatever interrupts it."""

        def setup(self, *arguments: Any, **info: Any) -> None:
            """Look which runs are there, and add what is missing.

            Raises:
                ValueError: the experiment holds runs of another sweep.
            """
            super().setup()
            self._client = MlflowClient(uri)
            self._found: dict[str, Run] = {}
            experiment, page = self._client.get_experiment_by_name(name), None
            while experiment is not None and (page is None or page.token):
                page = self._client.search_runs([experiment.experiment_id], page_token=page.token if page else None)
                self._found |= {run.data.tags.get("trial_name", ""): run for run in page}
            for trial_name, run in self._found.items():
                if run.data.tags.get(SWEEP) != tags[SWEEP] or trial_name not in known:
                    raise ValueError(
                        f"experiment {name!r} holds runs of another sweep; choose another --mlflow or --name"
                    )
            for row in done:
                told = self._found.get(row["trial_id"])
                if told is None or told.info.status not in ("FINISHED", "FAILED"):
                    catch_up(self, row)

        def log_trial_start(self, trial: Any) -> None:
            if str(trial) in self._found and trial not in self._trial_runs:
                self._trial_runs[trial] = self._found[str(trial)].info.run_id
                self._client.update_run(self._trial_runs[trial], "RUNNING")
            super().log_trial_start(trial)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            """Ray's sends number by number: half a second a result, in which Tune waits."""
            now, step = int(1000 * time.time()), result[TRAINING_ITERATION]
            metrics = [Metric(key, float(value), now, step) for key, value in measurements(result).items()]
            self._client.log_batch(self._trial_runs[trial], metrics)

        def log_trial_end(self, trial: Any, failed: bool = False) -> None:
            """End its run. A trial that was interrupted may end at an earlier epoch than it had reached: then its run
            is replaced, since MLflow shows the values of the latest epoch.
            """
            row, run_id = trial.last_result.get("row"), self._trial_runs[trial]
            if row and self._client.get_run(run_id).data.metrics.get(TRAINING_ITERATION, 0) > last_epoch(row):
                self._client.delete_run(run_id)
                self._found.pop(str(trial), None)
                del self._trial_runs[trial]
                catch_up(self, row)
            super().log_trial_end(trial, failed)

        def interrupt(self) -> None:
            """End what has not ended, also of an earlier driver: MLflow would call it RUNNING for ever."""
            for run_id in {run.info.run_id for run in self._found.values()} | set(self._trial_runs.values()):
                if self._client.get_run(run_id).info.status == "RUNNING":
                    self._client.set_terminated(run_id, "KILLED")

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return Runs(uri, experiment_name=name, tags=dict(tags))


def wandb_tracker(project: str, name: str, tags: Mapping[str, str], done: Sequence[Row]) -> LoggerCallback:
    """Weights & Biases: a sweep is a group, a trial is a run."""
    import wandb

    class Runs(LoggerCallback):
        """Every trial has one run, whatever interrupts it. Ray's logger starts an actor a trial, which may die with the
        driver before it has begun.
        """

        def __init__(self) -> None:
            self._runs: dict[str, wandb.Run] = {}  # by the id of the trial; those that have not ended

        def setup(self, *arguments: Any, **info: Any) -> None:
            """Add what is missing, by the files that Weights & Biases keeps of each run.

            Raises:
                ValueError: nobody has logged in.
            """
            settings = wandb.setup().settings
            if settings.mode == "online" and not wandb.login(prompt=False):
                raise ValueError("no API key: wandb login, or WANDB_API_KEY")
            ended = {path.parent.name for path in Path(settings.wandb_dir).glob(f"*run-*/{ENDED}")}
            for row in done:
                if not any(one.endswith(self._id(row["trial_id"])) for one in ended):
                    catch_up(self, row)

        def _id(self, trial_id: str) -> str:
            """Id of a run: `wandb sync` puts what has one id into one run."""
            return f"{tags[SWEEP]}-{trial_id.rpartition('-')[2]}"

        def log_trial_start(self, trial: Any) -> None:
            """Begin its run, or go on with it."""
            if str(trial) not in self._runs:
                self._runs[str(trial)] = wandb.init(
                    project=project,
                    group=name,
                    id=self._id(str(trial)),
                    name=str(trial),
                    config=trial.config,
                    tags=list(tags.values()),
                    resume="allow",
                    reinit="create_new",  # several runs at once
                    # The driver's output and load are not the trial's.
                    settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
                )
                # As its own step a smaller epoch than the last would be dropped.
                self._runs[str(trial)].define_metric("*", step_metric=TRAINING_ITERATION)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            """Log measurements."""
            self._runs[str(trial)].log(measurements(result))

        def log_trial_end(self, trial: Any, failed: bool = False) -> None:
            """End its run, and note that it has everything."""
            run = self._runs.pop(str(trial))
            run.finish(exit_code=int(failed))
            (Path(run.settings.sync_dir) / ENDED).touch()

        def interrupt(self) -> None:
            """End the runs of trials that have not ended; they are called preempted."""
            for run in self._runs.values():
                run.mark_preempting()
                run.finish(exit_code=1)

    return Runs()


class StudyTracker(LoggerCallback):
    """Adds every trial that has ended to a study of Optuna, whatever the searcher, each once."""

    def __init__(
        self, url: str, name: str, space: Mapping[str, Distribution], done: Sequence[Row], identity: str
    ) -> None:
        self._url = url
        self._name = name
        self._space = space
        self._done = done
        self._identity = identity

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Open the study and add what it lacks.

        Raises:
            ValueError: it does not maximise one value, or holds trials of another sweep.
        """
        self._study = optuna.create_study(
            storage=self._url, study_name=self._name, direction="maximize", load_if_exists=True
        )
        advice = "choose another --optuna or --name"
        if self._study.directions != [StudyDirection.MAXIMIZE]:
            found = ", ".join(direction.name.lower() for direction in self._study.directions)
            raise ValueError(f"study {self._name!r} is to {found}, not to maximize one value; {advice}")
        there = {trial.user_attrs.get("trial_id") for trial in self._study.trials}
        of_others = there - {row["trial_id"] for row in self._done}
        if of_others or self._study.user_attrs.get(SWEEP, self._identity) != self._identity:
            raise ValueError(f"study {self._name!r} holds trials of another sweep; {advice}")
        for trial in self._study.trials:
            for name, search in trial.distributions.items():
                if search != self._space.get(name):
                    raise ValueError(
                        f"study {self._name!r} has {name} as {search}, not {self._space.get(name)}; {advice}"
                    )
        self._study.set_user_attr(SWEEP, self._identity)
        for row in self._done:
            if row["trial_id"] not in there:
                self._study.add_trial(_frozen(row, self._space))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Enter a trial that has ended."""
        row = {"config": trial.config, "curve": [], "wall_s": 0.0, **trial.last_result.get("row", {})}
        status = "error" if failed else row["status"]  # the last that a process said before it died may be "stopped"
        self._study.add_trial(_frozen({**row, "trial_id": str(trial), "status": status}, self._space))


def _frozen(row: Row, space: Mapping[str, Distribution]) -> FrozenTrial:
    """A row as a trial of Optuna. A value that the space cannot hold is a user attribute."""
    state = STATES[row["status"]]
    searched = {name: row["config"][name] for name in space if name in row["config"]}
    inside = {name: value for name, value in searched.items() if space[name].low <= value <= space[name].high}
    attributes = {key: row[key] for key in row if key.startswith("test_") and key.endswith("_acc")}
    trial = optuna.trial.create_trial(
        state=state,
        value=None if state == TrialState.FAIL else row["score"],
        params=inside,
        distributions={name: space[name] for name in inside},
        user_attrs={
            "trial_id": row["trial_id"],
            "status": row["status"],
            **{
                key: value
                for key, value in {**attributes, **searched}.items()
                if value is not None and key not in inside
            },
        },
        intermediate_values=dict(row["curve"]),
    )
    trial.datetime_complete = datetime.fromtimestamp(row["ended_s"]) if "ended_s" in row else datetime.now()
    trial.datetime_start = trial.datetime_complete - timedelta(seconds=row["wall_s"])
    return trial


def widened(search: Distribution, published: float) -> Distribution:
    """The range that also holds the published value, where it can.

    The same range for every trial, since Optuna's importances leave out what was searched in several ranges.
    """
    if search.log and published <= 0:
        return search
    kind: Any = type(search)
    widened: Distribution = kind(min(search.low, published), max(search.high, published), log=search.log)
    return widened
