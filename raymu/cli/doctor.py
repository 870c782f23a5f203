"""What works on this machine, and what is missing."""

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raymu import cache

NEEDED = ("raymu", "ray", "torch", "torchvision", "timm", "optuna", "scikit-learn", "safetensors")
EXTRAS = {  # what each of pyproject.toml's is for
    "deepspeed": "trials of several workers",
    "docs": "building the documentation",
    "notebook": "the notebook of docs/",
    "png": "raymu report --png",
    "test": "raymu's own tests",
    "trackers": "following a sweep",
}
LOW_DISK = 5 * 2**30  # bytes
LOW_SHARED_MEMORY = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: Literal["ok", "missing", "optional"]
    what: str
    detail: str


def examine(storage: Path) -> Iterator[Finding]:
    """Look at Python packages, trackers, browser, processors, Ray, and the disk; "missing" is what a sweep cannot do
    without.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    yield Finding("ok", "Python", python)
    for package in NEEDED:
        version = _version(package)
        yield Finding("ok" if version else "missing", package, version or "not installed")
    yield from _extras()
    yield from _trackers()
    yield _browser()
    yield Finding("ok", "CPU cores", str(os.cpu_count()))
    yield _gpus()
    yield _ray()
    yield from _disk(storage)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Finding]:
    """The extras of raymu as it is installed, with their packages."""
    extras: dict[str, list[str]] = {}
    for line in (importlib.metadata.requires("raymu") or []) if _version("raymu") else []:
        if found := re.match(r"([\w.-]+).*\bextra == ['\"]([\w-]+)", line):
            extras.setdefault(found[2], []).append(found[1])
    for extra, packages in sorted(extras.items()):
        versions = {package: _version(package) for package in packages}
        what = f"extra {extra}" + (f" ({EXTRAS[extra]})" if extra in EXTRAS else "")
        if missing := [package for package, version in versions.items() if version is None]:
            yield Finding("optional", what, f"without {', '.join(missing)}: pip install 'raymu[{extra}]'")
        else:
            yield Finding("ok", what, ", ".join(f"{package} {version}" for package, version in versions.items()))


def _trackers() -> Iterator[Finding]:
    from raymu.tuning.trackers.settings import NEEDED

    providers = importlib.metadata.packages_distributions()
    for tracker, module in {**NEEDED, "optuna": "optuna"}.items():
        if packages := providers.get(module):
            yield Finding("ok", f"--{tracker}", f"{packages[0]} {_version(packages[0])}")
        else:
            yield Finding("optional", f"--{tracker}", f"without {module}: pip install 'raymu[trackers]'")


def _browser() -> Finding:
    """The browser that Kaleido draws with."""
    what = "browser for report --png"
    try:
        from choreographer.browsers.chromium import Chromium
    except ImportError:
        return Finding("optional", what, "without Kaleido nothing looks for one: pip install 'raymu[png]'")
    path = Chromium.find_browser(skip_local=False)
    if path and Path(path).is_file():
        return Finding("ok", what, path)
    return Finding("optional", what, "none: apt install chromium, or plotly_get_chrome, or name one in BROWSER_PATH")


def _gpus() -> Finding:
    import torch

    from raymu.devices import missing_gpu

    if reason := missing_gpu():
        return Finding("optional", "GPU", f"none that torch can use: {reason}")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("ok", "GPU", ", ".join(names))


def _ray() -> Finding:
    from raymu.distributed.session import try_ray

    try:
        cluster = try_ray()
    except Exception as error:  # whatever stops Ray is what the user wants to read
        return Finding("missing", "Ray runs", f"no: {error}")
    return Finding("ok", "Ray runs", f"on {cluster.get('CPU', 0):g} CPUs and {cluster.get('GPU', 0):g} GPUs")


def _disk(storage: Path) -> Iterator[Finding]:
    for what, path in (("cache", cache.base()), ("storage", storage.absolute())):
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        writable = os.access(existing, os.W_OK)
        detail = f"{path}: {free / 2**30:.0f} GiB free" + ("" if writable else ", not writable")
        yield Finding("ok" if writable and free >= LOW_DISK else "missing", what, detail)
    if Path("/dev/shm").exists():
        free = shutil.disk_usage("/dev/shm").free
        state: Literal["ok", "missing"] = "ok" if free >= LOW_SHARED_MEMORY else "missing"
        yield Finding(state, "shared memory", f"/dev/shm: {free / 2**30:.1f} GiB free")
