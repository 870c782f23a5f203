"""Ranking: methods by their tuned setting on test, with intervals, and the places that each may have as well."""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from raymu import objective as objectives
from raymu.errors import InputError
from raymu.results import selection
from raymu.results.comparison import Estimate, Lead, Runs, estimate, leads
from raymu.results.groups import check_comparable, common
from raymu.results.identity import Cell
from raymu.results.reader import Results, SweepResults, loaded
from raymu.row import Row

ACCURACIES = (
    "test_retain_acc",
    "test_forget_acc",
    "test_probe_retain_acc",
    "test_probe_forget_acc",
    "test_ncc_retain_acc",
    "test_ncc_forget_acc",
)
AREAS = ("test_attack_auc",)
MEASURED = (*ACCURACIES, *AREAS)
FIXED = ("original", "retrained", "dead")  # models that no search chooses


class Figures(NamedTuple):
    """Figures of a setting on test: the objective's `score`, as far as they are known MEASURED and the user's
    `metrics`, and the numbers of retain and forget `images` that they are of; None: not known, as of raymu 0.2.
    """

    score: Estimate
    metrics: dict[str, Estimate]
    images: tuple[int, int] | None


class Ranked(NamedTuple):
    """A sweep in a ranking.

    Attributes:
        rank: 1 + how many sweeps have a higher mean.
        first, last: the places that it may have as well: 1 + how many sweeps are significantly better, and how many are
            not significantly worse.
        behind: how far the sweep with the highest mean is ahead of it.
        sweep: with all its rows.
        tuned: the search's row of the setting that the ranked part of the sweep ends with.
        published: the search's row of the published setting, if it completed.
        figures: by FIXED, "published" and "tuned"; None for what is not known or did not complete.
    """

    rank: int
    first: int
    last: int
    behind: Lead
    sweep: SweepResults
    tuned: Row
    published: Row | None
    figures: dict[str, Figures | None]

    def __repr__(self) -> str:
        """In a line, without the rows."""
        places = f"rank={self.rank}, first={self.first}, last={self.last}"
        return f"Ranked({self.sweep.name}, {places}, score={self.score.mean:.3f})"

    @property
    def score(self) -> Estimate:
        """Of the tuned setting."""
        figures = self.figures["tuned"]
        assert figures is not None
        return figures.score


def rank(results: Results) -> list[Ranked]:
    """Rank sweeps by the mean of their tuned setting's objective on test, best first. Where some have a larger budget
    than others, as after they have grown, the part that all have counts; where runs failed, the runs that all have.

    Means and intervals come from the confirmation alone, and so does what is significant (`comparison.leads`). The
    places from `first` to `last` of all sweeps hold together (Mohamad, Goeman and van Zwet, Computational Statistics
    and Data Analysis 2019). A sweep in which no trial completed is left out.

    Args:
        results: sweeps, or where they are stored.

    Raises:
        InputError: two sweeps differ in protocol or scenario, or one is a copy of the other, or rows do not belong to
            the protocol that stands with them; the message says in which field.
    """
    sweeps = loaded(results)
    check_comparable(sweeps)
    budget = common(sweeps)
    chosen = [end for sweep in sweeps if (end := _chosen(sweep, selection.part(sweep, budget))) is not None]
    shared = selection.shared(one.runs for one in chosen)
    ends = [_end(one, shared) for one in chosen]
    ends.sort(key=lambda end: (-end[0].score.mean, end[0].sweep.name))
    found = leads([runs for _, runs in ends], max((step(end.figures["tuned"]) for end, _ in ends), default=0.0))
    return [
        end._replace(
            rank=1 + sum(other.score.mean > end.score.mean for other, _ in ends),
            first=1 + sum(lead.significant for (_, behind), lead in found.items() if behind == place),
            last=len(ends) - sum(lead.significant for (ahead, _), lead in found.items() if ahead == place),
            behind=found.get((0, place), Lead(0.0, 0.0, 0.0)),
        )
        for place, (end, _) in enumerate(ends)
    ]


class _Chosen(NamedTuple):
    """Settings that a sweep ends with: the search's rows of the tuned one and, if it completed, of the published one,
    and the runs of the confirmation by the trial that they repeat.
    """

    sweep: SweepResults
    tuned: Row
    published: Row | None
    confirmed: dict[str, list[Row]]

    @property
    def runs(self) -> list[Row]:
        """The tuned setting's."""
        return self.confirmed.get(self.tuned["trial_id"], [])


def _chosen(sweep: SweepResults, rows: Sequence[Row]) -> _Chosen | None:
    """Settings that a sweep ends with, by some of its rows; None: no trial completed."""
    try:
        tuned = selection.tuned(rows)
    except selection.NothingCompleted:
        return None
    return _Chosen(sweep, tuned, selection.published(rows), selection.confirmed(rows))


def _end(chosen: _Chosen, shared: set[Cell]) -> tuple[Ranked, Runs]:
    """The sweep with its figures and without a rank, and the runs of its tuned setting.

    Args:
        shared: cells that all sweeps have: what ran on other originals does not compare; empty: they have none.
    """
    sweep, tuned, published, _ = chosen
    objective = sweep.identity["protocol"]["objective"]
    confirmed = selection.within(chosen.confirmed, shared)
    runs = confirmed.get(tuned["trial_id"], [])
    if not runs and not is_measured(tuned):
        raise InputError(f"{tuned['trial_id']} was not measured on test: --resume --confirm-seeds 1 runs it again")
    figures = {
        **_references(sweep, runs or [tuned], objective),
        "published": figures_of(published, objective, confirmed.get(published["trial_id"], [])) if published else None,
        "tuned": figures_of(tuned, objective, runs),
    }
    end = Ranked(0, 0, 0, Lead(None, None, None), sweep, tuned, published, figures)
    return end, _runs(runs, lambda row: score_on_test(row, objective))


def figures_of(row: Row, objective: str, runs: Sequence[Row] = ()) -> Figures:
    """Figures of a setting: over its confirmation runs, or of the one row where there is none."""
    retain, forget = (row.get(f"test_{part}_images") for part in ("retain", "forget"))

    def of(
        value: Callable[[Row], float | None], images: int | None = None, bounds: tuple[float, float] = (0, 1)
    ) -> Estimate | None:
        if found := _runs(runs, value):
            return estimate(found, bounds, 1 / images if images else 0.0)
        single = value(row)
        return None if single is None else Estimate(single, None, None, runs=0, originals=0)

    score = of(lambda one: score_on_test(one, objective), forget)
    assert score is not None
    found = {}
    for column in MEASURED:  # older rows lack some
        images = None if column in AREAS else retain if "retain" in column else forget
        found[column] = of(operator.methodcaller("get", column), images)
    for name in row.get("metrics", {}):
        found[f"test_{name}"] = of(operator.methodcaller("get", f"test_{name}"), bounds=(-math.inf, math.inf))
    known = {column: one for column, one in found.items() if one is not None}
    return Figures(score, known, (retain, forget) if retain and forget else None)


def is_measured(row: Row) -> bool:
    """Whether a row has figures on test, as has none that its search would not have chosen."""
    return any(row.get(column) is not None for column in MEASURED) or row["status"] != "completed"


def step(figures: Figures | None) -> float:
    """Change of a share by one forget image; 0: it is not known."""
    return 0.0 if figures is None or figures.images is None else 1 / figures.images[1]


def _references(sweep: SweepResults, runs: Sequence[Row], objective: str) -> dict[str, Figures | None]:
    """Figures of the FIXED models of these runs."""
    of_scenario = {row["scenario_hash"]: row for row in runs}
    found: dict[str, Figures | None] = {}
    for which in FIXED:
        rows = [
            {**row, "test_score": None, **sweep.references[scenario][which], "status": "completed", "seed": 0}
            for scenario, row in of_scenario.items()
            if which in sweep.references.get(scenario, {})
        ]
        found[which] = figures_of(rows[0], objective, rows) if rows else None
    return found


def score_on_test(row: Row, objective: str) -> float:
    """The objective on test, in [0, 1]; 0 of a run that diverged.

    Raises:
        InputError: a column that it reads is empty.
    """
    if row["status"] == "diverged":
        return 0.0
    known = row.get("test_score")  # none in rows of raymu 0.2
    try:
        return float(objectives.get(objective).of(row, {}, "test") if known is None else known)
    except ValueError as error:  # a column that it reads is empty
        raise InputError(f"{row['trial_id']}: {error}") from error


def _runs(rows: Iterable[Row], value: Callable[[Row], float | None]) -> dict[Cell, float]:
    """What is not there, as the accuracy of a diverged run, is left out."""
    return {selection.cell(row): float(one) for row in rows if (one := value(row)) is not None}
