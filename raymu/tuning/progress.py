"""What a person sees while a sweep runs: a live line on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from raymu.results.tables import setting
from raymu.row import Row


class SweepProgress:
    """Trials done and running, best score so far, time left. A context manager.

    Args:
        console: where to.
        what: is counted: "trials", or "confirming".
        trials: number of rows at the end.
        done: how many there are already.
    """

    def __init__(self, console: Console, what: str, trials: int, done: int) -> None:
        self._console = console
        self._trials = trials
        self._done = self._done_before = done
        self._running: set[str] = set()
        self._best: float | None = None
        self._started: float | None = None  # when the first trial began: Ray's start is not theirs
        self._bar = Progress(
            TextColumn(what),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task("", total=trials, completed=done, state="starting")

    def started(self, trial: str) -> None:
        """A trial has begun, perhaps once more."""
        self._started = self._started or time.monotonic()
        self._running.add(trial)
        self._show()

    def failed(self, trial: str) -> None:
        """A trial has to begin again."""
        self._running.discard(trial)
        self._show()

    def ended(self, trial: str, row: Row) -> None:
        """A trial has ended with this row."""
        self._running.discard(trial)
        self._done += 1
        score = row["score"]
        is_best = row["status"] == "completed" and (self._best is None or score > self._best)
        if is_best:
            self._best = score
        self._show()
        shown = "-" if score is None else f"{score:.3f}"
        line = f"{row['trial_id']}  {row['status']:9}  score {shown}  {setting(row['config'])}"
        if row["error"]:
            line += f"  ({row['error']})"
        if not self._console.is_terminal:
            line = f"[{self._done}/{self._trials}, {self._state()}]  {line}"
        if is_best or row["error"] or not self._console.is_terminal:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        self._bar.update(self._task, completed=self._done, state=self._state())

    def _state(self) -> str:
        parts = [f"{len(self._running)} running"]
        if self._best is not None:
            parts.append(f"best {self._best:.3f}")
        finished = self._done - self._done_before
        if finished and self._started:
            seconds = (time.monotonic() - self._started) / finished * (self._trials - self._done)
            parts.append(f"{int(seconds // 60)}:{int(seconds % 60):02d} left")
        return ", ".join(parts)

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
