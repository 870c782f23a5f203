"""Images in parquet files, as the Hugging Face hub has them, copied into shards once.

Below a directory lie `train-*.parquet`, perhaps `validation-*` and `test-*`, or folders of these names. One column
holds encoded images (bytes, or a struct with `bytes`), another one labels.
"""

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from raymu import cache
from raymu.data.dataset import PARTS
from raymu.data.npz import stamp
from raymu.errors import InputError
from raymu.values import content_hash

PER_SHARD = 2**28  # bytes
ROWS = 256  # read at once


class _Columns(NamedTuple):
    image: str
    label: str
    class_names: tuple[str, ...]


def shards_of(directory: Path) -> tuple[Path, tuple[str, ...]]:
    """Directory in the cache with the same images in shards, and the names of the classes; none: the files do not say.

    Raises:
        InputError: there are no such files, or they hold something else.
    """
    import pyarrow
    from pyarrow import parquet

    files = {part: sorted(_files(directory, names)) for part, names in PARTS.items()}
    if not files["train"]:
        raise InputError(f"{directory} has no train-*.parquet")
    stamps = [(str(path), *stamp(path)) for found in files.values() for path in found]

    def build(entry: Path) -> None:
        for part, found in files.items():
            _write(entry, part, (row for path in found for row in _rows(parquet.ParquetFile(path), columns, path)))

    try:
        columns = _columns(parquet.read_schema(files["train"][0]), files["train"][0])
        return cache.once(cache.root() / "shards" / f"parquet-{content_hash(stamps)}", build), columns.class_names
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{directory} cannot be read: {error}") from error


def _files(directory: Path, names: Iterable[str]) -> Iterator[Path]:
    """Files of one part."""
    part = re.compile(rf"(?:^|[/_-])(?:{'|'.join(names)})[/._-]")
    for path in directory.rglob("*.parquet"):
        if part.search(path.relative_to(directory).as_posix()):
            yield path


def _columns(schema: Any, path: Path) -> _Columns:
    """Columns of images and labels, by what the hub says of them, or else by their names."""
    said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})

    def one(kind: str, *names: str) -> str:
        found = [name for name in schema.names if said.get(name, {}).get("_type") == kind]
        found = found or [name for name in schema.names if name in names]
        if len(found) != 1:
            raise InputError(f"{path} needs one column of images and one of labels, not {', '.join(schema.names)}")
        return str(found[0])

    image, label = one("Image", "image", "img"), one("ClassLabel", "label", "labels")
    return _Columns(image, label, tuple(said.get(label, {}).get("names") or ()))


def _rows(file: Any, columns: _Columns, path: Path) -> Iterator[tuple[bytes, int]]:
    """Encoded images and their labels."""
    for batch in file.iter_batches(ROWS, columns=[columns.image, columns.label]):
        for row in batch.to_pylist():
            image, label = row[columns.image], row[columns.label]
            content = image.get("bytes") if isinstance(image, dict) else image
            if not isinstance(content, bytes) or not isinstance(label, int) or label < 0:
                raise InputError(f"{path} has an image without its bytes, or a label that is no class: {label!r}")
            yield content, label


def _write(entry: Path, part: str, rows: Iterable[tuple[bytes, int]]) -> None:
    """Write images and labels into shards of a part."""
    with contextlib.ExitStack() as opened:
        written, shard = PER_SHARD, 0
        for number, (content, label) in enumerate(rows):
            if written >= PER_SHARD:
                opened.close()
                archive = opened.enter_context(tarfile.open(entry / f"{part}-{shard:05d}.tar", "w"))
                written, shard = 0, shard + 1
            suffix = "png" if content.startswith(b"\x89PNG") else "webp" if content[8:12] == b"WEBP" else "jpg"
            for name, data in ((f"{number:08d}.{suffix}", content), (f"{number:08d}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                written += len(data)
