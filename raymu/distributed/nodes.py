"""The nodes of a cluster: what they have to have in common with the one that a sweep is driven from, called home, and
how its cache reaches them.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raymu
from raymu import cache, devices, modules, source, splits
from raymu.distributed.cache_server import Shelf
from raymu.errors import InputError, NodeError
from raymu.models import pretrained
from raymu.scenario import Scenario
from raymu.storage import Location, patiently, read_bytes, write_bytes

PACKAGES = ("ray", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "deepspeed")
LATE_S = 5.0  # until other nodes see a new file on a network file system
CHUNK = 2**26  # bytes


@dataclass(frozen=True)
class Home:
    """The node of the driver, for the processes of all nodes.

    Attributes:
        node: Ray's name of it.
        base: the directory of its cache, which is that of every node.
        versions: see `versions`.
        modules: digests of the user's modules that the driver has imported, by name.
        shelf: the actor that serves its cache.
        shared: a directory that every node has to see, for results or checkpoints.
        mark: the name of a file that stands there, of this driver alone: another may take the sweep over.
    """

    node: str
    base: str
    versions: dict[str, str]
    modules: dict[str, str]
    shelf: Any
    shared: Location
    mark: str

    def fetch(self, name: str, directory: Path) -> bool:
        """See cache.Home."""
        files = ray.get(self.shelf.files.remote(name))
        for file, size, mode in files:
            unfinished = directory / f".{file}.{uuid.uuid4().hex}"
            with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT, mode & 0o777), "wb") as target:
                for start in range(0, size, CHUNK):
                    target.write(ray.get(self.shelf.read.remote(name, file, start, CHUNK)))
            unfinished.replace(directory / file)
        return bool(files)

    def give(self, name: str, entry: Path, damaged: bool) -> None:
        """See cache.Home."""
        begun = ray.get(self.shelf.begin.remote(name, damaged))
        if begun is None:
            return
        for path in entry.iterdir():
            with path.open("rb") as source:
                for start in range(0, max(1, path.stat().st_size), CHUNK):  # an empty file is one, too
                    ray.get(self.shelf.write.remote(begun, path.name, start, source.read(CHUNK)))
        ray.get(self.shelf.end.remote(begun, name))


@contextlib.contextmanager
def at_home(shared: Location) -> Iterator[Home]:
    """Make this node the home of what the body runs on the cluster.

    Args:
        shared: a directory that every node has to see.

    Raises:
        InputError: it cannot be written to.
    """
    node = ray.get_runtime_context().get_node_id()
    mark = f".visible-{uuid.uuid4().hex}"
    patiently("write to", shared, partial(write_bytes, shared, mark, b""))
    shelf = ray.remote(Shelf).options(num_cpus=0, scheduling_strategy=_on(node), max_restarts=-1, max_task_retries=-1)
    home = Home(node, str(cache.base()), versions(), _modules(), shelf.remote(str(cache.root())), shared, mark)
    try:
        yield home
    finally:
        ray.kill(home.shelf)
        with contextlib.suppress(OSError):
            shared.filesystem.delete_file(f"{shared.path}/{mark}")


def check(home: Home, scenario: Scenario) -> None:
    """Look at every other node that the cluster has now, and let it have the scenario's data.

    Raises:
        NodeError: one is not fit; says which and why.
    """
    _look_at([node for node in _alive() if node["NodeID"] != home.node], prepare, home, scenario)


def check_gpus() -> None:
    """Look whether torch can use the GPUs of every node that says it has any.

    Raises:
        NodeError: on one it cannot; says which and why.
    """
    _look_at([node for node in _alive() if node["Resources"].get("GPU")], _find_gpu)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _look_at(found: Sequence[dict[str, Any]], look_at: Callable[..., None], *arguments: Any) -> None:
    """Call a function on nodes, in a process of its own on each, which takes nothing from trials."""
    task = ray.remote(num_cpus=0, max_calls=1)(look_at)
    looks = {
        node["NodeManagerAddress"]: task.options(scheduling_strategy=_on(node["NodeID"])).remote(*arguments)
        for node in found
    }
    for address, look in looks.items():
        try:
            returned(look)
        except NodeError:
            raise
        except ray.exceptions.RayError:
            continue  # it has gone; should it come back, the first trial that it is given looks
        except Exception as error:  # whatever it is, it keeps trials from running there
            raise NodeError(f"node {address}: {str(error).strip().splitlines()[-1]}") from error


def _find_gpu() -> None:
    if reason := devices.missing_gpu():
        raise NodeError(
            f"node {ray.util.get_node_ip_address()}: torch cannot use the GPU that Ray gives to trials there: {reason};"
            " --gpus-per-trial 0 runs them on the CPU"
        )


def settle(home: Home) -> None:
    """Use the cache of home in this process, and the GPUs that Ray gave it or else none. Comes before anything that
    needs the cache or a GPU.

    Raises:
        NodeError: this node is not fit; says which it is and why.
    """
    if ray.get_gpu_ids():
        _find_gpu()
    else:
        os.environ[devices.VISIBLE] = ""  # Ray itself hides none from a process that has none
    source.look_anew(home.mark)
    os.environ["RAYMU_CACHE"] = home.base
    is_home = ray.get_runtime_context().get_node_id() == home.node
    cache.home = None if is_home else home
    reasons = _unfit(home)
    if reasons:
        raise NodeError(f"node {ray.util.get_node_ip_address()}: {'; '.join(reasons)}")


def returned(call: Any) -> Any:
    """What a call on the cluster returned. Raises what it raised, here as there."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def prepare(home: Home, scenario: Scenario) -> None:
    """Settle, and have the scenario's data and pretrained weights here.

    Raises:
        NodeError: this node is not fit; says which it is and why.
        OSError: its machine failed, as a full disk does. That may pass, and other nodes have room.
    """
    settle(home)
    try:
        splits.prepared(scenario)
        pretrained.prepare(scenario)
    except InputError as error:
        raise NodeError(f"node {ray.util.get_node_ip_address()}: {error}") from error


_seen: dict[str, list[str]] = {}  # by mark: a process looks once


def _unfit(home: Home) -> list[str]:
    """What is wrong here."""
    if home.mark not in _seen:
        here, modules = versions(), _modules()
        reasons = [
            f"{name} is {here.get(name, 'missing')} there, {version} where the sweep was started"
            for name, version in home.versions.items()
            if here.get(name) != version
        ]
        reasons += [
            f"{name}.py is not as it was where and when the sweep was started"
            for name in home.modules.keys() & modules.keys()
            if home.modules[name] != modules[name]
        ]
        if blind := _blind(home.shared, home.mark):
            reasons.append(
                f"it {blind}: every node has to reach the results, on a shared file system or at a URI such as"
                " s3://bucket/path (--storage)"
            )
        _seen[home.mark] = reasons
    return _seen[home.mark]


def _blind(shared: Location, mark: str) -> str | None:
    """What keeps this node from seeing the mark. An outage is waited for: it says nothing of the node."""
    try:
        is_seen = patiently("read", shared, lambda: _sees(shared, mark))
    except InputError as error:
        return str(error)
    return None if is_seen else f"does not see {shared}"


def _sees(shared: Location, mark: str) -> bool:
    until = time.monotonic() + LATE_S
    while True:
        try:
            read_bytes(shared, mark)
        except FileNotFoundError:
            if time.monotonic() > until:
                return False
            time.sleep(0.5)
        else:
            return True


def versions() -> dict[str, str]:
    """Those of Python, of what computes, and of raymu itself, which is told by its source: it may have been edited."""
    code = hashlib.sha256()
    for path in sorted(Path(raymu.__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    found = {"Python": ".".join(platform.python_version_tuple()[:2]), "raymu": code.hexdigest()[:12]}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package).partition("+")[0]
    return found


def _modules() -> dict[str, str]:
    """Digests of the user's modules that this process has imported. The script that runs travels as it is."""
    found = {}
    for name in sys.modules.keys() - {"__main__"}:
        if (path := modules.file_of(name)) is not None:
            with contextlib.suppress(OSError):  # it may be gone
                found[name] = cache.hash_of(path)
    return found


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)
