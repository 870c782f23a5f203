"""Experiment trackers that follow a sweep: TensorBoard, MLflow, Weights & Biases and an Optuna study. Off by default.

They are for looking. Rows stay the only state of a sweep: nothing is selected, resumed or reported from a tracker, and
what a tracker misses is missed there alone.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback
from rich.console import Console

from raymu.errors import InputError, without_secrets
from raymu.results.identity import lasting
from raymu.values import content_hash, expanded

if TYPE_CHECKING:
    from raymu.tuning.sweep import Sweep
from raymu.row import Row
from raymu.tuning.trackers.base import SWEEP, Distribution, Shown, Tracker, known_values
from raymu.tuning.trackers.services import StudyTracker, TensorBoardTracker, mlflow_tracker, wandb_tracker, widened

NEEDED = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


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
        for tracker, package in NEEDED.items():
            if getattr(self, tracker) is not None and importlib.util.find_spec(package) is None:
                raise InputError(f"--{tracker} needs a package that is not installed: pip install {package}")
        if self.tensorboard is not None:
            object.__setattr__(self, "tensorboard", expanded(self.tensorboard))
        if self.mlflow is not None and self.mlflow != "databricks" and urlsplit(self.mlflow).scheme in ("", "file"):
            raise InputError(
                f"--mlflow takes a URI such as sqlite:///mlflow.db, not {without_secrets(self.mlflow)!r}: MLflow has"
                " given up directories"
            )
        if self.optuna is not None:
            from sqlalchemy.engine import make_url  # takes as long as Ray, and few ask for it
            from sqlalchemy.exc import ArgumentError

            try:
                make_url(self.optuna).get_dialect().import_dbapi()
            except (ArgumentError, ValueError):
                shown = without_secrets(self.optuna)
                raise InputError(f"--optuna takes a database's URL such as sqlite:///study.db, not {shown!r}") from None
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
) -> list["Tracker"]:
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
    identity = content_hash(lasting(sweep.identity()))  # it stays when the sweep grows
    tags = {"method": sweep.method.name(), "scenario": sweep.scenario.name, "head": sweep.head, "train": sweep.train}
    tags[SWEEP] = identity
    known = {row["trial_id"] for row in done} | set(begun)
    makers: dict[str, Callable[[], LoggerCallback]] = {}
    if (directory := trackers.tensorboard) is not None:
        directory = directory / name
        makers["tensorboard"] = lambda: TensorBoardTracker(directory, done, known)
    if (uri := trackers.mlflow) is not None:
        makers["mlflow"] = lambda: mlflow_tracker(uri, name, tags, done, known)
    if (project := trackers.wandb) is not None:
        makers["wandb"] = lambda: wandb_tracker(project, name, tags, done)
    if (url := trackers.optuna) is not None:
        wide = {key: widened(search, sweep.published[key]) for key, search in space.items()}
        makers["optuna"] = lambda: StudyTracker(url, name, wide, done, identity)

    def shown(trial: Trial, tracker: str) -> Shown:
        trial_id, config = describe(trial)
        # Tune's own directory is deleted with the sweep's end.
        place = directory / trial_id if tracker == "tensorboard" and directory else Path(trial.local_path or "")
        return Shown(trial_id, known_values(config), trial.last_result, place)

    return [Tracker(tracker, make, shown, is_over, console) for tracker, make in makers.items()]
