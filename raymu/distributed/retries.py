"""How often a trial was begun, what ended it before its row was there, and whether it is tried again."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from raymu.results import files, reader, writer
from raymu.row import Row
from raymu.storage import Location

RETRIES = 2  # of a trial or a reference whose process dies or hangs, or which its machine fails
LOST_NODES = 20  # that it outlives: a node that goes is no fault of it
PAUSES_S = (10.0, 60.0)  # before what was refused memory, disk or storage is tried again: they may be back by then

NODE = re.compile(
    r"actor \w* ?is unavailable|node has died|node it was running on is dead|NodeDiedError|raylet died|preempt", re.I
)
PROCESS = re.compile(r"\bactor (died|is dead)|worker (process has )?died", re.I)
MEMORY = re.compile(r"node running low on memory|memory pressure", re.I)


@dataclass(frozen=True)
class Failure:
    """What ended an attempt.

    Attributes:
        kind: a lost "node"; a "process" that died, or that was "ended" since it hung; "memory", for which Ray killed
            the process; or "machine", which raised what a method is not to blame for.
        text: what Ray says of it; of what was ended, why.
    """

    kind: Literal["node", "process", "ended", "memory", "machine"]
    text: str

    @classmethod
    def of(cls, text: str) -> "Failure":
        """Ray tells it by words alone."""
        if MEMORY.search(text):
            return cls("memory", text)
        # The traceback of what was raised in a trial, which may quote anything.
        if "Traceback" in text or "ray::" in text:
            return cls("machine", text)
        if NODE.search(text):
            return cls("node", text)
        return cls("process" if PROCESS.search(text) else "machine", text)

    def __str__(self) -> str:
        if self.kind == "node":
            return "its node was lost"
        if self.kind == "process":
            return "its process died"
        if self.kind == "memory":
            return "out of memory: Ray ended its process"
        return (self.text.strip().splitlines() or ["unknown"])[-1]


@dataclass
class Attempts:
    """Attempts at one trial, or at a reference.

    Attributes:
        config: the trial's setting.
        expected_gain: see the row's column.
        begun: how often it was.
        failures: those that count against it.
        lost_nodes: those that do not, unless they are too many.
    """

    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    expected_gain: float | None = None
    begun: int = 0
    failures: int = 0
    lost_nodes: int = 0

    def fail(self, failure: Failure) -> float | None:
        """An attempt has failed.

        Returns:
            Seconds until the next one, which is counted as begun; None: it is given up.
        """
        if failure.kind == "node":
            self.lost_nodes += 1
            again = self.lost_nodes <= LOST_NODES
        else:
            self.failures += 1
            again = self.failures <= RETRIES
        self.begun += again
        if not again:
            return None
        return PAUSES_S[self.failures - 1] if failure.kind in ("memory", "machine") else 0.0


def in_flight(directory: Location, done: Iterable[Row]) -> dict[int, dict[str, Any]]:
    """The trials of a sweep that have begun and are not among the rows, by number, as `Retries` stored them."""
    over = {row["trial"] for row in done}
    return {int(number): entry for number, entry in reader.running(directory).items() if int(number) not in over}


class Retries:
    """The trials that have begun and have no row yet. It stands in the sweep's directory (`running.json`), so that a
    sweep that is resumed goes on with their settings, and counts on.

    Args:
        rows: of the sweep.
    """

    def __init__(self, rows: writer.Store) -> None:
        self._rows = rows
        self._trials = {number: Attempts(**entry) for number, entry in in_flight(rows.directory, rows.read()).items()}

    def __contains__(self, number: object) -> bool:
        return number in self._trials

    def forget(self, first: int) -> list[int]:
        """Drop the trials from this number on, and return their numbers."""
        dropped = [number for number in self._trials if number >= first]
        for number in dropped:
            self.end(number)
        return dropped

    def __iter__(self) -> Iterator[int]:
        return iter(self._trials)

    def __getitem__(self, number: int) -> Attempts:
        return self._trials[number]

    def begin(self, number: int, config: dict[str, Any], expected_gain: float | None = None) -> None:
        """A trial is about to be run, perhaps not for the first time."""
        self._trials.setdefault(number, Attempts(config, expected_gain)).begun += 1
        self._store()

    def fail(self, number: int, failure: Failure) -> float | None:
        """An attempt has ended without a row; see `Attempts.fail`."""
        pause_s = self._trials[number].fail(failure)
        self._store()
        return pause_s

    def end(self, number: int) -> None:
        """The trial has its row, or is not run any more."""
        del self._trials[number]
        self._store()

    def _store(self) -> None:
        content = {str(number): dataclasses.asdict(trial) for number, trial in self._trials.items()}
        self._rows.put(files.RUNNING, content)
