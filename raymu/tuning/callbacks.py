"""What the driver does when a trial of Ray Tune begins, ends, or has failed and is tried again."""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from raymu.distributed.retries import Failure, Retries
from raymu.distributed.watch import Watch
from raymu.engines import Options
from raymu.errors import NodeError
from raymu.results import files, writer
from raymu.results.selection import is_best
from raymu.row import InSweep, Row
from raymu.tuning.process import blank_of, checkpoints_of, id_of_trial
from raymu.tuning.progress import SweepProgress
from raymu.tuning.queue import Queue
from raymu.tuning.sweep import Sweep, Task

NODE_ERROR = re.compile(rf"^{NodeError.__module__}\.{NodeError.__name__}: (.*)$", re.MULTILINE)  # in a traceback


class Ended(BaseException):
    """What ends the sweep, on its way out of Tune, which would take an Exception for the trial's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def or_end() -> Iterator[None]:
    """End the sweep where the body fails, as where rows cannot be stored."""
    try:
        yield
    except Exception as error:
        raise Ended(error) from error


class Recorder(tune.Callback):
    """Writes a row when a trial ends, lets one that failed be tried again, and tells the progress display.

    Args:
        searched_s: seconds that the search has run, all resumptions together; None: the trials confirm.
        expected: returns a row's `expected_score`.

    Attributes:
        gpu: the share of its GPU's memory that was taken when the last trial ended; None without a GPU.
    """

    gpu: float | None = None

    def __init__(
        self,
        sweep: Sweep,
        rows: writer.Store,
        options: Options,
        progress: SweepProgress,
        done: list[Row],
        retries: Retries,
        queue: Queue,
        watch: Watch,
        searched_s: Callable[[], float | None],
        expected: Callable[[Row], float | None],
    ) -> None:
        self._sweep, self._rows, self._options, self._progress, self._done = sweep, rows, options, progress, done
        self._retries, self._queue, self._watch = retries, queue, watch
        self._searched_s, self._expected = searched_s, expected

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        """Tune pickles its callbacks for its restore, which raymu does not use."""
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See tune.Callback."""
        self._progress.started(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See tune.Callback."""
        if "features" in trial.last_result:
            with or_end():
                self._rows.put(files.FEATURES, trial.last_result["features"])
        self.gpu = trial.last_result["gpu"]
        self._record(trial, trial.last_result["row"].data)

    def is_no_best(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether a trial that has completed on validation ends here, unread on test, for `tune.RunConfig`.

        It is compared with trials before it alone: the best of the first trials of a search is always measured, as a
        ranking beside a shorter search needs.
        """
        if result["row"]["status"] != "completed" or result["row"]["test_score"] is not None:
            return False
        row = self._in_sweep(result["config"]["task"], result["row"].data)
        try:
            row["expected_score"] = self._expected(row)
        except Exception:  # it ends the sweep once the row is kept
            return False
        return not is_best(row, (one for one in self._done if one["trial"] < row["trial"]))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Only a trial comes here whose process died or whose machine failed; what a method raises is in its row."""
        task: Task = trial.config["task"]
        if task.number not in self._retries:
            return  # the process died after its last word
        text = Path(trial.error_file or os.devnull).read_text()
        if unfit := NODE_ERROR.search(text):
            raise Ended(NodeError(unfit[1]))
        reason = self._watch.reason(id_of_trial(self._rows.name, task.number))
        failure = Failure("ended", reason) if reason else Failure.of(text)
        with or_end():
            pause = self._retries.fail(task.number, failure)
        if pause is not None:
            self._progress.failed(trial.trial_id)
            self._queue.again(task, pause)
            return
        row = blank_of(self._sweep, task, self._options)
        error = f"{failure}; tried {self._retries[task.number].begun} times"
        self._record(trial, row | {"status": "error", "error": error, "traceback": failure.text})

    def _record(self, trial: Trial, row: Row) -> None:
        task: Task = trial.config["task"]
        row = self._in_sweep(task, row)
        try:
            with or_end():
                row["expected_score"] = self._expected(row)
        finally:  # whatever the searcher does with it, the row is kept
            self._done.append(row)
            with or_end():
                self._rows.append(row)
                self._retries.end(task.number)
            checkpoints_of(self._rows.directory, task.number).clear()
            self._progress.ended(trial.trial_id, row)

    def _in_sweep(self, task: Task, row: Row) -> Row:
        """The row with what a sweep adds."""
        sweep = self._sweep
        published = sweep.method.published_as(sweep.scenario, sweep.head, sweep.train, row["config"])
        added = InSweep(
            trial_id=id_of_trial(self._rows.name, task.number),
            sweep=self._rows.name,
            trial=task.number,
            source=task.source,
            search_seed=task.search_seed,
            confirms=task.confirms,
            protocol_hash=sweep.protocol_hash,
            published=published,
            fallback=published is None and row["config"] == sweep.published,
            restarts=self._retries[task.number].begun - 1,
            ended_s=time.time(),
            expected_gain=task.expected_gain,
            search_s=self._searched_s(),
        )
        return dataclasses.asdict(added) | row
