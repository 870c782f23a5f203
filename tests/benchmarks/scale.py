"""What the driver of a sweep costs while trials pile up, with many slots. Run by hand, on an idle machine; Linux only.

    python tests/benchmarks/scale.py --trials 2000 --slots 64 --searcher tpe --scheduler asha

A real sweep (searcher, scheduler, Tune, recorder, store) on a local Ray that believes in as many CPUs as there are
slots, and a process for each of them. Simulated is what a trial does: it sleeps an even share of `--seconds` in every
epoch, reports at its rungs, and ends with a row that has a number in every column and a score that its setting gives.
Its process finds empty modules where torch, timm and scipy would be: 64 times these are more than 24 GB hold.

A line tells of so many trials, the first of the start: CPU time of the driver (all its threads) and wall time a trial,
trials a second, how much of the time the slots slept (near 100 %: the driver is not what bounds), and, at the end of
them, the driver's memory and the size of the rows. With `--profile` follow the functions in which the driver's main
thread spends most.
"""

import argparse
import cProfile
import functools
import json
import logging
import math
import os
import pstats
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple
from unittest.mock import MagicMock

from rich.console import Console

from raymu import reference_models, splits
from raymu.distributed.session import Resources
from raymu.engines.pytorch import Engine
from raymu.method import Method, Range, Step, tuned
from raymu.protocol import Protocol
from raymu.results import files
from raymu.scenario import SCENARIOS
from raymu.tuning import process
from raymu.tuning.driver import run_sweep
from raymu.tuning.sweep import Sweep

EMPTY = ("torch", "torch.distributed", "torch.nn.attention", "torch.nn.functional", "safetensors.torch", "timm")
EMPTY += ("scipy", "scipy.sparse.linalg", "scipy.special")


class Sleep(Method):
    """As many hyperparameters as SCRUB has."""

    paper: ClassVar[str] = "none"
    lr: float = tuned(0.1, Range(0.001, 1.0, "log"), "what the score depends on")
    epochs: int = tuned(5, Range(1, 10, "int"), "how often a trial may be stopped")
    msteps: int = tuned(2, Range(1, 10, "int"), "read by nobody")
    T: float = tuned(4.0, Range(1, 8, "linear"), "read by nobody")
    alpha: float = tuned(0.01, Range(0.001, 2.0, "log"), "read by nobody")
    gamma: float = tuned(0.99, Range(0.1, 2.0, "linear"), "read by nobody")

    def unlearn(self, run: Engine) -> Iterator[Step]:
        raise NotImplementedError


def prepare(seconds: float, started: Path, slots: int) -> None:
    """What the process of trials does first: all that runs there later finds a trial that sleeps.

    The first trial of all waits for the others: Tune gives up a process that still starts when another is free, and
    with trials shorter than that it would work with a few for ever.
    """
    sys.modules.update({name: MagicMock() for name in EMPTY})
    torch = sys.modules["torch"]
    torch.Tensor, torch.nn.Module = type("Tensor", (), {}), type("Module", (), {})  # Tune looks for them
    torch.distributed.is_initialized.return_value = torch.cuda.is_available.return_value = False
    from raymu.trial import blank_row, measured

    def wait_for_all() -> None:
        (started / str(os.getpid())).touch()
        while sum(Path("/proc", process.name).exists() for process in started.iterdir()) < slots:
            time.sleep(0.5)

    once = functools.cache(wait_for_all)

    def run_trial(scenario, method, *, seed, objective, metrics, options, rungs, report, checkpoints):
        row = blank_row(scenario, method, seed=seed, objective=objective, metrics=metrics, options=options)
        once()
        draw, begin = random.Random(str(method.config)), time.perf_counter()
        for epoch in range(1, method.total_epochs + 1):
            time.sleep(seconds / method.total_epochs)
            row |= {column: draw.random() for column in measured()}
            row |= {"epochs": epoch, "images": 1000 * epoch, "probe": "strong", "peak_mem": 10**9}
            row["wall_s"] = row["unlearn_s"] = time.perf_counter() - begin
            row["score"] = (1 - 0.3 * draw.random()) / (1 + math.log10(method.lr / 0.03) ** 2)
            if epoch in rungs or epoch == method.total_epochs:
                row["curve"].append([epoch, row["score"]])
            if epoch in rungs and epoch < method.total_epochs:
                report({**row, "status": "stopped"})
        return row, None

    process.run_trial = run_trial


class Now(NamedTuple):
    """The driver at this moment."""

    wall: float
    cpu: float
    memory: float  # in MB

    @classmethod
    def take(cls) -> "Now":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(time.perf_counter(), time.process_time(), pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


class Lines(threading.Thread):
    """Prints, while the body runs, what so many trials cost, as soon as their rows are stored."""

    def __init__(self, rows: Path, every: int, slots: int) -> None:
        super().__init__(daemon=True)
        self._rows, self._every, self._slots, self._over = rows, every, slots, threading.Event()

    def run(self) -> None:
        print("  trials   driver ms   wall ms   trials/s   slept   memory MB   rows MB")
        before, size, ended, printed, slept, over = Now.take(), 0, 0, 0, 0.0, False
        while not over:
            over = self._over.wait(0.5)
            if not self._rows.exists():
                continue
            with self._rows.open("rb") as file:
                file.seek(size)
                lines = [line for line in file if line.endswith(b"\n")]
            size, ended = size + sum(map(len, lines)), ended + len(lines)
            slept += sum(json.loads(line)["wall_s"] for line in lines)
            if ended // self._every > printed // self._every if printed else ended >= self._slots:
                now, trials = Now.take(), ended - printed
                wall = now.wall - before.wall
                print(
                    f"{ended:8d} {1000 * (now.cpu - before.cpu) / trials:11.1f} {1000 * wall / trials:9.1f}"
                    f" {trials / wall:10.1f} {slept / wall / self._slots:7.0%} {now.memory:11.0f} {size / 1e6:9.1f}",
                    flush=True,
                )
                before, printed, slept = now, ended, 0.0

    def __enter__(self) -> "Lines":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


def main() -> None:
    """Print the lines."""
    import ray  # after raymu, which sets what Ray reads once

    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trials", type=int, default=2000)
    arguments.add_argument("--searches", type=int, default=1, help="that share the trials, one after the other")
    arguments.add_argument("--slots", type=int, default=64)
    arguments.add_argument("--seconds", type=float, default=2.0, help="that a trial sleeps")
    arguments.add_argument("--searcher", default="tpe")
    arguments.add_argument("--scheduler", default="asha")
    arguments.add_argument("--every", type=int, default=500, help="trials a line")
    arguments.add_argument("--profile", action="store_true")
    options = arguments.parse_args()
    scenario = SCENARIOS["digits"]
    splits.prepare(scenario)
    reference_models.compare(scenario)
    protocol = Protocol(
        trials=options.trials // options.searches,
        searcher=options.searcher,
        scheduler=options.scheduler,
        search_seeds=tuple(range(options.searches)),
    )
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as directory:
        started, place = Path(directory) / "started", Path(directory) / "sweep"
        started.mkdir()
        ray.init(
            num_cpus=options.slots,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": lambda: prepare(options.seconds, started, options.slots)},
            _system_config={"worker_register_timeout_seconds": 600},  # they start at once, on few cores
        )
        sweep = Sweep(Sleep, scenario, protocol)
        how = f"{options.searcher}, {options.scheduler}, {options.searches} searches"
        print(f"{how}, {options.slots} slots, {options.seconds:g} s a trial", flush=True)
        with Lines(place / files.ROWS, options.every, options.slots):
            if options.profile:
                profile.enable()
            run_sweep(sweep, place, Resources(), Console(quiet=True))
            profile.disable()
        ray.shutdown()
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(90)


if __name__ == "__main__":
    main()
