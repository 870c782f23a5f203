"""All metrics of a model. Features are extracted once a split and feed every metric.

Every worker reads its own share of a split and keeps its features to itself: what is added up are moments, counts,
losses and gradients. Put together are labels, four numbers an image for membership inference, and the held-out features
of the references, once.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raymu.errors import Diverged
from raymu.evaluation.accuracy import accuracy
from raymu.evaluation.metrics import METRICS, SPLITS, Metric, columns
from raymu.evaluation.moments import Moments
from raymu.evaluation.ncc import NearestClassCentre
from raymu.evaluation.probe import LDAProbe, LinearProbe
from raymu.evaluation.relearn import relearn_epochs
from raymu.evaluation.views import Answered, OfModel, OfSplit, Said
from raymu.models.inference import Collected, Outputs, extract, outputs
from raymu.splits import Data

RELEARN_PER_CLASS = 10
RELEARNT = 0.95  # share of the original's accuracy


class Read(NamedTuple):
    """What a model says of this worker's share of a held-out split, which is one of each part."""

    retain: Outputs
    forget: Outputs


def evaluate_quickly(model: nn.Module, data: Data, metrics: Sequence[Metric] = ()) -> dict[str, Any]:
    """The metrics of a rung, with the cheap probe: what a scheduler has to know while a trial runs.

    Of the training images only the moments of their features are kept. The model stays as it is.

    Args:
        metrics: further ones beside raymu's.

    Returns:
        What `evaluate` returns; None for all that is not measured at a rung.

    Raises:
        Diverged: a feature, its square or a logit is not finite, on all workers.
    """
    moments = _moments(((said.features, said.labels) for said in outputs(model, data, data.probed)), data)
    of_model = OfModel(model, data, moments)
    answered = _answered(_by_split(extract(model, data, *data.val, *data.test)), LDAProbe(moments), moments)
    views = [*(OfSplit(of_model, split, *parts) for split, parts in answered.items()), of_model]
    found = _values(views, [metric for metric in (*METRICS, *metrics) if metric.rung])
    return dict.fromkeys(columns(metrics)) | found | {"probe": LDAProbe.name}


def baseline(references: Mapping[str, nn.Module], data: Data) -> dict[str, Tensor]:
    """What `evaluate` compares a model with.

    Args:
        references: the "original" and the "retrained" model.

    Returns:
        Of SPLITS `{split}_original` and `{split}_retrained`, the reference's features (N, D) of all images of the
        split, whichever worker's: first the retain part's, then the forget part's; and
        `{split}_forget_acc`, the original's. The same on all workers.

    Raises:
        Diverged: a feature or logit is not finite, on all workers.
    """
    tensors = {}
    for which, model in references.items():
        held_out = _by_split(extract(model, data, *data.val, *data.test))
        for split, said in held_out.items():
            tensors[f"{split}_{which}"] = torch.cat([data.workers.gather(part.features) for part in said])
            if which == "original":
                answers, labels = said.forget.logits.argmax(1), said.forget.labels
                right = accuracy(answers, labels, data.workers)
                tensors[f"{split}_forget_acc"] = torch.tensor(right, dtype=torch.float64)
    return tensors


def evaluate(
    model: nn.Module, data: Data, baseline: Mapping[str, Tensor], metrics: Sequence[Metric] = ()
) -> dict[str, Any]:
    """All metrics. Each is defined where its function stands, and `raymu.evaluation.views` says what it is given.

    Probe and NCC are fitted on the penultimate features of the training split: all classes, true labels, no
    augmentation. Where samples are forgotten, they are fitted without them, and "forget" are the forgotten training
    images, of which "val" has one half and "test" the other. The model stays as it is.

    Args:
        baseline: what the function of that name returns.
        metrics: further ones beside raymu's.

    Returns:
        The `columns` of all metrics, and `probe`, the name of the probe. None: the metric is not defined on such data,
        as the alignment of forgotten classes if samples are forgotten.

        All workers return the first one's row. One worker alone returns the same, but for rounding.

    Raises:
        Diverged: a feature, its square or a logit is not finite, on all workers.
        ValueError: a metric is no finite number.
    """
    features, labels, learnt = _of_training(model, data)
    held_out = _by_split(extract(model, data, *data.val, *data.test))
    moments = _moments([(features, labels)], data)
    probe = LinearProbe(features, labels, moments, data.workers)
    answered = _answered(held_out, probe, moments)
    relearn = functools.cache(functools.partial(_relearn, model, data, answered, baseline))
    of_model = OfModel(model, data, moments)
    splits = [OfSplit(of_model, split, *parts, learnt, baseline, relearn) for split, parts in answered.items()]
    row = _values([*splits, of_model], [*METRICS, *metrics])
    told: dict[str, Any] = data.workers.broadcast(row | {"probe": probe.name})
    return told


def gaps(row: Mapping[str, Any], retrained: Mapping[str, Any], metrics: Sequence[Metric] = ()) -> dict[str, Any]:
    """`{column}_gap`: the metric minus the retrained model's. 0 means: as if never learnt. None where one is None."""
    pairs = {key: (row[key], retrained[key]) for key in columns(metrics)}
    return {f"{key}_gap": None if None in pair else pair[0] - pair[1] for key, pair in pairs.items()}


def _values(views: Sequence[OfModel], metrics: Iterable[Metric]) -> dict[str, float | None]:
    return {f"{view.split}_{one.name}": one.of(view) for one in metrics for view in views if view.split in one.splits}


def _by_split(said: Sequence[Outputs]) -> dict[str, Read]:
    """What is said of the parts of "val" and then of "test", by SPLITS."""
    return {split: Read(*parts) for split, parts in zip(SPLITS, (said[:2], said[2:]), strict=True)}


def _of_training(model: nn.Module, data: Data) -> tuple[Tensor, Tensor, Said]:
    """Features (n, D) and labels (n,) of this worker's share of what a probe is fitted on, and of the forgotten classes
    there the logits and labels. Nobody reads the other logits, which at ImageNet are more than the features.
    """
    chosen = data.is_forgotten(data.workers.shard(data.probed.targets))
    features, labels, logits = Collected(len(chosen)), Collected(len(chosen)), Collected(int(chosen.sum()))
    for said in outputs(model, data, data.probed):
        features.add(said.features)
        labels.add(said.labels)
        logits.add(said.logits[data.is_forgotten(said.labels)])
    return features.all, labels.all, Said(logits.all, labels.all[chosen])


def _moments(batches: Iterable[tuple[Tensor, Tensor]], data: Data) -> Moments:
    """Moments of all workers' features, from this one's batches (B, D) with labels (B,).

    Raises:
        Diverged: their squares are not finite, on all workers.
    """
    moments = None
    for features, labels in batches:
        moments = moments or Moments(data.num_classes, features.shape[1], features.device)
        moments.update(features, labels)
    assert moments is not None
    moments.reduce(data.workers)
    if not moments.gram.isfinite().all():
        raise Diverged("the features are too large to be squared")
    return moments


def _answered(
    held_out: Mapping[str, Read], probe: LinearProbe | LDAProbe, moments: Moments
) -> dict[str, tuple[Answered, Answered]]:
    """Answers to the retain and to the forget images, by split."""
    centres = NearestClassCentre(moments)
    found = {}
    for split, parts in held_out.items():
        features, logits = torch.cat([part.features for part in parts]), torch.cat([part.logits for part in parts])
        sizes = [len(part.labels) for part in parts]
        answers = (logits.argmax(1), probe.predict(features), centres.predict(features))
        retain, forget = (
            Answered(*part, *own)
            for part, own in zip(parts, zip(*(one.split(sizes) for one in answers), strict=True), strict=True)
        )
        found[split] = (retain, forget)
    return found


def _relearn(
    model: nn.Module, data: Data, answered: Mapping[str, tuple[Answered, Answered]], baseline: Mapping[str, Tensor]
) -> dict[str, int]:
    """Relearn time by split: until RELEARN_PER_CLASS forgotten training images a class bring the accuracy on the
    split's forget images back to RELEARNT of the original's; where samples are forgotten, those few are among them.
    Every worker trains on the same images, and looks at its share of the others.
    """
    forgotten = data.train.subset(data.forget)
    labels = forgotten.targets
    few = forgotten.subset(torch.cat([(labels == one).nonzero()[:RELEARN_PER_CLASS, 0] for one in labels.unique()]))

    def accuracies(relearnt: nn.Module) -> list[float]:
        try:
            said = extract(relearnt, data, data.val.forget, data.test.forget)
        except Diverged:
            return [0.0, 0.0]
        return [accuracy(each.logits.argmax(1), each.labels, data.workers) for each in said]

    epochs = relearn_epochs(
        model,
        few.read(),
        few.targets,
        accuracies,
        now=[accuracy(forget.answers, forget.labels, data.workers) for _, forget in answered.values()],
        goals=[RELEARNT * float(baseline[f"{split}_forget_acc"]) for split in answered],
    )
    return dict(zip(answered, epochs, strict=True))
