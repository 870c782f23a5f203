"""Datasets: where images and labels come from, and how a model sees them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raymu import cache, source
from raymu.data.images import Images
from raymu.errors import InputError
from raymu.values import Bounds, checked, unknown

PARTS = {  # by the names that they have in files, the usual one first
    "train": ("train",),
    "val": ("val", "validation"),
    "test": ("test",),
}
MOST_CLASSES = 1_000_000  # beyond any dataset: a larger label is damage, and its model would take all memory
READ_BY = "; read by "  # stands between what the data are and the digest of their reader

Transform = Callable[[], dict[str, Any]]


class Format(NamedTuple):
    """What a model sees: `shape` (C, H, W), and (pixel / 255 - mean) / std with a number a channel."""

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Labelled(NamedTuple):
    """The training set or the test set of a dataset: images, and their labels (int64, N) on the device."""

    images: Images
    labels: Tensor


@dataclass(frozen=True)
class Dataset(source.Travels, ABC):
    """Where images and labels come from.

    Attributes:
        name: what stands in rows, and what `Scenario.dataset` may be if raymu or a package brings it.
        num_classes: their labels are 0, 1, ... num_classes - 1.
        channels: of an image.
        class_names: of 0, 1, ... in this order; empty: they have none.

    Raises:
        InputError: a number below 1, more than a million classes, another type, or not a name for each class.
    """

    name: str
    num_classes: int
    channels: int
    class_names: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        kinds = {"name": str, "num_classes": int, "channels": int, "class_names": tuple[str, ...]}
        for name, kind in kinds.items():
            value = checked(f"dataset: {name}", getattr(self, name), kind, Bounds(1, MOST_CLASSES))
            object.__setattr__(self, name, value)
        if self.class_names and len(self.class_names) != self.num_classes:
            raise InputError(f"dataset: {len(self.class_names)} class names for {self.num_classes} classes")

    def class_number(self, named: str | int) -> int:
        """Number of a class, of its number, or of a text: its name, or where none is called so its number.

        Raises:
            InputError: there is none of that name, or several; the message says the nearest name.
        """
        found = [number for number, name in enumerate(self.class_names) if name == named]
        if len(found) > 1:
            raise InputError(f"the classes {', '.join(map(str, found))} of {self.name} are called {named!r}: say which")
        if found:
            return found[0]
        try:
            return int(checked("class", named, int, Bounds(0)))
        except InputError:
            known = list(self.class_names) or [f"0..{self.num_classes - 1}: its classes have no names"]
            raise InputError(unknown(f"class of {self.name}", named, known)) from None

    @abstractmethod
    def format(self, transform: Transform) -> Format:
        """What a network sees of its images.

        Args:
            transform: what `Architecture.transform` says, if asked.
        """

    @abstractmethod
    def prepare(self, directory: Path | str | None, asked: str) -> str:
        """Make a cache entry of the images and labels that are there now, unless there is one.

        Args:
            directory: where the original files are. None: where those that are asked for were, or else the last ones.
            asked: what they should be; may be empty.

        Returns:
            What they are, see `Scenario.data`; `entry` is the cache entry.

        Raises:
            InputError: they are not there, or something is wrong with them.
        """

    def notes(self, entry: Path) -> list[str]:
        """Lines that whoever uses the prepared data should read, such as how many files were left out; none where there
        is nothing to say.
        """
        return []

    @abstractmethod
    def is_ready(self, entry: Path) -> bool:
        """Whether the cache entry is here, or could be had from the driver's node."""

    @abstractmethod
    def load(self, entry: Path, transform: Transform, device: torch.device, processes: int) -> dict[str, Labelled]:
        """The parts "train" and, where the dataset brings them, "val" and "test".

        Args:
            processes: how many decode images, if they have to be decoded.
        """

    def reader(self, transform: Transform) -> str:
        """A digest of what makes the images that a network sees, beside raymu's own code and what `prepare`
        returned; empty where there is nothing else. Of a class of the user's it covers the code and all attributes.
        """
        return "" if type(self).__module__.startswith("raymu.") else self.code()

    def entry(self, data: str) -> Path:
        """Cache entry, a directory, of what it held when `prepare` returned `data`."""
        return cache.root() / "datasets" / f"{self.name}-{data.partition(':')[0]}"

    def latest(self) -> dict[str, str]:
        """Record of its last preparation: its `data`, and for arrays the `directory` and a digest of their `reader`;
        empty if there was none.
        """
        path = self._record()
        return dict(cache.load_json(path)) if path.exists() else {}

    def remember(self, data: str, **more: str) -> None:
        """Keep the record of a preparation, see `latest`."""
        write_json(self._record(), {"data": data, **more})

    def _record(self) -> Path:
        return cache.root() / "datasets" / f"{self.name}.json"

    def described(self, digest: str, counts: Mapping[str, int]) -> str:
        """Text for `Scenario.data`: the digest of the data, and the numbers of images and classes."""
        kinds = {"train": "training", "val": "validation", "test": "test"}
        parts = " and ".join(f"{counts[part]:,} {kind}" for part, kind in kinds.items() if part in counts)
        return f"{digest}: {parts} images of {self.num_classes:,} classes"


def write_json(path: Path, content: Any) -> None:
    """Write a file that no other user may read, in one step for every reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}-{os.getpid()}.json")
    unfinished.touch(mode=0o600)  # a URI may hold a secret
    cache.save_json(unfinished, content)
    unfinished.replace(path)
