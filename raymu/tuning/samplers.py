"""Samplers that learn from rows: TPE and NSGA-II."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import NSGAIISampler, TPESampler
from optuna.samplers.nsgaii import UniformCrossover
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from raymu.method import Range
from raymu.objective import Objective
from raymu.protocol import Protocol
from raymu.row import Row

Setting = Mapping[str, Any]
GENERATIONS = 4  # at least, of nsga2
RECENT = 25  # trials that tpe weighs in full


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
        self._objective: Objective = protocol.objective
        self._several, self._is_genetic = protocol.objective.maximises is not None, protocol.searcher == "nsga2"
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
        count = len(self.study.directions)
        values = [0.0] * count if lost else self._objective.values(row) if self._several else [row["score"]]
        generation = {_NSGAII._get_generation_key(): self._learnt // self._population}
        self.study.add_trial(
            create_trial(
                state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
                values=None if stopped else values,
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
