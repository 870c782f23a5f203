"""What fails around a trial costs time, and no row."""

import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import steady
from ray.air.execution._internal import actor_manager
from rich.console import Console
from test_ranking import row as a_row

from raymu import reference_models, splits
from raymu.checkpoints import Checkpoints
from raymu.cli import sweep_main
from raymu.distributed import nodes, retries
from raymu.distributed.retries import Failure
from raymu.distributed.session import Resources, session
from raymu.engines import Options
from raymu.errors import InputError, NodeError
from raymu.evaluation import columns
from raymu.methods.random_label import RandomLabel
from raymu.objective import OBJECTIVES
from raymu.protocol import Protocol
from raymu.results import files, reader
from raymu.results.writer import Store
from raymu.scenario import SCENARIOS, Recipe
from raymu.storage import locate
from raymu.trial import run_trial
from raymu.tuning.driver import run_sweep
from raymu.tuning.sweep import Sweep
from raymu.workers import ALONE

ray.cloudpickle.register_pickle_by_value(steady)  # processes of Ray do not find the tests

SAME = ("trial", "seed", "config", "status", "score", "curve", "epochs", "images", *columns())
FILLER = "filler"
ASHA = {"searcher": "tpe", "scheduler": "asha"}
PARETO = {"searcher": "nsga2", "objective": "pareto"}


def by_trial(rows: list[dict]) -> list[list]:
    return [[row[key] for key in SAME] for row in sorted(rows, key=lambda row: row["trial"])]


def run(protocol: Protocol, directory: Path, *, resume: bool = False, concurrent: int = 1) -> list[dict]:
    resources = Resources(options=Options(checkpoint_s=0.0), concurrent=concurrent)
    return run_sweep(steady.sweep(protocol), directory, resources, Console(quiet=True), resume=resume, anyway=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray, and the file that says what its processes are refused."""
    refused = tmp_path_factory.mktemp("machine") / "refused"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEADY_REFUSES", str(refused))
        with session(None):
            yield refused


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSES_S", (0.0, 0.0))


# Checkpoints


def killed_after(epochs: int, scenario, method: RandomLabel, checkpoints: Checkpoints, **options) -> None:
    """Leave what a process leaves that is killed after so many epochs."""

    class Killed(BaseException):
        pass

    def die(row: dict) -> None:
        if row["epochs"] > epochs:
            raise Killed

    arguments = {"seed": 0, "rungs": range(1, 9), "options": Options(checkpoint_s=0.0), **options}
    with pytest.raises(Killed):
        run_trial(scenario, method, **arguments, checkpoints=checkpoints, report=die)


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        pytest.param(RandomLabel(lr=0.02, epochs=3), {}, id="setting"),
        pytest.param(RandomLabel(lr=0.01, epochs=3), {"seed": 1}, id="seed", marks=pytest.mark.long),
        pytest.param(RandomLabel(lr=0.01, epochs=3, head="cmf"), {}, id="head", marks=pytest.mark.long),
        pytest.param(
            RandomLabel(lr=0.01, epochs=3),
            {"objective": OBJECTIVES["weighted"]},
            id="objective",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_checkpoint_serves_the_trial_alone_that_wrote_it(quick, quick_references, tmp_path, method, changed) -> None:
    checkpoints = Checkpoints(locate(tmp_path / "trial"))
    killed_after(1, quick, RandomLabel(lr=0.01, epochs=3), checkpoints)
    assert checkpoints.load(ALONE) is not None
    arguments = {"seed": 0, "options": Options(checkpoint_s=0.0), **changed}
    row, _ = run_trial(quick, method, **arguments, checkpoints=checkpoints)
    whole, _ = run_trial(quick, method, **arguments)
    assert row["resumed"] == []
    assert {key: row[key] for key in SAME[1:]} == {key: whole[key] for key in SAME[1:]}


def test_a_damaged_state_is_as_good_as_none(quick, quick_references, tmp_path) -> None:
    method, checkpoints = RandomLabel(lr=0.01, epochs=3), Checkpoints(locate(tmp_path / "trial"))
    killed_after(1, quick, method, checkpoints)
    state = tmp_path / "trial" / "state.json"
    flipped = state.read_text().replace('"epoch": 1', '"epoch": 2')
    assert flipped != state.read_text()
    for content in ("", "{", "[]", '{"sha256": "0", "state": {}}', flipped):
        state.write_text(content)
        assert checkpoints.load(ALONE) is None
    row, _ = run_trial(quick, method, seed=0, checkpoints=checkpoints)
    assert (row["status"], row["resumed"], row["epochs"]) == ("completed", [], 3)


# A sweep that is resumed


@pytest.mark.long
@pytest.mark.parametrize(
    ("asked", "ends"),
    [
        pytest.param({"objective": "hmean"}, {"completed"}, id="gp"),
        pytest.param(ASHA, {"completed", "stopped"}, id="tpe-asha"),
        pytest.param(PARETO, {"completed"}, id="nsga2"),
    ],
)
def test_a_sweep_that_is_resumed_ends_as_one_that_was_not_disturbed(cluster, tmp_path, asked, ends) -> None:
    """One trial at a time: the same settings, stopped at the same rungs, to the last digit."""
    protocol = Protocol(trials=8, **asked)
    whole = run(protocol, tmp_path / "whole")
    lines = (tmp_path / "whole" / files.ROWS).read_text().splitlines(keepends=True)
    assert asked == ASHA or len({row["score"] for row in whole}) > 2
    assert {row["status"] for row in whole} == ends
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    (cut / files.ROWS).write_text("".join(lines[:4]))
    assert by_trial(run(protocol, cut, resume=True)) == by_trial(whole)


@pytest.mark.long
def test_what_was_begun_keeps_its_setting(cluster, tmp_path) -> None:
    """Two at a time, a search cannot be repeated; its trials in flight can, and go on from their checkpoints."""
    protocol = Protocol(trials=5, scheduler="none")
    command = [sys.executable, steady.__file__, "--storage", tmp_path, "--checkpoint-every", "0", "--concurrent", "2"]
    command += ["--address", ray.get_runtime_context().gcs_address, "--trials", "5", "--scheduler", "none"]
    driver, deadline = subprocess.Popen(command), time.monotonic() + 240
    while not list(tmp_path.glob("steady/checkpoints/*/state.json")):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    begun = reader.running(tmp_path / "steady")
    rows = run(protocol, tmp_path / "steady", resume=True, concurrent=2)
    assert sorted(row["trial"] for row in rows) == list(range(5))
    assert begun
    for row in rows:
        if str(row["trial"]) in begun:
            assert row["config"]["lr"] == begun[str(row["trial"])]["config"]["lr"]
            assert row["restarts"] == 1
    assert any(row["resumed"] for row in rows)
    assert reader.running(tmp_path / "steady") == {}
    assert list((tmp_path / "steady" / "checkpoints").iterdir()) == []


@pytest.mark.long
def test_a_reference_whose_process_is_killed_goes_on_by_itself(cluster, tmp_path, monkeypatch) -> None:
    """After whatever epoch, twice; it ends to the bit as one that nothing happened to."""
    recipe = Recipe(lr=0.05, epochs=12, batch_size=16)
    scenario = dataclasses.replace(SCENARIOS["digits"], name="killed", recipe=recipe)
    sweep, resources = Sweep(RandomLabel, scenario, Protocol(trials=1)), Resources(options=Options(checkpoint_s=0.0))
    random, killed, over = np.random.default_rng(), [], threading.Event()

    def epoch_of(which: str) -> int:
        for state in (tmp_path / "rl" / "checkpoints" / "references").glob(f"*/{which}-*/state.json"):
            with contextlib.suppress(OSError, ValueError):
                return json.loads(state.read_text())["state"]["epoch"]
        return 0

    def kill() -> None:
        for which in ("original", "retrained"):
            last = random.integers(1, 10)
            while (epoch := epoch_of(which)) < last:
                if over.wait(0.005):
                    return
            for process in processes_of(b"in_group"):
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            killed.append((which, epoch))

    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "disturbed"))
    with meanwhile(kill):
        try:
            (row,) = run_sweep(sweep, tmp_path / "rl", resources, Console(quiet=True), anyway=True)
        finally:
            over.set()
    assert row["status"] == "completed"
    assert killed  # the second may have ended before it was its turn
    entries = [reference_models.entry_of(splits.prepared(scenario), which) for which in reference_models.REFERENCES]
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "whole"))
    reference_models.compare(scenario)
    for which, entry in zip(reference_models.REFERENCES, entries, strict=True):
        whole = reference_models.entry_of(splits.prepared(scenario), which)
        assert (whole / reference_models.WEIGHTS).read_bytes() == (entry / reference_models.WEIGHTS).read_bytes(), (
            killed
        )
    assert list((tmp_path / "rl" / "checkpoints").iterdir()) == []


# What the machine refuses


def processes_of(what: bytes) -> list[int]:
    """Processes of Ray that do something of that name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::" + what in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def failures(directory: Path) -> int:
    """Of the trials that are on their way."""
    return sum(trial["failures"] for trial in reader.running(directory).values())


@contextlib.contextmanager
def meanwhile(what: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=what)
    thread.start()
    yield
    thread.join()


@pytest.mark.long
def test_what_the_machine_refuses_is_tried_again_and_then_given_up(cluster, at_once, tmp_path) -> None:
    """A disk that is full for a while costs a trial nothing; one that stays full is its error."""
    protocol = Protocol(trials=4, searcher="quasi_random", scheduler="none")
    whole = run(protocol, tmp_path / "whole")
    highest = max(whole, key=lambda row: row["config"]["lr"])
    others = [row for row in whole if row is not highest]
    refused = str(max(row["config"]["lr"] for row in others))

    cluster.write_text(refused)
    rows = run(protocol, tmp_path / "stays")
    (struck,) = (row for row in rows if row["status"] == "error")
    assert struck["trial"] == highest["trial"]
    assert struck["restarts"] == retries.RETRIES
    assert struck["error"].endswith("No space left on device: 'somewhere'; tried 3 times")
    assert "steady.py" in struck["traceback"]
    assert by_trial([row for row in rows if row is not struck]) == by_trial(others)

    def mend() -> None:
        while not failures(tmp_path / "passes"):
            time.sleep(0.01)
        cluster.unlink()

    with meanwhile(mend):
        rows = run(protocol, tmp_path / "passes")
    assert by_trial(rows) == by_trial(whole)
    assert {row["trial"]: row["restarts"] for row in rows}[highest["trial"]] in (1, 2)


def fill(disk: Path) -> Path:
    """Take all that is left of the disk."""
    filler = disk / FILLER
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass
    return filler


@pytest.mark.long
def test_a_sweep_waits_for_room_on_the_disk_and_ends_in_a_line_where_none_comes(
    cluster, small_disk, tmp_path, monkeypatch, capsys, caplog
) -> None:
    protocol = Protocol(trials=6, searcher="quasi_random", scheduler="none")
    whole, rows = run(protocol, tmp_path / "whole"), small_disk / "steady"

    def fill_after_a_row() -> Path:
        before = len(reader.read(rows))
        while len(reader.read(rows)) < before + 1:
            time.sleep(0.01)
        return fill(small_disk)

    monkeypatch.setattr("raymu.storage.OUTAGE_S", 1.0)
    monkeypatch.setattr(
        sys,
        "argv",
        ["steady", "--storage", str(small_disk), "--trials", "6", "--concurrent", "1", "--name", "steady", "--anyway"],
    )
    sys.argv += ["--searcher", "quasi_random", "--scheduler", "none", "--checkpoint-every", "0"]
    with meanwhile(fill_after_a_row), pytest.raises(SystemExit) as ended:
        sweep_main(lambda: steady.sweep())
    (small_disk / FILLER).unlink()
    assert ended.value.code == 2
    printed = capsys.readouterr().err.splitlines()
    assert [line for line in printed if "No space left on device" in line and "--resume continues" in line] == printed
    kept = reader.read(rows)
    assert 1 <= len(kept) < 6
    assert not list(rows.rglob("*.tmp"))

    def free_once_refused() -> None:
        filler = fill_after_a_row()
        while "trying again: No space left" not in caplog.text:
            time.sleep(0.01)
        filler.unlink()

    caplog.clear()
    monkeypatch.setattr("raymu.storage.OUTAGE_S", 60.0)
    with meanwhile(free_once_refused):
        resumed = run(protocol, rows, resume=True)
    assert resumed[: len(kept)] == kept
    assert by_trial(resumed) == by_trial(whole)


@pytest.mark.long
def test_a_process_that_finds_other_code_than_the_driver_ends_the_sweep(cluster, tmp_path, monkeypatch) -> None:
    """A module of the user's that is edited while the sweep runs: its rows would be of two codes."""
    module = tmp_path / "of_the_user.py"
    module.write_text("RATE = 0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("of_the_user")

    @ray.remote(num_cpus=0, max_calls=1)
    def enter(driver: nodes.Driver) -> None:
        sys.path.insert(0, str(tmp_path))
        importlib.import_module("of_the_user")
        nodes.settle(driver)

    with nodes.driving(locate(tmp_path), None) as driver:
        ray.get(enter.remote(driver))
        module.write_text("RATE = 0.2\n")
        with pytest.raises(NodeError, match=r"of_the_user\.py is not as it was where and when the sweep was started$"):
            nodes.returned(enter.remote(driver))


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("The actor 39 is unavailable: RpcError: Socket closed rpc_code: 14.", "node", "node was lost"),
        (
            "The actor died.\nThe actor died because its node has died. Node Id: 12",
            "node",
            "node was lost",
        ),
        ("The actor is dead because its worker process has died. End of file.", "process", "process died"),
        ("1 worker(s) were killed due to the node running low on memory.", "memory", "out of memory"),
        ("ray::train()\nTraceback\nOSError: [Errno 5] the actor is unavailable\n", "machine", "OSError: [Errno 5]"),
        ("", "machine", "unknown"),
    ],
)
def test_what_ended_a_trial_is_told_by_what_ray_says(text, kind, said) -> None:
    failure = Failure.of(text)
    assert failure.kind == kind
    assert said in str(failure)


def test_a_process_that_ray_ends_for_its_memory_does_not_end_the_sweep() -> None:
    """Whether Ray says that the actor died or that memory ran out."""
    told: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda _, error: told.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda _, error: told.append(error))
    manager = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    error = ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")
    actor_manager.RayActorManager._actor_task_failed(manager, task, error)
    assert told == [error, error]
    assert Failure.of(str(error)).kind == "memory"


def test_a_trial_outlives_lost_nodes_but_not_for_ever(tmp_path) -> None:
    """What counts against it counts over all of the sweep's runs."""
    process, node = Failure.of("its worker process has died"), Failure.of("its node has died")
    with Store(tmp_path, steady.sweep().identity(), resume=True) as rows:
        counted = retries.Retries(rows)
        counted.begin(3, {"lr": 0.1})
        assert [counted.fail(3, node) for _ in range(10)] == [0.0] * 10
        assert counted.fail(3, process) == 0.0
    with Store(tmp_path, steady.sweep().identity(), resume=True) as rows:
        counted = retries.Retries(rows)
        assert counted[3].config == {"lr": 0.1}
        counted.begin(3, {"lr": 0.1})
        assert counted.fail(3, process) == 0.0
        assert counted.fail(3, process) is None
        assert counted[3].begun == 14
        counted.begin(4, {})
        assert [counted.fail(4, node) for _ in range(retries.LOST_NODES)] == [0.0] * retries.LOST_NODES
        assert counted.fail(4, node) is None
        rows.append(a_row(3, 0.5, 0.5))
        (tmp_path / files.RUNNING).write_text("half")
        assert 4 not in retries.Retries(rows)


IMPATIENT = """
import runpy, sys
from raymu.distributed import retries
retries.PAUSES_S = (0.0, 0.0)
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.mark.long
def test_a_trial_that_is_ended_for_its_memory_says_so(quick_references, tmp_path) -> None:
    """By Ray's own monitor, on a machine of which a hundredth may be used."""
    limits = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "200"}
    driver = subprocess.run(
        [sys.executable, "-c", IMPATIENT, steady.__file__, "--storage", str(tmp_path), "--trials", "1"],
        env={**os.environ, **limits},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert driver.returncode == 2, driver.stderr
    (row,) = reader.read(tmp_path / "steady")
    assert row["status"] == "error"
    assert row["error"].startswith("out of memory")
    assert row["restarts"] == retries.RETRIES


# Damaged rows


def test_a_damaged_row_is_named(tmp_path) -> None:
    with Store(tmp_path, steady.sweep().identity(), resume=False) as rows:
        for trial in range(3):
            rows.append(a_row(trial, 0.5, 0.5))
    text = (tmp_path / files.ROWS).read_text()
    (tmp_path / files.ROWS).write_text(text.replace('"trial": 1', '"tr\x00'))
    with pytest.raises(InputError, match=r"line 2 of rows\.jsonl is damaged"):
        Store(tmp_path, steady.sweep().identity(), resume=True).read()


def test_a_trial_that_two_writers_stored_is_one_row(tmp_path) -> None:
    with Store(tmp_path, steady.sweep().identity(), resume=False) as rows:
        for trial in (0, 1, 0):
            rows.append(a_row(trial, 0.5, 0.5))
    assert [row["trial"] for row in reader.read(tmp_path)] == [0, 1]
