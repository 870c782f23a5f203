"""Sweeps on a cluster whose other nodes have a file system of their own, as far as a mount namespace gives them one."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import ray
from conftest import REPOSITORY
from rich.console import Console
from test_lost_nodes import cluster_of
from test_store import Server, s3
from torch.nn.functional import cross_entropy

from raymu import cache, memory, reference_models
from raymu.data import published
from raymu.distributed import nodes, retries
from raymu.distributed.nodes import check, driving, settle
from raymu.distributed.session import Resources, fit_to_cluster, session
from raymu.errors import InputError, NodeError
from raymu.method import Method, Range, fixed, tuned
from raymu.methods.random_label import RandomLabel
from raymu.protocol import Protocol
from raymu.results import reader
from raymu.scenario import SCENARIOS, Recipe
from raymu.storage import locate
from raymu.tuning.driver import run_sweep
from raymu.tuning.sweep import Sweep

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="nodes have namespaces of their own, which only root can make"),
]
__all__ = ["s3"]  # a fixture
QUIET = Console(quiet=True)
SCENARIO = dataclasses.replace(
    SCENARIOS["cifar10-resnet18"],
    name="far",
    architecture="test_resnet",
    cifar_stem=False,
    recipe=Recipe(lr=0.05, epochs=1, batch_size=64),
)

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes of Ray do not find the tests


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A cache with images that are to be had nowhere else."""
    monkeypatch.setenv("RAYMU_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    parts = {}
    for part in ("train", "test"):
        parts[f"{part}_images"] = random.integers(0, 256, (200, 3, 32, 32), np.uint8)
        parts[f"{part}_labels"] = np.arange(200) % 10
    published.DATASETS["cifar10"].keep(parts)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a cluster where no trial has room."""
    with cluster_of(0, include_dashboard=False) as (cluster, _):
        yield cluster.address


@contextlib.contextmanager
def node(address: str, *hidden: Path, size: str = "50%", **environment: str) -> Iterator[None]:
    """A node with one CPU that sees nothing in some directories, which have so much room."""
    mounts = "".join(f"mount -t tmpfs -o size={size} tmpfs {path}; " for path in hidden)
    start = f"{sys.executable} -m ray.scripts.scripts start --address {address} --num-cpus 1 --block"
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"{mounts}exec {start}"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def joined(count: int) -> None:
    """Wait until so many nodes are there."""
    until = time.monotonic() + 60
    while sum(each["Alive"] for each in ray.nodes()) != count:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_node_has_the_cache_from_the_mirror_and_mirrors_what_it_made(head, own_cache, tmp_path, monkeypatch) -> None:
    """It joins after the sweep has begun, and is the only one with room: all is computed there."""
    sweep = Sweep(RandomLabel, SCENARIO, Protocol(trials=2, max_epochs=2))
    with session(head):
        joined(1)
        with pytest.raises(InputError, match="the Ray cluster has 0"):
            fit_to_cluster(Resources())
        monkeypatch.setattr("raymu.distributed.session._has_autoscaler", lambda: True)
        with pytest.raises(InputError, match="--concurrent says"):
            fit_to_cluster(Resources())
        with pytest.raises(InputError, match="and none came in"):
            fit_to_cluster(Resources(concurrent=1), wait_s=1)
        late = contextlib.ExitStack()
        start = threading.Timer(2, lambda: late.enter_context(node(head, own_cache)))
        start.start()
        with late:
            rows = run_sweep(
                sweep,
                tmp_path / "results",
                Resources(head, concurrent=1),
                QUIET,
                mirror=locate(tmp_path / "mirror"),
                anyway=True,
            )
        joined(1)
    assert [row["status"] for row in rows] == ["completed"] * 2
    assert reference_models.are_ready(SCENARIO)  # the driver has had them, too
    assert not list((tmp_path / "results").glob(".visible*"))


@pytest.mark.long
def test_without_a_mirror_nodes_share_the_cache_itself(head, own_cache, tmp_path) -> None:
    sweep = Sweep(RandomLabel, SCENARIO, Protocol(trials=2, max_epochs=2))
    with session(head), node(head, own_cache):
        joined(2)
        with pytest.raises(NodeError, match=r"^node \S+: it does not see .*cache.*--no-mirror"):
            run_sweep(sweep, tmp_path / "results", Resources(head), QUIET, anyway=True)
    assert not reference_models.are_ready(SCENARIO)
    with session(head), node(head):
        joined(2)
        rows = run_sweep(sweep, tmp_path / "results", Resources(head), QUIET, resume=True, anyway=True)
    assert [row["status"] for row in rows] == ["completed"] * 2
    assert not list(cache.root().glob(".visible*"))


@pytest.mark.long
def test_results_that_a_node_cannot_see_are_refused_before_anything_is_trained(head, own_cache, tmp_path) -> None:
    sweep = Sweep(RandomLabel, SCENARIO, Protocol(trials=2))
    (tmp_path / "hidden").mkdir()
    with session(head), node(head, tmp_path / "hidden"):
        joined(2)
        with pytest.raises(NodeError, match=r"^node \S+: it does not see .*hidden/results.*--storage"):
            run_sweep(sweep, tmp_path / "hidden" / "results", Resources(head), QUIET, anyway=True)
    assert not reference_models.are_ready(SCENARIO)


def test_a_driver_that_lost_its_sweep_leaves_the_mark_of_the_other(head, tmp_path) -> None:
    look = ray.remote(num_cpus=0, max_calls=1)(settle)
    with session(head), contextlib.ExitStack() as loser:
        loser.enter_context(driving(locate(tmp_path), None))
        with driving(locate(tmp_path), None) as winner:
            loser.close()
            ray.get(look.remote(winner))
    assert not list(tmp_path.glob(".visible*"))


def test_a_node_is_not_blamed_for_an_outage(head, s3: Server) -> None:
    with session(head), driving(locate(s3.place()), None) as driver:
        s3.stop()
        try:
            look = threading.Thread(target=settle, args=(driver,))
            look.start()
            look.join(2)
            assert look.is_alive()
        finally:
            s3.start()
        look.join()
        settle(driver)


def test_an_outage_that_does_not_end_is_said(head, s3: Server, monkeypatch) -> None:
    monkeypatch.setattr("raymu.storage.OUTAGE_S", 0.5)
    with session(head), driving(locate(s3.place()), None) as driver:
        s3.stop()
        try:
            with pytest.raises(NodeError, match=r"^node \S+: it cannot read s3://.* Could not connect.*--storage"):
                settle(driver)
            with (
                pytest.raises(InputError, match=r"^cannot write to s3://.* Could not connect"),
                driving(driver.shared, None),
            ):
                pass
        finally:
            s3.start()


@pytest.mark.long
def test_a_full_disk_of_a_node_is_a_failure_of_its_trial(head, own_cache, tmp_path, monkeypatch) -> None:
    """Not the end of the sweep. The node joins later, and has no room for the data."""
    reference_models.compare(SCENARIO)
    # The data are mirrored, the node is not looked at.
    monkeypatch.setattr(nodes, "check", lambda driver, scenario: nodes._have_data(scenario))
    monkeypatch.setattr(retries, "PAUSES_S", (0.0, 0.0))
    sweep = Sweep(RandomLabel, SCENARIO, Protocol(trials=1))
    with session(head), node(head, own_cache, size="64k"):
        joined(2)
        mirror = locate(tmp_path / "mirror")
        (row,) = run_sweep(sweep, tmp_path / "results", Resources(head), QUIET, mirror=mirror, anyway=True)
    assert row["status"] == "error"
    assert "No space left on device" in row["error"]
    assert row["error"].endswith("tried 3 times")


def test_a_node_with_another_raymu_is_named(head, own_cache, tmp_path, monkeypatch) -> None:
    """Before anything is trained; where it joins later, by the first trial that it is given."""
    monkeypatch.chdir(tmp_path)  # processes of Ray look for modules where the driver is first
    shutil.copytree(REPOSITORY / "raymu", tmp_path / "other" / "raymu")
    with (tmp_path / "other" / "raymu" / "errors.py").open("a") as file:
        file.write("# edited\n")
    reference_models.compare(SCENARIO)
    sweep = Sweep(RandomLabel, SCENARIO, Protocol(trials=2))
    reason = r"^node \S+: raymu is \w{12} there, \w{12} where the sweep was started$"
    with session(head), node(head, PYTHONPATH=str(tmp_path / "other")):
        joined(2)
        with driving(locate(tmp_path), None) as driver, pytest.raises(NodeError, match=reason):
            check(driver, SCENARIO)
        monkeypatch.setattr("raymu.distributed.nodes.check", lambda driver, scenario: None)
        with pytest.raises(NodeError, match=reason):
            run_sweep(sweep, tmp_path / "results", Resources(head), QUIET, anyway=True)
    assert not reader.read(tmp_path / "results")


class Hungry(Method):
    """Says that it took 30 % of the GPU, and how much of one it was given."""

    paper = "none"
    lr: float = tuned(0.1, Range(0.0, 1.0, "linear"), "of nothing")
    epochs: int = fixed(1, "of nothing")
    directory: ClassVar[str] = ""

    def unlearn(self, run):
        memory.share = lambda device: 0.3
        given = ray.get_runtime_context().get_assigned_resources()["GPU"]
        (Path(self.directory) / f"{self.lr}").write_text(f"{time.time()} {given}")
        for _ in run.epochs(self.epochs, self.lr):
            for batch in run.batches("forget"):
                yield cross_entropy(run.model(batch.images), batch.labels)


def believe() -> None:
    """Let a process of Ray believe in the GPU that it was given."""
    from raymu.distributed import nodes

    nodes._find_gpu = lambda: None


@pytest.mark.long
def test_trials_share_a_gpu_as_its_memory_and_speed_allow(quick, tmp_path, monkeypatch) -> None:
    """On a GPU that Ray believes in."""
    monkeypatch.setattr(Hungry, "directory", str(tmp_path))
    monkeypatch.setattr("raymu.distributed.session.GROWTH", 0.0)  # two cores may be no faster than one
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # a node that was settled in this process left it empty
    sweep = Sweep(Hungry, quick, Protocol(trials=4, searcher="random", scheduler="none"))
    hook = {"worker_process_setup_hook": believe}
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, runtime_env=hook)
    try:
        rows = run_sweep(sweep, tmp_path / "results", Resources(gpus_per_worker="auto"), QUIET, anyway=True)
    finally:
        ray.shutdown()
    assert [row["status"] for row in rows] == ["completed"] * 4
    said = sorted((tmp_path / f"{row['config']['lr']}").read_text().split() for row in rows)
    assert [given for _, given in said] == ["1.0", "0.5", "0.5", "0.5"]
