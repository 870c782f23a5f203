"""Experiment trackers that follow a sweep: TensorBoard, MLflow, Weights & Biases and an Optuna study. Off by default.

They are for looking. Rows stay the only state of a sweep: nothing is selected, resumed or reported from a tracker, and
what a tracker misses is missed there alone.
"""

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.air.constants import TRAINING_ITERATION
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback
from ray.tune.logger.tensorboardx import TBXLoggerCallback
from rich.console import Console

from raymu.errors import InputError
from raymu.scenario import content_hash

if TYPE_CHECKING:
    from raymu.sweep import Sweep

Row = Mapping[str, Any]
Distribution = FloatDistribution | IntDistribution

PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
STATES = {
    "completed": TrialState.COMPLETE,
    "diverged": TrialState.COMPLETE,  # a result: score 0
    "stopped": TrialState.PRUNED,
    "error": TrialState.FAIL,
}
SWEEP = "sweep"  # the tag or attribute that says whose trials a tracker holds
UPLOAD_TIMEOUT_S = 60  # for what Weights & Biases has not sent when the sweep ends


@dataclass(frozen=True)
class Trackers:
    """Where a sweep is followed, beside its rows.

    Attributes:
        tensorboard: a directory for event files, one directory a sweep and in it one a trial.
        mlflow: a tracking URI, such as sqlite:///mlflow.db or http://server:5000; a sweep is an experiment, a trial
            is a run.
        wandb: a project of Weights & Biases, whose account `wandb login` or `WANDB_API_KEY` gives; a sweep is a group.
        optuna: a database's URL, such as sqlite:///study.db; a sweep is a study, which optuna-dashboard opens.

    Raises:
        InputError: a package is missing, or what is given is no such URI or URL.
    """

    tensorboard: Path | None = None
    mlflow: str | None = None
    wandb: str | None = None
    optuna: str | None = None

    def __post_init__(self) -> None:
        for tracker, package in PACKAGES.items():
            if getattr(self, tracker) is not None and importlib.util.find_spec(package) is None:
                raise InputError(f"--{tracker} needs a package that is not installed: pip install {package}")
        if self.mlflow is not None and self.mlflow != "databricks" and urlsplit(self.mlflow).scheme in ("", "file"):
            raise InputError(
                f"--mlflow takes a URI such as sqlite:///mlflow.db, not {self.mlflow!r}: MLflow has given up"
                " directories"
            )
        if self.optuna is not None:
            from sqlalchemy.engine import make_url  # takes as long as Ray, and few ask for it
            from sqlalchemy.exc import ArgumentError

            try:
                make_url(self.optuna).get_dialect().import_dbapi()
            except ArgumentError as error:
                raise InputError(
                    f"--optuna takes a database's URL such as sqlite:///study.db, not {self.optuna!r}"
                ) from error
            except ImportError as error:
                raise InputError(
                    f"--optuna needs the database's driver, which is not installed: pip install {error.name}"
                ) from error


def callbacks(
    trackers: Trackers,
    sweep: "Sweep",
    name: str,
    space: Mapping[str, Distribution],
    done: Sequence[Row],
    begun: Iterable[str],
    describe: Callable[[Trial], tuple[str, Mapping[str, Any]]],
    is_over: Callable[[Trial], bool],
    console: Console,
) -> list["_Tracker"]:
    """What tells the trackers of a sweep's trials, for `tune.RunConfig`. Trials that ended while a tracker was away are
    told when it is set up; one that was interrupted goes on in the run it had.

    Of what a trial reports they read the `row` alone. A tracker that fails, or holds trials of another sweep, is
    dropped, with one line on the console.

    Args:
        name: of the sweep.
        space: the search space as Optuna knows it.
        done: the rows that the sweep has already.
        begun: the `trial_id` of every trial that was interrupted.
        describe: the `trial_id` that a trial's row will have, and its setting.
        is_over: whether a trial that failed has its row, or else is to begin again.
    """
    identity = content_hash(sweep.identity())
    tags = {"method": sweep.method.name(), "scenario": sweep.scenario.name, "head": sweep.head, "train": sweep.train}
    tags[SWEEP] = identity
    known = {row["trial_id"] for row in done} | set(begun)
    makers: dict[str, Callable[[], LoggerCallback]] = {}
    if (directory := trackers.tensorboard) is not None:
        directory = directory.expanduser() / name
        makers["tensorboard"] = lambda: _TensorBoard(directory, done, known)
    if (uri := trackers.mlflow) is not None:
        makers["mlflow"] = lambda: _mlflow(uri, name, tags, done, known)
    if (project := trackers.wandb) is not None:
        makers["wandb"] = lambda: _wandb(project, name, tags)
    if (url := trackers.optuna) is not None:
        widened = {key: _widened(search, sweep.published[key]) for key, search in space.items()}
        makers["optuna"] = lambda: _Study(url, name, widened, done, identity)

    def shown(trial: Trial, tracker: str) -> _Shown:
        trial_id, config = describe(trial)
        # Tune's own directory is deleted with the sweep's end.
        place = directory / trial_id if tracker == "tensorboard" and directory else Path(trial.local_path or "")
        return _Shown(f"{identity}-{trial_id.rpartition('-')[2]}", trial_id, _known(config), trial.last_result, place)

    return [_Tracker(tracker, make, shown, is_over, console) for tracker, make in makers.items()]


@dataclass(frozen=True)
class _Shown:
    """A trial as the trackers see it: what Ray's loggers and `_Study` read of Tune's.

    Attributes:
        trial_id: the same whenever the trial begins; of the sweep's identity and the trial's number.
        name: the `trial_id` of its row.
        config: its hyperparameters.
        last_result: what it reported last.
        directory: where a logger may write.
    """

    trial_id: str
    name: str
    config: dict[str, Any] = field(compare=False)
    last_result: dict[str, Any] = field(compare=False)
    directory: Path = field(compare=False)

    def __str__(self) -> str:
        return self.name

    @property
    def evaluated_params(self) -> dict[str, Any]:
        """The hyperparameters once more."""
        return self.config

    @property
    def local_path(self) -> str:
        """The directory as text."""
        return str(self.directory)

    def init_local_path(self) -> None:
        """Make the directory."""
        self.directory.mkdir(parents=True, exist_ok=True)


class _Tracker(tune.Callback):
    """Link from Tune to one tracker: it passes on numbers until the tracker fails. The tracker runs in a thread of its
    own, where Ctrl-C cannot end a write halfway and leave a database locked.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], LoggerCallback],
        shown: Callable[[Trial, str], _Shown],
        is_over: Callable[[Trial], bool],
        console: Console,
    ) -> None:
        self._name = name
        self._make = make
        self._shown = shown
        self._is_over = is_over
        self._console = console
        self._tracker: LoggerCallback | None = None
        self._is_open = False
        self._ended: set[str] = set()
        self._thread = ThreadPoolExecutor(1)

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        """Tune pickles its callbacks for a restore of its own, which raymu does not use."""
        return tune.Callback, ()

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Open the tracker, once: a sweep does before it computes anything, and Tune with every search."""
        if self._is_open:
            return
        self._is_open = True
        try:
            self._tracker = self._thread.submit(self._make).result()
        except Exception as error:
            self._drop(error)
        self._do(lambda tracker: tracker.setup())

    def close(self) -> None:
        """Let a tracker that has an `interrupt` say of trials which have not ended that they do not run any more."""
        self._do(lambda tracker: getattr(tracker, "interrupt", lambda: None)())

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._tell(trial, lambda tracker, shown: tracker.log_trial_start(shown))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        told = _told(result["row"])
        self._tell(trial, lambda tracker, shown: tracker.log_trial_result(iteration, shown, told))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial, failed=trial.last_result["row"]["status"] == "error")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self._is_over(trial):
            self._end(trial, failed=True)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._do(lambda tracker: tracker.on_experiment_end(trials))

    def _end(self, trial: Trial, *, failed: bool) -> None:
        self._tell(trial, lambda tracker, shown: tracker.log_trial_end(shown, failed=failed))
        self._ended.add(trial.trial_id)

    def _tell(self, trial: Trial, what: Callable[[LoggerCallback, Any], None]) -> None:
        """Nothing after a trial's end: its process may die after its last word, and Tune start another."""
        if trial.trial_id not in self._ended:
            self._do(lambda tracker: what(tracker, self._shown(trial, self._name)))

    def _do(self, what: Callable[[LoggerCallback], None]) -> None:
        if self._tracker is not None:
            try:
                self._thread.submit(what, self._tracker).result()
            except Exception as error:  # whatever a tracker raises: the sweep goes on
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        self._tracker = None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        self._console.print(
            f"warning: the sweep goes on without {self._name} ({reason})", markup=False, highlight=False, soft_wrap=True
        )


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}


def _numbers(row: Row) -> dict[str, float]:
    """What every tracker can draw of a row: its measurements."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


def _told(row: Row) -> dict[str, float]:
    return {**_numbers(row), TRAINING_ITERATION: row["epochs"]}


def _catch_up(logger: LoggerCallback, row: Row, directory: Path = Path()) -> None:
    """Tell a logger of a trial that has ended, all at once."""
    trial: Any = _Shown(row["trial_id"], row["trial_id"], _known(row["config"]), {"row": row}, directory)
    logger.log_trial_start(trial)
    for epoch, score in row["curve"][:-1]:
        logger.log_trial_result(0, trial, {"score": score, TRAINING_ITERATION: epoch})
    logger.log_trial_result(0, trial, _told(row))
    logger.log_trial_end(trial, failed=row["status"] == "error")


class _TensorBoard(TBXLoggerCallback):
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
                _catch_up(self, row, self._directory / row["trial_id"])


def _mlflow(uri: str, name: str, tags: Mapping[str, str], done: Sequence[Row], known: Container[str]) -> LoggerCallback:
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
                    _catch_up(self, row)

        def log_trial_start(self, trial: Any) -> None:
            if str(trial) in self._found and trial not in self._trial_runs:
                self._trial_runs[trial] = self._found[str(trial)].info.run_id
                self._client.update_run(self._trial_runs[trial], "RUNNING")
            super().log_trial_start(trial)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            """Ray's sends number by number: half a second a result, in which Tune waits."""
            now, step = int(1000 * time.time()), result[TRAINING_ITERATION]
            metrics = [Metric(key, float(value), now, step) for key, value in _numbers(result).items()]
            self._client.log_batch(self._trial_runs[trial], metrics)

        def interrupt(self) -> None:
            """End what has not ended, also of an earlier driver: MLflow would call it RUNNING for ever."""
            for run_id in {run.info.run_id for run in self._found.values()} | set(self._trial_runs.values()):
                if self._client.get_run(run_id).info.status == "RUNNING":
                    self._client.set_terminated(run_id, "KILLED")

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return Runs(uri, experiment_name=name, tags=dict(tags))


def _wandb(project: str, name: str, tags: Mapping[str, str]) -> LoggerCallback:
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(
        project,
        name,
        upload_timeout=UPLOAD_TIMEOUT_S,
        resume="allow",  # a trial that was interrupted goes on in its run
        tags=list(tags.values()),
        dir=os.environ.get("WANDB_DIR", os.getcwd()),  # Ray's actor would write into Tune's directory
    )


class _Study(LoggerCallback):
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
        row = {"config": trial.config, "curve": [], "wall_s": 0.0, **trial.last_result.get("row", {})}
        status = "error" if failed else row["status"]  # the last that a process said before it died may be "stopped"
        self._study.add_trial(_frozen({**row, "trial_id": str(trial), "status": status}, self._space))


def _frozen(row: Row, space: Mapping[str, Distribution]) -> FrozenTrial:
    """A row as a trial of Optuna. A value that the space cannot hold is a user attribute."""
    state = STATES[row["status"]]
    searched = {name: row["config"][name] for name in space}
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


def _widened(search: Distribution, published: float) -> Distribution:
    """The range that also holds the published value, where it can.

    The same range for every trial, since Optuna's importances leave out what was searched in several ranges.
    """
    if search.log and published <= 0:
        return search
    kind: Any = type(search)
    widened: Distribution = kind(min(search.low, published), max(search.high, published), log=search.log)
    return widened
