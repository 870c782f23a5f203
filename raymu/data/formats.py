"""Datasets of a user's own files, as the table [data] of a scenario file describes them."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from raymu.data import npz, parquet
from raymu.data.arrays import ArrayDataset
from raymu.data.dataset import Dataset
from raymu.data.folders import EncodedDataset
from raymu.errors import InputError
from raymu.storage import locate
from raymu.values import Bounds, checked, expanded, unknown

FORMATS = ("folders", "shards", "npz", "parquet")
FIELDS = ("format", "path", "classes")
OF_ARRAYS = ("mean", "std")
OF_PHOTOGRAPHS = ("size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
WORDS = {"interpolation": ("bicubic", "bilinear", "nearest"), "crop_mode": ("center", "squash", "border")}
COLOURS = 3  # channels of a photograph
PIXEL = Bounds(0, 1)  # what one can be, divided by 255


def dataset(
    name: str, table: Mapping[str, Any], directory: Path, transform: Callable[[], Mapping[str, Any]]
) -> Dataset:
    """Dataset that a table describes.

    Args:
        name: what stands in rows.
        table: `format`, `path`, perhaps `classes`, their names in order, and what is seen otherwise than the
            architecture says: OF_ARRAYS or OF_PHOTOGRAPHS.
        directory: where relative paths begin.
        transform: how the architecture wants its images (see Architecture).

    Raises:
        InputError: a field that there is not, a value that cannot work, or files that are not there.
    """
    kind = table.get("format")
    if kind not in FORMATS:
        raise InputError(unknown("format of [data]", kind, list(FORMATS)))
    where = checked("[data] path", table.get("path"), str)
    where = where if "://" in where else str((directory / expanded(where)).absolute())
    names = checked("[data] classes", table.get("classes", ()), tuple[str, ...])
    seen = _preprocessing({field: table[field] for field in table if field not in FIELDS}, kind)
    if kind == "npz":
        return _arrays(name, Path(where), names, {**transform(), **seen})
    if kind == "parquet":
        shards, found = parquet.shards_of(Path(where))
        where, names = str(shards), names or found
    return _encoded(name, where, names, seen)


def _preprocessing(fields: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Fields that replace those of the architecture's transform, by timm's names."""
    known, seen = OF_ARRAYS if kind == "npz" else OF_PHOTOGRAPHS, dict[str, Any]()
    for field, value in fields.items():
        what = f"[data] {field}"
        if field not in known:
            raise InputError(unknown("field of [data]", field, [*FIELDS, *known]))
        if field in ("mean", "std"):
            seen[field] = checked(what, value, tuple[float, ...])
            if kind != "npz":
                seen[field] = _of_channels(field, seen[field], COLOURS)
            if any(one not in PIXEL for one in seen[field]) or (field == "std" and 0 in seen[field]):
                raise InputError(f"{what} is of pixels from 0 to 1, not {list(seen[field])}: divide by 255")
        elif field == "size":
            side = checked(what, value, int, Bounds(1))
            seen["input_size"] = (COLOURS, side, side)
        elif field == "crop_pct":
            seen[field] = checked(what, value, float, Bounds(0, 1, above=True))
        elif value in WORDS[field]:
            seen[field] = value
        else:
            raise InputError(unknown(what, value, list(WORDS[field])))
    return seen


def _encoded(name: str, where: str, names: tuple[str, ...], seen: Mapping[str, Any]) -> Dataset:
    from raymu.data import index

    entry = index.build(locate(where))
    names = names or tuple(index.classes(entry))
    classes = len(names) or int(index.load(entry)["train"].labels.max()) + 1
    return EncodedDataset(name, classes, location=where, preprocessing=tuple(sorted(seen.items())), class_names=names)


def _arrays(name: str, path: Path, names: tuple[str, ...], seen: Mapping[str, Any]) -> Dataset:
    read = partial(npz.read, str(path), npz.stamp(path))
    found = npz.describe(path)
    names = names or found.class_names
    mean, std = (_of_channels(field, seen[field], found.channels) for field in ("mean", "std"))
    classes = len(names) or found.classes
    return ArrayDataset(name, classes, found.channels, found.size, mean, std, read, files=False, class_names=names)


def _of_channels(field: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Mean or std, a number a channel; of grey images the mean over the colours, as timm has it."""
    if channels == 1 and len(values) == 3:
        return (sum(values) / 3,)
    if len(values) != channels:
        raise InputError(f"[data] {field} has {len(values)} numbers, the images have {channels} channels")
    return tuple(values)
