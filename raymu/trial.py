"""One trial: a method at one setting, from the original model to a row. Knows nothing of Ray."""

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from raymu import data, memory, models, references
from raymu.engines.local import Engine
from raymu.errors import Diverged, InputError
from raymu.evaluation import evaluate, gaps, keys, look
from raymu.method import Method
from raymu.objective import OBJECTIVES
from raymu.scenario import Scenario

Row = dict[str, Any]

NO_METRICS = {"probe": None} | {column: None for key in keys() for column in (key, f"{key}_gap")}


def run_trial(
    scenario: Scenario,
    method: Method,
    *,
    seed: int,
    objective: str = "hmean",
    threads: int = 1,
    rungs: Sequence[int] = (),
    report: Callable[[Row], None] = lambda row: None,
) -> tuple[Row, torch.nn.Module | None]:
    """Unlearn and evaluate.

    The same arguments give the same metrics, to the last digit on the same machine: everything random comes from
    `seed`, and `threads` (CPU threads of torch) is part of the arguments.

    Args:
        rungs: epochs after which the accuracies are measured in between (`look`), and the row so far reported.
        report: called after each of the rungs with the row (status "stopped") that the trial leaves if it is ended
            here; may raise to end it.

    Returns:
        The final row and the unlearned model. The row's `status` is

        - "completed": all metrics are there, `score` is the objective on validation, `curve` lists [epoch, score];
        - "diverged": loss or features are not finite: score 0, metrics None, no model;
        - "error": something was raised: `error` and `traceback` say what, score and metrics None, no model.
    """
    started = time.perf_counter()
    row = blank_row(scenario, method, seed=seed, objective=objective, threads=threads)
    unlearned: torch.nn.Module | None = None
    try:
        reference = references.load(scenario, references.default_device(), threads)
        started = time.perf_counter()  # what a process loads once is no trial's own time
        if method.start == "original":
            model = reference.model()
        else:
            model = models.build(scenario, seed).to(reference.data.device)
        engine = Engine(
            model,
            reference.data,
            scenario,
            seed=seed,
            cache_directory=reference.cache_directory() if method.start == "original" else None,
        )

        def measure(metrics: Callable[[], Row], retrained: Row) -> None:
            before = time.perf_counter()
            row.update(metrics())
            row.update(gaps(row, retrained))
            row["score"] = OBJECTIVES[objective](row)
            row["curve"].append([engine.epoch, row["score"]])
            row["evaluate_s"] += time.perf_counter() - before
            row["wall_s"] = time.perf_counter() - started
            row["unlearn_s"] = row["wall_s"] - row["evaluate_s"]

        def end_of_epoch(epoch: int) -> None:
            row["epochs"], row["images"] = epoch, engine.images
            if epoch in rungs and epoch < method.total_epochs:
                measure(lambda: look(engine.model, reference.data), reference.look)
                report({**row, "status": "stopped"})

        with references.cpu_threads(threads):
            memory.reset_peak(references.default_device())
            engine.run(method, end_of_epoch)
            row["epochs"], row["images"] = engine.epoch, engine.images
            row["peak_mem"] = memory.peak(references.default_device())
            if engine.epoch != method.total_epochs:
                raise RuntimeError(f"the method ended after epoch {engine.epoch} of {method.total_epochs}")
            measure(lambda: evaluate(engine.model, reference.data, reference.baseline), reference.metrics["retrained"])
        unlearned = engine.model
    except Diverged as divergence:
        row.update(NO_METRICS, status="diverged", score=0.0, error=str(divergence))
    except Exception as error:  # whatever a method raises belongs to its row; the sweep goes on
        row.update(NO_METRICS, status="error", score=None, error=f"{type(error).__name__}: {error}")
        row["traceback"] = traceback.format_exc()
    row["wall_s"] = time.perf_counter() - started
    row["unlearn_s"] = row["wall_s"] - row["evaluate_s"]
    return row, unlearned


def check(scenario: Scenario, method: type[Method], objective: str) -> None:
    """Look whether a method can be tried on a scenario.

    Raises:
        InputError: a forget set that the data does not have or the method cannot forget, an architecture that timm
            does not have, or an objective that says nothing there.
    """
    data.check_forget(scenario)
    models.check_architecture(scenario)
    if scenario.forget_share:
        if method.classes_only:
            raise InputError(f"{method.name()} forgets classes; it cannot forget single samples")
        if objective != "oracle_gap":
            raise InputError(
                f"objective {objective} wants the forget set to be unreadable, but single samples are read as well as"
                " unseen ones once they are forgotten: use oracle_gap"
            )


def blank_row(scenario: Scenario, method: Method, *, seed: int, objective: str, threads: int) -> Row:
    """The row of a trial that has not begun: what is known is there, the rest is None or 0."""
    return {
        "method": method.name(),
        "scenario": scenario.name,
        "scenario_hash": scenario.hash,
        "forget": list(scenario.forget),
        "forget_share": scenario.forget_share,
        "head": method.head,
        "train": method.train,
        "model_seed": scenario.model_seed,
        "seed": seed,
        "threads": threads,
        "config": method.config,
        "status": "completed",
        "objective": objective,
        "score": None,
        "curve": [],
        "epochs": 0,
        "images": 0,
        "unlearn_s": 0.0,
        "evaluate_s": 0.0,
        "wall_s": 0.0,
        "peak_mem": None,
        **NO_METRICS,
        "error": None,
        "traceback": None,
    }
