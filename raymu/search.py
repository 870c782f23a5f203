"""What is tried next, and what is stopped: the searchers and schedulers of a protocol, as Ray Tune takes them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState, create_trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raymu.method import Range
from raymu.objective import PARETO, pair
from raymu.protocol import GRACE_EPOCHS, REDUCTION_FACTOR, Protocol

Row = dict[str, Any]
Setting = Mapping[str, Any]

SCORE = "score"
RUNG_SCORE = "rung_score"  # what schedulers compare: the cheap probe's, in a result that is not a trial's last
PAIR = ("retain", "forgotten")  # what a search under `pareto` maximises
GENERATIONS = 4  # at least, of nsga2


def targets(row: Row) -> dict[str, float]:
    """What a searcher learns of a row, by the names it is told."""
    if row["status"] in ("diverged", "error"):
        return {SCORE: 0.0, **dict.fromkeys(PAIR, 0.0)}
    return {SCORE: row["score"], **dict(zip(PAIR, pair(row), strict=True))}


class Listed(Searcher):
    """Trials that are known before, one after the other.

    Args:
        tasks: what to try.
        is_spent: whether the budget is, so that no trial may begin any more.
    """

    def __init__(self, tasks: Iterable[Any], is_spent: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._tasks = list(tasks)
        self._is_spent = is_spent

    def suggest(self, trial_id: str) -> Any:
        """The next task, if there is one."""
        return Searcher.FINISHED if self._is_spent() or not self._tasks else {"task": self._tasks.pop(0)}

    def on_trial_complete(self, trial_id: str, result: Row | None = None, error: bool = False) -> None:
        """Nothing is learnt."""

    def save(self, checkpoint_path: str) -> None:
        """Rows are the only state of a sweep; Tune wants a file."""
        Path(checkpoint_path).touch()


class Adaptive(OptunaSearch):
    """TPE or NSGA-II, for which a trial that was stopped is worse than any that was not.

    Its score says no more than that: it is the cheap probe's, which reads less, and so looks better.

    Args:
        ranges: the search space.
        published: the setting to try first, unless it is done.
        numbers: of the trials to come, in this order.
        task: makes what is tried of number and setting.
        done: the rows of this search so far.
        is_spent: whether the budget is, so that no trial may begin any more.
    """

    def __init__(
        self,
        protocol: Protocol,
        seed: int,
        ranges: Mapping[str, Range],
        published: Setting,
        numbers: Sequence[int],
        task: Callable[[int, Setting], Any],
        done: Sequence[Row],
        is_spent: Callable[[], bool],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        several = protocol.objective == PARETO
        first = {name: published[name] for name in ranges}
        super().__init__(
            space={name: distribution(search) for name, search in ranges.items()},
            metric=list(PAIR) if several else SCORE,
            mode=["max"] * len(PAIR) if several else "max",
            # A resumed search must not draw again what it drew before.
            sampler=_sampler(protocol, seed + len(done)),
            points_to_evaluate=[] if any(row["source"] == "published" for row in done) else [first],
        )
        self._numbers, self._task, self._is_spent = iter(numbers), task, is_spent
        for row in done:
            self._learn(row, ranges, several)

    def _learn(self, row: Row, ranges: Mapping[str, Range], several: bool) -> None:
        """Take in a trial of an earlier run."""
        setting = {name: row["config"][name] for name in ranges}
        if row["status"] == "error" or not all(value in ranges[name] for name, value in setting.items()):
            return
        stopped, learnt = row["status"] == "stopped", targets(row)
        assert self._ot_study is not None
        self._ot_study.add_trial(
            create_trial(
                state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
                values=None if stopped else [learnt[name] for name in (PAIR if several else (SCORE,))],
                params=setting,
                distributions={name: distribution(search) for name, search in ranges.items()},
                intermediate_values={} if several else dict(enumerate((score for _, score in row["curve"]), start=1)),
            )
        )

    def suggest(self, trial_id: str) -> Any:
        """The next task, if the budget allows one."""
        number = None if self._is_spent() else next(self._numbers, None)
        if number is None:
            return Searcher.FINISHED
        return {"task": self._task(number, super().suggest(trial_id) or {})}

    def on_trial_complete(self, trial_id: str, result: Row | None = None, error: bool = False) -> None:
        """Learn from a trial's end."""
        stopped = result is not None and result["row/status"] == "stopped"
        super().on_trial_complete(trial_id, None if stopped else result, error)

    def save(self, checkpoint_path: str) -> None:
        """Rows are the only state of a sweep; Tune wants a file."""
        Path(checkpoint_path).touch()


def _sampler(protocol: Protocol, seed: int) -> BaseSampler:
    if protocol.searcher == "nsga2":
        return NSGAIISampler(population_size=max(4, protocol.trials // GENERATIONS), seed=seed)
    return TPESampler(seed=seed)


def distribution(search: Range) -> FloatDistribution | IntDistribution:
    """A range as Optuna knows it."""
    if search.scale == "int":
        return IntDistribution(int(search.low), int(search.high))
    return FloatDistribution(search.low, search.high, log=search.scale == "log")


def scheduler(kind: str, longest: int, done: Iterable[Row]) -> TrialScheduler:
    """ASHA or the median rule, one that knows how the trials which are done compared; or none.

    Args:
        longest: epochs of the longest setting.
        done: the rows of this search so far.
    """
    if kind == "none":
        return FIFOScheduler()
    chosen: TrialScheduler
    if kind == "asha":
        chosen = ASHAScheduler(
            time_attr="epoch",
            metric=RUNG_SCORE,
            mode="max",
            max_t=max(longest, GRACE_EPOCHS),
            grace_period=GRACE_EPOCHS,
            reduction_factor=REDUCTION_FACTOR,
        )
    else:
        chosen = _MedianRule(
            time_attr="epoch",
            metric=RUNG_SCORE,
            mode="max",
            grace_period=GRACE_EPOCHS,
            min_time_slice=math.inf,  # type: ignore[arg-type] # it must not pause a trial, which would begin anew
        )
    for row in done:
        if row["source"] == "search":
            trial: Any = _Done(row["trial_id"])
            controller: Any = None
            chosen.on_trial_add(controller, trial)
            at_rungs = row["curve"] if row["status"] == "stopped" else row["curve"][:-1]
            for epoch, score in at_rungs:
                chosen.on_trial_result(controller, trial, {"epoch": epoch, RUNG_SCORE: score})
    return chosen


class _Done(NamedTuple):
    """All that a scheduler looks at of a trial."""

    trial_id: str


class _MedianRule(MedianStoppingRule):
    def on_trial_complete(self, *arguments: Any) -> None:
        """A trial's last result is the strong probe's, which does not compare."""
