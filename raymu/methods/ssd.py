"""SSD, selective synaptic dampening: shrink the weights that matter for the forget set more than for the rest."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from raymu.method import Method, Range, Step, tuned
from raymu.run import Run, Subset


class SSD(Method):
    """No training: where the diagonal Fisher information of the forget set exceeds alpha times the one of all training
    data, the weight is scaled down.

        weight *= min(1, lambda * F_all / F_forget)  where F_forget > alpha * F_all

    F is the mean over batches of the squared gradient of the batch's CE, so it depends on the batch size and on what
    classes are in a batch: they come one after the other, wherever images are stored. Reads forget and retain images
    once, without augmentation and in eval mode: BatchNorm statistics do not move.

    Differs from the source: Foster et al. have batches of 64 images where they forget a class and of 128 where they
    forget samples, here they are the scenario's. Of all training data they read the forget class last, and samples in
    random order. For ViTs they halve alpha where they forget a class. Gao et al. have the same rule, but read augmented
    images in random order.
    """

    paper: ClassVar[str] = "Foster et al., AAAI 2024"
    trains: ClassVar[bool] = False

    alpha: float = tuned(10.0, Range(0.1, 100.0, "log"), "how much more a dampened weight matters to the forget set")
    damping: float = tuned(1.0, Range(0.01, 10.0, "log"), "strength of what is left of it (lambda)")

    def unlearn(self, run: Run) -> Iterator[Step]:
        of_forget = run.cached("fisher-forget", lambda: fisher(run, "forget"))
        of_all = run.cached("fisher-train", lambda: fisher(run, "train"))

        def dampened(name: str, weight: Tensor) -> Tensor:
            chosen = of_forget[name] > self.alpha * of_all[name]
            factor = (self.damping * of_all[name] / of_forget[name]).clamp(max=1)
            return torch.where(chosen, weight * factor, weight)

        run.edit(dampened)
        yield from ()


def fisher(run: Run, subset: Subset) -> dict[str, Tensor]:
    """The diagonal Fisher information: the mean over batches of the squared gradient of the mean CE, by weight."""
    mean = {name: torch.zeros_like(weight) for name, weight in run.weights().items()}
    for count, gradients in enumerate(run.gradients(subset, "mean"), start=1):
        known, some = list(mean.values()), list(gradients.values())
        step = torch._foreach_sub(torch._foreach_mul(some, some), known)
        torch._foreach_add_(known, torch._foreach_div(step, float(count)))
    return mean
