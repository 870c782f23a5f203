"""Metrics: what is measured of a model. Each is one object, and the evaluation runs over a list of them."""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from raymu import plugins, source
from raymu.errors import Diverged, InputError, Undefined
from raymu.evaluation import attack
from raymu.evaluation.accuracy import accuracy
from raymu.evaluation.cka import linear_cka
from raymu.evaluation.collapse import alignment, nc1, nc2, nc3, nc4
from raymu.evaluation.membership import mia_auc
from raymu.evaluation.moments import Moments
from raymu.evaluation.views import AT_THE_END, OF_MODEL, OF_SPLIT, Answered, OfModel, Said
from raymu.values import conform, parameters_of, unknown
from raymu.workers import Workers

SPLITS = ("val", "test")
AT_RUNGS = ("val",)  # test is for the end of a trial


@dataclass(frozen=True, eq=False)
class Metric(source.Travels):
    """A number that is measured of every model.

    Attributes:
        compute: a function whose parameters name what it needs, attributes of `raymu.evaluation.views.OfSplit`. It
            returns a number, or raises `raymu.errors.Undefined` where there is none. If it also asks for `workers`, it
            gets this worker's share of the images and adds up itself; else it gets all images.
        name: its column without the split, empty: the function's name. A metric that needs nothing of a split stands in
            the column `train_{name}`, every other one in `val_{name}` and `test_{name}`.
        rung: whether it is measured while a trial runs as well, but not on test, for a scheduler and the objective.

    Raises:
        InputError: it has no name, or needs what there is not.
    """

    compute: Callable[..., float]
    name: str = ""
    rung: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or getattr(self.compute, "__name__", ""))
        conform(self, "metric: ")
        if not self.name.isidentifier():
            raise InputError(f"a metric needs a name, not {self.name!r}: Metric(function, name=...)")
        for need in self.needs:
            if need not in OF_SPLIT:
                raise InputError(f"metric {self.name}: {unknown('parameter', need, list(OF_SPLIT))}")
            if self.rung and need in AT_THE_END:
                raise InputError(f"metric {self.name} needs {need}, which is not known at a rung: rung=False")

    def __eq__(self, other: object) -> bool:
        """Whether both measure the same, also where one came from another process."""
        return isinstance(other, Metric) and (self.name, self.code()) == (other.name, other.code())

    def __hash__(self) -> int:
        return hash(self.name)

    def code(self, within: tuple[str, ...] = ("raymu.evaluation",)) -> str:
        """Digest of what computes it: values compare only where it is the same."""
        return super().code(within)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of its function's parameters."""
        return parameters_of(self.compute, f"metric {self.name}")

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits on which it is measured."""
        return SPLITS if set(self.needs) - set(OF_MODEL) else ("train",)

    @property
    def doc(self) -> str:
        """First line of its function's docstring."""
        return (inspect.getdoc(self.compute) or "").partition("\n")[0]

    def of(self, view: OfModel) -> float | None:
        """Value for a model on a split; None where it is undefined.

        Raises:
            ValueError: it is no finite number, something was raised, or the model is not as it was.
        """
        view = view if "workers" in self.needs else view.gathered
        before = _state(view.model) if "model" in self.needs else None
        try:
            value = self.compute(**{need: getattr(view, need) for need in self.needs})
        except Undefined:
            return None
        except (Diverged, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a metric of the user's raises
            raise ValueError(f"metric {self.name}: {type(error).__name__}: {error}") from error
        if before is not None and _state(view.model) != before:
            raise ValueError(f"metric {self.name} changed the model")
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"metric {self.name} has to return a finite number, not {value!r}")
        return value if isinstance(value, int) else float(value)


def _state(model: nn.Module) -> list[Any]:
    """Versions and places of a model's weights and buffers, and its modules' modes: another list after a change."""
    tensors = [*model.parameters(), *model.buffers()]
    return [*((one.data_ptr(), one._version) for one in tensors), *(module.training for module in model.modules())]


def retain_acc(retain: Answered, workers: Workers) -> float:
    """Share of the retain images that the model names."""
    return accuracy(retain.answers, retain.labels, workers)


def forget_acc(forget: Answered, workers: Workers) -> float:
    """Share of the forget images that the model names."""
    return accuracy(forget.answers, forget.labels, workers)


def probe_retain_acc(retain: Answered, workers: Workers) -> float:
    """Share of the retain images that a linear probe on the frozen features names."""
    return accuracy(retain.probe, retain.labels, workers)


def probe_forget_acc(forget: Answered, workers: Workers) -> float:
    """Share of the forget images that a linear probe on the frozen features names."""
    return accuracy(forget.probe, forget.labels, workers)


def attack_auc(retain: Answered, forget: Answered, belongs: Tensor) -> float:
    """Area under the ROC curve of the attacker who orders images by how much they look like the forget set."""
    return attack.area(retain.odds, forget.odds, belongs)


def attack_recall(retain: Answered, forget: Answered, belongs: Tensor) -> float:
    """Share of the forget images that this attacker finds with 5 % false positives among the retain images."""
    return attack.recall(retain.odds, forget.odds, belongs)


def ncc_retain_acc(retain: Answered, workers: Workers) -> float:
    """Share of the retain images whose nearest class centre is their class's."""
    return accuracy(retain.ncc, retain.labels, workers)


def ncc_forget_acc(forget: Answered, workers: Workers) -> float:
    """Share of the forget images whose nearest class centre is their class's."""
    return accuracy(forget.ncc, forget.labels, workers)


def nc4_of_split(both: Answered, workers: Workers) -> float:
    """Share of the images to which the model answers otherwise than the nearest class centre."""
    return nc4(both.answers, both.ncc, workers)


def cka_original(both: Answered, original: Tensor, workers: Workers) -> float:
    """Linear CKA with the original model's features."""
    return linear_cka(both.features, original, workers)


def cka_retrained(both: Answered, retrained: Tensor, workers: Workers) -> float:
    """Linear CKA with the retrained model's features."""
    return linear_cka(both.features, retrained, workers)


def mia_auc_of_split(members: Said, unseen: Said, workers: Workers) -> float:
    """Area under the ROC curve of an attacker who tells images to be forgotten from unseen ones."""
    return mia_auc(*members, *unseen, workers)


def relearn_epochs(relearn_epochs: int) -> float:
    """Epochs on a few forgotten training images until the model names the forget images again."""
    return relearn_epochs


def alignment_retain(head: Tensor, moments: Moments, forgotten: Tensor) -> float:
    """Mean cosine of head vector and class mean over the retain classes, which both are centred on."""
    return _mean_alignment(head, moments, ~forgotten, ~forgotten)


def alignment_forget(head: Tensor, moments: Moments, forgotten: Tensor) -> float:
    """Mean cosine of head vector and class mean over the forgotten classes, centred on the retain classes."""
    return _mean_alignment(head, moments, ~forgotten, forgotten)


def alignment_uncentred_retain(head: Tensor, moments: Moments, forgotten: Tensor) -> float:
    """Mean cosine of head vector and class mean over the retain classes."""
    return _mean_alignment(head, moments, None, ~forgotten)


def alignment_uncentred_forget(head: Tensor, moments: Moments, forgotten: Tensor) -> float:
    """Mean cosine of head vector and class mean over the forgotten classes."""
    return _mean_alignment(head, moments, None, forgotten)


def _mean_alignment(head: Tensor, moments: Moments, centre: Tensor | None, chosen: Tensor) -> float:
    if not chosen.any():
        raise Undefined("there is no such class")
    return alignment(head[moments.classes], moments.means, centre)[chosen].mean().item()


METRICS = (
    Metric(retain_acc, rung=True),
    Metric(forget_acc, rung=True),
    Metric(probe_retain_acc, rung=True),
    Metric(probe_forget_acc, rung=True),
    Metric(attack_auc, rung=True),
    Metric(attack_recall, rung=True),
    Metric(ncc_retain_acc, rung=True),
    Metric(ncc_forget_acc, rung=True),
    Metric(nc4_of_split, "nc4"),
    Metric(cka_original),
    Metric(cka_retrained),
    Metric(mia_auc_of_split, "mia_auc"),
    Metric(relearn_epochs),
    Metric(nc1),
    Metric(nc2),
    Metric(nc3),
    Metric(alignment_retain),
    Metric(alignment_forget),
    Metric(alignment_uncentred_retain),
    Metric(alignment_uncentred_forget),
)


def columns(metrics: Iterable[Metric] = (), *, rung: bool = False) -> list[str]:
    """Columns of raymu's metrics and of further ones.

    Args:
        rung: only those that are measured while a trial runs, of which none is on test.
    """
    chosen = [metric for metric in (*METRICS, *metrics) if metric.rung or not rung]
    splits = (*(AT_RUNGS if rung else SPLITS), "train")
    return [f"{split}_{one.name}" for split in splits for one in chosen if split in one.splits]


def markdown_table() -> str:
    """Every metric of raymu's with its columns and meaning, for the documentation."""
    lines = ["| metric | columns | at rungs | what it is |", "|---|---|---|---|"]
    for one in METRICS:
        where = ", ".join(f"`{split}_{one.name}`" for split in one.splits)
        lines.append(f"| {one.name} | {where} | {'yes' if one.rung else ''} | {one.doc} |")
    return "\n".join(lines)


def check_new(metrics: Iterable[Metric]) -> None:
    """Look whether metrics can be measured beside raymu's.

    Raises:
        InputError: one is no Metric, or has the name of another column.
    """
    names = [metric.name for metric in METRICS]
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise InputError(f"a metric is a raymu.Metric, not {metric!r}")
        if metric.name == "score" or metric.name.endswith("_gap"):
            raise InputError(f"a metric cannot be called {metric.name}, which names another column of a row")
        if metric.name in names:
            raise InputError(f"there are two metrics {metric.name}; give one another name")
        names.append(metric.name)


def get(name: str) -> Metric:
    """Metric of that name, of raymu, of a package or in a file of the user's (see `raymu.plugins`).

    Raises:
        InputError: there is none; the message names the nearest.
    """
    found: Metric = plugins.find(Metric, name, {metric.name: metric for metric in METRICS})
    return found
