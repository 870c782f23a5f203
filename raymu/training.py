"""How a reference is trained: by the scenario's recipe, from the last checkpoint on where there is one."""

import contextlib
import copy
import time
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from raymu import engines, heartbeat, splits
from raymu.checkpoints import Checkpoints
from raymu.engines import DEFAULTS, Options
from raymu.evaluation import accuracy
from raymu.methods.retrain import Retrain
from raymu.models import inference
from raymu.run import Part
from raymu.scenario import Scenario


class TrainOriginal(Retrain):
    """The original's training: like the retrained model's, on the whole training set."""

    needs: ClassVar[tuple[Part, ...]] = ("retain", "forget")


class _Converged(Exception):
    """The recipe's patience is over."""


class _Best(NamedTuple):
    """The weights so far with the highest validation accuracy; none where the recipe does not ask for it."""

    accuracy: float
    epoch: int
    weights: dict[str, Tensor]


class Fitted(NamedTuple):
    """Outcome of a training: the epoch whose weights it ended with, its seconds (earlier attempts included), and what
    `carried_out_by` returned.
    """

    epochs: int
    seconds: float
    by: list[Any]


def carried_out_by(options: Options, device: torch.device) -> list[Any]:
    """Threads, workers, engine, DeepSpeed's configuration and device: the last digits of a training depend on them."""
    return [options.threads, options.workers, options.engine, options.deepspeed, device.type]


def fit(
    model: nn.Module,
    scenario_data: splits.Data,
    method: Retrain,
    scenario: Scenario,
    options: Options = DEFAULTS,
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """Train the model in place by the scenario's recipe.

    Args:
        checkpoints: where its state after an epoch is kept. It goes on from one that it finds there, if that was
            carried out alike.
    """
    started = kept = time.perf_counter()
    workers, patience = scenario_data.workers, scenario.recipe.patience
    by = carried_out_by(options, scenario_data.device)
    best = _Best(-1.0, method.epochs, {})
    engine = engines.make(model, scenario_data, scenario, seed=scenario.model_seed, options=options)

    def end_of_epoch(epoch: int) -> None:
        nonlocal best, kept
        if patience is not None:
            accuracy = _val_accuracy(model, scenario_data, scenario, method)
            if accuracy > best.accuracy:
                best = _Best(accuracy, epoch, copy.deepcopy(model.state_dict()))
            elif epoch - best.epoch >= patience:
                raise _Converged
        is_due = time.perf_counter() - kept >= options.checkpoint_s or heartbeat.ends_soon()
        if checkpoints is not None and workers.broadcast(is_due):
            kept = time.perf_counter()
            so_far = {
                "of": scenario.hash,
                "by": by,
                "best": [best.accuracy, best.epoch],
                "seconds": kept - started,
            }
            checkpoints.save(engine.state()._replace(best=best.weights), so_far, workers)

    found = None if checkpoints is None else checkpoints.load(workers)
    if found is not None and (found[1]["by"], found[1].get("of")) == (by, scenario.hash):
        state, so_far = found
        accuracy, epoch = so_far["best"]
        best = _Best(accuracy, epoch, state.best)
        engine.resume(state)
        started -= so_far["seconds"]
    with contextlib.suppress(_Converged):
        engine.run(method, end_of_epoch)
    if best.weights:
        model.load_state_dict(best.weights)
    return Fitted(best.epoch, time.perf_counter() - started, by)


def _val_accuracy(model: nn.Module, scenario_data: splits.Data, scenario: Scenario, method: Retrain) -> float:
    """Share of right answers on held-out images of the classes that the method trains on."""
    retain, forget = scenario_data.val
    splits = [retain, forget] if scenario.forget and "forget" in method.needs else [retain]
    said = inference.extract(model, scenario_data, *splits)
    answers = torch.cat([one.logits.argmax(1) for one in said])
    labels = torch.cat([one.labels for one in said])
    return accuracy(answers, labels, scenario_data.workers)
