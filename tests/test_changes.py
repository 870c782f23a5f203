"""What changed from one storage to another, against scipy's tests on the same runs."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_ranking import again, row, sweep

from raymu.errors import InputError
from raymu.objective import HMEAN
from raymu.results.changes import Changes, Storage, changes
from raymu.results.ranking import rank
from raymu.results.reader import SweepResults

ORIGINALS = 5


def ran(
    name: str, probe: float, seed: int = 0, weights: str = "w", originals: int = ORIGINALS, **of_runs: Any
) -> SweepResults:
    """A sweep whose tuned setting was confirmed once on each original, whose weights the rows name."""
    random = np.random.default_rng(seed)
    runs = [
        again(1, n, 1, probe + shift, original_weights=f"{weights}{n}", scenario_hash=f"s{n}", **of_runs)
        for n, shift in enumerate(0.02 * random.standard_normal(originals))
    ]
    return sweep(name, [row(0, 0.9, 0.9), row(1, 0.9, probe), *runs])


def compared(there: list[SweepResults], here: list[SweepResults]) -> Changes:
    sides = [
        Storage(name, of, [one for sweep in of for one in rank([sweep])])
        for name, of in (("old", there), ("new", here))
    ]
    return changes(*sides)


def scores(one: SweepResults) -> list[float]:
    """Of the confirmation, by original."""
    return [HMEAN.of(of, {}, "test") for of in one.rows if of["source"] == "confirmation"]


def test_on_the_same_originals_it_is_the_paired_t_test() -> None:
    there, here = ran("m", 0.5, seed=1), ran("m", 0.4, seed=2)
    (change,) = compared([there], [here]).methods
    expected = stats.ttest_rel(scores(here), scores(there)).confidence_interval(0.95)
    assert change.by == "paired over 5 originals"
    assert change.difference.mean == pytest.approx(np.mean(scores(here)) - np.mean(scores(there)))
    assert (change.difference.low, change.difference.high) == pytest.approx(tuple(expected), rel=1e-6)


def test_on_other_originals_it_is_welchs_t_test() -> None:
    """The number of an original says nothing: another machine trains other weights."""
    there, here = ran("m", 0.5, seed=1), ran("m", 0.4, seed=2, weights="other", originals=4)
    (change,) = compared([there], [here]).methods
    expected = stats.ttest_ind(scores(here), scores(there), equal_var=False).confidence_interval(0.95)
    assert change.by == "unpaired means, 5 originals there and 4 here"
    assert (change.difference.low, change.difference.high) == pytest.approx(tuple(expected), rel=1e-6)
    unnamed = [one._replace(rows=[of | {"original_weights": None} for of in one.rows]) for one in (there, here)]
    assert compared(unnamed[:1], unnamed[1:]).methods[0].by == change.by


def test_other_forget_sets_on_the_same_originals_are_paired_as_well() -> None:
    there, here = ran("m", 0.5, seed=1), ran("m", 0.4, seed=2, forget=[3])
    (change,) = compared([there], [here]).methods
    assert change.by == "paired over 5 originals"
    expected = stats.ttest_rel(scores(here), scores(there)).confidence_interval(0.95)
    assert change.difference.low == pytest.approx(expected.low)


def test_runs_that_one_of_them_lost_do_not_count() -> None:
    there, here = ran("m", 0.5, seed=1), ran("m", 0.4, seed=2)
    lost = here._replace(rows=here.rows[:-1])
    (change,) = compared([there], [lost]).methods
    assert change.by == "paired over 4 originals"
    assert change.difference.mean == pytest.approx(np.mean(scores(lost)) - np.mean(scores(there)[:-1]))


def test_without_enough_runs_there_is_no_interval() -> None:
    single = sweep("m", [row(0, 0.9, 0.9), row(1, 0.9, 0.3)])
    (change,) = compared([ran("m", 0.5)], [single]).methods
    assert change.by == "not confirmed here"
    assert change.difference[1:] == (None, None)
    assert change.difference.mean == pytest.approx(
        HMEAN.of(row(1, 0.9, 0.3), {}, "test") - np.mean(scores(ran("m", 0.5)))
    )
    (change,) = compared([ran("m", 0.5, originals=2)], [ran("m", 0.4, seed=1)]).methods
    assert change.by == "unpaired means, 2 originals there and 5 here; below 3 no interval"
    assert change.difference.low is None


def test_what_does_not_compare_has_no_difference() -> None:
    failed = sweep("m", [row(0, None, None, status="error")])
    (change,) = compared([failed], [ran("m", 0.4)]).methods
    assert (change.there, change.difference.mean, change.by) == (None, None, "no trial completed there")
    other = ran("m", 0.4)
    other = sweep("m", [of | {"objective": "weighted"} for of in other.rows], objective="weighted")
    (change,) = compared([ran("m", 0.5, seed=1)], [other]).methods
    assert change.difference.mean is None
    assert change.by == "scores do not compare: hmean there, weighted here"
    assert "protocol.objective is hmean there, weighted here" in change.fields


def test_what_was_asked_for_differently_is_named_and_sweeps_pair_with_the_most_alike() -> None:
    """Storages hold the same method more than once; a method of one alone is named."""
    there = [ran("a", 0.5, seed=1), ran("b", 0.5, seed=2)]
    longer = sweep("b", [of | {"trial_id": of["trial_id"]} for of in ran("b", 0.4, seed=3).rows], trials=9)
    here = [longer._replace(name="b-9"), ran("b", 0.4, seed=4)._replace(name="b-4"), ran("c", 0.4)]
    found = compared(there, here)
    assert [one.method for one in found.methods] == ["b"]
    assert found.methods[0].here.sweep.name == "b-4"
    assert (found.only_there, found.only_here) == (["a"], ["b-9", "c"])
    assert found.fields == {}
    assert compared(there, here[:1]).fields == {"protocol.trials is 4 there, 9 here": ["b"]}
    both = compared([there[1], longer._replace(name="old-9")], here)
    assert [one.method for one in both.methods] == ["b (b-4)", "b (b-9)"]
    assert both.fields == {}


def test_the_headline_says_what_is_known() -> None:
    there = [ran("a", 0.5, seed=1), ran("b", 0.5, seed=2), ran("c", 0.3, seed=3), sweep("d", [row(0, 0.9, 0.5)])]
    here = [ran("a", 0.3, seed=4), ran("b", 0.5, seed=5), ran("c", 0.5, seed=6), sweep("d", [row(0, 0.9, 0.2)])]
    found = compared(there, here)
    assert found.headline == "Higher: a. Lower: c. Not told apart: b. Without an interval: d."
    assert found.score == "hmean"


def test_nothing_in_common_and_nothing_new_are_said() -> None:
    with pytest.raises(InputError, match="old and new have no method in common: a, b there, c here"):
        compared([ran("b", 0.5), ran("a", 0.5)], [ran("c", 0.5)])
    one = ran("a", 0.5)
    renamed = one._replace(name="copy/a", rows=[of | {"trial_id": f"x{of['trial_id']}"} for of in one.rows])
    renamed = renamed._replace(rows=[of | {"confirms": of["confirms"] and f"x{of['confirms']}"} for of in renamed.rows])
    with pytest.raises(InputError, match="old and new hold the same trials, so nothing changed"):
        compared([one], [renamed])
    found = compared([one, ran("b", 0.5)], [renamed, ran("b", 0.4, seed=1)])
    assert [(change.method, change.by) for change in found.methods] == [
        ("a", "the same trials"),
        ("b", "paired over 5 originals"),
    ]
    assert found.methods[0].difference.mean is None
    assert found.headline.startswith("The same trials: a. ")
    assert compared([one], [renamed, ran("c", 0.5)]).only_here == ["c"]  # that is new
