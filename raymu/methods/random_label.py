"""Random label: keep training, but with wrong labels on the forget set."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from raymu.method import Clipped, Method, Range, Step, fixed, tuned
from raymu.run import Run


class RandomLabel(Method):
    """Minimise CE on the whole training set, where a forget image gets a wrong label drawn anew at every visit, among
    the classes that are not forgotten.

        loss = CE(retain, true labels) + CE(forget, random labels), in one mixed stream of batches

    Reads forget and retain images. BatchNorm statistics follow both.

    Differs from the source: Golatkar et al. have no such settings; steps and settings follow Gao et al., AISTATS
    2026, and do not differ from their code. Where samples are forgotten, which is not theirs, labels are drawn among
    all but the sample's own.
    """

    paper: ClassVar[str] = "Golatkar et al., CVPR 2020"
    published: ClassVar[dict[Any, Any]] = {
        ("cifar10", "linear", "code"): {"lr": 1e-2},
        ("cifar10", "linear", "table"): {"lr": 1e-4},
        ("cifar100", "linear", "code"): {"lr": 3e-3},
        ("tinyimagenet", "linear", "code"): {"lr": 5e-4},
        ("cifar10", "cmf", "code (one class)"): {"lr": 1e-4, "epochs": 4, "clip": 1.0},
        ("cifar10", "cmf", "code (several classes)"): {"lr": 2e-3, "epochs": 4, "clip": 1.0},
        ("cifar10", "cmf", "table"): {"lr": 2e-3, "epochs": 4, "clip": 1.0},
        ("cifar100", "cmf", "code"): {"lr": 2e-3, "epochs": 4, "clip": 1.0},
        ("tinyimagenet", "cmf", "code"): {"lr": 1e-2, "epochs": 4, "clip": 1.0},
    }
    nested: ClassVar[str] = "epochs"

    lr: float = tuned(1e-2, Range(1e-5, 1e-1, "log"), "learning rate")
    epochs: int = tuned(3, Range(1, 10, "int"), "passes over the training set")
    clip: float | None = fixed(None, "norm that the gradient is clipped to")

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch (1, 2, ...)."""
        return self.lr

    def unlearn(self, run: Run) -> Iterator[Step]:
        for _ in run.epochs(self.epochs, self.rate):
            for batch in run.batches("train"):
                labels = torch.where(batch.forget, run.random_labels(batch), batch.labels)
                yield Clipped(cross_entropy(run.model(batch.images), labels), self.clip)
