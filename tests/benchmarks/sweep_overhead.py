"""What the runner itself costs. Run by hand, on an idle machine.

    python tests/benchmarks/sweep_overhead.py

Two figures. The share of a sweep's wall time in which its slots do not unlearn or evaluate: 24 trials of SalUn on the
embedded digits, references cached, ASHA on. And the cost of a trial that does nothing, for 50, 200 and 1,000 of them.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from torch import Tensor

from raymu import data, references
from raymu.engines.local import Engine
from raymu.errors import Diverged
from raymu.method import Method, Range, tuned
from raymu.methods.salun import SalUn
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS, Scenario
from raymu.sweep import Resources, Sweep, connect, run_sweep

QUIET = Console(quiet=True)


@dataclass(frozen=True, kw_only=True)
class Nothing(Method):
    """A trial that is over at once, with a row: no step and no evaluation."""

    paper: ClassVar[str] = "none"
    lr: float = tuned(0.1, Range(0.01, 1.0, "log"), "read by nobody")
    epochs: int = tuned(1, Range(1, 2, "int"), "read by nobody")

    def unlearn(self, run: Engine) -> Iterator[Tensor]:
        raise Diverged("nothing to do")
        yield


def sweep_seconds(sweep: Sweep, slots: int) -> tuple[float, list[dict]]:
    """Wall time of a sweep in a storage of its own, and its rows."""
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        rows = run_sweep(sweep, Path(directory) / "sweep", Resources(concurrent=slots), QUIET)
        return time.perf_counter() - started, rows


def runner_share(scenario: Scenario, slots: int, trials: int, seed: int) -> None:
    """Print the share of the wall time that the runner takes."""
    wall, rows = sweep_seconds(Sweep(SalUn, scenario, Protocol(trials=trials, seed=seed)), slots)
    work = sum(row["unlearn_s"] + row["evaluate_s"] for row in rows)
    print(
        f"  {trials} trials, {slots} slots: wall {wall:.1f} s, unlearning and evaluation {work:.1f} s"
        f" = {work / slots:.1f} s a slot, runner {100 * (1 - work / slots / wall):.0f} %",
        flush=True,
    )


def main() -> None:
    """Print both figures."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slots", type=int, default=2)
    arguments.add_argument("--trials", type=int, default=24)
    arguments.add_argument("--repeats", type=int, default=3)
    options = arguments.parse_args()
    scenario = SCENARIOS["digits"]
    data.prepare(scenario)
    for which in references.REFERENCES:
        references.train(scenario, which, 1)

    print("runner's share, Ray started and stopped by the sweep:")
    for repeat in range(options.repeats):
        runner_share(scenario, options.slots, options.trials, seed=repeat)
    connect(None)
    print("runner's share, Ray running already:")
    for repeat in range(options.repeats):
        runner_share(scenario, options.slots, options.trials, seed=repeat)

    print("a trial that does nothing:")
    nothing = Sweep(Nothing, scenario, Protocol())
    start, _ = sweep_seconds(dataclasses.replace(nothing, protocol=Protocol(trials=2)), options.slots)
    for trials in (50, 200, 1000):
        wall, _ = sweep_seconds(dataclasses.replace(nothing, protocol=Protocol(trials=trials)), options.slots)
        print(f"  {trials} trials: {1000 * (wall - start) / (trials - 2):.0f} ms each", flush=True)


if __name__ == "__main__":
    main()
