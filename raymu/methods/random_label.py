"""Random label: keep training, but with wrong labels on the forget set."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from raymu.engines.local import Engine
from raymu.method import Method, Range, tuned


@dataclass(frozen=True, kw_only=True)
class RandomLabel(Method):
    """Minimise CE on the whole training set, where a forget image gets a label drawn anew at every visit among the
    classes that are not forgotten.

    Reads forget and retain images, mixed in one stream. BatchNorm statistics follow both.
    """

    paper: ClassVar[str] = "Golatkar et al., CVPR 2020; settings of Gao et al., AISTATS 2026, Table 4"
    published: ClassVar[Mapping[str, dict[str, Any]]] = {"cifar10-resnet18": {"lr": 1e-4, "epochs": 3}}

    lr: float = tuned(1e-4, Range(1e-5, 1e-1, "log"), "learning rate")
    epochs: int = tuned(3, Range(1, 10, "int"), "passes over the training set")

    def unlearn(self, run: Engine) -> Iterator[Tensor]:
        for _ in run.epochs(self.epochs):
            for images, labels, forget in run.batches("train"):
                labels = torch.where(forget, run.random_retain_labels(len(labels)), labels)
                yield cross_entropy(run.model(images), labels)
