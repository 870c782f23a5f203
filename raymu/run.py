"""What a method sees of its run: data to read, things to compute and to change, but not how it is carried out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from torch import Tensor, nn

from raymu.scenario import Scenario

Tensors = dict[str, Tensor]
Part = Literal["retain", "forget"]
Subset = Literal["train", "retain", "forget"] | Tensor  # of the training set; a tensor: positions in it
Optimizer = Literal["sgd", "momentum", "adam", "adamw"]


class Batch(NamedTuple):
    """Images of the training set, or this worker's share of them.

    Attributes:
        images: normalised (B, C, H, W).
        labels: true ones (B,).
        forget: which belong to the forget set (bool, B).
        positions: in the training set (B,); -1 of images that are not from there.
        seeds: a random number of 62 bits for each (B,). What is drawn for an image is drawn from it, so that it does
            not depend on the number of workers.
    """

    images: Tensor
    labels: Tensor
    forget: Tensor
    positions: Tensor
    seeds: Tensor


class Run(ABC):
    """One run of a method on one model, which is changed in place. Everything random comes from `seed`.

    Attributes:
        model: normalised images (B, C, H, W) -> logits (B, K).
        scenario: what has to be forgotten.
        seed: the trial's.
    """

    model: nn.Module
    scenario: Scenario
    seed: int

    # What a method may read:

    @abstractmethod
    def epochs(self, count: int, lr: float | Callable[[int], float], optimizer: Optimizer = "sgd") -> Iterator[int]:
        """Numbers 1, 2, ... `count` of epochs, with the model in train mode and a new optimizer.

        Where the classifier is trained alone, everything else stays in eval mode.

        Args:
            lr: the learning rate, or epoch -> learning rate.
            optimizer: "sgd" has Nesterov momentum 0.9 and weight decay 5e-4 (Gao et al., AISTATS 2026), "momentum" has
                the same without Nesterov's correction (Kurmanji et al., NeurIPS 2023), "adam" has its usual moments and
                no weight decay, "adamw" has them and decoupled weight decay 0.05 (He et al., CVPR 2022), of every
                weight.
        """

    @abstractmethod
    def batches(
        self, subset: Subset, *, batch_size: int | None = None, extra: tuple[Tensor, Tensor, int] | None = None
    ) -> Iterator[Batch]:
        """One shuffled, augmented pass, in batches of nearly equal size.

        No batch is a small remainder: one of two images would wreck the BatchNorm statistics.

        Args:
            batch_size: images of a batch, at most; None: the scenario's.
            extra: normalised images (M, C, H, W), their labels (M,), and how many times they are mixed in.
        """

    @abstractmethod
    def cycle(self, subset: Subset) -> Iterator[Batch]:
        """Pass after pass, without end."""

    @abstractmethod
    def scan(self, subset: Subset) -> Iterator[Batch]:
        """One pass, class by class, without augmentation. The model goes to eval mode: nothing of it changes."""

    @abstractmethod
    def classes(self, part: Part) -> list[int]:
        """Classes that occur in that part of the training set."""

    @abstractmethod
    def size(self, part: Part) -> int:
        """Number of images in that part of the training set."""

    @abstractmethod
    def sample(self, part: Part, per_class: int, seed: int) -> Tensor:
        """Positions of `per_class` images of every class that occurs in the part (all where there are fewer), drawn
        from that seed.
        """

    @abstractmethod
    def portion(self, part: Part, share: float, seed: int) -> Tensor:
        """Positions of that share (in 0..1) of the part, rounded down, drawn evenly from that seed."""

    @abstractmethod
    def random_labels(self, batch: Batch) -> Tensor:
        """Wrong labels (B,), drawn evenly: among the classes that are not forgotten; where samples are forgotten, among
        all but each sample's own label.
        """

    @abstractmethod
    def teacher(self, which: Literal["original", "random"]) -> Callable[[Batch], Tensor]:
        """Logits (B, K) of a frozen model in eval mode: of the model as it is now, before the first epoch, or of one
        with random weights. Where images are not augmented, they are computed once per scenario.
        """

    # What a method may compute:

    @abstractmethod
    def weights(self) -> dict[str, nn.Parameter]:
        """Weights that may move, by name."""

    @abstractmethod
    def gradients(self, subset: Subset, reduction: Literal["sum", "mean"]) -> Iterator[Tensors]:
        """Gradients of the summed or mean CE of every batch of a scan, by weight."""

    @abstractmethod
    def curvature_product(self, subset: Subset, vector: Tensors) -> Tensors:
        """Gauss-Newton matrix of the mean CE times a vector, in one scan.

        J^T H J v, with the Jacobian J of the logits and the Hessian H of CE in the logits: the exact Hessian of a
        linear classifier, positive semi-definite for any model (Schraudolph, Neural Computation 2002). In float32 also
        where the recipe is not: PyTorch's forward mode does not go with autocast.
        """

    @abstractmethod
    def sum(self, *tensors: Tensor) -> None:
        """Add up what a method has gathered itself in a scan, in place, over the workers, each with its share."""

    @abstractmethod
    def cached(self, name: str, compute: Callable[[], Tensors], *, of_logits: bool = True, **knobs: float) -> Tensors:
        """What `compute` returns, in any order, computed once per scenario, code of the method and of the engine, head,
        trained part and `knobs`.

        It may depend on nothing else: not on the trial's seed, unless that is one of the knobs. Unless it is
        `of_logits`, a CMF head's temperature makes no difference to it.
        """

    @abstractmethod
    def optimise_images(
        self, count: int, loss: Callable[[Tensor], Tensor], *, lr: float, steps: int, seed: int
    ) -> Tensor:
        """Normalised images (count, C, H, W) that minimise the loss (images -> scalar): Adam from standard normal
        noise, kept within what a real image can be. The model is in eval mode and does not change.
        """

    # What a method may change:

    @abstractmethod
    def train_only(self, masks: Tensors) -> None:
        """Let only the weights under these masks (bool, by name) move from now on.

        The others have no gradient, and keep their present value to the bit, whatever weight decay and momentum do.
        """

    @abstractmethod
    def edit(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Set every weight to `change(name, weight)`."""
