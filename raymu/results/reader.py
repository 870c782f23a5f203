"""Sweeps' results as they are read back, from a local directory or from object storage."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raymu.errors import InputError
from raymu.results.files import (
    ENDED,
    ENVIRONMENT,
    FEATURES,
    REFERENCES,
    RUNNING,
    SWEEP,
    all_rows,
    files_of_sweeps,
    parts_among,
    read_identity,
    read_json,
    read_rows,
    seal_of,
)
from raymu.results.garbage import uncollected
from raymu.results.identity import has_ended, is_of_first_version
from raymu.row import Row
from raymu.storage import DamagedError, Location, locate, mendable


class SweepResults(NamedTuple):
    """All that is stored of one sweep.

    Attributes:
        name: its directory relative to the storage, such as "salun" or "all/salun"; its own name where it is the
            storage.
        identity: what was asked for; where the sweep has grown, last.
        environment: versions, git, machine, start; empty where none is stored.
        references: by scenario hash the rows of "original", "retrained" and "dead", the "memory" to remove and what
            is "seen" of images, as `raymu.fixed_points.compared` returns them; empty where none are stored.
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


# What tells rows of several sweeps apart, beside what every row needs.
APART = ("scenario_hash", "original_weights", "retrained_weights", "ended_s")
Results = Path | str | Location | SweepResults | Sequence[SweepResults]  # a sweep, several, or where they are stored


def read(location: Path | str | Location) -> list[Row]:
    """All rows of one sweep, in the order in which the trials ended; also while the sweep runs.

    Raises:
        InputError: the location cannot be read.
    """
    directory = locate(location)
    with mendable("read", directory):
        return all_rows(directory)


def running(location: Path | str | Location) -> dict[str, Any]:
    """What is stored of the trials on their way, by number; nothing where that is missing or damaged.

    Raises:
        InputError: the location cannot be read.
    """
    directory = locate(location)
    with mendable("read", directory), contextlib.suppress(DamagedError):
        return read_json(directory, RUNNING, seal_of(read_identity(directory))) or {}
    return {}


def sweeps(storage: Path | str | Location) -> list[Location]:
    """The directories of all sweeps at or below `storage`.

    Raises:
        InputError: there is none, or the storage cannot be read.
    """
    where = locate(storage)
    return [where / name if name else where for name in files_of_sweeps(where)]


def read_all(storage: Path | str | Location) -> list[Row]:
    """The rows of all sweeps at or below `storage`.

    Raises:
        InputError: there is no sweep, or the storage cannot be read.
    """
    return [row for sweep in load(storage) for row in sweep.rows]


def load(storage: Path | str | Location, columns: tuple[str, ...] = ()) -> list[SweepResults]:
    """All that is stored of all sweeps at or below `storage`, by name. One that is damaged is left out, and a warning
    says why.

    Args:
        columns: those of the rows that are read, beside what every row needs; none: all.

    Raises:
        InputError: there is no sweep, none can be read, the storage is a damaged sweep itself, or it does not answer.
    """
    with uncollected():
        return _load_all(locate(storage), (*columns, *APART) if columns else ())


def _load_all(where: Location, columns: tuple[str, ...]) -> list[SweepResults]:
    results: list[SweepResults] = []
    damaged: list[InputError] = []
    for name, files in files_of_sweeps(where).items():
        directory = where / name if name else where
        try:
            found = _load(name or where.name, directory, files, columns)
        except InputError as error:
            if not name or (isinstance(error.__cause__, OSError) and not where.local):  # then no sweep can be known
                raise
            damaged.append(error)
            continue
        if found.missing:
            _warn(f"{directory}: {found.missing}")
        if copied := next((one.name for one in results if is_copy(found.rows, one.rows)), None):
            _warn(f"{directory} holds the trials of {copied}: it is a copy")
        results.append(found)
    if not results:
        more = f", and {len(damaged) - 1} more sweeps there cannot be read" if len(damaged) > 1 else ""
        raise InputError(f"{damaged[0]}{more}")
    for reason in damaged:
        _warn(f"left out: {reason}")
    return _told_apart(results)


def _load(name: str, directory: Location, files: list[str], columns: tuple[str, ...]) -> SweepResults:
    """All that is stored of one sweep.

    Args:
        files: names of those in its directory.
        columns: as `read_rows` takes them.

    Raises:
        InputError: it cannot be read, is damaged, or holds another sweep's rows or references.
    """
    with mendable("read", directory):
        identity = read_identity(directory)
        if identity is None:
            raise DamagedError(f"{SWEEP} is gone")
        seal = seal_of(identity)
        others = (ENVIRONMENT, REFERENCES, FEATURES, ENDED)
        content = {file: read_json(directory, file, seal) for file in others if file in files}
        rows = read_rows(directory, parts_among(files), seal, columns)
    _check_references(directory, content.get(REFERENCES, {}), rows)
    return SweepResults(
        name=name,
        identity=identity,
        environment=content.get(ENVIRONMENT, {}),
        references=content.get(REFERENCES, {}),
        features=content.get(FEATURES),
        rows=rows,
        missing=_missing(identity, content.get(ENDED), len(rows)),
    )


def _warn(line: str) -> None:
    logging.getLogger(__name__).warning(line)


def search_rows(sweep: SweepResults) -> list[Row]:
    """The rows of the search, the published setting included; no confirmation."""
    return [row for row in sweep.rows if row.get("source") != "confirmation"]


def of_search(seed: int, rows: Iterable[Row]) -> list[Row]:
    """The rows of one search."""
    return [row for row in rows if row["search_seed"] == seed]


def loaded(results: Results) -> list[SweepResults]:
    """Sweeps, or those that are stored somewhere.

    Raises:
        InputError: there is no sweep, the storage cannot be read, or these are no sweeps.
    """
    if isinstance(results, Path | str | Location):
        return load(results)
    sweeps = [results] if isinstance(results, SweepResults) else list(results)
    if not all(isinstance(one, SweepResults) for one in sweeps):
        kind = type(sweeps[0] if isinstance(results, list | tuple) else results).__name__
        raise InputError(f"results are what raymu.tune returns, or where they are stored; this is a {kind}")
    return sweeps


def _told_apart(sweeps: list[SweepResults]) -> list[SweepResults]:
    """The sweeps, with another `trial_id` for every trial."""
    names = [{row["trial_id"] for row in sweep.rows if "trial_id" in row} for sweep in sweeps]
    taken = Counter(name for own in names for name in own)

    def renamed(sweep: SweepResults, row: dict[str, Any]) -> dict[str, Any]:
        named = {key: row[key] for key in ("trial_id", "confirms") if row.get(key)}
        told = {key: f"{sweep.name}-{value.rpartition('-')[2]}" for key, value in named.items()}
        return type(row)(row | told)

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
        for which, found in stored.get(row.get("scenario_hash", ""), {}).items():
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
    same_number = [other for other in others if other["trial"] == rows[0]["trial"]]
    return any(
        all(other.get(column) == value for column, value in measured.items()) and other.keys() == rows[0].keys()
        for other in same_number
    )


def _missing(identity: dict[str, Any], ended: dict[str, Any] | None, rows: int) -> str:
    if is_of_first_version(identity):  # which did not say when a sweep had ended
        return ""
    if ended is None:
        return f"the sweep has not ended; {rows} rows so far"
    if not has_ended(identity, ended):
        return f"the sweep has grown, and not ended since; {rows} rows so far"
    return "" if rows == ended["rows"] else f"{rows} of its {ended['rows']} rows are there"
