"""Quasi-random settings."""

from collections.abc import Mapping

import numpy as np

from raymu.method import Range
from raymu.tuning.samplers.base import Setting, setting_at


def settings(ranges: Mapping[str, Range], count: int, seed: int) -> list[Setting]:
    """Settings at points of a scrambled Sobol sequence (Owen, J. Complexity 1998), which leave no large gap."""
    from scipy.stats import qmc  # takes most of a second

    sobol = qmc.Sobol(len(ranges), scramble=True, rng=np.random.default_rng(seed))
    # A whole power of two, of which the first points are taken: Sobol's balance asks for it.
    return [setting_at(ranges, row) for row in sobol.random_base2(max(1, count - 1).bit_length())[:count]]
