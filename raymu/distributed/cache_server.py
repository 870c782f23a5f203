"""What serves the cache of one node to the others of a cluster. It imports little, since a process starts for it."""

import os
import shutil
import uuid
from pathlib import Path
from typing import NamedTuple


class File(NamedTuple):
    """A file of an entry: its name, its size in bytes, and its mode."""

    name: str
    size: int
    mode: int


class Shelf:
    """The entries of a cache, by their path below its root.

    Args:
        root: the cache's directory.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def files(self, entry: str) -> list[File]:
        """Those of an entry; none if it is not there."""
        directory = self._root / entry
        found = sorted(path for path in directory.iterdir() if path.is_file()) if directory.is_dir() else []
        return [File(path.name, path.stat().st_size, path.stat().st_mode) for path in found]

    def read(self, entry: str, name: str, start: int, size: int) -> bytes:
        """So many bytes of one of its files."""
        with (self._root / entry / name).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def begin(self, entry: str, damaged: bool) -> str | None:
        """A name for what shall become an entry; None if that is there.

        Args:
            damaged: what is there arrived damaged. It goes, unless another has replaced it since.
        """
        if damaged and self.files(entry):
            from raymu import cache  # loads torch, which takes seconds

            if not cache.is_as_built(self._root / entry, entry):
                shutil.rmtree(self._root / entry)
        if self.files(entry):
            return None
        path = (self._root / entry).parent / f".{uuid.uuid4().hex}"
        path.mkdir(parents=True)
        return str(path.relative_to(self._root))

    def write(self, begun: str, name: str, start: int, content: bytes) -> None:
        """So many bytes of one of its files. Like `end` it may be called again: a shelf that is killed before it could
        answer is asked anew.
        """
        with open(os.open(self._root / begun / name, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
            file.seek(start)
            file.write(content)

    def end(self, begun: str, entry: str) -> None:
        """It is whole; where another was faster, that one stays."""
        try:
            os.rename(self._root / begun, self._root / entry)
        except OSError:  # what is there is not empty, or this was called before
            shutil.rmtree(self._root / begun, ignore_errors=True)
