"""Classifiers, by timm name: what they answer, the features that their head reads, and the head as a matrix.

Logits are what the model itself returns. Its features are what its last linear layers are given on the way there, so
that they need no rule for an architecture; whether logits = features x matrix + bias, `check` finds out on two images.
"""

import contextlib
import dataclasses
import functools
import hashlib
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from raymu import cache, devices, source
from raymu.data import DATASETS, Data, Split
from raymu.errors import Diverged, InputError
from raymu.method import Method
from raymu.scenario import Scenario, content_hash
from raymu.values import unknown

EXTRACT_BATCH = 640
ROUNDING = 1e-4  # of the largest logit; float32 leaves some 1e-6
NOISE = 0.02  # on the weights that `check` tries: layers that start at 0 would hide what they add


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


def code_of(scenario: Scenario) -> str:
    """A digest of the architecture's code, and of weights that it reads from a file, where a user registered it with
    timm; of those that are installed, timm's version.
    """
    import timm

    make = timm.model_entrypoint(scenario.architecture)
    if not source.is_own(make.__module__):
        return f"timm {timm.__version__}"
    return content_hash([source.digest(make), _constant_weights(scenario, source.look())])


@functools.lru_cache
def _constant_weights(scenario: Scenario, look: tuple[str, int]) -> str:
    """A digest of the weights that no seed changes, as they are at one look."""
    one, other = (build(scenario, seed).state_dict() for seed in (0, 1))
    found = hashlib.sha256()
    for name, weight in one.items():
        if torch.equal(weight, other[name]):
            found.update(name.encode() + weight.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def timm_arguments(scenario: Scenario) -> dict[str, Any]:
    """What `timm.create_model` takes for the scenario, beside the architecture's name."""
    import timm

    dataset = DATASETS[scenario.dataset]
    arguments = {"num_classes": dataset.num_classes, "in_chans": dataset.channels, **dict(scenario.model_args)}
    if getattr(timm.get_pretrained_cfg(scenario.architecture), "fixed_input_size", False):
        arguments.setdefault("img_size", dataset.format(scenario).shape[-1])
    return arguments


def build(scenario: Scenario, seed: int) -> nn.Module:
    """The scenario's architecture with random weights that depend on `seed` alone. It computes in the recipe's
    precision.

    Raises:
        InputError: timm cannot build it with these arguments, or it has no stem that `cifar_stem` could replace.
    """
    import timm  # takes a second, which only who builds a model has to spend

    arguments = timm_arguments(scenario)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        with _refusal(scenario, f"cannot be built with {given}"):
            model: Any = timm.create_model(scenario.architecture, **arguments)
        if scenario.cifar_stem:
            stem, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
            if not (isinstance(stem, nn.Conv2d) and isinstance(pool, nn.MaxPool2d)):
                raise InputError(
                    f"cifar_stem: {scenario.architecture} has no stem of one convolution and a max-pooling, as ResNets"
                    " have"
                )
            model.conv1 = nn.Conv2d(DATASETS[scenario.dataset].channels, stem.out_channels, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
            model.maxpool = nn.Identity()
    if scenario.recipe.precision == "bf16":
        model.__class__ = type(type(model).__name__, (_Bfloat16, type(model)), {})  # survives a copy, renames no weight
    network: nn.Module = model
    return network


class _Bfloat16:
    """A network whose matrix products and convolutions are in bfloat16 (torch.autocast), and whose answers are float32:
    what is made of them outside, losses and all that is measured, is exact.
    """

    in_bfloat16 = True

    def forward(self, images: Tensor) -> Tensor:
        with self._autocast(images):
            logits: Tensor = super().forward(images)  # type: ignore[misc]
        return logits.float()

    def forward_intermediates(self, images: Tensor, **arguments: Any) -> list[Tensor]:
        with self._autocast(images):
            blocks: list[Tensor] = super().forward_intermediates(images, **arguments)  # type: ignore[misc]
        return [block.float() for block in blocks]

    def _autocast(self, images: Tensor) -> torch.autocast:
        return torch.autocast("cuda" if images.is_cuda else "cpu", torch.bfloat16, self.in_bfloat16)


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Have the model compute in float32, whatever its recipe says."""
    rounding = [network for network in model.modules() if isinstance(network, _Bfloat16)]
    for network in rounding:
        network.in_bfloat16 = False
    try:
        yield
    finally:
        for network in rounding:
            network.in_bfloat16 = True


def check(scenario: Scenario, method: type[Method] | None = None) -> None:
    """Try the scenario's architecture on two random images, on the CPU, as training, evaluation and a method will use
    it.

    A process tries each architecture once.

    Raises:
        InputError: it cannot be built, or does not read such images; its logits are not its features times one matrix;
            it cannot be trained, in train mode or in eval mode; a copy with the weights as they are read from a
            file answers otherwise; the method cannot work on it; or torch's defaults were changed.
    """
    devices.check_defaults()
    dataset = DATASETS[scenario.dataset]
    shape = tuple(dataset.format(scenario).shape)
    exact = dataclasses.replace(scenario.recipe, precision="fp32")
    alike = dataclasses.replace(scenario, name="", forget=(), forget_share=0.0, seed=0, model_seed=0, recipe=exact)
    _try_out(alike, shape, dataset.num_classes)
    if method is not None:
        with torch.no_grad(), _refusal(scenario, f"is not what {method.name()} works on"):
            method.check_model(functools.partial(sample, alike, shape))


@functools.cache
def _try_out(scenario: Scenario, shape: tuple[int, ...], num_classes: int) -> None:
    model, images = sample(scenario, shape)
    read, labels = _channels_last(images), torch.arange(len(images)) % num_classes  # as `outputs` reads them

    def logits_of(some: Tensor) -> Tensor:
        said: Any = model(some)
        if not isinstance(said, Tensor) or said.shape != (len(some), num_classes):
            raise ValueError(f"it does not return {num_classes} logits an image")
        return said

    with torch.random.fork_rng():
        with torch.no_grad(), _refusal(scenario, f"does not read images of {' x '.join(map(str, shape))}"):
            logits = logits_of(read)
        with torch.no_grad(), _refusal(scenario, "has no head of one matrix"):
            _try_head(model, read[:1])
        with torch.no_grad(), _refusal(scenario, "cannot be saved and loaded"):
            _try_file(model, build(scenario, seed=1).eval(), read[:1])
        with _refusal(scenario, "cannot be measured"):
            alone = logits_of(images[:1])
            _compare(alone, logits[:1], "an image's logits depend on the images beside it")
            cross_entropy(alone, labels[:1]).backward()  # some methods, and relearning, do so in eval mode
        # Batches are of nearly equal size: the smallest has one image only where the largest has two.
        few = images[:1] if scenario.recipe.batch_size <= 2 else images
        with _refusal(scenario, f"cannot be trained on batches of {len(few)}"):
            model.train()
            cross_entropy(logits_of(few), labels[: len(few)]).backward()


def sample(scenario: Scenario, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """The scenario's architecture with random weights, none of them 0, in eval mode, and two random images (2, C, H, W)
    for it.
    """
    model, random = build(scenario, seed=0).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=random), alpha=NOISE)
    return model, torch.randn((2, *shape), generator=random)


@contextlib.contextmanager
def _refusal(scenario: Scenario, what: str) -> Iterator[None]:
    """Say in one line what the architecture cannot do, and what was raised."""
    try:
        yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever an architecture may raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = textwrap.shorten(f"{kind}{error}", 200)
        raise InputError(f"{scenario.architecture} {what}: {reason}") from error


def _compare(one: Tensor, other: Tensor, difference: str) -> None:
    """Raise ValueError if logits differ by more than rounding, or are not finite."""
    by, scale = (one - other).abs().max().item(), other.abs().max().item()
    if not by <= ROUNDING * scale < float("inf"):
        raise ValueError(f"{difference} (by {by:.2g}, where the largest is {scale:.2g})")


def _try_head(model: Any, images: Tensor) -> None:
    layers = heads(model)
    if not layers:
        raise ValueError("timm names no linear layer as its classifier")
    features, logits = features_and_logits(model, images)
    matrix = head_matrix(model)
    if matrix.shape != (logits.shape[1], features.shape[1]):
        raise ValueError("its classifier reads more than one vector of features an image")
    bias = sum(layer.bias for layer in layers if layer.bias is not None) / len(layers)
    _compare(features @ matrix.T + bias, logits, "its logits are not what its classifier makes of its features")


def _try_file(model: nn.Module, other: nn.Module, images: Tensor) -> None:
    for weight in other.parameters():
        weight.add_(torch.randn_like(weight))
    other(images)  # some keep what they compute from their weights
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        cache.save_tensors(path, model.state_dict())
        other.load_state_dict(cache.load_tensors(path, torch.device("cpu")))
    _compare(other(images), model(images), "with new weights it still answers by what it computed from the old")


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
    """The linear layers (1x1 convolutions among them) of a timm model's classifier that end in one output a class. Most
    have one. The logits are the mean of what they make, as in a model that was distilled with a second one.
    """
    classifier = model.get_classifier()
    parts = classifier if isinstance(classifier, tuple) else (classifier,)
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return [layer for layer in layers if _outputs(layer) == _outputs(layers[-1])]  # what precedes makes features


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
                features, logits = (said[: len(labels)] for said in features_and_logits(model, images))
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

    Memory, beside what is returned: one batch.

    Raises:
        Diverged: a feature or logit is not finite, of whichever worker's share. All workers raise it.
    """
    sizes = [len(data.workers.share(split.index)) for split in splits]
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


class CMF(nn.Module):
    """A classifier whose head are the class means of its own features (Gao et al., AISTATS 2026, Section 5).

    z = norm(norm(f) - mu), W_c = norm(m_c - mu), logits = temperature * z W^T, where f are the backbone's penultimate
    features, m_c is the mean of norm(f) over class c and mu that over all. The head has nothing to train: it follows
    the features when `update` is called, so that a method has to change them.

    Differs from the source: Gao et al. take the class means of augmented images; here they never are.

    Whoever probes it looks at z. The backbone's own head is not used.

    Args:
        backbone: a timm classifier; the weights of its head are frozen.
        temperature: what the cosines are multiplied by.
    """

    def __init__(self, backbone: Any, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.backbone: Any = backbone.requires_grad_(True)
        for layer in heads(backbone):
            layer.requires_grad_(False)
        size = head_matrix(backbone).shape[1]
        self.head = nn.Linear(size, num_classes, bias=False)
        weight = torch.zeros_like(self.head.weight)
        del self.head.weight
        self.head.register_buffer("weight", weight)  # not trained: what shards parameters leaves it alone
        self.temperature = temperature
        self.mu: Tensor
        self.register_buffer("mu", torch.zeros(size))

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

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images."""
        features, _ = features_and_logits(self.backbone, images)
        logits: Tensor = self.head(normalize(normalize(features) - self.mu))
        return logits

    def get_classifier(self) -> nn.Module:
        """The head, without its centring: it takes z."""
        return self.head
