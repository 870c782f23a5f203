"""Schedulers, which stop hopeless trials early."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raymu.protocol import GRACE_EPOCHS, REDUCTION_FACTOR
from raymu.row import Row

EPOCH = "epoch"
SCORE = "score"


def scheduler(kind: str, longest: int, done: Iterable[Row]) -> TrialScheduler:
    """ASHA or the median rule, one that knows how the trials which are done compared; or none.

    Args:
        longest: epochs of the longest setting.
        done: the rows of this search so far.
    """
    if kind == "none":
        return FIFOScheduler()
    compared: dict[str, Any] = {"time_attr": EPOCH, "metric": SCORE, "mode": "max", "grace_period": GRACE_EPOCHS}
    if kind == "asha":
        asha = ASHAScheduler(
            max_t=max(longest, GRACE_EPOCHS),
            reduction_factor=REDUCTION_FACTOR,
            brackets=1,
            stop_last_trials=True,
            **compared,
        )
        return _Rungs(asha, done)
    median = MedianStoppingRule(
        min_samples_required=3,
        min_time_slice=math.inf,  # type: ignore[arg-type]  # it must not pause a trial, which would begin anew
        hard_stop=True,
        **compared,
    )
    return _Rungs(median, done)


class _Compared(NamedTuple):
    """All that a scheduler looks at of a trial."""

    trial_id: str


class _Rungs(FIFOScheduler):
    """Tells a scheduler of Tune of every trial at each of its rungs, once.

    What it is told comes from the curve of the row that a trial reports. So it also learns where a trial that goes on
    from a checkpoint stood before, and one that comes to a rung a second time, since its process died, goes on as it
    did the first time.
    """

    def __init__(self, judge: TrialScheduler, done: Iterable[Row]) -> None:
        super().__init__()
        self._judge: Any = judge
        self._told: dict[int, set[int]] = {}  # the rungs of every trial
        for row in done:
            self.tell(row["trial"], row["status"], row["curve"])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Row) -> str:
        """Whether the trial goes on."""
        row = result["row"]
        return self.tell(trial.config["task"].number, row["status"], row["curve"])

    def tell(self, number: int, status: str, curve: Sequence[tuple[int, float]]) -> str:
        """Tell of a trial as its row does, and return whether it goes on."""
        decision: str = TrialScheduler.CONTINUE
        trial = _Compared(str(number))
        if number not in self._told:
            self._told[number] = set()
            self._judge.on_trial_add(None, trial)
        # A completed trial's last score may be no rung's.
        for epoch, score in curve[:-1] if status == "completed" else curve:
            if epoch not in self._told[number]:
                self._told[number].add(epoch)
                decision = self._judge.on_trial_result(None, trial, {EPOCH: epoch, SCORE: score})
        return decision if status == "stopped" else TrialScheduler.CONTINUE
