"""One trial: a method at one setting, from the original model to a row. Knows nothing of Ray."""

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from raymu import models, references
from raymu.engines.local import Engine
from raymu.errors import Diverged
from raymu.evaluation import evaluate, gaps
from raymu.evaluation.evaluate import keys
from raymu.method import Method
from raymu.objective import OBJECTIVES
from raymu.scenario import Scenario

Row = dict[str, Any]

NO_METRICS = {column: None for key in keys() for column in (key, f"{key}_gap")}


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
        rungs: epochs after which the model is evaluated in between, and the row so far reported.
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
            model = models.build(scenario, seed).to(reference.data.mean.device)
        engine = Engine(
            model,
            reference.data,
            batch_size=scenario.recipe.batch_size,
            seed=seed,
            augment=scenario.recipe.augment,
            saliency_cache=reference.saliency_cache() if method.start == "original" else None,
        )

        def end_of_epoch(epoch: int) -> None:
            row["epochs"], row["images"] = epoch, engine.images
            if epoch in rungs or epoch == method.epochs:
                before = time.perf_counter()
                row.update(evaluate(model, reference.data))
                row.update(gaps(row, reference.metrics["retrained"]))
                row["score"] = OBJECTIVES[objective](row)
                row["curve"].append([epoch, row["score"]])
                row["evaluate_s"] += time.perf_counter() - before
                row["wall_s"] = time.perf_counter() - started
                row["unlearn_s"] = row["wall_s"] - row["evaluate_s"]
                if epoch < method.epochs:
                    report({**row, "status": "stopped"})

        with references.cpu_threads(threads):
            engine.run(method, end_of_epoch)
        if row["epochs"] != method.epochs:
            raise RuntimeError(f"the method ended after epoch {row['epochs']} of {method.epochs}")
        unlearned = model
    except Diverged as divergence:
        row.update(NO_METRICS, status="diverged", score=0.0, error=str(divergence))
    except Exception as error:  # whatever a method raises belongs to its row; the sweep goes on
        row.update(NO_METRICS, status="error", score=None, error=f"{type(error).__name__}: {error}")
        row["traceback"] = traceback.format_exc()
    row["wall_s"] = time.perf_counter() - started
    row["unlearn_s"] = row["wall_s"] - row["evaluate_s"]
    return row, unlearned


def blank_row(scenario: Scenario, method: Method, *, seed: int, objective: str, threads: int) -> Row:
    """The row of a trial that has not begun: what is known is there, the rest is None or 0."""
    return {
        "method": method.name(),
        "scenario": scenario.name,
        "scenario_hash": scenario.hash,
        "forget": list(scenario.forget),
        "seed": seed,
        "threads": threads,
        "config": {name: getattr(method, name) for name in method.ranges()},
        "status": "completed",
        "objective": objective,
        "score": None,
        "curve": [],
        "epochs": 0,
        "images": 0,
        "unlearn_s": 0.0,
        "evaluate_s": 0.0,
        "wall_s": 0.0,
        **NO_METRICS,
        "error": None,
        "traceback": None,
    }
