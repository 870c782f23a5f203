"""A watch over the processes that compute: how far each is, and an end for one that hangs or takes too long."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymu import heartbeat

LOOK_S = 1.0  # between two looks
SILENCE_S = 600.0  # without a sign of life, which no process is ended for
TIMES = 10  # the longest silence that ended is what another one may last
ANSWER_S = 30.0  # for the actor to answer
DRAIN_S = 5.0  # between two looks at nodes that are taken away

Place = tuple[str, int]  # Ray's name of a node, and a process on it


class Sign(NamedTuple):
    """Last sign of a process.

    Attributes:
        what: it works on.
        seconds: since it began that.
        given: number of its signs so far.
        epoch: the last one that has ended.
        epochs: how many there will be; 0: not known yet.
    """

    what: str
    seconds: float
    given: int
    epoch: int
    epochs: int


class _Signs:
    """Last signs of all processes; an actor on the driver's node."""

    def __init__(self) -> None:
        self._began: dict[Place, float] = {}
        self._last: dict[Place, Sign] = {}

    def begin(self, place: Place, what: str) -> None:
        self._began[place] = time.monotonic()
        self._last[place] = Sign(what, 0.0, 0, 0, 0)

    def hear(self, place: Place, epoch: int, epochs: int) -> None:
        if place in self._last:
            before = self._last[place]
            self._last[place] = before._replace(given=before.given + 1, epoch=epoch, epochs=epochs)

    def end(self, place: Place) -> None:
        self._last.pop(place, None)

    def forget(self, what: str) -> None:
        self._last = {place: sign for place, sign in self._last.items() if sign.what != what}

    def all(self) -> dict[Place, Sign]:
        now = time.monotonic()
        return {place: sign._replace(seconds=now - self._began[place]) for place, sign in self._last.items()}


def on(node: str) -> NodeAffinitySchedulingStrategy:
    """Strategy that runs something on a node, by Ray's name of it, and nowhere else."""
    return NodeAffinitySchedulingStrategy(node, soft=False)


def signs() -> Any:
    """Actor that hears the signs of all processes."""
    here = on(ray.get_runtime_context().get_node_id())
    return ray.remote(num_cpus=0)(_Signs).options(scheduling_strategy=here).remote()


class _Process(heartbeat.Listener):
    """Listener that passes on to the actor what this process says, and does not wait for it."""

    def __init__(self, signs: Any, place: Place) -> None:
        self._signs, self._place = signs, place
        self._looked_s, self._is_draining = 0.0, False

    def hear(self, epoch: int, epochs: int) -> None:
        self._signs.hear.remote(self._place, epoch, epochs)

    def ends_soon(self) -> bool:
        if (now := time.monotonic()) - self._looked_s >= DRAIN_S:
            self._looked_s, self._is_draining = now, bool(ray._private.state.state.get_draining_nodes())
        return self._is_draining


@contextlib.contextmanager
def at_work(signs: Any, what: str) -> Iterator[None]:
    """Send the signs of life that this process gives in the body, where it works on something of that name."""
    place = ray.get_runtime_context().get_node_id(), os.getpid()
    signs.begin.remote(place, what)
    try:
        with heartbeat.heard_by(_Process(signs, place)):
            yield
    finally:
        signs.end.remote(place)


class Watch:
    """Looks at all processes every second, and ends those that hang. A context manager.

    A process hangs that has given no sign for ten minutes, or for ten times as long as the longest silence so far.

    Args:
        signs: see the function of that name.
        tell: called with every look, with what the processes said: `Sign` as dicts.
    """

    def __init__(self, signs: Any, tell: Callable[[list[dict[str, Any]]], None] = lambda signs: None) -> None:
        self._signs, self._tell = signs, tell
        self._timeout_s: float | None = None
        self._show: Callable[[Mapping[Place, Sign]], None] = lambda signs: None
        self._seen: dict[Place, tuple[Sign, float]] = {}  # the last sign, and for how many seconds it has been so
        self._longest_s = 0.0
        self._reasons: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(ANSWER_S)

    def reason(self, what: str) -> str | None:
        """Why the process that worked on it was ended, now that it is gone; None: nobody ended it."""
        self._signs.forget.remote(what)
        return self._reasons.pop(what, None)

    @contextlib.contextmanager
    def over(self, show: Callable[[Mapping[Place, Sign]], None], timeout_s: float | None = None) -> Iterator[None]:
        """Watch over what the body has computed.

        Args:
            show: called with every look.
            timeout_s: after which a process is ended whatever it says; None: never.
        """
        before = self._show, self._timeout_s
        self._show, self._timeout_s = show, timeout_s
        try:
            yield
        finally:
            self._show, self._timeout_s = before

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._over.wait(LOOK_S):
            with contextlib.suppress(ray.exceptions.RayError):  # the cluster is about to end
                signs: dict[Place, Sign] = ray.get(self._signs.all.remote(), timeout=ANSWER_S)
                now = time.monotonic()
                # A machine that slept has not watched.
                self._look(signs, min(now - looked, 2 * LOOK_S))
                looked = now
                self._show(signs)
                self._tell([sign._asdict() for sign in signs.values()])

    def _look(self, signs: Mapping[Place, Sign], elapsed_s: float) -> None:
        before, self._seen = self._seen, {}
        for place, sign in signs.items():
            last, silent_s = before.get(place, (sign, 0.0))
            if (last.what, last.given) != (sign.what, sign.given):
                self._longest_s, silent_s = max(self._longest_s, silent_s), 0.0
            elif place in before:
                silent_s += elapsed_s
            self._seen[place] = sign, silent_s
            limit = max(SILENCE_S, TIMES * self._longest_s)
            if silent_s > limit:
                self._end(place, sign.what, f"no sign of life for {silent_s:.0f} s")
            elif self._timeout_s is not None and sign.seconds > self._timeout_s:
                self._end(place, sign.what, f"not ready after {self._timeout_s:g} s (--trial-timeout)")

    def _end(self, place: Place, what: str, reason: str) -> None:
        node, process = place
        self._reasons[what] = reason
        self._signs.end.remote(place)
        ray.remote(num_cpus=0, max_retries=0)(_kill).options(scheduling_strategy=on(node)).remote(process)


def _kill(process: int) -> None:
    with contextlib.suppress(OSError):
        if b"ray::" in Path(f"/proc/{process}/cmdline").read_bytes():  # and not one that has its number since
            os.kill(process, signal.SIGKILL)
