"""Ranking: methods by their tuned setting on test, with intervals, and ranks that are shared where nothing tells two
methods apart.
"""

import itertools
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit  # scipy.stats takes most of a second

from raymu import objective as objectives
from raymu.errors import InputError
from raymu.results import selection
from raymu.results.files import SWEEP
from raymu.results.reader import SweepResults, is_copy
from raymu.results.writer import differences
from raymu.row import Row
from raymu.values import content_hash

LEVEL = 0.05  # of a confidence interval and of a difference between two methods
RESAMPLES = 10_000
ROUNDING = 1e-9
ACCURACIES = (
    "test_retain_acc",
    "test_forget_acc",
    "test_probe_retain_acc",
    "test_probe_forget_acc",
    "test_ncc_retain_acc",
    "test_ncc_forget_acc",
)

# The runs of one setting: a value by what was run, (original, forget set, unlearning seed).
Cell = tuple[int, str, int]
Runs = Mapping[Cell, float]


class Estimate(NamedTuple):
    """A mean with its confidence interval, and the numbers of runs and of originals that it comes from. 0 runs: it is a
    single trial of the search, and the interval has no width.
    """

    mean: float
    low: float
    high: float
    runs: int
    originals: int


class Figures(NamedTuple):
    """What a setting reaches on test: the objective's `score`; ACCURACIES and the user's, as far as they are known."""

    score: Estimate
    metrics: dict[str, Estimate]


class Ranked(NamedTuple):
    """A sweep in a ranking.

    Attributes:
        rank: 1 + how many sweeps are significantly better.
        shared: whether another has the same rank.
        tuned: the search's row of the setting that the sweep ends with.
        published: the search's row of the published setting, if it completed.
        figures: by "original", "retrained", "published" (None if it did not complete) and "tuned".
    """

    rank: int
    shared: bool
    sweep: SweepResults
    tuned: Row
    published: Row | None
    figures: dict[str, Figures | None]

    @property
    def score(self) -> Estimate:
        """Of the tuned setting."""
        figures = self.figures["tuned"]
        assert figures is not None
        return figures.score


def rank(sweeps: Sequence[SweepResults]) -> list[Ranked]:
    """Rank sweeps by the mean of their tuned setting's objective on test, best first.

    Means and intervals come from the confirmation alone. Every pair of sweeps is compared by `p_value`, with Holm's
    correction for their number (Scandinavian J. Statistics 1979); without a confirmation nothing is significant. A
    sweep in which no trial completed is left out.

    Raises:
        InputError: two sweeps differ in protocol or scenario, or one is a copy of the other, or rows do not belong to
            the protocol that stands with them; the message says in which field.
    """
    _check_comparable(sweeps)
    _check_runs(sweeps)
    ends = [end for sweep in sweeps if (end := _end(sweep)) is not None]
    ends.sort(key=lambda end: (-end[0].score.mean, end[0].sweep.name))
    better = _significantly_better([runs for _, runs in ends])
    ranks = (1 + better.sum(0)).tolist()
    ranked = [end._replace(rank=rank, shared=ranks.count(rank) > 1) for (end, _), rank in zip(ends, ranks, strict=True)]
    return sorted(ranked, key=lambda end: end.rank)


def _end(sweep: SweepResults) -> tuple[Ranked, Runs] | None:
    """What a sweep ended with, still without a rank, and the runs that say how good that is."""
    try:
        tuned = selection.tuned(sweep.rows)
    except selection.NothingCompleted:
        return None
    objective, confirmed = sweep.identity["protocol"]["objective"], selection.confirmed(sweep.rows)
    published = selection.published(sweep.rows)
    runs = confirmed.get(tuned["trial_id"], [])
    figures = {
        **_references(sweep, runs or [tuned], objective),
        "published": figures_of(published, objective, confirmed.get(published["trial_id"], [])) if published else None,
        "tuned": figures_of(tuned, objective, runs),
    }
    end = Ranked(0, False, sweep, tuned, published, figures)
    return end, _runs(runs, lambda row: _score(row, objective))


def figures_of(row: Row, objective: str, runs: Sequence[Row] = ()) -> Figures:
    """Figures of a setting: over its confirmation runs, or of the one row where there is none."""

    def of(value: Callable[[Row], float | None], bounds: tuple[float, float] = (0, 1)) -> Estimate | None:
        if found := _runs(runs, value):
            return estimate(found, bounds)
        single = value(row)
        return None if single is None else Estimate(single, single, single, runs=0, originals=0)

    score = of(lambda one: _score(one, objective))
    assert score is not None
    own = [column for name in row.get("metrics", {}) if (column := f"test_{name}") in row]
    found = {column: of(operator.itemgetter(column)) for column in ACCURACIES}
    found |= {column: of(operator.itemgetter(column), (-np.inf, np.inf)) for column in own}
    return Figures(score, {column: one for column, one in found.items() if one is not None})


def _references(sweep: SweepResults, runs: Sequence[Row], objective: str) -> dict[str, Figures | None]:
    """Figures of the references of these runs."""
    of_scenario = {row["scenario_hash"]: row for row in runs}
    found: dict[str, Figures | None] = {}
    for which in ("original", "retrained"):
        rows = [
            {**row, "test_score": None, **sweep.references[scenario][which], "status": "completed", "seed": 0}
            for scenario, row in of_scenario.items()
            if scenario in sweep.references
        ]
        found[which] = figures_of(rows[0], objective, rows) if rows else None
    return found


def _score(row: Row, objective: str) -> float:
    if row["status"] == "diverged":
        return 0.0
    known = row.get("test_score")  # none in rows of raymu 0.2
    return float(objectives.get(objective).of(row, "test") if known is None else known)


def _runs(rows: Iterable[Row], value: Callable[[Row], float | None]) -> dict[Cell, float]:
    """What is not there, as the accuracy of a diverged run, is left out."""
    found = {}
    for row in rows:
        if (one := value(row)) is not None:
            found[row["model_seed"], json.dumps([row["forget"], row["forget_share"]]), row["seed"]] = float(one)
    return found


def estimate(runs: Runs, bounds: tuple[float, float] = (0, 1)) -> Estimate:
    """The mean of runs with its confidence interval: percentiles of a bootstrap that draws originals
    first, and then runs within each (Davison and Hinkley, Bootstrap Methods, 1997, Section 3.8).

    Few originals vary less among themselves than all that could be trained: deviations are widened as Student's t asks
    for (Hesterberg, The American Statistician 2015, Section 4.4), so that two or three of them promise little. Where
    there is one original, its runs stand in for them. Every original counts the same.

    Args:
        runs: at least one value.
        bounds: of a value.
    """
    groups = _groups(runs)
    mean, count = _mean(groups), len(groups)
    few = stdtrit(count - 1, 1 - LEVEL / 2) / ndtri(1 - LEVEL / 2) if count > 1 else 1.0
    low, high = np.clip(mean + few * np.quantile(_deviations(groups), [LEVEL / 2, 1 - LEVEL / 2]), *bounds)
    return Estimate(mean, float(low), float(high), len(runs), len({original for original, _, _ in runs}))


def p_value(runs: Runs, others: Runs) -> float:
    """How likely two settings' means are to differ as much as they do, if there is no difference.

    Student's t over the differences between runs on the same original, forget set and seed, with the bootstrap's
    standard error and a degree of freedom less than there are originals. If all differences are the same, as coarse
    accuracies may be, a sign test's. 1 where they share no two runs.
    """
    shared = _differences(runs, others)
    if len(shared) < 2:
        return 1.0
    groups = _groups(shared)
    mean, count, error = abs(_mean(groups)), len(groups), float(_deviations(groups).std())
    if mean <= ROUNDING:
        return 1.0
    return float(2 * stdtr(count - 1, -mean / error)) if error > ROUNDING else 2.0 ** (1 - count)


def _differences(runs: Runs, others: Runs) -> dict[Cell, float]:
    """Of the runs on the same original, forget set and seed."""
    return {cell: runs[cell] - others[cell] for cell in sorted(runs.keys() & others.keys())}


def _groups(runs: Runs) -> list[NDArray[np.float64]]:
    """The values of every original; of every run where there is one original."""
    originals: dict[int, list[float]] = {}
    for (original, _, _), value in runs.items():
        originals.setdefault(original, []).append(value)
    if len(originals) == 1:
        return [np.array([value]) for value in runs.values()]
    return [np.array(values) for _, values in sorted(originals.items())]


def _mean(groups: Sequence[NDArray[np.float64]]) -> float:
    return float(np.mean([group.mean() for group in groups]))


def _deviations(groups: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """How far the means of RESAMPLES bootstrap samples lie from the mean (RESAMPLES,), without the bias of the
    bootstrap's variance, which is (n - 1) / n of what it should be for n groups.
    """
    count = len(groups)
    if count == 1:
        return np.zeros(RESAMPLES)
    random = np.random.default_rng(0)
    drawn = random.integers(count, size=(RESAMPLES, count))
    runs = np.stack([random.choice(group, (RESAMPLES, count, len(group))).mean(2) for group in groups])
    means = np.take_along_axis(runs, drawn[np.newaxis], axis=0)[0].mean(1)
    deviations: NDArray[np.float64] = (means - _mean(groups)) * (count / (count - 1)) ** 0.5
    return deviations


def _significantly_better(runs: Sequence[Runs]) -> NDArray[np.bool_]:
    """Whether one's mean is significantly higher than another's [one, another], one coming before it.

    Where runs are missing, one that comes before may be worse on the runs that both have. That makes it no better.
    """
    better = np.zeros((len(runs), len(runs)), dtype=bool)
    pairs = list(itertools.combinations(range(len(runs)), 2))
    values = [p_value(runs[one], runs[other]) for one, other in pairs]
    for done, place in enumerate(np.argsort(values, kind="stable")):
        if values[place] > LEVEL / (len(pairs) - done):
            break  # nor is any that is less clear
        one, other = pairs[place]
        better[one, other] = _mean(_groups(_differences(runs[one], runs[other]))) > 0
    return better


def _check_comparable(sweeps: Sequence[SweepResults]) -> None:
    for sweep in sweeps:
        identity = sweep.identity
        for field, stated in (
            ("protocol_hash", content_hash(identity["protocol"])),
            ("objective", identity["protocol"]["objective"]),
            ("method", identity["method"]),
            ("method_code", identity.get("method_code")),  # none in sweeps of raymu 0.1
            ("evaluation_code", identity.get("evaluation_code")),
            ("objective_code", identity.get("objective_code")),
            ("scenario_hash", content_hash(identity["scenario"])),
        ):
            rows = [row for row in sweep.rows if field != "scenario_hash" or row["source"] != "confirmation"]
            if others := {row.get(field) for row in rows} - {stated}:
                raise InputError(
                    f"{sweep.name}/{SWEEP} was changed after the sweep: it says {field} {stated}, its rows say"
                    f" {', '.join(sorted(map(str, others)))}"
                )
    for other in sweeps[1:]:
        for field in ("protocol", "scenario", "evaluation_code", "objective_code"):
            found = list(differences(sweeps[0].identity.get(field), other.identity.get(field), field))
            if found:
                raise InputError(f"{sweeps[0].name} and {other.name} cannot be ranked together: {'; '.join(found)}")


def _check_runs(sweeps: Sequence[SweepResults]) -> None:
    """Look whether all rows were compared with the same models, and none stands in two sweeps."""
    models: dict[tuple[str, str], tuple[str, str]] = {}
    for sweep, row in ((one, row) for one in sweeps for row in one.rows):
        for column in ("original_weights", "retrained_weights"):
            if (weights := row.get(column)) is None:
                continue
            first, known = models.setdefault((row["scenario_hash"], column), (sweep.name, weights))
            if weights != known:
                raise InputError(
                    f"{first} and {sweep.name} cannot be ranked together: {column} is {known} there, {weights} here, so"
                    " their references were trained at different times or places"
                )
    for one, other in itertools.combinations(sweeps, 2):
        if is_copy(other.rows, one.rows):
            raise InputError(f"{one.name} and {other.name} hold the same trials: one is a copy, which is no second run")
