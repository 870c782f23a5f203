"""The interface of samplers, and the one of settings that are known before a search.

No suggestion depends on how many trials a search is to have: a search that grows goes on as a longer one would have.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from raymu.method import Range
from raymu.row import Row

Setting = Mapping[str, Any]


class Chosen(NamedTuple):
    """A hyperparameter that no trial is given, since each chooses its value by itself.

    Attributes:
        name: the hyperparameter.
        search: its range.
        least: function that returns the smallest value which a trial of a setting may choose.
    """

    name: str
    search: Range
    least: Callable[[Setting], int]


class Sampler(ABC):
    """Settings of one search."""

    @abstractmethod
    def suggest(self, place: int, running: Sequence[Setting] = ()) -> Setting:
        """Setting for the trial of this place in the search, from 1 on: 0 is the published setting's.

        Args:
            running: settings of trials that have begun and have no row yet.
        """

    def gain(self, place: int, setting: Setting, running: Sequence[Setting] = ()) -> float | None:
        """By how much a suggested setting is expected to improve on the best score, in standard deviations of that
        score's noise; None: the sampler cannot say.

        Args:
            place, running: as `suggest` takes them.
        """
        return None

    def expected(self, row: Row) -> float | None:
        """Score that a trial which just ended is expected to have if it ran again, on other images, in [0, 1]; None:
        the sampler cannot say.
        """
        return None


class Known(Sampler):
    """Settings that depend on no trial."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self._settings = settings

    def suggest(self, place: int, running: Sequence[Setting] = ()) -> Setting:
        """See Sampler."""
        return self._settings[place - 1]


def setting_at(ranges: Mapping[str, Range], shares: NDArray[Any]) -> Setting:
    """The setting that lies at these shares, in [0, 1], of every range."""
    return {name: _value(search, share) for (name, search), share in zip(ranges.items(), shares.tolist(), strict=True)}


def lies_in(ranges: Mapping[str, Range], config: Setting) -> bool:
    """Whether a setting lies in a space, as the published one may not."""
    return all(config[name] in search for name, search in ranges.items())


def place_in(search: Range, value: float) -> float:
    """Share of a range at which a value lies; for a whole number, the middle of the shares that give it."""
    if search.scale == "int":
        return (value - search.low + 0.5) / (search.high - search.low + 1)
    if search.scale == "log":
        return math.log(value / search.low) / math.log(search.high / search.low)
    return (value - search.low) / (search.high - search.low)


def _value(search: Range, share: float) -> float:
    if search.scale == "int":
        low, high = int(search.low), int(search.high)
        return min(high, low + int(share * (high - low + 1)))
    if search.scale == "log":
        value = math.exp(math.log(search.low) + share * math.log(search.high / search.low))
    else:
        value = search.low + share * (search.high - search.low)
    return min(max(value, search.low), search.high)
