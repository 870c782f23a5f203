"""Datasets of encoded images, in folders or shards, of which an index is mapped (see `raymu.data.index`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymu import cache, source
from raymu.data.dataset import Dataset, Format, Labelled, Transform, write_json
from raymu.errors import InputError
from raymu.values import content_hash

LOCATION = "location.json"
locations: dict[str, dict[str, str]] = {}  # content of LOCATION by the entry's name, as a sweep's driver says


@dataclass(frozen=True)
class EncodedDataset(Dataset):
    """Colour images that stay encoded, as a folder or as shards (see `raymu.data.index`), in timm's format for the
    scenario's architecture. The cache remembers where they are.

    Attributes:
        location: where they are: a directory or URI; empty: where `--data-dir` says, or where they were last.
        preprocessing: what is seen otherwise than the architecture says, in timm's words: (("crop_pct", 1.0),).
    """

    channels: int = 3
    location: str = ""
    preprocessing: tuple[tuple[str, Any], ...] = ()

    def _seen(self, transform: Transform) -> dict[str, Any]:
        """How an image becomes a network's input (see Architecture)."""
        return {**transform(), **dict(self.preprocessing)}

    def format(self, transform: Transform) -> Format:
        """See Dataset."""
        known = self._seen(transform)
        return Format(known["input_size"], known["mean"], known["std"])

    def reader(self, transform: Transform) -> str:
        """See Dataset."""
        known = self._seen(transform)
        return content_hash([super().reader(transform), {name: str(known[name]) for name in sorted(known)}])

    def prepare(self, directory: Path | str | None, asked: str) -> str:
        """See Dataset. What lies there is looked at anew."""
        from raymu.data import index
        from raymu.data.decoding import decode
        from raymu.storage import locate

        if directory is None:
            directory = self.location or self._location(asked)
            if (location := locate(directory)).local and not Path(location.path).is_dir():
                raise InputError(f"{self.name} is no longer in {location}; say with --data-dir where it is")
        location = locate(directory)
        built = index.build(location)
        parts = index.load(built)
        for part, found in parts.items():
            classes = np.unique(found.labels)
            if classes[-1] >= self.num_classes or (part == "train" and len(classes) < self.num_classes):
                raise InputError(
                    f"the {part} set in {location} has {len(classes)} classes, {classes[0]} to {classes[-1]};"
                    f" {self.name} has {self.num_classes}"
                )
        counts = {part: len(found.labels) for part, found in parts.items()}
        decoded = source.digest(decode, within=("raymu.data.decoding", "raymu.data.rgb"))
        digest = content_hash([index.digest(location, parts), decoded])
        data = self.described(digest, counts)
        where = {"location": location.path if location.local else str(directory), "index": built.name}
        write_json(self.entry(data) / LOCATION, where)
        locations[self.entry(data).name] = where
        self.remember(data)
        return data

    def is_ready(self, entry: Path) -> bool:
        """See Dataset."""
        from raymu.data import index

        where = locations.get(entry.name)
        if where is not None and not ((entry / LOCATION).exists() and cache.load_json(entry / LOCATION) == where):
            write_json(entry / LOCATION, where)
        return (entry / LOCATION).exists() and cache.find(index.directory(cache.load_json(entry / LOCATION)["index"]))

    def notes(self, entry: Path) -> list[str]:
        """See Dataset."""
        from raymu.data import index

        return index.notes(index.directory(cache.load_json(entry / LOCATION)["index"]))

    def load(self, entry: Path, transform: Transform, device: torch.device, processes: int) -> dict[str, Labelled]:
        """See Dataset."""
        from raymu.data import index
        from raymu.data.encoded import Encoded
        from raymu.storage import locate

        known = cache.load_json(entry / LOCATION)
        where = known["location"]
        copies = None if locate(where).local else cache.root() / "shards" / known["index"]
        return {
            part: Labelled(
                Encoded(found, where, copies, self._seen(transform), device, processes),
                torch.from_numpy(np.array(found.labels)).to(device),
            )
            for part, found in index.load(index.directory(known["index"])).items()
        }

    def _location(self, asked: str) -> str:
        """Where the data that are asked for were found, or else the last ones."""
        entries = [self.entry(data) for data in (asked, self.latest().get("data", "")) if data]
        found = next((entry / LOCATION for entry in entries if (entry / LOCATION).exists()), None)
        if found is None:
            raise InputError(
                f"where is {self.name}? Name with --data-dir a directory with train/<class>/*.JPEG and"
                " val/<class>/*.JPEG, or a directory or URI with shards train-*.tar and val-*.tar"
            )
        return str(cache.load_json(found)["location"])
