"""The writer of one sweep's rows, in a local directory or on object storage."""

import contextlib
import datetime
import errno
import os
import socket
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from raymu.errors import InputError, StorageError
from raymu.results.files import (
    ENDED,
    PROGRESS,
    ROWS,
    SWEEP,
    all_rows,
    as_json,
    identity_and_parts,
    json_line,
    read_json,
    seal_of,
)
from raymu.results.identity import Budget, changed, differences, is_of_first_version, lasting
from raymu.results.reader import running
from raymu.results.rescue import Rescue
from raymu.row import Row
from raymu.storage import Location, locate, mendable, patiently, read_bytes, write_bytes

LOCK = ".lock"
WRITER = "writer.json"
PART_ROWS = 200  # of a part on object storage, which is written anew with every row
TELL_S = 10.0  # between two reports of progress


class _Lost(Exception):
    """The sweep's directory is gone, or has lost rows."""


class Store:
    """Writes one sweep's rows. Use it as a context manager: a sweep has one writer at a time.

    `append` returns when the row is stored, so a killed writer loses nothing, and a reader never sees half a row. What
    cannot be written is tried again for `OUTAGE_S` seconds: a disk may have room again, a storage may come back. Where
    it does not, or the directory is gone, all rows are kept on this machine (`Rescue`).

    - A local directory is locked. A row is appended by a single write and flushed to the disk; a line without its
      newline is not a row yet.
    - Object storage can neither lock nor append. Rows go into parts (`rows-00000-*.jsonl`) of at most `PART_ROWS`, of
      which the last is written anew, as a whole, with every row. Whoever claims a sweep takes it over: a writer looks
      at `writer.json` before each write, and stops when another has put its name there. Parts carry their writer's
      token, so even two that write in the same moment overwrite nothing of each other; they may then store one trial
      twice, of which readers see one, and two that claim a place before either began a trial are not kept from storing
      different sweeps there. This holds where a file appears as a whole when it is written (S3, GCS, Azure), hence not
      on HDFS.

    Args:
        location: the sweep's own directory: a path, made if missing, or a URI (see `locate`).
        identity: what the sweep is (scenario, method, space, protocol), in JSON's types.
        resume: whether to go on with what is there, and to let it grow (see `Budget`).
        is_finished: whether rows are all that the sweep is to have; None: they are as many as the protocol's `trials`.
        rescue: where on this machine rows are kept that the location loses; None: nowhere.

    Raises:
        InputError: the location cannot be written, is in use, belongs to another sweep or one of a larger budget, or
            holds one that is unfinished or of a smaller budget, and `resume` is False.

    Attributes:
        grown: by name what of the budget grows, [before, now]; nothing once that is recorded.
    """

    def __init__(
        self,
        location: Path | str | Location,
        identity: dict[str, Any],
        *,
        resume: bool,
        is_finished: Callable[[list[Row]], bool] | None = None,
        rescue: Path | None = None,
    ) -> None:
        self.directory = locate(location)
        self._held = contextlib.ExitStack()
        self._token = uuid.uuid4().hex[:12]
        self._writer = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid()}
        self._end = 0  # of the rows in a local directory, in bytes
        self._part = 0
        self._lines: list[bytes] = []  # of this part
        self._seal = seal_of(identity) or b""
        self._asked = self._identity = identity
        self._told_s = -TELL_S
        self._rescue = rescue and Rescue(rescue, self.directory)
        self._rows: list[Row] = []
        self._files: dict[str, bytes] = {}  # that were put
        self.grown: dict[str, list[int]] = {}
        try:
            if self.directory.local:
                self._lock()
            lost = self._rescue.rows(identity, resume) if self._rescue else []
            self._claim(identity, resume, is_finished or (lambda rows: len(rows) >= identity["protocol"]["trials"]))
            self._put_back(lost)
        except BaseException:
            self._held.close()
            raise

    def _put_back(self, lost: list[Row]) -> None:
        """Append rows that were rescued, but for those that are here."""
        known = {row["trial"] for row in self._rows}
        for row in lost:
            if row["trial"] not in known:
                self.append(row)
        if lost and self._rescue:
            self._rescue.clear()

    @property
    def name(self) -> str:
        """Name of the sweep and of its directory."""
        return self.directory.name

    def append(self, row: Row) -> None:
        """Add one row; it is stored when this returns.

        Raises:
            ValueError: a value is not JSON, such as a NaN.
            StorageError: it could not be stored, or another writer took the sweep over.
        """
        line = json_line(row, self._seal)
        self._rows.append(row)
        if self.directory.local:
            self._persist(lambda: self._append(line))
            return
        if len(self._lines) == PART_ROWS:
            self._part += 1
            self._lines.clear()
        name = f"rows-{self._part:05d}-{self._token}.jsonl"
        self._persist(lambda: self._write(name, b"".join([*self._lines, line])))
        self._lines.append(line)

    def put(self, name: str, content: Any) -> None:
        """Write a JSON file, such as references.json, in the place of the one that is there; no reader sees half of it.

        Raises:
            As `append`.
        """
        encoded = self._files[name] = as_json(content, self._seal)
        self._persist(lambda: self._write(name, encoded))

    def tell(self, running: list[dict[str, Any]]) -> None:
        """Write how far the processes are for `raymu status`, at most every ten seconds. It is not missed where it
        cannot be written.

        Args:
            running: see `raymu.results.status.Status`.
        """
        if (now := time.monotonic()) - self._told_s >= TELL_S:
            self._told_s = now
            content = {"time": time.time(), "host": self._writer["host"], "running": running}
            with contextlib.suppress(OSError):
                write_bytes(self.directory, PROGRESS, as_json(content, self._seal))

    def end(self, rows: int) -> None:
        """Mark the sweep as ended.

        Args:
            rows: how many it has.

        Raises:
            As `append`.
        """
        budget = Budget.of(self._identity)
        self.put(ENDED, {"rows": rows, "budget": budget and budget._asdict()})

    def record(self) -> None:
        """Write into `sweep.json` how the sweep grows, or that another version of raymu goes on with it, and when: an
        entry of its `history`.

        Raises:
            As `append`.
        """
        history, version = self._identity.get("history", []), self._asked.get("raymu")
        begun = self._identity.get("raymu")
        if not self.grown and version == (history[-1]["raymu"] if history else begun):
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        entry = {"time": now, "raymu": version, **self.grown}
        identity = self._asked | {"raymu": begun, "history": [*history, entry]}
        self._persist(lambda: self._write(SWEEP, as_json(identity)))
        self._identity, self.grown = identity, {}

    def read(self) -> list[Row]:
        """All rows so far.

        Raises:
            InputError: the storage does not answer.
        """
        return patiently("read", self.directory, partial(all_rows, self.directory))

    def _lock(self) -> None:
        with mendable("write to", self.directory):
            Path(self.directory.path).mkdir(parents=True, exist_ok=True)
            try:
                self._held.enter_context(FileLock(f"{self.directory.path}/{LOCK}", timeout=0))
            except Timeout as error:
                raise InputError(f"{self.directory} is in use by a running sweep; choose another --name") from error
            self._mark = os.open(f"{self.directory.path}/{LOCK}", os.O_RDONLY)
            self._held.callback(os.close, self._mark)

    def _claim(self, identity: dict[str, Any], resume: bool, is_finished: Callable[[list[Row]], bool]) -> None:
        with mendable("read", self.directory):
            stored, parts = identity_and_parts(self.directory)
        # One that was refused before its first trial leaves its name free.
        if stored is not None and (parts or running(self.directory)):
            if is_of_first_version(stored) or stored.get("format") != identity.get("format"):
                raise InputError(
                    f"{self.directory} belongs to another sweep: raymu is {stored.get('raymu')} there,"
                    f" {identity.get('raymu')} here, and the format is another one. It can be read, but not resumed:"
                    " choose another --name or --storage"
                )
            self.grown, shrunk = changed(stored, identity)
            if differing := [*differences(lasting(stored), lasting(identity)), *shrunk]:
                raise InputError(
                    f"{self.directory} belongs to another sweep: {'; '.join(differing)}."
                    " Choose another --name or --storage"
                )
            if self.grown and not resume:
                more = "; ".join(f"{name} is {there} there, {here} here" for name, (there, here) in self.grown.items())
                raise InputError(
                    f"{self.directory} holds this sweep with less: {more}. --resume lets it grow, another --name starts"
                    " anew"
                )
            self._rows = self.read()
            if not resume and self._rows and not is_finished(self._rows):
                raise InputError(
                    f"{self.directory} holds this sweep, unfinished; --resume continues it, another --name starts anew"
                )
            self._identity = stored
        with mendable("write to", self.directory):
            if self.directory.local:
                self._drop_half_row()
            else:
                self._part = len(parts)
                write_bytes(self.directory, WRITER, as_json(self._writer))
            if stored != self._identity:
                write_bytes(self.directory, SWEEP, as_json(identity))

    def _append(self, line: bytes) -> None:
        with open(f"{self.directory.path}/{ROWS}", "ab", buffering=0) as file:
            if file.tell() < self._end:
                raise _Lost
            if file.tell() > self._end:
                file.truncate(self._end)  # what an attempt left that failed
            if file.write(line) < len(line):
                file.truncate(self._end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
            os.fsync(file.fileno())
        self._end += len(line)

    def _drop_half_row(self) -> None:
        """Cut off what a writer that was killed in the middle of a write left behind."""
        path = Path(self.directory.path) / ROWS
        if path.exists():
            content = read_bytes(self.directory, ROWS)
            self._end = content.rfind(b"\n") + 1
            os.truncate(path, self._end)

    def _write(self, name: str, content: bytes) -> None:
        if not self.directory.local and (writer := read_json(self.directory, WRITER, b"")) != self._writer:
            if writer is None:
                raise _Lost
            raise StorageError(f"{self.directory} was taken over by another writer: {writer}")
        write_bytes(self.directory, name, content)

    def _persist(self, write: Callable[[], None]) -> None:
        def write_there() -> None:
            if not self._is_there():
                raise _Lost
            write()

        try:
            patiently("write to", self.directory, write_there)
        except _Lost:
            raise StorageError(
                f"{self.directory} is gone: it was removed, or its disk is not there any more. {self._kept()}"
            ) from None
        except InputError as error:
            raise StorageError(f"{error}. {self._kept()}") from error

    def _is_there(self) -> bool:
        """Whether a local directory is the one that was locked, and has what was asked for.

        Raises:
            OSError: that cannot be known now, as of a mount that does not answer.
        """
        if not self.directory.local:
            return True
        try:
            os.stat(f"{self.directory.path}/{SWEEP}")
            return os.path.samestat(os.fstat(self._mark), os.stat(f"{self.directory.path}/{LOCK}"))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise

    def _kept(self) -> str:
        """Sentence that says where the rows remain."""
        if self._rescue and self._rows:
            return self._rescue.keep(self._identity, self._rows, self._files)
        return "What is there stays, and the same command with --resume continues"

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self.directory.filesystem.delete_file(f"{self.directory.path}/{PROGRESS}")
        self._held.close()
