"""The two models everything is compared with: the original, and the one retrained without the forget set."""

import contextlib
import copy
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from raymu import cache, data, models
from raymu.engines.local import Engine
from raymu.evaluation import evaluate
from raymu.method import Part
from raymu.methods.retrain import Retrain
from raymu.scenario import Scenario

Which = Literal["original", "retrained"]
REFERENCES: tuple[Which, ...] = ("original", "retrained")


@dataclass(frozen=True, kw_only=True)
class Train(Retrain):
    """The original's training: that of the retrained model, on the whole training set."""

    needs: ClassVar[tuple[Part, ...]] = ("retain", "forget")


class _Converged(Exception):
    """The recipe's patience is over."""


def directory(scenario: Scenario) -> Path:
    """Where everything that belongs to the scenario is cached."""
    return cache.root() / "scenarios" / f"{scenario.name}-{scenario.hash}"


def missing(scenario: Scenario) -> list[Which]:
    """The references that are still to be trained."""
    return [which for which in REFERENCES if not (directory(scenario) / which).exists()]


def train(scenario: Scenario, which: Which, threads: int) -> Path:
    """Train and evaluate one reference unless it is cached; return the directory that holds it.

    Args:
        threads: CPU threads of torch.

    Raises:
        Diverged: the recipe does not train this model.
    """

    def build(entry: Path) -> None:
        started = time.perf_counter()
        device = default_device()
        scenario_data = data.load(scenario, device)
        model = models.build(scenario, scenario.seed).to(device)
        method = (Train if which == "original" else Retrain)(lr=scenario.recipe.lr, epochs=scenario.recipe.epochs)
        with cpu_threads(threads):
            epochs = fit(model, scenario_data, method, scenario)
            metrics = evaluate(model, scenario_data)
        cache.save_tensors(entry / "model.safetensors", model.state_dict())
        seconds = time.perf_counter() - started
        cache.save_json(entry / "reference.json", {"metrics": metrics, "epochs": epochs, "seconds": seconds})
        cache.save_json(entry / "scenario.json", scenario.as_dict())

    return cache.once(directory(scenario) / which, build)


def fit(model: nn.Module, scenario_data: data.Data, method: Retrain, scenario: Scenario) -> int:
    """Train the model in place by the scenario's recipe; return the epoch whose weights it ended with."""
    best_accuracy, best_epoch, best_weights = -1.0, method.epochs, None
    patience = scenario.recipe.patience

    def stop_early(epoch: int) -> None:
        nonlocal best_accuracy, best_epoch, best_weights
        if patience is None:
            return
        accuracy = _val_accuracy(model, scenario_data, scenario, method)
        if accuracy > best_accuracy:
            best_accuracy, best_epoch = accuracy, epoch
            best_weights = copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= patience:
            raise _Converged

    with contextlib.suppress(_Converged):
        Engine(model, scenario_data, scenario, seed=scenario.seed).run(method, stop_early)
    if best_weights is not None:
        model.load_state_dict(best_weights)
    return best_epoch


def _val_accuracy(model: nn.Module, scenario_data: data.Data, scenario: Scenario, method: Retrain) -> float:
    """Share of right answers on held-out images of the classes that the method trains on."""
    retain, forget = scenario_data.val
    splits = [retain, forget] if scenario.forget and "forget" in method.needs else [retain]
    right = [models.extract(model, scenario_data, split)[1].argmax(1) == split.targets for split in splits]
    return torch.cat(right).double().mean().item()


@dataclass(frozen=True)
class References:
    """A scenario's data and references, ready for trials.

    Attributes:
        metrics: for "original" and "retrained", what `evaluate` said of it.
    """

    scenario: Scenario
    data: data.Data
    metrics: dict[str, dict[str, float]]
    original: dict[str, Tensor]

    def model(self) -> nn.Module:
        """A copy of the original model that may be changed."""
        model = models.build(self.scenario, self.scenario.seed)
        model.load_state_dict(self.original)
        return model.to(self.data.mean.device)

    def cache_directory(self) -> Path:
        """Where methods keep what they compute from the original model."""
        return directory(self.scenario) / "computed"


@functools.lru_cache(maxsize=1)
def load(scenario: Scenario, device: torch.device, threads: int) -> References:
    """A scenario's references, from the cache; kept in memory, so that a process which runs trial after trial of one
    scenario reads them once. A reference that is missing is trained, with so many CPU threads.
    """
    entries = {which: train(scenario, which, threads) for which in REFERENCES}
    return References(
        scenario=scenario,
        data=data.load(scenario, device),
        metrics={which: metrics(entry) for which, entry in entries.items()},
        original=cache.load_tensors(entries["original"] / "model.safetensors", device),
    )


def metrics(entry: Path) -> dict[str, float]:
    """What `evaluate` said of the reference in that directory."""
    metrics: dict[str, float] = cache.load_json(entry / "reference.json")["metrics"]
    return metrics


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run the body with so many CPU threads of torch; the last digits of a result depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_device() -> torch.device:
    """The GPU that this process may use, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
