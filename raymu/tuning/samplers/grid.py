"""Settings on a grid."""

import itertools
from collections.abc import Mapping

import numpy as np

from raymu.errors import InputError
from raymu.method import Range
from raymu.tuning.samplers.base import Setting, setting_at


def settings(ranges: Mapping[str, Range], count: int, seed: int) -> list[Setting]:
    """All combinations of a few values of every range, both ends among them, at most `count`; the same for every seed.

    Raises:
        InputError: two values a hyperparameter would already be more.
    """
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
    return [setting_at(ranges, np.array(shares)) for shares in itertools.product(*values)]
