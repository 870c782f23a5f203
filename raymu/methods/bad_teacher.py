"""Bad teacher: learn the rest from the original, and the forget set from a model that knows nothing."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch.nn.functional import kl_div, log_softmax

from raymu.method import Method, Range, Step, tuned
from raymu.run import Run
from raymu.values import SHARE


class BadTeacher(Method):
    """Distil the forget set from a randomly initialised teacher, and a part of the retain set from the original, by
    Adam.

        loss = KL(teacher || student) / classes, of logits / T, the teacher being the random one for forget images

    The division by the number of classes is the authors', who average over all elements. Reads all forget images and a
    sample of the retain images, drawn once, in one mixed stream, no labels. BatchNorm statistics follow both.

    Differs from the source (the notebook for CIFAR-Super20 of Chundawat et al.): they have batches of 256 images, here
    they are the scenario's.
    """

    paper: ClassVar[str] = "Chundawat et al., AAAI 2023"
    nested: ClassVar[str] = "epochs"

    lr: float = tuned(1e-4, Range(1e-6, 1e-2, "log"), "learning rate")
    epochs: int = tuned(1, Range(1, 10, "int"), "passes over the forget set and the retain sample")
    retain_share: float = tuned(0.3, Range(0.1, 1.0, "linear"), "share of the retain set that is read", SHARE)
    T: float = tuned(1.0, Range(1.0, 8.0, "linear"), "temperature of the distillation")

    def unlearn(self, run: Run) -> Iterator[Step]:
        competent, incompetent = run.teacher("original"), run.teacher("random")
        sample = run.portion("retain", self.retain_share, seed=run.seed)
        rows = torch.cat([run.portion("forget", 1.0, seed=run.seed), sample])
        for _ in run.epochs(self.epochs, self.lr, "adam"):
            for batch in run.batches(rows):
                taught = torch.where(batch.forget.unsqueeze(1), incompetent(batch), competent(batch))
                student = log_softmax(run.model(batch.images) / self.T, dim=1)
                teacher = log_softmax(taught / self.T, dim=1)
                yield kl_div(student, teacher, reduction="batchmean", log_target=True) / student.shape[1]
