"""Sweeps' results, in a local directory or on object storage.

One sweep's directory holds what was asked for (`sweep.json`), one row a trial (`rows*.jsonl`, read in order of their
names), and whatever else its writer puts there (`running.json`, `environment.json`, `references.json`,
`features.json`, and at the end `ended.json`).
"""

import contextlib
import errno
import fnmatch
import gc
import hashlib
import json
import logging
import os
import re
import socket
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from filelock import FileLock, Timeout
from pyarrow.fs import FileSelector, FileType

from raymu.errors import InputError, StorageError
from raymu.scenario import content_hash
from raymu.storage import DamagedError, Location, locate, mendable, patiently, read_bytes, write_bytes

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]

ROWS = "rows.jsonl"
LOCK = ".lock"
WRITER = "writer.json"
SWEEP = "sweep.json"
RUNNING = "running.json"
ENVIRONMENT = "environment.json"
REFERENCES = "references.json"
FEATURES = "features.json"
ENDED = "ended.json"

CHECKSUM = b'"checksum": "'  # a field of rows and JSON files, over what precedes it
PART = re.compile(r"rows(-\d{5}-[0-9a-f]{12})?\.jsonl")
PART_ROWS = 200  # of a part on object storage, which is written anew with every row
MEANINGS = {  # of fields that say little by themselves
    "protocol.suggestions": "other versions of Optuna, NumPy or SciPy suggest other settings; see environment.json",
    "protocol.decisions": "another version of Ray stops other trials; see environment.json",
}
READERS = 16  # parts read at once: on object storage the wait is for answers


class Store:
    """Writes one sweep's rows. Use it as a context manager: a sweep has one writer at a time.

    `append` returns when the row is stored, so a killed writer loses nothing, and a reader never sees half a row. What
    cannot be written is tried again for `OUTAGE_S` seconds: a disk may have room again, a storage may come back.

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
        resume: whether to go on with what is there.
        is_finished: whether rows are all that the sweep shall have; None: they are as many as the protocol's `trials`.

    Raises:
        InputError: the location cannot be written, is in use, belongs to another sweep, or holds an unfinished one
            and `resume` is False.
    """

    def __init__(
        self,
        location: Path | str | Location,
        identity: dict[str, Any],
        *,
        resume: bool,
        is_finished: Callable[[list[Row]], bool] | None = None,
    ) -> None:
        self.directory = locate(location)
        self._held = contextlib.ExitStack()
        self._token = uuid.uuid4().hex[:12]
        self._writer = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid()}
        self._end = 0  # of the rows in a local directory, in bytes
        self._part = 0
        self._lines: list[bytes] = []  # of this part
        self._seal = content_hash(identity).encode()
        try:
            if self.directory.local:
                self._lock()
            self._claim(identity, resume, is_finished or (lambda rows: len(rows) >= identity["protocol"]["trials"]))
        except BaseException:
            self._held.close()
            raise

    @property
    def name(self) -> str:
        """The sweep's name: that of its directory."""
        return self.directory.name

    def append(self, row: Row) -> None:
        """Add one row; it is stored when this returns.

        Raises:
            ValueError: a value is not JSON, such as a NaN.
            StorageError: it could not be stored, or another writer took the sweep over.
        """
        line = _line(row, self._seal)
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
        encoded = _as_json(content, self._seal)
        self._persist(lambda: self._write(name, encoded))

    def end(self, rows: int) -> None:
        """Mark the sweep as ended.

        Args:
            rows: how many it has.

        Raises:
            As `append`.
        """
        self.put(ENDED, {"rows": rows})

    def read(self) -> list[Row]:
        """All rows so far.

        Raises:
            InputError: the storage does not answer.
        """
        return patiently("read", self.directory, partial(_all_rows, self.directory))

    def _lock(self) -> None:
        with mendable("write to", self.directory):
            Path(self.directory.path).mkdir(parents=True, exist_ok=True)
            try:
                self._held.enter_context(FileLock(f"{self.directory.path}/{LOCK}", timeout=0))
            except Timeout as error:
                raise InputError(f"{self.directory} is in use by a running sweep; choose another --name") from error

    def _claim(self, identity: dict[str, Any], resume: bool, is_finished: Callable[[list[Row]], bool]) -> None:
        with mendable("read", self.directory):
            stored, parts = _found(self.directory)
        # One that was refused before its first trial leaves its name free.
        if stored is not None and (parts or running(self.directory)):
            if _is_of_first_version(stored):
                raise InputError(
                    f"{self.directory} belongs to another sweep: raymu is {stored['raymu']} there,"
                    f" {identity['raymu']} here. Sweeps of raymu 0.1 can be read, but not resumed: choose another"
                    " --name or --storage"
                )
            differing = list(differences(stored, identity))
            if differing:
                raise InputError(
                    f"{self.directory} belongs to another sweep: {'; '.join(differing)}."
                    " Choose another --name or --storage"
                )
            if not resume and (rows := read(self.directory)) and not is_finished(rows):
                raise InputError(
                    f"{self.directory} holds this sweep, unfinished; --resume continues it, another --name starts anew"
                )
        with mendable("write to", self.directory):
            if self.directory.local:
                self._drop_half_row()
            else:
                self._part = len(parts)
                write_bytes(self.directory, WRITER, _as_json(self._writer))
            if stored != identity:
                write_bytes(self.directory, SWEEP, _as_json(identity))

    def _append(self, line: bytes) -> None:
        with open(f"{self.directory.path}/{ROWS}", "ab", buffering=0) as file:
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
            content = path.read_bytes()
            self._end = content.rfind(b"\n") + 1
            os.truncate(path, self._end)

    def _write(self, name: str, content: bytes) -> None:
        if not self.directory.local and (writer := read_json(self.directory, WRITER, b"")) != self._writer:
            raise StorageError(f"{self.directory} was taken over by another writer: {writer}")
        write_bytes(self.directory, name, content)

    def _persist(self, write: Callable[[], None]) -> None:
        try:
            patiently("write to", self.directory, write)
        except InputError as error:
            raise StorageError(f"{error}. What is there stays, and the same command with --resume continues") from error

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()


class SweepResults(NamedTuple):
    """All that is stored of one sweep.

    Attributes:
        name: its directory relative to the storage, such as "salun" or "all/salun"; its own name where it is the
            storage.
        identity: what was asked for.
        environment: versions, git, machine, start; empty where none is stored.
        references: rows of "original" and "retrained" by scenario hash; empty where none are stored.
        features: pictures of the features; None where there are none.
        rows: one a trial, in the order in which they ended. Where another sweep's have the same `trial_id`, as two
            of one method in two folders, it begins with the sweep's name.
        missing: what is known to be missing of its rows, in a sentence; "" where nothing is.
    """

    name: str
    identity: dict[str, Any]
    environment: dict[str, Any]
    references: dict[str, dict[str, Row]]
    features: dict[str, Any] | None
    rows: list[Row]
    missing: str = ""


def read(location: Path | str | Location) -> list[Row]:
    """All rows of one sweep, in the order in which the trials ended; also while the sweep runs.

    Raises:
        InputError: the location cannot be read.
    """
    directory = locate(location)
    with mendable("read", directory):
        return _all_rows(directory)


def running(location: Path | str | Location) -> dict[str, Any]:
    """What is stored of the trials on their way, by number; nothing where that is missing or damaged.

    Raises:
        InputError: the location cannot be read.
    """
    directory = locate(location)
    with mendable("read", directory), contextlib.suppress(DamagedError):
        return read_json(directory, RUNNING, _seal_of(_identity(directory))) or {}
    return {}


def sweeps(storage: Path | str | Location) -> list[Location]:
    """The directories of all sweeps at or below `storage`.

    Raises:
        InputError: there is none, or the storage cannot be read.
    """
    where = locate(storage)
    return [where / name if name else where for name in _tree(where)]


def read_all(storage: Path | str | Location) -> list[Row]:
    """The rows of all sweeps at or below `storage`.

    Raises:
        InputError: there is no sweep, or the storage cannot be read.
    """
    return [row for sweep in load(storage) for row in sweep.rows]


def load(storage: Path | str | Location) -> list[SweepResults]:
    """All that is stored of all sweeps at or below `storage`, by name.

    Raises:
        InputError: there is no sweep, or the storage cannot be read.
    """
    where = locate(storage)
    results: list[SweepResults] = []
    for name, files in _tree(where).items():
        directory = where / name if name else where
        with mendable("read", directory):
            identity = _identity(directory)
            assert identity is not None
            seal = _seal_of(identity)
            others = (ENVIRONMENT, REFERENCES, FEATURES, ENDED)
            content = {file: read_json(directory, file, seal) for file in others if file in files}
            rows = _rows(directory, _parts(files), seal)
            _check_references(directory, content.get(REFERENCES, {}), rows)
            missing = _missing(identity, content.get(ENDED), len(rows))
            if missing:
                logging.getLogger(__name__).warning("%s: %s", directory, missing)
            if copied := next((one.name for one in results if is_copy(rows, one.rows)), None):
                logging.getLogger(__name__).warning("%s holds the trials of %s: it is a copy", directory, copied)
            results.append(
                SweepResults(
                    name=name or where.name,
                    identity=identity,
                    environment=content.get(ENVIRONMENT, {}),
                    references=content.get(REFERENCES, {}),
                    features=content.get(FEATURES),
                    rows=rows,
                    missing=missing,
                )
            )
    return _told_apart(results)


def _told_apart(sweeps: list[SweepResults]) -> list[SweepResults]:
    """The sweeps, with another `trial_id` for every trial."""
    names = [{row["trial_id"] for row in sweep.rows if "trial_id" in row} for sweep in sweeps]
    taken = Counter(name for own in names for name in own)

    def renamed(sweep: SweepResults, row: dict[str, Any]) -> dict[str, Any]:
        named = {key: row[key] for key in ("trial_id", "confirms") if row.get(key)}
        return row | {key: f"{sweep.name}-{value.rpartition('-')[2]}" for key, value in named.items()}

    return [
        sweep._replace(
            rows=[renamed(sweep, row) for row in sweep.rows],
            features=sweep.features and renamed(sweep, sweep.features),
        )
        if any(taken[name] > 1 for name in own)
        else sweep
        for sweep, own in zip(sweeps, names, strict=True)
    ]


def _check_references(directory: Location, stored: dict[str, dict[str, Row]], rows: list[Row]) -> None:
    """Look whether references.json is of the models that the rows were compared with."""
    for row in rows:
        for which, found in stored.get(row["scenario_hash"], {}).items():
            weights = row.get(f"{which}_weights")
            if weights is not None and weights != found.get("weights"):
                raise InputError(
                    f"{directory}: the {which} model of trial {row['trial']} ({weights}) is not the one in {REFERENCES}"
                    f" ({found.get('weights')}), so one of the two is of another run"
                )


def is_copy(rows: list[Row], others: list[Row]) -> bool:
    """Whether two sweeps hold the same trials, whatever their names."""
    if not rows:
        return False
    measured = {column: value for column, value in rows[0].items() if column not in ("trial_id", "confirms")}
    return any(
        all(other.get(column) == value for column, value in measured.items()) and other.keys() == rows[0].keys()
        for other in others
    )


def _missing(identity: dict[str, Any], ended: dict[str, Any] | None, rows: int) -> str:
    if _is_of_first_version(identity):  # which did not say when a sweep had ended
        return ""
    if ended is None:
        return f"the sweep has not ended; {rows} rows so far"
    return "" if rows == ended["rows"] else f"{rows} of its {ended['rows']} rows are there"


def table(storage: Path | str | Location) -> "pandas.DataFrame":
    """All rows of all sweeps at or below `storage`: a line a trial, a column a field, NaN or None where it has none.

    `sweep` is the sweep's name as in `load`. The setting has a column a hyperparameter: `config.lr`, `config.epochs`.

    Raises:
        InputError: there is no sweep, or the storage cannot be read.
    """
    import pandas

    rows = [
        {**row, "sweep": sweep.name, **{f"config.{name}": value for name, value in row["config"].items()}}
        for sweep in load(storage)
        for row in sweep.rows
    ]
    return pandas.DataFrame(rows).drop(columns="config", errors="ignore")


def _tree(storage: Location) -> dict[str, list[str]]:
    """The names of the files of every sweep, by its directory relative to the storage."""
    files = defaultdict(list)
    with mendable("read", storage):
        for path in _files(storage, recursive=True):
            directory, _, name = path.rpartition("/")
            files[directory].append(name)
    found = {directory: names for directory, names in sorted(files.items()) if SWEEP in names}
    for directory in sorted(files.keys() - found.keys()):
        if any(map(PART.fullmatch, files[directory])):
            logging.getLogger(__name__).warning("left out: %s has rows, but no %s", storage / directory, SWEEP)
    if not found:
        raise InputError(f"no sweep in {storage}")
    return found


def _files(directory: Location, *, recursive: bool = False) -> list[str]:
    """Paths relative to the directory; none where it is missing."""
    if directory.local and recursive:  # pyarrow follows links, even in a circle, and gives up where it may not look
        tree = _walk(directory.path)
        return [os.path.relpath(f"{parent}/{name}", directory.path) for parent, names in tree for name in names]
    chosen = FileSelector(directory.path, allow_not_found=True, recursive=recursive)
    found = directory.filesystem.get_file_info(chosen)
    return [info.path[len(directory.path) :].lstrip("/") for info in found if info.type == FileType.File]


def _walk(top: str) -> Iterator[tuple[str, list[str]]]:
    """Every local directory at or below the top, or to which a link there leads, with the names of its files; each
    once, under its own name rather than that of a link. A link to a directory that holds it is left out. Of what cannot
    be looked at, and of a link to nothing, a warning tells.
    """

    def warn(what: object) -> None:
        if not isinstance(what, FileNotFoundError):  # as a storage that is not there yet
            logging.getLogger(__name__).warning("left out: %s", what)

    seen: set[str] = set()
    tops = deque([top])
    while tops:
        for parent, folders, names in os.walk(tops.popleft(), onerror=warn):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield parent, names
            for link in sorted(filter(os.path.islink, (f"{parent}/{folder}" for folder in folders))):
                if os.path.commonpath([real, os.path.realpath(link)]) != os.path.realpath(link):
                    tops.append(link)
            for link in filter(os.path.islink, (f"{parent}/{name}" for name in names)):
                if not os.path.exists(link):
                    warn(f"{link} is a link to nothing")


def _parts(files: list[str]) -> list[str]:
    named = fnmatch.filter(files, "rows*.jsonl")
    for name in named:
        if not PART.fullmatch(name):
            logging.getLogger(__name__).warning("left out: %s is no file of a sweep", name)
    return sorted(filter(PART.fullmatch, named))


def _all_rows(directory: Location) -> list[Row]:
    identity, parts = _found(directory)
    return _rows(directory, parts, _seal_of(identity))


def _found(directory: Location) -> tuple[dict[str, Any] | None, list[str]]:
    """Content of `sweep.json`, None where it is missing, and the names of the files with rows.

    Raises:
        DamagedError: there are rows without it.
    """
    identity, parts = _identity(directory), _parts(_files(directory))
    if parts and identity is None:
        raise DamagedError(f"there are rows, but no {SWEEP}")
    return identity, parts


def _rows(directory: Location, parts: list[str], seal: bytes | None) -> list[Row]:
    collecting = gc.isenabled()
    gc.disable()  # it would look through all rows again and again: two thirds of the time
    try:
        with ThreadPoolExecutor(READERS) as pool:
            contents = pool.map(partial(read_bytes, directory), parts)
            by_trial: dict[int, Row] = {}
            for name, content in zip(parts, contents, strict=True):
                for row in _parsed(directory, name, content, seal):
                    by_trial.setdefault(row["trial"], row)
            return list(by_trial.values())
    finally:
        if collecting:
            gc.enable()


def _parsed(directory: Location, name: str, content: bytes, seal: bytes | None) -> list[Row]:
    """The rows of a part. What follows the last newline is not a row yet.

    Raises:
        InputError: a line is damaged or of another sweep.
    """
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            rows.append(_opened(line, seal))
        except (orjson.JSONDecodeError, DamagedError) as error:
            raise InputError(f"cannot read {directory}: line {number} of {name} is damaged ({error})") from error
    return rows


def _line(row: Row, seal: bytes) -> bytes:
    return _sealed(json.dumps(row, allow_nan=False, ensure_ascii=False).encode(errors="replace"), seal) + b"\n"


def _identity(directory: Location) -> dict[str, Any] | None:
    """Content of `sweep.json`; None where it is missing."""
    found: dict[str, Any] | None = read_json(directory, SWEEP, b"")
    return found


def _seal_of(identity: dict[str, Any] | None) -> bytes | None:
    """Start of what the checksums of a sweep's rows and files are computed over. Every sweep has its own, so checksums
    of another sweep do not fit. None for sweeps of raymu 0.1, which had no checksums.
    """
    return None if identity is None or _is_of_first_version(identity) else content_hash(identity).encode()


def _sealed(content: bytes, seal: bytes) -> bytes:
    """A JSON object with a checksum over the seal and all that precedes it as its last field."""
    body = content.rstrip().removesuffix(b"}").rstrip()
    body += b"" if body == b"{" else b", "
    return body + CHECKSUM + _checksum(body, seal) + b'"}'


def _opened(content: bytes, seal: bytes | None) -> Any:
    """What JSON holds, without its checksum.

    Raises:
        orjson.JSONDecodeError: it is no JSON.
        DamagedError: its checksum does not fit, or is missing, or it is no object.
    """
    found = orjson.loads(content)
    if not isinstance(found, dict):
        raise DamagedError("it is no JSON object")
    body, mark, checksum = content.rpartition(CHECKSUM)
    if not mark and (seal is None or _is_of_first_version(found)):
        return found
    if seal is None or checksum.rstrip() != _checksum(body, seal) + b'"}':
        raise DamagedError("its checksum does not fit: it was changed, or is of another sweep")
    del found["checksum"]
    return found


def _is_of_first_version(identity: dict[str, Any]) -> bool:
    return str(identity.get("raymu")).startswith("0.1.")


def _checksum(content: bytes, seal: bytes) -> bytes:
    return hashlib.sha256(seal + content).hexdigest()[:16].encode()


def read_json(directory: Location, name: str, seal: bytes | None = None) -> Any:
    """What a JSON file holds; None where it is missing.

    Args:
        seal: what its checksum was made with; None: it has none.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return _opened(read_bytes(directory, name), seal)
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, DamagedError) as error:
        raise DamagedError(f"{name} is damaged ({error})") from error


def _as_json(content: Any, seal: bytes = b"") -> bytes:
    return _sealed(json.dumps(content, indent=2, allow_nan=False).encode(), seal) + b"\n"


def differences(stored: Any, asked: Any, name: str = "") -> Iterator[str]:
    """'protocol.trials is 24 there, 30 here', for every field that differs."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for key in stored | asked:
            yield from differences(stored.get(key), asked.get(key), f"{name}.{key}" if name else key)
    elif stored != asked:
        meaning = f" ({MEANINGS[name]})" if name in MEANINGS else ""
        yield f"{name} is {stored} there, {asked} here{meaning}"
