"""NegGrad+: descend on the retain set and ascend on the forget set, in the same step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.nn.functional import cross_entropy

from raymu.engines.local import Engine
from raymu.method import Clipped, Method, Range, Step, fixed, tuned


@dataclass(frozen=True, kw_only=True)
class NegGradPlus(Method):
    """Minimise CE on the retain set less `ascent` times CE on the forget set, a batch of each in every step. Only the
    ascent's gradient is clipped.

        loss = CE(retain) - ascent * CE(forget)

    Reads retain images once an epoch and forget images over and over. BatchNorm statistics follow both, batch by
    batch.
    """

    paper: ClassVar[str] = "Kurmanji et al., NeurIPS 2023"
    published: ClassVar[dict[Any, Any]] = {
        ("cifar10", "linear"): {"lr": 1e-4, "epochs": 3},
        ("cifar100", "linear"): {"lr": 5e-3, "epochs": 3},
        ("tinyimagenet", "linear"): {"lr": 5e-4, "epochs": 3},
        ("cifar10", "cmf"): {"lr": 1e-4, "epochs": 3},
        ("cifar100", "cmf"): {"lr": 1e-4, "epochs": 3},
        ("tinyimagenet", "cmf"): {"lr": 3e-5, "epochs": 3},
    }

    lr: float = tuned(1e-4, Range(1e-6, 1e-1, "log"), "learning rate")
    epochs: int = tuned(3, Range(1, 10, "int"), "passes over the retain set")
    ascent: float = tuned(1.0, Range(0.05, 2.0, "linear"), "weight of the forget set's loss (a)")
    clip: float | None = fixed(1.0, "norm that the ascent's gradient is clipped to")

    def unlearn(self, run: Engine) -> Iterator[Step]:
        forget_batches = run.cycle("forget")
        for _ in run.epochs(self.epochs, self.lr):
            for retain in run.batches("retain"):
                forget = next(forget_batches)
                climbed = -self.ascent * cross_entropy(run.model(forget.images), forget.labels)
                yield Clipped(climbed, self.clip), cross_entropy(run.model(retain.images), retain.labels)
