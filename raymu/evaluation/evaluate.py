"""All metrics of a model. Features are extracted once a split and feed every metric.

Every worker reads its own share of a split and keeps its features to itself: what is added up are moments, counts,
losses and gradients. Put together are labels, four numbers an image for membership inference, and the held-out features
of the references, once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raymu.data.splits import Data
from raymu.errors import Diverged, Undefined
from raymu.evaluation.accuracy import accuracy
from raymu.evaluation.cka import linear_cka
from raymu.evaluation.collapse import alignment, nc1, nc2, nc3, nc4
from raymu.evaluation.membership import mia_auc
from raymu.evaluation.moments import Moments
from raymu.evaluation.ncc import NearestClassCentre
from raymu.evaluation.probe import LDAProbe, LinearProbe
from raymu.evaluation.relearn import relearn_epochs
from raymu.models.inference import Collected, Outputs, extract, head_matrix, outputs
from raymu.workers import Workers

SPLITS = ("val", "test")
ACCURACIES = tuple(f"{prefix}{part}_acc" for prefix in ("", "probe_", "ncc_") for part in ("retain", "forget"))
OF_HELD_OUT = ("nc4", "cka_original", "cka_retrained", "mia_auc", "relearn_epochs")
OF_TRAIN = (
    "nc1",
    "nc2",
    "nc3",
    "alignment_retain",
    "alignment_forget",
    "alignment_uncentred_retain",
    "alignment_uncentred_forget",
)
RELEARN_PER_CLASS = 10
RELEARNT = 0.95  # share of the original's accuracy

Metrics = dict[str, Any]


class Read(NamedTuple):
    """What a model says of this worker's share of a held-out split, which is one of each part."""

    retain: Outputs
    forget: Outputs

    @property
    def all(self) -> Outputs:
        """Of both parts."""
        return Outputs(*(torch.cat(parts) for parts in zip(*self, strict=True)))


def keys() -> list[str]:
    """The columns that `evaluate` fills."""
    held_out = [f"{split}_{metric}" for split in SPLITS for metric in (*ACCURACIES, *OF_HELD_OUT)]
    return held_out + [f"train_{metric}" for metric in OF_TRAIN]


def looked_at() -> list[str]:
    """The columns that `look` fills."""
    return [f"{split}_{metric}" for split in SPLITS for metric in ACCURACIES]


def look(model: nn.Module, data: Data) -> dict[str, Any]:
    """The accuracies alone, with the cheap probe: what a scheduler has to know while a trial runs.

    Of the training images only the moments of their features are kept. The model stays as it is.

    Returns:
        What `evaluate` returns; None for all that is no accuracy.

    Raises:
        Diverged: a feature, its square or a logit is not finite, on all workers.
    """
    moments = _moments(((said.features, said.labels) for said in outputs(model, data, data.probed)), data)
    held_out = _by_split(extract(model, data, *data.val, *data.test))
    answers = _answers(held_out, LDAProbe(moments), NearestClassCentre(moments))
    return dict.fromkeys(keys()) | _accuracies(held_out, answers, data.workers) | {"probe": LDAProbe.name}


def baseline(references: Mapping[str, nn.Module], data: Data) -> dict[str, Tensor]:
    """What `evaluate` compares a model with.

    Args:
        references: the "original" and the "retrained" model.

    Returns:
        Of SPLITS `{split}_original` and `{split}_retrained`, the reference's features (N, D) of all images of the
        split, whichever worker's: first those of its retain part, then those of its forget part; and
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


def evaluate(model: nn.Module, data: Data, baseline: Mapping[str, Tensor]) -> dict[str, Any]:
    """All metrics. Each is defined where its function stands; here stands what it is given.

    Probe and NCC are fitted on the penultimate features of the training split: all classes, true labels, no
    augmentation. Where samples are forgotten, they are fitted without them, and "forget" are the forgotten training
    images, of which "val" has one half and "test" the other. The model stays as it is.

    Args:
        baseline: what the function of that name returns.

    Returns:
        - `{split}_{metric}` for SPLITS and ACCURACIES: of the model's own answers, of the strong probe and of NCC, as
          fractions of the samples;
        - `{split}_nc4`, `{split}_cka_original`, `{split}_cka_retrained`: on all images of the split;
        - `{split}_mia_auc`: the forgotten training images against the split's forget images; where samples are
          forgotten, the split's forget images against its retain images;
        - `{split}_relearn_epochs`: until RELEARN_PER_CLASS forgotten training images a class bring the accuracy on the
          split's forget images back to RELEARNT of the original's; where samples are forgotten, those few are among
          them;
        - `train_{metric}` for OF_TRAIN: of the training features; alignments are the mean over the retain classes and
          over the forgotten ones;
        - `probe`: which one it was.

        None: the metric is not defined on such data, as the alignment of forgotten classes if samples are forgotten.

        All workers return the first one's row, which is that of one alone, but for rounding.

    Raises:
        Diverged: a feature, its square or a logit is not finite, on all workers.
    """
    workers = data.workers
    features, labels, learnt = _of_training(model, data)
    held_out = _by_split(extract(model, data, *data.val, *data.test))
    moments = _moments([(features, labels)], data)
    probe = LinearProbe(features, labels, moments, workers)
    answers = _answers(held_out, probe, NearestClassCentre(moments))
    row = _accuracies(held_out, answers, workers)

    head = head_matrix(model).detach()
    row |= {"train_nc1": _defined(nc1, moments), "train_nc2": _defined(nc2, moments)}
    row |= {"train_nc3": _defined(nc3, moments, head)}
    row |= {f"train_{name}": value for name, value in _alignments(head, moments, data).items()}

    epochs = _relearn(model, data, row, baseline)
    for (split, said), parts in zip(held_out.items(), (data.val, data.test), strict=True):
        whole = said.all
        row[f"{split}_nc4"] = _defined(nc4, answers[split][""], answers[split]["ncc_"], workers)
        for which in ("original", "retrained"):
            theirs = baseline[f"{split}_{which}"].split([len(part) for part in parts])
            others = torch.cat([workers.share(part) for part in theirs])
            row[f"{split}_cka_{which}"] = _defined(linear_cka, whole.features, others, workers)
        forget, retain = ((part.logits, part.labels) for part in (said.forget, said.retain))
        sides = (*learnt, *forget) if data.forgotten else (*forget, *retain)
        row[f"{split}_mia_auc"] = _defined(mia_auc, *sides, workers)
        row[f"{split}_relearn_epochs"] = epochs[split]
    told: Metrics = workers.tell(row | {"probe": probe.name})
    return told


def gaps(row: Mapping[str, Any], retrained: Mapping[str, Any]) -> Metrics:
    """`{column}_gap`: the metric minus the retrained model's. 0 means: as if never learnt. None where one is None."""
    pairs = {key: (row[key], retrained[key]) for key in keys()}
    return {f"{key}_gap": None if None in pair else pair[0] - pair[1] for key, pair in pairs.items()}


def _by_split(said: Sequence[Outputs]) -> dict[str, Read]:
    """What is said of the parts of "val" and then of "test", by SPLITS."""
    return {split: Read(*parts) for split, parts in zip(SPLITS, (said[:2], said[2:]), strict=True)}


def _of_training(model: nn.Module, data: Data) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Features (n, D) and labels (n,) of this worker's share of what a probe is fitted on, and of the forgotten classes
    there logits (m, K) and labels (m,). Nobody reads the other logits, which at ImageNet are more than the features.
    """
    chosen = data.is_forgotten(data.workers.share(data.probed.targets))
    features, labels, logits = Collected(len(chosen)), Collected(len(chosen)), Collected(int(chosen.sum()))
    for said in outputs(model, data, data.probed):
        features.add(said.features)
        labels.add(said.labels)
        logits.add(said.logits[data.is_forgotten(said.labels)])
    return features.all, labels.all, (logits.all, labels.all[chosen])


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


def _answers(
    held_out: Mapping[str, Read], probe: LinearProbe | LDAProbe, centres: NearestClassCentre
) -> dict[str, dict[str, Tensor]]:
    """By split, what the model itself, the probe and NCC answer to all of its images (n,)."""
    found = {}
    for split, said in held_out.items():
        features, logits, _ = said.all
        found[split] = {
            "": logits.argmax(1),
            "probe_": probe.predict(features),
            "ncc_": centres.predict(features),
        }
    return found


def _accuracies(held_out: Mapping[str, Read], answers: Mapping[str, Mapping[str, Tensor]], workers: Workers) -> Metrics:
    return {
        f"{split}_{prefix}{part}_acc": accuracy(own, outputs.labels, workers)
        for split, said in held_out.items()
        for prefix, whole in answers[split].items()
        for own, (part, outputs) in zip(
            whole.split([len(part.labels) for part in said]), said._asdict().items(), strict=True
        )
    }


def _alignments(head: Tensor, moments: Moments, data: Data) -> Metrics:
    """The mean cosines of head vectors and class means."""
    forgotten = data.is_forgotten(moments.classes)
    found: Metrics = {}
    for name, centre in (("alignment", ~forgotten), ("alignment_uncentred", None)):
        for part, chosen in (("retain", ~forgotten), ("forget", forgotten)):
            found[f"{name}_{part}"] = _defined(_mean_alignment, head[moments.classes], moments.means, centre, chosen)
    return found


def _mean_alignment(head: Tensor, means: Tensor, centre: Tensor | None, chosen: Tensor) -> float:
    if not chosen.any():
        raise Undefined("there is no such class")
    return alignment(head, means, centre)[chosen].mean().item()


def _relearn(model: nn.Module, data: Data, row: Metrics, baseline: Mapping[str, Tensor]) -> dict[str, int]:
    """Relearn time on SPLITS. Every worker trains on the same images, and looks at its share of the others."""
    forgotten = data.train.subset(data.forget)
    labels = forgotten.targets
    few = forgotten.subset(torch.cat([(labels == one).nonzero()[:RELEARN_PER_CLASS, 0] for one in labels.unique()]))

    def accuracies(relearnt: nn.Module) -> list[float]:
        try:
            said = extract(relearnt, data, data.val.forget, data.test.forget)
        except Diverged:
            return [0.0, 0.0]
        return [accuracy(each.logits.argmax(1), each.labels, data.workers) for each in said]

    columns = [f"{split}_forget_acc" for split in SPLITS]
    epochs = relearn_epochs(
        model,
        few.read(),
        few.targets,
        accuracies,
        now=[row[column] for column in columns],
        goals=[RELEARNT * float(baseline[column]) for column in columns],
    )
    return dict(zip(SPLITS, epochs, strict=True))


def _defined(metric: Callable[..., float], *arguments: Any) -> float | None:
    try:
        return metric(*arguments)
    except Undefined:
        return None
