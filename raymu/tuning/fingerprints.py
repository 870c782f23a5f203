"""Digests of what samplers suggest and schedulers decide in a fixed example, for the protocol's hash."""

import functools
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from raymu.method import Range
from raymu.objective import OBJECTIVES
from raymu.protocol import TURNED, Protocol
from raymu.row import Row
from raymu.tuning.samplers import Chosen, known_settings, sampler
from raymu.tuning.schedulers import scheduler
from raymu.values import content_hash

# The example of `suggestions` and `decisions`: a range of every scale, and enough trials for every rule of tpe.
EXAMPLE = {"log": Range(1e-5, 1e-1, "log"), "linear": Range(0.0, 2.0, "linear"), "int": Range(1, 10, "int")}
CHOSEN = "int"  # what each trial chooses by itself, in a second search
EXAMPLE_TRIALS = 40
EXAMPLE_ROWS = (3, 12, 45, 300)  # known before a suggestion
EXAMPLE_DIGITS = 6  # the last ones differ between CPUs


@functools.cache
def suggestions(searcher: str, several: bool) -> str:
    """12 hex digits of what a searcher suggests in a fixed example: the same for two versions of Optuna, NumPy or SciPy
    where these suggest the same, whatever they are called.

    Args:
        several: whether the objective maximises several numbers, as `pareto` does.
    """
    # A whole protocol might be refused, as nsga2 for one number.
    asked: Any = SimpleNamespace(
        searcher=searcher, objective=OBJECTIVES["pareto" if several else "hmean"], trials=EXAMPLE_TRIALS + 1
    )
    suggested = known_settings(asked, 0, EXAMPLE)
    if suggested is None:
        done: list[Row] = []
        learners = [sampler(asked, 0, EXAMPLE, done)]
        if searcher == "gp":  # which alone learns from what trials choose
            searched = {name: search for name, search in EXAMPLE.items() if name != CHOSEN}
            chosen = Chosen(CHOSEN, EXAMPLE[CHOSEN], lambda setting: 2)
            learners.append(sampler(asked, 0, searched, done, chosen=chosen))
        suggested = []
        for count in EXAMPLE_ROWS:
            done += map(_example, range(len(done), count))
            suggested += [one.suggest(number) for one in learners for number in range(count, count + 3)]
    return content_hash([[f"{value:.{EXAMPLE_DIGITS}g}" for value in setting.values()] for setting in suggested])


@functools.cache
def decisions(kind: str) -> str:
    """12 hex digits of which trials a scheduler stops in a fixed example, after which epochs it looks at them, and when
    a trial that chooses its epochs ends: the same for two versions of Ray, or of raymu, where these stop the same.
    """
    if kind == "none":
        return content_hash([TURNED])
    longest = 12
    judge: Any = scheduler(kind, longest, [])
    stopped = []
    for number in range(EXAMPLE_TRIALS):
        curve: list[tuple[int, float]] = []
        for epoch in range(1, longest):
            curve.append((epoch, (number * 7 % 11 + epoch * (number % 5)) / 100))
            if judge.tell(number, "stopped", curve) == TrialScheduler.STOP:
                stopped.append((number, epoch))
                break
    asked: Any = kind
    return content_hash([TURNED, stopped, Protocol(scheduler=asked).rungs(EXAMPLE_TRIALS)])


def _example(number: int) -> Row:
    """A row of the example, whose settings fill the space evenly (Roberts' R3 sequence)."""
    shares = [(0.5 + (number + 1) * step) % 1 for step in (0.8191725134, 0.6710436067, 0.5497004779)]
    config: dict[str, Any] = {
        "log": 10 ** (-5 + 4 * shares[0]),
        "linear": 2 * shares[1],
        "int": 1 + int(10 * shares[2]),
    }
    keep, forget = 1 - (shares[0] - 0.6) ** 2 - 0.1 * shares[2], 1 - (shares[1] - 0.3) ** 2 * shares[0]
    return {
        "config": config,
        "status": "stopped" if number % 3 == 2 else "diverged" if number % 11 == 7 else "completed",
        "val_retain_acc": keep,
        "val_probe_forget_acc": 1 - forget,
        "epochs": config["int"],
        "shorter": [
            {"int": epoch, "val_retain_acc": keep, "val_probe_forget_acc": 1 - forget * epoch / 10}
            for epoch in range(1, min(config["int"] + 3, 10))
        ],
        "curve": [[epoch, keep * forget * epoch / config["int"]] for epoch in (1, 3, 9, 10) if epoch <= config["int"]],
    }
