"""The nodes of a cluster: what they have to have in common with the driver's, and how its cache reaches them."""

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
from pyarrow.fs import FileSelector

import raymu
from raymu import cache, devices, modules, plugins, source, splits
from raymu.data import folders, listed
from raymu.distributed import watch
from raymu.errors import InputError, NodeError
from raymu.models import given, pretrained
from raymu.scenario import Scenario
from raymu.storage import Location, locate, mendable, patiently, read_bytes, write_bytes

MUST_AGREE = ("ray", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "deepspeed")
LATE_S = 5.0  # until other nodes see a new file on a network file system
MARK = ".visible-"  # begins the name of a driver's mark
OLD_S = 7 * 24 * 3600.0  # after which the mark in a cache, which other drivers share, is one of a driver that is gone


@dataclass(frozen=True)
class Driver:
    """The driver, as processes of other nodes know it.

    Attributes:
        node: Ray's name of its node.
        cache: the directory of its cache, which is the cache's directory on every node.
        versions: see `versions`.
        modules: digests of the user's modules that it has imported, by name.
        locations: see `raymu.data.folders`.
        shared: a directory that every node has to see, for results or checkpoints.
        mirror: where cache entries are kept for all nodes; None: they share the cache's directory itself.
        mark: the name of a file that stands in `shared`, and without a mirror in the cache, of this driver alone:
            another may take the sweep over.
        signs: the actor that hears how far its processes are.
    """

    node: str
    cache: str
    versions: dict[str, str]
    modules: dict[str, str]
    locations: dict[str, dict[str, str]]
    shared: Location
    mirror: Location | None
    mark: str
    signs: Any


@contextlib.contextmanager
def driving(shared: Location, mirror: Location | None) -> Iterator[Driver]:
    """Make this process the driver of what the body runs on the cluster. What the user's files define travels as it is,
    since other processes do not have these as modules.

    Args:
        shared: a directory that every node has to see.
        mirror: where cache entries are kept for all nodes; None: nowhere.

    Raises:
        InputError: they cannot be written to.
    """
    for module in plugins.loaded():
        ray.cloudpickle.register_pickle_by_value(module)
    node = ray.get_runtime_context().get_node_id()
    mark = f"{MARK}{uuid.uuid4().hex}"
    cache.root().mkdir(parents=True, exist_ok=True)
    marked = [shared] if mirror else [shared, locate(cache.root())]
    _forget_drivers(shared, 0)
    _forget_drivers(locate(cache.root()), OLD_S)
    for place in marked:
        patiently("write to", place, partial(write_bytes, place, mark, b""))
    before, cache.mirror = cache.mirror, mirror
    try:
        yield Driver(
            node,
            str(cache.base()),
            versions(),
            _modules(),
            dict(folders.locations),
            shared,
            mirror,
            mark,
            watch.signs(),
        )
    finally:
        cache.mirror = before
        for place in marked:
            with contextlib.suppress(OSError):
                place.filesystem.delete_file(f"{place.path}/{mark}")


def _forget_drivers(place: Location, older_s: float) -> None:
    """Remove marks of drivers that were killed: those which are older than `older_s` seconds."""
    with contextlib.suppress(OSError):
        for found in place.filesystem.get_file_info(FileSelector(place.path, allow_not_found=True)):
            if found.base_name.startswith(MARK) and time.time() - found.mtime.timestamp() >= older_s:
                place.filesystem.delete_file(found.path)


def check(driver: Driver, scenario: Scenario) -> None:
    """Look at every other node that the cluster has now, and let it have the scenario's data.

    Raises:
        NodeError: one is not fit; says which and why.
        InputError: the mirror cannot be read or written.
    """
    with mendable("use", driver.mirror or driver.shared):
        _have_data(scenario)  # mirrors them
    _look_at([node for node in _alive() if node["NodeID"] != driver.node], prepare, driver, scenario)


def check_gpus() -> None:
    """Look whether torch can use the GPUs of every node that says it has any.

    Raises:
        NodeError: on one it cannot; says which and why.
    """
    _look_at([node for node in _alive() if node["Resources"].get("GPU")], _find_gpu)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _look_at(found: Sequence[dict[str, Any]], look_at: Callable[..., None], *arguments: Any) -> None:
    """Call a function on nodes, in a new process on each, which takes nothing from trials."""
    task = ray.remote(num_cpus=0, max_calls=1)(look_at)
    looks = {
        node["NodeManagerAddress"]: task.options(scheduling_strategy=watch.on(node["NodeID"])).remote(*arguments)
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


def settle(driver: Driver) -> None:
    """Use the driver's cache and mirror in this process, and the GPUs that Ray gave it or else none. Comes before
    anything that needs the cache or a GPU.

    Raises:
        NodeError: this node is not fit; says which it is and why.
    """
    if ray.get_gpu_ids():
        _find_gpu()
    else:
        os.environ[devices.VISIBLE] = ""  # Ray itself hides none from a process that has none
    source.read_anew(driver.mark)
    os.environ["RAYMU_CACHE"] = driver.cache
    cache.mirror = driver.mirror
    folders.locations.update(driver.locations)
    reasons = _unfit(driver)
    if reasons:
        raise NodeError(f"node {ray.util.get_node_ip_address()}: {'; '.join(reasons)}")


def returned(call: Any) -> Any:
    """What a call on the cluster returned. Raises what it raised, here as there."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def prepare(driver: Driver, scenario: Scenario) -> None:
    """Settle, and have the scenario's data and the weights that it begins with here.

    Raises:
        NodeError: this node is not fit; says which it is and why.
        OSError: its machine failed, as a full disk does. That may pass, and other nodes have room.
    """
    settle(driver)
    try:
        _have_data(scenario)
    except InputError as error:
        raise NodeError(f"node {ray.util.get_node_ip_address()}: {error}") from error


def _have_data(scenario: Scenario) -> None:
    splits.prepared(scenario)
    pretrained.prepare(scenario)
    given.prepare(scenario)
    if scenario.forget_samples:
        listed.images_of(scenario.forget_samples)


_seen: dict[str, list[str]] = {}  # by mark: a process looks once


def _unfit(driver: Driver) -> list[str]:
    """What is wrong here."""
    if driver.mark not in _seen:
        here, modules = versions(), _modules()
        reasons = [
            f"{name} is {here.get(name, 'missing')} there, {version} where the sweep was started"
            for name, version in driver.versions.items()
            if here.get(name) != version
        ]
        reasons += [
            f"{name}.py is not as it was where and when the sweep was started"
            for name in driver.modules.keys() & modules.keys()
            if driver.modules[name] != modules[name]
        ]
        if blind := _blind(driver.shared, driver.mark):
            reasons.append(
                f"it {blind}: every node has to reach the results, on a shared file system or at a URI such as"
                " s3://bucket/path (--storage)"
            )
        if driver.mirror is None and (blind := _blind(locate(cache.root()), driver.mark)):
            reasons.append(f"it {blind}: with --no-mirror every node has to share the cache's directory")
        _seen[driver.mark] = reasons
    return _seen[driver.mark]


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
    """Versions of Python, of what computes, and of raymu: a digest of its source, which may have been edited."""
    code = hashlib.sha256()
    for path in sorted(Path(raymu.__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    found = {"Python": ".".join(platform.python_version_tuple()[:2]), "raymu": code.hexdigest()[:12]}
    for package in MUST_AGREE:
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
