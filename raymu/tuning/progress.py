"""What a person sees while a sweep runs: a live line on a terminal and in a notebook, plain lines elsewhere."""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.status import Status
from rich.text import Text

from raymu import heartbeat
from raymu.results.tables import clock, setting
from raymu.row import Row

if TYPE_CHECKING:  # it imports Ray, which what one process computes does not need
    from raymu.distributed.watch import Place, Sign

QUIET_S = 60.0  # after which a console that is no terminal is told that the work goes on


def default_console() -> Console:
    """Console of this process: standard output, or the output of a notebook's cell."""
    console = Console(markup=False, emoji=False)  # names and paths may look like either
    return NotebookConsole() if console.is_jupyter else console


class NotebookConsole(Console):
    """Console of a notebook: lines as plain text, and one output of the cell that changes. Rich's own makes an output
    of every line, and needs ipywidgets for what changes.
    """

    def __init__(self) -> None:
        # ipykernel sets FORCE_COLOR.
        super().__init__(force_terminal=False, force_jupyter=False, markup=False, emoji=False)
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


class _State(ProgressColumn):
    """State of a line, asked anew whenever it is drawn."""

    def __init__(self, line: "_Line") -> None:
        super().__init__()
        self._line = line

    def render(self, task: Task) -> Text:
        """See ProgressColumn."""
        return Text(self._line.state())


class _Line(ABC):
    """A line that says how far something is. A context manager.

    Args:
        console: where to.
        what: is counted.
        total: number of it at the end.
        done: how many there are already.
    """

    def __init__(self, console: Console, what: str, total: int, done: int) -> None:
        self._console, self._what, self._total = console, what, total
        self._done: float = done
        self._began_s = self._told_s = time.monotonic()
        columns = [TextColumn(what, markup=False), BarColumn(bar_width=20), MofNCompleteColumn(), _State(self)]
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: TaskID = self._bar.add_task("", total=total, completed=done)

    @abstractmethod
    def state(self) -> str:
        """State in words, with the time taken and left."""

    def look(self, signs: "Mapping[Place, Sign]") -> None:
        """Take in what the processes say: see Watch."""
        if not self._is_live and time.monotonic() - self._told_s >= QUIET_S:
            self._print(f"{self._what}: {self._progress()}")

    @property
    def _is_live(self) -> bool:
        """Whether the line itself changes, on a terminal or in a notebook."""
        return self._console.is_terminal or isinstance(self._console, NotebookConsole)

    def _print(self, line: str) -> None:
        self._told_s = time.monotonic()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        if isinstance(self._console, NotebookConsole):
            self._console.show(f"{self._what}: {self._progress()}")
        self._bar.update(self._task, completed=self._done)

    def _progress(self) -> str:
        return f"{int(self._done)}/{self._total}" + (f", {state}" if (state := self.state()) else "")

    def __enter__(self) -> "Any":
        self._bar.start()
        self._show()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        self._show()  # what a notebook keeps


class ReferencesProgress(_Line):
    """Epochs of the references that are trained, all together.

    Args:
        names: of the references, as their processes call them.
    """

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._epochs: dict[str, tuple[int, int]] = dict.fromkeys(names, (0, 0))
        super().__init__(console, "references", len(names), 0)

    def look(self, signs: "Mapping[Place, Sign]") -> None:
        """See _Line."""
        self._epochs |= {one.what: (one.epoch, one.epochs) for one in signs.values() if one.what in self._epochs}
        self._done = sum(epoch / epochs for epoch, epochs in self._epochs.values() if epochs)
        self._bar.update(self._task, completed=self._done)
        super().look(signs)

    def state(self) -> str:
        """See _Line."""
        seconds = time.monotonic() - self._began_s
        parts = [clock(seconds)]
        if longest := max(epochs for _, epochs in self._epochs.values()):
            parts.insert(0, f"epoch {sum(epoch for epoch, _ in self._epochs.values())} of {longest * self._total}")
        if self._done:
            parts.append(f"{clock(seconds / self._done * (self._total - self._done))} left")
        return ", ".join(parts)


class SweepProgress(_Line):
    """Trials done and running, best score so far, the time taken and left.

    Args:
        console: where to.
        what: is counted: "trials", or "confirming".
        trials: number of rows at the end.
        done: the rows that there are already.
    """

    def __init__(self, console: Console, what: str, trials: int, done: Sequence[Row]) -> None:
        self._before = len(done)
        self._running: set[str] = set()
        scores = [row["score"] for row in done if row["status"] == "completed"]
        self._best: float | None = max(scores, default=None)
        self._ended_s = self._began_s = time.monotonic()
        super().__init__(console, what, trials, len(done))

    def started(self, trial: str) -> None:
        """A trial has begun, perhaps once more."""
        if not self._running and self._done == self._before:
            self._began_s = time.monotonic()  # Ray's start is not theirs
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
        self._ended_s = time.monotonic()
        score = row["score"]
        is_best = row["status"] == "completed" and (self._best is None or score > self._best)
        if is_best:
            self._best = score
        self._show()
        shown = "-" if score is None else f"{score:.3f}"
        line = f"{row['trial_id']}  {row['status']:9}  score {shown}  {setting(row['config'])}"
        if row["error"]:
            line += f"  ({row['error']})"
        if not self._is_live:
            line = f"[{self._progress()}]  {line}"
        if is_best or row["error"] or not self._is_live:
            self._print(line)

    def state(self) -> str:
        """See _Line."""
        now = time.monotonic()
        parts = [f"{len(self._running)} running"] if self._running else []
        if self._best is not None:
            parts.append(f"best {self._best:.3f}")
        parts.append(clock(now - self._began_s))
        finished = self._done - self._before
        if finished and self._done < self._total:
            expected_s = (self._ended_s - self._began_s) / finished * (self._total - self._done)
            parts.append(f"{clock(max(0.0, expected_s - (now - self._ended_s)))} left")
        return ", ".join(parts)

    def __exit__(self, *error: object) -> None:
        self._running.clear()
        super().__exit__(*error)


class _Spinner(heartbeat.Listener):
    """Spinner of what this process itself computes, with the epochs of what it trains."""

    def __init__(self, status: Status, what: str) -> None:
        self._status, self._what = status, what

    def hear(self, epoch: int, epochs: int) -> None:
        """See Listener."""
        self._status.update(Text(f"{self._what}: epoch {epoch} of {epochs}" if epochs else self._what))


@contextlib.contextmanager
def busy(console: Console, what: str) -> Iterator[None]:
    """Show what this process computes while the body runs, and which epoch it is in."""
    with console.status(Text(what)) as status, heartbeat.heard_by(_Spinner(status, what)):
        yield
