"""Statistics of a ranking: what runs on several originals say of settings' means and of the differences between them.

An original that was trained independently is the unit: unlearning seeds and forget sets are averaged within each.
"""

import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtr, chdtrc, fdtri, ndtri, stdtrit  # scipy.stats takes most of a second

from raymu.results.identity import Cell

LEVEL = 0.05  # of an interval, and of all differences between the settings of a ranking together
UNLIKE = 20.0  # times the usual variance: a setting that varies more is left out of the pooled error
CHANCE = 0.995  # with which a setting that varies like the others stays in it
FEW = 1 / 3  # largest share of the settings that is left out; where more vary like that, none is
FEWEST = 3  # originals below which no difference is told from none
POWER = 0.8
ROUNDING = 1e-12  # half an interval that is not wider comes of rounding alone

Runs = Mapping[Cell, float]  # of one setting: a value by what was run


class Estimate(NamedTuple):
    """A mean with its confidence interval, and the numbers of runs and of originals that it comes from. Without an
    interval nothing says how far it is from the truth. 0 runs: it is a single trial of the search.
    """

    mean: float
    low: float | None
    high: float | None
    runs: int
    originals: int


class Lead(NamedTuple):
    """How far a setting's mean is above another's on the runs that both have, with an interval; all intervals of a
    ranking hold together. None: nothing is known.
    """

    mean: float | None
    low: float | None
    high: float | None

    @property
    def significant(self) -> bool:
        """Whether the first setting is better."""
        return self.low is not None and self.low > 0


def estimate(runs: Runs, bounds: tuple[float, float] = (0, 1), step: float = 0.0) -> Estimate:
    """The mean over originals with its confidence interval, Student's t over their means. It is at least as wide as the
    binomial error of the images that were looked at, each original's its own. Below two originals there is none.

    Args:
        runs: at least one value.
        bounds: of a value.
        step: what one image more or less changes, such as 1 / images for an accuracy; 0: it is not known.
    """
    means = np.array(list(by_original(runs).values()))
    mean, count = float(means.mean()), len(means)
    if count < 2:
        return Estimate(mean, None, None, len(runs), count)
    half = stdtrit(count - 1, 1 - LEVEL / 2) * means.std(ddof=1) / count**0.5
    half = max(half, ndtri(1 - LEVEL / 2) * binomial(mean, count, step) ** 0.5)
    if _is_rounding(half, mean):
        return Estimate(mean, None, None, len(runs), count)
    low, high = np.clip([mean - half, mean + half], *bounds)
    return Estimate(mean, float(low), float(high), len(runs), count)


def leads(settings: Sequence[Runs], step: float = 0.0) -> dict[tuple[int, int], Lead]:
    """Leads of every setting over every later one.

    One additive model of original and setting gives the error, pooled over the settings; one that varies UNLIKE the
    others, as a method that sometimes breaks does, is left out of the pool. A setting's variance is the pooled one, or
    its own if that is larger, so that none is found better because it looks steady on few originals. A difference is
    tested by Tukey's studentized range, as by Games and Howell (J. Educational Statistics 1976): the two settings'
    variances, and the degrees of freedom of their sum (Satterthwaite, Biometrics Bulletin 1946). Two settings alone
    have one error: that is the paired t test.

    The error of a difference is at least that of the images which two models answer differently (McNemar, Psychometrika
    1947), if no two originals share them. The share of rankings of equal settings in which any difference is found is
    simulated in tests/test_comparison.py.

    Args:
        step: what one image more or less changes; 0: it is not known.
    """
    pairs = list(itertools.combinations(range(len(settings)), 2))
    differences = {pair: by_original(_differences(*(settings[one] for one in pair))) for pair in pairs}
    if max(map(len, differences.values()), default=0) < FEWEST:
        return {pair: Lead(_mean(found.values()), None, None) for pair, found in differences.items()}
    error = _Error.of([by_original(runs) for runs in settings], _alike(len(settings), differences))
    return {pair: _lead(pair, list(found.values()), error, step) for pair, found in differences.items()}


def unpaired(first: Runs, second: Runs, step: float = 0.0) -> Lead:
    """Lead of one setting over another that ran on other originals: Welch's t test (Biometrika 1947) over the means of
    each one's originals. Either error is at least the binomial one of its images.

    Args:
        first, second: at least one value each.
        step: what one image more or less changes; 0: it is not known.
    """
    means = [np.array(list(by_original(runs).values())) for runs in (first, second)]
    lead = float(means[0].mean() - means[1].mean())
    if min(map(len, means)) < FEWEST:
        return Lead(lead, None, None)
    errors = np.array([max(one.var(ddof=1) / len(one), binomial(one.mean(), len(one), step)) for one in means])
    if errors.max() <= ROUNDING**2:
        return Lead(lead, None, None)
    degrees = errors.sum() ** 2 / sum(error**2 / (len(one) - 1) for error, one in zip(errors, means, strict=True))
    half = float(stdtrit(degrees, 1 - LEVEL / 2) * errors.sum() ** 0.5)
    return Lead(lead, lead - half, lead + half)


def detectable(settings: int, originals: int) -> float | None:
    """The difference between two settings that a ranking finds in POWER of the cases, in standard deviations of a
    setting's score over originals; None where none can be found.
    """
    if originals < FEWEST or settings < 2:
        return None
    each = originals - 1
    degrees, larger = float((settings - 1) * each), 1.0
    if settings > 2:  # variances that are estimated leave fewer, and the larger of one and the true one is above it
        degrees, larger = degrees / (1 + 2 / each), float(chdtrc(each + 2, each) + chdtr(each, each))
    return float((_range(settings, degrees) * larger**0.5 + ndtri(POWER) * 2**0.5) / originals**0.5)


class _Error(NamedTuple):
    """Variances of the additive model's residuals, with their degrees of freedom: `pooled` over the settings, and for
    each setting the `excess` of its own variance over the pooled one.
    """

    pooled: float
    degrees: float
    excess: NDArray[np.float64]
    own_degrees: NDArray[np.float64]

    @classmethod
    def of(cls, settings: Sequence[Mapping[int, float]], alike: NDArray[np.bool_]) -> "_Error":
        count = int(alike.sum())
        cells = [(one, original) for one in np.flatnonzero(alike).tolist() for original in settings[one]]
        rows, columns = (np.unique(of, return_inverse=True)[1] for of in zip(*cells, strict=True))
        design = np.hstack([np.eye(rows.max() + 1)[rows], np.eye(columns.max() + 1)[columns]])
        values = np.array([settings[one][original] for one, original in cells])
        fitted, _, rank, _ = np.linalg.lstsq(design, values)
        effects = dict(zip(sorted({original for _, original in cells}), fitted[rows.max() + 1 :], strict=True))
        own, own_degrees = np.zeros(len(settings)), np.ones(len(settings))
        for one, found in enumerate(settings):
            known = np.array([found[original] - effects[original] for original in found if original in effects])
            if len(known) > 1:
                # What the effects take of a setting that they were fitted to is given back.
                own[one] = known.var(ddof=1) * (count / (count - 1) if alike[one] else 1)
                own_degrees[one] = len(known) - 1
        degrees = float(len(cells) - rank)
        pooled = float(np.square(values - design @ fitted).sum() / degrees) if degrees else np.nan
        # Settings that vary differently leave fewer.
        shares, of_each = own[alike] * own_degrees[alike], own_degrees[alike]
        if shares.any():
            degrees = min(degrees, (count - 1) / count * shares.sum() ** 2 / (shares**2 / of_each).sum())
        # The residuals of two settings alone are the same, so their own variance is the pooled one but for rounding.
        excess = np.maximum(own - pooled, 0) if len(settings) > 2 else np.zeros(2)
        return cls(pooled, degrees, excess, own_degrees)

    def of_difference(self, pair: tuple[int, int]) -> tuple[float, float]:
        """Variance of the difference between two settings on an original, and its degrees of freedom."""
        excess, degrees = self.excess[list(pair)], self.own_degrees[list(pair)]
        variance = 2 * self.pooled + excess.sum()
        if not variance:
            return 0.0, self.degrees
        of_sum = variance**2 / ((excess**2 / degrees).sum() + (2 * self.pooled) ** 2 / self.degrees)
        return float(variance), float(min(of_sum, self.degrees))


def _alike(count: int, differences: Mapping[tuple[int, int], Mapping[int, float]]) -> NDArray[np.bool_]:
    """Which settings vary about as much as most do, by the medians of their differences' variances over originals."""
    variances = np.full((count, count), np.nan)
    for (one, other), found in differences.items():
        if len(found) > 1:
            variances[one, other] = variances[other, one] = np.var(list(found.values()), ddof=1)
    known = [row[np.isfinite(row)] for row in variances]
    usual = np.array([np.quantile(row, 0.5, method="lower") if len(row) else np.nan for row in known])
    compared: NDArray[np.bool_] = np.isfinite(usual)
    degrees = max(map(len, differences.values())) - 1
    times = max(UNLIKE, fdtri(degrees, degrees * (count - 1) / 2, CHANCE))
    unlike = usual > times * np.quantile(usual[compared], 0.5, method="lower")
    return compared & ~unlike if unlike.sum() <= FEW * compared.sum() else compared


def _lead(pair: tuple[int, int], found: Sequence[float], error: _Error, step: float) -> Lead:
    mean, count, settings = _mean(found), len(found), len(error.excess)
    if mean is None or count < FEWEST:
        return Lead(mean, None, None)
    variance, degrees = error.of_difference(pair)
    half = _range(settings, degrees) * (variance / 2 / count) ** 0.5
    if step:
        half = max(half, _range(settings, np.inf) * (abs(mean) * step / count / 2) ** 0.5)
    if _is_rounding(half, mean):
        return Lead(mean, None, None)
    return Lead(mean, float(mean - half), float(mean + half))


def binomial(mean: float, count: int, step: float) -> float:
    """Variance of a mean over originals that the images alone make; 0 where their number is not known."""
    share = (mean + step / 2) / (1 + step)
    return step / count * share * (1 - share)


def _is_rounding(half: float, mean: float) -> bool:
    return half <= ROUNDING * max(1, abs(mean))


def _mean(values: Collection[float]) -> float | None:
    return float(np.mean(list(values))) if values else None


def _range(settings: int, degrees: float) -> float:
    """Quantile of the studentized range of `settings` means, exceeded with a chance of LEVEL. Degrees are rounded down
    to quarters, since it is slow to compute.
    """
    return _quantile(settings, np.floor(4 * degrees + 1e-6) / 4)  # rounding may have left a whole number just short


@functools.cache
def _quantile(settings: int, degrees: float) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(1 - LEVEL, settings, degrees))


def _differences(runs: Runs, others: Runs) -> dict[Cell, float]:
    """Of the runs on the same original, forget set and seed."""
    return {cell: runs[cell] - others[cell] for cell in sorted(runs.keys() & others.keys())}


def by_original(runs: Runs) -> dict[int, float]:
    """Means over the runs on each original; every original counts the same."""
    originals: dict[int, list[float]] = {}
    for (original, _, _), value in sorted(runs.items()):
        originals.setdefault(original, []).append(value)
    return {original: float(np.mean(values)) for original, values in originals.items()}
