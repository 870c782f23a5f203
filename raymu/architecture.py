"""Architectures: networks by name, which a scenario builds with its own number of classes."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from raymu import plugins
from raymu.errors import InputError
from raymu.modules import is_own
from raymu.source import Travels
from raymu.values import unknown


class Architecture(Travels, ABC):
    """A network that classifies images.

    Its classifier is what the network's `get_classifier()` returns, as in timm, or else its last linear layer; the
    logits have to be features times the classifier's matrix, plus a bias.

    Attributes:
        name: what stands in rows.
        transform: how photographs become its input: `input_size` (C, H, W), `mean` and `std` a channel, and
            `interpolation`, `crop_pct` and `crop_mode` in timm's words. Datasets of arrays have their own.
    """

    name: str

    @abstractmethod
    def build(self, num_classes: int, shape: tuple[int, int, int], **arguments: Any) -> nn.Module:
        """Network with random weights, drawn by torch's default generator.

        Args:
            shape: of its images (C, H, W).
            arguments: the scenario's `model_args`.
        """

    def transform(self, pretrained: str, **arguments: Any) -> dict[str, Any]:
        """How photographs become its input, see above; by default as most networks for ImageNet have it.

        Args:
            pretrained: the scenario's.
            arguments: the scenario's `model_args`.
        """
        return {
            "input_size": (3, 224, 224),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
        }

    def check(self, pretrained: str) -> None:
        """Look whether there is such a network, and such pretrained weights of it.

        Raises:
            InputError: there is not.
        """
        if pretrained:
            raise InputError(f"{self.name} is no architecture of timm, which alone has pretrained weights")


@dataclass(frozen=True)
class Made(Architecture):
    """Architecture that a function or a class makes, which is called with `num_classes` and `in_chans`, if it has
    parameters of these names, and with the scenario's `model_args`.
    """

    name: str
    make: Callable[..., nn.Module]

    def build(self, num_classes: int, shape: tuple[int, int, int], **arguments: Any) -> nn.Module:
        """See Architecture."""
        return self.make(**self.arguments(num_classes, shape, **arguments))

    def arguments(self, num_classes: int, shape: tuple[int, int, int], **arguments: Any) -> dict[str, Any]:
        """Arguments that it is called with."""
        takes = inspect.signature(self.make).parameters
        known = {"num_classes": num_classes, "in_chans": shape[0]}
        return {name: value for name, value in known.items() if name in takes} | arguments


@dataclass(frozen=True)
class Timm(Architecture):
    """Architecture of timm, or one that a script registered with it.

    Attributes:
        make: what a script registered, so that it travels to processes which do not run that script.
    """

    name: str
    make: Callable[..., Any] | None = None

    @classmethod
    def named(cls, name: str) -> "Timm":
        """Architecture of that name, whether there is one or not (see `check`)."""
        import timm

        make: Any = timm.model_entrypoint(name) if timm.is_model(name) else None
        return cls(name, make if make is not None and is_own(make.__module__) else None)

    def build(self, num_classes: int, shape: tuple[int, int, int], **arguments: Any) -> nn.Module:
        """See Architecture."""
        import timm

        given = self.arguments(num_classes, shape, **arguments)
        network: nn.Module = timm.create_model(self.name, **given) if self.make is None else self.make(**given)
        return network

    def arguments(self, num_classes: int, shape: tuple[int, int, int], **arguments: Any) -> dict[str, Any]:
        """Arguments of `timm.create_model`, beside the name."""
        import timm

        given = {"num_classes": num_classes, "in_chans": shape[0], **arguments}
        if getattr(timm.get_pretrained_cfg(self.name), "fixed_input_size", False):
            given.setdefault("img_size", shape[-1])
        return given

    def transform(self, pretrained: str, **arguments: Any) -> dict[str, Any]:
        """See Architecture. What timm says of the pretrained weights, or else of the architecture; an `img_size` among
        the arguments wins.
        """
        import timm
        from timm.data.config import resolve_data_config

        known = timm.get_pretrained_cfg(pretrained or self.name)
        config = known.to_dict() if known else {"input_size": (3, 224, 224)}
        resolved: dict[str, Any] = resolve_data_config(arguments, pretrained_cfg=config)
        return resolved

    def check(self, pretrained: str) -> None:
        """See Architecture; the message names the nearest."""
        import timm

        if self.make is None and not timm.is_model(self.name):
            similar = timm.list_models(f"*{self.name.split('_')[0]}*") or ["resnet18"]
            raise InputError(unknown("architecture", self.name, similar))
        known = timm.list_pretrained(f"{self.name}.*")
        if pretrained and pretrained not in known:
            raise InputError(unknown("pretrained weights", pretrained, known))


def named(name: str) -> Architecture:
    """Architecture of that name: a package's or the user's, or else timm's, whether there is one or not."""
    if name in plugins.all_of(Architecture, {}):
        found: Architecture = plugins.find(Architecture, name, {})
        return found
    return Timm.named(name)
