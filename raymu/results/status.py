"""How far the sweeps of a storage are, from any machine that reads it."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from raymu.results.files import (
    ENDED,
    PROGRESS,
    SWEEP,
    files_of_sweeps,
    parts_among,
    read_identity,
    read_json,
    read_rows,
    seal_of,
)
from raymu.results.identity import has_ended
from raymu.storage import DamagedError, Location, locate, mendable

SILENT_S = 60.0  # after which a driver that gives no sign is taken for dead


class Status(NamedTuple):
    """How far a sweep is.

    Attributes:
        name: its directory relative to the storage.
        state: "ended", "running", "interrupted", or "silent": its driver was killed, or does not reach the storage.
        searched: number of trials that its searches have finished.
        trials: number that they will have, at most.
        confirmed: number of trials that were run again.
        best: highest score on validation; None: no trial has completed.
        ended_s: when the last trial ended, in seconds since 1970; None: none has.
        silent_s: seconds since the last sign of its driver; None: it is not running.
        host: where its driver runs.
        running: of each process at work `what` it works on, for how many `seconds`, the last `epoch` that has ended
            and how many `epochs` there will be (0: not known yet).
    """

    name: str
    state: str
    searched: int
    trials: int
    confirmed: int
    best: float | None
    ended_s: float | None
    silent_s: float | None
    host: str
    running: list[dict[str, Any]]


def status(storage: str | Location) -> list[Status]:
    """Status of every sweep at or below a storage.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    where = locate(storage)
    return [_status(name, where, files) for name, files in files_of_sweeps(where).items()]


def _status(name: str, storage: Location, files: Sequence[str]) -> Status:
    directory = storage / name if name else storage
    with mendable("read", directory):
        identity = read_identity(directory)
        if identity is None:
            raise DamagedError(f"{SWEEP} is gone")
        seal = seal_of(identity)
        rows = read_rows(directory, parts_among(list(files)), seal, ("ended_s",))
        ended = read_json(directory, ENDED, seal)
        progress = read_json(directory, PROGRESS, seal) or {}
    protocol = identity["protocol"]
    silent_s = max(0.0, time.time() - progress["time"]) if progress else None
    search = [row for row in rows if row.get("source") != "confirmation"]
    scores = (row["score"] for row in search if row["status"] == "completed" and row["score"] is not None)
    return Status(
        name=name or storage.name,
        state="ended" if has_ended(identity, ended) else _state(silent_s),
        searched=len(search),
        trials=protocol["trials"] * len(protocol["search_seeds"]),
        confirmed=len(rows) - len(search),
        best=max(scores, default=None),
        ended_s=max((row["ended_s"] for row in rows if row.get("ended_s")), default=None),
        silent_s=silent_s,
        host=progress.get("host", ""),
        running=progress.get("running", []),
    )


def _state(silent_s: float | None) -> str:
    if silent_s is None:
        return "interrupted"
    return "running" if silent_s < SILENT_S else "silent"
