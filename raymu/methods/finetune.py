"""Finetune: go on training on the retain set only, and let the rest fade."""

from collections.abc import Iterator
from typing import Any, ClassVar

from torch.nn.functional import cross_entropy

from raymu.method import Method, Range, Step, tuned
from raymu.run import Part, Run


class Finetune(Method):
    """Minimise CE on the retain set, starting from the original model.

        loss = CE(retain)

    Reads retain images. BatchNorm statistics follow them.

    Differs from the source: Golatkar et al. have no such settings; steps and settings follow Gao et al., AISTATS
    2026, and do not differ from their code.
    """

    paper: ClassVar[str] = "Golatkar et al., CVPR 2020"
    needs: ClassVar[tuple[Part, ...]] = ("retain",)
    nested: ClassVar[str] = "epochs"
    published: ClassVar[dict[Any, Any]] = {
        ("cifar10", "linear", "code"): {"lr": 1e-3, "epochs": 3},
        ("cifar100", "linear", "code"): {"lr": 1e-3, "epochs": 3},
        ("tinyimagenet", "linear", "code"): {"lr": 1e-3, "epochs": 3},
    }

    lr: float = tuned(1e-3, Range(1e-5, 1e-1, "log"), "learning rate")
    epochs: int = tuned(3, Range(1, 10, "int"), "passes over the retain set")

    def unlearn(self, run: Run) -> Iterator[Step]:
        for _ in run.epochs(self.epochs, self.lr):
            for batch in run.batches("retain"):
                yield cross_entropy(run.model(batch.images), batch.labels)
