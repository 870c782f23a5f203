"""What is tried next, and what is stopped: the searchers and schedulers of a protocol, as Ray Tune takes them.

Both know a sweep by its rows alone, whichever process or node ran a trial and however often, so that a sweep which was
interrupted goes on as it would have.
"""

import functools
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import NSGAIISampler, TPESampler
from optuna.samplers.nsgaii import UniformCrossover
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from raymu.design import design
from raymu.method import Range
from raymu.objective import PARETO, pair
from raymu.protocol import ADAPTIVE, GRACE_EPOCHS, REDUCTION_FACTOR, Protocol
from raymu.scenario import content_hash

Row = dict[str, Any]
Setting = Mapping[str, Any]

EPOCH = "epoch"
SCORE = "score"
GENERATIONS = 4  # at least, of nsga2
RECENT = 25  # trials that tpe weighs in full

# The example of `suggestions` and `decisions`: a range of every scale, and enough trials for every rule of tpe.
EXAMPLE = {"log": Range(1e-5, 1e-1, "log"), "linear": Range(0.0, 2.0, "linear"), "int": Range(1, 10, "int")}
EXAMPLE_TRIALS = 40
EXAMPLE_ROWS = (3, 12, 45, 300)  # known before a suggestion
EXAMPLE_DIGITS = 6  # the last ones differ between CPUs


class Queue(Searcher):
    """Trials one after the other, and again those that failed.

    Args:
        numbers: of the trials, in this order.
        task: makes what is run of a number, once its turn has come; it has that `number`.
        is_spent: whether the budget is, so that the trial of a number may not begin any more.
    """

    def __init__(
        self, numbers: Iterable[int], task: Callable[[int], Any], is_spent: Callable[[int], bool] = lambda _: False
    ) -> None:
        super().__init__()
        self._numbers, self._task, self._is_spent = deque(numbers), task, is_spent
        self._running: set[str] = set()
        self._failed: list[tuple[float, Any]] = []  # when it may begin again, and what

    def __reduce__(self) -> tuple[type[Searcher], tuple[()]]:
        """Tune pickles its searcher for a restore of its own, which raymu does not use."""
        return Searcher, ()

    def suggest(self, trial_id: str) -> Any:
        """The next task; None as long as one that runs may fail and come back."""
        now = time.monotonic()
        ready = next((entry for entry in self._failed if entry[0] <= now), None)
        if ready is not None:
            self._failed.remove(ready)
            task = ready[1]
        elif self._numbers and not self._is_spent(self._numbers[0]):
            task = self._task(self._numbers.popleft())
        else:
            return None if self._failed or self._running else Searcher.FINISHED
        self._running.add(trial_id)
        return {"task": task}

    def again(self, task: Any, pause_s: float) -> None:
        """Let a task that failed begin again after so many seconds."""
        self._failed.append((time.monotonic() + pause_s, task))

    def on_trial_complete(self, trial_id: str, result: Row | None = None, error: bool = False) -> None:
        """Nothing is learnt: what is suggested next depends on rows."""
        self._running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Rows are the only state of a sweep; Tune wants a file."""
        Path(checkpoint_path).touch()


class Learner:
    """What TPE or NSGA-II knows of a search, and tries next.

    It learns from rows in the order in which they ended. A suggestion depends on these, the arguments and its number
    alone, whether the rows came one by one or all at once.

    Args:
        seed: of the search.
        ranges: the search space.
        done: the rows of this search so far; those that are appended later are learnt, too.

    Attributes:
        study: the same in Optuna's terms.
    """

    def __init__(self, protocol: Protocol, seed: int, ranges: Mapping[str, Range], done: Sequence[Row]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._seed, self._ranges, self._done, self._read = seed, ranges, done, 0
        self._space: dict[str, Any] = {name: distribution(search) for name, search in ranges.items()}
        self._several, self._is_genetic = protocol.objective == PARETO, protocol.searcher == "nsga2"
        self._population = max(4, protocol.trials // GENERATIONS)
        self._learnt = 0
        self.study = optuna.create_study(directions=["maximize"] * (2 if self._several else 1))

    def suggest(self, number: int) -> Setting:
        """A setting for the trial of this number."""
        new = self._done[self._read :]
        self._read += len(new)
        for row in new:
            self._learn(row)
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        self.study.sampler = _nsga2(seed, self._population) if self._is_genetic else _tpe(seed, self._several)
        asked = self.study.ask(self._space)
        self.study.tell(asked, state=TrialState.FAIL)  # no searcher looks at it any more: it is learnt from its row
        return asked.params

    def _learn(self, row: Row) -> None:
        """Enter a row, unless its setting lies outside the space, as the published one may, or it is an error, which
        says nothing of a setting.

        A trial that was stopped ranks below every one that was not: its score, by another probe and after fewer
        epochs, does not compare with theirs, and among the trials with which it does compare it was behind.
        """
        if row["status"] == "error" or any(row["config"][name] not in search for name, search in self._ranges.items()):
            return
        stopped, lost = row["status"] == "stopped", row["status"] == "diverged"
        values = [0.0, 0.0] if lost else list(pair(row)) if self._several else [row["score"]]
        generation = {_NSGAII._get_generation_key(): self._learnt // self._population}
        self.study.add_trial(
            create_trial(
                state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
                values=None if stopped else values[: 2 if self._several else 1],
                params={name: row["config"][name] for name in self._ranges},
                distributions=self._space,
                intermediate_values={} if self._several else {n: score for n, (_, score) in enumerate(row["curve"], 1)},
                system_attrs=generation if self._is_genetic else {},
            )
        )
        self._learnt += 1


class _NSGAII(NSGAIISampler):
    """Its parents come in the order of their trials, as a study gives them from its cache from the second time on."""

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda parent: parent.number)


def _tpe(seed: int, several: bool) -> TPESampler:
    """TPE with every argument spelt out: Optuna's defaults change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna 4 calls some of these experimental, Optuna 5 others deprecated
        return TPESampler(
            consider_prior=True,
            prior_weight=1.0,
            consider_magic_clip=True,
            consider_endpoints=False,
            n_startup_trials=10,
            n_ei_candidates=24,
            gamma=_best_tenth if several else _best_tenth_of_few,
            weights=_recent_first,
            seed=seed,
            multivariate=not several,
            group=False,
            warn_independent_sampling=False,
            constant_liar=False,  # no trial is running: a suggestion depends on rows
            constraints_func=None,
        )


def _best_tenth(trials: int) -> int:
    return math.ceil(trials / 10)


def _best_tenth_of_few(trials: int) -> int:
    return min(_best_tenth(trials), RECENT)


def _recent_first(trials: int) -> NDArray[np.float64]:
    """Weights of trials, oldest first (Bergstra et al., ICML 2013)."""
    older = max(trials - RECENT, 0)
    return np.concatenate([np.linspace(1 / max(trials, 1), 1, older), np.ones(trials - older)])


def _nsga2(seed: int, population: int) -> _NSGAII:
    """NSGA-II (Deb et al., IEEE TEC 2002) with every argument spelt out that Optuna 4 has, too: Optuna 5 adds
    `mutation`, by default a new value from the whole range, as in Optuna 4.
    """
    return _NSGAII(
        population_size=population,
        mutation_prob=None,  # one hyperparameter a child, on average
        crossover=UniformCrossover(swapping_prob=0.5),
        crossover_prob=0.9,
        swapping_prob=0.5,
        seed=seed,
        constraints_func=None,
        elite_population_selection_strategy=None,
        child_generation_strategy=None,
        after_trial_strategy=None,
    )


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
        # A completed trial's last score is the strong probe's, which does not compare.
        for epoch, score in curve[:-1] if status == "completed" else curve:
            if epoch not in self._told[number]:
                self._told[number].add(epoch)
                decision = self._judge.on_trial_result(None, trial, {EPOCH: epoch, SCORE: score})
        return decision if status == "stopped" else TrialScheduler.CONTINUE


@functools.cache
def suggestions(searcher: str, several: bool) -> str:
    """12 hex digits of what a searcher suggests in a fixed example: the same for two versions of Optuna, NumPy or SciPy
    where these suggest the same, whatever they are called.

    Args:
        several: whether the objective is `pareto`.
    """
    if searcher not in ADAPTIVE:
        suggested = design(EXAMPLE, searcher, EXAMPLE_TRIALS, seed=0)
    else:
        # All that a learner reads of a protocol; a whole one would ask for these suggestions.
        asked: Any = SimpleNamespace(searcher=searcher, objective=PARETO if several else "hmean", trials=EXAMPLE_TRIALS)
        done: list[Row] = []
        learner = Learner(asked, 0, EXAMPLE, done)
        suggested = []
        for known in EXAMPLE_ROWS:
            done += map(_example, range(len(done), known))
            suggested += [dict(learner.suggest(number)) for number in range(known, known + 3)]
    return content_hash([[f"{value:.{EXAMPLE_DIGITS}g}" for value in setting.values()] for setting in suggested])


@functools.cache
def decisions(kind: str) -> str:
    """12 hex digits of which trials a scheduler stops in a fixed example: the same for two versions of Ray where these
    stop the same.
    """
    if kind == "none":
        return content_hash([])
    longest = 12
    judge: Any = scheduler(kind, longest, [])
    stopped = []
    for number in range(EXAMPLE_TRIALS):
        curve: list[tuple[int, float]] = []
        for epoch in range(1, longest):
            curve.append((epoch, (number * 7 % 11 + epoch * (number % 5)) / 100))
            if judge.tell(number, "stopped", curve) == TrialScheduler.STOP:
                stopped.append((number, epoch))
                break
    return content_hash(stopped)


def _example(number: int) -> Row:
    """A row of the example, whose settings fill the space evenly (Roberts' R3 sequence)."""
    shares = [(0.5 + (number + 1) * step) % 1 for step in (0.8191725134, 0.6710436067, 0.5497004779)]
    config = {
        "log": 10 ** (-5 + 4 * shares[0]),
        "linear": 2 * shares[1],
        "int": 1 + int(10 * shares[2]),
    }
    keep, forget = 1 - (shares[0] - 0.6) ** 2 - 0.1 * shares[2], 1 - (shares[1] - 0.3) ** 2 * shares[0]
    return {
        "config": config,
        "status": "stopped" if number % 3 == 2 else "diverged" if number % 11 == 7 else "completed",
        "score": keep * forget,
        "val_retain_acc": keep,
        "val_probe_forget_acc": 1 - forget,
        "curve": [[epoch, keep * forget * epoch / config["int"]] for epoch in (1, 3, 9) if epoch <= config["int"]],
    }
