"""Where the images of a dataset come from, ready for a model."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

CROP_PADDING = 4


class Images(ABC):
    """The images of a dataset, by position.

    Attributes:
        shape: (C, H, W) of an image as a model sees it.
        mean, std: of shape (C, 1, 1), in units of pixel / 255: a model sees (pixel / 255 - mean) / std.
        keys: a number for each image (uint64, N), by which it is chosen at random: the same wherever the image lies.
    """

    shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor
    keys: NDArray[np.uint64]

    @abstractmethod
    def read(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        """Normalised images, float32 (B, C, H, W), on the device of `mean`, batch by batch.

        Args:
            batches: positions (B,), on the CPU or that device, and either None, for the images as they are evaluated,
                or a random number of 62 bits (int64) for each of them (B,): what its augmentation is drawn from, and
                from nothing else.
        """

    def shuffle(self, rows: Tensor, random: torch.Generator) -> Tensor:
        """The order (N,) in which images at these positions (N,), on the CPU, are read in training: a random one."""
        return torch.randperm(len(rows), generator=random)

    def key(self, position: int) -> str:
        """Key of an image, for people: the number of its row."""
        return str(position)

    def normalise(self, pixels: Tensor) -> Tensor:
        """What a model sees of pixels (B, C, H, W), uint8, on the device of `mean`."""
        return pixels.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        """What the darkest and the brightest pixel become (C, 1, 1)."""
        return -self.mean / self.std, (1 - self.mean) / self.std


class Pixels(Images):
    """Images that are all in memory, or mapped into it, and all of one size.

    Augmentation is a random crop after zero padding and a random horizontal flip. An image's key is its position.

    Args:
        pixels: uint8 (N, C, H, W), on the device where images are asked for.
        mean, std: a number a channel, in units of pixel / 255.
    """

    def __init__(self, pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        count, channels, height, width = pixels.shape
        self.keys = np.arange(count, dtype=np.uint64)
        self.pixels, self.shape = pixels, (channels, height, width)
        self.mean, self.std = (torch.tensor(value, device=pixels.device).view(-1, 1, 1) for value in (mean, std))

    def read(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Tensor]:
        """See Images."""
        for rows, seeds in batches:
            images = self.pixels[rows.to(self.pixels.device, non_blocking=True)]
            if seeds is not None:
                images = crop_and_flip(images, seeds.to(images.device, non_blocking=True))
            yield self.normalise(images)


def crop_and_flip(images: Tensor, seeds: Tensor) -> Tensor:
    """A crop of each image (B, C, H, W) after zero padding and perhaps a horizontal flip, by its random number (B,)."""
    count, _, height, width = images.shape
    offsets = 2 * CROP_PADDING + 1
    left, rest = seeds % offsets, seeds // offsets
    top, flip = rest % offsets, rest // offsets % 2 == 1
    columns = torch.arange(width, device=seeds.device).expand(count, width)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + left[:, None]
    rows = torch.arange(height, device=seeds.device) + top[:, None]
    padded = pad(images, (CROP_PADDING,) * 4)
    picture = torch.arange(count, device=seeds.device)[:, None, None]
    return padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
