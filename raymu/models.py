"""Classifiers, by timm name. Features and head are found through timm's own interface."""

from typing import Any

import torch
from torch import Tensor, nn

from raymu.data import DATASETS
from raymu.scenario import Scenario


def build(scenario: Scenario, seed: int) -> nn.Module:
    """The scenario's architecture with random weights that depend on `seed` alone.

    Raises:
        RuntimeError: timm does not know the architecture.
    """
    import timm  # takes a second, which only who builds a model has to spend

    dataset = DATASETS[scenario.dataset]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = timm.create_model(
            scenario.architecture, num_classes=dataset.num_classes, in_chans=dataset.channels
        )
        if scenario.cifar_stem:
            model.conv1 = nn.Conv2d(dataset.channels, model.conv1.out_channels, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
            model.maxpool = nn.Identity()
    network: nn.Module = model
    return network


def features_and_logits(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Penultimate features (B, D) and logits (B, K) of normalised images (B, C, H, W)."""
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    return features, model.get_classifier()(features)
