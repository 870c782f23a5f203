"""The one-process engine: a method says what to minimise, the engine carries it out on one device."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, pad

from raymu import cache, models
from raymu.data import Data
from raymu.errors import Diverged
from raymu.method import Clipped, Loss, Method, Part, Step
from raymu.scenario import Scenario

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
CROP_PADDING = 4
READ = "images read"

Tensors = dict[str, Tensor]
Rows = Literal["train", "retain", "forget"] | Tensor


class Batch(NamedTuple):
    """Some images of the training split: normalised `images` (B, C, H, W), true `labels` (B,), which of them belong to
    the `forget` set (bool, B), and their positions `rows` (B,) in the split, -1 for images that are not from there.
    """

    images: Tensor
    labels: Tensor
    forget: Tensor
    rows: Tensor


class Engine:
    """Runs one method on one model. To a method it is `run`: what it may read, draw and ask for.

    Everything random comes from `seed` alone. The model is changed in place.

    Attributes:
        model: normalised images (B, C, H, W) -> logits (B, K); with a CMF head, it wraps the model that was given.
        scenario: what has to be forgotten.
        seed: the trial's.
        epoch: how many epochs have been trained so far.
        images: how many images the method has read so far; those of a pass whose result was cached count as well.
    """

    def __init__(
        self, model: nn.Module, data: Data, scenario: Scenario, *, seed: int, cache_directory: Path | None = None
    ) -> None:
        """`cache_directory` keeps what `cached` computes; it belongs to this model and data."""
        self.model = model
        self.scenario = scenario
        self.seed = seed
        self.epoch = 0
        self.images = 0
        self._data = data
        self._device = data.mean.device
        self._cache_directory = cache_directory
        self._random = torch.Generator().manual_seed(seed)
        self._frozen: dict[str, tuple[Tensor, Tensor]] = {}

    def run(self, method: Method, end_of_epoch: Callable[[int], None] = lambda epoch: None) -> None:
        """Unlearn. `end_of_epoch(epoch)` is called after every epoch; it may evaluate the model, and raise to stop.

        Raises:
            Diverged: the loss or the features are no longer finite.
        """
        self._method, self._end_of_epoch = method, end_of_epoch
        if method.train == "classifier":
            self.model.requires_grad_(False)
            self.model.get_classifier().requires_grad_(True)  # type: ignore[operator]
        if method.head == "cmf":
            self.model = models.CMF(self.model, self._data.num_classes, method.temperature).to(self._device)
            self._make_head(self._once("features", self._features))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)  # dropout and the like
            for step in method.unlearn(self):
                self._step(step)

    # What a method may read:

    def epochs(
        self, count: int, lr: float | Callable[[int], float], optimizer: Literal["sgd", "adam"] = "sgd"
    ) -> Iterator[int]:
        """Count 1, 2, ... `count` with the model in train mode and a new optimizer.

        Where the classifier is trained alone, everything else stays in eval mode.

        Args:
            lr: the learning rate, or epoch -> learning rate.
            optimizer: "sgd" has Nesterov momentum 0.9 and weight decay 5e-4 (Gao et al., AISTATS 2026), "adam" has
                its usual moments and no weight decay.
        """
        rate = lr if callable(lr) else lambda epoch: lr
        weights = list(self.weights().values())
        self._optimizer: torch.optim.Optimizer
        if optimizer == "sgd":
            self._optimizer = torch.optim.SGD(
                weights, lr=rate(1), momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
            )
        else:
            self._optimizer = torch.optim.Adam(weights, lr=rate(1))
        for epoch in range(1, count + 1):
            self._train_mode()
            for group in self._optimizer.param_groups:
                group["lr"] = rate(epoch)
            self._finite = torch.tensor(True, device=self._device)
            self.epoch += 1
            yield epoch
            if not self._finite:  # looked at once an epoch: a look at every step would stall a GPU
                raise Diverged(f"the loss was not finite in epoch {self.epoch}")
            self._refresh_head()
            self._end_of_epoch(self.epoch)

    def batches(
        self, part: Rows, *, batch_size: int | None = None, extra: tuple[Tensor, Tensor, int] | None = None
    ) -> Iterator[Batch]:
        """One shuffled, augmented pass, in batches of nearly equal size.

        No batch is a small remainder: one of two images would wreck the BatchNorm statistics.

        Args:
            part: of the training set, or positions in it (from `sample`).
            batch_size: at most so many images; None means the scenario's.
            extra: normalised images (M, C, H, W), their labels (M,), and how many times they are mixed in.
        """
        rows = self._rows(part)
        if extra is not None:
            rows = torch.cat([rows, (-1 - torch.arange(len(extra[1]), device=rows.device)).repeat(extra[2])])
        rows = rows[torch.randperm(len(rows), generator=self._random).to(rows.device)]
        for chosen in rows.tensor_split(max(1, -(-len(rows) // (batch_size or self.scenario.recipe.batch_size)))):
            batch = self._read(chosen.clamp(min=0), augment=self.scenario.recipe.augment)
            if extra is not None:
                images, labels, forget, _ = batch
                added = chosen < 0
                images[added], labels[added] = extra[0][-1 - chosen[added]], extra[1][-1 - chosen[added]]
                batch = Batch(images, labels, forget & ~added, chosen.clamp(min=-1))
            yield batch

    def cycle(self, part: Rows) -> Iterator[Batch]:
        """Pass after pass, without end."""
        while True:
            yield from self.batches(part)

    def scan(self, part: Rows) -> Iterator[Batch]:
        """One pass in order, without augmentation; the model goes to eval mode, so that nothing of it changes."""
        self.model.eval()
        rows = self._rows(part)
        for chosen in rows.tensor_split(max(1, -(-len(rows) // self.scenario.recipe.batch_size))):
            yield self._read(chosen, augment=False)

    def classes(self, part: Part) -> list[int]:
        """The classes that occur in that part of the training set."""
        found: list[int] = self._data.train.targets[self._rows(part)].unique().tolist()
        return found

    def size(self, part: Part) -> int:
        """How many images are in that part of the training set."""
        return len(self._rows(part))

    def sample(self, part: Part, per_class: int, seed: int) -> Tensor:
        """Positions of so many images of every class that occurs in the part (all where there are fewer), drawn from
        that seed.
        """
        rows = self._rows(part)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(rows.device)]
        labels = self._data.train.targets[rows]
        chosen = [rows[labels == label][:per_class] for label in labels.unique()]
        return torch.cat(chosen).sort().values

    def random_labels(self, labels: Tensor) -> Tensor:
        """Wrong labels (B,), drawn evenly: among the classes that are not forgotten; where samples are forgotten,
        among all but each sample's own label (B,).
        """
        count = self._data.num_classes
        if self.scenario.forget:
            classes = torch.tensor([c for c in range(count) if c not in self.scenario.forget])
            return classes[torch.randint(len(classes), (len(labels),), generator=self._random)].to(self._device)
        shift = torch.randint(1, count, (len(labels),), generator=self._random)
        return (labels + shift.to(self._device)) % count

    def teacher(self, which: Literal["original", "random"]) -> Callable[[Batch], Tensor]:
        """Logits (B, K) of a frozen model in eval mode: of the model as it is now, before the first epoch, or of one
        with random weights. Where images are not augmented, they are computed once per scenario.
        """
        if which == "original":
            model = copy.deepcopy(self.model)
        else:
            seed = self.scenario.model_seed + 1  # + 0 is the original's start
            model = models.build(self.scenario, seed).to(self._device)
        model.eval().requires_grad_(False)
        if self.scenario.recipe.augment:
            return lambda batch: model(batch.images)
        split = self._data.train

        def logits() -> Tensors:
            return {"logits": models.extract(model, self._data, split).logits}

        table = self.cached("teacher", logits) if which == "original" else self._once("random-teacher", logits)
        return lambda batch: table["logits"][batch.rows]

    # What a method may compute:

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights that may move, by name."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def gradients(self, part: Rows, reduction: Literal["sum", "mean"]) -> Iterator[Tensors]:
        """For every batch of a scan, the gradient of its summed or mean CE, by weight."""
        weights = self.weights()
        for batch in self.scan(part):
            loss = cross_entropy(self.model(batch.images), batch.labels, reduction=reduction)
            yield dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    def curvature_product(self, part: Rows, vector: Tensors) -> Tensors:
        """The Gauss-Newton matrix of the mean CE times a vector, in one scan.

        J^T H J v, with the Jacobian J of the logits and the Hessian H of CE in the logits: the exact Hessian of a
        linear classifier, positive semi-definite for any model (Schraudolph, Neural Computation 2002).
        """
        weights = self.weights()
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        count = 0
        detached = {name: weight.detach() for name, weight in weights.items()}
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
            for batch in self.scan(part):

                def logits_of(values: Tensors, images: Tensor = batch.images) -> Tensor:
                    logits: Tensor = torch.func.functional_call(self.model, values, (images,))
                    return logits

                logits, pushed = torch.func.jvp(logits_of, (detached,), (vector,))  # type: ignore[misc]
                chances = logits.softmax(1)
                curved = chances * (pushed - (chances * pushed).sum(1, keepdim=True))
                (pulled,) = torch.func.vjp(logits_of, detached)[1](curved)
                for name, tensor in total.items():
                    tensor += pulled[name]
                count += len(batch.labels)
        return {name: tensor / count for name, tensor in total.items()}

    def cached(self, name: str, compute: Callable[[], Tensors], **knobs: float) -> Tensors:
        """What `compute` returns, in any order, computed once per scenario, head, trained part and `knobs`.

        It may depend on nothing else: not on the trial's seed, unless that is one of the knobs.
        """
        if self._method.head == "cmf":
            knobs["temperature"] = self._method.temperature
        return self._once(name, compute, head=self._method.head, train=self._method.train, **knobs)

    def optimise_images(
        self, count: int, loss: Callable[[Tensor], Tensor], *, lr: float, steps: int, seed: int
    ) -> Tensor:
        """Normalised images (count, C, H, W) that minimise the loss (images -> scalar): Adam from standard normal
        noise, kept within what a real image can be. The model is in eval mode and does not change.
        """
        self.model.eval()
        size = (count, len(self._data.mean), *self._data.train.images.shape[2:])
        noise = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(self._device)
        low, high = (self._data.normalise(torch.full((1, 1, 1), level, device=self._device)) for level in (0.0, 255.0))
        images = noise.clamp(low, high).requires_grad_(True)
        optimizer = torch.optim.Adam([images], lr=lr)
        for _ in range(steps):
            (images.grad,) = torch.autograd.grad(loss(images), [images])
            optimizer.step()
            with torch.no_grad():
                images.clamp_(low, high)
        return images.detach()

    # What a method may change:

    def train_only(self, masks: Tensors) -> None:
        """From now on only the weights under these masks (bool, by name) move.

        The others keep their present value to the bit, whatever weight decay and momentum do.
        """
        self._frozen = {name: (masks[name], weight.detach().clone()) for name, weight in self.weights().items()}

    @torch.no_grad()
    def edit(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Set every weight to `change(name, weight)`."""
        for name, weight in self.weights().items():
            weight.copy_(change(name, weight))
        self._refresh_head()

    # How it is carried out:

    def _step(self, step: Step) -> None:
        self._optimizer.zero_grad()
        for part in step if isinstance(step, tuple) else (step,):
            self._add_gradient(part)
        self._optimizer.step()
        if self._frozen:
            with torch.no_grad():
                for name, weight in self.weights().items():
                    mask, value = self._frozen[name]
                    torch.where(mask, weight, value, out=weight)

    def _add_gradient(self, part: Loss) -> None:
        loss, norm = (part.loss, part.norm) if isinstance(part, Clipped) else (part, None)
        self._finite &= loss.detach().isfinite()
        if norm is None:
            loss.backward()
            return
        weights = list(self.weights().values())
        gradients = torch.autograd.grad(loss, weights)
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
        scale = (norm / length).clamp(max=1)
        for weight, gradient in zip(weights, gradients, strict=True):
            gradient *= scale
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    def _once(self, name: str, compute: Callable[[], Tensors], **knobs: float | str) -> Tensors:
        if self.epoch:
            raise RuntimeError(f"{name} is computed from the original model: ask for it before the first epoch")
        before = self.images

        def measured() -> Tensors:
            tensors = compute()
            return {**tensors, READ: torch.tensor(self.images - before)}

        if self._cache_directory is None:
            tensors = measured()
        else:
            digest = hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:12]
            entry = cache.once(
                self._cache_directory / f"{name}-{digest}",
                lambda entry: cache.save_tensors(entry / "tensors.safetensors", measured()),
            )
            tensors = cache.load_tensors(entry / "tensors.safetensors", self._device)
        self.images = before + int(tensors.pop(READ))
        return tensors

    def _train_mode(self) -> None:
        classifier_only = self._method.train == "classifier"
        self.model.train(not classifier_only)
        self.model.get_classifier().train()  # type: ignore[operator]

    def _refresh_head(self) -> None:
        if isinstance(self.model, models.CMF):
            self._make_head(self._features())

    def _features(self) -> Tensors:
        """The backbone's features of the training set."""
        return {"features": models.extract(self.model.backbone, self._data, self._data.train).features}  # type: ignore[arg-type]

    def _make_head(self, features: Tensors) -> None:
        self.model.update(features["features"], self._data.train.targets)  # type: ignore[operator]

    def _rows(self, part: Rows) -> Tensor:
        """Positions in the training split."""
        if isinstance(part, Tensor):
            return part
        undeclared = {"train": {"retain", "forget"}}.get(part, {part}) - set(self._method.needs)
        if undeclared:
            raise RuntimeError(f"{self._method.name()} reads {', '.join(undeclared)} data, which it does not declare")
        forget = self._data.forget
        chosen = {"train": torch.ones_like(forget), "retain": ~forget, "forget": forget}[part]
        return chosen.nonzero().squeeze(1)

    def _read(self, rows: Tensor, *, augment: bool) -> Batch:
        split = self._data.train
        index = split.index[rows]
        images = split.images[index]
        if augment:
            images = self._crop_and_flip(images)
        self.images += len(rows)
        return Batch(self._data.normalise(images), split.labels[index], self._data.forget[rows], rows)

    def _crop_and_flip(self, images: Tensor) -> Tensor:
        """A random crop after zero padding and a random horizontal flip, for every image its own."""
        count, _, height, width = images.shape
        top, left = torch.randint(2 * CROP_PADDING + 1, (2, count, 1), generator=self._random)
        columns = torch.arange(width).expand(count, width)
        flip = torch.randint(2, (count, 1), generator=self._random).bool()
        columns = torch.where(flip, columns.flip(1), columns) + left
        rows = torch.arange(height) + top
        padded = pad(images, (CROP_PADDING,) * 4)
        picture = torch.arange(count)[:, None, None]
        return padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
