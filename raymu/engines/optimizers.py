"""Optimizers by name, and checkpointed gradients."""

from typing import Any

import torch
from torch import nn

from raymu.models.cmf import CMF
from raymu.run import Optimizer

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
DECOUPLED_DECAY = 0.05


def make_optimizer(weights: list[nn.Parameter], kind: Optimizer, lr: float) -> torch.optim.Optimizer:
    """Optimizer of that kind, see `Run.epochs`."""
    match kind:
        case "adam":
            return torch.optim.Adam(weights, lr=lr)
        case "adamw":
            return torch.optim.AdamW(weights, lr=lr, weight_decay=DECOUPLED_DECAY)
        case "sgd" | "momentum":
            nesterov = kind == "sgd"
            return torch.optim.SGD(weights, lr=lr, momentum=MOMENTUM, nesterov=nesterov, weight_decay=WEIGHT_DECAY)
    raise ValueError(f"there is no optimizer {kind!r}")


def checkpoint_gradients(model: nn.Module, on: bool) -> None:
    """Let a timm model compute activations anew in the backward pass instead of keeping them, or not."""
    network: Any = model.backbone if isinstance(model, CMF) else model
    if on or getattr(network, "grad_checkpointing", False):
        network.set_grad_checkpointing(on)
