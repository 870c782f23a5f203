"""SalUn: random labels, but only the weights that matter for the forget set may move."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from raymu.engines.local import Engine
from raymu.method import Range, Step, tuned
from raymu.methods.random_label import RandomLabel


@dataclass(frozen=True, kw_only=True)
class SalUn(RandomLabel):
    """Random label, restricted to the salient weights: the share of all weights, taken together, that the forget set's
    loss depends on most. The others keep their original value to the bit.

        saliency = sum over forget batches of |gradient of the summed CE|, at the original model

    Reads what random label reads. The saliency pass runs in eval mode, so that it leaves BatchNorm statistics alone;
    while it unlearns they follow the batches, as they do in the authors' code.
    """

    paper: ClassVar[str] = "Fan et al., ICLR 2024"
    published: ClassVar[dict[Any, Any]] = {
        **RandomLabel.published,
        ("cifar100", "linear"): {"lr": 1e-3, "epochs": 3},
    }

    salient: float = tuned(0.5, Range(0.1, 0.9, "linear"), "share of the weights that may move")

    def unlearn(self, run: Engine) -> Iterator[Step]:
        kept = run.cached("saliency", lambda: saliency(run))
        run.train_only(largest({name: kept[name] for name in run.weights()}, self.salient))  # ties hang on the order
        yield from super().unlearn(run)


def saliency(run: Engine) -> dict[str, Tensor]:
    """The sum over the forget set's batches of |gradient of the summed CE|, by weight."""
    total = {name: torch.zeros_like(weight) for name, weight in run.weights().items()}
    for gradients in run.gradients("forget", "sum"):
        for name, gradient in gradients.items():
            total[name] += gradient.abs()
    return total


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
