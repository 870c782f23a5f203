"""Datasets, and the train / validation / test split of a scenario.

Small datasets are converted once to `.npy` files in the cache; every process then maps the same pages, so that no trial
copies or unpickles images. Large ones stay as they are, and an index of them is mapped (see `raymu.index`).
"""

import dataclasses
import hashlib
import importlib.metadata
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymu import cache, source
from raymu.errors import InputError
from raymu.images import Images, Pixels
from raymu.scenario import Scenario, content_hash
from raymu.values import unknown
from raymu.workers import Workers

Arrays = dict[str, NDArray[np.uint8] | NDArray[np.int64]]

READERS = ("numpy", "pillow", "scikit-learn", "torch", "torchvision")  # what another version of them reads may differ
READ_BY = "; read by "  # stands between what the data are and the digest of their reader
LOCATION = "location.json"
TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"

# Images of each class, as published.
PUBLISHED: dict[str, dict[str, tuple[int, ...]]] = {
    "digits": {"train": (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)},
    "CIFAR10": {"train": 10 * (5000,), "test": 10 * (1000,)},
    "CIFAR100": {"train": 100 * (500,), "test": 100 * (100,)},
    "Tiny-ImageNet": {"train": 200 * (500,), "test": 200 * (50,)},
}


class Format(NamedTuple):
    """What a model sees: `shape` (C, H, W), and (pixel / 255 - mean) / std with a number a channel."""

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Part(NamedTuple):
    """The training set or the test set of a dataset: images, and their labels (int64, N) on the device."""

    images: Images
    labels: Tensor


@dataclass(frozen=True)
class Dataset(ABC):
    """Where images and labels come from."""

    num_classes: int
    channels: int

    @abstractmethod
    def format(self, scenario: Scenario) -> Format:
        """What the scenario's model sees of its images."""

    @abstractmethod
    def prepare(self, name: str, directory: Path | str | None, asked: str) -> str:
        """Make a cache entry of the images and labels that are there now, unless there is one.

        Args:
            name: of the dataset.
            directory: where the original files are. None: where those that are asked for were, or else the last ones.
            asked: what they should be; may be empty.

        Returns:
            What they are, see `Scenario.data`; `entry_of` is the cache entry.

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
    def load(self, entry: Path, scenario: Scenario, device: torch.device, processes: int) -> dict[str, Part]:
        """The parts "train" and, where the dataset brings one of its own, "test".

        Args:
            processes: how many decode images, if they have to be decoded.
        """

    def reader(self, scenario: Scenario) -> str:
        """A digest of what makes the images that a scenario's model sees, beside raymu's own code and what `prepare`
        returned; empty where there is nothing else. Of a class of the user's it covers the code and all attributes.
        """
        return "" if type(self).__module__.startswith("raymu.") else source.digest(self)


def entry_of(dataset: str, data: str) -> Path:
    """The cache entry, a directory, of what a dataset held when `prepare` returned `data`."""
    return cache.root() / "datasets" / f"{dataset}-{data.partition(':')[0]}"


def _described(digest: str, classes: int, counts: Mapping[str, int]) -> str:
    """Text for `Scenario.data`: the digest of the data, and the numbers of images and classes."""
    test = f" and {counts['test']:,} test" if "test" in counts else ""
    return f"{digest}: {counts['train']:,} training{test} images of {classes:,} classes"


def _function(read: Any) -> Any:
    """The function that a partial one calls."""
    return read.func if isinstance(read, partial) else read


def _latest(dataset: str) -> dict[str, str]:
    """Record of the dataset's last preparation: its `data`, and for arrays the `directory` and a digest of their
    `reader`; empty if there was none.
    """
    path = _latest_path(dataset)
    return dict(cache.load_json(path)) if path.exists() else {}


def _latest_path(dataset: str) -> Path:
    return cache.root() / "datasets" / f"{dataset}.json"


def _write_json(path: Path, content: Any) -> None:
    """Write a file that no other user may read, in one step for every reader."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}-{os.getpid()}.json")
    unfinished.touch(mode=0o600)  # a URI may hold a secret
    cache.save_json(unfinished, content)
    unfinished.replace(path)


@dataclass(frozen=True)
class ArrayDataset(Dataset):
    """Images that are kept in memory as arrays.

    `size` is the height and the width of an image. `read(directory)` returns uint8 images (N, C, H, W) and int64
    labels (N,) as `train_images`, `train_labels` and, where the dataset brings its own test set, `test_images`,
    `test_labels`. It raises InputError where it can't. `files` says whether it reads files of that directory.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[Path], Arrays]
    files: bool = True

    def format(self, scenario: Scenario) -> Format:
        """See Dataset."""
        return self.format_of_arrays

    @property
    def format_of_arrays(self) -> Format:
        """Format of its images, the same for every model."""
        return Format((self.channels, self.size, self.size), self.mean, self.std)

    def prepare(self, name: str, directory: Path | str | None, asked: str) -> str:
        """See Dataset. Without a directory what is asked for is taken from the cache, or what raymu read the last time,
        unless other code or other versions of packages would read it now; what a function of the user's reads is read
        anew, where it was the last time.
        """
        if directory is not None and not self.files:
            raise InputError(f"{name} reads no files: leave out --data-dir {directory}")
        latest, is_users = _latest(name), inspect.unwrap(_function(self.read)).__module__ != __name__
        if directory is None:
            if asked and self.is_ready(entry_of(name, asked)):
                return asked
            if not is_users and latest.get("reader") == self._reader and self.is_ready(entry_of(name, latest["data"])):
                return latest["data"]
            directory = latest.get("directory") or cache.root() / "downloads"
        directory = Path(directory).expanduser().absolute()
        try:
            arrays = self.read(directory)
        except InputError:
            raise
        except Exception as error:  # whatever a function of the user's raises
            if not is_users:
                raise
            raise InputError(f"{name} cannot be read from {directory}: {type(error).__name__}: {error}") from error
        return self.keep(name, arrays, str(directory))

    @property
    def _reader(self) -> str:
        """A digest of what reads, and of what is made of it."""
        versions = [importlib.metadata.version(package) for package in READERS]
        return content_hash([source.digest(self.read), *versions, self.num_classes, self.format_of_arrays])

    def keep(self, name: str, arrays: Arrays, directory: str = "") -> str:
        """Make what `read` returned, of that directory, the data of the dataset; return what they are.

        Raises:
            InputError: it is not what `read` has to return.
        """
        self._check(name, arrays)
        digest = hashlib.sha256(repr((self.num_classes, self.format_of_arrays)).encode())
        for key, array in sorted(arrays.items()):
            digest.update(f"{key} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)

        def build(unfinished: Path) -> None:
            for key, array in arrays.items():
                np.save(unfinished / f"{key}.npy", array, allow_pickle=False)

        counts = {part: len(arrays[f"{part}_labels"]) for part in ("train", "test") if f"{part}_labels" in arrays}
        data = _described(digest.hexdigest()[:12], self.num_classes, counts)
        cache.once(entry_of(name, data), build)
        _write_json(_latest_path(name), {"data": data, "reader": self._reader, "directory": directory})
        return data

    def _check(self, name: str, arrays: Arrays) -> None:
        known = {f"{part}_{kind}" for part in ("train", "test") for kind in ("images", "labels")}
        for key in arrays.keys() - known:
            raise InputError(f"{name}: {unknown('array', key, sorted(known))}")
        if not (len(self.mean) == len(self.std) == self.channels and np.isfinite(self.mean).all()):
            raise InputError(f"{name}: mean and std have to be {self.channels} finite numbers, one a channel")
        if not (np.isfinite(self.std).all() and min(self.std) > 0):
            raise InputError(f"{name}: std has to be above 0, not {self.std}")
        for part in ("train", "test") if "test_images" in arrays else ("train",):
            images, labels = (np.asarray(arrays.get(f"{part}_{kind}", ())) for kind in ("images", "labels"))
            wanted = (len(labels), *self.format_of_arrays.shape)
            if not len(labels) or images.dtype != np.uint8 or images.shape != wanted:
                raise InputError(
                    f"{name}: {part}_images have to be uint8 of the shape {wanted}, an image for each of {part}_labels,"
                    f" not {images.dtype} of {images.shape}"
                )
            if labels.dtype != np.int64 or labels.min() < 0 or labels.max() >= self.num_classes:
                raise InputError(f"{name}: {part}_labels have to be int64 in 0..{self.num_classes - 1}")
            if missing := set(range(self.num_classes)) - set(labels.tolist()):
                raise InputError(f"{name}: no {part} image is of class {min(missing)}")

    def is_ready(self, entry: Path) -> bool:
        """See Dataset."""
        return cache.find(entry)

    def load(self, entry: Path, scenario: Scenario, device: torch.device, processes: int) -> dict[str, Part]:
        """See Dataset. On the CPU they are shared memory maps, otherwise they are copied to the device once."""
        arrays = {
            path.stem: torch.from_numpy(np.load(path, mmap_mode="c")).to(device)  # "c": torch wants a writable view
            for path in entry.glob("*.npy")
        }
        return {
            part: Part(Pixels(arrays[f"{part}_images"], self.mean, self.std), arrays[f"{part}_labels"])
            for part in ("train", "test")
            if f"{part}_images" in arrays
        }


@dataclass(frozen=True)
class EncodedDataset(Dataset):
    """Colour images that stay encoded, as a folder or as shards (see `raymu.index`), in timm's format for the
    scenario's architecture. The cache remembers where they are.
    """

    channels: int = 3

    def format(self, scenario: Scenario) -> Format:
        """See Dataset."""
        from raymu.encoded import transform_of

        transform = transform_of(scenario)
        return Format(transform["input_size"], transform["mean"], transform["std"])

    def reader(self, scenario: Scenario) -> str:
        """See Dataset."""
        from raymu.encoded import transform_of

        transform = transform_of(scenario)
        return content_hash([super().reader(scenario), {name: str(transform[name]) for name in sorted(transform)}])

    def prepare(self, name: str, directory: Path | str | None, asked: str) -> str:
        """See Dataset. What lies there is looked at anew."""
        from raymu import index
        from raymu.decoding import decode
        from raymu.storage import locate

        if directory is None:
            directory = _location(name, asked)
            if (location := locate(directory)).local and not Path(location.path).is_dir():
                raise InputError(f"{name} is no longer in {location}; say with --data-dir where it is")
        location = locate(directory)
        built = index.build(location)
        parts = index.load(built)
        for part, found in parts.items():
            classes = np.unique(found.labels)
            if classes[-1] >= self.num_classes or (part == "train" and len(classes) < self.num_classes):
                raise InputError(
                    f"the {part} set in {location} has {len(classes)} classes, {classes[0]} to {classes[-1]};"
                    f" {name} has {self.num_classes}"
                )
        counts = {part: len(found.labels) for part, found in parts.items()}
        decoded = source.digest(decode, within=("raymu.decoding", "raymu.rgb"))
        digest = content_hash([index.digest(location, parts), decoded])
        data = _described(digest, self.num_classes, counts)
        where = {"location": location.path if location.local else str(directory), "index": built.name}
        _write_json(entry_of(name, data) / LOCATION, where)
        _write_json(_latest_path(name), {"data": data})
        return data

    def is_ready(self, entry: Path) -> bool:
        """See Dataset. Where it lies may change, so it is asked for anew."""
        from raymu import index

        cache.refresh(entry)
        return (entry / LOCATION).exists() and cache.find(index.directory(cache.load_json(entry / LOCATION)["index"]))

    def notes(self, entry: Path) -> list[str]:
        """See Dataset."""
        from raymu import index

        return index.notes(index.directory(cache.load_json(entry / LOCATION)["index"]))

    def load(self, entry: Path, scenario: Scenario, device: torch.device, processes: int) -> dict[str, Part]:
        """See Dataset."""
        from raymu import index
        from raymu.encoded import Encoded, transform_of
        from raymu.storage import locate

        known, transform = cache.load_json(entry / LOCATION), transform_of(scenario)
        where = known["location"]
        copies = None if locate(where).local else cache.root() / "shards" / known["index"]
        return {
            part: Part(
                Encoded(found, where, copies, transform, device, processes),
                torch.from_numpy(np.array(found.labels)).to(device),
            )
            for part, found in index.load(index.directory(known["index"])).items()
        }


def _location(dataset: str, asked: str) -> str:
    """Where those data of a dataset were found that are asked for, or else the last ones."""
    entries = [entry_of(dataset, data) for data in (asked, _latest(dataset).get("data", "")) if data]
    found = next((entry / LOCATION for entry in entries if (entry / LOCATION).exists()), None)
    if found is None:
        raise InputError(
            f"where is {dataset}? Name with --data-dir a directory with train/<class>/*.JPEG and val/<class>/*.JPEG,"
            " or a directory or URI with shards train-*.tar and val-*.tar"
        )
    return str(cache.load_json(found)["location"])


def _read_digits(directory: Path) -> Arrays:
    """scikit-learn's digits, 8x8 with 17 grey levels, enlarged bilinearly to 16x16; `directory` is not used."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    _check_published("digits", "scikit-learn", "train", labels)
    if pixels.shape[1:] != (64,) or pixels.min() < 0 or pixels.max() > 16:
        raise InputError("scikit-learn's digits are not the published ones: 8 x 8 pixels of 0 to 16")
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) * (255 / 16)
    images = torch.nn.functional.interpolate(images, size=16, mode="bilinear").round()
    return {"train_images": images.to(torch.uint8).numpy(), "train_labels": labels.astype(np.int64)}


def _read_cifar(name: str, directory: Path) -> Arrays:
    """CIFAR-10 or -100 through torchvision, which compares files with their published checksum before it opens them."""
    from torchvision import datasets

    cifar, arrays = getattr(datasets, name), Arrays()
    for part, train in (("train", True), ("test", False)):
        try:
            source = cifar(directory, train=train, download=True)
        except Exception as error:  # torchvision raises URLError, RuntimeError, OSError, ... as the network fails
            raise InputError(
                f"{name} is not in {directory} and could not be downloaded ({error}). Put {cifar.filename} from"
                f" {cifar.url}, or the folder {cifar.base_folder} unpacked from it, into a directory and name it"
                " with --data-dir."
            ) from error
        labels = np.asarray(source.targets, dtype=np.int64)
        _check_published(name, directory, part, labels)
        if source.data.shape != (len(labels), 32, 32, 3):
            raise InputError(f"{name} in {directory} has a {part} set of the shape {source.data.shape}")
        arrays[f"{part}_images"] = np.ascontiguousarray(source.data.transpose(0, 3, 1, 2))
        arrays[f"{part}_labels"] = labels
    return arrays


def _read_tiny_imagenet(directory: Path) -> Arrays:
    """Tiny-ImageNet from the zip file or the folder that is unpacked from it; what has labels, hence without its test
    images.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    folder = directory if (directory / "wnids.txt").exists() else directory / "tiny-imagenet-200"
    if not folder.exists():
        try:
            download_and_extract_archive(TINY_IMAGENET_URL, str(directory), md5=TINY_IMAGENET_MD5)
        except Exception as error:  # as above
            raise InputError(
                f"Tiny-ImageNet is not in {directory} and could not be downloaded ({error}). Put"
                f" tiny-imagenet-200.zip from {TINY_IMAGENET_URL}, or the folder tiny-imagenet-200 unpacked from it,"
                " into a directory and name it with --data-dir."
            ) from error
    try:
        classes = sorted((folder / "wnids.txt").read_text().split())
        lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
        present = {path.name for path in (folder / "val" / "images").iterdir()}
        named = [line.split("\t")[:2] for line in lines]
        files = {
            "train": [(path, name) for name in classes for path in sorted((folder / "train" / name).rglob("*.JPEG"))],
            "test": [(folder / "val" / "images" / file, name) for file, name in named if file in present],
        }
        labels = {part: np.array([classes.index(name) for _, name in found], int) for part, found in files.items()}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is not Tiny-ImageNet as published: {error}") from error
    for part in files:
        _check_published("Tiny-ImageNet", folder, part, labels[part], classes)
    arrays = Arrays()
    with ThreadPoolExecutor() as pool:
        for part, found in files.items():
            arrays[f"{part}_images"] = np.stack(list(pool.map(partial(_pixels, size=64), (path for path, _ in found))))
            arrays[f"{part}_labels"] = labels[part]
    return arrays


def _check_published(
    name: str, where: Path | str, part: str, labels: NDArray[np.int64], classes: Sequence[str] = ()
) -> None:
    """Every class has the number of images that was published.

    Args:
        labels: of all images of the part (N,).
        classes: the names of the classes, where they have some.

    Raises:
        InputError: it does not; says how many are missing, and of which class for example.
    """
    expected = np.array(PUBLISHED[name][part])
    found = np.bincount(labels, minlength=len(expected))
    expected = np.pad(expected, (0, len(found) - len(expected)))
    (wrong,) = (found != expected).nonzero()
    if len(wrong):
        first = classes[wrong[0]] if wrong[0] < len(classes) else f"class {wrong[0]}"
        raise InputError(
            f"{where} does not hold {name} as published: its {part} set has {found.sum()} images instead of"
            f" {expected.sum()}; {len(wrong)} of {len(expected)} classes differ, such as {first} with {found[wrong[0]]}"
            f" instead of {expected[wrong[0]]}. Unpack all of it again."
        )


def _pixels(path: Path, size: int) -> NDArray[np.uint8]:
    """An image (3, size, size). Raises InputError where it has another size, cannot be read, or is refused (see
    `raymu.rgb`).
    """
    from raymu.rgb import read_rgb

    try:
        with path.open("rb") as file:
            image = read_rgb(file)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, ... where an image is damaged
        raise InputError(f"{path} cannot be read: {error}") from error
    if image.size != (size, size):
        raise InputError(f"{path} has {image.width} x {image.height} pixels instead of {size} x {size}")
    return np.asarray(image).transpose(2, 0, 1)


DATASETS: dict[str, Dataset] = {
    "digits": ArrayDataset(10, 1, 16, (0.305,), (0.319,), _read_digits, files=False),
    "cifar10": ArrayDataset(
        10, 3, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), partial(_read_cifar, "CIFAR10")
    ),
    "cifar100": ArrayDataset(
        100, 3, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), partial(_read_cifar, "CIFAR100")
    ),
    "tinyimagenet": ArrayDataset(200, 3, 64, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), _read_tiny_imagenet),
    "imagenet": EncodedDataset(1000),
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
    classes = range(dataset_of(scenario).num_classes)
    for forgotten in scenario.forget:
        if forgotten not in classes:
            raise InputError(f"forget class {forgotten} is outside the data: {scenario.dataset} has 0..{classes[-1]}")
    if not 0 < len(set(scenario.forget)) < len(classes):
        raise InputError("the forget set needs at least one class, and has to leave at least one")


def prepare(scenario: Scenario, directory: Path | str | None = None) -> Scenario:
    """The scenario with its data filled in (`Scenario.data`); they are read into the cache, or indexed, unless that is
    done.

    Args:
        directory: where the original files are or shall be downloaded to, which is then looked at anew; of a dataset
            that stays encoded a directory or a URI. None: where they were the last time.

    Raises:
        InputError: the files are missing and cannot be fetched, something is wrong with them, or they are not those
            that the scenario names.
    """
    name, dataset = scenario.dataset, dataset_of(scenario)
    data = dataset.prepare(name, directory, scenario.data.partition(READ_BY)[0])
    if reader := dataset.reader(scenario):
        data += READ_BY + reader
    if scenario.data not in ("", data):
        raise InputError(f"{name} is not what it was: here are {data}; asked for are {scenario.data}")
    return dataclasses.replace(scenario, data=data)


def prepared(scenario: Scenario) -> Scenario:
    """The scenario with its data filled in. Where they are, and are in the cache, nothing is looked at: a sweep's data
    were looked at when it began.

    Raises:
        InputError: see `prepare`.
    """
    dataset = dataset_of(scenario)
    known, _, reader = scenario.data.partition(READ_BY)
    is_ready = known and dataset.is_ready(entry_of(scenario.dataset, known)) and reader == dataset.reader(scenario)
    return scenario if is_ready else prepare(scenario)


def dataset_of(scenario: Scenario) -> Dataset:
    """The scenario's dataset.

    Raises:
        InputError: there is none of that name; the message names the nearest.
    """
    if scenario.dataset not in DATASETS:
        raise InputError(unknown("dataset", scenario.dataset, list(DATASETS)))
    return DATASETS[scenario.dataset]


def notes(scenario: Scenario) -> list[str]:
    """Lines that whoever uses the data of a scenario, which `prepare` returned, should read (see `Dataset.notes`)."""
    return DATASETS[scenario.dataset].notes(entry_of(scenario.dataset, scenario.data))


def check_split(scenario: Scenario) -> None:
    """Look whether the split leaves something to forget and something to retain; the dataset is prepared if need be.

    Raises:
        InputError: it does not.
    """
    load(scenario, torch.device("cpu"))


def load(scenario: Scenario, device: torch.device, processes: int | None = None) -> Data:
    """The scenario's data.

    The split is stratified by class. It follows from the scenario's seed and the images' keys alone: neither from where
    they lie, nor from their order.

    Args:
        processes: how many decode images that are not kept in memory, beside this one; 0: this one does. None: as many
            as torch has CPU threads.
    """
    dataset, scenario = dataset_of(scenario), prepared(scenario)
    processes = torch.get_num_threads() if processes is None else processes
    parts = dataset.load(entry_of(scenario.dataset, scenario.data), scenario, device, processes)
    train = parts["train"]
    count = len(train.labels)
    num_val, num_test = (round(count * share) for share in (scenario.val_share, scenario.test_share))
    if not num_test and "test" not in parts:
        raise InputError(f"{scenario.dataset} brings no test set (a directory or shards val); set a test_share")
    order = _stratified(_draw(train.images.keys, scenario.seed, "split"), train.labels.cpu().numpy())

    def split(part: Part, rows: NDArray[np.int64]) -> Split:
        return Split(part.images, part.labels, torch.from_numpy(np.sort(rows)).to(device))

    test, val, rest = np.split(order, [num_test, num_test + num_val])
    return Data(
        **_forget_set(
            scenario,
            split(train, rest),
            split(train, val),
            split(train, test) if num_test else split(parts["test"], np.arange(len(parts["test"].labels))),
        ),
        num_classes=dataset.num_classes,
    )


def _draw(keys: NDArray[np.uint64], seed: int, purpose: str) -> NDArray[np.uint64]:
    """A random number for each key (N,), by SplitMix64 (Steele et al., OOPSLA 2014) from a start that follows from the
    seed and the purpose.
    """
    start = int.from_bytes(hashlib.sha256(repr((seed, purpose)).encode()).digest()[:8])
    mixed = keys * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _stratified(drawn: NDArray[np.uint64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order (N,), by random numbers, of which every part has so many of each class as its share is."""
    by_class = np.lexsort((drawn, labels))
    sizes = np.bincount(labels)
    rank = np.empty(len(labels))
    rank[by_class] = np.arange(len(labels)) - (sizes.cumsum() - sizes)[labels[by_class]]
    return np.lexsort((drawn, (rank + 0.5) / sizes[labels]))


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
    numbers = _draw(train.images.keys[train.index.cpu().numpy()], scenario.seed, "forget")
    drawn = torch.from_numpy(np.argsort(numbers)[:count]).to(train.index.device)
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
