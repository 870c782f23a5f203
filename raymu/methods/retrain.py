"""Retrain: train anew without the forget set. The reference for every other method, and the upper cost."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from torch.nn.functional import cross_entropy

from raymu.method import Head, Method, Range, Step, tuned
from raymu.run import Part, Run
from raymu.scenario import Scenario

WARMUP_EPOCHS = 5
FINAL_LR = 1e-5


class Retrain(Method):
    """Minimise CE on the retain set, from weights drawn anew by the trial's seed (or the pretrained ones that the
    original's training started from, with a new head): linear warm-up, then cosine decay of the learning rate, by the
    optimizer of the scenario's recipe, to the last epoch. The reference that is called retrained ends where the
    recipe's patience does, and starts as the original did.

        loss = CE(retain)

    Reads retain images. BatchNorm statistics follow them.

    Differs from the source: the script of Gao et al. for Tiny-ImageNet has weight decay 1e-4, here it is 5e-4. Their
    cosine is one epoch later, for the originals as well: their first epoch after the warm-up has the peak rate again,
    and their last one is still above 1e-5. Their retrained model has all of its epochs, where the reference here may
    end early: the script asks for a patience of 75 epochs, but early stopping is commented out in their code.
    """

    paper: ClassVar[str] = "Gao et al., AISTATS 2026 (RetainOnlyRetrain)"
    needs: ClassVar[tuple[Part, ...]] = ("retain",)
    published: ClassVar[dict[Any, Any]] = {
        ("cifar10", "linear", "table"): {"lr": 1e-2, "epochs": 200},
        ("cifar100", "linear", "table"): {"lr": 1e-2, "epochs": 200},
        ("tinyimagenet", "linear", "code"): {"lr": 5e-2, "epochs": 300},
        ("tinyimagenet", "linear", "table"): {"lr": 5e-2, "epochs": 150},
    }
    start: ClassVar[Literal["original", "scratch"]] = "scratch"

    lr: float = tuned(1e-2, Range(1e-5, 1.0, "log"), "peak learning rate")
    epochs: int = tuned(200, Range(1, 300, "int"), "passes over the retain set")

    @classmethod
    def published_config(cls, scenario: Scenario, head: Head = "linear") -> dict[str, Any]:
        """The paper's setting; elsewhere the recipe that trained the scenario's references."""
        if cls.is_published(scenario, head):
            return super().published_config(scenario, head)
        return cls(head=head, lr=scenario.recipe.lr, epochs=scenario.recipe.epochs).config

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch (1, 2, ...)."""
        if epoch <= WARMUP_EPOCHS:
            return self.lr * epoch / WARMUP_EPOCHS
        progress = (epoch - WARMUP_EPOCHS) / (self.epochs - WARMUP_EPOCHS)
        return FINAL_LR + (self.lr - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2

    def unlearn(self, run: Run) -> Iterator[Step]:
        part: Any = "retain" if self.needs == ("retain",) else "train"
        for _ in run.epochs(self.epochs, self.rate, run.scenario.recipe.optimizer):
            for batch in run.batches(part):
                yield cross_entropy(run.model(batch.images), batch.labels)
