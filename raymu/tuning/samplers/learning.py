"""Samplers that learn from rows, by Optuna."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from raymu.method import Range
from raymu.objective import LOWEST
from raymu.protocol import Protocol
from raymu.row import Row, seen
from raymu.tuning.samplers.base import Sampler, Setting, lies_in


class Learner(Sampler):
    """What a search has learnt, and tries next.

    It learns from rows in the order in which they ended. A suggestion depends on these, the arguments and its place
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
        self._objective, self._several = protocol.objective, protocol.objective.maximises is not None
        self._learnt = 0
        self.study = optuna.create_study(directions=["maximize"] * (2 if self._several else 1))

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler:
        """Optuna's sampler for one suggestion."""

    def _attributes(self) -> dict[str, Any]:
        """What Optuna's sampler reads of the next trial to be learnt, beside its setting and values."""
        return {}

    def suggest(self, place: int, running: Sequence[Setting] = ()) -> Setting:
        """See Sampler."""
        new = self._done[self._read :]
        self._read += len(new)
        for row in new:
            self._learn(row)
        seed = int(np.random.SeedSequence((self._seed, place)).generate_state(1)[0])
        self.study.sampler = self._sampler(seed)
        asked = self.study.ask(self._space)
        self.study.tell(asked, state=TrialState.FAIL)  # no sampler looks at it any more: it is learnt from its row
        return asked.params

    def _learn(self, row: Row) -> None:
        """Enter a row, unless its setting lies outside the space, as the published one may, or it is an error, which
        says nothing of a setting.

        A trial that was stopped ranks below every one that was not: its score, after fewer epochs, does not compare
        with theirs, and among the trials with which it does compare it was behind.
        """
        if row["status"] == "error" or not lies_in(self._ranges, row["config"]):
            return
        stopped = row["status"] == "stopped"
        if row["status"] == "diverged":
            values = [LOWEST] * len(self.study.directions)
        else:
            values = self._objective.values(row) if self._several else [seen(row)]
        self.study.add_trial(
            create_trial(
                state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
                values=None if stopped else values,
                params={name: row["config"][name] for name in self._ranges},
                distributions=self._space,
                intermediate_values={} if self._several else {n: score for n, (_, score) in enumerate(row["curve"], 1)},
                system_attrs=self._attributes(),
            )
        )
        self._learnt += 1


def distribution(search: Range) -> FloatDistribution | IntDistribution:
    """A range as Optuna knows it."""
    if search.scale == "int":
        return IntDistribution(int(search.low), int(search.high))
    return FloatDistribution(search.low, search.high, log=search.scale == "log")
