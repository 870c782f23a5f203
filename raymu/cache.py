"""The cache of what is computed once (datasets, pretrained weights, references, saliency), and its mirror in a storage.

Everything below `root()` is derived and may be deleted at any time. An entry is a directory that appears in one
atomic rename, so nobody ever reads half of one, and a file lock keeps two processes from building the same entry. It
holds its name and a hash of each of its files: one that was damaged since, or stands in another's place, is built anew.

A sweep mirrors its entries to the storage. Other nodes and later clusters copy from there what they miss, and what they
build themselves is mirrored as well. In the mirror an entry is a directory with one version of it and the file CURRENT
that names this version: it is written last and in one step, so that a reader never meets half an entry.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from raymu.errors import InputError
from raymu.storage import Location, copy_directory, insist, locate, read_if_there, write_bytes
from raymu.values import expanded

VERSION = "v4"  # raise it when the meaning of anything below changes
HASHES = "hashes.json"
ENTRY = "entry"  # its name, among the hashes
CURRENT = "current"  # in the mirror: name of the version that counts


mirror: Location | None = None  # of the sweep that this process works for
_mirrored: set[str] = set()  # names of entries that the mirror has, as far as this process knows


def base() -> Path:
    """`$RAYMU_CACHE`, or `~/.cache/raymu`."""
    given = os.environ.get("RAYMU_CACHE")
    try:
        return expanded(given or "~/.cache/raymu").absolute()
    except InputError as error:
        raise InputError(str(error) if given else "there is no home directory: RAYMU_CACHE names the cache") from error


def root() -> Path:
    """The directory of this version's cache."""
    return base() / VERSION


def once(entry: Path, build: Callable[[Path], None]) -> Path:
    """Return the directory `entry`; where it is missing or damaged `build` fills it first, unless the mirror has it.

    Args:
        entry: the directory's final path.
        build: called with an empty temporary directory to fill. If it raises, nothing is kept.

    Raises:
        OSError: the mirror cannot be read or written.
    """
    name, damaged = _name(entry), False

    def fill(unfinished: Path) -> None:
        nonlocal damaged
        if mirror is not None and name is not None:
            _mirrored.discard(name)
            if _fetch(mirror / name, unfinished):
                if is_as_built(unfinished, name):
                    _mirrored.add(name)
                    return
                damaged = True
                shutil.rmtree(unfinished)
                unfinished.mkdir()
        build(unfinished)
        save_json(unfinished / HASHES, _contents(unfinished, name))

    if not is_whole(entry):
        atomically(entry, fill, is_whole)
    if mirror is not None and name is not None and name not in _mirrored:
        if damaged or _version(mirror / name) is None:
            _give(entry, mirror / name)
        _mirrored.add(name)
    return entry


def _version(mirrored: Location) -> str | None:
    """Name of the version of an entry that the mirror has; None where it has none."""
    return insist("read", mirrored, lambda: read_if_there(mirrored, CURRENT))


def _fetch(mirrored: Location, directory: Path) -> bool:
    """Fill an empty directory with the files of a mirrored entry; return whether there is one."""
    version = _version(mirrored)
    if version is None:
        return False
    copy_directory(mirrored / version, locate(directory))  # the disk here may be full: waiting would not help
    return True


def _give(entry: Path, mirrored: Location) -> None:
    """Mirror an entry, in the place of what is there."""
    before, version = _version(mirrored), uuid.uuid4().hex
    insist("write to", mirrored, lambda: copy_directory(locate(entry), mirrored / version))
    insist("write to", mirrored, lambda: write_bytes(mirrored, CURRENT, version.encode()))
    if before is not None:
        with contextlib.suppress(OSError):  # a reader may still be at it
            mirrored.filesystem.delete_dir((mirrored / before).path)


def atomically(entry: Path, build: Callable[[Path], None], is_there: Callable[[Path], bool] = Path.exists) -> Path:
    """`once` without hashes and without mirror, for what is large and comes from elsewhere."""
    if is_there(entry):
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_name(f".{entry.name}.lock")):
        if not is_there(entry):
            unfinished = entry.with_name(f".{entry.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
            unfinished.mkdir()
            try:
                build(unfinished)
            except BaseException as error:
                shutil.rmtree(unfinished, ignore_errors=True)  # on a full disk others need the room
                if isinstance(error, OSError) and error.errno and error.filename is None:
                    error.filename = str(unfinished)
                raise
            shutil.rmtree(entry, ignore_errors=True)  # damaged
            os.replace(unfinished, entry)
    return entry


def find(entry: Path) -> bool:
    """Whether the entry is there, or could be had from the mirror."""
    try:
        once(entry, _missing)
    except LookupError:
        return False
    return True


def _missing(entry: Path) -> None:
    raise LookupError


def is_whole(entry: Path) -> bool:
    """Whether the entry is there, as it was built. A process looks once at the content of each."""
    try:
        return _is_whole(entry, (entry / HASHES).stat().st_mtime_ns)
    except OSError:
        return False


@functools.cache
def _is_whole(entry: Path, built_ns: int) -> bool:
    return is_as_built(entry, _name(entry))


def is_as_built(entry: Path, name: str | None) -> bool:
    """Whether the files of a directory are as they were built for the entry of that name, looked at anew."""
    try:
        return bool(_contents(entry, name) == load_json(entry / HASHES))
    except (FileNotFoundError, ValueError):
        return False


def _name(entry: Path) -> str | None:
    """Name of an entry, the same on every node: its path below `root()`. None for an entry that lies elsewhere."""
    return str(entry.relative_to(root())) if entry.is_relative_to(root()) else None


def _contents(entry: Path, name: str | None) -> dict[str, str | None]:
    """The entry's name, and the SHA-256 of every file but those hashes themselves, by the file's."""
    found: dict[str, str | None] = {ENTRY: name}
    for path in sorted(entry.iterdir()):
        if path.name != HASHES:
            found[path.name] = hash_of(path)
    return found


def hash_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors (no pickle). Those that share memory, as tied weights do, are written one by one."""
    written, taken = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        written[name] = tensor.clone() if place in taken else tensor
        taken.add(place)
    path.write_bytes(save(written))  # save_file raises no OSError, and lets no other user read


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as a file of NumPy's (no pickle)."""
    try:
        np.save(path, array, allow_pickle=False)
    except OSError as error:
        if error.errno is None:  # NumPy's own, where the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def load_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """Read a safetensors file; on the CPU its pages are memory-mapped."""
    return load_file(path, device=str(device))


def save_json(path: Path, content: Any) -> None:
    """Write JSON a person can read."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def load_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())
