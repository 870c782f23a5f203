"""Files in a local directory or on object storage."""

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from pyarrow import ArrowException
from pyarrow.fs import (
    AwsStandardS3RetryStrategy,
    FileSystem,
    GcsFileSystem,
    LocalFileSystem,
    S3FileSystem,
    copy_files,
)

from raymu.errors import InputError, without_secrets
from raymu.values import expanded

Result = TypeVar("Result")

OUTAGE_S = 120.0
ATTEMPTS = 3  # of a single request to S3
REQUEST_S = 20.0  # of a single request to Google Cloud, all attempts together


@dataclass(frozen=True)
class Location:
    """A directory, local or on object storage. `location / name` is one within it, or an InputError for a name such as
    "../x"; `str(location)` is safe to print.

    Attributes:
        filesystem: the one of pyarrow that reaches it.
        path: where it is on that filesystem.
        shown: the path as it was given, or the URI without secrets.
    """

    filesystem: FileSystem = field(repr=False)
    path: str
    shown: str

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]

    @property
    def local(self) -> bool:
        """Whether it is a directory of this machine, which can be locked and appended to."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def real(self) -> str:
        """The path without links."""
        return os.path.realpath(self.path) if self.local else self.path

    def is_same(self, other: "Location") -> bool:
        """Whether both are one directory, also by way of a link."""
        return self.real == other.real and self.filesystem.equals(other.filesystem)

    def __truediv__(self, name: str) -> "Location":
        is_within = name.strip("/.") and not name.startswith("/") and not {".", ".."} & set(name.split("/"))
        if not is_within or not name.isprintable():
            raise InputError(f"{name!r} is no name of a directory within {self}")
        place, mark, query = (self.shown, "", "") if self.local else self.shown.partition("?")
        shown = f"{place.rstrip('/')}/{name if self.local else quote(name)}{mark}{query}"
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}", shown)

    def __str__(self) -> str:
        return self.shown


def locate(location: "Path | str | Location") -> Location:
    """Find the filesystem of a local path, or of a URI such as s3://bucket/path?endpoint_override=host:9000&scheme=http.

    A URI is what `pyarrow.fs.FileSystem.from_uri` takes, which also says where credentials come from (for S3:
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile of AWS_PROFILE, or the machine's role). In it special
    characters are percent-encoded.

    Raises:
        InputError: not a URI that pyarrow can open.
    """
    if isinstance(location, Location):
        return location
    uri = str(location)
    shown = without_secrets(re.sub(r"\s", "%20", uri)) if "://" in uri else uri
    try:
        filesystem, path = FileSystem.from_uri(uri if "://" in uri else str(expanded(uri).absolute()))
    except (OSError, ValueError, NotImplementedError, ImportError) as error:
        # What pyarrow says may quote the URI, so it is not the cause either: a traceback would print it.
        raise InputError(f"cannot open {shown}: {without_secrets(reason(error).replace(uri, shown))}") from None
    if not path.strip("/") and not isinstance(filesystem, LocalFileSystem):
        raise InputError(f"cannot open {shown}: it names no bucket")
    if isinstance(filesystem, GcsFileSystem):  # its own limit is 15 minutes
        constructor, (options,) = filesystem.__reduce__()
        filesystem = constructor(options | {"retry_time_limit": timedelta(seconds=REQUEST_S)})
    if isinstance(filesystem, S3FileSystem):
        # A URI cannot say how long to try: 100 s where nothing answers. The constructor can, and takes what pickling
        # hands over. With a delayed open a small file is one PUT, not three requests that a killed writer can leave
        # half done.
        options = filesystem.__reduce__()[1][0]
        strategy = AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        filesystem = S3FileSystem(**options | {"allow_delayed_open": True, "retry_strategy": strategy})
    return Location(filesystem, path.rstrip("/") or path, shown)


class DamagedError(ValueError):
    """Content that is not what was stored."""


def is_no_file(path: str | Path) -> bool:
    """Whether a pipe, a device or a directory is there."""
    return os.path.exists(path) and not os.path.isfile(path)


def read_bytes(directory: Location, name: str) -> bytes:
    """Content of a file in the directory.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is a pipe or device, which might never end.
    """
    path = f"{directory.path}/{name}"
    if directory.local and is_no_file(path):
        raise DamagedError(f"{name} is no file")
    with directory.filesystem.open_input_stream(path) as stream:
        content: bytes = stream.read()
        return content


def write_bytes(directory: Location, name: str, content: bytes) -> None:
    """In one step for every reader: a file on object storage appears when it is closed, a local one is renamed. Of a
    local link what it leads to is written.

    Raises:
        OSError: it cannot be written, or would replace a pipe or device.
    """
    path = f"{directory.path}/{name}"
    if directory.local:
        path = os.path.realpath(path)
        if is_no_file(path):
            raise OSError(f"{name} is no file")
    unfinished = f"{path}.tmp" if directory.local else path
    try:
        with directory.filesystem.open_output_stream(unfinished) as stream:
            stream.write(content)
        if directory.local:
            os.replace(unfinished, path)
    except OSError:
        if directory.local:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)  # the disk may be full
        raise


def read_if_there(directory: Location, name: str) -> str | None:
    """Text of a file of the directory; None where there is no such file."""
    try:
        return read_bytes(directory, name).decode()
    except FileNotFoundError:
        return None


def copy_directory(source: Location, target: Location) -> None:
    """Copy the files of a directory. Between directories of one disk they are hard links, which take no room."""
    if not (source.local and target.local):
        copy_files(source.path, target.path, source.filesystem, target.filesystem)
        return
    os.makedirs(target.path, exist_ok=True)
    for name in os.listdir(source.path):
        there = f"{target.path}/{name}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(there)  # left by a copy that was cut off
        try:
            os.link(f"{source.path}/{name}", there)
        except OSError:  # another disk, or one without links
            shutil.copyfile(f"{source.path}/{name}", there)


def insist(doing: str, directory: Location, do: Callable[[], Result]) -> Result:
    """Do something with the storage, however often it takes while that is away or full.

    Args:
        doing: "read" or "write to".

    Raises:
        OSError: it still is after `OUTAGE_S` seconds.
    """
    deadline = time.monotonic() + OUTAGE_S
    pause = 0.5
    while True:
        try:
            return do()
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            logging.getLogger(__name__).warning("cannot %s %s, trying again: %s", doing, directory, reason(error))
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def patiently(doing: str, directory: Location, do: Callable[[], Result]) -> Result:
    """What `insist` returns.

    Raises:
        InputError: the storage still refuses.
    """
    with mendable(doing, directory):
        return insist(doing, directory, do)


@contextlib.contextmanager
def mendable(doing: str, directory: Location) -> Iterator[None]:
    """Turn what the storage refuses into an InputError."""
    try:
        yield
    except (OSError, ArrowException, DamagedError) as error:
        raise InputError(f"cannot {doing} {directory}: {without_secrets(reason(error))}") from error


def reason(error: BaseException) -> str:
    """Reason of an error, in one line and without the number of the request."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return re.split(r"\n| \(Request ID", str(error))[0]
