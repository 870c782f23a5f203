"""Scenario files that are filled in from a user's images and trained model."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from raymu.architecture import Architecture, named
from raymu.data import layout, npz, parquet
from raymu.data.formats import OF_ARRAYS, OF_PHOTOGRAPHS
from raymu.errors import InputError
from raymu.models import checkpoint
from raymu.scenarios import architecture_of, file_of
from raymu.storage import locate
from raymu.values import expanded

HELD_OUT = 0.2  # share of the training images for the test, where the data bring no test set


class _Found(NamedTuple):
    """Contents of the place where a user's images are.

    Attributes:
        format: of [data].
        class_names: empty: nothing says them.
        folders: names of the classes' folders, in the order of their numbers.
        classes: their number; 0: it is not known before the images are read.
        shape: of an image (C, H, W); None: as the architecture wants it.
        has_test: whether there is a held-out part.
    """

    format: str
    class_names: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    classes: int = 0
    shape: tuple[int, int, int] | None = None
    has_test: bool = True


def draft(data: str, original: Path | None, architecture: str | None, directory: Path) -> str:
    """Text of a scenario file.

    Args:
        data: where the images are: a directory, a URI or an npz file.
        original: file of a trained model; None: one will be trained.
        architecture: as a scenario file names it; a file of it may also lie where this process works. None: the one of
            timm's that stands in the name of `original`.
        directory: where the scenario file will be.

    Raises:
        InputError: nothing that is known lies there, or the architecture cannot be told.
    """
    found, name = _look(data), _placed(architecture, directory) if architecture else _named_after(original)
    known = architecture_of(name, directory)
    network = known if isinstance(known, Architecture) else named(known)
    network.check("")
    seen = network.transform("")
    lines = [f"architecture = {_toml(name)}"]
    if original is not None:
        lines += [f"original = {_toml(str(original.absolute()))}"]
        if rows := _rows(original, network, found, seen):
            lines += [f"original_rows = {rows}  # the outputs of its head that the classes are"]
        lines += ['retrained = "none"  # or a file; left out: trained by [recipe], without the forget set']
    lines += [f"forget = [{_toml(found.class_names[0] if found.class_names else 0)}]  # what has to go"]
    if not found.has_test:
        lines += [f"test_share = {HELD_OUT}  # of the training images, since the data bring no test set"]
    path = data if "://" in data else str(expanded(data).absolute())
    lines += ["", "[data]", f"format = {_toml(found.format)}", f"path = {_toml(path)}"]
    if found.class_names:
        lines += [f"classes = {_toml(found.class_names)}"]
    seen |= {"size": seen["input_size"][-1]}
    lines += [
        f"{field} = {_toml(seen[field])}"
        for field in (OF_ARRAYS if found.format == "npz" else OF_PHOTOGRAPHS)
        if field in seen
    ]
    if original is None:
        lines += ["", "[recipe]  # how the original and the retrained model are trained", "lr = 0.05", "epochs = 30"]
    return "\n".join(lines) + "\n"


def _look(data: str) -> _Found:
    path = expanded(data)
    if path.suffix == ".npz":
        of = npz.describe(path)
        return _Found("npz", of.class_names, (), of.classes, (of.channels, of.size, of.size), of.has_test)
    if path.is_dir() and next(path.rglob("*.parquet"), None):
        shards, names = parquet.shards_of(path)
        return _Found("parquet", names, (), len(names), None, len(layout.list_images(locate(shards)).parts) > 1)
    listing = layout.list_images(locate(data))
    if listing.classes is None:
        return _Found("shards", has_test=len(listing.parts) > 1)
    folders = tuple(listing.classes)
    return _Found("folders", _in_words(folders), folders, len(folders), None, len(listing.parts) > 1)


def _in_words(folders: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes: what their folders are called, or the words for it where these are WordNet's numbers."""
    from timm.data.imagenet_info import ImageNetInfo

    known = ImageNetInfo()
    if not set(folders) <= set(known.label_names()):
        return folders
    words = tuple(str(known.label_name_to_description(name)).partition(",")[0] for name in folders)
    return words if len(set(words)) == len(words) else folders


def _placed(architecture: str, directory: Path) -> str:
    """The architecture as a scenario file in that directory names it."""
    attribute, file = architecture.partition(":")[2], expanded(file_of(architecture))
    is_elsewhere = attribute and file.is_file() and not (directory / file).is_file()
    return f"{file.absolute()}:{attribute}" if is_elsewhere else architecture


def _named_after(original: Path | None) -> str:
    """Architecture of timm's that stands in the name of a file."""
    import timm

    stem = "" if original is None else original.stem
    found = [name for name in timm.list_models() if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", stem)]
    if not found:
        raise InputError("say what the network is: --architecture resnet18, or your own, resnet20.py:ResNet20")
    return max(found, key=len)


def _rows(original: Path, network: Architecture, found: _Found, seen: dict[str, Any]) -> list[int]:
    """Outputs of a file's head that the classes are, where it has all of ImageNet's; else empty: it has these alone."""
    from timm.data.imagenet_info import ImageNetInfo

    known = ImageNetInfo().label_names()
    if not found.folders or len(found.folders) == len(known) or not set(found.folders) <= set(known):
        return []
    model = network.build(len(found.folders), found.shape or tuple(seen["input_size"]))
    tensors = checkpoint.read(original)
    sizes = {len(tensors[name]) for name in checkpoint.of_heads(model) if name in tensors}
    return [known.index(name) for name in found.folders] if sizes == {len(known)} else []


def _toml(value: Any) -> str:
    """A text, a number or a list of them; TOML writes these as JSON does."""
    return json.dumps(value, ensure_ascii=False)
