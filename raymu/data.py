"""Datasets as memory-mapped arrays, and the train / validation / test split of a scenario.

A dataset is converted once to `.npy` files in the cache; every process then maps the same pages, so that no trial
copies or unpickles images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymu import cache
from raymu.errors import InputError
from raymu.images import Images, Pixels
from raymu.scenario import Scenario
from raymu.workers import Workers

Arrays = dict[str, NDArray[np.uint8] | NDArray[np.int64]]


class Dataset(NamedTuple):
    """A source of images.

    `size` is the height and the width of an image. `read(directory)` returns uint8 images (N, C, H, W) and int64
    labels (N,) as `train_images`, `train_labels` and, where the dataset brings its own test set, `test_images`,
    `test_labels`. It raises InputError where it can't.
    """

    num_classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[Path], Arrays]


def _read_digits(directory: Path) -> Arrays:
    """scikit-learn's digits, 8x8 with 17 grey levels, enlarged bilinearly to 16x16; `directory` is not used."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) * (255 / 16)
    images = torch.nn.functional.interpolate(images, size=16, mode="bilinear").round()
    return {"train_images": images.to(torch.uint8).numpy(), "train_labels": labels.astype(np.int64)}


def _read_cifar10(directory: Path) -> Arrays:
    """CIFAR-10 through torchvision, which compares every file with its published checksum before it opens it."""
    from torchvision.datasets import CIFAR10

    arrays: Arrays = {}
    for part, train in (("train", True), ("test", False)):
        try:
            source = CIFAR10(directory, train=train, download=True)
        except Exception as error:  # torchvision raises URLError, RuntimeError, OSError, ... as the network fails
            raise InputError(
                f"CIFAR-10 is not in {directory} and could not be downloaded ({error}). Put {CIFAR10.filename} from"
                f" {CIFAR10.url}, or the folder {CIFAR10.base_folder} unpacked from it, into a directory and name it"
                " with --data-dir."
            ) from error
        arrays[f"{part}_images"] = np.ascontiguousarray(source.data.transpose(0, 3, 1, 2))
        arrays[f"{part}_labels"] = np.asarray(source.targets, dtype=np.int64)
    return arrays


DATASETS = {
    "digits": Dataset(10, 1, 16, (0.305,), (0.319,), _read_digits),
    "cifar10": Dataset(10, 3, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), _read_cifar10),
}


@dataclass(frozen=True)
class Split:
    """Some images of a source: all its `images` and their `labels` (int64, N), and `index` (int64), the positions of
    those that belong to the split.
    """

    images: Images
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def targets(self) -> Tensor:
        """The true labels of its images."""
        return self.labels[self.index]

    def read(self) -> Tensor:
        """All its images at once, normalised (N, C, H, W)."""
        return next(self.images.read([(self.index, None)]))

    def subset(self, chosen: Tensor) -> "Split":
        """Those of its images that are chosen, by position or by a mask."""
        return Split(self.images, self.labels, self.index[chosen])


class HeldOut(NamedTuple):
    """What a model is evaluated on.

    Where classes are forgotten: the held-out images of the other classes, and those of these classes. Where samples
    are forgotten: all held-out images, and one half of the forgotten training images.
    """

    retain: Split
    forget: Split


@dataclass(frozen=True)
class Data:
    """A scenario's three splits.

    Attributes:
        train: what the original was trained on.
        forget: which of them have to be forgotten (bool, one an image).
        probed: what a probe is fitted on: the training split; where samples are forgotten, without them, or it would
            learn them itself.
        forgotten: the classes that have to be forgotten; none where samples are.
        workers: who share the work on it.
    """

    train: Split
    forget: Tensor
    probed: Split
    val: HeldOut
    test: HeldOut
    num_classes: int
    forgotten: tuple[int, ...] = ()
    workers: Workers = field(default_factory=Workers)

    @property
    def device(self) -> torch.device:
        """Where its images and labels are."""
        return self.train.labels.device

    def is_forgotten(self, classes: Tensor) -> Tensor:
        """Which of these classes have to be forgotten (bool)."""
        return torch.isin(classes, torch.tensor(self.forgotten, dtype=classes.dtype, device=classes.device))


def check_forget(scenario: Scenario) -> None:
    """Look whether the forget set makes sense for the data.

    Raises:
        InputError: a class that the data does not have, none, or all of them; a share outside 0..1; or both.
    """
    if scenario.forget_share:
        if scenario.forget:
            raise InputError("forget classes or a share of the samples, not both")
        if not 0 < scenario.forget_share < 1:
            raise InputError(f"the share of the samples to forget lies between 0 and 1, not {scenario.forget_share:g}")
        return
    classes = range(DATASETS[scenario.dataset].num_classes)
    for forgotten in scenario.forget:
        if forgotten not in classes:
            raise InputError(f"forget class {forgotten} is outside the data: {scenario.dataset} has 0..{classes[-1]}")
    if not 0 < len(set(scenario.forget)) < len(classes):
        raise InputError("the forget set needs at least one class, and has to leave at least one")


def prepare(scenario: Scenario, directory: Path | None = None) -> Path:
    """Convert the scenario's dataset into the cache unless it is there; return the directory of its arrays.

    Args:
        directory: where the original files are or shall be downloaded to.

    Raises:
        InputError: the files are missing and cannot be fetched.
    """

    def build(entry: Path) -> None:
        for name, array in DATASETS[scenario.dataset].read(directory or cache.root() / "downloads").items():
            np.save(entry / f"{name}.npy", array, allow_pickle=False)

    return cache.once(cache.root() / "datasets" / scenario.dataset, build)


def check_split(scenario: Scenario) -> None:
    """Look whether the split leaves something to forget and something to retain; the dataset is prepared if need be.

    Raises:
        InputError: it does not.
    """
    load(scenario, torch.device("cpu"))


def load(scenario: Scenario, device: torch.device) -> Data:
    """The scenario's data: on the CPU as shared memory maps, otherwise copied to the device once.

    The split is stratified by class and drawn from the scenario's seed alone.
    """
    from sklearn.model_selection import train_test_split

    arrays = {
        path.stem: torch.from_numpy(np.load(path, mmap_mode="c")).to(device)  # "c": torch wants a writable view
        for path in prepare(scenario).glob("*.npy")
    }
    labels = arrays["train_labels"].cpu().numpy()
    dataset = DATASETS[scenario.dataset]
    images = {
        name.removesuffix("_images"): Pixels(array, dataset.mean, dataset.std)
        for name, array in arrays.items()
        if name.endswith("_images")
    }

    def hold_out(index: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rest, held_out = train_test_split(index, test_size=count, stratify=labels[index], random_state=scenario.seed)
        return np.sort(rest), np.sort(held_out)

    train = np.arange(len(labels))
    num_val, num_test = (round(len(labels) * share) for share in (scenario.val_share, scenario.test_share))

    def split(part: str, index: NDArray[np.int64]) -> Split:
        return Split(images[part], arrays[f"{part}_labels"], torch.from_numpy(index).to(device))

    if num_test:
        train, test_index = hold_out(train, num_test)
        test = split("train", test_index)
    else:
        test = split("test", np.arange(len(arrays["test_labels"])))
    train, val_index = hold_out(train, num_val)
    return Data(
        **_forget_set(scenario, split("train", train), split("train", val_index), test),
        num_classes=dataset.num_classes,
    )


def _forget_set(scenario: Scenario, train: Split, val: Split, test: Split) -> dict[str, Any]:
    """What of the three splits is to be forgotten, as fields of Data."""
    if scenario.forget:
        classes = torch.tensor(scenario.forget, device=train.labels.device)
        chosen, *held_out = (torch.isin(split.targets, classes) for split in (train, val, test))
        parts = {
            name: HeldOut(split.subset(~forget), split.subset(forget))
            for name, split, forget in zip(("val", "test"), (val, test), held_out, strict=True)
        }
        for name, part in {**parts, "train": HeldOut(train.subset(~chosen), train.subset(chosen))}.items():
            if not (len(part.retain) and len(part.forget)):
                raise InputError(
                    f"the {name} split has {len(part.forget)} images of {scenario.forgotten} and {len(part.retain)} of"
                    " the others; there has to be one of each"
                )
        return {"train": train, "forget": chosen, "forgotten": scenario.forget, "probed": train, **parts}
    count = round(scenario.forget_share * len(train))
    if not 2 <= count < len(train):
        raise InputError(f"{scenario.forgotten} are {count} of {len(train)}; there have to be at least 2, and a rest")
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(scenario.seed))[:count]
    drawn = drawn.to(train.index.device)
    forget = torch.zeros(len(train), dtype=torch.bool, device=drawn.device)
    forget[drawn] = True
    return {
        "train": train,
        "forget": forget,
        "forgotten": (),
        "probed": train.subset(~forget),
        "val": HeldOut(val, train.subset(drawn[: count // 2])),
        "test": HeldOut(test, train.subset(drawn[count // 2 :])),
    }
