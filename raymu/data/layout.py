"""Images in folders or shards, as they lie on a disk or on object storage.

Two layouts are known. In folders the first directory below a part is an image's class, also of images that lie deeper;
in shards (tar files, as WebDataset makes them) the number of the class stands beside the image. Below the location:

    train/<class>/<key>.JPEG              val/<class>/<key>.JPEG
    train-*.tar (or train/*.tar)          val-*.tar (or val/*.tar), with members <key>.jpg and <key>.cls

`val` may be called `validation` as well. Where there is a `test` beside it, models are chosen on it, and else they are
tested on it. All parts have the same layout and the same classes; a `test` beside `val` that has no labels or
other classes is left out. A key may be there once a class.

Folders are numbered from 0 in the order of their names as text, as torchvision's ImageFolder numbers them; where all
names are numbers, in numeric order, so that folders 0, 1, ..., 10 are classes 0, 1, ..., 10. Links are followed.
Whatever is no image is left out and counted.
"""

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyarrow.fs import FileSelector, FileType

from raymu.data.dataset import PARTS
from raymu.errors import InputError
from raymu.storage import Location

JPEG = ("jpg", "jpeg")
SUFFIXES = (*JPEG, "png", "webp", "bmp", "gif", "tif", "tiff", "pbm", "pgm", "ppm", "pnm")
CLUTTER = ("__MACOSX", "@eaDir", "lost+found")  # folders that systems make; they are treated as hidden
SHARDS = ("tar",)
HIDDEN = "hidden"
REASONS = 6  # that a note names
THREADS = 16  # where they wait for answers; at the headers of a local shard they would wait for each other


class File(NamedTuple):
    """A file: its path below the location, its size in bytes, and when it was changed, in ns."""

    path: str
    size: int
    changed: int


class Ignored:
    """Counts of what is left out, by reason, with the path of the first of each."""

    def __init__(self) -> None:
        self._counts, self._first = Counter[str](), dict[str, str]()

    def add(self, reason: str, path: str) -> None:
        """Count a path that is left out, and why."""
        self._counts[reason] += 1
        self._first.setdefault(reason, path)

    def update(self, other: "Ignored") -> None:
        """Add the counts of others."""
        self._counts.update(other._counts)
        self._first = other._first | self._first

    def __str__(self) -> str:
        frequent = self._counts.most_common(REASONS)
        named = [f"{name}: {n} ({'such as ' if n > 1 else ''}{self._first[name]})" for name, n in frequent]
        others = self._counts.total() - sum(count for _, count in frequent)
        return f"left out: {'; '.join(named) or 'nothing'}" + (f"; others: {others}" if others else "")

    def __bool__(self) -> bool:
        return bool(self._counts)


class Listing(NamedTuple):
    """What lies at a location in one layout.

    Attributes:
        parts: the files of each part, in the order of their paths: images, or shards.
        classes: the class folders, in the order of their numbers; None of shards.
        ignored: what is left out.
    """

    parts: dict[str, list[File]]
    classes: list[str] | None
    ignored: Ignored


def list_images(location: Location) -> Listing:
    """The layout that the training set has."""
    shards = _shards(location)
    if not location.local:
        if "train" not in shards.parts:
            raise InputError(
                f"{location} has no shards train-*.tar; from object storage nothing else is read; {shards.ignored}"
            )
        return shards
    folders = _folders(location)
    chosen, other = (folders, shards) if "train" in folders.parts else (shards, folders)
    if "train" not in chosen.parts:
        raise InputError(
            f"{location} has neither images train/<class>/*.JPEG nor shards train-*.tar; {folders.ignored}"
        )
    if elsewhere := [files[0].path for part, files in other.parts.items() if part not in chosen.parts]:
        raise InputError(
            f"{location}: the training set ({chosen.parts['train'][0].path}, ...) and the held-out set"
            f" ({elsewhere[0]}, ...) are not of one layout; both have to be folders, or shards"
        )
    return chosen


def _shards(location: Location) -> Listing:
    parts, ignored = dict[str, list[File]](), Ignored()
    top, folders, left_out = _scan(location, "", SHARDS)
    ignored.update(left_out)
    for part, names in PARTS.items():
        for name in names:
            found = [file for file in top if re.fullmatch(rf"(.*-)?{name}-.*", file.path)]
            top = sorted(set(top) - set(found))
            if name in folders or not location.local:
                inside, below, left_out = _scan(location, name, SHARDS)
                found += inside
                folders = sorted({*folders, *below} - {name})
                ignored.update(left_out)
            if found and part not in parts:
                parts[part] = sorted(found)
            else:
                top += found
    for file in sorted(top):
        ignored.add("shards of no part that is read", file.path)
    for folder in folders:
        ignored.add("folders", folder)
    return Listing(parts, None, ignored)


def _folders(location: Location) -> Listing:
    parts, classes, ignored = dict[str, list[File]](), list[str](), Ignored()
    top = _scan(location, "", SUFFIXES)
    ignored.update(top.ignored)
    outside, beside = top.files, set(top.folders)
    for part, names in PARTS.items():
        for name in names:
            if name not in beside or part in parts:
                continue
            beside.remove(name)
            inside = _scan(location, name, SUFFIXES)
            ignored.update(inside.ignored)
            outside += inside.files
            place = Path(location.path, name).resolve()
            walk = partial(_walk, location, above=[_identity(path) for path in (place, *place.parents)])
            with ThreadPoolExecutor(THREADS) as pool:
                walked = list(pool.map(walk, inside.folders))
            for _, left_out in walked:
                ignored.update(left_out)
            if images := [image for found, _ in walked for image in found]:
                parts[part] = sorted(images)
                if part == "train":
                    classes = _in_order(folder.removeprefix(f"{name}/") for folder in inside.folders)
    for image in outside:
        ignored.add("images outside class folders", image.path)
    for folder in sorted(beside):
        ignored.add("folders that are no part that is read", folder)
    return Listing(parts, classes, ignored)


class _Directory(NamedTuple):
    """Files that are looked for in one directory, its folders (paths below the location), and what is neither."""

    files: list[File]
    folders: list[str]
    ignored: Ignored


def _scan(location: Location, directory: str, suffixes: tuple[str, ...]) -> _Directory:
    """A directory below the location, where files of these suffixes are looked for."""
    files, folders, ignored = found = _Directory([], [], Ignored())
    where = f"{location.path}/{directory}".rstrip("/")
    if not location.local:
        infos = location.filesystem.get_file_info(FileSelector(where, allow_not_found=True))
        for info in sorted(infos, key=lambda info: info.path):
            path = info.path[len(location.path) :].lstrip("/")
            if info.type == FileType.Directory:
                folders.append(path)
            elif reason := _unknown(path, suffixes):
                ignored.add(reason, path)
            else:
                files.append(File(path, info.size, info.mtime_ns))
        return found
    if not os.path.isdir(where):
        return found
    with os.scandir(where) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{directory}/{entry.name}".lstrip("/")
            reason = _unknown(path, suffixes)
            if reason == HIDDEN:
                ignored.add(reason, path)
                continue
            try:
                status = entry.stat()
            except OSError as error:
                if isinstance(error, PermissionError) or not entry.is_symlink():
                    raise
                ignored.add("links that lead nowhere", path)
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            elif reason is not None:
                ignored.add(reason, path)
            elif not stat.S_ISREG(status.st_mode):
                ignored.add("neither files nor folders", path)
            elif not status.st_mode & stat.S_IROTH and not os.access(entry.path, os.R_OK):
                raise InputError(f"may not read {entry.path}: look at its permissions")
            else:
                files.append(File(path, status.st_size, status.st_mtime_ns))
    return found


def _walk(location: Location, directory: str, above: list[tuple[int, int]]) -> tuple[list[File], Ignored]:
    """Images in a directory and those below it, where `above` are the directories that it lies in."""
    here = _identity(Path(location.path, directory))
    if here in above:
        ignored = Ignored()
        ignored.add("links to a folder above", directory)
        return [], ignored
    images, folders, ignored = _scan(location, directory, SUFFIXES)
    for folder in folders:
        below, left_out = _walk(location, folder, [here, *above])
        images += below
        ignored.update(left_out)
    return images, ignored


def _identity(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino


def _unknown(path: str, suffixes: tuple[str, ...]) -> str | None:
    """The reason for which a file of that name is left out, if it is none of those."""
    name = path.rpartition("/")[2]
    if name.startswith(".") or name in CLUTTER:
        return HIDDEN
    suffix = suffix_of(name)
    if suffix in suffixes:
        return None
    return f".{suffix} files" if suffix else "files without a suffix"


def suffix_of(name: str) -> str:
    """Suffix of a file's name, in lower case and without its dot."""
    return os.path.splitext(name)[1][1:].lower()


def _in_order(classes: Iterable[str]) -> list[str]:
    """Class folders in the order of their numbers."""
    names = sorted(classes)
    return sorted(names, key=int) if _are_numbers(names) else names


def _are_numbers(classes: list[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in classes)


def class_order(classes: list[str] | None) -> list[str]:
    """What number each class folder has, in a line, unless it is its name."""
    if classes is None or classes == [str(number) for number in range(len(classes))]:
        return []
    named = [f"{name} is class {number}" for number, name in enumerate(classes)]
    order = "as numbers" if _are_numbers(classes) else "in the order of their names"
    return [
        f"class folders are numbered {order}: {', '.join(named if len(named) < 5 else [*named[:3], '...', named[-1]])}"
    ]


def check_classes(location: Location, listing: Listing, labels: dict[str, NDArray[np.int64]], ignored: Ignored) -> None:
    """Every class has to be in every part."""
    known = np.unique(labels["train"]) if listing.classes is None else np.arange(len(listing.classes))
    for part, found in labels.items():
        missing = np.setdiff1d(known, found)
        if len(missing):
            name = missing[0] if listing.classes is None else listing.classes[missing[0]]
            raise InputError(
                f"{location}: {len(missing)} of {len(known)} classes have no image in the {part} set"
                f" ({listing.parts[part][0].path}, ...), such as {name}; {ignored}"
            )


def digest_of_listing(location: Location, listing: Listing) -> str:
    """A name for the index that follows from all it is made of."""
    place = location.filesystem.type_name, location.path
    found = hashlib.sha256(repr((place, listing.classes, str(listing.ignored))).encode())
    for part, files in listing.parts.items():
        for file in files:
            try:
                found.update(f"{part} {file.path}\0{file.size} {file.changed}\n".encode())
            except UnicodeEncodeError as error:
                raise InputError(f"{location}: a name that is not UTF-8: {file.path!a}") from error
    return found.hexdigest()[:16]
