"""Signs of life of a process that computes: how far it is, and that it goes on."""

import contextlib
import time
from collections.abc import Iterator

INTERVAL_S = 1.0  # between two signs, at least


class Listener:
    """Whoever hears the signs of a process; this one hears nothing."""

    def hear(self, epoch: int, epochs: int) -> None:
        """The last epoch that has ended, and how many there will be; 0 and 0 before the first."""

    def ends_soon(self) -> bool:
        """Whether the machine is about to be taken away."""
        return False


_listener = Listener()
_place = (0, 0)
_given_s = 0.0


def beat(epoch: int | None = None, epochs: int = 0) -> None:
    """Give a sign of life. Whatever computes for long gives one at every batch or step; it costs next to nothing.

    Args:
        epoch: number of the epoch that has ended; None: none has since the last sign.
        epochs: how many there will be.
    """
    global _place, _given_s
    if epoch is not None:
        _place = epoch, epochs
    now = time.monotonic()
    if now - _given_s >= INTERVAL_S:
        _given_s = now
        _listener.hear(*_place)


def ends_soon() -> bool:
    """Whether the machine is about to be taken away, so that what is not kept is lost."""
    return _listener.ends_soon()


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Have a listener hear the signs that this process gives in the body, the first one at once."""
    global _listener, _place, _given_s
    before = _listener
    _listener, _place, _given_s = listener, (0, 0), 0.0
    beat()
    try:
        yield
    finally:
        _listener = before
