"""The datasets that raymu knows, read as they were published."""

import gzip
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from raymu.data.arrays import ArrayDataset, Arrays
from raymu.data.dataset import Dataset
from raymu.data.folders import EncodedDataset
from raymu.errors import InputError

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
# Images of each class, as published.
PUBLISHED: dict[str, dict[str, tuple[int, ...]]] = {
    "digits": {"train": (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)},
    "CIFAR10": {"train": 10 * (5000,), "test": 10 * (1000,)},
    "CIFAR100": {"train": 100 * (500,), "test": 100 * (100,)},
    "Fashion-MNIST": {"train": 10 * (6000,), "test": 10 * (1000,)},
    "Tiny-ImageNet": {"train": 200 * (500,), "test": 200 * (50,)},
}


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
                f"{name} is not in {directory} and could not be downloaded ({_line(error)}). Put {cifar.filename} from"
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


def _read_fashion(directory: Path) -> Arrays:
    """Fashion-MNIST from its four files, compressed or not, in the directory or where torchvision puts them; 28x28 grey
    pixels with a black border of 2, halved to 16x16.
    """
    from torchvision.datasets import FashionMNIST

    files = [name for name, _ in FashionMNIST.resources]
    folders, arrays = (directory, directory / "FashionMNIST" / "raw"), Arrays()
    if not any(_idx_file(folder, name) for folder in folders for name in files):
        try:
            FashionMNIST(directory, download=True)
        except Exception as error:  # as above
            raise InputError(
                f"Fashion-MNIST is not in {directory} and could not be downloaded ({_line(error)}). Put"
                f" {', '.join(files)} from https://github.com/zalandoresearch/fashion-mnist into a directory and name"
                " it with --data-dir."
            ) from error
    for part, prefix in (("train", "train"), ("test", "t10k")):
        labels = _read_idx(folders, f"{prefix}-labels-idx1-ubyte.gz", 1).astype(np.int64)
        _check_published("Fashion-MNIST", directory, part, labels)
        pixels = _read_idx(folders, f"{prefix}-images-idx3-ubyte.gz", 3)
        if pixels.shape != (len(labels), 28, 28):
            raise InputError(f"Fashion-MNIST in {directory} has a {part} set of the shape {pixels.shape}")
        bordered = torch.nn.functional.pad(torch.tensor(pixels[:, None], dtype=torch.float32), (2, 2, 2, 2))
        images = torch.nn.functional.avg_pool2d(bordered, 2).round()
        arrays |= {f"{part}_images": images.to(torch.uint8).numpy(), f"{part}_labels": labels}
    return arrays


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder, or what it was unpacked to."""
    return next((path for path in (folder / name, folder / name.removesuffix(".gz")) if path.is_file()), None)


def _read_idx(folders: Sequence[Path], name: str, dimensions: int) -> NDArray[np.uint8]:
    """Array of bytes in a file of the IDX format, in the first folder that has it (LeCun, MNIST's home page)."""
    path = next((found for folder in folders if (found := _idx_file(folder, name))), None)
    if path is None:
        raise InputError(f"Fashion-MNIST in {folders[0]} lacks {name}")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        header = np.frombuffer(content, ">u4", 1 + dimensions)
        if header[0] != 0x800 + dimensions:
            raise ValueError("no IDX file of bytes")
        return np.frombuffer(content, np.uint8, offset=header.nbytes).reshape(header[1:].astype(int))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} is not as published: {error}") from error


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
                f"Tiny-ImageNet is not in {directory} and could not be downloaded ({_line(error)}). Put"
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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


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
    `raymu.data.rgb`).
    """
    from raymu.data.rgb import read_rgb

    try:
        with path.open("rb") as file:
            image = read_rgb(file)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, ... where an image is damaged
        raise InputError(f"{path} cannot be read: {error}") from error
    if image.size != (size, size):
        raise InputError(f"{path} has {image.width} x {image.height} pixels instead of {size} x {size}")
    return np.asarray(image).transpose(2, 0, 1)


def _cifar(num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> ArrayDataset:
    """CIFAR-10 or -100."""
    name, read = f"cifar{num_classes}", partial(_read_cifar, f"CIFAR{num_classes}")
    return ArrayDataset(name, num_classes, 3, 32, mean, std, read, class_names=_names(name))


def _names(dataset: str) -> tuple[str, ...]:
    """Names of its classes, in the order of their numbers."""
    return tuple(
        Path(__file__).with_name("classes").joinpath(f"{dataset}.txt").read_text(encoding="utf-8").splitlines()
    )


DATASETS: dict[str, Dataset] = {
    one.name: one
    for one in (
        ArrayDataset("digits", 10, 1, 16, (0.305,), (0.319,), _read_digits, files=False),
        _cifar(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        _cifar(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ArrayDataset("fashion", 10, 1, 16, (0.219,), (0.313,), _read_fashion, class_names=_names("fashion")),
        ArrayDataset(
            "tinyimagenet", 200, 3, 64, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), _read_tiny_imagenet
        ),
        EncodedDataset("imagenet", 1000, class_names=_names("imagenet")),
    )
}
