"""Processor and arithmetic of this process, and the reason why torch cannot use a GPU."""

import contextlib
import os
import platform
import re
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raymu.errors import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
TIMEOUT_S = 10
# Columns of a row, before anything was computed.


def has_gpu() -> bool:
    """Whether this process may use a GPU, and torch can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is too old: `missing_gpu` says it where it matters
        return os.environ.get(VISIBLE) != "" and torch.cuda.is_available()


def describe(device: torch.device, precision: str, gpu_share: float = 1.0) -> dict[str, Any]:
    """What computes on a device, as columns of a row.

    Args:
        precision: the recipe's, "fp32" or "bf16".
        gpu_share: of a GPU, that this process may use.

    Returns:
        `device` "cpu" or "cuda"; `processor`, the model of the CPU or GPU; `gpu_share`, None on a CPU; `cuda`, the
        version that torch is built for, None on a CPU; `arithmetic`, the precision, on a GPU with "tf32:" and what
        NVIDIA's TensorFloat-32 rounds there: "conv" and "matmul"; on a CPU with "matmul:" and torch's
        float32_matmul_precision, where that is not "highest".
    """
    if device.type == "cpu":
        products = torch.get_float32_matmul_precision()
        arithmetic = precision if products == "highest" else f"{precision} matmul:{products}"
        return {"device": "cpu", "processor": _cpu(), "gpu_share": None, "cuda": None, "arithmetic": arithmetic}
    rounded = {"conv": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32}
    tf32 = ",".join(kind for kind, is_rounded in rounded.items() if is_rounded)
    return {
        "device": device.type,
        "processor": torch.cuda.get_device_name(device),
        "gpu_share": gpu_share,
        "cuda": torch.version.cuda,
        "arithmetic": f"{precision} tf32:{tf32}" if tf32 else precision,
    }


def cores(asked: int | None, threads: int) -> int:
    """The number of CPU cores for what changes no figure, see `Options.cores`: at least the threads."""
    if asked is None and has_gpu():
        asked = len(os.sched_getaffinity(0)) // torch.cuda.device_count()
    return max(asked or 0, threads)


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Context in which torch has this number of CPU threads; the last digits of a result depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def check_defaults() -> None:
    """Look whether new tensors are what raymu takes them for.

    Raises:
        InputError: the program has set another default dtype or device of torch.
    """
    default, device = torch.get_default_dtype(), torch.get_default_device()
    if (default, device.type) != (torch.float32, "cpu"):
        raise InputError(
            f"torch's defaults are {default} on {device}: raymu needs float32 on the CPU, and chooses what else it"
            " needs itself; leave torch.set_default_dtype and set_default_device out"
        )


def _cpu() -> str:
    """Its model, or else its architecture."""
    information = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", information.read_text(), re.MULTILINE) if information.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def missing_gpu() -> str | None:
    """What keeps torch from a GPU here: its own words, NVIDIA's driver and what torch is built for; None if nothing
    does.
    """
    if has_gpu():
        return None
    said = f"{VISIBLE} is empty"
    if os.environ.get(VISIBLE) != "":
        try:
            torch.cuda.init()
            said = "torch finds none"
        except (RuntimeError, AssertionError) as error:
            said = str(error).split(". ")[0]
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"{said} (NVIDIA driver: {_driver() or 'none'}; torch {torch.__version__}, built {built})"


def _driver() -> str | None:
    """The version of NVIDIA's driver."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
