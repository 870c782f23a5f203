"""The one-process engine: a method says what to minimise, the engine carries it out on one device."""

import contextlib
import copy
import functools
import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from raymu import cache, devices
from raymu.data.splits import Data
from raymu.engines.options import DEFAULTS, Options
from raymu.errors import Diverged
from raymu.method import Clipped, Loss, Method, Part, Step
from raymu.models import architectures, cmf, inference
from raymu.scenario import Scenario, content_hash

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
DECOUPLED_DECAY = 0.05
FOR_AUGMENTATION = 2**20  # an image's random number below that; what is above it is for its label
COST = "cost of the pass"  # the images that it read, and its seconds

Tensors = dict[str, Tensor]
Rows = Literal["train", "retain", "forget"] | Tensor
Optimizer = Literal["sgd", "momentum", "adam", "adamw"]


class Batch(NamedTuple):
    """Some images of the training split, or this worker's share of them: normalised `images` (B, C, H, W), true
    `labels` (B,), which of them belong to the `forget` set (bool, B), their positions `rows` (B,) in the split, -1 for
    images that are not from there, and a random number of 62 bits for each, `seeds` (B,): what is drawn for an image is
    drawn from it, so that it does not hang on the number of workers.
    """

    images: Tensor
    labels: Tensor
    forget: Tensor
    rows: Tensor
    seeds: Tensor


class State(NamedTuple):
    """Where an engine stands after an epoch: its counts (see Engine; `cycled` are the batches that each `cycle` has
    given so far), the network's `weights`, buffers included, and this worker's part of the optimizer's state.
    """

    epoch: int
    images: int
    spared_s: float
    cycled: list[int]
    weights: Tensors
    optimizer: Tensors


class Engine:
    """Runs one method on one model. To a method it is `run`: what it may read, draw and ask for.

    Everything random comes from `seed` alone. The model is changed in place.

    Attributes:
        model: normalised images (B, C, H, W) -> logits (B, K); with a CMF head, it wraps the model that was given.
        scenario: what has to be forgotten.
        seed: the trial's.
        epoch: how many epochs have been trained so far.
        images: how many images the method has read so far; those of a pass whose result was cached count as well.
        spared_s: how many seconds longer it would have taken so far, had nothing been cached.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        scenario: Scenario,
        *,
        seed: int,
        cache_directory: Path | None = None,
        options: Options = DEFAULTS,
    ) -> None:
        """`cache_directory` keeps what `cached` computes; it belongs to this model and data."""
        self.model = model
        self.scenario = scenario
        self.seed = seed
        self.epoch = 0
        self.images = 0
        self.spared_s = 0.0
        self._data = data
        self._options = options
        self._workers = data.workers
        self._device = data.device
        self._cache_directory = cache_directory
        self._passes = 0  # in this epoch
        self._cycled: list[int] = []
        self._saved: State | None = None
        self._frozen: dict[str, tuple[Tensor, Tensor]] = {}

    def run(self, method: Method, end_of_epoch: Callable[[int], None] = lambda epoch: None) -> None:
        """Unlearn. `end_of_epoch(epoch)` is called after every epoch; it may evaluate the model, and raise to stop.

        Raises:
            Diverged: the loss or the features are no longer finite.
        """
        self._method, self._end_of_epoch = method, end_of_epoch
        if method.train == "classifier":
            self.model.requires_grad_(False)
            for layer in inference.heads(self.model):
                layer.requires_grad_(True)
        if method.head == "cmf":
            self.model = cmf.CMF(self.model, self._data.num_classes, method.temperature).to(self._device)
            self._make_head(self._once("class-sums", self._class_sums))
        with torch.random.fork_rng():
            for step in method.unlearn(self):
                self._step(step)
        self._restore()

    def resume(self, state: State) -> None:
        """Make `run` go on from where another engine, the same in all else, stood: what precedes is not trained again.

        The method starts as it always does, from the original model, and passes over the epochs that are done.
        """
        self._saved = state

    def state(self) -> State:
        """Where it stands; to be asked for at the end of an epoch."""
        optimizer = {
            f"{number}.{key}": value
            for number, weight in enumerate(self._masters())
            for key, value in self._optimizer.state[weight].items()
            if isinstance(value, Tensor)
        }
        return State(self.epoch, self.images, self.spared_s, self._cycled, self.model.state_dict(), optimizer)

    # What a method may read:

    def epochs(self, count: int, lr: float | Callable[[int], float], optimizer: Optimizer = "sgd") -> Iterator[int]:
        """Count 1, 2, ... `count` with the model in train mode and a new optimizer.

        Where the classifier is trained alone, everything else stays in eval mode.

        Args:
            lr: the learning rate, or epoch -> learning rate.
            optimizer: "sgd" has Nesterov momentum 0.9 and weight decay 5e-4 (Gao et al., AISTATS 2026), "momentum" has
                the same without Nesterov's correction (Kurmanji et al., NeurIPS 2023), "adam" has its usual moments and
                no weight decay, "adamw" has them and decoupled weight decay 0.05 (He et al., CVPR 2022), of every
                weight.
        """
        rate = lr if callable(lr) else lambda epoch: lr
        begun = False
        try:
            for epoch in range(1, count + 1):
                if self._saved is not None and self.epoch < self._saved.epoch:
                    self.epoch += 1
                    continue
                if not begun:
                    moments = self._restore()
                    self._begin(optimizer, rate(1))
                    begun = True
                    if epoch > 1:  # the saved epoch is one of these
                        self._restore_moments(moments)
                for group in self._optimizer.param_groups:
                    group["lr"] = rate(epoch)
                self._finite = torch.tensor(True, device=self._device)
                self._passes = 0
                self.epoch += 1
                torch.manual_seed(self._draw("dropout", self.epoch, self._workers.rank))
                with self._training():
                    self._train_mode()
                    yield epoch
                failed = (~self._finite).long()
                self._workers.sum(failed)
                if failed:  # looked at once an epoch: a look at every step would stall a GPU
                    raise Diverged(f"the loss was not finite in epoch {self.epoch}")
                self._refresh_head()
                self._end_of_epoch(self.epoch)
        finally:
            if begun:
                self._end()

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
        self._passes += 1
        for batch in self._read(self._pass(part, batch_size, extra, "pass", self.epoch, self._passes)):
            if extra is not None:
                added, which = batch.rows < 0, (-1 - batch.rows).clamp(min=0)
                images = torch.where(added.view(-1, 1, 1, 1), extra[0][which], batch.images)
                labels = torch.where(added, extra[1][which], batch.labels)
                batch = Batch(images, labels, batch.forget & ~added, batch.rows.clamp(min=-1), batch.seeds)
            yield batch

    def cycle(self, part: Rows) -> Iterator[Batch]:
        """Pass after pass, without end."""
        number = len(self._cycled)
        self._cycled.append(0)
        return self._cycle(part, number)

    def _cycle(self, part: Rows, number: int) -> Iterator[Batch]:
        def chosen() -> Iterator[tuple[Tensor, Tensor]]:
            rows = self._rows(part)
            begun, skipped = divmod(self._cycled[number], self._batch_count(rows))
            for passes in itertools.count(begun):
                yield from self._pass(rows, None, None, "cycle", number, passes)[skipped:]
                skipped = 0

        for batch in self._read(chosen()):
            self._cycled[number] += 1
            yield batch

    def scan(self, part: Rows) -> Iterator[Batch]:
        """One pass, class by class, without augmentation. The model goes to eval mode: nothing of it changes."""
        self.model.eval()
        rows, split = self._rows(part), self._data.train
        index = self._index[rows]
        labels = split.labels.cpu()[index].numpy()
        rows = rows[np.lexsort((split.images.keys[index.numpy()], labels))]  # the same wherever the images lie
        cuts = rows.tensor_split(self._batch_count(rows))
        yield from self._read((chosen, None) for chosen in cuts)

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
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
        labels = self._data.train.targets.cpu()[rows]
        chosen = [rows[labels == label][:per_class] for label in labels.unique()]
        return torch.cat(chosen).sort().values

    def portion(self, part: Part, share: float, seed: int) -> Tensor:
        """Positions of that share (in 0..1) of the part, rounded down, drawn evenly from that seed."""
        rows = self._rows(part)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return rows[order[: int(share * len(rows))]].sort().values

    def random_labels(self, batch: Batch) -> Tensor:
        """Wrong labels (B,), drawn evenly: among the classes that are not forgotten; where samples are forgotten,
        among all but each sample's own label.
        """
        count, drawn = self._data.num_classes, batch.seeds // FOR_AUGMENTATION
        if self.scenario.forget:
            return self._retained[drawn % len(self._retained)]
        return (batch.labels + 1 + drawn % (count - 1)) % count

    @functools.cached_property
    def _retained(self) -> Tensor:
        """The classes that are not forgotten, on the device."""
        classes = [one for one in range(self._data.num_classes) if one not in self.scenario.forget]
        return torch.tensor(classes, device=self._device)

    def teacher(self, which: Literal["original", "random"]) -> Callable[[Batch], Tensor]:
        """Logits (B, K) of a frozen model in eval mode: of the model as it is now, before the first epoch, or of one
        with random weights. Where images are not augmented, they are computed once per scenario.
        """
        if which == "original":
            model = copy.deepcopy(self.model)
        else:
            seed = self.scenario.model_seed + 1  # + 0 is the original's start
            model = architectures.build(self.scenario, seed).to(self._device)
        model.eval().requires_grad_(False)
        if self.scenario.recipe.augment:
            frozen = self._spread(model)
            return lambda batch: frozen(batch.images)
        split = self._data.train

        def logits() -> Tensors:
            return {"logits": self._workers.gather(inference.extract(model, self._data, split)[0].logits)}

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
            loss = cross_entropy(self.model(batch.images), batch.labels, reduction="sum")
            gradients = gradients_of(loss, list(weights.values()))
            count = torch.full((), len(batch.labels), device=self._device)
            self._workers.sum(count, *gradients)
            if reduction == "mean":
                gradients = torch._foreach_div(gradients, count)
            yield dict(zip(weights, gradients, strict=True))

    def curvature_product(self, part: Rows, vector: Tensors) -> Tensors:
        """The Gauss-Newton matrix of the mean CE times a vector, in one scan.

        J^T H J v, with the Jacobian J of the logits and the Hessian H of CE in the logits: the exact Hessian of a
        linear classifier, positive semi-definite for any model (Schraudolph, Neural Computation 2002). In float32 also
        where the recipe is not: PyTorch's forward mode does not go with autocast.
        """
        weights = self.weights()
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        count = torch.tensor(0, device=self._device)
        detached = {name: weight.detach() for name, weight in weights.items()}
        # Fused attention has no forward-mode derivative.
        with architectures.in_float32(self.model), sdpa_kernel(SDPBackend.MATH):
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
        self._workers.sum(count, *total.values())
        return {name: tensor / count for name, tensor in total.items()}

    def sum(self, *tensors: Tensor) -> None:
        """Add up what a method has gathered itself in a scan, in place, over the workers, each with its share."""
        self._workers.sum(*tensors)

    def cached(self, name: str, compute: Callable[[], Tensors], *, of_logits: bool = True, **knobs: float) -> Tensors:
        """What `compute` returns, in any order, computed once per scenario, code of the method and of the engine, head,
        trained part and `knobs`.

        It may depend on nothing else: not on the trial's seed, unless that is one of the knobs. Unless it is
        `of_logits`, a CMF head's temperature makes no difference to it.
        """
        if self._method.head == "cmf" and of_logits:
            knobs["temperature"] = self._method.temperature
        return self._once(name, compute, head=self._method.head, train=self._method.train, **knobs)

    def optimise_images(
        self, count: int, loss: Callable[[Tensor], Tensor], *, lr: float, steps: int, seed: int
    ) -> Tensor:
        """Normalised images (count, C, H, W) that minimise the loss (images -> scalar): Adam from standard normal
        noise, kept within what a real image can be. The model is in eval mode and does not change.
        """
        self.model.eval()
        source = self._data.train.images
        noise = torch.randn((count, *source.shape), generator=torch.Generator().manual_seed(seed)).to(self._device)
        low, high = source.limits
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

        The others have no gradient, and keep their present value to the bit, whatever weight decay and momentum do.
        """
        self._frozen = {name: (masks[name], weight.detach().clone()) for name, weight in self.weights().items()}

    @torch.no_grad()
    def edit(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Set every weight to `change(name, weight)`."""
        for name, weight in self.weights().items():
            weight.copy_(change(name, weight))
        self._refresh_head()

    # How it is carried out:

    def _begin(self, optimizer: Optimizer, lr: float) -> None:
        """Get ready for epochs of training."""
        weights = self.weights()
        self._optimizer = make_optimizer(list(weights.values()), optimizer, lr)
        self._moving: list[Tensor] = list(weights.values())
        frozen = [self._frozen[name] for name in weights if self._frozen]
        self._masks = [mask.to(value.dtype) for mask, value in frozen]
        self._still = [torch.where(mask, 0, value) for mask, value in frozen]

    def _end(self) -> None:
        """Those epochs are over, or given up."""

    def _masters(self) -> list[Tensor]:
        """What the optimizer moves, or this worker's part of it."""
        return list(self.weights().values())

    def _restore(self) -> Tensors:
        """Go to where the engine stood that is resumed, if there is one; return its optimizer's state."""
        saved, self._saved = self._saved, None
        if saved is None:
            return {}
        self.model.load_state_dict(saved.weights)
        self.images, self.spared_s, self._cycled = saved.images, saved.spared_s, list(saved.cycled)
        return saved.optimizer

    def _restore_moments(self, saved: Tensors) -> None:
        masters = self._masters()
        for name, value in saved.items():
            number, key = name.split(".")
            master = masters[int(number)]
            self._optimizer.state[master][key] = value.to(master.device) if value.ndim else value

    def _spread(self, teacher: nn.Module) -> nn.Module:
        """Share out the weights of a frozen network, where those of the trained one are."""
        return teacher

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Run an epoch of steps."""
        checkpoint_gradients(self.model, self._options.checkpointing)
        try:
            yield
        finally:
            checkpoint_gradients(self.model, False)

    def _step(self, step: Step) -> None:
        self._optimizer.zero_grad()
        for part in step if isinstance(step, tuple) else (step,):
            self._add_gradient(part)
        self._mask([weight.grad for weight in self._moving])
        self._optimizer.step()
        if self._frozen:
            with torch.no_grad():
                torch._foreach_mul_(self._moving, self._masks)
                torch._foreach_add_(self._moving, self._still)

    def _add_gradient(self, part: Loss) -> None:
        loss, norm = (part.loss, part.norm) if isinstance(part, Clipped) else (part, None)
        self._finite &= loss.detach().isfinite()
        if norm is None:
            loss.backward()
            return
        gradients = gradients_of(loss, self._moving)
        self._mask(gradients)
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, clipping(norm, length))
        for weight, gradient in zip(self._moving, gradients, strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    def _mask(self, gradients: Sequence[Tensor | None]) -> None:
        """Let what must not move have no gradient, so that the others' is clipped by its own length."""
        if self._frozen:
            known = zip(gradients, self._masks, strict=True)
            pairs = [(gradient, mask) for gradient, mask in known if gradient is not None]
            torch._foreach_mul_([gradient for gradient, _ in pairs], [mask for _, mask in pairs])

    def _once(self, name: str, compute: Callable[[], Tensors], **knobs: float | str) -> Tensors:
        if self.epoch:
            raise RuntimeError(f"{name} is computed from the original model: ask for it before the first epoch")
        made_by = content_hash([self._method.source(), knobs])
        before, asked = self.images, time.perf_counter()

        def measured() -> Tensors:
            begun = devices.now(self._device)
            tensors = compute()
            cost = [self.images - before, devices.now(self._device) - begun]
            return {**tensors, COST: torch.tensor(cost, dtype=torch.float64)}

        def build(entry: Path | None) -> None:
            tensors = measured()
            if entry is not None:
                cache.save_tensors(entry / "tensors.safetensors", tensors)

        if self._cache_directory is None:
            tensors = measured()
        else:
            entry = self._workers.once(self._cache_directory / f"{name}-{made_by}", build)
            tensors = cache.load_tensors(entry / "tensors.safetensors", self._device)
        images, seconds = tensors.pop(COST).tolist()
        self.images = before + int(images)
        self.spared_s += seconds - (time.perf_counter() - asked)
        return tensors

    def _train_mode(self) -> None:
        self.model.train(self._method.train != "classifier")

    def _refresh_head(self) -> None:
        if isinstance(self.model, cmf.CMF):
            self._make_head(self._class_sums())

    def _class_sums(self) -> Tensors:
        """What the CMF head is made from."""
        sums, counts = self.model.class_sums(self._data)  # type: ignore[operator]
        self._workers.sum(sums, counts)
        return {"sums": sums, "counts": counts}

    def _make_head(self, found: Tensors) -> None:
        self.model.update(found["sums"], found["counts"])  # type: ignore[operator]

    @functools.cached_property
    def _index(self) -> Tensor:
        """Where the images of the training split are in their source. This and all positions stay on the CPU, which
        says what is read: a GPU would have to be waited for.
        """
        return self._data.train.index.cpu()

    def _rows(self, part: Rows) -> Tensor:
        """Positions in the training split."""
        if isinstance(part, Tensor):
            return part.cpu()
        undeclared = {"train": {"retain", "forget"}}.get(part, {part}) - set(self._method.needs)
        if undeclared:
            raise RuntimeError(f"{self._method.name()} reads {', '.join(undeclared)} data, which it does not declare")
        forget = self._data.forget.cpu()
        chosen = {"train": torch.ones_like(forget), "retain": ~forget, "forget": forget}[part]
        return chosen.nonzero().squeeze(1)

    def _pass(
        self, part: Rows, batch_size: int | None, extra: tuple[Tensor, Tensor, int] | None, *place: int | str
    ) -> list[tuple[Tensor, Tensor]]:
        """Batches of shuffled rows, extra images as -1, -2, ..., and the images' random numbers. The seed and the
        `place` of the pass decide alone.
        """
        rows, split = self._rows(part), self._data.train
        random = torch.Generator().manual_seed(self._draw(*place))
        order = split.images.shuffle(self._index[rows], random)
        if extra is None:
            chosen = rows[order]
        else:
            added = (-1 - torch.arange(len(extra[1]))).repeat(extra[2])
            chosen = torch.empty(len(rows) + len(added), dtype=rows.dtype)
            places = torch.randperm(len(chosen), generator=random)
            chosen[places[: len(added)]], chosen[places[len(added) :].sort().values] = added, rows[order]
        seeds = torch.randint(2**62, (len(chosen),), generator=random)
        count = self._batch_count(chosen, batch_size)
        return list(zip(chosen.tensor_split(count), seeds.tensor_split(count), strict=True))

    def _batch_count(self, rows: Tensor, batch_size: int | None = None) -> int:
        return max(1, -(-len(rows) // (batch_size or self.scenario.recipe.batch_size)))

    def _draw(self, *place: int | str) -> int:
        """A random number that the seed and the place alone decide."""
        return int.from_bytes(hashlib.sha256(repr((self.seed, *place)).encode()).digest()[:7], "big")

    def _read(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Batch]:
        """The share that this worker has of batches of rows and perhaps random numbers, which may be read ahead."""
        split, augment = self._data.train, self.scenario.recipe.augment
        ahead = deque[tuple[int, Tensor, Tensor]]()

        def shares() -> Iterator[tuple[Tensor, Tensor | None]]:
            for rows, seeds in batches:
                count = len(rows)
                if count < self._workers.count:
                    raise RuntimeError(f"a batch of {count} images is too small for {self._workers.count} workers")
                rows = self._workers.share(rows)
                drawn = torch.zeros_like(rows) if seeds is None else self._workers.share(seeds)
                ahead.append((count, rows, drawn))
                yield self._index[rows.clamp(min=0)], drawn if augment and seeds is not None else None

        for images in split.images.read(shares()):
            count, *chosen = ahead.popleft()
            self.images += count
            rows, drawn = (some.to(self._device, non_blocking=True) for some in chosen)
            known = rows.clamp(min=0)
            yield Batch(images, split.labels[split.index[known]], self._data.forget[known], rows, drawn)


def gradients_of(loss: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of a scalar in every weight, in their order: 0 in those that it does not depend on, as some models
    have them.
    """
    return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)


def make_optimizer(weights: list[nn.Parameter], kind: Optimizer, lr: float) -> torch.optim.Optimizer:
    """See Engine.epochs."""
    match kind:
        case "adam":
            return torch.optim.Adam(weights, lr=lr)
        case "adamw":
            return torch.optim.AdamW(weights, lr=lr, weight_decay=DECOUPLED_DECAY)
        case "sgd" | "momentum":
            nesterov = kind == "sgd"
            return torch.optim.SGD(weights, lr=lr, momentum=MOMENTUM, nesterov=nesterov, weight_decay=WEIGHT_DECAY)
    raise ValueError(f"there is no optimizer {kind!r}")


def clipping(norm: float, length: Tensor) -> Tensor:
    """What a gradient of that length is multiplied by, as `torch.nn.utils.clip_grad_norm_` does."""
    return (norm / (length + 1e-6)).clamp(max=1)


def checkpoint_gradients(model: nn.Module, on: bool) -> None:
    """Let a timm model compute activations anew in the backward pass instead of keeping them, or not."""
    network: Any = model.backbone if isinstance(model, cmf.CMF) else model
    if on or getattr(network, "grad_checkpointing", False):
        network.set_grad_checkpointing(on)
