"""Gradient ascent: undo learning by climbing the loss on the forget set."""

from collections.abc import Iterator
from typing import ClassVar

from torch.nn.functional import cross_entropy

from raymu.method import Clipped, Method, Range, Step, fixed, tuned
from raymu.run import Part, Run


class GradientAscent(Method):
    """Raise CE on the forget set. Nothing holds the rest of the model together, so the gradient's norm is clipped.

        loss = -CE(forget)

    Reads forget images. BatchNorm statistics follow them.

    Differs from the source: Thudi et al. take one step, along gradients at the original's first weights; here many
    small ones are taken, each from where the last led, as later papers mean by the name. The settings are nobody's.
    """

    paper: ClassVar[str] = "Thudi et al., EuroS&P 2022"
    needs: ClassVar[tuple[Part, ...]] = ("forget",)
    nested: ClassVar[str] = "epochs"

    lr: float = tuned(1e-4, Range(1e-7, 1e-2, "log"), "learning rate")
    epochs: int = tuned(3, Range(1, 10, "int"), "passes over the forget set")
    clip: float | None = fixed(1.0, "norm that the gradient is clipped to")

    def unlearn(self, run: Run) -> Iterator[Step]:
        for _ in run.epochs(self.epochs, self.lr):
            for batch in run.batches("forget"):
                yield Clipped(-cross_entropy(run.model(batch.images), batch.labels), self.clip)
