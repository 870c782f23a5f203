"""The processes that share one trial's work. What they have each is added up or put together here, and nowhere else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raymu import cache


class Workers:
    """The processes of torch.distributed's default group; one alone, if there is none.

    Everything but `rank`, `count` and `shard` is done by all of them together, in the same order.

    Args:
        alone: be one alone, whether there is a group or not.

    Attributes:
        rank: this one's number.
        count: how many they are.
    """

    def __init__(self, alone: bool = False) -> None:
        joined = not alone and dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.count = dist.get_world_size() if joined else 1

    def shard(self, rows: Tensor) -> Tensor:
        """The part of rows (N, ...) that falls to this one: consecutive, and as long as the others' but for one row."""
        return rows.tensor_split(self.count)[self.rank]

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by the sum of all workers'. Every element is added up in one place, in one order, so that
        all get the same bits, and may decide by them alike.
        """
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def gather(self, part: Tensor) -> Tensor:
        """All workers' parts (n, ...), which may be of any length, one after the other in one (N, ...)."""
        if self.count == 1:
            return part
        sizes = torch.zeros(self.count, dtype=torch.int64, device=part.device)
        sizes[self.rank] = len(part)
        self.sum(sizes)
        padded = part.new_zeros((int(sizes.max()), *part.shape[1:]))
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded)
        return torch.cat([one[:size] for one, size in zip(parts, sizes.tolist(), strict=True)])

    def broadcast(self, message: Any = None) -> Any:
        """The first worker's message, to all. It has to be one that JSON knows."""
        if self.count == 1:
            return message
        box = [message]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def once(self, entry: Path, build: Callable[[Path | None], None]) -> Path:
        """`cache.once` for all: where the entry is missing, all of them build it together.

        Args:
            build: called with the directory to fill on the first worker, and with None on the others.
        """
        if self.rank > 0:
            while self.broadcast():
                build(None)
            return cache.once(entry, _not_built)  # on another node it comes from the mirror

        def together(directory: Path) -> None:
            self.broadcast(True)
            build(directory)

        try:
            return cache.once(entry, together)
        finally:
            self.broadcast(False)


def _not_built(entry: Path) -> None:
    raise RuntimeError("the first worker built it on another node, and there is no mirror to have it from")


ALONE = Workers(alone=True)
