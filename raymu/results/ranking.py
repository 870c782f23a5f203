"""Ranking: methods by their tuned setting on test, with intervals, and the places that each may have as well."""

import itertools
import json
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from raymu import objective as objectives
from raymu.errors import InputError
from raymu.results import selection
from raymu.results.comparison import Cell, Estimate, Lead, Runs, estimate, leads
from raymu.results.files import SWEEP
from raymu.results.reader import SweepResults, is_copy
from raymu.results.writer import differences
from raymu.row import Row
from raymu.values import content_hash

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


class Figures(NamedTuple):
    """What a setting reaches on test: the objective's `score`, and as far as they are known MEASURED and the user's."""

    score: Estimate
    metrics: dict[str, Estimate]


class Ranked(NamedTuple):
    """A sweep in a ranking.

    Attributes:
        rank: 1 + how many sweeps have a higher mean.
        first, last: the places that it may have as well: 1 + how many sweeps are significantly better, and how many are
            not significantly worse.
        behind: how far the sweep with the highest mean is ahead of it.
        tuned: the search's row of the setting that the sweep ends with.
        published: the search's row of the published setting, if it completed.
        figures: by "original", "retrained", "published" (None if it did not complete) and "tuned".
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


def rank(sweeps: Sequence[SweepResults]) -> list[Ranked]:
    """Rank sweeps by the mean of their tuned setting's objective on test, best first.

    Means and intervals come from the confirmation alone, and so does what is significant (`comparison.leads`). The
    places from `first` to `last` of all sweeps hold together (Mohamad, Goeman and van Zwet, Computational Statistics
    and Data Analysis 2019). A sweep in which no trial completed is left out.

    Raises:
        InputError: two sweeps differ in protocol or scenario, or one is a copy of the other, or rows do not belong to
            the protocol that stands with them; the message says in which field.
    """
    _check_comparable(sweeps)
    _check_runs(sweeps)
    ends = [end for sweep in sweeps if (end := _end(sweep)) is not None]
    ends.sort(key=lambda end: (-end[0].score.mean, end[0].sweep.name))
    found = leads([runs for _, runs in ends])
    return [
        end._replace(
            rank=1 + sum(other.score.mean > end.score.mean for other, _ in ends),
            first=1 + sum(lead.significant for (_, behind), lead in found.items() if behind == place),
            last=len(ends) - sum(lead.significant for (ahead, _), lead in found.items() if ahead == place),
            behind=found.get((0, place), Lead(0.0, 0.0, 0.0)),
        )
        for place, (end, _) in enumerate(ends)
    ]


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
    end = Ranked(0, 0, 0, Lead(None, None, None), sweep, tuned, published, figures)
    return end, _runs(runs, lambda row: _score(row, objective))


def figures_of(row: Row, objective: str, runs: Sequence[Row] = ()) -> Figures:
    """Figures of a setting: over its confirmation runs, or of the one row where there is none."""

    def of(value: Callable[[Row], float | None], bounds: tuple[float, float] = (0, 1)) -> Estimate | None:
        if found := _runs(runs, value):
            return estimate(found, bounds)
        single = value(row)
        return None if single is None else Estimate(single, None, None, runs=0, originals=0)

    score = of(lambda one: _score(one, objective))
    assert score is not None
    own = [column for name in row.get("metrics", {}) if (column := f"test_{name}") in row]
    found = {column: of(operator.methodcaller("get", column)) for column in MEASURED}  # older rows lack some
    found |= {column: of(operator.methodcaller("get", column), (-math.inf, math.inf)) for column in own}
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
    return float(objectives.get(objective).of(row, {}, "test") if known is None else known)


def _runs(rows: Iterable[Row], value: Callable[[Row], float | None]) -> dict[Cell, float]:
    """What is not there, as the accuracy of a diverged run, is left out."""
    found = {}
    for row in rows:
        if (one := value(row)) is not None:
            found[row["model_seed"], json.dumps([row["forget"], row["forget_share"]]), row["seed"]] = float(one)
    return found


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
