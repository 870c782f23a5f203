"""Which setting is best. Selection reads a row's status and score, which is computed on validation, and no more."""

from collections.abc import Iterable
from typing import Any

from raymu.errors import InputError

Row = dict[str, Any]


def best(rows: Iterable[Row]) -> Row:
    """The completed row with the highest score; among equals the earliest trial.

    A trial that was stopped early is no candidate: its row is that of fewer epochs than its setting says.

    Raises:
        InputError: no row is completed, or they are of several scenarios or objectives, whose scores do not compare.
    """
    candidates = [row for row in rows if row["status"] == "completed"]
    if not candidates:
        raise InputError("no completed trial to choose from")
    for field in ("scenario_hash", "objective"):
        values = sorted({row[field] for row in candidates})
        if len(values) > 1:
            raise InputError(
                f"rows of several kinds ({field}: {', '.join(values)}) do not compare; name one sweep's directory"
            )
    return max(candidates, key=lambda row: (row["score"], -row["trial"]))


def published(rows: Iterable[Row]) -> Row | None:
    """The row of the published setting, if it completed."""
    return next((row for row in rows if row["source"] == "published" and row["status"] == "completed"), None)
