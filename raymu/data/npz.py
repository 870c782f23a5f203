"""Arrays of images and labels in an npz file.

`train_images` and `train_labels`, perhaps `val_...` and `test_...`; or `x_train` and `y_train`, and so on; or `images`
and `labels` alone. Images are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W); labels are whole numbers (N,). `classes`
may hold the names of the classes.
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raymu.data.arrays import Arrays
from raymu.data.dataset import PARTS
from raymu.errors import InputError
from raymu.storage import is_no_file

KINDS = (("images", "labels"), ("x", "y"), ("X", "Y"), ("X", "y"))
CLASSES = "classes"
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # what numpy and zip raise


class Description(NamedTuple):
    """Contents of a file: number of classes, names of the classes (empty: not known), channels of an image, its height
    and width, and whether there is a test set.
    """

    classes: int
    class_names: tuple[str, ...]
    channels: int
    size: int
    has_test: bool


def describe(path: Path) -> Description:
    """Description of a file, for which no image is read.

    Raises:
        InputError: it is no such file, or its images are not square.
    """
    shapes = _shapes(path)
    parts = _parts(shapes, path)
    images, labels = parts["train"]
    _, height, width, channels = _with_channels(shapes[images], f"{path}: {images}")
    if height != width:
        raise InputError(f"{path}: its images have {height} x {width} pixels; arrays have to be square")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = _names(file[CLASSES], path) if CLASSES in shapes else ()
            classes = int(_labels(file[labels], f"{path}: {labels}").max()) + 1
            return Description(classes, names, channels, height, "test" in parts)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def read(where: str, stamp: tuple[int, int], directory: Path) -> Arrays:
    """Arrays of a file, as `ArrayDataset.read` returns them.

    Args:
        where: its path.
        stamp: what `stamp` said of it: another one, and it is read anew.
        directory: is not used.

    Raises:
        InputError: it is no such file.
    """
    path, arrays = Path(where), Arrays()
    try:
        with np.load(path, allow_pickle=False) as file:
            for part, (images, labels) in _parts(_shapes(path), path).items():
                arrays[f"{part}_labels"] = _labels(file[labels], f"{path}: {labels}")
                arrays[f"{part}_images"] = _images(file[images], f"{path}: {images}")
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return arrays


def stamp(path: Path) -> tuple[int, int]:
    """Size of a file, and when it was changed, in ns."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in a file, of which the headers alone are read."""
    shapes = {}
    if is_no_file(path):
        raise InputError(f"{path} is no file")  # a pipe would be waited for
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    is_first = np.lib.format.read_magic(file) == (1, 0)
                    header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
                    shape, _, kind = header(file)
                    size = archive.getinfo(name).file_size - file.tell()
                    if not kind.hasobject and math.prod(shape) * kind.itemsize != size:
                        said = f"{name} ought to be {shape} {kind}, and holds {size} bytes"
                        raise InputError(f"{path} is damaged: {said}")
                    shapes[name.removesuffix(".npy")] = shape
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path} is no npz file: {error}") from error
    return shapes


def _parts(shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, tuple[str, str]]:
    """Names of images and of labels, by part."""
    found = {}
    for part, words in PARTS.items():
        pairs = [(f"{word}_{x}", f"{word}_{y}") for word in words for x, y in KINDS]
        pairs += [(f"{x}_{word}", f"{y}_{word}") for word in words for x, y in KINDS]
        pairs += KINDS if part == "train" else ()
        if pair := next((pair for pair in pairs if all(name in shapes for name in pair)), None):
            found[part] = pair
    if "train" not in found:
        raise InputError(f"{path} holds {', '.join(shapes) or 'nothing'}; it needs train_images and train_labels")
    for images, labels in found.values():
        counts = [shapes[name][:1] for name in (images, labels)]
        if counts[0] != counts[1]:
            said = f"{images} are {shapes[images]}, {labels} are {shapes[labels]}"
            raise InputError(f"{path}: {said}; there has to be one label an image")
    return found


def _names(names: NDArray[Any], path: Path) -> tuple[str, ...]:
    if names.ndim != 1 or len(set(found := tuple(map(str, names)))) < len(names):
        raise InputError(f"{path}: {CLASSES} have to be names (C,), each of one class, not {names.tolist()}")
    return found


def _with_channels(shape: tuple[int, ...], what: str) -> tuple[int, ...]:
    """(N, H, W, C) of an array of images."""
    if len(shape) == 3:
        return (*shape, 1)
    if len(shape) == 4 and (shape[3] in (1, 3)) != (shape[1] in (1, 3)):
        return shape if shape[3] in (1, 3) else (shape[0], *shape[2:], shape[1])
    raise InputError(f"{what} have to be (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, not {shape}")


def _images(images: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Images (N, C, H, W)."""
    if images.dtype != np.uint8:
        raise InputError(f"{what} have to be uint8, from 0 to 255, not {images.dtype}")
    _with_channels(images.shape, what)
    if images.ndim == 3:
        return images[:, None]
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if images.shape[3] in (1, 3) else images


def _labels(labels: NDArray[Any], what: str) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or not labels.size or labels.shape[:1] != (labels.size,):
        raise InputError(f"{what} have to be whole numbers (N,), not {labels.dtype} {labels.shape}")
    return labels.reshape(-1).astype(np.int64)
