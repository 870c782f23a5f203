"""Classifiers, by timm name, as a scenario's recipe has them compute."""

import contextlib
import functools
import hashlib
import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from raymu import modules, source
from raymu.data.published import DATASETS
from raymu.errors import InputError
from raymu.scenario import Scenario, content_hash
from raymu.values import unknown


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
    if not modules.is_own(make.__module__):
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
        with refusal(scenario, f"cannot be built with {given}"):
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
        raise InputError(f"{scenario.architecture} {what}: {reason}") from error
