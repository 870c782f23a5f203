"""Passes over the original model whose results are computed once per scenario, and what they cost."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from raymu import cache, devices
from raymu.run import Tensors
from raymu.workers import Workers

COST = "cost of the pass"  # the images that it read, and its seconds


def once(
    entry: Path | None, compute: Callable[[], tuple[Tensors, int]], workers: Workers, device: torch.device
) -> tuple[Tensors, int, float]:
    """Tensors that `compute` returns, in any order, the number of images that it read, and the seconds that were spared
    because they were cached.

    Args:
        entry: of the cache; None: nothing is cached.
        compute: all workers call it together.
    """
    asked = time.perf_counter()

    def measured() -> Tensors:
        begun = devices.now(device)
        tensors, images = compute()
        return {**tensors, COST: torch.tensor([images, devices.now(device) - begun], dtype=torch.float64)}

    def build(directory: Path | None) -> None:
        tensors = measured()
        if directory is not None:
            cache.save_tensors(directory / "tensors.safetensors", tensors)

    if entry is None:
        tensors = measured()
    else:
        tensors = cache.load_tensors(workers.once(entry, build) / "tensors.safetensors", device)
    images, seconds = tensors.pop(COST).tolist()
    return tensors, int(images), seconds - (time.perf_counter() - asked)
