"""What a person sees while a sweep runs: a live line on a terminal and in a notebook, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.status import Status

from raymu.results.tables import setting
from raymu.row import Row


def default_console() -> Console:
    """Console of this process: standard output, or the output of a notebook's cell."""
    console = Console()
    return NotebookConsole() if console.is_jupyter else console


class NotebookConsole(Console):
    """Console of a notebook: lines as plain text, and one output of the cell that changes. Rich's own makes an output
    of every line, and needs ipywidgets for what changes.
    """

    def __init__(self) -> None:
        super().__init__(force_terminal=False, force_jupyter=False)  # ipykernel sets FORCE_COLOR
        self._shown: Any = None

    def show(self, text: str) -> None:
        """Show a text in the place of what was shown before."""
        from IPython.display import display

        content = {"text/plain": text}
        if self._shown is None:
            self._shown = display(content, raw=True, display_id=True)
        else:
            self._shown.update(content, raw=True)

    def status(self, status: Any, **how: Any) -> Status:
        """See rich: what is going on, while a body runs."""
        self.show(f"{status} ...")
        return super().status(status, **how)


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
        self._what = what
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
        is_live = self._console.is_terminal or isinstance(self._console, NotebookConsole)
        if not is_live:
            line = f"[{self._progress()}]  {line}"
        if is_best or row["error"] or not is_live:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        if isinstance(self._console, NotebookConsole):
            self._console.show(f"{self._what}: {self._progress()}")
        self._bar.update(self._task, completed=self._done, state=self._state())

    def _progress(self) -> str:
        return f"{self._done}/{self._trials}" + (f", {state}" if (state := self._state()) else "")

    def _state(self) -> str:
        parts = [f"{len(self._running)} running"] if self._running else []
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
        self._running.clear()
        self._started = None
        self._show()  # what a notebook keeps
