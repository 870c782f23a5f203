"""Compute that searches spent, as their rows record it, and what each had found at equal compute."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from raymu.errors import InputError
from raymu.results import selection
from raymu.results.reader import SweepResults, search_rows
from raymu.row import Row
from raymu.values import unknown

HOUR = 3600.0
RECORDED = ("wall_s", "workers", "threads", "device", "gpu_share")  # rows of raymu 0.1 lack some


class Spent(NamedTuple):
    """Processor hours of trials: their seconds times their workers, and times the share of a GPU that each worker had,
    or on a CPU its threads.

    Attributes:
        gpu: hours of GPUs.
        cpu: hours of CPU cores, of trials without a GPU.
        is_all: whether no trial began again or lost its process, the time of which no row says.
    """

    gpu: float
    cpu: float
    is_all: bool

    def __str__(self) -> str:
        """'1.20 GPU hours', 'more than 1.20 GPU hours, 0.31 CPU hours'."""
        both = [f"{_shown(hours)} {kind} hours" for kind, hours in (("GPU", self.gpu), ("CPU", self.cpu)) if hours]
        return ("" if self.is_all else "more than ") + (", ".join(both) or "0.00 hours")


def spent(rows: Iterable[Row]) -> Spent | None:
    """What trials spent; None where a row does not say it."""
    gpu, cpu, is_all = 0.0, 0.0, True
    for row in rows:
        if any(column not in row for column in RECORDED):
            return None
        if row["device"] is None or row.get("restarts"):  # its process died
            is_all = False
        hours = row["wall_s"] * row["workers"] / HOUR
        if row["gpu_share"] is not None:
            gpu += hours * row["gpu_share"]
        else:
            cpu += hours * row["threads"]
    return Spent(gpu, cpu, is_all)


def expects_nothing(rows: Iterable[Row], patience: int) -> bool:
    """Whether each of the last `patience` trials of a search had an expected improvement below the noise of its best
    score.
    """
    gains = [row.get("expected_gain") for row in sorted(rows, key=lambda row: row["trial"])]
    return len(gains) >= patience and all(gain is not None and gain < 1 for gain in gains[-patience:])


def hours(sweeps: Sequence[SweepResults]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a table of what each search spent: hours of GPUs, of CPU cores, or both."""
    found = [spent(search_rows(sweep)) for sweep in sweeps]
    kinds: dict[str, Callable[[Spent], float]] = {"GPU h": lambda one: one.gpu, "CPU h": lambda one: one.cpu}
    there = [kind for kind, of in kinds.items() if any(one is not None and of(one) for one in found)] or ["CPU h"]
    return there, [
        ["-" if one is None else ("" if one.is_all else ">") + _shown(kinds[kind](one)) for kind in there]
        for one in found
    ]


def _shown(hours: float) -> str:
    """In four characters, up to a thousand hours."""
    if 0 < hours < 0.005:
        return "<.01"
    return f"{hours:.2f}" if hours < 10 else f"{hours:.1f}" if hours < 100 else f"{hours:,.0f}"


def _images(row: Row) -> float:
    return float(row["images"])


def _hours(row: Row) -> float:
    of = spent([row])
    return of.gpu + of.cpu if of else 0.0


MEASURES: Mapping[str, Callable[[Row], float]] = {"images": _images, "hours": _hours}


def at_equal(sweeps: Sequence[SweepResults], measure: str) -> tuple[list[SweepResults], str]:
    """Sweeps as they were when each search had spent what the cheapest one spent in all, and what that means, in a
    sentence. Trials count in the order in which they ended. A confirmation stays where the setting that was best on
    validation by then was confirmed later; else the setting is known by a single run.

    Args:
        measure: of what was spent, "images" (that methods learnt from) or "hours" (as `spent` adds them up).

    Raises:
        InputError: there is no such measure, rows do not say it, or hours are of several kinds of processors.
    """
    if measure not in MEASURES:
        raise InputError(unknown("measure of compute", measure, list(MEASURES)))
    of_search = {sweep.name: search_rows(sweep) for sweep in sweeps}
    if measure == "hours":
        _check_hours(of_search)
    spent_by = {
        name: list(itertools.accumulate(map(MEASURES[measure], rows)))
        for name, rows in of_search.items()
        if any(row["status"] == "completed" for row in rows)
    }
    if not spent_by:
        return list(sweeps), ""
    cheapest = min(spent_by, key=lambda name: spent_by[name][-1])
    budget = spent_by[cheapest][-1]
    if not budget:
        raise InputError(f"{cheapest} spent no {measure}, so there is no equal compute to compare at")
    then = [_then(sweep, sum(so_far <= budget for so_far in spent_by.get(sweep.name, []))) for sweep in sweeps]
    single = [one.name for one in then if one.rows and one.rows == search_rows(one)]
    nothing = [one.name for one in then if not one.rows]
    said = f"Searches up to {_amount(budget, measure)} each, which is all that {cheapest} spent."
    said += f" Not confirmed at that point, so single runs: {', '.join(single)}." if single else ""
    said += f" Nothing had completed by then: {', '.join(nothing)}." if nothing else ""
    return then, said


def _then(sweep: SweepResults, trials: int) -> SweepResults:
    """A sweep with the first trials of its search, and no row if none of them completed."""
    rows = search_rows(sweep)[:trials]
    try:
        (best,) = selection.Best().choose(rows)
    except selection.NothingCompleted:
        return sweep._replace(rows=[])
    was_confirmed = best["trial_id"] in selection.confirmed(sweep.rows)
    known = {row["trial_id"] for row in rows} if was_confirmed else set()
    return sweep._replace(rows=[*rows, *(row for row in sweep.rows if row.get("confirms") in known)])


def _check_hours(of_search: Mapping[str, Sequence[Row]]) -> None:
    for name, rows in of_search.items():
        if spent(rows) is None:
            raise InputError(f"the rows of {name} do not say what its trials took; images are known: --at-equal images")
    processors = {row["processor"] for rows in of_search.values() for row in rows if row["device"] is not None}
    if len(processors) > 1:
        raise InputError(
            f"hours of different processors do not compare ({', '.join(sorted(processors))}): --at-equal images"
        )


def _amount(budget: float, measure: str) -> str:
    return f"{budget:,.0f} images" if measure == "images" else f"{_shown(budget)} hours of a processor"
