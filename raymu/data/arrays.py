"""Datasets that are kept in memory as arrays.

They are converted once to `.npy` files in the cache; every process then maps the same pages, so that no trial copies or
unpickles images.
"""

import hashlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raymu import cache, source
from raymu.data.dataset import PARTS, Dataset, Format, Labelled, Transform
from raymu.data.images import Pixels
from raymu.errors import InputError, described
from raymu.values import content_hash, expanded, unknown

Arrays = dict[str, NDArray[np.uint8] | NDArray[np.int64]]
READ_WITH = ("numpy", "pillow", "scikit-learn", "torch", "torchvision")  # what another version of them reads may differ


def _module(read: Any) -> str:
    """Name of the module that a function is from, or the one that a partial function calls."""
    return str(inspect.unwrap(read.func if isinstance(read, partial) else read).__module__)


@dataclass(frozen=True)
class ArrayDataset(Dataset):
    """Images that are kept in memory as arrays.

    `size` is the height and the width of an image. `read(directory)` returns uint8 images (N, C, H, W) and int64
    labels (N,) as `train_images`, `train_labels` and, where the dataset brings its own test or validation set,
    `test_images`, `test_labels`, `val_images`, `val_labels`. It raises InputError where it can't. `files` says whether
    it reads files of that directory.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[Path], Arrays]
    files: bool = True

    def format(self, transform: Transform) -> Format:
        """See Dataset."""
        return self.format_of_arrays

    @property
    def format_of_arrays(self) -> Format:
        """Format of its images, the same for every model."""
        return Format((self.channels, self.size, self.size), self.mean, self.std)

    def prepare(self, directory: Path | str | None, asked: str) -> str:
        """See Dataset. Without a directory what is asked for is taken from the cache, or what raymu read the last time,
        unless other code or other versions of packages would read it now; what a function of the user's reads is read
        anew, where it was the last time.
        """
        if directory is not None and not self.files:
            raise InputError(f"{self.name} reads no files: leave out --data-dir {directory}")
        latest, is_users = self.latest(), not _module(self.read).startswith("raymu.")
        if directory is None:
            if asked and self.is_ready(self.entry(asked)):
                return asked
            if not is_users and latest.get("reader") == self._reader and self.is_ready(self.entry(latest["data"])):
                return latest["data"]
            directory = latest.get("directory") or cache.root() / "downloads"
        directory = expanded(directory).absolute()
        try:
            arrays = self.read(directory)
        except InputError:
            raise
        except Exception as error:  # whatever a function of the user's raises
            if not is_users:
                raise
            raise InputError(f"{self.name} cannot be read from {directory}: {described(error)}") from error
        return self.keep(arrays, str(directory))

    @property
    def _reader(self) -> str:
        """A digest of what reads, and of what is made of it."""
        versions = [importlib.metadata.version(package) for package in READ_WITH]
        return content_hash([source.digest(self.read), *versions, self.num_classes, self.format_of_arrays])

    def keep(self, arrays: Arrays, directory: str = "") -> str:
        """Make what `read` returned, of that directory, the data of the dataset; return what they are.

        Raises:
            InputError: it is not what `read` has to return.
        """
        self._check(arrays)
        digest = hashlib.sha256(repr((self.num_classes, self.format_of_arrays)).encode())
        for key, array in sorted(arrays.items()):
            digest.update(f"{key} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)

        def build(unfinished: Path) -> None:
            for key, array in arrays.items():
                cache.save_array(unfinished / f"{key}.npy", array)

        counts = {part: len(arrays[f"{part}_labels"]) for part in PARTS if f"{part}_labels" in arrays}
        data = self.described(digest.hexdigest()[:12], counts)
        cache.once(self.entry(data), build)
        self.remember(data, reader=self._reader, directory=directory)
        return data

    def _check(self, arrays: Arrays) -> None:
        if not isinstance(arrays, Mapping):
            raise InputError(f"{self.name}: read has to return arrays by name, not {type(arrays).__name__}")
        known = {f"{part}_{kind}" for part in PARTS for kind in ("images", "labels")}
        for key in arrays.keys() - known:
            raise InputError(f"{self.name}: {unknown('array', key, sorted(known))}")
        if not (len(self.mean) == len(self.std) == self.channels and np.isfinite(self.mean).all()):
            raise InputError(f"{self.name}: mean and std have to be {self.channels} finite numbers, one a channel")
        if not (np.isfinite(self.std).all() and min(self.std) > 0):
            raise InputError(f"{self.name}: std has to be above 0, not {self.std}")
        for part in PARTS:
            if part != "train" and not {f"{part}_images", f"{part}_labels"} & arrays.keys():
                continue
            images, labels = (np.asarray(arrays.get(f"{part}_{kind}", ())) for kind in ("images", "labels"))
            wanted = (len(labels), *self.format_of_arrays.shape)
            if not len(labels) or images.dtype != np.uint8 or images.shape != wanted:
                raise InputError(
                    f"{self.name}: {part}_images have to be uint8 of the shape {wanted}, an image for each of"
                    f" {part}_labels, not {images.dtype} of {images.shape}"
                )
            if labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= self.num_classes:
                raise InputError(f"{self.name}: {part}_labels have to be int64 in 0..{self.num_classes - 1}")
            if missing := set(range(self.num_classes)) - set(labels.tolist()):
                raise InputError(f"{self.name}: no {part} image is of class {min(missing)}")

    def is_ready(self, entry: Path) -> bool:
        """See Dataset."""
        return cache.find(entry)

    def load(self, entry: Path, transform: Transform, device: torch.device, processes: int) -> dict[str, Labelled]:
        """See Dataset. On the CPU they are shared memory maps, otherwise they are copied to the device once."""
        arrays = {
            path.stem: torch.from_numpy(np.load(path, mmap_mode="c")).to(device)  # "c": torch wants a writable view
            for path in entry.glob("*.npy")
        }
        return {
            part: Labelled(Pixels(arrays[f"{part}_images"], self.mean, self.std), arrays[f"{part}_labels"])
            for part in PARTS
            if f"{part}_images" in arrays
        }
