"""What the runner itself costs. Run by hand, on an idle machine.

    python tests/benchmarks/sweep_overhead.py

Two figures. The share of a sweep's wall time in which its slots do not unlearn or evaluate, for 24 trials of SalUn with
references cached and ASHA on: of the whole sweep, Ray's start and stop and the imports of its workers included, and of
the time in which trials run. Once on the embedded digits, whose trials take less than a second, and once with a network
that is ten times as large. And the cost of a trial that does nothing, for 50, 200 and 1,000 of them.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from raymu import reference_models, splits
from raymu.distributed.session import Resources, session
from raymu.engines.pytorch import Engine
from raymu.errors import Diverged
from raymu.method import Method, Range, Step, tuned
from raymu.methods.salun import SalUn
from raymu.protocol import Protocol
from raymu.scenario import SCENARIOS, Scenario
from raymu.tuning.driver import run_sweep
from raymu.tuning.sweep import Sweep

QUIET = Console(quiet=True)


class Nothing(Method):
    """A trial that is over at once, with a row: no step and no evaluation."""

    paper: ClassVar[str] = "none"
    lr: float = tuned(0.1, Range(0.01, 1.0, "log"), "read by nobody")
    epochs: int = tuned(1, Range(1, 2, "int"), "read by nobody")

    def unlearn(self, run: Engine) -> Iterator[Step]:
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
    whole, rows = sweep_seconds(Sweep(SalUn, scenario, Protocol(trials=trials, search_seeds=(seed,))), slots)
    work = sum(row["unlearn_s"] + row["evaluate_s"] for row in rows) / slots
    running = max(row["ended_s"] for row in rows) - min(row["ended_s"] - row["wall_s"] for row in rows)
    print(
        f"  {scenario.architecture}: {len(rows)} trials on {slots} slots, {work:.1f} s of work a slot;"
        f" whole sweep {whole:.1f} s, runner {1 - work / whole:.0%};"
        f" while trials run {running:.1f} s, runner {1 - work / running:.0%}",
        flush=True,
    )


def main() -> None:
    """Print both figures."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slots", type=int, default=2)
    arguments.add_argument("--trials", type=int, default=24)
    arguments.add_argument("--repeats", type=int, default=2)
    options = arguments.parse_args()
    digits = SCENARIOS["digits"]
    larger = dataclasses.replace(digits, name="digits-resnet10t", architecture="resnet10t")
    for scenario in (digits, larger):
        splits.prepare(scenario)
        for which in reference_models.REFERENCES:
            reference_models.train(scenario, which)

    print("the runner's share:")
    for scenario in (digits, larger):
        for repeat in range(options.repeats):
            runner_share(scenario, options.slots, options.trials, seed=repeat)

    print("a trial that does nothing:")
    nothing = Sweep(Nothing, digits, Protocol())
    with session(None):
        start, _ = sweep_seconds(dataclasses.replace(nothing, protocol=Protocol(trials=2)), options.slots)
        for trials in (50, 200, 1000):
            wall, _ = sweep_seconds(dataclasses.replace(nothing, protocol=Protocol(trials=trials)), options.slots)
            print(f"  {trials} trials: {1000 * (wall - start) / (trials - 2):.0f} ms each", flush=True)


if __name__ == "__main__":
    main()
