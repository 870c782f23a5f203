"""The one-process engine: a method says what to minimise, the engine carries it out on one device."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from raymu import cache
from raymu.data import Data, Split
from raymu.errors import Diverged
from raymu.method import Method

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
CROP_PADDING = 4


class Engine:
    """Runs one method on one model. To a method it is `run`: what it may read, draw and ask for.

    Everything random comes from `seed` alone. The model is changed in place.

    Attributes:
        model: normalised images (B, C, H, W) -> logits (B, K).
        images: how many images were trained on so far.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        *,
        batch_size: int,
        seed: int,
        augment: bool = False,
        saliency_cache: Path | None = None,
    ) -> None:
        """`saliency_cache` is where the saliency of the model as it is now lies or shall lie."""
        self.model = model
        self.images = 0
        self._data = data
        self._batch_size = batch_size
        self._augment = augment
        self._saliency_cache = saliency_cache
        self._device = data.mean.device
        self._seed = seed
        self._random = torch.Generator().manual_seed(seed)
        forgotten = set(data.train.labels[data.train.index[data.train.forget]].tolist())
        self._retain_classes = torch.tensor([c for c in range(data.num_classes) if c not in forgotten])
        self._frozen: dict[str, tuple[Tensor, Tensor]] = {}

    def run(self, method: Method, end_of_epoch: Callable[[int], None] = lambda epoch: None) -> None:
        """Unlearn. `end_of_epoch(epoch)` is called after every epoch; it may evaluate the model, and raise to stop.

        Raises:
            Diverged: the loss is no longer finite.
        """
        self._method, self._end_of_epoch = method, end_of_epoch
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), lr=method.lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)  # dropout and the like
            for loss in method.unlearn(self):
                self._step(loss)

    # What a method may use:

    def epochs(self, count: int) -> Iterator[int]:
        """Count 1, 2, ... `count`, with the model in train mode and the epoch's learning rate set."""
        for epoch in range(1, count + 1):
            self.model.train()
            for group in self._optimizer.param_groups:
                group["lr"] = self._method.lr * self._method.lr_factor(epoch)
            self._finite = torch.tensor(True, device=self._device)
            yield epoch
            if not self._finite:  # looked at once an epoch: a look at every step would stall a GPU
                raise Diverged(f"the loss was not finite in epoch {epoch}")
            self._end_of_epoch(epoch)

    def batches(self, part: Literal["train", "retain", "forget"]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One shuffled pass over that part of the training set, in batches of nearly equal size.

        Yields normalised images (B, C, H, W), true labels (B,) and whether each belongs to the forget set (B,). No
        batch is a small remainder: one of two images would wreck the BatchNorm statistics.
        """
        for rows in self._rows(part, shuffle=True):
            images, labels, forget = self._read(self._data.train, rows)
            if self._augment:
                images = self._crop_and_flip(images)
            self.images += len(images)
            yield self._data.normalise(images), labels, forget

    def random_retain_labels(self, count: int) -> Tensor:
        """Labels (count,) drawn evenly among the classes that are not forgotten."""
        draw = torch.randint(len(self._retain_classes), (count,), generator=self._random)
        return self._retain_classes[draw].to(self._device)

    def saliency(self) -> dict[str, Tensor]:
        """The sum over the forget set's batches of |gradient of the summed CE|, for every weight, before unlearning.

        The model is in eval mode, the images are neither shuffled nor augmented. Computed once per scenario.
        """
        if self._saliency_cache is None:
            return self._compute_saliency()
        entry = cache.once(
            self._saliency_cache,
            lambda entry: cache.save_tensors(entry / "saliency.safetensors", self._compute_saliency()),
        )
        return cache.load_tensors(entry / "saliency.safetensors", self._device)

    def train_only(self, masks: dict[str, Tensor]) -> None:
        """From now on only the weights under these masks (bool, by parameter name) move.

        The others keep their present value to the bit, whatever weight decay and momentum do.
        """
        self._frozen = {
            name: (masks[name], parameter.detach().clone()) for name, parameter in self.model.named_parameters()
        }

    # How it is carried out:

    def _step(self, loss: Tensor) -> None:
        self._finite &= loss.detach().isfinite()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        if self._frozen:
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    mask, value = self._frozen[name]
                    torch.where(mask, parameter, value, out=parameter)

    def _compute_saliency(self) -> dict[str, Tensor]:
        if self.images:
            raise RuntimeError("the saliency is that of the original model: ask for it before the first epoch")
        self.model.eval()
        sums = {name: torch.zeros_like(parameter) for name, parameter in self.model.named_parameters()}
        for rows in self._rows("forget", shuffle=False):
            images, labels, _ = self._read(self._data.train, rows)
            loss = cross_entropy(self.model(self._data.normalise(images)), labels, reduction="sum")
            gradients = torch.autograd.grad(loss, list(self.model.parameters()))
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total += gradient.abs()
        return sums

    def _rows(self, part: str, *, shuffle: bool) -> Iterator[Tensor]:
        """Positions in the training split, batch by batch."""
        forget = self._data.train.forget
        chosen = {"train": torch.ones_like(forget), "retain": ~forget, "forget": forget}[part]
        rows = chosen.nonzero().squeeze(1)
        if shuffle:
            rows = rows[torch.randperm(len(rows), generator=self._random).to(rows.device)]
        yield from rows.tensor_split(max(1, -(-len(rows) // self._batch_size)))

    def _read(self, split: Split, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = split.index[rows]
        return split.images[index], split.labels[index], split.forget[rows]

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
