"""Finetune: go on training on the retain set only, and let the rest fade."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from raymu.engines.local import Engine
from raymu.method import Method, Range, tuned


@dataclass(frozen=True, kw_only=True)
class Finetune(Method):
    """Minimise CE on the retain set, starting from the original model.

    Reads retain images with their true labels. BatchNorm statistics follow the retain batches.
    """

    paper: ClassVar[str] = "Gao et al., AISTATS 2026, Table 4"

    lr: float = tuned(1e-3, Range(1e-5, 1e-1, "log"), "learning rate")
    epochs: int = tuned(3, Range(1, 10, "int"), "passes over the retain set")

    def unlearn(self, run: Engine) -> Iterator[Tensor]:
        for _ in run.epochs(self.epochs):
            for images, labels, _ in run.batches("retain"):
                yield cross_entropy(run.model(images), labels)
