"""A sweep whose trials have two workers each, under DeepSpeed, through the command line."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from rich.console import Console

from raymu.distributed.session import Resources, session
from raymu.engines import Options
from raymu.methods.random_label import RandomLabel
from raymu.protocol import Protocol
from raymu.results import reader
from raymu.scenario import SCENARIOS, Recipe
from raymu.tuning.driver import run_sweep
from raymu.tuning.sweep import Sweep

SCRIPT = """
import dataclasses

from raymu.cli import sweep_main
from raymu.methods.random_label import RandomLabel
from raymu.objective import HMEAN
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS, Recipe
from raymu.tuning.sweep import Sweep

vit = SCENARIOS["digits-vit"]
vit = dataclasses.replace(vit, name="vit", recipe=Recipe(lr=0.1, epochs=2, batch_size=32))
sweep_main(lambda: Sweep(RandomLabel, vit, Protocol(objective=HMEAN)))  # there is no memory to remove
"""
TRIALS = 6


def parents() -> dict[int, int]:
    """Of every process its parent."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = status.read_text().rsplit(")", 1)
        except OSError:
            continue  # it has just ended
        found[int(name.split()[0])] = int(rest.split()[1])
    return found


def worker_of(driver: int) -> int | None:
    """A process of the driver's that is a worker, and not the first, of a trial; None between two trials."""
    parent = parents()
    for pid in parent:
        ancestor = pid
        while ancestor in parent and ancestor != driver:
            ancestor = parent[ancestor]
        with contextlib.suppress(OSError):  # it has just ended
            if ancestor == driver and b"ray::_Worker.call" in (Path("/proc") / str(pid) / "cmdline").read_bytes():
                return pid
    return None


@pytest.mark.long
@pytest.mark.cluster
def test_every_trial_is_accounted_for_where_asha_stops_some_and_a_worker_is_killed(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [
        sys.executable,
        str(script),
        "--trials",
        str(TRIALS),
        "--workers",
        "2",
        "--zero",
        "2",
        "--max-epochs",
        "6",
        "--scheduler",
        "asha",
        "--name",
        "random_label",
        "--anyway",
    ]
    sweep = subprocess.Popen([*command, "--checkpoint-every", "0"], cwd=tmp_path, text=True, stdout=subprocess.PIPE)
    checkpoints = tmp_path / "raymu-results" / "random_label" / "checkpoints"
    while not any(checkpoints.glob("*/state.json")) or (worker := worker_of(sweep.pid)) is None:
        assert sweep.poll() is None
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    printed, _ = sweep.communicate()
    assert sweep.returncode == 0, printed
    rows = sorted(reader.read_all(tmp_path), key=lambda row: row["trial"])
    assert [row["trial"] for row in rows] == list(range(TRIALS))
    assert {row["status"] for row in rows} == {"completed", "stopped"}
    assert [row["restarts"] for row in rows].count(1) == 1
    (struck,) = (row for row in rows if row["restarts"])
    assert len(struck["resumed"]) == 1
    assert {row["engine"] for row in rows} == {"zero-2"}
    assert {row["workers"] for row in rows} == {2}
    assert not any(checkpoints.iterdir())  # nothing of them is needed again


@pytest.mark.long
def test_workers_go_when_the_sweep_is_over(tmp_path) -> None:
    """A cluster that was there before has all of itself back within seconds."""
    vit = SCENARIOS["digits-vit"]
    scenario = dataclasses.replace(vit, name="vit", recipe=Recipe(lr=0.1, epochs=2, batch_size=32))  # trained above
    sweep = Sweep(RandomLabel, scenario, Protocol(trials=2, max_epochs=2))
    with session(None):
        rows = run_sweep(
            sweep, tmp_path / "sweep", Resources(options=Options(workers=2)), Console(quiet=True), anyway=True
        )
        ended = time.monotonic()
        while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
            assert time.monotonic() < ended + 10
            time.sleep(0.1)
        tables = ray.util.placement_group_table().values()
    assert len(rows) == 2
    assert {table["state"] for table in tables} == {"REMOVED"}
