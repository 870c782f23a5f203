"""A sweep on a cluster whose nodes come and go: Ray's own cluster utilities, on one machine."""

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import steady
from test_distributed_sweep import parents

import raymu  # noqa: F401 # before Ray, for its token
from raymu.evaluation import columns
from raymu.results import files, reader

from ray.cluster_utils import Cluster  # isort: skip

pytestmark = pytest.mark.cluster
TRIALS = 8
DESIGN = ("--trials", str(TRIALS), "--searcher", "quasi_random", "--scheduler", "none", "--checkpoint-every", "0")
TRIAL = b"ray::ImplicitFunc.train"  # in the name of its process
SAME = ("trial", "seed", "config", "status", "score", "curve", "epochs", "images", *columns())


@functools.cache
def make_token() -> None:
    """Without one no node of a cluster starts; a local Ray makes its own."""
    subprocess.run(
        [Path(sys.executable).parent / "ray", "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL
    )


@contextlib.contextmanager
def cluster_of(nodes: int, **head: Any) -> Iterator[tuple[Cluster, list[Any]]]:
    """A head and so many nodes of one CPU."""
    make_token()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **head})
    try:
        yield cluster, [cluster.add_node(num_cpus=1) for _ in range(nodes)]
    finally:
        cluster.shutdown()


@contextlib.contextmanager
def sweep_on(
    cluster: Cluster, storage: Path, *arguments: object, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    driver = subprocess.Popen(
        [sys.executable, steady.__file__, "--address", cluster.address, "--storage", storage, *DESIGN, *arguments],
        env={**os.environ, **environment},
    )
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def processes_on(node: Any, name: bytes = TRIAL) -> list[int]:
    """Those of this name, in the order of their ids."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for pid, parent in parents().items():
        with contextlib.suppress(OSError):
            if parent == raylet and name in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return sorted(found)


def wait_for(condition, driver: subprocess.Popen[bytes], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(driver: subprocess.Popen[bytes], storage: Path) -> list[dict[str, Any]]:
    """The rows, once the sweep is over: each trial once, and none failed."""
    assert driver.wait(240) == 0
    rows = sorted(reader.read(storage / "steady"), key=lambda row: row["trial"])
    assert [row["trial"] for row in rows] == list(range(TRIALS))
    lines = (storage / "steady" / files.ROWS).read_text().splitlines()
    assert len(lines) == TRIALS
    assert {row["status"] for row in rows} == {"completed"}
    return rows


@pytest.fixture(scope="module")
def undisturbed(quick_references, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    storage = tmp_path_factory.mktemp("undisturbed")
    with cluster_of(2) as (cluster, nodes), sweep_on(cluster, storage) as driver:
        wait_for(lambda: all(processes_on(node) for node in nodes), driver)  # it spreads over both
        return measured(end(driver, storage))


def measured(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [[row[key] for key in SAME] for row in rows]


@pytest.mark.long
def test_nodes_are_killed_and_one_is_added(undisturbed, tmp_path) -> None:
    """Every trial ends, each once, and as it would have."""
    with cluster_of(2) as (cluster, nodes), sweep_on(cluster, tmp_path, STEADY_EPOCH_S="0.6") as driver:
        wait_for(lambda: processes_on(nodes[0]), driver)
        added = cluster.add_node(num_cpus=1)
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.remove_node(nodes[1], allow_graceful=False)  # what is left can only run on the one that was added
        wait_for(lambda: processes_on(added), driver)
        rows = end(driver, tmp_path)
    assert measured(rows) == undisturbed
    assert sum(row["restarts"] for row in rows) >= 1


@pytest.mark.long
def test_a_node_that_is_taken_with_notice(undisturbed, tmp_path) -> None:
    """What runs there goes on until it goes, and then elsewhere."""
    with cluster_of(2) as (cluster, nodes), sweep_on(cluster, tmp_path) as driver:
        wait_for(lambda: processes_on(nodes[0]), driver)
        drain = [Path(sys.executable).with_name("ray"), "drain-node", "--address", cluster.address]
        taken = ["--node-id", nodes[0].node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        subprocess.run([*drain, *taken, "--deadline-remaining-seconds", "2"], check=True, capture_output=True)
        time.sleep(2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert measured(end(driver, tmp_path)) == undisturbed


@pytest.mark.long
def test_the_head_is_restarted(undisturbed, tmp_path) -> None:
    """The driver cannot outlive it, but ends; another goes on."""
    with (
        cluster_of(1) as (cluster, _),
        sweep_on(cluster, tmp_path, RAY_gcs_rpc_server_reconnect_timeout_s="2") as driver,
    ):
        wait_for(lambda: len(reader.read(tmp_path / "steady")) >= 2, driver)
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        assert driver.wait(100) != 0
    kept = reader.read(tmp_path / "steady")
    assert 2 <= len(kept) < TRIALS
    with cluster_of(2) as (cluster, _), sweep_on(cluster, tmp_path, "--resume") as driver:
        rows = end(driver, tmp_path)
    assert measured(rows) == undisturbed
    assert reader.read(tmp_path / "steady")[: len(kept)] == kept
