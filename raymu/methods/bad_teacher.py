"""Bad teacher: learn the rest from the original, and the forget set from a model that knows nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from raymu.engines.local import Engine
from raymu.method import Method, Range, Step, tuned
from raymu.methods.scrub import divergence


@dataclass(frozen=True, kw_only=True)
class BadTeacher(Method):
    """Distil the forget set from a randomly initialised teacher and the retain set from the original.

        loss = KL(teacher || student) at temperature T, the teacher being the random one for forget images

    Reads forget and retain images in one mixed stream, no labels. BatchNorm statistics follow both.
    """

    paper: ClassVar[str] = "Chundawat et al., AAAI 2023"

    lr: float = tuned(1e-4, Range(1e-6, 1e-2, "log"), "learning rate")
    epochs: int = tuned(1, Range(1, 10, "int"), "passes over the training set")
    T: float = tuned(1.0, Range(1.0, 8.0, "linear"), "temperature of the distillation")

    def unlearn(self, run: Engine) -> Iterator[Step]:
        competent, incompetent = run.teacher("original"), run.teacher("random")
        for _ in run.epochs(self.epochs, self.lr):
            for batch in run.batches("train"):
                taught = torch.where(batch.forget.unsqueeze(1), incompetent(batch), competent(batch))
                yield divergence(taught, run.model(batch.images), self.T)
