"""All metrics of a model. Features are extracted once a split and feed every metric."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raymu.data import Data, Split
from raymu.errors import Diverged
from raymu.evaluation.ncc import NearestClassCentre
from raymu.evaluation.probe import LinearProbe
from raymu.models import features_and_logits

SPLITS = ("val", "test")
METRICS = (
    "retain_acc",
    "forget_acc",
    "probe_retain_acc",
    "probe_forget_acc",
    "ncc_retain_acc",
    "ncc_forget_acc",
)
BATCH_SIZE = 512


def evaluate(model: nn.Module, data: Data) -> dict[str, float]:
    """Accuracies, as fractions of the samples, of the model's own answers, a linear probe and NCC.

    Probe and NCC are fitted on the penultimate features of the training split: all classes, true labels, no
    augmentation. The model is left in eval mode.

    Returns:
        `{split}_{metric}` for each of SPLITS and METRICS, in [0, 1].

    Raises:
        Diverged: a feature or logit is not finite.
    """
    features, _ = extract(model, data, data.train)
    labels = data.train.labels[data.train.index]
    probe, centres = LinearProbe(features, labels), NearestClassCentre(features, labels)
    row = {}
    for name, split in (("val", data.val), ("test", data.test)):
        features, logits = extract(model, data, split)
        labels = split.labels[split.index]
        for prefix, answers in (
            ("", logits.argmax(1)),
            ("probe_", probe.predict(features)),
            ("ncc_", centres.predict(features)),
        ):
            row[f"{name}_{prefix}retain_acc"] = accuracy(answers, labels, ~split.forget)
            row[f"{name}_{prefix}forget_acc"] = accuracy(answers, labels, split.forget)
    return row


def accuracy(answers: Tensor, labels: Tensor, chosen: Tensor) -> float:
    """Share of the chosen (bool, N) samples whose answer is right; N/A as NaN where none is chosen."""
    return (answers == labels)[chosen].double().mean().item()


@torch.no_grad()
def extract(model: nn.Module, data: Data, split: Split) -> tuple[Tensor, Tensor]:
    """Penultimate features (N, D) and logits (N, K) of a split, in eval mode.

    Raises:
        Diverged: one of them is not finite.
    """
    model.eval()
    parts = [features_and_logits(model, data.normalise(split.images[index])) for index in split.index.split(BATCH_SIZE)]
    features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    if not (features.isfinite().all() and logits.isfinite().all()):
        raise Diverged("the features or logits are not finite")
    return features, logits


def gaps(row: Mapping[str, Any], retrained: Mapping[str, Any]) -> dict[str, float]:
    """`{split}_{metric}_gap`: the metric minus the retrained model's. 0 means: as if never learnt."""
    return {f"{key}_gap": row[key] - retrained[key] for key in keys()}


def keys() -> list[str]:
    """The columns that `evaluate` fills."""
    return [f"{split}_{metric}" for split in SPLITS for metric in METRICS]
