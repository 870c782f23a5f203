"""Neural collapse (Papyan, Han and Donoho, PNAS 2020): how class means, spread and head of a classifier are arranged.

A collapsed classifier has features that equal their class mean (NC1 = 0), means that form a simplex equiangular tight
frame (NC2 = 0), head vectors that point to them (NC3 = 0), and the answers of the nearest class centre (NC4 = 0).
"""

import torch
from torch import Tensor

from raymu.errors import Undefined
from raymu.evaluation.accuracy import fraction
from raymu.evaluation.moments import Moments
from raymu.workers import ALONE, Workers

RANK = 1e-10  # a direction of the class means is none if it is shorter than this share of the longest


def nc1(moments: Moments) -> float:
    """tr(Sw Sb^+) / C, at least 0: the spread within the C classes, in units of that between their means.

    Sb is the mean over classes of (m_c - m)(m_c - m)^T, m the mean of the class means.

    Raises:
        Undefined: there are not two classes with different means.
    """
    centred = _centred(moments.means)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    chosen = lengths > RANK * lengths[0]
    spread = torch.einsum("id,de,ie->i", directions[chosen], moments.within, directions[chosen])
    return float((spread / lengths[chosen].square()).sum())


def nc2(moments: Moments) -> float:
    """Distance of the centred class means' Gram matrix from a simplex's, both of norm 1: in [0, sqrt(2)].

    Raises:
        Undefined: there are not two classes with different means.
    """
    centred = _centred(moments.means)
    return _distance_from_simplex(centred @ centred.mT)


def nc3(moments: Moments, head: Tensor) -> float:
    """Distance of the head vectors' (K, D) products with the centred class means from a simplex: in [0, 2]
    (Zhu et al., NeurIPS 2021, Eq. 13).

    Raises:
        Undefined: there are not two classes with different means, or the head is 0 on all of them.
    """
    return _distance_from_simplex(head[moments.classes].double() @ _centred(moments.means).mT)


def nc4(answers: Tensor, nearest: Tensor, workers: Workers = ALONE) -> float:
    """Share of all workers' samples for which the classifier's answer is not the class of the nearest centre.

    Args:
        answers: the classifier's, to this worker's samples (n,).
        nearest: the classes of the nearest centres (n,).

    Raises:
        Undefined: there is no sample.
    """
    return fraction(answers != nearest, workers)


def alignment(head: Tensor, means: Tensor, centre: Tensor | None = None) -> Tensor:
    """The cosine of every class's head vector and mean feature (C,), in [-1, 1].

    Unlearning turns the head vector of a forgotten class towards minus its mean (Gao et al., AISTATS 2026, Section 4).

    Args:
        head: head vectors (C, D).
        means: mean features of the same classes (C, D).
        centre: classes (bool, C) whose average is taken from both before; None: nothing is. The forgotten classes
            belong left out: a single head vector that is turned away would shift the figures of all.

    Raises:
        Undefined: a vector has no direction, as where one class is the whole centre.
    """
    head, means = head.double(), means.double()
    lengths = torch.stack([head.norm(dim=1), means.norm(dim=1)])
    if centre is not None:
        if not centre.any():
            raise Undefined("no class is left to centre on")
        head, means = head - head[centre].mean(0), means - means[centre].mean(0)
    if (torch.stack([head.norm(dim=1), means.norm(dim=1)]) <= RANK * lengths).any():
        raise Undefined("a class's head vector or mean has no direction")
    return torch.cosine_similarity(head, means, dim=1)


def _centred(means: Tensor) -> Tensor:
    if len(means) < 2:
        raise Undefined("there is only one class")
    centred = means - means.mean(0)
    if centred.norm() <= RANK * means.norm():
        raise Undefined("all classes have the same mean")
    return centred


def _distance_from_simplex(products: Tensor) -> float:
    if not products.norm() > 0:
        raise Undefined("the head does not see the class means")
    count = len(products)
    simplex = torch.eye(count, dtype=products.dtype, device=products.device) - 1 / count
    return float((products / products.norm() - simplex / simplex.norm()).norm())
