"""What works on this machine, and what is missing."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raymu import cache

NEEDED = ("raymu", "ray", "torch", "torchvision", "timm", "optuna", "scikit-learn", "safetensors")
OPTIONAL_PACKAGES = {"deepspeed": "for trials of several workers: pip install 'raymu[deepspeed]'"}
LOW_DISK = 5 * 2**30  # bytes
LOW_SHARED_MEMORY = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: Literal["ok", "missing", "optional"]
    what: str
    detail: str


def examine(storage: Path) -> Iterator[Finding]:
    """Look at Python packages, processors, Ray, and the disk; "missing" is what a sweep cannot do without."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    yield Finding("ok", "Python", python)
    for package in NEEDED:
        version = _version(package)
        yield Finding("ok" if version else "missing", package, version or "not installed")
    for package, purpose in OPTIONAL_PACKAGES.items():
        version = _version(package)
        yield Finding("ok" if version else "optional", package, version or f"not installed; {purpose}")
    yield Finding("ok", "CPU cores", str(os.cpu_count()))
    yield _gpus()
    yield _ray()
    yield from _disk(storage)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
