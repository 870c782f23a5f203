"""What engines compute with gradients, for steps and for methods."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from raymu.run import Batch, Tensors


def gradients_of(loss: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradient of a scalar in every weight, in their order: 0 in those that it does not depend on, as some models have
    them.
    """
    found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return tuple(one.detach() for one in found)  # torch 2.8 makes the zeros as leaves


def clipping(norm: float, length: Tensor) -> Tensor:
    """Factor for a gradient of that length, as `torch.nn.utils.clip_grad_norm_` has it."""
    return (norm / (length + 1e-6)).clamp(max=1)


def gauss_newton_sums(
    model: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Batch], vector: Tensors
) -> tuple[Tensor, Tensors]:
    """Number of images (scalar), and the Gauss-Newton matrix of their summed CE times a vector; see
    `Run.curvature_product`.
    """
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    detached = {name: weight.detach() for name, weight in weights.items()}
    count = torch.tensor(0, device=next(iter(detached.values())).device)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
        for batch in batches:

            def logits_of(values: Tensors, images: Tensor = batch.images) -> Tensor:
                logits: Tensor = torch.func.functional_call(model, values, (images,))
                return logits

            logits, pushed = torch.func.jvp(logits_of, (detached,), (vector,))  # type: ignore[misc]
            chances = logits.softmax(1)
            curved = chances * (pushed - (chances * pushed).sum(1, keepdim=True))
            (pulled,) = torch.func.vjp(logits_of, detached)[1](curved)
            for name, tensor in total.items():
                tensor += pulled[name]
            count += len(batch.labels)
    return count, total


def minimiser(
    loss: Callable[[Tensor], Tensor], start: Tensor, limits: tuple[Tensor, Tensor], *, lr: float, steps: int
) -> Tensor:
    """Images (N, C, H, W) that minimise a loss (images -> scalar), by Adam, from some, kept within limits."""
    low, high = limits
    images = start.clamp(low, high).requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=lr)
    for _ in range(steps):
        (images.grad,) = torch.autograd.grad(loss(images), [images])
        optimizer.step()
        with torch.no_grad():
            images.clamp_(low, high)
    return images.detach()
