"""Images that stay encoded on a disk or on object storage, and are decoded as they are read."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raymu.data.decoding import Request, Unread, decoders
from raymu.data.images import Images
from raymu.data.index import Index
from raymu.data.layout import SHARDS, suffix_of

PER_REQUEST = 8  # images
WINDOW = 16  # shards


class _Batch(NamedTuple):
    """Images (B, C, H, W), uint8, that are being decoded, with the positions and the futures of their requests."""

    pixels: Tensor
    rows: list[int]
    requests: list[Future[None]]


class Encoded(Images):
    """Images of a folder or of shards (see `raymu.data.index`), through timm's transform for the architecture.

    Evaluated images are resized and cropped from the centre. Augmentation is a random resized crop (8 to 100 % of the
    area, ratio 3:4 to 4:3) and a horizontal flip, without colour jitter and RandAugment, as is usual when a trained
    model is changed a little.

    Other processes decode (see `raymu.data.decoding`) while the batches before are computed on; they send uint8, and
    what they send does not depend on their number. Shards on object storage are copied into this machine's cache when
    they are first read.

    Args:
        index: where the images are.
        location: the directory or URI that the index is of.
        copies: where copies of remote shards are kept; None where the location is local.
        transform: see `raymu.architecture.Architecture`.
        device: where images are asked for.
        processes: how many decode; with 0 this process does, as it reads.
    """

    def __init__(
        self,
        index: Index,
        location: str,
        copies: Path | None,
        transform: dict[str, Any],
        device: torch.device,
        processes: int,
    ) -> None:
        self.shape = tuple(transform["input_size"])
        self.mean, self.std = (torch.tensor(transform[name], device=device).view(-1, 1, 1) for name in ("mean", "std"))
        self.keys = index.ids
        self._index, self._transform, self._processes = index, transform, processes
        self._root = location if copies is None else str(copies)
        self._source = None if copies is None else location
        self._window = WINDOW if _are_mixed(index) else len(index.files)

    def read(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        """See Images.

        Raises:
            InputError: an image cannot be decoded, or is refused (see `raymu.data.rgb`).
            OSError, MemoryError: the machine failed: the bytes of an image cannot be had, or a process that decodes
                died (ChildProcessError).
        """
        begun = deque[_Batch]()
        try:
            for rows, seeds in batches:
                begun.append(self._begin(rows, seeds))
                while begun and sum(len(batch.requests) for batch in islice(begun, 1, None)) >= 2 * self._processes:
                    yield self._end(begun.popleft())
            while begun:
                yield self._end(begun.popleft())
        finally:
            for batch in begun:
                for request in batch.requests:
                    request.cancel()

    def shuffle(self, rows: Tensor, random: torch.Generator) -> Tensor:
        """See Images. Shards are read in random order, and the images of 16 at a time in random order, so that reading
        is nearly sequential. Where images are folders' files, or a shard holds few classes, which would make every
        batch one of few classes, the order is random altogether.
        """
        order = torch.randperm(len(rows), generator=random)
        place = torch.randperm(len(self._index.files), generator=random)
        file = torch.from_numpy(self._index.file[rows.numpy()])
        window = place[file] // self._window
        return order[window[order].argsort(stable=True)]

    def key(self, position: int) -> str:
        """See Images: class/key, where the class is its folder's name, or of a shard its number."""
        index = self._index
        file, key = index.files[index.file[position]].decode(), index.keys[position].decode()
        is_shard = suffix_of(file) in SHARDS
        return f"{index.labels[position] if is_shard else file.split('/')[1]}/{key}"

    def _begin(self, rows: Tensor, seeds: Tensor | None) -> _Batch:
        chosen = rows.cpu().numpy()
        index, drawn = self._index, [None] * len(rows) if seeds is None else seeds.tolist()
        files = [name.decode() for name in index.files[index.file[chosen]]]
        images = list(zip(files, index.offsets[chosen].tolist(), index.lengths[chosen].tolist(), drawn, strict=True))
        pixels = torch.empty((len(rows), *self.shape), dtype=torch.uint8, pin_memory=self.mean.is_cuda)
        pool = decoders(self._processes)
        requests = [
            pool.submit(
                Request(
                    transform=self._transform,
                    images=images[start : start + PER_REQUEST],
                    root=self._root,
                    source=self._source,
                ),
                pixels[start : start + PER_REQUEST].numpy(),
            )
            for start in range(0, len(images), PER_REQUEST)
        ]
        return _Batch(pixels, chosen.tolist(), requests)

    def _end(self, batch: _Batch) -> Tensor:
        for position, request in enumerate(batch.requests):
            try:
                request.result()
            except Unread as error:
                row = batch.rows[position * PER_REQUEST + error.position]
                key, file = self._index.keys[row].decode(), self._index.files[self._index.file[row]].decode()
                raise error.kind(f"the image {key} in {file} cannot be read: {error}") from error
        return self.normalise(batch.pixels.to(self.mean.device, non_blocking=True))


def _are_mixed(index: Index) -> bool:
    """Whether the files are shards, and most hold at least half as many classes as if images were drawn at random."""
    if len(index.files) == len(index.keys):
        return False
    classes = int(index.labels.max()) + 1
    found = len(np.unique(index.file * classes + index.labels))
    sizes = np.bincount(index.file)
    return bool(found >= sum(classes * (1 - (1 - 1 / classes) ** sizes)) / 2)
