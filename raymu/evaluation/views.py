"""Views of a model: what a metric may ask for. Each property is computed when the first metric asks."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raymu.errors import Undefined
from raymu.evaluation.moments import Moments
from raymu.models.inference import head_matrix
from raymu.splits import Data
from raymu.workers import ALONE

OF_MODEL = ("model", "data", "workers", "moments", "head", "forgotten")
AT_THE_END = ("original", "retrained", "members", "unseen", "relearn_epochs")  # not while a trial runs
OF_SPLIT = (*OF_MODEL, "retain", "forget", "both", "belongs", *AT_THE_END)


class Answered(NamedTuple):
    """Answers to n images: penultimate `features` (n, D), `logits` (n, K), true `labels` (n,), the classes (n,) that
    three classifiers name, the model itself (`answers`), the `probe` and the nearest class centre (`ncc`), and the
    log-odds `odds` (n, R, F) that R attackers give to each of F forgotten classes (`raymu.evaluation.attack`).
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    answers: Tensor
    probe: Tensor
    ncc: Tensor
    odds: Tensor


class Said(NamedTuple):
    """Logits (n, K) of n images and their true labels (n,)."""

    logits: Tensor
    labels: Tensor


class OfModel:
    """View of a model that does not depend on a split.

    Attributes:
        split: "train".
        model: the network, which has to stay as it is.
        data: the scenario's data.
        workers: the processes that share the trial's work.
        moments: moments of all workers' penultimate features of the images that the probe is fitted on.
    """

    def __init__(self, model: nn.Module, data: Data, moments: Moments) -> None:
        self.split = "train"
        self.model, self.data, self.moments, self.workers = model, data, moments, data.workers

    @cached_property
    def head(self) -> Tensor:
        """Weights of the classifier (K, D)."""
        return head_matrix(self.model).detach()

    @cached_property
    def forgotten(self) -> Tensor:
        """Mask of the forgotten classes among `moments.classes` (bool, C); all False where samples are forgotten."""
        return self.data.is_forgotten(self.moments.classes)

    @property
    def gathered(self) -> "OfModel":
        """The same view of all workers' images."""
        return self


class OfSplit(OfModel):
    """View of what a model says of a held-out split. Where samples are forgotten, the split's forget images are one
    half of these training images.

    Attributes:
        split: "val" or "test".
        retain: what is said of the images to be kept, of this worker's share.
        forget: the same of those to be forgotten.
    """

    def __init__(
        self,
        of_model: OfModel,
        split: str,
        retain: Answered,
        forget: Answered,
        learnt: Said | None = None,
        references: Mapping[str, Tensor] | None = None,
        relearn_epochs: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        """View of a split; the last three are None while a trial runs.

        Args:
            learnt: of this worker's share of the training images of the forgotten classes.
            references: what `baseline` returns.
            relearn_epochs: computes them, by split.
        """
        super().__init__(of_model.model, of_model.data, of_model.moments)
        self.split, self.retain, self.forget, self._of_model = split, retain, forget, of_model
        self._learnt, self._references, self._relearn_epochs = learnt, references, relearn_epochs

    @cached_property
    def both(self) -> Answered:
        """Answers to all images of the split, the retain part first."""
        return Answered(*map(torch.cat, zip(self.retain, self.forget, strict=True)))

    @property
    def belongs(self) -> Tensor:
        """Place of each forget image's class among the forgotten ones (n,); 0 where samples are forgotten."""
        return torch.searchsorted(self.moments.classes[self.forgotten], self.forget.labels)

    @property
    def original(self) -> Tensor:
        """Features (n, D) that the original model has of `both`."""
        return self._of_reference("original")

    @property
    def retrained(self) -> Tensor:
        """Features (n, D) that the retrained model has of `both`.

        Raises:
            Undefined: there is no retrained model.
        """
        return self._of_reference("retrained")

    @property
    def members(self) -> Said:
        """Logits of images to be forgotten that were trained on: the training images of the forgotten classes; where
        samples are forgotten, the split's forget images.
        """
        if not self.data.forgotten:
            return Said(self.forget.logits, self.forget.labels)
        assert self._learnt is not None
        return self._learnt

    @property
    def unseen(self) -> Said:
        """Logits of images like `members` that were not trained on: the split's forget images; where samples are
        forgotten, its retain images.
        """
        part = self.forget if self.data.forgotten else self.retain
        return Said(part.logits, part.labels)

    @property
    def relearn_epochs(self) -> int:
        """Epochs on a few forgotten training images until the model names the split's forget images again."""
        assert self._relearn_epochs is not None
        return self._relearn_epochs()[self.split]

    @cached_property
    def gathered(self) -> "OfSplit":
        """The same view of all workers' images."""
        if self.workers.count == 1:
            return self
        retain, forget = (Answered(*map(self.workers.gather, part)) for part in (self.retain, self.forget))
        learnt = None if self._learnt is None else Said(*map(self.workers.gather, self._learnt))
        whole = OfSplit(self._of_model, self.split, retain, forget, learnt, self._references, self._relearn_epochs)
        whole.workers = ALONE
        return whole

    def _of_reference(self, which: str) -> Tensor:
        assert self._references is not None
        features = self._references.get(f"{self.split}_{which}")
        if features is None:
            raise Undefined(f"there is no {which} model")
        sizes = [len(part) for part in getattr(self.data, self.split)]
        return torch.cat([self.workers.shard(part) for part in features.split(sizes)])
