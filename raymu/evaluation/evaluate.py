"""All metrics of a model. Features are extracted once a split and feed every metric."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from raymu.data import Data
from raymu.evaluation.ncc import NearestClassCentre
from raymu.evaluation.probe import LinearProbe
from raymu.models import extract

SPLITS = ("val", "test")
METRICS = (
    "retain_acc",
    "forget_acc",
    "probe_retain_acc",
    "probe_forget_acc",
    "ncc_retain_acc",
    "ncc_forget_acc",
)


def evaluate(model: nn.Module, data: Data) -> dict[str, float]:
    """Accuracies, as fractions of the samples, of the model's own answers, a linear probe and NCC.

    Probe and NCC are fitted on the penultimate features of the training split: all classes, true labels, no
    augmentation. Where samples are forgotten, they are fitted without them, and "forget" accuracies are those on the
    forgotten training images, of which "val" has one half and "test" the other. The model is left in eval mode.

    Returns:
        `{split}_{metric}` for each of SPLITS and METRICS, in [0, 1].

    Raises:
        Diverged: a feature or logit is not finite.
    """
    features, _ = extract(model, data, data.probed)
    probe, centres = LinearProbe(features, data.probed.targets), NearestClassCentre(features, data.probed.targets)
    row = {}
    for name, held_out in (("val", data.val), ("test", data.test)):
        for part, split in held_out._asdict().items():
            features, logits = extract(model, data, split)
            for prefix, answers in (
                ("", logits.argmax(1)),
                ("probe_", probe.predict(features)),
                ("ncc_", centres.predict(features)),
            ):
                row[f"{name}_{prefix}{part}_acc"] = accuracy(answers, split.targets)
    return row


def accuracy(answers: Tensor, labels: Tensor) -> float:
    """Share of the samples (N,) whose answer is right; NaN where there is none."""
    return (answers == labels).double().mean().item()


def gaps(row: Mapping[str, Any], retrained: Mapping[str, Any]) -> dict[str, float]:
    """`{split}_{metric}_gap`: the metric minus the retrained model's. 0 means: as if never learnt."""
    return {f"{key}_gap": row[key] - retrained[key] for key in keys()}


def keys() -> list[str]:
    """The columns that `evaluate` fills."""
    return [f"{split}_{metric}" for split in SPLITS for metric in METRICS]
