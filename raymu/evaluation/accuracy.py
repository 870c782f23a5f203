"""How many samples are right, over all workers' samples."""

import torch
from torch import Tensor

from raymu.errors import Undefined
from raymu.workers import ALONE, Workers


def accuracy(answers: Tensor, labels: Tensor, workers: Workers = ALONE) -> float:
    """Share of the samples whose answer is right, of all workers' together.

    Args:
        answers: of this worker's samples (n,).
        labels: their true labels (n,).

    Raises:
        Undefined: there is no sample.
    """
    return fraction(answers == labels, workers)


def fraction(chosen: Tensor, workers: Workers = ALONE) -> float:
    """Share of the samples that are chosen, of all workers' together.

    Args:
        chosen: which of this worker's samples are (bool, n).

    Raises:
        Undefined: there is no sample.
    """
    sums = torch.stack([chosen.sum(), torch.ones_like(chosen).sum()])
    workers.sum(sums)
    hits, count = sums.tolist()
    if not count:
        raise Undefined("there is no sample")
    return float(hits / count)
