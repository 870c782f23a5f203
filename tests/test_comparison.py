"""Intervals and differences against scipy's tests, an analysis of variance written out, and worlds that were made."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from raymu.results.comparison import (
    LEVEL,
    Runs,
    detectable,
    estimate,
    leads,
    unpaired,
)

IMAGES = 183
METHODS = 12


def runs_of(values: NDArray[np.float64]) -> Runs:
    """Runs with these values (originals, seeds)."""
    return {(original, "", seed): float(value) for (original, seed), value in np.ndenumerate(values)}


def noise(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


# Intervals


def test_an_interval_is_students_over_the_means_of_originals() -> None:
    values = 0.5 + 0.05 * noise(7, 1) + 0.02 * noise(7, 3, seed=1)
    found = estimate(runs_of(values))
    means = values.mean(1)
    expected = stats.t.interval(1 - LEVEL, 6, means.mean(), stats.sem(means))
    assert (found.mean, found.runs, found.originals) == (pytest.approx(means.mean()), 21, 7)
    assert (found.low, found.high) == pytest.approx(expected)


def test_an_interval_stays_within_what_a_value_may_be() -> None:
    found = estimate(runs_of(np.array([[0.4], [0.6]])))
    assert (found.low, found.high) == (0.0, 1.0)
    wide = estimate(runs_of(np.array([[40.0], [60.0]])), (-math.inf, math.inf))
    assert wide.low == pytest.approx(50 - 12.706 * 10, rel=1e-4)


def test_one_original_has_no_interval_however_often_it_was_run() -> None:
    found = estimate(runs_of(np.array([[0.4, 0.5, 0.6]])))
    assert found == (pytest.approx(0.5), None, None, 3, 1)


def test_no_interval_has_the_width_0() -> None:
    same = runs_of(np.full((5, 1), 0.0))
    assert estimate(same)[1:3] == (None, None)
    low, high = estimate(same, step=1 / IMAGES)[1:3]
    assert low == 0
    assert high is not None
    assert 0.003 < high < stats.binomtest(0, 5 * IMAGES).proportion_ci().high  # of 0 of 5 x 183 images


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.0])
def test_no_interval_comes_of_rounding(value) -> None:
    same = [
        {(original, "", 0): value for original in range(3)},
        {(original, "", 0): value / 3 for original in range(3)},
    ]
    assert estimate(same[0])[1:3] == (None, None)
    assert leads([*same, same[0]])[0, 1][1:] == (None, None)
    assert unpaired(*same)[1:] == (None, None)


def test_few_images_widen_an_interval() -> None:
    narrow = runs_of(0.5 + 0.001 * noise(5, 1))
    found, floor = estimate(narrow, step=1 / 100), stats.norm.ppf(0.975) * 0.05 / 5**0.5
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(floor, rel=0.01)


def test_an_original_with_more_runs_counts_no_more() -> None:
    runs = {(0, "", seed): 0.2 for seed in range(9)} | {(1, "", 0): 0.8}
    assert estimate(runs).mean == pytest.approx(0.5)


# Differences


def test_two_settings_are_compared_by_the_paired_t_test() -> None:
    first, second = 0.5 + 0.01 * noise(6, 1), 0.45 + 0.01 * noise(6, 1, seed=1)
    lead = leads([runs_of(first), runs_of(second)])[0, 1]
    expected = stats.ttest_rel(first[:, 0], second[:, 0]).confidence_interval(1 - LEVEL)
    assert (lead.low, lead.high) == pytest.approx(tuple(expected), rel=1e-6)
    assert lead.significant


def test_many_settings_are_compared_by_tukeys_test() -> None:
    """By the pooled variance, or a setting's own where that is larger."""
    values = 0.5 + 0.01 * noise(5, 6)
    found = leads([runs_of(values[:, [one]]) for one in range(6)])
    residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    pooled, own = np.square(residuals).sum() / 20, np.square(residuals).sum(0) / 4 * 6 / 5
    pooled_degrees = 5 / 6 * own.sum() ** 2 / (np.square(own) / 4).sum()
    assert pooled_degrees < 20
    larger = 0
    for one, other in itertools.combinations(range(6), 2):
        parts = [(2 * pooled, pooled_degrees), *((own[at] - pooled, 4) for at in (one, other) if own[at] > pooled)]
        variance = sum(part for part, _ in parts)
        degrees = min(variance**2 / sum(part**2 / degrees for part, degrees in parts), pooled_degrees)
        tukey = stats.studentized_range.ppf(1 - LEVEL, 6, math.floor(4 * degrees) / 4) * (variance / 2 / 5) ** 0.5
        larger += len(parts) > 1
        lead = found[one, other]
        assert lead.mean == pytest.approx((values[:, one] - values[:, other]).mean())
        assert (lead.low, lead.high) == pytest.approx((lead.mean - tukey, lead.mean + tukey), rel=1e-6)
    assert 0 < larger < 15


def test_seeds_and_forget_sets_are_no_originals() -> None:
    first, second = ({(original, forget, seed): 0.3 + shift + 0.01 * original * (seed - forget_seed)
                      for original in range(4) for forget, forget_seed in (("a", 0), ("b", 2)) for seed in range(3)}
                     for shift in (0.2, 0.0))  # fmt: skip
    once = [{(o, "", 0): float(np.mean([v for (c, _, _), v in runs.items() if c == o])) for o in range(4)}
            for runs in (first, second)]  # fmt: skip
    assert leads([first, second])[0, 1].mean == pytest.approx(leads(once)[0, 1].mean)
    assert estimate(first)[:3] == pytest.approx(estimate(once[0])[:3])


@pytest.mark.parametrize("originals", [1, 2])
def test_below_three_originals_nothing_is_significant(originals: int) -> None:
    settings = [runs_of(level + 1e-4 * noise(originals, 5, seed=one)) for one, level in enumerate((0.9, 0.5, 0.1))]
    for lead in leads(settings).values():
        assert lead.mean is not None
        assert (lead.low, lead.significant) == (None, False)


def test_settings_without_a_common_run_are_not_compared() -> None:
    first, second = runs_of(0.5 + noise(4, 1)), runs_of(0.1 + noise(8, 1))
    apart = {cell: value for cell, value in second.items() if cell[0] > 3}
    assert leads([first, apart])[0, 1] == (None, None, None)
    assert leads([first, {}])[0, 1] == (None, None, None)
    assert leads([first]) == {}


def test_equal_differences_are_no_certain_ones() -> None:
    """Scores move in steps, so that three differences may coincide by chance."""
    first, second = runs_of(np.full((3, 1), 0.5)), runs_of(np.full((3, 1), 0.5 - 1 / IMAGES))
    assert not leads([first, second])[0, 1].significant
    assert not leads([first, second], step=1 / IMAGES)[0, 1].significant
    assert leads([first, runs_of(np.full((3, 1), 0.3))], step=1 / IMAGES)[0, 1].significant


def test_settings_on_other_originals_are_compared_by_welchs_test() -> None:
    first, second = 0.5 + 0.05 * noise(6, 1), 0.45 + 0.01 * noise(4, 1, seed=1)
    lead = unpaired(runs_of(first), runs_of(second))
    expected = stats.ttest_ind(first[:, 0], second[:, 0], equal_var=False).confidence_interval(1 - LEVEL)
    assert (lead.low, lead.high) == pytest.approx(tuple(expected), rel=1e-6)
    repeated = unpaired(runs_of(np.repeat(first, 3, axis=1)), runs_of(second))
    assert repeated == pytest.approx(lead)  # seeds are no originals
    assert unpaired(runs_of(first[:2]), runs_of(second))[1:] == (None, None)
    same = runs_of(np.full((3, 1), 0.5))
    assert unpaired(same, same) == (0, None, None)
    found = unpaired(same, same, step=1 / IMAGES)
    assert found.high is not None
    assert found.high == pytest.approx(stats.t.ppf(0.975, 4) * (2 * 0.25 / 3 / IMAGES) ** 0.5, rel=1e-3)


def test_missing_runs_leave_the_comparison_on_what_both_have() -> None:
    values = np.array([0.0, 0.1, -0.1, 0.05, 0.02])[:, None] + np.array([0.5, 0.45, 0.3, 0.31]) + 0.004 * noise(5, 4)
    whole = [runs_of(values[:, [one]]) for one in range(4)]
    parts = [dict(runs) for runs in whole]
    del parts[0][0, "", 0]
    for pair, lead in leads(parts).items():
        shared = slice(1 if 0 in pair else 0, None)
        assert lead.mean == pytest.approx((values[shared, pair[0]] - values[shared, pair[1]]).mean())
        assert lead.significant == leads(whole)[pair].significant


def test_one_that_sometimes_breaks_hides_no_other_difference_and_does_not_win_by_noise() -> None:
    levels, originals = np.array([0.8, 0.7, 0.7, 0.7, 0.6]), np.array([0.02, 0.0, -0.02, 0.01, -0.01])
    values = levels + originals[:, None] + 0.005 * noise(5, 5)
    values[:, 4] += [0.3, -0.2, 0.35, 0.3, 0.25]  # its mean is the second one now
    found = leads([runs_of(values[:, [one]]) for one in range(5)])
    assert all(found[0, other].significant for other in (1, 2, 3))
    assert not any(found[pair].significant for pair in ((0, 4), (1, 4), (2, 4), (3, 4)))


def test_a_design_says_what_it_can_find() -> None:
    assert detectable(12, 2) is None
    assert detectable(1, 5) is None
    found = [detectable(12, originals) for originals in (3, 5, 10)]
    assert found == pytest.approx([4.5, 3.1, 2.0], abs=0.1)


# Worlds


@pytest.mark.long
@pytest.mark.parametrize(("settings", "originals"), [(2, 10), (3, 5), (6, 4), (12, 3), (12, 10)])
def test_what_a_design_can_find_is_found(settings: int, originals: int) -> None:
    values = noise(300, settings, originals, seed=originals)
    values[:, 0] += detectable(settings, originals) or 0
    significant = [leads([runs_of(one[:, None]) for one in world])[0, 1].significant for world in values]
    assert np.mean(significant) == pytest.approx(0.8, abs=0.08)


def world(
    random: np.random.Generator,
    originals: int,
    seeds: int,
    *,
    seed_sd: float,
    own_sd: float = 0.0,
    original_sd: float = 0.02,
    lead: float = 0.0,
    scale: NDArray[np.float64] | None = None,
) -> list[Runs]:
    """Scores of methods as IMAGES images show them: the first is ahead, and `scale` says how much each varies."""
    scale = np.ones(METHODS) if scale is None else scale
    by_method = scale[:, None, None]
    values = 0.5 + random.normal(0, original_sd, (1, originals, 1))
    values = values + by_method * random.normal(0, own_sd, (len(scale), originals, 1))
    values = values + by_method * random.normal(0, seed_sd, (len(scale), originals, seeds))
    values[0] += lead
    return [runs_of(np.round(one * IMAGES) / IMAGES) for one in values]


SCALES = {
    "equal": np.ones(METHODS),
    "one-10": np.append(np.ones(METHODS - 1), 10),
    "one-tenth": np.append(np.ones(METHODS - 1), 0.1),
    "half-2": np.repeat([1, 2.2], METHODS // 2),
    "half-4": np.repeat([1.0, 4.0], METHODS // 2),
    "1-to-5": np.geomspace(1, 5, METHODS),
    "1-to-10": np.geomspace(1, 10, METHODS),
    "three": np.ones(3),
    "three-one-5": np.array([1.0, 1, 5]),
    "six-half-4": np.repeat([1.0, 4.0], 3),
}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize(("originals", "seeds"), [(3, 1), (3, 2), (5, 1), (5, 2), (5, 3)])
def test_differences_that_are_none_are_seldom_found(originals: int, seeds: int, scale: NDArray[np.float64]) -> None:
    random, count = np.random.default_rng(originals * 10 + seeds), 1000
    found = 0
    for number in range(count):
        sd = (0.003, 0.006, 0.01, 0.02)[number % 4]
        methods = world(random, originals, seeds, seed_sd=sd, scale=scale)
        found += any(lead.low is not None and lead.low * lead.high > 0 for lead in leads(methods).values())
    assert stats.binomtest(found, count, 0.06, alternative="greater").pvalue > 0.01, found / count


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("times", "least"), [(3, 0.5), (10, 0.95)])
@pytest.mark.parametrize(("own_sd", "seed_sd"), [(0.01, 0.01), (0.0, 0.02)])
def test_a_lead_is_found(times: float, least: float, own_sd: float, seed_sd: float) -> None:
    """In standard deviations of the difference between two methods on an original."""
    random = np.random.default_rng(0)
    lead = times * (2 * (own_sd**2 + seed_sd**2 / 2)) ** 0.5
    worlds = [world(random, 3, 2, seed_sd=seed_sd, own_sd=own_sd, lead=lead) for _ in range(300)]
    for step in (0.0, 1 / IMAGES):
        found = [[leads(methods, step)[0, other].significant for other in range(1, METHODS)] for methods in worlds]
        assert np.mean(found) >= least


@pytest.mark.long
@pytest.mark.parametrize("originals", [3, 5, 8])
def test_intervals_hold_what_they_promise(originals: int) -> None:
    """Where the originals are most of what varies."""
    random = np.random.default_rng(originals)
    worlds = [world(random, originals, 2, seed_sd=0.01, original_sd=0.08) for _ in range(4000)]
    found = [estimate(methods[0], step=1 / IMAGES) for methods in worlds]
    covered = np.mean([one.low <= 0.5 <= one.high for one in found])
    assert 0.93 <= covered <= 0.97
