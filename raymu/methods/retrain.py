"""Retrain: train from scratch without the forget set. The reference for every other method, and the upper cost."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn.functional import cross_entropy

from raymu.engines.local import Engine
from raymu.method import Method, Range, tuned
from raymu.scenario import Scenario

WARMUP_EPOCHS = 5
FINAL_LR = 1e-5


@dataclass(frozen=True, kw_only=True)
class Retrain(Method):
    """Minimise CE on the retain set from random weights: linear warm-up, then cosine decay of the learning rate.

    Reads retain images with their true labels.
    """

    paper: ClassVar[str] = "Gao et al., AISTATS 2026, Table 4 (RetainOnlyRetrain)"
    published: ClassVar[Mapping[str, dict[str, Any]]] = {"cifar10-resnet18": {"lr": 1e-2, "epochs": 200}}
    start: ClassVar[Literal["original", "scratch"]] = "scratch"
    reads: ClassVar[Literal["retain", "train"]] = "retain"

    lr: float = tuned(1e-2, Range(1e-4, 1.0, "log"), "peak learning rate")
    epochs: int = tuned(200, Range(1, 300, "int"), "passes over the retain set")

    @classmethod
    def published_config(cls, scenario: Scenario) -> dict[str, Any]:
        """The paper's setting; elsewhere the recipe that trained the scenario's references."""
        recipe = {"lr": scenario.recipe.lr, "epochs": scenario.recipe.epochs}
        return {**recipe, **cls.published.get(scenario.name, {})}

    def lr_factor(self, epoch: int) -> float:
        if epoch <= WARMUP_EPOCHS:
            return epoch / WARMUP_EPOCHS
        progress = (epoch - WARMUP_EPOCHS) / (self.epochs - WARMUP_EPOCHS)
        final = FINAL_LR / self.lr
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    def unlearn(self, run: Engine) -> Iterator[Tensor]:
        for _ in run.epochs(self.epochs):
            for images, labels, _ in run.batches(self.reads):
                yield cross_entropy(run.model(images), labels)
