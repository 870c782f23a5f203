"""Batches of the training split, as one worker reads them."""

import functools
import hashlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from raymu import heartbeat
from raymu.run import Batch, Part, Subset
from raymu.scenario import Recipe
from raymu.splits import Data

FOR_AUGMENTATION = 2**20  # an image's random number below that; what is above it is for its label

Extra = tuple[Tensor, Tensor, int]


class Batches:
    """Positions in the training split, drawn and put in order, and the batches that are read of them.

    Positions stay on the CPU, which says what is read: a GPU would have to be waited for.

    Args:
        seed: decides, with the place of a pass, all that is drawn.
    """

    def __init__(self, data: Data, recipe: Recipe, seed: int) -> None:
        self._data, self._recipe, self._seed = data, recipe, seed

    @functools.cached_property
    def index(self) -> Tensor:
        """Where the images of the training split are in their source (int64, N)."""
        return self._data.train.index.cpu()

    def positions(self, subset: Subset, needs: Collection[Part]) -> Tensor:
        """Positions of a subset in the training split, for a method that `needs` these parts of it."""
        if isinstance(subset, Tensor):
            return subset.cpu()
        undeclared = {"train": {"retain", "forget"}}.get(subset, {subset}) - set(needs)
        if undeclared:
            raise RuntimeError(f"the method reads {', '.join(undeclared)} data, which it does not declare")
        forget = self._data.forget.cpu()
        chosen = {"train": torch.ones_like(forget), "retain": ~forget, "forget": forget}[subset]
        return chosen.nonzero().squeeze(1)

    def sample(self, positions: Tensor, per_class: int, seed: int) -> Tensor:
        """See Run."""
        drawn = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))]
        labels = self._data.train.targets.cpu()[drawn]
        chosen = [drawn[labels == label][:per_class] for label in labels.unique()]
        return torch.cat(chosen).sort().values

    def portion(self, positions: Tensor, share: float, seed: int) -> Tensor:
        """See Run."""
        order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
        return positions[order[: int(share * len(positions))]].sort().values

    def random_labels(self, batch: Batch) -> Tensor:
        """See Run."""
        count, drawn = self._data.num_classes, batch.seeds // FOR_AUGMENTATION
        if self._data.forgotten:
            return self._retained[drawn % len(self._retained)]
        return (batch.labels + 1 + drawn % (count - 1)) % count

    @functools.cached_property
    def _retained(self) -> Tensor:
        """Classes that are not forgotten, on the device."""
        classes = [one for one in range(self._data.num_classes) if one not in self._data.forgotten]
        return torch.tensor(classes, device=self._data.device)

    def count(self, positions: Tensor, batch_size: int | None = None) -> int:
        """Number of batches of a pass."""
        return max(1, -(-len(positions) // (batch_size or self._recipe.batch_size)))

    def draw(self, *place: int | str) -> int:
        """Random number that the seed and the place alone decide."""
        return int.from_bytes(hashlib.sha256(repr((self._seed, *place)).encode()).digest()[:7], "big")

    def shuffled(
        self, positions: Tensor, *place: int | str, batch_size: int | None = None, extra: Extra | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Batches of shuffled positions, extra images as -1, -2, ..., and the images' random numbers. The seed and the
        place of the pass decide alone.
        """
        random = torch.Generator().manual_seed(self.draw(*place))
        order = self._data.train.images.shuffle(self.index[positions], random)
        if extra is None:
            chosen = positions[order]
        else:
            added = (-1 - torch.arange(len(extra[1]))).repeat(extra[2])
            chosen = torch.empty(len(positions) + len(added), dtype=positions.dtype)
            places = torch.randperm(len(chosen), generator=random)
            chosen[places[: len(added)]], chosen[places[len(added) :].sort().values] = added, positions[order]
        seeds = torch.randint(2**62, (len(chosen),), generator=random)
        count = self.count(chosen, batch_size)
        return list(zip(chosen.tensor_split(count), seeds.tensor_split(count), strict=True))

    def by_class(self, positions: Tensor) -> list[Tensor]:
        """Batches of positions, class by class, the same wherever the images lie."""
        split, index = self._data.train, self.index[positions]
        labels = split.labels.cpu()[index].numpy()
        positions = positions[np.lexsort((split.images.keys[index.numpy()], labels))]
        return list(positions.tensor_split(self.count(positions)))

    def read(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[tuple[int, Batch]]:
        """Batches of positions and perhaps random numbers, which may be read ahead: how many images each has, and the
        share that this worker has of it.
        """
        split, workers, augment = self._data.train, self._data.workers, self._recipe.augment
        ahead = deque[tuple[int, Tensor, Tensor]]()

        def shares() -> Iterator[tuple[Tensor, Tensor | None]]:
            for positions, seeds in batches:
                count = len(positions)
                if count < workers.count:
                    raise RuntimeError(f"a batch of {count} images is too small for {workers.count} workers")
                positions = workers.shard(positions)
                drawn = torch.zeros_like(positions) if seeds is None else workers.shard(seeds)
                ahead.append((count, positions, drawn))
                yield self.index[positions.clamp(min=0)], drawn if augment and seeds is not None else None

        for images in split.images.read(shares()):
            heartbeat.beat()
            count, *chosen = ahead.popleft()
            positions, drawn = (some.to(self._data.device, non_blocking=True) for some in chosen)
            known = positions.clamp(min=0)
            yield count, Batch(images, split.labels[split.index[known]], self._data.forget[known], positions, drawn)


def mixed(batch: Batch, extra: Extra) -> Batch:
    """Batch in which the extra images stand where its positions are negative."""
    added, which = batch.positions < 0, (-1 - batch.positions).clamp(min=0)
    images = torch.where(added.view(-1, 1, 1, 1), extra[0][which], batch.images)
    labels = torch.where(added, extra[1][which], batch.labels)
    return Batch(images, labels, batch.forget & ~added, batch.positions.clamp(min=-1), batch.seeds)
