"""CKA: how alike two models' features are."""

import torch
from torch import Tensor

from raymu.errors import Undefined
from raymu.evaluation.moments import ROUNDING
from raymu.workers import ALONE, Workers


def linear_cka(features: Tensor, others: Tensor, workers: Workers = ALONE) -> float:
    """Linear centred kernel alignment, |Y^T X|^2 / (|X^T X| |Y^T Y|), in [0, 1] (Kornblith et al., ICML 2019, Eq. 3).

    1 where one is the other turned, mirrored, shifted or scaled as a whole. Memory: float64
    copies of the features, D x D, D x E and E x E, no N x N.

    Args:
        features: X, this worker's rows of it (n, D).
        others: another model's features Y of the same images (n, E).

    Raises:
        Undefined: there is no sample, a feature is not finite, or all samples have the same features.
    """
    both = [features.double(), others.double()]
    count = torch.full((), len(features), dtype=torch.float64, device=features.device)
    means, sizes = [tensor.sum(0) for tensor in both], torch.stack([tensor.square().sum() for tensor in both])
    workers.sum(count, sizes, *means)
    if not count:
        raise Undefined("there is no sample")
    if not sizes.isfinite().all():
        raise Undefined("the features are not finite")
    x, y = (tensor - mean / count for tensor, mean in zip(both, means, strict=True))
    of_both, of_x, of_y = y.mT @ x, x.mT @ x, y.mT @ y
    workers.sum(of_both, of_x, of_y)
    if (torch.stack([of_x.trace(), of_y.trace()]) <= ROUNDING * sizes).any():
        raise Undefined("all samples have the same features")
    return float(of_both.square().sum() / (of_x.norm() * of_y.norm()))
