"""A tracker follows a sweep: what all of them have in common."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray import tune
from ray.air.constants import TRAINING_ITERATION
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback
from rich.console import Console

from raymu.errors import described, without_secrets
from raymu.row import Row

Distribution = FloatDistribution | IntDistribution
STATES = {
    "completed": TrialState.COMPLETE,
    "diverged": TrialState.COMPLETE,  # a result: score 0
    "stopped": TrialState.PRUNED,
    "error": TrialState.FAIL,
}
SWEEP = "sweep"  # the tag or attribute that says whose trials a tracker holds
END_TIMEOUT_S = 60  # for what a tracker has not taken when the searches end


@dataclass(frozen=True)
class Shown:
    """A trial as the trackers see it: what Ray's loggers and `StudyTracker` read of Tune's.

    Attributes:
        trial_id: the one of its row, the same whenever the trial begins.
        config: its hyperparameters.
        last_result: what it reported last.
        directory: where a logger may write.
    """

    trial_id: str
    config: dict[str, Any] = field(compare=False)
    last_result: dict[str, Any] = field(compare=False)
    directory: Path = field(compare=False)

    def __str__(self) -> str:
        return self.trial_id

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


class Tracker(tune.Callback):
    """Link from Tune to one tracker: it passes on numbers until the tracker fails. The tracker runs in its own thread,
    where no trial waits for it, and Ctrl-C cannot end a write halfway and leave a database locked.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], LoggerCallback],
        shown: Callable[[Trial, str], Shown],
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
        """Tune pickles its callbacks for its restore, which raymu does not use."""
        return tune.Callback, ()

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Open the tracker, once: a sweep does before it computes anything, and Tune with every search."""
        if self._is_open:
            return
        self._is_open = True
        self._thread.submit(self._open).result()

    def _open(self) -> None:
        try:
            tracker = self._make()
            tracker.setup()
            self._tracker = tracker
        except Exception as error:
            self._drop(error)

    def close(self) -> None:
        """Wait for the tracker, and let one that has an `interrupt` say of trials which have not ended that they do not
        run any more.
        """
        last = self._do(lambda tracker: getattr(tracker, "interrupt", lambda: None)())
        try:
            if wait_for([last], END_TIMEOUT_S).not_done:
                self._drop(TimeoutError(f"it has not taken everything within {END_TIMEOUT_S} s"))
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See tune.Callback."""
        self._tell(trial, lambda tracker, shown: tracker.log_trial_start(shown))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """See tune.Callback."""
        if result["row"]["status"] == "stopped":  # else its last row may still come
            self._log(iteration, trial, result["row"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See tune.Callback."""
        row = trial.last_result["row"]
        if row["status"] != "stopped":
            self._log(iteration, trial, row)
        self._end(trial, failed=row["status"] == "error")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See tune.Callback."""
        if self._is_over(trial):
            self._end(trial, failed=True)

    def _log(self, iteration: int, trial: Trial, row: Row) -> None:
        told = _told(row)
        self._tell(trial, lambda tracker, shown: tracker.log_trial_result(iteration, shown, told))

    def _end(self, trial: Trial, *, failed: bool) -> None:
        self._tell(trial, lambda tracker, shown: tracker.log_trial_end(shown, failed=failed))
        self._ended.add(trial.trial_id)

    def _tell(self, trial: Trial, what: Callable[[LoggerCallback, Any], None]) -> None:
        """Nothing after a trial's end: its process may die after its last word, and Tune start another."""
        if trial.trial_id not in self._ended:
            shown = self._shown(trial, self._name)
            self._do(lambda tracker: what(tracker, shown))

    def _do(self, what: Callable[[LoggerCallback], None]) -> Future[None]:
        return self._thread.submit(self._try, what)

    def _try(self, what: Callable[[LoggerCallback], None]) -> None:
        if self._tracker is not None:
            try:
                what(self._tracker)
            except Exception as error:  # whatever a tracker raises: the sweep goes on
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        self._tracker = None
        reason = " ".join(without_secrets(described(error)).split())
        self._console.print(
            f"warning: the sweep goes on without {self._name} ({reason})", markup=False, highlight=False, soft_wrap=True
        )


def known_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Setting without the hyperparameters that are None."""
    return {name: value for name, value in config.items() if value is not None}


def measurements(row: Row) -> dict[str, float]:
    """What every tracker can draw of a row: its measurements."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


def _told(row: Row) -> dict[str, float]:
    return {**measurements(row), TRAINING_ITERATION: last_epoch(row)}


def last_epoch(row: Row) -> int:
    """The last epoch of a trial, which may have chosen an earlier one as its end."""
    return int(max([row["epochs"], *(epoch for epoch, _ in row["curve"])]))


def catch_up(logger: LoggerCallback, row: Row, directory: Path = Path()) -> None:
    """Tell a logger of a trial that has ended, all at once."""
    trial: Any = Shown(row["trial_id"], known_values(row["config"]), {"row": row}, directory)
    logger.log_trial_start(trial)
    last = last_epoch(row)
    for epoch, score in row["curve"]:
        if epoch < last:
            logger.log_trial_result(0, trial, {"score": score, TRAINING_ITERATION: epoch})
    logger.log_trial_result(0, trial, _told(row))
    logger.log_trial_end(trial, failed=row["status"] == "error")
