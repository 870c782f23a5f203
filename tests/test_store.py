"""Rows survive whatever happens to their writer, on a disk and on S3 as moto serves it."""

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import asked
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSelector, FileSystem
from rich.console import Console

from raymu import splits
from raymu.distributed.session import Resources
from raymu.errors import InputError, StorageError
from raymu.methods.random_label import RandomLabel
from raymu.protocol import Confirmation, Protocol
from raymu.reference_models import References
from raymu.results import files, outputs, reader, writer
from raymu.results.writer import Store
from raymu.row import NEEDED
from raymu.scenario import Scenario
from raymu.storage import locate
from raymu.tuning.driver import run_sweep
from raymu.tuning.sweep import Sweep

IDENTITY = asked(3, seed=0)
REFUSED = "Could(n't| not) connect"  # as curl says it, by version
NAMES = ["a b", "all/salun", "ü#1", "50%20?"]


def row(trial: int, score: float | None = 0.5, status: str = "completed", **more) -> dict:
    return {
        "trial_id": f"m-{trial}",
        "trial": trial,
        "confirms": None,
        "method": "salun",
        "model_seed": 0,
        "seed": 0,
        "forget": [8],
        "forget_share": 0.0,
        "score": score,
        "status": status,
        "source": "search",
        "scenario_hash": "abc",
        "objective": "hmean",
        "config": {"lr": 0.1},
        **more,
    }


def trials(rows: list[dict]) -> list[int]:
    return [entry["trial"] for entry in rows]


class Server:
    """What is stored outlives a stop, as that of a service does."""

    def __init__(self) -> None:
        self._port = 0
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    def uri(self, path: str) -> str:
        return f"s3://key:p%2Fssword@{path}?endpoint_override=127.0.0.1:{self._port}&scheme=http"

    def place(self) -> str:
        """An empty one."""
        return self.uri(f"bucket/{uuid.uuid4().hex}")

    def refuse(self, refuse: bool) -> None:
        """Whether to look at who asks; it knows nobody."""
        url, headers = f"http://127.0.0.1:{self._port}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        request = urllib.request.Request(url, b"0" if refuse else b"inf", headers)
        urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = Server()
    FileSystem.from_uri(server.uri("bucket") + "&allow_bucket_creation=true")[0].create_dir("bucket")
    yield server
    server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("s3").place()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PART_ROWS", 3)


# Wherever it is


def test_what_is_appended_is_read(storage: str) -> None:
    rows = [row(0), row(1, error="\u2028 \n \ud800")]
    with Store(storage, IDENTITY, resume=False) as sweep:
        assert reader.read(storage) == []
        sweep.append(rows[0])
        assert reader.read(storage) == rows[:1]
        sweep.append(rows[1])
    assert reader.read_all(storage) == [rows[0], rows[1] | {"error": "\u2028 \n ?"}]


def test_rows_stay_in_order_over_many_parts_and_writers(storage: str, small_parts: None) -> None:
    for start in (0, 8, 16):
        with Store(storage, IDENTITY, resume=True) as rows:
            for trial in range(start, start + 8):
                rows.append(row(trial))
    assert trials(reader.read(storage)) == list(range(24))
    where = locate(storage)
    assert where.local or len(files.parts_among(files._files(where))) == 9


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "..", ".", "", "./x"])
def test_no_name_leaves_a_storage(tmp_path, name) -> None:
    with pytest.raises(InputError, match="is no name of a directory within"):
        locate(tmp_path) / name


def test_another_sweep_is_refused_and_the_difference_named(storage: str) -> None:
    with Store(storage, IDENTITY, resume=False) as rows:
        rows.append(row(0))
    for resume in (False, True):
        other = asked(3, seed=1)
        with pytest.raises(InputError, match=r"protocol\.seed is 0 there, 1 here"):
            Store(storage, other, resume=resume)
    assert reader.read(storage) == [row(0)]


def test_a_sweep_that_ran_nothing_leaves_its_place_to_another(storage: str) -> None:
    other = asked(3)
    with Store(storage, IDENTITY, resume=False):
        pass
    with Store(storage, other, resume=False) as rows:
        rows.put(files.RUNNING, {"0": {}})
    assert reader.load(storage)[0].identity == other
    with pytest.raises(InputError, match="another sweep"):
        Store(storage, IDENTITY, resume=False)


def test_a_sweep_grows_where_it_is(storage: str, digits: Scenario) -> None:
    small, large = (Sweep(RandomLabel, digits, Protocol(trials)).identity() for trials in (1, 2))
    with Store(storage, small, resume=False) as rows:
        rows.append(row(0))
        rows.end(1)
    with Store(storage, large, resume=True) as rows:
        rows.record()
        assert reader.load(storage)[0].missing == "the sweep has grown, and not ended since; 1 rows so far"
        rows.append(row(1))
        rows.end(2)
    (found,) = reader.load(storage)
    assert (trials(found.rows), found.missing) == ([0, 1], "")
    assert found.identity["history"][0]["protocol.trials"] == [1, 2]
    with pytest.raises(InputError, match=r"protocol\.trials is 2 there, 1 here"):
        Store(storage, small, resume=True)


def test_an_unfinished_sweep_waits_for_resume(storage: str) -> None:
    with Store(storage, IDENTITY, resume=False) as rows:
        rows.append(row(0))
    with pytest.raises(InputError, match="--resume"):
        Store(storage, IDENTITY, resume=False)
    with Store(storage, IDENTITY, resume=True) as rows:
        rows.append(row(1))
        rows.append(row(2))
    with Store(storage, IDENTITY, resume=False):
        pass  # a finished one has nothing to lose
    with pytest.raises(InputError, match="--resume"):
        Store(storage, IDENTITY, resume=False, is_finished=lambda rows: len(rows) >= 4)


def test_references_of_other_models_than_the_rows_are_refused(storage: str) -> None:
    with Store(storage, IDENTITY, resume=False) as rows:
        rows.append(row(0) | {"scenario_hash": "abc", "original_weights": "one"})
        rows.put(files.REFERENCES, {"abc": {"original": {"weights": "one"}}})
        assert reader.load(storage)
        rows.put(files.REFERENCES, {"abc": {"original": {"weights": "two"}}})
    with pytest.raises(InputError, match=r"original model of .* \(one\) is not the one in references.json \(two\)"):
        reader.load(storage)


def test_a_copy_of_rows_beside_them_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Store(tmp_path / "s", IDENTITY, resume=False) as rows:
        rows.append(row(0))
    (tmp_path / "s" / "rows-backup.jsonl").write_text("{}\n")
    assert reader.read_all(tmp_path / "s") == [row(0)]
    assert "left out: rows-backup.jsonl" in caplog.text


def test_what_is_put_is_loaded(storage: str) -> None:
    with Store(storage, IDENTITY, resume=False) as rows:
        assert reader.load(storage) == [
            (rows.name, IDENTITY, {}, {}, None, [], "the sweep has not ended; 0 rows so far")
        ]
        rows.put("environment.json", {"machine": "ü"})
        rows.put("references.json", {"abc": {"original": row(0)}})
        rows.put("features.json", {"labels": [1], "forget": []})
        rows.put("features.json", {"labels": [2], "forget": []})
        rows.append(row(0))
        with pytest.raises(ValueError, match="JSON"):
            rows.put("features.json", {"labels": [float("nan")], "forget": []})
    (loaded,) = reader.load(storage)
    assert loaded.name == rows.name == rows.directory.name == locate(storage).name
    assert loaded.environment == {"machine": "ü"}
    assert loaded.references == {"abc": {"original": row(0)}}
    assert loaded.features == {"labels": [2], "forget": []}
    assert loaded.rows == [row(0)]


def test_a_tree_of_sweeps_is_found_whatever_their_names(storage: str) -> None:
    for name in (*NAMES, "unfinished"):
        with Store(locate(storage) / name, IDENTITY | {"method": name}, resume=False) as rows:
            if name != "unfinished":
                rows.append(row(0, trial_id=name))
    expected = sorted((*NAMES, "unfinished"))
    assert [sweep.name for sweep in reader.load(storage)] == expected
    assert [sweep.identity["method"] for sweep in reader.load(storage)] == expected
    assert [directory.path for directory in reader.sweeps(storage)] == [
        f"{locate(storage).path}/{name}" for name in expected
    ]
    assert [entry["trial_id"] for entry in reader.read_all(storage)] == sorted(NAMES)
    assert reader.sweeps(locate(storage) / "all") == [locate(storage) / "all" / "salun"]


def test_a_name_can_be_part_of_the_uri(s3: Server) -> None:
    place = s3.place()
    path, _, query = place.partition("?")
    with Store(f"{path}/a%20b?{query}", IDENTITY, resume=False) as rows:
        assert rows.name == "a b"
    assert reader.sweeps(place) == [rows.directory]
    assert str(rows.directory) == f"{path}/a%20b?{query}".replace("key:p%2Fssword", "***")


def test_the_table_has_all_trials_and_all_columns(storage: str) -> None:
    for name, config in (("salun", {"lr": 0.1, "clip": None}), ("all/scrub", {"lr": 0.2, "alpha": 3})):
        with Store(locate(storage) / name, IDENTITY, resume=False) as rows:
            rows.append(row(0, sweep="?", config=config, curve=[[1, 0.5]]))
            rows.append(row(1, None, "error", sweep="?", config=config, curve=[]))
    table = outputs.load(storage)
    assert list(table["sweep"]) == ["all/scrub", "all/scrub", "salun", "salun"]
    assert list(table["config.lr"]) == [0.2, 0.2, 0.1, 0.1]
    assert list(table["config.alpha"].fillna(-1)) == [3, 3, -1, -1]
    assert list(table["curve"]) == [[[1, 0.5]], [], [[1, 0.5]], []]
    assert table["score"].mean() == 0.5
    assert "config" not in table
    with pytest.raises(InputError, match="or where they are stored; this is a DataFrame"):
        outputs.figures(table)
    with pytest.raises(InputError, match="or where they are stored; this is a dict"):
        outputs.load(table.to_dict("records"))
    _, second = reader.load(storage)
    assert list(outputs.load(second)["sweep"]) == list(outputs.load([second])["sweep"]) == ["salun", "salun"]


def test_where_nothing_is_there_is_no_sweep(storage: str) -> None:
    with pytest.raises(InputError, match="no sweep in"):
        reader.load(storage)
    assert reader.read(storage) == []


def test_not_a_number_is_never_stored(storage: str) -> None:
    with Store(storage, IDENTITY, resume=False) as rows, pytest.raises(ValueError, match="JSON"):
        rows.append(row(0, score=float("nan")))
    assert reader.read(storage) == []


def test_a_reader_sees_the_first_rows_of_a_writer(storage: str, small_parts: None) -> None:
    with Store(storage, IDENTITY, resume=False) as rows:
        writer = threading.Thread(target=lambda: [rows.append(row(trial, padding="x" * 3000)) for trial in range(20)])
        writer.start()
        seen = [trials(reader.read(storage))]
        while writer.is_alive():
            seen.append(trials(reader.read(storage)))
        writer.join()
    assert all(numbers == list(range(len(numbers))) for numbers in seen)
    assert [len(numbers) for numbers in seen] == sorted(len(numbers) for numbers in seen)
    assert trials(reader.read(storage)) == list(range(20))


def _write_for_ever(location: str, reported: Path) -> None:
    with Store(location, IDENTITY, resume=True) as rows:
        for trial in range(10**9):
            rows.append(row(trial, padding="x" * 3000))
            reported.with_suffix(".new").write_text(str(trial))
            os.replace(reported.with_suffix(".new"), reported)


def test_a_killed_writer_loses_nothing_and_no_reader_sees_half(storage: str, tmp_path: Path) -> None:
    reported = tmp_path / "reported"
    writer = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(storage, reported))
    writer.start()
    while not reported.exists():
        time.sleep(0.01)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        seen = reader.read(storage)
        assert trials(seen) == list(range(len(seen)))
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    last = int(reported.read_text())
    with Store(storage, IDENTITY, resume=True) as rows:
        left = trials(reader.read(storage))
        rows.append(row(len(left)))
    assert len(left) >= last + 1
    assert trials(reader.read(storage)) == [*left, len(left)] == list(range(len(left) + 1))


# In a directory


def test_some_columns_are_those_of_the_whole_rows(tmp_path: Path) -> None:
    with Store(tmp_path, IDENTITY, resume=False) as rows:
        config = {"lr": 1e-3, "epochs": 3, "deep": True, "part": None, "name": "ü", "decay": [0.1, 2.0]}
        rows.append(row(0, score=1 / 3, config=config, test_retain_acc=0.1 + 0.2, wall_s=9.0))
        rows.append(row(1, score=None, status="error", error="\u2028", test_retain_acc=None, scenario_hash="def"))
        rows.append(row(2, score=0, curve=[[1, 0.5]]))
    (whole,), (part,) = reader.load(tmp_path), reader.load(tmp_path, ("test_retain_acc",))
    columns = {*NEEDED, *reader.APART, "test_retain_acc"}
    assert part.rows == [{name: one[name] for name in one.keys() & columns} for one in whole.rows]
    assert part._replace(rows=[]) == whole._replace(rows=[])
    assert type(part.rows[0]["config"]["epochs"]) is int


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": "a"}, "score: Input should be a valid number"),
        ({"score": float("nan")}, "score: Input should be a finite number"),
        ({"test_retain_acc": "a"}, "test_retain_acc: Input should be a valid number"),
        ({"config": {"lr": [None]}}, "config.lr"),
        ({"trial": 1.5}, "trial: Input should be a valid integer"),
    ],
)
def test_some_columns_are_checked_as_whole_rows_are(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with Store(tmp_path, IDENTITY, resume=False) as rows:
        seal = rows._seal
    (tmp_path / files.ROWS).write_bytes(files._sealed(json.dumps(row(0) | change).encode(), seal) + b"\n")
    with pytest.raises(InputError, match=rf"line 1 of rows.jsonl is damaged \({re.escape(said)}"):
        reader.load(tmp_path, ("test_retain_acc",))
    (tmp_path / files.ROWS).write_bytes(files.json_line(row(0), b"another"))
    with pytest.raises(InputError, match="its checksum does not fit"):
        reader.load(tmp_path, ("test_retain_acc",))


def test_half_a_row_is_not_a_row_and_gives_way(tmp_path: Path) -> None:
    with Store(tmp_path, IDENTITY, resume=False) as rows:
        rows.append(row(0))
    with open(tmp_path / files.ROWS, "a") as file:
        file.write('{"trial": 1, "sco')
    assert reader.read(tmp_path) == [row(0)]
    with Store(tmp_path, IDENTITY, resume=True) as rows:
        rows.append(row(2))
    assert reader.read(tmp_path) == [row(0), row(2)]
    for line in (tmp_path / files.ROWS).read_text().splitlines():
        json.loads(line)


def _fill_the_disk(directory: Path, more: int) -> None:
    import resource

    import raymu.storage

    raymu.storage.OUTAGE_S = 0.5
    with Store(directory, IDENTITY, resume=True) as rows:
        rows.append(row(0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = (directory / files.ROWS).stat().st_size + more
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        with pytest.raises(StorageError, match=r"(No space left|File too large).*--resume continues"):
            rows.append(row(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        rows.append(row(2))


@pytest.mark.long
@pytest.mark.parametrize("more", [0, 10])
def test_a_full_disk_is_said_and_leaves_no_half_row(tmp_path: Path, more: int) -> None:
    writer = multiprocessing.get_context("spawn").Process(target=_fill_the_disk, args=(tmp_path, more))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    assert reader.read(tmp_path) == [row(0), row(2)]


def test_a_copy_of_a_sweep_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Store(tmp_path / "salun", IDENTITY, resume=False) as rows:
        rows.append(row(0))
    shutil.copytree(tmp_path / "salun", tmp_path / "twin")
    assert len(reader.load(tmp_path)) == 2
    assert f"{tmp_path}/twin holds the trials of salun: it is a copy" in caplog.messages


def test_trials_of_sweeps_with_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder, score in (("a", 0.4), ("b", 0.6)):
        with Store(tmp_path / folder / "salun", IDENTITY, resume=False) as rows:
            rows.append(row(0, score, trial_id="salun-0000"))
            rows.append(row(1, score, trial_id="salun-0001", confirms="salun-0000"))
    with Store(tmp_path / "a" / "ssd", IDENTITY, resume=False) as rows:
        rows.append(row(0, 0.5, trial_id="ssd-0000"))
    found = {one["trial_id"]: one for one in reader.read_all(tmp_path)}
    assert list(found) == ["a/salun-0000", "a/salun-0001", "ssd-0000", "b/salun-0000", "b/salun-0001"]
    assert found["b/salun-0001"]["confirms"] == "b/salun-0000"
    assert [one["trial_id"] for one in reader.read_all(tmp_path / "a")] == ["salun-0000", "salun-0001", "ssd-0000"]


def test_a_sweep_that_a_link_leads_to_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From another disk, say. Whatever links there are, also in a circle, upwards, and to nothing."""
    storage, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    for place, name in ((elsewhere / "salun", "salun"), (elsewhere / "more" / "scrub", "scrub"), (storage / "z", "z")):
        with Store(place, IDENTITY, resume=False) as rows:
            rows.append(row(0, trial_id=name))
    (storage / "a").symlink_to(elsewhere / "salun")
    (storage / "b").symlink_to(elsewhere / "salun")  # a second time
    (storage / "more").symlink_to(elsewhere / "more")
    (storage / "first").symlink_to(storage / "z")  # has its own name
    (elsewhere / "more" / "back").symlink_to(storage)
    (storage / "z" / "up").symlink_to(tmp_path)
    (storage / "z" / "self").symlink_to(".")
    (storage / "lost").symlink_to(tmp_path / "nowhere")
    assert [(sweep.name, sweep.rows[0]["trial_id"]) for sweep in reader.load(storage)] == [
        ("a", "salun"),
        ("more/scrub", "scrub"),
        ("z", "z"),
    ]
    assert f"left out: {storage}/lost is a link to nothing" in caplog.messages
    assert [place.name for place in reader.sweeps(storage / "a")] == ["a"]  # a storage that is a link
    with Store(storage / "a", IDENTITY, resume=True) as rows:
        rows.append(row(1))
    assert len(reader.read(elsewhere / "salun")) == 2


def test_what_a_link_leads_to_is_no_second_sweep(tmp_path: Path) -> None:
    with Store(tmp_path / "salun", IDENTITY, resume=False) as rows:
        rows.append(row(0))
    (tmp_path / "latest").symlink_to(tmp_path / "salun")
    (tmp_path / "salun" / "all").symlink_to(tmp_path)
    assert [sweep.name for sweep in reader.load(tmp_path)] == ["salun"]
    assert reader.read(tmp_path / "latest") == [row(0)]


def test_what_is_not_json_is_said(tmp_path: Path) -> None:
    Store(tmp_path, IDENTITY, resume=False).__exit__(None, None, None)
    (tmp_path / files.ROWS).write_text("<<<<<<< HEAD\n")
    with pytest.raises(InputError, match=f"cannot read {tmp_path}: .*line 1"):
        reader.load(tmp_path)


def test_a_place_is_known_by_whatever_name(s3: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name, same in (("link", True), ("a/../a/", True), ("b", False), ("", False)):
        assert locate(tmp_path / "a").is_same(locate(f"{tmp_path}/{name}")) is same
    place = s3.place()
    assert locate(place).is_same(locate(place.replace("?", "/?")))
    assert not locate(place).is_same(locate(s3.place()))
    assert not locate(place).is_same(locate(locate(place).path))  # a directory of that name


def _kept(directory: Path, name: str) -> None:
    with Store(directory, {**IDENTITY, "method": name}, resume=False) as rows:
        rows.append(row(0, trial_id=f"{name}-0", method=name, protocol_hash="p"))
        rows.put(files.REFERENCES, {})
        rows.end(1)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (files.SWEEP, b"", "sweep.json is damaged"),
        (files.SWEEP, b'{"method": "salun"', "sweep.json is damaged"),
        (files.SWEEP, b"[]", "sweep.json is damaged (it is no JSON object)"),
        (files.SWEEP, b'{"method": "salun", "protocol": {"trials": 9}}', "its checksum does not fit"),
        (files.SWEEP, b'{"raymu": "0.1.0"}', "sweep.json is damaged (scenario: Field required)"),
        (files.SWEEP, b"\xff\xfe", "sweep.json is damaged"),
        (files.ROWS, b"{}\n", "line 1 of rows.jsonl is damaged"),
        (files.ROWS, b"\x00\n", "line 1 of rows.jsonl is damaged"),
        (files.REFERENCES, b"{", "references.json is damaged"),
        (files.ENDED, b"{}", "ended.json is damaged"),
    ],
)
def test_a_damaged_sweep_hides_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, content: bytes, reason: str
) -> None:
    for name in ("a", "b", "c"):
        _kept(tmp_path / name, name)
    (tmp_path / "b" / file).write_bytes(content)
    assert [sweep.name for sweep in reader.load(tmp_path)] == ["a", "c"]
    assert [row["method"] for row in reader.read_all(tmp_path)] == ["a", "c"]
    (said,) = {line for line in caplog.messages if "left out" in line}
    assert said.startswith(f"left out: cannot read {tmp_path}/b: ")
    assert reason in said
    with pytest.raises(InputError, match=f"cannot read {tmp_path}/b: "):  # who names it wants it
        reader.load(tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "c" / files.SWEEP).write_bytes(b"")
    with pytest.raises(InputError, match=f"cannot read {tmp_path}/b: .*, and 1 more sweeps there cannot be read"):
        reader.load(tmp_path)


def test_a_row_of_the_first_version_that_is_none_hides_no_other_sweep(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files have no checksums."""
    _kept(tmp_path / "a", "a")
    old = shutil.copytree(Path(__file__).parent / "raymu-0.1" / "finetune", tmp_path / "old")
    assert [sweep.name for sweep in reader.load(tmp_path)] == ["a", "old"]
    with open(old / files.ROWS, "a") as file:
        file.write("{}\n")
    assert [sweep.name for sweep in reader.load(tmp_path)] == ["a"]
    assert "line 4 of rows.jsonl is damaged (trial_id: Field required)" in caplog.text
    (old / files.SWEEP).unlink()
    (old / files.SWEEP).symlink_to(tmp_path / "nowhere")
    assert [sweep.name for sweep in reader.load(tmp_path)] == ["a"]
    assert "sweep.json is gone" in caplog.text


def test_a_storage_that_goes_away_is_no_damaged_sweep(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what is ranked would depend on a network."""
    place = locate(s3.place())
    for name in ("a", "b"):
        with Store(place / name, IDENTITY, resume=False) as rows:
            rows.append(row(0, trial_id=name))
    reads, once = files.read_bytes, iter([None])

    def fails_once(directory, name):
        if directory.name == "b" and next(once, 0) is None:
            raise OSError("Could not connect")
        return reads(directory, name)

    monkeypatch.setattr(files, "read_bytes", fails_once)
    with pytest.raises(InputError, match="Could not connect"):
        reader.load(place)
    assert [sweep.name for sweep in reader.load(place)] == ["a", "b"]


def test_a_directory_has_one_writer(tmp_path: Path) -> None:
    with Store(tmp_path, IDENTITY, resume=False), pytest.raises(InputError, match="in use"):
        Store(f"file://{tmp_path}", IDENTITY, resume=True)
    with Store(tmp_path, IDENTITY, resume=True):
        pass


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Store(tmp_path / "file" / "sweep", IDENTITY, resume=False)


# On object storage


def test_who_claims_a_sweep_takes_it_over(s3: Server) -> None:
    place = s3.place()
    with Store(place, IDENTITY, resume=False) as first:
        first.append(row(0))
        with Store(place, IDENTITY, resume=True) as second:
            for _ in range(2):
                with pytest.raises(StorageError, match=rf"another writer: .*{os.getpid()}"):
                    first.append(row(1))
            with pytest.raises(StorageError, match="another writer"):
                first.put("references.json", {})
            second.append(row(2))
    assert reader.read(place) == [row(0), row(2)]


def test_two_that_write_in_one_moment_overwrite_nothing(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = s3.place()
    with Store(place, IDENTITY, resume=True) as first, Store(place, IDENTITY, resume=True) as second:
        monkeypatch.setattr(first, "_writer", second._writer)  # it looked just before the other came
        first.append(row(0))
        second.append(row(1))
        first.append(row(2))
    assert sorted(trials(reader.read(place))) == [0, 1, 2]


def test_a_refused_claim_disturbs_no_writer(s3: Server) -> None:
    place = s3.place()
    with Store(place, IDENTITY, resume=False) as rows:
        rows.append(row(0))
        with pytest.raises(InputError, match="--resume"):
            Store(place, IDENTITY, resume=False)
        with pytest.raises(InputError, match="another sweep"):
            Store(place, {}, resume=True, is_finished=lambda rows: len(rows) >= 3)
        rows.append(row(1))


def test_an_outage_loses_no_row(s3: Server) -> None:
    place = s3.place()
    with Store(place, IDENTITY, resume=False) as rows:
        rows.append(row(0))
        s3.stop()
        try:
            writer = threading.Thread(target=rows.append, args=(row(1),))
            writer.start()
            writer.join(2)
            assert writer.is_alive()
        finally:
            s3.start()
        writer.join()
        assert trials(reader.read(place)) == [0, 1]
        rows.append(row(2))
    assert trials(reader.read(place)) == [0, 1, 2]


def test_an_outage_that_does_not_end_is_raised(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymu.storage.OUTAGE_S", 0.5)
    place = s3.place()
    with Store(place, IDENTITY, resume=False) as rows:
        s3.stop()
        try:
            with pytest.raises(StorageError, match=rf"{REFUSED}.*--resume continues"):
                rows.append(row(0))
        finally:
            s3.start()
        rows.append(row(1))
    assert trials(reader.read(place)) == [1]


def test_credentials_can_come_from_the_environment(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = s3.place().replace("key:p%2Fssword@", "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "p/ssword")
    with Store(place, IDENTITY, resume=False) as rows:
        rows.append(row(0))
    assert reader.read(place) == [row(0)]
    assert str(rows.directory) == place


def test_a_missing_bucket_is_said(s3: Server) -> None:
    place = s3.uri("elsewhere/salun")
    with pytest.raises(InputError, match=r"cannot write to s3://\*\*\*@elsewhere/salun.* bucket does not exist"):
        Store(place, IDENTITY, resume=False)
    with pytest.raises(InputError, match="no sweep in"):
        reader.load(place)


def test_missing_permission_is_said(s3: Server) -> None:
    place = s3.place()
    s3.refuse(True)
    try:
        for attempt in (lambda: Store(place, IDENTITY, resume=False), lambda: reader.load(place)):
            with pytest.raises(InputError, match=r"cannot read s3://\*\*\*@bucket.* AWS Error"):
                attempt()
    finally:
        s3.refuse(False)


def test_an_endpoint_that_does_not_answer_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = f"s3://key:secret@bucket/path?endpoint_override=127.0.0.1:{port}&scheme=http"
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"cannot read s3://\*\*\*@bucket.* {REFUSED}"):
        Store(place, IDENTITY, resume=False)
    with pytest.raises(InputError, match=REFUSED):
        reader.load(place)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:secret@bucket/a b",
        "s3://key:sec/secret@bucket/path",
        "s3://key:secret@bucket/path?secret_key=secret",
        "nowhere://key:secret@bucket/path",
        "fsspec+nowhere://key:secret@bucket/path?token=secret&region=here",
        "s3://key:top secret@bucket/path",
        "nowhere://secretkey@bucket/path",
    ],
)
def test_what_is_no_uri_is_refused_without_a_word_of_its_secret(uri: str) -> None:
    with pytest.raises(InputError, match=r"cannot open .*://\*\*\*@bucket") as refused:
        reader.load(uri)
    assert "sec" not in str(refused.value).replace("secret_key", "")
    assert refused.value.__suppress_context__


def test_no_secret_is_printed_or_stored(s3: Server) -> None:
    place = s3.place()
    with Store(place, IDENTITY, resume=False) as rows:
        rows.append(row(0))
    where = rows.directory / "x"
    for text in (str(where), repr(where), f"{where}"):
        assert "ssword" not in text
        assert "endpoint_override=127.0.0.1" in text
    filesystem, path = FileSystem.from_uri(place)
    for name in files._files(locate(place)):
        assert b"ssword" not in filesystem.open_input_stream(f"{path}/{name}").read()


def told(secret: bytes, logs: Path, stop: threading.Event, found: set[Path], seen: set[Path]) -> None:
    """Look for a secret in the arguments and environment of all processes, and in Ray's logs, until told to stop."""
    while not stop.wait(0.2):
        processes = *Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")
        written = (Path(parent, name) for parent, _, names in os.walk(logs) for name in names)  # folders may vanish
        for path in (*processes, *written):
            with contextlib.suppress(OSError):  # it has ended, or is none
                found |= {path} if secret in path.read_bytes() else set()
                seen.add(path)


@pytest.mark.long
def test_a_whole_sweep_on_s3(s3: Server, quick: Scenario, quick_references: References, monkeypatch) -> None:
    """The key in the URI is in no process list, no log and no file of the storage."""
    secret, stop, found, seen = uuid.uuid4().hex, threading.Event(), set[Path](), set[Path]()
    place = s3.place().replace("p%2Fssword", secret)
    sweep = Sweep(RandomLabel, quick, Protocol(trials=3, confirmation=Confirmation(seeds=1)))
    with tempfile.TemporaryDirectory() as logs:
        monkeypatch.setenv("RAY_TMPDIR", logs)
        watch = threading.Thread(target=told, args=(secret.encode(), Path(logs), stop, found, seen))
        watch.start()
        rows = run_sweep(sweep, locate(place) / "rl", Resources(), Console(quiet=True), anyway=True)
        stop.set()
        watch.join()
    assert not found
    assert any(path.suffix == ".log" for path in seen)
    filesystem, path = FileSystem.from_uri(place)
    for info in filesystem.get_file_info(FileSelector(path, recursive=True)):
        assert not info.is_file or secret.encode() not in filesystem.open_input_stream(info.path).read(), info.path
    (result,) = reader.load(place)
    assert (result.name, result.rows) == ("rl", rows)
    assert sorted(trials(rows))[:4] == [0, 1, 2, 1_000_000]  # the last confirms
    assert set(result.references) == {splits.prepare(quick).hash}
    assert result.features is not None
    assert (
        run_sweep(sweep, locate(place) / "rl", Resources(), Console(quiet=True), anyway=True) == rows
    )  # it is finished


# A storage that loses a sweep


def lose(storage: Any) -> None:
    where = locate(storage)
    where.filesystem.delete_dir(where.path)


def test_rows_of_a_storage_that_is_gone_are_kept_and_put_back(storage: str, tmp_path: Path) -> None:
    place, rescue = locate(storage) / "sweep", tmp_path / "rescued"
    with Store(place, IDENTITY, resume=False, rescue=rescue) as rows:
        rows.put(files.RUNNING, {"2": {}})
        rows.append(row(0))
        lose(place)
        with pytest.raises(StorageError, match=r"is gone: .* Its 2 rows are kept in .*, and .* with --resume"):
            rows.append(row(1))
    (kept,) = rescue.iterdir()
    assert trials(reader.read(kept)) == [0, 1]
    with pytest.raises(InputError, match=rf"has lost a sweep, whose 2 rows are kept in {kept}: the same command with"):
        Store(place, IDENTITY, resume=False, rescue=rescue)
    with Store(place, IDENTITY, resume=True, rescue=rescue) as rows:
        assert reader.running(place) == {"2": {}}
        rows.append(row(2))
    assert trials(reader.read(place)) == [0, 1, 2]
    assert not kept.exists()
    with Store(place, IDENTITY, resume=True, rescue=rescue):
        pass


def test_rows_are_put_back_where_they_were(tmp_path: Path, monkeypatch) -> None:
    """Not where a sweep has the same path relative to another directory; and by any path that leads there."""
    rescue = tmp_path / "rescued"
    for folder in ("mine", "others"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    with Store("sweep", IDENTITY, resume=False, rescue=rescue) as rows:
        rows.append(row(0))
        lose(tmp_path / "mine" / "sweep")
        with pytest.raises(StorageError, match="is gone"):
            rows.append(row(1))
    monkeypatch.chdir(tmp_path / "others")
    with Store("sweep", IDENTITY, resume=True, rescue=rescue):
        assert reader.read("sweep") == []
    with Store("../mine/sweep", IDENTITY, resume=True, rescue=rescue):
        assert trials(reader.read("../mine/sweep")) == [0, 1]


def test_rows_are_put_back_by_the_path_that_was_given_though_its_link_leads_elsewhere(tmp_path: Path) -> None:
    rescue, link = tmp_path / "rescued", tmp_path / "link"
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
    link.symlink_to("before")
    with Store(link / "sweep", IDENTITY, resume=False, rescue=rescue) as rows:
        rows.append(row(0))
        link.unlink()
        link.symlink_to("after")
        with pytest.raises(StorageError, match="is gone"):
            rows.append(row(1))
    with Store(link / "sweep", IDENTITY, resume=True, rescue=rescue):
        assert trials(reader.read(tmp_path / "after" / "sweep")) == [0, 1]
    assert list(rescue.iterdir()) == []


def link_to_itself(place: Path) -> None:
    place.symlink_to(place.name)


@pytest.mark.parametrize("replace", [Path.touch, link_to_itself], ids=["file", "link to itself"])
def test_what_stands_in_the_place_of_a_storage_is_left_alone(tmp_path: Path, replace: Callable[[Path], None]) -> None:
    place, rescue = tmp_path / "storage" / "sweep", tmp_path / "rescued"
    with Store(place, IDENTITY, resume=False, rescue=rescue) as rows:
        rows.append(row(0))
        place.parent.rename(tmp_path / "moved")
        replace(place.parent)
        with pytest.raises(StorageError, match=r"is gone: .* Its 2 rows are kept in"):
            rows.append(row(1))
    assert trials(reader.read(next(rescue.iterdir()))) == [0, 1]


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ENOTCONN", "EACCES"])
def test_a_mount_that_does_not_answer_is_waited_for(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr("raymu.storage.OUTAGE_S", 1.0)
    stat, refused, answers_after = os.stat, [], 2

    def dropped(path: Any, **more: Any) -> os.stat_result:
        if str(path).endswith(writer.LOCK) and len(refused) < answers_after:
            refused.append(path)
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
        return stat(path, **more)

    with Store(tmp_path / "sweep", IDENTITY, resume=False, rescue=tmp_path / "rescued") as rows:
        monkeypatch.setattr(os, "stat", dropped)
        rows.append(row(0))
        assert len(refused) == 2
        answers_after = 10**6
        with pytest.raises(StorageError, match=r"cannot write to .* Its 2 rows are kept in"):
            rows.append(row(1))


def test_a_sweep_that_loses_what_was_asked_for_ends(tmp_path: Path) -> None:
    place, rescue = tmp_path / "sweep", tmp_path / "rescued"
    with Store(place, IDENTITY, resume=False, rescue=rescue) as rows:
        rows.append(row(0))
        (place / files.SWEEP).unlink()
        with pytest.raises(StorageError, match=r"is gone: .* Its 2 rows are kept in"):
            rows.append(row(1))
    with Store(place, IDENTITY, resume=True, rescue=rescue) as rows:
        rows.append(row(2))
    assert trials(reader.read(place)) == [0, 1, 2]


def test_a_storage_that_shrinks_has_its_rows_put_back(tmp_path: Path) -> None:
    place, rescue = tmp_path / "sweep", tmp_path / "rescued"
    with Store(place, IDENTITY, resume=False) as rows:
        rows.append(row(0))
    with Store(place, IDENTITY, resume=True, rescue=rescue) as rows:
        rows.append(row(1))
        os.truncate(place / files.ROWS, 0)
        with pytest.raises(StorageError, match="is gone"):
            rows.append(row(2))
    with pytest.raises(InputError, match="This is another sweep: method is salun there, other here"):
        Store(place, {"method": "other"}, resume=True, rescue=rescue)
    with Store(place, IDENTITY, resume=True, rescue=rescue):
        assert trials(reader.read(place)) == [0, 1, 2]


def test_another_sweep_in_the_place_of_one_that_was_removed_is_left_alone(tmp_path: Path) -> None:
    place, rescue = tmp_path / "sweep", tmp_path / "rescued"
    with Store(place, IDENTITY, resume=False, rescue=rescue) as rows:
        lose(place)
        with Store(place, IDENTITY, resume=False, rescue=tmp_path / "elsewhere") as others:
            others.append(row(7))
        with pytest.raises(StorageError, match="is gone"):
            rows.append(row(0))
    assert trials(reader.read(place)) == [7]


def test_a_row_that_a_full_disk_refuses_is_kept(small_disk: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("raymu.storage.OUTAGE_S", 0.2)
    with Store(small_disk / "sweep", IDENTITY, resume=False, rescue=tmp_path / "rescued") as rows:
        rows.append(row(0))
        filler = small_disk / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(16 * 2**20))
        with pytest.raises(StorageError, match=r"No space left on device\. Its 2 rows are kept in"):
            rows.append(row(1, error=5000 * "x"))
    filler.unlink()
    with Store(small_disk / "sweep", IDENTITY, resume=True, rescue=tmp_path / "rescued"):
        assert trials(reader.read(small_disk / "sweep")) == [0, 1]


def test_a_table_for_spreadsheets_has_no_formula(in_process, tmp_path: Path) -> None:
    with Store(tmp_path / "sweep", IDENTITY, resume=False) as rows:
        rows.append(row(0, score=-0.5, error="=1+1"))
    said = in_process("results", str(tmp_path), "--csv")
    assert "'=1+1" in said
    assert ",-0.5," in said
