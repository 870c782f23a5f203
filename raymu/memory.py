"""Peak memory, as part of what a method costs."""

import re
from pathlib import Path

import torch

from raymu import devices

RESET_PEAK = "5"  # proc_pid_clear_refs(5)


def reset_peak(device: torch.device) -> None:
    """Start to measure anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (counter := Path("/proc/self/clear_refs")).exists():
        counter.write_text(RESET_PEAK)


def limit(share: float) -> None:
    """Limit this process to its share of the memory of its GPU, if it has one. Where it needs more, it has an
    OutOfMemoryError itself, and the processes beside it have none.
    """
    if devices.has_gpu():
        torch.cuda.set_per_process_memory_fraction(share)


def share(device: torch.device) -> float | None:
    """The share of the GPU's memory that is taken now, by whoever it is, what torch keeps for later included; None on
    a CPU.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return 1 - free / total


def peak(device: torch.device) -> int | None:
    """The largest memory since then in bytes: on a GPU what torch allocated, on the CPU the resident size of the whole
    process, libraries and data included. None where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return None if found is None else 1024 * int(found[1])
