"""What of a sweep is left to run, by its rows."""

from collections.abc import Container, Iterable, Sequence

from raymu.protocol import Protocol
from raymu.results.cost import expects_nothing
from raymu.results.reader import of_search
from raymu.row import Row
from raymu.tuning.sweep import Sweep, Task


def is_finished(sweep: Sweep, rows: Sequence[Row], begun: Container[int]) -> bool:
    """Whether nothing is left to run, where `begun` are the numbers of the trials that had begun and have no row."""
    searched = all(not missing(sweep, seed, rows, begun) for seed in sweep.protocol.search_seeds)
    return searched and not unconfirmed(sweep, rows)


def missing(sweep: Sweep, seed: int, rows: Sequence[Row], begun: Container[int]) -> list[int]:
    """The numbers of the trials of one search that have no row yet, and may have one within the budget. What has begun
    was within it.
    """
    spent = is_spent(sweep.protocol, of_search(seed, rows))
    done = {row["trial"] for row in rows}
    return [number for number in sweep.trials(seed) if number not in done and (number in begun or not spent)]


def unconfirmed(sweep: Sweep, rows: Sequence[Row]) -> list[Task]:
    """The runs of the confirmation that have no row yet."""
    done = {row["trial"] for row in rows}
    return [task for task in sweep.confirmations(rows) if task.number not in done]


def is_spent(protocol: Protocol, rows: Sequence[Row], now_s: float = 0.0) -> bool:
    """Whether a search has used up its images, its time or its patience, by its rows.

    Args:
        now_s: seconds that it has run, where trials are on their way whose rows will say so, too.
    """
    images, hours = protocol.max_images, protocol.max_hours
    if images is not None and sum(row["images"] for row in rows) >= images:
        return True
    if protocol.patience is not None and expects_nothing(rows, protocol.patience):
        return True
    return hours is not None and max(now_s, searched_s(rows)) >= hours * 3600


def searched_s(rows: Iterable[Row]) -> float:
    """Seconds that a search had run when its last row came, all resumptions together."""
    return max((row["search_s"] for row in rows), default=0.0)
