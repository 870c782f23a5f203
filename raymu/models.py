"""Classifiers, by timm name. Features and head are found through timm's own interface."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from raymu.data import DATASETS, Data, Split
from raymu.errors import Diverged, InputError
from raymu.scenario import Scenario
from raymu.values import unknown

EXTRACT_BATCH = 640


def check_architecture(scenario: Scenario) -> None:
    """Look whether timm has the architecture, and the pretrained weights of it.

    Raises:
        InputError: it has not; the message names the nearest.
    """
    import timm

    if not timm.is_model(scenario.architecture):
        similar = timm.list_models(f"*{scenario.architecture.split('_')[0]}*") or ["resnet18"]
        raise InputError(unknown("architecture", scenario.architecture, similar))
    known = timm.list_pretrained(f"{scenario.architecture}.*")
    if scenario.pretrained and scenario.pretrained not in known:
        raise InputError(unknown("pretrained weights", scenario.pretrained, known))


def timm_arguments(scenario: Scenario) -> dict[str, Any]:
    """What `timm.create_model` takes for the scenario, beside the architecture's name."""
    import timm

    dataset = DATASETS[scenario.dataset]
    arguments = {"num_classes": dataset.num_classes, "in_chans": dataset.channels, **dict(scenario.model_args)}
    if getattr(timm.get_pretrained_cfg(scenario.architecture), "fixed_input_size", False):
        arguments.setdefault("img_size", dataset.format(scenario).shape[-1])
    return arguments


def build(scenario: Scenario, seed: int) -> nn.Module:
    """The scenario's architecture with random weights that depend on `seed` alone.

    Raises:
        RuntimeError: timm does not know the architecture, or not its arguments.
    """
    import timm  # takes a second, which only who builds a model has to spend

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = timm.create_model(scenario.architecture, **timm_arguments(scenario))
        if scenario.cifar_stem:
            channels = DATASETS[scenario.dataset].channels
            model.conv1 = nn.Conv2d(channels, model.conv1.out_channels, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
            model.maxpool = nn.Identity()
    network: nn.Module = model
    return network


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


def features_and_logits(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Penultimate features (B, D) and logits (B, K) of normalised images (B, C, H, W)."""
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    return features, model.get_classifier()(features)


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
    shares = [(split, share) for split in splits if len(share := data.workers.share(split.index))]
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
            parts.append((images, split.labels[index]))
            place += len(index)
            if place in ends:
                images, labels = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
                yield _channels_last(images), labels
                parts = []


def _channels_last(images: Tensor) -> Tensor:
    """The same images in the layout that suits convolutions and pooling, on CPUs by about 1.5."""
    _, channels, height, width = images.shape
    images = images.contiguous(memory_format=torch.channels_last)
    # What has one channel is so in any case; its strides have to say it, too.
    return images.as_strided(images.shape, (channels * height * width, 1, channels * width, channels))


def outputs(model: nn.Module, data: Data, *splits: Split) -> Iterator[Outputs]:
    """Those of this worker's share of one split after the other, batch by batch, in float32. The model reads in eval
    mode, and stays as it is.

    All workers have to read to the end, where they agree on whether to go on.

    Raises:
        Diverged: a feature or logit is not finite, of whichever worker's share. All workers raise it.
    """
    diverged = torch.zeros((), device=data.device)
    with eval_mode(model):
        for images, labels in batches(data, *splits):
            with torch.no_grad():
                features, logits = (said[: len(labels)].float() for said in features_and_logits(model, images))
            if not (features.isfinite().all() and logits.isfinite().all()):
                diverged += 1
                break  # not raised here: the others would wait for this one
            yield Outputs(features, logits, labels)
    data.workers.sum(diverged)
    if diverged:
        raise Diverged("the features or logits are not finite")


def extract(model: nn.Module, data: Data, *splits: Split) -> list[Outputs]:
    """Those of this worker's share of each split: features (n, D) and logits (n, K) in float32, labels (n,); n may be
    0. Splits that are read together are read faster, as few images at a time take longer. The model reads in eval mode,
    and stays as it is.

    Raises:
        Diverged: a feature or logit is not finite, of whichever worker's share. All workers raise it.
    """
    read = [torch.cat(parts) for parts in zip(*outputs(model, data, *splits), strict=True)]
    sizes = [len(data.workers.share(split.index)) for split in splits]
    return [Outputs(*parts) for parts in zip(*(tensor.split(sizes) for tensor in read), strict=True)]


class CMF(nn.Module):
    """A classifier whose head are the class means of its own features (Gao et al., AISTATS 2026, Section 5).

    z = norm(norm(f) - mu), W_c = norm(m_c - mu), logits = temperature * z W^T, where f are the backbone's penultimate
    features, m_c is the mean of norm(f) over class c and mu that over all. The head has nothing to train: it follows
    the features when `update` is called, so that a method has to change them.

    It has timm's interface, so that whoever probes it looks at z. The backbone's own head is not used.

    Args:
        backbone: a timm classifier; the weights of its head are frozen.
        temperature: what the cosines are multiplied by.
    """

    def __init__(self, backbone: Any, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.backbone: Any = backbone.requires_grad_(True)
        backbone.get_classifier().requires_grad_(False)
        self.head = nn.Linear(backbone.head_hidden_size, num_classes, bias=False)
        weight = torch.zeros_like(self.head.weight)
        del self.head.weight
        self.head.register_buffer("weight", weight)  # not trained: what shards parameters leaves it alone
        self.temperature = temperature
        self.mu: Tensor
        self.register_buffer("mu", torch.zeros(backbone.head_hidden_size))

    def class_sums(self, data: Data) -> tuple[Tensor, Tensor]:
        """Of this worker's share of the training set, the sum of every class's unit backbone features (K, D) and the
        number of its images (K,), float64.
        """
        sums = torch.zeros_like(self.head.weight, dtype=torch.float64)
        counts = torch.zeros_like(sums[:, 0])
        for features, _, labels in outputs(self.backbone, data, data.train):
            sums.index_add_(0, labels, normalize(features.double()))
            counts += labels.bincount(minlength=len(counts))
        return sums, counts

    @torch.no_grad()
    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Make the head from the class sums of the whole training set. A class without images gets the logit 0."""
        mean, counts = sums.sum(0) / counts.sum(), counts.unsqueeze(1)
        centred = torch.where(counts > 0, sums / counts - mean, 0.0)
        self.mu.copy_(mean)
        self.head.weight.copy_(self.temperature * normalize(centred))

    def forward_features(self, images: Tensor) -> Tensor:
        """The backbone's."""
        features: Tensor = self.backbone.forward_features(images)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """The centred unit features z (B, D), or with the head its logits (B, K)."""
        unit = normalize(self.backbone.forward_head(features, pre_logits=True))
        z = normalize(unit - self.mu)
        return z if pre_logits else self.head(z)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """The head, without its centring: it takes z."""
        return self.head
