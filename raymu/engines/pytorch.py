"""The one-process engine: a method says what to minimise, the engine carries it out on one device."""

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raymu import heartbeat, source
from raymu.checkpoints import State
from raymu.engines.batches import Batches, Extra, mixed
from raymu.engines.gradients import clipping, gauss_newton_sums, gradients_of, minimiser
from raymu.engines.optimizers import checkpoint_gradients, make_optimizer
from raymu.engines.options import DEFAULTS, Options
from raymu.engines.passes import once
from raymu.errors import Diverged
from raymu.method import Clipped, Loss, Method, Step
from raymu.models import architectures, cmf, inference
from raymu.run import Batch, Optimizer, Part, Run, Subset, Tensors
from raymu.scenario import Scenario
from raymu.splits import Data
from raymu.values import content_hash


class Engine(Run):
    """The engine of one process.

    Attributes:
        model: with a CMF head, it wraps the model that was given.
        epoch: how many epochs have been trained so far.
        images: number of images that the method has read so far; a pass whose result was cached counts as well.
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
        self._batches = Batches(data, scenario.recipe, seed)
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
        return State(self.epoch, self.images, self.spared_s, self._cycled, self.model.state_dict(), optimizer, {})

    # What a method may read:

    def epochs(self, count: int, lr: float | Callable[[int], float], optimizer: Optimizer = "sgd") -> Iterator[int]:
        """See Run."""
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
                torch.manual_seed(self._batches.draw("dropout", self.epoch, self._workers.rank))
                with self._training():
                    self._train_mode()
                    yield epoch
                failed = (~self._finite).long()
                self._workers.sum(failed)
                if failed:  # looked at once an epoch: a look at every step would stall a GPU
                    raise Diverged(f"the loss was not finite in epoch {self.epoch}")
                self._refresh_head()
                heartbeat.beat(self.epoch, self._method.total_epochs)
                self._end_of_epoch(self.epoch)
        finally:
            if begun:
                self._end()

    def batches(self, subset: Subset, *, batch_size: int | None = None, extra: Extra | None = None) -> Iterator[Batch]:
        """See Run."""
        self._passes += 1
        place = "pass", self.epoch, self._passes
        chosen = self._batches.shuffled(self._positions(subset), *place, batch_size=batch_size, extra=extra)
        for batch in self._read(chosen):
            yield batch if extra is None else mixed(batch, extra)

    def cycle(self, subset: Subset) -> Iterator[Batch]:
        """See Run."""
        number = len(self._cycled)
        self._cycled.append(0)
        return self._cycle(subset, number)

    def _cycle(self, subset: Subset, number: int) -> Iterator[Batch]:
        def chosen() -> Iterator[tuple[Tensor, Tensor]]:
            positions = self._positions(subset)
            begun, skipped = divmod(self._cycled[number], self._batches.count(positions))
            for passes in itertools.count(begun):
                yield from self._batches.shuffled(positions, "cycle", number, passes)[skipped:]
                skipped = 0

        for batch in self._read(chosen()):
            self._cycled[number] += 1
            yield batch

    def scan(self, subset: Subset) -> Iterator[Batch]:
        """See Run."""
        self.model.eval()
        yield from self._read((chosen, None) for chosen in self._batches.by_class(self._positions(subset)))

    def classes(self, part: Part) -> list[int]:
        """See Run."""
        found: list[int] = self._data.train.targets[self._positions(part)].unique().tolist()
        return found

    def size(self, part: Part) -> int:
        """See Run."""
        return len(self._positions(part))

    def sample(self, part: Part, per_class: int, seed: int) -> Tensor:
        """See Run."""
        return self._batches.sample(self._positions(part), per_class, seed)

    def portion(self, part: Part, share: float, seed: int) -> Tensor:
        """See Run."""
        return self._batches.portion(self._positions(part), share, seed)

    def random_labels(self, batch: Batch) -> Tensor:
        """See Run."""
        return self._batches.random_labels(batch)

    def teacher(self, which: Literal["original", "random"]) -> Callable[[Batch], Tensor]:
        """See Run."""
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
            mine = inference.Collected(len(self._workers.shard(split.index)))
            for said in inference.outputs(model, self._data, split):
                mine.add(said.logits)
            return {"logits": self._workers.gather(mine.all)}

        table = self.cached("teacher", logits) if which == "original" else self._once("random-teacher", logits)
        return lambda batch: table["logits"][batch.positions]

    # What a method may compute:

    def weights(self) -> dict[str, nn.Parameter]:
        """See Run."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def gradients(self, subset: Subset, reduction: Literal["sum", "mean"]) -> Iterator[Tensors]:
        """See Run."""
        weights = self.weights()
        for batch in self.scan(subset):
            loss = cross_entropy(self.model(batch.images), batch.labels, reduction="sum")
            gradients = gradients_of(loss, list(weights.values()))
            count = torch.full((), len(batch.labels), device=self._device)
            self._workers.sum(count, *gradients)
            if reduction == "mean":
                gradients = torch._foreach_div(gradients, count)
            yield dict(zip(weights, gradients, strict=True))

    def curvature_product(self, subset: Subset, vector: Tensors) -> Tensors:
        """See Run."""
        with architectures.in_float32(self.model):
            count, total = gauss_newton_sums(self.model, self.weights(), self.scan(subset), vector)
        self._workers.sum(count, *total.values())
        return {name: tensor / count for name, tensor in total.items()}

    def sum(self, *tensors: Tensor) -> None:
        """See Run."""
        self._workers.sum(*tensors)

    def cached(self, name: str, compute: Callable[[], Tensors], *, of_logits: bool = True, **knobs: float) -> Tensors:
        """See Run."""
        if self._method.head == "cmf" and of_logits:
            knobs["temperature"] = self._method.temperature
        return self._once(name, compute, head=self._method.head, train=self._method.train, **knobs)

    def optimise_images(
        self, count: int, loss: Callable[[Tensor], Tensor], *, lr: float, steps: int, seed: int
    ) -> Tensor:
        """See Run."""
        self.model.eval()
        source = self._data.train.images
        noise = torch.randn((count, *source.shape), generator=torch.Generator().manual_seed(seed)).to(self._device)
        return minimiser(loss, noise, source.limits, lr=lr, steps=steps)

    # What a method may change:

    def train_only(self, masks: Tensors) -> None:
        """See Run."""
        self._frozen = {name: (masks[name], weight.detach().clone()) for name, weight in self.weights().items()}

    @torch.no_grad()
    def edit(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """See Run."""
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
        """Shard the weights of a frozen network, where the trained one's are sharded."""
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
        made_by = content_hash([code_of(type(self._method)), knobs])
        entry = None if self._cache_directory is None else self._cache_directory / f"{name}-{made_by}"
        before = self.images

        def counted() -> tuple[Tensors, int]:
            return compute(), self.images - before

        tensors, images, spared_s = once(entry, counted, self._workers, self._device)
        self.images = before + images
        self.spared_s += spared_s
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

    def _positions(self, subset: Subset) -> Tensor:
        """Positions in the training split, of what the method says that it reads."""
        return self._batches.positions(subset, self._method.needs)

    def _read(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[Batch]:
        for count, batch in self._batches.read(batches):
            self.images += count
            yield batch


def code_of(method: type[Method]) -> str:
    """Digest of a method's code and of what carries it out, since the last `source.read_anew`. A class that travels
    to another process takes along what was said here, since the script that defines it need not be there.
    """
    here, number = reading = source.reading()
    process, its_look, _ = method.__dict__.get("_code", (here, None, ""))
    if process == here and its_look != number:
        sharded = source.text_of("raymu.engines.deepspeed")  # as text, since DeepSpeed need not be installed
        method._code = (*reading, source.digest(method, Engine, sharded, within=source.TRAINING))
    return method._code[-1]
