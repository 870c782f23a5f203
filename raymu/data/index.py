"""An index of encoded images and their labels: built once, and mapped into memory ever after."""

import contextlib
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from raymu import cache, source
from raymu.data.dataset import MOST_CLASSES, PARTS
from raymu.data.layout import (
    HIDDEN,
    JPEG,
    SUFFIXES,
    THREADS,
    File,
    Ignored,
    Listing,
    check_classes,
    class_order,
    digest_of_listing,
    list_images,
    suffix_of,
)
from raymu.data.rgb import open_image, read_rgb
from raymu.errors import InputError
from raymu.storage import Location
from raymu.values import content_hash

NOTES = "notes.json"
CLASSES = "classes.json"
READERS = ("raymu.data.index", "raymu.data.layout", "raymu.data.rgb")  # code that an index follows from
CONTENTS = 2**26  # bytes, which take a second
SAMPLE = 1024
LABEL_BYTES = 32  # of a .cls, at most
READ_AHEAD = 2**23  # bytes; on object storage a request for each header would take longer than to read all
Result = TypeVar("Result")


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


class _Image(NamedTuple):
    key: str
    label: int
    file: int
    offset: int
    length: int


def build(location: Location) -> Path:
    """Index what lies there, unless that is cached; return the directory that holds the index.

    Paths, sizes and times of all files say whether it is the same as before. Of shards the headers and labels are
    read, and of images the header, unless it is named as a JPEG, of which no mode is refused; those whose contents
    `digest` looks at are decoded.

    Raises:
        InputError: nothing that is known lies there, a file cannot be read, an image is empty or refused (see
            `raymu.data.rgb`), a label is missing, a key is there twice, or a class is missing in a part.
    """
    with _readable(str(location)):
        listing = list_images(location)

    def fill(entry: Path) -> None:
        ignored, parts = Ignored(), dict[str, Index]()
        ignored.update(listing.ignored)
        for part, files in listing.parts.items():
            if part == "test" and "val" in parts and not _is_labelled(location, listing, files):
                ignored.add("test sets without labels, or of other classes", files[0].path)
                continue
            if listing.classes is None:
                images, left_out = _read_shards(location, files)
                ignored.update(left_out)
            else:
                images = _read_folders(location, files, listing.classes)
            if not images:
                raise InputError(
                    f"the {part} shards in {location}, such as {files[0].path}, hold no image: none of their members"
                    f" is named <key>.{' or .'.join(SUFFIXES)}, with its class number as <key>.cls; {ignored}"
                )
            parts[part] = _arrays(location, files, images)
        check_classes(location, listing, {part: index.labels for part, index in parts.items()}, ignored)
        _decode(location, parts)
        if "test" not in parts and "val" in parts:
            parts["test"] = parts.pop("val")
        for part, index in parts.items():
            for name, array in index._asdict().items():
                cache.save_array(entry / f"{part}-{name}.npy", array)
        cache.save_json(entry / CLASSES, listing.classes or [])
        cache.save_json(entry / NOTES, [str(ignored)] * bool(ignored) + class_order(listing.classes))

    made_of = [digest_of_listing(location, listing), source.digest(build, within=READERS)]
    return cache.once(directory(content_hash(made_of)), fill)


def notes(entry: Path) -> list[str]:
    """Lines for whoever uses the data of an index: what was left out, and which number each class folder has."""
    lines: list[str] = cache.load_json(entry / NOTES)
    return lines


def classes(entry: Path) -> list[str]:
    """Names of the class folders of an index, in the order of their numbers; empty of shards."""
    names: list[str] = cache.load_json(entry / CLASSES)
    return names


def directory(name: str) -> Path:
    """The directory of the index of that name."""
    return cache.root() / "indices" / name


def digest(location: Location, parts: Mapping[str, Index]) -> str:
    """12 hex digits over the images of all parts, wherever and in whichever layout they lie: their classes, keys and
    sizes, and what they hold: all of them, or where that is more than CONTENTS bytes SAMPLE of them.

    Raises:
        InputError: an image cannot be read.
    """
    found = hashlib.sha256()
    for part, index in parts.items():
        order = np.argsort(index.ids)
        chosen = _looked_at(order, parts)
        for array in (index.ids, index.labels, index.lengths):
            found.update(f"{part} {len(array)}".encode() + array[order].tobytes())
        hashes = _each(location, index, chosen, lambda content: hashlib.sha256(content).digest())
        found.update(b"".join(hashes[row] for row in chosen.tolist()))
    return found.hexdigest()[:12]


def _looked_at(order: NDArray[np.intp], parts: Mapping[str, Index]) -> NDArray[np.intp]:
    """Rows of the images whose contents are looked at, among all rows of one of the parts, ordered by their ids."""
    total = sum(int(index.lengths.sum()) for index in parts.values())
    return order if total <= CONTENTS else order[:: -(-len(order) // SAMPLE)]


def _each(
    location: Location, index: Index, rows: NDArray[np.intp], look: Callable[[bytes], Result]
) -> dict[int, Result]:
    """Results of a function on the contents of some images, by row."""
    rows = rows[np.argsort(index.file[rows], kind="stable")]

    def in_file(rows: NDArray[np.intp]) -> list[tuple[int, Result]]:
        path = f"{location.path}/{index.files[index.file[rows[0]]].decode()}"
        with _readable(path), location.filesystem.open_input_file(path) as file:
            contents = ((row, file.read_at(int(index.lengths[row]), int(index.offsets[row]))) for row in rows.tolist())
            return [(row, look(content)) for row, content in contents]

    with ThreadPoolExecutor(THREADS) as pool:
        by_file = np.split(rows, np.flatnonzero(np.diff(index.file[rows])) + 1)
        return dict(pair for pairs in pool.map(in_file, by_file) for pair in pairs)


def _decode(location: Location, parts: Mapping[str, Index]) -> None:
    """Decode the images whose contents are looked at."""
    for index in parts.values():
        errors = _each(location, index, _looked_at(np.argsort(index.ids), parts), _error)
        if found := next(((row, error) for row, error in errors.items() if error), None):
            row, error = found
            name, key = index.files[index.file[row]].decode(), index.keys[row].decode()
            shown = f"{location / name}" + ("" if Path(name).stem == key.rpartition("/")[2] else f": {key}")
            raise InputError(f"{shown} cannot be read: {error}")


def _error(content: bytes) -> str:
    """Why an encoded image cannot be decoded; empty if it can."""
    try:
        read_rgb(io.BytesIO(content))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, ... where an image is damaged
        return str(error)
    return ""


def load(entry: Path) -> dict[str, Index]:
    """The parts of an index, "train" and perhaps "val" and "test", mapped into memory."""
    return {
        part: Index(*(np.load(entry / f"{part}-{name}.npy", mmap_mode="r") for name in Index._fields))
        for part in PARTS
        if (entry / f"{part}-keys.npy").exists()
    }


def _read_folders(location: Location, files: list[File], classes: list[str]) -> list[_Image]:
    numbers = {name: number for number, name in enumerate(classes)}
    images = []
    for position, file in enumerate(files):
        _, name, key = file.path.split("/", 2)
        if name not in numbers:
            raise InputError(f"{location / file.path}: there is no class {name} in train")
        images.append(_Image(key.rpartition(".")[0], numbers[name], position, 0, file.size))
    empty = [file.path for file in files if not file.size]
    if empty:
        raise InputError(f"{location}: empty image files: {len(empty)}, such as {empty[0]}; was it copied in full?")
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(partial(_check_file, location), (file for file in files if suffix_of(file.path) not in JPEG)))
    return images


def _check_file(location: Location, file: File) -> None:
    with _open(location, file) as content:
        _check_image(content, str(location / file.path))


def _check_image(content: BinaryIO, shown: str) -> None:
    """Look at the header of an image."""
    try:
        open_image(content)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, ... where an image is damaged
        raise InputError(f"{shown} cannot be read: {error}") from error


def _read_shards(location: Location, files: list[File]) -> tuple[list[_Image], Ignored]:
    images, ignored = list[_Image](), Ignored()
    with ThreadPoolExecutor(1 if location.local else THREADS) as pool:
        for found, left_out in pool.map(partial(_read_shard, location), range(len(files)), files):
            images += found
            ignored.update(left_out)
    return images, ignored


def _is_labelled(location: Location, listing: Listing, files: list[File]) -> bool:
    """Whether a part has class folders of the training set, or its first shard a label."""
    if listing.classes is not None:
        return not {file.path.split("/", 2)[1] for file in files}.isdisjoint(listing.classes)
    try:
        return _has_labels(location, files[0])
    except InputError:
        return False


def _has_labels(location: Location, file: File) -> bool:
    with (
        _readable(f"{location / file.path}"),
        _open(location, file) as content,
        tarfile.open(fileobj=content, mode="r:") as shard,
    ):
        return any(member.name.lower().endswith(".cls") for member in shard)


def _read_shard(location: Location, position: int, file: File) -> tuple[list[_Image], Ignored]:
    """A shard's samples. The bytes of its images are skipped, on object storage as far as that is faster."""
    shown, ignored = f"{location / file.path}", Ignored()
    places: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with _readable(shown), _open(location, file) as content, tarfile.open(fileobj=content, mode="r:") as archive:
        for member in archive:
            key, _, suffix = member.name.rpartition("/")[2].partition(".")
            kind = suffix.lower()
            if member.isdir():
                continue
            if not key or not member.isfile() or kind not in (*SUFFIXES, "cls"):
                reason = f".{kind} members" if member.isfile() else "members that are no files"
                ignored.add(reason if key else HIDDEN, f"{file.path}/{member.name}")
                continue
            if key in (labels if kind == "cls" else places):
                raise InputError(f"{shown}: {key} is there twice")
            if kind == "cls":
                text = archive.extractfile(member).read(LABEL_BYTES)  # type: ignore[union-attr]
                if not text.strip().isdigit() or member.size > LABEL_BYTES or int(text) >= MOST_CLASSES:
                    raise InputError(f"{shown}: {member.name} is no class number, but {text[:20]!r}")
                labels[key] = int(text)
                continue
            if not member.size:
                raise InputError(f"{shown}: {member.name} is empty")
            if kind not in JPEG:
                _check_image(archive.extractfile(member), f"{shown}: {member.name}")  # type: ignore[arg-type]
            places[key] = member.offset_data, member.size
        content.seek(archive.offset)
        if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise InputError(f"{shown} is cut off or damaged at byte {archive.offset}")
    for key in places.keys() ^ labels.keys():
        missing = "label (.cls)" if key in places else "image"
        advice = "" if labels else "; the tar of one class has to be unpacked into train/<class>"
        raise InputError(f"{shown}: {key} has no {missing}{advice}")
    return [_Image(key, labels[key], position, *place) for key, place in places.items()], ignored


@contextlib.contextmanager
def _open(location: Location, file: File) -> Iterator[BinaryIO]:
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


def _arrays(location: Location, files: list[File], images: list[_Image]) -> Index:
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
