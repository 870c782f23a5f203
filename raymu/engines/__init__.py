"""How a step is carried out."""

import importlib.util
from typing import Any

import torch
from torch import nn

from raymu.engines.optimizers import checkpoint_gradients
from raymu.engines.options import DEFAULTS, Options
from raymu.engines.pytorch import Engine, code_of
from raymu.errors import InputError
from raymu.models import architectures
from raymu.scenario import Scenario
from raymu.splits import Data

__all__ = ["DEFAULTS", "Engine", "Options", "check", "code_of", "make"]


def make(model: nn.Module, data: Data, scenario: Scenario, *, options: Options = DEFAULTS, **rest: Any) -> Engine:
    """The engine that the options ask for. Takes what Engine takes."""
    if options.stage is None:
        return Engine(model, data, scenario, options=options, **rest)
    from raymu.engines.deepspeed import DeepSpeed

    return DeepSpeed(model, data, scenario, options=options, **rest)


def check(scenario: Scenario, options: Options) -> None:
    """Look whether the options can carry out trials of the scenario.

    Raises:
        InputError: DeepSpeed is not installed, or refuses its configuration; several workers are to train a model with
            BatchNorm, or gradients of one are to be checkpointed; or timm cannot checkpoint the architecture's.
    """
    if options.stage is not None and importlib.util.find_spec("deepspeed") is None:
        raise InputError("several workers and ZeRO need DeepSpeed: pip install 'raymu[deepspeed]'")
    if options.deepspeed is not None:
        from raymu.engines import deepspeed

        deepspeed.check(options)
    if options.workers == 1 and not options.checkpointing:
        return
    with torch.device("meta"):
        model = architectures.build(scenario, seed=0)
    if options.checkpointing:
        try:
            checkpoint_gradients(model, True)
        except Exception as error:  # most assert it
            raise InputError(f"gradient checkpointing: timm has none for {scenario.architecture_name}") from error
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        return
    if options.workers > 1:
        raise InputError(
            "several workers cannot train a model with BatchNorm, whose statistics would come from a worker's share:"
            " run more trials at once instead"
        )
    raise InputError(
        "gradient checkpointing reads every batch twice, and the statistics of BatchNorm would follow it twice: leave"
        " it out"
    )
