"""A depth profile: what the linear probe reads from every block, since forgetting may sit deeper or shallower."""

import textwrap
from typing import Any

import torch
from torch import Tensor, nn

from raymu.errors import InputError
from raymu.evaluation.accuracy import accuracy
from raymu.evaluation.metrics import SPLITS
from raymu.evaluation.probe import LinearProbe
from raymu.models.architectures import build
from raymu.models.cmf import CMF
from raymu.models.inference import batches, eval_mode, features_and_logits
from raymu.scenario import Scenario
from raymu.splits import Data, Split

PENULTIMATE = "penultimate"


def profile(model: nn.Module, data: Data) -> list[dict[str, Any]]:
    """The probe on every block's output, averaged over positions, and on the penultimate features.

    The model stays as it is. Memory: the averaged outputs of all blocks for this worker's training images.

    Returns:
        From the first block to the last, `layer` (timm's name of it; in the end "penultimate") and
        `{split}_probe_retain_acc` and `{split}_probe_forget_acc` for "val" and "test", fractions of the samples.

    Raises:
        Undefined: an output is not finite.
    """
    workers, names = data.workers, _names(model)
    labels = workers.shard(data.probed.targets)
    probes = [LinearProbe(features, labels, workers=workers) for features in _blocks(model, data, data.probed)]
    rows: list[dict[str, Any]] = [{"layer": name} for name in names]
    for split, held_out in zip(SPLITS, (data.val, data.test), strict=True):
        for part, some in held_out._asdict().items():
            labels = workers.shard(some.targets)
            for row, probe, features in zip(rows, probes, _blocks(model, data, some), strict=True):
                row[f"{split}_probe_{part}_acc"] = accuracy(probe.predict(features), labels, workers)
    return rows


def check_blocks(scenario: Scenario) -> None:
    """Look whether the scenario's models have a profile, on two black images.

    Raises:
        InputError: timm does not say what the blocks of this architecture are, or cannot read them from such images.
    """
    model, shape = build(scenario, seed=0), scenario.format.shape
    try:
        with eval_mode(model), torch.no_grad():
            blocks = _outputs(model, torch.zeros(2, *shape))
        if len(blocks) != len(_names(model)):
            raise ValueError(f"{len(blocks)} outputs of {len(_names(model))}")
    except Exception as error:  # whatever an architecture may raise
        raise InputError(
            f"--layers: timm does not say what the blocks of {scenario.architecture_name} are"
            f" ({textwrap.shorten(f'{type(error).__name__}: {error}', 120)})"
        ) from error


def _backbone(model: Any) -> Any:
    return model.backbone if isinstance(model, CMF) else model


def _names(model: nn.Module) -> list[str]:
    return [*(info["module"] for info in _backbone(model).feature_info), PENULTIMATE]


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Features (B, D) of every block, where D differs by block, and the penultimate ones."""
    blocks = _backbone(model).forward_intermediates(images, intermediates_only=True)
    return [*(block.mean((2, 3)) for block in blocks), features_and_logits(model, images)[0]]


def _blocks(model: nn.Module, data: Data, split: Split) -> list[Tensor]:
    """Features (n, D) of every block, of this worker's share."""
    with eval_mode(model), torch.no_grad():
        parts = [[block[: len(labels)] for block in _outputs(model, images)] for images, labels in batches(data, split)]
    return [torch.cat(blocks) for blocks in zip(*parts, strict=True)]
