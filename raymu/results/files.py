"""The files of a sweep's directory: their names, their checksums, and how they are read.

One directory holds what was asked for (`sweep.json`), one row a trial (`rows*.jsonl`, read in order of their names),
and whatever else its writer puts there: `running.json`, `environment.json`, `references.json`, `features.json`, while
it runs `progress.json`, and at the end `ended.json`.
"""

import fnmatch
import hashlib
import json
import logging
import os
import re
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import orjson
from pyarrow.fs import FileSelector, FileType

from raymu.errors import InputError
from raymu.results import kinds
from raymu.results.garbage import uncollected
from raymu.results.identity import is_of_first_version, lasting
from raymu.row import Row, Stored, misfit, parsed
from raymu.storage import DamagedError, Location, mendable, read_bytes
from raymu.values import content_hash

ROWS = "rows.jsonl"
SWEEP = "sweep.json"
RUNNING = "running.json"
PROGRESS = "progress.json"
ENVIRONMENT = "environment.json"
REFERENCES = "references.json"
FEATURES = "features.json"
ENDED = "ended.json"
KINDS = {
    SWEEP: kinds.Sweep,
    PROGRESS: kinds.Progress,
    ENVIRONMENT: kinds.Environment,
    REFERENCES: kinds.References,
    FEATURES: kinds.Features,
    ENDED: kinds.Ended,
}
MIRROR = ".cache"  # in a storage, of all its sweeps; see `raymu.cache`
CHECKSUM = b'"checksum": "'  # a field of rows and JSON files, over what precedes it
PART = re.compile(r"rows(-\d{5}-[0-9a-f]{12})?\.jsonl")
READERS = 16  # parts read at once: on object storage the wait is for answers


def files_of_sweeps(storage: Location) -> dict[str, list[str]]:
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
    once, under its own name rather than a link's. A link to a directory that holds it is left out. Of what cannot
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
            if MIRROR in folders:
                folders.remove(MIRROR)
            yield parent, names
            for link in sorted(filter(os.path.islink, (f"{parent}/{folder}" for folder in folders))):
                if os.path.commonpath([real, os.path.realpath(link)]) != os.path.realpath(link):
                    tops.append(link)
            for link in filter(os.path.islink, (f"{parent}/{name}" for name in names)):
                if not os.path.exists(link):
                    warn(f"{link} is a link to nothing")


def parts_among(files: list[str]) -> list[str]:
    """Names of the files with rows, in the order of the rows."""
    named = fnmatch.filter(files, "rows*.jsonl")
    for name in named:
        if not PART.fullmatch(name):
            logging.getLogger(__name__).warning("left out: %s is no file of a sweep", name)
    return sorted(filter(PART.fullmatch, named))


def all_rows(directory: Location) -> list[Row]:
    """Rows of one sweep, in the order in which they were written."""
    identity, parts = identity_and_parts(directory)
    return read_rows(directory, parts, seal_of(identity))


def identity_and_parts(directory: Location) -> tuple[dict[str, Any] | None, list[str]]:
    """Content of `sweep.json`, None where it is missing, and the names of the files with rows.

    Raises:
        DamagedError: there are rows without it.
    """
    parts = parts_among(_files(directory))  # first: without credentials, to open a file on Azure ends the process
    identity = read_identity(directory)
    if parts and identity is None:
        raise DamagedError(f"there are rows, but no {SWEEP}")
    return identity, parts


def read_rows(directory: Location, parts: list[str], seal: bytes | None, columns: tuple[str, ...] = ()) -> list[Row]:
    """Rows of some files, one a trial: the first that was written.

    Args:
        seal: see `seal_of`.
        columns: those that are read, beside what every row needs; none: all.
    """
    with uncollected(), ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(partial(read_bytes, directory), parts)
        by_trial: dict[int, Row] = {}
        for name, content in zip(parts, contents, strict=True):
            for row in _parsed(directory, name, content, seal, columns):
                by_trial.setdefault(row["trial"], row)
        return list(by_trial.values())


def _parsed(directory: Location, name: str, content: bytes, seal: bytes | None, columns: tuple[str, ...]) -> list[Row]:
    """The rows of a part. What follows the last newline is not a row yet.

    Raises:
        InputError: a line is damaged or of another sweep.
    """
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            rows.append(_row(line, seal, columns))
        except ValueError as error:
            raise InputError(f"cannot read {directory}: line {number} of {name} is damaged ({error})") from error
    return rows


def _row(line: bytes, seal: bytes | None, columns: tuple[str, ...]) -> Row:
    """A row, or some columns of it.

    Raises:
        ValueError: it is damaged or of another sweep.
    """
    if columns and seal is not None:
        _check(line, seal)
        return Stored(parsed(line, columns))
    row = Stored(_opened(line, seal))
    if said := misfit(row):
        raise DamagedError(said)
    return row


def json_line(row: Row, seal: bytes) -> bytes:
    """Row as a line of JSON, with its checksum."""
    return _sealed(json.dumps(row, allow_nan=False, ensure_ascii=False).encode(errors="replace"), seal) + b"\n"


def read_identity(directory: Location) -> dict[str, Any] | None:
    """Content of `sweep.json`; None where it is missing."""
    found: dict[str, Any] | None = read_json(directory, SWEEP, b"")
    return found


def seal_of(identity: dict[str, Any] | None) -> bytes | None:
    """Start of what the checksums of a sweep's rows and files are computed over. Every sweep has its own, so checksums
    of another sweep do not fit. It stays when a sweep grows. None for sweeps of raymu 0.1, which had no checksums.
    """
    return None if identity is None or is_of_first_version(identity) else content_hash(lasting(identity)).encode()


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
    if (seal is None or is_of_first_version(found)) and CHECKSUM not in content:
        return found
    _check(content, seal)
    del found["checksum"]
    return found


def _check(content: bytes, seal: bytes | None) -> None:
    """Look whether JSON has the checksum of its sweep.

    Raises:
        DamagedError: it has another, or none.
    """
    body, _, checksum = content.rpartition(CHECKSUM)
    if seal is None or checksum.rstrip() != _checksum(body, seal) + b'"}':
        raise DamagedError("its checksum does not fit: it was changed, or is of another sweep")


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
        found = _opened(read_bytes(directory, name), seal)
        if said := kinds.misfit(found, KINDS.get(name, Any)):
            raise DamagedError(said)
        return found
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, DamagedError) as error:
        raise DamagedError(f"{name} is damaged ({error})") from error


def as_json(content: Any, seal: bytes = b"") -> bytes:
    """JSON file's content, with its checksum."""
    return _sealed(json.dumps(content, indent=2, allow_nan=False).encode(), seal) + b"\n"
