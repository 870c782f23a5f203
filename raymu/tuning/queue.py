"""The queue of a search: Ray Tune asks it for trials, new ones and those that are tried again."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from raymu.row import Row


class Queue(Searcher):
    """Trials one after the other, and again those that failed.

    Args:
        numbers: of the trials, in this order.
        task: makes what is run of a number, once its turn has come; it has that `number`.
        is_spent: whether the budget is, so that the trial of a number may not begin any more.
    """

    def __init__(
        self, numbers: Iterable[int], task: Callable[[int], Any], is_spent: Callable[[int], bool] = lambda _: False
    ) -> None:
        super().__init__()
        self._numbers, self._task, self._is_spent = deque(numbers), task, is_spent
        self._running: set[str] = set()
        self._failed: list[tuple[float, Any]] = []  # when it may begin again, and what

    def __reduce__(self) -> tuple[type[Searcher], tuple[()]]:
        """Tune pickles its searcher for its restore, which raymu does not use."""
        return Searcher, ()

    def suggest(self, trial_id: str) -> Any:
        """The next task; None as long as one that runs may fail and come back."""
        now = time.monotonic()
        ready = next((entry for entry in self._failed if entry[0] <= now), None)
        if ready is not None:
            self._failed.remove(ready)
            task = ready[1]
        elif self._numbers and not self._is_spent(self._numbers[0]):
            task = self._task(self._numbers.popleft())
        else:
            return None if self._failed or self._running else Searcher.FINISHED
        self._running.add(trial_id)
        return {"task": task}

    def again(self, task: Any, pause_s: float) -> None:
        """Let a task that failed begin again after a pause, in seconds."""
        self._failed.append((time.monotonic() + pause_s, task))

    def on_trial_complete(self, trial_id: str, result: Row | None = None, error: bool = False) -> None:
        """Nothing is learnt: what is suggested next depends on rows."""
        self._running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Rows are the only state of a sweep; Tune wants a file."""
        Path(checkpoint_path).touch()
