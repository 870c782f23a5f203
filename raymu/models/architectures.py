"""Classifiers, as a scenario has them built and its recipe has them compute."""

import contextlib
import functools
import hashlib
import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from raymu import source
from raymu.architecture import Timm
from raymu.errors import InputError
from raymu.scenario import Scenario
from raymu.values import content_hash


def code_of(scenario: Scenario) -> str:
    """A digest of the architecture's code, and of weights that it reads from a file, where it is the user's; of those
    that are installed, timm's version.
    """
    import timm

    network = scenario.network
    if isinstance(network, Timm) and network.make is None:
        return f"timm {timm.__version__}"
    return content_hash([network.code(), _constant_weights(scenario, source.reading())])


@functools.lru_cache
def _constant_weights(scenario: Scenario, reading: tuple[str, int]) -> str:
    """A digest of the weights that no seed changes, as they are at one reading."""
    one, other = (build(scenario, seed).state_dict() for seed in (0, 1))
    found = hashlib.sha256()
    for name, weight in one.items():
        if torch.equal(weight, other[name]):
            found.update(name.encode() + weight.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def build(scenario: Scenario, seed: int) -> nn.Module:
    """The scenario's architecture with random weights that depend on `seed` alone. It computes in the recipe's
    precision.

    Raises:
        InputError: it cannot be built with these arguments, or it has no stem that `cifar_stem` could replace.
    """
    network, dataset, arguments = scenario.network, scenario.source, dict(scenario.model_args)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = "".join(f", {name}={value!r}" for name, value in arguments.items())
        with refusal(scenario, f"cannot be built with num_classes={scenario.num_classes}{given}"):
            model: Any = network.build(scenario.num_classes, scenario.format.shape, **arguments)
            if not isinstance(model, nn.Module):
                raise TypeError(f"build returned {model!r}, no torch.nn.Module")
        if scenario.cifar_stem:
            stem, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
            if not (isinstance(stem, nn.Conv2d) and isinstance(pool, nn.MaxPool2d)):
                raise InputError(
                    f"cifar_stem: {network.name} has no stem of one convolution and a max-pooling, as ResNets have"
                )
            model.conv1 = nn.Conv2d(dataset.channels, stem.out_channels, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
            model.maxpool = nn.Identity()
    if scenario.recipe.precision == "bf16":
        model.__class__ = type(type(model).__name__, (_Bfloat16, type(model)), {})  # survives a copy, renames no weight
    built: nn.Module = model
    return built


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


@contextlib.contextmanager
def refusal(scenario: Scenario, what: str) -> Iterator[None]:
    """Say in one line what the architecture cannot do, and what was raised."""
    try:
        yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever an architecture may raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = textwrap.shorten(f"{kind}{error}", 200)
        raise InputError(f"{scenario.architecture_name} {what}: {reason}") from error
