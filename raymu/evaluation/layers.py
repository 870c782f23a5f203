"""A depth profile: what the linear probe reads from every block, since forgetting may sit deeper or shallower."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from raymu.data import Data, Split
from raymu.errors import InputError
from raymu.evaluation.accuracy import accuracy
from raymu.evaluation.evaluate import SPLITS
from raymu.evaluation.probe import LinearProbe
from raymu.models import CMF, batches, eval_mode, features_and_logits

PENULTIMATE = "penultimate"


def profile(model: nn.Module, data: Data) -> list[dict[str, Any]]:
    """The strong probe on every block's output, averaged over positions, and on the penultimate features.

    The model stays as it is. Memory: the averaged outputs of all blocks for this worker's training images.

    Returns:
        From the first block to the last, `layer` (timm's name of it; in the end "penultimate") and
        `{split}_probe_retain_acc` and `{split}_probe_forget_acc` for "val" and "test", fractions of the samples.

    Raises:
        InputError: timm does not say what the blocks of this model are.
        Undefined: an output is not finite.
    """
    check_blocks(model)
    workers = data.workers
    names = [*(info["module"] for info in _backbone(model).feature_info), PENULTIMATE]
    labels = workers.share(data.probed.targets)
    probes = [LinearProbe(features, labels, workers=workers) for features in _blocks(model, data, data.probed)]
    rows: list[dict[str, Any]] = [{"layer": name} for name in names]
    for split, held_out in zip(SPLITS, (data.val, data.test), strict=True):
        for part, some in held_out._asdict().items():
            labels = workers.share(some.targets)
            for row, probe, features in zip(rows, probes, _blocks(model, data, some), strict=True):
                row[f"{split}_probe_{part}_acc"] = accuracy(probe.predict(features), labels, workers)
    return rows


def check_blocks(model: nn.Module) -> None:
    """Look whether the model has a profile.

    Raises:
        InputError: timm does not say what its blocks are.
    """
    if not hasattr(_backbone(model), "forward_intermediates"):
        raise InputError("--layers: timm does not say what the blocks of this architecture are")


def _backbone(model: Any) -> Any:
    return model.backbone if isinstance(model, CMF) else model


def _blocks(model: nn.Module, data: Data, split: Split) -> list[Tensor]:
    """Of this worker's share, features (n, D) of every block, each with a D of its own, and the penultimate ones."""

    def of(images: Tensor) -> Iterator[Tensor]:
        for block in _backbone(model).forward_intermediates(images, intermediates_only=True):
            yield block.mean((2, 3))
        yield features_and_logits(model, images)[0]

    with eval_mode(model), torch.no_grad():
        parts = [[block[: len(labels)] for block in of(images)] for images, labels in batches(data, split)]
    return [torch.cat(blocks) for blocks in zip(*parts, strict=True)]
