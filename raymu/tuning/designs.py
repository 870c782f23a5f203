"""Designs: the settings of a search that does not learn from its trials."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raymu.errors import InputError
from raymu.method import Range

Setting = dict[str, float]


def design(ranges: Mapping[str, Range], kind: str, count: int, seed: int) -> list[Setting]:
    """At most `count` settings, always the same for a seed.

    "random" draws evenly within the ranges (on a log range evenly in the exponent); "quasi_random" takes points of a
    scrambled Sobol sequence (Owen, J. Complexity 1998), which leave no large gap; "grid" takes all combinations of a
    few values of every range, both ends among them, as many as fit, and depends on no seed.

    Raises:
        InputError: a grid of two values a hyperparameter would have more settings than that.
    """
    if not ranges:
        return [{}] * min(count, 1)
    if kind == "grid":
        return _grid(ranges, count)
    if kind == "random":
        shares = np.random.default_rng(seed).random((count, len(ranges)))
    else:
        from scipy.stats import qmc

        # A whole power of two, of which the first points are taken: Sobol's balance asks for it.
        sobol = qmc.Sobol(len(ranges), scramble=True, rng=np.random.default_rng(seed))
        shares = sobol.random_base2(max(1, count - 1).bit_length())[:count]
    return [_setting(ranges, row) for row in shares]


def _grid(ranges: Mapping[str, Range], count: int) -> list[Setting]:
    most = [int(search.high - search.low) + 1 if search.scale == "int" else count for search in ranges.values()]
    levels = [2] * len(ranges)
    if 2 ** len(ranges) > count:
        raise InputError(
            f"a grid over {len(ranges)} hyperparameters needs {2 ** len(ranges) + 1} trials at least, the published"
            " setting included"
        )
    grown = True
    while grown:
        grown = False
        for place in range(len(levels)):
            finer = [*levels[:place], levels[place] + 1, *levels[place + 1 :]]
            if finer[place] <= most[place] and np.prod(finer) <= count:
                levels, grown = finer, True
    values = [np.linspace(0, 1, level) for level in levels]
    return [_setting(ranges, np.array(shares)) for shares in itertools.product(*values)]


def _setting(ranges: Mapping[str, Range], shares: NDArray[np.float64]) -> Setting:
    """The setting that lies so far, in 0..1, along every range."""
    return {name: _value(search, share) for (name, search), share in zip(ranges.items(), shares.tolist(), strict=True)}


def _value(search: Range, share: float) -> float:
    if search.scale == "int":
        low, high = int(search.low), int(search.high)
        return min(high, low + int(share * (high - low + 1)))
    if search.scale == "log":
        value = math.exp(math.log(search.low) + share * math.log(search.high / search.low))
    else:
        value = search.low + share * (search.high - search.low)
    return min(max(value, search.low), search.high)
