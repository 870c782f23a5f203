"""A tracker follows a sweep: what all of them have in common."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray import tune
from ray.air.constants import TRAINING_ITERATION
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback
from rich.console import Console

from raymu.row import Row

if TYPE_CHECKING:
    pass


Distribution = FloatDistribution | IntDistribution
STATES = {
    "completed": TrialState.COMPLETE,
    "diverged": TrialState.COMPLETE,  # a result: score 0
    "stopped": TrialState.PRUNED,
    "error": TrialState.FAIL,
}
SWEEP = "sweep"  # the tag or attribute that says whose trials a tracker holds


@dataclass(frozen=True)
class Shown:
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


class Tracker(tune.Callback):
    """Link from Tune to one tracker: it passes on numbers until the tracker fails. The tracker runs in a thread of its
    own, where Ctrl-C cannot end a write halfway and leave a database locked.
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
        try:
            self._tracker = self._thread.submit(self._make).result()
        except Exception as error:
            self._drop(error)
        self._do(lambda tracker: tracker.setup())

    def close(self) -> None:
        """Let a tracker that has an `interrupt` say of trials which have not ended that they do not run any more."""
        self._do(lambda tracker: getattr(tracker, "interrupt", lambda: None)())

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See tune.Callback."""
        self._tell(trial, lambda tracker, shown: tracker.log_trial_start(shown))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """See tune.Callback."""
        told = _told(result["row"])
        self._tell(trial, lambda tracker, shown: tracker.log_trial_result(iteration, shown, told))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See tune.Callback."""
        self._end(trial, failed=trial.last_result["row"]["status"] == "error")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See tune.Callback."""
        if self._is_over(trial):
            self._end(trial, failed=True)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """See tune.Callback."""
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


def known_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Setting without the hyperparameters that are None."""
    return {name: value for name, value in config.items() if value is not None}


def measurements(row: Row) -> dict[str, float]:
    """What every tracker can draw of a row: its measurements."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


def _told(row: Row) -> dict[str, float]:
    return {**measurements(row), TRAINING_ITERATION: row["epochs"]}


def catch_up(logger: LoggerCallback, row: Row, directory: Path = Path()) -> None:
    """Tell a logger of a trial that has ended, all at once."""
    trial: Any = Shown(row["trial_id"], row["trial_id"], known_values(row["config"]), {"row": row}, directory)
    logger.log_trial_start(trial)
    for epoch, score in row["curve"][:-1]:
        logger.log_trial_result(0, trial, {"score": score, TRAINING_ITERATION: epoch})
    logger.log_trial_result(0, trial, _told(row))
    logger.log_trial_end(trial, failed=row["status"] == "error")
