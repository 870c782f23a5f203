"""SalUn: random labels, but only the weights that matter for the forget set may move."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from raymu.method import Range, Step, fixed, tuned
from raymu.methods.random_label import RandomLabel
from raymu.run import Run
from raymu.values import SHARE

DECAY_EPOCHS = 3


class SalUn(RandomLabel):
    """Random label, restricted to the salient weights: the share of all weights, taken together, that the forget set's
    loss depends on most. The others keep their original value to the bit; they have no gradient when that is clipped.

        absolute saliency = sum over forget batches of |gradient of the summed CE|, at the original model (Gao et al.)
        signed saliency = |sum over forget batches of the gradient of the summed CE|, at the original model (Fan et al.)

    The absolute one depends on the batch size. It is the default since the settings follow Gao et al. Reads what
    random label reads. The saliency pass runs in eval mode, so that it leaves BatchNorm statistics alone; while it
    unlearns they follow the batches, as they do in the authors' code.

    Differs from the source: steps and settings follow Gao et al., AISTATS 2026; but they let weight decay move
    the masked weights, and choose otherwise among equally salient ones. Fan et al. sum the gradients of batches' means,
    draw labels among all classes, have plain momentum, and on CIFAR-10 a pass over the forget set before one over the
    retain set. Both take the saliency from augmented images; here the saliency pass never augments.
    """

    paper: ClassVar[str] = "Fan et al., ICLR 2024"
    published: ClassVar[dict[Any, Any]] = {
        ("cifar10", "linear", "code"): {"lr": 1e-2},
        ("cifar10", "linear", "table"): {"lr": 1e-4},
        ("cifar100", "linear", "code"): {"lr": 3e-3},
        ("cifar100", "linear", "table"): {"lr": 1e-3},
        ("tinyimagenet", "linear", "code"): {"lr": 5e-4},
        ("cifar10", "cmf", "code (one class)"): {"lr": 2e-4, "epochs": 4, "clip": 1.0, "decay": 0.2},
        ("cifar10", "cmf", "code (several classes)"): {"lr": 2e-3, "epochs": 4, "clip": 1.0, "decay": 0.2},
        ("cifar10", "cmf", "table"): {"lr": 2e-3, "epochs": 4, "clip": 1.0},
        ("cifar100", "cmf", "code"): {"lr": 2e-3, "epochs": 4, "clip": 1.0, "decay": 0.2},
        ("cifar100", "cmf", "table"): {"lr": 2e-3, "epochs": 4, "clip": 1.0},
        ("tinyimagenet", "cmf", "code"): {"lr": 1e-2, "epochs": 4, "clip": 1.0, "decay": 0.2},
        ("tinyimagenet", "cmf", "table"): {"lr": 1e-2, "epochs": 4, "clip": 1.0},
    }

    salient: float = tuned(0.5, Range(0.1, 0.9, "linear"), "share of the weights that may move", SHARE)
    saliency: Literal["absolute", "signed"] = fixed("absolute", "absolute or signed: what is summed over batches")
    decay: float = fixed(1.0, "what the learning rate is multiplied by after every third epoch", SHARE)

    def rate(self, epoch: int) -> float:
        """The learning rate in an epoch (1, 2, ...)."""
        return self.lr * self.decay ** ((epoch - 1) // DECAY_EPOCHS)

    def unlearn(self, run: Run) -> Iterator[Step]:
        kept = run.cached(f"saliency-{self.saliency}", lambda: saliency(run, self.saliency))
        run.train_only(largest({name: kept[name] for name in run.weights()}, self.salient))  # ties depend on the order
        yield from super().unlearn(run)


def saliency(run: Run, kind: Literal["absolute", "signed"] = "absolute") -> dict[str, Tensor]:
    """How much the forget set's loss depends on every weight."""
    total = {name: torch.zeros_like(weight) for name, weight in run.weights().items()}
    for gradients in run.gradients("forget", "sum"):
        for name, gradient in gradients.items():
            total[name] += gradient.abs() if kind == "absolute" else gradient
    return {name: tensor.abs() for name, tensor in total.items()}


def largest(saliency: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks of the `share` (in 0..1) largest entries of all tensors taken together.

    Exactly int(share x count) entries are chosen: among equals those that come first.
    """
    flat = torch.cat([tensor.flatten() for tensor in saliency.values()])
    order = flat.argsort(descending=True, stable=True)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[order[: int(share * len(flat))]] = True
    parts = mask.split([tensor.numel() for tensor in saliency.values()])
    return {name: part.view_as(tensor) for (name, tensor), part in zip(saliency.items(), parts, strict=True)}
