"""What a classifier answers, the features that its head reads, and the head as a matrix.

Logits are what the model itself returns. Its features are what its last linear layers are given on the way there, so
that they need no rule for an architecture; whether logits = features x matrix + bias, `raymu.models.compatibility`
finds out on two images.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raymu import heartbeat
from raymu.errors import Diverged
from raymu.splits import Data, Split

EXTRACT_BATCH = 640


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Have the model in eval mode, and after that every part of it in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def heads(model: Any) -> list[Any]:
    """The linear layers (1x1 convolutions among them) of a model's classifier that end in one output a class. Most have
    one. The logits are the mean of what they make, as in a model that was distilled with a second one. The classifier
    is what `get_classifier()` returns, as in timm, or where a model has none its last linear layer.
    """
    if not hasattr(model, "get_classifier"):
        return [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1:]
    classifier = model.get_classifier()
    parts = classifier if isinstance(classifier, tuple) else (classifier,)
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return [layer for layer in layers if _outputs(layer) == _outputs(layers[-1])]  # what precedes makes features


def killed(model: nn.Module) -> nn.Module:
    """The model with all its matrices and kernels but the classifier's set to 0, so that every image has the same
    features.
    """
    kept = {id(weight) for head in heads(model) for weight in head.parameters()}
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and id(weight) not in kept:
                weight.zero_()
    return model


def _outputs(layer: Any) -> int:
    size: int = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return size


def head_matrix(model: Any) -> Tensor:
    """The matrix (K, D) that makes logits, but for a bias, of the features that `features_and_logits` gives."""
    layers = heads(model)
    return torch.cat([layer.weight.flatten(1) for layer in layers], 1) / len(layers)


def features_and_logits(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Penultimate features (B, D) and logits (B, K) of normalised images (B, C, H, W), in float32 at least.

    The logits are the model's own. The features are what its head is given meanwhile; where it has several, they stand
    side by side.
    """
    layers, given = heads(model), dict[nn.Module, Tensor]()

    def listen(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0].flatten(1)
        given[layer] = features.to(torch.promote_types(features.dtype, torch.float32))

    hooks = [layer.register_forward_pre_hook(listen, prepend=True) for layer in layers]  # before DeepSpeed's
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([given[layer] for layer in layers], 1), logits


class Outputs(NamedTuple):
    """What a model says of N images: penultimate `features` (N, D) and `logits` (N, K), and the true `labels` (N,)."""

    features: Tensor
    logits: Tensor
    labels: Tensor

    def subset(self, chosen: Tensor) -> "Outputs":
        """Of those images that are chosen, by position or by a mask."""
        return Outputs(*(tensor[chosen] for tensor in self))


def batches(data: Data, *splits: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images (B, C, H, W), channels last, and labels (B,) of this worker's share of one split after the
    other, in order, in batches of nearly equal size, which may reach from one split into the next. Where nothing falls
    to this worker there is one batch: no label, but an image, as not every model takes none. The images that count are
    as many as the labels.
    """
    shares = [(split, share) for split in splits if len(share := data.workers.shard(split.index))]
    if not shares:
        first = splits[0]
        yield next(first.images.read([(first.index[:1], None)])), first.labels[:0]
        return
    count = sum(len(share) for _, share in shares)
    number = -(-count // EXTRACT_BATCH)
    ends = [count * batch // number for batch in range(1, number + 1)]
    place, parts = 0, list[tuple[Tensor, Tensor]]()
    for split, share in shares:
        cuts = share.tensor_split([end - place for end in ends if 0 < end - place < len(share)])
        for images, index in zip(split.images.read((index, None) for index in cuts), cuts, strict=True):
            heartbeat.beat()
            parts.append((images, split.labels[index]))
            place += len(index)
            if place in ends:
                images, labels = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
                yield channels_last(images), labels
                parts = []


def channels_last(images: Tensor) -> Tensor:
    """The same images in the layout that suits convolutions and pooling, on CPUs by about 1.5."""
    _, channels, height, width = images.shape
    images = images.contiguous(memory_format=torch.channels_last)
    # What has one channel is so in any case; its strides have to say it, too.
    return images.as_strided(images.shape, (channels * height * width, 1, channels * width, channels))


def outputs(model: nn.Module, data: Data, *splits: Split) -> Iterator[Outputs]:
    """Outputs for this worker's share of one split after the other, batch by batch, in float32. The model reads in eval
    mode, and stays as it is.

    All workers have to read to the end, where they agree on whether to go on.

    Raises:
        Diverged: a feature or logit is not finite, of whichever worker's share. All workers raise it.
    """
    diverged = torch.zeros((), device=data.device)
    with eval_mode(model):
        for images, labels in batches(data, *splits):
            with torch.no_grad():
                features, logits = (said[: len(labels)] for said in features_and_logits(model, images))
            if not (features.isfinite().all() and logits.isfinite().all()):
                diverged += 1
                break  # not raised here: the others would wait for this one
            yield Outputs(features, logits, labels)
    data.workers.sum(diverged)
    if diverged:
        raise Diverged("the features or logits are not finite")


def extract(model: nn.Module, data: Data, *splits: Split) -> list[Outputs]:
    """Outputs for this worker's share of each split: features (n, D) and logits (n, K) in float32, labels (n,), where n
    may be 0. Splits that are read together are read faster, as few images at a time take longer. The model reads in
    eval mode, and stays as it is.

    Memory, beside what is returned: one batch.

    Raises:
        Diverged: a feature or logit is not finite, of whichever worker's share. All workers raise it.
    """
    sizes = [len(data.workers.shard(split.index)) for split in splits]
    kept = [Collected(sum(sizes)) for _ in Outputs._fields]
    for said in outputs(model, data, *splits):
        for one, some in zip(kept, said, strict=True):
            one.add(some)
    return [Outputs(*parts) for parts in zip(*(one.all.split(sizes) for one in kept), strict=True)]


class Collected:
    """Rows that come batch by batch, in one tensor that is allocated once.

    Attributes:
        all: the tensor (count, ...); what has not come yet is undefined. There is none before the first batch.
    """

    all: Tensor

    def __init__(self, count: int) -> None:
        self._count, self._filled = count, 0

    def add(self, some: Tensor) -> None:
        """Put in the next rows (B, ...)."""
        if not hasattr(self, "all"):
            self.all = some.new_empty((self._count, *some.shape[1:]))
        end = self._filled + len(some)
        self.all[self._filled : end], self._filled = some, end
