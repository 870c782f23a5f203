"""One sweep's directory: what was asked for (`sweep.json`) and one row a trial (`rows.jsonl`)."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from raymu.errors import InputError

Row = dict[str, Any]

ROWS = "rows.jsonl"
SWEEP = "sweep.json"
ENVIRONMENT = "environment.json"
REFERENCES = "references.json"
FEATURES = "features.json"


class SweepResults(NamedTuple):
    name: str
    identity: dict[str, Any]
    environment: dict[str, Any]
    references: dict[str, dict[str, Row]]
    features: dict[str, Any] | None
    rows: list[Row]


def load(storage: Path | str) -> list[SweepResults]:
    storage = Path(storage)
    found = []
    for d in sweeps(storage):

        def get(name, default=None):
            return json.loads((d / name).read_text()) if (d / name).exists() else default

        found.append(
            SweepResults(
                str(d.relative_to(storage)) if d != storage else d.name,
                get(SWEEP),
                get(ENVIRONMENT, {}),
                get(REFERENCES, {}),
                get(FEATURES),
                read(d),
            )
        )
    return found


LOCK = ".lock"


class Store:
    """Writes one sweep's rows. Use it as a context manager: only one process at a time may hold a directory.

    Every row is appended by a single write and flushed to the disk before `append` returns, so a killed writer loses
    nothing, and a line without its newline is not a row yet, so a reader never sees half of one.

    Args:
        directory: the sweep's own directory; made if missing.
        identity: what the sweep is (scenario, method, space, protocol), in JSON's types.
        resume: whether to go on with what is there.

    Raises:
        InputError: the directory cannot be written, is in use, belongs to another sweep, or holds an unfinished one
            and `resume` is False.
    """

    def __init__(self, directory: Path | str, identity: dict[str, Any], *, resume: bool, is_finished: Any) -> None:
        directory = Path(directory)
        self.directory, self.name, self._is_finished = directory, directory.name, is_finished
        self._lock = FileLock(directory / LOCK, timeout=0)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise InputError(f"{directory} is in use by a running sweep; choose another --name") from error
        except OSError as error:
            raise InputError(f"cannot write to {directory}: {error.strerror}") from error
        try:
            self._claim(identity, resume=resume)
        except BaseException:
            self._lock.release()
            raise

    def _claim(self, identity: dict[str, Any], *, resume: bool) -> None:
        path = self.directory / SWEEP
        if not path.exists():
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(identity, indent=2) + "\n")
            os.replace(unfinished, path)
            return
        differing = list(differences(json.loads(path.read_text()), identity))
        if differing:
            raise InputError(
                f"{self.directory} belongs to another sweep: {'; '.join(differing)}. Choose another --name or --storage"
            )
        self._drop_half_row()
        rows = read(self.directory)
        if not resume and rows and not self._is_finished(rows):
            raise InputError(
                f"{self.directory} holds this sweep, unfinished; --resume continues it, another --name starts anew"
            )

    def put(self, name: str, content: Any) -> None:
        path = self.directory / name
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(unfinished, path)

    def read(self) -> list[Row]:
        return read(self.directory)

    def append(self, row: Row) -> None:
        """Add one row; it is on the disk when this returns."""
        line = json.dumps(row, allow_nan=False) + "\n"
        descriptor = os.open(self.directory / ROWS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _drop_half_row(self) -> None:
        """Cut off what a writer that was killed in the middle of a write left behind."""
        path = self.directory / ROWS
        if path.exists():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


def read(directory: Path | str) -> list[Row]:
    """All rows of one sweep, in the order in which the trials ended; also while the sweep runs."""
    path = Path(directory) / ROWS
    if not path.exists():
        return []
    complete = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in complete.splitlines()]


def sweeps(storage: Path) -> list[Path]:
    """The directories of all sweeps at or below `storage`.

    Raises:
        InputError: there is none.
    """
    found = sorted(path.parent for path in storage.rglob(SWEEP)) if storage.is_dir() else []
    if not found:
        raise InputError(f"no sweep in {storage}")
    return found


def read_all(storage: Path) -> list[Row]:
    """The rows of all sweeps at or below `storage`.

    Raises:
        InputError: there is no sweep.
    """
    return [row for directory in sweeps(storage) for row in read(directory)]


def differences(stored: Any, asked: Any, name: str = "") -> Iterator[str]:
    """'protocol.trials is 24 there, 30 here', for every field that differs."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in stored | asked:
            yield from differences(stored.get(key), asked.get(key), f"{name}.{key}" if name else key)
    elif stored != asked:
        yield f"{name} is {stored} there, {asked} here"
