"""CKA: how alike two models' features are."""

from torch import Tensor

from raymu.errors import Undefined
from raymu.evaluation.moments import ROUNDING


def linear_cka(features: Tensor, others: Tensor) -> float:
    """Linear centred kernel alignment, |Y^T X|^2 / (|X^T X| |Y^T Y|), in [0, 1] (Kornblith et al., ICML 2019, Eq. 3).

    1 where one is the other turned, mirrored, shifted or scaled as a whole. Memory: D x E, no N x N.

    Args:
        features: X (N, D).
        others: another model's features Y (N, E) of the same images.

    Raises:
        Undefined: there is no sample, a feature is not finite, or all samples have the same features.
    """
    if not len(features):
        raise Undefined("there is no sample")
    x, y = features.double(), others.double()
    if not (x.isfinite().all() and y.isfinite().all()):
        raise Undefined("the features are not finite")
    sizes = [tensor.square().sum() for tensor in (x, y)]
    x, y = x - x.mean(0), y - y.mean(0)
    if any(tensor.square().sum() <= ROUNDING * size for tensor, size in zip((x, y), sizes, strict=True)):
        raise Undefined("all samples have the same features")
    return float((y.mT @ x).square().sum() / ((x.mT @ x).norm() * (y.mT @ y).norm()))
