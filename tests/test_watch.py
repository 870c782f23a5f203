"""A process that hangs is ended and its work is done again, be it a trial's or a reference's."""

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import steady
from rich.console import Console
from test_faults import killed_after, meanwhile, processes_of

from raymu import heartbeat, reference_models
from raymu.checkpoints import Checkpoints
from raymu.distributed import retries, watch
from raymu.distributed.session import Resources, session
from raymu.distributed.watch import Sign, Watch
from raymu.engines import Options
from raymu.errors import NodeError
from raymu.methods.random_label import RandomLabel
from raymu.protocol import Protocol
from raymu.results import files
from raymu.results.status import status
from raymu.scenario import Recipe
from raymu.storage import locate
from raymu.tuning.driver import run_sweep
from raymu.tuning.sweep import Sweep
from raymu.workers import ALONE

ray.cloudpickle.register_pickle_by_value(steady)  # processes of Ray do not find the tests
PLACE = ("node", 1)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What a watch has ended."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Watch, "_end", lambda self, *what: found.append(what))
    return found


def looks(watch: Watch, *signs: Sign, seconds: float) -> None:
    """As many looks as signs, the last one again and again for the seconds."""
    for sign in signs:
        watch._look({PLACE: sign}, 1.0)
    for _ in range(int(seconds)):
        watch._look({PLACE: signs[-1]}, 1.0)


def test_silence_is_long_beside_the_longest_so_far(ended) -> None:
    sign = Sign("trial", 0.0, 1, 0, 4)
    alone = Watch(None)
    looks(alone, sign, seconds=watch.SILENCE_S)
    assert ended == []
    looks(alone, sign, seconds=0)
    assert ended == [(PLACE, "trial", "no sign of life for 601 s")]
    ended.clear()
    slow = Watch(None)
    looks(slow, sign, seconds=200)  # an epoch of a large model, without a batch that says so
    looks(slow, sign._replace(given=2, epoch=1), seconds=10 * 200)
    assert ended == []
    looks(slow, sign._replace(given=2, epoch=1), seconds=0)
    assert ended == [(PLACE, "trial", "no sign of life for 2001 s")]


def test_a_process_that_does_something_else_is_not_silent(ended) -> None:
    one = Watch(None)
    looks(one, Sign("trial", 0.0, 1, 0, 0), seconds=watch.SILENCE_S)
    looks(one, Sign("another", 0.0, 1, 0, 0), seconds=watch.SILENCE_S)
    one._look({}, 1.0)  # it has nothing to do
    looks(one, Sign("another", 0.0, 1, 0, 0), seconds=watch.SILENCE_S)
    assert ended == []


def test_a_trial_has_its_time(ended) -> None:
    one = Watch(None)
    with one.over(lambda signs: None, timeout_s=60):
        looks(one, *(Sign("trial", seconds, int(seconds), 0, 0) for seconds in (1.0, 59.0, 61.0)), seconds=0)
    looks(one, Sign("reference", 1000.0, 1, 0, 0), seconds=0)  # which has as long as it needs
    assert ended == [(PLACE, "trial", "not ready after 60 s (--trial-timeout)")]


def test_signs_are_given_at_most_every_second() -> None:
    heard: list[tuple[int, int]] = []

    class Ear(heartbeat.Listener):
        def hear(self, epoch: int, epochs: int) -> None:
            heard.append((epoch, epochs))

    with heartbeat.heard_by(Ear()):
        for epoch in range(1000):
            heartbeat.beat(epoch, 1000)
    heartbeat.beat(5, 9)
    assert heard == [(0, 0)]


# On a real Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with session(None):
        yield


def sweep(name: str, epochs: int = 1) -> Sweep:
    made = steady.sweep(Protocol(trials=2, scheduler="none"))
    recipe = Recipe(lr=0.05, epochs=epochs, batch_size=16)
    return dataclasses.replace(made, scenario=dataclasses.replace(made.scenario, name=name, recipe=recipe))


def run(asked: Sweep, directory: Path, **resources: Any) -> list[dict]:
    given = Resources(options=Options(checkpoint_s=0.0), concurrent=1, **resources)
    return run_sweep(asked, directory, given, Console(quiet=True), anyway=True)


@pytest.mark.long
def test_a_trial_that_is_stopped_is_tried_again_and_seen_from_elsewhere(cluster, tmp_path) -> None:
    """By SIGSTOP, as one that waits for a disk which never answers: its process says nothing any more."""
    seen: list[Any] = []

    def stop() -> None:
        while not list(tmp_path.glob("hung/checkpoints/1/state.json")):
            time.sleep(0.02)
        (process,) = processes_of(b"ImplicitFunc")
        os.kill(process, signal.SIGSTOP)
        while not (seen and seen[-1].running):
            time.sleep(0.2)
            seen.extend(status(str(tmp_path)))

    with meanwhile(stop):
        rows = run(sweep("hung"), tmp_path / "hung", timeout_s=20)
    assert [row["status"] for row in rows] == ["completed", "completed"]
    assert rows[1]["restarts"]
    assert rows[1]["resumed"]
    (process,) = seen[-1].running
    assert process["what"].startswith("hung-000")
    assert (seen[-1].state, seen[-1].trials) == ("running", 2)
    (after,) = status(str(tmp_path))
    assert (after.state, after.searched, after.silent_s) == ("ended", 2, None)


@pytest.mark.long
def test_a_trial_that_hangs_again_and_again_is_an_error(cluster, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(retries, "RETRIES", 1)
    rows = run(sweep("slow"), tmp_path / "slow", timeout_s=0.1)
    errors = {row["error"] for row in rows}
    assert errors == {"not ready after 0.1 s (--trial-timeout); tried 2 times"}


@pytest.mark.long
def test_a_reference_that_hangs_is_trained_again(cluster, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(watch, "SILENCE_S", 20.0)
    monkeypatch.setattr(watch, "TIMES", 0)
    stopped: list[int] = []

    def stop() -> None:
        while not list(tmp_path.glob("stuck/checkpoints/references/*/*/state.json")):
            time.sleep(0.02)
        stopped.extend(processes_of(b"in_group"))
        for process in stopped:
            os.kill(process, signal.SIGSTOP)

    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    with meanwhile(stop):
        rows = run(sweep("stuck", epochs=30), tmp_path / "stuck")
    assert stopped
    assert [row["status"] for row in rows] == ["completed", "completed"]


@pytest.mark.cluster
def test_a_reference_whose_process_dies_again_and_again_ends_the_sweep_in_a_line(
    cluster, tmp_path, monkeypatch
) -> None:
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05):
            for process in processes_of(b"in_group"):
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)

    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    with meanwhile(kill):
        try:
            with pytest.raises(NodeError, match=r"model 0 of dies \(.*\): its process died; tried 3 times"):
                run(sweep("dies"), tmp_path / "dies")
        finally:
            over.set()
    assert not reference_models.are_ready(sweep("dies").scenario)
    assert not (tmp_path / "dies" / files.PROGRESS).exists()


def test_status_as_a_command(in_process, tmp_path) -> None:
    from test_store import IDENTITY

    from raymu.results.writer import Store

    with Store(tmp_path / "one", IDENTITY, resume=False) as store:
        store.tell([{"what": "one-0003", "seconds": 75.0, "epoch": 2, "epochs": 5, "given": 9}])
        (found,) = json.loads(in_process("status", str(tmp_path), "--json"))
        said = in_process("status", str(tmp_path))
    assert (found["state"], found["running"][0]["epoch"]) == ("running", 2)
    assert "epoch 2 of 5, 1:15" in said
    assert "interrupted" in in_process("status", str(tmp_path))
    assert "interrupted" in in_process("status", str(tmp_path), "--follow")


@pytest.mark.parametrize("ends_soon", [True, False])
def test_on_a_machine_that_is_taken_away_every_epoch_is_kept(quick, quick_references, tmp_path, ends_soon) -> None:
    class Ear(heartbeat.Listener):
        def ends_soon(self) -> bool:
            return ends_soon

    checkpoints = Checkpoints(locate(tmp_path))
    with heartbeat.heard_by(Ear()):
        killed_after(1, quick, RandomLabel(lr=0.01, epochs=3), checkpoints, options=Options(checkpoint_s=1e9))
    found = checkpoints.load(ALONE)
    assert (found is not None and found[0].epoch == 1) is ends_soon


def test_what_a_dead_process_said_is_forgotten() -> None:
    signs = watch._Signs()
    signs.begin(PLACE, "trial")
    signs.hear(PLACE, 1, 2)
    signs.begin(("node", 2), "another")
    signs.forget("trial")
    assert [one.what for one in signs.all().values()] == ["another"]
