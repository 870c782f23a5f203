"""Rows survive whatever happens to their writer."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from raymu.errors import InputError
from raymu.results import select, store
from raymu.results.store import Store

IDENTITY = {"method": "salun", "protocol": {"trials": 3, "seed": 0}}


def row(trial: int, score: float | None = 0.5, status: str = "completed", **more) -> dict:
    return {
        "trial": trial,
        "score": score,
        "status": status,
        "source": "search",
        "scenario_hash": "abc",
        "objective": "hmean",
        **more,
    }


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    with Store(tmp_path / "a", IDENTITY, resume=False) as rows:
        rows.append(row(0))
        assert store.read(tmp_path / "a") == [row(0)]
        rows.append(row(1))
    assert store.read_all(tmp_path) == [row(0), row(1)]


def test_half_a_row_is_not_a_row_and_gives_way(tmp_path: Path) -> None:
    with Store(tmp_path, IDENTITY, resume=False) as rows:
        rows.append(row(0))
    with open(tmp_path / store.ROWS, "a") as file:
        file.write('{"trial": 1, "sco')
    assert store.read(tmp_path) == [row(0)]
    with Store(tmp_path, IDENTITY, resume=True) as rows:
        rows.append(row(2))
    assert store.read(tmp_path) == [row(0), row(2)]


def test_another_sweep_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    with Store(tmp_path, IDENTITY, resume=False) as rows:
        rows.append(row(0))
    for resume in (False, True):
        other = {"method": "salun", "protocol": {"trials": 3, "seed": 1}}
        with pytest.raises(InputError, match=r"protocol\.seed is 0 there, 1 here"):
            Store(tmp_path, other, resume=resume)
    assert store.read(tmp_path) == [row(0)]


def test_an_unfinished_sweep_waits_for_resume(tmp_path: Path) -> None:
    with Store(tmp_path, IDENTITY, resume=False) as rows:
        rows.append(row(0))
    with pytest.raises(InputError, match="--resume"):
        Store(tmp_path, IDENTITY, resume=False)
    with Store(tmp_path, IDENTITY, resume=True) as rows:
        rows.append(row(1))
        rows.append(row(2))
    with Store(tmp_path, IDENTITY, resume=False):
        pass  # a finished one has nothing to lose


def test_a_directory_has_one_writer(tmp_path: Path) -> None:
    with Store(tmp_path, IDENTITY, resume=False), pytest.raises(InputError, match="in use"):
        Store(tmp_path, IDENTITY, resume=True)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Store(tmp_path / "file" / "sweep", IDENTITY, resume=False)


def test_not_a_number_never_reaches_the_disk(tmp_path: Path) -> None:
    with Store(tmp_path, IDENTITY, resume=False) as rows, pytest.raises(ValueError, match="JSON"):
        rows.append(row(0, score=float("nan")))
    assert store.read(tmp_path) == []


def _write_for_ever(directory: Path) -> None:
    with Store(directory, IDENTITY, resume=True) as rows:
        for trial in range(10**9):
            rows.append(row(trial, padding="x" * 3000))
            (directory / "reported").write_text(str(trial))


@pytest.mark.parametrize("moment", [0.3, 0.5])
def test_a_killed_writer_loses_nothing_and_no_reader_sees_half(tmp_path: Path, moment: float) -> None:
    writer = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(tmp_path,))
    writer.start()
    while not (tmp_path / "reported").exists():
        time.sleep(0.01)
    end = time.monotonic() + moment
    while time.monotonic() < end:
        seen = store.read(tmp_path)
        assert [entry["trial"] for entry in seen] == list(range(len(seen)))
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    reported = int((tmp_path / "reported").read_text() or 0)
    assert len(store.read(tmp_path)) >= reported + 1
    with Store(tmp_path, IDENTITY, resume=True):
        for line in (tmp_path / store.ROWS).read_text().splitlines():
            json.loads(line)


def test_best_is_the_highest_completed_score_and_the_earlier_of_equals() -> None:
    rows = [
        row(0, 0.3),
        row(3, 0.6),
        row(1, 0.6),
        row(2, 0.9, "stopped"),
        row(4, 0.0, "diverged"),
        row(5, None, "error"),
    ]
    assert select.best(rows)["trial"] == 1


def test_best_refuses_what_does_not_compare() -> None:
    with pytest.raises(InputError, match="no completed"):
        select.best([row(0, None, "error")])
    with pytest.raises(InputError, match="scenario_hash"):
        select.best([row(0), row(1, scenario_hash="def")])
    with pytest.raises(InputError, match="objective"):
        select.best([row(0), row(1, objective="weighted")])


def test_published_is_found_by_its_source() -> None:
    assert select.published([row(0), row(1, source="published")])["trial"] == 1
    assert select.published([row(0)]) is None
