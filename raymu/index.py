"""Where the images of a dataset lie, and their labels: found once, and mapped into memory ever after.

Two layouts are known. In folders the directory of an image is its class; in shards (tar files, as WebDataset makes
them) the number of the class stands beside the image. Below the location:

    train/<class>/<key>.JPEG              val/<class>/<key>.JPEG
    train-*.tar (or train/*.tar)          val-*.tar (or val/*.tar), with members <key>.jpg and <key>.cls

The second part may be called `validation` or `test` as well. Classes are numbered in the order of their names. A key
may be there once a class.
"""

import contextlib
import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyarrow.fs import FileSelector, FileType

from raymu import cache
from raymu.errors import InputError
from raymu.results.store import Location

SUFFIXES = ("jpg", "jpeg", "png", "webp")
PARTS = {"train": ("train",), "test": ("val", "validation", "test")}  # the first that is there
THREADS = 16  # where they wait for answers; at the headers of a local shard they would wait for each other
CONTENTS = 2**26  # bytes, which take a second
SAMPLE = 1024
READ_AHEAD = 2**23  # bytes; on object storage a request for each header would take longer than to read all


class Index(NamedTuple):
    """The N images of one part of a dataset.

    Attributes:
        files: the F files they lie in, below the location (bytes, F): as many as images, or shards.
        keys: their keys (bytes, N).
        ids: a number for each (uint64, N) that follows from its class and key, so that it is the same in both layouts.
        labels: int64 (N,).
        file: the position of each one's file (int64, N).
        offsets, lengths: where its bytes are in the file (int64, N).
    """

    files: NDArray[np.bytes_]
    keys: NDArray[np.bytes_]
    ids: NDArray[np.uint64]
    labels: NDArray[np.int64]
    file: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]


class _File(NamedTuple):
    """A file or directory: its path below the location, its size in bytes, and when it was changed, in ns."""

    path: str
    size: int | None
    changed: int | None
    is_directory: bool


class _Image(NamedTuple):
    key: str
    label: int
    file: int
    offset: int
    length: int


_Listing = dict[str, list[_File]]  # of each part, in order of their paths


def build(location: Location) -> Path:
    """Index what lies there, unless that is cached; return the directory that holds the index.

    Paths, sizes and times of all files say whether it is the same as before. Of shards the headers and labels are
    read, of folders nothing.

    Raises:
        InputError: nothing that is known lies there, a file cannot be read, a label is missing, or a key is there
            twice.
    """
    with _readable(str(location)):
        listing = _shards(location) or _images(location)
    if "train" not in listing:
        raise InputError(f"{location} has neither images train/<class>/*.JPEG nor shards train-*.tar")

    def fill(entry: Path) -> None:
        classes = {name: label for label, name in enumerate(sorted({_class_of(file) for file in listing["train"]}))}
        for part, files in listing.items():
            if files[0].path.endswith(".tar"):
                with ThreadPoolExecutor(1 if location.local else THREADS) as pool:
                    read = pool.map(partial(_read_shard, location), range(len(files)), files)
                    images = [image for found in read for image in found]
                if not images:
                    raise InputError(
                        f"the {part} shards in {location}, such as {files[0].path}, hold no image: none of their"
                        f" members is named <key>.{' or .'.join(SUFFIXES)}, with its class number as <key>.cls"
                    )
            else:
                images = [_read_name(location, classes, position, file) for position, file in enumerate(files)]
            for name, array in _arrays(location, files, images)._asdict().items():
                np.save(entry / f"{part}-{name}.npy", array, allow_pickle=False)

    return cache.once(directory(_digest(location, listing)), fill)


def directory(name: str) -> Path:
    """The directory of the index of that name."""
    return cache.root() / "indices" / name


def digest(location: Location, parts: Mapping[str, Index]) -> str:
    """12 hex digits over the images of all parts, wherever and in whichever layout they lie: their classes, keys and
    sizes, and what they hold: all of them, or where that is more than CONTENTS bytes SAMPLE of them.

    Raises:
        InputError: an image cannot be read.
    """
    total = sum(int(index.lengths.sum()) for index in parts.values())
    found = hashlib.sha256()
    for part, index in parts.items():
        order = np.argsort(index.ids)
        for array in (index.ids, index.labels, index.lengths):
            found.update(f"{part} {len(array)}".encode() + array[order].tobytes())
        chosen = order if total <= CONTENTS else order[:: -(-len(order) // SAMPLE)]
        rows = chosen[np.argsort(index.file[chosen], kind="stable")]
        by_file = np.split(rows, np.flatnonzero(np.diff(index.file[rows])) + 1)
        with ThreadPoolExecutor(THREADS) as pool:
            hashes = dict(pair for pairs in pool.map(partial(_hashes, location, index), by_file) for pair in pairs)
        found.update(b"".join(hashes[row] for row in chosen.tolist()))
    return found.hexdigest()[:12]


def _hashes(location: Location, index: Index, rows: NDArray[np.intp]) -> list[tuple[int, bytes]]:
    """The SHA-256 of each of some images of one file, by its row."""
    path = f"{location.path}/{index.files[index.file[rows[0]]].decode()}"
    with _readable(path), location.filesystem.open_input_file(path) as file:
        return [
            (row, hashlib.sha256(file.read_at(int(index.lengths[row]), int(index.offsets[row]))).digest())
            for row in rows.tolist()
        ]


def load(entry: Path) -> dict[str, Index]:
    """The parts of an index, "train" and perhaps "test", mapped into memory."""
    return {
        part: Index(*(np.load(entry / f"{part}-{name}.npy", mmap_mode="r") for name in Index._fields))
        for part in PARTS
        if (entry / f"{part}-keys.npy").exists()
    }


def _shards(location: Location) -> _Listing:
    top = _list(location)

    def of(name: str) -> list[_File]:
        inside = [file for file in _list(location, name) if file.path.endswith(".tar")]
        return inside + [file for file in top if re.fullmatch(rf"(.*-)?{name}-.*\.tar", file.path)]

    return _parts({name: of(name) for names in PARTS.values() for name in names})


def _images(location: Location) -> _Listing:
    if not location.local:
        raise InputError(f"{location} has no shards train-*.tar; from object storage nothing else is read")

    def of(directory: _File) -> list[_File]:
        names = ((file, file.path.rpartition("/")[2]) for file in _list(location, directory.path))
        return [file for file, name in names if _suffix(name) in SUFFIXES and not name.startswith(".")]

    with ThreadPoolExecutor(THREADS) as pool:
        return _parts(
            {
                name: [file for found in pool.map(of, _directories(location, name)) for file in found]
                for names in PARTS.values()
                for name in names
            }
        )


def _parts(found: _Listing) -> _Listing:
    chosen = {part: next(filter(None, (found[name] for name in names)), []) for part, names in PARTS.items()}
    return {part: sorted(files) for part, files in chosen.items() if files}


def _list(location: Location, directory: str = "") -> list[_File]:
    """What lies in a directory below the location; nothing where there is none."""
    where = f"{location.path}/{directory}".rstrip("/")
    infos = location.filesystem.get_file_info(FileSelector(where, allow_not_found=True))
    return [
        _File(info.path[len(location.path) :].lstrip("/"), info.size, info.mtime_ns, info.type == FileType.Directory)
        for info in infos
    ]


def _directories(location: Location, directory: str) -> list[_File]:
    return [file for file in _list(location, directory) if file.is_directory]


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _class_of(file: _File) -> str:
    return file.path.split("/")[-2] if "/" in file.path else ""


def _digest(location: Location, listing: _Listing) -> str:
    found = hashlib.sha256(repr((location.filesystem.type_name, location.path)).encode())
    for part, files in listing.items():
        for file in files:
            found.update(repr((part, *file)).encode())
    return found.hexdigest()[:16]


def _read_name(location: Location, classes: dict[str, int], position: int, file: _File) -> _Image:
    name = _class_of(file)
    if name not in classes:
        raise InputError(f"{location / file.path}: there is no class {name} in train")
    key = file.path.rpartition("/")[2].rpartition(".")[0]
    return _Image(key, classes[name], position, 0, file.size or 0)


def _read_shard(location: Location, position: int, file: _File) -> list[_Image]:
    """A shard's samples. The bytes of its images are skipped, on object storage as far as that is faster."""
    shown = f"{location / file.path}"
    places: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with _readable(shown), _open(location, file) as content, tarfile.open(fileobj=content, mode="r:") as archive:
        for member in archive:
            key, _, suffix = member.name.rpartition("/")[2].partition(".")
            kind = suffix.lower()
            if not member.isfile() or kind not in (*SUFFIXES, "cls"):
                continue
            if key in (labels if kind == "cls" else places):
                raise InputError(f"{shown}: {key} is there twice")
            if kind == "cls":
                text = archive.extractfile(member).read()  # type: ignore[union-attr]
                if not text.strip().isdigit():
                    raise InputError(f"{shown}: {member.name} is no class number, but {text[:20]!r}")
                labels[key] = int(text)
            else:
                places[key] = member.offset_data, member.size
        content.seek(archive.offset)
        if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise InputError(f"{shown} is cut off or damaged at byte {archive.offset}")
    for key in places.keys() ^ labels.keys():
        raise InputError(f"{shown}: {key} has no {'label (.cls)' if key in places else 'image'}")
    return [_Image(key, labels[key], position, *place) for key, place in places.items()]


@contextlib.contextmanager
def _open(location: Location, file: _File) -> Iterator[BinaryIO]:
    path = f"{location.path}/{file.path}"
    if location.local:
        with open(path, "rb") as content:
            yield content
    else:
        with io.BufferedReader(location.filesystem.open_input_file(path), READ_AHEAD) as content:
            yield content


@contextlib.contextmanager
def _readable(shown: str) -> Iterator[None]:
    """Turn what keeps a file from being read into an InputError."""
    try:
        yield
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"cannot read {shown}: {error}") from error


def _arrays(location: Location, files: list[_File], images: list[_Image]) -> Index:
    keys, labels, file, offsets, lengths = (list(column) for column in zip(*images, strict=True))
    names = (f"{label}/{key}".encode() for label, key in zip(labels, keys, strict=True))
    ids = np.array([int.from_bytes(hashlib.sha256(name).digest()[:8]) for name in names], np.uint64)
    first = np.unique(ids, return_index=True)[1]
    if len(first) < len(ids):
        twice = np.setdiff1d(np.arange(len(ids)), first)[0]
        places = [str(location / files[file[row]].path) for row in (ids == ids[twice]).nonzero()[0]]
        raise InputError(f"class {labels[twice]} has the key {keys[twice]} twice: in {' and in '.join(places)}")
    return Index(
        files=np.array([one.path.encode() for one in files]),
        keys=np.array([key.encode() for key in keys]),
        ids=ids,
        labels=np.array(labels, np.int64),
        file=np.array(file, np.int64),
        offsets=np.array(offsets, np.int64),
        lengths=np.array(lengths, np.int64),
    )
