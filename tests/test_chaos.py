"""Random processes of a sweep are killed at random moments, and its results are those of one that nobody disturbed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import steady
import test_lost_nodes
from test_lost_nodes import cluster_of, measured, processes_on, wait_for

from raymu.distributed import retries
from raymu.results import files, ranking, reader, selection
from raymu.results.identity import CONFIRMATIONS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
TRIAL, WORKER, DRIVER, REFERENCE = "trial", "worker", "driver", "reference"
NAMES = {TRIAL: test_lost_nodes.TRIAL, WORKER: b"ray::_Worker.call", REFERENCE: b"in_group"}
DESIGN = ("--searcher", "quasi_random", "--concurrent", "2")
ADAPTIVE = ("--concurrent", "1", "--scheduler", "asha")  # with one trial at a time, what learns can be repeated, too
SHARED = ("--workers", "2", "--searcher", "quasi_random", "--max-epochs", "4")
PATIENCE_S = 400  # for anything to happen


class Sweep:
    """A sweep on a cluster, whose driver is begun again whenever it was killed."""

    def __init__(self, cluster: Any, storage: Path, arguments: tuple[str, ...], scenario: str) -> None:
        self.directory = storage / "steady"
        self._node = cluster.head_node
        self._command = [sys.executable, steady.__file__, "--address", cluster.address, "--storage", str(storage)]
        self._command += ["--checkpoint-every", "0", *arguments]
        self._environment = {**os.environ, "STEADY_SCENARIO": scenario}
        self.start()

    def start(self, *more: str) -> None:
        self.driver = subprocess.Popen([*self._command, *more], env=self._environment)

    def running(self, kind: str) -> list[int]:
        """Its processes of a kind that are at work, in the order of their ids."""
        if kind == DRIVER:
            return [self.driver.pid]
        return processes_on(self._node, NAMES[kind])

    def begun(self) -> list[dict[str, Any]]:
        """What it stored of its trials that have begun and not ended."""
        return list(reader.running(self.directory).values())

    def confirms(self) -> bool:
        return any(int(number) >= CONFIRMATIONS for number in reader.running(self.directory))

    def trial_s(self) -> float:
        """Seconds of a trial: were many over before the next is killed, a fast machine would end the sweep first."""
        return min((row["wall_s"] for row in reader.read(self.directory)), default=1.5)

    def kill(self, kind: str, chance: random.Random) -> bool:
        """Kill one of its processes of this kind, unless the sweep is over before there is one."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            # What died so often that the next time it is given up is another test's.
            spared = kind != DRIVER and any(trial["failures"] >= retries.RETRIES for trial in self.begun())
            if self.driver.poll() is not None:
                return False
            at_work = self.begun() or self.running(REFERENCE)
            if not spared and at_work and (pids := self.running(kind)):
                before = sum(trial["failures"] for trial in self.begun())
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(pids), signal.SIGKILL)
                    if self._has_cost_an_attempt(kind, before):
                        return True
            time.sleep(0.02)
        raise TimeoutError(f"no {kind} to kill")

    def _has_cost_an_attempt(self, kind: str, failures: int) -> bool:
        """Whether the kill ended an attempt: not where the trial had ended just before. Waits until that is known."""
        if kind == DRIVER:
            self.driver.wait()
            self.start("--resume")
        if kind in (DRIVER, REFERENCE):
            return True
        rows = len(reader.read(self.directory))
        while sum(trial["failures"] for trial in self.begun()) <= failures:
            if self.driver.poll() is not None or len(reader.read(self.directory)) > rows:
                return False
            time.sleep(0.02)
        return True

    def end(self) -> list[dict[str, Any]]:
        """Its rows, once it has ended. Until then they grow."""
        rows: list[dict[str, Any]] = []
        while self.driver.poll() is None:
            before, rows = len(rows), reader.read(self.directory)
            assert len(rows) > before or not before
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.driver.wait(PATIENCE_S)
        assert self.driver.returncode == 0
        return reader.read(self.directory)


class Reader(threading.Thread):
    """Reads the results all the time: rows only come, and stay as they are."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory, self._over = directory, threading.Event()
        self.reads, self.error = 0, None

    def run(self) -> None:
        seen: list[dict] = []
        try:
            while not self._over.is_set():
                rows = reader.read(self._directory)
                assert rows[: len(seen)] == seen
                assert len({row["trial"] for row in rows}) == len(rows)
                seen = rows
                self.reads += 1
                time.sleep(0.05)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> "Reader":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


@contextlib.contextmanager
def started(cluster: Any, storage: Path, arguments: tuple[str, ...], scenario: str) -> Iterator[Sweep]:
    sweep = Sweep(cluster, storage, arguments, scenario)
    try:
        yield sweep
    finally:
        sweep.driver.kill()
        sweep.driver.wait()


def disturb(
    tmp_path: Path,
    arguments: tuple[str, ...],
    search: list[str],
    confirmation: Sequence[str] = (),
    *,
    seed: int,
    scenario: str = "digits",
) -> None:
    """Kill one process of every kind in these lists, at random moments, and compare with a sweep that is left alone."""
    kinds = [*search, *confirmation]
    with cluster_of(0, num_cpus=2) as (cluster, _):
        chance, killed = random.Random(seed), Counter()
        with started(cluster, tmp_path / "disturbed", arguments, scenario) as sweep, Reader(sweep.directory) as watch:
            for number, kind in enumerate(kinds):
                if number == len(search):
                    wait_for(sweep.confirms, sweep.driver, PATIENCE_S)
                time.sleep(chance.uniform(0.0, sweep.trial_s()))
                killed[kind] += sweep.kill(kind, chance)
            rows = sweep.end()
        with started(cluster, tmp_path / "whole", arguments, scenario) as sweep:
            whole = sweep.end()
    assert killed == Counter(kinds)
    assert watch.error is None
    assert watch.reads > len(kinds)
    by_number = sorted(rows, key=lambda row: row["trial"])
    assert measured(by_number) == measured(sorted(whole, key=lambda row: row["trial"]))
    lines = (tmp_path / "disturbed" / "steady" / files.ROWS).read_text().splitlines()
    assert len(lines) == len(rows) == len(whole)
    assert selection.tuned(rows)["trial"] == selection.tuned(whole)["trial"]
    order = [[row["trial"] for row in selection.Best(len(rows)).choose(one)] for one in (rows, whole)]
    assert order[0] == order[1]
    ranked = [
        [(end.rank, end.score, end.tuned["trial"]) for end in ranking.rank(reader.load(tmp_path / name))]
        for name in ("whole", "disturbed")
    ]
    assert ranked[0] == ranked[1]
    assert sum(row["restarts"] for row in rows) >= killed[TRIAL] + killed[WORKER]
    assert all(row["restarts"] <= retries.RETRIES + killed[DRIVER] for row in rows)
    assert not list((tmp_path / "disturbed" / "steady" / "checkpoints").iterdir())


def shuffled(seed: int, **kinds: int) -> list[str]:
    drawn = [kind for kind, count in kinds.items() for _ in range(count)]
    random.Random(seed).shuffle(drawn)
    return drawn


@pytest.mark.long
def test_three_kills(quick_references, tmp_path) -> None:
    disturb(tmp_path, ("--trials", "7", *DESIGN), [TRIAL, DRIVER, TRIAL], seed=0)


@pytest.mark.long
def test_eight_kills_of_a_search_that_learns(quick_references, tmp_path) -> None:
    """With ASHA, one trial at a time."""
    disturb(tmp_path, ("--trials", "24", *ADAPTIVE), shuffled(1, trial=5, driver=3), seed=1)


@pytest.mark.long
def test_twenty_kills_of_trials_side_by_side(quick_references, tmp_path) -> None:
    disturb(tmp_path, ("--trials", "40", *DESIGN), shuffled(2, trial=13, driver=7), seed=2)


@pytest.mark.long
def test_six_kills_where_two_workers_share_a_trial(tmp_path) -> None:
    """Under DeepSpeed."""
    disturb(
        tmp_path, ("--trials", "8", *SHARED), shuffled(3, trial=2, worker=3, driver=1), seed=3, scenario="digits-vit"
    )


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_hundred_kills_from_the_references_to_the_report(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    confirmed = ("--confirm-seeds", "3", "--confirm-top", "5")
    search = [REFERENCE, DRIVER, REFERENCE, *shuffled(4, trial=146, driver=31)]
    disturb(tmp_path, ("--trials", "200", *DESIGN, *confirmed), search, shuffled(5, trial=7, driver=3), seed=4)
    page, chance = tmp_path / "report.html", random.Random(6)
    write = [sys.executable, "-m", "raymu", "report", str(tmp_path / "disturbed"), "--out", str(page)]
    for _ in range(10):
        with subprocess.Popen(write, stdout=subprocess.DEVNULL) as report:
            with contextlib.suppress(subprocess.TimeoutExpired):
                report.wait(chance.uniform(1, 15))
            report.kill()
        assert not page.exists() or page.read_text().rstrip().endswith("</html>")
    assert subprocess.run(write, stdout=subprocess.DEVNULL).returncode == 0
    assert page.read_text().rstrip().endswith("</html>")
