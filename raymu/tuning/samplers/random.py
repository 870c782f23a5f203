"""Random settings."""

from collections.abc import Mapping

import numpy as np

from raymu.method import Range
from raymu.tuning.samplers.base import Setting, setting_at


def settings(ranges: Mapping[str, Range], count: int, seed: int) -> list[Setting]:
    """Settings that are drawn evenly within the ranges, on a log range evenly in the exponent."""
    return [setting_at(ranges, row) for row in np.random.default_rng(seed).random((count, len(ranges)))]
