"""Selection rules: which settings of a search are the best. They read validation, and no more.

Each rule has `choose(rows)`: of the rows of one sweep, those it takes, best first.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from raymu.errors import InputError
from raymu.objective import pair
from raymu.results.identity import Budget, Cell, place_of
from raymu.results.reader import Results, SweepResults, loaded
from raymu.row import COMPARABLE, Row, seen, values
from raymu.values import unknown

Setting = TypeVar("Setting")  # however settings are told apart
RULES = ("tuned", "pareto", "cheapest", "constrained")


class NothingCompleted(InputError):
    """There is nothing to choose from."""


class Rule(Protocol):
    """A way to choose."""

    def choose(self, rows: Iterable[Row]) -> list[Row]:
        """Rows of one sweep in, the chosen ones out, best first.

        Raises:
            InputError: there is none to choose, or the rows are of several scenarios, objectives or protocols, whose
                scores do not compare.
        """


@dataclass(frozen=True)
class Best:
    """The highest scores of a search that another run is expected to reach, but not above what was reached; of several
    0 what the searcher saw below decides; among equals the earliest trial, and no setting twice.

    The highest of many scores is the luckiest of near-equals: what its search learnt of others near it tells more.
    """

    count: int = 1

    def choose(self, rows: Iterable[Row]) -> list[Row]:
        """The best `count`, fewer where there are fewer."""
        chosen: list[Row] = []
        for row in sorted(candidates(rows), key=lambda row: (*_best_first(row), row["trial"])):
            if len(chosen) == self.count:
                break
            if all(row["config"] != one["config"] for one in chosen):
                chosen.append(row)
        return chosen


@dataclass(frozen=True)
class ParetoFront:
    """The trials of a search that no other beats in retain accuracy and in probe-forget accuracy; of equals the
    earliest. The most retaining first.
    """

    def choose(self, rows: Iterable[Row]) -> list[Row]:
        """The front."""
        front: list[Row] = []
        for row in sorted(candidates(rows), key=lambda row: (*(-value for value in pair(row)), row["trial"])):
            if not front or pair(row)[1] > pair(front[-1])[1]:
                front.append(row)
        return front


@dataclass(frozen=True)
class Constrained:
    """The least probe-forget accuracy among the trials that lose little retain accuracy.

    Attributes:
        original: the original's row.
        loss: how far below the original's retain accuracy is allowed, in [0, 1].
    """

    original: Mapping[str, Any]
    loss: float

    def choose(self, rows: Iterable[Row]) -> list[Row]:
        """That one."""
        least = pair(self.original)[0] - self.loss
        allowed = [row for row in candidates(rows) if pair(row)[0] >= least]
        if not allowed:
            raise InputError(f"no completed trial keeps a retain accuracy of {least:.3f} on validation")
        return [min(allowed, key=lambda row: (-pair(row)[1], -pair(row)[0], row["trial"]))]


@dataclass(frozen=True)
class Cheapest:
    """The fewest images read among the confirmed settings within one standard error of the best (Breiman et al.,
    Classification and Regression Trees, 1984, Section 3.4.3), by their mean scores over the runs of the confirmation
    that all of them have. Seconds would depend on what else a machine did.
    """

    def choose(self, rows: Iterable[Row]) -> list[Row]:
        """That one, as the search found it."""
        rows = list(rows)
        runs = compared(confirmed(rows))
        if not runs or min(map(len, runs.values())) < 2:
            raise InputError("the standard error of a score is known once a setting was confirmed at least twice")
        scores = {trial: [score(run) for run in of] for trial, of in runs.items()}
        best = max(scores.values(), key=statistics.fmean)
        least = statistics.fmean(best) - statistics.stdev(best) / len(best) ** 0.5
        near = [trial for trial, found in scores.items() if statistics.fmean(found) >= least]
        images = {trial: statistics.fmean(run["images"] for run in runs[trial]) for trial in near}
        cheapest = min(near, key=lambda trial: (images[trial], -statistics.fmean(scores[trial])))
        return [row for row in candidates(rows) if row["trial_id"] == cheapest]


def best(results: Results, *, method: str | None = None, rule: str = "tuned") -> list[Row]:
    """Rows that a rule chooses, on validation: from each sweep, whatever its budget, and then from these, by the mean
    scores over their confirmations if all have one.

    Args:
        results: sweeps, or where they are stored.
        method: only trials of this method.
        rule: "tuned", "pareto", "cheapest" or "constrained:SHARE" (see the classes of this module).

    Raises:
        InputError: there is no such rule or method, or nothing to choose from.
    """
    kind, _, argument = rule.partition(":")
    if kind not in RULES:
        raise InputError(unknown("rule", kind, list(RULES)))
    if argument and kind != "constrained":
        raise InputError(f"rule {kind} takes no {argument!r}")
    sweeps = loaded(results)
    if not sweeps:
        raise NothingCompleted("there is no sweep to choose from")
    if method is not None:
        known = sorted({row["method"] for sweep in sweeps for row in sweep.rows})
        if method not in known:
            raise InputError(unknown("method in this storage", method, known))
        sweeps = [sweep for sweep in sweeps if any(row["method"] == method for row in sweep.rows)]
    sweeps = [sweep._replace(rows=part(sweep)) for sweep in sweeps]
    rows = [row for sweep in sweeps for row in sweep.rows]
    if kind == "pareto":
        return ParetoFront().choose(rows)
    if kind == "constrained":
        try:
            loss = float(argument)
        except ValueError as error:
            raise InputError(f"rule constrained takes a share, as in constrained:0.02, not {argument!r}") from error
        scenario = candidates(rows)[0]["scenario_hash"]
        original = next(
            (sweep.references[scenario]["original"] for sweep in sweeps if scenario in sweep.references), None
        )
        if original is None:
            raise InputError("the results do not say what the original reached")
        return Constrained(original, loss).choose(rows)
    chosen, runs, reasons = list[Row](), list[list[Row]](), list[InputError]()
    for sweep in sweeps:
        try:
            row = tuned(sweep.rows) if kind == "tuned" else Cheapest().choose(sweep.rows)[0]
        except InputError as error:
            reasons.append(error)
            continue
        chosen.append(row)
        runs.append(confirmed(sweep.rows).get(row["trial_id"], []))
    if not chosen:
        raise reasons[0]
    candidates(chosen)  # they compare
    if not all(runs):
        return Best().choose(chosen)
    means = _means(dict(enumerate(runs)))
    return [chosen[max(means, key=means.__getitem__)]]


def tuned(rows: Iterable[Row]) -> Row:
    """The search's row of the setting that a sweep ends with: of those that were confirmed the one with the highest
    mean score over the confirmation, on validation; where the best of the search was not confirmed, that one.

    Raises:
        InputError: as Rule.choose.
    """
    rows = list(rows)
    best, runs = Best().choose(rows)[0], confirmed(rows)
    if not runs or all(row["config"] != best["config"] for row in rows if row["source"] == "confirmation"):
        return best
    of_search = {row["trial_id"]: row for row in candidates(rows)}
    means = _means(runs)
    return of_search[max(means, key=lambda trial: (*means[trial], -of_search[trial]["trial"]))]


def _means(runs: Mapping[Setting, Sequence[Row]]) -> dict[Setting, tuple[float, float]]:
    """Mean scores over the runs of each setting that are compared, and as the searcher would have seen them."""
    return {
        trial: (statistics.fmean(map(score, of)), statistics.fmean(map(_seen, of)))
        for trial, of in compared(runs).items()
    }


def published(rows: Iterable[Row]) -> Row | None:
    """The search's row of the published setting, if it completed."""
    return next((row for row in rows if row["source"] == "published" and row["status"] == "completed"), None)


def to_confirm(rows: Iterable[Row], top: int) -> list[Row]:
    """The search's rows of the settings that a confirmation runs again: the best ones, and the published one."""
    rows = list(rows)
    try:
        best = Best(top).choose(rows)
    except NothingCompleted:
        return []
    if (first := published(rows)) is None:
        return best
    # Where it is one of the best, another search may have tried it as well.
    return [*(row for row in best if row["config"] != first["config"]), first]


def part(sweep: SweepResults, budget: Budget | None = None) -> list[Row]:
    """Rows of a sweep that it would have under another budget; None: under its own. Where a sweep has grown, it may
    also have confirmed settings that are not the best any more, or on the original that was searched on.
    """
    budget = budget or Budget.of(sweep.identity)
    if budget is None:
        return sweep.rows
    search_seeds, scenario = sweep.identity["protocol"]["search_seeds"], sweep.identity["scenario"]
    seeds, originals = budget.fresh_seeds(search_seeds), budget.fresh_originals(scenario["model_seed"])

    def is_searched(row: Row) -> bool:
        return row["source"] != "confirmation" and place_of(row["trial"], search_seeds) < budget.trials

    again = {row["trial_id"] for row in to_confirm(filter(is_searched, sweep.rows), budget.top)}
    return [
        row
        for row in sweep.rows
        if is_searched(row) or (row["confirms"] in again and row["seed"] in seeds and row["model_seed"] in originals)
    ]


def confirmed(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The runs of the confirmation, by the trial they repeat, as far as that is there. A diverged one counts, with its
    score of 0; one that ended in an error says nothing of the setting.
    """
    rows = list(rows)
    searched = {row["trial_id"] for row in rows if row["source"] != "confirmation"}
    runs: dict[str, list[Row]] = {}
    for row in rows:
        if row["confirms"] in searched and row["status"] in ("completed", "diverged"):
            runs.setdefault(row["confirms"], []).append(row)
    return runs


def candidates(rows: Iterable[Row]) -> list[Row]:
    """The trials of a search that completed and have a score.

    One that was stopped early is no candidate: its row tells of fewer epochs than its setting says.

    Raises:
        NothingCompleted: there is none.
        InputError: they are of several scenarios, originals, objectives or protocols, or evaluated by different code.
    """
    found = [
        row
        for row in rows
        if row["source"] != "confirmation" and row["status"] == "completed" and _is_number(row["score"])
    ]
    if not found:
        raise NothingCompleted("no completed trial to choose from")
    for field, *of in zip(COMPARABLE, *values(found, COMPARABLE), strict=True):
        if len(several := sorted(set(map(str, of)))) > 1:
            raise InputError(
                f"rows of several kinds ({field}: {', '.join(several)}) do not compare; name one sweep's directory"
            )
    return found


def sure(row: Row) -> float:
    """Score on validation of a completed trial, or what another run is expected to have, if that is known and less. The
    published setting's stays as it is, so that none is chosen that was worse.
    """
    expected = None if row["source"] == "published" else row.get("expected_score")
    return score(row) if expected is None else min(score(row), expected)


def is_best(row: Row, done: Iterable[Row]) -> bool:
    """Whether a completed trial is the best beside those that are done, or one of several, by what `Best` goes by."""
    own = _best_first(row)
    return all(own <= _best_first(one) for one in done if one["status"] == "completed")


def _best_first(row: Row) -> tuple[float, float]:
    """Key that orders completed trials as `Best` does."""
    return -sure(row), -_seen(row)


def cell(row: Row) -> Cell:
    """Original, forget set and unlearning seed of a confirmation's run: settings compare where these are the same."""
    return row["model_seed"], json.dumps([row["forget"], row["forget_share"]]), row["seed"]


def shared(settings: Iterable[Iterable[Row]]) -> set[Cell]:
    """Cells in which all settings ran that ran at all, by the runs of each."""
    known = [cells for runs in settings if (cells := set(map(cell, runs)))]
    return set.intersection(*known) if known else set()


def compared(runs: Mapping[Setting, Sequence[Row]]) -> dict[Setting, list[Row]]:
    """Runs of each setting that all settings have, if there are any: a run may have failed or not have come yet."""
    return within(runs, shared(runs.values()))


def within(runs: Mapping[Setting, Sequence[Row]], cells: set[Cell]) -> dict[Setting, list[Row]]:
    """Runs of each setting in some cells; all of them where there is no cell."""
    return {trial: [run for run in of if not cells or cell(run) in cells] for trial, of in runs.items()}


def score(row: Row) -> float:
    """On validation; 0 where there is none, as of a trial that diverged."""
    return float(row["score"]) if _is_number(row["score"]) else 0.0


def _seen(row: Row) -> float:
    """Score on validation as the searcher saw it, which goes on below 0."""
    return seen(row) if row["status"] == "completed" and row.get("curve") else score(row)


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)
