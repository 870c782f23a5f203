"""Processes that decode images. Run as a module, this file is one of them.

They are no multiprocessing workers: these would import the main script again, or fork a process that has threads and
perhaps a GPU. Instead one fresh process imports what is needed and forks; each of the others then answers requests on
its own socket. It ends when that closes: also where the process that asked was killed.

A request is a line of JSON, the answer a line of JSON and, if that holds no error, the pixels.
"""

import contextlib
import functools
import io
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from raymu import cache
from raymu.data.rgb import read_rgb
from raymu.errors import InputError

OPEN_FILES = 64
SOCKET_BUFFER = 2**20
COPY_BUFFER = 2**23

# As what an image that was not read is told, by the name that stands in an answer.
KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (OSError, MemoryError, InputError)}


class Request(TypedDict):
    """What is to be decoded, in JSON's types.

    `transform` is what `timm.data.create_transform` takes; `images` are (file, offset, length, seed): where the bytes
    are, and what the augmentation is drawn from, None for none. Files lie below `root`; those that are still missing
    there are copied from `source`, a URI, unless that is None.
    """

    transform: dict[str, Any]
    images: list[tuple[str, int, int, int | None]]
    root: str
    source: str | None


class Unread(Exception):
    """The image at that position of a request was not read, for that reason.

    Attributes:
        kind: OSError or MemoryError where the machine failed, which may pass; InputError where the image cannot be
            decoded or is refused (see `raymu.data.rgb`), which stays.
    """

    def __init__(self, position: int, kind: type[Exception], reason: str) -> None:
        super().__init__(reason)
        self.position, self.kind = position, kind


def decode(request: Request) -> NDArray[np.uint8]:
    """The images (N, C, H, W) of a request. The state of random generators is left as it was.

    Raises:
        Unread: one of them cannot be read or decoded.
    """
    options = json.dumps(request["transform"], sort_keys=True)
    pixels, state = [], random.getstate()
    try:
        with torch.random.fork_rng(devices=()):
            for position, (file, offset, length, seed) in enumerate(request["images"]):
                if seed is not None:
                    random.seed(seed)
                    torch.default_generator.manual_seed(seed)
                with _failing(position, OSError):
                    content = _read(request["root"], file, request["source"], offset, length)
                with _failing(position, InputError):
                    image = read_rgb(io.BytesIO(content))
                    pixels.append(np.asarray(_transform(options, seed is not None)(image)))
    finally:
        random.setstate(state)
    return np.stack(pixels, out=np.empty((len(pixels), *pixels[0].shape), np.uint8))  # in C order, as theirs is not


@contextlib.contextmanager
def _failing(position: int, kind: type[Exception]) -> Iterator[None]:
    """Raise as Unread, of that kind, what the body raises.

    What it raises does not tell whose failure it is: PIL raises OSError, SyntaxError, ValueError, ... as the bytes
    want, and pyarrow more than OSError. Only where memory is short, that is the machine's failure everywhere.
    """
    try:
        yield
    except Exception as error:
        kind = MemoryError if isinstance(error, MemoryError) else kind
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise Unread(position, kind, reason) from error


@functools.lru_cache
def _transform(options: str, augment: bool) -> Callable[[Any], Any]:
    """PIL image -> uint8 (C, H, W), with timm's transform."""
    from timm.data.transforms_factory import create_transform

    # Not to floating point, which is left to who computes with it: a quarter of the bytes on the way there.
    given = {**json.loads(options), "use_prefetcher": True, "color_jitter": None, "auto_augment": None}
    transform: Callable[[Any], Any] = create_transform(**given, is_training=augment)
    return transform


def _read(root: str, file: str, source: str | None, offset: int, length: int) -> bytes:
    """Bytes of a file.

    Raises:
        OSError: among others where the file ends before them. It did not when it was indexed: so the disk failed, or
            it is just being written again.
    """
    content = b""
    try:
        opened = _opened(root, file, source)
        while len(content) < length:  # some network file systems give less than they are asked for
            part = os.pread(opened.fileno(), length - len(content), offset + len(content))
            if not part:
                if source is not None:
                    shutil.rmtree(Path(root, file), ignore_errors=True)  # a damaged copy is made anew
                raise OSError(f"{opened.name} ends {length - len(content)} bytes before the image does")
            content += part
    except OSError:
        _opened.cache_clear()  # who tries again needs a fresh handle
        raise
    return content


@functools.lru_cache(OPEN_FILES)
def _opened(root: str, file: str, source: str | None) -> BinaryIO:
    """The file, open for unbuffered reading."""
    path = Path(root, file)
    if source is not None:
        path = cache.atomically(path, lambda entry: _copy(source, file, entry / path.name)) / path.name
    return path.open("rb", buffering=0)


def _copy(source: str, file: str, target: Path) -> None:
    from raymu.storage import locate

    location = locate(source)
    with location.filesystem.open_input_stream(f"{location.path}/{file}") as stream, target.open("wb") as copy:
        shutil.copyfileobj(stream, copy, COPY_BUFFER)


class _Channel(NamedTuple):
    """One decoding process, as seen from here."""

    requests: BinaryIO
    answers: BinaryIO


class Decoders:
    """So many processes that decode; with 0, this process does. They start at once and live as long as this object.

    Attributes:
        alive: False once one of them has died: this object is of no use any more.
    """

    def __init__(self, count: int) -> None:
        self.count, self.alive = count, True
        if not count:
            return
        pairs = [socket.socketpair() for _ in range(count)]
        theirs = [their.fileno() for _, their in pairs]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raymu.data.decoding", *map(str, theirs)],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._idle = queue.SimpleQueue[_Channel]()
        for ours, their in pairs:
            their.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            their.close()
            with ours:  # the two files keep it open
                self._idle.put(_Channel(ours.makefile("wb"), ours.makefile("rb")))
        self._threads = ThreadPoolExecutor(count, "decoder")

    def submit(self, request: Request, out: NDArray[np.uint8]) -> Future[None]:
        """Decode into `out` (N, C, H, W). The future raises Unread, or ChildProcessError where a process died."""
        if self.count:
            return self._threads.submit(self._ask, request, out)
        future = Future[None]()
        try:
            out[:] = decode(request)
            future.set_result(None)
        except Unread as error:
            future.set_exception(error)
        return future

    def _ask(self, request: Request, out: NDArray[np.uint8]) -> None:
        channel = self._idle.get()
        try:
            channel.requests.write(json.dumps(request).encode() + b"\n")
            channel.requests.flush()
            answer = json.loads(channel.answers.readline() or b"null")
            if answer is None:
                raise EOFError
            if answer:
                position, kind, reason = answer
                raise Unread(position, KINDS[kind], reason)
            pixels = out.data.cast("B")
            while pixels:
                received = channel.answers.readinto(pixels)  # type: ignore[attr-defined]
                if not received:
                    raise EOFError
                pixels = pixels[received:]
        except (OSError, EOFError) as error:
            self.alive = False
            raise ChildProcessError("a process that decodes images died; was there too little memory?") from error
        finally:
            self._idle.put(channel)


_decoders: dict[tuple[int, int], Decoders] = {}


def decoders(count: int) -> Decoders:
    """So many decoding processes; everybody in this process who asks for that number shares them."""
    name = os.getpid(), count  # a process forked from this one needs other ones
    if name not in _decoders or not _decoders[name].alive:
        _decoders[name] = Decoders(count)
    return _decoders[name]


def _answer(channel: socket.socket) -> None:
    """Answer requests until nobody asks any more."""
    with channel, channel.makefile("rb") as requests:
        for line in requests:
            try:
                pixels = decode(json.loads(line))
            except Unread as error:
                answer = [error.position, error.kind.__name__, str(error)]
                channel.sendall(json.dumps(answer).encode() + b"\n")
            else:
                channel.sendall(b"[]\n")
                channel.sendall(pixels.data.cast("B"))


def _main(descriptors: Sequence[int]) -> None:
    import PIL.Image
    import timm.data.transforms_factory  # noqa: F401  # before the fork: imported and kept in memory once

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    warnings.filterwarnings("ignore", module="PIL")  # such as broken EXIF data
    torch.set_num_threads(1)
    PIL.Image.init()
    for mine in descriptors:
        if os.fork() == 0:
            for other in set(descriptors) - {mine}:  # or nobody would see the end of that process
                os.close(other)
            try:
                _answer(socket.socket(fileno=mine))
            except OSError:  # who asked is gone
                os._exit(1)
            os._exit(0)
    for descriptor in descriptors:
        os.close(descriptor)
    for _ in descriptors:
        os.wait()


if __name__ == "__main__":
    _main([int(argument) for argument in sys.argv[1:]])
