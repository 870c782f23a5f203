"""All metrics of a model. Features are extracted once a split and feed every metric.

Every worker reads its own share of a split and keeps its features to itself: what is added up are moments, counts,
losses and gradients. Put together are labels, a few numbers an image for the attackers, and the held-out features of
the references, once.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raymu.errors import Diverged, Undefined
from raymu.evaluation import attack
from raymu.evaluation.accuracy import accuracy
from raymu.evaluation.attack import Memory, log_odds
from raymu.evaluation.metrics import AT_RUNGS, METRICS, SPLITS, Metric, columns
from raymu.evaluation.moments import Moments
from raymu.evaluation.ncc import NearestClassCentre
from raymu.evaluation.probe import LDAProbe, LinearProbe, LinearReader
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
    """The metrics of a rung, as `evaluate` measures them, but not on test: what a scheduler and a searcher have to know
    while a trial runs.

    Args:
        metrics: further ones beside raymu's.

    Returns:
        What `evaluate` returns; None for all that is not measured at a rung.

    Raises:
        Diverged: a feature, its square or a logit is not finite, on all workers.
    """
    return dict.fromkeys(columns(metrics)) | measured(look(model, data, splits=AT_RUNGS), metrics, rung=True)


def baseline(references: Mapping[str, nn.Module], data: Data) -> dict[str, Tensor]:
    """What `evaluate` compares a model with.

    Args:
        references: the "original" and, where there is one, the "retrained" model.

    Returns:
        Of SPLITS `{split}_original` and `{split}_retrained`, the reference's features (N, D) of all images of the
        split, whichever worker's: first the retain part's, then the forget part's; and
        `{split}_forget_acc`, the original's. The same on all workers.

    Raises:
        Diverged: a feature or logit is not finite, on all workers.
    """
    tensors = {}
    for which, model in references.items():
        held_out = _held_out(model, data, SPLITS)
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
        The `columns` of all metrics. None: the metric is not defined on such data, as the alignment of forgotten
        classes if samples are forgotten.

        All workers return the first one's row. One worker alone returns the same, but for rounding.

    Raises:
        Diverged: a feature, its square or a logit is not finite, on all workers.
        ValueError: a metric is no finite number.
    """
    return measured(look(model, data, baseline), metrics)


def look(
    model: nn.Module, data: Data, baseline: Mapping[str, Tensor] | None = None, splits: Sequence[str] = SPLITS
) -> list[OfModel]:
    """Views of a model from which metrics are computed: one of each split, and one of the training images.

    Args:
        baseline: what the function of that name returns; None: the views lack what only the end of a trial measures.
        splits: some of SPLITS.

    Raises:
        Diverged: a feature, its square or a logit is not finite, on all workers.
    """
    features, labels, learnt = _of_training(model, data)
    moments = _moments(features, labels, data)
    readers = _Readers(features, labels, moments, data)
    answered = {split: readers(said) for split, said in _held_out(model, data, splits).items()}
    of_model, relearn = OfModel(model, data, moments), None
    if baseline is not None:
        relearn = functools.cache(functools.partial(_relearn, model, data, answered, baseline))
    of_splits = [OfSplit(of_model, split, *parts, learnt, baseline, relearn) for split, parts in answered.items()]
    return [*of_splits, of_model]


def measured(views: Sequence[OfModel], metrics: Sequence[Metric] = (), *, rung: bool = False) -> dict[str, Any]:
    """Values of raymu's metrics and of further ones on these views, by column; the first worker's on all of them.

    Args:
        rung: only metrics of a rung.
    """
    chosen = [metric for metric in (*METRICS, *metrics) if metric.rung or not rung]
    row = {f"{view.split}_{one.name}": one.of(view) for one in chosen for view in views if view.split in one.splits}
    told: dict[str, Any] = views[0].workers.broadcast(row)
    return told


def memories(original: Sequence[OfModel], retrained: Sequence[OfModel]) -> dict[str, Memory | None]:
    """Memory of the original against the retrained model, by split, from the views of both; None: not defined."""
    found: dict[str, Memory | None] = {}
    for pair in zip(original, retrained, strict=True):
        views = [view.gathered for view in pair]
        parts = [(one.retain.odds, one.forget.odds, one.belongs) for one in views if isinstance(one, OfSplit)]
        if parts:
            try:
                found[views[0].split] = attack.memory(*(attack.placements(*one) for one in parts))
            except Undefined:
                found[views[0].split] = None
    return found


def gaps(row: Mapping[str, Any], retrained: Mapping[str, Any] | None, metrics: Sequence[Metric] = ()) -> dict[str, Any]:
    """`{column}_gap`: the metric minus the retrained model's. 0 means: as if never learnt. None where one is None, or
    there is no retrained model.
    """
    pairs = {key: (row[key], retrained[key] if retrained else None) for key in columns(metrics)}
    return {f"{key}_gap": None if None in pair else pair[0] - pair[1] for key, pair in pairs.items()}


def _held_out(model: nn.Module, data: Data, splits: Sequence[str]) -> dict[str, Read]:
    """Outputs of a model for this worker's share of held-out splits, by split."""
    said = iter(extract(model, data, *(part for split in splits for part in getattr(data, split))))
    return {split: Read(next(said), next(said)) for split in splits}


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


def _moments(features: Tensor, labels: Tensor, data: Data) -> Moments:
    """Moments of all workers' features, where this one has (n, D) with labels (n,).

    Raises:
        Diverged: their squares are not finite, on all workers.
    """
    moments = Moments(data.num_classes, features.shape[1], features.device)
    moments.update(features, labels)
    moments.reduce(data.workers)
    if not moments.scatter.isfinite().all():
        raise Diverged("the features are too large to be squared")
    return moments


class _Readers:
    """Probe, attackers and nearest class centre, fitted on this worker's training features (n, D)."""

    def __init__(self, features: Tensor, labels: Tensor, moments: Moments, data: Data) -> None:
        self._linear: list[LinearReader] = [LinearProbe(features, labels, moments, data.workers)]
        if data.forgotten:  # else nobody asks for a second reader
            self._linear.append(LDAProbe(moments))
        self._centres, self._classes = NearestClassCentre(moments), moments.classes
        self._forgotten = data.is_forgotten(moments.classes).nonzero().mT  # places (1, F)

    def __call__(self, parts: Read) -> tuple[Answered, Answered]:
        """Answers to the retain and to the forget images of a split."""
        features, logits, labels = (torch.cat(some) for some in zip(*parts, strict=True))
        answers, odds = zip(*(self._read(reader, features) for reader in self._linear), strict=True)
        attackers = odds if self._forgotten.numel() else [log_odds(logits, labels.unsqueeze(1))]
        said = (logits.argmax(1), answers[0], self._centres.predict(features), torch.stack(list(attackers), 1))
        own = (one.split([len(part.labels) for part in parts]) for one in said)
        retain, forget = (Answered(*part, *of) for part, of in zip(parts, zip(*own, strict=True), strict=True))
        return retain, forget

    def _read(self, reader: LinearReader, features: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (M,) that a linear reader names, and its log-odds of the forgotten classes (M, F)."""
        found = [(logits.argmax(1), log_odds(logits, self._forgotten)) for logits in reader.logits(features)]
        answers, odds = (torch.cat(some) for some in zip(*found, strict=True))
        return self._classes[answers], odds


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
            said = extract(relearnt, data, *(getattr(data, split).forget for split in answered))
        except Diverged:
            return [0.0] * len(answered)
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
