"""Where the images of a dataset lie, and their labels: found once, and mapped into memory ever after.

Two layouts are known. In folders the first directory below a part is an image's class, also of images that lie deeper;
in shards (tar files, as WebDataset makes them) the number of the class stands beside the image. Below the location:

    train/<class>/<key>.JPEG              val/<class>/<key>.JPEG
    train-*.tar (or train/*.tar)          val-*.tar (or val/*.tar), with members <key>.jpg and <key>.cls

The second part may be called `validation` or `test` as well; the first of them that is there is read. Both parts have
the same layout and the same classes. A key may be there once a class.

Folders are numbered from 0 in the order of their names as text, as torchvision's ImageFolder numbers them; where all
names are numbers, in numeric order, so that folders 0, 1, ..., 10 are classes 0, 1, ..., 10. Links are followed.
Whatever is no image is left out and counted; `notes` returns the counts.
"""

import contextlib
import hashlib
import io
import os
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pyarrow.fs import FileSelector, FileType

from raymu import cache
from raymu.errors import InputError
from raymu.rgb import open_image, read_rgb
from raymu.storage import Location

JPEG = ("jpg", "jpeg")
SUFFIXES = (*JPEG, "png", "webp", "bmp", "gif", "tif", "tiff", "pbm", "pgm", "ppm", "pnm")
PARTS = {"train": ("train",), "test": ("val", "validation", "test")}  # the first that is there
CLUTTER = ("__MACOSX", "@eaDir", "lost+found")  # folders that systems make; they are treated as hidden
SHARDS = ("tar",)
HIDDEN = "hidden"
NOTES = "notes.json"
REASONS = 6  # that a note names
THREADS = 16  # where they wait for answers; at the headers of a local shard they would wait for each other
CONTENTS = 2**26  # bytes, which take a second
SAMPLE = 1024
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


class _File(NamedTuple):
    """A file: its path below the location, its size in bytes, and when it was changed, in ns."""

    path: str
    size: int
    changed: int


class _Image(NamedTuple):
    key: str
    label: int
    file: int
    offset: int
    length: int


class _Ignored:
    """Counts of what is left out, by reason, with the path of the first of each."""

    def __init__(self) -> None:
        self._counts, self._first = Counter[str](), dict[str, str]()

    def add(self, reason: str, path: str) -> None:
        self._counts[reason] += 1
        self._first.setdefault(reason, path)

    def update(self, other: "_Ignored") -> None:
        self._counts.update(other._counts)
        self._first = other._first | self._first

    def __str__(self) -> str:
        frequent = self._counts.most_common(REASONS)
        named = [f"{name}: {n} ({'such as ' if n > 1 else ''}{self._first[name]})" for name, n in frequent]
        others = self._counts.total() - sum(count for _, count in frequent)
        return f"left out: {'; '.join(named) or 'nothing'}" + (f"; others: {others}" if others else "")

    def __bool__(self) -> bool:
        return bool(self._counts)


class _Listing(NamedTuple):
    """What lies at a location in one layout.

    Attributes:
        parts: the files of each part, in the order of their paths: images, or shards.
        classes: the class folders, in the order of their numbers; None of shards.
        ignored: what is left out.
    """

    parts: dict[str, list[_File]]
    classes: list[str] | None
    ignored: _Ignored


def build(location: Location) -> Path:
    """Index what lies there, unless that is cached; return the directory that holds the index.

    Paths, sizes and times of all files say whether it is the same as before. Of shards the headers and labels are
    read, and of images the header, unless it is named as a JPEG, of which no mode is refused; those whose contents
    `digest` looks at are decoded.

    Raises:
        InputError: nothing that is known lies there, a file cannot be read, an image is empty or refused (see
            `raymu.rgb`), a label is missing, a key is there twice, or a class is missing in a part.
    """
    with _readable(str(location)):
        listing = _list(location)

    def fill(entry: Path) -> None:
        ignored, parts = _Ignored(), dict[str, Index]()
        ignored.update(listing.ignored)
        for part, files in listing.parts.items():
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
            for name, array in parts[part]._asdict().items():
                np.save(entry / f"{part}-{name}.npy", array, allow_pickle=False)
        _check_classes(location, listing, {part: index.labels for part, index in parts.items()}, ignored)
        _decode(location, parts)
        cache.save_json(entry / NOTES, [str(ignored)] * bool(ignored) + _order(listing.classes))

    return cache.once(directory(_digest(location, listing)), fill)


def notes(entry: Path) -> list[str]:
    """Lines for whoever uses the data of an index: what was left out, and which number each class folder has."""
    lines: list[str] = cache.load_json(entry / NOTES)
    return lines


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
    """The parts of an index, "train" and perhaps "test", mapped into memory."""
    return {
        part: Index(*(np.load(entry / f"{part}-{name}.npy", mmap_mode="r") for name in Index._fields))
        for part in PARTS
        if (entry / f"{part}-keys.npy").exists()
    }


# What lies there


def _list(location: Location) -> _Listing:
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
    if "test" in other.parts and "test" not in chosen.parts:
        raise InputError(
            f"{location}: the training set ({chosen.parts['train'][0].path}, ...) and the held-out set"
            f" ({other.parts['test'][0].path}, ...) are not of one layout; both have to be folders, or shards"
        )
    return chosen


def _shards(location: Location) -> _Listing:
    parts, ignored = dict[str, list[_File]](), _Ignored()
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
    return _Listing(parts, None, ignored)


def _folders(location: Location) -> _Listing:
    parts, classes, ignored = dict[str, list[_File]](), list[str](), _Ignored()
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
    return _Listing(parts, classes, ignored)


class _Directory(NamedTuple):
    """Files that are looked for in one directory, its folders (paths below the location), and what is neither."""

    files: list[_File]
    folders: list[str]
    ignored: _Ignored


def _scan(location: Location, directory: str, suffixes: tuple[str, ...]) -> _Directory:
    """A directory below the location, where files of these suffixes are looked for."""
    files, folders, ignored = found = _Directory([], [], _Ignored())
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
                files.append(_File(path, info.size, info.mtime_ns))
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
                files.append(_File(path, status.st_size, status.st_mtime_ns))
    return found


def _walk(location: Location, directory: str, above: list[tuple[int, int]]) -> tuple[list[_File], _Ignored]:
    """Images in a directory and those below it, where `above` are the directories that it lies in."""
    here = _identity(Path(location.path, directory))
    if here in above:
        ignored = _Ignored()
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
    suffix = _suffix(name)
    if suffix in suffixes:
        return None
    return f".{suffix} files" if suffix else "files without a suffix"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _in_order(classes: Iterable[str]) -> list[str]:
    """Class folders in the order of their numbers."""
    names = sorted(classes)
    return sorted(names, key=int) if _are_numbers(names) else names


def _are_numbers(classes: list[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in classes)


def _order(classes: list[str] | None) -> list[str]:
    """What number each class folder has, in a line, unless it is its name."""
    if classes is None or classes == [str(number) for number in range(len(classes))]:
        return []
    named = [f"{name} is class {number}" for number, name in enumerate(classes)]
    order = "as numbers" if _are_numbers(classes) else "in the order of their names"
    return [
        f"class folders are numbered {order}: {', '.join(named if len(named) < 5 else [*named[:3], '...', named[-1]])}"
    ]


def _check_classes(
    location: Location, listing: _Listing, labels: dict[str, NDArray[np.int64]], ignored: _Ignored
) -> None:
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


def _digest(location: Location, listing: _Listing) -> str:
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


# What is in it


def _read_folders(location: Location, files: list[_File], classes: list[str]) -> list[_Image]:
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
        list(pool.map(partial(_check_file, location), (file for file in files if _suffix(file.path) not in JPEG)))
    return images


def _check_file(location: Location, file: _File) -> None:
    with _open(location, file) as content:
        _check_image(content, str(location / file.path))


def _check_image(content: BinaryIO, shown: str) -> None:
    """Look at the header of an image."""
    try:
        open_image(content)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, ... where an image is damaged
        raise InputError(f"{shown} cannot be read: {error}") from error


def _read_shards(location: Location, files: list[_File]) -> tuple[list[_Image], _Ignored]:
    images, ignored = list[_Image](), _Ignored()
    with ThreadPoolExecutor(1 if location.local else THREADS) as pool:
        for found, left_out in pool.map(partial(_read_shard, location), range(len(files)), files):
            images += found
            ignored.update(left_out)
    return images, ignored


def _read_shard(location: Location, position: int, file: _File) -> tuple[list[_Image], _Ignored]:
    """A shard's samples. The bytes of its images are skipped, on object storage as far as that is faster."""
    shown, ignored = f"{location / file.path}", _Ignored()
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
                text = archive.extractfile(member).read()  # type: ignore[union-attr]
                if not text.strip().isdigit():
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
