"""SCRUB: a student that disobeys its teacher on the forget set and obeys it on the rest."""

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from raymu.method import Method, Range, Step, fixed, tuned
from raymu.run import Run
from raymu.values import NOT_NEGATIVE

DECAY_EPOCHS = (3, 5, 9)
DECAY = 0.1


class Scrub(Method):
    """The original is the teacher. The first `msteps` epochs begin with a pass over the forget set that drives the
    student away from it; every epoch has a pass over the retain set that draws the student to teacher and labels.

        forget: loss = -KL(teacher || student)
        retain: loss = alpha * KL(teacher || student) + gamma * CE
        KL at temperature T, times T^2

    The learning rate falls to a tenth after epochs 3, 5 and 9. Reads forget and retain images. BatchNorm statistics
    follow both.

    Differs from the source: settings follow Gao et al., AISTATS 2026. Kurmanji et al. have others for their own
    data, and rewind to an epoch where privacy matters (SCRUB+R).
    """

    paper: ClassVar[str] = "Kurmanji et al., NeurIPS 2023"
    published: ClassVar[dict[Any, Any]] = {
        ("cifar10", "linear", "code"): {"lr": 1e-4},
        ("cifar100", "linear", "code (one class)"): {"lr": 1e-3},
        ("cifar100", "linear", "code (several classes)"): {"lr": 3e-4},
        ("cifar100", "linear", "table"): {"lr": 1e-3},
        ("tinyimagenet", "linear", "code (one class)"): {"lr": 5e-3},
        ("tinyimagenet", "linear", "code (several classes)"): {"lr": 1e-3},
        ("tinyimagenet", "linear", "table"): {"lr": 5e-3},
        ("cifar10", "cmf", "code (one class)"): {"lr": 5e-3},
        ("cifar10", "cmf", "code (several classes)"): {"lr": 1e-3},
        ("cifar10", "cmf", "table"): {"lr": 5e-3},
        ("cifar100", "cmf", "code"): {"lr": 5e-3},
        ("tinyimagenet", "cmf", "code (one class)"): {"lr": 5e-3},
        ("tinyimagenet", "cmf", "code (several classes)"): {"lr": 1e-3},
        ("tinyimagenet", "cmf", "table"): {"lr": 1e-3},
    }
    nested: ClassVar[str] = "epochs"

    lr: float = tuned(1e-4, Range(1e-6, 1e-1, "log"), "learning rate")
    epochs: int = tuned(3, Range(1, 10, "int"), "passes over the retain set")
    msteps: int = tuned(2, Range(1, 10, "int"), "epochs that begin with the forget set: not more than there are")
    T: float = tuned(4.0, Range(1.0, 8.0, "linear"), "temperature of the distillation")
    alpha: float = tuned(1e-3, Range(1e-4, 2.0, "log"), "weight of the teacher on the retain set", NOT_NEGATIVE)
    gamma: float = tuned(0.99, Range(0.1, 2.0, "linear"), "weight of the labels on the retain set", NOT_NEGATIVE)
    batch_size: int = fixed(64, "images a step")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "msteps", min(self.msteps, self.epochs))  # what runs is what the row says

    @property
    def comparable_from(self) -> int:
        """The passes over the forget set make the score dip."""
        return min(self.msteps + 1, self.epochs)

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch (1, 2, ...)."""
        return self.lr * DECAY ** sum(epoch > end for end in DECAY_EPOCHS)

    def unlearn(self, run: Run) -> Iterator[Step]:
        teacher = run.teacher("original")
        for epoch in run.epochs(self.epochs, self.rate, "momentum"):
            if epoch <= self.msteps:
                for batch in run.batches("forget", batch_size=self.batch_size):
                    yield -divergence(teacher(batch), run.model(batch.images), self.T)
            for batch in run.batches("retain", batch_size=self.batch_size):
                logits = run.model(batch.images)
                yield self.alpha * divergence(teacher(batch), logits, self.T) + self.gamma * cross_entropy(
                    logits, batch.labels
                )


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of softened logits (B, K), mean over the batch (Hinton et al., 2015)."""
    student, teacher = (log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
