"""Relearn time: how soon a few forgotten images bring back what a model has forgotten."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

LR = 1e-3
MOMENTUM = 0.9
BATCH_SIZE = 64
MAX_EPOCHS = 20


def relearn_epochs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    accuracies: Callable[[nn.Module], Sequence[float]],
    now: Sequence[float],
    goals: Sequence[float],
) -> list[int]:
    """Epochs of fine-tuning until accuracies are back: 0 where they never left, MAX_EPOCHS where they are not back by
    then (relearn time, Golatkar et al., CVPR 2020; Chundawat et al., IEEE TIFS 2023).

    All weights of a copy are trained by SGD with LR, MOMENTUM and batches of BATCH_SIZE, in eval mode: a few images of
    one class would wreck the BatchNorm statistics. Deterministic.

    Args:
        model: stays as it is.
        images: a few forgotten training images (M, C, H, W), normalised.
        labels: their true labels (M,).
        accuracies: of a model, on forgotten images of each of some splits.
        now: what they are for this model.
        goals: what counts as back, one a split.

    Returns:
        Epochs, one a split.
    """
    epochs = [0 if accuracy >= goal else MAX_EPOCHS for accuracy, goal in zip(now, goals, strict=True)]
    if not any(epochs):
        return epochs
    model = copy.deepcopy(model).eval().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    for epoch in range(1, MAX_EPOCHS):
        for some, their in zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
            optimizer.zero_grad()
            cross_entropy(model(some), their).backward()
            optimizer.step()
        reached = accuracies(model)
        for split, goal in enumerate(goals):
            if reached[split] >= goal:
                epochs[split] = min(epochs[split], epoch)
        if max(epochs) <= epoch:
            break
    return epochs
