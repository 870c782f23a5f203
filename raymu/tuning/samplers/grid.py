"""Settings on a grid."""

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from raymu.errors import InputError
from raymu.method import Range
from raymu.tuning.samplers.base import Setting, setting_at


def settings(ranges: Mapping[str, Range], count: int, seed: int) -> list[Setting]:
    """All combinations of a few values of every range, both ends among them, at most `count`; the same for every seed.

    A grid is refined by one value of one hyperparameter after the other, and its points stand in the order in which
    they came, so that a smaller grid begins a larger one. A value halves a gap, the widest ones first.

    Raises:
        InputError: two values a hyperparameter would already be more.
    """
    if 2 ** len(ranges) > count:
        raise InputError(
            f"a grid over {len(ranges)} hyperparameters needs {2 ** len(ranges) + 1} trials at least, the published"
            " setting included"
        )
    values = [list(itertools.islice(_values(search), count)) for search in ranges.values()]
    levels = [2] * len(ranges)
    points = list(itertools.product(*(found[:2] for found in values)))
    while finer := [place for place, found in enumerate(values) if levels[place] < len(found)]:
        place = min(finer, key=levels.__getitem__)
        parts = [found[:level] for found, level in zip(values, levels, strict=True)]
        parts[place] = [values[place][levels[place]]]
        if len(points) + math.prod(map(len, parts)) > count:
            break
        points += itertools.product(*parts)
        levels[place] += 1
    return [dict(zip(ranges, point, strict=True)) for point in points]


def _values(search: Range) -> Iterator[float]:
    """Values of a range: both ends, and then the middle of every gap, of the widest ones first; of ints each once."""
    found = set[float]()
    for parts in (2**halvings for halvings in itertools.count()):
        if search.scale == "int" and len(found) > search.high - search.low:
            return
        for share in (0, 1) if parts == 1 else range(1, parts, 2):
            value = setting_at({"": search}, np.array([share / parts]))[""]
            if value not in found or search.scale != "int":
                found.add(value)
                yield value
