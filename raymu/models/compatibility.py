"""A trial of an architecture on two images, before anything is trained."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raymu import cache, devices
from raymu.method import Method
from raymu.models.architectures import build, refusal
from raymu.models.inference import channels_last, features_and_logits, head_matrix, heads
from raymu.scenario import Scenario

ROUNDING = 1e-4  # of the largest logit; float32 leaves some 1e-6
NOISE = 0.02  # on the weights that `check` tries: layers that start at 0 would hide what they add


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
    shape = tuple(scenario.format.shape)
    exact = dataclasses.replace(scenario.recipe, precision="fp32")
    alike = dataclasses.replace(scenario, name="", seed=0, model_seed=0, recipe=exact)
    alike = dataclasses.replace(alike, forget=(), forget_share=0.0, forget_samples="")
    _try_out(alike, shape, scenario.num_classes)
    if method is not None:
        with torch.no_grad(), refusal(scenario, f"is not what {method.name()} works on"):
            method.check_model(functools.partial(sample, alike, shape))


@functools.cache
def _try_out(scenario: Scenario, shape: tuple[int, ...], num_classes: int) -> None:
    model, images = sample(scenario, shape)
    read, labels = channels_last(images), torch.arange(len(images)) % num_classes  # as `outputs` reads them

    def logits_of(some: Tensor) -> Tensor:
        said: Any = model(some)
        if not isinstance(said, Tensor) or said.shape != (len(some), num_classes):
            raise ValueError(f"it does not return {num_classes} logits an image")
        return said

    with torch.random.fork_rng():
        with torch.no_grad(), refusal(scenario, f"does not read images of {' x '.join(map(str, shape))}"):
            logits = logits_of(read)
        with torch.no_grad(), refusal(scenario, "has no head of one matrix"):
            _try_head(model, read[:1])
        with torch.no_grad(), refusal(scenario, "cannot be saved and loaded"):
            _try_file(model, build(scenario, seed=1).eval(), read[:1])
        with refusal(scenario, "cannot be measured"):
            alone = logits_of(images[:1])
            _compare(alone, logits[:1], "an image's logits depend on the images beside it")
            cross_entropy(alone, labels[:1]).backward()  # some methods, and relearning, do so in eval mode
        # Batches are of nearly equal size: the smallest has one image only where the largest has two.
        few = images[:1] if scenario.recipe.batch_size <= 2 else images
        with refusal(scenario, f"cannot be trained on batches of {len(few)}"):
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
